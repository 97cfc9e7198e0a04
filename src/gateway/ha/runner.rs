//! The thread: sockets, timers and what the state machines want done.

use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::super::readiness::{Patience, Readiness, Witness};
use super::filter;
use super::paths::{PathPlan, PathStatus, Paths};
use super::sockets::{PlannedDevice, RETRY, Sockets, with_header};
use super::track::{Off, Tracker, taken};
use super::tunnels::{PlannedEnd, Tunnelled, Tunnels, take_out};
use crate::ha::contact::{Contact, Heard};
use crate::ha::vrrp::engine::Frame;
use crate::ha::vrrp::{BadAdvert, Engine, Leave, Output, Plan, RouterPlan, Status};
use crate::host::nd;
use crate::io::descriptors;
use crate::io::waker::{Waker, wait};
use crate::neighbours::mac_from_u64;
use crate::packet::view::ethertype;
use crate::roles::Part;
use crate::time::Nanos;
use crate::worker::{Node, Spoken};

/// Pause after a device had more than that: what floods us gets no more than some of a CPU.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);
/// How often it is looked whether the other node's sessions are here, while it is waited for them.
const WAIT_STEP: Duration = Duration::from_millis(50);
/// How often the next hops of tunnels are looked for: a Backup sends nothing that would have them known, and its first
/// advertisement should not wait for them.
const LOOK_STEP: Duration = Duration::from_secs(10);
/// Who did not run for so long may have been given up by the pair's peer; it sleeps no longer than [`RETRY`].
const ABSENCE: Duration = Duration::from_millis(1500);
/// What the rest of the node may have open: rings, programs, maps, files, and those who ask the control socket.
const OTHER_DESCRIPTORS: u64 = 512;
/// How long it may take to say what it knows.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// What the thread is asked.
enum Request {
    Plan(NodePlan),
    /// Whether all virtual routers are to be left to others, and which request of this kind it is.
    Leave(bool, u32),
    Status(Sender<HaStatus>),
    Stop,
}

/// The virtual routers, the devices that they speak by, and what they go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodePlan {
    /// Of whole priorities, of which the thread takes off what is tracked.
    pub plan: Plan,
    /// Devices of ports with virtual routers, once for each link with some.
    pub devices: Vec<PlannedDevice>,
    /// Links with tunnels, sorted: what is sent goes into these as well.
    pub tunnels: Vec<u16>,
    /// Devices by which tunnels come to virtual routers, if there are some.
    pub ends: Vec<PlannedEnd>,
    pub paths: PathPlan,
    /// What takes off the priorities of a group, by its name.
    pub trackers: Vec<(String, Vec<Tracker>)>,
}

/// What the thread knows.
#[derive(Clone, Debug, Default)]
pub struct HaStatus {
    /// Virtual routers, in configured order, with the priorities in force.
    pub routers: Vec<Status>,
    /// BFD sessions and neighbours that are tracked.
    pub(in crate::gateway) paths: PathStatus,
    /// Groups that track the other node's sessions, are not Active, and have not all of them.
    pub(super) behind: Vec<String>,
    /// Advertisements that are about none of them or cannot be read, by position in [`BadAdvert::ALL`].
    pub strays: [u64; BadAdvert::ALL.len()],
    /// Frames that neither a device nor the workers took, and received ones that they could not pass on.
    pub not_sent: u64,
    /// The time at which this was so.
    pub now: Nanos,
}

/// The virtual routers of a running gateway. The thread begins with the first of them.
pub(in crate::gateway) struct Ha {
    node: Arc<Node>,
    started: Instant,
    requests: Sender<Request>,
    asked: Option<Receiver<Request>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    /// What the thread says of the last request to leave that it knows: its number, and a [`Leave`] in the lower two bits.
    leaving: Arc<AtomicU32>,
    /// Such requests.
    leaves: u32,
    readiness: Arc<Readiness>,
    /// Readable when a path has become good or bad.
    pub(super) news: UnixStream,
    tell_news: Arc<UnixStream>,
    seed: u64,
    /// How many descriptors the process may have; `None`: any number.
    descriptors: Option<u64>,
    /// What it follows.
    pub(super) plan: NodePlan,
}

impl Ha {
    /// `seed`: what BFD sessions draw their numbers from; it should not be guessed.
    pub fn new(node: &Arc<Node>, readiness: &Arc<Readiness>, started: Instant, seed: u64) -> io::Result<Ha> {
        let (requests, asked) = unbounded();
        let (news, tell_news) = UnixStream::pair()?;
        news.set_nonblocking(true)?;
        tell_news.set_nonblocking(true)?;
        Ok(Ha {
            node: Arc::clone(node),
            started,
            requests,
            asked: Some(asked),
            waker: Arc::new(Waker::new()?),
            thread: None,
            leaving: Arc::default(),
            leaves: 0,
            readiness: Arc::clone(readiness),
            news,
            tell_news: Arc::new(tell_news),
            seed,
            descriptors: descriptors::raise(),
            plan: NodePlan::default(),
        })
    }

    pub(super) fn follow(&mut self, plan: NodePlan) -> io::Result<()> {
        if plan == self.plan {
            return Ok(());
        }
        if let Some(asked) = self.asked.take() {
            let mut runner = Runner::new(self);
            let run = move || runner.run(&asked);
            self.thread = Some(std::thread::Builder::new().name("ha".into()).spawn(run)?);
        }
        let sockets = plan.devices.len() + plan.ends.len() + plan.paths.devices.len();
        let needed = sockets as u64 + OTHER_DESCRIPTORS;
        if let Some(allowed) = self.descriptors.filter(|allowed| *allowed < needed) {
            tracing::error!(
                needed,
                allowed,
                "too few descriptors for VRRP and BFD on so many links, some of which will take no part: raise the hard \
                 limit (LimitNOFILE of the systemd unit, or ulimit -Hn) and start again"
            );
        }
        self.plan = plan.clone();
        self.ask(Request::Plan(plan));
        Ok(())
    }

    /// What the thread knows; nothing if it is too busy to say, or there is nothing for it to do.
    pub fn status(&self) -> HaStatus {
        self.ask_status().unwrap_or_default()
    }

    /// The same; `None`: it is too busy to say.
    pub(super) fn ask_status(&self) -> Option<HaStatus> {
        if self.thread.is_none() {
            return Some(HaStatus::default());
        }
        let (sender, answer) = bounded(1);
        self.ask(Request::Status(sender));
        answer.recv_timeout(ANSWER_LIMIT).ok()
    }

    /// Has [`Ha::news`] be readable once more.
    pub(super) fn remind(&self) {
        let _ = (&*self.tell_news).write(&[1]);
    }

    /// Whether all virtual routers are to be left to others.
    pub fn leave(&mut self, leaves: bool) {
        self.leaves = (self.leaves + 1) & (u32::MAX >> 2);
        self.ask(Request::Leave(leaves, self.leaves));
    }

    /// How far it is with that: as the thread has said last.
    pub fn leaving(&self) -> Leave {
        if self.thread.is_none() {
            return Leave::Gone;
        }
        let told = self.leaving.load(Ordering::Acquire);
        if told >> 2 != self.leaves {
            return Leave::Stays; // It does not know yet.
        }
        let all = [Leave::Stays, Leave::Asks, Leave::Lingers, Leave::Gone];
        all.into_iter().find(|leave| *leave as u32 == told & 3).unwrap_or_default()
    }

    /// The virtual routers that it follows.
    pub fn routers(&self) -> &[RouterPlan] {
        &self.plan.plan.routers
    }

    /// Leaves all virtual routers, with word to the others, and ends the thread.
    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.ask(Request::Stop);
            let _ = thread.join();
        }
    }

    fn ask(&self, request: Request) {
        let _ = self.requests.send(request);
        self.waker.wake();
    }
}

impl Drop for Ha {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's own.
struct Runner {
    node: Arc<Node>,
    waker: Arc<Waker>,
    started: Instant,
    engine: Engine,
    /// What is followed, as far as there are sockets for it.
    plan: Plan,
    sockets: Sockets,
    /// As [`NodePlan::tunnels`].
    tunnelled: Vec<u16>,
    tunnels: Tunnels,
    /// When their next hops are looked for.
    look_due: Nanos,
    paths: Paths,
    trackers: Vec<(String, Vec<Tracker>)>,
    /// As [`HaStatus::behind`].
    behind: Vec<String>,
    tell_news: Arc<UnixStream>,
    not_sent: u64,
    leaving: Arc<AtomicU32>,
    /// The last request to leave, or not to.
    asked_to_leave: u32,
    readiness: Arc<Readiness>,
    patience: Patience,
    holds_back: bool,
    /// With a witness: what was heard when.
    contact: Option<Contact>,
    /// When the last turn began.
    last_turn: Nanos,
}

impl Runner {
    fn new(ha: &Ha) -> Runner {
        Runner {
            node: Arc::clone(&ha.node),
            waker: Arc::clone(&ha.waker),
            started: ha.started,
            leaving: Arc::clone(&ha.leaving),
            asked_to_leave: 0,
            readiness: Arc::clone(&ha.readiness),
            patience: Patience::default(),
            holds_back: false,
            contact: None,
            last_turn: Nanos(ha.started.elapsed().as_nanos() as u64),
            engine: Engine::default(),
            plan: Plan::default(),
            sockets: Sockets::new("virtual routers", filter::vrrp),
            tunnelled: Vec::new(),
            tunnels: Tunnels::default(),
            look_due: Nanos(0),
            paths: Paths::new(&ha.node, ha.seed),
            trackers: Vec::new(),
            behind: Vec::new(),
            tell_news: Arc::clone(&ha.tell_news),
            not_sent: 0,
        }
    }

    fn now(&self) -> Nanos {
        Nanos(self.started.elapsed().as_nanos() as u64)
    }

    fn run(&mut self, asked: &Receiver<Request>) {
        if let Err(error) = crate::io::priority::raise() {
            tracing::warn!(%error, "virtual routers run without real-time priority: a busy CPU may cost an interval");
        }
        let mut out = Vec::new();
        loop {
            self.waker.drain();
            self.hold_back();
            for request in asked.try_iter() {
                match request {
                    Request::Plan(plan) => self.follow(plan, &mut out),
                    Request::Leave(leaves, number) => {
                        self.asked_to_leave = number;
                        self.engine.leave(leaves, self.now(), &mut out);
                    }
                    Request::Status(answer) => {
                        let _ = answer.send(HaStatus {
                            routers: self.engine.status(),
                            paths: self.paths.status(),
                            behind: self.behind.clone(),
                            strays: *self.engine.strays(),
                            not_sent: self.not_sent,
                            now: self.now(),
                        });
                    }
                    Request::Stop => {
                        self.engine.stop(self.now(), &mut out);
                        self.perform(&mut out);
                        self.paths.stop(self.now());
                        return;
                    }
                }
            }
            if self.sockets.try_again(self.now()) | self.tunnels.try_again(self.now()) {
                self.set_plan(&mut out);
            }
            self.paths.try_again(self.now());
            self.look_for_tunnels();
            // First what has come in: whoever was kept from running must not take that for silence.
            let unread = self.receive(&mut out);
            let unread_paths = self.paths.receive(self.now());
            let now = self.now();
            self.paths.poll(now, &unread_paths);
            if self.paths.take_news() {
                self.set_plan(&mut out);
                // A full pipe wakes as well as one byte does.
                let _ = (&*self.tell_news).write(&[1]);
            }
            for router in &self.plan.routers {
                if self.node.neighbours.roles.take_conflict(router.role) {
                    self.engine.note_conflict(router.role, now);
                }
            }
            self.keep_contact(&mut out);
            self.engine.poll(now, &unread, &mut out);
            self.perform(&mut out);
            self.note_sessions(&mut out);
            let leaving = self.asked_to_leave << 2 | self.engine.leaving() as u32;
            self.leaving.store(leaving, Ordering::Release);
            match (&unread[..], &unread_paths[..]) {
                ([], []) => self.sleep(),
                _ => std::thread::sleep(FLOOD_PAUSE),
            }
        }
    }

    /// Who has not the sessions of an Active of lower priority does not take over from it.
    fn hold_back(&mut self) {
        let now = self.now();
        if now.since(self.last_turn) > ABSENCE {
            self.patience.was_absent(now);
        }
        self.last_turn = now;
        let holds_back = self.patience.holds_back(&self.readiness, now);
        if holds_back != self.holds_back {
            self.holds_back = holds_back;
            self.engine.hold_back(holds_back);
            tracing::info!(holds_back, "sessions of the other node");
        }
    }

    /// Groups that track the other node's sessions go down while these are not here, as long as they are not Active.
    fn note_sessions(&mut self, out: &mut Vec<Output>) {
        let tracks = |(_, trackers): &&(String, Vec<Tracker>)| {
            trackers.iter().any(|tracker| matches!(tracker.off, Off::Sync))
        };
        let has_all = self.readiness.has_all();
        let is_behind = |group: &&String| !has_all && !self.engine.is_active_in(group);
        let groups = self.trackers.iter().filter(tracks).map(|(group, _)| group);
        let is_same = groups.clone().filter(is_behind).eq(&self.behind);
        if !is_same {
            self.behind = groups.filter(is_behind).cloned().collect();
            self.set_plan(out);
        }
    }

    /// Who hears neither the other node nor the witness takes no part.
    fn keep_contact(&mut self, out: &mut Vec<Output>) {
        let (now, witness) = (self.now(), self.readiness.witness());
        let is_cut_off = match witness {
            Witness::None => {
                self.contact = None;
                false
            }
            Witness::Unknown | Witness::Silent | Witness::Answers => {
                let contact = self.contact.get_or_insert(Contact::new(now));
                let peer = self.readiness.is_there() || self.engine.hears_another(now);
                // Who is Active stays so until it is known how it is.
                let is_unknown = witness == Witness::Unknown && self.engine.is_active();
                contact.is_cut_off(Heard { peer, witness: witness == Witness::Answers || is_unknown }, now)
            }
        };
        if is_cut_off != self.readiness.is_cut_off() {
            self.readiness.set_cut_off(is_cut_off);
            match is_cut_off {
                true => tracing::warn!("neither the other node nor the witness is heard: takes no part"),
                false => tracing::info!("the other node or the witness is heard: takes part"),
            }
        }
        self.engine.cut_off(is_cut_off, now, out);
    }

    fn sleep(&mut self) {
        let mut limit = if self.holds_back || self.contact.is_some() { WAIT_STEP } else { RETRY };
        let now = self.now();
        let deadlines = self.engine.next_deadline().into_iter().chain(self.paths.next_deadline(now));
        if let Some(due) = deadlines.min() {
            limit = limit.min(due.since(now));
        }
        let fds: Vec<RawFd> = self
            .sockets
            .fds()
            .chain(self.tunnels.fds())
            .chain(self.paths.fds())
            .chain([self.waker.fd()])
            .collect();
        if limit > Duration::ZERO {
            wait(&fds, limit);
        }
    }

    fn follow(&mut self, plan: NodePlan, out: &mut Vec<Output>) {
        let NodePlan { plan, devices, tunnels, ends, paths, trackers } = plan;
        // By the links as they were: who leaves says so.
        self.engine.leave_others(&plan, self.now(), out);
        self.perform(out);
        self.sockets.follow(devices, self.now());
        self.tunnels.follow(ends, self.now());
        (self.tunnelled, self.look_due) = (tunnels, self.now());
        self.paths.follow(paths, self.now());
        (self.plan, self.trackers) = (plan, trackers);
        self.set_plan(out);
    }

    /// Has the engine follow the plan. Who can neither hear nor speak takes no part: its silence is nobody's.
    fn set_plan(&mut self, out: &mut Vec<Output>) {
        let mut plan = self.plan.clone();
        for router in &mut plan.routers {
            let is_heard = self.is_tunnelled(router.link) && self.tunnels.is_open();
            router.up &= is_heard || self.sockets.can_send(router.link);
            let trackers = self.trackers.iter().find(|(group, _)| *group == router.group);
            let is_behind = self.behind.contains(&router.group);
            let off = trackers
                .map_or(0, |(_, trackers)| taken(trackers, |path| self.paths.is_good(path), is_behind));
            router.settings.priority = router.settings.priority.saturating_sub(off).max(1);
        }
        self.engine.set_plan(plan, self.now(), out);
        self.perform(out);
    }

    /// It sleeps no longer than [`RETRY`].
    fn look_for_tunnels(&mut self) {
        let now = self.now();
        if now >= self.look_due {
            self.look_due = now.plus(LOOK_STEP);
            // What the workers do not take they are asked for the next time.
            self.tunnelled.iter().for_each(|link| _ = self.node.speak(Spoken::Ways { link: *link }));
        }
    }

    /// True if a link has tunnels.
    fn is_tunnelled(&self, link: u16) -> bool {
        self.tunnelled.binary_search(&link).is_ok()
    }

    /// The links for which a device may have more.
    fn receive(&mut self, out: &mut Vec<Output>) -> Vec<u16> {
        let (now, engine, node) = (self.now(), &mut self.engine, &*self.node);
        let segments = &node.limits.segments;
        let tables = node.tables.load();
        let mut not_passed = 0;
        // Hosts of a segment wait for what others of them say: what was taken out of their way goes on.
        let mut pass_on = |interface: u16, port: u16, frame: &mut dyn FnMut() -> Vec<u8>| {
            let interface = tables.interfaces.get(usize::from(interface));
            let bridge = interface.and_then(|interface| tables.bridges.get(interface.bridge));
            if bridge.is_some_and(|bridge| bridge.passes_on(&node.neighbours.roles)) {
                not_passed += u64::from(!node.speak(Spoken::Received { port, frame: frame() }));
            }
        };
        let mut unread = self.sockets.receive(|device, frame, packet| {
            // What comes by a member that closes a loop may be our own.
            if segments.is_shut(device.member, now) {
                return;
            }
            engine.receive(device.link, packet, now, out);
            if device.member != device.link {
                pass_on(device.member, device.port, &mut || device.on_the_wire(frame));
            }
        });
        let has_more = self.tunnels.receive(|end, frame, tci| {
            let known = (&**tables, &node.neighbours.roles);
            let Some(Tunnelled { interface: slot, packet }) = take_out(frame, tci, end.port, known) else {
                return;
            };
            let interface = tables.interface(slot);
            let bridge = tables.bridges.get(interface.bridge);
            let link = bridge.map_or(slot, |bridge| bridge.interface);
            if !segments.is_shut(slot, now) {
                engine.receive(link, packet, now, out);
                pass_on(slot, end.port, &mut || with_tag(frame, tci));
            }
        });
        if has_more {
            unread.extend(&self.tunnelled);
        }
        self.not_sent += not_passed;
        unread
    }

    fn perform(&mut self, out: &mut Vec<Output>) {
        let mut done = std::mem::take(out);
        for output in done.drain(..) {
            match output {
                Output::Role { role, link, part } => {
                    self.node.set_role(role, part, self.now());
                    if part == Part::Active {
                        self.advertise_prefixes(role, link);
                    }
                }
                Output::Send(frame) => self.send(&frame),
                Output::Changed { name, is_ipv6, state } => {
                    let family = if is_ipv6 { "ipv6" } else { "ipv4" };
                    tracing::info!(virtual_router = name, family, state = state.name(), "changed its state");
                }
            }
        }
        *out = done;
    }

    /// Hosts whose router this is hear of it at once (RFC 9568 section 6.4.3); later the workers say so.
    fn advertise_prefixes(&mut self, role: u16, link: u16) {
        let tables = self.node.tables.load();
        let Some(interface) = tables.interfaces.get(usize::from(link)) else { return };
        let router = interface.first_router(true).filter(|router| router.role == role);
        if let (Some(router), Some(said)) = (router, interface.info.advertisements)
            && let Some((target, packet)) =
                nd::router_advert(link, interface, said, &self.node.neighbours.roles)
        {
            let frame = Frame {
                link,
                dst_mac: mac_from_u64(target.mac),
                src_mac: mac_from_u64(router.mac),
                ethertype: target.ethertype,
                packet: packet.to_vec(),
            };
            self.send(&frame);
        }
    }

    /// By all ways that its link has. Of a tunnel the workers have the route and the next hop.
    fn send(&mut self, frame: &Frame) {
        let (now, segments) = (self.now(), &self.node.limits.segments);
        let mut is_sent = self.sockets.send(frame, |member| segments.is_shut(member, now));
        if self.is_tunnelled(frame.link) {
            let spoken = Spoken::Tunnels { link: frame.link, frame: with_header(frame, &[]) };
            is_sent |= self.node.speak(spoken);
        }
        self.not_sent += u64::from(!is_sent);
    }
}

/// A received frame as it was on the wire, of which the kernel has taken a tag.
fn with_tag(frame: &[u8], tci: Option<u16>) -> Vec<u8> {
    let (macs, rest) = frame.split_at(frame.len().min(12));
    let tag = tci.map(|tci| [ethertype::VLAN.to_be_bytes(), tci.to_be_bytes()].concat());
    [macs, &tag.unwrap_or_default(), rest].concat()
}
