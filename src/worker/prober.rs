//! The health checks of a node: the engine between the tables, which know the ways, and the workers, which have the
//! packets. Who drives it reads the clock; it may be on any thread, but there is one for a node.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::node::Node;
use crate::host::probe::{Engine, Event, Flow, Outside, Source, Status, Target};
use crate::mem::BURST;
use crate::neighbours::addr_key;
use crate::packet::view::be16;
use crate::pipeline::route;
use crate::tables::Tables;
use crate::time::Nanos;

/// Answers looked at in one turn: then comes what is due.
const ANSWERS: usize = 4 * BURST;

/// The health checks of a node.
pub struct Prober {
    node: Arc<Node>,
    engine: Engine,
}

impl Prober {
    /// Without targets. `seed`: where the sequence numbers of connections begin; it should not be guessed.
    pub fn new(node: &Arc<Node>, seed: u64) -> Prober {
        node.probes.open();
        Prober { node: Arc::clone(node), engine: Engine::new(node.key, seed) }
    }

    /// Checks these from now on; see [`Engine::set_targets`].
    pub fn set_targets(&mut self, targets: Vec<Target>, now: Nanos) {
        self.with_engine(&mut Vec::new(), |engine, outside| engine.set_targets(targets, now, outside));
    }

    /// Takes answers and does what is due. Verdicts that have changed go to `events`. True if there was work.
    pub fn turn(&mut self, now: Nanos, events: &mut Vec<Event>) -> bool {
        let node = Arc::clone(&self.node);
        self.with_engine(events, |engine, outside| {
            let mut answers = 0;
            while answers < ANSWERS
                // What the engine does not know any more has come too late.
                && node.probes.take_arrived(|packet, vrf| engine.receive(packet, vrf, now, outside)).is_some()
            {
                answers += 1;
            }
            let is_due = engine.next_deadline() <= now;
            engine.advance(now, outside);
            answers > 0 || is_due
        })
    }

    fn with_engine<R>(
        &mut self,
        events: &mut Vec<Event>,
        run: impl FnOnce(&mut Engine, &mut Way<'_>) -> R,
    ) -> R {
        let tables = self.node.tables.load();
        let mut way = Way { node: &self.node, tables: &tables, events, told: 0 };
        let result = run(&mut self.engine, &mut way);
        let told = way.told;
        (0..self.node.counters.len()).filter(|worker| told & 1 << worker != 0).for_each(|worker| {
            self.node.wake_if_asleep(worker);
        });
        result
    }

    /// When [`Prober::turn`] has something to do without an answer.
    pub fn next_deadline(&self) -> Nanos {
        self.engine.next_deadline()
    }

    /// What is known of all targets, in no order.
    pub fn status(&self) -> impl Iterator<Item = Status> {
        self.engine.status()
    }

    /// Probes that were put off for lack of room.
    pub fn put_off(&self) -> u64 {
        self.engine.put_off()
    }
}

/// The engine's way to the node.
struct Way<'n> {
    node: &'n Node,
    tables: &'n Tables,
    events: &'n mut Vec<Event>,
    /// Workers that were given packets, one bit each.
    told: u64,
}

impl Outside for Way<'_> {
    fn source(&mut self, vrf: u16, dst: IpAddr, from: Option<IpAddr>) -> Option<Source> {
        // A VRF may have been deleted since.
        if usize::from(vrf) >= self.tables.vrfs.len() {
            return None;
        }
        let (egress, _) = route::of_own(self.tables, vrf, dst)?;
        let interface = self.tables.interface(egress);
        let addr = match (from, dst) {
            (Some(from), _) => Some(from).filter(|from| route::is_own(self.tables, interface.vrf, *from)),
            (None, IpAddr::V4(dst)) => interface.source_v4(dst).map(IpAddr::V4),
            // Nobody behind a router answers to a link-local address.
            (None, IpAddr::V6(dst)) => {
                interface.source_v6(dst).filter(|addr| !addr.is_unicast_link_local()).map(IpAddr::V6)
            }
        };
        addr.map(|addr| Source { addr, vrf: interface.vrf })
    }

    fn is_reachable(&mut self, vrf: u16, dst: IpAddr) -> bool {
        if usize::from(vrf) >= self.tables.vrfs.len() {
            return false;
        }
        let Some((egress, via)) = route::of_own(self.tables, vrf, dst) else { return false };
        let neighbour = via.or_else(|| self.node.neighbours.find(egress, addr_key(dst)));
        neighbour.is_some_and(|slot| self.node.neighbours.word(slot).is_usable())
    }

    fn has_room(&mut self) -> bool {
        self.node.probes.has_room()
    }

    fn send(&mut self, vrf: u16, packet: &[u8]) {
        // All packets of a connection by the same worker, or they might overtake each other. Its port is behind a
        // header without options.
        let l4 = if packet[0] >> 4 == 4 { 20 } else { 40 };
        let worker = usize::from(be16(packet, l4)) % self.node.counters.len();
        if self.node.probes.send(worker, vrf, packet) {
            self.told |= 1 << worker;
        }
    }

    fn expect(&mut self, flow: &Flow) -> bool {
        self.node.probes.expect(flow)
    }

    fn forget(&mut self, flow: &Flow) {
        self.node.probes.forget(flow);
    }

    fn read(&mut self, file: &Path) -> io::Result<Vec<u8>> {
        crate::config::read_file(file).map(String::into_bytes).inspect_err(|error| {
            tracing::error!(file = %file.display(), %error, "cannot read the authorities of a health check");
        })
    }

    fn report(&mut self, event: Event) {
        self.events.push(event);
    }
}

const _: () = assert!(crate::config::MAX_WORKERS <= 64, "workers are bits of a word");
