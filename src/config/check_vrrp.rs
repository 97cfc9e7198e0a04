//! Virtual routers: what no value shows by itself.

use std::net::IpAddr;

use ahash::AHashMap;

use super::check::{Checks, is_link_local, is_network_or_broadcast, list};
use super::sections::Interface;
use super::value::{InterfaceName, VrfName};
use super::vrrp::Vrrp;

impl Checks<'_, '_> {
    pub(super) fn virtual_routers(&mut self) {
        let config = self.config;
        if config.vrrp.len() > Vrrp::MAX {
            let allowed = format!("at most {} virtual routers, not {}", Vrrp::MAX, config.vrrp.len());
            self.table_fault(format!("vrrp[{}]", Vrrp::MAX), allowed);
            return;
        }
        let mut ids: AHashMap<(&InterfaceName, u32), usize> = AHashMap::new();
        let mut groups: AHashMap<&str, usize> = AHashMap::new();
        let mut held: AHashMap<(&VrfName, Option<&InterfaceName>, IpAddr), usize> = AHashMap::new();
        for (index, vrrp) in config.vrrp.iter().enumerate() {
            let key = |key: &str| format!("vrrp[{index}].{key}");
            let interface = config.interfaces.iter().find(|interface| interface.name == vrrp.interface);
            let Some(interface) = interface else {
                let known = list(config.interfaces.iter().map(|interface| &interface.name));
                self.fault(key("interface"), &vrrp.interface, format!("no such interface; known: {known}"));
                continue;
            };
            if let Some(vtep) = interface.vtep
                && config.router_with(&interface.underlay(), vtep).is_some()
            {
                let allowed = format!(
                    "its vtep {vtep} is an address of a virtual router, and moves with that one: here each node needs a \
                     tunnel end point of its own, by which the others are heard"
                );
                self.fault(key("interface"), &vrrp.interface, allowed);
            }
            self.group_on_bridge(index, interface);
            if let Some(other) = ids.insert((&vrrp.interface, vrrp.id.get()), index) {
                let allowed =
                    format!("vrrp[{other}] has this identifier on interface {} already", vrrp.interface);
                self.fault(key("id"), vrrp.id, allowed);
            }
            if let Some(group) = &vrrp.group {
                let first = &config.vrrp[*groups.entry(group.as_str()).or_insert(index)];
                if first.interval != vrrp.interval {
                    let allowed = format!(
                        "who moves together advertises at one interval: another member of group {group} has {}",
                        first.interval
                    );
                    self.fault(key("interval"), vrrp.interval, allowed);
                }
            }
            self.virtual_addresses(index, vrrp, interface);
            for (at, address) in vrrp.addresses.iter().enumerate() {
                let on = is_link_local(*address).then_some(&interface.name);
                if let Some(other) = held.insert((&interface.vrf, on, *address), index) {
                    let key = format!("vrrp[{index}].addresses[{at}]");
                    let allowed = match other == index {
                        true => String::from("the address stands there twice"),
                        false => format!("vrrp[{other}] has it already"),
                    };
                    self.fault(key, address, allowed);
                }
            }
            for (at, track) in vrrp.track.iter().enumerate() {
                self.tracked(&format!("vrrp[{index}].track[{at}]"), track);
            }
        }
    }

    /// Who is the gateway of a segment passes its frames on as well: hosts reach him by the node that does, and the switches
    /// of the segment know one way to both.
    fn group_on_bridge(&mut self, index: usize, interface: &Interface) {
        let config = self.config;
        let on = config.bridges.iter().find(|bridge| interface.bridge.as_ref() == Some(&bridge.name));
        let Some(bridge) = on else { return };
        let leader = config.group_of_bridge(bridge.group.as_ref());
        if let Some(leader) = leader.filter(|leader| config.leader_of(index) != *leader) {
            let name = config.vrrp[leader].group.as_ref().map_or("", |name| name.as_str());
            let allowed = format!(
                "bridge {} belongs to the group {name}: virtual routers of its interface do as well, group = \"{name}\"",
                bridge.name
            );
            self.table_fault(format!("vrrp[{index}].group"), allowed);
        }
    }

    fn virtual_addresses(&mut self, index: usize, vrrp: &Vrrp, interface: &Interface) {
        if !(1..=Vrrp::MAX_ADDRESSES).contains(&vrrp.addresses.len()) {
            let allowed = format!("a virtual router has 1 to {} addresses", Vrrp::MAX_ADDRESSES);
            self.fault(format!("vrrp[{index}].addresses"), vrrp.addresses.len(), allowed);
        }
        let config = self.config;
        let first_v6 = vrrp.addresses.iter().position(IpAddr::is_ipv6);
        for (at, address) in vrrp.addresses.iter().enumerate() {
            let key = format!("vrrp[{index}].addresses[{at}]");
            let of_vrf = config.interfaces.iter().filter(|other| match is_link_local(*address) {
                true => other.name == interface.name,
                false => other.vrf == interface.vrf,
            });
            let mut owners =
                of_vrf.filter(|other| other.addresses.iter().any(|own| own.address() == *address));
            if let Some(owner) = owners.next() {
                let allowed = format!(
                    "the gateway's own address on interface {}: give it another one, each node its own",
                    owner.name
                );
                self.fault(key, address, allowed);
                continue;
            }
            if address.is_multicast() || address.is_unspecified() || address.is_loopback() {
                self.fault(key, address, "a virtual router has unicast addresses");
                continue;
            }
            if address.is_ipv6() && is_link_local(*address) {
                if !interface.addresses.iter().any(|own| own.address().is_ipv6()) {
                    let allowed = format!("interface {} has no IPv6 address to speak from", interface.name);
                    self.fault(key, address, allowed);
                }
                continue;
            }
            if first_v6 == Some(at) {
                // RFC 9568 section 5.2.9.
                let allowed =
                    "the first IPv6 address of a virtual router is a link-local one, fe80::1 for example";
                self.fault(key, address, allowed);
                continue;
            }
            match interface.addresses.iter().find(|own| own.net().contains(address)) {
                None => {
                    let known = list(interface.addresses.iter().map(|own| own.connected()));
                    let known = if known.is_empty() { "nothing".into() } else { known };
                    let allowed = format!(
                        "not in a network of interface {}, which connects to {known}",
                        interface.name
                    );
                    self.fault(key, address, allowed);
                }
                Some(own) if is_network_or_broadcast(*address, own.connected()) => {
                    let allowed = format!("the network or broadcast address of {}", own.connected());
                    self.fault(key, address, allowed);
                }
                Some(_) => {}
            }
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
device = "eth1"
[[port]]
name = "uplink"
device = "eth0"
[[interface]]
name = "tenant"
port = "lan"
addresses = ["10.0.1.2/24", "2001:db8:1::2/64"]
zone = "inside"
[[interface]]
name = "plain"
port = "lan"
vlan = 7
addresses = ["10.0.7.2/24"]
zone = "inside"
[[interface]]
name = "overlay"
vni = 7
vtep = "10.0.1.2"
remotes = ["10.0.1.9"]
addresses = ["10.0.8.2/24"]
zone = "inside"
[[bridge]]
name = "seg"
members = [{ port = "lan", vlan = 9 }]
group = "main"
[[interface]]
name = "segment"
bridge = "seg"
addresses = ["10.0.9.2/24"]
zone = "inside"
[[service]]
name = "shop"
address = "203.0.113.80"
service = ["tcp/80"]
backends = [{ address = "10.0.1.80" }]
[[vrrp]]
interface = "tenant"
id = 10
priority = 150
interval = "10cs"
addresses = ["10.0.1.1", "fe80::1", "2001:db8:1::1"]
group = "main"
track = [{ port = "uplink", weight = 60 }]
[[vrrp]]
interface = "plain"
id = 10
interval = "100ms"
addresses = ["10.0.7.1"]
group = "main"
[[vrrp]]
interface = "segment"
id = 10
interval = "10cs"
addresses = ["10.0.9.1"]
group = "main"
[[vrrp]]
interface = "overlay"
id = 11
interval = "10cs"
addresses = ["10.0.8.1"]
group = "main"
"#;

    #[test]
    fn a_good_config_is_read_and_written() {
        let config = Config::parse(GOOD, "gw.toml").expect("good");
        let (first, second) = (&config.vrrp[0], &config.vrrp[1]);
        assert_eq!((first.interval, second.interval.get()), (second.interval, 10));
        assert_eq!((second.priority.get(), second.preempt, second.accept), (100, true, false));
        assert_eq!(Config::parse(&config.to_toml(), "again").expect("good"), config);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let first = "addresses = [\"10.0.1.1\", \"fe80::1\", \"2001:db8:1::1\"]";
        let long: Vec<String> = (100..133).map(|host| format!("\"10.0.1.{host}\"")).collect();
        let long = format!("addresses = [{}]", long.join(", "));
        for (good, bad, said) in [
            ("interface = \"plain\"", "interface = \"plane\"", "vrrp[1].interface: plane: no such interface"),
            (
                "vtep = \"10.0.1.2\"",
                "mac = \"02:00:5e:00:00:01\"\nvtep = \"10.0.1.1\"",
                "vrrp[3].interface: overlay: its vtep 10.0.1.1 is an address of a virtual router",
            ),
            (
                "interface = \"plain\"",
                "interface = \"tenant\"",
                "vrrp[1].id: 10: vrrp[0] has this identifier on interface tenant already",
            ),
            ("id = 10\npriority", "id = 0\npriority", "vrrp[0].id: 0: allowed is 1 to 255"),
            ("priority = 150", "priority = 255", "vrrp[0].priority: 255: allowed is 1 to 254"),
            (
                "interval = \"10cs\"",
                "interval = \"15ms\"",
                "vrrp[0].interval: \"15ms\": an interval is 1cs to 4095cs",
            ),
            (
                "interval = \"10cs\"",
                "interval = \"41s\"",
                "vrrp[0].interval: \"41s\": an interval is 1cs to 4095cs",
            ),
            ("interval = \"100ms\"", "interval = \"1s\"", "vrrp[1].interval: 100cs: who moves together"),
            (
                "addresses = [\"10.0.7.1\"]",
                "addresses = []",
                "vrrp[1].addresses: 0: a virtual router has 1 to 32",
            ),
            (first, long.as_str(), "vrrp[0].addresses: 33: a virtual router has 1 to 32 addresses"),
            (
                "[\"10.0.7.1\"]",
                "[\"10.0.6.1\"]",
                "vrrp[1].addresses[0]: 10.0.6.1: not in a network of interface plain, which connects to 10.0.7.0/24",
            ),
            (
                "[\"10.0.7.1\"]",
                "[\"10.0.7.2\"]",
                "vrrp[1].addresses[0]: 10.0.7.2: the gateway's own address on interface plain",
            ),
            (
                "[\"10.0.7.1\"]",
                "[\"10.0.1.2\"]",
                "vrrp[1].addresses[0]: 10.0.1.2: the gateway's own address on interface tenant",
            ),
            ("[\"10.0.7.1\"]", "[\"10.0.7.255\"]", "the network or broadcast address of 10.0.7.0/24"),
            ("[\"10.0.7.1\"]", "[\"224.0.0.1\"]", "a virtual router has unicast addresses"),
            (
                "[\"10.0.7.1\"]",
                "[\"10.0.7.1\", \"10.0.7.1\"]",
                "vrrp[1].addresses[1]: 10.0.7.1: the address stands there twice",
            ),
            ("[\"10.0.7.1\"]", "[\"10.0.1.1\"]", "vrrp[1].addresses[0]: 10.0.1.1: vrrp[0] has it already"),
            ("[\"10.0.7.1\"]", "[\"fe80::1\"]", "interface plain has no IPv6 address to speak from"),
            (
                "\"fe80::1\", \"2001:db8:1::1\"",
                "\"2001:db8:1::1\", \"fe80::1\"",
                "vrrp[0].addresses[1]: 2001:db8:1::1: the first IPv6 address",
            ),
            (
                "port = \"uplink\", weight",
                "port = \"downlink\", weight",
                "vrrp[0].track[0].port: downlink: no such port; known: lan, uplink",
            ),
            (
                "port = \"uplink\", weight",
                "service = \"shop\", weight",
                "vrrp[0].track[0].service: shop: without health checks",
            ),
            (
                "port = \"uplink\", weight",
                "service = \"shed\", weight",
                "vrrp[0].track[0].service: shed: no such service; known: shop",
            ),
            (
                "port = \"uplink\", weight",
                "weight",
                "vrrp[0].track[0]: what is tracked is one of: port, service, bfd, neighbour, sync",
            ),
            (
                "port = \"uplink\", weight",
                "sync = true, weight",
                "vrrp[0].track[0].sync: true: there is no [pair] whose sessions could be here",
            ),
            (
                "port = \"uplink\", weight",
                "sync = false, weight",
                "vrrp[0].track[0].sync: false: sync = true, or another thing to track",
            ),
            (
                "\"10.0.9.1\"]\ngroup = \"main\"",
                "\"10.0.9.1\"]",
                "vrrp[2].group: bridge seg belongs to the group main",
            ),
            (
                "\"10.0.9.1\"]\ngroup = \"main\"",
                "\"10.0.9.1\"]\ngroup = \"other\"",
                "vrrp[2].group: bridge seg belongs to the group main",
            ),
            ("weight = 60", "weight = 0", "vrrp[0].track[0].weight: 0: allowed is 1 to 253"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let errors = Config::parse(&GOOD.replacen(good, bad, 1), "gw.toml").expect_err(bad).to_string();
            assert!(errors.contains(said), "{bad}: {errors}");
        }
    }
}
