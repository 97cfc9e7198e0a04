//! The unique handle of one chunk of packet memory, with the window of bytes that is the packet.
#![allow(unsafe_code, reason = "raw memory lives in mem/ and io/ only")]

use std::fmt;
use std::ptr::NonNull;

/// Bytes in front of a received packet, for tags and tunnel headers. AF_XDP puts packets there by
/// itself (XDP_PACKET_HEADROOM), so encapsulation never moves a packet.
pub const HEADROOM: usize = 256;

/// Links between the frames of a chain count in the smallest chunk size.
const LINK_UNIT: usize = 2048;

/// The first bytes of a chunk belong to us while a frame is a later segment of a chain: its handle.
const LINK_BYTES: usize = std::mem::size_of::<Frame>();

/// A packet's bytes in one chunk, or the first chunk of a chain (jumbo frames).
///
/// Whoever holds a `Frame` owns the chunk: handles are neither cloned nor made twice. A frame that is
/// dropped instead of being put back is a leak, and [`super::PacketMemory::leaked`] tells.
#[repr(C)]
pub struct Frame {
    chunk: NonNull<u8>,
    offset: u16,
    len: u16,
    /// Distance to the next segment's chunk in [`LINK_UNIT`]s; 0 = last segment.
    next: i32,
}

/// Stands for no chunk. Never dereferenced: a gone frame has no bytes, no headroom, and whatever reaches
/// beyond the window asserts that the frame is here.
const GONE: NonNull<u8> = NonNull::dangling();

// SAFETY: a frame owns its chunk; moving the handle to another thread moves that ownership.
unsafe impl Send for Frame {}

impl Frame {
    /// The handle of the chunk at `chunk`, empty, behind the usual headroom.
    pub(super) fn of_chunk(chunk: NonNull<u8>) -> Frame {
        Frame { chunk, offset: HEADROOM as u16, len: 0, next: 0 }
    }

    pub(super) fn set_window(&mut self, offset: usize, len: usize) {
        self.offset = offset as u16;
        self.len = len as u16;
    }

    #[inline]
    pub(super) fn chunk_ptr(&self) -> NonNull<u8> {
        self.chunk
    }

    #[inline]
    pub(super) fn data_ptr(&self) -> NonNull<u8> {
        // SAFETY: offset lies inside the chunk.
        unsafe { self.chunk.add(usize::from(self.offset)) }
    }

    /// Takes the frame out of its place, which is left *gone*: empty and good for nothing. Moves 16 bytes
    /// where taking a whole packet out of a burst would move a cache line.
    #[inline]
    pub fn take(&mut self) -> Frame {
        std::mem::replace(self, Frame { chunk: GONE, offset: 0, len: 0, next: 0 })
    }

    /// Panics on a place whose frame was taken: no raw access may go by it.
    #[inline]
    fn assert_here(&self) {
        assert!(self.chunk != GONE, "the frame was taken");
    }

    /// Forgets the window and the chain: as fresh from the pool.
    #[inline]
    pub(super) fn reset(&mut self) {
        *self = Frame::of_chunk(self.chunk);
    }

    /// Bytes in this segment.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// True if this segment holds no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the whole chain.
    #[inline]
    pub fn total_len(&self) -> usize {
        let mut total = self.len();
        let mut at = self.peek_next();
        while let Some(segment) = at {
            total += segment.len();
            at = segment.peek_next();
        }
        total
    }

    /// The bytes of this segment. Headers always lie in the first.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: offset + len is inside the chunk, which is mapped, initialised (zeroed or written
        // by the kernel) and ours alone while the handle lives.
        unsafe { std::slice::from_raw_parts(self.data_ptr().as_ptr(), self.len()) }
    }

    /// The bytes of this segment, for writing.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data_ptr().as_ptr(), self.len()) }
    }

    /// Free bytes in front of the packet.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.offset)
    }

    /// Grows the packet by `count` bytes at the front and returns them all.
    ///
    /// # Panics
    /// If the headroom is smaller; callers ask [`Frame::headroom`] or know [`HEADROOM`].
    #[inline]
    pub fn prepend(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.headroom(), "no headroom left");
        self.offset -= count as u16;
        self.len += count as u16;
        self.bytes_mut()
    }

    /// Cuts `count` bytes off the front.
    ///
    /// # Panics
    /// If the segment is shorter.
    #[inline]
    pub fn trim_front(&mut self, count: usize) {
        assert!(count <= self.len(), "trimmed beyond the packet");
        self.offset += count as u16;
        self.len -= count as u16;
    }

    /// Keeps `len` bytes from byte `at` on, with `front` bytes in front of them that are yet to be written; returns
    /// both.
    ///
    /// # Panics
    /// If there are not as many bytes, or not as much headroom.
    #[inline(always)]
    pub fn reframe(&mut self, at: usize, front: usize, len: usize) -> &mut [u8] {
        let start = self.headroom() + at;
        assert!(at + len <= self.len() && front <= start, "reframed beyond the packet");
        self.offset = (start - front) as u16;
        self.len = (front + len) as u16;
        self.bytes_mut()
    }

    /// Shortens this segment to `len` bytes (no effect if it is shorter).
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u16);
    }

    /// Moves the (empty) packet's start, leaving `headroom` bytes in front.
    ///
    /// # Panics
    /// If the segment is not empty or `headroom` exceeds the smallest chunk.
    pub fn reserve(&mut self, headroom: usize) {
        self.assert_here();
        assert!(self.is_empty() && headroom <= LINK_UNIT, "reserve is for fresh frames");
        self.offset = headroom as u16;
    }

    /// Free bytes behind the packet in a chunk of `chunk_bytes`.
    #[inline]
    pub(super) fn tailroom(&self, chunk_bytes: usize) -> usize {
        chunk_bytes - usize::from(self.offset) - self.len()
    }

    /// Copies `data` behind the packet. The caller has checked the room.
    #[inline]
    pub(super) fn extend_unchecked_room(&mut self, data: &[u8], chunk_bytes: usize) {
        self.assert_here();
        assert!(data.len() <= self.tailroom(chunk_bytes), "no tailroom left");
        // SAFETY: the packet's end lies inside our chunk.
        let end = unsafe { self.data_ptr().as_ptr().add(self.len()) };
        // SAFETY: the destination lies inside our chunk (asserted above) and `data`, borrowed safe
        // memory, cannot overlap the part of our chunk that no slice covers.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), end, data.len()) };
        self.len += data.len() as u16;
    }

    /// The next segment of the chain, to look at.
    pub fn peek_next(&self) -> Option<&Frame> {
        // SAFETY: `link_chunk` is the chunk of a segment whose handle `append` stored there; it is
        // ours as long as the head is, and the borrow of `self` covers it.
        self.link_chunk().map(|chunk| unsafe { chunk.cast::<Frame>().as_ref() })
    }

    /// A copy of the whole chain's bytes: for captures and tests.
    pub fn chain_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.total_len());
        let mut at = Some(self);
        while let Some(segment) = at {
            bytes.extend_from_slice(segment.bytes());
            at = segment.peek_next();
        }
        bytes
    }

    /// True if the packet goes on in another frame.
    #[inline]
    pub fn is_chained(&self) -> bool {
        self.next != 0
    }

    /// Appends `segment` (not itself chained) at the end of the chain.
    ///
    /// # Panics
    /// If the packet of `segment` begins where the link has to lie.
    pub fn append(&mut self, segment: Frame) {
        self.assert_here();
        assert!(usize::from(segment.offset) >= LINK_BYTES, "a later segment needs room for its link");
        let chunk = segment.chunk;
        // SAFETY: the chunk is owned by `segment`, its first LINK_BYTES bytes are outside the window,
        // and chunks are aligned to 2,048 bytes. Ownership moves into the chain.
        unsafe { chunk.cast::<Frame>().write(segment) };
        let mut tail: &mut Frame = self;
        while let Some(next) = tail.link_chunk() {
            // SAFETY: as in `peek_next`; `&mut self` makes the walk exclusive.
            tail = unsafe { next.cast::<Frame>().as_mut() };
        }
        let distance = chunk.as_ptr() as isize - tail.chunk.as_ptr() as isize;
        tail.next = (distance / LINK_UNIT as isize) as i32;
    }

    /// Cuts the chain behind this segment and returns the rest.
    pub fn split_next(&mut self) -> Option<Frame> {
        let chunk = self.link_chunk()?;
        self.next = 0;
        // SAFETY: as in `peek_next`; the link was cleared, so the handle is read out only once.
        Some(unsafe { chunk.cast::<Frame>().read() })
    }

    fn link_chunk(&self) -> Option<NonNull<u8>> {
        if self.next == 0 {
            return None;
        }
        // SAFETY: both chunks lie in the same mapping.
        Some(unsafe { self.chunk.offset(self.next as isize * LINK_UNIT as isize) })
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Frame({:p}+{}, {} bytes{})",
            self.chunk,
            self.offset,
            self.len,
            if self.is_chained() { ", chained" } else { "" }
        )
    }
}
