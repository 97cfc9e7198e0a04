//! A lab of network namespaces and veth pairs for the AF_XDP tests, and raw senders and receivers in it.
//!
//!     NAME-src  s0 ---- g0  NAME-gw  g1 ---- d0  NAME-dst
#![allow(unsafe_code, reason = "setns and packet sockets")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

/// All protocols, for packet sockets (`linux/if_ether.h`).
const ETH_P_ALL: u16 = 3;

/// True if the tests can run; otherwise says loudly that they do not, and why.
pub fn is_root() -> bool {
    if !has_namespaces() {
        return false;
    }
    // SAFETY: no memory involved.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return skipped(&format!("no AF_XDP socket to be had: {}", io::Error::last_os_error()));
    }
    // SAFETY: fresh and ours; dropped at once.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    true
}

/// True if network namespaces can be made; otherwise says loudly that they cannot.
pub fn has_namespaces() -> bool {
    // SAFETY: no memory involved.
    if unsafe { libc::geteuid() } != 0 {
        return skipped("these tests need root (network namespaces, raw sockets, BPF)");
    }
    let probe = format!("sgx-probe-{}-{:?}", std::process::id(), std::thread::current().id());
    let probe = probe.replace(['(', ')'], "");
    let made = Command::new("ip").args(["netns", "add", &probe]).output();
    let _ = Command::new("ip").args(["netns", "del", &probe]).output();
    made.is_ok_and(|made| made.status.success()) || skipped("`ip netns add` does not work here")
}

/// Says loudly that a test does not run; `scripts/test` counts these lines. False.
pub fn skipped(why: &str) -> bool {
    // Past the test harness, which swallows what a passing test prints.
    let _ = io::Write::write_all(
        &mut File::options()
            .write(true)
            .open("/dev/stderr")
            .map_or_else(|_| Box::new(io::stderr()) as Box<dyn io::Write>, |file| Box::new(file)),
        format!("\n*** SKIPPED: {why} ***\n").as_bytes(),
    );
    false
}

/// Queues of the veth ends and their MTU.
#[derive(Clone, Copy)]
pub struct Veth {
    /// Queues of both ends of s0-g0.
    pub left: u16,
    /// Queues of both ends of g1-d0.
    pub right: u16,
    pub mtu: u16,
}

impl Default for Veth {
    fn default() -> Veth {
        Veth { left: 1, right: 1, mtu: 1500 }
    }
}

/// The namespaces; deleted when dropped, also by a panic.
pub struct Lab {
    name: String,
}

impl Lab {
    pub fn new(tag: &str, veth: Veth) -> Lab {
        let lab = Lab { name: format!("sgx-{tag}-{}", std::process::id()) };
        for side in ["src", "gw", "dst"] {
            let ns = lab.ns(side);
            ip(&format!("netns add {ns}"));
            // No neighbour discovery among the test packets.
            lab.within(side, || {
                for which in ["all", "default"] {
                    std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").ok();
                }
            });
            ip(&format!("-n {ns} link set lo up"));
        }
        let Veth { left, right, mtu } = veth;
        for (here, peer, side, n) in [("g0", "s0", "src", left), ("g1", "d0", "dst", right)] {
            lab.add_pair(here, peer, side, n, mtu);
        }
        lab
    }

    /// Makes the veth pair `here` (in gw) and `peer`, each with `n` queues.
    pub fn add_pair(&self, here: &str, peer: &str, side: &str, n: u16, mtu: u16) {
        let (gw, far) = (self.ns("gw"), self.ns(side));
        ip(&format!(
            "-n {gw} link add {here} mtu {mtu} numrxqueues {n} numtxqueues {n} type veth \
             peer name {peer} mtu {mtu} netns {far} numrxqueues {n} numtxqueues {n}"
        ));
        ip(&format!("-n {gw} link set {here} up"));
        ip(&format!("-n {far} link set {peer} up"));
    }

    pub fn ns(&self, side: &str) -> String {
        format!("{}-{side}", self.name)
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter(&self, side: &str) {
        enter(&self.ns(side));
    }

    /// Runs `work` in the namespace, on a thread of its own.
    pub fn within<R: Send>(&self, side: &str, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter(side);
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for side in ["src", "gw", "dst"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(side)]).output();
        }
    }
}

/// Moves the calling thread into the named network namespace.
pub fn enter(ns: &str) {
    let file = File::open(format!("/run/netns/{ns}")).expect("the namespace");
    // SAFETY: changes the thread's namespace, no memory.
    let moved = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(moved, 0, "setns: {}", io::Error::last_os_error());
}

/// Runs `ip` with the words of `arguments`.
pub fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A raw packet socket on one device of the thread's namespace.
pub struct Wire {
    fd: OwnedFd,
}

/// Of a device of the calling thread's namespace.
pub fn index_of(device: &str) -> u32 {
    let name = std::ffi::CString::new(device).expect("a name");
    // SAFETY: a NUL-terminated string.
    let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(ifindex, 0, "no device {device}");
    ifindex
}

impl Wire {
    pub fn open(device: &str) -> Wire {
        let ifindex = index_of(device);
        // SAFETY: no memory involved.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(ETH_P_ALL.to_be()))
        };
        assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
        // SAFETY: fresh and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: integers only.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETH_P_ALL.to_be();
        address.sll_ifindex = ifindex as i32;
        // SAFETY: a live address of this length.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        assert_eq!(bound, 0, "bind: {}", io::Error::last_os_error());
        for (level, option, value) in [
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 256 << 20),
            (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 16 << 20),
            // PACKET_IGNORE_OUTGOING: a sender does not hear itself.
            (libc::SOL_PACKET, 23, 1),
        ] {
            let value: libc::c_int = value;
            // SAFETY: a live int.
            let set =
                unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
            assert_eq!(set, 0, "setsockopt {option}: {}", io::Error::last_os_error());
        }
        Wire { fd }
    }

    pub fn send(&self, packet: &[u8]) {
        loop {
            // SAFETY: a live buffer of this length.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
            if sent == packet.len() as isize {
                return;
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "send: {error}");
            std::thread::yield_now();
        }
    }

    /// The next packet, `None` after `patience`.
    pub fn receive<'b>(&self, buffer: &'b mut [u8], patience: Duration) -> Option<&'b [u8]> {
        if !is_readable(self.fd.as_raw_fd(), patience) {
            return None;
        }
        // SAFETY: a live buffer of this length.
        let got = unsafe {
            libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        (got > 0).then(|| &buffer[..got as usize])
    }
}

/// Waits for `fd` to become readable.
pub fn is_readable(fd: i32, patience: Duration) -> bool {
    let mut wait = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    unsafe { libc::poll(&raw mut wait, 1, patience.as_millis() as i32) > 0 }
}

/// The first bytes of the payload of test packets.
const MAGIC: [u8; 4] = *b"SGXT";

/// A UDP packet of `len` bytes that carries `sequence` and a pattern that depends on it; its flow is one
/// of `flows` by source port.
pub fn test_packet(sequence: u32, len: usize, flows: u32) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[..6].copy_from_slice(&[2, 0, 0, 0, 2, 2]);
    packet[6..12].copy_from_slice(&[2, 0, 0, 0, 1, 2]);
    packet[12..14].copy_from_slice(&[8, 0]);
    packet[14] = 0x45;
    packet[16..18].copy_from_slice(&(len as u16 - 14).to_be_bytes());
    packet[22..24].copy_from_slice(&[64, 17]);
    packet[26..30].copy_from_slice(&[192, 0, 2, 1]);
    packet[30..34].copy_from_slice(&[198, 51, 100, 1]);
    packet[34..36].copy_from_slice(&(10_000 + (sequence % flows) as u16).to_be_bytes());
    packet[36..38].copy_from_slice(&9u16.to_be_bytes());
    packet[38..40].copy_from_slice(&(len as u16 - 34).to_be_bytes());
    packet[42..46].copy_from_slice(&MAGIC);
    packet[46..50].copy_from_slice(&sequence.to_be_bytes());
    for (at, byte) in packet.iter_mut().enumerate().skip(50) {
        *byte = pattern(sequence, at);
    }
    packet
}

fn pattern(sequence: u32, at: usize) -> u8 {
    (at as u32).wrapping_mul(31).wrapping_add(sequence.wrapping_mul(17)) as u8
}

/// The sequence number of a test packet; panics if its bytes are not what was sent.
pub fn sequence_of(packet: &[u8]) -> Option<u32> {
    if packet.len() < 50 || packet[42..46] != MAGIC {
        return None;
    }
    let sequence = u32::from_be_bytes([packet[46], packet[47], packet[48], packet[49]]);
    for (at, byte) in packet.iter().enumerate().skip(50) {
        assert_eq!(*byte, pattern(sequence, at), "byte {at} of packet {sequence} was changed");
    }
    Some(sequence)
}

/// Attaches a program that passes everything to `device`, by netlink, as one that outlives its process.
pub fn leave_program(device: &str, name: &str, generic: bool) {
    /// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
    }
    // r0 = XDP_PASS; exit
    let code: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    let mut load = Load {
        kind: 6,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    load.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: a live attribute of this length, which points to live code and licence.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 5, &raw const load, size_of::<Load>()) };
    assert!(fd >= 0, "BPF_PROG_LOAD: {}", io::Error::last_os_error());
    // SAFETY: fresh and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };

    let index = index_of(device);
    let flags = if generic { 2u32 } else { 4 };
    // RTM_SETLINK with NLM_F_REQUEST | NLM_F_ACK, ifinfomsg, and IFLA_XDP with IFLA_XDP_FD and IFLA_XDP_FLAGS.
    let message: [[u8; 4]; 13] = [
        52u32.to_ne_bytes(),
        (5u32 << 16 | 19).to_ne_bytes(),
        [0; 4],
        [0; 4],
        [0; 4],
        index.to_ne_bytes(),
        [0; 4],
        [0; 4],
        ((0x8000u32 | 43) << 16 | 20).to_ne_bytes(),
        (1u32 << 16 | 8).to_ne_bytes(),
        fd.as_raw_fd().to_ne_bytes(),
        (3u32 << 16 | 8).to_ne_bytes(),
        flags.to_ne_bytes(),
    ];
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).expect("netlink");
    socket.bind_auto().expect("netlink");
    socket.connect(&netlink_sys::SocketAddr::new(0, 0)).expect("netlink");
    socket.send(&message.concat(), 0).expect("netlink");
    let (answer, _) = socket.recv_from_full().expect("netlink");
    // NLMSG_ERROR with code 0 is the acknowledgement.
    let (kind, code) = (u16::from_ne_bytes([answer[4], answer[5]]), &answer[16..20]);
    assert!(
        kind == 2 && code == [0; 4],
        "attach: {}",
        io::Error::from_raw_os_error(-i32::from_ne_bytes(code.try_into().expect("4 bytes")))
    );
}
