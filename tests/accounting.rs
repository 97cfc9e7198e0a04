//! Frames through the worker loop, their bytes and the books afterwards: faults seen while the fuzz target was written.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use etherparse::PacketBuilder;
use softgate::config::Config;
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::replay;
use softgate::telemetry::Totals;
use softgate::time::Nanos;
use softgate::worker::Worker;

const CONFIG: &str = r#"
schema = 1
[[port]]
name = "lan"
device = "eth1"
[[port]]
name = "wan"
device = "eth2"
[[interface]]
name = "lan"
port = "lan"
mac = "02:00:00:00:00:01"
mtu = 9000
addresses = ["10.0.1.1/24"]
[[interface]]
name = "wan"
port = "wan"
mac = "02:00:00:00:00:01"
mtu = MTU
addresses = ["10.0.2.1/24"]
[[neighbour]]
interface = "wan"
address = "10.0.2.2"
mac = "02:00:00:00:02:02"
"#;

/// What came out at `wan`, the totals, and the bytes counted in at `lan` and out at `wan`.
struct Outcome {
    sent: Vec<Vec<u8>>,
    totals: Totals,
    rx_bytes: u64,
    tx_bytes: u64,
}

/// Sends frames from `lan` to a gateway whose `wan` has this MTU.
fn send(mtu: u16, frames: &[Vec<u8>]) -> Outcome {
    let config = Config::parse(&CONFIG.replace("MTU", &mtu.to_string()), "gw.toml").expect("the config");
    let (node, _compiler) = replay::compile(&config, 1, false).expect("tables");
    let (memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
    let mut worker = Worker::new(0, &node, pools.remove(0));
    let mut template = Template::default();
    frames.iter().for_each(|frame| template.push(frame));
    let kept = Arc::new(Mutex::new(Vec::new()));
    worker.attach(0, 0, Box::new(MemoryPort::new(Arc::new(template), false, Sink::Discard)));
    worker.attach(1, 0, Box::new(MemoryPort::new(Arc::default(), false, Sink::Keep(Arc::clone(&kept)))));
    while worker.turn(Nanos::from_secs(1)) {}
    worker.stop();
    assert_eq!(memory.leaked(), 0);
    let interface = |index: usize| &node.counters[0].interfaces[index];
    let sent = std::mem::take(&mut *kept.lock().expect("the worker is gone"));
    Outcome {
        sent,
        totals: Totals::of(node.counters.iter().map(|counters| &**counters)),
        rx_bytes: interface(0).rx_bytes.load(Ordering::Relaxed),
        tx_bytes: interface(1).tx_bytes.load(Ordering::Relaxed),
    }
}

fn udp(payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 1, 10], [2, 0, 0, 0, 0, 1])
        .ipv4([10, 0, 1, 10], [10, 0, 2, 2], 64)
        .udp(1024, 5000)
        .write(&mut frame, &vec![7; payload])
        .expect("a vector takes everything");
    frame
}

/// A frame that is much longer than its IP packet left as long as it had come, beyond the egress MTU.
#[test]
fn padding_of_a_jumbo_frame_does_not_travel_on() {
    let mut frame = udp(100);
    frame.resize(8000, 0xaa);
    let outcome = send(1500, &[frame]);
    assert_eq!(outcome.sent.iter().map(Vec::len).collect::<Vec<_>>(), [142]);
    assert_eq!(outcome.tx_bytes, 142);
    let mut frame = udp(5000);
    frame.resize(9000, 0xaa);
    let outcome = send(9000, &[frame]);
    assert_eq!(outcome.sent.iter().map(Vec::len).collect::<Vec<_>>(), [5042]);
    assert_eq!((outcome.rx_bytes, outcome.tx_bytes), (9000, 5042));
}

/// Only the first segment of a jumbo frame was counted.
#[test]
fn all_bytes_of_a_jumbo_frame_are_counted() {
    let outcome = send(9000, &[udp(8000), udp(10)]);
    assert_eq!((outcome.rx_bytes, outcome.tx_bytes), (8042 + 52, 8042 + 52));
}

/// A fragment at the end of the 64 KiB that a datagram may have, cut once more, began again at offset 0.
#[test]
fn fragments_beyond_the_end_of_a_datagram_are_not_made() {
    let at = |offset: u16| {
        let mut frame = udp(3000);
        let mut header = etherparse::Ipv4Header::from_slice(&frame[14..]).expect("IPv4").0;
        header.dont_fragment = false;
        header.fragment_offset = (offset / 8).try_into().expect("13 bits");
        header.header_checksum = header.calc_header_checksum();
        frame[14..34].copy_from_slice(&header.to_bytes());
        frame
    };
    let outcome = send(1500, &[at(65_528)]);
    assert!(outcome.sent.is_empty());
    let drops: Vec<_> = outcome.totals.drops.iter().map(|(reason, count)| (reason.name(), *count)).collect();
    assert_eq!(drops, [("ipv4-header-invalid", 1)]);
    // 62,520 + 3,008 = 65,528: the last that fits.
    assert_eq!(send(1500, &[at(62_520)]).sent.len(), 3);
}
