//! The config: serde structs exactly as typed, legal values only, and the checks across tables.
//!
//! Text becomes a [`Config`] completely or not at all; every fault that was found is named with its
//! file, line, key, value and what is allowed. What the config *means* is compiled in `tables`.

mod addresses;
mod assert;
mod balance;
#[cfg(test)]
mod balance_tests;
mod bfd;
mod bridge;
mod check;
mod check_balance;
mod check_bfd;
mod check_bridge;
mod check_dhcp;
mod check_overlay;
mod check_pair;
mod check_policy;
mod check_vrrp;
mod commit;
mod deterministic;
mod dhcp;
mod error;
mod health;
mod json_schema;
mod node;
mod packet;
mod policy;
#[cfg(test)]
mod policy_tests;
mod reach;
mod read;
mod role;
pub mod route_file;
pub(crate) mod router_group;
mod schema;
mod sections;
mod service;
mod shared;
#[cfg(test)]
mod tests;
mod value;
mod vrrp;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

pub use addresses::{AddressRange, Member, NatPool, NatTarget, OneOrMore};
pub use assert::{Assert, Expect, Expected, Reach, Snat};
pub use balance::{
    Affinity, Backend, BackendAdmin, BackendKey, BackendTunnel, BalanceMode, OnFailure, PassiveChecks,
    VirtualService,
};
pub use bfd::{Bfd, BfdInterval};
pub use bridge::{Bridge, BridgeMember, End, UnknownMulticast};
pub use check::{Links, check_neighbour};
pub use check_balance::{check_service, check_services};
pub use check_overlay::{MAX_REMOTES, MAX_REMOTES_IN_ALL, MAX_UDP_PORTS, check_remote};
pub use check_policy::{check_lines, check_rule};
pub use commit::{Commit, Fate};
pub use deterministic::Sharing;
pub use dhcp::{AgentId, DhcpRelay, Dhcpv6Relay, Option82};
pub use error::{ConfigError, ConfigErrors};
pub use health::{
    Bytes, HealthCheck, HealthKind, HttpHost, HttpMethod, HttpPath, OwnAddress, Period, StatusRange,
};
pub use node::{Node, NodePair};
pub use packet::PacketText;
pub use policy::{
    BlockSize, Filtering, Flows, Group, Nat, Nat64, NatDestination, NatPrefix, NatSource, NatStatic,
    RateLimit, Rule, RuleAction, Seconds, Sessions, Side, Zone,
};
pub use reach::{ReachFrom, ReachTo};
pub(crate) use role::CONFIRM_OWN;
pub use role::{ASKABLE, Right, Role, only_reads};
pub(crate) use schema::migrate_parsed;
pub use schema::{Migrated, OLD_SCHEMA, SCHEMA, SchemaError, migrate};
pub use sections::{
    Control, Cpu, Encapsulation, Icmp, Interface, Lag, Log, MAX_WORKERS, Neighbour, NeighbourLimits,
    OuterDscp, Pair, Port, PortMode, Route, RouteFile, RouteTarget, RouterAdvertisements, SourceCheck,
    System, Vni, Vrf, Workers,
};
pub use service::{Dscp, PortRange, Service, TcpFlag};
pub use value::{
    DeviceName, GroupName, HashKey, InterfaceAddress, InterfaceName, Mac, Mtu, Name, NextHop, NotAllowed,
    PortName, Prefix, Ranged, RuleName, Tpid, Vlan, VlanId, VrfName, ZoneName,
};
pub use vrrp::{BadInterval, Centiseconds, Percent, Track, Vrrp, virtual_mac};

/// Largest config or route file read from disk: 64 M routes of 16 bytes, more than any table holds.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// A whole, checked config.
///
/// There is no `Deserialize`: [`Config::parse`] is the only door.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The version of the vocabulary.
    pub schema: u32,
    /// `[system]`
    pub system: System,
    /// `[control]`
    pub control: Control,
    /// `[commit]`
    pub commit: Commit,
    /// `[log]`
    pub log: Log,
    /// `[pair]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pair: Option<Pair>,
    /// `[icmp]`
    pub icmp: Icmp,
    /// `[neighbours]`
    #[serde(rename = "neighbours")]
    pub neighbour_limits: NeighbourLimits,
    /// `[[port]]`
    #[serde(rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// `[[vrf]]`
    #[serde(rename = "vrf", skip_serializing_if = "Vec::is_empty")]
    pub vrfs: Vec<Vrf>,
    /// `[[interface]]`
    #[serde(rename = "interface", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// `[[bridge]]`
    #[serde(rename = "bridge", skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<Bridge>,
    /// `[[neighbour]]`
    #[serde(rename = "neighbour", skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
    /// `[[route]]`
    #[serde(rename = "route", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// `[[route_file]]`, with what was in them.
    #[serde(rename = "route_file", skip_serializing_if = "Vec::is_empty")]
    pub route_files: Vec<RouteFile>,
    /// `[flows]`
    pub flows: Flows,
    /// `[[zone]]`
    #[serde(rename = "zone", skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
    /// `[[group]]`
    #[serde(rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Arc<Group>>,
    /// `[[admin_rule]]`, before all rules.
    #[serde(rename = "admin_rule", skip_serializing_if = "Vec::is_empty")]
    pub admin_rules: Vec<Arc<Rule>>,
    /// `[[rule]]`
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Arc<Rule>>,
    /// `[nat]`
    pub nat: Nat,
    /// `[[service]]`
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Arc<VirtualService>>,
    /// `[[role]]`
    #[serde(rename = "role", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// `[[vrrp]]`
    #[serde(rename = "vrrp", skip_serializing_if = "Vec::is_empty")]
    pub vrrp: Vec<Vrrp>,
    /// `[[bfd]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bfd: Vec<Bfd>,
    /// `[[assert]]`
    #[serde(rename = "assert", skip_serializing_if = "Vec::is_empty")]
    pub asserts: Vec<Assert>,
    /// `[node.NAME]`: see [`Config::on_node`].
    #[serde(rename = "node", skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<Name, Node>,
}

/// The top-level keys, in the order of the manual.
const KEYS: [&str; 27] = [
    "schema",
    "system",
    "control",
    "commit",
    "log",
    "pair",
    "icmp",
    "neighbours",
    "port",
    "vrf",
    "interface",
    "bridge",
    "neighbour",
    "route",
    "route_file",
    "flows",
    "zone",
    "group",
    "admin_rule",
    "rule",
    "nat",
    "service",
    "role",
    "vrrp",
    "bfd",
    "assert",
    "node",
];

impl Default for Config {
    /// The empty config: no ports, nothing forwarded.
    fn default() -> Config {
        Config {
            schema: SCHEMA,
            system: System::default(),
            control: Control::default(),
            commit: Commit::default(),
            log: Log::default(),
            pair: None,
            icmp: Icmp::default(),
            neighbour_limits: NeighbourLimits::default(),
            ports: Vec::new(),
            vrfs: Vec::new(),
            interfaces: Vec::new(),
            bridges: Vec::new(),
            neighbours: Vec::new(),
            routes: Vec::new(),
            route_files: Vec::new(),
            flows: Flows::default(),
            zones: Vec::new(),
            groups: Vec::new(),
            admin_rules: Vec::new(),
            rules: Vec::new(),
            nat: Nat::default(),
            services: Vec::new(),
            roles: Vec::new(),
            vrrp: Vec::new(),
            bfd: Vec::new(),
            asserts: Vec::new(),
            nodes: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads and checks a config; `file_name` is what errors call it. A `[[route_file]]` is refused:
    /// there is no folder it could be in. See [`Config::parse_with`].
    pub fn parse(text: &str, file_name: &str) -> Result<Config, ConfigErrors> {
        Config::parse_with(text, file_name, &mut |_| {
            Err(io::Error::new(io::ErrorKind::Unsupported, "route files cannot be read here"))
        })
    }

    /// The same of a document of the schema before: what it is today is read. Lines of errors are those of that text.
    fn parse_migrated(
        text: &str,
        source: &read::Source<'_>,
        file_name: &str,
        read: &mut dyn FnMut(&str) -> io::Result<String>,
    ) -> Result<Config, ConfigErrors> {
        match migrate(text) {
            Ok(Some(migrated)) => {
                let file_name = format!("{file_name} as `softgate migrate` writes it");
                Config::parse_with(&migrated.text, &file_name, read)
            }
            Ok(None) => unreachable!("whoever calls has seen an older schema"),
            Err(why) => {
                let mut errors = ConfigErrors::default();
                errors.push(source.error("schema", None, why.to_string()));
                Err(errors)
            }
        }
    }

    /// Reads and checks a config; `read` gives the text of a route file by the path in the config.
    pub fn parse_with(
        text: &str,
        file_name: &str,
        read: &mut dyn FnMut(&str) -> io::Result<String>,
    ) -> Result<Config, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let source = read::Source::parse(text, file_name, &mut errors);
        if !errors.is_empty() {
            errors.sort();
            return Err(errors); // What stands after a syntax error is anyone's guess.
        }
        match check_schema(&source) {
            Ok(None) => {}
            Ok(Some(_)) => return Config::parse_migrated(text, &source, file_name, read),
            // Another schema has other keys: complaints about them would mislead.
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        }
        source.refuse_others(&KEYS, &mut errors);
        let e = &mut errors;
        let mut config = Config {
            schema: SCHEMA,
            system: source.single("system", e).unwrap_or_default(),
            control: source.single("control", e).unwrap_or_default(),
            commit: source.single("commit", e).unwrap_or_default(),
            log: source.single("log", e).unwrap_or_default(),
            pair: source.single("pair", e),
            icmp: source.single("icmp", e).unwrap_or_default(),
            neighbour_limits: source.single("neighbours", e).unwrap_or_default(),
            ports: source.list("port", e),
            vrfs: source.list("vrf", e),
            interfaces: source.list("interface", e),
            bridges: source.list("bridge", e),
            neighbours: source.list("neighbour", e),
            routes: source.list("route", e),
            route_files: source.list("route_file", e),
            flows: source.single("flows", e).unwrap_or_default(),
            zones: source.list("zone", e),
            groups: source.list("group", e),
            admin_rules: source.list("admin_rule", e),
            rules: source.list("rule", e),
            // The lists by themselves: each faulty rule is then named, at no more than its own cost.
            nat: Nat {
                sources: source.list("nat.source", e),
                destinations: source.list("nat.destination", e),
                statics: source.list("nat.static", e),
                nptv6: source.list("nat.nptv6", e),
                nat64: source.list("nat.nat64", e),
                ..source.single_without("nat", &Nat::LISTS, e).unwrap_or_default()
            },
            services: source.list("service", e),
            roles: source.list("role", e),
            vrrp: source.list("vrrp", e),
            bfd: source.list("bfd", e),
            asserts: source.list("assert", e),
            nodes: source.single("node", e).unwrap_or_default(),
        };
        let route_texts = read_route_files(&mut config, &source, read, e);
        // Across tables only when each is right by itself: a port with a bad name is not a missing port.
        if errors.is_empty() {
            check::check(&config, &mut |fault| {
                errors.push(locate(
                    fault,
                    &config,
                    |key, value, allowed| source.error(key, value, allowed),
                    |file| route_texts.get(file).map(String::as_str),
                ));
            });
        }
        errors.sort();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// Checks across tables, for a config that was built or changed without text. Errors have no line.
    pub fn validate(&self, file_name: &str) -> Result<(), ConfigErrors> {
        let mut errors = ConfigErrors::default();
        check::check(self, &mut |fault| {
            let at = |key: &str, value, allowed| ConfigError {
                file: file_name.into(),
                line: None,
                key: key.to_owned(),
                value,
                allowed,
            };
            errors.push(locate(fault, self, at, |_| None));
        });
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The config as TOML. Route files stay references: their routes are not written.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|error| unreachable!("a config is plain tables: {error}"))
    }

    /// All static routes: `[[route]]`, then those of the route files, in order.
    pub fn all_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().chain(self.route_files.iter().flat_map(|file| file.routes.iter()))
    }

    /// The zones of interfaces and of members of bridges, as often as they stand there.
    pub fn zones_of_ends(&self) -> impl Iterator<Item = &ZoneName> {
        let members = self.bridges.iter().flat_map(|bridge| &bridge.members);
        let of_interfaces = self.interfaces.iter().filter_map(|interface| interface.zone.as_ref());
        of_interfaces.chain(members.filter_map(|member| member.zone.as_ref()))
    }

    /// True if any interface or member of a bridge has a zone: there will be sessions.
    pub fn has_zones(&self) -> bool {
        self.zones_of_ends().next().is_some()
    }

    /// All VRFs: `default`, the declared ones, then those only interfaces name, each once.
    pub fn vrf_names(&self) -> Vec<VrfName> {
        let mut seen = ahash::AHashSet::new();
        std::iter::once(Name::default_vrf())
            .chain(self.vrfs.iter().map(|vrf| vrf.name.clone()))
            .chain(self.interfaces.iter().map(|interface| interface.vrf.clone()))
            .filter(|name| seen.insert(name.clone()))
            .collect()
    }
}

/// Where in a config keys stand.
pub struct Places<'t>(read::Source<'t>);

impl<'t> Places<'t> {
    /// Of a text that has been read as a config.
    pub fn of(text: &'t str) -> Places<'t> {
        Places(read::Source::parse(text, "", &mut ConfigErrors::default()))
    }

    /// The line, counted from 1, of a key such as `rule[3].from`, or of the nearest table around it.
    pub fn line(&self, key: &str) -> Option<u32> {
        self.0.error(key, None, String::new()).line
    }
}

/// The paths of the route files that a config names, right or wrong: whoever sends it sends them too.
pub(crate) fn route_file_paths(text: &str) -> Vec<String> {
    let (tree, _) = toml::de::DeTable::parse_recoverable(text);
    let Some(files) = tree.get_ref().get("route_file").and_then(|files| files.get_ref().as_array()) else {
        return Vec::new();
    };
    let path = |file: &toml::Spanned<toml::de::DeValue<'_>>| {
        file.get_ref().as_table()?.get("path")?.get_ref().as_str().map(str::to_owned)
    };
    files.iter().filter_map(path).collect()
}

/// The path of a route file: relative ones are beside the config.
pub(crate) fn beside(config: &Path, file: &str) -> std::path::PathBuf {
    config.parent().unwrap_or(Path::new("")).join(file)
}

/// Reads a text file of a sane size.
pub(crate) fn read_file(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    match read as u64 > MAX_FILE_BYTES {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 GiB")),
        false => Ok(text),
    }
}

/// The schema of a document that is not of this binary's own, but of the one before.
fn check_schema(source: &read::Source<'_>) -> Result<Option<u32>, ConfigError> {
    let number = source
        .get("schema")
        .map(|value| value.get_ref().as_integer().and_then(|integer| integer.as_str().parse::<u32>().ok()));
    schema::written(number).map_err(|why| ConfigError {
        line: source.error("schema", None, String::new()).line.or(Some(1)),
        ..source.error("schema", number.flatten().map(|number| number.to_string()), why.to_string())
    })
}

/// Fills in the routes of the route files; returns their texts, for line numbers of later faults.
fn read_route_files(
    config: &mut Config,
    source: &read::Source<'_>,
    read: &mut dyn FnMut(&str) -> io::Result<String>,
    errors: &mut ConfigErrors,
) -> Vec<String> {
    let mut texts = Vec::with_capacity(config.route_files.len());
    for (index, route_file) in config.route_files.iter_mut().enumerate() {
        let text = match read(&route_file.path) {
            Ok(text) => text,
            Err(error) => {
                let key = format!("route_file[{index}].path");
                let allowed = format!("cannot be read: {error}");
                errors.push(source.error(&key, Some(route_file.path.clone()), allowed));
                texts.push(String::new());
                continue;
            }
        };
        let file: Arc<str> = route_file.path.as_str().into();
        let routes = route_file::parse(&text, &route_file.vrf, |bad| {
            errors.push(ConfigError {
                file: file.clone(),
                line: Some(bad.line),
                key: bad.key.to_owned(),
                value: Some(bad.value),
                allowed: bad.allowed.to_string(),
            });
        });
        route_file.routes = Arc::new(routes);
        texts.push(text);
    }
    texts
}

/// Gives a fault its file and line.
fn locate<'t>(
    fault: check::Fault,
    config: &Config,
    at_key: impl Fn(&str, Option<String>, String) -> ConfigError,
    route_text: impl Fn(usize) -> Option<&'t str>,
) -> ConfigError {
    match fault.place {
        check::Place::Key(key) => at_key(&key, fault.value, fault.allowed),
        check::Place::RouteFile { file, route, key } => ConfigError {
            file: config.route_files[file].path.as_str().into(),
            line: route_text(file).and_then(|text| route_file::line_of(text, route)),
            key: key.to_owned(),
            value: fault.value,
            allowed: fault.allowed,
        },
    }
}
