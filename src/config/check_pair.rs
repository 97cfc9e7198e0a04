//! The pair: what no value shows by itself.

use std::net::{IpAddr, SocketAddr};

use super::check::Checks;

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
