//! Time as an argument: nanoseconds of the clock that drives a worker. Live it is CLOCK_MONOTONIC, in
//! replay the capture's clock.

use std::time::Duration;

/// A point in time, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// `seconds` after the start.
    pub const fn from_secs(seconds: u64) -> Nanos {
        Nanos(seconds * 1_000_000_000)
    }

    /// Whole seconds since the start.
    #[inline]
    pub fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// Time from `earlier` to now; zero if `earlier` is later.
    #[inline]
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `duration` later.
    #[inline]
    pub fn plus(self, duration: Duration) -> Nanos {
        Nanos(self.0.saturating_add(duration.as_nanos() as u64))
    }
}
