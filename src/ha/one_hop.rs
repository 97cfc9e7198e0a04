//! IP packets that are for one hop: their TTL or hop limit says that no router was on the way. So VRRP and BFD speak, which
//! differ in the protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::checksum;
use crate::packet::view::{array, be16};

/// RFC 5881 section 5, RFC 9568 sections 5.1.1.3 and 5.1.2.3: what comes with less has crossed a router.
const TTL: u8 = 255;
/// Internetwork control: class selector 6 (RFC 4594 section 3.1), so that queues on the way let it pass first.
const DSCP_CS6: u8 = 48 << 2;
const IPV4_BYTES: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_BYTES: usize = 40;

/// A packet that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// Source.
    pub src: IpAddr,
    /// Destination, of the same family.
    pub dst: IpAddr,
    /// What is behind the header, as long as that says.
    pub message: &'a [u8],
}

/// Why it cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// No whole packet of the protocol.
    Truncated,
    /// TTL or hop limit is not 255.
    Ttl,
}

/// Who sent the IP packet that begins at `l3`, however wrong it is otherwise: for the books.
pub fn source_of(l3: &[u8]) -> Option<IpAddr> {
    match l3.first()? >> 4 {
        4 if l3.len() >= IPV4_BYTES => Some(Ipv4Addr::from(*array(l3, 12)).into()),
        6 if l3.len() >= IPV6_BYTES => Some(Ipv6Addr::from(*array(l3, 8)).into()),
        _ => None,
    }
}

/// Reads the header of the IPv4 or IPv6 packet that begins at `l3`; what is behind the packet does not count.
pub fn open(l3: &[u8], protocol: u8) -> Result<Opened<'_>, Closed> {
    let (is_whole, ttl, opened) = match l3.first().map(|first| first >> 4) {
        Some(4) => {
            let header = l3.first_chunk::<IPV4_BYTES>().ok_or(Closed::Truncated)?;
            let (len, total) = (usize::from(header[0] & 15) * 4, usize::from(be16(header, 2)));
            let message = l3.get(len..total).ok_or(Closed::Truncated)?;
            let (src, dst) = (Ipv4Addr::from(*array(header, 12)), Ipv4Addr::from(*array(header, 16)));
            // A fragment is not the whole message.
            let is_whole = len >= IPV4_BYTES && header[9] == protocol && be16(header, 6) & 0x3fff == 0;
            (is_whole, header[8], Opened { src: src.into(), dst: dst.into(), message })
        }
        Some(6) => {
            let header = l3.first_chunk::<IPV6_BYTES>().ok_or(Closed::Truncated)?;
            let end = IPV6_BYTES + usize::from(be16(header, 4));
            let message = l3.get(IPV6_BYTES..end).ok_or(Closed::Truncated)?;
            let (src, dst) = (Ipv6Addr::from(*array(header, 8)), Ipv6Addr::from(*array(header, 24)));
            (header[6] == protocol, header[7], Opened { src: src.into(), dst: dst.into(), message })
        }
        _ => return Err(Closed::Truncated),
    };
    match (is_whole, ttl) {
        (false, _) => Err(Closed::Truncated),
        (true, TTL) => Ok(opened),
        (true, _) => Err(Closed::Ttl),
    }
}

/// The header of a packet with `len` bytes behind it. Both addresses are of one family.
pub fn header(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = ((IPV4_BYTES + len) as u16).to_be_bytes();
            let mut header = Vec::with_capacity(IPV4_BYTES + len);
            // Don't fragment: without identification (RFC 6864 section 4.1).
            header.extend([0x45, DSCP_CS6, total[0], total[1], 0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            header.extend(src.octets());
            header.extend(dst.octets());
            let sum = checksum::of(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let bytes = (len as u16).to_be_bytes();
            let mut header = Vec::with_capacity(IPV6_BYTES + len);
            header.extend([0x60 | DSCP_CS6 >> 4, DSCP_CS6 << 4, 0, 0, bytes[0], bytes[1], protocol, TTL]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => unreachable!("both are of one family: the plan says so"),
    }
}

/// Sum of the pseudo header before `len` bytes. Both addresses are of one family.
pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u64 {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => checksum::pseudo_v4(src.octets(), dst.octets(), protocol, len),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            checksum::pseudo_v6(&src.octets(), &dst.octets(), protocol, len)
        }
        _ => unreachable!("both are of one packet"),
    }
}
