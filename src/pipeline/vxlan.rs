//! VXLAN (RFC 7348) and Geneve (RFC 8926): 8-byte headers behind UDP, Geneve's with options behind it, of which none is
//! known here and none is sent. What comes out of a tunnel, and what goes into one.
//!
//! A frame in a tunnel is not moved: the metadata points at what is inside, and whatever waits, or is given to another
//! worker, still begins with its outer headers and comes out of the tunnel again. Outer headers are trusted as far as the
//! config says from whom; the frame inside begins again as if it had come in by the overlay's interface. There is one
//! tunnel at most: a packet in a packet in a packet is for the gateway itself, and nobody there takes it.

use crate::config::Encapsulation;
use crate::macs::Location;
use crate::neighbours::{State, addr_key, addr_of, v4_key};
use crate::packet::view::{array, be16, be32, be128, ethertype, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Pass, Verdict, checksum, flags, hash};
use crate::pipeline::route::NO_NEIGHBOUR;
use crate::pipeline::tunnel::{
    ECN_MASK, FIRST_SOURCE_PORT, INNER_LINK_BYTES, NextHop, NoTunnel, Outer, Tunnel, UDP_BYTES,
};
use crate::pipeline::{Context, bridge, link};
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::overlay::{NO_OVERLAY, Overlay};
use crate::tables::policy::NO_ZONE;
use crate::tables::virtual_router::may_be_virtual;
use crate::tables::{Interface, SourceCheck};
use crate::vteps::Remote;

/// VXLAN header (RFC 7348 section 5), Geneve header (RFC 8926 section 3.4).
pub(crate) const VXLAN_BYTES: usize = 8;
/// From the UDP header to the inner L3 header, without options.
const UDP_TO_INNER: usize = UDP_BYTES + VXLAN_BYTES + INNER_LINK_BYTES;
/// The VNI is valid: the only flag that is looked at (RFC 7348 section 5).
const FLAG_I: u8 = 0x08;
/// In Geneve's second byte: a control message, or options that whoever does not know must not pass over.
const CONTROL_OR_CRITICAL: u8 = 0xc0;
/// The EtherType of a frame in a frame (RFC 8926 section 3.4).
const BRIDGED_ETHERNET: u16 = 0x6558;

/// Bytes of options behind a header in front of a frame; `None`: it is no header that we know.
pub(crate) fn options_bytes(encapsulation: Encapsulation, header: &[u8; VXLAN_BYTES]) -> Option<usize> {
    match encapsulation {
        Encapsulation::Vxlan => (header[0] & FLAG_I != 0).then_some(0),
        Encapsulation::Geneve => {
            let is_known = header[0] >> 6 == 0
                && header[1] & CONTROL_OR_CRITICAL == 0
                && be16(header, 2) == BRIDGED_ETHERNET;
            is_known.then(|| usize::from(header[0] & 0x3f) * 4)
        }
    }
}

/// The header in front of a frame that goes to this VNI.
fn header(encapsulation: Encapsulation, vni: u32) -> [u8; VXLAN_BYTES] {
    let first = match encapsulation {
        Encapsulation::Vxlan => u32::from(FLAG_I) << 24,
        Encapsulation::Geneve => BRIDGED_ETHERNET.into(),
    };
    (u64::from(first) << 32 | u64::from(vni) << 8).to_be_bytes()
}

/// The tunnel that a frame came out of.
#[derive(Clone, Copy)]
pub(super) struct Came {
    /// ECN field of the outer header.
    pub(super) ecn: u8,
    /// Where the outer UDP header begins.
    pub(super) udp: u16,
}

// ---- out of tunnels

/// Takes a packet to a tunnel end point of ours out of its tunnel: what is known of it then is known of the frame
/// inside, and the network stage is next.
#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, received: &mut link::Tally) -> Option<Came> {
    let meta = &packet.meta;
    if meta.verdict != Verdict::Continue || meta.has(flags::OWN) || !cx.tables.overlays.end_in(meta.vrf) {
        return None;
    }
    // Hosts of a bridged segment are no tunnel end points: they could get into others with a forged address.
    if cx.tables.interface(meta.interface).bridge != NO_BRIDGE {
        return None;
    }
    match meta.protocol {
        protocol::UDP if cx.tables.overlays.has_port(meta.dst_port) => out_of_tunnel(packet, cx, received),
        protocol::ICMP | protocol::ICMPV6 if is_too_big(packet, cx).is_some() => {
            packet.meta.verdict = Verdict::Answered;
            None
        }
        _ => None,
    }
}

/// A router in the underlay says that a packet of ours was too long for it: the way to that remote takes less for a
/// while (RFC 1191 section 3, RFC 8201 section 4). `None`: it is none of that.
#[cold]
fn is_too_big(packet: &Packet, cx: &Context<'_>) -> Option<()> {
    /// What every IPv4 host takes in (RFC 791 section 3.1): below it somebody means harm.
    const LEAST_V4: u16 = 576;
    const LEAST_V6: u16 = 1280;
    const TOO_BIG_V4: [u8; 2] = [3, 4];
    const TOO_BIG_V6: [u8; 2] = [2, 0];
    let meta = &packet.meta;
    let l3 = packet.frame.bytes().get(usize::from(meta.l3)..)?;
    let header_len = usize::from(meta.l4 - meta.l3);
    let len = usize::from(meta.ip_len) - header_len;
    let message = l3.get(header_len..).map(|rest| &rest[..rest.len().min(len)])?;
    if meta.has(flags::FRAGMENT) {
        return None;
    }
    let quoted = message.get(8..)?;
    let (dst, mtu_bytes, quoted_src, quoted_dst, upper, udp) = match meta.family {
        Family::Ipv4 if message[..2] == TOO_BIG_V4 && quoted.len() >= 28 && quoted[0] == 0x45 => {
            let (src, dst) = (v4_key(be32(quoted, 12)), v4_key(be32(quoted, 16)));
            (v4_key(meta.dst_v4), be16(message, 6).max(LEAST_V4), src, dst, quoted[9], &quoted[20..28])
        }
        Family::Ipv6 if message[..2] == TOO_BIG_V6 && quoted.len() >= 48 => {
            let mtu_bytes = u16::try_from(be32(message, 4)).unwrap_or(u16::MAX).max(LEAST_V6);
            (be128(l3, 24), mtu_bytes, be128(quoted, 8), be128(quoted, 24), quoted[6], &quoted[40..48])
        }
        _ => return None,
    };
    let is_ours = upper == protocol::UDP
        && quoted_src == dst
        && be16(udp, 0) >= FIRST_SOURCE_PORT
        && cx.tables.overlays.is_tunnel(meta.vrf, dst, be16(udp, 2), quoted_dst);
    let pseudo = match meta.family {
        Family::Ipv4 => 0,
        _ => checksum::pseudo_v6(array(l3, 8), array(l3, 24), protocol::ICMPV6, len),
    };
    let sum = checksum::add_chain(&packet.frame, usize::from(meta.l4), len);
    if !is_ours || checksum::fold(sum + pseudo) != 0xffff {
        return None;
    }
    cx.neighbours.vteps.note_path_mtu(quoted_dst, mtu_bytes, cx.now);
    Some(())
}

#[inline(never)]
fn out_of_tunnel(packet: &mut Packet, cx: &Context<'_>, received: &mut link::Tally) -> Option<Came> {
    let meta = &packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let (src, dst, ecn) = match meta.family {
        Family::Ipv4 => (v4_key(be32(l3, 12)), v4_key(meta.dst_v4), l3[1] & ECN_MASK),
        _ => (be128(l3, 8), be128(l3, 24), l3[1] >> 4 & ECN_MASK),
    };
    if !cx.tables.overlays.is_end(meta.vrf, dst, meta.dst_port) {
        return None;
    }
    let came = Came { ecn, udp: meta.l4 };
    match decapsulate(packet, (src, dst), came, cx, received) {
        Ok(()) => Some(came),
        Err(reason) => {
            packet.meta.verdict = Verdict::Drop(reason);
            None
        }
    }
}

fn decapsulate(
    packet: &mut Packet,
    (src, dst): (u128, u128),
    came: Came,
    cx: &Context<'_>,
    received: &mut link::Tally,
) -> Result<(), DropReason> {
    let meta = packet.meta;
    // RFC 1812 section 5.3.4.
    if meta.has(flags::LINK_GROUP) {
        return Err(DropReason::LinkBroadcastNotForwarded);
    }
    let (udp, ip_end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.ip_len));
    let bytes = packet.frame.bytes();
    let Some(head) = bytes.get(udp..).and_then(|rest| rest.first_chunk::<UDP_TO_INNER>()) else {
        return Err(DropReason::Truncated);
    };
    let udp_len = usize::from(be16(head, 4));
    let end = udp + udp_len;
    if udp_len < UDP_TO_INNER || end > ip_end {
        return Err(DropReason::VxlanInvalid);
    }
    // 0 is no checksum; over IPv6 too, for tunnels (RFC 6935 section 5, RFC 6936 section 4).
    if be16(head, 6) != 0 {
        let sum = checksum::add_chain(&packet.frame, udp, udp_len);
        if checksum::fold(sum + pseudo_header(src, dst, udp_len)) != 0xffff {
            return Err(DropReason::VxlanChecksum);
        }
    }
    let vni = be32(head, 12) >> 8;
    let overlay = cx.tables.overlays.find(meta.vrf, dst, meta.dst_port, vni);
    let overlay = overlay.ok_or(DropReason::VxlanUnknownVni)?;
    if !overlay.is_here(&cx.neighbours.roles) {
        return Err(DropReason::VirtualRouterBackup);
    }
    if !overlay.permits(src) {
        return Err(DropReason::VxlanUnknownRemote);
    }
    let options = options_bytes(overlay.spec.encapsulation, array(head, UDP_BYTES));
    let link = UDP_BYTES + VXLAN_BYTES + options.ok_or(DropReason::VxlanInvalid)?;
    if udp_len < link + INNER_LINK_BYTES {
        return Err(DropReason::VxlanInvalid);
    }
    let frame = bytes[udp..].get(link..).and_then(|rest| rest.first_chunk());
    let frame: [u8; INNER_LINK_BYTES] = *frame.ok_or(DropReason::Truncated)?;
    // What lies behind the datagram is no part of the frame inside.
    if !packet.frame.is_chained() {
        packet.frame.truncate(end);
    } else if packet.frame.total_len() != end {
        return Err(DropReason::VxlanInvalid);
    }
    let interface = cx.tables.interface(overlay.interface);
    let meta = &mut packet.meta;
    *meta = Meta::FRESH;
    meta.interface = overlay.interface;
    meta.vrf = interface.vrf;
    meta.l3 = (udp + link + INNER_LINK_BYTES) as u16;
    meta.flags = flags_of(interface);
    received.add(overlay.interface, end - (udp + link), cx);
    let kind = be16(&frame, 12);
    if kind == ethertype::VLAN || kind == ethertype::QINQ {
        return Err(DropReason::VxlanInnerTag);
    }
    if interface.bridge != NO_BRIDGE {
        meta.flags = 0;
        let remote = sender(overlay, src, cx);
        mark_congestion(packet, kind, came)?;
        bridge::arrive(packet, remote, cx);
        return Ok(());
    }
    // The group bit is the lowest of the first byte (IEEE 802).
    let mac = u64::from_be_bytes(*array(&frame, 0)) >> 16;
    if mac != interface.mac {
        if frame[0] & 1 != 0 {
            meta.flags |= flags::LINK_GROUP;
        } else if !may_be_virtual(mac) || !interface.has_virtual_mac(mac, &cx.neighbours.roles) {
            return Err(DropReason::NotForUs);
        }
    }
    match kind {
        ethertype::IPV4 => meta.family = Family::Ipv4,
        ethertype::IPV6 => meta.family = Family::Ipv6,
        ethertype::ARP => meta.verdict = Verdict::Punt,
        _ => return Err(DropReason::UnknownEthertype),
    }
    if let Some(remote) = sender(overlay, src, cx) {
        follow(interface, overlay.interface, station_of(&frame), remote, cx);
        // Until it is routed: ARP and ND let stations in.
        if kind != ethertype::IPV4 {
            meta.neighbour = remote.to_bits();
        }
    }
    Ok(())
}

/// As [`congestion`], of a frame that may go on to another member of a bridge as it is.
fn mark_congestion(packet: &mut Packet, kind: u16, came: Came) -> Result<(), DropReason> {
    let len = packet.frame.bytes().len() - usize::from(packet.meta.l3);
    packet.meta.family = match kind {
        ethertype::IPV4 if len >= 20 => Family::Ipv4,
        ethertype::IPV6 if len >= 40 => Family::Ipv6,
        _ => return Ok(()),
    };
    congestion(packet, came);
    packet.meta.family = Family::Other;
    match packet.meta.verdict {
        Verdict::Drop(reason) => Err(reason),
        _ => Ok(()),
    }
}

/// What is known of every packet that comes in there.
pub(super) fn flags_of(interface: &Interface) -> u16 {
    let stateful = if interface.zone == NO_ZONE { 0 } else { flags::STATEFUL };
    let checked = if interface.source_check == SourceCheck::Off { 0 } else { flags::CHECK_SOURCE };
    stateful | checked
}

fn pseudo_header(src: u128, dst: u128, udp_len: usize) -> u64 {
    match (addr_of(src), addr_of(dst)) {
        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => {
            checksum::pseudo_v4(src.octets(), dst.octets(), protocol::UDP, udp_len)
        }
        _ => checksum::pseudo_v6(&src.to_be_bytes(), &dst.to_be_bytes(), protocol::UDP, udp_len),
    }
}

/// The number of the tunnel end point that a frame came from, if stations are followed there.
pub(super) fn sender(overlay: &Overlay, src: u128, cx: &Context<'_>) -> Option<Remote> {
    if !overlay.spec.learning {
        return None;
    }
    match cx.pass {
        Pass::First => cx.neighbours.vteps.find_or_insert(src, cx.now),
        // What has waited says nothing of now.
        _ => cx.neighbours.vteps.find(src),
    }
}

/// Source MAC address of an Ethernet header.
#[inline(always)]
pub(super) fn station_of(frame: &[u8; INNER_LINK_BYTES]) -> u64 {
    u64::from_be_bytes(*array(frame, 4)) & 0xffff_ffff_ffff
}

/// A station has sent a frame through the tunnel of `remote`.
#[inline(always)]
pub(super) fn follow(interface: &Interface, segment: u16, mac: u64, remote: Remote, cx: &Context<'_>) {
    if cx.pass == Pass::First && is_station(interface, mac, cx) {
        cx.neighbours.macs.follow(segment, mac, Location::remote(remote, 0), cx.now);
    }
}

/// Groups, nobody and the gateway itself are behind no remote.
fn is_station(interface: &Interface, mac: u64, cx: &Context<'_>) -> bool {
    let is_own =
        mac == interface.mac || may_be_virtual(mac) && interface.is_active_as(mac, &cx.neighbours.roles);
    mac >> 40 & 1 == 0 && mac != 0 && !is_own
}

/// ARP or ND has been heard from the sender of this packet, and believed: where it is matters from now on.
pub(super) fn let_in(packet: &Packet, cx: &Context<'_>) {
    let meta = &packet.meta;
    let interface = cx.tables.interface(meta.interface);
    if interface.overlay == NO_OVERLAY {
        return;
    }
    let frame = &packet.frame.bytes()[usize::from(meta.l3) - INNER_LINK_BYTES..];
    let mac = station_of(array(frame, 0));
    let Some(remote) = Remote::from_bits(meta.neighbour).filter(|_| is_station(interface, mac, cx)) else {
        return;
    };
    if is_neighbour(&frame[INNER_LINK_BYTES..], meta, mac, cx) {
        cx.neighbours.macs.learn(meta.interface, mac, Location::remote(remote, 0), cx.now);
    }
}

/// True if one that the message speaks of is a neighbour with this MAC address: of those there are only so many.
fn is_neighbour(l3: &[u8], meta: &Meta, mac: u64, cx: &Context<'_>) -> bool {
    let has = |addr: u128| {
        let slot = cx.neighbours.find(meta.interface, addr);
        slot.is_some_and(|slot| cx.neighbours.word(slot).mac() == mac)
    };
    if meta.family == Family::Other {
        // RFC 826: the sender's protocol address.
        return l3.len() >= 18 && has(v4_key(be32(l3, 14)));
    }
    // RFC 4861 sections 4.1 to 4.4: the sender, or the target of an advertisement.
    let target = usize::from(meta.l4 - meta.l3) + 8;
    has(be128(l3, 8)) || l3.len() >= target + 16 && has(be128(l3, target))
}

/// The inner packet's ECN field after a tunnel whose outer header had this one: RFC 6040 section 4.2, figure 4. `None`:
/// congestion that nobody could be told of.
fn ecn_after(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (ECT_0 | ECT_1, CE) | (CE, _) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Takes the outer ECN field over into the packet that came out of the tunnel.
pub(super) fn congestion(packet: &mut Packet, outer: Came) {
    let meta = &packet.meta;
    if meta.verdict != Verdict::Continue {
        return;
    }
    let (from, is_v4) = (usize::from(meta.l3), meta.family == Family::Ipv4);
    let l3 = &mut packet.frame.bytes_mut()[from..];
    let shift = if is_v4 { 0 } else { 4 };
    let inner = l3[1] >> shift & ECN_MASK;
    match ecn_after(inner, outer.ecn) {
        None => packet.meta.verdict = Verdict::Drop(DropReason::VxlanEcn),
        Some(ecn) if ecn != inner => {
            let old = be16(l3, 0);
            l3[1] = l3[1] & !(ECN_MASK << shift) | ecn << shift;
            if is_v4 {
                let sum = checksum::update(be16(l3, 10), old, be16(l3, 0));
                l3[10..12].copy_from_slice(&sum.to_be_bytes());
            } else {
                // Nothing in the packet makes up for it. The outer sum was right, and is asked for again if it has to wait.
                let udp = usize::from(outer.udp);
                packet.frame.bytes_mut()[udp + 6..udp + 8].fill(0);
            }
        }
        Some(_) => {}
    }
}

// ---- into tunnels

/// The remote that a station of a segment is behind, in key form.
pub(super) fn remote_of(overlay: &Overlay, mac: u64, cx: &Context<'_>) -> Option<u128> {
    let shared = cx.neighbours;
    let known = shared.macs.find(overlay.interface, mac).and_then(|at| at.as_remote());
    let known = known.and_then(|(remote, _)| shared.vteps.address(remote));
    // A change of the config may have shut it out.
    known.filter(|remote| overlay.permits(*remote)).or_else(|| overlay.only_remote())
}

impl Tunnel {
    /// The way to the station with this MAC address on `interface`, which has an overlay.
    pub(super) fn to_station(interface: &Interface, mac: u64, cx: &Context<'_>) -> Result<Tunnel, NoTunnel> {
        let overlay = cx.tables.overlays.get(interface.overlay).ok_or(NoTunnel::Unknown)?;
        let remote = remote_of(overlay, mac, cx).ok_or(NoTunnel::Unknown)?;
        Tunnel::find(interface, overlay, remote, cx)
    }

    /// The way to `remote`.
    #[inline(never)]
    pub(super) fn find(
        interface: &Interface,
        overlay: &Overlay,
        remote: u128,
        cx: &Context<'_>,
    ) -> Result<Tunnel, NoTunnel> {
        if !overlay.is_here(&cx.neighbours.roles) {
            return Err(NoTunnel::Lost(DropReason::VirtualRouterBackup));
        }
        let spread = hash::address(cx.tables.settings.key, remote, overlay.spec.vni);
        let next = NextHop::find(overlay.underlay_vrf, remote, spread, DropReason::VxlanNoTunnel, cx)?;
        let spec = &overlay.spec;
        let mut tail = [0; UDP_BYTES + VXLAN_BYTES];
        tail[2..4].copy_from_slice(&spec.udp_port.to_be_bytes());
        tail[UDP_BYTES..].copy_from_slice(&header(spec.encapsulation, spec.vni));
        let outer = Outer {
            src: addr_key(spec.vtep),
            dst: remote,
            upper: protocol::UDP,
            tail: &tail,
            ttl: spec.ttl,
            dscp: spec.dscp,
            udp_checksum: spec.udp_checksum,
        };
        let mut tunnel = Tunnel::new(interface.overlay.into(), &outer, &next, INNER_LINK_BYTES);
        tunnel.mtu_bytes = tunnel.mtu_bytes.min(interface.mtu_bytes);
        Ok(tunnel)
    }
}

/// Puts a packet that is ready to leave by an overlay's interface into its tunnel. The frame begins with the inner link
/// header.
#[cold]
pub(super) fn encapsulate(packet: &mut Packet, cx: &Context<'_>) {
    let interface = cx.tables.interface(packet.meta.egress);
    match Tunnel::to_station(interface, packet.meta.dst_mac, cx) {
        Ok(mut tunnel) => {
            let frame_len = INNER_LINK_BYTES + usize::from(packet.meta.ip_len);
            let (ip_len, source_port) = tunnel.put_cut(&mut packet.frame, frame_len, cx);
            tunnel.note(&mut packet.meta, ip_len, source_port);
            tunnel.count(cx);
        }
        // The adjacency stage has just found it: another worker has given it up since.
        Err(_) => {
            packet.meta.l3 = INNER_LINK_BYTES as u16;
            packet.meta.verdict = Verdict::Drop(DropReason::VxlanNoTunnel);
        }
    }
}

/// The longest packet that the way to a station takes; else what has to happen first.
#[cold]
pub(super) fn check_way(
    packet: &mut Packet,
    mac: u64,
    cx: &Context<'_>,
) -> Result<u16, Result<Verdict, DropReason>> {
    let meta = &mut packet.meta;
    let interface = cx.tables.interface(meta.egress);
    match Tunnel::to_station(interface, mac, cx) {
        Ok(tunnel) => Ok(tunnel.mtu_bytes),
        Err(NoTunnel::Lost(reason)) => Err(Err(reason)),
        Err(NoTunnel::Unresolved { egress, neighbour }) => {
            (meta.egress, meta.neighbour) = (egress, neighbour);
            Err(Ok(Verdict::Resolve))
        }
        Err(NoTunnel::Unknown) => {
            let slot = meta.neighbour;
            // Who is not followed would be asked for again and again.
            let is_followed =
                cx.tables.overlays.get(interface.overlay).is_some_and(|overlay| overlay.spec.learning);
            if slot == NO_NEIGHBOUR || !is_followed || cx.neighbours.word(slot).state() == State::Permanent {
                return Err(Err(DropReason::VxlanNoTunnel));
            }
            // Its place was forgotten: who it is has to be asked again.
            cx.neighbours.forget(slot, cx.now);
            Err(Ok(Verdict::Resolve))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040 section 4.2, figure 4, row by row.
    #[test]
    fn ecn_at_the_end_of_a_tunnel() {
        const TABLE: [[Option<u8>; 4]; 4] = [
            // Outer:  Not-ECT  ECT(1)   ECT(0)   CE
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for inner in 0..4u8 {
            for outer in 0..4u8 {
                let expected = TABLE[usize::from(inner)][usize::from(outer)];
                assert_eq!(ecn_after(inner, outer), expected, "inner {inner} outer {outer}");
                // What has waited comes out of its tunnel twice.
                if let Some(ecn) = expected {
                    assert_eq!(ecn_after(ecn, outer), expected, "again: inner {inner} outer {outer}");
                }
            }
        }
    }
}
