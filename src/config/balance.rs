//! `[[service]]`: addresses of the gateway behind which several servers stand.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::addresses::{AddressRange, NatTarget, OneOrMore};
use super::health::{HealthCheck, OwnAddress};
use super::policy::Seconds;
use super::service::{PortRange, Service};
use super::value::{GroupName, Name, NotAllowed, Ranged, RuleName, VrfName, from_text};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a backend's flows come to when it fails or is disabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// TCP connections are reset with their next packet; everything else goes to another backend.
    #[default]
    Reset,
    /// All go to another backend with their next packet, in the middle of connections too.
    Rehash,
    /// They go on as if nothing had happened.
    Finish,
}

/// What the operator says of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackendAdmin {
    /// It serves.
    #[default]
    Active,
    /// It keeps its flows and gets no new ones.
    Drain,
    /// Neither: its flows come to what `on_failure` says.
    Disabled,
}

impl BackendAdmin {
    /// As the config has it.
    pub const fn name(self) -> &'static str {
        match self {
            BackendAdmin::Active => "active",
            BackendAdmin::Drain => "drain",
            BackendAdmin::Disabled => "disabled",
        }
    }
}

/// `{ address = "10.0.1.10:8443", weight = 2 }`: a server of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Its address, and its port if that is another than the service's.
    pub address: NatTarget,
    /// Its VRF; absent: the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrf: Option<VrfName>,
    /// Its share of new flows, against the weights of the others; 0: none, as `state = "drain"`.
    #[serde(default = "Backend::default_weight", skip_serializing_if = "Backend::is_default_weight")]
    pub weight: Ranged<0, 1000>,
    /// What the operator says of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub state: BackendAdmin,
}

impl Backend {
    const fn default_weight() -> Ranged<0, 1000> {
        Ranged::constant(1)
    }

    fn is_default_weight(weight: &Ranged<0, 1000>) -> bool {
        *weight == Backend::default_weight()
    }

    /// What it is called: its address, port and VRF make it what it is.
    pub fn key(&self) -> BackendKey {
        BackendKey { address: self.address, vrf: self.vrf.clone() }
    }
}

/// Names a backend of a service: `10.0.1.10:8443`, `10.0.1.10@blue`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// Its address and port.
    pub address: NatTarget,
    /// Its VRF, if it names one.
    pub vrf: Option<VrfName>,
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.vrf.as_ref().map_or(Ok(()), |vrf| write!(f, "@{vrf}"))
    }
}

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceMode {
    /// Their destination becomes the backend's address and port, and answers come back this way.
    #[default]
    Nat,
    /// They go to the backend's MAC address as they came, and answers past the gateway (direct server return).
    L2Dsr,
    /// The same through a tunnel, IP in IP: RFC 2003, RFC 2473, RFC 4213.
    Ipip,
    /// The same through a tunnel over UDP: Generic UDP Encapsulation (draft-ietf-intarea-gue).
    Gue,
}

impl BalanceMode {
    /// As the config has it.
    pub const fn name(self) -> &'static str {
        match self {
            BalanceMode::Nat => "nat",
            BalanceMode::L2Dsr => "l2-dsr",
            BalanceMode::Ipip => "ipip",
            BalanceMode::Gue => "gue",
        }
    }

    /// Backends see packets as they came, addressed to the service, and answer past the gateway.
    pub const fn is_dsr(self) -> bool {
        !matches!(self, BalanceMode::Nat)
    }

    /// They do so through a tunnel.
    pub const fn has_tunnel(self) -> bool {
        matches!(self, BalanceMode::Ipip | BalanceMode::Gue)
    }
}

/// `tunnel = { source = "198.51.100.1", port = 6080 }`: what the headers of tunnels to backends say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendTunnel {
    /// Outer source address; absent: that of the interface they leave by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<OwnAddress>,
    /// UDP destination port, of GUE; absent: 6080.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Ranged<1, 65535>>,
    /// Variant of GUE: 0 has a header of four bytes, 1 none (draft-ietf-intarea-gue section 4); absent: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<Ranged<0, 1>>,
    /// Outer UDP headers carry a checksum, of GUE; absent: they do not (RFC 6935 section 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_checksum: Option<bool>,
    /// Outer TTL or hop limit; absent: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ranged<1, 255>>,
    /// Outer DSCP; absent: that of the packet inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Ranged<0, 63>>,
}

impl BackendTunnel {
    /// UDP port of GUE (IANA).
    pub const GUE_PORT: u16 = 6080;
}

/// `affinity = { timeout_s = 1800 }`: a client's new flows go to the backend of its latest one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affinity {
    /// So long after its latest flow began.
    pub timeout_s: Seconds,
    /// IPv4 addresses with so many first bits in common are one client.
    #[serde(default = "Affinity::default_ipv4", skip_serializing_if = "Affinity::is_default_ipv4")]
    pub ipv4_prefix: Ranged<8, 32>,
    /// The same of IPv6. A host takes new addresses from its /64 as it likes (RFC 8981).
    #[serde(default = "Affinity::default_ipv6", skip_serializing_if = "Affinity::is_default_ipv6")]
    pub ipv6_prefix: Ranged<16, 128>,
}

impl Affinity {
    const fn default_ipv4() -> Ranged<8, 32> {
        Ranged::constant(32)
    }

    const fn default_ipv6() -> Ranged<16, 128> {
        Ranged::constant(64)
    }

    fn is_default_ipv4(len: &Ranged<8, 32>) -> bool {
        *len == Affinity::default_ipv4()
    }

    fn is_default_ipv6(len: &Ranged<16, 128>) -> bool {
        *len == Affinity::default_ipv6()
    }
}

/// `passive_checks = { failures = 5, percent = 20, clients = 3, window_s = 10, eject_s = 30 }`: what clients' flows show of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PassiveChecks {
    /// So many flows in a window that it refuses or does not answer to, at least, put it out ...
    pub failures: Ranged<1, 1_000_000>,
    /// ... if they are so many percent of the new ones.
    pub percent: Ranged<1, 100>,
    /// ... and from so many networks of clients (IPv4 /24, IPv6 /48): nobody puts backends out by himself.
    pub clients: Ranged<1, 32>,
    /// How far back is looked.
    pub window_s: Ranged<1, 3600>,
    /// For how long; each time in a row twice as long as before, up to 16 times.
    pub eject_s: Ranged<1, 3600>,
}

impl Default for PassiveChecks {
    fn default() -> PassiveChecks {
        PassiveChecks {
            // Envoy's `consecutive_5xx`, `interval` and `base_ejection_time`.
            failures: Ranged::constant(5),
            percent: Ranged::constant(20),
            clients: Ranged::constant(3),
            window_s: Ranged::constant(10),
            eject_s: Ranged::constant(30),
        }
    }
}

/// `[[service]]`: what comes to an address is spread over backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualService {
    /// What counters and commands call it.
    pub name: RuleName,
    /// The VRF that packets come from.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// Its address, or all of a prefix.
    pub address: AddressRange,
    /// The group of virtual routers whose Active answers for it; absent: see [`super::router_group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Protocols and ports; absent: all that comes to the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<OneOrMore<Service>>,
    /// How packets get to the backends.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mode: BalanceMode,
    /// Tunnels to the backends, with a mode that has some; absent: all of it as it is by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<BackendTunnel>,
    /// Its servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
    /// What a backend's flows come to when it fails or is disabled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// How backends are checked; absent: they are not, and are taken to be well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Arc<HealthCheck>>,
    /// Backends that clients' flows show to be failing get no new ones for a while; absent: they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive_checks: Option<PassiveChecks>,
    /// So many percent of the backends may be out at once because of their health, rounded down, but one.
    #[serde(default = "VirtualService::all", skip_serializing_if = "VirtualService::is_all")]
    pub max_ejected: Ranged<1, 100>,
    /// How long a backend that has come back takes until it gets its full share of new flows; absent: no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_s: Option<Seconds>,
    /// All flows of a client's address go to one backend.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by_client: bool,
    /// They stay there for a while, whoever else has come or come back since; absent: they go where the table says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

impl VirtualService {
    const fn all() -> Ranged<1, 100> {
        Ranged::constant(100)
    }

    fn is_all(percent: &Ranged<1, 100>) -> bool {
        *percent == VirtualService::all()
    }

    /// Most backends of one service: a place in the table is 16 bits.
    pub const MAX_BACKENDS: usize = 4096;
    /// Most services.
    pub const MAX_SERVICES: usize = 16_384;

    /// Protocols and ports that it serves.
    pub fn served(&self) -> impl Iterator<Item = (Option<u8>, Option<PortRange>)> + '_ {
        let services = self.service.as_deref().unwrap_or(&[Service::ANY]);
        services.iter().map(|service| (service.protocol(), service.ports()))
    }

    /// The VRF of one of its backends.
    pub fn vrf_of<'a>(&'a self, backend: &'a Backend) -> &'a VrfName {
        backend.vrf.as_ref().unwrap_or(&self.vrf)
    }

    /// True if the address is its own.
    pub fn has(&self, address: IpAddr) -> bool {
        self.address.contains(address)
    }
}

impl std::str::FromStr for BackendKey {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<BackendKey, NotAllowed> {
        let (address, vrf) = match text.split_once('@') {
            Some((address, vrf)) => (address, Some(vrf.parse()?)),
            None => (text, None),
        };
        Ok(BackendKey { address: address.parse()?, vrf })
    }
}

impl Serialize for BackendKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BackendKey, D::Error> {
        from_text(
            deserializer,
            "a backend is ADDRESS, ADDRESS:PORT, [IPV6]:PORT, each with @VRF if it names one",
        )
    }
}
