//! What no value of the firewall and NAT tables shows by itself: unknown names, rules that can never match,
//! NAT rules that contradict each other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::Config;
use super::addresses::{AddressRange, Member, NatPool, OneOrMore, is_unicast_v4};
use super::check::{Checks, Fault, Place, list};
use super::deterministic::Sharing;
use super::policy::{Nat, Nat64, NatDestination, NatPrefix, NatSource, NatStatic, Rule, RuleAction, Side};
use super::sections::Interface;
use super::service::{PortRange, Service};
use super::value::{Name, VrfName};

/// Most zones: the packet path keeps a zone in one byte, 0 is none and 255 the gateway.
pub(crate) const MAX_ZONES: usize = 254;

/// Most addresses of all pools together: a node keeps that many of claims (`tables::compile`).
const MAX_NAT_ADDRESSES: u128 = 1024;

/// The rule that decides where none matched; see `show rules`.
const DEFAULT_RULE: &str = "default";

/// Most lines of one compiled rule: its prefixes from, prefixes to, services and source ports multiplied.
const MAX_RULE_LINES: usize = 100_000;
/// Most lines of all rules together, about 100 bytes each while they are compiled.
const MAX_LINES: usize = 2_000_000;

/// What rules may name.
struct Known<'a> {
    zones: BTreeSet<&'a str>,
    interfaces: AHashMap<&'a str, &'a Interface>,
    vrfs: Vec<VrfName>,
    groups: AHashSet<&'a str>,
}

impl<'a> Known<'a> {
    fn of(config: &'a Config) -> Known<'a> {
        Known {
            zones: config.zones_of_ends().map(Name::as_str).collect(),
            interfaces: config.interfaces.iter().map(|i| (i.name.as_str(), i)).collect(),
            vrfs: config.vrf_names(),
            groups: config.groups.iter().map(|group| group.name.as_str()).collect(),
        }
    }
}

/// Checks one rule against the config it is to be in: the first fault.
pub fn check_rule(config: &Config, rule: &Rule) -> Result<(), String> {
    let mut first: Option<String> = None;
    let mut report = |fault: Fault| {
        let Place::Key(key) = fault.place else { unreachable!("a rule is in no route file") };
        let value = fault.value.map(|value| format!(" {value}:")).unwrap_or_default();
        first.get_or_insert(format!("{key}:{value} {}", fault.allowed));
    };
    let mut checks = Checks::new(config, &mut report);
    let mut known = Known::of(config);
    checks.zone_names(&mut known);
    checks.rule(&known, "rule", rule);
    let [from, to] = [&rule.from, &rule.to].map(Side::prefixes_in_place);
    let services = rule.service.as_deref().map_or(1, <[_]>::len);
    let ports = rule.source_ports.as_deref().map_or(1, <[_]>::len);
    let lines = [to, services, ports].into_iter().fold(from, usize::saturating_mul);
    if lines > MAX_RULE_LINES {
        checks.fault("rule".into(), &rule.name, format!("makes {lines} lines; at most {MAX_RULE_LINES}"));
    }
    if rule.name.as_str() == DEFAULT_RULE {
        checks.fault("rule.name".into(), &rule.name, "the name of what decides where no rule matches");
    }
    first.map_or(Ok(()), Err)
}

/// Checks how many lines all rules make.
pub fn check_lines(lines: usize) -> Result<(), String> {
    if lines <= MAX_LINES {
        return Ok(());
    }
    Err(format!("all rules together make {lines} lines; at most {MAX_LINES}"))
}

/// What a side may say: a firewall rule may name the gateway itself, a NAT rule may not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Firewall,
    Nat,
}

/// One NAT address in use: who has it.
type Taken = (AddressRange, String);

impl<'a> Checks<'a, '_> {
    pub(super) fn policy(&mut self) {
        let config = self.config;
        let mut known = Known::of(config);
        self.zone_names(&mut known);
        self.flows();
        self.zone_limits(&known);
        self.groups();
        self.unique("group", config.groups.iter().map(|group| &group.name));
        self.rule_names();
        for (index, rule) in config.admin_rules.iter().enumerate() {
            self.rule(&known, &format!("admin_rule[{index}]"), rule);
        }
        for (index, rule) in config.rules.iter().enumerate() {
            self.rule(&known, &format!("rule[{index}]"), rule);
        }
        self.nat(&known, &config.nat);
        self.services();
        self.lines();
    }

    /// A short config can mean more than memory holds.
    fn lines(&mut self) {
        let config = self.config;
        let rules = |table: &'static str, rules: &'a [Arc<Rule>]| {
            rules.iter().enumerate().map(move |(index, rule)| {
                let ports = rule.source_ports.as_deref().map_or(1, <[_]>::len);
                (table, index, &rule.name, (&rule.from, &rule.to), rule.service.as_deref(), ports)
            })
        };
        let sources = config.nat.sources.iter().enumerate().map(|(index, rule)| {
            ("nat.source", index, &rule.name, (&rule.from, &rule.to), rule.service.as_deref(), 1)
        });
        let all = rules("admin_rule", &config.admin_rules).chain(rules("rule", &config.rules)).chain(sources);
        let mut sum = 0;
        let mut largest: Option<(usize, &str, usize, &Name)> = None;
        for (table, index, name, (from, to), services, ports) in all {
            let [from, to] = [from, to].map(Side::prefixes_in_place);
            let services = services.map_or(1, <[_]>::len);
            let lines = [to, services, ports].into_iter().fold(from, usize::saturating_mul);
            if lines > MAX_RULE_LINES {
                let allowed = format!(
                    "{from} prefixes from, {to} prefixes to, {services} services and {ports} source ports make {lines} \
                     lines; at most {MAX_RULE_LINES}: name the prefixes in a [[group]], or make it several rules"
                );
                self.fault(format!("{table}[{index}]"), name, allowed);
                continue; // told already
            }
            sum += lines;
            if largest.is_none_or(|(most, ..)| lines > most) {
                largest = Some((lines, table, index, name));
            }
        }
        if let Some((lines, table, index, name)) = largest.filter(|_| sum > MAX_LINES) {
            let allowed = format!(
                "all rules together make {sum} lines, the most of them, {lines}, this one; at most {MAX_LINES}: \
                 name prefixes in a [[group]]"
            );
            self.fault(format!("{table}[{index}]"), name, allowed);
        }
    }

    fn zone_names(&mut self, known: &mut Known<'_>) {
        for end in self.config.ends() {
            if let Some(zone) = end.interface.zone.as_ref().filter(|zone| zone.as_str() == Side::SELF) {
                self.fault(format!("{}.zone", end.key), zone, "the zone of the gateway itself");
            }
        }
        known.zones.remove(Side::SELF);
        if known.zones.len() > MAX_ZONES {
            let allowed = format!("at most {MAX_ZONES} zones, not {}", known.zones.len());
            self.table_fault("interface".into(), allowed);
        }
    }

    fn flows(&mut self) {
        let flows = &self.config.flows;
        if flows.udp_unreplied_s > flows.udp_s {
            let allowed = format!("not over udp_s, which is {}", flows.udp_s);
            self.fault("flows.udp_unreplied_s".into(), flows.udp_unreplied_s, allowed);
        }
        if let Some(folder) = flows.keep.as_ref().filter(|folder| !folder.is_absolute()) {
            self.fault("flows.keep".into(), folder.display(), "an absolute path, as /dev/shm/softgate");
        }
        for (key, limit) in [
            ("per_host_sessions", flows.per_host_sessions),
            ("half_open", flows.half_open),
            ("half_open_per_destination", flows.half_open_per_destination),
        ] {
            if let Some(limit) = limit.filter(|limit| *limit > flows.capacity) {
                let allowed = format!("not over capacity, which is {}", flows.capacity);
                self.fault(format!("flows.{key}"), limit, allowed);
            }
        }
    }

    /// Zones with limits are those of interfaces, each once.
    fn zone_limits(&mut self, known: &Known<'_>) {
        let config = self.config;
        self.unique("zone", config.zones.iter().map(|zone| &zone.name));
        for (index, zone) in config.zones.iter().enumerate() {
            if !known.zones.contains(zone.name.as_str()) {
                let allowed = format!("no such zone; known: {}", list(known.zones.iter()));
                self.fault(format!("zone[{index}].name"), &zone.name, allowed);
            }
            let capacity = config.flows.capacity;
            if let Some(limit) = zone.half_open_per_destination.filter(|limit| *limit > capacity) {
                let allowed = format!("not over capacity, which is {capacity}");
                self.fault(format!("zone[{index}].half_open_per_destination"), limit, allowed);
            }
            let limit = zone.half_open_per_destination.or(config.flows.half_open_per_destination);
            if let (Some(above), Some(limit)) = (zone.syn_proxy_above, limit)
                && above.get() >= limit.get()
            {
                let allowed = format!(
                    "less than half_open_per_destination, which is {limit}: beyond that SYNs are lost"
                );
                self.fault(format!("zone[{index}].syn_proxy_above"), above, allowed);
            }
        }
    }

    /// Groups in groups exist, and none contains itself.
    fn groups(&mut self) {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            Not,
            Open,
            Done,
        }
        let groups = &self.config.groups;
        let names = || list(groups.iter().map(|group| &group.name));
        let by_name: AHashMap<&Name, usize> =
            groups.iter().enumerate().rev().map(|(index, group)| (&group.name, index)).collect();
        let mut seen = vec![Seen::Not; groups.len()];
        for start in 0..groups.len() {
            // The groups on the way down, each with its member that comes next; no recursion, so that a
            // long chain of groups cannot exhaust the stack.
            let mut way = vec![(start, 0)];
            if seen[start] != Seen::Not {
                continue;
            }
            while let Some((group, at)) = way.last_mut() {
                seen[*group] = Seen::Open;
                let Some(member) = groups[*group].members.get(*at) else {
                    seen[*group] = Seen::Done;
                    way.pop();
                    continue;
                };
                let key = || format!("group[{group}].members[{at}]");
                let Member::Group(name) = member else {
                    *at += 1;
                    continue;
                };
                let Some(&inner) = by_name.get(name) else {
                    self.fault(key(), member, format!("no such group; known: {}", names()));
                    *at += 1;
                    continue;
                };
                match seen[inner] {
                    Seen::Done => *at += 1,
                    Seen::Open => {
                        let key = key();
                        *at += 1;
                        let from = way.iter().position(|(group, _)| *group == inner).unwrap_or(0);
                        let mut round: Vec<&str> =
                            way[from..].iter().map(|(group, _)| groups[*group].name.as_str()).collect();
                        round.push(name.as_str());
                        self.fault(
                            key,
                            member,
                            format!("a group cannot contain itself: {}", round.join(" > ")),
                        );
                    }
                    Seen::Not => {
                        *at += 1;
                        way.push((inner, 0));
                    }
                }
            }
        }
    }

    fn rule_names(&mut self) {
        let config = self.config;
        let tables = [("admin_rule", &config.admin_rules), ("rule", &config.rules)];
        let mut first: AHashMap<&Name, (&str, usize)> = AHashMap::new();
        for (table, rules) in tables {
            for (index, rule) in rules.iter().enumerate() {
                if rule.name.as_str() == DEFAULT_RULE {
                    let allowed = "the name of what decides where no rule matches";
                    self.fault(format!("{table}[{index}].name"), &rule.name, allowed);
                }
                if let Some((other, at)) = first.get(&rule.name).copied() {
                    let allowed = format!("already the name of {other}[{at}]");
                    self.fault(format!("{table}[{index}].name"), &rule.name, allowed);
                } else {
                    first.insert(&rule.name, (table, index));
                }
            }
        }
    }

    fn side(&mut self, known: &Known<'_>, of: Of, key: &str, side: &Side) {
        if let Some(zone) = &side.zone {
            let key = format!("{key}.zone");
            if side.is_self() {
                if of == Of::Nat {
                    self.fault(key, zone, "NAT is for packets that pass through, not for the gateway's own");
                } else if let Some(interface) = &side.interface {
                    let allowed = format!("the gateway itself is behind no interface: leave out {interface}");
                    self.fault(key, zone, allowed);
                }
            } else if !known.zones.contains(zone.as_str()) {
                let own = (of == Of::Firewall).then_some(Side::SELF);
                let names = list(known.zones.iter().copied().chain(own));
                let names = if names.is_empty() { "none".into() } else { names };
                self.fault(key, zone, format!("no such zone; known: {names}"));
            }
        }
        if let Some(name) = &side.interface {
            let key = format!("{key}.interface");
            match known.interfaces.get(name.as_str()) {
                None => {
                    let names = list(self.config.interfaces.iter().map(|interface| &interface.name));
                    self.fault(key, name, format!("no such interface; known: {names}"));
                }
                Some(interface) => {
                    if side.vrf.as_ref().is_some_and(|vrf| *vrf != interface.vrf) {
                        self.fault(key, name, format!("the interface is in VRF {}", interface.vrf));
                    } else if side.zone.is_some() && !side.is_self() && side.zone != interface.zone {
                        let zone = match &interface.zone {
                            None => "in no zone".to_owned(),
                            Some(zone) => format!("in zone {zone}"),
                        };
                        self.fault(key, name, format!("the interface is {zone}"));
                    }
                }
            }
        }
        if let Some(vrf) = &side.vrf {
            self.vrf(known, format!("{key}.vrf"), vrf);
        }
        if let Some(group) = &side.group
            && !known.groups.contains(group.as_str())
        {
            let names = list(self.config.groups.iter().map(|group| &group.name));
            let names = if names.is_empty() { "none".into() } else { names };
            self.fault(format!("{key}.group"), group, format!("no such group; known: {names}"));
        }
    }

    fn vrf(&mut self, known: &Known<'_>, key: String, vrf: &VrfName) {
        if !known.vrfs.contains(vrf) {
            self.fault(key, vrf, format!("no such VRF; known: {}", list(known.vrfs.iter())));
        }
    }

    fn rule(&mut self, known: &Known<'_>, key: &str, rule: &Rule) {
        self.side(known, Of::Firewall, &format!("{key}.from"), &rule.from);
        self.side(known, Of::Firewall, &format!("{key}.to"), &rule.to);
        // Through NAT64 the sides are of two families.
        if self.config.nat.nat64.is_empty() {
            self.families(key, &rule.from, Some(&rule.to), rule.service.as_ref());
        }
        if rule.log && self.config.log.events.is_none() {
            self.fault(format!("{key}.log"), true, "say where to: [log] events = \"FILE\"");
        }
        let services = rule.service.as_deref().unwrap_or(&[Service::ANY]);
        if rule.source_ports.is_some()
            && let Some(service) = services.iter().find(|service| !service.has_ports())
        {
            let allowed = format!("source ports go with services that have ports; {service} has none");
            self.table_fault(format!("{key}.source_ports"), allowed);
        }
        if rule.tcp_flags.is_some()
            && let Some(service) = services.iter().find(|service| !service.is_tcp())
        {
            let allowed = format!("TCP flags go with services of TCP, not {service}");
            self.table_fault(format!("{key}.tcp_flags"), allowed);
        }
        for flags in rule.tcp_flags.iter() {
            let both = flags.iter().any(|flag| flags.iter().any(|o| o.bit == flag.bit && o.set != flag.set));
            if both {
                self.table_fault(format!("{key}.tcp_flags"), "a flag cannot be set and not set");
            }
        }
        if rule.rate_limit.is_some() && rule.action != RuleAction::Allow {
            let allowed = "rate_limit goes with action = \"allow\"";
            self.table_fault(format!("{key}.rate_limit"), allowed);
        }
    }

    /// A rule that asks for IPv4 here and for IPv6 there matches nothing.
    fn families(&mut self, key: &str, from: &Side, to: Option<&Side>, services: Option<&OneOrMore<Service>>) {
        let of = |side: &Side, ipv4| {
            side.prefix.as_ref().is_none_or(|prefixes| prefixes.iter().any(|p| p.is_ipv4() == ipv4))
        };
        let has = |ipv4| of(from, ipv4) && to.is_none_or(|to| of(to, ipv4));
        if !has(true) && !has(false) {
            self.table_fault(
                key.into(),
                "from has no prefix of the family of those in to: nothing can match",
            );
            return;
        }
        for (at, service) in services.into_iter().flat_map(|services| services.iter()).enumerate() {
            if !(has(true) && service.is_of(true) || has(false) && service.is_of(false)) {
                let allowed = "icmp is for IPv4, icmpv6 for IPv6, and the prefixes are of the other";
                self.fault(format!("{key}.service[{at}]"), service, allowed);
            }
        }
    }

    fn nat(&mut self, known: &Known<'a>, nat: &'a Nat) {
        self.unique("nat.source", nat.sources.iter().map(|rule| &rule.name));
        self.unique("nat.destination", nat.destinations.iter().map(|rule| &rule.name));
        self.static_names(nat);
        let mut taken: AHashMap<&'a VrfName, Vec<Taken>> = AHashMap::new();
        type Shared<'a> = (&'a VrfName, &'a NatPool, Option<PortRange>, Option<Sharing>, bool);
        let mut pools: AHashSet<Shared<'a>> = AHashSet::new();
        let mut addresses = 0u128;
        for (index, rule) in nat.sources.iter().enumerate() {
            let key = format!("nat.source[{index}]");
            self.nat_source(known, &key, rule, nat);
            let sharing = self.deterministic(&key, rule);
            self.shared_pool(&key, rule);
            // The same pool may serve several rules, if it gives its ports away in the same manner.
            if let Some(pool) = &rule.pool
                && pools.insert((&rule.vrf, pool, rule.ports, sharing, rule.shared))
            {
                let before = addresses;
                for range in pool.addresses() {
                    let [first, last] = [range.first(), range.last()].map(addr_number);
                    addresses = addresses.saturating_add(last - first).saturating_add(1);
                }
                if before <= MAX_NAT_ADDRESSES && addresses > MAX_NAT_ADDRESSES {
                    let allowed = format!(
                        "the pool of nat.source `{}`: the node has room for {MAX_NAT_ADDRESSES} external addresses at \
                         most, with this pool there are {addresses}",
                        rule.name
                    );
                    self.table_fault(format!("{key}.pool"), allowed);
                }
                let taken = taken.entry(&rule.vrf).or_default();
                for (at, range) in pool.addresses().iter().enumerate() {
                    taken.push((*range, format!("{key}.pool[{at}]")));
                }
            }
        }
        let mut inside: AHashMap<&'a VrfName, Vec<Taken>> = AHashMap::new();
        for (index, rule) in nat.statics.iter().enumerate() {
            let key = format!("nat.static[{index}]");
            self.nat_static(known, &key, rule);
            taken.entry(&rule.vrf).or_default().push((rule.outside, format!("{key}.outside")));
            let vrf = rule.inside_vrf.as_ref().unwrap_or(&rule.vrf);
            inside.entry(vrf).or_default().push((rule.inside, format!("{key}.inside")));
        }
        self.unique("nat.nat64", nat.nat64.iter().map(|rule| &rule.name));
        if nat.nat64.len() > Nat::MAX_NAT64 {
            let allowed = format!("at most {}, not {}", Nat::MAX_NAT64, nat.nat64.len());
            self.table_fault("nat.nat64".into(), allowed);
        }
        for (index, rule) in nat.nat64.iter().enumerate() {
            let key = format!("nat.nat64[{index}]");
            self.nat64(known, &key, rule, nat);
            let before = addresses;
            for (at, range) in rule.pool.iter().enumerate() {
                let [first, last] = [range.first(), range.last()].map(addr_number);
                addresses = addresses.saturating_add(last - first).saturating_add(1);
                taken.entry(&rule.vrf).or_default().push((*range, format!("{key}.pool[{at}]")));
            }
            if before <= MAX_NAT_ADDRESSES && addresses > MAX_NAT_ADDRESSES {
                let allowed = format!(
                    "the node has room for {MAX_NAT_ADDRESSES} external addresses at most, with this pool there are \
                     {addresses}"
                );
                self.table_fault(format!("{key}.pool"), allowed);
            }
        }
        self.unique("nat.nptv6", nat.nptv6.iter().map(|rule| &rule.name));
        if nat.nptv6.len() > Nat::MAX_NPTV6 {
            let allowed = format!("at most {}, not {}", Nat::MAX_NPTV6, nat.nptv6.len());
            self.table_fault("nat.nptv6".into(), allowed);
        }
        for (index, rule) in nat.nptv6.iter().enumerate() {
            let key = format!("nat.nptv6[{index}]");
            self.nat_prefix(known, &key, rule);
            // An inside prefix may have several outside, towards several networks (RFC 6296 section 2.4).
            taken.entry(&rule.vrf).or_default().push((rule.outside, format!("{key}.outside")));
        }
        for taken in taken.values_mut().chain(inside.values_mut()) {
            self.disjoint(taken);
        }
        for (index, rule) in nat.destinations.iter().enumerate() {
            self.nat_destination(known, &format!("nat.destination[{index}]"), rule, &taken);
        }
        self.same_destinations(nat);
    }

    fn static_names(&mut self, nat: &Nat) {
        let mut first: AHashMap<&Name, usize> = AHashMap::new();
        for (index, rule) in nat.statics.iter().enumerate() {
            let Some(name) = &rule.name else { continue };
            if let Some(other) = first.get(name) {
                let allowed = format!("already the name of nat.static[{other}]");
                self.fault(format!("nat.static[{index}].name"), name, allowed);
            } else {
                first.insert(name, index);
            }
        }
    }

    /// Two owners of one address: each would have to be asked who answers.
    fn disjoint(&mut self, taken: &mut [Taken]) {
        taken.sort_unstable();
        let mut widest: Option<&Taken> = None;
        for this in taken.iter() {
            match widest {
                Some((other, key)) if other.overlaps(this.0) => {
                    self.fault(this.1.clone(), this.0, format!("overlaps {key}, {other}"));
                }
                _ => {}
            }
            if widest.is_none_or(|(other, _)| other.last() < this.0.last()) {
                widest = Some(this);
            }
        }
    }

    /// The interface of `vrf` that has `address`.
    fn owner(&self, vrf: &VrfName, range: AddressRange) -> Option<&'a Interface> {
        let mut interfaces = self.config.interfaces.iter().filter(|interface| interface.vrf == *vrf);
        interfaces.find(|interface| interface.addresses.iter().any(|own| range.contains(own.address())))
    }

    fn nat_source(&mut self, known: &Known<'_>, key: &str, rule: &NatSource, nat: &Nat) {
        self.side(known, Of::Nat, &format!("{key}.from"), &rule.from);
        self.side(known, Of::Nat, &format!("{key}.to"), &rule.to);
        self.vrf(known, format!("{key}.vrf"), &rule.vrf);
        self.families(key, &rule.from, Some(&rule.to), rule.service.as_ref());
        if rule.pool.is_some() == rule.exempt {
            self.table_fault(key.into(), "a source NAT has one of: pool, exempt = true");
        }
        if let Some(interface) = rule.to.interface.as_ref().and_then(|i| known.interfaces.get(i.as_str())) {
            let has_ipv4 = interface.addresses.iter().any(|own| own.address().is_ipv4());
            if interface.vrf != rule.vrf {
                let allowed = format!(
                    "the interface is in VRF {}, and the rule is for VRF {}",
                    interface.vrf, rule.vrf
                );
                self.fault(format!("{key}.to.interface"), &interface.name, allowed);
            } else if rule.pool == Some(NatPool::Interface) && !has_ipv4 {
                let allowed = format!("interface {} has no IPv4 address", interface.name);
                self.fault(format!("{key}.pool"), "interface", allowed);
            }
        }
        if let Some(ports) = rule.ports {
            if rule.pool.is_none() {
                self.fault(format!("{key}.ports"), ports, "ports go with a pool");
            } else {
                self.nat_ports(&format!("{key}.ports"), rule.ports, nat);
            }
        }
        for (at, range) in rule.pool.iter().flat_map(|pool| pool.addresses()).enumerate() {
            if rule.ports.is_none()
                && let Some(interface) = self.owner(&rule.vrf, *range)
            {
                let allowed = format!(
                    "the gateway's own address on interface {}: say which ports are for NAT, ports = \"{}\"",
                    interface.name,
                    Nat::INTERFACE_PORTS
                );
                self.fault(format!("{key}.pool[{at}]"), range, allowed);
            }
        }
    }

    fn nat_static(&mut self, known: &Known<'_>, key: &str, rule: &NatStatic) {
        self.vrf(known, format!("{key}.vrf"), &rule.vrf);
        if let Some(vrf) = &rule.inside_vrf {
            self.vrf(known, format!("{key}.inside_vrf"), vrf);
        }
        self.side(known, Of::Nat, &format!("{key}.to"), &rule.to);
        let lengths = (rule.outside.net(), rule.inside.net());
        for (name, range, net) in [("outside", rule.outside, lengths.0), ("inside", rule.inside, lengths.1)] {
            if net.is_none() {
                self.fault(format!("{key}.{name}"), range, "a static NAT is of addresses or prefixes");
            } else if !is_unicast(range.first()) {
                self.fault(format!("{key}.{name}"), range, UNICAST);
            }
        }
        if let (Some(outside), Some(inside)) = lengths {
            if outside.addr().is_ipv4() != inside.addr().is_ipv4() {
                self.fault(format!("{key}.inside"), rule.inside, "outside and inside are of one family");
            } else if outside.prefix_len() != inside.prefix_len() {
                let allowed = format!("outside is a /{}: both are of one length", outside.prefix_len());
                self.fault(format!("{key}.inside"), rule.inside, allowed);
            }
        }
        if let Some(interface) = self.owner(&rule.vrf, rule.outside) {
            let allowed = format!("the gateway's own address on interface {}", interface.name);
            self.fault(format!("{key}.outside"), rule.outside, allowed);
        }
    }

    fn nat64(&mut self, known: &Known<'_>, key: &str, rule: &Nat64, nat: &Nat) {
        self.side(known, Of::Nat, &format!("{key}.from"), &rule.from);
        self.vrf(known, format!("{key}.vrf"), &rule.vrf);
        self.families(key, &rule.from, None, None);
        if rule.embedding().is_none() || !is_unicast(rule.prefix.first()) {
            let allowed = "a unicast IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits with bits 64 to 71 zero";
            self.fault(format!("{key}.prefix"), rule.prefix, allowed);
        }
        self.nat_ports(&format!("{key}.ports"), rule.ports, nat);
        for (at, range) in rule.pool.iter().enumerate() {
            let is_right = matches!((range.first(), range.last()), (IpAddr::V4(first), IpAddr::V4(last))
                if is_unicast_v4(first) && is_unicast_v4(last));
            if !is_right {
                self.fault(
                    format!("{key}.pool[{at}]"),
                    range,
                    "the pool of a NAT64 is of unicast IPv4 addresses",
                );
            } else if let Some(interface) = self.owner(&rule.vrf, *range) {
                let allowed = format!("the gateway's own address on interface {}", interface.name);
                self.fault(format!("{key}.pool[{at}]"), range, allowed);
            }
        }
        if let Some(interface) = known
            .interfaces
            .values()
            .find(|interface| interface.addresses.iter().any(|own| rule.prefix.contains(own.address())))
        {
            let allowed = format!("the gateway's own address on interface {} is in it", interface.name);
            self.fault(format!("{key}.prefix"), rule.prefix, allowed);
        }
    }

    fn nat_ports(&mut self, key: &str, ports: Option<PortRange>, nat: &Nat) {
        let Some(ports) = ports else { return };
        let size = nat.block_size.ports();
        let first_whole = u32::from(ports.first()).next_multiple_of(size.into());
        if ports.first() < 1024 {
            let allowed = "ports are 1024 to 65535; well-known ports are only used by a pool without ports";
            self.fault(key.to_owned(), ports, allowed);
        } else if first_whole + u32::from(size) - 1 > u32::from(ports.last()) {
            self.fault(key.to_owned(), ports, format!("has no whole block of {size} ports in it"));
        }
    }

    fn nat_prefix(&mut self, known: &Known<'_>, key: &str, rule: &NatPrefix) {
        self.vrf(known, format!("{key}.vrf"), &rule.vrf);
        if let Some(vrf) = &rule.inside_vrf {
            self.vrf(known, format!("{key}.inside_vrf"), vrf);
        }
        self.side(known, Of::Nat, &format!("{key}.to"), &rule.to);
        for (name, range) in [("outside", rule.outside), ("inside", rule.inside)] {
            let is_right =
                matches!(range.net(), Some(IpNet::V6(net)) if (1..=64).contains(&net.prefix_len()));
            if !is_right {
                self.fault(format!("{key}.{name}"), range, "NPTv6 is of IPv6 prefixes of 1 to 64 bits");
            } else if !is_unicast(range.first()) {
                self.fault(format!("{key}.{name}"), range, UNICAST);
            }
        }
        if rule.outside.overlaps(rule.inside) && rule.inside_vrf.as_ref().is_none_or(|vrf| *vrf == rule.vrf) {
            self.fault(format!("{key}.inside"), rule.inside, format!("overlaps outside, {}", rule.outside));
        }
        if let Some(interface) = self.owner(&rule.vrf, rule.outside) {
            let allowed = format!("the gateway's own address on interface {}", interface.name);
            self.fault(format!("{key}.outside"), rule.outside, allowed);
        }
    }

    fn nat_destination(
        &mut self,
        known: &Known<'_>,
        key: &str,
        rule: &NatDestination,
        taken: &AHashMap<&VrfName, Vec<Taken>>,
    ) {
        self.vrf(known, format!("{key}.vrf"), &rule.vrf);
        if let Some(vrf) = &rule.target_vrf {
            self.vrf(known, format!("{key}.target_vrf"), vrf);
        }
        self.side(known, Of::Nat, &format!("{key}.from"), &rule.from);
        for (name, address) in [("address", rule.address), ("target", rule.target.address)] {
            if !is_unicast(address) {
                self.fault(format!("{key}.{name}"), address, UNICAST);
            }
        }
        if rule.address.is_ipv4() != rule.target.address.is_ipv4() {
            self.fault(format!("{key}.target"), rule.target, "address and target are of one family");
        }
        let services = rule.service.as_deref().unwrap_or(&[Service::ANY]);
        for (at, service) in services.iter().enumerate() {
            let key = format!("{key}.service[{at}]");
            if service.icmp_type().is_some() {
                self.fault(key, service, "a destination NAT takes all of a protocol, or ports of it");
            } else if rule.target.port.is_some() && service.ports().is_none_or(|p| p.first() != p.last()) {
                self.fault(key, service, "a target with a port needs services of one port each, tcp/2222");
            }
        }
        if services.contains(&Service::ANY) {
            let shared = self.owner(&rule.vrf, rule.address.into()).map(|i| format!("interface {}", i.name));
            let shared = shared.or_else(|| {
                let ranges = taken.get(&rule.vrf)?;
                let (_, key) = ranges.iter().find(|(range, _)| range.contains(rule.address))?;
                Some(key.clone())
            });
            if let Some(who) = shared {
                let allowed = format!("also the address of {who}: name the service, service = \"tcp/2222\"");
                self.fault(format!("{key}.address"), rule.address, allowed);
            }
        }
    }

    /// Of two rules for the same packets the second would never be used.
    fn same_destinations(&mut self, nat: &'a Nat) {
        type Place<'a> = (&'a VrfName, IpAddr, Option<u8>, &'a Side);
        let mut ports: AHashMap<Place<'a>, Vec<(PortRange, usize)>> = AHashMap::new();
        for (index, rule) in nat.destinations.iter().enumerate() {
            for service in rule.service.as_deref().unwrap_or(&[Service::ANY]) {
                let place = (&rule.vrf, rule.address, service.protocol(), &rule.from);
                ports.entry(place).or_default().push((service.ports().unwrap_or(PortRange::ALL), index));
            }
        }
        let mut faults = Vec::new();
        for ranges in ports.values_mut() {
            ranges.sort_unstable();
            // A protocol as a whole steps back behind its ports; only two wholes are the same.
            let (whole, some): (Vec<_>, Vec<_>) =
                ranges.iter().partition(|(ports, _)| *ports == PortRange::ALL);
            let mut widest: Option<(PortRange, usize)> = None;
            for this in some.into_iter().copied() {
                if let Some(other) = widest.filter(|(other, _)| this.0.first() <= other.last()) {
                    faults.push((this.1.max(other.1), this.1.min(other.1)));
                }
                if widest.is_none_or(|(other, _)| other.last() < this.0.last()) {
                    widest = Some(this);
                }
            }
            faults.extend(whole.windows(2).map(|pair| (pair[1].1, pair[0].1)));
        }
        faults.sort_unstable();
        faults.dedup();
        for (index, other) in faults {
            let name = &nat.destinations[other].name;
            let allowed =
                format!("{name} already takes these packets; let them differ in address, service or from");
            self.fault(format!("nat.destination[{index}].service"), &nat.destinations[index].name, allowed);
        }
    }
}

pub(super) fn addr_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

pub(super) const UNICAST: &str = "a unicast address is needed";

pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_unicast_v4(address),
        IpAddr::V6(address) => {
            let special = address.is_multicast() || address.is_loopback() || address.is_unspecified();
            !special && !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none()
        }
    }
}
