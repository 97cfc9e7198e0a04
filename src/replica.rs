//! Where a worker meets the thread that speaks with the peer: sessions that changed leave by its [`Desk`], those that the
//! peer tells of come in by it.
//!
//! The packet path only notes the numbers of sessions that stand elsewhere than before ([`crate::flow::changes`]); at the
//! end of its turn the worker makes records of them ([`Replication::step`]). What finds no room is lost, the desk says so
//! ([`Desk::take_overrun`]), and the thread asks for a resync: the worker then tells of all its sessions, a few a turn.
//! Nobody waits for anybody.
//!
//! A session that lives for long is told of again in each third of the time that it may be idle, as long as packets come.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

use crate::flow::changes::Gone;
use crate::flow::digest::{Digest, SLICES, Slices};
use crate::flow::flow_record::{FlowRecord, InTable, Name};
use crate::flow::steering::{Loan, Steering};
use crate::flow::{Flows, Handle, Tick, Tuple, flow_flags, timeout};
use crate::journal::{Journal, Keeper};
use crate::neighbours::ip_of;
use crate::packet::hash::Key;
use crate::pipeline::replica::{NotInstalled, Round};
use crate::pipeline::{Context, Table, replica};
use crate::tables::bridge::is_scope;
use crate::telemetry::add;
use crate::time::Nanos;

/// Records that wait for the thread, which takes them every few milliseconds: a worker opens a few hundred sessions in one.
const CHANGES: usize = 8192;
/// Records that wait for the worker.
const INBOUND: usize = 4096;
/// A resync leaves so much room for what changes meanwhile.
const RESYNC_ROOM: usize = CHANGES / 2;
/// Places looked at in a turn that has nothing else to do, and in one that has packets.
const LOOKED_AT: (usize, usize) = (1024, 32);
/// Records installed in a turn, likewise: each is a decision and some cache misses.
const INSTALLED: (usize, usize) = (128, 8);
/// Share of a loaded worker's time that audits may take, in percent.
const AUDIT_SHARE: u64 = 2;
/// What a look at one session is taken to last: two flows and a record, read in order, and two hashes.
const AUDIT_STEP: Duration = Duration::from_nanos(100);
/// Sessions looked at for audits in a turn at most: without packets, and with some, however long none was.
const AUDITED: (usize, usize) = (256, 32);
/// A session is fetched so many before its turn.
const AHEAD: u32 = 2;
/// Sessions passed on to another worker that are remembered: their ends may have come to that one before them.
const PASSED_ON: usize = 64;
/// Time between two looks at all sessions.
const REFRESH: Duration = Duration::from_secs(30);

/// What a worker tells.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// A session is there, or stands elsewhere.
    Is(FlowRecord),
    /// A session has ended.
    Gone(Gone),
    /// All sessions are told of from here on, for the resync of this number.
    Begins(u32),
    /// They have been.
    Resynced(u32),
    /// [`Desk::sums`] are those of the look of this number.
    Summed(u32),
}

/// What a worker is told.
#[derive(Clone, Copy, Debug)]
pub enum Inbound {
    /// To install a session, with the mapping of its source where another worker keeps that.
    Install(FlowRecord, Option<Loan>, bool),
    /// To restore the mapping of a session's source, and pass both on to the worker that has the session.
    Lend(FlowRecord, u8, bool),
    /// To end a session.
    End(Gone),
    /// The peer tells of everything from now on.
    Begin,
    /// It has: to end sessions that it has not told of.
    Sweep,
    /// It has, and began with nothing: what it has not told of is this node's alone.
    Disown,
    /// The peer tells of everything in some slices from now on.
    BeginPart,
    /// It has: to end sessions in them that it has not told of.
    SweepPart(Slices),
}

/// Where one worker and the thread meet.
#[derive(Debug)]
pub struct Desk {
    changes: ArrayQueue<Change>,
    inbound: ArrayQueue<Inbound>,
    is_on: AtomicBool,
    /// What an earlier process has left is installed: the worker takes what it is told, and tells nothing.
    is_restoring: AtomicBool,
    /// The worker has seen that it is on: what it was given before is gone.
    takes: AtomicBool,
    is_overrun: AtomicBool,
    /// Something that the peer has told is lost.
    has_lost: AtomicBool,
    /// Something that the peer has told can be had once tables have what they lack.
    is_early: AtomicBool,
    /// The resync that is wanted; 0: none was.
    wanted: AtomicU32,
    /// Slices that are to be told again, with the number to say it by.
    repairs: ArrayQueue<(u32, Slices)>,
    /// The look that is wanted for an audit; 0: none was.
    audit: AtomicU32,
    /// What it is keyed with, and its sums by slice: there once somebody audits.
    sums: OnceLock<Sums>,
    /// Sessions that would be missed, and those of them that the peer was told of or has told of.
    answered: AtomicU64,
    told: AtomicU64,
}

#[derive(Debug)]
struct Sums {
    key: [AtomicU64; 2],
    by_slice: Box<[AtomicU64]>,
}

impl Default for Desk {
    fn default() -> Desk {
        Desk {
            changes: ArrayQueue::new(CHANGES),
            inbound: ArrayQueue::new(INBOUND),
            is_on: AtomicBool::new(false),
            is_restoring: AtomicBool::new(false),
            takes: AtomicBool::new(false),
            is_overrun: AtomicBool::new(false),
            has_lost: AtomicBool::new(false),
            is_early: AtomicBool::new(false),
            wanted: AtomicU32::new(0),
            repairs: ArrayQueue::new(1),
            audit: AtomicU32::new(0),
            sums: OnceLock::new(),
            answered: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }
}

impl Desk {
    /// Has the worker tell of what changes, or not.
    pub fn set_on(&self, is_on: bool) {
        self.is_on.store(is_on, Relaxed);
    }

    /// Has the worker take what it is told without telling anything, or not.
    pub fn set_restoring(&self, is_restoring: bool) {
        self.is_restoring.store(is_restoring, Relaxed);
    }

    /// Has the worker tell of all its sessions; [`Change::Resynced`] of this number comes behind the last. Not 0.
    pub fn resync(&self, number: u32) {
        self.wanted.store(number, Release);
    }

    /// Has the worker tell of what it has in these slices, between [`Change::Begins`] and [`Change::Resynced`] of this number.
    /// False: it is still at others.
    #[must_use]
    pub fn repair(&self, number: u32, slices: Slices) -> bool {
        self.repairs.push((number, slices)).is_ok()
    }

    /// What audits are keyed with. Before the first of them, and before a peer is spoken with: a worker makes no memory.
    pub fn set_audit_key(&self, key: Key) {
        let zeros = || (0..SLICES).map(|_| AtomicU64::new(0)).collect();
        let sums = self.sums.get_or_init(|| Sums { key: Default::default(), by_slice: zeros() });
        let [first, second] = &sums.key;
        first.store(key.0, Relaxed);
        second.store(key.1, Relaxed);
    }

    /// Has the worker sum up its sessions; [`Change::Summed`] of this number comes behind the last. Not 0.
    pub fn audit(&self, number: u32) {
        self.audit.store(number, Release);
    }

    /// Adds the worker's sums, by slice.
    pub fn add_sums(&self, all: &mut [u64]) {
        let by_slice = self.sums.get().map(|sums| &*sums.by_slice).unwrap_or_default();
        all.iter_mut().zip(by_slice).for_each(|(sum, own)| *sum = sum.wrapping_add(own.load(Relaxed)));
    }

    /// True if something was lost since this was asked last.
    pub fn take_overrun(&self) -> bool {
        self.is_overrun.swap(false, AcqRel)
    }

    /// True if something that the peer has told was lost since this was asked last.
    pub fn take_lost(&self) -> bool {
        self.has_lost.swap(false, AcqRel)
    }

    /// True if something that the peer has told was too early for the tables since this was asked last.
    pub fn take_early(&self) -> bool {
        self.is_early.swap(false, AcqRel)
    }

    /// The next change.
    pub fn next(&self) -> Option<Change> {
        self.changes.pop()
    }

    /// Changes that wait.
    pub fn waiting(&self) -> usize {
        self.changes.len()
    }

    /// Gives the worker something to do; false: it has enough.
    #[must_use]
    pub fn give(&self, inbound: Inbound) -> bool {
        self.inbound.push(inbound).is_ok()
    }

    /// Room for what it may be given: none until the worker knows that there is a peer, since what it finds before that
    /// was told by the one before.
    pub fn room(&self) -> usize {
        if self.takes.load(Acquire) { INBOUND - self.inbound.len() } else { 0 }
    }

    /// True if the worker has something to do.
    pub fn has_inbound(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// Sessions that would be missed, and those of them that both nodes know of.
    pub fn known(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.told.load(Relaxed))
    }
}

/// Gives the workers of a node what its peer tells.
#[derive(Debug)]
pub struct Dispatch<'a> {
    desks: &'a [Desk],
    /// With several workers: who has which session.
    steering: Option<Steering>,
}

impl<'a> Dispatch<'a> {
    /// To these, one of each worker; with several, who has which session.
    pub fn new(desks: &'a [Desk], steering: Option<Steering>) -> Dispatch<'a> {
        Dispatch { desks, steering }
    }

    /// Gives a session to the worker that is to have it: that which has it already, else the one that keeps what is
    /// bound to it. The worker to wake; `None`: it has enough for now.
    ///
    /// `counts`: the peer has told of it in the resync under way, if there is one.
    pub fn install(&self, record: FlowRecord, counts: bool) -> Option<usize> {
        let Some(steering) = &self.steering else {
            return self.give(0, Inbound::Install(record, None, counts));
        };
        let of = |vrf: u16, addr: u128| steering.of_host(vrf, ip_of(addr));
        let tuple = &record.name.tuple;
        let worker = self.has(&record.name).unwrap_or_else(|| match record.bound {
            Some(port) => of(port.inside_vrf, record.new[1]),
            None => of(tuple.vrf, tuple.src),
        });
        match record.mapping.map(|port| of(port.inside_vrf, tuple.src)).filter(|lender| *lender != worker) {
            Some(lender) => self.give(lender.into(), Inbound::Lend(record, worker, counts)),
            None => self.give(worker.into(), Inbound::Install(record, None, counts)),
        }
    }

    /// Ends a session with its worker, or with whichever will have it: the first that has enough for now.
    pub fn end(&self, gone: Gone) -> Result<(), usize> {
        let has = match self.steering {
            Some(_) => self.has(&gone.name),
            None => Some(0),
        };
        match has {
            Some(worker) => self.give(worker.into(), Inbound::End(gone)).map(drop).ok_or(worker.into()),
            None => self.all(Inbound::End(gone)),
        }
    }

    /// The peer tells of everything from now on.
    pub fn begin(&self) -> Result<(), usize> {
        self.all(Inbound::Begin)
    }

    /// It has: ends sessions that it has not told of.
    pub fn sweep(&self) -> Result<(), usize> {
        self.all(Inbound::Sweep)
    }

    /// The same of a peer that began with nothing.
    pub fn disown(&self) -> Result<(), usize> {
        self.all(Inbound::Disown)
    }

    /// The peer tells of everything in some slices from now on.
    pub fn begin_part(&self) -> Result<(), usize> {
        self.all(Inbound::BeginPart)
    }

    /// It has: ends sessions in them that it has not told of.
    pub fn sweep_part(&self, slices: Slices) -> Result<(), usize> {
        self.all(Inbound::SweepPart(slices))
    }

    fn all(&self, inbound: Inbound) -> Result<(), usize> {
        (0..self.desks.len()).try_for_each(|worker| self.give(worker, inbound).map(drop).ok_or(worker))
    }

    fn give(&self, worker: usize, inbound: Inbound) -> Option<usize> {
        self.desks[worker].give(inbound).then_some(worker)
    }

    fn has(&self, name: &Name) -> Option<u8> {
        let steering = self.steering.as_ref()?;
        let Tuple { src, dst, src_port, dst_port, vrf, protocol, .. } = name.tuple;
        match name.table {
            InTable::V6 => steering.find(&name.tuple),
            InTable::V4 => {
                let (src, dst) = (src as u32, dst as u32);
                steering.find(&Tuple { src, dst, src_port, dst_port, vrf, protocol, zero: 0 })
            }
        }
    }
}

/// A look at all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// All are told of.
    Resync(u32),
    /// Those are that the peer may else forget.
    Refresh,
    /// Those go that the peer's resync did not have.
    Sweep,
    /// Those are this node's alone that the peer's resync did not have.
    Disown,
    /// All in some slices are told of.
    Repair(u32),
    /// Those in some slices go that were not told of in the peer's.
    SweepPart,
    /// All are summed up.
    Audit(u32),
}

/// Places of [`Replication::looks`]: of those that share one, one takes the place of the other.
mod place {
    pub const RESYNC: usize = 0;
    pub const REFRESH: usize = 1;
    pub const SWEEP: usize = 2;
    pub const REPAIR: usize = 3;
    pub const AUDIT: usize = 4;
    pub const COUNT: usize = 5;
}

#[derive(Clone, Copy, Debug)]
struct Look {
    why: Why,
    /// The next place, of both tables one after the other.
    next: u32,
}

/// The worker's own.
#[derive(Debug, Default)]
pub struct Replication {
    is_on: bool,
    /// Changes are noted, for whomever.
    notes: bool,
    keeper: Keeper,
    looks: [Option<Look>; place::COUNT],
    /// The last resync that was asked for, and the last look for an audit.
    asked: u32,
    asked_audit: u32,
    /// Slices that are told again, and those that are swept.
    repaired: Option<Slices>,
    swept: Option<Slices>,
    /// Sessions passed on last with a mapping of this worker's, and to whom; where the next is noted.
    passed_on: ArrayVec<(Name, u8), PASSED_ON>,
    next_passed_on: usize,
    /// When an audit went on last, and the time that it may take, in nanoseconds.
    audited: Nanos,
    credit: u64,
    /// Number of the peer's resync, modulo 8: so many may be broken off in a row.
    round: u8,
    /// When the next refresh begins, and how many there were.
    refresh_due: Nanos,
    refreshes: u32,
}

impl Replication {
    /// When something is due without a packet.
    pub fn next_deadline(&self) -> Nanos {
        let due = match self.is_on {
            true if self.looks.iter().any(Option::is_some) => Nanos(0),
            true => self.refresh_due,
            false => Nanos(u64::MAX),
        };
        due.min(self.keeper.next_deadline())
    }

    /// What is to be told, kept and done at the end of a turn. `desks`: those of all workers, with this one's at `id`.
    /// `journal`: where sessions are kept. `busy`: packets wait. True if it did something.
    pub fn step(
        &mut self,
        id: usize,
        (desks, journal): (&[Desk], Option<&Journal>),
        busy: bool,
        cx: &Context<'_>,
        flows: &mut Flows,
    ) -> Stepped {
        let desk = &desks[id];
        let is_on = desk.is_on.load(Relaxed);
        if self.is_on != is_on {
            self.is_on = is_on;
            flows.nat.gone.set_wanted(is_on);
            self.looks = [None; place::COUNT];
            self.refresh_due = cx.now.plus(REFRESH);
        }
        let notes = is_on || journal.is_some();
        if self.notes != notes {
            self.notes = notes;
            flows.v4.changes.set_wanted(notes);
            flows.v6.changes.set_wanted(notes);
        }
        if journal.is_some() && !self.keeper.has_begun() {
            self.keeper.begin(cx.now, flows);
        }
        let journal = journal.map(|journal| (id, journal));
        if !is_on && !desk.is_restoring.load(Relaxed) {
            while let Some(inbound) = desk.inbound.pop() {
                if let Inbound::Install(_, Some(loan), _) = inbound {
                    flows.nat.loans.returns.push(loan);
                }
            }
            while desk.repairs.pop().is_some() {}
            desk.takes.store(false, Release);
            let worked = journal.is_some_and(|journal| self.keep(journal, busy, cx, flows));
            return Stepped { worked, wake: None };
        }
        desk.takes.store(true, Release);
        let mut stepped = Stepped::default();
        self.tell((desk, journal), cx, flows);
        let pick = |(idle, busy_turn): (usize, usize)| if busy { busy_turn } else { idle };
        for _ in 0..pick(INSTALLED) {
            let Some(inbound) = desk.inbound.pop() else { break };
            stepped.worked = true;
            // No packet is under way: numbers of sessions that have ended are free at once.
            flows.recycle();
            if let Some(worker) = self.take(inbound, (id, desks), cx, flows) {
                // It is woken behind this step; the rest waits for the next.
                stepped.wake = Some(worker);
                break;
            }
        }
        let wanted = desk.wanted.load(Acquire);
        // What was told before lies before it.
        if wanted != self.asked {
            stepped.worked = true;
            if desk.changes.push(Change::Begins(wanted)).is_ok() {
                self.asked = wanted;
                self.begin(place::RESYNC, Why::Resync(wanted));
            }
        }
        self.begin_repair(desk);
        stepped.worked |= self.begin_audit(desk);
        if self.is_on && self.refresh_due <= cx.now {
            self.refresh_due = cx.now.plus(REFRESH);
            self.refreshes = self.refreshes.wrapping_add(1);
            if self.looks[place::REFRESH].is_none() {
                self.begin(place::REFRESH, Why::Refresh);
            }
        }
        for at in 0..self.looks.len() {
            let places = if at == place::AUDIT { self.audit_places(busy, cx.now) } else { pick(LOOKED_AT) };
            stepped.worked |= self.look(at, places, desk, cx, flows);
        }
        if let Some(journal) = journal {
            stepped.worked |= self.keeper.step(journal, busy, cx.now, flows);
        }
        let answered = flows.v4.answered() + flows.v6.answered();
        desk.answered.store(answered.into(), Relaxed);
        desk.told.store(u64::from(flows.v4.told()) + u64::from(flows.v6.told()), Relaxed);
        stepped
    }

    /// Begins to tell slices again: what was told before lies before it.
    fn begin_repair(&mut self, desk: &Desk) {
        if self.looks[place::REPAIR].is_some() || desk.repairs.is_empty() || desk.changes.is_full() {
            return;
        }
        if let Some((number, slices)) = desk.repairs.pop() {
            // There was room, and nobody else puts anything in.
            let _ = desk.changes.push(Change::Begins(number));
            self.repaired = Some(slices);
            self.begin(place::REPAIR, Why::Repair(number));
        }
    }

    fn begin_audit(&mut self, desk: &Desk) -> bool {
        let wanted = desk.audit.load(Acquire);
        if wanted == self.asked_audit {
            return false;
        }
        self.asked_audit = wanted;
        if let Some(sums) = desk.sums.get() {
            sums.by_slice.iter().for_each(|sum| sum.store(0, Relaxed));
            self.begin(place::AUDIT, Why::Audit(wanted));
        }
        true
    }

    /// Sessions that an audit may look at in this turn: with packets, a share of the time.
    fn audit_places(&mut self, busy: bool, now: Nanos) -> usize {
        let passed = now.since(self.audited).as_nanos().min(1 << 32) as u64;
        self.audited = now;
        const STEP: u64 = AUDIT_STEP.as_nanos() as u64;
        self.credit = (self.credit + passed * AUDIT_SHARE / 100).min(STEP * AUDITED.1 as u64);
        if !busy {
            return AUDITED.0;
        }
        let places = self.credit / STEP;
        self.credit -= places * STEP;
        places as usize
    }

    fn begin(&mut self, at: usize, why: Why) {
        self.looks[at] = Some(Look { why, next: 1 });
    }

    /// Keeps what has changed in the turn: nobody else wants to know.
    fn keep(&mut self, journal: (usize, &Journal), busy: bool, cx: &Context<'_>, flows: &mut Flows) -> bool {
        let now = Tick::of(cx.now);
        while let Some(session) = flows.v4.changes.pop() {
            self.keeper.keep::<u32>(session, journal, now, flows);
        }
        while let Some(session) = flows.v6.changes.pop() {
            self.keeper.keep::<u128>(session, journal, now, flows);
        }
        if flows.v4.changes.take_overrun() | flows.v6.changes.take_overrun() {
            self.keeper.is_overrun();
        }
        self.keeper.step(journal, busy, cx.now, flows)
    }

    /// Tells of what has changed in the turn, and keeps it. Ends first: a new session on an old tuple is told of behind
    /// that.
    fn tell(
        &mut self,
        (desk, journal): (&Desk, Option<(usize, &Journal)>),
        cx: &Context<'_>,
        flows: &mut Flows,
    ) {
        let now = Tick::of(cx.now);
        let lost = |pushed: bool| {
            if !pushed {
                desk.is_overrun.store(true, Relaxed);
            }
        };
        while let Some(gone) = flows.nat.gone.pop() {
            lost(desk.changes.push(Change::Gone(gone)).is_ok());
        }
        while let Some(session) = flows.v4.changes.pop() {
            lost(!self.is_on || tell::<u32>(session, desk, now, flows));
            if let Some(journal) = journal {
                self.keeper.keep::<u32>(session, journal, now, flows);
            }
        }
        while let Some(session) = flows.v6.changes.pop() {
            lost(!self.is_on || tell::<u128>(session, desk, now, flows));
            if let Some(journal) = journal {
                self.keeper.keep::<u128>(session, journal, now, flows);
            }
        }
        if flows.v4.changes.take_overrun() | flows.v6.changes.take_overrun() {
            lost(false);
            self.keeper.is_overrun();
        }
        lost(!flows.nat.gone.take_overrun());
    }

    /// The worker that has been given something.
    fn take(
        &mut self,
        inbound: Inbound,
        (id, desks): (usize, &[Desk]),
        cx: &Context<'_>,
        flows: &mut Flows,
    ) -> Option<usize> {
        match inbound {
            Inbound::Install(record, loan, counts) => {
                let round = Round { number: self.round, counts };
                let result = match record.name.table {
                    InTable::V4 => replica::install::<u32>(&record, loan, round, cx, flows),
                    InTable::V6 => replica::install::<u128>(&record, loan, round, cx, flows),
                };
                if result == Err(NotInstalled::Early) {
                    desks[id].is_early.store(true, Release);
                }
                replica::note(&result, cx.counters);
                None
            }
            Inbound::Lend(record, worker, counts) => match replica::lend(&record, cx, flows) {
                Ok(loan) => {
                    let given = desks
                        .get(usize::from(worker))
                        .is_some_and(|desk| desk.give(Inbound::Install(record, Some(loan), counts)));
                    if !given {
                        flows.take_back(&loan, cx.now);
                        // It is the peer who has to tell it again.
                        desks[id].has_lost.store(true, Relaxed);
                    }
                    if given {
                        self.note_passed_on(record.name, worker);
                    }
                    given.then_some(worker.into())
                }
                Err(refused) => {
                    replica::note(&Err(refused), cx.counters);
                    None
                }
            },
            Inbound::End(Gone { name, idle }) => {
                let ended = match name.table {
                    InTable::V4 => replica::end::<u32>(&name, idle, cx, flows),
                    InTable::V6 => replica::end::<u128>(&name, idle, cx, flows),
                };
                add(&cx.counters.replicas.ended, u64::from(ended));
                // It may have come to whom it was passed on before the session itself: once more, behind it.
                let passed_on = self.passed_on.iter().find(|(passed, _)| !ended && *passed == name);
                let worker = passed_on.map(|(_, worker)| usize::from(*worker))?;
                if desks[worker].give(Inbound::End(Gone { name, idle })) {
                    return Some(worker);
                }
                desks[id].has_lost.store(true, Relaxed);
                None
            }
            Inbound::Begin => {
                self.begin_round();
                None
            }
            Inbound::Sweep => {
                self.begin(place::SWEEP, Why::Sweep);
                None
            }
            Inbound::Disown => {
                self.begin(place::SWEEP, Why::Disown);
                None
            }
            Inbound::BeginPart => {
                self.begin_round();
                None
            }
            Inbound::SweepPart(slices) => {
                self.swept = Some(slices);
                self.begin(place::SWEEP, Why::SweepPart);
                None
            }
        }
    }

    fn note_passed_on(&mut self, name: Name, worker: u8) {
        match self.passed_on.get_mut(self.next_passed_on) {
            Some(oldest) => *oldest = (name, worker),
            None => self.passed_on.push((name, worker)),
        }
        self.next_passed_on = (self.next_passed_on + 1) % PASSED_ON;
    }

    /// The peer tells of something once more: what is left of a sweep is left to the next, or to an audit.
    fn begin_round(&mut self) {
        self.looks[place::SWEEP] = None;
        self.round = (self.round + 1) % 8;
    }

    /// Goes on with a look at all sessions. True if it got anywhere.
    fn look(
        &mut self,
        at: usize,
        mut places: usize,
        desk: &Desk,
        cx: &Context<'_>,
        flows: &mut Flows,
    ) -> bool {
        let Some(mut look) = self.looks[at] else { return false };
        let now = Tick::of(cx.now);
        let mut worked = false;
        while places > 0 {
            if look.why.tells() && desk.changes.len() >= RESYNC_ROOM {
                // The thread takes some of it first.
                break;
            }
            places -= 1;
            worked = true;
            let of_v4 = flows.v4.highest();
            if look.next <= of_v4 {
                self.look_at::<u32>(look.next, look.why, desk, (cx, now), flows);
            } else if look.next - of_v4 <= flows.v6.highest() {
                self.look_at::<u128>(look.next - of_v4, look.why, desk, (cx, now), flows);
            } else {
                match look.why {
                    Why::Resync(number) | Why::Repair(number) => {
                        let _ = desk.changes.push(Change::Resynced(number));
                    }
                    Why::Audit(number) => drop(desk.changes.push(Change::Summed(number))),
                    Why::Sweep | Why::Disown | Why::SweepPart | Why::Refresh => {}
                }
                self.looks[at] = None;
                return true;
            }
            look.next += 1;
        }
        self.looks[at] = Some(look);
        worked
    }

    /// Ends a session that the peer was to tell of, and has not. False: there is nothing to tell.
    fn sweep<A: Table>(&self, session: u32, cx: &Context<'_>, flows: &mut Flows) -> bool {
        let swept = replica::sweep::<A>(session, self.round, cx, flows);
        add(&cx.counters.replicas.swept, u64::from(swept));
        false
    }

    fn look_at<A: Table>(
        &self,
        session: u32,
        why: Why,
        desk: &Desk,
        (cx, now): (&Context<'_>, Tick),
        flows: &mut Flows,
    ) {
        let is_meant = match why {
            Why::Resync(_) => true,
            Why::Refresh => is_due::<A>(session, self.refreshes, (cx, now), flows),
            Why::Sweep => self.sweep::<A>(session, cx, flows),
            Why::Disown => {
                replica::disown::<A>(session, self.round, flows);
                false
            }
            Why::Repair(_) => is_in::<A>(session, self.repaired.as_ref(), desk, (cx, flows)),
            Why::SweepPart => {
                is_in::<A>(session, self.swept.as_ref(), desk, (cx, flows))
                    && self.sweep::<A>(session, cx, flows)
            }
            Why::Audit(_) => {
                A::shared(flows).prefetch_session(session.saturating_add(AHEAD));
                if let (Some(sums), Some(digest)) =
                    (desk.sums.get(), digest_of::<A>(session, desk, cx, flows))
                {
                    // Nobody else writes it.
                    let sum = &sums.by_slice[usize::from(digest.slice)];
                    sum.store(sum.load(Relaxed).wrapping_add(digest.sum), Relaxed);
                }
                false
            }
        };
        if is_meant {
            // There is room.
            tell::<A>(session, desk, now, flows);
        }
    }
}

impl Why {
    /// Something comes of it for the thread.
    fn tells(self) -> bool {
        match self {
            Why::Resync(_) | Why::Refresh | Why::Repair(_) | Why::Audit(_) => true,
            Why::Sweep | Why::Disown | Why::SweepPart => false,
        }
    }
}

/// A session's part in the sums, if the peer knows of it.
fn digest_of<A: Table>(session: u32, desk: &Desk, cx: &Context<'_>, flows: &Flows) -> Option<Digest> {
    let (table, sums) = (A::shared(flows), desk.sums.get()?);
    let key = Key(sums.key[0].load(Relaxed), sums.key[1].load(Relaxed));
    let mark = |vrf: u16| match is_scope(vrf) {
        true => cx.tables.bridges.of_scope(vrf).map_or(0, |bridge| bridge.mark),
        false => cx.tables.vrfs.get(usize::from(vrf)).map_or(0, |vrf| vrf.mark),
    };
    table.is_live(session).then(|| Digest::of(table, session, key, mark))?
}

/// True if a session that the peer knows of is in one of these slices.
fn is_in<A: Table>(
    session: u32,
    slices: Option<&Slices>,
    desk: &Desk,
    (cx, flows): (&Context<'_>, &Flows),
) -> bool {
    let digest = digest_of::<A>(session, desk, cx, flows);
    digest.is_some_and(|digest| slices.is_some_and(|slices| slices.has(digest.slice)))
}

/// What a step has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stepped {
    /// It did something.
    pub worked: bool,
    /// Another worker that has been given something.
    pub wake: Option<usize>,
}

/// Tells of a session as it is, if it is one that is told of. False: there was no room.
fn tell<A: Table>(session: u32, desk: &Desk, now: Tick, flows: &mut Flows) -> bool {
    let (table, nat) = A::table_and_holdings(flows);
    let Some(record) = FlowRecord::of(table, nat, session, now) else { return true };
    let told = desk.changes.push(Change::Is(record)).is_ok();
    if told {
        table.note_told(session, flow_flags::TOLD);
    }
    told
}

/// True if the peer might forget a session that goes on here: each is told of in every third of its idle time, if there
/// were packets.
fn is_due<A: Table>(session: u32, round: u32, (cx, now): (&Context<'_>, Tick), flows: &Flows) -> bool {
    let table = A::shared(flows);
    if !table.is_live(session) || crate::flow::is_untouched(table, session) {
        return false;
    }
    let [forward, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
    if !forward.has(flow_flags::TOLD) {
        return true;
    }
    let record = table.record(session);
    let idle_s = timeout(&record, forward.tuple.protocol, true, &cx.tables.policy.timers);
    let rounds = (idle_s / 3 / REFRESH.as_secs() as u32).max(1);
    let had_packets = Tick(now.0.saturating_sub((rounds + 1) * REFRESH.as_secs() as u32 * 10));
    // Not all of them at once.
    session.wrapping_add(round).is_multiple_of(rounds)
        && forward.last_seen.max(reply.last_seen) >= had_packets
}
