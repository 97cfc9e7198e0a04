//! What operators type, and what they are told.

use std::io;

use super::*;

const GOOD: &str = r#"schema = 1

[system]
name = "gw-a"
workers = [1]

[control]
socket = "/run/softgate/control.sock"
[pair]
local = "192.0.2.1:5405"
peer = "192.0.2.2:5405"
key_file = "/etc/softgate/pair.key"
[[port]]
name = "lan"
device = "eth1"
mode = "auto"

[[port]]
name = "up"
devices = ["eth2", "eth3"]
lag = "active-backup"
queues = 4

[[vrf]]
name = "blue"
stateless = true

[[interface]]
name = "tenant-a"
port = "lan"
vlan = 100
zone = "inside"
vrf = "blue"
addresses = ["10.0.1.2/24", "2001:db8:1::2/64"]
mtu = 9000
mac = "02:00:00:00:00:01"
source_check = "strict"
router_advertisements = true

[[interface]]
name = "tenant-b"
port = "lan"
vlan = [200, 10]
tpid = "802.1q"
vrf = "blue"
addresses = ["10.0.2.2/24"]
router_advertisements = false

[[interface]]
name = "uplink"
port = "up"
addresses = ["198.51.100.2/24", "2001:db8:ffff::2/64"]
router_advertisements = { interval_s = 60, lifetime_s = 0 }

[[route]]
prefix = "0.0.0.0/0"
vrf = "blue"
via = ["198.51.100.1@default", "198.51.100.3@default"]

[[route]]
prefix = "192.0.2.0/24"
blackhole = true

[[route]]
prefix = "2001:db8:2::/48"
unreachable = true

[[neighbour]]
interface = "tenant-a"
address = "10.0.1.10"
mac = "02:00:00:00:01:0a"
"#;

fn good() -> Config {
    Config::parse(GOOD, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_vocabulary_of_the_manual_is_read() {
    let config = good();
    assert_eq!(config.system.workers, Workers::Cpus(vec![Ranged::new(1).unwrap()]));
    assert_eq!(config.system.key.0[15], 15, "the documented default key");
    assert_eq!(config.pair.as_ref().unwrap().local.port(), 5405);
    assert_eq!(config.ports[1].all_devices().map(DeviceName::as_str).collect::<Vec<_>>(), ["eth2", "eth3"]);
    let interface = &config.interfaces[0];
    assert_eq!(interface.vlan, Some(Vlan::Single(VlanId::new(100).unwrap())));
    assert_eq!(interface.mac.unwrap().bytes(), [2, 0, 0, 0, 0, 1]);
    assert_eq!(interface.router_advertisements, RouterAdvertisements::DEFAULT);
    let qinq = Vlan::QinQ { outer: VlanId::new(200).unwrap(), inner: VlanId::new(10).unwrap() };
    assert_eq!(config.interfaces[1].vlan, Some(qinq));
    assert_eq!(config.interfaces[1].tpid, Some(Tpid::Dot1q));
    assert_eq!(
        config.interfaces[2].router_advertisements,
        RouterAdvertisements::On { interval_s: 60, lifetime_s: 0 }
    );
    let RouteTarget::Via(next_hops) = &config.routes[0].target else { panic!() };
    assert_eq!(next_hops[0].to_string(), "198.51.100.1@default");
    assert_eq!(config.vrf_names().iter().map(Name::as_str).collect::<Vec<_>>(), ["default", "blue"]);
}

#[test]
fn a_link_local_next_hop_names_its_interface() {
    let via = "via = [\"fe80::1%uplink\", \"fe80::1%tenant-a@blue\", \"2001:db8:ffff::1\"]";
    let config = Config::parse(&GOOD.replace("unreachable = true", via), "gw.toml").unwrap();
    let hops: Vec<String> = config.routes[2].target.next_hops().iter().map(ToString::to_string).collect();
    assert_eq!(hops, ["2001:db8:ffff::1", "fe80::1%uplink", "fe80::1%tenant-a@blue"]);
    assert_eq!(Config::parse(&config.to_toml(), "gw.toml").unwrap(), config);
}

#[test]
fn what_is_saved_reads_back_the_same() {
    let config = good();
    let text = config.to_toml();
    assert_eq!(
        Config::parse(&text, "saved.toml").unwrap_or_else(|errors| panic!("{errors}\n{text}")),
        config
    );
    let empty = Config::default();
    assert_eq!(Config::parse(&empty.to_toml(), "empty.toml").unwrap(), empty);
}

/// Replaces one piece of the good config and expects exactly these complaints.
fn broken(from: &str, to: &str, expected: &[&str]) -> bool {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} must stand there once");
    let text = GOOD.replace(from, to);
    let errors = Config::parse(&text, "gw.toml").expect_err(to);
    let lines: Vec<String> = errors.to_string().lines().map(str::to_owned).collect();
    if lines != expected {
        println!("after {from:?} -> {to:?}\n  said     {lines:#?}\n  expected {expected:#?}");
    }
    lines == expected
}

#[test]
fn each_error_names_file_line_key_value_and_what_is_allowed() {
    let table: &[(&str, &str, &[&str])] = &[
        // Single values.
        ("vlan = 100\n", "vlan = 5000\n", &["gw.toml:31: interface[0].vlan: 5000: a VLAN ID is 1 to 4094"]),
        ("vlan = 100\n", "vlan = 0\n", &["gw.toml:31: interface[0].vlan: 0: a VLAN ID is 1 to 4094"]),
        (
            "vlan = 100\n",
            "vlan = \"x\"\n",
            &[
                "gw.toml:31: interface[0].vlan: \"x\": expected a VLAN ID (1 to 4094), or [outer, inner] for QinQ",
            ],
        ),
        (
            "vlan = [200, 10]",
            "vlan = [200, 4095]",
            &["gw.toml:43: interface[1].vlan[1]: 4095: a VLAN ID is 1 to 4094"],
        ),
        (
            "vlan = [200, 10]",
            "vlan = [200]",
            &["gw.toml:43: interface[1].vlan: [200]: two VLAN IDs for QinQ: [outer, inner]"],
        ),
        (
            "tpid = \"802.1q\"",
            "tpid = \"9100\"",
            &["gw.toml:44: interface[1].tpid: \"9100\": allowed: 802.1ad, 802.1q"],
        ),
        ("mtu = 9000", "mtu = 10000", &["gw.toml:35: interface[0].mtu: 10000: an MTU is 576 to 9216 bytes"]),
        ("mtu = 9000", "mtu = -1", &["gw.toml:35: interface[0].mtu: -1: an MTU is 576 to 9216 bytes"]),
        (
            "mtu = 9000",
            "mtu = 1000",
            &["gw.toml:35: interface[0].mtu: 1000: IPv6 needs an MTU of 1280 or more (RFC 8200 section 5)"],
        ),
        (
            "02:00:00:00:00:01",
            "02:00:00:00:00",
            &[
                "gw.toml:36: interface[0].mac: \"02:00:00:00:00\": a MAC is six hexadecimal pairs, 02:00:00:00:00:01",
            ],
        ),
        (
            "02:00:00:00:00:01",
            "03:00:00:00:00:01",
            &[
                "gw.toml:36: interface[0].mac: \"03:00:00:00:00:01\": a unicast MAC is needed: the lowest bit of its first byte must be 0",
            ],
        ),
        (
            "\"10.0.1.2/24\"",
            "\"10.0.1.2/33\"",
            &["gw.toml:34: interface[0].addresses[0]: \"10.0.1.2/33\": prefix length is 0 to 32"],
        ),
        (
            "\"10.0.1.2/24\"",
            "\"10.0.1.2\"",
            &[
                "gw.toml:34: interface[0].addresses[0]: \"10.0.1.2\": write ADDRESS/LENGTH, 10.0.1.0/24 or 2001:db8:1::/64",
            ],
        ),
        (
            "\"10.0.1.2/24\"",
            "\"10.0.1.0/24\"",
            &[
                "gw.toml:34: interface[0].addresses[0]: \"10.0.1.0/24\": the network address of 10.0.1.0/24: use a host address",
            ],
        ),
        (
            "\"10.0.1.2/24\"",
            "\"10.0.1.255/24\"",
            &[
                "gw.toml:34: interface[0].addresses[0]: \"10.0.1.255/24\": the broadcast address of 10.0.1.0/24: use a host address",
            ],
        ),
        (
            "\"2001:db8:1::2/64\"",
            "\"2001:db8:1::/64\"",
            &[
                "gw.toml:34: interface[0].addresses[1]: \"2001:db8:1::/64\": the subnet-router anycast address of 2001:db8:1::/64: use a host address",
            ],
        ),
        (
            "\"10.0.1.2/24\"",
            "\"224.0.0.5/24\"",
            &[
                "gw.toml:34: interface[0].addresses[0]: \"224.0.0.5/24\": a unicast address is needed (not 0/8, 127/8, 224/4 or 240/4)",
            ],
        ),
        (
            "source_check = \"strict\"",
            "source_check = true",
            &["gw.toml:37: interface[0].source_check: true: a word in quotes is expected"],
        ),
        (
            "interval_s = 60",
            "interval_s = 2",
            &[
                "gw.toml:53: interface[2].router_advertisements: { interval_s = 2, lifetime_s = 0 }: interval_s is 4 to 1800 (RFC 4861 section 6.2.1)",
            ],
        ),
        (
            "name = \"gw-a\"",
            "name = \"GW A\"",
            &["gw.toml:4: system.name: \"GW A\": a name is 1 to 32 characters of a-z 0-9 . _ -"],
        ),
        (
            "workers = [1]",
            "workers = \"all\"",
            &["gw.toml:5: system.workers: \"all\": \"auto\" or a list of CPU numbers, [1, 2]"],
        ),
        (
            "workers = [1]",
            "workers = [1, 1]",
            &["gw.toml:5: system.workers: [1, 1]: CPU 1 stands there twice"],
        ),
        (
            "workers = [1]",
            &format!("workers = {:?}", (0..65).collect::<Vec<_>>()),
            &[
                "gw.toml:5: system.workers: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1...: at most 64 CPUs",
            ],
        ),
        ("workers = [1]", "key = \"12\"", &["gw.toml:5: system.key: \"12\": a key is 32 hexadecimal digits"]),
        (
            "peer = \"192.0.2.2:5405\"",
            "peer = \"192.0.2.2:5405\"\nbandwidth_mbps = 0",
            &["gw.toml:12: pair.bandwidth_mbps: 0: allowed is 1 to 100000"],
        ),
        (
            "mode = \"auto\"",
            "mode = \"fast\"",
            &["gw.toml:16: port[0].mode: \"fast\": allowed: auto, zero-copy, copy, generic"],
        ),
        (
            "device = \"eth1\"",
            "device = \"a/b\"",
            &[
                "gw.toml:15: port[0].device: \"a/b\": a device name is 1 to 15 characters without blanks, '/' and ':'",
            ],
        ),
        (
            "\"192.0.2.0/24\"",
            "\"192.0.2.1/24\"",
            &[
                "gw.toml:61: route[1].prefix: \"192.0.2.1/24\": host bits are set; the network is 192.0.2.0/24",
            ],
        ),
        (
            "\"198.51.100.1@default\"",
            "\"fe80::1\"",
            &[
                "gw.toml:58: route[0].via[0]: \"fe80::1\": a link-local next hop does not say on which interface: fe80::1%INTERFACE, or use the router's global address",
            ],
        ),
        (
            "\"198.51.100.1@default\"",
            "\"198.51.100.1%up\"",
            &[
                "gw.toml:58: route[0].via[0]: \"198.51.100.1%up\": %INTERFACE goes with a link-local next hop (fe80::/10) only",
            ],
        ),
        (
            "address = \"10.0.1.10\"",
            "address = \"ten\"",
            &["gw.toml:70: neighbour[0].address: \"ten\": invalid IP address syntax"],
        ),
        // Keys.
        (
            "mtu = 9000",
            "mut = 9000",
            &[
                "gw.toml:35: interface[0].mut: unknown key; known here: name, port, vlan, bridge, vni, vtep, remotes, accept_from, underlay_vrf, encapsulation, udp_port, dscp, ttl, learning, udp_checksum, tpid, zone, vrf, addresses, mtu, mac, source_check, clamp_mss, router_advertisements, dhcp_relay, dhcpv6_relay",
            ],
        ),
        (
            "port = \"lan\"\nvlan = 100",
            "vlan = 100",
            &["gw.toml:28: interface[0]: an interface has one of: port, vni, bridge"],
        ),
        (
            "[pair]\n",
            "[peer]\n",
            &[
                "gw.toml:9: peer: unknown key; known here: schema, system, control, commit, log, pair, icmp, neighbours, port, vrf, interface, bridge, neighbour, route, route_file, flows, zone, group, admin_rule, rule, nat, service, role, vrrp, bfd, assert, node",
            ],
        ),
        (
            "schema = 1\n",
            "\n",
            &["gw.toml:1: schema: the key schema is missing; write schema = 1 on the first line"],
        ),
        (
            "schema = 1\n",
            "schema = 7\n",
            &[
                "gw.toml:1: schema: 7: this binary reads schemas 1 and 0; the file is for a newer softgate, which has to be installed first",
            ],
        ),
        ("schema = 1\n", "schema = \"1\"\n", &["gw.toml:1: schema: this binary reads schemas 1 and 0"]),
        // Across keys.
        (
            "unreachable = true",
            "via = [\"fe80::1%nope\"]",
            &["gw.toml:66: route[2].via: fe80::1%nope: no such interface; known: tenant-a, tenant-b, uplink"],
        ),
        (
            "unreachable = true",
            "via = [\"fe80::1%tenant-a\"]",
            &[
                "gw.toml:66: route[2].via: fe80::1%tenant-a: interface tenant-a is in VRF blue: write fe80::1%tenant-a@blue to leak into it",
            ],
        ),
        (
            "unreachable = true",
            "via = [\"fe80::1%tenant-b@blue\"]",
            &[
                "gw.toml:66: route[2].via: fe80::1%tenant-b@blue: interface tenant-b has no IPv6 address, so nobody can be asked there",
            ],
        ),
        (
            "name = \"up\"",
            "name = \"lan\"",
            &[
                "gw.toml:19: port[1].name: lan: already the name of port[0]",
                "gw.toml:51: interface[2].port: up: no such port; known: lan, lan",
            ],
        ),
        (
            "name = \"tenant-b\"",
            "name = \"tenant-a\"",
            &["gw.toml:41: interface[1].name: tenant-a: already the name of interface[0]"],
        ),
        (
            "port = \"lan\"\nvlan = 100",
            "port = \"dmz\"\nvlan = 100",
            &["gw.toml:30: interface[0].port: dmz: no such port; known: lan, up"],
        ),
        (
            "vlan = [200, 10]\ntpid = \"802.1q\"",
            "vlan = 100",
            &["gw.toml:43: interface[1].vlan: 100: interface tenant-a already has this VLAN of port lan"],
        ),
        (
            "vlan = [200, 10]\n",
            "vlan = 200\n",
            &["gw.toml:44: interface[1].tpid: tpid goes with a QinQ pair, vlan = [outer, inner]"],
        ),
        (
            "\"10.0.2.2/24\"",
            "\"10.0.1.200/25\"",
            &[
                "gw.toml:46: interface[1].addresses[0]: 10.0.1.200/25: overlaps 10.0.1.0/24 of interface tenant-a in VRF blue",
            ],
        ),
        (
            "\"10.0.2.2/24\"",
            "\"10.0.2.2/24\", \"10.0.2.2/24\"",
            &["gw.toml:46: interface[1].addresses[1]: 10.0.2.2/24: the address stands there twice"],
        ),
        (
            "\"10.0.2.2/24\"",
            "\"fe80::1/64\", \"fe80::2/3\", \"169.254.0.1/15\"",
            &[
                "gw.toml:46: interface[1].addresses[1]: fe80::2/3: link-local addresses are in fe80::/10 (RFC 4291): write /64",
                "gw.toml:46: interface[1].addresses[2]: 169.254.0.1/15: link-local addresses are in 169.254.0.0/16 (RFC 3927): write /16",
            ],
        ),
        (
            "router_advertisements = false",
            "router_advertisements = true",
            &[
                "gw.toml:47: interface[1].router_advertisements: router advertisements need an IPv6 address on the interface",
            ],
        ),
        (
            "stateless = true\n",
            "\n",
            &[
                "gw.toml:40: interface[1].zone: VRF blue mixes interfaces with a zone (tenant-a) and without (tenant-b): give all of them a zone, or write [[vrf]] name = \"blue\", stateless = true",
            ],
        ),
        (
            "\"eth2\", \"eth3\"",
            "\"eth1\", \"eth3\"",
            &["gw.toml:20: port[1].devices: eth1: the device is already used by port[0]"],
        ),
        (
            "lag = \"active-backup\"\n",
            "\n",
            &["gw.toml:20: port[1].devices: devices need lag = \"active-backup\" or \"static\""],
        ),
        (
            "device = \"eth1\"",
            "lag = \"static\"\ndevice = \"eth1\"",
            &["gw.toml:15: port[0].lag: lag goes with devices = [...]"],
        ),
        ("device = \"eth1\"\n", "\n", &["gw.toml:13: port[0]: a port has one of: device, devices"]),
        (
            "blackhole = true",
            "blackhole = true\nvia = [\"198.51.100.1\"]",
            &["gw.toml:60: route[1]: a route has one of: via, blackhole = true, unreachable = true"],
        ),
        (
            "\"198.51.100.3@default\"",
            "\"198.51.100.1@default\"",
            &["gw.toml:55: route[0]: a next hop stands there twice"],
        ),
        (
            "\"198.51.100.3@default\"",
            "\"198.51.101.3@default\"",
            &[
                "gw.toml:58: route[0].via: 198.51.101.3@default: not on the link of any interface of VRF default, which connects to 198.51.100.0/24, 2001:db8:ffff::/64",
            ],
        ),
        (
            "\"198.51.100.3@default\"",
            "\"198.51.100.3@red\"",
            &["gw.toml:58: route[0].via: 198.51.100.3@red: no such VRF; known: blue, default"],
        ),
        (
            "\"198.51.100.3@default\"",
            "\"198.51.100.2@default\"",
            &[
                "gw.toml:58: route[0].via: 198.51.100.2@default: the gateway's own address on interface uplink",
            ],
        ),
        (
            "\"198.51.100.3@default\"",
            "\"2001:db8:ffff::1@default\"",
            &["gw.toml:58: route[0].via: 2001:db8:ffff::1@default: an IPv4 route needs an IPv4 next hop"],
        ),
        (
            "\"192.0.2.0/24\"",
            "\"198.51.100.0/24\"",
            &["gw.toml:61: route[1].prefix: 198.51.100.0/24: the connected network of interface uplink"],
        ),
        (
            "\"2001:db8:2::/48\"\nunreachable",
            "\"192.0.2.0/24\"\nunreachable",
            &["gw.toml:65: route[2].prefix: 192.0.2.0/24: VRF default already has a route to it"],
        ),
        (
            "interface = \"tenant-a\"",
            "interface = \"tenant-z\"",
            &[
                "gw.toml:69: neighbour[0].interface: tenant-z: no such interface; known: tenant-a, tenant-b, uplink",
            ],
        ),
        (
            "address = \"10.0.1.10\"",
            "address = \"10.0.2.10\"",
            &[
                "gw.toml:70: neighbour[0].address: 10.0.2.10: not on the link of interface tenant-a, which connects to 10.0.1.0/24, 2001:db8:1::/64",
            ],
        ),
        (
            "address = \"10.0.1.10\"",
            "address = \"10.0.1.2\"",
            &["gw.toml:70: neighbour[0].address: 10.0.1.2: the gateway's own address on interface tenant-a"],
        ),
    ];
    let wrong = table.iter().filter(|(from, to, expected)| !broken(from, to, expected)).count();
    assert_eq!(wrong, 0, "of {} cases", table.len());
}

#[test]
fn several_errors_are_named_at_once() {
    let text =
        "schema = 1\n[system]\nname = \"A\"\nwrokers = 1\n[[port]]\nname = \"B\"\nmode = 7\nspeed = 1\n";
    let errors = Config::parse(text, "x.toml").unwrap_err().to_string();
    let keys: Vec<&str> = errors.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(
        keys,
        ["system.name", "system.wrokers", "port[0].name", "port[0].mode", "port[0].speed"],
        "{errors}"
    );
}

#[test]
fn syntax_errors_have_lines() {
    let errors = Config::parse("schema = 1\n[system\nname = = 2\n", "x.toml").unwrap_err();
    assert!(errors.errors.iter().all(|error| error.line.is_some()), "{errors}");
    assert!(errors.to_string().starts_with("x.toml:2: "), "{errors}");
}

#[test]
fn a_wrong_file_of_many_routes_stays_a_screenful() {
    let mut text = String::from("schema = 1\n");
    for _ in 0..500 {
        text.push_str("[[route]]\nprefix = \"10.0.0.1/8\"\nblackhole = true\n");
    }
    let errors = Config::parse(&text, "x.toml").unwrap_err();
    assert_eq!((errors.errors.len(), errors.more), (ConfigErrors::SHOWN, 500 - ConfigErrors::SHOWN));
    assert!(errors.to_string().ends_with("\n... and 450 more"));
}

/// Whoever may use the socket could hold up all others with one config otherwise.
#[test]
fn a_table_of_a_hundred_thousand_wrong_keys_is_read_fifty_times() {
    let keys: String = (0..100_000).map(|key| format!("k{key} = 1\n")).collect();
    let errors = Config::parse(&format!("schema = 1\n[system]\n{keys}"), "gw.toml").unwrap_err();
    // Looked for one by one, all of them would take hours.
    assert_eq!((errors.errors.len(), errors.more), (ConfigErrors::SHOWN, 1));
    assert!(errors.to_string().ends_with("\n... and at least 1 more"), "{errors}");
}

#[test]
fn a_path_that_no_socket_can_have_is_an_error() {
    for path in [String::new(), format!("/run/{}", "a".repeat(103))] {
        let text = format!("schema = 1\n[control]\nsocket = \"{path}\"\n");
        let told = Config::parse(&text, "gw.toml").unwrap_err().to_string();
        assert_eq!(
            told,
            format!("gw.toml:3: control.socket: {path}: the path of a Unix socket has 1 to 107 bytes")
        );
    }
    let text = format!("schema = 1\n[control]\nsocket = \"/run/{}\"\n", "a".repeat(102));
    Config::parse(&text, "gw.toml").unwrap();
}

fn with_file(text: &str) -> Result<Config, ConfigErrors> {
    let config = format!("{GOOD}\n[[route_file]]\npath = \"full.txt\"\n");
    Config::parse_with(&config, "gw.toml", &mut |path| {
        assert_eq!(path, "full.txt");
        Ok(text.to_owned())
    })
}

#[test]
fn route_files_are_read() {
    let text = "# a full table\n\n203.0.113.0/25 via 198.51.100.1 # one\n203.0.113.128/25 via 198.51.100.3,198.51.100.1\n\
                2001:db8:3::/48 blackhole\n2001:db8:4::/48 unreachable\n";
    let config = with_file(text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.route_files[0].routes.len(), 4);
    assert_eq!(config.all_routes().count(), 7);
    assert_eq!(config.route_files[0].routes[2].target, RouteTarget::Blackhole);
    assert!(!config.to_toml().contains("203.0.113"), "a route file stays a reference");
}

#[test]
fn errors_in_route_files_have_their_own_lines() {
    let text = "203.0.113.0/25 via 198.51.100.1\n\n# x\n203.0.113.1/25 via 198.51.100.1\n10.0.0.0/8 to 1.2.3.4\n\
                10.0.0.0/8 via 198.51.100.1,bad\n";
    let expected = "full.txt:4: prefix: 203.0.113.1/25: host bits are set; the network is 203.0.113.0/25\n\
        full.txt:5: route: 10.0.0.0/8 to 1.2.3.4: a line is: PREFIX via ADDRESS[@VRF][,ADDRESS...], PREFIX blackhole or PREFIX unreachable\n\
        full.txt:6: via: bad: a next hop is an address, ADDRESS@VRF to leak, or LINK-LOCAL%INTERFACE";
    assert_eq!(with_file(text).unwrap_err().to_string(), expected);
    let text = "\n192.0.2.0/24 blackhole\n# x\n10.0.0.0/8 via 203.0.113.1\n";
    let expected = "full.txt:2: prefix: 192.0.2.0/24: VRF default already has a route to it\n\
        full.txt:4: via: 203.0.113.1: not on the link of any interface of VRF default, which connects to 198.51.100.0/24, 2001:db8:ffff::/64";
    assert_eq!(with_file(text).unwrap_err().to_string(), expected);
    let missing = Config::parse_with("schema = 1\n[[route_file]]\npath = \"a\"\n", "gw.toml", &mut |_| {
        Err(io::Error::new(io::ErrorKind::NotFound, "no such file"))
    });
    assert_eq!(
        missing.unwrap_err().to_string(),
        "gw.toml:3: route_file[0].path: a: cannot be read: no such file"
    );
}

#[test]
fn without_text_errors_have_no_line() {
    let mut config = good();
    config.interfaces[0].port = Some(Name::new("dmz").unwrap());
    let errors = config.validate("running config").unwrap_err();
    assert_eq!(errors.to_string(), "running config: interface[0].port: dmz: no such port; known: lan, up");
}

#[test]
fn the_key_is_not_shown() {
    assert_eq!(format!("{:?}", HashKey::default()), "HashKey(..)");
}
