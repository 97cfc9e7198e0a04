//! SYN proxy (RFC 4987 section 3.6): where many connections open to a destination already, the client has to show first
//! that it is there. Its SYN is answered with a cookie and forgotten; with the acknowledgment the session begins, and
//! the gateway opens it to the server. From then on it is a session as any, with its numbers shifted
//! ([`crate::flow::proxy`]).

use crate::flow::cookie::Offer;
use crate::flow::proxy::{PATIENCE_S, Proxy, SCALE, Said};
use crate::flow::tcp::{self, Direction, Segment, SynOptions, flags as tcp_flags};
use crate::flow::{Address, Flow, FlowTable, Flows, Handle, Tick, Tuple, flow_flags};
use crate::packet::view::protocol;
use crate::packet::{DropReason, Family, Packet, Verdict, flags};
use crate::pipeline::Context;
use crate::pipeline::flow::{self, Tracked};
use crate::pipeline::session::Table;
use crate::tables::NO_INTERFACE;
use crate::telemetry::add;

/// What a SYN without the option stands for (RFC 9293 section 3.7.1).
const DEFAULT_MSS: [u16; 2] = [536, 1220];

fn segment_of(packet: &Packet) -> Option<Segment> {
    let meta = &packet.meta;
    let l4 = packet.frame.bytes().get(usize::from(meta.l4)..)?;
    Segment::parse(l4, usize::from(meta.ip_len).checked_sub(usize::from(meta.l4 - meta.l3))?)
}

/// The MSS that both interfaces carry.
fn largest_mss(interfaces: [u16; 2], family: Family, cx: &Context<'_>) -> u16 {
    let mtu = interfaces
        .into_iter()
        .filter(|slot| *slot != NO_INTERFACE)
        .map(|slot| cx.tables.interface(slot).mtu_bytes)
        .min();
    mtu.unwrap_or(1500).saturating_sub(if family == Family::Ipv4 { 40 } else { 60 })
}

/// True if a SYN from the zone to there has to be proved.
pub(super) fn is_wanted(zone: u8, to: (std::net::IpAddr, u16), cx: &Context<'_>) -> bool {
    let above = cx.tables.policy.zones[usize::from(zone)].syn_proxy_above;
    above != u32::MAX && cx.limits.half_open.count(to.0, to.1) >= above
}

/// Answers a SYN with a cookie; it may go out by `egress` once it is proved.
#[cold]
pub(super) fn ask<A: Table>(
    packet: &Packet,
    tuple: &Tuple<A>,
    egress: u16,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<Verdict, DropReason> {
    // Who cuts a SYN into fragments has something to hide.
    if packet.meta.has(flags::FRAGMENT) {
        return Err(DropReason::HalfOpenLimit);
    }
    let syn = segment_of(packet).ok_or(DropReason::TcpInvalid)?;
    if !flows.strangers.hear() {
        return Err(DropReason::NewFlowShed);
    }
    let family = packet.meta.family;
    let SynOptions { window_scale: scale, mss, sack_permitted: sack } = syn.options;
    let mss = mss.unwrap_or(DEFAULT_MSS[usize::from(family == Family::Ipv6)]);
    let cookie = cx.limits.cookies.make(tuple, syn.seq, &Offer { mss, scale, sack }, cx.now);
    let options = SynOptions {
        mss: Some(largest_mss([packet.meta.interface, egress], family, cx)),
        window_scale: scale.map(|_| SCALE),
        sack_permitted: sack,
    };
    let (ack, kind) = (syn.seq.wrapping_add(1), tcp_flags::SYN | tcp_flags::ACK);
    let answer = Said::along(&tuple.reversed(tuple.vrf), cookie, ack, kind, 0);
    A::table(flows).say(Said { options: Some(options), ..answer });
    add(&cx.counters.cookies_sent, 1);
    Ok(Verdict::Answered)
}

/// What a segment without a session begins if it acknowledges a cookie.
pub(super) fn proved<A: Address>(packet: &Packet, tuple: &Tuple<A>, cx: &Context<'_>) -> Option<Proxy> {
    let meta = &packet.meta;
    if tuple.protocol != protocol::TCP || meta.has(flags::FRAGMENT) || meta.interface == NO_INTERFACE {
        return None;
    }
    let zone = cx.tables.interface(meta.interface).zone;
    if cx.tables.policy.zones[usize::from(zone)].syn_proxy_above == u32::MAX {
        return None;
    }
    let segment = segment_of(packet)?;
    if segment.flags & (tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK) != tcp_flags::ACK {
        return None;
    }
    let cookie = segment.ack.wrapping_sub(1);
    // A probe or a keep-alive is one behind (RFC 9293 section 3.8.4).
    [segment.seq.wrapping_sub(1), segment.seq].into_iter().find_map(|isn| {
        let offer = cx.limits.cookies.read(tuple, isn, cookie, cx.now)?;
        Some(Proxy::new(isn, cookie, offer, &segment))
    })
}

/// Has a session's packets shifted from now on.
pub(super) fn mark<A: Address>(table: &mut FlowTable<A>, session: u32) {
    for direction in [0, 1] {
        let flow = table.flow_mut(Handle::new(session, direction));
        flow.flags = flow.flags & !flow_flags::TCP | flow_flags::PROXIED | flow_flags::TRANSLATED;
    }
}

/// The session of a client that has proved itself is there: it is opened to the server.
#[cold]
pub(super) fn begin<A: Table>(
    handle: Handle,
    mut proxy: Proxy,
    packet: &Packet,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Verdict {
    let table = A::table(flows);
    mark(table, handle.session());
    let forward = table.flow(handle);
    proxy.limit_mss(largest_mss([forward.ingress, forward.egress], packet.meta.family, cx));
    table.set_proxy(handle.session(), proxy);
    table.rearm(handle.session(), Tick::of(cx.now).after(PATIENCE_S));
    add(&cx.counters.cookies_taken, 1);
    let syn = proxy.syn_to_server(&to_server(table.flow(handle.other())));
    table.say(syn);
    Verdict::Answered
}

/// The tuple that the server sees.
fn to_server<A: Address>(reply: &Flow<A>) -> Tuple<A> {
    reply.tuple.reversed(reply.tuple.vrf)
}

/// TCP's word on a packet of a proxied session.
#[cold]
pub(super) fn track<A: Address>(packet: &Packet, handle: Handle, table: &mut FlowTable<A>) -> Tracked {
    let Some(segment) = segment_of(packet) else { return Tracked::Lost(DropReason::TcpInvalid) };
    let proxy = *table.proxy(handle.session());
    let direction = flow::direction(handle);
    if !proxy.is_open() {
        return opening(&segment, proxy, handle, table);
    }
    let shown = proxy.shown(direction, &segment);
    let is_syn_ack = shown.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK;
    if direction == Direction::Reply && is_syn_ack && shown.seq == proxy.cookie() {
        // Our ACK was lost.
        let ack = proxy.ack_to_server(&to_server(table.flow(handle)));
        table.say(ack);
        return Tracked::Answered { has_changed: false };
    }
    flow::advance(table.tcp_mut(handle.session()), direction, &shown)
}

/// While the server has not answered nothing passes.
fn opening<A: Address>(
    segment: &Segment,
    mut proxy: Proxy,
    handle: Handle,
    table: &mut FlowTable<A>,
) -> Tracked {
    let session = handle.session();
    let [forward, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)).tuple);
    let to_client = forward.reversed(forward.vrf);
    let to_server = reply.reversed(reply.vrf);
    let is_refused = table.tcp(session).state() == tcp::State::Refused;
    let kind = segment.flags & (tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK);
    match (flow::direction(handle), kind) {
        // A new connection of a client that has forgotten the one before.
        (Direction::Original, tcp_flags::SYN) if is_refused || segment.seq != proxy.isn() => {
            Tracked::Reopened
        }
        // The SYN may have been lost.
        (Direction::Original, tcp_flags::ACK) if !is_refused => {
            proxy.heard(segment);
            table.set_proxy(session, proxy);
            table.say(proxy.syn_to_server(&to_server));
            Tracked::Answered { has_changed: false }
        }
        (Direction::Original, _) => Tracked::Answered { has_changed: false },
        (Direction::Reply, kind) if kind == tcp_flags::SYN | tcp_flags::ACK && proxy.is_answer(segment) => {
            proxy.open(segment);
            table.set_proxy(session, proxy);
            let tracker = table.tcp_mut(session);
            tracker.advance(Direction::Reply, &proxy.shown(Direction::Reply, segment));
            tracker.advance(Direction::Original, &proxy.last_of_handshake());
            table.say(proxy.ack_to_server(&to_server));
            table.say(proxy.ack_to_client(&to_client, segment));
            Tracked::Answered { has_changed: true }
        }
        (Direction::Reply, kind) if kind == tcp_flags::RST | tcp_flags::ACK && proxy.is_answer(segment) => {
            table.tcp_mut(session).advance(Direction::Reply, segment);
            table.say(proxy.reset_to_client(&to_client));
            Tracked::Answered { has_changed: true }
        }
        // The server is in an older connection of the same addresses and ports (RFC 9293 section 3.5.1).
        (Direction::Reply, kind) if kind & (tcp_flags::RST | tcp_flags::ACK) == tcp_flags::ACK => {
            table.say(Said::along(&to_server, segment.ack, 0, tcp_flags::RST, 0));
            Tracked::Answered { has_changed: false }
        }
        (Direction::Reply, _) => Tracked::Lost(DropReason::TcpOutOfWindow),
    }
}

/// Makes of one side's packet the other side's; its addresses are that already.
#[cold]
pub(super) fn rewrite<A: Address>(packet: &mut Packet, table: &FlowTable<A>) {
    let (handle, meta) = (packet.meta.flow, &packet.meta);
    let (from, end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.ip_len));
    let end = end.min(packet.frame.len());
    if let Some(segment) = packet.frame.bytes_mut().get_mut(from..end) {
        table.proxy(handle.session()).rewrite(flow::direction(handle), segment);
    }
}
