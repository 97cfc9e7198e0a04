//! The directory of flows: which worker has the session of a tuple. Shared by all workers; a node with one has none.
//!
//! A packet that its worker knows no session for is looked up here. What is not found either is claimed for the worker
//! that is to have it, so that all packets of a flow go to one worker whatever queues they come in by, and no flow is
//! decided twice. A key stands for both directions of a tuple: two hosts that begin the same connection at once meet.
//!
//! One atomic word per key, in buckets of one cache line; a key has two buckets:
//!
//! ```text
//! 63 ........ 24 | 23 ....... 10 | 9 .. 2 | 1 .. 0
//! 40 bits of hash  second of claim  worker   free, tentative, claimed, held
//! ```
//!
//! Two workers that claim one key at once put their words into different places. A word therefore begins as tentative,
//! and its writer looks for others of its key before it counts: a word that counts wins, among tentative ones the one
//! in front. A claim that nothing has come of (its packet was lost) is forgotten after [`CLAIM_SECONDS`].
//!
//! With 40 bits and the bucket a false match needs 10^12 keys; what it would do is send a flow to a worker that takes
//! it as well as any.

#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use crate::mem::MemoryError;
use crate::time::Nanos;

/// Words of a bucket: one cache line.
const SLOTS: usize = 8;

/// Room: words per key. The emptier of two buckets takes a key; the first that finds both full comes at 0.73 of the room
/// (measured, 65,536 words).
const ROOM: (usize, usize) = (3, 2);

/// How long a claim waits for its session: packets are in a queue between two workers for milliseconds.
pub const CLAIM_SECONDS: u64 = 8;

/// How often a claim looks whether another one in its way has gone. Another worker needs nanoseconds for that, unless
/// the kernel has stopped it; then the packet is given up.
const PATIENCE: usize = if cfg!(loom) { 3 } else { 1_000 };

const TENTATIVE: u64 = 1;
const CLAIMED: u64 = 2;
const HELD: u64 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

impl Word {
    const FREE: Word = Word(0);
    const SECONDS: u64 = 0x3fff;

    fn new(hash: u64, owner: u8, state: u64, now: Nanos) -> Word {
        Word(hash & !0xff_ffff | (seconds(now) & Word::SECONDS) << 10 | u64::from(owner) << 2 | state)
    }

    #[inline(always)]
    fn is_of(self, hash: u64) -> bool {
        (self.0 ^ hash) >> 24 == 0 && self.state() != 0
    }

    fn state(self) -> u64 {
        self.0 & 3
    }

    fn owner(self) -> u8 {
        (self.0 >> 2) as u8
    }

    fn with(self, state: u64) -> Word {
        Word(self.0 & !3 | state)
    }

    /// Seconds since it was claimed.
    fn age(self, now: Nanos) -> u64 {
        let age = seconds(now).wrapping_sub(self.0 >> 10) & Word::SECONDS;
        // Another worker's clock may be a moment ahead.
        if age > Word::SECONDS / 2 { 0 } else { age }
    }
}

fn seconds(now: Nanos) -> u64 {
    now.0 / 1_000_000_000
}

/// No room for another key, or another claim stood in the way for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Why a key cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHeld {
    /// Another worker has it.
    Taken,
    /// As for a claim.
    Full,
}

#[cfg(not(loom))]
type Words = crate::mem::HugeSlice<AtomicU64>;
#[cfg(loom)]
type Words = Box<[AtomicU64]>;

/// The directory of a node.
#[derive(Debug)]
pub struct Directory {
    words: Words,
    buckets: usize,
}

impl Directory {
    /// Room for so many keys.
    pub fn new(keys: usize) -> Result<Directory, MemoryError> {
        let buckets = Self::buckets_for(keys);
        #[cfg(not(loom))]
        let words = Words::zeroed(buckets * SLOTS, false)?;
        #[cfg(loom)]
        let words = (0..buckets * SLOTS).map(|_| AtomicU64::new(0)).collect();
        Ok(Directory { words, buckets })
    }

    fn buckets_for(keys: usize) -> usize {
        (keys * ROOM.0 / ROOM.1).div_ceil(SLOTS).next_power_of_two().clamp(2, 1 << 24)
    }

    /// Bytes that a directory of so many keys takes.
    pub fn bytes_for(keys: usize) -> usize {
        Self::buckets_for(keys) * SLOTS * size_of::<AtomicU64>()
    }

    /// The two buckets of a key, front one first: where its words begin.
    #[inline(always)]
    fn buckets(&self, hash: u64) -> [usize; 2] {
        let mask = self.buckets - 1;
        let one = hash as usize & mask;
        // Odd: never the same bucket.
        let other = one ^ ((hash >> 24).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 | 1) as usize & mask;
        [one.min(other) * SLOTS, one.max(other) * SLOTS]
    }

    /// The words that a key may be in, in the order that decides between claims.
    #[inline(always)]
    fn places(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        self.buckets(hash).into_iter().flat_map(|first| first..first + SLOTS)
    }

    /// Fetches the lines of the key.
    #[cfg(not(loom))]
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        for first in self.buckets(hash) {
            crate::mem::prefetch::prefetch(&self.words, first);
        }
    }

    /// The worker that has the key.
    #[inline]
    pub fn find(&self, hash: u64) -> Option<u8> {
        self.word(hash).map(|(_, word)| word.owner())
    }

    /// The word of a key that counts.
    #[inline(always)]
    fn word(&self, hash: u64) -> Option<(usize, Word)> {
        self.places(hash)
            .map(|at| (at, Word(self.words[at].load(Acquire))))
            .find(|(_, word)| word.is_of(hash) && word.state() != TENTATIVE)
    }

    /// The worker that has the key from now on: `owner`, unless another has it already.
    pub fn claim(&self, hash: u64, owner: u8, now: Nanos) -> Result<u8, Full> {
        let mine = Word::new(hash, owner, TENTATIVE, now);
        let mut at = None;
        for _ in 0..PATIENCE {
            let Some(place) = at else {
                if let Some((_, word)) = self.word(hash) {
                    return Ok(word.owner());
                }
                let free = self.free_place(hash).ok_or(Full)?;
                if self.words[free].compare_exchange(0, mine.0, SeqCst, Relaxed).is_ok() {
                    at = Some(free);
                }
                continue;
            };
            match self.rival(hash, place) {
                None => {
                    self.words[place].store(mine.with(CLAIMED).0, SeqCst);
                    return Ok(owner);
                }
                // Ours is in front: the other will see that.
                Some((other, word)) if word.state() == TENTATIVE && place < other => pause(),
                Some(_) => {
                    self.words[place].store(Word::FREE.0, SeqCst);
                    at = None;
                    pause();
                }
            }
        }
        if let Some(place) = at {
            self.words[place].store(Word::FREE.0, SeqCst);
        }
        Err(Full)
    }

    /// A free place in the emptier of the two buckets, so that they fill evenly.
    fn free_place(&self, hash: u64) -> Option<usize> {
        let free = |first: &usize| {
            let is_free = |at: &usize| self.words[*at].load(Relaxed) == 0;
            let places = *first..*first + SLOTS;
            places.clone().find(is_free).map(|at| (places.filter(is_free).count(), at))
        };
        self.buckets(hash).iter().filter_map(free).max_by_key(|(count, _)| *count).map(|(_, at)| at)
    }

    /// Another word of the key than the one in `place`; one that counts before one that does not.
    fn rival(&self, hash: u64, place: usize) -> Option<(usize, Word)> {
        self.places(hash)
            .filter(|at| *at != place)
            .map(|at| (at, Word(self.words[at].load(SeqCst))))
            .filter(|(_, word)| word.is_of(hash))
            .max_by_key(|(at, word)| (word.state() != TENTATIVE, std::cmp::Reverse(*at)))
    }

    /// A session of `owner` has the key, which may have been claimed before. False: another of its sessions had it
    /// already.
    pub fn hold(&self, hash: u64, owner: u8, now: Nanos) -> Result<bool, NotHeld> {
        for _ in 0..PATIENCE {
            match self.word(hash) {
                Some((_, word)) if word.owner() != owner => return Err(NotHeld::Taken),
                Some((_, word)) if word.state() == HELD => return Ok(false),
                Some((at, word)) => {
                    let held = word.with(HELD).0;
                    if self.words[at].compare_exchange(word.0, held, SeqCst, Relaxed).is_ok() {
                        return Ok(true);
                    }
                }
                None => {
                    self.claim(hash, owner, now).map_err(|Full| NotHeld::Full)?;
                }
            }
        }
        Err(NotHeld::Full)
    }

    /// `owner` has no session of the key any more.
    pub fn release(&self, hash: u64, owner: u8) {
        self.free(hash, owner, |_| true);
    }

    /// Nothing came of a claim for `owner`; what a session holds stays.
    pub fn disclaim(&self, hash: u64, owner: u8) {
        self.free(hash, owner, |word| word.state() == CLAIMED);
    }

    fn free(&self, hash: u64, owner: u8, may_go: impl Fn(Word) -> bool) {
        while let Some((at, word)) =
            self.word(hash).filter(|(_, word)| word.owner() == owner && may_go(*word))
        {
            if self.words[at].compare_exchange(word.0, Word::FREE.0, SeqCst, Relaxed).is_ok() {
                return;
            }
        }
    }

    /// How many words it has, free ones too: what [`Directory::sweep`] goes through. Keys find no room well before as
    /// many are in it.
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// Forgets old claims among `count` words from `from` on; where to go on next time.
    pub fn sweep(&self, from: usize, count: usize, now: Nanos) -> usize {
        let end = (from + count).min(self.words.len());
        for word in &self.words[from.min(end)..end] {
            let seen = Word(word.load(Relaxed));
            if seen.0 == Word::FREE.0 {
                continue; // As most are.
            }
            if seen.state() == CLAIMED && seen.age(now) > CLAIM_SECONDS {
                // Meanwhile held, or gone: then it is not ours to forget.
                let _ = word.compare_exchange(seen.0, Word::FREE.0, SeqCst, Relaxed);
            }
        }
        if end == self.words.len() { 0 } else { end }
    }
}

fn pause() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}

#[cfg(test)]
mod tests {
    #[cfg(not(loom))]
    mod behaviour {
        use std::collections::HashMap;

        use proptest::prelude::*;

        use super::super::*;

        fn at(seconds: u64) -> Nanos {
            Nanos::from_secs(seconds)
        }

        /// Any hash, of few different ones.
        fn hash_of(key: u64) -> u64 {
            (key + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }

        #[derive(Clone, Debug)]
        enum Op {
            Claim(u64, u8),
            Hold(u64, u8),
            Release(u64, u8),
            Disclaim(u64, u8),
            Pass(u64),
        }

        fn op() -> impl Strategy<Value = Op> {
            let (key, owner) = (0u64..12, 0u8..3);
            prop_oneof![
                (key.clone(), owner.clone()).prop_map(|(key, owner)| Op::Claim(key, owner)),
                (key.clone(), owner.clone()).prop_map(|(key, owner)| Op::Hold(key, owner)),
                (key.clone(), owner.clone()).prop_map(|(key, owner)| Op::Release(key, owner)),
                (key, owner).prop_map(|(key, owner)| Op::Disclaim(key, owner)),
                (0u64..12).prop_map(Op::Pass),
            ]
        }

        proptest! {
            /// Against a map of who has what since when, and whether it is held.
            #[test]
            fn is_a_map(ops in proptest::collection::vec(op(), 1..200)) {
                let directory = Directory::new(64).expect("memory");
                let mut twin: HashMap<u64, (u8, bool, u64)> = HashMap::new();
                let mut now = 100;
                for op in ops {
                    match op {
                        Op::Claim(key, owner) => {
                            let has = directory.claim(hash_of(key), owner, at(now)).expect("room");
                            prop_assert_eq!(has, twin.entry(key).or_insert((owner, false, now)).0);
                        }
                        Op::Hold(key, owner) => {
                            let held = directory.hold(hash_of(key), owner, at(now));
                            let entry = twin.entry(key).or_insert((owner, false, now));
                            let expected = if entry.0 == owner { Ok(!entry.1) } else { Err(NotHeld::Taken) };
                            prop_assert_eq!(held, expected);
                            entry.1 |= entry.0 == owner;
                        }
                        Op::Release(key, owner) => {
                            directory.release(hash_of(key), owner);
                            if twin.get(&key).is_some_and(|entry| entry.0 == owner) {
                                twin.remove(&key);
                            }
                        }
                        Op::Disclaim(key, owner) => {
                            directory.disclaim(hash_of(key), owner);
                            if twin.get(&key).is_some_and(|entry| entry.0 == owner && !entry.1) {
                                twin.remove(&key);
                            }
                        }
                        Op::Pass(seconds) => {
                            now += seconds;
                            prop_assert_eq!(directory.sweep(0, usize::MAX / 2, at(now)), 0);
                            twin.retain(|_, (_, held, since)| *held || now - *since <= CLAIM_SECONDS);
                        }
                    }
                    for key in 0..12 {
                        prop_assert_eq!(directory.find(hash_of(key)), twin.get(&key).map(|entry| entry.0));
                    }
                }
            }
        }

        /// At the load it is made for: two thirds of a power of two.
        #[test]
        fn takes_as_many_keys_as_it_was_made_for() {
            const KEYS: u64 = (1 << 17) / 3;
            let directory = Directory::new(KEYS as usize).expect("memory");
            let hash =
                |key: u64| crate::packet::hash::address(crate::packet::hash::Key::default(), key.into(), 0);
            for key in 0..KEYS {
                assert_eq!(directory.claim(hash(key), key as u8, at(1)), Ok(key as u8), "{key}");
            }
            assert!((0..KEYS).all(|key| directory.find(hash(key)) == Some(key as u8)));
        }

        #[test]
        fn refuses_what_it_has_no_room_for() {
            let directory = Directory::new(1).expect("memory");
            let taken = (0..100).filter(|key| directory.claim(hash_of(*key), 1, at(1)).is_ok()).count();
            assert_eq!(taken, directory.words());
        }

        /// The clocks of two workers differ by the length of a turn.
        #[test]
        fn a_claim_of_the_next_second_is_not_old() {
            let directory = Directory::new(64).expect("memory");
            directory.claim(hash_of(1), 1, at(11)).expect("room");
            directory.sweep(0, usize::MAX / 2, at(10));
            assert_eq!(directory.find(hash_of(1)), Some(1));
        }

        /// Threads that claim the same keys agree on who has them.
        #[test]
        fn all_agree() {
            const KEYS: u64 = 20_000;
            let directory = Directory::new(KEYS as usize).expect("memory");
            let owners: Vec<Vec<u8>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4u8)
                    .map(|owner| {
                        let directory = &directory;
                        scope.spawn(move || {
                            (0..KEYS)
                                .map(|key| {
                                    let claim = || directory.claim(hash_of(key), owner, at(1)).ok();
                                    // Busy: the others are not on a CPU.
                                    let wait = || {
                                        std::thread::yield_now();
                                        None
                                    };
                                    (0..10_000).find_map(|_| claim().or_else(wait)).expect("there is room")
                                })
                                .collect()
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            assert!(owners.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }

    #[cfg(loom)]
    mod models {
        use loom::sync::Arc;
        use loom::thread;

        use super::super::*;

        const HASH: u64 = 0x1234_5678_9000_0000;

        /// Both get an answer, or one gives up; two answers are the same.
        #[test]
        fn two_claims_of_one_key_agree() {
            loom::model(|| {
                let directory = Arc::new(Directory::new(1).expect("memory"));
                let other = Arc::clone(&directory);
                let thread = thread::spawn(move || other.claim(HASH, 1, Nanos(0)));
                let here = directory.claim(HASH, 2, Nanos(0));
                let there = thread.join().expect("no panic");
                if let (Ok(here), Ok(there)) = (here, there) {
                    assert_eq!(here, there);
                }
                if let Some(owner) = here.or(there).ok() {
                    assert_eq!(directory.find(HASH), Some(owner));
                }
            });
        }

        /// A key that is released while another claims it has one owner at the end, or none.
        #[test]
        fn a_claim_meets_a_release() {
            loom::model(|| {
                let directory = Arc::new(Directory::new(1).expect("memory"));
                directory.hold(HASH, 1, Nanos(0)).expect("free");
                let other = Arc::clone(&directory);
                let thread = thread::spawn(move || other.release(HASH, 1));
                let claimed = directory.claim(HASH, 2, Nanos(0));
                thread.join().expect("no panic");
                match claimed {
                    Ok(2) => assert_eq!(directory.find(HASH), Some(2)),
                    Ok(owner) => assert_eq!((owner, directory.find(HASH)), (1, None)),
                    Err(Full) => panic!("nobody stood in the way"),
                }
            });
        }
    }
}
