//! One device as a port: the program attached, a socket bound to each queue, in the best mode it can do.
#![allow(unsafe_code, reason = "ethtool ioctl")]

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{Call, XdpError};
use super::port::XdpPort;
use super::program::{Attachment, MAX_PORTS, ProgramCounters, QUEUES_PER_PORT, XdpProgram};
use super::socket::{Binding, Socket};
use crate::io::LeftQueue;
use crate::mem::{HEADROOM, PacketMemory};

/// How frames get from the device into the packet memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The first of the others that works.
    #[default]
    Auto,
    /// The driver's DMA works on the packet memory.
    ZeroCopy,
    /// The driver runs the program; the kernel copies each frame.
    Copy,
    /// The network stack runs the program on socket buffers; works on every device.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::ZeroCopy => "zero-copy",
            Mode::Copy => "copy",
            Mode::Generic => "generic",
        })
    }
}

/// Entries of a queue's four rings; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    /// Received frames that wait for the worker.
    pub rx: u32,
    /// Frames that wait for the device.
    pub tx: u32,
    /// Empty frames for the device.
    pub fill: u32,
    /// Sent frames on their way back.
    pub completion: u32,
}

impl Default for RingSizes {
    /// 2,048 take 1 ms at 2 Mpps. The fill ring is twice the RX ring, so that under overload it is the RX
    /// ring that runs full, and the counter says what it was.
    fn default() -> RingSizes {
        RingSizes { rx: 2048, tx: 2048, fill: 4096, completion: 2048 }
    }
}

impl RingSizes {
    /// Frames that one queue can hold at most, both directions.
    pub fn frames(&self) -> usize {
        (self.rx + self.tx + self.fill + self.completion) as usize
    }

    fn check(&self, device: &str) -> Result<(), XdpError> {
        for (what, entries) in [
            ("the size of the RX ring", self.rx),
            ("the size of the TX ring", self.tx),
            ("the size of the fill ring", self.fill),
            ("the size of the completion ring", self.completion),
        ] {
            if !entries.is_power_of_two() || !(64..=1 << 16).contains(&entries) {
                return Err(XdpError::Value {
                    device: device.to_owned(),
                    what,
                    given: u64::from(entries),
                    allowed: "a power of two from 64 to 65536".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// A mode that was tried and refused on the way to the one that works.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// The mode.
    pub mode: Mode,
    /// With packets of several buffers.
    pub multi_buffer: bool,
    /// The error's text: what the device answered and what to type.
    pub reason: String,
}

/// How a device was bound.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bound {
    /// Zero-copy, copy or generic.
    pub mode: Mode,
    /// As the kernel confirms it, for all queues.
    pub zero_copy: bool,
    /// Packets may span several frames (jumbo).
    pub multi_buffer: bool,
    /// Sockets are woken by system calls only when they ask for it.
    pub need_wakeup: bool,
    /// Descriptors one system call sends in copy mode; `None`: the kernel's 32.
    pub tx_budget: Option<u32>,
    /// Queues with a socket. Queues from `tx_queues` on only receive.
    pub queues: u16,
    /// Transmit queues of the device.
    pub tx_queues: u16,
    /// Longest frame (without FCS) that can be received and sent.
    pub max_frame_bytes: usize,
    /// Rings of each queue.
    pub rings: RingSizes,
    /// What was tried before.
    pub refused: Vec<Refusal>,
}

/// A device that a process leaves to another.
#[derive(Debug)]
pub struct LeftDevice {
    /// Name.
    pub device: String,
    /// Index.
    pub ifindex: u32,
    /// How it is bound.
    pub bound: Bound,
    /// In their order, all of them.
    pub queues: Vec<LeftQueue>,
}

/// One way to bind.
#[derive(Clone, Copy)]
struct Attempt {
    mode: Mode,
    multi_buffer: bool,
}

/// From best to worst. Without multi-buffer a jumbo frame would be lost, so copy mode with it comes before
/// zero-copy without it wherever the MTU needs it.
fn attempts(mode: Mode, has_frags: bool, needs_chains: bool) -> Vec<Attempt> {
    let modes: &[Mode] = match mode {
        Mode::Auto => &[Mode::ZeroCopy, Mode::Copy, Mode::Generic],
        ref one => std::slice::from_ref(one),
    };
    let all = |multi_buffer| modes.iter().map(move |&mode| Attempt { mode, multi_buffer });
    match (has_frags, needs_chains) {
        (false, _) => all(false).collect(),
        (true, true) => all(true).chain(all(false)).collect(),
        (true, false) => modes
            .iter()
            .flat_map(|&mode| [true, false].map(|multi_buffer| Attempt { mode, multi_buffer }))
            .collect(),
    }
}

/// Rx and tx queues of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queues {
    pub rx: u16,
    pub tx: u16,
}

/// A device bound as a port. Dropping it takes its sockets out of the program's map and detaches the
/// program; the queues ([`XdpPort`]) are closed by the workers that own them, before or after.
pub struct XdpDevice {
    program: Arc<XdpProgram>,
    device: String,
    ifindex: u32,
    slot: u16,
    bound: Bound,
    /// `Some` until dropped.
    attachment: Option<Attachment>,
}

impl XdpDevice {
    /// Receive queues of `device`: the number of sockets it takes to see all its traffic.
    pub fn queue_count(device: &str) -> Result<u16, XdpError> {
        Ok(queues_of(device)?.rx)
    }

    /// Attaches the program to `device` and binds `queues` sockets on `memory`, in `mode`. The port has
    /// number `slot` in the program's maps. The queues come without frames: the first
    /// [`crate::io::Port::receive`] fills them from the pool of the worker that calls it.
    ///
    /// After a device was lost and came back, open it again.
    pub fn open(
        program: &Arc<XdpProgram>,
        device: &str,
        slot: u16,
        mode: Mode,
        queues: u16,
        memory: &Arc<PacketMemory>,
        rings: RingSizes,
    ) -> Result<(XdpDevice, Vec<XdpPort>), XdpError> {
        let ifindex = ifindex_of(device)?;
        let existing = queues_of(device)?;
        check(device, "the number of queues", queues, 1, existing.rx.min(QUEUES_PER_PORT))?;
        check(device, "the port's slot", slot, 0, MAX_PORTS - 1)?;
        rings.check(device)?;
        let chunk_room = memory.chunk().bytes() - HEADROOM;
        // 22: Ethernet header and two tags.
        let needs_chains = mtu_of(device)? as usize + 22 > chunk_room;

        let mut refused: Vec<Refusal> = Vec::new();
        // Kept from one attempt to the next where it serves: attaching resets the rings of real drivers.
        let mut attached: Option<Attached> = None;
        for attempt in attempts(mode, program.has_frags(), needs_chains) {
            let opened = attach_for(program, device, ifindex, attempt, attached.take()).and_then(|link| {
                attached = Some(link);
                bind_all(device, ifindex, queues, memory, rings, attempt)
            });
            let (attachment, sockets) = match (opened, attached.take()) {
                (Ok(sockets), Some(attached)) => (attached.link, sockets),
                (Err(error), kept) if error.is_about_the_mode() => {
                    attached = kept;
                    let reason = error.to_string();
                    if refused.last().is_none_or(|last| last.mode != attempt.mode || last.reason != reason) {
                        let Attempt { mode, multi_buffer } = attempt;
                        refused.push(Refusal { mode, multi_buffer, reason });
                    }
                    continue;
                }
                (Err(error), _) => return Err(error),
                (Ok(_), None) => unreachable!("sockets are bound after attaching only"),
            };
            let bound = Bound {
                mode: attempt.mode,
                zero_copy: sockets.iter().all(Socket::is_zero_copy),
                multi_buffer: attempt.multi_buffer,
                need_wakeup: true,
                tx_budget: sockets.iter().map(|socket| socket.tx_budget).min().flatten(),
                queues,
                tx_queues: existing.tx,
                max_frame_bytes: chunk_room
                    * if attempt.multi_buffer { super::assemble::MAX_SEGMENTS } else { 1 },
                rings,
                refused,
            };
            // From here on the drop of `opened` undoes everything, also if `enter` fails half-way.
            let opened = XdpDevice {
                program: Arc::clone(program),
                device: device.to_owned(),
                ifindex,
                slot,
                bound,
                attachment: Some(attachment),
            };
            let doors = program.enter(device, ifindex, slot, sockets.len() as u16)?;
            let ports = sockets
                .into_iter()
                .zip(doors)
                .enumerate()
                .map(|(queue, (socket, door))| {
                    let queue = queue as u16;
                    XdpPort::new(queue, socket, door, memory, attempt.multi_buffer, queue < existing.tx)
                })
                .collect();
            return Ok((opened, ports));
        }
        Err(XdpError::NoMode { device: device.to_owned(), refused })
    }

    /// Takes over a device that another process has bound, on the same memory: its sockets stay, and our program takes the
    /// place of its. `memory` has taken the frames that the kernel does not hold for these queues. That process uses them
    /// no more; it has its link still, which we hold as well ([`XdpProgram::adopt`]).
    pub fn adopt(
        program: &Arc<XdpProgram>,
        left: LeftDevice,
        slot: u16,
        memory: &Arc<PacketMemory>,
    ) -> Result<(XdpDevice, Vec<XdpPort>), XdpError> {
        let LeftDevice { device, ifindex, bound, queues } = left;
        let name = device.as_str();
        check(name, "the number of queues", queues.len() as u16, bound.queues, bound.queues)?;
        check(name, "the port's slot", slot, 0, MAX_PORTS - 1)?;
        bound.rings.check(name)?;
        let mut opened = XdpDevice {
            program: Arc::clone(program),
            device: device.clone(),
            ifindex,
            slot,
            bound: bound.clone(),
            attachment: None,
        };
        let doors = program.enter(name, ifindex, slot, bound.queues)?;
        let mut ports = Vec::with_capacity(queues.len());
        for (number, (left, door)) in queues.into_iter().zip(doors).enumerate() {
            check(name, "the number of a queue", left.queue, number as u16, number as u16)?;
            let socket = Socket::adopt(name, left.socket, &bound.rings, bound.tx_budget, memory)?;
            let can_send = left.queue < bound.tx_queues;
            let mut port = XdpPort::new(left.queue, socket, door, memory, bound.multi_buffer, can_send);
            if !port.restore(&left.held, left.skips) {
                let reason = "the process before names frames that there are not, or twice";
                return Err(XdpError::of(name, Call::Map("frames"), io::Error::other(reason)));
            }
            port.open_door();
            ports.push(port);
        }
        let attachment = program.attach(name, ifindex, bound.multi_buffer, bound.mode == Mode::Generic)?;
        opened.attachment = Some(attachment);
        Ok((opened, ports))
    }

    /// How the device was bound.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// The device's name at the time it was opened.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The device's index; a device that was lost and came back has another.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Its place in the program's maps.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// What the XDP program did with its frames.
    pub fn counters(&self) -> Result<ProgramCounters, XdpError> {
        self.program.counters(self.slot)
    }
}

impl Drop for XdpDevice {
    fn drop(&mut self) {
        // Detach first: a frame that arrives in between would be counted as a stray.
        drop(self.attachment.take());
        self.program.leave(self.ifindex, self.slot);
    }
}

/// The program on the device, and which.
struct Attached {
    frags: bool,
    generic: bool,
    link: Attachment,
}

/// Attaches what `attempt` needs, unless `present` will do: the multi-buffer program serves sockets
/// without chains as well.
fn attach_for(
    program: &XdpProgram,
    device: &str,
    ifindex: u32,
    attempt: Attempt,
    present: Option<Attached>,
) -> Result<Attached, XdpError> {
    let generic = attempt.mode == Mode::Generic;
    match present {
        Some(present) if present.generic == generic && (present.frags || !attempt.multi_buffer) => {
            return Ok(present);
        }
        // Native and generic programs exclude each other: the old one first.
        other => drop(other),
    }
    let frags = attempt.multi_buffer;
    Ok(Attached { frags, generic, link: program.attach(device, ifindex, frags, generic)? })
}

fn bind_all(
    device: &str,
    ifindex: u32,
    queues: u16,
    memory: &Arc<PacketMemory>,
    rings: RingSizes,
    attempt: Attempt,
) -> Result<Vec<Socket>, XdpError> {
    (0..queues)
        .map(|queue| {
            let zero_copy = attempt.mode == Mode::ZeroCopy;
            let multi_buffer = attempt.multi_buffer;
            Socket::open(memory, &Binding { device, ifindex, queue, zero_copy, multi_buffer, rings })
        })
        .collect()
}

fn check(device: &str, what: &'static str, given: u16, low: u16, high: u16) -> Result<(), XdpError> {
    if (low..=high).contains(&given) {
        return Ok(());
    }
    Err(XdpError::Value {
        device: device.to_owned(),
        what,
        given: u64::from(given),
        allowed: format!("{low} to {high}"),
    })
}

pub(super) fn ifindex_of(device: &str) -> Result<u32, XdpError> {
    let missing = || XdpError::NoDevice { device: device.to_owned() };
    let name = std::ffi::CString::new(device).map_err(|_| missing())?;
    // SAFETY: a NUL-terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Channels {
    cmd: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// What an ioctl on an interface gets: `struct ifreq` with room for its largest member.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    data: InterfaceData,
}

#[repr(C)]
union InterfaceData {
    pointer: *mut Channels,
    mtu: i32,
    space: [u64; 3],
}

fn interface_request(device: &str) -> InterfaceRequest {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], data: InterfaceData { space: [0; 3] } };
    let length = device.len().min(libc::IFNAMSIZ - 1);
    request.name[..length].copy_from_slice(&device.as_bytes()[..length]);
    request
}

/// Performs an interface ioctl on a socket of the thread's network namespace.
///
/// # Safety
/// `request.data` is what `number` wants, and live.
unsafe fn interface_ioctl(number: u64, request: &mut InterfaceRequest) -> io::Result<()> {
    // Interface ioctls work on sockets of any family, in the namespace the socket was made in.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: a live request of the right layout, by the caller's promise.
    let done = unsafe { libc::ioctl(fd, number as _, std::ptr::from_mut(request)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The queues of `device`: what its driver says, else what sysfs lists, else one.
///
/// sysfs comes second since it shows the namespace it was mounted in, not the thread's.
pub(super) fn queues_of(device: &str) -> Result<Queues, XdpError> {
    ifindex_of(device)?;
    let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
    let mut request = interface_request(device);
    request.data.pointer = &raw mut channels;
    // SAFETY: SIOCETHTOOL wants a pointer to the command's structure, which lives until after the call.
    let answered = unsafe { interface_ioctl(libc::SIOCETHTOOL, &mut request) };
    if answered.is_ok() && channels.rx + channels.combined > 0 {
        return Ok(Queues {
            rx: (channels.rx + channels.combined).min(u32::from(u16::MAX)) as u16,
            tx: (channels.tx + channels.combined).min(u32::from(u16::MAX)) as u16,
        });
    }
    let mut found = Queues { rx: 0, tx: 0 };
    if let Ok(entries) = std::fs::read_dir(format!("/sys/class/net/{device}/queues")) {
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            found.rx += u16::from(name.starts_with("rx-"));
            found.tx += u16::from(name.starts_with("tx-"));
        }
    }
    Ok(Queues { rx: found.rx.max(1), tx: found.tx.max(1) })
}

fn mtu_of(device: &str) -> Result<u32, XdpError> {
    let mut request = interface_request(device);
    // SAFETY: SIOCGIFMTU writes the int `mtu`.
    unsafe { interface_ioctl(libc::SIOCGIFMTU, &mut request) }
        .map_err(|error| XdpError::of(device, Call::Query("its MTU"), error))?;
    // SAFETY: the ioctl wrote it; any bits are an i32.
    Ok(unsafe { request.data.mtu }.max(0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mode: Mode, has_frags: bool, needs_chains: bool) -> String {
        attempts(mode, has_frags, needs_chains)
            .iter()
            .map(|a| format!("{}{}", a.mode, if a.multi_buffer { "+" } else { "" }))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn better_modes_are_tried_first() {
        assert_eq!(plan(Mode::Auto, true, false), "zero-copy+ zero-copy copy+ copy generic+ generic");
        assert_eq!(plan(Mode::Auto, true, true), "zero-copy+ copy+ generic+ zero-copy copy generic");
        assert_eq!(plan(Mode::Auto, false, true), "zero-copy copy generic");
        assert_eq!(plan(Mode::Copy, true, false), "copy+ copy");
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = XdpDevice::queue_count("sg-none0").expect_err("no such device");
        assert!(error.to_string().starts_with("sg-none0: there is no such device"), "{error}");
    }

    #[test]
    fn ring_sizes_are_checked() {
        let error =
            RingSizes { rx: 1000, ..RingSizes::default() }.check("eth1").expect_err("no power of two");
        assert_eq!(
            error.to_string(),
            "eth1: the size of the RX ring is 1000; allowed is a power of two from 64 to 65536"
        );
    }
}
