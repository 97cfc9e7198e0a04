//! Adjacency: the checks before any rewrite (TTL, length, what must not be forwarded), and the next
//! hop's MAC address.

use crate::flow::Flows;
use crate::neighbours::v4_key;
use crate::packet::view::{be32, be128};
use crate::packet::{DropReason, Family, Meta, Packet, Verdict, flags};
use crate::pipeline::route::NO_NEIGHBOUR;
use crate::pipeline::{Context, bridge, deliver, vxlan};
use crate::tables::NO_INTERFACE;
use crate::tables::balance::delivery::number_of;
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::policy::NO_ZONE;

/// The next hop of the packet before: packets of a burst often share it, and then nothing is looked up.
pub(super) struct Hop {
    neighbour: u32,
    egress: u16,
    mtu_bytes: u16,
    has_zone: bool,
    mac: u64,
    /// Less than `mtu_bytes` if it is behind a tunnel that takes no more.
    tunnel_mtu: u16,
}

/// The egress before the first packet: nobody's.
const NOT_YET: u16 = NO_INTERFACE - 1;

impl Default for Hop {
    fn default() -> Hop {
        Hop {
            neighbour: NO_NEIGHBOUR,
            egress: NOT_YET,
            mtu_bytes: 0,
            has_zone: false,
            mac: 0,
            tunnel_mtu: u16::MAX,
        }
    }
}

#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, flows: &Flows, last: &mut Hop) {
    if packet.meta.verdict == Verdict::Continue {
        packet.meta.verdict = check(packet, cx, flows, last).unwrap_or_else(Verdict::Drop);
    }
}

#[inline(always)]
fn check(
    packet: &mut Packet,
    cx: &Context<'_>,
    flows: &Flows,
    last: &mut Hop,
) -> Result<Verdict, DropReason> {
    let meta = &mut packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let is_v4 = meta.family == Family::Ipv4;
    if meta.flags & (flags::PLAIN | flags::OWN) == 0 {
        may_leave(meta, l3, is_v4)?;
    }
    if meta.neighbour != last.neighbour || meta.egress != last.egress {
        // A session's way back, of which there is none at present.
        if meta.egress == NO_INTERFACE {
            return Err(DropReason::NoRoute);
        }
        let egress = cx.tables.interface(meta.egress);
        if !egress.up {
            return Err(DropReason::PortDown);
        }
        let (mtu_bytes, has_zone) = (egress.mtu_bytes, egress.zone != NO_ZONE);
        *last = Hop { egress: meta.egress, mtu_bytes, has_zone, ..Hop::default() };
    }
    // Into a zone there is no way without a session (DESIGN.md section 3), but for our own packets.
    if last.has_zone && !meta.flow.is_some() && !meta.has(flags::OWN) {
        return Err(DropReason::FirewallDeny);
    }
    let too_long = meta.ip_len > last.mtu_bytes;
    if too_long && !is_v4 {
        return Err(DropReason::PacketTooBig);
    }
    if too_long && meta.has(flags::DONT_FRAGMENT) {
        return Err(DropReason::FragmentationNeeded);
    }
    if last.neighbour == NO_NEIGHBOUR {
        if meta.neighbour == NO_NEIGHBOUR {
            let addr = match is_v4 {
                true => v4_key(meta.dst_v4),
                false if meta.flow.is_some() => flows.v6.flow(meta.flow).new_dst,
                false => be128(l3, 24),
            };
            match cx.neighbours.find(meta.egress, addr) {
                Some(slot) => meta.neighbour = slot,
                None if is_v4 || !meta.flow.is_some() => return Ok(Verdict::Resolve),
                // The slow path sees the packet only, not where its session leads.
                None => {
                    let cap = cx.tables.settings.neighbours_per_interface;
                    let slot = cx.neighbours.find_or_insert(meta.egress, addr, cap);
                    meta.neighbour = slot.map_err(|_| DropReason::NeighbourTableFull)?;
                }
            }
        } else if let Some(number) = number_of(meta.neighbour) {
            match deliver::resolve(packet, number, cx)? {
                Some(slot) => packet.meta.neighbour = slot,
                None => return deliver::into_tunnel(packet, cx),
            }
        }
        let meta = &mut packet.meta;
        let word = cx.neighbours.word(meta.neighbour);
        if !word.is_usable() {
            return Ok(Verdict::Resolve);
        }
        let neighbour = meta.neighbour;
        let egress = cx.tables.interface(meta.egress);
        if egress.bridge != NO_BRIDGE {
            last.tunnel_mtu = match bridge::check_way(packet, word.mac(), cx) {
                Ok(mtu_bytes) => mtu_bytes,
                Err(verdict) => return Ok(verdict),
            };
        } else if egress.overlay != NO_OVERLAY {
            last.tunnel_mtu = match vxlan::check_way(packet, word.mac(), cx) {
                Ok(mtu_bytes) => mtu_bytes,
                Err(instead) => return instead,
            };
        }
        cx.neighbours.mark_used(neighbour, cx.now);
        (last.neighbour, last.mac) = (neighbour, word.mac());
    }
    let meta = &mut packet.meta;
    meta.dst_mac = last.mac;
    if meta.ip_len > last.tunnel_mtu {
        if is_v4 && !meta.has(flags::DONT_FRAGMENT) {
            return Ok(Verdict::Fragment);
        }
        // Whoever is lost needs no other identification.
        meta.identification = Meta::TOLD_MTU | u32::from(last.tunnel_mtu);
        return Err(if is_v4 { DropReason::FragmentationNeeded } else { DropReason::PacketTooBig });
    }
    Ok(if too_long { Verdict::Fragment } else { Verdict::Forward })
}

/// What a received packet must not be to be forwarded.
#[inline(always)]
pub(super) fn may_leave(meta: &Meta, l3: &[u8], is_v4: bool) -> Result<(), DropReason> {
    // RFC 1812 section 5.3.4.
    if meta.has(flags::LINK_GROUP) {
        return Err(DropReason::LinkBroadcastNotForwarded);
    }
    let ttl = if is_v4 { l3[8] } else { l3[7] };
    // RFC 1812 section 5.3.1, RFC 8200 section 3.
    if ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    if !is_v4 {
        return stays_on_its_link(be128(l3, 8));
    }
    // 169.254/16, RFC 3927 section 2.7.
    if be32(l3, 12) >> 16 == 0xa9fe { Err(DropReason::LinkLocalNotRouted) } else { Ok(()) }
}

/// Sources that may speak on their link and are never routed (RFC 4291 sections 2.5.2 and 2.5.6).
fn stays_on_its_link(src: u128) -> Result<(), DropReason> {
    if src == 0 {
        return Err(DropReason::MartianSource);
    }
    // fe80::/10
    if src >> 118 == 0x3fa { Err(DropReason::LinkLocalNotRouted) } else { Ok(()) }
}
