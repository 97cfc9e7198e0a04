//! The crate `afxdp` 0.4 (libbpf 0.3) as a second back end: the twin our own rings are tested against.
//!
//! What it cannot do, and what that means here:
//! - It keeps frames in memory of its own and has no interface to use other memory, so every packet is
//!   copied from it into a [`crate::mem::Frame`] and back. Such a port never holds frames of the pool.
//! - No multi-buffer: the port takes frames of up to 3,840 bytes, and longer ones are refused or dropped.
//! - It tells nobody its file descriptor: no `poll_fd`, so its worker spins; no `XDP_MAX_TX_SKB_BUDGET`
//!   and no kernel statistics.
//! - libbpf 0.3 would load an XDP program of its own, which stays attached when the process dies and passes
//!   to the kernel. The way around it: our program is attached first, with a map named `xsks_map`; libbpf
//!   finds it and enters its sockets there, at the index of the queue. That index knows no port, so each
//!   device gets an instance of the program, with maps of its own.

use std::os::fd::RawFd;
use std::sync::Arc;

use afxdp::PENDING_LEN;
use afxdp::buf::Buf;
use afxdp::buf_mmap::BufMmap;
use afxdp::mmap_area::{MmapArea, MmapAreaOptions};
use afxdp::socket::{Socket, SocketNewError, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue, UmemNewError};
use arraydeque::{ArrayDeque, Wrapping};

use super::device::{self, Mode, RingSizes};
use super::error::{Call, XdpError};
use super::program::{Attachment, XdpProgram};
use crate::io::{Port, PortStats};
use crate::mem::{FramePool, Frames};

/// One of its buffers: 256 bytes of headroom that it does not let us use, 3,840 of packet.
const BUFFER_BYTES: usize = 4096;
const PACKET_BYTES: usize = 3840;

/// Buffers are returned and given in batches of so many.
const BATCH: usize = 64;

type Buffer = BufMmap<'static, ()>;
type Queue = ArrayDeque<[Buffer; PENDING_LEN], Wrapping>;

/// A device bound through the crate. Dropping it detaches the program.
pub struct AfxdpDevice {
    program: Arc<XdpProgram>,
    ifindex: u32,
    mode: Mode,
    attachment: Option<Attachment>,
}

impl AfxdpDevice {
    /// Longest frame (without FCS).
    pub const MAX_FRAME_BYTES: usize = PACKET_BYTES;

    /// As [`super::XdpDevice::open`], with a program and a memory of its own.
    pub fn open(
        name: &str,
        mode: Mode,
        queues: u16,
        rings: RingSizes,
    ) -> Result<(AfxdpDevice, Vec<AfxdpPort>), XdpError> {
        let ifindex = device::ifindex_of(name)?;
        let modes: &[Mode] = match mode {
            Mode::Auto => &[Mode::ZeroCopy, Mode::Copy, Mode::Generic],
            ref one => std::slice::from_ref(one),
        };
        let mut refused = Vec::new();
        for &mode in modes {
            match Self::open_in(name, ifindex, mode, queues, rings) {
                Err(error) if error.is_about_the_mode() => {
                    refused.push(device::Refusal { mode, multi_buffer: false, reason: error.to_string() });
                }
                decided => return decided,
            }
        }
        Err(XdpError::NoMode { device: name.to_owned(), refused })
    }

    fn open_in(
        name: &str,
        ifindex: u32,
        mode: Mode,
        queues: u16,
        rings: RingSizes,
    ) -> Result<(AfxdpDevice, Vec<AfxdpPort>), XdpError> {
        let program = XdpProgram::load()?;
        let attachment = program.attach(name, ifindex, false, mode == Mode::Generic)?;
        program.enter(name, ifindex, 0, 0)?;
        let opened = AfxdpDevice { program, ifindex, mode, attachment: Some(attachment) };
        let ports =
            (0..queues).map(|queue| AfxdpPort::open(name, queue, mode, rings)).collect::<Result<_, _>>()?;
        Ok((opened, ports))
    }

    /// This device's instance of the XDP program, to set the pair port and read the counters of slot 0.
    pub fn program(&self) -> &Arc<XdpProgram> {
        &self.program
    }

    /// Zero-copy, copy or generic.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

impl Drop for AfxdpDevice {
    fn drop(&mut self) {
        drop(self.attachment.take());
        self.program.leave(self.ifindex, 0);
    }
}

/// One queue of a device, through the crate.
pub struct AfxdpPort {
    rx: SocketRx<'static, ()>,
    tx: SocketTx<'static, ()>,
    fill: UmemFillQueue<'static, ()>,
    completion: UmemCompletionQueue<'static, ()>,
    /// Buffers in nobody's hands.
    free: Vec<Buffer>,
    /// Between the rings and the frames; both empty between two calls, except `to_send` when the TX ring is
    /// full.
    received: Box<Queue>,
    to_send: Box<Queue>,
    /// Buffers given to the fill ring and not come back.
    filled: usize,
    /// Buffers given to the TX ring and not come back.
    sending: usize,
    fill_size: usize,
    rx_dropped: u64,
    invalid: u64,
}

impl AfxdpPort {
    fn open(name: &str, queue: u16, mode: Mode, rings: RingSizes) -> Result<AfxdpPort, XdpError> {
        let zero_copy = mode == Mode::ZeroCopy;
        let bind = Call::Bind { queue, zero_copy };
        // The crate hands on libbpf's results, which are negative errnos.
        let errno = |error: std::io::Error| match error.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code.abs()),
            None => error,
        };
        let ring_size = || XdpError::Value {
            device: name.to_owned(),
            what: "the size of a ring",
            given: u64::from(rings.rx.max(rings.tx)),
            allowed: "a power of two".to_owned(),
        };
        let count = rings.frames();
        let no_memory = |_| XdpError::NoMemory { device: name.to_owned(), call: Call::RegisterMemory };
        let (area, free) =
            MmapArea::new(count, BUFFER_BYTES, MmapAreaOptions::default()).map_err(no_memory)?;
        let (umem, completion, fill) =
            Umem::new(area, rings.completion, rings.fill).map_err(|error| match error {
                UmemNewError::Create(error) => XdpError::of(name, Call::RegisterMemory, errno(error)),
                UmemNewError::RingNotPowerOfTwo => ring_size(),
            })?;
        let options =
            SocketOptions { zero_copy_mode: zero_copy, copy_mode: !zero_copy, ..SocketOptions::default() };
        let (_, rx, tx) =
            Socket::new(umem, name, usize::from(queue), rings.rx, rings.tx, options).map_err(|error| {
                match error {
                    SocketNewError::Create(error) => XdpError::of(name, bind, errno(error)),
                    SocketNewError::RingNotPowerOfTwo => ring_size(),
                }
            })?;
        Ok(AfxdpPort {
            rx,
            tx,
            fill,
            completion,
            free,
            received: Box::new(Queue::new()),
            to_send: Box::new(Queue::new()),
            filled: 0,
            sending: 0,
            fill_size: rings.fill as usize,
            rx_dropped: 0,
            invalid: 0,
        })
    }

    fn complete(&mut self) {
        while self.sending > 0 {
            // `free` has capacity for every buffer, which `service` asks for. Its error is never made.
            let done = self.completion.service(&mut self.free, BATCH).unwrap_or(0);
            if done == 0 {
                break;
            }
            self.sending = self.sending.saturating_sub(done);
        }
    }

    fn refill(&mut self) {
        // All or nothing per call; half of the buffers stay for sending.
        while self.filled + BATCH <= self.fill_size && self.free.len() > self.free.capacity() / 2 {
            let given = self.fill.fill(&mut self.free, BATCH).unwrap_or(0);
            if given == 0 {
                break;
            }
            self.filled += given;
        }
        if self.fill.needs_wakeup() {
            self.rx.wake();
        }
    }

    /// Hands `to_send` to the TX ring, as far as it has room.
    fn submit(&mut self) {
        while !self.to_send.is_empty() {
            let sent = self.tx.try_send(&mut self.to_send, BATCH).unwrap_or(0);
            if sent == 0 {
                break;
            }
            self.sending += sent;
        }
    }
}

impl Port for AfxdpPort {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        self.complete();
        self.refill();
        let before = frames.len();
        let room = frames.remaining_capacity();
        if room == 0 {
            return 0;
        }
        let got = self.rx.try_recv(&mut self.received, room, ()).unwrap_or(0);
        self.filled = self.filled.saturating_sub(got);
        while let Some(buffer) = self.received.pop_front() {
            let len = usize::from(buffer.get_len()).min(buffer.get_data().len());
            match pool.take_filled(&buffer.get_data()[..len]) {
                Some(frame) => frames.push(frame),
                None => self.rx_dropped += 1,
            }
            self.free.push(buffer);
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        self.complete();
        let mut fit = 0;
        for frame in frames.iter() {
            if fit + self.to_send.len() >= BATCH {
                break;
            }
            let length = frame.total_len();
            if length == 0 || length > PACKET_BYTES {
                self.invalid += 1;
                fit += 1;
                continue;
            }
            let Some(mut buffer) = self.free.pop() else { break };
            let mut at = Some(frame);
            let mut end = 0;
            while let Some(segment) = at {
                buffer.get_data_mut()[end..end + segment.len()].copy_from_slice(segment.bytes());
                end += segment.len();
                at = segment.peek_next();
            }
            buffer.set_len(end as u16);
            self.to_send.push_back(buffer);
            fit += 1;
        }
        for frame in frames.drain(..fit) {
            pool.put(frame);
        }
        self.submit();
        fit
    }

    fn flush(&mut self, _pool: &mut FramePool) {
        self.submit();
        if self.sending > 0 {
            // The crate kicks only when something new is queued. `wake` calls poll(), and in copy mode that
            // sends too (xsk_poll), so descriptors left behind get moving.
            self.rx.wake();
        }
        self.complete();
    }

    /// None of the pool's: it copies.
    fn held(&self) -> usize {
        0
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }

    fn stats(&self) -> PortStats {
        PortStats { rx_dropped: self.rx_dropped, invalid_descriptors: self.invalid, ..PortStats::default() }
    }

    fn close(mut self: Box<Self>, pool: &mut FramePool) {
        self.flush(pool);
    }
}
