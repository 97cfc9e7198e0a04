//! What no value of `[[service]]` shows by itself.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::Config;
use super::addresses::{AddressRange, NatPool, NatTarget};
use super::balance::{BackendTunnel, BalanceMode, VirtualService};
use super::check::{Checks, Fault, Place};
use super::check_policy::{UNICAST, is_unicast};
use super::service::{PortRange, Service};
use super::value::{InterfaceAddress, VrfName};

/// Bytes of the tables of all services together.
const MAX_TABLE_BYTES: usize = 512 << 20;
/// Places of a table of few and of many backends, two bytes each (`tables::balance::maglev`).
const PLACES: [usize; 2] = [4_099, 65_537];
/// Source ports of health checks (`host::probe::PORTS`).
const PROBE_PORTS: (u16, u16) = (61_000, 65_535);
/// Backends of all services together.
const MAX_BACKENDS: usize = 500_000;

/// Checks one service against the config it is to be in: the first fault.
pub fn check_service(config: &Config, service: &VirtualService) -> Result<(), String> {
    let mut first: Option<String> = None;
    let mut report = |fault: Fault| {
        let Place::Key(key) = fault.place else { unreachable!("a service is in no route file") };
        let value = fault.value.map(|value| format!(" {value}:")).unwrap_or_default();
        first.get_or_insert(format!("{key}:{value} {}", fault.allowed));
    };
    let mut checks = Checks::new(config, &mut report);
    let vrfs = config.vrf_names();
    checks.service(&vrfs, &format!("service {}", service.name), service);
    first.map_or(Ok(()), Err)
}

/// What all services together may take: the first fault.
pub fn check_services(services: &[Arc<VirtualService>]) -> Result<(), String> {
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    if backends > MAX_BACKENDS {
        return Err(format!("at most {MAX_BACKENDS} backends in all services, not {backends}"));
    }
    let bytes: usize =
        services.iter().map(|service| 2 * PLACES[usize::from(service.backends.len() > 40)]).sum();
    if bytes > MAX_TABLE_BYTES {
        return Err(format!(
            "the tables of all services would take {} MiB, at most {}: let services with more than 40 backends be fewer",
            bytes >> 20,
            MAX_TABLE_BYTES >> 20
        ));
    }
    Ok(())
}

impl<'a> Checks<'a, '_> {
    pub(super) fn services(&mut self) {
        let services = &self.config.services;
        if services.is_empty() {
            return;
        }
        self.unique("service", services.iter().map(|service| &service.name));
        if services.len() > VirtualService::MAX_SERVICES {
            let allowed = format!("at most {}, not {}", VirtualService::MAX_SERVICES, services.len());
            self.table_fault("service".into(), allowed);
        }
        let vrfs = self.config.vrf_names();
        for (index, service) in services.iter().enumerate() {
            self.service(&vrfs, &format!("service[{index}]"), service);
        }
        if let Err(allowed) = check_services(services) {
            self.table_fault("service".into(), allowed);
        }
        self.same_services();
        if services.iter().any(|service| service.health.is_some()) {
            self.ports_of_probes();
        }
    }

    /// Answers to probes come to the gateway's own addresses: NAT that has one of those must leave them their ports.
    fn ports_of_probes(&mut self) {
        let config = self.config;
        let own = |range: &AddressRange, vrf: &VrfName| {
            let mut interfaces = config.interfaces.iter().filter(|interface| interface.vrf == *vrf);
            interfaces.any(|interface| interface.addresses.iter().any(|own| range.contains(own.address())))
        };
        for (index, rule) in config.nat.sources.iter().enumerate() {
            let Some(ports) = rule.ports.filter(|ports| ports.last() >= PROBE_PORTS.0) else { continue };
            let shares = rule.pool.as_ref().is_some_and(|pool| match pool {
                NatPool::Interface => true,
                NatPool::Addresses(ranges) => ranges.iter().any(|range| own(range, &rule.vrf)),
            });
            if shares {
                let allowed = format!(
                    "health checks have the ports {} to {} of the gateway's own addresses",
                    PROBE_PORTS.0, PROBE_PORTS.1
                );
                self.fault(format!("nat.source[{index}].ports"), ports, allowed);
            }
        }
    }

    fn service(&mut self, vrfs: &[VrfName], key: &str, service: &VirtualService) {
        let unknown = |vrf: &VrfName| !vrfs.contains(vrf);
        if unknown(&service.vrf) {
            self.fault(format!("{key}.vrf"), &service.vrf, "no interface and no [[vrf]] has this name");
        }
        let mut interfaces = self.config.interfaces.iter();
        if !interfaces.any(|interface| interface.vrf == service.vrf && interface.zone.is_some()) {
            let allowed = "no interface of its VRF has a zone: only what comes from a zone has sessions";
            self.fault(format!("{key}.vrf"), &service.vrf, allowed);
        }
        if service.address.net().is_none() {
            self.fault(format!("{key}.address"), service.address, "an address or one prefix");
        } else if !is_unicast(service.address.first()) || !is_unicast(service.address.last()) {
            self.fault(format!("{key}.address"), service.address, UNICAST);
        }
        let served = service.service.as_deref().unwrap_or(&[Service::ANY]);
        for (at, served) in served.iter().enumerate() {
            let key = format!("{key}.service[{at}]");
            if served.icmp_type().is_some() {
                self.fault(key, served, "a service takes all of a protocol, or ports of it");
            }
        }
        if served == [Service::ANY] && self.is_own(service) {
            let allowed = "also an address of the gateway's own: name what is served, service = \"tcp/443\"";
            self.fault(format!("{key}.address"), service.address, allowed);
        }
        if service.backends.len() > VirtualService::MAX_BACKENDS {
            let allowed = format!("at most {}, not {}", VirtualService::MAX_BACKENDS, service.backends.len());
            self.table_fault(format!("{key}.backends"), allowed);
        }
        if let Some(check) = &service.health {
            let mut faults = Vec::new();
            for from in check.from.as_deref().unwrap_or_default() {
                let mut interfaces = self.config.interfaces.iter();
                let is_own = |own: &InterfaceAddress| own.address() == from.0;
                if !interfaces.any(|interface| interface.addresses.iter().any(is_own)) {
                    let allowed = "no interface has this address";
                    faults.push((format!("{key}.health.from"), Some(from.0.to_string()), allowed.to_owned()));
                }
            }
            check.check(&mut |name, value, allowed| {
                faults.push((format!("{key}.health.{name}"), value, allowed))
            });
            let has_port = check.port.is_some()
                || served.iter().all(|served| served.ports().is_some())
                || service.backends.iter().all(|backend| backend.address.port.is_some());
            if check.kind.has_port() && !has_port {
                let allowed = "which port is to be asked? neither the service nor its backends name one";
                faults.push((format!("{key}.health.port"), None, allowed.to_owned()));
            }
            for (key, value, allowed) in faults {
                match value {
                    Some(value) => self.fault(key, value, allowed),
                    None => self.table_fault(key, allowed),
                }
            }
        } else if service.slow_start_s.is_some() && service.passive_checks.is_none() {
            self.table_fault(
                format!("{key}.slow_start_s"),
                "only who is checked comes back: say health = ... or passive_checks = ...",
            );
        }
        if service.passive_checks.is_some() && service.mode.is_dsr() {
            let allowed = format!("with mode {} answers go past the gateway", service.mode.name());
            self.table_fault(format!("{key}.passive_checks"), allowed);
        }
        if service.by_client && service.affinity.is_some() {
            self.table_fault(format!("{key}.by_client"), "affinity is by client: leave it out");
        }
        if let Some(tunnel) = &service.tunnel {
            self.tunnel(key, service, tunnel);
        }
        let one_port = |served: &Service| served.ports().is_some_and(|ports| ports.first() == ports.last());
        let mut seen = AHashSet::with_capacity(service.backends.len());
        for (at, backend) in service.backends.iter().enumerate() {
            let key = format!("{key}.backends[{at}]");
            let address = backend.address;
            if address.address.is_ipv4() != service.address.is_ipv4() && !service.mode.has_tunnel() {
                let allowed = "a backend is of the family of its service's address";
                self.fault(format!("{key}.address"), address, allowed);
            } else if !is_unicast(address.address) {
                self.fault(format!("{key}.address"), address, UNICAST);
            } else if service.has(address.address) && *service.vrf_of(backend) == service.vrf {
                self.fault(format!("{key}.address"), address, "the address of the service itself");
            }
            if let Some(vrf) = backend.vrf.as_ref().filter(|vrf| unknown(vrf)) {
                self.fault(format!("{key}.vrf"), vrf, "no interface and no [[vrf]] has this name");
            }
            if service.mode.is_dsr() {
                self.delivered(&key, service, address, service.vrf_of(backend));
            }
            if let Some(port) = address.port {
                let others = served.iter().find(|served| !one_port(served));
                // RFC 9260 section 6.8: its checksum is over the ports, and not ours to mend.
                let is_sctp = |served: &&Service| served.protocol() == Some(132) && !is_port(served, port);
                if let Some(served) = others {
                    let allowed = format!(
                        "a backend with a port needs services of one port each, tcp/443; this one is {served}"
                    );
                    self.fault(format!("{key}.address"), address, allowed);
                } else if served.iter().any(|served| is_sctp(&served)) {
                    let allowed = "SCTP keeps its port: leave the backend's out";
                    self.fault(format!("{key}.address"), address, allowed);
                }
            }
            if !seen.insert((backend.address, service.vrf_of(backend))) {
                self.fault(format!("{key}.address"), backend.key(), "the service has this backend already");
            }
        }
    }

    fn tunnel(&mut self, key: &str, service: &VirtualService, tunnel: &BackendTunnel) {
        let of_gue = [
            ("port", tunnel.port.is_some()),
            ("variant", tunnel.variant.is_some()),
            ("udp_checksum", tunnel.udp_checksum.is_some()),
        ];
        if !service.mode.has_tunnel() {
            let allowed = format!("goes with mode ipip or gue; this one is {}", service.mode.name());
            self.table_fault(format!("{key}.tunnel"), allowed);
        } else if service.mode != BalanceMode::Gue {
            for (name, _) in of_gue.iter().filter(|(_, said)| *said) {
                self.table_fault(
                    format!("{key}.tunnel.{name}"),
                    "goes with mode gue: there is no UDP header else",
                );
            }
        }
        let Some(source) = tunnel.source.as_ref().map(|source| source.0) else { return };
        if !is_unicast(source) {
            self.fault(format!("{key}.tunnel.source"), source, UNICAST);
        } else if service.backends.iter().any(|backend| backend.address.address.is_ipv4() != source.is_ipv4())
        {
            let allowed = "of the family of the backends' addresses, all of them";
            self.fault(format!("{key}.tunnel.source"), source, allowed);
        }
    }

    /// A backend that sees packets as they come: they have the service's port, and have to find it.
    fn delivered(&mut self, key: &str, service: &VirtualService, address: NatTarget, vrf: &VrfName) {
        let served = service.service.as_deref().unwrap_or(&[Service::ANY]);
        let mode = service.mode.name();
        if address.port.is_some_and(|port| !served.iter().all(|served| is_port(served, port))) {
            let allowed =
                format!("with mode {mode} packets keep the service's port: leave the backend's out");
            self.fault(format!("{key}.address"), address, allowed);
        }
        let interfaces = &self.config.interfaces;
        let on = |own: &InterfaceAddress| own.net().contains(&address.address);
        let is_own = |own: &InterfaceAddress| own.address() == address.address;
        let of_vrf = || interfaces.iter().filter(|interface| interface.vrf == *vrf);
        if of_vrf().any(|interface| interface.addresses.iter().any(is_own)) {
            let allowed = "an address of the gateway's own: nobody there takes it";
            self.fault(format!("{key}.address"), address, allowed);
        } else if service.mode == BalanceMode::L2Dsr
            // By a route that says "as that VRF does" it may be on another's link.
            && !interfaces.iter().any(|interface| interface.addresses.iter().any(on))
        {
            let allowed =
                "with mode l2-dsr a backend is in a network of an interface: nobody else has its MAC address";
            self.fault(format!("{key}.address"), address, allowed);
        }
    }

    /// True if the service's address is one of ours.
    fn is_own(&self, service: &VirtualService) -> bool {
        let mut interfaces = self.config.interfaces.iter().filter(|interface| interface.vrf == service.vrf);
        interfaces.any(|interface| interface.addresses.iter().any(|own| service.has(own.address())))
    }

    /// Of two services, or a service and a destination NAT, for the same packets the second would never be used.
    fn same_services(&mut self) {
        type Place<'a> = (&'a VrfName, AddressRange, Option<u8>);
        let config = self.config;
        let mut taken: AHashMap<Place<'a>, Vec<(PortRange, usize)>> = AHashMap::new();
        for (index, service) in config.services.iter().enumerate() {
            for (protocol, ports) in service.served() {
                let place = (&service.vrf, service.address, protocol);
                taken.entry(place).or_default().push((ports.unwrap_or(PortRange::ALL), index));
            }
        }
        let mut faults: Vec<(usize, usize)> = Vec::new();
        for ranges in taken.values_mut() {
            ranges.sort_unstable();
            // A protocol as a whole steps back behind its ports; only two wholes are the same.
            let (whole, some): (Vec<_>, Vec<_>) =
                ranges.iter().partition(|(ports, _)| *ports == PortRange::ALL);
            let mut widest: Option<(PortRange, usize)> = None;
            for this in some.into_iter().copied() {
                if let Some(other) = widest.filter(|(other, _)| this.0.first() <= other.last()) {
                    faults.push((this.1.max(other.1), this.1.min(other.1)));
                }
                if widest.is_none_or(|(other, _)| other.last() < this.0.last()) {
                    widest = Some(this);
                }
            }
            faults.extend(whole.windows(2).map(|pair| (pair[1].1, pair[0].1)));
        }
        faults.sort_unstable();
        faults.dedup();
        for (index, other) in faults {
            let (service, other) = (&config.services[index], &config.services[other].name);
            let allowed =
                format!("{other} already takes these packets; let them differ in address or service");
            self.fault(format!("service[{index}].service"), &service.name, allowed);
        }
        for (index, rule) in config.nat.destinations.iter().enumerate() {
            let served = rule.service.as_deref().unwrap_or(&[Service::ANY]);
            let same = served.iter().find_map(|served| {
                let place = (&rule.vrf, AddressRange::from(rule.address), served.protocol());
                let ports = served.ports().unwrap_or(PortRange::ALL);
                let meets = |(other, _): &&(PortRange, usize)| match ports == PortRange::ALL {
                    true => *other == PortRange::ALL,
                    false => {
                        *other != PortRange::ALL
                            && other.first() <= ports.last()
                            && ports.first() <= other.last()
                    }
                };
                taken.get(&place)?.iter().find(meets).map(|(_, service)| *service)
            });
            if let Some(service) = same {
                let allowed =
                    format!("service {} already takes these packets", config.services[service].name);
                self.fault(format!("nat.destination[{index}].service"), &rule.name, allowed);
            }
        }
    }
}

fn is_port(served: &Service, port: u16) -> bool {
    served.ports().is_some_and(|ports| ports.first() == port && ports.last() == port)
}
