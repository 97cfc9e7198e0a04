//! Spoils the behaviour behind one clause, between the rig and the gateway: packets are changed, lost or made up on
//! the wires, so that the packet path itself has no test code. For the tests of the checks: each of these has to
//! turn the verdict of its clause, and of those that are named with it, to FAIL, and no other.
//!
//! Only in tests and with the cargo feature `sabotage` (`softgate selftest nat --break CLAUSE`).

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
fn leaving(on: Wire, mut change: impl FnMut(&mut Seen, &mut Packet) -> bool + 'static) -> Shim {
    spoil(move |seen, event| match event {
        Event::Leaves(wire, mut packet) if wire == on => {
            if change(seen, &mut packet) {
                vec![(wire, packet)]
            } else {
                Vec::new()
            }
        }
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => Vec::new(),
    })
}

/// Changes what comes on one wire; false: it is lost.
fn coming(on: Wire, mut change: impl FnMut(&mut Seen, &mut Packet) -> bool + 'static) -> Shim {
    spoil(move |seen, event| match event {
        Event::Comes(wire, mut packet) if wire == on => {
            if change(seen, &mut packet) {
                vec![(wire, packet)]
            } else {
                Vec::new()
            }
        }
        Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
        Event::Rest => Vec::new(),
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
    answering(move |seen, wire, packet| {
        let inside = *seen.owner.get(&(protocol, packet.dst()))?;
        let opens = packet.ip.protocol == UDP || is_syn(packet);
        let is_alive = seen.idle_s(protocol, inside) < 100.0;
        if wire != Wire::Wan || packet.ip.protocol != protocol || !opens || !is_alive {
            return None;
        }
        let mut let_in = packet.clone();
        let_in.set_dst(inside);
        Some((Wire::Lan, let_in))
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
pub const BREAKS: &[Break] = &[
    // ---- RFC 4787
    Break {
        clause: "RFC 4787 REQ-1",
        how: "UDP to a second remote leaves from another port",
        also: &["RFC 4787 REQ-8a", "RFC 4787 REQ-11"],
        make: || port_per_remote(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-2",
        how: "from the ninth UDP port on a host leaves from another address",
        also: &["RFC 6888 REQ-2", "RFC 7857 4 TCP"],
        make: || unpaired(UDP, 8),
    },
    Break {
        clause: "RFC 4787 REQ-3",
        how: "two hosts with one UDP source port share an outside port towards one destination",
        also: &["RFC 4787 REQ-11", "RFC 6888 REQ-13"],
        make: || overloaded(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-3a",
        how: "well-known UDP ports leave as others",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                if packet.ip.protocol == UDP && !packet.is_fragment() && packet.src().port() < 1024 {
                    packet.set_src(at(packet.src_addr(), packet.src().port() + 2000));
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-5",
        how: "UDP mappings end after 118 s",
        also: &["RFC 4787 REQ-5b", "RFC 4787 REQ-5c", "RFC 4787 REQ-6a"],
        make: || short_lived(UDP, 118.0),
    },
    Break {
        clause: "RFC 4787 REQ-5b",
        how: "UDP mappings live for 5 minutes whatever is configured",
        also: &["RFC 6888 REQ-8", "RFC 6888 REQ-8 time", "RFC 6888 REQ-8 number"],
        make: || {
            answering(|seen, wire, packet| {
                let inside = *seen.owner.get(&(UDP, packet.dst()))?;
                let idle = seen.idle_s(UDP, inside);
                let mut let_in = packet.clone();
                let_in.set_dst(inside);
                let is_wanted =
                    wire == Wire::Wan && packet.ip.protocol == UDP && (120.0..301.0).contains(&idle);
                let knows = seen.peers.contains(&(UDP, inside, packet.src_addr()));
                (is_wanted && knows).then_some((Wire::Lan, let_in))
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-5c",
        how: "UDP mappings end after 200 s",
        also: &["RFC 4787 REQ-6a"],
        make: || short_lived(UDP, 200.0),
    },
    Break {
        clause: "RFC 4787 REQ-6",
        how: "UDP mappings end 300 s after their first packet, whatever follows from inside",
        also: &[],
        make: || {
            leaving(Wire::Lan, |seen, packet| {
                let sent = seen.sent.get(&(packet.ip.protocol, packet.dst()));
                let is_old = sent.is_some_and(|(first, _, count)| *count > 3 && seen.now_s - first > 300.0);
                packet.ip.protocol != UDP || !is_old
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-6a",
        how: "packets from outside do not restart the life of a UDP mapping",
        also: &[],
        make: || short_lived(UDP, 400.0),
    },
    Break {
        clause: "RFC 4787 REQ-8",
        how: "UDP gets in only from where was sent to",
        also: &["RFC 4787 REQ-11", "RFC 6888 REQ-7"],
        make: || strict(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-8a",
        how: "UDP gets in from everywhere, whatever is configured",
        also: &["RFC 4787 REQ-10", "RFC 7857 7"],
        make: || open_to_all(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-9",
        how: "UDP is not hairpinned",
        also: &["RFC 4787 REQ-9a", "RFC 5508 REQ-7", "RFC 5508 REQ-7a", "RFC 7857 12"],
        make: || no_hairpin(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-9a",
        how: "hairpinned UDP keeps its inside source",
        also: &["RFC 5508 REQ-7", "RFC 5508 REQ-7a"],
        make: || inside_source(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-10",
        how: "addresses in SIP over UDP are rewritten",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                if packet.ip.protocol == UDP && packet.dst().port() == 5060 {
                    packet.body[20] ^= 1;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-11",
        how: "once ports have run out, UDP leaves from another port for each remote",
        also: &[],
        make: || {
            let mut has_run_out = false;
            let mut first: HashMap<SocketAddrV4, SocketAddrV4> = HashMap::new();
            spoil(move |_, event| match event {
                Event::Leaves(Wire::Lan, packet) => {
                    has_run_out |= packet.icmp_kind() == Some((3, 1));
                    vec![(Wire::Lan, packet)]
                }
                Event::Leaves(Wire::Wan, mut packet) if packet.ip.protocol == UDP => {
                    let is_other = *first.entry(packet.src()).or_insert(packet.dst()) != packet.dst();
                    if has_run_out && is_other {
                        packet.set_src(neighbour(packet.src()));
                    }
                    vec![(Wire::Wan, packet)]
                }
                Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
                Event::Rest => Vec::new(),
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-12",
        how: "an ICMP error ends the UDP mapping it is about",
        also: &[],
        make: || error_kills(UDP),
    },
    Break {
        clause: "RFC 4787 REQ-12a",
        how: "ICMP errors get in only from the destination of what they are about",
        also: &["RFC 5382 REQ-9", "RFC 5508 REQ-10a"],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                let from = packet.src_addr();
                let is_remote = from.octets()[..3] == X.octets()[..3];
                !is_remote || packet.quoted().is_none_or(|quoted| quoted.dst_addr() == from)
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-12b",
        how: "of ICMP destination unreachable about UDP, codes 9 to 13 do not get in",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                let is_code = matches!(packet.icmp_kind(), Some((3, 9..=13)));
                packet.src_addr() == LAN_ADDR
                    || !is_code
                    || !about(packet, UDP)
                    || is_outside_of_us(packet.src_addr())
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-13",
        how: "the gateway sends no ICMP 3/4",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                packet.src_addr() != LAN_ADDR || packet.icmp_kind() != Some((3, 4))
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-13a",
        how: "fragments that the gateway makes leave in the wrong order",
        also: &[],
        make: || {
            let mut held = None;
            spoil(move |seen, event| match event {
                Event::Leaves(Wire::Wan, packet)
                    if packet.is_fragment() && seen.last.as_ref().is_some_and(|last| !last.is_fragment()) =>
                {
                    match held.take() {
                        None => {
                            held = Some(packet);
                            Vec::new()
                        }
                        Some(first) => vec![(Wire::Wan, packet), (Wire::Wan, first)],
                    }
                }
                Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
                Event::Rest => Vec::new(),
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-14",
        how: "fragments that come before their first are lost",
        also: &[],
        make: || {
            let mut begun = HashSet::new();
            spoil(move |_, event| match event {
                Event::Comes(wire, packet) if packet.is_fragment() && wire == Wire::Lan => {
                    let datagram = (packet.ip.source, packet.ip.identification);
                    if packet.ip.fragment_offset.value() == 0 {
                        begun.insert(datagram);
                    }
                    if begun.contains(&datagram) { vec![(wire, packet)] } else { Vec::new() }
                }
                Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
                Event::Rest => Vec::new(),
            })
        },
    },
    Break {
        clause: "RFC 4787 REQ-14a",
        how: "after 10,000 fragments no others get in",
        also: &[],
        make: || {
            let mut count = 0;
            coming(Wire::Wan, move |_, packet| {
                count += u32::from(packet.is_fragment());
                !packet.is_fragment() || count < 10_000
            })
        },
    },
    // ---- RFC 5382
    Break {
        clause: "RFC 5382 REQ-1",
        how: "a SYN to a second remote leaves from another port",
        also: &["RFC 5382 REQ-10", "RFC 5382 REQ-2", "RFC 5382 REQ-4"],
        make: || port_per_remote(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-2",
        how: "a SYN-ACK that is sent again is lost",
        also: &[],
        make: || {
            let mut before = HashSet::new();
            leaving(Wire::Lan, move |_, packet| {
                let is_answer = packet.ip.protocol == TCP && packet.flags() == tcp::SYN | tcp::ACK;
                !is_answer
                    || is_outside_of_us(packet.src_addr())
                    || before.insert((packet.src(), packet.dst()))
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-2a",
        how: "a SYN that crosses one from inside is lost",
        also: &["RFC 5382 REQ-4"],
        make: || {
            leaving(Wire::Lan, |seen, packet| {
                !is_syn(packet) || packet.src().port() == 81 || seen.is_stranger(packet)
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-3",
        how: "SYNs get in only from where was connected to",
        also: &["RFC 5382 REQ-2", "RFC 6888 REQ-7"],
        make: || strict(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-3a",
        how: "SYNs get in from everywhere, whatever is configured",
        also: &["RFC 5382 REQ-4", "RFC 5382 REQ-4a", "RFC 7857 6"],
        make: || open_to_all(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-4",
        how: "a SYN that is not let in is answered with ICMP 3/3 at once",
        also: &["RFC 5382 REQ-3a", "RFC 5382 REQ-4a", "RFC 7857 5", "RFC 7857 6"],
        make: || {
            answering(|_, wire, packet| {
                let is_wanted = wire == Wire::Wan && is_syn(packet);
                is_wanted.then(|| (Wire::Wan, Packet::error(WAN_ADDR, 3, 3, packet)))
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-4a",
        how: "a SYN to the gateway itself is answered with a RST",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                let rst = || {
                    Packet::tcp(
                        packet.dst(),
                        packet.src(),
                        tcp::RST | tcp::ACK,
                        0,
                        packet.numbers().0 + 1,
                        b"",
                    )
                };
                (wire == Wire::Wan && is_syn(packet) && packet.dst_addr() == WAN_ADDR)
                    .then(|| (Wire::Wan, rst()))
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-5",
        how: "established connections end after 2 hours",
        also: &["RFC 5382 REQ-5a"],
        make: || short_lived_tcp(7200.0, false),
    },
    Break {
        clause: "RFC 5382 REQ-5a",
        how: "established connections end after 7,500 s whatever is configured",
        also: &[],
        make: || short_lived_tcp(7500.0, false),
    },
    Break {
        clause: "RFC 5382 REQ-6",
        how: "addresses in FTP are rewritten",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                if packet.ip.protocol == TCP && packet.dst().port() == 21 && packet.payload().len() > 10 {
                    packet.body[28] ^= 1;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-7",
        how: "two hosts with one TCP source port share an outside port towards one destination",
        also: &[],
        make: || overloaded(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-8",
        how: "TCP is not hairpinned",
        also: &["RFC 5382 REQ-8a"],
        make: || no_hairpin(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-8a",
        how: "hairpinned TCP keeps its inside source",
        also: &["RFC 5382 REQ-8"],
        make: || inside_source(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-9",
        how: "the checksum of a quoted segment is not mended",
        also: &[],
        make: || {
            misquoted(Wire::Lan, |_, quoted| {
                let is_whole = quoted.ip.protocol == TCP && quoted.body.len() >= 20;
                if is_whole {
                    quoted.body[16] ^= 1;
                }
                is_whole
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-10",
        how: "an ICMP error ends the TCP connection it is about",
        also: &[],
        make: || error_kills(TCP),
    },
    // ---- RFC 5508
    Break {
        clause: "RFC 5508 REQ-1",
        how: "only one host's pings are answered",
        also: &[],
        make: || leaving(Wire::Lan, |_, packet| packet.icmp_kind() != Some((0, 0)) || packet.dst_addr() != B),
    },
    Break {
        clause: "RFC 5508 REQ-1a",
        how: "a ping to a second remote leaves with another identifier",
        also: &[],
        make: || port_per_remote(ICMP),
    },
    Break {
        clause: "RFC 5508 REQ-2",
        how: "pings may be answered for 58 s",
        also: &["RFC 5508 REQ-2a"],
        make: || short_lived(ICMP, 58.0),
    },
    Break {
        clause: "RFC 5508 REQ-2a",
        how: "pings may be answered for 80 s, whatever is configured",
        also: &[],
        make: || short_lived(ICMP, 80.0),
    },
    Break {
        clause: "RFC 5508 REQ-3",
        how: "wrong checksums of ICMP errors are mended on the way",
        also: &[],
        make: || {
            coming(Wire::Wan, |_, packet| {
                if packet.is_error() && packet.fault().is_some() {
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-3a",
        how: "wrong checksums of quoted IP headers are mended on the way",
        also: &[],
        make: || {
            coming(Wire::Wan, |_, packet| {
                if packet.fault().is_none()
                    && let Some(mut quoted) = packet.quoted()
                    && quoted.ip.header_checksum != quoted.ip.calc_header_checksum()
                {
                    quoted.ip.header_checksum = quoted.ip.calc_header_checksum();
                    packet.set_quoted(&quoted);
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-3b",
        how: "errors that quote IP options are lost",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                packet.quoted().is_none_or(|quoted| quoted.ip.options.as_slice().is_empty())
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-3c",
        how: "errors that quote a whole datagram with a wrong checksum are lost",
        also: &[],
        make: || {
            coming(Wire::Wan, |_, packet| {
                packet.quoted().is_none_or(|quoted| {
                    let is_whole =
                        quoted.ip.header_len() + quoted.body.len() == usize::from(quoted.ip.total_len);
                    !is_whole || quoted.fault().is_none()
                })
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-3d",
        how: "ICMP extensions are changed",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                if packet.is_error() && packet.body[5] == 32 {
                    *packet.body.last_mut().unwrap_or(&mut 0) ^= 1;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-4",
        how: "errors from outside about no mapping get in",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                let is_sound = packet.fault().is_none()
                    && packet
                        .quoted()
                        .is_some_and(|quoted| quoted.ip.header_checksum == quoted.ip.calc_header_checksum());
                let is_wanted = wire == Wire::Wan && matches!(packet.icmp_kind(), Some((3, _))) && is_sound;
                crossing(wire, packet).filter(|_| is_wanted && packet.ip.time_to_live > 1)
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-4a",
        how: "the identifier of a quoted ping is not reverted",
        also: &[],
        make: || {
            misquoted(Wire::Lan, |error, quoted| {
                let is_wanted = quoted.ip.protocol == ICMP && error.src_addr() == X;
                if is_wanted {
                    quoted.body[5] ^= 1;
                }
                is_wanted
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-4b",
        how: "the pointer of a parameter problem is changed on the way in",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                if packet.icmp_kind() == Some((12, 0)) {
                    packet.body[4] ^= 20;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-4c",
        how: "a parameter problem about TCP goes to another inside host",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                if packet.icmp_kind() == Some((12, 0)) && about(packet, TCP) {
                    packet.ip.destination = B.octets();
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-5",
        how: "errors from inside about no mapping get out",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                let is_wanted = wire == Wire::Lan && matches!(packet.icmp_kind(), Some((3, _)));
                crossing(wire, packet).filter(|_| is_wanted)
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-5a",
        how: "what an error from inside quotes shows the inside address",
        also: &[],
        make: || {
            misquoted(Wire::Wan, |_, quoted| {
                quoted.ip.destination = A.octets();
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-5b",
        how: "a parameter problem gets another code on the way out",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                if packet.icmp_kind() == Some((12, 0)) {
                    packet.body[1] = 2;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-5c",
        how: "an inside router shows in errors it sends",
        also: &[],
        make: || {
            leaving(Wire::Wan, |seen, packet| {
                if packet.is_error() && seen.last.as_ref().is_some_and(|last| last.src_addr() == C) {
                    packet.ip.source = C.octets();
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-6",
        how: "an error about a ping ends its session",
        also: &[],
        make: || error_kills(ICMP),
    },
    Break {
        clause: "RFC 5508 REQ-7",
        how: "errors are not hairpinned",
        also: &["RFC 5508 REQ-7a", "RFC 7857 12"],
        make: || leaving(Wire::Lan, |_, packet| !packet.is_error() || !is_outside_of_us(packet.src_addr())),
    },
    Break {
        clause: "RFC 5508 REQ-7a",
        how: "hairpinned errors go to another inside host",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                if packet.is_error() && is_pool(packet.src_addr()) && packet.dst_addr() == A {
                    packet.ip.destination = C.octets();
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-8",
        how: "administrative limits are told with code 10",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                if packet.src_addr() == LAN_ADDR && packet.icmp_kind() == Some((3, 13)) {
                    packet.body[1] = 10;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-10a",
        how: "the gateway cannot be pinged from inside",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                packet.src_addr() != LAN_ADDR || packet.icmp_kind() != Some((0, 0))
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-10b",
        how: "timestamp replies do not get in",
        also: &[],
        make: || leaving(Wire::Lan, |_, packet| packet.icmp_kind() != Some((14, 0))),
    },
    Break {
        clause: "RFC 5508 REQ-10c",
        how: "source quench gets in",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                crossing(wire, packet).filter(|_| wire == Wire::Wan && packet.icmp_kind() == Some((4, 0)))
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-10d",
        how: "an error is sent about a later fragment",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                let is_wanted = packet.ip.fragment_offset.value() > 0 && packet.ip.time_to_live == 1;
                is_wanted.then(|| (wire, Packet::error(LAN_ADDR, 11, 0, packet)))
            })
        },
    },
    Break {
        clause: "RFC 5508 REQ-11",
        how: "unknown ICMP messages get out as they are",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                crossing(wire, packet).filter(|_| matches!(packet.icmp_kind(), Some((40.., _))))
            })
        },
    },
    // ---- RFC 7857
    Break {
        clause: "RFC 7857 2",
        how: "segments of no connection get out",
        also: &[],
        make: || {
            answering(|seen, wire, packet| {
                let is_known = seen.let_out.values().flatten().any(|inside| *inside == packet.src());
                let is_wanted = wire == Wire::Lan
                    && !is_known
                    && packet.ip.protocol == TCP
                    && packet.flags() & (tcp::SYN | tcp::RST | tcp::ACK) == tcp::ACK;
                crossing(wire, packet).filter(|_| is_wanted)
            })
        },
    },
    Break {
        clause: "RFC 7857 2.1",
        how: "connections that open end after 250 s, whatever is configured",
        also: &["RFC 5382 REQ-5a"],
        make: || short_lived_tcp(250.0, true),
    },
    Break {
        clause: "RFC 7857 2.1 default",
        how: "connections that open end after 200 s",
        also: &["RFC 5382 REQ-5", "RFC 5382 REQ-5a", "RFC 7857 2.1"],
        make: || short_lived_tcp(200.0, true),
    },
    Break {
        clause: "RFC 7857 2.1 lower",
        how: "connections that open live for 100 s at least, whatever is configured",
        also: &[],
        make: || {
            answering(|seen, wire, packet| {
                let inside = *seen.owner.get(&(TCP, packet.dst()))?;
                let is_wanted =
                    wire == Wire::Wan && packet.ip.protocol == TCP && packet.flags() == tcp::SYN | tcp::ACK;
                let mut let_in = packet.clone();
                let_in.set_dst(inside);
                (is_wanted && seen.idle_s(TCP, inside) < 100.0).then_some((Wire::Lan, let_in))
            })
        },
    },
    Break {
        clause: "RFC 7857 2.2",
        how: "RSTs from inside are lost",
        also: &["RFC 7857 7.1"],
        make: || leaving(Wire::Wan, |_, packet| packet.ip.protocol != TCP || packet.flags() & tcp::RST == 0),
    },
    Break {
        clause: "RFC 7857 2.2 wait",
        how: "a RST from outside ends the connection at once",
        also: &[],
        make: || {
            let mut reset = HashSet::new();
            spoil(move |_, event| match event {
                Event::Leaves(Wire::Lan, packet) => {
                    if packet.ip.protocol == TCP && packet.flags() == tcp::RST {
                        reset.insert(packet.dst());
                    }
                    vec![(Wire::Lan, packet)]
                }
                Event::Comes(Wire::Lan, packet)
                    if packet.ip.protocol == TCP
                        && !packet.payload().is_empty()
                        && reset.contains(&packet.src()) =>
                {
                    Vec::new()
                }
                Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
                Event::Rest => Vec::new(),
            })
        },
    },
    Break {
        clause: "RFC 7857 2.2 forged",
        how: "forged RSTs get in",
        also: &[],
        make: || {
            answering(|_, wire, packet| {
                let is_wanted = wire == Wire::Wan && packet.ip.protocol == TCP && packet.flags() == tcp::RST;
                crossing(wire, packet).filter(|_| is_wanted)
            })
        },
    },
    Break {
        clause: "RFC 7857 4",
        how: "a host whose address has no port left is given another address",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                let host = refused.src_addr();
                error.icmp_kind() == Some((3, 1))
                    && refused.ip.protocol == UDP
                    && seen.count(UDP, host) > 0
                    && host == A
                    && seen.now_s < 100.0
            })
        },
    },
    Break {
        clause: "RFC 7857 4 TCP",
        how: "from the ninth TCP port on a host leaves from another address",
        also: &[],
        make: || unpaired(TCP, 8),
    },
    Break {
        clause: "RFC 7857 5",
        how: "a mapping of TCP lets UDP in",
        also: &[],
        make: || {
            answering(|seen, wire, packet| {
                let inside = *seen.owner.get(&(TCP, packet.dst()))?;
                let mut let_in = packet.clone();
                let_in.set_dst(inside);
                (wire == Wire::Wan && packet.ip.protocol == UDP).then_some((Wire::Lan, let_in))
            })
        },
    },
    Break {
        clause: "RFC 7857 6",
        how: "whom a host has talked to by UDP gets in by TCP",
        also: &[],
        make: || {
            answering(|seen, wire, packet| {
                let inside = *seen.owner.get(&(TCP, packet.dst()))?;
                let mut let_in = packet.clone();
                let_in.set_dst(inside);
                let knows = seen.peers.contains(&(UDP, inside, packet.src_addr()));
                (wire == Wire::Wan && is_syn(packet) && knows).then_some((Wire::Lan, let_in))
            })
        },
    },
    Break {
        clause: "RFC 7857 7",
        how: "UDP from strangers keeps a mapping alive",
        also: &[],
        make: || {
            keeping(Wire::Wan, |seen, packet| {
                let inside = *seen.owner.get(&(UDP, packet.dst()))?;
                let is_stranger = !seen.peers.contains(&(UDP, inside, packet.src_addr()));
                (packet.ip.protocol == UDP && !packet.is_fragment() && is_stranger)
                    .then_some((inside, at(X, 7000)))
            })
        },
    },
    Break {
        clause: "RFC 7857 7.1",
        how: "ICMP errors from inside keep a mapping alive",
        also: &[],
        make: || {
            keeping(Wire::Lan, |_, packet| {
                let quoted =
                    packet.quoted().filter(|quoted| quoted.ip.protocol == UDP && quoted.dst() == a())?;
                (packet.icmp_kind() == Some((3, 3)) && quoted.src() == at(X, 7000))
                    .then_some((a(), at(X, 7000)))
            })
        },
    },
    Break {
        clause: "RFC 7857 8",
        how: "a host that has even ports only keeps them even",
        also: &[],
        make: || {
            leaving(Wire::Wan, |seen, packet| {
                let Some(inside) = seen.sender(UDP).filter(|_| packet.ip.protocol == UDP) else {
                    return true;
                };
                let list = seen.let_out.get(&(UDP, *inside.ip())).cloned().unwrap_or_default();
                let all_even = list.len() >= 2 && list.iter().chain([&inside]).all(|end| end.port() % 2 == 0);
                if all_even && packet.src().port() % 2 == 1 && !packet.is_fragment() {
                    packet.set_src(neighbour(packet.src()));
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 7857 9",
        how: "ports of a block are given in order",
        also: &["RFC 6888 REQ-15"],
        make: ports_in_order,
    },
    Break {
        clause: "RFC 7857 10",
        how: "fragments keep their identification",
        also: &[],
        make: || {
            leaving(Wire::Wan, |seen, packet| {
                if packet.is_fragment()
                    && let Some(last) = seen.last.as_ref().filter(|last| last.is_fragment())
                {
                    packet.ip.identification = last.ip.identification;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 7857 11",
        how: "a ping's mapping outlives its last session",
        also: &[],
        make: || {
            answering(|seen, wire, packet| {
                let inside = *seen.owner.get(&(ICMP, packet.dst()))?;
                let mut let_in = packet.clone();
                let_in.set_dst(inside);
                let is_shared = [X, crate::selftest::rig::Y]
                    .iter()
                    .all(|peer| seen.peers.contains(&(ICMP, inside, *peer)));
                (wire == Wire::Wan && packet.icmp_kind() == Some((0, 0)) && is_shared)
                    .then_some((Wire::Lan, let_in))
            })
        },
    },
    Break {
        clause: "RFC 7857 12",
        how: "pings are not hairpinned",
        also: &["RFC 5508 REQ-7"],
        make: || no_hairpin(ICMP),
    },
    // ---- RFC 6888
    Break {
        clause: "RFC 6888 REQ-2",
        how: "from the 17th UDP port on a host leaves from another address",
        also: &["RFC 4787 REQ-2"],
        make: || unpaired(UDP, 16),
    },
    Break {
        clause: "RFC 6888 REQ-3",
        how: "of the pool, only the first network is used",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                if packet.src_addr().octets()[..3] == [192, 0, 2] {
                    packet.set_src(at(Ipv4Addr::new(203, 0, 113, 1), packet.src().port()));
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-4",
        how: "a host gets more than its 1,024 ports",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                error.icmp_kind() == Some((3, 13)) && seen.count(UDP, refused.src_addr()) >= 1024
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-4a",
        how: "a host gets more ports than were configured",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                error.icmp_kind() == Some((3, 13))
                    && (128..1024).contains(&seen.count(UDP, refused.src_addr()))
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-5",
        how: "a host gets more sessions than were configured",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                let sessions = seen.sent.get(&(UDP, refused.src())).map_or(0, |(_, _, count)| *count);
                error.icmp_kind() == Some((3, 13)) && sessions > 8
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-6",
        how: "what is not to be translated is",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                if packet.src_addr() == A && packet.ip.protocol == UDP {
                    packet.set_src(at(Ipv4Addr::new(203, 0, 113, 1), packet.src().port()));
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-7",
        how: "X's second address gets in only where it was talked to",
        also: &["RFC 4787 REQ-8", "RFC 4787 REQ-11", "RFC 5382 REQ-3"],
        make: || {
            leaving(Wire::Lan, |seen, packet| {
                packet.src_addr() != X2 || packet.is_error() || !seen.is_stranger(packet)
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-8",
        how: "ports rest for no more than a second",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                error.icmp_kind() == Some((3, 1))
                    && refused.src_addr() == B
                    && (121.0..250.0).contains(&seen.now_s)
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-8 time",
        how: "ports rest for 120 s whatever is configured",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                error.icmp_kind() == Some((3, 1)) && refused.src_addr() == B && seen.now_s > 250.0
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-8 number",
        how: "one port fewer rests than was configured",
        also: &[],
        make: || {
            let mut is_first = true;
            letting_through(move |seen, _, refused| {
                let is_late = seen.now_s > 120.0 && refused.src_addr() == A && refused.ip.protocol == UDP;
                is_late && std::mem::take(&mut is_first)
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-11A",
        how: "what gets no mapping is let through",
        also: &[],
        make: || {
            letting_through(|_, error, refused| error.icmp_kind() == Some((3, 1)) && refused.src_addr() == C)
        },
    },
    Break {
        clause: "RFC 6888 REQ-11B",
        how: "an exhausted pool is told as net unreachable",
        also: &[],
        make: || {
            leaving(Wire::Lan, |_, packet| {
                if packet.src_addr() == LAN_ADDR && packet.icmp_kind() == Some((3, 1)) {
                    packet.body[1] = 0;
                    packet.seal();
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-11D",
        how: "after 40 flows of other hosts the oldest mapping makes room",
        also: &[],
        make: || {
            let mut others = 0;
            let mut oldest = None;
            spoil(move |_, event| match event {
                Event::Comes(Wire::Lan, packet) => {
                    others += u32::from(packet.src_addr() != A);
                    vec![(Wire::Lan, packet)]
                }
                Event::Leaves(Wire::Wan, packet) => {
                    oldest.get_or_insert(packet.src());
                    vec![(Wire::Wan, packet)]
                }
                Event::Comes(Wire::Wan, packet) if others >= 40 && Some(packet.dst()) == oldest => Vec::new(),
                Event::Comes(wire, packet) | Event::Leaves(wire, packet) => vec![(wire, packet)],
                Event::Rest => Vec::new(),
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-13",
        how: "the last block of an address is never used",
        also: &[],
        make: || {
            leaving(Wire::Wan, |seen, packet| {
                let is_many = seen.sender(UDP).is_some_and(|inside| inside.ip().octets()[3] >= 100);
                !is_many || !(20_224..20_288).contains(&packet.src().port())
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-14",
        how: "TCP takes blocks of its own",
        also: &[],
        make: || {
            leaving(Wire::Wan, |seen, packet| {
                if is_syn(packet) && seen.count(UDP, A) > 60 {
                    packet.set_src(at(packet.src_addr(), packet.src().port() ^ 0x4000));
                }
                true
            })
        },
    },
    Break {
        clause: "RFC 6888 REQ-15",
        how: "ports of a block are given in order",
        also: &["RFC 7857 9"],
        make: ports_in_order,
    },
];
