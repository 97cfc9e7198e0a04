//! One queue of a device as a [`Port`]: frames out of the RX ring, frames into the TX ring.
#![allow(unsafe_code, reason = "turns addresses the kernel hands back into frames")]

use std::os::fd::RawFd;
use std::sync::Arc;

use super::assemble::{Assembler, MAX_SEGMENTS};
use super::custody::{Custody, HeldFor};
use super::program::Door;
use super::ring::{CONTINUES, Descriptor};
use super::socket::{Kick, Socket};
use crate::io::{LeftQueue, Port, PortStats};
use crate::mem::prefetch::prefetch;
use crate::mem::{Frame, FramePool, Frames, HEADROOM, PacketMemory};

/// Empty frames are given to the device in batches of at least so many.
const REFILL_BATCH: u32 = 32;

/// System calls one flush makes at most: a full ring of 2,048 without the larger budget, which the
/// kernel empties 32 descriptors at a time.
const MAX_KICKS: u32 = 64;

/// One queue of a device, as one worker holds it.
pub struct XdpPort {
    /// The device's number of it.
    queue: u16,
    socket: Socket,
    /// Until the first frames are given to the device.
    door: Option<Door>,
    memory: Arc<PacketMemory>,
    custody: Custody,
    assembler: Assembler,
    multi_buffer: bool,
    /// False for queues beyond the device's transmit queues: the kernel would never take a descriptor.
    can_send: bool,
    /// Frames the refill leaves in the pool, for packets the worker makes itself.
    pool_reserve: usize,
    /// Descriptors and frames found wrong by us.
    invalid: u64,
    /// Another process may have it: nobody here looks at the rings.
    is_left: bool,
}

impl XdpPort {
    pub(super) fn new(
        queue: u16,
        socket: Socket,
        door: Door,
        memory: &Arc<PacketMemory>,
        multi_buffer: bool,
        can_send: bool,
    ) -> XdpPort {
        XdpPort {
            queue,
            socket,
            door: Some(door),
            memory: Arc::clone(memory),
            custody: Custody::new(memory.frames(), memory.chunk().bytes()),
            assembler: Assembler::new(),
            multi_buffer,
            can_send,
            pool_reserve: (memory.frames() / memory.workers() / 16).min(256),
            invalid: 0,
            is_left: false,
        }
    }

    /// The kernel has frames of another process for it, whose memory is ours now: what [`Port::leave`] says. False: that
    /// cannot be.
    #[must_use]
    pub(super) fn restore(&mut self, held: &[u32], skips: bool) -> bool {
        if skips {
            self.assembler.skip_first();
        }
        self.custody.restore(held)
    }

    /// Frames may come in from now on: the kernel has somewhere to put them. Nothing to do where it has none yet.
    pub(super) fn open_door(&mut self) {
        if self.custody.held() > 0
            && let Some(door) = self.door.take()
        {
            self.let_in(door);
        }
    }

    /// False if the device has no transmit queue of this number: send on another queue.
    pub fn can_send(&self) -> bool {
        self.can_send
    }

    /// True if the driver works on the packet memory itself.
    pub fn is_zero_copy(&self) -> bool {
        self.socket.is_zero_copy()
    }

    /// The frame of `addr`, which the kernel says it has finished with. `None` (and counted) if the kernel did
    /// not hold the chunk for that reason, or if the window leaves the chunk.
    #[inline]
    fn reclaim(&mut self, addr: u64, len: u32, reason: HeldFor) -> Option<Frame> {
        if !self.custody.take_back(addr, reason) {
            self.invalid += 1;
            return None;
        }
        let chunk_bytes = self.memory.chunk().bytes() as u64;
        let offset = addr & (chunk_bytes - 1);
        if offset + u64::from(len) > chunk_bytes {
            self.invalid += 1;
            let (start, len) = (addr - offset, 0);
            // SAFETY: as below; an empty window lies in the chunk.
            return Some(unsafe { self.memory.frame_at(start, len) });
        }
        // SAFETY: custody says that the chunk exists, that it was given to the kernel when its handle was
        // consumed, and that it has not come back since; now it has, so this is its only handle. The
        // window lies in the chunk.
        Some(unsafe { self.memory.frame_at(addr, len) })
    }

    /// Takes back sent frames.
    #[inline]
    fn complete(&mut self, pool: &mut FramePool) {
        let mut any = false;
        while let Some(addr) = self.socket.completion.pop() {
            any = true;
            if let Some(frame) = self.reclaim(addr, 0, HeldFor::Sending) {
                pool.put(frame);
            }
        }
        if any {
            self.socket.completion.release();
        }
    }

    /// Gives the device empty frames.
    #[inline]
    fn refill(&mut self, pool: &mut FramePool) {
        let room = self.socket.fill.free(REFILL_BATCH);
        if room >= REFILL_BATCH {
            if pool.available() < self.pool_reserve + REFILL_BATCH as usize {
                pool.exchange();
            }
            let spare = pool.available().saturating_sub(self.pool_reserve);
            let mut given = false;
            for _ in 0..spare.min(room as usize) {
                let Some(frame) = pool.take() else { break };
                let addr = self.memory.addr_of(&frame) - frame.headroom() as u64;
                self.custody.give(addr, HeldFor::Receiving);
                let pushed = self.socket.fill.push(addr);
                debug_assert!(pushed, "`free` said there is room");
                given = true;
            }
            if given {
                self.socket.fill.publish();
                if let Some(door) = self.door.take() {
                    self.let_in(door);
                }
            }
        }
        if self.socket.fill.needs_wakeup() {
            self.socket.kick_rx();
        }
    }

    /// The first frames are given: the device may bring some.
    #[cold]
    fn let_in(&mut self, door: Door) {
        if let Err(error) = door.open(self.socket.fd()) {
            tracing::error!(
                %error,
                "a queue receives nothing: its socket could not be entered; take the device down and up to bind it again"
            );
        }
    }

    /// Segments of a chain, for the TX ring.
    fn segments(frame: &Frame) -> usize {
        let mut segments = 1;
        let mut at = frame.peek_next();
        while let Some(next) = at {
            segments += 1;
            at = next.peek_next();
        }
        segments
    }

    /// True if the kernel takes the packet: no empty segment, not too many.
    fn is_sendable(&self, frame: &Frame) -> bool {
        if !frame.is_chained() {
            return !frame.is_empty();
        }
        let mut at = Some(frame);
        let mut segments = 0;
        while let Some(segment) = at {
            segments += 1;
            if segment.is_empty() {
                return false;
            }
            at = segment.peek_next();
        }
        self.multi_buffer && segments <= MAX_SEGMENTS
    }

    /// Puts a packet's segments into the TX ring, which has room for them.
    #[inline]
    fn queue(&mut self, frame: Frame) {
        let mut at = Some(frame);
        while let Some(mut segment) = at {
            let next = if segment.is_chained() { segment.split_next() } else { None };
            let addr = self.memory.addr_of(&segment);
            self.custody.give(addr, HeldFor::Sending);
            let pushed = self.socket.tx.push(Descriptor {
                addr,
                len: segment.len() as u32,
                options: if next.is_some() { CONTINUES } else { 0 },
            });
            debug_assert!(pushed, "`free` said there is room");
            at = next;
        }
    }
}

impl Port for XdpPort {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        self.complete(pool);
        self.refill(pool);
        let before = frames.len();
        let mut any = false;
        while !frames.is_full() {
            let Some(descriptor) = self.socket.rx.pop() else { break };
            any = true;
            let continues = descriptor.options & CONTINUES != 0;
            match self.reclaim(descriptor.addr, descriptor.len, HeldFor::Receiving) {
                Some(segment) if !segment.is_empty() => {
                    // Another CPU wrote it. By the time the burst is complete the first headers are here: 3 %
                    // of a packet's time on veth.
                    prefetch(segment.bytes(), 0);
                    if let Some(packet) = self.assembler.add(segment, continues, pool) {
                        frames.push(packet);
                    }
                }
                unusable => {
                    if let Some(frame) = unusable {
                        pool.put(frame);
                    }
                    self.assembler.add_missing(continues, pool);
                }
            }
        }
        if any {
            self.socket.rx.release();
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        if !self.can_send || frames.is_empty() {
            return 0;
        }
        let mut room = self.socket.tx.free(frames.len() as u32) as usize;
        let (mut fit, mut used) = (0, 0);
        for frame in frames.iter() {
            used += if frame.is_chained() { Self::segments(frame) } else { 1 };
            if used > room {
                // Chains need more than one slot a packet: look again at what the kernel has taken.
                room = self.socket.tx.free(used as u32) as usize;
                if used > room {
                    break;
                }
            }
            fit += 1;
        }
        for frame in frames.drain(..fit) {
            if self.is_sendable(&frame) {
                self.queue(frame);
            } else {
                // The kernel would refuse the descriptor and never give the chunk back.
                self.invalid += 1;
                pool.put(frame);
            }
        }
        self.socket.tx.publish();
        fit
    }

    fn flush(&mut self, pool: &mut FramePool) {
        self.complete(pool);
        // Asking for what is pending, not for what was queued last: in copy mode a call takes only part of
        // a full ring, and when nothing more fits, nobody but us can get it moving again.
        let mut pending = self.socket.tx.pending();
        if pending == 0 || !self.socket.tx.needs_wakeup() {
            return;
        }
        for _ in 0..MAX_KICKS {
            let answer = self.socket.kick_tx();
            let left = self.socket.tx.pending();
            // Without progress another call at once would not help: the device is busy.
            if answer != Kick::Again || left == 0 || left == pending {
                break;
            }
            pending = left;
            // Room in the completion ring is what the next call may be waiting for.
            self.complete(pool);
        }
        self.complete(pool);
    }

    fn held(&self) -> usize {
        self.custody.held() + self.assembler.held()
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.socket.fd())
    }

    fn stats(&self) -> PortStats {
        let mut stats = PortStats {
            invalid_descriptors: self.invalid,
            rx_broken_chains: self.assembler.broken(),
            ..PortStats::default()
        };
        if let Some(kernel) = self.socket.statistics() {
            stats.rx_ring_full = kernel.rx_ring_full;
            stats.rx_fill_empty = kernel.rx_fill_ring_empty_descs;
            stats.rx_dropped = kernel.rx_dropped;
            stats.invalid_descriptors += kernel.rx_invalid_descs + kernel.tx_invalid_descs;
        }
        stats
    }

    fn leave(&mut self, pool: &mut FramePool) -> std::io::Result<Option<LeftQueue>> {
        let socket = self.socket.another_fd()?;
        self.flush(pool);
        let skips = self.assembler.give_up(pool);
        self.is_left = true;
        Ok(Some(LeftQueue { queue: self.queue, socket, skips, held: self.custody.list() }))
    }

    fn go_on(&mut self) {
        self.is_left = false;
    }

    /// The kernel takes a closed socket out of the XSKMAP itself, unbinds it and waits until the receive
    /// path has let go of it (`xsk_release`: `synchronize_net`), so no frame is written to afterwards.
    /// Packets still in flight on the way out: copy mode sends copies; zero-copy drivers stop the queue
    /// before unbinding. (Drivers with IFF_TX_SKB_NO_LINEAR, such as virtio-net, let a packet in flight
    /// refer to the chunk's page: the page stays, but the packet may carry bytes of the chunk's next user.)
    fn close(self: Box<Self>, pool: &mut FramePool) {
        let mut port = *self;
        if !port.is_left {
            port.flush(pool);
        }
        let XdpPort { socket, memory, mut custody, assembler, .. } = port;
        // Rings and descriptor: all references to the socket's file, so it is released here and now.
        drop(socket);
        assembler.close(pool);
        custody.take_all(|start| {
            // SAFETY: the kernel held the chunk and the socket is closed, so it holds it no more; its
            // handle was consumed when it was given. The empty window lies in the chunk.
            pool.put(unsafe { memory.frame_at(start + HEADROOM as u64, 0) });
        });
    }
}
