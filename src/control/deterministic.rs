//! What commands ask and see of deterministic NAT (RFC 7422).

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::VrfName;

/// Params of `nat.map`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostQuery {
    /// The host.
    pub inside: Ipv4Addr,
    /// Its VRF; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
}

/// Params of `nat.find`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortQuery {
    /// The outside address.
    pub outside: Ipv4Addr,
    /// A port of it.
    pub port: u16,
    /// The VRF of the outside; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
}

/// A host of a deterministic NAT, and what is its own there whether it uses it or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatHost {
    /// The `[[nat.source]]` rules by which it is.
    pub rules: Vec<String>,
    /// The host.
    pub inside: Ipv4Addr,
    /// Its VRF.
    pub inside_vrf: String,
    /// Its outside address.
    pub outside: Ipv4Addr,
    /// VRF of the outside.
    pub outside_vrf: String,
    /// First of its ports.
    pub first_port: u16,
    /// Last of its ports.
    pub last_port: u16,
}

/// How the hosts of a deterministic NAT share its pool: with the pool's addresses and the time since when it is so,
/// all that it takes to say whose a port is (RFC 7422 section 2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SharedPool {
    /// The hosts, ascending.
    pub inside: Vec<String>,
    /// Their VRF.
    pub inside_vrf: String,
    /// How many they are.
    pub hosts: u64,
    /// So many share an outside address, in ascending order.
    pub hosts_per_address: u32,
    /// Ports of each.
    pub ports_per_host: u16,
    /// First port of the first host of an address.
    pub first_port: u16,
    /// Ports that are no host's are lent, with a log record.
    pub overflow: bool,
}
