//! Review: after a change of policy, routes or interfaces, every session is decided again, also one that is idle
//! (DESIGN.md section 3). A packet of a session does that by itself; what has none is looked at here, a few at a time.

use crate::flow::{FlowTable, Flows};
use crate::pipeline::Context;
use crate::pipeline::session::{self, Fate, Table};
use crate::tables::Tables;
use crate::telemetry::add;

/// Sessions decided in a turn that has nothing else to do, and in one that has packets: with a burst of 64 these take a
/// tenth of the time.
const DECIDED: (usize, usize) = (64, 1);
/// Places looked at in a turn; most may be empty, or decided by a packet already.
const LOOKED_AT: (usize, usize) = (4096, 128);

/// Where the review stands.
#[derive(Debug, Default)]
pub struct Review {
    /// The epoch that all sessions are of, once `next` is past the last.
    epoch: u32,
    /// The next to look at, of both families one after the other.
    next: u32,
    /// A review is under way.
    is_on: bool,
    /// The generation that was noted last.
    noted: u64,
}

impl Review {
    /// True if [`Review::step`] has something to do.
    #[inline]
    pub fn is_due(&self, tables: &Tables) -> bool {
        self.noted != tables.generation
    }

    /// Goes on with the review, which new tables begin. `busy`: packets wait. True if there is more to do.
    pub fn step(&mut self, busy: bool, cx: &Context<'_>, flows: &mut Flows) -> bool {
        let epoch = cx.tables.flow_epoch();
        if self.epoch != epoch {
            *self = Review { epoch, next: 1, is_on: true, noted: self.noted };
        }
        if self.is_on {
            let pick = |(idle, busy_turn): (usize, usize)| if busy { busy_turn } else { idle };
            self.is_on = self.go_on(pick(DECIDED), pick(LOOKED_AT), cx, flows);
        }
        if !self.is_on {
            self.noted = cx.tables.generation;
            cx.counters.converged.note(self.noted);
        }
        self.is_on
    }

    /// False: that was the last.
    fn go_on(&mut self, mut decisions: usize, looks: usize, cx: &Context<'_>, flows: &mut Flows) -> bool {
        for _ in 0..looks {
            let of_v4 = flows.v4.highest();
            let fate = if self.next <= of_v4 {
                look::<u32>(self.next, cx, flows)
            } else if self.next - of_v4 <= flows.v6.highest() {
                look::<u128>(self.next - of_v4, cx, flows)
            } else {
                return false;
            };
            self.next += 1;
            let counter = match fate {
                Fate::Current => continue,
                Fate::Kept => &cx.counters.sessions_kept,
                Fate::Moved => &cx.counters.sessions_moved,
                Fate::Condemned => &cx.counters.sessions_condemned,
            };
            add(counter, 1);
            decisions -= 1;
            if decisions == 0 {
                break;
            }
        }
        true
    }
}

fn look<A: Table>(session: u32, cx: &Context<'_>, flows: &mut Flows) -> Fate {
    let table: &FlowTable<A> = A::shared(flows);
    if table.is_live(session) { session::review::<A>(session, cx, flows) } else { Fate::Current }
}
