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
pub mod fragment;
mod link;
mod network;
mod rewrite;
pub mod route;
pub mod slow;
mod source;

use std::net::IpAddr;

use crate::neighbours::NeighbourTable;
use crate::packet::{Burst, DropReason, Ingress};
use crate::tables::Tables;
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

/// The packet path. Six stages, in this order; what one of them settles no later one touches.
///
/// `link`, `network` and `source` look at one packet after the other while its headers are at hand,
/// `route` at the whole burst, so that the lookups overlap, `adjacency` and `rewrite` again at one after
/// the other.
pub fn run(burst: &mut Burst, cx: &Context<'_>) {
    let mut received = link::Tally::default();
    for packet in burst.iter_mut() {
        link::step(packet, cx, &mut received);
        network::step(packet);
        source::step(packet, cx);
    }
    received.finish(cx);
    route::run(burst, cx);
    let (mut hop, mut sent) = (adjacency::Hop::default(), rewrite::Tally::default());
    for packet in burst.iter_mut() {
        adjacency::step(packet, cx, &mut hop);
        rewrite::step(packet, cx, &mut sent);
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
    /// Not at all.
    Drop(DropReason),
}

/// Decides a flow. Pure: the same tables and question give the same answer, and nothing changes.
pub fn decide(tables: &Tables, question: &Question) -> Decision {
    if let Err(reason) = source::check(tables, question.ingress, question.vrf, question.src, question.dst) {
        return Decision::Drop(reason);
    }
    route::decide(tables, question)
}
