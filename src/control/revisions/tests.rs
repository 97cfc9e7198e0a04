//! Documents that changes are written into, and folders that power cuts are simulated on.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::choice::{Begin, Wish, choose};
use super::diff::{Change, Difference, between};
use super::store::Limits;
use super::*;
use crate::config::{Config, Group, Member, Route, Rule};
use crate::control::{
    BackendChange, BackendsRemoved, NeighbourKey, Patch, Request, RouteKey, RuleAddition, ServiceBackends,
};

const TEXT: &str = r#"# The edge of the lab.
schema = 1

[[port]]            # the only one
name = "p"
device = "eth1"

[[interface]]
name = "in"
port = "p"
zone = "inside"
addresses = ["10.0.0.1/24"]
[[interface]]
name = "out"
port = "p"
vlan = 2
zone = "outside"
addresses = ["192.0.2.1/24"]

# Everything else.
[[route]]
prefix = "0.0.0.0/0"
via = ["192.0.2.2"]

[[route_file]]
path = "full.routes"

[[group]]
name = "blocked"
members = [
    "203.0.113.1", # a scanner
    "203.0.113.2",
]

# First of all: nobody in there.
[[rule]]
name = "blocked"
action = "deny"
from = { group = "blocked" }

# The web.
[[rule]]
name = "web"
action = "allow"
service = ["tcp/80", "tcp/443"]
[rule.to]
prefix = "10.0.0.0/24"

[[rule]]
name = "rest"
action = "deny"       # of that class only
dscp = "ef"

[[service]]
name = "shop"
address = "192.0.2.10"
service = "tcp/80"
backends = [
    { address = "10.0.0.10:80" },             # the old one
    { address = "10.0.0.11:80", weight = 2 }, # the new one
]
"#;

fn document() -> Document {
    let routes = "# Of the provider\n198.51.100.0/24 via 192.0.2.2\n198.51.100.128/25 blackhole # for now\n";
    Document {
        file_name: "gw.toml".into(),
        text: TEXT.into(),
        files: vec![("full.routes".into(), routes.into())],
    }
}

fn rule(text: &str) -> Arc<Rule> {
    Arc::new(toml::from_str(text).expect("a rule"))
}

/// Changes as a client writes them.
fn patch(method: &str, params: &str) -> Patch {
    let line = format!("{{\"method\":\"{method}\",\"params\":{params}}}");
    let request: Request = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    request.into_patch().expect("a change")
}

fn deny(name: &str, before: Option<&str>) -> Patch {
    Patch::RuleAdd(RuleAddition {
        rule: rule(&format!("name = \"{name}\"\naction = \"deny\"\nto = {{ prefix = \"10.9.0.0/16\" }}")),
        before: before.map(|name| name.parse().expect("a name")),
        admin: false,
    })
}

/// What differs, line by line.
fn lines(old: &str, new: &str) -> String {
    let minus =
        old.lines().filter(|line| !new.lines().any(|other| other == *line)).map(|line| format!("-{line}"));
    let plus =
        new.lines().filter(|line| !old.lines().any(|other| other == *line)).map(|line| format!("+{line}"));
    minus.chain(plus).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_not_touched_stays_as_it_was_written() {
    let patches = [
        patch("route.add", r#"{"routes":[["198.51.100.0/24","192.0.2.3"],["203.0.113.0/24","blackhole"]]}"#),
        patch("group.add", r#"{"group":"blocked","members":["203.0.113.3"]}"#),
        patch("group.del", r#"{"group":"blocked","members":["203.0.113.2"]}"#),
        deny("new", Some("rest")),
        patch("service.set-backend", r#"{"service":"shop","backends":["10.0.0.10:80"],"state":"drain"}"#),
        patch(
            "neighbour.add",
            r#"{"neighbours":[{"interface":"in","address":"10.0.0.9","mac":"02:00:00:00:00:09"}]}"#,
        ),
    ];
    let after = document().with(&patches).expect("they fit");
    assert_eq!(
        lines(TEXT, &after.text),
        r#"-    "203.0.113.2",
-    { address = "10.0.0.10:80" },             # the old one
+prefix = "203.0.113.0/24"
+blackhole = true
+    "203.0.113.3",
+name = "new"
+to = { prefix = ["10.9.0.0/16"] }
+    { address = "10.0.0.10:80", state = "drain" },             # the old one
+[[neighbour]]
+interface = "in"
+address = "10.0.0.9"
+mac = "02:00:00:00:00:09""#,
        "{}",
        after.text
    );
    assert_eq!(
        after.files[0].1,
        "# Of the provider\n198.51.100.0/24 via 192.0.2.3\n198.51.100.128/25 blackhole # for now\n"
    );
    let config = after.config().expect("good");
    let names: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["blocked", "web", "new", "rest"]);
}

#[test]
fn a_rule_that_moves_takes_its_tables_with_it() {
    let web = Arc::clone(&document().config().expect("good").rules[1]);
    let moved = |before: &str| {
        let before = Some(before.parse().expect("a name"));
        let patch = Patch::RuleAdd(RuleAddition { rule: Arc::clone(&web), before, admin: false });
        document().with(&[patch]).expect("it fits")
    };
    for (before, order) in [("blocked", ["web", "blocked", "rest"]), ("rest", ["blocked", "web", "rest"])] {
        let after = moved(before);
        let config = after.config().unwrap_or_else(|errors| panic!("{errors}\n{}", after.text));
        let names: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names, order, "{}", after.text);
        assert_eq!(config.rules.iter().find(|rule| rule.name == web.name), Some(&web));
        assert!(after.text.contains("# The web.\n[[rule]]\nname = \"web\""), "{}", after.text);
    }
}

#[test]
fn many_routes_go_into_a_file_of_their_own() {
    let routes: Vec<Route> = (0..2000u32)
        .map(|n| {
            let [_, _, c, d] = n.to_be_bytes();
            let line = format!("10.{}.{c}.{d}/32 via 192.0.2.2", 100 + n % 3);
            let vrf = crate::config::Name::default_vrf();
            match crate::config::route_file::parse_line(&line, &vrf) {
                Ok(route) => route,
                Err(_) => panic!("{line}"),
            }
        })
        .collect();
    let after = document().with(&[Patch::RouteAdd(routes.clone())]).expect("they fit");
    assert_eq!(after.files.len(), 2);
    assert_eq!(after.config().expect("good").all_routes().count(), 2003);
    // Some of them change where they are, and some go.
    let key = |route: &Route| RouteKey { prefix: route.prefix, vrf: route.vrf.clone() };
    let again = after.with(&[
        Patch::RouteDel(routes[..500].iter().map(key).collect()),
        Patch::RouteAdd(vec![Route { target: crate::config::RouteTarget::Blackhole, ..routes[500].clone() }]),
    ]);
    let again = again.expect("they fit");
    assert_eq!(again.files.len(), 2);
    assert_eq!(lines(&after.text, &again.text), "");
    assert_eq!(again.config().expect("good").all_routes().count(), 1503);
}

// ---- documents against their twin

/// What a document's changes come to, on the config itself.
fn twin(config: &mut Config, patch: &Patch) {
    match patch {
        Patch::RouteAdd(routes) => {
            for new in routes {
                config.routes.retain(|old| (&old.vrf, old.prefix) != (&new.vrf, new.prefix));
                config.routes.push(new.clone());
            }
        }
        Patch::RouteDel(keys) => {
            config
                .routes
                .retain(|old| !keys.iter().any(|key| (&key.vrf, key.prefix) == (&old.vrf, old.prefix)));
        }
        Patch::NeighbourAdd(added) => {
            for new in added {
                config
                    .neighbours
                    .retain(|old| (&old.interface, old.address) != (&new.interface, new.address));
                config.neighbours.push(new.clone());
            }
        }
        Patch::NeighbourDel(keys) => config.neighbours.retain(|old| {
            let is = |key: &NeighbourKey| (&key.interface, key.address) == (&old.interface, old.address);
            !keys.iter().any(is)
        }),
        Patch::GroupAdd(change) | Patch::GroupDel(change) => {
            let group = config.groups.iter_mut().find(|group| group.name == change.group).expect("a group");
            let mut members = group.members.clone();
            members.retain(|member| !change.members.contains(member));
            if matches!(patch, Patch::GroupAdd(_)) {
                members.extend(change.members.iter().cloned());
            }
            *group = Arc::new(Group { name: change.group.clone(), members });
        }
        Patch::RuleAdd(RuleAddition { rule, before, admin }) => {
            let list = if *admin { &mut config.admin_rules } else { &mut config.rules };
            let known = list.iter().position(|old| old.name == rule.name);
            // One that is not there, or itself, is refused before it comes here.
            let is_there = |name: &&crate::config::RuleName| {
                **name != rule.name && list.iter().any(|old| old.name == **name)
            };
            let before = before.as_ref().filter(is_there);
            let at = match (known, before) {
                (Some(at), None) => {
                    list.remove(at);
                    at
                }
                (known, before) => {
                    known.map(|at| list.remove(at));
                    let before = before.and_then(|name| list.iter().position(|old| old.name == *name));
                    before.unwrap_or(list.len())
                }
            };
            list.insert(at, Arc::clone(rule));
        }
        Patch::RuleDel(names) => {
            config.rules.retain(|rule| !names.contains(&rule.name));
            config.admin_rules.retain(|rule| !names.contains(&rule.name));
        }
        Patch::ServiceSetBackends(_) | Patch::ServiceDelBackends(_) | Patch::ServiceSetBackend(_) => {
            let service = Arc::make_mut(&mut config.services[0]);
            match patch {
                Patch::ServiceSetBackends(ServiceBackends { backends, others_stay, .. }) => {
                    if !others_stay {
                        service.backends.clear();
                    }
                    for new in backends {
                        match service.backends.iter_mut().find(|old| old.key() == new.key()) {
                            Some(old) => *old = new.clone(),
                            None => service.backends.push(new.clone()),
                        }
                    }
                }
                Patch::ServiceDelBackends(BackendsRemoved { backends, .. }) => {
                    service.backends.retain(|old| !backends.contains(&old.key()));
                }
                Patch::ServiceSetBackend(BackendChange { backends, state, weight, .. }) => {
                    for old in service.backends.iter_mut().filter(|old| backends.contains(&old.key())) {
                        old.state = state.unwrap_or(old.state);
                        old.weight = weight.unwrap_or(old.weight);
                    }
                }
                _ => {}
            }
        }
    }
}

/// A config whose order does not matter where it does not.
fn settled(mut config: Config) -> Config {
    config.routes = config.all_routes().cloned().collect();
    config.routes.sort_by_key(|route| (route.vrf.to_string(), route.prefix.net()));
    config.route_files.clear();
    config.neighbours.sort_by_key(|neighbour| (neighbour.interface.to_string(), neighbour.address));
    for group in &mut config.groups {
        Arc::make_mut(group).members.sort_by_key(Member::to_string);
    }
    for service in &mut config.services {
        Arc::make_mut(service).backends.sort_by_key(|backend| backend.key().to_string());
    }
    config
}

fn any_patch() -> impl Strategy<Value = Patch> {
    let n = 0u8..6;
    let (blackhole, via) = ("blackhole", "192.0.2.2,192.0.2.3");
    let rules = ["blocked", "web", "rest", "r0", "r1", "r2"];
    prop_oneof![
        (n.clone(), any::<bool>()).prop_map(move |(n, hole)| {
            let to = if hole { blackhole } else { via };
            patch("route.add", &format!(r#"{{"routes":[["198.51.{}.0/24","{to}"],["2001:db8:{n}::/48","blackhole"]]}}"#, 100 + n))
        }),
        n.clone().prop_map(|n| patch("route.del", &format!(r#"{{"routes":[["198.51.{}.0/24"],["2001:db8:{n}::/48"]]}}"#, 100 + n))),
        n.clone().prop_map(|n| patch("neighbour.add", &format!(
            r#"{{"neighbours":[{{"interface":"in","address":"10.0.0.{}","mac":"02:00:00:00:00:0{n}"}}]}}"#, 20 + n % 3
        ))),
        n.clone().prop_map(|n| patch("neighbour.del", &format!(
            r#"{{"neighbours":[{{"interface":"in","address":"10.0.0.{}"}}]}}"#, 20 + n % 3
        ))),
        (n.clone(), any::<bool>()).prop_map(|(n, is_in)| {
            let members = format!(r#"{{"group":"blocked","members":["203.0.113.{n}","203.0.113.{}"]}}"#, n + 1);
            patch(if is_in { "group.add" } else { "group.del" }, &members)
        }),
        (0usize..6, proptest::option::of(0usize..6)).prop_map(move |(n, before)| {
            deny(rules[n], before.map(|before| rules[before]))
        }),
        (0usize..6).prop_map(move |n| Patch::RuleDel(vec![rules[n].parse().expect("a name")])),
        (n.clone(), 0u8..4, any::<bool>()).prop_map(|(n, weight, stay)| patch("service.set-backends", &format!(
            r#"{{"service":"shop","backends":[{{"address":"10.0.0.1{n}:80","weight":{weight}}}],"others_stay":{stay}}}"#
        ))),
        n.clone().prop_map(|n| patch("service.del-backends", &format!(r#"{{"service":"shop","backends":["10.0.0.1{n}:80"]}}"#))),
        (n, 0u8..4).prop_map(|(n, weight)| patch("service.set-backend", &format!(
            r#"{{"service":"shop","backends":["10.0.0.1{n}:80"],"weight":{weight}}}"#
        ))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Written into the text one by one, or all at once, changes come to what they come to.
    #[test]
    fn a_document_says_what_its_changes_say(patches in proptest::collection::vec(any_patch(), 1..12)) {
        let mut expected = document().config().expect("good");
        // The twin knows no route files.
        expected.routes = expected.all_routes().cloned().collect();
        expected.route_files.clear();
        patches.iter().for_each(|patch| twin(&mut expected, patch));
        let at_once = document().with(&patches).expect("they fit");
        let mut one_by_one = document();
        for patch in &patches {
            one_by_one = one_by_one.with([patch]).expect("it fits");
        }
        for document in [at_once, one_by_one] {
            let config = document.config();
            prop_assert!(config.is_ok(), "{}\n{}", config.unwrap_err(), document.text);
            prop_assert_eq!(settled(config.unwrap()), settled(expected.clone()), "{}", document.text);
        }
    }
}

// ---- folders

const FEW: Limits =
    Limits { revisions: 6, bytes: 1 << 20, changes: 3, change_bytes: 1 << 20, unwritten_bytes: 1 << 20 };

/// In memory, if there is room: what is synced a thousand times need not wait for a disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn open(folder: &Path) -> (Store, Vec<String>) {
    Store::open(folder, FEW).expect("it opens")
}

fn revision(number: u64) -> Revision {
    let by = Author { uid: Some(7), pid: Some(8), role: None };
    Revision { number, time: Revision::now(), by, request: "test".into(), changes: 1, ..Revision::default() }
}

fn commit_whole(store: &mut Store, document: Document, path: Option<&str>) -> u64 {
    let revision = revision(store.next());
    let sources = store.sources_with(path, &document);
    let staged = store.stage(&revision, document, sources.clone()).expect("a thread");
    let number = revision.number;
    store.commit_whole(staged, revision, sources).expect("it is written");
    number
}

fn commit(store: &mut Store, patch: &Patch) -> u64 {
    let number = store.next();
    store.commit_patches(revision(number), vec![patch.clone()]).expect("it is written");
    number
}

fn numbered(n: u64) -> Patch {
    let (high, low) = (64 + n / 256, n % 256);
    patch("route.add", &format!(r#"{{"routes":[["10.{high}.{low}.0/24","192.0.2.2"]]}}"#))
}

#[test]
fn revisions_are_there_again() {
    let folder = folder();
    let (mut store, notices) = open(folder.path());
    assert_eq!((store.last(), notices.len()), (None, 0));
    assert!(matches!(Store::open(folder.path(), FEW), Err(StoreError::InUse(_))));
    assert_eq!(commit_whole(&mut store, document(), Some("/etc/gw.toml")), 1);
    for n in 2..5 {
        assert_eq!(commit(&mut store, &numbered(n)), n);
    }
    drop(store);
    let (store, notices) = open(folder.path());
    assert_eq!(notices, Vec::<String>::new());
    assert_eq!(store.last().map(|last| (last.number, last.by.uid)), Some((4, Some(7))));
    assert_eq!(store.document(1).expect("it is kept"), document());
    let expected = document().with(&[numbered(2), numbered(3)]).expect("they fit");
    assert_eq!(store.document(3).expect("it is kept"), expected);
    assert!(matches!(store.document(5), Err(StoreError::Unknown(5))));
    assert_eq!(store.source("/etc/gw.toml").map(|source| source.revision), Some(1));
}

/// A file with the changes behind a document, and where its records end.
fn log() -> (Vec<u8>, Vec<usize>) {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let path = folder.path().join(format!("{:020}.revisions", 1));
    let mut ends = Vec::new();
    let small = Document { text: "schema = 1\n".into(), ..Document::default() };
    commit_whole(&mut store, small, None);
    ends.push(fs::metadata(&path).expect("a file").len() as usize);
    for n in 2..5 {
        commit(&mut store, &patch("route.add", &format!(r#"{{"routes":[["10.{n}.0.0/16","blackhole"]]}}"#)));
        ends.push(fs::metadata(&path).expect("a file").len() as usize);
    }
    (fs::read(&path).expect("a file"), ends)
}

/// What is found in a folder whose newest file is this.
fn found(file: &[u8]) -> Option<u64> {
    let folder = folder();
    fs::write(folder.path().join(format!("{:020}.revisions", 1)), file).expect("a file");
    fs::write(folder.path().join(format!("{:020}.tmp", 9)), &file[..file.len() / 2]).expect("a file");
    let (mut store, _) = open(folder.path());
    let last = store.last().map(|last| last.number);
    if let Some(last) = last {
        let routes =
            store.document(last).expect("what is found is whole").config().expect("good").routes.len();
        assert_eq!(routes as u64, last - 1);
    } else {
        commit_whole(&mut store, document(), None);
    }
    // It goes on behind what was found, and is there again.
    let next = commit(&mut store, &patch("route.add", r#"{"routes":[["10.99.0.0/16","blackhole"]]}"#));
    drop(store);
    let (store, notices) = open(folder.path());
    assert_eq!((store.last().map(|last| last.number), notices), (Some(next), vec![]));
    last
}

#[test]
fn a_power_cut_at_any_byte_leaves_the_last_whole_revision() {
    let (file, ends) = log();
    for length in 0..=file.len() {
        let whole = ends.iter().filter(|end| **end <= length).count() as u64;
        assert_eq!(found(&file[..length]), (whole > 0).then_some(whole), "cut at {length} of {}", file.len());
    }
    // The file grew, and what was to be in it was not written.
    for length in ends[0]..file.len() {
        let whole = ends.iter().filter(|end| **end <= length).count() as u64;
        let mut torn = file[..length].to_vec();
        torn.resize(file.len(), 0);
        // The zeros may be what stood there.
        let is_as_it_was = torn == file;
        assert_eq!(found(&torn), Some(if is_as_it_was { 4 } else { whole }), "zeros from {length}");
    }
}

#[test]
fn a_damaged_byte_is_never_taken_for_a_revision() {
    let (file, ends) = log();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        let before = ends.iter().filter(|end| **end <= at).count() as u64;
        let folder = folder();
        fs::write(folder.path().join(format!("{:020}.revisions", 1)), &damaged).expect("a file");
        match Store::open(folder.path(), FEW) {
            Ok((store, notices)) => {
                assert_eq!(store.last().map(|last| last.number), (before > 0).then_some(before), "at {at}");
                assert_eq!(notices.len(), 1, "at {at}: {notices:?}");
            }
            // In the first line: it is of no softgate, or of another one.
            Err(StoreError::Foreign { .. }) => assert!(at < codec::MAGIC.len(), "at {at}"),
            Err(error) => panic!("at {at}: {error}"),
        }
    }
}

#[test]
fn many_changes_are_written_out_whole_and_old_ones_go() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    commit_whole(&mut store, document(), Some("/etc/gw.toml"));
    let mut expected = document();
    let (mut files, mut last) = (0, 1);
    // What is told behind one whole document goes together: where the thread that writes it gets little time that is much.
    while last < 39 || store.revisions().count() > 12 {
        last += 1;
        commit(&mut store, &numbered(last));
        expected = expected.with(&[numbered(last)]).expect("it fits");
        // As the control thread does it, whatever has come meanwhile.
        store.tidy();
        if last >= 40 {
            assert!(last < 2000, "{} revisions are kept", store.revisions().count());
            std::thread::sleep(std::time::Duration::from_millis(5));
        } else if last % 4 == 0 {
            std::thread::yield_now();
        }
        files = files.max(fs::read_dir(folder.path()).expect("a folder").count());
    }
    assert!(files < 16, "{files}");
    let settle = |document: &Document| settled(document.config().expect("good"));
    assert_eq!(settle(&store.document(last).expect("it is kept")), settle(&expected));
    drop(store);
    let (store, notices) = open(folder.path());
    assert_eq!(notices, Vec::<String>::new());
    assert_eq!(settle(&store.document(last).expect("it is kept")), settle(&expected));
    assert_eq!(
        store.source("/etc/gw.toml").map(|source| source.revision),
        Some(1),
        "its file is still known"
    );
    let oldest = store.revisions().next().expect("some").number;
    assert!(oldest > 20 && store.revisions().count() >= 6, "{oldest}");
    assert!(store.document(oldest).is_ok() && matches!(store.document(1), Err(StoreError::Unknown(1))));
}

/// Whole documents, changes and ways back in any order, with checkpoints between them: each revision that is kept is what
/// it was.
#[test]
fn going_back_is_what_it_was_to_the_letter() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    // By number: the changes behind the first document.
    let mut expected: Vec<Vec<Patch>> = vec![Vec::new(); 2];
    commit_whole(&mut store, document(), None);
    let mut ways_back = 0;
    for n in 2..60u64 {
        let to = (n - 1).saturating_sub(n % 4);
        let before = expected[n as usize - 1].clone();
        if n % 3 == 0 && to > 0 && store.can_go_back(to) {
            store.commit_back(revision(n), to).expect("it is written");
            expected.push(expected[to as usize].clone());
            ways_back += 1;
        } else if n % 17 == 0 {
            commit_whole(&mut store, document(), None);
            expected.push(Vec::new());
        } else {
            commit(&mut store, &numbered(n));
            expected.push(before.into_iter().chain([numbered(n)]).collect());
        }
        store.tidy();
        if n % 5 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    assert!(ways_back > 5, "{ways_back}");
    let check = |store: &Store| {
        let kept: Vec<u64> = store.revisions().map(|revision| revision.number).collect();
        assert_eq!(kept.last(), Some(&59));
        for number in kept {
            let found = store.document(number).unwrap_or_else(|error| panic!("{number}: {error}"));
            let patches = &expected[number as usize];
            let whole = document().with(patches).expect("they fit");
            assert_eq!(settled(found.config().expect("good")), settled(whole.config().expect("good")));
        }
    };
    check(&store);
    drop(store);
    let (store, notices) = open(folder.path());
    assert_eq!(notices, Vec::<String>::new());
    check(&store);
}

/// A whole document that comes while a checkpoint is written has its place; the checkpoint leaves nothing behind.
#[test]
fn a_checkpoint_that_came_too_late_leaves_nothing() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    commit_whole(&mut store, document(), None);
    for n in 2..=FEW.changes as u64 + 1 {
        commit(&mut store, &numbered(n));
    }
    store.tidy();
    let last = commit_whole(&mut store, document(), None);
    let begun = std::time::Instant::now();
    let left = || {
        let files = fs::read_dir(folder.path()).expect("a folder").map(|file| file.expect("a file").path());
        files.filter(|path| path.extension().is_some_and(|ending| ending == "tmp")).count()
    };
    // The thread ends in its own time.
    loop {
        store.tidy();
        std::thread::sleep(std::time::Duration::from_millis(5));
        if left() == 0 && begun.elapsed() > std::time::Duration::from_millis(50)
            || begun.elapsed().as_secs() > 10
        {
            break;
        }
    }
    assert_eq!(left(), 0);
    commit(&mut store, &numbered(last + 1));
    drop(store);
    let (store, notices) = open(folder.path());
    assert_eq!((store.last().map(|last| last.number), notices), (Some(last + 1), vec![]));
    let expected = document().with(&[numbered(last + 1)]).expect("it fits");
    assert_eq!(store.document(last + 1).expect("it is kept"), expected);
}

#[test]
fn what_the_disk_does_not_take_is_kept_and_tried_again() {
    let folder = folder();
    let inner = folder.path().join("state");
    let (mut store, _) = open(&inner);
    commit_whole(&mut store, document(), None);
    fs::rename(&inner, folder.path().join("away")).expect("it moves");
    let number = store.next();
    let staged = store.stage(&revision(number), document(), Vec::new()).expect("a thread");
    assert!(store.commit_whole(staged, revision(number), Vec::new()).is_err());
    assert!(store.commit_patches(revision(3), vec![numbered(3)]).is_err());
    assert!(store.is_behind() && store.last().map(|last| last.number) == Some(3));
    fs::rename(folder.path().join("away"), &inner).expect("it moves");
    store.retry().expect("the disk is back");
    assert!(!store.is_behind());
    commit(&mut store, &numbered(4));
    drop(store);
    let (store, _) = open(&inner);
    let expected = document().with(&[numbered(3), numbered(4)]).expect("they fit");
    assert_eq!(store.document(4).expect("it is kept"), expected);
}

#[test]
fn what_the_disk_never_took_cannot_be_gone_back_to() {
    let folder = folder();
    let inner = folder.path().join("state");
    let (mut store, _) = open(&inner);
    commit_whole(&mut store, document(), None);
    fs::rename(&inner, folder.path().join("away")).expect("it moves");
    let staged = store.stage(&revision(2), document(), Vec::new()).expect("a thread");
    assert!(store.commit_whole(staged, revision(2), Vec::new()).is_err());
    assert!(store.commit_patches(revision(3), vec![numbered(3)]).is_err());
    fs::rename(folder.path().join("away"), &inner).expect("it moves");
    commit_whole(&mut store, document(), None);
    let kept: Vec<u64> = store.revisions().map(|revision| revision.number).collect();
    assert!(!store.is_behind() && kept == [1, 4], "{kept:?}");
}

#[test]
fn the_file_wins_once_it_has_changed() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let path = "/etc/gw.toml";
    let edited = Document { text: format!("{TEXT}# edited\n"), ..document() };
    let begin = |store: &Store, wish, file: &Document| choose(store, wish, path, Some(file)).0;
    assert_eq!(begin(&store, Wish::Rule, &document()), Begin::File);
    commit_whole(&mut store, document(), Some(path));
    commit(&mut store, &numbered(2));
    assert_eq!(begin(&store, Wish::Rule, &document()), Begin::Last(2));
    assert_eq!(begin(&store, Wish::File, &document()), Begin::File);
    assert_eq!(begin(&store, Wish::Rule, &edited), Begin::File);
    assert_eq!(begin(&store, Wish::Revision, &edited), Begin::Last(2));
    assert_eq!(choose(&store, Wish::Revision, path, None).0, Begin::Last(2));
    // A route file is part of it.
    let routes = Document { files: vec![("full.routes".into(), String::new())], ..document() };
    assert_eq!(begin(&store, Wish::Rule, &routes), Begin::File);
    // Another file is applied: this one is as it was. The edited one is applied: it is known from then on.
    commit_whole(&mut store, edited.clone(), Some("/etc/other.toml"));
    assert_eq!(begin(&store, Wish::Rule, &document()), Begin::Last(3));
    commit_whole(&mut store, edited.clone(), Some(path));
    assert_eq!(
        (begin(&store, Wish::Rule, &edited), begin(&store, Wish::Rule, &document())),
        (Begin::Last(4), Begin::File)
    );
}

#[test]
fn what_was_not_confirmed_is_not_begun_with() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    commit_whole(&mut store, document(), Some("/etc/gw.toml"));
    let confirm = Some(Confirm { within_s: 60, back_to: 1 });
    store.commit_patches(Revision { confirm, ..revision(2) }, vec![numbered(2)]).expect("it is written");
    drop(store);
    let (mut store, _) = open(folder.path());
    let begin = |store: &Store| choose(store, Wish::Rule, "/etc/gw.toml", Some(&document())).0;
    assert_eq!(begin(&store), Begin::Before { revision: 1, unconfirmed: 2 });
    store.confirm(2, Author::default()).expect("it is written");
    drop(store);
    let (mut store, _) = open(folder.path());
    assert_eq!(begin(&store), Begin::Last(2));
    let confirm = Some(Confirm { within_s: 60, back_to: 2 });
    store.commit_patches(Revision { confirm, ..revision(3) }, vec![numbered(3)]).expect("it is written");
    // Whatever comes behind it answers for it.
    commit(&mut store, &numbered(4));
    assert_eq!(begin(&store), Begin::Last(4));
}

// ---- differences

#[test]
fn differences_are_told_as_an_operator_would() {
    let old = document().config().expect("good");
    let after = document().with(&[
        patch("route.add", r#"{"routes":[["198.51.100.0/24","192.0.2.3"],["203.0.113.0/24","blackhole"]]}"#),
        patch("group.add", r#"{"group":"blocked","members":["203.0.113.3"]}"#),
        deny("new", Some("blocked")),
        deny("rest", Some("web")),
        patch("service.set-backend", r#"{"service":"shop","backends":["10.0.0.11:80"],"weight":5}"#),
        patch("service.del-backends", r#"{"service":"shop","backends":["10.0.0.10:80"]}"#),
    ]);
    let mut new = after.expect("they fit").config().expect("good");
    new.flows.udp_s = crate::config::Ranged::new(77).expect("a time");
    let told: Vec<String> = between(&old, &new)
        .iter()
        .map(|Difference { what, change }| match change {
            Change::Added => format!("+ {what}"),
            Change::Removed => format!("- {what}"),
            Change::Moved { behind } => format!("> {what} {behind:?}"),
            Change::Changed { key, was, now } => format!("~ {what} {key} {was:?} {now:?}"),
            Change::Listed { key, added, removed, first } => {
                format!("~ {what} {key} {added} {removed} {first:?}")
            }
        })
        .collect();
    assert_eq!(
        told,
        [
            r#"~ [flows] udp_s Some("300") Some("77")"#,
            r#"~ group blocked members 1 0 ["+\"203.0.113.3\""]"#,
            "+ rule new",
            "> rule rest Some(\"blocked\")",
            r#"~ rule rest dscp 0 1 ["-\"ef\""]"#,
            r#"~ rule rest to None Some("{ prefix = [\"10.9.0.0/16\"] }")"#,
            "- service shop, backend 10.0.0.10:80",
            "~ service shop, backend 10.0.0.11:80 weight Some(\"2\") Some(\"5\")",
            "+ route 203.0.113.0/24",
            r#"~ route 198.51.100.0/24 to Some("via 192.0.2.2") Some("via 192.0.2.3")"#,
        ]
    );
    assert_eq!(between(&new, &new), []);
}
