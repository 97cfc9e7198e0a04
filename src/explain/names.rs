//! Slots in the operator's words.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::packet::DropReason;
use crate::pipeline::route::Route;
use crate::tables::balance::delivery::number_of;
use crate::tables::bridge::number_of_scope;
use crate::tables::compile::Compiler;
use crate::tables::policy::{DEFAULT_RULE, SELF};
use crate::tables::rib::{Rib, Target};
use crate::tables::{NO_INTERFACE, Tables};

/// Tables, and what their slots are called.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Names and neighbours.
    pub compiler: &'a Compiler,
    /// What they were compiled from; routes aside.
    pub config: &'a Config,
    /// The tables.
    pub tables: &'a Tables,
    /// The routes in them.
    pub rib: &'a Rib,
}

impl<'a> View<'a> {
    /// What the compiler has made last.
    pub fn new(compiler: &'a Compiler, config: &'a Config) -> View<'a> {
        View { compiler, config, tables: compiler.tables(), rib: compiler.rib() }
    }

    /// The tables.
    pub fn tables(&self) -> &'a Tables {
        self.tables
    }

    /// Name of an interface.
    pub fn interface(&self, slot: u16) -> &'a str {
        match slot {
            NO_INTERFACE => "the gateway itself",
            slot => &self.tables().interface(slot).info.name,
        }
    }

    /// Name of a VRF, or of the bridge that stands in its place.
    pub fn vrf(&self, slot: u16) -> String {
        match number_of_scope(slot) {
            Some(bridge) => format!("bridge {}", self.compiler.bridges.name(bridge)),
            None => self.compiler.vrfs.name(slot).to_owned(),
        }
    }

    /// Name of a zone.
    pub fn zone(&self, zone: u8) -> &'a str {
        match zone {
            SELF => "self",
            zone => self.compiler.policy_slots.zone_name(zone),
        }
    }

    /// Name of a firewall rule.
    pub fn rule(&self, slot: u32) -> &'a str {
        match slot {
            DEFAULT_RULE => "default",
            slot => self.compiler.policy_slots.rules.names().get(slot as usize).map_or("?", String::as_str),
        }
    }

    /// Name of a NAT rule, as `source/NAME`.
    pub fn nat_rule(&self, slot: u16) -> &'a str {
        self.compiler.policy_slots.nat_rules.names().get(usize::from(slot)).map_or("?", String::as_str)
    }

    /// Name of a service.
    pub fn service(&self, slot: u16) -> &'a str {
        self.compiler.policy_slots.services.names().get(usize::from(slot)).map_or("?", String::as_str)
    }

    /// `SERVICE/ADDRESS:PORT`, with `@VRF` unless it is the default one.
    pub fn backend(&self, slot: u32) -> &'a str {
        let name = self.compiler.policy_slots.backends.names().get(slot as usize).map_or("?", String::as_str);
        name.strip_suffix("@default").unwrap_or(name)
    }

    /// The outside addresses of a pool.
    pub fn pool(&self, index: u16) -> String {
        let mut text = String::new();
        for range in self.tables().policy.pools[usize::from(index)].ranges() {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = match range.first == range.last {
                true => write!(text, "{comma}{}", range.first),
                false => write!(text, "{comma}{}-{}", range.first, range.last),
            };
        }
        text
    }

    /// The way a route leads.
    pub fn way(&self, way: &Route) -> String {
        match *way {
            Route::Local => "to the gateway itself".to_owned(),
            Route::Forward { egress, via: None } => {
                format!("out of {}, where the destination is on the link", self.interface(egress))
            }
            Route::Forward { egress, via: Some(hop) } => match number_of(hop) {
                Some(number) => self.delivery(number),
                None => {
                    let (_, address) = self.compiler.neighbours().key_of(hop);
                    format!("out of {}, via {address}", self.interface(egress))
                }
            },
        }
    }

    fn delivery(&self, number: u16) -> String {
        match self.tables().policy.services().delivery(number) {
            Some(to) if to.tunnel.is_some() => format!("through a tunnel to {}", to.addr),
            Some(to) => format!("to the MAC address of {}", to.addr),
            None => "to a backend that is gone".to_owned(),
        }
    }

    /// The route that an address takes in a VRF: its prefix, and where it stands. What the FIB was compiled from; what
    /// came of the lookup is the FIB's word.
    pub fn route(&self, vrf: u16, addr: IpAddr) -> Option<(IpNet, String)> {
        let tables = self.tables();
        let mut best: Option<(IpNet, bool, String)> = None;
        let mut offer = |net: IpNet, is_system: bool, what: &dyn Fn() -> String| {
            let rank = |net: &IpNet, is_system: bool| (net.prefix_len(), is_system);
            if best.as_ref().is_none_or(|(known, system, _)| rank(&net, is_system) > rank(known, *system)) {
                best = Some((net, is_system, what()));
            }
        };
        for interface in tables.interfaces.iter().filter(|interface| interface.vrf == vrf && interface.up) {
            let info = &interface.info;
            let v4 = info.v4.iter().map(|(own, len)| (IpAddr::V4(*own), *len));
            let v6 = info.v6.iter().map(|(own, len)| (IpAddr::V6(*own), *len));
            for (own, len) in v4.chain(v6) {
                if own == addr {
                    offer(own.into(), true, &|| format!("address of interface {}", info.name));
                }
                if let Some(net) = IpNet::new(own, len).ok().filter(|net| net.contains(&addr)) {
                    offer(net.trunc(), true, &|| format!("network of interface {}", info.name));
                }
            }
            if info.routers.iter().any(|router| router.addresses.contains(&addr)) {
                offer(addr.into(), true, &|| format!("virtual router on interface {}", info.name));
            }
        }
        let rib = self.rib;
        let is_active = |target: &Target| match target {
            Target::Via(hops) => hops.iter().any(|hop| self.compiler.is_usable(&tables.interfaces, hop)),
            Target::Vrf(_) | Target::Blackhole | Target::Unreachable => true,
        };
        let says = |target: &Target| match target {
            Target::Via(hops) => {
                let hops: Vec<String> = hops.iter().map(|hop| hop.address.to_string()).collect();
                format!("static route via {}", hops.join(", "))
            }
            Target::Vrf(other) => format!("static route to VRF {}", self.vrf(*other)),
            Target::Blackhole => "static route: blackhole".to_owned(),
            Target::Unreachable => "static route: unreachable".to_owned(),
        };
        if let Some(routes) = rib.routes(vrf) {
            let covering: Vec<(IpNet, u32)> = match IpNet::from(addr) {
                IpNet::V4(host) => routes.v4.cover(&host).map(|(net, id)| (net.into(), *id)).collect(),
                IpNet::V6(host) => routes.v6.cover(&host).map(|(net, id)| (net.into(), *id)).collect(),
            };
            for (net, id) in covering {
                let target = rib.target(id);
                if is_active(target) {
                    offer(net, false, &|| says(target));
                }
            }
        }
        best.map(|(net, _, what)| (net, what))
    }

    /// What a drop reason means.
    pub fn meaning(reason: DropReason) -> (String, String) {
        (reason.name().to_owned(), reason.explanation().to_owned())
    }
}
