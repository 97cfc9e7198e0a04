//! The thread: sockets, timers and what the state machines want done.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::super::readiness::{Patience, Readiness};
use super::filter::{ETHERNET_BYTES, filter, header_bytes};
use crate::ha::vrrp::engine::Frame;
use crate::ha::vrrp::{BadAdvert, Engine, Leave, Output, Plan, RouterPlan, Status};
use crate::host::nd;
use crate::io::packet_socket::PacketSocket;
use crate::io::waker::{Waker, wait};
use crate::neighbours::mac_from_u64;
use crate::packet::Tags;
use crate::roles::Part;
use crate::time::Nanos;
use crate::worker::Node;

/// Frames taken from a device before timers are looked at again.
const BATCH: usize = 64;
/// Longest frame that is worth reading: the longest advertisement, with options and tags.
const BUFFER_BYTES: usize = 2048;
/// Pause after a device had more than that: what floods us gets no more than some of a CPU.
const FLOOD_PAUSE: Duration = Duration::from_millis(1);
/// How often a device that could not be listened to is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked whether the other node's sessions are here, while it is waited for them.
const WAIT_STEP: Duration = Duration::from_millis(50);
/// Who did not run for so long may have been given up by the pair's peer; it sleeps no longer than [`RETRY`].
const ABSENCE: Duration = Duration::from_millis(1500);
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

/// The virtual routers and the devices that they speak by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodePlan {
    pub plan: Plan,
    /// Devices of ports with virtual routers, once for each link with some.
    pub devices: Vec<PlannedDevice>,
}

/// A device that is listened to for one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlannedDevice {
    pub name: String,
    pub ifindex: u32,
    /// Interface slot.
    pub link: u16,
    pub tags: Tags,
    /// The tags as they are on the wire.
    pub tag_bytes: Vec<u8>,
    /// What leaves by the port leaves by it: of a LAG one device does.
    pub sends: bool,
}

/// What the thread knows.
#[derive(Clone, Debug, Default)]
pub struct HaStatus {
    /// Virtual routers, in configured order.
    pub routers: Vec<Status>,
    /// Advertisements that are about none of them or cannot be read, by position in [`BadAdvert::ALL`].
    pub strays: [u64; BadAdvert::ALL.len()],
    /// Frames that a device did not take.
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
    /// What it follows.
    pub(super) plan: NodePlan,
}

impl Ha {
    pub fn new(node: &Arc<Node>, readiness: &Arc<Readiness>, started: Instant) -> io::Result<Ha> {
        let (requests, asked) = unbounded();
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
        self.plan = plan.clone();
        self.ask(Request::Plan(plan));
        Ok(())
    }

    /// What the thread knows; nothing if it is too busy to say, or there is no virtual router.
    pub fn status(&self) -> HaStatus {
        if self.thread.is_none() {
            return HaStatus::default();
        }
        let (sender, answer) = bounded(1);
        self.ask(Request::Status(sender));
        answer.recv_timeout(ANSWER_LIMIT).unwrap_or_default()
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

struct Socket {
    device: PlannedDevice,
    socket: PacketSocket,
}

/// The thread's own.
struct Runner {
    node: Arc<Node>,
    waker: Arc<Waker>,
    started: Instant,
    engine: Engine,
    /// What is followed, as far as there are sockets for it.
    plan: Plan,
    sockets: Vec<Socket>,
    /// Those that could not be opened, and when they are tried again.
    missing: Vec<PlannedDevice>,
    retry: Nanos,
    not_sent: u64,
    leaving: Arc<AtomicU32>,
    /// The last request to leave, or not to.
    asked_to_leave: u32,
    readiness: Arc<Readiness>,
    patience: Patience,
    holds_back: bool,
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
            last_turn: Nanos(ha.started.elapsed().as_nanos() as u64),
            engine: Engine::default(),
            plan: Plan::default(),
            sockets: Vec::new(),
            missing: Vec::new(),
            retry: Nanos(0),
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
                            strays: *self.engine.strays(),
                            not_sent: self.not_sent,
                            now: self.now(),
                        });
                    }
                    Request::Stop => {
                        self.engine.stop(self.now(), &mut out);
                        self.perform(&mut out);
                        return;
                    }
                }
            }
            if !self.missing.is_empty() && self.now() >= self.retry {
                let missing = std::mem::take(&mut self.missing);
                self.open(missing, true);
                self.set_plan(&mut out);
            }
            // First what has come in: whoever was kept from running must not take that for silence.
            let unread = self.receive(&mut out);
            let now = self.now();
            for router in &self.plan.routers {
                if self.node.neighbours.roles.take_conflict(router.role) {
                    self.engine.note_conflict(router.role, now);
                }
            }
            self.engine.poll(now, &unread, &mut out);
            self.perform(&mut out);
            let leaving = self.asked_to_leave << 2 | self.engine.leaving() as u32;
            self.leaving.store(leaving, Ordering::Release);
            match unread[..] {
                [] => self.sleep(),
                [..] => std::thread::sleep(FLOOD_PAUSE),
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

    fn sleep(&mut self) {
        let mut limit = if self.holds_back { WAIT_STEP } else { RETRY };
        if let Some(due) = self.engine.next_deadline() {
            limit = limit.min(due.since(self.now()));
        }
        let fds: Vec<RawFd> =
            self.sockets.iter().map(|socket| socket.socket.as_raw_fd()).chain([self.waker.fd()]).collect();
        if limit > Duration::ZERO {
            wait(&fds, limit);
        }
    }

    fn follow(&mut self, plan: NodePlan, out: &mut Vec<Output>) {
        let NodePlan { plan, devices } = plan;
        // By the links as they were: who leaves says so.
        self.engine.leave_others(&plan, self.now(), out);
        self.perform(out);
        let key = |device: &PlannedDevice| (device.ifindex, device.tags);
        let mut old: AHashMap<_, Socket> = std::mem::take(&mut self.sockets)
            .into_iter()
            .map(|socket| (key(&socket.device), socket))
            .collect();
        let mut new = Vec::new();
        for device in devices {
            match old.remove(&key(&device)) {
                Some(socket) => self.sockets.push(Socket { device, ..socket }),
                None => new.push(device),
            }
        }
        self.missing.clear();
        self.open(new, false);
        self.plan = plan;
        self.set_plan(out);
    }

    /// Has the engine follow the plan. Who can neither hear nor speak takes no part: its silence is nobody's.
    fn set_plan(&mut self, out: &mut Vec<Output>) {
        let mut plan = self.plan.clone();
        for router in &mut plan.routers {
            router.up &= self.sender(router.link).is_some();
        }
        self.engine.set_plan(plan, self.now(), out);
        self.perform(out);
    }

    /// What leaves by a link leaves by it.
    fn sender(&self, link: u16) -> Option<&Socket> {
        self.sockets.iter().find(|socket| socket.device.link == link && socket.device.sends)
    }

    /// What cannot be opened is tried again; the log has it once.
    fn open(&mut self, devices: Vec<PlannedDevice>, is_retry: bool) {
        for device in devices {
            match PacketSocket::open(device.ifindex, &filter(device.tags)) {
                Ok(socket) => self.sockets.push(Socket { device, socket }),
                Err(error) => {
                    if !is_retry {
                        tracing::warn!(device = device.name, %error, "cannot listen to virtual routers");
                    }
                    self.missing.push(device);
                }
            }
        }
        self.retry = self.now().plus(RETRY);
    }

    /// The links for which a device may have more.
    fn receive(&mut self, out: &mut Vec<Output>) -> Vec<u16> {
        let mut buffer = [0; BUFFER_BYTES];
        let now = self.now();
        let mut unread = Vec::new();
        for Socket { device, socket } in &self.sockets {
            let mut taken = 0;
            while taken < BATCH {
                // An error says once that the device is down.
                let Ok(Some(len)) = socket.receive(&mut buffer) else { break };
                taken += 1;
                let Some(packet) = buffer[..len].get(header_bytes(device.tags)..) else { continue };
                self.engine.receive(device.link, packet, now, out);
            }
            if taken == BATCH {
                unread.push(device.link);
            }
        }
        unread
    }

    fn perform(&mut self, out: &mut Vec<Output>) {
        let mut done = std::mem::take(out);
        for output in done.drain(..) {
            match output {
                Output::Role { role, link, part } => {
                    self.node.neighbours.roles.set(role, part, self.now());
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

    fn send(&mut self, frame: &Frame) {
        let sender = self.sender(frame.link);
        let sent = sender.is_some_and(|Socket { device, socket }| {
            socket.send(&with_header(frame, &device.tag_bytes)).is_ok()
        });
        self.not_sent += u64::from(!sent);
    }
}

/// The frame as it is on the wire, with the tags of the interface.
fn with_header(frame: &Frame, tags: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET_BYTES + tags.len() + frame.packet.len());
    bytes.extend_from_slice(&frame.dst_mac);
    bytes.extend_from_slice(&frame.src_mac);
    bytes.extend_from_slice(tags);
    bytes.extend_from_slice(&frame.ethertype.to_be_bytes());
    bytes.extend_from_slice(&frame.packet);
    bytes
}
