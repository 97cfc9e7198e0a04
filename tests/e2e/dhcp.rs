//! DHCP through the relay: ISC's and BusyBox's clients on a tenant's network, dnsmasq behind the uplink, IPv4 and
//! IPv6.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::lost_since;
use crate::sessions::Server;

/// The lab's interface of `a`, with relays.
const RELAYS: &str = r#"
[[interface]]
name = "tenant-a"
port = "trunk"
vlan = 100
addresses = ["10.0.1.1/24", "2001:db8:1::1/64"]
zone = "inside"
dhcp_relay = { servers = ["198.51.100.1"], option82 = "drop", circuit_id = "rack 1" }
dhcpv6_relay = { servers = ["2001:db8:ff::1"] }
"#;

const RULES: &str = r#"
[[zone]]
name = "inside"
[[zone]]
name = "outside"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
"#;

/// The lab's config, where `tenant-a` relays.
fn config() -> Config {
    Config { zones: ["inside", "inside", "outside"], ..Config::default() }.with(RULES)
}

fn with_relays(text: &str) -> String {
    let from = text.find("[[interface]]\nname = \"tenant-a\"").expect("it is in the lab's config");
    let to = from + 1 + text[from + 1..].find("[[interface]]").expect("there is another");
    format!("{}{RELAYS}{}", &text[..from], &text[to..])
}

/// dnsmasq on `net`, once it listens.
fn server(lab: &Lab) -> Server {
    let leases = lab.path("leases");
    let options = "--no-daemon --conf-file=/dev/null --port=0 --log-dhcp --dhcp-authoritative --no-ping \
                   --dhcp-range=10.0.1.50,10.0.1.60,255.255.255.0,120 --dhcp-option=option:router,10.0.1.1 \
                   --dhcp-range=2001:db8:1::100,2001:db8:1::1ff,64,120";
    let log = std::fs::File::create(lab.path("dnsmasq.log")).expect("a file");
    let mut command = lab.command("net", &format!("dnsmasq {options} --dhcp-leasefile={}", leases.display()));
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("dnsmasq starts");
    let server = Server(child);
    let deadline = Instant::now() + Duration::from_secs(5);
    while lab.must("net", "ss -Hlun sport = :67").is_empty()
        || lab.must("net", "ss -Hlun sport = :547").is_empty()
    {
        assert!(Instant::now() < deadline, "dnsmasq: {}", log_of(lab));
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

fn log_of(lab: &Lab) -> String {
    std::fs::read_to_string(lab.path("dnsmasq.log")).unwrap_or_default()
}

/// What a client runs.
fn script(lab: &Lab, name: &str, lines: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let script = lab.path(name);
    std::fs::write(&script, format!("#!/bin/sh\n{lines}")).expect("a script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a script that runs");
    script
}

/// A client's run to the end: what it said. Its script only sets the address.
fn client(lab: &Lab, options: &str) -> String {
    let script = script(
        lab,
        "dhclient-script",
        "case $reason in\n\
         BOUND|RENEW|REBIND) ip addr replace $new_ip_address/24 dev eth0; ip route replace default via $new_routers;;\n\
         BOUND6|RENEW6|REBIND6) ip addr replace $new_ip6_address/64 dev eth0 nodad;;\n\
         esac\nexit 0\n",
    );
    let files = format!("-sf {} -cf /dev/null", script.display());
    let said = lab.run("a", &format!("timeout 40 dhclient {options} {files} -v eth0"));
    assert!(said.ok, "{options}: {}\nserver: {}", said.text, log_of(lab));
    said.text
}

#[test]
fn leases_through_the_relay() {
    let Some(lab) = Lab::up("leases_through_the_relay", &[]) else { return };
    let gateway = Gateway::start(&lab, &config());
    let (status, said) = gateway.apply(&lab, &with_relays(&config().text(gateway.socket())));
    assert!(status.success(), "{said}");
    let _server = server(&lab);
    // What the lab gave it goes; the client begins from nothing.
    lab.must("a", "ip -4 addr flush dev eth0");
    lab.must("a", "ip -6 addr flush dev eth0 scope global");
    let four = format!("-4 -1 -lf {} -pf {}", lab.path("l4").display(), lab.path("p4").display());
    client(&lab, &four);
    let address = lab.must("a", "ip -4 -o addr show dev eth0");
    assert!(address.contains("10.0.1.5") || address.contains("10.0.1.60"), "{address}");
    lab.ping("a", "198.51.100.1", "");
    // The server saw the option, and the client did not.
    assert!(log_of(&lab).contains("10.0.1.1"), "{}", log_of(&lab));
    // It gives the lease back, which is unicast and routed, and takes one again.
    client(&lab, &format!("-r {four}").replace("-1 ", ""));
    client(&lab, &four);
    lab.ping("a", "198.51.100.1", "");
    let six = format!("-6 -1 -lf {} -pf {}", lab.path("l6").display(), lab.path("p6").display());
    client(&lab, &six);
    let address = lab.must("a", "ip -6 -o addr show dev eth0 scope global");
    assert!(address.contains("2001:db8:1::1"), "{address}");
    lab.must("a", "ip -6 route replace default via 2001:db8:1::1");
    lab.ping("a", "2001:db8:ff::1", "");
    let relays = gateway.show("dhcp-relays");
    for relay in relays.as_array().expect("a list") {
        let [requests, replies] = ["requests", "replies"].map(|of| relay[of].as_u64().expect("a count"));
        assert!(requests >= 2 && replies >= 2, "{relays}");
        assert_eq!(relay["drops"].as_array().expect("a list").len(), 0, "{relays}");
    }
    let mut lost = lost_since(&gateway, &Default::default());
    lost.retain(|(reason, _)| reason.starts_with("dhcp-"));
    assert_eq!(lost, []);
    gateway.stop();
}

#[test]
fn a_lease_is_renewed_past_the_relay() {
    let Some(lab) = Lab::up("a_lease_is_renewed_past_the_relay", &[]) else { return };
    let gateway = Gateway::start(&lab, &config());
    let (status, said) = gateway.apply(&lab, &with_relays(&config().text(gateway.socket())));
    assert!(status.success(), "{said}");
    let _server = server(&lab);
    lab.must("a", "ip -4 addr flush dev eth0");
    let script = script(
        &lab,
        "udhcpc-script",
        "case $1 in\n\
         bound|renew) ip addr replace $ip/24 dev eth0; ip route replace default via $router;;\n\
         esac\nexit 0\n",
    );
    let mut command = lab.command("a", &format!("udhcpc -f -i eth0 -s {}", script.display()));
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("udhcpc starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let client = Server(child);
    let mut obtained = || {
        let mut said = String::new();
        while !said.contains("obtained") {
            said = lines.next().unwrap_or_else(|| panic!("udhcpc ended: {}", log_of(&lab))).expect("text");
        }
        said
    };
    let first = obtained();
    assert!(first.contains("10.0.1.5") || first.contains("10.0.1.60"), "{first}");
    // It says so before its script has run.
    let deadline = Instant::now() + Duration::from_secs(5);
    while lab.must("a", "ip -4 route show default").is_empty() {
        assert!(Instant::now() < deadline, "udhcpc's script has set no route");
        std::thread::sleep(Duration::from_millis(10));
    }
    lab.ping("a", "198.51.100.1", "");
    let relayed = || -> u64 {
        let relays = gateway.show("dhcp-relays");
        let all = relays.as_array().expect("a list").iter();
        all.filter_map(|relay| relay["requests"].as_u64()).sum()
    };
    let before = relayed();
    // udhcpc renews at once when it is told so: from its address to the server's.
    lab.must("a", &format!("kill -USR1 {}", client.0.id()));
    assert_eq!(obtained(), first);
    assert_eq!(relayed(), before, "a renewal is not relayed");
    assert!(log_of(&lab).matches("DHCPACK").count() >= 2, "{}", log_of(&lab));
    gateway.stop();
}
