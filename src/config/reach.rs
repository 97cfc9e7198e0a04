//! Who is asked about when it is asked who can reach what: `zone blue`, `10.0.9.9 tcp/5432`.

use std::fmt;
use std::str::FromStr;

use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::addresses::AddressRange;
use super::service::Service;
use super::value::{InterfaceName, Name, NotAllowed, VrfName, ZoneName, from_text};

/// Hosts that may begin a session. What is absent is any; what is there must all be true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReachFrom {
    /// In this zone.
    pub zone: Option<ZoneName>,
    /// Behind this interface, or this member of a bridge.
    pub interface: Option<InterfaceName>,
    /// In this VRF.
    pub vrf: Option<VrfName>,
    /// With these addresses.
    pub addresses: Option<AddressRange>,
}

/// What they reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachTo {
    /// What ends up in this zone; `self` is the gateway.
    pub zone: Option<ZoneName>,
    /// These addresses, as the hosts know them.
    pub addresses: Option<AddressRange>,
    /// Protocol and destination ports.
    pub service: Service,
}

impl ReachFrom {
    const ALLOWED: &str = "hosts are any, or some of: zone NAME, interface NAME, vrf NAME, and an address, prefix or \
                           range: \"zone blue 10.0.1.0/24\"";
}

impl ReachTo {
    const ALLOWED: &str = "write addresses or zone NAME, and a service if not any is meant: \"10.0.9.9 tcp/5432\", \
                           \"zone green\", \"zone self tcp/22\"";
}

impl FromStr for ReachFrom {
    type Err = NotAllowed;

    fn from_str(text: &str) -> Result<ReachFrom, NotAllowed> {
        let allowed = || NotAllowed::new(ReachFrom::ALLOWED);
        let mut from = ReachFrom::default();
        let mut words = text.split_whitespace();
        let mut is_empty = true;
        while let Some(word) = words.next() {
            is_empty = false;
            match word {
                "any" => {}
                "zone" => from.zone = Some(words.next().ok_or_else(allowed)?.parse()?),
                "interface" => from.interface = Some(Name::of_end(words.next().ok_or_else(allowed)?)?),
                "vrf" => from.vrf = Some(words.next().ok_or_else(allowed)?.parse()?),
                word => from.addresses = Some(word.parse().map_err(|_| allowed())?),
            }
        }
        if is_empty { Err(allowed()) } else { Ok(from) }
    }
}

impl FromStr for ReachTo {
    type Err = NotAllowed;

    fn from_str(text: &str) -> Result<ReachTo, NotAllowed> {
        let allowed = || NotAllowed::new(ReachTo::ALLOWED);
        let mut to = ReachTo { zone: None, addresses: None, service: Service::ANY };
        let mut words = text.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "zone" => to.zone = Some(words.next().ok_or_else(allowed)?.parse()?),
                word if word.parse::<AddressRange>().is_ok() => to.addresses = word.parse().ok(),
                word => to.service = word.parse()?,
            }
        }
        if to.zone.is_none() && to.addresses.is_none() { Err(allowed()) } else { Ok(to) }
    }
}

impl fmt::Display for ReachFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.as_ref().map(|name| format!("zone {name}"));
        let interface = self.interface.as_ref().map(|name| format!("interface {name}"));
        let vrf = self.vrf.as_ref().map(|name| format!("vrf {name}"));
        let addresses = self.addresses.map(|range| range.to_string());
        let words: Vec<String> = [zone, interface, vrf, addresses].into_iter().flatten().collect();
        f.write_str(&if words.is_empty() { "any".to_owned() } else { words.join(" ") })
    }
}

impl fmt::Display for ReachTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.as_ref().map(|name| format!("zone {name}"));
        let addresses = self.addresses.map(|range| range.to_string());
        let service = (self.service != Service::ANY).then(|| self.service.to_string());
        let words: Vec<String> = [zone, addresses, service].into_iter().flatten().collect();
        f.write_str(&words.join(" "))
    }
}

impl Serialize for ReachFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ReachTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReachFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ReachFrom, D::Error> {
        from_text(deserializer, ReachFrom::ALLOWED)
    }
}

impl<'de> Deserialize<'de> for ReachTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ReachTo, D::Error> {
        from_text(deserializer, ReachTo::ALLOWED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_read_as_they_are_written() {
        for text in [
            "any",
            "zone blue",
            "zone blue interface lan vrf red 10.0.1.0/24",
            "interface seg/lan.7",
            "2001:db8::/32",
        ] {
            assert_eq!(text.parse::<ReachFrom>().map(|from| from.to_string()).as_deref(), Ok(text));
        }
        for text in
            ["10.0.9.9 tcp/5432", "zone green", "zone self icmp/echo-request", "zone a 10.0.0.0/8 udp"]
        {
            assert_eq!(text.parse::<ReachTo>().map(|to| to.to_string()).as_deref(), Ok(text));
        }
        assert!("".parse::<ReachFrom>().is_err() && "zone".parse::<ReachFrom>().is_err());
        assert!("blue".parse::<ReachFrom>().is_err() && "tcp/22".parse::<ReachTo>().is_err());
    }
}
