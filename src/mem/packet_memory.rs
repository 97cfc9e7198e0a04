//! The node's packet memory: one mapping on huge pages, cut into chunks.
#![allow(unsafe_code, reason = "raw memory lives in mem/ and io/ only")]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use super::frame::Frame;
use super::mapping::{self, HUGE_PAGE_BYTES, map};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
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

/// What two processes have to agree on to work on one memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MemoryLayout {
    /// Workers with a pool.
    pub workers: usize,
    /// Frames of each.
    pub frames_per_worker: usize,
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
    /// Bytes in front of a packet.
    pub headroom: usize,
}

/// Why a memory cannot be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdopted {
    /// It is not what its maker says it is.
    #[error("its packet memory is not of the size it names, or could be made shorter")]
    Size,
    /// The kernel refused.
    #[error("its packet memory cannot be mapped")]
    Map,
    /// A chunk that does not exist or that two have.
    #[error("it names frame {0} twice, or there is none of that number")]
    Frame(u32),
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
    /// By which another process can map it as well.
    file: Option<File>,
    /// The handles of its frames have been made.
    has_frames: AtomicBool,
    /// Frames that lie in pools which have been dropped.
    home: AtomicUsize,
    /// Per worker: batches of its frames on their way home.
    returns: Box<[ArrayQueue<Frames>]>,
}

/// Where the memory comes from.
enum Source {
    Anonymous { populate: bool },
    Shareable,
    Another(File, PageKind),
}

impl Source {
    fn anonymous(bytes: usize, populate: bool) -> Result<(NonNull<u8>, PageKind, Option<File>), MemoryError> {
        map(bytes, populate).map(|(base, pages)| (base, pages, None))
    }
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
        PacketMemory::mapped(workers, frames_per_worker, chunk, Source::Anonymous { populate: true })
    }

    /// As [`PacketMemory::new`], of memory that a process which takes over can map as well ([`PacketMemory::file`]),
    /// where the kernel has such memory on huge pages.
    pub fn shareable(
        workers: usize,
        frames_per_worker: usize,
        chunk: ChunkSize,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), MemoryError> {
        PacketMemory::mapped(workers, frames_per_worker, chunk, Source::Shareable)
    }

    /// Maps the memory of another process. The pools are empty until [`PacketMemory::take_frames`]: its frames are not
    /// ours as long as that process uses them.
    pub fn adopt(
        file: File,
        pages: PageKind,
        layout: MemoryLayout,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), NotAdopted> {
        let chunk = match layout.chunk_bytes {
            2048 => ChunkSize::Bytes2048,
            4096 => ChunkSize::Bytes4096,
            _ => return Err(NotAdopted::Size),
        };
        let is_legal =
            (1..=256).contains(&layout.workers) && (64..=1 << 20).contains(&layout.frames_per_worker);
        let bytes = || (layout.workers * layout.frames_per_worker * layout.chunk_bytes) as u64;
        let has_room = |file: &File| file.metadata().is_ok_and(|metadata| metadata.len() >= bytes());
        if !is_legal || !has_room(&file) || !mapping::keeps_its_size(&file) {
            return Err(NotAdopted::Size);
        }
        let source = Source::Another(file, pages);
        PacketMemory::mapped(layout.workers, layout.frames_per_worker, chunk, source)
            .map_err(|_| NotAdopted::Map)
    }

    /// Gives the pools of an adopted memory all frames but those of `held` (numbers of chunks), which the kernel holds for
    /// queues that are ours now. All or, with an error, none.
    ///
    /// # Panics
    /// If the memory is not another process', or its frames have been taken.
    pub fn take_frames(&self, held: impl IntoIterator<Item = u32>) -> Result<(), NotAdopted> {
        let mut is_held = vec![false; self.frames()];
        for number in held {
            match is_held.get_mut(number as usize) {
                Some(is_held) if !*is_held => *is_held = true,
                _ => return Err(NotAdopted::Frame(number)),
            }
        }
        assert!(!self.has_frames.swap(true, Ordering::AcqRel), "the frames of a memory are minted once");
        for worker in 0..self.workers() {
            let first = worker * self.frames_per_worker;
            let free = (first..first + self.frames_per_worker).rev().filter(|index| !is_held[*index]);
            let mut batch = Frames::new();
            for index in free {
                // SAFETY: below the number of frames, once (asserted above); the other process has given it up.
                batch.push(unsafe { self.mint(index) });
                if batch.is_full() {
                    self.send_home(worker, std::mem::take(&mut batch));
                }
            }
            self.send_home(worker, batch);
        }
        Ok(())
    }

    fn send_home(&self, worker: usize, batch: Frames) {
        let is_taken = batch.is_empty() || self.returns[worker].push(batch).is_ok();
        assert!(is_taken, "the ring has room for all frames of the worker, and nobody had one before");
    }

    /// How it is cut.
    pub fn layout(&self) -> MemoryLayout {
        MemoryLayout {
            workers: self.workers(),
            frames_per_worker: self.frames_per_worker,
            chunk_bytes: self.chunk.bytes(),
            headroom: super::HEADROOM,
        }
    }

    /// By which another process can map it; `None`: none can.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// As [`PacketMemory::new`], but pages are taken as they are used: for few packets that nobody measures.
    pub fn lazy(
        workers: usize,
        frames_per_worker: usize,
        chunk: ChunkSize,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), MemoryError> {
        PacketMemory::mapped(workers, frames_per_worker, chunk, Source::Anonymous { populate: false })
    }

    fn mapped(
        workers: usize,
        frames_per_worker: usize,
        chunk: ChunkSize,
        source: Source,
    ) -> Result<(Arc<PacketMemory>, Vec<FramePool>), MemoryError> {
        if !(1..=256).contains(&workers) || !(64..=1 << 20).contains(&frames_per_worker) {
            return Err(MemoryError::Geometry { workers, frames: frames_per_worker });
        }
        let frames = workers * frames_per_worker;
        let bytes = (frames * chunk.bytes()).next_multiple_of(HUGE_PAGE_BYTES);
        let has_frames = !matches!(source, Source::Another(..));
        let (base, pages, file) = match source {
            Source::Anonymous { populate } => Source::anonymous(bytes, populate)?,
            Source::Shareable => match mapping::map_shareable(bytes) {
                Some((base, pages, file)) => (base, pages, Some(file)),
                None => Source::anonymous(bytes, true)?,
            },
            Source::Another(file, pages) => {
                let failed = || MemoryError::Map { bytes, source: std::io::Error::last_os_error() };
                (mapping::map_file(&file, bytes).ok_or_else(failed)?, pages, Some(file))
            }
        };
        // A batch holds BURST frames; the ring can take every frame of the worker even if each batch
        // were half full, so a return never fails for long.
        let batches = (frames_per_worker / (BURST / 2)).max(8);
        let memory = Arc::new(PacketMemory {
            base,
            bytes,
            chunk,
            frames_per_worker,
            pages,
            file,
            has_frames: AtomicBool::new(has_frames),
            home: AtomicUsize::new(0),
            returns: (0..workers).map(|_| ArrayQueue::new(batches)).collect(),
        });
        let pools = (0..workers)
            .map(|worker| {
                let first = if has_frames { worker * frames_per_worker } else { frames };
                let last = if has_frames { first + frames_per_worker } else { frames };
                // Highest address last, so that the LIFO list hands out low addresses first.
                let free = (first..last)
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
    fn another_maps_the_same_memory_and_has_the_frames_that_are_free() {
        let (memory, mut pools) = PacketMemory::shareable(2, 64, ChunkSize::Bytes2048).expect("memory");
        // Without huge pages below such memory there is none.
        let Some(file) = memory.file() else { return };
        let held: Vec<Frame> = (0..3).map(|_| pools[1].take_filled(b"held").expect("a frame")).collect();
        let numbers: Vec<u32> = held.iter().map(|frame| (memory.addr_of(frame) / 2048) as u32).collect();
        let again = |file: &File| file.try_clone().expect("a descriptor");

        let adopted = PacketMemory::adopt(again(file), memory.pages(), memory.layout());
        let (adopted, mut theirs) = adopted.expect("the same layout");
        assert!(theirs.iter_mut().all(|pool| pool.take().is_none()), "not yet");
        assert_eq!(adopted.take_frames([128]), Err(NotAdopted::Frame(128)));
        assert_eq!(adopted.take_frames([5, 5]), Err(NotAdopted::Frame(5)));
        adopted.take_frames(numbers.iter().copied()).expect("they are there");
        let free: Vec<usize> = theirs.iter_mut().map(|pool| (pool.exchange(), pool.available()).1).collect();
        assert_eq!(free, [64, 61]);
        for (frame, number) in held.iter().zip(&numbers) {
            // SAFETY: nobody else has a handle of the chunk in the second mapping.
            let same = unsafe { adopted.frame_at(memory.addr_of(frame), frame.len() as u32) };
            assert_eq!(same.bytes(), b"held");
            assert_eq!(adopted.addr_of(&same) / 2048, u64::from(*number));
            theirs[0].put(same);
        }
        drop(theirs);
        assert_eq!(adopted.leaked(), 0);
        held.into_iter().for_each(|frame| pools[1].put(frame));

        let larger = MemoryLayout { frames_per_worker: 4096, ..memory.layout() };
        assert!(PacketMemory::adopt(again(file), memory.pages(), larger).is_err());
        let path = tempfile::tempfile().expect("a file");
        path.set_len(memory.bytes() as u64).expect("room");
        assert!(PacketMemory::adopt(path, memory.pages(), memory.layout()).is_err(), "it could be cut");
    }

    #[test]
    fn geometry_is_checked() {
        assert!(PacketMemory::new(0, 64, ChunkSize::Bytes2048).is_err());
        assert!(PacketMemory::new(1, 1, ChunkSize::Bytes2048).is_err());
    }
}
