//! Tables and lists of a text that somebody has written: read, replaced, taken out and put in without a word about the
//! others, whose comments, order and spacing stay.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value};

// ---- tables

/// A value of a table, as the config reads it.
pub(super) fn read<T: DeserializeOwned>(table: &Table, key: &str) -> Option<T> {
    #[derive(Deserialize)]
    struct One<T> {
        one: T,
    }
    let value = table.get(key)?.as_value()?.clone().decorated("", "");
    toml::from_str::<One<T>>(&format!("one = {value}")).ok().map(|read| read.one)
}

/// As it is written, each on a line of its own, what is in it in braces.
pub(super) fn table_of<T: Serialize>(value: &T) -> Table {
    let text = toml::to_string(value).unwrap_or_else(|error| unreachable!("it was in a config: {error}"));
    let parsed: DocumentMut =
        text.parse().unwrap_or_else(|error| unreachable!("it was just written: {error}"));
    let mut table = Table::new();
    for (key, item) in parsed.as_table() {
        let mut item = item.clone();
        item.make_value();
        if let Some(value) = item.as_value_mut() {
            value.decor_mut().clear();
        }
        table.insert(key, item);
    }
    table.decor_mut().set_prefix("\n");
    table
}

pub(super) fn value_of<T: Serialize>(value: &T) -> Value {
    let mut value = Value::InlineTable(table_of(value).into_inline_table());
    value.decor_mut().clear();
    value
}

/// All `[[key]]`, taken out of the text.
pub(super) fn take(text: &mut DocumentMut, key: &str) -> Result<Vec<Table>, String> {
    let Some(item) = text.get_mut(key) else { return Ok(Vec::new()) };
    let tables = std::mem::take(item).into_array_of_tables();
    Ok(tables.map_err(|_| format!("{key}: write [[{key}]], once for each"))?.into_iter().collect())
}

/// Puts them back. Tables are printed by their place in the text: those that have none come behind the one before them.
pub(super) fn put(text: &mut DocumentMut, key: &str, mut tables: Vec<Table>) {
    let first = tables.iter().find_map(Table::position);
    let first = first.unwrap_or_else(|| last_place(text.as_table()) + 1);
    if let Some(table) = tables.first_mut()
        && table.position().is_none()
    {
        table.set_position(Some(first));
    }
    let tables: ArrayOfTables = tables.into_iter().collect();
    text.insert(key, Item::ArrayOfTables(tables));
}

fn last_place(table: &Table) -> isize {
    let inner = table.iter().map(|(_, item)| match item {
        Item::Table(table) => last_place(table),
        Item::ArrayOfTables(tables) => tables.iter().map(last_place).max().unwrap_or(0),
        Item::Value(_) | Item::None => 0,
    });
    inner.max().unwrap_or(0).max(table.position().unwrap_or(0))
}

/// Forgets where it and what is in it stood.
pub(super) fn unplace(table: &mut Table) {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(table) => unplace(table),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(unplace),
            Item::Value(_) | Item::None => {}
        }
    }
}

/// Puts what is in `new` in the place of `old`: the comment before it stays.
pub(super) fn replace(old: &mut Table, new: Table) {
    let keys: Vec<String> = old.iter().map(|(key, _)| key.to_owned()).collect();
    keys.iter().filter(|key| !new.contains_key(key)).for_each(|key| _ = old.remove(key));
    for (key, item) in new {
        match old.get_mut(&key) {
            Some(known) if known.to_string().trim() == item.to_string().trim() => {}
            Some(known) => *known = item,
            None => _ = old.insert(&key, item),
        }
    }
}

// ---- lists

/// The elements of a list with what stands around them.
pub(super) struct Elements {
    /// What stands on the line of the bracket.
    opening: String,
    elements: Vec<Element>,
    /// What stands before the other bracket.
    closing: String,
    has_comma: bool,
}

/// An element: the comment behind it is its own, though to the parser it stands before the next one.
struct Element {
    before: String,
    value: Value,
    behind: String,
}

impl Elements {
    pub(super) fn of(array: &Array) -> Elements {
        let text = |raw: Option<&str>| raw.unwrap_or_default().to_owned();
        // Up to the end of the line it belongs to what is there already.
        let split = |text: &str| {
            let at = text.find('\n').unwrap_or(0);
            (text[..at].to_owned(), text[at..].to_owned())
        };
        let mut all = Elements {
            opening: String::new(),
            elements: Vec::new(),
            closing: text(array.trailing().as_str()),
            has_comma: array.trailing_comma(),
        };
        for value in array {
            let decor = value.decor();
            let (own, before) = split(&text(decor.prefix().and_then(|raw| raw.as_str())));
            all.last_line().push_str(&own);
            let behind = text(decor.suffix().and_then(|raw| raw.as_str()));
            all.elements.push(Element { before, value: value.clone(), behind });
        }
        let (own, closing) = split(&all.closing);
        all.last_line().push_str(&own);
        all.closing = closing;
        all
    }

    /// Where the line ends at present.
    fn last_line(&mut self) -> &mut String {
        match self.elements.last_mut() {
            Some(last) => &mut last.behind,
            None => &mut self.opening,
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.elements.iter().map(|element| &element.value)
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Value) -> bool) {
        self.elements.retain(|element| stays(&element.value));
    }

    pub(super) fn retain_mut(&mut self, mut stays: impl FnMut(&mut Value) -> bool) {
        self.elements.retain_mut(|element| stays(&mut element.value));
    }

    /// Set apart as the last one.
    pub(super) fn push(&mut self, value: Value) {
        let before = match self.elements.last() {
            // Without the comments on lines of their own.
            Some(last) => last.before.rfind('\n').map_or(" ", |at| &last.before[at..]).to_owned(),
            None => String::new(),
        };
        self.elements.push(Element { before, value, behind: String::new() });
    }

    /// Writes them into the list.
    pub(super) fn write(self, array: &mut Array) {
        array.clear();
        let is_comment = |line: &str| line.contains('#');
        let mut line = self.opening;
        let count = self.elements.len();
        for (at, Element { before, mut value, behind }) in self.elements.into_iter().enumerate() {
            let mut before = before;
            if is_comment(&line) && !before.starts_with('\n') {
                before.insert(0, '\n');
            } else if at == 0 && !before.starts_with('\n') {
                before.clear();
            }
            value.decor_mut().set_prefix(line + &before);
            value.decor_mut().set_suffix("");
            array.push_formatted(value);
            line = behind;
        }
        let mut closing = self.closing;
        if is_comment(&line) && !closing.starts_with('\n') {
            closing.insert(0, '\n');
        }
        array.set_trailing_comma(self.has_comma && count > 0);
        array.set_trailing(line + &closing);
    }
}
