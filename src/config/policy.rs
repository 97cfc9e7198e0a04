//! The tables of sessions, firewall and NAT, one struct each, exactly as typed.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv6Net};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::packet::Embedding;

use super::addresses::{AddressRange, Member, NatPool, NatTarget, OneOrMore};
use super::deterministic::{HostsPerAddress, PortsPerHost};
use super::service::{Dscp, PortRange, Service, TcpFlag};
use super::value::{
    GroupName, InterfaceName, Name, NotAllowed, Ranged, RuleName, VrfName, ZoneName, from_integer,
};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Seconds; 31 days are longer than any session should idle.
pub type Seconds = Ranged<1, 2_678_400>;

/// A number of sessions.
pub type Sessions = Ranged<1, 16_000_000>;

/// `[flows]`: how many sessions, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flows {
    /// Sessions of the node; memory for all of them is taken at start.
    pub capacity: Sessions,
    /// Idle time of an established TCP connection. RFC 5382 REQ-5: not under 2 hours 4 minutes.
    pub tcp_established_s: Seconds,
    /// Idle time of a TCP connection that opens, closes or was reset. RFC 5382 REQ-5, RFC 7857 section 2.1:
    /// not under 4 minutes.
    pub tcp_transitory_s: Seconds,
    /// Of a TCP connection that opens, if it is another (RFC 7857 section 2.1); absent: `tcp_transitory_s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_opening_s: Option<Seconds>,
    /// Idle time of UDP, and of UDP mappings. RFC 4787 REQ-5: not under 2 minutes; 5 or more recommended.
    pub udp_s: Seconds,
    /// Idle time of a UDP session that no reply was seen of (its NAT mapping stays for `udp_s`). 30: Linux's
    /// `nf_conntrack_udp_timeout`; no RFC says anything of sessions.
    pub udp_unreplied_s: Seconds,
    /// Idle time of ICMP queries. RFC 5508 REQ-2: not under 60 seconds.
    pub icmp_s: Seconds,
    /// Idle time of everything else. 600: Linux's `nf_conntrack_generic_timeout`.
    pub other_s: Seconds,
    /// Folder in memory (tmpfs) in which sessions outlive the process, for this node alone; absent: they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<PathBuf>,
    /// Takes TCP connections up in the middle: for the time after a change of routing, not for ever.
    pub loose_tcp: bool,
    /// Sessions one inside host may have (IPv6: one /64), RFC 6888 REQ-5; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_host_sessions: Option<Sessions>,
    /// TCP connections of the node that are still opening; beyond it who has waited longest makes room (RFC 4987
    /// section 3.4); absent: all of `capacity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open: Option<Sessions>,
    /// TCP connections still opening to one destination address; what is beyond it is lost. Absent: no limit. A
    /// zone may have another ([`Zone`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open_per_destination: Option<Sessions>,
}

impl Default for Flows {
    fn default() -> Flows {
        Flows {
            capacity: Ranged::constant(1_000_000),
            tcp_established_s: Ranged::constant(7440),
            tcp_transitory_s: Ranged::constant(240),
            tcp_opening_s: None,
            udp_s: Ranged::constant(300),
            udp_unreplied_s: Ranged::constant(30),
            icmp_s: Ranged::constant(60),
            other_s: Ranged::constant(600),
            keep: None,
            loose_tcp: false,
            per_host_sessions: None,
            half_open: None,
            half_open_per_destination: None,
        }
    }
}

/// `[[zone]]`: how much may come from a zone. Zones are there by being named at an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zone {
    /// The zone.
    pub name: ZoneName,
    /// How many sessions may begin in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// TCP connections from it that are still opening to one destination address; absent: as in `[flows]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open_per_destination: Option<Sessions>,
    /// With so many still opening to a destination, a client that wants to go there has to show first that it is where
    /// it says: its SYN is answered with a cookie (RFC 4987 section 3.6). Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syn_proxy_above: Option<Ranged<0, 16_000_000>>,
}

/// `[[group]]`: a named set of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What rules call it.
    pub name: GroupName,
    /// Its addresses, of both families, and other groups; may be empty, to be filled later.
    pub members: Vec<Member>,
}

/// One side of a rule, `from` or `to`. What is absent is any; what is there must all be true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// The zone, or `self` for the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// The interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// The VRF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// A group that the address is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Prefixes, addresses or ranges one of which the address is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<OneOrMore<AddressRange>>,
}

impl Side {
    /// Everything.
    pub fn is_any(&self) -> bool {
        *self == Side::default()
    }

    /// True if it names the gateway itself.
    pub fn is_self(&self) -> bool {
        self.zone.as_ref().is_some_and(|zone| zone.as_str() == Side::SELF)
    }

    /// A longer list of prefixes is looked up as a group is, if the side names none.
    pub(crate) const PREFIXES_IN_PLACE: usize = 8;

    /// Prefixes that each need lines of their own in the compiled rule.
    pub(crate) fn prefixes_in_place(&self) -> usize {
        let Some(ranges) = &self.prefix else { return 1 };
        if self.is_looked_up() { 1 } else { ranges.iter().map(|range| range.nets().count()).sum() }
    }

    /// True if its prefixes are looked up as a group is.
    pub(crate) fn is_looked_up(&self) -> bool {
        let Some(ranges) = self.prefix.as_ref().filter(|_| self.group.is_none()) else { return false };
        ranges.iter().map(|range| range.nets().count()).sum::<usize>() > Side::PREFIXES_IN_PLACE
    }

    /// The zone of the gateway itself; no interface can have it.
    pub const SELF: &str = "self";
}

/// What a rule does with a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// It may begin.
    Allow,
    /// It may not; nobody is told.
    Deny,
    /// It may not; the sender gets a TCP RST or an ICMP error.
    Reject,
}

/// `{ per_s = 1000, burst = 200 }`: what is new beyond it is lost. `rate_limit` of a rule counts sessions of the whole
/// node, `nat.new_mappings_per_host` mappings of each host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// New ones a second.
    pub per_s: Ranged<1, 10_000_000>,
    /// New ones at once; absent: those of one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Ranged<1, 10_000_000>>,
}

/// `[[rule]]` and `[[admin_rule]]`: one rule of the firewall. The first that matches decides; admin rules
/// come before all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What counters and logs call it.
    pub name: RuleName,
    /// What it does.
    pub action: RuleAction,
    /// Where the session comes from: source before source NAT.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub from: Side,
    /// Where it goes: destination after destination NAT.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub to: Side,
    /// Protocols with destination ports or ICMP types; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<OneOrMore<Service>>,
    /// Source ports; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<OneOrMore<PortRange>>,
    /// DSCP of the first packet; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<OneOrMore<Dscp>>,
    /// TCP flags of the first packet: all of these; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<OneOrMore<TcpFlag>>,
    /// Whether each session it decides is logged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub log: bool,
    /// How many sessions it lets begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// Who may answer to a NAT mapping (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Everybody, as far as the rules let them. RFC 4787 REQ-8, RFC 6888 REQ-7: recommended.
    #[default]
    EndpointIndependent,
    /// Whoever the inside host has sent something to.
    AddressDependent,
}

/// Ports of a block: a power of two, 64 to 4096. 64: the ports of one word of the port map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BlockSize(u16);

impl BlockSize {
    const ALLOWED: &str = "a block is a power of two of ports, 64 to 4096";

    /// Checks and takes a size.
    pub fn new(ports: u32) -> Result<BlockSize, NotAllowed> {
        match u16::try_from(ports) {
            Ok(ports @ 64..=4096) if ports.is_power_of_two() => Ok(BlockSize(ports)),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }

    /// Ports.
    pub const fn ports(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for BlockSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BlockSize, D::Error> {
        from_integer(deserializer, BlockSize::ALLOWED, BlockSize::new)
    }
}

/// `[nat]`: how all NAT behaves, and its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// External ports an inside host gets at once; one log record each.
    pub block_size: BlockSize,
    /// How long a freed port is not given to another host. RFC 6888 REQ-8: 120.
    pub hold_down_s: Ranged<0, 86_400>,
    /// Freed ports that rest at most, on each worker; more are free at once. RFC 6888 REQ-8: it must be
    /// configurable; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_held_ports: Option<Ranged<0, 16_000_000>>,
    /// Blocks an inside host may have (IPv6: one /64). RFC 6888 REQ-4: there must be a limit.
    pub max_blocks_per_host: Ranged<1, 1008>,
    /// New mappings of one inside host (IPv6: one /64). RFC 6888 REQ-4c: it should be possible to limit them; absent:
    /// as fast as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_mappings_per_host: Option<RateLimit>,
    /// Who may answer to a mapping.
    pub filtering: Filtering,
    /// Whether inside hosts reach each other by their outside addresses. RFC 4787 REQ-9: they must.
    pub hairpin: bool,
    /// Whether the sender of a SYN that nobody has asked for is told so after six seconds. RFC 5382 REQ-4: it should be,
    /// unless that violates policy (REQ-4a). Here policy is to say nothing of what no rule allows, and scans would take
    /// the ICMP errors that path MTU discovery needs: it has to be asked for.
    pub answer_unsolicited_syn: bool,
    /// `[[nat.source]]`, ordered, first match.
    #[serde(rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<NatSource>,
    /// `[[nat.destination]]`
    #[serde(rename = "destination", skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<NatDestination>,
    /// `[[nat.static]]`
    #[serde(rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub statics: Vec<NatStatic>,
    /// `[[nat.nptv6]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nptv6: Vec<NatPrefix>,
    /// `[[nat.nat64]]`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nat64: Vec<Nat64>,
}

impl Nat {
    /// The lists in it.
    pub(super) const LISTS: [&str; 5] = ["source", "destination", "static", "nptv6", "nat64"];

    /// Most `[[nat.nptv6]]`: a first packet asks all of them.
    pub const MAX_NPTV6: usize = 64;
    /// Most `[[nat.nat64]]`, likewise, and every rule with an IPv4 prefix is known in each of theirs.
    pub const MAX_NAT64: usize = 16;

    /// Ports of an interface's address when nobody says which: what Linux calls ephemeral. The kernel's own
    /// `ip_local_port_range` must then be another, if it is to use that address.
    pub const INTERFACE_PORTS: PortRange = match PortRange::new(32_768, 60_999) {
        Some(ports) => ports,
        None => unreachable!(),
    };
}

impl Default for Nat {
    fn default() -> Nat {
        Nat {
            block_size: BlockSize(64),
            hold_down_s: Ranged::constant(120),
            max_held_ports: None,
            max_blocks_per_host: Ranged::constant(16),
            new_mappings_per_host: None,
            filtering: Filtering::default(),
            hairpin: true,
            answer_unsolicited_syn: false,
            sources: Vec::new(),
            destinations: Vec::new(),
            statics: Vec::new(),
            nptv6: Vec::new(),
            nat64: Vec::new(),
        }
    }
}

/// `[[nat.source]]`: which sessions leave with which addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatSource {
    /// What counters and logs call it.
    pub name: RuleName,
    /// The VRF that packets leave through and that the pool's addresses are in; the hosts' own may be
    /// another (`from = { vrf = ... }`).
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// Where the session comes from.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub from: Side,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub to: Side,
    /// Protocols and destination ports; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<OneOrMore<Service>>,
    /// The outside addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<NatPool>,
    /// The outside ports of each; absent: all of a pool's own addresses,
    /// [`Nat::INTERFACE_PORTS`] of an interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortRange>,
    /// Instead of a pool: these sessions are not translated (RFC 6888 REQ-6).
    #[serde(default, skip_serializing_if = "is_default")]
    pub exempt: bool,
    /// The outside address and ports of a host are a function of its address (RFC 7422); `from.prefix` says which
    /// hosts there are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub deterministic: bool,
    /// So many hosts share an outside address of a deterministic NAT; absent: as many as their ports let, or as few
    /// as all hosts need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts_per_address: Option<HostsPerAddress>,
    /// Ports of each host of a deterministic NAT, in 64s; absent: what an address has, divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_per_host: Option<PortsPerHost>,
    /// A host that has used up its ports gets blocks of those that are no host's, each with a log record.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overflow: bool,
    /// Both nodes of a pair give ports of it, each those of its half. Otherwise the Active of its group does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub shared: bool,
    /// The group of virtual routers whose Active answers for it; absent: see [`super::router_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// `[[nat.destination]]`: an outside address and service that a server inside answers. One that names ports
/// comes before one that names a protocol, and that before one that names neither; among equals the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatDestination {
    /// What counters and logs call it.
    pub name: RuleName,
    /// The VRF that packets come from.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// The outside address.
    pub address: IpAddr,
    /// Protocols and ports; absent: all that comes to the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<OneOrMore<Service>>,
    /// The server.
    pub target: NatTarget,
    /// The VRF that the server is in; absent: `vrf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_vrf: Option<VrfName>,
    /// Only what comes from here.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub from: Side,
    /// The group of virtual routers whose Active answers for it; absent: see [`super::router_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// `[[nat.static]]`: addresses outside and inside, one to one, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatStatic {
    /// What counters and logs call it; absent: the outside address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<RuleName>,
    /// The outside address, or a prefix.
    pub outside: AddressRange,
    /// The inside address, or a prefix of the same length.
    pub inside: AddressRange,
    /// The VRF of the outside addresses.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// The VRF of the inside addresses; absent: `vrf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside_vrf: Option<VrfName>,
    /// Which sessions from inside get the outside address; absent: all that leave their zone.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub to: Side,
    /// The group of virtual routers whose Active answers for it; absent: see [`super::router_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

impl NatStatic {
    /// What it is called.
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => self.outside.to_string(),
        }
    }
}

/// `[[nat.nptv6]]`: an inside and an outside IPv6 prefix that stand for each other, address by address, without any
/// change to what the packets carry (RFC 6296).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatPrefix {
    /// What counters and logs call it.
    pub name: RuleName,
    /// The prefix inside, of at most 64 bits.
    pub inside: AddressRange,
    /// The prefix outside, of at most 64 bits.
    pub outside: AddressRange,
    /// The VRF of the outside addresses.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// The VRF of the inside addresses; absent: `vrf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside_vrf: Option<VrfName>,
    /// Which sessions from inside get the outside prefix; absent: all that leave their zone.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub to: Side,
    /// The group of virtual routers whose Active answers for it; absent: see [`super::router_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// `[[nat.nat64]]`: IPv6 hosts reach IPv4 servers by addresses in a prefix, and have addresses of a pool there
/// (RFC 6146). The first that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat64 {
    /// What counters and logs call it.
    pub name: RuleName,
    /// The prefix that IPv4 addresses stand in, of 32, 40, 48, 56, 64 or 96 bits (RFC 6052 section 2.2).
    #[serde(default = "Nat64::default_prefix", skip_serializing_if = "Nat64::is_default_prefix")]
    pub prefix: AddressRange,
    /// Who may use it.
    #[serde(default, skip_serializing_if = "Side::is_any")]
    pub from: Side,
    /// The VRF of the IPv4 side: of the servers and the pool.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// The outside addresses, for this rule only.
    pub pool: OneOrMore<AddressRange>,
    /// The outside ports of each; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortRange>,
    /// The group of virtual routers whose Active answers for it; absent: see [`super::router_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

impl Nat64 {
    /// The well-known prefix, RFC 6052 section 2.1.
    fn default_prefix() -> AddressRange {
        let net = Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
        IpNet::V6(net).into()
    }

    fn is_default_prefix(prefix: &AddressRange) -> bool {
        *prefix == Nat64::default_prefix()
    }

    /// The prefix, if it can be one.
    pub fn embedding(&self) -> Option<Embedding> {
        match self.prefix.net() {
            Some(IpNet::V6(net)) => Embedding::new(net),
            _ => None,
        }
    }
}
