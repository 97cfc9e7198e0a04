//! What no value of `dhcp_relay` and `dhcpv6_relay` shows by itself.

use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};

use super::check::{Checks, list};
use super::check_policy::{UNICAST, is_unicast};
use super::dhcp::{AnyRelay, DhcpRelay, MAX_SERVERS, Option82};
use super::sections::Interface;
use super::value::VrfName;

/// The addresses of an interface that a relay may be known by, of one family.
fn usable(interface: &Interface, is_v4: bool) -> impl Iterator<Item = IpAddr> {
    interface
        .addresses
        .iter()
        .map(|own| own.address())
        .filter(move |own| own.is_ipv4() == is_v4 && is_routed(*own))
}

fn is_routed(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_unicast_link_local(),
    }
}

impl Interface {
    /// What is said of relaying on it, of both families.
    pub(super) fn relays(&self) -> impl Iterator<Item = AnyRelay<'_>> {
        let name = self.name.as_str().as_bytes();
        let v4 = self.dhcp_relay.as_ref().map(|relay| AnyRelay {
            key: "dhcp_relay",
            is_v4: true,
            servers: relay.servers.iter().map(|server| IpAddr::V4(*server)).collect(),
            vrf: relay.vrf.as_ref().unwrap_or(&self.vrf),
            source: relay.source.map(IpAddr::V4),
            // What is kept of a switch's says nothing of our interfaces.
            id: (!matches!(relay.option82, Option82::Off | Option82::Keep))
                .then(|| relay.circuit_id.as_ref().map_or(name, |id| id.bytes())),
        });
        let v6 = self.dhcpv6_relay.as_ref().map(|relay| AnyRelay {
            key: "dhcpv6_relay",
            is_v4: false,
            servers: relay.servers.iter().map(|server| IpAddr::V6(*server)).collect(),
            vrf: relay.vrf.as_ref().unwrap_or(&self.vrf),
            source: relay.source.map(IpAddr::V6),
            id: Some(relay.interface_id.as_ref().map_or(name, |id| id.bytes())),
        });
        v4.into_iter().chain(v6)
    }

    /// The address that a relay on it is known by, as configured or the interface's first.
    pub(crate) fn relay_source(&self, is_v4: bool, configured: Option<IpAddr>) -> Option<IpAddr> {
        configured.or_else(|| usable(self, is_v4).next())
    }
}

impl Checks<'_, '_> {
    /// Servers that can be, and replies that find their way back.
    pub(super) fn relays(&mut self) {
        let config = self.config;
        if !config.interfaces.iter().any(|interface| interface.relays().next().is_some()) {
            return;
        }
        let vrfs = config.vrf_names();
        let mut own: AHashMap<&VrfName, AHashSet<IpAddr>> = AHashMap::new();
        for interface in &config.interfaces {
            own.entry(&interface.vrf)
                .or_default()
                .extend(interface.addresses.iter().map(|own| own.address()));
        }
        let mut ids: AHashMap<(&VrfName, IpAddr, &[u8]), usize> = AHashMap::new();
        for (index, interface) in config.interfaces.iter().enumerate() {
            if let Some(relay) = &interface.dhcp_relay {
                self.option82(&format!("interface[{index}].dhcp_relay"), interface, relay);
            }
            for relay in interface.relays() {
                let key = format!("interface[{index}].{}", relay.key);
                if !vrfs.contains(relay.vrf) {
                    let allowed = format!("no such VRF; known: {}", list(vrfs.iter()));
                    self.fault(format!("{key}.vrf"), relay.vrf, allowed);
                    continue;
                }
                self.servers(&key, &relay, own.get(relay.vrf));
                let family = if relay.is_v4 { "an IPv4" } else { "a global IPv6" };
                let Some(link) = interface.relay_source(relay.is_v4, None) else {
                    let allowed =
                        format!("a relay needs {family} address on its interface: servers choose by it");
                    self.table_fault(key, allowed);
                    continue;
                };
                let Some(source) = relay.source else {
                    if *relay.vrf != interface.vrf {
                        let allowed = format!(
                            "the servers are in another VRF than the interface: say which address of the gateway in VRF {} they answer to, {key}.source",
                            relay.vrf
                        );
                        self.table_fault(key, allowed);
                    } else {
                        self.unique_id(&mut ids, index, &relay, link);
                    }
                    continue;
                };
                if !own.get(relay.vrf).is_some_and(|own| own.contains(&source)) || !is_routed(source) {
                    let allowed = format!("not an address of the gateway in VRF {}", relay.vrf);
                    self.fault(format!("{key}.source"), source, allowed);
                } else {
                    self.unique_id(&mut ids, index, &relay, source);
                }
            }
        }
    }

    /// Replies to one address of ours are told apart by what they echo.
    fn unique_id<'a>(
        &mut self,
        ids: &mut AHashMap<(&'a VrfName, IpAddr, &'a [u8]), usize>,
        index: usize,
        relay: &AnyRelay<'a>,
        source: IpAddr,
    ) {
        let interfaces = &self.config.interfaces;
        let Some(id) = relay.id else { return };
        if let Some(other) = ids.insert((relay.vrf, source, id), index) {
            let (word, other) =
                (if relay.is_v4 { "circuit_id" } else { "interface_id" }, &interfaces[other].name);
            let allowed = format!(
                "interface {other} relays by {source} with the same {word}: replies could not be told apart"
            );
            self.table_fault(format!("interface[{index}].{}.{word}", relay.key), allowed);
        }
    }

    fn servers(&mut self, key: &str, relay: &AnyRelay<'_>, own: Option<&AHashSet<IpAddr>>) {
        if relay.servers.is_empty() || relay.servers.len() > MAX_SERVERS {
            let allowed =
                format!("a relay has 1 to {MAX_SERVERS} servers: each gets a copy of every request");
            self.fault(format!("{key}.servers"), relay.servers.len(), allowed);
        }
        let mut seen = AHashSet::new();
        for (at, server) in relay.servers.iter().enumerate() {
            let key = format!("{key}.servers[{at}]");
            if !is_unicast(*server) || !is_routed(*server) {
                self.fault(key, server, UNICAST);
            } else if own.is_some_and(|own| own.contains(server)) {
                self.fault(key, server, format!("the gateway's own address in VRF {}", relay.vrf));
            } else if !seen.insert(server) {
                self.fault(key, server, "the address stands there twice");
            }
        }
    }

    fn option82(&mut self, key: &str, interface: &Interface, relay: &DhcpRelay) {
        let with = [
            ("circuit_id", relay.circuit_id.is_some()),
            ("remote_id", relay.remote_id.is_some()),
            ("server_id_override", relay.server_id_override),
        ];
        if relay.option82 == Option82::Off {
            for (name, _) in with.iter().filter(|(_, is_there)| *is_there) {
                let allowed =
                    "it stands in option 82: write option82 = \"drop\", \"replace\", \"append\" or \"keep\"";
                self.table_fault(format!("{key}.{name}"), allowed);
            }
        }
        // Link selection tells servers the clients' network, and the circuit us their interface.
        let is_own = |source| {
            usable(interface, true).any(|own| own == source)
                && relay.vrf.as_ref().is_none_or(|vrf| *vrf == interface.vrf)
        };
        if relay.source.is_some_and(|source| !is_own(IpAddr::V4(source)))
            && matches!(relay.option82, Option82::Off | Option82::Keep)
        {
            let allowed = "not an address of the interface: servers learn the clients' network from option 82 (RFC 3527) then, \
                           write option82 = \"drop\", \"replace\" or \"append\"";
            self.table_fault(format!("{key}.source"), allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const GOOD: &str = r#"
schema = 1
[[port]]
name = "lan"
device = "eth0"
[[port]]
name = "up"
device = "eth1"
[[interface]]
name = "lan"
port = "lan"
addresses = ["10.1.0.1/24", "2001:db8:1::1/64"]
dhcp_relay = { servers = ["10.0.0.5", "10.0.0.6"] }
dhcpv6_relay = { servers = ["2001:db8::5"] }
[[interface]]
name = "blue"
port = "lan"
vlan = 7
vrf = "blue"
addresses = ["10.1.0.1/24", "2001:db8:7::1/64"]
dhcp_relay = { servers = ["10.0.0.5"], vrf = "default", source = "10.0.0.1", option82 = "replace", circuit_id = "blue/7", remote_id = "gw 1", server_id_override = true, from_relays = true, max_hops = 16, rate_limit = { per_s = 10 } }
dhcpv6_relay = { servers = ["2001:db8::5"], vrf = "default", source = "2001:db8::1", interface_id = "blue/7", max_hops = 32 }
[[interface]]
name = "up"
port = "up"
addresses = ["10.0.0.1/24", "2001:db8::1/64"]
"#;

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        Config::parse(&GOOD.replacen(from, to, 1), "gw.toml").expect_err(to).to_string()
    }

    #[test]
    fn what_it_wrote_it_reads() {
        let config = Config::parse(GOOD, "gw.toml").expect("a good config");
        assert_eq!(Config::parse(&config.to_toml(), "gw.toml").expect("what it wrote itself"), config);
        let relay = config.interfaces[0].dhcp_relay.as_ref().expect("a relay");
        assert_eq!((relay.max_hops.get(), relay.rate_limit.per_s.get()), (4, 200));
        assert_eq!(config.interfaces[0].dhcpv6_relay.as_ref().expect("a relay").max_hops.get(), 8);
    }

    #[test]
    fn each_error_names_what_is_allowed() {
        let v4 = "servers = [\"10.0.0.5\", \"10.0.0.6\"]";
        let other =
            "servers = [\"10.0.0.5\"], vrf = \"default\", source = \"10.0.0.1\", option82 = \"replace\"";
        let cases: &[(&str, &str, &str)] = &[
            (v4, "servers = []", "interface[0].dhcp_relay.servers: 0: a relay has 1 to 8 servers"),
            (
                v4,
                "servers = [\"10.0.0.1\"]",
                "interface[0].dhcp_relay.servers[0]: 10.0.0.1: the gateway's own address in VRF default",
            ),
            (
                v4,
                "servers = [\"10.0.0.5\", \"10.0.0.5\"]",
                "servers[1]: 10.0.0.5: the address stands there twice",
            ),
            (v4, "servers = [\"224.0.0.1\"]", "servers[0]: 224.0.0.1: "),
            (v4, "servers = [\"2001:db8::5\"]", "interface[0].dhcp_relay.servers"),
            (
                v4,
                "servers = [\"10.0.0.5\"], vrf = \"red\"",
                "interface[0].dhcp_relay.vrf: red: no such VRF; known: default, blue",
            ),
            (
                v4,
                "servers = [\"10.0.0.5\"], source = \"10.0.0.9\"",
                "interface[0].dhcp_relay.source: 10.0.0.9: not an address of the gateway in VRF default",
            ),
            (
                v4,
                "servers = [\"10.0.0.5\"], source = \"10.0.0.1\"",
                "interface[0].dhcp_relay.source: not an address of the interface: servers learn",
            ),
            (
                v4,
                "servers = [\"10.0.0.5\"], circuit_id = \"x\"",
                "interface[0].dhcp_relay.circuit_id: it stands in option 82",
            ),
            (
                v4,
                "servers = [\"10.0.0.5\"], option82 = \"drop\", circuit_id = \"\u{fc}\"",
                "1 to 64 printable ASCII characters",
            ),
            (v4, "servers = [\"10.0.0.5\"], option82 = \"add\"", "interface[0].dhcp_relay.option82"),
            (
                v4,
                "servers = [\"10.0.0.5\"], max_hops = 17",
                "interface[0].dhcp_relay.max_hops: 17: allowed is 0 to 16",
            ),
            (v4, "servers = [\"10.0.0.5\"], hops = 3", "interface[0].dhcp_relay.hops: unknown key"),
            (
                "[\"10.1.0.1/24\", \"2001:db8:1::1/64\"]",
                "[\"2001:db8:1::1/64\"]",
                "interface[0].dhcp_relay: a relay needs an IPv4 address on its interface",
            ),
            (
                "[\"10.1.0.1/24\", \"2001:db8:1::1/64\"]",
                "[\"10.1.0.1/24\", \"fe80::1/64\"]",
                "interface[0].dhcpv6_relay: a relay needs a global IPv6 address",
            ),
            (
                other,
                "servers = [\"10.0.0.5\"], vrf = \"default\", option82 = \"replace\"",
                "interface[1].dhcp_relay: the servers are in another VRF than the interface",
            ),
            ("source = \"2001:db8::1\", ", "", "interface[1].dhcpv6_relay: the servers are in another VRF"),
            (
                other,
                "servers = [\"10.0.0.5\"], vrf = \"default\", source = \"10.1.0.1\", option82 = \"keep\"",
                "interface[1].dhcp_relay.source: not an address of the interface: servers learn",
            ),
            (
                v4,
                "servers = [\"10.0.0.5\"], source = \"10.0.0.1\", option82 = \"append\", circuit_id = \"blue/7\"",
                "interface[1].dhcp_relay.circuit_id: interface lan relays by 10.0.0.1 with the same circuit_id",
            ),
            (
                "servers = [\"2001:db8::5\"] }",
                "servers = [\"2001:db8::5\"], source = \"2001:db8::1\", interface_id = \"blue/7\" }",
                "interface[1].dhcpv6_relay.interface_id: interface lan relays by 2001:db8::1 with the same interface_id",
            ),
        ];
        for (from, to, expected) in cases {
            let said = refusal(from, to);
            assert!(said.contains(expected), "{to}: {said}");
        }
    }
}
