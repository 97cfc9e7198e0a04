//! The forwarding tables on the real BGP table: first proven equal to the twin, then timed.
//!
//! `taskset -c 1 cargo bench --bench fib` prints a report of medians (lookups, memory, build, one-route
//! changes, 4,000 small tables) and then lets criterion repeat the lookups. Without the real table
//! (SOFTGATE_BGP_TABLE, or `../shared/data` beside the repository) a synthetic one of the same size and
//! mix of lengths takes its place, and the report says so.

#[path = "../src/tables/fib_twin.rs"]
mod fib_twin;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use fib_twin::{Random, Twin, real_table};
use ipnet::{Ipv4Net, Ipv6Net};
use softgate::mem::BURST;
use softgate::tables::Leaf;
use softgate::tables::fib4::{Fib4, Rib4};
use softgate::tables::fib6::{Fib6, Rib6};

/// Addresses per timed pass: 2^20, so that neither the table's hot part nor the branch history is learnt.
const ADDRS: usize = 1 << 20;
/// Addresses per timed slice. Short, about 0.1 ms, so that on a shared machine most slices run undisturbed;
/// their median then tells what the code needs.
const SLICE: usize = 1 << 14;
/// Passes over all slices per figure.
const PASSES: usize = 16;
/// One-route changes per figure.
const CHANGES: usize = 2000;
/// Different leaves, as many as a gateway has next hops.
const LEAVES: u64 = 64;

fn main() {
    let mut random = Random(1);
    let (v4, v6) = real_table().unwrap_or_else(|| {
        println!("NO REAL TABLE: a synthetic one of the same size; figures do not compare");
        synthetic(&mut random)
    });
    println!("{} IPv4 and {} IPv6 prefixes, {LEAVES} leaves, {}", v4.len(), v6.len(), cpu());
    let leaf = |random: &mut Random| 1 + (random.next() % LEAVES) as Leaf;
    let rib4: Rib4 = v4.iter().map(|net| (*net, leaf(&mut random))).collect();
    let rib6: Rib6 = v6.iter().map(|net| (*net, leaf(&mut random))).collect();
    // Uniform over unicast space, and uniform over prefixes with a random host part.
    let rnd4: Vec<u32> = (0..ADDRS).map(|_| 0x0100_0000 + (random.next() % 0xdf00_0000) as u32).collect();
    let hit4: Vec<u32> = (0..ADDRS)
        .map(|_| {
            let net = v4[random.next() as usize % v4.len()];
            u32::from(net.network()) | random.next() as u32 & u32::from(net.hostmask())
        })
        .collect();
    let hit6: Vec<u128> = (0..ADDRS)
        .map(|_| {
            let net = v6[random.next() as usize % v6.len()];
            let host = u128::from(random.next()) << 64 | u128::from(random.next());
            u128::from(net.network()) | host & u128::from(net.hostmask())
        })
        .collect();

    let fib4 = Fib4::compile(rib4.iter().map(|(net, leaf)| (net, *leaf)));
    let fib6 = Fib6::compile(rib6.iter().map(|(net, leaf)| (net, *leaf)));
    prove4(&fib4, &rib4, &[&rnd4, &hit4]);
    prove6(&fib6, &rib6, &hit6);

    report4(&fib4, rib4, &v4, &rnd4, &hit4);
    report6(&fib6, rib6, &v6, &hit6);
    many_vrfs();

    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let mut group = criterion.benchmark_group("fib");
    group.throughput(Throughput::Elements(ADDRS as u64));
    let mut out = vec![0; ADDRS];
    group.bench_function("v4 random, bursts", |b| {
        b.iter(|| bursts(&rnd4, &mut out, |a, o| fib4.find_batch(a, o)))
    });
    group.bench_function("v4 hit, bursts", |b| {
        b.iter(|| bursts(&hit4, &mut out, |a, o| fib4.find_batch(a, o)))
    });
    group.bench_function("v6 hit, bursts", |b| {
        b.iter(|| bursts(&hit6, &mut out, |a, o| fib6.find_batch(a, o)))
    });
    group.finish();
    criterion.final_summary();
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let avx512 = softgate::mem::simd::Avx512::detect().is_some();
    format!(
        "{}, AVX-512 {}",
        model.map_or("unknown CPU", |(_, name)| name),
        if avx512 { "used" } else { "absent" }
    )
}

fn synthetic(random: &mut Random) -> (Vec<Ipv4Net>, Vec<Ipv6Net>) {
    let v4 = (0..900_000).map(|_| {
        let len = [24, 24, 24, 24, 24, 24, 23, 22, 22, 21, 20, 19, 16][random.next() as usize % 13];
        Ipv4Net::new((0x0100_0000 + (random.next() % 0xdf00_0000) as u32).into(), len)
            .expect("a length")
            .trunc()
    });
    let v4 = v4.collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let v6 = (0..160_000).map(|_| {
        let len = [48, 48, 48, 48, 48, 44, 40, 36, 32, 32, 29][random.next() as usize % 11];
        let top = 0x2400 + ((random.next() % 0x800) & 0xfe0f);
        let addr = u128::from(top) << 112 | u128::from(random.next()) << 48;
        Ipv6Net::new(addr.into(), len).expect("a length").trunc()
    });
    (v4, v6.collect::<std::collections::BTreeSet<_>>().into_iter().collect())
}

fn prove4(fib: &Fib4, rib: &Rib4, sets: &[&[u32]]) {
    let twin = Twin::of_v4(rib.iter().map(|(net, leaf)| (net, *leaf)));
    for addrs in sets {
        let (mut out, mut portable) = (vec![0; addrs.len()], vec![0; addrs.len()]);
        bursts(addrs, &mut out, |a, o| fib.find_batch(a, o));
        bursts(addrs, &mut portable, |a, o| fib.find_batch_portable(a, o));
        for (i, addr) in addrs.iter().enumerate() {
            let expected = twin.find_v4(*addr);
            assert_eq!((fib.find(*addr), out[i], portable[i]), (expected, expected, expected), "{addr:#x}");
        }
    }
}

fn prove6(fib: &Fib6, rib: &Rib6, addrs: &[u128]) {
    let twin = Twin::of_v6(rib.iter().map(|(net, leaf)| (net, *leaf)));
    let (mut out, mut portable) = (vec![0; addrs.len()], vec![0; addrs.len()]);
    bursts(addrs, &mut out, |a, o| fib.find_batch(a, o));
    bursts(addrs, &mut portable, |a, o| fib.find_batch_portable(a, o));
    for (i, addr) in addrs.iter().enumerate() {
        let expected = twin.find_v6(*addr);
        assert_eq!((fib.find(*addr), out[i], portable[i]), (expected, expected, expected), "{addr:#x}");
    }
}

/// Times each slice of a pass over the addresses.
fn slices<A>(addrs: &[A], mut slice: impl FnMut(&[A], &mut [Leaf])) -> Vec<Duration> {
    let mut out = vec![0; SLICE];
    addrs.chunks_exact(SLICE).map(|addrs| time(|| slice(addrs, &mut out))).collect()
}

fn mlps(time: Duration) -> f64 {
    SLICE as f64 / time.as_secs_f64() / 1e6
}

fn bursts<A>(addrs: &[A], out: &mut [Leaf], find: impl Fn(&[A], &mut [Leaf])) {
    for (addrs, out) in addrs.chunks(BURST).zip(out.chunks_mut(BURST)) {
        find(addrs, out);
    }
    black_box(out);
}

fn singles<A: Copy>(addrs: &[A], out: &mut [Leaf], find: impl Fn(A) -> Leaf) {
    out.iter_mut().zip(addrs).for_each(|(out, addr)| *out = find(*addr));
    black_box(out);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

/// Prints millions of lookups per second: of the median slice, and of the one at the fastest tenth.
fn print_rate<A>(name: &str, addrs: &[A], mut slice: impl FnMut(&[A], &mut [Leaf])) {
    let mut times: Vec<_> = (0..PASSES).flat_map(|_| slices(addrs, &mut slice)).collect();
    times.sort();
    let (median, tenth) = (mlps(times[times.len() / 2]), mlps(times[times.len() / 10]));
    println!("  {name:<44} {median:7.0} M/s median {tenth:7.0} fastest tenth");
}

fn print_ms(name: &str, times: Vec<Duration>) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mean = ms(times.iter().sum::<Duration>()) / times.len() as f64;
    let max = ms(*times.iter().max().expect("times"));
    println!("  {name:<44} {:7.2} ms median {mean:7.2} mean {max:7.2} max", ms(median(times)));
}

fn report4(fib: &Fib4, mut rib: Rib4, nets: &[Ipv4Net], rnd: &[u32], hit: &[u32]) {
    println!("IPv4: {} routes, {:.2} MB", fib.routes(), fib.memory_bytes() as f64 / 1e6);
    print_rate("random, bursts", rnd, |a, o| bursts(a, o, |a, o| fib.find_batch(a, o)));
    print_rate("random, bursts, portable", rnd, |a, o| bursts(a, o, |a, o| fib.find_batch_portable(a, o)));
    print_rate("random, one at a time", rnd, |a, o| singles(a, o, |a| fib.find(a)));
    print_rate("hit, bursts", hit, |a, o| bursts(a, o, |a, o| fib.find_batch(a, o)));
    print_rate("hit, bursts, portable", hit, |a, o| bursts(a, o, |a, o| fib.find_batch_portable(a, o)));
    print_rate("hit, one at a time", hit, |a, o| singles(a, o, |a| fib.find(a)));
    let builds = (0..9).map(|_| time(|| drop(black_box(Fib4::compile(rib.iter().map(|(n, l)| (n, *l)))))));
    print_ms("full build from the RIB", builds.collect());

    let mut random = Random(44);
    let mut table = Fib4::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
    let mut change = |table: &mut Fib4| {
        let net = nets[random.next() as usize % nets.len()];
        if rib.remove(&net).is_none() {
            rib.insert(net, 1 + (random.next() % LEAVES) as Leaf);
        }
        time(|| *table = table.with_changes(&rib, &[net]))
    };
    print_ms("one-route change, by prefix", (0..CHANGES).map(|_| change(&mut table)).collect());
    let after = (0..PASSES).flat_map(|_| {
        change(&mut table);
        slices(rnd, |a, o| bursts(a, o, |a, o| table.find_batch(a, o)))
    });
    let after = median(after.collect());
    let first = (0..100).map(|_| {
        change(&mut table);
        slices(&rnd[..SLICE], |a, o| bursts(a, o, |a, o| table.find_batch(a, o)))[0]
    });
    let first = median(first.collect());
    println!(
        "  {:<44} {:7.0} M/s median; first 16,384: {:.0}; {:.2} MB after {CHANGES} changes",
        "random, bursts, right after a change",
        mlps(after),
        mlps(first),
        table.memory_bytes() as f64 / 1e6
    );
    let default: Ipv4Net = "0.0.0.0/0".parse().expect("a prefix");
    let times = (0..10).map(|_| {
        if rib.remove(&default).is_none() {
            rib.insert(default, 1);
        }
        time(|| table = table.with_changes(&rib, &[default]))
    });
    print_ms("change of the default route (not in the mean)", times.collect());
    prove4(&table, &rib, &[rnd]);
}

fn report6(fib: &Fib6, mut rib: Rib6, nets: &[Ipv6Net], hit: &[u128]) {
    println!("IPv6: {} routes, {:.2} MB", fib.routes(), fib.memory_bytes() as f64 / 1e6);
    print_rate("hit, bursts", hit, |a, o| bursts(a, o, |a, o| fib.find_batch(a, o)));
    print_rate("hit, bursts, portable", hit, |a, o| bursts(a, o, |a, o| fib.find_batch_portable(a, o)));
    print_rate("hit, one at a time", hit, |a, o| singles(a, o, |a| fib.find(a)));
    let builds = (0..9).map(|_| time(|| drop(black_box(Fib6::compile(rib.iter().map(|(n, l)| (n, *l)))))));
    print_ms("full build from the RIB", builds.collect());

    let mut random = Random(66);
    let mut table = Fib6::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
    let mut change = |table: &mut Fib6| {
        let net = nets[random.next() as usize % nets.len()];
        if rib.remove(&net).is_none() {
            rib.insert(net, 1 + (random.next() % LEAVES) as Leaf);
        }
        time(|| *table = table.with_changes(&rib, &[net]))
    };
    print_ms("one-route change, by prefix", (0..CHANGES).map(|_| change(&mut table)).collect());
    let after = (0..PASSES).flat_map(|_| {
        change(&mut table);
        slices(hit, |a, o| bursts(a, o, |a, o| table.find_batch(a, o)))
    });
    let after = median(after.collect());
    let first = (0..100).map(|_| {
        change(&mut table);
        slices(&hit[..SLICE], |a, o| bursts(a, o, |a, o| table.find_batch(a, o)))[0]
    });
    let first = median(first.collect());
    println!(
        "  {:<44} {:7.0} M/s median; first 16,384: {:.0}; {:.2} MB after {CHANGES} changes",
        "hit, bursts, right after a change",
        mlps(after),
        mlps(first),
        table.memory_bytes() as f64 / 1e6
    );
    let default: Ipv6Net = "::/0".parse().expect("a prefix");
    let times = (0..10).map(|_| {
        if rib.remove(&default).is_none() {
            rib.insert(default, 1);
        }
        time(|| table = table.with_changes(&rib, &[default]))
    });
    print_ms("change of the default route (not in the mean)", times.collect());
    prove6(&table, &rib, hit);
}

/// Resident memory of this process, from /proc; `None` where there is none.
fn resident_bytes() -> Option<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse::<usize>().ok()?;
    Some(pages * 4096)
}

fn many_vrfs() {
    const VRFS: u32 = 4000;
    const ROUTES: u32 = 20;
    let before = resident_bytes();
    let mut random = Random(20);
    let tables: Vec<(Fib4, Fib6)> = (0..VRFS)
        .map(|_| {
            let v4 = (0..ROUTES).map(|i| {
                let len = [0, 24, 24, 24, 24, 16, 25, 28, 30, 32][i as usize % 10];
                let addr = 0x0a00_0000 | random.next() as u32 & 0x00ff_ffff;
                (Ipv4Net::new(addr.into(), len).expect("a length").trunc(), 1 + i as Leaf)
            });
            let v4 = Fib4::compile(v4.collect::<Vec<_>>());
            let v6 = (0..ROUTES).map(|i| {
                let len = [0, 64, 64, 64, 64, 48, 56, 127, 128, 128][i as usize % 10];
                let addr = 0x2001_0db8_u128 << 96 | u128::from(random.next()) << 32;
                (Ipv6Net::new(addr.into(), len).expect("a length").trunc(), 1 + i as Leaf)
            });
            (v4, Fib6::compile(v6.collect::<Vec<_>>()))
        })
        .collect();
    let after = resident_bytes();
    let v4: usize = tables.iter().map(|(v4, _)| v4.memory_bytes()).sum();
    let v6: usize = tables.iter().map(|(_, v6)| v6.memory_bytes()).sum();
    println!(
        "{VRFS} VRFs of {ROUTES} routes: v4 {:.2} MB, v6 {:.2} MB (of them four longer than /64); resident {}",
        v4 as f64 / 1e6,
        v6 as f64 / 1e6,
        match (before, after) {
            (Some(before), Some(after)) => format!("+{:.1} MB", after.saturating_sub(before) as f64 / 1e6),
            _ => "unknown".into(),
        }
    );
    let rnd: Vec<u32> = (0..1 << 16).map(|_| 0x0a00_0000 | random.next() as u32 & 0x00ff_ffff).collect();
    let one = &tables[0].0;
    print_rate("one of them, v4 inside its /8, bursts", &rnd, |a, o| {
        bursts(a, o, |a, o| one.find_batch(a, o))
    });
}
