//! The run-to-completion loop: one worker = one thread. It takes every packet from a queue through the
//! pipeline to a queue.
//!
//! Live gateway, replay and benchmark drive the same [`Worker::turn`]; they differ in the ports behind it
//! and in who reads the clock.

mod engine;
mod exchange;
mod node;
mod output;
mod prober;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use arrayvec::ArrayVec;

use crate::flow::Flows;
use crate::flow::scan::SessionView;
use crate::flow::steering::Steering;
use crate::io::waker;
use crate::io::{LeftQueue, Port, PortStats};
use crate::mem::{FramePool, Frames};
use crate::packet::{DropReason, Ingress, Pass};
use crate::pipeline::SlowPath;
use crate::pipeline::review::Review;
use crate::reader::{Owned, Reading};
use crate::replica::Replication;
use crate::tables::compile::MAX_PORTS;
use crate::tables::{Lag, Tables};
use crate::time::Nanos;
use engine::Engine;

pub use node::{Node, Spoken};
pub use prober::Prober;

/// Devices of a LAG.
pub const MAX_MEMBERS: usize = crate::config::Port::MAX_DEVICES;

/// Turns between two exchanges of frames with other workers' pools.
const EXCHANGE_TURNS: u32 = 16;

/// How often a sleeping worker looks whether another has resolved the neighbour its packets wait for, or a reader has
/// made room.
const PARKED_POLL: Duration = Duration::from_millis(1);

/// How often a sleeping worker looks at queues that cannot wake it (the crate `afxdp`).
const BLIND_POLL: Duration = Duration::from_micros(50);

/// Of its frames a worker has at most this part wait for the first fragments of their datagrams.
const HELD_SHARE: usize = 8;

const NO_QUEUE: u16 = u16::MAX;

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

impl Queue {
    fn status(&self) -> QueueStatus {
        QueueStatus {
            port: self.port,
            member: self.member,
            is_open: true,
            rx_frames: self.rx_frames,
            tx_frames: self.tx_frames,
            tx_ring_full: self.tx_ring_full,
            held: self.io.held(),
            stats: self.io.stats(),
        }
    }
}

/// What a worker says of one of its queues, or of all that a port's member had before.
#[derive(Clone, Debug)]
pub struct QueueStatus {
    /// Port slot.
    pub port: u16,
    /// Member of the port's LAG.
    pub member: u8,
    /// False: the sums of queues that are closed.
    pub is_open: bool,
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

/// What a worker leaves to another process.
#[derive(Debug, Default)]
pub struct LeftQueues {
    /// Its queues, with port slot and member.
    pub queues: Vec<(u16, u8, LeftQueue)>,
    /// Queues that cannot be left to another process.
    pub others: usize,
    /// Packets that wait for a neighbour, a first fragment or another worker.
    pub waiting: usize,
}

/// A worker.
pub struct Worker {
    node: Arc<Node>,
    cache: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
    queues: Vec<Queue>,
    /// Nothing is taken from the queues: another process is about to have them.
    is_held: bool,
    /// What went through queues that are closed, one entry for each member of each port there has been: slots of
    /// ports are never another's, and a port that comes back counts on.
    closed: Vec<QueueStatus>,
    engine: Engine,
    turns: u32,
    scratch: Frames,
}

impl Worker {
    /// Worker number `id` of `node`. Worker 0 also does the node's periodic work.
    pub fn new(id: usize, node: &Arc<Node>, pool: FramePool) -> Worker {
        let tables = node.tables.load();
        let key = node.key;
        let workers = node.counters.len();
        let steering =
            node.directory.as_ref().map(|directory| Steering::new(Arc::clone(directory), id, workers, key));
        let mut flows = Flows::new(id, node.capacity, Arc::clone(&node.claims), steering, key)
            .expect("address space for the flow table: lower `flows.capacity`");
        let memory = pool.memory();
        flows.fragments.hold_at_most(memory.frames() / memory.workers() / HELD_SHARE);
        flows.nat.half_open = Some(Arc::clone(&node.limits.half_open));
        Worker {
            node: Arc::clone(node),
            cache: Cache::new(Arc::clone(&node.tables)),
            queues: Vec::new(),
            is_held: false,
            closed: Vec::new(),
            engine: Engine {
                id,
                pool,
                slow: SlowPath::new(id == 0, &tables),
                flows,
                reading: Reading::default(),
                review: Review::default(),
                replication: Replication::default(),
                routes: Box::new([NO_QUEUE; MAX_PORTS * MAX_MEMBERS]),
                outgoing: (0..workers).map(|_| ArrayVec::new()).collect(),
                elsewhere: (0..workers).map(|_| ArrayVec::new()).collect(),
                waiting: Vec::new(),
                generation: None,
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

    /// Closes the queues of a port's member; their frames come back. What went through them stays in the sums.
    pub fn detach(&mut self, port: u16, member: u8) {
        let mut index = 0;
        while index < self.queues.len() {
            if self.queues[index].port != port || self.queues[index].member != member {
                index += 1;
                continue;
            }
            let queue = self.queues.remove(index);
            self.remember(queue.status());
            self.engine.close(queue, &self.node);
        }
        self.index_queues();
    }

    /// From now on nothing is taken from the queues, or again. What is under way goes on.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Stops its queues where they are, so that another process can go on with them. Until [`Worker::go_on`] the worker
    /// must not have a turn.
    pub fn leave_queues(&mut self) -> std::io::Result<LeftQueues> {
        let Engine { pool, slow, flows, waiting, .. } = &mut self.engine;
        let parked = slow.parked() + flows.fragments.frames();
        let waiting = parked + waiting.iter().map(|waiting| waiting.packets.len()).sum::<usize>();
        let mut left = LeftQueues { waiting, ..LeftQueues::default() };
        for queue in &mut self.queues {
            match queue.io.leave(pool)? {
                Some(io) => left.queues.push((queue.port, queue.member, io)),
                None => left.others += 1,
            }
        }
        Ok(left)
    }

    /// Nobody has taken its queues.
    pub fn go_on(&mut self) {
        self.queues.iter_mut().for_each(|queue| queue.io.go_on());
        self.is_held = false;
    }

    fn remember(&mut self, status: QueueStatus) {
        let same = |closed: &&mut QueueStatus| (closed.port, closed.member) == (status.port, status.member);
        let Some(closed) = self.closed.iter_mut().find(same) else {
            self.closed.push(QueueStatus { is_open: false, held: 0, ..status });
            return;
        };
        closed.rx_frames += status.rx_frames;
        closed.tx_frames += status.tx_frames;
        closed.tx_ring_full += status.tx_ring_full;
        closed.stats += status.stats;
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
        let Worker { node, cache, queues, is_held, engine, turns, scratch, closed: _ } = self;
        let node: &Node = node;
        let tables: &Tables = cache.load();
        engine.counters(node).generation.note(tables.generation);
        if engine.generation != Some(tables.generation) {
            engine.take_on(tables);
        }
        engine.flows.strangers.begin_turn();
        let cx = node.context(engine.id, tables, now);
        let mut worked = false;
        for index in 0..if *is_held { 0 } else { queues.len() } {
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
                engine.lose_frames(scratch.drain(..), node, DropReason::BackupDevice);
            } else {
                engine.burst(scratch, Ingress::Port(port), Pass::First, &cx, node, queues);
            }
        }
        worked |= engine.housekeeping(&cx, node, queues);
        worked |= engine.review(worked, &cx, node, queues);
        worked |= engine.replicate(worked, &cx, node);
        engine.flush(node, queues);
        *turns = turns.wrapping_add(1);
        // Behind the packets, and with a request only.
        let desk = &node.desks[engine.id];
        let may_begin = !worked || turns.is_multiple_of(EXCHANGE_TURNS);
        if engine.reading.is_busy() || (may_begin && desk.has_request()) {
            let Engine { reading, flows, id, .. } = engine;
            let (timers, backends) = (&tables.policy.timers, &tables.backends);
            let counters = &*node.counters[*id];
            worked |= reading.step(&mut Owned { desk, flows, timers, backends, counters }, now, worked);
        }
        if turns.is_multiple_of(EXCHANGE_TURNS) || !worked {
            engine.pool.exchange();
            engine.counters(node).frames_free.store(engine.pool.available() as u64, Ordering::Relaxed);
        }
        worked
    }

    /// The sessions there are: for dry runs, which have few.
    pub(crate) fn sessions(&self) -> Vec<SessionView> {
        let flows = &self.engine.flows;
        let tables = self.node.tables.load();
        let known = (&tables.policy.timers, &tables.backends);
        let v4 = (1..=flows.v4.highest()).filter(|session| flows.v4.is_live(*session));
        let v6 = (1..=flows.v6.highest()).filter(|session| flows.v6.is_live(*session));
        let v4 = v4.map(|session| SessionView::of(&flows.v4, session, known.0, known.1));
        v4.chain(v6.map(|session| SessionView::of(&flows.v6, session, known.0, known.1))).collect()
    }

    /// When something is due without a packet.
    pub fn next_deadline(&self) -> Nanos {
        let Engine { slow, flows, replication, review, .. } = &self.engine;
        let due = slow.next_deadline().min(flows.next_deadline()).min(replication.next_deadline());
        due.min(review.next_deadline())
    }

    /// Switches to the null pipeline: receive and put back, nothing else. For benchmarks.
    pub fn set_null_pipeline(&mut self, null: bool) {
        self.engine.null_pipeline = null;
    }

    /// What the queues say, and what those said that are closed.
    pub fn queue_status(&self) -> Vec<QueueStatus> {
        self.queues.iter().map(Queue::status).chain(self.closed.iter().cloned()).collect()
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
            // What comes is for another process.
            let queues = if self.is_held { &[] } else { &*self.queues };
            fds.extend(queues.iter().filter_map(|queue| queue.io.poll_fd()).take(fds.remaining_capacity()));
            let blind = queues.iter().any(|queue| queue.io.poll_fd().is_none());
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
