//! What happens when there is no room. A session that was answered to is never given up for a new one; one that
//! nobody has answered to may be, who has waited longest first (RFC 4987 section 3.4), unless a NAT mapping would go with
//! it (RFC 6888 REQ-11 D). What then finds no room is refused.

use super::half_open::HalfOpen;
use super::{
    Address, Class, FlowTable, Flows, Handle, Holdings, Timers, due, flow_flags, proxy, record_flags,
};
use crate::mem::BURST;
use crate::packet::view::protocol;
use crate::telemetry::events::SessionEvent;
use crate::telemetry::{WorkerCounters, add};
use crate::time::Nanos;

/// Sessions looked at for one that may go: each may cost a few cache misses.
const TRIES: usize = 8;

/// Packets of others in a turn that make the worker busy: it did not get through what had come with one burst.
const BUSY: usize = BURST;
/// Strangers whom a busy worker hears in a turn. As long as it takes for a burst of sessions' packets, or less.
const HEARD_WHEN_BUSY: usize = 16;

/// What a worker does for those who may not exist: it answers SYNs with cookies, and gives up sessions for new ones.
/// With little else to do it does so for all; in a turn behind one that was full of others, for a few. So a flood costs
/// sessions no more than it takes to see what it is.
#[derive(Debug, Default)]
pub struct Strangers {
    /// Packets of this turn.
    packets: usize,
    /// Strangers among them.
    asked: usize,
    /// How many are heard in this turn.
    heard_at_most: usize,
}

impl Strangers {
    /// A turn begins.
    pub fn begin_turn(&mut self) {
        let others = self.packets.saturating_sub(self.asked);
        self.heard_at_most = if others >= BUSY { HEARD_WHEN_BUSY } else { usize::MAX };
        (self.packets, self.asked) = (0, 0);
    }

    /// So many packets have come.
    pub fn note(&mut self, packets: usize) {
        self.packets += packets;
    }

    /// One of them is a stranger's. False: there is no time for him.
    #[must_use]
    pub fn hear(&mut self) -> bool {
        self.asked += 1;
        self.asked <= self.heard_at_most
    }
}

/// The first packet of a session's other direction. TCP has to do more than answer ([`progressed`]).
#[cold]
pub fn answered<A: Address>(table: &mut FlowTable<A>, handle: Handle, timers: &Timers) {
    let flow = table.flow_mut(handle);
    flow.flags |= flow_flags::SEEN;
    if flow.tuple.protocol != protocol::TCP {
        table.changes.note(handle.session());
        let due = due(table, handle.session(), timers);
        table.rearm(handle.session(), due);
    }
}

/// A TCP session stands elsewhere than before.
#[cold]
pub fn progressed<A: Address>(table: &mut FlowTable<A>, session: u32, half_open: &HalfOpen) {
    let is_counted = table.flags(session) & record_flags::HALF_OPEN_COUNTED != 0;
    if is_counted && !table.tcp(session).is_half_open() {
        let [forward, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
        half_open.remove(forward.new_dst.ip(), reply.tuple.vrf);
        *table.flags_mut(session) &= !record_flags::HALF_OPEN_COUNTED;
    }
}

/// Gives up the session of `classes` that has waited longest of those that may go. False: there is none among the first few.
#[cold]
pub fn make_room<A: Address>(
    table: &mut FlowTable<A>,
    nat: &mut Holdings,
    classes: &[Class],
    timers: &Timers,
    now: Nanos,
    counters: &WorkerCounters,
) -> bool {
    for _ in 0..TRIES {
        let Some(session) = table.oldest(classes) else { return false };
        if table.class_of(session) == Class::Answered {
            // TCP that was picked up in the middle, and did not tell.
            table.rearm(session, due(table, session, timers));
        } else if keeps_a_mapping(table, nat, session) {
            let due = due(table, session, timers);
            table.pass_over(session, proxy::next_asked(table, session).map_or(due, |next| next.min(due)));
        } else {
            super::end_as(table, nat, session, SessionEvent::Recycled, now, counters);
            add(&counters.sessions_recycled, 1);
            return true;
        }
    }
    false
}

/// True if a mapping would go with the session. Who else uses a borrowed one, its lender knows.
fn keeps_a_mapping<A: Address>(table: &FlowTable<A>, nat: &Holdings, session: u32) -> bool {
    let record = table.record(session);
    record.flags & record_flags::BORROWED != 0
        || record.mappings().any(|id| nat.mapping_at(id).is_some_and(|mapping| mapping.sessions <= 1))
}

impl Flows {
    /// Gives up the TCP connection of either family that has been opening longest. False: none may go.
    pub fn make_room_among_opening(
        &mut self,
        timers: &Timers,
        now: Nanos,
        counters: &WorkerCounters,
    ) -> bool {
        let Flows { v4, v6, nat, .. } = self;
        let of_v4 = v4.oldest(&Class::OPENING).map(|session| v4.turn_of(session));
        let of_v6 = v6.oldest(&Class::OPENING).map(|session| v6.turn_of(session));
        let v6_first = of_v6.is_some_and(|v6| of_v4.is_none_or(|v4| v6 < v4));
        match v6_first {
            true => make_room(v6, nat, &Class::OPENING, timers, now, counters),
            false => make_room(v4, nat, &Class::OPENING, timers, now, counters),
        }
    }

    /// TCP connections that open, of both families.
    pub fn opening(&self) -> u32 {
        self.v4.opening() + self.v6.opening()
    }

    /// What each worker gets of a node's limit: as of its sessions, a quarter more than its part.
    pub fn share_of(&self, limit: u32) -> u32 {
        match &self.nat.steering {
            None => limit,
            Some(steering) => {
                let share = limit.div_ceil(steering.workers().into());
                share.saturating_add(share / 4)
            }
        }
    }
}
