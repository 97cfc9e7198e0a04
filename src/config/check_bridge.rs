//! Bridges: members that can be, and no bridge of one.

use ahash::AHashMap;

use super::bridge::{Bridge, UnknownMulticast};
use super::check::{Checks, list};
use super::value::Name;
use crate::macs::MAX_VNIS;

impl Checks<'_, '_> {
    /// Names, numbers of members, and interfaces on bridges that there are. What the members are is checked with the
    /// interfaces.
    pub(super) fn bridges(&mut self) {
        let config = self.config;
        self.unique("bridge", config.bridges.iter().map(|bridge| &bridge.name));
        for (index, bridge) in config.bridges.iter().enumerate() {
            let key = format!("bridge[{index}].members");
            match bridge.members.len() {
                0 => self.table_fault(key.clone(), "a bridge has members: { port = \"lan\", vlan = 100 }"),
                count if count > Bridge::MAX_MEMBERS => {
                    let allowed = format!(
                        "at most {} members of a bridge: each broadcast goes to all of them",
                        Bridge::MAX_MEMBERS
                    );
                    self.fault(key.clone(), count, allowed);
                }
                _ => {}
            }
            self.zones_of_members(index, bridge);
            self.snooping(index, bridge);
            let vnis = bridge.members.iter().filter(|member| member.vni.is_some()).count();
            if vnis > MAX_VNIS {
                self.fault(key, vnis, format!("at most {MAX_VNIS} VNIs in a bridge"));
            }
        }
        let ends = config.ends();
        let mut names: AHashMap<&Name, &str> = AHashMap::new();
        for end in ends.iter().filter(|end| end.member.is_some()) {
            let name = &end.interface.name;
            if let Some(other) = names.insert(name, &end.key) {
                let allowed = format!(
                    "{other} has this name as well: give the port another name, or the VNI a bridge of its own"
                );
                self.fault(end.key.clone(), name, allowed);
            }
        }
        let mut on: AHashMap<&Name, usize> = AHashMap::new();
        for (index, interface) in config.interfaces.iter().enumerate() {
            let Some(name) = &interface.bridge else { continue };
            let key = format!("interface[{index}].bridge");
            if !config.bridges.iter().any(|bridge| bridge.name == *name) {
                let known = list(config.bridges.iter().map(|bridge| &bridge.name));
                let known = if known.is_empty() { "none".into() } else { known };
                self.fault(key, name, format!("no such bridge; known: {known}"));
            } else if let Some(other) = on.insert(name, index) {
                let other = &config.interfaces[other].name;
                self.fault(key, name, format!("interface {other} is already on this bridge"));
            }
        }
    }

    fn snooping(&mut self, index: usize, bridge: &Bridge) {
        let has_router = bridge.members.iter().any(|member| member.multicast_router);
        let said = [
            ("unknown_multicast", bridge.unknown_multicast != UnknownMulticast::Flood),
            ("fast_leave", bridge.fast_leave),
            ("querier", bridge.querier),
            ("query_interval_s", bridge.query_interval_s.is_some()),
            ("max_groups", bridge.max_groups.is_some()),
            ("members", has_router),
        ];
        for (key, _) in said.into_iter().filter(|(_, is_said)| *is_said && !bridge.snooping) {
            let what = if key == "members" { "multicast_router goes" } else { "it goes" };
            self.table_fault(format!("bridge[{index}].{key}"), format!("{what} with snooping = true"));
        }
    }

    /// A firewall with a member that it knows no zone of would have a way around it.
    fn zones_of_members(&mut self, index: usize, bridge: &Bridge) {
        let Some(zone) = bridge.members.iter().find_map(|member| member.zone.as_ref()) else {
            if bridge.other_protocols {
                let allowed = "goes with members that have a zone: between others everything passes";
                self.fault(format!("bridge[{index}].other_protocols"), true, allowed);
            }
            return;
        };
        if let Some(at) = bridge.members.iter().position(|member| member.zone.is_none()) {
            let allowed = format!("other members of the bridge have a zone ({zone}): give all of them one");
            self.table_fault(format!("bridge[{index}].members[{at}].zone"), allowed);
        }
        let on = self.config.interfaces.iter().position(|on| on.bridge.as_ref() == Some(&bridge.name));
        if let Some(at) = on.filter(|at| self.config.interfaces[*at].zone.is_none()) {
            let allowed = format!(
                "members of its bridge have a zone ({zone}): without one of its own it leads around them"
            );
            self.table_fault(format!("interface[{at}].zone"), allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const GOOD: &str = r#"schema = 1
[[port]]
name = "lan"
device = "eth1"
[[port]]
name = "wan"
device = "eth2"
[[interface]]
name = "wan"
port = "wan"
addresses = ["192.0.2.1/24"]
[[bridge]]
name = "seg"
members = [
    { port = "lan", vlan = 100, max_macs = 10 },
    { port = "lan", vlan = [200, 10], tpid = "802.1q" },
    { vni = 5001, vtep = "192.0.2.1", remotes = ["192.0.2.2"], storm_pps = 0 },
]
ageing_s = 60
suppress = false
loop_probe_s = 0
[[interface]]
name = "gate"
bridge = "seg"
addresses = ["10.7.0.1/24"]
"#;

    fn said(text: &str) -> Vec<String> {
        match Config::parse(text, "gw.toml") {
            Ok(_) => Vec::new(),
            Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn what_is_typed_comes_back() {
        let config = Config::parse(GOOD, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        let names: Vec<String> = config.ends().iter().map(|end| end.interface.name.to_string()).collect();
        assert_eq!(names, ["wan", "gate", "seg/lan.100", "seg/lan.200.10", "seg/vni5001"]);
        let again = Config::parse(&config.to_toml(), "again").unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(again, config);
    }

    #[test]
    fn each_error_names_what_is_allowed() {
        let table: &[(&str, &str, &str)] = &[
            (
                "port = \"lan\", vlan = 100",
                "port = \"dmz\", vlan = 100",
                "bridge[0].members[0].port: dmz: no such port; known: lan, wan",
            ),
            (
                "{ port = \"lan\", vlan = 100, max_macs = 10 }",
                "{ vlan = 100 }",
                "bridge[0].members[0]: a member has one of: port, vni",
            ),
            (
                "vlan = [200, 10], tpid = \"802.1q\"",
                "vlan = 100",
                "bridge[0].members[1].vlan: 100: interface seg/lan.100 already has this VLAN of port lan",
            ),
            ("max_macs = 10", "max_macs = 0", "bridge[0].members[0].max_macs: 0: allowed is 1 to 65536"),
            (
                "vtep = \"192.0.2.1\", ",
                "",
                "bridge[0].members[2]: a VNI needs vtep = \"192.0.2.1\": its tunnel end point",
            ),
            (
                "vtep = \"192.0.2.1\"",
                "vtep = \"10.7.0.1\"",
                "bridge[0].members[2].vtep: 10.7.0.1: not an address of the gateway on a port in VRF default, which has 192.0.2.1",
            ),
            (
                "remotes = [\"192.0.2.2\"]",
                "remotes = [\"192.0.2.1\"]",
                "bridge[0].members[2].remotes[0]: 192.0.2.1: the gateway's own address",
            ),
            ("storm_pps = 0", "mode = \"x\"", "bridge[0].members[2].mode: unknown key"),
            (
                "max_macs = 10",
                "zone = \"web\"",
                "bridge[0].members[1].zone: other members of the bridge have a zone (web): give all of them one",
            ),
            (
                "max_macs = 10",
                "zone = \"web\"",
                "interface[1].zone: members of its bridge have a zone (web): without one of its own it leads around them",
            ),
            (
                "max_macs = 10",
                "zone = \"self\"",
                "bridge[0].members[0].zone: self: the zone of the gateway itself",
            ),
            ("suppress = false", "querier = true", "bridge[0].querier: it goes with snooping = true"),
            (
                "suppress = false",
                "other_protocols = true",
                "bridge[0].other_protocols: true: goes with members",
            ),
            ("bridge = \"seg\"", "bridge = \"sag\"", "interface[1].bridge: sag: no such bridge; known: seg"),
            (
                "bridge = \"seg\"",
                "bridge = \"seg\"\nport = \"lan\"",
                "interface[1].port: an interface of a bridge is on no port: the bridge's members are",
            ),
            (
                "bridge = \"seg\"",
                "bridge = \"seg\"\nvtep = \"192.0.2.1\"",
                "interface[1].vtep: an interface of a bridge has no tunnels: make a VNI a member of the bridge",
            ),
            (
                "[[interface]]\nname = \"gate\"",
                "[[interface]]\nname = \"other\"\nbridge = \"seg\"\n[[interface]]\nname = \"gate\"",
                "interface[2].bridge: seg: interface other is already on this bridge",
            ),
            (
                "[[interface]]\nname = \"gate\"",
                "[[bridge]]\nname = \"seg\"\nmembers = []\n[[interface]]\nname = \"gate\"",
                "bridge[1].name: seg: already the name of bridge[0]",
            ),
            (
                "[[interface]]\nname = \"gate\"",
                "[[bridge]]\nname = \"two\"\nmembers = []\n[[interface]]\nname = \"gate\"",
                "bridge[1].members: a bridge has members",
            ),
        ];
        for (from, to, expected) in table {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let said = said(&text);
            assert!(said.iter().any(|said| said.contains(expected)), "{from} -> {to}: {said:#?}\n{expected}");
        }
    }

    #[test]
    fn members_that_would_be_one_by_name() {
        let text = GOOD
            .replace(
                "name = \"lan\"\ndevice",
                "name = \"lan.100\"\ndevice = \"eth3\"\n[[port]]\nname = \"lan\"\ndevice",
            )
            .replace("{ port = \"lan\", vlan = [200, 10], tpid = \"802.1q\" }", "{ port = \"lan.100\" }");
        assert!(said(&text).iter().any(|said| said.contains("has this name as well")), "{:?}", said(&text));
    }

    #[test]
    fn no_more_members_than_there_is_room_for() {
        let members = |count: u32| -> String {
            let one = |vlan| format!("{{ port = \"lan\", vlan = {vlan} }}");
            let all: Vec<String> = (1..=count).map(one).collect();
            format!(
                "schema = 1\n[[port]]\nname = \"lan\"\ndevice = \"eth1\"\n[[bridge]]\nname = \"b\"\nmembers = [{}]\n",
                all.join(", ")
            )
        };
        assert!(said(&members(64)).is_empty());
        assert!(said(&members(65))[0].contains("at most 64 members of a bridge"));
    }
}
