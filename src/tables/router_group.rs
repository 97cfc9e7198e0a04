//! Groups of virtual routers: routers that move together, and the public addresses that their Active answers for.
//!
//! A group is known by the place of one of its routers in the table of [`Roles`](crate::roles::Roles): what this node does
//! for that one it does for all of them.

use std::net::IpAddr;

use ahash::AHashMap;
use ipnet::IpNet;

use super::Interface;
use super::policy::{Policy, length_of, network};
use crate::neighbours::{addr_key, addr_of, is_v4_key};
use crate::roles::Roles;

/// No group: a place that no router has.
pub const NO_GROUP: u16 = u16::MAX;

/// Whose public addresses are: those of NAT and services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publics {
    /// Lengths of neutral prefixes, ascending.
    lengths: Vec<u8>,
    groups: AHashMap<(u16, u8, u128), u16>,
}

impl Publics {
    /// Addresses of a VRF, by slot, that the Active of `group` answers for. Who comes first has them.
    pub fn insert(&mut self, vrf: u16, net: IpNet, group: u16) {
        let len = length_of(net);
        if let Err(at) = self.lengths.binary_search(&len) {
            self.lengths.insert(at, len);
        }
        self.groups.entry((vrf, len, addr_key(net.network()))).or_insert(group);
    }

    /// True without any: no virtual router, or nothing public.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The group of an address in key form; of several prefixes the longest says it.
    #[inline]
    pub fn find(&self, vrf: u16, addr: u128) -> Option<u16> {
        let has = |len: &u8| self.groups.get(&(vrf, *len, network(addr, *len)));
        self.lengths.iter().rev().find_map(has).copied()
    }

    /// The addresses with their VRF slots and groups, at most `most`, in ascending order. Of IPv6 those that stand alone.
    pub fn addresses(&self, most: usize) -> Vec<(u16, IpAddr, u16)> {
        let mut all: Vec<(u16, u128, u16)> = Vec::new();
        for ((vrf, len, first), group) in &self.groups {
            // A prefix of more has the neighbours that it has.
            let count = match 128 - len {
                bits @ 0..=16 if bits == 0 || is_v4_key(*first) => 1u128 << bits,
                _ => continue,
            };
            all.extend((0..count).map(|at| (*vrf, first + at, *group)));
        }
        all.sort_unstable();
        // The longest prefix says it.
        all.retain(|(vrf, addr, group)| self.find(*vrf, *addr) == Some(*group));
        all.dedup();
        all.truncate(most);
        all.into_iter().map(|(vrf, addr, group)| (vrf, addr_of(addr), group)).collect()
    }
}

impl Interface {
    /// The MAC address to answer with for a public address in a network of the interface, if we are to answer: the Active
    /// of its group does, with the virtual MAC address of its router on this interface, else with the interface's own.
    pub fn mac_of_public(&self, addr: IpAddr, policy: &Policy, roles: &Roles) -> Option<u64> {
        let Some(group) = policy.publics().find(self.vrf, addr_key(addr)) else { return Some(self.mac) };
        roles.is_active(group).then(|| self.mac_of_group(group, addr.is_ipv6()))
    }

    /// The MAC address that the Active of a group has on the interface for what its routers do not have themselves.
    pub fn mac_of_group(&self, group: u16, is_ipv6: bool) -> u64 {
        let mut routers = self.info.routers.iter();
        let router = routers.find(|router| (router.group, router.is_ipv6) == (group, is_ipv6));
        router.map_or(self.mac, |router| router.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_says_whose_an_address_is() {
        let mut publics = Publics::default();
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        publics.insert(0, net("203.0.113.0/24"), 1);
        publics.insert(0, net("203.0.113.7/32"), 2);
        publics.insert(0, net("203.0.113.7/32"), 3);
        publics.insert(1, net("2001:db8::/64"), 4);
        let find = |vrf: u16, addr: &str| publics.find(vrf, addr_key(addr.parse().expect("an address")));
        assert_eq!([find(0, "203.0.113.6"), find(0, "203.0.113.7")], [Some(1), Some(2)]);
        let all: Vec<u16> = publics.addresses(4).into_iter().map(|(.., group)| group).collect();
        assert_eq!(all, [1; 4]);
        assert_eq!(publics.addresses(usize::MAX).len(), 256);
        assert_eq!(
            [find(1, "203.0.113.7"), find(1, "2001:db8::5"), find(0, "2001:db8::5")],
            [None, Some(4), None]
        );
    }
}
