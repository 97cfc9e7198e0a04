//! Sessions, NAT, rules and groups, in the words of the config: what `show` and `clear` need of them.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::deterministic;
use crate::config::{
    self, AddressRange, BackendKey, Config, GroupName, Member, PortRange, RuleAction, Service, Side,
};
use crate::control::{
    ClearQuery, Cleared, Fault, FaultKind, GroupEntry, Halves, MOST, MappingEntry, MappingPage,
    MappingsQuery, NatRuleEntry, PoolEntry, Refusal, RuleEntry, RuleList, SessionEntry, SessionFilter,
    SessionPage, SessionsQuery,
};
use crate::flow::Tick;
use crate::flow::nat::{BlockClaims, MappingView, Pool, Protocol, Refused};
use crate::flow::scan::{self, Filter, MappingFilter, SessionView, Span, State};
use crate::neighbours::{addr_key, is_v4_key};
use crate::packet::view::protocol;
use crate::reader::{Found, Place, Task};
use crate::tables::bridge::number_of_scope;
use crate::tables::compile::Compiler;
use crate::tables::policy::{DEFAULT_RULE, NO_NAT_RULE, Policy};
use crate::telemetry::{PoolCounters, RuleCounters, WorkerCounters};
use crate::time::Nanos;
use crate::worker::Node;

/// How long one request may keep the control thread: it also has links to watch, which it must do within 50 ms
/// (DESIGN.md section 6).
const SLICE: Duration = Duration::from_millis(20);
/// What a worker gets at least: it may have to be woken first.
const LEAST: Duration = Duration::from_millis(2);
/// How long a worker may keep silent. A publication of tables may take as long.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long counting hosts and mappings of pools may take: pages are few.
const COUNT_LIMIT: Duration = Duration::from_millis(500);

/// Time between two notes on the use of pools.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// How far back the notes go.
const NOTES: usize = 31;
/// What the notes must span before they say anything of the future.
const SHORTEST_RATE: Duration = Duration::from_secs(30);

/// What is asked and whom.
pub struct Inspector<'a> {
    /// The workers.
    pub node: &'a Node,
    /// Slots and their names.
    pub compiler: &'a Compiler,
    /// The config in force.
    pub config: &'a Config,
    /// When the workers' clock began.
    pub started: Instant,
    /// How the use of pools has grown.
    pub history: &'a PoolHistory,
    /// What backends were given, lately.
    pub backend_history: &'a BackendHistory,
}

/// Flows that backends were given, lately.
#[derive(Default)]
pub struct BackendHistory {
    /// Time, and flows by backend slot: of now and of [`RATE_SPAN`] ago, as near as may be.
    notes: VecDeque<(Nanos, Vec<u64>)>,
}

/// Over what time the rate of new flows is taken.
const RATE_SPAN: Duration = Duration::from_secs(10);
/// Shorter than this says nothing.
const SHORTEST_SPAN: Duration = Duration::from_secs(1);
/// Notes that it takes.
const RATE_NOTES: usize = 5;

impl BackendHistory {
    /// Notes what `backends` slots were given, if it is time.
    pub fn note(&mut self, now: Nanos, backends: usize, node: &Node) {
        let gap = RATE_SPAN / RATE_NOTES as u32;
        if backends == 0 || self.notes.back().is_some_and(|(last, _)| now.since(*last) < gap) {
            return;
        }
        if self.notes.len() > RATE_NOTES {
            self.notes.pop_front();
        }
        let given = |slot: usize| {
            let of_worker = node.counters.iter().filter_map(|worker| worker.backends.get(slot));
            of_worker.map(|counted| counted.flows.hits.load(Ordering::Relaxed)).sum()
        };
        self.notes.push_back((now, (0..backends).map(given).collect()));
    }

    /// Flows a second that a backend was given since the oldest note. One that is younger was given none before.
    pub fn rate(&self, slot: u32, now: Nanos, opened: u64) -> Option<f64> {
        let (then, given) = self.notes.front()?;
        let (span, before) = (now.since(*then), given.get(slot as usize).copied().unwrap_or(0));
        (span >= SHORTEST_SPAN).then(|| opened.saturating_sub(before) as f64 / span.as_secs_f64())
    }
}

/// Blocks given of each pool, lately.
#[derive(Default)]
pub struct PoolHistory {
    /// Time, and given blocks by pool slot.
    notes: VecDeque<(Nanos, Vec<(u16, u32)>)>,
}

impl PoolHistory {
    /// Notes the use of pools, if it is time.
    pub fn note(&mut self, now: Nanos, policy: &Policy, claims: &BlockClaims) {
        if self.notes.back().is_some_and(|(last, _)| now.since(*last) < NOTE_EVERY) {
            return;
        }
        if self.notes.len() >= NOTES {
            self.notes.pop_front();
        }
        let given = |pool: &Pool| (pool.id(), pool.blocks(claims).given);
        self.notes.push_back((now, policy.pools.iter().map(given).collect()));
    }

    /// Blocks a second, from the oldest note of the pool to now.
    fn rate(&self, pool: u16, now: Nanos, given: u32) -> Option<f64> {
        let (then, old) = self.notes.iter().find_map(|(time, pools)| {
            pools.iter().find(|(id, _)| *id == pool).map(|(_, given)| (*time, *given))
        })?;
        let span = now.since(then);
        (span >= SHORTEST_RATE).then(|| (f64::from(given) - f64::from(old)) / span.as_secs_f64())
    }
}

/// When nothing is left, at so many a second.
fn exhausted_in_s(rate: Option<f64>, left: u32) -> Option<u64> {
    rate.filter(|rate| *rate > 0.0).map(|rate| (f64::from(left) / rate) as u64)
}

/// Where to go on, over all workers, as clients get it.
fn token(worker: usize, place: Place) -> u64 {
    (worker as u64) << 40 | u64::from(place.table) << 32 | u64::from(place.number)
}

fn span(range: Option<AddressRange>) -> Option<Span<u128>> {
    range.map(|range| (addr_key(range.first()), addr_key(range.last())))
}

fn ports(range: Option<PortRange>) -> Option<Span<u16>> {
    range.map(|range| (range.first(), range.last()))
}

fn ip(key: u128) -> IpAddr {
    if is_v4_key(key) { IpAddr::V4((key as u32).into()) } else { IpAddr::V6(key.into()) }
}

fn unknown(what: &str, name: &str) -> Fault {
    Fault::not_found(format!("no {what} {name:?}"))
}

const PROTOCOLS: [(Protocol, &str); 4] =
    [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp"), (Protocol::Icmp, "icmp"), (Protocol::Other, "other")];

impl Inspector<'_> {
    pub(super) fn now(&self) -> Nanos {
        Nanos(self.started.elapsed().as_nanos() as u64)
    }

    /// Has worker after worker do a task, as far as the time of one request reaches. What matched, and where to go
    /// on. `most` is what all of them together may find.
    fn walk(
        &self,
        task: impl Fn(u32) -> Task,
        after: Option<u64>,
        most: Option<u32>,
        mut take: impl FnMut(usize, Found),
    ) -> Result<(u64, Option<u64>), Fault> {
        let after = after.unwrap_or(0);
        let (first, mut place) =
            ((after >> 40) as usize, Place { table: (after >> 32) as u8, number: after as u32 });
        let workers = self.node.desks.len();
        if first >= workers || place.table > 3 {
            return Err(Fault::new(FaultKind::InvalidParams, "after is the `next` of an earlier answer"));
        }
        let deadline = self.now().plus(SLICE);
        let mut matched = 0;
        for worker in first..workers {
            let left = most.map_or(u32::MAX, |most| most - matched as u32);
            if worker > first && (self.now() >= deadline || left == 0) {
                return Ok((matched, Some(token(worker, place))));
            }
            let until = deadline.max(self.now().plus(LEAST));
            let wake = || self.node.wake_if_asleep(worker);
            let end = self.node.desks[worker]
                .read(task(left), place, until, PATIENCE, wake, |found| take(worker, found))
                .map_err(|error| Fault::new(FaultKind::Internal, format!("worker {worker}: {error}")))?;
            matched += end.matched;
            if let Some(next) = end.next {
                return Ok((matched, Some(token(worker, next))));
            }
            place = Place::default();
        }
        Ok((matched, None))
    }

    // ---- sessions

    /// Sessions that match.
    pub fn sessions(&self, query: &SessionsQuery) -> Result<SessionPage, Fault> {
        let filter = self.filter(&query.filter)?;
        let mut sessions = Vec::new();
        let (matched, next) = if query.count {
            self.walk(|_| Task::Count(filter), query.after, None, |_, _| {})?
        } else {
            let most = query.limit.unwrap_or(MOST).clamp(1, MOST);
            let now = Tick::of(self.now());
            self.walk(
                |left| Task::List(filter, left),
                query.after,
                Some(most),
                |worker, found| {
                    if let Found::Session(view) = found {
                        sessions.push(self.session(&view, worker, now));
                    }
                },
            )?
        };
        Ok(SessionPage { sessions, matched, next })
    }

    /// Sessions and what they stand on. Where to go on; `None`: that was the last.
    pub(super) fn standings(
        &self,
        after: Option<u64>,
        take: impl FnMut(usize, Found),
    ) -> Result<Option<u64>, Fault> {
        self.walk(|_| Task::Standings, after, None, take).map(|(_, next)| next)
    }

    /// Ends sessions that match.
    pub fn clear(&self, query: &ClearQuery) -> Result<Cleared, Fault> {
        let filter = self.filter(&query.filter)?;
        if filter.is_any() && !query.all {
            let message = "nothing says which sessions: give a filter, or `all`";
            return Err(Fault::new(FaultKind::InvalidParams, message));
        }
        let (ended, next) = self.walk(|_| Task::End(filter), query.after, None, |_, _| {})?;
        Ok(Cleared { ended, next })
    }

    fn vrf(&self, name: Option<&crate::config::VrfName>) -> Result<Option<u16>, Fault> {
        let slot = |name: &crate::config::VrfName| {
            self.compiler.vrfs.get(name.as_str()).ok_or_else(|| unknown("VRF", name.as_str()))
        };
        name.map(slot).transpose()
    }

    fn filter(&self, wanted: &SessionFilter) -> Result<Filter, Fault> {
        let slots = &self.compiler.policy_slots;
        let zone = |name: &Option<crate::config::ZoneName>| {
            let number = |name: &crate::config::ZoneName| {
                slots.known_zone(name.as_str()).ok_or_else(|| unknown("zone", name.as_str()))
            };
            name.as_ref().map(number).transpose()
        };
        let rule = |name: &String| slots.rules.wide(name).ok_or_else(|| unknown("rule", name));
        let nat_rule = |name: &String| {
            let kinds = ["source", "destination", "static"];
            let of_kind = || kinds.iter().find_map(|kind| slots.nat_rules.get(&format!("{kind}/{name}")));
            slots.nat_rules.get(name).or_else(of_kind).ok_or_else(|| unknown("NAT rule", name))
        };
        let state = |name: &String| {
            State::all().find(|state| state.name() == name).ok_or_else(|| {
                let known: Vec<&str> = State::all().map(State::name).collect();
                let message = format!("no state {name:?}; known: {}", known.join(", "));
                Fault::new(FaultKind::InvalidParams, message)
            })
        };
        let virtual_service = |name: &config::RuleName| {
            slots.services.get(name.as_str()).ok_or_else(|| unknown("service", name.as_str()))
        };
        let now = Tick::of(self.now());
        let ago = |seconds: u32| Tick(now.0.saturating_sub(seconds.saturating_mul(10)));
        // Ticks count from the start: what began before is nobody.
        let at_least = |seconds: Option<u32>| {
            seconds.map(|seconds| if seconds.saturating_mul(10) > now.0 { None } else { Some(ago(seconds)) })
        };
        let nobody = at_least(wanted.older_s) == Some(None) || at_least(wanted.idle_s) == Some(None);
        let mut filter = Filter {
            address: span(wanted.address),
            src: span(wanted.source),
            dst: span(wanted.destination),
            nat: span(wanted.nat),
            port: ports(wanted.port),
            dst_port: ports(wanted.service.and_then(Service::ports)),
            protocol: wanted.service.and_then(Service::protocol),
            zone: zone(&wanted.zone)?,
            from_zone: zone(&wanted.from_zone)?,
            to_zone: zone(&wanted.to_zone)?,
            vrf: self.vrf(wanted.vrf.as_ref())?,
            rule: wanted.rule.as_ref().map(rule).transpose()?,
            nat_rule: wanted.nat_rule.as_ref().map(nat_rule).transpose()?,
            service: wanted.virtual_service.as_ref().map(virtual_service).transpose()?,
            backends: self.backends(wanted)?,
            state: wanted.state.as_ref().map(state).transpose()?,
            created_until: at_least(wanted.older_s).flatten(),
            created_from: wanted.younger_s.map(ago),
            idle_since: at_least(wanted.idle_s).flatten(),
        };
        if nobody {
            filter.created_from = Some(Tick(u32::MAX));
        }
        Ok(filter)
    }

    /// The backends that are asked for, of all there ever were: without a port those of every port, without a VRF those of
    /// all.
    fn backends(&self, wanted: &SessionFilter) -> Result<Option<scan::Backends>, Fault> {
        let Some(key) = &wanted.backend else { return Ok(None) };
        let is_it = |name: &str| {
            let (service, backend) = name.split_once('/')?;
            let of_service = wanted.virtual_service.as_ref().is_none_or(|wanted| wanted.as_str() == service);
            let has: BackendKey = backend.parse().ok()?;
            let of_vrf = key.vrf.is_none() || key.vrf == has.vrf;
            let of_port = key.address.port.is_none() || key.address.port == has.address.port;
            Some(of_service && of_vrf && of_port && key.address.address == has.address.address)
        };
        let names = (0..).zip(self.compiler.policy_slots.backends.names());
        let slots: Vec<u32> =
            names.filter(|(_, name)| is_it(name) == Some(true)).map(|(slot, _)| slot).collect();
        if slots.is_empty() {
            return Err(Fault::not_found(format!("no backend {key}; see show services")));
        }
        let few = scan::Backends::new(&slots).ok_or_else(|| {
            let message = format!("{} backends are called {key}: say which service and port", slots.len());
            Fault::new(FaultKind::InvalidParams, message)
        });
        few.map(Some)
    }

    fn rule_name(&self, slot: u32) -> &str {
        self.compiler.policy_slots.rules.names().get(slot as usize).map_or("?", String::as_str)
    }

    fn nat_rule_name(&self, slot: u16) -> &str {
        self.compiler.policy_slots.nat_rules.names().get(usize::from(slot)).map_or("?", String::as_str)
    }

    pub(super) fn session(&self, view: &SessionView, worker: usize, now: Tick) -> SessionEntry {
        let [src_port, dst_port, new_src_port, new_dst_port] = view.ports;
        let new_src = view.new_src != view.src || new_src_port != src_port;
        // The identifier of an ICMP query is one number, and the source's.
        let is_icmp = matches!(view.protocol, protocol::ICMP | protocol::ICMPV6);
        let new_dst = view.new_dst != view.dst || (new_dst_port != dst_port && !is_icmp);
        let [vrf, to_vrf] = view.vrfs;
        let zone = |zone: u8| self.compiler.policy_slots.zone_name(zone).to_owned();
        let vrf_name = |vrf: u16| match number_of_scope(vrf) {
            Some(bridge) => format!("bridge:{}", self.compiler.bridges.name(bridge)),
            None => self.compiler.vrfs.name(vrf).to_owned(),
        };
        let since = |then: Tick| now.0.saturating_sub(then.0) / 10;
        SessionEntry {
            protocol: Service::of_protocol(view.protocol).to_string(),
            source: ip(view.src),
            source_port: src_port,
            destination: ip(view.dst),
            destination_port: dst_port,
            new_source: new_src.then(|| ip(view.new_src)),
            new_source_port: new_src.then_some(new_src_port),
            new_destination: new_dst.then(|| ip(view.new_dst)),
            new_destination_port: new_dst.then_some(new_dst_port),
            vrf: vrf_name(vrf),
            to_vrf: (to_vrf != vrf).then(|| vrf_name(to_vrf)),
            from_zone: zone(view.zones[0]),
            to_zone: zone(view.zones[1]),
            rule: self.rule_name(view.rule).to_owned(),
            kept: view.kept,
            nat_rule: (view.nat_rule != NO_NAT_RULE).then(|| self.nat_rule_name(view.nat_rule).to_owned()),
            backend: view.backend.map(|(slot, _)| {
                let names = self.compiler.policy_slots.backends.names();
                let name = names.get(slot as usize).map_or("?", String::as_str);
                name.strip_suffix("@default").unwrap_or(name).to_owned()
            }),
            state: view.state.name().to_owned(),
            age_s: since(view.created),
            idle_s: since(view.last_seen),
            expires_s: view.due.0.saturating_sub(now.0) / 10,
            packets: view.packets[0],
            bytes: view.bytes[0],
            reply_packets: view.packets[1],
            reply_bytes: view.bytes[1],
            worker: worker as u32,
        }
    }

    // ---- NAT

    fn sum(&self, of: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.node.counters.iter().map(|counters| of(counters)).sum()
    }

    /// Pools, in the order of their first rules.
    pub fn nat(&self) -> Result<Vec<PoolEntry>, Fault> {
        let tables = self.node.tables.load();
        let count = self.compiler.policy_slots.pools.len() as u32;
        let until = self.now().plus(COUNT_LIMIT);
        for (worker, desk) in self.node.desks.iter().enumerate() {
            let wake = || self.node.wake_if_asleep(worker);
            desk.read(Task::Pools(count), Place { table: 2, number: 0 }, until, PATIENCE, wake, |_| {})
                .map_err(|error| Fault::new(FaultKind::Internal, format!("worker {worker}: {error}")))?;
        }
        let pools = tables.policy.pools.iter().zip(0..);
        Ok(pools.map(|(pool, index)| self.pool(pool, index, &tables.policy)).collect())
    }

    fn pool(&self, pool: &Pool, index: u16, policy: &Policy) -> PoolEntry {
        let counted = |of: &dyn Fn(&PoolCounters) -> &AtomicU64| {
            self.sum(|worker| {
                worker.pools.get(usize::from(pool.id())).map_or(0, |pool| of(pool).load(Ordering::Relaxed))
            })
        };
        let refused = Refused::ALL
            .iter()
            .map(|reason| Refusal {
                reason: reason.name().to_owned(),
                count: counted(&|pool| &pool.refused[*reason as usize]),
            })
            .filter(|refusal| refusal.count > 0);
        let blocks = pool.blocks(&self.node.claims);
        let rate = self.history.rate(pool.id(), self.now(), blocks.given);
        PoolEntry {
            rules: deterministic::rules_of(policy, self.compiler, index),
            vrf: self.compiler.vrfs.name(pool.vrf()).to_owned(),
            addresses: pool
                .ranges()
                .filter_map(|range| AddressRange::new(range.first.into(), range.last.into()).ok())
                .map(|range| range.to_string())
                .collect(),
            address_count: pool.addresses(),
            first_port: pool.ports().first,
            last_port: pool.ports().last,
            block_size: pool.block_size(),
            blocks: blocks.all,
            blocks_given: blocks.given,
            ports_given: u64::from(blocks.given) * u64::from(pool.block_size()),
            hosts: counted(&|pool| &pool.hosts),
            mappings: counted(&|pool| &pool.live),
            held: counted(&|pool| &pool.held),
            refused: refused.collect(),
            used_percent: 100.0 * f64::from(blocks.given) / f64::from(blocks.all.max(1)),
            blocks_per_minute: rate.map(|rate| rate * 60.0),
            exhausted_in_s: exhausted_in_s(rate, blocks.all.saturating_sub(blocks.given)),
            deterministic: deterministic::shared(pool, self.compiler),
            shared: pool.shared_blocks(&self.node.claims).map(|shared| Halves {
                first_port: shared.ports.0,
                last_port: shared.ports.1,
                own_blocks: shared.own.all,
                own_blocks_given: shared.own.given,
                peer_blocks: shared.peers.all,
                peer_blocks_given: shared.peers.given,
            }),
        }
    }

    /// Mappings that match.
    pub fn mappings(&self, query: &MappingsQuery) -> Result<MappingPage, Fault> {
        let protocol = |name: &String| {
            let found = PROTOCOLS.iter().find(|(_, known)| known == name).map(|(protocol, _)| *protocol);
            let message = "a protocol of mappings is tcp, udp, icmp or other";
            found.ok_or_else(|| Fault::new(FaultKind::InvalidParams, message))
        };
        let filter = MappingFilter {
            inside: span(query.inside),
            outside: span(query.outside),
            port: ports(query.port),
            protocol: query.protocol.as_ref().map(protocol).transpose()?,
            vrf: self.vrf(query.vrf.as_ref())?,
            held: query.held,
        };
        let most = query.limit.unwrap_or(MOST).clamp(1, MOST);
        let mut mappings = Vec::new();
        let (_, next) = self.walk(
            |left| Task::Mappings(filter, left),
            query.after,
            Some(most),
            |worker, found| {
                if let Found::Mapping(view) = found {
                    mappings.push(self.mapping(&view, worker));
                }
            },
        )?;
        Ok(MappingPage { mappings, next })
    }

    fn mapping(&self, view: &MappingView, worker: usize) -> MappingEntry {
        MappingEntry {
            protocol: PROTOCOLS[view.inside.protocol as usize].1.to_owned(),
            inside: ip(view.inside.addr),
            inside_port: view.inside.port,
            inside_vrf: self.compiler.vrfs.name(view.inside.vrf).to_owned(),
            outside: view.addr.into(),
            outside_port: view.port,
            outside_vrf: self.compiler.vrfs.name(view.outside_vrf).to_owned(),
            sessions: view.sessions,
            draining: view.is_draining,
            worker: worker as u32,
        }
    }

    // ---- rules

    /// Has the workers count what live sessions have carried. Where to go on, if it is not done yet.
    pub(super) fn settle(&self, after: Option<u64>) -> Result<Option<u64>, Fault> {
        let (_, next) = self.walk(|_| Task::Settle, after, None, |_, _| {})?;
        Ok(next)
    }

    /// Rules, with counters that are exact: what live sessions have carried is asked of the workers first.
    pub fn rules(&self, after: Option<u64>) -> Result<RuleList, Fault> {
        let next = self.settle(after)?;
        if next.is_some() {
            return Ok(RuleList { next, ..RuleList::default() });
        }
        let shadows = self.node.tables.load().policy.shadowed();
        let names = &self.compiler.policy_slots.rules;
        let rule = |place: &str, name: &str, action: &str| {
            let slot = names.wide(name).unwrap_or(DEFAULT_RULE);
            let by = shadows.iter().flatten().find(|(rule, _)| *rule == slot && slot != DEFAULT_RULE);
            let sums = self.rule_sums(|worker| worker.rules.get(slot as usize));
            RuleEntry {
                name: name.to_owned(),
                place: place.to_owned(),
                action: action.to_owned(),
                hits: sums.hits,
                packets: sums.packets,
                bytes: sums.bytes,
                last_hit_s: sums.last_hit_s,
                shadowed_by: by.map(|(_, by)| self.rule_name(*by).to_owned()),
            }
        };
        let action = |action: RuleAction| match action {
            RuleAction::Allow => "allow",
            RuleAction::Deny => "deny",
            RuleAction::Reject => "reject",
        };
        let admin =
            self.config.admin_rules.iter().map(|of| rule("admin", of.name.as_str(), action(of.action)));
        let own = self.config.rules.iter().map(|of| rule("rule", of.name.as_str(), action(of.action)));
        let default = rule("default", "default", "by-zone");
        let nat = &self.config.nat;
        let nat_names = nat
            .sources
            .iter()
            .map(|of| format!("source/{}", of.name))
            .chain(nat.destinations.iter().map(|of| format!("destination/{}", of.name)))
            .chain(nat.statics.iter().map(|of| format!("static/{}", of.label())))
            .chain(nat.nptv6.iter().map(|of| format!("nptv6/{}", of.name)))
            .chain(nat.nat64.iter().map(|of| format!("nat64/{}", of.name)));
        let nat_rules = nat_names.map(|name| {
            let slot = self.compiler.policy_slots.nat_rules.get(&name).unwrap_or(NO_NAT_RULE);
            let sums = self.rule_sums(|worker| worker.nat_rules.get(usize::from(slot)));
            NatRuleEntry {
                name,
                hits: sums.hits,
                packets: sums.packets,
                bytes: sums.bytes,
                last_hit_s: sums.last_hit_s,
            }
        });
        Ok(RuleList {
            next: None,
            rules: admin.chain(own).chain([default]).collect(),
            nat_rules: nat_rules.collect(),
            shadows_known: shadows.is_some(),
        })
    }

    fn rule_sums<'n>(&'n self, of: impl Fn(&'n WorkerCounters) -> Option<&'n RuleCounters>) -> RuleSums {
        let counters: Vec<&RuleCounters> =
            self.node.counters.iter().filter_map(|counters| of(counters)).collect();
        let sum = |field: fn(&RuleCounters) -> &AtomicU64| {
            counters.iter().map(|rule| field(rule).load(Ordering::Relaxed)).sum()
        };
        let last = counters.iter().map(|rule| rule.last_hit.load(Ordering::Relaxed)).max().unwrap_or(0);
        RuleSums {
            hits: sum(|rule| &rule.hits),
            packets: sum(|rule| &rule.packets),
            bytes: sum(|rule| &rule.bytes),
            last_hit_s: (last != 0).then(|| self.now().since(Nanos(last)).as_secs()),
        }
    }

    // ---- groups

    /// Groups, and what names them.
    pub fn groups(&self, wanted: Option<&GroupName>) -> Result<Vec<GroupEntry>, Fault> {
        let groups = self.config.groups.iter().filter(|group| wanted.is_none_or(|name| group.name == *name));
        let found: Vec<GroupEntry> = groups
            .map(|group| GroupEntry {
                name: group.name.clone(),
                members: group.members.iter().map(ToString::to_string).collect(),
                used_by: self.users_of(&group.name),
                temporary: Vec::new(),
            })
            .collect();
        match wanted {
            Some(name) if found.is_empty() => Err(unknown("group", name.as_str())),
            _ => Ok(found),
        }
    }

    fn users_of(&self, group: &GroupName) -> Vec<String> {
        let names = |side: &Side| side.group.as_ref() == Some(group);
        let config = self.config;
        let mut users = Vec::new();
        for (place, rules) in [("admin-rule", &config.admin_rules), ("rule", &config.rules)] {
            let using = rules.iter().filter(|rule| names(&rule.from) || names(&rule.to));
            users.extend(using.map(|rule| format!("{place}/{}", rule.name)));
        }
        let nat = &config.nat;
        let sources = nat.sources.iter().filter(|rule| names(&rule.from) || names(&rule.to));
        users.extend(sources.map(|rule| format!("source/{}", rule.name)));
        let destinations = nat.destinations.iter().filter(|rule| names(&rule.from));
        users.extend(destinations.map(|rule| format!("destination/{}", rule.name)));
        let statics = nat.statics.iter().filter(|rule| names(&rule.to));
        users.extend(statics.map(|rule| format!("static/{}", rule.label())));
        let prefixes = nat.nptv6.iter().filter(|rule| names(&rule.to));
        users.extend(prefixes.map(|rule| format!("nptv6/{}", rule.name)));
        let nat64 = nat.nat64.iter().filter(|rule| names(&rule.from));
        users.extend(nat64.map(|rule| format!("nat64/{}", rule.name)));
        let groups = config.groups.iter().filter(|other| {
            other.members.iter().any(|member| matches!(member, Member::Group(name) if name == group))
        });
        users.extend(groups.map(|other| format!("group/{}", other.name)));
        users
    }
}

struct RuleSums {
    hits: u64,
    packets: u64,
    bytes: u64,
    last_hit_s: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::scan;

    fn history(notes: &[(u64, u32)]) -> PoolHistory {
        let notes = notes.iter().map(|(seconds, given)| (Nanos::from_secs(*seconds), vec![(3, *given)]));
        PoolHistory { notes: notes.collect() }
    }

    #[test]
    fn a_span_of_ipv6_has_no_ipv4_in_it() {
        let holds = |text: &str, addr: &str| {
            let addr = addr_key(addr.parse().expect("an address"));
            scan::among(span(Some(text.parse().expect("a range"))), &[addr])
        };
        for (text, v4, v6) in [
            ("::/0", false, true),
            ("::/1", false, true),
            ("2001:db8::/32", false, true),
            ("::1-2001:db8::9", false, true),
            ("0.0.0.0/0", true, false),
            ("10.0.0.0/8", true, false),
        ] {
            assert_eq!((holds(text, "10.0.0.1"), holds(text, "2001:db8::1")), (v4, v6), "{text}");
        }
    }

    #[test]
    fn rates_are_of_the_last_seconds() {
        let at = Nanos::from_secs;
        let history = BackendHistory { notes: [(at(100), vec![40, 7]), (at(105), vec![80, 7])].into() };
        assert_eq!(history.rate(0, at(110), 90), Some(5.0));
        assert_eq!((history.rate(1, at(110), 7), history.rate(2, at(110), 20)), (Some(0.0), Some(2.0)));
        assert_eq!((history.rate(0, at(100), 40), BackendHistory::default().rate(0, at(1), 9)), (None, None));
    }

    #[test]
    fn exhaustion_follows_from_the_last_minutes() {
        let growing = history(&[(100, 40), (160, 90), (220, 100)]);
        let rate = growing.rate(3, Nanos::from_secs(220), 100);
        assert_eq!(rate, Some(0.5));
        assert_eq!(exhausted_in_s(rate, 900), Some(1800));
        assert_eq!(growing.rate(4, Nanos::from_secs(220), 100), None, "another pool");
        assert_eq!(growing.rate(3, Nanos::from_secs(129), 100), None, "too short to tell");
        let shrinking = history(&[(100, 40), (160, 30)]);
        assert_eq!(exhausted_in_s(shrinking.rate(3, Nanos::from_secs(160), 30), 900), None);
        assert_eq!(exhausted_in_s(Some(0.0), 900), None);
    }

    #[test]
    fn notes_are_bounded() {
        let (policy, claims) = (Policy::none(), BlockClaims::new(1, crate::packet::hash::Key::default()));
        let mut history = PoolHistory::default();
        (0..1000).for_each(|second| history.note(Nanos::from_secs(second), &policy, &claims));
        assert_eq!(history.notes.len(), NOTES);
        let (first, last) = (history.notes[0].0, history.notes[NOTES - 1].0);
        assert_eq!(last.since(first), NOTE_EVERY * (NOTES as u32 - 1));
    }
}
