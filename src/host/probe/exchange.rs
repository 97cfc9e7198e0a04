//! What the health checks and the workers share: packets of probes on their way out, answers on their way in, and the
//! table by which a worker knows an answer.
//!
//! Packets are copied into buffers that are there from the begin, so that no frame leaves its worker and nothing is
//! allocated for a packet. The table is of fixed capacity and its values are atomic words, fingerprints of flows: the
//! health checks write them, and all workers read. What a fingerprint lets through the engine still compares.
//! Before there are health checks there is nothing of it, and a worker pays one load for what is for the gateway.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::{Flow, datagram};
use crate::io::waker::Waker;
use crate::packet::hash::Key;
use crate::packet::{DropReason, Family, Packet, flags};

/// Bytes of a buffer: answers come in packets of an Ethernet frame.
pub const BUFFER_BYTES: usize = 2048;

/// Buffers for each way: what can be under way between two looks.
const BUFFERS: usize = 512;

/// Fingerprints side by side: one cache line.
const WAYS: usize = 8;

/// Four times as many fingerprints as there may be probes, so that hardly ever a line is full; 512 KiB.
const LINES: usize = 8192;

/// A packet between a worker and the health checks, from its IP header on.
struct Buffer {
    vrf: u16,
    /// Offset of the upper layer, and which one it is; of answers only.
    l4: u16,
    upper: u8,
    len: u16,
    bytes: [u8; BUFFER_BYTES],
}

#[repr(align(64))]
struct Line([AtomicU64; WAYS]);

struct Shared {
    expected: Box<[Line]>,
    /// Empty buffers for answers, and for packets of probes: neither can take all from the other.
    free_arrived: ArrayQueue<Box<Buffer>>,
    free_leaving: ArrayQueue<Box<Buffer>>,
    arrived: ArrayQueue<Box<Buffer>>,
    /// By worker.
    leaving: Box<[ArrayQueue<Box<Buffer>>]>,
    waker: Waker,
    is_asleep: AtomicBool,
}

/// What the health checks of a node and its workers share.
pub struct Exchange {
    key: Key,
    workers: usize,
    shared: OnceLock<Shared>,
}

impl Exchange {
    /// An exchange that is not open.
    pub fn new(workers: usize, key: Key) -> Exchange {
        Exchange { key, workers, shared: OnceLock::new() }
    }

    /// Makes room, once: there are health checks from now on.
    pub fn open(&self) {
        self.shared.get_or_init(|| {
            let buffers = || {
                let queue = ArrayQueue::new(BUFFERS);
                for _ in 0..BUFFERS {
                    let buffer = Buffer { vrf: 0, l4: 0, upper: 0, len: 0, bytes: [0; BUFFER_BYTES] };
                    let _ = queue.push(Box::new(buffer));
                }
                queue
            };
            Shared {
                expected: (0..LINES).map(|_| Line([const { AtomicU64::new(0) }; WAYS])).collect(),
                free_arrived: buffers(),
                free_leaving: buffers(),
                arrived: ArrayQueue::new(BUFFERS),
                leaving: (0..self.workers).map(|_| ArrayQueue::new(BUFFERS)).collect(),
                waker: Waker::new().expect("an eventfd: raise `ulimit -n`"),
                is_asleep: AtomicBool::new(false),
            }
        });
    }

    // ---- for workers

    /// True if the packet, to one of our addresses by its routes or not, answers a probe under way.
    #[inline]
    pub fn expects(&self, packet: &Packet) -> bool {
        self.shared.get().is_some_and(|shared| self.expects_packet(packet, shared))
    }

    #[inline(never)]
    fn expects_packet(&self, packet: &Packet, shared: &Shared) -> bool {
        let meta = &packet.meta;
        if meta.has(flags::FRAGMENT | flags::OWN | flags::LINK_GROUP) || meta.family == Family::Other {
            return false;
        }
        let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
        let l4 = usize::from(meta.l4 - meta.l3);
        datagram::flow_of(l3, l4, meta.protocol, meta.vrf).is_some_and(|flow| {
            let print = flow.hash(self.key);
            shared.line(print).0.iter().any(|word| word.load(Ordering::Relaxed) == print)
        })
    }

    /// Leaves a copy of an answer for the health checks, and wakes them.
    pub fn deliver(&self, packet: &Packet) -> Result<(), DropReason> {
        let Some(shared) = self.shared.get() else { return Err(DropReason::NoHostPath) };
        let meta = &packet.meta;
        let (l3, len) = (usize::from(meta.l3), usize::from(meta.ip_len));
        // A frame of several segments is longer than a buffer.
        let bytes = packet.frame.bytes().get(l3..l3 + len).filter(|bytes| bytes.len() <= BUFFER_BYTES);
        let bytes = bytes.ok_or(DropReason::ProbeAnswerTooLong)?;
        let mut buffer = shared.free_arrived.pop().ok_or(DropReason::ProbeQueueFull)?;
        buffer.vrf = meta.vrf;
        (buffer.l4, buffer.upper) = (meta.l4 - meta.l3, meta.protocol);
        buffer.fill(bytes);
        // There are as many places as buffers.
        let _ = shared.arrived.push(buffer);
        // Whoever goes to sleep says so first and looks once more.
        if shared.is_asleep.load(Ordering::SeqCst) {
            shared.waker.wake();
        }
        Ok(())
    }

    /// True if packets of probes wait for a worker.
    #[inline]
    pub fn has_leaving(&self, worker: usize) -> bool {
        self.shared.get().is_some_and(|shared| !shared.leaving[worker].is_empty())
    }

    /// Gives a worker the next packet to send, and the VRF to route it in.
    pub fn take_leaving<R>(&self, worker: usize, take: impl FnOnce(u16, &[u8]) -> R) -> Option<R> {
        let shared = self.shared.get()?;
        let buffer = shared.leaving[worker].pop()?;
        let result = take(buffer.vrf, buffer.bytes());
        let _ = shared.free_leaving.push(buffer);
        Some(result)
    }

    // ---- for the health checks

    /// From now on workers deliver the flow's packets. False: its line is full.
    pub fn expect(&self, flow: &Flow) -> bool {
        let Some(shared) = self.shared.get() else { return false };
        let print = flow.hash(self.key);
        let free = shared.line(print).0.iter().find(|word| word.load(Ordering::Relaxed) == 0);
        free.map(|word| word.store(print, Ordering::Relaxed)).is_some()
    }

    /// From now on they do not.
    pub fn forget(&self, flow: &Flow) {
        let Some(shared) = self.shared.get() else { return };
        let print = flow.hash(self.key);
        let known = shared.line(print).0.iter().find(|word| word.load(Ordering::Relaxed) == print);
        if let Some(word) = known {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// True if there is room for a packet to send.
    pub fn has_room(&self) -> bool {
        self.shared.get().is_some_and(|shared| !shared.free_leaving.is_empty())
    }

    /// Gives a packet to a worker to be routed in a VRF. False: there was no room for it.
    pub fn send(&self, worker: usize, vrf: u16, packet: &[u8]) -> bool {
        let Some(shared) = self.shared.get().filter(|_| packet.len() <= BUFFER_BYTES) else { return false };
        let Some(mut buffer) = shared.free_leaving.pop() else { return false };
        buffer.vrf = vrf;
        buffer.fill(packet);
        let _ = shared.leaving[worker].push(buffer);
        true
    }

    /// Gives the next answer to `take`: the packet, the offset of its upper layer, which one it is, and the VRF.
    pub fn take_arrived<R>(&self, take: impl FnOnce((&[u8], usize, u8), u16) -> R) -> Option<R> {
        let shared = self.shared.get()?;
        let buffer = shared.arrived.pop()?;
        let result = take((buffer.bytes(), buffer.l4.into(), buffer.upper), buffer.vrf);
        let _ = shared.free_arrived.push(buffer);
        Some(result)
    }

    /// Wakes the thread of the health checks.
    pub fn wake(&self) {
        if let Some(shared) = self.shared.get() {
            shared.waker.wake();
        }
    }

    /// Blocks until an answer comes, somebody wakes us, or `limit` has passed.
    pub fn sleep(&self, limit: std::time::Duration) {
        let Some(shared) = self.shared.get() else { return std::thread::sleep(limit) };
        shared.is_asleep.store(true, Ordering::SeqCst);
        // Whoever delivered before he saw us asleep did not wake us: look once more.
        if shared.arrived.is_empty() {
            crate::io::waker::wait(&[shared.waker.fd()], limit);
        }
        shared.is_asleep.store(false, Ordering::SeqCst);
        shared.waker.drain();
    }
}

impl Shared {
    fn line(&self, print: u64) -> &Line {
        // The upper bits: all of the lower ones are in the words.
        &self.expected[(print >> 32) as usize % LINES]
    }
}

impl Buffer {
    fn fill(&mut self, bytes: &[u8]) {
        self.len = bytes.len() as u16;
        self.bytes[..bytes.len()].copy_from_slice(bytes);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(own_port: u16) -> Flow {
        let (own, peer) =
            ("192.0.2.1".parse().expect("an address"), "192.0.2.10".parse().expect("an address"));
        Flow { vrf: 3, protocol: 6, own, own_port, peer, peer_port: 443 }
    }

    #[test]
    fn a_buffer_that_was_given_comes_back() {
        let exchange = Exchange::new(2, Key::default());
        assert!(!exchange.has_room() && !exchange.send(0, 0, &[1]) && !exchange.has_leaving(0));
        exchange.open();
        for round in 0..3 * BUFFERS {
            let (worker, vrf) = (round % 2, round as u16);
            assert!(exchange.send(worker, vrf, &[round as u8; 60]));
            assert!(exchange.has_leaving(worker) && !exchange.has_leaving(1 - worker));
            let taken = exchange.take_leaving(worker, |vrf, bytes| (vrf, bytes.to_vec()));
            assert_eq!(taken, Some((vrf, vec![round as u8; 60])));
        }
        let sent = (0..).take_while(|_| exchange.send(1, 0, &[1])).count();
        assert_eq!(sent, BUFFERS);
        assert!(!exchange.has_room());
        assert_eq!(exchange.take_leaving(1, |_, _| ()), Some(()));
        assert!(exchange.has_room());
    }

    #[test]
    fn a_full_line_takes_no_more_and_loses_nothing() {
        let exchange = Exchange::new(1, Key::default());
        exchange.open();
        let shared = exchange.shared.get().expect("open");
        let line = |flow: &Flow| std::ptr::from_ref(shared.line(flow.hash(exchange.key)));
        let first = flow(61_000);
        // Some hundred thousand flows of one line.
        let mut same: Vec<Flow> = Vec::new();
        for peer_port in 1..=u16::MAX {
            for own_port in 61_000..61_004 {
                let other = Flow { peer_port, ..flow(own_port) };
                if line(&other) == line(&first) && same.len() <= WAYS {
                    same.push(other);
                }
            }
        }
        assert_eq!(same.len(), WAYS + 1);
        let taken: Vec<bool> = same.iter().map(|flow| exchange.expect(flow)).collect();
        assert_eq!(taken, [[true; WAYS].as_slice(), &[false]].concat());
        exchange.forget(&same[3]);
        assert!(exchange.expect(&same[WAYS]));
        same.iter().for_each(|flow| exchange.forget(flow));
        let left: usize = shared
            .expected
            .iter()
            .flat_map(|line| &line.0)
            .map(|word| word.load(Ordering::Relaxed) as usize)
            .sum();
        assert_eq!(left, 0);
    }

    #[test]
    fn fingerprints_depend_on_everything() {
        let base = flow(61_000);
        let others = [
            Flow { vrf: 4, ..base },
            Flow { protocol: 17, ..base },
            Flow { own: base.peer, ..base },
            Flow { own_port: 61_001, ..base },
            Flow { peer: base.own, ..base },
            Flow { peer_port: 80, ..base },
            Flow { own: base.peer, peer: base.own, ..base },
        ];
        let prints: std::collections::HashSet<u64> =
            others.iter().chain([&base]).map(|flow| flow.hash(Key::default())).collect();
        assert_eq!(prints.len(), others.len() + 1);
    }
}
