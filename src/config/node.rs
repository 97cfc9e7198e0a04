//! `[node.NAME]`: what one of several nodes has for itself, so that one document serves a pair, or a fleet. Devices, own
//! addresses, those of its pair, priority and workers, and nothing else: what nodes do is the same.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::addresses::OneOrMore;
use super::error::ConfigErrors;
use super::sections::Workers;
use super::value::{DeviceName, GroupName, InterfaceAddress, InterfaceName, Name, PortName, Ranged};
use super::{Config, check};

/// `[node.NAME]`: in place of what the document says for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The CPUs of its workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// The priority of its virtual routers, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Ranged<1, 254>>,
    /// The priorities of those of some groups, so that it is the Active of some and Backup of others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub priorities: BTreeMap<GroupName, Ranged<1, 254>>,
    /// The devices of its ports: one, or those of a LAG.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<PortName, OneOrMore<DeviceName>>,
    /// Where it and the other node of its pair are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<NodePair>,
    /// Its own addresses on its interfaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<InterfaceName, OneOrMore<InterfaceAddress>>,
}

/// `pair` of `[node.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePair {
    /// As `pair.local`.
    pub local: SocketAddr,
    /// As `pair.peer`.
    pub peer: SocketAddr,
    /// As `pair.link`, the ends alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<NodePairLink>,
}

/// `link` of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePairLink {
    /// As `pair.link.local`.
    pub local: IpAddr,
    /// As `pair.link.peer`.
    pub peer: IpAddr,
}

impl Config {
    /// The config as it is on a node: what its `[node.NAME]` says in place of what is said for all; without one, as it is.
    pub fn on_node(mut self, node: &Name, file_name: &str) -> Result<Config, ConfigErrors> {
        let Some(own) = self.nodes.get(node).cloned() else { return Ok(self) };
        if let Some(workers) = own.workers {
            self.system.workers = workers;
        }
        for router in &mut self.vrrp {
            let of_group = router.group.as_ref().and_then(|group| own.priorities.get(group)).copied();
            router.priority = of_group.or(own.priority).unwrap_or(router.priority);
        }
        if let (Some(pair), Some(NodePair { local, peer, link })) = (&mut self.pair, own.pair) {
            (pair.local, pair.peer) = (local, peer);
            if let (Some(both), Some(own)) = (&mut pair.link, link) {
                (both.local, both.peer) = (own.local, own.peer);
            }
        }
        for port in &mut self.ports {
            match own.devices.get(&port.name).map(|devices| &**devices) {
                Some([one]) if port.lag.is_none() => port.device = Some(one.clone()),
                Some(several) => (port.device, port.devices) = (None, several.to_vec()),
                None => {}
            }
        }
        for interface in &mut self.interfaces {
            if let Some(addresses) = own.addresses.get(&interface.name) {
                interface.addresses = addresses.to_vec();
            }
        }
        self.validate(&format!("{file_name}, on node {node}"))?;
        Ok(self)
    }

    /// The node that this is: the one that was asked for, else the one that is called as the host is. `None`: none of those
    /// that the document knows, which is right where it knows none.
    pub fn this_node(&self, asked: Option<&Name>, host: &str) -> Result<Option<Name>, String> {
        match asked {
            Some(node) if self.nodes.contains_key(node) => Ok(Some(node.clone())),
            Some(node) => Err(format!("there is no [node.{node}] in the config")),
            None => {
                let name = host.split('.').next().and_then(|host| Name::new(host).ok());
                Ok(name.filter(|name| self.nodes.contains_key(name)))
            }
        }
    }

    /// Names in `[node.NAME]` that nothing has.
    pub(super) fn check_nodes(&self, report: &mut dyn FnMut(check::Fault)) {
        for (node, own) in &self.nodes {
            let mut unknown = |key: String, what: &str, name: &str| {
                report(check::Fault {
                    place: check::Place::Key(format!("node.{node}.{key}")),
                    value: None,
                    allowed: format!("there is no {what} {name}"),
                });
            };
            if own.pair.is_some() && self.pair.is_none() {
                unknown(String::from("pair"), "[pair]", "in it");
            } else if own.pair.as_ref().is_some_and(|pair| pair.link.is_some())
                && self.pair.as_ref().is_some_and(|pair| pair.link.is_none())
            {
                unknown(String::from("pair.link"), "link", "in [pair]");
            }
            for name in own.priorities.keys() {
                if !self.vrrp.iter().any(|router| router.group.as_ref() == Some(name)) {
                    unknown(format!("priorities.{name}"), "group of virtual routers", name.as_str());
                }
            }
            for name in own.devices.keys() {
                if !self.ports.iter().any(|port| port.name == *name) {
                    unknown(format!("devices.{name}"), "port", name.as_str());
                }
            }
            for name in own.addresses.keys() {
                if !self.interfaces.iter().any(|interface| interface.name == *name) {
                    unknown(format!("addresses.{name}"), "interface", name.as_str());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"schema = 1
[[port]]
name = "lan"
device = "eth1"
[[port]]
name = "up"
devices = ["eth2", "eth3"]
lag = "static"
[[interface]]
name = "in"
port = "lan"
addresses = ["10.0.0.1/24"]
[[vrrp]]
interface = "in"
id = 7
priority = 100
addresses = ["10.0.0.254"]
[[vrrp]]
interface = "in"
id = 8
group = "lab"
addresses = ["10.0.0.253"]
[node.gw-b]
workers = [2, 3]
priority = 90
priorities = { lab = 110 }
devices = { lan = "enp1s0", up = ["enp2s0", "enp3s0"] }
addresses = { in = ["10.0.0.2/24"] }
[node.gw-c]
"#;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn said(text: &str) -> String {
        Config::parse(text, "gw.toml").expect_err("something is wrong").to_string()
    }

    #[test]
    fn a_node_has_its_own_and_the_rest_with_all() {
        let all = Config::parse(TEXT, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        let own = all.clone().on_node(&name("gw-b"), "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        let mut expected = all.clone();
        expected.system.workers =
            toml::from_str::<Node>("workers = [2, 3]").expect("a node").workers.expect("some");
        expected.ports[0].device = Some("enp1s0".parse().expect("a device"));
        expected.ports[1].devices = ["enp2s0", "enp3s0"].map(|name| name.parse().expect("a device")).to_vec();
        expected.interfaces[0].addresses = vec!["10.0.0.2/24".parse().expect("an address")];
        expected.vrrp[0].priority = Ranged::new(90).expect("a priority");
        expected.vrrp[1].priority = Ranged::new(110).expect("a priority");
        assert_eq!(own, expected);
        for other in ["gw-c", "gw-z"] {
            assert_eq!(all.clone().on_node(&name(other), "gw.toml").as_ref(), Ok(&all));
        }
    }

    #[test]
    fn the_host_says_which_node_it_is() {
        let config = Config::parse(TEXT, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.this_node(None, "gw-b.example.net"), Ok(Some(name("gw-b"))));
        assert_eq!(config.this_node(None, "elsewhere"), Ok(None));
        assert_eq!(config.this_node(Some(&name("gw-c")), "gw-b"), Ok(Some(name("gw-c"))));
        let missing = config.this_node(Some(&name("gw-z")), "gw-b");
        assert_eq!(missing, Err(String::from("there is no [node.gw-z] in the config")));
    }

    #[test]
    fn nothing_else_is_a_nodes_own() {
        let unknown = said(&TEXT.replace("workers = [2, 3]", "frames = 4096"));
        assert!(unknown.contains("gw.toml:24: node.gw-b.frames: unknown key"), "{unknown}");
        let unknown = said(&TEXT.replace("lan = \"enp1s0\"", "wan = \"enp1s0\""));
        assert_eq!(unknown, "gw.toml:27: node.gw-b.devices.wan: there is no port wan");
        let unknown = said(&TEXT.replace("{ in = [", "{ out = ["));
        assert_eq!(unknown, "gw.toml:28: node.gw-b.addresses.out: there is no interface out");
        let unknown = said(&TEXT.replace("{ lab = 110 }", "{ lap = 110 }"));
        assert_eq!(unknown, "gw.toml:26: node.gw-b.priorities.lap: there is no group of virtual routers lap");
        // What is wrong on that node only is told by it.
        let config = Config::parse(&TEXT.replace("\"10.0.0.2/24\"", "\"10.0.0.254/24\""), "gw.toml");
        let config = config.unwrap_or_else(|errors| panic!("{errors}"));
        let told = config
            .on_node(&name("gw-b"), "gw.toml")
            .map(|_| ())
            .expect_err("an address of all nodes")
            .to_string();
        assert!(told.starts_with("gw.toml, on node gw-b: "), "{told}");
    }
}
