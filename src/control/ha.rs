//! What `show ha` says.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{GroupName, InterfaceName, Mac, Seconds};
use crate::ha::bfd;
use crate::ha::drain::Phase;
use crate::ha::vrrp::State;

use super::upgrade::UpgradeEntry;

/// To `show.ha`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HaList {
    /// Virtual routers, each family for itself, in configured order.
    pub routers: Vec<VirtualRouterEntry>,
    /// Advertisements that are about none of them, or cannot be read, by what is wrong with them; only what has counted.
    pub strays: Vec<AdvertErrors>,
    /// Frames that no device took.
    pub not_sent: u64,
    /// BFD sessions, if the config has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Box<BfdList>>,
    /// The other node, if the config has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<Box<PairEntry>>,
    /// Sessions that outlive the process, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Box<KeptEntry>>,
    /// A process that takes this one's place, or did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeEntry>,
    /// How far the node is on its way out of service, or why it has come back; absent: it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainEntry>,
}

/// Sessions that outlive the process (`flows.keep`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptEntry {
    /// The folder.
    pub folder: PathBuf,
    /// Sessions that are kept.
    pub sessions: u64,
    /// Bytes of memory for all that may be.
    pub bytes: u64,
    /// Sessions that the process before this one has left and that went on at the start.
    pub restored: u64,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// From when the process before was known to be alive until then, in milliseconds; absent: it has left nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_ms: Option<u64>,
    /// Sessions that it had left and that could not go on, by cause; only what has counted.
    pub not_restored: Vec<AdvertErrors>,
    /// Why none are kept, or what was left could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How a node is taken out of service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DrainQuery {
    /// Also if that costs sessions.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// How long the other node may take to have all sessions; absent: 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Seconds>,
    /// The process ends once the node is out of service.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

/// A node's way out of service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainEntry {
    /// How far it is.
    pub phase: Phase,
    /// For how long, in seconds.
    pub since_s: u64,
    /// The process ends at its end.
    pub stops: bool,
    /// While it waits: sessions that the other node does not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unready: Option<u64>,
    /// Why it was given up, or what it has cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl DrainEntry {
    /// False of a node that serves as ever.
    pub fn is_worth_showing(&self) -> bool {
        self.phase != Phase::InService || self.trouble.is_some()
    }
}

/// The other node. Pairs of numbers are there and back: sent and received, begun here and there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairEntry {
    /// Address and UDP port of this node.
    pub local: SocketAddr,
    /// Those of the other.
    pub peer: SocketAddr,
    /// It is heard, and hears us.
    pub is_there: bool,
    /// How long ago it was heard, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<u64>,
    /// It has all of this node's sessions.
    pub is_synced: bool,
    /// It has told all of its own.
    pub has_all: bool,
    /// Readiness: sessions that would be missed if it took over now.
    pub unready: u64,
    /// How long the oldest record waits to be acknowledged, in milliseconds.
    pub lag_ms: u64,
    /// Records that wait for that.
    pub lag_records: u64,
    /// Resyncs.
    pub resyncs: [u64; 2],
    /// Sections in which the configs of both nodes differ, apart from what is each node's own; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs: Option<Vec<String>>,
    /// What audits have found.
    #[serde(default)]
    pub drift: DriftEntry,
    /// Datagrams.
    pub datagrams: [u64; 2],
    /// Bytes of them.
    pub bytes: [u64; 2],
    /// Records: sessions that began, changed or ended.
    pub records: [u64; 2],
    /// Blocks of records sent again.
    pub resent: u64,
    /// Datagrams that the kernel did not take.
    pub not_sent: u64,
    /// Sessions installed.
    pub installed: u64,
    /// Sessions brought up to date.
    pub renewed: u64,
    /// Sessions of which this node has seen later packets.
    pub kept: u64,
    /// Sessions ended because the other node has ended them.
    pub ended: u64,
    /// Sessions ended because a resync did not have them.
    pub swept: u64,
    /// Sessions that could not be installed, by cause; only what has counted.
    pub not_installed: Vec<AdvertErrors>,
    /// Datagrams refused, by cause; only what has counted.
    pub refused: Vec<AdvertErrors>,
    /// The witness, if the config names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<WitnessEntry>,
    /// Packets given to the other node to decide over the pair link, by why; only what has counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub link_sent: Vec<AdvertErrors>,
    /// Packets that it has given this node to decide.
    #[serde(default)]
    pub link_received: u64,
    /// Why there is no socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whom the node asks when it does not hear the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WitnessEntry {
    /// Its address.
    pub address: IpAddr,
    /// It answers; absent: it was not asked often enough yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
    /// The node hears neither it nor the other node, and takes no part in virtual routers.
    pub is_cut_off: bool,
}

/// Whether both nodes have the same sessions: they compare sums over slices of them. Numbers are of slices, of which there are
/// 65,536.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DriftEntry {
    /// Looks at all sessions of this node.
    pub looks: u64,
    /// Slices that had drifted apart.
    pub found: u64,
    /// Of these, those that were the same again after they were told once more.
    pub repaired: u64,
    /// Of these, those that are not yet.
    pub left: u64,
}

/// A virtual router of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VirtualRouterEntry {
    /// Where it is.
    pub interface: InterfaceName,
    /// Virtual router identifier.
    pub id: u8,
    /// With whom it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Its addresses: all of one family.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// What it is on this node.
    pub state: State,
    /// How long it has been that, in seconds.
    pub since_s: u64,
    /// Priority in force: as configured, less what is tracked and not well.
    pub priority: u8,
    /// Priority as configured.
    pub configured_priority: u8,
    /// What is tracked for its group, and what it takes off that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tracked: Vec<TrackEntry>,
    /// Time between advertisements, in hundredths of a second.
    pub interval_cs: u16,
    /// How long a Backup waits for an advertisement, in milliseconds.
    pub active_down_ms: u64,
    /// The address that its advertisements come from.
    pub source: IpAddr,
    /// The Active, if it is another and was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<IpAddr>,
    /// How often it has become Active.
    pub became_active: u64,
    /// Advertisements sent.
    pub sent: u64,
    /// Of these with priority 0.
    pub leaving_sent: u64,
    /// Valid advertisements received.
    pub received: u64,
    /// Of these with priority 0.
    pub leaving_received: u64,
    /// What was wrong with advertisements about it; only what has counted.
    pub errors: Vec<AdvertErrors>,
}

/// Something that is tracked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrackEntry {
    /// As in the config: `port uplink`, `bfd 198.51.100.1`.
    pub what: String,
    /// What it takes off the priority at most.
    pub weight: u8,
    /// What it takes off now; 0: it is well.
    pub taken: u8,
}

/// The BFD sessions of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BfdList {
    /// In configured order.
    pub sessions: Vec<BfdEntry>,
    /// Control packets that are of none of them, or cannot be read, by what is wrong with them; only what has counted.
    pub strays: Vec<AdvertErrors>,
    /// Control packets that were not sent because the peer's MAC address was not known.
    pub unresolved: u64,
}

/// A BFD session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BfdEntry {
    /// Where it is.
    pub interface: InterfaceName,
    /// Our address.
    pub local: IpAddr,
    /// The other end's.
    pub peer: IpAddr,
    /// Its state.
    pub state: bfd::State,
    /// How long it has been that, in seconds.
    pub since_s: u64,
    /// Why it left Up last, in the words of RFC 5880 section 4.1.
    pub diagnostic: String,
    /// The other end's state, as it has said last.
    pub remote_state: bfd::State,
    /// Why its session left Up last.
    pub remote_diagnostic: String,
    /// Our number of the session.
    pub discriminator: u32,
    /// The other end's; 0: not heard.
    pub remote_discriminator: u32,
    /// Time between packets as configured, in microseconds.
    pub interval_us: u32,
    /// How many packets of ours may be missing.
    pub multiplier: u8,
    /// Time between our packets, without jitter, in microseconds.
    pub transmit_interval_us: u64,
    /// After how long a silence it is Down, in microseconds.
    pub detection_time_us: u64,
    /// Routes by the peer are not used.
    pub withdraws_routes: bool,
    /// How often it has come Up.
    pub came_up: u64,
    /// How often it has left Up.
    pub went_down: u64,
    /// Control packets sent.
    pub sent: u64,
    /// Valid ones received.
    pub received: u64,
    /// What was wrong with others from the peer; only what has counted.
    pub errors: Vec<AdvertErrors>,
}

/// Advertisements, or other packets, with one fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdvertErrors {
    /// What is wrong with them.
    pub kind: String,
    /// How many.
    pub count: u64,
}
