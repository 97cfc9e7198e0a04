//! A dry run: the shipped worker over ports in memory, with copies of what the live ones share. What it learns, gives
//! away or remembers nobody else sees.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::affinity::Client;
use crate::config::Port;
use crate::flow::Capacity;
use crate::flow::scan::SessionView;
use crate::io::memory::Cable;
use crate::macs::Location;
use crate::mem::{BURST, ChunkSize, FramePool, PacketMemory};
use crate::neighbours::State;
use crate::packet::{DropReason, Ingress, Meta, Packet};
use crate::pipeline::Context;
use crate::pipeline::trail::{self, Seen};
use crate::tables::Lag;
use crate::tables::compile::Compiler;
use crate::telemetry::Totals;
use crate::time::Nanos;
use crate::worker::{Node, Worker};

/// Frames of packet memory for the worker, and for what is only looked at.
const FRAMES: usize = 512;
/// Turns without rest after which something is badly wrong.
const MAX_TURNS: usize = 100_000;
/// The MAC address of neighbours that are taken to answer.
const ASSUMED: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

/// Why there is no dry run.
#[derive(Debug, thiserror::Error)]
pub enum DryError {
    /// Memory.
    #[error("a dry run takes a few megabytes that there are not: {0}")]
    Memory(#[from] crate::mem::MemoryError),
    /// Descriptors.
    #[error("a dry run takes a file descriptor that there is not ({0}): raise `ulimit -n`")]
    Descriptor(#[from] std::io::Error),
    /// Work without end.
    #[error(
        "the packet does not come to rest: this is a bug, please report it with the packet and the config"
    )]
    Stuck,
    /// A frame too large.
    #[error("a frame has 14 to 9216 bytes")]
    Length,
    /// A port there is not.
    #[error("no such port")]
    NoPort,
}

/// What has happened to a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Frames that left: port slot and bytes.
    pub sent: Vec<(u16, Vec<u8>)>,
    /// What was lost, and how often.
    pub drops: Vec<(DropReason, u64)>,
    /// Packets that the gateway took for itself.
    pub punted: u64,
    /// Neighbours that were asked for, and that were taken to answer then: slots of the neighbour table.
    pub asked: Vec<u32>,
    /// Sessions that began.
    pub opened: Vec<SessionView>,
}

/// A worker of its own.
pub struct Dry {
    node: Arc<Node>,
    worker: Worker,
    /// For what is only looked at.
    pool: FramePool,
    cables: Vec<(u16, Cable)>,
    now: Nanos,
    sessions: Vec<SessionView>,
}

/// Shortest frame: an Ethernet header.
const MIN_BYTES: usize = 14;
/// Longest frame.
const MAX_BYTES: usize = 9216;

impl Dry {
    /// A dry run of the tables compiled last, at a time of the workers' clock.
    pub fn new(compiler: &Compiler, now: Nanos) -> Result<Dry, DryError> {
        let tables = compiler.tables();
        let node = Node::scratch(compiler, Capacity::NONE)?;
        let (_, mut pools) = PacketMemory::lazy(2, FRAMES, ChunkSize::Bytes2048)?;
        let pool = pools.remove(1);
        let mut worker = Worker::new(0, &node, pools.remove(0));
        let mut cables = Vec::new();
        for (slot, port) in (0..).zip(tables.ports.iter()).filter(|(_, port)| !port.name.is_empty()) {
            let cable = Cable::new(1);
            let members = if port.lag == Lag::None { 1 } else { Port::MAX_DEVICES as u8 };
            for member in 0..members {
                worker.attach(slot, member, Box::new(cable.end(0, BURST)));
            }
            cables.push((slot, cable));
        }
        let mut dry = Dry { node, worker, pool, cables, now, sessions: Vec::new() };
        // What is due anyway (advertisements, looks for loops) is nobody's answer.
        dry.settle()?;
        dry.collect();
        Ok(dry)
    }

    fn settle(&mut self) -> Result<(), DryError> {
        for _ in 0..MAX_TURNS {
            if !self.worker.turn(self.now) {
                return Ok(());
            }
        }
        Err(DryError::Stuck)
    }

    fn collect(&mut self) -> Vec<(u16, Vec<u8>)> {
        let of =
            |(port, cable): &(u16, Cable)| cable.take().into_iter().map(|frame| (*port, frame)).collect();
        self.cables.iter().flat_map(|of_port| -> Vec<(u16, Vec<u8>)> { of(of_port) }).collect()
    }

    /// What the first stages make of a frame.
    pub fn look(&mut self, port: u16, bytes: &[u8]) -> Result<Seen, DryError> {
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes.len()) {
            return Err(DryError::Length);
        }
        let frame = self.pool.take_filled(bytes).ok_or(DryError::Length)?;
        let tables = self.node.tables.load_full();
        let cx = Context { ingress: Ingress::Port(port), ..self.node.context(0, &tables, self.now) };
        let mut packet = Packet { frame, meta: Meta::FRESH };
        let seen = trail::look(&mut packet, &cx);
        self.pool.put(packet.frame);
        Ok(seen)
    }

    /// Runs a frame that has been looked at through the gateway. Sessions that it opens stay for those behind it.
    pub fn run(&mut self, port: u16, bytes: &[u8]) -> Result<Ran, DryError> {
        let before = self.totals();
        let cable = self.cables.iter().find(|(slot, _)| *slot == port).ok_or(DryError::NoPort)?;
        cable.1.send(0, [bytes.to_vec()]);
        self.settle()?;
        // Its packet waits: it goes on as if they had answered.
        let asked: Vec<u32> = self
            .node
            .neighbours
            .entries()
            .into_iter()
            .filter(|entry| entry.word.state() == State::Incomplete)
            .map(|entry| entry.slot)
            .collect();
        if !asked.is_empty() {
            for slot in &asked {
                self.node.neighbours.learn(*slot, ASSUMED, true, self.now);
            }
            self.settle()?;
        }
        let after = self.totals();
        let drops = after.drops.iter().filter_map(|(reason, count)| {
            let old = before.drops.iter().find(|(known, _)| known == reason).map_or(0, |(_, count)| *count);
            (*count > old).then_some((*reason, count - old))
        });
        let drops = drops.collect();
        let sessions = self.worker.sessions();
        let known = |session: &SessionView| {
            self.sessions.iter().any(|old| {
                (old.src, old.dst, old.ports, old.protocol)
                    == (session.src, session.dst, session.ports, session.protocol)
            })
        };
        let opened = sessions.iter().filter(|session| !known(session)).copied().collect();
        self.sessions = sessions;
        let punted = self.node.counters[0].punted.load(Ordering::Relaxed);
        let was = before.punted;
        Ok(Ran { sent: self.collect(), drops, punted: punted - was, asked, opened })
    }

    /// Interface slot and address of a neighbour.
    pub fn neighbour(&self, slot: u32) -> (u16, IpAddr) {
        self.node.neighbours.key_of(slot)
    }

    /// A station is behind this member of a bridge, of those of the tables that it runs. False: there is no way to it.
    pub fn place(&self, bridge: u16, member: u16, mac: u64) -> bool {
        let (tables, neighbours) = (self.node.tables.load(), &self.node.neighbours);
        let found = tables.bridges.get(bridge).and_then(|bridge| Some((bridge, bridge.member(member)?)));
        let Some((bridge, member)) = found else { return false };
        let location = match member.vni {
            None => Some(Location::local(member.interface)),
            Some((number, overlay)) => {
                let remote = tables.overlays.get(overlay).and_then(|overlay| overlay.remotes().first());
                let remote = remote.and_then(|remote| neighbours.vteps.find_or_insert(*remote, self.now));
                remote.map(|remote| Location::remote(remote, number))
            }
        };
        location.is_some_and(|location| neighbours.macs.set_permanent(bridge.segment, mac, location))
    }

    /// A client had this backend last.
    pub fn remember(&self, client: Client, backend: u32) {
        self.node.limits.clients.note(client, backend, self.now);
    }

    fn totals(&self) -> Totals {
        Totals::of(self.node.counters.iter().map(|counters| &**counters))
    }
}
