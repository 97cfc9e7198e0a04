//! Going away and coming back under load: what is planned costs no packet, what is not costs no connection.

use serde_json::Value;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::pair::{Talk, active_and_backup, is_ready, pair_of, start, talks, two_nodes};
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
