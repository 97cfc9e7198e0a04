//! Source: addresses that can never be a source, and the optional check against the routes (RFC 3704).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::view::{be32, be128, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Verdict, flags};
use crate::pipeline::{Context, route};
use crate::tables::{NO_INTERFACE, SourceCheck, Tables};

#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>) {
    if packet.meta.verdict != Verdict::Continue || packet.meta.has(flags::OWN) {
        return;
    }
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    if packet.meta.family == Family::Ipv4 && !packet.meta.has(flags::CHECK_SOURCE) {
        if is_martian_v4(be32(l3, 12)) {
            packet.meta.verdict = Verdict::Drop(DropReason::MartianSource);
        }
    } else if let Err(reason) = check_packet(&packet.meta, l3, cx) {
        packet.meta.verdict = Verdict::Drop(reason);
    }
}

#[inline(never)]
fn check_packet(meta: &Meta, l3: &[u8], cx: &Context<'_>) -> Result<(), DropReason> {
    let (src, dst): (IpAddr, IpAddr) = match meta.family {
        Family::Ipv4 => (Ipv4Addr::from(be32(l3, 12)).into(), Ipv4Addr::from(meta.dst_v4).into()),
        _ => (Ipv6Addr::from(be128(l3, 8)).into(), Ipv6Addr::from(be128(l3, 24)).into()),
    };
    // Neighbour discovery from `::` is judged by its own rules, and never forwarded.
    if meta.protocol == protocol::ICMPV6 && src.is_unspecified() {
        return Ok(());
    }
    check(cx.tables, meta.interface, meta.vrf, src, dst)
}

/// RFC 1812 section 5.3.7: 0/8, 127/8, multicast and class E (limited broadcast included).
#[inline(always)]
pub(super) const fn is_martian_v4(src: u32) -> bool {
    let first = src >> 24;
    first == 0 || first == 127 || first >= 224
}

/// RFC 4291: multicast, loopback and IPv4-mapped sources; the unspecified one except towards multicast
/// (duplicate address detection, RFC 4862 section 5.4.2).
fn is_martian_v6(src: Ipv6Addr, dst: Ipv6Addr) -> bool {
    src.is_multicast()
        || src.is_loopback()
        || src.to_ipv4_mapped().is_some()
        || (src.is_unspecified() && !dst.is_multicast())
}

/// May `src` come in on `ingress`? Part of `decide`.
pub(super) fn check(
    tables: &Tables,
    ingress: u16,
    vrf: u16,
    src: IpAddr,
    dst: IpAddr,
) -> Result<(), DropReason> {
    if ingress == NO_INTERFACE {
        return Ok(());
    }
    let (martian, link_only) = match (src, dst) {
        (IpAddr::V4(src), _) => (is_martian_v4(src.into()), false),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            (is_martian_v6(src, dst), src.is_unspecified() || src.is_unicast_link_local())
        }
        (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("a packet has one family"),
    };
    if martian {
        return Err(DropReason::MartianSource);
    }
    // Link-local sources are on the link by definition; the routes know nothing of them.
    let accepted = link_only
        || match tables.interface(ingress).source_check {
            SourceCheck::Off => true,
            SourceCheck::Loose => route::leads_to(tables, vrf, src, None),
            SourceCheck::Strict => route::leads_to(tables, vrf, src, Some(ingress)),
        };
    if accepted { Ok(()) } else { Err(DropReason::SourceCheck) }
}
