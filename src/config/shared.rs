//! What both nodes of a pair are to have alike: the config without what is each node's own, as a number for each section.

use super::sections::{Control, PairLink, System, Workers};
use super::value::Ranged;
use super::{Config, Pair};
use crate::packet::hash::Key;
use crate::packet::siphash;

impl Config {
    /// A number for each section that is there, by its key in the file. What `[node.NAME]` may say is each node's own, and so are
    /// names, sockets, folders and files; routes come and go one by one and are left out.
    pub fn sections(&self, key: Key) -> Vec<(String, u64)> {
        let sections = serde_json::to_value(self.clone().without_own());
        let sections = sections.unwrap_or_else(|error| unreachable!("a config is plain tables: {error}"));
        let hash = |text: &str| {
            let words: Vec<u64> = text.bytes().map(u64::from).collect();
            siphash::of(key, &words)
        };
        let of = |(name, section): (&String, &serde_json::Value)| (name.clone(), hash(&section.to_string()));
        sections.as_object().map(|all| all.iter().map(of).collect()).unwrap_or_default()
    }

    fn without_own(self) -> Config {
        let mut shared = Config {
            control: Control::default(),
            system: System { name: System::default().name, workers: Workers::default(), ..self.system },
            routes: Vec::new(),
            route_files: Vec::new(),
            log: super::Log::default(),
            nodes: Default::default(),
            pair: self.pair.map(|pair| Pair {
                local: pair.peer.min(pair.local),
                peer: pair.peer.max(pair.local),
                link: pair.link.map(|link| PairLink {
                    local: link.peer.min(link.local),
                    peer: link.peer.max(link.local),
                    ..link
                }),
                ..pair
            }),
            ..self
        };
        for port in &mut shared.ports {
            (port.device, port.devices) = (None, Vec::new());
        }
        shared.interfaces.iter_mut().for_each(|interface| interface.addresses.clear());
        shared.vrrp.iter_mut().for_each(|router| router.priority = Ranged::constant(1));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"schema = 1
[system]
name = "gw-a"
[pair]
local = "192.0.2.1:5405"
peer = "192.0.2.2:5405"
key_file = "/etc/softgate/pair.key"
link = { local = "203.0.113.1", peer = "203.0.113.2" }
[[port]]
name = "lan"
device = "eth1"
[[interface]]
name = "in"
port = "lan"
addresses = ["10.0.0.1/24"]
zone = "inside"
[[port]]
name = "sync"
device = "eth3"
[[interface]]
name = "sync"
port = "sync"
zone = "pair"
mtu = 1600
addresses = ["203.0.113.1/30"]
[[zone]]
name = "inside"
[[rule]]
name = "all"
action = "allow"
[[vrrp]]
interface = "in"
id = 7
priority = 100
addresses = ["10.0.0.254"]
[node.gw-b]
priority = 90
devices = { lan = "enp1s0" }
addresses = { in = ["10.0.0.2/24"], sync = ["203.0.113.2/30"] }

[node.gw-b.pair]
local = "192.0.2.2:5405"
peer = "192.0.2.1:5405"
link = { local = "203.0.113.2", peer = "203.0.113.1" }
"#;

    fn sections(config: &Config) -> Vec<(String, u64)> {
        config.sections(Key(1, 2))
    }

    #[test]
    fn what_is_each_nodes_own_makes_no_difference_and_all_else_does() {
        let all = Config::parse(TEXT, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
        let own = all.clone().on_node(&"gw-b".parse().expect("a name"), "gw.toml");
        let own = own.unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(own.pair.as_ref().map(|pair| pair.local), all.pair.as_ref().map(|pair| pair.peer));
        assert_ne!(own, all);
        assert_eq!(sections(&own), sections(&all));
        assert_ne!(all.sections(Key(1, 3)), sections(&all), "nobody else can tell");
        for (old, new, section) in [
            ("action = \"allow\"", "action = \"deny\"", "rule"),
            ("id = 7", "id = 8", "vrrp"),
            ("key_file =", "bandwidth_mbps = 10\nkey_file =", "pair"),
            ("mtu = 1600", "mtu = 1700", "interface"),
            ("peer = \"203.0.113.2\" }", "peer = \"203.0.113.2\", udp_port = 5407 }", "pair"),
        ] {
            let other =
                Config::parse(&TEXT.replace(old, new), "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
            let (ours, theirs) = (sections(&all), sections(&other));
            let apart: Vec<&str> = ours
                .iter()
                .zip(&theirs)
                .filter(|(ours, theirs)| ours != theirs)
                .map(|(ours, _)| ours.0.as_str())
                .collect();
            assert_eq!(apart, [section]);
        }
    }

    #[test]
    fn a_node_without_a_pair_has_none_of_its_own() {
        let text = TEXT.replace(
            "[pair]\nlocal = \"192.0.2.1:5405\"\npeer = \"192.0.2.2:5405\"\nkey_file = \"/etc/softgate/pair.key\"\n\
             link = { local = \"203.0.113.1\", peer = \"203.0.113.2\" }\n",
            "",
        );
        let said = Config::parse(&text, "gw.toml").expect_err("no pair").to_string();
        assert!(said.contains("node.gw-b.pair: there is no [pair] in it"), "{said}");
    }
}
