//! Bridges: layer-2 segments, as the packet path needs them.
//!
//! A member is an interface of the tables, with a link header and counters as any other, but without addresses; its
//! `bridge` says whose it is. The segment's layer-3 interface, if there is one, has the same `bridge`, and neither a port
//! nor an overlay: what leaves by it leaves by members.

use std::time::Duration;

use super::compile::{MAX_INTERFACES, MAX_VRFS};
use super::{Interface, NO_PORT};
use crate::macs::{Entry, Location};
use crate::roles::Roles;
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::router_group::NO_GROUP;

/// No bridge: a number that is never given out.
pub const NO_BRIDGE: u16 = u16::MAX;

/// Most bridges a node can have had since its start.
pub const MAX_BRIDGES: usize = 4096;

/// Segments of bridges in the MAC table have numbers above those of all interfaces.
const FIRST_SEGMENT: u16 = MAX_INTERFACES as u16;

const _: () = assert!(MAX_INTERFACES + MAX_BRIDGES < u16::MAX as usize);

/// In the place of a VRF's slot, flows between members of bridges have numbers above those of all VRFs: none meets a flow
/// of a VRF or of another bridge.
const FIRST_SCOPE: u16 = 0x8000;

const _: () =
    assert!(MAX_VRFS <= FIRST_SCOPE as usize && FIRST_SCOPE as usize + MAX_BRIDGES < u16::MAX as usize);

/// True if what stands in the place of a VRF's slot is a bridge: the packet goes from member to member.
#[inline(always)]
pub fn is_scope(vrf: u16) -> bool {
    vrf >= FIRST_SCOPE
}

/// The number of the bridge that stands in the place of a VRF's slot.
pub fn number_of_scope(vrf: u16) -> Option<u16> {
    vrf.checked_sub(FIRST_SCOPE)
}

/// What stands in the place of a VRF's slot for the bridge with this number; `None`: there can be none.
pub fn scope_of_number(number: u16) -> Option<u16> {
    (usize::from(number) < MAX_BRIDGES).then(|| FIRST_SCOPE + number)
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its interface slot.
    pub interface: u16,
    /// Of a VNI: its number among those of the bridge, and that of its overlay.
    pub vni: Option<(u8, u16)>,
    /// Stations it may have.
    pub max_macs: u32,
    /// Frames a second from it to all others.
    pub storm_pps: u32,
    /// A multicast router is behind it, says the operator.
    pub multicast_router: bool,
}

/// How a bridge follows who listens to multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snooping {
    /// What nobody listens to goes to all, and not to routers only.
    pub flood_unknown: bool,
    /// Who leaves is the last.
    pub fast_leave: bool,
    /// The gateway asks.
    pub querier: bool,
    /// Seconds between two queries.
    pub interval_s: u16,
    /// Groups of a member.
    pub max_groups: u32,
}

impl Snooping {
    /// How long a report holds: RFC 3376 section 8.4, two queries and the time to answer one.
    pub fn membership_s(&self) -> u64 {
        2 * u64::from(self.interval_s) + 10
    }

    /// How long a querier is there that is not heard: RFC 3376 section 8.5.
    pub fn present_s(&self) -> u64 {
        2 * u64::from(self.interval_s) + 5
    }
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Name, as configured.
    pub name: String,
    /// What both nodes of a pair know it by: a hash of its name, and of no VRF's.
    pub mark: u64,
    /// Its segment in the MAC table.
    pub segment: u16,
    /// Slot of its layer-3 interface, or [`super::NO_INTERFACE`].
    pub interface: u16,
    /// Members, in configured order.
    pub members: Vec<Member>,
    /// After how many seconds a silent station is forgotten.
    pub ageing_s: u64,
    /// Frames a second from its own interface to all members.
    pub storm_pps: u32,
    /// ARP and ND are answered for stations that are known.
    pub suppress: bool,
    /// Time between two looks for loops.
    pub loop_probe: Option<Duration>,
    /// How long a member that closes a loop is shut.
    pub loop_hold: Duration,
    /// Its members have zones, all of them: between them there is a firewall.
    pub has_zones: bool,
    /// What is neither IP nor ARP passes between members in different zones.
    pub other_protocols: bool,
    /// Who listens to multicast, if that is followed.
    pub snooping: Option<Snooping>,
    /// The group of virtual routers whose Active passes frames on, alone of several nodes, or [`NO_GROUP`]: this node does.
    pub group: u16,
}

impl Bridge {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.segment - FIRST_SEGMENT
    }

    /// True if this node passes frames on between its members: another one that does so too would close a loop.
    #[inline]
    pub fn passes_on(&self, roles: &Roles) -> bool {
        self.group == NO_GROUP || roles.is_active(self.group)
    }

    /// What stands in the place of a VRF's slot in flows between its members.
    pub fn scope(&self) -> u16 {
        self.segment - FIRST_SEGMENT + FIRST_SCOPE
    }

    /// The member with this interface slot.
    #[inline]
    pub fn member(&self, interface: u16) -> Option<&Member> {
        self.members.iter().find(|member| member.interface == interface)
    }

    /// The member that leads to a location.
    #[inline]
    pub fn member_at(&self, location: Location) -> Option<&Member> {
        match location.as_local() {
            Some(interface) => self.member(interface),
            None => {
                let (_, vni) = location.as_remote()?;
                self.members.iter().find(|member| member.vni.is_some_and(|(number, _)| number == vni))
            }
        }
    }

    /// True if the number of one of its VNIs means another one here.
    pub fn renumbers(&self, before: &Bridge) -> bool {
        let of = |bridge: &Bridge, number: u8| {
            let is_it = |member: &&Member| member.vni.is_some_and(|(known, _)| known == number);
            bridge.members.iter().find(is_it).map(|member| member.interface)
        };
        let numbers = before.members.iter().filter_map(|member| member.vni);
        numbers.map(|(number, _)| number).any(|number| of(self, number) != of(before, number))
    }

    /// True if the operator placed the station, or it was heard from within the ageing time.
    pub fn still_knows(&self, entry: &Entry, now_s: u64) -> bool {
        entry.is_static || now_s < entry.seen_s + self.ageing_s
    }
}

/// All bridges, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridges {
    all: Vec<Option<Bridge>>,
    /// Any of them has members with zones.
    have_zones: bool,
}

impl Bridges {
    /// Bridges in the places that are their numbers.
    pub fn new(all: Vec<Option<Bridge>>) -> Bridges {
        let have_zones = all.iter().flatten().any(|bridge| bridge.has_zones);
        Bridges { all, have_zones }
    }

    /// True if members of any bridge have zones.
    #[inline]
    pub fn have_zones(&self) -> bool {
        self.have_zones
    }

    /// The bridge that stands in the place of a VRF's slot.
    pub fn of_scope(&self, vrf: u16) -> Option<&Bridge> {
        self.get(number_of_scope(vrf)?)
    }

    /// The bridge with this number.
    #[inline]
    pub fn get(&self, number: u16) -> Option<&Bridge> {
        self.all.get(usize::from(number))?.as_ref()
    }

    /// The bridge with this segment.
    pub fn of_segment(&self, segment: u16) -> Option<&Bridge> {
        self.get(segment.checked_sub(FIRST_SEGMENT)?)
    }

    /// How many numbers have been given out.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// All there are.
    pub fn iter(&self) -> impl Iterator<Item = &Bridge> {
        self.all.iter().flatten()
    }

    /// True if there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True if the segment is one of bridges.
    pub fn has_segment(segment: u16) -> bool {
        segment >= FIRST_SEGMENT
    }

    /// The segment of the bridge with this number.
    pub fn segment(number: u16) -> u16 {
        FIRST_SEGMENT + number
    }
}

impl Interface {
    /// True if frames that come in here go on to the other members of a bridge.
    #[inline]
    pub fn is_member(&self) -> bool {
        self.bridge != NO_BRIDGE && !self.is_segment()
    }

    /// True if it is the layer-3 interface of a bridge.
    #[inline]
    pub fn is_segment(&self) -> bool {
        self.bridge != NO_BRIDGE && self.port == NO_PORT && self.overlay == NO_OVERLAY
    }
}
