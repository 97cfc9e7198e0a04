//! A hierarchical timing wheel over session numbers: three levels of slots, linked lists through one array.
//!
//! It is lazy: packets only write when they were seen. When a session fires, its owner looks when its time really
//! comes and either arms it again or ends it. A timer of a higher level fires when its slot begins, up to 25.6 s
//! (109 minutes) early, and is armed again to the tick: nothing cascades in one go, and all work is bounded by the
//! caller's budget.

use zerocopy::FromZeros;

use crate::mem::{HugeSlice, MemoryError};

/// Slots of a level.
const SLOTS: u32 = 256;
/// Levels: 256 ticks, 65,536 ticks, 16.7 million ticks (19 days of 100 ms).
const LEVELS: u32 = 3;
/// Farthest a timer reaches; what is armed for later fires then and is armed again.
const HORIZON: u32 = SLOTS * SLOTS * (SLOTS - 2);

/// No session.
const NONE: u32 = 0;

#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    next: u32,
    /// The session before; for the first of a list `HEAD | slot`.
    prev: u32,
}

/// Bit of `prev` that marks the first of a list.
const HEAD: u32 = 1 << 31;

/// Timers of sessions 1 to the capacity.
#[derive(Debug)]
pub struct Wheel {
    links: HugeSlice<Link>,
    heads: Box<[u32; (SLOTS * LEVELS) as usize]>,
    /// One bit per slot that has a list.
    used: [[u64; (SLOTS / 64) as usize]; LEVELS as usize],
    /// All timers up to this tick have fired, except those still in its slot.
    now: u32,
    armed: usize,
}

impl Wheel {
    /// A wheel for session numbers up to `capacity`.
    pub fn new(capacity: usize, populate: bool) -> Result<Wheel, MemoryError> {
        Ok(Wheel {
            links: HugeSlice::zeroed(capacity + 1, populate)?,
            heads: Box::new([NONE; (SLOTS * LEVELS) as usize]),
            used: [[0; (SLOTS / 64) as usize]; LEVELS as usize],
            now: 0,
            armed: 0,
        })
    }

    /// Bytes that a wheel for so many takes.
    pub fn bytes_for(capacity: usize) -> usize {
        (capacity + 1) * size_of::<Link>()
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.links)
    }

    /// Arms session `id`, which is not armed, for tick `at`; what is past fires at the next opportunity.
    pub fn arm(&mut self, id: u32, at: u32) {
        self.armed += 1;
        self.link(id, at.clamp(self.now, self.now.saturating_add(HORIZON)));
    }

    /// Disarms session `id`, which is armed.
    pub fn disarm(&mut self, id: u32) {
        let Link { next, prev } = self.links[id as usize];
        if prev & HEAD != 0 {
            let slot = prev & !HEAD;
            self.heads[slot as usize] = next;
            if next == NONE {
                self.used[(slot / SLOTS) as usize][(slot % SLOTS / 64) as usize] &= !(1 << (slot % 64));
            }
        } else {
            self.links[prev as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        self.armed -= 1;
    }

    /// Takes the next session that has to be looked at by tick `now`; it is disarmed. `None`: nothing is due.
    pub fn fire(&mut self, now: u32) -> Option<u32> {
        loop {
            let turn = self.now / SLOTS;
            for head in [2 * SLOTS + turn / SLOTS % SLOTS, SLOTS + turn % SLOTS, self.now % SLOTS] {
                let id = self.heads[head as usize];
                if id != NONE {
                    self.disarm(id);
                    return Some(id);
                }
            }
            if self.now >= now {
                return None;
            }
            // On to the next slot in use of this turn, else to the next turn.
            let next = self.next_used(0, self.now % SLOTS + 1).map(|slot| turn * SLOTS + slot);
            let next = next.unwrap_or((turn + 1).saturating_mul(SLOTS)).min(now);
            self.now = if self.armed == 0 { now } else { next };
        }
    }

    /// A tick at which [`Wheel::fire`] may have something; never later than the first timer.
    pub fn next_due(&self) -> Option<u32> {
        if self.armed == 0 {
            return None;
        }
        let turn = self.now / SLOTS;
        let waiting = |head: u32| self.heads[head as usize] != NONE;
        if waiting(2 * SLOTS + turn / SLOTS % SLOTS) || waiting(SLOTS + turn % SLOTS) {
            return Some(self.now);
        }
        if let Some(slot) = self.next_used(0, self.now % SLOTS) {
            return Some(turn * SLOTS + slot);
        }
        let upper = self.next_used(1, turn % SLOTS + 1).map(|slot| (turn / SLOTS * SLOTS + slot) * SLOTS);
        Some(upper.unwrap_or((turn / SLOTS + 1).saturating_mul(SLOTS * SLOTS)))
    }

    fn link(&mut self, id: u32, at: u32) {
        let (level, slot) = if at / SLOTS == self.now / SLOTS {
            (0, at % SLOTS)
        } else if at / SLOTS / SLOTS == self.now / SLOTS / SLOTS {
            (1, at / SLOTS % SLOTS)
        } else {
            (2, at / SLOTS / SLOTS % SLOTS)
        };
        let head = level * SLOTS + slot;
        let next = self.heads[head as usize];
        self.links[id as usize] = Link { next, prev: HEAD | head };
        if next != NONE {
            self.links[next as usize].prev = id;
        }
        self.heads[head as usize] = id;
        self.used[level as usize][(slot / 64) as usize] |= 1 << (slot % 64);
    }

    /// The first slot of `level` from `from` on that has a list.
    fn next_used(&self, level: u32, from: u32) -> Option<u32> {
        let words = &self.used[level as usize];
        let mut word = from / 64;
        if word >= SLOTS / 64 {
            return None;
        }
        let mut bits = words[word as usize] & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros());
            }
            word += 1;
            bits = *words.get(word as usize)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Lets `wheel` run to `now` as an owner does: what fired early is armed again.
    fn run(wheel: &mut Wheel, due: &mut BTreeMap<u32, u32>, now: u32) -> Vec<u32> {
        let mut fired = Vec::new();
        while let Some(id) = wheel.fire(now) {
            if due[&id] > now {
                wheel.arm(id, due[&id]);
            } else {
                due.remove(&id);
                fired.push(id);
            }
        }
        fired.sort_unstable();
        fired
    }

    proptest! {
        #[test]
        fn fires_what_a_sorted_map_would(
            timers in proptest::collection::vec((0u32..20_000_000, any::<bool>()), 1..200),
            steps in proptest::collection::vec(0u32..3_000_000, 1..30),
            start in 0u32..100_000_000,
        ) {
            let mut wheel = Wheel::new(timers.len(), false).expect("memory");
            wheel.fire(start);
            let mut due = BTreeMap::new();
            for (index, (after, disarm)) in timers.iter().enumerate() {
                let id = index as u32 + 1;
                wheel.arm(id, start + after);
                if *disarm {
                    wheel.disarm(id);
                } else {
                    due.insert(id, start + after);
                }
            }
            let mut now = start;
            for step in steps {
                now += step;
                let next = wheel.next_due();
                let first = due.values().min().copied();
                prop_assert!(first.is_none_or(|first| next.is_some_and(|next| next <= first)));
                let mut expected: Vec<u32> =
                    due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
                expected.sort_unstable();
                prop_assert_eq!(run(&mut wheel, &mut due, now), expected);
                prop_assert_eq!(wheel.armed, due.len());
            }
        }
    }

    #[test]
    fn a_timer_fires_on_its_tick_and_not_before() {
        let mut wheel = Wheel::new(4, false).expect("memory");
        let mut due = BTreeMap::from([(1, 3000), (2, 3001), (3, 70_000_000)]);
        due.iter().for_each(|(id, at)| wheel.arm(*id, *at));
        assert!(run(&mut wheel, &mut due, 2999).is_empty());
        assert_eq!(run(&mut wheel, &mut due, 3000), [1]);
        assert_eq!(run(&mut wheel, &mut due, 69_999_999), [2]);
        assert_eq!(run(&mut wheel, &mut due, 70_000_000), [3]);
        assert_eq!(wheel.next_due(), None);
    }
}
