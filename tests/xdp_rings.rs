//! The AF_XDP ports end to end: real veth pairs in network namespaces, real sockets, the real program.
//!
//! Needs root; says so loudly and does nothing without.

mod xdp_lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use softgate::io::Port;
use softgate::io::xdp::{
    Bound, BridgedLink, Mode, OwnRouters, ProgramCounters, RingSizes, TunnelledSegment, XdpDevice, XdpError,
    XdpPort, XdpProgram,
};
use softgate::mem::{ChunkSize, FramePool, Frames, PacketMemory};

use xdp_lab::{Lab, Veth, Wire, index_of, is_root, sequence_of, test_packet};

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

fn boxed<P: Port + 'static>(queues: Vec<P>) -> Vec<Box<dyn Port>> {
    queues.into_iter().map(|queue| Box::new(queue) as Box<dyn Port>).collect()
}

/// A gateway that copies nothing and changes nothing: what comes in on g0 leaves by g1 and back.
struct Gateway {
    memory: Arc<PacketMemory>,
    pools: Vec<FramePool>,
    program: Arc<XdpProgram>,
    devices: [Option<XdpDevice>; 2],
    queues: [Vec<Box<dyn Port>>; 2],
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
        let queues = [left, right].map(boxed);
        Gateway {
            memory,
            pools,
            program,
            devices: [Some(g0), Some(g1)],
            queues,
            received,
            frames: Frames::new(),
            longest_chain: 0,
        }
    }

    fn bound(&self) -> &Bound {
        self.devices[0].as_ref().expect("open").bound()
    }

    fn counters(&self) -> ProgramCounters {
        self.devices[0].as_ref().expect("open").counters().expect("counters")
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
            // Also when a check below fails: the others must not wait for ever.
            let _done = SetWhenDropped(&done);
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

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
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
    let counters = gateway.counters();
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

/// Nothing new is queued, but the kernel has taken only part of the ring: a flush must get it moving.
#[test]
fn a_full_tx_ring_is_emptied_by_flushes_alone() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("wedge", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Copy);
    let port = &mut gateway.queues[1][0];
    let pool = &mut gateway.pools[0];
    let mut queued = 0;
    loop {
        let mut frames = Frames::new();
        for _ in 0..64 {
            let packet = test_packet(queued + frames.len() as u32, 60, 1);
            frames.push(pool.take_filled(&packet).expect("a frame"));
        }
        queued += port.send(pool, &mut frames) as u32;
        if !frames.is_empty() {
            frames.drain(..).for_each(|frame| pool.put(frame));
            break;
        }
    }
    assert_eq!((queued, port.held()), (1024, 1024), "the ring is full and nothing was sent");
    let arrived = lab.within("dst", || {
        let wire = Wire::open("d0");
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut buffer = [0; 2048];
                let mut arrived = 0;
                while let Some(packet) = wire.receive(&mut buffer, Duration::from_millis(500)) {
                    arrived += u32::from(sequence_of(packet).is_some());
                }
                arrived
            });
            for _ in 0..100 {
                port.flush(pool);
            }
            receiver.join().expect("the receiver")
        })
    });
    assert_eq!((arrived, port.held()), (1024, 0), "everything was sent and came back");
    gateway.close();
}

const MACS: [u8; 12] = [2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2];

/// From its EtherType on; of VRRP the VRID is 0x99.
fn ipv4(proto: u8, ttl: u8, dst: [u8; 4], udp_port: u16, options: usize, fragment: u16) -> Vec<u8> {
    let mut packet = vec![8, 0, 0x45 + (options / 4) as u8, 0, 0, 60];
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([ttl, proto, 0, 0, 192, 0, 2, 1]);
    packet.extend(dst);
    packet.extend(vec![1; options]);
    packet.extend([0x99, 0x99]);
    packet.extend(udp_port.to_be_bytes());
    packet.extend([0; 20]);
    packet
}

/// The same.
fn ipv6(next: u8, hops: u8, dst: &str, udp_port: u16) -> Vec<u8> {
    let mut packet = vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, next, hops];
    packet.extend("fe80::1".parse::<std::net::Ipv6Addr>().expect("an address").octets());
    packet.extend(dst.parse::<std::net::Ipv6Addr>().expect("an address").octets());
    packet.extend([0x99, 0x99]);
    packet.extend(udp_port.to_be_bytes());
    packet.extend([0; 20]);
    packet
}

/// Which packets the kernel gets, under every number of tags.
#[test]
fn control_packets_go_to_the_kernel() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("ctl", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    gateway.turn();
    gateway.program.set_pair_port(Some(7400)).expect("the pair port");

    const GW: [u8; 4] = [192, 0, 2, 254];
    const OTHER: [u8; 4] = [203, 0, 113, 7];
    // (what, packet from its ethertype on, goes to the kernel before and after own addresses are known)
    let cases = [
        ("VRRP", ipv4(112, 255, [224, 0, 0, 18], 0, 0, 0), true, true),
        ("VRRP with options", ipv4(112, 255, [224, 0, 0, 18], 0, 8, 0), true, true),
        ("protocol 112 to elsewhere", ipv4(112, 255, OTHER, 0, 0, 0), false, false),
        ("VRRP, IPv6", ipv6(112, 255, "ff02::12", 0), true, true),
        ("next header 112 to elsewhere", ipv6(112, 255, "ff02::13", 0), false, false),
        ("BFD", ipv4(17, 255, GW, 3784, 0, 0), true, true),
        ("BFD with options", ipv4(17, 255, GW, 3784, 4, 0), true, true),
        ("BFD, IPv6", ipv6(17, 255, "2001:db8::1", 3784), true, true),
        ("a reply to port 3784", ipv4(17, 63, OTHER, 3784, 0, 0), false, false),
        ("BFD echo is data", ipv4(17, 255, GW, 3785, 0, 0), false, false),
        ("BFD on a LAG member", ipv4(17, 255, GW, 6784, 0, 0), true, true),
        ("multihop BFD to us", ipv4(17, 200, GW, 4784, 0, 0), true, true),
        ("multihop BFD to us, IPv6", ipv6(17, 200, "2001:db8::1", 4784), true, true),
        ("multihop BFD of tenants", ipv4(17, 200, OTHER, 4784, 0, 0), true, false),
        ("the pair", ipv4(17, 64, GW, 7400, 0, 0), true, true),
        ("a tenant on the pair's port", ipv4(17, 64, OTHER, 7400, 0, 0), true, false),
        ("a tenant on the pair's port, IPv6", ipv6(17, 64, "2001:db8::7", 7400), true, false),
        ("a later fragment", ipv4(17, 255, GW, 3784, 0, 100), false, false),
        ("a first fragment", ipv4(17, 255, GW, 3784, 0, 0x2000), true, true),
        ("TCP to 3784", ipv4(6, 255, GW, 3784, 0, 0), false, false),
        ("LACP", [vec![0x88, 0x09, 1], vec![0; 50]].concat(), true, true),
        ("ARP", [vec![0x08, 0x06], vec![0; 50]].concat(), false, false),
        ("a truncated IPv4 header", vec![8, 0, 0x45, 0], false, false),
    ];
    let tags: [&[u8]; 5] = [
        &[],
        &[0x81, 0, 0, 7],
        &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 10],
        &[0x81, 0, 0, 7, 0x81, 0, 0, 8],
        &[0x91, 0, 0, 7, 0x81, 0, 0, 8],
    ];
    let (program, g0) = (&gateway.program, gateway.devices[0].as_ref().expect("open"));
    let count = || g0.counters().expect("counters");
    let mut before = count();
    lab.within("src", || {
        let wire = Wire::open("s0");
        for own_known in [false, true] {
            if own_known {
                let own = ["192.0.2.254", "2001:db8::1"].map(|a| a.parse().expect("an address"));
                program.set_own_addresses(&own).expect("own addresses");
            }
            for (what, packet, early, late) in &cases {
                for tag in tags {
                    let frame = [&MACS, tag, packet].concat();
                    wire.send(&frame);
                    let want = if own_known { *late } else { *early };
                    let began = Instant::now();
                    // veth delivers before send returns; the loop is for a kernel that defers.
                    let after = loop {
                        let now = count();
                        if now != before || began.elapsed() > Duration::from_secs(2) {
                            break now;
                        }
                    };
                    let (passed, redirected) =
                        (after.passed - before.passed, after.redirected - before.redirected);
                    assert_eq!(
                        (passed, redirected),
                        (u64::from(want), u64::from(!want)),
                        "{what} with tags {tag:02x?}, own addresses known: {own_known}"
                    );
                    before = after;
                    // Three tags are one more than is looked under.
                    if !tag.is_empty() {
                        continue;
                    }
                    let deep = [&MACS, &[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3][..], packet].concat();
                    wire.send(&deep);
                    let after = count();
                    assert_eq!(after.passed, before.passed, "{what} under three tags");
                    before = after;
                }
            }
        }
    });
    gateway.turn();
    gateway.close();
}

/// On members of bridges only advertisements of our own virtual routers are for the kernel.
#[test]
fn what_hosts_of_a_bridge_say_to_each_other_is_data() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("seg", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    gateway.turn();
    let ifindex = index_of("g0");
    let routers = |all: &[(u8, bool)]| {
        let mut routers = OwnRouters::default();
        all.iter().for_each(|(vrid, is_ipv6)| routers.insert(*vrid, *is_ipv6));
        routers
    };
    let link = |outer, inner| BridgedLink { ifindex, outer, inner };
    // Untagged others' alone, in VLAN 7 ours of IPv4 as well, in 200.10 ours of IPv6, in 8 no bridge.
    let bridged = [
        (link(0, 0), routers(&[(0x98, false), (0x9a, true), (0x39, false)])),
        (link(7, 0), routers(&[(0x99, false)])),
        (link(200, 10), routers(&[(0x99, true)])),
        (BridgedLink { ifindex: ifindex + 1, outer: 8, inner: 0 }, routers(&[])),
    ];
    let all = bridged.into_iter().collect();
    gateway.program.set_bridged(&all).expect("the members of bridges");
    let (v4, v6) = (ipv4(112, 255, [224, 0, 0, 18], 0, 0, 0), ipv6(112, 255, "ff02::12", 0));
    let (with_options, bfd) =
        (ipv4(112, 255, [224, 0, 0, 18], 0, 8, 0), ipv4(17, 255, [192, 0, 2, 254], 3784, 0, 0));
    let bfd_v6 = ipv6(17, 255, "2001:db8::1", 3784);
    let lacp = [vec![0x88, 0x09, 1], vec![0; 50]].concat();
    let cases: [(&[u8], [bool; 6]); 8] = [
        // VRRP of IPv4, with options, of IPv6; BFD of both; LACP.
        (&[], [false, false, false, false, false, true]),
        (&[0x81, 0, 0xe0, 0], [false, false, false, false, false, true]),
        (&[0x81, 0, 0xe0, 7], [true, true, false, false, false, true]),
        (&[0x81, 0, 0, 0, 0x81, 0, 0, 7], [true, true, false, false, false, true]),
        (&[0x88, 0xa8, 0, 200, 0x81, 0, 0, 10], [false, false, true, false, false, true]),
        (&[0x81, 0, 0, 8], [true; 6]),
        (&[0x88, 0xa8, 0, 200, 0x81, 0, 0, 11], [true; 6]),
        // No tag to the workers: of the untagged member.
        (&[0x91, 0, 0, 7], [false, false, false, false, false, true]),
    ];
    let (program, g0) = (&gateway.program, gateway.devices[0].as_ref().expect("open"));
    let passed = || g0.counters().expect("counters").passed;
    lab.within("src", || {
        let wire = Wire::open("s0");
        let sends = |tags: &[u8], packet: &[u8]| {
            let before = g0.counters().expect("counters");
            wire.send(&[&MACS, tags, packet].concat());
            let began = Instant::now();
            while g0.counters().expect("counters") == before && began.elapsed() < Duration::from_secs(2) {}
            passed() > before.passed
        };
        for (tags, expected) in cases {
            let all = [&v4, &with_options, &v6, &bfd, &bfd_v6, &lacp];
            assert_eq!(all.map(|packet| sends(tags, packet)), expected, "tags {tags:02x?}");
        }
        // They follow the config.
        let all = [(link(0, 0), routers(&[(0x99, false)]))].into_iter().collect();
        program.set_bridged(&all).expect("the members of bridges");
        assert_eq!([&v4, &v6, &bfd].map(|packet| sends(&[], packet)), [true, false, false]);
        assert!(sends(&[0x81, 0, 0, 7], &v6));
    });
    gateway.turn();
    gateway.close();
}

/// In tunnels the virtual routers are looked for that are ours there.
#[test]
fn advertisements_in_tunnels_go_to_the_kernel() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("tun", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    gateway.turn();
    const VTEP: [u8; 4] = [192, 0, 2, 254];
    const VTEP6: &str = "2001:db8::1";
    let mut routers = OwnRouters::default();
    routers.insert(0x99, false);
    let mut both = routers;
    both.insert(0x99, true);
    let segment = |vtep: &str, vni| TunnelledSegment::new(vtep.parse().expect("an address"), 4789, vni);
    let all = [(segment("192.0.2.254", 0x12_3456), routers), (segment(VTEP6, 7), both)].into_iter().collect();
    gateway.program.set_segments(&all).expect("the segments");
    let (v4, v6) = (ipv4(112, 255, [224, 0, 0, 18], 0, 0, 0), ipv6(112, 255, "ff02::12", 0));
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 0x12];
    const GROUP6: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0x12];
    // Behind the UDP header: VXLAN or Geneve, the frame.
    let inner = |vni: u32, dst: [u8; 6], packet: &[u8]| {
        [&[8, 0, 0, 0], &(vni << 8).to_be_bytes()[..], &dst, &MACS[6..], packet].concat()
    };
    let over_v4 = |port: u16, options: usize, inner: &[u8]| {
        let mut packet = ipv4(17, 64, VTEP, port, options, 0);
        packet.truncate(2 + 20 + options + 8);
        [packet, inner.to_vec()].concat()
    };
    let over_v6 = |inner: &[u8]| {
        let mut packet = ipv6(17, 64, VTEP6, 4789);
        packet.truncate(2 + 40 + 8);
        [packet, inner.to_vec()].concat()
    };
    let (ours, six) = (inner(0x12_3456, GROUP, &v4), inner(7, GROUP6, &v6));
    let mut other_vrid = ours.clone();
    other_vrid[8 + 14 + 20 + 1] = 0x98;
    let mut other_protocol = ours.clone();
    other_protocol[8 + 14 + 9] = 17;
    let mut other_group = ours.clone();
    other_group[8 + 14 + 19] = 13;
    let with_options = inner(0x12_3456, GROUP, &ipv4(112, 255, [224, 0, 0, 18], 0, 8, 0));
    let cases = [
        ("IPv4 in IPv4", over_v4(4789, 0, &ours), true),
        ("behind outer options", over_v4(4789, 8, &ours), true),
        ("with options", over_v4(4789, 0, &with_options), true),
        ("IPv6 in IPv6", over_v6(&six), true),
        ("IPv4 in IPv6", over_v6(&inner(7, GROUP, &v4)), true),
        ("IPv6, where only IPv4 is ours", over_v4(4789, 0, &inner(0x12_3456, GROUP6, &v6)), false),
        ("another VRID", over_v4(4789, 0, &other_vrid), false),
        ("another VNI", over_v4(4789, 0, &inner(0x12_3457, GROUP, &v4)), false),
        ("another port", over_v4(4790, 0, &ours), false),
        ("another end", over_v6(&ours), false),
        ("another protocol", over_v4(4789, 0, &other_protocol), false),
        ("another address", over_v4(4789, 0, &other_group), false),
        ("another MAC address", over_v4(4789, 0, &inner(0x12_3456, [1, 0, 0x5e, 0, 0, 0x13], &v4)), false),
        ("a short one", over_v4(4789, 0, &ours[..8 + 14 + 20]), false),
        ("a shorter one", over_v4(4789, 0, &ours[..8 + 14 + 10]), false),
        ("no frame", over_v4(4789, 0, &ours[..8 + 13]), false),
    ];
    let (program, g0) = (&gateway.program, gateway.devices[0].as_ref().expect("open"));
    let passed = || g0.counters().expect("counters").passed;
    lab.within("src", || {
        let wire = Wire::open("s0");
        let sends = |tags: &[u8], packet: &[u8]| {
            let before = g0.counters().expect("counters");
            wire.send(&[&MACS, tags, packet].concat());
            let began = Instant::now();
            while g0.counters().expect("counters") == before && began.elapsed() < Duration::from_secs(2) {}
            passed() > before.passed
        };
        for (what, packet, expected) in &cases {
            for tags in [&[][..], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 10]] {
                assert_eq!(sends(tags, packet), *expected, "{what} with tags {tags:02x?}");
            }
        }
        program.set_segments(&std::iter::empty().collect()).expect("the segments");
        assert!(!sends(&[], &cases[0].1));
    });
    gateway.turn();
    gateway.close();
}

/// An idle worker sleeps in poll() and is woken by a packet.
#[test]
fn a_packet_wakes_a_sleeping_worker() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("poll", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    gateway.turn();
    let fd = gateway.queues[0][0].poll_fd().expect("AF_XDP ports have one");
    assert!(!xdp_lab::is_readable(fd, Duration::ZERO));
    lab.within("src", || Wire::open("s0").send(&test_packet(0, 60, 1)));
    assert!(xdp_lab::is_readable(fd, Duration::from_secs(5)));
    gateway.turn();
    assert_eq!(gateway.received[0], [1]);
    assert!(!xdp_lab::is_readable(fd, Duration::ZERO));
    gateway.close();
}

/// The kernel never forwards: without a socket the program drops.
#[test]
fn an_empty_slot_drops() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("empty", Veth { left: 2, right: 1, mtu: 1500 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    let kernel = Wire::open("g0");
    for queue in gateway.queues[0].drain(..) {
        queue.close(&mut gateway.pools[0]);
    }
    lab.within("src", || {
        let wire = Wire::open("s0");
        for sequence in 0..100 {
            wire.send(&test_packet(sequence, 60, 64));
        }
    });
    let counters = gateway.counters();
    assert_eq!((counters.no_socket, counters.passed, counters.redirected), (100, 0, 0));
    assert_eq!(kernel.receive(&mut [0; 2048], Duration::from_millis(100)), None, "the kernel saw nothing");
    gateway.close();
}

/// Frames that come before the worker has given the device any to put them in: dropped where the device begins,
/// and not counted as an overload of the ring.
#[test]
fn a_queue_is_closed_until_it_has_frames() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("door", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    let send = |first| {
        lab.within("src", || {
            let wire = Wire::open("s0");
            for sequence in first..first + 100 {
                wire.send(&test_packet(sequence, 60, 64));
            }
        });
    };
    send(0);
    let counters = gateway.counters();
    assert_eq!((counters.no_socket, counters.redirected), (100, 0));
    gateway.turn();
    send(100);
    let counters = gateway.counters();
    assert_eq!((counters.no_socket, counters.redirected), (100, 100));
    for stats in gateway.queues.iter().flatten().map(|queue| queue.stats()) {
        assert_eq!((stats.rx_fill_empty, stats.rx_dropped), (0, 0), "{stats:?}");
    }
    gateway.close();
}

/// A device that is held by a living gateway is refused, in words.
#[test]
fn a_device_is_opened_only_once() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("once", Veth::default());
    lab.enter("gw");
    let gateway = Gateway::open(Mode::Auto);
    let other = XdpProgram::load().expect("the program loads");
    let error = open(&other, "g0", 0, Mode::Auto, &gateway.memory).err().expect("the device is taken");
    assert!(matches!(error, XdpError::HeldBySoftGate { .. }), "{error}");
    gateway.close();
    let again = Gateway::open(Mode::Auto);
    again.close();
}

/// A port can be closed and opened while the other goes on, as after a lost device.
#[test]
fn a_port_is_opened_again() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("again", Veth { left: 2, right: 2, mtu: 1500 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    for mode in [Mode::Generic, Mode::Copy, Mode::Auto] {
        for queue in gateway.queues[0].drain(..) {
            queue.close(&mut gateway.pools[0]);
        }
        gateway.devices[0] = None;
        let (device, queues) = open(&gateway.program, "g0", 0, mode, &gateway.memory).expect("opens again");
        gateway.devices[0] = Some(device);
        gateway.queues[0] = boxed(queues);
        forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 5_000, 60);
    }
    gateway.close();
}

/// The device is deleted under load: no frame is lost, and a new one of that name opens at once.
#[test]
fn a_device_vanishes_and_returns() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("gone", Veth::default());
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 2_000, 60);
    lab.within("src", || {
        let wire = Wire::open("s0");
        for sequence in 0..500 {
            wire.send(&test_packet(sequence, 60, 1));
        }
    });
    xdp_lab::ip(&format!("-n {} link del g1", lab.ns("gw")));
    // Received on g0, sent to nowhere: the TX ring of g1 takes them, and close gives them back.
    let before = gateway.received[0][0];
    while gateway.received[0][0] < before + 500 {
        gateway.turn();
    }
    assert!(gateway.queues[1][0].held() > 0);
    for queue in gateway.queues[1].drain(..) {
        queue.close(&mut gateway.pools[0]);
    }
    gateway.devices[1] = None;
    lab.add_pair("g1", "d0", "dst", 2, 1500);
    let (device, queues) = open(&gateway.program, "g1", 1, Mode::Auto, &gateway.memory).expect("opens");
    gateway.devices[1] = Some(device);
    gateway.queues[1] = boxed(queues);
    gateway.received[1] = vec![0; 2];
    gateway.turn();
    forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 2_000, 60);
    forward(&lab, &mut gateway, LEFT.0, LEFT.1, 2_000, 60);
    gateway.close();
}

/// The error of a device that cannot do it, in words.
#[test]
fn refusals_say_what_to_type() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("refuse", Veth::default());
    lab.enter("gw");
    let (memory, _pools) = PacketMemory::new(1, 4096, ChunkSize::Bytes2048).expect("memory");
    let program = XdpProgram::load().expect("the program loads");
    let text = |result: Result<_, XdpError>| {
        let result: Result<(XdpDevice, Vec<XdpPort>), XdpError> = result;
        result.err().expect("refused").to_string()
    };
    let zero_copy = text(open(&program, "g0", 0, Mode::ZeroCopy, &memory));
    assert!(zero_copy.contains("g0: the driver cannot do zero-copy"), "{zero_copy}");
    let queues = text(XdpDevice::open(&program, "g0", 0, Mode::Auto, 2, &memory, RINGS));
    assert_eq!(queues, "g0: the number of queues is 2; allowed is 1 to 1");
    let device = text(open(&program, "g9", 0, Mode::Auto, &memory));
    assert!(device.starts_with("g9: there is no such device"), "{device}");

    // The peer has more transmit queues than we have receive queues: no native XDP, generic works.
    xdp_lab::ip(&format!(
        "-n {} link add g2 numrxqueues 1 numtxqueues 1 type veth peer name s2 netns {} numrxqueues 4 numtxqueues 4",
        lab.ns("gw"),
        lab.ns("src")
    ));
    let native = text(open(&program, "g2", 0, Mode::Copy, &memory));
    assert!(native.contains("ethtool -L"), "{native}");
    let (device, ports) = open(&program, "g2", 0, Mode::Auto, &memory).expect("generic mode works");
    assert_eq!(device.bound().mode, Mode::Generic);
    assert!(device.bound().refused.iter().any(|r| r.reason.contains("too few receive queues")));
    drop((device, ports));
}

/// The crate `afxdp` on one port and on both: the same packets must arrive as with our own rings.
#[cfg(feature = "afxdp")]
#[test]
fn the_crate_afxdp_forwards_the_same() {
    use softgate::io::xdp::AfxdpDevice;
    if !is_root() {
        return;
    }
    let lab = Lab::new("crate", Veth { left: 2, right: 1, mtu: 1500 });
    lab.enter("gw");
    let mut gateway = Gateway::open(Mode::Auto);
    let mut twins = Vec::new();
    for (side, name) in [(0, "g0"), (1, "g1")] {
        for queue in gateway.queues[side].drain(..) {
            queue.close(&mut gateway.pools[0]);
        }
        gateway.devices[side] = None;
        let queues = XdpDevice::queue_count(name).expect("queues");
        let (device, queues) =
            AfxdpDevice::open(name, Mode::Auto, queues, RINGS).expect("the crate opens it");
        assert_eq!(device.mode(), Mode::Copy);
        twins.push(device);
        gateway.queues[side] = boxed(queues);
        gateway.received[side].fill(0);
        forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 20_000, 60);
        forward(&lab, &mut gateway, LEFT.0, LEFT.1, 20_000, 1514);
    }
    assert!(gateway.received[0].iter().all(|packets| *packets > 1000), "{:?}", gateway.received);
    for side in 0..2 {
        for queue in gateway.queues[side].drain(..) {
            queue.close(&mut gateway.pools[0]);
        }
    }
    // Our own program and rings again, right after the crate's.
    drop(twins);
    gateway.close();
    Gateway::open(Mode::Auto).close();
}

/// What a killed process left that had attached by netlink: ours is replaced, a stranger's is not.
#[test]
fn leftovers_of_ours_are_replaced_and_strangers_are_not() {
    if !is_root() {
        return;
    }
    let lab = Lab::new("left", Veth::default());
    lab.enter("gw");
    for generic in [false, true] {
        xdp_lab::leave_program("g0", "softgate_old", generic);
        let gateway = Gateway::open(Mode::Auto);
        gateway.close();

        xdp_lab::leave_program("g0", "somebodys", generic);
        let (memory, _pools) = PacketMemory::new(1, 4096, ChunkSize::Bytes2048).expect("memory");
        let program = XdpProgram::load().expect("the program loads");
        let error = open(&program, "g0", 0, Mode::Auto, &memory).err().expect("refused").to_string();
        assert!(error.contains("`somebodys`") && error.contains("ip link set g0 xdp off"), "{error}");
        xdp_lab::ip(&format!(
            "-n {} link set g0 {} off",
            lab.ns("gw"),
            if generic { "xdpgeneric" } else { "xdp" }
        ));
    }
}

// --- kill -9 ------------------------------------------------------------------------------------------

/// Not a test of its own: the process that `a_killed_gateway_leaves_nothing_in_the_way` kills.
#[test]
#[ignore = "started by a_killed_gateway_leaves_nothing_in_the_way"]
fn child_that_holds_the_devices() {
    let Ok(ns) = std::env::var("SGX_CHILD_NS") else { return };
    xdp_lab::enter(&ns);
    let mut gateway = Gateway::open(Mode::Auto);
    println!("CHILD READY");
    loop {
        gateway.turn();
    }
}

#[test]
fn a_killed_gateway_leaves_nothing_in_the_way() {
    use std::io::BufRead;
    if !is_root() {
        return;
    }
    let lab = Lab::new("kill", Veth { left: 4, right: 1, mtu: 1500 });
    lab.enter("gw");
    for _ in 0..3 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("our own path"))
            .args(["--ignored", "--exact", "child_that_holds_the_devices", "--nocapture"])
            .env("SGX_CHILD_NS", lab.ns("gw"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("the child");
        let output = std::io::BufReader::new(child.stdout.take().expect("its output"));
        let ready = output.lines().map_while(Result::ok).any(|line| line.contains("CHILD READY"));
        assert!(ready, "the child opened the devices");
        child.kill().expect("kill -9");
        // Not waited for before opening: the new process must cope with one that is just dying.
        let mut gateway = Gateway::open(Mode::Auto);
        forward(&lab, &mut gateway, RIGHT.0, RIGHT.1, 2_000, 60);
        gateway.close();
        child.wait().expect("the child is gone");
    }
}
