//! What services cost to build: first proven, then timed.
//!
//! `taskset -c 1 cargo bench --bench balance` prints how long one table of 65,537 places takes for 1,000 backends, of one
//! weight and of many; what 10,000 services of 32 backends take, in time and memory, from the config's text on; and how
//! long it is until a change of one backend of one of them can be published, checked to be what compiling all of it anew
//! gives. What the control socket adds is in `applied_us` of its answer.

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use softgate::config::Config;
use softgate::replay;
use softgate::tables::balance::{Identity, Maglev};
use softgate::tables::policy::{self, Touched};

/// Sessions lie in mappings of their own, which it does not see.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const BACKENDS: u32 = 1_000;
const BUILDS: usize = 101;
const SERVICES: usize = 10_000;
const BACKENDS_EACH: usize = 32;
const CHANGES: usize = 200;

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
addresses = ["10.255.0.1/24"]
[[interface]]
name = "out"
port = "p"
vlan = 2
zone = "outside"
addresses = ["192.0.2.1/24"]
"#;

fn main() {
    table("one weight", |_| 1);
    table("weights 1 to 100", |n| 1 + (n * 37 % 100) as u16);
    services();
}

fn table(what: &str, weight: impl Fn(u32) -> u16) {
    let identity = |n: u32| Identity {
        addr: IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)),
        port: 0,
        vrf: "default".to_owned(),
    };
    let identities: Vec<Identity> = (0..BACKENDS).map(identity).collect();
    let backends: Vec<(&Identity, u16)> =
        identities.iter().zip(0..).map(|(identity, n)| (identity, weight(n))).collect();
    let heavy: u32 = backends.iter().map(|(_, weight)| u32::from(*weight)).sum();
    let built = Maglev::build(&backends);
    let shares = built.shares(identities.len());
    let places: u32 = shares.iter().sum();
    assert_eq!(places, 65_537);
    for ((_, weight), share) in backends.iter().zip(&shares) {
        let fair = f64::from(places) * f64::from(*weight) / f64::from(heavy);
        assert!((f64::from(*share) - fair).abs() < 2.0, "{share} places of {fair:.2}");
    }
    let mut times: Vec<Duration> = (0..BUILDS)
        .map(|_| {
            let begun = Instant::now();
            black_box(Maglev::build(black_box(&backends)));
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!("{BACKENDS} backends, {what}: {}", spread(&times));
}

fn text() -> String {
    let mut text = HEAD.to_owned();
    for n in 0..SERVICES {
        let backends: Vec<String> = (0..BACKENDS_EACH)
            .map(|b| format!("{{ address = \"10.{}.{}.{}:8080\" }}", n >> 8, n & 255, 1 + b))
            .collect();
        _ = write!(
            text,
            "[[service]]\nname = \"service-{n}\"\naddress = \"198.18.{}.{}\"\nservice = \"tcp/443\"\nbackends = [{}]\n",
            n >> 8,
            n & 255,
            backends.join(", ")
        );
    }
    text
}

fn services() {
    let none = Config::parse(HEAD, "bench.toml").expect("a config");
    drop(black_box(replay::compile(&none, 1, false).expect("tables")));
    let text_of_all = text();
    let begun = Instant::now();
    let mut config = Config::parse(&text_of_all, "bench.toml").expect("a config");
    let parsed = begun.elapsed();
    let (before, begun) = (ALLOCATED.current_usage(), Instant::now());
    let (node, mut compiler) = replay::compile(&config, 1, false).expect("tables");
    let (compiled, all) = (begun.elapsed(), ALLOCATED.current_usage() - before);
    println!(
        "{SERVICES} services of {BACKENDS_EACH} backends: parsed and checked in {} ms, compiled in {} ms, {} MB",
        parsed.as_millis(),
        compiled.as_millis(),
        all >> 20
    );
    let mut times: Vec<Duration> = (0..CHANGES)
        .map(|n| {
            let at = n * 7_919 % SERVICES;
            let mut service = (*config.services[at]).clone();
            service.backends[0] = toml::from_str(&format!(
                "address = \"{}\"\nweight = {}",
                service.backends[0].address,
                1 + service.backends[0].weight.get() % 2
            ))
            .expect("a backend");
            config.services[at] = Arc::new(service);
            let begun = Instant::now();
            let made = policy::services(&config, &mut compiler).expect("as many as before");
            let policy = compiler.tables().policy.with_services(made);
            let retired = compiler.put_policy(Arc::new(policy), &Touched::default());
            let done = begun.elapsed();
            retired.release(&node.neighbours);
            done
        })
        .collect();
    times.sort();
    println!("one weight of one of them: {}", spread(&times));

    let whole = replay::compile(&config, 1, false).expect("tables").1;
    let shares = |of: &softgate::tables::compile::Compiler| {
        of.tables().policy.services().list().iter().map(|service| service.shares()).collect::<Vec<_>>()
    };
    assert_eq!(shares(&compiler), shares(&whole), "changed and compiled anew");
}

fn spread(sorted: &[Duration]) -> String {
    let micros = |of: Duration| of.as_micros();
    let (first, middle, last) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    format!("median {} us, {} to {}", micros(middle), micros(first), micros(last))
}
