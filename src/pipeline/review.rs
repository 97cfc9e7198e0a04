//! Review: after a change of policy, routes or interfaces, every session is decided again, also one that is idle
//! (DESIGN.md section 3). A packet of a session does that by itself; what has none is looked at here, a few at a time. After a
//! change that is noted by addresses ([`crate::tables::news`]), only sessions with one of them are decided, for which one
//! cache line of each tells; and where such changes come again and again, there is a rest between two rounds.

use std::time::Duration;

use crate::flow::{FlowTable, Flows, standing};
use crate::pipeline::Context;
use crate::pipeline::session::{self, Fate, Table};
use crate::tables::Tables;
use crate::telemetry::add;
use crate::time::Nanos;

/// Sessions decided in a turn that has nothing else to do, and in one that has packets: with a burst of 64 these take a
/// tenth of the time.
const DECIDED: (usize, usize) = (64, 1);
/// Places looked at in a turn; most may be empty, or decided by a packet already.
const LOOKED_AT: (usize, usize) = (4096, 128);
/// How far ahead the lines of sessions are fetched.
const AHEAD: u32 = 8;
/// About what it takes to see that a change is not about a session, and to decide one, in nanoseconds.
const LOOK_NS: u64 = 10;
const DECISION_NS: u64 = 400;
/// A round for what is noted by addresses has to rest for so many times what the one before took.
const REST: u64 = 31;

/// Where the review stands.
#[derive(Debug, Default)]
pub struct Review {
    /// The epoch and the generation in which this round began: what it finds is decided by the newest tables, and what
    /// it has passed is not older than these. Changes while it goes on begin another one behind it.
    epoch: u32,
    generation: u64,
    /// The newest generation that mattered to everybody then, and the newest that was noted by addresses.
    everybodys: u64,
    news: u64,
    /// If nothing has mattered to everybody since the round before: the notes that it knew of.
    known: Option<u64>,
    /// The next to look at, of both families one after the other.
    next: u32,
    /// A review is under way.
    is_on: bool,
    /// The generation that was noted last.
    noted: u64,
    /// What the round has taken so far, about.
    took_ns: u64,
    /// No round for what is noted by addresses begins before.
    rests_until: Nanos,
    /// One waits for that.
    waits: bool,
}

impl Review {
    /// True if [`Review::step`] has something to do, perhaps not yet.
    #[inline]
    pub fn is_due(&self, tables: &Tables) -> bool {
        self.noted != tables.generation
    }

    /// When it goes on after a rest.
    pub fn next_deadline(&self) -> Nanos {
        if self.waits { self.rests_until } else { Nanos(u64::MAX) }
    }

    /// Goes on with the review, which new tables begin. `busy`: packets wait. True if there is more to do at once.
    pub fn step(&mut self, busy: bool, cx: &Context<'_>, flows: &mut Flows) -> bool {
        if !self.is_on && !self.begin(cx) {
            return false;
        }
        if self.is_on {
            let pick = |(idle, busy_turn): (usize, usize)| if busy { busy_turn } else { idle };
            self.is_on = self.go_on(pick(DECIDED), pick(LOOKED_AT), cx, flows);
        }
        if !self.is_on {
            self.noted = self.generation;
            cx.counters.converged.note(self.noted);
            if self.known.is_some() {
                self.rests_until = cx.now.plus(Duration::from_nanos(self.took_ns * REST));
            }
        }
        self.is_on
    }

    /// Begins a round, if there is anything to look at. False: it has to wait.
    fn begin(&mut self, cx: &Context<'_>) -> bool {
        let Context { tables, now, .. } = cx;
        let (epoch, everybodys) = (tables.flow_epoch(), tables.epochs.newest());
        let is_on = self.epoch != epoch;
        let only_news = everybodys == self.everybodys;
        self.waits = is_on && only_news && *now < self.rests_until;
        if self.waits {
            return false;
        }
        *self = Review {
            epoch,
            generation: tables.generation,
            everybodys,
            news: tables.news.newest(),
            known: (is_on && only_news).then_some(self.news),
            next: 1,
            is_on,
            noted: self.noted,
            took_ns: 0,
            rests_until: self.rests_until,
            waits: false,
        };
        true
    }

    /// False: that was the last.
    fn go_on(&mut self, mut decisions: usize, looks: usize, cx: &Context<'_>, flows: &mut Flows) -> bool {
        for _ in 0..looks {
            let of_v4 = flows.v4.highest();
            let fate = if self.next <= of_v4 {
                look::<u32>(self.next, self.known, cx, flows)
            } else if self.next - of_v4 <= flows.v6.highest() {
                look::<u128>(self.next - of_v4, self.known, cx, flows)
            } else {
                return false;
            };
            self.next += 1;
            self.took_ns += LOOK_NS;
            if count(fate, cx) {
                self.took_ns += DECISION_NS;
                decisions -= 1;
            }
            if decisions == 0 {
                break;
            }
        }
        true
    }
}

/// Counts what has become of a session. False: nothing, it was not decided again.
fn count(fate: Fate, cx: &Context<'_>) -> bool {
    let counter = match fate {
        Fate::Current => return false,
        Fate::Kept => &cx.counters.sessions_kept,
        Fate::Moved => &cx.counters.sessions_moved,
        Fate::Condemned => &cx.counters.sessions_condemned,
    };
    add(counter, 1);
    true
}

/// Decides a session again that was decided by older tables; with `known`, only if anything is about it that was noted
/// after that.
fn look<A: Table>(session: u32, known: Option<u64>, cx: &Context<'_>, flows: &mut Flows) -> Fate {
    let table: &FlowTable<A> = A::shared(flows);
    table.prefetch_flow(session.saturating_add(AHEAD));
    // What has ended is no session, but what is told of it is harmless.
    let is_news = known.is_none_or(|known| {
        let addresses = standing::addresses(table, session);
        addresses.is_none_or(|addresses| cx.tables.news.about(&addresses) > known)
    });
    if is_news && table.is_live(session) { session::review::<A>(session, cx, flows) } else { Fate::Current }
}
