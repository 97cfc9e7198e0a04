//! Deterministic source NAT (RFC 7422) as typed: whose ports are a function of their address, and whether that fits.

use std::net::{IpAddr, Ipv4Addr};

use super::Config;
use super::addresses::{AddressRange, NatPool};
use super::check::Checks;
use super::check_policy::addr_number;
use super::policy::NatSource;
use super::value::{Ranged, VrfName};
use crate::flow::nat::{InsideRange, Share, Subscribers};
use crate::neighbours::v4_key;

/// Hosts that can share an address: with all its ports from 1024 on, 64 each.
pub type HostsPerAddress = Ranged<1, 1008>;
/// Ports of a host: all that an address has are 64,512.
pub type PortsPerHost = Ranged<64, 64_512>;

/// Whose ports a deterministic source NAT computes, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sharing {
    /// VRF of the hosts.
    pub vrf: VrfName,
    /// The hosts, ascending: ranges with a gap between each other.
    pub hosts: Vec<(Ipv4Addr, Ipv4Addr)>,
    hosts_per_address: Option<u16>,
    ports_per_host: Option<u16>,
    /// Block size of the overflow, if there is one.
    overflow: Option<u16>,
}

/// What is wrong with the keys: the key behind that of the rule, its value, what is allowed.
type Wrong = (&'static str, Option<String>, String);

impl Sharing {
    /// What a rule asks for; `None`: its NAT is dynamic.
    pub fn of(config: &Config, rule: &NatSource) -> Result<Option<Sharing>, Wrong> {
        let wrong = |key, value: Option<String>, allowed: &str| Err((key, value, allowed.to_owned()));
        if !rule.deterministic {
            let given = [
                (".hosts_per_address", rule.hosts_per_address.map(|hosts| hosts.get().to_string())),
                (".ports_per_host", rule.ports_per_host.map(|ports| ports.get().to_string())),
                (".overflow", rule.overflow.then(|| String::from("true"))),
            ];
            return match given.into_iter().find(|(_, value)| value.is_some()) {
                Some((key, value)) => wrong(key, value, "goes with deterministic = true"),
                None => Ok(None),
            };
        }
        if !matches!(rule.pool, Some(NatPool::Addresses(_))) {
            return wrong(".deterministic", None, "a deterministic NAT has a pool of addresses");
        }
        let Some(prefixes) = &rule.from.prefix else {
            let allowed = "a deterministic NAT computes ports from inside addresses: say which, \
                           from = { prefix = [...] }";
            return wrong(".from", None, allowed);
        };
        let mut hosts: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
        for range in prefixes.iter() {
            let (IpAddr::V4(first), IpAddr::V4(last)) = (range.first(), range.last()) else {
                let allowed = "source NAT is for IPv4; IPv6 addresses need none";
                return wrong(".from.prefix", Some(range.to_string()), allowed);
            };
            hosts.push((first, last));
        }
        hosts.sort_unstable();
        let mut merged: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
        for (first, last) in hosts {
            match merged.last_mut() {
                Some(before) if u64::from(first.to_bits()) <= u64::from(before.1.to_bits()) + 1 => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Ok(Some(Sharing {
            vrf: inside_vrf(config, rule)?,
            hosts: merged,
            hosts_per_address: rule.hosts_per_address.map(|hosts| hosts.get() as u16), // at most 1008
            ports_per_host: rule.ports_per_host.map(|ports| ports.get() as u16),       // at most 64,512
            overflow: rule.overflow.then(|| config.nat.block_size.ports()),
        }))
    }

    /// As the NAT has it, with the slot of the VRF.
    pub fn subscribers(&self, vrf: u16) -> Subscribers {
        let range = |(first, last): &(Ipv4Addr, Ipv4Addr)| InsideRange {
            first: v4_key(first.to_bits()),
            // All of IPv4 are one more than 32 bits hold; no pool has room for half of them.
            count: (last.to_bits() - first.to_bits()).saturating_add(1),
        };
        Subscribers {
            vrf,
            ranges: self.hosts.iter().map(range).collect(),
            hosts_per_address: self.hosts_per_address,
            ports_per_host: self.ports_per_host,
            overflow: self.overflow,
        }
    }
}

/// The one VRF that the hosts of a rule are in.
fn inside_vrf(config: &Config, rule: &NatSource) -> Result<VrfName, Wrong> {
    let from = &rule.from;
    if let Some(vrf) = &from.vrf {
        return Ok(vrf.clone());
    }
    let mut vrfs: Vec<&VrfName> = config
        .interfaces
        .iter()
        .filter(|interface| from.interface.as_ref().is_none_or(|name| interface.name == *name))
        .filter(|interface| from.zone.is_none() || interface.zone == from.zone)
        .map(|interface| &interface.vrf)
        .collect();
    vrfs.sort_unstable();
    vrfs.dedup();
    match vrfs[..] {
        [] => Ok(rule.vrf.clone()),
        [vrf] => Ok(vrf.clone()),
        _ => {
            let names: Vec<&str> = vrfs.iter().map(|vrf| vrf.as_str()).collect();
            let allowed = format!(
                "the hosts of a deterministic NAT are in one VRF, these may be in {}: say which, from = {{ vrf = ... }}",
                names.join(", ")
            );
            Err((".from", None, allowed))
        }
    }
}

impl Checks<'_, '_> {
    /// Checks what a rule says of deterministic NAT; its sharing, if it has one.
    pub(super) fn deterministic(&mut self, key: &str, rule: &NatSource) -> Option<Sharing> {
        let sharing = match Sharing::of(self.config, rule) {
            Ok(sharing) => sharing?,
            Err((behind, value, allowed)) => {
                match value {
                    Some(value) => self.fault(format!("{key}{behind}"), value, allowed),
                    None => self.table_fault(format!("{key}{behind}"), allowed),
                }
                return None;
            }
        };
        let ports = rule.ports.map_or((1024, u16::MAX), |ports| (ports.first(), ports.last()));
        let count = |range: &AddressRange| addr_number(range.last()) - addr_number(range.first()) + 1;
        let pool = rule.pool.as_ref().map_or(&[][..], NatPool::addresses);
        let addresses = pool.iter().map(count).fold(0, u128::saturating_add).min(u32::MAX.into()) as u32;
        if let Err(bad) = Share::of(&sharing.subscribers(0), addresses, ports) {
            self.table_fault(format!("{key}.deterministic"), bad.to_string());
        }
        Some(sharing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// A config with a NAT of `keys`, and what is typed after it.
    fn config(keys: &str) -> String {
        format!(
            r#"schema = 1
[[port]]
name = "a"
device = "a"
[[interface]]
name = "inside"
port = "a"
vlan = 1
zone = "inside"
addresses = ["100.64.0.1/10"]
[[interface]]
name = "more"
port = "a"
vlan = 2
zone = "mixed"
vrf = "blue"
addresses = ["100.64.0.1/10"]
[[interface]]
name = "most"
port = "a"
vlan = 3
zone = "mixed"
addresses = ["192.0.2.1/24"]
[[nat.source]]
name = "cgn"
{keys}
"#
        )
    }

    fn sharing(keys: &str) -> Result<Option<Sharing>, String> {
        let config = Config::parse(&config(keys), "gw.toml").map_err(|errors| errors.to_string())?;
        Sharing::of(&config, &config.nat.sources[0]).map_err(|wrong| format!("{wrong:?}"))
    }

    const GOOD: &str = r#"from = { zone = "inside", prefix = ["100.64.1.0/24", "100.64.0.0/24", "100.64.0.128-100.64.1.9", "100.64.3.1"] }
pool = ["203.0.113.0/29"]
deterministic = true"#;

    #[test]
    fn hosts_are_merged_and_ascending_and_in_one_vrf() {
        let found = sharing(GOOD).expect("legal").expect("deterministic");
        let [first, last, one] = [[100, 64, 0, 0], [100, 64, 1, 255], [100, 64, 3, 1]].map(Ipv4Addr::from);
        assert_eq!(
            (found.hosts.as_slice(), found.vrf.as_str()),
            (&[(first, last), (one, one)][..], "default")
        );
        assert_eq!(found.subscribers(0).count(), 513);
        let interface = sharing(&GOOD.replace("zone = \"inside\"", "interface = \"more\"")).expect("legal");
        assert_eq!(interface.expect("deterministic").vrf.as_str(), "blue");
        let said =
            sharing(&GOOD.replace("zone = \"inside\"", "zone = \"mixed\", vrf = \"blue\"")).expect("legal");
        assert_eq!(said.expect("deterministic").vrf.as_str(), "blue");
        assert_eq!(sharing("pool = [\"203.0.113.0/29\"]"), Ok(None));
        let all = Config::parse(&config(GOOD), "gw.toml").expect("legal");
        let written = all.to_toml();
        assert_eq!(Config::parse(&written, "gw.toml").expect("legal").nat, all.nat);
    }

    #[test]
    fn what_does_not_fit_is_an_error_with_the_numbers() {
        for (from, to, complaint) in [
            (
                "deterministic = true",
                "ports_per_host = 128",
                "ports_per_host: 128: goes with deterministic = true",
            ),
            ("deterministic = true", "overflow = true", "overflow: true: goes with deterministic = true"),
            (
                "deterministic = true",
                "hosts_per_address = 9",
                "hosts_per_address: 9: goes with deterministic = true",
            ),
            (
                "[\"203.0.113.0/29\"]",
                "\"interface\"",
                "deterministic: a deterministic NAT has a pool of addresses",
            ),
            (
                "zone = \"inside\", prefix",
                "zone = \"inside\" }\nto = { prefix",
                "from: a deterministic NAT computes ports from inside addresses: say which, from = { prefix = [...] }",
            ),
            (
                "\"100.64.3.1\"",
                "\"2001:db8::/64\"",
                "from.prefix: 2001:db8::/64: source NAT is for IPv4; IPv6 addresses need none",
            ),
            (
                "zone = \"inside\"",
                "zone = \"mixed\"",
                "from: the hosts of a deterministic NAT are in one VRF, these may be in blue, default: say which, from = { vrf = ... }",
            ),
            (
                "true",
                "true\nports_per_host = 8192",
                "deterministic: 513 inside addresses with 8192 ports each are more than 8 outside addresses have room for: 7 share one, so 74 are needed",
            ),
            (
                "100.64.3.1",
                "100.72.0.0/14",
                "deterministic: 262656 inside addresses with 64 ports each are more than 8 outside addresses have room for: 1008 share one, so 261 are needed",
            ),
            (
                "100.64.3.1",
                "0.0.0.0/0",
                "deterministic: 4294967295 inside addresses with 64 ports each are more than 8 outside addresses have room for: 1008 share one, so 4260881 are needed",
            ),
            (
                "true",
                "true\nports_per_host = 1000",
                "deterministic: 1000 ports for each host: whole 64s are needed, for blocks of ports come in units of 64",
            ),
            (
                "true",
                "true\nhosts_per_address = 63\nports_per_host = 2048",
                "deterministic: 63 with 2048 ports each to an address need 129024, and it has 64512 (whole 64s of its range)",
            ),
            ("true", "true\nhosts_per_address = 100\noverflow = true\nports_per_host = 640", ""),
            (
                "true",
                "true\nhosts_per_address = 72\noverflow = true",
                "deterministic: 72 hosts with 896 ports each leave no whole block of an address's 64512 ports for overflow",
            ),
            ("true", "true\nhosts_per_address = 1009", "hosts_per_address: 1009: allowed is 1 to 1008"),
        ] {
            let told = sharing(&GOOD.replacen(from, to, 1)).err().unwrap_or_default();
            assert_eq!(told.is_empty(), complaint.is_empty(), "{to}: {told}");
            let is_told = told.lines().any(|line| line.ends_with(&format!("nat.source[0].{complaint}")));
            assert!(complaint.is_empty() || is_told, "{to}: {told}");
        }
    }

    #[test]
    fn a_pool_is_shared_in_one_manner() {
        let more = |keys: &str| format!("{GOOD}\n[[nat.source]]\nname = \"again\"\n{keys}");
        let to = "to = { zone = \"mixed\" }\n";
        assert!(sharing(&more(&format!("{to}{GOOD}"))).is_ok(), "the same hosts, elsewhere");
        for other in [
            GOOD.replace("deterministic = true", ""),
            GOOD.replace("100.64.3.1", "100.64.3.2"),
            GOOD.replace("true", "true\nports_per_host = 128"),
        ] {
            let told = sharing(&more(&format!("{to}{other}"))).unwrap_err();
            assert!(told.contains("overlaps nat.source[0].pool[0]"), "{other}: {told}");
        }
    }
}
