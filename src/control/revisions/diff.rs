//! What lies between two configs, as an operator would say it: which rule has moved, which backend weighs otherwise, how
//! many routes have come; not which lines differ.
//!
//! Both are compared as they are written out, so that a new key of the vocabulary is compared without a word here. What
//! has a name is found by it; order counts only where the first match decides.

use std::hash::Hash;

use ahash::{AHashMap, AHashSet};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::{Config, Prefix, Route, VrfName};

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What: `rule web-in`, `service shop, backend 10.0.0.1:80`, `[system]`.
    pub what: String,
    /// How.
    #[serde(flatten)]
    pub change: Change,
}

/// How something differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// It is there now.
    Added,
    /// It was there.
    Removed,
    /// It stands elsewhere, and is asked earlier or later.
    Moved {
        /// Behind this one now; `None`: before all others.
        behind: Option<String>,
    },
    /// A value of it.
    Changed {
        /// Its key.
        key: String,
        /// What it was; `None`: it was not written.
        was: Option<String>,
        /// What it is; `None`: it is not written.
        now: Option<String>,
    },
    /// Values of a list.
    Listed {
        /// Its key.
        key: String,
        /// How many have come.
        added: usize,
        /// How many have gone.
        removed: usize,
        /// The first of them, with `+` or `-`.
        first: Vec<String>,
    },
}

/// Things that are named one by one where many differ.
const NAMED: usize = 20;

/// Lists in which the first match decides.
const ORDERED: [&str; 4] = ["rule", "admin_rule", "source", "destination"];

/// What makes tables of a list without a name what they are.
const IDENTITY: [&str; 9] = ["interface", "port", "vlan", "vni", "id", "address", "outside", "inside", "vrf"];

/// What lies between `old` and `new`, in the order of the manual; routes come last.
pub fn between(old: &Config, new: &Config) -> Vec<Difference> {
    let mut found = Vec::new();
    tables("", "", &as_table(old), &as_table(new), &mut found);
    routes(old, new, &mut found);
    found
}

fn as_table(config: &Config) -> Table {
    // Routes may be a million, and are compared by themselves.
    let without = Config { routes: Vec::new(), route_files: Vec::new(), ..config.clone() };
    Table::try_from(without).unwrap_or_else(|error| unreachable!("a config is plain tables: {error}"))
}

fn tables(what: &str, path: &str, old: &Table, new: &Table, found: &mut Vec<Difference>) {
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    for key in keys {
        let (was, now) = (old.get(key), new.get(key));
        if was == now {
            continue;
        }
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let empty = Value::Array(Vec::new());
        let (before, after) = (list_or(was, now, &empty), list_or(now, was, &empty));
        match (was, now) {
            (Some(Value::Table(was)), Some(Value::Table(now))) => tables(what, &at, was, now, found),
            _ => match (before, after) {
                (Some(before), Some(after)) if before.iter().chain(after).all(Value::is_table) => {
                    lists(what, key, before, after, found);
                }
                (Some(before), Some(after)) => values(what, &at, before, after, found),
                _ => found.push(changed(what, &at, was, now)),
            },
        }
    }
}

/// The list; an empty one where it is not written and the other is a list.
fn list_or<'a>(value: Option<&'a Value>, other: Option<&Value>, empty: &'a Value) -> Option<&'a [Value]> {
    let value = match value {
        None if other.is_some_and(Value::is_array) => Some(empty),
        value => value,
    };
    value.and_then(Value::as_array).map(Vec::as_slice)
}

fn changed(what: &str, path: &str, was: Option<&Value>, now: Option<&Value>) -> Difference {
    let (what, key) = match what {
        // `[system]` is a thing, `frames` its key.
        "" => match path.split_once('.') {
            Some((table, key)) => (format!("[{table}]"), key),
            None => (String::from("config"), path),
        },
        what => (what.to_owned(), path),
    };
    let word = |value: Option<&Value>| value.map(ToString::to_string);
    Difference { what, change: Change::Changed { key: key.to_owned(), was: word(was), now: word(now) } }
}

/// Lists of words and numbers: what has come and gone. Only their order differs: both whole.
fn values(what: &str, path: &str, old: &[Value], new: &[Value], found: &mut Vec<Difference>) {
    let words = |list: &[Value]| list.iter().map(ToString::to_string).collect::<Vec<String>>();
    let (old_words, new_words) = (words(old), words(new));
    let [before, after]: [AHashSet<&String>; 2] = [&old_words, &new_words].map(|list| list.iter().collect());
    let added: Vec<&String> = new_words.iter().filter(|word| !before.contains(word)).collect();
    let removed: Vec<&String> = old_words.iter().filter(|word| !after.contains(word)).collect();
    if added.is_empty() && removed.is_empty() {
        let [was, now] = [old, new].map(|list| Value::Array(list.to_vec()));
        found.push(changed(what, path, Some(&was), Some(&now)));
        return;
    }
    let first =
        added.iter().map(|word| format!("+{word}")).chain(removed.iter().map(|word| format!("-{word}")));
    let change = Change::Listed {
        key: path.to_owned(),
        added: added.len(),
        removed: removed.len(),
        first: first.take(NAMED).collect(),
    };
    let what = if what.is_empty() { String::from("config") } else { what.to_owned() };
    found.push(Difference { what, change });
}

/// Lists of tables.
fn lists(around: &str, key: &str, old: &[Value], new: &[Value], found: &mut Vec<Difference>) {
    let (old, new) = (named(old), named(new));
    let [before, after]: [AHashMap<&str, usize>; 2] =
        [&old, &new].map(|list| list.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect());
    let title = |name: &str| {
        let kind = if key == "backends" { "backend" } else { key };
        match around {
            "" => format!("{kind} {name}"),
            around => format!("{around}, {kind} {name}"),
        }
    };
    let gone = old.iter().filter(|(name, _)| !after.contains_key(name.as_str()));
    found.extend(gone.map(|(name, _)| Difference { what: title(name), change: Change::Removed }));
    let moved = if ORDERED.contains(&key) { moved(&old, &new, &before) } else { AHashSet::new() };
    for (at, (name, table)) in new.iter().enumerate() {
        match before.get(name.as_str()) {
            None => found.push(Difference { what: title(name), change: Change::Added }),
            Some(was) => {
                if moved.contains(name.as_str()) {
                    let behind = at.checked_sub(1).map(|at| new[at].0.clone());
                    found.push(Difference { what: title(name), change: Change::Moved { behind } });
                }
                tables(&title(name), "", old[*was].1, table, found);
            }
        }
    }
}

/// Each table of a list with what tells it from the others.
fn named(list: &[Value]) -> Vec<(String, &Table)> {
    let mut seen: AHashMap<String, usize> = AHashMap::new();
    let tables = list.iter().filter_map(Value::as_table);
    tables
        .map(|table| {
            let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let name = table.get("name").map(word).unwrap_or_else(|| {
                let parts = IDENTITY.iter().filter_map(|key| table.get(*key).map(word));
                let family = table.get("id").and_then(|_| table.get("addresses")).map(|addresses| {
                    if addresses.to_string().contains("::") { "IPv6" } else { "IPv4" }.to_owned()
                });
                parts.chain(family).collect::<Vec<_>>().join(" ")
            });
            let times = seen.entry(name.clone()).or_insert(0);
            *times += 1;
            (if *times > 1 { format!("{name} ({times})") } else { name }, table)
        })
        .collect()
}

/// Those of both that stand in another order: as few as there can be, the rest is a longest run in the same order.
fn moved<'a>(
    old: &[(String, &Table)],
    new: &'a [(String, &Table)],
    before: &AHashMap<&str, usize>,
) -> AHashSet<&'a str> {
    let both: Vec<(&str, usize)> =
        new.iter().filter_map(|(name, _)| Some((name.as_str(), *before.get(name.as_str())?))).collect();
    debug_assert!(both.len() <= old.len());
    // Patience sorting: the ends of the best runs so far, and whom each follows.
    let mut ends: Vec<usize> = Vec::new();
    let mut follows: Vec<Option<usize>> = Vec::with_capacity(both.len());
    for (index, (_, place)) in both.iter().enumerate() {
        let at = ends.partition_point(|end| both[*end].1 < *place);
        follows.push(at.checked_sub(1).map(|before| ends[before]));
        if at == ends.len() { ends.push(index) } else { ends[at] = index }
    }
    let mut stays: AHashSet<usize> = AHashSet::new();
    let mut next = ends.last().copied();
    while let Some(index) = next {
        stays.insert(index);
        next = follows[index];
    }
    both.iter().enumerate().filter(|(index, _)| !stays.contains(index)).map(|(_, (name, _))| *name).collect()
}

/// Routes, by VRF and prefix: wherever they are written.
fn routes(old: &Config, new: &Config, found: &mut Vec<Difference>) {
    fn all(config: &Config) -> AHashMap<(&VrfName, Prefix), &Route> {
        config.all_routes().map(|route| ((&route.vrf, route.prefix), route)).collect()
    }
    fn only<'a, K: Hash + Eq + Copy>(
        of: &AHashMap<K, &'a Route>,
        not: &AHashMap<K, &Route>,
    ) -> Vec<&'a Route> {
        let mut only: Vec<&Route> =
            of.iter().filter(|(key, _)| !not.contains_key(*key)).map(|(_, route)| *route).collect();
        only.sort_by(|a, b| (a.vrf.as_str(), a.prefix.net()).cmp(&(b.vrf.as_str(), b.prefix.net())));
        only
    }
    let (before, after) = (all(old), all(new));
    let (added, removed) = (only(&after, &before), only(&before, &after));
    let mut others: Vec<(&Route, &Route)> = after
        .iter()
        .filter_map(|(key, now)| before.get(key).map(|was| (*was, *now)))
        .filter(|(was, now)| was.target != now.target)
        .collect();
    others.sort_by(|(_, a), (_, b)| (a.vrf.as_str(), a.prefix.net()).cmp(&(b.vrf.as_str(), b.prefix.net())));
    let name = |route: &Route| match route.vrf.is_default_vrf() {
        true => format!("route {}", route.prefix),
        false => format!("route {} in VRF {}", route.prefix, route.vrf),
    };
    let count = added.len() + removed.len() + others.len();
    if count > NAMED {
        let first = added.iter().map(|route| format!("+{}", route.prefix));
        let first = first.chain(removed.iter().map(|route| format!("-{}", route.prefix)));
        let change = Change::Listed {
            key: format!("{} of them with other next hops", others.len()),
            added: added.len(),
            removed: removed.len(),
            first: first.take(NAMED).collect(),
        };
        found.push(Difference { what: String::from("routes"), change });
        return;
    }
    found.extend(removed.iter().map(|route| Difference { what: name(route), change: Change::Removed }));
    found.extend(added.iter().map(|route| Difference { what: name(route), change: Change::Added }));
    for (was, now) in others {
        let what = name(now);
        let [was, now] = [was, now].map(|route| Some(super::document::target_of(&route.target)));
        found.push(Difference { what, change: Change::Changed { key: String::from("to"), was, now } });
    }
}
