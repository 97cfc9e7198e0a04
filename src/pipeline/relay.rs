//! Relay: which packets are DHCP messages that the gateway relays. They go to the slow path ([`super::slow`]) past
//! zones and routes, where a relay is configured, and nothing else does: clients that have no address yet speak from
//! 0.0.0.0 to all, and servers to an address that a zone would keep shut.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::dhcp::{SERVER_PORT, SERVER_PORT_V6, v6::ALL_RELAYS_AND_SERVERS};
use crate::packet::view::{be32, be128, protocol};
use crate::packet::{Family, Meta, Packet, Verdict, flags};
use crate::pipeline::{Context, source};

/// Looks at what came in a broadcast or multicast frame, before the source stage loses whoever has no address.
#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>) {
    let meta = &packet.meta;
    if meta.has(flags::LINK_GROUP)
        && meta.protocol == protocol::UDP
        && matches!(meta.dst_port, SERVER_PORT | SERVER_PORT_V6)
        && meta.verdict == Verdict::Continue
    {
        look(packet, cx);
    }
}

#[cold]
fn look(packet: &mut Packet, cx: &Context<'_>) {
    if !is_wanted(packet, cx) {
        return;
    }
    let meta = &packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let checked = match meta.family {
        Family::Ipv4 if be32(l3, 12) == 0 => Ok(()),
        Family::Ipv4 => {
            let (src, dst) = (Ipv4Addr::from(be32(l3, 12)).into(), Ipv4Addr::from(meta.dst_v4).into());
            source::check(cx.tables, meta.interface, meta.vrf, src, dst)
        }
        _ => {
            let [src, dst] = [8, 24].map(|at| IpAddr::V6(be128(l3, at).into()));
            source::check(cx.tables, meta.interface, meta.vrf, src, dst)
        }
    };
    packet.meta.verdict = checked.map_or_else(Verdict::Drop, |()| Verdict::Punt);
}

/// True for what a relay has to look at: from the clients of an interface that has one, or to where servers answer.
#[inline]
pub(super) fn is_wanted(packet: &Packet, cx: &Context<'_>) -> bool {
    let meta = &packet.meta;
    meta.protocol == protocol::UDP
        && matches!(meta.dst_port, SERVER_PORT | SERVER_PORT_V6)
        && !cx.tables.relays.is_empty()
        && is_for_relay(packet, cx)
}

#[inline(never)]
fn is_for_relay(packet: &Packet, cx: &Context<'_>) -> bool {
    let meta = &packet.meta;
    if meta.has(flags::OWN | flags::FRAGMENT) {
        return false;
    }
    let relays = &cx.tables.relays;
    let is_group = meta.has(flags::LINK_GROUP);
    match (meta.family, meta.dst_port) {
        (Family::Ipv4, SERVER_PORT) => {
            let dst = Ipv4Addr::from(meta.dst_v4);
            if is_group {
                return dst == Ipv4Addr::BROADCAST && relays.v4.on(meta.interface).is_some();
            }
            relays.v4.is_end(meta.vrf, dst.into())
                || relays.v4.on(meta.interface).is_some() && owns_v4(meta, dst, cx)
        }
        (Family::Ipv6, SERVER_PORT_V6) => {
            let dst = Ipv6Addr::from(be128(packet.frame.bytes(), usize::from(meta.l3) + 24));
            let has_relay = || relays.v6.on(meta.interface).is_some();
            if dst == ALL_RELAYS_AND_SERVERS {
                return has_relay();
            }
            !is_group
                && (relays.v6.is_end(meta.vrf, dst.into())
                    || has_relay() && cx.tables.interface(meta.interface).owns_v6(dst))
        }
        _ => false,
    }
}

fn owns_v4(meta: &Meta, addr: Ipv4Addr, cx: &Context<'_>) -> bool {
    cx.tables.interface(meta.interface).owns_v4(addr)
}
