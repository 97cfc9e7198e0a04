//! Identifications of IPv4 datagrams that leave with a source of the gateway's (RFC 7857 section 10, RFC 6864 section
//! 5.3.1: as if the gateway had sent them). One costs five loads from tables that stay in the first-level cache.
//!
//! The 65,536 numbers are dealt out to the workers once and for all, so that two of them never give the same one,
//! however far each has come. A worker gives its numbers in two halves by turns, each in an order that is another one
//! each time and that nobody can tell without the key: a number comes again after half of all at the earliest, and
//! 65,536 from the start of a first half on (divided by the workers) are all different. Written down:
//!
//! ```text
//! dealt[place], 256 words: lower byte = a permutation of 0..256, upper byte = any; both of the key
//! number(class, place) = dealt[place] ^ class << 8                  class, place < 256
//! worker `me` of `all` has the classes from me * 256 / all to below (me + 1) * 256 / all; they are `classes`
//! in turn t it gives the places of t's lowest bit << 7 | low, low < 128; the n-th of classes * 128:
//!   class = n >> 7, low = n & 127
//!   twice: class += a[low] modulo classes, low ^= b[class]          four tables, of the key, `me` and t
//! ```

use std::mem::size_of;

use crate::packet::hash::{self, Key};

/// Numbers of a class in one turn.
const PLACES: usize = 128;
/// Sets what is derived here apart from what else is derived from the key.
const SALT: u32 = 0x1d_0000;

/// The identifications of one worker.
#[derive(Debug)]
pub struct Identifications {
    tables: Box<Tables>,
    /// Of the classes, those that are its.
    first_class: u16,
    classes: u16,
    /// The next number of this turn.
    next: u16,
    /// Numbers of a turn, 0 before the first.
    len: u16,
    /// 0 or 128: the half of this turn.
    half: u8,
    turn: u64,
    me: u64,
    key: Key,
}

#[derive(Debug)]
struct Tables {
    dealt: [u16; 256],
    a: [[u8; PLACES]; 2],
    b: [[u8; 256]; 2],
}

impl Identifications {
    /// Those of worker `me` of `all`.
    pub fn new(key: Key, me: u8, all: usize) -> Identifications {
        let edge = |worker: usize| (worker * 256 / all.clamp(1, 256)) as u16;
        let (first_class, end) = (edge(me.into()), edge(usize::from(me) + 1));
        Identifications {
            tables: Box::new(Tables { dealt: deal(key), a: [[0; PLACES]; 2], b: [[0; 256]; 2] }),
            first_class,
            classes: end - first_class,
            next: 0,
            len: 0,
            half: 0,
            turn: 0,
            me: me.into(),
            key,
        }
    }

    /// Another one than those before.
    #[inline]
    pub fn draw(&mut self) -> u16 {
        if self.next == self.len {
            self.begin_turn();
        }
        let tables = &*self.tables;
        let (mut class, mut low) = (self.next >> 7, self.next as u8 & 0x7f);
        self.next += 1;
        for (a, b) in tables.a.iter().zip(&tables.b) {
            class += u16::from(a[usize::from(low) % PLACES]);
            class -= if class >= self.classes { self.classes } else { 0 };
            low ^= b[usize::from(class as u8)];
        }
        tables.dealt[usize::from(self.half | low)] ^ (self.first_class + class) << 8
    }

    #[cold]
    fn begin_turn(&mut self) {
        let turn = u128::from(self.me) << 64 | u128::from(self.turn);
        let mut bytes = stream(self.key, turn, SALT);
        let Tables { a, b, .. } = &mut *self.tables;
        for value in a.iter_mut().flatten() {
            *value = ((u16::from(bytes()) * self.classes) >> 8) as u8;
        }
        for value in b.iter_mut().flat_map(|table| &mut table[..usize::from(self.classes)]) {
            *value = bytes() & 0x7f;
        }
        self.half = ((self.turn & 1) as u8) << 7;
        self.turn += 1;
        (self.next, self.len) = (0, self.classes * PLACES as u16);
    }
}

/// Bytes of the key.
fn stream(key: Key, number: u128, salt: u32) -> impl FnMut() -> u8 {
    let mut taken = 0;
    let mut word = [0; size_of::<u64>()];
    move || {
        let at = taken % word.len();
        if at == 0 {
            word = hash::address(key, number, salt | (taken / word.len()) as u32).to_le_bytes();
        }
        taken += 1;
        word[at]
    }
}

/// The table by which numbers are dealt out: the same for all workers.
fn deal(key: Key) -> [u16; 256] {
    let mut bytes = stream(key, u128::MAX, SALT);
    let mut dealt = std::array::from_fn(|place| u16::from(bytes()) << 8 | place as u16);
    for last in (1..dealt.len()).rev() {
        let random = usize::from(bytes()) << 8 | usize::from(bytes());
        dealt.swap(last, random % (last + 1));
    }
    dealt
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
                let half = usize::from(ids.classes) * PLACES;
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
    fn workers_share_all_numbers_and_none_twice() {
        for all in [1, 2, 3, 4, 16, 255, 256] {
            let mut owner = vec![None; 65_536];
            for me in 0..all {
                let mut ids = Identifications::new(Key::default(), me as u8, all);
                // Some have come further than others.
                let count = usize::from(ids.classes) * PLACES * 2 + me % 3 * 100;
                for id in take(&mut ids, count) {
                    let of = owner[usize::from(id)].get_or_insert(me);
                    assert_eq!(*of, me, "{id}, {all} workers");
                }
            }
            assert!(owner.iter().all(Option::is_some), "{all} workers");
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
        // Of two random orders of one set of 32,768 about one place is the same.
        for (one, two) in [(&turns[0], &turns[2]), (&turns[1], &turns[3]), (&turns[0], &other)] {
            let same = one.iter().zip(two).filter(|(one, two)| one == two).count();
            assert!(same < 12, "{same} in the same place");
        }
    }

    /// `turn` of another computation, as the head of this file has it.
    #[test]
    fn as_written_down() {
        let mut ids = Identifications::new(Key(3, 4), 1, 3);
        assert_eq!((ids.first_class, ids.classes), (85, 85));
        for turn in 0..3 {
            ids.begin_turn();
            let Tables { dealt, a, b } = &*ids.tables;
            let n = u16::from(ids.classes as u8);
            let twin: Vec<u16> = (0..85 * 128u16)
                .map(|number| {
                    let (mut class, mut low) = (number / 128, number % 128);
                    for round in 0..2 {
                        class = (class + u16::from(a[round][usize::from(low)])) % n;
                        low ^= u16::from(b[round][usize::from(class)]);
                    }
                    dealt[usize::from(turn % 2 * 128 + low)] ^ ((85 + class) * 256)
                })
                .collect();
            assert_eq!(take(&mut ids, 85 * 128), twin);
        }
    }
}
