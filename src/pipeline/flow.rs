//! Flow: finds the session a packet belongs to, checks what may change under it, and takes the decision that was
//! compiled for it: egress, next hop, translation. What is not found, or was decided by other tables than the
//! burst's, is decided anew ([`super::session`]).
//!
//! Lookups of a burst overlap: hash and fetch the index line, fetch the flow, compare. A plain packet whose session says
//! all that there is to know is translated and on its way at once ([`plain::depart`]). To others nothing is written here:
//! what fails a later check leaves untouched, and translation is the last stage's work.

use arrayvec::ArrayVec;

use crate::flow::backend;
use crate::flow::nat::Inside;
use crate::flow::steering::Steering;
use crate::flow::{Address, Flow, FlowTable, Flows, Handle, Tick, Tuple, due, flow_flags, pressure, tcp};
use crate::mem::BURST;
use crate::packet::view::{be16, protocol};
use crate::packet::{Burst, DropReason, Family, Meta, Packet, Verdict, flags, positions};
use crate::pipeline::{Context, peer, plain, proxy, session};

/// Bytes that a UDP, UDP-Lite, DCCP, SCTP or ICMP header has at least, and more than the ports need.
const UPPER_HEADER_BYTES: u16 = 8;

/// Lookups under way, by position in the burst.
pub(super) struct Lookups {
    hashes: [u64; BURST],
    candidates: [Handle; BURST],
    /// One bit per packet that has one.
    pending: u64,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups { hashes: [0; BURST], candidates: [Handle::NONE; BURST], pending: 0 }
    }
}

/// Begins the lookup of a packet whose ingress has a zone.
#[inline(always)]
pub(super) fn begin(packet: &mut Packet, index: usize, flows: &Flows, lookups: &mut Lookups) {
    let meta = &packet.meta;
    if meta.verdict != Verdict::Continue || !meta.has(flags::STATEFUL) {
        return;
    }
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    if meta.has(flags::FRAGMENT)
        || is_cut(meta)
        || is_icmp(meta.protocol) && !note_identifier(&mut packet.meta, l3)
    {
        packet.meta.verdict = Verdict::Decide;
        lookups.pending |= 1 << index;
        return;
    }
    let meta = &packet.meta;
    lookups.hashes[index] = match meta.family {
        Family::Ipv4 => hash_and_fetch(&flows.v4, meta, l3),
        _ => hash_and_fetch(&flows.v6, meta, l3),
    };
    lookups.pending |= 1 << index;
}

/// The same for a plain packet of IPv4: it is whole, and there is more of it than its ports.
#[inline(always)]
pub(super) fn begin_plain(packet: &mut Packet, index: usize, flows: &Flows, lookups: &mut Lookups) {
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    lookups.pending |= 1 << index;
    if packet.meta.protocol == protocol::ICMP && !note_identifier(&mut packet.meta, l3) {
        packet.meta.verdict = Verdict::Decide;
        return;
    }
    lookups.hashes[index] = hash_and_fetch(&flows.v4, &packet.meta, l3);
}

#[inline(always)]
fn hash_and_fetch<A: Address>(table: &FlowTable<A>, meta: &Meta, l3: &[u8]) -> u64 {
    let hash = table.hash(&tuple_of(meta, l3));
    table.prefetch(hash);
    hash
}

/// The packet ends where every upper-layer header goes on. What lies behind it in the frame is Ethernet's padding and
/// says nothing.
#[inline(always)]
pub(super) fn is_cut(meta: &Meta) -> bool {
    meta.ip_len < meta.l4 - meta.l3 + UPPER_HEADER_BYTES
}

/// The tuple of a packet that is no fragment.
#[inline(always)]
pub(super) fn tuple_of<A: Address>(meta: &Meta, l3: &[u8]) -> Tuple<A> {
    Tuple {
        src: A::src_of(l3),
        dst: A::dst_of(l3),
        src_port: meta.src_port,
        dst_port: meta.dst_port,
        vrf: meta.vrf,
        protocol: meta.protocol,
        zero: 0,
    }
}

/// The same, also of a packet of IPv4 in IPv6's table.
pub(super) fn tuple_in<A: Address>(meta: &Meta, l3: &[u8]) -> Tuple<A> {
    Tuple {
        src: A::src_in(meta.family, l3),
        dst: A::dst_in(meta.family, l3),
        src_port: meta.src_port,
        dst_port: meta.dst_port,
        vrf: meta.vrf,
        protocol: meta.protocol,
        zero: 0,
    }
}

#[inline(always)]
fn is_icmp(upper: u8) -> bool {
    upper == protocol::ICMP || upper == protocol::ICMPV6
}

/// ICMP queries are found by their identifier, which stands for both ports. False: it is no query.
fn note_identifier(meta: &mut Meta, l3: &[u8]) -> bool {
    let l4 = usize::from(meta.l4 - meta.l3);
    let Some(message) = l3.get(l4..l4 + 8) else { return false };
    if !is_query(meta.family, message[0]) {
        return false;
    }
    let identifier = be16(message, 4);
    (meta.src_port, meta.dst_port) = (identifier, identifier);
    true
}

/// Echo, timestamp and address mask (RFC 792, RFC 950), request and reply; echo of ICMPv6 (RFC 4443 section 4).
pub(super) fn is_query(family: Family, icmp_type: u8) -> bool {
    match family {
        Family::Ipv4 => matches!(icmp_type, 0 | 8 | 13 | 14 | 17 | 18),
        _ => matches!(icmp_type, 128 | 129),
    }
}

/// Ends the lookups of the burst. Those of the `plain` packets whose session says all that there is to know depart:
/// returns which, one bit per packet.
#[inline(always)]
pub(super) fn run(
    burst: &mut Burst,
    cx: &Context<'_>,
    flows: &mut Flows,
    lookups: &mut Lookups,
    plain: u64,
) -> u64 {
    let mut sent = 0;
    if cx.tables.pair_link.is_some() && cx.neighbours.roles.is_any_elsewhere() {
        sent = peer::step(burst, &mut lookups.pending, cx, flows);
    }
    if lookups.pending == 0 {
        return sent;
    }
    sent | finish(burst, cx, flows, lookups, plain)
}

#[inline(never)]
fn finish(burst: &mut Burst, cx: &Context<'_>, flows: &mut Flows, lookups: &mut Lookups, plain: u64) -> u64 {
    for index in positions(lookups.pending) {
        let meta = &burst[index].meta;
        if meta.verdict == Verdict::Continue {
            lookups.candidates[index] = match meta.family {
                Family::Ipv4 => fetch(&flows.v4, lookups.hashes[index], meta),
                _ => fetch(&flows.v6, lookups.hashes[index], meta),
            };
        }
    }
    let now = Tick::of(cx.now);
    let (mut undecided, mut sent) = (0u64, 0u64);
    let mut hops = plain::Hops::new(true, cx);
    for index in positions(lookups.pending) {
        let packet = &mut burst[index];
        if packet.meta.verdict == Verdict::Continue {
            let (candidate, hash) = (lookups.candidates[index], lookups.hashes[index]);
            packet.meta.verdict = match packet.meta.family {
                Family::Ipv4 => follow(packet, candidate, hash, &mut flows.v4, cx, now),
                _ => follow(packet, candidate, hash, &mut flows.v6, cx, now),
            };
        }
        if packet.meta.verdict == Verdict::Decide {
            undecided |= 1 << index;
            if let Some(steering) = &flows.nat.steering {
                look_ahead(packet, steering);
            }
        } else if plain & 1 << index != 0 {
            sent |= depart(packet, flows, &mut hops) << index;
        }
    }
    if undecided & undecided.wrapping_sub(1) != 0 && !cx.tables.policy.pools.is_empty() {
        look_inside(burst, undecided, flows);
    }
    for index in positions(undecided) {
        session::step(&mut burst[index], cx, flows, now);
        if let Verdict::ToPeer(why) = burst[index].meta.verdict {
            peer::send(&mut burst[index], why, cx);
            sent |= u64::from(burst[index].meta.verdict == Verdict::Forward) << index;
            continue;
        }
        if plain & 1 << index != 0 {
            sent |= depart(&mut burst[index], flows, &mut hops) << index;
        }
    }
    hops.finish();
    sent
}

/// 1 if the packet is on its way, 0 if the other stages have to look at it.
#[inline(always)]
fn depart(packet: &mut Packet, flows: &mut Flows, hops: &mut plain::Hops<'_>) -> u64 {
    let meta = &packet.meta;
    let may = meta.verdict == Verdict::Continue && meta.flow.is_some();
    u64::from(may && plain::depart(packet, &mut flows.v4, &mut flows.identifications, hops))
}

/// Most packets that this worker knows no session for are another's: fetches the place where that stands.
fn look_ahead(packet: &Packet, steering: &Steering) {
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    match packet.meta.family {
        Family::Ipv4 => steering.prefetch(&tuple_of::<u32>(&packet.meta, l3)),
        _ => steering.prefetch(&tuple_of::<u128>(&packet.meta, l3)),
    }
}

/// Who sends first packets may need NAT mappings.
#[inline(never)]
fn look_inside(burst: &Burst, undecided: u64, flows: &Flows) {
    let packets = positions(undecided).map(|index| &burst[index]);
    let of_v4 =
        packets.filter(|Packet { meta, .. }| meta.family == Family::Ipv4 && !meta.has(flags::FRAGMENT));
    let insides: ArrayVec<Inside, BURST> = of_v4
        .map(|Packet { frame, meta }| {
            let src = u32::src_of(&frame.bytes()[usize::from(meta.l3)..]);
            Inside::of(meta.vrf, src.ip(), meta.protocol, meta.src_port)
        })
        .collect();
    flows.look_ahead(&insides);
}

#[inline(always)]
fn fetch<A: Address>(table: &FlowTable<A>, hash: u64, meta: &Meta) -> Handle {
    let candidate = table.candidate(hash);
    if meta.protocol == protocol::TCP {
        table.prefetch_tcp(candidate.session());
    }
    candidate
}

#[inline(always)]
fn follow<A: Address>(
    packet: &mut Packet,
    candidate: Handle,
    hash: u64,
    table: &mut FlowTable<A>,
    cx: &Context<'_>,
    now: Tick,
) -> Verdict {
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let handle = table.confirm(candidate, hash, &tuple_of(&packet.meta, l3));
    if !handle.is_some() {
        return Verdict::Decide;
    }
    take(packet, handle, table, cx, now)
}

/// Takes the decision of a live flow, unless it has to be made anew.
#[inline(always)]
pub(super) fn take<A: Address>(
    packet: &mut Packet,
    handle: Handle,
    table: &mut FlowTable<A>,
    cx: &Context<'_>,
    now: Tick,
) -> Verdict {
    let flow = table.flow(handle);
    if flow.epoch != cx.tables.flow_epoch() || flow.ingress != packet.meta.interface {
        packet.meta.flow = handle;
        return Verdict::Decide;
    }
    if flow.has(flow_flags::TCP | flow_flags::PROXIED) {
        let is_proxied = flow.has(flow_flags::PROXIED);
        let tracked =
            if is_proxied { proxy::track(packet, handle, table) } else { track(packet, handle, table) };
        match tracked {
            Tracked::Same => {}
            // Its idle time goes on (RFC 7857 section 7.1).
            Tracked::Passed => {
                note(&mut packet.meta, handle, table.flow(handle));
                return onward(table.flow(handle));
            }
            // Another state has another idle time.
            Tracked::Changed => change(table, handle, cx, now),
            Tracked::Answered { has_changed } => {
                if has_changed {
                    table.flow_mut(handle).flags |= flow_flags::SEEN;
                    change(table, handle, cx, now);
                }
                return Verdict::Answered;
            }
            Tracked::Reopened => {
                packet.meta.flow = handle;
                return Verdict::Decide;
            }
            Tracked::Lost(reason) => {
                if !catch_up(packet, handle, table, cx, now) {
                    return Verdict::Drop(reason);
                }
            }
        }
    }
    if !table.flow(handle).has(flow_flags::SEEN) {
        first_seen(table, handle, cx, now);
    }
    let flow = table.flow_mut(handle);
    flow.last_seen = now;
    note(&mut packet.meta, handle, flow);
    onward(flow)
}

/// A packet that its connection does not take, because the connection went on elsewhere: another node was the Active, and
/// one direction at least has not been seen since. Its numbers are learned again, as those of one that the other node has
/// told of. False: it is as wrong as it seemed.
#[cold]
#[inline(never)]
fn catch_up<A: Address>(
    packet: &Packet,
    handle: Handle,
    table: &mut FlowTable<A>,
    cx: &Context<'_>,
    now: Tick,
) -> bool {
    let Some(changed) = cx.neighbours.roles.changed() else { return false };
    let session = handle.session();
    let seen = [0, 1].map(|direction| table.flow(Handle::new(session, direction)).last_seen);
    if seen[0].min(seen[1]) > Tick::of(changed) {
        return false;
    }
    let tracker = table.tcp_mut(session);
    *tracker = tracker.resume();
    let is_proxied = table.flow(handle).has(flow_flags::PROXIED);
    match if is_proxied { proxy::track(packet, handle, table) } else { track(packet, handle, table) } {
        Tracked::Same | Tracked::Passed => true,
        Tracked::Changed => {
            change(table, handle, cx, now);
            true
        }
        Tracked::Reopened | Tracked::Answered { .. } | Tracked::Lost(_) => false,
    }
}

/// The first packet of a session's other direction, or one to a backend of which it is not known whether it answers.
#[cold]
#[inline(never)]
fn first_seen<A: Address>(table: &mut FlowTable<A>, handle: Handle, cx: &Context<'_>, now: Tick) {
    match direction(handle) {
        tcp::Direction::Original => backend::speaks_again(table, handle.session(), now, cx.counters),
        tcp::Direction::Reply => pressure::answered(table, handle, &cx.tables.policy.timers),
    }
}

/// The way of a packet with a live flow. IPv4's table has none that crosses.
#[inline(always)]
pub(super) fn onward<A: Address>(flow: &Flow<A>) -> Verdict {
    if A::CROSSES && flow.has(flow_flags::CROSSES) { Verdict::Cross } else { Verdict::Continue }
}

/// Notes a flow's decision in the packet's metadata.
#[inline(always)]
pub(super) fn note<A: Address>(meta: &mut Meta, handle: Handle, flow: &Flow<A>) {
    meta.flow = handle;
    meta.egress = flow.egress;
    meta.neighbour = flow.next_hop.slot();
    meta.dst_v4 = flow.new_dst.low();
}

/// A connection stands elsewhere than before.
fn change<A: Address>(table: &mut FlowTable<A>, handle: Handle, cx: &Context<'_>, now: Tick) {
    table.flow_mut(handle).last_seen = now;
    table.changes.note(handle.session());
    pressure::progressed(table, handle.session(), &cx.limits.half_open);
    if table.tcp(handle.session()).state() == tcp::State::Refused {
        backend::is_refused(table, handle.session(), cx.counters);
    }
    let due = due(table, handle.session(), &cx.tables.policy.timers);
    table.rearm(handle.session(), due);
}

/// What a packet meant to its connection.
pub(super) enum Tracked {
    /// It goes on, and the connection stands where it stood.
    Same,
    /// It goes on, and proves nothing.
    Passed,
    /// It goes on, and the connection stands elsewhere.
    Changed,
    /// It begins a new connection in the place of one that has ended.
    Reopened,
    /// It does not go on, and the gateway has answered to it; the connection may stand elsewhere.
    Answered { has_changed: bool },
    /// It does not go on.
    Lost(DropReason),
}

/// TCP's word on a packet of a session.
#[inline(always)]
fn track<A: Address>(packet: &Packet, handle: Handle, table: &mut FlowTable<A>) -> Tracked {
    let meta = &packet.meta;
    let l4 = &packet.frame.bytes()[usize::from(meta.l4)..];
    let payload = usize::from(meta.ip_len) - usize::from(meta.l4 - meta.l3);
    let Some(segment) = tcp::Segment::parse(l4, payload) else {
        return Tracked::Lost(DropReason::TcpInvalid);
    };
    let direction = direction(handle);
    advance(table.tcp_mut(handle.session()), direction, &segment)
}

/// The tracker's word on a segment.
#[inline(always)]
pub(super) fn advance(tracker: &mut tcp::Tcp, direction: tcp::Direction, segment: &tcp::Segment) -> Tracked {
    let before = tracker.state();
    match tracker.advance(direction, segment) {
        tcp::Verdict::Forward if tracker.state() != before => Tracked::Changed,
        tcp::Verdict::Forward => Tracked::Same,
        tcp::Verdict::ForwardOnly => Tracked::Passed,
        tcp::Verdict::Reopen => Tracked::Reopened,
        tcp::Verdict::Drop(fault) => Tracked::Lost(tcp_reason(fault)),
    }
}

/// Who sends along a flow.
#[inline(always)]
pub(super) fn direction(handle: Handle) -> tcp::Direction {
    if handle.direction() == 0 { tcp::Direction::Original } else { tcp::Direction::Reply }
}

/// The reason of a fault.
pub(super) fn tcp_reason(fault: tcp::TcpFault) -> DropReason {
    match fault {
        tcp::TcpFault::BadFlags => DropReason::TcpInvalid,
        tcp::TcpFault::NoConnection | tcp::TcpFault::OutOfState => DropReason::TcpNoSession,
        tcp::TcpFault::OutOfWindow | tcp::TcpFault::RstOutOfWindow => DropReason::TcpOutOfWindow,
    }
}
