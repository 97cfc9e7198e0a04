//! Addresses that groups, rules and NAT name: one, a prefix, a range; and lists of such values.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::value::{GroupName, Name, NotAllowed, Prefix, from_text};

/// Addresses from the first to the last, typed as `10.0.1.10`, `10.0.1.0/24` or `10.0.1.10-10.0.1.19`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    const ALLOWED: &str = "write an address, a prefix (10.0.1.0/24) or a range (10.0.1.10-10.0.1.19)";

    /// Checks and takes both ends.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<AddressRange, NotAllowed> {
        if first.is_ipv4() != last.is_ipv4() {
            return Err(NotAllowed::new("both ends of a range are of one family"));
        }
        if last < first {
            return Err(NotAllowed::because(format!("{last} is before {first}")));
        }
        Ok(AddressRange { first, last })
    }

    /// First and last address.
    pub fn ends(self) -> (IpAddr, IpAddr) {
        (self.first, self.last)
    }

    /// First address.
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// Last address.
    pub const fn last(self) -> IpAddr {
        self.last
    }

    /// True if it is of IPv4.
    pub const fn is_ipv4(self) -> bool {
        self.first.is_ipv4()
    }

    /// True if `address` is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        // Every IPv4 address sorts before every IPv6 address.
        self.first <= address && address <= self.last
    }

    /// True if both have an address in common.
    pub fn overlaps(self, other: AddressRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The fewest prefixes that hold exactly these addresses.
    pub fn nets(self) -> impl Iterator<Item = IpNet> {
        let (v4, v6) = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (Some(Ipv4Subnets::new(first, last, 0)), None),
            (IpAddr::V6(first), IpAddr::V6(last)) => (None, Some(Ipv6Subnets::new(first, last, 0))),
            _ => unreachable!("both ends are of one family"),
        };
        v4.into_iter().flatten().map(IpNet::V4).chain(v6.into_iter().flatten().map(IpNet::V6))
    }

    /// Its prefix, if one says it all.
    pub fn net(self) -> Option<IpNet> {
        let mut nets = self.nets();
        nets.next().filter(|_| nets.next().is_none())
    }
}

impl From<IpAddr> for AddressRange {
    fn from(address: IpAddr) -> AddressRange {
        AddressRange { first: address, last: address }
    }
}

impl From<IpNet> for AddressRange {
    fn from(net: IpNet) -> AddressRange {
        AddressRange { first: net.network(), last: net.broadcast() }
    }
}

impl FromStr for AddressRange {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<AddressRange, NotAllowed> {
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| NotAllowed::new(Self::ALLOWED));
        if text.contains('/') {
            return text.parse::<Prefix>().map(|prefix| prefix.net().into());
        }
        match text.split_once('-') {
            Some((first, last)) => AddressRange::new(address(first)?, address(last)?),
            None => address(text).map(AddressRange::from),
        }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.net() {
            _ if self.first == self.last => write!(f, "{}", self.first),
            Some(net) => write!(f, "{net}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AddressRange, D::Error> {
        from_text(deserializer, AddressRange::ALLOWED)
    }
}

/// One entry of a group: addresses, or all of another group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Member {
    /// `10.0.1.10`, `10.0.1.0/24`, `10.0.1.10-10.0.1.19`
    Addresses(AddressRange),
    /// `group:NAME`
    Group(GroupName),
}

impl Member {
    const ALLOWED: &str =
        "write an address, a prefix (10.0.1.0/24), a range (10.0.1.10-10.0.1.19) or group:NAME";
}

impl FromStr for Member {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Member, NotAllowed> {
        match text.strip_prefix("group:") {
            Some(name) => Name::new(name).map(Member::Group),
            None if text.contains('/') => text.parse().map(Member::Addresses),
            None => text.parse().map(Member::Addresses).map_err(|why: NotAllowed| {
                // What looks like a range is told what is wrong with it, everything else what it may be.
                if why == NotAllowed::new(AddressRange::ALLOWED) {
                    NotAllowed::new(Self::ALLOWED)
                } else {
                    why
                }
            }),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Addresses(addresses) => write!(f, "{addresses}"),
            Member::Group(name) => write!(f, "group:{name}"),
        }
    }
}

impl Serialize for Member {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Member, D::Error> {
        from_text(deserializer, Member::ALLOWED)
    }
}

/// The inside end of a destination NAT: `10.0.1.5`, `10.0.1.5:22` or `[2001:db8::5]:22`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatTarget {
    /// The server.
    pub address: IpAddr,
    /// Its port; `None`: the port stays.
    pub port: Option<u16>,
}

impl NatTarget {
    const ALLOWED: &str = "a target is ADDRESS, ADDRESS:PORT or [IPV6]:PORT";
}

impl FromStr for NatTarget {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<NatTarget, NotAllowed> {
        if let Ok(address) = text.parse() {
            return Ok(NatTarget { address, port: None });
        }
        let whole: SocketAddr = text.parse().map_err(|_| NotAllowed::new(Self::ALLOWED))?;
        match whole.port() {
            0 => Err(NotAllowed::new("a target's port is 1 to 65535")),
            port => Ok(NatTarget { address: whole.ip(), port: Some(port) }),
        }
    }
}

impl fmt::Display for NatTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => write!(f, "{}", self.address),
            Some(port) => write!(f, "{}", SocketAddr::new(self.address, port)),
        }
    }
}

impl Serialize for NatTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NatTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NatTarget, D::Error> {
        from_text(deserializer, NatTarget::ALLOWED)
    }
}

/// `pool = ["203.0.113.0/30", "203.0.113.8-203.0.113.11"]` or `"interface"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NatPool {
    /// These IPv4 addresses, contiguous or not (RFC 6888 REQ-3).
    Addresses(Vec<AddressRange>),
    /// The first IPv4 address of the interface that the packet leaves through.
    Interface,
}

impl NatPool {
    const ALLOWED: &str = "a pool is \"interface\" or a list of IPv4 addresses, prefixes and ranges";

    /// The addresses written down; none for `"interface"`.
    pub fn addresses(&self) -> &[AddressRange] {
        match self {
            NatPool::Addresses(addresses) => addresses,
            NatPool::Interface => &[],
        }
    }
}

impl Serialize for NatPool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            NatPool::Addresses(addresses) => addresses.serialize(serializer),
            NatPool::Interface => serializer.serialize_str("interface"),
        }
    }
}

impl<'de> Deserialize<'de> for NatPool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NatPool, D::Error> {
        /// An IPv4 range; the error points at the one that is not.
        struct OfIpv4(AddressRange);
        impl FromStr for OfIpv4 {
            type Err = NotAllowed;
            fn from_str(text: &str) -> Result<OfIpv4, NotAllowed> {
                let range: AddressRange = text.parse()?;
                let unicast = |address: IpAddr| {
                    matches!(address, IpAddr::V4(v4) if is_unicast_v4(v4)) // one range of them: 1 to 223 without 127
                };
                let loopback = AddressRange::new(
                    Ipv4Addr::new(127, 0, 0, 0).into(),
                    Ipv4Addr::new(127, 255, 255, 255).into(),
                )?;
                if !range.is_ipv4() {
                    return Err(NotAllowed::new("source NAT is for IPv4; IPv6 addresses need none"));
                }
                if !unicast(range.first()) || !unicast(range.last()) || range.overlaps(loopback) {
                    return Err(NotAllowed::new(
                        "unicast addresses are needed (not 0/8, 127/8, 224/4 or 240/4)",
                    ));
                }
                Ok(OfIpv4(range))
            }
        }
        impl<'de> Deserialize<'de> for OfIpv4 {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OfIpv4, D::Error> {
                from_text(deserializer, AddressRange::ALLOWED)
            }
        }
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = NatPool;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NatPool::ALLOWED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<NatPool, E> {
                match text {
                    "interface" => Ok(NatPool::Interface),
                    _ => Err(E::custom(NatPool::ALLOWED)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NatPool, A::Error> {
                let mut addresses = Vec::new();
                while let Some(OfIpv4(range)) = seq.next_element()? {
                    addresses.push(range);
                }
                if addresses.is_empty() {
                    return Err(de::Error::custom(NatPool::ALLOWED));
                }
                Ok(NatPool::Addresses(addresses))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An IPv4 address that a host can have (RFC 1122 section 3.2.1.3, RFC 1112 section 4).
pub(super) fn is_unicast_v4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..224).contains(&first) && first != 127
}

/// One value, or a list of at least one: `prefix = "10.0.0.0/8"`, `prefix = ["10.0.0.0/8", "192.0.2.1"]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OneOrMore<T>(Vec<T>);

impl<T> OneOrMore<T> {
    /// Checks and takes a list.
    pub fn new(values: Vec<T>) -> Result<OneOrMore<T>, NotAllowed> {
        if values.is_empty() { Err(NotAllowed::new("at least one is needed")) } else { Ok(OneOrMore(values)) }
    }
}

impl<T> std::ops::Deref for OneOrMore<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Serialize> Serialize for OneOrMore<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMore<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OneOrMore<T>, D::Error> {
        struct Any<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Any<T> {
            type Value = OneOrMore<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<OneOrMore<T>, E> {
                T::deserialize(de::value::I64Deserializer::new(value)).map(|one| OneOrMore(vec![one]))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore<T>, E> {
                T::deserialize(de::value::StrDeserializer::new(text)).map(|one| OneOrMore(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMore<T>, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                OneOrMore::new(values).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Any(PhantomData))
    }
}
