//! Packet memory, frames and pools: safe types over raw memory.
//!
//! With `io` the only home of `unsafe`. One [`PacketMemory`] exists per node; every socket of every
//! port works on it. It is cut into chunks; a [`Frame`] is the unique handle of one chunk. Each chunk
//! has a *home worker*, computable from its address: whoever finishes with a frame sends it home, in
//! batches, so that no worker starves however the traffic is spread over the queues.

mod frame;
mod mapping;
mod packet_memory;
mod pool;
pub mod prefetch;
mod shared;
pub mod simd;

pub mod tsc;

pub use frame::{Frame, HEADROOM};
pub use mapping::{HugeSlice, available_bytes};
pub use packet_memory::{ChunkSize, MemoryError, MemoryLayout, NotAdopted, PacketMemory, PageKind};
pub use pool::FramePool;
pub use shared::{SharedWords, is_in_memory};

/// Packets of one burst: what a worker takes from one queue at a time.
/// 64: two-stage prefetching gains nothing beyond it, and a burst of metadata stays in L1.
pub const BURST: usize = 64;

/// A burst's worth of frames.
pub type Frames = arrayvec::ArrayVec<Frame, BURST>;
