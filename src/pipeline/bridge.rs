//! Bridge (IEEE 802.1Q): frames between the members of a segment, and between them and the segment's own interface.
//!
//! Which member a frame came in by is told by the link stage, or by the tunnel that it came out of. Here its source
//! teaches where a station is, and its destination says where it goes: to the gateway, and then the network stage is
//! next, as on any interface; to one member, and then it leaves at once, whatever is in it; or to all, which is for the
//! slow path to copy. What leaves by the segment's interface comes here at the end, to find its member.
//!
//! Frames from one VNI never go to another ([`DropReason::BridgeSplitHorizon`]): every tunnel end point sends to all
//! others by itself.

use crate::macs::{Location, Noted};
use crate::mem::Frame;
use crate::packet::view::{array, be16, ethertype};
use crate::packet::{DropReason, Family, Meta, Packet, Pass, Verdict, flags};
use crate::pipeline::slow::loops;
use crate::pipeline::tunnel::{INNER_LINK_BYTES, NoTunnel, Tunnel};
use crate::pipeline::{Context, member_zones, vxlan};
use crate::tables::bridge::{Bridge, Member};
use crate::tables::overlay::Overlay;
use crate::tables::virtual_router::may_be_virtual;
use crate::tables::{Interface, NO_INTERFACE};
use crate::telemetry::add;
use crate::vteps::Remote;

/// IEEE 802.1Q table 8-1: addresses that no bridge passes on. The lowest four bits count from 0.
const RESERVED: u64 = 0x0180_c200_0000;

/// Where the parts of a bridged frame are, counted from the frame's start.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Its MAC addresses; there may be headers of a tunnel before them.
    pub(super) link: usize,
    /// What is behind its EtherType.
    pub(super) payload: usize,
}

impl Layout {
    /// Of a packet that came in by `member`.
    pub(super) fn of(meta: &Meta, member: Option<&Member>) -> Layout {
        let payload = usize::from(meta.l3);
        let is_inner = member.is_some_and(|member| member.vni.is_some());
        Layout { link: if is_inner { payload - INNER_LINK_BYTES } else { 0 }, payload }
    }

    pub(super) fn destination(self, bytes: &[u8]) -> u64 {
        u64::from_be_bytes(*array(bytes, self.link)) >> 16
    }

    pub(super) fn source(self, bytes: &[u8]) -> u64 {
        u64::from_be_bytes(*array(bytes, self.link + 4)) & 0xffff_ffff_ffff
    }

    pub(super) fn kind(self, bytes: &[u8]) -> u16 {
        be16(bytes, self.payload - 2)
    }
}

pub(super) fn is_group(mac: u64) -> bool {
    mac >> 40 & 1 != 0
}

/// A frame has come in by the member in `meta.interface`, out of the tunnel of `remote` if it was in one that teaches.
#[inline(never)]
pub(super) fn arrive(packet: &mut Packet, remote: Option<Remote>, cx: &Context<'_>) {
    packet.meta.egress = NO_INTERFACE;
    packet.meta.verdict = settle(packet, remote, cx).unwrap_or_else(Verdict::Drop);
}

fn settle(packet: &mut Packet, remote: Option<Remote>, cx: &Context<'_>) -> Result<Verdict, DropReason> {
    let slot = packet.meta.interface;
    let found = cx.tables.bridges.get(cx.tables.interface(slot).bridge);
    let Some((bridge, member)) = found.and_then(|bridge| Some((bridge, bridge.member(slot)?))) else {
        return Err(DropReason::BridgeNoMember);
    };
    if cx.limits.segments.is_shut(slot, cx.now) {
        return Err(DropReason::BridgeMemberShut);
    }
    let layout = Layout::of(&packet.meta, Some(member));
    let bytes = packet.frame.bytes();
    let (dst, src, kind) = (layout.destination(bytes), layout.source(bytes), layout.kind(bytes));
    let own = own_mac(bridge, member, cx);
    if kind == loops::ETHERTYPE && loops::came_back(&packet.frame.bytes()[layout.payload..], bridge, slot, cx)
    {
        return Ok(Verdict::Answered);
    }
    // It would be one of another VLAN where the member's own tags are put in front of it, or none are.
    if kind == ethertype::VLAN || kind == ethertype::QINQ {
        return Err(DropReason::UnknownVlan);
    }
    // What looks for loops in another segment of ours goes round here. Else it is a loop, or somebody who pretends to be
    // the gateway.
    let is_look = kind == loops::ETHERTYPE && src == own;
    if is_group(src) || src == 0 || src == own && !is_look {
        return Err(DropReason::BridgeInvalidSource);
    }
    if dst & !0xf == RESERVED {
        return Err(DropReason::BridgeReserved);
    }
    let is_own = bridge.interface != NO_INTERFACE && (dst == own || is_virtual(bridge, dst, cx));
    if !bridge.passes_on(&cx.neighbours.roles) {
        return as_backup(packet, bridge, (is_own, dst, kind), cx);
    }
    // Who takes over speaks before we know of it: his first frames go on, and teach nothing yet.
    if !is_look
        && let Some(location) = location_of(member, remote)
        && !is_active_as(bridge, src, cx)
    {
        learn(bridge, member, src, location, cx);
    }
    if is_own {
        return to_gateway(packet, bridge, kind, cx);
    }
    if is_group(dst) {
        return match cx.pass {
            Pass::First => Ok(Verdict::Flood),
            // The others have it; this is the gateway's.
            _ if bridge.interface != NO_INTERFACE => {
                packet.meta.flags |= flags::LINK_GROUP;
                to_gateway(packet, bridge, kind, cx)
            }
            _ => Err(DropReason::BridgeNoMember),
        };
    }
    let known = cx.neighbours.macs.find(bridge.segment, dst);
    // Behind a member that is down or shut it may be no more.
    let known = known
        .and_then(|location| Some((location, bridge.member_at(location).filter(|out| is_open(out, cx))?)));
    match known {
        Some((_, out)) if out.interface == slot && out.vni.is_none() => Err(DropReason::BridgeSameMember),
        Some((_, out)) if out.vni.is_some() && member.vni.is_some() => Err(DropReason::BridgeSplitHorizon),
        _ if bridge.has_zones => match member_zones::begin(packet, bridge, kind, known, cx)? {
            Some(verdict) => Ok(verdict),
            None => forward_or_flood(packet, layout, known, cx),
        },
        _ => forward_or_flood(packet, layout, known, cx),
    }
}

/// Another node passes frames on: here those are taken that are to the gateway, or to all and so to it as well, and nothing
/// is learned.
#[cold]
fn as_backup(
    packet: &mut Packet,
    bridge: &Bridge,
    (is_own, dst, kind): (bool, u64, u16),
    cx: &Context<'_>,
) -> Result<Verdict, DropReason> {
    if bridge.interface == NO_INTERFACE || !is_own && !is_group(dst) {
        return Err(DropReason::BridgeBackup);
    }
    if is_group(dst) {
        packet.meta.flags |= flags::LINK_GROUP;
    }
    to_gateway(packet, bridge, kind, cx)
}

fn forward_or_flood(
    packet: &mut Packet,
    layout: Layout,
    known: Option<(Location, &Member)>,
    cx: &Context<'_>,
) -> Result<Verdict, DropReason> {
    match known {
        Some(to) => forward(packet, layout, to, cx),
        None if cx.pass == Pass::First => Ok(Verdict::Flood),
        None => Err(DropReason::BridgeNoMember),
    }
}

/// A station has sent a frame by `member`.
#[inline]
pub(super) fn learn(bridge: &Bridge, member: &Member, mac: u64, location: Location, cx: &Context<'_>) {
    // What has waited says nothing of now.
    if cx.pass != Pass::First {
        return;
    }
    let most = (member.interface, member.max_macs);
    // A loop may have put it behind a member that is shut now.
    let is_gone = |old| bridge.member_at(old).is_none_or(|old| !is_open(old, cx));
    let noted = cx.neighbours.macs.note(bridge.segment, mac, location, most, cx.now, is_gone);
    if noted == Noted::Flapping {
        add(&cx.counters.flaps, 1);
    }
}

/// True if it is the MAC address of a virtual router of the segment's interface for which this node forwards. Where
/// another node does, its MAC address is a station as any other.
#[inline]
fn is_virtual(bridge: &Bridge, mac: u64, cx: &Context<'_>) -> bool {
    may_be_virtual(mac) && cx.tables.interface(bridge.interface).has_virtual_mac(mac, &cx.neighbours.roles)
}

/// True if this node is the Active with this MAC address: then it is behind no member.
#[inline]
fn is_active_as(bridge: &Bridge, mac: u64, cx: &Context<'_>) -> bool {
    may_be_virtual(mac)
        && bridge.interface != NO_INTERFACE
        && cx.tables.interface(bridge.interface).is_active_as(mac, &cx.neighbours.roles)
}

/// What the gateway is known by there: of its interface, or where there is none of the member's port.
fn own_mac(bridge: &Bridge, member: &Member, cx: &Context<'_>) -> u64 {
    let slot = if bridge.interface == NO_INTERFACE { member.interface } else { bridge.interface };
    cx.tables.interface(slot).mac
}

/// Where a frame came from, if that teaches.
pub(super) fn location_of(member: &Member, remote: Option<Remote>) -> Option<Location> {
    match member.vni {
        None => Some(Location::local(member.interface)),
        Some((number, _)) => remote.map(|remote| Location::remote(remote, number)),
    }
}

/// From here on it is a packet that came in by the segment's interface.
fn to_gateway(
    packet: &mut Packet,
    bridge: &Bridge,
    kind: u16,
    cx: &Context<'_>,
) -> Result<Verdict, DropReason> {
    let layout = Layout::of(&packet.meta, bridge.member(packet.meta.interface));
    let interface = cx.tables.interface(bridge.interface);
    let bytes = packet.frame.total_len() - layout.link;
    let meta = &mut packet.meta;
    (meta.interface, meta.vrf) = (bridge.interface, interface.vrf);
    meta.flags |= vxlan::flags_of(interface);
    if cx.pass == Pass::First || cx.pass == Pass::Again && meta.has(flags::LINK_GROUP) {
        let counters = &cx.counters.interfaces[usize::from(bridge.interface)];
        add(&counters.rx_packets, 1);
        add(&counters.rx_bytes, bytes as u64);
    }
    match kind {
        ethertype::IPV4 => meta.family = Family::Ipv4,
        ethertype::IPV6 => meta.family = Family::Ipv6,
        ethertype::ARP => return Ok(Verdict::Punt),
        _ => return Err(DropReason::UnknownEthertype),
    }
    Ok(Verdict::Continue)
}

/// True if frames may leave by the member.
pub(super) fn is_open(member: &Member, cx: &Context<'_>) -> bool {
    cx.tables.interface(member.interface).up && !cx.limits.segments.is_shut(member.interface, cx.now)
}

/// The overlay and the tunnel end point that lead to a location behind a VNI.
pub(super) fn overlay_to<'a>(
    location: Location,
    out: &Member,
    cx: &Context<'a>,
) -> Option<(&'a Overlay, u128)> {
    let overlay = cx.tables.overlays.get(out.vni?.1)?;
    let remote = cx.neighbours.vteps.address(location.as_remote()?.0)?;
    // A change of the config may have shut it out.
    overlay.permits(remote).then_some((overlay, remote))
}

/// The tunnel that leads to a location behind a VNI.
pub(super) fn tunnel_to(location: Location, out: &Member, cx: &Context<'_>) -> Result<Tunnel, NoTunnel> {
    let (overlay, remote) = overlay_to(location, out, cx).ok_or(NoTunnel::Unknown)?;
    Tunnel::find(cx.tables.interface(out.interface), overlay, remote, cx)
}

/// To the one member that leads there, as it is.
pub(super) fn forward(
    packet: &mut Packet,
    layout: Layout,
    (location, out): (Location, &Member),
    cx: &Context<'_>,
) -> Result<Verdict, DropReason> {
    let egress = cx.tables.interface(out.interface);
    let len = packet.frame.total_len() - layout.payload;
    if out.vni.is_none() {
        if len > usize::from(egress.mtu_bytes) {
            return Err(DropReason::BridgeTooLong);
        }
        let kind = layout.kind(packet.frame.bytes());
        readdress(&mut packet.frame, layout, egress);
        count(out.interface, usize::from(egress.header_len) + len, cx);
        // A LAG chooses by that.
        packet.meta.family = family_of(kind, len);
        (packet.meta.egress, packet.meta.ip_len) = (out.interface, len as u16);
        return Ok(Verdict::Forward);
    }
    match tunnel_to(location, out, cx) {
        Ok(mut tunnel) => {
            // What a router says of the way is nothing that hosts of a segment could be told.
            if len > usize::from(egress.mtu_bytes) {
                return Err(DropReason::BridgeTooLong);
            }
            readdress(&mut packet.frame, layout, egress);
            count(out.interface, INNER_LINK_BYTES + len, cx);
            let (ip_len, source_port) = tunnel.put(&mut packet.frame, cx);
            tunnel.note(&mut packet.meta, ip_len, source_port);
            tunnel.count(cx);
            Ok(Verdict::Forward)
        }
        Err(NoTunnel::Unresolved { egress, neighbour }) => {
            (packet.meta.egress, packet.meta.neighbour) = (egress, neighbour);
            Ok(Verdict::Resolve)
        }
        // Its place was given to another.
        Err(NoTunnel::Unknown) if cx.pass == Pass::First => Ok(Verdict::Flood),
        Err(NoTunnel::Unknown) => Err(DropReason::VxlanNoTunnel),
        Err(NoTunnel::Lost(reason)) => Err(reason),
    }
}

fn family_of(kind: u16, len: usize) -> Family {
    match kind {
        ethertype::IPV4 if len >= 20 => Family::Ipv4,
        ethertype::IPV6 if len >= 40 => Family::Ipv6,
        _ => Family::Other,
    }
}

/// Gives a frame the link header of a member, with the addresses and the EtherType that it has.
pub(super) fn readdress(frame: &mut Frame, layout: Layout, egress: &Interface) {
    let bytes = frame.bytes();
    let macs: [u8; 12] = *array(bytes, layout.link);
    let kind = layout.kind(bytes);
    frame.trim_front(layout.payload);
    write_header(frame, egress, &macs, kind);
}

/// Puts the link header of a member in front of a payload.
pub(super) fn write_header(payload: &mut Frame, egress: &Interface, macs: &[u8; 12], kind: u16) {
    let len = usize::from(egress.header_len);
    let head = payload.prepend(len);
    head[..12].copy_from_slice(macs);
    head[12..len - 2].copy_from_slice(&egress.header[12..len - 2]);
    head[len - 2..len].copy_from_slice(&kind.to_be_bytes());
}

/// Counts a frame that leaves by a member or by a segment's interface.
pub(super) fn count(interface: u16, bytes: usize, cx: &Context<'_>) {
    let counters = &cx.counters.interfaces[usize::from(interface)];
    add(&counters.tx_packets, 1);
    add(&counters.tx_bytes, bytes as u64);
}

// ---- from the segment's own interface

/// The member that a station is behind.
pub(super) fn way_to<'a>(
    interface: &Interface,
    mac: u64,
    cx: &Context<'a>,
) -> Option<(Location, &'a Member)> {
    let bridge = cx.tables.bridges.get(interface.bridge)?;
    let location = cx.neighbours.macs.find(bridge.segment, mac)?;
    Some((location, bridge.member_at(location).filter(|member| is_open(member, cx))?))
}

/// The longest packet that the way to a station takes; else what has to happen first.
#[cold]
pub(super) fn check_way(packet: &mut Packet, mac: u64, cx: &Context<'_>) -> Result<u16, Verdict> {
    let interface = cx.tables.interface(packet.meta.egress);
    let Some((location, out)) = way_to(interface, mac, cx) else { return Ok(u16::MAX) };
    if out.vni.is_none() {
        return Ok(cx.tables.interface(out.interface).mtu_bytes);
    }
    match tunnel_to(location, out, cx) {
        Ok(tunnel) => Ok(tunnel.mtu_bytes),
        Err(NoTunnel::Unresolved { egress, neighbour }) => {
            (packet.meta.egress, packet.meta.neighbour) = (egress, neighbour);
            Err(Verdict::Resolve)
        }
        // To all, then.
        Err(NoTunnel::Unknown) => Ok(u16::MAX),
        Err(NoTunnel::Lost(reason)) => Err(Verdict::Drop(reason)),
    }
}

/// A packet is ready to leave by a segment's interface, whose link header it begins with: by which member it does.
#[cold]
pub(super) fn deliver(packet: &mut Packet, cx: &Context<'_>) {
    const LAYOUT: Layout = Layout { link: 0, payload: INNER_LINK_BYTES };
    let interface = cx.tables.interface(packet.meta.egress);
    let len = INNER_LINK_BYTES + usize::from(packet.meta.ip_len);
    let Some((location, out)) = way_to(interface, packet.meta.dst_mac, cx) else {
        return to_all(packet);
    };
    let egress = cx.tables.interface(out.interface);
    if out.vni.is_none() {
        if egress.header_len as usize != INNER_LINK_BYTES {
            readdress(&mut packet.frame, LAYOUT, egress);
        }
        count(out.interface, len - INNER_LINK_BYTES + usize::from(egress.header_len), cx);
        packet.meta.egress = out.interface;
        return;
    }
    match tunnel_to(location, out, cx) {
        Ok(mut tunnel) => {
            count(out.interface, len, cx);
            let (ip_len, source_port) = tunnel.put_cut(&mut packet.frame, len, cx);
            tunnel.note(&mut packet.meta, ip_len, source_port);
            tunnel.count(cx);
        }
        Err(NoTunnel::Unknown) => to_all(packet),
        // The adjacency stage has just found it: another worker has given it up since.
        Err(NoTunnel::Unresolved { .. } | NoTunnel::Lost(_)) => {
            packet.meta.l3 = INNER_LINK_BYTES as u16;
            packet.meta.verdict = Verdict::Drop(DropReason::VxlanNoTunnel);
        }
    }
}

/// Nobody knows where the station is: a packet of the segment's own interface goes to all members.
fn to_all(packet: &mut Packet) {
    packet.meta.l3 = INNER_LINK_BYTES as u16;
    packet.meta.verdict = Verdict::Flood;
}
