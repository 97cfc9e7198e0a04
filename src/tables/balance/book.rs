//! From verdicts of the checks to how much each backend takes: how many of a service may be out at once, and how slowly
//! one comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};

use super::Health;
use crate::time::Nanos;

/// Steps in which a backend that comes back gets to its full share.
const STEPS: u32 = 32;
/// The least of its share that one gets that is up.
const LEAST: u8 = 16;

/// A service whose backends are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Slots of its backends.
    pub backends: Vec<u32>,
    /// So many percent of them may be out at once, rounded down, but one.
    pub max_ejected_percent: u32,
    /// How long one that comes back takes until it has its full share.
    pub slow_start: Duration,
}

/// The last verdict on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// What the checks have said; `None`: nothing yet.
    up: Option<bool>,
    /// The flows of clients have put it out: it gets no new ones, and keeps those it has.
    ejected: bool,
    /// When it went out or came back last.
    since: Nanos,
    /// It has been out before, and has not got its full share yet.
    is_back: bool,
}

impl Known {
    const NOTHING: Known = Known { up: None, ejected: false, since: Nanos(0), is_back: false };

    fn is_in(&self) -> bool {
        self.up != Some(false) && !self.ejected
    }
}

/// All verdicts.
#[derive(Debug, Default)]
pub struct Book {
    services: Vec<Checked>,
    /// By backend: its service.
    service_of: AHashMap<u32, usize>,
    known: AHashMap<u32, Known>,
    /// Backends that start slowly, and when each takes more.
    steps: BTreeSet<(Nanos, u32)>,
}

impl Book {
    /// Other services. Verdicts on backends that are still checked stay; returned: the backends that no longer are.
    pub fn set_services(&mut self, services: Vec<Checked>) -> Vec<u32> {
        self.service_of = AHashMap::new();
        for (number, service) in services.iter().enumerate() {
            self.service_of.extend(service.backends.iter().map(|slot| (*slot, number)));
        }
        self.services = services;
        let gone: Vec<u32> =
            self.known.keys().filter(|slot| !self.service_of.contains_key(slot)).copied().collect();
        for slot in &gone {
            self.known.remove(slot);
        }
        self.steps.retain(|(_, slot)| self.known.contains_key(slot));
        gone
    }

    /// A verdict on a backend; false: it is not checked, or nothing new is said.
    pub fn note(&mut self, slot: u32, up: bool, at: Nanos) -> bool {
        self.change(slot, at, |known| Known { up: Some(up), ..known })
    }

    /// Clients' flows put a backend out, or let it back in; false: it is not watched, or nothing new is said.
    pub fn eject(&mut self, slot: u32, ejected: bool, at: Nanos) -> bool {
        self.change(slot, at, |known| Known { ejected, ..known })
    }

    fn change(&mut self, slot: u32, at: Nanos, said: impl FnOnce(Known) -> Known) -> bool {
        let Some(service) = self.service_of.get(&slot) else { return false };
        let before = self.known.get(&slot).copied().unwrap_or(Known::NOTHING);
        let mut after = said(before);
        if after == before {
            return false;
        }
        if after.is_in() != before.is_in() || before.up.is_none() {
            let slow_start = self.services[*service].slow_start;
            after.since = at;
            after.is_back = slow_start > Duration::ZERO && after.is_in() && !before.is_in();
            self.steps.retain(|(_, other)| *other != slot);
            if after.is_back {
                self.steps.insert((at.plus(slow_start / STEPS), slot));
            }
        }
        self.known.insert(slot, after);
        true
    }

    /// When something changes by itself.
    pub fn next_step(&self) -> Option<Nanos> {
        self.steps.first().map(|(due, _)| *due)
    }

    /// Backends that take more at `now` than before; the next step of each is noted.
    pub fn step(&mut self, now: Nanos) -> Vec<u32> {
        let mut stepped = Vec::new();
        while let Some((due, slot)) = self.steps.first().copied().filter(|(due, _)| *due <= now) {
            self.steps.remove(&(due, slot));
            stepped.push(slot);
            if let (Some(known), Some(service)) = (self.known.get_mut(&slot), self.service_of.get(&slot)) {
                let slow_start = self.services[*service].slow_start;
                if now < known.since.plus(slow_start) {
                    self.steps.insert((now.plus(slow_start / STEPS), slot));
                } else {
                    known.is_back = false;
                }
            }
        }
        stepped
    }

    /// When the last verdict on a backend came, and whether it is up.
    pub fn verdict(&self, slot: u32) -> Option<(bool, Nanos)> {
        self.known.get(&slot).and_then(|known| Some((known.up?, known.since)))
    }

    /// When a backend went out or came back last, or the checks first said something of it.
    pub fn since(&self, slot: u32) -> Option<Nanos> {
        self.known.get(&slot).map(|known| known.since)
    }

    /// Backends that clients' flows have put out.
    pub fn ejected(&self) -> impl Iterator<Item = u32> {
        self.known.iter().filter(|(_, known)| known.ejected).map(|(slot, _)| *slot)
    }

    /// How many services are checked.
    pub fn services(&self) -> usize {
        self.services.len()
    }

    /// The service of a backend, as a number.
    pub fn service_of(&self, slot: u32) -> Option<usize> {
        self.service_of.get(&slot).copied()
    }

    /// What the verdicts come to for each backend of a service. Of more that are down than may be out those that were
    /// last are used all the same.
    pub fn health(&self, service: usize, now: Nanos) -> Vec<(u32, Health)> {
        let Some(service) = self.services.get(service) else { return Vec::new() };
        // Who is known to be down before who is only put out.
        let mut down: Vec<(bool, Nanos, u32)> = service
            .backends
            .iter()
            .filter_map(|slot| {
                self.known
                    .get(slot)
                    .filter(|known| !known.is_in())
                    .map(|known| (known.up != Some(false), known.since, *slot))
            })
            .collect();
        down.sort_unstable();
        let most = service.backends.len() * service.max_ejected_percent as usize / 100;
        down.truncate(most.max(1));
        let out: AHashSet<u32> = down.into_iter().map(|(_, _, slot)| slot).collect();
        let of = |slot: &u32| {
            let health = match self.known.get(slot) {
                Some(known) if out.contains(slot) => Health { up: known.up != Some(false), level: 0 },
                Some(known) if known.is_in() && known.is_back => {
                    Health { up: true, level: level(service.slow_start, now.since(known.since)) }
                }
                _ => Health::WELL,
            };
            (*slot, health)
        };
        service.backends.iter().map(of).collect()
    }
}

/// The part of its share after `elapsed` of a slow start.
fn level(slow_start: Duration, elapsed: Duration) -> u8 {
    if elapsed >= slow_start {
        return u8::MAX;
    }
    let part = elapsed.as_nanos() * u128::from(u8::MAX) / slow_start.as_nanos();
    (part as u8).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn book(max_ejected_percent: u32, slow_start_s: u64) -> Book {
        let mut book = Book::default();
        let slow_start = Duration::from_secs(slow_start_s);
        book.set_services(vec![
            Checked { backends: vec![1, 2, 3, 4], max_ejected_percent, slow_start },
            Checked { backends: vec![9], max_ejected_percent: 100, slow_start: Duration::ZERO },
        ]);
        book
    }

    fn out(book: &Book, now: u64) -> Vec<u32> {
        let health = book.health(0, Nanos(now));
        health.into_iter().filter(|(_, health)| !health.up).map(|(slot, _)| slot).collect()
    }

    #[test]
    fn not_more_may_be_out_than_was_said() {
        let mut book = book(50, 0);
        assert_eq!(out(&book, 0), Vec::<u32>::new());
        for (at, slot) in [(5, 3), (6, 1), (7, 4)] {
            assert!(book.note(slot, false, Nanos(at)));
        }
        assert_eq!(out(&book, 8), [1, 3], "those that failed first");
        assert!(!book.note(3, false, Nanos(9)), "nothing new");
        assert!(book.note(3, true, Nanos(9)));
        assert_eq!(out(&book, 9), [1, 4]);
        assert!(!book.note(77, false, Nanos(9)), "nobody knows it");
        // The other service is by itself, and one may always be out.
        assert!(book.note(9, false, Nanos(9)));
        assert_eq!((book.service_of(9), book.service_of(77)), (Some(1), None));
        assert_eq!(book.health(1, Nanos(9)), [(9, Health { up: false, level: 0 })]);
        assert_eq!(book.health(2, Nanos(9)), []);
        let mut least = self::book(1, 0);
        least.note(2, false, Nanos(1));
        least.note(3, false, Nanos(2));
        assert_eq!(out(&least, 2), [2]);
    }

    #[test]
    fn who_comes_back_starts_slowly_and_who_was_never_away_does_not() {
        let mut book = book(100, 32);
        let level = |book: &Book, now: u64| book.health(0, Nanos(now * S))[1].1.level;
        assert!(book.note(2, true, Nanos(0)));
        assert_eq!((level(&book, 0), book.next_step()), (255, None));
        book.note(2, false, Nanos(S));
        assert_eq!(level(&book, 1), 0);
        book.note(2, true, Nanos(10 * S));
        assert_eq!((level(&book, 10), book.next_step()), (LEAST, Some(Nanos(11 * S))));
        assert_eq!(book.step(Nanos(10 * S)), Vec::<u32>::new());
        assert_eq!(book.step(Nanos(26 * S)), [2]);
        assert_eq!((level(&book, 26), book.next_step()), (127, Some(Nanos(27 * S))));
        assert_eq!(book.step(Nanos(42 * S)), [2]);
        assert_eq!((level(&book, 42), book.next_step()), (255, None));
        // Down again in the midst of it.
        book.note(2, false, Nanos(50 * S));
        book.note(2, true, Nanos(51 * S));
        book.note(2, false, Nanos(52 * S));
        assert_eq!((level(&book, 52), book.next_step()), (0, None));
    }

    #[test]
    fn who_is_ejected_keeps_its_flows_and_counts_among_those_that_are_out() {
        let mut book = book(50, 32);
        let of = |book: &Book, now: u64, slot: usize| book.health(0, Nanos(now * S))[slot - 1].1;
        assert!(book.eject(2, true, Nanos(S)) && !book.eject(2, true, Nanos(2 * S)));
        assert!(!book.eject(77, true, Nanos(S)), "nobody knows it");
        assert_eq!(of(&book, 1, 2), Health { up: true, level: 0 });
        assert_eq!(book.verdict(2), None, "the checks have said nothing");
        // Down as well: its flows come to what the service says, and it is out until both are over.
        assert!(book.note(2, false, Nanos(2 * S)));
        assert_eq!(of(&book, 2, 2), Health { up: false, level: 0 });
        assert!(book.eject(2, false, Nanos(3 * S)));
        let down = (Health { up: false, level: 0 }, Some((false, Nanos(2 * S))));
        assert_eq!((of(&book, 3, 2), book.verdict(2)), down);
        assert!(book.note(2, true, Nanos(4 * S)));
        assert_eq!((of(&book, 4, 2).level, book.next_step()), (LEAST, Some(Nanos(5 * S))));
        // The third of four is used all the same.
        for slot in [1, 3, 4] {
            assert!(book.eject(slot, true, Nanos(5 * S + u64::from(slot))));
        }
        assert_eq!([1, 3, 4].map(|slot| of(&book, 6, slot).level), [0, 0, 255]);
        assert_eq!(book.ejected().count(), 3);
    }

    #[test]
    fn what_is_no_longer_checked_is_forgotten() {
        let mut book = book(100, 32);
        book.note(1, false, Nanos(1));
        book.note(2, false, Nanos(1));
        book.note(2, true, Nanos(2));
        let left = Checked { backends: vec![1], max_ejected_percent: 100, slow_start: Duration::ZERO };
        assert_eq!(book.set_services(vec![left]), [2]);
        assert_eq!(
            (book.verdict(1), book.verdict(2), book.next_step()),
            (Some((false, Nanos(1))), None, None)
        );
    }
}
