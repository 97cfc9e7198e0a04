//! What became of the sessions that changes were about, by the generation that was the newest to matter to each: two changes
//! that come one upon the other do not mix. A worker writes, where it decides a session again and never otherwise; the
//! control thread adds up.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::add;

/// Generations that are remembered. A commit makes one, or a few where ports come and go.
pub const REMEMBERED: u64 = 64;

/// What became of a session that was decided again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// As before.
    Kept,
    /// Another rule, egress or next hop.
    Moved,
    /// Not allowed any more.
    Ended,
}

/// Sessions of one generation; 0: none yet.
#[derive(Debug, Default)]
struct Of {
    generation: AtomicU64,
    counts: [AtomicU64; 3],
}

/// One worker's.
#[derive(Debug)]
pub struct Fates(Box<[Of]>);

impl Default for Fates {
    fn default() -> Fates {
        Fates((0..REMEMBERED).map(|_| Of::default()).collect())
    }
}

impl Fates {
    /// Counts a session. Only the worker calls it.
    pub fn note(&self, generation: u64, became: Became) {
        let of = &self.0[(generation % REMEMBERED) as usize];
        let known = of.generation.load(Ordering::Relaxed);
        if known > generation {
            // So late that its place is another's.
            return;
        }
        if known < generation {
            // Nobody's while it is emptied.
            of.generation.store(0, Ordering::Relaxed);
            fence(Ordering::Release);
            of.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
            of.generation.store(generation, Ordering::Release);
        }
        add(&of.counts[became as usize], 1);
    }

    /// Kept, moved and ended, of the generations behind `after` up to `until`.
    pub fn sum(&self, after: u64, until: u64) -> [u64; 3] {
        let mut sum = [0; 3];
        for of in &self.0 {
            let generation = of.generation.load(Ordering::Acquire);
            if generation <= after || generation > until {
                continue;
            }
            let counts = of.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            // Another generation may have come upon it.
            if of.generation.load(Ordering::Relaxed) == generation {
                sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_do_not_mix_and_old_ones_go() {
        let fates = Fates::default();
        fates.note(7, Became::Kept);
        fates.note(8, Became::Ended);
        fates.note(7, Became::Moved);
        fates.note(8, Became::Ended);
        assert_eq!(fates.sum(6, 7), [1, 1, 0]);
        assert_eq!(fates.sum(7, 8), [0, 0, 2]);
        assert_eq!((fates.sum(0, 100), fates.sum(8, 100)), ([1, 1, 2], [0, 0, 0]));
        fates.note(7 + REMEMBERED, Became::Kept);
        fates.note(7, Became::Kept);
        assert_eq!((fates.sum(0, 8), fates.sum(8, 100)), ([0, 0, 2], [1, 0, 0]));
    }
}
