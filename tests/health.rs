//! Health checks through the shipped worker loop: probes leave as the gateway's own packets, and their answers, and
//! nothing else, are taken on whatever worker they come in, past the firewall. Hosts are built by etherparse.

use std::collections::VecDeque;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use pcap_file::TsResolution;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use softgate::config::{Config, HealthCheck};
use softgate::host::probe::{Event, PORTS, Reason, Target, Verdict};
use softgate::io::{Port, pcap};
use softgate::mem::{ChunkSize, FramePool, Frames, PacketMemory};
use softgate::packet::DropReason;
use softgate::replay;
use softgate::telemetry::Totals;
use softgate::time::Nanos;
use softgate::worker::{Node, Prober, Worker};

const INTERFACES: &str = r#"
schema = 1
[[port]]
name = "lan"
device = "eth1"
[[interface]]
name = "lan"
port = "lan"
mac = "02:00:00:00:00:01"
mtu = 9000
addresses = ["10.0.0.1/24", "2001:db8::1/64"]
ZONE
[[neighbour]]
interface = "lan"
address = "10.0.0.10"
mac = "02:00:00:00:00:0a"
[[neighbour]]
interface = "lan"
address = "2001:db8::10"
mac = "02:00:00:00:00:0a"
"#;

const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];
const V4: &str = "10.0.0.10";
const V6: &str = "2001:db8::10";

/// Both ends of what is plugged in.
#[derive(Default)]
struct Wire {
    to_gateway: VecDeque<Vec<u8>>,
    from_gateway: VecDeque<Vec<u8>>,
}

struct Cable(Arc<Mutex<Wire>>);

impl Port for Cable {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let mut wire = self.0.lock().expect("no holder panics");
        let before = frames.len();
        while !frames.is_full()
            && let Some(bytes) = wire.to_gateway.front()
            && let Some(frame) = pool.take_filled(bytes)
        {
            frames.push(frame);
            wire.to_gateway.pop_front();
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let mut wire = self.0.lock().expect("no holder panics");
        let count = frames.len();
        for frame in frames.drain(..) {
            wire.from_gateway.push_back(frame.bytes().to_vec());
            pool.put(frame);
        }
        count
    }
}

/// A gateway of so many workers, each with a queue of the port.
struct Gate {
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    workers: Vec<Worker>,
    wires: Vec<Arc<Mutex<Wire>>>,
    prober: Prober,
    now: Nanos,
    events: Vec<Event>,
}

impl Gate {
    fn new(workers: usize, config: &str) -> Gate {
        let config = Config::parse(config, "gw.toml").expect("a good config");
        let (node, _) = replay::compile(&config, workers, false).expect("tables");
        let (memory, pools) = PacketMemory::new(workers, 2048, ChunkSize::Bytes2048).expect("memory");
        let mut wires = Vec::new();
        let workers = pools.into_iter().enumerate().map(|(id, pool)| {
            let mut worker = Worker::new(id, &node, pool);
            let wire: Arc<Mutex<Wire>> = Arc::default();
            worker.attach(0, 0, Box::new(Cable(Arc::clone(&wire))));
            wires.push(wire);
            worker
        });
        let workers = workers.collect();
        let prober = Prober::new(&node, 7);
        Gate { node, memory, workers, wires, prober, now: Nanos::from_secs(1), events: Vec::new() }
    }

    fn zoned(workers: usize) -> Gate {
        Gate::new(workers, &INTERFACES.replace("ZONE", "zone = \"lan\""))
    }

    fn check(&mut self, checks: &[(u32, &str, &str)]) {
        let target = |(id, addr, check): &(u32, &str, &str)| {
            let check: HealthCheck = toml::from_str(check).expect("a check");
            Target {
                id: *id,
                vrf: 0,
                addr: addr.parse().expect("an address"),
                port: 80,
                check: Arc::new(check),
            }
        };
        self.prober.set_targets(checks.iter().map(target).collect(), self.now);
    }

    /// Lets the workers do all there is, but not the health checks.
    fn settle(&mut self) {
        while self.workers.iter_mut().fold(false, |worked, worker| worker.turn(self.now) | worked) {}
    }

    /// What the gateway has sent since the last call.
    fn sent(&self) -> Vec<Vec<u8>> {
        let wires = self.wires.iter().map(|wire| wire.lock().expect("no holder panics"));
        wires.flat_map(|mut wire| std::mem::take(&mut wire.from_gateway)).collect()
    }

    fn receive(&mut self, worker: usize, frame: Vec<u8>) {
        self.wires[worker].lock().expect("no holder panics").to_gateway.push_back(frame);
    }

    /// So many milliseconds with `host` at the other end; its answers come in at each worker in turns.
    fn pass(&mut self, millis: u64, mut host: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
        let mut next = 0;
        for _ in 0..millis {
            self.now.0 += 1_000_000;
            loop {
                let mut worked = self.prober.turn(self.now, &mut self.events);
                self.settle();
                for frame in self.sent() {
                    worked = true;
                    if let Some(answer) = host(&frame) {
                        next = (next + 1) % self.workers.len();
                        self.receive(next, answer);
                    }
                }
                self.settle();
                if !worked {
                    break;
                }
            }
        }
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        let totals = Totals::of(self.node.counters.iter().map(|counters| &**counters));
        totals.drops.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Ids and verdicts so far.
    fn said(&mut self) -> Vec<(u32, Verdict, Reason)> {
        let mut said: Vec<_> = self.events.drain(..).map(|e| (e.id, e.verdict, e.reason)).collect();
        said.sort_unstable_by_key(|(id, ..)| *id);
        said
    }

    fn ends(self) {
        self.workers.into_iter().for_each(Worker::stop);
        assert_eq!(self.memory.leaked(), 0);
    }
}

/// The addresses of a frame.
fn ends_of(sliced: &SlicedPacket<'_>) -> (IpAddr, IpAddr) {
    match sliced.net.as_ref().expect("IP") {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => panic!("all neighbours are known"),
    }
}

/// A frame to the gateway.
fn builder(src: IpAddr, dst: IpAddr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(HOST_MAC, OWN_MAC);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("one family"),
    }
}

/// A host with an open TCP port and an echo service, that answers pings.
fn kind_host(frame: &[u8]) -> Option<Vec<u8>> {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
    let (own, host) = ends_of(&sliced);
    assert!(
        own == IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))
            || own == IpAddr::V6("2001:db8::1".parse().expect("v6"))
    );
    let mut answer = Vec::new();
    match sliced.transport.expect("an upper layer") {
        TransportSlice::Tcp(tcp) if tcp.syn() => {
            assert!(PORTS.contains(&tcp.source_port()));
            builder(host, own)
                .tcp(tcp.destination_port(), tcp.source_port(), 1, 1000)
                .syn()
                .ack(tcp.sequence_number().wrapping_add(1))
                .write(&mut answer, &[])
        }
        TransportSlice::Tcp(_) => return None,
        TransportSlice::Udp(udp) => builder(host, own)
            .udp(udp.destination_port(), udp.source_port())
            .write(&mut answer, udp.payload()),
        TransportSlice::Icmpv4(icmp) => {
            let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else { panic!("an echo request") };
            builder(host, own).icmpv4_echo_reply(echo.id, echo.seq).write(&mut answer, icmp.payload())
        }
        TransportSlice::Icmpv6(icmp) => {
            let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else { panic!("an echo request") };
            builder(host, own).icmpv6_echo_reply(echo.id, echo.seq).write(&mut answer, icmp.payload())
        }
        TransportSlice::Igmp(_) => panic!("no multicast"),
    }
    .expect("a vector takes everything");
    Some(answer)
}

const CHECKS: [(u32, &str, &str); 6] = [
    (1, V4, "type = \"tcp\"\ninterval = \"500ms\""),
    (2, V6, "type = \"tcp\"\ninterval = \"500ms\""),
    (3, V4, "type = \"udp\"\ninterval = \"500ms\"\nsend = \"ping\"\nexpect = \"ping\""),
    (4, V6, "type = \"udp\"\ninterval = \"500ms\"\nsend = \"ping\"\nexpect = \"ping\""),
    (5, V4, "type = \"icmp\"\ninterval = \"500ms\""),
    (6, V6, "type = \"icmp\"\ninterval = \"500ms\""),
];

#[test]
fn answers_are_taken_on_any_worker_with_zones_and_without() {
    for config in [INTERFACES.replace("ZONE", "zone = \"lan\""), INTERFACES.replace("ZONE", "")] {
        for workers in [1, 2, 4] {
            let mut gate = Gate::new(workers, &config);
            gate.check(&CHECKS);
            gate.pass(1000, kind_host);
            let up: Vec<_> = (1..=6).map(|id| (id, Verdict::Up, Reason::Ok)).collect();
            assert_eq!(gate.said(), up, "{workers} workers");
            gate.pass(2000, |_| None);
            let down: Vec<_> = (1..=6).map(|id| (id, Verdict::Down, Reason::Timeout)).collect();
            assert_eq!(gate.said(), down, "{workers} workers");
            assert_eq!(gate.drops(), [], "{workers} workers");
            gate.ends();
        }
    }
}

/// Who answers in the place of whom was asked, or something else, finds the firewall.
#[test]
fn only_what_was_asked_for_passes_the_firewall() {
    let mut gate = Gate::zoned(2);
    gate.check(&[(1, V4, "type = \"tcp\"\ninterval = \"10s\"")]);
    let mut syn = Vec::new();
    gate.pass(1000, |frame| {
        syn = frame.to_vec();
        None
    });
    let sliced = SlicedPacket::from_ethernet(&syn).expect("a SYN");
    let (own, host) = ends_of(&sliced);
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("TCP") };
    let (own_port, acked) = (tcp.source_port(), tcp.sequence_number().wrapping_add(1));
    let answer = |src: IpAddr, ports: (u16, u16)| {
        let mut bytes = Vec::new();
        let tcp = builder(src, own).tcp(ports.0, ports.1, 1, 1000).syn().ack(acked);
        tcp.write(&mut bytes, &[]).expect("a vector takes everything");
        bytes
    };
    let mut datagram = Vec::new();
    builder(host, own).udp(80, own_port).write(&mut datagram, b"ping").expect("a vector");
    let other: IpAddr = "10.0.0.11".parse().expect("an address");
    let below = if own_port == *PORTS.start() { own_port + 1 } else { own_port - 1 };
    let wrong =
        [answer(other, (80, own_port)), answer(host, (81, own_port)), answer(host, (80, below)), datagram];
    let count = wrong.len() as u64;
    wrong.into_iter().enumerate().for_each(|(at, frame)| gate.receive(at % 2, frame));
    gate.settle();
    gate.pass(5, |_| None);
    assert_eq!((gate.said(), gate.drops()), (vec![], vec![(DropReason::FirewallDeny, count)]));
    gate.receive(1, answer(host, (80, own_port)));
    gate.settle();
    gate.pass(5, |_| None);
    assert_eq!(gate.said(), [(1, Verdict::Up, Reason::Ok)]);
    // When the probe is over, the same is a packet as any.
    gate.receive(1, answer(host, (80, own_port)));
    gate.settle();
    assert_eq!(gate.drops(), [(DropReason::FirewallDeny, count + 1)]);
    gate.ends();
}

/// The addresses of somebody behind a route of another VRF: what goes there comes back there.
#[test]
fn a_backend_of_another_vrf() {
    let config = INTERFACES.replace("ZONE", "zone = \"lan\"\nvrf = \"red\"")
        + "[[vrf]]\nname = \"red\"\n[[route]]\nprefix = \"10.0.0.0/24\"\nvia = [\"10.0.0.10@red\"]\n";
    let mut gate = Gate::new(2, &config);
    gate.check(&[CHECKS[0], CHECKS[2], CHECKS[4]]);
    gate.pass(1000, kind_host);
    assert_eq!(gate.said(), [1, 3, 5].map(|id| (id, Verdict::Up, Reason::Ok)));
    assert_eq!(gate.drops(), []);
    gate.ends();
}

/// The host's own word that nobody listens passes the firewall as well, if it quotes what was asked.
#[test]
fn a_closed_port_is_told_by_icmp() {
    let mut gate = Gate::zoned(2);
    gate.check(&[CHECKS[2], CHECKS[3]]);
    let refused = |frame: &[u8], spoil: usize| {
        let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
        let (own, host) = ends_of(&sliced);
        let mut quoted = frame[14..].to_vec();
        let at = if host.is_ipv4() { 20 } else { 40 };
        quoted[at + 1] ^= spoil as u8;
        let mut answer = Vec::new();
        match host {
            IpAddr::V4(_) => builder(host, own)
                .icmpv4(Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port))
                .write(&mut answer, &quoted),
            IpAddr::V6(_) => builder(host, own)
                .icmpv6(Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port))
                .write(&mut answer, &quoted),
        }
        .expect("a vector takes everything");
        Some(answer)
    };
    gate.pass(2000, |frame| refused(frame, 0));
    assert_eq!(gate.said(), [3, 4].map(|id| (id, Verdict::Down, Reason::Refused)));
    assert_eq!(gate.drops(), []);
    // Of another port it is about nothing that we know.
    let mut lost = 0;
    gate.pass(1000, |frame| {
        lost += 1;
        refused(frame, 1)
    });
    assert_eq!(gate.drops(), [(DropReason::IcmpErrorNoSession, lost)]);
    gate.ends();
}

/// Answers that nobody looks at, because the health checks are kept from their CPU.
#[test]
fn answers_that_find_no_buffer() {
    let mut gate = Gate::zoned(1);
    gate.check(&[(1, V4, "type = \"udp\"\ninterval = \"10s\"\nsend = \"ping\"\nexpect = \"ping\"")]);
    let mut answer = Vec::new();
    gate.pass(1000, |frame| {
        answer = kind_host(frame).expect("an answer");
        None
    });
    for _ in 0..600 {
        gate.receive(0, answer.clone());
    }
    gate.settle();
    assert_eq!(gate.drops(), [(DropReason::ProbeQueueFull, 600 - 512)]);
    gate.pass(5, |_| None);
    assert_eq!(gate.said(), [(1, Verdict::Up, Reason::Ok)]);
    gate.ends();
}

#[test]
fn an_answer_that_fits_no_buffer() {
    let mut gate = Gate::zoned(1);
    gate.check(&[(1, V6, "type = \"udp\"\ninterval = \"10s\"")]);
    gate.pass(1000, |frame| {
        let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
        let (own, host) = ends_of(&sliced);
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("UDP") };
        let mut answer = Vec::new();
        let built = builder(host, own).udp(udp.destination_port(), udp.source_port());
        built.write(&mut answer, &[7; 3000]).expect("a vector takes everything");
        Some(answer)
    });
    assert_eq!((gate.said(), gate.drops()), (vec![], vec![(DropReason::ProbeAnswerTooLong, 1)]));
    gate.ends();
}

/// No route, no address, no neighbour.
#[test]
fn what_cannot_be_asked_is_down() {
    let config = INTERFACES.replace("ZONE", "").replace("\"10.0.0.1/24\", ", "");
    let mut gate = Gate::new(1, &config.replace("address = \"10.0.0.10\"", "address = \"2001:db8::11\""));
    let fast = "type = \"tcp\"\ninterval = \"100ms\"\nfall = 1";
    let own: IpAddr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into();
    gate.check(&[
        (1, V4, fast),
        (2, "2001:db8:1::1", fast),
        (3, &own.to_string(), fast),
        (4, "2001:db8::12", fast),
    ]);
    gate.pass(200, |_| None);
    let down = |id, reason| (id, Verdict::Down, reason);
    let no_route = Reason::NoRoute;
    assert_eq!(
        gate.said(),
        [down(1, no_route), down(2, no_route), down(3, no_route), down(4, Reason::Unreachable)]
    );
    gate.ends();
}

/// A capture of what a replay with these frames sends, and what it says of the only target.
fn replayed(workers: usize, frames: &[(u64, Vec<u8>)]) -> (Vec<(Nanos, Vec<u8>)>, Vec<Event>) {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("in.pcap");
    let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
    let mut writer =
        PcapWriter::with_header(File::create(&input).expect("a file"), header).expect("a capture");
    for (millis, frame) in frames {
        let packet = PcapPacket::new(Duration::from_millis(5_000_000 + millis), frame.len() as u32, frame);
        writer.write_packet(&packet).expect("a packet");
    }
    drop(writer);
    let check: HealthCheck = toml::from_str("type = \"tcp\"\ninterval = \"10s\"").expect("a check");
    let target =
        Target { id: 9, vrf: 0, addr: V4.parse().expect("an address"), port: 80, check: Arc::new(check) };
    let options = replay::Options {
        inputs: vec![("lan".to_owned(), input)],
        out: folder.path().join("out"),
        workers,
        linger: Duration::from_secs(2),
        reloads: Vec::new(),
        roles: Vec::new(),
        targets: vec![target],
    };
    let config =
        Config::parse(&INTERFACES.replace("ZONE", "zone = \"lan\""), "gw.toml").expect("a good config");
    let report = replay::run(&config, &options).expect("a replay");
    assert_eq!(report.leaked_frames, 0);
    let sent = pcap::read(&options.out.join("lan.pcap")).expect("a capture");
    (sent.into_iter().map(|sent| (sent.time, sent.bytes)).collect(), report.verdicts)
}

/// The first run shows the SYN, the second has the answer to it in its capture; both begin alike, to the byte.
#[test]
fn a_replay_probes_by_the_clock_of_its_capture() {
    let mut noise = Vec::new();
    builder(V4.parse().expect("an address"), "10.0.0.1".parse().expect("an address"))
        .udp(1, 1)
        .write(&mut noise, &[])
        .expect("a vector");
    let (sent, said) = replayed(1, &[(0, noise.clone())]);
    let (first, rest) = sent.split_first().expect("a SYN");
    assert_eq!(said, []);
    assert!(rest.iter().all(|(_, bytes)| *bytes == first.1), "nobody answers: it is sent again");
    let answer = kind_host(&first.1).expect("an answer");
    let millis = first.0.0 / 1_000_000 - 5_000_000 + 5;
    for workers in [1, 2, 4] {
        let (sent, said) = replayed(workers, &[(0, noise.clone()), (millis, answer.clone())]);
        assert_eq!(sent[0], *first);
        let [event] = said[..] else { panic!("{said:?}") };
        assert_eq!((event.id, event.verdict, event.reason), (9, Verdict::Up, Reason::Ok));
        // The connection is open, and then not any more.
        let flags: Vec<(bool, bool, u32, u32)> = sent[1..]
            .iter()
            .map(|(_, bytes)| match SlicedPacket::from_ethernet(bytes).expect("a frame").transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    (tcp.ack(), tcp.rst(), tcp.sequence_number(), tcp.acknowledgment_number())
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let Some(TransportSlice::Tcp(syn)) =
            SlicedPacket::from_ethernet(&first.1).expect("a frame").transport
        else {
            panic!("TCP")
        };
        let next = syn.sequence_number().wrapping_add(1);
        assert_eq!(flags, [(true, false, next, 2), (true, true, next, 2)]);
        assert_eq!(replayed(workers, &[(0, noise.clone()), (millis, answer.clone())]), (sent, said));
    }
}

const SHOP: &str = r#"
[[interface]]
name = "wan"
port = "lan"
vlan = 5
mac = "02:00:00:00:00:01"
zone = "wan"
addresses = ["198.51.100.1/24"]
[[neighbour]]
interface = "wan"
address = "198.51.100.20"
mac = "02:00:00:00:00:0b"
[[service]]
name = "shop"
address = "203.0.113.10"
service = ["tcp/80", "udp/80"]
backends = [{ address = "10.0.0.10:8080" }]
[[rule]]
name = "in"
action = "allow"
from = { zone = "wan" }
to = { zone = "lan" }
"#;

/// Clients of a service and its backend, by port of the client.
struct Shop(Gate, usize);

impl Shop {
    const CLIENT: [u8; 4] = [198, 51, 100, 20];
    const BACKEND: [u8; 4] = [10, 0, 0, 10];

    fn new(workers: usize) -> Shop {
        Shop(Gate::new(workers, &(INTERFACES.replace("ZONE", "zone = \"lan\"") + SHOP)), 0)
    }

    /// Flows that the backend was given, and that failed.
    fn counted(&self) -> (u64, u64) {
        let workers = self.0.node.counters.iter();
        workers.filter_map(|worker| worker.backends.get(0)).fold((0, 0), |(opened, failed), counted| {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (opened + load(&counted.flows.hits), failed + load(&counted.failed))
        })
    }

    /// A frame comes in, at one worker after the other, and goes on.
    fn passes(&mut self, frame: Vec<u8>) {
        self.1 = (self.1 + 1) % self.0.workers.len();
        self.0.receive(self.1, frame);
        self.0.settle();
        assert_eq!((self.0.sent().len(), self.0.drops()), (1, vec![]));
    }

    fn from_client() -> etherparse::PacketBuilderStep<etherparse::VlanHeader> {
        let vlan = etherparse::VlanId::try_new(5).expect("a VLAN");
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 11], OWN_MAC).single_vlan(vlan)
    }

    fn syn(&mut self, port: u16) {
        let step = Shop::from_client().ipv4(Shop::CLIENT, [203, 0, 113, 10], 64);
        let mut bytes = Vec::new();
        step.tcp(port, 80, 1000, 1000).syn().write(&mut bytes, &[]).expect("a vector");
        self.passes(bytes);
    }

    fn asks(&mut self, port: u16) {
        let step = Shop::from_client().ipv4(Shop::CLIENT, [203, 0, 113, 10], 64);
        let mut bytes = Vec::new();
        step.udp(port, 80).write(&mut bytes, b"ping").expect("a vector");
        self.passes(bytes);
    }

    fn answers(&mut self, port: u16) {
        let mut bytes = Vec::new();
        let step = builder(IpAddr::from(Shop::BACKEND), IpAddr::from(Shop::CLIENT));
        step.udp(8080, port).write(&mut bytes, b"pong").expect("a vector");
        self.passes(bytes);
    }

    /// RST or SYN-ACK.
    fn replies(&mut self, port: u16, resets: bool) {
        let step = builder(IpAddr::from(Shop::BACKEND), IpAddr::from(Shop::CLIENT));
        let step = step.tcp(8080, port, 5000, 1000).ack(1001);
        let mut bytes = Vec::new();
        let step = if resets { step.rst() } else { step.syn() };
        step.write(&mut bytes, &[]).expect("a vector");
        self.passes(bytes);
    }

    /// Destination unreachable about what the backend got, from its side or the clients'.
    fn unreachable(&mut self, port: u16, protocol: u8, code: u8, by_client: bool) {
        let mut quoted = Vec::new();
        let ip = PacketBuilder::ipv4(Shop::CLIENT, Shop::BACKEND, 63);
        match protocol {
            6 => ip.tcp(port, 8080, 1000, 1000).syn().write(&mut quoted, &[]).expect("a vector"),
            _ => ip.udp(port, 8080).write(&mut quoted, b"ping").expect("a vector"),
        }
        let mut bytes = Vec::new();
        match by_client {
            true => {
                let step = Shop::from_client().ipv4(Shop::BACKEND, Shop::CLIENT, 64);
                step.icmpv4_raw(3, code, [0; 4]).write(&mut bytes, &quoted).expect("a vector");
            }
            false => {
                let step = builder(IpAddr::from(Shop::BACKEND), IpAddr::from(Shop::CLIENT));
                step.icmpv4_raw(3, code, [0; 4]).write(&mut bytes, &quoted).expect("a vector");
            }
        }
        self.passes(bytes);
    }

    fn wait(&mut self, millis: u64) {
        self.0.now.0 += millis * 1_000_000;
    }
}

/// What clients' flows show of a backend (passive checks): each failed one counts once, whoever has it.
#[test]
fn flows_that_fail_are_counted_by_backend() {
    for workers in [1, 2] {
        let mut shop = Shop::new(workers);
        // Refused; the same client again is another flow.
        for (opened, port) in [(1, 1024), (2, 1025), (3, 1024)] {
            shop.syn(port);
            assert_eq!(shop.counted(), (opened, opened - 1));
            shop.replies(port, true);
            assert_eq!(shop.counted(), (opened, opened));
        }
        // Silent: the third SYN tells, if there has been time to answer to the first.
        shop.syn(2000);
        shop.wait(1000);
        shop.syn(2000);
        assert_eq!(shop.counted(), (4, 3));
        shop.wait(2000);
        shop.syn(2000);
        assert_eq!(shop.counted(), (4, 4));
        shop.wait(4000);
        shop.syn(2000);
        shop.replies(2000, true);
        assert_eq!(shop.counted(), (4, 4), "once");
        (0..9).for_each(|_| shop.syn(2001));
        assert_eq!(shop.counted(), (5, 4), "nobody can be that quick");
        shop.replies(2001, false);
        shop.wait(5000);
        shop.syn(2001);
        assert_eq!(shop.counted(), (5, 4), "it has answered");
        // Unreachable, of TCP and UDP: not that a packet is too long, nor when somebody has answered.
        shop.syn(3000);
        shop.unreachable(3000, 6, 4, false);
        assert_eq!(shop.counted(), (6, 4));
        shop.unreachable(3000, 6, 1, false);
        shop.unreachable(3000, 6, 1, false);
        assert_eq!(shop.counted(), (6, 5));
        shop.asks(3001);
        shop.unreachable(3001, 17, 3, false);
        assert_eq!(shop.counted(), (7, 6));
        shop.asks(3002);
        shop.answers(3002);
        shop.unreachable(3002, 17, 3, false);
        assert_eq!(shop.counted(), (8, 6));
        // Clients do not speak for it.
        shop.syn(3003);
        shop.unreachable(3003, 6, 1, true);
        assert_eq!(shop.counted(), (9, 6));
        shop.0.ends();
    }
}
