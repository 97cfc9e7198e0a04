//! From TOML text to structs, with the line and key of every fault rather than of the first.
//!
//! `toml` gives a tree with spans. Each table of the tree goes through serde by itself; where serde
//! stops, the fault is noted, the key is taken out and the rest is tried again.

use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::error::{ConfigError, ConfigErrors};

/// A parsed file that still knows where everything stands.
pub(crate) struct Source<'t> {
    file: Arc<str>,
    text: &'t str,
    tree: Spanned<DeTable<'t>>,
    line_starts: Vec<usize>,
}

/// One step from a table or an array to what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl<'t> Source<'t> {
    pub(crate) fn parse(text: &'t str, file: &str, errors: &mut ConfigErrors) -> Source<'t> {
        let (tree, faults) = DeTable::parse_recoverable(text);
        let line_starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1));
        let source = Source { file: file.into(), text, tree, line_starts: line_starts.collect() };
        for fault in faults {
            let line = fault.span().map(|span| source.line(span.start));
            let value = fault.span().and_then(|span| source.excerpt(span));
            let allowed = format!("not TOML: {}", fault.message());
            errors.push(ConfigError { file: source.file.clone(), line, key: String::new(), value, allowed });
        }
        source
    }

    /// The top-level value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<&Spanned<DeValue<'t>>> {
        self.tree.get_ref().get(key)
    }

    /// Every top-level key that is not in `known`.
    pub(crate) fn refuse_others(&self, known: &[&str], errors: &mut ConfigErrors) {
        for key in self.tree.get_ref().keys() {
            if !known.contains(&key.get_ref().as_ref()) {
                errors.push(ConfigError {
                    file: self.file.clone(),
                    line: Some(self.line(key.span().start)),
                    key: key.get_ref().to_string(),
                    value: None,
                    allowed: format!("unknown key; known here: {}", known.join(", ")),
                });
            }
        }
    }

    /// A table or value of the top level; `None` if absent or wrong.
    pub(crate) fn single<T: DeserializeOwned>(&self, key: &str, errors: &mut ConfigErrors) -> Option<T> {
        self.value(self.get(key)?, key, errors)
    }

    /// A table of the top level without some of its keys, which are read with [`Source::list`].
    pub(crate) fn single_without<T: DeserializeOwned>(
        &self,
        key: &str,
        lists: &[&str],
        errors: &mut ConfigErrors,
    ) -> Option<T> {
        let value = self.get(key)?;
        let Some(table) = value.get_ref().as_table() else { return self.value(value, key, errors) };
        let others = table.iter().filter(|(key, _)| !lists.contains(&key.get_ref().as_ref()));
        let others: DeTable<'_> = others.map(|(key, value)| (key.clone(), value.clone())).collect();
        self.value(&Spanned::new(value.span(), DeValue::Table(others)), key, errors)
    }

    /// All tables `[[key]]`; `key` may be `table.key`.
    pub(crate) fn list<T: DeserializeOwned>(&self, key: &str, errors: &mut ConfigErrors) -> Vec<T> {
        let value = match key.split_once('.') {
            None => self.get(key),
            Some((table, key)) => self.get(table).and_then(|table| table.get_ref().as_table()?.get(key)),
        };
        let Some(value) = value else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            errors.push(self.error(key, None, format!("write [[{key}]], once for each")));
            return Vec::new();
        };
        let elements = array.iter().enumerate();
        elements
            .filter_map(|(index, element)| self.value(element, &format!("{key}[{index}]"), errors))
            .collect()
    }

    fn value<T: DeserializeOwned>(
        &self,
        value: &Spanned<DeValue<'t>>,
        path: &str,
        errors: &mut ConfigErrors,
    ) -> Option<T> {
        let mut rest = value.clone();
        let mut removed: Vec<Vec<Step>> = Vec::new();
        loop {
            let fault = match T::deserialize(ValueDeserializer::from(rest.clone())) {
                Ok(value) => return removed.is_empty().then_some(value),
                Err(fault) => fault,
            };
            let mut steps = Vec::new();
            if let Some(span) = fault.span() {
                deepest(&rest, &span, &mut steps);
            }
            let message = fault.message();
            let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
            let follows =
                |key: &str| removed.iter().any(|steps| steps.last() == Some(&Step::Key(key.to_owned())));
            match missing {
                Some(key) if follows(key) => return None,
                Some(key) => {
                    let at = join(path, &steps);
                    errors.push(self.error(&at, None, format!("the key {key} is missing")));
                    return None;
                }
                // What a whole table may hold cannot be judged once keys were taken out of it.
                None if steps.is_empty() && !removed.is_empty() => return None,
                None => {
                    let key = join(path, &steps);
                    let value = if message.starts_with("unknown field") {
                        None
                    } else {
                        fault.span().filter(|_| !steps.is_empty()).and_then(|span| self.excerpt(span))
                    };
                    let span = fault.span().or_else(|| self.find(&key));
                    let line = span.map(|span| self.line(span.start));
                    let allowed = allowed(message);
                    errors.push(ConfigError { file: self.file.clone(), line, key, value, allowed });
                    // Each fault costs one more reading of all that is left.
                    if removed.len() >= ConfigErrors::SHOWN {
                        errors.is_cut = true;
                        return None;
                    }
                    if steps.is_empty() || !remove(rest.get_mut(), &mut steps) {
                        return None;
                    }
                    removed.push(steps);
                }
            }
        }
    }

    /// A fault at a path such as `interface[1].vlan`; its line is looked up.
    pub(crate) fn error(&self, path: &str, value: Option<String>, allowed: String) -> ConfigError {
        let line = self.find(path).map(|span| self.line(span.start));
        ConfigError { file: self.file.clone(), line, key: path.to_owned(), value, allowed }
    }

    /// Where the value at `path` stands, or the nearest table around it.
    fn find(&self, path: &str) -> Option<Range<usize>> {
        let mut words = path.split(['.', '[', ']']).filter(|word| !word.is_empty());
        let mut at = self.get(words.next()?)?;
        for word in words {
            let next = match at.get_ref() {
                DeValue::Table(table) => table.get(word),
                DeValue::Array(array) => word.parse().ok().and_then(|index: usize| array.get(index)),
                _ => None,
            };
            let Some(next) = next else { break };
            at = next;
        }
        Some(at.span())
    }

    fn line(&self, offset: usize) -> u32 {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        u32::try_from(line).unwrap_or(u32::MAX)
    }

    /// The text of a span on one line, cut to a readable length.
    fn excerpt(&self, span: Range<usize>) -> Option<String> {
        let text = self.text.get(span)?.lines().next()?.trim();
        let cut: String = text.chars().take(60).collect();
        let dots = if cut.len() < text.len() { "..." } else { "" };
        (!cut.is_empty()).then(|| cut + dots)
    }
}

/// Finds the innermost key or element whose text holds `span`.
fn deepest(value: &Spanned<DeValue<'_>>, span: &Range<usize>, steps: &mut Vec<Step>) -> bool {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, child) in table.iter() {
                steps.push(Step::Key(key.get_ref().to_string()));
                if deepest(child, span, steps) || holds(key.span()) || holds(child.span()) {
                    return true;
                }
                steps.pop();
            }
        }
        DeValue::Array(array) => {
            for (index, child) in array.iter().enumerate() {
                steps.push(Step::Index(index));
                if deepest(child, span, steps) || holds(child.span()) {
                    return true;
                }
                steps.pop();
            }
        }
        _ => {}
    }
    false
}

/// Takes the key that `steps` leads to out of `value` and cuts `steps` to it. An element of an array
/// goes with its key: the others would move up and get a wrong number.
fn remove(value: &mut DeValue<'_>, steps: &mut Vec<Step>) -> bool {
    while matches!(steps.last(), Some(Step::Index(_))) {
        steps.pop();
    }
    let Some((Step::Key(last), above)) = steps.split_last() else { return false };
    let mut at = value;
    for step in above {
        let next = match (at, step) {
            (DeValue::Table(table), Step::Key(key)) => table.get_mut(key.as_str()),
            (DeValue::Array(array), Step::Index(index)) => array.get_mut(*index),
            _ => None,
        };
        let Some(next) = next else { return false };
        at = next.get_mut();
    }
    match at {
        DeValue::Table(table) => table.remove(last.as_str()).is_some(),
        _ => false,
    }
}

fn join(path: &str, steps: &[Step]) -> String {
    let mut joined = path.to_owned();
    for step in steps {
        match step {
            Step::Key(key) => {
                joined.push('.');
                joined.push_str(key);
            }
            Step::Index(index) => joined.push_str(&format!("[{index}]")),
        }
    }
    joined
}

/// serde's words in the operator's: the value is printed anyway, what counts is what was expected.
fn allowed(message: &str) -> String {
    let listed = |rest: &str| rest.replace('`', "").replace(" or ", ", ");
    if let Some((_, known)) = message.split_once(", expected ")
        && message.starts_with("unknown field")
    {
        return format!("unknown key; known here: {}", listed(known.trim_start_matches("one of ")));
    }
    if let Some((_, known)) = message.split_once(", expected ")
        && message.starts_with("unknown variant")
    {
        return format!("allowed: {}", listed(known.trim_start_matches("one of ")));
    }
    if let Some((_, expected)) = message.split_once(", expected ")
        && message.starts_with("invalid ")
    {
        return format!("expected {expected}");
    }
    if message == "wanted string or table" {
        return "a word in quotes is expected".to_owned(); // toml, of an enum
    }
    message.to_owned()
}
