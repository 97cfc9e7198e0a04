//! Route: longest prefix match for the whole burst, then what the matched route does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mem::BURST;
use crate::neighbours::addr_key;
use crate::packet::view::be128;
use crate::packet::{Burst, DropReason, Family, Meta, Packet, Verdict, flags, hash, positions};
use crate::pipeline::{Context, Question};
use crate::tables::{Action, Leaf, NO_INTERFACE, NextHop, Tables, Vrf};

/// Neighbour slot of a directly connected destination that is looked up by address.
pub const NO_NEIGHBOUR: u32 = u32::MAX;

/// VRFs a packet may be handed through by routes that say "as that VRF does".
const MAX_VRF_HOPS: usize = 4;

/// Routes those packets of the burst that `unrouted` names, unless they have a session.
pub(super) fn run(burst: &mut Burst, mut unrouted: u64, cx: &Context<'_>) {
    let mut indices = [0u8; BURST];
    let mut leaves: [Leaf; BURST] = [0; BURST];
    // Usually all are of one family and VRF: one batch. Otherwise there is one for each, found by repeated passes.
    while let Some(first) = positions(unrouted).find(|index| belongs(&burst[*index].meta, None)) {
        unrouted &= u64::MAX << first;
        let meta = &burst[first].meta;
        let table = (meta.vrf, meta.family);
        let vrf = &cx.tables.vrfs[usize::from(table.0)];
        let mut count = 0;
        for index in positions(unrouted) {
            if belongs(&burst[index].meta, Some(table)) {
                indices[count] = index as u8;
                unrouted &= !(1 << index);
                count += 1;
            }
        }
        let (indices, leaves) = (&indices[..count], &mut leaves[..count]);
        let metas = indices.iter().map(|index| &burst[usize::from(*index)]);
        match table.1 {
            Family::Ipv4 => {
                let mut addrs = [0u32; BURST];
                addrs.iter_mut().zip(metas).for_each(|(addr, packet)| *addr = packet.meta.dst_v4);
                vrf.fib4.find_batch(&addrs[..count], leaves);
            }
            _ => {
                let mut addrs = [0u128; BURST];
                let dst = |packet: &Packet| be128(packet.frame.bytes(), usize::from(packet.meta.l3) + 24);
                addrs.iter_mut().zip(metas).for_each(|(addr, packet)| *addr = dst(packet));
                vrf.fib6.find_batch(&addrs[..count], leaves);
            }
        }
        for (index, leaf) in indices.iter().zip(leaves) {
            apply(&mut burst[usize::from(*index)], vrf, *leaf, cx);
        }
    }
}

/// True if the packet is to be routed, by the table of this VRF and family if they are given.
#[inline]
fn belongs(meta: &Meta, table: Option<(u16, Family)>) -> bool {
    meta.verdict == Verdict::Continue
        && !meta.flow.is_some()
        && table.is_none_or(|table| table == (meta.vrf, meta.family))
}

#[inline]
pub(super) fn apply(packet: &mut Packet, vrf: &Vrf, leaf: Leaf, cx: &Context<'_>) {
    let action = match vrf.actions[usize::from(leaf)] {
        // The common case, without a detour.
        Action::Via(hop) => {
            packet.meta.egress = hop.interface;
            packet.meta.neighbour = hop.neighbour;
            return;
        }
        other => other,
    };
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let meta = &packet.meta;
    let flow_hash = || {
        hash::of_packet(
            cx.tables.settings.key,
            meta.family,
            l3,
            meta.protocol,
            (meta.src_port, meta.dst_port),
        )
    };
    match follow(cx.tables, action, destination(meta, l3), flow_hash) {
        Ok(Route::Forward { egress, via }) => {
            packet.meta.egress = egress;
            packet.meta.neighbour = via.unwrap_or(NO_NEIGHBOUR);
        }
        Ok(Route::Local) => packet.meta.verdict = Verdict::Punt,
        // Multicast and link-local may be for the gateway itself: the slow path knows its groups.
        Err(DropReason::MulticastNotRouted | DropReason::LinkLocalNotRouted)
            if meta.family == Family::Ipv6 =>
        {
            packet.meta.verdict = Verdict::Punt;
        }
        // RFC 1812 section 5.3.4: not for us and in a broadcast frame, so it is nobody's business.
        Err(DropReason::NoRoute | DropReason::Blackhole | DropReason::UnreachableRoute)
            if meta.has(flags::LINK_GROUP) =>
        {
            packet.meta.verdict = Verdict::Drop(DropReason::LinkBroadcastNotForwarded);
        }
        Err(reason) => packet.meta.verdict = Verdict::Drop(reason),
    }
}

fn destination(meta: &Meta, l3: &[u8]) -> IpAddr {
    match meta.family {
        Family::Ipv4 => IpAddr::V4(meta.dst_v4.into()),
        _ => IpAddr::V6(be128(l3, 24).into()),
    }
}

fn find(tables: &Tables, vrf: u16, addr: IpAddr) -> Action {
    let vrf = &tables.vrfs[usize::from(vrf)];
    let leaf = match addr {
        IpAddr::V4(addr) => vrf.fib4.find(addr.into()),
        IpAddr::V6(addr) => vrf.fib6.find(addr.into()),
    };
    vrf.actions[usize::from(leaf)]
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To the gateway itself.
    Local,
    /// Out of this interface, to the gateway in the neighbour slot or, if `None`, to the destination.
    Forward {
        /// Egress interface slot.
        egress: u16,
        /// Neighbour slot of the gateway.
        via: Option<u32>,
    },
}

/// Follows an action to what it comes to for one flow.
fn follow(
    tables: &Tables,
    mut action: Action,
    dst: IpAddr,
    flow_hash: impl Fn() -> u64,
) -> Result<Route, DropReason> {
    for _ in 0..MAX_VRF_HOPS {
        let via = |hop: NextHop| Ok(Route::Forward { egress: hop.interface, via: Some(hop.neighbour) });
        return match action {
            Action::NoRoute => Err(DropReason::NoRoute),
            Action::Drop(reason) => Err(reason),
            Action::Local => Ok(Route::Local),
            Action::Connected { interface } => Ok(Route::Forward { egress: interface, via: None }),
            Action::Via(hop) => via(hop),
            Action::Ecmp(group) => via(tables.groups[group as usize].select(flow_hash())),
            Action::Vrf(vrf) => {
                action = find(tables, vrf, dst);
                continue;
            }
        };
    }
    // VRFs that point at each other.
    Err(DropReason::NoRoute)
}

/// The way to a tunnel end point.
pub(super) fn towards(tables: &Tables, vrf: u16, addr: IpAddr, hash: u64) -> Result<Route, DropReason> {
    follow(tables, find(tables, vrf, addr), addr, || hash)
}

/// The routing part of [`super::decide`].
pub(super) fn decide(tables: &Tables, question: &Question) -> Result<Route, DropReason> {
    let flow_hash = || {
        let (key, ports) = (tables.settings.key, (question.src_port, question.dst_port));
        match (question.src, question.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                hash::tuple_v4(key, src.into(), dst.into(), question.protocol, ports)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                hash::tuple_v6(key, src.into(), dst.into(), question.protocol, ports)
            }
            // NAT64: one side in each.
            (src, dst) => hash::tuple_v6(key, addr_key(src), addr_key(dst), question.protocol, ports),
        }
    };
    follow(tables, find(tables, question.vrf, question.dst), question.dst, flow_hash)
}

/// Where the gateway's own packets to `dst` leave: the interface, and the gateway in the neighbour slot or `None`.
pub fn of_own(tables: &Tables, vrf: u16, dst: IpAddr) -> Option<(u16, Option<u32>)> {
    let src = if dst.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // Of several gateways any: which one a packet takes, its ports decide.
    let (ingress, protocol, src_port, dst_port, dscp, tcp_flags, icmp_type) =
        (NO_INTERFACE, 0, 0, 0, 0, 0, 0);
    let question =
        Question { vrf, ingress, src, dst, protocol, src_port, dst_port, dscp, tcp_flags, icmp_type };
    match decide(tables, &question) {
        Ok(Route::Forward { egress, via }) => Some((egress, via)),
        Ok(Route::Local) | Err(_) => None,
    }
}

/// True if `addr` is the gateway's own in a VRF.
pub fn is_own(tables: &Tables, vrf: u16, addr: IpAddr) -> bool {
    find(tables, vrf, addr) == Action::Local
}

/// True if a route leads to `addr`, through `interface` if one is named (RFC 3704 section 2.2 and 2.4).
pub(crate) fn leads_to(tables: &Tables, vrf: u16, addr: IpAddr, interface: Option<u16>) -> bool {
    let mut action = find(tables, vrf, addr);
    for _ in 0..MAX_VRF_HOPS {
        let through = |egress: u16| interface.is_none_or(|wanted| wanted == egress);
        return match action {
            Action::NoRoute | Action::Drop(_) | Action::Local => false,
            Action::Connected { interface } => through(interface),
            Action::Via(hop) => through(hop.interface),
            Action::Ecmp(group) => {
                tables.groups[group as usize].hops().iter().any(|hop| through(hop.interface))
            }
            Action::Vrf(vrf) => {
                action = find(tables, vrf, addr);
                continue;
            }
        };
    }
    false
}
