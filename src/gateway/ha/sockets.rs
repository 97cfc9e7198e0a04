//! Packet sockets of the HA thread: one for each link of a device, and what cannot be opened is tried again.

use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use ahash::AHashMap;

use super::filter::{ETHERNET_BYTES, header_bytes};
use crate::ha::vrrp::engine::Frame;
use crate::io::packet_socket::{Instruction, PacketSocket};
use crate::packet::Tags;
use crate::time::Nanos;

/// Frames taken from a device before timers are looked at again.
const BATCH: usize = 64;
/// Longest frame that is worth reading: the longest advertisement, with options and tags.
const BUFFER_BYTES: usize = 2048;
/// How often a device that could not be listened to is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// A device that is listened to for one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedDevice {
    pub name: String,
    pub ifindex: u32,
    /// Interface slot.
    pub link: u16,
    /// That of the member, where the link is the interface of a bridge; else the same.
    pub member: u16,
    /// Port slot.
    pub port: u16,
    pub tags: Tags,
    /// The tags as they are on the wire.
    pub tag_bytes: Vec<u8>,
    /// What leaves by the port leaves by it: of a LAG one device does.
    pub sends: bool,
}

impl PlannedDevice {
    /// A received frame as it was on the wire: with the tag that the kernel has taken out.
    pub fn on_the_wire(&self, frame: &[u8]) -> Vec<u8> {
        let (macs, rest) = frame.split_at(frame.len().min(12));
        let tag = self.tag_bytes.get(..4).unwrap_or_default();
        [macs, tag, rest].concat()
    }
}

struct Socket {
    device: PlannedDevice,
    socket: PacketSocket,
}

/// The sockets that hear one protocol.
pub(super) struct Sockets {
    /// What they hear, for people.
    what: &'static str,
    filter: fn(Tags) -> Vec<Instruction>,
    open: Vec<Socket>,
    /// Those that could not be opened, and when they are tried again.
    missing: Vec<PlannedDevice>,
    retry: Nanos,
}

impl Sockets {
    pub fn new(what: &'static str, filter: fn(Tags) -> Vec<Instruction>) -> Sockets {
        Sockets { what, filter, open: Vec::new(), missing: Vec::new(), retry: Nanos(0) }
    }

    /// Listens to these devices and no others. What is listened to already goes on.
    pub fn follow(&mut self, devices: Vec<PlannedDevice>, now: Nanos) {
        let key = |device: &PlannedDevice| (device.ifindex, device.tags);
        let mut old: AHashMap<_, Socket> =
            std::mem::take(&mut self.open).into_iter().map(|socket| (key(&socket.device), socket)).collect();
        let mut new = Vec::new();
        for device in devices {
            match old.remove(&key(&device)) {
                Some(socket) => self.open.push(Socket { device, ..socket }),
                None => new.push(device),
            }
        }
        self.missing.clear();
        self.open(new, false, now);
    }

    /// Tries again what could not be opened, if it is time. True: it was.
    pub fn try_again(&mut self, now: Nanos) -> bool {
        if self.missing.is_empty() || now < self.retry {
            return false;
        }
        let missing = std::mem::take(&mut self.missing);
        self.open(missing, true, now);
        true
    }

    /// What cannot be opened is tried again; the log has it once.
    fn open(&mut self, devices: Vec<PlannedDevice>, is_retry: bool, now: Nanos) {
        for device in devices {
            match PacketSocket::open(device.ifindex, &(self.filter)(device.tags)) {
                Ok(socket) => self.open.push(Socket { device, socket }),
                Err(error) => {
                    if !is_retry {
                        tracing::warn!(device = device.name, %error, "cannot listen to {}", self.what);
                    }
                    self.missing.push(device);
                }
            }
        }
        self.retry = now.plus(RETRY);
    }

    /// What leaves by a link leaves by these: one, or one for each member of a bridge.
    fn senders(&self, link: u16) -> impl Iterator<Item = &Socket> {
        self.open.iter().filter(move |socket| socket.device.link == link && socket.device.sends)
    }

    /// True if frames can be sent by a link.
    pub fn can_send(&self, link: u16) -> bool {
        self.senders(link).next().is_some()
    }

    /// Sends a frame with the tags of its link, of a bridge by each member that is not shut. False: no device took it.
    pub fn send(&self, frame: &Frame, is_shut: impl Fn(u16) -> bool) -> bool {
        let mut is_sent = false;
        for Socket { device, socket } in self.senders(frame.link).filter(|to| !is_shut(to.device.member)) {
            is_sent |= socket.send(&with_header(frame, &device.tag_bytes)).is_ok();
        }
        is_sent
    }

    /// Takes what has come in: frames, of which the kernel has taken the outer tag, and what is behind their link header.
    /// The links for which a device may have more.
    pub fn receive(&self, mut take: impl FnMut(&PlannedDevice, &[u8], &[u8])) -> Vec<u16> {
        let mut buffer = [0; BUFFER_BYTES];
        let mut unread = Vec::new();
        for Socket { device, socket } in &self.open {
            let mut taken = 0;
            while taken < BATCH {
                // An error says once that the device is down.
                let Ok(Some(len)) = socket.receive(&mut buffer) else { break };
                taken += 1;
                let Some(packet) = buffer[..len].get(header_bytes(device.tags)..) else { continue };
                take(device, &buffer[..len], packet);
            }
            if taken == BATCH {
                unread.push(device.link);
            }
        }
        unread
    }

    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.open.iter().map(|socket| socket.socket.as_raw_fd())
    }
}

/// The frame as it is on the wire, with the tags of the interface.
pub(super) fn with_header(frame: &Frame, tags: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET_BYTES + tags.len() + frame.packet.len());
    bytes.extend_from_slice(&frame.dst_mac);
    bytes.extend_from_slice(&frame.src_mac);
    bytes.extend_from_slice(tags);
    bytes.extend_from_slice(&frame.ethertype.to_be_bytes());
    bytes.extend_from_slice(&frame.packet);
    bytes
}
