//! One session (RFC 5880 section 6.8), asynchronous mode, active role: events and the time in, actions out.
//!
//! Beyond the RFC: what is sent out of turn, answers to polls and changes of the state, is sent at most once in
//! [`ANSWER_GAP`], so that nobody can have us send more. And when the link goes away the session is Down at once
//! ([`Event::PathDown`]): who knows need not wait for silence.

use std::num::NonZeroU32;
use std::time::Duration;

use arrayvec::ArrayVec;

use super::packet::{Control, Diagnostic, Micros, State};
use crate::time::Nanos;

/// Time between packets while the session is not Up: not less than this (RFC 5880 section 6.8.3).
pub const SLOW: Micros = Micros(1_000_000);

/// Least time between two packets out of turn: a tenth of the shortest interval that can be configured.
pub const ANSWER_GAP: Duration = Duration::from_millis(1);

/// What an operator says of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often is sent while the session is Up, and how often can be received.
    pub interval: Micros,
    /// Detect Mult: how many packets may be missing until the other end gives us up. Not 0.
    pub multiplier: u8,
}

/// What happens to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The link is there.
    PathUp,
    /// The link is gone.
    PathDown,
    /// The operator ends it.
    Disable,
    /// The time is [`Machine::transmit_due`] or later.
    Transmit,
    /// The time is [`Machine::detection_due`] or later, and what had come in until then has been heard.
    Detect,
    /// A packet that belongs to it.
    Heard(Control),
}

/// What has to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Its state is another.
    Changed,
    /// Send this.
    Send(Control),
}

/// At most.
pub type Actions = ArrayVec<Action, 2>;

/// What is known of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its number of the session; 0: not heard.
    pub discriminator: u32,
    /// Its state.
    pub state: State,
    /// Why its session left Up last.
    pub diagnostic: Diagnostic,
    /// It wants no periodic packets while both are Up.
    pub demand: bool,
    /// How many packets of its own may be missing.
    pub detect_mult: u8,
    /// How often it would like to send.
    pub desired_min_tx: Micros,
    /// How often it can receive.
    pub required_min_rx: Micros,
}

/// RFC 5880 section 6.8.1.
const UNHEARD: Remote = Remote {
    discriminator: 0,
    state: State::Down,
    diagnostic: Diagnostic::NONE,
    demand: false,
    detect_mult: 0,
    desired_min_tx: Micros(0),
    required_min_rx: Micros(1),
};

/// A Poll Sequence (RFC 5880 section 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    None,
    /// Packets ask for an answer.
    Asks,
    /// The same, and there has to be another one: what it tells has changed meanwhile.
    AsksAgain,
}

/// The state machine of one session.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    diagnostic: Diagnostic,
    discriminator: NonZeroU32,
    remote: Remote,
    has_path: bool,
    /// How often is sent: longer than what is told only until the other end knows.
    tx_interval: Micros,
    /// What detection goes by; longer than what is told only until the other end knows.
    rx_interval: Micros,
    poll: Poll,
    /// A poll of the other end's waits for its answer.
    owes_final: bool,
    sent: Option<Nanos>,
    heard: Option<Nanos>,
    transmit: Option<Nanos>,
    /// Who took the session down last said that its operator did.
    was_asked_down: bool,
    /// For jitter (xorshift).
    random: u64,
}

impl Machine {
    /// One without a path. `seed`: of its jitter.
    pub fn new(settings: Settings, discriminator: NonZeroU32, seed: u64) -> Machine {
        Machine {
            settings,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            discriminator,
            remote: UNHEARD,
            has_path: false,
            tx_interval: settings.interval.max(SLOW),
            rx_interval: settings.interval,
            poll: Poll::None,
            owes_final: false,
            sent: None,
            heard: None,
            transmit: None,
            was_asked_down: false,
            random: seed | 1,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it left Up last.
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// What is known of the other end.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Our number of the session.
    pub fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    /// It is down because the other end's operator has said so: no failure (RFC 5882 section 3.2).
    pub fn was_asked_down(&self) -> bool {
        self.was_asked_down
    }

    /// When [`Event::Transmit`] is due.
    pub fn transmit_due(&self) -> Option<Nanos> {
        self.transmit
    }

    /// When [`Event::Detect`] is due.
    pub fn detection_due(&self) -> Option<Nanos> {
        self.heard.map(|heard| heard.plus(self.detection_time()))
    }

    /// How long may be silence (RFC 5880 section 6.8.4); 0 of an other end that was not heard.
    pub fn detection_time(&self) -> Duration {
        let interval = self.rx_interval.max(self.remote.desired_min_tx);
        interval.duration() * u32::from(self.remote.detect_mult)
    }

    /// Time between packets, without jitter (RFC 5880 section 6.8.2).
    pub fn transmit_interval(&self) -> Duration {
        self.tx_interval.max(self.remote.required_min_rx).duration()
    }

    /// Other settings from now on (RFC 5880 section 6.8.3).
    pub fn set(&mut self, settings: Settings) {
        if settings == self.settings {
            return;
        }
        let is_other_interval = settings.interval != self.settings.interval;
        self.settings = settings;
        if self.state == State::Up && is_other_interval {
            self.begin_poll();
            // More often at once, less often once the other end knows.
            self.tx_interval = self.tx_interval.min(settings.interval);
            self.rx_interval = self.rx_interval.max(settings.interval);
        } else if self.state != State::Up {
            self.settle_intervals();
        }
        self.hurry();
    }

    /// What follows from `event` at `now`.
    pub fn step(&mut self, event: Event, now: Nanos) -> Actions {
        let before = self.state;
        let mut actions = Actions::new();
        match (self.state, event) {
            (State::AdminDown, Event::PathUp | Event::PathDown | Event::Disable | Event::Detect) => {}
            // RFC 5880 section 6.8.6: what comes in then is discarded.
            (State::AdminDown, Event::Heard(_)) => {}
            (State::Down | State::Init | State::Up, Event::PathUp) => {
                if !self.has_path {
                    self.has_path = true;
                    self.transmit = Some(now);
                }
            }
            (State::Down | State::Init | State::Up, Event::PathDown) => {
                self.has_path = false;
                self.lose(Diagnostic::PATH_DOWN);
                (self.transmit, self.owes_final) = (None, false);
            }
            (State::Down | State::Init | State::Up, Event::Disable) => {
                self.enter(State::AdminDown);
                self.diagnostic = Diagnostic::ADMIN_DOWN;
                self.transmit = self.has_path.then_some(now);
            }
            (State::Down | State::Init | State::Up, Event::Detect) => {
                if self.detection_due().is_some_and(|due| due <= now) {
                    self.lose(Diagnostic::EXPIRED);
                    // Also to who wanted to hear nothing: it may be another by now.
                    self.hurry();
                }
            }
            (State::Down | State::Init | State::Up, Event::Heard(control)) => {
                if self.has_path {
                    self.hear(&control, now);
                }
            }
            (State::AdminDown | State::Down | State::Init | State::Up, Event::Transmit) => {}
        }
        if self.state != before {
            actions.push(Action::Changed);
            self.soon(now);
        }
        if self.transmit.is_some_and(|due| due <= now) {
            self.transmit(now, &mut actions);
        }
        actions
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.poll = Poll::None;
        self.settle_intervals();
        if state == State::Up {
            // Faster from now on, which the other end is to know.
            self.tx_interval = self.settings.interval;
            self.begin_poll();
            self.was_asked_down = false;
        }
    }

    /// The other end is not heard any more.
    fn lose(&mut self, why: Diagnostic) {
        if matches!(self.state, State::Init | State::Up) {
            self.enter(State::Down);
            self.diagnostic = why;
            self.was_asked_down = false;
        }
        (self.remote, self.heard) = (UNHEARD, None);
    }

    /// RFC 5880 section 6.8.6, from where it is known that the packet belongs to the session.
    fn hear(&mut self, control: &Control, now: Nanos) {
        self.heard = Some(now);
        self.remote = Remote {
            discriminator: control.my_discriminator.get(),
            state: control.state,
            diagnostic: control.diagnostic,
            demand: control.demand,
            detect_mult: control.detect_mult,
            desired_min_tx: control.desired_min_tx,
            required_min_rx: control.required_min_rx,
        };
        if control.is_final {
            self.end_poll();
        }
        match (self.state, control.state) {
            (State::Down, State::Down) => self.enter(State::Init),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => self.enter(State::Up),
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(State::Down);
                self.diagnostic = Diagnostic::NEIGHBOUR_DOWN;
                self.was_asked_down = control.state == State::AdminDown;
            }
            (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up) => {}
            (State::AdminDown, _) => unreachable!("nothing is heard then"),
        }
        if control.poll {
            self.owes_final = true;
            self.soon(now);
        }
        self.hurry();
    }

    fn begin_poll(&mut self) {
        self.poll = if self.poll == Poll::None { Poll::Asks } else { Poll::AsksAgain };
    }

    fn end_poll(&mut self) {
        match self.poll {
            Poll::None => {}
            Poll::Asks => {
                self.poll = Poll::None;
                self.settle_intervals();
            }
            Poll::AsksAgain => self.poll = Poll::Asks,
        }
    }

    /// What is told is what is done.
    fn settle_intervals(&mut self) {
        self.tx_interval = self.desired_min_tx();
        self.rx_interval = self.settings.interval;
    }

    fn desired_min_tx(&self) -> Micros {
        if self.state == State::Up { self.settings.interval } else { self.settings.interval.max(SLOW) }
    }

    /// No periodic packets (RFC 5880 section 6.8.7).
    fn is_silent(&self) -> bool {
        let in_demand = self.remote.demand
            && self.poll == Poll::None
            && (self.state, self.remote.state) == (State::Up, State::Up);
        !self.has_path || self.remote.required_min_rx == Micros(0) || in_demand
    }

    /// What differs from the packet before is told at once.
    fn soon(&mut self, now: Nanos) {
        if !self.has_path || self.is_silent() && !self.owes_final {
            return;
        }
        let due = self.sent.map_or(now, |sent| sent.plus(ANSWER_GAP).max(now));
        self.transmit = Some(self.transmit.map_or(due, |transmit| transmit.min(due)));
    }

    /// The next packet comes no later than an interval after the last (RFC 5880 section 6.8.3), and not at all if the
    /// other end wants none.
    fn hurry(&mut self) {
        if self.is_silent() {
            self.transmit = self.transmit.filter(|_| self.owes_final);
        } else if let Some(sent) = self.sent {
            let due = sent.plus(self.transmit_interval());
            self.transmit = Some(self.transmit.map_or(due, |transmit| transmit.min(due)));
        }
    }

    fn transmit(&mut self, now: Nanos, actions: &mut Actions) {
        let is_last = self.state == State::AdminDown;
        actions.push(Action::Send(Control {
            diagnostic: self.diagnostic,
            state: self.state,
            // Not both (RFC 5880 section 6.5).
            poll: self.poll != Poll::None && !self.owes_final,
            is_final: self.owes_final && !is_last,
            is_authenticated: false,
            demand: false,
            detect_mult: self.settings.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: self.desired_min_tx(),
            required_min_rx: self.settings.interval,
        }));
        self.sent = Some(now);
        self.owes_final = false;
        self.transmit = None;
        if !is_last && !self.is_silent() {
            let interval = self.jittered();
            self.transmit = Some(now.plus(interval));
        }
    }

    /// 75 to 100 % of the interval, at most 90 % if none of our packets may be missing (RFC 5880 section 6.8.7).
    fn jittered(&mut self) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let most = if self.settings.multiplier == 1 { 900 } else { 1000 };
        let permille = 750 + (self.random >> 33) as u32 % (most - 750 + 1);
        self.transmit_interval() * permille / 1000
    }
}
