//! One AF_XDP socket: created, its memory registered, its rings mapped, bound to one queue.
#![allow(unsafe_code, reason = "system calls on memory shared with the kernel")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::RingSizes;
use super::error::{Call, XdpError};
use super::ring::{Consumer, Descriptor, Producer, RingParts};
use crate::mem::PacketMemory;

/// `XDP_MAX_TX_SKB_BUDGET` of `linux/if_xdp.h`, since Linux 6.17: descriptors taken by one `sendto` in
/// copy mode (32 without it).
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// 256 descriptors per system call forward 11 % more than the default of 32 (AF_XDP.md section 2).
const TX_BUDGET: u32 = 256;

/// In copy mode each packet under way counts against the socket's send buffer (about 1 KB for a small
/// packet): the default of 208 KB would stall a ring of 2,048.
const SEND_BUFFER_BYTES: libc::c_int = 16 << 20;

/// The kernel frees (device, queue) of a dead process late, some milliseconds after its last file is
/// closed; bind answers EBUSY until then.
const BIND_PATIENCE: Duration = Duration::from_secs(2);

const BIND_PAUSE: Duration = Duration::from_millis(1);

/// What to bind, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding<'a> {
    pub device: &'a str,
    pub ifindex: u32,
    pub queue: u16,
    pub zero_copy: bool,
    /// Packets may span several descriptors (`XDP_USE_SG`).
    pub multi_buffer: bool,
    pub rings: RingSizes,
}

/// What `sendto` said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kick {
    Done,
    /// More is queued than one call takes, or the device is busy: try again.
    Again,
    /// The device is down, gone or without memory: nothing to be won by trying at once.
    Failed,
}

/// An open, bound socket with its four rings.
pub(super) struct Socket {
    // The rings first: their mappings hold references to the socket's file, so the queue is only free
    // once all of them and `fd` are gone.
    pub fill: Producer<u64>,
    pub completion: Consumer<u64>,
    pub rx: Consumer<Descriptor>,
    pub tx: Producer<Descriptor>,
    /// What the kernel took, if it knows the option.
    pub tx_budget: Option<u32>,
    fd: OwnedFd,
    /// The registered memory must outlive the socket.
    _memory: Arc<PacketMemory>,
}

impl Socket {
    /// Opens a socket on `memory`, bound as `binding` says. Retries for a while if the queue is busy.
    pub fn open(memory: &Arc<PacketMemory>, binding: &Binding<'_>) -> Result<Socket, XdpError> {
        let failed = |call| move |error| XdpError::of(binding.device, call, error);
        let fd = create().map_err(failed(Call::Socket))?;
        register(&fd, memory).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOBUFS) => XdpError::LockedMemory {
                device: binding.device.to_owned(),
                call: Call::RegisterMemory,
                bytes: registered_bytes(memory),
            },
            _ => XdpError::of(binding.device, Call::RegisterMemory, error),
        })?;
        let rings = &binding.rings;
        for (option, name, entries) in [
            (libc::XDP_UMEM_FILL_RING, "XDP_UMEM_FILL_RING", rings.fill),
            (libc::XDP_UMEM_COMPLETION_RING, "XDP_UMEM_COMPLETION_RING", rings.completion),
            (libc::XDP_RX_RING, "XDP_RX_RING", rings.rx),
            (libc::XDP_TX_RING, "XDP_TX_RING", rings.tx),
        ] {
            set_option(&fd, libc::SOL_XDP, option, &entries).map_err(failed(Call::Ring(name)))?;
        }
        // Both are improvements only: an older kernel answers ENOPROTOOPT to the first, a process
        // without CAP_NET_ADMIN gets EPERM for the second.
        let tx_budget =
            set_option(&fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET).ok().map(|()| TX_BUDGET);
        let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER_BYTES);

        let rings = map_rings(binding.device, &fd, rings)?;
        bind(&fd, binding)?;
        Ok(Socket::of(fd, rings, tx_budget, memory))
    }

    /// Goes on with a socket of another process on the same `memory`, bound as it is. What is in the rings stays; that
    /// process uses them no more.
    pub fn adopt(
        device: &str,
        fd: OwnedFd,
        rings: &RingSizes,
        tx_budget: Option<u32>,
        memory: &Arc<PacketMemory>,
    ) -> Result<Socket, XdpError> {
        let rings = map_rings(device, &fd, rings)?;
        Ok(Socket::of(fd, rings, tx_budget, memory))
    }

    fn of(fd: OwnedFd, rings: Rings, tx_budget: Option<u32>, memory: &Arc<PacketMemory>) -> Socket {
        let Rings { fill, completion, rx, tx } = rings;
        Socket { fill, completion, rx, tx, tx_budget, fd, _memory: Arc::clone(memory) }
    }

    /// Another descriptor of it, for a process that takes it over.
    pub fn another_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// The file descriptor, for `poll` and the socket map.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// True if the driver works on the packet memory itself.
    pub fn is_zero_copy(&self) -> bool {
        get_option::<u32>(&self.fd, libc::XDP_OPTIONS).is_ok_and(|v| v & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// The kernel's counters of this socket.
    pub fn statistics(&self) -> Option<libc::xdp_statistics> {
        get_option(&self.fd, libc::XDP_STATISTICS).ok()
    }

    /// Makes the kernel look at the TX ring.
    #[inline]
    pub fn kick_tx(&self) -> Kick {
        // SAFETY: no buffer is passed.
        let sent = unsafe { libc::sendto(self.fd(), null_mut(), 0, libc::MSG_DONTWAIT, null_mut(), 0) };
        if sent >= 0 {
            return Kick::Done;
        }
        match io::Error::last_os_error().raw_os_error() {
            // EAGAIN: the budget of one call is used up. EBUSY: zero-copy driver in reset.
            Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => Kick::Again,
            _ => Kick::Failed,
        }
    }

    /// Makes the driver look at the fill ring.
    #[inline]
    pub fn kick_rx(&self) {
        // SAFETY: no buffer is passed.
        unsafe { libc::recvfrom(self.fd(), null_mut(), 0, libc::MSG_DONTWAIT, null_mut(), null_mut()) };
    }
}

struct Rings {
    fill: Producer<u64>,
    completion: Consumer<u64>,
    rx: Consumer<Descriptor>,
    tx: Producer<Descriptor>,
}

/// Maps the four rings of a socket, where they stand.
fn map_rings(device: &str, fd: &OwnedFd, rings: &RingSizes) -> Result<Rings, XdpError> {
    let failed = |call| move |error| XdpError::of(device, call, error);
    let offsets: libc::xdp_mmap_offsets =
        get_option(fd, libc::XDP_MMAP_OFFSETS).map_err(failed(Call::RingOffsets))?;
    let map_error = failed(Call::MapRing);
    let parts = |offset, size, entry, page| map_ring(fd, offset, size, entry, page).map_err(&map_error);
    let fill = parts(&offsets.fr, rings.fill, size_of::<u64>(), libc::XDP_UMEM_PGOFF_FILL_RING as _)?;
    let completion =
        parts(&offsets.cr, rings.completion, size_of::<u64>(), libc::XDP_UMEM_PGOFF_COMPLETION_RING as _)?;
    let rx = parts(&offsets.rx, rings.rx, size_of::<Descriptor>(), libc::XDP_PGOFF_RX_RING as _)?;
    let tx = parts(&offsets.tx, rings.tx, size_of::<Descriptor>(), libc::XDP_PGOFF_TX_RING as _)?;
    Ok(Rings {
        // SAFETY: `map_ring` mapped exactly this ring with the offsets and sizes of the kernel, which
        // aligns indexes and entries; each is wrapped once; the kernel consumes the fill ring.
        fill: unsafe { Producer::new(fill) },
        // SAFETY: as above; the kernel produces completions.
        completion: unsafe { Consumer::new(completion) },
        // SAFETY: as above; the kernel produces received descriptors.
        rx: unsafe { Consumer::new(rx) },
        // SAFETY: as above; the kernel consumes descriptors to send.
        tx: unsafe { Producer::new(tx) },
    })
}

fn create() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn registered_bytes(memory: &PacketMemory) -> usize {
    memory.frames() * memory.chunk().bytes()
}

/// Registers the node's memory with this socket.
///
/// Every socket registers it anew instead of sharing the first one's registration (XDP_SHARED_UMEM),
/// because a shared registration also shares the mode: the first socket's zero-copy or copy would bind
/// all ports of the node. The kernel pins the pages once more; the memory is the same, so a frame received
/// on one port is sent on any other without a copy. Headroom is 0: the kernel itself leaves 256 bytes
/// (XDP_PACKET_HEADROOM) in front of each packet, which is `mem::HEADROOM`.
fn register(fd: &OwnedFd, memory: &PacketMemory) -> io::Result<()> {
    const _: () = assert!(crate::mem::HEADROOM == 256, "XDP_PACKET_HEADROOM");
    let registration = libc::xdp_umem_reg {
        addr: memory.base().as_ptr() as u64,
        // Not the rounded-up mapping: the kernel shall refuse addresses behind the last chunk.
        len: registered_bytes(memory) as u64,
        chunk_size: memory.chunk().bytes() as u32,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
}

fn bind(fd: &OwnedFd, binding: &Binding<'_>) -> Result<(), XdpError> {
    let mode = if binding.zero_copy { libc::XDP_ZEROCOPY } else { libc::XDP_COPY };
    let chains = if binding.multi_buffer { libc::XDP_USE_SG } else { 0 };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: mode | chains | libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: binding.ifindex,
        sxdp_queue_id: u32::from(binding.queue),
        sxdp_shared_umem_fd: 0,
    };
    let began = Instant::now();
    loop {
        // SAFETY: the address is a live sockaddr_xdp of the length given.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_xdp>() as u32)
        };
        if bound == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        let waited = began.elapsed();
        match error.raw_os_error() {
            Some(libc::EBUSY) if waited < BIND_PATIENCE => std::thread::sleep(BIND_PAUSE),
            Some(libc::EBUSY) => {
                return Err(XdpError::QueueBusy {
                    device: binding.device.to_owned(),
                    queue: binding.queue,
                    waited_ms: waited.as_millis() as u64,
                });
            }
            _ => {
                let call = Call::Bind { queue: binding.queue, zero_copy: binding.zero_copy };
                return Err(XdpError::of(binding.device, call, error));
            }
        }
    }
}

fn set_option<T: Copy>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A structure of `linux/if_xdp.h` that `getsockopt` fills in.
///
/// # Safety
/// Integers only: all-zero bytes and whatever the kernel writes are a value.
unsafe trait OptionValue: Copy {}
// SAFETY: integers only.
unsafe impl OptionValue for u32 {}
// SAFETY: integers only.
unsafe impl OptionValue for libc::xdp_mmap_offsets {}
// SAFETY: integers only.
unsafe impl OptionValue for libc::xdp_statistics {}

fn get_option<T: OptionValue>(fd: &OwnedFd, option: i32) -> io::Result<T> {
    // SAFETY: zero bytes are a T, by the contract of OptionValue.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = size_of::<T>() as u32;
    // SAFETY: the kernel writes at most `len` bytes into a live, writable value.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, (&raw mut value).cast(), &raw mut len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A mapped ring; unmapped when dropped.
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the value, not to a thread.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `map_ring` with this length; the ring that used it is being dropped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn map_ring(
    fd: &OwnedFd,
    offset: &libc::xdp_ring_offset,
    size: u32,
    entry_bytes: usize,
    page: i64,
) -> io::Result<RingParts> {
    let bytes = offset.desc as usize + size as usize * entry_bytes;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let raw = unsafe {
        libc::mmap(
            null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            page,
        )
    };
    let base = match NonNull::new(raw.cast::<u8>()) {
        Some(base) if raw != libc::MAP_FAILED => base,
        _ => return Err(io::Error::last_os_error()),
    };
    Ok(RingParts {
        base,
        producer: offset.producer as usize,
        consumer: offset.consumer as usize,
        flags: offset.flags as usize,
        entries: offset.desc as usize,
        size,
        mapping: Box::new(Mapping { base, bytes }),
    })
}
