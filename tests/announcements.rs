//! When another device of a LAG takes over, or a port comes up, the switches behind it are told where our addresses
//! are: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour advertisements (RFC 4861 section 7.2.6). Once
//! at once and once again, at a bounded rate, out of the device that carries now.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use softgate::config::Config;
use softgate::io::memory::{MemoryPort, Sink, Template};
use softgate::mem::{ChunkSize, PacketMemory};
use softgate::replay;
use softgate::tables::compile::Compiler;
use softgate::time::Nanos;
use softgate::worker::{Node, Worker};

const HEAD: &str = r#"
schema = 1
[[port]]
name = "up"
devices = ["eth1", "eth2"]
lag = "active-backup"
"#;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn interface(name: &str, vlan: Option<u16>, addresses: &str) -> String {
    let vlan = vlan.map_or(String::new(), |vid| format!("vlan = {vid}\n"));
    format!(
        "[[interface]]\nname = \"{name}\"\nport = \"up\"\nmac = \"02:00:00:00:00:01\"\n{vlan}addresses = {addresses}\n"
    )
}

/// Of neither device.
const NOTHING: [Vec<Vec<u8>>; 2] = [Vec::new(), Vec::new()];

type Sent = Arc<Mutex<Vec<Vec<u8>>>>;

/// A worker with two devices in memory, whose links the test pulls and plugs.
struct Gate {
    node: Arc<Node>,
    compiler: Compiler,
    memory: Arc<PacketMemory>,
    worker: Worker,
    sent: [Sent; 2],
}

impl Gate {
    fn new(config: &str) -> Gate {
        let config = Config::parse(config, "gw.toml").expect("a good config");
        let (node, compiler) = replay::compile(&config, 1, false).expect("tables");
        let (memory, mut pools) = PacketMemory::new(1, 1024, ChunkSize::Bytes2048).expect("memory");
        let worker = Worker::new(0, &node, pools.remove(0));
        Gate { node, compiler, memory, worker, sent: Default::default() }
    }

    fn attach(&mut self, device: u8) {
        let sink = Sink::Keep(Arc::clone(&self.sent[usize::from(device)]));
        self.worker.attach(0, device, Box::new(MemoryPort::new(Arc::<Template>::default(), false, sink)));
    }

    fn links(&mut self, members_up: u8) {
        let mut specs = self.compiler.input().ports.clone();
        specs[0].members_up = members_up;
        let retired = self.compiler.change_links(&specs).expect("tables");
        self.node.tables.store(Arc::clone(self.compiler.tables()));
        retired.release(&self.node.neighbours);
    }

    /// Turns until nothing is left to do at `ms`; what each device was given.
    fn at(&mut self, ms: u64) -> [Vec<Vec<u8>>; 2] {
        while self.worker.turn(Nanos(ms * 1_000_000)) {}
        self.sent.each_ref().map(|sent| std::mem::take(&mut *sent.lock().unwrap()))
    }

    fn stop(self) {
        self.worker.stop();
        assert_eq!(self.memory.leaked(), 0);
    }
}

fn ones_complement(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// A gratuitous ARP, byte for byte.
fn arp(tags: &[u8], addr: [u8; 4]) -> Vec<u8> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC, &addr, &[0; 6], &addr].concat();
    [&[0xff; 6][..], &MAC, tags, &[8, 6], &arp].concat()
}

/// An unsolicited neighbour advertisement: router, override, not solicited.
fn advert(tags: &[u8], addr: &str) -> Vec<u8> {
    let addr = addr.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let all_nodes = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let mut message = [&[136, 0, 0, 0, 0xa0, 0, 0, 0][..], &addr, &[2, 1], &MAC].concat();
    let pseudo = [&addr[..], &all_nodes, &[0, 0, 0, 32, 0, 0, 0, 58], &message].concat();
    message[2..4].copy_from_slice(&ones_complement(&pseudo).to_be_bytes());
    let ip = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &addr, &all_nodes, &message].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &MAC, tags, &[0x86, 0xdd], &ip].concat()
}

#[test]
fn another_device_takes_over_and_says_so() {
    let config = [
        HEAD,
        &interface("uplink", None, r#"["198.51.100.1/24", "203.0.113.1/24", "2001:db8:2::1/64"]"#),
        &interface("tenant", Some(100), r#"["192.0.2.1/24"]"#),
    ];
    let mut gate = Gate::new(&config.concat());
    gate.attach(0);
    gate.attach(1);
    gate.links(0b01);
    let all = vec![
        arp(&[], [198, 51, 100, 1]),
        arp(&[], [203, 0, 113, 1]),
        advert(&[], "2001:db8:2::1"),
        advert(&[], "fe80::ff:fe00:1"),
        arp(&[0x81, 0, 0, 100], [192, 0, 2, 1]),
    ];
    gate.at(1000);
    for (at_ms, links, device) in [(10_000, 0b10, 1), (20_000, 0b01, 0)] {
        gate.links(links);
        for round_ms in [at_ms, at_ms + 2000] {
            let mut sent = gate.at(round_ms);
            assert_eq!(std::mem::take(&mut sent[device]), all, "{round_ms} ms");
            assert!(sent[1 - device].is_empty(), "not out of the device that stands by");
        }
        assert_eq!(gate.at(at_ms + 9000), NOTHING, "twice, then no more");
    }
    // The device that stands by comes and goes: nobody has to hear of it.
    gate.links(0b01);
    assert_eq!(gate.at(30_000), NOTHING);
    gate.stop();
}

#[test]
fn a_port_that_comes_up_is_announced_once_it_can_send() {
    let mut gate = Gate::new(&[HEAD, &interface("uplink", None, r#"["198.51.100.1/24"]"#)].concat());
    gate.links(0);
    gate.at(1000);
    gate.links(0b10);
    assert_eq!(gate.at(2000), NOTHING);
    assert_eq!(
        gate.node.counters[0].drops.iter().map(|c| c.load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>(),
        0
    );
    gate.attach(1);
    assert_eq!(gate.at(2001), [Vec::new(), vec![arp(&[], [198, 51, 100, 1])]]);
    // Pulled before the second round: nothing more, and no packet lost for want of a way.
    gate.links(0);
    assert_eq!(gate.at(9000), NOTHING);
    assert_eq!(
        gate.node.counters[0].drops.iter().map(|c| c.load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>(),
        0
    );
    gate.stop();
}

/// 300 VLANs: 64 at once, and 64 more every ten milliseconds.
#[test]
fn the_rate_is_bounded_and_nobody_is_left_out() {
    let vlans = (1..=300).map(|vid| {
        interface(&format!("v{vid}"), Some(vid), &format!("[\"10.{}.{}.1/24\"]", vid / 100, vid % 100))
    });
    let mut gate = Gate::new(&std::iter::once(HEAD.to_owned()).chain(vlans).collect::<String>());
    gate.attach(0);
    gate.attach(1);
    gate.at(1000);
    gate.links(0b10);
    for start_ms in [2000, 4040] {
        let mut heard = BTreeSet::new();
        for batch in 0..5 {
            let [_, sent] = gate.at(start_ms + batch * 10);
            assert!(sent.len() <= 64, "{} at once", sent.len());
            assert!(gate.at(start_ms + batch * 10 + 9)[1].is_empty(), "a pause between two batches");
            for frame in sent {
                assert!(heard.insert(frame[28 + 4 + 10..][..4].to_vec()), "twice in a round");
            }
        }
        assert_eq!(heard.len(), 300);
    }
    gate.stop();
}

/// The interface of a bridge is announced by all of its members when one of them comes up.
#[test]
fn a_segment_is_announced_behind_its_members() {
    let bridged = r#"
[[bridge]]
name = "seg"
members = [{ port = "up" }, { port = "up", vlan = 100 }]
loop_probe_s = 0
[[interface]]
name = "gate"
bridge = "seg"
mac = "02:00:00:00:00:01"
addresses = ["198.51.100.1/24"]
"#;
    let mut gate = Gate::new(&[HEAD, bridged].concat());
    gate.attach(0);
    gate.links(0);
    assert_eq!(gate.at(1000), NOTHING);
    gate.links(0b01);
    for ms in [2000, 4000] {
        let [sent, _] = gate.at(ms);
        assert_eq!(
            sent,
            [arp(&[], [198, 51, 100, 1]), arp(&[0x81, 0, 0, 100], [198, 51, 100, 1])],
            "{ms} ms"
        );
    }
    assert_eq!(gate.at(9000), NOTHING);
    gate.stop();
}
