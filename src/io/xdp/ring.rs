//! The four rings of an AF_XDP socket: single producer, single consumer, shared with the kernel.
//!
//! The ABI is in Linux `net/xdp/xsk_queue.h`: two free-running `u32` indexes and a power-of-two array.
//! The producer writes entries and then publishes its index with *release*; the consumer reads that
//! index with *acquire*, takes the entries and hands the slots back the same way. Fill and TX are
//! produced by us, RX and completion by the kernel. What the kernel's indexes claim is never trusted
//! beyond the size of the ring.
//!
//! With `--cfg loom` the atomics and cells come from loom, and the tests play both ends:
//! `scripts/test --only loom`.
#![allow(unsafe_code, reason = "memory shared with the kernel")]

use std::ptr::NonNull;

#[cfg(loom)]
use loom::{cell::UnsafeCell, sync::atomic::AtomicU32};
#[cfg(not(loom))]
use std::sync::atomic::AtomicU32;

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// `XDP_RING_NEED_WAKEUP`: the kernel sleeps on this ring until a system call wakes it.
const NEED_WAKEUP: u32 = 1;

/// `struct xdp_desc`: one buffer in the RX or TX ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// First byte of the packet, from the start of the memory.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`CONTINUES`].
    pub options: u32,
}

/// `XDP_PKT_CONTD`: the packet goes on in the next descriptor.
pub(super) const CONTINUES: u32 = 1;

/// What may lie in memory that others write to.
///
/// # Safety
/// Every bit pattern is a value of the type.
pub(super) unsafe trait Entry: Copy + 'static {}
// SAFETY: integers only, no padding.
unsafe impl Entry for Descriptor {}
// SAFETY: an integer.
unsafe impl Entry for u64 {}

#[cfg(not(loom))]
#[repr(transparent)]
struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    // The interface of loom's cell, so that the code below reads the same in both builds.
    #[inline(always)]
    fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    #[inline(always)]
    fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Where one ring lies: the addresses the kernel gave, and what keeps them mapped.
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<UnsafeCell<T>>,
    size: u32,
    /// Dropped with the ring: unmaps it.
    _mapping: Box<dyn Send>,
}

impl<T: Entry> Shared<T> {
    #[inline(always)]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `RingParts`' maker vouches that it points to an aligned u32 inside `_mapping`, which
        // lives as long as `self`; both ends access it atomically only.
        unsafe { self.producer.as_ref() }
    }

    #[inline(always)]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline(always)]
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.flags.as_ref() }
    }

    /// The slot that the free-running `index` falls into.
    #[inline(always)]
    fn slot(&self, index: u32) -> &UnsafeCell<T> {
        // SAFETY: the masked index is below `size`, the number of entries in the mapping.
        let slot = unsafe { self.entries.add((index & (self.size - 1)) as usize) };
        // SAFETY: inside the mapping and aligned, by the contract of `RingParts`.
        unsafe { slot.as_ref() }
    }
}

/// Raw parts of a ring, as the mapping of the socket has them.
pub(super) struct RingParts {
    /// Start of the mapping, page aligned.
    pub base: NonNull<u8>,
    /// Byte offsets of the indexes, the flags and the entries (`struct xdp_ring_offset`).
    pub producer: usize,
    /// See `producer`.
    pub consumer: usize,
    /// See `producer`.
    pub flags: usize,
    /// See `producer`.
    pub entries: usize,
    /// Entries; a power of two.
    pub size: u32,
    /// Keeps the mapping.
    pub mapping: Box<dyn Send>,
}

impl RingParts {
    /// # Safety
    /// `base + offset` of each index is an aligned `u32` and `entries` the start of `size` aligned `T`s, all
    /// inside memory that stays mapped while `mapping` lives; `size` is a power of two; only one ring of
    /// this process is made of it.
    unsafe fn shared<T: Entry>(self) -> Shared<T> {
        debug_assert!(self.size.is_power_of_two());
        // SAFETY: the offset lies inside the mapping, by the contract above.
        let producer = unsafe { self.base.add(self.producer) }.cast();
        // SAFETY: as above.
        let consumer = unsafe { self.base.add(self.consumer) }.cast();
        // SAFETY: as above.
        let flags = unsafe { self.base.add(self.flags) }.cast();
        // SAFETY: as above.
        let entries = unsafe { self.base.add(self.entries) }.cast();
        Shared { producer, consumer, flags, entries, size: self.size, _mapping: self.mapping }
    }
}

/// Our end of a ring that the kernel consumes: fill, TX.
pub(super) struct Producer<T> {
    shared: Shared<T>,
    /// Our index, entries written but perhaps not yet published.
    produced: u32,
    /// The kernel's index as last seen.
    consumed: u32,
}

// SAFETY: the pointers lead into a mapping owned by the value; the other end of the ring synchronises
// through the atomics, whichever thread we run on.
unsafe impl<T: Entry> Send for Producer<T> {}

impl<T: Entry> Producer<T> {
    /// # Safety
    /// The contract of [`RingParts::shared`], and the kernel is the ring's consumer.
    pub unsafe fn new(parts: RingParts) -> Producer<T> {
        // SAFETY: the caller's promise.
        Producer::of(unsafe { parts.shared() })
    }

    fn of(shared: Shared<T>) -> Producer<T> {
        let produced = shared.producer().load(Relaxed);
        let consumed = shared.consumer().load(Acquire);
        Producer { shared, produced, consumed }
    }

    /// Free slots. Looks at the kernel's index only if fewer than `wanted` are known to be free.
    #[inline]
    pub fn free(&mut self, wanted: u32) -> u32 {
        let free = self.known_free();
        if free >= wanted {
            return free;
        }
        // Acquire pairs with the kernel's release of its index: it has read the slots we reuse.
        self.consumed = self.shared.consumer().load(Acquire);
        self.known_free()
    }

    #[inline(always)]
    fn known_free(&self) -> u32 {
        // A nonsensical index of the kernel must not let us run ahead more than one ring.
        self.shared.size.saturating_sub(self.produced.wrapping_sub(self.consumed))
    }

    /// Writes an entry; the kernel sees it after [`Producer::publish`]. False: no slot was known free.
    #[inline]
    #[must_use]
    pub fn push(&mut self, entry: T) -> bool {
        if self.known_free() == 0 {
            return false;
        }
        self.shared.slot(self.produced).with_mut(|slot| {
            // SAFETY: the slot lies in [consumed, consumed + size) and is not published: by the
            // protocol the kernel does not look at it before `publish`.
            unsafe { slot.write(entry) }
        });
        self.produced = self.produced.wrapping_add(1);
        true
    }

    /// Lets the kernel see what was pushed.
    #[inline]
    pub fn publish(&mut self) {
        // Release: the entries are written before the index that covers them.
        self.shared.producer().store(self.produced, Release);
    }

    /// Entries the kernel has not taken yet.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.produced.wrapping_sub(self.shared.consumer().load(Relaxed))
    }

    /// True if the kernel wants a system call before it goes on with this ring.
    ///
    /// No fence stands between publishing and this load, so the flag may be seen late. That costs
    /// nothing: a spinning worker looks again on its next round, and `poll()` wakes the driver itself.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.shared.flags().load(Relaxed) & NEED_WAKEUP != 0
    }
}

/// Our end of a ring that the kernel produces: RX, completion.
pub(super) struct Consumer<T> {
    shared: Shared<T>,
    /// Our index, entries read but perhaps not yet released.
    consumed: u32,
    /// The kernel's index as last seen.
    produced: u32,
}

// SAFETY: as for `Producer`.
unsafe impl<T: Entry> Send for Consumer<T> {}

impl<T: Entry> Consumer<T> {
    /// # Safety
    /// The contract of [`RingParts::shared`], and the kernel is the ring's producer.
    pub unsafe fn new(parts: RingParts) -> Consumer<T> {
        // SAFETY: the caller's promise.
        Consumer::of(unsafe { parts.shared() })
    }

    fn of(shared: Shared<T>) -> Consumer<T> {
        let consumed = shared.consumer().load(Relaxed);
        let produced = shared.producer().load(Acquire);
        Consumer { shared, consumed, produced }
    }

    /// The next entry. Looks at the kernel's index only when all known entries were taken.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.produced == self.consumed {
            // Acquire pairs with the kernel's release: the entries below the index are written.
            self.produced = self.shared.producer().load(Acquire);
            let ahead = self.produced.wrapping_sub(self.consumed);
            if ahead == 0 {
                return None;
            }
            if ahead > self.shared.size {
                // Nonsense from the other side. Reading on would yield stale entries; those are
                // validated by the port, but there is no reason to begin.
                self.produced = self.consumed;
                return None;
            }
        }
        let entry = self.shared.slot(self.consumed).with(|slot| {
            // SAFETY: the slot is below the published index and not released: by the protocol the
            // kernel does not write it before `release`. Any bits are a `T`.
            unsafe { slot.read() }
        });
        self.consumed = self.consumed.wrapping_add(1);
        Some(entry)
    }

    /// Gives the slots of the taken entries back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        // Release: our reads are done before the kernel may overwrite the slots.
        self.shared.consumer().store(self.consumed, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(loom)]
    use loom::{model, sync::Arc, thread};
    #[cfg(not(loom))]
    use std::{sync::Arc, thread};

    #[cfg(not(loom))]
    fn model(test: impl Fn()) {
        test();
    }

    #[cfg(not(loom))]
    impl<T> UnsafeCell<T> {
        fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }
    }

    /// Stands in for the mapping. The far end of the ring is the opposite type over the same memory.
    struct Fake<T> {
        producer: AtomicU32,
        consumer: AtomicU32,
        flags: AtomicU32,
        entries: Box<[UnsafeCell<T>]>,
    }

    // SAFETY: the test's own memory; cells are accessed by the protocol under test, and loom checks it.
    unsafe impl<T> Send for Fake<T> {}
    // SAFETY: as above.
    unsafe impl<T> Sync for Fake<T> {}

    impl<T: Entry + Default> Fake<T> {
        /// A ring whose indexes begin at `start`.
        fn new(size: u32, start: u32) -> Arc<Fake<T>> {
            Arc::new(Fake {
                producer: AtomicU32::new(start),
                consumer: AtomicU32::new(start),
                flags: AtomicU32::new(0),
                entries: (0..size).map(|_| UnsafeCell::new(T::default())).collect(),
            })
        }

        fn shared(ring: &Arc<Fake<T>>) -> Shared<T> {
            Shared {
                producer: NonNull::from(&ring.producer),
                consumer: NonNull::from(&ring.consumer),
                flags: NonNull::from(&ring.flags),
                entries: NonNull::from(&ring.entries[0]),
                size: ring.entries.len() as u32,
                _mapping: Box::new(Arc::clone(ring)),
            }
        }
    }

    /// Both ends at once, more entries than slots, over the wrap of the indexes. Every interleaving
    /// under loom; without it once, as a smoke test.
    #[test]
    fn entries_arrive_once_and_in_order() {
        model(|| {
            const ENTRIES: u64 = 3;
            let ring = Fake::<u64>::new(2, u32::MAX);
            let (mut ours, mut kernel) =
                (Producer::of(Fake::shared(&ring)), Consumer::of(Fake::shared(&ring)));
            let far_end = thread::spawn(move || {
                let mut seen = Vec::new();
                while seen.len() < ENTRIES as usize {
                    match kernel.pop() {
                        Some(entry) => {
                            seen.push(entry);
                            kernel.release();
                        }
                        None => thread::yield_now(),
                    }
                }
                seen
            });
            let mut next = 0;
            while next < ENTRIES {
                if ours.free(1) == 0 {
                    thread::yield_now();
                    continue;
                }
                assert!(ours.push(next));
                next += 1;
                ours.publish();
            }
            assert_eq!(far_end.join().expect("the far end"), [0, 1, 2]);
        });
    }

    /// A batch becomes visible as a whole, and unreleased slots are not overwritten.
    #[test]
    fn a_batch_is_published_and_released_as_one() {
        model(|| {
            let ring = Fake::<Descriptor>::new(2, 7);
            let (mut kernel, mut ours) =
                (Producer::of(Fake::shared(&ring)), Consumer::of(Fake::shared(&ring)));
            let far_end = thread::spawn(move || {
                let batch = [
                    Descriptor { addr: 4096, len: 60, options: CONTINUES },
                    Descriptor { addr: 2048, len: 61, options: 0 },
                ];
                assert!(kernel.push(batch[0]) && kernel.push(batch[1]));
                assert!(!kernel.push(batch[0]), "the ring is full");
                kernel.publish();
                while kernel.free(1) == 0 {
                    thread::yield_now();
                }
                assert_eq!(kernel.free(2), 2, "both slots come back together");
            });
            let mut first = ours.pop();
            while first.is_none() {
                thread::yield_now();
                first = ours.pop();
            }
            let second = ours.pop().expect("published with the first");
            assert_eq!((first.map(|d| d.len), second.len), (Some(60), 61));
            ours.release();
            far_end.join().expect("the far end");
        });
    }

    /// Entries pushed but not published are nobody's business.
    #[test]
    fn nothing_is_seen_before_it_is_published() {
        model(|| {
            let ring = Fake::<u64>::new(4, 0);
            let (mut ours, mut kernel) =
                (Producer::of(Fake::shared(&ring)), Consumer::of(Fake::shared(&ring)));
            assert!(ours.push(1));
            assert_eq!(kernel.pop(), None);
            assert_eq!(ours.pending(), 1);
            ours.publish();
            assert_eq!(kernel.pop(), Some(1));
            assert_eq!(ours.pending(), 1, "taken, not released");
            kernel.release();
            assert_eq!((ours.pending(), ours.free(4)), (0, 4));
        });
    }

    /// Whatever the other side writes into its index, we neither overrun nor loop.
    #[test]
    fn nonsense_from_the_other_side_is_contained() {
        model(|| {
            let ring = Fake::<u64>::new(4, 0);
            let (mut ours, mut theirs) =
                (Producer::of(Fake::shared(&ring)), Consumer::of(Fake::shared(&ring)));
            ring.consumer.store(1000, Release);
            assert_eq!(ours.free(5), 0, "more than is known to be free makes us look");
            assert!(!ours.push(1));
            ring.producer.store(1000, Release);
            assert_eq!(theirs.pop(), None);
        });
    }

    #[test]
    fn the_wakeup_flag_is_read() {
        model(|| {
            let ring = Fake::<u64>::new(4, 0);
            let ours = Producer::of(Fake::shared(&ring));
            assert!(!ours.needs_wakeup());
            ring.flags.store(NEED_WAKEUP, Relaxed);
            assert!(ours.needs_wakeup());
        });
    }
}
