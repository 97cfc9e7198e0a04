//! Affinity: which backend of a service a client's latest flow went to.
//!
//! A shared atomic table of fixed capacity: any worker reads and writes, none waits. Only new flows of services that say
//! `affinity` look at it. One atomic word per client, in buckets of one cache line:
//!
//! ```text
//! 63 ... 46 | 45 .... 26 | 25 .... 0
//! 18 bits of hash  backend slot  second of its latest flow
//! ```
//!
//! In a full bucket the oldest is replaced: that client's next flow goes where the service's table says. Two clients
//! with the same bits in one bucket, of 30,000 one that is asked for, share a backend: nobody is sent to a service that is
//! not his, since a backend of another one is not taken. Seconds come round after two years; a client that was last seen
//! between one year and two ago is taken for one of now.

#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

#[cfg(loom)]
use loom::sync::atomic::AtomicU64;

use crate::by_slot::MAX_SLOTS;
use crate::mem::MemoryError;
use crate::packet::hash::{self, Key};
use crate::time::Nanos;

/// Words of a bucket: one cache line.
const WAYS: usize = 8;

/// Buckets: room for 262,144 clients in 2 MiB, taken page by page as there are some.
const BUCKETS: usize = if cfg!(loom) { 1 } else { 1 << 15 };

const SECOND_BITS: u32 = 26;
const SLOT_BITS: u32 = 20;
const TAG_SHIFT: u32 = SECOND_BITS + SLOT_BITS;
const SECONDS: u64 = (1 << SECOND_BITS) - 1;

const _: () = assert!(MAX_SLOTS <= 1 << SLOT_BITS);

/// Who is remembered: a client of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its address, or the first of its prefix, in key form ([`crate::neighbours::addr_key`]).
    pub addr: u128,
    /// VRF slot of the service.
    pub vrf: u16,
    /// Slot of the service.
    pub service: u16,
}

/// What is remembered of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Slot of the backend.
    pub backend: u32,
    /// Seconds since its latest flow began.
    pub age_s: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const FREE: Word = Word(0);

    fn new(hash: u64, backend: u32, now: Nanos) -> Word {
        Word(hash >> TAG_SHIFT << TAG_SHIFT | u64::from(backend) << SECOND_BITS | now.as_secs() & SECONDS)
    }

    fn is_of(self, hash: u64) -> bool {
        (self.0 ^ hash) >> TAG_SHIFT == 0 && self != Word::FREE
    }

    fn held(self, now: Nanos) -> Option<Held> {
        let age = now.as_secs().wrapping_sub(self.0) & SECONDS;
        (self != Word::FREE).then_some(Held {
            backend: (self.0 >> SECOND_BITS) as u32 & ((1 << SLOT_BITS) - 1),
            // Another worker's clock may be a moment ahead.
            age_s: if age > SECONDS / 2 { 0 } else { age },
        })
    }

    /// What goes first has the most.
    fn staleness(self, now: Nanos) -> u64 {
        self.held(now).map_or(u64::MAX, |held| held.age_s)
    }
}

#[cfg(not(loom))]
type Words = crate::mem::HugeSlice<AtomicU64>;
#[cfg(loom)]
type Words = Box<[AtomicU64]>;

/// The clients of a node.
#[derive(Debug)]
pub struct ClientTable {
    words: Words,
    key: Key,
}

impl ClientTable {
    /// Nobody is remembered.
    pub fn new(key: Key) -> Result<ClientTable, MemoryError> {
        ClientTable::with_buckets(BUCKETS, key)
    }

    fn with_buckets(buckets: usize, key: Key) -> Result<ClientTable, MemoryError> {
        assert!(buckets.is_power_of_two(), "they are found by a mask");
        #[cfg(not(loom))]
        let words = Words::zeroed(buckets * WAYS, false)?;
        #[cfg(loom)]
        let words = (0..buckets * WAYS).map(|_| AtomicU64::new(0)).collect();
        Ok(ClientTable { words, key })
    }

    fn hash(&self, client: Client) -> u64 {
        hash::address(self.key, client.addr, u32::from(client.vrf) << 16 | u32::from(client.service))
    }

    fn bucket(&self, hash: u64) -> &[AtomicU64] {
        let first = (hash as usize & (self.words.len() / WAYS - 1)) * WAYS;
        &self.words[first..first + WAYS]
    }

    /// What is remembered of a client. How old it may be is the service's matter.
    pub fn find(&self, client: Client, now: Nanos) -> Option<Held> {
        let hash = self.hash(client);
        let words = self.bucket(hash).iter().map(|word| Word(word.load(Relaxed)));
        // Two workers may have let it in at the same time: what was said last counts.
        words.filter(|word| word.is_of(hash)).min_by_key(|word| word.staleness(now))?.held(now)
    }

    /// A flow of a client went to a backend. Who has begun none for longest makes room.
    pub fn note(&self, client: Client, backend: u32, now: Nanos) {
        let hash = self.hash(client);
        // Its own word, of several the one that is found; else the one that goes first.
        let rank = |(_, word): &(&AtomicU64, Word)| match word.is_of(hash) {
            true => (false, word.staleness(now)),
            false => (true, !word.staleness(now)),
        };
        let words = self.bucket(hash).iter().map(|place| (place, Word(place.load(Relaxed))));
        let Some((place, old)) = words.min_by_key(rank) else { return };
        let new = Word::new(hash, backend, now);
        if old != new {
            // Whoever is faster has said as much of this client, or needs the place as well.
            let _ = place.compare_exchange(old.0, new.0, Relaxed, Relaxed);
        }
    }

    /// Forgets the clients of backends of which `is_over` is true.
    pub fn forget(&self, now: Nanos, is_over: impl Fn(u32) -> bool) {
        for place in &*self.words {
            let word = Word(place.load(Relaxed));
            if word.held(now).is_some_and(|held| is_over(held.backend)) {
                // Given to another at this moment, or sent elsewhere: not what is meant.
                let _ = place.compare_exchange(word.0, Word::FREE.0, Relaxed, Relaxed);
            }
        }
    }

    /// All that is remembered, for people.
    pub fn all(&self, now: Nanos) -> impl Iterator<Item = Held> {
        self.words.iter().filter_map(move |place| Word(place.load(Relaxed)).held(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small one, as far as that is not the matter.
    fn table() -> ClientTable {
        ClientTable::with_buckets(BUCKETS.min(64), Key::default()).expect("memory")
    }

    fn client(number: u128) -> Client {
        Client { addr: number, vrf: 0, service: 3 }
    }

    fn at(secs: u64) -> Nanos {
        Nanos::from_secs(secs)
    }

    #[cfg(not(loom))]
    mod alone {
        use std::collections::HashMap;
        use std::ops::Range;

        use proptest::prelude::*;

        use super::*;

        proptest! {
            /// The slow twin: a map, of which no client is ever displaced.
            #[test]
            fn remembers_as_a_map_does(
                steps in proptest::collection::vec((0u128..40, 0u32..1 << 20, 0u64..100, 0u8..8), 1..300)
            ) {
                let (clients, mut twin, mut now) = (table(), HashMap::new(), 1000);
                for (number, backend, pause, what) in steps {
                    now += pause;
                    match what {
                        0 => {
                            clients.forget(at(now), |held| held % 2 == backend % 2);
                            twin.retain(|_, (held, _): &mut (u32, u64)| *held % 2 != backend % 2);
                        }
                        1..4 => {
                            clients.note(client(number), backend, at(now));
                            twin.insert(number, (backend, now));
                        }
                        _ => {
                            let known = twin.get(&number);
                            let known = known.map(|(backend, then)| Held { backend: *backend, age_s: now - then });
                            prop_assert_eq!(clients.find(client(number), at(now)), known);
                        }
                    }
                }
                prop_assert_eq!(clients.all(at(now)).count(), twin.len());
            }
        }

        #[test]
        fn services_and_vrfs_are_apart() {
            let clients = table();
            clients.note(client(1), 7, at(1));
            assert_eq!(clients.find(Client { service: 4, ..client(1) }, at(1)), None);
            assert_eq!(clients.find(Client { vrf: 1, ..client(1) }, at(1)), None);
            assert_eq!(clients.find(client(1), at(3)), Some(Held { backend: 7, age_s: 2 }));
            // A worker whose clock is behind.
            assert_eq!(clients.find(client(1), at(0)), Some(Held { backend: 7, age_s: 0 }));
        }

        /// A flood displaces the oldest, and is bounded.
        #[test]
        fn the_oldest_makes_room() {
            let clients = ClientTable::new(Key::default()).expect("memory");
            let capacity = clients.words.len();
            for number in 0..4 * capacity {
                clients.note(client(number as u128), 7, at(number as u64 / 1000));
            }
            let now = at(4 * capacity as u64 / 1000);
            assert!(clients.all(now).count() > capacity * 99 / 100);
            let found = |range: Range<usize>| {
                range.filter(|number| clients.find(client(*number as u128), now).is_some()).count()
            };
            let newest = found(4 * capacity - capacity / 4..4 * capacity);
            assert!(newest > capacity / 4 * 98 / 100, "{newest}");
            // Nobody else is taken for one of those that are there, but for one in tens of thousands.
            let strangers = found(5 * capacity..6 * capacity);
            assert!((1..40).contains(&strangers), "{strangers}; 8 are expected");
        }

        #[test]
        fn seconds_come_round() {
            let clients = table();
            clients.note(client(1), 7, at(SECONDS - 1));
            assert_eq!(clients.find(client(1), at(SECONDS + 4)), Some(Held { backend: 7, age_s: 5 }));
        }
    }

    #[cfg(loom)]
    mod models {
        use loom::sync::Arc;
        use loom::thread;

        use super::*;

        /// Workers that speak of one client at once: what one of them has said is found, whole.
        #[test]
        fn two_notes_of_one_client() {
            loom::model(|| {
                let clients = Arc::new(table());
                let other = Arc::clone(&clients);
                let thread = thread::spawn(move || other.note(client(1), 7, at(5)));
                clients.note(client(1), 8, at(5));
                thread.join().expect("no panic");
                let found = clients.find(client(1), at(5)).expect("one of them was first");
                assert!([7, 8].contains(&found.backend) && found.age_s == 0);
                assert_eq!(clients.all(at(5)).count(), 1);
            });
        }

        /// A client that comes to another backend while its old one is given up is not forgotten with that.
        #[test]
        fn a_note_meets_a_sweep() {
            loom::model(|| {
                let clients = Arc::new(table());
                clients.note(client(1), 7, at(5));
                let other = Arc::clone(&clients);
                let thread = thread::spawn(move || other.forget(at(6), |backend| backend == 7));
                clients.note(client(1), 8, at(6));
                thread.join().expect("no panic");
                // The note may have lost to the sweep: then nobody is remembered, and the hash decides.
                let found = clients.find(client(1), at(6));
                assert!(found.is_none_or(|found| found.backend == 8), "{found:?}");
            });
        }
    }
}
