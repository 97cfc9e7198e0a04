//! Ways to spoil what RFC 6888 asks for.

use super::*;

pub(super) const BREAKS: &[Break] = &[
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
            changing(
                Wire::Wan,
                |_, packet| packet.src_addr().octets()[..3] == [192, 0, 2],
                |packet| packet.set_src(at(Ipv4Addr::new(203, 0, 113, 1), packet.src().port())),
            )
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
        clause: "RFC 6888 REQ-4c",
        how: "the ninth mapping of a host comes as fast as it is asked for",
        also: &[],
        make: || {
            letting_through(|seen, error, refused| {
                error.icmp_kind() == Some((3, 13)) && refused.src() == at(A, 5008) && seen.now_s < 1.0
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
            changing(
                Wire::Wan,
                |_, packet| packet.src_addr() == A && packet.ip.protocol == UDP,
                |packet| packet.set_src(at(Ipv4Addr::new(203, 0, 113, 1), packet.src().port())),
            )
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
            changing(
                Wire::Lan,
                |_, packet| packet.src_addr() == LAN_ADDR && packet.icmp_kind() == Some((3, 1)),
                |packet| packet.body[1] = 0,
            )
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
            changing(
                Wire::Wan,
                |seen, packet| is_syn(packet) && seen.count(UDP, A) > 60,
                |packet| packet.set_src(at(packet.src_addr(), packet.src().port() ^ 0x4000)),
            )
        },
    },
    Break {
        clause: "RFC 6888 REQ-15",
        how: "ports of a block are given in order",
        also: &["RFC 7857 9"],
        make: ports_in_order,
    },
];
