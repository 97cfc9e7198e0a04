//! Commits in a row and ways back over them, in one process and without devices: what is in force is what the revision
//! says, however it was come to. Needs root, since a gateway loads an XDP program.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use softgate::config::Config;
use softgate::control::revisions::store::Limits;
use softgate::control::revisions::{Document, Revision, Store};
use softgate::control::{Backend as _, Fault, Patch, Reply, Request, RouteSource, RoutesQuery, Terms};
use softgate::gateway::{BackEnd, Gateway};
use softgate::pipeline::Question;
use softgate::replay;
use softgate::tables::policy::Asked;

const CONFIG: &str = r#"# Kept.
schema = 1
[system]
workers = [0]
frames = 1024
[flows]
capacity = 1024
[[port]]
name = "p"
device = "sgt-none"  # it never comes
[[interface]]
name = "in"
port = "p"
vlan = 1
zone = "inside"
addresses = ["10.0.0.1/8"]
[[interface]]
name = "out"
port = "p"
vlan = 2
zone = "outside"
addresses = ["192.0.2.1/24"]
[[neighbour]]
interface = "in"
address = "10.0.0.9"
mac = "02:00:00:00:00:09"
[[group]]
name = "blocked"
members = ["198.51.100.1"]
[[rule]]
name = "blocked"  # a comment that stays
action = "deny"
from = { zone = "inside" }
to = { group = "blocked" }
[[rule]]
name = "rest"
action = "deny"
[[service]]
name = "shop"
address = "203.0.113.1"
service = "tcp/443"
backends = [{ address = "10.1.0.1:443" }, { address = "10.1.0.2:443" }]
"#;

/// Splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Refusals are taken over by whoever asks: of rules that are not there, members that are none.
fn patch(random: &mut Random, kind: u64) -> Patch {
    let n = random.below(4);
    let text = match (kind, random.below(3)) {
        (0, 0) => format!(r#"{{"method":"rule.del","params":{{"rules":["r{n}"]}}}}"#),
        (0, how) => {
            let before = match (how, random.below(3)) {
                (1, 0) => String::from(r#","before":"rest""#),
                (1, 1) => format!(r#","before":"r{}""#, random.below(4)),
                _ => String::new(),
            };
            let action = if random.below(2) == 0 { "allow" } else { "deny" };
            format!(
                r#"{{"method":"rule.add","params":{{"rule":{{"name":"r{n}","action":"{action}","from":{{"zone":"inside"}},"service":"udp/{}"}}{before}}}}}"#,
                100 + random.below(4)
            )
        }
        (1, 0) => format!(
            r#"{{"method":"service.set-backends","params":{{"service":"shop","backends":[{{"address":"10.1.0.{n}:443"}},{{"address":"10.1.1.{n}:443"}}]}}}}"#
        ),
        (1, _) => format!(
            r#"{{"method":"service.set-backend","params":{{"service":"shop","backends":["10.1.0.{n}:443"],"weight":{}}}}}"#,
            1 + random.below(9)
        ),
        (2, 0) => {
            format!(r#"{{"method":"route.del","params":{{"routes":[["100.64.{n}.0/24"]]}}}}"#)
        }
        (2, how) => {
            let to =
                if how == 1 { String::from("blackhole") } else { format!("192.0.2.{}", 2 + random.below(3)) };
            format!(r#"{{"method":"route.add","params":{{"routes":[["100.64.{n}.0/24","{to}"]]}}}}"#)
        }
        (3, 0) => format!(
            r#"{{"method":"neighbour.del","params":{{"neighbours":[{{"interface":"in","address":"10.0.0.{n}"}}]}}}}"#
        ),
        (3, _) => format!(
            r#"{{"method":"neighbour.add","params":{{"neighbours":[{{"interface":"in","address":"10.0.0.{n}","mac":"02:00:00:00:01:0{}"}}]}}}}"#,
            random.below(9)
        ),
        (_, 0) => {
            format!(r#"{{"method":"group.del","params":{{"group":"blocked","members":["198.51.100.{n}"]}}}}"#)
        }
        _ => {
            format!(r#"{{"method":"group.add","params":{{"group":"blocked","members":["198.51.100.{n}"]}}}}"#)
        }
    };
    let request: Request = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    request.into_patch().expect("a change")
}

fn commit(gateway: &mut Gateway, patches: Vec<Patch>) -> Result<Reply, Fault> {
    gateway.execute(Request::Commit { patches, terms: Terms::default() })
}

fn revision(gateway: &mut Gateway) -> u64 {
    match gateway.execute(Request::ShowRevisions {}) {
        Ok(Reply::Revisions(list)) => list.current,
        other => panic!("{other:?}"),
    }
}

/// The document in force, as `show revision` gives it.
fn document(gateway: &mut Gateway) -> Document {
    let (mut document, mut after) = (Document::default(), None);
    loop {
        let query = softgate::control::RevisionQuery { revision: None, after };
        let Ok(Reply::Document(piece)) = gateway.execute(Request::ShowRevision(query)) else {
            panic!("it is there")
        };
        if piece.reading {
            std::thread::sleep(std::time::Duration::from_millis(1));
            continue;
        }
        document.file_name = piece.file_name;
        document.text.push_str(&piece.text);
        match piece.next {
            Some(next) => after = Some(next),
            None => return document,
        }
    }
}

fn routes(gateway: &mut Gateway) -> BTreeSet<String> {
    let Ok(Reply::Routes(page)) = gateway.execute(Request::ShowRoutes(RoutesQuery::default())) else {
        panic!("routes")
    };
    let told = |route: &softgate::control::RouteEntry| {
        let via: Vec<String> = route.via.iter().map(|via| via.address.to_string()).collect();
        format!("{} {:?} {}", route.prefix, route.kind, via.join(","))
    };
    page.routes.iter().filter(|route| route.source == RouteSource::Static).map(told).collect()
}

/// What is in force is what the document says.
fn check(gateway: &mut Gateway, twin: &mut Gateway, what: &str) {
    let document = document(gateway);
    let said = document.config().unwrap_or_else(|errors| panic!("{what}: {errors}"));
    assert!(document.text.contains("# a comment that stays"), "{what}: {}", document.text);
    let force = gateway.config();
    assert_eq!(force.rules, said.rules, "{what}");
    assert_eq!(force.services, said.services, "{what}");
    let members = |config: &Config| {
        config.groups[0].members.iter().map(ToString::to_string).collect::<BTreeSet<String>>()
    };
    assert_eq!(members(force), members(&said), "{what}");
    let neighbours = |config: &Config| {
        let told = config.neighbours.iter().map(|known| format!("{} {}", known.address, known.mac));
        told.collect::<BTreeSet<String>>()
    };
    assert_eq!(neighbours(force), neighbours(&said), "{what}");
    // The tables: as those of a gateway that took the document whole.
    let (_, whole) = replay::compile(&said, 1, false).expect("tables");
    let tables = gateway.node().tables.load_full();
    for (host, port) in (0..6).flat_map(|host| (99..105).map(move |port| (host, port))) {
        let question = Question {
            vrf: 0,
            ingress: 0,
            src: [10, 2, 3, 4].into(),
            dst: [198, 51, 100, host].into(),
            protocol: 17,
            src_port: 1000,
            dst_port: port,
            dscp: 0,
            tcp_flags: 0,
            icmp_type: 0,
        };
        let asked = Asked::new(&question, 1, (2, 1, 0));
        let action = |of: &softgate::tables::Tables| of.policy.permit(&asked).action;
        assert_eq!(action(&tables), action(whole.tables()), "{what}: {question:?}");
    }
    twin.execute(Request::Apply {
        file_name: document.file_name.clone(),
        text: document.text.clone(),
        files: Vec::new(),
        path: None,
        terms: Terms::default(),
    })
    .unwrap_or_else(|fault| panic!("{what}: {fault}"));
    assert_eq!(routes(gateway), routes(twin), "{what}");
}

fn start(folder: Option<&Path>) -> Option<Gateway> {
    let document = Document { file_name: "gw.toml".into(), text: CONFIG.into(), files: Vec::new() };
    let config = document.config().expect("a config");
    let started = Gateway::start(config, "gw.toml", BackEnd::Own);
    let mut gateway = started.inspect_err(|error| println!("SKIPPED: a gateway needs root: {error}")).ok()?;
    if let Some(folder) = folder {
        let (store, _) = Store::open(folder, Limits::default()).expect("a store");
        let first = Revision { number: 1, changes: 1, ..Revision::default() };
        gateway.keep_revisions(store, Some((first, document, None)));
    }
    Some(gateway)
}

fn whole_documents(folder: &Path) -> usize {
    let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "revisions")).count()
}

#[test]
fn going_back_leads_to_what_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let (Some(mut gateway), Some(mut twin)) = (start(Some(folder.path())), start(None)) else { return };
    let mut random = Random(7);
    let (mut back, mut refused) = (0, 0);
    for step in 0..60 {
        let current = revision(&mut gateway);
        let what = format!("step {step}, revision {current}");
        if random.below(4) == 0 && current > 1 {
            let to = current - 1 - random.below((current - 1).min(4));
            let answer = gateway
                .execute(Request::Rollback { revision: to, terms: Terms::default() })
                .unwrap_or_else(|fault| panic!("{what}, back to {to}: {fault}"));
            assert!(matches!(answer, Reply::Changed(_)));
            back += 1;
        } else {
            let kind = random.below(5);
            let patches = (0..1 + random.below(3)).map(|_| patch(&mut random, kind)).collect();
            let before = gateway.config().clone();
            if commit(&mut gateway, patches).is_err() {
                refused += 1;
                assert_eq!(gateway.config(), &before, "{what}: refused, and something is otherwise");
            }
        }
        check(&mut gateway, &mut twin, &what);
    }
    assert!(back > 5 && refused > 2, "{back} ways back, {refused} refused");
    assert_eq!((gateway.stop(), twin.stop()), (0, 0));
}

#[test]
fn one_small_commit_is_undone_as_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(mut gateway) = start(Some(folder.path())) else { return };
    let mut random = Random(1);
    for kind in 0..5 {
        // Whatever it is, so that it comes.
        while commit(&mut gateway, vec![patch(&mut random, kind)]).is_err() {}
        let current = revision(&mut gateway);
        let terms = Terms::default();
        gateway.execute(Request::Rollback { revision: current - 1, terms }).expect("it goes back");
        assert_eq!(whole_documents(folder.path()), 1, "kind {kind}: the document was not read");
    }
    assert_eq!(gateway.stop(), 0);
}
