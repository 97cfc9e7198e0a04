//! The RIB: configured routes by VRF, as the control thread keeps them. Workers never see it.

use std::net::IpAddr;

use ahash::AHashMap;
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
