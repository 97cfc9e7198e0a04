//! The thread `ha`: it runs the virtual routers beside the workers, with packet sockets of its own, so that no flood of
//! data keeps it from speaking and hearing.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::{Gateway, LivePort};
use crate::config::{Mac, virtual_mac};
use crate::control::{AdvertErrors, HaList, RouterState, VirtualRouterEntry};
use crate::ha::vrrp::engine::Frame;
use crate::ha::vrrp::{BadAdvert, Engine, Output, Plan, RouterPlan, Settings, State, Status};
use crate::host::nd;
use crate::io::packet_socket::{Instruction, PacketSocket};
use crate::io::waker::{Waker, wait};
use crate::neighbours::mac_from_u64;
use crate::packet::Tags;
use crate::packet::view::{be16, ethertype, protocol};
use crate::tables::policy::Policy;
use crate::tables::{Interface, NO_INTERFACE};
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
/// How long it may take to say what it knows.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Addresses of NAT announced with a virtual router at most: its MAC address stays, so that neighbours need none of it.
const MAX_ALSO: usize = 1024;
/// The largest network in which they are looked for.
const SHORTEST_PREFIX: u8 = 20;

const ETHERNET_BYTES: usize = 14;

/// VRRP over IPv4 and IPv6, also under one tag: the kernel has taken the outer one out.
const FILTER: [Instruction; 18] = {
    const LDH: u16 = 0x28;
    const LDB: u16 = 0x30;
    const JEQ: u16 = 0x15;
    const RET: u16 = 0x06;
    const IPV4: u32 = ethertype::IPV4 as u32;
    const IPV6: u32 = ethertype::IPV6 as u32;
    const VRRP: u32 = protocol::VRRP as u32;
    [
        (LDH, 0, 0, 12),
        (JEQ, 3, 0, ethertype::VLAN as u32),
        (JEQ, 2, 0, ethertype::QINQ as u32),
        (JEQ, 4, 0, IPV4),
        (JEQ, 5, 11, IPV6),
        (LDH, 0, 0, 16),
        (JEQ, 5, 0, IPV4),
        (JEQ, 6, 8, IPV6),
        (LDB, 0, 0, 23),
        (JEQ, 7, 6, VRRP),
        (LDB, 0, 0, 20),
        (JEQ, 5, 4, VRRP),
        (LDB, 0, 0, 27),
        (JEQ, 3, 2, VRRP),
        (LDB, 0, 0, 24),
        (JEQ, 1, 0, VRRP),
        (RET, 0, 0, 0),
        (RET, 0, 0, 0xffff),
    ]
};

/// What the thread is asked.
enum Request {
    Plan(NodePlan),
    Status(Sender<HaStatus>),
    Stop,
}

/// The virtual routers and the devices that they speak by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NodePlan {
    plan: Plan,
    /// Devices of ports with virtual routers.
    devices: Vec<PlannedDevice>,
}

/// A device that is listened to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedDevice {
    name: String,
    ifindex: u32,
    port: u16,
    /// What leaves by the port leaves by it: of a LAG one device does.
    sends: bool,
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
pub(super) struct Ha {
    node: Arc<Node>,
    started: Instant,
    requests: Sender<Request>,
    asked: Option<Receiver<Request>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    /// What it follows.
    plan: NodePlan,
}

impl Ha {
    pub fn new(node: &Arc<Node>, started: Instant) -> io::Result<Ha> {
        let (requests, asked) = unbounded();
        Ok(Ha {
            node: Arc::clone(node),
            started,
            requests,
            asked: Some(asked),
            waker: Arc::new(Waker::new()?),
            thread: None,
            plan: NodePlan::default(),
        })
    }

    fn follow(&mut self, plan: NodePlan) -> io::Result<()> {
        if plan == self.plan {
            return Ok(());
        }
        if let Some(asked) = self.asked.take() {
            let mut runner = Runner::new(Arc::clone(&self.node), Arc::clone(&self.waker), self.started);
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
    roles: Vec<u16>,
    sockets: Vec<Socket>,
    /// Those that could not be opened, and when they are tried again.
    missing: Vec<PlannedDevice>,
    retry: Nanos,
    not_sent: u64,
}

impl Runner {
    fn new(node: Arc<Node>, waker: Arc<Waker>, started: Instant) -> Runner {
        Runner {
            node,
            waker,
            started,
            engine: Engine::default(),
            roles: Vec::new(),
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
            for request in asked.try_iter() {
                match request {
                    Request::Plan(plan) => self.follow(plan, &mut out),
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
            // First what has come in: whoever was kept from running must not take that for silence.
            let has_more = self.receive(&mut out);
            let now = self.now();
            for role in &self.roles {
                if self.node.neighbours.roles.take_conflict(*role) {
                    self.engine.note_conflict(*role, now);
                }
            }
            self.engine.poll(now, &mut out);
            self.perform(&mut out);
            match has_more {
                true => std::thread::sleep(FLOOD_PAUSE),
                false => self.sleep(),
            }
        }
    }

    fn sleep(&mut self) {
        let mut limit = RETRY;
        if !self.missing.is_empty() && self.now() >= self.retry {
            let missing = std::mem::take(&mut self.missing);
            self.open(missing);
        }
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
        let mut old: AHashMap<u32, Socket> = std::mem::take(&mut self.sockets)
            .into_iter()
            .map(|socket| (socket.device.ifindex, socket))
            .collect();
        let mut new = Vec::new();
        for device in devices {
            match old.remove(&device.ifindex) {
                Some(socket) => self.sockets.push(Socket { device, ..socket }),
                None => new.push(device),
            }
        }
        self.missing.clear();
        self.open(new);
        self.roles = plan.routers.iter().map(|router| router.role).collect();
        self.engine.set_plan(plan, self.now(), out);
        // Over the sockets that go: who leaves says so.
        let kept = self.sockets.len();
        self.sockets.extend(old.into_values());
        self.perform(out);
        self.sockets.truncate(kept);
    }

    fn open(&mut self, devices: Vec<PlannedDevice>) {
        for device in devices {
            match PacketSocket::open(device.ifindex, &FILTER) {
                Ok(socket) => self.sockets.push(Socket { device, socket }),
                Err(error) => {
                    if self.missing.is_empty() {
                        tracing::warn!(device = device.name, %error, "cannot listen to virtual routers");
                    }
                    self.missing.push(device);
                }
            }
        }
        self.retry = self.now().plus(RETRY);
    }

    /// True if a device may have more.
    fn receive(&mut self, out: &mut Vec<Output>) -> bool {
        let mut buffer = [0; BUFFER_BYTES];
        let now = self.now();
        let tables = self.node.tables.load();
        let mut has_more = false;
        for Socket { device, socket } in &self.sockets {
            let mut taken = 0;
            while taken < BATCH {
                // An error says once that the device is down.
                let Ok(Some(received)) = socket.receive(&mut buffer) else { break };
                taken += 1;
                let Some((tags, packet)) = untag(&buffer[..received.len], received.vid) else { continue };
                let link =
                    tables.ports.get(usize::from(device.port)).map_or(NO_INTERFACE, |port| port.find(tags));
                self.engine.receive(link, packet, now, out);
            }
            has_more |= taken == BATCH;
        }
        has_more
    }

    fn perform(&mut self, out: &mut Vec<Output>) {
        let mut done = std::mem::take(out);
        for output in done.drain(..) {
            match output {
                Output::Role { role, link, is_active } => {
                    self.node.neighbours.roles.set(role, is_active);
                    if is_active {
                        self.advertise_prefixes(role, link);
                    }
                }
                Output::Send(frame) => self.send(&frame),
                Output::Changed { name, is_ipv6, state } => {
                    let family = if is_ipv6 { "ipv6" } else { "ipv4" };
                    let state = match state {
                        State::Initialize => "initialize",
                        State::Backup => "backup",
                        State::Active => "active",
                    };
                    tracing::info!(virtual_router = name, family, state, "changed its state");
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
        let tables = self.node.tables.load();
        // What is left of a deleted interface leads nowhere.
        let interface = tables.interfaces.get(usize::from(frame.link)).filter(|interface| interface.mac != 0);
        let Some(interface) = interface else { return };
        let bytes = with_header(frame, interface);
        let mut senders =
            self.sockets.iter().filter(|socket| socket.device.port == interface.port && socket.device.sends);
        let sent = senders.next().is_some_and(|socket| socket.socket.send(&bytes).is_ok());
        self.not_sent += u64::from(!sent);
    }
}

/// The frame as it is on the wire, with the tags of the interface.
fn with_header(frame: &Frame, interface: &Interface) -> Vec<u8> {
    let tags = &interface.header[12..usize::from(interface.header_len) - 2];
    let mut bytes = Vec::with_capacity(ETHERNET_BYTES + tags.len() + frame.packet.len());
    bytes.extend_from_slice(&frame.dst_mac);
    bytes.extend_from_slice(&frame.src_mac);
    bytes.extend_from_slice(tags);
    bytes.extend_from_slice(&frame.ethertype.to_be_bytes());
    bytes.extend_from_slice(&frame.packet);
    bytes
}

/// The tags of a received frame, of which the kernel has taken out `outer`, and what is behind them.
fn untag(frame: &[u8], outer: Option<u16>) -> Option<(Tags, &[u8])> {
    let mut vids: Vec<u16> = outer.into_iter().collect();
    let mut at = ETHERNET_BYTES;
    let mut kind = frame.get(12..14).map(|bytes| be16(bytes, 0))?;
    while kind == ethertype::VLAN || kind == ethertype::QINQ {
        let tag = frame.get(at..at + 4)?;
        vids.push(be16(tag, 0) & 0xfff);
        (kind, at) = (be16(tag, 2), at + 4);
        if vids.len() > 2 {
            return None;
        }
    }
    let tags = match vids[..] {
        [] => Tags::default(),
        [outer] => Tags { outer, inner: 0 },
        [outer, inner, ..] => Tags { outer, inner },
    };
    Some((tags, &frame[at..]))
}

impl Gateway {
    /// Has the virtual routers follow the config, the links and what is tracked.
    pub(super) fn follow_virtual_routers(&mut self) {
        if self.config.vrrp.is_empty() && self.ha.plan.plan.routers.is_empty() {
            return;
        }
        let plan = self.plan_virtual_routers();
        if let Err(error) = self.ha.follow(plan) {
            tracing::error!(%error, "the virtual routers do not run");
        }
    }

    fn plan_virtual_routers(&self) -> NodePlan {
        let tables = self.compiler.tables();
        let lowered = self.lowered();
        let mut routers = Vec::new();
        let mut ports = Vec::new();
        for vrrp in &self.config.vrrp {
            let Some(link) = self.compiler.interfaces.get(vrrp.interface.as_str()) else { continue };
            let Some(interface) = tables.interfaces.get(usize::from(link)) else { continue };
            ports.push(interface.port);
            let name = format!("{}/{}", vrrp.interface, vrrp.id);
            let group = vrrp.group.as_ref().map_or_else(|| format!("{name} "), ToString::to_string);
            let lowered = lowered.get(&group).copied().unwrap_or(0);
            let configured = vrrp.priority.get() as u8;
            for router in
                interface.info.routers.iter().filter(|router| u32::from(router.vrid) == vrrp.id.get())
            {
                let Some(primary) = primary_of(interface, &router.addresses) else { continue };
                let is_first = interface.first_router(router.is_ipv6) == Some(router);
                let also =
                    if is_first { also(interface, router.is_ipv6, &tables.policy) } else { Vec::new() };
                routers.push(RouterPlan {
                    name: name.clone(),
                    role: router.role,
                    link,
                    vrid: router.vrid,
                    group: group.clone(),
                    priority: configured,
                    settings: Settings {
                        priority: configured.saturating_sub(lowered).max(1),
                        interval: vrrp.interval,
                        preempt: vrrp.preempt,
                        preempt_delay: vrrp.preempt_delay.map_or(Duration::ZERO, |delay| delay.duration()),
                        primary,
                    },
                    pseudo_header: vrrp.pseudo_header,
                    addresses: router.addresses.clone(),
                    also: also.into(),
                    up: interface.up,
                });
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let used = self.ports.iter().filter(|port| ports.contains(&port.slot));
        NodePlan { plan: Plan { routers }, devices: used.flat_map(devices).collect() }
    }

    /// What is taken off the priorities of each group for what is not well; who names no group is one by himself.
    fn lowered(&self) -> AHashMap<String, u8> {
        let mut lowered: AHashMap<String, u8> = AHashMap::new();
        for vrrp in &self.config.vrrp {
            let alone = || format!("{}/{} ", vrrp.interface, vrrp.id);
            let group = vrrp.group.as_ref().map_or_else(alone, ToString::to_string);
            let sum = lowered.entry(group).or_default();
            for track in &vrrp.track {
                let weight = track.weight.get();
                let off = match (&track.port, &track.service) {
                    (Some(port), _) => {
                        let port = self.ports.iter().find(|live| live.name == port.as_str());
                        if port.is_some_and(|port| port.members_up() != 0) { 0 } else { weight }
                    }
                    (None, Some(service)) => self.share_down(service.as_str(), weight),
                    (None, None) => 0,
                };
                *sum = sum.saturating_add(off as u8);
            }
        }
        lowered
    }

    /// `weight` in proportion to the backends of a service that are down, rounded up.
    fn share_down(&self, service: &str, weight: u32) -> u32 {
        let Some(service) = self.config.services.iter().find(|known| known.name.as_str() == service) else {
            return 0;
        };
        let down = self.backends_down(service);
        let all = service.backends.len().max(1) as u32;
        (weight * down as u32).div_ceil(all)
    }
}

impl Gateway {
    pub(super) fn show_ha(&self) -> HaList {
        let status = self.ha.status();
        let entry = |router: &Status| {
            let Status { plan, state, active, active_down, since, counters } = router;
            let vrrp = self.config.vrrp.iter().find(|vrrp| {
                vrrp.id.get() == u32::from(plan.vrid)
                    && plan.name == format!("{}/{}", vrrp.interface, vrrp.id)
            })?;
            Some(VirtualRouterEntry {
                interface: vrrp.interface.clone(),
                id: plan.vrid,
                group: vrrp.group.clone(),
                addresses: plan.addresses.clone(),
                mac: Mac::new(virtual_mac(plan.vrid, plan.settings.primary.is_ipv6())).ok(),
                state: match state {
                    State::Initialize => RouterState::Initialize,
                    State::Backup => RouterState::Backup,
                    State::Active => RouterState::Active,
                },
                since_s: status.now.since(*since).as_secs(),
                priority: plan.settings.priority,
                configured_priority: plan.priority,
                interval_cs: plan.settings.interval.get(),
                active_down_ms: active_down.as_millis() as u64,
                source: plan.settings.primary,
                active: *active,
                became_active: counters.became_active,
                sent: counters.sent,
                leaving_sent: counters.leaving_sent,
                received: counters.received,
                leaving_received: counters.leaving_received,
                errors: errors(&counters.errors),
            })
        };
        HaList {
            routers: status.routers.iter().filter_map(entry).collect(),
            strays: errors(&status.strays),
            not_sent: status.not_sent,
        }
    }
}

fn errors(counted: &[u64; BadAdvert::ALL.len()]) -> Vec<AdvertErrors> {
    let all = BadAdvert::ALL.iter().zip(counted).filter(|(_, count)| **count > 0);
    all.map(|(bad, count)| AdvertErrors { kind: bad.name().to_owned(), count: *count }).collect()
}

/// Those of a port that are there.
fn devices(port: &LivePort) -> impl Iterator<Item = PlannedDevice> {
    let sender = port.members_up().trailing_zeros() as usize;
    port.members.iter().enumerate().filter_map(move |(at, member)| {
        Some(PlannedDevice {
            name: member.device.clone(),
            ifindex: member.link?.ifindex,
            port: port.slot,
            sends: at == sender,
        })
    })
}

/// The address that advertisements come from: with IPv4 that in the network of the first virtual one, with IPv6 the
/// link-local one (RFC 9568 section 7.2).
fn primary_of(interface: &Interface, addresses: &[IpAddr]) -> Option<IpAddr> {
    match addresses.first()? {
        IpAddr::V4(first) => interface.source_v4(*first).map(Into::into),
        IpAddr::V6(_) => interface.info.link_local.map(Into::into),
    }
}

/// Addresses of NAT and services in networks of the interface: its virtual router answers for them as well.
fn also(interface: &Interface, is_ipv6: bool, policy: &Policy) -> Vec<IpAddr> {
    if is_ipv6 {
        return Vec::new();
    }
    let networks = interface.info.v4.iter().filter(|(_, len)| (SHORTEST_PREFIX..31).contains(len));
    let hosts = networks.flat_map(|(own, len)| {
        let mask = u32::MAX >> len;
        let network = u32::from(*own) & !mask;
        (network + 1..network + mask).map(Ipv4Addr::from)
    });
    let is_held = |addr: &Ipv4Addr| {
        policy.answers_on_v4(interface, *addr) && interface.router_of((*addr).into()).is_none()
    };
    hosts.filter(is_held).take(MAX_ALSO).map(Into::into).collect()
}
