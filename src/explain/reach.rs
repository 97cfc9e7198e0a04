//! Reach: who can begin a session to what.
//!
//! Exact, and without knowing policy: a config says of finitely many addresses, ports, protocols and DSCPs that something
//! begins or ends there ([`Marks`]). All packets between two marks are decided alike, so one of them is, by
//! [`pipeline::decide`], for all of its cell. What depends on a flow's hash (the backend of a service) is asked for every
//! outcome.
//!
//! Hosts behind a bridge's member that has a zone have two ways: through the gateway, where they are in the zone of the bridge's
//! interface, and to stations behind other members, which [`pipeline::decide_bridged`] decides. Which of the members a
//! host is behind that is routed to is not known before it has spoken: it may be each of them.

use std::net::IpAddr;

use super::marks::{Marks, Span, V4, V6, span};
use super::names::View;
use crate::config::{
    AddressRange, InterfaceName, Name, PacketText, PortRange, ReachFrom, ReachTo, Service, Side, ZoneName,
};
use crate::control::{ReachQuery, Reachable, Reached};
use crate::neighbours::{addr_of, is_v4_key};
use crate::packet::view::protocol;
use crate::pipeline::route::{self, Route};
use crate::pipeline::trail::Notes;
use crate::pipeline::{self, Decision, Question};
use crate::tables::bridge::Bridge;
use crate::tables::policy::{Action, Bound, NO_ZONE, SELF};
use crate::tables::{NO_INTERFACE, Tables};

/// Most decisions of one question: about a second.
pub const MOST: u64 = 2_000_000;
/// The same on the control thread of a running gateway.
pub const MOST_LIVE: u64 = 40_000;
/// Sources whose way back is looked up in the time of a decision.
const LOOKUPS: u64 = 32;
/// Most prefixes in an answer.
const MOST_PREFIXES: usize = 1000;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Something is called that is not there.
    #[error("no {what} {name}")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The gateway itself is no host behind an interface.
    #[error("the gateway itself has no interface that it comes in by: ask about the zones of hosts")]
    FromSelf,
    /// Too large.
    #[error(
        "{needed} different packets would have to be decided, at most {most}: name fewer hosts, addresses or ports"
    )]
    TooMany {
        /// Decisions it would take.
        needed: u64,
        /// Most.
        most: u64,
    },
}

/// Where hosts come in. Those behind a bridge's member choose by the MAC address who takes what they send: the
/// gateway, or another station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    /// Slot of the interface, or of the member.
    slot: u16,
    /// Slot of the interface that takes what is to be routed.
    routed: Option<u16>,
    /// Number of the bridge that takes what is for its other members.
    bridge: Option<u16>,
}

/// What is looked for, in the tables' terms.
pub struct Region {
    /// Where its hosts are.
    pub doors: Vec<Door>,
    /// Sources.
    pub src: Vec<Span>,
    /// Destinations.
    pub dst: Vec<Span>,
    /// Protocol and ports.
    pub services: Vec<Service>,
    /// Only what ends up in this zone.
    pub to_zone: Option<u8>,
    /// Also sources that do not live behind the interface.
    pub spoofed: bool,
    /// One is enough.
    pub first_only: bool,
}

/// Sources behind one interface.
#[derive(Debug)]
pub struct Behind {
    /// Where they come in.
    pub door: Door,
    /// Those that reach everything.
    pub all: Vec<Span>,
    /// Those that reach something.
    pub some: Vec<Span>,
    /// One that passes.
    pub witness: PacketText,
}

/// Answers a question.
pub fn reach(view: View<'_>, query: &ReachQuery, most: u64) -> Result<Reached, NoAnswer> {
    reach_among(view, &Marks::of(view), query, most, &mut 0)
}

/// The same with marks that are known. `decisions` counts on, and is what `most` is of.
pub fn reach_among(
    view: View<'_>,
    marks: &Marks,
    query: &ReachQuery,
    most: u64,
    decisions: &mut u64,
) -> Result<Reached, NoAnswer> {
    let region = region(view, &query.from, &query.to, query.spoofed)?;
    let found = solve(view, marks, &region, most, decisions)?;
    let tables = view.tables();
    let mut remarks = Vec::new();
    if !view.config.nat.nptv6.is_empty() {
        remarks.push(
            "inside of prefixes of nptv6 neighbouring addresses are translated to distant ones: of them one in each \
             cell was asked"
                .to_owned(),
        );
    }
    let prefixes = |spans: &[Span]| -> Vec<String> {
        let ranges =
            spans.iter().filter_map(|(first, last)| AddressRange::new(addr_of(*first), addr_of(*last)).ok());
        ranges
            .flat_map(|range| range.nets().map(|net| net.to_string()).collect::<Vec<_>>())
            .take(MOST_PREFIXES)
            .collect()
    };
    let from = found.iter().map(|behind| {
        let interface = tables.interface(behind.door.slot);
        let bridge = behind.door.bridge.and_then(|number| tables.bridges.get(number));
        Reachable {
            interface: interface.info.name.clone(),
            vrf: view.vrf(bridge.map_or(interface.vrf, Bridge::scope)),
            zone: (interface.zone != NO_ZONE).then(|| view.zone(interface.zone).to_owned()),
            all: prefixes(&behind.all),
            some: prefixes(&behind.some),
            witness: behind.witness.to_string(),
        }
    });
    Ok(Reached { generation: tables.generation, from: from.collect(), decisions: *decisions, remarks })
}

impl Door {
    /// Those of a zone, if one is named, and of an interface or a member, if one is named.
    fn all(
        view: View<'_>,
        zone: Option<u8>,
        name: Option<&InterfaceName>,
        vrf: Option<u16>,
    ) -> impl Iterator<Item = Door> {
        let tables = view.tables();
        let is_meant = move |slot: u16| {
            let interface = tables.interface(slot);
            zone.is_none_or(|zone| zone == interface.zone)
                && name.is_none_or(|name| name.as_str() == interface.info.name)
        };
        let slots =
            view.config.interfaces.iter().filter_map(|of| view.compiler.interfaces.get(of.name.as_str()));
        let interfaces = slots
            .filter(move |slot| is_meant(*slot) && vrf.is_none_or(|vrf| vrf == tables.interface(*slot).vrf))
            .map(|slot| Door { slot, routed: Some(slot), bridge: None });
        // Of others all passes, whatever anybody says.
        let bridges = tables.bridges.iter().filter(|bridge| bridge.has_zones);
        let members = bridges.flat_map(move |bridge| {
            let own = (bridge.interface != NO_INTERFACE).then_some(bridge.interface);
            let is_in = vrf.is_none_or(|vrf| own.is_some_and(|own| tables.interface(own).vrf == vrf));
            // What it routes for them is that interface's already, where all are asked about.
            let routed = own.filter(|_| zone.is_some() || name.is_some());
            let slots = bridge.members.iter().map(|member| member.interface);
            slots.filter(move |slot| is_in && is_meant(*slot)).map(move |slot| Door {
                slot,
                routed,
                bridge: Some(bridge.number()),
            })
        });
        interfaces.chain(members)
    }

    /// Those of a zone.
    pub fn of_zone(view: View<'_>, zone: u8) -> Vec<Door> {
        Door::all(view, Some(zone), None, None).collect()
    }

    /// Whether the source may live there: what is routed to it goes there.
    fn is_home_of(self, tables: &Tables, src: IpAddr) -> bool {
        let bridge = self.bridge.and_then(|number| tables.bridges.get(number));
        let slot = bridge.map_or(self.slot, |bridge| bridge.interface);
        // Of a segment without the gateway nobody knows the addresses.
        slot == NO_INTERFACE || route::leads_to(tables, tables.interface(slot).vrf, src, Some(slot))
    }
}

/// A question in the tables' terms.
pub fn region(view: View<'_>, from: &ReachFrom, to: &ReachTo, spoofed: bool) -> Result<Region, NoAnswer> {
    let unknown = |what, name: &dyn ToString| NoAnswer::Unknown { what, name: name.to_string() };
    let zone = |name: &ZoneName| {
        view.compiler.policy_slots.known_zone(name.as_str()).ok_or_else(|| unknown("zone", name))
    };
    if from.zone.as_ref().is_some_and(|zone| zone.as_str() == Side::SELF) {
        return Err(NoAnswer::FromSelf);
    }
    let from_zone = from.zone.as_ref().map(zone).transpose()?;
    let vrf = from
        .vrf
        .as_ref()
        .map(|name| view.compiler.vrfs.get(name.as_str()).ok_or_else(|| unknown("VRF", name)));
    let vrf = vrf.transpose()?;
    let doors: Vec<Door> = Door::all(view, from_zone, from.interface.as_ref(), vrf).collect();
    if let Some(name) = &from.interface
        && doors.is_empty()
        && Door::all(view, None, Some(name), None).next().is_none()
    {
        return Err(unknown("interface", name));
    }
    let ranges = |range: Option<AddressRange>| match (range, from.addresses, to.addresses) {
        (Some(range), ..) => vec![span(range)],
        // The other end says which family it is.
        (None, Some(other), _) | (None, _, Some(other)) => vec![if other.is_ipv4() { V4 } else { V6 }],
        _ => vec![V4, V6],
    };
    let (src, dst) = (ranges(from.addresses), ranges(to.addresses));
    let to_zone = to.zone.as_ref().map(zone).transpose()?;
    Ok(Region { doors, src, dst, services: vec![to.service], to_zone, spoofed, first_only: false })
}

/// Who reaches something of the region.
pub fn solve(
    view: View<'_>,
    marks: &Marks,
    region: &Region,
    most: u64,
    decisions: &mut u64,
) -> Result<Vec<Behind>, NoAnswer> {
    let tables = view.tables();
    let mut found = Vec::new();
    let mut lookups = 0;
    for is_v4 in [true, false] {
        let of_family = |spans: &[Span]| -> Vec<Span> {
            let cells = spans.iter().flat_map(|span| marks.cells(*span));
            let mut cells: Vec<Span> = cells.filter(|(first, _)| is_v4_key(*first) == is_v4).collect();
            // In key form IPv4 is a part of IPv6.
            cells.sort_unstable();
            cells.dedup();
            cells
        };
        let (src, dst) = (of_family(&region.src), of_family(&region.dst));
        let mut uppers = Vec::new();
        for service in &region.services {
            add_uppers(marks, *service, is_v4, most, &mut uppers);
        }
        if dst.is_empty() || uppers.is_empty() {
            continue;
        }
        for door in &region.doors {
            let lives = |first: &u128| region.spoofed || door.is_home_of(tables, addr_of(*first));
            lookups += src.len() as u64;
            if lookups / LOOKUPS > most {
                return Err(NoAnswer::TooMany { needed: *decisions + lookups / LOOKUPS, most });
            }
            let sources: Vec<Span> = src.iter().filter(|(first, _)| lives(first)).copied().collect();
            let needed = (sources.len() as u64 * dst.len() as u64).saturating_mul(uppers.len() as u64);
            if decisions.saturating_add(needed) > most {
                return Err(NoAnswer::TooMany { needed: decisions.saturating_add(needed), most });
            }
            let mut behind: Option<Behind> = None;
            for source in &sources {
                let reached = from_one(view, region, (*door, *source), (&dst, &uppers), most, decisions)?;
                let Some((is_all, witness)) = reached else { continue };
                let behind = behind.get_or_insert_with(|| Behind {
                    door: *door,
                    all: Vec::new(),
                    some: Vec::new(),
                    witness,
                });
                add(if is_all { &mut behind.all } else { &mut behind.some }, *source);
                if region.first_only {
                    break;
                }
            }
            found.extend(behind);
            if region.first_only && !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// Adds a span behind the others.
fn add(spans: &mut Vec<Span>, (first, last): Span) {
    match spans.last_mut() {
        Some((_, end)) if end.checked_add(1) == Some(first) => *end = last,
        _ => spans.push((first, last)),
    }
}

/// Everything of a packet but its addresses.
#[derive(Clone, Copy)]
struct Upper {
    protocol: u8,
    src_port: u16,
    dst_port: u16,
    icmp_type: u8,
    dscp: u8,
}

/// Those of a service; more than `most` nobody can make use of.
fn add_uppers(marks: &Marks, service: Service, is_v4: bool, most: u64, all: &mut Vec<Upper>) {
    let protocols: Vec<u8> = match service.protocol() {
        Some(protocol) => vec![protocol],
        None => marks.protocols.clone(),
    };
    let of_family = protocols.into_iter().filter(|upper| Service::of_protocol(*upper).is_of(is_v4));
    for protocol in of_family {
        let has_ports = Service::of_protocol(protocol).has_ports();
        let dst_ports = match has_ports {
            true => marks.dst_ports(service.ports().unwrap_or(PortRange::ALL)),
            false => PortRange::new(0, 0).into_iter().collect(),
        };
        let src_ports = match has_ports {
            true => marks.src_ports(),
            false => PortRange::new(0, 0).into_iter().collect(),
        };
        let echo_request = if is_v4 { 8 } else { 128 };
        let is_icmp = matches!(protocol, protocol::ICMP | protocol::ICMPV6);
        let icmp_type = if is_icmp { service.icmp_type().unwrap_or(echo_request) } else { 0 };
        for dst_port in &dst_ports {
            for src_port in &src_ports {
                if all.len() as u64 > most {
                    return;
                }
                let (src_port, dst_port) = (src_port.last(), dst_port.first());
                let (src_port, dst_port) = if is_icmp { (1, 1) } else { (src_port, dst_port) };
                let with = |dscp: &u8| Upper { protocol, src_port, dst_port, icmp_type, dscp: *dscp };
                all.extend(marks.dscps.iter().map(with));
            }
        }
    }
}

/// What hosts of one cell reach: everything or something, and an example.
fn from_one(
    view: View<'_>,
    region: &Region,
    (door, (src, _)): (Door, Span),
    (dst, uppers): (&[Span], &[Upper]),
    most: u64,
    decisions: &mut u64,
) -> Result<Option<(bool, PacketText)>, NoAnswer> {
    let tables = view.tables();
    let (mut is_all, mut witness) = (true, None);
    for (dst, _) in dst {
        let dst = addr_of(*dst);
        let others = Others::of(view, door, region.to_zone, dst);
        for upper in uppers {
            // Each backend of a service, and each member of a bridge, is one more.
            if *decisions > most {
                return Err(NoAnswer::TooMany { needed: *decisions, most });
            }
            let question = Question {
                vrf: 0,
                ingress: door.slot,
                src: addr_of(src),
                dst,
                protocol: upper.protocol,
                src_port: upper.src_port,
                dst_port: upper.dst_port,
                dscp: upper.dscp,
                tcp_flags: if upper.protocol == protocol::TCP { SYN } else { 0 },
                icmp_type: upper.icmp_type,
            };
            let routed = door.routed.and_then(|slot| {
                let question = Question { vrf: tables.interface(slot).vrf, ingress: slot, ..question };
                outcome(tables, &question, region.to_zone, decisions)
            });
            let bridged = others.as_ref().and_then(|others| others.outcome(tables, &question, decisions));
            // What goes elsewhere nobody has asked for; of two ways there the host takes the one that is open.
            let Some(passes) = routed.max(bridged.map(|(passes, _)| passes)) else { continue };
            is_all &= passes == Passes::Always;
            if passes != Passes::Never && witness.is_none() {
                let to = match bridged {
                    Some((Passes::Always | Passes::Sometimes, to)) => Some(to),
                    _ => door.routed.filter(|_| door.bridge.is_some()),
                };
                witness = Some(words(view, &question, to));
                if region.first_only {
                    return Ok(witness.map(|witness| (false, witness)));
                }
            }
        }
    }
    Ok(witness.map(|witness| (is_all, witness)))
}

/// The other members of a bridge by which something may reach what is asked about: one of each zone, as rules between
/// members tell only these apart.
struct Others(Vec<u16>, u16);

impl Others {
    /// `None`: there is no bridge, or the address is none of the segment's where no zone is asked about.
    fn of(view: View<'_>, door: Door, to_zone: Option<u8>, dst: IpAddr) -> Option<Others> {
        let tables = view.tables();
        let bridge = tables.bridges.get(door.bridge?)?;
        let from = bridge.member(door.slot)?;
        let own = bridge.interface;
        let is_there =
            || own == NO_INTERFACE || route::leads_to(tables, tables.interface(own).vrf, dst, Some(own));
        if to_zone.is_none() && !is_there() {
            return None;
        }
        let mut zones = Vec::new();
        let mut members = Vec::new();
        for member in &bridge.members {
            let zone = tables.interface(member.interface).zone;
            let is_apart = member.interface == from.interface || member.vni.is_some() && from.vni.is_some();
            if !is_apart && to_zone.is_none_or(|wanted| wanted == zone) && !zones.contains(&zone) {
                zones.push(zone);
                members.push(member.interface);
            }
        }
        Some(Others(members, bridge.scope()))
    }

    /// And the member by which it passes, if it does. Where a host is nobody knows before it has spoken.
    fn outcome(&self, tables: &Tables, question: &Question, decisions: &mut u64) -> Option<(Passes, u16)> {
        let question = Question { vrf: self.1, ..*question };
        let passes =
            |to: &&u16| matches!(pipeline::decide_bridged(tables, &question, **to), Decision::Session(_));
        *decisions += self.0.len() as u64;
        let open = self.0.iter().filter(passes).count();
        let first = self.0.iter().find(passes).or(self.0.first())?;
        let passes = match open {
            0 => Passes::Never,
            open if open == self.0.len() => Passes::Always,
            _ => Passes::Sometimes,
        };
        Some((passes, *first))
    }
}

/// TCP's SYN: sessions begin with it.
const SYN: u8 = 0x02;

/// Whether a packet passes, from the worst: what a flow's hash decides, or where on a segment a host is, may come out so or
/// so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Passes {
    Never,
    Sometimes,
    Always,
}

/// True if what leaves by an interface may get to a host behind a bridge's member in this zone.
fn may_lead_to(tables: &Tables, egress: u16, zone: Option<u8>) -> bool {
    let interface = tables.interface(egress);
    let bridge = tables.bridges.get(interface.bridge).filter(|bridge| bridge.has_zones);
    let mut members = bridge.into_iter().flat_map(|bridge| &bridge.members);
    members.any(|member| Some(tables.interface(member.interface).zone) == zone)
}

/// `None`: it would not go to the zone.
fn outcome(tables: &Tables, question: &Question, to_zone: Option<u8>, decisions: &mut u64) -> Option<Passes> {
    let mut ask = |bound: Option<Bound>, notes: &mut Notes| {
        *decisions += 1;
        let decision = pipeline::decide_noting(tables, question, bound, None, notes);
        let (zone, egress, passes) = match decision {
            Decision::Session(allowed) => (Some(allowed.to_zone), Some(allowed.egress), true),
            Decision::Local(ruling) => {
                (Some(SELF), None, ruling.is_none_or(|ruling| ruling.action == Action::Allow))
            }
            Decision::Forward { egress, .. } => (Some(tables.interface(egress).zone), Some(egress), true),
            Decision::Refused(..) | Decision::Drop(_) => {
                let egress = match notes.way {
                    Some((_, _, Ok(Route::Forward { egress, .. }))) => Some(egress),
                    _ => None,
                };
                (notes.to_zone, egress, false)
            }
        };
        let is_asked = to_zone.is_none() || to_zone == zone;
        match (is_asked, passes) {
            (true, true) => Some(Passes::Always),
            (true, false) => Some(Passes::Never),
            (false, _) if !egress.is_some_and(|egress| may_lead_to(tables, egress, to_zone)) => None,
            (false, true) => Some(Passes::Sometimes),
            (false, false) => Some(Passes::Never),
        }
    };
    let mut notes = Notes::default();
    let first = ask(None, &mut notes);
    let service = notes.service.and_then(|_| tables.policy.services().find(question));
    let Some(service) = service else { return first };
    let takes = |slot: u32| tables.backends.is_in_service(slot);
    let backends = service.backends.iter().filter(|backend| takes(backend.slot));
    let asked: Vec<Option<Passes>> = backends
        .map(|backend| {
            let bound = Bound {
                addr: backend.addr,
                port: backend.port.unwrap_or(question.dst_port),
                vrf: backend.vrf,
                translated: backend.delivery.is_none(),
                mapped: false,
                allowed: false,
                kept: false,
                pool: None,
                delivery: backend.delivery,
            };
            ask(Some(bound), &mut Notes::default())
        })
        .collect();
    if asked.is_empty() {
        return first.map(|_| Passes::Never);
    }
    match asked.iter().all(|passes| *passes == Some(Passes::Always)) {
        true => Some(Passes::Always),
        false => asked.into_iter().flatten().max().map(|best| best.min(Passes::Sometimes)),
    }
}

/// The packet in words. `to`: who takes it, of the members and the interface of a bridge.
fn words(view: View<'_>, question: &Question, to: Option<u16>) -> PacketText {
    PacketText {
        protocol: question.protocol,
        src: question.src,
        src_port: question.src_port,
        dst: question.dst,
        dst_port: question.dst_port,
        icmp_type: question.icmp_type,
        interface: Name::of_end(view.interface(question.ingress)).ok(),
        to: to.and_then(|slot| Name::of_end(view.interface(slot)).ok()),
        src_mac: None,
        dst_mac: None,
        dscp: question.dscp,
        tcp_flags: question.tcp_flags,
        ttl: PacketText::TTL,
        len_bytes: None,
    }
}
