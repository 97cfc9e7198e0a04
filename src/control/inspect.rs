//! What commands ask and see of sessions, NAT, rules and groups.
//!
//! Sessions belong to the workers, who hand them out a little at a time. So one request takes a few milliseconds of
//! the control thread, however many sessions there are: an answer has `next` where it has not seen all yet, and the
//! same request with that as `after` goes on.

use std::net::{IpAddr, Ipv4Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::deterministic::SharedPool;
use crate::config::{AddressRange, BackendKey, GroupName, PortRange, RuleName, Service, VrfName, ZoneName};

/// Which sessions. What is absent is any; what is there must all be true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionFilter {
    /// Source or destination, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressRange>,
    /// Source of the first packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<AddressRange>,
    /// Destination of the first packet, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<AddressRange>,
    /// An address that NAT put in or took away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<AddressRange>,
    /// Source or destination port, before or after translation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRange>,
    /// Protocol, and destination ports if it names any: `tcp`, `udp/53`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Zone on either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// Zone it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_zone: Option<ZoneName>,
    /// Zone it goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_zone: Option<ZoneName>,
    /// VRF on either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// The rule that allowed it; `default` where none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Its NAT rule: `NAME`, or `source/NAME`, `destination/NAME`, `static/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_rule: Option<String>,
    /// The service that balances it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_service: Option<RuleName>,
    /// The backend that it goes to, as `show services` calls it, or its address alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendKey>,
    /// State of a TCP connection; `replied` and `unreplied` for everything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// It began at least so long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_s: Option<u32>,
    /// It began at most so long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub younger_s: Option<u32>,
    /// Its last packet came at least so long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u32>,
}

/// Params of `show.sessions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsQuery {
    /// Which.
    pub filter: SessionFilter,
    /// Only how many.
    pub count: bool,
    /// Where to go on: `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Most sessions in the answer; absent or beyond 2000: 2000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Most sessions or mappings in one answer: about 1 MiB.
pub const MOST: u32 = 2000;

/// Params of `clear.sessions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClearQuery {
    /// Which.
    pub filter: SessionFilter,
    /// All of them: an empty filter alone is taken for a mistake.
    pub all: bool,
    /// Where to go on: `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// A session. Where nothing is translated the `new_` fields are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionEntry {
    /// `tcp`, `udp`, `icmp` ... as in rules.
    pub protocol: String,
    /// Source of the first packet.
    pub source: IpAddr,
    /// Its port, or the identifier of an ICMP query.
    pub source_port: u16,
    /// Destination of the first packet.
    pub destination: IpAddr,
    /// Its port, or the identifier.
    pub destination_port: u16,
    /// Source it leaves with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_source: Option<IpAddr>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_source_port: Option<u16>,
    /// Destination it leaves with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_destination: Option<IpAddr>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_destination_port: Option<u16>,
    /// VRF the first packet came in on.
    pub vrf: String,
    /// VRF it leaves by, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_vrf: Option<String>,
    /// Zone it comes from.
    pub from_zone: String,
    /// Zone it goes to.
    pub to_zone: String,
    /// The rule that allowed it.
    pub rule: String,
    /// It goes on in spite of that rule, because a commit has said so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Its NAT rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_rule: Option<String>,
    /// Its service and backend: `shop/10.0.1.10:8443`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// State of a TCP connection, else `replied` or `unreplied`.
    pub state: String,
    /// Since its first packet.
    pub age_s: u32,
    /// Since its last packet.
    pub idle_s: u32,
    /// Until it ends if no packet comes.
    pub expires_s: u32,
    /// Packets from its source.
    pub packets: u64,
    /// Bytes of them, IP headers included.
    pub bytes: u64,
    /// Packets back.
    pub reply_packets: u64,
    /// Bytes of them.
    pub reply_bytes: u64,
    /// The worker that has it.
    pub worker: u32,
}

/// Some of the sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionPage {
    /// In no particular order.
    pub sessions: Vec<SessionEntry>,
    /// How many matched, of those looked at for this answer.
    pub matched: u64,
    /// There may be more: `after` of the next request.
    pub next: Option<u64>,
}

/// What `clear.sessions` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cleared {
    /// Sessions it ended.
    pub ended: u64,
    /// There may be more: `after` of the next request.
    pub next: Option<u64>,
}

/// Params of `show.nat.mappings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MappingsQuery {
    /// Inside address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<AddressRange>,
    /// Outside address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<AddressRange>,
    /// Inside or outside port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortRange>,
    /// `tcp`, `udp`, `icmp` or `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// VRF on either side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// Only those in hold-down, or only those in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<bool>,
    /// Where to go on: `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Most mappings in the answer; absent or beyond 2000: 2000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A NAT mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MappingEntry {
    /// `tcp`, `udp`, `icmp` or `other`.
    pub protocol: String,
    /// Inside address.
    pub inside: IpAddr,
    /// Inside port.
    pub inside_port: u16,
    /// VRF of the inside.
    pub inside_vrf: String,
    /// Outside address.
    pub outside: Ipv4Addr,
    /// Outside port.
    pub outside_port: u16,
    /// VRF of the outside.
    pub outside_vrf: String,
    /// Sessions that use it; 0: in hold-down.
    pub sessions: u32,
    /// Its address or port is not in the pool any more: it serves its sessions and no new ones.
    pub draining: bool,
    /// The worker that has it.
    pub worker: u32,
}

/// Some of the mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MappingPage {
    /// In no particular order.
    pub mappings: Vec<MappingEntry>,
    /// There may be more: `after` of the next request.
    pub next: Option<u64>,
}

/// A pool of outside addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolEntry {
    /// The `[[nat.source]]` rules that use it.
    pub rules: Vec<String>,
    /// VRF of the addresses.
    pub vrf: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// How many they are.
    pub address_count: u32,
    /// First port of each address.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
    /// Ports a host gets at once.
    pub block_size: u16,
    /// Blocks there are.
    pub blocks: u32,
    /// Blocks that hosts have.
    pub blocks_given: u32,
    /// Ports of these: nobody else can have them.
    pub ports_given: u64,
    /// Inside hosts with ports.
    pub hosts: u64,
    /// Outside ports that sessions use: mappings.
    pub mappings: u64,
    /// Outside ports in hold-down.
    pub held: u64,
    /// Sessions that got no port, by reason; reasons that never came are left out.
    pub refused: Vec<Refusal>,
    /// Share of the blocks that are given.
    pub used_percent: f64,
    /// How fast given blocks have grown, over up to the last 5 minutes; `None`: not known yet.
    pub blocks_per_minute: Option<f64>,
    /// When no block is left if that goes on; `None`: never at this rate, or not known yet.
    pub exhausted_in_s: Option<u64>,
    /// How ports are computed, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deterministic: Option<SharedPool>,
    /// Both nodes of a pair give ports of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Halves>,
}

/// A pool that both nodes of a pair give ports of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Halves {
    /// First port of each address that this node gives; of ports under 1024 there is a half as well.
    pub first_port: u16,
    /// Last one.
    pub last_port: u16,
    /// Blocks of this node's half.
    pub own_blocks: u32,
    /// Those of them that hosts have.
    pub own_blocks_given: u32,
    /// Blocks of the other node's half.
    pub peer_blocks: u32,
    /// Those of them that hosts have, as far as this node knows: it was told of them, or gave them while the other node
    /// was not heard.
    pub peer_blocks_given: u32,
}

/// Why sessions got no port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// `host-quota`, `pool-exhausted`, `address-exhausted`, `not-subscriber`, `table-full` or
    /// `host-rate`.
    pub reason: String,
    /// Sessions.
    pub count: u64,
}

/// A rule of the firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleEntry {
    /// Its name; `default` is what decides where no rule matches.
    pub name: String,
    /// `admin`, `rule` or `default`.
    pub place: String,
    /// `allow`, `deny` or `reject`; `by-zone` of the default.
    pub action: String,
    /// Sessions it let begin, or packets it refused.
    pub hits: u64,
    /// Packets of its sessions in both directions, and those it refused.
    pub packets: u64,
    /// Bytes of them, IP headers included.
    pub bytes: u64,
    /// Since it decided something last; `None`: it never did.
    pub last_hit_s: Option<u64>,
    /// An earlier rule that matches all that this one would: it can never decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadowed_by: Option<String>,
}

/// A NAT rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatRuleEntry {
    /// `source/NAME`, `destination/NAME` or `static/NAME`.
    pub name: String,
    /// Sessions it was used for.
    pub hits: u64,
    /// Their packets, in both directions.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Since it was used last; `None`: it never was.
    pub last_hit_s: Option<u64>,
}

/// The rules, in the order they are asked in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleList {
    /// The counters are not up to date yet and the lists empty: `after` of the next request.
    pub next: Option<u64>,
    /// Rules of the firewall.
    pub rules: Vec<RuleEntry>,
    /// NAT rules.
    pub nat_rules: Vec<NatRuleEntry>,
    /// False: there are too many rules to tell which are shadowed.
    pub shadows_known: bool,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupEntry {
    /// Its name.
    pub name: GroupName,
    /// Its members, as configured.
    pub members: Vec<String>,
    /// What names it: `admin-rule/NAME`, `rule/NAME`, `source/NAME`, `destination/NAME`, `static/NAME`,
    /// `group/NAME`.
    pub used_by: Vec<String>,
    /// Members that go by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub temporary: Vec<TemporaryMember>,
}

/// A member of a group that goes by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemporaryMember {
    /// As in the group's list.
    pub member: String,
    /// How long it stays yet.
    pub left_s: u64,
}
