//! Destination and static NAT: where an outside address leads, and which outside address an inside one has.

use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::groups::{Groups, Set};
use super::rules::ANY;
use super::{Asked, DestinationNat};
use crate::config::{AddressRange, PortRange};
use crate::neighbours::addr_key;

/// One side of a NAT rule; what is not named is any.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// Zone, or [`ANY`].
    pub zone: u16,
    /// Interface slot, or [`ANY`].
    pub interface: u16,
    /// VRF slot, or [`ANY`].
    pub vrf: u16,
    /// Group.
    pub set: Option<Set>,
    /// Addresses, if any are named.
    pub ranges: Vec<AddressRange>,
}

impl Side {
    /// True if an address behind this zone, interface and VRF is meant.
    pub fn is(&self, groups: &Groups, addr: IpAddr, zone: u8, interface: u16, vrf: u16) -> bool {
        (self.zone == ANY || self.zone == u16::from(zone))
            && (self.interface == ANY || self.interface == interface)
            && (self.vrf == ANY || self.vrf == vrf)
            && (self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(addr)))
            && self.set.is_none_or(|set| groups.of(addr_key(addr)).contains(&set))
    }
}

/// One destination NAT rule.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    /// Who may use it.
    pub from: Side,
    /// Where it leads.
    pub to: DestinationNat,
}

/// A service of a rule that is not one port.
#[derive(Clone, Copy, Debug)]
struct Broad {
    protocol: Option<u8>,
    ports: Option<PortRange>,
    rule: u32,
}

/// One port of one address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Endpoint {
    addr: u128,
    vrf: u16,
    port: u16,
    protocol: u8,
}

/// Destination NAT: rules of one port are found by hash, so that their number does not matter.
#[derive(Default)]
pub(super) struct Destinations {
    rules: Vec<Destination>,
    exact: AHashMap<Endpoint, Vec<u32>>,
    /// By outside address.
    broad: AHashMap<(u16, u128), Vec<Broad>>,
    addresses: AHashSet<(u16, u128)>,
}

/// Protocol and ports of a destination NAT rule.
pub(super) type Services<'a> = &'a [(Option<u8>, Option<PortRange>)];

impl Destinations {
    /// Adds a rule behind the others.
    pub fn push(&mut self, vrf: u16, address: IpAddr, services: Services<'_>, rule: Destination) {
        let number = self.rules.len() as u32;
        let addr = addr_key(address);
        self.rules.push(rule);
        self.addresses.insert((vrf, addr));
        for (protocol, ports) in services {
            match (protocol, ports) {
                (Some(protocol), Some(ports)) if ports.first() == ports.last() => {
                    let endpoint = Endpoint { addr, vrf, port: ports.first(), protocol: *protocol };
                    self.exact.entry(endpoint).or_default().push(number);
                }
                _ => {
                    let broad = Broad { protocol: *protocol, ports: *ports, rule: number };
                    self.broad.entry((vrf, addr)).or_default().push(broad);
                }
            }
        }
    }

    /// True if a rule names the address.
    pub fn has(&self, vrf: u16, addr: u128) -> bool {
        self.addresses.contains(&(vrf, addr))
    }

    /// Where a packet leads. Ports come before a protocol, that before neither; among equals the first.
    pub fn find(&self, asked: &Asked<'_>, groups: &Groups) -> Option<DestinationNat> {
        if self.rules.is_empty() {
            return None;
        }
        let question = asked.question;
        let (addr, vrf) = (asked.dst, question.vrf);
        let (protocol, port) = (question.protocol, question.dst_port);
        let is_for = |rule: &u32| {
            let from = &self.rules[*rule as usize].from;
            from.is(groups, question.src, asked.from_zone, question.ingress, vrf)
        };
        let exact = self.exact.get(&Endpoint { addr, vrf, port, protocol }).into_iter().flatten().copied();
        let broad = self.broad.get(&(vrf, addr)).map_or(&[][..], Vec::as_slice);
        let ranges = broad.iter().filter(|broad| {
            broad.protocol == Some(protocol) && broad.ports.is_some_and(|ports| ports.contains(port))
        });
        let of_protocol =
            broad.iter().filter(|broad| broad.protocol == Some(protocol) && broad.ports.is_none());
        let of_all = broad.iter().filter(|broad| broad.protocol.is_none());
        let first = |rules: &mut dyn Iterator<Item = u32>| rules.filter(is_for).min();
        let rule = first(&mut exact.chain(ranges.map(|broad| broad.rule)))
            .or_else(|| first(&mut of_protocol.map(|broad| broad.rule)))
            .or_else(|| first(&mut of_all.map(|broad| broad.rule)))?;
        Some(self.rules[rule as usize].to)
    }
}

/// One static NAT rule.
#[derive(Clone, Debug)]
pub(super) struct Static {
    /// Outside addresses.
    pub outside: IpNet,
    /// Inside addresses, as many.
    pub inside: IpNet,
    /// VRF slot of the outside.
    pub vrf: u16,
    /// VRF slot of the inside.
    pub inside_vrf: u16,
    /// Which sessions from inside; `None`: all that leave their zone.
    pub to: Option<Side>,
    /// NAT rule slot.
    pub rule: u16,
}

/// Static NAT: one lookup by hash per prefix length that there is.
#[derive(Default)]
pub(super) struct Statics {
    rules: Vec<Static>,
    outside: ByPrefix,
    inside: ByPrefix,
}

#[derive(Default)]
struct ByPrefix {
    /// Lengths of neutral prefixes, ascending.
    lengths: Vec<u8>,
    rules: AHashMap<(u16, u8, u128), u32>,
}

/// The length of a prefix among neutral addresses.
pub fn length_of(net: IpNet) -> u8 {
    if net.addr().is_ipv4() { net.prefix_len() + 96 } else { net.prefix_len() }
}

/// The first bits of an address.
pub fn network(addr: u128, len: u8) -> u128 {
    addr & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl ByPrefix {
    fn insert(&mut self, vrf: u16, net: IpNet, rule: u32) {
        let len = length_of(net);
        if let Err(at) = self.lengths.binary_search(&len) {
            self.lengths.insert(at, len);
        }
        self.rules.entry((vrf, len, addr_key(net.network()))).or_insert(rule);
    }

    fn find(&self, vrf: u16, addr: u128) -> Option<u32> {
        self.lengths.iter().rev().find_map(|len| self.rules.get(&(vrf, *len, network(addr, *len)))).copied()
    }
}

/// The address with the prefix of `to` and the rest of `addr`.
fn moved(addr: u128, to: IpNet) -> IpAddr {
    let (len, base) = (length_of(to), addr_key(to.network()));
    let new = base | addr & !network(u128::MAX, len);
    match to {
        IpNet::V4(_) => IpAddr::V4((new as u32).into()),
        IpNet::V6(_) => IpAddr::V6(new.into()),
    }
}

impl Statics {
    /// Adds a rule.
    pub fn push(&mut self, rule: Static) {
        let number = self.rules.len() as u32;
        self.outside.insert(rule.vrf, rule.outside, number);
        self.inside.insert(rule.inside_vrf, rule.inside, number);
        self.rules.push(rule);
    }

    /// True if the address is outside one of them.
    pub fn has(&self, vrf: u16, addr: u128) -> bool {
        self.outside.find(vrf, addr).is_some()
    }

    /// Where an outside address leads.
    pub fn destination(&self, vrf: u16, addr: u128) -> Option<DestinationNat> {
        let rule = &self.rules[self.outside.find(vrf, addr)? as usize];
        let addr = moved(addr, rule.inside);
        Some(DestinationNat { addr, port: None, vrf: rule.inside_vrf, rule: rule.rule })
    }

    /// The outside address of the session's source, and the NAT rule.
    pub fn source(&self, asked: &Asked<'_>, groups: &Groups) -> Option<(IpAddr, u16)> {
        let question = asked.question;
        let rule = &self.rules[self.inside.find(question.vrf, asked.src)? as usize];
        let is_meant = asked.to_vrf == rule.vrf
            && match &rule.to {
                None => asked.from_zone != asked.to_zone,
                Some(to) => to.is(groups, question.dst, asked.to_zone, asked.egress, asked.to_vrf),
            };
        is_meant.then(|| (moved(asked.src, rule.outside), rule.rule))
    }

    /// The outside address of a host, whatever the session.
    pub fn outside_of(&self, vrf: u16, addr: u128) -> Option<(IpAddr, u16)> {
        let rule = &self.rules[self.inside.find(vrf, addr)? as usize];
        Some((moved(addr, rule.outside), rule.rule))
    }
}
