//! Deliver: what a backend is to see as it came, addressed to the service, goes to the backend's MAC address or
//! through a tunnel to it (direct server return). A session says so by a [`Delivery`] in the place of its next hop.
//!
//! Tunnels are IP in IP (RFC 2003, RFC 2473, RFC 4213) and Generic UDP Encapsulation (draft-ietf-intarea-gue).
//! Nothing comes out of them here: backends answer their clients themselves.

use crate::flow::{Flows, Tuple};
use crate::neighbours::{addr_key, is_v4_key};
use crate::packet::view::{be16, be32, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Verdict, flags, hash};
use crate::pipeline::route::{self, Route};
use crate::pipeline::session::Table;
use crate::pipeline::tunnel::{NextHop, NoTunnel, Outer, Tunnel, UDP_BYTES};
use crate::pipeline::{Context, rewrite};
use crate::tables::balance::delivery::{hop_of, number_of};
use crate::tables::balance::{Delivery, TunnelSpec};
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::{NO_INTERFACE, Tables};

/// Header of variant 0 of GUE, without fields (draft-ietf-intarea-gue section 3.1).
const GUE_BYTES: usize = 4;
/// What every IPv4 host takes in (RFC 791 section 3.1), and every link of IPv6 (RFC 8200 section 5): who says that it
/// is less means harm.
const LEAST_MTU: [u16; 2] = [576, 1280];

/// The delivery with this number. Numbers outlive the services they were made for.
fn delivery(number: u16, tables: &Tables) -> Option<&Delivery> {
    tables.policy.services().delivery(number)
}

/// All flows to a backend take one way, whatever there is to choose from: that of its tunnel.
fn spread(number: u16, to: &Delivery, tables: &Tables) -> u64 {
    hash::address(tables.settings.key, addr_key(to.addr), number.into())
}

/// The way to a backend. Part of [`super::decide`].
#[cold]
pub(super) fn route(tables: &Tables, number: u16) -> Result<Route, DropReason> {
    let to = delivery(number, tables).ok_or(DropReason::NoRoute)?;
    route::towards(tables, to.vrf, to.addr, spread(number, to, tables))
}

/// Why packets cannot go to a backend by this way as they came.
#[cold]
pub(super) fn objection(tables: &Tables, number: u16, egress: u16, via: Option<u32>) -> Option<DropReason> {
    let has_tunnel = delivery(number, tables).is_some_and(|to| to.tunnel.is_some());
    let is_ours = egress == NO_INTERFACE;
    match has_tunnel {
        // Nobody else has its MAC address.
        false => (is_ours || via.is_some()).then_some(DropReason::BackendNotOnLink),
        // No tunnel in a tunnel, or behind a bridge.
        true => {
            let goes_on = || {
                let interface = tables.interface(egress);
                interface.overlay == NO_OVERLAY && interface.bridge == NO_BRIDGE
            };
            (is_ours || !goes_on()).then_some(DropReason::BackendNoTunnel)
        }
    }
}

/// True if packets go through a tunnel; `None`: there is no such delivery.
pub(super) fn has_tunnel(number: u16, cx: &Context<'_>) -> Option<bool> {
    delivery(number, cx.tables).map(|to| to.tunnel.is_some())
}

/// True if the packet goes to a backend as it came.
pub(super) fn is_delivered(meta: &Meta) -> bool {
    number_of(meta.neighbour).is_some()
}

/// The slot of the neighbour that a backend on the link is. `None`: nobody has asked for it yet.
pub(super) fn neighbour(number: u16, egress: u16, cx: &Context<'_>) -> Option<u32> {
    cx.neighbours.find(egress, addr_key(delivery(number, cx.tables)?.addr))
}

/// The slot of the neighbour that a backend on the link is, new if need be. `None`: it is behind a tunnel.
#[cold]
pub(super) fn resolve(packet: &Packet, number: u16, cx: &Context<'_>) -> Result<Option<u32>, DropReason> {
    let to = delivery(number, cx.tables).ok_or(DropReason::BackendNotOnLink)?;
    if to.tunnel.is_some() {
        return Ok(None);
    }
    let cap = cx.tables.settings.neighbours_per_interface;
    let slot = cx.neighbours.find_or_insert(packet.meta.egress, addr_key(to.addr), cap);
    slot.map(Some).map_err(|_| DropReason::NeighbourTableFull)
}

/// The tunnel to a backend, for packets of a family.
#[inline(never)]
pub(super) fn tunnel(number: u16, inside: Family, cx: &Context<'_>) -> Result<Tunnel, NoTunnel> {
    const NONE: NoTunnel = NoTunnel::Lost(DropReason::BackendNoTunnel);
    let Some(to) = delivery(number, cx.tables) else { return Err(NONE) };
    let Some(spec) = &to.tunnel else { return Err(NONE) };
    let remote = addr_key(to.addr);
    let spread = spread(number, to, cx.tables);
    let next = NextHop::find(to.vrf, remote, spread, DropReason::BackendNoTunnel, cx)?;
    let own = || match to.addr {
        std::net::IpAddr::V4(addr) => next.out.source_v4(addr).map(std::net::IpAddr::V4),
        std::net::IpAddr::V6(addr) => next.out.source_v6(addr).map(std::net::IpAddr::V6),
    };
    let Some(src) = spec.source.or_else(own) else { return Err(NONE) };
    let of_inside = if inside == Family::Ipv4 { protocol::IPV4 } else { protocol::IPV6 };
    let mut tail = [0; UDP_BYTES + GUE_BYTES];
    let (upper, tail_len, udp_checksum) = match spec.gue {
        None => (of_inside, 0, false),
        Some(gue) => {
            tail[2..4].copy_from_slice(&gue.port.to_be_bytes());
            tail[UDP_BYTES + 1] = of_inside;
            (protocol::UDP, UDP_BYTES + if gue.has_header { GUE_BYTES } else { 0 }, gue.udp_checksum)
        }
    };
    let TunnelSpec { ttl, dscp, .. } = *spec;
    let (src, tail) = (addr_key(src), &tail[..tail_len]);
    let outer = Outer { src, dst: remote, upper, tail, ttl, dscp, udp_checksum };
    Ok(Tunnel::new(hop_of(number), &outer, &next, 0))
}

impl Tunnel {
    /// The tunnel by which a packet goes to its backend.
    pub(super) fn to_backend(meta: &Meta, cx: &Context<'_>) -> Result<Tunnel, NoTunnel> {
        let number = number_of(meta.neighbour).ok_or(NoTunnel::Unknown)?;
        tunnel(number, meta.family, cx)
    }
}

/// What has to be done with a packet for a backend behind a tunnel.
#[cold]
pub(super) fn into_tunnel(packet: &mut Packet, cx: &Context<'_>) -> Result<Verdict, DropReason> {
    let meta = &mut packet.meta;
    let tunnel = match Tunnel::to_backend(meta, cx) {
        Ok(tunnel) => tunnel,
        Err(NoTunnel::Unresolved { egress, neighbour }) => {
            (meta.egress, meta.neighbour) = (egress, neighbour);
            return Ok(Verdict::Resolve);
        }
        Err(NoTunnel::Lost(reason)) => return Err(reason),
        Err(NoTunnel::Unknown) => return Err(DropReason::BackendNoTunnel),
    };
    let is_v4 = meta.family == Family::Ipv4;
    if meta.ip_len <= tunnel.mtu_bytes {
        return Ok(Verdict::Encapsulate);
    }
    if is_v4 && !meta.has(flags::DONT_FRAGMENT) {
        return Ok(Verdict::Fragment);
    }
    meta.identification = Meta::TOLD_MTU | u32::from(tunnel.mtu_bytes);
    Err(if is_v4 { DropReason::FragmentationNeeded } else { DropReason::PacketTooBig })
}

/// Puts a packet into the tunnel to its backend.
#[cold]
pub(super) fn encapsulate(packet: &mut Packet, cx: &Context<'_>, flows: &mut Flows) {
    let Ok(mut tunnel) = Tunnel::to_backend(&packet.meta, cx) else {
        // The adjacency stage has just found it: another worker has given it up since.
        packet.meta.verdict = Verdict::Drop(DropReason::BackendNoTunnel);
        return;
    };
    match packet.meta.family {
        Family::Ipv4 => rewrite::along(packet, &mut flows.v4, &mut flows.identifications, cx),
        _ => rewrite::along(packet, &mut flows.v6, &mut flows.identifications, cx),
    }
    let Packet { frame, meta } = packet;
    let l3 = usize::from(meta.l3);
    // Ethernet padding does not travel on (the worker cuts it off chains).
    if !frame.is_chained() {
        frame.truncate(l3 + usize::from(meta.ip_len));
    }
    if !meta.has(flags::OWN) {
        rewrite::decrement_ttl(&mut frame.bytes_mut()[l3..], meta.family);
    }
    frame.trim_front(l3);
    let (ip_len, source_port) = tunnel.put_cut(frame, meta.ip_len.into(), cx);
    tunnel.note(meta, ip_len, source_port);
    tunnel.count(cx);
}

/// A router on the way to a backend says that a packet of ours, which the error `message` quotes, was too long for
/// it: the way takes less for a while (RFC 2003 section 5.1, RFC 2473 section 7.1). False: it is none of that.
#[cold]
pub(super) fn note_too_big<A: Table>(
    message: &[u8],
    family: Family,
    quoted: &Tuple<A>,
    cx: &Context<'_>,
) -> bool {
    let (mtu_bytes, least) = match (family, message.get(..8)) {
        (Family::Ipv4, Some([3, 4, ..])) => (be16(message, 6), LEAST_MTU[0]),
        (Family::Ipv6, Some([2, 0, ..])) => {
            (u16::try_from(be32(message, 4)).unwrap_or(u16::MAX), LEAST_MTU[1])
        }
        _ => return false,
    };
    let (src, remote) = (addr_key(quoted.src.ip()), addr_key(quoted.dst.ip()));
    let is_ours = |to: &Delivery| {
        let Some(spec) = &to.tunnel else { return false };
        let is_upper = match spec.gue {
            None => matches!(quoted.protocol, protocol::IPV4 | protocol::IPV6),
            Some(gue) => quoted.protocol == protocol::UDP && quoted.dst_port == gue.port,
        };
        let is_source = match spec.source {
            Some(source) => addr_key(source) == src,
            None => route::is_own(cx.tables, to.vrf, quoted.src.ip()),
        };
        is_upper && is_source
    };
    if !cx.tables.policy.services().tunnels_to(quoted.vrf, remote).any(is_ours) {
        return false;
    }
    debug_assert_eq!(is_v4_key(remote), family == Family::Ipv4);
    if cx.neighbours.vteps.find_or_insert(remote, cx.now).is_some() {
        cx.neighbours.vteps.note_path_mtu(remote, mtu_bytes.max(least), cx.now);
    }
    true
}
