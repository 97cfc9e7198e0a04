//! Devices go from process to process while frames come in: sockets, their rings and the packet memory stay.
//!
//! Who owns which frame when the old process has stopped between two bursts:
//!
//! - The kernel holds those that each queue lists ([`LeftQueue::held`]): on the fill ring, with the driver, received and not
//!   yet looked at, to be sent, sent. What is in the rings stays there; the rings say where they stand.
//! - All others are free. Those that waited for a neighbour, for a first fragment or for another worker are lost with the
//!   old process, which says how many.
//!
//! The old process keeps its descriptors and looks at nothing until the new one serves. What has gone wrong before the new one
//! has `taken` the devices left the rings as they were, and the old one goes on at once; after that it closes the queues
//! and binds them anew, for which it needs nothing of what is in them.
//!
//! The memory's layout, the devices, their queues and rings have to be what the new process would have made itself. Where they
//! are not it says why, and binds anew when the old one has let go.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crossbeam::channel::Sender;
use serde::{Deserialize, Serialize};

use super::device::BackEnd;
use super::{Command, Gateway, LivePort, queues_per_worker, ring_sizes};
use crate::config::{Config, PortMode};
use crate::io::LeftQueue;
use crate::io::link::LinkWatcher;
use crate::io::xdp::{Bound, LeftDevice, XdpDevice, XdpProgram};
use crate::mem::{HEADROOM, MemoryLayout, PageKind};
use crate::worker::LeftQueues;

/// Of what is told here, and of how frames lie in the memory; another number: nothing is taken over.
const FORMAT: u32 = 1;
/// How long workers may owe each other packets once nothing comes in.
const QUIET_WITHIN: Duration = Duration::from_millis(100);

/// What the old process could leave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    format: u32,
    pub layout: MemoryLayout,
    pub pages: PageKind,
    devices: Vec<OfferedDevice>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OfferedDevice {
    device: String,
    ifindex: u32,
    mode: PortMode,
    bound: Bound,
}

impl PartialEq for OfferedDevice {
    fn eq(&self, other: &OfferedDevice) -> bool {
        let of = |device: &OfferedDevice| {
            let Bound { mode, multi_buffer, queues, tx_queues, rings, .. } = device.bound;
            (device.ifindex, device.mode, mode, multi_buffer, queues, tx_queues, rings)
        };
        self.device == other.device && of(self) == of(other)
    }
}

/// What the new process would make.
pub(super) struct Wanted<'a> {
    pub config: &'a Config,
    pub watcher: &'a LinkWatcher,
    pub back_end: BackEnd,
    pub workers: usize,
}

impl Wanted<'_> {
    /// An error says why what is offered is not what this process would make.
    pub fn matches(&self, offer: &Offer, program: &XdpProgram) -> Result<(), String> {
        if offer.format != FORMAT || self.back_end != BackEnd::Own {
            return Err(String::from("the two speak of devices and frames in different ways"));
        }
        let frames = self.config.system.frames.get() as usize;
        let layout = MemoryLayout {
            workers: self.workers,
            frames_per_worker: frames,
            chunk_bytes: offer.layout.chunk_bytes,
            headroom: HEADROOM,
        };
        if offer.layout != layout {
            let said = |layout: &MemoryLayout| {
                format!("{} workers of {} frames", layout.workers, layout.frames_per_worker)
            };
            return Err(format!("it has {}, this one {}", said(&offer.layout), said(&layout)));
        }
        let ports: Vec<LivePort> =
            self.config.ports.iter().map(|port| LivePort::new(0, port, self.watcher)).collect();
        let rings = ring_sizes(frames, queues_per_worker(&ports, self.workers).max(1));
        let mut left: Vec<&OfferedDevice> = offer.devices.iter().collect();
        let members = ports.iter().flat_map(|port| port.members.iter().map(move |member| (port, member)));
        for (port, member) in members {
            let name = &member.device;
            let at = left.iter().position(|offered| offered.device == *name);
            let (link, offered) = match (member.link, at) {
                (Some(link), Some(at)) => (link, left.swap_remove(at)),
                (None, None) => continue,
                (Some(_), None) => return Err(format!("it has not bound {name}")),
                (None, Some(_)) => return Err(format!("{name} is gone")),
            };
            let existing = XdpDevice::queue_count(name).map_err(|error| error.to_string())?;
            let queues = port.queues.unwrap_or(existing).min(existing);
            let bound = &offered.bound;
            let differs = [
                (link.ifindex != offered.ifindex, "is another device now"),
                (port.mode != offered.mode, "has another mode"),
                (queues != bound.queues, "has another number of queues"),
                (rings != bound.rings, "has rings of other sizes"),
                (!program.has_adopted(link.ifindex), "has a program that cannot be replaced in its place"),
            ];
            if let Some((_, what)) = differs.into_iter().find(|(differs, _)| *differs) {
                return Err(format!("{name} {what}"));
            }
        }
        match left.first() {
            Some(offered) => Err(format!("{} is in no port any more", offered.device)),
            None => Ok(()),
        }
    }
}

/// What of the devices goes in a line; their sockets and the lists of frames go besides.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Handed {
    device: String,
    ifindex: u32,
    bound: Bound,
    /// Offloads that are to be switched on again at the end.
    offloads: Vec<String>,
    queues: Vec<HandedQueue>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HandedQueue {
    queue: u16,
    skips: bool,
    held: usize,
}

impl Handed {
    /// Frames in the list and sockets of all.
    pub fn counts(all: &[Handed]) -> (usize, usize) {
        let queues = || all.iter().flat_map(|device| &device.queues);
        let held = queues().fold(0usize, |sum, queue| sum.saturating_add(queue.held));
        (held, queues().count())
    }
}

/// A device of the process before.
#[derive(Debug)]
pub(super) struct Inherited {
    pub device: LeftDevice,
    pub offloads: Vec<String>,
}

impl Inherited {
    /// Puts together what has come: as many frames and sockets as [`Handed::counts`] says.
    pub fn of(all: Vec<Handed>, held: &[u8], sockets: Vec<OwnedFd>) -> Vec<Inherited> {
        let mut sockets = sockets.into_iter();
        let mut entries =
            held.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let devices = all.into_iter().map(|Handed { device, ifindex, bound, offloads, queues }| {
            let left = queues.into_iter().zip(&mut sockets).map(|(left, socket)| LeftQueue {
                queue: left.queue,
                socket,
                skips: left.skips,
                held: entries.by_ref().take(left.held).collect(),
            });
            let queues = left.collect();
            Inherited { device: LeftDevice { device, ifindex, bound, queues }, offloads }
        });
        devices.collect()
    }

    /// Numbers of the frames that the kernel holds for it.
    pub fn held(&self) -> impl Iterator<Item = u32> + '_ {
        self.device.queues.iter().flat_map(|queue| queue.held.iter().map(|entry| entry >> 1))
    }
}

/// What goes to the other process.
pub(super) struct Parcel {
    pub handed: Vec<Handed>,
    pub held: Vec<u8>,
    pub sockets: Vec<OwnedFd>,
    /// Packets that are lost.
    pub waiting: usize,
}

impl Gateway {
    /// What this process could leave to another; an error says why nothing.
    pub(super) fn offer(&self) -> Result<Offer, String> {
        if self.memory.file().is_none() {
            return Err(String::from(
                "its packet memory is its own: no huge pages below shared memory (vm.nr_hugepages, or Linux 6.1)",
            ));
        }
        let members = self.ports.iter().flat_map(|port| port.members.iter().map(move |m| (port, m)));
        let bound = members.filter_map(|(port, member)| Some((port, member.xdp.as_ref()?, member)));
        let devices = bound.map(|(port, device, member)| {
            let ifindex = member.link.map(|link| link.ifindex).filter(|_| device.shared_slot().is_some());
            let ifindex = ifindex.ok_or_else(|| format!("{} is bound by another back end", member.device))?;
            let (device, bound) = (member.device.clone(), device.bound().clone());
            Ok(OfferedDevice { device, ifindex, mode: port.mode, bound })
        });
        let devices = devices.collect::<Result<Vec<_>, String>>()?;
        Ok(Offer { format: FORMAT, layout: self.memory.layout(), pages: self.memory.pages(), devices })
    }

    /// Stops the workers between two bursts, with nothing under way between them. An error: they go on.
    pub(super) fn pack(&mut self) -> Result<Parcel, String> {
        let packed =
            self.hold_workers().and_then(|()| self.leave_queues()).and_then(|left| self.parcel(left));
        packed.inspect_err(|_| self.go_on())
    }

    fn hold_workers(&self) -> Result<(), String> {
        self.tell_held(true)?;
        let begun = Instant::now();
        // A round after nothing was seen under way: whoever had taken it last has done with it.
        let mut quiet_rounds = 0;
        while quiet_rounds < 2 {
            quiet_rounds = if self.node.is_quiet() { quiet_rounds + 1 } else { 0 };
            self.tell_held(true)?;
            if begun.elapsed() > QUIET_WITHIN {
                return Err(String::from("the workers do not come to rest"));
            }
        }
        Ok(())
    }

    fn tell_held(&self, is_held: bool) -> Result<(), String> {
        self.ask_all_workers(|sender| Command::Hold(is_held, sender)).map(|_| ())
    }

    fn leave_queues(&self) -> Result<LeftQueues, String> {
        let mut all = LeftQueues::default();
        for answer in self.ask_all_workers(Command::Leave)? {
            let left = answer.map_err(|error| format!("a socket: {error}"))?;
            all.queues.extend(left.queues);
            all.others += left.others;
            all.waiting += left.waiting;
        }
        Ok(all)
    }

    fn ask_all_workers<T>(&self, command: impl Fn(Sender<T>) -> Command) -> Result<Vec<T>, String> {
        let answers = self.ask_workers(command);
        let is_all = answers.len() == self.workers.len();
        is_all.then_some(answers).ok_or_else(|| String::from("a worker does not answer"))
    }

    fn parcel(&self, mut left: LeftQueues) -> Result<Parcel, String> {
        let (mut handed, mut held, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for port in &self.ports {
            for (number, member) in port.members.iter().enumerate() {
                let (Some(device), Some(link)) = (&member.xdp, member.link) else { continue };
                let is_its =
                    |(slot, at, _): &(u16, u8, LeftQueue)| (*slot, usize::from(*at)) == (port.slot, number);
                let (own, others): (Vec<_>, Vec<_>) = left.queues.drain(..).partition(is_its);
                left.queues = others;
                let mut own: Vec<LeftQueue> = own.into_iter().map(|(.., queue)| queue).collect();
                own.sort_by_key(|queue| queue.queue);
                if own.len() != usize::from(device.bound().queues) {
                    return Err(format!("{}: a queue is missing", member.device));
                }
                let offloads = member.offloads.iter().flat_map(|guard| guard.to_restore());
                let queues = own.into_iter().map(|LeftQueue { queue, socket, skips, held: frames }| {
                    held.extend(frames.iter().flat_map(|entry| entry.to_le_bytes()));
                    sockets.push(socket);
                    HandedQueue { queue, skips, held: frames.len() }
                });
                handed.push(Handed {
                    queues: queues.collect(),
                    device: member.device.clone(),
                    ifindex: link.ifindex,
                    bound: device.bound().clone(),
                    offloads: offloads.map(|name| (*name).to_owned()).collect(),
                });
            }
        }
        match left.queues.len() + left.others {
            0 => Ok(Parcel { handed, held, sockets, waiting: left.waiting }),
            _ => Err(String::from("a queue belongs to no device")),
        }
    }

    /// Nobody has touched the queues.
    pub(super) fn go_on(&self) {
        for worker in &self.workers {
            let _ = worker.commands.send(Command::GoOn);
        }
        self.node.wake_all();
    }

    /// Somebody may have, who is gone: closes the queues and binds them anew.
    pub(super) fn bind_anew(&mut self) {
        let mut ports = std::mem::take(&mut self.ports);
        ports.iter_mut().for_each(|port| self.unbind_port(port));
        self.ports = ports;
        for port in 0..self.ports.len() {
            for member in 0..self.ports[port].members.len() {
                if let Err(error) = self.bind(port, member) {
                    let device = &self.ports[port].members[member].device;
                    tracing::error!(device, %error, "cannot bind again");
                }
            }
        }
        self.go_on();
        self.links_changed();
        self.accept_macs();
    }

    /// The devices are another process': what this one would put back at its end is that one's to put back.
    pub(super) fn forget_devices(&mut self) {
        for member in self.ports.iter_mut().flat_map(|port| &mut port.members) {
            if let Some(guard) = member.offloads.take() {
                guard.leave();
            }
        }
    }

    /// Ends the process whose devices another one has: nothing of them may be touched. Frames are not counted, since they
    /// are that one's.
    pub(super) fn end_without_devices(mut self) -> usize {
        self.ha.stop();
        self.pair.stop();
        self.checks.stop();
        self.end_workers(|| Command::Abandon);
        0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::io::xdp::{Mode, RingSizes};

    fn handed(device: &str, held: &[usize]) -> Handed {
        let bound = Bound {
            mode: Mode::Copy,
            zero_copy: false,
            multi_buffer: true,
            need_wakeup: true,
            tx_budget: Some(256),
            queues: held.len() as u16,
            tx_queues: held.len() as u16,
            max_frame_bytes: 1792,
            rings: RingSizes::default(),
            refused: Vec::new(),
        };
        let queues = held.iter().enumerate();
        let queues =
            queues.map(|(queue, held)| HandedQueue { queue: queue as u16, skips: queue == 1, held: *held });
        let (device, queues) = (device.to_owned(), queues.collect());
        Handed { device, ifindex: 3, bound, offloads: Vec::new(), queues }
    }

    #[test]
    fn each_queue_gets_its_own_of_what_has_come() {
        let all = vec![handed("eth1", &[2, 0]), handed("eth2", &[1])];
        let text = serde_json::to_string(&all).expect("text");
        let all: Vec<Handed> = serde_json::from_str(&text).expect("the same");
        assert_eq!(Handed::counts(&all), (3, 3));
        let held: Vec<u8> = [10u32, 13, 7].iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let sockets = || (0..3).map(|_| File::open("/dev/null").expect("a file").into()).collect();
        let inherited = Inherited::of(all, &held, sockets());
        let queues = inherited.iter().flat_map(|inherited| &inherited.device.queues);
        let seen: Vec<(u16, bool, &[u32])> =
            queues.map(|queue| (queue.queue, queue.skips, &queue.held[..])).collect();
        assert_eq!(seen, [(0, false, &[10, 13][..]), (1, true, &[]), (0, false, &[7])]);
        let frames: Vec<u32> = inherited.iter().flat_map(Inherited::held).collect();
        assert_eq!(frames, [5, 6, 3]);
        // What says that there are more than can be is no number to be asked for.
        let many = vec![handed("eth1", &[usize::MAX, usize::MAX])];
        assert_eq!(Handed::counts(&many), (usize::MAX, 2));
    }
}
