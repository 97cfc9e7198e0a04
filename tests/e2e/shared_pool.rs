//! Two nodes, each the Active of one group of virtual routers, and one pool for the hosts of both: no port is given twice,
//! every answer finds its way, and a node that dies leaves nothing behind that the other cannot go on with.

use std::collections::BTreeSet;
use std::path::Path;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::pair::{ECHO, Talk, is_ready, two_nodes};
use crate::sessions::python;
use crate::vrrp::{config, wait_for};

/// The hosts' second network, whose virtual router the second node likes to have; the pool is in the far network, where the
/// first node answers for it.
const SECOND: &str = r#"
[[zone]]
name = "inside"
[[zone]]
name = "outside"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[nat.source]]
name = "pool"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["10.8.2.100"]
shared = true
[[port]]
name = "lan2"
device = "lan2"
[[interface]]
name = "lan2"
port = "lan2"
zone = "inside"
addresses = ["10.8.3.NUMBER/24"]
[[vrrp]]
interface = "lan2"
id = 30
priority = PRIORITY
interval = "10cs"
addresses = ["10.8.3.254"]
group = "second"
[[port]]
name = "sync"
device = "sync"
[[interface]]
name = "sync"
port = "sync"
zone = "pair"
mtu = 1600
addresses = ["203.0.113.NUMBER/30"]
[[zone]]
name = "pair"
[pair]
local = "192.0.2.NUMBER:5405"
peer = "192.0.2.OTHER:5405"
key_file = "KEY"
link = { local = "203.0.113.NUMBER", peer = "203.0.113.OTHER" }
"#;

fn text(socket: &Path, number: u8, key: &Path) -> String {
    let priority = [150, 100];
    let own = usize::from(number) - 1;
    let first = config(socket, number, priority[own])
        .replacen("port = \"lan\"\n", "port = \"lan\"\nzone = \"inside\"\n", 1)
        .replacen("port = \"wan\"\n", "port = \"wan\"\nzone = \"outside\"\n", 1);
    let second = SECOND
        .replace("NUMBER", &number.to_string())
        .replace("OTHER", &(3 - number).to_string())
        .replace("PRIORITY", &priority[1 - own].to_string())
        .replace("KEY", &key.display().to_string());
    first + &second
}

fn start(lab: &Lab, number: u8) -> Gateway {
    let key = lab.path("pair.key");
    Gateway::start_on(lab, &format!("n{number}"), |socket| text(socket, number, &key))
}

/// All virtual routers on an interface have come to a state.
fn has(gateway: &Gateway, interface: &str, state: &str) {
    wait_for(&format!("{interface} {state}"), || {
        let shown = gateway.show("ha");
        let routers = shown["routers"].as_array().unwrap_or_else(|| panic!("show ha: {shown:#}")).iter();
        let mut its = routers.filter(|router| router["interface"] == interface).peekable();
        its.peek().is_some() && its.all(|router| router["state"] == state)
    });
}

/// What the far host takes for the source ports of the connections to one of its ports.
fn ports(lab: &Lab, port: u16) -> BTreeSet<u16> {
    let said = lab.must("h2", &format!("ss -Htn state established sport = :{port}"));
    let peers = said.lines().filter_map(|line| line.split_whitespace().last());
    let ports: Vec<u16> = peers
        .map(|peer| {
            let (addr, port) = peer.rsplit_once(':').unwrap_or_else(|| panic!("{said}"));
            assert_eq!(addr.trim_start_matches("[::ffff:").trim_end_matches(']'), "10.8.2.100", "{said}");
            port.parse().unwrap_or_else(|_| panic!("{said}"))
        })
        .collect();
    let different: BTreeSet<u16> = ports.iter().copied().collect();
    assert_eq!(different.len(), ports.len(), "{said}");
    different
}

fn are_in(ports: &BTreeSet<u16>, half: std::ops::RangeInclusive<u16>) {
    assert!(ports.len() >= 20 && ports.iter().all(|port| half.contains(port)), "{ports:?}");
}

const LOWER: std::ops::RangeInclusive<u16> = 1024..=32767;
const UPPER: std::ops::RangeInclusive<u16> = 32768..=65535;

#[test]
fn hosts_of_both_nodes_leave_by_one_address() {
    let Some(pair) = two_nodes("hosts_of_both_nodes_leave_by_one_address") else { return };
    let lab = &pair.lab;
    lab.must("n1", "ip link add sync mtu 1600 type veth peer name sync2 mtu 1600");
    lab.hand("sync2", "n1", "n2");
    lab.must("n2", "ip link set sync2 name sync");
    for node in ["n1", "n2"] {
        lab.must(node, "ethtool -K sync tx off txvlan off");
        lab.must(node, "ip link set sync up");
    }
    lab.must("sw", "ip link add vr3 type bridge stp_state 0 mcast_snooping 0 forward_delay 0");
    lab.must("sw", "ip link set vr3 up");
    lab.add_host("h3");
    pair.plug("h3", "eth0", 3);
    ["n1", "n2"].into_iter().for_each(|node| pair.plug(node, "lan2", 3));
    lab.must("h3", "ip addr add 10.8.3.10/24 dev eth0");
    lab.must("h3", "ip route add default via 10.8.3.254");
    let (first, second) = (start(lab, 1), start(lab, 2));
    for (active, backup, interface) in
        [(&first, &second, "lan"), (&first, &second, "wan"), (&second, &first, "lan2")]
    {
        has(active, interface, "active");
        has(backup, interface, "backup");
    }

    let _far = python(lab, "h2", "far.py", &ECHO.replace("PORTS", "[7000, 7003, 7004, 7005, 7006]"));
    let of_first = Talk::new(lab, "h1", ("10.8.2.10", 7000));
    let of_second = Talk::new(lab, "h3", ("10.8.2.10", 7003));
    let go_on = || [&of_first, &of_second].into_iter().for_each(Talk::goes_on);
    go_on();
    for host in ["h1", "h3"] {
        lab.ping(host, "10.8.2.10", "-s 1400");
    }
    are_in(&ports(lab, 7000), LOWER);
    are_in(&ports(lab, 7003), UPPER);
    let received =
        |gateway: &Gateway| gateway.show("ha")["pair"]["link_received"].as_u64().expect("a number");
    assert!(received(&second) > 100, "what comes to the first node is for the second");
    for (gateway, said) in [(&first, "gives ports 1024-32767"), (&second, "gives ports 32768-65535")] {
        let shown = gateway.ask("show nat");
        assert!(shown.contains(said), "{shown}");
        let halves = gateway.show("nat")[0]["shared"].clone();
        let given = |field: &str| halves[field].as_u64().is_some_and(|given| given > 0);
        assert!(given("own_blocks_given") && given("peer_blocks_given"), "{halves:#}");
    }

    // The second dies: the first goes on with what it had given, and gives of its own half to its hosts.
    is_ready(&second);
    second.kill();
    has(&first, "lan2", "active");
    go_on();
    let meanwhile = Talk::new(lab, "h3", ("10.8.2.10", 7004));
    meanwhile.goes_on();
    are_in(&ports(lab, 7004), LOWER);

    // It comes back, is told of all, and is the Active of its group again.
    let second = start(lab, 2);
    has(&second, "lan2", "active");
    go_on();
    meanwhile.goes_on();
    let again = Talk::new(lab, "h3", ("10.8.2.10", 7005));
    again.goes_on();
    are_in(&ports(lab, 7005), UPPER);

    // The first dies, which answers for the address.
    is_ready(&first);
    first.kill();
    for interface in ["lan", "wan"] {
        has(&second, interface, "active");
    }
    go_on();
    [&meanwhile, &again].into_iter().for_each(Talk::goes_on);
    let last = Talk::new(lab, "h1", ("10.8.2.10", 7006));
    last.goes_on();
    are_in(&ports(lab, 7006), UPPER);
    second.stop();
}
