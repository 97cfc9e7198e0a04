//! IGMP and MLD snooping (RFC 4541): multicast goes to the members behind which somebody listens, and to multicast routers.
//!
//! Reports teach who listens (RFC 2236, 3376, 2710, 3810) and go on to routers only; queries and PIM's hellos teach where
//! routers are. What is for a group of the link itself (224.0.0.0/24, `ff02::/16` and below) always goes to all: neighbour
//! discovery must not hang on reports. Where no querier is heard nobody is asked to report again, and all goes to all.
//!
//! Sources are not told apart: who listens to some sources of a group gets all of it.

use std::net::Ipv6Addr;

use crate::host::{LinkTarget, OwnBytes, snooping};
use crate::listeners::{ALL_HOSTS_V4, ALL_HOSTS_V6, Group, Refused};
use crate::mem::FramePool;
use crate::packet::view::{be16, be32, be128, ethertype, protocol};
use crate::packet::{DropReason, checksum};
use crate::pipeline::Context;
use crate::pipeline::bridge;
use crate::pipeline::slow::SlowPath;
use crate::tables::NO_INTERFACE;
use crate::tables::bridge::{Bridge, Member, Snooping};
use crate::time::Nanos;

/// RFC 3376 section 8.8 and 8.9, RFC 3810 section 9.8: a querier that was told of a leave asks so often, a second apart; and
/// seconds are not told apart finer.
const LAST_LISTENER_S: u64 = 3;
/// RFC 4541 section 2.1.1: version 2, type hello (RFC 7761 section 4.9).
const PIM_HELLO: u8 = 0x20;
/// Messages have never crossed a router (RFC 2236 section 2, RFC 2710 section 3).
const HOP_LIMIT: u8 = 1;
const IPV6_BYTES: usize = 40;
/// Where the message begins behind a router alert (RFC 2711) padded to its 8 bytes.
const MLD_AT: usize = IPV6_BYTES + 8;

/// Where a frame to a group goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// As without snooping.
    All,
    /// Data for listeners behind these members, one bit each; it is no storm.
    Listeners(u64),
    /// A report, to routers behind these members; the bridge itself has heard it. With the group to be asked about, if
    /// somebody left it and nobody else asks.
    Report(u64, Option<Group>),
}

/// True for what is to be read before it goes on: IGMP and MLD.
pub(super) fn is_message(l3: &[u8], kind: u16) -> bool {
    match kind {
        ethertype::IPV4 => l3.get(9) == Some(&protocol::IGMP),
        ethertype::IPV6 => {
            l3.get(6) == Some(&protocol::HOP_BY_HOP)
                && l3.get(40..42) == Some(&[protocol::ICMPV6, 0])
                && l3.get(MLD_AT).is_some_and(|kind| matches!(kind, 130..=132 | 143))
        }
        _ => false,
    }
}

/// What a frame to the MAC address `mac` that came in by `from` says of groups, and where it goes.
pub(super) fn look(
    l3: &[u8],
    (mac, kind): (u64, u16),
    (bridge, from): (&Bridge, Option<&Member>),
    cx: &Context<'_>,
) -> Result<Spread, DropReason> {
    let Some(snooping) = &bridge.snooping else { return Ok(Spread::All) };
    let snooper = Snooper { bridge, snooping, from, mac, now_s: cx.now.as_secs(), cx };
    match kind {
        ethertype::IPV4 => snooper.v4(l3),
        ethertype::IPV6 => snooper.v6(l3),
        _ => Ok(Spread::All),
    }
}

#[derive(Clone, Copy)]
struct Snooper<'a> {
    bridge: &'a Bridge,
    snooping: &'a Snooping,
    from: Option<&'a Member>,
    mac: u64,
    now_s: u64,
    cx: &'a Context<'a>,
}

impl Snooper<'_> {
    fn v4(self, l3: &[u8]) -> Result<Spread, DropReason> {
        let Some(header) = l3.first_chunk::<20>() else { return Ok(Spread::All) };
        let (header_len, dst) = (usize::from(header[0] & 15) * 4, be32(header, 16));
        if header[0] >> 4 != 4 || dst >> 28 != 0xe {
            return Ok(Spread::All);
        }
        if header[9] == protocol::IGMP
            && let Some(from) = self.from
        {
            let end = usize::from(be16(header, 2));
            let message = l3.get(header_len..end).filter(|message| message.len() >= 8);
            let is_sound = be16(header, 6) & 0x3fff == 0 && header_len >= 20 && header[8] == HOP_LIMIT;
            let message = message.filter(|message| is_sound && checksum::is_valid(message));
            // Hosts do not hear what has no sound header.
            let is_heard = l3.get(..header_len).is_some_and(checksum::is_valid);
            let message = message.filter(|_| is_heard);
            return self.igmp(message.ok_or(DropReason::IgmpInvalid)?, (be32(header, 12), dst), from);
        }
        if header[9] == protocol::PIM && l3.get(header_len) == Some(&PIM_HELLO) {
            self.note_router(0);
        }
        if dst >> 8 == 0x00e0_0000 {
            return Ok(Spread::All);
        }
        self.data(Group::V4(dst))
    }

    fn v6(self, l3: &[u8]) -> Result<Spread, DropReason> {
        let Some(header) = l3.first_chunk::<IPV6_BYTES>() else { return Ok(Spread::All) };
        let dst = be128(header, 24);
        if header[0] >> 4 != 6 || dst >> 120 != 0xff {
            return Ok(Spread::All);
        }
        if is_message(l3, ethertype::IPV6)
            && let Some(from) = self.from
        {
            let (src, end) = (be128(header, 8), IPV6_BYTES + usize::from(be16(header, 4)));
            let message = l3.get(MLD_AT..end).filter(|message| message.len() >= 8);
            // RFC 3810 section 5.2.13: who has no address yet reports from none.
            let is_sound =
                header[7] == HOP_LIMIT && (src == 0 || Ipv6Addr::from(src).is_unicast_link_local());
            let is_right = |message: &&[u8]| {
                let addresses = checksum::add(0, &header[8..40]);
                let pseudo = addresses + u64::from(protocol::ICMPV6) + message.len() as u64;
                is_sound && checksum::fold(checksum::add(pseudo, message)) == 0xffff
            };
            let message = message.filter(is_right).ok_or(DropReason::MldInvalid)?;
            return self.mld(message, (src, dst), from);
        }
        if header[6] == protocol::PIM && l3.get(IPV6_BYTES) == Some(&PIM_HELLO) {
            self.note_router(1);
        }
        if is_of_link(dst) {
            return Ok(Spread::All);
        }
        self.data(Group::V6(dst))
    }

    /// One bit for each member that says yes, in their order.
    fn members(self, is: impl Fn(&Member) -> bool) -> u64 {
        let bits = self.bridge.members.iter().enumerate();
        bits.fold(0, |all, (at, member)| all | u64::from(is(member)) << at)
    }

    fn has_router(self, member: &Member, family: usize) -> bool {
        let listeners = &self.cx.neighbours.listeners;
        member.multicast_router || listeners.has(member.interface, Group::ROUTER[family], self.now_s)
    }

    fn is_known(self, family: usize) -> bool {
        let (listeners, bridge) = (&self.cx.neighbours.listeners, self.bridge.number());
        listeners.has_querier(bridge, family, self.now_s)
    }

    fn data(self, group: Group) -> Result<Spread, DropReason> {
        let family = group.family();
        // Some of the listeners were not let in, or of this group none is.
        let has_overflowed =
            self.cx.neighbours.listeners.has_overflowed(self.bridge.number(), family, self.now_s);
        if !self.is_known(family) || has_overflowed || group.is_router() {
            return Ok(Spread::All);
        }
        let listens = |member: &Member| self.cx.neighbours.listeners.has(member.interface, group, self.now_s);
        let listening = self.members(listens);
        if listening == 0 && self.snooping.flood_unknown {
            return Ok(Spread::All);
        }
        let to = listening | self.members(|member| self.has_router(member, family));
        let from = self.from.map_or(NO_INTERFACE, |from| from.interface);
        if to & self.members(|member| member.interface != from) == 0 {
            return Err(DropReason::MulticastNoListener);
        }
        Ok(Spread::Listeners(to))
    }

    fn note_router(self, family: usize) {
        if let Some(from) = self.from {
            let until_s = self.now_s + self.snooping.present_s();
            self.note_router_at(from, family, until_s);
        }
    }

    fn note_router_at(self, from: &Member, family: usize, until_s: u64) {
        let listeners = &self.cx.neighbours.listeners;
        if listeners.note(from.interface, Group::ROUTER[family], until_s, u32::MAX).is_err() {
            listeners.note_overflow(self.bridge.number(), family, until_s);
        }
    }

    /// A querier speaks. `is_better`: it has a lower address than the gateway's own.
    fn asked(self, family: usize, from: &Member, has_address: bool, is_better: bool) {
        let listeners = &self.cx.neighbours.listeners;
        let until_s = self.now_s + self.snooping.present_s();
        listeners.note_querier(self.bridge.number(), family, is_better, until_s);
        // RFC 4541 section 2.1.1: one without an address keeps reports coming, and is no router.
        if has_address {
            self.note_router_at(from, family, until_s);
        }
    }

    /// Somebody who still listens has so long to say so.
    fn asked_about(self, group: Group, response_s: u64) {
        let until_s = self.now_s + (2 * response_s + 1).min(self.snooping.membership_s());
        for member in &self.bridge.members {
            self.cx.neighbours.listeners.shorten(member.interface, group, until_s, self.now_s);
        }
    }

    fn joins(self, group: Group, from: &Member) -> Result<(), DropReason> {
        let is_followed = is_followed(group)?;
        let until_s = self.now_s + self.snooping.membership_s();
        let listeners = &self.cx.neighbours.listeners;
        if !is_followed {
            return Ok(());
        }
        match listeners.note(from.interface, group, until_s, self.snooping.max_groups) {
            Ok(()) => Ok(()),
            Err(Refused::TooMany) => Err(DropReason::MulticastLimit),
            // Nobody who was told to listen is to miss it because others have filled the table: all goes to all.
            Err(Refused::NoRoom) => {
                listeners.note_overflow(self.bridge.number(), group.family(), until_s);
                Ok(())
            }
        }
    }

    /// The group to be asked about.
    fn leaves(self, group: Group, from: &Member) -> Result<Option<Group>, DropReason> {
        if !is_followed(group)? {
            return Ok(None);
        }
        let listeners = &self.cx.neighbours.listeners;
        if self.snooping.fast_leave {
            listeners.forget(from.interface, group);
            return Ok(None);
        }
        if !self.is_asking(group.family()) {
            // The querier asks, and what it asks is heard.
            return Ok(None);
        }
        listeners.shorten(from.interface, group, self.now_s + LAST_LISTENER_S, self.now_s);
        Ok(Some(group))
    }

    /// True if the gateway itself is the querier.
    fn is_asking(self, family: usize) -> bool {
        let listeners = &self.cx.neighbours.listeners;
        self.snooping.querier && !listeners.has_better_querier(self.bridge.number(), family, self.now_s)
    }

    fn to_routers(self, family: usize, ask: Option<Group>) -> Spread {
        Spread::Report(self.members(|member| self.has_router(member, family)), ask)
    }

    /// True if hosts that listen hear a query: it is to all of them, or to the group that it asks about (RFC 3376 section
    /// 4.1.12, RFC 3810 section 5.1.15), and so is its frame. What they do not hear they do not answer, and it must not
    /// cost them what they listen to.
    fn is_heard(self, group: Group, dst: Group) -> bool {
        let to = match group {
            Group::V4(0) => Group::V4(ALL_HOSTS_V4),
            Group::V6(0) => Group::V6(ALL_HOSTS_V6),
            group => group,
        };
        self.mac == dst.mac() && dst == to
    }

    fn igmp(self, message: &[u8], (src, dst): (u32, u32), from: &Member) -> Result<Spread, DropReason> {
        let group = be32(message, 4);
        match message[0] {
            0x11 => {
                // RFC 3376 section 7.1.
                let sources = message.get(10..12).map(|count| usize::from(be16(count, 0)));
                let (sources, is_v3) = match (message.len(), sources) {
                    (8, _) => (0, false),
                    (len, Some(sources)) if len >= 12 + 4 * sources => (sources, true),
                    _ => return Err(DropReason::IgmpInvalid),
                };
                if !self.is_heard(Group::V4(group), Group::V4(dst)) {
                    return Err(DropReason::IgmpInvalid);
                }
                let own = snooping::source_v4(self.bridge, self.cx.tables);
                let is_better = src != 0 && (own == 0 || src < own);
                self.asked(0, from, src != 0, is_better);
                let is_suppressed = is_v3 && message[8] & 8 != 0;
                if group != 0 && sources == 0 && !is_suppressed {
                    let tenths = if is_v3 { snooping::time_v4(message[1]) } else { message[1].into() };
                    self.asked_about(Group::V4(group), u64::from(tenths.div_ceil(10)));
                }
                Ok(Spread::All)
            }
            0x12 | 0x16 => {
                self.joins(Group::V4(group), from)?;
                Ok(self.to_routers(0, None))
            }
            0x17 => {
                let ask = self.leaves(Group::V4(group), from)?;
                Ok(self.to_routers(0, ask))
            }
            0x22 => self.records(message, 4, |at| Group::V4(be32(message, at)), 0, from),
            // RFC 4541 section 2.1.1: what is not known goes to all.
            _ => Ok(Spread::All),
        }
    }

    fn mld(self, message: &[u8], (src, dst): (u128, u128), from: &Member) -> Result<Spread, DropReason> {
        let group = message.get(8..24).map(|group| be128(group, 0));
        if message[0] == 143 {
            return self.records(message, 16, |at| Group::V6(be128(message, at)), 1, from);
        }
        let group = group.ok_or(DropReason::MldInvalid)?;
        match message[0] {
            130 => {
                // RFC 3810 section 8.1.
                let sources = message.get(26..28).map(|count| usize::from(be16(count, 0)));
                let (sources, is_v2) = match (message.len(), sources) {
                    (24, _) => (0, false),
                    (len, Some(sources)) if len >= 28 + 16 * sources => (sources, true),
                    _ => return Err(DropReason::MldInvalid),
                };
                if src == 0 || !self.is_heard(Group::V6(group), Group::V6(dst)) {
                    return Err(DropReason::MldInvalid);
                }
                let own = snooping::source_v6(self.bridge, self.cx.tables);
                self.asked(1, from, true, own.is_none_or(|own| src < own));
                let is_suppressed = is_v2 && message[24] & 8 != 0;
                let is_followed = group != 0 && is_followed(Group::V6(group))?;
                if is_followed && sources == 0 && !is_suppressed {
                    let code = be16(message, 4);
                    let millis = if is_v2 { snooping::time_v6(code) } else { code.into() };
                    self.asked_about(Group::V6(group), u64::from(millis.div_ceil(1000)));
                }
                Ok(Spread::All)
            }
            131 => {
                self.joins(Group::V6(group), from)?;
                Ok(self.to_routers(1, None))
            }
            _ => {
                let ask = self.leaves(Group::V6(group), from)?;
                Ok(self.to_routers(1, ask))
            }
        }
    }

    /// Group records of IGMPv3 (RFC 3376 section 4.2.4) and MLDv2 (RFC 3810 section 5.2.4), whose addresses have `len`
    /// bytes.
    fn records(
        self,
        message: &[u8],
        len: usize,
        group_at: impl Fn(usize) -> Group,
        family: usize,
        from: &Member,
    ) -> Result<Spread, DropReason> {
        let invalid = [DropReason::IgmpInvalid, DropReason::MldInvalid][family];
        let (mut at, mut ask, mut lost) = (8, None, None);
        for _ in 0..be16(message, 6) {
            let head = message.get(at..at + 4 + len).ok_or(invalid)?;
            let (kind, sources) = (head[0], usize::from(be16(head, 2)));
            let next = at + 4 + len + sources * len + usize::from(head[1]) * 4;
            if next > message.len() {
                return Err(invalid);
            }
            match (kind, sources) {
                // To nothing at all: it leaves.
                (3, 0) => ask = self.leaves(group_at(at + 4), from)?.or(ask),
                (1 | 5, 0) | (6, _) => {}
                (1..=5, _) => lost = self.joins(group_at(at + 4), from).err().or(lost),
                // RFC 3376 section 4.2.12: others are ignored.
                _ => {}
            }
            at = next;
        }
        match lost {
            Some(reason) => Err(reason),
            None => Ok(self.to_routers(family, ask)),
        }
    }
}

/// True for a group whose listeners are looked for; others go to all: those of the link, and those that look like a
/// router's entry. An error: it is no group.
fn is_followed(group: Group) -> Result<bool, DropReason> {
    match group {
        Group::V4(group) if group >> 28 != 0xe => Err(DropReason::IgmpInvalid),
        Group::V6(group) if group >> 120 != 0xff => Err(DropReason::MldInvalid),
        Group::V4(group) => Ok(group >> 8 != 0x00e0_0000),
        Group::V6(low) => Ok(!is_of_link(low) && !group.is_router()),
    }
}

/// Of the interface, or of the link: scopes 0 to 2 (RFC 4291 section 2.7).
fn is_of_link(group: u128) -> bool {
    group >> 112 & 0xf <= 2
}

/// Queries of a bridge whose querier the gateway is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queries {
    /// Number of the bridge.
    pub(super) bridge: u16,
    /// When the next ones are due.
    pub(super) due: Nanos,
    /// Of the first, sooner one after the other, that are left (RFC 3376 section 8.7).
    pub(super) first: u8,
}

impl SlowPath {
    /// Asks behind all members what they listen to, unless somebody else is to ask. For one worker of the node.
    pub(super) fn ask_listeners(&mut self, bridge: &Bridge, cx: &Context<'_>, pool: &mut FramePool) {
        let Some(snooping) = bridge.snooping.as_ref().filter(|snooping| snooping.querier) else { return };
        let (listeners, now_s) = (&cx.neighbours.listeners, cx.now.as_secs());
        for family in [0, 1] {
            if listeners.has_better_querier(bridge.number(), family, now_s) {
                continue;
            }
            let query = snooping::query(bridge, Group::ROUTER[family], snooping.interval_s, cx.tables);
            let Some((mac, kind, bytes)) = query else { continue };
            listeners.note_querier(bridge.number(), family, false, now_s + snooping.present_s());
            for member in bridge.members.iter().filter(|member| bridge::is_open(member, cx)) {
                self.ask_behind(member, (mac, kind, &bytes), cx, pool);
            }
        }
    }

    /// Asks who is left of a group, where somebody has left it.
    pub(super) fn ask_last(
        &mut self,
        bridge: &Bridge,
        (member, group): (&Member, Group),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) {
        let interval_s = bridge.snooping.as_ref().map_or(0, |snooping| snooping.interval_s);
        if let Some((mac, kind, bytes)) = snooping::query(bridge, group, interval_s, cx.tables) {
            self.ask_behind(member, (mac, kind, &bytes), cx, pool);
        }
    }

    fn ask_behind(
        &mut self,
        member: &Member,
        (mac, ethertype, bytes): (u64, u16, &OwnBytes),
        cx: &Context<'_>,
        pool: &mut FramePool,
    ) {
        self.emit_link(LinkTarget { interface: member.interface, mac, ethertype }, bytes, cx, pool);
    }
}
