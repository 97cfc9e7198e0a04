//! Zones of a bridge's members: what they say to each other is for the firewall, as what is routed is, but nothing of it
//! changes on the way. Its flows have the bridge in the place of the VRF.
//!
//! [`begin`] takes an IP packet from one member to another onto the way of sessions, [`decide`] asks the rules about the
//! first of a flow, and [`leave`] sends it on to where its station is. Frames to all have no session: [`reach`] says for
//! each of them which members get a copy.
//!
//! What makes a segment work passes whatever the rules say: ARP, neighbour discovery, DHCP, IGMP and MLD.

use arrayvec::ArrayVec;

use crate::flow::Flows;
use crate::macs::Location;
use crate::packet::view::{be16, ethertype, protocol};
use crate::packet::{Burst, DropReason, Family, Packet, Verdict, flags};
use crate::pipeline::bridge::{self, Layout};
use crate::pipeline::session::{self, Table};
use crate::pipeline::slow::loops;
use crate::pipeline::{Allowed, Context, Decision, Question, network};
use crate::tables::bridge::{Bridge, Member, is_scope};
use crate::tables::policy::{Action, Asked, NO_NAT_RULE, NO_ZONE, Ruling, SourceNat};
use crate::tables::{NO_INTERFACE, Tables};

/// DHCP's ports, of client and server (RFC 2131 section 4.1).
const DHCP: (u16, u16) = (68, 67);
/// DHCPv6's (RFC 8415 section 7.2).
const DHCPV6: (u16, u16) = (546, 547);
/// RFC 4861 section 7.1: neighbour discovery has never crossed a router.
const ND_HOP_LIMIT: u8 = 255;
/// ICMPv6 types of solicitations, advertisements and redirects (RFC 4861 section 4).
const ND: [u8; 5] = [133, 134, 135, 136, 137];
/// ICMPv6 types of MLD (RFC 2710 section 3, RFC 3810 section 5).
const MLD: [u8; 4] = [130, 131, 132, 143];

/// Decides a flow from one member to another, `egress`: the firewall alone. Pure, as [`super::decide`], which has
/// nothing to say of bridges. `kept`: whatever the rules say, as of a session that a commit has left to its end.
pub fn decide(tables: &Tables, question: &Question, egress: u16, kept: bool) -> Decision {
    let member = |slot| {
        let bridge = tables.bridges.of_scope(question.vrf)?;
        let member = bridge.member(slot)?;
        Some(tables.interface(member.interface).zone).filter(|zone| *zone != NO_ZONE)
    };
    let (Some(from_zone), Some(to_zone)) = (member(question.ingress), member(egress)) else {
        return Decision::Drop(DropReason::BridgeNoMember);
    };
    let ruling = tables.policy.permit(&Asked::new(question, from_zone, (to_zone, egress, question.vrf)));
    match ruling.action {
        Action::Allow => {}
        _ if kept => {}
        Action::Deny => return Decision::Refused(ruling, DropReason::FirewallDeny),
        Action::Reject => return Decision::Refused(ruling, DropReason::FirewallReject),
    }
    Decision::Session(Allowed {
        egress,
        via: None,
        vrf: question.vrf,
        dst: question.dst,
        dst_port: question.dst_port,
        source: SourceNat::None,
        ruling,
        nat_rule: NO_NAT_RULE,
        backend: None,
        client: None,
        one_sided: false,
        from_zone,
        to_zone,
    })
}

/// A frame to one station, which is at `known`, if anybody knows. `None`: it needs no session.
pub(super) fn begin(
    packet: &mut Packet,
    bridge: &Bridge,
    kind: u16,
    known: Option<(Location, &Member)>,
    cx: &Context<'_>,
) -> Result<Option<Verdict>, DropReason> {
    let family = match kind {
        ethertype::IPV4 => Family::Ipv4,
        ethertype::IPV6 => Family::Ipv6,
        ethertype::ARP => return Ok(None),
        // Where nobody knows the station it is decided for each member.
        _ => {
            let zone = |slot| cx.tables.interface(slot).zone;
            let is_apart = known.is_some_and(|(_, out)| zone(out.interface) != zone(packet.meta.interface));
            let is_lost = is_apart && !bridge.other_protocols;
            return if is_lost { Err(DropReason::BridgeZoneProtocol) } else { Ok(None) };
        }
    };
    if always_passes(family, &packet.frame.bytes()[usize::from(packet.meta.l3)..]) {
        return Ok(None);
    }
    let meta = &mut packet.meta;
    meta.family = family;
    meta.vrf = bridge.scope();
    meta.flags = flags::STATEFUL;
    (meta.egress, meta.dst_mac) = match known {
        Some((location, out)) => (out.interface, location.to_bits().into()),
        None => (NO_INTERFACE, 0),
    };
    Ok(Some(Verdict::Continue))
}

/// Reads the headers of a packet of which only the link header was read.
fn read(packet: &mut Packet, family: Family) -> Result<(), DropReason> {
    let meta = packet.meta;
    (packet.meta.family, packet.meta.verdict) = (family, Verdict::Continue);
    network::step(packet);
    match packet.meta.verdict {
        Verdict::Drop(reason) => {
            packet.meta = meta;
            Err(reason)
        }
        _ => Ok(()),
    }
}

/// True for what hosts of a segment need to find each other, their addresses and their groups, an IP packet whose family is
/// known; no rule is asked about it.
pub fn always_bridged(is_v4: bool, l3: &[u8]) -> bool {
    always_passes(if is_v4 { Family::Ipv4 } else { Family::Ipv6 }, l3)
}

/// The same. `l3` may be anything.
fn always_passes(family: Family, l3: &[u8]) -> bool {
    let are = |at: usize, (client, server): (u16, u16)| {
        let ports = l3.get(at..at + 4).map(|ports| (be16(ports, 0), be16(ports, 2)));
        ports == Some((client, server)) || ports == Some((server, client))
    };
    let is = |at: usize, kinds: &[u8]| l3.get(at).is_some_and(|kind| kinds.contains(kind));
    if family == Family::Ipv4 {
        let Some(header) = l3.first_chunk::<20>() else { return false };
        let is_whole = be16(header, 6) & 0x3fff == 0;
        return match header[9] {
            // To a group alone: between two hosts it would be a way to say anything.
            protocol::IGMP => is_whole && header[16] >> 4 == 0xe,
            protocol::UDP => is_whole && header[0] == 0x45 && are(20, DHCP),
            _ => false,
        };
    }
    let Some(header) = l3.first_chunk::<40>() else { return false };
    match header[6] {
        protocol::UDP => are(40, DHCPV6),
        protocol::ICMPV6 => header[7] == ND_HOP_LIMIT && is(40, &ND),
        // Behind a router alert.
        protocol::HOP_BY_HOP => {
            header[24] == 0xff && is(40, &[protocol::ICMPV6]) && is(41, &[0]) && is(48, &MLD)
        }
        _ => false,
    }
}

/// Sends on what has a session, packets of a burst between members. Returns which there are, one bit per packet: they
/// are settled.
#[cold]
pub(super) fn leave_all(burst: &mut Burst, cx: &Context<'_>, flows: &mut Flows) -> u64 {
    let mut settled = 0;
    for (index, packet) in burst.iter_mut().enumerate() {
        if !is_scope(packet.meta.vrf) {
            continue;
        }
        settled |= 1 << index;
        if packet.meta.verdict == Verdict::Continue {
            let left = match packet.meta.family {
                Family::Ipv4 => leave::<u32>(packet, cx, flows),
                _ => leave::<u128>(packet, cx, flows),
            };
            packet.meta.verdict = left.unwrap_or_else(Verdict::Drop);
        }
    }
    settled
}

/// To where the station is now, if that is still in the zone that was asked about.
fn leave<A: Table>(packet: &mut Packet, cx: &Context<'_>, flows: &mut Flows) -> Result<Verdict, DropReason> {
    let meta = packet.meta;
    let bridge = cx.tables.bridges.of_scope(meta.vrf).filter(|_| meta.flow.is_some());
    let Some((bridge, from)) = bridge.and_then(|bridge| Some((bridge, bridge.member(meta.interface)?)))
    else {
        return Err(DropReason::BridgeNoMember);
    };
    let is_error = meta.has(flags::ICMP_ERROR);
    let zone = cx.tables.interfaces.get(usize::from(meta.egress)).map_or(NO_ZONE, |egress| egress.zone);
    let location = Location::from_bits(meta.dst_mac as u32);
    let known = location.and_then(|location| Some((location, bridge.member_at(location)?)));
    if let Some((_, out)) = known
        && cx.tables.interface(out.interface).zone != zone
    {
        // DESIGN.md section 3, the fate of a live flow: its egress has moved into another zone.
        if !is_error {
            session::end::<A>(meta.flow.session(), cx, flows);
        }
        packet.meta.flow = crate::packet::Handle::NONE;
        return Err(DropReason::PolicyChanged);
    }
    let verdict = match known {
        Some(to) => bridge::forward(packet, Layout::of(&meta, Some(from)), to, cx)?,
        // It is silent for long, or was never let into the table.
        None => Verdict::Flood,
    };
    if verdict == Verdict::Flood {
        // To all of its zone, also where its tunnel end point is none any more.
        (packet.meta.egress, packet.meta.dst_mac) = (NO_INTERFACE, zone.into());
    }
    // What waits for a neighbour comes here again.
    if !is_error && matches!(verdict, Verdict::Forward | Verdict::Flood) {
        A::table(flows).flow_mut(meta.flow).count(meta.ip_len);
    }
    Ok(verdict)
}

/// Which members get a copy of a frame to all that came in by `from`: one bit for each, in their order.
pub(super) fn reach(
    packet: &mut Packet,
    layout: Layout,
    (bridge, from): (&Bridge, &Member),
    cx: &Context<'_>,
) -> Result<u64, DropReason> {
    let zone_of = |member: &Member| cx.tables.interface(member.interface).zone;
    let members = |is_open: &mut dyn FnMut(u8) -> bool| {
        let bits = bridge.members.iter().enumerate().map(|(at, member)| {
            u64::from(member.interface != from.interface && is_open(zone_of(member))) << at
        });
        bits.fold(0, |all, bit| all | bit)
    };
    let own = zone_of(from);
    let kind = layout.kind(packet.frame.bytes());
    if is_scope(packet.meta.vrf) && packet.meta.flow.is_some() {
        let zone = packet.meta.dst_mac;
        return Ok(members(&mut |to| u64::from(to) == zone));
    }
    let family = match kind {
        ethertype::IPV4 => Family::Ipv4,
        ethertype::IPV6 => Family::Ipv6,
        ethertype::ARP | loops::ETHERTYPE => return Ok(u64::MAX),
        _ if bridge.other_protocols => return Ok(u64::MAX),
        _ => return some(members(&mut |to| to == own), DropReason::BridgeZoneProtocol),
    };
    if always_passes(family, &packet.frame.bytes()[layout.payload..]) {
        return Ok(u64::MAX);
    }
    read(packet, family)?;
    let question = Question { vrf: bridge.scope(), ..session::question(packet) };
    let mut asked: ArrayVec<(u8, bool), { crate::config::Bridge::MAX_MEMBERS }> = ArrayVec::new();
    let open = members(&mut |to| {
        if let Some((_, is_open)) = asked.iter().find(|(zone, _)| *zone == to) {
            return *is_open;
        }
        let ruling = cx.tables.policy.permit(&Asked::new(&question, own, (to, NO_INTERFACE, question.vrf)));
        let is_open = takes(&ruling, packet, cx);
        asked.push((to, is_open));
        is_open
    });
    some(open, DropReason::BridgeZoneDeny)
}

fn some(members: u64, otherwise: DropReason) -> Result<u64, DropReason> {
    if members == 0 { Err(otherwise) } else { Ok(members) }
}

/// Counts a packet without a session for the rule that decides it. False: it does not pass.
fn takes(ruling: &Ruling, packet: &Packet, cx: &Context<'_>) -> bool {
    let is_open = ruling.action == Action::Allow && session::take_token(*ruling, cx).is_ok();
    if let Some(counters) = cx.counters.rules.get(ruling.rule as usize) {
        counters.hit(cx.now);
        counters.carried(1, u64::from(packet.meta.ip_len));
    }
    is_open
}

/// True if a packet goes from a host of a segment to another of the same by way of the gateway, and members of it have
/// zones: rules between those would be of no use.
pub(super) fn leads_around(tables: &Tables, question: &Question, egress: u16) -> bool {
    question.ingress == egress && egress != NO_INTERFACE && {
        let interface = tables.interface(egress);
        interface.is_segment() && tables.bridges.get(interface.bridge).is_some_and(|bridge| bridge.has_zones)
    }
}
