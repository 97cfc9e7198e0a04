//! The flow index: from a hash to the few flows that may have it.
//!
//! Buckets of one cache line hold 15 words of 32 bits: a tag of 7 bits of the hash, and the flow's handle (the
//! session's number and the direction). The flows themselves lie elsewhere, in pairs: a lookup is one line here
//! and one line there, both prefetched over the burst. What a full bucket cannot take goes to the next; a count
//! in the bucket says how much went, so that a search knows when to go on.

use zerocopy::FromZeros;

use crate::mem::simd::{LINE_WORDS, tagged};
use crate::mem::{HugeSlice, MemoryError, prefetch};
pub use crate::packet::Handle;

const SLOTS: usize = LINE_WORDS - 1;
/// Buckets a search visits at most; what fits in none of them is refused. At the highest load so many neighbours in a
/// row are full at one place in 10^10 (6.4 sigma); nearly all searches end in the first.
const REACH: usize = 64;
/// Highest load the index is made for: slots per entry, as a ratio.
const ROOM: (usize, usize) = (16, 13);

#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C, align(64))]
struct Bucket {
    /// The slots, 0 = empty; and behind them a count: entries whose home is this bucket or one before, and that lie
    /// behind it.
    words: [u32; LINE_WORDS],
}

/// Where the tag lies in a slot's word.
const TAG_SHIFT: u32 = 25;

/// Never 0: that is how an empty slot begins.
#[inline(always)]
fn tag(hash: u64) -> u32 {
    ((hash as u32) >> TAG_SHIFT).max(1)
}

impl Bucket {
    /// One bit per slot with the tag.
    #[inline(always)]
    fn matches(&self, tag: u32) -> u32 {
        tagged::<{ TAG_SHIFT as i32 }>(&self.words, tag) & ((1 << SLOTS) - 1)
    }

    /// The flow in the first of the slots in `bits`, of which there is one.
    #[inline(always)]
    fn first(&self, bits: u32) -> Handle {
        Handle(self.words[bits.trailing_zeros() as usize % LINE_WORDS] & ((1 << TAG_SHIFT) - 1))
    }

    fn slot(&mut self, word: u32) -> Option<&mut u32> {
        self.words[..SLOTS].iter_mut().find(|slot| **slot == word)
    }

    fn passed(&mut self) -> &mut u32 {
        &mut self.words[SLOTS]
    }
}

/// The index.
#[derive(Debug)]
pub struct Index {
    buckets: HugeSlice<Bucket>,
}

impl Index {
    /// An index for `entries` flows.
    pub fn new(entries: usize, populate: bool) -> Result<Index, MemoryError> {
        Ok(Index { buckets: HugeSlice::zeroed(Self::buckets_for(entries), populate)? })
    }

    fn buckets_for(entries: usize) -> usize {
        (entries * ROOM.0 / ROOM.1).div_ceil(SLOTS).max(REACH)
    }

    /// Bytes that an index for `entries` flows takes.
    pub fn bytes_for(entries: usize) -> usize {
        Self::buckets_for(entries) * size_of::<Bucket>()
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// Fetches the bucket of `hash`.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch::prefetch(&self.buckets, self.home(hash));
    }

    /// The first flow that may have `hash`: which to fetch. Mostly the right one.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Handle {
        let bucket = &self.buckets[self.home(hash)];
        match bucket.matches(tag(hash)) {
            0 => Handle::NONE,
            bits => bucket.first(bits),
        }
    }

    /// The flow with `hash` that `is` takes.
    pub fn find(&self, hash: u64, is: impl Fn(Handle) -> bool) -> Handle {
        let mut at = self.home(hash);
        for _ in 0..REACH {
            let bucket = &self.buckets[at];
            let mut bits = bucket.matches(tag(hash));
            while bits != 0 {
                let handle = bucket.first(bits);
                if is(handle) {
                    return handle;
                }
                bits &= bits - 1;
            }
            if bucket.words[SLOTS] == 0 {
                break;
            }
            at = self.after(at);
        }
        Handle::NONE
    }

    /// Adds a flow that is not there. False: no room near its place.
    #[must_use]
    pub fn insert(&mut self, hash: u64, handle: Handle) -> bool {
        let home = self.home(hash);
        let mut at = home;
        for _ in 0..REACH {
            let bucket = &mut self.buckets[at];
            if let Some(slot) = bucket.slot(0) {
                *slot = tag(hash) << TAG_SHIFT | handle.0;
                let mut passed = home;
                while passed != at {
                    *self.buckets[passed].passed() += 1;
                    passed = self.after(passed);
                }
                return true;
            }
            at = self.after(at);
        }
        false
    }

    /// Removes a flow that is there.
    pub fn remove(&mut self, hash: u64, handle: Handle) {
        let home = self.home(hash);
        let word = tag(hash) << TAG_SHIFT | handle.0;
        let mut at = home;
        for _ in 0..REACH {
            if let Some(slot) = self.buckets[at].slot(word) {
                *slot = 0;
                let mut passed = home;
                while passed != at {
                    *self.buckets[passed].passed() -= 1;
                    passed = self.after(passed);
                }
                return;
            }
            at = self.after(at);
        }
        unreachable!("a flow in the table is in the index");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few different homes and tags, so that buckets overflow and tags collide.
        #[test]
        fn equals_a_map(steps in proptest::collection::vec((0u64..400, any::<bool>()), 1..600)) {
            let mut index = Index::new(300, false).expect("memory");
            let hash_of = |key: u64| (key % 23) << 58 | (key % 3) << 25 | key;
            let mut twin: HashMap<u64, Handle> = HashMap::new();
            for (key, add) in steps {
                let handle = Handle::new(key as u32 + 1, 0);
                let find = |index: &Index| index.find(hash_of(key), |h| h == handle);
                prop_assert_eq!(find(&index).is_some(), twin.contains_key(&key));
                if !add {
                    if twin.remove(&key).is_some() {
                        index.remove(hash_of(key), handle);
                    }
                } else if !twin.contains_key(&key) && index.insert(hash_of(key), handle) {
                    twin.insert(key, handle);
                }
            }
            for (key, handle) in &twin {
                prop_assert_eq!(index.find(hash_of(*key), |h| h == *handle), *handle);
            }
            for (key, handle) in twin {
                index.remove(hash_of(key), handle);
            }
            prop_assert!(index.buckets.iter().all(|bucket| bucket.words == [0; LINE_WORDS]));
        }
    }

    #[test]
    fn takes_what_it_was_made_for() {
        let mut index = Index::new(100_000, false).expect("memory");
        for session in 1..=100_000u32 {
            let (key, src) = (Default::default(), 0x0a00_0000 + session / 250);
            let hash =
                crate::packet::hash::tuple_v4(key, src, 0x1400_0001, 17, (1024 + (session % 250) as u16, 53));
            assert!(index.insert(hash, Handle::new(session, 1)), "session {session}");
        }
    }
}
