//! Load balancing: virtual services and their backends.
//!
//! Compiled from the config; immutable. Which backend a new flow gets follows from the service's [`Maglev`] table,
//! the flow's hash and how much each backend takes at present ([`Backends`]): a backend that takes nothing leaves the
//! table as it is, and its share alone is spread over the others. So two nodes that see the same backends choose
//! alike, and nobody's flows but those of the backend that failed move.

mod book;
pub mod delivery;
mod maglev;
pub mod passive;
mod states;

use std::net::IpAddr;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use crate::affinity::{Client, Held};
use crate::config::{OnFailure, PortRange};
use crate::neighbours::addr_key;
use crate::packet::hash::{Key, fold, tuple_v6};
use crate::tables::policy::{Question, length_of, network};

pub use book::{Book, Checked};
pub use delivery::{Deliveries, Delivery, Gue, TunnelSpec};
pub use maglev::{Identity, Maglev};
pub use states::{BackendFate, BackendState, Backends, Health};

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its slot, among those of all services.
    pub slot: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its port; `None`: the port stays.
    pub port: Option<u16>,
    /// Its VRF slot.
    pub vrf: u16,
    /// Its weight.
    pub weight: u16,
    /// What the operator says of it.
    pub admin: crate::config::BackendAdmin,
    /// Number of its [`Delivery`]; `None`: packets are translated for it.
    pub delivery: Option<u16>,
}

/// Whose flows go together, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Seconds after a client's latest flow began.
    pub timeout_s: u32,
    /// First bits of IPv4 addresses that make a client.
    pub ipv4_len: u8,
    /// Of IPv6 addresses.
    pub ipv6_len: u8,
}

/// What a service does with its flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// What becomes of flows whose backend has failed.
    pub on_failure: OnFailure,
    /// Flows of one client address go to one backend.
    pub by_client: bool,
    /// They stay there.
    pub affinity: Option<Affinity>,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// Its slot.
    pub slot: u16,
    /// VRF slot of its address.
    pub vrf: u16,
    /// Its address, or all of a prefix.
    pub address: IpNet,
    /// Protocol and ports; `None`: all.
    pub services: Box<[(Option<u8>, Option<PortRange>)]>,
    /// In the order of their identities.
    pub backends: Box<[Backend]>,
    /// What it does with its flows.
    pub behaviour: Behaviour,
    table: Maglev,
    /// With affinity: slots in ascending order, each with the backend's place in the list.
    by_slot: Box<[(u32, u16)]>,
}

/// Nobody to send a flow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoBackend;

/// How often another place is looked at before all backends are.
const TRIES: u64 = 8;

impl VirtualService {
    /// A service without its table.
    pub fn new(
        (slot, vrf): (u16, u16),
        address: IpNet,
        services: Box<[(Option<u8>, Option<PortRange>)]>,
        behaviour: Behaviour,
        mut backends: Vec<(Identity, Backend)>,
    ) -> VirtualService {
        backends.sort_by(|(one, _), (other, _)| one.cmp(other));
        let listed: Vec<(&Identity, u16)> =
            backends.iter().map(|(identity, backend)| (identity, backend.weight)).collect();
        let table = Maglev::build(&listed);
        let backends: Box<[Backend]> = backends.into_iter().map(|(_, backend)| backend).collect();
        let of_slot = |(at, backend): (u16, &Backend)| (backend.slot, at);
        let mut by_slot: Box<[(u32, u16)]> =
            behaviour.affinity.map_or_else(Box::default, |_| (0..).zip(&backends).map(of_slot).collect());
        by_slot.sort_unstable();
        VirtualService { slot, vrf, address, services, backends, behaviour, table, by_slot }
    }

    /// Slots of its backends with the delivery of those that have one.
    fn delivered(&self) -> impl Iterator<Item = (u32, u16)> {
        self.backends.iter().filter_map(|backend| Some((backend.slot, backend.delivery?)))
    }

    /// True if an index that has this one in its list finds the other in its place.
    fn is_found_as(&self, other: &VirtualService) -> bool {
        (self.vrf, self.address, &self.services) == (other.vrf, other.address, &other.services)
            && self.behaviour.affinity.is_some() == other.behaviour.affinity.is_some()
            && self.delivered().eq(other.delivered())
    }

    /// Who sends a packet, where the service remembers that.
    pub fn client(&self, question: &Question) -> Option<Client> {
        let affinity = self.behaviour.affinity?;
        let addr = network(addr_key(question.src), affinity.len(question.src));
        Some(Client { addr, vrf: self.vrf, service: self.slot })
    }

    /// The backend of a client's latest flow, if it takes new ones.
    fn kept(&self, states: &Backends, held: Held) -> Option<&Backend> {
        let timeout_s = self.behaviour.affinity?.timeout_s;
        let at = self.by_slot.binary_search_by_key(&held.backend, |(slot, _)| *slot).ok()?;
        let takes = states.is_in_service(held.backend) && states.level(held.backend) > 0;
        let is_kept = takes && held.age_s <= u64::from(timeout_s);
        is_kept.then(|| &self.backends[usize::from(self.by_slot[at].1)])
    }

    /// How many places of the table each backend has.
    pub fn shares(&self) -> Vec<u32> {
        self.table.shares(self.backends.len())
    }

    /// The backend for a new flow.
    ///
    /// If the one at the flow's place takes no more, the flow looks at other places, which again belong to each
    /// backend as its weight says. Where all that could take flows have failed, they are used as if they had not:
    /// perhaps it is the checks that fail.
    ///
    /// `held` is what is remembered of its client.
    pub fn choose(
        &self,
        states: &Backends,
        key: Key,
        question: &Question,
        held: Option<Held>,
    ) -> Result<&Backend, NoBackend> {
        if let Some(kept) = held.and_then(|held| self.kept(states, held)) {
            return Ok(kept);
        }
        let (src, dst) = (addr_key(question.src), addr_key(question.dst));
        let hash = match self.behaviour {
            // Not at random: workers that a client comes to at the same moment choose alike, and so do two gateways.
            Behaviour { affinity: Some(affinity), .. } => {
                let (client, service) = (network(src, affinity.len(question.src)), self.address.network());
                tuple_v6(key, client, addr_key(service), 0, (0, 0))
            }
            Behaviour { by_client: true, .. } => tuple_v6(key, src, dst, 0, (0, 0)),
            _ => tuple_v6(key, src, dst, question.protocol, (question.src_port, question.dst_port)),
        };
        let mut place = hash;
        for attempt in 1..=TRIES {
            let backend = &self.backends[usize::from(self.table.find(place).ok_or(NoBackend)?)];
            if states.takes(backend.slot, place as u8) {
                return Ok(backend);
            }
            place = fold(hash ^ attempt, key.0);
        }
        // Nearly all take nothing: by weight among the few that do.
        let weight_of = |backend: &Backend| u64::from(backend.weight) * u64::from(states.level(backend.slot));
        by_weight(&self.backends, place, weight_of)
            .or_else(|| {
                let weight_of = |backend: &Backend| match states.is_in_service(backend.slot) {
                    true => u64::from(backend.weight),
                    false => 0,
                };
                by_weight(&self.backends, place, weight_of)
            })
            .ok_or(NoBackend)
    }
}

impl Affinity {
    /// Bits of an address, in key form, that make a client.
    fn len(&self, src: IpAddr) -> u8 {
        if src.is_ipv4() { self.ipv4_len + 96 } else { self.ipv6_len }
    }
}

fn by_weight(backends: &[Backend], hash: u64, weight: impl Fn(&Backend) -> u64) -> Option<&Backend> {
    let sum: u64 = backends.iter().map(&weight).sum();
    let mut at = ((u128::from(hash) * u128::from(sum)) >> 64) as u64;
    backends.iter().find(|backend| {
        let weight = weight(backend);
        let is_it = at < weight;
        at = at.saturating_sub(weight);
        is_it
    })
}

/// One port of one address or prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Endpoint {
    network: u128,
    vrf: u16,
    port: u16,
    protocol: u8,
    len: u8,
}

/// A service that is not one port.
#[derive(Clone, Copy, Debug)]
struct Broad {
    protocol: Option<u8>,
    ports: Option<PortRange>,
    service: u32,
}

/// All virtual services: found by hash, so that their number does not matter.
#[derive(Clone, Default)]
pub struct Services {
    list: Vec<Arc<VirtualService>>,
    index: Arc<Index>,
    /// By number.
    deliveries: Arc<Vec<Delivery>>,
}

/// Where services are in the list, by what they are found by.
#[derive(Default)]
struct Index {
    exact: AHashMap<Endpoint, u32>,
    broad: AHashMap<(u16, u8, u128), Vec<Broad>>,
    /// Lengths of prefixes there are, IPv4 as mapped: the longest first.
    lengths: Vec<u8>,
    /// By backend slot: the delivery of those that have one.
    delivery_of: AHashMap<u32, u16>,
    /// By VRF slot and address in key form: the tunnels there.
    tunnels: AHashMap<(u16, u128), Vec<u16>>,
    /// Some remember their clients.
    has_affinity: bool,
}

impl Index {
    fn of(list: &[Arc<VirtualService>], deliveries: &[Delivery]) -> Index {
        let mut index = Index::default();
        for (number, to) in (0..).zip(deliveries).filter(|(_, to)| to.tunnel.is_some()) {
            index.tunnels.entry((to.vrf, addr_key(to.addr))).or_default().push(number);
        }
        for (number, service) in (0..).zip(list) {
            let (len, network) = (length_of(service.address), addr_key(service.address.network()));
            if let Err(at) = index.lengths.binary_search_by(|known| len.cmp(known)) {
                index.lengths.insert(at, len);
            }
            index.delivery_of.extend(service.delivered());
            // An address that has a service is known, whatever of it is served.
            let broad = index.broad.entry((service.vrf, len, network)).or_default();
            for (protocol, ports) in &service.services {
                match (protocol, ports) {
                    (Some(protocol), Some(ports)) if ports.first() == ports.last() => {
                        let (vrf, port, protocol) = (service.vrf, ports.first(), *protocol);
                        index.exact.entry(Endpoint { network, vrf, port, protocol, len }).or_insert(number);
                    }
                    _ => broad.push(Broad { protocol: *protocol, ports: *ports, service: number }),
                }
            }
        }
        index.has_affinity = list.iter().any(|service| service.behaviour.affinity.is_some());
        index
    }
}

impl Services {
    /// Services as the config has them in order; the first of several for the same packets has them.
    /// `deliveries`: those of their backends, and those that flows may have kept.
    pub fn compile(list: Vec<Arc<VirtualService>>, deliveries: Arc<Vec<Delivery>>) -> Services {
        let index = Arc::new(Index::of(&list, &deliveries));
        Services { list, index, deliveries }
    }

    /// The same as [`Services::compile`], at the price of what has changed if every service is found as before.
    pub fn after(&self, list: Vec<Arc<VirtualService>>, deliveries: Arc<Vec<Delivery>>) -> Services {
        let is_same = |(old, new): (&Arc<VirtualService>, &Arc<VirtualService>)| {
            Arc::ptr_eq(old, new) || old.is_found_as(new)
        };
        let same_index = self.list.len() == list.len()
            && Arc::ptr_eq(&self.deliveries, &deliveries)
            && self.list.iter().zip(&list).all(is_same);
        if !same_index {
            return Services::compile(list, deliveries);
        }
        Services { list, index: Arc::clone(&self.index), deliveries }
    }

    /// Services of these that the others are not, each way: those that went, and those that came, a changed one in both.
    pub fn difference<'a>(
        &'a self,
        others: &'a Services,
    ) -> (Vec<&'a Arc<VirtualService>>, Vec<&'a Arc<VirtualService>>) {
        let is_kept = |at: usize| match (self.list.get(at), others.list.get(at)) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        let rest = |list: &'a [Arc<VirtualService>]| {
            let moved = list.iter().enumerate().filter(move |(at, _)| !is_kept(*at));
            moved.map(|(_, service)| service).collect::<Vec<_>>()
        };
        let (mut went, mut came) = (rest(&self.list), rest(&others.list));
        let pointers = |list: &[&Arc<VirtualService>]| list.iter().map(|of| Arc::as_ptr(of)).collect();
        let (old, new): (AHashSet<_>, AHashSet<_>) = (pointers(&went), pointers(&came));
        went.retain(|service| !new.contains(&Arc::as_ptr(service)));
        came.retain(|service| !old.contains(&Arc::as_ptr(service)));
        (went, came)
    }

    /// True if there are services that remember their clients.
    #[inline]
    pub fn has_affinity(&self) -> bool {
        self.index.has_affinity
    }

    /// All of them, in the config's order.
    pub fn list(&self) -> &[Arc<VirtualService>] {
        &self.list
    }

    /// The delivery with this number.
    #[inline]
    pub fn delivery(&self, number: u16) -> Option<&Delivery> {
        self.deliveries.get(usize::from(number))
    }

    /// The deliveries by a tunnel to this address, in key form, that there ever were.
    pub fn tunnels_to(&self, vrf: u16, remote: u128) -> impl Iterator<Item = &Delivery> {
        let numbers = self.index.tunnels.get(&(vrf, remote)).map_or(&[][..], Vec::as_slice);
        numbers.iter().filter_map(|number| self.delivery(*number))
    }

    /// The delivery that a backend has by now, if it is in a service and has one.
    pub fn delivery_of(&self, backend: u32) -> Option<u16> {
        self.index.delivery_of.get(&backend).copied()
    }

    /// The service that a packet is for: the longest prefix, in it ports before a protocol, that before all.
    pub fn find(&self, question: &Question) -> Option<&VirtualService> {
        if self.list.is_empty() {
            return None;
        }
        let (addr, vrf) = (addr_key(question.dst), question.vrf);
        let (protocol, port) = (question.protocol, question.dst_port);
        self.index.lengths.iter().find_map(|len| {
            let network = network(addr, *len);
            let broad = self.index.broad.get(&(vrf, *len, network))?;
            let endpoint = Endpoint { network, vrf, port, protocol, len: *len };
            let first = |is_it: &dyn Fn(&Broad) -> bool| {
                broad.iter().find(|broad| is_it(broad)).map(|broad| broad.service)
            };
            let is_ours = |broad: &Broad| broad.protocol == Some(protocol);
            let found = self.index.exact.get(&endpoint).copied();
            let found = found
                .or_else(|| first(&|b| is_ours(b) && b.ports.is_some_and(|ports| ports.contains(port))))
                .or_else(|| first(&|b| is_ours(b) && b.ports.is_none()))
                .or_else(|| first(&|b| b.protocol.is_none()))?;
            Some(&*self.list[found as usize])
        })
    }

    /// True if a service has the address.
    pub fn has(&self, vrf: u16, addr: u128) -> bool {
        self.index.lengths.iter().any(|len| self.index.broad.contains_key(&(vrf, *len, network(addr, *len))))
    }
}

#[cfg(test)]
mod tests;
