//! The slow path: what leaves the six stages with another verdict than "forward".
//!
//! Neighbours to resolve, packets to the gateway itself, fragments to cut, ICMP errors to send. All work
//! is bounded: packets parked, solicitations open, packets emitted per burst, errors per second. What is
//! parked carries frame, ingress and time only, and starts again at the first stage.

mod announce;
pub(super) mod loops;
mod relay;
pub mod segments;
mod snooping;
mod stations;
mod unsolicited;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::affinity::ClientTable;
use crate::by_slot::BySlot;
use crate::flow::Flows;
use crate::flow::cookie::Cookies;
use crate::flow::half_open::HalfOpen;
use crate::flow::proxy::Said;
use crate::host::{LinkTarget, OwnBytes, arp, icmp, nd, tcp};
use crate::mem::{Frame, FramePool};
use crate::neighbours::{self, NeighbourTable, State, addr_key, mac_from_u64, v4_key};
use crate::packet::view::{array, array_mut, be128, ethertype, protocol};
use crate::packet::{DropReason, Family, IcmpError, Ingress, Meta, Packet, Verdict, checksum, flags, hash};
use crate::pipeline::route::NO_NEIGHBOUR;
use crate::pipeline::tunnel::{NoTunnel, Tunnel};
use crate::pipeline::{Context, bridge, deliver, fragment, vxlan, write_link_header};
use crate::ratelimit::{Appointment, Bucket, SourceBuckets};
use crate::tables::bridge::{NO_BRIDGE, is_scope};
use crate::tables::overlay::{NO_OVERLAY, Overlay};
use crate::tables::virtual_router::Held;
use crate::tables::{Interface, NO_INTERFACE, Tables};
use crate::telemetry::add;
use crate::time::Nanos;
use announce::Announcer;
use segments::{Rounds, Segments};
use unsolicited::Unsolicited;

/// Packets a worker parks for all neighbours together.
const MAX_PARKED: usize = 1024;
/// Packets parked for one neighbour at most, whatever the config says.
pub const MAX_QUEUE: usize = 16;
/// Neighbours a worker asks for at the same time.
const MAX_SOLICITATIONS: usize = 4096;
/// Packets the gateway makes per burst: answers, errors, fragments, requests.
const EMIT_BUDGET: usize = 256;
/// Neighbour slots aged per turn of the owner.
const SWEEP_SLOTS: u32 = 512;
/// Time between two sweeps over the neighbour table.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// RFC 4861 section 10: MIN_DELAY_BETWEEN_RAS.
const MIN_ADVERTISEMENT_GAP: Duration = Duration::from_secs(3);
/// RFC 4861 section 10: MAX_RA_DELAY_TIME. Who asks is answered at a random moment within it.
const MAX_ADVERTISEMENT_DELAY: Duration = Duration::from_millis(500);

/// When a new interface is first advertised: within RFC 4861 section 10's MAX_INITIAL_RTR_ADVERT_INTERVAL, and
/// not before hosts that ask at once have been answered.
const FIRST_ADVERTISEMENT: Duration = Duration::from_secs(3);

/// Length of the Ethernet header in front of the gateway's own packets.
const OWN_L3: usize = 14;

/// Frames the slow path made, for the worker to send on.
#[derive(Default)]
pub struct Emit {
    /// Complete frames and the interface they leave by.
    pub ready: Vec<(Frame, u16)>,
    /// IP packets of the gateway's own, to be routed in a VRF.
    pub own: Vec<(Frame, u16)>,
}

/// Node-wide rate limits, and what new flows are counted and remembered in: shared atomic words.
#[derive(Debug)]
pub struct Limits {
    /// ICMP errors of the node.
    pub errors: Bucket,
    /// ICMP errors per source prefix.
    pub errors_by_source: SourceBuckets,
    /// Router advertisements, by interface slot.
    pub advertisements: Box<[Appointment]>,
    /// DHCP messages of clients, by interface slot: of IPv4 and of IPv6.
    pub relays: Box<[[Bucket; 2]]>,
    /// New sessions, by slot of the rule that limits them.
    pub rules: BySlot<Bucket>,
    /// New sessions, by zone.
    pub zones: Box<[Bucket; 256]>,
    /// TCP connections that open, by destination.
    pub half_open: Arc<HalfOpen>,
    /// What SYNs are answered with.
    pub cookies: Cookies,
    /// Members of bridges.
    pub segments: Segments,
    /// Which backends clients of services had last.
    pub clients: ClientTable,
}

impl Limits {
    /// Untouched limits of a node with `interfaces` interface slots.
    pub fn new(interfaces: usize, key: hash::Key) -> Limits {
        Limits {
            errors: Bucket::default(),
            errors_by_source: SourceBuckets::new(key),
            advertisements: (0..interfaces).map(|_| Appointment::default()).collect(),
            relays: (0..interfaces).map(|_| Default::default()).collect(),
            rules: BySlot::default(),
            zones: Box::new([const { Bucket::new() }; 256]),
            cookies: Cookies::new(key),
            segments: Segments::new(interfaces),
            half_open: Arc::new(HalfOpen::new(key).expect("address space for 512 KiB")),
            clients: ClientTable::new(key).expect("address space for 2 MiB"),
        }
    }
}

/// A packet that waits, as it came.
pub struct Parked {
    /// The packet.
    pub frame: Frame,
    /// Where it had come from.
    pub ingress: Ingress,
    /// When.
    pub since: Nanos,
}

struct Queue {
    neighbour: u32,
    packets: ArrayVec<Parked, MAX_QUEUE>,
}

/// A question that was asked and is asked again until it is answered.
struct Solicitation {
    neighbour: u32,
    due: Nanos,
    sent: u32,
    /// The MAC address to ask, when an old one is being confirmed.
    unicast: Option<u64>,
}

/// What the sender of a lost packet is told.
#[derive(Clone, Copy)]
enum Answer {
    Error(IcmpError),
    Reset,
}

struct AdvertisementTimer {
    interface: u16,
    due: Nanos,
}

/// The slow path of one worker.
pub struct SlowPath {
    /// What it made.
    pub emit: Emit,
    queues: Vec<Queue>,
    parked: usize,
    solicitations: Vec<Solicitation>,
    /// One worker of the node ages the neighbour table and sends advertisements and announcements.
    is_owner: bool,
    announcer: Announcer,
    sweep_due: Nanos,
    sweep_at: u32,
    advertisements: Vec<AdvertisementTimer>,
    advertisements_epoch: u64,
    unsolicited: Unsolicited,
    /// Advertisements somebody asked this worker for.
    asked_for: Vec<AdvertisementTimer>,
    /// Of bridges.
    rounds: Rounds,
    /// Group frames that have been copied, and that the gateway itself may want.
    flooded: Vec<Parked>,
}

impl SlowPath {
    /// The slow path of a worker; the owner does the node's periodic work as well.
    pub fn new(is_owner: bool, tables: &Tables) -> SlowPath {
        SlowPath {
            emit: Emit::default(),
            queues: Vec::new(),
            parked: 0,
            solicitations: Vec::new(),
            is_owner,
            announcer: Announcer::new(tables),
            sweep_due: Nanos(0),
            sweep_at: 0,
            advertisements: Vec::new(),
            advertisements_epoch: 0,
            unsolicited: Unsolicited::default(),
            asked_for: Vec::new(),
            rounds: Rounds::default(),
            flooded: Vec::new(),
        }
    }

    /// Handles a packet that is not forwarded. It is consumed, or comes back with the reason it is lost for.
    pub fn handle(
        &mut self,
        packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Option<(Packet, DropReason)> {
        let result = match packet.meta.verdict {
            Verdict::Drop(reason) => Err((packet, reason)),
            Verdict::Punt => self.punt(packet, cx, pool, limits),
            Verdict::Resolve => self.resolve(packet, cx, pool),
            Verdict::Fragment => self.fragment(packet, cx, pool),
            Verdict::Flood => self.flood(packet, cx, pool, limits),
            Verdict::Answered => {
                self.consumed(packet, None, cx, pool);
                Ok(())
            }
            Verdict::Continue
            | Verdict::Forward
            | Verdict::Decide
            | Verdict::Held
            | Verdict::Elsewhere(_)
            | Verdict::Gather(_)
            | Verdict::Cross
            | Verdict::Encapsulate
            | Verdict::ToPeer(_)
            | Verdict::Borrow => {
                unreachable!("the worker sends these on, or has nothing in hand")
            }
        };
        let (packet, reason) = result.err()?;
        if packet.meta.has(flags::UNSOLICITED) {
            self.hold_unsolicited(&packet, cx);
        }
        let is_tcp = packet.meta.protocol == protocol::TCP && packet.meta.family != Family::Other;
        let answer = match reason.icmp_error() {
            // What TCP calls prohibited. A session that cannot go on is reset as well (DESIGN.md section 3).
            _ if is_tcp && resets(reason) => Some(Answer::Reset),
            kind => kind.map(Answer::Error),
        };
        if let Some(answer) = answer {
            self.answer(answer, &packet, cx, pool, limits);
        }
        Some((packet, reason))
    }

    // ---- to the gateway itself

    fn punt(
        &mut self,
        packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Result<(), (Packet, DropReason)> {
        if packet.meta.has(flags::OWN) {
            return Err((packet, DropReason::NoHostPath));
        }
        if cx.probes.expects(&packet) {
            return match cx.probes.deliver(&packet) {
                Ok(()) => {
                    self.consumed(packet, None, cx, pool);
                    Ok(())
                }
                Err(reason) => Err((packet, reason)),
            };
        }
        if crate::pipeline::relay::is_wanted(&packet, cx) {
            return self.relay(packet, cx, pool, limits);
        }
        if let Some(reason) = held_by_virtual_router(&packet, cx) {
            return Err((packet, reason));
        }
        match packet.meta.family {
            Family::Other => {
                let interface = cx.tables.interface(packet.meta.interface);
                let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
                let cap = cx.tables.settings.neighbours_per_interface;
                match arp::receive(
                    l3,
                    packet.meta.interface,
                    interface,
                    &cx.tables.policy,
                    cx.neighbours,
                    cap,
                    cx.now,
                ) {
                    Ok(answer) => {
                        vxlan::let_in(&packet, cx);
                        self.consumed(packet, answer, cx, pool);
                    }
                    Err(reason) => return Err((packet, reason)),
                }
                Ok(())
            }
            Family::Ipv4 => self.punt_v4(packet, cx, pool),
            Family::Ipv6 => self.punt_v6(packet, cx, pool, limits),
        }
    }

    fn consumed(
        &mut self,
        packet: Packet,
        answer: Option<(LinkTarget, OwnBytes)>,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) {
        add(&cx.counters.punted, 1);
        pool.put(packet.frame);
        if let Some((link, bytes)) = answer {
            self.emit_link(link, &bytes, cx, pool);
        }
    }

    fn punt_v4(
        &mut self,
        mut packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), (Packet, DropReason)> {
        // Fragments to the gateway would need reassembly, which only host services need.
        if packet.meta.has(flags::FRAGMENT) {
            return Err((packet, DropReason::LocalFragment));
        }
        if packet.meta.protocol != protocol::ICMP {
            return Err((packet, DropReason::NoHostPath));
        }
        let sum = message_sum(&packet);
        let meta = packet.meta;
        match icmp::receive_v4(&meta, &mut packet.frame.bytes_mut()[usize::from(meta.l3)..], sum) {
            Ok(received) => self.icmp_received(packet, received, cx, pool),
            Err(reason) => Err((packet, reason)),
        }
    }

    fn punt_v6(
        &mut self,
        mut packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Result<(), (Packet, DropReason)> {
        let meta = packet.meta;
        let interface = cx.tables.interface(meta.interface);
        let (from_l3, l4) = (usize::from(meta.l3), usize::from(meta.l4 - meta.l3));
        let dst = Ipv6Addr::from(be128(packet.frame.bytes(), from_l3 + 24));
        let scoped = dst.is_multicast() || dst.is_unicast_link_local();
        let end = from_l3 + usize::from(meta.ip_len);
        let (l3, policy) = (packet.frame.bytes().get(from_l3..end).unwrap_or(&[]), &*cx.tables.policy);
        let arrival = nd::Arrival { l3, l4, slot: meta.interface, interface, policy };
        if scoped && !nd::listens(interface, dst, &cx.neighbours.roles) && !nd::asks_for_nat(&arrival) {
            let reason = if dst.is_multicast() {
                DropReason::MulticastNotRouted
            } else {
                DropReason::LinkLocalNotRouted
            };
            return Err((packet, reason));
        }
        if meta.has(flags::FRAGMENT) {
            return Err((packet, DropReason::LocalFragment));
        }
        if meta.protocol != protocol::ICMPV6 {
            return Err((packet, DropReason::NoHostPath));
        }
        let icmp_type = packet.frame.bytes().get(from_l3 + l4).copied().unwrap_or(0);
        if nd::is_nd(icmp_type) {
            if arrival.l3.is_empty() {
                return Err((packet, DropReason::NdInvalid));
            }
            let cap = cx.tables.settings.neighbours_per_interface;
            let answer = match nd::receive(arrival, cx.neighbours, cap, cx.now) {
                Ok(nd::Answer::Nothing) => None,
                Ok(nd::Answer::Send(link, bytes)) => Some((link, bytes)),
                Ok(nd::Answer::Advertise) => {
                    self.advertise_soon(meta.interface, cx, limits);
                    None
                }
                Err(reason) => return Err((packet, reason)),
            };
            vxlan::let_in(&packet, cx);
            self.consumed(packet, answer, cx, pool);
            return Ok(());
        }
        // The answer to a link-local asker leaves on this very link: its address is needed first.
        let src = Ipv6Addr::from(be128(packet.frame.bytes(), from_l3 + 8));
        if icmp_type == ECHO_REQUEST && src.is_unicast_link_local() {
            let cap = cx.tables.settings.neighbours_per_interface;
            match cx.neighbours.find_or_insert(meta.interface, src.into(), cap) {
                Err(neighbours::TableFull) => return Err((packet, DropReason::NeighbourTableFull)),
                Ok(slot) if !cx.neighbours.word(slot).is_usable() => {
                    (packet.meta.egress, packet.meta.neighbour) = (meta.interface, slot);
                    return self.resolve(packet, cx, pool);
                }
                Ok(slot) => packet.meta.dst_mac = cx.neighbours.word(slot).mac(),
            }
        }
        let sum = message_sum(&packet);
        let len = usize::from(meta.ip_len) - l4;
        match icmp::receive_v6(&meta, &mut packet.frame.bytes_mut()[from_l3..], sum, len, interface) {
            Ok(received) => self.icmp_received(packet, received, cx, pool),
            Err(reason) => Err((packet, reason)),
        }
    }

    fn icmp_received(
        &mut self,
        mut packet: Packet,
        received: icmp::Received,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), (Packet, DropReason)> {
        add(&cx.counters.punted, 1);
        match received {
            icmp::Received::Echo { skip } if self.has_budget() => {
                let meta = packet.meta;
                let l3 = usize::from(meta.l3);
                if !packet.frame.is_chained() {
                    packet.frame.truncate(l3 + usize::from(meta.ip_len));
                }
                packet.frame.trim_front(l3 + skip);
                if to_link_local(&packet.frame, meta.family) {
                    // No route leads to a link-local address.
                    let egress = cx.tables.interface(meta.interface);
                    if packet.frame.total_len() > usize::from(egress.mtu_bytes) {
                        add(&cx.counters.originated, 1);
                        packet.meta.flags |= flags::OWN;
                        return Err((packet, DropReason::PacketTooBig));
                    }
                    write_link_header(&mut packet.frame, 0, egress, meta.dst_mac, ethertype::IPV6);
                    // None, or several, where nobody knows behind which remote or member the asker is.
                    let sent = self.put_on_link(packet.frame, meta.interface, cx, pool);
                    add(&cx.counters.originated, sent);
                } else {
                    add(&cx.counters.originated, 1);
                    self.push_own(packet.frame, meta.vrf);
                }
            }
            _ => pool.put(packet.frame),
        }
        Ok(())
    }

    /// Sends a segment in the name of one side of a connection to the other.
    pub fn speak(&mut self, said: &Said, cx: &Context<'_>, pool: &mut FramePool) {
        if self.has_budget()
            && let Some(bytes) = tcp::segment(said)
            && let Some(frame) = pool.take_filled(&bytes)
        {
            add(&cx.counters.originated, 1);
            self.push_own(frame, said.vrf);
        }
    }

    /// Sends a packet of a health check, to be routed in a VRF. False: it is lost for lack of a frame.
    pub fn send_probe(&mut self, bytes: &[u8], vrf: u16, cx: &Context<'_>, pool: &mut FramePool) -> bool {
        let Some(frame) = pool.take_filled(bytes) else { return false };
        add(&cx.counters.originated, 1);
        self.push_own(frame, vrf);
        true
    }

    // ---- what the gateway sends by itself

    fn has_budget(&self) -> bool {
        self.emit.ready.len() + self.emit.own.len() < EMIT_BUDGET
    }

    /// `frame` begins at the IP header.
    fn push_own(&mut self, mut frame: Frame, vrf: u16) {
        let kind = icmp::ethertype_of(frame.bytes());
        let header = frame.prepend(OWN_L3);
        header[..12].fill(0);
        header[12..14].copy_from_slice(&kind.to_be_bytes());
        self.emit.own.push((frame, vrf));
    }

    fn emit_link(&mut self, link: LinkTarget, bytes: &[u8], cx: &Context<'_>, pool: &mut FramePool) -> bool {
        self.emit_as(cx.tables.interface(link.interface).mac, link, bytes, cx, pool)
    }

    /// The same with a source MAC address.
    fn emit_as(
        &mut self,
        source: u64,
        link: LinkTarget,
        bytes: &[u8],
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> bool {
        let egress = cx.tables.interface(link.interface);
        if !self.has_budget() || !egress.up {
            return false;
        }
        let Some(mut frame) = pool.take_filled(bytes) else { return false };
        write_link_header(&mut frame, 0, egress, link.mac, link.ethertype);
        array_mut::<14>(frame.bytes_mut(), 0)[6..12].copy_from_slice(&mac_from_u64(source));
        let sent = self.put_on_link(frame, link.interface, cx, pool);
        add(&cx.counters.originated, sent);
        sent > 0
    }

    /// Sends a frame of the gateway's own, which begins with its link header: into a tunnel, if the link is an overlay.
    /// Returns how many have left.
    fn put_on_link(
        &mut self,
        mut frame: Frame,
        interface: u16,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> u64 {
        let egress = cx.tables.interface(interface);
        let len = frame.total_len();
        if egress.is_segment()
            && let Some(bridge) = cx.tables.bridges.get(egress.bridge)
        {
            return self.put_on_segment(frame, bridge, cx, pool);
        }
        let Some(overlay) = cx.tables.overlays.get(egress.overlay) else {
            self.count_sent(interface, len, cx);
            self.emit.ready.push((frame, interface));
            return 1;
        };
        let mac = u64::from_be_bytes(*array(frame.bytes(), 0)) >> 16;
        let is_group = mac >> 40 & 1 != 0;
        match vxlan::remote_of(overlay, mac, cx).filter(|_| !is_group) {
            Some(remote) => match self.tunnel(egress, overlay, remote, cx, pool) {
                Some(mut tunnel) => {
                    tunnel.put(&mut frame, cx);
                    tunnel.count(cx);
                    self.count_sent(interface, len, cx);
                    self.emit.ready.push((frame, tunnel.egress));
                    1
                }
                None => {
                    pool.put(frame);
                    0
                }
            },
            // To all, as what goes to a station that nobody knows (RFC 7348 section 4.2): a copy for each.
            None => {
                let mut sent = 0;
                for remote in overlay.remotes() {
                    sent += u64::from(self.replicate(&frame, (egress, overlay, *remote), cx, pool));
                }
                pool.put(frame);
                sent
            }
        }
    }

    /// Sends a frame of the HA thread's, which begins with a link header without tags, into all tunnels of an overlay or of
    /// a bridge.
    pub fn send_into_tunnels(&mut self, link: u16, bytes: &[u8], cx: &Context<'_>, pool: &mut FramePool) {
        let Some(egress) = cx.tables.interfaces.get(usize::from(link)) else { return };
        if !egress.up || egress.bridge == NO_BRIDGE && egress.overlay == NO_OVERLAY {
            return;
        }
        let Some(frame) = pool.take_filled(bytes) else {
            add(&cx.counters.drops[DropReason::NoBuffer.index()], 1);
            return;
        };
        let sent = match cx.tables.bridges.get(egress.bridge).filter(|_| egress.is_segment()) {
            Some(bridge) => self.put_in_tunnels(frame, bridge, cx, pool),
            None => self.put_on_link(frame, link, cx, pool),
        };
        add(&cx.counters.originated, sent);
    }

    /// Asks for the next hops of the same tunnels that are not known.
    pub fn look_for_tunnels(&mut self, link: u16, cx: &Context<'_>, pool: &mut FramePool) {
        let Some(interface) = cx.tables.interfaces.get(usize::from(link)) else { return };
        let bridge = cx.tables.bridges.get(interface.bridge).filter(|_| interface.is_segment());
        let members = bridge.into_iter().flat_map(|bridge| &bridge.members).map(|member| member.interface);
        for slot in members.chain([link]) {
            let egress = cx.tables.interface(slot);
            let Some(overlay) = cx.tables.overlays.get(egress.overlay) else { continue };
            for remote in overlay.remotes() {
                // What it finds is used when there is something to send.
                let _ = self.tunnel(egress, overlay, *remote, cx, pool);
            }
        }
    }

    fn replicate(
        &mut self,
        frame: &Frame,
        (egress, overlay, remote): (&Interface, &Overlay, u128),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> bool {
        // A copy is of one buffer.
        if self.has_budget()
            && !frame.is_chained()
            && let Some(mut tunnel) = self.tunnel(egress, overlay, remote, cx, pool)
            && let Some(mut copy) = pool.take_filled(frame.bytes())
        {
            self.count_sent(overlay.interface, copy.len(), cx);
            tunnel.put(&mut copy, cx);
            tunnel.count(cx);
            self.emit.ready.push((copy, tunnel.egress));
            return true;
        }
        false
    }

    /// The way to a remote; if its next hop is not known, that is asked for, and the gateway says it again later.
    fn tunnel(
        &mut self,
        interface: &Interface,
        overlay: &Overlay,
        remote: u128,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Option<Tunnel> {
        match Tunnel::find(interface, overlay, remote, cx) {
            Ok(tunnel) => Some(tunnel),
            Err(NoTunnel::Unresolved { neighbour, .. }) => {
                self.ask(neighbour, cx, pool);
                None
            }
            Err(NoTunnel::Unknown | NoTunnel::Lost(_)) => None,
        }
    }

    fn count_sent(&self, interface: u16, bytes: usize, cx: &Context<'_>) {
        let counters = &cx.counters.interfaces[usize::from(interface)];
        add(&counters.tx_packets, 1);
        add(&counters.tx_bytes, bytes as u64);
    }

    fn answer(
        &mut self,
        answer: Answer,
        packet: &Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) {
        if is_scope(packet.meta.vrf) {
            self.answer_on_segment(answer, packet, cx, pool, limits);
            return;
        }
        let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
        self.tell(answer, (&packet.meta, l3), cx, pool, limits);
    }

    /// Answers a packet of which there are only its metadata and its first bytes any more.
    fn tell(
        &mut self,
        answer: Answer,
        (meta, l3): (&Meta, &[u8]),
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) {
        if !self.may_tell(meta, l3, cx, limits) {
            return;
        }
        let ingress = cx.tables.interface(meta.interface);
        let bytes = match answer {
            Answer::Error(kind) => {
                let mtu = match kind {
                    IcmpError::TooBig if meta.identification & Meta::TOLD_MTU != 0 => {
                        meta.identification as u16
                    }
                    IcmpError::TooBig => cx.tables.interface(meta.egress).mtu_bytes,
                    _ => 0,
                };
                icmp::error(kind, meta, l3, ingress, mtu)
            }
            Answer::Reset => tcp::reset(meta, l3),
        };
        if let Some(bytes) = bytes
            && let Some(frame) = pool.take_filled(&bytes)
        {
            add(&cx.counters.originated, 1);
            self.push_own(frame, ingress.vrf);
        }
    }

    /// True if the sender of a packet may be told something: what it is, and how much was told before.
    fn may_tell(&self, meta: &Meta, l3: &[u8], cx: &Context<'_>, limits: &Limits) -> bool {
        if meta.interface == NO_INTERFACE || !icmp::may_answer(meta, l3) || !self.has_budget() {
            return false;
        }
        let settings = &cx.tables.settings;
        let src = match meta.family {
            Family::Ipv4 => u128::from(crate::packet::view::be32(l3, 12) >> 8),
            _ => be128(l3, 8) >> 64,
        };
        // The node's bucket last, so that one noisy source does not empty it.
        let allowed = settings.icmp_rate > 0
            && limits.errors_by_source.take(
                src,
                settings.icmp_source_rate,
                settings.icmp_source_burst,
                cx.now,
            )
            && limits.errors.take(settings.icmp_rate, settings.icmp_burst, cx.now);
        if !allowed {
            add(&cx.counters.errors_limited, 1);
        }
        allowed
    }

    /// Keeps a SYN that nobody has asked for, if its sender may be told.
    fn hold_unsolicited(&mut self, packet: &Packet, cx: &Context<'_>) {
        let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
        if icmp::may_answer(&packet.meta, l3) && !self.unsolicited.hold(packet, cx.now) {
            add(&cx.counters.syns_given_up, 1);
        }
    }

    /// New tables: what they ask for beyond packets.
    pub fn take_on(&mut self, tables: &Tables) {
        self.unsolicited.prepare(tables.policy.answer_unsolicited_syn, tables.settings.key);
    }

    /// Tells the senders of SYNs that nobody has asked for within their time (RFC 5382 REQ-4).
    pub fn answer_unsolicited(
        &mut self,
        flows: &Flows,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) {
        if self.unsolicited.next_due() > cx.now {
            return;
        }
        // Out of the way of what it emits into.
        let mut unsolicited = std::mem::take(&mut self.unsolicited);
        unsolicited.answer_due(flows, cx.now, |meta, l3| {
            let is_there = usize::from(meta.interface) < cx.tables.interfaces.len();
            // A change may have forbidden it since (REQ-4a).
            if is_there && cx.tables.policy.answer_unsolicited_syn {
                self.tell(Answer::Error(IcmpError::PortUnreachable), (meta, l3), cx, pool, limits);
            }
        });
        self.unsolicited = unsolicited;
    }

    fn fragment(
        &mut self,
        packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), (Packet, DropReason)> {
        if self.emit.ready.len() + fragment::MAX_FRAGMENTS > EMIT_BUDGET * 2 {
            return Err((packet, DropReason::NoBuffer));
        }
        let egress = packet.meta.egress;
        let interface = cx.tables.interface(egress);
        let is_delivered = deliver::is_delivered(&packet.meta);
        let mut tunnel = match interface.overlay {
            _ if is_delivered => match Tunnel::to_backend(&packet.meta, cx) {
                Ok(tunnel) => Some(tunnel),
                Err(_) => return Err((packet, DropReason::BackendNoTunnel)),
            },
            _ if interface.is_segment() => return self.fragment_for_segment(packet, cx, pool),
            NO_OVERLAY => None,
            _ => match Tunnel::to_station(interface, packet.meta.dst_mac, cx) {
                Ok(tunnel) => Some(tunnel),
                Err(_) => return Err((packet, DropReason::VxlanNoTunnel)),
            },
        };
        let mtu_bytes = tunnel.as_ref().map_or(interface.mtu_bytes, |tunnel| tunnel.mtu_bytes);
        match fragment::cut(&packet, interface, mtu_bytes, pool) {
            Ok(fragments) => {
                add(&cx.counters.fragments, fragments.len() as u64 - 1);
                for mut frame in fragments {
                    if is_delivered {
                        // What is inside has no link.
                        frame.trim_front(interface.header_len.into());
                    } else {
                        self.count_sent(egress, frame.total_len(), cx);
                    }
                    let by = match &mut tunnel {
                        None => egress,
                        Some(tunnel) => {
                            tunnel.put(&mut frame, cx);
                            tunnel.egress
                        }
                    };
                    self.emit.ready.push((frame, by));
                }
                if let Some(tunnel) = tunnel {
                    tunnel.count(cx);
                }
                pool.put(packet.frame);
                Ok(())
            }
            Err(reason) => Err((packet, reason)),
        }
    }

    /// Cuts a packet for the segment of a bridge: the way to its next hop says how long it may be.
    #[cold]
    fn fragment_for_segment(
        &mut self,
        mut packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), (Packet, DropReason)> {
        let egress = packet.meta.egress;
        let interface = cx.tables.interface(egress);
        let mac = packet.meta.dst_mac;
        let Ok(way) = bridge::check_way(&mut packet, mac, cx) else {
            return Err((packet, DropReason::VxlanNoTunnel));
        };
        match fragment::cut(&packet, interface, way.min(interface.mtu_bytes), pool) {
            Ok(fragments) => {
                add(&cx.counters.fragments, fragments.len() as u64 - 1);
                for frame in fragments {
                    // To a station that nobody knows each goes to all members.
                    match self.put_on_link(frame, egress, cx, pool) {
                        0 => add(&cx.counters.drops[DropReason::BridgeNoMember.index()], 1),
                        copies => add(&cx.counters.replicated, copies - 1),
                    }
                }
                pool.put(packet.frame);
                Ok(())
            }
            Err(reason) => Err((packet, reason)),
        }
    }

    // ---- neighbours

    fn resolve(
        &mut self,
        mut packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), (Packet, DropReason)> {
        let settings = &cx.tables.settings;
        // Nobody could be asked, nor answer.
        let overlay = cx.tables.overlays.get(cx.tables.interface(packet.meta.egress).overlay);
        if overlay.is_some_and(|overlay| !overlay.is_here(&cx.neighbours.roles)) {
            return Err((packet, DropReason::VirtualRouterBackup));
        }
        if packet.meta.neighbour == NO_NEIGHBOUR {
            let addr = addr_key(destination(&packet));
            match cx.neighbours.find_or_insert(packet.meta.egress, addr, settings.neighbours_per_interface) {
                Ok(slot) => packet.meta.neighbour = slot,
                Err(neighbours::TableFull) => return Err((packet, DropReason::NeighbourTableFull)),
            }
        }
        let slot = packet.meta.neighbour;
        self.ask(slot, cx, pool);
        match cx.neighbours.word(slot).state() {
            State::Failed => return Err((packet, DropReason::NeighbourFailed)),
            State::Idle => return Err((packet, DropReason::NeighbourTableFull)),
            _ => {}
        }
        self.park(packet, slot, cx, pool)
    }

    /// Asks for a neighbour that nobody has asked for.
    fn ask(&mut self, slot: u32, cx: &Context<'_>, pool: &mut FramePool) {
        if self.solicitations.len() < MAX_SOLICITATIONS && cx.neighbours.begin(slot, cx.now) {
            self.solicit(slot, 1, None, cx, pool);
            self.solicitations.push(Solicitation {
                neighbour: slot,
                due: cx.now.plus(neighbours::RETRANSMIT),
                sent: 1,
                unicast: None,
            });
        }
    }

    /// Queues a packet behind its neighbour; the oldest of a full queue goes (RFC 4861 section 7.2.2).
    fn park(
        &mut self,
        packet: Packet,
        slot: u32,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<(), (Packet, DropReason)> {
        if self.parked >= MAX_PARKED {
            return Err((packet, DropReason::NeighbourQueueFull));
        }
        let index = self.queues.iter().position(|queue| queue.neighbour == slot).unwrap_or_else(|| {
            self.queues.push(Queue { neighbour: slot, packets: ArrayVec::new() });
            self.queues.len() - 1
        });
        let queue = &mut self.queues[index].packets;
        if queue.len() >= cx.tables.settings.neighbour_queue.clamp(1, MAX_QUEUE) {
            let oldest = queue.remove(0);
            add(&cx.counters.drops[DropReason::NeighbourQueueFull.index()], 1);
            pool.put(oldest.frame);
            self.parked -= 1;
        }
        queue.push(Parked { frame: packet.frame, ingress: cx.ingress, since: cx.now });
        self.parked += 1;
        Ok(())
    }

    fn solicit(
        &mut self,
        slot: u32,
        _sent: u32,
        unicast: Option<u64>,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) {
        let (interface_slot, target) = cx.neighbours.key_of(slot);
        let interface = cx.tables.interface(interface_slot);
        let request = match target {
            IpAddr::V4(target) => arp::request(interface_slot, interface, target, unicast),
            IpAddr::V6(target) => nd::solicit(interface_slot, interface, target, unicast),
        };
        if let Some((link, bytes)) = request {
            self.emit_link(link, &bytes, cx, pool);
        }
    }

    /// Packets whose neighbour has answered, or has not, or of which nobody knows any more that it was asked for: they
    /// start again. At most a burst's worth.
    pub fn restarts(
        &mut self,
        neighbours: &NeighbourTable,
        out: &mut ArrayVec<Parked, { crate::mem::BURST }>,
    ) {
        let flooded = self.flooded.len().min(out.remaining_capacity());
        out.extend(self.flooded.drain(..flooded));
        let mut index = 0;
        while index < self.queues.len() {
            let queue = &mut self.queues[index];
            let waiting =
                matches!(neighbours.word(queue.neighbour).state(), State::Incomplete | State::Claimed);
            if waiting || out.remaining_capacity() < queue.packets.len() {
                index += 1;
                continue;
            }
            self.parked -= queue.packets.len();
            out.extend(queue.packets.drain(..));
            self.queues.swap_remove(index);
        }
    }

    /// True if packets are parked.
    pub fn has_parked(&self) -> bool {
        self.parked > 0 || !self.flooded.is_empty()
    }

    /// Packets that wait.
    pub fn parked(&self) -> usize {
        self.parked + self.flooded.len()
    }

    /// All parked packets, when the gateway stops.
    pub fn take_parked(&mut self) -> impl Iterator<Item = Parked> {
        self.parked = 0;
        let flooded = std::mem::take(&mut self.flooded);
        std::mem::take(&mut self.queues).into_iter().flat_map(|queue| queue.packets).chain(flooded)
    }

    // ---- time

    /// When [`SlowPath::timers`] has something to do next.
    pub fn next_deadline(&self) -> Nanos {
        let solicitation = self.solicitations.iter().map(|s| s.due).min();
        let advertisement = self.advertisements.iter().chain(&self.asked_for).map(|a| a.due).min();
        let sweep = self.is_owner.then_some(self.sweep_due);
        let announcement = self.announcer.next_deadline();
        let unsolicited = Some(self.unsolicited.next_due());
        let segments = self.rounds.next_deadline();
        [solicitation, advertisement, sweep, announcement, unsolicited, segments]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Nanos(u64::MAX))
    }

    /// True while a sweep over the neighbour table or the MAC table is under way.
    pub fn is_sweeping(&self) -> bool {
        self.sweep_at != 0 || self.rounds.is_sweeping()
    }

    /// Looks for ports that another device carries than before, or that came up. `ready` says of a port and a
    /// device whether it can be sent by.
    #[inline]
    pub fn look_at_ports(&mut self, tables: &Tables, now: Nanos, ready: impl Fn(u16, u8) -> bool) {
        if self.is_owner && self.announcer.is_behind(tables) {
            self.announcer.look(tables, now, ready);
        }
    }

    /// Does what is due. Called once per turn; costs nothing while nothing is.
    pub fn timers(&mut self, cx: &Context<'_>, pool: &mut FramePool, limits: &Limits) {
        self.ask_again(cx, pool);
        self.advertise_asked_for(cx, pool);
        if self.is_owner {
            self.announce(cx, pool);
            self.sweep(cx, pool);
            self.advertise(cx, pool, limits);
            self.look_at_segments(cx, pool);
        }
    }

    fn announce(&mut self, cx: &Context<'_>, pool: &mut FramePool) {
        // Out of the way of what it emits into.
        let mut announcer = std::mem::take(&mut self.announcer);
        announcer.announce(cx.tables, cx.now, |link, bytes| {
            self.emit_link(link, bytes, cx, pool);
        });
        self.announcer = announcer;
    }

    fn ask_again(&mut self, cx: &Context<'_>, pool: &mut FramePool) {
        let mut index = 0;
        while index < self.solicitations.len() {
            let Solicitation { neighbour, due, sent, unicast } = self.solicitations[index];
            if due > cx.now {
                index += 1;
                continue;
            }
            let open = matches!(cx.neighbours.word(neighbour).state(), State::Incomplete | State::Probe);
            if open && sent < neighbours::SOLICITATIONS {
                self.solicit(neighbour, sent + 1, unicast, cx, pool);
                let solicitation = &mut self.solicitations[index];
                solicitation.sent += 1;
                solicitation.due = due.plus(neighbours::RETRANSMIT);
                index += 1;
                continue;
            }
            if open {
                cx.neighbours.fail(neighbour, cx.now);
            }
            self.solicitations.swap_remove(index);
        }
    }

    fn sweep(&mut self, cx: &Context<'_>, pool: &mut FramePool) {
        if self.sweep_at == 0 {
            if cx.now < self.sweep_due {
                return;
            }
            // Whole intervals, so that replay does not depend on when turns happen.
            let interval = SWEEP_INTERVAL.as_nanos() as u64;
            self.sweep_due = Nanos((cx.now.0 / interval + 1) * interval);
        }
        let mut reprobes: ArrayVec<u32, 64> = ArrayVec::new();
        let reachable = cx.tables.settings.reachable;
        cx.neighbours.sweep(self.sweep_at, SWEEP_SLOTS, reachable, cx.now, |reprobe| {
            // More than 64 at once keep their address; they are asked in a later round.
            let _ = reprobes.try_push(reprobe.slot);
        });
        for slot in reprobes {
            let mac = cx.neighbours.word(slot).mac();
            self.solicit(slot, 1, Some(mac), cx, pool);
            if self.solicitations.len() < MAX_SOLICITATIONS {
                let due = cx.now.plus(neighbours::RETRANSMIT);
                self.solicitations.push(Solicitation { neighbour: slot, due, sent: 1, unicast: Some(mac) });
            }
        }
        self.sweep_at += SWEEP_SLOTS;
        if self.sweep_at >= cx.neighbours.capacity() {
            self.sweep_at = 0;
        }
    }

    /// Somebody asks for routers: all who do within the gap hear the same advertisement (RFC 4861 section 6.2.6).
    fn advertise_soon(&mut self, interface: u16, cx: &Context<'_>, limits: &Limits) {
        if !advertises(interface, cx) {
            return;
        }
        let delay = random(MAX_ADVERTISEMENT_DELAY, interface, cx);
        let appointment = &limits.advertisements[usize::from(interface)];
        if let Some(due) = appointment.make(MIN_ADVERTISEMENT_GAP, delay, cx.now) {
            self.asked_for.push(AdvertisementTimer { interface, due });
        }
    }

    fn advertise_asked_for(&mut self, cx: &Context<'_>, pool: &mut FramePool) {
        let mut index = 0;
        while index < self.asked_for.len() {
            let AdvertisementTimer { interface, due } = self.asked_for[index];
            if due > cx.now {
                index += 1;
                continue;
            }
            self.asked_for.swap_remove(index);
            self.emit_advertisement(interface, cx, pool);
        }
    }

    fn emit_advertisement(&mut self, slot: u16, cx: &Context<'_>, pool: &mut FramePool) {
        let interface = cx.tables.interface(slot);
        let advertisements = interface.info.advertisements;
        if let Some((link, bytes)) =
            advertisements.and_then(|said| nd::router_advert(slot, interface, said, &cx.neighbours.roles))
        {
            self.emit_link(link, &bytes, cx, pool);
        }
    }

    fn advertise(&mut self, cx: &Context<'_>, pool: &mut FramePool, limits: &Limits) {
        let epoch = cx.tables.epochs.interfaces;
        if self.advertisements_epoch != epoch {
            self.advertisements_epoch = epoch;
            self.rebuild_advertisements(cx.tables, cx.now);
        }
        for index in 0..self.advertisements.len() {
            let AdvertisementTimer { interface: slot, due } = self.advertisements[index];
            if due > cx.now {
                continue;
            }
            let Some(advertisements) = cx.tables.interface(slot).info.advertisements else { continue };
            // RFC 4861 section 6.2.4: at random between a third of the interval and the whole of it, so that
            // routers do not fall into step.
            let longest = Duration::from_secs(u64::from(advertisements.interval_s));
            self.advertisements[index].due = due.plus(longest / 3 + random(longest * 2 / 3, slot, cx));
            // Whoever was just answered told everybody.
            if advertises(slot, cx)
                && limits.advertisements[usize::from(slot)].take(MIN_ADVERTISEMENT_GAP, cx.now)
            {
                self.emit_advertisement(slot, cx, pool);
            }
        }
    }

    fn rebuild_advertisements(&mut self, tables: &Tables, now: Nanos) {
        let old = std::mem::take(&mut self.advertisements);
        let speaks = |interface: &Interface| interface.up && interface.info.advertisements.is_some();
        for (slot, _) in tables.interfaces.iter().enumerate().filter(|(_, interface)| speaks(interface)) {
            let slot = slot as u16;
            let due = old
                .iter()
                .find(|timer| timer.interface == slot)
                .map_or(now.plus(FIRST_ADVERTISEMENT), |timer| timer.due);
            self.advertisements.push(AdvertisementTimer { interface: slot, due });
        }
    }
}

/// RFC 4443 section 4.1.
const ECHO_REQUEST: u8 = 128;

/// A Backup leaves advertisements to the Active (RFC 9568 section 6.4.2).
fn advertises(slot: u16, cx: &Context<'_>) -> bool {
    let router = cx.tables.interface(slot).first_router(true);
    router.is_none_or(|router| cx.neighbours.roles.is_active(router.role))
}

/// Why a packet to an address of a virtual router is not for us: another is the Active, or the Active does not accept
/// what is not its own (RFC 9568 section 6.4.3). Neighbour discovery is always accepted.
fn held_by_virtual_router(packet: &Packet, cx: &Context<'_>) -> Option<DropReason> {
    let meta = &packet.meta;
    let (addr, l3) = match meta.family {
        Family::Other => return None,
        Family::Ipv4 => (v4_key(meta.dst_v4), &[][..]),
        Family::Ipv6 => {
            let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
            (be128(l3, 24), l3)
        }
    };
    let link_local = || {
        let interface = cx.tables.interfaces.get(usize::from(meta.interface))?;
        let addr = Ipv6Addr::from(addr);
        let router = interface.router_of(addr.into()).filter(|_| addr.is_unicast_link_local())?;
        Some(Held { role: router.role, group: router.group, accept: router.accept })
    };
    let held = match meta.family {
        Family::Ipv6 if addr >> 118 == 0x3fa => link_local()?,
        _ => cx.tables.virtual_addresses.find(meta.vrf, addr)?,
    };
    if !cx.neighbours.roles.is_active(held.role) {
        return Some(DropReason::VirtualRouterBackup);
    }
    let is_nd = meta.protocol == protocol::ICMPV6
        && l3.get(usize::from(meta.l4 - meta.l3)).is_some_and(|kind| nd::is_nd(*kind));
    (!held.accept && !is_nd).then_some(DropReason::VirtualRouterNotAccepted)
}

/// A time below `limit`, another for each interface and moment. It comes from the node's key and the clock, so
/// that a replay says the same each time.
fn random(limit: Duration, interface: u16, cx: &Context<'_>) -> Duration {
    let random = hash::address(cx.tables.settings.key, cx.now.0.into(), interface.into());
    Duration::from_nanos(random % (limit.as_nanos() as u64).max(1))
}

fn destination(packet: &Packet) -> IpAddr {
    match packet.meta.family {
        Family::Ipv4 => IpAddr::V4(packet.meta.dst_v4.into()),
        _ => IpAddr::V6(be128(packet.frame.bytes(), usize::from(packet.meta.l3) + 24).into()),
    }
}

/// Unfolded checksum sum over the L4 message, through the whole chain.
fn message_sum(packet: &Packet) -> u64 {
    let meta = &packet.meta;
    let header_len = meta.l4 - meta.l3;
    checksum::add_chain(&packet.frame, usize::from(meta.l4), usize::from(meta.ip_len - header_len))
}

/// True if TCP is told with a RST that it cannot go on.
fn resets(reason: DropReason) -> bool {
    use DropReason::{BackendFailed, FirewallReject, NatPathChanged, NoBackend, PolicyReset};
    matches!(reason, FirewallReject | PolicyReset | NatPathChanged | NoBackend | BackendFailed)
}

/// True for an IPv6 packet (`frame` begins at its header) whose destination is link-local.
fn to_link_local(frame: &Frame, family: Family) -> bool {
    family == Family::Ipv6 && Ipv6Addr::from(be128(frame.bytes(), 24)).is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mem::{BURST, ChunkSize, PacketMemory};
    use crate::packet::hash::Key;
    use crate::tables::compile::Compiler;

    #[test]
    fn packets_wait_for_who_is_asked_for_and_for_nobody_else() {
        let neighbours = Arc::new(NeighbourTable::new(4, 1, Key::default()));
        let compiler = Compiler::new(Arc::clone(&neighbours), Key::default());
        let (_memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        let mut slow = SlowPath::new(true, compiler.tables());
        let mut wait = |slow: &mut SlowPath, neighbour| {
            let frame = pools[0].take_filled(&[0; 64]).expect("a free frame");
            let parked = Parked { frame, ingress: Ingress::Port(0), since: Nanos(0) };
            slow.queues.push(Queue { neighbour, packets: std::iter::once(parked).collect() });
            slow.parked += 1;
        };
        let [asked_for, forgotten] = [1, 2].map(|addr| neighbours.find_or_insert(0, addr, 4).expect("room"));
        assert!(neighbours.begin(asked_for, Nanos(1)));
        wait(&mut slow, asked_for);
        wait(&mut slow, forgotten);
        let mut out: ArrayVec<Parked, BURST> = ArrayVec::new();
        slow.restarts(&neighbours, &mut out);
        assert_eq!((out.len(), slow.parked), (1, 1));
        assert_eq!(slow.queues[0].neighbour, asked_for);
        out.into_iter().chain(slow.take_parked()).for_each(|parked| pools[0].put(parked.frame));
    }
}
