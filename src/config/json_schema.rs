//! What values look like in JSON (JSON Schema 2020-12) where they read and write themselves.
//!
//! A schema may allow more than a value's own door, never less: what it lets through is still refused there, with what is
//! allowed. The other types derive theirs from the very definitions that serde reads and writes.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::addresses::{AddressRange, Member, NatTarget, OneOrMore};
use super::balance::BackendKey;
use super::service::{Dscp, PortRange, Service, TcpFlag};
use super::value::{DeviceName, InterfaceAddress, Mac, Name, Prefix, Ranged, Vlan};
use super::{PacketText, ReachFrom, ReachTo};

/// Types that are a string in JSON: what the description calls them, what they say, and their pattern.
macro_rules! texts {
    ($($type:ty, $name:literal, $says:literal, $pattern:literal;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $says, "pattern": $pattern })
            }
        }
    )*};
}

texts! {
    Name, "Name", "1 to 32 characters of a-z 0-9 . _ -", "^[a-z0-9._/-]+$";
    DeviceName, "DeviceName", "A network device of the host", "^[^\\s/:]{1,15}$";
    Mac, "Mac", "02:00:00:00:00:01", "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$";
    Prefix, "Prefix", "10.0.1.0/24 or 2001:db8:1::/64, no host bits set", "^[0-9A-Fa-f:.]+/[0-9]{1,3}$";
    InterfaceAddress, "InterfaceAddress", "10.0.1.2/24 or 2001:db8:1::2/64", "^[0-9A-Fa-f:.]+/[0-9]{1,3}$";
    AddressRange, "AddressRange", "An address, a prefix (10.0.1.0/24) or a range (10.0.1.10-10.0.1.19)",
        "^[0-9A-Fa-f:.]+(/[0-9]{1,3}|-[0-9A-Fa-f:.]+)?$";
    Member, "Member", "An address, a prefix, a range, or group:NAME",
        "^(group:[a-z0-9._-]{1,32}|[0-9A-Fa-f:.]+(/[0-9]{1,3}|-[0-9A-Fa-f:.]+)?)$";
    NatTarget, "NatTarget", "ADDRESS, ADDRESS:PORT or [IPV6]:PORT", "^[\\[\\]0-9A-Fa-f:.]+$";
    BackendKey, "BackendKey", "ADDRESS, ADDRESS:PORT or [IPV6]:PORT, with @VRF if it names one",
        "^[\\[\\]0-9A-Fa-f:.]+(@[a-z0-9._-]{1,32})?$";
    PortRange, "PortRange", "443 or 1000-2000", "^[0-9]{1,5}(-[0-9]{1,5})?$";
    Service, "Service", "any, tcp/443, udp/1000-2000, icmp/echo-request, esp, proto/89", "^[a-z0-9]+(/[a-z0-9-]+)?$";
    PacketText, "Packet", "tcp 10.0.1.5:40000 > 198.51.100.7:443 from lan", "^.+$";
    ReachFrom, "ReachFrom", "zone blue, interface lan 10.0.1.0/24, any", "^.+$";
    ReachTo, "ReachTo", "10.0.9.9 tcp/5432, zone green", "^.+$";
    Dscp, "Dscp", "0 to 63, or the name of a class: cs0, af11, ef", "^[a-z0-9-]+$";
    TcpFlag, "TcpFlag", "A flag that must be set, syn, or must not be, !ack", "^!?[a-z]{3}$";
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Ranged<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("From{MIN}To{MAX}").into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl JsonSchema for Vlan {
    fn schema_name() -> Cow<'static, str> {
        "Vlan".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let vid = json_schema!({ "type": "integer", "minimum": 1, "maximum": 4094 });
        json_schema!({
            "description": "A VLAN ID, or [outer, inner] for QinQ",
            "oneOf": [vid, { "type": "array", "items": vid, "minItems": 2, "maxItems": 2 }],
        })
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMore<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMore{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Neighbour, Rule};

    /// What a type's own `Serialize` writes has the form its schema says, as far as the form is a pattern here.
    #[test]
    fn derived_schemas_name_the_very_keys_that_serde_reads() {
        let schema = |schema: Schema| schema.to_value();
        let neighbour = schema(schemars::schema_for!(Neighbour));
        let keys: Vec<&String> = neighbour["properties"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["address", "interface", "mac", "remote"]);
        assert_eq!(neighbour["additionalProperties"], false);
        let rule = schema(schemars::schema_for!(Rule));
        assert_eq!(rule["required"], serde_json::json!(["name", "action"]));
        assert_eq!(schema(schemars::schema_for!(Ranged<1, 9>))["maximum"], 9);
    }
}
