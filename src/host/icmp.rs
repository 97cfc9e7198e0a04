//! ICMP (RFC 792, RFC 1812 section 4.3, RFC 4443): echo to our own addresses, errors about lost packets.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::host::OwnBytes;
use crate::packet::view::{array, be16, be32, be128, ethertype, protocol};
use crate::packet::{DropReason, Family, IcmpError, Meta, checksum, flags};
use crate::tables::Interface;

/// TTL and hop limit of what we send: the value RFC 1700 recommends.
const TTL: u8 = 64;
/// RFC 1812 section 4.3.2.5: errors have precedence "internetwork control".
const TOS_INTERNETWORK_CONTROL: u8 = 0xc0;
/// RFC 1812 section 4.3.2.3: as much of the original as fits 576 bytes.
const MAX_V4_ERROR: usize = 576;
/// RFC 4443 section 2.4c: as much as fits the minimum MTU.
const MAX_V6_ERROR: usize = 1280;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const ICMP_BYTES: usize = 8;

const V4_ECHO_REPLY: u8 = 0;
const V4_ECHO: u8 = 8;
const V6_ECHO: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const V6_REDIRECT: u8 = 137;

/// What becomes of an ICMP packet for one of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Read and forgotten: errors about our own packets, source quench (RFC 6633), timestamps.
    Consumed,
    /// An echo: the packet itself, turned round in place, is the answer, from this many bytes behind its old
    /// beginning on.
    Echo {
        /// Bytes of extension headers that do not come back.
        skip: usize,
    },
}

/// Reads an ICMP message to us and turns an echo round in place (RFC 1122 section 3.2.2.6: all of its data
/// comes back). `l3` is the first segment; `message_sum` the unfolded sum over the whole message.
pub fn receive_v4(meta: &Meta, l3: &mut [u8], message_sum: u64) -> Result<Received, DropReason> {
    let l4 = usize::from(meta.l4 - meta.l3);
    if l3.len() < l4 + ICMP_BYTES || checksum::fold(message_sum) != 0xffff {
        return Err(DropReason::IcmpInvalid);
    }
    if l3[l4] != V4_ECHO {
        return Ok(Received::Consumed);
    }
    let (src, dst) = (*array::<4>(l3, 12), *array::<4>(l3, 16));
    l3[4..9].copy_from_slice(&[0, 0, 0x40, 0, TTL]);
    l3[12..16].copy_from_slice(&dst);
    l3[16..20].copy_from_slice(&src);
    l3[10..12].fill(0);
    let sum = checksum::of(&l3[..l4]);
    l3[10..12].copy_from_slice(&sum.to_be_bytes());
    turn_round(&mut l3[l4..], V4_ECHO, V4_ECHO_REPLY, 0);
    Ok(Received::Echo { skip: 0 })
}

/// As [`receive_v4`], for everything of ICMPv6 that is not neighbour discovery.
pub fn receive_v6(
    meta: &Meta,
    l3: &mut [u8],
    message_sum: u64,
    message_len: usize,
    interface: &Interface,
) -> Result<Received, DropReason> {
    let l4 = usize::from(meta.l4 - meta.l3);
    let (src, dst) = (*array::<16>(l3, 8), *array::<16>(l3, 24));
    let pseudo = checksum::pseudo_v6(&src, &dst, protocol::ICMPV6, message_len);
    if l3.len() < l4 + ICMP_BYTES || checksum::fold(pseudo + message_sum) != 0xffff {
        return Err(DropReason::IcmpInvalid);
    }
    if l3[l4] != V6_ECHO {
        return Ok(Received::Consumed);
    }
    // RFC 4443 section 4.2: an echo to a group is answered from a unicast address of the interface.
    let own = match Ipv6Addr::from(dst) {
        group if group.is_multicast() => {
            interface.source_v6(src.into()).ok_or(DropReason::NoHostPath)?.octets()
        }
        unicast => unicast.octets(),
    };
    l3[7] = TTL;
    l3[8..24].copy_from_slice(&own);
    l3[24..40].copy_from_slice(&src);
    // The pseudo header may have changed with the group address: the difference goes into the checksum.
    let before = checksum::fold(pseudo);
    let after = checksum::fold(checksum::pseudo_v6(&own, &src, protocol::ICMPV6, message_len));
    let difference = u32::from(after) + u32::from(!before);
    let difference = ((difference & 0xffff) + (difference >> 16)) as u16;
    turn_round(&mut l3[l4..], V6_ECHO, V6_ECHO_REPLY, difference);
    // Extension headers were said to us and are not said back: the IPv6 header moves up to the message.
    let options = l4 - IPV6_BYTES;
    l3[4..6].copy_from_slice(&(message_len as u16).to_be_bytes());
    l3[6] = protocol::ICMPV6;
    l3.copy_within(..IPV6_BYTES, options);
    Ok(Received::Echo { skip: options })
}

/// Changes the type, and the checksum by that and by what else was added to the sum (RFC 1624).
fn turn_round(message: &mut [u8], from: u8, to: u8, added: u16) {
    message[0] = to;
    let sum = checksum::update(be16(message, 2), u16::from(from) << 8, u16::from(to) << 8);
    let sum = checksum::update(sum, 0, added);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// May an error be sent about this packet? RFC 1812 section 4.3.2.7, RFC 4443 section 2.4e.
pub fn may_answer(meta: &Meta, l3: &[u8]) -> bool {
    let later_fragment = meta.has(flags::LATER_FRAGMENT);
    // What a bridge passes on has not been read as IP.
    let is_read = meta.family != Family::Other && meta.l4 >= meta.l3;
    if !is_read || meta.has(flags::OWN) || meta.has(flags::LINK_GROUP) {
        return false;
    }
    let icmp_type = l3.get(usize::from(meta.l4 - meta.l3)).copied();
    match meta.family {
        Family::Ipv4 => {
            let src = Ipv4Addr::from(be32(l3, 12));
            let dst = Ipv4Addr::from(be32(l3, 16));
            let single_host = |addr: Ipv4Addr| {
                let first = addr.octets()[0];
                first != 0 && first != 127 && first < 224
            };
            // Only queries may be answered with errors: echo, timestamp, information, address mask.
            let query = |kind| matches!(kind, 0 | 8 | 13..=18);
            let error = meta.protocol == protocol::ICMP && !icmp_type.is_some_and(query);
            // RFC 1812 section 4.3.2.7 spares later fragments; RFC 4443 does not.
            single_host(src) && single_host(dst) && !error && !later_fragment
        }
        Family::Ipv6 => {
            let src = Ipv6Addr::from(be128(l3, 8));
            let dst = Ipv6Addr::from(be128(l3, 24));
            let error = meta.protocol == protocol::ICMPV6
                && (later_fragment || !icmp_type.is_some_and(|kind| kind >= V6_ECHO && kind != V6_REDIRECT));
            !src.is_unspecified() && !src.is_multicast() && !dst.is_multicast() && !error
        }
        Family::Other => false,
    }
}

/// The error about a lost packet, from our address on its ingress interface. `l3` are its first bytes,
/// untouched; `mtu` is the egress MTU for "too big".
pub fn error(kind: IcmpError, meta: &Meta, l3: &[u8], ingress: &Interface, mtu: u16) -> Option<OwnBytes> {
    let original = &l3[..l3.len().min(usize::from(meta.ip_len))];
    match meta.family {
        Family::Ipv4 => error_v4(kind, original, ingress, mtu),
        Family::Ipv6 => error_v6(kind, original, ingress, mtu),
        Family::Other => None,
    }
}

fn error_v4(kind: IcmpError, original: &[u8], ingress: &Interface, mtu: u16) -> Option<OwnBytes> {
    let (icmp_type, code) = match kind {
        IcmpError::TimeExceeded => (11, 0),
        IcmpError::NetUnreachable => (3, 0),
        IcmpError::HostUnreachable | IcmpError::RouteUnreachable => (3, 1),
        // RFC 1812 section 5.2.7.1: communication administratively prohibited.
        IcmpError::Prohibited => (3, 13),
        IcmpError::TooBig => (3, 4),
        IcmpError::PortUnreachable => (3, 3),
    };
    let src = ingress.info.v4.first()?.0.octets();
    let quoted = &original[..original.len().min(MAX_V4_ERROR - IPV4_BYTES - ICMP_BYTES)];
    let mut bytes = OwnBytes::new();
    ipv4_header(
        &mut bytes,
        protocol::ICMP,
        TOS_INTERNETWORK_CONTROL,
        src,
        *array(original, 12),
        ICMP_BYTES + quoted.len(),
    );
    // RFC 1191 section 4: the next hop's MTU in the lower half of the unused word.
    let rest = if kind == IcmpError::TooBig { u32::from(mtu) } else { 0 };
    bytes.try_extend_from_slice(&[icmp_type, code, 0, 0]).ok()?;
    bytes.try_extend_from_slice(&rest.to_be_bytes()).ok()?;
    bytes.try_extend_from_slice(quoted).ok()?;
    let sum = checksum::of(&bytes[IPV4_BYTES..]);
    bytes[IPV4_BYTES + 2..IPV4_BYTES + 4].copy_from_slice(&sum.to_be_bytes());
    Some(bytes)
}

fn error_v6(kind: IcmpError, original: &[u8], ingress: &Interface, mtu: u16) -> Option<OwnBytes> {
    let (icmp_type, code) = match kind {
        IcmpError::TooBig => (2, 0),
        IcmpError::TimeExceeded => (3, 0),
        IcmpError::NetUnreachable | IcmpError::RouteUnreachable => (1, 0),
        IcmpError::HostUnreachable => (1, 3),
        IcmpError::Prohibited => (1, 1),
        IcmpError::PortUnreachable => (1, 4),
    };
    let src = ingress.info.v6.first().map(|(addr, _)| *addr).or(ingress.info.link_local)?.octets();
    let quoted = &original[..original.len().min(MAX_V6_ERROR - IPV6_BYTES - ICMP_BYTES)];
    let mut bytes = OwnBytes::new();
    ipv6_header(&mut bytes, protocol::ICMPV6, 0, src, *array(original, 8), ICMP_BYTES + quoted.len());
    let rest = if kind == IcmpError::TooBig { u32::from(mtu) } else { 0 };
    bytes.try_extend_from_slice(&[icmp_type, code, 0, 0]).ok()?;
    bytes.try_extend_from_slice(&rest.to_be_bytes()).ok()?;
    bytes.try_extend_from_slice(quoted).ok()?;
    v6_checksum(&mut bytes);
    Some(bytes)
}

/// RFC 6864 section 4.1: an atomic datagram (DF set) needs no ID of its own.
pub(super) fn ipv4_header(
    bytes: &mut OwnBytes,
    upper: u8,
    tos: u8,
    src: [u8; 4],
    dst: [u8; 4],
    payload: usize,
) {
    let len = ((IPV4_BYTES + payload) as u16).to_be_bytes();
    let mut header = [0x45, tos, len[0], len[1], 0, 0, 0x40, 0, TTL, upper, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&src);
    header[16..20].copy_from_slice(&dst);
    let sum = checksum::of(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(header);
}

pub(super) fn ipv6_header(
    bytes: &mut OwnBytes,
    upper: u8,
    class: u8,
    src: [u8; 16],
    dst: [u8; 16],
    payload: usize,
) {
    let len = (payload as u16).to_be_bytes();
    bytes.extend([0x60 | class >> 4, class << 4, 0, 0, len[0], len[1], upper, TTL]);
    bytes.extend(src);
    bytes.extend(dst);
}

fn v6_checksum(bytes: &mut OwnBytes) {
    bytes[IPV6_BYTES + 2..IPV6_BYTES + 4].fill(0);
    let (src, dst) = (*array::<16>(bytes, 8), *array::<16>(bytes, 24));
    let sum = checksum::pseudo_v6(&src, &dst, protocol::ICMPV6, bytes.len() - IPV6_BYTES);
    let sum = !checksum::fold(checksum::add(sum, &bytes[IPV6_BYTES..]));
    bytes[IPV6_BYTES + 2..IPV6_BYTES + 4].copy_from_slice(&sum.to_be_bytes());
}

/// EtherType of the gateway's own packet, by its version nibble.
pub fn ethertype_of(bytes: &[u8]) -> u16 {
    if bytes[0] >> 4 == 6 { ethertype::IPV6 } else { ethertype::IPV4 }
}
