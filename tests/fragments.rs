//! Fragments between zones through the worker loop: what leaves is put together again as a receiver would, and must
//! be the datagram that came.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use softgate::config::Config;
use softgate::flow::Capacity;
use softgate::flow::fragments::{MAX_WAITING_PER_SOURCE, TIMEOUT};
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::packet::checksum;
use softgate::replay;
use softgate::telemetry::Totals;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

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
mtu = 9000
addresses = ["10.0.1.1/24", "2001:db8:1::1/64"]
[[interface]]
name = "wan"
port = "wan"
zone = "outside"
mac = "02:00:00:00:00:02"
addresses = ["198.51.100.2/24", "2001:db8:2::1/64"]
[[neighbour]]
interface = "lan"
address = "10.0.1.10"
mac = "02:00:00:00:01:10"
[[neighbour]]
interface = "lan"
address = "10.0.1.11"
mac = "02:00:00:00:01:11"
[[neighbour]]
interface = "lan"
address = "2001:db8:1::10"
mac = "02:00:00:00:01:10"
[[neighbour]]
interface = "wan"
address = "198.51.100.9"
mac = "02:00:00:00:02:09"
[[neighbour]]
interface = "wan"
address = "2001:db8:2::9"
mac = "02:00:00:00:02:09"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[nat.source]]
name = "internet"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["203.0.113.0/30"]
"#;

const LAN: u16 = 0;
const WAN: u16 = 1;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
const OTHER_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const HOST_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const SERVER_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9);
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

type Kept = Arc<Mutex<Vec<Vec<u8>>>>;

/// A gateway of one worker with its two ports.
struct Gate {
    node: Arc<Node>,
    worker: Option<Worker>,
    memory: Arc<PacketMemory>,
    now: Nanos,
}

impl Gate {
    fn new() -> Gate {
        Gate::with_frames(4096)
    }

    fn with_frames(frames: usize) -> Gate {
        let config = Config::parse(CONFIG, "gw.toml").expect("the config");
        let (_, compiler) = replay::compile(&config, 1, false).expect("tables");
        let node = Node::new(&compiler, 1, compiler.interfaces.len(), Capacity::NONE);
        let (memory, mut pools) = PacketMemory::new(1, frames, ChunkSize::Bytes2048).expect("memory");
        let worker = Worker::new(0, &node, pools.remove(0));
        Gate { node, worker: Some(worker), memory, now: Nanos::from_secs(100) }
    }

    /// Sends frames in at a port; what comes out at the other.
    fn send(&mut self, port: u16, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let [lan, wan] = self.exchange(port, frames);
        if port == LAN { wan } else { lan }
    }

    /// Sends frames in at a port; what comes out at both.
    fn exchange(&mut self, port: u16, frames: &[Vec<u8>]) -> [Vec<Vec<u8>>; 2] {
        let worker = self.worker.as_mut().expect("it runs");
        let mut template = Template::default();
        frames.iter().for_each(|frame| template.push(frame));
        let kept = [Kept::default(), Kept::default()];
        let template = Arc::new(template);
        for (slot, kept) in kept.iter().enumerate() {
            let input = if slot == usize::from(port) { Arc::clone(&template) } else { Arc::default() };
            let io = MemoryPort::new(input, false, Sink::Keep(Arc::clone(kept)));
            worker.attach(slot as u16, 0, Box::new(io));
        }
        while worker.turn(self.now) {}
        worker.detach(LAN, 0);
        worker.detach(WAN, 0);
        kept.map(|kept| std::mem::take(&mut *kept.lock().expect("no holder panics")))
    }

    /// Lets time go by.
    fn wait(&mut self, seconds: u64) {
        self.now = Nanos(self.now.0 + seconds * 1_000_000_000);
        while self.worker.as_mut().expect("it runs").turn(self.now) {}
    }

    fn drops(&self) -> Vec<(&'static str, u64)> {
        let totals = Totals::of(self.node.counters.iter().map(|counters| &**counters));
        totals.drops.iter().map(|(reason, count)| (reason.name(), *count)).collect()
    }

    /// Stops: every frame has come home, and these were lost.
    fn end(mut self, drops: &[(&str, u64)]) {
        self.worker.take().expect("it runs").stop();
        assert_eq!(self.memory.leaked(), 0);
        assert_eq!(self.drops(), drops);
    }
}

/// A datagram: an upper-layer message with its right checksum.
#[derive(Clone, Debug)]
struct Datagram {
    ends: Ends,
    id: u32,
    protocol: u8,
    message: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Ends {
    fn is_v4(&self) -> bool {
        matches!(self, Ends::V4(..))
    }

    fn pseudo(&self, protocol: u8, len: usize) -> u64 {
        match self {
            Ends::V4(..) if protocol == ICMP => 0,
            Ends::V4(src, dst) => checksum::pseudo_v4(src.octets(), dst.octets(), protocol, len),
            Ends::V6(src, dst) => checksum::pseudo_v6(&src.octets(), &dst.octets(), protocol, len),
        }
    }
}

fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

impl Datagram {
    fn new(ends: Ends, id: u32, protocol: u8, mut message: Vec<u8>) -> Datagram {
        let at = checksum_at(protocol);
        let sum = !checksum::fold(checksum::add(ends.pseudo(protocol, message.len()), &message));
        message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Datagram { ends, id, protocol, message }
    }

    fn udp(ends: Ends, id: u32, ports: (u16, u16), payload: usize) -> Datagram {
        let mut message =
            [ports.0.to_be_bytes(), ports.1.to_be_bytes(), (8 + payload as u16).to_be_bytes(), [0; 2]]
                .concat();
        message.extend((0..payload).map(|i| (i / 8 * 31 + i + id as usize) as u8));
        Datagram::new(ends, id, UDP, message)
    }

    fn tcp(
        ends: Ends,
        id: u32,
        ports: (u16, u16),
        flags: u8,
        numbers: (u32, u32),
        payload: usize,
    ) -> Datagram {
        let mut message = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        message.extend(numbers.0.to_be_bytes());
        message.extend(numbers.1.to_be_bytes());
        message.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        message.extend((0..payload).map(|i| i as u8));
        Datagram::new(ends, id, TCP, message)
    }

    fn echo(ends: Ends, id: u32, kind: u8, identifier: u16, payload: usize) -> Datagram {
        let mut message = vec![kind, 0, 0, 0];
        message.extend(identifier.to_be_bytes());
        message.extend([0, 1]);
        message.extend((0..payload).map(|i| i as u8));
        let protocol = if matches!(ends, Ends::V4(..)) { ICMP } else { ICMPV6 };
        Datagram::new(ends, id, protocol, message)
    }

    fn has_right_checksum(&self) -> bool {
        let pseudo = self.ends.pseudo(self.protocol, self.message.len());
        checksum::fold(checksum::add(pseudo, &self.message)) == 0xffff
    }

    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.message[at], self.message[at + 1]])
    }

    /// The bytes from `from` to `to`, as a frame to `port`.
    fn piece(&self, port: u16, from: usize, to: usize) -> Vec<u8> {
        self.forged(port, from, to, to < self.message.len())
    }

    fn forged(&self, port: u16, from: usize, to: usize, more: bool) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1 + port as u8, 2, 0, 0, 0, 0, 0x99];
        let bytes = &self.message[from.min(self.message.len())..to.min(self.message.len())];
        match self.ends {
            Ends::V4(src, dst) => {
                let word = (from / 8) as u16 | u16::from(more) << 13;
                let mut header = vec![0x45, 0];
                header.extend((20 + bytes.len() as u16).to_be_bytes());
                header.extend((self.id as u16).to_be_bytes());
                header.extend(word.to_be_bytes());
                header.extend([64, self.protocol, 0, 0]);
                header.extend(src.octets());
                header.extend(dst.octets());
                let sum = checksum::of(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend([0x08, 0x00]);
                frame.extend(header);
            }
            Ends::V6(src, dst) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((8 + bytes.len() as u16).to_be_bytes());
                frame.extend([44, 64]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                frame.extend([self.protocol, 0]);
                frame.extend((from as u16 | u16::from(more)).to_be_bytes());
                frame.extend(self.id.to_be_bytes());
            }
        }
        frame.extend(bytes);
        frame
    }

    /// All of it, in fragments of `size` bytes.
    fn cut(&self, port: u16, size: usize) -> Vec<Vec<u8>> {
        let len = self.message.len();
        (0..len).step_by(size).map(|from| self.piece(port, from, (from + size).min(len))).collect()
    }
}

/// A fragment as a receiver sees it.
struct Seen {
    ends: Ends,
    id: u32,
    protocol: u8,
    start: usize,
    more: bool,
    bytes: Vec<u8>,
}

fn see(frame: &[u8]) -> Seen {
    let l3 = &frame[14..];
    let word = |at: usize| u16::from_be_bytes([l3[at], l3[at + 1]]);
    if l3[0] >> 4 == 4 {
        assert!(checksum::is_valid(&l3[..20]), "the header's checksum");
        assert_eq!(usize::from(word(2)), l3.len());
        assert_eq!(l3[8], 63);
        let addr = |at: usize| Ipv4Addr::new(l3[at], l3[at + 1], l3[at + 2], l3[at + 3]);
        return Seen {
            ends: Ends::V4(addr(12), addr(16)),
            id: word(4).into(),
            protocol: l3[9],
            start: usize::from(word(6) & 0x1fff) * 8,
            more: word(6) & 0x2000 != 0,
            bytes: l3[20..].to_vec(),
        };
    }
    let addr = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&l3[at..at + 16]).expect("16 bytes"));
    assert_eq!((l3[6], l3[7]), (44, 63));
    Seen {
        ends: Ends::V6(addr(8), addr(24)),
        id: u32::from_be_bytes([l3[44], l3[45], l3[46], l3[47]]),
        protocol: l3[40],
        start: usize::from(word(42) & 0xfff8),
        more: word(42) & 1 != 0,
        bytes: l3[48..].to_vec(),
    }
}

/// Puts together what came out: each datagram must be whole.
fn together(frames: &[Vec<u8>]) -> Vec<Datagram> {
    let mut parts: BTreeMap<(String, u32), Vec<Seen>> = BTreeMap::new();
    let mut order = Vec::new();
    for seen in frames.iter().map(|frame| see(frame)) {
        let key = (format!("{:?} {}", seen.ends, seen.protocol), seen.id);
        if !parts.contains_key(&key) {
            order.push(key.clone());
        }
        parts.entry(key).or_default().push(seen);
    }
    let whole = |key: &(String, u32)| {
        let seen = parts.get_mut(key).expect("it was put there");
        seen.sort_by_key(|seen| seen.start);
        let mut message = Vec::new();
        for part in seen.iter() {
            assert_eq!(part.start, message.len(), "a gap or an overlap");
            message.extend(&part.bytes);
        }
        let last = seen.last().expect("one at least");
        assert!(!last.more, "the end is missing");
        Datagram { ends: last.ends, id: last.id, protocol: last.protocol, message }
    };
    order.iter().map(whole).collect()
}

fn starts(frames: &[Vec<u8>]) -> Vec<usize> {
    frames.iter().map(|frame| see(frame).start).collect()
}

const V4: Ends = Ends::V4(HOST, SERVER);
const V6: Ends = Ends::V6(HOST_6, SERVER_6);

#[test]
fn in_any_order_the_datagram_arrives_whole() {
    for ends in [V4, V6] {
        let datagram = Datagram::udp(ends, 7, (4000, 53), 3000);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut gate = Gate::new();
            let pieces = datagram.cut(LAN, 1200);
            let frames: Vec<_> = order.iter().map(|index| pieces[*index].clone()).collect();
            let out = together(&gate.send(LAN, &frames));
            assert_eq!(out.len(), 1, "{order:?}");
            assert!(out[0].has_right_checksum(), "{order:?}");
            assert_eq!(out[0].message[8..], datagram.message[8..]);
            if let (Ends::V4(src, dst), Ends::V4(..)) = (out[0].ends, ends) {
                assert_ne!(src, HOST, "behind the pool");
                assert_eq!(dst, SERVER);
            } else {
                assert_eq!(out[0].ends, ends);
                assert_eq!(out[0].message, datagram.message);
            }
            gate.end(&[]);
        }
    }
}

#[test]
fn what_waited_leaves_behind_the_first_in_the_order_it_came() {
    let mut gate = Gate::new();
    let pieces = Datagram::udp(V4, 7, (4000, 53), 3992).cut(LAN, 800);
    let held = [4, 1, 3, 2].map(|index: usize| pieces[index].clone());
    assert!(gate.send(LAN, &held).is_empty());
    assert_eq!(starts(&gate.send(LAN, &pieces[..1])), [0, 3200, 800, 2400, 1600]);
    gate.end(&[]);
}

#[test]
fn replies_in_fragments_find_their_way_back() {
    for ends in [V4, V6] {
        let mut gate = Gate::new();
        let out = together(&gate.send(LAN, &Datagram::udp(ends, 7, (4000, 53), 2000).cut(LAN, 1200)));
        let back = match out[0].ends {
            Ends::V4(src, dst) => Ends::V4(dst, src),
            Ends::V6(src, dst) => Ends::V6(dst, src),
        };
        let reply = Datagram::udp(back, 99, (53, out[0].port(0)), 2500);
        let mut pieces = reply.cut(WAN, 1200);
        pieces.reverse();
        let answer = together(&gate.send(WAN, &pieces));
        assert_eq!(answer.len(), 1);
        assert!(answer[0].has_right_checksum());
        assert_eq!((answer[0].port(0), answer[0].port(2)), (53, 4000));
        assert_eq!(answer[0].message[8..], reply.message[8..]);
        gate.end(&[]);
    }
}

/// RFC 5508: the identifier is in the first fragment.
#[test]
fn echo_in_fragments_and_its_reply() {
    for (ends, request, reply) in [(V4, 8, 0), (V6, 128, 129)] {
        let mut gate = Gate::new();
        let mut pieces = Datagram::echo(ends, 7, request, 0x1234, 2000).cut(LAN, 1200);
        pieces.reverse();
        let out = together(&gate.send(LAN, &pieces));
        assert!(out[0].has_right_checksum());
        let back = match out[0].ends {
            Ends::V4(src, dst) => Ends::V4(dst, src),
            Ends::V6(src, dst) => Ends::V6(dst, src),
        };
        let pieces = Datagram::echo(back, 8, reply, out[0].port(4), 2000).cut(WAN, 1200);
        let answer = together(&gate.send(WAN, &pieces));
        assert!(answer[0].has_right_checksum());
        assert_eq!(answer[0].port(4), 0x1234);
        gate.end(&[]);
    }
}

/// RFC 768: no checksum stays no checksum.
#[test]
fn a_udp_checksum_of_zero_stays() {
    let mut gate = Gate::new();
    let mut datagram = Datagram::udp(V4, 7, (4000, 53), 2000);
    datagram.message[6..8].fill(0);
    let out = together(&gate.send(LAN, &datagram.cut(LAN, 1200)));
    assert_eq!(out[0].port(6), 0);
    assert_eq!(out[0].message[8..], datagram.message[8..]);
    gate.end(&[]);
}

/// RFC 6864: behind one address their identifications must not meet.
#[test]
fn two_hosts_with_the_same_identification_do_not_mix() {
    let mut gate = Gate::new();
    let one = Datagram::udp(V4, 7, (4000, 53), 2000);
    let other = Datagram::udp(Ends::V4(OTHER_HOST, SERVER), 7, (4000, 53), 2300);
    let frames: Vec<_> =
        one.cut(LAN, 1200).into_iter().zip(other.cut(LAN, 1200)).flat_map(|(a, b)| [a, b]).collect();
    let out = gate.send(LAN, &frames);
    let ids: std::collections::BTreeSet<_> = out.iter().map(|frame| see(frame).id).collect();
    assert_eq!(ids.len(), 2);
    assert!(out.iter().all(|frame| see(frame).start == 0 || see(frame).bytes.len() < 1300));
    for (sent, datagram) in together(&out).iter().zip([one, other]) {
        assert!(sent.has_right_checksum());
        assert_eq!(sent.message[8..], datagram.message[8..]);
    }
    gate.end(&[]);
}

#[test]
fn overlaps_cost_the_whole_datagram() {
    for ends in [V4, V6] {
        let mut gate = Gate::new();
        let datagram = Datagram::udp(ends, 7, (4000, 53), 2992);
        // Held ones go with it, and what comes later.
        let frames = [
            datagram.piece(LAN, 2000, 3000),
            datagram.piece(LAN, 1992, 2400),
            datagram.piece(LAN, 0, 1000),
            datagram.piece(LAN, 1000, 2000),
        ];
        assert!(gate.send(LAN, &frames).is_empty());
        assert_eq!(gate.drops(), [("fragment-overlap", 4)]);
        gate.wait(TIMEOUT.as_secs());
        // Its time is over: the same identification is a new datagram.
        assert_eq!(together(&gate.send(LAN, &datagram.cut(LAN, 1200))).len(), 1);
        gate.end(&[("fragment-overlap", 4)]);
    }
}

#[test]
fn a_second_beginning_with_other_ports_is_an_overlap() {
    let mut gate = Gate::new();
    let one = Datagram::udp(V4, 7, (4000, 53), 2000);
    let two = Datagram::udp(V4, 7, (4000, 22), 2000);
    assert_eq!(gate.send(LAN, &[one.piece(LAN, 0, 1200), two.piece(LAN, 0, 1200)]).len(), 1);
    assert!(gate.send(LAN, &[one.piece(LAN, 1200, 2008)]).is_empty());
    gate.end(&[("fragment-overlap", 2)]);
}

#[test]
fn duplicates_go_the_same_way() {
    let mut gate = Gate::new();
    let pieces = Datagram::udp(V4, 7, (4000, 53), 3000).cut(LAN, 1200);
    let frames = [1, 1, 0, 0, 1, 2].map(|index: usize| pieces[index].clone());
    let out = gate.send(LAN, &frames);
    assert_eq!(starts(&out), [0, 0, 1200, 2400, 1200, 1200]);
    assert!(out.iter().all(|frame| see(frame).id == see(&out[0]).id));
    gate.end(&[]);
}

/// RFC 1858, RFC 3128.
#[test]
fn tiny_fragments_cost_the_whole_datagram() {
    let tcp = Datagram::tcp(V4, 7, (4000, 80), 2, (1, 0), 100);
    let mut gate = Gate::new();
    assert!(gate.send(LAN, &[tcp.piece(LAN, 0, 16), tcp.piece(LAN, 16, 120)]).is_empty());
    gate.end(&[("fragment-tiny", 2)]);
    let mut gate = Gate::new();
    assert!(gate.send(LAN, &[tcp.piece(LAN, 8, 120), tcp.piece(LAN, 0, 64)]).is_empty());
    gate.end(&[("fragment-tiny", 2)]);
    let tcp = Datagram::tcp(V6, 7, (4000, 80), 2, (1, 0), 100);
    let mut gate = Gate::new();
    assert!(gate.send(LAN, &[tcp.piece(LAN, 0, 16), tcp.piece(LAN, 16, 120)]).is_empty());
    gate.end(&[("fragment-tiny", 2)]);
    // RFC 6946: all in one fragment.
    let mut gate = Gate::new();
    assert_eq!(gate.send(LAN, &[tcp.piece(LAN, 0, 120)]).len(), 1);
    gate.end(&[]);
}

#[test]
fn fragments_that_cannot_be() {
    let datagram = Datagram::udp(V4, 7, (4000, 53), 65_000);
    let mut gate = Gate::new();
    // Beyond 65,535 bytes.
    let mut frame = datagram.forged(LAN, 64_000, 65_000, false);
    frame[20..22].copy_from_slice(&(65_528u16 / 8).to_be_bytes());
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    assert!(gate.send(LAN, &[frame]).is_empty());
    // No multiple of 8.
    let other = Datagram { id: 8, ..datagram.clone() };
    assert!(gate.send(LAN, &[other.forged(LAN, 0, 1001, true)]).is_empty());
    // Nothing in it.
    let other = Datagram { id: 9, ..datagram };
    assert!(gate.send(LAN, &[other.forged(LAN, 1000, 1000, false)]).is_empty());
    gate.end(&[("fragment-invalid", 3)]);
}

#[test]
fn a_datagram_of_too_many_fragments() {
    let mut gate = Gate::new();
    let datagram = Datagram::udp(V4, 7, (4000, 53), 66 * 16);
    let frames = datagram.cut(LAN, 16);
    assert_eq!(gate.send(LAN, &frames).len(), 64);
    gate.end(&[("fragment-too-many", frames.len() as u64 - 64)]);
}

#[test]
fn a_refused_first_fragment_takes_the_others_with_it() {
    let mut gate = Gate::new();
    let nowhere = Ends::V4(HOST, Ipv4Addr::new(192, 0, 2, 1));
    let pieces = Datagram::udp(nowhere, 7, (4000, 53), 3000).cut(LAN, 1200);
    let frames = [1, 0, 2].map(|index: usize| pieces[index].clone());
    assert!(gate.send(LAN, &frames).is_empty());
    gate.end(&[("no-route", 1), ("fragment-untracked", 2)]);
}

#[test]
fn without_its_first_fragment_a_datagram_ages() {
    let mut gate = Gate::new();
    let pieces = Datagram::udp(V4, 7, (4000, 53), 3000).cut(LAN, 1200);
    assert!(gate.send(LAN, &pieces[1..]).is_empty());
    gate.wait(TIMEOUT.as_secs() - 1);
    assert_eq!(gate.drops(), []);
    gate.wait(1);
    assert_eq!(gate.drops(), [("fragment-timeout", 2)]);
    gate.end(&[("fragment-timeout", 2)]);
}

#[test]
fn what_still_waits_comes_home_when_the_gateway_stops() {
    let mut gate = Gate::new();
    let pieces = Datagram::udp(V4, 7, (4000, 53), 3000).cut(LAN, 1200);
    assert!(gate.send(LAN, &pieces[1..]).is_empty());
    gate.end(&[("shutdown", 2)]);
}

/// RFC 4787 REQ-14a: a flood without beginnings costs its source, and nobody else.
#[test]
fn a_flood_of_later_fragments_leaves_room_for_others() {
    let mut gate = Gate::with_frames(1024);
    let flood: Vec<_> =
        (0..10_000).map(|id| Datagram::udp(V4, id, (4000, 53), 3000).piece(LAN, 1200, 2400)).collect();
    assert!(gate.send(LAN, &flood).is_empty());
    let other = Datagram::udp(Ends::V4(OTHER_HOST, SERVER), 7, (4000, 53), 3000);
    let mut pieces = other.cut(LAN, 1200);
    pieces.reverse();
    assert_eq!(together(&gate.send(LAN, &pieces)).len(), 1);
    // 1,024 / 8 frames may wait, a quarter of them of one source.
    let (held, datagrams) = (1024 / 8 / 4, MAX_WAITING_PER_SOURCE as u64);
    let full = [("fragment-table-full", 10_000 - datagrams), ("fragment-queue-full", datagrams - held)];
    assert_eq!(gate.drops(), full);
    gate.end(&[("shutdown", held), full[0], full[1]]);
}

/// Its peer acknowledges all of it, also what came in later fragments.
#[test]
fn a_tcp_segment_in_fragments_counts_whole() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let ports = (4000, 80);
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut gate = Gate::new();
        let out = gate.send(LAN, &[Datagram::tcp(V6, 1, ports, SYN, (100, 0), 0).piece(LAN, 0, 20)]);
        assert_eq!(out.len(), 1);
        let back = Ends::V6(SERVER_6, HOST_6);
        let reply =
            |numbers, flags, id| Datagram::tcp(back, id, (80, 4000), flags, numbers, 0).piece(WAN, 0, 20);
        assert_eq!(gate.send(WAN, &[reply((500, 101), SYN | ACK, 2)]).len(), 1);
        assert_eq!(
            gate.send(LAN, &[Datagram::tcp(V6, 2, ports, ACK, (101, 501), 0).piece(LAN, 0, 20)]).len(),
            1
        );
        let pieces = Datagram::tcp(V6, 3, ports, ACK, (101, 501), 3000).cut(LAN, 1200);
        let frames = order.map(|index: usize| pieces[index].clone());
        assert_eq!(together(&gate.send(LAN, &frames)).len(), 1);
        assert_eq!(gate.send(WAN, &[reply((501, 3101), ACK, 3)]).len(), 1);
        assert!(gate.send(WAN, &[reply((501, 3102), ACK, 4)]).is_empty(), "never sent");
        gate.end(&[("tcp-out-of-window", 1)]);
    }
}

/// Packets that waited for their neighbour come by again, when all of their datagram has gone on.
#[test]
fn fragments_wait_for_their_neighbour() {
    for order in [[0, 1], [1, 0]] {
        let mut gate = Gate::new();
        let unknown = Ends::V4(HOST, Ipv4Addr::new(198, 51, 100, 77));
        let datagram = Datagram::udp(unknown, 7, (4000, 53), 2000);
        let pieces = datagram.cut(LAN, 1200);
        let asked = gate.send(LAN, &order.map(|index: usize| pieces[index].clone()));
        assert_eq!(asked.len(), 1, "who has 198.51.100.77?");
        assert_eq!(asked[0][12..14], [0x08, 0x06]);
        let mut answer = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0x77, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];
        answer.extend([2, 0, 0, 0, 0, 0x77, 198, 51, 100, 77, 2, 0, 0, 0, 0, 2, 198, 51, 100, 2]);
        let [_, wan] = gate.exchange(WAN, &[answer]);
        let out = together(&wan);
        assert_eq!(out.len(), 1);
        assert!(out[0].has_right_checksum());
        assert_eq!(out[0].message[8..], datagram.message[8..]);
        gate.end(&[]);
    }
}

/// A packet that we cut ourselves, from addresses that are ours.
#[test]
fn what_we_cut_behind_the_pool_gets_an_identification_of_ours() {
    let mut gate = Gate::new();
    let one = Datagram::udp(V4, 7, (4000, 53), 3000);
    let other = Datagram::udp(Ends::V4(OTHER_HOST, SERVER), 7, (4000, 53), 3500);
    let out = gate.send(LAN, &[one.piece(LAN, 0, 3008), other.piece(LAN, 0, 3508)]);
    assert_eq!(out.len(), 6);
    let sent = together(&out);
    assert_eq!(sent.len(), 2);
    for (sent, datagram) in sent.iter().zip([one, other]) {
        assert!(sent.has_right_checksum());
        assert_eq!(sent.message[8..], datagram.message[8..]);
    }
    gate.end(&[]);
}

/// Time exceeded in reassembly, quoting the first fragment as the receiver saw it.
#[test]
fn errors_about_fragments_find_their_way_back() {
    for (ends, kind, header_len) in [(V4, 11, 20), (V6, 3, 48)] {
        let mut gate = Gate::new();
        let out = gate.send(LAN, &Datagram::udp(ends, 7, (4000, 53), 2000).cut(LAN, 1200));
        let quoted = &out[0][14..14 + header_len + 8];
        let back = match see(&out[0]).ends {
            Ends::V4(src, dst) => Ends::V4(dst, src),
            Ends::V6(src, dst) => Ends::V6(dst, src),
        };
        let protocol = if kind == 11 { ICMP } else { ICMPV6 };
        let error = Datagram::new(back, 8, protocol, [&[kind, 1, 0, 0, 0, 0, 0, 0], quoted].concat());
        let answer = gate.send(WAN, &[error.piece(WAN, 0, error.message.len())]);
        if let Ends::V4(..) = ends {
            let seen = see(&answer[0]);
            assert_eq!(seen.ends, Ends::V4(SERVER, HOST));
            assert!(checksum::is_valid(&seen.bytes));
            assert!(checksum::is_valid(&seen.bytes[8..28]));
            assert_eq!(seen.bytes[20..24], HOST.octets());
            assert_eq!(seen.bytes[28..30], 4000u16.to_be_bytes());
        } else {
            assert_eq!(see(&answer[0]).ends, back);
            assert_eq!(see(&answer[0]).bytes, error.message);
        }
        gate.end(&[]);
    }
}

/// Fragments of many datagrams, in any order, some lost and some twice.
fn any_traffic() -> impl Strategy<Value = (Vec<Datagram>, Vec<(usize, usize)>)> {
    let one = (any::<bool>(), any::<bool>(), 1000..5000usize);
    let datagrams = prop::collection::vec(one, 1..12).prop_map(|all| {
        let udp = |(id, (is_v4, is_other, payload))| {
            let ends = match (is_v4, is_other) {
                (true, true) => Ends::V4(OTHER_HOST, SERVER),
                (true, false) => V4,
                (false, _) => V6,
            };
            Datagram::udp(ends, id as u32, (4000 + id as u16, 53), payload)
        };
        all.into_iter().enumerate().map(udp).collect::<Vec<_>>()
    });
    let with_pieces = datagrams.prop_flat_map(|datagrams| {
        let count = |datagram: &Datagram| datagram.message.len().div_ceil(SIZE);
        let pieces: Vec<(usize, usize)> = datagrams
            .iter()
            .enumerate()
            .flat_map(|(index, datagram)| (0..count(datagram)).map(move |piece| (index, piece)))
            .collect();
        let times = prop_oneof![1 => Just(0), 20 => Just(1), 1 => Just(2usize)];
        (Just(datagrams), Just(pieces.clone()), prop::collection::vec(times, pieces.len()))
    });
    let repeated = with_pieces.prop_map(|(datagrams, pieces, times)| {
        let copies =
            pieces.into_iter().zip(times).flat_map(|(piece, times)| std::iter::repeat_n(piece, times));
        (datagrams, copies.collect::<Vec<_>>())
    });
    repeated.prop_flat_map(|(datagrams, pieces)| (Just(datagrams), Just(pieces).prop_shuffle()))
}

/// Bytes of a fragment in [`any_traffic`].
const SIZE: usize = 800;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_fragment_leaves_or_is_counted((datagrams, pieces) in any_traffic()) {
        let mut gate = Gate::new();
        let cut: Vec<Vec<Vec<u8>>> = datagrams.iter().map(|datagram| datagram.cut(LAN, SIZE)).collect();
        let frames: Vec<_> = pieces.iter().map(|(index, piece)| cut[*index][*piece].clone()).collect();
        let mut out = Vec::new();
        for frames in frames.chunks(7) {
            out.extend(gate.send(LAN, frames));
        }
        gate.wait(TIMEOUT.as_secs());
        let lost: u64 = gate.drops().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(out.len() + lost as usize, frames.len());
        // What was sent whole, and once, has arrived whole: each payload begins with its own bytes.
        let mut by_id: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for frame in &out {
            let seen = see(frame);
            by_id.entry(format!("{:?} {}", seen.ends, seen.id)).or_default().push(frame.clone());
        }
        for (index, datagram) in datagrams.iter().enumerate() {
            let count = |piece| pieces.iter().filter(|sent| **sent == (index, piece)).count();
            if (0..cut[index].len()).any(|piece| count(piece) != 1) {
                continue;
            }
            let arrived = by_id.values().any(|frames| {
                let mut starts = starts(frames);
                starts.sort_unstable();
                let is_whole = starts == (0..cut[index].len()).map(|piece| piece * SIZE).collect::<Vec<_>>();
                let has_end = frames.iter().any(|frame| !see(frame).more);
                is_whole && has_end && see(&frames[0]).ends.is_v4() == datagram.ends.is_v4() && {
                    let whole = &together(frames)[0];
                    whole.has_right_checksum() && whole.message[8..] == datagram.message[8..]
                }
            });
            prop_assert!(arrived, "datagram {}", index);
        }
        let drops = gate.drops();
        gate.end(&drops);
    }
}
