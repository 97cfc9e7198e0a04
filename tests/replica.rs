//! Two nodes: sessions that one has made are told to the other, which may have another number of workers. From then on
//! every packet, of either direction and by whatever queue it comes in, leaves both as the same bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
};
use proptest::prelude::*;
use softgate::config::Config;
use softgate::flow::digest::{SLICES, Slices};
use softgate::flow::{FlowTable, Tick};
use softgate::io::memory::Cable;
use softgate::journal::{Header, Journal, Left, Slot};
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::packet::hash::Key;
use softgate::replay;
use softgate::replica::Change;
use softgate::tables::compile::Compiler;
use softgate::tables::meaning::{self, PortFacts};
use softgate::telemetry::{ReplicaCounters, Totals};
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const FRAMES: usize = 512;
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];

/// Hosts below 10.0.1.128 are translated, those above are not; a published server, a host with an address of its own
/// outside, a service with three backends, and IPv6 hosts that reach both families.
const CONFIG: &str = concat!(
    include_str!("two_ports.toml"),
    r#"
[flows]
capacity = 4096
[[route]]
prefix = "10.0.1.0/24"
via = ["10.0.0.2"]
[[route]]
prefix = "2001:db8:1::/48"
via = ["2001:db8:a::2"]
[[route]]
prefix = "::/0"
via = ["2001:db8:b::2"]
[[neighbour]]
interface = "in"
address = "2001:db8:a::2"
mac = "02:00:00:00:00:0a"
[[neighbour]]
interface = "out"
address = "2001:db8:b::2"
mac = "02:00:00:00:00:0a"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
[[rule]]
name = "in"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside", prefix = ["10.0.1.200/29", "2001:db8:1::/48"] }
[[nat.source]]
name = "pool"
from = { prefix = ["10.0.1.0/25"] }
pool = ["198.51.100.0/30"]
[[nat.destination]]
name = "published"
address = "198.51.100.80"
service = ["udp/8000", "tcp/8000"]
target = "10.0.1.200"
[[nat.static]]
outside = "198.51.100.90"
inside = "10.0.1.201"
[[nat.nat64]]
name = "six"
prefix = "2001:db8:64::/96"
from = { zone = "inside" }
pool = ["198.51.100.12"]
[[service]]
name = "shop"
address = "198.51.100.85"
service = ["tcp/80", "udp/80"]
backends = [{ address = "10.0.1.202:8080" }, { address = "10.0.1.203:8080" }, { address = "10.0.1.204:8080" }]
"#
);

/// With addresses of both families.
fn config() -> String {
    CONFIG
        .replace("\"10.0.0.1/24\"", "\"10.0.0.1/24\", \"2001:db8:a::1/64\"")
        .replace("\"192.0.2.1/24\"", "\"192.0.2.1/24\", \"2001:db8:b::1/64\"")
}

const INSIDE: usize = 0;
const OUTSIDE: usize = 1;

/// What is in a packet above its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upper {
    Udp { src: u16, dst: u16 },
    Tcp { src: u16, dst: u16, flags: u8, seq: u32, ack: u32 },
    Ping { id: u16, is_reply: bool },
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    port: usize,
    src: IpAddr,
    dst: IpAddr,
    upper: Upper,
    len: usize,
}

fn frame(sent: &Sent) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(HOST, GATEWAY);
    let builder = match (sent.src, sent.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => builder.ip(IpHeaders::Ipv4(
            // DF: nothing about the datagram's identification may be changed.
            Ipv4Header {
                dont_fragment: true,
                ..Ipv4Header::new(0, 64, IpNumber::UDP, src.octets(), dst.octets()).expect("short")
            },
            Default::default(),
        )),
        (IpAddr::V6(source), IpAddr::V6(destination)) => builder.ip(IpHeaders::Ipv6(
            Ipv6Header {
                source: source.octets(),
                destination: destination.octets(),
                hop_limit: 64,
                ..Ipv6Header::default()
            },
            Default::default(),
        )),
        other => panic!("two families: {other:?}"),
    };
    let mut frame = Vec::new();
    let payload = vec![7; sent.len];
    match sent.upper {
        Upper::Udp { src, dst } => builder.udp(src, dst).write(&mut frame, &payload),
        Upper::Tcp { src, dst, flags, seq, ack } => {
            let mut tcp = builder.tcp(src, dst, seq, 20_000);
            tcp = if flags & SYN != 0 { tcp.syn() } else { tcp };
            tcp = if flags & FIN != 0 { tcp.fin() } else { tcp };
            tcp = if flags & RST != 0 { tcp.rst() } else { tcp };
            tcp = if flags & ACK != 0 { tcp.ack(ack) } else { tcp };
            tcp.write(&mut frame, &payload)
        }
        Upper::Ping { id, is_reply } => match (sent.src, is_reply) {
            (IpAddr::V4(_), false) => builder.icmpv4_echo_request(id, 1).write(&mut frame, &payload),
            (IpAddr::V4(_), true) => builder.icmpv4_echo_reply(id, 1).write(&mut frame, &payload),
            (IpAddr::V6(_), false) => builder.icmpv6_echo_request(id, 1).write(&mut frame, &payload),
            (IpAddr::V6(_), true) => builder.icmpv6_echo_reply(id, 1).write(&mut frame, &payload),
        },
    }
    .expect("a vector takes everything");
    frame
}

/// Addresses and ports of a packet that came out.
fn look(port: usize, frame: &[u8]) -> (usize, IpAddr, IpAddr, [u16; 2]) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("what leaves is whole");
    let (src, dst): (IpAddr, IpAddr) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        other => panic!("no IP: {other:?}"),
    };
    let id = |bytes: [u8; 4]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let ports = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => [udp.source_port(), udp.destination_port()],
        Some(TransportSlice::Tcp(tcp)) => [tcp.source_port(), tcp.destination_port()],
        Some(TransportSlice::Icmpv4(icmp)) => [id(icmp.bytes5to8()); 2],
        Some(TransportSlice::Icmpv6(icmp)) => [id(icmp.bytes5to8()); 2],
        other => panic!("no upper layer: {other:?}"),
    };
    (port, src, dst, ports)
}

/// What NAT64 makes of a short packet gets an identification of the node's own (RFC 7915 section 5.1): it is no part of
/// the session.
fn forget_identification(frame: &mut [u8]) {
    let is_numbered = frame[12..14] == [8, 0] && frame[20] & 0x40 == 0;
    if is_numbered {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
}

struct Lab {
    node: Arc<Node>,
    workers: Vec<Worker>,
    cables: [Cable; 2],
    now: Nanos,
    memory: Arc<PacketMemory>,
    compiler: Compiler,
}

impl Lab {
    /// Nodes that do not know when the other has booted.
    fn new(count: usize, config: &str, up: u64) -> Lab {
        let config = Config::parse(config, "replica.toml").expect("the config");
        let (node, compiler) = replay::compile(&config, count, false).expect("tables");
        let (memory, pools) = PacketMemory::new(count, FRAMES, ChunkSize::Bytes2048).expect("memory");
        let cables = [(); 2].map(|()| Cable::new(count));
        let mut workers: Vec<Worker> =
            pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
        for (number, worker) in workers.iter_mut().enumerate() {
            for (port, cable) in cables.iter().enumerate() {
                worker.attach(port as u16, 0, Box::new(cable.end(number, 64)));
            }
        }
        node.replicas().iter().for_each(|desk| desk.set_on(true));
        let mut lab = Lab { node, workers, cables, now: Nanos::from_secs(up), memory, compiler };
        lab.settle();
        lab
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let now = self.now;
            if !self.workers.iter_mut().fold(false, |worked, worker| worker.turn(now) | worked) {
                return;
            }
        }
        panic!("the workers do not come to rest");
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.settle();
    }

    /// Other tables, until nothing is older than they are.
    fn publish(&mut self, text: &str) {
        let config = Config::parse(text, "replica.toml").expect("the config");
        let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
        let rib = meaning::rib(&config, &mut self.compiler).expect("routes");
        let input = meaning::input(&config, &facts, &mut self.compiler).expect("a config");
        let _retired = self.compiler.compile(input, rib).expect("tables");
        self.node.reserve_rules(&self.compiler.policy_slots);
        self.node.tables.store(Arc::clone(self.compiler.tables()));
        self.settle();
    }

    /// Sends a packet by a queue: what comes out.
    fn send(&mut self, sent: &Sent, queue: usize) -> Vec<(usize, Vec<u8>)> {
        let queue = queue % self.workers.len();
        self.cables[sent.port].send(queue, [frame(sent)]);
        self.settle();
        let mut out = Vec::new();
        for port in [INSIDE, OUTSIDE] {
            out.extend(self.cables[port].take().into_iter().map(|frame| (port, frame.to_vec())));
        }
        out
    }

    /// Tells the other node all that has changed here.
    fn tell(&mut self, other: &mut Lab) -> u32 {
        let mut resynced = 0;
        loop {
            self.settle();
            let changes: Vec<Change> =
                self.node.replicas().iter().flat_map(|desk| std::iter::from_fn(|| desk.next())).collect();
            if changes.is_empty() {
                return resynced;
            }
            for change in changes {
                let dispatch = other.node.dispatch();
                match change {
                    Change::Is(record) => drop(dispatch.install(record, true).expect("room")),
                    Change::Gone(gone) => dispatch.end(gone).expect("room"),
                    Change::Begins(_) => {}
                    Change::Resynced(_) => resynced += 1,
                    Change::Summed(_) => {}
                }
                other.settle();
            }
        }
    }

    /// Looks at all sessions: sums by slice.
    fn sums(&mut self, number: u32) -> Vec<u64> {
        for desk in self.node.replicas() {
            desk.set_audit_key(Key(3, 4));
            desk.audit(number);
        }
        self.settle();
        let mut sums = vec![0; SLICES];
        self.node.replicas().iter().for_each(|desk| desk.add_sums(&mut sums));
        sums
    }

    /// Tells the other node all that is in some slices.
    fn repair(&mut self, other: &mut Lab, slices: &[u16]) {
        let slices = Slices::of(slices.iter().copied());
        other.node.dispatch().begin_part().expect("room");
        self.node.replicas().iter().for_each(|desk| assert!(desk.repair(7, slices)));
        assert_eq!(self.tell(other) as usize, self.workers.len(), "every worker comes to an end");
        other.node.dispatch().sweep_part(slices).expect("room");
        other.settle();
    }

    /// Has sessions kept in a file from now on.
    fn keep(&mut self) -> std::fs::File {
        let file = tempfile::tempfile().expect("a file");
        let header = Header {
            workers: self.workers.len() as u32,
            slots: FlowTable::<u32>::places_for(self.node.capacity.sessions),
            boot: [1, 2],
            node: 3,
            run: 4,
            epoch_ms: 0,
        };
        let journal = Journal::create(&file, header).expect("memory");
        assert!(self.node.journal.set(journal).is_ok());
        self.settle();
        file
    }

    /// Goes on with what another has left in a file.
    fn inherit(&mut self, file: &std::fs::File, time: Nanos) {
        let left = Left::open(file).expect("a mapping").expect("a file of sessions");
        let now = left.clock(time.0 / 1_000_000);
        assert_eq!(now, Tick::of(time));
        for place in left.places() {
            match left.read(place, now) {
                Slot::Empty => {}
                Slot::Is(record) => {
                    let _ = self.node.dispatch().install(record, false).expect("room");
                    self.settle();
                }
                other => panic!("place {place}: {other:?}"),
            }
        }
    }

    fn kept(&self) -> u64 {
        self.node.journal.get().map_or(0, Journal::kept)
    }

    fn sum(&self, field: fn(&ReplicaCounters) -> u64) -> u64 {
        self.node.counters.iter().map(|counters| field(&counters.replicas)).sum()
    }

    fn refused(&self) -> u64 {
        self.sum(|replicas| replicas.refused.iter().map(|cause| cause.load(Ordering::Relaxed)).sum())
    }

    fn sessions(&self) -> u64 {
        let sum = |opened: bool| -> u64 {
            let count = self.node.counters.iter().map(|counters| match opened {
                true => counters.sessions_opened.load(Ordering::Relaxed),
                false => counters.sessions_ended.load(Ordering::Relaxed),
            });
            count.sum()
        };
        sum(true) - sum(false)
    }

    fn stop(mut self) {
        // First everyone sends home what is not his, then everyone collects.
        for _ in 0..2 {
            self.settle();
        }
        self.workers.into_iter().for_each(Worker::stop);
        assert_eq!(self.memory.leaked(), 0);
    }
}

/// What a flow is: from where, to where.
#[derive(Clone, Copy, Debug)]
struct Plan {
    kind: u8,
    upper: u8,
    host: u8,
    port: u8,
    remote: u8,
    queues: [usize; 2],
    /// What happens after the other node has been told.
    later: u64,
}

/// A flow with what both of its ends know.
#[derive(Clone, Debug)]
struct Flow {
    plan: Plan,
    /// The client's packets: where they come in and what they look like.
    there: Sent,
    /// The server's, once it is known whom it answers.
    back: Option<Sent>,
    numbers: [u32; 2],
}

fn v6(low: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, low).into()
}

impl Flow {
    fn new(plan: Plan) -> Flow {
        let (host, remote) = (plan.host, plan.remote);
        let inside = |base: u8| IpAddr::from(Ipv4Addr::new(10, 0, 1, base + host));
        let outside = IpAddr::from(Ipv4Addr::new(203, 0, 113, 1 + remote));
        let published = |last: u8| IpAddr::from(Ipv4Addr::new(198, 51, 100, last));
        let far = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, u16::from(1 + remote)));
        let through =
            IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0xcb00, 0x7101 + u16::from(remote)));
        let (port, src, dst, dst_port) = match plan.kind {
            0 | 1 => (INSIDE, inside(0), outside, 53),
            2 => (INSIDE, inside(128), outside, 53),
            3 => (OUTSIDE, outside, published(80), 8000),
            4 => (OUTSIDE, outside, published(90), 7),
            5 => (OUTSIDE, outside, published(85), 80),
            6 => (INSIDE, v6(u16::from(1 + host)), far, 53),
            _ => (INSIDE, v6(u16::from(1 + host)), through, 53),
        };
        let src_port = 5000 + u16::from(plan.port) + 10 * u16::from(plan.kind) + 100 * u16::from(host);
        let upper = match (plan.upper, plan.kind) {
            (0, _) => Upper::Udp { src: src_port, dst: dst_port },
            // Nobody answers a ping to a service.
            (1, 0 | 1 | 2 | 4 | 6 | 7) => Upper::Ping { id: src_port, is_reply: false },
            _ => Upper::Tcp { src: src_port, dst: dst_port, flags: SYN, seq: 1000, ack: 0 },
        };
        let there = Sent { port, src, dst, upper, len: 0 };
        Flow { plan, there, back: None, numbers: [1000, 70_000] }
    }

    /// The next packet of the client or the server.
    fn packet(&self, from: usize, flags: u8, len: usize) -> Sent {
        let sent = if from == 0 { self.there } else { self.back.expect("somebody was asked") };
        let upper = match sent.upper {
            Upper::Tcp { src, dst, .. } => {
                let ack = if flags & ACK != 0 { self.numbers[1 - from] } else { 0 };
                Upper::Tcp { src, dst, flags, seq: self.numbers[from], ack }
            }
            other => other,
        };
        Sent { upper, len, ..sent }
    }

    fn is_tcp(&self) -> bool {
        matches!(self.there.upper, Upper::Tcp { .. })
    }

    fn advance(&mut self, from: usize, sent: &Sent) {
        if let Upper::Tcp { flags, .. } = sent.upper {
            self.numbers[from] += sent.len as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        }
    }

    /// Whom the server answers.
    fn note(&mut self, out: &[(usize, Vec<u8>)]) {
        let [(port, frame)] = out else { panic!("one packet: {} of {:?}", out.len(), self.plan) };
        let (port, src, dst, [src_port, dst_port]) = look(*port, frame);
        let upper = match self.there.upper {
            Upper::Udp { .. } => Upper::Udp { src: dst_port, dst: src_port },
            Upper::Tcp { .. } => Upper::Tcp { src: dst_port, dst: src_port, flags: 0, seq: 0, ack: 0 },
            Upper::Ping { .. } => Upper::Ping { id: src_port, is_reply: true },
        };
        self.back = Some(Sent { port, src: dst, dst: src, upper, len: 0 });
    }

    fn send(&mut self, lab: &mut Lab, from: usize, flags: u8, len: usize) -> Vec<(usize, Vec<u8>)> {
        let sent = self.packet(from, flags, len);
        self.advance(from, &sent);
        lab.send(&sent, self.plan.queues[from])
    }

    /// Until both sides have been heard.
    fn establish(&mut self, lab: &mut Lab) {
        let out = self.send(lab, 0, SYN, 0);
        self.note(&out);
        assert_eq!(self.send(lab, 1, SYN | ACK, 0).len(), 1, "{self:?}");
        if self.is_tcp() {
            assert_eq!(self.send(lab, 0, ACK, 0).len(), 1, "{self:?}");
        }
    }

    /// The same packet through both nodes.
    fn both(&mut self, labs: &mut [Lab; 2], from: usize, flags: u8, len: usize) {
        let sent = self.packet(from, flags, len);
        self.advance(from, &sent);
        let queue = self.plan.queues[from];
        let mut out = labs.each_mut().map(|lab| lab.send(&sent, queue));
        out.iter_mut().flatten().for_each(|(_, frame)| forget_identification(frame));
        assert_eq!(out[0].len(), 1, "the first node lets it through: {sent:?}");
        assert_eq!(out[0], out[1], "{sent:?}");
    }

    fn goes_on(&mut self, labs: &mut [Lab; 2]) {
        let dice = |bit: u32| self.plan.later >> bit & 1 == 1;
        let (first, finishes, resets) = (usize::from(dice(0)), dice(1), dice(2));
        for step in 0..4 {
            let from = (first + step) % 2;
            self.both(labs, from, ACK, 10 + step);
        }
        if self.is_tcp() && finishes {
            for from in [first, 1 - first] {
                self.both(labs, from, FIN | ACK, 0);
            }
            self.both(labs, first, ACK, 0);
        } else if self.is_tcp() && resets {
            self.both(labs, first, RST | ACK, 0);
        }
    }
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (0u8..8, 0u8..3, 0u8..4, 0u8..3, 0u8..4, any::<[u8; 2]>(), any::<u64>()).prop_map(
        |(kind, upper, host, port, remote, queues, later)| Plan {
            kind,
            upper,
            host,
            port,
            remote,
            queues: queues.map(usize::from),
            later,
        },
    );
    prop::collection::vec(plan, 1..24)
}

/// Flows that are different ones.
fn flows_of(plans: &[Plan]) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    for flow in plans.iter().map(|plan| Flow::new(*plan)) {
        if flows.iter().all(|other| other.there != flow.there) {
            flows.push(flow);
        }
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_other_node_does_the_same(plans in plans(), workers in [1usize..5, 1usize..5]) {
        let mut labs = [Lab::new(workers[0], &config(), 1000), Lab::new(workers[1], &config(), 50)];
        let mut flows = flows_of(&plans);
        flows.iter_mut().for_each(|flow| flow.establish(&mut labs[0]));
        let [one, other] = &mut labs;
        one.tell(other);
        prop_assert_eq!(other.refused(), 0);
        prop_assert_eq!(other.sessions(), flows.len() as u64);
        prop_assert_eq!(one.sessions(), flows.len() as u64);
        flows.iter_mut().for_each(|flow| flow.goes_on(&mut labs));
        for lab in &labs {
            let totals = Totals::of(lab.node.counters.iter().map(|counters| &**counters));
            prop_assert_eq!(totals.drops, []);
        }
        // When all is over, nothing of it is left: mappings and what was borrowed came home.
        for lab in &mut labs {
            (0..3).for_each(|_| lab.pass(Duration::from_secs(8000)));
            prop_assert_eq!(lab.sessions(), 0);
        }
        labs.into_iter().for_each(Lab::stop);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_next_process_does_the_same(
        plans in plans(),
        workers in [1usize..5, 1usize..5],
        is_late in any::<bool>(),
        has_peer in any::<bool>(),
    ) {
        let mut labs = [Lab::new(workers[0], &config(), 1000), Lab::new(workers[1], &config(), 50)];
        let [one, other] = &mut labs;
        one.node.replicas().iter().for_each(|desk| desk.set_on(has_peer));
        let mut flows = flows_of(&plans);
        // Kept from the first packet on, or all at once.
        let early = (!is_late).then(|| one.keep());
        flows.iter_mut().for_each(|flow| flow.establish(one));
        let file = early.unwrap_or_else(|| one.keep());
        one.node.journal.get().expect("it was made").ask_all();
        one.settle();
        prop_assert!(one.node.journal.get().expect("it was made").is_whole());
        prop_assert_eq!(one.kept(), flows.len() as u64);
        other.inherit(&file, one.now);
        prop_assert_eq!(other.refused(), 0);
        prop_assert_eq!(other.sessions(), flows.len() as u64);
        flows.iter_mut().for_each(|flow| flow.goes_on(&mut labs));
        for lab in &labs {
            let totals = Totals::of(lab.node.counters.iter().map(|counters| &**counters));
            prop_assert_eq!(totals.drops, []);
        }
        for lab in &mut labs {
            (0..3).for_each(|_| lab.pass(Duration::from_secs(8000)));
            prop_assert_eq!(lab.sessions(), 0);
            prop_assert_eq!(lab.kept(), 0);
        }
        let mut third = Lab::new(1, &config(), 1);
        third.inherit(&file, labs[0].now);
        prop_assert_eq!(third.sessions(), 0);
        labs.into_iter().chain([third]).for_each(Lab::stop);
    }
}

/// What opens, and what nobody has answered to, is not kept; what ends is kept no more, at once.
#[test]
fn what_is_kept_is_what_would_be_missed() {
    let mut lab = Lab::new(1, &config(), 1000);
    lab.node.replicas().iter().for_each(|desk| desk.set_on(false));
    let file = lab.keep();
    for port in 0..200 {
        assert_eq!(lab.send(&flow(2, port).packet(0, SYN, 0), 0).len(), 1);
    }
    lab.send(&flow(0, 0).packet(0, 0, 10), 0);
    assert_eq!((lab.sessions(), lab.kept()), (201, 0));
    let mut ping = flow(1, 1);
    ping.establish(&mut lab);
    lab.settle();
    assert_eq!(lab.kept(), 1);
    // Its packets are noted in time for it not to be taken for over.
    for _ in 0..20 {
        lab.pass(Duration::from_secs(20));
        ping.send(&mut lab, 0, 0, 10);
    }
    let mut next = Lab::new(2, &config(), 1);
    next.inherit(&file, lab.now);
    assert_eq!(next.sessions(), 1);
    next.pass(Duration::from_secs(20));
    assert_eq!(next.sessions(), 1, "its time has not begun anew, nor was it over");
    lab.pass(Duration::from_secs(100));
    assert_eq!((lab.sessions(), lab.kept()), (0, 0));
}

/// Everything that happens in the name of a plain flow from inside, through NAT.
fn flow(upper: u8, port: u8) -> Flow {
    Flow::new(Plan { kind: 0, upper, host: 1, port, remote: 2, queues: [0, 1], later: 0 })
}

/// A flow for each upper layer, known to both nodes.
fn told(workers: [usize; 2], other: &str) -> ([Lab; 2], Vec<Flow>) {
    let mut labs = [Lab::new(workers[0], &config(), 1000), Lab::new(workers[1], other, 50)];
    let mut flows: Vec<Flow> = (0..3).map(|upper| flow(upper, upper)).collect();
    flows.iter_mut().for_each(|flow| flow.establish(&mut labs[0]));
    let [one, other] = &mut labs;
    one.tell(other);
    assert_eq!((one.sessions(), other.sessions(), other.refused()), (3, 3, 0));
    (labs, flows)
}

#[test]
fn what_opens_is_not_told() {
    let mut labs = [Lab::new(2, &config(), 1000), Lab::new(1, &config(), 50)];
    for port in 0..200 {
        let sent = flow(2, port).packet(0, SYN, 0);
        assert_eq!(labs[0].send(&sent, usize::from(port)).len(), 1);
    }
    // Nor is what nobody has answered to.
    labs[0].send(&flow(0, 0).packet(0, 0, 10), 0);
    labs[0].send(&flow(1, 1).packet(0, 0, 10), 0);
    let [one, other] = &mut labs;
    one.tell(other);
    assert_eq!((one.sessions(), other.sessions()), (202, 0));
}

#[test]
fn a_resync_tells_everything_and_ends_the_rest() {
    for workers in [[1, 3], [3, 1]] {
        let (mut labs, mut flows) = told(workers, &config());
        // Ended here, and nobody said so.
        labs[0].node.replicas().iter().for_each(|desk| desk.set_on(false));
        labs[0].pass(Duration::from_secs(200));
        assert_eq!(labs[0].sessions(), 2, "the ping is over");
        labs[0].node.replicas().iter().for_each(|desk| desk.set_on(true));
        labs[0].node.replicas().iter().for_each(|desk| desk.resync(1));
        let [one, other] = &mut labs;
        other.node.dispatch().begin().expect("room");
        assert_eq!(one.tell(other) as usize, workers[0], "every worker comes to an end");
        assert_eq!(other.sessions(), 3);
        other.node.dispatch().sweep().expect("room");
        other.settle();
        assert_eq!(other.sessions(), 2);
        assert_eq!(other.sum(|replicas| replicas.swept.load(Ordering::Relaxed)), 1);
        flows.remove(1);
        flows.iter_mut().for_each(|flow| flow.goes_on(&mut labs));
        labs.into_iter().for_each(Lab::stop);
    }
}

fn differing(one: &[u64], other: &[u64]) -> Vec<u16> {
    (0..=u16::MAX).filter(|slice| one[usize::from(*slice)] != other[usize::from(*slice)]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    /// Both nodes find the same sums, whatever the flows, the workers and what each of them knows; they differ where one
    /// has ended what the other has not heard of, and what is told again makes them equal.
    #[test]
    fn audits_see_what_has_drifted(plans in plans(), workers in [1usize..5, 1usize..5], tells_first: bool) {
        let mut labs = [Lab::new(workers[0], &config(), 1000), Lab::new(workers[1], &config(), 50)];
        let mut flows = flows_of(&plans);
        flows.iter_mut().for_each(|flow| flow.establish(&mut labs[0]));
        let [one, other] = &mut labs;
        one.tell(other);
        prop_assert!(differing(&one.sums(1), &other.sums(1)).is_empty());
        // A ping is over, here or there, and nobody says so.
        let [is_over, stays] = if tells_first { [one, other] } else { [other, one] };
        is_over.node.replicas().iter().for_each(|desk| desk.set_on(false));
        is_over.pass(Duration::from_secs(200));
        is_over.node.replicas().iter().for_each(|desk| desk.set_on(true));
        let pings = flows.iter().filter(|flow| matches!(flow.there.upper, Upper::Ping { .. })).count();
        let apart = differing(&is_over.sums(2), &stays.sums(2));
        prop_assert_eq!(apart.len(), pings);
        if pings > 0 {
            // The first node has seen packets of it: its word counts.
            let sessions = flows.len() as u64 - if tells_first { pings as u64 } else { 0 };
            let [one, other] = if tells_first { [is_over, stays] } else { [stays, is_over] };
            one.repair(other, &apart);
            prop_assert_eq!((one.sessions(), other.sessions()), (sessions, sessions));
            prop_assert!(differing(&one.sums(3), &other.sums(3)).is_empty());
        }
        let totals = |lab: &Lab| Totals::of(lab.node.counters.iter().map(|counters| &**counters)).drops;
        prop_assert!(labs.iter().all(|lab| totals(lab).is_empty()));
        labs.into_iter().for_each(Lab::stop);
    }
}

/// What a node knows only from another one that has lost it is not ended when that one comes back with nothing.
#[test]
fn who_comes_back_with_nothing_ends_nothing() {
    for workers in [[1, 2], [3, 1]] {
        let (labs, mut flows) = told(workers, &config());
        let [dead, mut other] = labs;
        dead.stop();
        let mut back = Lab::new(workers[0], &config(), 1);
        // It tells of everything, which is nothing.
        other.node.dispatch().begin().expect("room");
        other.node.dispatch().disown().expect("room");
        other.settle();
        assert_eq!(other.sessions(), 3);
        other.node.replicas().iter().for_each(|desk| desk.resync(1));
        other.tell(&mut back);
        assert_eq!((back.sessions(), back.refused()), (3, 0));
        // From now on it has heard of them: what it does not tell of is over.
        back.node.replicas().iter().for_each(|desk| desk.resync(2));
        other.node.dispatch().begin().expect("room");
        back.tell(&mut other);
        other.node.dispatch().sweep().expect("room");
        other.settle();
        assert_eq!(other.sessions(), 3);
        let mut labs = [back, other];
        flows.iter_mut().for_each(|flow| flow.goes_on(&mut labs));
        labs.into_iter().for_each(Lab::stop);
    }
}

#[test]
fn who_has_seen_later_packets_keeps_the_session() {
    let (mut labs, mut flows) = told([1, 1], &config());
    // The second takes over.
    labs[1].pass(Duration::from_secs(5));
    for flow in &mut flows {
        assert_eq!(flow.send(&mut labs[1], 0, ACK, 9).len(), 1);
    }
    // The first, which has heard of nothing, tells everything again, and ends what is idle with it.
    labs[0].node.replicas()[0].resync(1);
    labs[0].settle();
    labs[0].pass(Duration::from_secs(70));
    let [one, other] = &mut labs;
    one.tell(other);
    assert_eq!(other.sum(|replicas| replicas.kept.load(Ordering::Relaxed)), 3);
    assert_eq!(other.sessions(), 3);
    assert_eq!(other.sum(|replicas| replicas.ended.load(Ordering::Relaxed)), 0, "the ping goes on");
    // The other way round the first learns of them, the ended one too.
    other.tell(one);
    other.node.replicas()[0].resync(1);
    other.tell(one);
    assert_eq!(one.sessions(), 3);
    flows.iter_mut().for_each(|flow| flow.goes_on(&mut labs));
    labs.into_iter().for_each(Lab::stop);
}

#[test]
fn what_the_first_ends_is_ended() {
    let (mut labs, mut flows) = told([2, 2], &config());
    labs[0].pass(Duration::from_secs(200));
    let [one, other] = &mut labs;
    one.tell(other);
    assert_eq!((one.sessions(), other.sessions()), (2, 2));
    assert_eq!(other.sum(|replicas| replicas.ended.load(Ordering::Relaxed)), 1);
    // A reset is told as a state; its time runs on both.
    flows[2].send(one, 0, RST | ACK, 0);
    one.tell(other);
    (0..3).for_each(|_| one.pass(Duration::from_secs(100)));
    one.tell(other);
    assert_eq!((one.sessions(), other.sessions()), (0, 0));
}

/// A session that the second node's rules do not allow is kept, and its next packet asked about; the port that it has is
/// nobody else's.
#[test]
fn what_is_not_allowed_there_is_stale_and_not_wrong() {
    let other =
        config().replace("from = { zone = \"inside\" }\n[[rule]]", "from = { zone = \"outside\" }\n[[rule]]");
    assert_ne!(other, config());
    let (mut labs, mut flows) = told([1, 1], &other);
    for (at, flow) in flows.iter_mut().enumerate() {
        assert!(flow.send(&mut labs[1], 0, ACK, 9).is_empty());
        assert_eq!(labs[1].sessions(), 2 - at as u64, "it has ended");
    }
    let totals = Totals::of(labs[1].node.counters.iter().map(|counters| &**counters));
    assert_eq!(totals.drops.iter().map(|(_, count)| count).sum::<u64>(), 3, "{:?}", totals.drops);
}

/// The same if the server's packets come first: nothing says yet where they come in.
#[test]
fn what_is_not_allowed_there_is_stale_for_replies_too() {
    let other =
        config().replace("from = { zone = \"inside\" }\n[[rule]]", "from = { zone = \"outside\" }\n[[rule]]");
    assert_ne!(other, config());
    let (mut labs, mut flows) = told([1, 1], &other);
    for flow in &mut flows {
        assert!(flow.send(&mut labs[1], 1, ACK, 9).is_empty());
    }
    let totals = Totals::of(labs[1].node.counters.iter().map(|counters| &**counters));
    assert_eq!(totals.drops.iter().map(|(_, count)| count).sum::<u64>(), 3, "{:?}", totals.drops);
}

/// While a change is on its way from one node to the other, the first one's word counts.
#[test]
fn a_change_of_the_second_node_alone_ends_nothing() {
    let (mut labs, mut flows) = told([1, 2], &config());
    let narrower =
        config().replace("from = { zone = \"inside\" }\n[[rule]]", "from = { zone = \"outside\" }\n[[rule]]");
    assert_ne!(narrower, config());
    labs[1].publish(&narrower);
    labs[1].pass(Duration::from_secs(30));
    assert_eq!(labs[1].sessions(), 3);
    labs[1].publish(&config());
    flows.iter_mut().for_each(|flow| flow.goes_on(&mut labs));
    labs.into_iter().for_each(Lab::stop);
}

/// An end that is told right behind the beginning does not overtake it, whichever workers it has to pass.
#[test]
fn an_end_comes_behind_the_beginning() {
    for workers in [2, 3, 4] {
        let mut labs = [Lab::new(1, &config(), 1000), Lab::new(workers, &config(), 50)];
        let mut hosts: Vec<Flow> = (0..4)
            .map(|host| {
                Flow::new(Plan { kind: 0, upper: 0, host, port: 0, remote: 1, queues: [0, 1], later: 0 })
            })
            .collect();
        hosts.iter_mut().for_each(|flow| flow.establish(&mut labs[0]));
        for (from, to) in hosts.iter().zip(hosts.iter().cycle().skip(1)) {
            let back = to.back.expect("it was asked");
            let (Upper::Udp { dst: dst_port, .. }, Upper::Udp { src, .. }) = (back.upper, from.there.upper)
            else {
                panic!("UDP")
            };
            let there = Sent { dst: back.dst, upper: Upper::Udp { src, dst: dst_port }, ..from.there };
            Flow { there, back: None, ..from.clone() }.establish(&mut labs[0]);
        }
        // All that begins and all that ends, before any worker of the other node has looked at it.
        let [one, other] = &mut labs;
        one.settle();
        let mut changes: Vec<Change> = std::iter::from_fn(|| one.node.replicas()[0].next()).collect();
        one.pass(Duration::from_secs(1000));
        changes.extend(std::iter::from_fn(|| one.node.replicas()[0].next()));
        assert_eq!(one.sessions(), 0);
        for change in changes {
            match change {
                Change::Is(record) => drop(other.node.dispatch().install(record, true).expect("room")),
                Change::Gone(gone) => other.node.dispatch().end(gone).expect("room"),
                other => panic!("{other:?}"),
            }
        }
        other.settle();
        assert_eq!((other.sessions(), other.refused()), (0, 0), "{workers} workers");
        (0..3).for_each(|_| other.pass(Duration::from_secs(500)));
        labs.into_iter().for_each(Lab::stop);
    }
}

/// One inside host talks to another's outside: what both have is told, and restored by whichever workers keep it.
#[test]
fn hairpins_are_told_with_both_mappings() {
    for workers in [[1, 4], [4, 1], [3, 4], [4, 3]] {
        let mut labs = [Lab::new(workers[0], &config(), 1000), Lab::new(workers[1], &config(), 50)];
        let mut hosts: Vec<Flow> = (0..4)
            .map(|host| {
                Flow::new(Plan { kind: 0, upper: 0, host, port: 0, remote: 1, queues: [0, 1], later: 0 })
            })
            .collect();
        hosts.iter_mut().for_each(|flow| flow.establish(&mut labs[0]));
        let outside = |flow: &Flow| {
            let back = flow.back.expect("it was asked");
            let Upper::Udp { dst, .. } = back.upper else { panic!("UDP") };
            (back.dst, dst)
        };
        let mut pins: Vec<Flow> = Vec::new();
        for (from, to) in hosts.iter().zip(hosts.iter().skip(1)) {
            let (dst, dst_port) = outside(to);
            let Upper::Udp { src, .. } = from.there.upper else { panic!("UDP") };
            let there = Sent { dst, upper: Upper::Udp { src, dst: dst_port }, ..from.there };
            let mut pin = Flow { there, back: None, ..from.clone() };
            pin.establish(&mut labs[0]);
            pins.push(pin);
        }
        let [one, other] = &mut labs;
        one.tell(other);
        assert_eq!((other.sessions(), other.refused()), (7, 0), "{workers:?}");
        hosts.iter_mut().chain(&mut pins).for_each(|flow| flow.goes_on(&mut labs));
        for lab in &mut labs {
            (0..3).for_each(|_| lab.pass(Duration::from_secs(500)));
            assert_eq!(lab.sessions(), 0);
        }
        labs.into_iter().for_each(Lab::stop);
    }
}

/// One segment of two ports, which have zones.
const SEGMENT: &str = r#"
schema = 1
[[port]]
name = "in"
device = "eth1"
[[port]]
name = "out"
device = "eth2"
[[bridge]]
name = "seg"
members = [{ port = "in", zone = "inside" }, { port = "out", zone = "outside" }]
loop_probe_s = 0
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
"#;

/// The client on the one port and the server on the other, by MAC and IP address.
const STATIONS: [([u8; 6], [u8; 4]); 2] =
    [([2, 0, 0, 0, 1, 1], [10, 0, 0, 1]), ([2, 0, 0, 0, 2, 2], [10, 0, 0, 2])];

/// A segment from a station to the other one.
fn between(from: usize, port: u16, flags: u8, [seq, ack]: [u32; 2], len: usize) -> Vec<u8> {
    let [(mac, addr), (other_mac, other)] = [STATIONS[from], STATIONS[1 - from]];
    let (src, dst) = if from == 0 { (port, 80) } else { (80, port) };
    let mut tcp = PacketBuilder::ethernet2(mac, other_mac).ipv4(addr, other, 64).tcp(src, dst, seq, 20_000);
    tcp = if flags & SYN != 0 { tcp.syn() } else { tcp };
    tcp = if flags & ACK != 0 { tcp.ack(ack) } else { tcp };
    let mut frame = Vec::new();
    tcp.write(&mut frame, &vec![7; len]).expect("a vector takes everything");
    frame
}

impl Lab {
    /// True if the other station gets this frame as it is, and nobody anything else.
    fn bridges(&mut self, from: usize, frame: &[u8], queue: usize) -> bool {
        let queue = queue % self.workers.len();
        self.cables[from].send(queue, [frame.to_vec()]);
        self.settle();
        assert_eq!(self.cables[from].take().len(), 0, "nothing goes back");
        let out = self.cables[1 - from].take();
        assert!(out.iter().all(|out| **out == *frame));
        out.len() == 1
    }

    /// Has the stations learned.
    fn meet(&mut self) {
        for (port, (mac, _)) in STATIONS.iter().enumerate() {
            let look = [&[0xff; 6][..], mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], mac, &[0; 36]].concat();
            self.cables[port].send(0, [look]);
            self.settle();
            self.cables[1 - port].take();
        }
    }
}

/// A node that takes a bridge over has never heard of its stations. It lets through what is known of the sessions between
/// members in different zones, and no connection in its midst besides.
#[test]
fn a_connection_between_members_goes_on_at_the_other_node() {
    for (workers, speaks_first) in [([1, 1], 0), ([2, 1], 1), ([1, 2], 0), ([2, 2], 1)] {
        let (mut first, mut second) = (Lab::new(workers[0], SEGMENT, 10), Lab::new(workers[1], SEGMENT, 900));
        first.meet();
        for (from, flags, numbers, len) in [
            (0, SYN, [1000, 0], 0),
            (1, SYN | ACK, [5000, 1001], 0),
            (0, ACK, [1001, 5001], 10),
            (1, ACK, [5001, 1011], 20),
        ] {
            assert!(first.bridges(from, &between(from, 4000, flags, numbers, len), from), "{flags}");
        }
        first.tell(&mut second);
        assert_eq!((second.sessions(), second.refused()), (1, 0));
        let answered = |lab: &Lab| {
            lab.node
                .replicas()
                .iter()
                .map(|desk| desk.known())
                .fold((0, 0), |sum, known| (sum.0 + known.0, sum.1 + known.1))
        };
        assert_eq!(answered(&first), (1, 1), "nothing keeps it from leaving");
        assert_eq!(first.sums(1), second.sums(1));
        assert!(first.sums(2).iter().any(|sum| *sum != 0));

        // Stations are found by what they send.
        let there = [between(0, 4000, ACK, [1011, 5021], 30), between(1, 4000, ACK, [5021, 1011], 40)];
        for from in [speaks_first, 1 - speaks_first, speaks_first] {
            assert!(second.bridges(from, &there[from], from + 1), "from {from}, {workers:?}");
        }
        assert!(!second.bridges(0, &between(0, 4001, ACK, [1011, 5021], 30), 0), "nobody has told of that");
        assert!(!second.bridges(1, &between(1, 4001, SYN, [1, 0], 0), 0), "no rule leads there");
        first.stop();
        second.stop();
    }
}
