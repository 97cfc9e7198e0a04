//! The AF_XDP ports end to end: real veth pairs in network namespaces, real sockets, the real program.
//!
//! Needs root; says so loudly and does nothing without.

mod xdp_lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use softgate::io::Port;
use softgate::io::xdp::{Bound, Mode, RingSizes, XdpDevice, XdpError, XdpPort, XdpProgram};
use softgate::mem::{ChunkSize, FramePool, Frames, PacketMemory};

use xdp_lab::{Lab, Veth, Wire, is_root, sequence_of, test_packet};

const RINGS: RingSizes = RingSizes { rx: 1024, tx: 1024, fill: 2048, completion: 1024 };

/// How long a test waits for packets before it calls them lost.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(
    program: &Arc<XdpProgram>,
    device: &str,
    slot: u16,
    mode: Mode,
    memory: &Arc<PacketMemory>,
) -> Result<(XdpDevice, Vec<XdpPort>), XdpError> {
    let queues = XdpDevice::queue_count(device)?;
    XdpDevice::open(program, device, slot, mode, queues, memory, RINGS)
}

/// A gateway that copies nothing and changes nothing: what comes in on g0 leaves by g1 and back.
struct Gateway {
    memory: Arc<PacketMemory>,
    pools: Vec<FramePool>,
    program: Arc<XdpProgram>,
    devices: [XdpDevice; 2],
    queues: [Vec<Box<XdpPort>>; 2],
    /// Packets received by each queue of g0 and g1.
    received: [Vec<u64>; 2],
    frames: Frames,
    longest_chain: usize,
}

impl Gateway {
    /// In the calling thread's namespace.
    fn open(mode: Mode) -> Gateway {
        let (memory, pools) = PacketMemory::new(1, 32768, ChunkSize::Bytes2048).expect("memory");
        let program = XdpProgram::load().expect("the program loads");
        let opened = |device, slot| open(&program, device, slot, mode, &memory).expect("the device opens");
        let (g0, left) = opened("g0", 0);
        let (g1, right) = opened("g1", 1);
        let received = [vec![0; left.len()], vec![0; right.len()]];
        let queues = [left, right].map(|ports| ports.into_iter().map(Box::new).collect());
        Gateway {
            memory,
            pools,
            program,
            devices: [g0, g1],
            queues,
            received,
            frames: Frames::new(),
            longest_chain: 0,
        }
    }

    fn bound(&self) -> &Bound {
        self.devices[0].bound()
    }

    /// One round over all queues.
    fn turn(&mut self) {
        let pool = &mut self.pools[0];
        for from in 0..2 {
            for queue in 0..self.queues[from].len() {
                let taken = self.queues[from][queue].receive(pool, &mut self.frames);
                self.received[from][queue] += taken as u64;
                for frame in &self.frames {
                    let mut segments = 1;
                    let mut at = frame.peek_next();
                    while let Some(next) = at {
                        segments += 1;
                        at = next.peek_next();
                    }
                    self.longest_chain = self.longest_chain.max(segments);
                }
                let others = &mut self.queues[1 - from];
                let to = queue % others.len();
                while !self.frames.is_empty() {
                    others[to].send(pool, &mut self.frames);
                    others[to].flush(pool);
                }
            }
        }
        for queue in self.queues.iter_mut().flatten() {
            queue.flush(pool);
        }
    }

    /// Closes everything; every frame must have come home.
    fn close(mut self) {
        let stats: Vec<_> = self.queues.iter().flatten().map(|queue| queue.stats()).collect();
        for stats in &stats {
            assert_eq!((stats.invalid_descriptors, stats.rx_broken_chains), (0, 0), "{stats:?}");
        }
        drop(self.devices);
        for queue in self.queues.into_iter().flatten() {
            queue.close(&mut self.pools[0]);
        }
        assert_eq!(self.pools[0].available(), 32768, "every frame is back in the pool");
        drop(self.pools);
        assert_eq!(self.memory.leaked(), 0);
    }
}

/// Sends `count` packets of `len` bytes from one side to the other, never more than `window` under way, while the
/// gateway forwards; panics if one is lost, doubled or changed.
fn forward(lab: &Lab, gateway: &mut Gateway, from: (&str, &str), to: (&str, &str), count: u32, len: usize) {
    let window = if len > 2000 { 100 } else { 800 };
    let (arrived, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            lab.enter(to.0);
            let wire = Wire::open(to.1);
            arrived.store(1, Ordering::Release); // ready; counts one too many from here on
            let mut seen = vec![false; count as usize];
            let mut buffer = vec![0; 16384];
            while arrived.load(Ordering::Relaxed) <= u64::from(count) && began.elapsed() < PATIENCE {
                let Some(packet) = wire.receive(&mut buffer, Duration::from_millis(50)) else { continue };
                let Some(sequence) = sequence_of(packet) else { continue };
                assert_eq!(packet.len(), len);
                assert!(!std::mem::replace(&mut seen[sequence as usize], true), "packet {sequence} twice");
                arrived.fetch_add(1, Ordering::Release);
            }
            done.store(true, Ordering::Release);
            seen.iter().filter(|seen| !**seen).count()
        });
        scope.spawn(|| {
            lab.enter(from.0);
            let wire = Wire::open(from.1);
            for sequence in 0..count {
                while u64::from(sequence) + 1 > arrived.load(Ordering::Acquire) + window
                    || arrived.load(Ordering::Relaxed) == 0
                {
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                    std::thread::yield_now();
                }
                wire.send(&test_packet(sequence, len, 64));
            }
        });
        while !done.load(Ordering::Acquire) {
            gateway.turn();
            std::thread::yield_now();
        }
        let lost = receiver.join().expect("the receiver");
        assert_eq!(
            lost,
            0,
            "lost packets; stats {:?}",
            gateway
                .queues
                .each_ref()
                .map(|side| { side.iter().map(|queue| queue.stats()).collect::<Vec<_>>() })
        );
    });
}

const RIGHT: ((&str, &str), (&str, &str)) = (("src", "s0"), ("dst", "d0"));
const LEFT: ((&str, &str), (&str, &str)) = (("dst", "d0"), ("src", "s0"));

#[test]
fn a_hundred_thousand_packets_cross_two_ports() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("two", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    let bound = gateway.bound();
    assert_eq!((bound.mode, bound.zero_copy, bound.multi_buffer), (Mode::Copy, false, true), "{bound:?}");
    assert!(bound.refused.iter().all(|refusal| refusal.mode == Mode::ZeroCopy), "{bound:?}");
    println!("{bound:#?}");
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 100_000, 60);
    forward(&lab, &mut gateway, LEFT.0, LEFT.1, 20_000, 1514);
    let counters = gateway.devices[0].counters().expect("counters");
    assert_eq!((counters.redirected, counters.passed), (100_000, 0), "{counters:?}");
    gateway.close();
}

#[test]
fn four_queues_all_carry_traffic_and_none_leaks() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("four", Veth { left: 4, right: 4, mtu: 1500 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    assert_eq!(gateway.bound().queues, 4);
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 40_000, 100);
    assert!(gateway.received[0].iter().all(|packets| *packets > 1000), "{:?}", gateway.received);
    gateway.close();
}

#[test]
fn ports_with_unequal_numbers_of_queues() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("uneq", Veth { left: 4, right: 1, mtu: 1500 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Copy);
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 20_000, 60);
    forward(&lab, &mut gateway, LEFT.0, LEFT.1, 20_000, 60);
    gateway.close();
}

#[test]
fn generic_mode_forwards() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("gen", Veth { left: 2, right: 1, mtu: 1500 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Generic);
    assert_eq!(gateway.bound().mode, Mode::Generic);
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 20_000, 1514);
    forward(&lab, &mut gateway, LEFT.0, LEFT.1, 20_000, 60);
    gateway.close();
}

#[test]
fn jumbo_frames_are_chains() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("jumbo", Veth { left: 1, right: 2, mtu: 9000 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    assert!(gateway.bound().multi_buffer);
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 5_000, 9014);
    forward(&lab, &mut gateway, LEFT.0, LEFT.1, 5_000, 3001);
    assert_eq!(gateway.longest_chain, 6, "9,014 bytes in chunks of 1,792");
    gateway.close();
}

#[test]
fn jumbo_frames_in_generic_mode() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("jumgen", Veth { left: 1, right: 1, mtu: 9000 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Generic);
    println!("{:#?}", gateway.bound());
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 2_000, 9014);
    gateway.close();
}
