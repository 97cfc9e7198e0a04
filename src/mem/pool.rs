//! A worker's pool of frames: a LIFO list of its own, and an outbox for those of others.

use std::sync::Arc;

use super::frame::Frame;
use super::packet_memory::PacketMemory;
use super::{BURST, Frames};

/// The frames a worker may hand out. Only its worker touches it.
#[derive(Debug)]
pub struct FramePool {
    memory: Arc<PacketMemory>,
    worker: usize,
    /// Addresses of this worker's own chunks.
    own: std::ops::Range<usize>,
    free: Vec<Frame>,
    /// Frames of other workers that wait for a full batch, by worker.
    outbox: Box<[Frames]>,
}

impl FramePool {
    pub(super) fn new(memory: Arc<PacketMemory>, worker: usize, free: Vec<Frame>) -> FramePool {
        let outbox = (0..memory.workers()).map(|_| Frames::new()).collect();
        let own = memory.range_of(worker);
        FramePool { memory, worker, own, free, outbox }
    }

    /// The memory all pools share.
    pub fn memory(&self) -> &Arc<PacketMemory> {
        &self.memory
    }

    /// The worker this pool belongs to.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// An empty frame, or `None` when all of this worker's are under way.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if self.free.is_empty() {
            self.collect();
        }
        self.free.pop()
    }

    /// A frame that holds a copy of `data`, chained if it does not fit one chunk.
    #[inline]
    pub fn take_filled(&mut self, data: &[u8]) -> Option<Frame> {
        let chunk_bytes = self.memory.chunk().bytes();
        let mut head = self.take()?;
        let room = head.tailroom(chunk_bytes);
        if data.len() <= room {
            head.extend_unchecked_room(data, chunk_bytes);
            return Some(head);
        }
        head.extend_unchecked_room(&data[..room], chunk_bytes);
        for part in data[room..].chunks(room) {
            let Some(mut segment) = self.take() else {
                self.put(head);
                return None;
            };
            segment.extend_unchecked_room(part, chunk_bytes);
            head.append(segment);
        }
        Some(head)
    }

    /// Copies `data` behind the last byte of `frame`'s first segment; false if there is no room.
    #[inline]
    pub fn extend(&self, frame: &mut Frame, data: &[u8]) -> bool {
        let chunk_bytes = self.memory.chunk().bytes();
        let fits = data.len() <= frame.tailroom(chunk_bytes);
        if fits {
            frame.extend_unchecked_room(data, chunk_bytes);
        }
        fits
    }

    /// Takes a frame back, with its whole chain; those of other workers travel home in batches.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        if frame.is_chained() {
            self.put_chain(frame);
        } else {
            self.put_one(frame);
        }
    }

    /// Shortens a packet to `len` bytes over its whole chain; segments that hold none of them come back.
    #[cold]
    pub fn truncate_chain(&mut self, frame: &mut Frame, len: usize) {
        let mut rest = frame.split_next();
        frame.truncate(len.min(frame.len()));
        let mut left = len - frame.len();
        while let Some(mut segment) = rest {
            rest = segment.split_next();
            segment.truncate(left.min(segment.len()));
            left -= segment.len();
            if segment.is_empty() {
                self.put_one(segment);
            } else {
                frame.append(segment);
            }
        }
    }

    #[cold]
    fn put_chain(&mut self, mut frame: Frame) {
        while let Some(next) = frame.split_next() {
            self.put_one(frame);
            frame = next;
        }
        self.put_one(frame);
    }

    #[inline]
    fn put_one(&mut self, mut frame: Frame) {
        frame.reset();
        if self.own.contains(&(frame.chunk_ptr().as_ptr() as usize)) {
            self.free.push(frame);
            return;
        }
        self.put_foreign(frame);
    }

    #[cold]
    fn put_foreign(&mut self, frame: Frame) {
        let home = self.memory.home_of(&frame);
        if self.outbox[home].is_full() {
            self.send_home(home);
        }
        // A full return ring leaves the outbox full: then the frame waits in our own list, from where
        // it may be handed out; its next `put` tries again. Nothing is lost.
        if let Err(error) = self.outbox[home].try_push(frame) {
            self.free.push(error.element());
        }
    }

    /// Sends the batch for `home`, if the ring takes it.
    fn send_home(&mut self, home: usize) {
        let batch = std::mem::take(&mut self.outbox[home]);
        if let Err(batch) = self.memory.returns(home).push(batch) {
            self.outbox[home] = batch;
        }
    }

    /// Sends all waiting batches home and collects what others sent. Once per loop when idle or every
    /// few bursts under load.
    pub fn exchange(&mut self) {
        for home in 0..self.outbox.len() {
            if !self.outbox[home].is_empty() {
                self.send_home(home);
            }
        }
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(batch) = self.memory.returns(self.worker).pop() {
            self.free.extend(batch);
        }
    }

    /// Frames ready to be handed out.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Free bytes behind the packet of `frame`.
    pub fn tailroom(&self, frame: &Frame) -> usize {
        frame.tailroom(self.memory.chunk().bytes())
    }

    /// Largest packet that fits one frame behind the usual headroom.
    pub fn segment_bytes(&self) -> usize {
        self.memory.chunk().bytes() - super::HEADROOM
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        self.collect();
        let waiting: usize = self.outbox.iter().map(|batch| batch.len()).sum();
        self.memory.came_home(self.free.len() + waiting);
    }
}

const _: () = assert!(BURST >= 2);

#[cfg(test)]
mod tests {
    use super::super::ChunkSize;
    use super::*;

    #[test]
    fn a_jumbo_frame_is_a_chain_and_comes_back_whole() {
        let (memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        let data: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
        let frame = pools[0].take_filled(&data).expect("frames");
        assert_eq!(frame.total_len(), 9000);
        let mut seen = frame.bytes().to_vec();
        let mut at = frame.peek_next();
        while let Some(segment) = at {
            seen.extend_from_slice(segment.bytes());
            at = segment.peek_next();
        }
        assert_eq!(seen, data);
        pools[0].put(frame);
        assert_eq!(pools[0].available(), 64);
        drop(pools);
        assert_eq!(memory.leaked(), 0);
    }

    #[test]
    fn a_chain_is_shortened_anywhere() {
        let (_memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        let pool = &mut pools[0];
        let data: Vec<u8> = (0..9000u32).map(|i| (i / 7) as u8).collect();
        let segment = pool.segment_bytes();
        for len in [0, 1, segment - 1, segment, segment + 1, 2 * segment, 8999, 9000, 9001] {
            let mut frame = pool.take_filled(&data).expect("frames");
            pool.truncate_chain(&mut frame, len);
            let mut seen = Vec::new();
            let mut at = Some(&frame);
            while let Some(segment) = at {
                assert!(!segment.is_empty() || len == 0);
                seen.extend_from_slice(segment.bytes());
                at = segment.peek_next();
            }
            assert_eq!(seen, data[..len.min(9000)]);
            pool.put(frame);
            assert_eq!(pool.available(), 64);
        }
    }

    #[test]
    fn no_frames_for_a_jumbo_leaves_the_pool_as_it_was() {
        let (_memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        let held: Vec<Frame> = (0..62).map(|_| pools[0].take().expect("a frame")).collect();
        assert!(pools[0].take_filled(&[0; 9000]).is_none());
        assert_eq!(pools[0].available(), 2);
        for frame in held {
            pools[0].put(frame);
        }
    }

    /// All traffic enters at worker 0 and is finished by the others: the imbalance case.
    #[test]
    fn foreign_frames_come_home_in_batches() {
        let (memory, mut pools) = PacketMemory::new(4, 256, ChunkSize::Bytes2048).expect("memory");
        for round in 0..100_000usize {
            let (first, others) = pools.split_at_mut(1);
            let frame = first[0].take().expect("worker 0 never starves");
            others[round % 3].put(frame);
            if round % 64 == 0 {
                for pool in others {
                    pool.exchange();
                }
            }
        }
        for pool in &mut pools {
            pool.exchange();
        }
        pools[0].exchange();
        for pool in &pools {
            assert_eq!(pool.available(), 256);
        }
        drop(pools);
        assert_eq!(memory.leaked(), 0);
    }
}
