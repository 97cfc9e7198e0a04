//! Listeners: behind which members of bridges somebody listens to which multicast groups, and where multicast routers are
//! (RFC 4541).
//!
//! A shared atomic table of fixed capacity: any worker hears reports, none waits. Member, group and the second until which
//! it holds are one word. Of an IPv6 group its lower 32 bits count: those that its Ethernet address has (RFC 2464 section
//! 7), and hosts tell apart what they hear besides (RFC 4541 section 3).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::copied::{self, Word as _};
use crate::packet::hash::{self, Key};

/// Words of a line: places that a listener may have.
const WINDOW: usize = 8;
/// Bits of the second until which an entry holds, modulo their range; [`ListenerTable::sweep`] takes out what is over
/// long before it would look like the future.
const SECOND_BITS: u32 = 17;
const SECOND: u64 = (1 << SECOND_BITS) - 1;
/// An entry holds for no longer, in seconds.
pub const MOST_SECONDS: u64 = SECOND / 2;

/// 224.0.0.1 (RFC 1112 section 4).
pub const ALL_HOSTS_V4: u32 = 0xe000_0001;
/// ff02::1 (RFC 4291 section 2.7.1).
pub const ALL_HOSTS_V6: u128 = 0xff02 << 112 | 1;

/// What somebody listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A group of IPv4.
    V4(u32),
    /// A group of IPv6.
    V6(u128),
}

impl Group {
    /// In the place of a group: a multicast router of this family is there.
    pub const ROUTER: [Group; 2] = [Group::V4(0), Group::V6(0)];

    /// 0 for IPv4, 1 for IPv6.
    pub fn family(self) -> usize {
        usize::from(matches!(self, Group::V6(_)))
    }

    /// True for [`Group::ROUTER`], and for groups of IPv6 that the table cannot tell from it: all whose lower 32 bits
    /// are 0.
    pub fn is_router(self) -> bool {
        self.low() == 0
    }

    /// The MAC address of its frames, as a number: RFC 1112 section 6.4, RFC 2464 section 7.
    pub const fn mac(self) -> u64 {
        match self {
            Group::V4(group) => 0x0100_5e00_0000 | (group & 0x7f_ffff) as u64,
            Group::V6(group) => 0x3333_0000_0000 | (group as u32) as u64,
        }
    }

    fn low(self) -> u32 {
        match self {
            Group::V4(group) => group,
            Group::V6(group) => group as u32,
        }
    }
}

/// A line of places.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    words: [AtomicU64; WINDOW],
}

/// An entry, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Interface slot of the member.
    pub member: u16,
    /// What it listens to.
    pub group: Group,
    /// Seconds until it is forgotten.
    pub left_s: u64,
}

/// Why somebody is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The member has as many groups as it may.
    TooMany,
    /// The table has no room.
    NoRoom,
}

/// The table. Shared by all threads of a node.
#[derive(Debug)]
pub struct ListenerTable {
    lines: Box<[Line]>,
    /// By place: the upper bits of an IPv6 group.
    uppers: Box<[[AtomicU64; 2]]>,
    key: Key,
    /// By interface slot of a member: groups it listens to.
    counts: Box<[AtomicU32]>,
    /// By number of the bridge and family: the second until which some querier counts as present.
    queriers: Box<[[AtomicU64; 2]]>,
    /// The same of a querier with a lower address than ours.
    better: Box<[[AtomicU64; 2]]>,
    /// The same: until when not all listeners are known.
    overflows: Box<[[AtomicU64; 2]]>,
    /// Reports beyond `max_groups`, or for which there was no room.
    pub refused: AtomicU64,
}

fn name(member: u16, group: Group) -> u64 {
    (group.family() as u64) << 46 | u64::from(group.low()) << 14 | u64::from(member & 0x3fff)
}

/// As [`Group::is_router`].
fn is_router(name: u64) -> bool {
    name >> 14 & 0xffff_ffff == 0
}

/// One more than the name, so that no word of an entry is 0.
fn word(name: u64, until_s: u64) -> u64 {
    (name + 1) << SECOND_BITS | until_s & SECOND
}

/// Seconds left; 0: it is over.
fn left(word: u64, now_s: u64) -> u64 {
    let left = (word & SECOND).wrapping_sub(now_s) & SECOND;
    if left <= MOST_SECONDS { left } else { 0 }
}

impl ListenerTable {
    /// A table with `places`, a power of two, for members with interface slots below `members`.
    pub fn new(places: usize, members: usize, bridges: usize, key: Key) -> ListenerTable {
        assert!(places.is_power_of_two() && places >= WINDOW, "lines are found by a mask");
        ListenerTable {
            lines: (0..places / WINDOW).map(|_| Line::default()).collect(),
            uppers: (0..places).map(|_| Default::default()).collect(),
            key,
            counts: (0..members).map(|_| AtomicU32::new(0)).collect(),
            queriers: (0..bridges).map(|_| Default::default()).collect(),
            better: (0..bridges).map(|_| Default::default()).collect(),
            overflows: (0..bridges).map(|_| Default::default()).collect(),
            refused: AtomicU64::new(0),
        }
    }

    /// A copy that nobody shares.
    pub(crate) fn copied(&self) -> ListenerTable {
        ListenerTable {
            lines: self.lines.iter().map(|line| Line { words: line.words.copied() }).collect(),
            uppers: copied::all(&self.uppers),
            key: self.key,
            counts: copied::all(&self.counts),
            queriers: copied::all(&self.queriers),
            better: copied::all(&self.better),
            overflows: copied::all(&self.overflows),
            refused: self.refused.copied(),
        }
    }

    fn line(&self, name: u64) -> usize {
        hash::fold(name ^ self.key.0, self.key.1 | 1) as usize & (self.lines.len() - 1)
    }

    /// The places that say so: two, if two workers have let it in at the same time.
    fn places(&self, name: u64) -> impl Iterator<Item = &AtomicU64> {
        let words = self.lines[self.line(name)].words.iter();
        words.filter(move |place| place.load(Ordering::Relaxed) >> SECOND_BITS == name + 1)
    }

    /// True if somebody behind the member listens to the group, or a router is there.
    #[inline]
    pub fn has(&self, member: u16, group: Group, now_s: u64) -> bool {
        self.places(name(member, group)).any(|place| left(place.load(Ordering::Relaxed), now_s) > 0)
    }

    /// Somebody behind the member listens, until `until_s`; of groups it may have `most`.
    ///
    /// # Errors
    ///
    /// What it is refused for, which is counted.
    pub fn note(&self, member: u16, group: Group, until_s: u64, most: u32) -> Result<(), Refused> {
        let name = name(member, group);
        let new = word(name, until_s);
        // The place may have been given to another since it was found.
        let prolong = |place: &AtomicU64| {
            let is_it = |old: u64| (old >> SECOND_BITS == name + 1).then_some(new);
            place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_it).is_ok()
        };
        if self.places(name).any(prolong) {
            return Ok(());
        }
        // Counted first: what is in the table may be taken out at once.
        let noted = self.count_in(name, most).and_then(|()| {
            let at = self.line(name);
            let free = |place: &AtomicU64| {
                place.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            };
            let within = self.lines[at].words.iter().position(free);
            within.map(|within| at * WINDOW + within).ok_or_else(|| {
                self.count_out(name);
                Refused::NoRoom
            })
        });
        match (noted, group) {
            (Ok(place), Group::V6(group)) => {
                let upper = &self.uppers[place];
                upper[0].store((group >> 96) as u64, Ordering::Relaxed);
                upper[1].store((group >> 32) as u64, Ordering::Relaxed);
            }
            (Ok(_), Group::V4(_)) => {}
            (Err(_), _) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        noted.map(|_| ())
    }

    /// One more group of a member, of `most`.
    fn count_in(&self, name: u64, most: u32) -> Result<(), Refused> {
        let count = self.counts.get((name & 0x3fff) as usize).ok_or(Refused::NoRoom)?;
        let more = |n: u32| (n < most).then(|| n + 1);
        if is_router(name) || count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok() {
            return Ok(());
        }
        Err(Refused::TooMany)
    }

    fn count_out(&self, name: u64) {
        if !is_router(name)
            && let Some(count) = self.counts.get((name & 0x3fff) as usize)
        {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// There was no room for a listener or a router of the family on the bridge with this number: until `until_s` nobody
    /// knows all of them.
    pub fn note_overflow(&self, bridge: u16, family: usize, until_s: u64) {
        let until = self.overflows.get(usize::from(bridge));
        until.inspect(|until| _ = until[family].fetch_max(until_s, Ordering::Relaxed));
    }

    /// True if not all listeners of the family are known on the bridge.
    pub fn has_overflowed(&self, bridge: u16, family: usize, now_s: u64) -> bool {
        let until = self.overflows.get(usize::from(bridge));
        until.is_some_and(|until| now_s < until[family].load(Ordering::Relaxed))
    }

    /// The entry holds until `until_s` at most: a querier asks who is left.
    pub fn shorten(&self, member: u16, group: Group, until_s: u64, now_s: u64) {
        let name = name(member, group);
        for place in self.places(name) {
            let old = place.load(Ordering::Relaxed);
            if old >> SECOND_BITS == name + 1 && left(old, now_s) > until_s.saturating_sub(now_s) {
                // Somebody who has just reported is there.
                let new = word(name, until_s);
                let _ = place.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Nobody behind the member listens any more.
    pub fn forget(&self, member: u16, group: Group) {
        let name = name(member, group);
        for place in self.places(name) {
            let old = place.load(Ordering::Relaxed);
            // It may have been given to another since it was found.
            if old >> SECOND_BITS == name + 1 {
                self.take_out(place, old);
            }
        }
    }

    /// Takes out an entry, `old`, if it is still there.
    fn take_out(&self, place: &AtomicU64, old: u64) {
        let is_taken_out = place.compare_exchange(old, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let name = (old >> SECOND_BITS).wrapping_sub(1);
        if is_taken_out {
            self.count_out(name);
        }
    }

    /// Takes out what is over, and what `stays` says no of.
    pub fn sweep(&self, now_s: u64, stays: impl Fn(u16) -> bool) {
        for place in self.lines.iter().flat_map(|line| &line.words) {
            let old = place.load(Ordering::Relaxed);
            if old != 0 && (left(old, now_s) == 0 || !stays(((old >> SECOND_BITS) - 1) as u16 & 0x3fff)) {
                self.take_out(place, old);
            }
        }
    }

    /// A querier of the family was heard on the bridge with this number; `is_better`: it has a lower address than ours.
    pub fn note_querier(&self, bridge: u16, family: usize, is_better: bool, until_s: u64) {
        let note = |queriers: &[[AtomicU64; 2]]| {
            queriers
                .get(usize::from(bridge))
                .inspect(|until| until[family].store(until_s, Ordering::Relaxed));
        };
        note(&self.queriers);
        if is_better {
            note(&self.better);
        }
    }

    /// True if a querier keeps listeners reporting: without one nobody would be heard of again.
    pub fn has_querier(&self, bridge: u16, family: usize, now_s: u64) -> bool {
        let until = self.queriers.get(usize::from(bridge));
        until.is_some_and(|until| now_s < until[family].load(Ordering::Relaxed))
    }

    /// True if another querier than the gateway is to ask.
    pub fn has_better_querier(&self, bridge: u16, family: usize, now_s: u64) -> bool {
        let until = self.better.get(usize::from(bridge));
        until.is_some_and(|until| now_s < until[family].load(Ordering::Relaxed))
    }

    /// Groups that a member listens to.
    pub fn count(&self, member: u16) -> u32 {
        self.counts.get(usize::from(member)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All of them, for people.
    pub fn entries(&self, now_s: u64) -> impl Iterator<Item = Listener> {
        let words = self.lines.iter().flat_map(|line| &line.words);
        words.zip(&self.uppers).filter_map(move |(place, upper)| {
            let word = place.load(Ordering::Relaxed);
            let (name, left_s) = ((word >> SECOND_BITS).checked_sub(1)?, left(word, now_s));
            let low = (name >> 14) as u32;
            let [high, middle] = upper.each_ref().map(|upper| u128::from(upper.load(Ordering::Relaxed)));
            let group = match name >> 46 & 1 {
                0 => Group::V4(low),
                _ if low == 0 => Group::V6(0),
                _ => Group::V6(high << 96 | (middle & u128::from(u64::MAX)) << 32 | u128::from(low)),
            };
            (left_s > 0).then_some(Listener { member: (name & 0x3fff) as u16, group, left_s })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Group = Group::V4(0xef01_0203);

    fn table(places: usize) -> ListenerTable {
        ListenerTable::new(places, 16, 4, Key::default())
    }

    #[test]
    fn an_entry_holds_for_its_time_across_the_wrap_of_seconds() {
        let table = table(64);
        for now in [5, SECOND - 3, SECOND, SECOND * 3 + 7] {
            assert_eq!(table.note(3, GROUP, now + 10, 4), Ok(()));
            assert!(table.has(3, GROUP, now) && table.has(3, GROUP, now + 9), "{now}");
            assert!(!table.has(3, GROUP, now + 10) && !table.has(4, GROUP, now), "{now}");
            assert!(!table.has(3, Group::V6(0xef01_0203), now));
            table.sweep(now + 10, |_| true);
            assert_eq!((table.count(3), table.entries(now).count()), (0, 0));
        }
    }

    #[test]
    fn a_member_has_no_more_groups_than_it_may_and_routers_do_not_count() {
        let table = table(64);
        let group = |n: u32| Group::V4(0xef00_0000 + n);
        assert!((1..=3).all(|n| table.note(1, group(n), 100, 3).is_ok()));
        assert_eq!(table.note(1, group(4), 100, 3), Err(Refused::TooMany));
        assert_eq!(table.note(2, group(4), 100, 3), Ok(()));
        assert!(table.note(1, Group::ROUTER[0], 100, 3).is_ok() && table.note(1, group(2), 200, 3).is_ok());
        table.forget(1, group(1));
        assert!(table.note(1, group(4), 100, 3).is_ok() && !table.has(1, group(1), 0));
        table.sweep(0, |member| member != 1);
        assert_eq!((table.count(1), table.count(2)), (0, 1));
        assert!(!table.has(1, Group::ROUTER[0], 0));
    }

    #[test]
    fn a_question_shortens_and_does_not_lengthen() {
        let table = table(64);
        table.note(1, GROUP, 260, 9).unwrap();
        table.shorten(1, GROUP, 103, 100);
        assert!(table.has(1, GROUP, 102) && !table.has(1, GROUP, 103));
        table.note(1, GROUP, 102, 9).unwrap();
        table.shorten(1, GROUP, 103, 100);
        assert!(!table.has(1, GROUP, 102));
    }

    #[test]
    fn ipv6_groups_are_shown_whole_and_a_full_line_refuses() {
        let table = table(8);
        let group = |n: u128| Group::V6(0xff0e << 112 | 0x1234 << 40 | n);
        assert!((1..=8).all(|n| table.note(1, group(n), 100, 99).is_ok()));
        assert_eq!((table.note(1, group(9), 100, 99), table.count(1)), (Err(Refused::NoRoom), 8));
        let shown: Vec<_> = table.entries(0).map(|listener| listener.group).collect();
        assert!((1..=8).all(|n| shown.contains(&group(n))), "{shown:x?}");
    }

    #[test]
    fn what_looks_like_a_router_is_never_counted() {
        let table = table(64);
        let group = Group::V6(0xff0e << 112 | 1 << 32);
        assert!(group.is_router() && table.note(1, group, 100, 1).is_ok());
        table.note(1, Group::V6(0xff0e << 112 | 1), 100, 1).unwrap();
        table.sweep(100, |_| true);
        assert_eq!((table.count(1), table.entries(0).count()), (0, 0));
    }

    #[test]
    fn counts_are_right_whoever_notes_forgets_and_sweeps_at_the_same_time() {
        let table = table(8);
        std::thread::scope(|scope| {
            for worker in 0..3 {
                let table = &table;
                scope.spawn(move || {
                    for n in 0..20_000_u32 {
                        let group = Group::V4(0xef00_0000 + n % 12);
                        _ = table.note(1, group, 100, 6);
                        match (n + worker) % 5 {
                            0 => table.forget(1, group),
                            1 => table.sweep(100, |_| true),
                            _ => {}
                        }
                    }
                });
            }
        });
        assert_eq!(table.count(1) as usize, table.entries(0).count());
        table.sweep(100, |_| true);
        assert_eq!(table.count(1), 0);
    }

    #[test]
    fn an_overflow_is_of_its_bridge_and_family_and_has_an_end() {
        let table = table(8);
        table.note_overflow(2, 1, 50);
        table.note_overflow(2, 1, 40);
        assert!(table.has_overflowed(2, 1, 49) && !table.has_overflowed(2, 1, 50));
        assert!(!table.has_overflowed(2, 0, 0) && !table.has_overflowed(1, 1, 0));
    }
}
