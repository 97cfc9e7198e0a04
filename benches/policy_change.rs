//! How long it takes until workers use a changed policy: first proven equal to a full compilation, then timed.
//!
//! `taskset -c 1 cargo bench --bench policy_change` prints, for one member more and one less of a group of 100,000,
//! the mean, median and worst time of each step on the way: the group's list, the tables, and the publication to a
//! worker that is busy on another CPU. What the control socket adds is in `applied_us` of its answer.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use softgate::config::{Config, Member};
use softgate::control::{GroupMembers, Patch};
use softgate::gateway::groups;
use softgate::gateway::temporary::Temporary;
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::pipeline::{Question, decide};
use softgate::replay;
use softgate::tables::compile::Compiler;
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
    println!("{MEMBERS} members, one more or less; microseconds");
    println!("                 mean     median   worst    of the mean: list   tables   publication");
    for (name, is_v6, is_nested) in
        [("IPv4", false, false), ("IPv6", true, false), ("IPv4 in a group in it", false, true)]
    {
        report(name, is_v6, is_nested);
    }
}

fn report(name: &str, is_v6: bool, is_nested: bool) {
    let members: Vec<String> = (0..MEMBERS).map(|n| format!("\"{}\"", address(n, is_v6))).collect();
    let list = |name: &str, members: &str| format!("[[group]]\nname = \"{name}\"\nmembers = [{members}]\n");
    let (text, changed_group) = match is_nested {
        false => (list("blocked", &members.join(",")), "blocked"),
        true => (list("blocked", "\"group:inner\"") + &list("inner", &members.join(",")), "inner"),
    };
    let mut config = Config::parse(&format!("{HEAD}{text}"), "bench.toml").expect("a config");
    let (node, mut compiler) = replay::compile(&config, 1, false).expect("tables");
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
    let mut times: Vec<[Duration; 3]> = Vec::new();
    for n in 0..CHANGES {
        let member: Member = Member::Addresses(address(MEMBERS + n / 2, is_v6).into());
        let change = GroupMembers {
            group: changed_group.parse().expect("a name"),
            members: vec![member],
            ttl_s: None,
        };
        let patch = if n % 2 == 0 { Patch::GroupAdd(change) } else { Patch::GroupDel(change) };
        times.push(change_once(&mut config, &mut compiler, &node, patch));
        if n % 64 == 0 {
            prove(&config, &compiler, is_v6);
        }
    }
    ends.store(true, Ordering::Relaxed);
    worker.join().expect("the worker is well");
    let sum = |parts: &[Duration; 3]| parts.iter().sum::<Duration>();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let mut totals: Vec<f64> = times.iter().map(|parts| us(sum(parts))).collect();
    totals.sort_by(f64::total_cmp);
    let mean = |of: &dyn Fn(&[Duration; 3]) -> Duration| {
        times.iter().map(|parts| us(of(parts))).sum::<f64>() / times.len() as f64
    };
    println!(
        "{name:<14} {:>8.0} {:>8.0} {:>8.0}  {:>22.0} {:>8.0} {:>8.0}",
        mean(&sum),
        totals[totals.len() / 2],
        totals[totals.len() - 1],
        mean(&|parts| parts[0]),
        mean(&|parts| parts[1]),
        mean(&|parts| parts[2]),
    );
}

/// What the gateway does for a request.
fn change_once(config: &mut Config, compiler: &mut Compiler, node: &Node, patch: Patch) -> [Duration; 3] {
    let begun = Instant::now();
    let after = groups::changed(&config.groups, &Temporary::default(), &[patch])
        .expect("a change")
        .expect("of groups");
    let listed = begun.elapsed();
    let (policy, touched) =
        compiler.with_members(&after.groups, &after.changes).expect("nothing else has changed");
    compiler.put_policy(policy, &touched).release(&node.neighbours);
    config.groups = after.groups;
    let compiled = begun.elapsed();
    let tables = Arc::clone(compiler.tables());
    let generation = tables.generation;
    let old = node.tables.swap(tables);
    node.wake_all();
    while !node.all_use(generation) {
        std::thread::sleep(Duration::from_micros(50));
    }
    drop(old);
    let all = begun.elapsed();
    [listed, compiled - listed, all - compiled]
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
        let decided = decide(compiler.tables(), &question, None);
        assert_eq!(decided, decide(whole.tables(), &question, None), "{dst}");
        black_box(decided);
    }
}
