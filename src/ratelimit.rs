//! Shared rate limits: each bucket is one atomic word.
//!
//! A bucket holds the *theoretical arrival time* of the generic cell rate algorithm (ITU-T I.371): the
//! time up to which its tokens are spent. That is a token bucket of `burst` tokens refilled at `rate`,
//! without a timer and without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::packet::hash::{self, Key};
use crate::time::Nanos;

/// Tokens a second, and how many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// A second.
    pub per_s: u32,
    /// At once.
    pub burst: u32,
}

/// How far time is moved on, so that an untouched bucket (0) is full also at the start of the clock. It is the same for
/// all rates, so that a bucket goes on when its rate changes: more than the largest burst takes at one a second.
const HEAD_START: u64 = 1 << 54;

impl Rate {
    /// Takes a token of a bucket that is spent up to `spent_to`: up to when it is then. `None`: there is none. An
    /// untouched bucket (0) is full.
    #[inline]
    pub fn spend(self, spent_to: u64, now: Nanos) -> Option<u64> {
        if self.per_s == 0 || self.burst == 0 {
            return None;
        }
        let interval = 1_000_000_000 / u64::from(self.per_s);
        let now = now.0 + HEAD_START;
        let next = spent_to.max(now.saturating_sub(interval * u64::from(self.burst))) + interval;
        (next <= now).then_some(next)
    }
}

/// A token bucket in one word.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// A full one.
    pub const fn new() -> Bucket {
        Bucket(AtomicU64::new(0))
    }

    /// Takes a token; false if there is none. `rate` tokens a second, at most `burst` at once.
    pub fn take(&self, rate: u32, burst: u32, now: Nanos) -> bool {
        let rate = Rate { per_s: rate, burst };
        let mut spent_to = self.0.load(Ordering::Relaxed);
        loop {
            let Some(next) = rate.spend(spent_to, now) else { return false };
            match self.0.compare_exchange_weak(spent_to, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) => spent_to = seen,
            }
        }
    }
}

/// When something was done last or will be done next, in one word: at most once per gap, whoever asks.
#[derive(Debug, Default)]
pub struct Appointment(AtomicU64);

impl Appointment {
    /// Makes an appointment `delay` from now, or `gap` and `delay` after the last one if that was less than `gap`
    /// ago. `None` while one lies ahead, and for whoever comes second.
    pub fn make(&self, gap: Duration, delay: Duration, now: Nanos) -> Option<Nanos> {
        let last = self.0.load(Ordering::Relaxed);
        // Time 0 is "never".
        let earliest = if last == 0 { Nanos(0) } else { Nanos(last).plus(gap) };
        if Nanos(last) > now {
            return None;
        }
        let due = Nanos(earliest.max(now).plus(delay).0.max(1));
        let made = self.0.compare_exchange(last, due.0, Ordering::Relaxed, Ordering::Relaxed);
        made.is_ok().then_some(due)
    }

    /// Takes the moment, if there was none within `gap` and none lies ahead.
    pub fn take(&self, gap: Duration, now: Nanos) -> bool {
        let last = self.0.load(Ordering::Relaxed);
        let free = last == 0 || (Nanos(last) <= now && now.since(Nanos(last)) >= gap);
        free && self.0.compare_exchange(last, now.0.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Buckets per source prefix, by hash: two prefixes may share one, none can grow the table.
#[derive(Debug)]
pub struct SourceBuckets {
    buckets: Box<[Bucket]>,
    key: Key,
}

const SOURCE_BUCKETS: usize = 4096;

impl SourceBuckets {
    /// Full buckets, found by hash under `key`.
    pub fn new(key: Key) -> SourceBuckets {
        SourceBuckets { buckets: (0..SOURCE_BUCKETS).map(|_| Bucket::default()).collect(), key }
    }

    /// Takes a token from the bucket of `prefix`.
    pub fn take(&self, prefix: u128, rate: u32, burst: u32, now: Nanos) -> bool {
        let at = hash::address(self.key, prefix, 0) as usize % SOURCE_BUCKETS;
        self.buckets[at].take(rate, burst, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::default();
        let taken = |ms: u64| (0..1000).filter(|_| bucket.take(10, 5, Nanos(ms * 1_000_000))).count();
        assert_eq!(taken(0), 5);
        assert_eq!(taken(50), 0);
        assert_eq!(taken(100), 1);
        assert_eq!(taken(400), 3);
        assert_eq!(taken(10_000), 5);
    }

    #[test]
    fn another_rate_goes_on_with_what_is_spent() {
        let bucket = Bucket::default();
        let taken =
            |rate, burst, s: u64| (0..2000).filter(|_| bucket.take(rate, burst, Nanos::from_secs(s))).count();
        assert_eq!(taken(10, 1000, 5), 1000);
        assert_eq!(taken(10, 8, 5), 0);
        assert_eq!(taken(10, 8, 6), 8, "nobody waits for what the larger burst would have been");
        assert_eq!(taken(1, 500, 106), 100);
        assert!(Rate { per_s: 1, burst: 10_000_000 }.spend(0, Nanos(0)).is_some());
    }

    #[test]
    fn one_appointment_lies_ahead_and_the_gap_is_kept() {
        let second = Duration::from_secs(1);
        let delay = Duration::from_millis(300);
        let at = |ms: u64| Nanos(ms * 1_000_000);
        let (asked, own) = (Appointment::default(), Appointment::default());
        assert_eq!(asked.make(3 * second, delay, at(10)), Some(at(310)));
        assert_eq!(asked.make(3 * second, delay, at(20)), None, "it lies ahead");
        assert!(!asked.take(3 * second, at(200)) && !asked.take(3 * second, at(3000)));
        assert_eq!(asked.make(3 * second, delay, at(1000)), Some(at(3610)), "not within the gap");
        assert_eq!(asked.make(3 * second, delay, at(9000)), Some(at(9300)));
        assert!(asked.take(3 * second, at(12_300)));
        assert!(own.take(3 * second, at(0)) && !own.take(3 * second, at(1)));
    }

    #[test]
    fn threads_share_one_bucket() {
        let bucket = Bucket::default();
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| bucket.take(10, 100, Nanos(5))).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(total, 100);
    }
}
