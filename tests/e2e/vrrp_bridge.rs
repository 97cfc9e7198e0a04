//! Virtual routers on bridged segments: those of hosts, whose advertisements the bridge passes on, and the gateway's own.

use std::path::Path;
use std::time::Duration;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::sessions::Server;
use crate::vrrp::{Pair, VIRTUAL, keepalived, wait_for};

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

/// A host with keepalived to be, on a side.
fn other(pair: &Pair, host: &str, side: usize, number: u8) {
    pair.lab.add_host(host);
    pair.plug(host, "lan", side);
    pair.lab.must(host, &format!("ip addr add 10.8.1.{number}/24 dev lan"));
    pair.lab.must(host, &format!("ip addr add 2001:db8:81::{number}/64 dev lan nodad"));
}

/// The switches learn nothing of the one segment that is on both.
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

fn ends(mut server: Server) {
    server.0.kill().expect("it runs");
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
    wait_for("active", || crate::vrrp::states(&gateway) == ["active", "active"]);
    lab.ping("h1", "10.8.1.253", "");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(log(lab, "k2").matches("MASTER").count(), 0, "{}", log(lab, "k2"));
    answers(lab);
    ends(first);
    says(lab, "k2", "Entering MASTER STATE", 2);
    answers(lab);
    crate::vrrp::no_errors(&gateway);
    ends(second);
    gateway.stop();
}
