//! A hash index of fixed capacity: from a key that stands elsewhere to the number of its entry.
//!
//! A bucket is one cache line: 15 entries and a count of those that belong here but stand further on. An entry
//! is the number and as many bits of its hash as fit beside it, 32 bits in all. So a lookup reads one line in
//! most cases, a miss ends where nothing has flowed over, and an entry goes without leaving a tombstone or
//! moving another. hashbrown would take 5 to 10 bytes an entry (powers of two) and may have to rehash the whole
//! table at an insertion after many removals; this takes 5.4 and never moves anything.

use zerocopy::FromZeros;

use crate::mem::{HugeSlice, MemoryError, prefetch};

const ENTRIES: usize = 15;

/// Entries of a bucket that are counted on: at 12 of 15 one bucket in six flows over.
const LOAD: usize = 12;

#[repr(C, align(64))]
#[derive(Clone, Debug, Default, FromZeros)]
struct Bucket {
    /// Entries whose search begins here or before and ends beyond.
    overflow: u32,
    /// Tag and number + 1; 0: empty.
    entries: [u32; ENTRIES],
}

#[derive(Debug)]
pub(super) struct Index {
    buckets: HugeSlice<Bucket>,
    /// Bits of an entry that are the number + 1.
    number_bits: u32,
    len: usize,
    capacity: usize,
}

impl Index {
    /// For `capacity` entries with numbers below `numbers`. Takes its memory at once.
    pub fn new(capacity: usize, numbers: usize) -> Result<Index, MemoryError> {
        assert!(numbers < 1 << 31, "at most 31 bits of an entry are its number");
        Ok(Index {
            buckets: HugeSlice::zeroed(Self::buckets_for(capacity), true)?,
            number_bits: usize::BITS - numbers.leading_zeros(),
            len: 0,
            capacity,
        })
    }

    fn buckets_for(capacity: usize) -> usize {
        capacity.div_ceil(LOAD).max(1)
    }

    /// Bytes that an index of `capacity` takes.
    pub fn bytes_for(capacity: usize) -> usize {
        Self::buckets_for(capacity) * size_of::<Bucket>()
    }

    pub fn has_room(&self) -> bool {
        self.len < self.capacity
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Resident bytes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn tag(&self, hash: u64) -> u32 {
        (hash as u32) << self.number_bits
    }

    #[inline]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() { 0 } else { bucket + 1 }
    }

    /// Fetches the bucket of `hash`.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch::prefetch(&self.buckets, self.home(hash));
    }

    /// The first number that may be filed under `hash`.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<u32> {
        let mut first = None;
        self.find(hash, |number| {
            first = Some(number);
            true
        });
        first
    }

    /// The number filed under `hash` of which `is_it` says yes.
    #[inline]
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (tag, number_mask) = (self.tag(hash), (1 << self.number_bits) - 1);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            let mut hits = 0_u32;
            for (place, entry) in bucket.entries.iter().enumerate() {
                hits |= u32::from((entry ^ tag) & !number_mask == 0 && *entry != 0) << place;
            }
            while hits != 0 {
                let number = (bucket.entries[hits.trailing_zeros() as usize] & number_mask) - 1;
                if is_it(number) {
                    return Some(number);
                }
                hits &= hits - 1;
            }
            if bucket.overflow == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Files `number` under `hash`. The caller has asked [`Index::has_room`].
    pub fn insert(&mut self, hash: u64, number: u32) {
        debug_assert!(self.has_room());
        let entry = self.tag(hash) | (number + 1);
        let mut at = self.home(hash);
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.entries.iter_mut().find(|place| **place == 0) {
                *place = entry;
                self.len += 1;
                return;
            }
            bucket.overflow += 1;
            at = self.after(at);
        }
    }

    /// Takes `number` out; false if it is not filed under `hash`.
    pub fn remove(&mut self, hash: u64, number: u32) -> bool {
        let entry = self.tag(hash) | (number + 1);
        let home = self.home(hash);
        let mut at = home;
        for _ in 0..self.buckets.len() {
            let bucket = &mut self.buckets[at];
            if let Some(place) = bucket.entries.iter_mut().find(|place| **place == entry) {
                *place = 0;
                self.len -= 1;
                let mut passed = home;
                while passed != at {
                    self.buckets[passed].overflow -= 1;
                    passed = self.after(passed);
                }
                return true;
            }
            if bucket.overflow == 0 {
                return false;
            }
            at = self.after(at);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few distinct hashes, so that buckets flow over and wrap round the end.
        #[test]
        fn agrees_with_a_map(capacity in 1_usize..80, ops in prop::collection::vec((any::<bool>(), 0_u32..100), 0..400)) {
            let mut index = Index::new(capacity, 100).expect("memory");
            let mut twin = BTreeMap::new();
            let hash = |number: u32| (u64::from(number % 3) * 0x7fff_ffff) << 32 | u64::from(number % 5);
            for (insert, number) in ops {
                if insert && index.has_room() && !twin.contains_key(&number) {
                    index.insert(hash(number), number);
                    twin.insert(number, ());
                } else if !insert {
                    prop_assert_eq!(index.remove(hash(number), number), twin.remove(&number).is_some());
                }
                prop_assert_eq!(index.len(), twin.len());
                for number in 0..100 {
                    let found = index.find(hash(number), |candidate| candidate == number);
                    prop_assert_eq!(found.is_some(), twin.contains_key(&number));
                }
            }
            for number in twin.into_keys() {
                prop_assert!(index.remove(hash(number), number));
            }
            prop_assert!(index.buckets.iter().all(|bucket| bucket.overflow == 0 && bucket.entries == [0; ENTRIES]));
        }
    }
}
