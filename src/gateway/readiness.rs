//! What the pair's thread says of sessions on the other node, for those who may not wait for it: the control thread and
//! that of the virtual routers.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::ha::drain::Peer;
use crate::time::Nanos;

/// What is younger is under way at any moment: whoever goes away goes on telling of it while it hands over.
const FRESH: Duration = Duration::from_millis(100);

/// Shared words, written by the pair's thread in each of its turns.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    is_configured: AtomicBool,
    is_there: AtomicBool,
    has_all: AtomicBool,
    is_ready: AtomicBool,
    /// The run of the other node that reads letters; 0: none.
    correspondent: AtomicU64,
    unready: AtomicU64,
    /// How long the replica is waited for at most, in nanoseconds.
    preempt_wait_ns: AtomicU64,
    witness: AtomicU8,
    /// This node hears neither the other nor the witness.
    is_cut_off: AtomicBool,
}

/// What is known of the witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Witness {
    /// The config names none.
    None,
    /// It was not asked often enough yet.
    Unknown,
    /// It does not answer.
    Silent,
    /// It does.
    Answers,
}

impl Readiness {
    /// The config has another node, or not. Nothing is known of it.
    pub fn reset(&self, preempt_wait: Option<Duration>) {
        self.note(false, false, false, 0);
        self.set_correspondent(None);
        self.is_configured.store(preempt_wait.is_some(), Relaxed);
        self.preempt_wait_ns.store(preempt_wait.unwrap_or_default().as_nanos() as u64, Relaxed);
    }

    pub fn note(&self, is_there: bool, has_all: bool, is_ready: bool, unready: u64) {
        self.is_there.store(is_there, Relaxed);
        self.has_all.store(has_all, Relaxed);
        self.is_ready.store(is_ready, Relaxed);
        self.unready.store(unready, Relaxed);
    }

    pub fn set_correspondent(&self, run: Option<u64>) {
        self.correspondent.store(run.unwrap_or(0), Relaxed);
    }

    /// The run of the other node that reads letters, if it is there.
    pub fn correspondent(&self) -> Option<u64> {
        Some(self.correspondent.load(Relaxed)).filter(|run| *run != 0)
    }

    /// The pair's thread hears the other node.
    pub fn is_there(&self) -> bool {
        self.is_there.load(Relaxed)
    }

    /// All sessions of the other node are here, and it is heard.
    pub fn has_all(&self) -> bool {
        self.has_all.load(Relaxed)
    }

    pub fn set_witness(&self, witness: Witness) {
        self.witness.store(witness as u8, Relaxed);
    }

    pub fn witness(&self) -> Witness {
        let all = [Witness::Unknown, Witness::Silent, Witness::Answers];
        let known = self.witness.load(Relaxed);
        all.into_iter().find(|witness| *witness as u8 == known).unwrap_or(Witness::None)
    }

    pub fn set_cut_off(&self, is_cut_off: bool) {
        self.is_cut_off.store(is_cut_off, Relaxed);
    }

    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Relaxed)
    }

    /// The other node, for whoever wants to go.
    pub fn peer(&self) -> Peer {
        match (self.is_configured.load(Relaxed), self.is_there.load(Relaxed)) {
            (false, _) => Peer::None,
            (true, false) => Peer::Absent,
            (true, true) => {
                Peer::There { is_ready: self.is_ready.load(Relaxed), unready: self.unready.load(Relaxed) }
            }
        }
    }

    fn preempt_wait(&self) -> Duration {
        Duration::from_nanos(self.preempt_wait_ns.load(Relaxed))
    }
}

/// Whether all that the other node lacks is of this moment.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// Records told until the moment before the last, and until the last.
    told: [u64; 2],
    next: Nanos,
}

impl Fresh {
    /// `told`: records told so far; `unready`: sessions that are not known yet, or not acknowledged.
    pub fn is_all(&mut self, told: u64, unready: u64, now: Nanos) -> bool {
        if now >= self.next {
            (self.told, self.next) = ([self.told[1], told], now.plus(FRESH));
        }
        unready <= told.saturating_sub(self.told[0])
    }
}

/// Whether this node waits for the other's sessions before it takes over from it, by its own decision.
///
/// A node that has come back has none. One that was stopped for a while has old ones, and the pair's thread may not have
/// noticed yet. One whose cable to the other is cut has those of then: better than nothing, and what it takes over for, a
/// dead port of the other's, may be worse.
#[derive(Debug, Default)]
pub(super) struct Patience {
    was_whole: bool,
    /// Since when it waits.
    since: Option<Nanos>,
    /// What is said before is out of date.
    not_before: Nanos,
}

/// Longer than two heartbeats of the pair: after that its thread knows whether the other node has given it up meanwhile.
const AFTER_ABSENCE: Duration = Duration::from_millis(500);

impl Patience {
    /// The thread did not run for a while.
    pub fn was_absent(&mut self, now: Nanos) {
        (self.was_whole, self.not_before) = (false, now.plus(AFTER_ABSENCE));
    }

    /// True if it is to wait. Bounded: the pair's `preempt_wait`.
    pub fn holds_back(&mut self, readiness: &Readiness, now: Nanos) -> bool {
        let is_whole = readiness.has_all.load(Relaxed) && now >= self.not_before;
        self.was_whole |= is_whole;
        let waits = readiness.is_configured.load(Relaxed)
            && !is_whole
            && (readiness.is_there.load(Relaxed) || !self.was_whole);
        if !waits {
            self.since = None;
            return false;
        }
        now.since(*self.since.get_or_insert(now)) < readiness.preempt_wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos::from_secs(100).plus(Duration::from_millis(millis))
    }

    #[test]
    fn who_comes_back_waits_and_not_for_ever() {
        let readiness = Readiness::default();
        let mut patience = Patience::default();
        assert!(!patience.holds_back(&readiness, at(0)), "there is no other node");
        readiness.reset(Some(Duration::from_secs(60)));
        assert!(patience.holds_back(&readiness, at(0)));
        readiness.note(true, false, false, 9);
        assert!(patience.holds_back(&readiness, at(59_999)));
        assert!(!patience.holds_back(&readiness, at(60_000)));
        readiness.note(true, true, false, 9);
        assert!(!patience.holds_back(&readiness, at(61_000)));
        // The cable is cut, the node has what there was; then it is there again, and all is told anew.
        readiness.note(false, false, false, 9);
        assert!(!patience.holds_back(&readiness, at(62_000)));
        readiness.note(true, false, false, 9);
        assert!(patience.holds_back(&readiness, at(63_000)));
        readiness.note(true, true, false, 9);
        assert!(!patience.holds_back(&readiness, at(64_000)));
        // It was stopped: what the pair's thread says may be of the time before.
        patience.was_absent(at(70_000));
        assert!(patience.holds_back(&readiness, at(70_400)));
        assert!(!patience.holds_back(&readiness, at(70_500)));
        readiness.reset(Some(Duration::ZERO));
        assert!(!Patience::default().holds_back(&readiness, at(0)), "not at all");
    }

    #[test]
    fn what_is_of_this_moment_keeps_nobody_waiting() {
        let mut fresh = Fresh::default();
        assert!(fresh.is_all(0, 0, at(0)));
        // A thousand sessions of before, and a new one every 10 ms.
        assert!(!fresh.is_all(50, 1000, at(500)));
        assert!(!fresh.is_all(60, 900, at(600)));
        assert!(fresh.is_all(70, 9, at(700)));
        fresh.is_all(70, 1, at(1000));
        assert!(!fresh.is_all(70, 1, at(1200)), "one that nobody tells of");
        assert!(fresh.is_all(70, 0, at(1200)));
    }
}
