//! The server against clients of all kinds.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::config::{Config, Name, NextHop, Prefix, Route, RouteTarget, Seconds};

/// Name, text and files of a config.
type Applied = (String, String, Vec<(String, String)>);

/// A gateway that keeps what it was told.
#[derive(Default)]
struct Fake {
    generation: u64,
    patches: Vec<Patch>,
    configs: Vec<Applied>,
    counters: usize,
}

impl Backend for Arc<Mutex<Fake>> {
    fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
        let mut fake = self.lock().unwrap();
        match request {
            Request::ShowVersion {} => Ok(Reply::Version(Version {
                generation: fake.generation,
                name: "gw-a".into(),
                ..Version::default()
            })),
            Request::ShowCounters {} => {
                let counter = |n| Counter { name: format!("c.{n}"), value: n, explanation: "x".repeat(100) };
                Ok(Reply::Counters((0..fake.counters as u64).map(counter).collect()))
            }
            Request::ShowRoutes(query) => {
                let total = fake.counters as u64;
                let number = |key: &RouteKey| match key.prefix.net().addr() {
                    std::net::IpAddr::V4(addr) => u64::from(addr.to_bits() >> 8 & 0xffff),
                    std::net::IpAddr::V6(_) => unreachable!("only IPv4 routes are given out"),
                };
                let first = query.after.as_ref().map_or(0, |after| number(after) + 1);
                let end = (first + query.page() as u64).min(total);
                let entry = |n: u64| RouteEntry {
                    vrf: Name::default_vrf(),
                    prefix: format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap(),
                    kind: RouteKind::Blackhole,
                    via: Vec::new(),
                    interface: None,
                    source: RouteSource::Static,
                    active: true,
                    why: None,
                };
                let routes: Vec<RouteEntry> = (first..end).map(entry).collect();
                let key = |last: &RouteEntry| RouteKey { prefix: last.prefix, vrf: last.vrf.clone() };
                let next = routes.last().filter(|_| end < total).map(key);
                Ok(Reply::Routes(RoutePage { generation: 1, total, next, routes }))
            }
            Request::ShowSessions(query) => {
                // As many as counters, 50 a time at most.
                let (from, total) = (query.after.unwrap_or(0), fake.counters as u64);
                let end = (from + u64::from(query.limit.unwrap_or(MOST)).min(50)).min(total);
                let sessions = if query.count { Vec::new() } else { (from..end).map(session).collect() };
                let next = (end < total).then_some(end);
                Ok(Reply::Sessions(SessionPage { sessions, matched: end - from, next }))
            }
            Request::ClearSessions(query) => {
                let ended = if query.filter.rule.is_some() { 3 } else { 5 };
                Ok(Reply::Cleared(Cleared { ended, next: None }))
            }
            Request::DropsExport {} => {
                Ok(Reply::DropsExport(DropsExport { packets: 1, pcapng: vec![10, 13, 13, 10, 255] }))
            }
            Request::Apply { file_name, text, mut files, .. } => {
                files.sort();
                let read = |path: &str| match files.iter().find(|(name, _)| name == path) {
                    Some((_, text)) => Ok(text.clone()),
                    None => Err(std::io::Error::from(ErrorKind::NotFound)),
                };
                Config::parse_with(&text, &file_name, &mut { read }).map_err(Fault::refused)?;
                fake.configs.push((file_name, text, files));
                fake.generation += 1;
                Ok(Reply::Changed(Changed { generation: fake.generation, ..Changed::default() }))
            }
            Request::Commit { patches, .. } => {
                fake.generation += 1;
                let changed = patches.iter().map(Patch::changes).sum();
                fake.patches.extend(patches);
                Ok(Reply::Changed(Changed { generation: fake.generation, changed, ..Changed::default() }))
            }
            other => panic!("the session answers {other:?} itself"),
        }
    }
}

fn session(n: u64) -> SessionEntry {
    SessionEntry {
        protocol: "tcp".into(),
        source: [10, 0, (n / 256) as u8, n as u8].into(),
        source_port: 40_000,
        destination: [192, 0, 2, 1].into(),
        destination_port: 443,
        new_source: Some([198, 51, 100, 1].into()),
        new_source_port: Some(5000),
        new_destination: None,
        new_destination_port: None,
        vrf: "default".into(),
        to_vrf: None,
        from_zone: "inside".into(),
        to_zone: "outside".into(),
        rule: "out".into(),
        kept: false,
        nat_rule: Some("source/out".into()),
        backend: None,
        state: "established".into(),
        age_s: 1,
        idle_s: 0,
        expires_s: 7440,
        packets: n,
        bytes: 2,
        reply_packets: 3,
        reply_bytes: 4,
        worker: 0,
    }
}

/// A server on its own thread, in its own folder.
struct Running {
    path: PathBuf,
    fake: Arc<Mutex<Fake>>,
    stop: Arc<AtomicBool>,
    clients: Arc<AtomicU64>,
    staged: Arc<AtomicU64>,
    ahead_ms: Arc<AtomicU64>,
    waker: Arc<mio::Waker>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Running {
    fn start(limits: Limits) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let mut server = Server::bind(&path, None, limits).unwrap();
        // A clock that stands still unless a test moves it.
        let (ahead_ms, start) = (Arc::new(AtomicU64::new(0)), Instant::now());
        server.set_clock({
            let ahead_ms = ahead_ms.clone();
            move || start + Duration::from_millis(ahead_ms.load(Ordering::Acquire))
        });
        let (fake, stop) = (Arc::new(Mutex::new(Fake::default())), Arc::new(AtomicBool::new(false)));
        let (clients, staged) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let waker = server.waker().unwrap();
        let thread = std::thread::spawn({
            let (mut backend, stop, clients, staged) =
                (fake.clone(), stop.clone(), clients.clone(), staged.clone());
            move || {
                while !stop.load(Ordering::Acquire) {
                    server.poll(&mut backend, None).unwrap();
                    clients.store(server.clients() as u64, Ordering::Release);
                    staged.store(server.staged_bytes() as u64, Ordering::Release);
                }
            }
        });
        Running { path, fake, stop, clients, staged, ahead_ms, waker, thread: Some(thread), _folder: folder }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    fn pass_ms(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::AcqRel);
        self.waker.wake().unwrap();
    }

    fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    /// Waits for something the server does by itself soon.
    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if holds() {
                return;
            }
            self.waker.wake().unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("never came: {what}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake().unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server thread panicked");
        assert!(!self.path.exists(), "the socket goes with the server");
    }
}

fn route(n: u32) -> Route {
    let net = ipnet::Ipv4Net::new((n << 8).into(), 24).unwrap();
    let next_hop =
        NextHop { address: [198, 51, 100, (n % 200) as u8 + 1].into(), vrf: None, interface: None };
    Route {
        prefix: Prefix::new(net.into()).unwrap(),
        vrf: Name::default_vrf(),
        target: RouteTarget::via(vec![next_hop]).unwrap(),
    }
}

fn read_line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap(); // an answer is awaited before the next request
    line.trim_end().to_owned()
}

fn ask(mut stream: &UnixStream, line: &str) -> String {
    stream.write_all(line.as_bytes()).unwrap();
    stream.write_all(b"\n").unwrap();
    read_line(stream)
}

#[test]
fn the_conversation_of_the_manual() {
    let running = Running::start(Limits::default());
    let stream = running.raw();
    assert_eq!(
        ask(&stream, r#"{"jsonrpc":"2.0","id":1,"method":"begin"}"#),
        r#"{"jsonrpc":"2.0","id":1,"result":{"staged":0,"staged_bytes":0}}"#
    );
    let add = r#"{"jsonrpc":"2.0","id":"a","params":{"routes":[["192.0.2.0/24","198.51.100.1"],["2001:db8::/32","blackhole","blue"],["10.0.0.0/8","192.0.2.1,192.0.2.2@blue"]]},"method":"route.add"}"#;
    assert!(
        ask(&stream, add).starts_with(r#"{"jsonrpc":"2.0","id":"a","result":{"staged":3,"staged_bytes":"#)
    );
    assert_eq!(
        ask(&stream, r#"{"jsonrpc":"2.0","id":3,"method":"commit","params":{}}"#),
        r#"{"jsonrpc":"2.0","id":3,"result":{"generation":1,"applied_us":0,"changed":3,"late":false,"warnings":[]}}"#
    );
    let fake = running.fake.lock().unwrap();
    let [Patch::RouteAdd(routes)] = &fake.patches[..] else { panic!() };
    assert_eq!(routes[1].vrf.as_str(), "blue");
    assert_eq!(routes[1].target, RouteTarget::Blackhole);
    assert_eq!(routes[2].target.next_hops().len(), 2);
}

#[test]
fn faults_say_what_was_wrong() {
    let running = Running::start(Limits::default());
    let stream = running.raw();
    let cases = [
        ("garbage", "null", -32700, "not JSON: expected value at line 1 column 1"),
        ("[]", "null", -32600, "batches are not served"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "null", -32600, "batches are not served"),
        (r#" ["2.0",1,"ping",{}]"#, "null", -32600, "batches are not served"),
        (r#"{"jsonrpc":"2.0","method":"ping"}"#, "null", -32600, "id is missing"),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, "null", -32600, "id is a number or a string"),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "1", -32600, "jsonrpc is"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","x":1}"#,
            "null",
            -32600,
            "not a JSON-RPC request: unknown field `x`",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"reboot"}"#,
            "1",
            -32601,
            "no method \\\"reboot\\\"; known: ping, show.version",
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":1}}"#, "1", -32602, "unknown field `x`"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"route.add"}"#, "1", -32602, "missing field `routes`"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"route.add","params":{"routes":[["10.0.0.1/8","blackhole"]]}}"#,
            "1",
            -32602,
            "host bits are set; the network is 10.0.0.0/8",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"route.add","params":{"routes":[["10.0.0.0/8","nowhere"]]}}"#,
            "1",
            -32602,
            "\\\"nowhere\\\": a next hop is an address",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"route.add","params":{"routes":[["10.0.0.0/8"]]}}"#,
            "1",
            -32602,
            "invalid length 1",
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"commit"}"#, "1", -32002, "no transaction is open"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"apply","params":{"file_name":"gw.toml"}}"#,
            "1",
            -32602,
            "apply takes the config either",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"apply","params":{"file_name":"gw.toml","text":"schema = 2"}}"#,
            "1",
            -32000,
            "gw.toml:1: schema: 2: this binary reads schemas 1 and 0",
        ),
    ];
    for (line, id, code, message) in cases {
        let answer = ask(&stream, line);
        let start = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"#);
        assert!(answer.starts_with(&start), "{line}\n  said     {answer}\n  expected {start}");
    }
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(ask(&stream, &deep).contains("-32602"), "deep nesting is refused, not recursed into");
    assert_eq!(
        ask(&stream, r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#),
        r#"{"jsonrpc":"2.0","id":9,"result":{}}"#
    );
}

#[test]
fn a_client_gets_typed_answers() {
    let running = Running::start(Limits::default());
    let mut client = running.client();
    let version: Version = client.call(&Request::ShowVersion {}).unwrap();
    assert_eq!(version.name, "gw-a");
    let export: DropsExport = client.call(&Request::DropsExport {}).unwrap();
    assert_eq!(export.pcapng, [10, 13, 13, 10, 255]);
    running.fake.lock().unwrap().counters = 25_000;
    let mut pages = Vec::new();
    client
        .routes(RoutesQuery::default(), |page| {
            pages.push(page.len());
            true
        })
        .unwrap();
    assert_eq!(pages, [10_000, 10_000, 5_000]);
    let text = "schema = 1\n[[route_file]]\npath = \"full.txt\"\n";
    let routes = "192.0.2.0/24 blackhole # é\n";
    let big = format!("{routes}#{}\n", "ü".repeat(3 << 20));
    let changed = client.apply("gw.toml", text, &[("full.txt".into(), big.clone())]).unwrap();
    assert_eq!(changed.generation, 1);
    assert_eq!(
        running.fake.lock().unwrap().configs[0],
        ("gw.toml".into(), text.into(), vec![("full.txt".into(), big)])
    );
    let refused = client.apply("gw.toml", "schema = 1\nx = 1\n", &[]).unwrap_err();
    assert!(
        refused.is_refusal() && refused.to_string().starts_with("gw.toml:2: x: unknown key"),
        "{refused}"
    );
    running.until("staged bytes given back", || running.staged.load(Ordering::Acquire) == 0);
}

#[test]
fn every_request_survives_the_wire() {
    let key = RouteKey { prefix: "10.0.0.0/8".parse().unwrap(), vrf: Name::new("blue").unwrap() };
    let neighbour = crate::config::Neighbour {
        interface: Name::new("lan").unwrap(),
        address: [10, 0, 0, 1].into(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        remote: Some([192, 0, 2, 2].into()),
    };
    let neighbour_key = NeighbourKey { interface: neighbour.interface.clone(), address: neighbour.address };
    let query =
        RoutesQuery { vrf: Some(key.vrf.clone()), after: Some(key.clone()), ..RoutesQuery::default() };
    let filter = SessionFilter {
        address: Some("10.0.0.0/8".parse().unwrap()),
        nat: Some("198.51.100.1-198.51.100.9".parse().unwrap()),
        port: crate::config::PortRange::new(80, 90),
        service: Some("tcp/443".parse().unwrap()),
        zone: Some(key.vrf.clone()),
        rule: Some("out".into()),
        virtual_service: Some("shop".parse().unwrap()),
        backend: Some("[2001:db8::1]:80@blue".parse().unwrap()),
        state: Some("established".into()),
        older_s: Some(60),
        ..SessionFilter::default()
    };
    let leak = Route { vrf: key.vrf.clone(), ..route(9) };
    let requests = [
        Request::Ping {},
        Request::ShowVersion {},
        Request::ShowPorts {},
        Request::ShowInterfaces {},
        Request::ShowRoutes(query),
        Request::ShowNeighbours { interface: None },
        Request::ShowNeighbours { interface: Some(key.vrf.clone()) },
        Request::ShowCounters {},
        Request::ShowDrops {},
        Request::ShowWorkers {},
        Request::ShowDhcpRelays {},
        Request::ShowHa {},
        Request::ShowSessions(SessionsQuery::default()),
        Request::ShowSessions(SessionsQuery {
            filter: filter.clone(),
            count: true,
            after: Some(7),
            limit: Some(1),
        }),
        Request::ClearSessions(ClearQuery { filter, all: false, after: None }),
        Request::ShowNat {},
        Request::ShowMappings(MappingsQuery { held: Some(true), ..MappingsQuery::default() }),
        Request::NatMap(HostQuery { inside: [100, 64, 0, 1].into(), vrf: Some(key.vrf.clone()) }),
        Request::NatFind(PortQuery { outside: [203, 0, 113, 1].into(), port: 4000, vrf: None }),
        Request::ShowRules { after: None },
        Request::ShowRules { after: Some(1 << 40) },
        Request::ShowGroups { group: Some(key.vrf.clone()) },
        Request::DropsExport {},
        Request::Upload { name: "a".into(), text: "b\n\"".into() },
        Request::Apply { file_name: "a".into(), text: "b".into(), files: Vec::new(), path: None, terms: Terms::default() },
        Request::RouteAdd {
            routes: vec![route(1), leak, Route { target: RouteTarget::Unreachable, ..route(3) }],
        },
        Request::RouteDel { routes: vec![key.clone(), RouteKey { vrf: Name::default_vrf(), ..key }] },
        Request::NeighbourAdd { neighbours: vec![neighbour] },
        Request::NeighbourDel { neighbours: vec![neighbour_key] },
        Request::GroupAdd(GroupMembers {
            group: Name::new("desks").unwrap(),
            members: vec!["10.0.1.0/24".parse().unwrap(), "group:more".parse().unwrap()],
            ttl_s: crate::config::Seconds::new(600).ok(),
        }),
        Request::GroupDel(GroupMembers {
            group: Name::new("desks").unwrap(),
            members: Vec::new(),
            ttl_s: None,
        }),
        Request::RuleAdd(RuleAddition {
            rule: Arc::new(
                toml::from_str(
                    "name = 'r'\naction = 'deny'\nfrom = { zone = 'a', prefix = ['10.0.0.0/8', '10.9.0.1'] }\n\
                     service = ['tcp/80-90', 'icmp/echo-request']\ndscp = 46\ntcp_flags = ['syn', '!ack']\n\
                     rate_limit = { per_s = 10 }",
                )
                .expect("a rule"),
            ),
            before: Name::new("q").ok(),
            admin: true,
        }),
        Request::RuleDel { rules: vec![Name::new("r").unwrap()] },
        Request::ShowServices(ServicesQuery { service: Name::new("shop").ok(), after: Some(7) }),
        Request::ServiceSetBackends(ServiceBackends {
            service: Name::new("shop").unwrap(),
            backends: vec![toml::from_str("address = '10.0.0.1:80'\nweight = 2").expect("a backend")],
            others_stay: true,
            ttl_s: Seconds::new(60).ok(),
        }),
        Request::ServiceDelBackends(BackendsRemoved {
            service: Name::new("shop").unwrap(),
            backends: vec!["10.0.0.1:80".parse().unwrap()],
        }),
        Request::ShowBridges {},
        Request::ShowMacs(MacsQuery {
            bridge: Name::new("seg").ok(),
            member: Some("lan.100".into()),
            after: Some(1 << 60),
        }),
        Request::BridgeAddMacs(MacsAdded {
            bridge: Name::new("seg").unwrap(),
            macs: vec!["02:00:00:00:00:01".parse().unwrap()],
            member: "vni5001".into(),
            remote: Some("192.0.2.2".parse().unwrap()),
        }),
        Request::BridgeDelMacs(MacsRemoved {
            bridge: Name::new("seg").unwrap(),
            macs: vec!["02:00:00:00:00:01".parse().unwrap()],
        }),
        Request::Drain(DrainQuery {
            force: true,
            timeout_s: crate::config::Ranged::new(5).ok(),
            stop: true,
        }),
        Request::DrainCancel {},
        Request::Upgrade(UpgradeQuery { binary: Some("/usr/bin/softgate".into()), force: true }),
        Request::BridgeOpen(MemberOpened { bridge: Name::new("seg").unwrap(), member: "lan".into() }),
        Request::ServiceSetBackend(BackendChange {
            service: Name::new("shop").unwrap(),
            backends: vec!["[2001:db8::5]:80@blue".parse().unwrap()],
            state: Some(crate::config::BackendAdmin::Drain),
            weight: crate::config::Ranged::new(3).ok(),
        }),
        Request::Begin {},
        Request::Commit { patches: Vec::new(), terms: Terms::default() },
        Request::Abort {},
    ];
    for request in requests {
        let mut line = Vec::new();
        rpc::encode_request(7, &request, &mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        let (id, decoded) = rpc::decode(&line);
        assert_eq!((id, decoded.as_ref()), ("7", Ok(&request)), "{}", String::from_utf8_lossy(&line));
    }
}

#[test]
fn sessions_come_in_pages_and_end_by_filter() {
    let running = Running::start(Limits::default());
    running.fake.lock().unwrap().counters = 120;
    let mut client = running.client();
    let (mut query, mut seen) = (SessionsQuery::default(), 0);
    loop {
        let page: SessionPage = client.call(&Request::ShowSessions(query.clone())).unwrap();
        assert!(page.sessions.iter().zip(seen..).all(|(entry, n)| *entry == session(n)));
        seen += page.matched;
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, 120);
    let stream = running.raw();
    let line = r#"{"jsonrpc":"2.0","id":1,"method":"clear.sessions","params":{"filter":{"rule":"out"}}}"#;
    assert_eq!(ask(&stream, line), r#"{"jsonrpc":"2.0","id":1,"result":{"ended":3,"next":null}}"#);
    let wrong = [
        (r#"{"filter":{"colour":"red"}}"#, "unknown field `colour`"),
        (r#"{"filter":{"address":"10.0.0.0/33"}}"#, "prefix length is 0 to 32"),
        (r#"{"filter":{"port":"http"}}"#, "a port is 0 to 65535"),
        (r#"{"after":-1}"#, "invalid value"),
    ];
    for (params, why) in wrong {
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"show.sessions","params":{params}}}"#);
        let answer = ask(&stream, &line);
        assert!(answer.contains("-32602") && answer.contains(why), "{params}: {answer}");
    }
}

#[test]
fn a_transaction_is_all_or_nothing_and_its_own_connections() {
    let running = Running::start(Limits::default());
    let (mut a, mut b) = (running.client(), running.client());
    let add = |n| Request::RouteAdd { routes: vec![route(n)] };
    let _: Staged = a.call(&Request::Begin {}).unwrap();
    let staged: Staged = a.call(&add(1)).unwrap();
    assert_eq!(staged.staged, 1);
    let changed: Changed = b.call(&add(2)).unwrap();
    assert_eq!((changed.generation, changed.changed), (1, 1), "b has no transaction open");
    let order = a.call::<Staged>(&Request::Begin {}).unwrap_err();
    assert!(order.to_string().contains("open already"), "{order}");
    let changed: Changed = a.call(&Request::Commit { patches: Vec::new(), terms: Terms::default() }).unwrap();
    assert_eq!((changed.generation, changed.changed), (2, 1), "a refused begin does no harm");

    // A part that is refused spoils the rest.
    let raw = running.raw();
    ask(&raw, r#"{"jsonrpc":"2.0","id":1,"method":"begin"}"#);
    ask(
        &raw,
        r#"{"jsonrpc":"2.0","id":2,"method":"route.add","params":{"routes":[["1.2.3.4/8","blackhole"]]}}"#,
    );
    let answer = ask(
        &raw,
        r#"{"jsonrpc":"2.0","id":3,"method":"route.add","params":{"routes":[["1.0.0.0/8","blackhole"]]}}"#,
    );
    assert!(answer.contains("-32002") && answer.contains("host bits are set"), "{answer}");
    assert!(ask(&raw, r#"{"jsonrpc":"2.0","id":4,"method":"commit"}"#).contains("-32002"));
    assert!(ask(&raw, r#"{"jsonrpc":"2.0","id":5,"method":"abort"}"#).contains("no transaction"));

    // apply does not go inside.
    let _: Staged = b.call(&Request::Begin {}).unwrap();
    let refused = b.apply("gw.toml", "schema = 1", &[]).unwrap_err();
    assert!(refused.to_string().contains("transaction of its own"), "{refused}");
    assert_eq!(running.fake.lock().unwrap().generation, 2);
}

#[test]
fn a_connection_that_closes_aborts_its_transaction() {
    let running = Running::start(Limits::default());
    let mut client = running.client();
    let mut stream = client.change_routes().unwrap();
    for n in 0..50_000 {
        stream.add(route(n)).unwrap();
    }
    drop(stream);
    running.until("staged", || running.staged.load(Ordering::Acquire) > 0);
    drop(client);
    running.until("aborted", || running.staged.load(Ordering::Acquire) == 0);
    running.until("gone", || running.clients.load(Ordering::Acquire) == 0);
    assert_eq!(running.fake.lock().unwrap().generation, 0);
}

#[test]
fn staged_bytes_are_capped_over_all_clients() {
    let running = Running::start(Limits { staged_bytes: 100_000, ..Limits::default() });
    let mut a = running.client();
    let _: Staged = a.call(&Request::Begin {}).unwrap();
    let many = Request::RouteAdd { routes: (0..400).map(route).collect() };
    let _: Staged = a.call(&many).unwrap();
    let mut b = running.client();
    let _: Staged = b.call(&Request::Begin {}).unwrap();
    let full = b.call::<Staged>(&many).unwrap_err();
    assert!(full.to_string().contains("several transactions"), "{full}");
    let _: Staged = b.call(&Request::Abort {}).unwrap();
    let upload =
        b.call::<Staged>(&Request::Upload { name: "x".into(), text: "x".repeat(90_000) }).unwrap_err();
    assert!(upload.to_string().contains("would be staged"), "{upload}");
    let _: Staged = a.call(&Request::Abort {}).unwrap();
    let _: Staged = b.call(&Request::Upload { name: "x".into(), text: "x".repeat(90_000) }).unwrap();
}

#[test]
fn a_slow_reader_stalls_only_itself() {
    let running = Running::start(Limits::default());
    running.fake.lock().unwrap().counters = 1000; // 140 kB an answer
    let mut slow = running.raw();
    slow.set_nonblocking(true).unwrap();
    // Asks and never reads. The server must stop listening to it long before it has answered all.
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"show.counters\"}\n";
    let (mut written, mut full) = (0, 0);
    while full < 20 {
        match slow.write(&request[written % request.len()..]) {
            Ok(bytes) => {
                written += bytes;
                full = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                full += 1;
                let _: Version = running.client().call(&Request::ShowVersion {}).unwrap();
            }
        }
        assert!(written < 10 << 20, "no back-pressure");
    }
    // Once it reads, everything it asked for is answered.
    slow.set_nonblocking(false).unwrap();
    slow.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = 0;
    for line in BufReader::new(&slow).lines() {
        let line = line.unwrap();
        assert!(line.starts_with("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":[{"), "{}", &line[..60]);
        answers += 1;
    }
    assert_eq!(answers, written / request.len());
}

#[test]
fn one_that_never_reads_is_dropped_in_time() {
    let running = Running::start(Limits::default());
    running.fake.lock().unwrap().counters = 20_000; // more than a socket buffer
    let mut stream = running.raw();
    stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"show.counters\"}\n").unwrap();
    // Once another has an answer, it has had its turn.
    let mut other = running.client();
    let _: Version = other.call(&Request::ShowVersion {}).unwrap();
    running.pass_ms(59_000);
    let _: Version = other.call(&Request::ShowVersion {}).unwrap();
    running.until("both still there", || running.clients.load(Ordering::Acquire) == 2);
    running.pass_ms(2_000);
    running.until("dropped", || running.clients.load(Ordering::Acquire) == 1);
}

#[test]
fn half_a_request_is_dropped_in_time_and_whole_ones_are_not() {
    let running = Running::start(Limits::default());
    let mut half = running.raw();
    half.write_all(b"{\"jsonrpc\":\"2.0\",").unwrap();
    let idle = running.raw();
    assert!(ask(&idle, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).contains("result"));
    running.until("both there", || running.clients.load(Ordering::Acquire) == 2);
    // Dripping does not help.
    for _ in 0..3 {
        running.pass_ms(11_000);
        let _ = half.write_all(b" ");
        assert!(ask(&idle, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).contains("result"));
    }
    running.until("dropped", || running.clients.load(Ordering::Acquire) == 1);
    assert!(ask(&idle, r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).contains("result"));
}

#[test]
fn an_idle_transaction_is_aborted_in_time() {
    let running = Running::start(Limits::default());
    let mut client = running.client();
    let _: Staged = client.call(&Request::Begin {}).unwrap();
    running.pass_ms(299_000);
    let _: Staged = client.call(&Request::RouteAdd { routes: vec![route(1)] }).unwrap();
    running.until("staged", || running.staged.load(Ordering::Acquire) > 0);
    running.pass_ms(301_000);
    running.until("aborted", || running.staged.load(Ordering::Acquire) == 0);
    assert!(matches!(client.call::<Staged>(&Request::Abort {}), Err(ClientError::Unreachable(_))));
}

#[test]
fn two_thousand_connections_leave_room_for_the_operator() {
    let running = Running::start(Limits::default());
    let mut operator = running.client();
    let _: Version = operator.call(&Request::ShowVersion {}).unwrap();
    let mut held = Vec::new();
    for n in 0..2000 {
        let stream = running.raw();
        let _: Version = operator.call(&Request::ShowVersion {}).unwrap();
        if n < 63 {
            held.push(stream); // they come in order, the operator has one of the 64 places
        } else {
            let line = read_line(&stream);
            assert!(line.contains("all 64 connections of the control socket are taken"), "{line}");
        }
    }
    // Later the silent ones make room, one for one who comes.
    running.pass_ms(11_000);
    // A turn that began before does not know yet how late it is.
    running.until("let in", || running.client().call::<Version>(&Request::ShowVersion {}).is_ok());
    drop(held);
    running.until("gone", || running.clients.load(Ordering::Acquire) <= 2);
}

#[test]
fn clients_at_once_each_get_their_own_answers() {
    let running = Running::start(Limits::default());
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let running = &running;
            scope.spawn(move || {
                let mut stream = running.raw();
                let mut lines = String::new();
                for n in 0..500 {
                    lines.push_str(&format!(
                        "{{\"jsonrpc\":\"2.0\",\"id\":\"{thread}.{n}\",\"method\":\"ping\"}}\n"
                    ));
                }
                stream.write_all(lines.as_bytes()).unwrap();
                for (n, line) in BufReader::new(&stream).lines().take(500).enumerate() {
                    assert_eq!(
                        line.unwrap(),
                        format!("{{\"jsonrpc\":\"2.0\",\"id\":\"{thread}.{n}\",\"result\":{{}}}}")
                    );
                }
            });
        }
    });
}

#[test]
fn other_descriptors_are_watched_in_the_same_loop() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::bind(folder.path().join("s"), None, Limits::default()).unwrap();
    let mut backend = Arc::new(Mutex::new(Fake::default()));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    server.register(std::os::fd::AsRawFd::as_raw_fd(&theirs), 42).unwrap();
    while !server.poll(&mut backend, Some(Duration::ZERO)).unwrap().is_empty() {}
    ours.write_all(b"x").unwrap();
    assert_eq!(server.poll(&mut backend, None).unwrap(), [42]);
    server.deregister(std::os::fd::AsRawFd::as_raw_fd(&theirs)).unwrap();
    ours.write_all(b"x").unwrap();
    assert_eq!(server.poll(&mut backend, Some(Duration::ZERO)).unwrap(), Vec::<usize>::new());
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_socket_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/control.sock");
    let server = Server::bind(&path, None, Limits::default()).unwrap();
    assert_eq!(mode(&path), 0o600);
    let in_use = Server::bind(&path, None, Limits::default()).err().unwrap();
    assert!(in_use.to_string().starts_with("another softgate serves "), "{in_use}");
    drop(server);
    assert!(!path.exists());

    // A dead process leaves the file.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    let gone = Client::connect(&path).unwrap_err();
    assert!(gone.to_string().contains("is gone; start `softgate run`"), "{gone}");
    drop(Server::bind(&path, Some("0"), Limits::default()).map(|_| assert_eq!(mode(&path), 0o660)));

    // A live one of another make, without our lock.
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(Server::bind(&path, None, Limits::default()).err().unwrap().kind(), ErrorKind::AddrInUse);
    drop(other);

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let no_socket = Server::bind(&path, None, Limits::default()).err().unwrap();
    assert!(no_socket.to_string().contains("is no socket"), "{no_socket}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    let missing = Client::connect(folder.path().join("nothing")).unwrap_err();
    assert!(missing.to_string().contains("no gateway runs there"), "{missing}");
    let long = folder.path().join("x".repeat(120));
    let long = Server::bind(&long, None, Limits::default()).err().unwrap();
    assert!(long.to_string().contains("107 bytes"), "{long}");
}

proptest::proptest! {
    #[test]
    fn whatever_arrives_is_answered_and_given_back(data: Vec<u8>) {
        fuzzing::control(&data);
    }

    #[test]
    fn whatever_requests_arrive_are_answered_and_given_back(
        first: u8,
        picks in proptest::collection::vec(0usize..14, 0..40),
        cut in 0usize..4000,
    ) {
        let lines = [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":2,"method":"begin"}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"commit"}"#,
            r#"{"jsonrpc":"2.0","id":4,"method":"abort"}"#,
            r#"{"jsonrpc":"2.0","id":5,"method":"route.add","params":{"routes":[["10.0.0.0/8","192.0.2.1"]]}}"#,
            r#"{"jsonrpc":"2.0","id":5,"method":"route.add","params":{"routes":[["10.0.0.0/8","x"]]}}"#,
            r#"{"jsonrpc":"2.0","id":6,"method":"route.del","params":{"routes":[["10.0.0.0/8"],["10.0.0.0/8","blue"]]}}"#,
            r#"{"jsonrpc":"2.0","id":7,"method":"upload","params":{"name":"","text":"schema = 1"}}"#,
            r#"{"jsonrpc":"2.0","id":8,"method":"upload","params":{"name":"a","text":"xxxxxxxxxxxxxxxxxxxxxxxx"}}"#,
            r#"{"jsonrpc":"2.0","id":9,"method":"apply","params":{"file_name":"x"}}"#,
            r#"{"jsonrpc":"2.0","id":10,"method":"neighbour.del","params":{"neighbours":[]}}"#,
            r#"{"jsonrpc":"2.0","id":11,"method":"show.version"}"#,
            "",
            "}{",
        ];
        let mut data = vec![first];
        for pick in picks {
            data.extend_from_slice(lines[pick].as_bytes());
            data.push(b'\n');
        }
        data.truncate(cut.max(1));
        fuzzing::control(&data);
    }
}
