//! Policy: what a new session may do and what is done to it. Zones, groups, rules, NAT.
//!
//! Compiled from the config ([`compile`]); immutable; asked by [`crate::pipeline::decide_session`] only.
//! Rules see where a session really goes: destinations behind destination NAT, sources before source NAT.

mod compile;
mod deterministic;
mod groups;
mod members;
mod nat;
mod nat64;
mod npt;
mod pairs;
mod rule_change;
mod rules;
mod shadows;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use crate::config::{self, Filtering};
use crate::flow::{Timers, nat::Pool};
use crate::neighbours::{addr_key, is_v4_key, v4_key};
use crate::packet::view::protocol;
use crate::tables::balance::Services;
use crate::tables::router_group::Publics;
use crate::tables::{Interface, NO_INTERFACE, same_prefix_v4, same_prefix_v6};
use groups::Groups;
use nat::{Destinations, Side, Statics};
use pairs::Said;
use rules::Rules;
use shadows::Shadows;

pub use compile::{MAX_RULES, PolicySlots, backend_name, policy, service_of, services};
pub use deterministic::{HostPorts, Nobody};
pub use members::MemberChange;
pub(in crate::tables) use members::Members;
pub(in crate::tables) use nat::{length_of, network};
pub use nat64::{NotTaken, Rule as Nat64Rule};
pub use npt::Untranslatable;
pub use pairs::{PairEpochs, Touched};
pub use rule_change::RuleChange;

/// The zone of interfaces that have none.
pub const NO_ZONE: u8 = 0;
/// The zone of the gateway itself.
pub const SELF: u8 = 255;
/// Slot of the rule that decides where no other does.
pub const DEFAULT_RULE: u32 = 0;
/// NAT rule slot of sessions without NAT.
pub const NO_NAT_RULE: u16 = 0;

/// The first packet of a flow, as policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// VRF slot.
    pub vrf: u16,
    /// Ingress interface slot; [`NO_INTERFACE`] for the gateway itself.
    pub ingress: u16,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// DSCP.
    pub dscp: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
}

/// What is done with a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It begins.
    Allow,
    /// It does not; nobody is told.
    Deny,
    /// It does not; the sender gets a TCP RST or an ICMP error.
    Reject,
}

/// How many sessions a rule lets begin; one bucket per node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// New sessions a second.
    pub per_s: u32,
    /// New sessions at once.
    pub burst: u32,
}

impl From<config::RateLimit> for RateLimit {
    fn from(limit: config::RateLimit) -> RateLimit {
        RateLimit { per_s: limit.per_s.get(), burst: limit.burst.unwrap_or(limit.per_s).get() }
    }
}

/// The firewall's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// What is done.
    pub action: Action,
    /// Slot of the rule that said it, or [`DEFAULT_RULE`].
    pub rule: u32,
    /// Whether it is logged.
    pub log: bool,
    /// A token is needed.
    pub limit: Option<RateLimit>,
}

/// Where destination NAT leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationNat {
    /// Address inside.
    pub addr: IpAddr,
    /// Port inside; `None`: it stays.
    pub port: Option<u16>,
    /// VRF slot inside.
    pub vrf: u16,
    /// NAT rule slot.
    pub rule: u16,
}

/// What is done to a session's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNat {
    /// Nothing.
    None,
    /// Another address, the same port.
    Static {
        /// The address outside.
        addr: IpAddr,
        /// NAT rule slot.
        rule: u16,
    },
    /// A mapping in a pool.
    Pool {
        /// Index in [`Policy::pools`].
        pool: u16,
        /// NAT rule slot.
        rule: u16,
    },
    /// It would be another address, and there is none for it.
    Untranslatable,
}

/// What a session is bound to already, and policy does not choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Where it goes.
    pub addr: IpAddr,
    /// Port there.
    pub port: u16,
    /// VRF slot there.
    pub vrf: u16,
    /// That is another destination than the packet's.
    pub translated: bool,
    /// By a mapping of source NAT, not by a rule or a service.
    pub mapped: bool,
    /// It needs no rule that allows it: it answers to a mapping with endpoint-independent filtering.
    pub allowed: bool,
    /// It goes on whatever the rules say: a commit has said that what there is stays.
    pub kept: bool,
    /// The pool it came in by, as an index in [`Policy::pools`].
    pub pool: Option<u16>,
    /// Packets go to `addr` as they came: the number of the [`Delivery`](crate::tables::balance::Delivery).
    pub delivery: Option<u16>,
}

/// A question with what was found out on the way: where the session goes.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The question; its destination is the real one.
    pub question: &'a Question,
    /// Source, IPv4 mapped; through NAT64, as the IPv6 side knows it.
    pub src: u128,
    /// Destination, likewise.
    pub dst: u128,
    /// Source and destination as groups know them: IPv4 mapped, always.
    pub members: (u128, u128),
    /// Zone of the ingress.
    pub from_zone: u8,
    /// Zone of the egress.
    pub to_zone: u8,
    /// Egress interface slot, or `NO_INTERFACE`: the gateway itself.
    pub egress: u16,
    /// VRF slot of the egress.
    pub to_vrf: u16,
}

impl<'a> Asked<'a> {
    /// `to`: zone, interface and VRF of the egress.
    pub fn new(
        question: &'a Question,
        from_zone: u8,
        (to_zone, egress, to_vrf): (u8, u16, u16),
    ) -> Asked<'a> {
        let (src, dst) = (addr_key(question.src), addr_key(question.dst));
        Asked { question, src, dst, members: (src, dst), from_zone, to_zone, egress, to_vrf }
    }

    /// The same through NAT64, where the sides are of two families: that of IPv4 in the prefix of `rule`.
    pub fn through(self, rule: &Nat64Rule) -> Asked<'a> {
        let seen = |addr| if is_v4_key(addr) { rule.prefix.embed(addr as u32) } else { addr };
        Asked { src: seen(self.src), dst: seen(self.dst), ..self }
    }

    /// Before it is known where the session goes.
    pub fn at_ingress(question: &'a Question, from_zone: u8) -> Asked<'a> {
        Asked::new(question, from_zone, (NO_ZONE, NO_INTERFACE, question.vrf))
    }
}

/// A rule's word, by its position.
#[derive(Clone, Copy, Debug)]
struct RuleInfo {
    action: Action,
    slot: u32,
    log: bool,
    limit: Option<RateLimit>,
}

/// What a source NAT rule does.
#[derive(Clone, Debug)]
enum Source {
    Exempt,
    Pool(u16),
    /// By egress interface slot.
    Interface(AHashMap<u16, u16>),
}

#[derive(Clone, Debug)]
struct SourceRule {
    source: Source,
    /// For hairpinning, where there is no outside that the session goes to.
    from: Side,
    slot: u16,
}

/// Most inside hosts and half-open connections; `u32::MAX` = no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions of one inside host (IPv6: one /64).
    pub per_host: u32,
    /// TCP connections of the node that are still opening.
    pub half_open: u32,
}

/// How much may come from a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneLimits {
    /// New sessions; one bucket per node.
    pub rate: Option<RateLimit>,
    /// TCP connections still opening to one destination; `u32::MAX` = no limit.
    pub half_open_per_destination: u32,
    /// Beyond so many of them clients have to prove themselves first; `u32::MAX` = never.
    pub syn_proxy_above: u32,
}

impl ZoneLimits {
    /// True if somebody asks how many connections open.
    pub fn counts_half_open(&self) -> bool {
        self.half_open_per_destination != u32::MAX || self.syn_proxy_above != u32::MAX
    }
}

/// Zones, groups, rules and NAT, compiled.
///
/// What a change leaves as it is the next policy shares.
#[derive(Clone)]
pub struct Policy {
    /// Idle times.
    pub timers: Timers,
    /// TCP connections are taken up in the middle.
    pub loose_tcp: bool,
    /// Who may answer to a mapping.
    pub filtering: Filtering,
    /// Inside hosts reach each other by their outside addresses.
    pub hairpin: bool,
    /// Senders of SYNs that nobody has asked for are told, after a while.
    pub answer_unsolicited_syn: bool,
    /// How many sessions there may be.
    pub limits: SessionLimits,
    /// By zone: how much may come from it.
    pub zones: Box<[ZoneLimits; 256]>,
    /// How long freed ports rest.
    pub nat: crate::flow::nat::Limits,
    /// Pools of outside addresses.
    pub pools: Arc<[Pool]>,
    groups: Arc<Groups>,
    shadows: Arc<Shadows>,
    rules: Arc<Rules>,
    rule_info: Arc<[RuleInfo]>,
    sources: Arc<Rules>,
    source_rules: Arc<[SourceRule]>,
    destinations: Arc<Destinations>,
    statics: Arc<Statics>,
    services: Arc<Services>,
    prefixes: Arc<npt::Prefixes>,
    nat64: Arc<[Nat64Rule]>,
    /// By VRF slot and address of a pool of theirs: index in `nat64`.
    nat64_of: Arc<AHashMap<(u16, u32), u16>>,
    /// By VRF slot: addresses that have left the pools of NAT64. There may be sessions that have them still.
    left_nat64: Arc<AHashSet<(u16, u32)>>,
    /// By VRF slot and address: the pool that it is in.
    pool_of: Arc<AHashMap<(u16, u32), u16>>,
    /// Whose public addresses are, if there are virtual routers.
    publics: Arc<Publics>,
    said: Arc<Said>,
}

impl Policy {
    /// Pairs of zones whose sessions `new` may decide otherwise.
    pub fn touched(&self, new: &Policy, slots: &PolicySlots) -> Touched {
        let id = |policy: &Policy, index: u16| policy.pools[usize::from(index)].id();
        // Of pools with the same address the first has it: rules of other zones may come by another so.
        let is_others = |(at, old): (&(u16, u32), &u16)| {
            new.pool_of.get(at).is_some_and(|now| id(new, *now) != id(self, *old))
        };
        if self.pool_of.iter().any(is_others) {
            return Touched::everything();
        }
        self.said.touched(&new.said, slots)
    }

    /// What the firewall says of a session.
    pub fn permit(&self, asked: &Asked<'_>) -> Ruling {
        match self.rules.find(asked, &self.groups) {
            Some(at) => {
                let RuleInfo { action, slot: rule, log, limit } = self.rule_info[at as usize];
                Ruling { action, rule, log, limit }
            }
            None => {
                let action = Self::default_action(asked);
                Ruling { action, rule: DEFAULT_RULE, log: false, limit: None }
            }
        }
    }

    /// Where no rule matches: within a zone, and from the gateway itself, all may pass; to the gateway ICMP only
    /// (DESIGN.md section 3).
    fn default_action(asked: &Asked<'_>) -> Action {
        let is_icmp = matches!(asked.question.protocol, protocol::ICMP | protocol::ICMPV6);
        match (asked.from_zone, asked.to_zone) {
            (SELF, _) => Action::Allow,
            (_, SELF) if is_icmp => Action::Allow,
            (from, to) if from == to => Action::Allow,
            _ => Action::Deny,
        }
    }

    /// Where destination and static NAT lead, and NPTv6.
    pub fn destination(&self, asked: &Asked<'_>) -> Result<Option<DestinationNat>, Untranslatable> {
        let vrf = asked.question.vrf;
        let nat =
            self.destinations.find(asked, &self.groups).or_else(|| self.statics.destination(vrf, asked.dst));
        if nat.is_some() {
            return Ok(nat);
        }
        let npt = self.prefixes.destination(vrf, asked.dst)?;
        let addr = |npt: &npt::Other| Ipv6Addr::from(npt.addr).into();
        Ok(npt.map(|npt| DestinationNat { addr: addr(&npt), port: None, vrf: npt.vrf, rule: npt.rule }))
    }

    /// The virtual services.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The same with other virtual services.
    pub fn with_services(&self, services: Services) -> Policy {
        Policy { services: Arc::new(services), ..self.clone() }
    }

    /// The same with the compiled members of groups of another policy, which has the same groups.
    pub fn with_members_of(&self, other: &Policy) -> Policy {
        Policy { groups: Arc::clone(&other.groups), ..self.clone() }
    }

    /// What is done to the source of an allowed session.
    pub fn source(&self, asked: &Asked<'_>) -> SourceNat {
        let rule = self.sources.find(asked, &self.groups).map(|at| &self.source_rules[at as usize]);
        if rule.is_some_and(|rule| matches!(rule.source, Source::Exempt)) {
            return SourceNat::None;
        }
        if let Some((addr, rule)) = self.statics.source(asked, &self.groups) {
            return SourceNat::Static { addr, rule };
        }
        if let Some(npt) = source_of(self.prefixes.source(asked, &self.groups)) {
            return npt;
        }
        let Some(rule) = rule else { return SourceNat::None };
        let pool = match &rule.source {
            Source::Pool(pool) => Some(*pool),
            Source::Interface(pools) => pools.get(&asked.egress).copied(),
            Source::Exempt => None,
        };
        pool.map_or(SourceNat::None, |pool| SourceNat::Pool { pool, rule: rule.slot })
    }

    /// What is done to the source of a session that went to an outside address and came back to its own zone
    /// (RFC 4787 REQ-9: it shows its outside address). `pool`: the one that the destination is in.
    pub fn hairpin_source(&self, asked: &Asked<'_>, pool: Option<u16>) -> SourceNat {
        let question = asked.question;
        if let Some((addr, rule)) = self.statics.outside_of(question.vrf, asked.src) {
            return SourceNat::Static { addr, rule };
        }
        if let Some(npt) = source_of(self.prefixes.outside_of(question.vrf, asked.src)) {
            return npt;
        }
        let from = |rule: &&SourceRule| {
            rule.from.is(&self.groups, question.src, asked.from_zone, question.ingress, question.vrf)
        };
        if !question.src.is_ipv4() {
            return SourceNat::None;
        }
        self.source_rules
            .iter()
            .filter(from)
            .find_map(|rule| {
                let own = match &rule.source {
                    Source::Exempt => None,
                    Source::Pool(own) => Some(*own),
                    Source::Interface(pools) => pool
                        .filter(|pool| pools.values().any(|own| own == pool))
                        .or(pools.values().min().copied()),
                };
                own.map(|pool| SourceNat::Pool { pool, rule: rule.slot })
            })
            .unwrap_or(SourceNat::None)
    }

    /// The NAT64 rule for a packet to its prefix.
    pub fn nat64_for(&self, asked: &Asked<'_>) -> Option<&Nat64Rule> {
        let question = asked.question;
        self.nat64.iter().find(|rule| {
            rule.prefix.contains(asked.dst)
                && rule.is_for(&self.groups, question.src, asked.from_zone, question.ingress, question.vrf)
        })
    }

    /// Where a packet to the prefix of `rule` leads.
    pub fn nat64_destination(&self, asked: &Asked<'_>, rule: &Nat64Rule) -> Result<Ipv4Addr, NotTaken> {
        rule.destination(asked, &self.nat64)
    }

    /// The NAT64 rule whose pool has the address.
    #[inline]
    pub fn nat64_of_address(&self, vrf: u16, addr: Ipv4Addr) -> Option<&Nat64Rule> {
        let at = self.nat64_of.get(&(vrf, addr.into()))?;
        self.nat64.get(usize::from(*at))
    }

    /// True if the address was of NAT64 once, and is of no pool now.
    #[inline]
    pub fn has_left_nat64(&self, vrf: u16, addr: Ipv4Addr) -> bool {
        !self.left_nat64.is_empty() && self.left_nat64.contains(&(vrf, addr.into()))
    }

    /// The NAT64 rule with this pool.
    pub fn nat64_of_pool(&self, pool: u16) -> Option<&Nat64Rule> {
        self.nat64.iter().find(|rule| rule.pool == pool)
    }

    /// True if the rule is for a host there.
    pub fn nat64_is_for(
        &self,
        rule: &Nat64Rule,
        host: IpAddr,
        (zone, interface, vrf): (u8, u16, u16),
    ) -> bool {
        rule.is_for(&self.groups, host, zone, interface, vrf)
    }

    /// The outside address of a router inside that tells something to who knows another host there as `peer`.
    pub fn router_outside(&self, vrf: u16, router: IpAddr, peer: IpAddr) -> Option<IpAddr> {
        let addr = self.prefixes.router_outside(vrf, addr_key(router), addr_key(peer))?;
        Some(Ipv6Addr::from(addr).into())
    }

    /// Slots of the rules that never match because an earlier one matches all they would, each with that one.
    /// Worked out when first asked for; `None`: there are too many.
    pub fn shadowed(&self) -> Option<Vec<(u32, u32)>> {
        let slot = |at: u32| self.rule_info[at as usize].slot;
        let shadowed = self.shadows.shadowed()?;
        Some(shadowed.iter().map(|(rule, by)| (slot(*rule), slot(*by))).collect())
    }

    /// Source NAT rules that have a pool: index of the pool and slot of the rule.
    pub fn pool_users(&self) -> Vec<(u16, u16)> {
        let users = self.source_rules.iter().flat_map(|rule| {
            let pools = match &rule.source {
                Source::Exempt => Vec::new(),
                Source::Pool(pool) => vec![*pool],
                Source::Interface(pools) => pools.values().copied().collect(),
            };
            pools.into_iter().map(|pool| (pool, rule.slot))
        });
        users.chain(self.nat64.iter().map(|rule| (rule.pool, rule.slot))).collect()
    }

    /// Which group of virtual routers answers for addresses of NAT and services.
    pub fn publics(&self) -> &Publics {
        &self.publics
    }

    /// The pool that an outside address is in.
    pub fn pool_of(&self, vrf: u16, addr: Ipv4Addr) -> Option<u16> {
        self.pool_of.get(&(vrf, addr.into())).copied()
    }

    /// The pool with the address, if both nodes of a pair give ports of it.
    pub fn shared_pool(&self, vrf: u16, addr: Ipv4Addr) -> Option<&Pool> {
        let pool = &self.pools[usize::from(self.pool_of(vrf, addr)?)];
        pool.is_shared().then_some(pool)
    }

    /// True if NAT answers for the address, so that neighbours who ask for it must be told our MAC address.
    fn answers_for(&self, vrf: u16, addr: u128) -> bool {
        self.destinations.has(vrf, addr)
            || self.services.has(vrf, addr)
            || self.statics.has(vrf, addr)
            || self.prefixes.has(vrf, addr)
            || is_v4_key(addr) && self.pool_of.contains_key(&(vrf, addr as u32))
    }

    /// True if the address is outside some NAT: a pool's, or `with_rules` that of a destination or static NAT.
    pub fn has_outside(&self, vrf: u16, addr: IpAddr, with_rules: bool) -> bool {
        let is_pools = matches!(addr, IpAddr::V4(addr) if self.pool_of(vrf, addr).is_some());
        is_pools || with_rules && self.answers_for(vrf, addr_key(addr))
    }

    /// True if NAT answers for an IPv4 address in a network of `interface`.
    pub fn answers_on_v4(&self, interface: &Interface, addr: Ipv4Addr) -> bool {
        let is_on_link = interface.info.v4.iter().any(|(own, len)| same_prefix_v4(*own, addr, *len));
        is_on_link && self.answers_for(interface.vrf, v4_key(addr.into()))
    }

    /// True if NAT answers for an IPv6 address in a network of `interface`.
    pub fn answers_on_v6(&self, interface: &Interface, addr: Ipv6Addr) -> bool {
        let is_on_link = interface.info.v6.iter().any(|(own, len)| same_prefix_v6(*own, addr, *len));
        is_on_link && self.answers_for(interface.vrf, addr.into())
    }
}

/// What NPTv6 does to a source, if anything.
fn source_of(found: Result<Option<npt::Other>, Untranslatable>) -> Option<SourceNat> {
    match found {
        Ok(npt) => npt.map(|npt| SourceNat::Static { addr: Ipv6Addr::from(npt.addr).into(), rule: npt.rule }),
        Err(Untranslatable) => Some(SourceNat::Untranslatable),
    }
}
