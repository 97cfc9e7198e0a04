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
use crate::packet::view::{ethertype, protocol};
use crate::tables::Interface;
use crate::tables::policy::Policy;
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
const TAG_BYTES: usize = 4;

/// Advertisements of one link, from its own network (RFC 9568 section 5.1: to the group, with TTL or hop limit 255):
/// what others of the port are flooded with does not come into its queue. The kernel has taken the outer tag out.
fn filter(tags: Tags) -> Vec<Instruction> {
    const LDW: u16 = 0x20;
    const LDH: u16 = 0x28;
    const LDB: u16 = 0x30;
    const AND: u16 = 0x54;
    const JEQ: u16 = 0x15;
    const REJECT: Instruction = (0x06, 0, 0, 0);
    const ACCEPT: Instruction = (0x06, 0, 0, 0xffff);
    /// linux/filter.h: SKF_AD_OFF + SKF_AD_VLAN_TAG, and SKF_AD_VLAN_TAG_PRESENT.
    const VLAN_TAG: u32 = 0xffff_f000 + 44;
    const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
    const VID: Instruction = (AND, 0, 0, 0xfff);
    let load = |size: u16, at: usize| (size, 0, 0, at as u32);
    let is = |value: u32| [(JEQ, 1, 0, value), REJECT];

    let (outer, inner) = match tags {
        Tags { outer: 0, inner: vid } | Tags { outer: vid, inner: 0 } => (vid, 0),
        Tags { outer, inner } => (outer, inner),
    };
    let mut code = vec![(LDW, 0, 0, VLAN_TAG_PRESENT)];
    match outer {
        // A tag with VID 0 is a priority alone: without any tag, past the four that look at it.
        0 => code.push((JEQ, 4, 0, 0)),
        _ => code.extend([(JEQ, 0, 1, 0), REJECT]),
    }
    code.extend([(LDW, 0, 0, VLAN_TAG), VID]);
    code.extend(is(outer.into()));
    if inner != 0 {
        let kinds = [(JEQ, 2, 0, ethertype::VLAN.into()), (JEQ, 1, 0, ethertype::QINQ.into()), REJECT];
        code.push(load(LDH, 12));
        code.extend(kinds);
        code.extend([load(LDH, 14), VID]);
        code.extend(is(inner.into()));
    }
    let ip = header_bytes(tags);
    let family = |checks: &[(u16, usize, u32)]| {
        let checks = checks.iter().flat_map(|(size, at, value)| {
            let [test, reject] = is(*value);
            [load(*size, *at), test, reject]
        });
        checks.chain([ACCEPT]).collect::<Vec<_>>()
    };
    let vrrp = protocol::VRRP.into();
    // 224.0.0.18 and ff02::12.
    let v4 = family(&[
        (LDH, ip - 2, ethertype::IPV4.into()),
        (LDB, ip + 8, 255),
        (LDB, ip + 9, vrrp),
        (LDW, ip + 16, 0xe000_0012),
    ]);
    let v6 = family(&[
        (LDH, ip - 2, ethertype::IPV6.into()),
        (LDB, ip + 6, vrrp),
        (LDB, ip + 7, 255),
        (LDW, ip + 24, 0xff02_0000),
        (LDW, ip + 28, 0),
        (LDW, ip + 32, 0),
        (LDW, ip + 36, 0x12),
    ]);
    code.extend([load(LDH, ip - 2), (JEQ, v4.len() as u8, 0, ethertype::IPV6.into())]);
    code.extend(v4);
    code.extend(v6);
    code
}

/// Bytes before the IP header of a received frame, of which the kernel has taken the outer tag.
fn header_bytes(tags: Tags) -> usize {
    let is_double = tags.outer != 0 && tags.inner != 0;
    ETHERNET_BYTES + if is_double { TAG_BYTES } else { 0 }
}

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
    /// Devices of ports with virtual routers, once for each link with some.
    devices: Vec<PlannedDevice>,
}

/// A device that is listened to for one link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedDevice {
    name: String,
    ifindex: u32,
    /// Interface slot.
    link: u16,
    tags: Tags,
    /// The tags as they are on the wire.
    tag_bytes: Vec<u8>,
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
    /// What is followed, as far as there are sockets for it.
    plan: Plan,
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
            if !self.missing.is_empty() && self.now() >= self.retry {
                let missing = std::mem::take(&mut self.missing);
                self.open(missing);
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
            match unread[..] {
                [] => self.sleep(),
                [..] => std::thread::sleep(FLOOD_PAUSE),
            }
        }
    }

    fn sleep(&mut self) {
        let mut limit = RETRY;
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
        self.open(new);
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

    fn open(&mut self, devices: Vec<PlannedDevice>) {
        for device in devices {
            match PacketSocket::open(device.ifindex, &filter(device.tags)) {
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
        let mut links = Vec::new();
        for vrrp in &self.config.vrrp {
            let Some(link) = self.compiler.interfaces.get(vrrp.interface.as_str()) else { continue };
            let Some(interface) = tables.interfaces.get(usize::from(link)) else { continue };
            links.push(link);
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
        links.sort_unstable();
        links.dedup();
        let devices = links.into_iter().flat_map(|link| {
            let interface = &tables.interfaces[usize::from(link)];
            let port = self.ports.iter().find(|port| port.slot == interface.port);
            port.into_iter().flat_map(move |port| devices(port, link, interface))
        });
        NodePlan { devices: devices.collect(), plan: Plan { routers } }
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

/// Those of a port that are there, for one of its links.
fn devices<'a>(
    port: &'a LivePort,
    link: u16,
    interface: &'a Interface,
) -> impl Iterator<Item = PlannedDevice> + 'a {
    let sender = port.members_up().trailing_zeros() as usize;
    port.members.iter().enumerate().filter_map(move |(at, member)| {
        Some(PlannedDevice {
            name: member.device.clone(),
            ifindex: member.link?.ifindex,
            link,
            tags: interface.info.tags,
            tag_bytes: interface.header[12..usize::from(interface.header_len) - 2].to_vec(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a filter (linux/filter.h), of a frame whose outer tag it has taken out.
    fn is_accepted(code: &[Instruction], tci: Option<u16>, frame: &[u8]) -> bool {
        let (mut at, mut loaded) = (0, 0u32);
        loop {
            let (operation, jt, jf, k) = code[at];
            at += 1;
            let bytes = |len: usize| {
                let bytes = frame.get(k as usize..k as usize + len)?;
                Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
            };
            let value = match (operation, k) {
                (0x20, 0xffff_f02c) => Some(tci.unwrap_or(0x1fff).into()),
                (0x20, 0xffff_f030) => Some(tci.is_some().into()),
                (0x20, _) => bytes(4),
                (0x28, _) => bytes(2),
                (0x30, _) => bytes(1),
                (0x54, _) => Some(loaded & k),
                (0x15, _) => {
                    at += usize::from(if loaded == k { jt } else { jf });
                    Some(loaded)
                }
                (0x06, _) => return k != 0,
                (other, _) => panic!("no such operation: {other:#x}"),
            };
            // Beyond the end of the frame: not accepted.
            let Some(value) = value else { return false };
            loaded = value;
        }
    }

    /// With an IP packet, and the tag that the kernel has left.
    fn frame(left: &[u8], packet: &[u8]) -> Vec<u8> {
        let kind: &[u8] = if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] };
        [&[2; 12], left, kind, packet].concat()
    }

    #[test]
    fn a_link_takes_its_own_advertisements_alone() {
        let mut v4 = [0; 32];
        (v4[0], v4[8], v4[9]) = (0x45, 255, 112);
        v4[16..20].copy_from_slice(&[224, 0, 0, 18]);
        let mut v6 = [0; 52];
        (v6[0], v6[6], v6[7]) = (0x60, 112, 255);
        (v6[24], v6[25], v6[39]) = (0xff, 2, 0x12);
        let q300: &[u8] = &[0x81, 0, 0x61, 0x2c];
        let [plain, tagged, double] =
            [(0, 0), (100, 0), (100, 300)].map(|(outer, inner)| Tags { outer, inner });
        let takes = |packet: &[u8]| {
            for (tags, tci, left, expected) in [
                (plain, None, &[][..], true),
                (plain, Some(0xe000), &[], true),
                (plain, Some(100), &[], false),
                (plain, None, q300, false),
                (tagged, Some(0xe064), &[], true),
                (tagged, Some(101), &[], false),
                (tagged, None, &[], false),
                (tagged, Some(100), q300, false),
                (double, Some(100), q300, true),
                (double, Some(100), &[0x81, 0, 0x01, 0x2d], false),
                (double, Some(100), &[], false),
                (double, Some(101), q300, false),
            ] {
                let taken = is_accepted(&filter(tags), tci, &frame(left, packet));
                assert_eq!(taken, expected, "{tags:?}, {tci:?} {left:?}, {packet:?}");
            }
        };
        takes(&v4);
        takes(&v6);
        // TTL, protocol, the ends of the group's address; EtherType of the other family.
        for (packet, at) in [(&v4[..], [8, 9, 16, 19]), (&v6, [6, 7, 24, 39])] {
            for at in at {
                let mut packet = packet.to_vec();
                packet[at] ^= 1;
                assert!(!is_accepted(&filter(plain), None, &frame(&[], &packet)), "{at}");
            }
            assert!(!is_accepted(&filter(plain), None, &frame(&[], &packet[..16])), "truncated");
        }
    }
}
