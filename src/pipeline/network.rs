//! Network: IPv4 and IPv6 headers, checked as RFC 1812 section 5.2.2 and RFC 8200 say, and the ports behind them.

use crate::packet::view::{array, be16, be32, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Verdict, checksum, flags};

/// Most IPv6 extension headers walked: DESIGN.md section 3.
const MAX_EXTENSION_HEADERS: usize = 8;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// Loose and strict source route options (RFC 791 section 3.1), refused per RFC 7126.
const SOURCE_ROUTE_OPTIONS: [u8; 2] = [131, 137];

#[inline(always)]
pub(super) fn step(packet: &mut Packet) {
    if packet.meta.verdict != Verdict::Continue {
        return;
    }
    let parsed = match packet.meta.family {
        Family::Ipv4 => ipv4(packet),
        Family::Ipv6 => ipv6(packet),
        Family::Other => unreachable!("the link stage lets only IP through"),
    };
    if let Err(reason) = parsed {
        packet.meta.verdict = Verdict::Drop(reason);
    }
}

/// Bytes of the packet from the L3 header on, over the whole chain.
#[inline(always)]
fn available(packet: &Packet) -> usize {
    let l3 = usize::from(packet.meta.l3);
    if packet.frame.is_chained() { packet.frame.total_len() - l3 } else { packet.frame.len() - l3 }
}

#[inline(always)]
fn ipv4(packet: &mut Packet) -> Result<(), DropReason> {
    let available = available(packet);
    let meta = &mut packet.meta;
    let Some(l3) = packet.frame.bytes().get(usize::from(meta.l3)..) else {
        return Err(DropReason::Truncated);
    };
    let Some(head) = l3.first_chunk::<IPV4_BYTES>() else {
        return Err(DropReason::Truncated);
    };
    let ip_len = be16(head, 2);
    if head[0] == VERSION_4_WITHOUT_OPTIONS {
        if usize::from(ip_len) < IPV4_BYTES {
            return Err(DropReason::Ipv4HeaderInvalid);
        }
        if usize::from(ip_len) > available {
            return Err(DropReason::Truncated);
        }
        if !plain_header_is_valid(head) {
            return Err(DropReason::Ipv4Checksum);
        }
        meta.l4 = meta.l3 + IPV4_BYTES as u16;
        if let Some(ports) = l3.get(IPV4_BYTES..).and_then(|l4| l4.first_chunk::<4>()) {
            note_ports(meta, head[9], ports);
        }
    } else {
        let header_len = with_options(head, l3, ip_len, available)?;
        meta.l4 = meta.l3 + header_len as u16;
        if let Some(ports) = l3.get(header_len..).and_then(|l4| l4.first_chunk::<4>()) {
            note_ports(meta, head[9], ports);
        }
    }
    meta.ip_len = ip_len;
    meta.protocol = head[9];
    meta.dst_v4 = be32(head, 16);
    let fragment = be16(head, 6);
    if fragment != 0 {
        note_fragment(meta, fragment);
    }
    Ok(())
}

/// Version 4, header of five words: nearly every packet.
pub(super) const VERSION_4_WITHOUT_OPTIONS: u8 = 0x45;

/// The checksum of a header without options. The one's complement sum does not depend on byte order when
/// it is compared with all ones (RFC 1071 section 2B).
#[inline(always)]
pub(super) fn plain_header_is_valid(head: &[u8; IPV4_BYTES]) -> bool {
    let (a, b) = (u64::from_le_bytes(*array(head, 0)), u64::from_le_bytes(*array(head, 8)));
    let last = u64::from(u32::from_le_bytes(*array(head, 16)));
    let (sum, carry) = a.overflowing_add(b);
    let (sum, carry) = sum.overflowing_add(last + u64::from(carry));
    let sum = sum + u64::from(carry);
    // A number plus itself turned by half its width has the end-around sum of its halves in the upper one.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    sum.wrapping_add(sum.rotate_left(16)) >> 16 == 0xffff
}

/// A header that is not the usual one: its length, if it is right.
#[cold]
fn with_options(
    head: &[u8; IPV4_BYTES],
    l3: &[u8],
    ip_len: u16,
    available: usize,
) -> Result<usize, DropReason> {
    let header_len = usize::from(head[0] & 15) * 4;
    if head[0] >> 4 != 4 || header_len < IPV4_BYTES || usize::from(ip_len) < header_len {
        return Err(DropReason::Ipv4HeaderInvalid);
    }
    if usize::from(ip_len) > available || l3.len() < header_len {
        return Err(DropReason::Truncated);
    }
    if !checksum::is_valid(&l3[..header_len]) {
        return Err(DropReason::Ipv4Checksum);
    }
    check_options(&l3[IPV4_BYTES..header_len])?;
    Ok(header_len)
}

fn note_fragment(meta: &mut Meta, fragment: u16) {
    if fragment & 0x4000 != 0 {
        meta.flags |= flags::DONT_FRAGMENT;
    }
    if fragment & 0x3fff != 0 {
        meta.flags |= flags::FRAGMENT;
        // A fragment's ports are those of its datagram only in the first one: none are used.
        (meta.src_port, meta.dst_port) = (0, 0);
        if fragment & 0x1fff != 0 {
            meta.flags |= flags::LATER_FRAGMENT;
        }
    }
}

/// Walks the options; refuses source routes and lengths that leave the header.
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let [kind, rest @ ..] = options {
        match (*kind, rest) {
            (0, _) => break,             // end of options
            (1, rest) => options = rest, // no operation
            (kind, [len, ..]) if usize::from(*len) >= 2 && usize::from(*len) <= options.len() => {
                if SOURCE_ROUTE_OPTIONS.contains(&kind) {
                    return Err(DropReason::Ipv4SourceRoute);
                }
                options = &options[usize::from(*len)..];
            }
            _ => return Err(DropReason::Ipv4HeaderInvalid),
        }
    }
    Ok(())
}

#[inline(never)]
fn ipv6(packet: &mut Packet) -> Result<(), DropReason> {
    let available = available(packet);
    let meta = &mut packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let Some(head) = l3.first_chunk::<IPV6_BYTES>() else {
        return Err(DropReason::Truncated);
    };
    if head[0] >> 4 != 6 {
        return Err(DropReason::Ipv6HeaderInvalid);
    }
    let ip_len = IPV6_BYTES + usize::from(be16(head, 4));
    if ip_len > available {
        return Err(DropReason::Truncated);
    }
    // Longer than 65,535 only with a payload of 65,496 and more, which no MTU of ours carries.
    meta.ip_len = u16::try_from(ip_len).map_err(|_| DropReason::Ipv6HeaderInvalid)?;
    let packet_bytes = &l3[..ip_len.min(l3.len())];
    let mut next = head[6];
    let mut at = IPV6_BYTES;
    let mut headers = 0;
    while is_extension(next) && !meta.has(flags::LATER_FRAGMENT) {
        headers += 1;
        if headers > MAX_EXTENSION_HEADERS {
            return Err(DropReason::Ipv6TooManyHeaders);
        }
        // RFC 8200 section 4.1: hop-by-hop options only directly behind the IPv6 header.
        if next == protocol::HOP_BY_HOP && headers > 1 {
            return Err(DropReason::Ipv6HeaderInvalid);
        }
        let Some(header) = packet_bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
            return Err(DropReason::Ipv6HeaderInvalid);
        };
        let len = match next {
            protocol::FRAGMENT => {
                meta.flags |= flags::FRAGMENT;
                if be16(header, 2) & 0xfff8 != 0 {
                    meta.flags |= flags::LATER_FRAGMENT;
                }
                8
            }
            // RFC 4302 section 2.2: counted in 4-byte words, less 2.
            protocol::AH => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
        at += len;
        if at > packet_bytes.len() {
            return Err(DropReason::Ipv6HeaderInvalid);
        }
    }
    meta.protocol = next;
    meta.l4 = meta.l3 + at as u16;
    read_ports(meta, &packet_bytes[at..]);
    Ok(())
}

fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AH
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
    )
}

fn read_ports(meta: &mut Meta, l4: &[u8]) {
    if !meta.has(flags::FRAGMENT)
        && let Some(ports) = l4.first_chunk::<4>()
    {
        note_ports(meta, meta.protocol, ports);
    }
}

#[inline(always)]
fn note_ports(meta: &mut Meta, protocol: u8, ports: &[u8; 4]) {
    if matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        meta.src_port = be16(ports, 0);
        meta.dst_port = be16(ports, 2);
    }
}
