//! Ways to spoil what RFC 4787 asks for.

use super::*;

pub(super) const BREAKS: &[Break] = &[
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
            changing(
                Wire::Wan,
                |_, packet| packet.ip.protocol == UDP && !packet.is_fragment() && packet.src().port() < 1024,
                |packet| packet.set_src(at(packet.src_addr(), packet.src().port() + 2000)),
            )
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
            letting_in(UDP, |seen, packet, inside| {
                let is_late = (120.0..301.0).contains(&seen.idle_s(UDP, inside));
                packet.ip.protocol == UDP && is_late && seen.peers.contains(&(UDP, inside, packet.src_addr()))
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
            changing(
                Wire::Wan,
                |_, packet| packet.ip.protocol == UDP && packet.dst().port() == 5060,
                |packet| packet.body[20] ^= 1,
            )
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
];
