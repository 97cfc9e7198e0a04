//! Deterministic NAT (RFC 7422): a host's ports are a function of its address, and the other way round.
//!
//! Address assignment is sequential (section 2, A = 0): with `compression` hosts to an external address, the
//! first `compression` hosts share the first address, in order of their ports. Ports come in whole units of
//! 64, so that every unit has one owner.

use super::blocks::{UNIT_PORTS, Unit};

/// Inside addresses of a deterministic pool, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribers {
    /// VRF of the inside: addresses of two VRFs cannot be told apart by arithmetic.
    pub vrf: u16,
    /// First inside address (I): IPv6, or IPv4 mapped.
    pub first: u128,
    /// How many hosts: addresses for IPv4, /64s for IPv6.
    pub count: u32,
    /// The dynamic address pool factor (D): an external address is divided by C + D, and D parts of it are
    /// overflow for whoever needs more. 0: nobody gets more than its own ports.
    pub dynamic_factor: u16,
}

/// Why deterministic parameters do not work out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubscribers {
    /// No host.
    #[error("a deterministic pool needs at least one inside address")]
    None,
    /// Beyond the end of the address space.
    #[error("{0} inside addresses do not fit behind the first")]
    TooFar(u32),
    /// Hosts would get less than a unit.
    #[error("{parts} hosts and dynamic parts to an address leave each {ports} ports; at least 64 are needed")]
    TooFewPorts {
        /// C + D.
        parts: u32,
        /// Ports of an address divided by that.
        ports: u32,
    },
}

/// Where a host's ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the external address in the pool.
    pub address: u32,
    /// First unit.
    pub first: Unit,
    /// How many.
    pub units: u16,
}

impl Place {
    pub fn contains(&self, unit: Unit) -> bool {
        (self.first.0..self.first.0 + self.units).contains(&unit.0)
    }
}

/// The compiled function and its inverse.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deterministic {
    vrf: u16,
    /// Number of the first host: an IPv4 address (mapped), or the upper half of an IPv6 address.
    first_host: u128,
    is_v6: bool,
    count: u32,
    /// Hosts to an external address (C).
    compression: u32,
    first_unit: u16,
    units_each: u16,
}

impl Deterministic {
    pub fn compile(
        subscribers: &Subscribers,
        addresses: u32,
        ports: (u16, u16),
    ) -> Result<Deterministic, BadSubscribers> {
        let Subscribers { vrf, first, count, dynamic_factor } = *subscribers;
        if count == 0 {
            return Err(BadSubscribers::None);
        }
        let is_v6 = !is_mapped(first);
        let first_host = if is_v6 { first >> 64 } else { first };
        let last_host = first_host + u128::from(count - 1);
        if if is_v6 { last_host > u128::from(u64::MAX) } else { !is_mapped(last_host) } {
            return Err(BadSubscribers::TooFar(count));
        }
        let compression = count.div_ceil(addresses);
        let parts = compression.saturating_add(u32::from(dynamic_factor));
        // Whole units within the range of ports.
        let size = u32::from(UNIT_PORTS);
        let first = u32::from(ports.0).div_ceil(size);
        let units = ((u32::from(ports.1) + 1) / size).saturating_sub(first);
        let units_each = (units / parts) as u16;
        if units_each == 0 {
            return Err(BadSubscribers::TooFewPorts { parts, ports: units * size / parts });
        }
        let first_unit = Unit::of((first * size) as u16).0;
        Ok(Deterministic { vrf, first_host, is_v6, count, compression, first_unit, units_each })
    }

    /// Units of an address that belong to hosts; the rest is dynamic.
    pub fn units(&self) -> std::ops::Range<u16> {
        // Not above 1,152: `units_each` times at most `parts` is what there is.
        self.first_unit..self.first_unit + self.units_each * self.compression as u16
    }

    /// The ports of a host. None: it is not a subscriber.
    pub fn place(&self, vrf: u16, host: u128) -> Option<Place> {
        if vrf != self.vrf || is_mapped(host) == self.is_v6 {
            return None;
        }
        let number = if self.is_v6 { host >> 64 } else { host };
        let number = u32::try_from(number.checked_sub(self.first_host)?).ok()?;
        let position = (number % self.compression) as u16;
        (number < self.count).then(|| Place {
            address: number / self.compression,
            first: Unit(self.first_unit + position * self.units_each),
            units: self.units_each,
        })
    }

    /// VRF and address of the host that has `port` of the external address with this index.
    pub fn subscriber(&self, address: u32, port: u16) -> Option<(u16, u128)> {
        let unit = Unit::of(port).0;
        if !self.units().contains(&unit) {
            return None;
        }
        let position = (unit - self.first_unit) / self.units_each;
        let number = address.checked_mul(self.compression)?.checked_add(u32::from(position))?;
        let host = self.first_host + u128::from(number);
        (number < self.count).then_some((self.vrf, if self.is_v6 { host << 64 } else { host }))
    }
}

fn is_mapped(addr: u128) -> bool {
    addr >> 32 == 0xffff
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::flow::nat::{AddressRange, BlockClaims, Pool, PoolSpec, Ports};
    use crate::neighbours::v4_key;
    use crate::packet::hash::Key;

    fn pool(addresses: u32, ports: Ports, subscribers: Subscribers) -> Pool {
        let first = Ipv4Addr::new(192, 0, 2, 1);
        let last = Ipv4Addr::from(u32::from(first) + addresses - 1);
        let mut spec = PoolSpec::new(0, vec![AddressRange { first, last }]);
        spec.ports = ports;
        spec.deterministic = Some(subscribers);
        Pool::compile(&spec, &BlockClaims::new(16, Key::default())).expect("legal")
    }

    fn subscribers(first: u128, count: u32, dynamic_factor: u16) -> Subscribers {
        Subscribers { vrf: 0, first, count, dynamic_factor }
    }

    /// The table of RFC 7422 section 2.3.
    #[test]
    fn rfc7422_section_2_3_example() {
        let first = v4_key(u32::from(Ipv4Addr::new(198, 51, 100, 1)));
        let outside = u32::from(Ipv4Addr::new(192, 0, 2, 1));
        let pool = pool(1, Ports::default(), subscribers(first, 14, 2));
        for (host, (from, to)) in [(0, (1024, 5055)), (1, (5056, 9087)), (13, (53440, 57471))] {
            assert_eq!(pool.outside_of(0, first + host), Some((outside, from..=to)));
        }
        assert_eq!(pool.inside_of(outside, 2001), Some((0, first)), "subscriber 1 is found without a log");
        assert_eq!(pool.inside_of(outside, 58204), None, "of the dynamic pool: consult the log");
        assert_eq!(pool.inside_of(outside, 1023), None, "reserved");
    }

    #[test]
    fn rfc7422_the_functions_are_inverse_for_every_port_and_every_host() {
        let v6 = 0x2001_0db8_u128 << 96 | 0xffff_fff0 << 64;
        let cases = [
            pool(3, Ports::default(), subscribers(v4_key(0x0a00_0000), 1000, 1)),
            pool(1, Ports::default(), subscribers(v4_key(0x0a00_0000), 1008, 0)),
            pool(
                4,
                Ports { first: 32768, last: 60999, low: false },
                subscribers(v4_key(0x0a00_00ff), 333, 7),
            ),
            pool(5, Ports { first: 2000, last: 9999, low: false }, subscribers(v6, 77, 0)),
        ];
        for pool in &cases {
            let subscribers = pool.deterministic().expect("deterministic");
            let mut owned = 0_u64;
            for index in 0..pool.addresses() {
                let addr = pool.address(index);
                for port in 0..=u16::MAX {
                    let Some((vrf, host)) = pool.inside_of(addr, port) else { continue };
                    let (back, ports) = pool.outside_of(vrf, host).expect("a host");
                    assert!(back == addr && ports.contains(&port), "{host:x} {port}");
                    assert!((pool.ports().first..=pool.ports().last).contains(&port));
                    owned += 1;
                }
            }
            let each = u64::from(subscribers.units_each) * 64;
            assert_eq!(owned, each * u64::from(subscribers.count), "every host has all its ports, once");
        }
    }

    #[test]
    fn every_address_of_a_v6_prefix_has_the_ports_of_its_64() {
        let first = 0x2001_0db8_u128 << 96;
        let pool = pool(1, Ports::default(), subscribers(first, 16, 0));
        assert_eq!(pool.outside_of(0, first + (3 << 64) + 77), pool.outside_of(0, first + (3 << 64)));
        assert_eq!(pool.outside_of(0, first + (16 << 64)), None);
        assert_eq!(pool.outside_of(1, first), None, "of another VRF");
        assert_eq!(pool.outside_of(0, v4_key(5)), None);
    }

    #[test]
    fn parameters_that_do_not_work_out_are_refused() {
        let compile = |count, factor| {
            Deterministic::compile(&subscribers(v4_key(0xffff_ff00), count, factor), 1, (1024, 65535)).err()
        };
        assert_eq!(compile(0, 0), Some(BadSubscribers::None));
        assert_eq!(compile(257, 0), Some(BadSubscribers::TooFar(257)));
        assert_eq!(compile(256, 753), Some(BadSubscribers::TooFewPorts { parts: 1009, ports: 63 }));
        assert_eq!(compile(256, 752), None);
    }
}
