//! Virtual routers on bridged segments: those of hosts, whose advertisements the bridge passes on, and the gateway's own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::pair::two_nodes;
use crate::sessions::{Server, python};
use crate::vrrp::{IDS, Pair, VIRTUAL, keepalived, keepalived_with, no_errors, states, sum, wait_for};

/// Hosts on both sides are one segment, which the node bridges; of further tables `extra`.
fn config(socket: &Path, extra: &str) -> String {
    format!(
        r#"
schema = 1
[system]
workers = [1]
frames = 4096
[control]
socket = "{}"
[[port]]
name = "lan"
device = "lan"
[[port]]
name = "wan"
device = "wan"
[[bridge]]
name = "seg"
members = [{{ port = "lan" }}, {{ port = "wan" }}]
[[interface]]
name = "segment"
bridge = "seg"
addresses = ["10.8.1.1/24", "2001:db8:81::1/64"]
{extra}"#,
        socket.display()
    )
}

/// A virtual router of the segment's interface.
fn router(id: u8, priority: u8, [four, six]: [&str; 2], link_local: &str) -> String {
    format!(
        r#"
[[vrrp]]
interface = "segment"
id = {id}
priority = {priority}
interval = "10cs"
addresses = ["{four}", "{link_local}", "{six}"]
accept = true
"#
    )
}

/// The virtual addresses of the segment in tunnels.
const OVERLAY: [&str; 2] = ["10.9.1.254", "2001:db8:91::fe"];

/// The node is a tunnel end point on the second side: of an interface of its own, or of a bridge with these members as well.
fn overlay_config(socket: &Path, priority: u8, members: &str) -> String {
    let addresses = r#"addresses = ["10.9.1.1/24", "2001:db8:91::1/64"]"#;
    let tunnel = r#"vni = 5001, vtep = "10.8.2.1", remotes = ["10.8.2.9"]"#;
    let segment = match members {
        "" => format!("[[interface]]\nname = \"segment\"\n{}\n{addresses}", tunnel.replace(", ", "\n")),
        members => format!(
            "[[bridge]]\nname = \"seg\"\nmembers = [{members}{{ {tunnel} }}]\n\
             [[interface]]\nname = \"segment\"\nbridge = \"seg\"\n{addresses}"
        ),
    };
    format!(
        r#"
schema = 1
[system]
workers = [1]
frames = 4096
[control]
socket = "{}"
[[port]]
name = "lan"
device = "lan"
[[port]]
name = "wan"
device = "wan"
[[interface]]
name = "wan"
port = "wan"
addresses = ["10.8.2.1/24"]
{segment}
{}"#,
        socket.display(),
        router(IDS[0], priority, OVERLAY, "fe80::1")
    )
}

/// A host with keepalived to be, on a side.
fn other(pair: &Pair, host: &str, side: usize, number: u8) {
    pair.lab.add_host(host);
    pair.plug(host, "lan", side);
    pair.lab.must(host, &format!("ip addr add 10.8.1.{number}/24 dev lan"));
    pair.lab.must(host, &format!("ip addr add 2001:db8:81::{number}/64 dev lan nodad"));
}

fn segment(test: &str) -> Option<Pair> {
    let pair = Pair::new(test)?;
    pair.node("n1");
    Some(pair)
}

fn log(lab: &Lab, host: &str) -> String {
    std::fs::read_to_string(lab.path(&format!("{host}.log"))).unwrap_or_default()
}

fn says(lab: &Lab, host: &str, what: &str, count: usize) {
    wait_for(&format!("{host}: {what}"), || log(lab, host).matches(what).count() >= count);
}

fn answers(lab: &Lab) {
    for address in VIRTUAL[0] {
        wait_for(address, || lab.answers("h1", address, 1) == 1);
        lab.ping("h1", address, "");
    }
}

/// With a word: who is killed leaves its addresses behind.
fn ends(mut server: Server) {
    let status = Command::new("kill").arg(server.0.id().to_string()).status().expect("kill runs");
    assert!(status.success());
    server.0.wait().expect("our own child");
}

#[test]
fn hosts_of_a_segment_are_a_pair_of_their_own() {
    let Some(pair) = segment("hosts_of_a_segment_are_a_pair_of_their_own") else { return };
    let lab = &pair.lab;
    other(&pair, "k1", 1, 3);
    other(&pair, "k2", 2, 4);
    let gateway = Gateway::start_on(lab, "n1", |socket| config(socket, ""));
    lab.ping("h1", "10.8.1.4", "");
    let first = keepalived(lab, "k1", 150);
    says(lab, "k1", "Entering MASTER STATE", 2);
    let second = keepalived(lab, "k2", 100);
    says(lab, "k2", "Entering BACKUP STATE", 2);
    answers(lab);
    // Longer than it waits for an advertisement.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(log(lab, "k2").matches("MASTER").count(), 0, "{}", log(lab, "k2"));
    // Another virtual router of ours on the segment changes nothing for them.
    let more = router(77, 100, ["10.8.1.253", "2001:db8:81::fd"], "fe80::2");
    let (status, said) = gateway.apply(lab, &config(gateway.socket(), &more));
    assert!(status.success(), "{said}");
    wait_for("active", || states(&gateway) == ["active", "active"]);
    lab.ping("h1", "10.8.1.253", "");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(log(lab, "k2").matches("MASTER").count(), 0, "{}", log(lab, "k2"));
    answers(lab);
    ends(first);
    says(lab, "k2", "Entering MASTER STATE", 2);
    answers(lab);
    no_errors(&gateway);
    ends(second);
    gateway.stop();
}

#[test]
fn keepalived_behind_a_member_is_the_other() {
    let Some(pair) = segment("keepalived_behind_a_member_is_the_other") else { return };
    let lab = &pair.lab;
    other(&pair, "k", 2, 3);
    // A third one that would take over if it heard nobody: what the gateway hears of the other goes on to it.
    other(&pair, "k3", 1, 4);
    let text = |priority: u8| {
        let router = router(IDS[0], priority, VIRTUAL[0], "fe80::1");
        move |socket: &Path| config(socket, &router)
    };
    let both = |gateway: &Gateway, state: &str| wait_for(state, || states(gateway) == [state, state]);

    // It takes over from SoftGate, by its priority, and gives back with a word.
    let gateway = Gateway::start_on(lab, "n1", text(100));
    both(&gateway, "active");
    answers(lab);
    no_errors(&gateway);
    let third = keepalived(lab, "k3", 10);
    says(lab, "k3", "Entering BACKUP STATE", 2);
    let better = keepalived(lab, "k", 150);
    says(lab, "k", "Entering MASTER STATE", 2);
    both(&gateway, "backup");
    wait_for("hears it", || sum(&gateway, "received") > 10);
    answers(lab);
    let known = lab.must("h1", "ip neigh");
    assert!(known.contains("00:00:5e:00:01:0a") && known.contains("00:00:5e:00:02:0a"), "{known}");
    // The virtual MAC address is a station behind that member now.
    let macs = gateway.show("macs");
    let entry = |mac: &str| macs["macs"].as_array()?.iter().find(|entry| entry["mac"] == mac).cloned();
    for mac in ["00:00:5e:00:01:0a", "00:00:5e:00:02:0a"] {
        assert_eq!(entry(mac).unwrap_or_else(|| panic!("{macs}"))["member"], "wan");
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(log(lab, "k3").matches("MASTER").count(), 0, "{}", log(lab, "k3"));
    no_errors(&gateway);
    ends(better);
    both(&gateway, "active");
    ends(third);
    answers(lab);

    // It is keepalived that waits, behind a member, and hears SoftGate by it.
    let waits = keepalived(lab, "k", 50);
    says(lab, "k", "Entering BACKUP STATE", 2);
    answers(lab);
    no_errors(&gateway);
    gateway.stop();
    ends(waits);
}

/// Both nodes are tunnel end points of one segment, and a station behind a third: who of them is its gateway is a matter of
/// advertisements in tunnels alone.
#[test]
fn two_nodes_are_one_gateway_of_a_segment_in_tunnels() {
    let Some(pair) = Pair::new("two_nodes_are_one_gateway_of_a_segment_in_tunnels") else { return };
    let lab = &pair.lab;
    for node in ["n1", "n2"] {
        pair.node(node);
    }
    lab.must("h2", "ip link add vx type vxlan id 5001 local 10.8.2.10 dstport 4789");
    lab.must("h2", "ethtool -K vx tx off");
    lab.add_host("k");
    lab.hand("vx", "h2", "k");
    for node in ["10.8.2.1", "10.8.2.2"] {
        lab.must("k", &format!("bridge fdb append 00:00:00:00:00:00 dev vx dst {node}"));
    }
    lab.must("k", "ip link set vx mtu 1450 up");
    lab.must("k", "ip addr add 10.9.1.3/24 dev vx");
    lab.must("k", "ip addr add 2001:db8:91::3/64 dev vx nodad");
    let text = |number: u8, priority: u8| {
        move |socket: &Path| {
            let peers = if number == 1 { ["10.8.2.2", "10.8.2.10"] } else { ["10.8.2.1", "10.8.2.10"] };
            overlay_config(socket, priority, "")
                .replace("[\"10.8.2.9\"]", &format!("{peers:?}"))
                .replace("\"10.8.2.1\"\n", &format!("\"10.8.2.{number}\"\n"))
                .replace("\"10.8.2.1/24\"", &format!("\"10.8.2.{number}/24\""))
                .replace("10.9.1.1/24", &format!("10.9.1.{number}/24"))
                .replace("2001:db8:91::1/64", &format!("2001:db8:91::{number}/64"))
        }
    };
    let are = |gateway: &Gateway, state: &str| wait_for(state, || states(gateway) == [state, state]);
    // Who takes over may have to ask for the next hops of its tunnels first.
    let reaches = || {
        for address in OVERLAY {
            wait_for(address, || lab.answers("k", address, 1) == 1);
            lab.ping("k", address, "");
        }
    };
    let (first, second) =
        (Gateway::start_on(lab, "n1", text(1, 150)), Gateway::start_on(lab, "n2", text(2, 100)));
    are(&first, "active");
    are(&second, "backup");
    wait_for("hears it", || sum(&second, "received") > 10);
    reaches();
    no_errors(&first);
    no_errors(&second);
    first.kill();
    are(&second, "active");
    reaches();
    let first = Gateway::start_on(lab, "n1", text(1, 150));
    are(&first, "active");
    are(&second, "backup");
    reaches();
    first.stop();
    are(&second, "active");
    reaches();
    second.stop();
}

/// The other router is behind the kernel's own tunnel end point.
#[test]
fn keepalived_in_a_tunnel_is_the_other() {
    let Some(pair) = segment("keepalived_in_a_tunnel_is_the_other") else { return };
    let lab = &pair.lab;
    // `t` carries the tunnel, `k` is the station at its end.
    lab.add_host("t");
    pair.plug("t", "eth0", 2);
    lab.must("t", "ip addr add 10.8.2.9/24 dev eth0");
    lab.must("t", "ip link add vx type vxlan id 5001 local 10.8.2.9 remote 10.8.2.1 dstport 4789");
    lab.add_host("k");
    lab.must("t", "ethtool -K vx tx off");
    lab.must("t", "ip link set vx name lan");
    lab.hand("lan", "t", "k");
    lab.must("k", "ip link set lan mtu 1450 up");
    lab.must("k", "ip addr add 10.9.1.3/24 dev lan");
    lab.must("k", "ip addr add 2001:db8:91::3/64 dev lan nodad");
    let text =
        |priority: u8, members: &'static str| move |socket: &Path| overlay_config(socket, priority, members);
    let both = |gateway: &Gateway, state: &str| wait_for(state, || states(gateway) == [state, state]);
    for members in ["", r#"{ port = "lan" }, "#] {
        let gateway = Gateway::start_on(lab, "n1", text(100, members));
        both(&gateway, "active");
        for address in OVERLAY {
            wait_for(address, || lab.answers("k", address, 1) == 1);
            lab.ping("k", address, "");
        }
        let known = lab.must("k", "ip neigh");
        assert!(known.contains("00:00:5e:00:01:0a") && known.contains("00:00:5e:00:02:0a"), "{known}");
        // As SoftGate's backup, and then as the better one.
        let waits = keepalived_with(lab, "k", 50, IDS[0], OVERLAY);
        says(lab, "k", "Entering BACKUP STATE", 2);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(log(lab, "k").matches("MASTER").count(), 0, "{}", log(lab, "k"));
        no_errors(&gateway);
        gateway.kill();
        says(lab, "k", "Entering MASTER STATE", 2);
        let gateway = Gateway::start_on(lab, "n1", text(20, members));
        both(&gateway, "backup");
        wait_for("hears it", || sum(&gateway, "received") > 10);
        no_errors(&gateway);
        ends(waits);
        both(&gateway, "active");
        for address in OVERLAY {
            lab.ping("k", address, "");
        }
        gateway.stop();
    }
}

/// Counts the datagrams that come, and says nothing.
const LISTEN: &str = r#"
import os, socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("0.0.0.0", 9000))
print("ready", flush=True)
heard = 0
while True:
    sock.recv(100)
    heard += 1
    with open("FILE.new", "w") as file:
        file.write(str(heard))
    os.rename("FILE.new", "FILE")
"#;

const SEND: &str = r#"
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
while True:
    sock.sendto(b"x", ("10.8.1.10", 9000))
    time.sleep(0.02)
"#;

/// The switch behind one member has learned where a station behind the other is, and hears nothing of it: after a take-over
/// only the node can say that it is there.
#[test]
fn who_takes_over_announces_stations() {
    let Some(pair) = two_nodes("who_takes_over_announces_stations") else { return };
    let lab = &pair.lab;
    let key = lab.path("pair.key");
    let start = |number: u8, priority: u8| {
        let text = |socket: &Path| {
            let router = router(IDS[0], priority, VIRTUAL[0], "fe80::1") + "group = \"main\"\n";
            let other = 3 - number;
            config(socket, &router)
                .replace("members =", "group = \"main\"\nmembers =")
                .replace("10.8.1.1/24", &format!("10.8.1.{number}/24"))
                .replace("2001:db8:81::1/64", &format!("2001:db8:81::{number}/64"))
                + &format!(
                    "[pair]\nlocal = \"192.0.2.{number}:5405\"\npeer = \"192.0.2.{other}:5405\"\nkey_file = \"{}\"\n",
                    key.display()
                )
        };
        Gateway::start_on(lab, &format!("n{number}"), text)
    };
    let are = |gateway: &Gateway, state: &str| wait_for(state, || states(gateway) == [state, state]);
    let mac = |host: &str| lab.must(host, "cat /sys/class/net/eth0/address").trim().to_owned();
    let station = mac("h1");
    let knows = |gateway: &Gateway| {
        let shown = gateway.show("macs");
        let all = shown["macs"].as_array().cloned().unwrap_or_default();
        all.iter().any(|entry| entry["mac"] == station.as_str() && entry["member"] == "lan")
    };
    let (first, second) = (start(1, 150), start(2, 100));
    are(&first, "active");
    are(&second, "backup");

    // It is silent.
    lab.must("h1", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    lab.must("h2", "ip addr add 10.8.1.20/24 dev eth0");
    lab.ping("h2", "10.8.1.10", "");
    // Whoever asks for it would hear of its place.
    lab.must("h2", &format!("ip neigh replace 10.8.1.10 lladdr {station} dev eth0 nud permanent"));
    lab.must("h1", &format!("ip neigh replace 10.8.1.20 lladdr {} dev eth0 nud permanent", mac("h2")));
    let file = lab.path("heard");
    let _listener = python(lab, "h1", "listen.py", &LISTEN.replace("FILE", &file.display().to_string()));
    let _sender = python(lab, "h2", "send.py", SEND);
    let goes_on = || {
        let heard =
            || std::fs::read_to_string(&file).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let before = heard();
        wait_for("datagrams come", || heard() > before + 50);
    };
    goes_on();
    wait_for("it is told", || knows(&second));

    first.kill();
    are(&second, "active");
    goes_on();
    assert!(knows(&second));
    no_errors(&second);
    second.stop();
}
