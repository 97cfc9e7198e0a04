//! How long it takes until workers use a changed policy: first proven equal to a full compilation, then timed.
//!
//! `taskset -c 1 cargo bench --bench policy_change` prints, for one member more and one less of a group of 100,000,
//! the mean, median and worst time of each step on the way: the group's list, the tables, and the publication to a
//! worker that is busy on another CPU; and the same for one rule of the 100,000 of each ClassBench set, which comes,
//! becomes another and goes at places all over the list. What the control socket adds is in `applied_us` of its answer.
//! The sets come from the directory that SOFTGATE_CLASSBENCH names, else `../shared/data/classbench` beside the
//! repository; SOFTGATE_RULES takes another number of their rules. On a shared machine look at the last column: CPU
//! time of the control thread, on the average.

#[path = "../src/tables/classify/classbench.rs"]
mod classbench;
#[path = "support/rules.rs"]
mod rules;

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use softgate::config::{Config, Member, Rule};
use softgate::control::{GroupMembers, Patch};
use softgate::gateway::groups;
use softgate::gateway::temporary::Temporary;
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::pipeline::{Question, decide};
use softgate::replay;
use softgate::tables::compile::Compiler;
use softgate::tables::policy::{Asked, RuleChange};
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const MEMBERS: u32 = 100_000;
/// Changes per figure: as many members go as come.
const CHANGES: u32 = 200;
/// Addresses that both ways of compiling have to agree on.
const PROOFS: u32 = 20_000;

const HEAD: &str = r#"
schema = 1
[[port]]
name = "p"
device = "eth1"
[[interface]]
name = "in"
port = "p"
vlan = 1
zone = "inside"
addresses = ["10.255.0.1/24", "2001:db8:ffff::1/64"]
[[interface]]
name = "out"
port = "p"
vlan = 2
zone = "outside"
addresses = ["192.0.2.1/24", "2001:db8:fffe::1/64"]
[[route]]
prefix = "0.0.0.0/0"
via = ["192.0.2.2"]
[[route]]
prefix = "::/0"
via = ["2001:db8:fffe::2"]
[[rule]]
name = "blocked"
action = "deny"
from = { zone = "inside" }
to = { group = "blocked" }
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
"#;

/// A number that looks like any other.
fn scrambled(n: u32) -> u32 {
    let mixed = (u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29) as u32
}

/// The nth address outside, in 16.0.0.0/5 or 2001:db8::/32.
fn address(n: u32, is_v6: bool) -> IpAddr {
    let bits = scrambled(n);
    if is_v6 {
        IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(bits & 0x7fff_ffff) << 64 | 1).to_be_bytes())
    } else {
        IpAddr::from((16 << 24 | bits & 0x07ff_ffff).to_be_bytes())
    }
}

fn main() {
    println!(
        "microseconds               mean   median    worst    of the mean: list   tables  publication      CPU"
    );
    println!("one of {MEMBERS} members more or less");
    for (name, is_v6, is_nested) in
        [("IPv4", false, false), ("IPv6", true, false), ("IPv4 in a group in it", false, true)]
    {
        report(name, is_v6, is_nested);
    }
    println!("one rule more, less or another");
    ["acl1", "fw1", "ipc1"].into_iter().for_each(report_rules);
}

fn report_rules(set: &str) {
    let Some((mut filters, headers)) = classbench::read(&format!("{set}_100000")) else {
        println!("{set}: NO SUCH SET; set SOFTGATE_CLASSBENCH");
        return;
    };
    let wanted = std::env::var("SOFTGATE_RULES").ok().and_then(|n| n.parse().ok());
    filters.truncate(wanted.unwrap_or(usize::MAX).max(CHANGES as usize));
    let head = HEAD.split("[[rule]]").next().expect("what is before the rules");
    let rules: String = filters
        .iter()
        .enumerate()
        .map(|(n, filter)| format!("[[rule]]\n{}", rules::rule(&format!("r{n}"), filter)))
        .collect();
    let mut config = Config::parse(&format!("{head}{rules}"), "bench.toml").unwrap_or_else(|errors| {
        panic!("{}", errors.to_string().lines().take(5).collect::<Vec<_>>().join("; "))
    });
    let count = config.rules.len();
    let mut times: Vec<[Duration; 4]> = Vec::new();
    let first = config.clone();
    let mut compiler = with_worker(&first, |compiler, node| {
        for n in 0..CHANGES {
            let at = scrambled(n) as usize % config.rules.len();
            let other: Rule = toml::from_str(&rules::rule(
                &format!("new{n}"),
                &filters[scrambled(n + 7) as usize % filters.len()],
            ))
            .expect("a rule");
            let other = Arc::new(other);
            let change = match n % 3 {
                0 => RuleChange::Insert(at as u32, other),
                1 => RuleChange::Replace(at as u32, other),
                _ => RuleChange::Remove(at as u32),
            };
            let (begun, cpu) = (Instant::now(), cpu_time());
            let (policy, touched) =
                compiler.with_rule(&config, &change).expect("slots").expect("it can be taken in");
            compiler.put_policy(policy, &touched).release(&node.neighbours);
            let compiled = begun.elapsed();
            match &change {
                RuleChange::Insert(at, rule) => config.rules.insert(*at as usize, Arc::clone(rule)),
                RuleChange::Replace(at, rule) => config.rules[*at as usize] = Arc::clone(rule),
                RuleChange::Remove(at) => _ = config.rules.remove(*at as usize),
            }
            let listed = begun.elapsed();
            node.reserve_rules(&compiler.policy_slots);
            publish(compiler, node);
            times.push([listed - compiled, compiled, begun.elapsed() - listed, cpu_time() - cpu]);
        }
    });
    prove_rules(&config, &mut compiler, &headers);
    print_times(&format!("{set}, {count}"), &times);
}

/// All rules compiled anew decide as those that were changed.
fn prove_rules(config: &Config, compiler: &mut Compiler, headers: &[classbench::Header]) {
    let whole = replay::compile(config, 1, false).expect("tables").1;
    let name = |compiler: &Compiler, slot: u32| compiler.policy_slots.rules.names()[slot as usize].clone();
    for header in headers.iter().take(PROOFS as usize) {
        let question = Question {
            vrf: 0,
            ingress: 0,
            src: IpAddr::from(header.src.to_be_bytes()),
            dst: IpAddr::from(header.dst.to_be_bytes()),
            protocol: header.protocol,
            src_port: header.src_port,
            dst_port: header.dst_port,
            dscp: 0,
            tcp_flags: 0,
            icmp_type: 0,
        };
        let asked = Asked::new(&question, 1, (2, 1, 0));
        let [changed, fresh] =
            [&*compiler, &whole].map(|of| name(of, of.tables().policy.permit(&asked).rule));
        assert_eq!(changed, fresh, "{question:?}");
    }
}

/// The tables of a config, with a worker that uses them on another thread.
fn with_worker(config: &Config, run: impl FnOnce(&mut Compiler, &Node)) -> Compiler {
    let (node, mut compiler) = replay::compile(config, 1, false).expect("tables");
    let (_memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
    let ends = Arc::new(AtomicBool::new(false));
    let worker = {
        let (node, ends, pool) = (Arc::clone(&node), Arc::clone(&ends), pools.remove(0));
        std::thread::spawn(move || {
            let mut worker = Worker::new(0, &node, pool);
            while !ends.load(Ordering::Relaxed) {
                worker.turn(Nanos::from_secs(1));
            }
            worker.stop();
        })
    };
    run(&mut compiler, &node);
    ends.store(true, Ordering::Relaxed);
    worker.join().expect("the worker is well");
    compiler
}

/// CPU time of this thread so far; wall time where there is no /proc.
fn cpu_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = START.get_or_init(Instant::now);
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = text.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// As the gateway does it.
fn publish(compiler: &Compiler, node: &Node) {
    let tables = Arc::clone(compiler.tables());
    let generation = tables.generation;
    let old = node.tables.swap(tables);
    node.wake_all();
    while !node.all_use(generation) {
        std::thread::sleep(Duration::from_micros(50));
    }
    drop(old);
}

fn print_times(name: &str, times: &[[Duration; 4]]) {
    let sum = |parts: &[Duration; 4]| parts[..3].iter().sum::<Duration>();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let mut totals: Vec<f64> = times.iter().map(|parts| us(sum(parts))).collect();
    totals.sort_by(f64::total_cmp);
    let mean = |of: &dyn Fn(&[Duration; 4]) -> Duration| {
        times.iter().map(|parts| us(of(parts))).sum::<f64>() / times.len() as f64
    };
    println!(
        "{name:<22} {:>8.0} {:>8.0} {:>8.0}  {:>22.0} {:>8.0} {:>12.0} {:>8.0}",
        mean(&sum),
        totals[totals.len() / 2],
        totals[totals.len() - 1],
        mean(&|parts| parts[0]),
        mean(&|parts| parts[1]),
        mean(&|parts| parts[2]),
        mean(&|parts| parts[3]),
    );
}

fn report(name: &str, is_v6: bool, is_nested: bool) {
    let members: Vec<String> = (0..MEMBERS).map(|n| format!("\"{}\"", address(n, is_v6))).collect();
    let list = |name: &str, members: &str| format!("[[group]]\nname = \"{name}\"\nmembers = [{members}]\n");
    let (text, changed_group) = match is_nested {
        false => (list("blocked", &members.join(",")), "blocked"),
        true => (list("blocked", "\"group:inner\"") + &list("inner", &members.join(",")), "inner"),
    };
    let mut config = Config::parse(&format!("{HEAD}{text}"), "bench.toml").expect("a config");
    let mut times: Vec<[Duration; 4]> = Vec::new();
    with_worker(&config.clone(), |compiler, node| {
        for n in 0..CHANGES {
            let member: Member = Member::Addresses(address(MEMBERS + n / 2, is_v6).into());
            let change = GroupMembers {
                group: changed_group.parse().expect("a name"),
                members: vec![member],
                ttl_s: None,
            };
            let patch = if n % 2 == 0 { Patch::GroupAdd(change) } else { Patch::GroupDel(change) };
            times.push(change_once(&mut config, compiler, node, patch));
            if n % 64 == 0 {
                prove(&config, compiler, is_v6);
            }
        }
    });
    print_times(name, &times);
}

/// What the gateway does for a request.
fn change_once(config: &mut Config, compiler: &mut Compiler, node: &Node, patch: Patch) -> [Duration; 4] {
    let (begun, cpu) = (Instant::now(), cpu_time());
    let after = groups::changed(&config.groups, &Temporary::default(), &[patch])
        .expect("a change")
        .expect("of groups");
    let listed = begun.elapsed();
    let (policy, touched) =
        compiler.with_members(&after.groups, &after.changes).expect("nothing else has changed");
    compiler.put_policy(policy, &touched).release(&node.neighbours);
    config.groups = after.groups;
    let compiled = begun.elapsed();
    publish(compiler, node);
    let all = begun.elapsed();
    [listed, compiled - listed, all - compiled, cpu_time() - cpu]
}

/// A policy compiled from the whole config decides as the one that was changed.
fn prove(config: &Config, compiler: &Compiler, is_v6: bool) {
    let whole = replay::compile(config, 1, false).expect("tables").1;
    for n in 0..PROOFS {
        // Members, those that came and went, and others.
        let dst = address(n.wrapping_mul(7) % (MEMBERS + MEMBERS / 10), is_v6);
        let src = if is_v6 { "2001:db8:ffff::5" } else { "10.255.0.5" }.parse().expect("an address");
        let question = Question {
            vrf: 0,
            ingress: 0,
            src,
            dst,
            protocol: 17,
            src_port: 1000,
            dst_port: 53,
            dscp: 0,
            tcp_flags: 0,
            icmp_type: 0,
        };
        let decided = decide(compiler.tables(), &question, None, None);
        assert_eq!(decided, decide(whole.tables(), &question, None, None), "{dst}");
        black_box(decided);
    }
}
