//! How many TCP connections are opening to each destination, on the whole node: a shared table of fixed size whose
//! value is one atomic word.
//!
//! There are no keys. A destination counts in two words of different rows, by a keyed hash; it has as many connections
//! as the smaller of the two says, or fewer. So the table cannot fill up and a flood of addresses makes it no larger; a
//! destination is taken for busier than it is only if both its words are shared with busy ones: with a thousand
//! destinations under attack, one in 4,000 of the others.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::mem::{HugeSlice, MemoryError};
use crate::neighbours::addr_key;
use crate::packet::hash::{self, Key};

/// Words of a row, as a power of two.
const ROW_BITS: u32 = 16;
const ROW: usize = 1 << ROW_BITS;

/// The counts of a node.
#[derive(Debug)]
pub struct HalfOpen {
    words: HugeSlice<AtomicU32>,
    key: Key,
}

impl HalfOpen {
    /// Nothing opens.
    pub fn new(key: Key) -> Result<HalfOpen, MemoryError> {
        Ok(HalfOpen { words: HugeSlice::zeroed(2 * ROW, false)?, key })
    }

    /// The words of a destination, in the VRF that it is in.
    fn words(&self, addr: IpAddr, vrf: u16) -> [&AtomicU32; 2] {
        let hash = hash::address(self.key, addr_key(addr), vrf.into());
        let (one, other) = ((hash >> 32) as usize % ROW, hash as usize % ROW);
        [&self.words[one], &self.words[ROW + other]]
    }

    /// Connections that open to the destination, at most.
    pub fn count(&self, addr: IpAddr, vrf: u16) -> u32 {
        self.words(addr, vrf).map(|word| word.load(Relaxed)).into_iter().min().unwrap_or(0)
    }

    /// One more, unless there are `limit`. False: there are, and nothing is counted. Workers that count at the same
    /// moment may exceed it by one each.
    #[must_use]
    pub fn add(&self, addr: IpAddr, vrf: u16, limit: u32) -> bool {
        let before = self.words(addr, vrf).map(|word| word.fetch_add(1, Relaxed));
        let is_room = before.into_iter().min().is_some_and(|least| least < limit);
        if !is_room {
            self.remove(addr, vrf);
        }
        is_room
    }

    /// One that was counted does not open any more.
    pub fn remove(&self, addr: IpAddr, vrf: u16) {
        for word in self.words(addr, vrf) {
            word.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn table() -> HalfOpen {
        HalfOpen::new(Key::default()).expect("memory")
    }

    fn host(number: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + number).into())
    }

    proptest! {
        #[test]
        fn counts_as_a_map_does(steps in proptest::collection::vec((0u32..20, any::<bool>()), 1..300)) {
            let counts = table();
            let mut twin: HashMap<u32, u32> = HashMap::new();
            for (destination, more) in steps {
                let count = twin.entry(destination).or_default();
                if more {
                    prop_assert_eq!(counts.add(host(destination), 3, 5), *count < 5);
                    *count = (*count + 1).min(5);
                } else if *count > 0 {
                    counts.remove(host(destination), 3);
                    *count -= 1;
                }
                prop_assert_eq!(counts.count(host(destination), 3), *count);
            }
        }
    }

    #[test]
    fn others_are_hardly_ever_taken_for_the_attacked() {
        let counts = table();
        for attacked in 0..1000 {
            (0..100).for_each(|_| assert!(counts.add(host(attacked), 0, u32::MAX)));
        }
        let wronged = (1000..101_000).filter(|other| counts.count(host(*other), 0) >= 100).count();
        assert!(wronged < 60, "{wronged} of 100,000; 23 are expected");
    }

    #[test]
    fn workers_together_keep_the_limit() {
        let counts = table();
        let counted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| counts.add(host(7), 0, 100)).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        // Those who come at once for the last place may all get it, or all be sent away.
        assert!((97..=103).contains(&counted), "{counted}");
        assert_eq!(counts.count(host(7), 0) as usize, counted);
    }
}
