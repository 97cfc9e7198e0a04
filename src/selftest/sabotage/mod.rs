//! Spoils the behaviour behind one clause, between the rig and the gateway: packets are changed, lost or made up on
//! the wires, so that the packet path itself has no test code. For the tests of the checks: each of these has to
//! turn the verdict of its clause, and of those that are named with it, to FAIL, and no other.
//!
//! Only in tests and with the cargo feature `sabotage` (`softgate selftest nat --break CLAUSE`).

mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6888;
mod rfc7857;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::IpNumber;

use super::packet::{ICMP, Packet, TCP, UDP, at, tcp};
use super::rig::{A, B, C, D, D_OUTSIDE, LAN_ADDR, OnWire, Shim, WAN_ADDR, Wire, X, X2, a};

/// What happens on the wires.
pub(super) enum Event {
    /// A packet goes to the gateway; what is given back goes there in its place.
    Comes(Wire, Packet),
    /// A packet leaves the gateway; what is given back leaves in its place.
    Leaves(Wire, Packet),
    /// Nothing leaves any more for now; what is given back leaves too.
    Rest,
}

/// An event and its time.
pub(super) struct Moment {
    /// Seconds since the first gateway of the check started.
    pub now_s: f64,
    pub event: Event,
}

/// A way to spoil one behaviour.
pub struct Break {
    /// The clause whose check must notice.
    pub clause: &'static str,
    /// What is spoilt.
    pub how: &'static str,
    /// Clauses that hang on it as well, and fail with it.
    pub also: &'static [&'static str],
    make: fn() -> Shim,
}

impl Break {
    pub(super) fn shim(&self) -> Shim {
        (self.make)()
    }
}

/// What went over the wires before.
#[derive(Default)]
struct Seen {
    now_s: f64,
    /// The latest packet from inside.
    last: Option<Packet>,
    /// From outside, since nothing was left to do: nothing has come of it yet.
    pending: Option<OnWire>,
    /// Inside endpoints that were let out, by protocol and host, in order.
    let_out: HashMap<(IpNumber, Ipv4Addr), Vec<SocketAddrV4>>,
    /// Who has an outside endpoint.
    owner: HashMap<(IpNumber, SocketAddrV4), SocketAddrV4>,
    /// Who an inside endpoint has sent to.
    peers: HashSet<(IpNumber, SocketAddrV4, Ipv4Addr)>,
    /// When an inside endpoint sent first, and last, and how often.
    sent: HashMap<(IpNumber, SocketAddrV4), (f64, f64, u32)>,
    /// When a TCP connection had a segment last, by its inside end.
    heard: HashMap<SocketAddrV4, f64>,
}

impl Seen {
    /// How long ago an inside endpoint sent something.
    fn idle_s(&self, protocol: IpNumber, inside: SocketAddrV4) -> f64 {
        self.sent.get(&(protocol, inside)).map_or(0.0, |(_, last, _)| self.now_s - last)
    }

    /// How many endpoints of a host were let out.
    fn count(&self, protocol: IpNumber, host: Ipv4Addr) -> usize {
        self.let_out.get(&(protocol, host)).map_or(0, Vec::len)
    }

    /// The latest sender inside, if it sent by this protocol.
    fn sender(&self, protocol: IpNumber) -> Option<SocketAddrV4> {
        self.last.as_ref().filter(|last| last.ip.protocol == protocol).map(Packet::src)
    }

    fn comes(&mut self, wire: Wire, packet: &Packet) {
        let protocol = packet.ip.protocol;
        if wire == Wire::Lan {
            self.last = Some(packet.clone());
            let now_s = self.now_s;
            let (_, last, count) = self.sent.entry((protocol, packet.src())).or_insert((now_s, now_s, 0));
            (*last, *count) = (now_s, *count + 1);
        }
        self.pending = Some((wire, packet.clone()));
    }

    fn leaves(&mut self, wire: Wire, packet: &Packet) {
        self.pending = None;
        let protocol = packet.ip.protocol;
        if wire == Wire::Wan
            && let Some(inside) = self.sender(protocol)
        {
            let list = self.let_out.entry((protocol, *inside.ip())).or_default();
            if !list.contains(&inside) {
                list.push(inside);
            }
            self.owner.insert((protocol, packet.src()), inside);
            self.peers.insert((protocol, inside, packet.dst_addr()));
        }
        if protocol == TCP {
            let inside = if wire == Wire::Lan { Some(packet.dst()) } else { self.sender(TCP) };
            inside.map(|inside| self.heard.insert(inside, self.now_s));
        }
    }

    /// True if the host an inbound packet goes to has never sent to where it comes from.
    fn is_stranger(&self, packet: &Packet) -> bool {
        !self.peers.contains(&(packet.ip.protocol, packet.dst(), packet.src_addr()))
    }
}

/// A shim that knows what went before; it sees a packet that comes when it is noted, and one that leaves before.
fn spoil(mut act: impl FnMut(&mut Seen, Event) -> Vec<OnWire> + 'static) -> Shim {
    let mut seen = Seen::default();
    Box::new(move |Moment { now_s, event }| {
        seen.now_s = now_s;
        match event {
            Event::Comes(wire, packet) => {
                seen.comes(wire, &packet);
                act(&mut seen, Event::Comes(wire, packet))
            }
            Event::Leaves(wire, packet) => {
                let left = act(&mut seen, Event::Leaves(wire, packet.clone()));
                seen.leaves(wire, &packet);
                left
            }
            Event::Rest => {
                let left = act(&mut seen, Event::Rest);
                seen.pending = None;
                left
            }
        }
    })
}

/// Changes what leaves on one wire; false: it is lost.
fn leaving(on: Wire, change: impl FnMut(&mut Seen, &mut Packet) -> bool + 'static) -> Shim {
    passing(move |event| matches!(event, Event::Leaves(wire, _) if *wire == on), change)
}

/// Changes what comes on one wire; false: it is lost.
fn coming(on: Wire, change: impl FnMut(&mut Seen, &mut Packet) -> bool + 'static) -> Shim {
    passing(move |event| matches!(event, Event::Comes(wire, _) if *wire == on), change)
}

/// Changes packets of some events; false: it is lost.
fn passing(
    mut is_meant: impl FnMut(&Event) -> bool + 'static,
    mut change: impl FnMut(&mut Seen, &mut Packet) -> bool + 'static,
) -> Shim {
    spoil(move |seen, event| {
        let is_meant = is_meant(&event);
        match event {
            Event::Comes(wire, mut packet) | Event::Leaves(wire, mut packet) => {
                let goes_on = !is_meant || change(seen, &mut packet);
                goes_on.then_some((wire, packet)).into_iter().collect()
            }
            Event::Rest => Vec::new(),
        }
    })
}

/// Changes those packets that leave on one wire and are wanted; their checksums are made right again.
fn changing(
    on: Wire,
    mut is_wanted: impl FnMut(&Seen, &Packet) -> bool + 'static,
    mut change: impl FnMut(&mut Packet) + 'static,
) -> Shim {
    leaving(on, move |seen, packet| {
        if is_wanted(seen, packet) {
            change(packet);
            packet.seal();
        }
        true
    })
}

/// Makes something up where the gateway rightly let nothing out after a packet.
fn answering(mut make: impl FnMut(&mut Seen, Wire, &Packet) -> Option<OnWire> + 'static) -> Shim {
    spoil(move |seen, event| match event {
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => {
            let pending = seen.pending.take();
            pending.and_then(|(wire, packet)| make(seen, wire, &packet)).into_iter().collect()
        }
    })
}

/// Lets in what the gateway did not, to whoever has the endpoint of `protocol` that it came to.
fn letting_in(
    protocol: IpNumber,
    mut is_wanted: impl FnMut(&Seen, &Packet, SocketAddrV4) -> bool + 'static,
) -> Shim {
    answering(move |seen, wire, packet| {
        let inside = *seen.owner.get(&(protocol, packet.dst()))?;
        let mut let_in = packet.clone();
        let_in.set_dst(inside);
        (wire == Wire::Wan && is_wanted(seen, packet, inside)).then_some((Wire::Lan, let_in))
    })
}

/// Lets through what the gateway refused with an ICMP error to the inside.
fn letting_through(mut is_wanted: impl FnMut(&Seen, &Packet, &Packet) -> bool + 'static) -> Shim {
    let mut next = 60_000;
    spoil(move |seen, event| match event {
        Event::Leaves(Wire::Lan, error) if error.is_error() && error.src_addr() == LAN_ADDR => {
            match seen.last.clone().filter(|refused| is_wanted(seen, &error, refused)) {
                Some(mut refused) => {
                    next += 1;
                    refused.set_src(at(Ipv4Addr::new(203, 0, 113, 3), next));
                    vec![(Wire::Wan, refused)]
                }
                None => vec![(Wire::Lan, error)],
            }
        }
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => Vec::new(),
    })
}

const KEEP: &[u8] = b"keep";

/// Sends something from inside for an inbound or outbound packet, so that a mapping stays; nobody sees it.
fn keeping(
    on: Wire,
    mut who: impl FnMut(&Seen, &Packet) -> Option<(SocketAddrV4, SocketAddrV4)> + 'static,
) -> Shim {
    spoil(move |seen, event| match event {
        Event::Comes(wire, packet) if wire == on => {
            let keep = who(seen, &packet).map(|(from, to)| (Wire::Lan, Packet::udp(from, to, KEEP)));
            keep.into_iter().chain([(wire, packet)]).collect()
        }
        Event::Leaves(_, packet) if packet.ip.protocol == UDP && packet.payload() == KEEP => Vec::new(),
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => Vec::new(),
    })
}

fn is_pool(addr: Ipv4Addr) -> bool {
    addr.octets()[..3] == [203, 0, 113] && addr != D_OUTSIDE
}

fn is_outside_of_us(addr: Ipv4Addr) -> bool {
    addr.octets()[..3] == [203, 0, 113]
}

fn neighbour(port: SocketAddrV4) -> SocketAddrV4 {
    at(*port.ip(), port.port() ^ 1)
}

fn is_syn(packet: &Packet) -> bool {
    packet.ip.protocol == TCP && packet.flags() & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

fn about(error: &Packet, protocol: IpNumber) -> bool {
    error.quoted().is_some_and(|quoted| quoted.ip.protocol == protocol)
}

/// A second remote is shown another port.
fn port_per_remote(protocol: IpNumber) -> Shim {
    let mut first: HashMap<SocketAddrV4, SocketAddrV4> = HashMap::new();
    leaving(Wire::Wan, move |_, packet| {
        let to = if protocol == ICMP { at(packet.dst_addr(), 0) } else { packet.dst() };
        let wanted = packet.ip.protocol == protocol
            && is_pool(packet.src_addr())
            && !packet.is_fragment()
            && (protocol != TCP || is_syn(packet))
            && (protocol != ICMP || !packet.is_error());
        if wanted && *first.entry(packet.src()).or_insert(to) != to {
            packet.set_src(neighbour(packet.src()));
        }
        true
    })
}

/// From so many endpoints of a host on, the others leave from another address.
fn unpaired(protocol: IpNumber, after: usize) -> Shim {
    let other = |addr: Ipv4Addr| Ipv4Addr::from(u32::from(addr) ^ 64);
    spoil(move |seen, event| match event {
        Event::Leaves(Wire::Wan, mut packet) if packet.ip.protocol == protocol => {
            let is_late = seen.sender(protocol).is_some_and(|inside| {
                let list = seen.let_out.get(&(protocol, *inside.ip())).map_or(&[][..], Vec::as_slice);
                list.len() >= after && !list[..after].contains(&inside)
            });
            if is_late {
                packet.set_src(at(other(packet.src_addr()), packet.src().port()));
            }
            vec![(Wire::Wan, packet)]
        }
        Event::Comes(Wire::Wan, mut packet)
            if packet.ip.protocol == protocol
                && is_pool(packet.dst_addr())
                && packet.dst_addr().octets()[3] >= 64 =>
        {
            packet.set_dst(at(other(packet.dst_addr()), packet.dst().port()));
            vec![(Wire::Wan, packet)]
        }
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => Vec::new(),
    })
}

/// Two hosts with one source port share an outside port towards one destination.
fn overloaded(protocol: IpNumber) -> Shim {
    let mut first: HashMap<(SocketAddrV4, u16), SocketAddrV4> = HashMap::new();
    leaving(Wire::Wan, move |seen, packet| {
        let Some(inside) = seen.sender(protocol).filter(|_| packet.ip.protocol == protocol) else {
            return true;
        };
        // Both at one address, as they are where the check looks.
        let shared = *first.entry((packet.dst(), inside.port())).or_insert(packet.src());
        if shared.ip() == packet.src().ip() && !packet.is_fragment() {
            packet.set_src(shared);
        }
        true
    })
}

/// What reaches an inside endpoint is lost once that has sent nothing for a while.
fn short_lived(protocol: IpNumber, seconds: f64) -> Shim {
    leaving(Wire::Lan, move |seen, packet| {
        packet.ip.protocol != protocol || packet.is_error() || seen.idle_s(protocol, packet.dst()) <= seconds
    })
}

/// The same of TCP, by the latest segment in either direction.
fn short_lived_tcp(seconds: f64, half_open: bool) -> Shim {
    leaving(Wire::Lan, move |seen, packet| {
        let is_half_open = packet.flags() & tcp::SYN != 0;
        let heard = seen.heard.get(&packet.dst()).copied().unwrap_or(seen.now_s);
        packet.ip.protocol != TCP || is_half_open != half_open || seen.now_s - heard <= seconds
    })
}

/// Who was not talked to is not let in.
fn strict(protocol: IpNumber) -> Shim {
    leaving(Wire::Lan, move |seen, packet| {
        let opens = packet.ip.protocol == UDP || is_syn(packet);
        let is_other = packet.is_fragment() || packet.dst_addr() == D || is_outside_of_us(packet.src_addr());
        packet.ip.protocol != protocol || !opens || is_other || !seen.is_stranger(packet)
    })
}

/// Everybody is let in who sends to a mapping.
fn open_to_all(protocol: IpNumber) -> Shim {
    letting_in(protocol, move |seen, packet, inside| {
        let opens = packet.ip.protocol == UDP || is_syn(packet);
        packet.ip.protocol == protocol && opens && seen.idle_s(protocol, inside) < 100.0
    })
}

/// An ICMP error ends the mapping it is about.
fn error_kills(protocol: IpNumber) -> Shim {
    let mut dead = HashSet::new();
    coming(Wire::Wan, move |_, packet| {
        if let Some(quoted) = packet.quoted().filter(|quoted| quoted.ip.protocol == protocol) {
            dead.insert(quoted.src());
        }
        packet.is_error() || packet.ip.protocol != protocol || !dead.contains(&packet.dst())
    })
}

/// No packets of a protocol are hairpinned.
fn no_hairpin(protocol: IpNumber) -> Shim {
    leaving(Wire::Lan, move |_, packet| {
        packet.ip.protocol != protocol || packet.is_error() || !is_outside_of_us(packet.src_addr())
    })
}

/// Hairpinned packets keep their inside source.
fn inside_source(protocol: IpNumber) -> Shim {
    leaving(Wire::Lan, move |seen, packet| {
        if packet.ip.protocol == protocol
            && is_pool(packet.src_addr())
            && let Some(inside) = seen.sender(protocol)
        {
            packet.set_src(inside);
        }
        true
    })
}

/// A quoted packet shows something else.
fn misquoted(on: Wire, mut change: impl FnMut(&mut Packet, &mut Packet) -> bool + 'static) -> Shim {
    leaving(on, move |_, packet| {
        if let Some(mut quoted) = packet.quoted()
            && change(packet, &mut quoted)
        {
            packet.set_quoted(&quoted);
        }
        true
    })
}

/// Behind the first ten, ports of a block are given in order.
fn ports_in_order() -> Shim {
    let mut given: HashMap<SocketAddrV4, SocketAddrV4> = HashMap::new();
    let mut real: HashMap<SocketAddrV4, SocketAddrV4> = HashMap::new();
    spoil(move |_, event| match event {
        Event::Leaves(Wire::Wan, mut packet) if packet.ip.protocol == UDP && !packet.is_fragment() => {
            let src = packet.src();
            let (addr, block) = (*src.ip(), src.port() / 64 * 64);
            let used =
                given.keys().filter(|other| other.ip() == &addr && other.port() / 64 * 64 == block).count();
            let shown = *given.entry(src).or_insert_with(|| {
                let mut ports = (block..=block + 63).map(|port| at(addr, port));
                let free = ports.find(|port| !real.contains_key(port)).filter(|_| used >= 10);
                let shown = free.unwrap_or(src);
                real.insert(shown, src);
                shown
            });
            if shown != src {
                packet.set_src(shown);
            }
            vec![(Wire::Wan, packet)]
        }
        Event::Comes(Wire::Wan, mut packet) if packet.ip.protocol == UDP => {
            if let Some(src) = real.get(&packet.dst()).copied().filter(|src| *src != packet.dst()) {
                packet.set_dst(src);
            }
            vec![(Wire::Wan, packet)]
        }
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => Vec::new(),
    })
}

/// A packet and where it goes on.
fn crossing(wire: Wire, packet: &Packet) -> Option<OnWire> {
    Some((wire.other(), packet.clone()))
}

/// All ways to spoil something, in the order of the clauses.
pub fn breaks() -> impl Iterator<Item = &'static Break> {
    [rfc4787::BREAKS, rfc5382::BREAKS, rfc5508::BREAKS, rfc7857::BREAKS, rfc6888::BREAKS]
        .into_iter()
        .flatten()
}
