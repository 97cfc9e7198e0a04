//! From the config to [`Policy`].

use std::cell::LazyCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::groups::Set;
use super::members::{Members, Nesting};
use super::nat::{Destination, Destinations, Side, Static, Statics};
use super::pairs::Said;
use super::rules::{ANY, Condition, Line, Rules};
use super::shadows::Shadows;
use super::{
    Action, DestinationNat, NO_ZONE, Nat64Rule, Policy, RateLimit, RuleInfo, SELF, SessionLimits, Source,
    SourceRule, ZoneLimits,
};
use super::{nat64, npt};
use crate::config::router_group::{Belongs, Owners};
use crate::config::{
    self, AddressRange, BackendTunnel, BalanceMode, Config, Member, Nat, NatPool, PortRange, RuleAction,
    Service, Sharing,
};
use crate::flow::Timers;
use crate::flow::nat::{self, BlockClaims, Half, Pool, PoolSpec};
use crate::flow::tcp::TcpTimers;
use crate::neighbours::{is_v4_key, v4_key};
use crate::packet::hash::Key;
use crate::ratelimit::Rate;
use crate::tables::Slots;
use crate::tables::balance::delivery::MAX_DELIVERIES;
use crate::tables::balance::{
    Affinity, Backend, Behaviour, Delivery, Gue, Identity, Services, TunnelSpec, VirtualService,
};
use crate::tables::classify::{Match, Ports, Prefix};
use crate::tables::compile::{CompileError, Compiler};
use crate::tables::meaning;
use crate::tables::router_group::Publics;
use crate::tables::slots::NoSlot;

/// Most zones there can have been since the start: a zone is a byte, 0 is none and 255 the gateway.
const MAX_ZONES: usize = 254;
/// Most firewall rules there can have been since the start.
pub const MAX_RULES: usize = crate::by_slot::MAX_SLOTS;
/// Most NAT rules and pools there can have been since the start.
const MAX_NAT_RULES: usize = 65_000;
/// Most virtual services there can have been since the start.
const MAX_SERVICES: usize = 65_000;
/// Groups, and prefix lists that count as one.
const MAX_SETS: usize = 65_535;

/// Slots of what policy names.
#[derive(Clone, Debug)]
pub struct PolicySlots {
    /// Zones; the slot plus one is the number.
    pub zones: Slots,
    /// Firewall rules; the first is the default.
    pub rules: Slots,
    /// NAT rules, as `source/NAME`, `destination/NAME`, `static/NAME`, `nptv6/NAME`, `nat64/NAME`; the first is none.
    pub nat_rules: Slots,
    /// Pools, by all that makes them.
    pub pools: Slots,
    /// Virtual services.
    pub services: Slots,
    /// Their backends, as `SERVICE/ADDRESS:PORT@VRF`.
    pub backends: Slots,
    /// Outside addresses given to pools.
    addresses: AHashSet<(u16, u32)>,
    /// Those of them that have been in a pool of NAT64.
    of_nat64: AHashSet<(u16, u32)>,
    /// A worker may use a policy older than the last one: no address is forgotten.
    pub keep_addresses: bool,
}

impl Default for PolicySlots {
    fn default() -> PolicySlots {
        let mut slots = PolicySlots {
            zones: Slots::default(),
            rules: Slots::default(),
            nat_rules: Slots::default(),
            pools: Slots::default(),
            services: Slots::default(),
            backends: Slots::default(),
            addresses: AHashSet::default(),
            of_nat64: AHashSet::default(),
            keep_addresses: false,
        };
        let _ = slots.rules.slot("default", MAX_RULES);
        let _ = slots.nat_rules.slot("", MAX_NAT_RULES);
        slots
    }
}

impl PolicySlots {
    /// Number of a zone by name, new if need be.
    pub fn zone(&mut self, name: &str) -> Result<u8, CompileError> {
        if name == config::Side::SELF {
            return Ok(SELF);
        }
        let slot = self
            .zones
            .slot(name, MAX_ZONES)
            .map_err(|source| CompileError::Slots { what: "zones", source })?;
        Ok(slot as u8 + 1)
    }

    /// Name of a zone by number.
    pub fn zone_name(&self, zone: u8) -> &str {
        match zone {
            NO_ZONE => "-",
            SELF => config::Side::SELF,
            zone => self.zones.names().get(usize::from(zone) - 1).map_or("?", String::as_str),
        }
    }

    /// Number of a zone that has one.
    pub fn known_zone(&self, name: &str) -> Option<u8> {
        if name == config::Side::SELF { Some(SELF) } else { self.zones.get(name).map(|slot| slot as u8 + 1) }
    }

    fn rule(&mut self, name: &str) -> Result<u32, CompileError> {
        self.rules.wide_slot(name, MAX_RULES).map_err(|source| CompileError::Slots { what: "rules", source })
    }

    fn nat_rule(&mut self, kind: &str, name: &str) -> Result<u16, CompileError> {
        let slot = self.nat_rules.slot(&format!("{kind}/{name}"), MAX_NAT_RULES);
        slot.map_err(|source| CompileError::Slots { what: "NAT rules", source })
    }

    /// Gives back the claims of addresses that no pool of these policies has, once nobody is mapped to them.
    pub fn forget_addresses(&mut self, policies: &[&Policy], claims: &BlockClaims) {
        if self.keep_addresses {
            return;
        }
        self.addresses.retain(|(vrf, addr)| {
            policies.iter().any(|policy| policy.pool_of.contains_key(&(*vrf, *addr)))
                || !claims.forget(*vrf, *addr)
        });
        let known = &self.addresses;
        self.of_nat64.retain(|address| known.contains(address));
    }
}

impl Policy {
    /// Without zones, rules and NAT.
    pub fn none() -> Policy {
        Policy::behaviour(&Config::default())
    }

    /// What is no rule.
    fn behaviour(config: &Config) -> Policy {
        let flows = &config.flows;
        let seconds = |s: config::Seconds| Duration::from_secs(u64::from(s.get()));
        let limit = |limit: Option<config::Sessions>| limit.map_or(u32::MAX, |limit| limit.get());
        let transitory = seconds(flows.tcp_transitory_s);
        Policy {
            timers: Timers {
                tcp: TcpTimers {
                    established: seconds(flows.tcp_established_s),
                    opening: flows.tcp_opening_s.map_or(transitory, seconds),
                    closing: transitory,
                    reset: transitory,
                },
                udp_s: flows.udp_s.get(),
                udp_unreplied_s: flows.udp_unreplied_s.get(),
                icmp_s: flows.icmp_s.get(),
                other_s: flows.other_s.get(),
            },
            loose_tcp: flows.loose_tcp,
            filtering: config.nat.filtering,
            hairpin: config.nat.hairpin,
            answer_unsolicited_syn: config.nat.answer_unsolicited_syn,
            limits: SessionLimits {
                per_host: limit(flows.per_host_sessions),
                half_open: limit(flows.half_open),
            },
            zones: Box::new(
                [ZoneLimits {
                    rate: None,
                    half_open_per_destination: limit(flows.half_open_per_destination),
                    syn_proxy_above: u32::MAX,
                }; 256],
            ),
            nat: nat::Limits {
                hold_down: [Duration::from_secs(u64::from(config.nat.hold_down_s.get())); 4],
                max_held: config.nat.max_held_ports.map_or(u32::MAX, |ports| ports.get()),
                new_mappings: config.nat.new_mappings_per_host.map(|limit| Rate {
                    per_s: limit.per_s.get(),
                    burst: limit.burst.unwrap_or(limit.per_s).get(),
                }),
            },
            groups: Arc::default(),
            rules: Arc::new(Rules::compile([], Key::default())),
            shadows: Arc::default(),
            rule_info: Arc::default(),
            sources: Arc::new(Rules::compile([], Key::default())),
            source_rules: Arc::default(),
            destinations: Arc::default(),
            statics: Arc::default(),
            services: Arc::default(),
            prefixes: Arc::default(),
            nat64: Arc::default(),
            nat64_of: Arc::default(),
            left_nat64: Arc::default(),
            pools: Arc::default(),
            pool_of: Arc::default(),
            publics: Arc::default(),
            said: Arc::default(),
        }
    }
}

/// Compiles the policy of a config, with slots from `compiler`. Interfaces and VRFs that it names exist in the
/// config (the check has seen to that) and get their slots here if they have none yet.
pub fn policy(config: &Config, compiler: &mut Compiler) -> Result<Policy, CompileError> {
    let mut build = Build {
        config,
        compiler,
        sets: AHashMap::new(),
        nesting: Nesting::default(),
        members: Vec::new(),
        lists: 0,
    };
    build.groups()?;
    let mut rule_info = Vec::new();
    let mut lines = Vec::new();
    for rule in config.admin_rules.iter().chain(&config.rules) {
        let position = rule_info.len() as u32;
        rule_info.push(rule_of(&mut build, position, rule, &mut lines)?);
    }

    let mut pools = Pools::default();
    let mut source_rules = Vec::new();
    let mut source_lines = Vec::new();
    for rule in &config.nat.sources {
        let position = source_rules.len() as u32;
        let vrf = build.compiler.vrf_slot(rule.vrf.as_str())?;
        let source = match &rule.pool {
            None => Source::Exempt,
            Some(NatPool::Addresses(ranges)) => {
                let sharing = Sharing::of(config, rule)
                    .unwrap_or_else(|(key, _, allowed)| unreachable!("checked: {key} {allowed}"));
                let name = rule.name.as_str();
                let half = config.pair.as_ref().filter(|_| rule.shared).map(half_of);
                let of = (ranges.as_slice(), rule.ports);
                Source::Pool(pools.pool(&mut build, name, vrf, of, sharing.as_ref(), half)?)
            }
            Some(NatPool::Interface) => {
                let mut by_interface = AHashMap::new();
                for interface in &config.interfaces {
                    let is_meant = interface.vrf == rule.vrf
                        && rule.to.zone.as_ref().is_none_or(|zone| interface.zone.as_ref() == Some(zone))
                        && rule.to.interface.as_ref().is_none_or(|name| interface.name == *name);
                    let address = interface.addresses.iter().map(|own| own.address()).find(IpAddr::is_ipv4);
                    let (true, Some(address)) = (is_meant, address) else { continue };
                    let ports = Some(rule.ports.unwrap_or(Nat::INTERFACE_PORTS));
                    let pool = pools.pool(
                        &mut build,
                        rule.name.as_str(),
                        vrf,
                        (&[address.into()], ports),
                        None,
                        None,
                    )?;
                    by_interface.insert(build.interface(interface.name.as_str())?, pool);
                }
                Source::Interface(by_interface)
            }
        };
        let slot = build.compiler.policy_slots.nat_rule("source", rule.name.as_str())?;
        let is_pool = !matches!(source, Source::Exempt);
        source_rules.push(SourceRule { source, from: build.side(&rule.from)?, slot });
        let first = source_lines.len();
        let service = rule.service.as_deref();
        build.lines(position, &rule.from, &rule.to, service, &Details::default(), &mut source_lines)?;
        // Pools are of IPv4: IPv6 passes by.
        let new = source_lines.split_off(first);
        source_lines.extend(new.into_iter().filter_map(|mut line: Line| {
            if is_pool {
                line.matched = only_v4(line.matched)?;
            }
            (line.condition.to_vrf == ANY || line.condition.to_vrf == vrf).then(|| {
                line.condition.to_vrf = vrf;
                line
            })
        }));
    }

    let mut destinations = Destinations::default();
    for rule in &config.nat.destinations {
        let vrf = build.compiler.vrf_slot(rule.vrf.as_str())?;
        let target_vrf = build.compiler.vrf_slot(rule.target_vrf.as_ref().unwrap_or(&rule.vrf).as_str())?;
        let services: Vec<(Option<u8>, Option<PortRange>)> = rule
            .service
            .as_deref()
            .unwrap_or(&[Service::ANY])
            .iter()
            .map(|service| (service.protocol(), service.ports()))
            .collect();
        let to = DestinationNat {
            addr: rule.target.address,
            port: rule.target.port,
            vrf: target_vrf,
            rule: build.compiler.policy_slots.nat_rule("destination", rule.name.as_str())?,
        };
        let rule_from = Destination { from: build.side(&rule.from)?, to };
        destinations.push(vrf, rule.address, &services, rule_from);
    }
    let mut statics = Statics::default();
    for rule in &config.nat.statics {
        let (Some(outside), Some(inside)) = (rule.outside.net(), rule.inside.net()) else {
            unreachable!("checked: both are prefixes")
        };
        statics.push(Static {
            outside,
            inside,
            vrf: build.compiler.vrf_slot(rule.vrf.as_str())?,
            inside_vrf: build.compiler.vrf_slot(rule.inside_vrf.as_ref().unwrap_or(&rule.vrf).as_str())?,
            to: if rule.to.is_any() { None } else { Some(build.side(&rule.to)?) },
            rule: build.compiler.policy_slots.nat_rule("static", &rule.label())?,
        });
    }

    let services = services(config, build.compiler)?;
    let mut behaviour = Policy::behaviour(config);
    for zone in &config.zones {
        let limits = &mut behaviour.zones[usize::from(build.compiler.policy_slots.zone(zone.name.as_str())?)];
        limits.rate = zone.rate_limit.map(RateLimit::from);
        if let Some(limit) = zone.half_open_per_destination {
            limits.half_open_per_destination = limit.get();
        }
        if let Some(above) = zone.syn_proxy_above {
            limits.syn_proxy_above = above.get();
        }
    }
    let prefixes = build.prefixes()?;
    let mut nat64: Vec<Nat64Rule> = Vec::new();
    let mut nat64_of = AHashMap::new();
    for rule in &config.nat.nat64 {
        let rule = build.nat64(rule, &mut pools)?;
        let at = nat64.len() as u16; // at most `Nat::MAX_NAT64`
        let own = pools.pool_of.iter().filter(|((vrf, _), pool)| (*vrf, **pool) == (rule.vrf, rule.pool));
        nat64_of.extend(own.map(|(address, _)| (*address, at)));
        nat64.push(rule);
    }
    let of_nat64 = &mut build.compiler.policy_slots.of_nat64;
    of_nat64.extend(nat64_of.keys());
    let left_nat64 =
        of_nat64.iter().filter(|address| !pools.pool_of.contains_key(*address)).copied().collect();
    let lines = nat64::with_seen(lines, &nat64);
    let key = crate::tables::meaning::key(config);
    let members =
        Members::compile(build.members, build.nesting).map_err(|_| CompileError::TooManyGroupCombinations)?;
    let groups = Arc::clone(members.groups());
    compiler.members = Some(members);
    let Pools { pools, pool_of, .. } = pools;
    let publics = publics(config, compiler)?;
    Ok(Policy {
        groups,
        shadows: Arc::new(Shadows::of(&lines)),
        rules: Arc::new(Rules::compile(lines, key)),
        rule_info: rule_info.into(),
        sources: Arc::new(Rules::compile(source_lines, key)),
        source_rules: source_rules.into(),
        destinations: Arc::new(destinations),
        statics: Arc::new(statics),
        services: services.into(),
        prefixes: Arc::new(prefixes),
        nat64: nat64.into(),
        nat64_of: Arc::new(nat64_of),
        left_nat64: Arc::new(left_nat64),
        pools: pools.into(),
        pool_of: Arc::new(pool_of),
        publics: Arc::new(publics),
        said: Arc::new(Said::new(config, &compiler.policy_slots)),
        ..behaviour
    })
}

/// Which half of a shared pool is this node's: no config says it, both nodes know it.
fn half_of(pair: &config::Pair) -> Half {
    if pair.local < pair.peer { Half::Lower } else { Half::Upper }
}

/// Whose the public addresses of a config are.
fn publics(config: &Config, compiler: &mut Compiler) -> Result<Publics, CompileError> {
    let mut publics = Publics::default();
    if config.vrrp.is_empty() {
        return Ok(publics);
    }
    let owners = Owners::of(config);
    for public in config.publics() {
        if let Belongs::To(leader) = owners.owner(&public) {
            let vrf = compiler.vrf_slot(public.vrf.as_str())?;
            let group = meaning::group_slot(&config.vrrp[leader], compiler)?;
            public.range.nets().for_each(|net| publics.insert(vrf, net, group));
        }
    }
    Ok(publics)
}

/// The virtual services of a config, in its order. Those that are as they were keep their tables.
pub fn services(config: &Config, compiler: &mut Compiler) -> Result<Services, CompileError> {
    let known = std::mem::take(&mut compiler.services);
    let by_name: LazyCell<AHashMap<&str, usize>, _> =
        LazyCell::new(|| known.iter().enumerate().map(|(at, (said, _))| (said.name.as_str(), at)).collect());
    let before = |at: usize, said: &Arc<config::VirtualService>| {
        // Hardly ever has it another place than before.
        if let Some((old, made)) = known.get(at)
            && Arc::ptr_eq(old, said)
        {
            return Some(made);
        }
        let (old, made) = known.get(*by_name.get(said.name.as_str())?)?;
        (Arc::ptr_eq(old, said) || old == said).then_some(made)
    };
    let made = config.services.iter().enumerate().map(|(at, said)| {
        let made = before(at, said).map(Arc::clone);
        Ok((Arc::clone(said), made.map_or_else(|| service(said, compiler).map(Arc::new), Ok)?))
    });
    let made = made.collect::<Result<Vec<_>, CompileError>>();
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            compiler.services = known;
            return Err(error);
        }
    };
    let list = made.iter().map(|(_, made)| Arc::clone(made)).collect();
    compiler.services = made;
    Ok(compiler.tables().policy.services().after(list, compiler.deliveries.list()))
}

fn service(said: &config::VirtualService, compiler: &mut Compiler) -> Result<VirtualService, CompileError> {
    let Some(address) = said.address.net() else { unreachable!("checked: it is a prefix") };
    let slots_error = |what| move |source| CompileError::Slots { what, source };
    let vrf = compiler.vrf_slot(said.vrf.as_str())?;
    let slots = &mut compiler.policy_slots;
    let slot = slots.services.slot(said.name.as_str(), MAX_SERVICES).map_err(slots_error("services"))?;
    let backends = said.backends.iter().map(|backend| {
        let vrf = said.vrf_of(backend);
        let port = backend.address.port;
        let name = backend_name(said, &backend.key());
        let slot = compiler.policy_slots.backends.wide_slot(&name, crate::by_slot::MAX_SLOTS);
        let slot = slot.map_err(slots_error("backends"))?;
        let identity =
            Identity { addr: backend.address.address, port: port.unwrap_or(0), vrf: vrf.to_string() };
        let vrf_slot = compiler.vrf_slot(vrf.as_str())?;
        let made = Backend {
            slot,
            addr: identity.addr,
            port,
            vrf: vrf_slot,
            weight: backend.weight.get() as u16, // at most 1000
            admin: backend.state,
            delivery: delivery(said, backend.address.address, vrf_slot, compiler)?,
        };
        Ok((identity, made))
    });
    let backends = backends.collect::<Result<Vec<_>, CompileError>>()?;
    let affinity = said.affinity.as_ref().map(|said| Affinity {
        timeout_s: said.timeout_s.get(),
        ipv4_len: said.ipv4_prefix.get() as u8, // at most 32
        ipv6_len: said.ipv6_prefix.get() as u8, // at most 128
    });
    let behaviour = Behaviour { on_failure: said.on_failure, by_client: said.by_client, affinity };
    Ok(VirtualService::new((slot, vrf), address, said.served().collect(), behaviour, backends))
}

/// The number of a backend's delivery, if the service's mode has one.
fn delivery(
    said: &config::VirtualService,
    addr: IpAddr,
    vrf: u16,
    compiler: &mut Compiler,
) -> Result<Option<u16>, CompileError> {
    let tunnel = said.tunnel.clone().unwrap_or_default();
    let spec = |gue: Option<Gue>| TunnelSpec {
        source: tunnel.source.map(|source| source.0),
        gue,
        ttl: tunnel.ttl.map_or(TunnelSpec::DEFAULT_TTL, |ttl| ttl.get() as u8),
        dscp: tunnel.dscp.map(|dscp| dscp.get() as u8),
    };
    let tunnel = match said.mode {
        BalanceMode::Nat => return Ok(None),
        BalanceMode::L2Dsr => None,
        BalanceMode::Ipip => Some(spec(None)),
        BalanceMode::Gue => Some(spec(Some(Gue {
            port: tunnel.port.map_or(BackendTunnel::GUE_PORT, |port| port.get() as u16),
            has_header: tunnel.variant.is_none_or(|variant| variant.get() == 0),
            udp_checksum: tunnel.udp_checksum.unwrap_or(false),
        }))),
    };
    let number = compiler.deliveries.number(Delivery { addr, vrf, tunnel });
    let full = || CompileError::Slots {
        what: "backends of direct server return",
        source: NoSlot { limit: MAX_DELIVERIES },
    };
    number.map(Some).ok_or_else(full)
}

/// What the slot of a backend is called.
pub fn backend_name(service: &config::VirtualService, backend: &config::BackendKey) -> String {
    let vrf = backend.vrf.as_ref().unwrap_or(&service.vrf);
    format!("{}/{}@{vrf}", service.name, backend.address)
}

/// The service in such a name.
pub fn service_of(backend: &str) -> &str {
    backend.split_once('/').map_or(backend, |(service, _)| service)
}

/// What one rule says, and its lines.
pub(super) fn rule_of(
    build: &mut Build<'_>,
    position: u32,
    rule: &config::Rule,
    lines: &mut Vec<Line>,
) -> Result<RuleInfo, CompileError> {
    let info = RuleInfo {
        action: match rule.action {
            RuleAction::Allow => Action::Allow,
            RuleAction::Deny => Action::Deny,
            RuleAction::Reject => Action::Reject,
        },
        slot: build.compiler.policy_slots.rule(rule.name.as_str())?,
        log: rule.log,
        limit: rule.rate_limit.map(RateLimit::from),
    };
    let details = Details {
        source_ports: rule.source_ports.as_deref().unwrap_or(&[]),
        dscp: rule.dscp.iter().flat_map(|list| list.iter()).fold(0, |bits, dscp| bits | 1 << dscp.get()),
        flags: rule.tcp_flags.as_deref().unwrap_or(&[]),
    };
    build.lines(position, &rule.from, &rule.to, rule.service.as_deref(), &details, lines)?;
    Ok(info)
}

/// What a rule asks of a packet besides its two sides and services.
#[derive(Default)]
struct Details<'a> {
    source_ports: &'a [PortRange],
    /// One bit each; 0: any.
    dscp: u64,
    flags: &'a [config::TcpFlag],
}

/// What is left of a match if only IPv4 counts.
fn only_v4(mut matched: Match) -> Option<Match> {
    let Ok(all) = Prefix::new(v4_key(0), 96) else { unreachable!("a length") };
    for prefix in [&mut matched.src, &mut matched.dst] {
        if *prefix == Prefix::ANY {
            *prefix = all;
        } else if prefix.len() < 96 || !is_v4_key(prefix.addr()) {
            return None;
        }
    }
    Some(matched)
}

/// The pools made so far.
#[derive(Default)]
struct Pools {
    pools: Vec<Pool>,
    by_slot: AHashMap<u16, u16>,
    pool_of: AHashMap<(u16, u32), u16>,
}

impl Pools {
    /// The pool of these addresses and ports: rules that name the same share it.
    fn pool(
        &mut self,
        build: &mut Build<'_>,
        rule: &str,
        vrf: u16,
        (ranges, ports): (&[AddressRange], Option<PortRange>),
        sharing: Option<&Sharing>,
        half: Option<Half>,
    ) -> Result<u16, CompileError> {
        let nat = &build.config.nat;
        let outside_vrf = build.compiler.vrfs.name(vrf);
        let mut name = format!("{outside_vrf} {ranges:?} {ports:?}");
        let mut subscribers = None;
        if let Some(sharing) = sharing {
            // It is the same pool whoever comes behind: a host whose ports stay where they are goes on with them, and
            // whoever has moved drains. As another pool it would have to do without all that it is using.
            let lowest = ranges.iter().map(|range| range.first()).min();
            name = format!("{outside_vrf} deterministic {lowest:?}");
            subscribers = Some(sharing.subscribers(build.compiler.vrf_slot(sharing.vrf.as_str())?));
        }
        let slots = &mut build.compiler.policy_slots;
        let id = slots
            .pools
            .slot(&name, MAX_NAT_RULES)
            .map_err(|source| CompileError::Slots { what: "NAT pools", source })?;
        if let Some(pool) = self.by_slot.get(&id) {
            return Ok(*pool);
        }
        let v4 = |addr| match addr {
            IpAddr::V4(addr) => addr,
            IpAddr::V6(_) => unreachable!("checked: a pool is of IPv4 addresses"),
        };
        let addresses: Vec<nat::AddressRange> = ranges
            .iter()
            .map(|range| nat::AddressRange { first: v4(range.first()), last: v4(range.last()) })
            .collect();
        let mut spec = PoolSpec::new(id, addresses);
        spec.vrf = vrf;
        spec.block_size = nat.block_size.ports();
        spec.max_blocks_per_host = nat.max_blocks_per_host.get() as u16; // at most 1008
        spec.deterministic = subscribers;
        spec.half = half;
        if let Some(ports) = ports {
            spec.ports = nat::Ports { first: ports.first(), last: ports.last(), low: false };
        }
        let pool = Pool::compile(&spec, &build.compiler.claims)
            .map_err(|source| CompileError::Pool { rule: rule.to_owned(), source })?;
        let index = self.pools.len() as u16; // fewer than slots
        for range in &spec.addresses {
            for addr in u32::from(range.first)..=u32::from(range.last) {
                self.pool_of.entry((vrf, addr)).or_insert(index);
                slots.addresses.insert((vrf, addr));
            }
        }
        self.pools.push(pool);
        self.by_slot.insert(id, index);
        Ok(index)
    }
}

pub(super) struct Build<'a> {
    config: &'a Config,
    compiler: &'a mut Compiler,
    sets: AHashMap<&'a str, Set>,
    /// Which groups hold which.
    nesting: Nesting,
    /// Members of groups.
    members: Vec<(IpNet, Set)>,
    /// Groups and lists so far.
    lists: usize,
}

/// The addresses of a rule's side.
struct Addresses {
    prefixes: Vec<Prefix>,
    set: Option<Set>,
}

impl<'a> Build<'a> {
    /// To compile a rule of a config with the groups there are.
    pub fn of_rule(
        config: &'a Config,
        compiler: &'a mut Compiler,
        sets: AHashMap<&'a str, Set>,
    ) -> Build<'a> {
        Build { config, compiler, sets, nesting: Nesting::default(), members: Vec::new(), lists: 0 }
    }

    fn new_set(&mut self) -> Result<Set, CompileError> {
        let set = self.lists;
        if set >= MAX_SETS {
            return Err(CompileError::TooManyGroupCombinations);
        }
        self.lists += 1;
        Ok(set as Set)
    }

    /// Numbers the groups and lists their members, those of groups in them included.
    fn groups(&mut self) -> Result<(), CompileError> {
        let config = self.config;
        let by_name: AHashMap<&str, &[Member]> =
            config.groups.iter().map(|group| (group.name.as_str(), group.members.as_slice())).collect();
        for group in &config.groups {
            let set = self.new_set()?;
            self.sets.insert(group.name.as_str(), set);
            self.nesting.sets.insert(group.name.clone(), set);
            self.nesting.around.push(Vec::new());
        }
        for group in &config.groups {
            let set = self.sets[group.name.as_str()];
            let mut seen = AHashSet::from([group.name.as_str()]);
            let mut open: Vec<&Member> = group.members.iter().collect();
            while let Some(member) = open.pop() {
                match member {
                    Member::Addresses(range) => self.members.extend(range.nets().map(|net| (net, set))),
                    Member::Group(name) if seen.insert(name.as_str()) => {
                        open.extend(by_name.get(name.as_str()).copied().unwrap_or_default());
                    }
                    Member::Group(_) => {}
                }
            }
            let inner = seen.iter().filter_map(|name| self.sets.get(name));
            inner.for_each(|inner| self.nesting.around[usize::from(*inner)].push(set));
        }
        Ok(())
    }

    fn interface(&mut self, name: &str) -> Result<u16, CompileError> {
        self.compiler.interface_slot(name)
    }

    fn zone(&mut self, side: &config::Side) -> Result<u16, CompileError> {
        side.zone
            .as_ref()
            .map_or(Ok(ANY), |zone| self.compiler.policy_slots.zone(zone.as_str()).map(u16::from))
    }

    fn interface_of(&mut self, side: &config::Side) -> Result<u16, CompileError> {
        side.interface.as_ref().map_or(Ok(ANY), |name| self.interface(name.as_str()))
    }

    fn vrf_of(&mut self, side: &config::Side) -> Result<u16, CompileError> {
        side.vrf.as_ref().map_or(Ok(ANY), |name| self.compiler.vrf_slot(name.as_str()))
    }

    fn set_of(&self, side: &config::Side) -> Option<Set> {
        side.group.as_ref().map(|name| self.sets[name.as_str()])
    }

    fn side(&mut self, side: &config::Side) -> Result<Side, CompileError> {
        Ok(Side {
            zone: self.zone(side)?,
            interface: self.interface_of(side)?,
            vrf: self.vrf_of(side)?,
            set: self.set_of(side),
            ranges: side.prefix.as_deref().unwrap_or(&[]).to_vec(),
        })
    }

    fn nat64(&mut self, rule: &config::Nat64, pools: &mut Pools) -> Result<Nat64Rule, CompileError> {
        let Some(prefix) = rule.embedding() else { unreachable!("checked: a prefix of RFC 6052") };
        let vrf = self.compiler.vrf_slot(rule.vrf.as_str())?;
        let pool = pools.pool(self, rule.name.as_str(), vrf, (&rule.pool, rule.ports), None, None)?;
        let from = self.side(&rule.from)?;
        let slot = self.compiler.policy_slots.nat_rule("nat64", rule.name.as_str())?;
        Ok(Nat64Rule { prefix, from, vrf, pool, slot })
    }

    fn prefixes(&mut self) -> Result<npt::Prefixes, CompileError> {
        let mut prefixes = npt::Prefixes::default();
        for rule in &self.config.nat.nptv6 {
            let (Some(IpNet::V6(inside)), Some(IpNet::V6(outside))) = (rule.inside.net(), rule.outside.net())
            else {
                unreachable!("checked: both are prefixes of IPv6")
            };
            let vrf = self.compiler.vrf_slot(rule.vrf.as_str())?;
            let inside_vrf =
                self.compiler.vrf_slot(rule.inside_vrf.as_ref().unwrap_or(&rule.vrf).as_str())?;
            let to = if rule.to.is_any() { None } else { Some(self.side(&rule.to)?) };
            let slot = self.compiler.policy_slots.nat_rule("nptv6", rule.name.as_str())?;
            prefixes.push(npt::Rule::new(inside, outside, (vrf, inside_vrf), to, slot));
        }
        Ok(prefixes)
    }

    fn addresses(&mut self, side: &config::Side) -> Result<Addresses, CompileError> {
        let set = self.set_of(side);
        let Some(ranges) = &side.prefix else { return Ok(Addresses { prefixes: vec![Prefix::ANY], set }) };
        let nets: Vec<IpNet> = ranges.iter().flat_map(|range| range.nets()).collect();
        if side.is_looked_up() {
            let list = self.new_set()?;
            self.members.extend(nets.into_iter().map(|net| (net, list)));
            return Ok(Addresses { prefixes: vec![Prefix::ANY], set: Some(list) });
        }
        Ok(Addresses { prefixes: nets.into_iter().map(Prefix::from).collect(), set })
    }

    /// The lines of one rule: not more than the check of the config allows (`config::check_policy`).
    fn lines(
        &mut self,
        rule: u32,
        from: &config::Side,
        to: &config::Side,
        services: Option<&[Service]>,
        details: &Details<'_>,
        lines: &mut Vec<Line>,
    ) -> Result<(), CompileError> {
        let (from_zone, to_zone) = (self.zone(from)?, self.zone(to)?);
        let condition = Condition {
            from_interface: self.interface_of(from)?,
            to_interface: self.interface_of(to)?,
            from_vrf: self.vrf_of(from)?,
            to_vrf: self.vrf_of(to)?,
            dscp: if details.dscp == 0 { u64::MAX } else { details.dscp },
            flags_mask: details.flags.iter().fold(0, |bits, flag| bits | flag.bit),
            flags: details.flags.iter().filter(|flag| flag.set).fold(0, |bits, flag| bits | flag.bit),
            ..Condition::NONE
        };
        let (sources, destinations) = (self.addresses(from)?, self.addresses(to)?);
        let range = |ports: PortRange| Ports::new(ports.first(), ports.last()).unwrap_or(Ports::ANY);
        let source_ports: Vec<Ports> = match details.source_ports {
            [] => vec![Ports::ANY],
            some => some.iter().copied().map(range).collect(),
        };
        for src in &sources.prefixes {
            for dst in &destinations.prefixes {
                for service in services.unwrap_or(&[Service::ANY]) {
                    for src_ports in &source_ports {
                        let matched = Match {
                            src: *src,
                            dst: *dst,
                            src_ports: *src_ports,
                            dst_ports: service.ports().map_or(Ports::ANY, range),
                            protocol: service.protocol(),
                            src_set: sources.set,
                            dst_set: destinations.set,
                        };
                        let condition = Condition { icmp_type: service.icmp_type(), ..condition };
                        lines.push(Line { rule, from_zone, to_zone, matched, condition });
                    }
                }
            }
        }
        Ok(())
    }
}
