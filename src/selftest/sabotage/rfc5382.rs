//! Ways to spoil what RFC 5382 asks for.

use super::*;

pub(super) const BREAKS: &[Break] = &[
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
        also: &["RFC 5382 REQ-4", "RFC 5382 REQ-4 answer", "RFC 5382 REQ-4a", "RFC 7857 6"],
        make: || open_to_all(TCP),
    },
    Break {
        clause: "RFC 5382 REQ-4",
        how: "a SYN that is not let in is answered with ICMP 3/3 at once",
        also: &["RFC 5382 REQ-3a", "RFC 5382 REQ-4 answer", "RFC 5382 REQ-4a", "RFC 7857 5", "RFC 7857 6"],
        make: || {
            answering(|_, wire, packet| {
                let is_wanted = wire == Wire::Wan && is_syn(packet);
                is_wanted.then(|| (Wire::Wan, Packet::error(WAN_ADDR, 3, 3, packet)))
            })
        },
    },
    Break {
        clause: "RFC 5382 REQ-4 answer",
        how: "the answer to a SYN that nobody asked for is lost",
        also: &[],
        make: || {
            leaving(Wire::Wan, |_, packet| {
                packet.icmp_kind() != Some((3, 3)) || packet.src_addr() != WAN_ADDR
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
            changing(
                Wire::Wan,
                |_, packet| {
                    packet.ip.protocol == TCP && packet.dst().port() == 21 && packet.payload().len() > 10
                },
                |packet| packet.body[28] ^= 1,
            )
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
];
