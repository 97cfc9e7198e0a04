//! What the HA thread knows of paths: its BFD sessions, and neighbours that are tracked.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

use ahash::AHashMap;

use super::filter;
use super::sockets::{PlannedDevice, Sockets};
use crate::ha::bfd::{self, BadControl, Engine, Output, Path, State};
use crate::ha::neighbour::{Ask, Key, Watcher};
use crate::ha::vrrp::engine::Frame;
use crate::host::{arp, nd};
use crate::neighbours::{self, addr_key, mac_from_u64};
use crate::packet::view::ethertype;
use crate::time::Nanos;
use crate::worker::Node;

/// What is to be known of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PathPlan {
    pub bfd: bfd::Plan,
    /// Neighbours that are tracked, each once.
    pub neighbours: Vec<Key>,
    /// Devices of ports with either, once for each link.
    pub devices: Vec<PlannedDevice>,
}

/// A path by which somebody goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathKey {
    /// That of a BFD session.
    Bfd(Key),
    /// That to a neighbour that is tracked.
    Neighbour(Key),
}

/// What is known of paths.
#[derive(Clone, Debug, Default)]
pub(in crate::gateway) struct PathStatus {
    /// BFD sessions, in configured order.
    pub sessions: Vec<bfd::Status>,
    /// Control packets that are of none of them or cannot be read, by position in [`BadControl::ALL`].
    pub strays: [u64; BadControl::ALL.len()],
    /// Neighbours that are tracked, and whether they are there.
    pub neighbours: Vec<(Key, bool)>,
    /// Control packets that were not sent because the peer's MAC address was not known.
    pub unresolved: u64,
    /// Frames that a device did not take.
    pub not_sent: u64,
}

impl PathStatus {
    /// Whether a path carries what is sent by it, as far as is known.
    pub(super) fn is_good(&self, path: PathKey) -> bool {
        match path {
            PathKey::Bfd((link, peer)) => {
                let is_it = |session: &&bfd::Status| (session.plan.link, session.plan.peer) == (link, peer);
                is_good(self.sessions.iter().find(is_it).map(|session| session.path))
            }
            PathKey::Neighbour(key) => {
                self.neighbours.iter().any(|(known, is_there)| *known == key && *is_there)
            }
        }
    }
}

/// What has not been proven good does not count as good: a node that starts takes nothing over before it knows.
fn is_good(path: Option<Path>) -> bool {
    matches!(path, Some(Path::Good | Path::Ended))
}

/// The thread's own.
pub(super) struct Paths {
    node: Arc<Node>,
    pub sockets: Sockets,
    plan: PathPlan,
    engine: Engine,
    watcher: Watcher,
    /// Peers whose MAC address was asked for, and when.
    asked: AHashMap<Key, Nanos>,
    unresolved: u64,
    not_sent: u64,
    is_news: bool,
    out: Vec<Output>,
}

impl Paths {
    pub fn new(node: &Arc<Node>, seed: u64) -> Paths {
        Paths {
            node: Arc::clone(node),
            sockets: Sockets::new("BFD", filter::bfd),
            plan: PathPlan::default(),
            engine: Engine::new(seed),
            watcher: Watcher::default(),
            asked: AHashMap::new(),
            unresolved: 0,
            not_sent: 0,
            is_news: false,
            out: Vec::new(),
        }
    }

    /// Follows another plan.
    pub fn follow(&mut self, plan: PathPlan, now: Nanos) {
        if plan == self.plan {
            return;
        }
        // By the links as they were: who ends says so.
        self.engine.end_others(&plan.bfd, now, &mut self.out);
        self.perform(now);
        self.sockets.follow(plan.devices.clone(), now);
        self.watcher.set(&plan.neighbours);
        let peers = plan.bfd.sessions.iter().map(|session| (session.link, session.peer));
        let peers: Vec<Key> = peers.collect();
        self.asked.retain(|key, _| peers.contains(key));
        self.plan = plan;
        self.set_plan(now);
        // What is not watched any more counts otherwise.
        self.is_news = true;
    }

    /// Who can neither hear nor speak is down: its silence is nobody's.
    fn set_plan(&mut self, now: Nanos) {
        let mut plan = self.plan.bfd.clone();
        for session in &mut plan.sessions {
            session.up &= self.sockets.can_send(session.link);
        }
        self.engine.set_plan(plan, now, &mut self.out);
        self.perform(now);
    }

    /// Tries sockets again that could not be opened, if it is time.
    pub fn try_again(&mut self, now: Nanos) {
        if self.sockets.try_again(now) {
            self.set_plan(now);
        }
    }

    /// Takes what has come in. The links for which there may be more.
    pub fn receive(&mut self, now: Nanos) -> Vec<u16> {
        let (engine, out) = (&mut self.engine, &mut self.out);
        let unread = self.sockets.receive(|device, _, packet| engine.receive(device.link, packet, now, out));
        self.perform(now);
        unread
    }

    /// Does what is due; nobody is given up whose link is one of `unread`.
    pub fn poll(&mut self, now: Nanos, unread: &[u16]) {
        self.engine.poll(now, unread, &mut self.out);
        self.perform(now);
        let (mut questions, table) = (Vec::new(), &self.node.neighbours);
        let confirmed = |(link, address): Key| {
            let slot = table.find(link, addr_key(address))?;
            match table.word(slot).state() {
                neighbours::State::Permanent => Some(now),
                _ => table.confirmed(slot),
            }
        };
        self.is_news |= self.watcher.poll(now, confirmed, |key, how| questions.push((key, how)));
        for (key, how) in questions {
            self.ask(key, how);
        }
    }

    /// True if a path has become good or bad since the last call.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.is_news)
    }

    /// When [`Paths::poll`] has something to do.
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        [self.engine.next_deadline(), self.watcher.next_deadline(now)].into_iter().flatten().min()
    }

    pub fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.sockets.fds()
    }

    /// Whether a path carries what is sent by it, as far as is known.
    pub fn is_good(&self, path: PathKey) -> bool {
        match path {
            PathKey::Bfd((link, peer)) => is_good(self.engine.path(link, peer)),
            PathKey::Neighbour(key) => self.watcher.is_there(key).unwrap_or(false),
        }
    }

    pub fn status(&self) -> PathStatus {
        let neighbours = self.plan.neighbours.iter();
        PathStatus {
            sessions: self.engine.status(),
            strays: *self.engine.strays(),
            neighbours: neighbours.map(|key| (*key, self.watcher.is_there(*key).unwrap_or(false))).collect(),
            unresolved: self.unresolved,
            not_sent: self.not_sent,
        }
    }

    /// Ends all sessions, with word to the others.
    pub fn stop(&mut self, now: Nanos) {
        self.engine.stop(now, &mut self.out);
        self.perform(now);
    }

    fn perform(&mut self, now: Nanos) {
        let mut done = std::mem::take(&mut self.out);
        for output in done.drain(..) {
            match output {
                Output::Send { link, peer, packet } => self.send((link, peer), packet, now),
                Output::Changed { link, peer, state, diagnostic } => {
                    self.is_news = true;
                    let tables = self.node.tables.load();
                    let interface = tables.interfaces.get(usize::from(link));
                    let interface = interface.map_or("?", |interface| interface.info.name.as_str());
                    let (is, why) = (state.name(), diagnostic.name());
                    match state {
                        State::Init | State::Up => {
                            tracing::info!(%peer, interface, state = is, "BFD session")
                        }
                        State::AdminDown | State::Down => {
                            tracing::warn!(%peer, interface, state = is, why, "BFD session");
                        }
                    }
                }
            }
        }
        // Its room is kept.
        self.out = done;
    }

    /// To the peer's MAC address, as the neighbour table has it; asked for if it has none.
    fn send(&mut self, (link, peer): Key, packet: Vec<u8>, now: Nanos) {
        let table = &self.node.neighbours;
        let known = table.find(link, addr_key(peer)).filter(|slot| table.word(*slot).is_usable());
        let Some(slot) = known else {
            self.unresolved += 1;
            let asked = self.asked.get(&(link, peer));
            if asked.is_none_or(|asked| now.since(*asked) >= neighbours::RETRANSMIT) {
                self.asked.insert((link, peer), now);
                self.ask((link, peer), Ask::Everybody);
            }
            return;
        };
        // The workers ask for it again in time, and need not while the peer says that it hears us: where floods fill their
        // rings, they would not hear the answer.
        table.mark_used(slot, now);
        if self.engine.path(link, peer) == Some(Path::Good) {
            table.confirm(slot, now);
        }
        let dst_mac = mac_from_u64(table.word(slot).mac());
        let tables = self.node.tables.load();
        let Some(interface) = tables.interfaces.get(usize::from(link)) else { return };
        let ethertype = if peer.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let frame = Frame { link, dst_mac, src_mac: mac_from_u64(interface.mac), ethertype, packet };
        self.not_sent += u64::from(!self.sockets.send(&frame, |_| false));
    }

    /// Asks for a neighbour; a worker hears the answer and notes it.
    fn ask(&mut self, (link, address): Key, how: Ask) {
        let table = &self.node.neighbours;
        // What the node itself needs is not held against the neighbours that hosts make it look for.
        let Ok(slot) = table.find_or_insert(link, addr_key(address), u32::MAX) else { return };
        let word = table.word(slot);
        let unicast = (how == Ask::Unicast && word.is_usable()).then(|| word.mac());
        let tables = self.node.tables.load();
        let Some(interface) = tables.interfaces.get(usize::from(link)) else { return };
        let question = match address {
            IpAddr::V4(address) => arp::request(link, interface, address, unicast),
            IpAddr::V6(address) => nd::solicit(link, interface, address, unicast),
        };
        let Some((target, packet)) = question else { return };
        let frame = Frame {
            link,
            dst_mac: mac_from_u64(target.mac),
            src_mac: mac_from_u64(interface.mac),
            ethertype: target.ethertype,
            packet: packet.to_vec(),
        };
        self.not_sent += u64::from(!self.sockets.send(&frame, |_| false));
    }
}
