//! Deterministic NAT (RFC 7422): a host's ports are a function of its address, and the other way round.
//!
//! Address assignment is sequential (section 2, A = 0): with `compression` hosts to an external address, the
//! first `compression` hosts share the first address, in order of their ports. Ports come in whole units of
//! 64, so that every unit has one owner.
//!
//! With a number of ports for each host, or of hosts for each address, the other follows from it, and hosts or
//! external addresses that come behind the others move nobody. Without them the hosts share what there is: every
//! change moves all.

use super::blocks::{UNIT_PORTS, Unit};

/// Inside addresses that lie behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InsideRange {
    /// First inside address (I): IPv6, or IPv4 mapped.
    pub first: u128,
    /// How many hosts: addresses for IPv4, /64s for IPv6.
    pub count: u32,
}

/// Inside addresses of a deterministic pool, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribers {
    /// VRF of the inside: addresses of two VRFs cannot be told apart by arithmetic.
    pub vrf: u16,
    /// The hosts, in any order, of one family; no two ranges have a host in common.
    pub ranges: Vec<InsideRange>,
    /// Hosts to an external address. `None`: as many as fit, or as few as there can be if neither is given.
    pub hosts_per_address: Option<u16>,
    /// Ports of each host, in whole units of 64. `None`: as many as there are for so many.
    pub ports_per_host: Option<u16>,
    /// Whoever needs more gets blocks of the ports that no host's are (the dynamic pool of RFC 7422), each with
    /// a record: their size. `None`: nobody gets more than its own.
    pub overflow: Option<u16>,
}

impl Subscribers {
    /// All hosts.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| u64::from(range.count)).sum()
    }
}

/// Why deterministic parameters do not work out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSubscribers {
    /// No host.
    #[error("a deterministic pool needs at least one inside address")]
    None,
    /// Beyond the end of the address space, of two families, or twice.
    #[error("{0} inside addresses do not lie behind each other")]
    NotInOrder(u32),
    /// Not in whole units.
    #[error("{0} ports for each host: whole 64s are needed, for blocks of ports come in units of 64")]
    NotUnits(u16),
    /// An address does not have so many.
    #[error("{hosts} with {each} ports each to an address need {}, and it has {ports} (whole 64s of its range)", hosts * each)]
    TooManyPorts {
        /// To an address.
        hosts: u32,
        /// For each host.
        each: u32,
        /// Of an address.
        ports: u32,
    },
    /// Nothing is left for a dynamic pool.
    #[error(
        "{hosts} hosts with {each} ports each leave no whole block of an address's {ports} ports for overflow"
    )]
    NothingLeft {
        /// To an address.
        hosts: u32,
        /// For each host.
        each: u32,
        /// Of an address.
        ports: u32,
    },
    /// More hosts than have room.
    #[error(
        "{hosts} inside addresses with {each} ports each are more than {addresses} outside addresses have room for: \
         {per_address} share one, so {needed} are needed"
    )]
    TooMany {
        /// Inside addresses.
        hosts: u64,
        /// Ports of each: what was asked for, or the least that is possible.
        each: u16,
        /// Outside addresses.
        addresses: u32,
        /// Hosts that can share an outside address.
        per_address: u32,
        /// Outside addresses that would do.
        needed: u64,
    },
}

/// How hosts share addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Hosts to an external address (C).
    pub hosts_per_address: u32,
    /// Ports of each.
    pub ports_per_host: u16,
    /// First port of the first host of an address.
    pub first_port: u16,
}

impl Share {
    /// How `hosts` share so many addresses with these ports.
    pub fn of(subscribers: &Subscribers, addresses: u32, ports: (u16, u16)) -> Result<Share, BadSubscribers> {
        let hosts = subscribers.count();
        if hosts == 0 || addresses == 0 {
            return Err(BadSubscribers::None);
        }
        // Whole units within the range of ports.
        let size = u32::from(UNIT_PORTS);
        let first = u32::from(ports.0).div_ceil(size);
        let units = ((u32::from(ports.1) + 1) / size).saturating_sub(first);
        let too_many_ports = |hosts: u32, units_each: u32| BadSubscribers::TooManyPorts {
            hosts,
            each: units_each * size,
            ports: units * size,
        };
        let wanted = match subscribers.ports_per_host {
            Some(wanted) if wanted == 0 || !wanted.is_multiple_of(UNIT_PORTS) => {
                return Err(BadSubscribers::NotUnits(wanted));
            }
            wanted => wanted.map(|wanted| u32::from(wanted) / size),
        };
        let least = wanted.unwrap_or(1);
        let most = units / least;
        if most == 0 {
            return Err(too_many_ports(1, least));
        }
        let compression = match subscribers.hosts_per_address.map(u32::from) {
            Some(given) if given == 0 || given > most => return Err(too_many_ports(given, least)),
            Some(given) => given,
            None if wanted.is_some() => most,
            None => u32::try_from(hosts.div_ceil(u64::from(addresses))).unwrap_or(u32::MAX).min(most),
        };
        let units_each = wanted.unwrap_or(units / compression);
        if u64::from(compression) * u64::from(addresses) < hosts {
            let needed = hosts.div_ceil(u64::from(compression));
            let each = (units_each * size) as u16;
            return Err(BadSubscribers::TooMany { hosts, each, addresses, per_address: compression, needed });
        }
        if let Some(block) = subscribers.overflow.map(u32::from) {
            let left = (first + compression * units_each) * size;
            if left.next_multiple_of(block) + block > (first + units) * size {
                let (each, ports) = (units_each * size, units * size);
                return Err(BadSubscribers::NothingLeft { hosts: compression, each, ports });
            }
        }
        Ok(Share {
            hosts_per_address: compression,
            ports_per_host: (units_each * size) as u16,
            first_port: (first * size) as u16,
        })
    }
}

/// How a compiled pool is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// VRF of the inside.
    pub vrf: u16,
    /// The hosts, ascending.
    pub ranges: Vec<InsideRange>,
    /// How they share.
    pub share: Share,
    /// There is a dynamic pool as well.
    pub overflow: bool,
}

impl Shared {
    /// True if the port would be a host's at some address.
    pub fn has(&self, port: u16) -> bool {
        let Share { hosts_per_address, ports_per_host, first_port } = self.share;
        let past = u32::from(first_port) + hosts_per_address * u32::from(ports_per_host);
        (u32::from(first_port)..past).contains(&port.into())
    }
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

/// Hosts that lie behind each other: an IPv4 address (mapped), or the upper half of an IPv6 address.
#[derive(Clone, Copy, Debug)]
struct Hosts {
    first: u128,
    count: u32,
    /// Number of the first among all.
    number: u32,
}

/// The compiled function and its inverse.
#[derive(Clone, Debug)]
pub(super) struct Deterministic {
    vrf: u16,
    /// Ascending.
    hosts: Box<[Hosts]>,
    is_v6: bool,
    share: Share,
    first_unit: u16,
    units_each: u16,
    overflow: bool,
}

impl Deterministic {
    pub fn compile(
        subscribers: &Subscribers,
        addresses: u32,
        ports: (u16, u16),
    ) -> Result<Deterministic, BadSubscribers> {
        let mut ranges = subscribers.ranges.clone();
        ranges.sort_unstable();
        let share = Share::of(subscribers, addresses, ports)?;
        let is_v6 = ranges.first().is_some_and(|range| !is_mapped(range.first));
        let mut hosts: Vec<Hosts> = Vec::with_capacity(ranges.len());
        let mut number = 0_u32;
        for InsideRange { first, count } in ranges {
            let not_in_order = BadSubscribers::NotInOrder(count);
            if count == 0 {
                return Err(BadSubscribers::None);
            }
            let first = if is_v6 { first >> 64 } else { first };
            let last = first + u128::from(count - 1);
            let is_in =
                if is_v6 { last <= u128::from(u64::MAX) } else { is_mapped(first) && is_mapped(last) };
            let before = hosts.last().map(|before| before.first + u128::from(before.count - 1));
            if !is_in || before.is_some_and(|before| before >= first) {
                return Err(not_in_order);
            }
            hosts.push(Hosts { first, count, number });
            number = number.checked_add(count).ok_or(not_in_order)?;
        }
        Ok(Deterministic {
            vrf: subscribers.vrf,
            hosts: hosts.into(),
            is_v6,
            share,
            first_unit: Unit::of(share.first_port).0,
            units_each: share.ports_per_host / UNIT_PORTS,
            overflow: subscribers.overflow.is_some(),
        })
    }

    pub fn shared(&self) -> Shared {
        let addr = |first| if self.is_v6 { first << 64 } else { first };
        let range = |hosts: &Hosts| InsideRange { first: addr(hosts.first), count: hosts.count };
        Shared {
            vrf: self.vrf,
            ranges: self.hosts.iter().map(range).collect(),
            share: self.share,
            overflow: self.overflow,
        }
    }

    /// True if there is a dynamic pool.
    pub fn overflows(&self) -> bool {
        self.overflow
    }

    /// Units of an address that belong to hosts; the rest is dynamic.
    pub fn units(&self) -> std::ops::Range<u16> {
        // Not above 1,152: `units_each` times the hosts of an address is at most what there is.
        self.first_unit..self.first_unit + self.units_each * self.share.hosts_per_address as u16
    }

    /// The ports of a host. None: it is not a subscriber.
    pub fn place(&self, vrf: u16, host: u128) -> Option<Place> {
        if vrf != self.vrf || is_mapped(host) == self.is_v6 {
            return None;
        }
        let host = if self.is_v6 { host >> 64 } else { host };
        let behind = self.hosts.partition_point(|hosts| hosts.first <= host);
        let hosts = self.hosts.get(behind.wrapping_sub(1))?;
        let offset = u32::try_from(host - hosts.first).ok().filter(|offset| *offset < hosts.count)?;
        let number = hosts.number + offset;
        let position = (number % self.share.hosts_per_address) as u16;
        Some(Place {
            address: number / self.share.hosts_per_address,
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
        let number = address.checked_mul(self.share.hosts_per_address)?.checked_add(u32::from(position))?;
        let behind = self.hosts.partition_point(|hosts| hosts.number <= number);
        let hosts = self.hosts.get(behind.wrapping_sub(1))?;
        let offset = number - hosts.number;
        let host = hosts.first + u128::from(offset);
        (offset < hosts.count).then_some((self.vrf, if self.is_v6 { host << 64 } else { host }))
    }
}

fn is_mapped(addr: u128) -> bool {
    addr >> 32 == 0xffff
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::nat::{AddressRange, BlockClaims, Pool, PoolSpec, Ports};
    use crate::neighbours::v4_key;
    use crate::packet::hash::Key;

    fn compile(
        addresses: u32,
        ports: Ports,
        subscribers: Subscribers,
    ) -> Result<Pool, crate::flow::nat::BadPool> {
        let first = Ipv4Addr::new(192, 0, 2, 1);
        let last = Ipv4Addr::from(u32::from(first) + addresses - 1);
        let mut spec = PoolSpec::new(0, vec![AddressRange { first, last }]);
        spec.ports = ports;
        spec.deterministic = Some(subscribers);
        Pool::compile(&spec, &BlockClaims::new(16, Key::default()))
    }

    fn pool(addresses: u32, ports: Ports, subscribers: Subscribers) -> Pool {
        compile(addresses, ports, subscribers).expect("legal")
    }

    fn subscribers(ranges: &[(u128, u32)], ports_per_host: Option<u16>) -> Subscribers {
        let ranges =
            ranges.iter().map(|(first, count)| InsideRange { first: *first, count: *count }).collect();
        Subscribers { vrf: 0, ranges, hosts_per_address: None, ports_per_host, overflow: None }
    }

    /// The table of RFC 7422 section 2.3: 14 subscribers and a dynamic factor of 2, so 64512 / 16 = 4032 ports.
    #[test]
    fn rfc7422_section_2_3_example() {
        let first = v4_key(u32::from(Ipv4Addr::new(198, 51, 100, 1)));
        let outside = u32::from(Ipv4Addr::new(192, 0, 2, 1));
        let config = Subscribers {
            hosts_per_address: Some(14),
            overflow: Some(64),
            ..subscribers(&[(first, 14)], None)
        };
        let refused = compile(1, Ports::default(), config.clone()).map(|_| ()).map_err(|bad| bad.to_string());
        assert_eq!(
            refused,
            Err(
                "14 hosts with 4608 ports each leave no whole block of an address's 64512 ports for overflow"
                    .into()
            )
        );
        let pool = pool(1, Ports::default(), Subscribers { ports_per_host: Some(4032), ..config });
        for (host, (from, to)) in [(0, (1024, 5055)), (1, (5056, 9087)), (13, (53440, 57471))] {
            assert_eq!(pool.outside_of(0, first + host), Some((outside, from..=to)));
        }
        assert_eq!(pool.inside_of(outside, 2001), Some((0, first)), "subscriber 1 is found without a log");
        assert_eq!(pool.inside_of(outside, 58204), None, "of the dynamic pool: consult the log");
        assert_eq!(pool.inside_of(outside, 1023), None, "reserved");
    }

    /// All of it by trying: every port of every address leads to the host that has it, and to no other.
    fn is_inverse(pool: &Pool, ranges: &[(u128, u32)], step: u128) {
        let each = usize::from(pool.shared().expect("deterministic").share.ports_per_host);
        let mut owners = std::collections::BTreeMap::new();
        let hosts =
            ranges.iter().flat_map(|(first, count)| (0..u128::from(*count)).map(move |n| first + n * step));
        for host in hosts {
            let (addr, ports) = pool.outside_of(0, host).expect("a host");
            assert!(pool.contains(addr));
            assert_eq!(ports.len(), each, "all have as many");
            for port in ports {
                assert!((pool.ports().first..=pool.ports().last).contains(&port));
                assert_eq!(owners.insert((addr, port), host), None, "{port} is two hosts'");
            }
        }
        for addr in (0..pool.addresses()).map(|index| pool.address(index)) {
            for port in 0..=u16::MAX {
                let found = pool.inside_of(addr, port).map(|(_, host)| host);
                assert_eq!(found, owners.get(&(addr, port)).copied(), "{port}");
            }
        }
    }

    #[test]
    fn rfc7422_the_functions_are_inverse_for_every_port_and_every_host() {
        let v6 = 0x2001_0db8_u128 << 96 | 0xffff_fff0 << 64;
        let v4 = v4_key(0x0a00_0000);
        let narrow = |first, last| Ports { first, last, low: false };
        is_inverse(&pool(3, Ports::default(), subscribers(&[(v4, 1000)], None)), &[(v4, 1000)], 1);
        is_inverse(&pool(1, Ports::default(), subscribers(&[(v4, 1008)], None)), &[(v4, 1008)], 1);
        let ranges = [(v4 + 4096, 33), (v4, 7), (v4 + 8, 300)];
        is_inverse(&pool(4, narrow(32768, 60999), subscribers(&ranges, Some(320))), &ranges, 1);
        is_inverse(&pool(5, narrow(2000, 9999), subscribers(&[(v6, 77)], None)), &[(v6, 77)], 1 << 64);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn whatever_the_parameters_no_two_hosts_share_a_port(
            gaps in prop::collection::vec((0_u32..50, 1_u32..60), 1..6),
            addresses in 1_u32..5,
            first in 1024_u16..60_000,
            width in 63_u16..5_000,
            units in prop::option::of(1_u16..20),
            hosts_per_address in prop::option::of(1_u16..40),
            overflow in prop::option::of(Just(64_u16)),
        ) {
            let mut at = v4_key(0x6440_0000);
            let mut ranges = Vec::new();
            for (gap, count) in gaps {
                at += u128::from(gap);
                ranges.push((at, count));
                at += u128::from(count);
            }
            let ports = Ports { first, last: first.saturating_add(width), low: false };
            let wanted = subscribers(&ranges, units.map(|units| units * 64));
            let wanted = Subscribers { hosts_per_address, overflow, ..wanted };
            if let Ok(pool) = compile(addresses, ports, wanted) {
                is_inverse(&pool, &ranges, 1);
            }
        }
    }

    #[test]
    fn hosts_and_addresses_that_come_behind_move_nobody_who_has_a_fixed_number_of_ports() {
        let first = v4_key(0x6440_0000);
        let before = pool(2, Ports::default(), subscribers(&[(first, 100)], Some(1024)));
        // Neither when others share the addresses as before, nor when there are fewer on each.
        for (addresses, more) in [(4, 100), (2, 20), (4, 4)] {
            let hosts = subscribers(&[(first, 100), (first + 256, more)], Some(1024));
            let after = pool(addresses, Ports::default(), hosts);
            for host in first..first + 100 {
                assert_eq!(before.outside_of(0, host), after.outside_of(0, host), "{addresses} addresses");
            }
        }
    }

    #[test]
    fn every_address_of_a_v6_prefix_has_the_ports_of_its_64() {
        let first = 0x2001_0db8_u128 << 96;
        let pool = pool(1, Ports::default(), subscribers(&[(first, 16)], None));
        assert_eq!(pool.outside_of(0, first + (3 << 64) + 77), pool.outside_of(0, first + (3 << 64)));
        assert_eq!(pool.outside_of(0, first + (16 << 64)), None);
        assert_eq!(pool.outside_of(1, first), None, "of another VRF");
        assert_eq!(pool.outside_of(0, v4_key(5)), None);
    }

    #[test]
    fn a_dynamic_pool_needs_a_whole_block() {
        let first = v4_key(0x0a00_0000);
        let refused = |hosts_per_address, block, all| {
            let wanted = subscribers(&[(first, 9)], Some(1024));
            let hosts_per_address = Some(hosts_per_address);
            Share::of(&Subscribers { hosts_per_address, overflow: Some(block), ..wanted }, 1, all).is_err()
        };
        // 1024 to 61439 for 59 hosts: 61440 to 65535 is left, one block of 4096.
        assert!(!refused(59, 4096, (1024, 65535)));
        assert!(refused(59, 4096, (1024, 65471)));
        assert!(refused(60, 4096, (1024, 65535)));
        assert!(!refused(62, 64, (1024, 65535)));
        assert!(refused(63, 64, (1024, 65535)));
    }

    #[test]
    fn parameters_that_do_not_work_out_are_refused_with_the_numbers() {
        let first = v4_key(0xffff_ff00);
        let refused = |ranges: &[(u128, u32)], ports_per_host, ports| {
            let compiled = Deterministic::compile(&subscribers(ranges, ports_per_host), 1, ports);
            compiled.map(|_| ()).map_err(|bad| bad.to_string())
        };
        let all = (1024, 65535);
        let none = "a deterministic pool needs at least one inside address";
        let far = "257 inside addresses do not lie behind each other";
        for (ranges, ports_per_host, ports, message) in [
            (&[][..], None, all, none),
            (&[(first, 0)], None, all, none),
            (&[(first, 257)], None, all, far),
            (&[(first, 9), (first + 8, 2)], None, all, "2 inside addresses do not lie behind each other"),
            (
                &[(first, 9)],
                Some(100),
                all,
                "100 ports for each host: whole 64s are needed, for blocks of ports come in units of 64",
            ),
            (
                &[(first, 9)],
                Some(128),
                (2000, 2111),
                "1 with 128 ports each to an address need 128, and it has 64 (whole 64s of its range)",
            ),
            (
                &[(first, 9)],
                None,
                (2000, 2100),
                "1 with 64 ports each to an address need 64, and it has 0 (whole 64s of its range)",
            ),
            (
                &[(first, 9)],
                Some(8064),
                all,
                "9 inside addresses with 8064 ports each are more than 1 outside addresses have room for: 8 share one, so 2 are needed",
            ),
            (
                &[(v4_key(0), 1009)],
                None,
                all,
                "1009 inside addresses with 64 ports each are more than 1 outside addresses have room for: 1008 share one, so 2 are needed",
            ),
        ] {
            assert_eq!(refused(ranges, ports_per_host, ports), Err(message.to_owned()));
        }
        assert_eq!(refused(&[(first, 256)], Some(192), all), Ok(()));
        let given = |hosts, ports_per_host| {
            let wanted =
                Subscribers { hosts_per_address: Some(hosts), ..subscribers(&[(first, 9)], ports_per_host) };
            Share::of(&wanted, 2, all).map_err(|bad| bad.to_string())
        };
        let message =
            "9 with 8064 ports each to an address need 72576, and it has 64512 (whole 64s of its range)";
        assert_eq!(given(9, Some(8064)), Err(message.into()));
        let message = "9 inside addresses with 16128 ports each are more than 2 outside addresses have room for: \
                       4 share one, so 3 are needed";
        assert_eq!(given(4, None), Err(message.into()));
        let share = Share { hosts_per_address: 5, ports_per_host: 12864, first_port: 1024 };
        assert_eq!(given(5, None), Ok(share));
    }
}
