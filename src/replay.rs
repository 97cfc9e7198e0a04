//! Deterministic replay and the benchmark: the shipped worker loop with captures and memory as ports.
//!
//! Replay runs N workers in lock-step on one thread; the clock is the capture's. The same config, captures
//! and number of workers give the same bytes and counters on any machine.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::{Config, GroupName, HealthKind};
use crate::flow;
use crate::host::probe::{Event, Target};
use crate::io::pcap::{self, CaptureError, CaptureWriter, Captured, PcapPort, ReplayClock};
use crate::mem::{ChunkSize, MemoryError, PacketMemory};
use crate::neighbours::NeighbourTable;
use crate::packet::hash::{self, Key};
use crate::packet::view::{be16, be32, be128, ethertype};
use crate::roles::Part;
use crate::tables::compile::{CompileError, Compiler, MAX_INTERFACES};
use crate::tables::meaning::{self, PortFacts};
use crate::telemetry::Totals;
use crate::time::Nanos;
use crate::worker::{Node, Prober, Worker};

/// Neighbours a node holds; twice as many slots of 64 bytes.
pub const NEIGHBOUR_CAPACITY: usize = 16_384;

/// Turns of all workers without progress of the clock after which a replay would be stuck: more than any
/// burst can cause by answering answers.
const MAX_ROUNDS: usize = 1_000_000;

/// Longest time without a packet: as long as a session may idle.
pub const LONGEST_GAP: Nanos = Nanos::from_secs(31 * 24 * 3600);

/// What to replay.
#[derive(Clone, Debug)]
pub struct Options {
    /// Captures by port name.
    pub inputs: Vec<(String, PathBuf)>,
    /// Where `PORT.pcap` are written.
    pub out: PathBuf,
    /// Lock-step workers.
    pub workers: usize,
    /// How long the clock runs on behind the last packet.
    pub linger: Duration,
    /// Configs that take over, so long after the first packet; ports stay those of the first config.
    pub reloads: Vec<(Duration, Config)>,
    /// What the node does for its virtual routers, or those of one group, from so long after the first packet on; before,
    /// nothing.
    pub roles: Vec<RoleChange>,
    /// What is checked from the first packet on.
    pub targets: Vec<Target>,
}

/// A node does something else for virtual routers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// So long after the first packet.
    pub after: Duration,
    /// What it does from then on.
    pub part: Part,
    /// For those of this group; `None`: for all.
    pub group: Option<GroupName>,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Counters of all workers.
    pub totals: Totals,
    /// Frames written, by port name; ports that sent nothing are left out.
    pub written: Vec<(String, u64)>,
    /// What has become of the targets.
    pub verdicts: Vec<Event>,
    /// Frames that did not come home: always 0, or a bug.
    pub leaked_frames: usize,
}

/// Why a replay could not run.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Sessions.
    #[error(transparent)]
    Flows(#[from] flow::TooLarge),
    /// `--in` names a port the config does not have.
    #[error("--in {name}=...: the config has no port `{name}`; it has {known}")]
    UnknownPort {
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// The output folder.
    #[error("{path}: {source}")]
    Output {
        /// The folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A port that appears or goes would need captures of its own.
    #[error("a config to reload has other ports than the first: {0}")]
    OtherPorts(String),
    /// Years between two packets: one of the times is wrong, and all timers between would fire.
    #[error(
        "between two packets of the captures there are {days} days, at most {most} can be replayed: is one of their times wrong?"
    )]
    Gap {
        /// Days between them.
        days: u64,
        /// Most days.
        most: u64,
    },
    /// Work without end.
    #[error("the replay does not come to rest at {0:?}: this is a bug, please report it with the captures")]
    Stuck(Nanos),
}

/// Workers' time begins at a multiple of this in the capture's, at least as much before the first packet unless that
/// is younger itself.
const START_STEP: Nanos = Nanos::from_secs(1000);

/// Compiles `config` for a node without devices. `populate`: takes the memory of all sessions at once.
pub fn compile(
    config: &Config,
    workers: usize,
    populate: bool,
) -> Result<(Arc<Node>, Compiler), ReplayError> {
    let compiler = compile_tables(config, NEIGHBOUR_CAPACITY)?;
    let capacity = flow::Capacity::checked(config.flows.capacity.get(), workers, populate)?;
    let node = Node::new(&compiler, workers, MAX_INTERFACES, capacity);
    node.reserve_rules(&compiler.policy_slots);
    node.reserve_relays(compiler.tables());
    Ok((node, compiler))
}

/// The tables of `config`, and a neighbour table for so many.
pub(crate) fn compile_tables(config: &Config, neighbours: usize) -> Result<Compiler, CompileError> {
    let key = meaning::key(config);
    let neighbours = Arc::new(NeighbourTable::new(neighbours, MAX_INTERFACES, key));
    let mut compiler = Compiler::new(Arc::clone(&neighbours), key);
    let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
    let rib = meaning::rib(config, &mut compiler)?;
    let input = meaning::input(config, &facts, &mut compiler)?;
    compiler.compile(input, rib)?.release(&neighbours);
    Ok(compiler)
}

/// Runs captures through the gateway.
pub fn run(config: &Config, options: &Options) -> Result<Report, ReplayError> {
    let ports: Vec<String> = config.ports.iter().map(|port| port.name.to_string()).collect();
    let mut inputs: Vec<Vec<Captured>> = vec![Vec::new(); ports.len()];
    for (name, path) in &options.inputs {
        let index = ports
            .iter()
            .position(|port| port == name)
            .ok_or_else(|| ReplayError::UnknownPort { name: name.clone(), known: ports.join(", ") })?;
        inputs[index].extend(pcap::read(path)?);
    }
    std::fs::create_dir_all(&options.out)
        .map_err(|source| ReplayError::Output { path: options.out.clone(), source })?;
    forget_outputs(&ports, options)?;
    for input in &mut inputs {
        input.sort_by_key(|captured| captured.time);
    }
    // Workers count from a start of their own, as a node does from its boot: timers would not reach a date.
    let first = inputs.iter().flatten().map(|captured| captured.time).min().unwrap_or_default();
    let start = Nanos((first.0 / START_STEP.0).saturating_sub(1) * START_STEP.0);
    inputs.iter_mut().flatten().for_each(|captured| captured.time.0 -= start.0);
    let mut times: Vec<Nanos> = inputs.iter().flatten().map(|captured| captured.time).collect();
    times.sort_unstable();
    times.dedup();
    let gap = times.windows(2).map(|two| two[1].0 - two[0].0).max().unwrap_or_default();
    if gap > LONGEST_GAP.0 {
        let days = |nanos: u64| nanos / Nanos::from_secs(24 * 3600).0;
        return Err(ReplayError::Gap { days: days(gap), most: days(LONGEST_GAP.0) });
    }
    let begin = times.first().copied().unwrap_or_default();
    let mut reloads: VecDeque<(Nanos, &Config)> =
        options.reloads.iter().map(|(after, config)| (begin.plus(*after), config)).collect();
    reloads.make_contiguous().sort_by_key(|(time, _)| *time);
    let mut roles: VecDeque<&RoleChange> = options.roles.iter().collect();
    roles.make_contiguous().sort_by_key(|change| change.after);
    for (_, reload) in &reloads {
        let names: Vec<String> = reload.ports.iter().map(|port| port.name.to_string()).collect();
        if names != ports {
            return Err(ReplayError::OtherPorts(names.join(", ")));
        }
    }
    let (node, mut compiler) = compile(config, options.workers, false)?;
    // There is nobody to be heard or not.
    node.neighbours.roles.set_peer(config.pair.is_some());
    let frames = config.system.frames.get() as usize;
    let (memory, pools) = PacketMemory::lazy(options.workers, frames.min(16_384), ChunkSize::Bytes2048)?;
    let clock = ReplayClock::default();
    let outputs = outputs(&ports, &options.out, start);
    let mut workers: Vec<Worker> =
        pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
    for (port, input) in inputs.into_iter().enumerate() {
        // Slots are given in configured order by the only compilation there is.
        let slot = port as u16;
        for (queue, input) in spread(input, options.workers).into_iter().enumerate() {
            let io = PcapPort::new(input, clock.clone(), Arc::clone(&outputs[port]));
            workers[queue].attach(slot, 0, Box::new(io));
        }
    }
    let mut workers = Crew::new(workers, &node, options.targets.clone(), begin);
    let end = times.last().copied().unwrap_or_default().plus(options.linger);
    for time in times {
        while let Some((at, config)) = reloads.pop_front_if(|(at, _)| *at <= time) {
            advance(&mut workers, &clock, at)?;
            clock.set(at);
            reload(config, &node, &mut compiler, &mut workers, &clock)?;
        }
        let mut moment = None;
        while let Some(change) = roles.pop_front_if(|change| begin.plus(change.after) <= time) {
            let at = begin.plus(change.after);
            // What changes at one moment no packet sees the half of.
            if moment.replace(at) != Some(at) {
                advance(&mut workers, &clock, at)?;
            }
            set_roles(change, config, &node, &compiler, at);
        }
        advance(&mut workers, &clock, time)?;
        settle(&mut workers, &clock, time)?;
    }
    advance(&mut workers, &clock, end)?;
    if options.linger > Duration::ZERO {
        settle(&mut workers, &clock, end)?;
    }
    let verdicts = std::mem::take(&mut workers.verdicts);
    workers.workers.into_iter().for_each(Worker::stop);
    let mut report = Report {
        totals: Totals::of(node.counters.iter().map(|counters| &**counters)),
        written: Vec::new(),
        verdicts,
        leaked_frames: memory.leaked(),
    };
    for (name, output) in ports.into_iter().zip(outputs) {
        let count = output.lock().expect("no holder panics").finish()?;
        if count > 0 {
            report.written.push((name, count));
        }
    }
    Ok(report)
}

fn set_roles(change: &RoleChange, config: &Config, node: &Node, compiler: &Compiler, now: Nanos) {
    for vrrp in config.vrrp.iter().filter(|vrrp| change.group.is_none() || vrrp.group == change.group) {
        for is_ipv6 in [false, true] {
            if let Some(role) = compiler.roles.get(&meaning::role_name(vrrp, is_ipv6)) {
                node.set_role(role, change.part, now);
            }
        }
    }
}

/// All that a node has threads for, in lock-step.
struct Crew {
    workers: Vec<Worker>,
    /// If there is anything to check.
    prober: Option<Prober>,
    verdicts: Vec<Event>,
}

impl Crew {
    fn new(workers: Vec<Worker>, node: &Arc<Node>, targets: Vec<Target>, now: Nanos) -> Crew {
        // TLS is random and asks for the date.
        let targets: Vec<Target> =
            targets.into_iter().filter(|target| target.check.kind != HealthKind::Https).collect();
        let prober = (!targets.is_empty()).then(|| {
            // Every run the same.
            let mut prober = Prober::new(node, node.key.0);
            prober.set_targets(targets, now);
            prober
        });
        Crew { workers, prober, verdicts: Vec::new() }
    }

    fn next_deadline(&self) -> Option<Nanos> {
        let workers = self.workers.iter().map(Worker::next_deadline);
        workers.chain(self.prober.as_ref().map(Prober::next_deadline)).min()
    }

    /// One turn of each. True if there was work.
    fn turn(&mut self, time: Nanos) -> bool {
        let worked = self.workers.iter_mut().fold(false, |worked, worker| worker.turn(time) | worked);
        let verdicts = &mut self.verdicts;
        worked | self.prober.as_mut().is_some_and(|prober| prober.turn(time, verdicts))
    }
}

/// Puts the tables of another config before the workers, as the gateway does: at once, between two bursts.
fn reload(
    config: &Config,
    node: &Node,
    compiler: &mut Compiler,
    workers: &mut Crew,
    clock: &ReplayClock,
) -> Result<(), ReplayError> {
    let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
    let rib = meaning::rib(config, compiler)?;
    let input = meaning::input(config, &facts, compiler)?;
    let retired = compiler.compile(input, rib)?;
    node.reserve_rules(&compiler.policy_slots);
    node.reserve_relays(compiler.tables());
    node.tables.store(Arc::clone(compiler.tables()));
    settle(workers, clock, clock.now())?;
    node.forget_clients(compiler.tables(), clock.now());
    retired.release(&node.neighbours);
    Ok(())
}

/// Takes away what a replay before this one has left: who finds `PORT.pcap` takes it for what the port has sent. Captures
/// that are read stay.
fn forget_outputs(ports: &[String], options: &Options) -> Result<(), ReplayError> {
    let inputs: Vec<PathBuf> =
        options.inputs.iter().filter_map(|(_, path)| path.canonicalize().ok()).collect();
    for path in ports.iter().map(|port| options.out.join(format!("{port}.pcap"))) {
        if path.canonicalize().is_ok_and(|path| !inputs.contains(&path)) {
            std::fs::remove_file(&path).map_err(|source| ReplayError::Output { path, source })?;
        }
    }
    Ok(())
}

fn outputs(ports: &[String], out: &Path, start: Nanos) -> Vec<Arc<Mutex<CaptureWriter>>> {
    let path = |port: &String| out.join(format!("{port}.pcap"));
    let writer = |port: &String| Arc::new(Mutex::new(CaptureWriter::new(path(port), start)));
    ports.iter().map(writer).collect()
}

/// Fires what falls due before `time`, each at its own time.
fn advance(workers: &mut Crew, clock: &ReplayClock, time: Nanos) -> Result<(), ReplayError> {
    // Before the first packet there is nothing to be due: the clock jumps.
    if clock.now() == Nanos(0) {
        clock.set(time);
        return Ok(());
    }
    loop {
        let due = workers.next_deadline().unwrap_or(time);
        if due >= time {
            return Ok(());
        }
        clock.set(due.max(clock.now()));
        settle(workers, clock, clock.now())?;
    }
}

/// Turns all workers in order until none has anything left to do at `time`.
fn settle(workers: &mut Crew, clock: &ReplayClock, time: Nanos) -> Result<(), ReplayError> {
    clock.set(time);
    for _ in 0..MAX_ROUNDS {
        if !workers.turn(time) {
            return Ok(());
        }
    }
    Err(ReplayError::Stuck(time))
}

/// Spreads frames over queues as a NIC would: by flow, non-IP to the first queue.
fn spread(input: Vec<Captured>, queues: usize) -> Vec<VecDeque<Captured>> {
    let mut spread = vec![VecDeque::new(); queues];
    for captured in input {
        let queue = flow_of(&captured.bytes) as usize % queues;
        spread[queue].push_back(captured);
    }
    spread
}

/// A hash of the addresses and ports behind up to two tags: receive side scaling, in software.
fn flow_of(frame: &[u8]) -> u64 {
    let key = Key::default();
    let mut at = 12;
    while frame.len() >= at + 6 && matches!(be16(frame, at), ethertype::VLAN | ethertype::QINQ) {
        at += 4;
    }
    if frame.len() < at + 2 {
        return 0;
    }
    let l3 = &frame[at + 2..];
    let ports = |l4: usize, protocol: u8| match l3.get(l4..l4 + 4) {
        Some(ports) if matches!(protocol, 6 | 17 | 132) => (be16(ports, 0), be16(ports, 2)),
        _ => (0, 0),
    };
    match be16(frame, at) {
        ethertype::IPV4 if l3.len() >= 20 => {
            let fragment = be16(l3, 6) & 0x3fff != 0;
            let l4 = usize::from(l3[0] & 15) * 4;
            let ports = if fragment { (0, 0) } else { ports(l4, l3[9]) };
            hash::tuple_v4(key, be32(l3, 12), be32(l3, 16), l3[9], ports)
        }
        ethertype::IPV6 if l3.len() >= 40 => {
            hash::tuple_v6(key, be128(l3, 8), be128(l3, 24), l3[6], ports(40, l3[6]))
        }
        _ => 0,
    }
}
