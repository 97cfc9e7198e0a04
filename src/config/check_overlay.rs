//! Interfaces with a VNI: what belongs together, and tunnel end points that are what they have to be.

use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};

use super::bridge::End;
use super::check::{Checks, list};
use super::sections::Interface;
use super::value::{Mtu, PortName, VrfName};

/// Remote tunnel end points of one interface: each broadcast goes to all of them.
pub const MAX_REMOTES: usize = 128;

/// Different remote tunnel end points of all interfaces: a quarter of the places that the table has.
pub const MAX_REMOTES_IN_ALL: usize = 1024;

/// Different UDP ports of all interfaces.
pub const MAX_UDP_PORTS: usize = 8;

/// Prefixes of one `accept_from`.
const MAX_ACCEPT_FROM: usize = 64;

impl Checks<'_, '_> {
    /// The port of an interface that is on one; the keys that say so go together.
    pub(super) fn port_of<'i>(&mut self, end: &str, interface: &'i Interface) -> Option<&'i PortName> {
        let key = |key: &str| format!("{end}.{key}");
        let with_port = [
            ("port", interface.port.is_some()),
            ("vlan", interface.vlan.is_some()),
            ("tpid", interface.tpid.is_some()),
        ];
        let instead = match (interface.vni.is_some(), interface.bridge.is_some()) {
            (true, false) => Some("an interface with a VNI is on no port: tunnels go where routes lead"),
            (_, true) => Some("an interface of a bridge is on no port: the bridge's members are"),
            (false, false) => None,
        };
        if let Some(allowed) = instead {
            for (name, _) in with_port.iter().filter(|(_, is_there)| *is_there) {
                self.table_fault(key(name), allowed);
            }
        }
        if interface.vni.is_some() && interface.bridge.is_none() {
            return None;
        }
        let with_vni = [
            ("vni", interface.vni.is_some() && interface.bridge.is_some()),
            ("vtep", interface.vtep.is_some()),
            ("remotes", !interface.remotes.is_empty()),
            ("accept_from", !interface.accept_from.is_empty()),
            ("underlay_vrf", interface.underlay_vrf.is_some()),
            ("encapsulation", interface.encapsulation.is_some()),
            ("udp_port", interface.udp_port.is_some()),
            ("dscp", interface.dscp.is_some()),
            ("ttl", interface.ttl.is_some()),
            ("learning", interface.learning.is_some()),
            ("udp_checksum", interface.udp_checksum.is_some()),
        ];
        for (name, _) in with_vni.iter().filter(|(_, is_there)| *is_there) {
            let allowed = match interface.bridge {
                Some(_) => "an interface of a bridge has no tunnels: make a VNI a member of the bridge",
                None => "goes with a VNI: write vni = 5001, or leave it out",
            };
            self.table_fault(key(name), allowed);
        }
        if interface.port.is_none() && interface.bridge.is_none() {
            let allowed = match end.starts_with("bridge") {
                true => "a member has one of: port, vni",
                false => "an interface has one of: port, vni, bridge",
            };
            self.table_fault(end.to_owned(), allowed);
        }
        if interface.bridge.is_some() { None } else { interface.port.as_ref() }
    }

    /// Every VNI once per tunnel end point, which is ours; remotes that can be; an MTU that fits.
    pub(super) fn overlays(&mut self, ends: &[End]) {
        let config = self.config;
        let mut vnis: AHashMap<(VrfName, IpAddr, u16, u32), &Interface> = AHashMap::new();
        let mut ports: AHashSet<u16> = AHashSet::new();
        let mut all_remotes: AHashSet<IpAddr> = AHashSet::new();
        for End { key: end, interface, .. } in ends {
            let Some(vni) = interface.vni.filter(|_| interface.bridge.is_none()) else { continue };
            let key = |key: &str| format!("{end}.{key}");
            let Some(vtep) = interface.vtep else {
                self.table_fault(end.clone(), "a VNI needs vtep = \"192.0.2.1\": its tunnel end point");
                continue;
            };
            let (vrf, port) = (interface.underlay(), interface.tunnel_port());
            if let Some(other) = vnis.insert((vrf.clone(), vtep, port, vni.get()), interface) {
                let other = &other.name;
                self.fault(key("vni"), vni, format!("interface {other} already has this VNI at {vtep}"));
            }
            let before = ports.len();
            ports.insert(port);
            if before == MAX_UDP_PORTS && ports.len() > before {
                self.fault(
                    key("udp_port"),
                    port,
                    format!("at most {MAX_UDP_PORTS} different UDP ports of tunnels"),
                );
            }
            let own = |carrier: &&Interface| carrier.addresses.iter().any(|own| own.address() == vtep);
            let virtual_router = config.router_with(&vrf, vtep);
            if virtual_router.is_some() {
                self.common_end(end, interface);
            }
            match interface.carrier(&config.interfaces).filter(|at| virtual_router.is_some() || own(at)) {
                None => {
                    let own =
                        config.interfaces.iter().filter(|other| other.port.is_some() && other.vrf == vrf);
                    let own = list(own.flat_map(|other| other.addresses.iter().map(|own| own.address())));
                    let known = if own.is_empty() { String::from("nothing") } else { own };
                    self.fault(
                        key("vtep"),
                        vtep,
                        format!("not an address of the gateway on a port in VRF {vrf}, which has {known}"),
                    );
                }
                Some(carrier) => self.overlay_mtu(end, interface, carrier),
            }
            if vtep.is_ipv6() && matches!(vtep, IpAddr::V6(vtep) if vtep.is_unicast_link_local()) {
                self.fault(key("vtep"), vtep, "tunnels need a routable address");
            }
            self.remotes(end, interface, vtep);
            let before = all_remotes.len();
            all_remotes.extend(&interface.remotes);
            if before <= MAX_REMOTES_IN_ALL && all_remotes.len() > MAX_REMOTES_IN_ALL {
                let allowed = format!("at most {MAX_REMOTES_IN_ALL} different remotes of all interfaces");
                self.table_fault(key("remotes"), allowed);
            }
        }
    }

    /// A tunnel end point that several nodes have: what its Active is behind it, the next one is as well.
    fn common_end(&mut self, end: &str, interface: &Interface) {
        if end.starts_with("bridge") {
            let allowed = "an address of a virtual router; in a bridge the end point is each node's own";
            self.table_fault(format!("{end}.vtep"), allowed);
        } else if interface.mac.is_none() {
            let allowed = "behind an address of a virtual router all nodes have one MAC address: write mac = \"02:00:5e:00:00:01\", or another one";
            self.table_fault(format!("{end}.mac"), allowed);
        }
        if let Some(at) = interface.remotes.iter().position(|remote| Some(*remote) == interface.vtep) {
            self.fault(format!("{end}.remotes[{at}]"), interface.remotes[at], "this is the `vtep`");
        }
    }

    fn remotes(&mut self, end: &str, interface: &Interface, vtep: IpAddr) {
        let key = |key: &str, at: usize| format!("{end}.{key}[{at}]");
        if interface.remotes.is_empty() && interface.accept_from.is_empty() {
            let allowed = "a VNI needs remotes = [\"192.0.2.2\"], or accept_from = [\"192.0.2.0/24\"] to learn them from";
            self.table_fault(end.to_owned(), allowed);
        }
        if interface.remotes.len() > MAX_REMOTES {
            let allowed =
                format!("at most {MAX_REMOTES} remotes of an interface: each broadcast goes to all of them");
            self.fault(format!("{end}.remotes"), interface.remotes.len(), allowed);
        }
        if interface.accept_from.len() > MAX_ACCEPT_FROM {
            let allowed = format!("at most {MAX_ACCEPT_FROM} prefixes");
            self.fault(format!("{end}.accept_from"), interface.accept_from.len(), allowed);
        }
        let own: AHashSet<IpAddr> = self
            .config
            .interfaces
            .iter()
            .flat_map(|other| other.addresses.iter().map(|own| own.address()))
            .collect();
        let mut seen = AHashSet::new();
        for (at, remote) in interface.remotes.iter().enumerate() {
            let family = if vtep.is_ipv4() { "an IPv4" } else { "an IPv6" };
            if remote.is_ipv4() != vtep.is_ipv4() {
                self.fault(
                    key("remotes", at),
                    remote,
                    format!("the vtep is {family} address, so its remotes are too"),
                );
            } else if !can_be_remote(*remote) {
                self.fault(key("remotes", at), remote, "a remote has a routable unicast address");
            } else if own.contains(remote) {
                self.fault(key("remotes", at), remote, "the gateway's own address");
            } else if !seen.insert(remote) {
                self.fault(key("remotes", at), remote, "the address stands there twice");
            }
        }
        for (at, prefix) in interface.accept_from.iter().enumerate() {
            if prefix.net().addr().is_ipv4() != vtep.is_ipv4() {
                self.fault(key("accept_from", at), prefix, "of another family than the vtep");
            }
        }
        if interface.learning == Some(false) && !interface.accept_from.is_empty() {
            let allowed =
                "who is not configured is learned: leave learning = false out, or name them as remotes";
            self.table_fault(format!("{end}.accept_from"), allowed);
        }
    }

    fn overlay_mtu(&mut self, end: &str, interface: &Interface, carrier: &Interface) {
        let (around, overhead) = (carrier.mtu.unwrap_or_default().bytes(), interface.overhead());
        let most = around - overhead;
        let key = format!("{end}.mtu");
        match interface.mtu {
            Some(mtu) if mtu.bytes() > most => {
                let allowed = format!(
                    "a tunnel adds {overhead} bytes, and the MTU of interface {} is {around}: at most {most}",
                    carrier.name
                );
                self.fault(key, mtu.bytes(), allowed);
            }
            None if Mtu::new(most).is_err() => {
                let allowed = format!(
                    "a tunnel adds {overhead} bytes, and the MTU of interface {} is {around}: {most} are left, and 576 needed",
                    carrier.name
                );
                self.table_fault(key, allowed);
            }
            _ => {}
        }
    }
}

fn can_be_remote(remote: IpAddr) -> bool {
    match remote {
        IpAddr::V4(remote) => {
            let first = remote.octets()[0];
            first != 0 && first != 127 && first < 224 && !remote.is_link_local()
        }
        IpAddr::V6(remote) => {
            !remote.is_multicast()
                && !remote.is_unspecified()
                && !remote.is_loopback()
                && !remote.is_unicast_link_local()
                && remote.to_ipv4_mapped().is_none()
        }
    }
}

/// Whether a static neighbour on `interface` may be behind `remote`.
pub fn check_remote(interface: &Interface, remote: Option<IpAddr>) -> Result<(), String> {
    match remote {
        None if interface.vni.is_some() && interface.remotes.len() != 1 => Err(format!(
            "interface {} has several remotes: write which one the neighbour is behind",
            interface.name
        )),
        None => Ok(()),
        Some(_) if interface.vni.is_none() => {
            Err(format!("interface {} has no VNI, and neighbours on it no remote", interface.name))
        }
        Some(remote)
            if interface.remotes.contains(&remote)
                || interface.accept_from.iter().any(|prefix| prefix.net().contains(&remote)) =>
        {
            Ok(())
        }
        Some(_) => Err(format!(
            "not a remote of interface {}, which has {}",
            interface.name,
            list(interface.remotes.iter())
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const GOOD: &str = r#"
schema = 1
[[port]]
name = "up"
device = "eth1"
[[interface]]
name = "up"
port = "up"
addresses = ["192.0.2.1/24", "2001:db8::1/64"]
[[interface]]
name = "blue"
vni = 5001
vtep = "192.0.2.1"
remotes = ["192.0.2.2", "198.51.100.7"]
dscp = "copy"
addresses = ["10.9.0.1/24"]
[[interface]]
name = "red"
vni = 5001
vtep = "2001:db8::1"
remotes = ["2001:db8::2"]
dscp = 46
ttl = 9
udp_port = 8472
mtu = 1400
addresses = ["10.8.0.1/24"]
[[neighbour]]
interface = "blue"
address = "10.9.0.10"
mac = "02:00:00:00:00:10"
remote = "192.0.2.2"
"#;

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let errors = Config::parse(&GOOD.replacen(from, to, 1), "gw.toml").expect_err(to);
        errors.to_string()
    }

    #[test]
    fn a_tunnel_end_point_may_be_a_virtual_routers() {
        let check = |vtep: &str, mac: &str, remote: &str| {
            let text = GOOD
                .replacen("vtep = \"192.0.2.1\"", &format!("vtep = \"{vtep}\"\n{mac}"), 1)
                .replacen("198.51.100.7", remote, 1);
            let router = "[[vrrp]]\ninterface = \"up\"\nid = 1\naddresses = [\"192.0.2.254\"]\n";
            let config = Config::parse(&(text + router), "gw.toml").map_err(|errors| errors.to_string())?;
            Ok(config.interfaces[1].mtu(&config.interfaces).bytes())
        };
        let mac = "mac = \"02:00:5e:00:00:01\"";
        assert_eq!(check("192.0.2.254", mac, "192.0.2.9"), Ok(1450));
        let refused = |vtep, mac, remote| -> String { check(vtep, mac, remote).expect_err(vtep) };
        assert!(refused("192.0.2.254", "", "192.0.2.9").contains("interface[1].mac"));
        assert!(
            refused("192.0.2.253", mac, "192.0.2.9")
                .contains("interface[1].vtep: 192.0.2.253: not an address")
        );
        assert!(refused("192.0.2.254", mac, "192.0.2.254").contains("interface[1].remotes"));
    }

    #[test]
    fn an_overlay_takes_what_its_tunnel_leaves_of_the_mtu() {
        let config = Config::parse(GOOD, "gw.toml").expect("a good config");
        let mtus: Vec<u16> = config.interfaces.iter().map(|i| i.mtu(&config.interfaces).bytes()).collect();
        assert_eq!(mtus, [1500, 1450, 1400]);
        let config = Config::parse(&GOOD.replace("mtu = 1400\n", ""), "gw.toml").expect("a good config");
        assert_eq!(config.interfaces[2].mtu(&config.interfaces).bytes(), 1430);
        assert_eq!(Config::parse(&config.to_toml(), "gw.toml").expect("what it wrote itself"), config);
    }

    #[test]
    fn each_error_names_what_is_allowed() {
        let cases = [
            ("vni = 5001\n", "vni = 16777216\n", "interface[1].vni: 16777216: allowed is 0 to 16777215"),
            (
                "vni = 5001\n",
                "vni = 5001\nport = \"up\"\n",
                "interface[1].port: an interface with a VNI is on no port",
            ),
            (
                "vni = 5001\n",
                "vni = 5001\nvlan = 7\n",
                "interface[1].vlan: an interface with a VNI is on no port",
            ),
            ("vni = 5001\n", "", "interface[1].vtep: goes with a VNI"),
            ("port = \"up\"\naddr", "addr", "interface[0]: an interface has one of: port, vni"),
            ("port = \"up\"\naddr", "port = \"up\"\nttl = 3\naddr", "interface[0].ttl: goes with a VNI"),
            ("vtep = \"192.0.2.1\"\n", "", "interface[1]: a VNI needs vtep"),
            (
                "vtep = \"192.0.2.1\"",
                "vtep = \"192.0.2.9\"",
                "interface[1].vtep: 192.0.2.9: not an address of the gateway on a port in VRF default, which has 192.0.2.1, 2001:db8::1",
            ),
            (
                "vtep = \"192.0.2.1\"",
                "vtep = \"10.8.0.1\"",
                "not an address of the gateway on a port in VRF default",
            ),
            (
                "vtep = \"192.0.2.1\"",
                "vtep = \"192.0.2.1\"\nunderlay_vrf = \"x\"",
                "in VRF x, which has nothing",
            ),
            ("udp_port = 8472", "udp_port = 0", "interface[2].udp_port: 0: allowed is 1 to 65535"),
            ("ttl = 9", "ttl = 0", "interface[2].ttl: 0: allowed is 1 to 255"),
            ("dscp = 46", "dscp = 64", "interface[2].dscp"),
            ("dscp = 46", "dscp = \"ef\"", "\"copy\" or a DSCP, 0 to 63"),
            (
                "remotes = [\"2001:db8::2\"]",
                "remotes = [\"192.0.2.2\"]",
                "interface[2].remotes[0]: 192.0.2.2: the vtep is an IPv6 address",
            ),
            (
                "\"198.51.100.7\"",
                "\"192.0.2.1\"",
                "interface[1].remotes[1]: 192.0.2.1: the gateway's own address",
            ),
            (
                "\"198.51.100.7\"",
                "\"224.0.0.7\"",
                "interface[1].remotes[1]: 224.0.0.7: a remote has a routable unicast address",
            ),
            (
                "\"198.51.100.7\"",
                "\"192.0.2.2\"",
                "interface[1].remotes[1]: 192.0.2.2: the address stands there twice",
            ),
            ("remotes = [\"2001:db8::2\"]\n", "", "interface[2]: a VNI needs remotes"),
            (
                "remotes = [\"2001:db8::2\"]\n",
                "accept_from = [\"2001:db8::/64\"]\nlearning = false\n",
                "interface[2].accept_from: who is not configured is learned",
            ),
            (
                "remotes = [\"2001:db8::2\"]",
                "accept_from = [\"10.0.0.0/8\"]",
                "interface[2].accept_from[0]: 10.0.0.0/8: of another family",
            ),
            (
                "mtu = 1400",
                "mtu = 1431",
                "interface[2].mtu: 1431: a tunnel adds 70 bytes, and the MTU of interface up is 1500: at most 1430",
            ),
            (
                "vtep = \"2001:db8::1\"\nremotes = [\"2001:db8::2\"]\ndscp = 46\nttl = 9\nudp_port = 8472",
                "vtep = \"192.0.2.1\"\nremotes = [\"192.0.2.2\"]",
                "interface[2].vni: 5001: interface blue already has this VNI at 192.0.2.1",
            ),
            ("remote = \"192.0.2.2\"\n", "", "neighbour[0].remote: interface blue has several remotes"),
            (
                "remote = \"192.0.2.2\"",
                "remote = \"192.0.2.3\"",
                "neighbour[0].remote: 192.0.2.3: not a remote of interface blue",
            ),
            (
                "interface = \"blue\"\naddress = \"10.9.0.10\"",
                "interface = \"up\"\naddress = \"192.0.2.10\"",
                "neighbour[0].remote: 192.0.2.2: interface up has no VNI",
            ),
        ];
        for (from, to, expected) in cases {
            let said = refusal(from, to);
            assert!(said.contains(expected), "{to}: {said}");
        }
    }
}
