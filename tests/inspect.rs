//! What commands say of sessions, rules and NAT, against the packets that were sent through a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use softgate::config::Config;
use softgate::control::{
    ClearQuery, HostQuery, MappingsQuery, PoolEntry, PortQuery, RuleEntry, RuleList, SessionEntry,
    SessionFilter, SessionsQuery,
};
use softgate::gateway::deterministic;
use softgate::gateway::inspect::{BackendHistory, Inspector, PoolHistory};
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::replay;
use softgate::tables::compile::Compiler;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const CONFIG: &str = r#"
schema = 1
[flows]
capacity = 4096
[[port]]
name = "lan"
device = "eth1"
[[port]]
name = "wan"
device = "eth2"
[[interface]]
name = "lan"
port = "lan"
mac = "02:00:00:00:00:01"
zone = "inside"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "wan"
port = "wan"
mac = "02:00:00:00:00:01"
zone = "outside"
addresses = ["198.51.100.1/24"]
[[neighbour]]
interface = "wan"
address = "198.51.100.2"
mac = "02:00:00:00:02:02"
[[route]]
prefix = "0.0.0.0/0"
via = ["198.51.100.2"]
[[group]]
name = "desks"
members = ["10.0.1.0/26", "group:more"]
[[group]]
name = "more"
members = ["10.0.1.64/26"]
[[admin_rule]]
name = "no-telnet"
action = "deny"
service = "tcp/23"
[[rule]]
name = "dns"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
service = ["udp/53", "tcp/53"]
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside", group = "desks" }
to = { zone = "outside" }
service = "udp/1024-65535"
[[rule]]
name = "dns-again"
action = "deny"
from = { zone = "inside", prefix = "10.0.1.0/25" }
to = { zone = "outside" }
service = "udp/53"
[[nat.source]]
name = "desks"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["198.51.100.10-198.51.100.11"]
"#;

/// Hosts that send.
const HOSTS: u8 = 10;

fn packet(host: u8, src_port: u16, dst_port: u16, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 1, host], [2, 0, 0, 0, 0, 1]).ipv4(
        [10, 0, 1, host],
        [203, 0, 113, 1],
        64,
    );
    let payload = vec![7; payload];
    if dst_port == 23 {
        builder
            .tcp(src_port, dst_port, 1, 1000)
            .syn()
            .write(&mut frame, &[])
            .expect("a vector takes everything");
    } else {
        builder.udp(src_port, dst_port).write(&mut frame, &payload).expect("a vector takes everything");
    }
    frame
}

/// What rules should say: hits, packets and bytes.
type Sums = (u64, u64, u64);

/// Frames, and what they are for `dns`, `out`, `no-telnet` and `default`.
fn traffic() -> (Template, [Sums; 4]) {
    let mut template = Template::default();
    let mut sums = [(0, 0, 0); 4];
    for round in 0..7_u16 {
        for host in 10..10 + HOSTS {
            // One DNS session a host, two others, one that is refused by a rule and one by none.
            for (rule, src_port, dst_port) in
                [(0, 5000, 53), (1, 6000, 8000), (1, 6001, 8000), (2, 7000, 23), (3, 8000, 80)]
            {
                let frame = packet(host, src_port, dst_port, usize::from(round) * 10);
                let (hits, packets, bytes) = &mut sums[rule];
                *hits += u64::from(rule > 1 || round == 0);
                *packets += 1;
                *bytes += frame.len() as u64 - 14;
                template.push(&frame);
            }
        }
    }
    (template, sums)
}

/// A worker on a thread of its own, and what a gateway knows of it.
struct Running {
    config: Config,
    node: Arc<Node>,
    compiler: Compiler,
    started: Instant,
    history: PoolHistory,
    backend_history: BackendHistory,
    sums: [Sums; 4],
}

impl Running {
    fn inspector(&self) -> Inspector<'_> {
        Inspector {
            node: &self.node,
            compiler: &self.compiler,
            config: &self.config,
            started: self.started,
            history: &self.history,
            backend_history: &self.backend_history,
        }
    }

    fn rules(&self) -> RuleList {
        let mut after = None;
        loop {
            let rules = self.inspector().rules(after).expect("it answers");
            after = rules.next;
            if after.is_none() {
                return rules;
            }
        }
    }

    fn sessions(&self, filter: SessionFilter, limit: u32) -> Vec<SessionEntry> {
        let mut query = SessionsQuery { filter, limit: Some(limit), ..SessionsQuery::default() };
        let mut all = Vec::new();
        loop {
            let page = self.inspector().sessions(&query).expect("it answers");
            assert!(page.sessions.len() <= limit as usize);
            all.extend(page.sessions);
            query.after = page.next;
            if query.after.is_none() {
                return all;
            }
        }
    }

    fn clear(&self, filter: SessionFilter) -> u64 {
        let mut query = ClearQuery { filter, ..ClearQuery::default() };
        let mut ended = 0;
        loop {
            let part = self.inspector().clear(&query).expect("it answers");
            ended += part.ended;
            query.after = part.next;
            if query.after.is_none() {
                return ended;
            }
        }
    }
}

/// Sends all the traffic through a worker, then asks.
fn with_worker(ask: impl FnOnce(&Running)) {
    with_worker_of(CONFIG, ask);
}

fn with_worker_of(config: &str, ask: impl FnOnce(&Running)) {
    let config = Config::parse(config, "gw.toml").expect("the config");
    let (node, compiler) = replay::compile(&config, 1, false).expect("tables");
    let (memory, mut pools) = PacketMemory::new(1, 512, ChunkSize::Bytes2048).expect("memory");
    let (template, sums) = traffic();
    let frames = template.len() as u64;
    let started = Instant::now();
    let pool = pools.remove(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut worker = Worker::new(0, &node, pool);
            worker.attach(0, 0, Box::new(MemoryPort::new(Arc::new(template), false, Sink::Discard)));
            worker.attach(1, 0, Box::new(MemoryPort::new(Arc::default(), false, Sink::Discard)));
            while !stop.load(Ordering::Relaxed) {
                let now = Nanos(started.elapsed().as_nanos() as u64);
                if !worker.turn(now) {
                    worker.sleep(now, Duration::from_millis(100));
                }
            }
            worker.stop();
        });
        while node.counters[0].received.load(Ordering::Relaxed) < frames {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (history, backend_history) = (PoolHistory::default(), BackendHistory::default());
        let running = Running {
            config: config.clone(),
            node: Arc::clone(&node),
            compiler,
            started,
            history,
            backend_history,
            sums,
        };
        // Whatever it finds, the worker has to be told to stop.
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&running)));
        stop.store(true, Ordering::Relaxed);
        node.wake_all();
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(memory.leaked(), 0);
}

fn sums_of(rule: &RuleEntry) -> Sums {
    (rule.hits, rule.packets, rule.bytes)
}

#[test]
fn rules_count_every_packet_of_live_and_ended_sessions() {
    with_worker(|running| {
        let expected = [
            ("no-telnet", running.sums[2]),
            ("dns", running.sums[0]),
            ("out", running.sums[1]),
            ("dns-again", (0, 0, 0)),
            ("default", running.sums[3]),
        ];
        let check = |rules: &RuleList| {
            let found: Vec<_> = rules.rules.iter().map(|rule| (rule.name.as_str(), sums_of(rule))).collect();
            assert_eq!(found, expected);
            let (dns, out) = (running.sums[0], running.sums[1]);
            let nat = &rules.nat_rules[0];
            assert_eq!(nat.name, "source/desks");
            assert_eq!((nat.hits, nat.packets, nat.bytes), (dns.0 + out.0, dns.1 + out.1, dns.2 + out.2));
        };
        let rules = running.rules();
        check(&rules);
        // Asking counts nothing twice.
        check(&running.rules());
        assert_eq!(running.clear(SessionFilter { rule: Some("dns".into()), ..SessionFilter::default() }), 10);
        check(&running.rules());
        assert_eq!(rules.rules[3].last_hit_s, None, "never hit");
        assert!(rules.rules[1].last_hit_s.is_some_and(|ago| ago < 60));
        assert!(rules.shadows_known);
        let shadowed: Vec<_> = rules.rules.iter().map(|rule| rule.shadowed_by.as_deref()).collect();
        assert_eq!(shadowed, [None, None, None, Some("dns"), None]);
        let places: Vec<_> =
            rules.rules.iter().map(|rule| (rule.place.as_str(), rule.action.as_str())).collect();
        assert_eq!(
            places,
            [
                ("admin", "deny"),
                ("rule", "allow"),
                ("rule", "allow"),
                ("rule", "deny"),
                ("default", "by-zone")
            ]
        );
    });
}

#[test]
fn sessions_are_shown_counted_and_ended_by_filter() {
    with_worker(|running| {
        let any = SessionFilter::default();
        let all = running.sessions(any.clone(), 2000);
        assert_eq!(all.len(), 3 * usize::from(HOSTS));
        // Pages of any size show each once.
        let mut small: Vec<_> =
            running.sessions(any.clone(), 7).iter().map(|s| (s.source, s.source_port)).collect();
        small.sort_unstable();
        small.dedup();
        assert_eq!(small.len(), all.len());

        let host = SessionFilter { address: Some("10.0.1.12".parse().expect("an address")), ..any.clone() };
        let dns = SessionFilter { service: Some("udp/53".parse().expect("a service")), ..host.clone() };
        let [session] = &running.sessions(dns.clone(), 10)[..] else { panic!("one DNS session a host") };
        assert_eq!((session.source_port, session.destination_port), (5000, 53));
        assert_eq!(session.protocol, "udp");
        let outside = session.new_source.expect("translated").to_string();
        assert!(["198.51.100.10", "198.51.100.11"].contains(&outside.as_str()), "{outside}");
        assert_eq!((session.new_destination, session.to_vrf.as_deref()), (None, None));
        assert_eq!((session.from_zone.as_str(), session.to_zone.as_str()), ("inside", "outside"));
        assert_eq!((session.rule.as_str(), session.nat_rule.as_deref()), ("dns", Some("source/desks")));
        assert_eq!((session.packets, session.reply_packets, session.state.as_str()), (7, 0, "unreplied"));
        assert!(session.expires_s > 200 && session.expires_s <= 300, "{session:?}");
        let nat = SessionFilter { nat: Some(outside.parse().expect("an address")), ..host.clone() };
        assert_eq!(running.sessions(nat, 10).len(), 3, "a host keeps its outside address");

        let count = SessionsQuery { filter: host.clone(), count: true, ..SessionsQuery::default() };
        let page = running.inspector().sessions(&count).expect("it answers");
        assert_eq!((page.matched, page.sessions.len()), (3, 0));

        let refused = running.inspector().clear(&ClearQuery::default()).expect_err("without a filter");
        assert!(refused.to_string().contains("nothing says which"), "{refused}");
        let unknown = SessionFilter { zone: Some("nowhere".parse().expect("a name")), ..any.clone() };
        let unknown = SessionsQuery { filter: unknown, ..SessionsQuery::default() };
        assert!(running.inspector().sessions(&unknown).is_err());
        assert_eq!(running.clear(dns), 1);
        assert_eq!(running.clear(host), 2);
        assert_eq!(running.sessions(any, 2000).len(), 3 * usize::from(HOSTS) - 3);
        let counters = &running.node.counters[0];
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((load(&counters.sessions_opened), load(&counters.sessions_ended)), (30, 3));
    });
}

#[test]
fn pools_and_mappings_are_what_sessions_use() {
    with_worker(|running| {
        let pool = || -> PoolEntry {
            let pools = running.inspector().nat().expect("it answers");
            let [pool] = &pools[..] else { panic!("one pool: {pools:?}") };
            pool.clone()
        };
        let before = pool();
        assert_eq!(before.rules, ["desks"]);
        assert_eq!((before.vrf.as_str(), before.address_count), ("default", 2));
        assert_eq!(before.addresses, ["198.51.100.10/31"]);
        assert_eq!((before.block_size, before.blocks, before.blocks_given), (64, 2016, 10));
        assert_eq!((before.hosts, before.mappings, before.held), (10, 30, 0));
        assert_eq!((before.refused.len(), before.exhausted_in_s), (0, None));
        let one = SessionFilter {
            source: Some("10.0.1.11".parse().expect("an address")),
            ..SessionFilter::default()
        };
        assert_eq!(running.clear(one), 3);
        let after = pool();
        assert_eq!((after.hosts, after.mappings, after.held, after.blocks_given), (10, 27, 3, 10));

        let all = running.inspector().mappings(&MappingsQuery::default()).expect("it answers");
        assert_eq!((all.mappings.len(), all.next), (30, None));
        let held = MappingsQuery { held: Some(true), ..MappingsQuery::default() };
        let held = running.inspector().mappings(&held).expect("it answers").mappings;
        assert!(held.len() == 3 && held.iter().all(|mapping| mapping.inside.to_string() == "10.0.1.11"));
        let one = &held[0];
        let port = MappingsQuery {
            outside: Some(std::net::IpAddr::from(one.outside).into()),
            port: softgate::config::PortRange::new(one.outside_port, one.outside_port),
            protocol: Some("udp".into()),
            ..MappingsQuery::default()
        };
        assert_eq!(running.inspector().mappings(&port).expect("it answers").mappings, held[..1]);
    });
}

/// What is shown of a deterministic pool, and the two functions, say where every mapping is.
#[test]
fn a_deterministic_pool_says_how_it_is_shared_and_keeps_to_it() {
    let dynamic = "from = { zone = \"inside\" }\nto = { zone = \"outside\" }\npool";
    let computed = "from = { zone = \"inside\", prefix = \"10.0.1.0/26\" }\nto = { zone = \"outside\" }\n\
                    deterministic = true\nports_per_host = 1024\npool";
    with_worker_of(&CONFIG.replace(dynamic, computed), |running| {
        let pools = running.inspector().nat().expect("it answers");
        let shared = pools[0].deterministic.clone().expect("deterministic");
        assert_eq!((shared.inside, shared.inside_vrf.as_str()), (vec!["10.0.1.0/26".to_owned()], "default"));
        assert_eq!((shared.hosts, shared.hosts_per_address, shared.overflow), (64, 63, false));
        assert_eq!((shared.ports_per_host, shared.first_port), (1024, 1024));
        assert_eq!((pools[0].hosts, pools[0].mappings), (10, 30));

        let all = running.inspector().mappings(&MappingsQuery::default()).expect("it answers").mappings;
        assert_eq!(all.len(), 30);
        let policy = &running.compiler.tables().policy;
        for mapping in all {
            let std::net::IpAddr::V4(inside) = mapping.inside else { panic!("of IPv4: {mapping:?}") };
            let number = u16::from(inside.octets()[3]);
            assert_eq!(mapping.outside.to_string(), "198.51.100.10", "the first 63 hosts have it");
            assert_eq!(mapping.outside_port / 1024, 1 + number, "{mapping:?}");
            let query = HostQuery { inside, vrf: None };
            let host = deterministic::map(policy, &running.compiler, &query).expect("a host").remove(0);
            assert!(
                (host.first_port..=host.last_port).contains(&mapping.outside_port),
                "{host:?} {mapping:?}"
            );
            assert_eq!((host.outside, host.rules[0].as_str()), (mapping.outside, "desks"));
            let query = PortQuery { outside: mapping.outside, port: mapping.outside_port, vrf: None };
            assert_eq!(deterministic::find(policy, &running.compiler, &query).expect("a host"), [host]);
        }
    });
}

#[test]
fn groups_tell_who_uses_them() {
    with_worker(|running| {
        let groups = running.inspector().groups(None).expect("it answers");
        let shown: Vec<_> = groups.iter().map(|g| (g.name.as_str(), g.used_by.join(" "))).collect();
        assert_eq!(shown, [("desks", "rule/out".into()), ("more", String::from("group/desks"))]);
        assert_eq!(groups[0].members, ["10.0.1.0/26", "group:more"]);
        let missing = "nobody".parse().expect("a name");
        assert!(running.inspector().groups(Some(&missing)).is_err());
    });
}

/// A member taken out of a group: sessions that began by it end with their next packet, others go on.
#[test]
fn a_group_changes_what_happens_to_sessions_there_are() {
    let config = Config::parse(CONFIG, "gw.toml").expect("the config");
    let (node, mut compiler) = replay::compile(&config, 1, false).expect("tables");
    let (memory, mut pools) = PacketMemory::new(1, 512, ChunkSize::Bytes2048).expect("memory");
    let mut worker = Worker::new(0, &node, pools.remove(0));
    worker.attach(1, 0, Box::new(MemoryPort::new(Arc::default(), false, Sink::Discard)));
    let mut send = |seconds| {
        let mut template = Template::default();
        // One of `desks` itself, one of the group in it.
        [10, 70].into_iter().for_each(|host| template.push(&packet(host, 6000, 8000, 10)));
        worker.attach(0, 0, Box::new(MemoryPort::new(Arc::new(template), false, Sink::Discard)));
        while worker.turn(Nanos::from_secs(seconds)) {}
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &node.counters[0];
        let dropped: u64 = counters.drops.iter().map(load).sum();
        (load(&counters.sessions_opened), load(&counters.sessions_ended), dropped)
    };
    assert_eq!(send(1), (2, 0, 0));
    let mut change = |members: &str| {
        let changed = CONFIG.replace(r#"members = ["10.0.1.64/26"]"#, members);
        let changed = Config::parse(&changed, "gw.toml").expect("the config");
        let policy = softgate::tables::policy::policy(&changed, &mut compiler).expect("a policy");
        compiler.change_policy(Arc::new(policy)).release(&node.neighbours);
        node.tables.store(Arc::clone(compiler.tables()));
    };
    change("members = []");
    assert_eq!(send(2), (2, 1, 1));
    change(r#"members = ["10.0.1.70"]"#);
    assert_eq!(send(3), (3, 1, 1));
    worker.stop();
    assert_eq!(memory.leaked(), 0);
}
