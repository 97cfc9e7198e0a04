//! Whatever comes in on either side of NAT64 sessions, what leaves is whole, and right if that was.

use std::sync::Arc;

use proptest::prelude::*;

use crate::config::Config;
use crate::flow::Flows;
use crate::mem::{ChunkSize, FramePool, PacketMemory};
use crate::packet::view::{be16, protocol};
use crate::packet::{Burst, Ingress, Meta, Packet, Verdict, checksum};
use crate::pipeline::{Context, run};
use crate::replay;
use crate::time::Nanos;
use crate::worker::Node;

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
zone = "inside"
mac = "02:00:00:00:00:01"
addresses = ["2001:db8:1::1/64"]
[[interface]]
name = "wan"
port = "wan"
zone = "outside"
mac = "02:00:00:00:00:02"
addresses = ["198.51.100.1/24"]
[[neighbour]]
interface = "lan"
address = "2001:db8:1::10"
mac = "02:00:00:00:01:10"
[[neighbour]]
interface = "wan"
address = "198.51.100.20"
mac = "02:00:00:00:02:20"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[nat.nat64]]
name = "six"
prefix = "2001:db8:64::/96"
pool = "203.0.113.5"
"#;

const HOST: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const THERE: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0x64, 0, 0, 0, 0, 0, 0, 198, 51, 100, 20];
const SERVER: [u8; 4] = [198, 51, 100, 20];
const POOL: [u8; 4] = [203, 0, 113, 5];
const PORT: u16 = 40000;

/// One packet of a session.
#[derive(Clone, Debug)]
struct Sent {
    from_v4: bool,
    upper: Upper,
    payload: usize,
    /// An error about a packet that goes the other way: type, code, word.
    error: Option<(u8, u8, u32)>,
    keeps_whole: bool,
    over: Vec<(usize, u8)>,
    cut: Option<usize>,
    segment: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Upper {
    Udp,
    Tcp,
    Echo,
}

fn sent() -> impl Strategy<Value = Sent> {
    let upper = prop_oneof![Just(Upper::Udp), Just(Upper::Tcp), Just(Upper::Echo)];
    let error = prop_oneof![
        4 => Just(None),
        2 => (prop_oneof![Just(3u8), Just(11), Just(12), Just(1), Just(2), Just(4)], 0..16u8, any::<u32>()).prop_map(Some),
    ];
    let over = prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec((12..140usize, any::<u8>()), 1..4)];
    let payload = prop_oneof![6 => 0..80usize, 2 => 1180..1460usize];
    let rare = |range| prop::option::weighted(0.05, range);
    (any::<bool>(), upper, payload, error, any::<bool>(), over, rare(0..120usize), rare(90..200usize))
        .prop_map(|(from_v4, upper, payload, error, keeps_whole, over, cut, segment)| Sent {
            from_v4,
            upper,
            payload,
            error,
            keeps_whole,
            over,
            cut,
            segment,
        })
}

fn sum(src: &[u8], dst: &[u8], upper: u8, message: &[u8]) -> u16 {
    let pseudo = match upper {
        protocol::ICMP => 0,
        _ => checksum::add(checksum::add(u64::from(upper) + message.len() as u64, src), dst),
    };
    !checksum::fold(checksum::add(pseudo, message))
}

/// An IP packet of either family.
fn ip(v4: bool, from_host: bool, upper: u8, mut message: Vec<u8>, at: usize, keeps_whole: bool) -> Vec<u8> {
    let (host, there): (&[u8], &[u8]) = if v4 { (&POOL, &SERVER) } else { (&HOST, &THERE) };
    let (src, dst) = if from_host { (host, there) } else { (there, host) };
    // RFC 768: a computed 0 is sent as all ones.
    let total = match sum(src, dst, upper, &message) {
        0 if upper == protocol::UDP => 0xffff,
        total => total,
    };
    message[at..at + 2].copy_from_slice(&total.to_be_bytes());
    let len = message.len() as u16;
    let mut packet = Vec::new();
    if v4 {
        packet.extend([0x45, 0]);
        packet.extend((20 + len).to_be_bytes());
        packet.extend([0x12, 0x34, if keeps_whole { 0x40 } else { 0 }, 0, 64, upper, 0, 0]);
        packet.extend([src, dst].concat());
        let total = checksum::of(&packet);
        packet[10..12].copy_from_slice(&total.to_be_bytes());
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend([upper, 64]);
        packet.extend([src, dst].concat());
    }
    packet.extend(message);
    packet
}

/// A packet of a session, as its family knows it; `outside`: the host's port or identifier there.
fn data(sent: &Sent, v4: bool, from_host: bool, outside: u16) -> Vec<u8> {
    let host = if v4 { outside } else { PORT };
    let (upper, at, mut message) = match sent.upper {
        Upper::Echo => {
            let kind = match (v4, from_host) {
                (true, true) => 8,
                (true, false) => 0,
                (false, true) => 128,
                (false, false) => 129,
            };
            let mut message = vec![kind, 0, 0, 0];
            message.extend(host.to_be_bytes());
            message.extend([0, 1]);
            (if v4 { protocol::ICMP } else { protocol::ICMPV6 }, 2, message)
        }
        of => {
            let ports = if from_host { [host, 53] } else { [53, host] };
            let mut message = ports.map(u16::to_be_bytes).concat();
            if of == Upper::Udp {
                message.extend((8 + sent.payload as u16).to_be_bytes());
                message.extend([0, 0]);
            } else {
                message.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
            }
            let is_udp = of == Upper::Udp;
            (if is_udp { protocol::UDP } else { protocol::TCP }, if is_udp { 6 } else { 16 }, message)
        }
    };
    if sent.upper != Upper::Tcp {
        message.extend((0..sent.payload).map(|n| n as u8));
    }
    ip(v4, from_host, upper, message, at, sent.keeps_whole)
}

fn frame(sent: &Sent, outside: u16) -> Vec<u8> {
    let (v4, from_host) = (sent.from_v4, !sent.from_v4);
    let packet = match sent.error {
        None => data(sent, v4, from_host, outside),
        Some((kind, code, word)) => {
            let mut message = vec![kind, code, 0, 0];
            message.extend(word.to_be_bytes());
            message.extend(data(sent, v4, !from_host, outside));
            message.truncate(1200);
            ip(v4, from_host, if v4 { protocol::ICMP } else { protocol::ICMPV6 }, message, 2, true)
        }
    };
    let mut bytes = vec![2, 0, 0, 0, 0, if v4 { 2 } else { 1 }, 2, 0, 0, 0, 9, 9];
    bytes.extend(if v4 { [8, 0] } else { [0x86, 0xdd] });
    bytes.extend(packet);
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
    /// Ports or identifiers of UDP, TCP, echo outside.
    outside: [u16; 3],
}

impl Gateway {
    /// With one session of each kind.
    fn new() -> Gateway {
        let config = Config::parse(CONFIG, "crossing.toml").expect("the test's config");
        let (node, _compiler) = replay::compile(&config, 1, false).expect("it compiles");
        let (memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("packet memory");
        let flows = Flows::new(0, node.capacity, Arc::clone(&node.claims), None, Default::default());
        let flows = flows.expect("memory");
        let mut gateway = Gateway { node, flows, pool: pools.remove(0), _memory: memory, outside: [0; 3] };
        for upper in [Upper::Udp, Upper::Tcp, Upper::Echo] {
            let first = Sent {
                from_v4: false,
                upper,
                payload: 9,
                error: None,
                keeps_whole: true,
                over: vec![],
                cut: None,
                segment: None,
            };
            let (verdict, bytes) = gateway.run(&first);
            assert_eq!(verdict, Verdict::Forward);
            let at = if upper == Upper::Echo { 38 } else { 34 };
            gateway.outside[upper as usize] = be16(&bytes, at);
        }
        gateway
    }

    fn run(&mut self, sent: &Sent) -> (Verdict, Vec<u8>) {
        let tables = self.node.tables.load_full();
        let cx = Context {
            ingress: Ingress::Port(sent.from_v4.into()),
            ..self.node.context(0, &tables, Nanos::from_secs(1))
        };
        let bytes = frame(sent, self.outside[sent.upper as usize]);
        let first = sent.segment.unwrap_or(usize::MAX).min(bytes.len());
        let mut frame = self.pool.take_filled(&bytes[..first]).expect("a free frame");
        if first < bytes.len() {
            frame.append(self.pool.take_filled(&bytes[first..]).expect("a free frame"));
        }
        let mut burst = Burst::new();
        burst.push(Packet { frame, meta: Meta::FRESH });
        run(&mut burst, &cx, &mut self.flows);
        let Packet { frame, meta } = burst.remove(0);
        if meta.verdict == Verdict::Held {
            // It comes back when its time is over.
            return (meta.verdict, Vec::new());
        }
        let mut all = frame.bytes().to_vec();
        let mut at = frame.peek_next();
        while let Some(segment) = at {
            all.extend(segment.bytes());
            at = segment.peek_next();
        }
        if meta.verdict == Verdict::Forward {
            all.truncate(14 + usize::from(meta.ip_len));
        }
        self.pool.put(frame);
        (meta.verdict, all)
    }
}

/// The IP packet in a frame is all there, in the other family than it came.
fn check(bytes: &[u8], from_v4: bool, upper_is_right: bool) {
    let (kind, ip) = (be16(bytes, 12), &bytes[14..]);
    assert_eq!(kind, if from_v4 { 0x86dd } else { 0x0800 });
    let (src, dst, upper, message) = if from_v4 {
        assert_eq!(usize::from(be16(ip, 4)) + 40, ip.len(), "payload length");
        (&ip[8..24], &ip[24..40], ip[6], &ip[40..])
    } else {
        assert!(ip[0] == 0x45 && checksum::is_valid(&ip[..20]), "IPv4 header checksum");
        assert_eq!(usize::from(be16(ip, 2)), ip.len(), "total length");
        (&ip[12..16], &ip[16..20], ip[9], &ip[20..])
    };
    if upper_is_right {
        assert_eq!(sum(src, dst, upper, message), 0, "checksum of protocol {upper}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_leaves_is_whole(packets in prop::collection::vec(sent(), 1..20)) {
        let mut gateway = Gateway::new();
        for sent in &packets {
            let is_right = sent.over.is_empty() && sent.cut.is_none();
            let (verdict, bytes) = gateway.run(sent);
            // What is written over may be for the gateway, or begin something of one family.
            let crosses = bytes.len() > 54 && be16(&bytes, 12) == if sent.from_v4 { 0x86dd } else { 0x0800 };
            if verdict == Verdict::Forward && (is_right || crosses) {
                check(&bytes, sent.from_v4, is_right);
            }
            let is_usual = is_right && sent.error.is_none() && sent.upper != Upper::Tcp && sent.payload < 1000;
            prop_assert!(!is_usual || verdict == Verdict::Forward, "{:?}: {:?}", sent, verdict);
        }
    }
}
