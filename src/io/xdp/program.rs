//! The XDP program of the node: loaded once, attached to each port, its maps filled from here.
//!
//! `softgate_xdp.c` is the source; the object beside it is checked in and compared by
//! `scripts/build-xdp --check`. A program is attached by a BPF link that is not pinned: when the process
//! dies, however it dies, the kernel detaches it.
#![allow(unsafe_code, reason = "layouts shared with the BPF program")]

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, XskMap};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpError as AyaXdpError, XdpMode};
use aya::{Ebpf, Pod};

use super::error::{Call, XdpError};
use super::{links, netlink};

/// Ports of a node; `MAX_PORTS` in softgate_xdp.c.
pub const MAX_PORTS: u16 = 64;

/// Queues of a port; `QUEUES_PER_PORT` in softgate_xdp.c.
pub const QUEUES_PER_PORT: u16 = 64;

/// Index of the counters of devices that are no port; `NO_PORT` in softgate_xdp.c.
const NO_PORT: u32 = MAX_PORTS as u32;

/// A dead process' link lets go of the device some milliseconds after the process is gone.
const ATTACH_PATIENCE: Duration = Duration::from_secs(2);

const ATTACH_PAUSE: Duration = Duration::from_millis(10);

/// The program for drivers that know multi-buffer XDP, and its twin.
const FRAGS: &str = "softgate_frags";
const SINGLE: &str = "softgate_single";

/// Every program of ours has a name that begins so.
const OUR_PREFIX: &str = "softgate_";

static OBJECT: &[u8] = aya::include_bytes_aligned!("softgate_xdp.o");

/// `struct port`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PortEntry {
    base: u32,
    slot: u32,
}
// SAFETY: integers without padding, as in softgate_xdp.c.
unsafe impl Pod for PortEntry {}

/// `struct settings`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Settings {
    pair_port: u32,
    check_own: u32,
}
// SAFETY: integers without padding, as in softgate_xdp.c.
unsafe impl Pod for Settings {}

/// A member of a bridge, by the device it is on. `struct link`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BridgedLink {
    /// Interface index of the device.
    pub ifindex: u32,
    /// VID of the outer tag, or of the only one; 0: none.
    pub outer: u16,
    /// VID of the inner tag; 0: none.
    pub inner: u16,
}
// SAFETY: integers without padding, as in softgate_xdp.c.
unsafe impl Pod for BridgedLink {}

/// A segment in tunnels to one of our tunnel end points. `struct segment`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TunnelledSegment {
    vtep: [u8; 16],
    vni: u32,
    udp_port: u32,
}
// SAFETY: integers without padding, as in softgate_xdp.c.
unsafe impl Pod for TunnelledSegment {}

impl TunnelledSegment {
    /// That of a VNI, behind a UDP port.
    pub fn new(vtep: IpAddr, udp_port: u16, vni: u32) -> TunnelledSegment {
        TunnelledSegment { vtep: as_ipv6(vtep).octets(), vni, udp_port: udp_port.into() }
    }
}

/// Virtual routers of ours on a link. `struct routers`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnRouters {
    v4: [u32; 8],
    v6: [u32; 8],
}
// SAFETY: integers without padding, as in softgate_xdp.c.
unsafe impl Pod for OwnRouters {}

impl OwnRouters {
    /// Has one more.
    pub fn insert(&mut self, vrid: u8, is_ipv6: bool) {
        let bits = if is_ipv6 { &mut self.v6 } else { &mut self.v4 };
        bits[usize::from(vrid >> 5)] |= 1 << (vrid & 31);
    }
}

/// What the XDP program did with the frames of one port since it was attached. `struct counters`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ProgramCounters {
    /// Given to a socket.
    pub redirected: u64,
    /// Control-plane packets left to the kernel.
    pub passed: u64,
    /// Dropped because no socket sits in the queue's slot.
    pub no_socket: u64,
}
// SAFETY: integers without padding, as in softgate_xdp.c.
unsafe impl Pod for ProgramCounters {}

/// The loaded program and its maps; one per node, used by the control thread.
pub struct XdpProgram {
    loaded: Mutex<Loaded>,
}

struct Loaded {
    ebpf: Ebpf,
    sockets: MapData,
    ports: HashMap<MapData, u32, PortEntry>,
    own: HashMap<MapData, [u8; 16], u8>,
    settings: Array<MapData, Settings>,
    bridged: HashMap<MapData, BridgedLink, OwnRouters>,
    segments: HashMap<MapData, TunnelledSegment, OwnRouters>,
    /// What is in `bridged` and in `segments`.
    bridged_now: AHashMap<BridgedLink, OwnRouters>,
    segments_now: AHashMap<TunnelledSegment, OwnRouters>,
    counters: PerCpuArray<MapData, ProgramCounters>,
    current: Settings,
    /// Links of a process whose place we take, by device.
    adopted: std::collections::HashMap<u32, links::Link>,
    /// False on kernels before 5.18: then only the single-buffer program exists.
    has_frags: bool,
}

/// A program attached to a device; dropping it detaches.
pub(super) struct Attachment {
    _link: Option<XdpLink>,
    /// In which our program has taken the place of another process'.
    _adopted: Option<OwnedFd>,
}

impl XdpProgram {
    /// Loads the program into the kernel. It does nothing until a device is opened with it.
    pub fn load() -> Result<Arc<XdpProgram>, XdpError> {
        let mut ebpf = Ebpf::load(OBJECT).map_err(|error| load_error(&error))?;
        load_one(&mut ebpf, SINGLE).map_err(|error| load_error(&error))?;
        let has_frags = load_one(&mut ebpf, FRAGS).is_ok();
        let Some(Map::XskMap(sockets)) = ebpf.take_map("xsks_map") else {
            unreachable!("the object has the map xsks_map");
        };
        let loaded = Loaded {
            sockets,
            ports: map(&mut ebpf, "ports")?,
            own: map(&mut ebpf, "own_addresses")?,
            settings: map(&mut ebpf, "settings")?,
            bridged: map(&mut ebpf, "bridged")?,
            segments: map(&mut ebpf, "segments")?,
            bridged_now: AHashMap::new(),
            segments_now: AHashMap::new(),
            counters: map(&mut ebpf, "counters")?,
            current: Settings::default(),
            adopted: std::collections::HashMap::new(),
            has_frags,
            ebpf,
        };
        Ok(Arc::new(XdpProgram { loaded: Mutex::new(loaded) }))
    }

    /// Holds the links that another process of ours has on devices, so that they stay when it ends. A device that is opened
    /// then has its program replaced, and nothing of what comes goes to the kernel meanwhile.
    pub fn adopt(&self) {
        match links::all() {
            Ok(links) => {
                // The number of a device is its network namespace's: the program tells which link is ours.
                let is_here = |link: &links::Link| {
                    let here = netlink::attached(link.ifindex).ok().flatten();
                    here.is_some_and(|here| here.id == link.program)
                        && program_name(link.program).is_some_and(|name| name.starts_with(OUR_PREFIX))
                };
                let ours = links.into_iter().filter(is_here).map(|link| (link.ifindex, link));
                self.loaded().adopted = ours.collect();
            }
            Err(error) => {
                tracing::info!(%error, "links cannot be taken over: programs are detached and attached again")
            }
        }
    }

    /// True if another process' link on the device is held, so that its program can be replaced.
    pub fn has_adopted(&self, ifindex: u32) -> bool {
        self.loaded().adopted.contains_key(&ifindex)
    }

    /// Takes over the link on a device, if there is one and it will do. Else it is let go of.
    fn take_over(&self, ifindex: u32, frags: bool, generic: bool) -> Option<Attachment> {
        let mut loaded = self.loaded();
        let link = loaded.adopted.remove(&ifindex)?;
        let is_generic = netlink::attached(ifindex).ok().flatten()?.generic;
        if is_generic != generic {
            return None;
        }
        match loaded.replace(if frags { FRAGS } else { SINGLE }, &link.fd) {
            Ok(()) => Some(Attachment { _link: None, _adopted: Some(link.fd) }),
            Err(error) => {
                tracing::info!(ifindex, %error, "the link cannot be taken over: the program is attached again");
                None
            }
        }
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// UDP packets to this port go to the kernel, for the HA thread. `None`: no pair.
    pub fn set_pair_port(&self, port: Option<u16>) -> Result<(), XdpError> {
        let mut loaded = self.loaded();
        loaded.current.pair_port = u32::from(port.unwrap_or(0));
        loaded.write_settings()
    }

    /// The gateway's own addresses. From the first call on, multihop BFD (UDP 4784) and the pair port go to
    /// the kernel only when sent to one of them: a tenant may use these port numbers for itself.
    pub fn set_own_addresses(&self, addresses: &[IpAddr]) -> Result<(), XdpError> {
        let mut loaded = self.loaded();
        let wanted: std::collections::HashSet<[u8; 16]> =
            addresses.iter().map(|address| as_ipv6(*address).octets()).collect();
        let present: Vec<[u8; 16]> = loaded.own.keys().filter_map(Result::ok).collect();
        let failed = |error: MapError| map_error("all ports", "own_addresses", error);
        for address in &wanted {
            loaded.own.insert(address, 1, 0).map_err(failed)?;
        }
        for gone in present.iter().filter(|address| !wanted.contains(*address)) {
            loaded.own.remove(gone).map_err(failed)?;
        }
        loaded.current.check_own = 1;
        loaded.write_settings()
    }

    /// The members of bridges, each with the virtual routers that are ours there. Their advertisements alone go to the
    /// kernel, and single-hop BFD not at all: what hosts of the segment say to each other is data.
    pub fn set_bridged(&self, links: &AHashMap<BridgedLink, OwnRouters>) -> Result<(), XdpError> {
        let loaded = &mut *self.loaded();
        follow(&mut loaded.bridged, &mut loaded.bridged_now, links)
            .map_err(|error| map_error("all ports", "bridged", error))
    }

    /// Segments in tunnels with virtual routers of ours: advertisements of these go to the kernel, in their tunnels.
    pub fn set_segments(&self, segments: &AHashMap<TunnelledSegment, OwnRouters>) -> Result<(), XdpError> {
        let loaded = &mut *self.loaded();
        follow(&mut loaded.segments, &mut loaded.segments_now, segments)
            .map_err(|error| map_error("all ports", "segments", error))
    }

    /// What became of the frames of the port in `slot`.
    pub fn counters(&self, slot: u16) -> Result<ProgramCounters, XdpError> {
        self.sum(u32::from(slot))
    }

    /// Frames dropped on devices that carry the program but are no port (in between open and close).
    pub fn strays(&self) -> Result<u64, XdpError> {
        Ok(self.sum(NO_PORT)?.no_socket)
    }

    fn sum(&self, index: u32) -> Result<ProgramCounters, XdpError> {
        let per_cpu = self
            .loaded()
            .counters
            .get(&index, 0)
            .map_err(|error| map_error("all ports", "counters", error))?;
        Ok(per_cpu.iter().fold(ProgramCounters::default(), |sum, cpu| ProgramCounters {
            redirected: sum.redirected + cpu.redirected,
            passed: sum.passed + cpu.passed,
            no_socket: sum.no_socket + cpu.no_socket,
        }))
    }

    /// True if the kernel has taken the multi-buffer program.
    pub(super) fn has_frags(&self) -> bool {
        self.loaded().has_frags
    }

    /// Attaches to the device, natively or generic. What a dead process of ours left is replaced.
    pub(super) fn attach(
        &self,
        device: &str,
        ifindex: u32,
        frags: bool,
        generic: bool,
    ) -> Result<Attachment, XdpError> {
        let mode = if generic { XdpMode::Skb } else { XdpMode::Driver };
        if let Some(attachment) = self.take_over(ifindex, frags, generic) {
            return Ok(attachment);
        }
        let began = Instant::now();
        loop {
            let error = match self.loaded().attach(if frags { FRAGS } else { SINGLE }, ifindex, mode) {
                Ok(link) => return Ok(Attachment { _link: Some(link), _adopted: None }),
                Err(error) => error,
            };
            // EEXIST: a program in the other mode (native and generic exclude each other).
            if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
                return Err(XdpError::of(device, Call::Attach { generic }, error));
            }
            clear_leftover(device, ifindex, error, generic, began.elapsed() >= ATTACH_PATIENCE)?;
            std::thread::sleep(ATTACH_PAUSE);
        }
    }

    /// Enters the port with its number of queues, and resets its counters. Each queue's frames are dropped until its
    /// [`Door`] is opened.
    pub(super) fn enter(
        &self,
        device: &str,
        ifindex: u32,
        slot: u16,
        queues: u16,
    ) -> Result<Vec<Door>, XdpError> {
        let mut loaded = self.loaded();
        let base = u32::from(slot) * u32::from(QUEUES_PER_PORT);
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, error)| XdpError::of(device, Call::Query("the number of CPUs"), error))?;
        let zero = PerCpuValues::try_from(vec![ProgramCounters::default(); cpus])
            .map_err(|error| XdpError::of(device, Call::Map("counters"), error))?;
        loaded
            .counters
            .set(u32::from(slot), zero, 0)
            .map_err(|error| map_error(device, "counters", error))?;
        let doors = (0..queues)
            .map(|queue| Ok(Door { sockets: loaded.sockets()?, index: base + u32::from(queue) }))
            .collect::<Result<_, MapError>>()
            .map_err(|error| map_error(device, "xsks_map", error))?;
        loaded
            .ports
            .insert(ifindex, PortEntry { base, slot: u32::from(slot) }, 0)
            .map_err(|error| map_error(device, "ports", error))?;
        Ok(doors)
    }

    /// Takes the port and its sockets out; from now on its frames are dropped.
    pub(super) fn leave(&self, ifindex: u32, slot: u16) {
        let mut loaded = self.loaded();
        let base = u32::from(slot) * u32::from(QUEUES_PER_PORT);
        // An absent entry is what is wanted: the kernel removes closed sockets by itself.
        let _ = loaded.ports.remove(&ifindex);
        if let Ok(mut sockets) = loaded.sockets() {
            for queue in 0..u32::from(QUEUES_PER_PORT) {
                let _ = sockets.unset(base + queue);
            }
        }
    }
}

/// Lets the frames of one queue in. The queue's worker holds it: it opens when the kernel has somewhere to put them,
/// and without asking the control thread, which may be attaching another device.
pub(super) struct Door {
    sockets: XskMap<MapData>,
    index: u32,
}

impl Door {
    /// From now on the queue's frames go to `socket`.
    pub fn open(mut self, socket: RawFd) -> Result<(), MapError> {
        self.sockets.set(self.index, socket, 0)
    }
}

impl Loaded {
    /// A handle of its own on the map of the sockets.
    fn sockets(&self) -> Result<XskMap<MapData>, MapError> {
        let fd = self.sockets.fd().as_fd().try_clone_to_owned()?;
        XskMap::try_from(Map::XskMap(MapData::from_fd(fd)?))
    }

    fn program(&mut self, name: &str) -> &mut Xdp {
        self.ebpf
            .program_mut(name)
            .unwrap_or_else(|| unreachable!("both programs are in the object"))
            .try_into()
            .unwrap_or_else(|_| unreachable!("both are XDP programs"))
    }

    /// Has the device of a link run one of ours from now on.
    fn replace(&mut self, name: &str, link: &OwnedFd) -> Result<(), std::io::Error> {
        let program = self.program(name).fd().map_err(os_error)?;
        links::update(link, program.as_fd())
    }

    fn attach(&mut self, name: &str, ifindex: u32, mode: XdpMode) -> Result<XdpLink, std::io::Error> {
        let program = self.program(name);
        let id = program.attach_to_if_index(ifindex, mode).map_err(os_error)?;
        program.take_link(id).map_err(os_error)
    }

    fn write_settings(&mut self) -> Result<(), XdpError> {
        let settings = self.current;
        self.settings.set(0, settings, 0).map_err(|error| map_error("all ports", "settings", error))
    }
}

/// Something is attached already. Removes what a dead SoftGate left; an error if it is somebody else's,
/// or a living SoftGate's when patience is over.
fn clear_leftover(
    device: &str,
    ifindex: u32,
    refusal: std::io::Error,
    generic: bool,
    give_up: bool,
) -> Result<(), XdpError> {
    let query = |error| XdpError::of(device, Call::Query("the attached XDP program"), error);
    let Some(found) = netlink::attached(ifindex).map_err(query)? else {
        // Gone in the meantime: just try again, unless the kernel means something else by its refusal.
        return if give_up { Err(XdpError::of(device, Call::Attach { generic }, refusal)) } else { Ok(()) };
    };
    let name = program_name(found.id);
    match &name {
        Some(name) if name.starts_with(OUR_PREFIX) => {}
        // The id is stale: the program went away between the two questions.
        None if !give_up => return Ok(()),
        _ => {
            return Err(XdpError::ForeignProgram {
                device: device.to_owned(),
                program: name.unwrap_or_else(|| "?".to_owned()),
                id: found.id,
            });
        }
    }
    match netlink::detach(ifindex, found.generic) {
        Ok(()) => Ok(()),
        // Held by a link: of a process that is dying, or of one that lives.
        Err(_) if !give_up => Ok(()),
        Err(_) => Err(XdpError::HeldBySoftGate { device: device.to_owned(), id: found.id }),
    }
}

/// The name of a loaded program, if it (still) exists.
fn program_name(id: u32) -> Option<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .map(|program| String::from_utf8_lossy(program.name()).into_owned())
}

fn load_one(ebpf: &mut Ebpf, name: &str) -> Result<(), ProgramError> {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .unwrap_or_else(|| unreachable!("both programs are in the object"))
        .try_into()?;
    program.load()
}

fn map<M: TryFrom<aya::maps::Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, XdpError> {
    let map = ebpf.take_map(name).unwrap_or_else(|| unreachable!("the object has the map {name}"));
    M::try_from(map).map_err(|error| map_error("all ports", name, error))
}

/// Has a map be what is wanted; `now` is what it is.
fn follow<K: Pod + Eq + std::hash::Hash>(
    map: &mut HashMap<MapData, K, OwnRouters>,
    now: &mut AHashMap<K, OwnRouters>,
    wanted: &AHashMap<K, OwnRouters>,
) -> Result<(), MapError> {
    let gone: Vec<K> = now.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    for key in gone {
        map.remove(&key)?;
        now.remove(&key);
    }
    for (key, routers) in wanted {
        if now.get(key) != Some(routers) {
            map.insert(key, routers, 0)?;
            now.insert(*key, *routers);
        }
    }
    Ok(())
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn map_error(device: &str, map: &'static str, error: MapError) -> XdpError {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => std::io::Error::other(other.to_string()),
    };
    XdpError::of(device, Call::Map(map), source)
}

/// The errno inside aya's error; where there is none, its words.
fn os_error(error: ProgramError) -> std::io::Error {
    match error {
        ProgramError::SyscallError(error) => error.io_error,
        ProgramError::XdpError(AyaXdpError::NetlinkError(error)) => match error.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code),
            None => std::io::Error::other(error.to_string()),
        },
        other => std::io::Error::other(other.to_string()),
    }
}

/// Loading fails for want of rights or for the kernel's age; the errno sits deep in the error's sources.
fn load_error(error: &(dyn std::error::Error + 'static)) -> XdpError {
    let mut reason = error.to_string();
    let mut at = Some(error);
    while let Some(cause) = at {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES))
        {
            return XdpError::of(
                "all ports",
                Call::Map("of the XDP program"),
                std::io::Error::from_raw_os_error(libc::EPERM),
            );
        }
        at = cause.source();
        if let Some(cause) = at {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
        }
    }
    XdpError::Program { reason }
}
