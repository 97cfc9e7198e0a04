//! Advertisements (RFC 9568 section 5): the IP packet from its first byte on, read and written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Centiseconds, machine::Heard};
use crate::packet::checksum;
use crate::packet::view::{array, be16, protocol};

/// 224.0.0.18 (RFC 9568 section 5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// ff02::12 (RFC 9568 section 5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// The MAC address of [`GROUP_V4`] (RFC 1112 section 6.4).
pub const GROUP_MAC_V4: [u8; 6] = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x12];
/// The MAC address of [`GROUP_V6`] (RFC 2464 section 7).
pub const GROUP_MAC_V6: [u8; 6] = [0x33, 0x33, 0x00, 0x00, 0x00, 0x12];

/// RFC 9568 sections 5.1.1.3 and 5.1.2.3: what comes with less has crossed a router.
const TTL: u8 = 255;
/// Internetwork control: class selector 6 (RFC 4594 section 3.1), so that queues on the way let it pass first.
const DSCP_CS6: u8 = 48 << 2;
const VERSION: u8 = 3;
const ADVERTISEMENT: u8 = 1;
/// Fixed fields (RFC 9568 section 5.1).
const HEADER_BYTES: usize = 8;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// A valid advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Which virtual router.
    pub vrid: u8,
    /// Priority, interval and sender.
    pub heard: Heard,
    /// The addresses, as the sender knows them.
    pub addresses: Vec<IpAddr>,
}

/// What is wrong with an advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BadAdvert {
    /// No whole IP packet, header, or list of addresses.
    Truncated,
    /// TTL or hop limit is not 255.
    Ttl,
    /// Another version of VRRP: 2 has no IPv6 and intervals of whole seconds (RFC 3768).
    Version,
    /// No advertisement.
    Type,
    /// The checksum is wrong.
    Checksum,
    /// An interval of 0.
    Interval,
    /// A sender that is no unicast address, with IPv6 a link-local one.
    Sender,
    /// Virtual router that is not configured on the interface.
    UnknownRouter,
    /// It comes from our own address: a loop in the network, or another router that has our address.
    OwnAddress,
    /// It is taken, but its interval is not ours.
    OtherInterval,
    /// It is taken, but its addresses are not ours.
    OtherAddresses,
}

impl BadAdvert {
    /// All of them.
    pub const ALL: [BadAdvert; 11] = [
        BadAdvert::Truncated,
        BadAdvert::Ttl,
        BadAdvert::Version,
        BadAdvert::Type,
        BadAdvert::Checksum,
        BadAdvert::Interval,
        BadAdvert::Sender,
        BadAdvert::UnknownRouter,
        BadAdvert::OwnAddress,
        BadAdvert::OtherInterval,
        BadAdvert::OtherAddresses,
    ];

    /// Name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            BadAdvert::Truncated => "truncated",
            BadAdvert::Ttl => "ttl",
            BadAdvert::Version => "version",
            BadAdvert::Type => "type",
            BadAdvert::Checksum => "checksum",
            BadAdvert::Interval => "interval",
            BadAdvert::Sender => "sender",
            BadAdvert::UnknownRouter => "unknown-router",
            BadAdvert::OwnAddress => "own-address",
            BadAdvert::OtherInterval => "other-interval",
            BadAdvert::OtherAddresses => "other-addresses",
        }
    }
}

impl Advert {
    /// Reads the IPv4 or IPv6 packet that begins at `l3`; what is behind it does not count.
    ///
    /// Over IPv4 the checksum may be with a pseudo header or without: RFC 9568 section 5.2.8 wants none, and routers
    /// that read RFC 5798 otherwise send one.
    pub fn parse(l3: &[u8]) -> Result<Advert, BadAdvert> {
        match l3.first().map(|first| first >> 4) {
            Some(4) => parse_v4(l3),
            Some(6) => parse_v6(l3),
            _ => Err(BadAdvert::Truncated),
        }
    }

    /// The IP packet. `pseudo_header`: over IPv4 the checksum covers one.
    pub fn emit(&self, pseudo_header: bool) -> Vec<u8> {
        let size = if self.heard.source.is_ipv4() { 4 } else { 16 };
        let mut message = Vec::with_capacity(HEADER_BYTES + size * self.addresses.len());
        let interval = self.heard.interval.get().to_be_bytes();
        message.extend_from_slice(&[
            VERSION << 4 | ADVERTISEMENT,
            self.vrid,
            self.heard.priority,
            self.addresses.len() as u8,
        ]);
        message.extend_from_slice(&[interval[0], interval[1], 0, 0]);
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => message.extend_from_slice(&address.octets()),
                IpAddr::V6(address) => message.extend_from_slice(&address.octets()),
            }
        }
        let pseudo = match self.heard.source {
            IpAddr::V4(_) if !pseudo_header => 0,
            IpAddr::V4(source) => pseudo_v4(source.octets(), GROUP_V4.octets(), message.len()),
            IpAddr::V6(source) => pseudo_v6(&source.octets(), &GROUP_V6.octets(), message.len()),
        };
        let sum = !checksum::fold(checksum::add(pseudo, &message));
        message[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut packet = match self.heard.source {
            IpAddr::V4(source) => header_v4(source, message.len()),
            IpAddr::V6(source) => header_v6(source, message.len()),
        };
        packet.extend_from_slice(&message);
        packet
    }
}

/// The virtual router that a packet is about, however wrong it is otherwise: for the books.
pub fn vrid_of(l3: &[u8]) -> Option<u8> {
    let header = match l3.first()? >> 4 {
        4 => usize::from(l3[0] & 15) * 4,
        6 => IPV6_BYTES,
        _ => return None,
    };
    l3.get(header + 1).copied()
}

fn pseudo_v4(src: [u8; 4], dst: [u8; 4], len: usize) -> u64 {
    checksum::pseudo_v4(src, dst, protocol::VRRP, len)
}

fn pseudo_v6(src: &[u8; 16], dst: &[u8; 16], len: usize) -> u64 {
    checksum::pseudo_v6(src, dst, protocol::VRRP, len)
}

fn parse_v4(l3: &[u8]) -> Result<Advert, BadAdvert> {
    let header = l3.first_chunk::<IPV4_BYTES>().ok_or(BadAdvert::Truncated)?;
    let (header_len, total) = (usize::from(header[0] & 15) * 4, usize::from(be16(header, 2)));
    // A fragment is not the whole message.
    if header_len < IPV4_BYTES || header[9] != protocol::VRRP || be16(header, 6) & 0x3fff != 0 {
        return Err(BadAdvert::Truncated);
    }
    let message = l3.get(header_len..total).ok_or(BadAdvert::Truncated)?;
    if header[8] != TTL {
        return Err(BadAdvert::Ttl);
    }
    let (src, dst) = (*array(header, 12), *array(header, 16));
    let source = Ipv4Addr::from(src);
    if source.is_multicast() || source.is_unspecified() || source.is_broadcast() || source.is_loopback() {
        return Err(BadAdvert::Sender);
    }
    read(message, source.into(), |message| {
        let plain = checksum::add(0, message);
        checksum::fold(plain) == 0xffff
            || checksum::fold(plain + pseudo_v4(src, dst, message.len())) == 0xffff
    })
}

fn parse_v6(l3: &[u8]) -> Result<Advert, BadAdvert> {
    let header = l3.first_chunk::<IPV6_BYTES>().ok_or(BadAdvert::Truncated)?;
    if header[6] != protocol::VRRP {
        return Err(BadAdvert::Truncated);
    }
    let message =
        l3.get(IPV6_BYTES..IPV6_BYTES + usize::from(be16(header, 4))).ok_or(BadAdvert::Truncated)?;
    if header[7] != TTL {
        return Err(BadAdvert::Ttl);
    }
    let (src, dst) = (array(header, 8), array(header, 24));
    // RFC 9568 section 5.1.2.1.
    let source = Ipv6Addr::from(*src);
    if !source.is_unicast_link_local() {
        return Err(BadAdvert::Sender);
    }
    read(message, source.into(), |message| {
        checksum::fold(checksum::add(pseudo_v6(src, dst, message.len()), message)) == 0xffff
    })
}

/// RFC 9568 section 7.1, in its order.
fn read(message: &[u8], source: IpAddr, is_sound: impl Fn(&[u8]) -> bool) -> Result<Advert, BadAdvert> {
    let header = message.first_chunk::<HEADER_BYTES>().ok_or(BadAdvert::Truncated)?;
    if header[0] >> 4 != VERSION {
        return Err(BadAdvert::Version);
    }
    if header[0] & 15 != ADVERTISEMENT {
        return Err(BadAdvert::Type);
    }
    let size = if source.is_ipv4() { 4 } else { 16 };
    let list = message.get(HEADER_BYTES..HEADER_BYTES + size * usize::from(header[3]));
    let list = list.ok_or(BadAdvert::Truncated)?;
    if !is_sound(message) {
        return Err(BadAdvert::Checksum);
    }
    let interval = Centiseconds::new(u64::from(be16(header, 4) & 0xfff)).map_err(|_| BadAdvert::Interval)?;
    let addresses = list.chunks_exact(size).map(|address| match size {
        4 => IpAddr::from(*array::<4>(address, 0)),
        _ => IpAddr::from(*array::<16>(address, 0)),
    });
    Ok(Advert {
        vrid: header[1],
        heard: Heard { priority: header[2], interval, source },
        addresses: addresses.collect(),
    })
}

fn header_v4(source: Ipv4Addr, len: usize) -> Vec<u8> {
    let total = ((IPV4_BYTES + len) as u16).to_be_bytes();
    // Don't fragment: without identification (RFC 6864 section 4.1).
    let mut header = vec![0x45, DSCP_CS6, total[0], total[1], 0, 0, 0x40, 0, TTL, protocol::VRRP, 0, 0];
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&GROUP_V4.octets());
    let sum = checksum::of(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn header_v6(source: Ipv6Addr, len: usize) -> Vec<u8> {
    let len = (len as u16).to_be_bytes();
    let mut header = vec![0x60 | DSCP_CS6 >> 4, DSCP_CS6 << 4, 0, 0, len[0], len[1], protocol::VRRP, TTL];
    header.extend_from_slice(&source.octets());
    header.extend_from_slice(&GROUP_V6.octets());
    header
}
