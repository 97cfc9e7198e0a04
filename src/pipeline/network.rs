//! Network: IPv4 and IPv6 headers, checked as RFC 1812 section 5.2.2 and RFC 8200 say, and the ports behind them.

use crate::packet::view::{array, be16, be32, protocol};
use crate::packet::{Burst, DropReason, Family, Meta, Packet, Verdict, checksum, flags};
use crate::pipeline::Context;

/// Most IPv6 extension headers walked: DESIGN.md section 3.
const MAX_EXTENSION_HEADERS: usize = 8;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// Loose and strict source route options (RFC 791 section 3.1), refused per RFC 7126.
const SOURCE_ROUTE_OPTIONS: [u8; 2] = [131, 137];

pub(super) fn run(burst: &mut Burst, _cx: &Context<'_>) {
    for packet in burst.iter_mut() {
        if packet.meta.verdict != Verdict::Continue {
            continue;
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
}

/// Bytes of the packet from the L3 header on, over the whole chain.
#[inline]
fn available(packet: &Packet) -> usize {
    let l3 = usize::from(packet.meta.l3);
    if packet.frame.is_chained() { packet.frame.total_len() - l3 } else { packet.frame.len() - l3 }
}

#[inline]
fn ipv4(packet: &mut Packet) -> Result<(), DropReason> {
    let available = available(packet);
    let meta = &mut packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let Some(head) = l3.first_chunk::<IPV4_BYTES>() else {
        return Err(DropReason::Truncated);
    };
    let header_len = usize::from(head[0] & 15) * 4;
    let ip_len = be16(head, 2);
    if head[0] >> 4 != 4 || header_len < IPV4_BYTES || usize::from(ip_len) < header_len {
        return Err(DropReason::Ipv4HeaderInvalid);
    }
    if usize::from(ip_len) > available || l3.len() < header_len {
        return Err(DropReason::Truncated);
    }
    if header_len == IPV4_BYTES {
        // Two 8-byte loads and one of 4: carries collect in 128 bits.
        let sum = u128::from(u64::from_le_bytes(*array(head, 0)))
            + u128::from(u64::from_le_bytes(*array(head, 8)))
            + u128::from(u32::from_le_bytes(*array(head, 16)));
        // The one's complement sum does not depend on byte order when compared with all ones.
        if fold_u128(sum) != 0xffff {
            return Err(DropReason::Ipv4Checksum);
        }
    } else {
        if !checksum::is_valid(&l3[..header_len]) {
            return Err(DropReason::Ipv4Checksum);
        }
        check_options(&l3[IPV4_BYTES..header_len])?;
    }
    meta.ip_len = ip_len;
    meta.protocol = head[9];
    meta.dst_v4 = be32(head, 16);
    meta.l4 = meta.l3 + header_len as u16;
    let fragment = be16(head, 6);
    if fragment != 0 {
        if fragment & 0x4000 != 0 {
            meta.flags |= flags::DONT_FRAGMENT;
        }
        if fragment & 0x3fff != 0 {
            meta.flags |= flags::FRAGMENT;
            if fragment & 0x1fff != 0 {
                meta.flags |= flags::LATER_FRAGMENT;
            }
        }
    }
    read_ports(meta, &l3[header_len..]);
    Ok(())
}

#[inline]
fn fold_u128(sum: u128) -> u16 {
    let sum = (sum as u64 as u128) + (sum >> 64);
    let sum = u64::from(sum as u32) + (sum as u64 >> 32) + (sum >> 64) as u64;
    checksum::fold(sum)
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

#[inline]
fn read_ports(meta: &mut Meta, l4: &[u8]) {
    let has_ports = matches!(meta.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    if has_ports
        && !meta.has(flags::FRAGMENT)
        && let Some(ports) = l4.first_chunk::<4>()
    {
        meta.src_port = be16(ports, 0);
        meta.dst_port = be16(ports, 2);
    }
}
