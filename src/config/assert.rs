//! `[[assert]]`: what has to be true of the whole config.
//!
//! Asserted of the compiled tables when a config is checked and before every commit; one that does not hold refuses it.

use std::fmt;
use std::str::FromStr;

use ahash::{AHashMap, AHashSet};
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::addresses::{AddressRange, NatTarget};
use super::check::{Checks, list};
use super::packet::PacketText;
use super::reach::{ReachFrom, ReachTo};
use super::value::{InterfaceName, NotAllowed, RuleName, ZoneName, from_text};

/// `[[assert]]`: one of `packet`, `reach` and `isolated`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assert {
    /// What it says, in the operator's words.
    pub name: String,
    /// The first packet of a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<PacketText>,
    /// Where the packet comes in, if it does not say so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// Hosts of which at least one can begin a session to something; with `verdict = "deny"` none can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
    /// Zones of which none can begin a session to another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub isolated: Vec<ZoneName>,
    /// What becomes of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expect: Expect,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `{ from = "zone blue", to = "10.0.9.9 tcp/5432" }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Who.
    pub from: ReachFrom,
    /// What.
    pub to: ReachTo,
}

/// What is expected of a packet; what is absent does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// What is done with it; absent: `allow`.
    pub verdict: Expected,
    /// The rule that decides; `default`: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// The addresses that it may leave with, or `none`: its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snat: Option<Snat>,
    /// Where destination NAT or a service leads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnat: Option<NatTarget>,
    /// The service that balances it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<RuleName>,
    /// The backend that it gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<NatTarget>,
    /// The interface it leaves by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<InterfaceName>,
    /// The zone it goes to; `self`: the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// It goes on, or is taken by the gateway.
    #[default]
    Allow,
    /// It does not, for whatever reason.
    Deny,
    /// It does not, and its sender is told so by a rule.
    Reject,
}

/// `"203.0.113.0/30"` or `"none"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snat {
    /// Its own.
    None,
    /// One of these.
    Within(AddressRange),
}

impl Snat {
    const ALLOWED: &str =
        "an address, a prefix or a range that holds all outside addresses it may get, or none";
}

impl FromStr for Snat {
    type Err = NotAllowed;
    fn from_str(text: &str) -> Result<Snat, NotAllowed> {
        match text {
            "none" => Ok(Snat::None),
            text => text.parse().map(Snat::Within).map_err(|_| NotAllowed::new(Snat::ALLOWED)),
        }
    }
}

impl fmt::Display for Snat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Snat::None => f.write_str("none"),
            Snat::Within(range) => write!(f, "{range}"),
        }
    }
}

impl Serialize for Snat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Snat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Snat, D::Error> {
        from_text(deserializer, Snat::ALLOWED)
    }
}

impl Assert {
    /// Most of them: so many are asked in a second, most of all before every commit.
    pub const MAX: usize = 1000;
    /// Longest name.
    const NAME_BYTES: usize = 120;
    /// Zones that one says to be apart.
    const MAX_ZONES: usize = 32;

    /// The packet, with the interface that the assertion names.
    pub fn packet(&self) -> Option<PacketText> {
        let packet = self.packet.clone()?;
        Some(PacketText { interface: packet.interface.or_else(|| self.interface.clone()), ..packet })
    }
}

impl Checks<'_, '_> {
    pub(super) fn asserts(&mut self) {
        let config = self.config;
        if config.asserts.len() > Assert::MAX {
            let allowed = format!("at most {} assertions, not {}", Assert::MAX, config.asserts.len());
            self.table_fault(format!("assert[{}]", Assert::MAX), allowed);
            return;
        }
        let zones: AHashSet<&str> =
            config.zones_of_ends().map(|zone| zone.as_str()).chain([super::Side::SELF]).collect();
        let interfaces: AHashSet<&InterfaceName> =
            config.interfaces.iter().map(|interface| &interface.name).collect();
        let members: AHashSet<InterfaceName> = config
            .bridges
            .iter()
            .flat_map(|bridge| bridge.members.iter().map(|member| member.name(&bridge.name)))
            .collect();
        let mut names: AHashMap<&str, usize> = AHashMap::new();
        for (index, assert) in config.asserts.iter().enumerate() {
            let key = |key: &str| format!("assert[{index}].{key}");
            if assert.name.trim().is_empty()
                || assert.name.len() > Assert::NAME_BYTES
                || assert.name.chars().any(char::is_control)
            {
                self.fault(key("name"), &assert.name, "one line of 1 to 120 bytes");
            }
            if let Some(other) = names.insert(&assert.name, index) {
                self.fault(key("name"), &assert.name, format!("already the name of assert[{other}]"));
            }
            let kinds = [assert.packet.is_some(), assert.reach.is_some(), !assert.isolated.is_empty()];
            if kinds.iter().filter(|is_there| **is_there).count() != 1 {
                let allowed = "an assertion has one of packet, reach and isolated";
                self.table_fault(format!("assert[{index}]"), allowed);
                continue;
            }
            let own = assert.packet.as_ref().and_then(|packet| packet.interface.as_ref());
            let to = assert.packet.as_ref().and_then(|packet| packet.to.as_ref());
            let of_reach = assert.reach.as_ref().and_then(|reach| reach.from.interface.as_ref());
            let named = [
                ("interface", assert.interface.as_ref()),
                ("packet", own),
                ("packet", to),
                ("reach.from", of_reach),
                ("expect.egress", assert.expect.egress.as_ref()),
            ];
            for (at, name) in named {
                let is_known = |name: &InterfaceName| interfaces.contains(name) || members.contains(name);
                if let Some(name) = name.filter(|name| !is_known(name)) {
                    self.fault(
                        key(at),
                        name,
                        format!(
                            "no such interface; known: {}",
                            list(config.interfaces.iter().map(|interface| &interface.name).chain(&members))
                        ),
                    );
                }
            }
            if assert.interface.is_some() && (own.is_some() || assert.packet.is_none()) {
                self.table_fault(
                    key("interface"),
                    "says where a packet comes in that does not say so itself",
                );
            }
            if !assert.isolated.is_empty() && !(2..=Assert::MAX_ZONES).contains(&assert.isolated.len()) {
                self.table_fault(key("isolated"), "names 2 to 32 zones");
            }
            let (from, to) = assert
                .reach
                .as_ref()
                .map_or((None, None), |reach| (reach.from.zone.as_ref(), reach.to.zone.as_ref()));
            let of_reach =
                [("reach.from", from), ("reach.to", to), ("expect.zone", assert.expect.zone.as_ref())];
            let isolated = assert.isolated.iter().map(|zone| ("isolated", Some(zone)));
            for (at, zone) in of_reach.into_iter().chain(isolated) {
                if let Some(zone) = zone.filter(|zone| !zones.contains(zone.as_str())) {
                    let allowed = "no interface, nor a member of a bridge, has this zone";
                    self.fault(key(at), zone, allowed);
                }
            }
            let is_only_verdict =
                Expect { verdict: assert.expect.verdict, ..Expect::default() } == assert.expect;
            let says_too_much = match (&assert.packet, assert.expect.verdict) {
                (Some(_), Expected::Allow) => false,
                (Some(_), _) => {
                    Expect { rule: None, ..assert.expect.clone() }
                        != Expect { verdict: assert.expect.verdict, ..Expect::default() }
                }
                (None, Expected::Reject) => true,
                (None, _) => !is_only_verdict,
            };
            if says_too_much {
                let allowed = "of what does not pass, verdict and rule can be expected; of reach a verdict of allow or deny";
                self.table_fault(key("expect"), allowed);
            }
            if !assert.isolated.is_empty() && assert.expect != Expect::default() {
                self.table_fault(key("expect"), "isolated says all");
            }
        }
    }
}
