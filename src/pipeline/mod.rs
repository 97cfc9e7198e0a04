//! The packet path: one stage per file, in the order of [`run`].
//!
//! A stage looks only at packets whose verdict is still `Continue`. Stages meet in the packet's metadata
//! and never call each other. What fails a check leaves untouched, so
//! that errors can quote the packet as it came. Below the six stages stands the slow path
//! ([`slow`]): neighbours to resolve, packets to the gateway, fragments, ICMP errors.
//!
//! [`decide`] is the one pure function that knows policy: the route stage uses its parts in batches,
//! everything else that asks "what would happen" calls it whole.

mod adjacency;
mod flow;
pub mod fragment;
mod icmp_error;
mod link;
mod network;
mod reassembly;
mod rewrite;
pub mod route;
mod session;
pub mod slow;
mod source;

use std::net::IpAddr;

use crate::flow::Flows;
use crate::neighbours::NeighbourTable;
use crate::packet::{Burst, DropReason, Ingress};
use crate::tables::policy::{Action, Bound, SELF, SourceNat};
use crate::tables::{NO_INTERFACE, Tables};
use crate::telemetry::WorkerCounters;
use crate::time::Nanos;

pub use rewrite::write_link_header;
pub use slow::{Emit, Limits, SlowPath};

/// What a stage may look at: one snapshot, one time, for the whole burst.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The clock, read once for the burst.
    pub now: Nanos,
    /// The one snapshot of the burst.
    pub tables: &'a Tables,
    /// The shared neighbour table.
    pub neighbours: &'a NeighbourTable,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
    /// Where the burst came from.
    pub ingress: Ingress,
    /// The packets were parked and start again: they have been counted as received.
    pub restarted: bool,
}

/// The packet path. Seven stages, in this order; what one of them settles no later one touches.
///
/// `link`, `network` and `source` look at one packet after the other while its headers are at hand,
/// `flow` and `route` at the whole burst, so that the lookups overlap, `adjacency` and `rewrite` again at one
/// after the other. A packet has either a session, from `flow`, or a route.
pub fn run(burst: &mut Burst, cx: &Context<'_>, flows: &mut Flows) {
    let mut received = link::Tally::default();
    let mut lookups = flow::Lookups::default();
    for (index, packet) in burst.iter_mut().enumerate() {
        link::step(packet, cx, &mut received);
        network::step(packet);
        source::step(packet, cx);
        flow::begin(packet, index, flows, &mut lookups);
    }
    received.finish(cx);
    flow::run(burst, cx, flows, &mut lookups);
    route::run(burst, cx);
    let (mut hop, mut sent) = (adjacency::Hop::default(), rewrite::Tally::default());
    for packet in burst.iter_mut() {
        adjacency::step(packet, cx, flows, &mut hop);
        rewrite::step(packet, cx, flows, &mut sent);
    }
    sent.finish(cx);
}

/// The first packet of a flow, as policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// VRF slot.
    pub vrf: u16,
    /// Ingress interface slot; [`crate::tables::NO_INTERFACE`] for the gateway itself.
    pub ingress: u16,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// DSCP.
    pub dscp: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
}

/// What policy says of a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To the gateway itself.
    Local,
    /// Out of this interface, to the gateway in the neighbour slot or, if `None`, to the destination.
    Forward {
        /// Egress interface slot.
        egress: u16,
        /// Neighbour slot of the gateway.
        via: Option<u32>,
    },
    /// With a session.
    Session(Allowed),
    /// Not at all.
    Drop(DropReason),
}

/// What a session is allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Egress interface slot.
    pub egress: u16,
    /// Neighbour slot of the gateway.
    pub via: Option<u32>,
    /// VRF slot of the egress: where replies come in.
    pub vrf: u16,
    /// Where the packet really goes: behind destination NAT.
    pub dst: IpAddr,
    /// The port there.
    pub dst_port: u16,
    /// What is done to its source.
    pub source: SourceNat,
    /// Slot of the rule that allows it.
    pub rule: u16,
    /// Slot of the NAT rule, 0 = none.
    pub nat_rule: u16,
    /// Zone it comes from.
    pub from_zone: u8,
    /// Zone it goes to.
    pub to_zone: u8,
}

/// Decides a flow. Pure: the same tables and question give the same answer, and nothing changes.
pub fn decide(tables: &Tables, question: &Question) -> Decision {
    if let Err(reason) = source::check(tables, question.ingress, question.vrf, question.src, question.dst) {
        return Decision::Drop(reason);
    }
    route::decide(tables, question)
}

/// Decides a flow whose ingress has a zone: destination NAT, route, firewall, source NAT (DESIGN.md section 3).
/// `bound` is the destination it is bound to already: by a NAT mapping, or by the session it belongs to. Pure, as
/// [`decide`].
pub fn decide_session(tables: &Tables, question: &Question, bound: Option<Bound>) -> Decision {
    if let Err(reason) = source::check(tables, question.ingress, question.vrf, question.src, question.dst) {
        return Decision::Drop(reason);
    }
    let policy = &tables.policy;
    let from_zone = if question.ingress == NO_INTERFACE { SELF } else { tables.interface(question.ingress).zone };
    let mut nat_rule = 0;
    let mut real = *question;
    let mut permitted = false;
    if let Some(bound) = bound {
        (real.dst, real.dst_port, real.vrf) = (bound.addr, bound.port, bound.vrf);
        permitted = bound.allowed;
    } else if let Some(nat) =
        policy.destination(question.vrf, question.src, question.dst, question.protocol, question.dst_port)
    {
        (real.dst, real.vrf) = (nat.addr, nat.vrf);
        real.dst_port = nat.port.unwrap_or(question.dst_port);
        nat_rule = nat.rule;
    }
    let (to_zone, egress, via) = match route::decide(tables, &real) {
        Decision::Local => (SELF, NO_INTERFACE, None),
        Decision::Forward { egress, via } => (tables.interface(egress).zone, egress, via),
        other => return other,
    };
    let asked = Question { vrf: question.vrf, ..real };
    let ruling = policy.permit(&asked, from_zone, to_zone, egress);
    match ruling.action {
        _ if permitted => {}
        Action::Allow => {}
        Action::Deny => return Decision::Drop(DropReason::FirewallDeny),
        Action::Reject => return Decision::Drop(DropReason::FirewallReject),
    }
    if egress == NO_INTERFACE {
        return Decision::Local;
    }
    let source = policy.source(&asked, from_zone, to_zone, egress);
    match source {
        SourceNat::None => {}
        SourceNat::Static { rule, .. } | SourceNat::Pool { rule, .. } => nat_rule = rule,
    }
    Decision::Session(Allowed {
        egress,
        via,
        vrf: tables.interface(egress).vrf,
        dst: real.dst,
        dst_port: real.dst_port,
        source,
        rule: ruling.rule,
        nat_rule,
        from_zone,
        to_zone,
    })
}
