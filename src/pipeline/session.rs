//! Sessions: the first packet of a flow, packets whose decision is stale, and ICMP errors about sessions.
//!
//! What [`super::decide`] says of the first packet is compiled into one flow per direction. What has to be
//! allocated (a NAT mapping, a place in the table) is allocated here and nowhere else.

use std::net::{IpAddr, Ipv4Addr};

use crate::affinity::Held;
use crate::config::Filtering;
use crate::flow::directory::NotHeld;
use crate::flow::nat::{Inside, Refused};
use crate::flow::proxy::{Proxy, Said};
use crate::flow::standing::{Standing, bearing};
use crate::flow::steering::{Loan, Request, Steering};
use crate::flow::{
    Address, Class, Flow, FlowTable, Flows, Full, Handle, Holdings, NextHop, Record, Tick, Tuple, due,
    flow_flags, pressure, record_flags, record_of, settle, tcp, timeout,
};
use crate::neighbours::{addr_key, ip_of, is_v4_key};
use crate::packet::view::{be16, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Pass, Verdict, checksum, flags};
use crate::pipeline::judge::{Ends, Judged, Stop, backend_fate, may_answer, outside, way_back};
use crate::pipeline::route::{self, Route};
use crate::pipeline::{
    Allowed, Context, Decision, Question, crossing, decide, flow, icmp_error, member_zones, peer, proxy,
    reassembly, relay,
};
use crate::tables::balance::BackendFate;
use crate::tables::bridge::is_scope;
use crate::tables::policy::{Action, Bound, DEFAULT_RULE, NO_NAT_RULE, Ruling, SourceNat};
use crate::tables::{NO_INTERFACE, Tables};
use crate::telemetry::events::{SessionEvent, SessionRecord};
use crate::telemetry::fates::Became;
use crate::telemetry::{WorkerCounters, add};

/// Decides one packet: it goes on with its verdict `Continue` and a flow, or it is settled.
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, flows: &mut Flows, now: Tick) {
    let result = match packet.meta.family {
        // Mapped addresses are how IPv6's table knows the IPv4 side of NAT64; on the wire there are none (RFC 4291
        // section 2.5.5.2).
        Family::Ipv6 if has_mapped_destination(packet) => Err(DropReason::MartianDestination),
        Family::Ipv4 if !is_of_nat64(packet, cx, flows) => decided::<u32>(packet, cx, flows, now),
        _ => decided::<u128>(packet, cx, flows, now),
    };
    packet.meta.verdict = result.unwrap_or_else(Verdict::Drop);
}

/// True if what an IPv4 packet belongs to is in IPv6's table: the outside of NAT64.
fn is_of_nat64(packet: &Packet, cx: &Context<'_>, flows: &Flows) -> bool {
    let (policy, meta) = (&cx.tables.policy, &packet.meta);
    if policy.nat64_of_address(meta.vrf, meta.dst_v4.into()).is_some() {
        return true;
    }
    // Sessions that have an address keep it (DESIGN.md section 3); for everything else it is one as any.
    policy.has_left_nat64(meta.vrf, meta.dst_v4.into()) && {
        let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
        let tuple: Tuple<u128> = flow::tuple_in(meta, l3);
        let icmp_type = l3.get(usize::from(meta.l4 - meta.l3)).filter(|_| meta.protocol == protocol::ICMP);
        meta.has(flags::FRAGMENT)
            || icmp_type.is_some_and(|icmp_type| icmp_error::is_error(meta.family, *icmp_type))
            || flows.v6.find(&tuple).is_some()
            || flows.nat.steering.as_ref().is_some_and(|steering| steering.find(&tuple).is_some())
    }
}

fn has_mapped_destination(packet: &Packet) -> bool {
    is_v4_key(u128::dst_of(&packet.frame.bytes()[usize::from(packet.meta.l3)..]))
}

fn decided<A: Table>(
    packet: &mut Packet,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    // What was found before may have ended since, by a packet before it in the burst: it is looked up again.
    packet.meta.flow = Handle::NONE;
    if packet.meta.has(flags::FRAGMENT) {
        return reassembly::step::<A>(packet, cx, flows, now);
    }
    whole::<A>(packet, cx, flows, now)
}

/// Decides a packet that has its upper-layer header: whole, or the first fragment of a datagram.
pub(super) fn whole<A: Table>(
    packet: &mut Packet,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    // TCP's tracker has a word of its own for that.
    if flow::is_cut(&packet.meta) && has_checksum(packet.meta.protocol) {
        return Err(DropReason::UpperHeaderCut);
    }
    if matches!(packet.meta.protocol, protocol::ICMP | protocol::ICMPV6) {
        let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
        let icmp_type = l3.get(usize::from(packet.meta.l4 - packet.meta.l3)).copied().unwrap_or(0);
        if icmp_error::is_error(packet.meta.family, icmp_type) {
            if cx.probes.expects(packet) {
                return Ok(Verdict::Punt);
            }
            return icmp_error::follow::<A>(packet, cx, flows);
        }
        if !flow::is_query(packet.meta.family, icmp_type) {
            return only_to_us(packet, cx);
        }
    }
    // A packet of the same flow before it in the burst may have made the session.
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let tuple: Tuple<A> = flow::tuple_in(&packet.meta, l3);
    let handle = A::table(flows).find(&tuple);
    if handle.is_some() {
        return match flow::take(packet, handle, A::table(flows), cx, now) {
            Verdict::Decide => renew::<A>(packet, handle, cx, flows, now),
            verdict => Ok(verdict),
        };
    }
    open(packet, &tuple, false, cx, flows, now)
}

/// What translation has to change behind the IP header, TCP left aside.
fn has_checksum(upper: u8) -> bool {
    use protocol::{DCCP, ICMP, ICMPV6, SCTP, UDP, UDP_LITE};
    matches!(upper, UDP | UDP_LITE | DCCP | SCTP | ICMP | ICMPV6)
}

/// Gives each family its table, so that everything here is written once.
pub trait Table: Address {
    /// The family's sessions, to change them.
    fn table(flows: &mut Flows) -> &mut FlowTable<Self>;
    /// The family's sessions.
    fn shared(flows: &Flows) -> &FlowTable<Self>;
    /// And what they hold.
    fn table_and_holdings(flows: &mut Flows) -> (&mut FlowTable<Self>, &mut Holdings);
}

impl Table for u32 {
    fn table(flows: &mut Flows) -> &mut FlowTable<u32> {
        &mut flows.v4
    }

    fn shared(flows: &Flows) -> &FlowTable<u32> {
        &flows.v4
    }

    fn table_and_holdings(flows: &mut Flows) -> (&mut FlowTable<u32>, &mut Holdings) {
        (&mut flows.v4, &mut flows.nat)
    }
}

impl Table for u128 {
    fn table(flows: &mut Flows) -> &mut FlowTable<u128> {
        &mut flows.v6
    }

    fn shared(flows: &Flows) -> &FlowTable<u128> {
        &flows.v6
    }

    fn table_and_holdings(flows: &mut Flows) -> (&mut FlowTable<u128>, &mut Holdings) {
        (&mut flows.v6, &mut flows.nat)
    }
}

/// ICMP that is neither query nor error (neighbour discovery, redirects ...) has no session: it is for us, or it
/// is not let through.
fn only_to_us(packet: &Packet, cx: &Context<'_>) -> Result<Verdict, DropReason> {
    if is_scope(packet.meta.vrf) {
        return Err(DropReason::FirewallDeny);
    }
    match route::decide(cx.tables, &question(packet)) {
        Ok(Route::Local) => Ok(Verdict::Punt),
        Err(DropReason::MulticastNotRouted | DropReason::LinkLocalNotRouted)
            if packet.meta.family == Family::Ipv6 =>
        {
            Ok(Verdict::Punt)
        }
        _ => Err(DropReason::FirewallDeny),
    }
}

/// The first packet as policy sees it.
pub(super) fn question(packet: &Packet) -> Question {
    let meta = &packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let l4 = l3.get(usize::from(meta.l4 - meta.l3)..).unwrap_or(&[]);
    let (src, dst, class) = match meta.family {
        Family::Ipv4 => (u32::src_of(l3).ip(), u32::dst_of(l3).ip(), l3[1]),
        _ => (u128::src_of(l3).ip(), u128::dst_of(l3).ip(), (be16(l3, 0) >> 4) as u8),
    };
    let is = |wanted: &[u8]| wanted.contains(&meta.protocol);
    Question {
        vrf: meta.vrf,
        ingress: meta.interface,
        src,
        dst,
        protocol: meta.protocol,
        src_port: meta.src_port,
        dst_port: meta.dst_port,
        dscp: class >> 2,
        tcp_flags: if is(&[protocol::TCP]) { l4.get(13).copied().unwrap_or(0) } else { 0 },
        icmp_type: if is(&[protocol::ICMP, protocol::ICMPV6]) { l4.first().copied().unwrap_or(0) } else { 0 },
    }
}

/// Opens a session, here or where it belongs. `goes_on`: a connection of TCP may be taken up in its midst.
fn open<A: Table>(
    packet: &mut Packet,
    tuple: &Tuple<A>,
    goes_on: bool,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    // What the gateway has asked for needs no rule; of an address that NAT has as well, it is from other ports.
    // So does what a relay is there for.
    let is_bridged = is_scope(packet.meta.vrf);
    if !is_bridged && (cx.probes.expects(packet) || relay::is_wanted(packet, cx)) {
        return Ok(Verdict::Punt);
    }
    if is_bridged && packet.meta.egress == NO_INTERFACE {
        return Ok(known_elsewhere(tuple, cx, flows).map_or(Verdict::Flood, Verdict::Elsewhere));
    }
    let mut question = question(packet);
    let proved = if is_bridged { None } else { proxy::proved(packet, tuple, cx) };
    if proved.is_some() {
        // As it was asked when the SYN came.
        question.tcp_flags = tcp::flags::SYN;
    }
    // A session that another worker has is none that begins.
    if cx.tables.pair_link.is_some() && !is_bridged && known_elsewhere(tuple, cx, flows).is_none() {
        let opens = question.protocol != protocol::TCP
            || proved.is_some()
            || goes_on
            || tcp::opens(question.tcp_flags);
        if let Some(verdict) = peer::first(packet, opens, cx)? {
            return Ok(verdict);
        }
    }
    if flows.nat.steering.is_none() {
        return open_here(packet, tuple, &question, (proved, goes_on), cx, flows, now);
    }
    if cx.pass != Pass::Handed
        && let Some(worker) = elsewhere(tuple, &question, packet.meta.egress, cx, flows)?
    {
        return Ok(Verdict::Elsewhere(worker));
    }
    let result = open_here(packet, tuple, &question, (proved, goes_on), cx, flows, now);
    if !matches!(result, Ok(Verdict::Continue | Verdict::Cross | Verdict::Borrow))
        && let Some(steering) = &flows.nat.steering
    {
        steering.disclaim(tuple);
    }
    result
}

/// The other worker that has a flow between members whose station nobody knows: rules can be asked about none that begins.
fn known_elsewhere<A: Table>(tuple: &Tuple<A>, cx: &Context<'_>, flows: &Flows) -> Option<u8> {
    let steering = flows.nat.steering.as_ref().filter(|_| cx.pass != Pass::Handed)?;
    steering.find(tuple).filter(|worker| *worker != steering.me())
}

/// What policy says of a first packet: `egress` is where it leaves if that is not for policy to say, from a bridge's member.
fn decide_first(cx: &Context<'_>, question: &Question, egress: u16, bound: Option<Bound>) -> Decision {
    if is_scope(question.vrf) {
        return member_zones::decide(cx.tables, question, egress, false);
    }
    decide(cx.tables, question, bound, held(question, cx))
}

/// The other worker that a flow belongs to of which this one knows nothing. From now on all its packets go there.
fn elsewhere<A: Table>(
    tuple: &Tuple<A>,
    question: &Question,
    egress: u16,
    cx: &Context<'_>,
    flows: &Flows,
) -> Result<Option<u8>, DropReason> {
    let Some(steering) = &flows.nat.steering else { return Ok(None) };
    let worker = match steering.find(tuple) {
        Some(worker) => worker,
        None => {
            let Some(wanted) = worker_for(question, egress, cx, flows, steering) else { return Ok(None) };
            steering.claim(tuple, wanted, cx.now).map_err(|_| DropReason::SessionTableFull)?
        }
    };
    Ok((worker != steering.me()).then_some(worker))
}

/// The worker that a new flow should have. `None`: nothing is remembered of it.
fn worker_for(
    question: &Question,
    egress: u16,
    cx: &Context<'_>,
    flows: &Flows,
    steering: &Steering,
) -> Option<u8> {
    let tables = cx.tables;
    let policy = &tables.policy;
    if let Some((dst, vrf)) = outside(tables, question)
        && policy.pool_of(vrf, dst).is_some()
        && let Some(worker) = flows.owner_of(vrf, dst, question.dst_port)
    {
        return Some(worker);
    }
    let Decision::Session(allowed) = decide_first(cx, question, egress, None) else { return None };
    let host_has_state =
        matches!(allowed.source, SourceNat::Pool { .. }) || policy.limits.per_host != u32::MAX;
    Some(if host_has_state { steering.of_host(question.vrf, question.src) } else { steering.me() })
}

/// What is remembered of who sends the first packet of a flow to a service.
fn held(question: &Question, cx: &Context<'_>) -> Option<Held> {
    let services = cx.tables.policy.services();
    if !services.has_affinity() {
        return None;
    }
    let client = services.find(question)?.client(question)?;
    cx.limits.clients.find(client, cx.now)
}

fn open_here<A: Table>(
    packet: &mut Packet,
    tuple: &Tuple<A>,
    question: &Question,
    (proved, goes_on): (Option<Proxy>, bool),
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    // An address of the NAT answers for its mappings first, then DNAT rules, then the host (DESIGN.md section 3).
    let mapped = mapped(cx.tables, flows, question);
    let bound = mapped.map(|mapped| mapped.bound);
    let allowed = match decide_first(cx, question, packet.meta.egress, bound) {
        Decision::Session(allowed) => allowed,
        Decision::Local(ruling) => {
            ruling.map_or(Ok(()), |ruling| note_ruling(ruling, question, packet, cx, flows))?;
            return Ok(Verdict::Punt);
        }
        Decision::Refused(ruling, reason) => {
            note_ruling(ruling, question, packet, cx, flows)?;
            // A rule that says no is policy, and policy is silent (RFC 5382 REQ-4a).
            if ruling.rule == DEFAULT_RULE {
                note_unsolicited(packet, question, proved.is_some(), cx);
            }
            return Err(reason);
        }
        Decision::Drop(DropReason::MulticastNotRouted | DropReason::LinkLocalNotRouted)
            if packet.meta.family == Family::Ipv6 =>
        {
            return Ok(Verdict::Punt);
        }
        Decision::Drop(reason) => {
            if reason == DropReason::NatNoMapping {
                note_unsolicited(packet, question, proved.is_some(), cx);
            }
            return Err(if packet.meta.has(flags::LINK_GROUP) && reason == DropReason::NoRoute {
                DropReason::LinkBroadcastNotForwarded
            } else {
                reason
            });
        }
        Decision::Forward { .. } => unreachable!("with a zone there is a session"),
    };
    if cx.tables.pair_link.is_some()
        && let Some(verdict) = peer::translated(packet, &allowed, cx)?
    {
        return Ok(verdict);
    }
    // Nothing is remembered of what will not be forwarded.
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let ttl = if packet.meta.family == Family::Ipv4 { l3[8] } else { l3[7] };
    // A bridge is no hop.
    let is_bridged = is_scope(question.vrf);
    if ttl <= 1 && !is_bridged {
        return Err(DropReason::TtlExpired);
    }
    if packet.meta.has(flags::LINK_GROUP) {
        return Err(DropReason::LinkBroadcastNotForwarded);
    }
    let mut tracker = tcp::Tcp::default();
    if tuple.protocol == protocol::TCP {
        let l4 = usize::from(packet.meta.l4 - packet.meta.l3);
        let payload = usize::from(packet.meta.ip_len) - l4;
        let segment =
            l3.get(l4..).and_then(|l4| tcp::Segment::parse(l4, payload)).ok_or(DropReason::TcpInvalid)?;
        let first = proved.map_or(segment, |proxy| proxy.syn());
        let loose = goes_on || cx.tables.policy.loose_tcp;
        let opened = match allowed.one_sided {
            true => tcp::Tcp::open_one_sided(&first),
            false => tcp::Tcp::open(&first, loose),
        };
        tracker = opened.map_err(flow::tcp_reason)?;
        let opens = proved.is_none() && tracker.state() == tcp::State::SynSent;
        // Numbers are not shifted between the families: NAT64 has its limits, but no cookies.
        let crosses = allowed.dst.is_ipv4() != question.src.is_ipv4();
        // Nor is the server heard of whom its client would have to be told.
        let has_cookies = !crosses && !allowed.one_sided && !is_bridged;
        if !has_cookies && proved.is_some() {
            return Err(DropReason::TcpNoSession);
        }
        if opens && has_cookies && proxy::is_wanted(allowed.from_zone, (allowed.dst, allowed.vrf), cx) {
            return proxy::ask(packet, tuple, allowed.egress, cx, flows);
        }
    }
    let loan = match (loan_needed(question, &allowed, cx.tables, flows), flows.nat.loans.given) {
        (None, _) => None,
        (Some(request), Some((given, loan))) if given == request => Some(loan),
        (Some(request), _) => {
            flows.nat.loans.requests.push(request);
            return Ok(Verdict::Borrow);
        }
    };
    let first = (tracker, proved.is_some());
    let handle = install(tuple, question, &allowed, mapped, loan, first, cx, flows, now)?;
    packet.meta.flow = Handle::NONE;
    if let Some(proxy) = proved {
        return Ok(proxy::begin::<A>(handle, proxy, packet, cx, flows));
    }
    let flow = A::table(flows).flow(handle);
    flow::note(&mut packet.meta, handle, flow);
    Ok(flow::onward(flow))
}

/// Marks a SYN to where an inside host might have, or might soon have, a mapping (RFC 5382 section 4.3): an address and a
/// port of a pool. Other ports of an address that we have ourselves are the gateway's own matter.
#[cold]
fn note_unsolicited(packet: &mut Packet, question: &Question, is_proved: bool, cx: &Context<'_>) {
    let policy = &*cx.tables.policy;
    if !policy.answer_unsolicited_syn || is_proved || !is_syn(&packet.meta, question.tcp_flags) {
        return;
    }
    let IpAddr::V4(dst) = question.dst else { return };
    let Some(pool) = policy.pool_of(question.vrf, dst) else { return };
    if policy.pools[usize::from(pool)].ports().contains(question.dst_port) {
        packet.meta.flags |= flags::UNSOLICITED;
    }
}

/// A whole TCP SYN of IPv4.
fn is_syn(meta: &Meta, tcp_flags: u8) -> bool {
    use tcp::flags::{ACK, FIN, RST, SYN};
    meta.family == Family::Ipv4
        && meta.protocol == protocol::TCP
        && !meta.has(flags::FRAGMENT)
        && tcp_flags & (SYN | ACK | FIN | RST) == SYN
}

/// What to ask another worker for: a mapping of an inside host that is its.
fn loan_needed(question: &Question, allowed: &Allowed, tables: &Tables, flows: &Flows) -> Option<Request> {
    let (SourceNat::Pool { pool, .. }, Some(steering)) = (allowed.source, &flows.nat.steering) else {
        return None;
    };
    let lender = steering.of_host(question.vrf, question.src);
    if lender == steering.me() {
        return None;
    }
    let only_peers = tables.policy.filtering == Filtering::AddressDependent;
    Some(Request {
        lender,
        pool: tables.policy.pools[usize::from(pool)].id(),
        vrf: question.vrf,
        src: question.src,
        upper: question.protocol,
        port: question.src_port,
        remote: (question.dst, question.dst_port),
        peer: only_peers.then_some(allowed.dst),
    })
}

/// Counts what a rule refused, or let through to the gateway itself.
fn note_ruling(
    ruling: Ruling,
    question: &Question,
    packet: &Packet,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<(), DropReason> {
    take_token(ruling, cx)?;
    if ruling.log {
        let source = (addr_key(question.src), question.src_port);
        let destination = (addr_key(question.dst), question.dst_port);
        flows.nat.session_events.push(SessionRecord {
            event: if ruling.action == Action::Allow { SessionEvent::Local } else { SessionEvent::Refused },
            time: cx.now,
            vrf: question.vrf,
            protocol: question.protocol,
            source,
            destination,
            new_source: source,
            new_destination: destination,
            rule: ruling.rule,
            packets: 1,
            bytes: packet.meta.ip_len.into(),
        });
    }
    if let Some(counters) = cx.counters.rules.get(ruling.rule as usize) {
        counters.hit(cx.now);
        counters.carried(1, u64::from(packet.meta.ip_len));
    }
    Ok(())
}

/// The token that a rule's `rate_limit` asks for.
pub(super) fn take_token(ruling: Ruling, cx: &Context<'_>) -> Result<(), DropReason> {
    let Some(limit) = ruling.limit.filter(|_| ruling.action == Action::Allow) else { return Ok(()) };
    let bucket = cx.limits.rules.get(ruling.rule as usize);
    let has_token = bucket.is_some_and(|bucket| bucket.take(limit.per_s, limit.burst, cx.now));
    if has_token { Ok(()) } else { Err(DropReason::RuleRateLimit) }
}

/// The token that the `rate_limit` of a session's zone asks for.
fn take_token_of_zone(zone: u8, cx: &Context<'_>) -> Result<(), DropReason> {
    let Some(limit) = cx.tables.policy.zones[usize::from(zone)].rate else { return Ok(()) };
    let has_token = cx.limits.zones[usize::from(zone)].take(limit.per_s, limit.burst, cx.now);
    if has_token { Ok(()) } else { Err(DropReason::ZoneRateLimit) }
}

/// What a packet to an address of a pool is bound to.
#[derive(Clone, Copy)]
struct Mapped {
    /// The mapping.
    id: u32,
    bound: Bound,
}

/// The mapping a packet is for.
fn mapped(tables: &Tables, flows: &Flows, question: &Question) -> Option<Mapped> {
    let (dst, vrf) = outside(tables, question)?;
    let pool = Some(tables.policy.pool_of(vrf, dst)?);
    let (inside, id) = flows.mapped(vrf, dst, question.protocol, question.dst_port)?;
    let addr = ip_of(inside.addr);
    let allowed = may_answer(&tables.policy, || flows.nat.knows_peer(id, question.src));
    Some(Mapped {
        id,
        bound: Bound {
            addr,
            port: inside.port,
            vrf: inside.vrf,
            translated: true,
            mapped: true,
            allowed,
            kept: false,
            pool,
            delivery: None,
        },
    })
}

/// Makes the session's flows.
#[expect(clippy::too_many_arguments, reason = "everything that is known of the new session")]
fn install<A: Table>(
    tuple: &Tuple<A>,
    question: &Question,
    allowed: &Allowed,
    mapped: Option<Mapped>,
    loan: Option<Loan>,
    (tracker, is_proved): (tcp::Tcp, bool),
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Handle, DropReason> {
    let policy = &*cx.tables.policy;
    let limit = policy.limits.per_host;
    let goes_to_ipv4 = question.src.is_ipv6() && allowed.dst.is_ipv4();
    // RFC 6888 REQ-5. Whoever begins it, but a mapping's host for who answers to that; a published server's clients are not hosts.
    let host = match mapped {
        Some(_) => Some((allowed.vrf, allowed.dst)),
        // Who goes to another address than it knows is a client of a published server, unless the other is its own in
        // IPv4.
        None if allowed.dst != question.dst && !goes_to_ipv4 || allowed.one_sided => None,
        None => Some((question.vrf, question.src)),
    };
    let host = host.filter(|_| limit != u32::MAX);
    if host.is_some_and(|(vrf, addr)| flows.nat.sessions_of(vrf, addr) >= limit) {
        return Err(DropReason::HostSessionLimit);
    }
    let way_back = match way_back(cx.tables, question) {
        Err(reason @ DropReason::SourceCheck) => return Err(reason),
        other => other,
    };
    // What a loose tracker takes up in the middle does not open, and whoever has proved itself is not in doubt.
    let opens = tracker.state() == tcp::State::SynSent && !is_proved;
    let zone = &policy.zones[usize::from(allowed.from_zone)];
    let half_open = (opens && zone.counts_half_open()).then_some(zone.half_open_per_destination);
    if half_open.is_some_and(|limit| cx.limits.half_open.count(allowed.dst, allowed.vrf) >= limit) {
        return Err(DropReason::HalfOpenLimit);
    }
    // Before anything is taken: who is not heard costs no token, and no port that would rest.
    if is_stranger_to::<A>(flows, opens, cx) && !flows.strangers.hear() {
        return Err(DropReason::NewFlowShed);
    }
    take_token(allowed.ruling, cx)?;
    take_token_of_zone(allowed.from_zone, cx)?;
    let has_ports = !matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6);
    let crosses = A::CROSSES && allowed.dst.is_ipv4() != question.src.is_ipv4();
    let in_table = if crosses { A::neutral } else { A::from_ip };
    let new_dst = in_table(allowed.dst).ok_or(DropReason::NatFamily)?;
    let mut leaves = Tuple {
        src: tuple.src,
        dst: new_dst,
        src_port: tuple.src_port,
        // Only these have their ports rewritten (others' checksums are not ours to mend).
        dst_port: match tuple.protocol {
            protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 => allowed.dst_port,
            _ => tuple.dst_port,
        },
        vrf: allowed.vrf,
        protocol: if crosses { crossing::crossed(tuple.protocol) } else { tuple.protocol },
        zero: 0,
    };
    let bound = mapped.map(|mapped| mapped.id);
    let mut mapping = None;
    let pool = match allowed.source {
        SourceNat::None => None,
        SourceNat::Static { addr, .. } => {
            leaves.src = in_table(addr).ok_or(DropReason::NatFamily)?;
            None
        }
        SourceNat::Pool { pool, .. } => Some(pool),
        SourceNat::Untranslatable => unreachable!("that is no decision for a session"),
    };
    if let Some(pool) = pool {
        let pool = &policy.pools[usize::from(pool)];
        let given = match loan {
            Some(loan) => loan.mapping,
            None => {
                let inside = Inside::of(question.vrf, question.src, question.protocol, question.src_port);
                let is_alone = !cx.neighbours.roles.has_peer();
                flows
                    .map((pool, is_alone), inside, cx.now)
                    .map_err(|refused| note_refused(refused, pool.id(), cx.counters))?
            }
        };
        mapping = Some(given.id);
        let outside = Ipv4Addr::from(given.addr);
        // From one IPv6 host to another, an address that IPv6 knows.
        let seen = match policy.nat64_of_address(pool.vrf(), outside).filter(|_| !crosses) {
            Some(rule) => rule.embed(outside),
            None => outside.into(),
        };
        let Some(src) = in_table(seen) else {
            release_own(mapping, loan, cx, flows);
            return Err(DropReason::NatFamily);
        };
        leaves.src = src;
        // Others show no port that could be another (SCTP's checksum is not ours to mend).
        if matches!(leaves.protocol, protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6) {
            leaves.src_port = given.port;
        }
    }
    if !has_ports {
        // The identifier is one number: the mapping's, of whichever side has one.
        let identifier = if mapping.is_some() { leaves.src_port } else { allowed.dst_port };
        (leaves.src_port, leaves.dst_port) = (identifier, identifier);
    }
    let epoch = cx.tables.flow_epoch();
    let back = leaves.reversed(allowed.vrf);
    let back_hash = A::shared(flows).hash(&back);
    A::shared(flows).prefetch(back_hash);
    let mut forward = compiled(tuple, &leaves, allowed.egress, allowed.via, question.ingress, epoch, now);
    let returns = tuple.reversed(question.vrf);
    let (egress, via) = way_back.unwrap_or((NO_INTERFACE, None));
    let mut reply = compiled(&back, &returns, egress, via, allowed.egress, epoch, now);
    reply.flags &= !flow_flags::SEEN;
    if allowed.backend.is_some() && !allowed.one_sided {
        // Whether it answers remains to be seen.
        forward.flags &= !flow_flags::SEEN;
    }
    if crosses {
        forward.flags |= flow_flags::CROSSES;
        reply.flags |= flow_flags::CROSSES;
    }
    let table = A::table(flows);
    let is_taken = table.find_hashed(back_hash, &back).is_some();
    let held = match &flows.nat.steering {
        _ if is_taken => Err(NotHeld::Taken),
        Some(steering) => steering.hold([tuple, &back], cx.now),
        None => Ok(()),
    };
    if let Err(not_held) = held {
        release_own(mapping, loan, cx, flows);
        return Err(match not_held {
            NotHeld::Taken => DropReason::FlowConflict,
            NotHeld::Full => DropReason::SessionTableFull,
        });
    }
    let record = Record {
        tcp: tracker,
        // A borrowed one is named once the session is there.
        mapping: Record::name(mapping.filter(|_| loan.is_none())),
        bound: Record::name(bound),
        backend: Record::name(allowed.backend),
        created: now,
        rule: allowed.ruling.rule,
        nat_rule: allowed.nat_rule,
        from_zone: allowed.from_zone,
        to_zone: allowed.to_zone,
        dscp: question.dscp,
        opened_with: if tuple.protocol == protocol::TCP { question.tcp_flags } else { question.icmp_type },
        flags: 0,
    };
    let due = now.after(timeout(&record, tuple.protocol, allowed.one_sided, &cx.tables.policy.timers));
    let inserted = admit::<A>(opens, half_open.map(|limit| (allowed, limit)), cx, flows).and_then(|()| {
        A::table(flows).insert([forward, reply], record, due).map_err(|Full| {
            if half_open.is_some() {
                cx.limits.half_open.remove(allowed.dst, allowed.vrf);
            }
            DropReason::SessionTableFull
        })
    });
    match inserted {
        Ok(session) => {
            let mut held = if half_open.is_some() { record_flags::HALF_OPEN_COUNTED } else { 0 };
            if let Some(loan) = loan {
                flows.nat.loans.given = None;
                let number = flows.nat.loans.keep(loan);
                A::table(flows).set_mapping(session, Record::name(Some(number)));
                held |= record_flags::BORROWED;
            }
            if host.is_some_and(|(vrf, addr)| flows.nat.count_host(vrf, addr)) {
                held |= record_flags::HOST_COUNTED;
            }
            if let Some(id) = mapping.filter(|_| loan.is_none())
                && policy.filtering == Filtering::AddressDependent
                && flows.nat.count_peer(id, allowed.dst)
            {
                held |= record_flags::PEER_COUNTED;
            }
            if allowed.ruling.log {
                held |= record_flags::LOGGED;
            }
            *A::table(flows).flags_mut(session) |= held;
            if allowed.ruling.log {
                let opened = record_of(A::shared(flows), session, SessionEvent::Opened, cx.now);
                flows.nat.session_events.push(opened);
            }
            bound.inspect(|id| flows.acquire(*id));
            if let (Some(client), Some(backend)) = (allowed.client, allowed.backend) {
                cx.limits.clients.note(client, backend, cx.now);
            }
            add(&cx.counters.sessions_opened, 1);
            let rule = cx.counters.rules.get(allowed.ruling.rule as usize);
            let nat_rule = cx.counters.nat_rules.get(usize::from(allowed.nat_rule));
            let backend = allowed.backend.and_then(|slot| cx.counters.backends.get(slot as usize));
            let backend = backend.map(|backend| &backend.flows);
            rule.into_iter().chain(nat_rule).chain(backend).for_each(|counted| counted.hit(cx.now));
            Ok(Handle::new(session, 0))
        }
        Err(refused) => {
            if let Some(steering) = &flows.nat.steering {
                let table: &FlowTable<A> = A::shared(flows);
                steering.release([tuple, &back], table);
            }
            release_own(mapping, loan, cx, flows);
            Err(refused)
        }
    }
}

/// True if as many TCP connections open as may, and this is another.
fn too_many_open(flows: &Flows, opens: bool, cx: &Context<'_>) -> bool {
    let limit = cx.tables.policy.limits.half_open;
    opens && limit != u32::MAX && flows.opening() >= flows.share_of(limit)
}

/// True if one more session needs another one's place.
fn is_stranger_to<A: Table>(flows: &Flows, opens: bool, cx: &Context<'_>) -> bool {
    too_many_open(flows, opens, cx) || A::shared(flows).is_full()
}

/// Sees to it that there is room for one more session, at the expense of the oldest that nobody has answered to. `opens`:
/// it is TCP that begins; `half_open`: where to, and how many may open to there. Behind it only [`FlowTable::insert`]
/// comes.
fn admit<A: Table>(
    opens: bool,
    half_open: Option<(&Allowed, u32)>,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<(), DropReason> {
    if too_many_open(flows, opens, cx)
        && !flows.make_room_among_opening(&cx.tables.policy.timers, cx.now, cx.counters)
    {
        return Err(DropReason::HalfOpenLimit);
    }
    if !has_room::<A>(cx, flows) {
        return Err(DropReason::SessionTableFull);
    }
    match half_open {
        Some((to, limit)) if !cx.limits.half_open.add(to.dst, to.vrf, limit) => {
            Err(DropReason::HalfOpenLimit)
        }
        _ => Ok(()),
    }
}

/// True if there is room for one more session that is established, if need be in the place of one that is not.
pub(super) fn has_room<A: Table>(cx: &Context<'_>, flows: &mut Flows) -> bool {
    let (table, nat) = A::table_and_holdings(flows);
    !table.is_full()
        || pressure::make_room(table, nat, &Class::ALL, &cx.tables.policy.timers, cx.now, cx.counters)
}

/// Gives a mapping back that no session has come about for; what is borrowed goes back with what is left of its packet.
fn release_own(mapping: Option<u32>, loan: Option<Loan>, cx: &Context<'_>, flows: &mut Flows) {
    if loan.is_none() {
        mapping.inspect(|id| flows.release(*id, cx.now));
    }
}

/// Counts what a pool has refused.
pub fn note_refused(refused: Refused, pool: u16, counters: &WorkerCounters) -> DropReason {
    counters.pools.get(usize::from(pool)).inspect(|pool| pool.refuse(refused as usize));
    match refused {
        Refused::HostQuota => DropReason::NatHostQuota,
        Refused::HostRate => DropReason::NatHostRate,
        Refused::PoolExhausted | Refused::AddressExhausted | Refused::NotSubscriber => {
            DropReason::NatPoolExhausted
        }
        Refused::TableFull => DropReason::SessionTableFull,
    }
}

/// Ends a session before its time.
pub(super) fn end<A: Table>(session: u32, cx: &Context<'_>, flows: &mut Flows) {
    let (table, nat) = A::table_and_holdings(flows);
    crate::flow::end(table, nat, session, cx.now, cx.counters);
}

/// One direction, compiled.
pub(super) fn compiled<A: Address>(
    comes: &Tuple<A>,
    leaves: &Tuple<A>,
    egress: u16,
    via: Option<u32>,
    ingress: u16,
    epoch: u32,
    now: Tick,
) -> Flow<A> {
    let mut flow = Flow {
        tuple: *comes,
        new_src: leaves.src,
        new_dst: leaves.dst,
        new_src_port: leaves.src_port,
        new_dst_port: leaves.dst_port,
        egress,
        ingress,
        epoch,
        bytes: 0,
        last_seen: now,
        packets_low: 0,
        packets_high: 0,
        l4_delta: 0,
        ip_delta: 0,
        next_hop: NextHop::of(via),
        flags: flow_flags::SEEN,
        note: 0,
    };
    if comes.protocol == protocol::TCP {
        flow.flags |= flow_flags::TCP;
    }
    let same = comes.src == leaves.src
        && comes.dst == leaves.dst
        && comes.src_port == leaves.src_port
        && comes.dst_port == leaves.dst_port;
    if !same {
        flow.flags |= flow_flags::TRANSLATED;
        let addrs = A::difference(comes.src, leaves.src) + A::difference(comes.dst, leaves.dst);
        let port = |old: u16, new: u16| u64::from(!old) + u64::from(new);
        let ports = match comes.protocol {
            // The identifier stands for both ports, and once in the message.
            protocol::ICMP | protocol::ICMPV6 => port(comes.src_port, leaves.src_port),
            _ => port(comes.src_port, leaves.src_port) + port(comes.dst_port, leaves.dst_port),
        };
        // All ones is nothing: what NPTv6 does not change stays as it came, also a sum of either zero.
        let gained = |sum: u64| Some(checksum::fold(sum)).filter(|sum| *sum != 0xffff).unwrap_or(0);
        flow.ip_delta = gained(addrs);
        // ICMP for IPv4 sums no addresses (RFC 792).
        flow.l4_delta = gained(if comes.protocol == protocol::ICMP { ports } else { addrs + ports });
    }
    flow
}

/// A session whose decision is older than the tables, or a packet of it that came in elsewhere than expected.
fn renew<A: Table>(
    packet: &mut Packet,
    handle: Handle,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    // Only who speaks to the backend can be told, or led to another: what comes from it condemns the session.
    let fate =
        if handle.direction() == 0 { fate::<A>(handle.session(), cx, flows) } else { BackendFate::Keep };
    if fate != BackendFate::Keep {
        // Who opens anew has given up what was there before (RFC 9293 section 3.6.1): another backend takes that, and a
        // reset would be of the new one.
        let opens = tcp::opens(question(packet).tcp_flags);
        packet.meta.flow = Handle::NONE;
        note_end::<A>(handle.session(), cx, flows);
        if !opens && !is_condemned::<A>(handle.session(), flows) {
            note_lost::<A>(handle.session(), cx, flows);
        }
        end::<A>(handle.session(), cx, flows);
        if fate == BackendFate::Reset && !opens {
            return Err(DropReason::BackendFailed);
        }
        let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
        let tuple: Tuple<A> = flow::tuple_in(&packet.meta, l3);
        return open(packet, &tuple, true, cx, flows, now);
    }
    refresh::<A>(handle, packet.meta.interface, cx, flows)?;
    match flow::take(packet, handle, A::table(flows), cx, now) {
        // Epoch and ingress were just set: a SYN on the tuple of a connection that has ended. The new one is
        // decided as any (RFC 9293 section 3.6.1).
        Verdict::Decide => {
            packet.meta.flow = Handle::NONE;
            end::<A>(handle.session(), cx, flows);
            let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
            let tuple: Tuple<A> = flow::tuple_in(&packet.meta, l3);
            open(packet, &tuple, false, cx, flows, now)
        }
        verdict => Ok(verdict),
    }
}

/// What becomes of a session for what has happened to its backend since it was decided.
fn fate<A: Table>(session: u32, cx: &Context<'_>, flows: &Flows) -> BackendFate {
    let table = A::shared(flows);
    let flow = table.flow(Handle::new(session, 0));
    backend_fate(cx.tables, table.record(session).backend(), flow.epoch, flow.tuple.protocol)
}

/// Counts a session that its backend loses.
fn note_lost<A: Table>(session: u32, cx: &Context<'_>, flows: &Flows) {
    let backend = A::shared(flows).record(session).backend();
    backend.and_then(|slot| cx.counters.backends.get(slot as usize)).inspect(|backend| add(&backend.lost, 1));
}

/// Counts what has become of a session, for the change that it was decided again for.
fn note_fate<A: Table>(session: u32, became: Became, cx: &Context<'_>, flows: &Flows) {
    let generation = cx.tables.decided_for(&bearing(A::shared(flows), session));
    cx.counters.fates.note(generation, became);
}

/// The same of one that a packet ends, unless it was found before.
fn note_end<A: Table>(session: u32, cx: &Context<'_>, flows: &Flows) {
    if !is_condemned::<A>(session, flows) {
        note_fate::<A>(session, Became::Ended, cx, flows);
    }
}

fn is_condemned<A: Table>(session: u32, flows: &Flows) -> bool {
    A::shared(flows).flags(session) & record_flags::CONDEMNED != 0
}

/// Makes the decision of a flow good for a packet that came in by `interface`.
pub(super) fn refresh<A: Table>(
    handle: Handle,
    interface: u16,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<(), DropReason> {
    let is_undecided = A::table(flows).flow(handle).ingress == NO_INTERFACE;
    if is_undecided && interface != NO_INTERFACE {
        // The peer, or the process before, has told of it, and nothing here has allowed it yet: only its decision says where
        // replies come in.
        bring_up_to_date::<A>(handle.session(), cx, flows)?;
    }
    let flow = A::table(flows).flow(handle);
    if flow.ingress != interface {
        if flow.ingress == NO_INTERFACE {
            return Err(DropReason::SourceCheck);
        }
        // Another way in is taken only in the same zone and VRF; the source stage has passed it.
        let (was, is) = (cx.tables.interface(flow.ingress), cx.tables.interface(interface));
        if was.zone != is.zone || was.vrf != is.vrf {
            return Err(DropReason::SourceCheck);
        }
    }
    bring_up_to_date::<A>(handle.session(), cx, flows)?;
    // Last: deciding again expects replies where the session leaves.
    let table = A::table(flows);
    let flow = table.flow_mut(handle);
    flow.ingress = interface;
    if is_scope(flow.tuple.vrf) {
        // There the station is now.
        table.flow_mut(handle.other()).egress = interface;
    }
    Ok(())
}

/// Asks policy again about a session that a change may matter to, because of a packet of it: it goes on as policy says
/// now, or it ends.
pub(super) fn bring_up_to_date<A: Table>(
    session: u32,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<(), DropReason> {
    if is_current(session, cx.tables, A::table(flows)) {
        return Ok(());
    }
    match judge::<A>(session, cx, flows) {
        Ok(judged) => {
            let has_moved = adopt::<A>(session, &judged, cx, flows);
            let counters = cx.counters;
            add(if has_moved { &counters.sessions_asked_moved } else { &counters.sessions_asked_kept }, 1);
            note_fate::<A>(session, if has_moved { Became::Moved } else { Became::Kept }, cx, flows);
            Ok(())
        }
        Err(Stop::Waits) => Err(DropReason::PortDown),
        Err(Stop::Ends(ends)) => {
            add(&cx.counters.sessions_asked_ended, 1);
            note_end::<A>(session, cx, flows);
            let reason = lost_to::<A>(session, ends, cx, flows);
            match reason {
                DropReason::BackendFailed => {
                    if condemn::<A>(session, cx, flows) {
                        note_lost::<A>(session, cx, flows);
                    }
                }
                // It stays for a while, so that both ends hear of it, whoever sends.
                DropReason::PolicyReset => {
                    if condemn::<A>(session, cx, flows) {
                        tell_both::<A>(session, flows);
                    }
                }
                _ => end::<A>(session, cx, flows),
            }
            Err(reason)
        }
    }
}

/// True if nothing has changed that a session's decision follows from. It is then as good as made by these tables.
fn is_current<A: Address>(session: u32, tables: &Tables, table: &mut FlowTable<A>) -> bool {
    let newest = tables.flow_epoch();
    // Both flows of a session have the same.
    let epoch = table.flow(Handle::new(session, 0)).epoch;
    if epoch == newest {
        return true;
    }
    let holds = tables.still_holds(epoch, &bearing(table, session));
    if holds {
        for direction in [0, 1] {
            table.flow_mut(Handle::new(session, direction)).epoch = newest;
        }
    }
    holds
}

/// What became of a session when its policy was looked at without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its decision is of these tables already, or nothing it follows from has changed.
    Current,
    /// Decided anew, as before.
    Kept,
    /// Another rule, egress or next hop.
    Moved,
    /// Not allowed any more: its next packet ends it, with what its sender is to be told (DESIGN.md section 3), and
    /// if none comes its time is soon over.
    Condemned,
}

/// Asks policy again about a session that may be idle.
pub fn review<A: Table>(session: u32, cx: &Context<'_>, flows: &mut Flows) -> Fate {
    if is_current(session, cx.tables, A::table(flows)) {
        return Fate::Current;
    }
    match judge::<A>(session, cx, flows) {
        Ok(judged) => {
            let has_moved = adopt::<A>(session, &judged, cx, flows);
            note_fate::<A>(session, if has_moved { Became::Moved } else { Became::Kept }, cx, flows);
            if has_moved { Fate::Moved } else { Fate::Kept }
        }
        Err(Stop::Waits) => Fate::Current,
        // It is the peer's as long as nothing of it comes here, and the peer says when it ends. What comes is asked about.
        Err(_) if crate::flow::is_untouched(A::shared(flows), session) => Fate::Current,
        Err(Stop::Ends(ends)) if condemn::<A>(session, cx, flows) => {
            note_fate::<A>(session, Became::Ended, cx, flows);
            match lost_to::<A>(session, ends, cx, flows) {
                DropReason::BackendFailed => note_lost::<A>(session, cx, flows),
                DropReason::PolicyReset => tell_both::<A>(session, flows),
                _ => {}
            }
            Fate::Condemned
        }
        Err(_) => Fate::Current,
    }
}

/// What the next packet of a session that ends is lost to.
fn lost_to<A: Table>(session: u32, ends: Ends, cx: &Context<'_>, flows: &Flows) -> DropReason {
    let epoch = A::shared(flows).flow(Handle::new(session, 0)).epoch;
    super::judge::lost_to(cx.tables, ends, epoch)
}

/// Tells both ends of a TCP connection that it is over, with the numbers that were seen last: who has sent or got more since
/// answers, and is told exactly then (RFC 5961 section 3.2). Who has numbers of his own from the gateway is told then alone.
#[cold]
fn tell_both<A: Table>(session: u32, flows: &mut Flows) {
    let table = A::table(flows);
    let [forward, reply] = [0, 1].map(|direction| *table.flow(Handle::new(session, direction)));
    if !forward.has(flow_flags::TCP) || forward.has(flow_flags::CROSSES) {
        return;
    }
    let Some([to_reply, to_original]) = table.tcp(session).last_numbers() else { return };
    for (tuple, (seq, ack)) in [
        (reply.tuple.reversed(reply.tuple.vrf), to_reply),
        (forward.tuple.reversed(forward.tuple.vrf), to_original),
    ] {
        table.say(Said::along(&tuple, seq, ack, tcp::flags::RST | tcp::flags::ACK, 0));
    }
}

/// Asks policy about a session, as if its first packet came now; what is bound stays bound. Changes nothing.
pub(super) fn judge<A: Table>(session: u32, cx: &Context<'_>, flows: &Flows) -> Result<Judged, Stop> {
    super::judge::judge(cx.tables, &Standing::of(A::shared(flows), &flows.nat, session))
}

/// Gives a session what policy says now. True if it is something else than before.
pub(super) fn adopt<A: Table>(session: u32, judged: &Judged, cx: &Context<'_>, flows: &mut Flows) -> bool {
    let Judged { allowed, back: (egress, via), kept } = *judged;
    let epoch = cx.tables.flow_epoch();
    let table = A::table(flows);
    let forward = table.flow_mut(Handle::new(session, 0));
    let before = (forward.egress, forward.next_hop);
    (forward.egress, forward.next_hop, forward.epoch) = (allowed.egress, NextHop::of(allowed.via), epoch);
    forward.flags = forward.flags & !flow_flags::KEPT | if kept { flow_flags::KEPT } else { 0 };
    let mut moved = before != (forward.egress, forward.next_hop);
    let reply = table.flow_mut(Handle::new(session, 1));
    (reply.ingress, reply.epoch) = (allowed.egress, epoch);
    (reply.egress, reply.next_hop) = (egress, NextHop::of(via));
    let record = table.record(session);
    if record.flags & record_flags::CONDEMNED != 0 {
        *table.flags_mut(session) &= !record_flags::CONDEMNED;
        let due = due(table, session, &cx.tables.policy.timers);
        table.rearm(session, due);
    }
    let nat_rule = if allowed.nat_rule == NO_NAT_RULE { record.nat_rule } else { allowed.nat_rule };
    if record.rule != allowed.ruling.rule || record.nat_rule != nat_rule {
        // What it carried so far was for the rules before.
        settle(table, session, cx.counters);
        table.set_rules(session, allowed.ruling.rule, nat_rule);
        moved = true;
    }
    moved
}

/// Leaves a session to its next packet, for which its decision is out of date, and to a timer that is short. False: it
/// was left so before.
fn condemn<A: Table>(session: u32, cx: &Context<'_>, flows: &mut Flows) -> bool {
    let table = A::table(flows);
    if table.flags(session) & record_flags::CONDEMNED != 0 {
        return false;
    }
    *table.flags_mut(session) |= record_flags::CONDEMNED;
    table.flow_mut(Handle::new(session, 0)).last_seen = Tick::of(cx.now);
    let due = due(table, session, &cx.tables.policy.timers);
    table.rearm(session, due);
    true
}
