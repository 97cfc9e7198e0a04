//! Health checks: how the gateway finds out whether a backend works, `health = { type = "tcp", interval = "1s" }`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::addresses::OneOrMore;
use super::value::{NotAllowed, Ranged, from_text};

/// How a backend is checked: `health` of a `[[service]]`. What goes with which `type` is checked by
/// [`HealthCheck::check`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked of the backend.
    #[serde(rename = "type")]
    pub kind: HealthKind,
    /// Time between the beginnings of two probes; each is up to a tenth shorter, at random.
    #[serde(default = "HealthCheck::default_interval")]
    pub interval: Period,
    /// How long an answer may take; shorter than `interval`. Absent: half of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Period>,
    /// Probes in a row that succeed before a backend that was down is up.
    #[serde(default = "HealthCheck::default_rise")]
    pub rise: Ranged<1, 100>,
    /// Probes in a row that fail before a backend is down.
    #[serde(default = "HealthCheck::default_fall")]
    pub fall: Ranged<1, 100>,
    /// The port that is asked; absent: the backend's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Ranged<1, 65535>>,
    /// The gateway's address that asks; absent: one of the interface that leads to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<OneOrMore<OwnAddress>>,
    /// HTTP(S): the method; absent: GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<HttpMethod>,
    /// HTTP(S): path and query; absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<HttpPath>,
    /// HTTP(S): the host that is asked for, with its port if it is to be said; absent: the backend's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HttpHost>,
    /// HTTP(S): what the status may be; absent: 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<OneOrMore<StatusRange>>,
    /// HTTP(S): what has to be in the first 64 KiB of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Bytes>,
    /// HTTPS: whether the certificate has to be right; absent: any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
    /// HTTPS: the file of the certificate authorities, in PEM; its path in full. It is read when the config takes
    /// effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// UDP: what is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Bytes>,
    /// UDP: what the answer begins with; absent: any answer will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Bytes>,
}

/// `type` of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// A connection opens.
    Tcp,
    /// A request over it is answered as expected.
    Http,
    /// The same within TLS.
    Https,
    /// A datagram is answered.
    Udp,
    /// An echo request is answered.
    Icmp,
}

impl HealthKind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            HealthKind::Tcp => "tcp",
            HealthKind::Http => "http",
            HealthKind::Https => "https",
            HealthKind::Udp => "udp",
            HealthKind::Icmp => "icmp",
        }
    }

    /// True if it asks a port.
    pub const fn has_port(self) -> bool {
        !matches!(self, HealthKind::Icmp)
    }
}

impl HealthCheck {
    /// HAProxy's `inter`.
    const fn default_interval() -> Period {
        Period(2000)
    }

    /// HAProxy's `rise`.
    const fn default_rise() -> Ranged<1, 100> {
        Ranged::constant(2)
    }

    /// HAProxy's `fall`.
    const fn default_fall() -> Ranged<1, 100> {
        Ranged::constant(3)
    }

    /// A check of this kind with nothing else said.
    pub fn of(kind: HealthKind) -> HealthCheck {
        HealthCheck {
            kind,
            interval: HealthCheck::default_interval(),
            timeout: None,
            rise: HealthCheck::default_rise(),
            fall: HealthCheck::default_fall(),
            port: None,
            from: None,
            method: None,
            path: None,
            host: None,
            status: None,
            body: None,
            verify: None,
            ca: None,
            send: None,
            expect: None,
        }
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(self.interval.duration() / 2, Period::duration)
    }

    /// The address to ask from, of the family of `dst`, if one is named.
    pub fn source_for(&self, dst: IpAddr) -> Option<IpAddr> {
        let named = self.from.as_deref().unwrap_or_default();
        named.iter().map(|from| from.0).find(|from| from.is_ipv4() == dst.is_ipv4())
    }

    /// True if an answer with this status is a good one.
    pub fn accepts(&self, status: u16) -> bool {
        match &self.status {
            Some(ranges) => ranges.iter().any(|range| range.contains(status)),
            None => (200..=399).contains(&status),
        }
    }

    /// What no key shows by itself: `report` gets the key, its value and what is allowed.
    pub fn check(&self, report: &mut dyn FnMut(&'static str, Option<String>, String)) {
        if let Some(timeout) = self.timeout
            && timeout >= self.interval
        {
            let allowed = format!("shorter than the interval, {}", self.interval);
            report("timeout", Some(timeout.to_string()), allowed);
        }
        let (http, https, udp): (&[HealthKind], &[HealthKind], &[HealthKind]) =
            (&[HealthKind::Http, HealthKind::Https], &[HealthKind::Https], &[HealthKind::Udp]);
        let with_port = &[HealthKind::Tcp, HealthKind::Http, HealthKind::Https, HealthKind::Udp];
        let keys: [(&'static str, bool, &[HealthKind]); 10] = [
            ("port", self.port.is_some(), with_port),
            ("method", self.method.is_some(), http),
            ("path", self.path.is_some(), http),
            ("host", self.host.is_some(), http),
            ("status", self.status.is_some(), http),
            ("body", self.body.is_some(), http),
            ("verify", self.verify.is_some(), https),
            ("ca", self.ca.is_some(), https),
            ("send", self.send.is_some(), udp),
            ("expect", self.expect.is_some(), udp),
        ];
        for (key, is_set, kinds) in keys {
            if is_set && !kinds.contains(&self.kind) {
                let known: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                let allowed = format!("goes with type = {}, not {}", known.join(", "), self.kind.name());
                report(key, None, allowed);
            }
        }
        if self.body.as_ref().is_some_and(|body| body.is_empty()) {
            report(
                "body",
                Some(String::from("\"\"")),
                String::from("leave it out: every body has nothing in it"),
            );
        }
        if self.body.is_some() && self.method.as_ref().is_some_and(HttpMethod::has_no_body) {
            report("body", None, String::from("the answer to HEAD has no body (RFC 9110 section 9.3.2)"));
        }
        match (self.kind, self.verify, &self.ca) {
            (HealthKind::Https, Some(true), None) => {
                report("verify", Some(String::from("true")), String::from("needs ca = \"FILE.pem\""));
            }
            (HealthKind::Https, None | Some(false), Some(_)) => {
                report("ca", None, String::from("needs verify = true"));
            }
            (HealthKind::Https, ..) => {
                let host = self.host.as_ref();
                if let Some(host) = host.filter(|host| ServerName::try_from(host.name()).is_err()) {
                    report("host", Some(host.0.clone()), String::from("TLS needs a DNS name or an address"));
                }
            }
            _ => {}
        }
        let families = |is_v4: bool| {
            self.from.as_deref().unwrap_or_default().iter().filter(|from| from.0.is_ipv4() == is_v4).count()
        };
        if families(true) > 1 || families(false) > 1 {
            report("from", None, String::from("one address, or one of IPv4 and one of IPv6"));
        }
    }
}

/// A time: `"500ms"`, `"2s"`, `"1m"`; 10 milliseconds to 1 hour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period(u32);

impl Period {
    const ALLOWED: &str = "a time is 10ms to 1h: \"500ms\", \"2s\", \"1m\"";

    /// Checks and takes milliseconds.
    pub fn from_millis(millis: u32) -> Result<Period, NotAllowed> {
        match millis {
            10..=3_600_000 => Ok(Period(millis)),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }

    /// The same, for defaults.
    pub(super) const fn constant(millis: u32) -> Period {
        assert!(millis >= 10 && millis <= 3_600_000, "within the range");
        Period(millis)
    }

    /// The time.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }
}

impl FromStr for Period {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Period, NotAllowed> {
        const UNITS: [(&str, u32); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, millis)| *millis);
        let millis =
            number.parse().ok().zip(unit).and_then(|(number, unit): (u32, u32)| number.checked_mul(unit));
        Period::from_millis(millis.unwrap_or(0))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            millis if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            millis if millis.is_multiple_of(1000) => write!(f, "{}s", millis / 1000),
            millis => write!(f, "{millis}ms"),
        }
    }
}

impl fmt::Debug for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes: text as it is, or `hex:` and pairs of hexadecimal digits; at most 512.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// What an IPv4 datagram carries that every host has to take (RFC 791), with some room for options.
    pub const MOST: usize = 512;
    const ALLOWED: &str = "text or hex:00ff, at most 512 bytes";

    /// Checks and takes bytes.
    pub fn new(bytes: &[u8]) -> Result<Bytes, NotAllowed> {
        match bytes.len() {
            0..=Self::MOST => Ok(Bytes(bytes.to_vec())),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Bytes {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Bytes, NotAllowed> {
        let Some(digits) = text.strip_prefix("hex:") else { return Bytes::new(text.as_bytes()) };
        let bad = || NotAllowed::new("hex: is followed by pairs of hexadecimal digits");
        if !digits.len().is_multiple_of(2) || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or_default());
        let bytes: Result<Vec<u8>, _> = pairs.map(|pair| u8::from_str_radix(pair, 16)).collect();
        Bytes::new(&bytes.map_err(|_| bad())?)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with("hex:") => f.write_str(text),
            _ => {
                f.write_str("hex:")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The method of an HTTP request: a token of capital letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpMethod(String);

impl HttpMethod {
    const ALLOWED: &str = "a method is 1 to 16 capital letters: GET, HEAD, OPTIONS";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn has_no_body(&self) -> bool {
        self.0 == "HEAD"
    }
}

impl FromStr for HttpMethod {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<HttpMethod, NotAllowed> {
        match text.len() {
            // CONNECT would make a tunnel of the connection (RFC 9110 section 9.3.6).
            1..=16 if text.bytes().all(|b| b.is_ascii_uppercase()) && text != "CONNECT" => {
                Ok(HttpMethod(text.into()))
            }
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }
}

/// Path and query of an HTTP request (RFC 9112 section 3.2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpPath(String);

impl HttpPath {
    const ALLOWED: &str = "a path begins with / and has at most 256 visible ASCII characters, others as %20";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HttpPath {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<HttpPath, NotAllowed> {
        // A fragment is never sent (RFC 9110 section 7.1).
        let legal = |b: u8| b.is_ascii_graphic() && b != b'#';
        match text.len() {
            1..=256 if text.starts_with('/') && text.bytes().all(legal) => Ok(HttpPath(text.into())),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }
}

/// The host that an HTTP request asks for, `shop.example`, `shop.example:8080`, `[2001:db8::1]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpHost(String);

impl HttpHost {
    const ALLOWED: &str = "a host is 1 to 255 characters of a-z A-Z 0-9 . - _ : [ ]";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without port and brackets: what TLS calls the server.
    pub fn name(&self) -> &str {
        match self.0.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.0.split(':').next().unwrap_or(&self.0),
        }
    }
}

impl FromStr for HttpHost {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<HttpHost, NotAllowed> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        match text.len() {
            1..=255 if text.bytes().all(legal) => Ok(HttpHost(text.into())),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }
}

/// A status, or a range of them: `200`, `"200-299"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

impl StatusRange {
    const ALLOWED: &str = "a status is 100 to 599, a range FIRST-LAST";

    /// True if the status is in it.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

impl FromStr for StatusRange {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<StatusRange, NotAllowed> {
        let status = |text: &str| match text.parse() {
            Ok(status @ 100..=599) if text.len() == 3 => Ok(status),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (status(first)?, status(last)?);
        match first <= last {
            true => Ok(StatusRange { first, last }),
            false => Err(NotAllowed::because(format!("{last} is before {first}"))),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StatusRange, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = StatusRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(StatusRange::ALLOWED)
            }
            fn visit_i64<E: de::Error>(self, status: i64) -> Result<StatusRange, E> {
                self.visit_str(&status.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// An address of the gateway to ask from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnAddress(pub IpAddr);

impl FromStr for OwnAddress {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<OwnAddress, NotAllowed> {
        match text.parse() {
            Ok(addr) if !IpAddr::is_unspecified(&addr) && !addr.is_multicast() => Ok(OwnAddress(addr)),
            _ => Err(NotAllowed::new("an address of the gateway")),
        }
    }
}

/// Values that are written as text and read through their own door.
macro_rules! as_text {
    ($($value:ty: $allowed:expr, $text:expr;)*) => {$(
        impl Serialize for $value {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let text: fn(&$value) -> String = $text;
                serializer.serialize_str(&text(self))
            }
        }

        impl<'de> Deserialize<'de> for $value {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$value, D::Error> {
                from_text(deserializer, $allowed)
            }
        }
    )*};
}

as_text! {
    Period: Period::ALLOWED, |period| period.to_string();
    Bytes: Bytes::ALLOWED, |bytes| bytes.to_string();
    HttpMethod: HttpMethod::ALLOWED, |method| method.0.clone();
    HttpPath: HttpPath::ALLOWED, |path| path.0.clone();
    HttpHost: HttpHost::ALLOWED, |host| host.0.clone();
    OwnAddress: "an address of the gateway", |from| from.0.to_string();
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::error::ConfigErrors;
    use crate::config::read::Source;

    /// Every fault of a check, as it would stand in the table `health`.
    fn faults(keys: &str) -> Vec<String> {
        let (text, mut errors) = (format!("[health]\n{keys}\n"), ConfigErrors::default());
        let source = Source::parse(&text, "gw.toml", &mut errors);
        if let Some(check) = source.single::<HealthCheck>("health", &mut errors) {
            check.check(&mut |key, value, allowed| {
                errors.push(source.error(&format!("health.{key}"), value, allowed));
            });
        }
        errors.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_may_be_typed() {
        for keys in [
            "type = \"tcp\"",
            "type = \"tcp\"\ninterval = \"1s\"\ntimeout = \"999ms\"\nrise = 1\nfall = 100\nport = 8081",
            "type = \"http\"\nmethod = \"HEAD\"\npath = \"/up?a=%20\"\nhost = \"shop.example:81\"\nstatus = 204",
            "type = \"https\"\nverify = true\nca = \"ca.pem\"\nhost = \"shop.example\"",
            "type = \"http\"\nstatus = [200, \"300-399\"]\nbody = \"fine\"",
            "type = \"udp\"\nsend = \"hex:00FF\"\nexpect = \"ok\"",
            "type = \"icmp\"\nfrom = [\"10.0.0.1\", \"2001:db8::1\"]",
        ] {
            assert_eq!(faults(keys), Vec::<String>::new(), "{keys}");
            let check: HealthCheck = toml::from_str(keys).expect(keys);
            let again = toml::to_string(&check).expect("plain values");
            assert_eq!(toml::from_str::<HealthCheck>(&again).expect(&again), check);
        }
    }

    #[test]
    fn what_is_left_out() {
        let check: HealthCheck = toml::from_str("type = \"http\"").expect("a check");
        assert_eq!(check, HealthCheck::of(HealthKind::Http));
        assert_eq!(
            (check.interval.duration(), check.timeout()),
            (Duration::from_secs(2), Duration::from_secs(1))
        );
        assert_eq!((check.rise.get(), check.fall.get()), (2, 3));
        let accepted: Vec<bool> =
            [199, 200, 399, 400].into_iter().map(|status| check.accepts(status)).collect();
        assert_eq!(accepted, [false, true, true, false]);
    }

    #[test]
    fn faults_name_their_key() {
        let cases: [(&str, &str); 19] = [
            ("interval = \"1s\"", "gw.toml:1: health: the key type is missing"),
            ("type = \"ping\"", "gw.toml:2: health.type: \"ping\": allowed: tcp, http, https, udp, icmp"),
            ("type = \"https\"\nverify = true", "gw.toml:3: health.verify: true: needs ca = \"FILE.pem\""),
            (
                "type = \"https\"\nhost = \"a..b:443\"",
                "gw.toml:3: health.host: a..b:443: TLS needs a DNS name or an address",
            ),
            ("type = \"https\"\nca = \"x.pem\"", "gw.toml:3: health.ca: needs verify = true"),
            (
                "type = \"tcp\"\ninterval = \"5\"",
                "gw.toml:3: health.interval: \"5\": a time is 10ms to 1h: \"500ms\", \"2s\", \"1m\"",
            ),
            (
                "type = \"tcp\"\ninterval = \"2h\"",
                "gw.toml:3: health.interval: \"2h\": a time is 10ms to 1h: \"500ms\", \"2s\", \"1m\"",
            ),
            (
                "type = \"tcp\"\ninterval = \"60s\"\ntimeout = \"60000ms\"",
                "gw.toml:4: health.timeout: 1m: shorter than the interval, 1m",
            ),
            ("type = \"tcp\"\nfall = 0", "gw.toml:3: health.fall: 0: allowed is 1 to 100"),
            (
                "type = \"tcp\"\npath = \"/up\"",
                "gw.toml:3: health.path: goes with type = http, https, not tcp",
            ),
            (
                "type = \"icmp\"\nport = 80",
                "gw.toml:3: health.port: goes with type = tcp, http, https, udp, not icmp",
            ),
            (
                "type = \"http\"\npath = \"up\"",
                "gw.toml:3: health.path: \"up\": a path begins with / and has at most 256 visible ASCII characters, others as %20",
            ),
            (
                "type = \"http\"\nhost = \"a b\"",
                "gw.toml:3: health.host: \"a b\": a host is 1 to 255 characters of a-z A-Z 0-9 . - _ : [ ]",
            ),
            (
                "type = \"http\"\nstatus = [200, 600]",
                "gw.toml:3: health.status[1]: 600: a status is 100 to 599, a range FIRST-LAST",
            ),
            (
                "type = \"http\"\nstatus = \"300-200\"",
                "gw.toml:3: health.status: \"300-200\": 200 is before 300",
            ),
            (
                "type = \"http\"\nmethod = \"HEAD\"\nbody = \"a\"",
                "gw.toml:4: health.body: the answer to HEAD has no body (RFC 9110 section 9.3.2)",
            ),
            (
                "type = \"udp\"\nsend = \"hex:0\"",
                "gw.toml:3: health.send: \"hex:0\": hex: is followed by pairs of hexadecimal digits",
            ),
            (
                "type = \"tcp\"\nfrom = [\"10.0.0.1\", \"10.0.0.2\"]",
                "gw.toml:3: health.from: one address, or one of IPv4 and one of IPv6",
            ),
            (
                "type = \"tcp\"\nfrom = \"0.0.0.0\"",
                "gw.toml:3: health.from: \"0.0.0.0\": an address of the gateway",
            ),
        ];
        for (keys, expected) in cases {
            assert_eq!(faults(keys), [expected], "{keys}");
        }
        assert_eq!(faults(&format!("type = \"udp\"\nsend = \"{}\"", "x".repeat(513))).len(), 1);
    }
}
