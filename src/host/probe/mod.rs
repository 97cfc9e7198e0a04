//! Health checks: probes of backends from the gateway's own addresses, and what follows from their results.
//!
//! Whoever wants to know gives a list of [`Target`]s and gets [`Event`]s. A target's verdict changes when as many
//! probes in a row say so as its check demands; until its first verdict it has none.
//!
//! The [`Engine`] knows time and packets as arguments and says through [`Outside`] what is to be done: golden tests,
//! a network in memory and the live gateway drive the same one. One file for each part:
//!
//! - `engine`: when whom is asked, and what follows from the results
//! - `connection`: TCP, by smoltcp; `http` on top of it, and `tls` between them
//! - `datagram`: UDP and ICMP
//! - [`exchange`]: what the engine's thread and the workers share

mod connection;
mod datagram;
mod engine;
pub mod exchange;
mod http;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::HealthCheck;
use crate::neighbours::addr_key;
use crate::packet::hash::{self, Key};
use crate::packet::view::protocol;
use crate::time::Nanos;

pub use engine::{Engine, Status};

/// Source ports of probes, and identifiers of their echo requests. Above what Linux gives to its own sockets and what
/// NAT takes of an address that the gateway itself has (32768 to 60999, `Nat::INTERFACE_PORTS`).
pub const PORTS: RangeInclusive<u16> = 61_000..=65_535;

/// Longest packet of a probe, in bytes: what every IPv6 link carries (RFC 8200 section 5).
pub const MAX_PROBE_BYTES: usize = 1280;

/// What is to be checked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What events call it; unique among the targets.
    pub id: u32,
    /// Slot of the VRF from which the address is reached.
    pub vrf: u16,
    /// The backend.
    pub addr: IpAddr,
    /// The backend's port, which a check without a port of its own asks.
    pub port: u16,
    /// How.
    pub check: Arc<HealthCheck>,
}

/// What the checks say of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It works.
    Up,
    /// It does not.
    Down,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As expected.
    Ok,
    /// The connection was refused, or the port is closed.
    Refused,
    /// The connection was reset when it was open.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// A router says so, or nothing came in time and the MAC address of the next hop is not known.
    Unreachable,
    /// The gateway has no route to it, or no address of its own on the way.
    NoRoute,
    /// Another status than expected.
    Status(u16),
    /// The body has not in it what was expected.
    Body,
    /// The answer begins otherwise than expected.
    Answer,
    /// The answer is none of the protocol.
    Protocol,
    /// The connection ended before the answer did.
    Closed,
    /// TLS failed, or the certificate is not right.
    Tls,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Ok => "ok",
            Reason::Refused => "refused",
            Reason::Reset => "reset",
            Reason::Timeout => "timeout",
            Reason::Unreachable => "unreachable",
            Reason::NoRoute => "no route",
            Reason::Status(status) => return write!(f, "status {status}"),
            Reason::Body => "body",
            Reason::Answer => "answer",
            Reason::Protocol => "not the protocol",
            Reason::Closed => "closed",
            Reason::Tls => "tls",
        })
    }
}

/// A target's verdict has changed, or it has its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The target.
    pub id: u32,
    /// What it is now.
    pub verdict: Verdict,
    /// How the probe ended that decided it.
    pub reason: Reason,
    /// How long that probe took.
    pub latency: Duration,
    /// When it ended, by the gateway's clock.
    pub at: Nanos,
}

/// One conversation of a probe, as its answers show it: the gateway's own side is their destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Slot of the VRF in which answers come in.
    pub vrf: u16,
    /// TCP, UDP, ICMP or ICMPv6.
    pub protocol: u8,
    /// The gateway's address.
    pub own: IpAddr,
    /// The gateway's port, or the identifier of its echo requests: one of [`PORTS`].
    pub own_port: u16,
    /// The peer's address.
    pub peer: IpAddr,
    /// The peer's port; 0 for ICMP.
    pub peer_port: u16,
}

impl Flow {
    /// Its fingerprint; never 0.
    pub(crate) fn hash(&self, key: Key) -> u64 {
        let tail = u64::from(self.vrf) << 40
            | u64::from(self.protocol) << 32
            | u64::from(self.peer_port) << 16
            | u64::from(self.own_port);
        let hash = match (self.peer, self.own) {
            (IpAddr::V4(peer), IpAddr::V4(own)) => {
                hash::words_v4(key, u64::from(u32::from(peer)) << 32 | u64::from(u32::from(own)), tail)
            }
            (peer, own) => hash::words_v6(key, addr_key(peer), addr_key(own), tail),
        };
        hash.max(1)
    }

    /// ICMP of the address' family.
    pub(crate) fn icmp_of(addr: IpAddr) -> u8 {
        if addr.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
    }
}

/// Where a probe leaves, and where its answers come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The gateway's address that asks.
    pub addr: IpAddr,
    /// Slot of the VRF of the interface that the answers come in by.
    pub vrf: u16,
}

/// What the engine can have done.
pub trait Outside {
    /// The way to `dst` from a VRF; `None`: there is none. With `from` it asks from this address.
    fn source(&mut self, vrf: u16, dst: IpAddr, from: Option<IpAddr>) -> Option<Source>;

    /// False: the next hop to `dst` does not answer. Asked of who has not answered itself.
    fn is_reachable(&mut self, vrf: u16, dst: IpAddr) -> bool;

    /// False: packets have to wait a while.
    fn has_room(&mut self) -> bool;

    /// Sends an IP packet, to be routed in a VRF. Without room it is lost.
    fn send(&mut self, vrf: u16, packet: &[u8]);

    /// From now on its packets are for the engine. False: there is no room for it; another port may do.
    fn expect(&mut self, flow: &Flow) -> bool;

    /// From now on they are not.
    fn forget(&mut self, flow: &Flow);

    /// What is in a file of certificates.
    fn read(&mut self, file: &Path) -> io::Result<Vec<u8>>;

    /// A verdict has changed.
    fn report(&mut self, event: Event);
}
