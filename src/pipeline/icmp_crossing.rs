//! ICMP errors about NAT64 sessions (RFC 7915 sections 4.2, 4.3, 5.2 and 5.3): type, code, pointer and MTU in the
//! other family's words, and the quoted packet as its sender knows it.

use crate::flow::{Address, Flow};
use crate::mem::Frame;
use crate::packet::view::{array_mut, be16, be32, protocol};
use crate::packet::{DropReason, Family, Packet, checksum, flags};
use crate::pipeline::Context;
use crate::pipeline::crossing::{
    self, FRAGMENT_BYTES, Facts, Gain, IPV4_BYTES, IPV6_BYTES, MIN_IPV6_MTU, crossed,
};

const ICMP_BYTES: usize = 8;
/// The longest error: RFC 4443 section 2.4 (c), and IPv4 routers need no more.
const MAX_ERROR: usize = 1280;
/// Everything in front of the quoted packet's upper layer.
const MAX_FRONT: usize = IPV6_BYTES + ICMP_BYTES + IPV6_BYTES + FRAGMENT_BYTES;

/// RFC 1191 section 7: what the MTU of a router that names none may be, by the length of what it refused.
const PLATEAUS: [u16; 11] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// Type, code and the word behind the checksum.
type Message = (u8, u8, u32);

/// Of an ICMP error what ICMPv6 says (RFC 7915 section 4.2). `mtus`: of the link it leaves by and the one it came by;
/// `quoted_len`: of the packet it is about.
fn to_v6((kind, code, word): Message, mtus: (u16, u16), quoted_len: u16) -> Option<Message> {
    Some(match (kind, code) {
        (3, 2) => (4, 1, 6), // its next header
        (3, 3) => (1, 4, 0),
        (3, 4) => {
            let told = match word as u16 {
                0 => PLATEAUS.into_iter().find(|plateau| *plateau < quoted_len).unwrap_or(68),
                told => told,
            };
            let more = |mtu: u16| u32::from(mtu) + IPV4_BYTES as u32;
            let mtu = more(told).min(u32::from(mtus.0)).min(more(mtus.1));
            (2, 0, mtu.max(MIN_IPV6_MTU.into()))
        }
        (3, 0 | 1 | 5..=8 | 11 | 12) => (1, 0, 0),
        (3, 9 | 10 | 13 | 15) => (1, 1, 0),
        (11, 0 | 1) => (3, code, 0),
        (12, 0 | 2) => {
            let pointer = match word >> 24 {
                0 => 0,
                1 => 1,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return None,
            };
            (4, 0, pointer)
        }
        _ => return None,
    })
}

/// Of an ICMPv6 error what ICMP says (RFC 7915 section 5.2).
fn to_v4((kind, code, word): Message, mtus: (u16, u16)) -> Option<Message> {
    Some(match (kind, code) {
        (1, 0 | 2 | 3) => (3, 1, 0),
        (1, 1) => (3, 10, 0),
        (1, 4) => (3, 3, 0),
        (2, 0) => {
            let less = |mtu: u32| mtu.saturating_sub(IPV4_BYTES as u32);
            (3, 4, less(word).min(mtus.0.into()).min(less(mtus.1.into())))
        }
        (3, 0 | 1) => (11, code, 0),
        (4, 0) => {
            let pointer = match word {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            (12, 0, pointer << 24)
        }
        (4, 1) => (3, 2, 0),
        _ => return None,
    })
}

/// Takes an error along `flow` across. What it quotes goes the other way: its source is the flow's destination.
/// `identification`: of an IPv4 packet.
pub(super) fn error(
    packet: &mut Packet,
    flow: &Flow<u128>,
    identification: u16,
    cx: &Context<'_>,
) -> Result<(), DropReason> {
    let meta = packet.meta;
    let from_v4 = meta.family == Family::Ipv4;
    // A jumbo frame is no error (RFC 1812 section 4.3.2.3), and cannot be cut here.
    if packet.frame.is_chained() || meta.has(flags::FRAGMENT) {
        return Err(DropReason::Nat64Unsupported);
    }
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let end = l3 + usize::from(meta.ip_len);
    let bytes = &packet.frame.bytes()[..end.min(packet.frame.len())];
    let outer = crossing::facts(&bytes[l3..], l4 - l3, meta.ip_len.into(), meta.family, meta.protocol)
        .ok_or(DropReason::Nat64Unsupported)?;
    let icmp = &bytes[l4..];
    let quoted = &icmp[ICMP_BYTES..];
    let inner_l4 = inner_l4(quoted, meta.family).ok_or(DropReason::Nat64Unsupported)?;
    let said_len = if from_v4 { be16(quoted, 2).into() } else { IPV6_BYTES + usize::from(be16(quoted, 4)) };
    let inner = crossing::facts(quoted, inner_l4, said_len, meta.family, flow.tuple.protocol)
        .ok_or(DropReason::Nat64Unsupported)?;
    let message = (icmp[0], icmp[1], be32(icmp, 4));
    let mtus = (cx.tables.interface(meta.egress).mtu_bytes, cx.tables.interface(meta.interface).mtu_bytes);
    // RFC 4884 section 4: extensions stand behind the quoted packet. They do not cross.
    let (at, unit) = if from_v4 { (5, 4) } else { (4, 8) };
    let has_length = matches!((from_v4, message.0), (true, 3 | 11 | 12) | (false, 1 | 3));
    let shown = match usize::from(icmp[at]) * unit {
        len if has_length && len >= inner_l4 + 8 => len.min(quoted.len()),
        _ => quoted.len(),
    };
    let new = if from_v4 { to_v6(message, mtus, said_len as u16) } else { to_v4(message, mtus) };
    let new = new.ok_or(DropReason::Nat64Unsupported)?;

    let src = seen_source(&packet.frame, l3, flow, from_v4, cx);
    let begins = l4 + ICMP_BYTES + inner_l4;
    let inner_headers = if from_v4 { crossing::v6_len(&inner) } else { IPV4_BYTES };
    let outer_headers = if from_v4 { IPV6_BYTES } else { IPV4_BYTES };
    let front = outer_headers + ICMP_BYTES + inner_headers;
    // Nobody is told that an error is too long: it quotes what the link carries.
    let rest = (shown - inner_l4).min(MAX_ERROR.min(mtus.0.into()).saturating_sub(front));
    packet.frame.truncate(begins + rest);
    let gain = Gain::of(flow, from_v4);
    let is_first = inner.fragment.is_none_or(|(offset, ..)| offset == 0);
    if is_first {
        let upper = &mut packet.frame.bytes_mut()[begins..];
        crossing::write_upper(
            upper,
            flow.tuple.protocol,
            (flow.new_dst_port, flow.new_src_port),
            &gain,
            inner.payload,
        )?;
    }

    let mut bytes = [0u8; MAX_FRONT];
    let facts = Facts {
        payload: front - outer_headers + rest,
        upper: crossed(meta.protocol),
        fragment: None,
        ..outer
    };
    let (outer_bytes, behind) = bytes[..front].split_at_mut(outer_headers);
    let (icmp, quoted) = behind.split_at_mut(ICMP_BYTES);
    icmp[..2].copy_from_slice(&[new.0, new.1]);
    icmp[4..8].copy_from_slice(&new.2.to_be_bytes());
    if from_v4 {
        crossing::write_v6(quoted, &inner, flow.new_dst, flow.new_src);
        crossing::write_v6(outer_bytes, &facts, src, flow.new_dst);
    } else {
        crossing::write_v4(array_mut(quoted, 0), &inner, flow.new_dst, flow.new_src, 0);
        crossing::write_v4(array_mut(outer_bytes, 0), &facts, src, flow.new_dst, identification);
    }
    let mut sum = checksum::add(0, &packet.frame.bytes()[begins..]) + checksum::add(0, behind);
    if from_v4 {
        sum += crossing::pseudo_v6(src, flow.new_dst, protocol::ICMPV6, facts.payload);
    }
    behind[2..4].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    // From here on the "upper layer" is what stays: the quoted packet's.
    packet.meta.l4 = begins as u16;
    crossing::make_room(packet, front)?.copy_from_slice(&bytes[..front]);
    let family = if from_v4 { Family::Ipv6 } else { Family::Ipv4 };
    packet.meta.l4 -= (front - outer_headers) as u16;
    crossing::become_family(&mut packet.meta, family, outer_headers, &facts);
    Ok(())
}

/// Where the upper layer of a quoted packet begins: it was found by it.
fn inner_l4(quoted: &[u8], family: Family) -> Option<usize> {
    let at = match family {
        Family::Ipv4 => usize::from(quoted.first()? & 15) * 4,
        _ if *quoted.get(6)? == protocol::FRAGMENT => IPV6_BYTES + FRAGMENT_BYTES,
        _ => IPV6_BYTES,
    };
    (quoted.len() >= at + 8).then_some(at)
}

/// The source it leaves with: every IPv4 host has an address in the prefix; of IPv6 hosts and routers only the one that
/// has the mapping has one in IPv4, and speaks for all.
fn seen_source(frame: &Frame, l3: usize, flow: &Flow<u128>, from_v4: bool, cx: &Context<'_>) -> u128 {
    let bytes = &frame.bytes()[l3..];
    if !from_v4 || u128::src_in(Family::Ipv4, bytes) == flow.tuple.src {
        return flow.new_src;
    }
    let policy = &cx.tables.policy;
    let rule = policy.nat64_of_address(flow.tuple.vrf, flow.tuple.dst.low().into());
    rule.map_or(flow.new_src, |rule| rule.prefix.embed(be32(bytes, 12)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_are_told_for_the_other_header() {
        let v6 = |told, egress, ingress, len| to_v6((3, 4, told), (egress, ingress), len).map(|new| new.2);
        assert_eq!(v6(1400, 1500, 1500, 1500), Some(1420));
        assert_eq!(v6(1500, 1500, 1500, 1500), Some(1500), "the next IPv6 link carries no more");
        assert_eq!(v6(9000, 9000, 1500, 9000), Some(1520), "nor does the IPv4 link");
        assert_eq!(v6(576, 1500, 1500, 1500), Some(1280), "RFC 8200 section 5");
        assert_eq!(v6(0, 9000, 1500, 1500), Some(1512), "RFC 1191 section 7: 1492");
        assert_eq!(v6(0, 9000, 9000, 2002), Some(1512), "2002 was too long");
        let v4 = |told, egress, ingress| to_v4((2, 0, told), (egress, ingress)).map(|new| new.2);
        assert_eq!(v4(1400, 1500, 1500), Some(1380));
        assert_eq!(v4(1500, 1300, 1500), Some(1300));
        assert_eq!(v4(9000, 9000, 1500), Some(1480));
    }

    #[test]
    fn every_kind_has_the_word_of_the_other_family() {
        let v6 = |kind, code| to_v6((kind, code, 0), (1500, 1500), 100).map(|new| (new.0, new.1));
        // RFC 7915 section 4.2.
        for code in [0, 1, 5, 6, 7, 8, 11, 12] {
            assert_eq!(v6(3, code), Some((1, 0)), "no route: code {code}");
        }
        for code in [9, 10, 13, 15] {
            assert_eq!(v6(3, code), Some((1, 1)), "administratively prohibited: code {code}");
        }
        assert_eq!(to_v6((3, 2, 0), (1500, 1500), 100), Some((4, 1, 6)), "protocol unreachable: next header");
        assert_eq!(v6(3, 3), Some((1, 4)));
        assert_eq!((v6(11, 0), v6(11, 1)), (Some((3, 0)), Some((3, 1))));
        assert_eq!((v6(12, 0), v6(12, 2)), (Some((4, 0)), Some((4, 0))));
        // Section 5.2.
        let v4 = |kind, code| to_v4((kind, code, 0), (1500, 1500)).map(|new| (new.0, new.1));
        for code in [0, 2, 3] {
            assert_eq!(v4(1, code), Some((3, 1)), "code {code}");
        }
        assert_eq!((v4(1, 1), v4(1, 4)), (Some((3, 10)), Some((3, 3))));
        assert_eq!((v4(3, 0), v4(3, 1)), (Some((11, 0)), Some((11, 1))));
        assert_eq!((v4(4, 0), v4(4, 1)), (Some((12, 0)), Some((3, 2))));
    }

    #[test]
    fn a_pointer_shows_the_same_field_of_the_other_header() {
        // RFC 7915, figure 3 (section 4.2) and figure 6 (section 5.2): what the pointer is in the other header.
        let told = |at: u32| match at {
            0 | 1 => Some(at),
            2 | 3 => Some(4),   // total length: payload length
            8 => Some(7),       // time to live: hop limit
            9 => Some(6),       // protocol: next header
            12..=15 => Some(8), // source
            16..=19 => Some(24),
            _ => None,
        };
        for at in 0..=40 {
            let new = to_v6((12, 0, at << 24), (1500, 1500), 100);
            assert_eq!(new, told(at).map(|at| (4, 0, at)), "IPv4 byte {at}");
        }
        let told = |at: u32| match at {
            0 | 1 => Some(at),
            4 | 5 => Some(2),
            6 => Some(9),
            7 => Some(8),
            8..=23 => Some(12),
            24..=39 => Some(16),
            _ => None,
        };
        for at in 0..=60 {
            let new = to_v4((4, 0, at), (1500, 1500));
            assert_eq!(new, told(at).map(|at| (12, 0, at << 24)), "IPv6 byte {at}");
        }
    }

    #[test]
    fn what_has_no_word_in_the_other_family_does_not_cross() {
        for message in [(3, 14, 0), (12, 1, 0), (12, 0, 4 << 24), (5, 0, 0), (4, 0, 0), (11, 2, 0)] {
            assert_eq!(to_v6(message, (1500, 1500), 100), None, "{message:?}");
        }
        for message in [(1, 5, 0), (4, 2, 0), (4, 0, 2), (4, 0, 40), (3, 2, 0), (137, 0, 0)] {
            assert_eq!(to_v4(message, (1500, 1500)), None, "{message:?}");
        }
    }
}
