//! The pair link: what of the tables the way to the other node of a pair needs. Packets that it is to decide go to it with
//! the name of the interface they came in by, so that it decides as if they had come in there.

use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};

use super::Interface;
use super::overlay::Overlays;
use super::router_group::NO_GROUP;
use crate::neighbours::addr_key;
use crate::packet::hash;

/// The link as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairLinkSpec {
    /// Name of the interface that has our end.
    pub interface: String,
    /// Our end.
    pub local: IpAddr,
    /// The other.
    pub peer: IpAddr,
    /// UDP port of both.
    pub udp_port: u16,
    /// Names of interfaces by which sessions leave that get ports of a shared pool.
    pub outside: Vec<String>,
}

/// The link in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairLink {
    /// Slot of the interface that has our end, and by which the other is reached.
    pub interface: u16,
    /// Its VRF slot.
    pub vrf: u16,
    /// Our end, in key form.
    pub local: u128,
    /// The other, likewise.
    pub peer: u128,
    /// UDP port of both.
    pub udp_port: u16,
    /// Virtual routers are of several groups: sessions may be of another than their packets.
    pub has_several: bool,
    /// By interface slot: the hash of its name.
    names: Box<[u32]>,
    /// The other way round.
    slots: AHashMap<u32, u16>,
    /// By interface slot: the group of its virtual routers, if that is one.
    groups: Box<[u16]>,
    /// Groups in an order that both nodes know.
    ranks: AHashMap<u16, u32>,
    /// Interface slots by which sessions leave that get ports of a shared pool: they are the other side's.
    outside: AHashSet<u16>,
    /// VRF slots and addresses of interfaces, in key form: what goes to them is for this very node.
    own: AHashSet<(u16, u128)>,
}

impl PairLink {
    /// Puts a link into the terms of the tables: `slot` is that of its interface.
    pub fn new(spec: &PairLinkSpec, slot: u16, interfaces: &[Interface], overlays: &Overlays) -> PairLink {
        let names: Box<[u32]> = interfaces.iter().map(|interface| hash::name(&interface.info.name)).collect();
        // What has left the config is no place that a packet could have come in by.
        let is_there = |interface: &Interface| !interface.info.v4.is_empty() || !interface.info.v6.is_empty();
        let known = (0..).zip(interfaces).filter(|(_, interface)| is_there(interface));
        let slots = known.map(|(slot, _)| (names[usize::from(slot)], slot)).collect();
        let group = |interface: &Interface| {
            let mut groups = interface.info.routers.iter().map(|router| router.group);
            // A segment that is reached by the tunnels of a group's Active alone is that group's.
            let tunnels = || overlays.get(interface.overlay)?.router.map(|router| router.group);
            let first = groups.next().or_else(tunnels).unwrap_or(NO_GROUP);
            if groups.all(|other| other == first) { first } else { NO_GROUP }
        };
        let own = interfaces.iter().flat_map(|interface| {
            let v4 = interface.info.v4.iter().map(|(own, _)| IpAddr::from(*own));
            let v6 = interface.info.v6.iter().map(|(own, _)| IpAddr::from(*own));
            v4.chain(v6).map(|own| (interface.vrf, addr_key(own)))
        });
        let ranked = interfaces.iter().flat_map(|interface| {
            let leaders = interface.info.routers.iter().filter(|router| router.role == router.group);
            // Slots are a node's own, names are not.
            let rank = |vrid: u8| hash::name(&format!("{}/{vrid}", interface.info.name));
            leaders.map(move |router| (router.group, rank(router.vrid)))
        });
        let ranks: AHashMap<u16, u32> = ranked.collect();
        PairLink {
            interface: slot,
            vrf: interfaces[usize::from(slot)].vrf,
            local: addr_key(spec.local),
            peer: addr_key(spec.peer),
            udp_port: spec.udp_port,
            has_several: ranks.len() > 1,
            names,
            slots,
            groups: interfaces.iter().map(group).collect(),
            ranks,
            outside: known_by_name(&spec.outside, interfaces),
            own: own.collect(),
        }
    }

    /// What stands for an interface on the wire.
    pub fn name_of(&self, interface: u16) -> Option<u32> {
        self.names.get(usize::from(interface)).copied()
    }

    /// The slot of the interface that a word on the wire stands for.
    pub fn interface_of(&self, name: u32) -> Option<u16> {
        self.slots.get(&name).copied()
    }

    /// The group of the virtual routers of an interface, or [`NO_GROUP`].
    pub fn group_of(&self, interface: u16) -> u16 {
        self.groups.get(usize::from(interface)).copied().unwrap_or(NO_GROUP)
    }

    /// The group of what goes between two interfaces, whichever way: of two the one that both nodes take, [`NO_GROUP`] if
    /// neither has one. Where sessions leave by a shared pool it is that of the other side: each node has its own hosts.
    pub fn between(&self, one: u16, other: u16) -> u16 {
        let rank = |interface: &u16| {
            let group = self.group_of(*interface);
            let is_outside = self.outside.contains(interface);
            self.ranks.get(&group).copied().map_or((2, 0), |rank| (u8::from(is_outside), rank))
        };
        self.group_of(std::cmp::min_by_key(one, other, rank))
    }

    /// True if an address is this node's own, and no other node's.
    pub fn is_own(&self, vrf: u16, addr: u128) -> bool {
        self.own.contains(&(vrf, addr))
    }
}

fn known_by_name(names: &[String], interfaces: &[Interface]) -> AHashSet<u16> {
    let known = (0..).zip(interfaces).filter(|(_, interface)| names.contains(&interface.info.name));
    known.map(|(slot, _)| slot).collect()
}
