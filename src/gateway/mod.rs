//! The live gateway: devices, workers and tables held together by the control thread.

mod around;
mod bridges;
mod checks;
pub mod deterministic;
mod device;
mod drain;
mod event_log;
mod explain;
mod gaps;
mod gate;
pub mod groups;
pub mod ha;
pub mod health;
mod inherit;
pub mod inspect;
mod keeping;
mod known;
mod lists;
mod mixed;
mod pair;
mod preview;
mod readiness;
mod requests;
mod revisions;
mod routes;
mod rules;
mod services;
mod show;
mod spent;
pub mod temporary;
pub mod tenants;
mod two_phase;
mod undo;
mod upgrade;
mod watch;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::{self, Config, Lag, MAX_WORKERS, PortMode, Workers};
use crate::control::Fault;
use crate::flow;
use crate::io::Port;
use crate::io::link::{Accepted, LinkChange, LinkEvent, LinkState, LinkWatcher, OffloadGuard};
use crate::io::xdp::{Mode, RingSizes, XdpDevice, XdpError, XdpProgram};

use crate::mem::{ChunkSize, FramePool, MemoryError, PacketMemory};
use crate::neighbours::{NeighbourTable, mac_from_u64};
use crate::packet::hash::Key;
use crate::replay::NEIGHBOUR_CAPACITY;
use crate::tables::compile::{CompileError, Compiler, Input, InterfaceSpec, MAX_INTERFACES, Retired};
use crate::tables::meaning::{self, PortFacts};
use crate::tables::policy::Policy;
use crate::telemetry::add;
use crate::time::Nanos;
use crate::worker::{LeftQueues, Node, QueueStatus, Worker};
use checks::Checks;
pub use device::{BackEnd, Device};
use event_log::EventLog;
use gaps::RunQueue;
use ha::Ha;
use health::Health;
use inspect::{BackendHistory, Inspector, PoolHistory};
use keeping::Keeping;
use pair::PairThread;
use preview::Preview;
use revisions::History;
pub use spent::Spent;
use temporary::{Leases, Temporary};
use two_phase::Both;
pub use upgrade::Predecessor;
use upgrade::Upgrade;

/// How long an idle worker keeps spinning before it blocks: longer than the gaps of busy traffic, short
/// enough that an idle gateway costs nothing.
const SPIN: Duration = Duration::from_micros(50);

/// Longest sleep of a worker: bounds how long frames of others may lie in its hands.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// How long a publication may take to reach all workers before it is reported as slow.
const PUBLISH_LIMIT: Duration = Duration::from_secs(2);

/// How long workers have to answer a question of the control thread.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// Over what time the busy share of a worker is taken.
const BUSY_WINDOW: Duration = Duration::from_secs(1);

/// Turns between two looks at the command channel while busy.
const COMMAND_TURNS: u32 = 64;

/// Why the gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A device.
    #[error("port {port}: {source}")]
    Device {
        /// Port name.
        port: String,
        /// Device name.
        device: String,
        /// The reason.
        source: XdpError,
    },
    /// XDP program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// The key of the pair.
    #[error(transparent)]
    PairKey(pair::BadKeyFile),
    /// Tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It is well formed, and must not be.
    #[error(transparent)]
    Refused(Fault),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Sessions.
    #[error(transparent)]
    Flows(#[from] flow::TooLarge),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        source: io::Error,
    },
}

/// What the control thread tells a worker.
enum Command {
    Attach {
        port: u16,
        member: u8,
        io: Box<dyn Port>,
    },
    Detach {
        port: u16,
        member: u8,
    },
    Status(Sender<Vec<QueueStatus>>),
    /// Nothing is taken from the queues any more, or again.
    Hold(bool, Sender<()>),
    /// They stop where they are, and the worker rests.
    Leave(Sender<io::Result<LeftQueues>>),
    /// Nobody has taken them.
    GoOn,
    /// Another process has: nothing here may be touched any more.
    Abandon,
    Stop,
}

struct WorkerHandle {
    cpu: usize,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// One device of a port.
pub struct Member {
    /// Device name.
    pub device: String,
    /// Bound sockets and program; `None` while the device is not there.
    pub xdp: Option<Device>,
    /// Why it carries nothing, if it does not.
    pub problem: Option<String>,
    /// What the kernel says of the device.
    pub link: Option<LinkState>,
    offloads: Option<OffloadGuard>,
    accepted: Option<Accepted>,
    /// The process before has it, and it will be ours without being bound.
    is_expected: bool,
}

impl Member {
    /// Has the device show all that comes, as it is.
    fn open_up(&mut self) {
        self.offloads = OffloadGuard::engage(&self.device)
            .inspect_err(|error| tracing::warn!(%error, "offloads stay as they are"))
            .ok();
        self.accepted = self.link.and_then(|link| {
            Accepted::groups(link.ifindex).map_err(|error| warn_accept(&self.device, &error)).ok()
        });
    }
}

/// A port: one device, or several as a LAG.
pub struct LivePort {
    /// Name.
    pub name: String,
    /// Slot in the tables.
    pub slot: u16,
    /// Its devices.
    pub members: Vec<Member>,
    mode: PortMode,
    queues: Option<u16>,
    lag: Option<Lag>,
    /// The member of an active-backup LAG that carries the traffic, if it can.
    active: usize,
    /// MAC of a LAG: its first device's, whichever of them come and go later.
    lag_mac: Option<[u8; 6]>,
}

/// What becomes of a port of a new config.
enum Planned {
    /// It runs already, at this place.
    Kept { old: usize, lag: Option<Lag> },
    /// It is yet to be bound.
    New(LivePort),
}

impl LivePort {
    fn new(slot: u16, port: &config::Port, watcher: &LinkWatcher) -> LivePort {
        let member = |device: &config::DeviceName| Member {
            device: device.to_string(),
            xdp: None,
            problem: None,
            link: watcher.find(device.as_str()).copied(),
            offloads: None,
            accepted: None,
            is_expected: false,
        };
        LivePort {
            name: port.name.to_string(),
            slot,
            mode: port.mode,
            queues: port.queues.map(|queues| queues.get() as u16),
            lag: port.lag,
            active: 0,
            lag_mac: None,
            members: port.all_devices().map(member).collect(),
        }
    }

    /// True if it can go on as this port: only the kind of LAG may differ.
    fn is_as(&self, port: &config::Port) -> bool {
        port.name.as_str() == self.name
            && port.mode == self.mode
            && port.queues.map(|queues| queues.get() as u16) == self.queues
            && port.all_devices().map(|d| d.as_str()).eq(self.members.iter().map(|m| m.device.as_str()))
    }

    fn can_carry(&self) -> u8 {
        let is_there = |member: &Member| member.xdp.is_some() || member.is_expected;
        let up = |member: &Member| is_there(member) && member.link.is_some_and(|link| link.carrier);
        self.members.iter().enumerate().filter(|(_, m)| up(m)).fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// The members that carry traffic, one bit each.
    pub fn members_up(&self) -> u8 {
        self.members_up_as(self.lag)
    }

    fn members_up_as(&self, lag: Option<Lag>) -> u8 {
        let up = self.can_carry();
        match lag {
            Some(Lag::ActiveBackup) if up & 1 << self.active != 0 => 1 << self.active,
            Some(Lag::ActiveBackup) => up & up.wrapping_neg(), // the first
            Some(Lag::Static) | None => up,
        }
    }

    /// Keeps what a LAG has settled on: the active member stays when a better one returns, since the
    /// switch has learned where we are.
    fn settle(&mut self) {
        let up = self.members_up();
        if up != 0 {
            self.active = up.trailing_zeros() as usize;
        }
        if self.lag.is_some() && self.lag_mac.is_none() {
            self.lag_mac = self.members.iter().find_map(|member| member.link).map(|link| link.mac);
        }
    }

    /// Why the port carries nothing; `None` if it does.
    pub fn why_down(&self) -> Option<String> {
        if self.members_up() != 0 {
            return None;
        }
        let reasons = self.members.iter().map(|member| {
            let why = member.problem.clone().unwrap_or_else(|| match member.link {
                None => String::from("no such device"),
                Some(link) if !link.admin_up => format!("switched off: ip link set {} up", member.device),
                Some(_) => String::from("no carrier"),
            });
            format!("{}: {why}", member.device)
        });
        Some(reasons.collect::<Vec<_>>().join("; "))
    }

    fn facts(&self, stable: PortFacts) -> PortFacts {
        let first = self.members.iter().find_map(|member| member.link).map(|link| link.mac);
        let mac = self.lag_mac.or(first).unwrap_or(stable.mac);
        PortFacts { mac, members_up: self.members_up() }
    }
}

/// The gateway.
pub struct Gateway {
    config: Config,
    /// What the operator calls the config in force.
    file_name: String,
    compiler: Compiler,
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    program: Arc<XdpProgram>,
    back_end: BackEnd,
    ports: Vec<LivePort>,
    workers: Vec<WorkerHandle>,
    watcher: LinkWatcher,
    /// Queues that a start has bound and no worker has yet, with whose they are.
    held_queues: Option<Vec<(usize, Command)>>,
    started: Instant,
    pool_history: PoolHistory,
    backend_history: BackendHistory,
    /// Of publications that not every worker took in time: released with the next one that all take.
    late: Vec<Retired>,
    /// Writes what workers report.
    events: EventLog,
    /// Members of groups that go by themselves.
    temporary: Temporary,
    /// Backends of services that go by themselves.
    leases: Leases,
    /// The health of services' backends.
    checks: Checks,
    /// The virtual routers.
    ha: Ha,
    /// What is kept of commits.
    history: History,
    /// The other node.
    pair: PairThread,
    /// Commits on both nodes.
    both: Both,
    around: around::Telling,
    /// Sessions for the next process.
    keeping: Keeping,
    /// Another process that takes our place, and the one whose place we take.
    upgrade: Upgrade,
    predecessor: Option<Predecessor>,
    /// What a commit would do to sessions.
    preview: Preview,
    /// Devices of the process before that are yet to be bound.
    inherited: Vec<inherit::Inherited>,
    /// What it knew of backends, until there is a book.
    believed: Vec<(String, bool)>,
    /// Whether the node is about to leave.
    leaving: drain::Leaving,
    spent: Spent,
}

/// A random number, from the system's entropy by way of the standard library's SipHash.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

/// What sessions, mappings and neighbours of this process are hashed with: who knew it could have them all in one
/// place. The default of `system.key` stands in the manual.
fn key_of_tables(config: &Config) -> Key {
    let (standard, key) = (meaning::key(&Config::default()), meaning::key(config));
    if key == standard { Key(random(), random()) } else { key }
}

impl Gateway {
    /// Binds all devices and starts the workers.
    pub fn start(config: Config, file_name: &str, back_end: BackEnd) -> Result<Gateway, StartError> {
        Gateway::start_after(config, file_name, back_end, None)
    }

    /// The same. `predecessor`: the process whose place it takes; everything that can be done without the devices is done
    /// while that one serves.
    pub fn start_after(
        config: Config,
        file_name: &str,
        back_end: BackEnd,
        predecessor: Option<Predecessor>,
    ) -> Result<Gateway, StartError> {
        let system = |what| move |source| StartError::System { what, source };
        let mut watcher = LinkWatcher::open().map_err(system("watch the links"))?;
        watcher.read().map_err(system("read the links"))?;
        let key = key_of_tables(&config);
        let neighbours = Arc::new(NeighbourTable::new(NEIGHBOUR_CAPACITY, MAX_INTERFACES, key));
        let mut compiler = Compiler::new(neighbours, key);
        // A commit may be refused when it is compiled.
        compiler.defer();
        let cpus = worker_cpus(&config);
        let affinity = sched_getaffinity(None).ok();
        let frames = config.system.frames.get() as usize;
        let program = XdpProgram::load()?;
        let mut predecessor = predecessor;
        let wanted = inherit::Wanted { config: &config, watcher: &watcher, back_end, workers: cpus.len() };
        let adopted = predecessor.as_mut().and_then(|predecessor| predecessor.adopt(&wanted, &program));
        let (memory, pools) = match adopted {
            Some(adopted) => adopted,
            None => PacketMemory::shareable(cpus.len(), frames, ChunkSize::Bytes2048)?,
        };
        let capacity = flow::Capacity::checked(config.flows.capacity.get(), cpus.len(), config.has_zones())?;
        let node = Node::new(&compiler, cpus.len(), MAX_INTERFACES, capacity);
        // Who knew it could make cookies himself: it is in no config.
        node.limits.cookies.set_secret(Key(random(), random()));
        let started = Instant::now();
        let workers = start_workers(&node, pools, &cpus, started).map_err(system("start the workers"))?;
        leave_to_workers(&cpus);
        let events = EventLog::start(Arc::clone(&node.events), started)
            .map_err(system("start the thread of the event log"))?;
        let checks =
            Checks::new(&node, started, random()).map_err(system("make a pipe for the health checks"))?;
        let pair = PairThread::new(&node, started).map_err(system("make an eventfd for the pair"))?;
        let ha = Ha::new(&node, pair.readiness(), started, random())
            .map_err(system("make an eventfd and a pipe for the virtual routers"))?;
        let mut gateway = Gateway {
            config: Config::default(),
            file_name: file_name.to_owned(),
            compiler,
            node,
            memory,
            program,
            back_end,
            ports: Vec::new(),
            workers,
            watcher,
            held_queues: None,
            started,
            pool_history: PoolHistory::default(),
            backend_history: BackendHistory::default(),
            late: Vec::new(),
            events,
            temporary: Temporary::default(),
            leases: Leases::default(),
            checks,
            ha,
            history: History::default(),
            pair,
            both: Both::default(),
            around: around::Telling::default(),
            keeping: Keeping::default(),
            upgrade: Upgrade::new(affinity),
            predecessor,
            preview: Preview::default(),
            inherited: Vec::new(),
            believed: Vec::new(),
            leaving: drain::Leaving::default(),
            spent: Spent::default(),
        };
        gateway.reconfigure(config, true)?;
        if let Err(why) = gateway.may_be_committed(gateway.compiler.tables(), &gateway.config) {
            tracing::error!(%why, "started all the same");
        }
        gateway.has_taken_over();
        Ok(gateway)
    }

    /// Takes a new config on, all or nothing: ports come and go, then tables are published.
    pub fn apply(&mut self, mut config: Config) -> Result<u64, StartError> {
        let given_up = self.temporary.join(&mut config.groups);
        let leases_over = self.join_leases(&mut config);
        let before = self.node.tables.load().generation;
        let result = self.reconfigure(config, false);
        // Also where a port failed: from its tables on the config is in force, and what it names itself is there for
        // good.
        let is_refused = matches!(result, Err(StartError::Refused(_)));
        if !is_refused && self.node.tables.load().generation != before {
            given_up.into_iter().for_each(|key| self.temporary.set(key, None));
            leases_over.into_iter().for_each(|key| self.leases.set(key, None));
        }
        result.map(|()| self.node.tables.load().generation)
    }

    fn reconfigure(&mut self, config: Config, must_bind: bool) -> Result<(), StartError> {
        let pair = pair::Plan::of(config.pair.as_ref()).map_err(StartError::PairKey)?;
        // Compile first: what is refused leaves ports and tables as they were.
        let mut wanted = Vec::new();
        for port in &config.ports {
            let slot = self
                .compiler
                .ports
                .slot(port.name.as_str(), crate::tables::compile::MAX_PORTS)
                .map_err(|source| CompileError::Slots { what: "ports", source })?;
            wanted.push((slot, port.clone()));
        }
        // What is refused must leave the ports that run as they are, absent devices and all: they are only read here.
        let is_expected = must_bind && self.predecessor.as_ref().is_some_and(Predecessor::leaves_devices);
        let planned: Vec<Planned> = wanted
            .into_iter()
            .map(|(slot, port)| match self.ports.iter().position(|old| old.is_as(&port)) {
                Some(old) => Planned::Kept { old, lag: port.lag },
                None => {
                    let mut port = LivePort::new(slot, &port, &self.watcher);
                    // Tables in which its ports are up are there before it is.
                    port.members.iter_mut().for_each(|member| {
                        member.is_expected = is_expected && member.link.is_some();
                    });
                    Planned::New(port)
                }
            })
            .collect();
        // A gateway that starts forwards, whatever was asserted.
        let before = if must_bind { None } else { self.before_all(&config) };
        let retired = self.compile(&config, &planned_facts(&planned, &self.ports))?;
        let retired = self.admitted(vec![retired], before, Some(&config)).map_err(StartError::Refused)?;
        let mut old: Vec<Option<LivePort>> = std::mem::take(&mut self.ports).into_iter().map(Some).collect();
        let ports = planned.into_iter().filter_map(|planned| match planned {
            Planned::Kept { old: at, lag } => old[at].take().map(|port| LivePort { lag, ..port }),
            Planned::New(port) => Some(port),
        });
        let ports: Vec<LivePort> = ports.collect();
        let mut gone: Vec<LivePort> = old.into_iter().flatten().collect();
        // Routes live in the compiler's RIB from here on, where single ones come and go; a second copy of a million
        // of them would have to follow each change.
        self.config = Config { routes: Vec::new(), route_files: Vec::new(), ..config };
        for port in &mut gone {
            self.unbind_port(port);
        }
        self.ports = ports;
        let _ = self.watcher.follow(
            self.ports.iter().flat_map(|port| port.members.iter().map(|member| member.device.clone())),
        );
        self.events.set(self.config.log.events.as_deref(), &self.compiler);
        // Before the sockets: the first frame of a new port finds its interfaces.
        self.publish(retired);
        if let Err(error) = self.pair.follow(pair, &self.compiler) {
            tracing::error!(%error, "no thread for the pair: sessions are this node's alone");
        }
        if must_bind {
            // Before the first packet comes.
            match self.predecessor.take() {
                None => self.keep_sessions(false),
                Some(predecessor) => self.take_over(predecessor).map_err(|source| StartError::System {
                    what: "take over from the process before",
                    source,
                })?,
            }
        }
        self.check_backends();
        let known = std::mem::take(&mut self.believed);
        self.believe(&known);
        let mut failed = None;
        self.held_queues = must_bind.then(Vec::new);
        for port in 0..self.ports.len() {
            for member in 0..self.ports[port].members.len() {
                if let Err(source) = self.bind(port, member) {
                    let name = self.ports[port].name.clone();
                    tracing::error!(port = name, error = %source, "cannot bind");
                    let device = self.ports[port].members[member].device.clone();
                    failed.get_or_insert(StartError::Device { port: name, device, source });
                }
            }
        }
        // What binding found out (a device that is not there) is in the tables now as well.
        self.links_changed();
        self.release_queues();
        self.accept_macs();
        self.tell_programs()?;
        if !std::mem::take(&mut self.inherited).is_empty() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(StartError::System { what: "bind a device that the process before had", source });
        }
        match failed {
            // A device that appears later is bound then; one that is there and cannot be bound is an error.
            Some(error) if must_bind => Err(error),
            _ => Ok(()),
        }
    }

    fn compile(&mut self, config: &Config, facts: &[PortFacts]) -> Result<Retired, CompileError> {
        let rib = meaning::rib(config, &mut self.compiler)?;
        let input = meaning::input(config, facts, &mut self.compiler)?;
        self.compiler.compile(input, rib)
    }

    /// Puts the compiler's tables before the workers, waits until none uses older ones, frees those here. False if a
    /// worker did not take them in time: it goes on with older ones until it does, see [`Gateway::not_in_use`].
    pub(crate) fn publish(&mut self, retired: impl IntoIterator<Item = Retired>) -> bool {
        let begun = Instant::now();
        let is_used = self.put_before_workers(retired);
        Spent::add(&mut self.spent.publish, begun);
        is_used
    }

    fn put_before_workers(&mut self, retired: impl IntoIterator<Item = Retired>) -> bool {
        self.compiler.take_over();
        let tables = Arc::clone(self.compiler.tables());
        let generation = tables.generation;
        self.late.extend(retired);
        self.pair.note_names(&self.compiler);
        self.keeping.note_names(&self.compiler);
        self.node.reserve_rules(&self.compiler.policy_slots);
        self.node.reserve_relays(&tables);
        let old = self.node.tables.swap(tables);
        self.node.wake_all();
        self.tell_segments();
        self.follow_virtual_routers();
        deterministic::log_changes(&old.policy, &self.compiler);
        let begun = Instant::now();
        while !self.node.all_use(generation) {
            if begun.elapsed() > PUBLISH_LIMIT {
                tracing::error!(generation, "a worker has not taken the tables over; is its CPU taken away?");
                // Its snapshot lives on in its hands; pins and claims stay, so nothing dangles.
                self.compiler.policy_slots.keep_addresses = true;
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        drop(old);
        self.node.forget_clients(self.compiler.tables(), self.now());
        self.pair.note_published();
        self.late.drain(..).for_each(|retired| retired.release(&self.node.neighbours));
        self.compiler.policy_slots.keep_addresses = false;
        tracing::info!(generation, applied_us = begun.elapsed().as_micros() as u64, "published");
        true
    }

    /// What to say of tables that a worker does not use yet.
    fn not_in_use(&self, generation: u64) -> Option<String> {
        (!self.node.all_use(generation)).then(|| {
            format!(
                "generation {generation} is published, but NOT in use by every worker yet: one has not answered for {} \
                 s and goes on with older tables; is its CPU taken away? see show workers",
                PUBLISH_LIMIT.as_secs()
            )
        })
    }

    // ---- devices

    fn bind(&mut self, port: usize, member: usize) -> Result<(), XdpError> {
        let ring_users = self.queues_per_worker();
        let program_slot = self.free_program_slot();
        let (slot, mode, wanted) = (self.ports[port].slot, self.ports[port].mode, self.ports[port].queues);
        let entry = &mut self.ports[port].members[member];
        if entry.xdp.is_some() {
            return Ok(());
        }
        entry.problem = None;
        if entry.link.is_none() {
            // It will be bound when it appears.
            entry.problem = Some(String::from("no such device; it is bound when it appears"));
            return Ok(());
        }
        let mode = match mode {
            PortMode::Auto => Mode::Auto,
            PortMode::ZeroCopy => Mode::ZeroCopy,
            PortMode::Copy => Mode::Copy,
            PortMode::Generic => Mode::Generic,
        };
        let opened = XdpDevice::queue_count(&entry.device).and_then(|existing| {
            let queues = wanted.unwrap_or(existing).min(existing);
            if !std::mem::take(&mut entry.is_expected) {
                entry.open_up();
            }
            if let Some(at) = self.inherited.iter().position(|left| left.device.device == entry.device) {
                let inherit::Inherited { device, offloads } = self.inherited.swap_remove(at);
                if let Some(guard) = &mut entry.offloads {
                    guard.inherit(&offloads);
                }
                return Device::adopt(&self.program, device, program_slot, &self.memory);
            }
            let rings = ring_sizes(self.memory.frames() / self.memory.workers(), ring_users.max(1));
            Device::open(&device::Plan {
                back_end: self.back_end,
                program: &self.program,
                name: &entry.device,
                program_slot,
                mode,
                queues,
                memory: &self.memory,
                rings,
            })
        });
        let (device, queues) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                entry.problem = Some(error.to_string());
                entry.offloads = None;
                entry.accepted = None;
                return Err(error);
            }
        };
        let bound = device.bound();
        tracing::info!(
            device = entry.device,
            mode = %bound.mode,
            zero_copy = bound.zero_copy,
            multi_buffer = bound.multi_buffer,
            queues = bound.queues,
            "bound"
        );
        entry.xdp = Some(device);
        for (queue, io) in queues.into_iter().enumerate() {
            // The same queue of every port goes to the same worker: a flow stays on it both ways.
            let worker = queue % self.workers.len();
            let command = Command::Attach { port: slot, member: member as u8, io };
            match &mut self.held_queues {
                Some(held) => held.push((worker, command)),
                None => _ = self.workers[worker].commands.send(command),
            }
        }
        self.node.wake_all();
        self.tell_programs()
    }

    /// Gives the workers the queues of a start: the first packet finds tables in which the links are up. By others a session
    /// that was restored would be judged as one whose way is gone.
    fn release_queues(&mut self) {
        for (worker, command) in self.held_queues.take().into_iter().flatten() {
            let _ = self.workers[worker].commands.send(command);
        }
        self.node.wake_all();
    }

    fn programs(&self) -> impl Iterator<Item = &Arc<XdpProgram>> {
        let devices =
            self.ports.iter().flat_map(|port| &port.members).filter_map(|member| member.xdp.as_ref());
        devices.filter_map(Device::own_program).chain([&self.program])
    }

    /// Tells the XDP programs which links are members of bridges, and in which tunnels there are virtual routers.
    fn tell_segments(&self) {
        let (bridged, segments) = (self.bridged_links(), self.tunnelled_segments());
        for program in self.programs() {
            if let Err(error) = program.set_bridged(&bridged).and_then(|()| program.set_segments(&segments)) {
                tracing::error!(%error, "VRRP and BFD on bridges and in tunnels may not be heard");
            }
        }
    }

    /// Tells the XDP programs what they pass to the kernel.
    fn tell_programs(&self) -> Result<(), XdpError> {
        let own: Vec<std::net::IpAddr> =
            self.config.interfaces.iter().flat_map(|i| i.addresses.iter().map(|a| a.address())).collect();
        let pair_port = self.config.pair.as_ref().map(|pair| pair.local.port());
        let (bridged, segments) = (self.bridged_links(), self.tunnelled_segments());
        for program in self.programs() {
            program.set_own_addresses(&own)?;
            program.set_pair_port(pair_port)?;
            program.set_bridged(&bridged)?;
            program.set_segments(&segments)?;
        }
        Ok(())
    }

    /// Has each device let in the MAC addresses of the interfaces on its port, where they are not its own: configured
    /// ones, and that of a LAG, which is its first device's.
    fn accept_macs(&mut self) {
        for port in &mut self.ports {
            let all = &self.compiler.input().interfaces;
            let is_here = |spec: &InterfaceSpec| spec.port.as_ref() == Some(&port.name);
            // The interface of a bridge is on the ports of all members.
            let on_port = all.iter().filter(|spec| {
                let is_member = |other: &InterfaceSpec| other.bridge == spec.bridge && is_here(other);
                let is_segment = spec.bridge.is_some() && spec.port.is_none() && spec.overlay.is_none();
                is_here(spec) || is_segment && all.iter().any(is_member)
            });
            // Those of virtual routers whoever the Active is: a card need not be told when that changes.
            let of = |spec: &InterfaceSpec| {
                let routers = spec.routers.iter().map(|router| mac_from_u64(router.mac));
                routers.chain([spec.mac]).collect::<Vec<_>>()
            };
            let mut macs: Vec<[u8; 6]> = on_port.flat_map(of).collect();
            macs.sort_unstable();
            macs.dedup();
            for member in &mut port.members {
                let (Some(accepted), Some(link)) = (&mut member.accepted, member.link) else { continue };
                let others: Vec<[u8; 6]> = macs.iter().filter(|mac| **mac != link.mac).copied().collect();
                if let Err(error) = accepted.set(&others) {
                    warn_accept(&member.device, &error);
                }
            }
        }
    }

    /// A place in the XDP program's maps: each device has its own, also the devices of one LAG.
    fn free_program_slot(&self) -> u16 {
        let bound =
            || self.ports.iter().flat_map(|port| &port.members).filter_map(|member| member.xdp.as_ref());
        // `XdpDevice::open` refuses what lies beyond the maps.
        (0..u16::MAX)
            .find(|slot| bound().all(|device| device.shared_slot() != Some(*slot)))
            .unwrap_or(u16::MAX)
    }

    /// Queues one worker serves when all ports are bound: what shares its frames.
    fn queues_per_worker(&self) -> usize {
        queues_per_worker(&self.ports, self.workers.len())
    }

    fn unbind_port(&mut self, port: &mut LivePort) {
        for member in 0..port.members.len() {
            self.unbind(port, member);
        }
    }

    fn unbind(&self, port: &mut LivePort, member: usize) {
        // First out of the program's map and off the device, then the sockets.
        port.members[member].xdp = None;
        for worker in &self.workers {
            let _ = worker.commands.send(Command::Detach { port: port.slot, member: member as u8 });
        }
        self.node.wake_all();
        port.members[member].offloads = None;
        port.members[member].accepted = None;
    }

    /// The link watcher's descriptor: readable when something happened to a device.
    pub fn watcher(&self) -> &LinkWatcher {
        &self.watcher
    }

    /// Acts on what happened to devices since the last call.
    pub fn handle_links(&mut self) {
        let events = match self.watcher.read() {
            Ok(events) => events,
            Err(error) => {
                tracing::error!(%error, "cannot read link events");
                return;
            }
        };
        let mut relevant = false;
        for event in events {
            relevant |= self.handle_link(&event);
        }
        if relevant {
            self.links_changed();
            self.accept_macs();
        }
    }

    fn handle_link(&mut self, event: &LinkEvent) -> bool {
        let place = self.ports.iter().enumerate().find_map(|(port, live)| {
            live.members.iter().position(|member| member.device == event.device).map(|member| (port, member))
        });
        let Some((port, member)) = place else { return false };
        let before = self.ports[port].members[member].link;
        match event.change {
            LinkChange::Vanished => {
                tracing::warn!(device = event.device, "device is gone");
                let mut live = std::mem::replace(&mut self.ports[port], placeholder());
                live.members[member].link = None;
                self.unbind(&mut live, member);
                live.members[member].problem =
                    Some(String::from("no such device; it is bound when it appears"));
                self.ports[port] = live;
                true
            }
            LinkChange::Appeared | LinkChange::Changed => {
                let rebind = event.change == LinkChange::Appeared
                    || before.is_none_or(|old| {
                        old.rx_queues != event.state.rx_queues || old.mtu_bytes != event.state.mtu_bytes
                    });
                self.ports[port].members[member].link = Some(event.state);
                if rebind {
                    let mut live = std::mem::replace(&mut self.ports[port], placeholder());
                    self.unbind(&mut live, member);
                    self.ports[port] = live;
                    if let Err(error) = self.bind(port, member) {
                        tracing::error!(device = event.device, %error, "cannot bind again");
                    }
                }
                let carrier = |link: Option<LinkState>| link.is_some_and(|link| link.carrier);
                if carrier(before) != event.state.carrier {
                    tracing::warn!(device = event.device, carrier = event.state.carrier, "carrier changed");
                }
                true
            }
        }
    }

    /// Publishes what the links allow: what has gone at once without rebuilding FIBs, then all with.
    fn links_changed(&mut self) {
        self.ports.iter_mut().for_each(LivePort::settle);
        let same = self.compiler.input().ports.iter().all(|known| {
            self.ports.iter().any(|port| port.name == known.name && port.members_up() == known.members_up)
        });
        let macs_same = self.ports.iter().enumerate().all(|(index, port)| {
            let mac = port.facts(PortFacts::stable(index)).mac;
            self.config.interfaces.iter().zip(&self.compiler.input().interfaces).all(|(interface, spec)| {
                let around = interface.port_around(&self.config.interfaces);
                around.is_none_or(|around| around.as_str() != port.name)
                    || interface.mac.is_some()
                    || spec.mac == mac
            })
        });
        if same && macs_same {
            return;
        }
        let mut specs = self.compiler.input().ports.clone();
        // What comes up waits for its routes: sessions that wait for the link are to find both.
        let mut is_less = false;
        for spec in specs.iter_mut().filter(|spec| spec.members_up != 0) {
            if let Some(port) = self.ports.iter().find(|port| port.name == spec.name) {
                is_less |= spec.members_up != port.members_up();
                spec.members_up = port.members_up();
            }
        }
        if is_less {
            match self.compiler.change_links(&specs) {
                Ok(retired) => _ = self.publish([retired]),
                Err(error) => tracing::error!(%error, "cannot withdraw routes"),
            }
        }
        if let Err(error) = self.recompile() {
            tracing::error!(%error, "cannot compile for the new link state");
        }
    }

    /// Compiles what depends on links anew, with the routes and the policy there are, and publishes.
    fn recompile(&mut self) -> Result<(), CompileError> {
        let policy = Arc::clone(&self.compiler.tables().policy);
        let input = self.input_in_force(Some(policy))?;
        let retired = self.compiler.recompile(input)?;
        self.publish([retired]);
        Ok(())
    }

    /// `policy`: the one compiled from the config in force, if there is one.
    fn input_in_force(&mut self, policy: Option<Arc<Policy>>) -> Result<Input, CompileError> {
        meaning::input_with(&self.config, &facts(&self.ports), policy, &mut self.compiler)
    }

    /// Where the time of the last commit went.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    // ---- what it is doing

    /// The config in force, without its routes: those are in the compiler's RIB.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What all threads share.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Ports in configured order.
    pub fn ports(&self) -> &[LivePort] {
        &self.ports
    }

    /// CPU of each worker.
    pub fn worker_cpus(&self) -> Vec<usize> {
        self.workers.iter().map(|worker| worker.cpu).collect()
    }

    /// When it started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Notes what forecasts are made from; to be called at least every few seconds.
    pub fn note_history(&mut self) {
        let now = Nanos(self.started.elapsed().as_nanos() as u64);
        self.pool_history.note(now, &self.node.tables.load().policy, &self.node.claims);
        let backends = self.compiler.policy_slots.backends.len();
        self.backend_history.note(now, backends, &self.node);
        self.watch_commits(now);
        self.preview.tidy(now);
        self.keeping.tend(now, &self.node);
    }

    /// How long [`Gateway::expire_members`] and [`Gateway::handle_health`] have nothing to do, at most `limit`.
    pub fn rest(&self, limit: Duration) -> Duration {
        let leases = self.leases.first();
        let deadlines = self.temporary.first().into_iter().chain(leases).chain(self.checks.next_step());
        let deadlines = deadlines.chain(self.next_confirmation()).chain(self.next_drain_step());
        let deadlines = deadlines.chain(self.next_upgrade_step()).chain(self.next_pair_step());
        deadlines.min().map_or(limit, |first| first.since(self.now()).min(limit))
    }

    fn now(&self) -> Nanos {
        Nanos(self.started.elapsed().as_nanos() as u64)
    }

    fn inspector(&self) -> Inspector<'_> {
        Inspector {
            node: &self.node,
            compiler: &self.compiler,
            config: &self.config,
            started: self.started,
            history: &self.pool_history,
            backend_history: &self.backend_history,
        }
    }

    /// What each worker says of its queues; a worker that does not answer is left out.
    pub fn queue_status(&self) -> Vec<QueueStatus> {
        self.ask_workers(Command::Status).into_iter().flatten().collect()
    }

    /// What the workers say to this, in no order; one that does not answer in time is left out.
    fn ask_workers<T>(&self, command: impl Fn(Sender<T>) -> Command) -> Vec<T> {
        let (sender, receiver) = bounded(self.workers.len());
        for worker in &self.workers {
            let _ = worker.commands.send(command(sender.clone()));
        }
        drop(sender);
        self.node.wake_all();
        let deadline = Instant::now() + ANSWER_LIMIT;
        std::iter::from_fn(|| receiver.recv_deadline(deadline).ok()).collect()
    }

    /// Health checks through this gateway, still without targets. `notify` is called, on their thread, when there are
    /// verdicts to be read. They are to be dropped before the gateway stops.
    pub fn health(&self, notify: impl Fn() + Send + 'static) -> Health {
        Health::new(&self.node, self.started, random(), notify)
    }

    /// Detaches everything, stops the workers and counts the frames: the number that leaked.
    pub fn stop(mut self) -> usize {
        if self.has_passed_devices() {
            return self.end_without_devices();
        }
        self.hand_over();
        // While the ports still carry: whoever takes over is to hear of it.
        self.ha.stop();
        self.pair.stop();
        self.checks.stop();
        for mut port in std::mem::take(&mut self.ports) {
            self.unbind_port(&mut port);
        }
        self.end_workers(|| Command::Stop);
        self.memory.leaked()
    }

    fn end_workers(&mut self, last: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.commands.send(last());
        }
        self.node.wake_all();
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!(cpu = worker.cpu, "a worker panicked");
            }
        }
    }
}

fn warn_accept(device: &str, error: &io::Error) {
    tracing::warn!(
        device,
        %error,
        "the device may drop groups and configured MAC addresses: ip link set {device} promisc on allmulticast on"
    );
}

/// In the order of the new config, as `ports` says where the port runs already.
fn planned_facts(planned: &[Planned], ports: &[LivePort]) -> Vec<PortFacts> {
    let facts = |(index, planned): (usize, &Planned)| match planned {
        Planned::Kept { old, lag } => {
            let port = &ports[*old];
            PortFacts { members_up: port.members_up_as(*lag), ..port.facts(PortFacts::stable(index)) }
        }
        Planned::New(port) => port.facts(PortFacts::stable(index)),
    };
    planned.iter().enumerate().map(facts).collect()
}

fn facts(ports: &[LivePort]) -> Vec<PortFacts> {
    ports.iter().enumerate().map(|(index, port)| port.facts(PortFacts::stable(index))).collect()
}

fn placeholder() -> LivePort {
    LivePort {
        name: String::new(),
        slot: 0,
        members: Vec::new(),
        mode: PortMode::Auto,
        queues: None,
        lag: None,
        active: 0,
        lag_mac: None,
    }
}

fn queues_per_worker(ports: &[LivePort], workers: usize) -> usize {
    let members = ports.iter().flat_map(|port| port.members.iter().map(move |member| (port, member)));
    let queues = members.map(|(port, member)| {
        let existing = member.link.map_or(1, |link| link.rx_queues.max(1) as usize);
        port.queues.map_or(existing, |queues| existing.min(usize::from(queues)))
    });
    queues.map(|queues| queues.div_ceil(workers.max(1))).sum()
}

/// Rings that leave half of a worker's frames for packets under way.
fn ring_sizes(frames_per_worker: usize, queues: usize) -> RingSizes {
    let fill = (frames_per_worker / (2 * queues)).clamp(64, 4096);
    let fill = if fill.is_power_of_two() { fill } else { fill.next_power_of_two() / 2 } as u32;
    let half = (fill / 2).max(64);
    RingSizes { rx: half, tx: half, fill, completion: half }
}

/// CPUs of the workers: as configured, or one per queue as far as CPUs reach, the first one left to others.
fn worker_cpus(config: &Config) -> Vec<usize> {
    if let Workers::Cpus(cpus) = &config.system.workers {
        return cpus.iter().map(|cpu| cpu.get() as usize).collect();
    }
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let queues = config
        .ports
        .iter()
        .flat_map(|port| port.all_devices().map(move |device| (port, device)))
        .map(|(port, device)| {
            let existing = XdpDevice::queue_count(device.as_str()).unwrap_or(1);
            usize::from(port.queues.map_or(existing, |queues| existing.min(queues.get() as u16)))
        })
        .max()
        .unwrap_or(1);
    match cpus.as_slice() {
        [] => vec![0],
        [only] => vec![*only],
        [_, rest @ ..] => rest.iter().copied().take(queues.clamp(1, MAX_WORKERS)).collect(),
    }
}

/// Moves the calling thread off the workers' CPUs, if others are left: compiling a large table takes a second,
/// which no worker should have to share its CPU for.
fn leave_to_workers(cpus: &[usize]) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut others = allowed;
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| others.unset(*cpu));
    if others.count() > 0
        && let Err(error) = sched_setaffinity(None, &others)
    {
        tracing::warn!(%error, "the control thread stays on the workers' CPUs");
    }
}

/// Starts the workers and waits until each has made its tables: the memory of flows is populated then, which may take
/// seconds, and the first publication finds all of them at work.
fn start_workers(
    node: &Arc<Node>,
    pools: Vec<FramePool>,
    cpus: &[usize],
    started: Instant,
) -> io::Result<Vec<WorkerHandle>> {
    let (ready, all_ready) = bounded(cpus.len());
    let mut workers = Vec::with_capacity(cpus.len());
    for (id, (pool, cpu)) in pools.into_iter().zip(cpus).enumerate() {
        let (sender, receiver) = unbounded();
        let (node, cpu, ready) = (Arc::clone(node), *cpu, ready.clone());
        let run = move || worker_loop(id, cpu, &node, pool, &receiver, ready, started);
        let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(run)?;
        workers.push(WorkerHandle { cpu, commands: sender, thread: Some(thread) });
    }
    drop(ready);
    for _ in &workers {
        let ended = |_| io::Error::other("one ended while it made its tables; lower `flows.capacity`");
        all_ready.recv().map_err(ended)?;
    }
    Ok(workers)
}

fn worker_loop(
    id: usize,
    cpu: usize,
    node: &Arc<Node>,
    pool: FramePool,
    commands: &Receiver<Command>,
    ready: Sender<()>,
    started: Instant,
) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        tracing::warn!(worker = id, cpu, "cannot pin the worker to its CPU");
    }
    let mut worker = Worker::new(id, node, pool);
    let _ = ready.send(());
    // With the last of them gone the start learns that a worker has ended.
    drop(ready);
    let counters = &node.counters[id];
    let clock = || Nanos(started.elapsed().as_nanos() as u64);
    let mut last_work = clock();
    let mut last_turn = last_work;
    let mut turns = 0u32;
    let (mut busy, mut window) = (Duration::ZERO, last_work);
    let mut run_queue = RunQueue::of_this_thread();
    let mut worked = false;
    let mut rests = false;
    loop {
        while rests {
            // Without a sender the process ends.
            let Ok(command) = commands.recv() else { return };
            match obey(command, &mut worker) {
                After::GoesOn => rests = false,
                After::Ends => return worker.stop(),
                After::Abandons => return std::mem::forget(worker),
                After::Rests | After::Same => {}
            }
        }
        let now = clock();
        turns = turns.wrapping_add(1);
        let gap = now.since(last_turn);
        // Before the turn: what is waited for the CPU in it belongs to the next gap.
        let longest = Duration::from_nanos(counters.longest_gap_own_ns.load(Ordering::Relaxed));
        let waited = run_queue.waited_within(gap, worked, longest);
        worked = worker.turn(now);
        counters.turns.store(u64::from(turns), Ordering::Relaxed);
        if worked {
            longest_of(&counters.longest_gap_ns, gap);
            longest_of(&counters.longest_gap_own_ns, gap - waited);
            if gap - waited >= gaps::TARGET {
                add(&counters.long_gaps, 1);
            }
            last_work = now;
            busy += clock().since(now);
        }
        if now.since(window) >= BUSY_WINDOW {
            let permille = busy.as_nanos() * 1000 / now.since(window).as_nanos().max(1);
            counters.busy_permille.store(permille as u64, Ordering::Relaxed);
            (busy, window) = (Duration::ZERO, now);
        }
        last_turn = now;
        let idle = !worked && now.since(last_work) >= SPIN;
        if idle || turns.is_multiple_of(COMMAND_TURNS) {
            while let Ok(command) = commands.try_recv() {
                match obey(command, &mut worker) {
                    After::Rests => rests = true,
                    After::Ends => return worker.stop(),
                    After::Abandons => return std::mem::forget(worker),
                    After::GoesOn => rests = false,
                    After::Same => {}
                }
            }
        }
        if idle && !rests {
            worker.sleep(now, LONGEST_SLEEP);
            let woken = clock();
            (last_work, last_turn) = (woken, woken);
            run_queue.slept();
        }
    }
}

/// What becomes of a worker's loop.
enum After {
    Same,
    /// Until it is told what becomes of its queues it has no turn.
    Rests,
    GoesOn,
    Ends,
    /// Its frames are another process': they must not even be looked at.
    Abandons,
}

fn obey(command: Command, worker: &mut Worker) -> After {
    match command {
        Command::Attach { port, member, io } => worker.attach(port, member, io),
        Command::Detach { port, member } => worker.detach(port, member),
        Command::Status(sender) => {
            let _ = sender.send(worker.queue_status());
        }
        Command::Hold(is_held, sender) => {
            worker.hold(is_held);
            let _ = sender.send(());
        }
        Command::Leave(sender) => {
            let _ = sender.send(worker.leave_queues());
            return After::Rests;
        }
        Command::GoOn => {
            worker.go_on();
            return After::GoesOn;
        }
        Command::Abandon => return After::Abandons,
        Command::Stop => return After::Ends,
    }
    After::Same
}

fn longest_of(longest_ns: &AtomicU64, gap: Duration) {
    let gap = gap.as_nanos() as u64;
    if gap > longest_ns.load(Ordering::Relaxed) {
        longest_ns.store(gap, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_hashed_with_what_nobody_knows() {
        let text = "schema = 1\n[system]\nname = \"gw\"\n";
        let silent = Config::parse(text, "gw.toml").expect("a config");
        let keyed = format!("{text}key = \"0102030405060708090a0b0c0d0e0f10\"\n");
        let keyed = Config::parse(&keyed, "gw.toml").expect("a config");
        assert_ne!(key_of_tables(&silent), meaning::key(&silent));
        assert_ne!(key_of_tables(&silent), key_of_tables(&silent));
        let key = key_of_tables(&keyed);
        assert_eq!(key, Key(0x0102_0304_0506_0708, 0x090a_0b0c_0d0e_0f10));
    }
}
