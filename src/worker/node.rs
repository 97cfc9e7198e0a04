//! What the threads of a node share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use super::MAX_MEMBERS;
use crate::flow;
use crate::flow::directory::Directory;
use crate::flow::nat::BlockClaims;
use crate::flow::steering::{Loan, Request, Steering};
use crate::host::probe::exchange::Exchange;
use crate::io::waker::Waker;
use crate::journal::Journal;
use crate::macs::Entry;
use crate::mem::{BURST, Frame};
use crate::neighbours::NeighbourTable;
use crate::packet::hash::Key;
use crate::packet::{DropReason, Ingress, Pass};
use crate::pipeline::{Context, Limits};
use crate::publication;
use crate::reader::Desk;
use crate::replica;
use crate::roles::Part;
use crate::tables::Tables;
use crate::tables::compile::{Compiler, MAX_PORTS};
use crate::tables::policy::PolicySlots;
use crate::telemetry::events::EventQueues;
use crate::telemetry::{DropRecorder, WorkerCounters};
use crate::time::Nanos;

/// Batches of finished frames under way to another worker.
const HAND_OVER_BATCHES: usize = 256;

/// What may be asked of a worker at once.
pub(super) const ERRANDS: usize = 1024;

/// What the HA thread may have under way: every address that it announces, more than once.
const SPOKEN: usize = 4096;

/// What the HA thread gives the workers to send or to pass on: they have the tunnels' routes and neighbours.
#[derive(Debug)]
pub enum Spoken {
    /// A frame of the gateway's own, without tags: into all tunnels of an interface, or of a bridge by its interface.
    Tunnels {
        /// Interface slot.
        link: u16,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Next hops of the same tunnels are to be known before there is something to send.
    Ways {
        /// Interface slot.
        link: u16,
    },
    /// Stations of the bridge with this number are where this node sends to from now on.
    Stations {
        /// The bridge.
        bridge: u16,
    },
    /// A frame that was received, as it was on the wire: hosts of its bridge wait for it as well.
    Received {
        /// Port slot.
        port: u16,
        /// The frame.
        frame: Vec<u8>,
    },
}

/// A finished frame and the port and member it leaves by.
pub(super) type Outgoing = (Frame, u16, u8);

/// A packet that another worker has received and this one settles.
pub(super) struct Arrival {
    pub(super) frame: Frame,
    pub(super) ingress: Ingress,
    pub(super) pass: Pass,
}

/// What workers ask of each other.
pub(super) enum Errand {
    /// Lend a mapping for a session of mine.
    Borrow { borrower: u8, request: Request },
    /// The answer.
    Lent { request: Request, loan: Result<Loan, DropReason> },
    /// The session has ended.
    Returned(Loan),
}

/// Packets of one flow that wait for a mapping of another worker.
pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) since: Nanos,
    pub(super) packets: Vec<(Frame, Ingress)>,
}

/// What all threads of a node share.
pub struct Node {
    /// The published snapshot.
    pub tables: Arc<ArcSwap<Tables>>,
    /// Next hops and hosts.
    pub neighbours: Arc<NeighbourTable>,
    /// What sessions, mappings and limits are hashed with.
    pub key: Key,
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
    /// Packets of health checks, and what they wait for.
    pub probes: Exchange,
    /// By worker: finished frames for queues only that worker has.
    pub(super) hand_over: Box<[ArrayQueue<ArrayVec<Outgoing, BURST>>]>,
    /// By worker: packets of flows that are its.
    pub(super) arrivals: Box<[ArrayQueue<ArrayVec<Arrival, BURST>>]>,
    /// By worker: what others ask of it.
    pub(super) errands: Box<[ArrayQueue<Errand>]>,
    /// For the first worker: what the HA thread says.
    pub(super) spoken: ArrayQueue<Spoken>,
    /// Stations of a bridge that this node has ceased to pass frames on of: the other may not have been told of all.
    pub(crate) left_behind: Mutex<Vec<Entry>>,
    /// With several workers: who has which flow.
    pub(super) directory: Option<Arc<Directory>>,
    /// What goes to the log.
    pub events: Arc<EventQueues>,
    /// Workers that have stopped.
    pub(super) stopped: AtomicUsize,
    /// By worker: wakes it where it blocks when idle. Replay and benchmarks never block.
    pub(super) wakers: Box<[Waker]>,
    /// By worker: what commands ask of it.
    pub desks: Box<[Desk]>,
    /// By worker, once the node has a peer: what the peer is told and tells.
    pub replicas: OnceLock<Box<[replica::Desk]>>,
    /// Where sessions are kept for the next process, if they are. Not without `replicas`.
    pub journal: OnceLock<Journal>,
    /// By worker: set while it blocks or is about to.
    pub(super) asleep: Box<[CachePadded<AtomicBool>]>,
    /// By port and member: the workers that have a queue there, one bit each (the first 64 workers).
    pub(super) senders: Box<[AtomicU64]>,
}

impl Node {
    /// A node of `workers` workers with the tables of `compiler` and counters for `interfaces` interface slots.
    pub fn new(
        compiler: &Compiler,
        workers: usize,
        interfaces: usize,
        capacity: flow::Capacity,
    ) -> Arc<Node> {
        let (neighbours, claims) = (Arc::clone(compiler.neighbours()), Arc::clone(&compiler.claims));
        let waker = |_| Waker::new().expect("an eventfd: raise `ulimit -n`");
        Node::with(compiler, neighbours, claims, (0..workers).map(waker).collect(), interfaces, capacity)
    }

    /// A node of one worker for a dry run: it begins with what is learned and given there, and nobody sees what it
    /// makes of that. `capacity` may be small.
    pub fn scratch(compiler: &Compiler, capacity: flow::Capacity) -> std::io::Result<Arc<Node>> {
        let (neighbours, claims) = (compiler.neighbours().copied(), compiler.claims.copied());
        let interfaces = compiler.interfaces.len();
        let wakers = [Waker::new()?].into();
        let node = Node::with(compiler, Arc::new(neighbours), Arc::new(claims), wakers, interfaces, capacity);
        node.reserve_rules(&compiler.policy_slots);
        node.reserve_relays(compiler.tables());
        Ok(node)
    }

    fn with(
        compiler: &Compiler,
        neighbours: Arc<NeighbourTable>,
        claims: Arc<BlockClaims>,
        wakers: Box<[Waker]>,
        interfaces: usize,
        capacity: flow::Capacity,
    ) -> Arc<Node> {
        let (key, workers) = (compiler.key(), wakers.len());
        Arc::new(Node {
            tables: Arc::new(ArcSwap::new(Arc::clone(compiler.tables()))),
            neighbours,
            key,
            limits: Limits::new(interfaces, key),
            capacity,
            claims,
            counters: (0..workers).map(|_| CachePadded::new(WorkerCounters::new(interfaces))).collect(),
            recorders: (0..workers).map(|_| DropRecorder::default()).collect(),
            probes: Exchange::new(workers, key),
            hand_over: (0..workers).map(|_| ArrayQueue::new(HAND_OVER_BATCHES)).collect(),
            arrivals: (0..workers).map(|_| ArrayQueue::new(HAND_OVER_BATCHES)).collect(),
            errands: (0..workers).map(|_| ArrayQueue::new(ERRANDS)).collect(),
            spoken: ArrayQueue::new(SPOKEN),
            left_behind: Mutex::default(),
            directory: (workers > 1).then(|| {
                let keys = capacity.directory_keys(workers);
                Arc::new(
                    Directory::new(keys).expect("address space for the directory: lower `flows.capacity`"),
                )
            }),
            events: Arc::new(EventQueues::new(workers)),
            stopped: AtomicUsize::new(0),
            desks: (0..workers).map(|_| Desk::default()).collect(),
            replicas: OnceLock::new(),
            journal: OnceLock::new(),
            wakers,
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
            counters.backends.reserve(slots.backends.len());
            counters.pools.reserve(slots.pools.len());
        }
    }

    /// The desks by which workers meet the thread that speaks with the peer. They are there from now on.
    pub fn replicas(&self) -> &[replica::Desk] {
        let workers = self.counters.len();
        self.replicas.get_or_init(|| (0..workers).map(|_| replica::Desk::default()).collect())
    }

    /// Gives the workers what the peer tells.
    pub fn dispatch(&self) -> replica::Dispatch<'_> {
        let steering = self
            .directory
            .as_ref()
            .map(|directory| Steering::new(Arc::clone(directory), 0, self.counters.len(), self.key));
        replica::Dispatch::new(self.replicas(), steering)
    }

    /// Makes room for what is kept by relay, before tables with relays on these interfaces are published.
    pub fn reserve_relays(&self, tables: &Tables) {
        let relays = &tables.relays;
        for (family, all) in [relays.v4.all(), relays.v6.all()].into_iter().enumerate() {
            let slots = all.iter().map(|relay| usize::from(relay.interface) + 1).max().unwrap_or(0);
            self.counters.iter().for_each(|counters| counters.relays[family].reserve(slots));
        }
    }

    /// Forgets clients of backends that take no flows by these tables: what they come back for is not there any more
    /// when those do. For when no worker uses older ones.
    pub fn forget_clients(&self, tables: &Tables, now: Nanos) {
        if tables.policy.services().has_affinity() {
            let backends = &tables.backends;
            let takes = |slot: u32| backends.is_in_service(slot) && backends.level(slot) > 0;
            self.limits.clients.forget(now, |slot| !takes(slot));
        }
    }

    /// What worker `id` hands down with its packets, here those of our own.
    pub(crate) fn context<'n>(&'n self, id: usize, tables: &'n Tables, now: Nanos) -> Context<'n> {
        Context {
            now,
            tables,
            neighbours: &self.neighbours,
            counters: &self.counters[id],
            limits: &self.limits,
            probes: &self.probes,
            ingress: Ingress::Own { vrf: 0 },
            pass: Pass::First,
        }
    }

    /// What this node does for the virtual router in a place from `now` on. Where it ceases to pass frames on, stations are
    /// where the other node says; where it begins to, they are announced. On other bridges the router itself is where it is
    /// heard next.
    pub fn set_role(&self, role: u16, part: Part, now: Nanos) {
        let (was_active, is_active) = (self.neighbours.roles.is_active(role), part == Part::Active);
        self.neighbours.roles.set(role, part, now);
        let tables = self.tables.load();
        for bridge in tables.bridges.iter() {
            if bridge.group == role {
                match (was_active, is_active) {
                    (true, false) => {
                        let macs = &self.neighbours.macs;
                        let stations = macs.entries().filter(|entry| entry.segment == bridge.segment);
                        let mut left_behind = self.left_behind.lock().unwrap_or_else(PoisonError::into_inner);
                        // Without another node nobody takes them.
                        let room = macs.capacity().saturating_sub(left_behind.len());
                        left_behind.extend(stations.take(room));
                        macs.flush(bridge.segment);
                        // What comes round now the other node has passed on.
                        let members = bridge.members.iter();
                        members.for_each(|member| self.limits.segments.open(member.interface));
                    }
                    (false, true) => {
                        self.neighbours.macs.take_over(bridge.segment);
                        // If there is no room for it, switches hear of stations when these speak.
                        self.speak(Spoken::Stations { bridge: bridge.number() });
                    }
                    _ => {}
                }
            } else if let Some(interface) = tables.interfaces.get(usize::from(bridge.interface))
                && let Some(router) = interface.info.routers.iter().find(|router| router.role == role)
            {
                self.neighbours.macs.forget(bridge.segment, router.mac);
            }
        }
    }

    /// Has the first worker send a frame, or pass it on. False: it has more to do than it can.
    pub fn speak(&self, spoken: Spoken) -> bool {
        let is_taken = self.spoken.push(spoken).is_ok();
        self.wake_if_asleep(0);
        is_taken
    }

    fn sender_mask(&self, port: u16, member: u8) -> &AtomicU64 {
        &self.senders[usize::from(port) * MAX_MEMBERS + usize::from(member)]
    }

    /// A worker with a queue on the port's member.
    pub(super) fn sender(&self, port: u16, member: u8) -> Option<usize> {
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

    pub(super) fn has_work_for(&self, worker: usize) -> bool {
        !self.hand_over[worker].is_empty()
            || !self.arrivals[worker].is_empty()
            || !self.errands[worker].is_empty()
            || self.desks[worker].has_request()
            || self.probes.has_leaving(worker)
            || worker == 0 && !self.spoken.is_empty()
            || self.replicas.get().is_some_and(|desks| desks[worker].has_inbound())
    }

    /// True if no worker owes another one anything.
    pub fn is_quiet(&self) -> bool {
        let is_empty = |worker: usize| {
            self.hand_over[worker].is_empty()
                && self.arrivals[worker].is_empty()
                && self.errands[worker].is_empty()
        };
        (0..self.counters.len()).all(is_empty)
    }

    /// True once every worker works with `generation` or a later one.
    pub fn all_use(&self, generation: u64) -> bool {
        publication::all_use(self.counters.iter().map(|worker| &worker.generation), generation)
    }
}
