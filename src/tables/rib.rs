//! The RIB: configured routes by VRF, as the control thread keeps them. Workers never see it.

use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// Number of an interned [`Target`].
pub type TargetId = u32;

/// What a route was configured to do. Equal targets are stored once, however many routes share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Lose in silence.
    Blackhole,
    /// Reject with an ICMP error.
    Unreachable,
    /// Through these gateways.
    Via(Vec<Hop>),
    /// As this VRF (slot) routes it.
    Vrf(u16),
}

/// A gateway as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hop {
    /// Its address.
    pub address: IpAddr,
    /// Slot of the VRF in which it is on-link: another one for routes that leak.
    pub vrf: u16,
    /// Slot of the interface that a link-local address is on; others are where the interfaces' addresses say.
    pub interface: Option<u16>,
}

/// Routes of one VRF.
#[derive(Clone, Debug, Default)]
pub struct VrfRoutes {
    /// IPv4.
    pub v4: PrefixMap<Ipv4Net, TargetId>,
    /// IPv6.
    pub v6: PrefixMap<Ipv6Net, TargetId>,
}

/// All configured routes.
#[derive(Clone, Debug, Default)]
pub struct Rib {
    vrfs: AHashMap<u16, VrfRoutes>,
    targets: Vec<Target>,
    ids: AHashMap<Target, TargetId>,
}

impl Rib {
    /// Puts a route in, replacing one with the same prefix. True if something changed.
    pub fn insert(&mut self, vrf: u16, prefix: IpNet, target: Target) -> bool {
        let id = match self.ids.get(&target) {
            Some(id) => *id,
            None => {
                let id = self.targets.len() as TargetId;
                self.targets.push(target.clone());
                self.ids.insert(target, id);
                id
            }
        };
        let routes = self.vrfs.entry(vrf).or_default();
        let old = match prefix.trunc() {
            IpNet::V4(net) => routes.v4.insert(net, id),
            IpNet::V6(net) => routes.v6.insert(net, id),
        };
        old != Some(id)
    }

    /// Takes a route out. False if there was none.
    pub fn remove(&mut self, vrf: u16, prefix: IpNet) -> bool {
        let Some(routes) = self.vrfs.get_mut(&vrf) else { return false };
        match prefix.trunc() {
            IpNet::V4(net) => routes.v4.remove(&net).is_some(),
            IpNet::V6(net) => routes.v6.remove(&net).is_some(),
        }
    }

    /// The target of exactly this prefix.
    pub fn get(&self, vrf: u16, prefix: IpNet) -> Option<TargetId> {
        let routes = self.vrfs.get(&vrf)?;
        match prefix.trunc() {
            IpNet::V4(net) => routes.v4.get(&net).copied(),
            IpNet::V6(net) => routes.v6.get(&net).copied(),
        }
    }

    /// Routes of a VRF, if it has any.
    pub fn routes(&self, vrf: u16) -> Option<&VrfRoutes> {
        self.vrfs.get(&vrf)
    }

    /// True if both say the same of every prefix.
    pub fn is_same(&self, other: &Rib) -> bool {
        // Targets repeat from route to route: each pair of numbers is compared once.
        let mut known: AHashMap<(TargetId, TargetId), bool> = AHashMap::new();
        let mut same = |a: TargetId, b: TargetId| {
            *known.entry((a, b)).or_insert_with(|| self.target(a) == other.target(b))
        };
        let none = VrfRoutes::default();
        let vrfs: AHashSet<u16> = self.vrfs.keys().chain(other.vrfs.keys()).copied().collect();
        vrfs.into_iter().all(|vrf| {
            let (a, b) = (self.vrfs.get(&vrf).unwrap_or(&none), other.vrfs.get(&vrf).unwrap_or(&none));
            a.v4.len() == b.v4.len()
                && a.v6.len() == b.v6.len()
                && a.v4.iter().zip(&b.v4).all(|((net, a), (other, b))| net == other && same(*a, *b))
                && a.v6.iter().zip(&b.v6).all(|((net, a), (other, b))| net == other && same(*a, *b))
        })
    }

    /// What `id` stands for.
    pub fn target(&self, id: TargetId) -> &Target {
        &self.targets[id as usize]
    }

    /// Number of routes in all VRFs.
    pub fn len(&self) -> usize {
        self.vrfs.values().map(|routes| routes.v4.len() + routes.v6.len()).sum()
    }

    /// True if there is no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_the_same_whatever_order_they_came_in() {
        let via = |last: u8, vrf| {
            Target::Via(vec![Hop { address: [192, 0, 2, last].into(), vrf, interface: None }])
        };
        let rib = |routes: &[(u16, &str, Target)]| {
            let mut rib = Rib::default();
            for (vrf, prefix, target) in routes {
                rib.insert(*vrf, prefix.parse().expect("a prefix"), target.clone());
            }
            rib
        };
        let (a, b, c) =
            ((0, "10.0.0.0/8", via(1, 0)), (0, "10.1.0.0/16", via(2, 0)), (1, "2001:db8::/32", via(1, 0)));
        let all = rib(&[a.clone(), b.clone(), c.clone()]);
        let mut other = rib(&[c.clone(), (2, "10.9.0.0/16", via(9, 0)), b.clone(), a.clone()]);
        assert!(!all.is_same(&other) && !other.is_same(&all));
        other.remove(2, "10.9.0.0/16".parse().expect("a prefix"));
        assert!(all.is_same(&other) && other.is_same(&all));
        for changed in
            [(0, "10.0.0.0/8", via(1, 1)), (0, "10.0.0.0/9", via(1, 0)), (1, "10.0.0.0/8", via(1, 0))]
        {
            assert!(!all.is_same(&rib(&[changed, b.clone(), c.clone()])));
        }
    }
}
