//! The test rig: a gateway as the binary runs it (the worker loop over ports in memory) between an inside and an
//! outside, a clock that is moved by hand, and a transcript of every packet.
//!
//! ```text
//! A .10  B .11  C .12   D .20 (static NAT)          X .9  X2 .10  Y .30
//!        10.0.1.0/24 ---- lan [gateway] wan ---- 198.51.100.0/24
//!                                pool 203.0.113.0/30, D is 203.0.113.20
//! ```

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::packet::{Packet, at, tcp};
use crate::config::Config;
use crate::flow;
use crate::io::memory::Cable;
use crate::mem::{BURST, ChunkSize, PacketMemory};
use crate::replay;
use crate::time::Nanos;
use crate::worker::{Node, Worker};

/// Inside hosts.
pub(super) const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
pub(super) const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 11);
pub(super) const C: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 12);
/// An inside host with static NAT (RFC 3022: Basic NAT), and what it is outside.
pub(super) const D: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 20);
pub(super) const D_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// Outside hosts; the first two are one machine with two addresses.
pub(super) const X: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(super) const X2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub(super) const Y: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 30);
/// The gateway on both sides.
pub(super) const LAN_ADDR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
pub(super) const WAN_ADDR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// The gateway's MAC addresses, by wire.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// When a gateway starts: far from 0, as after some time of operation.
const START: Nanos = Nanos::from_secs(1000);
/// Turns without rest after which something is badly wrong.
const MAX_TURNS: usize = 1_000_000;
/// Neighbours there is room for; a gateway looks through all of them once a second.
const NEIGHBOURS: usize = 64;
/// Frames of packet memory.
const FRAMES: usize = 2048;
/// Lines of evidence that one clause keeps.
const MAX_LINES: usize = 400;

/// The two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wire {
    /// Inside.
    Lan,
    /// Outside.
    Wan,
}

impl Wire {
    const BOTH: [Wire; 2] = [Wire::Lan, Wire::Wan];

    fn name(self) -> &'static str {
        match self {
            Wire::Lan => "lan",
            Wire::Wan => "wan",
        }
    }

    /// The other side.
    pub fn other(self) -> Wire {
        match self {
            Wire::Lan => Wire::Wan,
            Wire::Wan => Wire::Lan,
        }
    }
}

/// A packet and where it is.
pub(super) type OnWire = (Wire, Packet);

/// What a check says: nothing if the clause is met, else what was seen instead.
pub(super) type Proof = Result<(), String>;

/// What stands between rig and gateway and spoils one behaviour, for the tests of the checks.
#[cfg(any(test, feature = "sabotage"))]
pub(super) type Shim = Box<dyn FnMut(super::sabotage::Moment) -> Vec<OnWire>>;

/// How the gateway of a check is configured; the defaults are the product's.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Lines of `[flows]`.
    pub flows: &'static str,
    /// Lines of `[nat]`.
    pub nat: &'static str,
    /// The pool.
    pub pool: &'static str,
    /// Its ports.
    pub ports: Option<&'static str>,
    /// IP bytes a packet on the outside may have.
    pub wan_mtu: u16,
    /// Anything else, before the rule that lets the inside out.
    pub more: &'static str,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { flows: "", nat: "", pool: r#"["203.0.113.0/30"]"#, ports: None, wan_mtu: 1500, more: "" }
    }
}

impl Settings {
    fn text(&self) -> String {
        let mut text = String::from("schema = 1\n");
        for (name, addr, zone, mtu) in
            [("lan", "10.0.1.1/24", "inside", 1500), ("wan", "198.51.100.2/24", "outside", self.wan_mtu)]
        {
            let last = if name == "lan" { 1 } else { 2 };
            let _ = write!(
                text,
                "[[port]]\nname = \"{name}\"\ndevice = \"{name}\"\n[[interface]]\nname = \"{name}\"\n\
                 port = \"{name}\"\nzone = \"{zone}\"\nmtu = {mtu}\naddresses = [\"{addr}\"]\n\
                 mac = \"02:00:00:00:00:0{last}\"\n"
            );
        }
        for (interface, hosts) in [("lan", &[A, B, C, D][..]), ("wan", &[X, X2, Y])] {
            for host in hosts {
                let _ = write!(
                    text,
                    "[[neighbour]]\ninterface = \"{interface}\"\naddress = \"{host}\"\n\
                     mac = \"02:00:00:00:09:{:02x}\"\n",
                    host.octets()[3]
                );
            }
        }
        // Room for what the checks do: large tables take longer to make than a check takes.
        let capacity = if self.flows.contains("capacity") { "" } else { "capacity = 2048" };
        let ports = self.ports.map_or_else(String::new, |ports| format!("ports = \"{ports}\"\n"));
        let _ = write!(
            text,
            "[flows]\n{capacity}\n{}\n[nat]\n{}\n{}\n[[rule]]\nname = \"out\"\naction = \"allow\"\n\
             from = {{ zone = \"inside\" }}\nto = {{ zone = \"outside\" }}\n\
             [[nat.source]]\nname = \"internet\"\nfrom = {{ zone = \"inside\" }}\n\
             to = {{ zone = \"outside\" }}\npool = {}\n{ports}\
             [[nat.static]]\noutside = \"{D_OUTSIDE}\"\ninside = \"{D}\"\n",
            self.flows, self.nat, self.more, self.pool
        );
        text
    }
}

/// A gateway and its cables.
struct Gateway {
    worker: Worker,
    cables: [Cable; 2],
}

impl Gateway {
    fn new(settings: &Settings) -> Result<Gateway, String> {
        let config = Config::parse(&settings.text(), "selftest.toml").map_err(|errors| errors.to_string())?;
        let compiler = replay::compile_tables(&config, NEIGHBOURS).map_err(|error| error.to_string())?;
        let capacity = flow::Capacity::of(config.flows.capacity.get(), 1, false);
        // As a replay's node, but with room for what there is only: quicker to make.
        let node = Node::new(&compiler, 1, compiler.interfaces.len(), capacity);
        node.reserve_rules(&compiler.policy_slots);
        let (_, mut pools) =
            PacketMemory::lazy(1, FRAMES, ChunkSize::Bytes2048).map_err(|error| error.to_string())?;
        let mut worker = Worker::new(0, &node, pools.remove(0));
        let cables = [(); 2].map(|()| Cable::new(1));
        for (slot, cable) in cables.iter().enumerate() {
            worker.attach(slot as u16, 0, Box::new(cable.end(0, BURST)));
        }
        Ok(Gateway { worker, cables })
    }

    /// Turns until there is nothing left to do.
    fn settle(&mut self, now: Nanos) -> Result<(), String> {
        for _ in 0..MAX_TURNS {
            if !self.worker.turn(now) {
                return Ok(());
            }
        }
        Err("the gateway does not come to rest".to_owned())
    }

    fn left(&mut self) -> Vec<OnWire> {
        let mut left = Vec::new();
        for wire in Wire::BOTH {
            let frames = self.cables[wire as usize].take();
            left.extend(frames.iter().filter_map(|frame| Some((wire, Packet::from_frame(frame)?))));
        }
        left
    }
}

/// What a check works with.
pub(super) struct Rig {
    gateway: Option<Gateway>,
    now: Nanos,
    evidence: Vec<String>,
    left_out: usize,
    quiet: bool,
    /// The gateway looks at its timers as often as it would, and not once a second.
    fine: bool,
    #[cfg(any(test, feature = "sabotage"))]
    shim: Option<Shim>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig {
            gateway: None,
            now: START,
            evidence: Vec::new(),
            left_out: 0,
            quiet: false,
            fine: false,
            #[cfg(any(test, feature = "sabotage"))]
            shim: None,
        }
    }

    /// With something in between.
    #[cfg(any(test, feature = "sabotage"))]
    pub fn with_shim(shim: Option<Shim>) -> Rig {
        Rig { shim, ..Rig::new() }
    }

    /// What went over the wires, one line each.
    pub fn into_evidence(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.evidence.push(format!("... and {} lines more", self.left_out));
        }
        self.evidence
    }

    /// Starts a new gateway.
    pub fn start(&mut self, settings: Settings) -> Proof {
        if self.gateway.is_some() {
            self.note("a new gateway");
        }
        let other = [
            Some(settings.flows).filter(|text| !text.is_empty()),
            Some(settings.nat).filter(|text| !text.is_empty()),
            settings.ports,
            Some(settings.more).filter(|text| !text.is_empty()),
        ];
        other
            .into_iter()
            .flatten()
            .for_each(|text| self.note(&format!("config: {}", text.trim().replace('\n', "; "))));
        self.gateway = Some(Gateway::new(&settings)?);
        Ok(())
    }

    fn running(&mut self) -> Result<&mut Gateway, String> {
        if self.gateway.is_none() {
            self.gateway = Some(Gateway::new(&Settings::default())?);
        }
        self.gateway.as_mut().ok_or_else(|| unreachable!("it has just been started"))
    }

    /// A remark in the transcript.
    pub fn note(&mut self, text: &str) {
        self.line(format!("-- {text}"));
    }

    fn line(&mut self, text: String) {
        if self.evidence.len() < MAX_LINES {
            self.evidence.push(text);
        } else {
            self.left_out += 1;
        }
    }

    fn record(&mut self, wire: Wire, sign: char, packet: &Packet) {
        if !self.quiet {
            let seconds = self.now.since(START).as_secs_f64();
            self.line(format!("{seconds:>9.1} {} {sign} {}", wire.name(), packet.describe()));
        }
    }

    /// Does something of which the packets are too many to show; `what` says what it was.
    pub fn quietly<T>(&mut self, what: &str, work: impl FnOnce(&mut Rig) -> T) -> T {
        self.note(&format!("not shown: {what}"));
        let was = std::mem::replace(&mut self.quiet, true);
        let result = work(self);
        self.quiet = was;
        result
    }

    /// Seconds since the gateway started.
    #[cfg(any(test, feature = "sabotage"))]
    fn seconds(&self) -> f64 {
        self.now.since(START).as_secs_f64()
    }

    /// What stands in between sees packets on their way to the gateway, or all that leave it at once.
    #[cfg(any(test, feature = "sabotage"))]
    fn pass(&mut self, to_gateway: bool, packets: Vec<OnWire>) -> Vec<OnWire> {
        use super::sabotage::{Event, Moment};
        let now_s = self.seconds();
        let Some(shim) = &mut self.shim else { return packets };
        let event = |(wire, packet)| match to_gateway {
            true => Event::Comes(wire, packet),
            false => Event::Leaves(wire, packet),
        };
        let mut passed: Vec<OnWire> =
            packets.into_iter().flat_map(|packet| shim(Moment { now_s, event: event(packet) })).collect();
        if !to_gateway {
            passed.extend(shim(Moment { now_s, event: Event::Rest }));
        }
        passed
    }

    #[cfg(not(any(test, feature = "sabotage")))]
    fn pass(&mut self, _to_gateway: bool, packets: Vec<OnWire>) -> Vec<OnWire> {
        packets
    }

    /// From now on timers are looked at every 100 ms, as the gateway does, and not once a second: for what depends
    /// on how fast it looks through all ports.
    pub fn tick_finely(&mut self) {
        self.fine = true;
    }

    fn collect(&mut self) -> Result<Vec<OnWire>, String> {
        let left = self.running()?.left();
        let left = self.pass(false, left);
        for (wire, packet) in &left {
            self.record(*wire, '<', packet);
        }
        Ok(left)
    }

    /// Sends packets at once; everything that leaves the gateway.
    pub fn send_all(&mut self, wire: Wire, packets: &[Packet]) -> Result<Vec<OnWire>, String> {
        for packet in packets {
            self.record(wire, '>', packet);
            for (wire, packet) in self.pass(true, vec![(wire, packet.clone())]) {
                let frame = packet.frame(MACS[wire as usize]);
                self.running()?.cables[wire as usize].send(0, [frame]);
            }
        }
        let now = self.now;
        self.running()?.settle(now)?;
        self.collect()
    }

    /// Sends one packet; everything that leaves the gateway.
    pub fn send(&mut self, wire: Wire, packet: &Packet) -> Result<Vec<OnWire>, String> {
        self.send_all(wire, std::slice::from_ref(packet))
    }

    /// Sends a packet and expects one, sound, on the given side.
    fn one(&mut self, wire: Wire, packet: &Packet, wanted: Wire) -> Result<Packet, String> {
        let mut left = self.send(wire, packet)?;
        let what = packet.describe();
        let only = match left.len() {
            0 => return Err(format!("nothing left the gateway after {what}")),
            1 => left.remove(0),
            count => return Err(format!("{count} packets left the gateway after {what}")),
        };
        if only.0 != wanted {
            return Err(format!("on the wrong side: {}", only.1.describe()));
        }
        match only.1.fault() {
            Some(fault) => Err(format!("{fault}: {}", only.1.describe())),
            None => Ok(only.1),
        }
    }

    /// Sends a packet that has to come out on the other side, alone and with good checksums.
    pub fn through(&mut self, from: Wire, packet: &Packet) -> Result<Packet, String> {
        self.one(from, packet, from.other())
    }

    /// Sends a packet after which one has to come out on the same side: an answer, or the packet itself, turned round.
    pub fn back(&mut self, from: Wire, packet: &Packet) -> Result<Packet, String> {
        self.one(from, packet, from)
    }

    /// Sends a packet that must not make anything leave.
    pub fn lost(&mut self, from: Wire, packet: &Packet) -> Proof {
        match self.send(from, packet)?.first() {
            None => Ok(()),
            Some((_, left)) => {
                Err(format!("was to be dropped in silence, but there is: {}", left.describe()))
            }
        }
    }

    /// Lets time pass; what leaves meanwhile.
    pub fn wait(&mut self, seconds: u64) -> Result<Vec<OnWire>, String> {
        if !self.quiet {
            self.line(format!("-- {seconds} s later"));
        }
        let end = Nanos(self.now.0 + Nanos::from_secs(seconds).0);
        let mut now = self.now;
        // What is due is due: a later look finds it. Over hours a look now and then is enough.
        let step = match seconds {
            _ if self.fine => Nanos(0),
            ..600 => Nanos::from_secs(1),
            _ => Nanos::from_secs(20),
        };
        let gateway = self.running()?;
        loop {
            let due = gateway.worker.next_deadline();
            if due >= end {
                break;
            }
            now = due.max(Nanos(now.0 + step.0)).min(end);
            gateway.settle(now)?;
        }
        gateway.settle(end)?;
        self.now = end;
        self.collect()
    }

    /// Lets time pass in which nothing may leave.
    pub fn wait_in_silence(&mut self, seconds: u64) -> Proof {
        match self.wait(seconds)?.first() {
            None => Ok(()),
            Some((_, left)) => Err(format!("was to be silent, but there is: {}", left.describe())),
        }
    }

    // ---- what many checks do

    /// A datagram from inside; how its sender looks from outside.
    pub fn udp_out(&mut self, from: SocketAddrV4, to: SocketAddrV4) -> Result<SocketAddrV4, String> {
        let left = self.through(Wire::Lan, &Packet::udp(from, to, b"ping"))?;
        if left.dst() != to || left.payload() != b"ping" {
            return Err(format!("not what was sent to {to}: {}", left.describe()));
        }
        if left.src_addr() == *from.ip() {
            return Err(format!("not translated: {}", left.describe()));
        }
        Ok(left.src())
    }

    /// A datagram from outside that has to reach an inside endpoint.
    pub fn udp_in(&mut self, from: SocketAddrV4, mapped: SocketAddrV4, inside: SocketAddrV4) -> Proof {
        let left = self.through(Wire::Wan, &Packet::udp(from, mapped, b"pong"))?;
        if (left.src(), left.dst(), left.payload()) != (from, inside, b"pong") {
            return Err(format!("not as it was sent by {from} for {inside}: {}", left.describe()));
        }
        Ok(())
    }

    /// A datagram from outside that must not reach anyone.
    pub fn udp_in_lost(&mut self, from: SocketAddrV4, mapped: SocketAddrV4) -> Proof {
        self.lost(Wire::Wan, &Packet::udp(from, mapped, b"pong"))
    }

    /// An echo request from inside; its sender and identifier as they look from outside.
    pub fn echo_out(&mut self, from: SocketAddrV4, to: Ipv4Addr) -> Result<SocketAddrV4, String> {
        let left = self.through(Wire::Lan, &Packet::echo(from, to))?;
        if left.icmp_kind() != Some((8, 0)) || left.dst_addr() != to || left.src_addr() == *from.ip() {
            return Err(format!("not a translated echo request: {}", left.describe()));
        }
        Ok(left.src())
    }

    /// An echo reply that has to reach who asked.
    pub fn echo_in(&mut self, from: Ipv4Addr, mapped: SocketAddrV4, inside: SocketAddrV4) -> Proof {
        let left = self.through(Wire::Wan, &Packet::echo_reply(from, mapped))?;
        if (left.icmp_kind(), left.src_addr(), left.dst()) != (Some((0, 0)), from, inside) {
            return Err(format!("not the echo reply for {inside}: {}", left.describe()));
        }
        Ok(())
    }
}

/// A TCP connection, as its two ends see it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The inside end.
    pub inside: SocketAddrV4,
    /// The outside end.
    pub outside: SocketAddrV4,
    /// The inside end as it looks from outside.
    pub mapped: SocketAddrV4,
    /// Next sequence number of the inside and of the outside end.
    pub next: [u32; 2],
}

impl Connection {
    /// Numbers the two ends begin with.
    pub const FIRST: [u32; 2] = [1000, 90_000];

    /// Sends the SYN from inside.
    pub fn begin(rig: &mut Rig, inside: SocketAddrV4, outside: SocketAddrV4) -> Result<Connection, String> {
        let syn = Packet::tcp(inside, outside, tcp::SYN, Connection::FIRST[0], 0, b"");
        let left = rig.through(Wire::Lan, &syn)?;
        if left.dst() != outside || left.flags() != tcp::SYN || left.src_addr() == *inside.ip() {
            return Err(format!("not a translated SYN to {outside}: {}", left.describe()));
        }
        let next = [Connection::FIRST[0] + 1, Connection::FIRST[1]];
        Ok(Connection { inside, outside, mapped: left.src(), next })
    }

    /// Opens a connection from inside with the three-way handshake.
    pub fn open(rig: &mut Rig, inside: SocketAddrV4, outside: SocketAddrV4) -> Result<Connection, String> {
        let mut connection = Connection::begin(rig, inside, outside)?;
        connection.inbound(rig, tcp::SYN | tcp::ACK, b"")?;
        connection.outbound(rig, tcp::ACK, b"")?;
        Ok(connection)
    }

    /// A segment of the inside end, as it leaves it.
    pub fn segment_out(&self, flags: u8, payload: &[u8]) -> Packet {
        let ack = if flags & tcp::ACK != 0 { self.next[1] } else { 0 };
        Packet::tcp(self.inside, self.outside, flags, self.next[0], ack, payload)
    }

    /// A segment of the outside end, as it leaves it.
    pub fn segment_in(&self, flags: u8, payload: &[u8]) -> Packet {
        let ack = if flags & tcp::ACK != 0 { self.next[0] } else { 0 };
        Packet::tcp(self.outside, self.mapped, flags, self.next[1], ack, payload)
    }

    /// Sends a segment from inside that has to arrive.
    pub fn outbound(&mut self, rig: &mut Rig, flags: u8, payload: &[u8]) -> Proof {
        let segment = self.segment_out(flags, payload);
        let left = rig.through(Wire::Lan, &segment)?;
        self.next[0] += len_of(flags, payload);
        self.same(&left, &segment, self.mapped, self.outside)
    }

    /// Sends a segment from outside that has to arrive.
    pub fn inbound(&mut self, rig: &mut Rig, flags: u8, payload: &[u8]) -> Proof {
        let segment = self.segment_in(flags, payload);
        let left = rig.through(Wire::Wan, &segment)?;
        self.next[1] += len_of(flags, payload);
        self.same(&left, &segment, self.outside, self.inside)
    }

    fn same(&self, left: &Packet, sent: &Packet, src: SocketAddrV4, dst: SocketAddrV4) -> Proof {
        let is_same = (left.flags(), left.numbers(), left.payload())
            == (sent.flags(), sent.numbers(), sent.payload())
            && (left.src(), left.dst()) == (src, dst);
        if is_same {
            Ok(())
        } else {
            Err(format!("not the segment from {src} to {dst}: {}", left.describe()))
        }
    }
}

/// Sequence numbers a segment takes.
fn len_of(flags: u8, payload: &[u8]) -> u32 {
    payload.len() as u32 + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0)
}

/// An inside host beyond the named ones: number 0 is 10.0.1.100.
pub(super) fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, 100 + number)
}

/// Ends a check with a text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(super) use ensure;

/// The endpoint of inside host A that most checks use.
pub(super) fn a() -> SocketAddrV4 {
    at(A, 5000)
}
