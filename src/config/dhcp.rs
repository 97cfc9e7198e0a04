//! `dhcp_relay` and `dhcpv6_relay` of an interface: whose clients' messages go to which servers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::policy::RateLimit;
use super::value::{NotAllowed, Ranged, VrfName, from_text};

/// Servers of a relay: each gets a copy of every request.
pub const MAX_SERVERS: usize = 8;

/// What of a circuit or a remote end a relay tells the servers: 1 to 64 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentId(Arc<str>);

impl AgentId {
    const ALLOWED: &str = "1 to 64 printable ASCII characters";

    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for AgentId {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<AgentId, NotAllowed> {
        let is_good =
            (1..=64).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if is_good { Ok(AgentId(text.into())) } else { Err(NotAllowed::new(AgentId::ALLOWED)) }
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for AgentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AgentId, D::Error> {
        from_text(deserializer, AgentId::ALLOWED)
    }
}

/// Whether a relay adds option 82 (RFC 3046) to what comes from clients, and what becomes of one that is there
/// already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Option82 {
    /// None is added; a message that has one is refused. RFC 3046 section 2.1: off unless asked for.
    #[default]
    Off,
    /// Ours is added; a message that has one is refused (RFC 3046 section 2.1, an untrusted circuit).
    Drop,
    /// Ours is added; one that is there goes.
    Replace,
    /// Ours is added behind what is there.
    Append,
    /// One that is there stays as it is (RFC 3046 section 2.1, a trusted circuit: a switch has put it there); where
    /// there is none, ours is added.
    Keep,
}

/// `dhcp_relay = { servers = ["10.0.0.5"] }`: RFC 1542 section 4, RFC 2131, RFC 3046.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DhcpRelay {
    /// Who gets the requests, each of them a copy.
    pub servers: Vec<Ipv4Addr>,
    /// The VRF the servers are in; absent: the interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// The relay's address: `giaddr`, and the source of what the servers get. Absent: the interface's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Ipv4Addr>,
    /// Option 82.
    #[serde(default)]
    pub option82: Option82,
    /// Circuit ID in option 82; absent: the interface's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_id: Option<AgentId>,
    /// Remote ID in option 82; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_id: Option<AgentId>,
    /// Servers are asked to name us as the server (RFC 5107), so that renewals come here as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub server_id_override: bool,
    /// Whether messages of other relays, nearer to the clients, are relayed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_relays: bool,
    /// Messages that have been through more relays than these are refused.
    #[serde(default = "DhcpRelay::default_hops")]
    pub max_hops: Ranged<0, 16>,
    /// Messages of clients; what comes beyond it is lost.
    #[serde(default = "default_rate")]
    pub rate_limit: RateLimit,
}

impl DhcpRelay {
    /// RFC 1542 section 4.1.1: 4, and never more than 16.
    fn default_hops() -> Ranged<0, 16> {
        Ranged::constant(4)
    }
}

/// `dhcpv6_relay = { servers = ["2001:db8::5"] }`: RFC 8415 section 19.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dhcpv6Relay {
    /// Who gets the requests, each of them a copy.
    pub servers: Vec<Ipv6Addr>,
    /// The VRF the servers are in; absent: the interface's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// The source of what the servers get, and where they answer to. Absent: the interface's first global address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Ipv6Addr>,
    /// Interface-Id; absent: the interface's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_id: Option<AgentId>,
    /// Remote ID (RFC 4649), with enterprise number 0; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_id: Option<AgentId>,
    /// Whether messages of other relays, nearer to the clients, are relayed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_relays: bool,
    /// Messages that have been through as many relays are refused.
    #[serde(default = "Dhcpv6Relay::default_hops")]
    pub max_hops: Ranged<1, 32>,
    /// Messages of clients; what comes beyond it is lost.
    #[serde(default = "default_rate")]
    pub rate_limit: RateLimit,
}

impl Dhcpv6Relay {
    /// RFC 8415 section 7.6, HOP_COUNT_LIMIT: 8.
    fn default_hops() -> Ranged<1, 32> {
        Ranged::constant(8)
    }
}

/// A rack that comes back: a thousand clients at once, and no client more than ten in a while.
fn default_rate() -> RateLimit {
    RateLimit { per_s: Ranged::constant(200), burst: Some(Ranged::constant(1000)) }
}

/// What the checks have to know of either.
pub(super) struct AnyRelay<'a> {
    pub key: &'static str,
    pub is_v4: bool,
    pub servers: Vec<IpAddr>,
    pub vrf: &'a VrfName,
    pub source: Option<IpAddr>,
    /// What tells interfaces apart that share a source; absent: nothing does.
    pub id: Option<&'a [u8]>,
}
