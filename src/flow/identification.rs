//! Identifications of IPv4 datagrams that leave with a source of the gateway's (RFC 7857 section 10, RFC 6864 section
//! 5.3.1: as if the gateway had sent them). They are made a block at a time, by code that vectorises; giving one is a load.
//!
//! The 65,536 numbers are dealt out to the workers once and for all, so that two of them never give the same one,
//! however far each has come. A worker gives its numbers in two halves by turns, each in an order that is another one
//! each time and follows from the key, so that the numbers somebody sees say little of the next ones (it is no cipher).
//! A number comes again after half of all at the earliest, and 65,536 from the start of a first half on (divided by the
//! workers, their number rounded up to a power of two) are all different. Written down:
//!
//! ```text
//! share = 16 bits less those that tell the workers apart
//! worker `me` has the numbers deal(me << share | x), x of `share` bits
//! in turn t it gives those with x = (t's lowest bit) << (share - 1) | shuffle(n), n = 0, 1, ... of share - 1 bits
//! deal shuffles 16 bits by the key, shuffle by the key, `me` and t. Both, four times, with other odd factors:
//!   x = x * factor + summand modulo 2 to the bits; x ^= x >> (bits / 2)
//! ```

use std::mem::size_of;

use crate::packet::hash::{self, Key};

/// Numbers that are made at once: not more than half of the least share has.
const BLOCK: usize = 64;
/// With fewer the tests find steps of one size too often.
const ROUNDS: usize = 4;
/// The most workers that a number of one byte tells apart; a config has fewer.
const WORKERS: usize = 256;
// A turn ends with a block.
const _: () = assert!((65_536 / WORKERS / 2).is_multiple_of(BLOCK));
/// Sets what is derived here apart from what else is derived from the key.
const SALT: u32 = 0x1d_0000;

/// The identifications of one worker.
#[derive(Debug)]
pub struct Identifications {
    /// To be given next.
    block: [u16; BLOCK],
    /// How many of the block have been given.
    given: usize,
    /// Above the bits of a turn: the worker and the half.
    above: u16,
    /// Numbers that this turn has made.
    made: u32,
    turn: u64,
    shuffle: Shuffle,
    deal: Shuffle,
    me: u64,
    share: u32,
    key: Key,
}

/// One to one among the numbers of some bits.
#[derive(Debug, Clone, Copy)]
struct Shuffle {
    rounds: [(u16, u16); ROUNDS],
    bits: u32,
}

impl Shuffle {
    fn new(key: Key, number: u128, bits: u32) -> Shuffle {
        let mut words = stream(key, number);
        Shuffle { rounds: std::array::from_fn(|_| (words() | 1, words())), bits }
    }

    #[inline(always)]
    fn of(&self, mut x: u16) -> u16 {
        let (mask, half) = ((1u32 << self.bits).wrapping_sub(1) as u16, self.bits / 2);
        for (factor, summand) in self.rounds {
            x = x.wrapping_mul(factor).wrapping_add(summand) & mask;
            x ^= x >> half;
        }
        x
    }
}

impl Identifications {
    /// Those of worker `me` of `all`, 256 at most.
    pub fn new(key: Key, me: u8, all: usize) -> Identifications {
        debug_assert!(usize::from(me) < all, "worker {me} of {all}");
        let share = 16 - all.clamp(1, WORKERS).next_power_of_two().ilog2();
        let deal = Shuffle::new(key, u128::MAX, 16);
        let (shuffle, me) = (deal, me.into());
        let made = 1 << (share - 1);
        Identifications {
            block: [0; BLOCK],
            given: BLOCK,
            above: 0,
            made,
            turn: 0,
            shuffle,
            deal,
            me,
            share,
            key,
        }
    }

    /// Another one than those before.
    #[inline]
    pub fn draw(&mut self) -> u16 {
        if self.given >= BLOCK {
            self.make();
        }
        let number = self.block[self.given % BLOCK];
        self.given += 1;
        number
    }

    #[inline(never)]
    fn make(&mut self) {
        if self.made == 1 << (self.share - 1) {
            self.begin_turn();
        }
        let from = self.made as u16;
        for (n, number) in self.block.iter_mut().enumerate() {
            *number = self.deal.of(self.above | self.shuffle.of(from + n as u16));
        }
        self.made += BLOCK as u32;
        self.given = 0;
    }

    #[cold]
    fn begin_turn(&mut self) {
        let half = self.share - 1;
        self.above = ((self.me << 1 | self.turn & 1) << half) as u16;
        self.shuffle = Shuffle::new(self.key, u128::from(self.me) << 64 | u128::from(self.turn), half);
        self.turn += 1;
        self.made = 0;
    }
}

/// Words of the key.
fn stream(key: Key, number: u128) -> impl FnMut() -> u16 {
    let mut taken = 0;
    let mut words = 0;
    move || {
        const EACH: u32 = (size_of::<u64>() / size_of::<u16>()) as u32;
        if taken % EACH == 0 {
            words = hash::address(key, number, SALT | (taken / EACH));
        }
        let word = (words >> (taken % EACH * u16::BITS)) as u16;
        taken += 1;
        word
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn take(ids: &mut Identifications, count: usize) -> Vec<u16> {
        (0..count).map(|_| ids.draw()).collect()
    }

    #[test]
    fn none_comes_again_before_half_of_all_have_been_given() {
        for all in [1, 2, 3, 7, 100, 256] {
            for me in [0, all - 1] {
                let mut ids = Identifications::new(Key::default(), me as u8, all);
                let half = 1 << (ids.share - 1);
                let given = take(&mut ids, 6 * half);
                let mut last_at = vec![None; 65_536];
                for (at, id) in given.iter().enumerate() {
                    let before = last_at[usize::from(*id)].replace(at);
                    assert!(before.is_none_or(|before| at - before > half), "{id} after {:?}", before);
                }
                for round in given.chunks(2 * half) {
                    assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), 2 * half, "{me} of {all}");
                }
            }
        }
    }

    #[test]
    fn workers_have_equal_shares_and_no_number_in_common() {
        for all in [1_usize, 2, 3, 4, 16, 255, 256] {
            let mut owner = vec![None; 65_536];
            let share = 65_536 / all.next_power_of_two();
            for me in 0..all {
                let mut ids = Identifications::new(Key::default(), me as u8, all);
                // Some have come further than others.
                for id in take(&mut ids, share + me % 3 * 100) {
                    let of = owner[usize::from(id)].get_or_insert(me);
                    assert_eq!(*of, me, "{id}, {all} workers");
                }
            }
            assert_eq!(owner.iter().flatten().count(), share * all, "{all} workers");
        }
    }

    #[test]
    fn the_order_is_no_row_and_no_other_turns_or_keys() {
        let mut ids = Identifications::new(Key::default(), 0, 1);
        let turns: Vec<Vec<u16>> = (0..4).map(|_| take(&mut ids, 32_768)).collect();
        let other = take(&mut Identifications::new(Key(1, 2), 0, 1), 32_768);
        // Steps of any one size are as rare as chance has it: 32,767 steps, some 65,536 sizes.
        for turn in turns.iter().chain([&other]) {
            let mut steps = vec![0; 65_536];
            turn.windows(2).for_each(|pair| steps[usize::from(pair[1].wrapping_sub(pair[0]))] += 1);
            let most = steps.iter().max().expect("there are");
            assert!(*most < 64, "one step is taken {most} times");
        }
        // So it is for those who have few.
        for all in [64, 256] {
            let few = take(&mut Identifications::new(Key::default(), 3, all), 65_536 / all);
            let mut steps = std::collections::BTreeMap::new();
            few.windows(2).for_each(|pair| *steps.entry(pair[1].wrapping_sub(pair[0])).or_insert(0) += 1);
            assert!(steps.values().all(|times| *times < 8), "{all} workers: {steps:?}");
        }
        // Of two random orders of one set of 32,768 about one place is the same.
        for (one, two) in [(&turns[0], &turns[2]), (&turns[1], &turns[3]), (&turns[0], &other)] {
            let same = one.iter().zip(two).filter(|(one, two)| one == two).count();
            assert!(same < 12, "{same} in the same place");
        }
    }

    /// The head of this file, written down once more.
    #[test]
    fn as_written_down() {
        let shuffled = |rounds: &[(u16, u16)], bits: u32, mut x: u32| {
            for (factor, summand) in rounds {
                x = (x * u32::from(*factor) + u32::from(*summand)) % (1 << bits);
                x ^= x >> (bits / 2);
            }
            x
        };
        let mut ids = Identifications::new(Key(3, 4), 1, 3);
        let mut orders = BTreeSet::new();
        for turn in 0..3 {
            let given = take(&mut ids, 8192);
            assert!(orders.insert(ids.shuffle.rounds), "another order in each turn");
            let twin: Vec<u16> = (0..8192)
                .map(|n| 1 << 14 | (turn % 2) << 13 | shuffled(&ids.shuffle.rounds, 13, n))
                .map(|x| shuffled(&ids.deal.rounds, 16, x) as u16)
                .collect();
            assert_eq!(given, twin);
        }
        assert!(ids.deal.rounds.iter().all(|(factor, _)| factor % 2 == 1));
    }
}
