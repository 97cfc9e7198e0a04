//! A packet in a burst: its frame, and what the stages have found out about it.

use arrayvec::ArrayVec;

use super::DropReason;
use crate::mem::{BURST, Frame};

/// What network protocol the frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Family {
    /// Not parsed, or not IP.
    #[default]
    Other,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Why a packet goes to the other node of a pair: in the order of its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    /// It is for a group of virtual routers whose Active the other node is.
    Group = 0,
    /// A session would begin that the other node is to decide.
    First = 1,
    /// TCP in its midst of which this node knows nothing.
    Unknown = 2,
}

impl Why {
    /// Number of reasons.
    pub const COUNT: usize = 3;
    /// As commands print them.
    pub const NAMES: [&'static str; Why::COUNT] = ["group", "first", "unknown"];
}

/// Where a packet stands on its way through the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verdict {
    /// The next stage looks at it.
    #[default]
    Continue,
    /// Rewritten: leaves through `Meta::egress`.
    Forward,
    /// Lost, for this reason.
    Drop(DropReason),
    /// For the gateway itself: ARP, ND, ICMP to us.
    Punt,
    /// Waits for its next hop's address.
    Resolve,
    /// Has to be cut into fragments for the egress.
    Fragment,
    /// A copy goes to each member of a bridge: the one it came in by excepted, or with an egress, which is the segment's
    /// interface, all.
    Flood,
    /// Taken out of the burst: a fragment that waits for the first of its datagram.
    Held,
    /// Its flow has to be decided.
    Decide,
    /// Another worker has its flow, or is to have it.
    Elsewhere(u8),
    /// Another worker gathers the fragments of its datagram.
    Gather(u8),
    /// The gateway has answered it in another's name, and nothing goes on.
    Answered,
    /// Has a session whose other side is of the other family.
    Cross,
    /// Goes to a backend through a tunnel.
    Encapsulate,
    /// The other node of the pair is to decide, for this reason.
    ToPeer(Why),
    /// Its session needs a mapping of another worker: the next of [`crate::flow::steering::Loans::requests`].
    Borrow,
}

/// How often the packets of a burst have been through the first stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Just received, or made.
    First,
    /// They were parked or held by this worker.
    Again,
    /// Fragments, given to this worker to gather their datagrams.
    Gathered,
    /// Given to this worker to be settled.
    Handed,
}

/// Where a packet came from: with the frame and the time all that is kept when it is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// Received on this port slot.
    Port(u16),
    /// Made by the gateway itself, to be routed in this VRF slot. Its frame begins with the 14 bytes
    /// of an Ethernet header of which only the EtherType counts.
    Own {
        /// VRF slot.
        vrf: u16,
    },
}

/// The VLAN tags of a frame or an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Tags {
    /// Outer VLAN ID, 0 = none.
    pub outer: u16,
    /// Inner VLAN ID, 0 = none.
    pub inner: u16,
}

/// A flow: the number of its session and the direction, 0 = none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u32);

impl Handle {
    /// No flow.
    pub const NONE: Handle = Handle(0);
    /// Sessions are numbered from 1 to this.
    pub const MAX_SESSION: u32 = (1 << 24) - 1;

    /// The flow of `session` in the first packet's direction (0) or the other (1).
    #[inline(always)]
    pub fn new(session: u32, direction: u32) -> Handle {
        Handle(session << 1 | direction)
    }

    /// The session's number.
    #[inline(always)]
    pub fn session(self) -> u32 {
        self.0 >> 1
    }

    /// 0: as the first packet; 1: replies.
    #[inline(always)]
    pub fn direction(self) -> usize {
        (self.0 & 1) as usize
    }

    /// The session's other flow.
    #[inline(always)]
    pub fn other(self) -> Handle {
        Handle(self.0 ^ 1)
    }

    /// True unless [`Handle::NONE`].
    #[inline(always)]
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// Bits of [`Meta::flags`].
pub mod flags {
    /// Group bit of the destination MAC: Ethernet broadcast or multicast.
    pub const LINK_GROUP: u16 = 1;
    /// Any fragment, also the first.
    pub const FRAGMENT: u16 = 2;
    /// A fragment that is not the first: carries no ports.
    pub const LATER_FRAGMENT: u16 = 4;
    /// IPv4 DF bit.
    pub const DONT_FRAGMENT: u16 = 8;
    /// Made by the gateway: neither TTL nor source are checked.
    pub const OWN: u16 = 16;
    /// The ingress interface wants its sources checked against the routes.
    pub const CHECK_SOURCE: u16 = 32;
    /// The ingress interface has a zone: the packet belongs to a session.
    pub const STATEFUL: u16 = 64;
    /// An ICMP error that travels along a session.
    pub const ICMP_ERROR: u16 = 128;
    /// IPv4, whole, in one buffer, with nothing in its header that keeps it from being forwarded.
    pub const PLAIN: u16 = 256;
    /// It came over the pair link, and does not go there again.
    pub const BY_PEER: u16 = 1024;
    /// A SYN to a NAT address that nobody has asked for: its sender may be told, after a while.
    pub const UNSOLICITED: u16 = 512;
}

/// What is known of a packet. With the frame it is one cache line. Laid out by hand, so that a fresh one is
/// written in two wide moves.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Meta {
    /// The next hop's MAC address in the lower 48 bits.
    pub dst_mac: u64,
    /// Slot of the next hop in the neighbour table. Until it is routed, of ARP and IPv6 out of a tunnel: the remote it
    /// came from ([`crate::vteps::Remote`]), or 0.
    pub neighbour: u32,
    /// The flow it belongs to.
    pub flow: Handle,
    /// IPv4 destination, host order; behind translation, once the packet has a flow.
    pub dst_v4: u32,
    /// Offset of the L3 header from the frame's start.
    pub l3: u16,
    /// Offset of the L4 header.
    pub l4: u16,
    /// Length of the IP packet in bytes, header included.
    pub ip_len: u16,
    /// Ingress interface slot.
    pub interface: u16,
    /// VRF slot the packet is routed in.
    pub vrf: u16,
    /// Source port, 0 where there is none.
    pub src_port: u16,
    /// Destination port, 0 where there is none.
    pub dst_port: u16,
    /// Egress interface slot.
    pub egress: u16,
    /// Where it stands.
    pub verdict: Verdict,
    /// IPv4, IPv6 or neither.
    pub family: Family,
    /// Upper-layer protocol, behind extension headers.
    pub protocol: u8,
    /// Bits of [`flags`].
    pub flags: u16,
    /// The IPv4 identification a fragment leaves with: 0 = its own, else [`Meta::NEW_IDENTIFICATION`] and this one. Of a
    /// packet that is too long [`Meta::TOLD_MTU`] and what its sender is told.
    pub identification: u32,
}

impl Meta {
    /// Bit of [`Meta::identification`].
    pub const NEW_IDENTIFICATION: u32 = 1 << 16;
    /// Bit of [`Meta::identification`].
    pub const TOLD_MTU: u32 = 1 << 17;

    /// Nothing known. A constant, so that it is copied in a few wide moves and not put together field by
    /// field on the stack.
    pub const FRESH: Meta = Meta {
        dst_mac: 0,
        neighbour: 0,
        flow: Handle::NONE,
        dst_v4: 0,
        l3: 0,
        l4: 0,
        ip_len: 0,
        interface: 0,
        vrf: 0,
        src_port: 0,
        dst_port: 0,
        egress: 0,
        verdict: Verdict::Continue,
        family: Family::Other,
        protocol: 0,
        flags: 0,
        identification: 0,
    };

    /// True if the bit is set.
    #[inline]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A frame with its metadata.
#[derive(Debug)]
#[repr(C)]
pub struct Packet {
    /// The bytes.
    pub frame: Frame,
    /// What the stages know.
    pub meta: Meta,
}

/// Up to 64 packets that came from one place.
pub type Burst = ArrayVec<Packet, BURST>;

/// The places in a burst that a mask names, in ascending order.
#[inline(always)]
pub fn positions(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(first)
    })
}

const _: () = assert!(std::mem::size_of::<Packet>() <= 64, "a packet's frame and metadata share one line");
