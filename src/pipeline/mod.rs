//! The packet path: one stage per file, in the order of [`run`].
//!
//! A stage looks only at packets whose verdict is still `Continue`. Stages meet in the packet's metadata
//! and never call each other. What fails a check leaves untouched, so
//! that errors can quote the packet as it came. Below the six stages stands the slow path
//! ([`slow`]): neighbours to resolve, packets to the gateway, fragments, ICMP errors.
//!
//! [`decide`] is the one pure function that knows policy: the route stage uses its parts in batches,
//! everything else that asks "what would happen" calls it whole.

mod adjacency;
mod bridge;
mod crossing;
mod deliver;
mod flow;
pub mod fragment;
mod icmp_crossing;
mod icmp_error;
pub mod judge;
mod link;
mod member_zones;
mod network;
pub mod peer;
mod plain;
mod proxy;
mod reassembly;
mod relay;
pub mod replica;
pub mod review;
mod rewrite;
pub mod route;
mod session;
pub mod slow;
mod source;
pub mod trail;
mod tunnel;
mod vxlan;

use std::net::{IpAddr, Ipv4Addr};

use crate::affinity::{Client, Held};
use crate::flow::Flows;
use crate::host::probe::exchange::Exchange;
use crate::mem::BURST;
use crate::neighbours::NeighbourTable;
use crate::packet::{Burst, DropReason, Ingress, Pass, Verdict, positions};
use crate::tables::balance::{NoBackend, delivery};
use crate::tables::policy::{
    Action, Asked, Bound, DEFAULT_RULE, NO_NAT_RULE, NO_ZONE, Nat64Rule, NotTaken, Policy, Ruling, SELF,
    SourceNat, Untranslatable,
};
use crate::tables::{NO_INTERFACE, Tables};
use crate::telemetry::WorkerCounters;
use crate::time::Nanos;
use route::Route;
use trail::Trail;

pub use crate::tables::policy::Question;
pub use member_zones::always_bridged;
pub use rewrite::write_link_header;
pub use session::{Table, note_refused};
pub use slow::segments::Segments;
pub use slow::{Emit, Limits, SlowPath};
pub(crate) use vxlan::{VXLAN_BYTES, options_bytes};

/// What [`decide`] is to everything else, to frames between members of a bridge.
pub fn decide_bridged(tables: &Tables, question: &Question, egress: u16) -> Decision {
    member_zones::decide(tables, question, egress, false)
}

/// What a stage may look at: one snapshot, one time, for the whole burst.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The clock, read once for the burst.
    pub now: Nanos,
    /// The one snapshot of the burst.
    pub tables: &'a Tables,
    /// The shared neighbour table.
    pub neighbours: &'a NeighbourTable,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
    /// The node's rate limits.
    pub limits: &'a Limits,
    /// What the health checks wait for.
    pub probes: &'a Exchange,
    /// Where the burst came from.
    pub ingress: Ingress,
    /// After [`Pass::First`] they have been counted as received.
    pub pass: Pass,
}

/// The packet path. Eight stages, in this order; what one of them settles no later one touches. Before and between
/// them stands [`plain`], which takes nearly all packets past the first three, and those without a session past all.
///
/// `link`, `network`, `relay` and `source` look at one packet after the other while its headers are at hand, and once
/// more at what was in the tunnel that `vxlan` took it out of; frames between members of a bridge end there, in
/// [`bridge`], or behind `flow` if members have zones ([`member_zones`]). `flow` and `route` look at the whole burst, so that the lookups overlap, `adjacency` and `rewrite` again
/// at one after the other. A packet has either a session, from `flow`, or a route. Where a session's other side is of the other
/// family, [`crossing`] stands in for the last two.
pub fn run(burst: &mut Burst, cx: &Context<'_>, flows: &mut Flows) {
    run_stages::<true>(burst, cx, flows);
}

/// The twin does without [`plain`].
#[inline(always)]
fn run_stages<const SHORT: bool>(burst: &mut Burst, cx: &Context<'_>, flows: &mut Flows) {
    flows.recycle();
    let all = u64::MAX.checked_shr((BURST - burst.len()) as u32).unwrap_or(0);
    let (mut routed, mut lookups) = (plain::Routed::default(), flow::Lookups::default());
    let plain = match cx.ingress {
        Ingress::Port(port) if SHORT => plain::look(burst, port, cx, flows, &mut routed, &mut lookups),
        _ => plain::Plain::default(),
    };
    // Frames between members of a bridge: finished at once.
    let mut bridged = 0;
    let mut received = link::Tally::default();
    let link = cx.tables.pair_interface();
    for index in positions(all & !plain.all) {
        let packet = &mut burst[index];
        link::step(packet, cx, &mut received);
        network::step(packet);
        relay::step(packet, cx);
        source::step(packet, cx);
        if packet.meta.interface == link
            && let Some(outer) = peer::receive(packet, cx)
        {
            network::step(packet);
            vxlan::congestion(packet, outer);
            source::step(packet, cx);
        } else if let Some(outer) = vxlan::step(packet, cx, &mut received) {
            network::step(packet);
            vxlan::congestion(packet, outer);
            relay::step(packet, cx);
            source::step(packet, cx);
        }
        bridged |= u64::from(packet.meta.verdict == Verdict::Forward) << index;
        flow::begin(packet, index, flows, &mut lookups);
    }
    received.finish(cx);
    let done = plain::send(burst, &routed, cx);
    let done = plain::Done { sent: done.sent | bridged, ..done };
    if done.sent == all {
        return;
    }
    let mut sent = done.sent | flow::run(burst, cx, flows, &mut lookups, plain.stateful);
    if cx.tables.bridges.have_zones() {
        sent |= member_zones::leave_all(burst, cx, flows);
    }
    if sent == all {
        return;
    }
    route::run(burst, all & !done.routed, cx);
    let (mut hop, mut tally) = (adjacency::Hop::default(), rewrite::Tally::default());
    for index in positions(all & !sent) {
        adjacency::step(&mut burst[index], cx, flows, &mut hop);
        rewrite::step(&mut burst[index], cx, flows, &mut tally);
    }
    tally.finish(cx);
}

/// What policy says of a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To the gateway itself, with the firewall's word if the ingress has a zone.
    Local(Option<Ruling>),
    /// Without a session, out of this interface, to the gateway in the neighbour slot or, if `None`, to the destination.
    Forward {
        /// Egress interface slot.
        egress: u16,
        /// Neighbour slot of the gateway.
        via: Option<u32>,
    },
    /// With a session.
    Session(Allowed),
    /// Not at all, says a rule.
    Refused(Ruling, DropReason),
    /// Not at all.
    Drop(DropReason),
}

/// What a session is allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Egress interface slot.
    pub egress: u16,
    /// Neighbour slot of the gateway.
    pub via: Option<u32>,
    /// VRF slot of the egress: where replies come in.
    pub vrf: u16,
    /// Where the packet really goes: behind destination NAT.
    pub dst: IpAddr,
    /// The port there.
    pub dst_port: u16,
    /// What is done to its source.
    pub source: SourceNat,
    /// What the firewall says of it.
    pub ruling: Ruling,
    /// Slot of the NAT rule, or `NO_NAT_RULE`.
    pub nat_rule: u16,
    /// Slot of the backend, where it goes to one of a service.
    pub backend: Option<u32>,
    /// Of whom it is to be noted that this is the backend of its latest flow, once there is one.
    pub client: Option<Client>,
    /// It goes to the backend as it came, by what `via` stands for, and answers do not come this way.
    pub one_sided: bool,
    /// Zone it comes from.
    pub from_zone: u8,
    /// Zone it goes to.
    pub to_zone: u8,
}

/// Decides a flow: destination NAT, route, firewall, source NAT (DESIGN.md section 3). Pure: the same tables and
/// question give the same answer, and nothing changes. `bound` is the destination it is bound to already, by a NAT
/// mapping or by the session it belongs to; `held` is what is remembered of its client, if a service does that.
pub fn decide(tables: &Tables, question: &Question, bound: Option<Bound>, held: Option<Held>) -> Decision {
    decide_noting(tables, question, bound, held, &mut ())
}

/// The same, and what it follows from.
#[inline(always)]
pub fn decide_noting(
    tables: &Tables,
    question: &Question,
    bound: Option<Bound>,
    held: Option<Held>,
    trail: &mut impl Trail,
) -> Decision {
    if let Err(reason) = source::check(tables, question.ingress, question.vrf, question.src, question.dst) {
        return Decision::Drop(reason);
    }
    let from_zone =
        if question.ingress == NO_INTERFACE { SELF } else { tables.interface(question.ingress).zone };
    trail.note(|notes| (notes.source_passed, notes.from_zone) = (true, Some(from_zone)));
    if from_zone == NO_ZONE {
        let way = route::decide(tables, question);
        trail.note(|notes| notes.way = Some((question.vrf, question.dst, way)));
        return match way {
            Ok(Route::Local) => Decision::Local(None),
            Ok(Route::Forward { egress, .. }) if tables.interface(egress).zone != NO_ZONE => {
                Decision::Drop(DropReason::FirewallDeny)
            }
            Ok(Route::Forward { egress, via }) => Decision::Forward { egress, via },
            Err(reason) => Decision::Drop(reason),
        };
    }
    let policy = &tables.policy;
    if matches!(question.dst, IpAddr::V6(dst) if dst.to_ipv4_mapped().is_some()) {
        // RFC 4291 section 2.5.5.2: no such address is on the wire.
        return Decision::Drop(DropReason::MartianDestination);
    }
    let found = match destination(tables, question, from_zone, bound, held, trail) {
        Ok(found) => found,
        Err(reason) => return Decision::Drop(reason),
    };
    let (pool, permitted) = bound.map_or((None, false), |bound| (bound.pool, bound.allowed));
    let (mut nat_rule, nat64) = found.map_or((NO_NAT_RULE, None), |found| (found.nat_rule, found.nat64));
    let mut real = *question;
    if let Some(found) = found {
        (real.dst, real.dst_port, real.vrf) = (found.addr, found.port, found.vrf);
    }
    let number = found.and_then(|found| found.delivery);
    let way = match number {
        Some(number) => deliver::route(tables, number),
        None => route::decide(tables, &real),
    };
    trail.note(|notes| {
        notes.destination = found.map(|found| (found.addr, found.port, found.vrf));
        (notes.destination_rule, notes.nat64) = (nat_rule, nat64.is_some());
        notes.backend = found.and_then(|found| found.backend);
        notes.way = Some((real.vrf, real.dst, way));
    });
    let translated = bound.map_or(found.is_some() && number.is_none(), |bound| bound.translated);
    // An outside address is no destination by itself, whatever the routes say. One that only destination or static
    // NAT has may also be somebody's on the way, unless it would be on the link, where we answer for it.
    let on_link = matches!(way, Ok(Route::Forward { via: None, .. }));
    // Through a prefix as well: a mapping of NAT64 would have bound the packet.
    let is_outside = match nat64 {
        Some(rule) => real.dst.is_ipv4() && policy.has_outside(rule.vrf, real.dst, true),
        None => {
            found.is_none()
                && way != Ok(Route::Local)
                && policy.has_outside(question.vrf, question.dst, on_link)
        }
    };
    if is_outside {
        return Decision::Drop(DropReason::NatNoMapping);
    }
    let (to_zone, egress, to_vrf, via) = match way {
        Ok(Route::Local) => (SELF, NO_INTERFACE, real.vrf, None),
        Ok(Route::Forward { egress, via }) => {
            let interface = tables.interface(egress);
            (interface.zone, egress, interface.vrf, via)
        }
        Err(reason) => return Decision::Drop(reason),
    };
    if let Some(reason) = number.and_then(|number| deliver::objection(tables, number, egress, via)) {
        return Decision::Drop(reason);
    }
    // Only what a service or a rule of destination NAT sends elsewhere is meant to come back. A session that is judged
    // again is bound to where it goes, translated or not.
    let is_published = number.is_some()
        || nat64.is_none()
            && bound.is_none_or(|bound| !bound.mapped)
            && (real.dst, real.dst_port) != (question.dst, question.dst_port);
    if !is_published && member_zones::leads_around(tables, question, egress) {
        return Decision::Drop(DropReason::BridgeZoneHairpin);
    }
    let real = Question { vrf: question.vrf, ..real };
    let mut asked = Asked::new(&real, from_zone, (to_zone, egress, to_vrf));
    if let Some(rule) = nat64 {
        asked = asked.through(rule);
    }
    let ruling = policy.permit(&asked);
    trail.note(|notes| (notes.to_zone, notes.ruling) = (Some(to_zone), Some(ruling)));
    match ruling.action {
        Action::Allow => {}
        // Who may answer to a mapping is NAT's matter, unless a rule says otherwise (RFC 4787 section 5).
        _ if permitted && ruling.rule == DEFAULT_RULE && leads_out(policy, &asked, question, pool) => {
            trail.note(|notes| notes.permitted = true);
        }
        // A session there is, which a commit has left to its end.
        _ if bound.is_some_and(|bound| bound.kept) => {}
        Action::Deny => return Decision::Refused(ruling, DropReason::FirewallDeny),
        Action::Reject => return Decision::Refused(ruling, DropReason::FirewallReject),
    }
    if egress == NO_INTERFACE {
        return Decision::Local(Some(ruling));
    }
    let is_hairpin = translated && from_zone == to_zone;
    if let Some(number) = number {
        // The backend answers the client itself, and has to know it.
        return Decision::Session(Allowed {
            egress,
            via: Some(delivery::hop_of(number)),
            vrf: to_vrf,
            dst: question.dst,
            dst_port: question.dst_port,
            source: SourceNat::None,
            ruling,
            nat_rule,
            backend: found.and_then(|found| found.backend),
            client: found.and_then(|found| found.client),
            one_sided: true,
            from_zone,
            to_zone,
        });
    }
    let source = match (nat64, back_through(policy, question, from_zone, pool)) {
        (Some(rule), _) => rule.source(real.src),
        (None, back) if (is_hairpin || back.is_some()) && !policy.hairpin => {
            return Decision::Drop(DropReason::NatHairpin);
        }
        (None, Some(rule)) => SourceNat::Pool { pool: rule.pool, rule: rule.slot },
        (None, None) if is_hairpin => policy.hairpin_source(&asked, pool),
        (None, None) => policy.source(&asked),
    };
    trail.note(|notes| notes.source = Some(source));
    match source {
        SourceNat::None => {}
        SourceNat::Untranslatable => return Decision::Drop(DropReason::NatUntranslatable),
        SourceNat::Static { rule, .. } | SourceNat::Pool { rule, .. } => nat_rule = rule,
    }
    Decision::Session(Allowed {
        egress,
        via,
        vrf: to_vrf,
        dst: real.dst,
        dst_port: real.dst_port,
        source,
        ruling,
        nat_rule,
        backend: found.and_then(|found| found.backend),
        client: found.and_then(|found| found.client),
        one_sided: false,
        from_zone,
        to_zone,
    })
}

/// Where destination NAT leads, or NAT64, or a session that is bound already.
#[derive(Clone, Copy)]
struct Found<'a> {
    addr: IpAddr,
    port: u16,
    vrf: u16,
    nat_rule: u16,
    backend: Option<u32>,
    /// Who is to stay with it.
    client: Option<Client>,
    /// Packets go there as they came.
    delivery: Option<u16>,
    /// The packet goes on in the other family.
    nat64: Option<&'a Nat64Rule>,
}

fn destination<'a>(
    tables: &'a Tables,
    question: &Question,
    from_zone: u8,
    bound: Option<Bound>,
    held: Option<Held>,
    trail: &mut impl Trail,
) -> Result<Option<Found<'a>>, DropReason> {
    let policy = &*tables.policy;
    if let Some(bound) = bound {
        let Bound { addr, port, vrf, delivery, .. } = bound;
        let nat64 = match addr.is_ipv4() == question.src.is_ipv4() || delivery.is_some() {
            true => None,
            false => {
                let rule = still_crosses(policy, question, from_zone, &bound);
                Some(rule.ok_or(DropReason::NatFamily)?)
            }
        };
        let (nat_rule, backend, client) = (NO_NAT_RULE, None, None);
        return Ok(Some(Found { addr, port, vrf, nat_rule, backend, client, delivery, nat64 }));
    }
    if let Some(service) = policy.services().find(question) {
        trail.note(|notes| notes.service = Some(service.slot));
        let backend = service.choose(&tables.backends, tables.settings.key, question, held);
        let backend = backend.map_err(|NoBackend| DropReason::NoBackend)?;
        return Ok(Some(Found {
            addr: backend.addr,
            port: backend.port.unwrap_or(question.dst_port),
            vrf: backend.vrf,
            nat_rule: NO_NAT_RULE,
            backend: Some(backend.slot),
            client: service.client(question),
            delivery: backend.delivery,
            nat64: None,
        }));
    }
    let nat = policy
        .destination(&Asked::at_ingress(question, from_zone))
        .map_err(|Untranslatable| DropReason::NatUntranslatable)?;
    if let Some(nat) = nat {
        let port = nat.port.unwrap_or(question.dst_port);
        let (addr, vrf, nat_rule) = (nat.addr, nat.vrf, nat.rule);
        let (backend, client, delivery) = (None, None, None);
        return Ok(Some(Found { addr, port, vrf, nat_rule, backend, client, delivery, nat64: None }));
    }
    if question.dst.is_ipv4() {
        return Ok(None);
    }
    let found = to_ipv4(policy, question, from_zone)?;
    Ok(found.map(|(addr, rule)| Found {
        addr: addr.into(),
        port: question.dst_port,
        vrf: rule.vrf,
        nat_rule: NO_NAT_RULE,
        backend: None,
        client: None,
        delivery: None,
        nat64: Some(rule),
    }))
}

/// The IPv4 destination of a packet to a prefix of NAT64, and the rule.
fn to_ipv4<'a>(
    policy: &'a Policy,
    question: &Question,
    from_zone: u8,
) -> Result<Option<(Ipv4Addr, &'a Nat64Rule)>, DropReason> {
    let asked = Asked::at_ingress(question, from_zone);
    let Some(rule) = policy.nat64_for(&asked) else { return Ok(None) };
    match policy.nat64_destination(&asked, rule) {
        Ok(addr) => Ok(Some((addr, rule))),
        Err(NotTaken::Loop) => Err(DropReason::MartianSource),
        Err(NotTaken::Protocol | NotTaken::Address) => Err(DropReason::Nat64Unsupported),
    }
}

/// The rule by which an IPv6 host reaches another's mapping of NAT64: it shows its own mapping there, so that answers
/// come back this way (RFC 6146 section 3.8).
fn back_through<'a>(
    policy: &'a Policy,
    question: &Question,
    from_zone: u8,
    pool: Option<u16>,
) -> Option<&'a Nat64Rule> {
    policy.nat64_of_pool(pool?).filter(|_| question.src.is_ipv6())?;
    policy.nat64_for(&Asked::at_ingress(question, from_zone))
}

/// The IPv4 address that a packet to a prefix of NAT64 is for, and its VRF slot.
pub(crate) fn behind_prefix(tables: &Tables, question: &Question) -> Option<(Ipv4Addr, u16)> {
    let from_zone =
        if question.ingress == NO_INTERFACE { SELF } else { tables.interface(question.ingress).zone };
    let (addr, rule) = to_ipv4(&tables.policy, question, from_zone).ok()??;
    Some((addr, rule.vrf))
}

/// The rule of a session that is bound to the other family already: it goes through the same prefix and pool.
fn still_crosses<'a>(
    policy: &'a Policy,
    question: &Question,
    from_zone: u8,
    bound: &Bound,
) -> Option<&'a Nat64Rule> {
    if question.src.is_ipv4() {
        return policy.nat64_of_pool(bound.pool?);
    }
    let (addr, rule) = to_ipv4(policy, question, from_zone).ok()??;
    (bound.addr == addr && bound.vrf == rule.vrf).then_some(rule)
}

/// True if the host that has a mapping in `pool` would use it towards whoever sends something to it: there may be
/// other zones than those the pool is for.
fn leads_out(policy: &Policy, asked: &Asked<'_>, question: &Question, pool: Option<u16>) -> bool {
    let real = asked.question;
    let out = Question {
        vrf: asked.to_vrf,
        ingress: asked.egress,
        src: real.dst,
        dst: question.src,
        src_port: real.dst_port,
        dst_port: question.src_port,
        ..*question
    };
    if let Some(rule) = pool.and_then(|pool| policy.nat64_of_pool(pool)) {
        return policy.nat64_is_for(rule, out.src, (asked.to_zone, out.ingress, out.vrf));
    }
    let out = Asked::new(&out, asked.to_zone, (asked.from_zone, question.ingress, question.vrf));
    matches!(policy.source(&out), SourceNat::Pool { pool: used, .. } if Some(used) == pool)
}
