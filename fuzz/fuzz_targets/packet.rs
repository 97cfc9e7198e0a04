//! Frames of any bytes through the shipped worker loop; afterwards the books must balance.
//!
//! Input: one byte chooses the gateway ([`CONFIGS`]), then records, each a received frame:
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: port; bits 1-3: time that passes before it ([`STEPS_MS`]); bits 4-7: [`mend`] |
//! | 1 | length of the bytes that follow (what is there, if the input ends) |
//! | 2 | padding behind them, in units of 40 bytes: 0 to 10,200 |
//! | 3.. | the frame from its first byte |
//!
//! At the end the clock runs until everything has come to rest and every neighbour is forgotten, so that
//! the next input finds the gateway as this one did. Then:
//! - no frame is missing: all are free again;
//! - no session is left;
//! - no neighbour is left but those of the config;
//! - received + originated + further fragments = sent + punted + dropped, and the interfaces' counters say the same;
//! - each frame sent was whole: an ARP request or answer, or an IP packet with lengths that fit the frame and
//!   the MTU, a TTL, and for IPv4 a right header checksum.
#![no_main]

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use libfuzzer_sys::fuzz_target;
use softgate::config::Config;
use softgate::flow::Capacity;
use softgate::io::{Port, PortStats};
use softgate::mem::{ChunkSize, Frame, FramePool, Frames, PacketMemory};
use softgate::neighbours::NeighbourTable;
use softgate::packet::hash::Key;
use softgate::packet::{DropReason, Tags, checksum};
use softgate::tables::compile::{Compiler, MAX_INTERFACES};
use softgate::tables::meaning::{self, PortFacts};
use softgate::tables::{NO_INTERFACE, Tables};
use softgate::telemetry::Totals;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

/// Gateways to choose from, with their number of workers. With two, port 0 is served by worker 0 and port 1
/// by worker 1, so that every forwarded frame is handed over.
const CONFIGS: [(&str, usize); 9] = [
    (include_str!("../configs/plain.toml"), 1),
    (include_str!("../configs/vlan.toml"), 1),
    (include_str!("../configs/qinq.toml"), 1),
    (include_str!("../configs/ipv6.toml"), 1),
    (include_str!("../configs/source-check.toml"), 1),
    (include_str!("../configs/small-mtu.toml"), 1),
    (include_str!("../configs/plain.toml"), 2),
    (include_str!("../configs/zones.toml"), 1),
    (include_str!("../configs/zones.toml"), 2),
];

/// Frames per worker: few, so that inputs run out of them.
const FRAMES: usize = 64;
/// Of a worker.
const SESSIONS: u32 = 256;
/// Neighbours: more than one input can make. Each run sweeps over twice as many slots several times, which was
/// half its time with 128.
const NEIGHBOURS: usize = 32;
/// Most frames of one input.
const MAX_RECORDS: usize = 24;
/// Time before a frame: nothing, within limits of rates, retransmission, negative cache, reachable time, ageing.
const STEPS_MS: [u64; 8] = [0, 0, 1, 100, 1_001, 3_001, 31_000, 601_000];
/// Longer than anything is remembered (neighbours::FORGET_AFTER, and as long again for what came meanwhile).
const OBLIVION_MS: u64 = 700_000;
/// Turns until a gateway must have come to rest: a few per packet, solicitation and timer.
const MAX_TURNS: usize = 10_000;
/// Runs after which a gateway is taken down and made anew: its frames are counted once more, and its clock, which
/// a run puts forward by five hours at most, stays below the 2^32 ticks of 100 ms that sessions can count.
const RUNS_PER_GATEWAY: usize = 1 << 14;

/// One port's cable: what comes in and what went out.
#[derive(Default)]
struct Wire {
    bytes: Vec<u8>,
    frames: Vec<(usize, usize)>,
    next: usize,
    sent: u64,
    sent_bytes: u64,
    /// First segment and rest of a sent chain, in one piece.
    whole: Vec<u8>,
}

struct WirePort {
    port: u16,
    wire: Arc<Mutex<Wire>>,
    tables: Arc<Tables>,
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().expect("a panic ends the process")
}

impl Port for WirePort {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let wire = &mut *lock(&self.wire);
        let before = frames.len();
        while wire.next < wire.frames.len() && !frames.is_full() {
            let (start, len) = wire.frames[wire.next];
            let Some(frame) = pool.take_filled(&wire.bytes[start..][..len]) else { break };
            frames.push(frame);
            wire.next += 1;
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let wire = &mut *lock(&self.wire);
        let count = frames.len();
        for frame in frames.drain(..) {
            wire.sent += 1;
            wire.sent_bytes += frame.total_len() as u64;
            if frame.is_chained() {
                gather(&frame, &mut wire.whole);
                check_sent(&wire.whole, self.port, &self.tables);
            } else {
                check_sent(frame.bytes(), self.port, &self.tables);
            }
            pool.put(frame);
        }
        count
    }

    fn flush(&mut self, _pool: &mut FramePool) {}

    fn held(&self) -> usize {
        0
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> PortStats {
        PortStats::default()
    }

    fn close(self: Box<Self>, _pool: &mut FramePool) {}
}

fn gather(frame: &Frame, whole: &mut Vec<u8>) {
    whole.clear();
    let mut at = Some(frame);
    while let Some(segment) = at {
        assert!(!segment.is_empty(), "an empty segment cannot be sent");
        whole.extend_from_slice(segment.bytes());
        at = segment.peek_next();
    }
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

/// What leaves is whole.
fn check_sent(frame: &[u8], port: u16, tables: &Tables) {
    let (mut tags, mut l3) = ([0u16; 2], 14);
    for tag in &mut tags {
        if matches!(be16(frame, l3 - 2), 0x8100 | 0x88a8) {
            *tag = be16(frame, l3) as u16 & 0xfff;
            l3 += 4;
        }
    }
    let table = &tables.ports[usize::from(port)];
    let slot = match tags {
        [0, 0] => table.untagged,
        [outer, inner] => table.find(Tags { outer, inner }),
    };
    assert_ne!(slot, NO_INTERFACE, "sent with tags {tags:?} by port {port}, which has no such interface");
    let interface = tables.interface(slot);
    assert_eq!(frame[6..12], interface.mac.to_be_bytes()[2..], "sent with our MAC address");
    let ip = &frame[l3..];
    match be16(frame, l3 - 2) {
        0x0806 => assert_eq!(ip.len(), 28, "an ARP packet"),
        0x0800 => {
            let header_len = usize::from(ip[0] & 15) * 4;
            assert!(ip[0] >> 4 == 4 && header_len >= 20);
            assert_eq!(be16(ip, 2), ip.len(), "the IPv4 length is the frame's");
            assert!(checksum::is_valid(&ip[..header_len]), "the IPv4 header checksum");
            assert_ne!(ip[8], 0, "sent with TTL 0");
            assert!(ip.len() <= usize::from(interface.mtu_bytes), "{} bytes over the MTU", ip.len());
        }
        0x86dd => {
            assert_eq!(ip[0] >> 4, 6);
            assert_eq!(40 + be16(ip, 4), ip.len(), "the IPv6 length is the frame's");
            assert_ne!(ip[7], 0, "sent with hop limit 0");
            assert!(ip.len() <= usize::from(interface.mtu_bytes), "{} bytes over the MTU", ip.len());
        }
        other => panic!("sent a frame of EtherType {other:#06x}"),
    }
}

/// Lets bytes that are nearly right through the first checks, which random ones hardly ever pass.
mod mend {
    /// The gateway's MAC address as destination.
    pub const MAC: u8 = 0x10;
    /// IPv4 and IPv6 lengths as long as the frame.
    pub const LENGTH: u8 = 0x20;
    /// IPv4 header checksum.
    pub const CHECKSUM: u8 = 0x40;
    /// ICMP and ICMPv6 checksum, where it directly follows the IP header.
    pub const ICMP: u8 = 0x80;
}

fn mend(frame: &mut [u8], flags: u8) {
    if frame.len() < 14 + 20 {
        return;
    }
    if flags & mend::MAC != 0 {
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    }
    let mut l3 = 14;
    while matches!(be16(frame, l3 - 2), 0x8100 | 0x88a8) && l3 < 22 {
        l3 += 4;
    }
    let kind = be16(frame, l3 - 2);
    let ip = &mut frame[l3..];
    if kind == 0x0800 && ip.len() >= 20 {
        if flags & mend::LENGTH != 0 {
            let len = ip.len() as u16;
            ip[2..4].copy_from_slice(&len.to_be_bytes());
        }
        let header_len = usize::from(ip[0] & 15) * 4;
        if !(20..=ip.len()).contains(&header_len) {
            return;
        }
        if flags & mend::CHECKSUM != 0 {
            ip[10..12].fill(0);
            let sum = checksum::of(&ip[..header_len]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let end = be16(ip, 2).min(ip.len());
        if flags & mend::ICMP != 0 && ip[9] == 1 && end >= header_len + 8 {
            let message = &mut ip[header_len..end];
            message[2..4].fill(0);
            let sum = checksum::of(message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    } else if kind == 0x86dd && ip.len() >= 48 {
        if flags & mend::LENGTH != 0 {
            let len = (ip.len() - 40) as u16;
            ip[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let end = (40 + be16(ip, 4)).min(ip.len());
        if flags & mend::ICMP != 0 && ip[6] == 58 && end >= 48 {
            ip[42..44].fill(0);
            let address = |at: usize| *ip[at..].first_chunk::<16>().expect("40 bytes are there");
            let pseudo = checksum::pseudo_v6(&address(8), &address(24), 58, end - 40);
            let sum = !checksum::fold(checksum::add(pseudo, &ip[40..end]));
            ip[42..44].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

struct Gateway {
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    workers: Vec<Worker>,
    wires: [Arc<Mutex<Wire>>; 2],
    now: Nanos,
    runs: usize,
    /// Neighbours of the config.
    neighbours: usize,
    /// For its pins in the neighbour table.
    _compiler: Compiler,
}

impl Gateway {
    fn new(text: &str, count: usize) -> Gateway {
        let config = Config::parse(text, "fuzz.toml").expect("a config of ours");
        // As replay::compile, with a neighbour table that is swept in no time.
        let neighbours = Arc::new(NeighbourTable::new(NEIGHBOURS, MAX_INTERFACES, Key::default()));
        let mut compiler = Compiler::new(Arc::clone(&neighbours), Key::default());
        let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
        let rib = meaning::rib(&config, &mut compiler).expect("a config of ours");
        let input = meaning::input(&config, &facts, &mut compiler).expect("a config of ours");
        let retired = compiler.compile(input, rib).expect("a config of ours");
        retired.release(&neighbours);
        let tables = Arc::clone(compiler.tables());
        let capacity = Capacity::of(SESSIONS, count, false);
        let node = Node::new(&compiler, count, compiler.interfaces.len(), capacity);
        let (memory, pools) = PacketMemory::new(count, FRAMES, ChunkSize::Bytes2048).expect("memory");
        let mut workers: Vec<Worker> =
            pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
        let wires: [Arc<Mutex<Wire>>; 2] = Default::default();
        for (port, wire) in wires.iter().enumerate() {
            let (wire, tables) = (Arc::clone(wire), Arc::clone(&tables));
            let port = port as u16;
            workers[usize::from(port) % count].attach(port, 0, Box::new(WirePort { port, wire, tables }));
        }
        let mut gateway = Gateway {
            neighbours: node.neighbours.entries().len(),
            node,
            memory,
            workers,
            wires,
            now: Nanos::from_secs(1),
            runs: 0,
            _compiler: compiler,
        };
        gateway.rest();
        gateway
    }

    fn pass(&mut self, millis: u64) {
        self.now = Nanos(self.now.0 + millis * 1_000_000);
    }

    /// Turns all workers until none has anything left to do.
    fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            let mut worked = false;
            for worker in &mut self.workers {
                worked |= worker.turn(self.now);
            }
            if !worked {
                return;
            }
        }
        panic!("the gateway does not come to rest");
    }

    /// Until every queue is empty and every neighbour forgotten.
    fn rest(&mut self) {
        self.settle();
        for millis in [3_001, OBLIVION_MS, OBLIVION_MS] {
            self.pass(millis);
            self.settle();
        }
    }

    fn run(&mut self, data: &[u8]) {
        for wire in &self.wires {
            let wire = &mut *lock(wire);
            wire.bytes.clear();
            wire.frames.clear();
            wire.next = 0;
        }
        self.runs += 1;
        let mut rest = data;
        for _ in 0..MAX_RECORDS {
            let [control, len, padding, bytes @ ..] = rest else { break };
            let (bytes, behind) = bytes.split_at(bytes.len().min(usize::from(*len)));
            rest = behind;
            let step = STEPS_MS[usize::from(control >> 1 & 7)];
            if step > 0 {
                self.settle();
                self.pass(step);
            }
            let wire = &mut *lock(&self.wires[usize::from(control & 1)]);
            let start = wire.bytes.len();
            wire.bytes.extend_from_slice(bytes);
            wire.bytes.resize(wire.bytes.len() + usize::from(*padding) * 40, 0);
            mend(&mut wire.bytes[start..], *control);
            wire.frames.push((start, wire.bytes.len() - start));
        }
        self.rest();
        self.check();
    }

    fn check(&self) {
        let sum = |field: fn(&softgate::telemetry::WorkerCounters) -> &AtomicU64| -> u64 {
            self.node.counters.iter().map(|worker| field(worker).load(Ordering::Relaxed)).sum()
        };
        for wire in &self.wires {
            let wire = lock(wire);
            assert_eq!(wire.next, wire.frames.len(), "frames were not received");
        }
        assert_eq!(sum(|c| &c.frames_free), self.memory.frames() as u64, "frames are missing");
        assert_eq!(self.node.neighbours.entries().len(), self.neighbours, "neighbours are not forgotten");
        assert_eq!(sum(|c| &c.sessions_opened), sum(|c| &c.sessions_ended), "sessions do not end");
        let totals = Totals::of(self.node.counters.iter().map(|counters| &**counters));
        let dropped: u64 = totals.drops.iter().map(|(_, count)| count).sum();
        assert_eq!(
            totals.received + totals.originated + totals.fragments,
            totals.sent + totals.punted + dropped,
            "the books do not balance: {totals:?}"
        );
        let interfaces = |field: fn(&softgate::telemetry::InterfaceCounters) -> &AtomicU64| -> u64 {
            let all = self.node.counters.iter().flat_map(|worker| worker.interfaces.iter());
            all.map(|interface| field(interface).load(Ordering::Relaxed)).sum()
        };
        let (sent, sent_bytes) = self
            .wires
            .iter()
            .map(|wire| lock(wire))
            .fold((0, 0), |(frames, bytes), wire| (frames + wire.sent, bytes + wire.sent_bytes));
        assert_eq!(totals.sent, sent);
        assert_eq!(interfaces(|i| &i.tx_packets), sent + lost_behind(&totals), "packets sent by interface");
        if lost_behind(&totals) == 0 {
            assert_eq!(interfaces(|i| &i.tx_bytes), sent_bytes, "bytes sent by interface");
        }
        let count = |reason| totals.drops.iter().find(|(r, _)| *r == reason).map_or(0, |(_, count)| *count);
        let known = interfaces(|i| &i.rx_packets);
        let unknown = totals.received - known;
        assert!(unknown >= count(DropReason::UnknownVlan));
        assert!(unknown <= count(DropReason::UnknownVlan) + count(DropReason::Truncated));
    }

    fn stop(self) {
        self.workers.into_iter().for_each(Worker::stop);
        assert_eq!(self.memory.leaked(), 0, "frames leaked");
    }
}

/// Lost after they had been counted as sent by the interface.
fn lost_behind(totals: &Totals) -> u64 {
    let late = [DropReason::TxRingFull, DropReason::PortDown, DropReason::HandOverFull];
    totals.drops.iter().filter(|(reason, _)| late.contains(reason)).map(|(_, count)| count).sum()
}

thread_local! {
    static GATEWAYS: RefCell<[Option<Gateway>; CONFIGS.len()]> = const { RefCell::new([const { None }; CONFIGS.len()]) };
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, records)) = data.split_first() else { return };
    let choice = usize::from(*choice) % CONFIGS.len();
    GATEWAYS.with_borrow_mut(|gateways| {
        let (text, workers) = CONFIGS[choice];
        let gateway = gateways[choice].get_or_insert_with(|| Gateway::new(text, workers));
        gateway.run(records);
        if gateway.runs >= RUNS_PER_GATEWAY {
            gateways[choice].take().expect("just used").stop();
        }
    });
});
