//! A hierarchical timing wheel over session numbers: three levels of slots, and in each slot a list for each class of
//! sessions, all linked through one array.
//!
//! It is lazy: packets only write when they were seen. When a session fires, its owner looks when its time really
//! comes and either arms it again or ends it. A timer of a higher level fires when its slot begins, up to 25.6 s
//! (109 minutes) early, and is armed again to the tick: nothing cascades in one go, and all work is bounded by the
//! caller's budget.
//!
//! A list is first in, first out. So among sessions of a class that have the same idle time, and of which no packet came
//! again, [`Wheel::first`] is the one that began first: whoever needs room needs no list of his own.

use zerocopy::FromZeros;

use crate::mem::{HugeSlice, MemoryError};

/// Slots of a level.
const SLOTS: u32 = 256;
/// Levels: 256 ticks, 65,536 ticks, 16.7 million ticks (19 days of 100 ms).
const LEVELS: u32 = 3;
/// Farthest a timer reaches; what is armed for later fires then and is armed again.
const HORIZON: u32 = SLOTS * SLOTS * (SLOTS - 2);
/// Lists of a class.
const LISTS: u32 = SLOTS * LEVELS;

/// Neighbours in a list, which is a ring through a link of its own.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    next: u32,
    prev: u32,
}

/// Which slots have something: a bit each.
type Used = [[u64; (SLOTS / 64) as usize]; LEVELS as usize];

/// Timers of sessions 1 to the capacity, of so many classes.
#[derive(Debug)]
pub struct Wheel<const CLASSES: usize> {
    /// By session; behind them the lists' own.
    links: HugeSlice<Link>,
    /// Number of the first list.
    lists: u32,
    used: [Used; CLASSES],
    /// Those of all classes.
    any: Used,
    /// All timers up to this tick have fired, except those still in its slot.
    now: u32,
    armed: [u32; CLASSES],
}

impl<const CLASSES: usize> Wheel<CLASSES> {
    /// A wheel for session numbers up to `capacity`.
    pub fn new(capacity: usize, populate: bool) -> Result<Wheel<CLASSES>, MemoryError> {
        let lists = capacity as u32 + 1;
        let mut links: HugeSlice<Link> = HugeSlice::zeroed(Self::links_for(capacity), populate)?;
        for list in lists..lists + CLASSES as u32 * LISTS {
            links[list as usize] = Link { next: list, prev: list };
        }
        let any = Used::default();
        Ok(Wheel { links, lists, used: [any; CLASSES], any, now: 0, armed: [0; CLASSES] })
    }

    fn links_for(capacity: usize) -> usize {
        capacity + 1 + CLASSES * LISTS as usize
    }

    /// Bytes that a wheel for so many takes.
    pub fn bytes_for(capacity: usize) -> usize {
        Self::links_for(capacity) * size_of::<Link>()
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.links)
    }

    /// Sessions of a class that are armed.
    pub fn armed(&self, class: usize) -> u32 {
        self.armed[class]
    }

    /// Arms session `id`, which is not armed, as the last of its class for tick `at`; what is past fires at the next
    /// opportunity.
    pub fn arm(&mut self, id: u32, class: usize, at: u32) {
        let at = at.clamp(self.now, self.now.saturating_add(HORIZON));
        let (level, slot) = if at / SLOTS == self.now / SLOTS {
            (0, at % SLOTS)
        } else if at / SLOTS / SLOTS == self.now / SLOTS / SLOTS {
            (1, at / SLOTS % SLOTS)
        } else {
            (2, at / SLOTS / SLOTS % SLOTS)
        };
        let list = self.list(class, level, slot);
        let last = std::mem::replace(&mut self.links[list as usize].prev, id);
        self.links[last as usize].next = id;
        self.links[id as usize] = Link { next: list, prev: last };
        for used in [&mut self.used[class], &mut self.any] {
            used[level as usize][(slot / 64) as usize] |= 1 << (slot % 64);
        }
        self.armed[class] += 1;
    }

    /// Disarms session `id`, which is armed in `class`.
    pub fn disarm(&mut self, id: u32, class: usize) {
        let Link { next, prev } = self.links[id as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        // Only the list itself is left.
        if next == prev {
            let list = (next - self.lists) % LISTS;
            let (level, slot) = (list / SLOTS, list % SLOTS);
            let (level, word) = (level as usize, (slot / 64) as usize);
            self.used[class][level][word] &= !(1 << (slot % 64));
            self.any[level][word] = self.used.iter().fold(0, |any, used| any | used[level][word]);
        }
        self.armed[class] -= 1;
    }

    /// Takes the next session that has to be looked at by tick `now`; it is disarmed. `None`: nothing is due.
    pub fn fire(&mut self, now: u32) -> Option<u32> {
        loop {
            for (level, slot) in self.current() {
                if self.is_used(level, slot) {
                    return (0..CLASSES).find_map(|class| self.take(class, level, slot));
                }
            }
            if self.now >= now {
                return None;
            }
            // On to the next slot in use of this turn, else to the next turn.
            let turn = self.now / SLOTS;
            let next = first_of(&self.any[0], self.now % SLOTS + 1).map(|slot| turn * SLOTS + slot);
            let next = next.unwrap_or((turn + 1).saturating_mul(SLOTS)).min(now);
            self.now = if self.armed == [0; CLASSES] { now } else { next };
        }
    }

    /// A tick at which [`Wheel::fire`] may have something; never later than the first timer.
    pub fn next_due(&self) -> Option<u32> {
        if self.armed == [0; CLASSES] {
            return None;
        }
        let turn = self.now / SLOTS;
        let [above, middle, _] = self.current();
        if self.is_used(above.0, above.1) || self.is_used(middle.0, middle.1) {
            return Some(self.now);
        }
        if let Some(slot) = first_of(&self.any[0], self.now % SLOTS) {
            return Some(turn * SLOTS + slot);
        }
        let upper =
            first_of(&self.any[1], turn % SLOTS + 1).map(|slot| (turn / SLOTS * SLOTS + slot) * SLOTS);
        Some(upper.unwrap_or((turn / SLOTS + 1).saturating_mul(SLOTS * SLOTS)))
    }

    /// The session of a class that would fire first, to the slot, and was armed first of that slot.
    pub fn first(&self, class: usize) -> Option<u32> {
        let used = &self.used[class];
        let turn = self.now / SLOTS;
        let (above, middle) = (turn / SLOTS % SLOTS, turn % SLOTS);
        let (level, slot) = first_of(&used[0], self.now % SLOTS)
            .map(|slot| (0, slot))
            .or_else(|| Some((1, first_of(&used[1], middle)?)))
            .or_else(|| Some((2, first_of(&used[2], above).or_else(|| first_of(&used[2], 0))?)))?;
        Some(self.links[self.list(class, level, slot) as usize].next)
    }

    fn take(&mut self, class: usize, level: u32, slot: u32) -> Option<u32> {
        let list = self.list(class, level, slot);
        let id = Some(self.links[list as usize].next).filter(|first| *first != list)?;
        self.disarm(id, class);
        Some(id)
    }

    fn list(&self, class: usize, level: u32, slot: u32) -> u32 {
        self.lists + class as u32 * LISTS + level * SLOTS + slot
    }

    /// The slots that `now` lies in, with their levels: the highest first.
    fn current(&self) -> [(u32, u32); 3] {
        let turn = self.now / SLOTS;
        [(2, turn / SLOTS % SLOTS), (1, turn % SLOTS), (0, self.now % SLOTS)]
    }

    fn is_used(&self, level: u32, slot: u32) -> bool {
        self.any[level as usize][(slot / 64) as usize] >> (slot % 64) & 1 != 0
    }
}

/// The first bit from `from` on.
fn first_of(words: &[u64; (SLOTS / 64) as usize], from: u32) -> Option<u32> {
    let first = from / 64;
    let below = 1_u64.checked_shl(from % 64).unwrap_or(0).wrapping_sub(1);
    words.iter().zip(0..).skip(first as usize).find_map(|(word, index)| {
        let bits = if index == first { word & !below } else { *word };
        (bits != 0).then(|| index * 64 + bits.trailing_zeros())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    const CLASSES: usize = 3;

    fn class(id: u32) -> usize {
        id as usize % CLASSES
    }

    /// Lets `wheel` run to `now` as an owner does: what fired early is armed again.
    fn run(wheel: &mut Wheel<CLASSES>, due: &mut BTreeMap<u32, u32>, now: u32) -> Vec<u32> {
        let mut fired = Vec::new();
        while let Some(id) = wheel.fire(now) {
            if due[&id] > now {
                wheel.arm(id, class(id), due[&id]);
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
            let mut wheel = Wheel::<CLASSES>::new(timers.len(), false).expect("memory");
            wheel.fire(start);
            let mut due = BTreeMap::new();
            for (index, (after, disarm)) in timers.iter().enumerate() {
                let id = index as u32 + 1;
                wheel.arm(id, class(id), start + after);
                if *disarm {
                    wheel.disarm(id, class(id));
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
                for of in 0..CLASSES {
                    let ids: Vec<u32> = due.keys().copied().filter(|id| class(*id) == of).collect();
                    prop_assert_eq!(wheel.armed(of) as usize, ids.len());
                    let first = wheel.first(of);
                    prop_assert_eq!(first.is_some(), !ids.is_empty());
                    prop_assert!(first.is_none_or(|first| ids.contains(&first)));
                }
            }
        }

        /// With one idle time, whoever was armed first is first, whatever fires and goes in between.
        #[test]
        fn is_a_queue_of_each_class(
            idle in 2u32..5_000,
            start in prop_oneof![Just(1_000_000), Just(16 * 65_536 - 10_000), Just((1 << 24) - 10_000)],
            steps in proptest::collection::vec((0u32..100, any::<bool>(), 0u32..30), 1..300),
        ) {
            let mut wheel = Wheel::<CLASSES>::new(steps.len(), false).expect("memory");
            let mut queues: [VecDeque<u32>; CLASSES] = Default::default();
            let mut due = BTreeMap::new();
            let mut now = start;
            wheel.fire(now);
            for (index, (pause, remove, which)) in steps.iter().enumerate() {
                now += pause;
                for id in run(&mut wheel, &mut due, now) {
                    let queue = &mut queues[class(id)];
                    queue.retain(|other| *other != id);
                }
                if *remove {
                    let id = due.keys().nth(*which as usize).copied();
                    if let Some(id) = id {
                        due.remove(&id);
                        wheel.disarm(id, class(id));
                        queues[class(id)].retain(|other| *other != id);
                    }
                } else {
                    let id = index as u32 + 1;
                    due.insert(id, now + idle);
                    wheel.arm(id, class(id), now + idle);
                    queues[class(id)].push_back(id);
                }
                for (of, queue) in queues.iter().enumerate() {
                    prop_assert_eq!(wheel.first(of), queue.front().copied());
                }
            }
        }
    }

    #[test]
    fn a_timer_fires_on_its_tick_and_not_before() {
        let mut wheel = Wheel::<CLASSES>::new(4, false).expect("memory");
        let mut due = BTreeMap::from([(1, 3000), (2, 3001), (3, 70_000_000)]);
        due.iter().for_each(|(id, at)| wheel.arm(*id, class(*id), *at));
        assert!(run(&mut wheel, &mut due, 2999).is_empty());
        assert_eq!(run(&mut wheel, &mut due, 3000), [1]);
        assert_eq!(run(&mut wheel, &mut due, 69_999_999), [2]);
        assert_eq!(run(&mut wheel, &mut due, 70_000_000), [3]);
        assert_eq!(wheel.next_due(), None);
    }
}
