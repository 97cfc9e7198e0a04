//! Schemas: the vocabulary of a document has a number, which stands in it. A binary reads its own and the one before, which
//! it rewrites first; `softgate migrate` writes down what comes of that.
//!
//! A step is a function on the text as it was written: what it does not touch keeps its comments, its order and its spacing.
//! A change of the vocabulary that makes documents there are wrong, or mean something else, is one more schema and one
//! more step, and the step before the last goes: whoever skips a release migrates with the one between.

use toml_edit::{DocumentMut, Item, Table, Value};

/// The schema this binary writes. It reads this one and the one before.
pub const SCHEMA: u32 = 1;

/// What to say of a document of the schema before.
pub const OLD_SCHEMA: &str = "schema: of the schema before, which the next release does not read any more; `softgate migrate` rewrites it";

/// From a schema to the next one.
struct Step {
    /// What it rewrites.
    from: u32,
    /// Rewrites it, but for the number, and says what it did.
    rewrite: fn(&mut DocumentMut, &mut Vec<String>),
}

/// The steps of this binary, one behind the other; the last one leads to [`SCHEMA`].
const STEPS: [Step; 1] = [Step { from: 0, rewrite: from_0 }];

/// A document in this binary's schema, of one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The document.
    pub text: String,
    /// The schema it had.
    pub from: u32,
    /// What was done, for a person; that the number is another goes without saying.
    pub changes: Vec<String>,
}

/// Why a document's schema is none that this binary reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// It is no TOML.
    #[error("not TOML: {0}")]
    NotToml(String),
    /// It does not say which it is.
    #[error("the key schema is missing; write schema = {0} on the first line")]
    Missing(u32),
    /// It says so, but no number.
    #[error("this binary reads {0}")]
    NotANumber(Range),
    /// It is for a later release.
    #[error("this binary reads {0}; the file is for a newer softgate, which has to be installed first")]
    TooNew(Range),
    /// Its release is long gone.
    #[error(
        "this binary reads {0}; let `softgate migrate` of the release before this one rewrite the file first"
    )]
    TooOld(Range),
}

/// The schemas a binary reads, for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    oldest: u32,
    newest: u32,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.oldest, self.newest) {
            (oldest, newest) if oldest == newest => write!(f, "schema {newest}"),
            (oldest, newest) if oldest + 1 == newest => write!(f, "schemas {newest} and {oldest}"),
            (oldest, newest) => write!(f, "schemas {oldest} to {newest}"),
        }
    }
}

/// A document in this binary's schema. `None`: it is already, and stays as it is.
///
/// # Errors
/// It is no TOML, or its schema none that this binary reads.
pub fn migrate(text: &str) -> Result<Option<Migrated>, SchemaError> {
    migrate_by(&STEPS, SCHEMA, text)
}

/// The same of one that is parsed already.
pub(crate) fn migrate_parsed(document: &mut DocumentMut) -> Result<(), SchemaError> {
    rewrite_by(&STEPS, SCHEMA, document).map(|_| ())
}

/// What a document's `schema` is to this binary: `None`: its own; else the one before. `written`: the number, if there is
/// the key and it is one.
pub(super) fn written(written: Option<Option<u32>>) -> Result<Option<u32>, SchemaError> {
    find(&STEPS, SCHEMA, written)
}

fn find(steps: &[Step], newest: u32, written: Option<Option<u32>>) -> Result<Option<u32>, SchemaError> {
    let range = Range { oldest: steps.first().map_or(newest, |step| step.from), newest };
    match written {
        None => Err(SchemaError::Missing(newest)),
        Some(None) => Err(SchemaError::NotANumber(range)),
        Some(Some(number)) if number == newest => Ok(None),
        Some(Some(number)) if number > newest => Err(SchemaError::TooNew(range)),
        Some(Some(number)) if number < range.oldest => Err(SchemaError::TooOld(range)),
        Some(Some(number)) => Ok(Some(number)),
    }
}

fn migrate_by(steps: &[Step], newest: u32, text: &str) -> Result<Option<Migrated>, SchemaError> {
    let parsed = text.parse::<DocumentMut>();
    let mut document = parsed.map_err(|error| SchemaError::NotToml(error.message().to_owned()))?;
    let done = rewrite_by(steps, newest, &mut document)?;
    Ok(done.map(|(from, changes)| Migrated { text: document.to_string(), from, changes }))
}

/// The schema it had, and what was done; `None`: nothing.
fn rewrite_by(
    steps: &[Step],
    newest: u32,
    document: &mut DocumentMut,
) -> Result<Option<(u32, Vec<String>)>, SchemaError> {
    let number = document.get("schema").map(|item| item.as_integer().and_then(|n| u32::try_from(n).ok()));
    let Some(from) = find(steps, newest, number)? else { return Ok(None) };
    let mut changes = Vec::new();
    for step in steps.iter().filter(|step| step.from >= from) {
        (step.rewrite)(document, &mut changes);
    }
    if let Some(value) = document.get_mut("schema").and_then(Item::as_value_mut) {
        let decor = value.decor().clone();
        *value = Value::from(i64::from(newest));
        *value.decor_mut() = decor;
    }
    Ok(Some((from, changes)))
}

// ---- steps

/// Of before the first release. It has two things that came to nothing and are refused today: rules with `log` where no
/// file is named to log to, and `[pair]` with a `port` alone, which kept a UDP port for what was to come.
fn from_0(document: &mut DocumentMut, changes: &mut Vec<String>) {
    let is_old = |pair: &Table| pair.contains_key("port") && !pair.contains_key("local");
    if document.get("pair").and_then(Item::as_table).is_some_and(is_old) {
        document.remove("pair");
        changes.push(String::from(
            "pair: taken out: its port alone paired nothing; a pair has local, peer and key_file",
        ));
    }
    let events = document.get("log").and_then(Item::as_table_like).and_then(|log| log.get("events"));
    if events.is_some() {
        return;
    }
    for key in ["admin_rule", "rule"] {
        let rules = document.get_mut(key).and_then(Item::as_array_of_tables_mut);
        for (index, rule) in rules.into_iter().flat_map(|rules| rules.iter_mut()).enumerate() {
            if rule.get("log").and_then(Item::as_bool) == Some(true) {
                rule.remove("log");
                changes.push(format!(
                    "{key}[{index}].log: taken out: nothing was logged; [log] events = \"FILE\" says where to"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn steps_stand_one_behind_the_other() {
        assert!(STEPS.windows(2).all(|two| two[0].from + 1 == two[1].from));
        assert_eq!(STEPS.last().map(|last| last.from + 1), Some(SCHEMA));
    }

    const OLD: &str = "# The gateway of rack 7.
schema = 0   # not yet

[pair]
port = 5405

[[rule]]
# who comes in
log = true
name = \"in\"   # from outside
action = \"allow\"

# all others
[[rule]]
name = \"rest\"
action = \"deny\"
log = false
";

    const NEW: &str = "# The gateway of rack 7.
schema = 1   # not yet

[[rule]]
name = \"in\"   # from outside
action = \"allow\"

# all others
[[rule]]
name = \"rest\"
action = \"deny\"
log = false
";

    #[test]
    fn what_a_step_does_not_touch_is_as_it_was() {
        let migrated = migrate(OLD).expect("it is read").expect("it is an old one");
        assert_eq!((migrated.text.as_str(), migrated.from), (NEW, 0));
        let keys: Vec<&str> = migrated.changes.iter().filter_map(|change| change.split(':').next()).collect();
        assert_eq!(keys, ["pair", "rule[0].log"]);
        assert_eq!(migrate(NEW), Ok(None));
        // What is read of either is the same.
        let read = |text: &str| Config::parse(text, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(read(OLD), read(NEW));
    }

    #[test]
    fn what_has_come_to_mean_something_stays() {
        let text = "schema = 0\n[log]\nevents = \"/tmp/events\"\n[[rule]]\nname = \"in\"\naction = \"allow\"\nlog = true\n\
                    [pair]\nlocal = \"192.0.2.1:5405\"\npeer = \"192.0.2.2:5405\"\nkey_file = \"/etc/key\"\n";
        let migrated = migrate(text).expect("it is read").expect("it is an old one");
        assert_eq!(migrated.text, text.replace("schema = 0", "schema = 1"));
        assert_eq!(migrated.changes, Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_in_an_old_one_says_where_it_is_found() {
        let errors =
            Config::parse("schema = 0\n[pair]\nport = 1\n[system]\nnam = 1\n", "gw.toml").unwrap_err();
        let told = errors.to_string();
        assert!(
            told.starts_with("gw.toml as `softgate migrate` writes it:3: system.nam: unknown key; "),
            "{told}"
        );
    }

    /// As it will be: two steps, each of which renames what the one before wrote.
    #[test]
    fn steps_follow_each_other() {
        fn rename(document: &mut DocumentMut, from: &str, to: &str) {
            let item = document.remove(from).unwrap_or_default();
            document.insert(to, item);
        }
        let steps = [
            Step {
                from: 6,
                rewrite: |document, changes| {
                    rename(document, "a", "b");
                    changes.push(String::from("a is b"));
                },
            },
            Step {
                from: 7,
                rewrite: |document, changes| {
                    rename(document, "b", "c");
                    changes.push(String::from("b is c"));
                },
            },
        ];
        let migrate = |text: &str| migrate_by(&steps, 8, text);
        let to = |text: &str| migrate(text).map(|done| done.map(|done| (done.text, done.changes.len())));
        assert_eq!(to("schema = 6\na = 1\n"), Ok(Some((String::from("schema = 8\nc = 1\n"), 2))));
        assert_eq!(to("schema = 7\nb = 1\n"), Ok(Some((String::from("schema = 8\nc = 1\n"), 1))));
        assert_eq!(to("schema = 8\nc = 1\n"), Ok(None));
        let refused = |text: &str| migrate(text).expect_err("it is refused").to_string();
        assert_eq!(
            refused("schema = 5\n"),
            "this binary reads schemas 6 to 8; let `softgate migrate` of the release before this one rewrite the file first"
        );
        assert_eq!(
            refused("schema = 9\n"),
            "this binary reads schemas 6 to 8; the file is for a newer softgate, which has to be installed first"
        );
        assert_eq!(refused("schema = \"8\"\n"), "this binary reads schemas 6 to 8");
        assert_eq!(refused("schema = -1\n"), "this binary reads schemas 6 to 8");
        assert_eq!(refused("a = 1\n"), "the key schema is missing; write schema = 8 on the first line");
        assert!(refused("a = = 1\n").starts_with("not TOML: "));
    }
}
