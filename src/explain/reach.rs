//! Reach: who can begin a session to what.
//!
//! Exact, and without knowing policy: a config says of finitely many addresses, ports, protocols and DSCPs that something
//! begins or ends there ([`Marks`]). All packets between two marks are decided alike, so one of them is, by
//! [`pipeline::decide`], for all of its cell. What depends on a flow's hash (the backend of a service) is asked for every
//! outcome.

use super::marks::{Marks, Span, V4, V6, span};
use super::names::View;
use crate::config::{AddressRange, PacketText, PortRange, ReachFrom, ReachTo, Service, Side, ZoneName};
use crate::control::{ReachQuery, Reachable, Reached};
use crate::neighbours::{addr_of, is_v4_key};
use crate::packet::view::protocol;
use crate::pipeline::route;
use crate::pipeline::trail::Notes;
use crate::pipeline::{self, Decision, Question};
use crate::tables::Tables;
use crate::tables::policy::{Action, Bound, NO_ZONE, SELF};

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
    /// Members of bridges are no interfaces.
    #[error("zone {0} is of a bridge's member: what passes between members nobody can prove here")]
    Bridged(String),
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

/// What is looked for, in the tables' terms.
pub struct Region {
    /// Interface slots.
    pub ingress: Vec<u16>,
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
    /// The interface's slot.
    pub ingress: u16,
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
        let interface = tables.interface(behind.ingress);
        Reachable {
            interface: interface.info.name.clone(),
            vrf: view.vrf(interface.vrf),
            zone: (interface.zone != NO_ZONE).then(|| view.zone(interface.zone).to_owned()),
            all: prefixes(&behind.all),
            some: prefixes(&behind.some),
            witness: behind.witness.to_string(),
        }
    });
    Ok(Reached { generation: tables.generation, from: from.collect(), decisions: *decisions, remarks })
}

/// Hosts behind a bridge's member come in by no interface of its zone, nor is there one to go out by: whatever is
/// asked of the zone would hold of nobody.
pub fn not_bridged(view: View<'_>, zone: &ZoneName) -> Result<(), NoAnswer> {
    let mut members = view.config.bridges.iter().flat_map(|bridge| &bridge.members);
    match members.any(|member| member.zone.as_ref() == Some(zone)) {
        true => Err(NoAnswer::Bridged(zone.to_string())),
        false => Ok(()),
    }
}

/// A question in the tables' terms.
pub fn region(view: View<'_>, from: &ReachFrom, to: &ReachTo, spoofed: bool) -> Result<Region, NoAnswer> {
    let tables = view.tables();
    let unknown = |what, name: &dyn ToString| NoAnswer::Unknown { what, name: name.to_string() };
    let zone = |name: &ZoneName| {
        not_bridged(view, name)?;
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
    if let Some(name) = &from.interface
        && !view.config.interfaces.iter().any(|interface| interface.name == *name)
    {
        return Err(unknown("interface", name));
    }
    let is_meant = |slot: &u16| {
        let interface = tables.interface(*slot);
        from_zone.is_none_or(|zone| zone == interface.zone)
            && vrf.is_none_or(|vrf| vrf == interface.vrf)
            && from.interface.as_ref().is_none_or(|name| name.as_str() == interface.info.name)
    };
    let slots = view.config.interfaces.iter().filter_map(|of| view.compiler.interfaces.get(of.name.as_str()));
    let ingress = slots.filter(is_meant).collect();
    let ranges = |range: Option<AddressRange>| match (range, from.addresses, to.addresses) {
        (Some(range), ..) => vec![span(range)],
        // The other end says which family it is.
        (None, Some(other), _) | (None, _, Some(other)) => vec![if other.is_ipv4() { V4 } else { V6 }],
        _ => vec![V4, V6],
    };
    let (src, dst) = (ranges(from.addresses), ranges(to.addresses));
    let to_zone = to.zone.as_ref().map(zone).transpose()?;
    Ok(Region { ingress, src, dst, services: vec![to.service], to_zone, spoofed, first_only: false })
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
            cells.filter(|(first, _)| is_v4_key(*first) == is_v4).collect()
        };
        let (src, dst) = (of_family(&region.src), of_family(&region.dst));
        let mut uppers = Vec::new();
        for service in &region.services {
            add_uppers(marks, *service, is_v4, most, &mut uppers);
        }
        if dst.is_empty() || uppers.is_empty() {
            continue;
        }
        for ingress in &region.ingress {
            let vrf = tables.interface(*ingress).vrf;
            let lives = |first: &u128| {
                region.spoofed || route::leads_to(tables, vrf, addr_of(*first), Some(*ingress))
            };
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
                let reached = from_one(view, region, (*ingress, *source), (&dst, &uppers), most, decisions)?;
                let Some((is_all, witness)) = reached else { continue };
                let behind = behind.get_or_insert_with(|| Behind {
                    ingress: *ingress,
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
    (ingress, (src, _)): (u16, Span),
    (dst, uppers): (&[Span], &[Upper]),
    most: u64,
    decisions: &mut u64,
) -> Result<Option<(bool, PacketText)>, NoAnswer> {
    let tables = view.tables();
    let vrf = tables.interface(ingress).vrf;
    let (mut is_all, mut witness) = (true, None);
    for (dst, _) in dst {
        for upper in uppers {
            // Each backend of a service is one more.
            if *decisions > most {
                return Err(NoAnswer::TooMany { needed: *decisions, most });
            }
            let question = Question {
                vrf,
                ingress,
                src: addr_of(src),
                dst: addr_of(*dst),
                protocol: upper.protocol,
                src_port: upper.src_port,
                dst_port: upper.dst_port,
                dscp: upper.dscp,
                tcp_flags: if upper.protocol == protocol::TCP { SYN } else { 0 },
                icmp_type: upper.icmp_type,
            };
            // What goes elsewhere nobody has asked for.
            let Some(passes) = outcome(tables, &question, region.to_zone, decisions) else { continue };
            is_all &= passes == Passes::Always;
            if passes != Passes::Never && witness.is_none() {
                witness = Some(words(view, &question));
                if region.first_only {
                    return Ok(witness.map(|witness| (false, witness)));
                }
            }
        }
    }
    Ok(witness.map(|witness| (is_all, witness)))
}

/// TCP's SYN: sessions begin with it.
const SYN: u8 = 0x02;

/// Whether a packet passes: what a flow's hash decides may come out so or so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    Always,
    Sometimes,
    Never,
}

/// `None`: it would not go to the zone.
fn outcome(tables: &Tables, question: &Question, to_zone: Option<u8>, decisions: &mut u64) -> Option<Passes> {
    let mut ask = |bound: Option<Bound>, notes: &mut Notes| {
        *decisions += 1;
        let decision = pipeline::decide_noting(tables, question, bound, None, notes);
        let (zone, passes) = match decision {
            Decision::Session(allowed) => (Some(allowed.to_zone), true),
            Decision::Local(ruling) => {
                (Some(SELF), ruling.is_none_or(|ruling| ruling.action == Action::Allow))
            }
            Decision::Forward { egress, .. } => (Some(tables.interface(egress).zone), true),
            Decision::Refused(..) | Decision::Drop(_) => (notes.to_zone, false),
        };
        let is_asked = to_zone.is_none() || to_zone == zone;
        is_asked.then_some(passes)
    };
    let mut notes = Notes::default();
    let first = ask(None, &mut notes);
    let service = notes.service.and_then(|_| tables.policy.services().find(question));
    let Some(service) = service else {
        return first.map(|passes| if passes { Passes::Always } else { Passes::Never });
    };
    let takes = |slot: u32| tables.backends.is_in_service(slot);
    let backends = service.backends.iter().filter(|backend| takes(backend.slot));
    let asked: Vec<Option<bool>> = backends
        .map(|backend| {
            let bound = Bound {
                addr: backend.addr,
                port: backend.port.unwrap_or(question.dst_port),
                vrf: backend.vrf,
                translated: backend.delivery.is_none(),
                mapped: false,
                allowed: false,
                pool: None,
                delivery: backend.delivery,
            };
            ask(Some(bound), &mut Notes::default())
        })
        .collect();
    let passes = |wanted: bool| asked.contains(&Some(wanted));
    match (passes(true), passes(false)) {
        (true, false) if asked.iter().all(Option::is_some) => Some(Passes::Always),
        (true, _) => Some(Passes::Sometimes),
        (false, true) => Some(Passes::Never),
        (false, false) => first.filter(|_| asked.is_empty()).map(|_| Passes::Never),
    }
}

/// The packet in words.
fn words(view: View<'_>, question: &Question) -> PacketText {
    PacketText {
        protocol: question.protocol,
        src: question.src,
        src_port: question.src_port,
        dst: question.dst,
        dst_port: question.dst_port,
        icmp_type: question.icmp_type,
        interface: view.interface(question.ingress).parse().ok(),
        dscp: question.dscp,
        tcp_flags: question.tcp_flags,
        ttl: PacketText::TTL,
        len_bytes: None,
    }
}
