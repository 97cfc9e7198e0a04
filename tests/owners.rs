//! Sessions with several workers: whatever queues a flow's packets come in by, and in whatever order the workers take
//! turns, it is decided once, nothing of it is lost and nothing overtakes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use softgate::config::Config;
use softgate::io::memory::Cable;
use softgate::mem::{ChunkSize, PacketMemory};
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
const CONFIG: &str = concat!(
    include_str!("two_ports.toml"),
    r#"
[flows]
capacity = 4096
[[route]]
prefix = "10.0.1.0/24"
via = ["10.0.0.2"]
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
"#
);

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
    cables: [Cable; 2],
    now: Nanos,
    compiler: Compiler,
}

impl Lab {
    fn new(count: usize, budgets: &[usize]) -> Lab {
        let config = Config::parse(CONFIG, "owners.toml").expect("the config");
        let (node, compiler) = replay::compile(&config, count, false).expect("tables");
        let (memory, pools) = PacketMemory::new(count, FRAMES, ChunkSize::Bytes2048).expect("memory");
        let cables = [(); 2].map(|()| Cable::new(count));
        let mut workers: Vec<Worker> =
            pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
        for (number, worker) in workers.iter_mut().enumerate() {
            for (port, cable) in cables.iter().enumerate() {
                let budget = budgets[(number * 2 + port) % budgets.len()];
                worker.attach(port as u16, 0, Box::new(cable.end(number, budget)));
            }
        }
        let now = Nanos::from_secs(1);
        Lab { node, memory, workers, cables, now, compiler }
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
                self.cables[streams[at].way.port].send(queue, [frame]);
            }
            // Whatever the dice say, it goes on.
            if let Some(at) = rest.iter().position(|frames| !frames.is_empty()) {
                let (queue, frame) = rest[at].pop_front().expect("not empty");
                let queue = queue % self.workers.len();
                self.cables[streams[at].way.port].send(queue, [frame]);
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
            for (way, (id, number)) in self.cables[port].take().iter().filter_map(|frame| parse(port, frame))
            {
                came.entry(id).or_default().push((way, number));
            }
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
                    lab.cables[OUTSIDE].send(worker, frames);
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
        lab.cables[INSIDE].send(0, frames);
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
            lab.cables[INSIDE].send(1 - stops_first, frames);
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

/// What can go wrong when workers ask each other and tables change meanwhile.
mod between_two_workers {
    use super::*;
    use softgate::flow::Tuple;
    use softgate::flow::directory::Directory;
    use softgate::flow::steering::Steering;

    fn mix(key: u64) -> u64 {
        softgate::packet::hash::address(softgate::packet::hash::Key::default(), key.into(), 0)
    }

    /// Placed in the first free of two buckets, one key in thirty was refused at three quarters.
    #[test]
    fn a_directory_takes_what_it_was_made_for() {
        const KEYS: u64 = 98_304;
        let directory = Directory::new(KEYS as usize).expect("memory");
        let mut at = [0; 4];
        let mut refused = 0;
        for key in 0..KEYS {
            refused += u32::from(directory.claim(mix(key), 1, Nanos::from_secs(1)).is_err());
            at[(key * 4 / KEYS) as usize] = refused;
        }
        assert_eq!(refused, 0, "of {KEYS}; after each quarter {at:?}");
    }

    /// One worker sweeps, and its turn began before another's.
    #[test]
    fn a_sweep_with_an_earlier_clock_keeps_new_claims() {
        let directory = Directory::new(64).expect("memory");
        directory.claim(mix(1), 1, Nanos(5_000_000_010)).expect("room");
        directory.sweep(0, 1000, Nanos(4_999_999_990));
        assert_eq!(directory.find(mix(1)), Some(1));
    }

    /// Of two keys the first is another session's already, the second another worker's.
    #[test]
    fn a_session_that_cannot_begin_takes_no_key_from_another() {
        let directory = Arc::new(Directory::new(64).expect("memory"));
        let key = softgate::packet::hash::Key::default();
        let [zero, one] = [0, 1].map(|me| Steering::new(Arc::clone(&directory), me, 2, key));
        let t = |src: u32, dst: u32, vrf| Tuple {
            src,
            dst,
            src_port: 1,
            dst_port: 2,
            vrf,
            protocol: 17,
            zero: 0,
        };
        let now = Nanos::from_secs(1);
        let first = t(1, 2, 0);
        zero.hold([&first, &t(2, 9, 0)], now).expect("free");
        one.hold([&t(5, 6, 0), &t(7, 8, 0)], now).expect("free");
        // The other direction of the first one's addresses, translated: its replies' tuple is taken.
        zero.hold([&first.reversed(0), &t(7, 8, 0)], now).expect_err("taken");
        assert_eq!(one.find(&first), Some(0), "its session lives");
    }

    fn steering(lab: &Lab) -> Steering {
        let workers = lab.workers.len();
        Steering::new(Arc::new(Directory::new(64).expect("memory")), 0, workers, lab.node.key)
    }

    fn host_of(lab: &Lab, worker: u8, nth: usize) -> Ipv4Addr {
        let steering = steering(lab);
        (1..127)
            .map(|host| Ipv4Addr::new(10, 0, 1, host))
            .filter(|host| steering.of_host(0, (*host).into()) == worker)
            .nth(nth)
            .expect("some")
    }

    fn outside_of(lab: &mut Lab, host: Ipv4Addr) -> (Ipv4Addr, u16) {
        let way = Way { port: INSIDE, from: (host, 5000), to: (Ipv4Addr::new(203, 0, 113, 1), 53) };
        let stream = Stream { id: 1, way, packets: 1, queue: 0, fragments: false };
        let came = lab.send(&[stream], &[1]);
        check(&stream, &came).from
    }

    fn inject(lab: &Lab, queue: usize, way: Way, mark: Mark) {
        lab.cables[way.port].send(queue, datagram(&way, mark, false));
    }

    fn late(stall: bool) -> u32 {
        let mut lab = Lab::new(2, &[8]);
        let (lender, owner) = (host_of(&lab, 0, 0), host_of(&lab, 1, 0));
        let to = outside_of(&mut lab, owner);
        inject(&lab, 1, Way { port: INSIDE, from: (lender, 7000), to }, (7, 0));
        lab.workers[1].turn(lab.now);
        if stall {
            lab.now = lab.now.plus(Duration::from_millis(1500));
            lab.workers[1].turn(lab.now);
            lab.workers[0].turn(lab.now);
        }
        lab.settle();
        for _ in 0..12_000 {
            lab.now = lab.now.plus(Duration::from_millis(150));
            lab.settle();
        }
        assert_eq!(lab.sum(|c| &c.sessions_opened), lab.sum(|c| &c.sessions_ended));
        lab.node.claims.addresses().map(|(_, _, ports)| ports).sum()
    }

    /// The borrower has given its packet up.
    #[test]
    fn a_mapping_lent_too_late_goes_back() {
        assert_eq!(late(false), 0, "without a stall all ports come home");
        assert_eq!(late(true), 0, "with one");
    }

    /// However many loans begin and end behind it.
    #[test]
    fn no_packet_waits_for_a_mapping_longer_than_its_time() {
        let mut lab = Lab::new(3, &[8]);
        let (quick, owner, stuck) = (host_of(&lab, 0, 0), host_of(&lab, 1, 0), host_of(&lab, 2, 0));
        let to = outside_of(&mut lab, owner);
        let way = |from, port| Way { port: INSIDE, from: (from, port), to };
        inject(&lab, 1, way(quick, 8000), (1, 0));
        inject(&lab, 1, way(stuck, 8000), (2, 0));
        lab.workers[1].turn(lab.now);
        for port in 8001..8200 {
            lab.now = lab.now.plus(Duration::from_millis(100));
            inject(&lab, 1, way(quick, port), (3, u32::from(port)));
            // The answer to the one before comes only now.
            lab.workers[1].turn(lab.now);
            lab.workers[0].turn(lab.now);
        }
        let lost = lab.node.counters[1].drops[DropReason::HandOverFull.index()].load(Ordering::Relaxed);
        assert_eq!(lost, 1, "its patience is one second");
    }

    /// The lender has newer tables, in which pools stand elsewhere.
    #[test]
    fn a_mapping_is_lent_from_the_pool_that_was_meant() {
        let mut lab = Lab::new(2, &[8]);
        let (lender, owner) = (host_of(&lab, 0, 0), host_of(&lab, 1, 0));
        let to = outside_of(&mut lab, owner);
        inject(&lab, 1, Way { port: INSIDE, from: (lender, 7000), to }, (7, 0));
        lab.workers[1].turn(lab.now);
        // Somebody else's pool, in front of the one that all of this is about and stays as it is.
        let mine = "[[nat.source]]\nname = \"pool\"";
        assert!(CONFIG.contains(mine));
        let other = "[[nat.source]]\nname = \"other\"\nfrom = { prefix = [\"10.0.9.0/24\"] }\npool = [\"198.51.100.8/30\"]\n";
        let retired = lab.publish(&CONFIG.replace(mine, &format!("{other}{mine}")));
        lab.workers[0].turn(lab.now);
        lab.settle();
        retired.release(&lab.node.neighbours);
        let out = lab.cables[INSIDE].take();
        let left: Vec<Way> =
            out.iter().filter_map(|frame| parse(INSIDE, frame)).map(|(way, _)| way).collect();
        assert_eq!(left.len(), 1);
        assert!(
            left[0].from.0 < Ipv4Addr::new(198, 51, 100, 4),
            "left as {left:?}, which is not in its pool"
        );
    }

    /// Routes change faster than all sessions are looked at.
    #[test]
    fn changes_without_end_do_not_keep_sessions_from_review() {
        const SESSIONS: u32 = 600;
        let mut lab = Lab::new(1, &[8]);
        let streams: Vec<Stream> = (0..SESSIONS)
            .map(|id| {
                let from = (Ipv4Addr::new(10, 0, 1, 200), 10_000 + id as u16);
                let way = Way { port: INSIDE, from, to: (Ipv4Addr::new(203, 0, 113, 1), 53) };
                Stream { id, way, packets: 1, queue: 0, fragments: false }
            })
            .collect();
        lab.send(&streams, &[1]);
        let retired =
            lab.publish(&CONFIG.replace("prefix = [\"10.0.1.200/31\"]", "prefix = [\"10.0.1.201/32\"]"));
        let first = lab.node.tables.load().generation;
        let mut all = vec![retired];
        for turn in 1..6000 {
            if turn % 300 == 0 {
                let via = if turn % 600 == 0 { "10.0.7.0/24" } else { "10.0.8.0/24" };
                all.push(
                    lab.publish(&format!("{CONFIG}\n[[route]]\nprefix = \"{via}\"\nvia = [\"10.0.0.2\"]\n")),
                );
            }
            inject(
                &lab,
                0,
                Way {
                    port: OUTSIDE,
                    from: (Ipv4Addr::new(203, 0, 113, 9), 1),
                    to: (Ipv4Addr::new(10, 0, 1, 99), 1),
                },
                (9999, 0),
            );
            lab.workers[0].turn(lab.now);
        }
        let converged = lab.node.counters[0].converged.generation();
        assert!(
            converged >= first,
            "converged {converged}, first {first}, now {}",
            lab.node.tables.load().generation
        );
    }

    /// By the first of several changes that deny it.
    #[test]
    fn a_session_is_condemned_once() {
        let mut lab = Lab::new(1, &[8]);
        let way = Way {
            port: INSIDE,
            from: (Ipv4Addr::new(10, 0, 1, 200), 9),
            to: (Ipv4Addr::new(203, 0, 113, 1), 53),
        };
        lab.send(&[Stream { id: 1, way, packets: 1, queue: 0, fragments: false }], &[1]);
        let narrower = CONFIG.replace(
            "from = { zone = \"inside\" }",
            "from = { zone = \"inside\", prefix = [\"10.0.1.0/25\"] }",
        );
        let mut all = vec![];
        for via in 1..4 {
            all.push(lab.publish(&format!(
                "{narrower}\n[[route]]\nprefix = \"10.0.{via}0.0/24\"\nvia = [\"10.0.0.2\"]\n"
            )));
            lab.settle();
        }
        assert_eq!(lab.sum(|c| &c.sessions_condemned), 1);
    }

    /// However much it is.
    #[test]
    fn what_others_hand_over_leaves_room_for_the_own_queue() {
        let mut lab = Lab::new(2, &[64]);
        let way = |port| Way {
            port: INSIDE,
            from: (Ipv4Addr::new(10, 0, 1, 200), port),
            to: (Ipv4Addr::new(203, 0, 113, 1), 53),
        };
        lab.send(&[Stream { id: 1, way: way(9), packets: 1, queue: 1, fragments: false }], &[1]);
        for number in 0..1500 {
            inject(&lab, 0, way(9), (1, number));
        }
        while lab.workers[0].turn(lab.now) {}
        for number in 0..200 {
            inject(&lab, 1, way(9), (2, number));
        }
        lab.cables[OUTSIDE].take();
        lab.workers[1].turn(lab.now);
        let out = lab.cables[OUTSIDE].take();
        let marks: Vec<Mark> =
            out.iter().filter_map(|frame| parse(OUTSIDE, frame)).map(|(_, mark)| mark).collect();
        let foreign = marks.iter().filter(|mark| mark.0 == 1).count();
        assert!(foreign <= 512, "one turn: {} own, {foreign} of others", marks.len() - foreign);
    }
}
