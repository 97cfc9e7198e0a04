//! The stages without this file are its twin: whatever comes in, both do the same to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::config::Config;
use crate::flow::Flows;
use crate::macs::Location;
use crate::mem::{BURST, ChunkSize, FramePool, PacketMemory};
use crate::neighbours::v4_key;
use crate::packet::{Burst, DropReason, Family, Ingress, Meta, Packet, Pass, Verdict, checksum, flags};
use crate::pipeline::{Context, flow, run_stages};
use crate::replay;
use crate::time::Nanos;
use crate::worker::Node;

/// All kinds of interfaces and routes: what is plain, and what is so but for one thing.
const CONFIG: &str = r#"
schema = 1
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
addresses = ["10.0.1.1/24"]
[[interface]]
name = "vlan"
port = "lan"
vlan = 100
mac = "02:00:00:00:00:01"
addresses = ["10.0.2.1/24"]
[[interface]]
name = "pair"
port = "lan"
vlan = [100, 7]
mac = "02:00:00:00:00:01"
addresses = ["10.0.3.1/24"]
[[interface]]
name = "checked"
port = "lan"
vlan = 101
mac = "02:00:00:00:00:01"
addresses = ["10.0.4.1/24"]
source_check = "strict"
[[interface]]
name = "blue"
port = "lan"
vlan = 102
vrf = "blue"
zone = "inside"
mac = "02:00:00:00:00:01"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "blue-out"
port = "lan"
vlan = 104
vrf = "blue"
zone = "outside"
mac = "02:00:00:00:00:02"
addresses = ["10.0.9.1/24"]
[[interface]]
name = "red"
port = "lan"
vlan = 103
vrf = "red"
mac = "02:00:00:00:00:01"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "wan"
port = "wan"
mac = "02:00:00:00:00:02"
addresses = ["10.0.5.1/24"]
[[interface]]
name = "wan-pair"
port = "wan"
vlan = [200, 10]
mac = "02:00:00:00:00:02"
addresses = ["10.0.6.1/24"]
mtu = 600
[[interface]]
name = "overlay"
vni = 77
vtep = "10.0.1.1"
remotes = ["10.0.1.10", "10.0.5.2"]
mac = "02:00:00:00:00:01"
addresses = ["10.0.10.1/24"]
[[interface]]
name = "overlay-red"
vni = 78
vtep = "10.0.2.1"
remotes = ["10.0.2.10"]
vrf = "red"
mac = "02:00:00:00:00:01"
addresses = ["10.0.11.1/24"]
[[interface]]
name = "overlay-blue"
vni = 79
vtep = "10.0.1.1"
remotes = ["10.0.1.10"]
vrf = "blue"
zone = "inside"
mac = "02:00:00:00:00:01"
addresses = ["10.0.12.1/24"]
[[bridge]]
name = "seg"
members = [
    { port = "lan", vlan = 105 },
    { port = "wan", vlan = 105 },
    { vni = 81, vtep = "10.0.1.1", remotes = ["10.0.1.10", "10.0.5.2"] },
]
[[interface]]
name = "seg"
bridge = "seg"
mac = "02:00:00:00:00:01"
addresses = ["10.0.13.1/24"]
mtu = 1300
[[bridge]]
name = "zoned"
members = [{ port = "lan", vlan = 106 }, { vni = 82, vtep = "10.0.1.1", remotes = ["10.0.1.10"] }]
[[interface]]
name = "zoned"
bridge = "zoned"
vrf = "blue"
zone = "inside"
mac = "02:00:00:00:00:01"
addresses = ["10.0.14.1/24"]
[[neighbour]]
interface = "seg"
address = "10.0.13.2"
mac = "02:00:00:00:03:02"
[[neighbour]]
interface = "seg"
address = "10.0.13.3"
mac = "02:00:00:00:03:03"
[[neighbour]]
interface = "seg"
address = "10.0.13.4"
mac = "02:00:00:00:03:04"
[[route]]
prefix = "100.64.4.0/25"
via = ["10.0.13.2"]
[[route]]
prefix = "100.64.4.128/26"
via = ["10.0.13.3"]
[[route]]
prefix = "100.64.4.192/26"
via = ["10.0.13.4"]
[[neighbour]]
interface = "overlay"
address = "10.0.10.2"
mac = "02:00:00:00:02:10"
remote = "10.0.5.2"
[[neighbour]]
interface = "overlay"
address = "10.0.10.3"
mac = "02:00:00:00:02:11"
remote = "10.0.1.10"
[[neighbour]]
interface = "wan"
address = "10.0.5.2"
mac = "02:00:00:00:02:02"
[[neighbour]]
interface = "wan"
address = "10.0.5.3"
mac = "02:00:00:00:02:03"
[[neighbour]]
interface = "blue-out"
address = "10.0.9.2"
mac = "02:00:00:00:02:09"
[[neighbour]]
interface = "wan-pair"
address = "10.0.6.2"
mac = "02:00:00:00:02:06"
[[neighbour]]
interface = "vlan"
address = "10.0.2.2"
mac = "02:00:00:00:01:02"
[[route]]
prefix = "203.0.113.0/24"
via = ["10.0.5.2"]
[[route]]
prefix = "198.51.100.0/24"
via = ["10.0.5.2", "10.0.5.3"]
[[route]]
prefix = "192.0.2.0/24"
via = ["10.0.6.2"]
[[route]]
prefix = "192.0.2.128/25"
via = ["10.0.2.2"]
[[route]]
prefix = "100.64.0.0/24"
via = ["10.0.5.9"]
[[route]]
prefix = "100.64.1.0/24"
blackhole = true
[[route]]
prefix = "100.64.3.0/24"
via = ["10.0.10.2"]
[[route]]
prefix = "100.64.2.0/24"
via = ["10.0.9.2@blue"]
[[route]]
prefix = "203.0.113.0/24"
vrf = "red"
via = ["10.0.5.3@default"]
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[route]]
prefix = "203.0.113.0/24"
vrf = "blue"
via = ["10.0.9.2"]
[[nat.source]]
name = "pool"
vrf = "blue"
from = { zone = "inside" }
to = { zone = "outside", prefix = "203.0.113.0/25" }
pool = ["198.51.100.1"]
"#;

/// One frame: a right one of some kind, and bytes written over it.
#[derive(Clone, Debug)]
struct Sent {
    /// In a tunnel to this end point, with this VNI, ECN field and UDP checksum.
    tunnel: Option<([u8; 4], u32, u8, u16)>,
    tags: Vec<u16>,
    src: [u8; 4],
    dst: [u8; 4],
    ttl: u8,
    flags_and_offset: u16,
    protocol: u8,
    payload: usize,
    padding: usize,
    options: bool,
    wrong_checksum: bool,
    /// Where in the frame, and what.
    over: Vec<(usize, u8)>,
    /// Cut here.
    cut: Option<usize>,
    /// Most bytes of the first segment.
    segment: Option<usize>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let tags = prop_oneof![
        4 => Just(vec![]),
        3 => Just(vec![100]),
        1 => Just(vec![100, 7]),
        1 => Just(vec![0]),
        1 => Just(vec![101]),
        3 => Just(vec![102]),
        2 => Just(vec![103]),
        3 => Just(vec![105]),
        2 => Just(vec![106]),
        1 => Just(vec![4000]),
    ];
    let src = prop_oneof![
        6 => Just([10, 0, 1, 10]),
        2 => Just([10, 0, 2, 10]),
        1 => Just([10, 0, 4, 10]),
        1 => prop_oneof![Just([127, 0, 0, 1]), Just([0, 0, 0, 9]), Just([224, 0, 0, 5]), Just([255; 4])],
        1 => prop_oneof![Just([169, 254, 3, 3]), Just([169, 253, 3, 3])],
    ];
    let network = prop_oneof![
        6 => Just([203, 0, 113]),
        2 => Just([198, 51, 100]),
        3 => Just([192, 0, 2]),
        1 => Just([100, 64, 0]),
        1 => Just([100, 64, 1]),
        1 => Just([100, 64, 2]),
        3 => Just([100, 64, 3]),
        6 => Just([100, 64, 4]),
        1 => Just([10, 0, 10]),
        1 => Just([10, 0, 5]),
        1 => Just([10, 0, 1]),
        1 => Just([224, 0, 0]),
        1 => Just([8, 8, 8]),
    ];
    let dst = (network, any::<u8>()).prop_map(|([a, b, c], d)| [a, b, c, d]);
    let fragment = prop_oneof![
        5 => Just(0),
        5 => Just(0x4000),
        1 => prop_oneof![Just(0x2000), Just(0x0001), Just(0x8000), any::<u16>()],
    ];
    let protocol = prop_oneof![
        6 => Just(17),
        4 => Just(6),
        1 => prop_oneof![Just(1), Just(132), Just(47), any::<u8>()],
    ];
    let payload = prop_oneof![6 => 0..30usize, 1 => 560..620usize, 1 => 1400..1480usize];
    let over = prop_oneof![
        6 => Just(vec![]),
        2 => prop::collection::vec((0..60usize, any::<u8>()), 1..3),
    ];
    let ttl = prop_oneof![8 => Just(64), 1 => 0..4u8];
    let rare = || prop::bool::weighted(0.05);
    let vtep = prop_oneof![8 => Just([10, 0, 1, 1]), 4 => Just([10, 0, 2, 1]), 1 => Just([10, 0, 9, 1])];
    let vni =
        prop_oneof![4 => Just(77), 3 => Just(78), 3 => Just(79), 1 => Just(80), 3 => Just(81), 3 => Just(82)];
    let tunnel =
        (vtep, vni, prop_oneof![8 => Just(0u8), 1 => 0..4u8], prop_oneof![8 => Just(0u16), 1 => Just(7)]);
    (
        prop::option::weighted(0.4, tunnel),
        (tags, src, dst, ttl, fragment, protocol),
        (payload, 0..20usize, rare(), rare()),
        (over, prop::option::weighted(0.05, 0..70usize), prop::option::weighted(0.05, 60..200usize)),
    )
        .prop_map(
            |(
                tunnel,
                (tags, src, dst, ttl, flags_and_offset, protocol),
                (payload, padding, options, wrong_checksum),
                (over, cut, segment),
            )| {
                Sent {
                    tunnel,
                    tags,
                    src,
                    dst,
                    ttl,
                    flags_and_offset,
                    protocol,
                    payload,
                    padding,
                    options,
                    wrong_checksum,
                    over,
                    cut,
                    segment,
                }
            },
        )
}

/// A whole frame, in a tunnel if it is to be in one: bytes written over it lie in the tunnel.
fn frame(sent: &Sent) -> Vec<u8> {
    let Some((vtep, vni, ecn, sum)) = sent.tunnel else { return bare_frame(sent) };
    let inside = Sent { tunnel: None, tags: vec![], ..sent.clone() };
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(bare_frame(&inside));
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 1, 10], [2, 0, 0, 0, 0, 1]);
    let src = [vtep[0], vtep[1], vtep[2], 10];
    let vid = |tag: u16| tag.try_into().expect("a VLAN ID");
    let ip = match sent.tags[..] {
        [] => ethernet.ipv4(src, vtep, sent.ttl),
        [first, ..] => ethernet.single_vlan(vid(first)).ipv4(src, vtep, sent.ttl),
    };
    let mut bytes = Vec::new();
    ip.udp(50000, 4789).write(&mut bytes, &payload).expect("a vector takes everything");
    let l3 = if sent.tags.is_empty() { 14 } else { 18 };
    bytes[l3 + 1] |= ecn;
    bytes[l3 + 10..l3 + 12].fill(0);
    let header = checksum::of(&bytes[l3..l3 + 20]);
    bytes[l3 + 10..l3 + 12].copy_from_slice(&header.to_be_bytes());
    bytes[l3 + 26..l3 + 28].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn bare_frame(sent: &Sent) -> Vec<u8> {
    // Nobody is behind two members of a bridge: who was noticed last is not compared.
    let station = sent.tags.first().map_or(10, |tag| *tag as u8);
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 1, station], [2, 0, 0, 0, 0, 1]);
    let vid = |tag: u16| tag.try_into().expect("a VLAN ID");
    let ip = match sent.tags[..] {
        [] => ethernet.ipv4(sent.src, sent.dst, sent.ttl),
        [only] => ethernet.single_vlan(vid(only)).ipv4(sent.src, sent.dst, sent.ttl),
        [outer, inner, ..] => ethernet.double_vlan(vid(outer), vid(inner)).ipv4(sent.src, sent.dst, sent.ttl),
    };
    let mut bytes = Vec::new();
    ip.udp(1000, 2000).write(&mut bytes, &vec![7; sent.payload]).expect("a vector takes everything");
    let l3 = 14 + 4 * sent.tags.len();
    if sent.options {
        // Four times "no operation".
        bytes.splice(l3 + 20..l3 + 20, [1; 4]);
        bytes[l3] = 0x46;
        let len = u16::from_be_bytes([bytes[l3 + 2], bytes[l3 + 3]]) + 4;
        bytes[l3 + 2..l3 + 4].copy_from_slice(&len.to_be_bytes());
    }
    bytes[l3 + 6..l3 + 8].copy_from_slice(&sent.flags_and_offset.to_be_bytes());
    bytes[l3 + 9] = sent.protocol;
    let header = l3..l3 + if sent.options { 24 } else { 20 };
    bytes[l3 + 10..l3 + 12].fill(0);
    let sum = checksum::of(&bytes[header]) ^ u16::from(sent.wrong_checksum);
    bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(std::iter::repeat_n(0xee, sent.padding));
    for (at, byte) in &sent.over {
        if let Some(place) = bytes.get_mut(*at) {
            *place = *byte;
        }
    }
    bytes.truncate(sent.cut.unwrap_or(usize::MAX));
    bytes
}

struct Gateway {
    node: Arc<Node>,
    flows: Flows,
    pool: FramePool,
    _memory: Arc<PacketMemory>,
}

/// What has become of a packet.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// In words: verdict, egress, and what else is known.
    meta: String,
    bytes: Vec<u8>,
    chained: Vec<Vec<u8>>,
}

/// Packets of a burst that may be cut get their identifications in the order in which they are finished, and the short
/// way finishes others first: they are taken out, with what they are in the checksum.
fn without_identification(frame: &mut [u8]) {
    let mut l3 = 14;
    while matches!(frame.get(l3 - 2..l3), Some([0x81, 0] | [0x88, 0xa8])) {
        l3 += 4;
    }
    if frame.get(l3 - 2..l3) == Some(&[8, 0]) {
        without_identification_at(frame, l3);
    }
}

/// The same of the IPv4 header that begins there.
fn without_identification_at(frame: &mut [u8], l3: usize) {
    if let Some(header) = frame.get_mut(l3..l3 + 20).filter(|header| header[6] & 0x40 == 0) {
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let sum = crate::packet::checksum::update(word(10), word(4), 0);
        header[4..6].fill(0);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Gateway {
    fn new() -> Gateway {
        let config = Config::parse(CONFIG, "plain.toml").expect("the test's config");
        let (node, _compiler) = replay::compile(&config, 1, false).expect("it compiles");
        let (memory, mut pools) = PacketMemory::new(1, 256, ChunkSize::Bytes2048).expect("packet memory");
        let tables = node.tables.load();
        let bridge = tables.bridges.iter().find(|bridge| bridge.name == "seg").expect("it is in the config");
        let (behind_wan, behind_vni) = (&bridge.members[1], &bridge.members[2]);
        let remote = node.neighbours.vteps.find_or_insert(v4_key(0x0a00_0502), Nanos::from_secs(1));
        let remote = Location::remote(remote.expect("room"), behind_vni.vni.expect("a VNI").0);
        let macs = &node.neighbours.macs;
        assert!(macs.set_permanent(bridge.segment, 0x0200_0000_0302, Location::local(behind_wan.interface)));
        assert!(macs.set_permanent(bridge.segment, 0x0200_0000_0303, remote));
        let flows = Flows::new(0, node.capacity, Arc::clone(&node.claims), None, Default::default());
        Gateway { node, flows: flows.expect("memory"), pool: pools.remove(0), _memory: memory }
    }

    fn run<const SHORT: bool>(&mut self, frames: &[Sent], pass: Pass) -> Vec<Outcome> {
        let tables = self.node.tables.load_full();
        let cx =
            Context { ingress: Ingress::Port(0), pass, ..self.node.context(0, &tables, Nanos::from_secs(1)) };
        let mut burst = Burst::new();
        for sent in frames {
            let bytes = frame(sent);
            let first = sent.segment.unwrap_or(usize::MAX).min(bytes.len());
            let mut frame = self.pool.take_filled(&bytes[..first]).expect("a free frame");
            if first < bytes.len() {
                frame.append(self.pool.take_filled(&bytes[first..]).expect("a free frame"));
            }
            burst.push(Packet { frame, meta: Meta::FRESH });
        }
        run_stages::<SHORT>(&mut burst, &cx, &mut self.flows);
        burst.drain(..).map(|packet| self.outcome(packet)).collect()
    }

    /// The metadata without what is of no use to whoever gets the packet.
    fn outcome(&mut self, Packet { frame, mut meta }: Packet) -> Outcome {
        meta.flags &= !flags::PLAIN;
        // That there is a new one, not which ([`without_identification`]).
        meta.identification &= Meta::NEW_IDENTIFICATION;
        if matches!(meta.verdict, Verdict::Forward) {
            (meta.dst_mac, meta.neighbour) = (0, 0);
        }
        // Which of its checks came first.
        if meta.verdict == Verdict::Drop(DropReason::FragmentationNeeded) {
            meta.neighbour = 0;
        }
        if meta.verdict == Verdict::Held {
            return Outcome { meta: format!("{meta:?}"), bytes: vec![], chained: vec![] };
        }
        let mut chained = Vec::new();
        let mut at = frame.peek_next();
        while let Some(segment) = at {
            chained.push(segment.bytes().to_vec());
            at = segment.peek_next();
        }
        let mut bytes = frame.bytes().to_vec();
        self.pool.put(frame);
        match meta.verdict {
            Verdict::Forward => without_identification(&mut bytes),
            // Numbered before it is cut, and what a tunnel has in front of it is there still.
            Verdict::Fragment if meta.family == Family::Ipv4 => {
                without_identification_at(&mut bytes, meta.l3.into());
            }
            _ => {}
        }
        Outcome { meta: format!("{meta:?}"), bytes, chained }
    }

    fn counters(&self) -> Vec<[u64; 4]> {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.node.counters[0].interfaces;
        counters
            .iter()
            .take(24)
            .map(|of| [&of.rx_packets, &of.rx_bytes, &of.tx_packets, &of.tx_bytes].map(read))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn plain_packets_fare_as_by_the_stages(
        frames in prop::collection::vec(sent(), 1..=BURST),
        again in prop::bool::weighted(0.1),
    ) {
        let pass = if again { Pass::Again } else { Pass::First };
        let (mut short, mut stages) = (Gateway::new(), Gateway::new());
        // Again, for by then those of zones have sessions.
        for _ in 0..2 {
            let (got, wanted) = (short.run::<true>(&frames, pass), stages.run::<false>(&frames, pass));
            for ((got, wanted), sent) in got.iter().zip(&wanted).zip(&frames) {
                prop_assert_eq!(got, wanted, "{:?}", sent);
            }
        }
        prop_assert_eq!(short.counters(), stages.counters());
    }
}

/// A datagram of no peculiarity.
fn usual() -> Sent {
    Sent {
        tunnel: None,
        tags: vec![],
        src: [10, 0, 1, 10],
        dst: [203, 0, 113, 9],
        ttl: 64,
        flags_and_offset: 0x4000,
        protocol: 17,
        payload: 18,
        padding: 0,
        options: false,
        wrong_checksum: false,
        over: vec![],
        cut: None,
        segment: None,
    }
}

/// The comparison above is of two different ways.
#[test]
fn usual_packets_are_plain() {
    let usual = usual();
    let tagged = Sent { tags: vec![100], ..usual.clone() };
    let connected = Sent { dst: [10, 0, 5, 3], ..usual.clone() };
    let into = Sent { dst: [100, 64, 3, 9], ..usual.clone() };
    let out_of = Sent { tunnel: Some(([10, 0, 1, 1], 77, 0, 0)), ..usual.clone() };
    let from_bridge = Sent { tags: vec![105], ..usual.clone() };
    let into_bridge = Sent { dst: [100, 64, 4, 9], ..usual.clone() };
    let through_bridge =
        Sent { dst: [100, 64, 4, 130], tunnel: Some(([10, 0, 1, 1], 81, 0, 0)), ..usual.clone() };
    let through = Sent { tags: vec![100], tunnel: Some(([10, 0, 2, 1], 78, 0, 0)), ..usual.clone() };
    let mut gateway = Gateway::new();
    let tables = gateway.node.tables.load_full();
    let mut burst = Burst::new();
    let to_be_sent =
        [&usual, &tagged, &connected, &into, &out_of, &from_bridge, &into_bridge, &through_bridge, &through];
    for sent in to_be_sent {
        let frame = gateway.pool.take_filled(&frame(sent)).expect("a free frame");
        burst.push(Packet { frame, meta: Meta::FRESH });
    }
    let cx = Context { ingress: Ingress::Port(0), ..gateway.node.context(0, &tables, Nanos::from_secs(1)) };
    let mut routed = super::Routed::default();
    let mut lookups = flow::Lookups::default();
    let plain = super::look(&mut burst, 0, &cx, &gateway.flows, &mut routed, &mut lookups);
    assert_eq!(plain.all, 0b1_1111_1111);
    // The last is of another VRF.
    assert_eq!(super::send(&mut burst, &routed, &cx).sent, 0b1111_1111);
    assert!(burst[..8].iter().all(|packet| packet.meta.verdict == Verdict::Forward));
    burst.drain(..).for_each(|packet| gateway.pool.put(packet.frame));
}

/// Of a session as well, once it is open.
#[test]
fn usual_packets_of_sessions_are_plain() {
    let usual = Sent { tags: vec![102], flags_and_offset: 0x4000, ..usual() };
    let mut gateway = Gateway::new();
    let first = gateway.run::<true>(std::slice::from_ref(&usual), Pass::First);
    assert!(first[0].meta.contains("Forward"), "{first:?}");
    let tables = gateway.node.tables.load_full();
    let cx = Context { ingress: Ingress::Port(0), ..gateway.node.context(0, &tables, Nanos::from_secs(1)) };
    let mut burst = Burst::new();
    let frame = gateway.pool.take_filled(&frame(&usual)).expect("a free frame");
    burst.push(Packet { frame, meta: Meta::FRESH });
    let (mut routed, mut lookups) = (super::Routed::default(), flow::Lookups::default());
    let plain = super::look(&mut burst, 0, &cx, &gateway.flows, &mut routed, &mut lookups);
    assert_eq!(plain.stateful, 1);
    assert_eq!(flow::run(&mut burst, &cx, &mut gateway.flows, &mut lookups, plain.stateful), 1);
    assert_eq!(burst[0].frame.bytes(), first[0].bytes);
    burst.drain(..).for_each(|packet| gateway.pool.put(packet.frame));
}
