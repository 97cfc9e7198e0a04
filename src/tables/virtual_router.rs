//! Virtual routers (RFC 9568): addresses that are ours while we are the Active, which a word of
//! [`Roles`](crate::roles::Roles) says.

use std::net::IpAddr;

use ahash::AHashMap;

use super::Interface;
use crate::neighbours::addr_key;
use crate::roles::Roles;

/// A virtual router of one family, on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualRouter {
    /// Its place in the table of roles.
    pub role: u16,
    /// That of the router which stands for its group, maybe itself.
    pub group: u16,
    /// Virtual router identifier.
    pub vrid: u8,
    /// Which family it is of.
    pub is_ipv6: bool,
    /// Its MAC address in the lower 48 bits.
    pub mac: u64,
    /// Its addresses; of IPv6 the first is a link-local one.
    pub addresses: Vec<IpAddr>,
    /// Accept_Mode: packets to its addresses are for the Active as those to its own are.
    pub accept: bool,
}

/// The upper four of the six bytes of all virtual MAC addresses: 00-00-5E-00 (RFC 9568 section 7.3).
const MAC_PREFIX: u64 = 0x0000_5e00;

/// True if it may be the MAC address of a virtual router.
#[inline(always)]
pub fn may_be_virtual(mac: u64) -> bool {
    mac >> 16 == MAC_PREFIX
}

impl Interface {
    /// The virtual router that has the address.
    pub fn router_of(&self, addr: IpAddr) -> Option<&VirtualRouter> {
        self.info.routers.iter().find(|router| router.addresses.contains(&addr))
    }

    /// The first virtual router of a family: its Active advertises the interface's prefixes.
    pub fn first_router(&self, is_ipv6: bool) -> Option<&VirtualRouter> {
        self.info.routers.iter().find(|router| router.is_ipv6 == is_ipv6)
    }

    /// The MAC address to answer with for one of our addresses, if we are to answer.
    pub fn mac_of_own(&self, addr: IpAddr, roles: &Roles) -> Option<u64> {
        match self.router_of(addr) {
            Some(router) => roles.is_active(router.role).then_some(router.mac),
            None => self.owns(addr).then_some(self.mac),
        }
    }

    /// True if it is the MAC address of a virtual router whose Active we are, or have just been.
    pub fn has_virtual_mac(&self, mac: u64, roles: &Roles) -> bool {
        self.info.routers.iter().any(|router| router.mac == mac && roles.forwards(router.role))
    }

    /// True if it is the MAC address of a virtual router whose Active we are.
    pub fn is_active_as(&self, mac: u64, roles: &Roles) -> bool {
        self.info.routers.iter().any(|router| router.mac == mac && roles.is_active(router.role))
    }

    fn owns(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => self.owns_v4(addr),
            IpAddr::V6(addr) => self.owns_v6(addr),
        }
    }
}

/// A virtual router's word about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Place in the table of roles.
    pub role: u16,
    /// That of its group.
    pub group: u16,
    /// The Active accepts packets to it.
    pub accept: bool,
}

/// The addresses of all virtual routers that routes lead to, by VRF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualAddresses(AHashMap<(u16, u128), Held>);

impl VirtualAddresses {
    /// Those of these interfaces.
    pub fn new(interfaces: &[Interface]) -> VirtualAddresses {
        let mut all = AHashMap::new();
        for interface in interfaces {
            for router in &interface.info.routers {
                let held = Held { role: router.role, group: router.group, accept: router.accept };
                all.extend(router.addresses.iter().map(|addr| ((interface.vrf, addr_key(*addr)), held)));
            }
        }
        VirtualAddresses(all)
    }

    /// Whose an address is; link-local ones are asked of their interface.
    #[inline]
    pub fn find(&self, vrf: u16, addr: u128) -> Option<Held> {
        if self.0.is_empty() { None } else { self.0.get(&(vrf, addr)).copied() }
    }
}
