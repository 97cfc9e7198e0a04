//! Ways to spoil what RFC 7857 asks for.

use super::*;

pub(super) const BREAKS: &[Break] = &[
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
            letting_in(TCP, |seen, packet, inside| {
                let is_answer = packet.ip.protocol == TCP && packet.flags() == tcp::SYN | tcp::ACK;
                is_answer && seen.idle_s(TCP, inside) < 100.0
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
        make: || letting_in(TCP, |_, packet, _| packet.ip.protocol == UDP),
    },
    Break {
        clause: "RFC 7857 6",
        how: "whom a host has talked to by UDP gets in by TCP",
        also: &[],
        make: || {
            letting_in(TCP, |seen, packet, inside| {
                is_syn(packet) && seen.peers.contains(&(UDP, inside, packet.src_addr()))
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
        clause: "RFC 7857 10 whole",
        how: "whole datagrams keep their identification",
        also: &[],
        make: || {
            leaving(Wire::Wan, |seen, packet| {
                if !packet.is_fragment()
                    && !packet.ip.dont_fragment
                    && let Some(last) = seen.last.as_ref().filter(|last| !last.is_fragment())
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
            letting_in(ICMP, |seen, packet, inside| {
                let knows = |peer: &Ipv4Addr| seen.peers.contains(&(ICMP, inside, *peer));
                packet.icmp_kind() == Some((0, 0)) && [X, crate::selftest::rig::Y].iter().all(knows)
            })
        },
    },
    Break {
        clause: "RFC 7857 12",
        how: "pings are not hairpinned",
        also: &["RFC 5508 REQ-7"],
        make: || no_hairpin(ICMP),
    },
];
