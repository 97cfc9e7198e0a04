//! The pair: what no value shows by itself.

use std::net::{IpAddr, SocketAddr};

use ahash::AHashMap;

use super::addresses::NatPool;
use super::check::Checks;
use super::policy::NatSource;
use super::sections::PairLink;
use super::value::{InterfaceAddress, InterfaceName, VrfName};
use crate::packet::hash::name as name_hash;

impl Checks<'_, '_> {
    pub(super) fn pair(&mut self) {
        let Some(pair) = &self.config.pair else { return };
        for (key, address) in [("pair.local", pair.local), ("pair.peer", pair.peer)] {
            let ip = address.ip();
            if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
                self.fault(
                    key.into(),
                    address,
                    "the address and the UDP port of one node: \"192.0.2.1:5405\"",
                );
            }
        }
        if let Some(witness) = pair.witness {
            let is_link_local = matches!(witness, IpAddr::V6(addr) if addr.is_unicast_link_local());
            let own = self.config.interfaces.iter().flat_map(|interface| interface.addresses.iter());
            let is_own = own.map(|own| own.address()).any(|own| own == witness);
            let virtual_routers = self.config.vrrp.iter().flat_map(|vrrp| &vrrp.addresses);
            let is_shared = virtual_routers.into_iter().any(|address| *address == witness);
            let is_nodes = [pair.local, pair.peer].iter().any(|node| node.ip() == witness);
            let is_host = !witness.is_unspecified() && !witness.is_multicast() && !witness.is_loopback();
            if !is_host || is_link_local || is_own || is_shared || is_nodes {
                let allowed =
                    "the address of a third, neither of the nodes, that answers pings: \"198.51.100.1\"";
                self.fault("pair.witness".into(), witness, allowed);
            }
        }
        if pair.local.is_ipv4() != pair.peer.is_ipv4() {
            self.fault("pair.peer".into(), pair.peer, "of the same family as `local`");
        }
        if same(pair.local, pair.peer) {
            self.fault("pair.peer".into(), pair.peer, "the other node: this is `local`");
        }
        if let Some(link) = &pair.link {
            self.pair_link(link);
        }
    }

    /// A pool that both nodes give ports of: there is another node, and it has ports to halve that are nobody else's.
    pub(super) fn shared_pool(&mut self, key: &str, rule: &NatSource) {
        if !rule.shared {
            return;
        }
        let config = self.config;
        let key = format!("{key}.shared");
        let said = match &rule.pool {
            _ if config.pair.is_none() => {
                Some("goes with [pair]: the other node gives the other half of the ports")
            }
            _ if rule.deterministic => Some(
                "not with deterministic = true: there ports follow from the host, on both nodes the same",
            ),
            Some(NatPool::Addresses(_)) => None,
            _ => Some("goes with a pool of addresses: an interface's own are one node's"),
        };
        if let Some(said) = said {
            self.table_fault(key, said);
            return;
        }
        let ranges = rule.pool.as_ref().map_or(&[][..], NatPool::addresses);
        let is_its = |vrf: &VrfName, address: IpAddr| {
            *vrf == rule.vrf && ranges.iter().any(|range| range.contains(address))
        };
        let mut own = config
            .interfaces
            .iter()
            .flat_map(|interface| interface.addresses.iter().map(move |own| (interface, own.address())));
        let own = own.find(|(interface, address)| is_its(&interface.vrf, *address));
        let own = own.map(|(interface, address)| (address, format!("interface {}", interface.name)));
        let mut destinations = config.nat.destinations.iter();
        let destination = destinations.find(|to| is_its(&to.vrf, to.address));
        let destination = destination.map(|to| (to.address, format!("nat.destination {}", to.name)));
        // A service's port would be a port of one of the halves.
        let mut services = config.services.iter();
        let service = services.find(|service| is_its(&service.vrf, service.address.first()));
        let service = service.map(|service| (service.address.first(), format!("service {}", service.name)));
        let other = own.or(destination).or(service);
        if let Some((address, whose)) = other {
            let allowed =
                format!("{address} is of {whose} as well: what comes to a shared pool goes by its port");
            self.table_fault(key, allowed);
        }
    }

    /// Both ends are on one link, which takes the longest packet of all others; and no two interfaces are one on the wire.
    fn pair_link(&mut self, link: &PairLink) {
        let config = self.config;
        let Some(interface) = link.interface_in(config) else {
            let allowed = format!("an address of the gateway on a port in VRF {}", link.vrf);
            self.fault("pair.link.local".into(), link.local, allowed);
            return;
        };
        let is_near = |own: &InterfaceAddress| own.address() == link.local && own.net().contains(&link.peer);
        let is_link_local = matches!(link.peer, IpAddr::V6(peer) if peer.is_unicast_link_local());
        if link.peer == link.local || is_link_local || !interface.addresses.iter().any(is_near) {
            let allowed = format!(
                "the other end, on the link of interface {} and no link-local address: no router is to stand between the nodes",
                interface.name
            );
            self.fault("pair.link.peer".into(), link.peer, allowed);
        }
        // Such packets go to the kernel wherever they come in (`XDP`).
        let kernels = config.pair.as_ref().map(|pair| [pair.local.port(), pair.peer.port()]);
        if kernels.is_some_and(|ports| ports.map(u32::from).contains(&link.udp_port.get())) {
            let allowed = String::from("another port than that of `local` and `peer`, which the kernel gets");
            self.fault("pair.link.udp_port".into(), link.udp_port.get(), allowed);
        }
        let others = config.interfaces.iter().filter(|other| other.name != interface.name);
        let longest = others.map(|other| other.mtu(&config.interfaces).bytes()).max().unwrap_or(0);
        let own = interface.mtu(&config.interfaces).bytes();
        let least = u32::from(longest) + u32::from(link.overhead());
        if u32::from(own) < least {
            let allowed = format!(
                "interface {} has an MTU of {own}: the pair link takes the packets of all other interfaces, of up to \
                 {longest} bytes, and {} of headers; give it mtu = {least}",
                interface.name,
                link.overhead()
            );
            self.fault("pair.link.local".into(), link.local, allowed);
        }
        let mut names: AHashMap<u32, &InterfaceName> = AHashMap::new();
        for interface in &config.interfaces {
            if let Some(other) = names.insert(name_hash(interface.name.as_str()), &interface.name)
                && *other != interface.name
            {
                let allowed = format!(
                    "{other} and {} are the same on the pair link, which knows names by 32 bits: call one otherwise",
                    interface.name
                );
                self.fault("pair.link".into(), &interface.name, allowed);
            }
        }
    }
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip(), a.port()) == (b.ip(), b.port())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn a_witness_is_a_third() {
        let check = |witness: &str| {
            let text = format!(
                "schema = 1\n[pair]\nlocal = \"192.0.2.1:5405\"\npeer = \"192.0.2.2:5405\"\n\
                 key_file = \"/etc/softgate/pair.key\"\nwitness = \"{witness}\"\n"
            );
            Config::parse(&text, "gw.toml").map(drop).map_err(|errors| errors.to_string())
        };
        assert_eq!(check("198.51.100.1"), Ok(()));
        assert_eq!(check("2001:db8::9"), Ok(()));
        for witness in ["192.0.2.2", "192.0.2.1", "0.0.0.0", "224.0.0.1", "fe80::1", "127.0.0.1"] {
            assert!(check(witness).expect_err(witness).contains("pair.witness"));
        }
    }

    #[test]
    fn a_shared_pool_has_another_node_and_ports_of_its_own() {
        const PAIR: &str =
            "[pair]\nlocal = \"192.0.2.1:5405\"\npeer = \"192.0.2.2:5405\"\nkey_file = \"/k\"\n";
        let check = |pair: &str, keys: &str, more: &str| {
            let text = format!(
                "schema = 1\n{pair}[[port]]\nname = \"a\"\ndevice = \"a\"\n[[interface]]\nname = \"up\"\nport = \"a\"\n\
                 zone = \"out\"\naddresses = [\"203.0.113.9/24\"]\n[[zone]]\nname = \"out\"\n[[nat.source]]\nname = \"pool\"\n\
                 to = {{ zone = \"out\" }}\nshared = true\n{keys}\n{more}"
            );
            Config::parse(&text, "gw.toml").map(drop).map_err(|errors| errors.to_string())
        };
        let pool = "pool = [\"203.0.113.0/30\"]";
        assert_eq!(check(PAIR, pool, ""), Ok(()));
        let destination = "[[nat.destination]]\nname = \"in\"\naddress = \"203.0.113.2\"\n\
                           service = \"tcp/80\"\ntarget = \"10.0.0.1\"\n";
        let rule = "[[nat.source]]\nname = \"also\"\npool = [\"203.0.113.0/30\"]\n";
        let computed =
            "deterministic = true\nfrom = { prefix = [\"10.0.0.0/24\"] }\npool = [\"203.0.113.0/30\"]";
        for (pair, keys, more, said) in [
            ("", pool, "", "nat.source[0].shared: goes with [pair]"),
            (PAIR, "pool = \"interface\"", "", "goes with a pool of addresses"),
            (PAIR, "exempt = true", "", "goes with a pool of addresses"),
            (PAIR, computed, "", "not with deterministic = true"),
            (
                PAIR,
                "pool = [\"203.0.113.9\"]\nports = \"32768-65535\"",
                "",
                "203.0.113.9 is of interface up as well",
            ),
            (PAIR, pool, destination, "203.0.113.2 is of nat.destination in as well"),
            (PAIR, pool, rule, "overlaps nat.source[0].pool[0]"),
        ] {
            let error = check(pair, keys, more).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_pair_link_is_a_cable_that_takes_all_other_packets() {
        let check = |link: &str, mtu: &str, [lan, sync]: [&str; 2]| {
            let text = format!(
                "schema = 1\n[pair]\nlocal = \"192.0.2.1:5405\"\npeer = \"192.0.2.2:5405\"\n\
                 key_file = \"/etc/softgate/pair.key\"\nlink = {{ {link} }}\n\
                 [[port]]\nname = \"sync\"\ndevice = \"eth1\"\n[[port]]\nname = \"lan\"\ndevice = \"eth2\"\n\
                 [[interface]]\nname = \"{lan}\"\nport = \"lan\"\naddresses = [\"10.0.0.1/24\"]\n\
                 [[interface]]\nname = \"{sync}\"\nport = \"sync\"\nmtu = {mtu}\n\
                 addresses = [\"203.0.113.1/30\", \"2001:db8:9::1/64\", \"fe80::9/64\"]\n"
            );
            Config::parse(&text, "gw.toml").map(drop).map_err(|errors| errors.to_string())
        };
        let ends = |local: &str, peer: &str| format!("local = \"{local}\", peer = \"{peer}\"");
        let four = ends("203.0.113.1", "203.0.113.2");
        assert_eq!(check(&four, "1536", ["lan", "sync"]), Ok(()));
        assert_eq!(check(&ends("2001:db8:9::1", "2001:db8:9::2"), "1556", ["lan", "sync"]), Ok(()));
        for (link, mtu, says) in [
            (four.clone(), "1535", "pair.link.local"),
            (ends("2001:db8:9::1", "2001:db8:9::2"), "1555", "give it mtu = 1556"),
            (ends("203.0.113.3", "203.0.113.2"), "1600", "pair.link.local"),
            (ends("203.0.113.1", "203.0.113.1"), "1600", "pair.link.peer"),
            (ends("203.0.113.1", "203.0.113.9"), "1600", "pair.link.peer"),
            (ends("203.0.113.1", "2001:db8:9::2"), "1600", "pair.link.peer"),
            (ends("fe80::9", "fe80::8"), "1600", "pair.link.peer"),
            (four.clone() + ", udp_port = 5405", "1600", "pair.link.udp_port"),
            (four.clone() + ", vrf = \"red\"", "1600", "pair.link.local"),
        ] {
            let refused = check(&link, mtu, ["lan", "sync"]).expect_err(&link);
            assert!(refused.contains(says), "{link}: {refused}");
        }
        // Two words that FNV-1a of 32 bits takes for one.
        assert_eq!(check(&four, "1600", ["costarring", "sync"]), Ok(()));
        let refused = check(&four, "1600", ["costarring", "liquid"]).expect_err("the same on the wire");
        assert!(refused.contains("are the same on the pair link"), "{refused}");
    }

    #[test]
    fn both_nodes_have_an_address_and_not_the_same() {
        let check = |local: &str, peer: &str| {
            let text = format!(
                "schema = 1\n[pair]\nlocal = \"{local}\"\npeer = \"{peer}\"\nkey_file = \"/etc/softgate/pair.key\"\n"
            );
            Config::parse(&text, "gw.toml").map(drop).map_err(|errors| errors.to_string())
        };
        assert_eq!(check("192.0.2.1:5405", "192.0.2.2:5405"), Ok(()));
        assert_eq!(check("[2001:db8::1]:5405", "[2001:db8::2]:5405"), Ok(()));
        for (local, peer, key) in [
            ("0.0.0.0:5405", "192.0.2.2:5405", "pair.local"),
            ("192.0.2.1:0", "192.0.2.2:5405", "pair.local"),
            ("192.0.2.1:5405", "224.0.0.1:5405", "pair.peer"),
            ("192.0.2.1:5405", "[2001:db8::2]:5405", "pair.peer"),
            ("192.0.2.1:5405", "192.0.2.1:5405", "pair.peer"),
        ] {
            let refused = check(local, peer).expect_err(peer);
            assert!(refused.contains(key), "{refused}");
        }
    }
}
