//! Instructions per packet, counted by callgrind: the same on any quiet or busy machine.
//!
//! `scripts/count-instructions` runs it and compares with `benches/instructions.txt`. Every scenario is
//! counted twice, through the pipeline and through the null pipeline (received and put back at once);
//! the difference is what a packet costs, as in `softgate bench`.

#![allow(missing_docs, reason = "gungraun's macros make functions without")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use etherparse::PacketBuilder;
use gungraun::Callgrind;
use gungraun::prelude::*;
use softgate::config::Config;
use softgate::flow::FlowTable;
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::journal::{Header, Journal};
use softgate::mem::{BURST, ChunkSize, PacketMemory};
use softgate::packet::checksum;
use softgate::replay;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

/// Turns before counting: lists have grown, the sweep over the neighbours that is due at the start (64 turns)
/// is over.
const WARM_UP_TURNS: u64 = 100;
/// Turns counted, each with a full burst: 6,400 packets. scripts/count-instructions divides by that.
const TURNS: u64 = 100;
/// Different flows in the small scenarios, as in NUMBERS.md.
const FLOWS: u32 = 1008;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 10];

/// A worker that is ready to be counted.
struct Bench {
    worker: Worker,
    node: Arc<Node>,
}

/// One gateway with all kinds of interfaces; what comes in decides what is exercised.
fn config(more: &str) -> Config {
    parse(more, false)
}

/// With zones the ports are two: inside and outside.
fn parse(more: &str, zones: bool) -> Config {
    let interface = |name: &str, port: &str, tags: &str, net: u32| {
        let zone = match (zones, port) {
            (false, _) => "",
            (true, "lan") => "zone = \"inside\"",
            (true, _) => "zone = \"outside\"",
        };
        format!(
            r#"
[[interface]]
name = "{name}"
port = "{port}"
{tags}
{zone}
mac = "02:00:00:00:00:01"
addresses = ["10.0.{net}.1/24", "2001:db8:{net}::1/64"]
"#
        )
    };
    let neighbour = |interface: &str, address: &str| {
        format!(
            "\n[[neighbour]]\ninterface = \"{interface}\"\naddress = \"{address}\"\nmac = \"02:00:00:00:02:0b\"\n"
        )
    };
    let mut text = String::from("schema = 1\n");
    for (port, device) in [("lan", "eth1"), ("wan", "eth2")] {
        text += &format!("[[port]]\nname = \"{port}\"\ndevice = \"{device}\"\n");
    }
    text += &interface("lan", "lan", "", 1);
    text += &interface("vlan100", "lan", "vlan = 100", 2);
    text += &interface("vlan200", "lan", "vlan = 200", 3);
    text += &interface("qinq", "lan", "vlan = [300, 10]", 4);
    text += &interface("wan", "wan", "", 5);
    for (name, address) in [
        ("wan", "10.0.5.2"),
        ("wan", "10.0.5.3"),
        ("wan", "10.0.5.4"),
        ("wan", "10.0.5.5"),
        ("wan", "2001:db8:5::2"),
        ("vlan200", "10.0.3.2"),
    ] {
        text += &neighbour(name, address);
    }
    text += more;
    Config::parse(&text, "instructions.toml").expect("the scenario's config")
}

fn route(prefix: &str, via: &str) -> String {
    format!("\n[[route]]\nprefix = \"{prefix}\"\nvia = [\"{via}\"]\n")
}

/// 18 bytes of payload make the 60 bytes that are 64 on the wire.
const PAYLOAD: [u8; 18] = [0; 18];

fn ports(flow: u32) -> (u16, u16) {
    (1024 + (flow % 48) as u16, 5000 + (flow / 48) as u16)
}

fn ipv4(tags: &[u16], src: [u8; 4], dst: [u8; 4], flow: u32) -> Vec<u8> {
    datagram(tags, src, dst, ports(flow))
}

/// The datagram that answers the one of this flow.
fn answer(tags: &[u16], src: [u8; 4], dst: [u8; 4], flow: u32) -> Vec<u8> {
    let (src_port, dst_port) = ports(flow);
    datagram(tags, src, dst, (dst_port, src_port))
}

fn datagram(tags: &[u16], src: [u8; 4], dst: [u8; 4], (src_port, dst_port): (u16, u16)) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(HOST_MAC, GATEWAY_MAC);
    let vlan = |vid: u16| vid.try_into().expect("a VLAN ID");
    let ip = match tags {
        [] => ethernet.ipv4(src, dst, 64),
        [only] => ethernet.single_vlan(vlan(*only)).ipv4(src, dst, 64),
        [outer, inner, ..] => ethernet.double_vlan(vlan(*outer), vlan(*inner)).ipv4(src, dst, 64),
    };
    let mut frame = Vec::new();
    ip.udp(src_port, dst_port).write(&mut frame, &PAYLOAD).expect("a vector takes everything");
    frame
}

fn ipv6(flow: u32) -> Vec<u8> {
    let src = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
    let dst = [0x20, 1, 0xd, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, (flow >> 8) as u8, flow as u8];
    let (src_port, dst_port) = ports(flow);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(HOST_MAC, GATEWAY_MAC)
        .ipv6(src, dst, 64)
        .udp(src_port, dst_port)
        .write(&mut frame, &PAYLOAD)
        .expect("a vector takes everything");
    frame
}

/// Xorshift: the same destinations in every run.
fn random(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

fn bench(config: &Config, frames: impl Iterator<Item = Vec<u8>>) -> Bench {
    keeping(config, frames, false)
}

/// With `flows.keep`, or without.
fn keeping(config: &Config, frames: impl Iterator<Item = Vec<u8>>, is_kept: bool) -> Bench {
    let mut template = Template::default();
    frames.for_each(|frame| template.push(&frame));
    let (node, _compiler) = replay::compile(config, 1, config.has_zones()).expect("the scenario compiles");
    if is_kept {
        node.replicas();
        node.journal.get_or_init(|| journal(node.capacity.sessions));
    }
    let (_memory, mut pools) = PacketMemory::new(1, 4096, ChunkSize::Bytes2048).expect("packet memory");
    let mut worker = Worker::new(0, &node, pools.remove(0));
    worker.attach(0, 0, Box::new(MemoryPort::new(Arc::new(template), true, Sink::Discard)));
    worker.attach(1, 0, Box::new(MemoryPort::default()));
    // First proof, then counts (CONVENTIONS.md 23): what comes in goes out.
    turn(&mut worker, WARM_UP_TURNS);
    let counters = &node.counters[0];
    let expected = WARM_UP_TURNS * BURST as u64;
    assert_eq!(counters.received.load(Ordering::Relaxed), expected);
    assert_eq!(counters.sent.load(Ordering::Relaxed), expected, "the scenario forwards everything");
    let kept = node.journal.get().map(Journal::kept);
    assert!(kept.is_none_or(|kept| kept > u64::from(FLOWS / 4)), "sessions are kept: {kept:?}");
    Bench { worker, node }
}

/// As a start makes it, in a file that is gone with the process.
fn journal(sessions: u32) -> Journal {
    let slots = FlowTable::<u32>::places_for(sessions);
    let header = Header { workers: 1, slots, boot: [1, 2], node: 3, run: 4, epoch_ms: 0 };
    let file = tempfile::tempfile().expect("a file");
    Journal::create(&file, header).expect("room for the sessions")
}

/// At one time: nothing falls due while packets are counted.
fn turn(worker: &mut Worker, turns: u64) {
    for _ in 0..turns {
        worker.turn(Nanos::from_secs(1));
    }
}

fn ipv4_one_route() -> Bench {
    let frames = (0..FLOWS).map(|flow| ipv4(&[], [10, 0, 1, 10], [203, 0, 113, flow as u8], flow));
    bench(&config(&route("0.0.0.0/0", "10.0.5.2")), frames)
}

fn vlan_to_vlan() -> Bench {
    let frames = (0..FLOWS).map(|flow| ipv4(&[100], [10, 0, 2, 10], [203, 0, 113, flow as u8], flow));
    bench(&config(&route("0.0.0.0/0", "10.0.3.2")), frames)
}

fn ipv6_one_route() -> Bench {
    bench(&config(&route("::/0", "2001:db8:5::2")), (0..FLOWS).map(ipv6))
}

fn qinq_to_untagged() -> Bench {
    let frames = (0..FLOWS).map(|flow| ipv4(&[300, 10], [10, 0, 4, 10], [203, 0, 113, flow as u8], flow));
    bench(&config(&route("0.0.0.0/0", "10.0.5.2")), frames)
}

/// 10,000 routes of /24 over four next hops, each packet to a random one.
fn ipv4_10k_routes() -> Bench {
    const ROUTES: u32 = 10_000;
    let network = |route: u32| [20 + (route >> 8) as u8, route as u8, (route * 7) as u8];
    let routes: String = (0..ROUTES)
        .map(|index| {
            let [a, b, c] = network(index);
            route(&format!("{a}.{b}.{c}.0/24"), &format!("10.0.5.{}", 2 + index % 4))
        })
        .collect();
    let mut state = 2_463_534_242;
    let frames = (0..8192).map(|flow| {
        let [a, b, c] = network(random(&mut state) % ROUTES);
        ipv4(&[], [10, 0, 1, 10], [a, b, c, random(&mut state) as u8], flow % FLOWS)
    });
    bench(&config(&routes), frames)
}

const POLICY: &str = r#"
[flows]
capacity = 65_536

[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
"#;

const SOURCE_NAT: &str = r#"
[[nat.source]]
name = "pool"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["198.51.100.1"]
"#;

/// A stateful gateway; the warm-up opens the sessions.
fn established(more: &str) -> Bench {
    let frames = (0..FLOWS).map(|flow| ipv4(&[], [10, 0, 1, 10], [203, 0, 113, flow as u8], flow));
    bench(&parse(&[&route("0.0.0.0/0", "10.0.5.2"), POLICY, more].concat(), true), frames)
}

/// The same packet with DF clear: NAT has to number it.
fn cuttable(mut frame: Vec<u8>) -> Vec<u8> {
    const FLAGS: usize = 14 + 6;
    const SUM: usize = 14 + 10;
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let sum = checksum::update(word(SUM), word(FLAGS), 0);
    frame[FLAGS..FLAGS + 2].fill(0);
    frame[SUM..SUM + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Each packet opens a session with source NAT.
fn ipv4_snat_new() -> Bench {
    const PACKETS: u32 = (WARM_UP_TURNS + 1 + TURNS) as u32 * BURST as u32;
    let frames = (0..PACKETS).map(|flow| {
        let hosts = 200;
        ipv4(&[], [10, 0, 1, 10 + (flow % hosts) as u8], [203, 0, 113, 1], flow / hosts)
    });
    bench(&parse(&[&route("0.0.0.0/0", "10.0.5.2"), POLICY, SOURCE_NAT].concat(), true), frames)
}

/// Two hosts on two VLANs of one port, of one zone, so that one template has both directions: a datagram, its answer, the
/// next one.
fn two_ways(flows: u32) -> impl Iterator<Item = Vec<u8>> {
    let (one, other) = ([10, 0, 2, 2], [10, 0, 3, 2]);
    (0..flows).flat_map(move |flow| [ipv4(&[100], one, other, flow), answer(&[200], other, one, flow)])
}

const TWO_WAYS: &str = r#"
[[zone]]
name = "inside"
[[zone]]
name = "outside"
[[rule]]
name = "within"
action = "allow"
from = { zone = "inside" }
to = { zone = "inside" }
[[neighbour]]
interface = "vlan100"
address = "10.0.2.2"
mac = "02:00:00:00:02:0d"
"#;

/// Each second packet opens a session, and the next answers it.
fn opened(is_kept: bool) -> Bench {
    const PACKETS: u32 = (WARM_UP_TURNS + 1 + TURNS) as u32 * BURST as u32;
    keeping(&parse(TWO_WAYS, true), two_ways(PACKETS / 2), is_kept)
}

fn ipv4_opened() -> Bench {
    opened(false)
}

fn ipv4_opened_kept() -> Bench {
    opened(true)
}

fn ipv4_answered() -> Bench {
    keeping(&parse(TWO_WAYS, true), two_ways(FLOWS / 2), false)
}

fn ipv4_answered_kept() -> Bench {
    keeping(&parse(TWO_WAYS, true), two_ways(FLOWS / 2), true)
}

/// An overlay, and a station on it.
fn overlay(vtep: &str, remote: &str) -> String {
    format!(
        r#"
[[interface]]
name = "blue"
vni = 13
vtep = "{vtep}"
remotes = ["{remote}"]
mac = "02:00:00:00:00:01"
addresses = ["10.9.0.1/24"]
[[neighbour]]
interface = "blue"
address = "10.9.0.2"
mac = "02:00:00:00:02:0c"
"#
    )
}

fn vxlan_encap() -> Bench {
    let frames = (0..FLOWS).map(|flow| ipv4(&[], [10, 0, 1, 10], [203, 0, 113, flow as u8], flow));
    bench(&config(&[overlay("10.0.5.1", "10.0.5.2"), route("0.0.0.0/0", "10.9.0.2")].concat()), frames)
}

fn vxlan_decap() -> Bench {
    const UDP_SUM: usize = 14 + 20 + 6;
    let frames = (0..FLOWS).map(|flow| {
        let mut payload = vec![8, 0, 0, 0, 0, 0, 13, 0];
        payload.extend(ipv4(&[], [10, 9, 0, 2], [203, 0, 113, flow as u8], flow));
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(HOST_MAC, GATEWAY_MAC)
            .ipv4([10, 0, 1, 10], [10, 0, 1, 1], 64)
            .udp(49152 + flow as u16, 4789)
            .write(&mut frame, &payload)
            .expect("a vector takes everything");
        // RFC 7348 section 5.
        frame[UDP_SUM..UDP_SUM + 2].fill(0);
        frame
    });
    bench(&config(&[overlay("10.0.1.1", "10.0.1.10"), route("0.0.0.0/0", "10.0.5.2")].concat()), frames)
}

/// Makes a scenario.
type Setup = fn() -> Bench;

fn session() -> Bench {
    established("")
}

fn snat_session() -> Bench {
    established(SOURCE_NAT)
}

fn snat_cuttable() -> Bench {
    let frames = (0..FLOWS).map(|flow| cuttable(ipv4(&[], [10, 0, 1, 10], [203, 0, 113, flow as u8], flow)));
    bench(&parse(&[&route("0.0.0.0/0", "10.0.5.2"), POLICY, SOURCE_NAT].concat(), true), frames)
}

/// A scenario that is ready to be counted, behind the null pipeline or not.
fn ready(setup: Setup, null: bool) -> Bench {
    let mut bench = setup();
    bench.worker.set_null_pipeline(null);
    turn(&mut bench.worker, 1);
    bench
}

// The bench is given back, so that taking it down is not counted.
#[library_benchmark(setup = ready)]
#[bench::ipv4_one_route(ipv4_one_route, false)]
#[bench::ipv4_one_route_null(ipv4_one_route, true)]
#[bench::vlan_to_vlan(vlan_to_vlan, false)]
#[bench::vlan_to_vlan_null(vlan_to_vlan, true)]
#[bench::ipv6_one_route(ipv6_one_route, false)]
#[bench::ipv6_one_route_null(ipv6_one_route, true)]
#[bench::qinq_to_untagged(qinq_to_untagged, false)]
#[bench::qinq_to_untagged_null(qinq_to_untagged, true)]
#[bench::ipv4_10k_routes(ipv4_10k_routes, false)]
#[bench::ipv4_10k_routes_null(ipv4_10k_routes, true)]
#[bench::vxlan_encap(vxlan_encap, false)]
#[bench::vxlan_encap_null(vxlan_encap, true)]
#[bench::vxlan_decap(vxlan_decap, false)]
#[bench::vxlan_decap_null(vxlan_decap, true)]
#[bench::ipv4_session(session, false)]
#[bench::ipv4_session_null(session, true)]
#[bench::ipv4_snat_session(snat_session, false)]
#[bench::ipv4_snat_session_null(snat_session, true)]
#[bench::ipv4_snat_cuttable(snat_cuttable, false)]
#[bench::ipv4_snat_cuttable_null(snat_cuttable, true)]
#[bench::ipv4_snat_new(ipv4_snat_new, false)]
#[bench::ipv4_snat_new_null(ipv4_snat_new, true)]
#[bench::ipv4_answered(ipv4_answered, false)]
#[bench::ipv4_answered_null(ipv4_answered, true)]
#[bench::ipv4_answered_kept(ipv4_answered_kept, false)]
#[bench::ipv4_answered_kept_null(ipv4_answered_kept, true)]
#[bench::ipv4_opened(ipv4_opened, false)]
#[bench::ipv4_opened_null(ipv4_opened, true)]
#[bench::ipv4_opened_kept(ipv4_opened_kept, false)]
#[bench::ipv4_opened_kept_null(ipv4_opened_kept, true)]
fn packets(mut bench: Bench) -> Bench {
    turn(&mut bench.worker, TURNS);
    let all = (WARM_UP_TURNS + 1 + TURNS) * BURST as u64;
    assert_eq!(bench.node.counters[0].received.load(Ordering::Relaxed), all);
    black_box(bench)
}

library_benchmark_group!(name = scenarios, benchmarks = packets);
// Of the cache nothing is asked.
main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = scenarios
);
