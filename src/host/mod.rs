//! The host side: what the gateway says for itself. ARP, ND, router advertisements, ICMP, and
//! resets in the name of hosts that may not be reached.
//!
//! Pure functions: a packet's bytes, the tables and the neighbour table in, bytes out. Packet types come
//! from `smoltcp::wire`; the pipeline's slow path turns answers into frames. [`probe`] remembers: it asks by itself.

pub mod arp;
pub mod dhcp;
pub mod icmp;
pub mod nd;
pub mod probe;
pub mod snooping;
pub mod tcp;

/// Where the gateway's own answers go on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    /// Egress interface slot.
    pub interface: u16,
    /// Destination MAC in the lower 48 bits.
    pub mac: u64,
    /// EtherType.
    pub ethertype: u16,
}

/// Largest packet the gateway makes itself: an ICMPv6 error fills 1,280 bytes (RFC 4443 section 2.4c).
pub const MAX_OWN_BYTES: usize = 1280;

/// A packet of the gateway's own, from the L3 header on.
pub type OwnBytes = arrayvec::ArrayVec<u8, MAX_OWN_BYTES>;
