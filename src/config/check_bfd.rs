//! BFD sessions, and what virtual routers track: what no value shows by itself.

use std::net::IpAddr;

use ahash::AHashMap;

use super::Config;
use super::bfd::Bfd;
use super::check::{Checks, check_neighbour, is_link_local, list};
use super::sections::Interface;
use super::value::{InterfaceName, NextHop};
use super::vrrp::Track;

impl Checks<'_, '_> {
    pub(super) fn bfd(&mut self) {
        let config = self.config;
        if config.bfd.len() > Bfd::MAX {
            let allowed = format!("at most {} sessions, not {}", Bfd::MAX, config.bfd.len());
            self.table_fault(format!("bfd[{}]", Bfd::MAX), allowed);
            return;
        }
        let mut known: AHashMap<(&InterfaceName, IpAddr), usize> = AHashMap::new();
        for (index, bfd) in config.bfd.iter().enumerate() {
            let key = |key: &str| format!("bfd[{index}].{key}");
            let interface = config.interfaces.iter().find(|interface| interface.name == bfd.interface);
            let Some(interface) = interface else {
                let known = list(config.interfaces.iter().map(|interface| &interface.name));
                self.fault(key("interface"), &bfd.interface, format!("no such interface; known: {known}"));
                continue;
            };
            if interface.port.is_none() {
                let allowed = "sessions are on interfaces of a port; not yet on those of a VNI or a bridge";
                self.fault(key("interface"), &bfd.interface, allowed);
            }
            if let Some(other) = known.insert((&bfd.interface, bfd.peer), index) {
                let allowed = format!("bfd[{other}] is the session with it on interface {}", bfd.interface);
                self.fault(key("peer"), bfd.peer, allowed);
            }
            if let Err(why) = has_peer(config, interface, bfd.peer) {
                self.fault(key("peer"), bfd.peer, why);
            }
        }
    }

    pub(super) fn tracked(&mut self, key: &str, track: &Track) {
        let config = self.config;
        let named = [
            track.port.is_some(),
            track.service.is_some(),
            track.bfd.is_some(),
            track.neighbour.is_some(),
            track.sync.is_some(),
        ];
        if named.into_iter().filter(|is_named| *is_named).count() != 1 {
            self.table_fault(
                key.to_owned(),
                "what is tracked is one of: port, service, bfd, neighbour, sync",
            );
            return;
        }
        if track.healthy.is_some() && track.service.is_none() {
            self.table_fault(format!("{key}.healthy"), "the share of backends of a `service`");
        }
        match track.sync {
            Some(true) if config.pair.is_none() => {
                self.fault(format!("{key}.sync"), true, "there is no [pair] whose sessions could be here");
            }
            Some(false) => self.fault(format!("{key}.sync"), false, "sync = true, or another thing to track"),
            Some(true) | None => {}
        }
        if let Some(port) = &track.port
            && !config.ports.iter().any(|known| known.name == *port)
        {
            let known = list(config.ports.iter().map(|port| &port.name));
            self.fault(format!("{key}.port"), port, format!("no such port; known: {known}"));
        }
        if let Some(service) = &track.service {
            match config.services.iter().find(|known| known.name == *service) {
                None => {
                    let known = list(config.services.iter().map(|service| &service.name));
                    self.fault(format!("{key}.service"), service, format!("no such service; known: {known}"));
                }
                Some(known) if known.health.is_none() => {
                    let allowed =
                        "without health checks nobody knows how the service is: give it health = { ... }";
                    self.fault(format!("{key}.service"), service, allowed);
                }
                Some(_) => {}
            }
        }
        if let Some(peer) = &track.bfd
            && let Err(why) = config.session_with(peer)
        {
            self.fault(format!("{key}.bfd"), peer, why);
        }
        if let Some(neighbour) = &track.neighbour {
            match config.link_of(neighbour) {
                Err(why) => self.fault(format!("{key}.neighbour"), neighbour, why),
                Ok(interface) => {
                    let is_static = |known: &&super::Neighbour| {
                        known.interface == interface.name && known.address == neighbour.address
                    };
                    if config.neighbours.iter().any(|known| is_static(&known)) {
                        let allowed =
                            "a [[neighbour]]: its address is known, so nobody asks whether it is there";
                        self.fault(format!("{key}.neighbour"), neighbour, allowed);
                    }
                }
            }
        }
    }
}

/// Whether there may be a neighbour with this address to speak with.
fn has_peer(config: &Config, interface: &Interface, peer: IpAddr) -> Result<(), String> {
    check_neighbour(interface, peer)?;
    if is_link_local(peer) && !interface.addresses.iter().any(|own| own.address().is_ipv6() == peer.is_ipv6())
    {
        let family = if peer.is_ipv6() { "IPv6" } else { "IPv4" };
        return Err(format!("interface {} has no {family} address to speak from", interface.name));
    }
    let mut routers = config.vrrp.iter().filter(|router| router.interface == interface.name);
    match routers.find(|router| router.addresses.contains(&peer)) {
        Some(router) => Err(format!(
            "an address of the virtual router {}, which this node may have itself: name the other node's own",
            router.id
        )),
        None => Ok(()),
    }
}

impl Config {
    /// The session that `track` or a route means: by its peer, where several have that by link or VRF as well.
    pub(crate) fn session_with(&self, peer: &NextHop) -> Result<&Bfd, String> {
        let vrf_of =
            |bfd: &Bfd| self.interfaces.iter().find(|known| known.name == bfd.interface).map(|i| &i.vrf);
        let is_meant = |bfd: &&Bfd| {
            bfd.peer == peer.address
                && peer.interface.as_ref().is_none_or(|interface| *interface == bfd.interface)
                && (peer.vrf.is_none() || peer.vrf.as_ref() == vrf_of(bfd))
        };
        let mut found = self.bfd.iter().filter(is_meant);
        match (found.next(), found.next()) {
            (Some(bfd), None) => Ok(bfd),
            (Some(_), Some(_)) => {
                Err(String::from("several [[bfd]] have this peer: name the VRF, ADDRESS@VRF"))
            }
            (None, _) => {
                let known = list(self.bfd.iter().map(|bfd| bfd.peer));
                let known = if known.is_empty() { "none".into() } else { known };
                Err(format!("no [[bfd]] has this peer; known: {known}"))
            }
        }
    }

    /// The interface that a neighbour is on.
    pub(crate) fn link_of(&self, neighbour: &NextHop) -> Result<&Interface, String> {
        let is_meant = |interface: &&Interface| {
            let in_network = || interface.addresses.iter().any(|own| own.net().contains(&neighbour.address));
            neighbour.vrf.as_ref().is_none_or(|vrf| *vrf == interface.vrf)
                && match &neighbour.interface {
                    Some(name) => *name == interface.name,
                    None => in_network(),
                }
        };
        let mut found = self.interfaces.iter().filter(is_meant);
        match (found.next(), found.next()) {
            (Some(interface), None) if interface.port.is_none() => Err(String::from(
                "neighbours are tracked on interfaces of a port; not yet on those of a VNI or a bridge",
            )),
            (Some(interface), None) => has_peer(self, interface, neighbour.address).map(|()| interface),
            (Some(_), Some(_)) => {
                Err(String::from("on the link of several interfaces: name the VRF, ADDRESS@VRF"))
            }
            (None, _) => Err(String::from("not on the link of any interface")),
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
[[interface]]
name = "uplink"
port = "lan"
addresses = ["198.51.100.2/24", "2001:db8:ffff::2/64"]
[[interface]]
name = "other"
port = "lan"
vlan = 7
vrf = "blue"
addresses = ["198.51.100.2/24"]
[[interface]]
name = "overlay"
vni = 7
vtep = "198.51.100.2"
remotes = ["198.51.100.9"]
addresses = ["10.0.8.2/24"]
[[neighbour]]
interface = "uplink"
address = "198.51.100.7"
mac = "02:00:00:00:00:07"
[[bfd]]
peer = "198.51.100.1"
interface = "uplink"
interval = "50ms"
[[bfd]]
peer = "fe80::1"
interface = "uplink"
multiplier = 5
[[vrrp]]
interface = "uplink"
id = 10
addresses = ["198.51.100.254"]
track = [
    { bfd = "198.51.100.1", weight = 30 },
    { bfd = "fe80::1%uplink", weight = 30 },
    { neighbour = "198.51.100.3@default", weight = 20 },
]
"#;

    #[test]
    fn a_good_config_is_read_and_written() {
        let config = Config::parse(GOOD, "gw.toml").expect("good");
        let (first, second) = (&config.bfd[0], &config.bfd[1]);
        assert_eq!((first.interval.micros(), first.multiplier.get()), (50_000, 3));
        assert_eq!((second.interval.micros(), second.multiplier.get()), (300_000, 5));
        assert_eq!(Config::parse(&config.to_toml(), "again").expect("good"), config);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let one = "interface = \"uplink\"\ninterval";
        for (good, bad, said) in [
            (
                one,
                "interface = \"uplunk\"\ninterval",
                "bfd[0].interface: uplunk: no such interface; known: uplink",
            ),
            (
                one,
                "interface = \"overlay\"\ninterval",
                "bfd[0].interface: overlay: sessions are on interfaces of a port",
            ),
            ("\"50ms\"", "\"5ms\"", "bfd[0].interval: \"5ms\": an interval is 10ms to 10s"),
            ("multiplier = 5", "multiplier = 0", "bfd[1].multiplier: 0: allowed is 1 to 255"),
            (
                "peer = \"198.51.100.1\"",
                "peer = \"198.51.99.1\"",
                "bfd[0].peer: 198.51.99.1: not on the link of",
            ),
            (
                "peer = \"198.51.100.1\"",
                "peer = \"198.51.100.2\"",
                "bfd[0].peer: 198.51.100.2: the gateway's own address",
            ),
            (
                "peer = \"198.51.100.1\"",
                "peer = \"198.51.100.254\"",
                "bfd[0].peer: 198.51.100.254: an address of the virtual router 10",
            ),
            (
                "peer = \"198.51.100.1\"",
                "peer = \"fe80::1\"",
                "bfd[1].peer: fe80::1: bfd[0] is the session with it",
            ),
            (
                "peer = \"fe80::1\"\ninterface = \"uplink\"",
                "peer = \"fe80::1\"\ninterface = \"other\"",
                "bfd[1].peer: fe80::1: interface other has no IPv6 address to speak from",
            ),
            (
                "{ bfd = \"198.51.100.1\"",
                "{ bfd = \"198.51.100.9\"",
                "vrrp[0].track[0].bfd: 198.51.100.9: no [[bfd]]",
            ),
            (
                "\"198.51.100.3@default\"",
                "\"198.51.100.3\"",
                "vrrp[0].track[2].neighbour: 198.51.100.3: on the link of several interfaces",
            ),
            (
                "\"198.51.100.3@default\"",
                "\"198.51.100.7@default\"",
                "vrrp[0].track[2].neighbour: 198.51.100.7@default: a [[neighbour]]",
            ),
            (
                "\"198.51.100.3@default\"",
                "\"192.0.2.3\"",
                "vrrp[0].track[2].neighbour: 192.0.2.3: not on the link",
            ),
            (
                "bfd = \"198.51.100.1\", weight",
                "bfd = \"198.51.100.1\", port = \"lan\", weight",
                "vrrp[0].track[0]: what is tracked is one of: port, service, bfd, neighbour, sync",
            ),
            (
                "bfd = \"198.51.100.1\", weight",
                "bfd = \"198.51.100.1\", healthy = \"50%\", weight",
                "vrrp[0].track[0].healthy: the share of backends of a `service`",
            ),
            (
                "bfd = \"198.51.100.1\", weight",
                "bfd = \"198.51.100.1\", healthy = \"500%\", weight",
                "vrrp[0].track[0].healthy: \"500%\": a share is \"1%\" to \"100%\"",
            ),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let errors = Config::parse(&GOOD.replacen(good, bad, 1), "gw.toml").expect_err(bad).to_string();
            assert!(errors.contains(said), "{bad}: {errors}");
        }
        let twice = GOOD.replacen(
            "peer = \"fe80::1\"\ninterface = \"uplink\"",
            "peer = \"198.51.100.1\"\ninterface = \"other\"",
            1,
        );
        let errors = Config::parse(&twice, "gw.toml").expect_err("ambiguous").to_string();
        assert!(
            errors.contains("vrrp[0].track[0].bfd: 198.51.100.1: several [[bfd]] have this peer"),
            "{errors}"
        );
    }
}
