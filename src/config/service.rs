//! What a rule asks of the upper layer: `tcp/443`, `icmp/echo-request`, `esp`; DSCP; TCP flags.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::value::{NotAllowed, from_text};

/// Protocol numbers (IANA "Assigned Internet Protocol Numbers") with a name of their own here.
const PROTOCOLS: [(&str, u8); 10] = [
    ("icmp", ICMP),
    ("tcp", TCP),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", ICMPV6),
    ("sctp", 132),
    ("udplite", 136),
];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// Protocols whose first four bytes are a source and a destination port.
const WITH_PORTS: [u8; 5] = [TCP, 17, 33, 132, 136];

/// ICMP types (IANA "ICMP Parameters"), without the deprecated ones.
const ICMP_TYPES: [(&str, u8); 10] = [
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
];

/// ICMPv6 types (IANA "ICMPv6 Parameters") that firewalls are asked about (RFC 4890).
const ICMPV6_TYPES: [(&str, u8); 15] = [
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("listener-query", 130),
    ("listener-report", 131),
    ("listener-done", 132),
    ("router-solicitation", 133),
    ("router-advertisement", 134),
    ("neighbour-solicitation", 135),
    ("neighbour-advertisement", 136),
    ("redirect", 137),
    ("listener-report-v2", 143),
];

fn number_of(name: &str, names: &[(&'static str, u8)]) -> Option<u8> {
    names.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn name_of(number: u8, names: &[(&'static str, u8)]) -> Option<&'static str> {
    names.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// Digits only: `parse` alone would take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Ports from the first to the last: `443`, `1000-2000`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    const ALLOWED: &str = "a port is 0 to 65535, a range FIRST-LAST";
    /// Every port.
    pub const ALL: PortRange = PortRange { first: 0, last: u16::MAX };

    /// Checks and takes both ends.
    pub const fn new(first: u16, last: u16) -> Option<PortRange> {
        if first <= last { Some(PortRange { first, last }) } else { None }
    }

    /// First port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// True if `port` is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<PortRange, NotAllowed> {
        let port = |text| number::<u16>(text).ok_or(NotAllowed::new(Self::ALLOWED));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        PortRange::new(first, last).ok_or_else(|| NotAllowed::because(format!("{last} is before {first}")))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PortRange, D::Error> {
        from_text_or_number(deserializer, PortRange::ALLOWED)
    }
}

/// Reads a string, or an integer as if it stood in quotes.
fn from_text_or_number<'de, D: Deserializer<'de>, T: FromStr<Err = NotAllowed>>(
    deserializer: D,
    expecting: &'static str,
) -> Result<T, D::Error> {
    struct Any<T>(&'static str, std::marker::PhantomData<T>);
    impl<T: FromStr<Err = NotAllowed>> Visitor<'_> for Any<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            value.to_string().parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Any(expecting, std::marker::PhantomData))
}

/// A protocol, and what of it: `any`, `tcp`, `tcp/443`, `udp/1000-2000`, `icmp/echo-request`, `icmp/3`,
/// `esp`, `proto/89`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    protocol: Option<u8>,
    /// Ports, or ICMP types.
    detail: Option<PortRange>,
}

impl Service {
    const ALLOWED: &str = "a service is any, tcp/443, udp/1000-2000, sctp, icmp/echo-request, icmp/3, \
                           icmpv6/packet-too-big, esp, ah, gre or proto/89";
    /// Everything.
    pub const ANY: Service = Service { protocol: None, detail: None };

    /// All of one protocol.
    pub const fn of_protocol(protocol: u8) -> Service {
        Service { protocol: Some(protocol), detail: None }
    }

    /// The protocol; `None`: any.
    pub const fn protocol(self) -> Option<u8> {
        self.protocol
    }

    /// True if it is of a protocol that has ports.
    pub fn has_ports(self) -> bool {
        self.protocol.is_some_and(|protocol| WITH_PORTS.contains(&protocol))
    }

    /// True if it is of TCP.
    pub fn is_tcp(self) -> bool {
        self.protocol == Some(TCP)
    }

    /// The destination ports it names.
    pub fn ports(self) -> Option<PortRange> {
        self.detail.filter(|_| self.has_ports())
    }

    /// The ICMP or ICMPv6 type it names.
    pub fn icmp_type(self) -> Option<u8> {
        self.detail.filter(|_| !self.has_ports()).map(|types| types.first as u8) // from one byte
    }

    /// True if packets of this family can have it: ICMP is IPv4's, ICMPv6 is IPv6's.
    pub fn is_of(self, ipv4: bool) -> bool {
        match self.protocol {
            Some(ICMP) => ipv4,
            Some(ICMPV6) => !ipv4,
            _ => true,
        }
    }
}

impl FromStr for Service {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Service, NotAllowed> {
        let unknown = || NotAllowed::new(Self::ALLOWED);
        let (name, detail) = match text.split_once('/') {
            Some((name, detail)) => (name, Some(detail)),
            None => (text, None),
        };
        if name == "any" && detail.is_none() {
            return Ok(Service::ANY);
        }
        if name == "proto" {
            let protocol =
                detail.and_then(number).ok_or(NotAllowed::new("a protocol is proto/0 to proto/255"))?;
            return Ok(Service { protocol: Some(protocol), detail: None });
        }
        let protocol = number_of(name, &PROTOCOLS).ok_or_else(unknown)?;
        let detail = match (detail, protocol) {
            (None, _) => None,
            (Some(kind), ICMP) => Some(icmp_type(kind, &ICMP_TYPES)?),
            (Some(kind), ICMPV6) => Some(icmp_type(kind, &ICMPV6_TYPES)?),
            (Some(ports), _) if WITH_PORTS.contains(&protocol) => Some(ports.parse::<PortRange>()?),
            (Some(_), _) => return Err(NotAllowed::because(format!("{name} has neither ports nor types"))),
        };
        Ok(Service { protocol: Some(protocol), detail })
    }
}

fn icmp_type(kind: &str, names: &[(&'static str, u8)]) -> Result<PortRange, NotAllowed> {
    let number = number::<u8>(kind).or_else(|| number_of(kind, names)).ok_or_else(|| {
        let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        NotAllowed::because(format!("a type is 0 to 255 or one of: {}", known.join(", ")))
    })?;
    Ok(PortRange { first: number.into(), last: number.into() })
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(protocol) = self.protocol else { return f.write_str("any") };
        match name_of(protocol, &PROTOCOLS) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "proto/{protocol}")?,
        }
        match (self.icmp_type(), self.ports()) {
            (Some(kind), _) => {
                let names = if protocol == ICMP { &ICMP_TYPES[..] } else { &ICMPV6_TYPES[..] };
                match name_of(kind, names) {
                    Some(name) => write!(f, "/{name}"),
                    None => write!(f, "/{kind}"),
                }
            }
            (None, Some(ports)) => write!(f, "/{ports}"),
            (None, None) => Ok(()),
        }
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Service, D::Error> {
        from_text(deserializer, Service::ALLOWED)
    }
}

/// A DSCP: 0 to 63 or the name of a class (RFC 2474, 2597, 3246, 5865, 8622).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dscp(u8);

const DSCP_NAMES: [(&str, u8); 23] = [
    ("cs0", 0),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("ef", 46),
    ("voice-admit", 44),
    ("le", 1),
];

impl Dscp {
    const ALLOWED: &str = "a DSCP is 0 to 63, cs0 to cs7, af11 to af43, ef, voice-admit or le";

    /// The six bits.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for Dscp {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Dscp, NotAllowed> {
        let dscp = number::<u8>(text).filter(|dscp| *dscp < 64).or_else(|| number_of(text, &DSCP_NAMES));
        dscp.map(Dscp).ok_or(NotAllowed::new(Self::ALLOWED))
    }
}

impl Serialize for Dscp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match name_of(self.0, &DSCP_NAMES) {
            Some(name) => serializer.serialize_str(name),
            None => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Dscp, D::Error> {
        from_text_or_number(deserializer, Dscp::ALLOWED)
    }
}

/// A TCP flag that must be set, `"syn"`, or must not be, `"!ack"` (RFC 9293 section 3.1, RFC 3168).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpFlag {
    /// Its bit in the TCP header's flags byte.
    pub bit: u8,
    /// Whether it must be set.
    pub set: bool,
}

const TCP_FLAGS: [(&str, u8); 8] = [
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ece", 0x40),
    ("cwr", 0x80),
];

impl TcpFlag {
    const ALLOWED: &str =
        "a TCP flag is fin, syn, rst, psh, ack, urg, ece or cwr; with ! before it, it must not be set";
}

impl FromStr for TcpFlag {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<TcpFlag, NotAllowed> {
        let (name, set) = match text.strip_prefix('!') {
            Some(name) => (name, false),
            None => (text, true),
        };
        let bit = number_of(name, &TCP_FLAGS).ok_or(NotAllowed::new(Self::ALLOWED))?;
        Ok(TcpFlag { bit, set })
    }
}

impl Serialize for TcpFlag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let not = if self.set { "" } else { "!" };
        let name = name_of(self.bit, &TCP_FLAGS).unwrap_or_else(|| unreachable!("read from this list"));
        serializer.collect_str(&format_args!("{not}{name}"))
    }
}

impl<'de> Deserialize<'de> for TcpFlag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TcpFlag, D::Error> {
        from_text(deserializer, TcpFlag::ALLOWED)
    }
}
