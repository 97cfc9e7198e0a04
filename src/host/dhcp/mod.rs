//! DHCP relay: what becomes of a message between clients and servers (RFC 1542 section 4, RFC 3046, RFC 8415
//! section 19). Pure functions over bytes that anybody may have sent: every length is checked, nothing is allocated,
//! and each loop goes forward through the message.

#[cfg(test)]
mod tests;
pub mod v4;
pub mod v6;

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::host::OwnBytes;
use crate::host::icmp::{ipv4_header, ipv6_header};
use crate::mem::Frame;
use crate::packet::view::{array, be16, protocol};
use crate::packet::{DropReason, Family, Meta, checksum, flags};

/// Port of DHCP servers and relays (RFC 2131 section 4.1).
pub const SERVER_PORT: u16 = 67;
/// Port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;
/// Port of DHCPv6 servers and relays (RFC 8415 section 7.2).
pub const SERVER_PORT_V6: u16 = 547;
/// Port of DHCPv6 clients.
pub const CLIENT_PORT_V6: u16 = 546;

/// The longest IP packet a relay makes: what an Ethernet frame holds, and one buffer with room in front.
pub const MAX_PACKET_BYTES: usize = 1536;

/// The longest message: behind IPv4 and UDP.
const MAX_MESSAGE_BYTES: usize = MAX_PACKET_BYTES - IPV4_BYTES - UDP_BYTES;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;

/// A message to be sent.
pub type Message = ArrayVec<u8, MAX_MESSAGE_BYTES>;

/// An IP packet to be sent.
pub type PacketBytes = ArrayVec<u8, MAX_PACKET_BYTES>;

/// Puts bytes behind what there is of a message.
fn put(message: &mut Message, bytes: &[u8]) -> Result<(), DropReason> {
    message.try_extend_from_slice(bytes).map_err(|_| DropReason::DhcpTooLong)
}

/// What a UDP packet for a relay carries: whole, in one buffer, with the right checksum (of IPv4, if it has one).
pub fn payload<'f>(frame: &'f Frame, meta: &Meta) -> Result<&'f [u8], DropReason> {
    const BAD: DropReason = DropReason::DhcpInvalid;
    if frame.is_chained() {
        return Err(DropReason::DhcpTooLong);
    }
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let end = l3 + usize::from(meta.ip_len);
    let udp = frame.bytes().get(l4..end).filter(|udp| udp.len() >= UDP_BYTES).ok_or(BAD)?;
    let len = usize::from(be16(udp, 4));
    let udp = udp.get(..len).filter(|_| len >= UDP_BYTES && !meta.has(flags::FRAGMENT)).ok_or(BAD)?;
    let ip = &frame.bytes()[l3..];
    let pseudo = match meta.family {
        Family::Ipv4 if be16(udp, 6) == 0 => return Ok(&udp[UDP_BYTES..]),
        Family::Ipv4 => checksum::pseudo_v4(*array(ip, 12), *array(ip, 16), protocol::UDP, len),
        // RFC 8200 section 8.1: there is no UDP without a checksum.
        Family::Ipv6 if be16(udp, 6) == 0 => return Err(BAD),
        _ => checksum::pseudo_v6(array(ip, 8), array(ip, 24), protocol::UDP, len),
    };
    if checksum::fold(checksum::add(pseudo, udp)) != 0xffff {
        return Err(BAD);
    }
    Ok(&udp[UDP_BYTES..])
}

/// A UDP packet of the gateway's own; `None`: the addresses are of two families, or it would be too long.
pub fn datagram(from: (IpAddr, u16), to: (IpAddr, u16), message: &[u8]) -> Option<PacketBytes> {
    let len = UDP_BYTES + message.len();
    let mut header = OwnBytes::new();
    if len + IPV6_BYTES > usize::from(u16::MAX) {
        return None;
    }
    let pseudo = match (from.0, to.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            ipv4_header(&mut header, protocol::UDP, 0, src, dst, len);
            checksum::pseudo_v4(src, dst, protocol::UDP, len)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            ipv6_header(&mut header, protocol::UDP, 0, src, dst, len);
            checksum::pseudo_v6(&src, &dst, protocol::UDP, len)
        }
        _ => return None,
    };
    let mut udp = [0; UDP_BYTES];
    for (at, word) in [from.1, to.1, len as u16].into_iter().enumerate() {
        udp[2 * at..2 * at + 2].copy_from_slice(&word.to_be_bytes());
    }
    let sum = !checksum::fold(checksum::add(checksum::add(pseudo, &udp), message));
    // RFC 768: zero is no checksum.
    let sum = if sum == 0 { 0xffff } else { sum };
    udp[6..].copy_from_slice(&sum.to_be_bytes());
    let mut bytes = PacketBytes::new();
    for part in [&header[..], &udp, message] {
        bytes.try_extend_from_slice(part).ok()?;
    }
    Some(bytes)
}
