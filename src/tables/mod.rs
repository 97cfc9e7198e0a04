//! Immutable lookup tables, compiled from the config; no lock, no clock.
//!
//! [`Tables`] is the one snapshot all workers forward by. It is published whole behind an `ArcSwap`;
//! a worker looks at it once per burst. Parts that a change did not touch are shared between
//! snapshots; each part has an epoch of its own, so that a flow can tell what it was decided by.

pub mod balance;
pub mod bridge;
pub mod classify;
pub mod compile;
pub mod ecmp;
pub mod fib4;
pub mod fib6;
mod fib_intervals;
mod fib_tree;
#[cfg(test)]
mod fib_twin;
pub mod meaning;
pub mod news;
pub mod on_commit;
pub mod overlay;
pub mod pair_link;
pub mod policy;
pub mod relay;
pub mod rib;
pub mod router_group;
mod slots;
pub mod virtual_router;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ahash::AHashMap;

pub use slots::Slots;

use crate::packet::hash::Key;
use crate::packet::{DropReason, Tags};
use ecmp::Group;
use fib4::Fib4;
use fib6::Fib6;
use news::Bearing;

/// No interface: a slot number that is never given out.
pub const NO_INTERFACE: u16 = u16::MAX;

/// A FIB's answer: index into the VRF's actions; 0 = no route.
pub type Leaf = u16;

/// Everything workers forward by. Never changes once published; a copy shares all its parts.
#[derive(Clone)]
pub struct Tables {
    /// Number of the publication; each change makes the next.
    pub generation: u64,
    /// When each part last changed, as a generation.
    pub epochs: Epochs,
    /// By port slot.
    pub ports: Arc<[PortTable]>,
    /// By interface slot.
    pub interfaces: Arc<[Interface]>,
    /// By VRF slot.
    pub vrfs: Arc<[Arc<Vrf>]>,
    /// ECMP groups of all VRFs.
    pub groups: Arc<[Arc<Group>]>,
    /// Behaviour that is not per interface.
    pub settings: Arc<Settings>,
    /// Zones, rules and NAT.
    pub policy: Arc<policy::Policy>,
    /// When decisions for each ordered pair of zones last changed.
    pub pairs: Arc<policy::PairEpochs>,
    /// How much each backend of a service takes at present.
    pub backends: balance::Backends,
    /// VXLAN segments.
    pub overlays: Arc<overlay::Overlays>,
    /// Bridged segments.
    pub bridges: Arc<bridge::Bridges>,
    /// DHCP relays.
    pub relays: Arc<relay::Relays>,
    /// Addresses of virtual routers.
    pub virtual_addresses: Arc<virtual_router::VirtualAddresses>,
    /// The way to the other node of a pair, for packets that it is to decide.
    pub pair_link: Option<Arc<pair_link::PairLink>>,
    /// What commits have said of sessions that they would end.
    pub on_commit: Arc<on_commit::OnCommit>,
    /// What changes were about that are not everybody's.
    pub news: Arc<news::News>,
}

/// Generation in which each part of the tables last changed for everybody; small changes are noted in [`news`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    /// Ports and interfaces.
    pub interfaces: u64,
    /// Routes of any VRF (each VRF has an epoch of its own as well).
    pub routes: u64,
    /// Settings.
    pub settings: u64,
    /// Zones, rules and NAT: the newest of the epochs of [`Tables::pairs`].
    pub policy: u64,
    /// Backends: the newest failure that flows have to follow.
    pub backends: u64,
}

impl Epochs {
    /// The newest of those that a decision looks at.
    #[inline]
    pub fn newest(&self) -> u64 {
        let Epochs { interfaces, routes, policy, backends, settings: _ } = *self;
        interfaces.max(routes).max(policy).max(backends)
    }
}

/// Node-wide behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the gateway.
    pub name: String,
    /// Key of the written-down hash.
    pub key: Key,
    /// ICMP errors a second for the node; 0 = none at all.
    pub icmp_rate: u32,
    /// Errors in a row before the rate limits.
    pub icmp_burst: u32,
    /// ICMP errors a second towards one /24 or /64.
    pub icmp_source_rate: u32,
    /// Errors in a row towards one source prefix.
    pub icmp_source_burst: u32,
    /// Learned neighbours per interface.
    pub neighbours_per_interface: u32,
    /// Packets that wait for one unresolved neighbour, per worker.
    pub neighbour_queue: usize,
    /// How long a confirmed neighbour needs no new confirmation.
    pub reachable: std::time::Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            name: String::from("softgate"),
            key: Key::default(),
            icmp_rate: 1000,
            icmp_burst: 100,
            icmp_source_rate: 100,
            icmp_source_burst: 50,
            neighbours_per_interface: 1024,
            neighbour_queue: 3,
            // RFC 4861 section 10: REACHABLE_TIME.
            reachable: std::time::Duration::from_secs(30),
        }
    }
}

/// How a port of several devices uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lag {
    /// One device.
    #[default]
    None,
    /// The first device with carrier sends.
    ActiveBackup,
    /// All devices with carrier send, spread by flow.
    Static,
}

/// Which interface a frame belongs to, for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTable {
    /// Name, as configured.
    pub name: String,
    /// How its devices share the work.
    pub lag: Lag,
    /// Devices with carrier, by member number: which may send.
    pub members_up: u8,
    /// Interface of untagged and priority-tagged frames, or [`NO_INTERFACE`].
    pub untagged: u16,
    /// Interface by the only tag's VLAN ID; absent when the port has no such interface.
    pub by_vlan: Option<Box<[u16; 4096]>>,
    /// Interface by (outer, inner) VLAN ID.
    pub by_pair: AHashMap<(u16, u16), u16>,
}

impl PortTable {
    /// A port without interfaces: what a deleted slot holds.
    pub fn empty(name: &str) -> PortTable {
        PortTable {
            name: name.to_owned(),
            lag: Lag::None,
            members_up: 1,
            untagged: NO_INTERFACE,
            by_vlan: None,
            by_pair: AHashMap::new(),
        }
    }

    /// The interface for `tags`.
    #[inline]
    pub fn find(&self, tags: Tags) -> u16 {
        match tags {
            Tags { outer: 0, inner: 0 } => self.untagged,
            Tags { outer: vlan, inner: 0 } | Tags { outer: 0, inner: vlan } => {
                self.by_vlan.as_ref().map_or(NO_INTERFACE, |by| by[usize::from(vlan & 0xfff)])
            }
            Tags { outer, inner } => self.by_pair.get(&(outer, inner)).copied().unwrap_or(NO_INTERFACE),
        }
    }
}

/// Check of the source address against the routes (RFC 3704).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SourceCheck {
    /// None.
    #[default]
    Off,
    /// Some route leads to the source.
    Loose,
    /// The route to the source leads through the ingress interface.
    Strict,
}

/// Longest L2 header: two MAC addresses, two tags, the EtherType.
pub const MAX_LINK_HEADER: usize = 22;

/// No port: what leaves by such an interface is put into a tunnel first, or given to a member of a bridge.
pub const NO_PORT: u16 = u16::MAX;

/// A logical L3 end: an untagged port, a VLAN, a QinQ pair or the segment of a VNI or a bridge; or a bridge's member. What
/// the packet path reads is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Interface {
    /// Our MAC address in the lower 48 bits.
    pub mac: u64,
    /// Template of the L2 header: destination MAC and EtherType are filled in per packet.
    pub header: [u8; MAX_LINK_HEADER],
    /// Bytes of the template in use: 14, 18 or 22.
    pub header_len: u8,
    /// False if its port has no carrier, or the slot is a tombstone.
    pub up: bool,
    /// Largest IP packet.
    pub mtu_bytes: u16,
    /// VRF slot.
    pub vrf: u16,
    /// Port slot; [`NO_PORT`] for the segment of a VNI or a bridge.
    pub port: u16,
    /// Number of its overlay, or [`overlay::NO_OVERLAY`].
    pub overlay: u16,
    /// Number of the bridge it is a member of, or that it is the interface of; or [`bridge::NO_BRIDGE`].
    pub bridge: u16,
    /// Anti-spoofing.
    pub source_check: SourceCheck,
    /// Lowers the MSS of TCP connections to what `mtu_bytes` carries.
    pub clamp_mss: bool,
    /// Zone slot, or [`policy::NO_ZONE`].
    pub zone: u8,
    /// What only the slow path needs.
    pub info: Arc<InterfaceInfo>,
}

/// The part of an interface that only the slow path reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceInfo {
    /// Name, as configured.
    pub name: String,
    /// VLAN tags.
    pub tags: Tags,
    /// Addresses with prefix lengths, in configured order.
    pub v4: Vec<(Ipv4Addr, u8)>,
    /// Global addresses with prefix lengths, in configured order.
    pub v6: Vec<(Ipv6Addr, u8)>,
    /// Link-local address; present if the interface speaks IPv6.
    pub link_local: Option<Ipv6Addr>,
    /// Router advertisements, if it sends them.
    pub advertisements: Option<Advertisements>,
    /// Its virtual routers, in configured order.
    pub routers: Vec<virtual_router::VirtualRouter>,
}

impl Interface {
    /// True if the config has it no more: what is left is its slot.
    pub fn is_tombstone(&self) -> bool {
        self.mtu_bytes == 0
    }

    /// Our own address next to `target`: the one whose prefix holds it, else the first.
    pub fn source_v4(&self, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let near = self.info.v4.iter().find(|(addr, len)| same_prefix_v4(*addr, target, *len));
        near.or(self.info.v4.first()).map(|(addr, _)| *addr)
    }

    /// As [`Interface::source_v4`]; link-local for link-local targets.
    pub fn source_v6(&self, target: Ipv6Addr) -> Option<Ipv6Addr> {
        if target.is_unicast_link_local() || target.is_multicast() {
            return self.info.link_local;
        }
        let near = self.info.v6.iter().find(|(addr, len)| same_prefix_v6(*addr, target, *len));
        near.or(self.info.v6.first()).map(|(addr, _)| *addr).or(self.info.link_local)
    }

    /// True if `addr` is one of ours.
    pub fn owns_v6(&self, addr: Ipv6Addr) -> bool {
        self.info.link_local == Some(addr) || self.info.v6.iter().any(|(own, _)| *own == addr)
    }

    /// True if `addr` is one of ours.
    pub fn owns_v4(&self, addr: Ipv4Addr) -> bool {
        self.info.v4.iter().any(|(own, _)| *own == addr)
    }
}

/// True if both addresses share the first `len` bits.
pub fn same_prefix_v4(a: Ipv4Addr, b: Ipv4Addr, len: u8) -> bool {
    (u32::from(a) ^ u32::from(b)).checked_shr(32 - u32::from(len)).unwrap_or(0) == 0
}

/// True if both addresses share the first `len` bits.
pub fn same_prefix_v6(a: Ipv6Addr, b: Ipv6Addr, len: u8) -> bool {
    (u128::from(a) ^ u128::from(b)).checked_shr(128 - u32::from(len)).unwrap_or(0) == 0
}

/// Router advertisements of an interface (RFC 4861 section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisements {
    /// Time between unsolicited advertisements, in seconds.
    pub interval_s: u16,
    /// Router lifetime in seconds; 0 = not a default router.
    pub lifetime_s: u16,
}

/// One routing table.
pub struct Vrf {
    /// Name.
    pub name: String,
    /// What other nodes know it by, whatever its slot is there: [`mark_of`] its name.
    pub mark: u64,
    /// Generation in which it was made.
    pub epoch: u64,
    /// IPv4 routes.
    pub fib4: Arc<Fib4>,
    /// IPv6 routes.
    pub fib6: Arc<Fib6>,
    /// What the FIBs' leaves mean; entry 0 is "no route".
    pub actions: Box<[Action]>,
}

/// A number in place of a name, the same on every node.
pub fn mark_of(name: &str) -> u64 {
    let words: Vec<u64> = name.bytes().map(u64::from).collect();
    crate::packet::siphash::of(Key::default(), &words)
}

impl Vrf {
    /// The interface on whose link an address is.
    pub fn connected(&self, addr: IpAddr) -> Option<u16> {
        let leaf = match addr {
            IpAddr::V4(addr) => self.fib4.find(addr.into()),
            IpAddr::V6(addr) => self.fib6.find(addr.into()),
        };
        match self.actions.get(usize::from(leaf))? {
            Action::Connected { interface } => Some(*interface),
            _ => None,
        }
    }
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// No route.
    NoRoute,
    /// The route loses the packet: blackhole, unreachable, martian, broadcast ...
    Drop(DropReason),
    /// One of our own addresses.
    Local,
    /// Directly connected: the destination is its own next hop.
    Connected {
        /// Interface slot.
        interface: u16,
    },
    /// Through one gateway.
    Via(NextHop),
    /// Through one of several: index into the tables' groups.
    Ecmp(u32),
    /// Look up again in another VRF.
    Vrf(u16),
}

/// A gateway on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Egress interface slot.
    pub interface: u16,
    /// Slot in the neighbour table.
    pub neighbour: u32,
}

impl Tables {
    /// What flows were decided by: changes with every part that a decision looks at.
    #[inline]
    pub fn flow_epoch(&self) -> u32 {
        self.epochs.newest().max(self.news.newest()) as u32
    }

    /// True if a session that was decided in `epoch` would be decided the same today. Asked where `epoch` is not
    /// [`Tables::flow_epoch`]; the flow then gets that.
    pub fn still_holds(&self, epoch: u32, of: &Bearing) -> bool {
        // Lower halves of generations: what is behind is less than half a turn behind.
        epoch.wrapping_sub(self.newest_for(of) as u32) as i32 >= 0
            && of.backend.is_none_or(|backend| self.backends.still_holds(backend, epoch))
    }

    /// The generation that was the newest to matter to a session, its backend aside.
    fn newest_for(&self, of: &Bearing) -> u64 {
        let Epochs { interfaces, routes, policy: _, backends: _, settings: _ } = self.epochs;
        interfaces.max(routes).max(self.ruled_in(of))
    }

    /// The generation that was the newest to say something new of what a session is allowed.
    pub fn ruled_in(&self, of: &Bearing) -> u64 {
        let about = of.addresses.map_or(self.news.newest(), |addresses| self.news.about(&addresses));
        self.pairs.of(of.from_zone, of.to_zone).max(about)
    }

    /// The same with its backend: what a session is decided again for.
    pub fn decided_for(&self, of: &Bearing) -> u64 {
        let since = of.backend.map_or(0, |backend| self.backends.state(backend).since);
        self.newest_for(of).max(since)
    }

    /// Slot of the interface that has the pair link; [`NO_INTERFACE`]: there is none.
    #[inline(always)]
    pub fn pair_interface(&self) -> u16 {
        self.pair_link.as_deref().map_or(NO_INTERFACE, |link| link.interface)
    }

    /// The interface in `slot`.
    #[inline]
    pub fn interface(&self, slot: u16) -> &Interface {
        &self.interfaces[usize::from(slot)]
    }
}
