//! Everything a client can ask, as one enum. The list is the documentation.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeSeq as _, SerializeTuple as _, Serializer};
use serde::{Deserialize, Serialize};

use super::bridges::{MacsAdded, MacsQuery, MacsRemoved, MemberOpened};
use super::deterministic::{HostQuery, PortQuery};
use super::explain::{ExplainQuery, ReachQuery};
use super::ha::DrainQuery;
use super::inspect::{ClearQuery, MappingsQuery, SessionsQuery};
use super::preview::PreviewQuery;
use super::reply::ConvergenceQuery;
use super::revision_requests::RevisionQuery;
use super::services::{BackendChange, BackendsRemoved, ServiceBackends, ServicesQuery};
use super::terms::{Asked, Terms};
use super::upgrade::UpgradeQuery;
use crate::config::route_file::parse_via;
use crate::config::{
    Backend, BackendKey, GroupName, InterfaceName, Member, Name, Neighbour, NotAllowed, Prefix, Route,
    RouteTarget, Rule, RuleName, Seconds, Side, VrfName,
};

/// One request: `method` and `params` of JSON-RPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", content = "params", deny_unknown_fields)]
pub enum Request {
    /// Is anyone there?
    #[serde(rename = "ping")]
    Ping {},
    /// Version, generation, uptime.
    #[serde(rename = "show.version")]
    ShowVersion {},
    /// Ports: devices, mode, counters.
    #[serde(rename = "show.ports")]
    ShowPorts {},
    /// Interfaces: addresses, state, counters.
    #[serde(rename = "show.interfaces")]
    ShowInterfaces {},
    /// Routes, by pages.
    #[serde(rename = "show.routes")]
    ShowRoutes(RoutesQuery),
    /// Neighbours.
    #[serde(rename = "show.neighbours")]
    ShowNeighbours {
        /// Only those of this interface.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<InterfaceName>,
    },
    /// All counters.
    #[serde(rename = "show.counters")]
    ShowCounters {},
    /// Drop reasons that have counted.
    #[serde(rename = "show.drops")]
    ShowDrops {},
    /// Workers: load and health.
    #[serde(rename = "show.workers")]
    ShowWorkers {},
    /// DHCP relays: what they relayed and what not.
    #[serde(rename = "show.dhcp-relays")]
    ShowDhcpRelays {},
    /// Virtual routers: who has their addresses.
    #[serde(rename = "show.ha")]
    ShowHa {},
    /// Takes the node out of service: others take over, and nothing is lost. Answered at once; `show.ha` has how far it is.
    #[serde(rename = "drain")]
    Drain(DrainQuery),
    /// Takes that back.
    #[serde(rename = "drain.cancel")]
    DrainCancel {},
    /// Has another process take this one's place, with its sessions. Answered at once; `show.ha` has how far it is.
    #[serde(rename = "upgrade")]
    Upgrade(UpgradeQuery),
    /// Sessions that match, some at a time; or only how many.
    #[serde(rename = "show.sessions")]
    ShowSessions(SessionsQuery),
    /// Ends sessions that match, some at a time.
    #[serde(rename = "clear.sessions")]
    ClearSessions(ClearQuery),
    /// NAT pools: how much of them is in use.
    #[serde(rename = "show.nat")]
    ShowNat {},
    /// NAT mappings that match, some at a time.
    #[serde(rename = "show.nat.mappings")]
    ShowMappings(MappingsQuery),
    /// Outside address and ports of a host of a deterministic NAT.
    #[serde(rename = "nat.map")]
    NatMap(HostQuery),
    /// The host that has an outside address and port by a deterministic NAT.
    #[serde(rename = "nat.find")]
    NatFind(PortQuery),
    /// Rules with exact counters. While the answer has `next`, ask again with it.
    #[serde(rename = "show.rules")]
    ShowRules {
        /// `next` of the answer before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// Services and their backends, with exact counters. While the answer has `next`, ask again with it.
    #[serde(rename = "show.services")]
    ShowServices(ServicesQuery),
    /// Bridges and their members.
    #[serde(rename = "show.bridges")]
    ShowBridges {},
    /// Stations of bridges, some at a time.
    #[serde(rename = "show.macs")]
    ShowMacs(MacsQuery),
    /// Says behind which member of a bridge stations are: at once, in no transaction.
    #[serde(rename = "bridge.add-macs")]
    BridgeAddMacs(MacsAdded),
    /// Forgets stations of a bridge.
    #[serde(rename = "bridge.del-macs")]
    BridgeDelMacs(MacsRemoved),
    /// Opens a member of a bridge that was shut because of a loop.
    #[serde(rename = "bridge.open")]
    BridgeOpen(MemberOpened),
    /// Groups, their members, and who uses them.
    #[serde(rename = "show.groups")]
    ShowGroups {
        /// Only this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<GroupName>,
    },
    /// The latest dropped packets as pcapng.
    #[serde(rename = "drops.export")]
    DropsExport {},
    /// What becomes of a packet, and why. Nothing is taken or remembered.
    #[serde(rename = "explain")]
    Explain(ExplainQuery),
    /// Who can begin a session to what.
    #[serde(rename = "reach")]
    Reach(ReachQuery),
    /// What a config would do to the sessions there are. While the answer has `next`, ask again with it.
    #[serde(rename = "preview")]
    Preview(PreviewQuery),

    /// What has become of the sessions that a commit was about.
    #[serde(rename = "show.convergence")]
    ShowConvergence(ConvergenceQuery),
    /// Commits of the config that are kept, the newest first.
    #[serde(rename = "show.revisions")]
    ShowRevisions {},
    /// The config of a revision, piece by piece. While the answer has `next`, ask again with it.
    #[serde(rename = "show.revision")]
    ShowRevision(RevisionQuery),

    /// How far it is with a commit on both nodes of the pair, or how it has ended.
    #[serde(rename = "show.pair-commit")]
    ShowPairCommit {
        /// `pair.commit` of the answer that it was begun with; absent: the last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commit: Option<u64>,
    },

    /// Brings a file near, piece by piece: appends `text` to the file `name` of this connection.
    #[serde(rename = "upload")]
    Upload {
        /// `""`: the config itself; else the path of a route file, as the config has it.
        name: String,
        /// The next piece.
        text: String,
    },
    /// Replaces the whole config, all or nothing. What was uploaded is used up.
    #[serde(rename = "apply")]
    Apply {
        /// What errors call the config.
        file_name: String,
        /// The config; empty: as uploaded under `""`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        text: String,
        /// The route files, by path, as uploaded.
        #[serde(skip)]
        files: Vec<(String, String)>,
        /// The file it was read from, absolute: a start from this file then knows whether it has changed since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// What is said with it.
        #[serde(flatten)]
        terms: Terms,
    },
    /// Adds or replaces static routes.
    #[serde(rename = "route.add")]
    RouteAdd {
        /// `["192.0.2.0/24", "198.51.100.1,198.51.100.2@blue"]`, with a third element for the VRF;
        /// `"blackhole"` or `"unreachable"` instead of next hops.
        #[serde(with = "compact_routes")]
        #[schemars(with = "Vec<CompactRoute>")]
        routes: Vec<Route>,
    },
    /// Removes static routes.
    #[serde(rename = "route.del")]
    RouteDel {
        /// `["192.0.2.0/24"]` or `["192.0.2.0/24", "blue"]`
        routes: Vec<RouteKey>,
    },
    /// Adds or replaces static neighbours.
    #[serde(rename = "neighbour.add")]
    NeighbourAdd {
        /// Which.
        neighbours: Vec<Neighbour>,
    },
    /// Removes neighbours, static or learned.
    #[serde(rename = "neighbour.del")]
    NeighbourDel {
        /// Which.
        neighbours: Vec<NeighbourKey>,
    },
    /// Adds members to a group; those it has already stay.
    #[serde(rename = "group.add")]
    GroupAdd(GroupMembers),
    /// Takes members out of a group, as they were put in.
    #[serde(rename = "group.del")]
    GroupDel(GroupMembers),

    /// Adds a firewall rule, or puts it in the place of the one that has its name.
    #[serde(rename = "rule.add")]
    RuleAdd(RuleAddition),
    /// Removes firewall rules.
    #[serde(rename = "rule.del")]
    RuleDel {
        /// Which.
        rules: Vec<RuleName>,
    },

    /// Replaces all backends of a service as one change; those that go keep the flows they have.
    #[serde(rename = "service.set-backends")]
    ServiceSetBackends(ServiceBackends),
    /// Takes backends out of a service; they keep the flows they have.
    #[serde(rename = "service.del-backends")]
    ServiceDelBackends(BackendsRemoved),
    /// Drains, disables or enables backends, or gives them another weight.
    #[serde(rename = "service.set-backend")]
    ServiceSetBackend(BackendChange),

    /// Opens a transaction: changes are staged until `commit`.
    #[serde(rename = "begin")]
    Begin {},
    /// Applies what was staged, all or nothing, as one generation.
    #[serde(rename = "commit")]
    Commit {
        /// What was staged, in order.
        #[serde(skip)]
        patches: Vec<Patch>,
        /// What is said with it.
        #[serde(flatten)]
        terms: Terms,
    },
    /// Forgets what was staged.
    #[serde(rename = "abort")]
    Abort {},
    /// Goes back to a revision: the config is what it was then, as a new revision.
    #[serde(rename = "rollback")]
    Rollback {
        /// Its number.
        revision: u64,
        /// What is said with it.
        #[serde(flatten)]
        terms: Terms,
    },
    /// Keeps the last revision, which would be taken back otherwise.
    #[serde(rename = "confirm")]
    Confirm {
        /// Only if it is this one that waits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
        /// Who.
        #[serde(skip)]
        asked: Asked,
    },
}

/// Which routes to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoutesQuery {
    /// Only this VRF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// Only this very prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Only the route a packet to this address takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookup: Option<IpAddr>,
    /// The routes behind this one: `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<RouteKey>,
    /// Most routes in the reply; absent or beyond 10000: 10000; 0: 1, so that pages end. Several of one prefix stay
    /// together beyond it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl RoutesQuery {
    /// About 1 MiB of reply.
    pub const MOST: u32 = 10_000;

    /// Routes on a page.
    pub fn page(&self) -> usize {
        self.limit.unwrap_or(Self::MOST).clamp(1, Self::MOST) as usize
    }
}

/// Members of a group that come or go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupMembers {
    /// The group; it is in the config.
    pub group: GroupName,
    /// Addresses, prefixes, ranges, and `group:NAME`.
    pub members: Vec<Member>,
    /// Those that come in go by themselves after so long; absent: they stay. Members that are there for good stay so;
    /// of others it says anew when they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<Seconds>,
}

/// A firewall rule that comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleAddition {
    /// As in the config.
    pub rule: Arc<Rule>,
    /// Before the rule of this name; absent: where the one of its own name stands, or behind all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<RuleName>,
    /// Among the admin rules.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
}

/// One staged change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patch {
    /// Add or replace static routes.
    RouteAdd(Vec<Route>),
    /// Remove static routes.
    RouteDel(Vec<RouteKey>),
    /// Add or replace static neighbours.
    NeighbourAdd(Vec<Neighbour>),
    /// Remove neighbours.
    NeighbourDel(Vec<NeighbourKey>),
    /// Add members to a group.
    GroupAdd(GroupMembers),
    /// Take members out of a group.
    GroupDel(GroupMembers),
    /// Add or replace a rule.
    RuleAdd(RuleAddition),
    /// Remove rules.
    RuleDel(Vec<RuleName>),
    /// Replace the backends of a service.
    ServiceSetBackends(ServiceBackends),
    /// Take backends out of a service.
    ServiceDelBackends(BackendsRemoved),
    /// Change backends of a service.
    ServiceSetBackend(BackendChange),
}

impl Request {
    /// The change that it is, if it is one.
    pub fn into_patch(self) -> Option<Patch> {
        Some(match self {
            Request::RouteAdd { routes } => Patch::RouteAdd(routes),
            Request::RouteDel { routes } => Patch::RouteDel(routes),
            Request::NeighbourAdd { neighbours } => Patch::NeighbourAdd(neighbours),
            Request::NeighbourDel { neighbours } => Patch::NeighbourDel(neighbours),
            Request::GroupAdd(change) => Patch::GroupAdd(change),
            Request::GroupDel(change) => Patch::GroupDel(change),
            Request::RuleAdd(addition) => Patch::RuleAdd(addition),
            Request::RuleDel { rules } => Patch::RuleDel(rules),
            Request::ServiceSetBackends(all) => Patch::ServiceSetBackends(all),
            Request::ServiceDelBackends(removed) => Patch::ServiceDelBackends(removed),
            Request::ServiceSetBackend(change) => Patch::ServiceSetBackend(change),
            _ => return None,
        })
    }
}

impl From<Patch> for Request {
    fn from(patch: Patch) -> Request {
        match patch {
            Patch::RouteAdd(routes) => Request::RouteAdd { routes },
            Patch::RouteDel(routes) => Request::RouteDel { routes },
            Patch::NeighbourAdd(neighbours) => Request::NeighbourAdd { neighbours },
            Patch::NeighbourDel(neighbours) => Request::NeighbourDel { neighbours },
            Patch::GroupAdd(change) => Request::GroupAdd(change),
            Patch::GroupDel(change) => Request::GroupDel(change),
            Patch::RuleAdd(addition) => Request::RuleAdd(addition),
            Patch::RuleDel(rules) => Request::RuleDel { rules },
            Patch::ServiceSetBackends(all) => Request::ServiceSetBackends(all),
            Patch::ServiceDelBackends(removed) => Request::ServiceDelBackends(removed),
            Patch::ServiceSetBackend(change) => Request::ServiceSetBackend(change),
        }
    }
}

impl Patch {
    /// Single changes in it.
    pub fn changes(&self) -> u64 {
        let changes = match self {
            Patch::RouteAdd(routes) => routes.len(),
            Patch::RouteDel(routes) => routes.len(),
            Patch::NeighbourAdd(neighbours) => neighbours.len(),
            Patch::NeighbourDel(neighbours) => neighbours.len(),
            Patch::GroupAdd(change) | Patch::GroupDel(change) => change.members.len(),
            Patch::RuleAdd(_) => 1,
            Patch::RuleDel(rules) => rules.len(),
            Patch::ServiceSetBackends(service) => service.backends.len(),
            Patch::ServiceDelBackends(removed) => removed.backends.len(),
            Patch::ServiceSetBackend(change) => change.backends.len(),
        };
        changes as u64
    }

    /// Memory it holds, for the cap on staged changes.
    pub fn memory_bytes(&self) -> usize {
        // 16: what the allocator adds to each list of next hops.
        let via = |route: &Route| match &route.target {
            RouteTarget::Via(next_hops) => next_hops.capacity() * size_of_val(&next_hops[0]) + 16,
            RouteTarget::Blackhole | RouteTarget::Unreachable => 0,
        };
        match self {
            Patch::RouteAdd(routes) => {
                routes.capacity() * size_of::<Route>() + routes.iter().map(via).sum::<usize>()
            }
            Patch::RouteDel(routes) => routes.capacity() * size_of::<RouteKey>(),
            // Names are shared or under 64 bytes each.
            Patch::NeighbourAdd(neighbours) => neighbours.capacity() * (size_of::<Neighbour>() + 64),
            Patch::NeighbourDel(neighbours) => neighbours.capacity() * (size_of::<NeighbourKey>() + 64),
            Patch::GroupAdd(change) | Patch::GroupDel(change) => {
                change.members.capacity() * (size_of::<Member>() + 64)
            }
            // What it is made of is at most as long as its text, a few words for each letter.
            Patch::RuleAdd(addition) => {
                let lists = |side: &Side| side.prefix.as_deref().map_or(0, size_of_val);
                let rule = &addition.rule;
                size_of::<Rule>()
                    + 512
                    + lists(&rule.from)
                    + lists(&rule.to)
                    + rule.service.as_deref().map_or(0, size_of_val)
                    + rule.source_ports.as_deref().map_or(0, size_of_val)
            }
            Patch::RuleDel(rules) => rules.capacity() * (size_of::<RuleName>() + 64),
            Patch::ServiceSetBackends(service) => service.backends.capacity() * (size_of::<Backend>() + 64),
            Patch::ServiceDelBackends(removed) => {
                removed.backends.capacity() * (size_of::<BackendKey>() + 64)
            }
            Patch::ServiceSetBackend(change) => change.backends.capacity() * (size_of::<BackendKey>() + 64),
        }
    }
}

/// Names a static route. On the wire `[PREFIX]` or `[PREFIX, VRF]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    /// Its prefix.
    pub prefix: Prefix,
    /// Its VRF.
    pub vrf: VrfName,
}

impl Serialize for RouteKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let words = if self.vrf.is_default_vrf() { 1 } else { 2 };
        let mut tuple = serializer.serialize_tuple(words)?;
        tuple.serialize_element(&self.prefix)?;
        if words == 2 {
            tuple.serialize_element(&self.vrf)?;
        }
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for RouteKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RouteKey, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = RouteKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[PREFIX] or [PREFIX, VRF]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RouteKey, A::Error> {
                let prefix = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let vrf = seq.next_element()?.unwrap_or_else(Name::default_vrf);
                nothing_more(&mut seq, 2, &self)?;
                Ok(RouteKey { prefix, vrf })
            }
        }
        deserializer.deserialize_seq(Words)
    }
}

fn nothing_more<'de, A: SeqAccess<'de>>(
    seq: &mut A,
    len: usize,
    expected: &dyn de::Expected,
) -> Result<(), A::Error> {
    match seq.next_element::<de::IgnoredAny>()? {
        None => Ok(()),
        Some(_) => Err(de::Error::invalid_length(len + 1, expected)),
    }
}

/// Names a neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NeighbourKey {
    /// Its interface.
    pub interface: InterfaceName,
    /// Its address.
    pub address: IpAddr,
}

impl JsonSchema for RouteKey {
    fn schema_name() -> Cow<'static, str> {
        "RouteKey".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let says = "[PREFIX] or [PREFIX, VRF]";
        json_schema!({ "type": "array", "description": says, "items": { "type": "string" }, "minItems": 1, "maxItems": 2 })
    }
}

/// What a route looks like on the wire, for those who want to know beforehand.
struct CompactRoute;

impl JsonSchema for CompactRoute {
    fn schema_name() -> Cow<'static, str> {
        "Route".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let says =
            "[PREFIX, NEXT-HOPS] or [PREFIX, NEXT-HOPS, VRF]; blackhole or unreachable instead of next hops";
        json_schema!({ "type": "array", "description": says, "items": { "type": "string" }, "minItems": 2, "maxItems": 3 })
    }
}

/// The second element of a route on the wire.
struct Target(RouteTarget);

impl FromStr for Target {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Target, NotAllowed> {
        match text {
            "blackhole" => Ok(Target(RouteTarget::Blackhole)),
            "unreachable" => Ok(Target(RouteTarget::Unreachable)),
            via => parse_via(via).map(Target).map_err(|(_, allowed)| allowed),
        }
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
        struct Word;
        impl Visitor<'_> for Word {
            type Value = Target;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("next hops, blackhole or unreachable")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
                text.parse().map_err(|allowed| E::custom(format!("{text:?}: {allowed}")))
            }
        }
        deserializer.deserialize_str(Word)
    }
}

/// Routes as arrays of strings: a million of them must be read in well under a second, so there is no
/// JSON value, no key and no copy of a string in between.
mod compact_routes {
    use super::*;

    pub(super) fn serialize<S: Serializer>(routes: &[Route], serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(routes.len()))?;
        for route in routes {
            seq.serialize_element(&Compact(route))?;
        }
        seq.end()
    }

    struct Compact<'a>(&'a Route);

    impl Serialize for Compact<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let words = if self.0.vrf.is_default_vrf() { 2 } else { 3 };
            let mut tuple = serializer.serialize_tuple(words)?;
            tuple.serialize_element(&self.0.prefix)?;
            match &self.0.target {
                RouteTarget::Blackhole => tuple.serialize_element("blackhole")?,
                RouteTarget::Unreachable => tuple.serialize_element("unreachable")?,
                RouteTarget::Via(next_hops) if next_hops.len() == 1 => {
                    tuple.serialize_element(&next_hops[0])?
                }
                RouteTarget::Via(next_hops) => {
                    let words: Vec<String> = next_hops.iter().map(ToString::to_string).collect();
                    tuple.serialize_element(&words.join(","))?;
                }
            }
            if words == 3 {
                tuple.serialize_element(&self.0.vrf)?;
            }
            tuple.end()
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Route>, D::Error> {
        struct Routes;
        impl<'de> Visitor<'de> for Routes {
            type Value = Vec<Route>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of routes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Route>, A::Error> {
                let mut routes = Vec::new();
                let mut last_vrf = Name::default_vrf();
                while let Some(route) = seq.next_element_seed(OneRoute { last_vrf: &mut last_vrf })? {
                    routes.push(route);
                }
                Ok(routes)
            }
        }
        deserializer.deserialize_seq(Routes)
    }

    struct OneRoute<'a> {
        last_vrf: &'a mut VrfName,
    }

    impl<'de> DeserializeSeed<'de> for OneRoute<'_> {
        type Value = Route;
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Route, D::Error> {
            deserializer.deserialize_seq(self)
        }
    }

    impl<'de> Visitor<'de> for OneRoute<'_> {
        type Value = Route;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[PREFIX, NEXT-HOPS] or [PREFIX, NEXT-HOPS, VRF]")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Route, A::Error> {
            let prefix = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
            let Target(target) = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
            let vrf = match seq.next_element_seed(SameName(self.last_vrf))? {
                Some(vrf) => vrf,
                None => return Ok(Route { prefix, vrf: Name::default_vrf(), target }),
            };
            nothing_more(&mut seq, 3, &"[PREFIX, NEXT-HOPS, VRF]")?;
            Ok(Route { prefix, vrf, target })
        }
    }

    /// A name that is mostly the one before: shared instead of allocated again.
    struct SameName<'a>(&'a mut Name);

    impl<'de> DeserializeSeed<'de> for SameName<'_> {
        type Value = Name;
        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
            deserializer.deserialize_str(self)
        }
    }

    impl Visitor<'_> for SameName<'_> {
        type Value = Name;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of a VRF")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
            if self.0.as_str() != text {
                *self.0 = Name::new(text).map_err(E::custom)?;
            }
            Ok(self.0.clone())
        }
    }
}
