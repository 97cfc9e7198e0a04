//! What is asked about services and their backends, and what is answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Backend, BackendAdmin, BackendKey, Ranged, RuleName, Seconds};

/// Which services to show. While the answer has `next`, ask again with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServicesQuery {
    /// Only this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<RuleName>,
    /// `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// All backends of a service at once: those that are no more in it keep the flows they have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceBackends {
    /// The service; it is in the config.
    pub service: RuleName,
    /// Its backends from now on, as in the config.
    pub backends: Vec<Backend>,
    /// Those that are not named stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub others_stay: bool,
    /// After how many seconds those that are named leave, unless they are named again before; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<Seconds>,
}

/// Backends that leave a service; they keep the flows they have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendsRemoved {
    /// The service.
    pub service: RuleName,
    /// Which of its backends, as `ADDRESS:PORT` or `ADDRESS:PORT@VRF`.
    pub backends: Vec<BackendKey>,
}

/// Another word on some backends of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendChange {
    /// The service.
    pub service: RuleName,
    /// Which of its backends, as `ADDRESS:PORT` or `ADDRESS:PORT@VRF`.
    pub backends: Vec<BackendKey>,
    /// What the operator says of them; absent: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<BackendAdmin>,
    /// Their weight; absent: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Ranged<0, 1000>>,
}

/// A virtual service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceEntry {
    /// Its name.
    pub name: String,
    /// The VRF of its address.
    pub vrf: String,
    /// Its address or prefix.
    pub address: String,
    /// What it serves.
    pub services: Vec<String>,
    /// How packets get to its backends: `nat`, `l2-dsr`, `ipip` or `gue`.
    #[serde(default)]
    pub mode: String,
    /// What its flows come to when their backend fails.
    pub on_failure: String,
    /// Places of its table.
    pub places: u32,
    /// Clients whose next flow goes where their latest one went; `None`: it has no affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
    /// Flows there are.
    pub flows: u64,
    /// Its backends, as configured.
    pub backends: Vec<BackendEntry>,
}

/// A backend of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendEntry {
    /// Its address, with its port and VRF if they are its own.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// `active`, `drain` or `disabled`: what the operator says.
    pub state: String,
    /// `up` or `down`: what the checks say; `ejected`: clients' flows have put it out; `None`: it is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Why it is down, or what the last check found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Probes that ended.
    #[serde(default)]
    pub probes: u64,
    /// Those of them that failed.
    #[serde(default)]
    pub failures: u64,
    /// Flows that it refused, or did not answer to.
    #[serde(default)]
    pub failed: u64,
    /// Flows it was given a second, lately; `None`: that is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_per_s: Option<f64>,
    /// Places of the table that are its.
    pub places: u32,
    /// How much of its share of new flows it takes at present, in hundredths.
    pub takes_percent: u32,
    /// Flows it has.
    pub flows: u64,
    /// Flows it was given since the start.
    pub opened: u64,
    /// Packets of them, in both directions.
    pub packets: u64,
    /// Bytes of them, IP headers included.
    pub bytes: u64,
    /// Flows that it lost by failing.
    pub lost: u64,
    /// Since it was given a flow last; `None`: it never was.
    pub last_flow_s: Option<u64>,
    /// Since its health or the operator's word on it changed last; `None`: since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_s: Option<u64>,
    /// In how many seconds it leaves, unless it is named again before; `None`: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_s: Option<u64>,
    /// It is in the service no more, and has flows still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
}

/// The services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceList {
    /// The counters are not up to date yet and the list empty: `after` of the next request.
    pub next: Option<u64>,
    /// Services in the config's order.
    pub services: Vec<ServiceEntry>,
}
