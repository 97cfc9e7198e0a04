//! How commands read and end what belongs to a worker: sessions, mappings, counts of both.
//!
//! Nobody but the worker touches its tables. A reader lays a [`Request`] on the worker's [`Desk`]; the worker does
//! a little of it per turn ([`Reading::step`]) and lays copies of what it found into a bounded queue, which the
//! reader empties. When the queue is full the worker goes on with packets and looks again at its next turn: no
//! lock, no allocation, nothing to wait for. Under load it takes about [`SHARE`] of its time, counted in steps of an
//! assumed cost: the clock is read once per turn.
//!
//! A reading goes by number: a session that lives from its beginning to its end is seen exactly once, one that
//! begins or ends meanwhile once or not at all. It ends at the highest number there was when it began, or at its
//! [`Request::until`], whether or not the reader still lives; [`End::next`] says where another may go on.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;

use crate::flow::nat::MappingView;
use crate::flow::scan::{Filter, MappingFilter, SessionView, Sought};
use crate::flow::standing::Standing;
use crate::flow::{self, Address, FlowTable, Flows, Timers};
use crate::tables::balance::Backends;
use crate::telemetry::{WorkerCounters, add};
use crate::time::Nanos;

/// Share of a loaded worker's time, in percent.
pub const SHARE: u64 = 3;
/// What looking at one session is taken to last: two flows and a record, read in order. `cost_of_a_step` measures
/// 130 ns (settling) to 400 ns (a filter) without full optimisation and on a shared CPU.
const STEP: Duration = Duration::from_nanos(150);
/// Steps of a turn in which no packet came: about 10 microseconds, far less than the rings hold.
const IDLE_STEPS: u32 = 64;
/// Most steps of a turn in which packets came, however long none was made.
const LOADED_STEPS: u32 = 64;
/// What ending a session costs, in steps: index, wheel and mappings lie all over the memory.
const END_STEPS: u32 = 12;
/// What copying one out costs, in steps: `softgate bench --read` measures 200 ns among 64,000, 350 ns among 4 million.
const COPY_STEPS: u32 = 3;
/// The same with what a session stands on, which is as much again; all of it lies in the lines that are read anyway, but for
/// the peers of a mapping.
const STANDING_STEPS: u32 = 2 * COPY_STEPS;
/// A session is fetched so many before its turn.
const AHEAD: u32 = 2;

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
    /// Show the session and the mapping of one packet.
    Find(Sought),
    /// Show what sessions stand on.
    Standings,
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
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// A session.
    Session(SessionView),
    /// A mapping.
    Mapping(MappingView),
    /// A session, and what it stands on.
    Standing(SessionView, Standing),
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
    /// Time it may take, in nanoseconds; below 0 what it took too much.
    credit: i64,
}

/// What a step works on: all of it the worker's.
pub struct Owned<'a> {
    /// Its desk.
    pub desk: &'a Desk,
    /// Its sessions.
    pub flows: &'a mut Flows,
    /// Idle times.
    pub timers: &'a Timers,
    /// The backends of services.
    pub backends: &'a Backends,
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
            (self.last, self.credit) = (now, 0);
        }
        let Some(running) = &mut self.running else { return false };
        let passed = now.since(self.last);
        self.last = now;
        const STEP_NS: i64 = STEP.as_nanos() as i64;
        let earned = (passed * SHARE as u32 / 100).as_nanos().min(1 << 40) as i64;
        self.credit = (self.credit + earned).min(STEP_NS * i64::from(LOADED_STEPS));
        let given = if is_loaded { (self.credit / STEP_NS).max(0) as u32 } else { IDLE_STEPS };
        let (mut taken, mut waits) = (0, false);
        while taken < given && !waits && !running.is_over() {
            match running.one(owned, now) {
                Some(cost) => taken += cost,
                None => waits = true,
            }
        }
        self.credit -= STEP_NS * i64::from(taken);
        if !is_loaded {
            self.credit = self.credit.max(0);
        }
        let is_late = now >= running.request.until && (running.looked || waits);
        if running.is_over() || is_late {
            let end = End { matched: running.matched, next: running.next() };
            owned.desk.ended.force_push((running.request.id, end));
            self.running = None;
            return true;
        }
        taken > 0
    }
}

impl Running {
    fn new(request: Request, owned: &Owned<'_>) -> Running {
        let (flows, nat) = (&owned.flows, &owned.flows.nat);
        let ends = match request.task {
            Task::Mappings(..) => [0, 0, nat.mapping_numbers(), 0],
            Task::Pools(_) => [0, 0, nat.pages(), nat.host_entries()],
            // Its session, then its mapping.
            Task::Find(_) => [2, 0, 0, 0],
            Task::List(..) | Task::Count(_) | Task::End(_) | Task::Settle | Task::Standings => {
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
            Task::Count(_)
            | Task::End(_)
            | Task::Settle
            | Task::Pools(_)
            | Task::Find(_)
            | Task::Standings => false,
        };
        is_full || self.next().is_none()
    }

    /// Looks at the next number; `None`: there is no room for what may be found.
    fn one(&mut self, owned: &mut Owned<'_>, now: Nanos) -> Option<u32> {
        let copies = matches!(
            self.request.task,
            Task::List(..) | Task::Mappings(..) | Task::Find(_) | Task::Standings
        );
        if copies && owned.desk.found.is_full() {
            return None;
        }
        let number = self.at.number;
        let Owned { flows, timers, backends, counters, .. } = owned;
        let known = (*timers, *backends);
        if let Task::Find(sought) = self.request.task {
            let found = match number {
                0 => sought.session(flows, known.0, known.1).map(Found::Session),
                _ => sought.mapping(flows).map(Found::Mapping),
            };
            return Some(self.seen(owned, COPY_STEPS, found.map_or(Match::No, Match::Show)));
        }
        match self.at.table {
            0 => flows.v4.prefetch_session(number.saturating_add(AHEAD)),
            1 => flows.v6.prefetch_session(number.saturating_add(AHEAD)),
            _ => {}
        }
        let (cost, found) = match (self.at.table, self.request.task) {
            (0, task) => session(task, &mut flows.v4, &mut flows.nat, number, now, known, counters),
            (1, task) => session(task, &mut flows.v6, &mut flows.nat, number, now, known, counters),
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
        Some(self.seen(owned, cost, found))
    }

    /// Notes what was found at a number, and goes on.
    fn seen(&mut self, owned: &Owned<'_>, cost: u32, found: Match) -> u32 {
        self.matched += u64::from(!matches!(found, Match::No));
        if let Match::Show(found) = found {
            let pushed = owned.desk.found.push((self.request.id, found));
            pushed.unwrap_or_else(|_| unreachable!("there was room, and nobody else puts anything in"));
        }
        self.at.number += 1;
        self.looked = true;
        self.pass_ends();
        cost
    }
}

#[expect(clippy::large_enum_variant, reason = "it is handed on at once, and not kept")]
enum Match {
    No,
    Yes,
    Show(Found),
}

/// Does to one session what is to be done. How many steps it took.
fn session<A: Address>(
    task: Task,
    table: &mut FlowTable<A>,
    nat: &mut flow::Holdings,
    session: u32,
    now: Nanos,
    (timers, backends): (&Timers, &Backends),
    counters: &WorkerCounters,
) -> (u32, Match) {
    if !table.is_live(session) {
        return (1, Match::No);
    }
    let view = |filter: &Filter| {
        let view = SessionView::of(table, session, timers, backends);
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
        Task::Standings => {
            let view = SessionView::of(table, session, timers, backends);
            let standing = Standing::of(table, nat, session);
            (STANDING_STEPS, Match::Show(Found::Standing(view, standing)))
        }
        Task::Mappings(..) | Task::Pools(_) | Task::Find(_) => unreachable!("these have no session tables"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;
    use crate::flow::nat::{self, BlockClaims, Inside, Pool, PoolSpec};
    use crate::flow::{Capacity, Flow, Handle, Record, Tick, Tuple};
    use crate::packet::hash::Key;
    use crate::packet::view::protocol;
    use crate::tables::policy::Policy;
    use zerocopy::FromZeros as _;

    const NEVER: Nanos = Nanos(u64::MAX);

    struct Bench {
        desk: Desk,
        flows: Flows,
        policy: Policy,
        counters: WorkerCounters,
        claims: Arc<BlockClaims>,
        reading: Reading,
    }

    fn bench() -> Bench {
        let claims = Arc::new(BlockClaims::new(4, Key::default()));
        let capacity = Capacity { sessions: 4096, populate: false };
        let counters = WorkerCounters::new(0);
        counters.rules.reserve(4);
        counters.pools.reserve(1);
        Bench {
            desk: Desk::default(),
            flows: Flows::new(0, capacity, Arc::clone(&claims), None, Key::default()).expect("memory"),
            policy: Policy::none(),
            counters,
            claims,
            reading: Reading::default(),
        }
    }

    /// A session from this source, of rule 1.
    fn add_session<A: Address>(table: &mut FlowTable<A>, src: A, dst: A, mapping: Option<u32>) -> u32 {
        let mut forward = Flow::<A>::new_zeroed();
        let (src_port, dst_port, protocol) = (1000, 53, protocol::UDP);
        forward.tuple = Tuple { src, dst, src_port, dst_port, vrf: 0, protocol, zero: 0 };
        (forward.new_src, forward.new_dst) = (src, dst);
        (forward.new_src_port, forward.new_dst_port) = (src_port, dst_port);
        let mut reply = forward;
        reply.tuple = forward.tuple.reversed(0);
        (reply.new_src, reply.new_dst) = (dst, src);
        let mapping = Record::name(mapping);
        let record = Record { rule: 1, mapping, ..Record::default() };
        table.insert([forward, reply], record, Tick(1000)).expect("room")
    }

    impl Bench {
        fn with(mut self, v4: u32, v6: u32) -> Bench {
            for n in 1..=v4 {
                add_session(&mut self.flows.v4, 0x0a00_0000 + n, 0xcb00_7101, None);
            }
            for n in 1..=v6 {
                let (src, dst) = (0x2001_0db8_u128 << 96, 0x2001_0db8_0001_u128 << 80);
                add_session(&mut self.flows.v6, src + u128::from(n), dst, None);
            }
            self
        }

        fn step(&mut self, now: Nanos, is_loaded: bool) -> bool {
            let Bench { desk, flows, policy, counters, reading, .. } = self;
            let (timers, backends) = (&policy.timers, &Backends::default());
            let mut owned = Owned { desk, flows, timers, backends, counters };
            reading.step(&mut owned, now, is_loaded)
        }

        fn post(&mut self, id: u64, task: Task, until: Nanos) {
            let from = Place::default();
            self.desk.requests.push(Request { id, task, from, until }).expect("room");
        }

        fn take(&mut self) -> Vec<Found> {
            std::iter::from_fn(|| self.desk.found.pop()).map(|(_, found)| found).collect()
        }
    }

    fn source(found: &Found) -> u128 {
        let Found::Session(view) = found else { panic!("a session: {found:?}") };
        view.src
    }

    /// What a reader on another thread gets, page by page, while the worker takes its turns.
    fn read_all(bench: Bench, page: u32) -> (Bench, Vec<Found>) {
        let (stop, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
        let Bench { desk, mut flows, policy, counters, claims, mut reading } = bench;
        let mut found = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let (timers, backends) = (&policy.timers, &Backends::default());
                    let (desk, flows, counters) = (&desk, &mut flows, &counters);
                    let mut owned = Owned { desk, flows, timers, backends, counters };
                    reading.step(&mut owned, Nanos(1), turns.fetch_add(1, Relaxed).is_multiple_of(2));
                    std::thread::yield_now();
                }
            });
            let mut from = Place::default();
            loop {
                let task = Task::List(Filter::default(), page);
                let took = found.len();
                let end = desk.read(task, from, NEVER, Duration::from_secs(20), || (), |new| found.push(new));
                let end = end.expect("it answers");
                assert_eq!(end.matched as usize, found.len() - took);
                match end.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
            stop.store(true, Relaxed);
        });
        (Bench { desk, flows, policy, counters, claims, reading }, found)
    }

    #[test]
    fn every_session_is_seen_once_whatever_the_page() {
        for page in [u32::MAX, 100, 1] {
            let count = if page == 1 { 20 } else { 1500 };
            let (bench, found) = read_all(bench().with(count, 30), page);
            assert_eq!(found.len(), count as usize + 30);
            let different: BTreeSet<u128> = found.iter().map(source).collect();
            assert_eq!(different.len(), found.len());
            assert_eq!(bench.flows.len(), found.len());
        }
    }

    #[test]
    fn ended_sessions_do_not_appear() {
        let mut bench = bench().with(10, 0);
        for session in [2, 5, 10] {
            bench.flows.v4.remove(session);
        }
        let (_, found) = read_all(bench, u32::MAX);
        let numbers: Vec<u128> = found.iter().map(|found| source(found) & 0xff).collect();
        assert_eq!(numbers, [1, 3, 4, 6, 7, 8, 9]);
    }

    #[test]
    fn a_full_queue_loses_nothing_and_holds_nobody_up() {
        let mut bench = bench().with(1200, 0);
        bench.post(1, Task::List(Filter::default(), u32::MAX), NEVER);
        while bench.step(Nanos(1), false) {}
        assert!(bench.desk.found.is_full() && bench.reading.is_busy());
        assert!(!bench.step(Nanos(1), false), "it goes on with packets");
        let mut found = bench.take();
        while bench.reading.is_busy() {
            bench.step(Nanos(1), false);
            found.extend(bench.take());
        }
        assert_eq!(found.iter().map(source).collect::<BTreeSet<_>>().len(), 1200);
        assert_eq!(bench.desk.ended.pop(), Some((1, End { matched: 1200, next: None })));
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_reading() {
        let mut bench = bench().with(1200, 0);
        bench.post(1, Task::List(Filter::default(), u32::MAX), Nanos(50));
        bench.post(2, Task::Count(Filter::default()), NEVER);
        while bench.step(Nanos(49), false) {}
        assert!(bench.reading.is_busy());
        assert!(bench.step(Nanos(50), false), "its time is over");
        while bench.step(Nanos(51), false) {}
        assert!(!bench.reading.is_busy());
        let ends: Vec<_> = std::iter::from_fn(|| bench.desk.ended.pop()).collect();
        let next = Some(Place { table: 0, number: 513 });
        assert_eq!(ends, [(1, End { matched: 512, next }), (2, End { matched: 1200, next: None })]);
    }

    #[test]
    fn sessions_that_begin_meanwhile_do_not_keep_it_from_ending() {
        let mut bench = bench().with(600, 0);
        bench.post(1, Task::Count(Filter::default()), NEVER);
        for n in 0..10_u32 {
            add_session(&mut bench.flows.v4, 0x0b00_0000 + n, 0xcb00_7101, None);
            bench.step(Nanos(1), false);
            if n == 0 {
                add_session(&mut bench.flows.v4, 0x0c00_0000, 0xcb00_7101, None);
            }
        }
        let (_, end) = bench.desk.ended.pop().expect("it ended");
        assert!((600..=602).contains(&end.matched), "{end:?}");
    }

    #[test]
    fn under_load_it_takes_its_share_and_no_more() {
        let mut bench = bench().with(4000, 0);
        bench.post(1, Task::Count(Filter::default()), NEVER);
        let turn = Duration::from_micros(10);
        let mut now = Nanos(1);
        for _ in 0..100 {
            bench.step(now, true);
            now = now.plus(turn);
        }
        let seen = bench.reading.running.as_ref().expect("4000 are too many for a millisecond").at.number;
        let allowed = (turn * 100).as_nanos() as u32 * SHARE as u32 / 100 / STEP.as_nanos() as u32;
        assert!(seen <= allowed && seen > allowed * 9 / 10, "{seen} of {allowed}");
    }

    #[test]
    fn under_load_what_takes_longer_is_done_less_often() {
        let mut bench = bench().with(4000, 0);
        bench.post(1, Task::List(Filter::default(), u32::MAX), NEVER);
        let turn = Duration::from_micros(1);
        let mut now = Nanos(1);
        for _ in 0..4000 {
            bench.step(now, true);
            now = now.plus(turn);
        }
        let seen = bench.take().len() as u32;
        let allowed =
            (turn * 4000).as_nanos() as u32 * SHARE as u32 / 100 / (STEP.as_nanos() as u32 * COPY_STEPS);
        assert!(seen <= allowed + 1 && seen > allowed * 9 / 10, "{seen} of {allowed}");
    }

    #[test]
    fn what_is_ended_gives_its_mapping_back_and_is_counted() {
        let mut bench = bench();
        let addr = Ipv4Addr::new(203, 0, 113, 7);
        let spec = PoolSpec::new(0, vec![nat::AddressRange { first: addr, last: addr }]);
        let pool = Pool::compile(&spec, &bench.claims).expect("a pool");
        let inside = |n| Ipv4Addr::from(0x0a00_0000 + n);
        for n in 1..=3 {
            let given = bench.flows.map(
                (&pool, false),
                Inside::of(0, inside(n).into(), protocol::UDP, 1000),
                Nanos(1),
            );
            let mapping = given.expect("a port").id;
            let session = add_session(&mut bench.flows.v4, 0x0a00_0000 + n, 0xcb00_7101, Some(mapping));
            bench.flows.v4.flow_mut(Handle::new(session, 0)).count(100);
            bench.flows.v4.flow_mut(Handle::new(session, 1)).count(11);
        }
        let keyed = crate::neighbours::addr_key(inside(2).into());
        let filter = Filter { src: Some((keyed, keyed)), ..Filter::default() };
        bench.post(1, Task::Settle, NEVER);
        bench.post(2, Task::End(filter), NEVER);
        bench.post(3, Task::Settle, NEVER);
        bench.post(4, Task::Mappings(crate::flow::scan::MappingFilter::default(), 10), NEVER);
        (0..20).for_each(|_| while bench.step(Nanos::from_secs(5), false) {});
        let ends: Vec<u64> =
            std::iter::from_fn(|| bench.desk.ended.pop()).map(|(_, end)| end.matched).collect();
        assert_eq!(ends, [3, 1, 2, 3]);
        assert_eq!((bench.flows.len(), bench.counters.sessions_ended.load(Relaxed)), (2, 1));
        let used = bench.flows.nat.usage();
        assert_eq!((used.live, used.held), (2, 1));
        let held = bench
            .take()
            .into_iter()
            .filter(|found| matches!(found, Found::Mapping(view) if view.sessions == 0));
        assert_eq!(held.count(), 1);
        // Settled before, ended, settled again: each packet once.
        let rule = bench.counters.rules.get(1).expect("reserved");
        assert_eq!((rule.packets.load(Relaxed), rule.bytes.load(Relaxed)), (6, 333));
        bench.post(5, Task::Pools(1), NEVER);
        bench.post(6, Task::Pools(1), NEVER);
        (0..20).for_each(|_| while bench.step(Nanos::from_secs(5), false) {});
        let pool = bench.counters.pools.get(0).expect("reserved");
        let counted = [&pool.hosts, &pool.live, &pool.held].map(|count| count.load(Relaxed));
        assert_eq!(counted, [3, 2, 1]);
    }

    #[test]
    #[ignore = "a measurement"]
    fn cost_of_a_step() {
        const SESSIONS: u32 = 500_000;
        let mut bench = bench();
        let capacity = Capacity { sessions: SESSIONS, populate: true };
        bench.flows =
            Flows::new(0, capacity, Arc::clone(&bench.claims), None, Key::default()).expect("memory");
        let mut bench = bench.with(SESSIONS, 0);
        let nobody = Filter { rule: Some(7), ..Filter::default() };
        for task in [Task::Count(nobody), Task::Settle, Task::End(nobody), Task::End(Filter::default())] {
            let begun = Instant::now();
            bench.post(1, task, NEVER);
            while bench.step(Nanos(1), false) {}
            let each = begun.elapsed().as_nanos() as f64 / f64::from(SESSIONS);
            println!("{each:.1} ns a session, {} a turn: {task:?}", IDLE_STEPS);
        }
    }
}
