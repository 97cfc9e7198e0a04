//! How many sessions there are of something: of an inside host, of a mapping and a remote address.
//!
//! Fixed in size: as many keys as there are sessions, since each counted key has one at least.

use zerocopy::FromZeros;

use super::index::{Handle, Index};
use crate::mem::{HugeSlice, MemoryError};
use crate::packet::hash::{self, Key};

#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Entry {
    what: u128,
    of: u32,
    /// 0: free.
    count: u32,
    /// Of a free entry: the next free one, or 0.
    next: u32,
    zero: u32,
}

/// Counts by key.
#[derive(Debug)]
pub struct Counted {
    index: Index,
    /// From 1 on.
    entries: HugeSlice<Entry>,
    /// First free entry that was used before, or 0.
    free: u32,
    /// Entries used so far.
    used: u32,
    key: Key,
}

impl Counted {
    /// For `capacity` keys; takes no memory until they are there.
    pub fn new(capacity: u32, key: Key) -> Result<Counted, MemoryError> {
        Ok(Counted {
            index: Index::new(capacity as usize, false)?,
            entries: HugeSlice::zeroed(capacity as usize + 1, false)?,
            free: 0,
            used: 0,
            key,
        })
    }

    /// Bytes that `capacity` keys take when they are there.
    pub fn bytes_for(capacity: u32) -> usize {
        Index::bytes_for(capacity as usize) + (capacity as usize + 1) * size_of::<Entry>()
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + size_of_val(&*self.entries)
    }

    fn hash(&self, what: u128, of: u32) -> u64 {
        hash::address(self.key, what, of)
    }

    fn find(&self, what: u128, of: u32) -> Option<u32> {
        let is = |handle: Handle| {
            let entry = &self.entries[handle.session() as usize];
            entry.what == what && entry.of == of && entry.count > 0
        };
        let handle = self.index.find(self.hash(what, of), is);
        handle.is_some().then(|| handle.session())
    }

    /// How many there are.
    pub fn count(&self, what: u128, of: u32) -> u32 {
        self.find(what, of).map_or(0, |at| self.entries[at as usize].count)
    }

    /// One more. False: there is no room, and nothing is counted.
    #[must_use]
    pub fn add(&mut self, what: u128, of: u32) -> bool {
        if let Some(at) = self.find(what, of) {
            self.entries[at as usize].count += 1;
            return true;
        }
        let (at, next_free) = match self.free {
            0 if self.used as usize + 1 < self.entries.len() => (self.used + 1, 0),
            0 => return false,
            free => (free, self.entries[free as usize].next),
        };
        if !self.index.insert(self.hash(what, of), Handle::new(at, 0)) {
            return false;
        }
        if at > self.used {
            self.used = at;
        } else {
            self.free = next_free;
        }
        self.entries[at as usize] = Entry { what, of, count: 1, next: 0, zero: 0 };
        true
    }

    /// One less.
    pub fn remove(&mut self, what: u128, of: u32) {
        let Some(at) = self.find(what, of) else { return };
        let entry = &mut self.entries[at as usize];
        entry.count -= 1;
        if entry.count == 0 {
            entry.next = self.free;
            self.free = at;
            self.index.remove(self.hash(what, of), Handle::new(at, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_as_a_map_does(steps in proptest::collection::vec((any::<bool>(), 0u128..12, 0u32..3), 0..300)) {
            let mut counted = Counted::new(16, Key::default()).expect("memory");
            let mut twin: HashMap<(u128, u32), u32> = HashMap::new();
            for (more, what, of) in steps {
                let key = (what, of);
                if more {
                    let is_room = twin.len() < 16 || twin.contains_key(&key);
                    prop_assert_eq!(counted.add(what, of), is_room);
                    if is_room {
                        *twin.entry(key).or_default() += 1;
                    }
                } else {
                    counted.remove(what, of);
                    if let Some(count) = twin.get_mut(&key) {
                        *count -= 1;
                        if *count == 0 {
                            twin.remove(&key);
                        }
                    }
                }
                for what in 0..12 {
                    for of in 0..3 {
                        prop_assert_eq!(counted.count(what, of), twin.get(&(what, of)).copied().unwrap_or(0));
                    }
                }
            }
        }
    }
}
