//! What no value shows by itself: references, duplicates, overlaps, next hops nobody can reach.

use std::collections::HashMap;
use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::Config;
use super::bridge::End;
use super::sections::{Interface, Port, Route, RouterAdvertisements};
use super::value::{InterfaceName, Mtu, Name, NextHop, Vlan, VrfName, ZoneName};

/// Where a fault stands: under a key of the config, or in a route file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `interface[1].vlan`
    Key(String),
    /// The route with this index in the route file with this index.
    RouteFile { file: usize, route: usize, key: &'static str },
}

/// One fault, not yet tied to a line.
pub(crate) struct Fault {
    pub place: Place,
    pub value: Option<String>,
    pub allowed: String,
}

/// Runs every check; each fault goes to `report`.
pub(crate) fn check(config: &Config, report: &mut dyn FnMut(Fault)) {
    let mut checks = Checks { config, report };
    checks.control();
    checks.names();
    checks.ports();
    let ends = config.ends();
    checks.interfaces(&ends);
    checks.overlays(&ends);
    checks.bridges();
    checks.relays();
    checks.zones();
    checks.overlaps();
    checks.neighbours();
    checks.routes();
    checks.policy();
    checks.roles();
    checks.virtual_routers();
    checks.bfd();
    checks.router_groups();
    checks.asserts();
    config.check_nodes(checks.report);
    checks.pair();
}

pub(super) struct Checks<'a, 'r> {
    pub(super) config: &'a Config,
    report: &'r mut dyn FnMut(Fault),
}

impl<'a, 'r> Checks<'a, 'r> {
    pub(super) fn new(config: &'a Config, report: &'r mut dyn FnMut(Fault)) -> Checks<'a, 'r> {
        Checks { config, report }
    }
}

impl<'a> Checks<'a, '_> {
    pub(super) fn fault(&mut self, key: String, value: impl ToString, allowed: impl Into<String>) {
        let value = Some(value.to_string());
        (self.report)(Fault { place: Place::Key(key), value, allowed: allowed.into() });
    }

    pub(super) fn table_fault(&mut self, key: String, allowed: impl Into<String>) {
        (self.report)(Fault { place: Place::Key(key), value: None, allowed: allowed.into() });
    }

    /// What `bind` would refuse once the gateway starts (unix(7)).
    fn control(&mut self) {
        let socket = &self.config.control.socket;
        if !(1..=107).contains(&socket.as_os_str().len()) {
            self.fault(
                "control.socket".into(),
                socket.display(),
                "the path of a Unix socket has 1 to 107 bytes",
            );
        }
    }

    fn names(&mut self) {
        let config = self.config;
        self.unique("port", config.ports.iter().map(|port| &port.name));
        self.unique("interface", config.interfaces.iter().map(|interface| &interface.name));
        self.unique("vrf", config.vrfs.iter().map(|vrf| &vrf.name));
    }

    pub(super) fn unique(&mut self, table: &str, names: impl Iterator<Item = &'a Name>) {
        let mut first: AHashMap<&Name, usize> = AHashMap::new();
        for (index, name) in names.enumerate() {
            if let Some(other) = first.insert(name, index) {
                self.fault(
                    format!("{table}[{index}].name"),
                    name,
                    format!("already the name of {table}[{other}]"),
                );
                first.insert(name, other);
            }
        }
    }

    fn roles(&mut self) {
        let config = self.config;
        self.unique("role", config.roles.iter().map(|role| &role.name));
        let vrfs: AHashSet<VrfName> = config.vrf_names().into_iter().collect();
        let zones: AHashSet<&ZoneName> = config.zones_of_ends().collect();
        for (index, role) in config.roles.iter().enumerate() {
            if role.uids.is_empty() && role.gids.is_empty() {
                self.table_fault(format!("role[{index}]"), "nobody has it: a role needs uids, gids or both");
            }
            for vrf in role.vrfs.iter().filter(|vrf| !vrfs.contains(*vrf)) {
                self.fault(format!("role[{index}].vrfs"), vrf, "no VRF has this name");
            }
            for zone in role.zones.iter().filter(|zone| !zones.contains(zone)) {
                self.fault(
                    format!("role[{index}].zones"),
                    zone,
                    "no interface, nor a member of a bridge, has this zone",
                );
            }
        }
    }

    fn ports(&mut self) {
        let mut devices = AHashMap::new();
        let mut in_all = 0;
        for (index, port) in self.config.ports.iter().enumerate() {
            match (&port.device, port.devices.is_empty()) {
                (Some(_), true) => {}
                (None, false) if port.lag.is_some() => {}
                (None, false) => self.table_fault(
                    format!("port[{index}].devices"),
                    "devices need lag = \"active-backup\" or \"static\"",
                ),
                _ => self.table_fault(format!("port[{index}]"), "a port has one of: device, devices"),
            }
            if port.lag.is_some() && port.devices.is_empty() {
                self.table_fault(format!("port[{index}].lag"), "lag goes with devices = [...]");
            }
            // Workers and tables keep one bit per device (worker::MAX_MEMBERS).
            if port.devices.len() > Port::MAX_DEVICES {
                self.fault(
                    format!("port[{index}].devices"),
                    port.devices.len(),
                    format!("a LAG has at most {} devices", Port::MAX_DEVICES),
                );
            }
            let before = in_all;
            in_all += port.all_devices().count();
            let most = Port::MAX_DEVICES_IN_ALL;
            if before <= most && in_all > most {
                let allowed =
                    format!("with this port there are {in_all} devices; at most {most} of all ports");
                self.fault(format!("port[{index}]"), &port.name, allowed);
            }
            for device in port.all_devices() {
                if let Some(other) = devices.insert(device, index) {
                    let key = if port.device.is_some() { "device" } else { "devices" };
                    self.fault(
                        format!("port[{index}].{key}"),
                        device,
                        format!("the device is already used by port[{other}]"),
                    );
                }
            }
        }
    }

    fn interfaces(&mut self, ends: &[End]) {
        let ports: AHashSet<&Name> = self.config.ports.iter().map(|port| &port.name).collect();
        let mut tags: AHashMap<(&Name, Option<Vlan>), &Interface> = AHashMap::new();
        for End { key: end, interface, .. } in ends {
            let key = |key: &str| format!("{end}.{key}");
            let Some(port) = self.port_of(end, interface) else {
                self.interface_addresses(end, interface);
                continue;
            };
            if !ports.contains(port) {
                let known = list(self.config.ports.iter().map(|port| &port.name));
                self.fault(key("port"), port, format!("no such port; known: {known}"));
            }
            if let Some(other) = tags.insert((port, interface.vlan), interface) {
                let other = &other.name;
                match interface.vlan {
                    Some(vlan) => self.fault(
                        key("vlan"),
                        vlan,
                        format!("interface {other} already has this VLAN of port {port}"),
                    ),
                    None => self.fault(
                        key("port"),
                        port,
                        format!("interface {other} is already its untagged one"),
                    ),
                }
            }
            if interface.tpid.is_some() && !matches!(interface.vlan, Some(Vlan::QinQ { .. })) {
                self.table_fault(key("tpid"), "tpid goes with a QinQ pair, vlan = [outer, inner]");
            }
            self.interface_addresses(end, interface);
        }
    }

    fn interface_addresses(&mut self, end: &str, interface: &Interface) {
        let has_ipv6 = interface.addresses.iter().any(|address| address.address().is_ipv6());
        let mtu = interface.mtu(&self.config.interfaces);
        if has_ipv6 && mtu < Mtu::IPV6_LEAST {
            let mtu = mtu.bytes();
            self.fault(format!("{end}.mtu"), mtu, "IPv6 needs an MTU of 1280 or more (RFC 8200 section 5)");
        }
        if matches!(interface.router_advertisements, RouterAdvertisements::On { .. }) && !has_ipv6 {
            let key = format!("{end}.router_advertisements");
            self.table_fault(key, "router advertisements need an IPv6 address on the interface");
        }
    }

    /// DESIGN section 3: between an interface with a zone and one without, what is stateful? Ask.
    fn zones(&mut self) {
        let mut first: AHashMap<&VrfName, &Interface> = AHashMap::new();
        let mut reported: AHashSet<&VrfName> = AHashSet::new();
        for (index, interface) in self.config.interfaces.iter().enumerate() {
            let other = *first.entry(&interface.vrf).or_insert(interface);
            let stateless = self.config.vrfs.iter().any(|vrf| vrf.name == interface.vrf && vrf.stateless);
            if other.zone.is_some() != interface.zone.is_some()
                && !stateless
                && reported.insert(&interface.vrf)
            {
                let (vrf, this, that) = (&interface.vrf, &interface.name, &other.name);
                let (with, without) = if interface.zone.is_some() { (this, that) } else { (that, this) };
                let allowed = format!(
                    "VRF {vrf} mixes interfaces with a zone ({with}) and without ({without}): give all of them a zone, \
                     or write [[vrf]] name = \"{vrf}\", stateless = true"
                );
                self.table_fault(format!("interface[{index}].zone"), allowed);
            }
        }
    }

    /// Networks of different interfaces of a VRF may not overlap; an address may not stand twice.
    fn overlaps(&mut self) {
        let mut by_vrf: HashMap<&VrfName, Vec<(IpNet, usize, usize)>> = HashMap::new();
        for (index, interface) in self.config.interfaces.iter().enumerate() {
            let mut seen = AHashSet::new();
            for (at, address) in interface.addresses.iter().enumerate() {
                if !seen.insert(address.address()) {
                    let key = format!("interface[{index}].addresses[{at}]");
                    self.fault(key, address, "the address stands there twice");
                } else if is_link_local(address.address()) {
                    // A shorter prefix would take in addresses of others.
                    let (shortest, allowed) = match address.address() {
                        IpAddr::V4(_) => {
                            (16, "link-local addresses are in 169.254.0.0/16 (RFC 3927): write /16")
                        }
                        IpAddr::V6(_) => (10, "link-local addresses are in fe80::/10 (RFC 4291): write /64"),
                    };
                    if address.connected().prefix_len() < shortest {
                        self.fault(format!("interface[{index}].addresses[{at}]"), address, allowed);
                    }
                } else {
                    by_vrf.entry(&interface.vrf).or_default().push((address.connected(), index, at));
                }
            }
        }
        let mut clashes = Vec::new();
        for networks in by_vrf.values_mut() {
            // Prefixes nest or are disjoint: sorted, the ones around the current one are a stack.
            networks.sort_unstable_by_key(|(net, index, _)| (net.addr(), net.prefix_len(), *index));
            let mut around: Vec<(IpNet, usize, usize)> = Vec::new();
            for &(net, index, at) in networks.iter() {
                while around.last().is_some_and(|(outer, ..)| !outer.contains(&net)) {
                    around.pop();
                }
                if let Some(&(outer, other, other_at)) =
                    around.iter().rev().find(|(_, other, _)| *other != index)
                {
                    // The later one of the file is at fault.
                    let (at_fault, with) = match index > other {
                        true => ((index, at), (outer, other)),
                        false => ((other, other_at), (net, index)),
                    };
                    clashes.push((at_fault, with));
                }
                around.push((net, index, at));
            }
        }
        clashes.sort_unstable();
        for ((index, at), (net, other)) in clashes {
            let interface = &self.config.interfaces[index];
            let other = &self.config.interfaces[other].name;
            let allowed = format!("overlaps {net} of interface {other} in VRF {}", interface.vrf);
            self.fault(format!("interface[{index}].addresses[{at}]"), interface.addresses[at], allowed);
        }
    }

    fn neighbours(&mut self) {
        let interfaces: AHashMap<&Name, &Interface> =
            self.config.interfaces.iter().rev().map(|interface| (&interface.name, interface)).collect();
        let mut seen = AHashMap::new();
        for (index, neighbour) in self.config.neighbours.iter().enumerate() {
            let key = |key: &str| format!("neighbour[{index}].{key}");
            let Some(interface) = interfaces.get(&neighbour.interface) else {
                let known = list(self.config.interfaces.iter().map(|interface| &interface.name));
                self.fault(
                    key("interface"),
                    &neighbour.interface,
                    format!("no such interface; known: {known}"),
                );
                continue;
            };
            let address = neighbour.address;
            if let Err(why) = check_neighbour(interface, address) {
                self.fault(key("address"), address, why);
            }
            if let Err(why) = super::check_overlay::check_remote(interface, neighbour.remote) {
                match neighbour.remote {
                    Some(remote) => self.fault(key("remote"), remote, why),
                    None => self.table_fault(key("remote"), why),
                }
            }
            if let Some(other) = seen.insert((&neighbour.interface, address), index) {
                self.fault(key("address"), address, format!("already the address of neighbour[{other}]"));
            }
        }
    }

    fn routes(&mut self) {
        let config = self.config;
        let mut links = Links::new(config);
        for (index, route_file) in config.route_files.iter().enumerate() {
            if let Err(why) = links.check_vrf(&route_file.vrf) {
                self.fault(format!("route_file[{index}].vrf"), &route_file.vrf, why);
            }
        }
        let count = config.all_routes().count();
        let mut seen: AHashSet<(u32, IpNet)> = AHashSet::with_capacity(count);
        let tables = std::iter::once((None, &config.routes[..])).chain(
            config.route_files.iter().enumerate().map(|(file, table)| (Some(file), &table.routes[..])),
        );
        for (file, routes) in tables {
            for (index, route) in routes.iter().enumerate() {
                let mut wrong = links.check_route(route).err();
                let vrf = links.vrf_index(&route.vrf);
                if wrong.is_none() && vrf.is_some_and(|vrf| !seen.insert((vrf, route.prefix.net()))) {
                    let allowed = format!("VRF {} already has a route to it", route.vrf);
                    wrong = Some(("prefix", route.prefix.to_string(), allowed));
                }
                let Some((key, value, allowed)) = wrong else { continue };
                let place = match file {
                    None => Place::Key(format!("route[{index}].{key}")),
                    Some(file) => Place::RouteFile { file, route: index, key },
                };
                (self.report)(Fault { place, value: Some(value), allowed });
            }
        }
    }
}

/// What routes are checked against: the VRFs and their connected networks. Also for routes that
/// arrive later, one by one.
pub struct Links<'a> {
    vrfs: AHashMap<&'a str, u32>,
    connected: Vec<Vec<Connected<'a>>>,
    interfaces: &'a [Interface],
    /// Full tables name few next hops very often.
    judged: AHashMap<(u32, IpAddr), Result<(), String>>,
}

struct Connected<'a> {
    net: IpNet,
    own: IpAddr,
    interface: &'a Interface,
}

impl<'a> Links<'a> {
    /// Gathers what `config` connects to.
    pub fn new(config: &'a Config) -> Links<'a> {
        let mut links = Links {
            vrfs: AHashMap::new(),
            connected: Vec::new(),
            interfaces: &config.interfaces,
            judged: AHashMap::new(),
        };
        let declared = config.vrfs.iter().map(|vrf| &vrf.name);
        links.add_vrf("default");
        for name in declared.chain(config.interfaces.iter().map(|interface| &interface.vrf)) {
            links.add_vrf(name.as_str());
        }
        for interface in &config.interfaces {
            let vrf = links.add_vrf(interface.vrf.as_str());
            for address in &interface.addresses {
                let connected = Connected { net: address.connected(), own: address.address(), interface };
                links.connected[vrf as usize].push(connected);
            }
        }
        links
    }

    fn add_vrf(&mut self, name: &'a str) -> u32 {
        let next = self.vrfs.len() as u32; // at most one per line of the config
        let index = *self.vrfs.entry(name).or_insert(next);
        if index == next {
            self.connected.push(Vec::new());
        }
        index
    }

    fn vrf_index(&self, name: &VrfName) -> Option<u32> {
        self.vrfs.get(name.as_str()).copied()
    }

    fn check_vrf(&self, name: &VrfName) -> Result<(), String> {
        match self.vrf_index(name) {
            Some(_) => Ok(()),
            None => {
                let mut known: Vec<&str> = self.vrfs.keys().copied().collect();
                known.sort_unstable();
                Err(format!("no such VRF; known: {}", list(known.iter())))
            }
        }
    }

    /// Whether a route fits the interfaces: `Err((key, value, what is allowed))`. Duplicates are the
    /// caller's to find: it has the table.
    pub fn check_route(&mut self, route: &Route) -> Result<(), (&'static str, String, String)> {
        self.check_vrf(&route.vrf).map_err(|why| ("vrf", route.vrf.to_string(), why))?;
        let prefix = route.prefix.net();
        let vrf = self.vrf_index(&route.vrf).unwrap_or_else(|| unreachable!("checked above"));
        if let Some(connected) = self.connected[vrf as usize].iter().find(|connected| connected.net == prefix)
        {
            let allowed = format!("the connected network of interface {}", connected.interface.name);
            return Err(("prefix", prefix.to_string(), allowed));
        }
        for next_hop in route.target.next_hops() {
            if next_hop.address.is_ipv4() != prefix.addr().is_ipv4() {
                let family = if prefix.addr().is_ipv4() { "an IPv4" } else { "an IPv6" };
                return Err(("via", next_hop.to_string(), format!("{family} route needs {family} next hop")));
            }
            self.check_next_hop(next_hop, vrf).map_err(|why| ("via", next_hop.to_string(), why))?;
        }
        Ok(())
    }

    fn check_next_hop(&mut self, next_hop: &NextHop, route_vrf: u32) -> Result<(), String> {
        let vrf = match &next_hop.vrf {
            None => route_vrf,
            Some(name) => {
                self.check_vrf(name)?;
                self.vrf_index(name).unwrap_or_else(|| unreachable!("checked above"))
            }
        };
        if let Some(interface) = &next_hop.interface {
            return self.judge_link_local(next_hop.address, interface, vrf);
        }
        if let Some(judged) = self.judged.get(&(vrf, next_hop.address)) {
            return judged.clone();
        }
        let judged = self.judge_next_hop(next_hop.address, vrf);
        // Bounded: a file of a million wrong next hops must not be remembered twice.
        if self.judged.len() < 100_000 {
            self.judged.insert((vrf, next_hop.address), judged.clone());
        }
        judged
    }

    /// A router that is known by its link-local address, as RFC 4861 section 8 wants routers to know each other.
    fn judge_link_local(&self, address: IpAddr, name: &InterfaceName, vrf: u32) -> Result<(), String> {
        let Some(interface) = self.interfaces.iter().find(|interface| interface.name == *name) else {
            let known = list(self.interfaces.iter().map(|interface| &interface.name));
            return Err(format!("no such interface; known: {known}"));
        };
        if self.vrf_index(&interface.vrf) != Some(vrf) {
            let is_in = &interface.vrf;
            return Err(format!(
                "interface {name} is in VRF {is_in}: write {address}%{name}@{is_in} to leak into it"
            ));
        }
        if !interface.addresses.iter().any(|own| own.address().is_ipv6()) {
            return Err(format!("interface {name} has no IPv6 address, so nobody can be asked there"));
        }
        match interface.addresses.iter().any(|own| own.address() == address) {
            true => Err(format!("the gateway's own address on interface {name}")),
            false => Ok(()),
        }
    }

    fn judge_next_hop(&self, address: IpAddr, vrf: u32) -> Result<(), String> {
        let connected = &self.connected[vrf as usize];
        if let Some(own) = connected.iter().find(|connected| connected.own == address) {
            return Err(format!("the gateway's own address on interface {}", own.interface.name));
        }
        match connected.iter().find(|connected| connected.net.contains(&address)) {
            Some(connected) if is_network_or_broadcast(address, connected.net) => {
                Err(format!("the network or broadcast address of interface {}", connected.interface.name))
            }
            Some(_) => Ok(()),
            None => {
                let vrf = self.vrfs.iter().find(|(_, index)| **index == vrf).map_or("", |(name, _)| name);
                let mut known = list(connected.iter().map(|connected| connected.net));
                if known.is_empty() {
                    known = "nothing".into();
                }
                Err(format!("not on the link of any interface of VRF {vrf}, which connects to {known}"))
            }
        }
    }
}

/// Whether `address` may be a static neighbour on `interface`.
pub fn check_neighbour(interface: &Interface, address: IpAddr) -> Result<(), String> {
    if interface.addresses.iter().any(|own| own.address() == address) {
        return Err(format!("the gateway's own address on interface {}", interface.name));
    }
    if address.is_multicast() || address.is_unspecified() || address.is_loopback() {
        return Err("a neighbour has a unicast address".into());
    }
    // Every IPv6 host has a link-local address, also where the gateway's is not written down.
    if address.is_ipv6() && is_link_local(address) {
        return Ok(());
    }
    let on_link = interface.addresses.iter().find(|own| own.net().contains(&address));
    match on_link {
        Some(own) if is_network_or_broadcast(address, own.connected()) => {
            Err(format!("the network or broadcast address of {}", own.connected()))
        }
        Some(_) => Ok(()),
        None => {
            let known = list(interface.addresses.iter().map(|own| own.connected()));
            let known = if known.is_empty() { "nothing".into() } else { known };
            Err(format!("not on the link of interface {}, which connects to {known}", interface.name))
        }
    }
}

pub(super) fn is_network_or_broadcast(address: IpAddr, net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() < 31 && (address == net.network() || address == net.broadcast()),
        IpNet::V6(net) => net.prefix_len() < 127 && address == net.network(),
    }
}

pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The first few, comma separated.
pub(super) fn list<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let mut words: Vec<String> = items.take(9).map(|item| item.to_string()).collect();
    if words.len() > 8 {
        words[8] = "...".into();
    }
    words.join(", ")
}
