//! Going away without loss: a node hands everything to the other, and is out of service then.
//!
//! ```text
//!             begin               ready                  all heard, and LINGER more
//! in service -------> waiting -----------> handing over ---------------------------> drained
//!      ^                 |  too late            |  nobody takes over                    |
//!      +-----------------+----------------------+------------- cancel ------------------+
//! ```
//!
//! *Waiting*: until the other node has all sessions. *Handing over*: virtual routers advertise priority 0, and go on
//! forwarding until another has been heard to be the Active, and a second more ([`crate::ha::vrrp::LINGER`]). All of it is
//! bounded; what happens at the bound is for whoever began it to say ([`Terms::force`]).

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::vrrp::Leave;
use crate::time::Nanos;

/// What is said with a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// It goes on where it would be given up: sessions that the other node does not have are lost, and what nobody takes
    /// over is left all the same.
    pub force: bool,
    /// How long the other node may take to have all sessions.
    pub timeout: Duration,
    /// The process ends once it is drained.
    pub then_stops: bool,
}

/// The other node, as far as sessions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The config has none: nobody has this node's sessions, and nobody says so.
    None,
    /// It is not heard.
    Absent,
    /// It is there.
    There {
        /// It has all sessions but those of this moment.
        is_ready: bool,
        /// Those that it has not.
        unready: u64,
    },
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "DrainPhase")]
pub enum Phase {
    /// The node serves as ever.
    #[default]
    InService,
    /// The other node does not have all sessions yet.
    Waiting,
    /// Others are asked to take over, and what comes is forwarded.
    HandingOver,
    /// The node takes part in no virtual router.
    Drained,
}

/// Why a drain was given up, or what it has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// There is another node, and it is not heard.
    #[error("the other node is not heard: nobody has the sessions of this one")]
    PeerAbsent,
    /// The other node does not have all sessions in time.
    #[error("{unready} sessions are not known to the other node in time")]
    NotReady {
        /// How many.
        unready: u64,
    },
    /// No advertisement has come of anybody who has taken over.
    #[error("nobody has taken over the virtual routers in time")]
    NobodyTookOver,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Virtual routers are to leave ([`crate::ha::vrrp::Engine::leave`]).
    Leave,
    /// They are to take part again.
    TakePart,
    /// The process is to end.
    Stop,
}

/// A node's way out of service and back.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    phase: Phase,
    since: Nanos,
    /// When the phase is over at the latest.
    until: Nanos,
    /// Of the one that is under way, or was.
    terms: Option<Terms>,
    trouble: Option<Trouble>,
    /// [`Action::Stop`] has been said.
    has_stopped: bool,
}

impl Drain {
    /// The phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Since when.
    pub fn since(&self) -> Nanos {
        self.since
    }

    /// What went wrong with the last one.
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// The process ends at its end.
    pub fn then_stops(&self) -> bool {
        self.terms.is_some_and(|terms| terms.then_stops)
    }

    /// Something goes on that [`Drain::step`] has to look at.
    pub fn is_under_way(&self) -> bool {
        match self.phase {
            Phase::Waiting | Phase::HandingOver => true,
            Phase::Drained => self.then_stops() && !self.has_stopped,
            Phase::InService => false,
        }
    }

    /// Begins, or goes on under other terms. An error: it is not begun.
    pub fn begin(&mut self, terms: Terms, peer: Peer, now: Nanos) -> Result<(), Trouble> {
        if peer == Peer::Absent && !terms.force && matches!(self.phase, Phase::InService) {
            self.trouble = Some(Trouble::PeerAbsent);
            return Err(Trouble::PeerAbsent);
        }
        self.terms = Some(terms);
        match self.phase {
            Phase::InService | Phase::Waiting => {
                self.trouble = None;
                self.enter(Phase::Waiting, now, terms.timeout);
            }
            Phase::HandingOver | Phase::Drained => {}
        }
        Ok(())
    }

    /// Back into service, whatever it was about to do.
    pub fn cancel(&mut self, now: Nanos) -> Option<Action> {
        let had_left = matches!(self.phase, Phase::HandingOver | Phase::Drained);
        (self.terms, self.trouble, self.has_stopped) = (None, None, false);
        self.enter(Phase::InService, now, Duration::ZERO);
        had_left.then_some(Action::TakePart)
    }

    /// What follows at `now`. `leaving`: what the virtual routers have come to. `take_over`: how long others may take to be
    /// heard once they are asked.
    pub fn step(&mut self, now: Nanos, peer: Peer, leaving: Leave, take_over: Duration) -> Option<Action> {
        let terms = self.terms?;
        match self.phase {
            Phase::InService => None,
            Phase::Waiting => {
                let trouble = match peer {
                    Peer::None | Peer::There { is_ready: true, .. } => None,
                    Peer::Absent => Some(Trouble::PeerAbsent),
                    Peer::There { unready, .. } if self.until <= now => Some(Trouble::NotReady { unready }),
                    Peer::There { .. } => return None,
                };
                self.trouble = trouble;
                if trouble.is_some() && !terms.force {
                    self.enter(Phase::InService, now, Duration::ZERO);
                    return None;
                }
                self.enter(Phase::HandingOver, now, take_over);
                Some(Action::Leave)
            }
            Phase::HandingOver => match leaving {
                Leave::Gone => {
                    self.enter(Phase::Drained, now, Duration::ZERO);
                    None
                }
                Leave::Asks if self.until <= now => {
                    self.trouble = Some(Trouble::NobodyTookOver);
                    // Who does not end has to serve what nobody else does, also under force.
                    let goes = terms.force && terms.then_stops;
                    self.enter(if goes { Phase::Drained } else { Phase::InService }, now, Duration::ZERO);
                    (!goes).then_some(Action::TakePart)
                }
                // It has not been told yet, or waits.
                Leave::Stays | Leave::Asks | Leave::Lingers => None,
            },
            Phase::Drained if terms.then_stops && !self.has_stopped => {
                self.has_stopped = true;
                Some(Action::Stop)
            }
            Phase::Drained => None,
        }
    }

    fn enter(&mut self, phase: Phase, now: Nanos, limit: Duration) {
        (self.phase, self.since, self.until) = (phase, now, now.plus(limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { force: false, timeout: Duration::from_secs(30), then_stops: false };
    const TAKE_OVER: Duration = Duration::from_millis(450);
    const READY: Peer = Peer::There { is_ready: true, unready: 0 };
    const UNREADY: Peer = Peer::There { is_ready: false, unready: 7 };

    fn at(millis: u64) -> Nanos {
        Nanos::from_secs(100).plus(Duration::from_millis(millis))
    }

    /// What is done at these moments, and the phase behind it.
    fn check(terms: Terms, moments: &[(u64, Peer, Leave, Option<Action>, Phase)]) -> Drain {
        let mut drain = Drain::default();
        drain.begin(terms, moments[0].1, at(0)).expect("it begins");
        for (millis, peer, leaving, action, phase) in moments {
            assert_eq!(drain.step(at(*millis), *peer, *leaving, TAKE_OVER), *action, "at {millis} ms");
            assert_eq!(drain.phase(), *phase, "at {millis} ms");
        }
        drain
    }

    #[test]
    fn it_waits_for_the_other_and_forwards_until_that_is_heard() {
        use Leave::{Asks, Gone, Lingers, Stays};
        use Phase::{Drained, HandingOver, Waiting};
        let drain = check(
            TERMS,
            &[
                (0, UNREADY, Stays, None, Waiting),
                (29_999, UNREADY, Stays, None, Waiting),
                (29_999, READY, Stays, Some(Action::Leave), HandingOver),
                (30_000, READY, Stays, None, HandingOver),
                (30_100, UNREADY, Asks, None, HandingOver),
                (30_448, UNREADY, Asks, None, HandingOver),
                (30_449, UNREADY, Lingers, None, HandingOver),
                (31_400, Peer::Absent, Lingers, None, HandingOver),
                (31_449, READY, Gone, None, Drained),
                (99_000, READY, Gone, None, Drained),
            ],
        );
        assert_eq!((drain.trouble(), drain.is_under_way()), (None, false));
        check(TERMS, &[(0, Peer::None, Stays, Some(Action::Leave), HandingOver)]);
        let then_stops = Terms { then_stops: true, ..TERMS };
        check(
            then_stops,
            &[
                (0, READY, Stays, Some(Action::Leave), HandingOver),
                (9, READY, Gone, None, Drained),
                (9, READY, Gone, Some(Action::Stop), Drained),
                (10, READY, Gone, None, Drained),
            ],
        );
    }

    #[test]
    fn what_cannot_be_handed_over_stays_unless_forced() {
        use Leave::{Asks, Stays};
        use Phase::{Drained, HandingOver, InService, Waiting};
        assert_eq!(Drain::default().begin(TERMS, Peer::Absent, at(0)), Err(Trouble::PeerAbsent));
        let drain =
            check(TERMS, &[(0, UNREADY, Stays, None, Waiting), (1, Peer::Absent, Stays, None, InService)]);
        assert_eq!(drain.trouble(), Some(Trouble::PeerAbsent));
        let drain = check(TERMS, &[(30_000, UNREADY, Stays, None, InService)]);
        assert_eq!(drain.trouble(), Some(Trouble::NotReady { unready: 7 }));
        let asked = [
            (0, READY, Stays, Some(Action::Leave), HandingOver),
            (450, READY, Asks, Some(Action::TakePart), InService),
        ];
        let nobody = Some(Trouble::NobodyTookOver);
        assert_eq!(check(TERMS, &asked).trouble(), nobody);
        let forced = Terms { force: true, ..TERMS };
        assert_eq!(check(forced, &asked).trouble(), nobody);
        let drain = check(forced, &[(30_000, UNREADY, Stays, Some(Action::Leave), HandingOver)]);
        assert_eq!(drain.trouble(), Some(Trouble::NotReady { unready: 7 }));
        let ends = Terms { then_stops: true, ..forced };
        let drain = check(
            ends,
            &[
                (0, Peer::Absent, Stays, Some(Action::Leave), HandingOver),
                (450, Peer::Absent, Asks, None, Drained),
                (450, Peer::Absent, Asks, Some(Action::Stop), Drained),
            ],
        );
        assert_eq!(drain.trouble(), nobody);
    }

    #[test]
    fn it_can_be_taken_back_and_hurried_on() {
        let mut drain = check(TERMS, &[(0, UNREADY, Leave::Stays, None, Phase::Waiting)]);
        assert_eq!(drain.cancel(at(1)), None);
        assert_eq!(drain.phase(), Phase::InService);
        let mut drain = check(TERMS, &[(0, READY, Leave::Stays, Some(Action::Leave), Phase::HandingOver)]);
        assert_eq!(drain.cancel(at(1)), Some(Action::TakePart));
        assert_eq!(drain.step(at(9000), READY, Leave::Asks, TAKE_OVER), None);
        // A signal while an operator's drain waits.
        let mut drain = check(TERMS, &[(0, UNREADY, Leave::Stays, None, Phase::Waiting)]);
        let soon = Terms { force: true, timeout: Duration::ZERO, then_stops: true };
        drain.begin(soon, UNREADY, at(5)).expect("it goes on");
        assert_eq!(drain.step(at(5), UNREADY, Leave::Stays, TAKE_OVER), Some(Action::Leave));
    }
}
