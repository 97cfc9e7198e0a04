//! What a decision was made of, for people: filled in by [`super::decide_noting`], the same code that decides packets.
//!
//! Packets are decided with `()`, which notes nothing and costs nothing.

use std::net::IpAddr;

use super::route::Route;
use super::session;
use super::{Context, Question, link, network, relay, source, vxlan};
use crate::packet::{DropReason, Packet, Verdict, flags};
use crate::tables::bridge::is_scope;
use crate::tables::policy::{Ruling, SourceNat};

/// Who is told what a decision follows from.
pub trait Trail {
    /// Something is known.
    fn note(&mut self, what: impl FnOnce(&mut Notes));
}

impl Trail for () {
    #[inline(always)]
    fn note(&mut self, _what: impl FnOnce(&mut Notes)) {}
}

/// What was found on the way, as far as it was gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The check of the source has let it pass.
    pub source_passed: bool,
    /// Zone it comes from.
    pub from_zone: Option<u8>,
    /// Slot of the service that it is for.
    pub service: Option<u16>,
    /// Slot of the backend that the service has chosen.
    pub backend: Option<u32>,
    /// Where destination NAT, a service or what it is bound to leads: address, port and VRF slot.
    pub destination: Option<(IpAddr, u16, u16)>,
    /// Slot of the NAT rule that leads there, 0 if it is none.
    pub destination_rule: u16,
    /// It goes on in the other family.
    pub nat64: bool,
    /// Its route: VRF slot and address that were looked up, and what came of it.
    pub way: Option<(u16, IpAddr, Result<Route, DropReason>)>,
    /// Zone it goes to.
    pub to_zone: Option<u8>,
    /// What the firewall says.
    pub ruling: Option<Ruling>,
    /// It answers to a mapping, which needs no rule.
    pub permitted: bool,
    /// What is done to its source.
    pub source: Option<SourceNat>,
}

impl Trail for Notes {
    fn note(&mut self, what: impl FnOnce(&mut Notes)) {
        what(self);
    }
}

/// What the first stages make of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What settles it already; `Continue`: nothing.
    pub verdict: Verdict,
    /// Interface slot it came in by, or `NO_INTERFACE`.
    pub interface: u16,
    /// As policy sees it, once its headers are read.
    pub question: Option<Question>,
    /// From a bridge's member to the member in this interface slot, or to one that nobody knows.
    pub bridged_to: Option<u16>,
    /// It asks the session tables; otherwise routes alone.
    pub stateful: bool,
    /// Not the first fragment of its datagram: it has no ports.
    pub is_later_fragment: bool,
}

/// Runs the stages before sessions and routes over a packet: it is as they leave it.
pub fn look(packet: &mut Packet, cx: &Context<'_>) -> Seen {
    let mut tally = link::Tally::default();
    link::step(packet, cx, &mut tally);
    network::step(packet);
    relay::step(packet, cx);
    source::step(packet, cx);
    if vxlan::step(packet, cx, &mut tally).is_some() {
        network::step(packet);
        relay::step(packet, cx);
        source::step(packet, cx);
    }
    let meta = &packet.meta;
    let is_read = match meta.verdict {
        Verdict::Continue => true,
        // Behind the headers.
        Verdict::Drop(DropReason::SourceCheck | DropReason::MartianSource) => meta.l4 > meta.l3,
        _ => false,
    };
    Seen {
        verdict: meta.verdict,
        interface: meta.interface,
        question: is_read.then(|| session::question(packet)),
        bridged_to: is_scope(meta.vrf).then_some(meta.egress),
        stateful: meta.has(flags::STATEFUL),
        is_later_fragment: meta.has(flags::LATER_FRAGMENT),
    }
}
