//! The tables of a config, one struct each, exactly as typed. [`Config`](super::Config) lists them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::Config;
use super::dhcp::{DhcpRelay, Dhcpv6Relay};
use super::health::Period;
use super::value::{
    DeviceName, HashKey, InterfaceAddress, InterfaceName, Mac, Mtu, Name, NextHop, NotAllowed, PortName,
    Prefix, Ranged, Tpid, Vlan, VrfName, ZoneName,
};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `[system]`: the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// What this node is called in logs and replies.
    #[serde(default = "System::default_name")]
    pub name: Name,
    /// The CPUs of the workers.
    #[serde(default)]
    pub workers: Workers,
    /// Frames of packet memory for each worker.
    #[serde(default = "System::default_frames")]
    pub frames: Ranged<1024, 1_048_576>,
    /// Seed of the keyed hashes that nodes and runs must agree on (ECMP, flows, shards).
    #[serde(default, skip_serializing_if = "is_default")]
    pub key: HashKey,
}

impl System {
    fn default_name() -> Name {
        Name::new("softgate").unwrap_or_else(|_| unreachable!("a legal name"))
    }

    /// 16384: the receive and fill rings of four queues (2048 each) once over, and as much in flight.
    fn default_frames() -> Ranged<1024, 1_048_576> {
        Ranged::constant(16384)
    }
}

impl Default for System {
    fn default() -> System {
        System {
            name: System::default_name(),
            workers: Workers::default(),
            frames: System::default_frames(),
            key: HashKey::default(),
        }
    }
}

/// A CPU number. 1023: the size of Linux's `cpu_set_t`.
pub type Cpu = Ranged<0, 1023>;

/// Workers of a node at most: whoever has a queue of a port is one bit of a word, and a worker's number is a byte.
pub const MAX_WORKERS: usize = 64;

/// `workers = [1, 2]` or `"auto"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// One worker per queue, as many as there are CPUs to spare.
    #[default]
    Auto,
    /// One worker on each of these CPUs.
    Cpus(Vec<Cpu>),
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Workers::Auto => serializer.serialize_str("auto"),
            Workers::Cpus(cpus) => cpus.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Workers, D::Error> {
        const ALLOWED: &str = "\"auto\" or a list of CPU numbers, [1, 2]";
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Workers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(ALLOWED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Workers, E> {
                if text == "auto" { Ok(Workers::Auto) } else { Err(E::custom(ALLOWED)) }
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Workers, A::Error> {
                let mut cpus: Vec<Cpu> = Vec::new();
                while let Some(cpu) = seq.next_element()? {
                    if cpus.contains(&cpu) {
                        return Err(de::Error::custom(format!("CPU {cpu} stands there twice")));
                    }
                    if cpus.len() == MAX_WORKERS {
                        return Err(de::Error::custom(format!("at most {MAX_WORKERS} CPUs")));
                    }
                    cpus.push(cpu);
                }
                if cpus.is_empty() { Err(de::Error::custom(ALLOWED)) } else { Ok(Workers::Cpus(cpus)) }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// `[log]`: what is written besides the gateway's own messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Where sessions of rules with `log = true` and port blocks are written to, one JSON object per line; absent:
    /// nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<PathBuf>,
}

/// `[control]`: the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Where the socket is.
    #[serde(default = "Control::default_socket")]
    pub socket: PathBuf,
    /// A Unix group (name or number) that may use it too; absent: only the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// A file to which a line of JSON is added for each request that changes something, or was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<PathBuf>,
    /// A folder in which each commit is kept, to go back to and to start with; absent: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
}

impl Control {
    /// Where the socket is when nobody says otherwise.
    pub const DEFAULT_SOCKET: &str = "/run/softgate/control.sock";

    fn default_socket() -> PathBuf {
        Control::DEFAULT_SOCKET.into()
    }
}

impl Default for Control {
    fn default() -> Control {
        Control { socket: Control::default_socket(), group: None, audit: None, state_dir: None }
    }
}

/// `[pair]`: the other node, which gets this one's sessions and gives its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Address and UDP port of this node: one that the kernel has. On the device of a port the XDP program gives what is
    /// for this UDP port to the kernel.
    pub local: SocketAddr,
    /// Those of the other node.
    pub peer: SocketAddr,
    /// A file with the secret that both have, 16 bytes at least; white space around it does not count.
    pub key_file: PathBuf,
    /// What may be sent, in megabits a second.
    #[serde(default = "Pair::default_bandwidth")]
    pub bandwidth_mbps: Ranged<1, 100_000>,
    /// How long a node that has come back waits at most for the sessions of the other before its virtual routers take over
    /// from one of lower priority.
    #[serde(default = "Pair::default_preempt_wait")]
    pub preempt_wait: Period,
    /// An address in the VRF `default` that answers pings, best on neither of the ways between the nodes: who hears neither it
    /// nor the other node takes no part in virtual routers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<IpAddr>,
    /// The way for packets that the other node is to decide; absent: each node decides what comes to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PairLink>,
}

/// `link` of `[pair]`: both ends on a link of their own, between interfaces of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairLink {
    /// Our end: an address of an interface.
    pub local: IpAddr,
    /// The other: on the link of that interface.
    pub peer: IpAddr,
    /// The VRF of that interface.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// UDP port of both ends.
    #[serde(default = "PairLink::default_port", skip_serializing_if = "PairLink::is_default_port")]
    pub udp_port: Ranged<1, 65535>,
}

impl PairLink {
    /// Behind that of replication.
    fn default_port() -> Ranged<1, 65535> {
        Ranged::constant(5406)
    }

    fn is_default_port(port: &Ranged<1, 65535>) -> bool {
        *port == PairLink::default_port()
    }

    /// The interface that has our end.
    pub fn interface_in<'a>(&self, config: &'a Config) -> Option<&'a Interface> {
        config.interfaces.iter().find(|interface| {
            interface.port.is_some()
                && interface.vrf == self.vrf
                && interface.addresses.iter().any(|own| own.address() == self.local)
        })
    }

    /// Bytes of headers in front of a packet: IP, UDP and our own.
    pub fn overhead(&self) -> u16 {
        if self.local.is_ipv4() { 20 + 8 + 8 } else { 40 + 8 + 8 }
    }
}

impl Pair {
    /// Longer than it takes to tell of some millions of sessions over a gigabit link.
    const fn default_preempt_wait() -> Period {
        Period::constant(60_000)
    }

    /// A gigabit link's.
    fn default_bandwidth() -> Ranged<1, 100_000> {
        Ranged::constant(1000)
    }
}

/// `[icmp]`: how many ICMP messages we send (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Icmp {
    /// Messages per second, all destinations together.
    pub rate: Ranged<0, 10_000_000>,
    /// Messages at once.
    pub burst: Ranged<0, 10_000_000>,
    /// Messages per second to one source of faulty packets.
    pub per_source_rate: Ranged<0, 10_000_000>,
    /// Messages at once to one source.
    pub per_source_burst: Ranged<0, 10_000_000>,
}

impl Default for Icmp {
    fn default() -> Icmp {
        Icmp {
            rate: Ranged::constant(1000),
            burst: Ranged::constant(100),
            per_source_rate: Ranged::constant(100),
            per_source_burst: Ranged::constant(50),
        }
    }
}

/// `[neighbours]`: limits of ARP and ND.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NeighbourLimits {
    /// Learned neighbours per interface; a scan of a /64 ends here.
    pub per_interface: Ranged<1, 1_048_576>,
    /// Packets that wait for one unresolved neighbour (RFC 1122 section 2.3.2.2, RFC 4861 section 7.2.2: at least 1).
    pub queue: Ranged<1, 64>,
    /// Seconds a confirmation is believed (RFC 4861 section 10, REACHABLE_TIME: 30).
    pub reachable_s: Ranged<1, 3600>,
}

impl Default for NeighbourLimits {
    fn default() -> NeighbourLimits {
        NeighbourLimits {
            per_interface: Ranged::constant(1024),
            queue: Ranged::constant(3),
            reachable_s: Ranged::constant(30),
        }
    }
}

/// How members of a LAG share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lag {
    /// One device carries the traffic, the first that is up; the others wait.
    ActiveBackup,
    /// All devices that are up carry traffic, by flow hash.
    Static,
}

/// How AF_XDP binds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PortMode {
    /// The best that works: zero-copy, then copy, then generic.
    #[default]
    Auto,
    /// Native XDP, frames shared with the driver.
    ZeroCopy,
    /// Native XDP, frames copied.
    Copy,
    /// Generic XDP: works on every driver, slowest.
    Generic,
}

/// `[[port]]`: a device, or a LAG of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// What interfaces call it.
    pub name: PortName,
    /// The one device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceName>,
    /// The devices of a LAG, instead of `device`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceName>,
    /// Needed with `devices`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
    /// How AF_XDP binds.
    #[serde(default)]
    pub mode: PortMode,
    /// Queues of each device to use; absent: all it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Ranged<1, 1024>>,
}

impl Port {
    /// Most devices of a LAG.
    pub const MAX_DEVICES: usize = 8;
    /// Most devices of all ports: each has a place in the maps of the XDP program.
    pub const MAX_DEVICES_IN_ALL: usize = 64;

    /// All its devices, however they were written.
    pub fn all_devices(&self) -> impl Iterator<Item = &DeviceName> {
        self.device.iter().chain(&self.devices)
    }
}

/// Whether a packet's source must be reachable where it came from (RFC 3704).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceCheck {
    /// No check.
    #[default]
    Off,
    /// Some route to the source must exist.
    Loose,
    /// The route to the source must leave through this interface.
    Strict,
}

/// `router_advertisements = true` or `{ interval_s = 600, lifetime_s = 1800 }` (RFC 4861 section 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterAdvertisements {
    /// None are sent.
    Off,
    /// They are sent.
    On {
        /// Most seconds between two (MaxRtrAdvInterval).
        interval_s: u16,
        /// Seconds hosts keep us as default router (AdvDefaultLifetime); 0: not a default router.
        lifetime_s: u16,
    },
}

impl RouterAdvertisements {
    /// RFC 4861 section 6.2.1: MaxRtrAdvInterval 600 s, AdvDefaultLifetime three times that.
    pub const DEFAULT: RouterAdvertisements = RouterAdvertisements::On { interval_s: 600, lifetime_s: 1800 };

    /// Checks and takes the two times.
    pub fn new(interval_s: u32, lifetime_s: Option<u32>) -> Result<RouterAdvertisements, NotAllowed> {
        if !(4..=1800).contains(&interval_s) {
            return Err(NotAllowed::new("interval_s is 4 to 1800 (RFC 4861 section 6.2.1)"));
        }
        let lifetime_s = lifetime_s.unwrap_or(3 * interval_s);
        if lifetime_s != 0 && !(interval_s..=9000).contains(&lifetime_s) {
            return Err(NotAllowed::new("lifetime_s is 0, or interval_s to 9000 (RFC 4861 section 6.2.1)"));
        }
        match (u16::try_from(interval_s), u16::try_from(lifetime_s)) {
            (Ok(interval_s), Ok(lifetime_s)) => Ok(RouterAdvertisements::On { interval_s, lifetime_s }),
            _ => unreachable!("both were checked to be under 9001"),
        }
    }

    fn is_off(&self) -> bool {
        *self == RouterAdvertisements::Off
    }

    fn off() -> RouterAdvertisements {
        RouterAdvertisements::Off
    }
}

impl Serialize for RouterAdvertisements {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        match self {
            RouterAdvertisements::Off => serializer.serialize_bool(false),
            RouterAdvertisements::On { interval_s, lifetime_s } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("interval_s", interval_s)?;
                map.serialize_entry("lifetime_s", lifetime_s)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for RouterAdvertisements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RouterAdvertisements, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Times {
            #[serde(default)]
            interval_s: Option<u32>,
            #[serde(default)]
            lifetime_s: Option<u32>,
        }
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = RouterAdvertisements;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false or { interval_s = 600, lifetime_s = 1800 }")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<RouterAdvertisements, E> {
                Ok(if on { RouterAdvertisements::DEFAULT } else { RouterAdvertisements::Off })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RouterAdvertisements, A::Error> {
                let times = Times::deserialize(de::value::MapAccessDeserializer::new(map))?;
                RouterAdvertisements::new(times.interval_s.unwrap_or(600), times.lifetime_s)
                    .map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
pub type Vni = Ranged<0, 0xff_ffff>;

/// What stands between the outer UDP header and a frame in a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    /// RFC 7348.
    #[default]
    Vxlan,
    /// RFC 8926, without options.
    Geneve,
}

impl Encapsulation {
    /// UDP port of tunnels that are given none: RFC 7348 section 8, RFC 8926 section 3.3.
    pub fn port(self) -> u16 {
        match self {
            Encapsulation::Vxlan => 4789,
            Encapsulation::Geneve => 6081,
        }
    }
}

/// The DSCP of outer headers: `"copy"`, or 0 to 63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OuterDscp {
    /// That of the inner packet (RFC 2983's uniform model).
    #[default]
    Copy,
    /// Always this one.
    Fixed(Ranged<0, 63>),
}

impl Serialize for OuterDscp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OuterDscp::Copy => serializer.serialize_str("copy"),
            OuterDscp::Fixed(dscp) => dscp.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for OuterDscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OuterDscp, D::Error> {
        const ALLOWED: &str = "\"copy\" or a DSCP, 0 to 63";
        struct Any;
        impl Visitor<'_> for Any {
            type Value = OuterDscp;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(ALLOWED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OuterDscp, E> {
                if text == "copy" { Ok(OuterDscp::Copy) } else { Err(E::custom(ALLOWED)) }
            }
            fn visit_i64<E: de::Error>(self, dscp: i64) -> Result<OuterDscp, E> {
                self.visit_u64(u64::try_from(dscp).unwrap_or(u64::MAX))
            }
            fn visit_u64<E: de::Error>(self, dscp: u64) -> Result<OuterDscp, E> {
                let dscp = u32::try_from(dscp).ok().and_then(|dscp| Ranged::new(dscp).ok());
                dscp.map(OuterDscp::Fixed).ok_or_else(|| E::custom(ALLOWED))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// `[[interface]]`: a logical layer-3 end: a port untagged, a VLAN of it, a QinQ pair, or the segment of a VNI or bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// What routes, rules and counters call it.
    pub name: InterfaceName,
    /// The port it is on; absent with `vni` and `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortName>,
    /// Its tags; absent: untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// The bridge whose segment it is on, instead of a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Name>,
    /// The VXLAN segment it is an end of (RFC 7348), instead of a port. What follows down to `udp_checksum` goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Our tunnel end point: one of the gateway's own addresses in `underlay_vrf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vtep: Option<IpAddr>,
    /// The other tunnel end points: frames are accepted from them, and they get broadcasts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<IpAddr>,
    /// Frames are accepted from tunnel end points here as well, which become known by what they send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_from: Vec<Prefix>,
    /// The VRF tunnels go through; absent: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_vrf: Option<VrfName>,
    /// What the tunnels are; absent: VXLAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<Encapsulation>,
    /// UDP port of the tunnels; absent: 4789 (RFC 7348 section 8), with Geneve 6081 (RFC 8926 section 3.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_port: Option<Ranged<1, 65535>>,
    /// DSCP of outer headers; absent: that of the inner packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<OuterDscp>,
    /// TTL or hop limit of outer headers; absent: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ranged<1, 255>>,
    /// Whether stations are followed to the tunnel end point their frames come from; absent: yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    /// Whether outer UDP headers carry a checksum; absent: no (RFC 7348 section 5, RFC 6935).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_checksum: Option<bool>,
    /// The outer TPID; only with a QinQ pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpid: Option<Tpid>,
    /// Its zone; a zone switches sessions on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// Its VRF.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// The gateway's addresses on it.
    #[serde(default)]
    pub addresses: Vec<InterfaceAddress>,
    /// The longest IP packet; absent: 1500, with `vni` what a tunnel leaves of the MTU around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Our MAC on it; absent: the device's own (a stable default in replay).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Anti-spoofing.
    #[serde(default)]
    pub source_check: SourceCheck,
    /// Whether the TCP connections of sessions through it are told to send no segments longer than its MTU carries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clamp_mss: bool,
    /// Whether we announce ourselves to IPv6 hosts.
    #[serde(default = "RouterAdvertisements::off", skip_serializing_if = "RouterAdvertisements::is_off")]
    pub router_advertisements: RouterAdvertisements,
    /// Where DHCP messages of its clients go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp_relay: Option<DhcpRelay>,
    /// Where DHCPv6 messages of its clients go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcpv6_relay: Option<Dhcpv6Relay>,
}

/// Outer IPv4 header, UDP, VXLAN (Geneve is as long) and the inner Ethernet header (RFC 7348 section 5).
const OVERHEAD_V4: u16 = 20 + 8 + 8 + 14;
/// With IPv6 outside.
const OVERHEAD_V6: u16 = 40 + 8 + 8 + 14;

impl Interface {
    /// UDP port of its tunnels.
    pub fn tunnel_port(&self) -> u16 {
        let usual = self.encapsulation.unwrap_or_default().port();
        self.udp_port.map_or(usual, |port| port.get() as u16)
    }

    /// The VRF its tunnels go through.
    pub fn underlay(&self) -> VrfName {
        self.underlay_vrf.clone().unwrap_or_else(Name::default_vrf)
    }

    /// What a tunnel adds to an IP packet, in bytes.
    pub fn overhead(&self) -> u16 {
        if self.vtep.is_some_and(|vtep| vtep.is_ipv6()) { OVERHEAD_V6 } else { OVERHEAD_V4 }
    }

    /// The interface of a port that has this one's tunnel end point, if it has a VNI; or in whose network that is, as
    /// an address of a virtual router.
    pub fn carrier<'a>(&self, all: &'a [Interface]) -> Option<&'a Interface> {
        let (vtep, vrf) = (self.vtep.filter(|_| self.vni.is_some())?, self.underlay());
        let on_ports = || all.iter().filter(|other| other.port.is_some() && other.vrf == vrf);
        let has = |other: &&Interface| other.addresses.iter().any(|own| own.address() == vtep);
        let is_near = |other: &&Interface| other.addresses.iter().any(|own| own.net().contains(&vtep));
        on_ports().find(has).or_else(|| on_ports().find(is_near))
    }

    /// The longest IP packet. Of a VNI, if nothing is said: what fits the MTU of the interface that has the tunnel end
    /// point.
    pub fn mtu(&self, all: &[Interface]) -> Mtu {
        let around = || {
            let carrier = self.carrier(all)?;
            // 576 is what every IPv4 host takes in: less is no MTU, and `check` says that.
            Mtu::new(carrier.mtu.unwrap_or_default().bytes() - self.overhead()).ok()
        };
        self.mtu.or_else(around).unwrap_or_default()
    }

    /// The port that frames of it leave by, of a VNI that of its tunnel end point.
    pub fn port_around<'a>(&'a self, all: &'a [Interface]) -> Option<&'a PortName> {
        self.port.as_ref().or_else(|| self.carrier(all)?.port.as_ref())
    }
}

/// `[[vrf]]`: declares a VRF; needed only to say something about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vrf {
    /// Its name.
    pub name: VrfName,
    /// Allows interfaces with and without a zone in this VRF: between those without, no sessions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stateless: bool,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteTarget {
    /// To these next hops; several share the flows (ECMP). At least one, sorted, none twice.
    Via(Vec<NextHop>),
    /// Nowhere, silently.
    Blackhole,
    /// Nowhere, with an ICMP error to the sender.
    Unreachable,
}

impl RouteTarget {
    /// Most next hops of one route: what hardware routers offer, and a bound on the ECMP table.
    pub const MAX_NEXT_HOPS: usize = 64;

    /// Checks and takes next hops.
    pub fn via(mut next_hops: Vec<NextHop>) -> Result<RouteTarget, NotAllowed> {
        if next_hops.is_empty() || next_hops.len() > Self::MAX_NEXT_HOPS {
            return Err(NotAllowed::new("a route has 1 to 64 next hops"));
        }
        if next_hops.len() > 1 {
            next_hops.sort_unstable();
            if next_hops.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(NotAllowed::new("a next hop stands there twice"));
            }
        }
        Ok(RouteTarget::Via(next_hops))
    }

    /// The next hops; none for the other kinds.
    pub fn next_hops(&self) -> &[NextHop] {
        match self {
            RouteTarget::Via(next_hops) => next_hops,
            RouteTarget::Blackhole | RouteTarget::Unreachable => &[],
        }
    }
}

/// `[[route]]`: a static route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RouteAsTyped", into = "RouteAsTyped")]
pub struct Route {
    /// Where packets go.
    pub prefix: Prefix,
    /// The VRF it is in.
    pub vrf: VrfName,
    /// Where they are sent.
    pub target: RouteTarget,
}

/// The keys of `[[route]]`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteAsTyped {
    prefix: Prefix,
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    vrf: VrfName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    via: Option<Vec<NextHop>>,
    #[serde(default, skip_serializing_if = "is_default")]
    blackhole: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    unreachable: bool,
}

impl TryFrom<RouteAsTyped> for Route {
    type Error = NotAllowed;
    fn try_from(typed: RouteAsTyped) -> Result<Route, NotAllowed> {
        let target = match (typed.via, typed.blackhole, typed.unreachable) {
            (Some(next_hops), false, false) => RouteTarget::via(next_hops)?,
            (None, true, false) => RouteTarget::Blackhole,
            (None, false, true) => RouteTarget::Unreachable,
            _ => {
                return Err(NotAllowed::new("a route has one of: via, blackhole = true, unreachable = true"));
            }
        };
        Ok(Route { prefix: typed.prefix, vrf: typed.vrf, target })
    }
}

impl From<Route> for RouteAsTyped {
    fn from(route: Route) -> RouteAsTyped {
        let blackhole = route.target == RouteTarget::Blackhole;
        let unreachable = route.target == RouteTarget::Unreachable;
        let via = match route.target {
            RouteTarget::Via(next_hops) => Some(next_hops),
            RouteTarget::Blackhole | RouteTarget::Unreachable => None,
        };
        RouteAsTyped { prefix: route.prefix, vrf: route.vrf, via, blackhole, unreachable }
    }
}

/// `[[route_file]]`: many routes in a text file; see [`super::route_file`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteFile {
    /// The file, relative to the config.
    pub path: String,
    /// The VRF of its routes.
    #[serde(default = "Name::default_vrf", skip_serializing_if = "Name::is_default_vrf")]
    pub vrf: VrfName,
    /// What was in it.
    #[serde(skip)]
    pub routes: Arc<Vec<Route>>,
}

/// `[[neighbour]]`: a static neighbour, never asked for and never aged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    /// The interface it is on.
    pub interface: InterfaceName,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: Mac,
    /// On an interface with a VNI: the tunnel end point it is behind; absent: the only one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
}
