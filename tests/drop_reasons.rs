//! Every reason to lose a packet is reached by a test: a golden case, a test here for what takes a device that a
//! capture has not, or another one that is named in [`ELSEWHERE`].

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use softgate::config::Config;
use softgate::io::Port;
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::mem::{ChunkSize, FramePool, Frames, PacketMemory};
use softgate::packet::DropReason;
use softgate::replay;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

/// What no golden case reaches: the file and the test that does. The file names the reason.
const ELSEWHERE: [(DropReason, &str, &str); 10] = [
    (DropReason::NoBuffer, "tests/drop_reasons.rs", "fragments_for_which_there_are_no_frames"),
    (DropReason::TxRingFull, "tests/drop_reasons.rs", "a_device_that_takes_no_more"),
    (DropReason::PortDown, "tests/drop_reasons.rs", "a_port_that_nobody_has_a_queue_of"),
    (DropReason::BackupDevice, "tests/drop_reasons.rs", "a_device_that_stands_by"),
    (DropReason::PolicyReset, "tests/pairs.rs", "a_commit_can_tell_both_ends"),
    (DropReason::HandOverFull, "tests/owners.rs", "no_packet_waits_for_a_mapping_longer_than_its_time"),
    (DropReason::ProbeQueueFull, "tests/health.rs", "answers_that_find_no_buffer"),
    (DropReason::ProbeAnswerTooLong, "tests/health.rs", "an_answer_that_fits_no_buffer"),
    (DropReason::NewFlowShed, "tests/busy.rs", "a_busy_worker_opens_few_sessions_in_the_place_of_others"),
    (
        DropReason::FragmentQueueFull,
        "src/flow/fragments/tests.rs",
        "jumbo_frames_count_for_each_of_their_segments",
    ),
];

/// The reasons that golden cases name.
fn golden() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pcap");
    let cases = std::fs::read_dir(root).expect("the cases").map(|entry| entry.expect("readable").path());
    let drops =
        cases.filter_map(|case| std::fs::read_to_string(case.join("case.toml")).ok()).flat_map(|text| {
            let case: toml::Table = text.parse().expect("case.toml is TOML");
            let drops = case.get("drops").and_then(toml::Value::as_table).cloned().unwrap_or_default();
            drops.into_iter().filter(|(_, count)| count.as_integer() > Some(0)).map(|(name, _)| name)
        });
    drops.collect()
}

#[test]
fn every_reason_is_reached_by_a_test() {
    let golden = golden();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for reason in DropReason::all() {
        let named: Vec<_> = ELSEWHERE.iter().filter(|(known, ..)| *known == reason).collect();
        let is_golden = golden.contains(reason.name());
        match &named[..] {
            [] => assert!(
                is_golden,
                "{reason:?}: no golden case has {}, and no other test is named",
                reason.name()
            ),
            [(_, file, test)] => {
                assert!(!is_golden, "{reason:?}: golden cases reach it, {file} need not be named");
                let text = std::fs::read_to_string(root.join(file)).expect(file);
                assert!(text.contains(&format!("fn {test}(")), "{reason:?}: {file} has no test {test}");
                assert!(text.contains(&format!("DropReason::{reason:?}")), "{file} does not name {reason:?}");
            }
            _ => panic!("{reason:?} is named twice"),
        }
    }
    for name in &golden {
        assert!(DropReason::all().any(|reason| reason.name() == name), "{name} is no reason");
    }
}

/// No zones: what is routed is sent.
const CONFIG: &str = r#"
schema = 1
[[port]]
name = "in"
devices = ["eth1", "eth2"]
lag = "active-backup"
[[port]]
name = "out"
device = "eth3"
[[interface]]
name = "in"
port = "in"
mac = "02:00:00:00:00:01"
addresses = ["10.0.0.1/24"]
[[interface]]
name = "out"
port = "out"
mac = "02:00:00:00:00:01"
mtu = 576
addresses = ["192.0.2.1/24"]
[[neighbour]]
interface = "out"
address = "192.0.2.2"
mac = "02:00:00:00:00:0a"
"#;

const IN: u16 = 0;
const OUT: u16 = 1;

/// `count` UDP packets through the gateway with so many bytes of data; DF is clear.
fn packets(count: usize, data: usize) -> Arc<Template> {
    let mut template = Template::default();
    for _ in 0..count {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
            .ip(etherparse::IpHeaders::Ipv4(
                etherparse::Ipv4Header {
                    dont_fragment: false,
                    ..etherparse::Ipv4Header::new(
                        0,
                        64,
                        etherparse::IpNumber::UDP,
                        [10, 0, 0, 2],
                        [192, 0, 2, 2],
                    )
                    .expect("a short packet")
                },
                etherparse::Ipv4Extensions::default(),
            ))
            .udp(4000, 53)
            .write(&mut frame, &vec![7; data])
            .expect("to memory");
        template.push(&frame);
    }
    Arc::new(template)
}

/// A worker over ports in memory.
struct Gate {
    node: Arc<Node>,
    memory: Arc<PacketMemory>,
    worker: Worker,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Gate {
    fn new(frames: usize) -> Gate {
        let config = Config::parse(CONFIG, "gw.toml").expect("a good config");
        let (node, _) = replay::compile(&config, 1, false).expect("tables");
        let (memory, mut pools) = PacketMemory::new(1, frames, ChunkSize::Bytes2048).expect("memory");
        let worker = Worker::new(0, &node, pools.remove(0));
        Gate { node, memory, worker, sent: Arc::default() }
    }

    /// Packets come in by a device of the port "in".
    fn receives(&mut self, device: u8, packets: Arc<Template>) {
        self.worker.attach(IN, device, Box::new(MemoryPort::new(packets, false, Sink::Discard)));
    }

    fn sends(&mut self) {
        let sink = Sink::Keep(Arc::clone(&self.sent));
        self.worker.attach(OUT, 0, Box::new(MemoryPort::new(Arc::default(), false, sink)));
    }

    /// Turns until nothing is left to do; all that was lost, and what was sent. No frame is missing.
    fn ends(mut self) -> (Vec<(DropReason, u64)>, Vec<Vec<u8>>) {
        while self.worker.turn(Nanos::from_secs(1)) {}
        self.worker.stop();
        assert_eq!(self.memory.leaked(), 0);
        let count = |reason: DropReason| self.node.counters[0].drops[reason.index()].load(Ordering::Relaxed);
        let lost = DropReason::all().map(|reason| (reason, count(reason))).filter(|(_, count)| *count > 0);
        let sent = std::mem::take(&mut *self.sent.lock().expect("no holder panics"));
        (lost.collect(), sent)
    }
}

#[test]
fn all_is_well() {
    let mut gate = Gate::new(64);
    gate.receives(0, packets(3, 100));
    gate.sends();
    let (lost, sent) = gate.ends();
    assert_eq!((lost, sent.len()), (Vec::new(), 3));
}

/// A device whose ring is full, and stays so.
struct Stuck;

impl Port for Stuck {
    fn receive(&mut self, _: &mut FramePool, _: &mut Frames) -> usize {
        0
    }

    fn send(&mut self, _: &mut FramePool, _: &mut Frames) -> usize {
        0
    }
}

#[test]
fn a_device_that_takes_no_more() {
    let mut gate = Gate::new(256);
    gate.receives(0, packets(100, 100));
    gate.worker.attach(OUT, 0, Box::new(Stuck));
    assert_eq!(gate.ends().0, [(DropReason::TxRingFull, 100)]);
}

#[test]
fn a_port_that_nobody_has_a_queue_of() {
    let mut gate = Gate::new(64);
    gate.receives(0, packets(2, 100));
    assert_eq!(gate.ends().0, [(DropReason::PortDown, 2)]);
}

#[test]
fn a_device_that_stands_by() {
    let mut gate = Gate::new(64);
    gate.receives(0, packets(2, 100));
    gate.receives(1, packets(3, 100));
    gate.sends();
    let (lost, sent) = gate.ends();
    assert_eq!((lost, sent.len()), (vec![(DropReason::BackupDevice, 3)], 2));
}

/// A burst that takes all frames there are: the first packets cannot be cut, and what they leave is enough for others.
#[test]
fn fragments_for_which_there_are_no_frames() {
    const FRAMES: usize = 64;
    let mut gate = Gate::new(FRAMES);
    gate.receives(0, packets(FRAMES, 1200));
    gate.sends();
    let (lost, sent) = gate.ends();
    let [(DropReason::NoBuffer, lost)] = lost[..] else { panic!("{lost:?}") };
    // Three fragments each. The worker holds what it has made until the burst's end: the twin counts frames.
    let (mut free, mut lost_by_twin, mut sent_by_twin) = (0, 0, 0);
    for _ in 0..FRAMES {
        match free >= 3 {
            true => (free, sent_by_twin) = (free - 3 + 1, sent_by_twin + 3),
            false => (free, lost_by_twin) = (free + 1, lost_by_twin + 1),
        }
    }
    assert_eq!((lost, sent.len()), (lost_by_twin, sent_by_twin));
}
