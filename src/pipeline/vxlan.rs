//! VXLAN (RFC 7348): 8-byte header, UDP port 4789. What comes out of a tunnel, and what goes into one.
//!
//! A frame in a tunnel is not moved: the metadata points at what is inside, and whatever waits, or is given to another
//! worker, still begins with its outer headers and comes out of the tunnel again. Outer headers are trusted as far as the
//! config says from whom; the frame inside begins again as if it had come in by the overlay's interface. There is one
//! tunnel at most: a packet in a packet in a packet is for the gateway itself, and nobody there takes it.

use crate::macs::Location;
use crate::mem::Frame;
use crate::neighbours::{State, addr_key, addr_of, v4_key};
use crate::packet::view::{array, be16, be32, be128, ethertype, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Pass, Verdict, checksum, flags, hash};
use crate::pipeline::route::{self, NO_NEIGHBOUR, Route};
use crate::pipeline::{Context, bridge, link};
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::overlay::{NO_OVERLAY, Overlay};
use crate::tables::policy::NO_ZONE;
use crate::tables::{Interface, MAX_LINK_HEADER, SourceCheck};
use crate::telemetry::add;
use crate::vteps::Remote;

/// UDP header.
const UDP_BYTES: usize = 8;
/// VXLAN header (RFC 7348 section 5).
const VXLAN_BYTES: usize = 8;
/// Inner Ethernet header, without tags (RFC 7348 section 6.1).
pub(super) const INNER_LINK_BYTES: usize = 14;
/// From the UDP header to the inner L3 header.
const UDP_TO_INNER: usize = UDP_BYTES + VXLAN_BYTES + INNER_LINK_BYTES;
/// The VNI is valid: the only flag that is looked at (RFC 7348 section 5).
const FLAG_I: u8 = 0x08;
/// Longest that stands in front of an inner frame.
const MAX_HEADER: usize = MAX_LINK_HEADER + 40 + UDP_BYTES + VXLAN_BYTES;
/// RFC 7348 section 5: source ports come from the dynamic range, RFC 6335 section 6.
const FIRST_SOURCE_PORT: u16 = 49152;
/// The two lower bits of TOS and traffic class (RFC 3168 section 5).
const ECN_MASK: u8 = 3;

// ---- out of tunnels

/// Takes a packet to a tunnel end point of ours out of its tunnel: what is known of it then is known of the frame
/// inside, and the network stage is next. Returns the ECN field of the outer header.
#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, received: &mut link::Tally) -> Option<u8> {
    let meta = &packet.meta;
    if meta.verdict != Verdict::Continue || meta.has(flags::OWN) || !cx.tables.overlays.end_in(meta.vrf) {
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
fn out_of_tunnel(packet: &mut Packet, cx: &Context<'_>, received: &mut link::Tally) -> Option<u8> {
    let meta = &packet.meta;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    let (src, dst, ecn) = match meta.family {
        Family::Ipv4 => (v4_key(be32(l3, 12)), v4_key(meta.dst_v4), l3[1] & ECN_MASK),
        _ => (be128(l3, 8), be128(l3, 24), l3[1] >> 4 & ECN_MASK),
    };
    if !cx.tables.overlays.is_end(meta.vrf, dst, meta.dst_port) {
        return None;
    }
    match decapsulate(packet, (src, dst), ecn, cx, received) {
        Ok(()) => Some(ecn),
        Err(reason) => {
            packet.meta.verdict = Verdict::Drop(reason);
            None
        }
    }
}

fn decapsulate(
    packet: &mut Packet,
    (src, dst): (u128, u128),
    ecn: u8,
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
    if udp_len < UDP_TO_INNER || end > ip_end || head[UDP_BYTES] & FLAG_I == 0 {
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
    if !overlay.permits(src) {
        return Err(DropReason::VxlanUnknownRemote);
    }
    let frame: [u8; INNER_LINK_BYTES] = *array(head, UDP_BYTES + VXLAN_BYTES);
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
    meta.l3 = (udp + UDP_TO_INNER) as u16;
    meta.flags = flags_of(interface);
    received.add(overlay.interface, end - (udp + UDP_BYTES + VXLAN_BYTES), cx);
    let kind = be16(&frame, 12);
    if kind == ethertype::VLAN || kind == ethertype::QINQ {
        return Err(DropReason::VxlanInnerTag);
    }
    if interface.bridge != NO_BRIDGE {
        meta.flags = 0;
        let remote = sender(overlay, src, cx);
        mark_congestion(packet, kind, ecn)?;
        bridge::arrive(packet, remote, cx);
        return Ok(());
    }
    // The group bit is the lowest of the first byte (IEEE 802).
    if u64::from_be_bytes(*array(&frame, 0)) >> 16 != interface.mac {
        if frame[0] & 1 == 0 {
            return Err(DropReason::NotForUs);
        }
        meta.flags |= flags::LINK_GROUP;
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
fn mark_congestion(packet: &mut Packet, kind: u16, ecn: u8) -> Result<(), DropReason> {
    let len = packet.frame.bytes().len() - usize::from(packet.meta.l3);
    packet.meta.family = match kind {
        ethertype::IPV4 if len >= 20 => Family::Ipv4,
        ethertype::IPV6 if len >= 40 => Family::Ipv6,
        _ => return Ok(()),
    };
    congestion(packet, ecn);
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
    if cx.pass == Pass::First && is_station(interface, mac) {
        cx.neighbours.macs.follow(segment, mac, Location::remote(remote, 0), cx.now);
    }
}

/// Groups, nobody and the gateway itself are behind no remote.
fn is_station(interface: &Interface, mac: u64) -> bool {
    mac >> 40 & 1 == 0 && mac != 0 && mac != interface.mac
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
    let Some(remote) = Remote::from_bits(meta.neighbour).filter(|_| is_station(interface, mac)) else {
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
pub(super) fn congestion(packet: &mut Packet, outer: u8) {
    let meta = &packet.meta;
    if meta.verdict != Verdict::Continue {
        return;
    }
    let (from, is_v4) = (usize::from(meta.l3), meta.family == Family::Ipv4);
    let l3 = &mut packet.frame.bytes_mut()[from..];
    let shift = if is_v4 { 0 } else { 4 };
    let inner = l3[1] >> shift & ECN_MASK;
    match ecn_after(inner, outer) {
        None => packet.meta.verdict = Verdict::Drop(DropReason::VxlanEcn),
        Some(ecn) if ecn != inner => {
            let old = be16(l3, 0);
            l3[1] = l3[1] & !(ECN_MASK << shift) | ecn << shift;
            if is_v4 {
                let sum = checksum::update(be16(l3, 10), old, be16(l3, 0));
                l3[10..12].copy_from_slice(&sum.to_be_bytes());
            } else {
                // Nothing in the packet makes up for it. The outer sum was right, and is asked for again if it has to wait.
                let udp = from - UDP_TO_INNER;
                packet.frame.bytes_mut()[udp + 6..udp + 8].fill(0);
            }
        }
        Some(_) => {}
    }
}

// ---- into tunnels

/// The way to a remote tunnel end point: what stands in front of the frames that go there.
#[derive(Clone)]
pub(super) struct Tunnel {
    /// Whose it is.
    pub(super) overlay: u16,
    /// The other end, in key form.
    pub(super) remote: u128,
    /// The interface outer packets leave by.
    pub(super) egress: u16,
    /// The longest IP packet that goes through.
    pub(super) mtu_bytes: u16,
    /// Outer link header and all headers up to the inner frame.
    header: [u8; MAX_HEADER],
    /// Bytes of `header` in use.
    len: u8,
    /// Bytes of the outer link header.
    link_len: u8,
    /// The outer header is one of IPv4.
    is_v4: bool,
    udp_checksum: bool,
    /// Fixed DSCP, in the place it has in TOS and traffic class.
    dscp: Option<u8>,
    /// Unfolded sum of the outer IPv4 header without TOS and length.
    sum: u32,
    packets: u32,
    bytes: u32,
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTunnel {
    /// Nobody knows which remote a station is behind.
    Unknown,
    /// The next hop in the underlay has to be asked for: the neighbour in this slot of this interface.
    Unresolved {
        /// Egress interface slot.
        egress: u16,
        /// Neighbour slot.
        neighbour: u32,
    },
    /// There is none.
    Lost(DropReason),
}

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
        const NONE: NoTunnel = NoTunnel::Lost(DropReason::VxlanNoTunnel);
        let spread = hash::address(cx.tables.settings.key, remote, overlay.spec.vni);
        let way = route::towards(cx.tables, overlay.underlay_vrf, addr_of(remote), spread);
        let Ok(Route::Forward { egress, via }) = way else { return Err(NONE) };
        let out = cx.tables.interface(egress);
        // No tunnel in a tunnel, or behind a bridge.
        if out.overlay != NO_OVERLAY || out.bridge != NO_BRIDGE {
            return Err(NONE);
        }
        if !out.up {
            return Err(NoTunnel::Lost(DropReason::PortDown));
        }
        let neighbour = match via.or_else(|| cx.neighbours.find(egress, remote)) {
            Some(neighbour) => neighbour,
            None => {
                let cap = cx.tables.settings.neighbours_per_interface;
                let slot = cx.neighbours.find_or_insert(egress, remote, cap);
                slot.map_err(|_| NoTunnel::Lost(DropReason::NeighbourTableFull))?
            }
        };
        let word = cx.neighbours.word(neighbour);
        if !word.is_usable() {
            return Err(NoTunnel::Unresolved { egress, neighbour });
        }
        cx.neighbours.mark_used(neighbour, cx.now);
        let path_mtu = cx.neighbours.vteps.path_mtu(remote, cx.now).min(out.mtu_bytes);
        Ok(Tunnel::new(interface, overlay, remote, (egress, out, word.mac()), path_mtu))
    }

    fn new(
        interface: &Interface,
        overlay: &Overlay,
        remote: u128,
        (egress, out, mac): (u16, &Interface, u64),
        path_mtu: u16,
    ) -> Tunnel {
        let spec = &overlay.spec;
        let is_v4 = spec.vtep.is_ipv4();
        let link_len = usize::from(out.header_len);
        let ip_len = if is_v4 { 20 } else { 40 };
        let mut header = [0; MAX_HEADER];
        header[..link_len].copy_from_slice(&out.header[..link_len]);
        header[..6].copy_from_slice(&mac.to_be_bytes()[2..]);
        let kind = if is_v4 { ethertype::IPV4 } else { ethertype::IPV6 };
        header[link_len - 2..link_len].copy_from_slice(&kind.to_be_bytes());
        let ip = &mut header[link_len..];
        if is_v4 {
            ip[0] = 0x45;
            // DF: RFC 7348 section 4.3 forbids tunnel end points to fragment. Atomic, so 0 will do for the
            // identification (RFC 6864 section 4.1).
            ip[6] = 0x40;
            ip[8] = spec.ttl;
            ip[9] = protocol::UDP;
            ip[12..16].copy_from_slice(&(addr_key(spec.vtep) as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(remote as u32).to_be_bytes());
        } else {
            ip[0] = 0x60;
            ip[6] = protocol::UDP;
            ip[7] = spec.ttl;
            ip[8..24].copy_from_slice(&addr_key(spec.vtep).to_be_bytes());
            ip[24..40].copy_from_slice(&remote.to_be_bytes());
        }
        let sum = if is_v4 { u32::from(checksum::fold(checksum::add(0, &ip[..20]))) } else { 0 };
        let udp = &mut ip[ip_len..];
        udp[2..4].copy_from_slice(&spec.udp_port.to_be_bytes());
        udp[UDP_BYTES] = FLAG_I;
        udp[UDP_BYTES + 4..UDP_BYTES + 8].copy_from_slice(&(spec.vni << 8).to_be_bytes());
        let overhead = (ip_len + UDP_TO_INNER) as u16;
        Tunnel {
            overlay: interface.overlay,
            remote,
            egress,
            mtu_bytes: interface.mtu_bytes.min(path_mtu.saturating_sub(overhead)),
            header,
            len: (link_len + ip_len + UDP_BYTES + VXLAN_BYTES) as u8,
            link_len: link_len as u8,
            is_v4,
            udp_checksum: spec.udp_checksum,
            dscp: spec.dscp.map(|dscp| dscp << 2),
            sum,
            packets: 0,
            bytes: 0,
        }
    }

    /// Bytes in front of the inner frame.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Writes the headers into the first bytes of `head`, behind which a frame of `frame_len` bytes begins with an
    /// inner packet of this `tos`. Returns the length of the outer IP packet.
    #[inline(always)]
    pub(super) fn write(&self, head: &mut [u8], frame_len: usize, tos: u8, source_port: u16) -> u16 {
        match self.len {
            50 => self.write_sized::<50>(head, frame_len, tos, source_port),
            54 => self.write_sized::<54>(head, frame_len, tos, source_port),
            70 => self.write_sized::<70>(head, frame_len, tos, source_port),
            74 => self.write_sized::<74>(head, frame_len, tos, source_port),
            len => {
                head[..usize::from(len)].copy_from_slice(&self.header[..usize::from(len)]);
                self.fill_in(&mut head[..usize::from(len)], frame_len, tos, source_port)
            }
        }
    }

    #[inline(always)]
    fn write_sized<const LEN: usize>(
        &self,
        head: &mut [u8],
        frame_len: usize,
        tos: u8,
        source_port: u16,
    ) -> u16 {
        let head: &mut [u8; LEN] = head.first_chunk_mut().expect("room was made for it");
        head.copy_from_slice(&self.header[..LEN]);
        self.fill_in(head, frame_len, tos, source_port)
    }

    /// What differs from packet to packet.
    #[inline(always)]
    fn fill_in(&self, head: &mut [u8], frame_len: usize, tos: u8, source_port: u16) -> u16 {
        // RFC 6040 section 4.1: normal mode, the ECN field is copied.
        let tos = self.dscp.map_or(tos, |dscp| dscp | tos & ECN_MASK);
        let udp_len = (UDP_BYTES + VXLAN_BYTES + frame_len) as u16;
        let end = head.len();
        let (ip, udp) = (usize::from(self.link_len), end - UDP_BYTES - VXLAN_BYTES);
        head[udp..udp + 2].copy_from_slice(&source_port.to_be_bytes());
        head[udp + 4..udp + 6].copy_from_slice(&udp_len.to_be_bytes());
        if self.is_v4 {
            let ip_len = udp_len + 20;
            let sum = self.sum + u32::from(ip_len) + u32::from(tos);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            let header = &mut head[ip..ip + 20];
            header[1] = tos;
            header[2..4].copy_from_slice(&ip_len.to_be_bytes());
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            ip_len
        } else {
            let header = &mut head[ip..ip + 40];
            header[0] = 0x60 | tos >> 4;
            header[1] = tos << 4;
            header[4..6].copy_from_slice(&udp_len.to_be_bytes());
            udp_len + 40
        }
    }

    /// Computes the outer UDP checksum, if the config wants it. `frame` begins with the outer link header.
    #[inline(always)]
    pub(super) fn seal(&self, frame: &mut Frame, ip_len: u16) {
        if self.udp_checksum {
            self.sum_up(frame, ip_len);
        }
    }

    #[cold]
    fn sum_up(&self, frame: &mut Frame, ip_len: u16) {
        let udp = self.len() - UDP_BYTES - VXLAN_BYTES;
        let udp_len = usize::from(ip_len) - (udp - usize::from(self.link_len));
        let bytes = frame.bytes();
        let ip = &bytes[usize::from(self.link_len)..];
        let pseudo = match self.is_v4 {
            true => checksum::pseudo_v4(*array(ip, 12), *array(ip, 16), protocol::UDP, udp_len),
            false => checksum::pseudo_v6(array(ip, 8), array(ip, 24), protocol::UDP, udp_len),
        };
        let sum = !checksum::fold(pseudo + checksum::add_chain(frame, udp, udp_len));
        // RFC 768: a computed 0 is sent as all ones.
        let sum = if sum == 0 { 0xffff } else { sum };
        frame.bytes_mut()[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    }

    /// What is known of a packet once it is in the tunnel.
    #[inline(always)]
    pub(super) fn note(&self, meta: &mut Meta, ip_len: u16, source_port: u16) {
        meta.family = if self.is_v4 { Family::Ipv4 } else { Family::Ipv6 };
        meta.protocol = protocol::UDP;
        meta.src_port = source_port;
        meta.dst_port = be16(&self.header, self.len() - UDP_BYTES - VXLAN_BYTES + 2);
        meta.ip_len = ip_len;
        meta.egress = self.egress;
        meta.verdict = Verdict::Forward;
    }

    /// Counts an outer packet.
    #[inline(always)]
    pub(super) fn add(&mut self, ip_len: u16) {
        self.packets += 1;
        self.bytes += u32::from(self.link_len) + u32::from(ip_len);
    }

    /// Counts what has gone through for the interface it left by.
    pub(super) fn count(&self, cx: &Context<'_>) {
        if self.packets != 0 {
            let counters = &cx.counters.interfaces[usize::from(self.egress)];
            add(&counters.tx_packets, self.packets.into());
            add(&counters.tx_bytes, self.bytes.into());
        }
    }

    /// Puts a whole frame into the tunnel, whose inner link header it begins with.
    pub(super) fn put(&mut self, frame: &mut Frame, cx: &Context<'_>) -> (u16, u16) {
        let frame_len = frame.total_len();
        self.put_cut(frame, frame_len, cx)
    }

    /// The same, of which the last bytes may be no part of.
    pub(super) fn put_cut(&mut self, frame: &mut Frame, frame_len: usize, cx: &Context<'_>) -> (u16, u16) {
        let (tos, source_port) = looks_of(frame.bytes(), cx.tables.settings.key);
        let len = self.len();
        let ip_len = self.write(frame.prepend(len), frame_len, tos, source_port);
        self.seal(frame, ip_len);
        self.add(ip_len);
        (ip_len, source_port)
    }
}

/// TOS of the packet in a frame, and the outer source port that its flow has: paths in the underlay are chosen by it
/// (RFC 7348 section 5).
fn looks_of(frame: &[u8], key: hash::Key) -> (u8, u16) {
    let Some(l3) = frame.get(INNER_LINK_BYTES..) else { return (0, FIRST_SOURCE_PORT) };
    match be16(frame, 12) {
        ethertype::IPV4 if l3.len() >= 20 => {
            let is_fragment = be16(l3, 6) & 0x3fff != 0;
            let ports = if is_fragment { None } else { l3.get(usize::from(l3[0] & 15) * 4..) };
            let hash = hash::of_packet(key, Family::Ipv4, l3, l3[9], ports_of(l3[9], ports));
            (l3[1], source_port(hash))
        }
        ethertype::IPV6 if l3.len() >= 40 => {
            let hash = hash::of_packet(key, Family::Ipv6, l3, l3[6], ports_of(l3[6], l3.get(40..)));
            (l3[0] << 4 | l3[1] >> 4, source_port(hash))
        }
        _ => (0, FIRST_SOURCE_PORT),
    }
}

#[inline(always)]
fn ports_of(upper: u8, l4: Option<&[u8]>) -> (u16, u16) {
    match l4.and_then(|l4| l4.first_chunk::<4>()) {
        Some(ports) if matches!(upper, protocol::TCP | protocol::UDP | protocol::SCTP) => {
            (be16(ports, 0), be16(ports, 2))
        }
        _ => (0, 0),
    }
}

/// The outer source port of the plain IPv4 packet with this header and eight bytes behind it.
#[inline(always)]
pub(super) fn plain_source_port(ip: &[u8; 28], key: hash::Key) -> u16 {
    let ports = ports_of(ip[9], Some(&ip[20..]));
    source_port(hash::tuple_v4(key, be32(ip, 12), be32(ip, 16), ip[9], ports))
}

#[inline(always)]
fn source_port(hash: u64) -> u16 {
    FIRST_SOURCE_PORT | (hash >> 32) as u16 & !FIRST_SOURCE_PORT
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

    #[test]
    fn source_ports_are_dynamic_ones() {
        for hash in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            assert!(source_port(hash) >= FIRST_SOURCE_PORT);
        }
        assert_eq!(source_port(0x3fff << 32), 65535);
    }
}
