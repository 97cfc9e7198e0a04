//! Explain: what becomes of one packet, with every decision and what took it.
//!
//! Nothing here knows policy. The decisions are [`pipeline::decide_noting`]'s, the function that decides packets, with
//! somebody who takes notes; what leaves is made by a worker of its own ([`dry`]) that runs the packet through the whole
//! pipeline over ports in memory. Names of rules, routes and services come from the compiler that made the tables
//! ([`names`]).
//!
//! ```text
//! tcp 10.0.1.5:40000 > 198.51.100.7:443 from lan
//!   ingress      lan       comes in by lan, VRF default, zone inside
//!   route        0.0.0.0/0 out of wan, via 198.51.100.1 (static route via 198.51.100.1)
//!   rule         out       allows inside > outside
//!   source-nat   internet  an outside port of 203.0.113.0-203.0.113.3
//! ```

pub mod assert;
#[cfg(test)]
mod bridge_tests;
mod decode;
mod dry;
pub mod foresee;
mod frame;
pub mod lint;
mod marks;
mod names;
pub mod reach;
mod why;

use std::net::IpAddr;

use crate::affinity::{Client, Held};
use crate::config::{Mac, PacketText, Service};
use crate::control::{ExplainStep, ExplainedFrame, Explanation, Outcome, SessionEntry};
use crate::flow::scan::SessionView;
use crate::neighbours::{addr_of, mac_from_u64};
use crate::packet::Verdict;
use crate::packet::view::protocol;
use crate::pipeline::trail::{Notes, Seen};
use crate::pipeline::{self, Decision, Question};
use crate::tables::policy::{Action, Bound, DEFAULT_RULE, NO_NAT_RULE, NO_ZONE, SourceNat};
use crate::tables::{NO_INTERFACE, SourceCheck};
use crate::time::Nanos;

pub use decode::{flow_of, from_hex, hex as to_hex};
pub use dry::{Dry, DryError};
pub use names::View;

/// When the clock of a dry run without a gateway begins: far from 0, as after some time of operation.
pub const START: Nanos = Nanos::from_secs(1000);

/// What a running gateway knows of a packet beside its tables.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The session that it is of.
    pub session: Option<SessionEntry>,
    /// The mapping that it answers to, and that in words.
    pub mapped: Option<(Bound, String)>,
    /// The backend that its client had last.
    pub held: Option<(Client, Held)>,
}

/// Explains packets one after the other: sessions of the first ones are there for those behind them.
pub struct Explainer<'a> {
    view: View<'a>,
    dry: Dry,
    /// A gateway runs: who is not among its neighbours has not answered.
    is_live: bool,
}

impl<'a> Explainer<'a> {
    /// With tables and names, at a time of the workers' clock. `is_live`: they are a running gateway's.
    pub fn new(view: View<'a>, now: Nanos, is_live: bool) -> Result<Explainer<'a>, DryError> {
        Ok(Explainer { view, dry: Dry::new(view.compiler, now)?, is_live })
    }

    /// A packet in words.
    pub fn text(
        &mut self,
        packet: &PacketText,
        live: impl FnOnce(&Question) -> Live,
    ) -> Result<Explanation, String> {
        let arrival = frame::build(self.view, packet)?;
        let mut remarks = Vec::new();
        if let Some((bridge, member, mac)) = arrival.station {
            let name = self.view.interface(member);
            if !self.dry.place(bridge, member, mac) {
                return Err(format!(
                    "{name} has no remote that a station could be behind: give the frame instead"
                ));
            }
            let mac =
                Mac::new(mac_from_u64(mac)).map_or_else(|error| error.to_string(), |mac| mac.to_string());
            remarks.push(format!("its station, {mac}, is taken to be behind {name}"));
        }
        let mut explanation =
            self.frame(arrival.port, &arrival.bytes, live).map_err(|error| error.to_string())?;
        explanation.remarks.append(&mut remarks);
        if arrival.is_guessed {
            explanation.remarks.push(format!(
                "nobody said where it comes in: the route to {} leads out of {}",
                packet.src,
                self.view.interface(arrival.interface)
            ));
        }
        Ok(explanation)
    }

    /// A frame that comes in by a port, by name.
    pub fn frame_on(
        &mut self,
        port: &str,
        bytes: &[u8],
        live: impl FnOnce(&Question) -> Live,
    ) -> Result<Explanation, String> {
        let port = frame::port_of(self.view, port)?;
        self.frame(port, bytes, live).map_err(|error| error.to_string())
    }

    fn frame(
        &mut self,
        port: u16,
        bytes: &[u8],
        live: impl FnOnce(&Question) -> Live,
    ) -> Result<Explanation, DryError> {
        let seen = self.dry.look(port, bytes)?;
        let tables = self.view.tables();
        let mut told = Explanation {
            packet: decode::frame(bytes),
            generation: tables.generation,
            steps: vec![self.ingress(&seen, port)],
            ..Explanation::default()
        };
        let mut notes = Notes::default();
        let mut decision = None;
        let mut is_mapped = false;
        if let Some(question) = &seen.question {
            let live = live(question);
            is_mapped = live.mapped.is_some();
            let bound = live.mapped.as_ref().map(|(bound, _)| *bound);
            let decided = match seen.bridged_to {
                Some(NO_INTERFACE) => None,
                Some(egress) => Some(pipeline::decide_bridged(tables, question, egress)),
                None => {
                    let held = live.held.map(|(_, held)| held);
                    Some(pipeline::decide_noting(tables, question, bound, held, &mut notes))
                }
            };
            if let Some((client, held)) = live.held {
                self.dry.remember(client, held.backend);
            }
            if let Some((_, says)) = live.mapped {
                told.steps.push(step("mapping", None, says));
            }
            if !seen.is_later_fragment {
                decisions(self.view, question, seen.bridged_to, &notes, decided.as_ref(), &mut told.steps);
            }
            told.session = live.session.map(Box::new);
            decision = decided;
        }
        if is_mapped {
            // A dry run has no mappings of the live workers.
            told.remarks.push("its bytes are not shown: the mapping is a live worker's".to_owned());
            (told.outcome, told.reason, told.meaning) = match decision {
                Some(Decision::Drop(reason) | Decision::Refused(_, reason)) => {
                    (Outcome::Dropped, Some(reason.name().into()), Some(reason.explanation().into()))
                }
                Some(Decision::Local(_)) => (Outcome::Local, None, None),
                _ => (Outcome::Forwarded, None, None),
            };
        } else {
            self.run(port, bytes, &mut told)?;
        }
        if told.outcome == Outcome::Dropped {
            let asked = why::Asked { view: self.view, seen: &seen, notes: &notes, decision };
            told.suggestions = why::suggestions(&asked, told.reason.as_deref().unwrap_or_default());
        }
        Ok(told)
    }

    /// What really happens.
    fn run(&mut self, port: u16, bytes: &[u8], told: &mut Explanation) -> Result<(), DryError> {
        let ran = self.dry.run(port, bytes)?;
        if let Some(session) = ran.opened.first() {
            told.steps.push(self.session(session));
        }
        for slot in &ran.asked {
            let (interface, address) = self.dry.neighbour(*slot);
            let interface = self.view.interface(interface);
            let says = match self.is_live {
                true => {
                    format!("{address} on {interface} is not known yet: it is asked for, the packet waits")
                }
                false => format!("{address} on {interface}"),
            };
            told.steps.push(step("next-hop", Some(interface), says));
            told.remarks.push(format!("{address} is taken to answer, from 02:00:00:00:00:fe"));
        }
        for (port, bytes) in &ran.sent {
            let decoded = decode::frame(bytes);
            // Without a gateway there is nobody to know them: that they are asked for says nothing.
            if self.is_live || ran.asked.is_empty() || !decoded.contains("who has") {
                let port = self.view.compiler.ports.name(*port).to_owned();
                told.sent.push(ExplainedFrame { port, decoded, hex: decode::hex(bytes) });
            }
        }
        told.outcome = match ran.drops.first() {
            Some((reason, _)) => {
                let (name, meaning) = View::meaning(*reason);
                (told.reason, told.meaning) = (Some(name), Some(meaning));
                Outcome::Dropped
            }
            None if !ran.asked.is_empty() && self.is_live => Outcome::Waits,
            None if ran.punted > 0 => Outcome::Local,
            None if told.sent.is_empty() => Outcome::Held,
            None => Outcome::Forwarded,
        };
        Ok(())
    }

    fn ingress(&self, seen: &Seen, port: u16) -> ExplainStep {
        let port = self.view.compiler.ports.name(port);
        if seen.interface == NO_INTERFACE {
            return step("ingress", None, format!("port {port}: no interface takes it"));
        }
        let interface = self.view.tables().interface(seen.interface);
        let zone = match interface.zone {
            NO_ZONE => "no zone".to_owned(),
            zone => format!("zone {}", self.view.zone(zone)),
        };
        let name = self.view.interface(seen.interface);
        let vrf = match seen.bridged_to {
            Some(_) => self.view.vrf(seen.question.map_or(interface.vrf, |question| question.vrf)),
            None => format!("VRF {}", self.view.vrf(interface.vrf)),
        };
        let lost = match seen.verdict {
            Verdict::Drop(reason) => format!("; lost there: {}", reason.name()),
            Verdict::Punt => "; it is for the gateway itself".to_owned(),
            _ => String::new(),
        };
        step("ingress", Some(name), format!("port {port}, {vrf}, {zone}{lost}"))
    }

    fn session(&self, session: &SessionView) -> ExplainStep {
        let [src_port, dst_port, new_src_port, new_dst_port] = session.ports;
        let upper = session.protocol;
        let (src, dst) = (addr_of(session.src), addr_of(session.dst));
        let (new_src, new_dst) = (addr_of(session.new_src), addr_of(session.new_dst));
        let before = format!("{} > {}", endpoint(upper, src, src_port), endpoint(upper, dst, dst_port));
        let after = format!(
            "{} > {}",
            endpoint(upper, new_src, new_src_port),
            endpoint(upper, new_dst, new_dst_port)
        );
        let says = match before == after {
            true => format!("a new one, {before}"),
            false => format!("a new one, {before} becomes {after}"),
        };
        step("session", None, says)
    }
}

/// The decisions in words, in the order in which they are taken.
fn decisions(
    view: View<'_>,
    question: &Question,
    bridged_to: Option<u16>,
    notes: &Notes,
    decision: Option<&Decision>,
    steps: &mut Vec<ExplainStep>,
) {
    if let Some(egress) = bridged_to {
        bridged(view, question, egress, decision, steps);
        return;
    }
    let interface = view.tables().interface(question.ingress);
    if interface.source_check != SourceCheck::Off {
        let says = match notes.source_passed {
            true => format!("a route to {} allows it (source_check)", question.src),
            false => format!("no route to {} allows it (source_check)", question.src),
        };
        steps.push(step("source", Some(view.interface(question.ingress)), says));
    }
    if let Some(service) = notes.service {
        let says = match notes.backend {
            Some(backend) => format!("balanced to {}", view.backend(backend)),
            None => "no backend takes it".to_owned(),
        };
        steps.push(step("service", Some(view.service(service)), says));
    } else if let Some((addr, port, vrf)) = notes.destination {
        let name = (notes.destination_rule != NO_NAT_RULE).then(|| view.nat_rule(notes.destination_rule));
        let to = endpoint(question.protocol, addr, port);
        let vrf = if vrf == question.vrf { String::new() } else { format!(" in VRF {}", view.vrf(vrf)) };
        let name = name.or(notes.nat64.then_some("nat64"));
        steps.push(step("destination-nat", name, format!("goes to {to}{vrf}")));
    }
    if let Some((vrf, addr, way)) = &notes.way {
        let route = view.route(*vrf, *addr);
        let name = route.as_ref().map(|(net, _)| net.to_string());
        let what = route.map_or_else(String::new, |(_, what)| format!(" ({what})"));
        let says = match way {
            Ok(way) => format!("{}{what}", view.way(way)),
            Err(reason) => format!("{}, in VRF {}{what}", reason.name(), view.vrf(*vrf)),
        };
        steps.push(step("route", name.as_deref(), says));
    }
    if let (Some(ruling), Some(from), Some(to)) = (notes.ruling, notes.from_zone, notes.to_zone) {
        let says = ruling_says(view, ruling.action, ruling.rule, from, to);
        let says = if notes.permitted { format!("{says}, but it answers to a mapping") } else { says };
        steps.push(step("rule", Some(view.rule(ruling.rule)), says));
    } else if notes.from_zone == Some(NO_ZONE) && notes.way.is_some_and(|(_, _, way)| way.is_ok()) {
        let says = match decision {
            Some(Decision::Drop(_)) => "into a zone there is no way from an interface without one",
            _ => "no zone on either side: no session, no rules",
        };
        steps.push(step("rule", None, says.to_owned()));
    }
    match notes.source {
        None | Some(SourceNat::None) => {}
        Some(SourceNat::Static { addr, rule }) => {
            steps.push(step("source-nat", Some(view.nat_rule(rule)), format!("leaves as {addr}")));
        }
        Some(SourceNat::Pool { pool, rule }) => {
            let says = format!("leaves with an address and port of {}", view.pool(pool));
            steps.push(step("source-nat", Some(view.nat_rule(rule)), says));
        }
        Some(SourceNat::Untranslatable) => {
            steps.push(step("source-nat", None, "there is no address for it".to_owned()));
        }
    }
}

fn bridged(
    view: View<'_>,
    question: &Question,
    egress: u16,
    decision: Option<&Decision>,
    steps: &mut Vec<ExplainStep>,
) {
    let zone = |slot: u16| view.tables().interface(slot).zone;
    let ruling = match decision {
        Some(Decision::Session(allowed)) => Some(allowed.ruling),
        Some(Decision::Refused(ruling, _)) => Some(*ruling),
        _ => None,
    };
    let says = match egress {
        NO_INTERFACE => "to all members: nobody knows where its station is".to_owned(),
        egress => format!("to the member {}", view.interface(egress)),
    };
    steps.push(step("bridge", Some(&view.vrf(question.vrf)), says));
    if let Some(ruling) = ruling.filter(|_| egress != NO_INTERFACE) {
        let says = ruling_says(view, ruling.action, ruling.rule, zone(question.ingress), zone(egress));
        steps.push(step("rule", Some(view.rule(ruling.rule)), says));
    }
}

fn ruling_says(view: View<'_>, action: Action, rule: u32, from: u8, to: u8) -> String {
    let (from, to) = (view.zone(from), view.zone(to));
    let does = match action {
        Action::Allow => "allows",
        Action::Deny => "denies",
        Action::Reject => "rejects",
    };
    match (rule, action) {
        (DEFAULT_RULE, Action::Allow) => format!("no rule is needed from {from} to {to}"),
        (DEFAULT_RULE, _) => format!("no rule allows it from {from} to {to}"),
        _ => format!("{does} it, {from} > {to}"),
    }
}

/// Address and port, or the address alone of what has none.
fn endpoint(upper: u8, addr: IpAddr, port: u16) -> String {
    let is_icmp = matches!(upper, protocol::ICMP | protocol::ICMPV6);
    match Service::of_protocol(upper).has_ports() {
        true => std::net::SocketAddr::new(addr, port).to_string(),
        false if is_icmp => format!("{addr} id {port}"),
        false => addr.to_string(),
    }
}

fn step(what: &str, name: Option<&str>, says: String) -> ExplainStep {
    ExplainStep { step: what.to_owned(), name: name.map(str::to_owned), says }
}

#[cfg(test)]
mod tests;
