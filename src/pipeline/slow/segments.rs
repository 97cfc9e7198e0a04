//! The slow path of bridges: copies for all members, answers in the name of stations that are known, looks for loops,
//! and stations that have been silent for too long.

use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::snooping::{self, Queries, Spread};
use super::{Answer, EMIT_BUDGET, Parked, SlowPath, loops, stations};
use crate::host::dhcp::{SERVER_PORT, v6::ALL_RELAYS_AND_SERVERS};
use crate::host::{OwnBytes, arp, icmp, nd, tcp};
use crate::mem::{Frame, FramePool};
use crate::neighbours::v4_key;
use crate::packet::view::{be16, be128, ethertype, protocol};
use crate::packet::{DropReason, IcmpError, Packet};
use crate::pipeline::bridge::{self, Layout};
use crate::pipeline::tunnel::{INNER_LINK_BYTES, NoTunnel, Tunnel};
use crate::pipeline::{Context, Limits, member_zones};
use crate::ratelimit::Bucket;
use crate::tables::bridge::{Bridge, Bridges, Member, NO_BRIDGE};
use crate::tables::{NO_INTERFACE, Tables};
use crate::telemetry::add;
use crate::time::Nanos;

/// Copies and other frames the slow path has made and not yet sent, beyond which no more copies are made.
const COPY_BUDGET: usize = 4 * EMIT_BUDGET;
/// Group frames that wait to be looked at by the gateway itself.
const MAX_FLOODED: usize = 256;
/// Places of the MAC table looked at per turn of the owner.
const SWEEP_PLACES: usize = 2048;
/// Queries that follow each other sooner, when a querier begins (RFC 3376 section 8.7).
const FIRST_QUERIES: u8 = 2;
/// Time between two looks at all of them, in nanoseconds.
const SWEEP_INTERVAL_NS: u64 = 1_000_000_000;

/// What all workers know of the members of bridges: shared atomic words, by interface slot.
#[derive(Debug)]
pub struct Segments {
    /// Frames to all others.
    storms: Box<[Bucket]>,
    /// Until when it is shut.
    shut: Box<[AtomicU64]>,
}

impl Segments {
    /// For interface slots below `interfaces`.
    pub fn new(interfaces: usize) -> Segments {
        Segments {
            storms: (0..interfaces).map(|_| Bucket::default()).collect(),
            shut: (0..interfaces).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// True if a loop was found through that member.
    #[inline]
    pub fn is_shut(&self, member: u16, now: Nanos) -> bool {
        now < self.shut_until(member)
    }

    /// Until when the member is shut; in the past if it is not.
    pub fn shut_until(&self, member: u16) -> Nanos {
        Nanos(self.shut.get(usize::from(member)).map_or(0, |until| until.load(Ordering::Relaxed)))
    }

    /// Shuts a member.
    pub fn shut(&self, member: u16, until: Nanos) {
        self.shut[usize::from(member)].store(until.0, Ordering::Relaxed);
    }

    /// Opens a member again.
    pub fn open(&self, member: u16) {
        self.shut[usize::from(member)].store(0, Ordering::Relaxed);
    }
}

/// What the owner of the node's periodic work remembers.
#[derive(Default)]
pub(super) struct Rounds {
    /// Tables that were looked at.
    epoch: u64,
    looks: Vec<loops::Look>,
    queries: Vec<Queries>,
    pub(super) stations: Vec<stations::Round>,
    sweep_due: Nanos,
    /// Where the sweep stands; 0: none is under way.
    sweep_at: usize,
    /// Stations by interface slot, of the places swept.
    counts: Vec<u32>,
}

impl Rounds {
    /// When something is due.
    pub(super) fn next_deadline(&self) -> Option<Nanos> {
        let look = self.looks.iter().map(|look| look.due).min();
        let sweep = (!self.counts.is_empty()).then_some(self.sweep_due);
        let query = self.queries.iter().map(|queries| queries.due).min();
        let station = self.stations.iter().map(|round| round.due).min();
        [look, sweep, query, station].into_iter().flatten().min()
    }

    /// True while a sweep is under way.
    pub(super) fn is_sweeping(&self) -> bool {
        self.sweep_at != 0
    }

    fn adopt(&mut self, tables: &Tables, now: Nanos) {
        if self.epoch == tables.epochs.interfaces {
            return;
        }
        self.epoch = tables.epochs.interfaces;
        let old = std::mem::take(&mut self.looks);
        let looking = (0..NO_BRIDGE)
            .map_while(|number| (usize::from(number) < tables.bridges.count()).then_some(number))
            .filter(|number| tables.bridges.get(*number).is_some_and(|bridge| bridge.loop_probe.is_some()));
        self.looks = looking
            .map(|bridge| {
                let known = old.iter().find(|look| look.bridge == bridge);
                loops::Look { bridge, due: known.map_or(now.plus(loops::FIRST_LOOK), |look| look.due) }
            })
            .collect();
        let old = std::mem::take(&mut self.queries);
        let asks = |bridge: &&Bridge| bridge.snooping.is_some_and(|snooping| snooping.querier);
        let asking = tables.bridges.iter().filter(asks).map(Bridge::number);
        self.queries = asking
            .map(|bridge| {
                let first = Queries { bridge, due: now.plus(loops::FIRST_LOOK), first: FIRST_QUERIES };
                old.iter().find(|queries| queries.bridge == bridge).copied().unwrap_or(first)
            })
            .collect();
        self.counts = if tables.bridges.is_empty() { Vec::new() } else { vec![0; tables.interfaces.len()] };
        self.sweep_at = 0;
    }
}

impl SlowPath {
    /// Copies a frame for all members but the one it came from. A group frame is then the gateway's as well, if it may
    /// want it.
    pub(super) fn flood(
        &mut self,
        mut packet: Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) -> Result<(), (Packet, DropReason)> {
        let meta = &packet.meta;
        let is_own = meta.egress != NO_INTERFACE;
        let slot = if is_own { meta.egress } else { meta.interface };
        let Some(bridge) = cx.tables.bridges.get(cx.tables.interface(slot).bridge) else {
            return Err((packet, DropReason::BridgeNoMember));
        };
        let from = if is_own { None } else { bridge.member(slot) };
        let layout = Layout::of(meta, from);
        let rate = from.map_or(bridge.storm_pps, |member| member.storm_pps);
        let has_token = || limits.segments.storms[usize::from(slot)].take(rate, rate, cx.now);
        let bytes = packet.frame.bytes();
        let is_message =
            bridge.snooping.is_some() && snooping::is_message(&bytes[layout.payload..], layout.kind(bytes));
        // Reports are heard within the limit only.
        if is_message && !has_token() {
            return Err((packet, DropReason::BridgeStorm));
        }
        let spread = self.spread_of(&packet, layout, (bridge, from), cx, pool);
        // What listeners have asked for is no storm.
        if !is_message && !matches!(spread, Ok(Spread::Listeners(_))) && !has_token() {
            return Err((packet, DropReason::BridgeStorm));
        }
        if packet.frame.is_chained() {
            return Err((packet, DropReason::BridgeTooLong));
        }
        let mut reach = match spread {
            Ok(Spread::All) => Ok(u64::MAX),
            Ok(Spread::Listeners(members) | Spread::Report(members, _)) => Ok(members),
            Err(reason) => Err(reason),
        };
        if let (Some(from), Ok(wanted)) = (from.filter(|_| bridge.has_zones), reach) {
            reach = member_zones::reach(&mut packet, layout, (bridge, from), cx).map(|open| open & wanted);
        }
        if let Some(from) = from
            && bridge.suppress
            && let Some(said) = answer_for(&packet, layout, bridge, from, cx)
            && let Way::By(member, tunnel) = self.way_to(said.to, bridge, cx, pool)
        {
            // Whoever cannot be answered asks all.
            self.consumed(packet, None, cx, pool);
            self.speak_as(&said, (member, tunnel), cx, pool);
            return Ok(());
        }
        let open = reach.unwrap_or(0);
        let copies = self.copy_to_members(
            &packet.frame,
            layout,
            (bridge, from, open, most_ways(bridge, cx)),
            cx,
            pool,
        );
        let wanted = from.is_some()
            && bridge.interface != NO_INTERFACE
            && gateway_wants(&packet, layout, bridge.interface, cx);
        if wanted {
            add(&cx.counters.replicated, copies);
            if self.flooded.len() >= MAX_FLOODED {
                return Err((packet, DropReason::NoBuffer));
            }
            self.flooded.push(Parked { frame: packet.frame, ingress: cx.ingress, since: cx.now });
            return Ok(());
        }
        if copies == 0 && matches!(spread, Ok(Spread::Report(..))) {
            self.consumed(packet, None, cx, pool);
            return Ok(());
        }
        if copies == 0 {
            return Err((packet, reach.err().unwrap_or(DropReason::BridgeNoMember)));
        }
        add(&cx.counters.replicated, copies - 1);
        pool.put(packet.frame);
        Ok(())
    }

    /// Where a frame to a group goes on a bridge that follows who listens.
    fn spread_of(
        &mut self,
        packet: &Packet,
        layout: Layout,
        (bridge, from): (&Bridge, Option<&Member>),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<Spread, DropReason> {
        let bytes = packet.frame.bytes();
        if bridge.snooping.is_none()
            || packet.frame.is_chained()
            || !bridge::is_group(layout.destination(bytes))
        {
            return Ok(Spread::All);
        }
        let link = (layout.destination(bytes), layout.kind(bytes));
        let spread = snooping::look(&bytes[layout.payload..], link, (bridge, from), cx);
        if let (Ok(Spread::Report(_, Some(group))), Some(from)) = (spread, from) {
            self.ask_last(bridge, (from, group), cx, pool);
        }
        spread
    }

    /// Copies for the members that have their bit, in their order, and no more than `most`. How many were made.
    fn copy_to_members(
        &mut self,
        frame: &Frame,
        layout: Layout,
        (bridge, from, open, most): (&Bridge, Option<&Member>, u64, u64),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> u64 {
        // A copy is of one buffer.
        if frame.is_chained() {
            return 0;
        }
        let bytes = frame.bytes();
        let (macs, kind) = (bytes[layout.link..].first_chunk::<12>(), layout.kind(bytes));
        let (Some(macs), payload) = (macs, &bytes[layout.payload..]) else { return 0 };
        let mut copies = 0;
        let is_open = |(at, _): &(usize, &Member)| open >> at & 1 != 0;
        for (_, member) in bridge.members.iter().enumerate().filter(is_open) {
            let is_back = from.is_some_and(|from| {
                from.interface == member.interface || from.vni.is_some() && member.vni.is_some()
            });
            let egress = cx.tables.interface(member.interface);
            if copies >= most {
                break;
            }
            if is_back || !bridge::is_open(member, cx) || payload.len() > usize::from(egress.mtu_bytes) {
                continue;
            }
            let copy = |slow: &mut SlowPath, pool: &mut FramePool| {
                let room = slow.emit.ready.len() < COPY_BUDGET;
                let mut copy = pool.take_filled(payload).filter(|_| room)?;
                bridge::write_header(&mut copy, egress, macs, kind);
                Some(copy)
            };
            match cx.tables.overlays.get(egress.overlay) {
                None => {
                    let Some(copy) = copy(self, pool) else { continue };
                    bridge::count(member.interface, copy.len(), cx);
                    self.emit.ready.push((copy, member.interface));
                    copies += 1;
                }
                Some(overlay) => {
                    for remote in overlay.remotes() {
                        let Some(mut tunnel) = self.tunnel(egress, overlay, *remote, cx, pool) else {
                            continue;
                        };
                        let Some(mut copy) = copy(self, pool) else { continue };
                        bridge::count(member.interface, copy.len(), cx);
                        tunnel.put(&mut copy, cx);
                        tunnel.count(cx);
                        self.emit.ready.push((copy, tunnel.egress));
                        copies += 1;
                    }
                }
            }
        }
        copies
    }

    /// Sends a frame of the gateway's own by a segment's interface, whose link header it begins with. Returns how many
    /// have left.
    pub(super) fn put_on_segment(
        &mut self,
        mut frame: Frame,
        bridge: &Bridge,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> u64 {
        const LAYOUT: Layout = Layout { link: 0, payload: INNER_LINK_BYTES };
        let len = frame.total_len();
        let mac = LAYOUT.destination(frame.bytes());
        match self.way_to(mac, bridge, cx, pool) {
            Way::By(member, tunnel) => {
                bridge::count(bridge.interface, len, cx);
                bridge::readdress(&mut frame, LAYOUT, cx.tables.interface(member.interface));
                self.put_by(frame, member, tunnel, cx);
                1
            }
            Way::Asked => {
                pool.put(frame);
                0
            }
            Way::Unknown => {
                let ways = (bridge, None, u64::MAX, most_ways(bridge, cx));
                let copies = self.copy_to_members(&frame, LAYOUT, ways, cx, pool);
                if copies > 0 {
                    bridge::count(bridge.interface, len, cx);
                }
                pool.put(frame);
                copies
            }
        }
    }

    /// Sends a frame of a virtual router of the segment's interface, whose link header it begins with, into the tunnels of
    /// all its VNIs: also who does not pass frames on yet. Returns how many have left.
    pub(super) fn put_in_tunnels(
        &mut self,
        frame: Frame,
        bridge: &Bridge,
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> u64 {
        const LAYOUT: Layout = Layout { link: 0, payload: INNER_LINK_BYTES };
        let bit = |(at, member): (usize, &Member)| u64::from(member.vni.is_some()) << at;
        let vnis = bridge.members.iter().enumerate().map(bit).fold(0, |all, bit| all | bit);
        let copies = self.copy_to_members(&frame, LAYOUT, (bridge, None, vnis, u64::MAX), cx, pool);
        pool.put(frame);
        copies
    }

    fn way_to<'t>(
        &mut self,
        mac: u64,
        bridge: &'t Bridge,
        cx: &Context<'t>,
        pool: &mut FramePool,
    ) -> Way<'t> {
        let location = cx.neighbours.macs.find(bridge.segment, mac);
        let known = location.and_then(|location| Some((location, bridge.member_at(location)?)));
        let Some((location, member)) = known.filter(|(_, member)| bridge::is_open(member, cx)) else {
            return Way::Unknown;
        };
        if member.vni.is_none() {
            return Way::By(member, None);
        }
        match bridge::tunnel_to(location, member, cx) {
            Ok(tunnel) => Way::By(member, Some(tunnel)),
            Err(NoTunnel::Unresolved { neighbour, .. }) => {
                self.ask(neighbour, cx, pool);
                Way::Asked
            }
            Err(NoTunnel::Unknown | NoTunnel::Lost(_)) => Way::Unknown,
        }
    }

    /// `frame` begins with the link header of `member`.
    fn put_by(&mut self, mut frame: Frame, member: &Member, tunnel: Option<Tunnel>, cx: &Context<'_>) {
        bridge::count(member.interface, frame.total_len(), cx);
        let egress = match tunnel {
            None => member.interface,
            Some(mut tunnel) => {
                tunnel.put(&mut frame, cx);
                tunnel.count(cx);
                tunnel.egress
            }
        };
        self.emit.ready.push((frame, egress));
    }

    /// Sends a frame in the name of a station to another, which has asked.
    fn speak_as(
        &mut self,
        said: &Said,
        (member, tunnel): (&Member, Option<Tunnel>),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) {
        if self.say(said, (member, tunnel), cx, pool) {
            add(&cx.counters.suppressed, 1);
        }
    }

    /// False: there is no buffer for it.
    fn say(
        &mut self,
        said: &Said,
        (member, tunnel): (&Member, Option<Tunnel>),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) -> bool {
        let room = self.emit.ready.len() < COPY_BUDGET;
        let Some(mut frame) = pool.take_filled(&said.bytes).filter(|_| room) else { return false };
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&said.to.to_be_bytes()[2..]);
        macs[6..].copy_from_slice(&said.mac.to_be_bytes()[2..]);
        bridge::write_header(&mut frame, cx.tables.interface(member.interface), &macs, said.kind);
        self.put_by(frame, member, tunnel, cx);
        add(&cx.counters.originated, 1);
        true
    }

    /// Tells the sender of a packet between members that a rule rejects: by a reset in the name of the station that it was
    /// for, or by an error from the segment's own interface, if it has one.
    pub(super) fn answer_on_segment(
        &mut self,
        answer: Answer,
        packet: &Packet,
        cx: &Context<'_>,
        pool: &mut FramePool,
        limits: &Limits,
    ) {
        let meta = &packet.meta;
        let bridge = cx.tables.bridges.of_scope(meta.vrf);
        let Some((bridge, from)) = bridge.and_then(|bridge| Some((bridge, bridge.member(meta.interface)?)))
        else {
            return;
        };
        let (bytes, layout) = (packet.frame.bytes(), Layout::of(meta, Some(from)));
        let l3 = &bytes[layout.payload..];
        let own = (bridge.interface != NO_INTERFACE).then(|| cx.tables.interface(bridge.interface));
        let (mac, bytes) = match (answer, own) {
            (Answer::Reset, _) => (layout.destination(bytes), tcp::reset(meta, l3)),
            (Answer::Error(kind @ IcmpError::Prohibited), Some(own)) => {
                (own.mac, icmp::error(kind, meta, l3, own, 0))
            }
            // What happens on the way to a tunnel is nothing that hosts of a segment could be told.
            (Answer::Error(_), _) => return,
        };
        let Some(bytes) = bytes.filter(|_| self.may_tell(meta, l3, cx, limits)) else { return };
        let to = layout.source(packet.frame.bytes());
        let way = match self.way_to(to, bridge, cx, pool) {
            Way::By(member, tunnel) => (member, tunnel),
            // Never let into the table.
            Way::Unknown if from.vni.is_none() => (from, None),
            Way::Unknown | Way::Asked => return,
        };
        let said = Said { mac, to, kind: layout.kind(packet.frame.bytes()), bytes };
        self.say(&said, way, cx, pool);
    }

    /// Looks for loops and for stations that are silent. For one worker of the node.
    pub(super) fn look_at_segments(&mut self, cx: &Context<'_>, pool: &mut FramePool) {
        self.rounds.adopt(cx.tables, cx.now);
        for index in 0..self.rounds.looks.len() {
            let loops::Look { bridge, due } = self.rounds.looks[index];
            let found = cx.tables.bridges.get(bridge);
            let Some((bridge, interval)) = found.and_then(|bridge| Some((bridge, bridge.loop_probe?))) else {
                continue;
            };
            if due > cx.now {
                continue;
            }
            // Not for each time that was missed.
            self.rounds.looks[index].due = due.plus(interval).max(cx.now);
            // What came round by the node that passes frames on is no loop.
            if !bridge.passes_on(&cx.neighbours.roles) {
                continue;
            }
            for member in bridge.members.iter().filter(|member| bridge::is_open(member, cx)) {
                let (link, bytes) = loops::frame(bridge, member, cx);
                self.emit_link(link, &bytes, cx, pool);
            }
        }
        for index in 0..self.rounds.queries.len() {
            let Queries { bridge, due, first } = self.rounds.queries[index];
            let found = cx.tables.bridges.get(bridge);
            let Some((bridge, snooping)) = found.and_then(|bridge| Some((bridge, bridge.snooping?))) else {
                continue;
            };
            if due > cx.now {
                continue;
            }
            // RFC 3376 section 8.6: the first ones after a quarter of the time.
            let interval = Duration::from_secs(snooping.interval_s.into()) / if first > 1 { 4 } else { 1 };
            let queries = &mut self.rounds.queries[index];
            (queries.due, queries.first) = (due.plus(interval).max(cx.now), first.saturating_sub(1));
            if bridge.passes_on(&cx.neighbours.roles) {
                self.ask_listeners(bridge, cx, pool);
            }
        }
        self.go_on_announcing(cx, pool);
        self.sweep_stations(cx);
    }

    fn sweep_stations(&mut self, cx: &Context<'_>) {
        let rounds = &mut self.rounds;
        if rounds.counts.is_empty() {
            return;
        }
        if rounds.sweep_at == 0 {
            if cx.now < rounds.sweep_due {
                return;
            }
            // Whole intervals, so that replay does not depend on when turns happen.
            rounds.sweep_due = Nanos((cx.now.0 / SWEEP_INTERVAL_NS + 1) * SWEEP_INTERVAL_NS);
            rounds.counts.fill(0);
        }
        let macs = &cx.neighbours.macs;
        let until = (rounds.sweep_at + SWEEP_PLACES).min(macs.capacity());
        let now_s = cx.now.as_secs();
        macs.sweep(rounds.sweep_at..until, |entry| {
            // Of overlays: those who are looked for will displace them.
            if !Bridges::has_segment(entry.segment) {
                return true;
            }
            let Some(bridge) = cx.tables.bridges.of_segment(entry.segment) else { return false };
            let member = bridge.member_at(entry.location);
            let stays = member.is_some() && bridge.still_knows(entry, now_s);
            if let Some(count) =
                member.and_then(|member| rounds.counts.get_mut(usize::from(member.interface)))
                && stays
                && !entry.is_static
            {
                *count += 1;
            }
            stays
        });
        rounds.sweep_at = if until == macs.capacity() { 0 } else { until };
        if rounds.sweep_at == 0 {
            let snoops = |slot: u16| {
                let interface = cx.tables.interfaces.get(usize::from(slot));
                let bridge = interface.and_then(|interface| cx.tables.bridges.get(interface.bridge));
                bridge.is_some_and(|bridge| bridge.snooping.is_some())
            };
            cx.neighbours.listeners.sweep(now_s, snoops);
            for member in cx.tables.bridges.iter().flat_map(|bridge| &bridge.members) {
                macs.set_count(member.interface, rounds.counts[usize::from(member.interface)]);
            }
        }
    }
}

/// How many ways into the segment a frame to all takes. The node that passes frames on passes on what is our own as well:
/// one is enough.
fn most_ways(bridge: &Bridge, cx: &Context<'_>) -> u64 {
    if bridge.passes_on(&cx.neighbours.roles) { u64::MAX } else { 1 }
}

/// True if the gateway itself has something to say to a frame that goes to all.
fn gateway_wants(packet: &Packet, layout: Layout, interface: u16, cx: &Context<'_>) -> bool {
    let bytes = packet.frame.bytes();
    if !bridge::is_group(layout.destination(bytes)) {
        return false;
    }
    let l3 = &bytes[layout.payload..];
    match layout.kind(bytes) {
        ethertype::ARP => true,
        // A host that asks for an address, and a relay for it.
        ethertype::IPV4 => {
            let asks =
                l3.len() >= 28 && l3[0] == 0x45 && l3[9] == protocol::UDP && be16(l3, 22) == SERVER_PORT;
            asks && cx.tables.relays.v4.on(interface).is_some()
        }
        ethertype::IPV6 if l3.len() >= 40 => {
            let dst = Ipv6Addr::from(be128(l3, 24));
            let asks = dst == ALL_RELAYS_AND_SERVERS && cx.tables.relays.v6.on(interface).is_some();
            asks || nd::listens(cx.tables.interface(interface), dst, &cx.neighbours.roles)
        }
        _ => false,
    }
}

/// Which way a station is.
enum Way<'a> {
    By(&'a Member, Option<Tunnel>),
    /// The next hop of its tunnel has to be asked for.
    Asked,
    Unknown,
}

/// What is said in the name of a station.
struct Said {
    /// Its MAC address.
    mac: u64,
    /// That of who asked.
    to: u64,
    kind: u16,
    bytes: OwnBytes,
}

/// The answer to a question for a station that is known to be behind another member.
fn answer_for(
    packet: &Packet,
    layout: Layout,
    bridge: &Bridge,
    from: &Member,
    cx: &Context<'_>,
) -> Option<Said> {
    if bridge.interface == NO_INTERFACE {
        return None;
    }
    let bytes = packet.frame.bytes();
    let (to, kind, l3) = (layout.source(bytes), layout.kind(bytes), &bytes[layout.payload..]);
    if !bridge::is_group(layout.destination(bytes)) {
        return None;
    }
    // Who is known to the gateway, and where.
    let mac_of = |addr: u128| {
        let slot = cx.neighbours.find(bridge.interface, addr)?;
        let word = cx.neighbours.word(slot);
        let mac = word.is_usable().then(|| word.mac())?;
        let there = cx.neighbours.macs.find(bridge.segment, mac).and_then(|at| bridge.member_at(at))?;
        let is_elsewhere = there.interface != from.interface && bridge::is_open(there, cx);
        (is_elsewhere && !(there.vni.is_some() && from.vni.is_some())).then_some(mac)
    };
    let (mac, bytes) = match kind {
        ethertype::ARP => {
            let (sender, target) = arp::question(l3)?;
            let mac = mac_of(v4_key(target.into()))?;
            (mac, arp::answer_as(mac, target, (to, sender)))
        }
        ethertype::IPV6 => {
            let (sender, target) = nd::question(l3)?;
            let mac = mac_of(target.into())?;
            (mac, nd::answer_as(mac, target, sender))
        }
        _ => return None,
    };
    Some(Said { mac, to, kind, bytes })
}
