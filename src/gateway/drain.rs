//! How the node goes out of service: [`crate::ha::drain`] between the virtual routers, the pair and the operator.

use std::time::Duration;

use super::Gateway;
use crate::control::{DrainEntry, DrainQuery, Fault};
use crate::ha::drain::{Action, Drain, Peer, Phase, Terms};
use crate::time::Nanos;

/// How long the other node may take to have all sessions, unless the operator says otherwise. A resync of some millions of
/// sessions takes less.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a process that was told to end (systemd kills one after 90 s).
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control thread rests while a drain is under way.
const STEP: Duration = Duration::from_millis(10);
/// What a Backup may take beyond its Skew_Time, which is less than an interval (RFC 9568 section 6.1).
const SLACK: Duration = Duration::from_millis(250);

/// The gateway's part of it.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    drain: Drain,
    /// The process is to end.
    must_stop: bool,
}

impl Gateway {
    /// The process is to end: hands over what the node is the Active of, in bounded time. [`Gateway::has_left`] says when.
    pub fn leave(&mut self) {
        let terms = Terms { force: true, timeout: SIGNAL_TIMEOUT, then_stops: true };
        // Under force it always begins.
        let _ = self.leaving.drain.begin(terms, self.drain_peer(), self.now());
        self.tend_drain();
    }

    /// Another process takes our place: nothing is left to do.
    pub(super) fn end_for_successor(&mut self) {
        self.leaving.must_stop = true;
    }

    /// True if there is nothing left to do before the process ends.
    pub fn has_left(&self) -> bool {
        self.leaving.must_stop
    }

    /// Goes on with a drain that is under way.
    pub fn tend_drain(&mut self) {
        while self.leaving.drain.is_under_way() {
            let now = self.now();
            let (peer, take_over) = (self.drain_peer(), self.take_over_limit());
            let before = self.leaving.drain.phase();
            let action = self.leaving.drain.step(now, peer, self.ha.leaving(), take_over);
            let drain = &self.leaving.drain;
            if drain.phase() != before {
                match drain.trouble() {
                    None => tracing::info!(phase = ?drain.phase(), "drain"),
                    Some(trouble) => tracing::warn!(phase = ?drain.phase(), %trouble, "drain"),
                }
            }
            match action {
                Some(Action::Leave) => {
                    // Who takes over is to ask for no neighbour first.
                    self.around.hurry();
                    self.tend_around();
                    self.ha.leave(true);
                }
                Some(Action::TakePart) => self.ha.leave(false),
                Some(Action::Stop) => self.leaving.must_stop = true,
                None if drain.phase() == before => return,
                None => {}
            }
        }
    }

    /// When [`Gateway::tend_drain`] has something to do, if it has.
    pub(super) fn next_drain_step(&self) -> Option<Nanos> {
        self.leaving.drain.is_under_way().then(|| self.now().plus(STEP))
    }

    /// Whom sessions are handed over to. Who is Backup everywhere has none to hand over.
    fn drain_peer(&self) -> Peer {
        let roles = &self.node.neighbours.roles;
        let is_active = self.ha.routers().iter().any(|router| roles.is_active(router.role));
        if is_active { self.pair.readiness().peer() } else { Peer::None }
    }

    /// How long others may take to be heard as the Active: an advertisement may get lost. Where the other node is not heard
    /// by its own cable it is most likely not there.
    fn take_over_limit(&self) -> Duration {
        let intervals = self.ha.routers().iter().map(|router| router.settings.interval.duration());
        let longest = intervals.max().unwrap_or_default();
        let asked = if self.pair.readiness().peer() == Peer::Absent { 1 } else { 2 };
        longest * asked + SLACK
    }

    pub(super) fn drain(&mut self, query: &DrainQuery) -> Result<DrainEntry, Fault> {
        let terms = Terms {
            force: query.force,
            timeout: query.timeout_s.map_or(TIMEOUT, |seconds| Duration::from_secs(seconds.get().into())),
            then_stops: query.stop,
        };
        if self.ha.routers().is_empty() {
            return Err(Fault::refused("no virtual router: there is nobody to hand over to ([[vrrp]])"));
        }
        let begun = self.leaving.drain.begin(terms, self.drain_peer(), self.now());
        begun.map_err(|trouble| Fault::refused(format!("{trouble}; `--force` goes all the same")))?;
        self.tend_drain();
        Ok(self.show_drain())
    }

    pub(super) fn cancel_drain(&mut self) -> Result<DrainEntry, Fault> {
        if self.leaving.drain.then_stops() {
            return Err(Fault::refused("the process is about to end"));
        }
        if self.leaving.drain.cancel(self.now()).is_some() {
            self.ha.leave(false);
            tracing::info!("drain: taken back");
        }
        Ok(self.show_drain())
    }

    pub(super) fn show_drain(&self) -> DrainEntry {
        let drain = &self.leaving.drain;
        DrainEntry {
            phase: drain.phase(),
            since_s: self.now().since(drain.since()).as_secs(),
            stops: drain.then_stops(),
            unready: match self.drain_peer() {
                Peer::There { unready, .. } if drain.phase() == Phase::Waiting => Some(unready),
                Peer::None | Peer::Absent | Peer::There { .. } => None,
            },
            trouble: drain.trouble().map(|trouble| trouble.to_string()),
        }
    }
}
