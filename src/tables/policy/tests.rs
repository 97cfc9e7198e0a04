//! Policy against its twin: the config's rules, read one after the other.

use std::iter;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::{AddressRange, Config, Member, Rule, Service};
use crate::neighbours::NeighbourTable;
use crate::packet::hash::Key;
use crate::tables::compile::Compiler;
use crate::tables::news::News;

const INTERFACES: &str = r#"
schema = 1
[[port]]
name = "p"
device = "eth1"
[[interface]]
name = "a1"
port = "p"
vlan = 1
zone = "a"
addresses = ["10.1.0.1/16", "2001:db8:1::1/64"]
[[interface]]
name = "a2"
port = "p"
vlan = 2
zone = "a"
addresses = ["10.2.0.1/16"]
[[interface]]
name = "b"
port = "p"
vlan = 3
zone = "b"
addresses = ["203.0.113.2/24", "2001:db8:2::1/64"]
[[interface]]
name = "t"
port = "p"
vlan = 4
zone = "a"
vrf = "tenant"
addresses = ["10.1.0.1/16"]
"#;

/// Slots, in the order of the config.
const A1: u16 = 0;
const A2: u16 = 1;
const B: u16 = 2;
const ZONE_A: u8 = 1;
const ZONE_B: u8 = 2;

fn compiled(rules: &str) -> (Config, Compiler, Policy) {
    let text = format!("{INTERFACES}{rules}");
    let config = Config::parse(&text, "gw.toml").unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let mut compiler = Compiler::new(Arc::new(NeighbourTable::new(16, 16, Key::default())), Key::default());
    for interface in &config.interfaces {
        compiler.interface_slot(interface.name.as_str()).expect("a slot");
        compiler.policy_slots.zone(interface.zone.as_ref().expect("a zone").as_str()).expect("a slot");
    }
    let policy = policy(&config, &mut compiler).expect("a policy");
    (config, compiler, policy)
}

fn question(src: &str, dst: &str, protocol: u8, dst_port: u16) -> Question {
    Question {
        vrf: 0,
        ingress: A1,
        src: src.parse().expect("an address"),
        dst: dst.parse().expect("an address"),
        protocol,
        src_port: 40_000,
        dst_port,
        dscp: 0,
        tcp_flags: 2,
        icmp_type: 0,
    }
}

/// The first rule that matches, by reading them all.
fn twin(config: &Config, asked: &Asked<'_>) -> Option<usize> {
    let zones = ["-", "a", "b"];
    let name = |zone: u8| if zone == SELF { "self" } else { zones[usize::from(zone)] };
    let interface =
        |slot: u16| config.interfaces.get(usize::from(slot)).map(|interface| interface.name.as_str());
    let question = asked.question;
    fn in_group(config: &Config, group: &str, addr: IpAddr) -> bool {
        let group = config.groups.iter().find(|known| known.name.as_str() == group).expect("a group");
        group.members.iter().any(|member| match member {
            Member::Addresses(range) => range.contains(addr),
            Member::Group(inner) => in_group(config, inner.as_str(), addr),
        })
    }
    let side = |side: &crate::config::Side, addr: IpAddr, zone: u8, slot: u16, vrf: u16| {
        side.zone.as_ref().is_none_or(|wanted| wanted.as_str() == name(zone))
            && side.interface.as_ref().is_none_or(|wanted| Some(wanted.as_str()) == interface(slot))
            && side
                .vrf
                .as_ref()
                .is_none_or(|wanted| wanted.as_str() == ["default", "tenant"][usize::from(vrf)])
            && side.group.as_ref().is_none_or(|group| in_group(config, group.as_str(), addr))
            && side.prefix.as_ref().is_none_or(|list| list.iter().any(|range| range.contains(addr)))
    };
    let service = |service: &Service| {
        service.protocol().is_none_or(|protocol| protocol == question.protocol)
            && service.ports().is_none_or(|ports| ports.contains(question.dst_port))
            && service.icmp_type().is_none_or(|icmp_type| icmp_type == question.icmp_type)
    };
    let matches = |rule: &Rule| {
        side(&rule.from, question.src, asked.from_zone, question.ingress, question.vrf)
            && side(&rule.to, question.dst, asked.to_zone, asked.egress, asked.to_vrf)
            && rule.service.as_ref().is_none_or(|list| list.iter().any(service))
            && rule.source_ports.as_ref().is_none_or(|l| l.iter().any(|p| p.contains(question.src_port)))
            && rule.dscp.as_ref().is_none_or(|list| list.iter().any(|dscp| dscp.get() == question.dscp))
            && rule
                .tcp_flags
                .as_ref()
                .is_none_or(|list| list.iter().all(|flag| (question.tcp_flags & flag.bit != 0) == flag.set))
    };
    config.admin_rules.iter().chain(&config.rules).position(|rule| matches(rule))
}

const GROUPS: &str = r#"
[[group]]
name = "g"
members = ["10.1.0.0/24", "10.1.0.128-10.1.1.7", "2001:db8:1::/120", "group:h"]
[[group]]
name = "h"
members = ["10.1.2.0/28", "10.1.0.3"]
"#;

fn maybe(strategy: impl Strategy<Value = String> + 'static) -> BoxedStrategy<String> {
    prop_oneof![Just(String::new()), strategy].boxed()
}

fn one_of(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::sample::select(values).prop_map(str::to_owned)
}

/// `from = { ... }` or `to = { ... }`.
fn side(key: &'static str, zones: &'static [&'static str]) -> impl Strategy<Value = String> {
    let prefixes: &[&str] = &[
        "prefix = \"10.1.0.0/16\"",
        "prefix = [\"10.1.0.0/25\", \"10.1.2.1\"]",
        "prefix = \"10.1.0.0/32\"",
        "prefix = [\"10.1.0.0/30\", \"2001:db8:1::/126\"]",
        "group = \"g\"",
        "group = \"h\"",
        "prefix = [\"10.1.0.0\", \"10.1.0.2\", \"10.1.0.4\", \"10.1.0.6\", \"10.1.0.8\", \"10.1.1.1\", \
         \"10.1.1.3\", \"10.1.1.5\", \"10.1.1.7\"]",
        "group = \"g\", prefix = \"10.1.0.0/29\"",
    ];
    (maybe(one_of(zones)), maybe(one_of(prefixes))).prop_map(move |(zone, prefix)| {
        let parts: Vec<String> = [zone, prefix].into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { String::new() } else { format!("{key} = {{ {} }}\n", parts.join(", ")) }
    })
}

fn rule() -> impl Strategy<Value = String> {
    let from = side(
        "from",
        &["zone = \"a\"", "zone = \"b\"", "interface = \"a1\"", "vrf = \"tenant\"", "vrf = \"default\""],
    );
    let to = side(
        "to",
        &["zone = \"a\"", "zone = \"b\"", "zone = \"self\"", "interface = \"b\"", "vrf = \"default\""],
    );
    let service = maybe(one_of(&[
        "service = \"tcp/80\"\n",
        "service = [\"tcp/80-90\", \"udp\"]\n",
        "service = \"icmp/echo-request\"\n",
        "service = \"icmpv6/128\"\n",
        "service = \"tcp\"\ntcp_flags = [\"syn\", \"!ack\"]\n",
        "service = \"udp/53\"\nsource_ports = [\"1-5\", \"40000-40001\"]\n",
    ]));
    let dscp = maybe(one_of(&["dscp = [46, \"cs1\"]\n", "dscp = 0\n"]));
    (from, to, service, dscp)
        .prop_map(|(from, to, service, dscp)| format!("action = \"allow\"\n{from}{to}{service}{dscp}"))
}

/// The config check refuses rules of which the families never meet.
fn is_legal(rule: &str) -> bool {
    let text = format!("{INTERFACES}{GROUPS}[[rule]]\nname = \"r\"\n{rule}");
    Config::parse(&text, "gw.toml").is_ok()
}

fn asked_one() -> impl Strategy<Value = (Question, u8, u8)> {
    let v4 = (0u32..4, 0u32..16).prop_map(|(high, low)| IpAddr::V4((0x0a01_0000 | high << 8 | low).into()));
    let v6 = (0u128..16).prop_map(|low| IpAddr::V6((0x2001_0db8_0001_u128 << 80 | low).into()));
    let pair = prop_oneof![
        3 => (v4.clone(), v4).prop_map(|pair| pair),
        1 => (v6.clone(), v6).prop_map(|pair| pair)
    ];
    let protocol = prop_oneof![Just(6u8), Just(17), Just(1), Just(58), Just(47)];
    let ports = (prop_oneof![Just(3u16), Just(40_000)], prop_oneof![Just(80u16), Just(85), Just(53)]);
    let first = (pair, protocol, ports, prop_oneof![Just(0u8), Just(8), Just(46)]);
    let rest = (prop_oneof![Just(2u8), Just(18)], prop_oneof![Just(8u8), Just(128)], 0u16..4, 0usize..4);
    (first, rest).prop_map(
        |(((src, dst), protocol, (src_port, dst_port), dscp), (tcp_flags, icmp_type, ingress, to))| {
            let vrf = u16::from(ingress == 3);
            let from_zone = if ingress == B { ZONE_B } else { ZONE_A };
            let question =
                Question { vrf, ingress, src, dst, protocol, src_port, dst_port, dscp, tcp_flags, icmp_type };
            (question, from_zone, [ZONE_A, ZONE_B, SELF, ZONE_A][to])
        },
    )
}

proptest! {
    #[test]
    fn the_first_rule_that_matches_decides(
        rules in proptest::collection::vec(rule().prop_filter("families", |rule| is_legal(rule)), 0..12),
        asked in proptest::collection::vec(asked_one(), 1..60),
    ) {
        let list: String = rules.iter().enumerate().map(|(at, rule)| {
            let table = if at % 3 == 2 { "admin_rule" } else { "rule" };
            format!("[[{table}]]\nname = \"r{at}\"\n{rule}")
        }).collect();
        let (config, compiler, policy) = compiled(&format!("{GROUPS}{list}"));
        let names: Vec<&str> =
            config.admin_rules.iter().chain(&config.rules).map(|rule| rule.name.as_str()).collect();
        for (question, from_zone, to_zone) in &asked {
            let egress = match *to_zone { ZONE_B => B, SELF => NO_INTERFACE, _ => A2 };
            let asked = Asked::new(question, *from_zone, (*to_zone, egress, 0));
            let ruling = policy.permit(&asked);
            let found = compiler.policy_slots.rules.names()[ruling.rule as usize].as_str();
            let expected = twin(&config, &asked).map_or("default", |at| names[at]);
            prop_assert_eq!(found, expected, "{:?}", asked);
        }
    }
}

#[test]
fn where_no_rule_matches_zones_decide() {
    let (_, _, policy) = compiled("");
    let action = |from, to, protocol| {
        policy.permit(&Asked::new(&question("10.1.0.5", "10.2.0.5", protocol, 80), from, (to, A2, 0))).action
    };
    assert_eq!(action(ZONE_A, ZONE_A, 6), Action::Allow);
    assert_eq!(action(ZONE_A, ZONE_B, 6), Action::Deny);
    assert_eq!(action(ZONE_A, ZONE_B, 1), Action::Deny);
    assert_eq!(action(ZONE_A, SELF, 1), Action::Allow);
    assert_eq!(action(ZONE_A, SELF, 58), Action::Allow);
    assert_eq!(action(ZONE_A, SELF, 6), Action::Deny);
    assert_eq!(action(SELF, ZONE_B, 6), Action::Allow);
    assert_eq!(action(ZONE_A, NO_ZONE, 6), Action::Deny);
}

const NAT: &str = r#"
[[nat.source]]
name = "office"
to = { prefix = "172.16.0.0/12" }
exempt = true
[[nat.source]]
name = "out"
from = { zone = "a" }
to = { zone = "b" }
pool = ["203.0.113.16/30"]
[[nat.source]]
name = "tenant"
from = { vrf = "tenant" }
pool = ["203.0.113.16/30"]
[[nat.destination]]
name = "all"
address = "203.0.113.9"
target = "10.1.0.9"
[[nat.destination]]
name = "udp"
address = "203.0.113.9"
service = "udp"
target = "10.1.0.10"
[[nat.destination]]
name = "range"
address = "203.0.113.9"
service = "udp/1000-2000"
target = "10.1.0.11"
[[nat.destination]]
name = "port"
address = "203.0.113.9"
service = ["tcp/2222", "tcp/2223"]
target = "10.1.0.12:22"
target_vrf = "tenant"
from = { prefix = "198.51.100.0/24" }
[[nat.static]]
outside = "203.0.113.64/28"
inside = "10.1.5.16/28"
[[nat.static]]
outside = "203.0.113.100"
inside = "10.1.6.6"
"#;

#[test]
fn destinations_by_port_then_protocol_then_address() {
    let (_, compiler, policy) = compiled(NAT);
    let to = |src: &str, dst: &str, protocol, port| {
        let question = Question { ingress: B, ..question(src, dst, protocol, port) };
        policy.destination(&Asked::at_ingress(&question, ZONE_B)).expect("no NPTv6").map(|nat| {
            let rule = compiler.policy_slots.nat_rules.names()[usize::from(nat.rule)].clone();
            (nat.addr.to_string(), nat.port, nat.vrf, rule)
        })
    };
    let is = |addr: &str, port, vrf, rule: &str| Some((addr.to_owned(), port, vrf, rule.to_owned()));
    let (peer, server) = ("198.51.100.7", "203.0.113.9");
    assert_eq!(to(peer, server, 6, 2223), is("10.1.0.12", Some(22), 1, "destination/port"));
    // Not from elsewhere: the next that fits.
    assert_eq!(to("192.0.2.1", server, 6, 2223), is("10.1.0.9", None, 0, "destination/all"));
    assert_eq!(to(peer, server, 17, 1500), is("10.1.0.11", None, 0, "destination/range"));
    assert_eq!(to(peer, server, 17, 999), is("10.1.0.10", None, 0, "destination/udp"));
    assert_eq!(to(peer, server, 1, 7), is("10.1.0.9", None, 0, "destination/all"));
    assert_eq!(to(peer, "203.0.113.8", 6, 2222), None);
    assert_eq!(to(peer, "203.0.113.66", 6, 80), is("10.1.5.18", None, 0, "static/203.0.113.64/28"));
    assert_eq!(to(peer, "203.0.113.80", 6, 80), None);
}

#[test]
fn a_side_of_a_nat_rule_is_all_that_it_names() {
    let any =
        Side { zone: rules::ANY, interface: rules::ANY, vrf: rules::ANY, set: None, ranges: Vec::new() };
    let office: AddressRange = "10.1.0.0/24".parse().expect("a range");
    let groups = Groups::default();
    let is = |side: &Side, zone, interface, vrf, addr: &str| {
        side.is(&groups, addr.parse().expect("an address"), zone, interface, vrf)
    };
    assert!(is(&any, 3, 4, 5, "10.1.0.7"));
    let named = Side { zone: 3, interface: 4, vrf: 5, ranges: vec![office], ..any.clone() };
    assert!(is(&named, 3, 4, 5, "10.1.0.7"));
    assert!(!is(&named, 2, 4, 5, "10.1.0.7"), "of another zone");
    assert!(!is(&named, 3, 3, 5, "10.1.0.7"), "of another interface");
    assert!(!is(&named, 3, 4, 4, "10.1.0.7"), "of another VRF");
    assert!(!is(&named, 3, 4, 5, "10.1.1.7"), "of another network");
    // What is not named does not make up for what is.
    for (one, what) in [
        (Side { zone: 3, ..any.clone() }, "zone"),
        (Side { interface: 4, ..any.clone() }, "interface"),
        (Side { vrf: 5, ..any.clone() }, "VRF"),
        (Side { ranges: vec![office], ..any.clone() }, "network"),
    ] {
        assert!(is(&one, 3, 4, 5, "10.1.0.7"), "{what}");
        assert!(!is(&one, 2, 3, 4, "10.1.1.7"), "another {what}");
    }
    assert!(!is(&Side { set: Some(1), ..any }, 3, 4, 5, "10.1.0.7"), "in no group");
}

#[test]
fn sources_by_exemption_then_static_then_pool() {
    let (_, compiler, policy) = compiled(NAT);
    let source = |src: &str, dst: &str, vrf: u16, to: (u8, u16, u16)| {
        let question = Question { vrf, ..question(src, dst, 17, 53) };
        match policy.source(&Asked::new(&question, ZONE_A, to)) {
            SourceNat::None => String::from("none"),
            SourceNat::Untranslatable => String::from("untranslatable"),
            SourceNat::Static { addr, rule } => format!("{addr} {rule}"),
            SourceNat::Pool { pool, rule } => {
                let rule = &compiler.policy_slots.nat_rules.names()[usize::from(rule)];
                format!("pool {pool} {rule}")
            }
        }
    };
    let out = (ZONE_B, B, 0);
    assert_eq!(source("10.1.0.5", "192.0.2.1", 0, out), "pool 0 source/out");
    assert_eq!(source("10.1.0.5", "172.17.0.1", 0, out), "none");
    assert_eq!(source("10.1.0.5", "192.0.2.1", 0, (ZONE_A, A2, 0)), "none");
    // Two rules with one list of addresses share the pool.
    assert_eq!(policy.pools.len(), 1);
    assert_eq!(source("10.1.0.5", "192.0.2.1", 1, out), "pool 0 source/out");
    let of_static = compiler.policy_slots.nat_rules.get("static/203.0.113.64/28").expect("a slot");
    assert_eq!(source("10.1.5.17", "192.0.2.1", 0, out), format!("203.0.113.65 {of_static}"));
    assert_eq!(source("10.1.5.17", "172.16.0.1", 0, out), "none");
    assert_eq!(source("10.1.5.17", "10.2.0.1", 0, (ZONE_A, A2, 0)), "none");
    // Never of IPv6.
    assert_eq!(source("2001:db8:1::5", "2001:db8:2::5", 0, out), "none");
    assert_eq!(policy.pool_of(0, Ipv4Addr::new(203, 0, 113, 18)), Some(0));
    assert_eq!(policy.pool_of(0, Ipv4Addr::new(203, 0, 113, 20)), None);
}

/// What a rule says of IPv4 it says of NAT64 in its own place, not behind all others.
#[test]
fn through_nat64_the_first_rule_decides_as_well() {
    let sides = "from = { zone = \"a\" }\nto = { zone = \"b\", prefix = \"203.0.113.20\" }\n";
    let rules = format!(
        "[[rule]]\nname = \"not-there\"\naction = \"deny\"\n{sides}\
         [[rule]]\nname = \"out\"\naction = \"allow\"\nfrom = {{ zone = \"a\" }}\nto = {{ zone = \"b\" }}\n\
         [[rule]]\nname = \"too-late\"\naction = \"deny\"\n{sides}\
         [[nat.nat64]]\nname = \"six\"\nprefix = \"2001:db8:64::/96\"\npool = \"198.51.100.5\"\n"
    );
    let (_, compiler, policy) = compiled(&rules);
    let rule = |dst: &str| {
        let question = question("2001:db8:1::5", dst, 6, 80);
        let asked = Asked::new(&question, ZONE_A, (ZONE_B, B, 0)).through(&policy.nat64[0]);
        compiler.policy_slots.rules.names()[policy.permit(&asked).rule as usize].as_str()
    };
    assert_eq!((rule("203.0.113.20"), rule("203.0.113.21")), ("not-there", "out"));
    let slots = &compiler.policy_slots.rules;
    let shadowed = policy.shadowed().expect("few").to_vec();
    let slot = |name| slots.wide(name).expect("a slot");
    assert_eq!(shadowed, [(slot("too-late"), slot("not-there"))]);
}

#[test]
fn a_hairpin_shows_the_outside_address() {
    let (_, _, policy) = compiled(NAT);
    let hairpin = |src: &str| {
        let question = question(src, "10.1.0.9", 17, 53);
        policy.hairpin_source(&Asked::new(&question, ZONE_A, (ZONE_A, A1, 0)), None)
    };
    assert!(matches!(hairpin("10.1.0.5"), SourceNat::Pool { pool: 0, .. }));
    assert!(
        matches!(hairpin("10.1.5.16"), SourceNat::Static { addr, .. } if addr.to_string() == "203.0.113.64")
    );
}

#[test]
fn an_address_is_forgotten_when_its_pool_is_gone() {
    let (_, mut compiler, policy) = compiled(NAT);
    let registered = |compiler: &Compiler| compiler.claims.addresses().count();
    assert_eq!(registered(&compiler), 4);
    let claims = Arc::clone(&compiler.claims);
    compiler.policy_slots.forget_addresses(&[&policy], &claims);
    assert_eq!(registered(&compiler), 4);
    compiler.policy_slots.forget_addresses(&[&Policy::none()], &claims);
    assert_eq!(registered(&compiler), 0);
}

/// Members that come and go alone come to what compiling everything does: the same groups, and the same sessions to ask
/// again.
#[test]
fn members_that_come_and_go_touch_who_uses_them() {
    let config = |inner: &str, direct: &str| {
        format!(
            r#"
[[group]]
name = "outer"
members = ["group:inner"]
[[group]]
name = "inner"
members = [{inner}]
[[group]]
name = "direct"
members = [{direct}]
[[group]]
name = "unused"
members = []
[[rule]]
name = "r"
action = "allow"
from = {{ zone = "a", group = "outer" }}
to = {{ zone = "b" }}
[[nat.source]]
name = "n"
from = {{ zone = "b" }}
to = {{ zone = "a", group = "direct" }}
pool = ["198.51.100.1"]
"#
        )
    };
    let pairs = |pairs: &[(u8, u8)]| -> Touched { Touched::pairs(pairs) };
    let (a, b) = (ZONE_A, ZONE_B);
    let changes = [
        ("inner", "10.1.0.9", pairs(&[(a, b)])),
        ("direct", "2001:db8:1::9", pairs(&[(b, a), (a, b), (b, b)])),
        ("unused", "10.1.0.9", Touched::default()),
    ];
    for (group, member, expected) in changes {
        let (before, mut compiler, old) = compiled(&config(r#""10.1.0.1", "10.1.0.9/32""#, ""));
        compiler.put_policy(Arc::new(old), &Touched::everything());
        let (name, range) = (group.parse().expect("a name"), member.parse().expect("a range"));
        let mut after = before.clone();
        let changed = after.groups.iter_mut().find(|of| of.name == name).expect("it is there");
        Arc::make_mut(changed).members.push(Member::Addresses(range));
        let change = MemberChange { group: name, range, more: 1 };
        let (new, touched) = compiler.with_members(&after.groups, &[change]).expect("members only");
        let range: AddressRange = member.parse().expect("a range");
        assert_eq!(touched, expected.clone().about(iter::once(range.ends())), "{group}");
        assert_eq!(touched.ranges().is_some(), group != "unused", "{group}");
        let whole = policy(&after, &mut compiler).expect("a policy");
        // A member that is there twice is no news to the sessions, but to the list.
        let old = Arc::clone(&compiler.tables().policy);
        assert_eq!(old.touched(&whole, &compiler.policy_slots), expected, "{group}");
        assert_eq!(new.touched(&whole, &compiler.policy_slots), Touched::default(), "{group}");
        for addr in ["10.1.0.1", "10.1.0.9", "10.1.0.10", "2001:db8:1::9", "2001:db8:1::1"] {
            let addr = addr_key(addr.parse().expect("an address"));
            assert_eq!(new.groups.of(addr), whole.groups.of(addr), "{group}");
        }
    }
}

/// What a refused config, or another change, leaves of the members is not taken for those in force.
#[test]
fn members_of_another_policy_are_of_no_use() {
    let group = |members: &str| format!("[[group]]\nname = \"g\"\nmembers = [{members}]\n");
    let (config, mut compiler, old) = compiled(&group("\"10.1.0.1\""));
    let old = Arc::new(old);
    compiler.put_policy(Arc::clone(&old), &Touched::everything());
    let refused =
        Config::parse(&format!("{INTERFACES}{}", group("\"10.1.0.2\"")), "gw.toml").expect("a config");
    policy(&refused, &mut compiler).expect("a policy, which nobody takes");
    let range = "10.1.0.3".parse().expect("a range");
    let change = MemberChange { group: config.groups[0].name.clone(), range, more: 1 };
    assert!(compiler.with_members(&config.groups, std::slice::from_ref(&change)).is_none());
    // Compiled anew they are.
    let again = Arc::new(policy(&config, &mut compiler).expect("a policy"));
    compiler.put_policy(again, &Touched::default());
    assert!(compiler.with_members(&config.groups, &[change]).is_some());
}

const NAT64: &str =
    "[[nat.nat64]]\nname = \"six\"\nprefix = \"2001:db8:64::/96\"\npool = [\"203.0.113.9\"]\n";

/// A rule that names an IPv4 prefix comes before those behind it for NAT64 sessions too.
#[test]
fn rules_are_in_order_for_nat64_as_well() {
    let rules = r#"
[[rule]]
name = "not-there"
action = "deny"
from = { zone = "a" }
to = { zone = "b", prefix = "203.0.113.64/26" }
[[rule]]
name = "out"
action = "allow"
from = { zone = "a" }
to = { zone = "b" }
"#;
    let (_, _, policy) = compiled(&format!("{rules}{NAT64}"));
    for (dst, action) in [("203.0.113.65", Action::Deny), ("203.0.113.128", Action::Allow)] {
        let dst: Ipv4Addr = dst.parse().expect("an address");
        let dst = Ipv6Addr::from(0x2001_0db8_0064_u128 << 80 | u128::from(dst.to_bits()));
        let question = question("2001:db8:1::9", &dst.to_string(), 17, 53);
        let asked = Asked::new(&question, ZONE_A, (ZONE_B, B, 0));
        assert_eq!(policy.permit(&asked).action, action, "{dst}");
    }
}

proptest! {
    /// Rules that come, go and change one by one decide as if all were compiled, and touch whose they are.
    #[test]
    fn rules_changed_one_by_one_are_as_compiled(
        first in proptest::collection::vec(rule().prop_filter("families", |rule| is_legal(rule)), 0..6),
        changes in proptest::collection::vec(
            (0u8..3, any::<proptest::sample::Index>(), rule().prop_filter("families", |rule| is_legal(rule))), 1..10),
        mut asked in proptest::collection::vec(asked_one(), 1..40),
        nat64: bool,
    ) {
        let text = |rules: &[(usize, String)]| -> String {
            let rules = rules.iter().map(|(number, rule)| format!("[[rule]]\nname = \"r{number}\"\n{rule}"));
            format!("{GROUPS}{}{}", rules.collect::<String>(), if nat64 { NAT64 } else { "" })
        };
        if nat64 {
            let through: Vec<_> = asked.iter().filter_map(|(question, from, to)| {
                let IpAddr::V4(dst) = question.dst else { return None };
                let dst = Ipv6Addr::from(0x2001_0db8_0064_u128 << 80 | u128::from(dst.to_bits())).into();
                let src = Ipv6Addr::from(0x2001_0db8_0001_u128 << 80 | 9).into();
                Some((Question { src, dst, ..*question }, *from, *to))
            }).collect();
            asked.extend(through);
        }
        let mut rules: Vec<(usize, String)> = first.into_iter().enumerate().collect();
        let (_, mut compiler, policy_) = compiled(&text(&rules));
        compiler.put_policy(Arc::new(policy_), &Touched::everything());
        for (number, (kind, at, rule)) in changes.into_iter().enumerate() {
            let at = at.index(rules.len() + 1);
            let is_end = at == rules.len();
            match (kind, is_end) {
                (0, _) | (_, true) => rules.insert(at, (100 + number, rule)),
                (1, _) => _ = rules.remove(at),
                _ => rules[at].1 = rule,
            }
            let config = Config::parse(&format!("{INTERFACES}{}", text(&rules)), "gw.toml").expect("a config");
            let change = match (kind, is_end) {
                (0, _) | (_, true) => RuleChange::Insert(at as u32, Arc::clone(&config.rules[at])),
                (1, _) => RuleChange::Remove(at as u32),
                _ => RuleChange::Replace(at as u32, Arc::clone(&config.rules[at])),
            };
            let before = Arc::clone(&compiler.tables().policy);
            let changed = compiler.with_rule(&config, &change).expect("slots");
            let (_, mut fresh, whole) = compiled(&text(&rules));
            // A long list of prefixes is compiled with the groups; then all is.
            let is_new = changed.is_some();
            let (policy_, touched) = changed.unwrap_or_else(|| {
                let policy_ = Arc::new(policy(&config, &mut compiler).expect("a policy"));
                let touched = before.touched(&policy_, &compiler.policy_slots);
                (policy_, touched)
            });
            let name = |compiler: &Compiler, slot: u32| compiler.policy_slots.rules.names()[slot as usize].clone();
            for (question, from_zone, to_zone) in &asked {
                let egress = match *to_zone { ZONE_B => B, SELF => NO_INTERFACE, _ => A2 };
                let asked = Asked::new(question, *from_zone, (*to_zone, egress, 0));
                let (now, wanted) = (policy_.permit(&asked), whole.permit(&asked));
                prop_assert_eq!(name(&compiler, now.rule), name(&fresh, wanted.rule), "{:?} {:?}", change, asked);
                prop_assert_eq!((now.action, now.log, now.limit), (wanted.action, wanted.log, wanted.limit));
                let was = before.permit(&asked);
                // One of too many is everybody's.
                let news = touched.ranges().and_then(|ranges| News::default().with(ranges, 1));
                if let Some(news) = news
                    && (was.rule, was.action) != (now.rule, now.action)
                {
                    // What is decided otherwise has an address that the change is about.
                    let through = match question.dst {
                        IpAddr::V6(dst) if nat64 => IpAddr::V4(Ipv4Addr::from(u128::from(dst) as u32)),
                        dst => dst,
                    };
                    prop_assert_eq!(news.about(&[question.src, question.dst, through]), 1, "{:?} {:?}", change, asked);
                }
            }
            let shadowed = |policy_: &Policy, compiler: &Compiler| {
                let mut pairs: Vec<_> = policy_.shadowed().expect("few").iter()
                    .map(|(rule, by)| (name(compiler, *rule), name(compiler, *by))).collect();
                pairs.sort();
                pairs
            };
            prop_assert_eq!(shadowed(&policy_, &compiler), shadowed(&whole, &fresh));
            prop_assert_eq!(policy_.lines(), whole.lines());
            if is_new {
                let again = policy(&config, &mut fresh).expect("a policy");
                let everywhere = touched.clone().about(iter::empty());
                prop_assert_eq!(before.touched(&again, &compiler.policy_slots), everywhere);
                prop_assert_eq!(policy_.touched(&again, &compiler.policy_slots), Touched::default());
            }
            compiler.put_policy(policy_, &touched);
        }
    }
}
