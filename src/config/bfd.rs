//! `[[bfd]]`: sessions with neighbours that say within some ten milliseconds whether packets get there and back
//! (RFC 5880, RFC 5881).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::value::{InterfaceName, NotAllowed, Ranged, from_text};

/// `[[bfd]]`: a session with a neighbour on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bfd {
    /// The neighbour.
    pub peer: IpAddr,
    /// Where it is.
    pub interface: InterfaceName,
    /// Time between packets, there and back, once both hear each other.
    #[serde(default)]
    pub interval: BfdInterval,
    /// How many packets may be missing.
    #[serde(default = "Bfd::default_multiplier")]
    pub multiplier: Ranged<1, 255>,
}

impl Bfd {
    /// Most sessions of a config: at the shortest interval 25,600 packets a second each way, a share of one CPU.
    pub const MAX: usize = 256;

    fn default_multiplier() -> Ranged<1, 255> {
        Ranged::constant(3)
    }
}

/// A time between packets, 10 milliseconds to 10 seconds: `"50ms"`, `"16.7ms"`, `"1s"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BfdInterval(u32);

impl BfdInterval {
    const ALLOWED: &str = "an interval is 10ms to 10s: \"50ms\", \"16.7ms\", \"1s\"";

    /// Checks and takes microseconds.
    pub fn from_micros(micros: u32) -> Result<BfdInterval, NotAllowed> {
        match micros {
            10_000..=10_000_000 => Ok(BfdInterval(micros)),
            _ => Err(NotAllowed::new(Self::ALLOWED)),
        }
    }

    /// In microseconds, as the packets have it.
    pub fn micros(self) -> u32 {
        self.0
    }

    /// The time.
    pub fn duration(self) -> Duration {
        Duration::from_micros(self.0.into())
    }
}

impl Default for BfdInterval {
    /// 300 ms: what most routers do by themselves.
    fn default() -> BfdInterval {
        BfdInterval(300_000)
    }
}

impl FromStr for BfdInterval {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<BfdInterval, NotAllowed> {
        let micros = || {
            let (number, unit) = match text.strip_suffix("ms") {
                Some(number) => (number, 3),
                None => (text.strip_suffix('s')?, 6),
            };
            // Whole microseconds: digits behind the point as far as the unit has any.
            let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
            let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            if !is_number(whole) || !is_number(part) || part.len() > unit {
                return None;
            }
            format!("{whole}{part:0<unit$}").parse().ok()
        };
        BfdInterval::from_micros(micros().unwrap_or(0))
    }
}

impl fmt::Display for BfdInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros if micros.is_multiple_of(1_000_000) => write!(f, "{}s", micros / 1_000_000),
            micros if micros.is_multiple_of(1000) => write!(f, "{}ms", micros / 1000),
            micros => {
                let part = format!("{:03}", micros % 1000);
                write!(f, "{}.{}ms", micros / 1000, part.trim_end_matches('0'))
            }
        }
    }
}

impl fmt::Debug for BfdInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BfdInterval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BfdInterval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BfdInterval, D::Error> {
        from_text(deserializer, BfdInterval::ALLOWED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_to_the_microsecond_and_written_again() {
        for (text, micros) in [
            ("50ms", 50_000),
            ("16.7ms", 16_700),
            ("16.667ms", 16_667),
            ("10ms", 10_000),
            ("1s", 1_000_000),
            ("10s", 10_000_000),
        ] {
            let read: BfdInterval = text.parse().expect(text);
            assert_eq!((read.micros(), read.to_string()), (micros, text.to_owned()));
        }
        assert_eq!("0.05s".parse::<BfdInterval>().expect("a time").to_string(), "50ms");
        for text in
            ["9.999ms", "10.001s", "16.7", "16,7ms", "16.6667ms", "ms", ".5s", "5.s", "-1s", "50us", ""]
        {
            assert!(text.parse::<BfdInterval>().is_err(), "{text}");
        }
    }
}
