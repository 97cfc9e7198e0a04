//! Sessions with several workers: whatever queues a flow's packets come in by, and in whatever order the workers take
//! turns, it is decided once, nothing of it is lost and nothing overtakes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use softgate::config::Config;
use softgate::io::{Port, PortStats};
use softgate::mem::{ChunkSize, FramePool, Frames, PacketMemory};
use softgate::packet::DropReason;
use softgate::replay;
use softgate::tables::compile::Compiler;
use softgate::tables::meaning::{self, PortFacts};
use softgate::telemetry::{Totals, WorkerCounters};
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const FRAMES: usize = 2048;
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];

/// Hosts below 10.0.1.128 are translated, those above are not; a server behind a published address; a host with an
/// address of its own outside.
const CONFIG: &str = r#"
schema = 1
[flows]
capacity = 4096
[[port]]
name = "in"
device = "eth1"
[[port]]
name = "out"
device = "eth2"
[[interface]]
name = "in"
port = "in"
zone = "inside"
mac = "02:00:00:00:00:01"
addresses = ["10.0.0.1/24"]
[[interface]]
name = "out"
port = "out"
zone = "outside"
mac = "02:00:00:00:00:01"
addresses = ["192.0.2.1/24"]
[[neighbour]]
interface = "in"
address = "10.0.0.2"
mac = "02:00:00:00:00:0a"
[[neighbour]]
interface = "out"
address = "192.0.2.2"
mac = "02:00:00:00:00:0a"
[[route]]
prefix = "10.0.1.0/24"
via = ["10.0.0.2"]
[[route]]
prefix = "0.0.0.0/0"
via = ["192.0.2.2"]
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
[[rule]]
name = "in"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside", prefix = ["10.0.1.200/31"] }
[[nat.source]]
name = "pool"
from = { prefix = ["10.0.1.0/25"] }
pool = ["198.51.100.0/30"]
[[nat.destination]]
name = "published"
address = "198.51.100.80"
service = "udp/8000"
target = "10.0.1.200:53"
[[nat.static]]
outside = "198.51.100.90"
inside = "10.0.1.201"
"#;

/// What comes in by one queue, and what went out by the port.
#[derive(Default)]
struct Cable {
    into: Vec<VecDeque<Vec<u8>>>,
    out: Vec<Vec<u8>>,
}

struct Queue {
    cable: Arc<Mutex<Cable>>,
    number: usize,
    /// Frames a turn takes at most.
    budget: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic")
}

impl Port for Queue {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let mut cable = lock(&self.cable);
        let before = frames.len();
        while frames.len() < self.budget {
            let Some(bytes) = cable.into[self.number].front() else { break };
            let Some(frame) = pool.take_filled(bytes) else { break };
            frames.push(frame);
            cable.into[self.number].pop_front();
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let count = frames.len();
        for frame in frames.drain(..) {
            lock(&self.cable).out.push(frame.bytes().to_vec());
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

const INSIDE: usize = 0;
const OUTSIDE: usize = 1;

/// A datagram: where it comes in, from and to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Way {
    port: usize,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
}

/// What is in a datagram's payload: which stream, and where in it.
type Mark = (u32, u32);

fn datagram(way: &Way, mark: Mark, fragments: bool) -> Vec<Vec<u8>> {
    let payload = [mark.0.to_be_bytes(), mark.1.to_be_bytes()].concat();
    let builder = |len: usize| {
        let mut frame = Vec::new();
        let mut body = payload.clone();
        body.resize(len, 0);
        PacketBuilder::ethernet2(HOST, GATEWAY)
            .ipv4(way.from.0.octets(), way.to.0.octets(), 64)
            .udp(way.from.1, way.to.1)
            .write(&mut frame, &body)
            .expect("a vector takes everything");
        frame
    };
    if !fragments {
        // Without DF, so that nothing about it is special.
        return vec![builder(18)];
    }
    // 8 bytes of UDP and 16 of payload in the first, 24 in the second.
    let whole = builder(40);
    let (link, ip, body) = (&whole[..14], &whole[14..34], &whole[34..]);
    let part = |range: std::ops::Range<usize>, more: bool| {
        let mut header = ip.to_vec();
        let len = (20 + range.len()) as u16;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        let identification = (mark.0 * 256 + mark.1) as u16;
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        let word = (range.start / 8) as u16 | u16::from(more) << 13;
        header[6..8].copy_from_slice(&word.to_be_bytes());
        header[10..12].fill(0);
        let sum =
            header.chunks(2).fold(0u32, |sum, pair| sum + (u32::from(pair[0]) << 8 | u32::from(pair[1])));
        let sum = (sum & 0xffff) + (sum >> 16);
        header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        [link, &header, &body[range]].concat()
    };
    vec![part(0..24, true), part(24..48, false)]
}

/// A datagram that came out; `None`: a later fragment, or no UDP.
fn parse(port: usize, frame: &[u8]) -> Option<(Way, Mark)> {
    let sliced = SlicedPacket::from_ethernet(frame).expect("what leaves is whole");
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { return None };
    let header = ip.header();
    if header.fragments_offset().value() != 0 {
        return None;
    }
    let (ports, payload) = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            ((udp.source_port(), udp.destination_port()), udp.payload().to_vec())
        }
        // The first fragment of two.
        _ => {
            let udp = ip.payload().payload;
            let word = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
            ((word(0), word(2)), udp[8..].to_vec())
        }
    };
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
    let way = Way { port, from: (header.source_addr(), ports.0), to: (header.destination_addr(), ports.1) };
    Some((way, (word(0), word(4))))
}

struct Lab {
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    workers: Vec<Worker>,
    cables: [Arc<Mutex<Cable>>; 2],
    now: Nanos,
    /// By port: frames of `out` already looked at.
    seen: [usize; 2],
    compiler: Compiler,
}

impl Lab {
    fn new(count: usize, budgets: &[usize]) -> Lab {
        let config = Config::parse(CONFIG, "owners.toml").expect("the config");
        let (node, compiler) = replay::compile(&config, count, false).expect("tables");
        let (memory, pools) = PacketMemory::new(count, FRAMES, ChunkSize::Bytes2048).expect("memory");
        let cables: [Arc<Mutex<Cable>>; 2] = Default::default();
        for cable in &cables {
            lock(cable).into = vec![VecDeque::new(); count];
        }
        let mut workers: Vec<Worker> =
            pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
        for (number, worker) in workers.iter_mut().enumerate() {
            for (port, cable) in cables.iter().enumerate() {
                let budget = budgets[(number * 2 + port) % budgets.len()];
                let queue = Queue { cable: Arc::clone(cable), number, budget };
                worker.attach(port as u16, 0, Box::new(queue));
            }
        }
        let now = Nanos::from_secs(1);
        Lab { node, memory, workers, cables, now, seen: [0; 2], compiler }
    }

    fn sum(&self, field: fn(&WorkerCounters) -> &AtomicU64) -> u64 {
        self.node.counters.iter().map(|counters| field(counters).load(Ordering::Relaxed)).sum()
    }

    /// Puts other tables before the workers, which take no turn yet.
    fn publish(&mut self, text: &str) -> softgate::tables::compile::Retired {
        let config = Config::parse(text, "owners.toml").expect("the config");
        let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
        let rib = meaning::rib(&config, &mut self.compiler).expect("routes");
        let input = meaning::input(&config, &facts, &mut self.compiler).expect("a config");
        let retired = self.compiler.compile(input, rib).expect("tables");
        self.node.reserve_rules(&self.compiler.policy_slots);
        self.node.tables.store(Arc::clone(self.compiler.tables()));
        retired
    }

    fn settle(&mut self) {
        for _ in 0..1000 {
            let now = self.now;
            if !self.workers.iter_mut().fold(false, |worked, worker| worker.turn(now) | worked) {
                return;
            }
        }
        panic!("the workers do not come to rest");
    }

    /// Sends each stream's packets in their order by its queue, with turns of workers in between as `turns` says, and
    /// returns what came out: ways and marks by stream, in the order they left.
    fn send(&mut self, streams: &[Stream], turns: &[u8]) -> BTreeMap<u32, Vec<(Way, u32)>> {
        let mut rest: Vec<VecDeque<(usize, Vec<u8>)>> = streams
            .iter()
            .map(|stream| {
                let frames = (0..stream.packets)
                    .flat_map(|number| datagram(&stream.way, (stream.id, number), stream.fragments));
                frames.map(|frame| (stream.queue, frame)).collect()
            })
            .collect();
        let mut turns = turns.iter().cycle();
        let mut next = || usize::from(*turns.next().expect("without end"));
        while rest.iter().any(|frames| !frames.is_empty()) {
            for _ in 0..next() % 8 {
                let at = next() * 7 % rest.len();
                let Some((queue, frame)) = rest[at].pop_front() else { continue };
                let queue = queue % self.workers.len();
                lock(&self.cables[streams[at].way.port]).into[queue].push_back(frame);
            }
            // Whatever the dice say, it goes on.
            if let Some(at) = rest.iter().position(|frames| !frames.is_empty()) {
                let (queue, frame) = rest[at].pop_front().expect("not empty");
                let queue = queue % self.workers.len();
                lock(&self.cables[streams[at].way.port]).into[queue].push_back(frame);
            }
            for _ in 0..next() % 3 {
                let worker = next() % self.workers.len();
                let now = self.now;
                self.workers[worker].turn(now);
            }
        }
        self.settle();
        let mut came: BTreeMap<u32, Vec<(Way, u32)>> = BTreeMap::new();
        for port in [INSIDE, OUTSIDE] {
            let cable = lock(&self.cables[port]);
            for (way, (id, number)) in
                cable.out[self.seen[port]..].iter().filter_map(|frame| parse(port, frame))
            {
                came.entry(id).or_default().push((way, number));
            }
            self.seen[port] = cable.out.len();
        }
        came
    }
}

/// Numbered datagrams of one direction of a flow, which come in by one queue.
#[derive(Clone, Copy, Debug)]
struct Stream {
    id: u32,
    way: Way,
    packets: u32,
    queue: usize,
    fragments: bool,
}

/// All of a stream's packets came out, in order, and all look the same: the way they left.
fn check(stream: &Stream, came: &BTreeMap<u32, Vec<(Way, u32)>>) -> Way {
    let came = came.get(&stream.id).unwrap_or_else(|| panic!("nothing came of {stream:?}"));
    let numbers: Vec<u32> = came.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (0..stream.packets).collect::<Vec<_>>(), "{stream:?}");
    let way = came[0].0;
    assert!(came.iter().all(|(other, _)| *other == way), "decided twice: {stream:?} left as {came:?}");
    way
}

/// Kind, host, port, remote, packets, queues there and back, in fragments.
type PlannedFlow = (u8, u8, u8, u8, u32, usize, usize, bool);

#[derive(Clone, Debug)]
struct Plan {
    workers: usize,
    budgets: Vec<usize>,
    flows: Vec<PlannedFlow>,
    turns: Vec<u8>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let flow = (0u8..4, 0u8..4, 0u8..3, 0u8..4, 1u32..12, 0usize..4, 0usize..4, prop::bool::weighted(0.2));
    (
        2usize..5,
        prop::collection::vec(prop_oneof![Just(1usize), Just(3), Just(64)], 1..8),
        prop::collection::vec(flow, 1..24),
        prop::collection::vec(any::<u8>(), 16..64),
    )
        .prop_map(|(workers, budgets, flows, turns)| Plan { workers, budgets, flows, turns })
}

/// The first packets' ways: out translated, out as they are, in to the published server, in to the static one.
fn way_of(kind: u8, host: u8, port: u8, remote: u8) -> Way {
    let remote = (Ipv4Addr::new(203, 0, 113, remote), 1000 + u16::from(port));
    let inside = |host: u8| (Ipv4Addr::new(10, 0, 1, host), 5000 + u16::from(port));
    match kind {
        0 => Way { port: INSIDE, from: inside(host), to: (remote.0, 53) },
        1 => Way { port: INSIDE, from: inside(128 + host), to: (remote.0, 53) },
        2 => Way {
            port: OUTSIDE,
            from: (remote.0, remote.1 + 100 * u16::from(host)),
            to: (Ipv4Addr::new(198, 51, 100, 80), 8000),
        },
        _ => Way {
            port: OUTSIDE,
            from: (remote.0, remote.1 + 100 * u16::from(host)),
            to: (Ipv4Addr::new(198, 51, 100, 90), 7),
        },
    }
}

fn run(plan: &Plan) {
    let mut lab = Lab::new(plan.workers, &plan.budgets);
    // Two streams of one way would be one flow.
    let mut there: BTreeMap<Way, (Stream, usize)> = BTreeMap::new();
    for (kind, host, port, remote, packets, queue, back, fragments) in &plan.flows {
        let way = way_of(*kind, *host, *port, *remote);
        let id = there.len() as u32;
        let stream = Stream { id, way, packets: *packets, queue: *queue, fragments: *fragments };
        there.entry(way).or_insert((stream, *back));
    }
    let streams: Vec<Stream> = there.values().map(|(stream, _)| *stream).collect();
    let came = lab.send(&streams, &plan.turns);
    let left: Vec<Way> = streams.iter().map(|stream| check(stream, &came)).collect();
    assert_eq!(
        lab.sum(|counters| &counters.sessions_opened),
        streams.len() as u64,
        "one session for each flow"
    );

    // RFC 4787 REQ-1: one inside endpoint has one outside, whatever its destinations and queues; and no two have the
    // same.
    let mut mapped: HashMap<(Ipv4Addr, u16), (Ipv4Addr, u16)> = HashMap::new();
    for (stream, left) in streams.iter().zip(&left).filter(|(stream, _)| stream.way.from.0.octets()[3] < 128)
    {
        if stream.way.port == INSIDE {
            assert_eq!(*mapped.entry(stream.way.from).or_insert(left.from), left.from, "{stream:?}");
        }
    }
    let mut outsides: Vec<_> = mapped.values().collect();
    outsides.sort_unstable();
    outsides.dedup();
    assert_eq!(outsides.len(), mapped.len());

    // Replies come in by other queues and go back the way their flow came.
    let replies: Vec<Stream> = there
        .values()
        .zip(&left)
        .map(|((stream, queue), left)| Stream {
            id: 1000 + stream.id,
            way: Way { port: left.port, from: left.to, to: left.from },
            queue: *queue,
            ..*stream
        })
        .collect();
    let came = lab.send(&replies, &plan.turns);
    for (reply, stream) in replies.iter().zip(&streams) {
        let back = check(reply, &came);
        let expected = Way { port: stream.way.port, from: stream.way.to, to: stream.way.from };
        assert_eq!(back, expected);
    }
    assert_eq!(lab.sum(|counters| &counters.sessions_opened), streams.len() as u64, "replies open nothing");

    // Hosts inside talk to each other's outsides: both ends are translated, by whichever workers have them.
    let endpoints: Vec<_> = mapped.iter().map(|(inside, outside)| (*inside, *outside)).collect();
    let hairpins: Vec<Stream> = endpoints
        .iter()
        .zip(endpoints.iter().skip(1))
        .enumerate()
        .map(|(index, ((from, _), (_, to)))| Stream {
            id: 2000 + index as u32,
            way: Way { port: INSIDE, from: *from, to: *to },
            packets: 5,
            queue: index,
            fragments: index % 4 == 3,
        })
        .collect();
    if !hairpins.is_empty() {
        let came = lab.send(&hairpins, &plan.turns);
        for (index, hairpin) in hairpins.iter().enumerate() {
            let left = check(hairpin, &came);
            assert_eq!((left.from, left.to), (endpoints[index].1, endpoints[index + 1].0), "RFC 4787 REQ-9a");
        }
    }

    let totals = Totals::of(lab.node.counters.iter().map(|counters| &**counters));
    assert_eq!(totals.drops, [], "nothing is lost");
    let opened = lab.sum(|counters| &counters.sessions_opened);
    assert_eq!(opened, (streams.len() + hairpins.len()) as u64);
    // UDP sessions end after five minutes, and what they held of other workers comes home: ports are in hold-down.
    for seconds in [400, 400, 1] {
        lab.now = lab.now.plus(Duration::from_secs(seconds));
        lab.settle();
    }
    assert_eq!(lab.sum(|counters| &counters.sessions_ended), opened);
    // Nobody remembers them: each may belong to another worker now.
    let again: Vec<Stream> =
        streams.iter().map(|stream| Stream { queue: stream.queue + 1, ..*stream }).collect();
    let came = lab.send(&again, &plan.turns);
    again.iter().for_each(|stream| {
        check(stream, &came);
    });
    // First everyone sends home what is not his, then everyone collects.
    for _ in 0..2 {
        for worker in &mut lab.workers {
            worker.turn(lab.now);
        }
    }
    let free: u64 = lab.sum(|counters| &counters.frames_free);
    assert_eq!(free, (plan.workers * FRAMES) as u64);
    lab.workers.into_iter().for_each(Worker::stop);
    assert_eq!(lab.memory.leaked(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn every_flow_is_decided_once_and_in_order(plan in plan()) {
        run(&plan);
    }
}

/// Sessions that nothing is sent on learn of a change all the same: what it denies is gone soon, the rest goes on, and
/// the workers say when they are through, also with packets coming in all the while.
#[test]
fn idle_sessions_are_decided_again() {
    const SESSIONS: u32 = 600;
    let allowed = "from = { zone = \"inside\" }";
    assert!(CONFIG.contains(allowed));
    // Translated hosts keep their way out, the others lose it.
    let narrower = CONFIG.replace(allowed, "from = { zone = \"inside\", prefix = [\"10.0.1.0/25\"] }");
    for (workers, busy) in [(1, false), (1, true), (3, false), (3, true)] {
        let mut lab = Lab::new(workers, &[8]);
        let streams: Vec<Stream> = (0..SESSIONS)
            .map(|id| {
                let host = if id % 3 == 0 { 200 } else { 5 };
                let from = (Ipv4Addr::new(10, 0, 1, host), 10_000 + id as u16);
                let way = Way { port: INSIDE, from, to: (Ipv4Addr::new(203, 0, 113, 1), 53) };
                Stream { id, way, packets: 1, queue: id as usize, fragments: false }
            })
            .collect();
        lab.send(&streams, &[1, 2, 3]);
        let before = lab.node.tables.load().generation;
        let converged = |lab: &Lab| {
            lab.node.counters.iter().map(|worker| worker.converged.generation()).min().expect("one")
        };
        assert_eq!(converged(&lab), before);

        let retired = lab.publish(&narrower);
        let generation = lab.node.tables.load().generation;
        let mut turns = 0;
        while converged(&lab) < generation {
            assert!(turns < 10 * SESSIONS, "it does not come to an end");
            turns += 1;
            for worker in 0..workers {
                if busy {
                    // Something nobody has a session for, and never will: it is denied.
                    let frames = datagram(
                        &Way {
                            port: OUTSIDE,
                            from: (Ipv4Addr::new(203, 0, 113, 9), 1),
                            to: (Ipv4Addr::new(10, 0, 1, 99), 1),
                        },
                        (9999, 0),
                        false,
                    );
                    lock(&lab.cables[OUTSIDE]).into[worker].extend(frames);
                }
                let now = lab.now;
                lab.workers[worker].turn(now);
            }
        }
        if busy {
            assert!(turns > SESSIONS / workers as u32 / 2, "{turns} turns: packets had to wait");
        }
        retired.release(&lab.node.neighbours);
        let denied = u64::from(SESSIONS / 3);
        assert_eq!(lab.sum(|counters| &counters.sessions_condemned), denied);
        assert_eq!(lab.sum(|counters| &counters.sessions_kept), u64::from(SESSIONS) - denied);
        assert_eq!(lab.sum(|counters| &counters.sessions_ended), 0, "the next packet is told why");
        // One of them has a packet, the others have not: all are gone after ten seconds.
        let frames = datagram(&streams[0].way, (0, 1), false);
        lock(&lab.cables[INSIDE]).into[0].extend(frames);
        lab.settle();
        let totals = Totals::of(lab.node.counters.iter().map(|counters| &**counters));
        assert_eq!(
            totals.drops.iter().find(|(reason, _)| *reason == DropReason::PolicyChanged),
            Some(&(DropReason::PolicyChanged, 1))
        );
        lab.now = lab.now.plus(Duration::from_secs(11));
        lab.settle();
        assert_eq!(lab.sum(|counters| &counters.sessions_ended), denied);
        let rest: Vec<Stream> = streams.iter().filter(|stream| stream.id % 3 != 0).copied().collect();
        let came = lab.send(&rest, &[1]);
        rest.iter().for_each(|stream| {
            check(stream, &came);
        });
        assert_eq!(
            lab.sum(|counters| &counters.sessions_opened),
            u64::from(SESSIONS),
            "they are the same sessions"
        );
    }
}

/// A worker goes on giving packets to one that has stopped already: the frames come home all the same.
#[test]
fn no_frame_stays_with_a_worker_that_has_stopped() {
    for stops_first in [0, 1] {
        let mut lab = Lab::new(2, &[8]);
        for id in 0..32 {
            let from = (Ipv4Addr::new(10, 0, 1, id as u8), 10_000);
            let way = Way { port: INSIDE, from, to: (Ipv4Addr::new(203, 0, 113, 1), 53) };
            let frames = datagram(&way, (id, 0), false);
            lock(&lab.cables[INSIDE]).into[1 - stops_first].extend(frames);
        }
        lab.workers.remove(stops_first).stop();
        let now = lab.now;
        while lab.workers[0].turn(now) {}
        let handed_over = lab.sum(|counters| &counters.handed_over);
        assert!(handed_over > 0, "the hosts have different workers");
        lab.workers.remove(0).stop();
        assert_eq!(lab.memory.leaked(), 0);
        let totals = Totals::of(lab.node.counters.iter().map(|counters| &**counters));
        assert_eq!(totals.drops, [(DropReason::Shutdown, handed_over)]);
    }
}
