//! Assertions: what a config says must be true of it, asked of the compiled tables.
//!
//! Packets are decided as explained ones are, without a dry run; `reach` and `isolated` are solved ([`super::reach`]).
//! Health does not matter: all backends are taken to be well, so that an outage keeps nobody from mending it.

use std::net::IpAddr;

use super::frame::{self, Course};
use super::marks::{Marks, V4, V6, span};
use super::names::View;
use super::reach::{self, Door, MOST, NoAnswer, Region};
use super::step;
use crate::config::{
    self, Assert, Expected, Member, PacketText, Reach, Rule, RuleAction, Service, Side, Snat, ZoneName,
};
use crate::control::{ExplainStep, ReachQuery};
use crate::packet::DropReason;
use crate::packet::view::protocol;
use crate::pipeline::trail::Notes;
use crate::pipeline::{self, Decision, Question};
use crate::tables::Tables;
use crate::tables::balance::{Backend, BackendState, Backends, Health};
use crate::tables::bridge::{Bridge, Member as BridgeMember};
use crate::tables::policy::{Action, SourceNat};

/// Most failures that are told.
const SHOWN: usize = 20;

/// An assertion that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its place in the list.
    pub index: usize,
    /// What it says.
    pub name: String,
    /// What is otherwise.
    pub why: Vec<String>,
    /// The decisions about its packet.
    pub steps: Vec<ExplainStep>,
    /// Routes decide: with a port that is down they may be others than meant.
    pub is_of_routes: bool,
}

impl Failed {
    /// For people, without the place in the file.
    pub fn text(&self) -> String {
        let mut text = format!("assert {:?} does not hold: {}", self.name, self.why.join("; "));
        for step in &self.steps {
            let name = step.name.as_deref().unwrap_or("-");
            text.push_str(&format!("\n    {:<16}{name}: {}", step.step, step.says));
        }
        text
    }
}

/// Those of a config that do not hold of its tables, at most a screenful.
pub fn check(view: View<'_>) -> Vec<Failed> {
    let asserts = &view.config.asserts;
    let services = view.tables.policy.services();
    let all_well;
    let mut view = view;
    if !asserts.is_empty() && !services.list().is_empty() {
        let states = services.list().iter().flat_map(|service| {
            let state = |backend: &Backend| (backend.slot, BackendState::of(service, backend, Health::WELL));
            service.backends.iter().map(state)
        });
        let (backends, _) = Backends::default().after(states, 1);
        all_well = Tables { backends, ..view.tables.clone() };
        view = View { tables: &all_well, ..view };
    }
    // Made once, and only for those who need them.
    let mut marks: Option<Marks> = None;
    // For all of them together: a commit waits for it.
    let mut decisions = 0;
    let mut failed = Vec::new();
    for (index, assert) in asserts.iter().enumerate() {
        let mut one = Failed {
            index,
            name: assert.name.clone(),
            why: Vec::new(),
            steps: Vec::new(),
            is_of_routes: false,
        };
        if assert.packet.is_some() {
            packet(view, assert, &mut one);
        } else if let Some(asked) = &assert.reach {
            let marks = marks.get_or_insert_with(|| Marks::of(view));
            reaches(view, marks, asked, assert.expect.verdict, &mut decisions, &mut one);
        } else {
            let marks = marks.get_or_insert_with(|| Marks::of(view));
            isolated(view, marks, &assert.isolated, &mut decisions, &mut one);
        }
        if !one.why.is_empty() {
            failed.push(one);
        }
        if failed.len() == SHOWN {
            break;
        }
    }
    failed
}

/// Refuses tables of which an assertion does not hold. With a port that carries nothing its routes are not there, and
/// what follows from routes is said and refuses nothing: else nobody could change anything until it is back.
pub fn uphold(view: View<'_>, is_port_down: bool) -> Result<(), String> {
    let failed = check(view);
    let (excused, refused): (Vec<_>, Vec<_>) =
        failed.iter().partition(|failed| failed.is_of_routes && is_port_down);
    for failed in excused {
        tracing::warn!("a port is down, and {}", failed.text());
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(refused.iter().map(|failed| failed.text()).collect::<Vec<_>>().join("\n")),
    }
}

fn packet(view: View<'_>, assert: &Assert, failed: &mut Failed) {
    let Some(packet) = assert.packet() else { return };
    let (slot, _) = match frame::ingress(view, &packet) {
        Ok(ingress) => ingress,
        Err(why) => {
            failed.is_of_routes = packet.interface.is_none();
            failed.why.push(why);
            return;
        }
    };
    let course = match frame::course(view, &packet, slot) {
        Ok(taken) => taken.course,
        Err(why) => {
            failed.why.push(why);
            return;
        }
    };
    let is_icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6);
    let question = |vrf: u16, ingress: u16| Question {
        vrf,
        ingress,
        src: packet.src,
        dst: packet.dst,
        protocol: packet.protocol,
        src_port: packet.src_port,
        dst_port: if is_icmp { packet.src_port } else { packet.dst_port },
        dscp: packet.dscp,
        tcp_flags: packet.tcp_flags,
        icmp_type: packet.icmp_type,
    };
    let mut notes = Notes::default();
    let (question, decision, bridged_to) = match course {
        Course::Routed(ingress) => {
            let question = question(view.tables().interface(ingress).vrf, ingress);
            let decision = pipeline::decide_noting(view.tables(), &question, None, None, &mut notes);
            (question, decision, None)
        }
        Course::Bridged { to: None, .. } => {
            failed.why.push("nobody knows where its station is: say `to BRIDGE/MEMBER`".to_owned());
            return;
        }
        Course::Bridged { bridge, from, to: Some(to) } => {
            let question = question(bridge.scope(), from.interface);
            match between_members(view, &packet, &question, (bridge, from, to), &mut notes) {
                Ok(decision) => (question, decision, Some(to.interface)),
                Err(why) => {
                    failed.why.push(why);
                    return;
                }
            }
        }
    };
    compare(view, assert, &question, &decision, &notes, failed);
    if !failed.why.is_empty() {
        let name = view.interface(slot);
        let zone = view.zone(view.tables().interface(slot).zone);
        failed.steps.push(step("ingress", Some(name), format!("zone {zone}")));
        super::decisions(view, &question, bridged_to, &notes, Some(&decision), &mut failed.steps);
    }
}

/// From one member of a bridge to another.
fn between_members(
    view: View<'_>,
    packet: &PacketText,
    question: &Question,
    (bridge, from, to): (&Bridge, &BridgeMember, &BridgeMember),
    notes: &mut Notes,
) -> Result<Decision, String> {
    let egress = to.interface;
    if from.vni.is_some() && to.vni.is_some() {
        return Ok(Decision::Drop(DropReason::BridgeSplitHorizon));
    }
    let zone = |member: &BridgeMember| Some(view.tables().interface(member.interface).zone);
    (notes.from_zone, notes.to_zone) = (zone(from), zone(to));
    // Rules are not asked about it.
    if !bridge.has_zones || pipeline::always_bridged(packet.src.is_ipv4(), &frame::ip_bytes(packet)?) {
        return Ok(Decision::Forward { egress, via: None });
    }
    let decision = pipeline::decide_bridged(view.tables(), question, egress);
    notes.ruling = match decision {
        Decision::Session(allowed) => Some(allowed.ruling),
        Decision::Refused(ruling, _) => Some(ruling),
        _ => None,
    };
    Ok(decision)
}

fn compare(
    view: View<'_>,
    assert: &Assert,
    question: &Question,
    decision: &Decision,
    notes: &Notes,
    failed: &mut Failed,
) {
    let expect = &assert.expect;
    let is = match decision {
        Decision::Session(_) | Decision::Forward { .. } => Expected::Allow,
        Decision::Local(ruling) if ruling.is_none_or(|ruling| ruling.action == Action::Allow) => {
            Expected::Allow
        }
        Decision::Refused(_, DropReason::FirewallReject) => Expected::Reject,
        Decision::Refused(..) | Decision::Drop(_) | Decision::Local(_) => Expected::Deny,
    };
    let holds = is == expect.verdict || (expect.verdict == Expected::Deny && is == Expected::Reject);
    if !holds {
        let why = match decision {
            Decision::Drop(reason) | Decision::Refused(_, reason) => format!(" ({})", reason.name()),
            _ => String::new(),
        };
        failed.is_of_routes |= matches!(decision, Decision::Drop(_));
        failed.why.push(format!("expected {}, it is {}{why}", word(expect.verdict), word(is)));
    }
    let mut differ = |what: &str, wanted: Option<String>, has: String| {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != has) {
            failed.why.push(format!("expected {what} {wanted}, it is {has}"));
            failed.is_of_routes |= what == "egress" || what == "zone";
        }
    };
    let none = || "none".to_owned();
    let rule = notes.ruling.map_or_else(none, |ruling| view.rule(ruling.rule).to_owned());
    differ("rule", expect.rule.as_ref().map(ToString::to_string), rule);
    let service = notes.service.map_or_else(none, |slot| view.service(slot).to_owned());
    differ("service", expect.service.as_ref().map(ToString::to_string), service);
    let egress = match decision {
        Decision::Session(allowed) => view.interface(allowed.egress).to_owned(),
        Decision::Forward { egress, .. } => view.interface(*egress).to_owned(),
        _ => none(),
    };
    differ("egress", expect.egress.as_ref().map(ToString::to_string), egress);
    let to_zone = match decision {
        Decision::Forward { egress, .. } => Some(view.tables().interface(*egress).zone),
        Decision::Local(_) => Some(crate::tables::policy::SELF),
        _ => notes.to_zone,
    };
    let zone = to_zone.map_or_else(none, |zone| view.zone(zone).to_owned());
    differ("zone", expect.zone.as_ref().map(ToString::to_string), zone);
    for (what, wanted) in [("dnat", expect.dnat), ("backend", expect.backend)] {
        let Some(wanted) = wanted else { continue };
        let is_there = what == "dnat" || notes.backend.is_some();
        let has = notes.destination.filter(|_| is_there);
        let holds = has.is_some_and(|(addr, port, _)| {
            addr == wanted.address && wanted.port.is_none_or(|wanted| wanted == port)
        });
        if !holds {
            let has = has.map_or_else(none, |(addr, port, _)| super::endpoint(question.protocol, addr, port));
            failed.why.push(format!("expected {what} {wanted}, it is {has}"));
        }
    }
    if let Some(wanted) = expect.snat {
        snat(view, question, notes.source, wanted, failed);
    }
}

fn snat(view: View<'_>, question: &Question, source: Option<SourceNat>, wanted: Snat, failed: &mut Failed) {
    let within = |addr: IpAddr| matches!(wanted, Snat::Within(range) if range.contains(addr));
    let (holds, has) = match source {
        None | Some(SourceNat::Untranslatable) => (false, "nothing".to_owned()),
        Some(SourceNat::None) => (wanted == Snat::None || within(question.src), "none".to_owned()),
        Some(SourceNat::Static { addr, .. }) => (within(addr), addr.to_string()),
        Some(SourceNat::Pool { pool, .. }) => {
            let mut ranges = view.tables().policy.pools[usize::from(pool)].ranges();
            (ranges.all(|range| within(range.first.into()) && within(range.last.into())), view.pool(pool))
        }
    };
    if !holds {
        failed.why.push(format!("expected snat {wanted}, it is {has}"));
    }
}

fn word(verdict: Expected) -> &'static str {
    match verdict {
        Expected::Allow => "allow",
        Expected::Deny => "deny",
        Expected::Reject => "reject",
    }
}

fn reaches(
    view: View<'_>,
    marks: &Marks,
    asked: &Reach,
    verdict: Expected,
    decisions: &mut u64,
    failed: &mut Failed,
) {
    let query = ReachQuery { from: asked.from.clone(), to: asked.to.clone(), spoofed: false };
    match reach::reach_among(view, marks, &query, MOST, decisions) {
        Err(error) => failed.why.push(format!("cannot be proven: {error}")),
        Ok(reached) => match (verdict, reached.from.first()) {
            (Expected::Allow, None) => {
                failed.is_of_routes = true;
                failed.why.push(format!("nobody of {} reaches {}", asked.from, asked.to));
            }
            (Expected::Deny | Expected::Reject, Some(first)) => {
                failed.why.push(format!("{} reaches {}: {}", asked.from, asked.to, first.witness));
            }
            _ => {}
        },
    }
}

/// No session may begin from one of the zones to another.
fn isolated(view: View<'_>, marks: &Marks, zones: &[ZoneName], decisions: &mut u64, failed: &mut Failed) {
    for from in zones {
        for to in zones.iter().filter(|to| *to != from) {
            match between(view, marks, from, to, decisions) {
                Ok(None) => {}
                Ok(Some(witness)) => {
                    failed.why.push(format!("a packet passes from {from} to {to}: {witness}"));
                }
                Err(error) => failed.why.push(format!("{from} > {to} cannot be proven: {error}")),
            }
        }
    }
}

/// A packet from one zone to another. Without a rule that allows some, there is none (DESIGN.md section 3); with rules,
/// only what they name has to be looked at.
fn between(
    view: View<'_>,
    marks: &Marks,
    from: &ZoneName,
    to: &ZoneName,
    decisions: &mut u64,
) -> Result<Option<String>, NoAnswer> {
    let slots = &view.compiler.policy_slots;
    let known = |zone: &ZoneName| slots.known_zone(zone.as_str());
    let (Some(from_zone), Some(to_zone)) = (known(from), known(to)) else { return Ok(None) };
    let doors = Door::of_zone(view, from_zone);
    let (from, to) = (seen_as(view, from), seen_as(view, to));
    let may_be =
        |side: &Side, zones: &[&ZoneName]| side.zone.as_ref().is_none_or(|named| zones.contains(&named));
    let rules = view.config.admin_rules.iter().chain(&view.config.rules);
    let allowing = rules.filter(|rule| {
        rule.action == RuleAction::Allow && may_be(&rule.from, &from) && may_be(&rule.to, &to)
    });
    // Needs no rule: what is for the gateway itself, and what rules see within one zone.
    let is_open = to.iter().any(|to| to.as_str() == Side::SELF || from.contains(to));
    let open = is_open.then(|| region_of(view, marks, None, &doors, to_zone));
    for region in allowing.map(|rule| region_of(view, marks, Some(rule), &doors, to_zone)).chain(open) {
        let found = reach::solve(view, marks, &region, MOST, decisions)?;
        if let Some(behind) = found.first() {
            return Ok(Some(behind.witness.to_string()));
        }
    }
    Ok(None)
}

/// The zones that rules may see hosts of a zone in: of those behind a bridge's member the one of its interface as well, which
/// takes what they have routed.
fn seen_as<'a>(view: View<'a>, zone: &'a ZoneName) -> Vec<&'a ZoneName> {
    let config = view.config;
    let has_member =
        |bridge: &&config::Bridge| bridge.members.iter().any(|member| member.zone.as_ref() == Some(zone));
    let bridges = config.bridges.iter().filter(has_member);
    let interfaces = bridges.filter_map(|bridge| {
        config.interfaces.iter().find(|interface| interface.bridge.as_ref() == Some(&bridge.name))
    });
    std::iter::once(zone).chain(interfaces.filter_map(|interface| interface.zone.as_ref())).collect()
}

/// What a rule names; of no rule: everything.
fn region_of(
    view: View<'_>,
    marks: &Marks,
    rule: Option<&std::sync::Arc<Rule>>,
    doors: &[Door],
    to_zone: u8,
) -> Region {
    let side = |side: &Side| match (&side.prefix, &side.group) {
        (Some(ranges), _) => ranges.iter().map(|range| span(*range)).collect(),
        (None, Some(group)) => {
            let mut spans = Vec::new();
            members(view, group, &mut Vec::new(), &mut spans);
            spans
        }
        (None, None) => vec![V4, V6],
    };
    let (src, mut dst, services) = match rule {
        None => (vec![V4, V6], vec![V4, V6], vec![Service::ANY]),
        Some(rule) => (
            side(&rule.from),
            side(&rule.to),
            rule.service.as_ref().map_or_else(|| vec![Service::ANY], |services| services.to_vec()),
        ),
    };
    // What hosts know destinations by may be another address and another port.
    let is_translated = !marks.outside.is_empty() && dst != [V4, V6];
    dst.extend(marks.outside.iter().filter(|_| is_translated));
    let services = if is_translated || !marks.outside.is_empty() { vec![Service::ANY] } else { services };
    Region {
        doors: doors.to_vec(),
        src,
        dst,
        services,
        to_zone: Some(to_zone),
        spoofed: true,
        first_only: true,
    }
}

fn members(
    view: View<'_>,
    name: &crate::config::GroupName,
    seen: &mut Vec<crate::config::GroupName>,
    spans: &mut Vec<(u128, u128)>,
) {
    if seen.contains(name) {
        return;
    }
    seen.push(name.clone());
    let group = view.config.groups.iter().find(|group| group.name == *name);
    for member in group.iter().flat_map(|group| &group.members) {
        match member {
            Member::Addresses(range) => spans.push(span(*range)),
            Member::Group(inner) => members(view, inner, seen, spans),
        }
    }
}
