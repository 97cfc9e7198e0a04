//! How commands read and end what belongs to a worker: sessions, mappings, counts of both.
//!
//! Nobody but the worker touches its tables. A reader lays a [`Request`] on the worker's [`Desk`]; the worker does
//! a little of it per turn ([`Reading::step`]) and lays copies of what it found into a bounded queue, which the
//! reader empties. When the queue is full the worker goes on with packets and looks again at its next turn: no
//! lock, no allocation, nothing to wait for. Under load this takes at most [`SHARE`] of its time.
//!
//! A reading goes by number: a session that lives from its beginning to its end is seen exactly once, one that
//! begins or ends meanwhile once or not at all. It ends at the highest number there was when it began, or at its
//! [`Request::until`], whether or not the reader still lives; [`End::next`] says where another may go on.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use crate::flow::nat::{Bindings, MappingView};
use crate::flow::scan::{Filter, MappingFilter, SessionView};
use crate::flow::{self, Address, FlowTable, Flows, Timers};
use crate::telemetry::{WorkerCounters, add};
use crate::time::Nanos;

/// Share of a loaded worker's time, in percent.
pub const SHARE: u64 = 3;
/// What looking at one session takes: two flows and a record, read in order, so that the CPU fetches them ahead.
const STEP: Duration = Duration::from_nanos(40);
/// Steps of a turn in which no packet came: about 10 microseconds, far less than the rings hold.
const IDLE_STEPS: u32 = 256;
/// Most steps of a turn in which packets came.
const LOADED_STEPS: u32 = 64;
/// What ending a session costs, in steps: index, wheel and mappings lie all over the memory.
const END_STEPS: u32 = 16;
/// What copying one out costs, in steps.
const COPY_STEPS: u32 = 2;

/// Copies that wait for the reader.
const QUEUE: usize = 512;
/// Requests that wait for the worker.
const REQUESTS: usize = 4;

/// What a worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Show sessions, at most so many.
    List(Filter, u32),
    /// Count sessions.
    Count(Filter),
    /// End sessions.
    End(Filter),
    /// Bring the rules' counters up to date ([`flow::settle`]).
    Settle,
    /// Show NAT mappings, at most so many.
    Mappings(MappingFilter, u32),
    /// Count hosts and mappings of the pools in slots below this, in the worker's counters.
    Pools(u32),
}

/// A table of a worker, and the number to go on from in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the table: sessions of IPv4, of IPv6; NAT pages and hosts.
    pub table: u8,
    /// Number in it.
    pub number: u32,
}

/// A request to one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Tells it from others.
    pub id: u64,
    /// What is to be done.
    pub task: Task,
    /// Where to begin.
    pub from: Place,
    /// When to stop, done or not.
    pub until: Nanos,
}

/// One thing found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A session.
    Session(SessionView),
    /// A mapping.
    Mapping(MappingView),
}

/// How a reading ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Sessions or mappings that matched.
    pub matched: u64,
    /// Where to go on; `None`: all has been seen.
    pub next: Option<Place>,
}

/// Where a worker and its readers meet.
#[derive(Debug)]
pub struct Desk {
    requests: ArrayQueue<Request>,
    found: ArrayQueue<(u64, Found)>,
    ended: ArrayQueue<(u64, End)>,
    /// The number of the last request. Held by whoever reads: one at a time. Workers never look at it.
    last: Mutex<u64>,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            requests: ArrayQueue::new(REQUESTS),
            found: ArrayQueue::new(QUEUE),
            ended: ArrayQueue::new(REQUESTS),
            last: Mutex::new(0),
        }
    }
}

/// The worker has not answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker does not answer; is its CPU taken away?")]
pub struct NoAnswer;

impl Desk {
    /// True if a request waits.
    pub fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Has the worker do `task`, and takes what it finds. `wake` wakes the worker if it sleeps. The worker stops at
    /// `until`; how it ended comes within `patience` after.
    pub fn read(
        &self,
        task: Task,
        from: Place,
        until: Nanos,
        patience: Duration,
        wake: impl Fn(),
        mut take: impl FnMut(Found),
    ) -> Result<End, NoAnswer> {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *last += 1;
        let id = *last;
        // What an earlier reader left behind is nobody's.
        while self.ended.pop().is_some() {}
        while self.found.pop().is_some() {}
        self.requests.push(Request { id, task, from, until }).map_err(|_| NoAnswer)?;
        wake();
        let mut quiet_since = Instant::now();
        loop {
            // How it ended before what was found: behind the end nothing more comes.
            let ended = self.ended.pop().filter(|(of, _)| *of == id);
            let mut found_any = false;
            while let Some((of, found)) = self.found.pop() {
                if of == id {
                    take(found);
                    found_any = true;
                }
            }
            match ended {
                Some((_, end)) => return Ok(end),
                None if found_any => {
                    // It may have gone to sleep over a full queue.
                    wake();
                    quiet_since = Instant::now();
                }
                None if quiet_since.elapsed() > patience => return Err(NoAnswer),
                None => std::thread::sleep(Duration::from_micros(20)),
            }
        }
    }
}

/// Tables there are: sessions of IPv4 and IPv6, NAT pages or mappings, NAT hosts.
const TABLES: usize = 4;

struct Running {
    request: Request,
    at: Place,
    /// By table: numbers to look at are below.
    ends: [u32; TABLES],
    matched: u64,
    /// Something was looked at: whoever asks again and again comes to the end.
    looked: bool,
}

/// The worker's side.
#[derive(Default)]
pub struct Reading {
    running: Option<Running>,
    /// When the last step was, for the share of time.
    last: Nanos,
    credit: Duration,
}

/// What a step works on: all of it the worker's.
pub struct Owned<'a> {
    /// Its desk.
    pub desk: &'a Desk,
    /// Its sessions.
    pub flows: &'a mut Flows,
    /// Idle times.
    pub timers: &'a Timers,
    /// Its counters.
    pub counters: &'a WorkerCounters,
}

impl Reading {
    /// True while a request is being worked at.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Does a little. True if it got anywhere: it has not if it waits for the reader.
    pub fn step(&mut self, owned: &mut Owned<'_>, now: Nanos, is_loaded: bool) -> bool {
        if self.running.is_none() {
            let Some(request) = owned.desk.requests.pop() else { return false };
            self.running = Some(Running::new(request, owned));
            (self.last, self.credit) = (now, Duration::ZERO);
        }
        let Some(running) = &mut self.running else { return false };
        let passed = now.since(self.last);
        self.last = now;
        self.credit = (self.credit + passed * SHARE as u32 / 100).min(STEP * LOADED_STEPS);
        let mut steps =
            if is_loaded { (self.credit.as_nanos() / STEP.as_nanos()) as u32 } else { IDLE_STEPS };
        let (given, mut waits) = (steps, false);
        while steps > 0 && !waits && !running.is_over() {
            match running.one(owned, now) {
                Some(cost) => steps = steps.saturating_sub(cost),
                None => waits = true,
            }
        }
        self.credit = self.credit.saturating_sub(STEP * (given - steps));
        let is_late = now >= running.request.until && (running.looked || waits);
        if running.is_over() || is_late {
            let end = End { matched: running.matched, next: running.next() };
            owned.desk.ended.force_push((running.request.id, end));
            self.running = None;
            return true;
        }
        steps < given
    }
}

impl Running {
    fn new(request: Request, owned: &Owned<'_>) -> Running {
        let (flows, nat) = (&owned.flows, &owned.flows.nat);
        let ends = match request.task {
            Task::Mappings(..) => [0, 0, nat.mapping_numbers(), 0],
            Task::Pools(_) => [0, 0, nat.pages(), nat.host_entries()],
            Task::List(..) | Task::Count(_) | Task::End(_) | Task::Settle => {
                [flows.v4.highest() + 1, flows.v6.highest() + 1, 0, 0]
            }
        };
        if let Task::Pools(count) = request.task {
            for pool in (0..count as usize).filter_map(|slot| owned.counters.pools.get(slot)) {
                [&pool.hosts, &pool.live, &pool.held].into_iter().for_each(|count| count.store(0, Relaxed));
            }
        }
        let mut running = Running { request, at: request.from, ends, matched: 0, looked: false };
        running.pass_ends();
        running
    }

    fn pass_ends(&mut self) {
        while self.next().is_some_and(|at| at.number >= self.ends[usize::from(at.table)]) {
            self.at = Place { table: self.at.table + 1, number: 0 };
        }
    }

    /// Where it would go on.
    fn next(&self) -> Option<Place> {
        (usize::from(self.at.table) < TABLES).then_some(self.at)
    }

    fn is_over(&self) -> bool {
        let is_full = match self.request.task {
            Task::List(_, most) | Task::Mappings(_, most) => self.matched >= u64::from(most),
            Task::Count(_) | Task::End(_) | Task::Settle | Task::Pools(_) => false,
        };
        is_full || self.next().is_none()
    }

    /// Looks at the next number; `None`: there is no room for what may be found.
    fn one(&mut self, owned: &mut Owned<'_>, now: Nanos) -> Option<u32> {
        let copies = matches!(self.request.task, Task::List(..) | Task::Mappings(..));
        if copies && owned.desk.found.is_full() {
            return None;
        }
        let number = self.at.number;
        let Owned { flows, timers, counters, .. } = owned;
        let (cost, found) = match (self.at.table, self.request.task) {
            (0, task) => session(task, &mut flows.v4, &mut flows.nat, number, now, timers, counters),
            (1, task) => session(task, &mut flows.v6, &mut flows.nat, number, now, timers, counters),
            (2, Task::Mappings(filter, _)) => {
                match flows.nat.mapping_at(number).filter(|view| filter.is(view)) {
                    Some(view) => (COPY_STEPS, Match::Show(Found::Mapping(view))),
                    None => (1, Match::No),
                }
            }
            (2, _) => {
                if let Some((pool, live, held)) = flows.nat.page_use(number)
                    && let Some(pool) = counters.pools.get(usize::from(pool))
                {
                    add(&pool.live, live.into());
                    add(&pool.held, held.into());
                }
                (1, Match::No)
            }
            _ => {
                let pool = flows.nat.pool_of_host(number);
                pool.and_then(|pool| counters.pools.get(usize::from(pool)))
                    .inspect(|pool| add(&pool.hosts, 1));
                (1, Match::No)
            }
        };
        self.matched += u64::from(found != Match::No);
        if let Match::Show(found) = found {
            let pushed = owned.desk.found.push((self.request.id, found));
            pushed.unwrap_or_else(|_| unreachable!("there was room, and nobody else puts anything in"));
        }
        self.at.number += 1;
        self.looked = true;
        self.pass_ends();
        Some(cost)
    }
}

#[derive(PartialEq)]
enum Match {
    No,
    Yes,
    Show(Found),
}

/// Does to one session what is to be done. How many steps it took.
fn session<A: Address>(
    task: Task,
    table: &mut FlowTable<A>,
    nat: &mut Bindings,
    session: u32,
    now: Nanos,
    timers: &Timers,
    counters: &WorkerCounters,
) -> (u32, Match) {
    if !table.is_live(session) {
        return (1, Match::No);
    }
    let view = |filter: &Filter| {
        let view = SessionView::of(table, session, timers);
        filter.is(&view).then_some(view)
    };
    match task {
        Task::List(filter, _) => match view(&filter) {
            Some(view) => (COPY_STEPS, Match::Show(Found::Session(view))),
            None => (1, Match::No),
        },
        Task::Count(filter) => (1, if view(&filter).is_some() { Match::Yes } else { Match::No }),
        Task::End(filter) if view(&filter).is_some() => {
            flow::end(table, nat, session, now, counters);
            (END_STEPS, Match::Yes)
        }
        Task::End(_) => (1, Match::No),
        Task::Settle => {
            flow::settle(table, session, counters);
            (1, Match::Yes)
        }
        Task::Mappings(..) | Task::Pools(_) => unreachable!("these have no session tables"),
    }
}
