//! Ways to spoil what RFC 5508 asks for.

use super::*;

pub(super) const BREAKS: &[Break] = &[
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
            changing(
                Wire::Lan,
                |_, packet| packet.is_error() && packet.body[5] == 32,
                |packet| *packet.body.last_mut().unwrap_or(&mut 0) ^= 1,
            )
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
            changing(
                Wire::Lan,
                |_, packet| packet.icmp_kind() == Some((12, 0)),
                |packet| packet.body[4] ^= 20,
            )
        },
    },
    Break {
        clause: "RFC 5508 REQ-4c",
        how: "a parameter problem about TCP goes to another inside host",
        also: &[],
        make: || {
            changing(
                Wire::Lan,
                |_, packet| packet.icmp_kind() == Some((12, 0)) && about(packet, TCP),
                |packet| packet.ip.destination = B.octets(),
            )
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
        also: &["RFC 5382 REQ-4 answer"],
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
            changing(Wire::Wan, |_, packet| packet.icmp_kind() == Some((12, 0)), |packet| packet.body[1] = 2)
        },
    },
    Break {
        clause: "RFC 5508 REQ-5c",
        how: "an inside router shows in errors it sends",
        also: &[],
        make: || {
            changing(
                Wire::Wan,
                |seen, packet| {
                    packet.is_error() && seen.last.as_ref().is_some_and(|last| last.src_addr() == C)
                },
                |packet| packet.ip.source = C.octets(),
            )
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
            changing(
                Wire::Lan,
                |_, packet| packet.is_error() && is_pool(packet.src_addr()) && packet.dst_addr() == A,
                |packet| packet.ip.destination = C.octets(),
            )
        },
    },
    Break {
        clause: "RFC 5508 REQ-8",
        how: "administrative limits are told with code 10",
        also: &[],
        make: || {
            changing(
                Wire::Lan,
                |_, packet| packet.src_addr() == LAN_ADDR && packet.icmp_kind() == Some((3, 13)),
                |packet| packet.body[1] = 10,
            )
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
];
