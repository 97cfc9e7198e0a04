//! Single values of a config: each type admits legal values only, and its one door says what is allowed.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{SerializeSeq as _, Serializer};
use serde::{Deserialize, Serialize};

/// Why a value was refused: what is allowed in its place. The caller knows the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAllowed(Cow<'static, str>);

impl NotAllowed {
    pub(crate) const fn new(allowed: &'static str) -> NotAllowed {
        NotAllowed(Cow::Borrowed(allowed))
    }

    pub(crate) fn because(allowed: String) -> NotAllowed {
        NotAllowed(Cow::Owned(allowed))
    }
}

/// Reads a string and sends it through `T`'s door.
pub(crate) fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err = NotAllowed>>(
    deserializer: D,
    expecting: &'static str,
) -> Result<T, D::Error> {
    struct Text<T>(&'static str, std::marker::PhantomData<T>);
    impl<T: FromStr<Err = NotAllowed>> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(expecting, std::marker::PhantomData))
}

/// Reads an integer and sends it through a door; what lies outside `u32` becomes `u32::MAX`, which no
/// door admits.
pub(crate) fn from_integer<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expecting: &'static str,
    door: impl Fn(u32) -> Result<T, NotAllowed>,
) -> Result<T, D::Error> {
    struct Integer<F>(&'static str, F);
    impl<T, F: Fn(u32) -> Result<T, NotAllowed>> Visitor<'_> for Integer<F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
            (self.1)(u32::try_from(value).unwrap_or(u32::MAX)).map_err(E::custom)
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
            (self.1)(u32::try_from(value).unwrap_or(u32::MAX)).map_err(E::custom)
        }
    }
    deserializer.deserialize_u32(Integer(expecting, door))
}

/// A name given by the operator: 1 to 32 of `a-z 0-9 . _ -`. Cheap to copy.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// The name of a port.
pub type PortName = Name;
/// The name of an interface.
pub type InterfaceName = Name;
/// The name of a VRF; the one that always exists is called `default`.
pub type VrfName = Name;
/// The name of a zone.
pub type ZoneName = Name;
/// The name of a group of addresses.
pub type GroupName = Name;
/// The name of a firewall or NAT rule.
pub type RuleName = Name;

impl Name {
    /// Longest name: what fits a column and a counter's name.
    pub const MAX_BYTES: usize = 32;
    const ALLOWED: &str = "a name is 1 to 32 characters of a-z 0-9 . _ -";

    /// Checks and takes a name.
    pub fn new(text: &str) -> Result<Name, NotAllowed> {
        let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        match text.len() {
            1..=Self::MAX_BYTES if text.bytes().all(legal) => Ok(Name(text.into())),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }

    /// A name that is made of others, and that nobody can give.
    pub(super) fn compound(text: &str) -> Name {
        Name(text.into())
    }

    /// The name of an interface, or of a bridge's member: `seg-7/lan.100`.
    pub(crate) fn of_end(text: &str) -> Result<InterfaceName, NotAllowed> {
        let Some((bridge, end)) = text.split_once('/') else { return Name::new(text) };
        // A port's name, and two tags.
        let (name, tags) = end.split_at(end.floor_char_boundary(Name::MAX_BYTES));
        Name::new(bridge).and(Name::new(name))?;
        match tags.is_empty() || tags.len() <= ".4094.4094".len() && Name::new(tags).is_ok() {
            true => Ok(Name::compound(text)),
            false => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }

    /// The VRF of everything that names none.
    pub fn default_vrf() -> VrfName {
        static DEFAULT: LazyLock<Name> = LazyLock::new(|| Name("default".into()));
        DEFAULT.clone()
    }

    /// Whether this names the VRF `default`.
    pub fn is_default_vrf(&self) -> bool {
        &*self.0 == "default"
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Name, NotAllowed> {
        Name::new(text)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        from_text(deserializer, Name::ALLOWED)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The name of a Linux network device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct DeviceName(Arc<str>);

impl DeviceName {
    const ALLOWED: &str = "a device name is 1 to 15 characters without blanks, '/' and ':'"; // Linux dev_valid_name()

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<DeviceName, NotAllowed> {
        let legal = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
        if (1..=15).contains(&text.len()) && text != "." && text != ".." && text.chars().all(legal) {
            Ok(DeviceName(text.into()))
        } else {
            Err(NotAllowed::new(Self::ALLOWED))
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DeviceName, D::Error> {
        from_text(deserializer, DeviceName::ALLOWED)
    }
}

/// A number between `MIN` and `MAX`, both allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Ranged<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Ranged<MIN, MAX> {
    /// Checks and takes a number.
    pub fn new(value: u32) -> Result<Self, NotAllowed> {
        if (MIN..=MAX).contains(&value) {
            Ok(Ranged(value))
        } else {
            Err(NotAllowed::because(format!("allowed is {MIN} to {MAX}")))
        }
    }

    /// For defaults: a constant outside the range does not compile into one that is used.
    pub(crate) const fn constant(value: u32) -> Self {
        assert!(value >= MIN && value <= MAX);
        Ranged(value)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Ranged<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_integer(deserializer, "a whole number", Ranged::new)
    }
}

impl<const MIN: u32, const MAX: u32> fmt::Display for Ranged<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A VLAN ID: 1 to 4094 (IEEE 802.1Q-2022 table 9-2: 0 is a priority tag, 4095 reserved).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct VlanId(u16);

impl VlanId {
    const ALLOWED: &str = "a VLAN ID is 1 to 4094";

    /// Checks and takes an ID.
    pub fn new(vid: u16) -> Result<VlanId, NotAllowed> {
        if (1..=4094).contains(&vid) { Ok(VlanId(vid)) } else { Err(NotAllowed::new(Self::ALLOWED)) }
    }

    /// The ID.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for VlanId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VlanId, D::Error> {
        from_integer(deserializer, VlanId::ALLOWED, |vid| VlanId::new(u16::try_from(vid).unwrap_or(u16::MAX)))
    }
}

/// The tags of an interface: `vlan = 100`, or `vlan = [200, 10]`, outer first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vlan {
    /// One tag.
    Single(VlanId),
    /// QinQ: two tags.
    QinQ {
        /// The first tag on the wire (S-VLAN).
        outer: VlanId,
        /// The second tag (C-VLAN).
        inner: VlanId,
    },
}

impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Vlan::Single(vid) => f.pad(&vid.get().to_string()),
            Vlan::QinQ { outer, inner } => f.pad(&format!("{}.{}", outer.get(), inner.get())),
        }
    }
}

impl Serialize for Vlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Vlan::Single(vid) => vid.serialize(serializer),
            Vlan::QinQ { outer, inner } => {
                let mut pair = serializer.serialize_seq(Some(2))?;
                pair.serialize_element(outer)?;
                pair.serialize_element(inner)?;
                pair.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Vlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vlan, D::Error> {
        struct Tags;
        impl<'de> Visitor<'de> for Tags {
            type Value = Vlan;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a VLAN ID (1 to 4094), or [outer, inner] for QinQ")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Vlan, E> {
                let vid = VlanId::new(u16::try_from(value).unwrap_or(u16::MAX)).map_err(E::custom)?;
                Ok(Vlan::Single(vid))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Vlan, E> {
                self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vlan, A::Error> {
                let two = || de::Error::custom("two VLAN IDs for QinQ: [outer, inner]");
                let outer = seq.next_element()?.ok_or_else(two)?;
                let inner = seq.next_element()?.ok_or_else(two)?;
                match seq.next_element::<VlanId>()? {
                    None => Ok(Vlan::QinQ { outer, inner }),
                    Some(_) => Err(two()),
                }
            }
        }
        deserializer.deserialize_any(Tags)
    }
}

/// The TPID of the outer tag of a QinQ pair. The inner tag, and a single one, is 802.1Q (0x8100).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tpid {
    /// 0x88a8 (IEEE 802.1ad), the default.
    #[default]
    #[serde(rename = "802.1ad")]
    Dot1ad,
    /// 0x8100, stacked.
    #[serde(rename = "802.1q")]
    Dot1q,
}

impl Tpid {
    /// The EtherType on the wire.
    pub const fn ethertype(self) -> u16 {
        match self {
            Tpid::Dot1ad => 0x88a8,
            Tpid::Dot1q => 0x8100,
        }
    }
}

/// A unicast MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

impl Mac {
    const ALLOWED: &str = "a MAC is six hexadecimal pairs, 02:00:00:00:00:01";

    /// Checks and takes an address: not a group address (IEEE 802-2014 section 8.2.2), not zero.
    pub fn new(bytes: [u8; 6]) -> Result<Mac, NotAllowed> {
        if bytes[0] & 1 != 0 {
            return Err(NotAllowed::new(
                "a unicast MAC is needed: the lowest bit of its first byte must be 0",
            ));
        }
        if bytes == [0; 6] {
            return Err(NotAllowed::new("a MAC of zeros belongs to nobody"));
        }
        Ok(Mac(bytes))
    }

    /// The six bytes, as on the wire.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Mac, NotAllowed> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            let pair = pair.ok_or(NotAllowed::new(Self::ALLOWED))?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NotAllowed::new(Self::ALLOWED))?;
        }
        if pairs.next().is_some() {
            return Err(NotAllowed::new(Self::ALLOWED));
        }
        Mac::new(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        from_text(deserializer, Mac::ALLOWED)
    }
}

/// The longest IP packet of an interface, in bytes: 576 to 9216 (IPv6 needs 1280, checked where both are known).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Mtu(u16);

impl Mtu {
    const ALLOWED: &str = "an MTU is 576 to 9216 bytes";
    /// Ethernet without jumbo frames (RFC 894).
    pub const ETHERNET: Mtu = Mtu(1500);
    /// The least an IPv6 link may have (RFC 8200 section 5).
    pub const IPV6_LEAST: Mtu = Mtu(1280);

    /// Checks and takes an MTU. 576: what every IPv4 host must accept (RFC 791). 9216: what switches carry.
    pub fn new(bytes: u16) -> Result<Mtu, NotAllowed> {
        if (576..=9216).contains(&bytes) { Ok(Mtu(bytes)) } else { Err(NotAllowed::new(Self::ALLOWED)) }
    }

    /// Bytes.
    pub const fn bytes(self) -> u16 {
        self.0
    }
}

impl Default for Mtu {
    fn default() -> Mtu {
        Mtu::ETHERNET
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mtu, D::Error> {
        from_integer(deserializer, Mtu::ALLOWED, |bytes| Mtu::new(u16::try_from(bytes).unwrap_or(u16::MAX)))
    }
}

/// 128 bits in hexadecimal: the seed of the written-down keyed hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl HashKey {
    const ALLOWED: &str = "a key is 32 hexadecimal digits";
}

impl Default for HashKey {
    /// `000102030405060708090a0b0c0d0e0f`, the key of SipHash's published test vectors: fixed, so that
    /// two nodes with the same config agree. Public, so set your own where hosts are hostile.
    fn default() -> HashKey {
        HashKey([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    }
}

impl FromStr for HashKey {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<HashKey, NotAllowed> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAllowed::new(Self::ALLOWED));
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| NotAllowed::new(Self::ALLOWED))?;
        Ok(HashKey(number.to_be_bytes()))
    }
}

impl fmt::Debug for HashKey {
    /// Not the key: it would end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

impl Serialize for HashKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(self.0)))
    }
}

impl<'de> Deserialize<'de> for HashKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HashKey, D::Error> {
        from_text(deserializer, HashKey::ALLOWED)
    }
}

/// `ADDRESS/LENGTH` as typed; host bits allowed.
fn parse_net(text: &str) -> Result<IpNet, NotAllowed> {
    let no_prefix = NotAllowed::new("write ADDRESS/LENGTH, 10.0.1.0/24 or 2001:db8:1::/64");
    let (address, length) = text.split_once('/').ok_or_else(|| no_prefix.clone())?;
    let address: IpAddr = address.parse().map_err(|_| no_prefix)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let digits = (1..=3).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
    let length = length.parse().ok().filter(|&length: &u8| digits && length <= most);
    let length = length.ok_or_else(|| NotAllowed::because(format!("prefix length is 0 to {most}")))?;
    IpNet::new(address, length).map_err(|_| unreachable!("the length was checked above"))
}

/// A route's prefix: no host bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(IpNet);

impl Prefix {
    /// Checks and takes a prefix.
    pub fn new(net: IpNet) -> Result<Prefix, NotAllowed> {
        if net.addr() == net.network() {
            Ok(Prefix(net))
        } else {
            Err(NotAllowed::because(format!("host bits are set; the network is {}", net.trunc())))
        }
    }

    /// As `ipnet` has it.
    pub const fn net(self) -> IpNet {
        self.0
    }
}

impl FromStr for Prefix {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Prefix, NotAllowed> {
        Prefix::new(parse_net(text)?)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Prefix, D::Error> {
        from_text(deserializer, "a prefix, 10.0.1.0/24 or 2001:db8:1::/64")
    }
}

/// An address of the gateway with its network: `10.0.1.2/24`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceAddress(IpNet);

impl InterfaceAddress {
    /// Checks and takes an address a router may have.
    pub fn new(net: IpNet) -> Result<InterfaceAddress, NotAllowed> {
        match net {
            IpNet::V4(net) => Self::check_v4(net)?,
            IpNet::V6(net) => Self::check_v6(net)?,
        }
        Ok(InterfaceAddress(net))
    }

    fn check_v4(net: Ipv4Net) -> Result<(), NotAllowed> {
        let address: Ipv4Addr = net.addr();
        if net.prefix_len() == 0 {
            return Err(NotAllowed::new("prefix length of an interface is 1 to 32"));
        }
        // RFC 3021: a /31 has neither a network nor a broadcast address.
        if net.prefix_len() < 31 && address == net.network() {
            return Err(NotAllowed::because(format!(
                "the network address of {}: use a host address",
                net.trunc()
            )));
        }
        if net.prefix_len() < 31 && address == net.broadcast() {
            return Err(NotAllowed::because(format!(
                "the broadcast address of {}: use a host address",
                net.trunc()
            )));
        }
        // RFC 1122 section 3.2.1.3, RFC 1112 section 4.
        let [first, ..] = address.octets();
        if first == 0 || first >= 224 || address.is_loopback() {
            return Err(NotAllowed::new("a unicast address is needed (not 0/8, 127/8, 224/4 or 240/4)"));
        }
        Ok(())
    }

    fn check_v6(net: Ipv6Net) -> Result<(), NotAllowed> {
        let address: Ipv6Addr = net.addr();
        if net.prefix_len() == 0 {
            return Err(NotAllowed::new("prefix length of an interface is 1 to 128"));
        }
        if address.is_multicast() || address.is_loopback() || address.is_unspecified() {
            return Err(NotAllowed::new("a unicast address is needed (not ::, ::1 or ff00::/8)"));
        }
        if address.to_ipv4_mapped().is_some() {
            return Err(NotAllowed::new(
                "an IPv4-mapped address never stands on a wire (RFC 4038 section 4.2)",
            ));
        }
        // RFC 4291 section 2.6.1; RFC 6164: a /127 has no such anycast address.
        if net.prefix_len() < 127 && address == net.network() {
            return Err(NotAllowed::because(format!(
                "the subnet-router anycast address of {}: use a host address",
                net.trunc()
            )));
        }
        Ok(())
    }

    /// The address of the gateway.
    pub fn address(self) -> IpAddr {
        self.0.addr()
    }

    /// Address and length as `ipnet` has it (host bits set).
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// The network it connects to, without host bits.
    pub fn connected(self) -> IpNet {
        self.0.trunc()
    }
}

impl FromStr for InterfaceAddress {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<InterfaceAddress, NotAllowed> {
        InterfaceAddress::new(parse_net(text)?)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for InterfaceAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InterfaceAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<InterfaceAddress, D::Error> {
        from_text(deserializer, "an address with its length, 10.0.1.2/24 or 2001:db8:1::2/64")
    }
}

/// One next hop of a route: `198.51.100.1`, `198.51.100.1@blue` to leak into another VRF, or `fe80::1%uplink`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The neighbouring router.
    pub address: IpAddr,
    /// The VRF it is in; `None`: that of the route.
    pub vrf: Option<VrfName>,
    /// The interface it is on: where a link-local address means something (RFC 4007 section 11). Others have none.
    pub interface: Option<InterfaceName>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> NextHop {
        NextHop { address, vrf: None, interface: None }
    }
}

impl FromStr for NextHop {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<NextHop, NotAllowed> {
        let (text, vrf) = match text.split_once('@') {
            Some((text, vrf)) => (text, Some(Name::new(vrf)?)),
            None => (text, None),
        };
        let (address, interface) = match text.split_once('%') {
            Some((address, interface)) => (address, Some(Name::new(interface)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| {
            NotAllowed::new("a next hop is an address, ADDRESS@VRF to leak, or LINK-LOCAL%INTERFACE")
        })?;
        if address.is_multicast() || address.is_unspecified() || address.is_loopback() {
            return Err(NotAllowed::new("a next hop is a unicast address"));
        }
        match (matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()), &interface) {
            (true, None) => Err(NotAllowed::new(
                "a link-local next hop does not say on which interface: fe80::1%INTERFACE, or use the router's global address",
            )),
            (false, Some(_)) => {
                Err(NotAllowed::new("%INTERFACE goes with a link-local next hop (fe80::/10) only"))
            }
            _ => Ok(NextHop { address, vrf, interface }),
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.interface.as_ref().map_or(Ok(()), |interface| write!(f, "%{interface}"))?;
        self.vrf.as_ref().map_or(Ok(()), |vrf| write!(f, "@{vrf}"))
    }
}

impl Serialize for NextHop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NextHop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NextHop, D::Error> {
        from_text(deserializer, "a next hop: ADDRESS, ADDRESS@VRF or LINK-LOCAL%INTERFACE")
    }
}
