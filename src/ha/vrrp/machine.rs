//! The state machine of one virtual router (RFC 9568 section 6.4): events and the time in, actions out.
//!
//! Some things go beyond the RFC. A router whose Active_Down_Timer has fired does not become Active by itself: it
//! *wants* to ([`Machine::wants_active`]), and whoever runs it says [`Event::TakeOver`], so that routers of a group can
//! wait for each other. And a router that is to take over from one of lower priority may be made to wait
//! ([`Settings::preempt_delay`]), also until it has all that it needs ([`Machine::hold_back`]).
//!
//! Two more are about losing nothing. Who is to leave ([`Event::Leave`]) says so with priority 0 and stays what it was,
//! *Leaving*, until another is heard. And an Active whose own advertisements are so long overdue that the others had to
//! take over (the process was stopped, the CPU taken away) does not take the addresses back from who has done so.

use std::net::IpAddr;
use std::time::Duration;

use arrayvec::ArrayVec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Centiseconds, LEAVING, OWNER};
use crate::time::Nanos;

/// What an operator says of a virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Priority, 1 to 255; 255 is that of the address owner.
    pub priority: u8,
    /// Advertisement_Interval.
    pub interval: Centiseconds,
    /// Preempt_Mode: takes over from an Active of lower priority.
    pub preempt: bool,
    /// How long an Active of lower priority is heard before it is taken over from.
    pub preempt_delay: Duration,
    /// The address that advertisements come from: decides between equal priorities.
    pub primary: IpAddr,
}

/// RFC 9568 section 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "RouterState")]
pub enum State {
    /// Takes no part: its interface is down, or that of another of its group.
    Initialize,
    /// Listens to the Active, ready to take over.
    Backup,
    /// Forwards and answers for the addresses.
    Active,
    /// The same, and asks others to take over; then it takes no part.
    Leaving,
}

impl State {
    /// In a word, for people.
    pub fn name(self) -> &'static str {
        match self {
            State::Initialize => "initialize",
            State::Backup => "backup",
            State::Active => "active",
            State::Leaving => "leaving",
        }
    }
}

/// A valid advertisement of another router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its priority; 0: it leaves.
    pub priority: u8,
    /// Its Max Advertise Interval.
    pub interval: Centiseconds,
    /// Its address.
    pub source: IpAddr,
}

/// What happens to a virtual router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is to take part: its interface is there.
    Startup,
    /// It is not to take part any more, at once.
    Shutdown,
    /// It is not to take part any more once another does.
    Leave,
    /// The time is [`Machine::deadline`] or later.
    Timer,
    /// All of its group want to be Active.
    TakeOver,
    /// Another of its group has become Backup.
    StandBack,
    /// Another router advertises.
    Advert(Heard),
}

/// What has to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It answers for the addresses from now on.
    BecomeActive,
    /// It does not answer for them any more.
    BecomeInactive,
    /// Send an advertisement with this priority.
    Advertise(u8),
    /// Tell the link where the addresses are.
    Announce,
}

/// At most: becoming Active is three.
pub type Actions = ArrayVec<Action, 3>;

/// The state machine of one virtual router.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    /// Active_Adver_Interval: what the Active says.
    active_interval: Centiseconds,
    /// The Adver_Timer of an Active, the Active_Down_Timer of a Backup.
    timer: Option<Nanos>,
    /// When an Active of lower priority was first heard, of those that were heard since without interruption.
    lower_since: Option<Nanos>,
    /// The Active_Down_Timer has fired.
    wants_active: bool,
    /// When the last advertisement was sent.
    advertised: Option<Nanos>,
    /// An Active has said its interval since the router is Backup.
    knows_active: bool,
    /// Between equal priorities the addresses decide.
    breaks_ties: bool,
    /// It is not to take over from an Active of lower priority for now.
    holds_back: bool,
}

/// Least time between an advertisement and one that answers another router: the shortest interval there is, so that
/// nobody can have us send more.
const ANSWER_GAP: Duration = Duration::from_millis(10);

impl Machine {
    /// One in Initialize.
    pub fn new(settings: Settings) -> Machine {
        Machine {
            settings,
            state: State::Initialize,
            active_interval: settings.interval,
            timer: None,
            lower_since: None,
            wants_active: false,
            advertised: None,
            knows_active: false,
            breaks_ties: true,
            holds_back: false,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Other settings from now on. Timers that run go on, unless they would run longer than by the new ones: others
    /// believe the new interval as soon as they hear it. A Backup that has heard an Active goes by its interval.
    pub fn set(&mut self, settings: Settings) {
        let before = self.active_down_interval();
        self.settings = settings;
        match self.state {
            State::Active | State::Leaving => {
                let due = self.advertised.map(|last| last.plus(settings.interval.duration()));
                self.timer = self.timer.map(|timer| due.map_or(timer, |due| timer.min(due)));
            }
            State::Backup if !self.knows_active => {
                self.active_interval = settings.interval;
                let less = before.saturating_sub(self.active_down_interval());
                self.timer = self.timer.map(|timer| Nanos(timer.0.saturating_sub(less.as_nanos() as u64)));
            }
            State::Backup | State::Initialize => {}
        }
    }

    /// Whether its address decides between equal priorities. Of a group one router's does: the addresses of others may
    /// be in another order, and both nodes would stand back.
    pub fn break_ties(&mut self, breaks_ties: bool) {
        self.breaks_ties = breaks_ties;
    }

    /// Whether it leaves the addresses to an Active of lower priority, as without Preempt_Mode: it lacks something.
    pub fn hold_back(&mut self, holds_back: bool) {
        self.holds_back = holds_back;
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Option<Nanos> {
        self.timer
    }

    /// A Backup that has heard no Active for Active_Down_Interval.
    pub fn wants_active(&self) -> bool {
        self.wants_active
    }

    /// Skew_Time (RFC 9568 section 6.1): who has the higher priority takes over first.
    pub fn skew_time(&self) -> Duration {
        self.active_interval.duration() * (256 - u32::from(self.settings.priority)) / 256
    }

    /// Active_Down_Interval (RFC 9568 section 6.1).
    pub fn active_down_interval(&self) -> Duration {
        self.active_interval.duration() * 3 + self.skew_time()
    }

    /// What follows from `event` at `now`.
    pub fn step(&mut self, event: Event, now: Nanos) -> Actions {
        let mut actions = Actions::new();
        match (self.state, event) {
            (State::Initialize, Event::Startup) if self.settings.priority == OWNER => {
                self.become_active(now, &mut actions);
            }
            (State::Initialize, Event::Startup) => {
                self.active_interval = self.settings.interval;
                self.listen(now);
            }
            (
                State::Initialize,
                Event::Shutdown
                | Event::Leave
                | Event::Timer
                | Event::TakeOver
                | Event::StandBack
                | Event::Advert(_),
            ) => {}
            (State::Backup, Event::Shutdown | Event::Leave) => self.initialize(),
            (State::Backup, Event::Timer) if self.is_due(now) => {
                self.timer = None;
                self.lower_since = None;
                self.wants_active = true;
            }
            (State::Backup, Event::TakeOver) => self.become_active(now, &mut actions),
            (State::Backup, Event::Advert(heard)) => self.backup_heard(heard, now),
            (State::Backup, Event::Startup | Event::Timer | Event::StandBack) => {}
            (State::Active | State::Leaving, Event::Shutdown) => {
                self.initialize();
                actions.push(Action::BecomeInactive);
                actions.push(Action::Advertise(LEAVING));
            }
            (State::Active, Event::Timer) if self.is_due(now) => {
                self.advertise(self.settings.priority, now, &mut actions);
            }
            (State::Active, Event::Leave) => {
                self.state = State::Leaving;
                self.advertise(LEAVING, now, &mut actions);
            }
            (State::Active, Event::StandBack) => {
                self.active_interval = self.settings.interval;
                self.listen(now);
                actions.push(Action::BecomeInactive);
            }
            (State::Active, Event::Advert(heard)) => self.active_heard(heard, now, &mut actions),
            (State::Active, Event::Startup | Event::Timer | Event::TakeOver) => {}
            // Nobody has taken over yet: it is to stay after all.
            (State::Leaving, Event::Startup) => {
                self.state = State::Active;
                self.advertise(self.settings.priority, now, &mut actions);
            }
            // An advertisement may get lost.
            (State::Leaving, Event::Timer) if self.is_due(now) => self.advertise(LEAVING, now, &mut actions),
            (State::Leaving, Event::Advert(heard)) if heard.priority != LEAVING => {
                self.initialize();
                actions.push(Action::BecomeInactive);
            }
            (
                State::Leaving,
                Event::Leave | Event::Timer | Event::TakeOver | Event::StandBack | Event::Advert(_),
            ) => {}
        }
        actions
    }

    fn is_due(&self, now: Nanos) -> bool {
        self.timer.is_some_and(|timer| timer <= now)
    }

    fn initialize(&mut self) {
        (self.state, self.timer) = (State::Initialize, None);
        (self.lower_since, self.wants_active) = (None, false);
    }

    /// Backup, from now on for a whole Active_Down_Interval.
    fn listen(&mut self, now: Nanos) {
        (self.state, self.wants_active) = (State::Backup, false);
        (self.lower_since, self.knows_active) = (None, false);
        self.timer = Some(now.plus(self.active_down_interval()));
    }

    fn become_active(&mut self, now: Nanos, actions: &mut Actions) {
        (self.state, self.wants_active, self.lower_since) = (State::Active, false, None);
        actions.push(Action::BecomeActive);
        self.advertise(self.settings.priority, now, actions);
        actions.push(Action::Announce);
    }

    fn advertise(&mut self, priority: u8, now: Nanos, actions: &mut Actions) {
        self.timer = Some(now.plus(self.settings.interval.duration()));
        self.advertised = Some(now);
        actions.push(Action::Advertise(priority));
    }

    /// RFC 9568 section 6.4.2.
    fn backup_heard(&mut self, heard: Heard, now: Nanos) {
        if heard.priority == LEAVING {
            // Sooner, never later: of several that leave, or when the timer was to fire at once.
            let soon = now.plus(self.skew_time());
            if !self.wants_active {
                self.timer = Some(self.timer.map_or(soon, |timer| timer.min(soon)));
            }
            return;
        }
        let is_lower = heard.priority < self.settings.priority;
        if self.settings.preempt && is_lower {
            if self.wants_active {
                return; // It has waited: now it waits for its group.
            }
            let since = *self.lower_since.get_or_insert(now);
            if !self.holds_back && now.since(since) >= self.settings.preempt_delay {
                return; // Discarded: the Active_Down_Timer goes on.
            }
        }
        let waits_since = self.lower_since.filter(|_| self.settings.preempt && is_lower);
        self.active_interval = heard.interval;
        self.listen(now);
        (self.lower_since, self.knows_active) = (waits_since, true);
    }

    /// Its last advertisement is so old that a Backup of the highest priority has taken over by now. Whoever runs it has
    /// it hear what has come in before it advertises again.
    fn was_away(&self, now: Nanos) -> bool {
        self.advertised.is_some_and(|last| now.since(last) > self.settings.interval.duration() * 3)
    }

    /// RFC 9568 section 6.4.3.
    fn active_heard(&mut self, heard: Heard, now: Nanos, actions: &mut Actions) {
        let ours = (self.settings.priority, self.settings.primary);
        if heard.priority == self.settings.priority && !self.breaks_ties && !self.was_away(now) {
            // Without an answer: the other would answer it, until the group has decided.
            actions.push(Action::Announce);
            return;
        }
        // Of the same family, so that the order of addresses is that of their bytes.
        if heard.priority != LEAVING && ((heard.priority, heard.source) > ours || self.was_away(now)) {
            self.active_interval = heard.interval;
            self.listen(now);
            self.knows_active = true;
            actions.push(Action::BecomeInactive);
            return;
        }
        if self.advertised.is_some_and(|last| now.since(last) < ANSWER_GAP) {
            return;
        }
        self.advertise(self.settings.priority, now, actions);
        if heard.priority != LEAVING {
            // Whoever believed the other learns better.
            actions.push(Action::Announce);
        }
    }
}
