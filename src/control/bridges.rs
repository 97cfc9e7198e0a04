//! What is asked about bridges and their stations, and what is answered.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Mac, Name};

/// Stations of bridges that match, some at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MacsQuery {
    /// Only those of this bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Name>,
    /// Only behind this member, as `show bridges` calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// Stations that the operator, or a control plane, places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MacsAdded {
    /// The bridge.
    pub bridge: Name,
    /// The stations.
    pub macs: Vec<Mac>,
    /// The member they are behind, as `show bridges` calls it.
    pub member: String,
    /// Of a VNI: the remote they are behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
}

/// Stations that are to be forgotten, placed or learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MacsRemoved {
    /// The bridge.
    pub bridge: Name,
    /// The stations.
    pub macs: Vec<Mac>,
}

/// A member that is to be opened again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberOpened {
    /// The bridge.
    pub bridge: Name,
    /// The member, as `show bridges` calls it.
    pub member: String,
}

/// What a change of bridges did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BridgeChanged {
    /// Stations or members it changed.
    pub changed: u64,
}

/// A bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BridgeEntry {
    /// Its name.
    pub name: String,
    /// Its layer-3 interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Seconds after which a silent station is forgotten.
    pub ageing_s: u64,
    /// Its members, as configured.
    pub members: Vec<MemberEntry>,
    /// With `snooping`: the families (`ipv4`, `ipv6`) of which a querier is there. Multicast of others goes to all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queriers: Vec<String>,
    /// With `snooping`: who listens to what, 1,000 of them at most, and where multicast routers have been heard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerEntry>,
}

/// A member behind which somebody listens to a multicast group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerEntry {
    /// The member.
    pub member: String,
    /// The group; `None`: a multicast router is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<IpAddr>,
    /// Seconds until it is forgotten.
    pub left_s: u64,
}

/// A member of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemberEntry {
    /// Its name within the bridge: `lan.100`, `vni5001`.
    pub name: String,
    /// `up`, `down`, or `loop` while it is shut.
    pub state: String,
    /// For how much longer it is shut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut_s: Option<u64>,
    /// Stations behind it.
    pub macs: u32,
    /// As many as it may have.
    pub max_macs: u32,
    /// Longest IP packet, in bytes.
    pub mtu_bytes: u32,
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames that came in by it and were lost.
    pub drops: u64,
}

/// A station of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MacEntry {
    /// The bridge.
    pub bridge: String,
    /// The station.
    pub mac: Mac,
    /// The member it is behind.
    pub member: String,
    /// Of a VNI: the remote it is behind; `None`: its place has been given to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
    /// Since it was heard from last; `None`: it is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
}

/// A page of stations, in the order of bridges and MAC addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MacPage {
    /// There are more: `after` of the next request.
    pub next: Option<u64>,
    /// The stations.
    pub macs: Vec<MacEntry>,
}
