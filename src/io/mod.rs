//! Ports: where frames come from and go to. AF_XDP, capture files, memory.
//!
//! A [`Port`] here is one queue of a port, as one worker holds it. The worker and the pipeline cannot
//! tell the implementations apart. `io` knows no protocol above the frame.

pub mod descriptors;
pub mod link;
pub mod memory;
pub mod packet_socket;
pub mod passing;
pub mod pcap;
pub mod peer;
pub mod priority;
pub mod supervisor;
pub mod waker;
pub mod xdp;

use std::os::fd::{OwnedFd, RawFd};

use crate::mem::{FramePool, Frames};

/// One queue of a port: received frames come out, sent frames go in.
///
/// Ownership is the accounting: a frame is in the worker's hands, in its pool, or *held* by the port
/// (given to the kernel for receiving or sending). `close` gives everything back. A port without a device holds nothing
/// and never blocks; that is what a method does of which nothing else is said.
pub trait Port: Send {
    /// Appends received frames to `frames` until it is full or nothing more is there, and gives the
    /// device fresh ones from `pool`. Returns how many frames were received. A jumbo packet is one
    /// chained frame; half a chain is kept until the rest arrives.
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize;

    /// Queues frames from the front of `frames` for sending, whole chains only. What did not fit stays
    /// in `frames`, in order: the caller retries or drops it with a reason. Returns how many were taken.
    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize;

    /// Makes the device send what is queued and takes back the frames it has finished with.
    fn flush(&mut self, _pool: &mut FramePool) {}

    /// Frames this queue holds (chunks, not packets).
    fn held(&self) -> usize {
        0
    }

    /// Readable when frames wait; `None` for ports that never block.
    fn poll_fd(&self) -> Option<RawFd> {
        None
    }

    /// What the device says of itself.
    fn stats(&self) -> PortStats {
        PortStats::default()
    }

    /// Stops between two bursts, so that another process can go on with the queue: what that needs. `None`: it cannot be
    /// left to another. Then only [`Port::go_on`] or [`Port::close`] may follow, which leaves the rings as they are.
    fn leave(&mut self, _pool: &mut FramePool) -> std::io::Result<Option<LeftQueue>> {
        Ok(None)
    }

    /// Nobody has taken the queue: it goes on where it was.
    fn go_on(&mut self) {}

    /// Closes the queue and puts every frame it held back into `pool`.
    fn close(self: Box<Self>, _pool: &mut FramePool) {}
}

/// A queue that a process leaves to another.
#[derive(Debug)]
pub struct LeftQueue {
    /// The device's number of it.
    pub queue: u16,
    /// Its socket: rings and what the kernel has of it stay as they are.
    pub socket: OwnedFd,
    /// The packet that the next descriptor goes on with is lost: its beginning was with the process that leaves.
    pub skips: bool,
    /// Frames that the kernel holds: twice the chunk's number, and 1 if it is to be sent.
    pub held: Vec<u32>,
}

/// Losses and stalls only the device knows of. A queue's are totals since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PortStats {
    /// Frames the device dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Frames the device dropped because it had no empty frame to fill.
    pub rx_fill_empty: u64,
    /// Frames dropped by the kernel for other reasons (too long, no memory).
    pub rx_dropped: u64,
    /// Descriptors the kernel found invalid; not 0 means a bug of ours.
    pub invalid_descriptors: u64,
    /// Chains cut off because a segment was missing or too many followed.
    pub rx_broken_chains: u64,
}

impl std::ops::AddAssign for PortStats {
    fn add_assign(&mut self, other: PortStats) {
        let PortStats { rx_ring_full, rx_fill_empty, rx_dropped, invalid_descriptors, rx_broken_chains } =
            other;
        self.rx_ring_full += rx_ring_full;
        self.rx_fill_empty += rx_fill_empty;
        self.rx_dropped += rx_dropped;
        self.invalid_descriptors += invalid_descriptors;
        self.rx_broken_chains += rx_broken_chains;
    }
}
