//! The classifier on ClassBench rule sets: first proven equal to a scan, then timed.
//!
//! `taskset -c 1 cargo bench --bench classify` prints, for acl1, fw1 and ipc1 of 1k, 10k and 100k rules,
//! lookups in the trace's order and shuffled, the full build, one-rule changes, tables and memory. The
//! sets come from the directory that SOFTGATE_CLASSBENCH names, else `../shared/data/classbench` beside
//! the repository. On a shared machine each slice of the trace counts with its median over several passes.

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

fn main() {
    let key = hash::Key(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
    println!("             trace     shuffled  updated   build     change           shadowed");
    println!(
        "             ns        ns        ns        ms        ms med   max     ms        tables  bytes/rule"
    );
    for size in [1000, 10_000, 100_000] {
        for set in ["acl1", "fw1", "ipc1"] {
            let name = format!("{set}_{size}");
            if std::env::var("ONLY").is_ok_and(|only| !name.contains(&only)) {
                continue;
            }
            match classbench::read(&name) {
                Some((filters, headers)) => report(&name, &filters, &headers, key),
                None => println!("{name}: NO SUCH SET; set SOFTGATE_CLASSBENCH"),
            }
        }
    }
}

fn mapped(addr: u32) -> u128 {
    0xffff << 32 | u128::from(addr)
}

fn rule(filter: &classbench::Filter) -> Match {
    let prefix = |(addr, len): (u32, u8)| Prefix::new(mapped(addr), len + 96).expect("a prefix");
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

fn lookup(header: &classbench::Header) -> Key<'static> {
    Key {
        src: mapped(header.src),
        dst: mapped(header.dst),
        src_port: header.src_port,
        dst_port: header.dst_port,
        protocol: header.protocol,
        src_sets: &[],
        dst_sets: &[],
    }
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

fn report(name: &str, filters: &[classbench::Filter], headers: &[classbench::Header], hash: hash::Key) {
    let rules: Vec<Match> = filters.iter().map(rule).collect();
    let keys: Vec<Key<'_>> = headers.iter().map(lookup).collect();
    let mut random = Random(9);
    let mut shuffled = keys.clone();
    for i in 0..shuffled.len() {
        shuffled.swap(i, i + random.next() as usize % (keys.len() - i));
    }
    let compile = || Classifier::compile(rules.iter().copied(), hash);
    let mut classifier = compile();
    if std::env::var("DESCRIBE").is_ok() {
        classifier.describe().iter().for_each(|table| println!("{table}"));
    }
    prove(&classifier, &rules, &shuffled);
    let (in_order, mixed) = (lookups(&classifier, &keys), lookups(&classifier, &shuffled));
    let build = median((0..BUILDS).map(|_| time(compile).0).collect());
    let shadow = median((0..BUILDS).map(|_| time(|| shadowed(&rules)).0).collect());
    let (tables, bytes) = (classifier.tables().0, classifier.memory_bytes() as f64 / rules.len() as f64);

    let mut now = rules.clone();
    let mut changes = Vec::new();
    for _ in 0..CHANGES {
        let from = random.next() as usize % now.len();
        let rule = now.remove(from);
        let to = random.next() as usize % (now.len() + 1);
        now.insert(to, rule);
        for change in [Change::Remove(from as u32), Change::Insert(to as u32, rule)] {
            let (took, next) = time(|| classifier.with(&[change]));
            classifier = next;
            changes.push(took);
        }
    }
    prove(&classifier, &now, &shuffled[..shuffled.len() / 10]);
    let updated = lookups(&classifier, &shuffled);
    println!(
        "{name:<12} {in_order:<9.0} {mixed:<9.0} {updated:<9.0} {:<9.1} {:<8.3} {:<7.3} {:<9.1} {tables:<3} {:<3} {bytes:.0}",
        ms(build),
        ms(median(changes.clone())),
        ms(*changes.iter().max().expect("changes")),
        ms(shadow),
        classifier.tables().0,
    );
}
