//! Plain: what nearly every packet is, dealt with in one look. IPv4 without options, whole and in one buffer, untagged
//! or with one tag, for us and fit to be forwarded: [`look`] finds out about it at once what *link*, *network* and
//! *source* do step by step, and begins *flow*; and where a packet has one gateway, [`send`] does the work of *route*,
//! *adjacency* and *rewrite* for those without a session, and [`depart`] for those with one.
//!
//! What is not plain in any respect is left as it came: the stages deal with it, and say what is wrong with it. So
//! this file decides nothing that they would not; they are its twin in the tests.

use arrayvec::ArrayVec;

use crate::flow::identification::Identifications;
use crate::flow::{FlowTable, Flows};
use crate::macs::Location;
use crate::mem::BURST;
use crate::neighbours::v4_key;
use crate::packet::view::{array, be16, be32, ethertype, protocol};
use crate::packet::{Burst, Family, Meta, Packet, Pass, Tags, Verdict, flags};
use crate::pipeline::tunnel::{self, INNER_LINK_BYTES, Tunnel};
use crate::pipeline::{Context, bridge, deliver, flow, network, rewrite, route, source, vxlan};
use crate::tables::balance::delivery::number_of;
use crate::tables::bridge::{Bridge, Member, NO_BRIDGE};
use crate::tables::fib4::Fib4;
use crate::tables::overlay::{NO_OVERLAY, Overlay};
use crate::tables::policy::NO_ZONE;
use crate::tables::virtual_router::may_be_virtual;
use crate::tables::{
    Action, Interface, MAX_LINK_HEADER, NO_INTERFACE, NextHop, PortTable, SourceCheck, Tables,
};
use crate::telemetry::add;
use crate::vteps::Remote;

/// IPv4 header without options, and eight bytes behind it: UDP's header, the beginning of all others.
const IP_BYTES: usize = 28;
/// Ethernet header without tag.
const ETHERNET_BYTES: usize = 14;
/// The shortest plain frame.
const SHORTEST: usize = ETHERNET_BYTES + IP_BYTES;
/// IPv4 DF: the only bit of its word that may be set.
const DONT_FRAGMENT: u16 = 0x4000;

/// By the first byte of a source address: all of it may be forwarded. 169.254/16 must not (RFC 3927 section 2.7), and
/// its neighbours are so few that they need not be told apart here.
static FORWARDED: [bool; 256] = {
    let mut forwarded = [false; 256];
    let mut first = 0;
    while first < 256 {
        forwarded[first] = first != 169 && !source::is_martian_v4((first as u32) << 24);
        first += 1;
    }
    forwarded
};

/// What is known of a burst's plain packets, one bit per packet.
#[derive(Default)]
pub(super) struct Plain {
    /// These are plain: their metadata says all that the first three stages would say.
    pub(super) all: u64,
    /// Of these, those that come from a zone: they belong to sessions.
    pub(super) stateful: u64,
}

/// The plain packets of a burst that have no session, all of one VRF.
pub(super) struct Routed {
    vrf: u16,
    count: usize,
    addrs: [u32; BURST],
    indices: [u8; BURST],
    /// One bit per packet.
    mask: u64,
}

impl Default for Routed {
    fn default() -> Routed {
        Routed { vrf: 0, count: 0, addrs: [0; BURST], indices: [0; BURST], mask: 0 }
    }
}

/// Where frames with the same tag come in.
struct Entrance<'a> {
    /// Worth to be fetched from.
    large: Option<&'a Fib4>,
    /// They come in by a member of a bridge, for the bridge's interface.
    bridged: Option<Bridged<'a>>,
    /// The tag's control information and TPID, or [`UNTAGGED`].
    tag: u32,
    interface: u16,
    vrf: u16,
    flags: u16,
    /// More than 48 bits if nothing that comes in here is plain, or only what has a look at [`Entrance::bridged`].
    mac: u64,
    /// That of a virtual router whose Active we are, once a frame has come to it; else more than 48 bits.
    virtual_mac: u64,
    /// Tunnels end in its VRF.
    has_tunnels: bool,
    packets: u64,
    bytes: u64,
}

/// No tag: a TPID of 0.
const UNTAGGED: u32 = 0;

/// What the member of a bridge adds to an [`Entrance`].
#[derive(Clone, Copy)]
struct Bridged<'a> {
    bridge: &'a Bridge,
    member: &'a Member,
    /// Where its stations are, if they are learned.
    location: Option<Location>,
    /// The station whose frame was the last.
    station: u64,
}

/// No frame has it as its source: the first is looked at, whatever it has.
const NO_STATION: u64 = u64::MAX;

/// In an [`Entrance::mac`]: the rest is that of a bridge's interface.
const BY_BRIDGE: u64 = 1 << 48;

impl<'a> Entrance<'a> {
    /// Nothing is plain there.
    const SHUT: Entrance<'static> = Entrance {
        large: None,
        bridged: None,
        tag: UNTAGGED,
        interface: NO_INTERFACE,
        vrf: 0,
        flags: 0,
        mac: u64::MAX,
        virtual_mac: u64::MAX,
        has_tunnels: false,
        packets: 0,
        bytes: 0,
    };

    #[inline(never)]
    fn find(tag: u32, port: &PortTable, cx: &Context<'a>) -> Entrance<'a> {
        let vlan = tag as u16 & 0xfff;
        let slot = if tag == UNTAGGED { port.untagged } else { port.find(Tags { outer: vlan, inner: 0 }) };
        let mut entrance = Entrance { tag, interface: slot, ..Entrance::SHUT };
        // What comes over the pair link comes out of its headers first.
        if slot != NO_INTERFACE && slot != cx.tables.pair_interface() {
            let interface = cx.tables.interface(slot);
            if interface.bridge == NO_BRIDGE {
                entrance.open(interface, cx.tables);
            } else {
                entrance.open_bridged(slot, None, cx);
            }
        }
        entrance
    }

    /// By the member with this interface slot, out of the tunnel of `remote` if it teaches.
    #[cold]
    fn open_bridged(&mut self, slot: u16, remote: Option<Remote>, cx: &Context<'a>) {
        let Some(bridge) = cx.tables.bridges.get(cx.tables.interface(slot).bridge) else { return };
        let Some(member) = bridge.member(slot) else { return };
        let passes_on = bridge.passes_on(&cx.neighbours.roles);
        if bridge.interface == NO_INTERFACE || cx.limits.segments.is_shut(slot, cx.now) || !passes_on {
            return;
        }
        self.interface = bridge.interface;
        self.open(cx.tables.interface(bridge.interface), cx.tables);
        // Hosts of a bridge are no ends of tunnels.
        self.has_tunnels = false;
        self.mac |= BY_BRIDGE;
        let location = bridge::location_of(member, remote);
        self.bridged = Some(Bridged { bridge, member, location, station: NO_STATION });
    }

    /// Takes a packet that came in by a member of a bridge, and learns where its station is; false if it is not plain,
    /// or not for the bridge's interface.
    #[inline(never)]
    fn take_bridged(
        &mut self,
        mac: u64,
        link: usize,
        l3: usize,
        packet: &mut Packet,
        cx: &Context<'_>,
    ) -> bool {
        if mac | BY_BRIDGE != self.mac || packet.frame.is_chained() || !read(l3, self, packet) {
            return false;
        }
        let Some(bridged) = &mut self.bridged else { return false };
        packet.meta.egress = NO_INTERFACE;
        let station = vxlan::station_of(array(packet.frame.bytes(), link));
        if station == bridged.station {
            return true;
        }
        if bridge::is_group(station) || station == 0 || station == mac {
            packet.meta = Meta::FRESH;
            return false;
        }
        bridged.station = station;
        if let Some(location) = bridged.location {
            bridge::learn(bridged.bridge, bridged.member, station, location, cx);
        }
        true
    }

    fn open(&mut self, interface: &Interface, tables: &'a Tables) {
        if interface.source_check != SourceCheck::Off {
            return;
        }
        (self.vrf, self.mac) = (interface.vrf, interface.mac);
        let fib = &*tables.vrfs[usize::from(interface.vrf)].fib4;
        self.large = fib.is_large().then_some(fib);
        self.flags = flags::PLAIN | if interface.zone == NO_ZONE { 0 } else { flags::STATEFUL };
        self.has_tunnels = interface.overlay == NO_OVERLAY && tables.overlays.end_in(interface.vrf);
    }

    /// True if a frame that is not to our own address is to that of a virtual router. Its role is asked for once in a
    /// burst.
    #[inline(always)]
    fn is_virtual(&mut self, mac: u64, cx: &Context<'_>) -> bool {
        mac == self.virtual_mac || may_be_virtual(mac) && self.find_virtual(mac, cx)
    }

    #[inline(never)]
    fn find_virtual(&mut self, mac: u64, cx: &Context<'_>) -> bool {
        let is_ours = self.mac < BY_BRIDGE
            && cx.tables.interface(self.interface).has_virtual_mac(mac, &cx.neighbours.roles);
        if is_ours {
            self.virtual_mac = mac;
        }
        is_ours
    }

    fn count(&self, cx: &Context<'_>) {
        if self.packets != 0 && cx.pass == Pass::First {
            let counters = &cx.counters.interfaces[usize::from(self.interface)];
            add(&counters.rx_packets, self.packets);
            add(&counters.rx_bytes, self.bytes);
            if let Some(bridged) = &self.bridged {
                let counters = &cx.counters.interfaces[usize::from(bridged.member.interface)];
                add(&counters.rx_packets, self.packets);
                add(&counters.rx_bytes, self.bytes);
            }
        }
    }
}

/// The tunnel that frames of a burst come out of.
struct Exit<'a> {
    /// Source and destination of the outer header, as they are in it.
    ends: [u8; 8],
    /// VXLAN header.
    header: [u8; 8],
    /// This end: address, UDP port and VRF.
    end: (u32, u16, u16),
    /// Where the frames inside come in.
    entrance: Entrance<'a>,
    /// The other end, if stations are followed there.
    remote: Option<Remote>,
    /// The station whose frame was the last.
    station: u64,
}

/// An outer header from its first byte on, with UDP, VXLAN and the link header inside.
const OUTER_BYTES: usize = 20 + 8 + 8 + INNER_LINK_BYTES;

impl<'a> Exit<'a> {
    /// Nobody's: no outer packet has such an end.
    fn none() -> Exit<'a> {
        let (entrance, station) = (Entrance::SHUT, NO_STATION);
        Exit { ends: [0; 8], header: [0; 8], end: (0, 0, 0), entrance, remote: None, station }
    }

    /// False: it is none, or not for this file.
    #[inline(never)]
    fn find(&mut self, ends: [u8; 8], header: [u8; 8], end: (u32, u16, u16), cx: &Context<'a>) -> bool {
        let (src, vni, (dst, port, vrf)) = (v4_key(be32(&ends, 0)), be32(&header, 4) >> 8, end);
        let overlay = cx.tables.overlays.find(vrf, v4_key(dst), port, vni);
        let is_plain = |found: &&Overlay| {
            found.is_here(&cx.neighbours.roles)
                && found.permits(src)
                && vxlan::options_bytes(found.spec.encapsulation, &header) == Some(0)
        };
        let Some(overlay) = overlay.filter(is_plain) else { return false };
        self.entrance.count(cx);
        *self = Exit { ends, header, end, ..Exit::none() };
        let (interface, remote) = (cx.tables.interface(overlay.interface), vxlan::sender(overlay, src, cx));
        if interface.bridge == NO_BRIDGE {
            self.entrance.interface = overlay.interface;
            self.entrance.open(interface, cx.tables);
            self.remote = remote;
        } else {
            self.entrance.open_bridged(overlay.interface, remote, cx);
        }
        true
    }

    /// True if a packet of UDP is to a tunnel end point of ours.
    #[inline(always)]
    fn is_for(&self, meta: &Meta, cx: &Context<'a>) -> bool {
        self.end == (meta.dst_v4, meta.dst_port, meta.vrf) || self.is_other(meta, cx)
    }

    #[inline(always)]
    fn is_other(&self, meta: &Meta, cx: &Context<'a>) -> bool {
        cx.tables.overlays.has_port(meta.dst_port)
            && cx.tables.overlays.is_end(meta.vrf, v4_key(meta.dst_v4), meta.dst_port)
    }

    /// Takes a plain packet to a tunnel end point out of its tunnel; false if what is inside is not plain.
    #[inline(always)]
    fn take(&mut self, packet: &mut Packet, cx: &Context<'a>) -> bool {
        let took = self.take_out(packet, cx);
        if !took {
            packet.meta = Meta::FRESH;
        }
        took
    }

    #[inline(always)]
    fn take_out(&mut self, packet: &mut Packet, cx: &Context<'a>) -> bool {
        let meta = &packet.meta;
        let (ip, ip_len, end) = (usize::from(meta.l3), meta.ip_len, (meta.dst_v4, meta.dst_port, meta.vrf));
        let Some(outer) = packet.frame.bytes()[ip..].first_chunk::<OUTER_BYTES>() else { return false };
        let udp_len = be16(outer, 24);
        // A checksum to be verified, and congestion that is to be carried over, are for the stages.
        if be16(outer, 26) != 0
            || udp_len.wrapping_add(20) != ip_len
            || be16(outer, 48) != ethertype::IPV4
            || outer[1] & 3 != 0
        {
            return false;
        }
        let (ends, header): (&[u8; 8], &[u8; 8]) = (array(outer, 12), array(outer, 28));
        let (mac, station) =
            (u64::from_be_bytes(*array(outer, 36)) >> 16, vxlan::station_of(array(outer, 36)));
        let is_as_before = *ends == self.ends && *header == self.header && end == self.end;
        if !is_as_before && !self.find(*ends, *header, end, cx) {
            return false;
        }
        let (link, l3) = (ip + OUTER_BYTES - INNER_LINK_BYTES, ip + OUTER_BYTES);
        let is_plain = if mac == self.entrance.mac {
            read(l3, &self.entrance, packet)
        } else {
            self.entrance.take_bridged(mac, link, l3, packet, cx)
        };
        if !is_plain || l3 + usize::from(packet.meta.ip_len) > ip + usize::from(ip_len) {
            return false;
        }
        self.entrance.packets += 1;
        self.entrance.bytes += u64::from(udp_len) - 16;
        if let Some(remote) = self.remote
            && station != self.station
        {
            self.station = station;
            let slot = self.entrance.interface;
            vxlan::follow(cx.tables.interface(slot), slot, station, remote, cx);
        }
        true
    }
}

/// Looks at a burst of fresh packets from `port`, and begins the lookups of sessions.
pub(super) fn look(
    burst: &mut Burst,
    port: u16,
    cx: &Context<'_>,
    flows: &Flows,
    routed: &mut Routed,
    lookups: &mut flow::Lookups,
) -> Plain {
    // Twice the same code: where there are no tunnels it keeps more in registers, 20 instructions a packet.
    if cx.tables.overlays.is_empty() {
        look_at::<false>(burst, port, cx, flows, routed, lookups)
    } else {
        look_at::<true>(burst, port, cx, flows, routed, lookups)
    }
}

#[inline(never)]
fn look_at<const TUNNELS: bool>(
    burst: &mut Burst,
    port: u16,
    cx: &Context<'_>,
    flows: &Flows,
    routed: &mut Routed,
    lookups: &mut flow::Lookups,
) -> Plain {
    let port = &cx.tables.ports[usize::from(port)];
    let (mut plain, mut count, mut others) = (Plain::default(), 0, 0);
    let mut entrance = Entrance::find(UNTAGGED, port, cx);
    let mut exit = Exit::none();
    for index in 0..burst.len() {
        let packet = &mut burst[index];
        let bytes = packet.frame.bytes();
        let Some(head) = bytes.first_chunk::<SHORTEST>() else { continue };
        let kind = be16(head, 12);
        let (tag, l3) = match kind {
            ethertype::IPV4 => (UNTAGGED, ETHERNET_BYTES),
            ethertype::VLAN if be16(head, 16) == ethertype::IPV4 => (be32(head, 12), ETHERNET_BYTES + 4),
            _ => continue,
        };
        if tag != entrance.tag {
            entrance.count(cx);
            entrance = Entrance::find(tag, port, cx);
        }
        let mac = u64::from_be_bytes(*array(head, 0)) >> 16;
        if mac != entrance.mac && !entrance.is_virtual(mac, cx) {
            if !entrance.take_bridged(mac, 0, l3, packet, cx) {
                continue;
            }
        } else if packet.frame.is_chained() || !read(l3, &entrance, packet) {
            continue;
        }
        let mut from = &entrance;
        if TUNNELS && entrance.has_tunnels {
            if packet.meta.protocol == protocol::UDP {
                if exit.is_for(&packet.meta, cx) {
                    if !exit.take(packet, cx) {
                        continue;
                    }
                    from = &exit.entrance;
                }
            } else if packet.meta.protocol == protocol::ICMP
                && cx.tables.overlays.is_vtep(entrance.vrf, v4_key(packet.meta.dst_v4))
            {
                // It may be about a tunnel.
                packet.meta = Meta::FRESH;
                continue;
            }
        }
        let (vrf, is_stateful, large) = (from.vrf, from.flags & flags::STATEFUL != 0, from.large);
        plain.all |= 1 << index;
        entrance.packets += 1;
        entrance.bytes += packet.frame.len() as u64;
        if is_stateful {
            plain.stateful |= 1 << index;
            flow::begin_plain(packet, index, flows, lookups);
        } else if count == 0 || vrf == routed.vrf {
            routed.vrf = vrf;
            routed.addrs[count] = packet.meta.dst_v4;
            routed.indices[count] = index as u8;
            count += 1;
            if let Some(fib) = large {
                fib.prefetch(packet.meta.dst_v4);
            }
        } else {
            // Not by this batch.
            others |= 1 << index;
        }
    }
    entrance.count(cx);
    if TUNNELS {
        exit.entrance.count(cx);
    }
    (routed.count, routed.mask) = (count, plain.all & !(plain.stateful | others));
    plain
}

/// Reads the packet whose L3 header begins at `l3`; true if it is plain.
#[inline(always)]
fn read(l3: usize, entrance: &Entrance<'_>, packet: &mut Packet) -> bool {
    let Some(ip) = packet.frame.bytes()[l3..].first_chunk::<24>() else { return false };
    let (ip_len, fragment) = (be16(ip, 2), be16(ip, 6));
    let fits = usize::from(ip_len) >= IP_BYTES && l3 + usize::from(ip_len) <= packet.frame.len();
    if ip[0] != network::VERSION_4_WITHOUT_OPTIONS
        || !fits
        || fragment & !DONT_FRAGMENT != 0
        // RFC 1812 section 5.3.1.
        || ip[8] <= 1
        || !FORWARDED[usize::from(ip[12])]
        || !network::plain_header_is_valid(array(ip, 0))
    {
        return false;
    }
    let has_ports = matches!(ip[9], protocol::TCP | protocol::UDP | protocol::SCTP);
    let ports = if has_ports { be32(ip, 20) } else { 0 };
    // DF's bit of the word becomes the flag's.
    const _: () = assert!(DONT_FRAGMENT >> 11 == flags::DONT_FRAGMENT);
    let meta = &mut packet.meta;
    meta.dst_v4 = be32(ip, 16);
    meta.l3 = l3 as u16;
    meta.l4 = l3 as u16 + 20;
    meta.ip_len = ip_len;
    meta.interface = entrance.interface;
    meta.vrf = entrance.vrf;
    meta.src_port = (ports >> 16) as u16;
    meta.dst_port = ports as u16;
    meta.family = Family::Ipv4;
    meta.protocol = ip[9];
    meta.flags = entrance.flags | fragment >> 11;
    true
}

/// A gateway that packets of this burst go to, and what is written in front of them.
#[derive(Clone, Copy)]
struct Hop {
    neighbour: u32,
    egress: u16,
    /// What packets leave by: the egress, or a member of its bridge.
    out: u16,
    mtu_bytes: u16,
    /// Bytes of `header`, or [`TUNNELLED`] or [`DELIVERED`].
    header_len: u8,
    header: [u8; MAX_LINK_HEADER],
    /// Which of the burst's tunnels it is behind.
    tunnel: u8,
    packets: u32,
    bytes: u32,
}

/// In the place of a header's length: longer than any.
const TUNNELLED: u8 = u8::MAX;
/// Likewise: a tunnel in which packets have no link header.
const DELIVERED: u8 = TUNNELLED - 1;

/// Tunnels of a burst, for each station behind one; what goes by others is for the stages.
const MAX_TUNNELS: usize = HOPS;

type Tunnels = ArrayVec<Tunnel, MAX_TUNNELS>;

/// Next hops kept in a burst: most of its packets go to them.
const HOPS: usize = 32;

/// No gateway, and no packet is short enough for it.
const NO_HOP: Hop = Hop {
    neighbour: 0,
    egress: NO_INTERFACE,
    out: NO_INTERFACE,
    mtu_bytes: 0,
    header_len: 0,
    header: [0; MAX_LINK_HEADER],
    tunnel: 0,
    packets: 0,
    bytes: 0,
};

impl Hop {
    /// If it takes more than writing a header to reach it, it takes no packet.
    #[inline(never)]
    fn find(next: NextHop, along_sessions: bool, tunnels: &mut Tunnels, cx: &Context<'_>) -> Hop {
        let egress = cx.tables.interface(next.interface);
        let (neighbour, slot) = (next.neighbour, next.interface);
        let mut hop = Hop { neighbour, egress: slot, out: slot, ..NO_HOP };
        if let Some(number) = number_of(next.neighbour) {
            hop.lead_to_backend(number, egress, tunnels, cx);
            return hop;
        }
        // Into a zone there is no way without a session (DESIGN.md section 3).
        if egress.up && (along_sessions || egress.zone == NO_ZONE) {
            hop.lead_to_neighbour(neighbour, egress, tunnels, cx);
        }
        hop
    }

    /// It is a neighbour, if that is there.
    fn lead_to_neighbour(&mut self, slot: u32, egress: &Interface, tunnels: &mut Tunnels, cx: &Context<'_>) {
        let word = cx.neighbours.word(slot);
        if !word.is_usable() {
            return;
        }
        let mac = word.mac();
        cx.neighbours.mark_used(slot, cx.now);
        if egress.bridge != NO_BRIDGE {
            self.lead_into_bridge(egress, mac, tunnels, cx);
        } else if egress.overlay != NO_OVERLAY {
            let Some(overlay) = cx.tables.overlays.get(egress.overlay) else { return };
            let Some(remote) = vxlan::remote_of(overlay, mac, cx) else { return };
            self.lead_through(egress, egress, (overlay, remote), mac, tunnels, cx);
        } else {
            self.lead_onto(egress, mac);
        }
    }

    /// It is behind a member of the bridge, if that is known.
    #[cold]
    fn lead_into_bridge(&mut self, egress: &Interface, mac: u64, tunnels: &mut Tunnels, cx: &Context<'_>) {
        let Some((location, member)) = bridge::way_to(egress, mac, cx) else { return };
        let out = cx.tables.interface(member.interface);
        self.out = member.interface;
        if let Some(way) = bridge::overlay_to(location, member, cx) {
            self.lead_through(egress, out, way, mac, tunnels, cx);
        } else if member.vni.is_none() {
            self.lead_onto(out, mac);
            self.header[6..12].copy_from_slice(&egress.header[6..12]);
        }
        self.mtu_bytes = self.mtu_bytes.min(egress.mtu_bytes);
    }

    /// It is on the link.
    fn lead_onto(&mut self, egress: &Interface, mac: u64) {
        let len = usize::from(egress.header_len);
        self.header = egress.header;
        self.header[..6].copy_from_slice(&mac.to_be_bytes()[2..]);
        self.header[len - 2..len].copy_from_slice(&ethertype::IPV4.to_be_bytes());
        (self.header_len, self.mtu_bytes) = (egress.header_len, egress.mtu_bytes);
    }

    /// It is a backend that is to see packets as they come.
    fn lead_to_backend(&mut self, number: u16, egress: &Interface, tunnels: &mut Tunnels, cx: &Context<'_>) {
        if !egress.up {
            return;
        }
        let Some(has_tunnel) = deliver::has_tunnel(number, cx) else { return };
        if !has_tunnel {
            if let Some(slot) = deliver::neighbour(number, self.egress, cx) {
                self.lead_to_neighbour(slot, egress, tunnels, cx);
            }
            return;
        }
        let place = match tunnels.iter().position(|tunnel| tunnel.owner == self.neighbour) {
            Some(place) => place,
            None if tunnels.is_full() => return,
            None => {
                let Ok(tunnel) = deliver::tunnel(number, Family::Ipv4, cx) else { return };
                tunnels.push(tunnel);
                tunnels.len() - 1
            }
        };
        (self.tunnel, self.header_len, self.mtu_bytes) = (place as u8, DELIVERED, tunnels[place].mtu_bytes);
    }

    /// It is behind a tunnel of the interface `out`, which is `egress` or a member of its bridge.
    fn lead_through(
        &mut self,
        egress: &Interface,
        out: &Interface,
        (overlay, remote): (&Overlay, u128),
        mac: u64,
        tunnels: &mut Tunnels,
        cx: &Context<'_>,
    ) {
        let mut link: [u8; INNER_LINK_BYTES] = *array(&egress.header, 0);
        link[..6].copy_from_slice(&mac.to_be_bytes()[2..]);
        link[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
        let same = |tunnel: &&Tunnel| (tunnel.owner, tunnel.remote) == (u32::from(out.overlay), remote);
        let place = match tunnels.iter().position(|tunnel| same(&tunnel) && tunnel.leads(&link)) {
            Some(place) => place,
            None if tunnels.is_full() => return,
            None => {
                let known = tunnels.iter().find(same).map(|tunnel| tunnel.of_hop(&link));
                let found = || Tunnel::find(out, overlay, remote, cx).map(|tunnel| tunnel.of_hop(&link));
                let Ok(tunnel) = known.map_or_else(found, Ok) else { return };
                tunnels.push(tunnel);
                tunnels.len() - 1
            }
        };
        (self.tunnel, self.header_len, self.mtu_bytes) = (place as u8, TUNNELLED, tunnels[place].mtu_bytes);
    }

    fn count(&self, cx: &Context<'_>) {
        if self.packets != 0 {
            let counters = &cx.counters.interfaces[usize::from(self.egress)];
            add(&counters.tx_packets, self.packets.into());
            if self.out == self.egress {
                add(&counters.tx_bytes, self.bytes.into());
                return;
            }
            // The bridge's interface knows of no tag.
            let tags = if self.header_len >= DELIVERED {
                0
            } else {
                u32::from(self.header_len) - ETHERNET_BYTES as u32
            };
            add(&counters.tx_bytes, (self.bytes - self.packets * tags).into());
            let counters = &cx.counters.interfaces[usize::from(self.out)];
            add(&counters.tx_packets, self.packets.into());
            add(&counters.tx_bytes, self.bytes.into());
        }
    }

    /// Finishes a packet: takes one off the TTL and puts the header in front.
    #[inline(always)]
    fn send(&mut self, packet: &mut Packet, tunnels: &mut Tunnels, cx: &Context<'_>) {
        if self.header_len >= DELIVERED {
            let tunnel = &mut tunnels[usize::from(self.tunnel)];
            return match self.header_len {
                DELIVERED => send_to_backend(packet, tunnel, cx),
                _ => self.send_through(packet, tunnel, cx),
            };
        }
        let (len, meta) = (usize::from(self.header_len), &mut packet.meta);
        (meta.egress, meta.verdict) = (self.out, Verdict::Forward);
        self.packets += 1;
        self.bytes += u32::from(self.header_len) + u32::from(meta.ip_len);
        // Ethernet padding does not travel on.
        let bytes = packet.frame.reframe(meta.l3.into(), len, meta.ip_len.into());
        let head: &mut [u8; SHORTEST] = bytes.first_chunk_mut().expect("a plain packet has these bytes");
        match len {
            14 => self.put::<14>(head),
            18 => self.put::<18>(head),
            _ => self.put::<22>(head),
        }
    }

    /// The same, with the headers of a tunnel in front of that.
    #[inline(never)]
    fn send_through(&mut self, packet: &mut Packet, tunnel: &mut Tunnel, cx: &Context<'_>) {
        self.packets += 1;
        self.bytes += INNER_LINK_BYTES as u32 + u32::from(packet.meta.ip_len);
        tunnel.finish(packet, cx.tables.settings.key);
    }

    #[inline(always)]
    fn put<const LEN: usize>(&self, head: &mut [u8; SHORTEST]) {
        rewrite::decrement_ttl(&mut head[LEN..], Family::Ipv4);
        head[..LEN].copy_from_slice(&self.header[..LEN]);
    }
}

/// Finishes a packet: takes one off the TTL and puts the headers of a tunnel in front.
#[inline(never)]
fn send_to_backend(packet: &mut Packet, tunnel: &mut Tunnel, cx: &Context<'_>) {
    let meta = &mut packet.meta;
    let len = tunnel.len();
    let bytes = packet.frame.reframe(meta.l3.into(), len, meta.ip_len.into());
    let (head, rest) = bytes.split_at_mut(len);
    let ip: &mut [u8; IP_BYTES] = rest.first_chunk_mut().expect("a plain packet has these bytes");
    rewrite::decrement_ttl(ip, Family::Ipv4);
    let source_port = tunnel::plain_source_port(ip, cx.tables.settings.key);
    let ip_len = tunnel.write(head, meta.ip_len.into(), ip[1], source_port);
    tunnel.seal(&mut packet.frame, ip_len);
    tunnel.add(ip_len);
    tunnel.note(meta, ip_len, source_port);
}

/// Packets of a burst, one bit per packet.
#[derive(Default)]
pub(super) struct Done {
    /// They have a route.
    pub(super) routed: u64,
    /// They are finished.
    pub(super) sent: u64,
}

/// The next hops of a burst's packets.
pub(super) struct Hops<'a> {
    hops: [Hop; HOPS],
    tunnels: Tunnels,
    along_sessions: bool,
    cx: &'a Context<'a>,
}

impl<'a> Hops<'a> {
    pub(super) fn new(along_sessions: bool, cx: &'a Context<'a>) -> Hops<'a> {
        Hops { hops: [NO_HOP; HOPS], tunnels: Tunnels::new(), along_sessions, cx }
    }

    /// The next hop, kept at `place`: another may be there.
    #[inline(always)]
    fn find(&mut self, next: NextHop, place: usize) -> (&mut Hop, &mut Tunnels) {
        let hop = &mut self.hops[place % HOPS];
        if (hop.neighbour, hop.egress) != (next.neighbour, next.interface) {
            hop.count(self.cx);
            *hop = Hop::find(next, self.along_sessions, &mut self.tunnels, self.cx);
        }
        (hop, &mut self.tunnels)
    }

    pub(super) fn finish(&self) {
        self.hops.iter().for_each(|hop| hop.count(self.cx));
        self.tunnels.iter().for_each(|tunnel| tunnel.count(self.cx));
    }
}

/// The neighbour that a connected destination is, if it is known.
#[inline(always)]
fn connected(interface: u16, dst: u32, cx: &Context<'_>) -> Option<(NextHop, usize)> {
    let neighbour = cx.neighbours.find(interface, v4_key(dst))?;
    Some((NextHop { interface, neighbour }, neighbour as usize))
}

/// Routes the plain packets, and finishes those whose next hop is there.
#[inline(never)]
pub(super) fn send(burst: &mut Burst, routed: &Routed, cx: &Context<'_>) -> Done {
    if routed.count == 0 {
        return Done::default();
    }
    let vrf = &cx.tables.vrfs[usize::from(routed.vrf)];
    let (addrs, indices) = (&routed.addrs[..routed.count], &routed.indices[..routed.count]);
    let mut leaves = [0; BURST];
    let leaves = &mut leaves[..routed.count];
    vrf.fib4.find_batch(addrs, leaves);
    let (mut hops, mut unsent) = (Hops::new(false, cx), 0);
    for (index, leaf) in indices.iter().zip(leaves) {
        let packet = &mut burst[usize::from(*index)];
        // Gateways by leaf, which are numbered one after the other, hosts as they come.
        let next = match vrf.actions[usize::from(*leaf)] {
            Action::Via(next) => Some((next, usize::from(*leaf))),
            Action::Connected { interface } => connected(interface, packet.meta.dst_v4, cx),
            _ => None,
        };
        let Some((next, place)) = next else {
            unsent |= 1 << index;
            route::apply(packet, vrf, *leaf, cx);
            continue;
        };
        let (hop, tunnels) = hops.find(next, place);
        if packet.meta.ip_len > hop.mtu_bytes {
            unsent |= 1 << index;
            (packet.meta.egress, packet.meta.neighbour) = (next.interface, next.neighbour);
            continue;
        }
        hop.send(packet, tunnels, cx);
    }
    hops.finish();
    Done { routed: routed.mask, sent: routed.mask & !unsent }
}

/// Finishes a plain packet whose session says where to, if its next hop is there.
#[inline(always)]
pub(super) fn depart(
    packet: &mut Packet,
    flows: &mut FlowTable<u32>,
    identifications: &mut Identifications,
    hops: &mut Hops<'_>,
) -> bool {
    let meta = &packet.meta;
    if meta.egress == NO_INTERFACE || meta.has(flags::ICMP_ERROR) {
        return false;
    }
    let next = match meta.neighbour {
        route::NO_NEIGHBOUR => connected(meta.egress, meta.dst_v4, hops.cx),
        neighbour => Some((NextHop { interface: meta.egress, neighbour }, neighbour as usize)),
    };
    let Some((next, place)) = next else { return false };
    let cx = hops.cx;
    let (hop, tunnels) = hops.find(next, place);
    if meta.ip_len > hop.mtu_bytes {
        return false;
    }
    rewrite::along(packet, flows, identifications, cx);
    hop.send(packet, tunnels, cx);
    true
}

#[cfg(test)]
mod tests;
