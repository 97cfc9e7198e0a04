//! Deterministic source NAT (RFC 7422 section 2): the two functions over all pools, for people who ask.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::Policy;
use crate::neighbours::v4_key;

/// A host of a deterministic pool, and what is its own there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// Index in [`Policy::pools`].
    pub pool: u16,
    /// VRF slot of the host.
    pub inside_vrf: u16,
    /// The host.
    pub inside: Ipv4Addr,
    /// VRF slot of the outside.
    pub outside_vrf: u16,
    /// Its outside address.
    pub outside: Ipv4Addr,
    /// Its ports.
    pub ports: RangeInclusive<u16>,
}

/// Why an outside address and port are no host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// No deterministic pool has the address.
    NotDeterministic,
    /// The port is not among those that hosts share.
    NotShared,
    /// It is lent to whoever needs more, and in the log.
    Overflow,
    /// There are more such places than hosts.
    NoSuchHost,
}

impl Policy {
    /// Function 1: outside addresses and ports of a host, in each pool that it is a host of; `vrf`: only of this.
    pub fn outside_of(&self, vrf: Option<u16>, inside: Ipv4Addr) -> Vec<HostPorts> {
        let pools = self.pools.iter().zip(0..);
        let places = pools.filter_map(|(pool, index)| {
            let inside_vrf = pool.shared()?.vrf;
            let (outside, ports) = pool.outside_of(inside_vrf, v4_key(inside.to_bits()))?;
            let (outside, outside_vrf) = (outside.into(), pool.vrf());
            Some(HostPorts { pool: index, inside_vrf, inside, outside_vrf, outside, ports })
        });
        places.filter(|place| vrf.is_none_or(|vrf| place.inside_vrf == vrf)).collect()
    }

    /// Function 2: the hosts that have a port of an outside address, one in each VRF that has such a pool; `vrf`: only
    /// of this.
    pub fn inside_of(
        &self,
        vrf: Option<u16>,
        outside: Ipv4Addr,
        port: u16,
    ) -> Result<Vec<HostPorts>, Nobody> {
        let mut found = Vec::new();
        let mut why = Nobody::NotDeterministic;
        for (pool, index) in self.pools.iter().zip(0..) {
            let is_meant = vrf.is_none_or(|vrf| pool.vrf() == vrf) && pool.contains(outside.into());
            let Some(shared) = pool.shared().filter(|_| is_meant) else { continue };
            match pool.inside_of(outside.into(), port) {
                Some((inside_vrf, inside)) => {
                    let inside = Ipv4Addr::from(inside as u32); // of IPv4: rules with pools are
                    let places = self.outside_of(Some(inside_vrf), inside);
                    found.extend(places.into_iter().filter(|place| place.pool == index));
                }
                None => {
                    why = match () {
                        () if pool.is_lent(port) => Nobody::Overflow,
                        () if shared.has(port) => Nobody::NoSuchHost,
                        () => Nobody::NotShared,
                    };
                }
            }
        }
        if found.is_empty() { Err(why) } else { Ok(found) }
    }
}
