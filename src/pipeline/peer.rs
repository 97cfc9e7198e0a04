//! The pair link: packets that the other node of a pair is to decide go there, as they came in. Who decides is the Active of
//! the group of virtual routers that a packet is for: that of its destination, if that is a public address or a virtual
//! router's, else that of the interface it comes in by or leaves by; of two the same whichever way it goes, so that both
//! directions of a session come to one node.
//!
//! ```text
//! IP (TTL 255) | UDP | magic "SG", version, 0, hash of the ingress interface's name (4 bytes) | the IP packet, untouched
//! ```
//!
//! | this node is | a session it has | a new one |
//! |---|---|---|
//! | Active | forwards | decides. TCP in its midst, just after a change: the other node may know it |
//! | Active no more, since a moment | forwards | to the other node |
//! | Backup, and hears the Active | to the other node | to the other node |
//! | neither, and hears nobody | forwards | [`DropReason::NoActive`] |
//!
//! Of a pool that both nodes give ports of, a session is that of the group of its inside, whoever answers for the address;
//! what comes to a port that this node knows nothing of goes to the node that gives it, and if that is not heard, or has sent
//! it here, it is decided here.
//!
//! What came over the link never goes over it again ([`DropReason::PairLinkLoop`]): two nodes that both take the other for
//! the Active lose a packet, they do not play with it. What comes by it is believed from the other end's address, on the
//! interface of the link and with a TTL that no router has touched (RFC 5082): whoever can write to that cable can do more.

use std::net::IpAddr;
use std::time::Duration;

use crate::flow::nat::Giver;
use crate::flow::{Address, FlowTable, Flows, Handle, Tuple};
use crate::host::nd;
use crate::neighbours::{addr_key, addr_of, v4_key};
use crate::packet::view::{be16, be32, be128, protocol};
use crate::packet::{Burst, DropReason, Family, Meta, Packet, Pass, Verdict, Why, flags, positions};
use crate::pipeline::route::{self, Route};
use crate::pipeline::tunnel::{ECN_MASK, NextHop, NoTunnel, Outer, Tunnel, UDP_BYTES};
use crate::pipeline::vxlan::{self, Came};
use crate::pipeline::{Allowed, Context, flow, icmp_error};
use crate::roles::Part;
use crate::tables::bridge::is_scope;
use crate::tables::pair_link::PairLink;
use crate::tables::policy::SourceNat;
use crate::tables::router_group::NO_GROUP;
use crate::telemetry::add;

/// The header behind UDP.
const HEADER_BYTES: usize = 8;
/// "SG", version 1, a byte for later.
const MAGIC: [u8; 4] = [0x53, 0x47, 1, 0];
/// RFC 5082 section 3: what has passed a router has less.
const TTL: u8 = 255;
/// So long after a change of the role the other node may have connections that open, of which nobody tells (RFC 6298
/// section 2: whose SYN was sent again several times).
const OPENING: Duration = Duration::from_secs(30);

// ---- to the other node

/// The packets of a burst that are for groups whose Active the other node is: they are on their way, one bit each.
/// `pending`: those that belong to sessions, which nobody has looked for yet.
#[cold]
pub(super) fn step(burst: &mut Burst, pending: &mut u64, cx: &Context<'_>, flows: &Flows) -> u64 {
    let Some(link) = cx.tables.pair_link.as_deref() else { return 0 };
    let mut sent = 0;
    for index in positions(*pending) {
        let packet = &mut burst[index];
        if !matches!(packet.meta.verdict, Verdict::Continue | Verdict::Decide)
            || packet.meta.has(flags::BY_PEER)
        {
            continue;
        }
        if is_peers(packet, link, cx, flows) && cx.neighbours.roles.has_peer() {
            *pending &= !(1 << index);
            send(packet, Why::Group, cx);
            sent |= u64::from(packet.meta.verdict == Verdict::Forward) << index;
        }
    }
    sent
}

/// True if a packet is for the other node, as far as can be said before a session is looked for.
fn is_peers(packet: &Packet, link: &PairLink, cx: &Context<'_>, flows: &Flows) -> bool {
    let Some(mut group) = group_of(packet, link, cx) else { return false };
    // Fragments of what is new cannot be told from others before the first of them.
    let is_fragment = packet.meta.has(flags::FRAGMENT);
    if is_to_shared(&packet.meta, cx) && is_fragment {
        return false;
    }
    if let Some(port) = SharedPort::of(packet, cx) {
        return match port.known(link, flows) {
            Known::Session(group) => part(group, cx) == Part::Backup,
            Known::Elsewhere => false,
            Known::Not => port.giver == Giver::Peer,
        };
    }
    if link.has_several && part(group, cx) != Part::Backup {
        group = group_of_session(packet, link, cx, flows).unwrap_or(group);
    }
    match part(group, cx) {
        Part::Backup => true,
        Part::Forwards => is_fragment,
        Part::Active | Part::Away => false,
    }
}

/// What this node does for a group.
fn part(group: u16, cx: &Context<'_>) -> Part {
    if group == NO_GROUP { Part::Active } else { cx.neighbours.roles.part(group) }
}

/// The group that a packet is for, or [`NO_GROUP`]. `None`: it is for this very node, or stays on its link.
fn group_of(packet: &Packet, link: &PairLink, cx: &Context<'_>) -> Option<u16> {
    let meta = &packet.meta;
    if is_scope(meta.vrf) || meta.has(flags::OWN | flags::LINK_GROUP) {
        return None;
    }
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let dst = match meta.family {
        Family::Ipv4 => {
            // RFC 3927 section 2.7, RFC 1112 section 4.
            if be32(l3, 12) >> 16 == 0xa9fe || meta.dst_v4 >> 16 == 0xa9fe || meta.dst_v4 >= 0xe000_0000 {
                return None;
            }
            v4_key(meta.dst_v4)
        }
        Family::Ipv6 => {
            // RFC 4291 section 2.4: multicast, and what is link-local on either side.
            let is_near = |addr: u128| addr >> 120 == 0xff || addr >> 118 == 0x3fa;
            let (src, dst) = (be128(l3, 8), be128(l3, 24));
            if is_near(src) || is_near(dst) || src == 0 || is_nd(meta, l3) {
                return None;
            }
            dst
        }
        Family::Other => return None,
    };
    if link.is_own(meta.vrf, dst) {
        return None;
    }
    let public = cx.tables.policy.publics().find(meta.vrf, dst);
    let held = || cx.tables.virtual_addresses.find(meta.vrf, dst).map(|held| held.group);
    Some(public.or_else(held).unwrap_or_else(|| group_between(meta, dst, link, cx)))
}

/// True for what goes from neighbour to neighbour (RFC 4861 section 4), also between global addresses.
fn is_nd(meta: &Meta, l3: &[u8]) -> bool {
    let icmp_type = l3.get(usize::from(meta.l4 - meta.l3));
    meta.protocol == protocol::ICMPV6 && icmp_type.is_some_and(|kind| nd::is_nd(*kind))
}

/// The group of the networks that a packet comes from and goes to.
fn group_between(meta: &Meta, dst: u128, link: &PairLink, cx: &Context<'_>) -> u16 {
    let from = link.group_of(meta.interface);
    if from != NO_GROUP && !link.has_several {
        return from;
    }
    match route::towards(cx.tables, meta.vrf, addr_of(dst), 0) {
        Ok(Route::Forward { egress, .. }) => link.between(meta.interface, egress),
        _ => from,
    }
}

/// The group of the session that a packet belongs to, if that has a public address.
fn group_of_session(packet: &Packet, link: &PairLink, cx: &Context<'_>, flows: &Flows) -> Option<u16> {
    let meta = &packet.meta;
    if meta.has(flags::FRAGMENT) || meta.verdict != Verdict::Continue {
        return None;
    }
    match meta.family {
        Family::Ipv4 => group_in(&flows.v4, packet, link, cx),
        _ => group_in(&flows.v6, packet, link, cx),
    }
}

fn group_in<A: Address>(
    table: &FlowTable<A>,
    packet: &Packet,
    link: &PairLink,
    cx: &Context<'_>,
) -> Option<u16> {
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let handle = table.find(&flow::tuple_of(&packet.meta, l3));
    if !handle.is_some() {
        return None;
    }
    // Where its first packet was sent to, and where replies to it are.
    let flow = table.flow(Handle::new(handle.session(), 0));
    let dst = [&flow.tuple, &table.flow(Handle::new(handle.session(), 1)).tuple];
    let is_shared = |to: &&Tuple<A>| match to.dst.ip() {
        IpAddr::V4(addr) => has_halves(to.protocol) && cx.tables.policy.shared_pool(to.vrf, addr).is_some(),
        IpAddr::V6(_) => false,
    };
    if dst.iter().any(is_shared) {
        return Some(link.between(flow.ingress, flow.egress));
    }
    let public = |to: &&Tuple<A>| cx.tables.policy.publics().find(to.vrf, addr_key(to.dst.ip()));
    dst.iter().find_map(public)
}

// ---- pools that both nodes give ports of

/// True for what has ports that are rewritten. Everything else of a shared pool is its group's.
fn has_halves(upper: u8) -> bool {
    matches!(upper, protocol::TCP | protocol::UDP | protocol::ICMP)
}

/// True for what goes to an address of a pool that both nodes give ports of, and may be to one of its ports.
fn is_to_shared(meta: &Meta, cx: &Context<'_>) -> bool {
    meta.family == Family::Ipv4
        && has_halves(meta.protocol)
        && cx.tables.policy.shared_pool(meta.vrf, meta.dst_v4.into()).is_some()
}

/// A port of such a pool that a packet goes to, or that of the packet that an ICMP error is about.
struct SharedPort {
    /// What a session would be found by.
    tuple: Tuple<u32>,
    giver: Giver,
}

/// What this node knows of the session that a packet belongs to.
enum Known {
    /// It has it: the group of the interfaces that it goes between.
    Session(u16),
    /// Another worker has it, which asks again.
    Elsewhere,
    /// Nothing.
    Not,
}

impl SharedPort {
    fn of(packet: &Packet, cx: &Context<'_>) -> Option<SharedPort> {
        let meta = &packet.meta;
        if !is_to_shared(meta, cx) {
            return None;
        }
        let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
        let tuple = match meta.protocol {
            protocol::ICMP => match *l3.get(usize::from(meta.l4 - meta.l3))? {
                // RFC 792: replies to echo and timestamp, RFC 950: to address mask. Nobody asks a pool.
                0 | 14 | 18 => flow::tuple_of(meta, l3),
                kind if icmp_error::is_error(Family::Ipv4, kind) => icmp_error::about(meta, l3)?,
                _ => return None,
            },
            _ => flow::tuple_of(meta, l3),
        };
        let giver = cx.tables.policy.shared_pool(meta.vrf, tuple.dst.into())?.giver(tuple.dst_port)?;
        Some(SharedPort { tuple, giver })
    }

    fn known(&self, link: &PairLink, flows: &Flows) -> Known {
        let handle = flows.v4.find(&self.tuple);
        if handle.is_some() {
            let flow = flows.v4.flow(Handle::new(handle.session(), 0));
            return Known::Session(link.between(flow.ingress, flow.egress));
        }
        match flows.nat.steering.as_ref().and_then(|steering| steering.find(&self.tuple)) {
            Some(_) => Known::Elsewhere,
            None => Known::Not,
        }
    }
}

/// Whether the first packet of a session is for this node to decide. `opens`: it is none in the midst of a connection.
#[cold]
pub(super) fn first(packet: &Packet, opens: bool, cx: &Context<'_>) -> Result<Option<Verdict>, DropReason> {
    let Some(link) = cx.tables.pair_link.as_deref() else { return Ok(None) };
    let Some(group) = group_of(packet, link, cx) else { return Ok(None) };
    match SharedPort::of(packet, cx) {
        // Whoever gives a port knows best what it is given for. If it does not, or is not there, this node may.
        Some(port) if port.giver == Giver::Peer && may_go(packet, cx) => {
            return Ok(Some(Verdict::ToPeer(Why::First)));
        }
        Some(_) => {}
        None if group == NO_GROUP => return Ok(None),
        None => {
            if let Some(verdict) = decides(group, packet, cx)? {
                return Ok(Some(verdict));
            }
        }
    }
    let is_lately = || cx.neighbours.roles.changed().is_some_and(|changed| cx.now.since(changed) < OPENING);
    let may_be_known = !opens && (link.has_several || is_lately());
    let goes = may_be_known && may_go(packet, cx);
    Ok(goes.then_some(Verdict::ToPeer(Why::Unknown)))
}

/// The same, once it is known what it would be translated to.
#[cold]
pub(super) fn translated(
    packet: &Packet,
    allowed: &Allowed,
    cx: &Context<'_>,
) -> Result<Option<Verdict>, DropReason> {
    let policy = &cx.tables.policy;
    let addr = match allowed.source {
        // Each node has its own half.
        SourceNat::Pool { pool, .. }
            if has_halves(packet.meta.protocol) && policy.pools[usize::from(pool)].is_shared() =>
        {
            None
        }
        SourceNat::Pool { pool, .. } => {
            policy.pools[usize::from(pool)].ranges().next().map(|range| addr_key(range.first.into()))
        }
        SourceNat::Static { addr, .. } => Some(addr_key(addr)),
        SourceNat::None | SourceNat::Untranslatable => None,
    };
    let group = addr.and_then(|addr| policy.publics().find(allowed.vrf, addr));
    group.map_or(Ok(None), |group| decides(group, packet, cx))
}

/// What becomes of a packet that begins something, if this node does not decide for its group.
fn decides(group: u16, packet: &Packet, cx: &Context<'_>) -> Result<Option<Verdict>, DropReason> {
    match part(group, cx) {
        Part::Active => Ok(None),
        Part::Forwards | Part::Backup if packet.meta.has(flags::BY_PEER) => Err(DropReason::PairLinkLoop),
        Part::Forwards | Part::Backup if may_go(packet, cx) => Ok(Some(Verdict::ToPeer(Why::First))),
        Part::Forwards | Part::Backup | Part::Away => Err(DropReason::NoActive),
    }
}

/// True if a packet can go to the other node: that is there, and the packet came by no link and in one piece.
fn may_go(packet: &Packet, cx: &Context<'_>) -> bool {
    cx.neighbours.roles.has_peer() && !packet.meta.has(flags::BY_PEER | flags::FRAGMENT)
}

/// Sends a packet over the link.
#[cold]
pub(super) fn send(packet: &mut Packet, why: Why, cx: &Context<'_>) {
    packet.meta.verdict = match encapsulate(packet, cx) {
        Ok(verdict) => {
            if verdict == Verdict::Forward {
                add(&cx.counters.pair_link.sent[why as usize], 1);
            }
            verdict
        }
        Err(reason) => Verdict::Drop(reason),
    };
}

fn encapsulate(packet: &mut Packet, cx: &Context<'_>) -> Result<Verdict, DropReason> {
    let link = cx.tables.pair_link.as_deref().ok_or(DropReason::NoActive)?;
    let name = link.name_of(packet.meta.interface).ok_or(DropReason::NoActive)?;
    let next = match NextHop::find(link.vrf, link.peer, 0, DropReason::NoActive, cx) {
        Ok(next) if next.egress == link.interface => next,
        Err(NoTunnel::Unresolved { egress, neighbour }) if egress == link.interface => {
            (packet.meta.egress, packet.meta.neighbour) = (egress, neighbour);
            return Ok(Verdict::Resolve);
        }
        Err(NoTunnel::Lost(reason)) => return Err(reason),
        _ => return Err(DropReason::NoActive),
    };
    let mut tail = [0; UDP_BYTES + HEADER_BYTES];
    tail[2..4].copy_from_slice(&link.udp_port.to_be_bytes());
    tail[UDP_BYTES..][..4].copy_from_slice(&MAGIC);
    tail[UDP_BYTES + 4..].copy_from_slice(&name.to_be_bytes());
    let outer = Outer {
        src: link.local,
        dst: link.peer,
        upper: protocol::UDP,
        tail: &tail,
        ttl: TTL,
        dscp: None,
        udp_checksum: false,
    };
    let mut tunnel = Tunnel::new(u32::MAX, &outer, &next, 0);
    let Packet { frame, meta } = packet;
    if meta.ip_len > tunnel.mtu_bytes {
        return Err(DropReason::PairLinkTooLong);
    }
    let l3 = usize::from(meta.l3);
    if !frame.is_chained() {
        frame.truncate(l3 + usize::from(meta.ip_len));
    }
    frame.trim_front(l3);
    let (ip_len, source_port) = tunnel.put_cut(frame, meta.ip_len.into(), cx);
    tunnel.note(meta, ip_len, source_port);
    tunnel.count(cx);
    Ok(Verdict::Forward)
}

// ---- from the other node

/// Takes a packet that came over the link out of its headers: what is known of it then is known of the packet inside, and
/// the network stage is next. `None`: it is none that goes on.
#[cold]
pub(super) fn receive(packet: &mut Packet, cx: &Context<'_>) -> Option<Came> {
    let link = cx.tables.pair_link.as_deref()?;
    let meta = &packet.meta;
    if meta.verdict != Verdict::Continue
        || meta.protocol != protocol::UDP
        || meta.dst_port != link.udp_port
        || meta.has(flags::OWN | flags::FRAGMENT)
    {
        return None;
    }
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let (src, dst, ttl, tos) = match meta.family {
        Family::Ipv4 => (v4_key(be32(l3, 12)), v4_key(meta.dst_v4), l3[8], l3[1]),
        _ => (be128(l3, 8), be128(l3, 24), l3[7], l3[1] >> 4),
    };
    if dst != link.local {
        return None;
    }
    let outer = Came { ecn: tos & ECN_MASK, udp: meta.l4 };
    let result = match src == link.peer && ttl == TTL && !meta.has(flags::LINK_GROUP) {
        true => take_out(packet, link, cx),
        false => Err(DropReason::PairLinkInvalid),
    };
    match result {
        Ok(()) => add(&cx.counters.pair_link.received, u64::from(cx.pass == Pass::First)),
        Err(reason) => packet.meta.verdict = Verdict::Drop(reason),
    }
    result.is_ok().then_some(outer)
}

fn take_out(packet: &mut Packet, link: &PairLink, cx: &Context<'_>) -> Result<(), DropReason> {
    const BAD: DropReason = DropReason::PairLinkInvalid;
    let meta = packet.meta;
    let (udp, ip_end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.ip_len));
    let head = packet.frame.bytes().get(udp..udp + UDP_BYTES + HEADER_BYTES + 1).ok_or(BAD)?;
    let end = udp + usize::from(be16(head, 4));
    let inner = udp + UDP_BYTES + HEADER_BYTES;
    // Our own peer sends no checksum; one that was put in on the way is nobody's business.
    if head[UDP_BYTES..][..4] != MAGIC || end > ip_end || end <= inner {
        return Err(BAD);
    }
    let family = match head[UDP_BYTES + HEADER_BYTES] >> 4 {
        4 => Family::Ipv4,
        6 => Family::Ipv6,
        _ => return Err(BAD),
    };
    let slot = link.interface_of(be32(head, UDP_BYTES + 4)).ok_or(BAD)?;
    if !packet.frame.is_chained() {
        packet.frame.truncate(end);
    } else if packet.frame.total_len() != end {
        return Err(BAD);
    }
    let interface = cx.tables.interface(slot);
    packet.meta = Meta {
        interface: slot,
        vrf: interface.vrf,
        l3: inner as u16,
        flags: vxlan::flags_of(interface) | flags::BY_PEER,
        family,
        ..Meta::FRESH
    };
    Ok(())
}
