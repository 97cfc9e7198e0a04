//! Lint: what is allowed in a config and most likely not meant. Each finding names its key and what to do.
//!
//! What cannot work at all (sides of different families, next hops that nobody can reach, addresses twice) the config's own
//! check refuses.

use std::fmt;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::names::View;
use crate::config::{
    AddressRange, BackendAdmin, Config, GroupName, Member, OneOrMore, PortRange, Rule, RuleName, Service,
    Side, VirtualService,
};

/// Rules, and services, up to which they are looked at where somebody waits: a few milliseconds.
const QUICK: usize = 1000;
/// Most findings.
const MOST: usize = 200;

/// Something that is most likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key it is about: `rule[3]`.
    pub key: String,
    /// What is odd, and what to do.
    pub says: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.says)
    }
}

struct Lint<'a> {
    view: View<'a>,
    config: &'a Config,
    found: Vec<Finding>,
}

/// What is odd in a config, in the order of its tables.
pub fn lint(view: View<'_>, is_quick: bool) -> Vec<Finding> {
    let mut lint = Lint { view, config: view.config, found: Vec::new() };
    lint.interfaces();
    lint.groups();
    let is_for = |count: usize| !is_quick || count <= QUICK;
    if is_for(lint.config.rules.len() + lint.config.admin_rules.len()) {
        lint.zones();
        lint.shadows();
        lint.rules();
    }
    if is_for(lint.config.services.len()) {
        lint.nat();
        lint.services();
    }
    lint.virtual_routers();
    lint.found.truncate(MOST);
    lint.found
}

impl Lint<'_> {
    fn say(&mut self, key: impl Into<String>, says: impl Into<String>) {
        self.found.push(Finding { key: key.into(), says: says.into() });
    }

    fn interfaces(&mut self) {
        let config = self.config;
        let members: AHashSet<_> = config
            .bridges
            .iter()
            .flat_map(|bridge| &bridge.members)
            .filter_map(|member| member.port.as_ref())
            .collect();
        for (index, port) in config.ports.iter().enumerate() {
            let is_used =
                config.interfaces.iter().any(|interface| interface.port.as_ref() == Some(&port.name));
            if !is_used && !members.contains(&port.name) {
                let says = format!(
                    "no interface is on port {}: all that comes in is lost; add one, or take the port out",
                    port.name
                );
                self.say(format!("port[{index}]"), says);
            }
        }
        for (index, vrf) in config.vrfs.iter().enumerate() {
            if !config.interfaces.iter().any(|interface| interface.vrf == vrf.name) {
                let says = format!(
                    "no interface is in VRF {}: nothing comes in there; take it out, or put an interface in",
                    vrf.name
                );
                self.say(format!("vrf[{index}]"), says);
            }
        }
        for (index, interface) in config.interfaces.iter().enumerate() {
            if interface.addresses.is_empty() {
                let says = format!(
                    "interface {} has no addresses: hosts there have no gateway; write `addresses`",
                    interface.name
                );
                self.say(format!("interface[{index}]"), says);
            }
        }
    }

    fn groups(&mut self) {
        let config = self.config;
        let mut used: AHashSet<&GroupName> = AHashSet::new();
        let rules = config.admin_rules.iter().chain(&config.rules);
        let nat = &config.nat;
        let sides = rules
            .flat_map(|rule| [&rule.from, &rule.to])
            .chain(nat.sources.iter().flat_map(|rule| [&rule.from, &rule.to]))
            .chain(nat.destinations.iter().map(|rule| &rule.from))
            .chain(nat.statics.iter().map(|rule| &rule.to))
            .chain(nat.nptv6.iter().map(|rule| &rule.to))
            .chain(nat.nat64.iter().map(|rule| &rule.from));
        used.extend(sides.filter_map(|side| side.group.as_ref()));
        let inner = config.groups.iter().flat_map(|group| &group.members);
        used.extend(inner.filter_map(|member| match member {
            Member::Group(name) => Some(name),
            Member::Addresses(_) => None,
        }));
        for (index, group) in config.groups.iter().enumerate() {
            if !used.contains(&group.name) {
                let says = format!("nobody names group {}: take it out, or write it into a rule", group.name);
                self.say(format!("group[{index}]"), says);
            }
        }
    }

    /// A zone that no rule lets anything into or out of.
    fn zones(&mut self) {
        let config = self.config;
        let zones: AHashSet<&str> = config.zones_of_ends().map(|zone| zone.as_str()).collect();
        if zones.len() < 2 {
            return;
        }
        let mut told: AHashSet<&str> = AHashSet::new();
        for (index, interface) in config.interfaces.iter().enumerate() {
            let Some(zone) = interface.zone.as_ref().map(|zone| zone.as_str()) else { continue };
            let mut rules = config.admin_rules.iter().chain(&config.rules);
            let names = |side: &Side| side.zone.as_ref().is_none_or(|named| named.as_str() == zone);
            if !rules.any(|rule| names(&rule.from) || names(&rule.to)) && told.insert(zone) {
                let says = format!(
                    "no rule names zone {zone}: between it and other zones nothing passes; add a rule, if that is not meant"
                );
                self.say(format!("interface[{index}].zone"), says);
            }
        }
    }

    fn shadows(&mut self) {
        let config = self.config;
        let of = |table: &'static str, rules: &'_ [Arc<Rule>]| {
            let key = |(at, rule): (usize, &Arc<Rule>)| (rule.name.clone(), format!("{table}[{at}]"));
            rules.iter().enumerate().map(key).collect::<Vec<_>>()
        };
        let keys = of("admin_rule", &config.admin_rules).into_iter().chain(of("rule", &config.rules));
        let keys: AHashMap<RuleName, String> = keys.collect();
        for (rule, by) in self.view.tables().policy.shadowed().unwrap_or_default() {
            let (rule, by) = (self.view.rule(rule), self.view.rule(by));
            let key = RuleName::new(rule).ok().and_then(|rule| keys.get(&rule));
            if let Some(key) = key {
                let says = format!(
                    "rule {rule} never decides: {by}, before it, matches all that it would; move it before {by}, or take it out"
                );
                self.say(key.clone(), says);
            }
        }
    }

    /// Rules that no packet can match.
    fn rules(&mut self) {
        let config = self.config;
        let tables = [("admin_rule", &config.admin_rules), ("rule", &config.rules)];
        for (table, rules) in tables {
            for (index, rule) in rules.iter().enumerate() {
                for side in [&rule.from, &rule.to] {
                    let (Some(zone), Some(vrf)) = (&side.zone, &side.vrf) else { continue };
                    let is_there = config
                        .interfaces
                        .iter()
                        .any(|interface| interface.zone.as_ref() == Some(zone) && interface.vrf == *vrf);
                    if !is_there && zone.as_str() != Side::SELF {
                        let says = format!(
                            "rule {} matches nothing: no interface is in zone {zone} and VRF {vrf}",
                            rule.name
                        );
                        self.say(format!("{table}[{index}]"), says);
                    }
                }
                for group in [&rule.from, &rule.to].into_iter().filter_map(|side| side.group.as_ref()) {
                    let is_empty =
                        |known: &&Arc<crate::config::Group>| known.name == *group && known.members.is_empty();
                    if config.groups.iter().any(|known| is_empty(&known)) {
                        let says =
                            format!("rule {} matches nothing until group {group} has members", rule.name);
                        self.say(format!("{table}[{index}]"), says);
                    }
                }
            }
        }
    }

    fn nat(&mut self) {
        let config = self.config;
        let rules = &config.nat.destinations;
        for (index, rule) in rules.iter().enumerate() {
            let by = config.services.iter().find(|service| {
                service.vrf == rule.vrf
                    && service.address.contains(rule.address)
                    && covers(&service.service, &rule.service)
            });
            if let Some(service) = by {
                let says = format!(
                    "{} never decides: service {} takes all that comes to {}; give one of them another address or port",
                    rule.name, service.name, rule.address
                );
                self.say(format!("nat.destination[{index}]"), says);
            }
            let taken = config.nat.statics.iter().find(|other| {
                other.vrf == rule.vrf && other.outside.contains(rule.address) && rule.service.is_none()
            });
            if let Some(other) = taken {
                let says = format!(
                    "{} takes all that comes to {}, and static NAT {} gets nothing of it: name ports, or take one out",
                    rule.name,
                    rule.address,
                    other.label()
                );
                self.say(format!("nat.destination[{index}]"), says);
            }
        }
    }

    fn services(&mut self) {
        let config = self.config;
        for (index, service) in config.services.iter().enumerate() {
            let key = format!("service[{index}]");
            let takes = |service: &VirtualService| {
                service
                    .backends
                    .iter()
                    .any(|backend| backend.state == BackendAdmin::Active && backend.weight.get() > 0)
            };
            if !takes(service) {
                let says = format!(
                    "no backend of service {} takes flows: all of them are lost; add one, or enable one",
                    service.name
                );
                self.say(key.clone(), says);
            }
            let same = |other: &&Arc<VirtualService>| {
                other.vrf == service.vrf
                    && other.address == service.address
                    && covers(&other.service, &service.service)
            };
            if let Some(first) = config.services[..index].iter().find(same) {
                let says = format!(
                    "service {} gets nothing: {} has its address and ports before it; give one of them another",
                    service.name, first.name
                );
                self.say(key.clone(), says);
            }
            let pools = config.nat.sources.iter().filter(|rule| rule.vrf == service.vrf);
            for pool in pools {
                let addresses = pool.pool.as_ref().map_or(&[][..], |pool| pool.addresses());
                let hits = |range: &AddressRange| range.overlaps(service.address);
                // Ports of a pool are those above the well-known ones, if it names none.
                let of_pool = pool.ports.unwrap_or(PORTS_OF_POOLS);
                if addresses.iter().any(hits) && shares(&service.service, of_pool) {
                    let says = format!(
                        "{} is in the pool of nat.source {} with the same ports: a mapping that has one of them comes \
                         before the service; give the pool `ports` without them",
                        service.address, pool.name
                    );
                    self.say(key.clone(), says);
                }
            }
        }
    }

    fn virtual_routers(&mut self) {
        let config = self.config;
        for (index, vrrp) in config.vrrp.iter().enumerate() {
            let Some(group) = &vrrp.group else { continue };
            let Some(first) = config.vrrp.iter().find(|other| other.group.as_ref() == Some(group)) else {
                continue;
            };
            let differs = [
                (first.priority != vrrp.priority, "priority"),
                (first.preempt != vrrp.preempt, "preempt"),
                (first.preempt_delay != vrrp.preempt_delay, "preempt_delay"),
            ];
            for (_, what) in differs.iter().filter(|(differs, _)| *differs) {
                let says = format!(
                    "virtual router {} on {} and {} on {} move together as group {group}, and differ in {what}: the \
                     nodes would want different ones to lead; give them the same",
                    vrrp.id, vrrp.interface, first.id, first.interface
                );
                self.say(format!("vrrp[{index}].{what}"), says);
            }
        }
        for (index, vrrp) in config.vrrp.iter().enumerate() {
            // Two identifiers for the same addresses' network: nodes that hear each other as strangers.
            let lowest = vrrp.track.iter().map(|track| track.weight.get()).sum::<u32>();
            if lowest >= vrrp.priority.get() && !vrrp.track.is_empty() {
                let says = format!(
                    "what it tracks takes {lowest} off a priority of {}: with all of it gone both nodes may have 1, and the \
                     addresses go to the higher own address; lower the weights",
                    vrrp.priority
                );
                self.say(format!("vrrp[{index}].track"), says);
            }
        }
    }
}

/// What a pool without `ports` gives (RFC 6056 section 3.2: not the well-known ones).
const PORTS_OF_POOLS: PortRange = match PortRange::new(1024, u16::MAX) {
    Some(ports) => ports,
    None => unreachable!(),
};

fn one_covers(wide: &Service, narrow: &Service) -> bool {
    match (wide.protocol(), wide.ports()) {
        (None, _) => true,
        (protocol, _) if protocol != narrow.protocol() => false,
        (_, None) => true,
        (_, Some(wide)) => narrow
            .ports()
            .is_some_and(|narrow| wide.first() <= narrow.first() && narrow.last() <= wide.last()),
    }
}

/// True if all of `narrow` is in `wide`; absent: everything.
fn covers(wide: &Option<OneOrMore<Service>>, narrow: &Option<OneOrMore<Service>>) -> bool {
    match (wide, narrow) {
        (None, _) => true,
        (Some(wide), None) => wide.contains(&Service::ANY),
        (Some(wide), Some(narrow)) => {
            narrow.iter().all(|narrow| wide.iter().any(|wide| one_covers(wide, narrow)))
        }
    }
}

/// True if they have a port in common.
fn shares(service: &Option<OneOrMore<Service>>, ports: PortRange) -> bool {
    service.as_ref().is_none_or(|all| {
        all.iter().any(|one| {
            let own = one.ports().unwrap_or(PortRange::ALL);
            own.first() <= ports.last() && ports.first() <= own.last()
        })
    })
}
