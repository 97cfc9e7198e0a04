//! `explain` on the running gateway: its tables, its neighbours, and the session or mapping that the packet is of.
//!
//! A dry run works on copies and takes a few milliseconds of the control thread; workers are asked for one session and
//! one mapping each, by their keys.

use std::net::IpAddr;
use std::time::Duration;

use super::Gateway;
use crate::config::{Filtering, Places};
use crate::control::{ExplainQuery, Explained, Fault, FaultKind, ReachQuery, Reached};
use crate::explain::{self, Explainer, Live, View, lint, reach};
use crate::flow::Tick;
use crate::flow::nat::MappingView;
use crate::flow::scan::{SessionView, Sought};
use crate::neighbours::{addr_key, addr_of};
use crate::pipeline::{self, Question};
use crate::reader::{Found, Place, Task};
use crate::tables::policy::Bound;

/// How long a worker may keep silent.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long it may take over its answer.
const LIMIT: Duration = Duration::from_millis(5);

impl Gateway {
    pub(super) fn explain(&self, query: &ExplainQuery) -> Result<Explained, Fault> {
        let invalid = |message: String| Fault::new(FaultKind::InvalidParams, message);
        if query.packet.is_some() != query.frames.is_empty() {
            return Err(invalid("name a packet, or frames and the port they come in by".to_owned()));
        }
        if query.frames.len() > ExplainQuery::MOST {
            return Err(invalid(format!("at most {} frames at once", ExplainQuery::MOST)));
        }
        let view = View::new(&self.compiler, &self.config);
        let mut explainer = Explainer::new(view, self.now(), true)
            .map_err(|error| Fault::new(FaultKind::Internal, error.to_string()))?;
        let mut packets = Vec::new();
        if let Some(packet) = &query.packet {
            packets.push(explainer.text(packet, |question| self.live(question)).map_err(invalid)?);
        }
        let port = query.port.as_deref().unwrap_or_default();
        for digits in &query.frames {
            let bytes = explain::from_hex(digits).map_err(invalid)?;
            let told = explainer.frame_on(port, &bytes, |question| self.live(question));
            packets.push(told.map_err(invalid)?);
        }
        Ok(Explained { packets })
    }

    pub(super) fn reach(&self, query: &ReachQuery) -> Result<Reached, Fault> {
        let view = View::new(&self.compiler, &self.config);
        reach::reach(view, query, reach::MOST_LIVE).map_err(|error| match error {
            reach::NoAnswer::TooMany { .. } => {
                let message = format!("{error}, or ask by the config: softgate reach --config FILE");
                Fault::new(FaultKind::Limit, message)
            }
            other => Fault::new(FaultKind::InvalidParams, other.to_string()),
        })
    }

    /// What is odd in the config in force, with the lines of its text.
    pub(super) fn odd(&self, text: &str) -> Vec<String> {
        let findings = lint::lint(View::new(&self.compiler, &self.config), true);
        // The text may be long, and mostly there is nothing to find in it.
        if findings.is_empty() {
            return Vec::new();
        }
        let places = Places::of(text);
        let line = |finding: &lint::Finding| match places.line(&finding.key) {
            Some(line) => format!("{}:{line}: {finding}", self.file_name),
            None => finding.to_string(),
        };
        findings.iter().map(line).collect()
    }

    /// What the workers know of a packet.
    fn live(&self, question: &Question) -> Live {
        let tables = self.compiler.tables();
        let outside = match question.dst {
            IpAddr::V4(dst) => Some((dst, question.vrf)),
            IpAddr::V6(_) => pipeline::behind_prefix(tables, question),
        };
        let outside = outside.and_then(|(addr, vrf)| Some((addr, vrf, tables.policy.pool_of(vrf, addr)?)));
        let sought = Sought {
            vrf: question.vrf,
            protocol: question.protocol,
            src: addr_key(question.src),
            dst: addr_key(question.dst),
            ports: (question.src_port, question.dst_port),
            mapped: outside.map(|(addr, vrf, _)| (vrf, addr.into(), question.dst_port)),
        };
        let (mut session, mut mapping): (Option<(usize, SessionView)>, Option<MappingView>) = (None, None);
        for (worker, desk) in self.node.desks.iter().enumerate() {
            let until = self.now().plus(LIMIT);
            let wake = || self.node.wake_if_asleep(worker);
            let answered =
                desk.read(Task::Find(sought), Place::default(), until, PATIENCE, wake, |found| match found {
                    Found::Session(view) => session = Some((worker, view)),
                    Found::Mapping(view) => mapping = Some(view),
                    Found::Standing(..) => {}
                });
            // The explanation stands without it, and others would only keep everybody waiting.
            if answered.is_err() {
                break;
            }
        }
        let inspector = self.inspector();
        let now = Tick::of(self.now());
        let services = tables.policy.services();
        let client = services.has_affinity().then(|| services.find(question)?.client(question)).flatten();
        Live {
            session: session.map(|(worker, view)| inspector.session(&view, worker, now)),
            mapped: mapping.zip(outside).map(|(mapping, (addr, _, pool))| {
                let inside = addr_of(mapping.inside.addr);
                let allowed = tables.policy.filtering == Filtering::EndpointIndependent;
                let bound = Bound {
                    addr: inside,
                    port: mapping.inside.port,
                    vrf: mapping.inside.vrf,
                    translated: true,
                    mapped: true,
                    allowed,
                    kept: false,
                    pool: Some(pool),
                    delivery: None,
                };
                let who = if allowed { "whoever sends to it" } else { "those it has sent to" };
                let says = format!(
                    "{addr} port {} is {inside} port {}, with {} sessions, for {who}",
                    mapping.port, mapping.inside.port, mapping.sessions
                );
                (bound, says)
            }),
            held: client
                .and_then(|client| Some((client, self.node.limits.clients.find(client, self.now())?))),
        }
    }
}
