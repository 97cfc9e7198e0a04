//! The worker's part: what has changed in a turn is written at its end, and all sessions are looked at from time to time.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use super::Journal;
use crate::flow::flow_record::{FlowRecord, InTable};
use crate::flow::{Flows, Tick};
use crate::ha::sync::wire;
use crate::pipeline::Table;
use crate::time::Nanos;

/// Time between two looks at all sessions: by so much what is read may be behind.
const REFRESH: Duration = Duration::from_secs(30);
/// Sessions looked at in a turn that has nothing else to do, and in one that has packets.
const LOOKED_AT: (usize, usize) = (512, 8);

/// What it is in the middle of.
#[derive(Debug)]
pub struct Keeper {
    /// A record on its way: no allocation for each.
    bytes: Vec<u8>,
    /// The look under way, by the next session, of both tables one after the other; and for whom it is.
    look: Option<(u32, u32)>,
    /// The last look that was asked for.
    asked: u32,
    /// Something was not noted: all has to be looked at once more.
    is_behind: bool,
    due: Nanos,
    kept: u64,
    /// Highest number of a session that was kept, of both tables.
    highest: [u32; 2],
}

impl Default for Keeper {
    fn default() -> Keeper {
        let bytes = Vec::with_capacity(super::layout::MOST_BYTES);
        Keeper {
            bytes,
            look: None,
            asked: 0,
            is_behind: false,
            due: Nanos(u64::MAX),
            kept: 0,
            highest: [0; 2],
        }
    }
}

impl Keeper {
    /// When something is due without a packet.
    pub fn next_deadline(&self) -> Nanos {
        if self.look.is_some() || self.is_behind { Nanos(0) } else { self.due }
    }

    /// True if it keeps what changes.
    pub fn has_begun(&self) -> bool {
        self.due != Nanos(u64::MAX)
    }

    /// It begins, with nothing kept.
    #[cold]
    pub fn begin(&mut self, now: Nanos, flows: &mut Flows) {
        flows.v4.begin_keeping();
        flows.v6.begin_keeping();
        self.due = now.plus(REFRESH);
    }

    /// Changes have got lost.
    pub fn is_overrun(&mut self) {
        self.is_behind = true;
    }

    /// Writes how it stands with a session: whatever has changed, and if there is none any more.
    pub fn keep<A: Table>(
        &mut self,
        session: u32,
        (id, journal): (usize, &Journal),
        now: Tick,
        flows: &mut Flows,
    ) {
        let (table, nat) = A::table_and_holdings(flows);
        let family = if A::CROSSES { InTable::V6 } else { InTable::V4 };
        let record = FlowRecord::of(table, nat, session, now);
        let was_kept = table.is_kept(session);
        let is_kept = record.is_some_and(|mut record| {
            let last_seen = Tick(now.0.saturating_sub(record.idle));
            // When it began, instead of how long ago: it is read later.
            (record.idle, record.age) = (0, now.0.saturating_sub(record.age));
            self.bytes.clear();
            wire::emit_record(&record, &mut self.bytes);
            let highest = &mut self.highest[usize::from(A::CROSSES)];
            if session > *highest {
                *highest = session;
                journal.note_highest(id, family, session);
            }
            journal.place(id, family, session).store(&self.bytes, last_seen)
        });
        if was_kept && !is_kept {
            journal.place(id, family, session).clear();
        }
        if was_kept != is_kept {
            table.set_kept(session, is_kept);
            self.kept = if is_kept { self.kept + 1 } else { self.kept.saturating_sub(1) };
        }
    }

    /// Goes on with a look at all sessions, if one is due. True if it got anywhere.
    pub fn step(
        &mut self,
        (id, journal): (usize, &Journal),
        busy: bool,
        now: Nanos,
        flows: &mut Flows,
    ) -> bool {
        let progress = &journal.workers[id];
        progress.kept.store(self.kept, Relaxed);
        let Some((mut next, asked)) = self.look else {
            let asked = progress.asked.load(Acquire);
            if asked != self.asked || self.is_behind || self.due <= now {
                (self.asked, self.is_behind) = (asked, false);
                self.look = Some((1, asked));
                self.due = now.plus(REFRESH);
                return true;
            }
            return false;
        };
        let tick = Tick::of(now);
        for _ in 0..if busy { LOOKED_AT.1 } else { LOOKED_AT.0 } {
            let of_v4 = flows.v4.highest();
            if next <= of_v4 {
                self.keep::<u32>(next, (id, journal), tick, flows);
            } else if next - of_v4 <= flows.v6.highest() {
                self.keep::<u128>(next - of_v4, (id, journal), tick, flows);
            } else {
                progress.kept.store(self.kept, Relaxed);
                progress.done.store(asked, Release);
                self.look = None;
                return true;
            }
            next += 1;
        }
        self.look = Some((next, asked));
        true
    }
}
