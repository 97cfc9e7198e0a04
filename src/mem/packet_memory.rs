//! The node's packet memory: one mapping on huge pages, cut into chunks.
#![allow(unsafe_code, reason = "raw memory lives in mem/ and io/ only")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use super::frame::Frame;
use super::mapping::{HUGE_PAGE_BYTES, map};
use super::pool::FramePool;
use super::{BURST, Frames};

/// Size of one chunk, which AF_XDP's aligned mode wants to be a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkSize {
    /// 2,048 bytes: 1,792 bytes of packet behind the headroom; larger packets become chains.
    Bytes2048,
    /// 4,096 bytes: for devices without multi-buffer receive.
    Bytes4096,
}

impl ChunkSize {
    /// The size in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            ChunkSize::Bytes2048 => 2048,
            ChunkSize::Bytes4096 => 4096,
        }
    }
}

/// What pages the memory lies on; benchmarks print it, since 4 KiB pages double the cost of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Explicit huge pages from the reserved pool.
    Huge,
    /// Transparent huge pages were asked for with `madvise`.
    Transparent,
}

/// Why the packet memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused the mapping.
    #[error(
        "cannot map {bytes} bytes of memory: {source}; lower `system.frames` or `flows.capacity`, or free memory"
    )]
    Map {
        /// Size asked for.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The geometry makes no sense.
    #[error(
        "packet memory needs 1 to 256 workers and 64 to 1048576 frames a worker, not {workers} and {frames}"
    )]
    Geometry {
        /// Workers asked for.
        workers: usize,
        /// Frames per worker asked for.
        frames: usize,
    },
}

/// One mapping that holds the frames of all workers.
///
/// The mapping is given back only when every frame has come home; a leaked frame leaks the mapping
/// with it, so no [`Frame`] ever points at unmapped memory.
#[derive(Debug)]
pub struct PacketMemory {
    base: NonNull<u8>,
    bytes: usize,
    chunk: ChunkSize,
    frames_per_worker: usize,
    pages: PageKind,
    /// Frames that lie in pools which have been dropped.
    home: AtomicUsize,
    /// Per worker: batches of its frames on their way home.
    returns: Box<[ArrayQueue<Frames>]>,
}

// SAFETY: the mapping is shared memory; who may touch which chunk is decided by ownership of `Frame`s.
unsafe impl Send for PacketMemory {}
// SAFETY: as above; all other fields are Sync.
unsafe impl Sync for PacketMemory {}

impl PacketMemory {
    /// Maps memory for `workers` times `frames_per_worker` frames and returns each worker's pool. All of it is taken at
    /// once: the packet path must not take page faults.
    pub fn new(
        workers: usize,
        frames_per_worker: usize,
        chunk: ChunkSize,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), MemoryError> {
        PacketMemory::mapped(workers, frames_per_worker, chunk, true)
    }

    /// As [`PacketMemory::new`], but pages are taken as they are used: for few packets that nobody measures.
    pub fn lazy(
        workers: usize,
        frames_per_worker: usize,
        chunk: ChunkSize,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), MemoryError> {
        PacketMemory::mapped(workers, frames_per_worker, chunk, false)
    }

    fn mapped(
        workers: usize,
        frames_per_worker: usize,
        chunk: ChunkSize,
        populate: bool,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), MemoryError> {
        if !(1..=256).contains(&workers) || !(64..=1 << 20).contains(&frames_per_worker) {
            return Err(MemoryError::Geometry { workers, frames: frames_per_worker });
        }
        let frames = workers * frames_per_worker;
        let bytes = (frames * chunk.bytes()).next_multiple_of(HUGE_PAGE_BYTES);
        let (base, pages) = map(bytes, populate)?;
        // A batch holds BURST frames; the ring can take every frame of the worker even if each batch
        // were half full, so a return never fails for long.
        let batches = (frames_per_worker / (BURST / 2)).max(8);
        let memory = Arc::new(PacketMemory {
            base,
            bytes,
            chunk,
            frames_per_worker,
            pages,
            home: AtomicUsize::new(0),
            returns: (0..workers).map(|_| ArrayQueue::new(batches)).collect(),
        });
        let pools = (0..workers)
            .map(|worker| {
                let first = worker * frames_per_worker;
                // Highest address last, so that the LIFO list hands out low addresses first.
                let free = (first..first + frames_per_worker)
                    .rev()
                    // SAFETY: every index is below `frames` and appears exactly once over all pools.
                    .map(|index| unsafe { memory.mint(index) })
                    .collect();
                FramePool::new(Arc::clone(&memory), worker, free)
            })
            .collect();
        Ok((memory, pools))
    }

    /// Mints the handle of chunk `index`.
    ///
    /// # Safety
    /// `index` is below the number of frames, and no other handle of the chunk exists.
    unsafe fn mint(&self, index: usize) -> Frame {
        // SAFETY: the chunk lies inside the mapping, by this function's contract.
        let chunk = unsafe { self.base.add(index * self.chunk.bytes()) };
        Frame::of_chunk(chunk)
    }

    /// The frame whose packet the kernel put at `addr` (bytes from the start of the memory) with `len` bytes.
    ///
    /// # Safety
    /// The kernel (or whoever `addr` was given to) has handed the chunk back, so that no other handle
    /// of it exists; `addr..addr + len` lies inside one chunk.
    pub(crate) unsafe fn frame_at(&self, addr: u64, len: u32) -> Frame {
        let addr = addr as usize;
        debug_assert!(addr + len as usize <= self.bytes);
        let offset = addr & (self.chunk.bytes() - 1);
        debug_assert!(offset + len as usize <= self.chunk.bytes());
        // SAFETY: the chunk lies inside the mapping and is ours alone, by this function's contract.
        let mut frame = unsafe { self.mint(addr / self.chunk.bytes()) };
        frame.set_window(offset, len as usize);
        frame
    }

    /// Where the packet of `frame` begins, in bytes from the start of the memory.
    #[inline]
    pub(crate) fn addr_of(&self, frame: &Frame) -> u64 {
        (frame.data_ptr().as_ptr() as usize - self.base.as_ptr() as usize) as u64
    }

    /// The worker the frame belongs to.
    #[inline]
    pub fn home_of(&self, frame: &Frame) -> usize {
        let at = frame.chunk_ptr().as_ptr() as usize - self.base.as_ptr() as usize;
        at / self.chunk.bytes() / self.frames_per_worker
    }

    /// Addresses of the chunks of `worker`.
    pub(super) fn range_of(&self, worker: usize) -> std::ops::Range<usize> {
        let bytes = self.frames_per_worker * self.chunk.bytes();
        let start = self.base.as_ptr() as usize + worker * bytes;
        start..start + bytes
    }

    /// The ring on which frames of `worker` travel home.
    pub(super) fn returns(&self, worker: usize) -> &ArrayQueue<Frames> {
        &self.returns[worker]
    }

    /// Notes that a pool with `frames` frames was dropped.
    pub(super) fn came_home(&self, frames: usize) {
        self.home.fetch_add(frames, Ordering::AcqRel);
    }

    /// Start of the mapping, for registering it with a socket.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Size of the mapping in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Chunk size.
    pub fn chunk(&self) -> ChunkSize {
        self.chunk
    }

    /// Number of workers with a pool.
    pub fn workers(&self) -> usize {
        self.returns.len()
    }

    /// Frames in all pools together.
    pub fn frames(&self) -> usize {
        self.frames_per_worker * self.workers()
    }

    /// Kind of pages below the mapping.
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Frames that have not come home although every pool was dropped. Valid once all pools are gone.
    pub fn leaked(&self) -> usize {
        let under_way: usize = self
            .returns
            .iter()
            .map(|ring| {
                let mut frames = 0;
                while let Some(batch) = ring.pop() {
                    frames += batch.len();
                }
                frames
            })
            .sum();
        self.came_home(under_way);
        self.frames() - self.home.load(Ordering::Acquire)
    }
}

impl Drop for PacketMemory {
    fn drop(&mut self) {
        if self.leaked() == 0 {
            // SAFETY: `map` made this mapping with this length, and no frame points into it any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_has_one_home_and_comes_back() {
        let (memory, mut pools) = PacketMemory::new(3, 64, ChunkSize::Bytes2048).expect("memory");
        for (worker, pool) in pools.iter_mut().enumerate() {
            for _ in 0..64 {
                let frame = pool.take().expect("a frame");
                assert_eq!(memory.home_of(&frame), worker);
                pool.put(frame);
            }
        }
        drop(pools);
        assert_eq!(memory.leaked(), 0);
    }

    #[test]
    fn a_frame_that_is_not_put_back_is_counted() {
        let (memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        let _lost = pools[0].take();
        drop(pools);
        assert_eq!(memory.leaked(), 1);
    }

    #[test]
    fn geometry_is_checked() {
        assert!(PacketMemory::new(0, 64, ChunkSize::Bytes2048).is_err());
        assert!(PacketMemory::new(1, 1, ChunkSize::Bytes2048).is_err());
    }
}
