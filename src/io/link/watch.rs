//! The link watcher: rtnetlink(7) events and ethtool notifications as typed [`LinkEvent`]s.
//!
//! `Links` is the pure part: what is known of every device, and the difference a message makes.
//! [`LinkWatcher`] is the socket around it: the kernel wakes us, microseconds after most changes.
//!
//! Carrier is the exception. The kernel (net/core/link_watch.c) lets one round of carrier events out per
//! second, over all devices together, and only bonds, stacked devices and most veths are let through at
//! once: a cable pulled within a second of any other link event is told up to a second late. The flag
//! itself is right at once. So the devices ports sit on are *followed*: asked every
//! [`FOLLOW_PERIOD`], which costs some 10 microseconds each.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};

use super::ethtool::Ethtool;
use super::netlink::{
    self, DATAGRAM_BYTES, GENL_HEADER_BYTES, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Request,
    attribute, attributes, i32_at, string, u16_at, u32_at,
};
use super::timer::Timer;

/// rtnetlink(7) message types.
pub(super) const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
/// The multicast group of link events (linux/rtnetlink.h).
const RTNLGRP_LINK: u32 = 1;
/// ifinfomsg: family, pad, type, index, flags, change.
pub(super) const IFINFO_BYTES: usize = 16;
/// How often followed devices are asked. Link changes are to be acted on within 50 ms (DESIGN.md
/// section 6); this leaves 30 ms to the control thread.
pub const FOLLOW_PERIOD: Duration = Duration::from_millis(20);
/// Receive buffer asked of the kernel: at about 2 KB of accounting per event, some 2,000 events may
/// wait while the control thread is busy. Beyond it the links are dumped again.
const RECEIVE_BUFFER_BYTES: u32 = 4 << 20;

// Attributes of a link (linux/if_link.h).
const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_CARRIER: u16 = 33;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
/// Leave the counters out of a reply: they are most of its cost.
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

// The ethtool family (linux/ethtool_netlink.h).
const ETHTOOL_MSG_CHANNELS_NTF: u8 = 19;
const ETHTOOL_A_CHANNELS_HEADER: u16 = 1;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_TX_COUNT: u16 = 7;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;

/// A kernel interface index; 0 is none.
pub type IfIndex = u32;

/// One thing that happened to one device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LinkEvent {
    /// The device's name at the time.
    pub device: String,
    /// Its index. A device that was deleted and created again has another one.
    pub ifindex: IfIndex,
    /// What happened.
    pub change: LinkChange,
    /// The device now; for `Vanished` as it was last seen, without carrier.
    pub state: LinkState,
    /// The device before, for `Changed`.
    pub before: Option<LinkState>,
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkChange {
    /// It is new here: created, plugged in, moved into this namespace, or renamed to this name.
    Appeared,
    /// It is gone from here. Sockets and programs on it are dead.
    Vanished,
    /// It is the same device in another state.
    Changed,
}

/// What is known of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LinkState {
    /// Its index.
    pub ifindex: IfIndex,
    /// The other end is there. Never true while `admin_up` is false.
    pub carrier: bool,
    /// Switched on (`ip link set up`).
    pub admin_up: bool,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu_bytes: u32,
    /// Its hardware address; zero for devices without one.
    pub mac: [u8; 6],
    /// Receive queues in use. The allocated ones where the driver does not say.
    pub rx_queues: u32,
    /// Transmit queues in use. The allocated ones where the driver does not say.
    pub tx_queues: u32,
    /// The bridge or bond it belongs to.
    pub master: Option<IfIndex>,
    /// What sort of device.
    pub kind: LinkKind,
    /// The attached XDP program: a gateway is at work, or has left it behind. Attaching by bpf_link is
    /// not announced by the kernel: only on followed devices is this known in time.
    pub xdp: Option<XdpAttached>,
    /// The other end of a veth pair (or the lower device of a stacked one).
    pub peer: Option<Peer>,
}

/// Where a device's other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Peer {
    /// Its index there.
    pub ifindex: IfIndex,
    /// The kernel's number for its network namespace; `None` when it is this one.
    pub netns_id: Option<i32>,
}

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct XdpAttached {
    /// Where it is attached.
    pub mode: XdpMode,
    /// The kernel's id of the program (`bpftool prog show id N`).
    pub program_id: u32,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the kernel's stack, after an skb was made.
    Generic,
    /// In the network card.
    Offloaded,
    /// In several of these places.
    Several,
}

/// What sort of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// A network card, or whatever does not call itself something else.
    Physical,
    /// `lo`.
    Loopback,
    /// One end of a pair.
    Veth,
    /// A kernel bond or team.
    Bond,
    /// A kernel bridge.
    Bridge,
    /// A kernel VLAN device.
    Vlan,
    /// macvlan or macvtap.
    Macvlan,
    /// TUN or TAP.
    Tun,
    /// A VXLAN device.
    Vxlan,
    /// A dummy.
    Dummy,
    /// Anything else that is not a card.
    Other,
}

impl LinkKind {
    fn named(kind: &str) -> Self {
        match kind {
            "veth" => Self::Veth,
            "bond" | "team" => Self::Bond,
            "bridge" => Self::Bridge,
            "vlan" => Self::Vlan,
            "macvlan" | "macvtap" => Self::Macvlan,
            "tun" => Self::Tun,
            "vxlan" => Self::Vxlan,
            "dummy" => Self::Dummy,
            _ => Self::Other,
        }
    }
}

/// Decodes the payload of an `RTM_NEWLINK` into name and state. `None` for what is not a whole link:
/// the bridge's messages about its ports and wireless events come with the same type.
pub(super) fn parse_link(payload: &[u8]) -> Option<(String, LinkState)> {
    if *payload.first()? != libc::AF_UNSPEC as u8 {
        return None;
    }
    let kind =
        if u16_at(payload, 2)? == libc::ARPHRD_LOOPBACK { LinkKind::Loopback } else { LinkKind::Physical };
    let flags = u32_at(payload, 8)?;
    let mut name = None;
    let mut mtu_bytes = None;
    let mut peer_ifindex = None;
    let mut peer_netns_id = None;
    let mut carrier = true;
    let mut state = LinkState {
        ifindex: u32_at(payload, 4)?,
        carrier: false,
        admin_up: flags & libc::IFF_UP as u32 != 0,
        mtu_bytes: 0,
        mac: [0; 6],
        rx_queues: 1,
        tx_queues: 1,
        master: None,
        kind,
        xdp: None,
        peer: None,
    };
    for (kind, value) in attributes(payload.get(IFINFO_BYTES..)?) {
        match kind {
            IFLA_IFNAME => name = Some(string(value)),
            IFLA_MTU => mtu_bytes = u32_at(value, 0),
            IFLA_ADDRESS => state.mac = value.try_into().unwrap_or_default(),
            IFLA_MASTER => state.master = u32_at(value, 0),
            IFLA_LINK => peer_ifindex = u32_at(value, 0),
            IFLA_LINK_NETNSID => peer_netns_id = i32_at(value, 0),
            IFLA_CARRIER => carrier = value.first() != Some(&0),
            IFLA_NUM_RX_QUEUES => state.rx_queues = u32_at(value, 0)?,
            IFLA_NUM_TX_QUEUES => state.tx_queues = u32_at(value, 0)?,
            IFLA_LINKINFO => {
                if let Some(kind) = attribute(value, IFLA_INFO_KIND) {
                    state.kind = LinkKind::named(&string(kind));
                }
            }
            IFLA_XDP => state.xdp = parse_xdp(value),
            _ => {}
        }
    }
    // A device that is down keeps its last carrier flag; nothing passes all the same.
    state.carrier = carrier && state.admin_up && flags & libc::IFF_LOWER_UP as u32 != 0;
    state.mtu_bytes = mtu_bytes?;
    state.peer = peer_ifindex
        .filter(|ifindex| *ifindex != 0)
        .map(|ifindex| Peer { ifindex, netns_id: peer_netns_id.filter(|id| *id >= 0) });
    Some((name?, state))
}

fn parse_xdp(value: &[u8]) -> Option<XdpAttached> {
    let mode = match attribute(value, IFLA_XDP_ATTACHED)?.first()? {
        0 => return None,
        1 => XdpMode::Native,
        2 => XdpMode::Generic,
        3 => XdpMode::Offloaded,
        _ => XdpMode::Several,
    };
    let program_id = attribute(value, IFLA_XDP_PROG_ID).and_then(|v| u32_at(v, 0)).unwrap_or(0);
    Some(XdpAttached { mode, program_id })
}

/// The queues in use: receive and transmit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queues {
    rx: u32,
    tx: u32,
}

#[derive(Clone, Debug)]
struct Known {
    device: String,
    state: LinkState,
    /// Seen since the dump under way began.
    fresh: bool,
}

/// What is known of every link. No socket, no clock: messages go in, differences come out.
#[derive(Debug, Default)]
struct Links {
    known: BTreeMap<IfIndex, Known>,
}

impl Links {
    /// A link as the kernel describes it. `queues`: the ones in use, where somebody asked the driver;
    /// else what was known stays, because link messages only tell how many were allocated.
    fn learn(&mut self, device: &str, state: LinkState, queues: Option<Queues>, events: &mut Vec<LinkEvent>) {
        let mut state = state;
        let known = self.known.get(&state.ifindex);
        let counted = queues.or(known.map(|k| Queues { rx: k.state.rx_queues, tx: k.state.tx_queues }));
        if let Some(queues) = counted {
            (state.rx_queues, state.tx_queues) = (queues.rx, queues.tx);
        }
        match known {
            Some(known) if known.device == device => {
                let before = known.state;
                if before != state {
                    events.push(LinkEvent {
                        before: Some(before),
                        ..LinkEvent::new(device, LinkChange::Changed, state)
                    });
                }
            }
            // Renamed: to whoever knows devices by name, one went and another came.
            Some(_) => {
                self.forget(state.ifindex, events);
                self.forget_name(device, events);
                events.push(LinkEvent::new(device, LinkChange::Appeared, state));
            }
            // The name may have been given away without our hearing of it (messages were lost).
            None => {
                self.forget_name(device, events);
                events.push(LinkEvent::new(device, LinkChange::Appeared, state));
            }
        }
        self.known.insert(state.ifindex, Known { device: device.to_owned(), state, fresh: true });
    }

    fn forget(&mut self, ifindex: IfIndex, events: &mut Vec<LinkEvent>) {
        if let Some(Known { device, state, .. }) = self.known.remove(&ifindex) {
            let state = LinkState { carrier: false, admin_up: false, xdp: None, ..state };
            events.push(LinkEvent::new(&device, LinkChange::Vanished, state));
        }
    }

    fn forget_name(&mut self, device: &str, events: &mut Vec<LinkEvent>) {
        if let Some(ifindex) = self.find(device).map(|state| state.ifindex) {
            self.forget(ifindex, events);
        }
    }

    /// The driver's own word on the queues in use.
    fn count_queues(&mut self, ifindex: IfIndex, queues: Queues, events: &mut Vec<LinkEvent>) {
        let Some(known) = self.known.get_mut(&ifindex) else { return };
        let before = known.state;
        (known.state.rx_queues, known.state.tx_queues) = (queues.rx, queues.tx);
        if before != known.state {
            events.push(LinkEvent {
                before: Some(before),
                ..LinkEvent::new(&known.device, LinkChange::Changed, known.state)
            });
        }
    }

    /// A dump begins: what it does not mention until [`Links::end_dump`] is gone.
    fn begin_dump(&mut self) {
        self.known.values_mut().for_each(|known| known.fresh = false);
    }

    fn end_dump(&mut self, events: &mut Vec<LinkEvent>) {
        let stale: Vec<IfIndex> = self.known.iter().filter(|(_, k)| !k.fresh).map(|(i, _)| *i).collect();
        for ifindex in stale {
            self.forget(ifindex, events);
        }
    }

    fn find(&self, device: &str) -> Option<&LinkState> {
        self.known.values().find(|known| known.device == device).map(|known| &known.state)
    }
}

impl LinkEvent {
    fn new(device: &str, change: LinkChange, state: LinkState) -> Self {
        Self { device: device.to_owned(), ifindex: state.ifindex, change, state, before: None }
    }
}

/// Where the dump of all links stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dump {
    /// The tables are whole.
    Idle,
    /// Wanted; asked for when the queue is empty. Not before: a congested socket takes no events until
    /// it is drained, and what happened meanwhile would be lost without a second warning.
    Due,
    /// Under way. `again`: messages were lost since it began, or the kernel says it has holes.
    Running { again: bool },
}

/// Watches the links of one network namespace: the one of the thread that opened it.
///
/// The raw fd is readable when something may have happened; register it for reading, edge or level.
#[derive(Debug)]
pub struct LinkWatcher {
    /// Holds the sockets and the timer: the one descriptor a poll loop needs.
    poll: mio::Poll,
    route: Socket,
    /// Channel changes; not there before Linux 5.6.
    ethtool_events: Option<(Socket, u16)>,
    ethtool: Ethtool,
    links: Links,
    dump: Dump,
    /// Asked whenever the timer goes off.
    followed: Vec<String>,
    timer: Timer,
    /// Found by [`LinkWatcher::open`], not read yet.
    pending: Vec<LinkEvent>,
    datagram: Vec<u8>,
}

impl LinkWatcher {
    /// Subscribes, then learns all links: the first [`LinkWatcher::read`] reports each as `Appeared`.
    pub fn open() -> io::Result<Self> {
        Self::with_receive_buffer(RECEIVE_BUFFER_BYTES)
    }

    /// As [`LinkWatcher::open`]. A small buffer makes overflows, for tests.
    pub fn with_receive_buffer(bytes: u32) -> io::Result<Self> {
        let route = netlink::socket(NETLINK_ROUTE)?;
        route.set_rx_buf_sz(bytes)?;
        route.add_membership(RTNLGRP_LINK)?;
        let poll = mio::Poll::new()?;
        let register = |fd: RawFd| {
            poll.registry().register(&mut mio::unix::SourceFd(&fd), mio::Token(0), mio::Interest::READABLE)
        };
        register(route.as_raw_fd())?;
        let timer = Timer::new()?;
        register(timer.as_raw_fd())?;
        let ethtool_events = subscribe_ethtool().ok();
        if let Some((socket, _)) = &ethtool_events {
            register(socket.as_raw_fd())?;
        }
        let mut watcher = Self {
            poll,
            route,
            ethtool_events,
            ethtool: Ethtool::open()?,
            links: Links::default(),
            dump: Dump::Due,
            followed: Vec::new(),
            timer,
            pending: Vec::new(),
            datagram: Vec::with_capacity(DATAGRAM_BYTES),
        };
        watcher.pending = watcher.read()?;
        Ok(watcher)
    }

    /// What happened since the last call, in order. Never blocks. When messages were lost, all links
    /// are dumped again within the call and the difference is reported.
    pub fn read(&mut self) -> io::Result<Vec<LinkEvent>> {
        let mut events = std::mem::take(&mut self.pending);
        if self.timer.has_fired() {
            let followed: Vec<IfIndex> =
                self.followed.iter().filter_map(|device| Some(self.find(device)?.ifindex)).collect();
            for ifindex in followed {
                self.refresh(ifindex)?;
            }
        }
        self.read_links(&mut events)?;
        self.read_channels(&mut events)?;
        Ok(events)
    }

    /// As [`LinkWatcher::read`], but waits up to `timeout` for the first event.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Vec<LinkEvent>> {
        let deadline = Instant::now() + timeout;
        loop {
            let events = self.read()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !events.is_empty() || left.is_zero() {
                return Ok(events);
            }
            match self.poll.poll(&mut mio::Events::with_capacity(2), Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => outcome?,
            }
        }
    }

    /// The devices whose carrier must be known in time, whatever the kernel's pace of telling (see the
    /// module): each is asked every [`FOLLOW_PERIOD`], under the hood of [`LinkWatcher::read`]. Devices
    /// need not exist yet. Replaces the devices followed before; none stops the timer.
    pub fn follow<S: Into<String>>(&mut self, devices: impl IntoIterator<Item = S>) -> io::Result<()> {
        self.followed = devices.into_iter().map(Into::into).collect();
        self.timer.repeat(if self.followed.is_empty() { Duration::ZERO } else { FOLLOW_PERIOD })
    }

    /// Asks the kernel for one device's state now; differences come with the next [`LinkWatcher::read`].
    pub fn refresh(&mut self, ifindex: IfIndex) -> io::Result<()> {
        let request = Request::new(RTM_GETLINK, 0, &ifinfo(ifindex))
            .with(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        match self.route.send(&request.bytes(), 0) {
            // The queue is full, so the next read finds the loss and dumps.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// What is known of a device by the last read.
    pub fn find(&self, device: &str) -> Option<&LinkState> {
        self.links.find(device)
    }

    /// All known devices.
    pub fn links(&self) -> impl Iterator<Item = (&str, &LinkState)> {
        self.links.known.values().map(|known| (known.device.as_str(), &known.state))
    }

    fn read_links(&mut self, events: &mut Vec<LinkEvent>) -> io::Result<()> {
        loop {
            match receive(&self.route, &mut self.datagram)? {
                Received::Datagram => self.take_links(events)?,
                Received::Lost => {
                    self.dump = match self.dump {
                        Dump::Idle | Dump::Due => Dump::Due,
                        Dump::Running { .. } => Dump::Running { again: true },
                    }
                }
                Received::Nothing => {
                    if self.dump != Dump::Due {
                        return Ok(());
                    }
                    let request = Request::new(RTM_GETLINK, NLM_F_DUMP, &ifinfo(0)).bytes();
                    self.route.send(&request, 0)?;
                    self.links.begin_dump();
                    self.dump = Dump::Running { again: false };
                }
            }
        }
    }

    fn take_links(&mut self, events: &mut Vec<LinkEvent>) -> io::Result<()> {
        for message in netlink::messages(&self.datagram) {
            if let Dump::Running { again } = &mut self.dump
                && message.flags & NLM_F_DUMP_INTR != 0
            {
                *again = true;
            }
            match message.kind {
                RTM_NEWLINK => {
                    if let Some((device, state)) = parse_link(message.payload) {
                        // The driver is asked for devices not known and after losses; else its own
                        // notifications tell, where the kernel has them.
                        let ask = self.dump != Dump::Idle
                            || self.ethtool_events.is_none()
                            || !self.links.known.contains_key(&state.ifindex);
                        let queues = ask.then(|| queues_in_use(&self.ethtool, &device)).flatten();
                        self.links.learn(&device, state, queues, events);
                    }
                }
                // A bridge tells with the same type, in its own family, that a port has left it.
                RTM_DELLINK if message.payload.first() == Some(&(libc::AF_UNSPEC as u8)) => {
                    if let Some(ifindex) = u32_at(message.payload, 4) {
                        self.links.forget(ifindex, events);
                    }
                }
                NLMSG_DONE => {
                    message.outcome()?;
                    if let Dump::Running { again } = self.dump {
                        // With holes in it, the dump does not prove anybody's absence.
                        if !again {
                            self.links.end_dump(events);
                        }
                        self.dump = if again { Dump::Due } else { Dump::Idle };
                    }
                }
                NLMSG_ERROR => match self.dump {
                    // The kernel refused to dump: there is nothing to watch with.
                    Dump::Running { .. } => message.outcome()?,
                    // A device refreshed is gone; its event comes or came.
                    Dump::Idle | Dump::Due => {}
                },
                _ => {}
            }
        }
        Ok(())
    }

    fn read_channels(&mut self, events: &mut Vec<LinkEvent>) -> io::Result<()> {
        let Some((socket, family)) = &self.ethtool_events else { return Ok(()) };
        loop {
            match receive(socket, &mut self.datagram)? {
                Received::Nothing => return Ok(()),
                Received::Datagram => {
                    for message in netlink::messages(&self.datagram).filter(|m| m.kind == *family) {
                        if let Some((ifindex, queues)) = parse_channels(message.payload) {
                            self.links.count_queues(ifindex, queues, events);
                        }
                    }
                }
                Received::Lost => {
                    let devices: Vec<(IfIndex, String)> =
                        self.links.known.iter().map(|(i, k)| (*i, k.device.clone())).collect();
                    for (ifindex, device) in devices {
                        if let Some(queues) = queues_in_use(&self.ethtool, &device) {
                            self.links.count_queues(ifindex, queues, events);
                        }
                    }
                }
            }
        }
    }
}

impl AsRawFd for LinkWatcher {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

/// The ifinfomsg of a request; index 0 is "any".
pub(super) fn ifinfo(ifindex: IfIndex) -> [u8; IFINFO_BYTES] {
    let mut bytes = [0; IFINFO_BYTES];
    bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}

fn queues_in_use(ethtool: &Ethtool, device: &str) -> Option<Queues> {
    let channels = ethtool.channels(device).ok()?;
    Some(Queues { rx: channels.rx_queues(), tx: channels.tx_queues() })
}

fn subscribe_ethtool() -> io::Result<(Socket, u16)> {
    let family = netlink::family("ethtool")?;
    let (_, group) = family
        .groups
        .iter()
        .find(|(name, _)| name == "monitor")
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let socket = netlink::socket(NETLINK_GENERIC)?;
    socket.add_membership(*group)?;
    Ok((socket, family.id))
}

/// Decodes an `ETHTOOL_MSG_CHANNELS_NTF`; `None` for every other notification.
fn parse_channels(payload: &[u8]) -> Option<(IfIndex, Queues)> {
    if *payload.first()? != ETHTOOL_MSG_CHANNELS_NTF {
        return None;
    }
    let attrs = payload.get(GENL_HEADER_BYTES..)?;
    let count = |kind| attribute(attrs, kind).and_then(|v| u32_at(v, 0)).unwrap_or(0);
    let header = attribute(attrs, ETHTOOL_A_CHANNELS_HEADER)?;
    let ifindex = attribute(header, ETHTOOL_A_HEADER_DEV_INDEX).and_then(|v| u32_at(v, 0))?;
    let combined = count(ETHTOOL_A_CHANNELS_COMBINED_COUNT);
    let queues = Queues {
        rx: combined + count(ETHTOOL_A_CHANNELS_RX_COUNT),
        tx: combined + count(ETHTOOL_A_CHANNELS_TX_COUNT),
    };
    Some((ifindex, queues))
}

enum Received {
    Datagram,
    Nothing,
    /// The kernel had to throw messages away, or one was longer than we can take.
    Lost,
}

fn receive(socket: &Socket, datagram: &mut Vec<u8>) -> io::Result<Received> {
    loop {
        datagram.clear();
        return match socket.recv(datagram, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            Ok(length) if length > datagram.len() => Ok(Received::Lost),
            Ok(_) => Ok(Received::Datagram),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Received::Lost),
            Err(error) => Err(error),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: IfIndex) -> LinkState {
        LinkState {
            ifindex,
            carrier: true,
            admin_up: true,
            mtu_bytes: 1500,
            mac: [2, 0, 0, 0, 0, 1],
            rx_queues: 1,
            tx_queues: 1,
            master: None,
            kind: LinkKind::Veth,
            xdp: None,
            peer: None,
        }
    }

    /// Runs `step` and says what it reported, as "change device".
    fn said(links: &mut Links, step: impl FnOnce(&mut Links, &mut Vec<LinkEvent>)) -> Vec<String> {
        let mut events = Vec::new();
        step(links, &mut events);
        events.iter().map(|e| format!("{:?} {}", e.change, e.device)).collect()
    }

    #[test]
    fn only_differences_are_reported() {
        let mut links = Links::default();
        assert_eq!(said(&mut links, |l, e| l.learn("eth1", link(7), None, e)), ["Appeared eth1"]);
        assert!(said(&mut links, |l, e| l.learn("eth1", link(7), None, e)).is_empty());
        let down = LinkState { carrier: false, ..link(7) };
        let mut events = Vec::new();
        links.learn("eth1", down, None, &mut events);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].before, Some(link(7)));
        assert_eq!(events[0].state, down);
        assert_eq!(said(&mut links, |l, e| l.forget(7, e)), ["Vanished eth1"]);
        assert!(said(&mut links, |l, e| l.forget(7, e)).is_empty());
    }

    #[test]
    fn a_vanished_device_has_no_carrier() {
        let mut links = Links::default();
        let mut events = Vec::new();
        links.learn("eth1", link(7), None, &mut events);
        links.forget(7, &mut events);
        assert!(!events[1].state.carrier);
        assert!(!events[1].state.admin_up);
    }

    #[test]
    fn a_renamed_device_goes_under_the_old_name_and_comes_under_the_new() {
        let mut links = Links::default();
        said(&mut links, |l, e| l.learn("eth1", link(7), None, e));
        assert_eq!(
            said(&mut links, |l, e| l.learn("lan0", link(7), None, e)),
            ["Vanished eth1", "Appeared lan0"]
        );
    }

    #[test]
    fn a_name_seen_on_another_index_means_the_old_device_is_gone() {
        let mut links = Links::default();
        said(&mut links, |l, e| l.learn("eth1", link(7), None, e));
        assert_eq!(
            said(&mut links, |l, e| l.learn("eth1", link(9), None, e)),
            ["Vanished eth1", "Appeared eth1"]
        );
        assert_eq!(links.find("eth1").map(|s| s.ifindex), Some(9));
    }

    #[test]
    fn a_dump_finds_what_was_missed() {
        let mut links = Links::default();
        for (name, ifindex) in [("eth1", 7), ("eth2", 8), ("eth3", 9)] {
            said(&mut links, |l, e| l.learn(name, link(ifindex), None, e));
        }
        links.begin_dump();
        let slow = LinkState { mtu_bytes: 9000, ..link(8) };
        assert!(said(&mut links, |l, e| l.learn("eth1", link(7), None, e)).is_empty());
        assert_eq!(said(&mut links, |l, e| l.learn("eth2", slow, None, e)), ["Changed eth2"]);
        assert_eq!(said(&mut links, |l, e| l.learn("eth4", link(10), None, e)), ["Appeared eth4"]);
        assert_eq!(said(&mut links, |l, e| l.end_dump(e)), ["Vanished eth3"]);
    }

    #[test]
    fn queue_counts_come_from_the_driver_and_survive_link_messages() {
        let mut links = Links::default();
        let allocated = LinkState { rx_queues: 8, tx_queues: 8, ..link(7) };
        let mut events = Vec::new();
        links.learn("eth1", allocated, Some(Queues { rx: 2, tx: 2 }), &mut events);
        assert_eq!((events[0].state.rx_queues, events[0].state.tx_queues), (2, 2));
        assert!(said(&mut links, |l, e| l.learn("eth1", allocated, None, e)).is_empty());
        let queues = Queues { rx: 4, tx: 2 };
        assert_eq!(said(&mut links, |l, e| l.count_queues(7, queues, e)), ["Changed eth1"]);
        assert!(said(&mut links, |l, e| l.count_queues(7, queues, e)).is_empty());
        assert!(said(&mut links, |l, e| l.count_queues(99, queues, e)).is_empty());
    }

    /// A link message as the kernel builds it.
    fn message(family: u8, flags: u32) -> Request {
        let mut header = ifinfo(7);
        header[0] = family;
        header[2..4].copy_from_slice(&1u16.to_ne_bytes()); // ARPHRD_ETHER
        header[8..12].copy_from_slice(&flags.to_ne_bytes());
        Request::new(RTM_NEWLINK, 0, &header)
    }

    fn parsed(request: Request) -> Option<(String, LinkState)> {
        let bytes = request.bytes();
        netlink::messages(&bytes).next().and_then(|m| parse_link(m.payload))
    }

    const UP: u32 = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;

    #[test]
    fn a_link_message_is_decoded() {
        let kind = [9u16.to_ne_bytes(), 1u16.to_ne_bytes()].concat();
        let info = [&kind[..], b"veth\0", &[0; 3]].concat();
        let xdp = [
            [5u16.to_ne_bytes(), 2u16.to_ne_bytes()].concat(),
            vec![1, 0, 0, 0],
            [8u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat(),
            42u32.to_ne_bytes().to_vec(),
        ]
        .concat();
        let request = message(0, UP)
            .with(IFLA_IFNAME, b"eth1\0")
            .with(IFLA_MTU, &9000u32.to_ne_bytes())
            .with(IFLA_ADDRESS, &[2, 0, 0, 0, 1, 2])
            .with(IFLA_CARRIER, &[1])
            .with(IFLA_MASTER, &3u32.to_ne_bytes())
            .with(IFLA_LINK, &12u32.to_ne_bytes())
            .with(IFLA_LINK_NETNSID, &0i32.to_ne_bytes())
            .with(IFLA_NUM_RX_QUEUES, &4u32.to_ne_bytes())
            .with(IFLA_NUM_TX_QUEUES, &2u32.to_ne_bytes())
            .with(IFLA_LINKINFO, &info)
            .with(IFLA_XDP, &xdp)
            .with(9999, &[1, 2, 3]);
        let (name, state) = parsed(request).expect("decodes");
        assert_eq!(name, "eth1");
        assert_eq!(
            state,
            LinkState {
                mtu_bytes: 9000,
                mac: [2, 0, 0, 0, 1, 2],
                master: Some(3),
                rx_queues: 4,
                tx_queues: 2,
                xdp: Some(XdpAttached { mode: XdpMode::Native, program_id: 42 }),
                peer: Some(Peer { ifindex: 12, netns_id: Some(0) }),
                ..link(7)
            }
        );
    }

    #[test]
    fn carrier_needs_a_device_that_is_up() {
        let base = |flags| message(0, flags).with(IFLA_IFNAME, b"e\0").with(IFLA_MTU, &1500u32.to_ne_bytes());
        let carrier = |request| parsed(request).expect("decodes").1.carrier;
        assert!(carrier(base(UP).with(IFLA_CARRIER, &[1])));
        assert!(!carrier(base(UP).with(IFLA_CARRIER, &[0])));
        assert!(!carrier(base(libc::IFF_UP as u32).with(IFLA_CARRIER, &[1])));
        assert!(!carrier(base(libc::IFF_LOWER_UP as u32).with(IFLA_CARRIER, &[1])));
    }

    #[test]
    fn messages_about_bridge_ports_and_wireless_are_not_links() {
        let whole =
            |family| message(family, UP).with(IFLA_IFNAME, b"e\0").with(IFLA_MTU, &1500u32.to_ne_bytes());
        assert!(parsed(whole(libc::AF_UNSPEC as u8)).is_some());
        assert!(parsed(whole(libc::AF_BRIDGE as u8)).is_none());
        assert!(parsed(message(0, UP).with(IFLA_IFNAME, b"wlan0\0")).is_none());
        assert!(parse_link(&[]).is_none());
        assert!(parse_link(&[0; 15]).is_none());
    }

    #[test]
    fn a_channel_notification_counts_combined_on_both_sides() {
        let header =
            [[8u16.to_ne_bytes(), 1u16.to_ne_bytes()].concat(), 7u32.to_ne_bytes().to_vec()].concat();
        let build = |command| {
            Request::generic(30, 0, command)
                .with(ETHTOOL_A_CHANNELS_HEADER, &header)
                .with(ETHTOOL_A_CHANNELS_RX_COUNT, &1u32.to_ne_bytes())
                .with(ETHTOOL_A_CHANNELS_COMBINED_COUNT, &4u32.to_ne_bytes())
                .bytes()
        };
        let parse = |bytes: &[u8]| netlink::messages(bytes).next().and_then(|m| parse_channels(m.payload));
        assert_eq!(parse(&build(ETHTOOL_MSG_CHANNELS_NTF)), Some((7, Queues { rx: 5, tx: 4 })));
        assert_eq!(parse(&build(13)), None);
    }
}
