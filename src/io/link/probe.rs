//! What a device and this machine really do: asked where the kernel tells, tried where it does not.
//!
//! A trial attaches a program that passes every frame, or binds an AF_XDP socket that holds no frame,
//! and takes it away at once. Nothing is tried on a device where a program or a socket sits already: a
//! running gateway is not disturbed. Everything tried is held by file descriptors, so that it is gone
//! even when this process is killed half-way.
#![allow(unsafe_code, reason = "bpf(2) and AF_XDP system calls have no safe wrapper; each with its proof")]

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE, NETLINK_SOCK_DIAG};

use super::accept::Admission;
use super::channels::{VETH_SINGLE_BUFFER_MTU, VethPeer};
use super::ethtool::{Channels, DriverInfo, Ethtool, Features, Rings};
use super::netlink::{self, GENL_HEADER_BYTES, NLM_F_ACK, NLM_F_DUMP, Request, attribute, u32_at, u64_at};
use super::watch::{
    IFLA_EXT_MASK, IFLA_IFNAME, IfIndex, LinkKind, LinkState, RTEXT_FILTER_SKIP_STATS, RTM_GETLINK, XdpMode,
    ifinfo, parse_link,
};

// bpf(2), linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// `r0 = XDP_PASS; exit`: every frame goes on to the kernel as if we were not there.
const PASS_ALL: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// linux/if_xdp.h (about Linux 6.17; seen on 6.18): how many descriptors one kick may send in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
const TX_BUDGET: u32 = 256;
/// The scratch packet memory of a bind trial: the smallest power of two every driver takes.
const SCRATCH_CHUNKS: u32 = 64;
const SCRATCH_CHUNK_BYTES: u32 = 4096;
/// A queue stays taken for some milliseconds after its socket is closed, and a device after its program was; tried again
/// meanwhile.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

// rtnetlink(7)
const RTM_GETADDR: u16 = 22;
const IFADDR_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_TARGET_NETNSID: u16 = 46;
// linux/sock_diag.h, linux/xdp_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const XDP_SHOW_INFO: u32 = 1;
const XDP_DIAG_BYTES: usize = 16;
const XDP_DIAG_INFO: u16 = 1;
// linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;

/// What came of trying something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It was done, and undone.
    Works,
    /// The kernel refused, with this error number.
    Failed(i32),
    /// Not tried: the device is in use, or nothing was to be tried.
    NotTried,
}

impl Trial {
    pub(super) fn of<T>(outcome: io::Result<T>) -> Self {
        match outcome {
            Ok(_) => Self::Works,
            Err(error) => Self::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

/// What the driver declares of its XDP support (Linux 6.3 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeclaredXdp {
    /// Runs programs in the driver.
    pub native: bool,
    /// AF_XDP without copying.
    pub zero_copy: bool,
    /// Frames in several parts.
    pub multi_buffer: bool,
    /// Most parts of one frame in zero-copy mode; 1 is none.
    pub zero_copy_max_parts: u32,
}

/// All that is known of one device.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// Its name.
    pub device: String,
    /// Its state by rtnetlink, with the queues in use.
    pub state: LinkState,
    /// Who drives it.
    pub driver: Option<DriverInfo>,
    /// Its channels, where the driver tells.
    pub channels: Option<Channels>,
    /// Its ring sizes, where the driver tells.
    pub rings: Option<Rings>,
    /// Its offloads.
    pub features: Features,
    /// The other end, for a veth whose peer could be asked.
    pub veth_peer: Option<VethPeer>,
    /// Queues on which AF_XDP sockets sit; `None` where the kernel does not tell and nothing was tried.
    pub sockets: Option<Vec<u32>>,
    /// What the driver declares.
    pub declared: Option<DeclaredXdp>,
    /// A program in the driver, frames in one part.
    pub native: Trial,
    /// A program in the driver, frames in several parts.
    pub native_frags: Trial,
    /// A program in the kernel's stack.
    pub generic: Trial,
    /// An AF_XDP socket without copying.
    pub zero_copy: Trial,
    /// An AF_XDP socket with copying.
    pub copy: Trial,
    /// Which frames it lets in; `None` where the kernel does not tell.
    pub admission: Option<Admission>,
    /// The kernel's own addresses on it, link-local ones left out.
    pub addresses: Vec<IpAddr>,
    /// The kernel forwards IPv4 that comes in here.
    pub forwards_v4: Option<bool>,
    /// The kernel forwards IPv6 that comes in here.
    pub forwards_v6: Option<bool>,
    /// The kernel speaks IPv6 here: neighbour discovery, MLD, router solicitations.
    pub ipv6: Option<bool>,
}

impl DeviceFacts {
    /// A program or a socket of somebody sits on it.
    pub fn is_in_use(&self) -> bool {
        self.state.xdp.is_some() || self.sockets.as_ref().is_some_and(|queues| !queues.is_empty())
    }
}

/// All that is known of the machine and of what this process may do.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    /// Effective capabilities, by bit.
    pub capabilities: u64,
    /// RLIMIT_MEMLOCK; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// The CPU's model name.
    pub cpu: String,
    /// AVX2: the program is built for it.
    pub avx2: bool,
    /// AVX-512 F, BW and VL: used where there is.
    pub avx512: bool,
    /// Transparent huge pages: `always`, `madvise` or `never`; empty where the kernel has none.
    pub thp: String,
    /// Reserved 2 MB pages: all, free.
    pub huge_pages: (u64, u64),
    /// BPF programs are compiled; `None` where it may not be read.
    pub bpf_jit: Option<bool>,
    /// AF_XDP sockets can be made.
    pub af_xdp: Trial,
    /// The transmit budget can be raised.
    pub tx_budget: Trial,
}

/// Whether to try things out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Attach and bind for a moment. Network cards restart their queues when a native program comes or
    /// goes, some with a second without link.
    Try,
    /// Only ask.
    Ask,
}

/// Probes one device. An error is ENODEV, or rtnetlink cannot be asked at all.
pub fn device(device: &str, depth: Depth) -> io::Result<DeviceFacts> {
    let (name, mut state) = link(&by_name(device)?)?;
    let ethtool = Ethtool::open()?;
    let channels = ethtool.channels(device).ok();
    if let Some(channels) = &channels {
        (state.rx_queues, state.tx_queues) = (channels.rx_queues(), channels.tx_queues());
    }
    let mut facts = DeviceFacts {
        driver: ethtool.driver(device).ok(),
        channels,
        rings: ethtool.rings(device).ok(),
        features: ethtool.features(device).unwrap_or_default(),
        veth_peer: veth_peer(&ethtool, &state),
        sockets: sockets(state.ifindex).ok(),
        declared: declared(state.ifindex).ok(),
        native: Trial::NotTried,
        native_frags: Trial::NotTried,
        generic: Trial::NotTried,
        zero_copy: Trial::NotTried,
        copy: Trial::NotTried,
        admission: Admission::of(state.ifindex).ok(),
        addresses: addresses(state.ifindex).unwrap_or_default(),
        forwards_v4: switch(&format!("net/ipv4/conf/{name}/forwarding")),
        forwards_v6: switch(&format!("net/ipv6/conf/{name}/forwarding")),
        ipv6: switch(&format!("net/ipv6/conf/{name}/disable_ipv6")).map(|disabled| !disabled),
        device: name,
        state,
    };
    if depth == Depth::Try {
        // Many kernels are built without xdp_diag; then a bind tells.
        facts.sockets = facts.sockets.or_else(|| occupied(facts.state.ifindex, facts.state.rx_queues).ok());
        if !facts.is_in_use() {
            try_out(&mut facts);
        }
    }
    Ok(facts)
}

/// The queues that cannot be bound because a socket has them. A queue that can is let go at once; no
/// frame is touched, since no program knows of the socket.
fn occupied(ifindex: IfIndex, rx_queues: u32) -> io::Result<Vec<u32>> {
    let mut queues = Vec::new();
    for queue in 0..rx_queues {
        // Waited for once: what is busy only because its process has just died is free by then.
        let outcome = match queues.is_empty() {
            true => bind_scratch(ifindex, queue, libc::XDP_COPY),
            false => bind_scratch_once(ifindex, queue, libc::XDP_COPY),
        };
        match outcome {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => queues.push(queue),
            outcome => drop(outcome?),
        }
    }
    Ok(queues)
}

/// The trials, one after the other: a device takes one program at a time.
fn try_out(facts: &mut DeviceFacts) {
    let ifindex = facts.state.ifindex;
    let whole = load_pass_all(0);
    let in_parts = load_pass_all(BPF_F_XDP_HAS_FRAGS);
    let attach = |program: &io::Result<OwnedFd>, mode| match program {
        Ok(program) => attach(program.as_raw_fd(), ifindex, mode),
        Err(error) => Err(copy_of(error)),
    };
    facts.generic = Trial::of(attach(&whole, XDP_FLAGS_SKB_MODE));
    facts.native = Trial::of(attach(&whole, XDP_FLAGS_DRV_MODE));
    let mut held = attach(&in_parts, XDP_FLAGS_DRV_MODE);
    facts.native_frags = Trial::of(held.as_ref().map_err(copy_of));
    // The sockets are tried under a program, as `run` binds them; some drivers need it for zero-copy.
    if held.is_err() {
        held = attach(&whole, XDP_FLAGS_DRV_MODE);
    }
    let mut zero_copy = libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP;
    let takes_parts = facts.declared.is_some_and(|declared| declared.zero_copy_max_parts > 1);
    if facts.state.mtu_bytes > VETH_SINGLE_BUFFER_MTU && takes_parts {
        zero_copy |= libc::XDP_USE_SG; // a long frame does not fit one chunk
    }
    facts.zero_copy = Trial::of(bind_scratch(ifindex, 0, zero_copy));
    facts.copy = Trial::of(bind_scratch(ifindex, 0, libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP));
    drop(held);
    if let Some(admission) = &mut facts.admission {
        admission.try_out(ifindex);
    }
}

fn copy_of(error: &io::Error) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A program that passes every frame, attached while the descriptor lives: what is in a gateway's way,
/// for tests.
#[doc(hidden)]
pub fn hold_pass_all(device: &str, mode: XdpMode) -> io::Result<OwnedFd> {
    let (_, state) = link(&by_name(device)?)?;
    let mode = if mode == XdpMode::Generic { XDP_FLAGS_SKB_MODE } else { XDP_FLAGS_DRV_MODE };
    attach(load_pass_all(0)?.as_raw_fd(), state.ifindex, mode)
}

/// A socket on a queue, bound while it lives: the other half of what a running gateway holds, for tests.
#[doc(hidden)]
pub fn hold_socket(device: &str, queue: u32) -> io::Result<Bound> {
    let (_, state) = link(&by_name(device)?)?;
    bind_scratch(state.ifindex, queue, libc::XDP_COPY)
}

/// Probes machine and process.
pub fn host() -> HostFacts {
    let status = read("/proc/thread-self/status");
    let limits = read("/proc/thread-self/limits");
    let pages = |name: &str| {
        read(&format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages"))
            .trim()
            .parse()
            .unwrap_or(0)
    };
    let scratch = xdp_socket();
    HostFacts {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        capabilities: capabilities(&status),
        memlock_bytes: memlock(&limits),
        cpu: cpu_model(&read("/proc/cpuinfo")),
        avx2: has_avx2(),
        avx512: has_avx512(),
        thp: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        huge_pages: (pages("nr"), pages("free")),
        bpf_jit: switch("net/core/bpf_jit_enable"),
        tx_budget: match &scratch {
            // The budget may not exceed the transmit ring, so there has to be one.
            Ok(socket) => Trial::of(
                set_option(socket.as_raw_fd(), libc::XDP_TX_RING, &TX_BUDGET)
                    .and_then(|()| set_option(socket.as_raw_fd(), XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET)),
            ),
            Err(_) => Trial::NotTried,
        },
        af_xdp: Trial::of(scratch),
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A sysctl that is 0 or not; `None` where there is none or it may not be read.
fn switch(name: &str) -> Option<bool> {
    Some(read(&format!("/proc/sys/{name}")).trim().parse::<i64>().ok()? != 0)
}

fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// The soft limit; what cannot be read counts as no locked memory at all.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next() {
        Some("unlimited") => None,
        soft => Some(soft.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)),
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim().to_owned()).unwrap_or_default()
}

/// The word in brackets: `always [madvise] never`.
fn chosen(choices: &str) -> String {
    let inside = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map(|(word, _)| word.to_owned()).unwrap_or_default()
}

fn by_name(device: &str) -> io::Result<Request> {
    if device.is_empty() || device.len() >= libc::IFNAMSIZ || device.contains(['/', '\0']) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let name = [device.as_bytes(), &[0]].concat();
    Ok(get_link(0).with(IFLA_IFNAME, &name))
}

pub(super) fn get_link(ifindex: IfIndex) -> Request {
    Request::new(RTM_GETLINK, NLM_F_ACK, &ifinfo(ifindex))
        .with(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
}

fn link(request: &Request) -> io::Result<(String, LinkState)> {
    let replies = netlink::ask(NETLINK_ROUTE, request.clone())?;
    replies.iter().find_map(|payload| parse_link(payload)).ok_or(io::Error::from_raw_os_error(libc::ENODEV))
}

fn veth_peer(ethtool: &Ethtool, state: &LinkState) -> Option<VethPeer> {
    let peer = state.peer.filter(|_| state.kind == LinkKind::Veth)?;
    let request = match peer.netns_id {
        Some(id) => get_link(peer.ifindex).with(IFLA_TARGET_NETNSID, &id.to_ne_bytes()),
        None => get_link(peer.ifindex),
    };
    let (name, there) = link(&request).ok()?;
    // Its driver answers only in its own namespace; elsewhere the allocated queues are an upper bound.
    let counted = if peer.netns_id.is_none() { ethtool.channels(&name).ok() } else { None };
    Some(VethPeer {
        tx_queues: counted.map_or(there.tx_queues, |channels| channels.tx_queues()),
        exact: counted.is_some() || there.tx_queues == 1,
        mtu_bytes: there.mtu_bytes,
    })
}

/// The queues of a device on which AF_XDP sockets of this namespace sit.
fn sockets(ifindex: IfIndex) -> io::Result<Vec<u32>> {
    let mut wanted = [0; 20];
    wanted[0] = libc::AF_XDP as u8;
    wanted[8..12].copy_from_slice(&XDP_SHOW_INFO.to_ne_bytes());
    let replies = netlink::ask(NETLINK_SOCK_DIAG, Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &wanted))?;
    let mut queues: Vec<u32> = replies
        .iter()
        .filter_map(|payload| {
            let info = attribute(payload.get(XDP_DIAG_BYTES..)?, XDP_DIAG_INFO)?;
            (u32_at(info, 0)? == ifindex).then(|| u32_at(info, 4))?
        })
        .collect();
    queues.sort_unstable();
    queues.dedup();
    Ok(queues)
}

fn declared(ifindex: IfIndex) -> io::Result<DeclaredXdp> {
    let family = netlink::family("netdev")?;
    let request = Request::generic(family.id, NLM_F_ACK, NETDEV_CMD_DEV_GET)
        .with(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let replies = netlink::ask(NETLINK_GENERIC, request)?;
    let attrs = replies.first().and_then(|payload| payload.get(GENL_HEADER_BYTES..)).unwrap_or_default();
    let bits = attribute(attrs, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|value| u64_at(value, 0))
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // enum netdev_xdp_act: basic 1, redirect 2, ndo-xmit 4, zero-copy 8, offload 16, rx-sg 32.
    Ok(DeclaredXdp {
        native: bits & 3 == 3,
        zero_copy: bits & 8 != 0,
        multi_buffer: bits & 32 != 0,
        zero_copy_max_parts: attribute(attrs, NETDEV_A_DEV_XDP_ZC_MAX_SEGS)
            .and_then(|value| u32_at(value, 0))
            .unwrap_or(1),
    })
}

fn addresses(ifindex: IfIndex) -> io::Result<Vec<IpAddr>> {
    let replies = netlink::ask(NETLINK_ROUTE, Request::new(RTM_GETADDR, NLM_F_DUMP, &[0; IFADDR_BYTES]))?;
    let of_ours = replies.iter().filter(|payload| u32_at(payload, 4) == Some(ifindex));
    let parsed = of_ours.filter_map(|payload| {
        let attrs = payload.get(IFADDR_BYTES..)?;
        // On point-to-point devices IFA_ADDRESS is the other end.
        let value = attribute(attrs, IFA_LOCAL).or_else(|| attribute(attrs, IFA_ADDRESS))?;
        if let Ok(octets) = <[u8; 4]>::try_from(value) {
            return Some(IpAddr::V4(Ipv4Addr::from(octets)));
        }
        Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)))
    });
    let link_local = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    Ok(parsed.filter(|address| !link_local(address)).collect())
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE reads.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn load_pass_all(flags: u32) -> io::Result<OwnedFd> {
    let mut load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: PASS_ALL.len() as u32,
        insns: PASS_ALL.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        prog_flags: flags,
        expected_attach_type: BPF_XDP,
        ..ProgLoad::default()
    };
    load.prog_name[..11].copy_from_slice(b"sg_doctor_p");
    // SAFETY: `load` matches the head of bpf_attr for this command; its pointers are to statics, as long
    // as insn_cnt says and NUL-terminated.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<ProgLoad>()) };
    owned(fd)
}

/// Attaches while the descriptor lives: it is a bpf_link, so the kernel takes the program away with it. That may be a
/// moment later: a process just forked has the descriptor too, until it becomes another program.
fn attach(program: RawFd, ifindex: IfIndex, mode: u32) -> io::Result<OwnedFd> {
    while_busy(|| attach_once(program, ifindex, mode))
}

/// What the last trial used may not be free at once: EBUSY, and for a program in the other mode EEXIST.
fn while_busy<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut retries = 0;
    loop {
        match attempt() {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
                    && retries < BUSY_RETRIES =>
            {
                retries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn attach_once(program: RawFd, ifindex: IfIndex, mode: u32) -> io::Result<OwnedFd> {
    let create = LinkCreate {
        prog_fd: program.cast_unsigned(),
        target_ifindex: ifindex,
        attach_type: BPF_XDP,
        flags: mode,
    };
    // SAFETY: `create` matches the head of bpf_attr for this command and holds no pointers.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const create, size_of::<LinkCreate>()) };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every caller passes a descriptor the kernel has just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn xdp_socket() -> io::Result<OwnedFd> {
    // SAFETY: takes three numbers, no memory.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    owned(fd.into())
}

fn set_option<T: Copy>(fd: RawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: reads `length` bytes of `value`, a borrowed plain value. XDP_UMEM_REG makes the kernel
    // use the memory the value names: `Bound` keeps that mapped as long as the socket.
    let set =
        unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, std::ptr::from_ref(value).cast(), length) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Memory of our own for the kernel to pin.
#[derive(Debug)]
struct Scratch(*mut libc::c_void);

impl Scratch {
    const BYTES: usize = (SCRATCH_CHUNKS * SCRATCH_CHUNK_BYTES) as usize;

    fn map() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping, at an address the kernel chooses.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), Self::BYTES, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(address)) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nobody else has the address. Pages the kernel still
        // holds (it releases sockets late) stay allocated until it lets go of them.
        unsafe { libc::munmap(self.0, Self::BYTES) };
    }
}

/// A bound socket without a frame in its rings; the socket closes before its memory goes.
#[derive(Debug)]
#[doc(hidden)]
pub struct Bound {
    _socket: OwnedFd,
    _scratch: Scratch,
}

/// Binds a socket to a queue.
fn bind_scratch(ifindex: IfIndex, queue: u32, flags: u16) -> io::Result<Bound> {
    while_busy(|| bind_scratch_once(ifindex, queue, flags))
}

fn bind_scratch_once(ifindex: IfIndex, queue: u32, flags: u16) -> io::Result<Bound> {
    let scratch = Scratch::map()?;
    let socket = xdp_socket()?;
    let fd = socket.as_raw_fd();
    let umem = libc::xdp_umem_reg {
        addr: scratch.0 as u64,
        len: Scratch::BYTES as u64,
        chunk_size: SCRATCH_CHUNK_BYTES,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::XDP_UMEM_REG, &umem)?;
    for ring in
        [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING, libc::XDP_TX_RING]
    {
        set_option(fd, ring, &SCRATCH_CHUNKS)?;
    }
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let length = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: reads `length` bytes of `address`, which lives across the call.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Bound { _socket: socket, _scratch: scratch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_for_people_is_understood() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n"), 0x1ff_feff_ffff);
        assert_eq!(capabilities(""), 0);
        let limits =
            |soft: &str| format!("Max processes 1 1 p\nMax locked memory         {soft}  8388608  bytes\n");
        assert_eq!(memlock(&limits("8388608")), Some(8_388_608));
        assert_eq!(memlock(&limits("unlimited")), None);
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen(""), "");
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast CPU\n"), "Fast CPU");
    }

    #[test]
    fn a_device_that_cannot_be_is_no_such_device() {
        for name in ["", "a-name-much-too-long", "sgl-nosuch", "../x"] {
            let error = device(name, Depth::Ask).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV), "{name:?}");
        }
    }

    #[test]
    fn lo_is_asked_without_privileges() {
        let facts = device("lo", Depth::Ask).unwrap();
        assert_eq!(facts.state.kind, LinkKind::Loopback);
        assert_eq!(facts.native, Trial::NotTried);
        assert!(!host().kernel.is_empty());
    }
}
