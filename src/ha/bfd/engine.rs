//! All sessions of a node: packets, the time and plans in; packets and changes out.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};

use super::machine::{Action, Actions, Event, Machine, Remote, Settings};
use super::packet::{Control, Datagram};
use super::{BadControl, Diagnostic, State};
use crate::ha::one_hop::source_of;
use crate::time::Nanos;

/// RFC 5881 section 4: where source ports are from.
const FIRST_PORT: u16 = 49_152;
const PORTS: u16 = 16_384;

/// A session, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPlan {
    /// Interface slot.
    pub link: u16,
    /// Our address on it.
    pub local: IpAddr,
    /// The other end's, of the same family.
    pub peer: IpAddr,
    /// How often.
    pub settings: Settings,
    /// The interface can send and receive.
    pub up: bool,
}

impl SessionPlan {
    /// What stays the same of a session.
    fn key(&self) -> (u16, IpAddr, IpAddr) {
        (self.link, self.peer, self.local)
    }
}

/// The sessions of a node. No two are with the same peer on the same link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In configured order.
    pub sessions: Vec<SessionPlan>,
}

/// What has to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send an IP packet to a neighbour.
    Send {
        /// Interface slot.
        link: u16,
        /// Whom to, who is on that link.
        peer: IpAddr,
        /// From the IP header on.
        packet: Vec<u8>,
    },
    /// Tell the operator, and whoever goes by it.
    Changed {
        /// Interface slot.
        link: u16,
        /// With whom.
        peer: IpAddr,
        /// What it is now.
        state: State,
        /// Why it left Up last.
        diagnostic: Diagnostic,
    },
}

/// Packets of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent, answers included.
    pub sent: u64,
    /// Valid ones received.
    pub received: u64,
    /// How often it has come Up.
    pub came_up: u64,
    /// How often it has left Up.
    pub went_down: u64,
    /// By position in [`BadControl::ALL`].
    pub errors: [u64; BadControl::ALL.len()],
}

/// What a session says of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Nothing yet: it has not been Up since it was configured.
    Unproven,
    /// Packets get there and back.
    Good,
    /// They did, and do not any more.
    Failed,
    /// The other end's operator has ended the session, which says nothing of the path (RFC 5882 section 3.2).
    Ended,
}

/// A session as it is.
#[derive(Clone, Debug)]
pub struct Status {
    /// The plan it follows.
    pub plan: SessionPlan,
    /// Its state.
    pub state: State,
    /// Why it left Up last.
    pub diagnostic: Diagnostic,
    /// What follows from that.
    pub path: Path,
    /// Our number of it.
    pub discriminator: NonZeroU32,
    /// What is known of the other end.
    pub remote: Remote,
    /// Time between packets, without jitter.
    pub transmit_interval: Duration,
    /// How long may be silence.
    pub detection_time: Duration,
    /// When the state was entered.
    pub since: Nanos,
    /// Packets.
    pub counters: Counters,
}

struct Session {
    plan: SessionPlan,
    machine: Machine,
    src_port: u16,
    since: Nanos,
    counters: Counters,
}

/// The sessions of a node, running.
pub struct Engine {
    sessions: Vec<Session>,
    /// Places by our discriminator.
    by_discriminator: AHashMap<u32, usize>,
    /// Places by link and peer.
    by_peer: AHashMap<(u16, IpAddr), usize>,
    /// By position in [`BadControl::ALL`]: those that are of no session.
    strays: [u64; BadControl::ALL.len()],
    /// What discriminators, ports and jitter are drawn from (splitmix64).
    random: u64,
}

impl Engine {
    /// Without sessions. `seed` should not be guessed: who knew it could speak for others.
    pub fn new(seed: u64) -> Engine {
        Engine {
            sessions: Vec::new(),
            by_discriminator: AHashMap::new(),
            by_peer: AHashMap::new(),
            strays: [0; BadControl::ALL.len()],
            random: seed,
        }
    }

    /// Ends the sessions that are not in `plan`, which [`Engine::set_plan`] is to follow: their last word goes by links
    /// that may be gone then.
    pub fn end_others(&mut self, plan: &Plan, now: Nanos, out: &mut Vec<Output>) {
        let stays: AHashSet<_> = plan.sessions.iter().map(SessionPlan::key).collect();
        for session in self.sessions.iter_mut().filter(|session| !stays.contains(&session.plan.key())) {
            session.step(Event::Disable, now, out);
        }
    }

    /// Follows another plan. A session that is in both goes on as it was; one that is no more ends with a word.
    pub fn set_plan(&mut self, plan: Plan, now: Nanos, out: &mut Vec<Output>) {
        self.end_others(&plan, now, out);
        let old = std::mem::take(&mut self.sessions);
        let mut old: AHashMap<_, Session> =
            old.into_iter().map(|session| (session.plan.key(), session)).collect();
        // What goes on keeps its number and port.
        let stays = plan.sessions.iter().filter_map(|plan| old.get(&plan.key()));
        let mut taken: (AHashSet<u32>, AHashSet<u16>) =
            stays.map(|session| (session.machine.discriminator().get(), session.src_port)).unzip();
        self.by_discriminator.clear();
        self.by_peer.clear();
        for plan in plan.sessions {
            let mut session = match old.remove(&plan.key()) {
                Some(session) => session,
                None => {
                    let discriminator = self.draw_discriminator(&mut taken.0);
                    let src_port = self.draw_port(&mut taken.1);
                    let machine = Machine::new(plan.settings, discriminator, self.draw());
                    Session {
                        plan: plan.clone(),
                        machine,
                        src_port,
                        since: now,
                        counters: Counters::default(),
                    }
                }
            };
            session.machine.set(plan.settings);
            session.plan = plan;
            let event = if session.plan.up { Event::PathUp } else { Event::PathDown };
            session.step(event, now, out);
            self.by_discriminator.insert(session.machine.discriminator().get(), self.sessions.len());
            self.by_peer.insert((session.plan.link, session.plan.peer), self.sessions.len());
            self.sessions.push(session);
        }
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn draw_discriminator(&mut self, taken: &mut AHashSet<u32>) -> NonZeroU32 {
        loop {
            if let Some(drawn) = NonZeroU32::new(self.draw() as u32)
                && taken.insert(drawn.get())
            {
                return drawn;
            }
        }
    }

    /// Of many more than there can be sessions.
    fn draw_port(&mut self, taken: &mut AHashSet<u16>) -> u16 {
        let first = self.draw() as u16 % PORTS;
        let mut ports = (0..PORTS).map(|step| FIRST_PORT + (first + step) % PORTS);
        ports.find(|port| taken.insert(*port)).unwrap_or(FIRST_PORT)
    }

    /// Takes a control packet that came in by an interface: the IP packet from its first byte on.
    pub fn receive(&mut self, link: u16, packet: &[u8], now: Nanos, out: &mut Vec<Output>) {
        let sender = source_of(packet).and_then(|sender| self.by_peer.get(&(link, sender)).copied());
        let found = match Datagram::parse(packet) {
            Ok(datagram) => self.find(sender, &datagram).map(|place| (place, datagram.control)),
            Err(bad) => Err(bad),
        };
        match found {
            Ok((place, control)) => {
                let session = &mut self.sessions[place];
                session.counters.received += 1;
                session.step(Event::Heard(control), now, out);
            }
            Err(bad) => {
                count(sender.map_or(&mut self.strays, |at| &mut self.sessions[at].counters.errors), bad)
            }
        }
    }

    /// RFC 5880 section 6.8.6, what concerns discriminators and authentication, in its order. Beyond it only who is
    /// configured on that link is heard, by our address there.
    fn find(&self, sender: Option<usize>, datagram: &Datagram) -> Result<usize, BadControl> {
        let Datagram { dst_addr, control, .. } = datagram;
        let place = match control.your_discriminator {
            0 if !matches!(control.state, State::Down | State::AdminDown) => return Err(BadControl::NotDown),
            0 => sender.ok_or(BadControl::UnknownPeer)?,
            known => *self.by_discriminator.get(&known).ok_or(BadControl::YourDiscriminator)?,
        };
        let plan = &self.sessions[place].plan;
        if sender != Some(place) {
            return Err(BadControl::YourDiscriminator);
        }
        if plan.local != *dst_addr {
            return Err(BadControl::UnknownPeer);
        }
        if control.is_authenticated { Err(BadControl::Authenticated) } else { Ok(place) }
    }

    /// Does what is due. Packets that have come in are to be taken first: a thread that was kept from running must not
    /// take its own absence for the other end's. So nobody is given up while his link is one of `unread`.
    pub fn poll(&mut self, now: Nanos, unread: &[u16], out: &mut Vec<Output>) {
        let is_due = |due: Option<Nanos>| due.is_some_and(|due| due <= now);
        for session in &mut self.sessions {
            if is_due(session.machine.detection_due()) && !unread.contains(&session.plan.link) {
                session.step(Event::Detect, now, out);
            }
            if is_due(session.machine.transmit_due()) {
                session.step(Event::Transmit, now, out);
            }
        }
    }

    /// When [`Engine::poll`] has something to do.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let due = |session: &Session| {
            [session.machine.transmit_due(), session.machine.detection_due()].into_iter().flatten().min()
        };
        self.sessions.iter().filter_map(due).min()
    }

    /// Ends all sessions, with a word to the others.
    pub fn stop(&mut self, now: Nanos, out: &mut Vec<Output>) {
        self.set_plan(Plan::default(), now, out);
    }

    /// All sessions, in the plan's order.
    pub fn status(&self) -> Vec<Status> {
        let status = |session: &Session| Status {
            plan: session.plan.clone(),
            state: session.machine.state(),
            diagnostic: session.machine.diagnostic(),
            path: session.path(),
            discriminator: session.machine.discriminator(),
            remote: *session.machine.remote(),
            transmit_interval: session.machine.transmit_interval(),
            detection_time: session.machine.detection_time(),
            since: session.since,
            counters: session.counters,
        };
        self.sessions.iter().map(status).collect()
    }

    /// What the session with a peer says of the path; `None`: there is no such session.
    pub fn path(&self, link: u16, peer: IpAddr) -> Option<Path> {
        self.by_peer.get(&(link, peer)).map(|place| self.sessions[*place].path())
    }

    /// Packets that are of no session, or cannot be read, by position in [`BadControl::ALL`].
    pub fn strays(&self) -> &[u64; BadControl::ALL.len()] {
        &self.strays
    }
}

impl Session {
    fn step(&mut self, event: Event, now: Nanos, out: &mut Vec<Output>) {
        let before = self.machine.state();
        let actions: Actions = self.machine.step(event, now);
        for action in actions {
            match action {
                Action::Changed => {
                    let (state, diagnostic) = (self.machine.state(), self.machine.diagnostic());
                    self.since = now;
                    self.counters.came_up += u64::from(state == State::Up);
                    self.counters.went_down += u64::from(before == State::Up);
                    let SessionPlan { link, peer, .. } = self.plan;
                    out.push(Output::Changed { link, peer, state, diagnostic });
                }
                Action::Send(control) => self.send(control, out),
            }
        }
    }

    fn send(&mut self, control: Control, out: &mut Vec<Output>) {
        self.counters.sent += 1;
        let SessionPlan { link, local, peer, .. } = self.plan;
        let datagram = Datagram { src_addr: local, dst_addr: peer, src_port: self.src_port, control };
        out.push(Output::Send { link, peer, packet: datagram.emit() });
    }

    fn path(&self) -> Path {
        match self.machine.state() {
            State::Up => Path::Good,
            State::AdminDown | State::Down | State::Init if self.counters.came_up == 0 => Path::Unproven,
            State::AdminDown | State::Down | State::Init if self.machine.was_asked_down() => Path::Ended,
            State::AdminDown | State::Down | State::Init => Path::Failed,
        }
    }
}

fn count(errors: &mut [u64; BadControl::ALL.len()], bad: BadControl) {
    let place = BadControl::ALL.iter().position(|known| *known == bad);
    errors[place.unwrap_or_else(|| unreachable!("all of them are in the list"))] += 1;
}
