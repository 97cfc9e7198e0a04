//! What policy says of a session now: asked by the workers of their own after a change, by a packet or without
//! ([`super::session`]), and by a preview of everybody's, under tables that no worker has seen. One function, so that what
//! is foreseen is what comes.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::{Fate, Filtering};
use crate::flow::NextHop;
use crate::flow::standing::Standing;
use crate::neighbours::ip_of;
use crate::packet::DropReason;
use crate::packet::view::protocol;
use crate::pipeline::route::{self, Route};
use crate::pipeline::{Allowed, Decision, Question, behind_prefix, decide, member_zones};
use crate::tables::balance::{BackendFate, Services, delivery};
use crate::tables::bridge::is_scope;
use crate::tables::policy::{Bound, NO_NAT_RULE, Policy, Ruling, SourceNat};
use crate::tables::{NO_INTERFACE, Tables};

/// What policy says of a session now.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// What it is allowed.
    pub allowed: Allowed,
    /// Egress and next hop of replies.
    pub back: (u16, Option<u32>),
    /// It goes on in spite of the rule that is said here to allow it.
    pub kept: bool,
}

impl Judged {
    /// True if the session's packets would leave by another way than they do.
    pub fn leads_elsewhere(&self, standing: &Standing) -> bool {
        (self.allowed.egress, NextHop::of(self.allowed.via)) != (standing.egress, standing.next_hop)
    }

    /// True if replies would.
    pub fn leads_back_elsewhere(&self, standing: &Standing) -> bool {
        (self.back.0, NextHop::of(self.back.1)) != standing.back
    }

    /// True if it would go on under another rule or NAT rule.
    pub fn has_other_rule(&self, standing: &Standing) -> bool {
        let (allowed, record) = (&self.allowed, &standing.record);
        let nat_rule = if allowed.nat_rule == NO_NAT_RULE { record.nat_rule } else { allowed.nat_rule };
        (allowed.ruling.rule, nat_rule) != (record.rule, record.nat_rule)
    }
}

/// Why a session does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// What its next packet is lost to.
    pub reason: DropReason,
    /// The rule that refuses it, if one does.
    pub ruling: Option<Ruling>,
    /// What a first packet would be lost to, if not to a rule.
    pub lost_to: Option<DropReason>,
    /// Egress of a way that is open to a new session, but not to this one.
    pub new_way: Option<u16>,
}

/// Why a session's packets do not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is over.
    Ends(Ends),
    /// A link of it is down, and no other way is open to it: what of it comes meanwhile is lost, and it goes on when the
    /// link is back.
    Waits,
}

impl From<DropReason> for Ends {
    fn from(reason: DropReason) -> Ends {
        Ends { reason, ruling: None, lost_to: None, new_way: None }
    }
}

/// True if nothing has changed that a session's decision follows from: it is as good as made by these tables.
pub fn still_holds(tables: &Tables, standing: &Standing) -> bool {
    standing.epoch == tables.flow_epoch() || tables.still_holds(standing.epoch, &standing.bearing())
}

/// What becomes of a session for what has happened to its backend since it was decided in `epoch`.
pub fn backend_fate(tables: &Tables, backend: Option<u32>, epoch: u32, upper: u8) -> BackendFate {
    match backend {
        // Flows that came to it afterwards, because all others had failed too, are as good as before.
        Some(backend) if !tables.backends.still_holds(backend, epoch) => tables.backends.fate(backend, upper),
        _ => BackendFate::Keep,
    }
}

/// The first packet of a session.
pub fn question_of(standing: &Standing) -> Question {
    let Standing { tuple, record, ingress, .. } = standing;
    let (tcp_flags, icmp_type) =
        if tuple.protocol == protocol::TCP { (record.opened_with, 0) } else { (0, record.opened_with) };
    Question {
        vrf: tuple.vrf,
        ingress: *ingress,
        src: ip_of(tuple.src),
        dst: ip_of(tuple.dst),
        protocol: tuple.protocol,
        src_port: tuple.src_port,
        dst_port: tuple.dst_port,
        dscp: record.dscp,
        tcp_flags,
        icmp_type,
    }
}

/// Asks policy about a session, as if its first packet came now; what is bound stays bound. Changes nothing.
pub fn judge(tables: &Tables, standing: &Standing) -> Result<Judged, Stop> {
    judge_way(tables, standing).map_err(|ends| match waits(tables, standing, ends) {
        true => Stop::Waits,
        false => Stop::Ends(ends),
    })
}

/// True if a session is stopped by an outage and not by policy. Without their route its packets may be led to where no rule
/// lets them through, and those that come back look as if they came the wrong way.
fn waits(tables: &Tables, standing: &Standing, ends: Ends) -> bool {
    let is_down = |slot: u16| {
        let interface = tables.interfaces.get(usize::from(slot));
        interface.is_some_and(|interface| !interface.up && !interface.is_tombstone())
    };
    let is_stopped = match ends.new_way {
        // Both ends are to begin anew there, and at once. Back to where it comes from is no way.
        Some(egress) => egress == standing.ingress,
        None => ends.ruling.is_some() || ends.lost_to.is_some(),
    };
    is_stopped && (is_down(standing.ingress) || is_down(standing.egress))
}

fn judge_way(tables: &Tables, standing: &Standing) -> Result<Judged, Ends> {
    let Standing { tuple, record, ingress, egress, .. } = standing;
    let question = question_of(standing);
    if backend_fate(tables, record.backend(), standing.epoch, tuple.protocol) != BackendFate::Keep {
        return Err(DropReason::BackendFailed.into());
    }
    if is_scope(tuple.vrf) {
        let decided = |kept| session_of(member_zones::decide(tables, &question, *egress, kept));
        let (allowed, kept) = unless_kept(tables, standing, decided)?;
        if (allowed.from_zone, allowed.to_zone) != (record.from_zone, record.to_zone) {
            return Err(DropReason::PolicyChanged.into());
        }
        return Ok(Judged { allowed, back: (*ingress, None), kept });
    }
    let bound = bound_of(tables, standing, &question);
    let decided = |kept| session_of(decide(tables, &question, Some(Bound { kept, ..bound }), None));
    let (allowed, kept) = unless_kept(tables, standing, decided)?;
    let moved = allowed.egress != *egress;
    let new_way = Some(allowed.egress);
    // DESIGN.md section 3, the fate of a live flow.
    if allowed.to_zone != record.to_zone || allowed.from_zone != record.from_zone {
        return Err(Ends { new_way, ..DropReason::PolicyChanged.into() });
    } else if moved && !has_source(&tables.policy, standing, allowed.source) {
        return Err(Ends { new_way, ..DropReason::NatPathChanged.into() });
    }
    // Without a way back replies are lost, until there is one again.
    Ok(Judged { allowed, back: way_back(tables, &question).unwrap_or((NO_INTERFACE, None)), kept })
}

/// What is decided of a session; of one that a rule refuses and that is to be kept, as if that let it pass.
fn unless_kept(
    tables: &Tables,
    standing: &Standing,
    decided: impl Fn(bool) -> Result<Allowed, Ends>,
) -> Result<(Allowed, bool), Ends> {
    match decided(false) {
        Ok(allowed) => Ok((allowed, false)),
        Err(Ends { ruling: Some(ruling), .. }) if keeps(tables, standing, ruling) => {
            decided(true).map(|allowed| (allowed, true))
        }
        Err(ends) => Err(ends),
    }
}

/// True if a session goes on though a rule refuses it: it did so before in spite of the same rule; or the commit that was the
/// last to say anything new between its zones has said that what there is stays, and it was there.
fn keeps(tables: &Tables, standing: &Standing, ruling: Ruling) -> bool {
    let Standing { record, epoch, is_kept, .. } = standing;
    let since = tables.ruled_in(&standing.bearing());
    let is_older = (epoch.wrapping_sub(since as u32) as i32) < 0;
    *is_kept && record.rule == ruling.rule
        // What a commit before has ended no later one brings back.
        || is_older && !standing.is_condemned() && tables.on_commit.of(since) == Fate::Keep
}

/// What the next packet of a session that ends is lost to.
pub(super) fn lost_to(tables: &Tables, ends: Ends, epoch: u32) -> DropReason {
    match ends.reason {
        DropReason::PolicyChanged if tables.on_commit.resets_since(epoch) => DropReason::PolicyReset,
        reason => reason,
    }
}

fn session_of(decision: Decision) -> Result<Allowed, Ends> {
    let (ruling, lost_to) = match decision {
        Decision::Session(allowed) => return Ok(allowed),
        Decision::Local(_) | Decision::Forward { .. } => (None, None),
        Decision::Drop(reason) => (None, Some(reason)),
        Decision::Refused(ruling, _) => (Some(ruling), None),
    };
    Err(Ends { reason: DropReason::PolicyChanged, ruling, lost_to, new_way: None })
}

/// What a session is bound to: where destination NAT, a service or a mapping has led it.
fn bound_of(tables: &Tables, standing: &Standing, question: &Question) -> Bound {
    let Standing { tuple, record, new_dst, new_dst_port, reply_vrf, .. } = standing;
    let policy = &tables.policy;
    if let Some(bound) = delivered(standing, policy.services()) {
        return bound;
    }
    // An ICMP query's identifier stands for both ports, and source NAT changes it.
    let is_icmp = matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6);
    let translated = tuple.dst != *new_dst || !is_icmp && tuple.dst_port != *new_dst_port;
    Bound {
        addr: ip_of(*new_dst),
        port: if translated { *new_dst_port } else { tuple.dst_port },
        vrf: if translated { *reply_vrf } else { tuple.vrf },
        translated,
        mapped: record.bound != 0,
        allowed: record.bound != 0 && may_answer(policy, || standing.knows_peer),
        kept: false,
        pool: outside(tables, question)
            .filter(|_| translated)
            .and_then(|(dst, vrf)| policy.pool_of(vrf, dst)),
        delivery: None,
    }
}

/// The IPv4 address that a packet is for, and its VRF slot.
pub(super) fn outside(tables: &Tables, question: &Question) -> Option<(Ipv4Addr, u16)> {
    match question.dst {
        _ if is_scope(question.vrf) => None,
        IpAddr::V4(dst) => Some((dst, question.vrf)),
        IpAddr::V6(_) => behind_prefix(tables, question),
    }
}

/// True if who sends to a mapping needs no rule (RFC 4787 section 5). `knows_peer`: something was sent to him from it.
pub(super) fn may_answer(policy: &Policy, knows_peer: impl FnOnce() -> bool) -> bool {
    match policy.filtering {
        Filtering::EndpointIndependent => true,
        Filtering::AddressDependent => knows_peer(),
    }
}

/// What a session is bound to whose packets go to their backend as they come: that, by the way it has now.
fn delivered(standing: &Standing, services: &Services) -> Option<Bound> {
    let kept = delivery::number_of(standing.next_hop.slot())?;
    let number = standing.record.backend().and_then(|backend| services.delivery_of(backend)).unwrap_or(kept);
    let to = services.delivery(number)?;
    Some(Bound {
        addr: to.addr,
        port: standing.tuple.dst_port,
        vrf: to.vrf,
        translated: false,
        mapped: false,
        allowed: false,
        kept: false,
        pool: None,
        delivery: Some(number),
    })
}

/// True if a session has the source that policy would give it now.
fn has_source(policy: &Policy, standing: &Standing, source: SourceNat) -> bool {
    let is_mapped = standing.record.mapping != 0;
    match (source, ip_of(standing.new_src)) {
        (SourceNat::None, _) => !is_mapped && standing.new_src == standing.tuple.src,
        (SourceNat::Static { addr, .. }, has) => !is_mapped && has == addr,
        (SourceNat::Pool { pool, .. }, IpAddr::V4(has)) => {
            is_mapped && policy.pools[usize::from(pool)].contains(has.into())
        }
        (SourceNat::Pool { pool, .. }, IpAddr::V6(has)) => {
            let rule = policy.nat64_of_pool(pool);
            let outside = rule.and_then(|rule| rule.prefix.extract(has.into()));
            is_mapped && outside.is_some_and(|has| policy.pools[usize::from(pool)].contains(has))
        }
        (SourceNat::Untranslatable, _) => false,
    }
}

/// How replies get back to where the first packet came from. An error: nowhere.
pub(super) fn way_back(tables: &Tables, question: &Question) -> Result<(u16, Option<u32>), DropReason> {
    if is_scope(question.vrf) {
        return Ok((question.ingress, None));
    }
    let back = Question {
        ingress: NO_INTERFACE,
        src: question.dst,
        dst: question.src,
        src_port: question.dst_port,
        dst_port: question.src_port,
        ..*question
    };
    match route::decide(tables, &back)? {
        Route::Forward { egress, via } => Ok((egress, via)),
        // Who begins a session with one of our own addresses is not who he says.
        Route::Local => Err(DropReason::SourceCheck),
    }
}
