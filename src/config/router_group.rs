//! Groups of virtual routers, and what belongs to them: public addresses, which the Active of their group answers for.
//!
//! Virtual routers that name the same `group` are one; one that names none is a group by itself. A public address (of a
//! NAT pool, a rule of destination NAT, static NAT, NPTv6, NAT64 or a service) belongs to
//!
//! 1. the virtual router that has the address itself, if one does;
//! 2. the group that its table names (`group = "main"`);
//! 3. the group of the virtual routers in whose network it is, if they are of one group;
//! 4. the only group there is.
//!
//! What is left, with several groups, has to say it. An interface's own addresses are their node's, and of no group.

use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::Config;
use super::addresses::AddressRange;
use super::check::{Checks, list};
use super::value::{GroupName, Name, VrfName};
use super::vrrp::Vrrp;

/// A range of public addresses and who says what of it.
#[derive(Clone, Debug)]
pub(crate) struct Public<'a> {
    /// Where its table stands: `nat.source[1]`.
    pub table: String,
    /// Name of the VRF that the addresses are in.
    pub vrf: &'a VrfName,
    /// The addresses.
    pub range: AddressRange,
    /// The group that the table names.
    pub group: Option<&'a GroupName>,
}

/// Whose a range of addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// Nobody's: there are no virtual routers.
    Nobody,
    /// That of this group, by the place of its first virtual router in [`Config::vrrp`].
    To(usize),
    /// Several could have it.
    Unclear,
}

impl Vrrp {
    /// True if both move together.
    fn moves_with(&self, other: &Vrrp) -> bool {
        self.group.is_some() && self.group == other.group
    }
}

impl Config {
    /// The first virtual router of the group of the one at `index`: it stands for the group.
    pub(crate) fn leader_of(&self, index: usize) -> usize {
        let vrrp = &self.vrrp[index];
        self.vrrp.iter().position(|other| other.moves_with(vrrp)).unwrap_or(index)
    }

    /// The group of this name, by its first virtual router.
    pub(crate) fn router_group(&self, name: &GroupName) -> Option<usize> {
        self.vrrp.iter().position(|vrrp| vrrp.group.as_ref() == Some(name))
    }

    /// The group that a bridge belongs to: the one it names, of a pair with a single group that.
    pub(crate) fn group_of_bridge(&self, group: Option<&GroupName>) -> Option<usize> {
        match group {
            Some(name) => self.router_group(name),
            None => self.only_group().filter(|_| self.pair.is_some()),
        }
    }

    /// The virtual router that has an address of a VRF.
    pub(crate) fn router_with(&self, vrf: &VrfName, addr: IpAddr) -> Option<&Vrrp> {
        self.vrrp.iter().find(|vrrp| {
            vrrp.addresses.contains(&addr)
                && self.interfaces.iter().any(|on| on.name == vrrp.interface && on.vrf == *vrf)
        })
    }

    fn only_group(&self) -> Option<usize> {
        let first = self.vrrp.first()?;
        self.vrrp[1..].iter().all(|vrrp| vrrp.moves_with(first)).then_some(0)
    }

    /// All ranges of public addresses, in the order of the config.
    pub(crate) fn publics(&self) -> impl Iterator<Item = Public<'_>> {
        let nat = &self.nat;
        let sources = nat.sources.iter().enumerate().flat_map(|(at, rule)| {
            let ranges = rule.pool.iter().flat_map(|pool| pool.addresses());
            ranges.map(move |range| Public {
                table: format!("nat.source[{at}]"),
                vrf: &rule.vrf,
                range: *range,
                group: rule.group.as_ref(),
            })
        });
        let destinations = nat.destinations.iter().enumerate().map(|(at, rule)| Public {
            table: format!("nat.destination[{at}]"),
            vrf: &rule.vrf,
            range: rule.address.into(),
            group: rule.group.as_ref(),
        });
        let statics = nat.statics.iter().enumerate().map(|(at, rule)| Public {
            table: format!("nat.static[{at}]"),
            vrf: &rule.vrf,
            range: rule.outside,
            group: rule.group.as_ref(),
        });
        let prefixes = nat.nptv6.iter().enumerate().map(|(at, rule)| Public {
            table: format!("nat.nptv6[{at}]"),
            vrf: &rule.vrf,
            range: rule.outside,
            group: rule.group.as_ref(),
        });
        let nat64 = nat.nat64.iter().enumerate().flat_map(|(at, rule)| {
            rule.pool.iter().map(move |range| Public {
                table: format!("nat.nat64[{at}]"),
                vrf: &rule.vrf,
                range: *range,
                group: rule.group.as_ref(),
            })
        });
        let services = self.services.iter().enumerate().map(|(at, service)| Public {
            table: format!("service[{at}]"),
            vrf: &service.vrf,
            range: service.address,
            group: service.group.as_ref(),
        });
        sources.chain(destinations).chain(statics).chain(prefixes).chain(nat64).chain(services)
    }
}

/// Who has what, by VRF: made once for all of a config's public addresses.
pub(crate) struct Owners<'a> {
    config: &'a Config,
    own: AHashSet<(&'a VrfName, IpAddr)>,
    routers: AHashMap<&'a VrfName, Vec<Router<'a>>>,
}

/// A virtual router.
struct Router<'a> {
    vrrp: &'a Vrrp,
    /// Its group.
    leader: usize,
    /// Networks of its interface.
    networks: Vec<IpNet>,
}

impl<'a> Owners<'a> {
    pub fn of(config: &'a Config) -> Owners<'a> {
        let mut owners = Owners { config, own: AHashSet::new(), routers: AHashMap::new() };
        if config.vrrp.is_empty() {
            return owners;
        }
        let by_name: AHashMap<_, _> =
            config.interfaces.iter().map(|interface| (&interface.name, interface)).collect();
        for interface in &config.interfaces {
            owners.own.extend(interface.addresses.iter().map(|own| (&interface.vrf, own.address())));
        }
        for (at, vrrp) in config.vrrp.iter().enumerate() {
            let Some(interface) = by_name.get(&vrrp.interface) else { continue };
            let networks = interface.addresses.iter().map(|own| own.connected()).collect();
            let router = Router { vrrp, leader: config.leader_of(at), networks };
            owners.routers.entry(&interface.vrf).or_default().push(router);
        }
        owners
    }

    /// Whose a range of public addresses is. What an interface has itself is nobody's.
    pub fn owner(&self, public: &Public<'_>) -> Belongs {
        let Public { vrf, range, group, .. } = public;
        let is_own = range.first() == range.last() && self.own.contains(&(*vrf, range.first()));
        if is_own || self.config.vrrp.is_empty() {
            return Belongs::Nobody;
        }
        let routers = self.routers.get(vrf).map_or(&[][..], Vec::as_slice);
        let has = |router: &&Router<'_>| router.vrrp.addresses.iter().any(|address| range.contains(*address));
        if let Some(router) = routers.iter().find(has) {
            return Belongs::To(router.leader);
        }
        if let Some(name) = group {
            return self.config.router_group(name).map_or(Belongs::Unclear, Belongs::To);
        }
        let is_near = |router: &&Router<'_>| {
            router.vrrp.addresses.iter().any(|address| address.is_ipv4() == range.is_ipv4())
                && router.networks.iter().any(|net| range.overlaps((*net).into()))
        };
        let mut near = routers.iter().filter(is_near).map(|router| router.leader);
        match (near.next(), self.config.only_group()) {
            (Some(first), _) if near.all(|other| other == first) => Belongs::To(first),
            (None, Some(only)) => Belongs::To(only),
            _ => Belongs::Unclear,
        }
    }
}

impl Checks<'_, '_> {
    /// Every group that is named is there, and nothing public is left between several.
    pub(super) fn router_groups(&mut self) {
        let config = self.config;
        let known = || {
            let mut names: Vec<&Name> = config.vrrp.iter().filter_map(|vrrp| vrrp.group.as_ref()).collect();
            names.sort_unstable();
            names.dedup();
            match list(names.into_iter()) {
                none if none.is_empty() => String::from("none: give [[vrrp]] a `group`"),
                names => names,
            }
        };
        let owners = Owners::of(config);
        let mut last = String::new();
        for public in config.publics() {
            // Once for a table, however many ranges a pool has.
            if last == public.table {
                continue;
            }
            if let Some(name) = public.group
                && config.router_group(name).is_none()
            {
                let allowed = format!("no such group of virtual routers; known: {}", known());
                self.fault(format!("{}.group", public.table), name, allowed);
            } else if owners.owner(&public) == Belongs::Unclear {
                let allowed = format!(
                    "several groups of virtual routers could answer for {}: say which with group = \"NAME\"; known: {}",
                    public.range,
                    known()
                );
                self.table_fault(public.table.clone(), allowed);
            } else {
                continue;
            }
            last = public.table;
        }
        for (at, bridge) in config.bridges.iter().enumerate() {
            if let Some(name) = bridge.group.as_ref().filter(|name| config.router_group(name).is_none()) {
                let allowed = format!("no such group of virtual routers; known: {}", known());
                self.fault(format!("bridge[{at}].group"), name, allowed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
schema = 1
[[port]]
name = "lan"
device = "eth1"
[[interface]]
name = "a"
port = "lan"
vlan = 1
addresses = ["10.0.1.2/24"]
zone = "inside"
[[interface]]
name = "b"
port = "lan"
vlan = 2
addresses = ["10.0.2.2/24"]
zone = "inside"
[[interface]]
name = "up"
port = "lan"
vlan = 3
addresses = ["192.0.2.2/24"]
zone = "outside"
[[nat.source]]
name = "pool"
to = { zone = "outside" }
pool = ["10.0.1.50", "10.0.1.60"]
[[vrrp]]
interface = "a"
id = 1
addresses = ["10.0.1.1"]
group = "red"
[[vrrp]]
interface = "b"
id = 2
addresses = ["10.0.2.1"]
group = "blue"
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "gw.toml").map_err(|errors| errors.to_string())
    }

    /// Of the addresses of its first table.
    fn owners(text: &str) -> Vec<Belongs> {
        let config = parse(text).unwrap_or_else(|said| panic!("{said}"));
        let owners = Owners::of(&config);
        config.publics().map(|public| owners.owner(&public)).collect()
    }

    #[test]
    fn public_addresses_belong_to_whoever_is_named_or_near_or_alone() {
        let red = [Belongs::To(0); 2];
        assert_eq!(owners(TEXT), red, "in the network of red");
        let named = TEXT.replace("pool = [", "group = \"blue\"\npool = [");
        assert_eq!(owners(&named), [Belongs::To(1); 2]);
        let routed = "\"203.0.113.50\", \"203.0.113.60\"";
        let only = TEXT.replace("\"10.0.1.50\", \"10.0.1.60\"", routed).replace("\"blue\"", "\"red\"");
        assert_eq!(owners(&only), red, "there is only one");
        assert_eq!(owners(&only.replace("\"203.0.113.50\"", "\"10.0.2.1\"")), red, "a virtual router has it");
        let none = TEXT.split("[[vrrp]]").next().expect("a first part");
        assert_eq!(owners(none), [Belongs::Nobody; 2]);
        let again = parse(&named).expect("good");
        assert_eq!(parse(&again.to_toml()), Ok(again), "what is written is read");
    }

    #[test]
    fn what_is_left_between_several_has_to_say_it() {
        let said = |text: String| parse(&text).expect_err("refused");
        let routed = said(TEXT.replace("10.0.1.50", "203.0.113.50"));
        assert!(
            routed.contains("nat.source[0]: several groups of virtual routers could answer for 203.0.113.50")
                && routed.contains("known: blue, red"),
            "{routed}"
        );
        let unknown = said(TEXT.replace("pool = [", "group = \"green\"\npool = ["));
        assert!(
            unknown.contains("nat.source[0].group: green: no such group of virtual routers"),
            "{unknown}"
        );
        // Routers that name no group are one each.
        let apart = said(TEXT.replace("10.0.1.50", "203.0.113.50").replace("group = \"", "priority = 9 #"));
        assert!(apart.contains("known: none: give [[vrrp]] a `group`"), "{apart}");
    }
}
