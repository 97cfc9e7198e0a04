//! Everything the gateway answers. Units stand in the names; counts are totals since the start.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::base64;
use super::bridges::{BridgeChanged, BridgeEntry, MacPage};
use super::deterministic::NatHost;
use super::explain::{Explained, Reached};
use super::ha::{DrainEntry, HaList};
use super::inspect::{Cleared, GroupEntry, MappingPage, PoolEntry, RuleList, SessionPage};
use super::preview::Previewed;
use super::request::RouteKey;
use super::revision_requests::{DocumentPiece, RevisionList};
use super::services::ServiceList;
use super::upgrade::UpgradeEntry;
use crate::config::{
    DeviceName, InterfaceAddress, InterfaceName, Lag, Mac, Name, PortMode, PortName, Prefix, Vlan, Vni,
    VrfName, ZoneName,
};

/// The result of a request. Which variant it is follows from the method.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Reply {
    /// To `ping`: `{}`.
    Pong {},
    /// To `show.version`.
    Version(Version),
    /// To `show.ports`.
    Ports(Vec<PortStatus>),
    /// To `show.interfaces`.
    Interfaces(Vec<InterfaceStatus>),
    /// To `show.routes`.
    Routes(RoutePage),
    /// To `show.neighbours`.
    Neighbours(Vec<NeighbourEntry>),
    /// To `show.counters`.
    Counters(Vec<Counter>),
    /// To `show.drops`.
    Drops(Vec<DropEntry>),
    /// To `show.workers`.
    Workers(Vec<WorkerStatus>),
    /// To `show.dhcp-relays`.
    DhcpRelays(Vec<DhcpRelayEntry>),
    /// To `show.ha`.
    Ha(HaList),
    /// To `show.sessions`.
    Sessions(SessionPage),
    /// To `clear.sessions`.
    Cleared(Cleared),
    /// To `show.nat`.
    Nat(Vec<PoolEntry>),
    /// To `show.nat.mappings`.
    Mappings(MappingPage),
    /// To `nat.map` and `nat.find`.
    NatHosts(Vec<NatHost>),
    /// To `show.rules`.
    Rules(RuleList),
    /// To `show.services`.
    Services(ServiceList),
    /// To `show.bridges`.
    Bridges(Vec<BridgeEntry>),
    /// To `show.macs`.
    Macs(MacPage),
    /// To `bridge.add-macs`, `bridge.del-macs` and `bridge.open`.
    BridgeChanged(BridgeChanged),
    /// To `show.groups`.
    Groups(Vec<GroupEntry>),
    /// To `drops.export`.
    DropsExport(DropsExport),
    /// To `show.convergence`.
    Convergence(Convergence),
    /// To `show.revisions`.
    Revisions(RevisionList),
    /// To `show.revision`.
    Document(DocumentPiece),
    /// To `explain`.
    Explained(Explained),
    /// To `reach`.
    Reached(Reached),
    /// To `preview`.
    Previewed(Previewed),
    /// To `drain` and `drain.cancel`.
    Drain(DrainEntry),
    /// To `upgrade`.
    Upgrade(UpgradeEntry),
    /// To `begin`, `abort`, `upload` and changes inside a transaction.
    Staged(Staged),
    /// To `apply`, `commit`, `rollback`, `confirm`, `show.pair-commit` and changes outside a transaction.
    Changed(Changed),
}

/// What a connection has staged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Staged {
    /// Single changes.
    pub staged: u64,
    /// Memory they hold; files brought near by `upload` count too.
    pub staged_bytes: u64,
    /// The revision in force when the transaction began; absent: no transaction is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// A change that has been applied: no packet uses the old tables any more, unless it is `late`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// The generation every worker now uses, unless the change is `late`.
    pub generation: u64,
    /// The generation before it. It may make several: where ports come and go, for one.
    #[serde(default, skip_serializing_if = "is_none")]
    pub generation_before: u64,
    /// The revision that the config is of now; absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// It is taken back in so many seconds unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_s: Option<u32>,
    /// From the request to the moment the last worker reported the generation, or was given up on.
    pub applied_us: u64,
    /// Single changes made.
    pub changed: u64,
    /// A worker goes on with an older generation for now; a warning says so.
    #[serde(default)]
    pub late: bool,
    /// What the operator should know though nothing is wrong.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// It is a commit on both nodes: unless it is done, ask `show.pair-commit` how it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<PairCommit>,
}

/// A commit on both nodes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairCommit {
    /// Which.
    pub commit: u64,
    /// How far it is.
    pub stage: PairStage,
    /// The revision that the other node's config is of now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// How far a commit on both nodes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PairStage {
    /// This node reads, checks and compiles it.
    PreparingHere,
    /// The other does.
    PreparingThere,
    /// It is in force here, and about to be there.
    Publishing,
    /// It is in force on both, and not for good yet.
    Keeping,
    /// It is, on both.
    Done,
}

impl Changed {
    /// The commit on both nodes that is under way.
    pub fn under_way(&self) -> Option<u64> {
        self.pair.filter(|pair| pair.stage != PairStage::Done).map(|pair| pair.commit)
    }
}

/// Before the first generation there is none.
fn is_none(generation: &u64) -> bool {
    *generation == 0
}

/// Params of `show.convergence`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConvergenceQuery {
    /// The generation before the commit: its `generation_before`; 0: since the start.
    pub after: u64,
    /// That of the commit; absent: the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// What has become of the sessions that a commit was about. One that several commits were about counts for the newest of
/// those that had come when it was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Convergence {
    /// No session carries an older decision: the numbers are the last.
    pub converged: bool,
    /// The generation that no session's decision is older than.
    pub generation: u64,
    /// Decided as before.
    pub kept: u64,
    /// Another rule, egress or next hop.
    pub moved: u64,
    /// Not allowed any more.
    pub ended: u64,
    /// So many generations have come since that some of its numbers are forgotten.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

/// What runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The version of the binary.
    pub version: String,
    /// The node, `system.name`.
    pub name: String,
    /// Which `[node.NAME]` of the config it is; absent: none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// The schema of configs it writes.
    pub schema: u32,
    /// The generation in use.
    pub generation: u64,
    /// The generation that no session's decision is older than.
    #[serde(default)]
    pub converged: u64,
    /// The file the running config came from.
    pub config: String,
    /// Since the start.
    pub uptime_s: u64,
    /// Its process.
    pub pid: u32,
}

/// Whether something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// All of it.
    Up,
    /// It works, less well than configured: `why` says what is lost.
    Degraded,
    /// It does not: `why` says why.
    Down,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortStatus {
    /// Its name.
    pub name: PortName,
    /// Its devices, one unless it is a LAG.
    pub devices: Vec<DeviceName>,
    /// How a LAG shares.
    pub lag: Option<Lag>,
    /// The devices of a LAG that carry traffic.
    pub active: Vec<DeviceName>,
    /// Whether it works.
    pub state: LinkState,
    /// Why not, and what to do.
    pub why: Option<String>,
    /// The mode in use; `None` while it is down.
    pub mode: Option<PortMode>,
    /// Whether frames are shared with the driver.
    pub zero_copy: bool,
    /// Whether frames longer than a buffer pass.
    pub multi_buffer: bool,
    /// Queues in use.
    pub queues: u32,
    /// Of the device.
    pub mtu_bytes: u32,
    /// Of the device.
    pub mac: Option<Mac>,
    /// Received since the gateway was started, on whichever devices and queues. So are all counts below.
    pub rx_packets: u64,
    /// Received, Ethernet headers included.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Sent, Ethernet headers included.
    pub tx_bytes: u64,
    /// Lost because the receive ring was full: the workers are too slow.
    pub rx_ring_full: u64,
    /// Lost because no empty frame was there to receive into.
    pub rx_fill_empty: u64,
    /// Lost in the device or kernel otherwise.
    pub rx_dropped: u64,
    /// Lost because the transmit ring was full.
    pub tx_ring_full: u64,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: InterfaceName,
    /// The port it is on; of a VNI there is none.
    pub port: Option<PortName>,
    /// Its tags.
    pub vlan: Option<Vlan>,
    /// The VXLAN segment it is an end of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Our tunnel end point of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<IpAddr>,
    /// The configured others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<IpAddr>,
    /// Its VRF.
    pub vrf: VrfName,
    /// Its zone.
    pub zone: Option<ZoneName>,
    /// The gateway's addresses on it.
    pub addresses: Vec<InterfaceAddress>,
    /// Our MAC on it; `None` while it is the device's and the device is away.
    pub mac: Option<Mac>,
    /// The longest IP packet.
    pub mtu_bytes: u32,
    /// Whether it works.
    pub state: LinkState,
    /// Why not.
    pub why: Option<String>,
    /// Received.
    pub rx_packets: u64,
    /// Received, Ethernet headers included.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Sent, Ethernet headers included.
    pub tx_bytes: u64,
    /// Packets that came in here and were dropped, for any reason.
    pub drops: u64,
}

/// A page of routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RoutePage {
    /// The generation they are of. Another one on the next page: start again for one consistent list.
    pub generation: u64,
    /// Routes that match, on all pages.
    pub total: u64,
    /// `after` of the next page; `None`: this is the last.
    pub next: Option<RouteKey>,
    /// Ordered by VRF and prefix.
    pub routes: Vec<RouteEntry>,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// Forwards to next hops.
    Via,
    /// Delivers on the link of an interface.
    Connected,
    /// Is an address of the gateway.
    Local,
    /// Drops silently.
    Blackhole,
    /// Drops with an ICMP error.
    Unreachable,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RouteSource {
    /// Config or socket.
    Static,
    /// The network of an interface.
    Connected,
    /// An address of an interface.
    Local,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RouteEntry {
    /// Its VRF.
    pub vrf: VrfName,
    /// Its prefix.
    pub prefix: Prefix,
    /// What it does.
    pub kind: RouteKind,
    /// Its next hops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<ViaEntry>,
    /// The interface of a connected or local route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// Where it comes from.
    pub source: RouteSource,
    /// Whether packets use it.
    pub active: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ViaEntry {
    /// The neighbouring router.
    pub address: IpAddr,
    /// The VRF it is in, if not the route's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// The interface packets leave by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// Whether packets use it: its interface is up.
    pub active: bool,
}

/// Where ARP or ND stand with a neighbour (RFC 4861 section 7.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NeighbourState {
    /// Asked, no answer yet.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Believed until used.
    Stale,
    /// Used; about to be asked.
    Delay,
    /// Being asked.
    Probe,
    /// Did not answer.
    Failed,
    /// Configured; never asked.
    Permanent,
}

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NeighbourEntry {
    /// Its interface.
    pub interface: InterfaceName,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC, once known.
    pub mac: Option<Mac>,
    /// On an overlay: the tunnel end point it is behind, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    /// Where we stand with it.
    pub state: NeighbourState,
    /// Since it was last confirmed.
    pub age_s: Option<u64>,
    /// Configured rather than learned.
    #[serde(rename = "static")]
    pub is_static: bool,
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counter {
    /// Its name, dotted: `interface.tenant-a.rx-packets`.
    pub name: String,
    /// What it counted.
    pub value: u64,
    /// What that is, in one line.
    pub explanation: String,
}

/// A drop reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DropEntry {
    /// Its name: `no-route`.
    pub reason: String,
    /// Packets lost to it.
    pub count: u64,
    /// What it means and what to look at, in one line.
    pub explanation: String,
    /// Since the latest one.
    pub last_s: Option<u64>,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// Its CPU.
    pub cpu: Option<u32>,
    /// The generation it uses.
    pub generation: u64,
    /// The generation that none of its sessions is older than.
    pub converged: u64,
    /// Packets received.
    pub packets: u64,
    /// Bursts with at least one packet.
    pub bursts: u64,
    /// Rounds of its loop.
    pub loops: u64,
    /// Share of its time spent on packets, over the last second.
    pub busy_percent: f32,
    /// Longest time between two rounds of its loop while there was work.
    pub longest_gap_us: u64,
    /// The same without the time it waited for its CPU because the scheduler gave it to somebody else.
    pub longest_gap_own_us: u64,
    /// How many of the latter were 50 microseconds or longer, since the start.
    pub long_gaps: u64,
    /// Free frames in its pool.
    pub frames_free: u64,
    /// Packets it gave to the workers that have their flows.
    pub handed_over: u64,
    /// Sessions it has.
    pub sessions: u64,
    /// Sessions it opened, since the start.
    pub sessions_opened: u64,
    /// Sessions that ended, since the start.
    pub sessions_ended: u64,
    /// Sessions of each family (IPv4, IPv6) it has room for.
    pub session_capacity: u64,
}

/// The DHCP relay of an interface, of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DhcpRelayEntry {
    /// The interface its clients are on.
    pub interface: InterfaceName,
    /// What servers know it by.
    pub source: IpAddr,
    /// Its servers.
    pub servers: Vec<IpAddr>,
    /// The VRF they are in.
    pub vrf: VrfName,
    /// Messages of clients that went to the servers; to several counts once.
    pub requests: u64,
    /// Messages of servers that went to clients.
    pub replies: u64,
    /// Messages that were lost, by reason; only reasons that have counted.
    pub drops: Vec<LostMessages>,
}

/// Messages that a relay lost for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LostMessages {
    /// Name of the drop reason; `other` for those that are not DHCP's own.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// The latest dropped packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DropsExport {
    /// How many.
    pub packets: u64,
    /// A pcapng file; Base64 on the wire.
    #[serde(rename = "pcapng_base64", with = "as_base64")]
    #[schemars(with = "String")]
    pub pcapng: Vec<u8>,
}

mod as_base64 {
    use super::base64;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        base64::decode(&text).ok_or_else(|| D::Error::custom("not Base64"))
    }
}
