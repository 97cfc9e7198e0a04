//! `[[vrrp]]`: virtual routers (RFC 9568), addresses that this node has together with others.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::health::Period;
use super::value::{GroupName, InterfaceName, NextHop, NotAllowed, PortName, Ranged, RuleName, from_text};

/// `[[vrrp]]`: a virtual router on an interface; with addresses of both families it is two, which move together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vrrp {
    /// Where it is.
    pub interface: InterfaceName,
    /// Virtual router identifier: the same on all nodes that share the addresses, and nobody else's on the link.
    pub id: Ranged<1, 255>,
    /// Who of several has the addresses: the highest. 255, that of a router whose own addresses they are, is not to
    /// be had: a node's addresses are others.
    #[serde(default = "Vrrp::default_priority")]
    pub priority: Ranged<1, 254>,
    /// Time between advertisements.
    #[serde(default)]
    pub interval: Centiseconds,
    /// The addresses; of IPv6 the first is a link-local one.
    pub addresses: Vec<IpAddr>,
    /// Virtual routers that name the same group move together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Whether it takes over from one of lower priority.
    #[serde(default = "Vrrp::yes")]
    pub preempt: bool,
    /// How long one of lower priority is heard before it is taken over from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempt_delay: Option<Period>,
    /// Whether the addresses answer as the gateway's own do (ping); else only ARP and ND.
    #[serde(default)]
    pub accept: bool,
    /// Whether the checksum over IPv4 covers a pseudo header. RFC 9568 section 5.2.8 says no; keepalived, FRR and others
    /// of the time of RFC 5798 say yes. Received ones may be either.
    #[serde(default = "Vrrp::yes")]
    pub pseudo_header: bool,
    /// What lowers the priority while it is not well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub track: Vec<Track>,
}

impl Vrrp {
    /// Most virtual routers of a config.
    pub const MAX: usize = 1024;
    /// Most addresses of one: an advertisement of IPv6 has to fit the smallest MTU.
    pub const MAX_ADDRESSES: usize = 32;

    /// RFC 9568 section 6.1.
    fn default_priority() -> Ranged<1, 254> {
        Ranged::constant(100)
    }

    fn yes() -> bool {
        true
    }

    /// Its addresses of one family.
    pub fn addresses_of(&self, is_ipv6: bool) -> Vec<IpAddr> {
        self.addresses.iter().filter(|address| address.is_ipv6() == is_ipv6).copied().collect()
    }
}

/// One of `track`: exactly one of `port`, `service`, `bfd`, `neighbour` and `sync`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Track {
    /// A port that has to carry traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortName>,
    /// A service with health checks: the weight is taken in proportion to the backends that are down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<RuleName>,
    /// All of the weight instead, and only while a smaller share of the backends than this is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<Percent>,
    /// The peer of a [`super::Bfd`] session, which has to be up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<NextHop>,
    /// A neighbour that has to answer ARP or ND.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<NextHop>,
    /// `true`: the other node's sessions, all of which this node is to have while it is not Active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<bool>,
    /// How much is taken off the priority, which stays 1 at least.
    pub weight: Ranged<1, 253>,
}

/// A share: `"1%"` to `"100%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(u8);

impl Percent {
    const ALLOWED: &str = "a share is \"1%\" to \"100%\"";

    /// The number.
    pub fn get(self) -> u32 {
        self.0.into()
    }
}

impl FromStr for Percent {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Percent, NotAllowed> {
        let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
        match number {
            Some(share @ 1..=100) => Ok(Percent(share)),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Percent, D::Error> {
        from_text(deserializer, Percent::ALLOWED)
    }
}

/// A time between advertisements, in hundredths of a second: 1 to 4095 (RFC 9568 section 5.2.7). Written `"10cs"`,
/// `"100ms"` or `"1s"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Centiseconds(u16);

/// No time between advertisements: 0, or more than 12 bits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadInterval(pub u64);

impl Centiseconds {
    /// Largest: 12 bits.
    pub const MAX: u16 = 4095;
    const ALLOWED: &str = "an interval is 1cs to 4095cs in whole centiseconds: \"10cs\", \"100ms\", \"1s\"";

    /// Checks and takes hundredths of a second.
    pub fn new(centiseconds: u64) -> Result<Centiseconds, BadInterval> {
        match u16::try_from(centiseconds) {
            Ok(value @ 1..=Self::MAX) => Ok(Centiseconds(value)),
            _ => Err(BadInterval(centiseconds)),
        }
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The time.
    pub fn duration(self) -> Duration {
        Duration::from_millis(10 * u64::from(self.0))
    }
}

impl Default for Centiseconds {
    /// RFC 9568 section 6.1: 1 second.
    fn default() -> Centiseconds {
        Centiseconds(100)
    }
}

impl FromStr for Centiseconds {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Centiseconds, NotAllowed> {
        const UNITS: [(&str, u64); 3] = [("ms", 1), ("cs", 10), ("s", 1000)];
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, millis)| *millis);
        let number = number.parse().ok().zip(unit);
        let millis = number.and_then(|(number, unit): (u64, u64)| number.checked_mul(unit));
        let whole = millis.filter(|millis| millis.is_multiple_of(10)).map(|millis| millis / 10);
        whole.and_then(|value| Centiseconds::new(value).ok()).ok_or_else(|| NotAllowed::new(Self::ALLOWED))
    }
}

impl fmt::Display for Centiseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}cs", self.0)
    }
}

impl fmt::Debug for Centiseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Centiseconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Centiseconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Centiseconds, D::Error> {
        from_text(deserializer, Centiseconds::ALLOWED)
    }
}

/// The virtual router's MAC address (RFC 9568 section 7.3).
pub fn virtual_mac(vrid: u8, is_ipv6: bool) -> [u8; 6] {
    [0x00, 0x00, 0x5e, 0x00, if is_ipv6 { 0x02 } else { 0x01 }, vrid]
}
