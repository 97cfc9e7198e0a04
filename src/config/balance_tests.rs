//! Services as operators type them, and what they are told.

use super::*;

const HEAD: &str = r#"schema = 1
[[port]]
name = "lan"
device = "eth1"
[[interface]]
name = "inside"
port = "lan"
vlan = 100
zone = "inside"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "uplink"
port = "lan"
zone = "outside"
addresses = ["198.51.100.2/24"]
[[interface]]
name = "blue"
port = "lan"
vlan = 200
vrf = "blue"
addresses = ["10.0.1.1/24"]
"#;

const SHOP: &str = r#"
[[service]]
name = "shop"
address = "203.0.113.10"
service = ["tcp/443", "udp/443"]
on_failure = "rehash"
by_client = true
backends = [
    { address = "10.0.1.10:8443" },
    { address = "10.0.1.10:8443", vrf = "blue", weight = 2, state = "drain" },
    { address = "10.0.1.11:8443", weight = 0, state = "disabled" },
]
"#;

fn parsed(services: &str) -> Result<Config, ConfigErrors> {
    Config::parse(&format!("{HEAD}{services}"), "gw.toml")
}

#[test]
fn a_service_is_read_and_written() {
    let config = parsed(SHOP).unwrap_or_else(|errors| panic!("{errors}"));
    let shop = &config.services[0];
    assert_eq!((shop.on_failure, shop.by_client, shop.mode), (OnFailure::Rehash, true, BalanceMode::Nat));
    let keys: Vec<String> = shop.backends.iter().map(|backend| backend.key().to_string()).collect();
    assert_eq!(keys, ["10.0.1.10:8443", "10.0.1.10:8443@blue", "10.0.1.11:8443"]);
    assert!(keys.iter().all(|key| key.parse::<BackendKey>().map(|key| key.to_string()).as_ref() == Ok(key)));
    let weights: Vec<u32> = shop.backends.iter().map(|backend| backend.weight.get()).collect();
    assert_eq!(weights, [1, 2, 0]);
    assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    let least = parsed("[[service]]\nname = \"none\"\naddress = \"203.0.113.0/28\"").expect("a service");
    assert_eq!(least.services[0].served().collect::<Vec<_>>(), [(None, None)]);
}

#[test]
fn what_cannot_be_is_named() {
    let another = "\n[[service]]\nname = \"other\"\naddress = \"203.0.113.10\"\nservice = \"tcp/400-500\"\n";
    let forward = "\n[[nat.destination]]\nname = \"old\"\naddress = \"203.0.113.10\"\nservice = \"udp/443\"\n\
                   target = \"10.0.1.9\"\n";
    for (from, to, told) in [
        (
            "name = \"shop\"",
            "name = \"shop\"\nvrf = \"red\"",
            "service[0].vrf: red: no interface and no [[vrf]] has",
        ),
        (
            "name = \"shop\"",
            "name = \"shop\"\nvrf = \"blue\"",
            "service[0].vrf: blue: no interface of its VRF has a zone",
        ),
        (
            "203.0.113.10",
            "203.0.113.10-203.0.113.12",
            "service[0].address: 203.0.113.10-203.0.113.12: an address or one",
        ),
        ("203.0.113.10", "224.0.0.1", "service[0].address: 224.0.0.1: a unicast address"),
        (
            "[\"tcp/443\", \"udp/443\"]",
            "\"icmp/echo-request\"",
            "service[0].service[0]: icmp/echo-request: a service takes",
        ),
        (
            "\"udp/443\"",
            "\"udp/443-444\"",
            "backends[0].address: 10.0.1.10:8443: a backend with a port needs services of one",
        ),
        ("\"udp/443\"", "\"sctp/443\"", "backends[0].address: 10.0.1.10:8443: SCTP keeps its port"),
        (
            "10.0.1.11:8443",
            "[2001:db8::5]:8443",
            "backends[2].address: [2001:db8::5]:8443: a backend is of the family",
        ),
        (
            "10.0.1.11:8443",
            "203.0.113.10:8443",
            "backends[2].address: 203.0.113.10:8443: the address of the service itself",
        ),
        (
            "10.0.1.11:8443",
            "10.0.1.10:8443",
            "backends[2].address: 10.0.1.10:8443: the service has this backend already",
        ),
        ("vrf = \"blue\"", "vrf = \"red\"", "backends[1].vrf: red: no interface"),
        ("weight = 2", "weight = 1001", "weight: 1001"),
        ("\"rehash\"", "\"retry\"", "on_failure"),
        ("by_client = true\n", "by_client = true\nsticky = 1\n", "service[0].sticky: unknown key"),
        ("", another, ""),
    ] {
        let text = match to == another {
            true => format!("{SHOP}{another}"),
            false => SHOP.replace(from, to),
        };
        assert_ne!(text, SHOP, "{from}");
        let said = match parsed(&text) {
            Err(errors) => errors.to_string(),
            Ok(_) => panic!("{to} is taken"),
        };
        let told =
            if to == another { "service[1].service: other: shop already takes these packets" } else { told };
        assert!(said.contains(told), "{to}: {said}");
    }
    let said = parsed(&format!("{SHOP}{forward}")).expect_err("both for udp/443").to_string();
    assert!(
        said.contains("nat.destination[0].service: old: service shop already takes these packets"),
        "{said}"
    );
    let own = "[[service]]\nname = \"all\"\naddress = \"198.51.100.2\"";
    let said = parsed(own).expect_err("all of our own").to_string();
    assert!(
        said.contains("service[0].address: 198.51.100.2: also an address of the gateway's own"),
        "{said}"
    );
    parsed(&format!("{own}\nservice = \"tcp/443\"")).expect("a port of it may be");
}

/// A short text must not come to more memory than there is.
#[test]
fn tables_are_bounded() {
    let backends: Vec<String> = (0..41).map(|n| format!("{{ address = '10.0.1.{n}' }}")).collect();
    let service = |n: usize| {
        let (high, low) = (n / 250, n % 250);
        format!(
            "[[service]]\nname = 's{n}'\naddress = '203.0.{high}.{low}'\nservice = 'tcp/80'\nbackends = [{}]\n",
            backends.join(", ")
        )
    };
    let said = parsed(&(0..4200).map(service).collect::<String>()).expect_err("half a GiB").to_string();
    assert!(said.contains("service: the tables of all services would take 525 MiB, at most 512"), "{said}");
}

#[test]
fn affinity_is_checked() {
    let with = |affinity: &str| SHOP.replace("by_client = true", affinity);
    let config = parsed(&with("affinity = { timeout_s = 1800 }")).unwrap_or_else(|errors| panic!("{errors}"));
    let affinity = config.services[0].affinity.as_ref().expect("as it was said");
    let Affinity { timeout_s, ipv4_prefix, ipv6_prefix } = affinity;
    assert_eq!((timeout_s.get(), ipv4_prefix.get(), ipv6_prefix.get()), (1800, 32, 64));
    assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    let all = "affinity = { timeout_s = 1, ipv4_prefix = 24, ipv6_prefix = 128 }";
    let config = parsed(&with(all)).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    for (affinity, told) in [
        ("affinity = { timeout_s = 0 }", "affinity.timeout_s: 0: allowed is 1 to 2678400"),
        ("affinity = {}", "service[0].affinity: the key timeout_s is missing"),
        ("affinity = { timeout_s = 9, ipv4_prefix = 33 }", "affinity.ipv4_prefix: 33: allowed is 8 to 32"),
        ("affinity = { timeout_s = 9, mask = 24 }", "mask"),
        (
            "by_client = true\naffinity = { timeout_s = 9 }",
            "service[0].by_client: affinity is by client: leave it out",
        ),
    ] {
        let said = parsed(&with(affinity)).expect_err(affinity).to_string();
        assert!(said.contains(told), "{affinity}: {said}");
    }
}

#[test]
fn passive_checks_are_checked() {
    let with = |said: &str| SHOP.replace("by_client = true", said);
    for good in [
        "passive_checks = {}",
        "passive_checks = { failures = 1, percent = 100, window_s = 1, eject_s = 3600 }\nslow_start_s = 9",
    ] {
        let config = parsed(&with(good)).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    }
    for (said, told) in [
        ("passive_checks = { failures = 0 }", "passive_checks.failures: 0: allowed is 1 to 1000000"),
        ("passive_checks = { window_s = 3601 }", "passive_checks.window_s: 3601: allowed is 1 to 3600"),
        ("passive_checks = { time = 1 }", "time"),
        (
            "mode = \"ipip\"\npassive_checks = {}",
            "service[0].passive_checks: with mode ipip answers go past the gateway",
        ),
    ] {
        let errors = parsed(&with(said)).expect_err(said).to_string();
        assert!(errors.contains(told), "{said}: {errors}");
    }
}

#[test]
fn checks_of_backends_are_checked() {
    let with = |health: &str| SHOP.replace("by_client = true", &format!("by_client = true\n{health}"));
    let good = "health = { type = \"http\", from = \"10.0.1.1\" }\nslow_start_s = 30\nmax_ejected = 50";
    let config = parsed(&with(good)).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    for (health, told) in [
        ("slow_start_s = 30", "service[0].slow_start_s: only who is checked comes back"),
        (
            "health = { type = \"tcp\", from = \"10.0.1.9\" }",
            "health.from: 10.0.1.9: no interface has this address",
        ),
        ("health = { type = \"tcp\", path = \"/\" }", "service[0].health.path: goes with type = http, https"),
        ("max_ejected = 0", "max_ejected"),
    ] {
        let said = parsed(&with(health)).expect_err(health).to_string();
        assert!(said.contains(told), "{health}: {said}");
    }
    let portless = "[[service]]\nname = \"all\"\naddress = \"203.0.113.10\"\nhealth = { type = \"tcp\" }\n\
                    backends = [{ address = \"10.0.1.10\" }]";
    let said = parsed(portless).expect_err("which port?").to_string();
    assert!(said.contains("service[0].health.port: which port is to be asked?"), "{said}");
    let nat = "\n[[nat.source]]\nname = \"out\"\npool = \"interface\"\nports = \"40000-61000\"\n";
    let said = parsed(&format!("{}{nat}", with(good))).expect_err("the ports of probes").to_string();
    assert!(
        said.contains("nat.source[0].ports: 40000-61000: health checks have the ports 61000 to 65535"),
        "{said}"
    );
    parsed(&format!("{SHOP}{nat}")).expect("nobody is checked");
}

const DIRECT: &str = r#"
[[service]]
name = "direct"
address = "203.0.113.20"
service = "tcp/443"
mode = "l2-dsr"
backends = [{ address = "10.0.1.10" }, { address = "10.0.1.11:443" }]
"#;

#[test]
fn direct_server_return_is_checked() {
    let config = parsed(DIRECT).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.services[0].mode, BalanceMode::L2Dsr);
    let tunnel = DIRECT.replace(
        "\"l2-dsr\"",
        "\"gue\"\ntunnel = { source = \"10.0.1.1\", port = 6081, variant = 1, ttl = 3, dscp = 8, udp_checksum = true }",
    );
    let config = parsed(&tunnel).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(Config::parse(&config.to_toml(), "saved.toml").expect("as it was written"), config);
    parsed(&DIRECT.replace("l2-dsr", "ipip").replace("10.0.1.10", "2001:db8::5")).expect("either family");
    for (from, to, told) in [
        (
            "10.0.1.11:443",
            "10.0.1.11:8443",
            "backends[1].address: 10.0.1.11:8443: with mode l2-dsr packets keep",
        ),
        (
            "10.0.1.10",
            "10.7.0.1",
            "backends[0].address: 10.7.0.1: with mode l2-dsr a backend is in a network",
        ),
        ("10.0.1.10", "10.0.1.1", "backends[0].address: 10.0.1.1: an address of the gateway's own"),
        ("10.0.1.10", "2001:db8::5", "a backend is of the family of its service's address"),
        (
            "\"l2-dsr\"",
            "\"l2-dsr\"\ntunnel = {}",
            "service[0].tunnel: goes with mode ipip or gue; this one is l2-dsr",
        ),
        ("\"l2-dsr\"", "\"ipip\"\ntunnel = { port = 1 }", "service[0].tunnel.port: goes with mode gue"),
        ("\"l2-dsr\"", "\"ipip\"\ntunnel = { ttl = 0 }", "ttl"),
        (
            "\"l2-dsr\"",
            "\"gue\"\ntunnel = { source = \"2001:db8::1\" }",
            "service[0].tunnel.source: 2001:db8::1: of the family of the backends' addresses",
        ),
        ("\"l2-dsr\"", "\"dsr\"", "mode"),
    ] {
        let text = DIRECT.replace(from, to);
        assert_ne!(text, DIRECT, "{from}");
        let said = parsed(&text).expect_err(to).to_string();
        assert!(said.contains(told), "{to}: {said}");
    }
}
