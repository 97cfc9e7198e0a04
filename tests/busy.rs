//! A flood of SYNs at a worker that is full of sessions' packets: few of them are heard, and no session's packet is lost.
//! With nothing else to do it hears them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use etherparse::PacketBuilder;
use softgate::config::Config;
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::mem::{BURST, ChunkSize, PacketMemory};
use softgate::packet::DropReason;
use softgate::replay;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const TURNS: u64 = 10;
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
const A_BURST: u64 = BURST as u64;
/// Strangers whom a busy worker hears in a turn.
const HEARD: u64 = 16;

const CONFIG: &str = concat!(
    include_str!("two_ports.toml"),
    r#"
[[route]]
prefix = "10.1.0.0/16"
via = ["10.0.0.2"]
[[rule]]
name = "all"
action = "allow"
"#
);

fn frame(src: [u8; 4], dst: [u8; 4]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(NEIGHBOUR, GATEWAY).ipv4(src, dst, 64)
}

/// A burst of datagrams from inside, again and again: sessions from the first turn on.
fn transfers() -> Template {
    let mut template = Template::default();
    for host in 0..BURST as u8 {
        let mut bytes = Vec::new();
        let datagram = frame([10, 1, 0, host], [203, 0, 113, 1]).udp(4000, 53);
        datagram.write(&mut bytes, &[0; 64]).expect("a vector takes everything");
        template.push(&bytes);
    }
    template
}

/// SYNs from outside, each of another connection.
fn flood() -> Template {
    let mut template = Template::default();
    for port in 0..(TURNS * A_BURST) as u16 {
        let mut bytes = Vec::new();
        let syn = frame([198, 51, 100, 7], [10, 1, 1, 1]).tcp(1024 + port, 80, 1, 64240).syn();
        syn.write(&mut bytes, &[]).expect("a vector takes everything");
        template.push(&bytes);
    }
    template
}

/// After some turns in which `transfers` come in inside and a flood outside.
fn flooded(more: &str, transfers: Template) -> Arc<Node> {
    let config = Config::parse(&[CONFIG, more].concat(), "busy.toml").expect("the config is valid");
    let (node, _compiler) = replay::compile(&config, 1, true).expect("the config compiles");
    let (_memory, mut pools) = PacketMemory::new(1, 1024, ChunkSize::Bytes2048).expect("packet memory");
    let mut worker = Worker::new(0, &node, pools.remove(0));
    worker.attach(0, 0, Box::new(MemoryPort::new(Arc::new(transfers), true, Sink::Discard)));
    worker.attach(1, 0, Box::new(MemoryPort::new(Arc::new(flood()), false, Sink::Discard)));
    for _ in 0..TURNS {
        worker.turn(Nanos::from_secs(1));
    }
    worker.stop();
    node
}

fn is(counter: &AtomicU64, expected: u64) {
    assert_eq!(counter.load(Ordering::Relaxed), expected);
}

fn shed(node: &Node) -> &AtomicU64 {
    &node.counters[0].drops[DropReason::NewFlowShed.index()]
}

const PROXY: &str = "[[zone]]\nname = \"outside\"\nsyn_proxy_above = 0\n";
const FEW: &str = "[flows]\nhalf_open = 64\n";

#[test]
fn a_busy_worker_answers_few_syns_with_cookies() {
    let node = flooded(PROXY, transfers());
    let counters = &node.counters[0];
    // It is busy from the first turn on, and knows so in the second.
    let answered = A_BURST + (TURNS - 1) * HEARD;
    is(&counters.cookies_sent, answered);
    is(shed(&node), (TURNS - 1) * (A_BURST - HEARD));
    is(&counters.sent, TURNS * A_BURST + answered);
}

#[test]
fn a_busy_worker_opens_few_sessions_in_the_place_of_others() {
    let node = flooded(FEW, transfers());
    let counters = &node.counters[0];
    // In the first turn there is room for all.
    is(&counters.sessions_recycled, (TURNS - 1) * HEARD);
    is(shed(&node), (TURNS - 1) * (A_BURST - HEARD));
    is(&counters.sent, TURNS * A_BURST + A_BURST + (TURNS - 1) * HEARD);
}

#[test]
fn a_flood_alone_is_heard() {
    let node = flooded(PROXY, Template::default());
    is(&node.counters[0].cookies_sent, TURNS * A_BURST);
    is(shed(&node), 0);
    let node = flooded(FEW, Template::default());
    // While there was room its packets were as any: in one turn they are taken for those of others.
    is(&node.counters[0].sessions_recycled, HEARD + (TURNS - 2) * A_BURST);
    is(shed(&node), A_BURST - HEARD);
}

#[test]
fn who_is_not_heard_takes_no_tokens() {
    // As many as are heard, transfers included: one less would not do.
    let heard = 2 * A_BURST + (TURNS - 1) * HEARD;
    let limit = format!("rate_limit = {{ per_s = 1, burst = {heard} }}\n{FEW}");
    let node = flooded(&limit, transfers());
    is(&node.counters[0].drops[DropReason::RuleRateLimit.index()], 0);
    is(&node.counters[0].sessions_recycled, (TURNS - 1) * HEARD);
    is(shed(&node), (TURNS - 1) * (A_BURST - HEARD));
}
