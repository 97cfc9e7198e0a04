//! Passive checks: which backends get no new flows because of those that they refused or did not answer to.
//!
//! What workers count is looked at a few times a second; time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use ahash::AHashMap;

use crate::time::Nanos;

/// Notes that a window is made of.
const NOTES: u32 = 10;
/// How often in a row the time that one is out doubles.
const DOUBLINGS: u32 = 4;

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Flows in a window that fail, at least.
    pub failures: u64,
    /// Percent of the new ones.
    pub percent: u64,
    /// Client networks that they are from, at least: one client that sends what nobody answers is not enough.
    pub clients: u32,
    /// How far back is looked.
    pub window: Duration,
    /// How long it has its effect, the first time.
    pub eject: Duration,
}

/// What the workers have counted of a backend since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Flows it was given.
    pub opened: u64,
    /// Those that it refused or did not answer to.
    pub failed: u64,
}

/// What has become of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It gets no new flows for this time, after so many failures.
    Ejected {
        /// How long.
        time: Duration,
        /// In the window.
        counted: Counted,
    },
    /// It gets new ones again.
    Returned,
}

#[derive(Clone, Debug)]
struct Watched {
    limit: Limit,
    /// Counts of the window, the oldest in front, and whose flows have failed since each: a bit for each 64th of them.
    notes: VecDeque<(Nanos, Counted, u64)>,
    out_until: Option<Nanos>,
    /// How long it was out the last time, and when it came back.
    last: Option<(Duration, Nanos)>,
}

/// All backends that are watched, by slot.
#[derive(Clone, Debug, Default)]
pub struct Watch(AHashMap<u32, Watched>);

impl Watch {
    /// Others are watched from now on; those with the same limits as before go on.
    pub fn set(&mut self, backends: impl Iterator<Item = (u32, Limit)>) {
        let mut before = std::mem::take(&mut self.0);
        let kept = |(slot, limit): (u32, Limit)| {
            let same = before.remove(&slot).filter(|watched| watched.limit == limit);
            let new = Watched { limit, notes: VecDeque::new(), out_until: None, last: None };
            (slot, same.unwrap_or(new))
        };
        self.0 = backends.map(kept).collect();
    }

    /// True if nobody is watched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if the backend is out.
    pub fn is_out(&self, slot: u32) -> bool {
        self.0.get(&slot).is_some_and(|watched| watched.out_until.is_some())
    }

    /// Looks at what has been counted by `now`: what changes. `counted` also says whose flows have failed since it was
    /// asked last, a bit for each 64th of client networks.
    pub fn look(&mut self, now: Nanos, counted: impl Fn(u32) -> (Counted, u64)) -> Vec<(u32, Turn)> {
        let turn = |(slot, watched): (&u32, &mut Watched)| {
            let (counted, clients) = counted(*slot);
            watched.look(now, counted, clients).map(|turn| (*slot, turn))
        };
        self.0.iter_mut().filter_map(turn).collect()
    }
}

impl Watched {
    fn look(&mut self, now: Nanos, counted: Counted, clients: u64) -> Option<Turn> {
        if let Some(until) = self.out_until {
            if now < until {
                return None;
            }
            self.out_until = None;
            self.last = self.last.map(|(time, _)| (time, now));
            // What has failed meanwhile had begun before.
            self.notes = VecDeque::from([(now, counted, 0)]);
            return Some(Turn::Returned);
        }
        let Limit { failures, percent, clients: least, window, eject } = self.limit;
        if let Some((_, _, seen)) = self.notes.back_mut() {
            *seen |= clients;
        }
        if self.notes.back().is_none_or(|(last, _, _)| now.since(*last) >= window / NOTES) {
            self.notes.push_back((now, counted, 0));
        }
        while self.notes.get(1).is_some_and(|(second, _, _)| now.since(*second) >= window) {
            self.notes.pop_front();
        }
        let before = self.notes.front().map_or(counted, |(_, before, _)| *before);
        let of = self.notes.iter().fold(0, |all, (_, _, seen)| all | seen).count_ones();
        let new = Counted {
            opened: counted.opened.saturating_sub(before.opened),
            failed: counted.failed.saturating_sub(before.failed),
        };
        if new.failed < failures || new.failed * 100 < new.opened * percent || of < least {
            return None;
        }
        let time = match self.last {
            // It was in for no longer than it had been out.
            Some((time, since)) if now.since(since) <= time => (time * 2).min(eject * (1 << DOUBLINGS)),
            _ => eject,
        };
        (self.out_until, self.last) = (Some(now.plus(time)), Some((time, now)));
        Some(Turn::Ejected { time, counted: new })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        failures: 5,
        percent: 20,
        clients: 3,
        window: Duration::from_secs(10),
        eject: Duration::from_secs(30),
    };

    /// Looks each half second, with so many new flows and failures in each; what came of it, with the second.
    struct Story {
        watch: Watch,
        half_seconds: u64,
        counted: Counted,
        /// How many networks the failures come from, in turn.
        networks: u64,
    }

    impl Story {
        fn new() -> Story {
            let mut watch = Watch::default();
            watch.set([(7, LIMIT)].into_iter());
            let mut story =
                Story { watch, half_seconds: 0, counted: Counted { opened: 1000, failed: 90 }, networks: 3 };
            assert_eq!(story.go(1, 0, 0), [], "what was before counts for nothing");
            story
        }

        fn go(&mut self, half_seconds: u64, opened: u64, failed: u64) -> Vec<(u64, Turn)> {
            let mut turns = Vec::new();
            for _ in 0..half_seconds {
                self.half_seconds += 1;
                self.counted.opened += opened;
                self.counted.failed += failed;
                let now = Nanos(self.half_seconds * 500_000_000);
                let whose = u64::from(failed > 0) << (self.half_seconds / 2 % self.networks);
                let found = self.watch.look(now, |_| (self.counted, whose));
                turns.extend(found.into_iter().map(|(slot, turn)| {
                    assert_eq!(slot, 7);
                    (self.half_seconds, turn)
                }));
            }
            turns
        }
    }

    fn ejected(turns: &[(u64, Turn)]) -> Vec<(u64, u64)> {
        let time = |(at, turn): &(u64, Turn)| match turn {
            Turn::Ejected { time, .. } => Some((*at, time.as_secs())),
            Turn::Returned => None,
        };
        turns.iter().filter_map(time).collect()
    }

    #[test]
    fn as_many_failures_as_are_too_many_and_no_fewer() {
        let mut story = Story::new();
        assert_eq!(story.go(4, 1, 1), []);
        assert!(!story.watch.is_out(7));
        let turns = story.go(1, 1, 1);
        let counted = Counted { opened: 5, failed: 5 };
        assert_eq!(turns, [(6, Turn::Ejected { time: LIMIT.eject, counted })]);
        assert!(story.watch.is_out(7));
    }

    #[test]
    fn failures_that_are_too_far_apart_or_few_among_many_do_nothing() {
        let mut story = Story::new();
        // One each five seconds.
        assert_eq!((0..20).map(|_| story.go(9, 1, 0).len() + story.go(1, 1, 1).len()).sum::<usize>(), 0);
        // One of six.
        assert_eq!(story.go(200, 6, 1), []);
        assert_eq!(ejected(&story.go(20, 4, 1)).len(), 1);
    }

    #[test]
    fn one_client_puts_nobody_out() {
        let mut story = Story { networks: 2, ..Story::new() };
        assert_eq!(story.go(100, 1, 1), []);
        story.networks = 3;
        assert_eq!(ejected(&story.go(10, 1, 1)).len(), 1);
    }

    #[test]
    fn each_time_in_a_row_takes_twice_as_long_up_to_sixteen_times() {
        let mut story = Story::new();
        let turns = story.go(10_000, 1, 1);
        let times: Vec<u64> = ejected(&turns).into_iter().map(|(_, time)| time).collect();
        assert_eq!(times[..7], [30, 60, 120, 240, 480, 480, 480]);
        // Out for that long, to the half second.
        let [(out, Turn::Ejected { .. }), (back, Turn::Returned), ..] = turns[..] else {
            panic!("{turns:?}")
        };
        assert_eq!(back - out, 60);
        // After it was in for as long without, it begins anew.
        story.go(2000, 10, 0);
        assert!(!story.watch.is_out(7));
        assert_eq!(ejected(&story.go(20, 1, 1))[0].1, 30);
    }

    #[test]
    fn another_config_goes_on_where_it_is_the_same() {
        let mut story = Story::new();
        assert_eq!(ejected(&story.go(5, 1, 1)).len(), 1);
        story.watch.set([(7, LIMIT), (8, LIMIT)].into_iter());
        assert!(story.watch.is_out(7) && !story.watch.is_out(8));
        story.watch.set([(7, Limit { failures: 6, ..LIMIT })].into_iter());
        assert!(!story.watch.is_out(7));
        story.watch.set(std::iter::empty());
        assert!(story.watch.is_empty());
    }
}
