//! Two nodes that have each other's sessions: one is killed, and connections through NAT, to a published server and to a
//! service go on by the other.

use std::path::Path;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::sessions::{Server, python};
use crate::vrrp::{Pair, becomes, config, wait_for};

/// Connections of each kind.
pub const CONNECTIONS: usize = 20;

/// Both nodes have this. The addresses of NAT are in the network of the far side, where the virtual router answers for
/// them.
const POLICY: &str = r#"
[[zone]]
name = "inside"
[[zone]]
name = "outside"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[rule]]
name = "in"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside" }
service = ["tcp/7001", "tcp/7002"]
[[nat.source]]
name = "pool"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["10.8.2.100"]
[[nat.destination]]
name = "published"
address = "10.8.2.101"
service = "tcp/7001"
target = "10.8.1.10"
[[service]]
name = "shop"
address = "10.8.2.102"
service = "tcp/80"
backends = [{ address = "10.8.1.10:7002" }]
"#;

/// Gives everything back.
pub const ECHO: &str = r#"
import socket, sys, threading
def serve(conn):
    while data := conn.recv(65536):
        conn.sendall(data)
def listen(port):
    server = socket.create_server(("0.0.0.0", port), backlog=256)
    def run():
        while True:
            conn, _ = server.accept()
            threading.Thread(target=serve, args=(conn,), daemon=True).start()
    threading.Thread(target=run).start()
for port in PORTS:
    listen(port)
print("ready", flush=True)
"#;

/// Sends lines by many connections, each of which waits for its line to come back; writes how many have.
const TALK: &str = r#"
import os, socket, threading, time
counts, faults = {}, []
def talk(number):
    try:
        conn = socket.create_connection(("HOST", PORT), timeout=20)
        conn.settimeout(20)
        for line in range(1 << 30):
            said = b"%08d" % line
            conn.sendall(said)
            heard = b""
            while len(heard) < len(said):
                more = conn.recv(len(said) - len(heard))
                if not more:
                    raise OSError("closed")
                heard += more
            assert heard == said
            counts[number] = line + 1
            time.sleep(0.02)
    except BaseException as fault:
        faults.append(f"{number}: {fault!r}")
for number in range(MANY):
    threading.Thread(target=talk, args=(number,), daemon=True).start()
print("ready", flush=True)
while True:
    with open("FILE.new", "w") as file:
        file.write("\n".join([str(min(counts.values(), default=0) if len(counts) == MANY else 0)] + faults))
    os.rename("FILE.new", "FILE")
    time.sleep(0.05)
"#;

/// Begins connections one after the other, each of which says a word and hears it; writes how many have.
const KNOCK: &str = r#"
import os, socket, threading, time
counts, faults = {}, []
def knock(number):
    counts[number] = 0
    try:
        while True:
            with socket.create_connection(("HOST", PORT), timeout=20) as conn:
                conn.sendall(b"knock")
                heard = b""
                while len(heard) < 5:
                    more = conn.recv(5)
                    if not more:
                        raise OSError("closed")
                    heard += more
            counts[number] += 1
            time.sleep(0.1)
    except BaseException as fault:
        faults.append(f"{number}: {counts[number]} and {fault!r}")
for number in range(4):
    threading.Thread(target=knock, args=(number,), daemon=True).start()
print("ready", flush=True)
while True:
    with open("FILE.new", "w") as file:
        file.write("\n".join([str(min(counts.values()))] + faults))
    os.rename("FILE.new", "FILE")
    time.sleep(0.05)
"#;

pub struct Talk {
    file: std::path::PathBuf,
    _program: Server,
}

impl Talk {
    pub fn new(lab: &Lab, host: &str, to: (&str, u16)) -> Talk {
        Talk::by(TALK, "talk", lab, host, to)
    }

    /// New connections all the time, in the place of lasting ones.
    pub fn anew(lab: &Lab, host: &str, to: (&str, u16)) -> Talk {
        Talk::by(KNOCK, "knock", lab, host, to)
    }

    fn by(program: &str, name: &str, lab: &Lab, host: &str, to: (&str, u16)) -> Talk {
        let file = lab.path(&format!("{name}-{}", to.1));
        let program = program
            .replace("HOST", to.0)
            .replace("PORT", &to.1.to_string())
            .replace("MANY", &CONNECTIONS.to_string())
            .replace("FILE", &file.display().to_string());
        let program = python(lab, host, &format!("{name}-{}.py", to.1), &program);
        Talk { file, _program: program }
    }

    /// How many lines have come back on each connection at least; none has failed.
    fn lines(&self) -> u64 {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let mut lines = text.lines();
        let count = lines.next().and_then(|count| count.parse().ok()).unwrap_or(0);
        let faults: Vec<&str> = lines.collect();
        assert!(faults.is_empty(), "{}: {faults:?}", self.file.display());
        count
    }

    pub fn goes_on(&self) {
        let before = self.lines();
        wait_for("every connection goes on", || self.lines() > before + 20);
    }
}

/// The config of a node: both sides with their zones, and the other node on a cable of their own.
pub fn paired(socket: &Path, number: u8, priority: u8, key: &Path) -> String {
    let text = config(socket, number, priority)
        .replacen("port = \"lan\"\n", "port = \"lan\"\nzone = \"inside\"\n", 1)
        .replacen("port = \"wan\"\n", "port = \"wan\"\nzone = \"outside\"\n", 1);
    let other = 3 - number;
    format!(
        "{text}{POLICY}[pair]\nlocal = \"192.0.2.{number}:5405\"\npeer = \"192.0.2.{other}:5405\"\n\
         key_file = \"{}\"\n",
        key.display()
    )
}

pub fn pair_of(gateway: &Gateway) -> Value {
    gateway.show("ha")["pair"].clone()
}

/// The other node has all that this one has.
pub fn is_ready(gateway: &Gateway) {
    let mut last = Value::Null;
    for _ in 0..1000 {
        last = pair_of(gateway);
        if last["is_synced"] == true && last["unready"] == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("never ready: {last:#}");
}

/// Two nodes and a cable between them.
pub fn two_nodes(test: &str) -> Option<Pair> {
    let pair = Pair::new(test)?;
    let lab = &pair.lab;
    for node in ["n1", "n2"] {
        pair.node(node);
    }
    lab.must("n1", "ip link add pair type veth peer name pair2");
    lab.hand("pair2", "n1", "n2");
    for (node, device, number) in [("n1", "pair", 1), ("n2", "pair2", 2)] {
        lab.must(node, &format!("ip addr add 192.0.2.{number}/30 dev {device}"));
        lab.must(node, &format!("ip link set {device} up"));
    }
    std::fs::write(lab.path("pair.key"), "a secret for the two of them\n").expect("a file");
    Some(pair)
}

/// The node with this number: the first has the higher priority.
pub fn start(lab: &Lab, number: u8) -> Gateway {
    start_with(lab, number, "")
}

/// With more lines in `[pair]`.
pub fn start_with(lab: &Lab, number: u8, more: &str) -> Gateway {
    let key = lab.path("pair.key");
    let priority = [150, 100][usize::from(number) - 1];
    Gateway::start_on(lab, &format!("n{number}"), |socket| paired(socket, number, priority, &key) + more)
}

/// Connections through source NAT, to a published server, to a service, and who answers.
pub fn talks(lab: &Lab) -> ([Talk; 3], [Server; 2]) {
    let far = python(lab, "h2", "far.py", &ECHO.replace("PORTS", "[7000]"));
    let near = python(lab, "h1", "near.py", &ECHO.replace("PORTS", "[7001, 7002]"));
    let talks = [
        Talk::new(lab, "h1", ("10.8.2.10", 7000)),
        Talk::new(lab, "h2", ("10.8.2.101", 7001)),
        Talk::new(lab, "h2", ("10.8.2.102", 80)),
    ];
    talks.iter().for_each(Talk::goes_on);
    (talks, [far, near])
}

/// Both nodes, the first of which is the Active.
pub fn active_and_backup(lab: &Lab) -> (Gateway, Gateway) {
    let (first, second) = (start(lab, 1), start(lab, 2));
    becomes(&first, "active");
    becomes(&second, "backup");
    (first, second)
}

#[test]
fn connections_go_on_when_a_node_dies() {
    let Some(pair) = two_nodes("connections_go_on_when_a_node_dies") else { return };
    let lab = &pair.lab;
    let (first, second) = active_and_backup(lab);

    let (talks, _servers) = talks(lab);
    is_ready(&first);
    let there = pair_of(&second);
    assert_eq!(there["installed"], 3 * CONNECTIONS, "{there:#}");
    assert_eq!(there["not_installed"], Value::Array(Vec::new()), "{there:#}");

    // It dies without a word: everything goes on by the other.
    first.kill();
    becomes(&second, "active");
    talks.iter().for_each(Talk::goes_on);

    // It comes back with nothing, is told everything, and takes over again.
    let first = start(lab, 1);
    becomes(&first, "active");
    let here = pair_of(&first);
    assert_eq!(here["has_all"], true, "it has waited for that: {here:#}");
    talks.iter().for_each(Talk::goes_on);
    second.stop();
    talks.iter().for_each(Talk::goes_on);
}
