//! The classifier on ClassBench rule sets: first proven equal to a scan, then timed.
//!
//! `taskset -c 1 cargo bench --bench classify [-- NAME]` prints, for acl1, fw1 and ipc1 of 1k, 10k and
//! 100k rules (those also as IPv6): nanoseconds per lookup in the trace's order, shuffled, after one-rule
//! changes, and after a full build of the changed list; the time of a build, a change and a search for
//! shadowed rules (CPU time, but for a change's median); tables as built and after the changes; memory. The sets
//! come from the directory that SOFTGATE_CLASSBENCH names, else `../shared/data/classbench` beside the repository.
//! On a shared machine each slice of the trace counts with its median over several passes.

#[path = "../src/tables/classify/classbench.rs"]
mod classbench;
#[path = "../src/tables/fib_twin.rs"]
#[expect(dead_code, reason = "only its random numbers")]
mod fib_twin;

use std::hint::black_box;
use std::time::{Duration, Instant};

use fib_twin::Random;
use softgate::packet::hash;
use softgate::tables::classify::{Change, Classifier, Key, Match, Ports, Prefix, shadowed};

/// Lookups per timed slice: short, so that on a shared machine most slices run undisturbed.
const SLICE: usize = 500;
/// Passes over all slices per figure.
const PASSES: usize = 21;
/// Full builds per figure.
const BUILDS: usize = 7;
/// One-rule changes per figure: as many rules go as come.
const CHANGES: usize = 400;
/// Comparisons with the scan, at most: rules times headers.
const PROOFS: usize = 300_000_000;

const HASH_KEY: hash::Key = hash::Key(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

fn main() {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    println!("             lookup    lookup    lookup    lookup    build     change, ms        shadowed");
    println!(
        "             in order  shuffled  changed   rebuilt   ms        median  mean      ms        tables  bytes/rule"
    );
    for size in [1000, 10_000, 100_000] {
        for set in ["acl1", "fw1", "ipc1"] {
            let name = format!("{set}_{size}");
            if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
                continue;
            }
            let Some((filters, headers)) = classbench::read(&name) else {
                println!("{name}: NO SUCH SET; set SOFTGATE_CLASSBENCH");
                continue;
            };
            report(&name, &filters, &headers, v4);
            if size == 100_000 {
                report(&format!("{set} as v6"), &filters, &headers, v6);
            }
        }
    }
}

/// How a set's IPv4 prefixes become neutral ones.
type Family = fn(u32, u8) -> (u128, u8);

fn v4(addr: u32, len: u8) -> (u128, u8) {
    (0xffff << 32 | u128::from(addr), len + 96)
}

/// In 2001:db8::/32, the IPv4 address as the rest of the /64.
fn v6(addr: u32, len: u8) -> (u128, u8) {
    (0x2001_0db8 << 96 | u128::from(addr) << 64, len + 32)
}

fn rule(filter: &classbench::Filter, family: Family) -> Match {
    let prefix = |(addr, len)| {
        let (addr, len) = family(addr, len);
        Prefix::new(addr, len).expect("a prefix")
    };
    let ports = |(first, last)| Ports::new(first, last).expect("a range");
    Match {
        src: prefix(filter.src),
        dst: prefix(filter.dst),
        src_ports: ports(filter.src_ports),
        dst_ports: ports(filter.dst_ports),
        protocol: filter.protocol,
        ..Match::ANY
    }
}

fn lookup(header: &classbench::Header, family: Family) -> Key<'static> {
    Key {
        src: family(header.src, 0).0,
        dst: family(header.dst, 0).0,
        src_port: header.src_port,
        dst_port: header.dst_port,
        protocol: header.protocol,
        src_sets: &[],
        dst_sets: &[],
    }
}

/// CPU time of this thread, to the kernel's tick: what counts on a shared machine. Wall time where there is
/// no /proc.
fn cpu_time<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let now = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    let start = now();
    let (wall, result) = time(f);
    let cpu = start.and_then(|start| now()?.checked_sub(start));
    (cpu.unwrap_or(wall), result)
}

fn time<T>(f: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = f();
    (start.elapsed(), result)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Mean nanoseconds per lookup: each slice by its median pass.
fn lookups(classifier: &Classifier, keys: &[Key<'_>]) -> f64 {
    let mut times = vec![Vec::new(); keys.len() / SLICE];
    for _ in 0..PASSES {
        for (times, keys) in times.iter_mut().zip(keys.chunks_exact(SLICE)) {
            let pass = || {
                keys.iter().map(|key| classifier.find(key, |_| true).unwrap_or(0)).fold(0, u32::wrapping_add)
            };
            times.push(time(|| black_box(pass())).0);
        }
    }
    let lookups = times.len() * SLICE;
    times.into_iter().map(median).sum::<Duration>().as_secs_f64() * 1e9 / lookups as f64
}

fn prove(classifier: &Classifier, rules: &[Match], keys: &[Key<'_>]) {
    for key in keys.iter().step_by(keys.len() * rules.len() / PROOFS + 1) {
        let expected = rules.iter().position(|rule| rule.matches(key)).map(|at| at as u32);
        assert_eq!(classifier.find(key, |_| true), expected, "{key:?}");
    }
}

fn report(name: &str, filters: &[classbench::Filter], headers: &[classbench::Header], family: Family) {
    let rules: Vec<Match> = filters.iter().map(|filter| rule(filter, family)).collect();
    let keys: Vec<Key<'_>> = headers.iter().map(|header| lookup(header, family)).collect();
    let mut random = Random(9);
    let mut shuffled = keys.clone();
    for i in 0..shuffled.len() {
        shuffled.swap(i, i + random.next() as usize % (keys.len() - i));
    }
    let compile = || Classifier::compile(rules.iter().copied(), HASH_KEY);
    let mut classifier = compile();
    prove(&classifier, &rules, &shuffled);
    let (in_order, mixed) = (lookups(&classifier, &keys), lookups(&classifier, &shuffled));
    let build = median((0..BUILDS).map(|_| cpu_time(compile).0).collect());
    let shadow = median((0..BUILDS).map(|_| cpu_time(|| shadowed(&rules)).0).collect());
    let (planned, bytes) = (classifier.tables(), classifier.memory_bytes() as f64 / rules.len() as f64);

    let mut now = rules.clone();
    let mut steps = Vec::new();
    for _ in 0..CHANGES {
        let from = random.next() as usize % now.len();
        let rule = now.remove(from);
        let to = random.next() as usize % (now.len() + 1);
        now.insert(to, rule);
        steps.extend([Change::Remove(from as u32), Change::Insert(to as u32, rule)]);
    }
    let mut changes = Vec::new();
    let (total, ()) = cpu_time(|| {
        for step in &steps {
            let (took, next) = time(|| classifier.with(std::slice::from_ref(step)));
            classifier = next;
            changes.push(took);
        }
    });
    prove(&classifier, &now, &shuffled[..shuffled.len() / 10]);
    let changed = lookups(&classifier, &shuffled);
    let rebuilt = lookups(&Classifier::compile(now.iter().copied(), HASH_KEY), &shuffled);
    let tables = |(v4, v6): (usize, usize)| v4 + v6;
    println!(
        "{name:<12} {in_order:<9.0} {mixed:<9.0} {changed:<9.0} {rebuilt:<9.0} {:<9.1} {:<7.3} {:<9.3} {:<9.1} {:>2}, {:<3} {bytes:.0}",
        ms(build),
        ms(median(changes)),
        ms(total) / steps.len() as f64,
        ms(shadow),
        tables(planned),
        tables(classifier.tables()),
    );
}
