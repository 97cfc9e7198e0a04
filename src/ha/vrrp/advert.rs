//! Advertisements (RFC 9568 section 5): the IP packet from its first byte on, read and written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Centiseconds, machine::Heard};
use crate::ha::one_hop::{self, Closed, IPV6_BYTES, Opened};
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

const VERSION: u8 = 3;
const ADVERTISEMENT: u8 = 1;
/// Fixed fields (RFC 9568 section 5.1).
const HEADER_BYTES: usize = 8;

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
        let Opened { src, dst, message } = one_hop::open(l3, protocol::VRRP)?;
        let may_send = match src {
            IpAddr::V4(src) => {
                !(src.is_multicast() || src.is_unspecified() || src.is_broadcast() || src.is_loopback())
            }
            // RFC 9568 section 5.1.2.1.
            IpAddr::V6(src) => src.is_unicast_link_local(),
        };
        if !may_send {
            return Err(BadAdvert::Sender);
        }
        read(message, src, |message| {
            let is_sound = |pseudo: u64| checksum::fold(checksum::add(pseudo, message)) == 0xffff;
            src.is_ipv4() && is_sound(0) || is_sound(pseudo(src, dst, message.len()))
        })
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
        let source = self.heard.source;
        let group = if source.is_ipv4() { GROUP_V4.into() } else { GROUP_V6.into() };
        let covers = source.is_ipv6() || pseudo_header;
        let pseudo = if covers { pseudo(source, group, message.len()) } else { 0 };
        let sum = !checksum::fold(checksum::add(pseudo, &message));
        message[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut packet = one_hop::header(source, group, protocol::VRRP, message.len());
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

fn pseudo(src: IpAddr, dst: IpAddr, len: usize) -> u64 {
    one_hop::pseudo(src, dst, protocol::VRRP, len)
}

impl From<Closed> for BadAdvert {
    fn from(closed: Closed) -> BadAdvert {
        match closed {
            Closed::Truncated => BadAdvert::Truncated,
            Closed::Ttl => BadAdvert::Ttl,
        }
    }
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
