//! Going away and coming back under load: what is planned costs no packet, what is not costs no connection.

use serde_json::Value;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::pair::{
    CONNECTIONS, ECHO, Talk, active_and_backup, is_ready, pair_of, paired, start, talks, two_nodes,
};
use crate::pressure::{FLOOD, counter};
use crate::sessions::{Server, python};
use crate::vrrp::{becomes, wait_for};

/// Datagrams with numbers, 500 a second, from h1 through source NAT; each is to come back.
const DATAGRAMS: &str = r#"
import os, socket, threading, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
sock.connect(("10.8.2.10", 9000))
sent, heard, said = 0, set(), 0
def hear():
    while True:
        try:
            heard.add(int(sock.recv(100)))
        except OSError:
            pass
threading.Thread(target=hear, daemon=True).start()
print("ready", flush=True)
while True:
    try:
        sock.send(b"%d" % sent)
    except OSError:
        pass
    sent += 1
    if sent % 50 == 0:
        # What has been under way for a second is lost.
        old = sent - 500
        missing = [number for number in range(max(old, 0)) if number not in heard]
        with open("FILE.new", "w") as file:
            file.write(f"{max(old, 0)} {len(missing)}")
        os.rename("FILE.new", "FILE")
    time.sleep(0.002)
"#;

/// Gives them back.
const MIRROR: &str = r#"
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
sock.bind(("0.0.0.0", 9000))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(100)
    sock.sendto(data, peer)
"#;

struct Datagrams {
    file: std::path::PathBuf,
    _programs: [Server; 2],
}

impl Datagrams {
    fn new(lab: &Lab) -> Datagrams {
        let file = lab.path("datagrams");
        let mirror = python(lab, "h2", "mirror.py", MIRROR);
        let program = DATAGRAMS.replace("FILE", &file.display().to_string());
        let sender = python(lab, "h1", "datagrams.py", &program);
        Datagrams { file, _programs: [mirror, sender] }
    }

    /// Of how many it is known, and how many of them are lost.
    fn known(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut words = text.split(' ').filter_map(|word| word.parse().ok());
        (words.next().unwrap_or(0), words.next().unwrap_or(0))
    }

    /// How many are lost of those that have left until now.
    fn lost(&self) -> u64 {
        let (before, _) = self.known();
        wait_for("datagrams", || self.known().0 > before + 600);
        self.known().1
    }
}

fn drain_of(gateway: &Gateway) -> Value {
    gateway.show("ha")["drain"].clone()
}

/// What a node knows of a neighbour: its MAC address, if it may be used.
fn neighbour(gateway: &Gateway, address: &str) -> Option<String> {
    let all = gateway.show("neighbours");
    let known = all.as_array()?.iter().find(|neighbour| neighbour["address"] == address)?;
    known["mac"].as_str().map(String::from)
}

#[test]
fn who_takes_over_has_been_told_of_neighbours() {
    let Some(pair) = two_nodes("who_takes_over_has_been_told_of_neighbours") else { return };
    let lab = &pair.lab;
    let (first, second) = active_and_backup(lab);
    let (talks, _servers) = talks(lab);
    for (host, address) in [("h1", "10.8.1.10"), ("h2", "10.8.2.10")] {
        let mac = lab.must(host, "cat /sys/class/net/eth0/address").trim().to_owned();
        assert_eq!(neighbour(&first, address).as_deref(), Some(&*mac), "the Active has used it");
        wait_for("the Backup is told", || neighbour(&second, address).as_deref() == Some(&*mac));
    }
    // Also one that has just started.
    let log = first.stop();
    assert!(log.contains("Drained"), "{log}");
    let first = start(lab, 1);
    wait_for("who comes back is told", || neighbour(&first, "10.8.2.10").is_some());
    talks.iter().for_each(Talk::goes_on);
}

/// Random SYNs come to a service behind the SYN proxy all the time; who has got through it does not notice that a node dies,
/// nor that it comes back.
#[test]
fn a_failover_in_a_flood_loses_no_proxied_connection() {
    let Some(pair) = two_nodes("a_failover_in_a_flood_loses_no_proxied_connection") else { return };
    let lab = &pair.lab;
    let key = lab.path("pair.key");
    let start = |number: u8| {
        let text = |socket: &std::path::Path| {
            let priority = [150, 100][usize::from(number) - 1];
            let zone = "[[zone]]\nname = \"outside\"\n";
            paired(socket, number, priority, &key).replacen(
                zone,
                &format!("{zone}syn_proxy_above = 100\n"),
                1,
            ) + "[[route]]\nprefix = \"198.51.100.0/24\"\nvia = [\"10.8.2.10\"]\n"
        };
        Gateway::start_on(lab, &format!("n{number}"), text)
    };
    let (first, second) = (start(1), start(2));
    becomes(&first, "active");
    becomes(&second, "backup");
    let _near = python(lab, "h1", "near.py", &ECHO.replace("PORTS", "[7002]"));
    let flood = FLOOD.replace("198.51.100.80", "10.8.2.102").replace("time.time() + 60", "time.time() + 300");
    let _flood = python(lab, "h2", "flood.py", &flood);
    let is_flooded = |node: &Gateway| {
        let before = counter(node, "syn-cookies.sent");
        wait_for("cookies", || counter(node, "syn-cookies.sent") > before + 1000);
    };
    is_flooded(&first);
    let talk = Talk::new(lab, "h2", ("10.8.2.102", 80));
    talk.goes_on();
    let taken = counter(&first, "syn-cookies.taken");
    assert!(taken >= CONNECTIONS as u64, "{taken} of {CONNECTIONS} went through the proxy");
    is_ready(&first);

    first.kill();
    becomes(&second, "active");
    talk.goes_on();
    is_flooded(&second);
    talk.goes_on();
    let first = start(1);
    becomes(&first, "active");
    is_flooded(&first);
    talk.goes_on();
    second.stop();
    talk.goes_on();
}

#[test]
fn what_is_planned_loses_nothing() {
    let Some(pair) = two_nodes("what_is_planned_loses_nothing") else { return };
    let lab = &pair.lab;
    let (first, second) = active_and_backup(lab);
    let (talks, _servers) = talks(lab);
    let datagrams = Datagrams::new(lab);
    let goes_on = |what: &str, lost: u64| {
        talks.iter().for_each(Talk::goes_on);
        assert_eq!(datagrams.lost(), lost, "datagrams lost: {what}");
    };
    is_ready(&first);
    let lost = datagrams.lost();

    let said = first.ask("drain");
    assert!(said.contains("drained"), "{said}");
    assert_eq!(drain_of(&first)["phase"], "drained");
    becomes(&first, "initialize");
    becomes(&second, "active");
    goes_on("drain", lost);
    // It stays out of service, and comes back when it is told to.
    let said = first.ask("drain --cancel");
    assert!(said.contains("in service"), "{said}");
    becomes(&first, "active");
    becomes(&second, "backup");
    assert_eq!(drain_of(&first), Value::Null);
    goes_on("drain --cancel", lost);

    // A rolling upgrade: each in turn, with the one signal that whoever runs it sends.
    let log = first.stop();
    assert!(log.contains("HandingOver") && log.contains("Drained"), "{log}");
    becomes(&second, "active");
    goes_on("upgrade of the first", lost);
    let first = start(lab, 1);
    becomes(&first, "active");
    is_ready(&first);
    goes_on("the first comes back", lost);
    second.stop();
    goes_on("upgrade of the second", lost);
    let second = start(lab, 2);
    is_ready(&first);
    is_ready(&second);

    // Alone it says so and serves on, unless it is forced.
    second.kill();
    wait_for("it misses the other", || pair_of(&first)["is_there"] == false);
    let (status, said) = first.client("drain");
    assert!(status.code() == Some(1) && said.contains("the other node is not heard"), "{status}: {said}");
    let (status, said) = first.client("drain --force");
    assert!(status.code() == Some(1) && said.contains("nobody has taken over"), "{status}: {said}");
    becomes(&first, "active");
    goes_on("nobody takes over", lost);
    first.stop();
}

#[test]
fn what_is_not_planned_loses_no_connection() {
    let Some(pair) = two_nodes("what_is_not_planned_loses_no_connection") else { return };
    let lab = &pair.lab;
    let (first, second) = active_and_backup(lab);
    let (talks, _servers) = talks(lab);
    is_ready(&first);
    let goes_on = || talks.iter().for_each(Talk::goes_on);

    // A link goes, and comes back.
    lab.must("sw", "ip link set n11 down");
    becomes(&first, "initialize");
    becomes(&second, "active");
    goes_on();
    lab.must("sw", "ip link set n11 up");
    becomes(&first, "active");
    becomes(&second, "backup");
    goes_on();

    // It is stopped for longer than the other waits, and believes to be the Active when it goes on.
    first.signal("-STOP");
    becomes(&second, "active");
    goes_on();
    wait_for("the other is missed", || pair_of(&second)["is_there"] == false);
    first.signal("-CONT");
    wait_for("it is there again", || pair_of(&second)["has_all"] == true);
    becomes(&first, "active");
    becomes(&second, "backup");
    goes_on();

    // They do not hear each other at all, and hosts reach both.
    is_ready(&first);
    let ports = ["n11", "n12", "n21", "n22"];
    lab.must("n1", "ip link set pair down");
    for port in ports {
        lab.must("sw", &format!("bridge link set dev {port} isolated on"));
    }
    becomes(&second, "active");
    becomes(&first, "active");
    goes_on();
    for port in ports {
        lab.must("sw", &format!("bridge link set dev {port} isolated off"));
    }
    lab.must("n1", "ip link set pair up");
    becomes(&second, "backup");
    becomes(&first, "active");
    goes_on();
    is_ready(&first);
    is_ready(&second);
    first.stop();
    goes_on();
}
