//! Frames of any bytes through the shipped worker loop; afterwards the books must balance.
//!
//! Input: one byte chooses the gateway ([`CONFIGS`]), one what is special about it (bits 0-2: variant of the config;
//! bit 6: time passes when one worker has turned once; bits 3-5 and 7, if all are set: it is stopped in the midst of
//! work), then records, each a received frame:
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bit 0: cable; bits 1-3: time that passes before it ([`STEPS_MS`]), or [`MANY`]; bits 4-7: [`mend`] |
//! | 1 | length of the bytes that follow (what is there, if the input ends) |
//! | 2 | padding behind them, in units of 40 bytes: 0 to 10,200; of a succession its fate, in `FATES` |
//! | 3 | with [`MANY`]: bits 0-2: what is different in each ([`vary`]); bits 3-7: how many more. Or [`SUCCESSION`] |
//! | 3.. | the frame from its first byte |
//!
//! At the end the clock runs until everything has come to rest and every neighbour is forgotten, so that
//! the next input finds the gateway as this one did. Then:
//! - no frame is missing: all are free again;
//! - no session is left;
//! - no neighbour is left but those of the config, and no port of a NAT address;
//! - received + originated + further fragments and copies = sent + punted + dropped, and the interfaces' counters say the same;
//! - each frame sent was whole: an ARP request or answer, or an IP packet with lengths that fit the frame and
//!   the MTU, a TTL, and for IPv4 a right header checksum; what members of bridges say to each other fits the MTU.
//!
//! What takes long, to stop and to change the config, is done in some runs of a gateway only ([`SELDOM_STOPS`]); in its
//! first one always, so that an input that crashed does it again.
//!
//! With `FUZZ_REASONS` set it says which reasons to lose a packet inputs have reached, and which not, and takes its
//! time for each.
#![no_main]

#[path = "packet/configs.rs"]
mod configs;
#[path = "packet/mend.rs"]
mod mend;
#[path = "packet/wire.rs"]
mod wire;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use softgate::config::{Config, Fate};
use softgate::flow::Capacity;
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::neighbours::NeighbourTable;
use softgate::packet::DropReason;
use softgate::packet::hash::Key;
use softgate::roles::Part;
use softgate::tables::compile::{Compiler, MAX_INTERFACES, Retired};
use softgate::tables::meaning::{self, PortFacts};
use softgate::tables::overlay::NO_OVERLAY;
use softgate::telemetry::Totals;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

use configs::{CONFIGS, Choice, MAX_VARIANTS};
use mend::{mend, vary};
use wire::{Wire, WirePort, lock};

/// Frames per worker: few, so that inputs run out of them.
const FRAMES: usize = 64;
/// Sessions of a gateway whose config does not say.
const SESSIONS: u32 = 64;
/// Neighbours. Each run sweeps over twice as many slots several times.
const NEIGHBOURS: usize = 32;
/// Most records of one input.
const MAX_RECORDS: usize = 24;
/// About as many bytes of frames are the most of one input.
const MAX_BYTES: usize = 1 << 16;
/// Time before a frame: nothing, within limits of rates, retransmission, negative cache, reachable time, ageing.
const STEPS_MS: [u64; 8] = [0, 0, 1, 100, 1_001, 3_001, 31_000, 601_000];
/// The step that takes no time and means many frames.
const MANY: u8 = 1;
/// Instead of a number of frames: the other config takes over, before the frames since time passed last come in.
const SUCCESSION: u8 = 0xff;

/// What becomes of sessions that the next config does not allow.
const FATES: [Fate; 3] = [Fate::ReDecide, Fate::Reset, Fate::Keep];
/// The gateway's second byte: time passes when one worker has turned once.
const HURRY: u8 = 0x40;
/// It is stopped in the midst of work. Several bits: inputs that nobody meant to should not.
const STOP: u8 = 0xb8;
/// To change a gateway's config takes twenty times as long as another input.
const SELDOM_SUCCEEDS: usize = 32;
/// To make it anew fifty times.
const SELDOM_STOPS: usize = 256;
/// Frames that the narrow device takes at once.
const NARROW: usize = 2;
/// Longer than anything is remembered (neighbours::FORGET_AFTER, and as long again for what came meanwhile).
const OBLIVION_MS: u64 = 700_000;
/// See [`Gateway::rest`].
const MAX_NEIGHBOURS_IN_TURN: usize = 6;
/// Time between two looks at mappings, and so many see them all (flow::SWEEP_INTERVAL, flow::SWEEPS).
const SWEEP_MS: u64 = 100;
const MAX_SWEEPS: usize = 1_200;
/// Turns until a gateway must have come to rest: a few per packet, solicitation and timer.
const MAX_TURNS: usize = 10_000;
/// Runs after which a gateway is taken down and made anew: its frames are counted once more, and its clock, which
/// a run puts forward by five hours at most, stays below the 2^32 ticks of 100 ms that sessions can count.
const RUNS_PER_GATEWAY: usize = 1 << 14;

struct Gateway {
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    workers: Vec<Worker>,
    /// The inputs', and that of the narrow device.
    wires: [Arc<Mutex<Wire>>; 3],
    now: Nanos,
    runs: usize,
    /// Neighbours of the config.
    neighbours: usize,
    /// Ports of NAT addresses that are taken without a session.
    claimed: u32,
    compiler: Compiler,
    /// The config and its successor.
    configs: [Config; 2],
    /// Which of them is in force.
    in_force: usize,
}

fn compile(config: &Config, compiler: &mut Compiler) -> Retired {
    let facts: Vec<PortFacts> = (0..config.ports.len()).map(PortFacts::stable).collect();
    let rib = meaning::rib(config, compiler).expect("a config of ours");
    let input = meaning::input(config, &facts, compiler).expect("a config of ours");
    compiler.compile(input, rib).expect("a config of ours")
}

impl Gateway {
    fn new(choice: &Choice, variant: usize) -> Gateway {
        let text = configs::merge(choice.text, choice.variants[variant % choice.variants.len()]);
        let configs = [configs::merge(&text, ""), configs::merge(&text, choice.successor)]
            .map(|text| Config::parse(&text, "fuzz.toml").unwrap_or_else(|error| panic!("{error}\n{text}")));
        // As replay::compile, with a neighbour table that is swept in no time.
        let neighbours = Arc::new(NeighbourTable::new(NEIGHBOURS, MAX_INTERFACES, Key::default()));
        let mut compiler = Compiler::new(Arc::clone(&neighbours), Key::default());
        compile(&configs[0], &mut compiler).release(&neighbours);
        // The Active of the first of its virtual routers; of the third the other node is, of the others nobody.
        let routers = compiler.tables().interfaces.iter().flat_map(|interface| &interface.info.routers);
        routers.for_each(|router| {
            let part = match router.vrid {
                1 => Part::Active,
                3 => Part::Backup,
                _ => Part::Away,
            };
            neighbours.roles.set(router.role, part, Nanos(0));
        });
        neighbours.roles.set_peer(true);
        let count = choice.workers;
        let sessions = configs[0].flows.capacity.get();
        let capacity = Capacity::of(if sessions > 1_000 { SESSIONS } else { sessions }, count, false);
        let node = Node::new(&compiler, count, compiler.interfaces.len(), capacity);
        node.reserve_rules(&compiler.policy_slots);
        let (memory, pools) = PacketMemory::new(count, FRAMES, ChunkSize::Bytes2048).expect("memory");
        let mut workers: Vec<Worker> =
            pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, &node, pool)).collect();
        let wires: [Arc<Mutex<Wire>>; 3] = Default::default();
        let loops = configs[0].bridges.iter().any(|bridge| bridge.loop_probe_s.get() > 0);
        let cables = choice.cables.into_iter().map(|cable| (cable, usize::MAX));
        let narrow = choice.narrow.into_iter().map(|cable| (cable, NARROW));
        for (((port, member), room), wire) in cables.chain(narrow).zip(&wires) {
            let (wire, tables) = (Arc::clone(wire), Arc::clone(&node.tables));
            let around = (loops && port == 0).then(|| Arc::clone(&wires[1]));
            let device = WirePort { port, wire, tables, room, taken: 0, around };
            workers[usize::from(port) % count].attach(port, member, Box::new(device));
        }
        let mut gateway = Gateway {
            neighbours: node.neighbours.entries().len(),
            claimed: 0,
            node,
            memory,
            workers,
            wires,
            now: Nanos::from_secs(1),
            runs: 0,
            compiler,
            configs,
            in_force: 0,
        };
        gateway.rest();
        gateway
    }

    /// The other config takes over, as in replay::reload.
    fn succeed(&mut self, fate: Fate) {
        self.in_force ^= 1;
        self.compiler.fate = fate;
        let retired = compile(&self.configs[self.in_force], &mut self.compiler);
        self.node.reserve_rules(&self.compiler.policy_slots);
        self.node.tables.store(Arc::clone(self.compiler.tables()));
        self.settle();
        self.node.forget_clients(self.compiler.tables(), self.now);
        retired.release(&self.node.neighbours);
    }

    fn pass(&mut self, millis: u64) {
        self.now = Nanos(self.now.0 + millis * 1_000_000);
    }

    /// Turns all workers until none has anything left to do.
    fn settle(&mut self) {
        for _ in 0..MAX_TURNS {
            let mut worked = false;
            for worker in &mut self.workers {
                worked |= worker.turn(self.now);
            }
            if !worked {
                return;
            }
        }
        panic!("the gateway does not come to rest");
    }

    /// Before time passes.
    fn go_on(&mut self, special: u8) {
        if special & HURRY == 0 {
            self.settle();
        } else {
            self.workers[0].turn(self.now);
        }
    }

    /// Until every queue is empty and everything forgotten.
    fn rest(&mut self) {
        self.settle();
        for millis in [3_001, OBLIVION_MS, OBLIVION_MS] {
            self.pass(millis);
            self.settle();
        }
        // A neighbour that does not answer may be told of to another one, which does not either. And what waits for one
        // that the config names is tried again as often as it is asked for, which keeps its session alive.
        for _ in 0..MAX_NEIGHBOURS_IN_TURN {
            let is_over = |opened, ended| self.sum(opened) == self.sum(ended);
            if self.node.neighbours.entries().len() == self.neighbours
                && self.sum(|c| &c.frames_free) == self.memory.frames() as u64
                && is_over(|c| &c.sessions_opened, |c| &c.sessions_ended)
            {
                break;
            }
            self.pass(OBLIVION_MS);
            self.settle();
        }
        // The last session may have ended just now, and its port is held for as long as the config says.
        if self.claimed() != self.claimed {
            self.pass(OBLIVION_MS);
            self.settle();
        }
        // One page of mappings is looked at each time.
        for _ in 0..MAX_SWEEPS {
            if self.claimed() == self.claimed {
                break;
            }
            self.pass(SWEEP_MS);
            self.settle();
        }
    }

    fn claimed(&self) -> u32 {
        self.node.claims.addresses().map(|(.., ports)| ports).sum()
    }

    /// What an input says. False: the gateway is to be stopped as it is.
    fn run(&mut self, special: u8, records: &[u8]) -> bool {
        for wire in &self.wires {
            let wire = &mut *lock(wire);
            wire.bytes.clear();
            wire.frames.clear();
            wire.next = 0;
        }
        let is_time = |seldom| self.runs.is_multiple_of(seldom) || REACHED.get().is_some();
        let (may_succeed, may_stop) = (is_time(SELDOM_SUCCEEDS), is_time(SELDOM_STOPS));
        self.runs += 1;
        let mut rest = records;
        for _ in 0..MAX_RECORDS {
            let [control, len, padding, behind @ ..] = rest else { break };
            let step = control >> 1 & 7;
            let (many, bytes) = match behind {
                [many, bytes @ ..] if step == MANY => (*many, bytes),
                bytes => (0, bytes),
            };
            if step == MANY && many == SUCCESSION {
                rest = bytes;
                if may_succeed {
                    self.succeed(FATES[usize::from(*padding) % FATES.len()]);
                }
                continue;
            }
            let (bytes, behind) = bytes.split_at(bytes.len().min(usize::from(*len)));
            rest = behind;
            let millis = STEPS_MS[usize::from(step)];
            if millis > 0 {
                self.go_on(special);
                self.pass(millis);
            }
            let wire = &mut *lock(&self.wires[usize::from(control & 1)]);
            for n in 0..=u16::from(many >> 3) {
                let start = wire.bytes.len();
                if start > MAX_BYTES {
                    break;
                }
                wire.bytes.extend_from_slice(bytes);
                wire.bytes.resize(wire.bytes.len() + usize::from(*padding) * 40, 0);
                vary(&mut wire.bytes[start..], many & 7, n);
                mend(&mut wire.bytes[start..], *control);
                wire.frames.push((start, wire.bytes.len() - start));
            }
        }
        if special & STOP == STOP && may_stop {
            self.workers[0].turn(self.now);
            return false;
        }
        if self.in_force != 0 {
            self.succeed(Fate::ReDecide);
        }
        self.rest();
        self.check();
        true
    }

    fn sum(&self, field: fn(&softgate::telemetry::WorkerCounters) -> &AtomicU64) -> u64 {
        self.node.counters.iter().map(|worker| field(worker).load(Ordering::Relaxed)).sum()
    }

    /// Of a gateway at rest.
    fn check(&self) {
        for wire in &self.wires {
            let wire = lock(wire);
            assert_eq!(wire.next, wire.frames.len(), "frames were not received");
        }
        assert_eq!(self.sum(|c| &c.frames_free), self.memory.frames() as u64, "frames are missing");
        let neighbours = self.node.neighbours.entries();
        assert_eq!(
            neighbours.len(),
            self.neighbours,
            "neighbours are not forgotten: {neighbours:?} {:?}",
            self.now
        );
        assert_eq!(self.sum(|c| &c.sessions_opened), self.sum(|c| &c.sessions_ended), "sessions do not end");
        let claims = || self.node.claims.addresses().collect::<Vec<_>>();
        assert_eq!(self.claimed(), self.claimed, "NAT ports are not given back: {:?}", claims());
        check_books(&self.node, &self.wires);
    }

    fn stop(self) {
        self.workers.into_iter().for_each(Worker::stop);
        assert_eq!(self.memory.leaked(), 0, "frames leaked");
        check_books(&self.node, &self.wires);
    }
}

/// Every packet has been counted where it came in and where it ended.
fn check_books(node: &Node, wires: &[Arc<Mutex<Wire>>]) {
    let totals = Totals::of(node.counters.iter().map(|counters| &**counters));
    note_reasons(&totals);
    let dropped: u64 = totals.drops.iter().map(|(_, count)| count).sum();
    assert_eq!(
        totals.received + totals.originated + totals.fragments + totals.replicated,
        totals.sent + totals.punted + dropped,
        "the books do not balance: {totals:?}"
    );
    let interfaces = |field: fn(&softgate::telemetry::InterfaceCounters) -> &AtomicU64| -> u64 {
        // What goes through a tunnel is counted there as well.
        let tables = node.tables.load();
        let on_port = |slot: usize| {
            tables
                .interfaces
                .get(slot)
                .is_none_or(|interface| interface.overlay == NO_OVERLAY && !interface.is_segment())
        };
        let all = node.counters.iter().flat_map(|worker| worker.interfaces.iter().enumerate());
        let all = all.filter(|(slot, _)| on_port(*slot));
        all.map(|(_, interface)| field(interface).load(Ordering::Relaxed)).sum()
    };
    let (sent, sent_bytes) = wires
        .iter()
        .map(|wire| lock(wire))
        .fold((0, 0), |(frames, bytes), wire| (frames + wire.sent, bytes + wire.sent_bytes));
    assert_eq!(totals.sent, sent);
    let count = |reason| totals.drops.iter().find(|(r, _)| *r == reason).map_or(0, |(_, count)| *count);
    // Lost after they had been counted as sent by the interface, or before.
    let late = count(DropReason::TxRingFull) + count(DropReason::PortDown);
    let unsure = count(DropReason::HandOverFull) + count(DropReason::Shutdown);
    let left = interfaces(|i| &i.tx_packets);
    assert!(
        (sent + late..=sent + late + unsure).contains(&left),
        "{left} packets sent by interface: {totals:?}"
    );
    if late + unsure == 0 {
        assert_eq!(interfaces(|i| &i.tx_bytes), sent_bytes, "bytes sent by interface");
    }
    let known = interfaces(|i| &i.rx_packets);
    let unknown = totals.received - known;
    let nowhere = count(DropReason::UnknownVlan) + count(DropReason::BackupDevice);
    assert!(unknown >= nowhere, "{unknown} packets of no interface: {totals:?}");
    assert!(
        unknown <= nowhere + count(DropReason::Truncated),
        "{unknown} packets of no interface: {totals:?}"
    );
}

thread_local! {
    /// Reasons that have been reached, if anybody wants to know.
    static REACHED: Cell<Option<u128>> = Cell::new(std::env::var_os("FUZZ_REASONS").map(|_| 0));
}

/// Reasons that no input can reach: nobody probes here.
const BEYOND: [DropReason; 2] = [DropReason::ProbeQueueFull, DropReason::ProbeAnswerTooLong];

/// Says which reasons have been reached, each time there is a new one.
fn note_reasons(totals: &Totals) {
    let Some(before) = REACHED.get() else { return };
    let bit = |reason: DropReason| 1u128 << reason.index();
    let now = totals.drops.iter().fold(before, |bits, (reason, _)| bits | bit(*reason));
    if now != before {
        REACHED.set(Some(now));
        let missing: Vec<&str> = DropReason::all()
            .filter(|reason| now & bit(*reason) == 0 && !BEYOND.contains(reason))
            .map(DropReason::name)
            .collect();
        let new =
            DropReason::all().filter(|reason| (now & !before) & bit(*reason) != 0).map(DropReason::name);
        let new: Vec<&str> = new.collect();
        let (count, all) = (now.count_ones(), DropReason::COUNT - BEYOND.len());
        let without =
            if missing.is_empty() { String::new() } else { format!(", without {}", missing.join(" ")) };
        eprintln!("reasons: {count} of {all}, now {}{without}", new.join(" "));
    }
}

thread_local! {
    static GATEWAYS: RefCell<[[Option<Gateway>; MAX_VARIANTS]; CONFIGS.len()]> =
        const { RefCell::new([const { [const { None }; MAX_VARIANTS] }; CONFIGS.len()]) };
}

/// Tables of a few entries would take two megabytes each, which have to be cleared.
static SMALL_PAGES: LazyLock<()> = LazyLock::new(|| {
    rustix::thread::disable_transparent_huge_pages(true).expect("a process may have small pages");
});

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&SMALL_PAGES);
    let [choice, special, records @ ..] = data else { return };
    let choice = usize::from(*choice) % CONFIGS.len();
    let variant = usize::from(special & 7) % CONFIGS[choice].variants.len();
    GATEWAYS.with_borrow_mut(|gateways| {
        let place = &mut gateways[choice][variant];
        let gateway = place.get_or_insert_with(|| Gateway::new(&CONFIGS[choice], variant));
        let goes_on = gateway.run(*special, records) && gateway.runs < RUNS_PER_GATEWAY;
        if !goes_on {
            place.take().expect("just used").stop();
        }
    });
});
