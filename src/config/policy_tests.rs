//! Firewall and NAT as operators type them, and what they are told.

use super::*;

const GOOD: &str = r#"schema = 1

[[port]]
name = "lan"
device = "eth1"

[[interface]]
name = "inside-a"
port = "lan"
vlan = 100
zone = "inside"
addresses = ["10.0.1.1/24", "2001:db8:1::1/64"]

[[interface]]
name = "dmz"
port = "lan"
vlan = 101
zone = "dmz"
addresses = ["10.0.2.1/24"]

[[interface]]
name = "uplink"
port = "lan"
zone = "outside"
addresses = ["198.51.100.2/24", "2001:db8:ffff::2/64"]

[[interface]]
name = "tenant"
port = "lan"
vlan = 200
vrf = "blue"
addresses = ["10.0.1.1/24"]

[flows]
capacity = 2_000_000
udp_s = 300
udp_unreplied_s = 30
per_host_sessions = 5000
# half_open_per_destination = 1000

[[group]]
name = "legacy-web"
members = ["10.0.3.0/24", "10.0.4.1-10.0.4.9"]

[[group]]
name = "web"
members = ["10.0.1.10", "group:legacy-web", "2001:db8:1::/64"]

[[admin_rule]]
name = "never"
action = "deny"
from = { prefix = ["192.0.2.0/24", "2001:db8:bad::/48"] }

[[rule]]
name = "web-in"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside", group = "web" }
service = ["tcp/443", "udp/443", "icmp/echo-request"]
log = false
rate_limit = { per_s = 1000, burst = 200 }

[[rule]]
name = "exotic"
action = "reject"
from = { interface = "dmz", prefix = "10.0.2.7" }
to = { zone = "self", vrf = "default" }
service = "tcp/1000-2000"
source_ports = [53, "1024-65535"]
dscp = ["ef", 12]
tcp_flags = ["syn", "!ack"]

[nat]
block_size = 128
filtering = "address-dependent"

[[nat.source]]
name = "vpn"
to = { prefix = "172.16.0.0/12" }
exempt = true

[[nat.source]]
name = "internet"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["203.0.113.0/30", "203.0.113.8-203.0.113.11"]

[[nat.source]]
name = "dmz-out"
from = { zone = "dmz" }
to = { interface = "uplink" }
pool = "interface"
ports = "32768-60999"

[[nat.destination]]
name = "jump"
address = "203.0.113.9"
service = "tcp/2222"
target = "10.0.1.5:22"

[[nat.destination]]
name = "blue-web"
address = "203.0.113.100"
target = "10.0.1.6"
target_vrf = "blue"

[[nat.static]]
outside = "203.0.113.20"
inside = "10.0.1.20"

[[nat.nptv6]]
name = "site"
inside = "fd00:1::/48"
outside = "2001:db8:f0::/44"
to = { zone = "outside" }
"#;

fn good() -> Config {
    Config::parse(GOOD, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_vocabulary_of_the_manual_is_read() {
    let config = good();
    assert_eq!(config.flows.capacity.get(), 2_000_000);
    assert_eq!(config.flows.tcp_established_s.get(), 7440, "RFC 5382 REQ-5");
    assert_eq!(config.groups[1].members[1], Member::Group(Name::new("legacy-web").unwrap()));
    let rule = &config.rules[0];
    assert_eq!((rule.action, rule.log), (RuleAction::Allow, false));
    let services: Vec<String> = rule.service.as_deref().unwrap().iter().map(Service::to_string).collect();
    assert_eq!(services, ["tcp/443", "udp/443", "icmp/echo-request"]);
    assert_eq!(rule.rate_limit.unwrap().per_s.get(), 1000);
    let rule = &config.rules[1];
    assert_eq!(rule.source_ports.as_deref().unwrap()[0].to_string(), "53");
    assert_eq!(rule.dscp.as_deref().unwrap().iter().map(|dscp| dscp.get()).collect::<Vec<_>>(), [46, 12]);
    assert_eq!(rule.tcp_flags.as_deref().unwrap()[1], TcpFlag { bit: 0x10, set: false });
    assert!(rule.to.is_self() && !rule.from.is_self());
    let nat = &config.nat;
    assert_eq!((nat.block_size.ports(), nat.hold_down_s.get(), nat.hairpin), (128, 120, true));
    assert!(nat.sources[0].exempt && nat.sources[0].pool.is_none());
    assert_eq!(nat.sources[1].pool.as_ref().unwrap().addresses()[1].to_string(), "203.0.113.8/30");
    assert_eq!(nat.sources[2].pool, Some(NatPool::Interface));
    assert_eq!(nat.destinations[0].target.to_string(), "10.0.1.5:22");
    assert_eq!(nat.statics[0].label(), "203.0.113.20");
    assert_eq!(nat.nptv6[0].outside.to_string(), "2001:db8:f0::/44");
}

#[test]
fn what_is_saved_reads_back_the_same() {
    let config = good();
    let text = config.to_toml();
    let again = Config::parse(&text, "saved.toml").unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(again, config, "{text}");
}

/// The good config with these tables in it.
fn with(tables: &str) -> Result<Config, ConfigErrors> {
    Config::parse(&GOOD.replace("# half_open_per_destination = 1000", tables), "gw.toml")
}

#[test]
fn zones_have_limits() {
    let text = r#"
        half_open_per_destination = 1000
        half_open = 2000
        [[zone]]
        name = "outside"
        half_open_per_destination = 500
        [[zone]]
        name = "dmz"
        rate_limit = { per_s = 20000 }
        syn_proxy_above = 100
    "#;
    let config = with(text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.zones[0].half_open_per_destination.map(|limit| limit.get()), Some(500));
    assert_eq!(config.zones[1].rate_limit.map(|limit| limit.per_s.get()), Some(20_000));
    assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    for (zone, expected) in [
        ("name = \"outsid\"", "name: outsid: no such zone; known: dmz, inside, outside"),
        (
            "name = \"dmz\"\nhalf_open_per_destination = 3_000_000",
            "half_open_per_destination: 3000000: not over capacity, which is 2000000",
        ),
        (
            "name = \"dmz\"\nhalf_open = 5",
            "half_open: unknown key; known here: name, rate_limit, half_open_per_destination, syn_proxy_above",
        ),
        (
            "name = \"dmz\"\n[[zone]]\nname = \"outside\"\n[[zone]]\nname = \"dmz\"",
            "already the name of zone[0]",
        ),
    ] {
        let errors = with(&format!("[[zone]]\n{zone}")).expect_err(zone).to_string();
        assert!(errors.contains(expected) && errors.lines().count() == 1, "{errors}");
    }
}

#[test]
fn services_are_written_as_they_are_read() {
    for text in [
        "any",
        "tcp",
        "udp/53",
        "sctp/36412",
        "udplite/1-2",
        "icmp",
        "icmp/echo-request",
        "icmp/42",
        "esp",
        "gre",
        "ah",
        "icmpv6/packet-too-big",
        "icmpv6/200",
        "proto/89",
        "dccp/5004",
    ] {
        assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
    }
    for (text, other) in [("proto/6", "tcp"), ("icmp/8", "icmp/echo-request"), ("tcp/7-7", "tcp/7")] {
        assert_eq!(text.parse::<Service>().unwrap().to_string(), other);
    }
}

#[test]
fn a_range_is_the_fewest_prefixes() {
    let range: AddressRange = "10.0.4.1-10.0.4.9".parse().unwrap();
    let nets: Vec<String> = range.nets().map(|net| net.to_string()).collect();
    assert_eq!(nets, ["10.0.4.1/32", "10.0.4.2/31", "10.0.4.4/30", "10.0.4.8/31"]);
    let range: AddressRange = "10.0.4.0-10.0.4.255".parse().unwrap();
    assert_eq!(range.to_string(), "10.0.4.0/24");
    let all: AddressRange = "::/0".parse().unwrap();
    assert_eq!(all.net().unwrap().to_string(), "::/0");
}

/// Replaces one piece of the good config and expects exactly these complaints; `#` stands for the line
/// that the first of `at` is on.
fn broken(from: &str, to: &str, at: &str, expected: &[&str]) -> bool {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} must stand there once");
    let text = GOOD.replace(from, to);
    let line = text.lines().position(|line| line.contains(at)).map_or(0, |line| line + 1);
    let expected: Vec<String> = expected.iter().map(|e| e.replacen('#', &line.to_string(), 1)).collect();
    let errors = match Config::parse(&text, "gw.toml") {
        Ok(_) => {
            println!("after {from:?} -> {to:?}\n  said nothing\n  expected {expected:#?}");
            return false;
        }
        Err(errors) => errors,
    };
    let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    if lines != expected {
        println!("after {from:?} -> {to:?}\n  said     {lines:#?}\n  expected {expected:#?}");
    }
    lines == expected
}

/// What is replaced, by what, where the fault is, and the complaint.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

fn all(table: &[Case]) {
    let wrong = table.iter().filter(|(from, to, at, expected)| !broken(from, to, at, expected)).count();
    assert_eq!(wrong, 0, "of {} cases", table.len());
}

#[test]
fn errors_of_flows_and_groups() {
    all(&[
        (
            "capacity = 2_000_000",
            "capacity = 20_000_000",
            "20_000_000",
            &["gw.toml:#: flows.capacity: 20_000_000: allowed is 1 to 16000000"],
        ),
        (
            "udp_unreplied_s = 30",
            "udp_unreplied_s = 301",
            "= 301",
            &["gw.toml:#: flows.udp_unreplied_s: 301: not over udp_s, which is 300"],
        ),
        (
            "per_host_sessions = 5000",
            "per_host_sessions = 3_000_000",
            "per_host",
            &["gw.toml:#: flows.per_host_sessions: 3000000: not over capacity, which is 2000000"],
        ),
        (
            "udp_s = 300",
            "udp_s = 300\nkeep = \"softgate\"",
            "keep = ",
            &["gw.toml:#: flows.keep: softgate: an absolute path, as /dev/shm/softgate"],
        ),
        (
            "# half_open_per_destination = 1000",
            "half_open_per_destination = 2_000_001",
            "half_open_per",
            &["gw.toml:#: flows.half_open_per_destination: 2000001: not over capacity, which is 2000000"],
        ),
        (
            "log = false",
            "log = true",
            "log = true",
            &["gw.toml:#: rule[0].log: true: say where to: [log] events = \"FILE\""],
        ),
        (
            "udp_s = 300",
            "udp = 300",
            "udp = 300",
            &[
                "gw.toml:#: flows.udp: unknown key; known here: capacity, tcp_established_s, tcp_transitory_s, tcp_opening_s, udp_s, udp_unreplied_s, icmp_s, other_s, keep, loose_tcp, per_host_sessions, half_open, half_open_per_destination",
            ],
        ),
        (
            "\"10.0.3.0/24\"",
            "\"10.0.3.1/24\"",
            "10.0.3.1/24",
            &[
                "gw.toml:#: group[0].members[0]: \"10.0.3.1/24\": host bits are set; the network is 10.0.3.0/24",
            ],
        ),
        (
            "\"10.0.3.0/24\"",
            "\"web.example\"",
            "web.example",
            &[
                "gw.toml:#: group[0].members[0]: \"web.example\": write an address, a prefix (10.0.1.0/24), a range (10.0.1.10-10.0.1.19) or group:NAME",
            ],
        ),
        (
            "10.0.4.1-10.0.4.9",
            "10.0.4.9-10.0.4.1",
            "10.0.4.9-",
            &["gw.toml:#: group[0].members[1]: \"10.0.4.9-10.0.4.1\": 10.0.4.1 is before 10.0.4.9"],
        ),
        (
            "10.0.4.1-10.0.4.9",
            "10.0.4.1-2001:db8::1",
            "10.0.4.1-",
            &[
                "gw.toml:#: group[0].members[1]: \"10.0.4.1-2001:db8::1\": both ends of a range are of one family",
            ],
        ),
        (
            "group:legacy-web",
            "group:legacy",
            "group:legacy",
            &["gw.toml:#: group[1].members[1]: group:legacy: no such group; known: legacy-web, web"],
        ),
        (
            "\"10.0.3.0/24\"",
            "\"group:web\"",
            "\"group:legacy-web\"",
            &[
                "gw.toml:#: group[1].members[1]: group:legacy-web: a group cannot contain itself: legacy-web > web > legacy-web",
            ],
        ),
        (
            "name = \"legacy-web\"",
            "name = \"web\"",
            "group:legacy-web",
            &[
                "gw.toml:46: group[1].name: web: already the name of group[0]",
                "gw.toml:#: group[1].members[1]: group:legacy-web: no such group; known: web, web",
            ],
        ),
    ]);
}

#[test]
fn errors_of_zones() {
    all(&[
        (
            "zone = \"dmz\"\naddresses",
            "zone = \"self\"\naddresses",
            "zone = \"self\"",
            &[
                "gw.toml:#: interface[1].zone: self: the zone of the gateway itself",
                "gw.toml:90: nat.source[2].from.zone: dmz: no such zone; known: inside, outside",
            ],
        ),
        (
            "vrf = \"blue\"\naddresses",
            "addresses",
            "vlan = 200",
            &[
                "gw.toml:27: interface[3].zone: VRF default mixes interfaces with a zone (inside-a) and without (tenant): give all of them a zone, or write [[vrf]] name = \"default\", stateless = true",
                "gw.toml:31: interface[3].addresses[0]: 10.0.1.1/24: overlaps 10.0.1.0/24 of interface inside-a in VRF default",
                "gw.toml:104: nat.destination[1].target_vrf: blue: no such VRF; known: default",
            ],
        ),
    ]);
}

#[test]
fn errors_of_rules() {
    all(&[
        (
            "from = { zone = \"outside\" }\nto = { zone = \"inside\"",
            "from = { zone = \"outsid\" }\nto = { zone = \"inside\"",
            "outsid\"",
            &["gw.toml:#: rule[0].from.zone: outsid: no such zone; known: dmz, inside, outside, self"],
        ),
        (
            "interface = \"dmz\", prefix",
            "interface = \"dnz\", prefix",
            "dnz",
            &[
                "gw.toml:#: rule[1].from.interface: dnz: no such interface; known: inside-a, dmz, uplink, tenant",
            ],
        ),
        (
            "interface = \"dmz\", prefix",
            "interface = \"dmz\", zone = \"inside\", prefix",
            "interface = \"dmz\"",
            &["gw.toml:#: rule[1].from.interface: dmz: the interface is in zone dmz"],
        ),
        (
            "interface = \"dmz\", prefix",
            "interface = \"dmz\", vrf = \"blue\", prefix",
            "interface = \"dmz\"",
            &["gw.toml:#: rule[1].from.interface: dmz: the interface is in VRF default"],
        ),
        (
            "zone = \"self\", vrf = \"default\"",
            "zone = \"self\", vrf = \"red\"",
            "red",
            &["gw.toml:#: rule[1].to.vrf: red: no such VRF; known: default, blue"],
        ),
        (
            "zone = \"self\", vrf = \"default\"",
            "zone = \"self\", interface = \"uplink\"",
            "self",
            &[
                "gw.toml:#: rule[1].to.zone: self: the gateway itself is behind no interface: leave out uplink",
            ],
        ),
        (
            "group = \"web\"",
            "group = \"webb\"",
            "webb",
            &["gw.toml:#: rule[0].to.group: webb: no such group; known: legacy-web, web"],
        ),
        (
            "group = \"web\"",
            "goup = \"web\"",
            "goup",
            &["gw.toml:#: rule[0].to.goup: unknown key; known here: zone, interface, vrf, group, prefix"],
        ),
        (
            "action = \"reject\"",
            "action = \"drop\"",
            "drop",
            &["gw.toml:#: rule[1].action: \"drop\": allowed: allow, deny, reject"],
        ),
        (
            "name = \"exotic\"",
            "name = \"never\"",
            "[[rule]]",
            &["gw.toml:64: rule[1].name: never: already the name of admin_rule[0]"],
        ),
        (
            "name = \"exotic\"",
            "name = \"default\"",
            "\"default\"",
            &["gw.toml:#: rule[1].name: default: the name of what decides where no rule matches"],
        ),
        (
            "\"udp/443\"",
            "\"udp/http\"",
            "udp/http",
            &["gw.toml:#: rule[0].service[1]: \"udp/http\": a port is 0 to 65535, a range FIRST-LAST"],
        ),
        (
            "\"udp/443\"",
            "\"http\"",
            "\"http\"",
            &[
                "gw.toml:#: rule[0].service[1]: \"http\": a service is any, tcp/443, udp/1000-2000, sctp, icmp/echo-request, icmp/3, icmpv6/packet-too-big, esp, ah, gre or proto/89",
            ],
        ),
        (
            "\"udp/443\"",
            "\"esp/3\"",
            "esp/3",
            &["gw.toml:#: rule[0].service[1]: \"esp/3\": esp has neither ports nor types"],
        ),
        (
            "\"udp/443\"",
            "\"proto/256\"",
            "proto/256",
            &["gw.toml:#: rule[0].service[1]: \"proto/256\": a protocol is proto/0 to proto/255"],
        ),
        (
            "icmp/echo-request",
            "icmp/ping",
            "icmp/ping",
            &[
                "gw.toml:#: rule[0].service[2]: \"icmp/ping\": a type is 0 to 255 or one of: echo-reply, destination-unreachable, redirect, echo-request, router-advertisement, router-solicitation, time-exceeded, parameter-problem, timestamp-request, timestamp-reply",
            ],
        ),
        (
            "tcp/1000-2000",
            "tcp/2000-1000",
            "tcp/2000",
            &["gw.toml:#: rule[1].service: \"tcp/2000-1000\": 1000 is before 2000"],
        ),
        (
            "tcp/1000-2000",
            "esp",
            "source_ports",
            &[
                "gw.toml:#: rule[1].source_ports: source ports go with services that have ports; esp has none",
                "gw.toml:71: rule[1].tcp_flags: TCP flags go with services of TCP, not esp",
            ],
        ),
        (
            "tcp/1000-2000",
            "udp/1000-2000",
            "tcp_flags",
            &["gw.toml:#: rule[1].tcp_flags: TCP flags go with services of TCP, not udp/1000-2000"],
        ),
        (
            "[53, ",
            "[70000, ",
            "70000",
            &["gw.toml:#: rule[1].source_ports[0]: 70000: a port is 0 to 65535, a range FIRST-LAST"],
        ),
        (
            "[\"ef\", 12]",
            "[\"ef\", 64]",
            "64]",
            &[
                "gw.toml:#: rule[1].dscp[1]: 64: a DSCP is 0 to 63, cs0 to cs7, af11 to af43, ef, voice-admit or le",
            ],
        ),
        ("[\"ef\", 12]", "[]", "dscp = []", &["gw.toml:#: rule[1].dscp: []: at least one is needed"]),
        (
            "\"!ack\"",
            "\"not ack\"",
            "not ack",
            &[
                "gw.toml:#: rule[1].tcp_flags[1]: \"not ack\": a TCP flag is fin, syn, rst, psh, ack, urg, ece or cwr; with ! before it, it must not be set",
            ],
        ),
        (
            "\"!ack\"",
            "\"!syn\"",
            "tcp_flags",
            &["gw.toml:#: rule[1].tcp_flags: a flag cannot be set and not set"],
        ),
        (
            "zone = \"self\", vrf = \"default\"",
            "zone = \"self\", prefix = \"2001:db8:ffff::2\"",
            "",
            &["gw.toml:63: rule[1]: from has no prefix of the family of those in to: nothing can match"],
        ),
        (
            "from = { zone = \"outside\" }\nto = { zone = \"inside\"",
            "from = { prefix = \"2001:db8::/32\" }\nto = { zone = \"inside\"",
            "icmp/echo-request",
            &[
                "gw.toml:#: rule[0].service[2]: icmp/echo-request: icmp is for IPv4, icmpv6 for IPv6, and the prefixes are of the other",
            ],
        ),
        (
            "action = \"allow\"",
            "action = \"deny\"",
            "rate_limit",
            &["gw.toml:#: rule[0].rate_limit: rate_limit goes with action = \"allow\""],
        ),
        (
            "per_s = 1000",
            "per_s = 0",
            "per_s = 0",
            &["gw.toml:#: rule[0].rate_limit.per_s: 0: allowed is 1 to 10000000"],
        ),
    ]);
}

#[test]
fn errors_of_nat() {
    all(&[
        (
            "block_size = 128",
            "block_size = 100",
            "block_size",
            &["gw.toml:#: nat.block_size: 100: a block is a power of two of ports, 64 to 4096"],
        ),
        (
            "\"address-dependent\"",
            "\"symmetric\"",
            "symmetric",
            &["gw.toml:#: nat.filtering: \"symmetric\": allowed: endpoint-independent, address-dependent"],
        ),
        (
            "block_size = 128",
            "blocksize = 128",
            "blocksize",
            &[
                "gw.toml:#: nat.blocksize: unknown key; known here: block_size, hold_down_s, max_held_ports, max_blocks_per_host, new_mappings_per_host, filtering, hairpin, answer_unsolicited_syn, source, destination, static, nptv6, nat64",
            ],
        ),
        (
            "203.0.113.0/30",
            "10.0.0.0/33",
            "10.0.0.0/33",
            &["gw.toml:#: nat.source[1].pool[0]: \"10.0.0.0/33\": prefix length is 0 to 32"],
        ),
        (
            "203.0.113.0/30",
            "2001:db8::/64",
            "pool = [",
            &[
                "gw.toml:#: nat.source[1].pool[0]: \"2001:db8::/64\": source NAT is for IPv4; IPv6 addresses need none",
            ],
        ),
        (
            "203.0.113.0/30",
            "126.0.0.0/7",
            "pool = [",
            &[
                "gw.toml:#: nat.source[1].pool[0]: \"126.0.0.0/7\": unicast addresses are needed (not 0/8, 127/8, 224/4 or 240/4)",
            ],
        ),
        (
            "203.0.113.0/30",
            "203.0.113.10",
            "pool = [",
            &[
                "gw.toml:#: nat.source[1].pool[0]: 203.0.113.10: overlaps nat.source[1].pool[1], 203.0.113.8/30",
            ],
        ),
        (
            "203.0.113.0/30",
            "198.51.100.2",
            "pool = [",
            &[
                "gw.toml:#: nat.source[1].pool[0]: 198.51.100.2: the gateway's own address on interface uplink: say which ports are for NAT, ports = \"32768-60999\"",
            ],
        ),
        (
            "pool = \"interface\"",
            "pool = \"uplink\"",
            "\"uplink\"\nports",
            &[
                "gw.toml:92: nat.source[2].pool: \"uplink\": a pool is \"interface\" or a list of IPv4 addresses, prefixes and ranges",
            ],
        ),
        (
            "exempt = true",
            "",
            "",
            &["gw.toml:77: nat.source[0]: a source NAT has one of: pool, exempt = true"],
        ),
        (
            "ports = \"32768-60999\"",
            "ports = \"1000-60999\"",
            "ports = \"1000-",
            &[
                "gw.toml:#: nat.source[2].ports: 1000-60999: ports are 1024 to 65535; well-known ports are only used by a pool without ports",
            ],
        ),
        (
            "ports = \"32768-60999\"",
            "ports = \"32700-32800\"",
            "32700",
            &["gw.toml:#: nat.source[2].ports: 32700-32800: has no whole block of 128 ports in it"],
        ),
        (
            "to = { interface = \"uplink\" }",
            "to = { zone = \"self\" }",
            "to = { zone = \"self\" }",
            &[
                "gw.toml:#: nat.source[2].to.zone: self: NAT is for packets that pass through, not for the gateway's own",
            ],
        ),
        (
            "to = { interface = \"uplink\" }",
            "to = { interface = \"tenant\" }",
            "to = { interface = \"tenant\" }",
            &[
                "gw.toml:#: nat.source[2].to.interface: tenant: the interface is in VRF blue, and the rule is for VRF default",
            ],
        ),
        (
            "name = \"dmz-out\"",
            "name = \"vpn\"",
            "",
            &["gw.toml:89: nat.source[2].name: vpn: already the name of nat.source[0]"],
        ),
        (
            "\"10.0.1.5:22\"",
            "\"10.0.1.5:ssh\"",
            "ssh",
            &[
                "gw.toml:#: nat.destination[0].target: \"10.0.1.5:ssh\": a target is ADDRESS, ADDRESS:PORT or [IPV6]:PORT",
            ],
        ),
        (
            "\"tcp/2222\"",
            "\"tcp/2000-2222\"",
            "tcp/2000-2222",
            &[
                "gw.toml:#: nat.destination[0].service[0]: tcp/2000-2222: a target with a port needs services of one port each, tcp/2222",
            ],
        ),
        (
            "\"10.0.1.5:22\"",
            "\"[2001:db8::5]:22\"",
            "2001:db8::5",
            &["gw.toml:#: nat.destination[0].target: [2001:db8::5]:22: address and target are of one family"],
        ),
        (
            "address = \"203.0.113.100\"",
            "address = \"203.0.113.9\"",
            "name = \"blue-web\"",
            &[
                "gw.toml:103: nat.destination[1].address: 203.0.113.9: also the address of nat.source[1].pool[1]: name the service, service = \"tcp/2222\"",
            ],
        ),
        (
            "address = \"203.0.113.100\"",
            "address = \"198.51.100.2\"",
            "address = \"198.51.100.2\"",
            &[
                "gw.toml:#: nat.destination[1].address: 198.51.100.2: also the address of interface uplink: name the service, service = \"tcp/2222\"",
            ],
        ),
        (
            "address = \"203.0.113.100\"",
            "address = \"203.0.113.9\"\nservice = \"tcp/2000-3000\"",
            "tcp/2000-3000",
            &[
                "gw.toml:#: nat.destination[1].service: blue-web: jump already takes these packets; let them differ in address, service or from",
            ],
        ),
        (
            "target_vrf = \"blue\"",
            "target_vrf = \"red\"",
            "red",
            &["gw.toml:#: nat.destination[1].target_vrf: red: no such VRF; known: default, blue"],
        ),
        (
            "inside = \"10.0.1.20\"",
            "inside = \"10.0.1.20/31\"",
            "10.0.1.20/31",
            &["gw.toml:#: nat.static[0].inside: 10.0.1.20/31: outside is a /32: both are of one length"],
        ),
        (
            "inside = \"10.0.1.20\"",
            "inside = \"2001:db8:1::20\"",
            "2001:db8:1::20",
            &["gw.toml:#: nat.static[0].inside: 2001:db8:1::20: outside and inside are of one family"],
        ),
        (
            "outside = \"203.0.113.20\"",
            "outside = \"203.0.113.10\"",
            "outside = \"203.0.113.10\"",
            &[
                "gw.toml:#: nat.static[0].outside: 203.0.113.10: overlaps nat.source[1].pool[1], 203.0.113.8/30",
            ],
        ),
        (
            "outside = \"203.0.113.20\"",
            "outside = \"203.0.113.20-203.0.113.22\"",
            "113.22",
            &[
                "gw.toml:#: nat.static[0].outside: 203.0.113.20-203.0.113.22: a static NAT is of addresses or prefixes",
            ],
        ),
        (
            "outside = \"203.0.113.20\"",
            "outside = \"198.51.100.2\"",
            "outside = \"198.51.100.2\"",
            &[
                "gw.toml:#: nat.static[0].outside: 198.51.100.2: the gateway's own address on interface uplink",
            ],
        ),
        (
            "inside = \"fd00:1::/48\"",
            "inside = \"fd00:1::/65\"",
            "fd00:1::/65",
            &["gw.toml:#: nat.nptv6[0].inside: fd00:1::/65: NPTv6 is of IPv6 prefixes of 1 to 64 bits"],
        ),
        (
            "inside = \"fd00:1::/48\"",
            "inside = \"10.0.0.0/24\"",
            "10.0.0.0/24",
            &["gw.toml:#: nat.nptv6[0].inside: 10.0.0.0/24: NPTv6 is of IPv6 prefixes of 1 to 64 bits"],
        ),
        (
            "inside = \"fd00:1::/48\"",
            "inside = \"2001:db8:f1::/48\"",
            "2001:db8:f1::/48",
            &["gw.toml:#: nat.nptv6[0].inside: 2001:db8:f1::/48: overlaps outside, 2001:db8:f0::/44"],
        ),
        (
            "inside = \"fd00:1::/48\"",
            "inside = \"ff05::/48\"",
            "ff05::/48",
            &["gw.toml:#: nat.nptv6[0].inside: ff05::/48: a unicast address is needed"],
        ),
        (
            "name = \"site\"",
            "name = \"site\"\nvrf = \"red\"",
            "red",
            &["gw.toml:#: nat.nptv6[0].vrf: red: no such VRF; known: default, blue"],
        ),
    ]);
}

#[test]
fn several_faulty_rules_are_named_at_once() {
    let mut text = GOOD.to_owned();
    for index in 0..3 {
        text.push_str(&format!("[[nat.source]]\nname = \"s{index}\"\npool = [\"203.0.113.256\"]\n"));
    }
    let errors = Config::parse(&text, "gw.toml").unwrap_err();
    let keys: Vec<&str> = errors.errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["nat.source[3].pool[0]", "nat.source[4].pool[0]", "nat.source[5].pool[0]"]);
}

#[test]
fn two_rules_may_share_a_pool() {
    let again = "[[nat.source]]\nname = \"dmz-too\"\nfrom = { zone = \"dmz\" }\npool = [\"203.0.113.0/30\", \"203.0.113.8-203.0.113.11\"]\n";
    Config::parse(&format!("{GOOD}{again}"), "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn a_long_chain_of_groups_is_no_recursion() {
    let mut text = String::from("schema = 1\n");
    for index in 0..5000 {
        text.push_str(&format!(
            "[[group]]\nname = \"g{index}\"\nmembers = [\"group:g{}\"]\n",
            (index + 1) % 5000
        ));
    }
    let errors = Config::parse(&text, "gw.toml").unwrap_err();
    assert_eq!(errors.errors.len(), 1, "one circle");
    assert_eq!(errors.errors[0].key, "group[4999].members[0]");
}

/// A config of 19 kB meant 64 million lines.
#[test]
fn rules_that_multiply_are_refused() {
    let prefixes = |net: &str, count: usize| -> String {
        (0..count).map(|i| format!("\"{net}.{}.{}\",", i / 100, 1 + i % 100 * 2)).collect()
    };
    let config = |rules: usize, from: usize, ports: usize| {
        let rule = |rule: usize| {
            let ports: Vec<String> = (0..ports).map(|i| format!("\"{}\"", 1 + i * 2)).collect();
            format!(
                "[[rule]]\nname = \"r{rule}\"\nfrom = {{ group = \"g\", prefix = [{}] }}\nto = {{ prefix = [{}] }}\n\
                 service = \"udp\"\nsource_ports = [{}]\naction = \"allow\"\n",
                prefixes("10.0", from),
                prefixes("10.1", 8),
                ports.join(", ")
            )
        };
        let rules: String = (0..rules).map(rule).collect();
        let group = "[[group]]\nname = \"g\"\nmembers = [\"10.0.0.0/8\"]\n";
        let read = Config::parse(&format!("schema = 1\n{group}{rules}"), "gw.toml");
        read.err().map(|errors| errors.to_string()).unwrap_or_default()
    };
    assert_eq!(config(20, 125, 100), "", "2,000,000 lines, 100,000 a rule");
    let one = config(1, 126, 100);
    assert!(one.contains("rule[0]: r0: 126 prefixes from, 8 prefixes to, 1 services and 100 source ports make 100800 lines; at most 100000"), "{one}");
    let all = config(21, 124, 100);
    assert!(all.contains("rule[0]: r0: all rules together make 2083200 lines, the most of them, 99200, this one; at most 2000000"), "{all}");
}

const NAT64: &str = r#"
[[nat.nat64]]
name = "six"
from = { zone = "inside" }
pool = "203.0.113.40-203.0.113.41"
"#;

#[test]
fn nat64_has_the_well_known_prefix_unless_it_has_another() {
    let config = Config::parse(&format!("{GOOD}{NAT64}"), "gw.toml").expect("good");
    assert_eq!(config.nat.nat64[0].prefix.to_string(), "64:ff9b::/96", "RFC 6052 section 2.1");
    let again = Config::parse(&config.to_toml(), "saved.toml").expect("good");
    assert_eq!(again, config);
    // A rule may then name a host of IPv6 here and one of IPv4 there.
    let crossing = "[[rule]]\nname = \"six\"\naction = \"allow\"\nfrom = { prefix = \"2001:db8::/32\" }\nto = { prefix = \"198.51.100.0/24\" }\n";
    assert!(Config::parse(&format!("{GOOD}{crossing}"), "gw.toml").is_err());
    Config::parse(&format!("{GOOD}{NAT64}{crossing}"), "gw.toml").expect("good");
}

#[test]
fn errors_of_nat64() {
    let prefix = "a unicast IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits with bits 64 to 71 zero";
    let cases = [
        ("name = \"six\"", "name = \"six\"\nprefix = \"2001:db8:64::/95\"", format!("prefix: 2001:db8:64::/95: {prefix}")),
        (
            "name = \"six\"",
            "name = \"six\"\nprefix = \"2001:db8:64:0:100::/96\"",
            format!("prefix: 2001:db8:64:0:100::/96: {prefix}"),
        ),
        ("name = \"six\"", "name = \"six\"\nprefix = \"10.0.0.0/8\"", format!("prefix: 10.0.0.0/8: {prefix}")),
        (
            "203.0.113.40-203.0.113.41",
            "198.51.100.2",
            "pool[0]: 198.51.100.2: the gateway's own address on interface uplink".to_owned(),
        ),
        (
            "203.0.113.40-203.0.113.41",
            "2001:db8::/127",
            "pool[0]: 2001:db8::/127: the pool of a NAT64 is of unicast IPv4 addresses".to_owned(),
        ),
        (
            "name = \"six\"",
            "name = \"six\"\nports = \"1000-2000\"",
            "ports: 1000-2000: ports are 1024 to 65535; well-known ports are only used by a pool without ports".to_owned(),
        ),
        ("name = \"six\"", "name = \"six\"\nvrf = \"red\"", "vrf: red: no such VRF; known: default, blue".to_owned()),
    ];
    let text = format!("{GOOD}{}", NAT64.replace("203.0.113.40-203.0.113.41", "203.0.113.8"));
    let errors = Config::parse(&text, "gw.toml").expect_err("one address of two pools").to_string();
    assert!(errors.contains("203.0.113.8/30: overlaps nat.nat64[0].pool[0], 203.0.113.8"), "{errors}");
    for (from, to, complaint) in cases {
        assert_eq!(NAT64.matches(from).count(), 1, "{from}");
        let text = format!("{GOOD}{}", NAT64.replace(from, to));
        let errors = Config::parse(&text, "gw.toml").expect_err(to).to_string();
        assert!(
            errors.lines().any(|line| line.ends_with(&format!("nat.nat64[0].{complaint}"))),
            "{to}: {errors}"
        );
    }
}
