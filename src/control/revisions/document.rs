//! A config as the operator wrote it, with the changes that came after it written into it: what is not touched keeps its
//! comments, its order and its spacing.
//!
//! Changes are folded first, so that of a thousand words on one route the last one is looked for once. What a change
//! takes away may be missing: a member that goes by itself is in no document (see [`super`]).

use std::hash::Hash;
use std::io;

use ahash::{AHashMap, AHashSet};
use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::written::{Elements, put, read, replace, table_of, take, unplace, value_of};
use crate::config::{
    Backend, BackendKey, Config, ConfigErrors, GroupName, InterfaceName, Member, Name, Neighbour, Prefix,
    Route, RouteTarget, VrfName, migrate, migrate_parsed,
};
use crate::control::request::{Patch, RuleAddition};
use crate::control::{BackendChange, ServiceBackends};

/// Routes that came one at a time stand in the config up to here, and in a route file of their own beyond.
const MOST_ROUTES: usize = 1000;

/// A config and its route files, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// What errors call the config.
    pub file_name: String,
    /// The config.
    pub text: String,
    /// Its route files, by the path in the config.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<(String, String)>,
}

/// Why changes cannot be written into a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file_name}: {what}")]
pub struct Unfit {
    /// What the document is called.
    file_name: String,
    /// What is wrong with it.
    what: String,
}

impl Document {
    /// Reads and checks it.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        Config::parse_with(&self.text, &self.file_name, &mut |path| {
            let found = self.files.iter().find(|(name, _)| name == path);
            found.map(|(_, text)| text.clone()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "it was not there when the config was applied")
            })
        })
    }

    /// The same in the words of this binary's schema. `None`: it is in them.
    pub fn migrated(&self) -> Option<Document> {
        let migrated = migrate(&self.text).ok().flatten()?;
        Some(Document { text: migrated.text, ..self.clone() })
    }

    /// About how much memory it holds.
    pub fn bytes(&self) -> usize {
        let files: usize = self.files.iter().map(|(name, text)| name.len() + text.len()).sum();
        self.file_name.len() + self.text.len() + files
    }

    /// The same after these changes.
    pub fn with<'p>(&self, patches: impl IntoIterator<Item = &'p Patch>) -> Result<Document, Unfit> {
        let unfit = |what: String| Unfit { file_name: self.file_name.clone(), what };
        let folded = Folded::new(patches);
        let mut text: DocumentMut = self.text.parse().map_err(|error| unfit(format!("not TOML: {error}")))?;
        // Changes are in today's words.
        migrate_parsed(&mut text).map_err(|error| unfit(error.to_string()))?;
        let mut files = self.files.clone();
        folded.write(&mut text, &mut files).map_err(unfit)?;
        Ok(Document { file_name: self.file_name.clone(), text: text.to_string(), files })
    }
}

/// The last word on each key, in the order in which the keys came first.
struct Last<K, V> {
    words: Vec<(K, V)>,
    at: AHashMap<K, usize>,
}

impl<K, V> Default for Last<K, V> {
    fn default() -> Last<K, V> {
        Last { words: Vec::new(), at: AHashMap::new() }
    }
}

impl<K: Clone + Eq + Hash, V> Last<K, V> {
    fn say(&mut self, key: K, word: V) {
        match self.at.get(&key) {
            Some(at) => self.words[*at].1 = word,
            None => {
                self.at.insert(key.clone(), self.words.len());
                self.words.push((key, word));
            }
        }
    }

    fn on(&self, key: &K) -> Option<&V> {
        self.at.get(key).map(|at| &self.words[*at].1)
    }
}

/// What many changes come to, kind by kind: no kind has to do with another.
#[derive(Default)]
struct Folded<'p> {
    routes: Last<(VrfName, Prefix), Option<&'p Route>>,
    neighbours: Last<(InterfaceName, std::net::IpAddr), Option<&'p Neighbour>>,
    groups: Last<GroupName, Last<Member, bool>>,
    /// Their order counts.
    rules: Vec<&'p Patch>,
    services: Vec<&'p Patch>,
}

impl<'p> Folded<'p> {
    fn new(patches: impl IntoIterator<Item = &'p Patch>) -> Folded<'p> {
        let mut folded = Folded::default();
        for patch in patches {
            match patch {
                Patch::RouteAdd(routes) => {
                    for route in routes {
                        folded.routes.say((route.vrf.clone(), route.prefix), Some(route));
                    }
                }
                Patch::RouteDel(keys) => {
                    for key in keys {
                        folded.routes.say((key.vrf.clone(), key.prefix), None);
                    }
                }
                Patch::NeighbourAdd(added) => {
                    for new in added {
                        folded.neighbours.say((new.interface.clone(), new.address), Some(new));
                    }
                }
                Patch::NeighbourDel(keys) => {
                    for key in keys {
                        folded.neighbours.say((key.interface.clone(), key.address), None);
                    }
                }
                Patch::GroupAdd(change) | Patch::GroupDel(change) => {
                    let is_in = matches!(patch, Patch::GroupAdd(_));
                    if folded.groups.on(&change.group).is_none() {
                        folded.groups.say(change.group.clone(), Last::default());
                    }
                    let at = folded.groups.at[&change.group];
                    for member in &change.members {
                        folded.groups.words[at].1.say(member.clone(), is_in);
                    }
                }
                Patch::RuleAdd(_) | Patch::RuleDel(_) => folded.rules.push(patch),
                Patch::ServiceSetBackends(_) | Patch::ServiceDelBackends(_) | Patch::ServiceSetBackend(_) => {
                    folded.services.push(patch)
                }
            }
        }
        folded
    }

    fn write(self, text: &mut DocumentMut, files: &mut Vec<(String, String)>) -> Result<(), String> {
        if !self.routes.words.is_empty() {
            write_routes(&self.routes, text, files)?;
        }
        if !self.neighbours.words.is_empty() {
            let key = |table: &Table| Some((read(table, "interface")?, read(table, "address")?));
            let words = self.neighbours.words.iter();
            write_list(text, "neighbour", key, words.map(|(key, new)| (key, new.map(table_of))))?;
        }
        for (name, members) in &self.groups.words {
            write_members(text, name, members)?;
        }
        if !self.rules.is_empty() {
            write_rules(text, &self.rules)?;
        }
        for patch in self.services {
            write_service(text, patch)?;
        }
        Ok(())
    }
}

/// The last words on the tables of one list.
fn write_list<'a, K: Eq + Hash + 'a>(
    text: &mut DocumentMut,
    name: &str,
    key_of: impl Fn(&Table) -> Option<K>,
    words: impl Iterator<Item = (&'a K, Option<Table>)>,
) -> Result<(), String> {
    let mut words: Vec<(&K, Option<Table>)> = words.collect();
    let at: AHashMap<&K, usize> = words.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
    let mut seen: AHashSet<usize> = AHashSet::new();
    let mut tables = take(text, name)?;
    tables.retain_mut(|table| {
        let Some(at) = key_of(table).and_then(|key| at.get(&key)) else { return true };
        let is_first = seen.insert(*at);
        match words[*at].1.take() {
            Some(new) if is_first => {
                replace(table, new);
                true
            }
            _ => false,
        }
    });
    let new = words.into_iter().enumerate().filter(|(at, _)| !seen.contains(at));
    tables.extend(new.filter_map(|(_, (_, table))| table));
    put(text, name, tables);
    Ok(())
}

// ---- routes

/// As a route file has it.
fn line_of(route: &Route) -> String {
    format!("{} {}", route.prefix, target_of(&route.target))
}

/// The same of where it leads.
pub(super) fn target_of(target: &RouteTarget) -> String {
    match target {
        RouteTarget::Blackhole => String::from("blackhole"),
        RouteTarget::Unreachable => String::from("unreachable"),
        RouteTarget::Via(hops) => {
            let hops: Vec<String> = hops.iter().map(ToString::to_string).collect();
            format!("via {}", hops.join(","))
        }
    }
}

fn write_routes(
    routes: &Last<(VrfName, Prefix), Option<&Route>>,
    text: &mut DocumentMut,
    files: &mut Vec<(String, String)>,
) -> Result<(), String> {
    let vrf_of = |table: &Table| read(table, "vrf").unwrap_or_else(Name::default_vrf);
    let mut in_files: AHashSet<(VrfName, Prefix)> = AHashSet::new();
    let tables = take(text, "route_file")?;
    for table in &tables {
        let (vrf, path) = (vrf_of(table), read::<String>(table, "path").unwrap_or_default());
        let Some((_, content)) = files.iter_mut().find(|(name, _)| *name == path) else { continue };
        if !routes.words.iter().any(|((of, _), _)| *of == vrf) {
            continue;
        }
        let mut written = String::with_capacity(content.len());
        for line in content.split_inclusive('\n') {
            let words = line.split_once('#').map_or(line, |(words, _)| words);
            let prefix = words.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
            let Some(key) = prefix.map(|prefix| (vrf.clone(), prefix)) else {
                written.push_str(line);
                continue;
            };
            match routes.on(&key) {
                None => written.push_str(line),
                Some(None) => {}
                Some(Some(route)) => {
                    written.push_str(&line_of(route));
                    written.push('\n');
                    in_files.insert(key);
                }
            }
        }
        *content = written;
    }
    put(text, "route_file", tables);
    let key = |table: &Table| Some((vrf_of(table), read(table, "prefix")?));
    let known = take(text, "route")?;
    let in_text: AHashSet<(VrfName, Prefix)> = known.iter().filter_map(key).collect();
    let new = |key: &(VrfName, Prefix)| !in_files.contains(key) && !in_text.contains(key);
    let added: Vec<&Route> =
        routes.words.iter().filter(|(key, _)| new(key)).filter_map(|(_, route)| *route).collect();
    let to_file = known.len() + added.len() > MOST_ROUTES;
    put(text, "route", known);
    let words = routes.words.iter().filter(|(key, _)| !(in_files.contains(key) || to_file && new(key)));
    write_list(text, "route", key, words.map(|(key, route)| (key, route.map(table_of))))?;
    if to_file {
        write_added(&added, text, files)?;
    }
    Ok(())
}

/// Routes that are too many for the text.
fn write_added(
    added: &[&Route],
    text: &mut DocumentMut,
    files: &mut Vec<(String, String)>,
) -> Result<(), String> {
    let mut tables = take(text, "route_file")?;
    let mut by_vrf: AHashMap<&VrfName, usize> = AHashMap::new();
    for route in added {
        let at = match by_vrf.get(&route.vrf) {
            Some(at) => *at,
            None => {
                let path = format!("added.{}.routes", route.vrf);
                let at = files.iter().position(|(name, _)| *name == path).unwrap_or_else(|| {
                    let head = "# Routes that came over the control socket.\n";
                    files.push((path.clone(), String::from(head)));
                    let mut table = Table::new();
                    table.insert("path", toml_edit::value(path));
                    if !route.vrf.is_default_vrf() {
                        table.insert("vrf", toml_edit::value(route.vrf.as_str()));
                    }
                    table.decor_mut().set_prefix("\n");
                    tables.push(table);
                    files.len() - 1
                });
                by_vrf.insert(&route.vrf, at);
                at
            }
        };
        let content = &mut files[at].1;
        if !content.is_empty() && !content.ends_with('\n') {
            content.push('\n');
        }
        content.push_str(&line_of(route));
        content.push('\n');
    }
    put(text, "route_file", tables);
    Ok(())
}

// ---- groups

fn write_members(
    text: &mut DocumentMut,
    name: &GroupName,
    members: &Last<Member, bool>,
) -> Result<(), String> {
    let mut tables = take(text, "group")?;
    let group =
        tables.iter_mut().find(|table| table.get("name").and_then(Item::as_str) == Some(name.as_str()));
    let group = group.ok_or_else(|| format!("there is no group {name}"))?;
    if group.get("members").is_none() {
        group.insert("members", toml_edit::value(Array::new()));
    }
    let array = group.get_mut("members").and_then(Item::as_array_mut);
    let array = array.ok_or_else(|| format!("group {name}: members is no list"))?;
    let mut elements = Elements::of(array);
    let mut known: AHashSet<Member> = AHashSet::new();
    elements.retain(|value| {
        let Some(member) = value.as_str().and_then(|word| word.parse::<Member>().ok()) else { return true };
        let stays = members.on(&member) != Some(&false);
        known.insert(member);
        stays
    });
    for (member, is_in) in &members.words {
        if *is_in && !known.contains(member) {
            elements.push(Value::from(member.to_string()));
        }
    }
    elements.write(array);
    put(text, "group", tables);
    Ok(())
}

// ---- rules

/// The rules of one list with their names beside them, which are quicker to look through than tables.
struct Rules {
    names: Vec<String>,
    tables: Vec<Table>,
}

impl Rules {
    fn take(text: &mut DocumentMut, key: &str) -> Result<Rules, String> {
        let tables = take(text, key)?;
        let name = |table: &Table| table.get("name").and_then(Item::as_str).unwrap_or_default().to_owned();
        Ok(Rules { names: tables.iter().map(name).collect(), tables })
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    fn remove(&mut self, at: usize) -> Table {
        self.names.remove(at);
        self.tables.remove(at)
    }

    fn add(&mut self, addition: &RuleAddition) {
        let name = addition.rule.name.as_str();
        let new = table_of(&*addition.rule);
        let known = self.position(name);
        let before = addition.before.as_ref().and_then(|before| self.position(before.as_str()));
        match (known, before) {
            // Before itself: where it is.
            (Some(known), Some(before)) if known != before => {
                let mut table = self.remove(known);
                unplace(&mut table);
                replace(&mut table, new);
                let before = before - usize::from(before > known);
                self.names.insert(before, name.to_owned());
                self.tables.insert(before, table);
                self.settle(before);
            }
            (Some(known), _) => replace(&mut self.tables[known], new),
            (None, before) => {
                let at = before.unwrap_or(self.tables.len());
                self.names.insert(at, name.to_owned());
                self.tables.insert(at, new);
                self.settle(at);
            }
        }
    }

    /// One that comes first takes the place of the next one: tables at the same place stand as they are listed.
    fn settle(&mut self, at: usize) {
        if at == 0 {
            let next = self.tables.get(1).and_then(Table::position);
            self.tables[0].set_position(next);
        }
    }
}

fn write_rules(text: &mut DocumentMut, patches: &[&Patch]) -> Result<(), String> {
    let (mut admin_rules, mut rules) = (Rules::take(text, "admin_rule")?, Rules::take(text, "rule")?);
    for patch in patches {
        match patch {
            Patch::RuleAdd(addition) if addition.admin => admin_rules.add(addition),
            Patch::RuleAdd(addition) => rules.add(addition),
            Patch::RuleDel(names) => {
                for name in names {
                    for list in [&mut admin_rules, &mut rules] {
                        if let Some(at) = list.position(name.as_str()) {
                            list.remove(at);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    for (key, list) in [("admin_rule", admin_rules), ("rule", rules)] {
        if !list.tables.is_empty() || text.contains_key(key) {
            put(text, key, list.tables);
        }
    }
    Ok(())
}

// ---- services

fn write_service(text: &mut DocumentMut, patch: &Patch) -> Result<(), String> {
    let name = match patch {
        Patch::ServiceSetBackends(all) => &all.service,
        Patch::ServiceDelBackends(removed) => &removed.service,
        Patch::ServiceSetBackend(change) => &change.service,
        _ => return Ok(()),
    };
    let mut tables = take(text, "service")?;
    let service =
        tables.iter_mut().find(|table| table.get("name").and_then(Item::as_str) == Some(name.as_str()));
    let service = service.ok_or_else(|| format!("there is no service {name}"))?;
    let known = service.get("backends").is_some();
    if !known {
        service.insert("backends", toml_edit::value(Array::new()));
    }
    let item = service.get_mut("backends").unwrap_or_else(|| unreachable!("it was just put in"));
    item.make_value();
    let array = item.as_array_mut().ok_or_else(|| format!("service {name}: backends is no list"))?;
    let mut elements = Elements::of(array);
    let mut backends: Vec<Backend> = elements.values().filter_map(backend_of).collect();
    change_backends(&mut backends, patch);
    let mut new: AHashMap<BackendKey, &Backend> =
        backends.iter().map(|backend| (backend.key(), backend)).collect();
    elements.retain_mut(|value| {
        let Some(known) = backend_of(value) else { return true };
        let Some(backend) = new.remove(&known.key()) else { return false };
        if *backend != known {
            *value = value_of(backend);
        }
        true
    });
    for backend in &backends {
        if new.contains_key(&backend.key()) {
            elements.push(value_of(backend));
        }
    }
    elements.write(array);
    put(text, "service", tables);
    Ok(())
}

fn backend_of(value: &Value) -> Option<Backend> {
    #[derive(Deserialize)]
    struct One {
        one: Backend,
    }
    let value = value.clone().decorated("", "");
    toml::from_str::<One>(&format!("one = {value}")).ok().map(|read| read.one)
}

fn change_backends(backends: &mut Vec<Backend>, patch: &Patch) {
    let position = |backends: &[Backend], key: &BackendKey| {
        backends.iter().position(|known| known.address == key.address && known.vrf == key.vrf)
    };
    match patch {
        Patch::ServiceSetBackends(ServiceBackends { backends: new, others_stay: true, .. }) => {
            for backend in new {
                match position(backends, &backend.key()) {
                    Some(at) => backends[at] = backend.clone(),
                    None => backends.push(backend.clone()),
                }
            }
        }
        Patch::ServiceSetBackends(all) => backends.clone_from(&all.backends),
        Patch::ServiceDelBackends(removed) => {
            for key in &removed.backends {
                if let Some(at) = position(backends, key) {
                    backends.remove(at);
                }
            }
        }
        Patch::ServiceSetBackend(BackendChange { backends: keys, state, weight, .. }) => {
            for key in keys {
                if let Some(at) = position(backends, key) {
                    backends[at].state = state.unwrap_or(backends[at].state);
                    backends[at].weight = weight.unwrap_or(backends[at].weight);
                }
            }
        }
        _ => {}
    }
}
