//! What becomes of one packet, and why: `explain`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inspect::SessionEntry;
use crate::config::{PacketText, ReachFrom, ReachTo};

/// Params of `explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExplainQuery {
    /// The packet: `tcp 10.0.1.5:40000 > 198.51.100.7:443 from lan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<PacketText>,
    /// Frames instead, as hex digits, that come in one after the other: at most [`ExplainQuery::MOST`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frames: Vec<String>,
    /// The port that the frames come in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

impl ExplainQuery {
    /// Most frames of a request: a few milliseconds of the control thread.
    pub const MOST: usize = 64;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It leaves.
    Forwarded,
    /// It is for the gateway itself.
    Local,
    /// It waits for the address of its next hop.
    Waits,
    /// The gateway keeps or answers it: a fragment, a SYN answered with a cookie.
    Held,
    /// It is lost.
    #[default]
    Dropped,
}

/// One decision on the way of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainStep {
    /// What is decided: `ingress`, `source`, `session`, `service`, `destination-nat`, `route`, `rule`, `source-nat`,
    /// `next-hop`.
    pub step: String,
    /// Name of the rule, service, route or interface that decides, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it says, in words.
    pub says: String,
}

/// A frame that leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedFrame {
    /// The port it leaves by.
    pub port: String,
    /// Decoded.
    pub decoded: String,
    /// All of it, in hex digits.
    pub hex: String,
}

/// What becomes of one packet, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The packet, decoded.
    pub packet: String,
    /// Generation of the tables that were asked.
    pub generation: u64,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The drop reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the reason means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// The decisions, in their order.
    pub steps: Vec<ExplainStep>,
    /// What would leave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sent: Vec<ExplainedFrame>,
    /// The live session that the packet is of: such a packet follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<SessionEntry>>,
    /// What would have to change for the packet to pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suggestions: Vec<String>,
    /// What was assumed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// To `explain`: one for each packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// In the order of the packets.
    pub packets: Vec<Explanation>,
}

/// Params of `reach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReachQuery {
    /// Who: `zone blue`, `interface lan 10.0.1.0/24`, `any`.
    pub from: ReachFrom,
    /// What: `10.0.9.9 tcp/5432`, `zone green`.
    pub to: ReachTo,
    /// Also senders whose addresses do not belong where they come in.
    #[serde(default)]
    pub spoofed: bool,
}

/// Hosts behind one interface that reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reachable {
    /// The interface.
    pub interface: String,
    /// Its VRF.
    pub vrf: String,
    /// Its zone, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Those that reach all that was asked for, as prefixes.
    pub all: Vec<String>,
    /// Those that reach some of it.
    pub some: Vec<String>,
    /// A packet that passes.
    pub witness: String,
}

/// To `reach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reached {
    /// Generation of the tables that were asked.
    pub generation: u64,
    /// By interface; none: nobody does.
    pub from: Vec<Reachable>,
    /// Decisions that were taken.
    pub decisions: u64,
    /// What the answer leaves open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}
