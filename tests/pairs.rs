//! A change is for the sessions of the zones it says something of: only they are decided again, and what becomes of
//! all others is what would become of them if they were too. And what a preview foresees of each session is what comes.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use softgate::config::{Config, Fate};
use softgate::control::SessionFate;
use softgate::explain::foresee::Foreseen;
use softgate::flow::standing::Standing;
use softgate::io::memory::Cable;
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::packet::DropReason;
use softgate::reader::{Found, Place, Task};
use softgate::replay;
use softgate::tables::compile::{Compiler, Retired};
use softgate::tables::meaning::{self, PortFacts};
use softgate::tables::policy::{MemberChange, RuleChange};
use softgate::tables::rib::Target;
use softgate::tables::{Epochs, Tables};
use softgate::telemetry::{Totals, WorkerCounters};
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const FRAMES: usize = 1024;

/// Three zones, each with a network: 10.0.N.0/24 by port N.
const INTERFACES: &str = r#"
schema = 1
[flows]
capacity = 1024
[[port]]
name = "a"
device = "eth1"
[[port]]
name = "b"
device = "eth2"
[[port]]
name = "c"
device = "eth3"
[[interface]]
name = "a"
port = "a"
zone = "a"
mac = "02:00:00:00:00:01"
addresses = ["10.0.0.1/24"]
[[interface]]
name = "b"
port = "b"
zone = "b"
mac = "02:00:00:00:00:01"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "c"
port = "c"
zone = "c"
mac = "02:00:00:00:00:01"
addresses = ["10.0.2.1/24"]
"#;

/// Frames that a worker takes of a queue in a turn.
const BUDGET: usize = 8;

/// Hosts that each network has.
const HOSTS: u8 = 4;

fn interfaces() -> String {
    let mut text = String::from(INTERFACES);
    for (net, name) in ["a", "b", "c"].iter().enumerate() {
        for host in 10..10 + HOSTS {
            text += &format!(
                "[[neighbour]]\ninterface = \"{name}\"\naddress = \"10.0.{net}.{host}\"\nmac = \"02:00:00:00:00:0a\"\n"
            );
        }
    }
    text
}

/// A datagram: from and to which network, host and port.
type Datagram = ((u8, u8, u16), (u8, u8, u16));

fn frame((from, to): Datagram) -> Vec<u8> {
    let addr = |(net, host, _): (u8, u8, u16)| Ipv4Addr::new(10, 0, net, host).octets();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 1])
        .ipv4(addr(from), addr(to), 64)
        .udp(from.2, to.2)
        .write(&mut frame, &[7; 18])
        .expect("a vector takes everything");
    frame
}

/// Frames by port, drops by reason, sessions opened and ended.
type Outcome = (Vec<Vec<Vec<u8>>>, Vec<(&'static str, u64)>, [u64; 2]);

struct Lab {
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    workers: Vec<RefCell<Worker>>,
    cables: Vec<Cable>,
    now: Nanos,
    compiler: Compiler,
    /// The twin: every change is for all sessions.
    one_epoch: bool,
}

impl Lab {
    fn new(rules: &str, count: usize, one_epoch: bool) -> Lab {
        let config = config(rules);
        let (node, compiler) = replay::compile(&config, count, false).expect("tables");
        let (memory, pools) = PacketMemory::new(count, FRAMES, ChunkSize::Bytes2048).expect("memory");
        let cables: Vec<Cable> = (0..3).map(|_| Cable::new(count)).collect();
        let mut workers: Vec<Worker> =
            pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
        for (number, worker) in workers.iter_mut().enumerate() {
            for (port, cable) in cables.iter().enumerate() {
                worker.attach(port as u16, 0, Box::new(cable.end(number, BUDGET)));
            }
        }
        let workers = workers.into_iter().map(RefCell::new).collect();
        Lab { node, memory, workers, cables, now: Nanos::from_secs(1), compiler, one_epoch }
    }

    /// What all sessions stand on, as a preview reads them.
    fn standings(&self) -> Vec<Standing> {
        let mut all = Vec::new();
        for (number, worker) in self.workers.iter().enumerate() {
            // Whoever asks is the one that lets the worker work.
            let turns = || (0..8).for_each(|_| _ = worker.borrow_mut().turn(self.now));
            let (never, long) = (Nanos(u64::MAX), Duration::from_secs(60));
            let desk = &self.node.desks[number];
            let end = desk.read(Task::Standings, Place::default(), never, long, turns, |found| match found {
                Found::Standing(_, standing) => all.push(standing),
                other => panic!("not asked for: {other:?}"),
            });
            assert_eq!(end.expect("the worker answers").next, None);
        }
        all
    }

    fn publish(&mut self, rules: &str) -> Retired {
        let config = config(rules);
        let retired = compile(&mut self.compiler, &config);
        self.show();
        retired
    }

    /// What the compiler has made is before the workers.
    fn show(&mut self) {
        self.node.reserve_rules(&self.compiler.policy_slots);
        let made = self.compiler.tables();
        let tables = if self.one_epoch {
            let all = made.generation;
            let epochs = Epochs { interfaces: all, routes: all, settings: all, policy: all, backends: all };
            Arc::new(Tables { epochs, ..Tables::clone(made) })
        } else {
            Arc::clone(made)
        };
        self.node.tables.store(tables);
    }

    /// A host comes into a group or leaves it, and nothing else is compiled, if that can be.
    fn change_member(&mut self, (was, is): (&str, &str), group: &str, host: &str, more: i32) -> Retired {
        let groups = config(is).groups;
        let (group, range) = (group.parse().expect("a name"), host.parse().expect("an address"));
        let Some((policy, touched)) =
            self.compiler.with_members(&groups, &[MemberChange { group, range, more }])
        else {
            panic!("only a member is another:\n{was}\n{is}");
        };
        let retired = self.compiler.put_policy(policy, &touched);
        self.show();
        retired
    }

    /// The first rule has come, or the one that was first has gone, and nothing else is compiled.
    fn change_rule(&mut self, rules: &str, comes: bool) -> Retired {
        let config = config(rules);
        let change = match comes {
            true => RuleChange::Insert(0, Arc::clone(&config.rules[0])),
            false => RuleChange::Remove(0),
        };
        let Some((policy, touched)) = self.compiler.with_rule(&config, &change).expect("slots") else {
            panic!("one rule only:\n{rules}");
        };
        let retired = self.compiler.put_policy(policy, &touched);
        self.show();
        retired
    }

    /// A route comes or goes, and nothing else is compiled.
    fn change_route(&mut self, prefix: &str, target: Option<Target>) -> Retired {
        let change = (0, prefix.parse().expect("a prefix"), target);
        let retired = self.compiler.change_routes(vec![change]).expect("a route");
        self.show();
        retired
    }

    /// Another config takes over, and everything that follows from it has happened.
    fn reload(&mut self, rules: &str) {
        let retired = self.publish(rules);
        self.settle();
        retired.release(&self.node.neighbours);
    }

    fn settle(&mut self) {
        // Between two rounds of the review there may be a rest.
        for _ in 0..2 {
            let now = self.now;
            let turns = |worked: bool, worker: &RefCell<Worker>| worker.borrow_mut().turn(now) | worked;
            let is_quiet = (0..1000).any(|_| !self.workers.iter().fold(false, turns));
            assert!(is_quiet, "the workers do not come to rest");
            self.now = now.plus(Duration::from_millis(2));
        }
    }

    fn send(&mut self, queue: usize, datagram: Datagram) {
        let queue = queue % self.workers.len();
        self.cables[usize::from(datagram.0.0)].send(queue, [frame(datagram)]);
    }

    /// What has come out by each port since the last call, and the drops by reason so far.
    fn outcome(&mut self) -> Outcome {
        self.settle();
        let out = self.cables.iter().map(|cable| {
            let mut out = cable.take();
            // What is another worker's may come out later than what came in behind it.
            out.sort();
            out
        });
        let totals = Totals::of(self.node.counters.iter().map(|counters| &**counters));
        let drops = totals.drops.iter().map(|(reason, count)| (reason.name(), *count));
        let sessions = [self.sum(|c| &c.sessions_opened), self.sum(|c| &c.sessions_ended)];
        (out.collect(), drops.collect(), sessions)
    }

    fn sum(&self, field: fn(&WorkerCounters) -> &AtomicU64) -> u64 {
        self.node.counters.iter().map(|counters| field(counters).load(Ordering::Relaxed)).sum()
    }

    /// Sessions that the review has decided again: kept, moved, condemned.
    fn reviewed(&self) -> [u64; 3] {
        [
            self.sum(|counters| &counters.sessions_kept),
            self.sum(|counters| &counters.sessions_moved),
            self.sum(|counters| &counters.sessions_condemned),
        ]
    }

    fn end(mut self) {
        // First everyone sends home what is not his, then everyone collects.
        self.settle();
        self.workers.into_iter().map(RefCell::into_inner).for_each(Worker::stop);
        assert_eq!(self.memory.leaked(), 0);
    }
}

fn compile(compiler: &mut Compiler, config: &Config) -> Retired {
    let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
    let rib = meaning::rib(config, compiler).expect("routes");
    let input = meaning::input(config, &facts, compiler).expect("a config");
    compiler.compile(input, rib).expect("tables")
}

fn config(rules: &str) -> Config {
    let text = format!("{}{rules}", interfaces());
    Config::parse(&text, "pairs.toml").unwrap_or_else(|errors| panic!("{errors}\n{rules}"))
}

fn rule(name: &str, action: &str, from: &str, to: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\naction = \"{action}\"\nfrom = {{ {from} }}\nto = {{ {to} }}\n")
}

fn allow(from: &str, to: &str) -> String {
    let zone = |name: &str| format!("zone = \"{name}\"");
    rule(&format!("{from}-{to}"), "allow", &zone(from), &zone(to))
}

/// Ten sessions from `a` to each of `b` and `c`, and ten from `b` to `c`.
fn thirty(lab: &mut Lab) {
    for n in 0..10 {
        lab.send(usize::from(n), ((0, 10, 1000 + n), (1, 10, 53)));
        lab.send(usize::from(n), ((0, 10, 1000 + n), (2, 10, 53)));
        lab.send(usize::from(n), ((1, 10, 1000 + n), (2, 10, 53)));
    }
    lab.settle();
    assert_eq!(lab.sum(|counters| &counters.sessions_opened), 30);
}

/// After each change: how many sessions were decided again, and how it ended for them.
#[test]
fn a_change_reviews_the_sessions_of_its_zones_only() {
    let all = [allow("a", "b"), allow("a", "c"), allow("b", "c")].concat();
    let group = |members: &str| format!("[[group]]\nname = \"g\"\nmembers = [{members}]\n");
    let of_group = |members: &str| {
        let rules = [allow("a", "b"), rule("a-c", "allow", "group = \"g\", zone = \"a\"", "zone = \"c\"")];
        [group(members), rules.concat(), allow("b", "c")].concat()
    };
    let source = |pool: &str| {
        format!(
            "[[nat.source]]\nname = \"n\"\nfrom = {{ zone = \"a\" }}\nto = {{ zone = \"c\" }}\npool = [\"{pool}\"]\n"
        )
    };
    let with = |more: &str| [&all, more].concat();
    // What stood before, what comes, and sessions kept, moved and condemned.
    let changes: [(&str, String, String, [u64; 3]); 14] = [
        ("nothing", all.clone(), all.clone(), [0, 0, 0]),
        (
            "another order of rules of other pairs",
            all.clone(),
            [allow("b", "c"), allow("a", "b"), allow("a", "c")].concat(),
            [10, 0, 0],
        ),
        ("a pair loses its rule", all.clone(), [allow("a", "b"), allow("b", "c")].concat(), [0, 0, 10]),
        (
            "a rule behind for one pair",
            all.clone(),
            with(&rule("more", "deny", "zone = \"a\"", "zone = \"b\"")),
            [10, 0, 0],
        ),
        (
            "one for all that comes from a",
            all.clone(),
            with(&rule("more", "deny", "zone = \"a\"", "")),
            [20, 0, 0],
        ),
        (
            "one for all that goes to c",
            all.clone(),
            with(&rule("more", "deny", "", "zone = \"c\"")),
            [20, 0, 0],
        ),
        ("one for everything", all.clone(), with(&rule("more", "deny", "", "")), [30, 0, 0]),
        ("one for a pair without sessions", all.clone(), with(&allow("c", "a")), [0, 0, 0]),
        ("another rule for one pair", all.clone(), all.replace("\"a-b\"", "\"other\""), [0, 10, 0]),
        ("a group that nobody uses", with(&group("\"10.0.0.10\"")), with(&group("")), [0, 0, 0]),
        (
            "a group of one pair",
            of_group("\"10.0.0.10\""),
            of_group("\"10.0.0.10\", \"10.0.0.11\""),
            [10, 0, 0],
        ),
        ("it loses the host", of_group("\"10.0.0.10\""), of_group("\"10.0.0.11\""), [0, 0, 10]),
        ("source NAT of one pair", all.clone(), with(&source("203.0.113.1")), [0, 10, 0]),
        (
            "what decides first packets only",
            all.clone(),
            with("[[nat.destination]]\nname = \"d\"\naddress = \"203.0.113.9\"\ntarget = \"10.0.1.10\"\n"),
            [0, 0, 0],
        ),
    ];
    for (what, before, after, reviewed) in &changes {
        for workers in [1, 2, 4] {
            let mut lab = Lab::new(before, workers, false);
            thirty(&mut lab);
            lab.reload(after);
            assert_eq!(lab.reviewed(), *reviewed, "{what}, {workers} workers");
            lab.end();
        }
    }
}

/// A member and a route are the affair of the sessions with an address in the same network, whatever else there is.
#[test]
fn a_small_change_reviews_the_sessions_of_its_addresses_only() {
    let rules = [
        allow("a", "b"),
        rule("a-c", "allow", "group = \"g\", zone = \"a\"", "zone = \"c\""),
        allow("b", "c"),
    ];
    let of_group =
        |members: &str| format!("[[group]]\nname = \"g\"\nmembers = [{members}]\n{}", rules.concat());
    let (was, is) = (of_group("\"10.0.0.10\""), of_group("\"10.0.0.10\", \"10.9.9.9\""));
    for workers in [1, 2, 4] {
        let mut lab = Lab::new(&was, workers, false);
        thirty(&mut lab);
        let mut retired = vec![lab.change_member((&was, &is), "g", "10.9.9.9", 1)];
        lab.settle();
        assert_eq!(lab.reviewed(), [0, 0, 0], "nobody has such an address");
        retired.push(lab.change_route("10.0.1.64/26", Some(Target::Blackhole)));
        for worker in &lab.workers {
            let mut worker = worker.borrow_mut();
            assert!(
                !worker.turn(Nanos(0)) && worker.next_deadline() < lab.now,
                "it knows when its rest is over"
            );
        }
        lab.settle();
        assert_eq!(lab.reviewed(), [20, 0, 0], "those of b, to whom it makes no difference");
        retired.push(lab.change_member((&was, &was), "g", "10.0.0.10", -1));
        lab.settle();
        assert_eq!(lab.reviewed(), [30, 0, 10], "those of a, of which half are not allowed any more");
        retired.push(lab.change_route("0.0.0.0/0", Some(Target::Blackhole)));
        lab.settle();
        assert_eq!(lab.reviewed(), [50, 0, 10], "all, but for those who are condemned already");
        retired.into_iter().for_each(|retired| retired.release(&lab.node.neighbours));
        lab.end();
    }
}

/// A condemned session of one pair stays condemned through a change of another, and its next packet ends it.
#[test]
fn a_change_of_another_pair_acquits_nobody() {
    let (both, only_ac) = ([allow("a", "b"), allow("a", "c")].concat(), allow("a", "c"));
    let mut lab = Lab::new(&both, 1, false);
    lab.send(0, ((0, 10, 1000), (1, 10, 53)));
    lab.settle();
    lab.reload(&only_ac);
    assert_eq!(lab.reviewed(), [0, 0, 1]);
    lab.reload(&[only_ac.as_str(), &allow("b", "c")].concat());
    assert_eq!(lab.reviewed(), [0, 0, 1]);
    lab.send(0, ((1, 10, 53), (0, 10, 1000)));
    let (out, drops, sessions) = lab.outcome();
    assert_eq!((out[0].len(), drops, sessions), (0, vec![("policy-changed", 1)], [1, 1]));
    lab.end();
}

#[derive(Clone, Debug)]
enum Step {
    /// Queue, and what is sent.
    Send(usize, Datagram),
    /// The answer to what was sent the how-manieth time before.
    Answer(usize, usize),
    Reload(Vec<String>),
    /// A host (of its network) is no more in the group if it was, or is from now on.
    Member(&'static str, u8),
    /// The same of a route of [`ROUTES`].
    Route(usize),
    /// The same of [`RULE`], before all others.
    Rule,
    /// Turns of some workers while things are under way.
    Turns(Vec<usize>),
    Wait,
}

/// Routes that lose what is for them.
const ROUTES: [&str; 3] = ["10.0.0.12/30", "10.0.1.10/32", "10.0.2.11/32"];

/// A rule that a few sessions can meet.
const RULE: &str = "[[rule]]\nname = \"first\"\naction = \"deny\"\nfrom = { prefix = \"10.0.1.10\" }\n";

/// The groups after a host has come into one or left it, if it was a member; and how many more it then has.
fn toggled(groups: &str, group: &str, host: &str) -> (String, i32) {
    let mut more = 0;
    let mut lines: Vec<String> = groups.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| *line == format!("name = \"{group}\"")).expect("both are there");
    let members = lines[at + 1].strip_prefix("members = [").and_then(|line| line.strip_suffix("]"));
    let mut members: Vec<String> =
        members.expect("a list").split(", ").filter(|member| !member.is_empty()).map(str::to_owned).collect();
    let host = format!("\"{host}\"");
    match members.iter().position(|member| *member == host) {
        Some(at) => {
            members.remove(at);
            more -= 1;
        }
        None => {
            members.insert(0, host);
            more += 1;
        }
    }
    lines[at + 1] = format!("members = [{}]", members.join(", "));
    (lines.join("\n") + "\n", more)
}

fn side() -> impl Strategy<Value = String> {
    let zones = prop::sample::select(vec!["", "zone = \"a\"", "zone = \"b\"", "zone = \"c\""]);
    let address = prop::sample::select(vec![
        "",
        "",
        "group = \"g\"",
        "group = \"h\"",
        "prefix = \"10.0.0.10/31\"",
        "prefix = [\"10.0.1.10\", \"10.0.2.10\"]",
    ]);
    (zones, address).prop_map(|(zone, address)| {
        [zone, address].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", ")
    })
}

/// Sections of a config, in order: few of each, so that most changes are of one of them.
fn sections() -> impl Strategy<Value = Vec<String>> {
    let rule_ = (
        0u8..5,
        prop::bool::weighted(0.7),
        side(),
        side(),
        prop::sample::select(vec!["", "service = \"udp/53\"\n"]),
    );
    let rules = prop::collection::vec(rule_, 0..5).prop_map(|rules| {
        let mut seen = [false; 5];
        let mut text = String::new();
        for (name, is_allowed, from, to, service) in rules {
            if !std::mem::replace(&mut seen[usize::from(name)], true) {
                let action = if is_allowed { "allow" } else { "deny" };
                text += &rule(&format!("r{name}"), action, &from, &to);
                text += service;
            }
        }
        text
    });
    let members = || prop::sample::subsequence((10..10 + HOSTS).collect::<Vec<u8>>(), 0..4);
    let groups = (members(), members(), any::<bool>()).prop_map(|(g, h, is_inner)| {
        let list = |net: u8, hosts: Vec<u8>| {
            hosts.iter().map(|host| format!("\"10.0.{net}.{host}\"")).collect::<Vec<_>>()
        };
        let mut g = list(0, g);
        if is_inner {
            g.push(String::from("\"group:h\""));
        }
        format!(
            "[[group]]\nname = \"g\"\nmembers = [{}]\n[[group]]\nname = \"h\"\nmembers = [{}]\n",
            g.join(", "),
            list(1, h).join(", ")
        )
    });
    let sources = prop::collection::vec((0u8..3, 0u8..3, 0u8..3, any::<bool>()), 0..3).prop_map(|sources| {
        let zones = ["a", "b", "c"];
        let mut text = String::new();
        for (n, (from, to, pool, of_group)) in sources.into_iter().enumerate() {
            let group = if of_group { ", group = \"g\"" } else { "" };
            text += &format!(
                "[[nat.source]]\nname = \"n{n}\"\nfrom = {{ zone = \"{}\"{group} }}\nto = {{ zone = \"{}\" }}\npool = [\"203.0.113.{pool}\"]\n",
                zones[usize::from(from)], zones[usize::from(to)]
            );
        }
        text
    });
    let others = prop::sample::select(vec![
        "",
        "[[nat.destination]]\nname = \"d\"\naddress = \"203.0.113.9\"\ntarget = \"10.0.1.10\"\n",
        "[[nat.static]]\noutside = \"203.0.113.8\"\ninside = \"10.0.0.12\"\n",
    ]);
    (groups, rules, sources, others)
        .prop_map(|(groups, rules, sources, others)| vec![groups, rules, sources, others.to_owned()])
}

fn steps() -> impl Strategy<Value = (Vec<String>, Vec<Step>)> {
    let end = || (0u8..3, 10..10 + HOSTS, prop::sample::select(vec![53u16, 1000]));
    let send = (0usize..4, end(), end())
        .prop_filter("between networks", |(_, from, to)| from.0 != to.0)
        .prop_map(|(queue, from, to)| Step::Send(queue, (from, to)));
    let step = prop_oneof![
        8 => send,
        4 => (0usize..4, 0usize..20).prop_map(|(queue, back)| Step::Answer(queue, back)),
        // Which section is another, and what it says then.
        3 => (0usize..4, sections()).prop_map(|(at, mut new)| Step::Reload(vec![at.to_string(), new.swap_remove(at)])),
        3 => (prop::sample::select(vec!["g", "h"]), 10..10 + HOSTS).prop_map(|(group, host)| Step::Member(group, host)),
        2 => (0..ROUTES.len()).prop_map(Step::Route),
        2 => Just(Step::Rule),
        2 => prop::collection::vec(0usize..4, 1..6).prop_map(Step::Turns),
        1 => Just(Step::Wait),
    ];
    (sections(), prop::collection::vec(step, 1..60))
}

fn run(lab: &mut Lab, first: &[String], steps: &[Step]) -> Vec<Outcome> {
    let mut config = first.to_vec();
    let (mut routes, mut has_rule) = (Vec::new(), false);
    let whole = |config: &[String], routes: &[&str], has_rule: bool| {
        let routes =
            routes.iter().map(|prefix| format!("[[route]]\nprefix = \"{prefix}\"\nblackhole = true\n"));
        let rule = if has_rule { RULE } else { "" };
        rule.to_owned() + &config.concat() + &routes.collect::<String>()
    };
    let mut sent: Vec<Datagram> = Vec::new();
    let mut outcomes = Vec::new();
    let mut retired = Vec::new();
    for step in steps {
        match step {
            Step::Send(queue, datagram) => {
                lab.send(*queue, *datagram);
                sent.push(*datagram);
            }
            Step::Answer(queue, back) => {
                if let Some((from, to)) = sent.iter().rev().nth(*back) {
                    lab.send(*queue, (*to, *from));
                }
            }
            Step::Reload(change) => {
                // Packets before it are before it; the review may still be under way when the next one comes.
                outcomes.push(lab.outcome());
                let at: usize = change[0].parse().expect("a number");
                config[at].clone_from(&change[1]);
                retired.push(lab.publish(&whole(&config, &routes, has_rule)));
            }
            Step::Member(group, host) => {
                outcomes.push(lab.outcome());
                let (was, net) = (whole(&config, &routes, has_rule), u8::from(*group == "h"));
                let host = format!("10.0.{net}.{host}");
                let (groups, more) = toggled(&config[0], group, &host);
                config[0] = groups;
                retired.push(lab.change_member(
                    (&was, &whole(&config, &routes, has_rule)),
                    group,
                    &host,
                    more,
                ));
            }
            Step::Route(number) => {
                outcomes.push(lab.outcome());
                let prefix = ROUTES[*number];
                let known = routes.iter().position(|known| *known == prefix);
                match known {
                    Some(at) => _ = routes.remove(at),
                    None => routes.push(prefix),
                }
                retired.push(lab.change_route(prefix, known.is_none().then_some(Target::Blackhole)));
            }
            Step::Rule => {
                outcomes.push(lab.outcome());
                has_rule = !has_rule;
                retired.push(lab.change_rule(&whole(&config, &routes, has_rule), has_rule));
            }
            Step::Turns(turns) => {
                for worker in turns {
                    let (now, count) = (lab.now, lab.workers.len());
                    lab.workers[worker % count].borrow_mut().turn(now);
                }
            }
            Step::Wait => {
                lab.settle();
                lab.now = lab.now.plus(Duration::from_secs(11));
            }
        }
    }
    outcomes.push(lab.outcome());
    retired.into_iter().for_each(|retired| retired.release(&lab.node.neighbours));
    outcomes
}

/// One change comes upon the other before the first has come to all sessions: each knows its own.
#[test]
fn changes_that_overlap_count_for_themselves() {
    let all = [allow("a", "b"), allow("a", "c"), allow("b", "c")].concat();
    for workers in [1, 2] {
        let mut lab = Lab::new(&all, workers, false);
        thirty(&mut lab);
        let mut retired = vec![lab.publish(&[allow("a", "b"), allow("b", "c")].concat())];
        let first = lab.compiler.tables().generation;
        // A few are looked at, of whatever pair.
        for worker in &lab.workers {
            worker.borrow_mut().turn(lab.now);
        }
        let other = [allow("a", "b").replace("\"a-b\"", "\"other\""), allow("b", "c")].concat();
        retired.push(lab.publish(&other));
        lab.settle();
        // A packet of one that is condemned is no other session.
        lab.send(0, ((0, 10, 1000), (2, 10, 53)));
        lab.settle();
        let sum = |after: u64, until: u64| {
            let of = lab.node.counters.iter().map(|counters| counters.fates.sum(after, until));
            of.fold([0; 3], |sum, of| [sum[0] + of[0], sum[1] + of[1], sum[2] + of[2]])
        };
        assert_eq!((sum(first - 1, first), sum(first, first + 1)), ([0, 0, 10], [0, 10, 0]));
        retired.into_iter().for_each(|retired| retired.release(&lab.node.neighbours));
        lab.end();
    }
}

/// What a commit keeps goes on in spite of the rule that refuses it, through other commits, until another rule refuses it.
#[test]
fn a_commit_can_leave_sessions_to_their_end() {
    let all = [allow("a", "b"), allow("a", "c"), allow("b", "c")].concat();
    let without = [allow("a", "b"), allow("b", "c")].concat();
    for workers in [1, 2] {
        let mut lab = Lab::new(&all, workers, false);
        thirty(&mut lab);
        lab.outcome();
        lab.compiler.fate = Fate::Keep;
        foresee_and_compare(&mut lab, &without);
        lab.compiler.fate = Fate::ReDecide;
        // They are of the rule that refuses them.
        assert_eq!(lab.reviewed(), [0, 10, 0]);
        let kept = |lab: &Lab| lab.standings().iter().filter(|standing| standing.is_kept).count();
        let passes = |lab: &mut Lab, host: u8| {
            lab.send(0, ((0, host, 1000), (2, 10, 53)));
            lab.outcome().0[2].len()
        };
        assert_eq!((kept(&lab), passes(&mut lab, 10), passes(&mut lab, 11)), (10, 1, 0));
        // Other commits of the same pair, and of all; what is foreseen of them is right as well.
        for next in [
            [
                without.as_str(),
                &rule("elsewhere", "deny", "zone = \"a\"", "zone = \"c\", prefix = \"10.0.2.12\""),
            ]
            .concat(),
            [without.as_str(), &rule("more", "deny", "", "prefix = \"10.0.2.13\"")].concat(),
        ] {
            foresee_and_compare(&mut lab, &next);
            assert_eq!((kept(&lab), passes(&mut lab, 10), passes(&mut lab, 11)), (10, 1, 0), "{next}");
        }
        // A rule that is about them.
        let denied = rule("them", "deny", "prefix = \"10.0.0.10\"", "zone = \"c\"");
        foresee_and_compare(&mut lab, &[without.as_str(), &denied].concat());
        assert_eq!((lab.reviewed()[2], passes(&mut lab, 10)), (10, 0));
        // What is over for one commit the next one does not bring back.
        lab.compiler.fate = Fate::Keep;
        lab.reload(&without);
        assert_eq!(passes(&mut lab, 10), 0);
        lab.end();
    }
}

fn segment(from: (u8, u8, u16), to: (u8, u8, u16), numbers: (u32, u32), flags: &str) -> Vec<u8> {
    let addr = |(net, host, _): (u8, u8, u16)| Ipv4Addr::new(10, 0, net, host).octets();
    let mut tcp = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 1])
        .ipv4(addr(from), addr(to), 64)
        .tcp(from.2, to.2, numbers.0, 1000);
    if flags.contains('S') {
        tcp = tcp.syn();
    }
    if flags.contains('A') {
        tcp = tcp.ack(numbers.1);
    }
    let mut frame = Vec::new();
    tcp.write(&mut frame, &[]).expect("a vector takes everything");
    frame
}

/// Source and destination port, sequence and acknowledgment number and whether it is a RST, of the one frame there is.
fn said(frames: &[Vec<u8>]) -> (u16, u16, u32, u32, bool) {
    let [frame] = frames else { panic!("one frame: {frames:?}") };
    let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a packet");
    let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
    (tcp.source_port(), tcp.destination_port(), tcp.sequence_number(), tcp.acknowledgment_number(), tcp.rst())
}

/// `--fate reset`: both ends of a silent connection hear of it at once, with the numbers that they take; who
/// speaks is told again; datagrams are answered with ICMP. Sessions that the commit allows hear nothing.
#[test]
fn a_commit_can_tell_both_ends() {
    for workers in [1, 2] {
        let mut lab = Lab::new(&[allow("a", "b"), allow("a", "c")].concat(), workers, false);
        let (client, server, stays) = ((0, 10, 1000), (1, 10, 80), (2, 10, 80));
        for server in [server, stays] {
            let net = usize::from(server.0);
            lab.cables[0].send(0, [segment(client, server, (100, 0), "S")]);
            lab.settle();
            lab.cables[net].send(0, [segment(server, client, (500, 101), "SA")]);
            lab.settle();
            lab.cables[0].send(0, [segment(client, server, (101, 501), "A")]);
            lab.settle();
        }
        lab.send(0, ((0, 11, 1000), (1, 11, 53)));
        lab.outcome();
        lab.compiler.fate = Fate::Reset;
        lab.reload(&allow("a", "c"));
        lab.compiler.fate = Fate::ReDecide;
        // A change that has nothing to do with it does not make it be forgotten.
        lab.reload(&[allow("a", "c"), allow("b", "c")].concat());
        let (out, drops, _) = lab.outcome();
        assert_eq!((said(&out[0]), said(&out[1])), ((80, 1000, 501, 101, true), (1000, 80, 101, 501, true)));
        assert_eq!((out[2].len(), drops), (0, vec![]));
        // They did not get it, and go on: each is told with the number that it expects.
        lab.cables[0].send(0, [segment(client, server, (111, 521), "A")]);
        let (out, ..) = lab.outcome();
        assert_eq!((said(&out[0]), out[1].len()), ((80, 1000, 521, 0, true), 0));
        lab.cables[1].send(0, [segment(server, client, (531, 141), "A")]);
        let (out, ..) = lab.outcome();
        assert_eq!((out[0].len(), said(&out[1])), (0, (1000, 80, 141, 0, true)));
        lab.send(0, ((0, 11, 1000), (1, 11, 53)));
        let (out, drops, _) = lab.outcome();
        // RFC 1812 section 5.2.7.1: communication administratively prohibited.
        assert_eq!((out[0].len(), &out[0][0][34..36]), (1, &[3, 13][..]));
        assert_eq!(drops, [(DropReason::PolicyReset.name(), 3)]);
        // Who began after it is no affair of its.
        lab.cables[0].send(0, [segment(client, stays, (101, 501), "A")]);
        assert_eq!(lab.outcome().0[2].len(), 1);
        lab.end();
    }
}

/// What is foreseen of every session is what becomes of it, and nothing is taken or changed by looking.
fn foresee_and_compare(lab: &mut Lab, next: &str) {
    lab.settle();
    let before = lab.standings();
    let (generation, neighbours) = (lab.compiler.tables().generation, lab.node.neighbours.entries().len());
    let names = lab.compiler.names_known();
    let mut branch = lab.compiler.branch();
    let _ = compile(&mut branch, &config(next));
    let foreseen: Vec<Foreseen> = before
        .iter()
        .map(|standing| Foreseen::of(branch.tables(), lab.compiler.tables(), standing))
        .collect();
    assert_eq!(lab.compiler.tables().generation, generation);
    assert_eq!(lab.node.neighbours.entries().len(), neighbours);
    assert_eq!(lab.compiler.names_known(), names);
    lab.reload(next);
    let after = lab.standings();
    assert_eq!(before.len(), after.len(), "a change ends no session by itself");
    for (was, foreseen) in before.iter().zip(foreseen) {
        let is = after.iter().find(|is| is.tuple == was.tuple).expect("the session is still there");
        let of = |of: &Standing| (of.egress, of.next_hop, of.back, of.record.rule, of.record.nat_rule);
        let fate = foreseen.fate();
        let ends = matches!(fate, SessionFate::Dropped | SessionFate::MappingLost | SessionFate::Ending);
        assert_eq!(is.is_condemned(), ends, "{foreseen:?}: {was:?} {is:?}");
        match fate {
            SessionFate::EgressChanged | SessionFate::RuleChanged => {
                assert_ne!(of(is), of(was), "{foreseen:?}")
            }
            SessionFate::Stays => assert_eq!(of(is), of(was), "{foreseen:?}"),
            SessionFate::Kept => assert!(is.is_kept && !was.is_kept, "{foreseen:?}"),
            // Which of its rules is another is not said of these.
            SessionFate::Drains => assert_ne!(was.record.mapping, 0),
            SessionFate::Dropped | SessionFate::MappingLost | SessionFate::Ending => {}
            SessionFate::BackendChanged => panic!("there is no service"),
        }
    }
}

/// Each fate there is between zones and pools, by name.
#[test]
fn a_preview_tells_fates_apart() {
    let source = |pool: &str| {
        format!(
            "[[nat.source]]\nname = \"n\"\nfrom = {{ zone = \"a\" }}\nto = {{ zone = \"c\" }}\npool = [\"{pool}\"]\n"
        )
    };
    let all = [allow("a", "b"), allow("a", "c"), allow("b", "c")].concat();
    let with = |rules: &str, pool: &str| [rules, &source(pool)].concat();
    let counts = |then: &str| {
        let mut lab = Lab::new(&with(&all, "203.0.113.1"), 2, false);
        thirty(&mut lab);
        let mut branch = lab.compiler.branch();
        let _ = compile(&mut branch, &config(then));
        let mut counts = SessionFate::ALL.map(|_| 0);
        for standing in lab.standings() {
            let fate = Foreseen::of(branch.tables(), lab.compiler.tables(), &standing).fate();
            counts[SessionFate::ALL.iter().position(|known| *known == fate).expect("a fate")] += 1;
        }
        lab.end();
        // Dropped, rule changed, drains, stays.
        [counts[0], counts[4], counts[5], counts[6]]
    };
    assert_eq!(counts(&with(&all, "203.0.113.1")), [0, 0, 0, 30]);
    assert_eq!(counts(&with(&[allow("a", "b"), allow("b", "c")].concat(), "203.0.113.1")), [10, 0, 0, 20]);
    assert_eq!(counts(&with(&all, "203.0.113.2")), [0, 0, 10, 20]);
    assert_eq!(counts(&with(&all.replace("\"a-b\"", "\"other\""), "203.0.113.1")), [0, 10, 0, 20]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    /// Whatever was sent and changed before.
    #[test]
    fn what_is_foreseen_comes(
        (first, steps) in steps(),
        next in sections(),
        workers in prop::sample::select(vec![1usize, 2, 4]),
    ) {
        let mut lab = Lab::new(&first.concat(), workers, false);
        run(&mut lab, &first, &steps);
        foresee_and_compare(&mut lab, &next.concat());
        lab.end();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]
    /// Whatever is sent and changed: the same packets leave, and the same are lost for the same reasons, as if every
    /// change were for all sessions.
    #[test]
    fn epochs_of_pairs_say_what_one_epoch_says((first, steps) in steps(), workers in prop::sample::select(vec![1usize, 2, 4])) {
        let [mut by_pair, mut by_one] = [false, true].map(|one| Lab::new(&first.concat(), workers, one));
        prop_assert_eq!(run(&mut by_pair, &first, &steps), run(&mut by_one, &first, &steps));
        by_pair.end();
        by_one.end();
    }
}
