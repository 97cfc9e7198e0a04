//! The run-to-completion loop: one worker = one thread. It takes every packet from a queue through the
//! pipeline to a queue.
//!
//! Live gateway, replay and benchmark drive the same [`Worker::turn`]; they differ in the ports behind it
//! and in who reads the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::flow::directory::Directory;
use crate::flow::nat::BlockClaims;
use crate::flow::steering::{Loan, Request, Steering};
use crate::flow::{self, Flows, Held};
use crate::io::waker::{self, Waker};
use crate::io::{Port, PortStats};
use crate::mem::{BURST, Frame, FramePool, Frames};
use crate::neighbours::NeighbourTable;
use crate::packet::{Burst, DropReason, Ingress, Meta, Packet, Pass, Verdict, hash};
use crate::pipeline::review::Review;
use crate::pipeline::slow::Parked;
use crate::pipeline::{self, Context, Limits, SlowPath};
use crate::publication;
use crate::reader::{Desk, Owned, Reading};
use crate::tables::compile::MAX_PORTS;
use crate::tables::policy::PolicySlots;
use crate::tables::{Lag, NO_INTERFACE, Tables};
use crate::telemetry::events::{Event, EventQueues};
use crate::telemetry::{DropRecorder, WorkerCounters, add};
use crate::time::Nanos;

/// Devices of a LAG.
pub const MAX_MEMBERS: usize = crate::config::Port::MAX_DEVICES;

/// Batches of finished frames under way to another worker.
const HAND_OVER_BATCHES: usize = 256;

/// Batches of others' packets that a worker takes in a turn: its own queues come up again soon, however much arrives.
const ARRIVING_BATCHES: usize = 4;

/// What may be asked of a worker at once.
const ERRANDS: usize = 1024;

/// How long they wait: an answer that had no room does not come.
const LOAN_PATIENCE: Duration = Duration::from_secs(1);

/// Packets of a worker that wait for another's answer.
const MAX_WAITING: usize = 256;

/// Turns between two exchanges of frames with other workers' pools.
const EXCHANGE_TURNS: u32 = 16;

/// How often a sleeping worker looks whether another has resolved the neighbour its packets wait for, or a reader has
/// made room.
const PARKED_POLL: Duration = Duration::from_millis(1);

/// How often a sleeping worker looks at queues that cannot wake it (the crate `afxdp`).
const BLIND_POLL: Duration = Duration::from_micros(50);

/// Of its frames a worker has at most this part wait for the first fragments of their datagrams.
const HELD_SHARE: usize = 8;

/// A finished frame and the port and member it leaves by.
type Outgoing = (Frame, u16, u8);

/// A packet that another worker has received and this one settles.
struct Arrival {
    frame: Frame,
    ingress: Ingress,
    pass: Pass,
}

/// What workers ask of each other.
enum Errand {
    /// Lend a mapping for a session of mine.
    Borrow { borrower: u8, request: Request },
    /// The answer.
    Lent { request: Request, loan: Result<Loan, DropReason> },
    /// The session has ended.
    Returned(Loan),
}

/// Packets of one flow that wait for a mapping of another worker.
struct Waiting {
    request: Request,
    since: Nanos,
    packets: Vec<(Frame, Ingress)>,
}

/// What all threads of a node share.
pub struct Node {
    /// The published snapshot.
    pub tables: Arc<ArcSwap<Tables>>,
    /// Next hops and hosts.
    pub neighbours: Arc<NeighbourTable>,
    /// Node-wide rate limits.
    pub limits: Limits,
    /// Room for sessions, by worker.
    pub capacity: flow::Capacity,
    /// Who answers for which ports of NAT addresses.
    pub claims: Arc<BlockClaims>,
    /// By worker.
    pub counters: Box<[CachePadded<WorkerCounters>]>,
    /// By worker.
    pub recorders: Box<[DropRecorder]>,
    /// By worker: finished frames for queues only that worker has.
    hand_over: Box<[ArrayQueue<ArrayVec<Outgoing, BURST>>]>,
    /// By worker: packets of flows that are its.
    arrivals: Box<[ArrayQueue<ArrayVec<Arrival, BURST>>]>,
    /// By worker: what others ask of it.
    errands: Box<[ArrayQueue<Errand>]>,
    /// With several workers: who has which flow.
    directory: Option<Arc<Directory>>,
    /// What goes to the log.
    pub events: Arc<EventQueues>,
    /// Workers that have stopped.
    stopped: AtomicUsize,
    /// By worker: wakes it where it blocks when idle. Replay and benchmarks never block.
    wakers: Box<[Waker]>,
    /// By worker: what commands ask of it.
    pub desks: Box<[Desk]>,
    /// By worker: set while it blocks or is about to.
    asleep: Box<[CachePadded<AtomicBool>]>,
    /// By port and member: the workers that have a queue there, one bit each (the first 64 workers).
    senders: Box<[AtomicU64]>,
}

impl Node {
    /// A node of `workers` workers with counters for `interfaces` interface slots.
    pub fn new(
        tables: Arc<Tables>,
        neighbours: Arc<NeighbourTable>,
        workers: usize,
        interfaces: usize,
        claims: Arc<BlockClaims>,
        capacity: flow::Capacity,
    ) -> Arc<Node> {
        let limits = Limits::new(interfaces, tables.settings.key);
        Arc::new(Node {
            tables: Arc::new(ArcSwap::new(tables)),
            neighbours,
            limits,
            capacity,
            claims,
            counters: (0..workers).map(|_| CachePadded::new(WorkerCounters::new(interfaces))).collect(),
            recorders: (0..workers).map(|_| DropRecorder::default()).collect(),
            hand_over: (0..workers).map(|_| ArrayQueue::new(HAND_OVER_BATCHES)).collect(),
            arrivals: (0..workers).map(|_| ArrayQueue::new(HAND_OVER_BATCHES)).collect(),
            errands: (0..workers).map(|_| ArrayQueue::new(ERRANDS)).collect(),
            directory: (workers > 1).then(|| {
                let keys = capacity.directory_keys(workers);
                Arc::new(
                    Directory::new(keys).expect("address space for the directory: lower `flows.capacity`"),
                )
            }),
            events: Arc::new(EventQueues::new(workers)),
            stopped: AtomicUsize::new(0),
            desks: (0..workers).map(|_| Desk::default()).collect(),
            wakers: (0..workers).map(|_| Waker::new().expect("an eventfd: raise `ulimit -n`")).collect(),
            asleep: (0..workers).map(|_| CachePadded::new(AtomicBool::new(false))).collect(),
            senders: (0..MAX_PORTS * MAX_MEMBERS).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Makes room for what is kept by rule, before tables with so many rules are published.
    pub fn reserve_rules(&self, slots: &PolicySlots) {
        self.limits.rules.reserve(slots.rules.len());
        for counters in &self.counters {
            counters.rules.reserve(slots.rules.len());
            counters.nat_rules.reserve(slots.nat_rules.len());
            counters.pools.reserve(slots.pools.len());
        }
    }

    fn sender_mask(&self, port: u16, member: u8) -> &AtomicU64 {
        &self.senders[usize::from(port) * MAX_MEMBERS + usize::from(member)]
    }

    /// A worker with a queue on the port's member.
    fn sender(&self, port: u16, member: u8) -> Option<usize> {
        let mask = self.sender_mask(port, member).load(Ordering::Relaxed);
        (mask != 0).then(|| mask.trailing_zeros() as usize)
    }

    /// Wakes a worker if it sleeps.
    pub fn wake_if_asleep(&self, worker: usize) {
        if self.asleep[worker].load(Ordering::SeqCst) {
            self.wakers[worker].wake();
        }
    }

    /// Wakes all workers, also those about to sleep: new tables or commands wait for them.
    pub fn wake_all(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }

    fn has_work_for(&self, worker: usize) -> bool {
        !self.hand_over[worker].is_empty()
            || !self.arrivals[worker].is_empty()
            || !self.errands[worker].is_empty()
            || self.desks[worker].has_request()
    }

    /// True once every worker works with `generation` or a later one.
    pub fn all_use(&self, generation: u64) -> bool {
        publication::all_use(self.counters.iter().map(|worker| &worker.generation), generation)
    }
}

/// One queue a worker serves.
struct Queue {
    port: u16,
    member: u8,
    io: Box<dyn Port>,
    staged: Frames,
    rx_frames: u64,
    tx_frames: u64,
    tx_ring_full: u64,
}

/// What a worker says of one of its queues.
#[derive(Clone, Debug)]
pub struct QueueStatus {
    /// Port slot.
    pub port: u16,
    /// Member of the port's LAG.
    pub member: u8,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames lost because the device took no more.
    pub tx_ring_full: u64,
    /// Frames the device holds.
    pub held: usize,
    /// What the device says.
    pub stats: PortStats,
}

/// A worker.
pub struct Worker {
    node: Arc<Node>,
    cache: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
    queues: Vec<Queue>,
    engine: Engine,
    turns: u32,
    scratch: Frames,
}

/// The part of a worker that runs packets through the pipeline.
struct Engine {
    id: usize,
    pool: FramePool,
    slow: SlowPath,
    flows: Flows,
    /// What a command reads.
    reading: Reading,
    /// Sessions decided by older tables.
    review: Review,
    /// By port and member: index into the worker's queues, or `NO_QUEUE`.
    routes: Box<[u16; MAX_PORTS * MAX_MEMBERS]>,
    /// Frames for other workers' queues, by worker.
    outgoing: Box<[ArrayVec<Outgoing, BURST>]>,
    /// Packets of other workers' flows, by worker.
    elsewhere: Box<[ArrayVec<Arrival, BURST>]>,
    /// Packets that wait for another worker's mapping.
    waiting: Vec<Waiting>,
    /// Reasons of which this burst has left a copy in the recorder.
    recorded: u128,
    /// The null pipeline of benchmarks: frames go straight back into the pool.
    null_pipeline: bool,
}

const NO_QUEUE: u16 = u16::MAX;

impl Worker {
    /// Worker number `id` of `node`. Worker 0 also does the node's periodic work.
    pub fn new(id: usize, node: &Arc<Node>, pool: FramePool) -> Worker {
        let tables = node.tables.load();
        let key = tables.settings.key;
        let workers = node.counters.len();
        let steering =
            node.directory.as_ref().map(|directory| Steering::new(Arc::clone(directory), id, workers, key));
        let mut flows = Flows::new(id, node.capacity, Arc::clone(&node.claims), steering, key)
            .expect("address space for the flow table: lower `flows.capacity`");
        flows.fragments.hold_at_most(pool.available() / HELD_SHARE);
        flows.nat.half_open = Some(Arc::clone(&node.limits.half_open));
        Worker {
            node: Arc::clone(node),
            cache: Cache::new(Arc::clone(&node.tables)),
            queues: Vec::new(),
            engine: Engine {
                id,
                pool,
                slow: SlowPath::new(id == 0, &tables),
                flows,
                reading: Reading::default(),
                review: Review::default(),
                routes: Box::new([NO_QUEUE; MAX_PORTS * MAX_MEMBERS]),
                outgoing: (0..workers).map(|_| ArrayVec::new()).collect(),
                elsewhere: (0..workers).map(|_| ArrayVec::new()).collect(),
                waiting: Vec::new(),
                recorded: 0,
                null_pipeline: false,
            },
            turns: 0,
            scratch: Frames::new(),
        }
    }

    /// Takes a queue over.
    pub fn attach(&mut self, port: u16, member: u8, io: Box<dyn Port>) {
        self.queues.push(Queue {
            port,
            member,
            io,
            staged: Frames::new(),
            rx_frames: 0,
            tx_frames: 0,
            tx_ring_full: 0,
        });
        self.index_queues();
    }

    /// Closes the queues of a port's member; their frames come back.
    pub fn detach(&mut self, port: u16, member: u8) {
        let mut index = 0;
        while index < self.queues.len() {
            if self.queues[index].port != port || self.queues[index].member != member {
                index += 1;
                continue;
            }
            let queue = self.queues.remove(index);
            self.engine.close(queue, &self.node);
        }
        self.index_queues();
    }

    fn index_queues(&mut self) {
        let bit = 1u64 << (self.engine.id % 64);
        let node = &self.node;
        for (at, route) in self.engine.routes.iter_mut().enumerate() {
            if *route != NO_QUEUE {
                *route = NO_QUEUE;
                node.senders[at].fetch_and(!bit, Ordering::Relaxed);
            }
        }
        for (index, queue) in self.queues.iter().enumerate() {
            let at = usize::from(queue.port) * MAX_MEMBERS + usize::from(queue.member);
            if self.engine.routes[at] == NO_QUEUE {
                self.engine.routes[at] = index as u16;
                node.senders[at].fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// One round: a burst from each queue, what is due, what others handed over. True if there was work.
    pub fn turn(&mut self, now: Nanos) -> bool {
        let Worker { node, cache, queues, engine, turns, scratch } = self;
        let node: &Node = node;
        let tables: &Tables = cache.load();
        engine.counters(node).generation.note(tables.generation);
        let mut worked = false;
        for index in 0..queues.len() {
            let port = queues[index].port;
            let count = queues[index].io.receive(&mut engine.pool, scratch);
            if count == 0 {
                continue;
            }
            worked = true;
            queues[index].rx_frames += count as u64;
            engine.received(count, node);
            let table = &tables.ports[usize::from(port)];
            if engine.null_pipeline {
                scratch.drain(..).for_each(|frame| engine.pool.put(frame));
            } else if table.lag == Lag::ActiveBackup && table.members_up & 1 << queues[index].member == 0 {
                scratch.drain(..).for_each(|frame| engine.lose_frame(frame, node, DropReason::BackupDevice));
            } else {
                engine.burst(scratch, Ingress::Port(port), Pass::First, tables, now, node, queues);
            }
        }
        worked |= engine.housekeeping(tables, now, node, queues);
        worked |= engine.review(worked, tables, now, node);
        engine.flush(node, queues);
        *turns = turns.wrapping_add(1);
        // Behind the packets, and with a request only.
        let desk = &node.desks[engine.id];
        let may_begin = !worked || turns.is_multiple_of(EXCHANGE_TURNS);
        if engine.reading.is_busy() || (may_begin && desk.has_request()) {
            let Engine { reading, flows, id, .. } = engine;
            let (timers, counters) = (&tables.policy.timers, &*node.counters[*id]);
            worked |= reading.step(&mut Owned { desk, flows, timers, counters }, now, worked);
        }
        if turns.is_multiple_of(EXCHANGE_TURNS) || !worked {
            engine.pool.exchange();
            engine.counters(node).frames_free.store(engine.pool.available() as u64, Ordering::Relaxed);
        }
        worked
    }

    /// When something is due without a packet.
    pub fn next_deadline(&self) -> Nanos {
        self.engine.slow.next_deadline().min(self.engine.flows.next_deadline())
    }

    /// Switches to the null pipeline: receive and put back, nothing else. For benchmarks.
    pub fn set_null_pipeline(&mut self, null: bool) {
        self.engine.null_pipeline = null;
    }

    /// What the queues say.
    pub fn queue_status(&self) -> Vec<QueueStatus> {
        let status = |queue: &Queue| QueueStatus {
            port: queue.port,
            member: queue.member,
            rx_frames: queue.rx_frames,
            tx_frames: queue.tx_frames,
            tx_ring_full: queue.tx_ring_full,
            held: queue.io.held(),
            stats: queue.io.stats(),
        };
        self.queues.iter().map(status).collect()
    }

    /// Blocks until frames wait, something is due or somebody wakes us, but no longer than `limit`.
    pub fn sleep(&self, now: Nanos, limit: Duration) {
        let id = self.engine.id;
        self.node.asleep[id].store(true, Ordering::SeqCst);
        // Whoever handed something over before he saw us asleep did not wake us: look once more.
        if !self.node.has_work_for(id) {
            let due = self.next_deadline().since(now);
            // A reader whose queue is full wakes us, unless it is gone.
            let owes = !self.engine.flows.nat.loans.returns.is_empty();
            let looks_soon = self.engine.slow.has_parked() || self.engine.reading.is_busy() || owes;
            let due = if looks_soon { due.min(PARKED_POLL) } else { due };
            let mut fds: ArrayVec<std::os::fd::RawFd, { MAX_PORTS * 2 }> = ArrayVec::new();
            fds.push(self.node.wakers[id].fd());
            fds.extend(
                self.queues.iter().filter_map(|queue| queue.io.poll_fd()).take(fds.remaining_capacity()),
            );
            let blind = self.queues.iter().any(|queue| queue.io.poll_fd().is_none());
            waker::wait(&fds, due.min(if blind { BLIND_POLL } else { limit }));
        }
        self.node.asleep[id].store(false, Ordering::SeqCst);
        self.node.wakers[id].drain();
    }

    /// Closes all queues and gives every frame back. What was parked is lost, with its reason.
    pub fn stop(mut self) {
        for queue in std::mem::take(&mut self.queues) {
            self.engine.close(queue, &self.node);
        }
        self.index_queues();
        self.engine.stop(&self.node);
    }
}

impl Engine {
    fn counters<'n>(&self, node: &'n Node) -> &'n WorkerCounters {
        &node.counters[self.id]
    }

    fn received(&self, count: usize, node: &Node) {
        add(&self.counters(node).received, count as u64);
        add(&self.counters(node).bursts, 1);
    }

    /// Runs frames that came from one place through the pipeline.
    #[expect(clippy::too_many_arguments, reason = "what one burst needs, all of it borrowed from the worker")]
    fn burst(
        &mut self,
        frames: &mut Frames,
        ingress: Ingress,
        pass: Pass,
        tables: &Tables,
        now: Nanos,
        node: &Node,
        queues: &mut [Queue],
    ) {
        let cx = Context {
            now,
            tables,
            neighbours: &node.neighbours,
            counters: &node.counters[self.id],
            limits: &node.limits,
            ingress,
            pass,
        };
        self.run(frames, &cx, node, queues);
        self.send_emitted(&cx, node, queues);
        if self.flows.fragments.has_settled() {
            self.settle_fragments(&cx, node, queues);
        }
    }

    /// Fragments that were held: they follow the first of their datagram, or are lost.
    #[cold]
    fn settle_fragments(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut frames = Frames::new();
        while let Some((held, lost)) = self.flows.fragments.next_settled() {
            if let Some(reason) = lost {
                self.lose_frame(held.frame, node, reason);
                continue;
            }
            frames.push(held.frame);
            let cx = Context { ingress: held.ingress, pass: Pass::Again, ..*cx };
            self.run(&mut frames, &cx, node, queues);
            self.send_emitted(&cx, node, queues);
        }
    }

    fn run(&mut self, frames: &mut Frames, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut burst = Burst::new();
        burst.extend(frames.drain(..).map(|frame| Packet { frame, meta: Meta::FRESH }));
        pipeline::run(&mut burst, cx, &mut self.flows);
        self.recorded = 0;
        // Most packets leave where the one before left.
        let (mut last_egress, mut last_queue) = (NO_INTERFACE, 0);
        for packet in burst.iter_mut() {
            let egress = packet.meta.egress;
            if packet.meta.verdict != Verdict::Forward {
                self.settle(packet, cx, node);
            } else if egress == last_egress && !packet.frame.is_chained() {
                self.stage(packet.frame.take(), last_queue, node, queues);
            } else if let Some(queue) = self.leave(packet, cx, node, queues) {
                (last_egress, last_queue) = (egress, queue);
            }
        }
        if self.flows.v4.has_said() || self.flows.v6.has_said() {
            self.speak(cx);
        }
    }

    /// Sends what proxied connections of the burst need.
    #[cold]
    fn speak(&mut self, cx: &Context<'_>) {
        let Engine { flows, slow, pool, .. } = self;
        for said in flows.v4.take_said().chain(flows.v6.take_said()) {
            slow.speak(&said, cx, pool);
        }
    }

    /// Sends what proxied connections need whose servers have not answered.
    #[cold]
    fn remind(&mut self, tables: &Tables, now: Nanos, node: &Node, queues: &mut [Queue]) {
        let cx = Context {
            now,
            tables,
            neighbours: &node.neighbours,
            counters: &node.counters[self.id],
            limits: &node.limits,
            ingress: Ingress::Own { vrf: 0 },
            pass: Pass::First,
        };
        self.speak(&cx);
        self.send_emitted(&cx, node, queues);
    }

    /// Sends a finished packet on its way. Returns the queue that takes all frames of its egress.
    #[inline(never)]
    fn leave(
        &mut self,
        packet: &mut Packet,
        cx: &Context<'_>,
        node: &Node,
        queues: &mut [Queue],
    ) -> Option<usize> {
        let (mut frame, meta) = (packet.frame.take(), &packet.meta);
        let egress = cx.tables.interface(meta.egress);
        if frame.is_chained() {
            let len = usize::from(egress.header_len) + usize::from(meta.ip_len);
            self.pool.truncate_chain(&mut frame, len);
        }
        let queue = self.only_queue(egress.port, cx.tables);
        match queue {
            Some(index) => self.stage(frame, index, node, queues),
            None => self.transmit(frame, egress.port, Some(meta), cx.tables, node, queues),
        }
        queue
    }

    /// Does with a packet what has to be done, other than to send it as it is.
    #[inline(never)]
    fn settle(&mut self, packet: &mut Packet, cx: &Context<'_>, node: &Node) {
        let (frame, meta) = (packet.frame.take(), packet.meta);
        let (worker, pass) = match meta.verdict {
            Verdict::Held => return,
            Verdict::Elsewhere(worker) => (worker, Pass::Handed),
            Verdict::Gather(worker) => (worker, Pass::Gathered),
            Verdict::Borrow => return self.borrow(frame, cx, node),
            _ => {
                let packet = Packet { frame, meta };
                if let Some((packet, reason)) = self.slow.handle(packet, cx, &mut self.pool, &node.limits) {
                    self.lose(packet, reason, cx, node);
                }
                return;
            }
        };
        self.pass_on(Arrival { frame, ingress: cx.ingress, pass }, worker.into(), node);
    }

    /// Sends what the slow path made: finished frames, then packets of our own, which may make more.
    fn send_emitted(&mut self, cx: &Context<'_>, node: &Node, queues: &mut [Queue]) {
        let mut frames = Frames::new();
        while !self.slow.emit.ready.is_empty() || !self.slow.emit.own.is_empty() {
            let mut ready = std::mem::take(&mut self.slow.emit.ready);
            for (frame, egress) in ready.drain(..) {
                let port = cx.tables.interface(egress).port;
                self.transmit(frame, port, None, cx.tables, node, queues);
            }
            // Keeps the allocation for the next burst.
            self.slow.emit.ready = ready;
            let Some((_, vrf)) = self.slow.emit.own.first() else { continue };
            let vrf = *vrf;
            let count = self.slow.emit.own.iter().take(BURST).take_while(|(_, other)| *other == vrf).count();
            frames.extend(self.slow.emit.own.drain(..count).map(|(frame, _)| frame));
            let cx = Context { ingress: Ingress::Own { vrf }, pass: Pass::First, ..*cx };
            self.run(&mut frames, &cx, node, queues);
        }
    }

    /// Leaves what has happened for the log.
    #[inline]
    fn report(&mut self, node: &Node) {
        let nat = &mut self.flows.nat;
        if nat.has_events() || !nat.session_events.is_empty() {
            while let Some(event) = nat.pop_event() {
                node.events.push(self.id, Event::Block(event));
            }
            for event in nat.session_events.drain(..) {
                node.events.push(self.id, Event::Session(event));
            }
            let lost = nat.take_events_lost();
            if node.events.is_wanted() {
                node.events.lose(lost);
            }
        }
    }

    /// Decides sessions again that were decided by older tables. True if some are left.
    fn review(&mut self, busy: bool, tables: &Tables, now: Nanos, node: &Node) -> bool {
        if !self.review.is_due(tables) {
            return false;
        }
        let cx = Context {
            now,
            tables,
            neighbours: &node.neighbours,
            counters: &node.counters[self.id],
            limits: &node.limits,
            ingress: Ingress::Own { vrf: 0 },
            pass: Pass::First,
        };
        self.review.step(busy, &cx, &mut self.flows)
    }

    /// What is due without a received packet: timers, restarts, frames from other workers.
    fn housekeeping(&mut self, tables: &Tables, now: Nanos, node: &Node, queues: &mut [Queue]) -> bool {
        let mut worked = false;
        self.slow.look_at_ports(tables, now, |port, member| node.sender(port, member).is_some());
        if self.slow.next_deadline() <= now || self.slow.is_sweeping() {
            let cx = Context {
                now,
                tables,
                neighbours: &node.neighbours,
                counters: &node.counters[self.id],
                limits: &node.limits,
                ingress: Ingress::Own { vrf: 0 },
                pass: Pass::First,
            };
            self.slow.timers(&cx, &mut self.pool, &node.limits);
            self.send_emitted(&cx, node, queues);
            worked = true;
        }
        if self.flows.next_deadline() <= now {
            let counters = &node.counters[self.id];
            self.flows.nat.set_limits(tables.policy.nat);
            worked |= self.flows.expire(&tables.policy.timers, now, counters);
            if self.flows.v4.has_said() || self.flows.v6.has_said() {
                self.remind(tables, now, node, queues);
                worked = true;
            }
            while let Some((held, lost)) = self.flows.fragments.next_settled() {
                self.lose_frame(held.frame, node, lost.unwrap_or(DropReason::FragmentTimeout));
            }
        }
        self.report(node);
        if self.slow.has_parked() {
            let mut parked: ArrayVec<Parked, BURST> = ArrayVec::new();
            self.slow.restarts(&node.neighbours, &mut parked);
            worked |= !parked.is_empty();
            let mut frames = Frames::new();
            for Parked { frame, ingress, .. } in parked {
                frames.push(frame);
                self.burst(&mut frames, ingress, Pass::Again, tables, now, node, queues);
            }
        }
        if node.directory.is_some() {
            worked |= self.serve_others(tables, now, node, queues);
        }
        while let Some(batch) = node.hand_over[self.id].pop() {
            worked = true;
            for (frame, port, member) in batch {
                let index = self.routes[usize::from(port) * MAX_MEMBERS + usize::from(member)];
                if index == NO_QUEUE {
                    self.lose_frame(frame, node, DropReason::PortDown);
                } else {
                    self.stage(frame, usize::from(index), node, queues);
                }
            }
        }
        worked
    }

    /// Sends a finished frame by `port`. `meta` picks the member of a static LAG.
    #[inline]
    fn transmit(
        &mut self,
        frame: Frame,
        port: u16,
        meta: Option<&Meta>,
        tables: &Tables,
        node: &Node,
        queues: &mut [Queue],
    ) {
        let table = &tables.ports[usize::from(port)];
        let member = match table.lag {
            Lag::None => 0,
            Lag::ActiveBackup => (table.members_up.trailing_zeros() % MAX_MEMBERS as u32) as u8,
            Lag::Static => static_member(&frame, meta, table.members_up, tables),
        };
        if table.members_up == 0 {
            self.lose_frame(frame, node, DropReason::PortDown);
            return;
        }
        let index = self.routes[usize::from(port) * MAX_MEMBERS + usize::from(member)];
        if index != NO_QUEUE {
            self.stage(frame, usize::from(index), node, queues);
            return;
        }
        match node.sender(port, member) {
            Some(worker) => self.hand_over((frame, port, member), worker, node),
            None => self.lose_frame(frame, node, DropReason::PortDown),
        }
    }

    /// The worker's own queue on a port of one device that is up.
    fn only_queue(&self, port: u16, tables: &Tables) -> Option<usize> {
        let table = &tables.ports[usize::from(port)];
        let index = self.routes[usize::from(port) * MAX_MEMBERS];
        (table.lag == Lag::None && table.members_up != 0 && index != NO_QUEUE).then_some(usize::from(index))
    }

    #[inline(always)]
    fn stage(&mut self, frame: Frame, index: usize, node: &Node, queues: &mut [Queue]) {
        let queue = &mut queues[index];
        if let Err(full) = queue.staged.try_push(frame) {
            self.send(queue, node);
            queue.staged.push(full.element());
        }
    }

    /// Gives the staged frames to the device; what it does not take even after a flush is lost.
    fn send(&mut self, queue: &mut Queue, node: &Node) {
        let mut sent = queue.io.send(&mut self.pool, &mut queue.staged);
        if !queue.staged.is_empty() {
            queue.io.flush(&mut self.pool);
            sent += queue.io.send(&mut self.pool, &mut queue.staged);
        }
        queue.tx_frames += sent as u64;
        queue.tx_ring_full += queue.staged.len() as u64;
        add(&self.counters(node).sent, sent as u64);
        for frame in queue.staged.drain(..) {
            self.lose_frame(frame, node, DropReason::TxRingFull);
        }
    }

    fn flush(&mut self, node: &Node, queues: &mut [Queue]) {
        for queue in queues.iter_mut() {
            if !queue.staged.is_empty() {
                self.send(queue, node);
            }
            queue.io.flush(&mut self.pool);
        }
        for worker in 0..self.outgoing.len() {
            if !self.outgoing[worker].is_empty() {
                self.send_over(worker, node);
            }
            if !self.elsewhere[worker].is_empty() {
                self.send_elsewhere(worker, node);
            }
        }
    }

    /// Gives a packet to the worker that has its flow.
    fn pass_on(&mut self, arrival: Arrival, worker: usize, node: &Node) {
        if self.elsewhere[worker].is_full() {
            self.send_elsewhere(worker, node);
        }
        self.elsewhere[worker].push(arrival);
    }

    fn send_elsewhere(&mut self, worker: usize, node: &Node) {
        let batch = std::mem::take(&mut self.elsewhere[worker]);
        let count = batch.len() as u64;
        match node.arrivals[worker].push(batch) {
            Ok(()) => {
                add(&self.counters(node).handed_over, count);
                node.wake_if_asleep(worker);
            }
            Err(batch) => {
                for Arrival { frame, .. } in batch {
                    self.lose_frame(frame, node, DropReason::HandOverFull);
                }
            }
        }
    }

    /// Keeps a packet until another worker has lent the mapping that its session needs: what the burst has asked for
    /// first. Packets of the same flow wait behind it.
    #[cold]
    fn borrow(&mut self, frame: Frame, cx: &Context<'_>, node: &Node) {
        let ingress = cx.ingress;
        let request = self.flows.nat.loans.requests.remove(0);
        if self.waiting.iter().map(|waiting| waiting.packets.len()).sum::<usize>() >= MAX_WAITING {
            self.lose_frame(frame, node, DropReason::HandOverFull);
            return;
        }
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.request == request) {
            waiting.packets.push((frame, ingress));
            return;
        }
        let errand = Errand::Borrow { borrower: self.id as u8, request };
        if node.errands[usize::from(request.lender)].push(errand).is_ok() {
            node.wake_if_asleep(request.lender.into());
            self.waiting.push(Waiting { request, since: cx.now, packets: vec![(frame, ingress)] });
        } else {
            self.lose_frame(frame, node, DropReason::HandOverFull);
        }
    }

    /// Packets of our flows that others have received, and what they ask of us.
    fn serve_others(&mut self, tables: &Tables, now: Nanos, node: &Node, queues: &mut [Queue]) -> bool {
        let mut worked = false;
        let mut frames = Frames::new();
        for _ in 0..ARRIVING_BATCHES {
            let Some(batch) = node.arrivals[self.id].pop() else { break };
            worked = true;
            let mut last = None;
            for Arrival { frame, ingress, pass } in batch {
                if let Some((ingress, pass)) = last.filter(|last| *last != (ingress, pass)) {
                    self.burst(&mut frames, ingress, pass, tables, now, node, queues);
                }
                last = Some((ingress, pass));
                frames.push(frame);
            }
            if let Some((ingress, pass)) = last {
                self.burst(&mut frames, ingress, pass, tables, now, node, queues);
            }
        }
        for _ in 0..ERRANDS {
            let Some(errand) = node.errands[self.id].pop() else { break };
            worked = true;
            self.run_errand(errand, tables, now, node, queues);
        }
        // In the order in which they began.
        while self.waiting.first().is_some_and(|waiting| waiting.since.plus(LOAN_PATIENCE) < now) {
            for (frame, _) in self.waiting.remove(0).packets {
                self.lose_frame(frame, node, DropReason::HandOverFull);
            }
        }
        while let Some(loan) = self.flows.nat.loans.returns.pop() {
            let lender = usize::from(loan.lender);
            if node.errands[lender].push(Errand::Returned(loan)).is_err() {
                // Another time: it owes us as much.
                self.flows.nat.loans.returns.push(loan);
                break;
            }
            node.wake_if_asleep(lender);
        }
        worked
    }

    #[cold]
    fn run_errand(&mut self, errand: Errand, tables: &Tables, now: Nanos, node: &Node, queues: &mut [Queue]) {
        match errand {
            Errand::Borrow { borrower, request } => {
                // The pool may have gone: the borrower asked by older tables.
                let pool = tables.policy.pools.iter().find(|pool| pool.id() == request.pool);
                let lent = pool.ok_or(DropReason::PolicyChanged).and_then(|pool| {
                    let counters = &node.counters[self.id];
                    let refused = |refused| pipeline::note_refused(refused, request.pool, counters);
                    self.flows.lend(pool, &request, now).map_err(refused)
                });
                if let Err(Errand::Lent { loan: Ok(loan), .. }) =
                    node.errands[usize::from(borrower)].push(Errand::Lent { request, loan: lent })
                {
                    self.flows.take_back(&loan, now);
                }
                node.wake_if_asleep(borrower.into());
            }
            Errand::Lent { request, loan } => {
                let Some(at) = self.waiting.iter().position(|waiting| waiting.request == request) else {
                    // Too late.
                    self.flows.nat.loans.returns.extend(loan.ok());
                    return;
                };
                let waiting = self.waiting.remove(at);
                match loan {
                    Ok(loan) => self.go_on_with(loan, waiting, tables, now, node, queues),
                    Err(reason) => {
                        for (frame, _) in waiting.packets {
                            self.lose_frame(frame, node, reason);
                        }
                    }
                }
            }
            Errand::Returned(loan) => self.flows.take_back(&loan, now),
        }
    }

    /// The first packet that waited opens the session, those behind it are part of it.
    fn go_on_with(
        &mut self,
        loan: Loan,
        waiting: Waiting,
        tables: &Tables,
        now: Nanos,
        node: &Node,
        queues: &mut [Queue],
    ) {
        self.flows.nat.loans.given = Some((waiting.request, loan));
        let mut frames = Frames::new();
        for (frame, ingress) in waiting.packets {
            frames.push(frame);
            self.burst(&mut frames, ingress, Pass::Handed, tables, now, node, queues);
            // Not wanted any more: another decision, or a drop.
            if let Some((_, unused)) = self.flows.nat.loans.given.take() {
                self.flows.nat.loans.returns.push(unused);
            }
        }
    }

    fn hand_over(&mut self, outgoing: Outgoing, worker: usize, node: &Node) {
        if self.outgoing[worker].is_full() {
            self.send_over(worker, node);
        }
        self.outgoing[worker].push(outgoing);
    }

    fn send_over(&mut self, worker: usize, node: &Node) {
        let batch = std::mem::take(&mut self.outgoing[worker]);
        match node.hand_over[worker].push(batch) {
            Ok(()) => node.wake_if_asleep(worker),
            Err(batch) => {
                for (frame, ..) in batch {
                    self.lose_frame(frame, node, DropReason::HandOverFull);
                }
            }
        }
    }

    /// Loses a packet of which the metadata is known: counted per interface too, and recorded.
    fn lose(&mut self, packet: Packet, reason: DropReason, cx: &Context<'_>, node: &Node) {
        let interface = packet.meta.interface;
        if interface != NO_INTERFACE {
            add(&cx.counters.interfaces[usize::from(interface)].drops, 1);
        }
        self.record(&packet.frame, reason, interface, cx, node);
        self.lose_frame(packet.frame, node, reason);
    }

    fn record(&mut self, frame: &Frame, reason: DropReason, interface: u16, cx: &Context<'_>, node: &Node) {
        let bit = 1u128 << reason.index();
        if self.recorded & bit == 0 {
            self.recorded |= bit;
            let bytes = &frame.bytes()[..frame.len().min(crate::telemetry::RECORD_BYTES)];
            node.recorders[self.id].record(
                cx.now,
                reason,
                interface,
                cx.tables.generation,
                frame.total_len(),
                bytes,
            );
        }
    }

    fn lose_frame(&mut self, frame: Frame, node: &Node, reason: DropReason) {
        add(&self.counters(node).drops[reason.index()], 1);
        self.pool.put(frame);
    }

    fn close(&mut self, mut queue: Queue, node: &Node) {
        for frame in queue.staged.drain(..) {
            self.lose_frame(frame, node, DropReason::PortDown);
        }
        queue.io.close(&mut self.pool);
    }

    fn stop(&mut self, node: &Node) {
        let parked: Vec<Parked> = self.slow.take_parked().collect();
        for Parked { frame, .. } in parked {
            self.lose_frame(frame, node, DropReason::Shutdown);
        }
        let held: Vec<Held> = self.flows.fragments.take_held().collect();
        for Held { frame, .. } in held {
            self.lose_frame(frame, node, DropReason::Shutdown);
        }
        for worker in 0..self.outgoing.len() {
            for (frame, ..) in std::mem::take(&mut self.outgoing[worker]) {
                self.lose_frame(frame, node, DropReason::Shutdown);
            }
        }
        for worker in 0..self.elsewhere.len() {
            for Arrival { frame, .. } in std::mem::take(&mut self.elsewhere[worker]) {
                self.lose_frame(frame, node, DropReason::Shutdown);
            }
        }
        for (frame, _) in std::mem::take(&mut self.waiting).into_iter().flat_map(|waiting| waiting.packets) {
            self.lose_frame(frame, node, DropReason::Shutdown);
        }
        // What others still give us finds nobody: the last to stop takes it, when none is left to give.
        if node.stopped.fetch_add(1, Ordering::AcqRel) + 1 == node.counters.len() {
            for worker in 0..node.counters.len() {
                while let Some(batch) = node.hand_over[worker].pop() {
                    batch
                        .into_iter()
                        .for_each(|(frame, ..)| self.lose_frame(frame, node, DropReason::Shutdown));
                }
                while let Some(batch) = node.arrivals[worker].pop() {
                    for Arrival { frame, .. } in batch {
                        self.lose_frame(frame, node, DropReason::Shutdown);
                    }
                }
            }
        }
        self.pool.exchange();
    }
}

/// The member of a static LAG that carries a flow: the n-th that is up.
fn static_member(frame: &Frame, meta: Option<&Meta>, members_up: u8, tables: &Tables) -> u8 {
    let flow = meta.map_or(0, |meta| {
        let l3 = usize::from(tables.interface(meta.egress).header_len);
        let ports = (meta.src_port, meta.dst_port);
        hash::of_packet(tables.settings.key, meta.family, &frame.bytes()[l3..], meta.protocol, ports)
    });
    let up = members_up.count_ones().max(1);
    let wanted = ((flow >> 32) % u64::from(up)) as u32;
    (0..8).filter(|member| members_up & 1 << member != 0).nth(wanted as usize).unwrap_or(0)
}

const _: () = assert!(DropReason::COUNT <= 128, "the recorder's mask has 128 bits");
