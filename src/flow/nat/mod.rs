//! Source NAT bindings (RFC 4787, 5382, 5508, 6888, 7422, 7857): which inside endpoint has which external port.
//!
//! ```text
//! pool            immutable, from the config: external addresses, ports, block size
//! blocks          shared between workers: one atomic word per 64 external ports says who owns them
//! bindings        of one worker: inside hosts, their blocks, the mappings in them
//! deterministic   RFC 7422: the same block for the same host, by arithmetic
//! page, index, events   parts of `bindings`
//! ```
//!
//! A *host* (RFC 6888: subscriber) is a VRF and an IPv4 address, or an IPv6 /64. It takes external ports in
//! *blocks*, one log record each. A block serves all protocols, each with its own set of ports in it: what
//! arrives at an address and a port has one owner, whatever the protocol. A *mapping* (RFC 4787) is one
//! external port of one protocol lent to one inside endpoint; sessions count references to it.
//!
//! Time and random words are arguments. Nothing here allocates after construction.

pub mod bindings;
pub mod blocks;
pub mod deterministic;
pub mod events;
mod index;
mod page;
pub mod pool;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

use std::net::IpAddr;

use crate::neighbours::addr_key;
use crate::packet::view::protocol;

pub use bindings::{Bindings, Capacity, Limits, Mapping, MappingView, NotRestored, Outside, Refused, Use};
pub use blocks::{BlockClaims, Owner};
pub use deterministic::{BadSubscribers, InsideRange, Share, Shared, Subscribers};
pub use events::{Event, EventKind};
pub use pool::{AddressRange, BadPool, Blocks, Giver, Half, Pairing, Pool, PoolSpec, Ports, SharedBlocks};

/// What has a port space of its own at an external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// TCP (RFC 5382).
    Tcp = 0,
    /// UDP and UDP-Lite (RFC 4787).
    Udp = 1,
    /// ICMP queries; the port is the query identifier (RFC 5508 section 3).
    Icmp = 2,
    /// Any other transport with ports: SCTP, DCCP.
    Other = 3,
}

impl Protocol {
    /// All, in the order of their numbers.
    pub const ALL: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Other];

    /// Of an upper-layer protocol number.
    pub fn of(upper: u8) -> Protocol {
        match upper {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            protocol::ICMP | protocol::ICMPV6 => Protocol::Icmp,
            _ => Protocol::Other,
        }
    }

    /// True if ports under 1024 are a class of their own. Query identifiers have none.
    fn has_low_ports(self) -> bool {
        self != Protocol::Icmp
    }
}

/// An inside endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inside {
    /// VRF of the inside.
    pub vrf: u16,
    /// IPv6 address, or IPv4 address mapped ([`crate::neighbours::v4_key`]).
    pub addr: u128,
    /// Source port, or query identifier.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl Inside {
    /// The source of a packet of this upper-layer protocol.
    pub fn of(vrf: u16, src: IpAddr, upper: u8, port: u16) -> Inside {
        Inside { vrf, addr: addr_key(src), port, protocol: Protocol::of(upper) }
    }

    /// The address all of whose endpoints share blocks, quota and external address.
    fn host(&self) -> u128 {
        host_of(self.addr)
    }
}

/// The host an address belongs to: itself for IPv4, its /64 for IPv6 (its owner can use any address in it).
pub fn host_of(addr: u128) -> u128 {
    if addr >> 32 == 0xffff { addr } else { addr >> 64 << 64 }
}
