//! Receive rings that are full all the time: virtual routers and BFD sessions stay what they are.
//!
//! `FLOOD_SECONDS=60 scripts/test --only e2e` holds them full for a minute; the default is shorter.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::sessions::{Server, python};
use crate::vrrp::{Pair, becomes, config, wait_for};

/// How long, if `FLOOD_SECONDS` does not say so.
const SECONDS: u64 = 10;

/// Small datagrams to the host beyond the virtual router, and to the address of the second node: as many as a CPU sends
/// that has nothing else to do.
const FLOOD: &str = r"
import os, socket
os.nice(-20)
os.sched_setaffinity(0, {0})
ends = [('10.8.2.10', 9), ('10.8.1.2', 9)]
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in ends]
for s, end in zip(sockets, ends):
    s.connect(end)
print('ready', flush=True)
while True:
    for s in sockets:
        try:
            s.send(b'')
        except OSError:
            pass
";

/// Frames that the program gave to the rings of `lan`, and those of them that the worker took: not by its own word, for
/// which it has no time.
fn frames(gateway: &Gateway) -> [u64; 2] {
    let count = |list: &Value, is_it: &dyn Fn(&Value) -> bool, key: &str| {
        let found = list.as_array().and_then(|list| list.iter().find(|entry| is_it(entry)));
        found.and_then(|entry| entry[key].as_u64()).unwrap_or_else(|| panic!("{key}: {list:#}"))
    };
    let given = count(&gateway.show("counters"), &|counter| counter["name"] == "xdp.lan.redirected", "value");
    [given, count(&gateway.show("interfaces"), &|interface| interface["name"] == "lan", "rx_packets")]
}

/// What must not change: states, and how often they have become that.
fn roles(gateway: &Gateway) -> Vec<(Value, Value)> {
    let shown = gateway.show("ha");
    let of = |list: &Value, keys: [&str; 2]| {
        let list = list.as_array().unwrap_or_else(|| panic!("{shown:#}"));
        list.iter().map(|entry| (entry[keys[0]].clone(), entry[keys[1]].clone())).collect::<Vec<_>>()
    };
    [of(&shown["routers"], ["state", "became_active"]), of(&shown["bfd"]["sessions"], ["state", "went_down"])]
        .concat()
}

/// Leaves the workers next to nothing of their CPU.
fn hog() -> Server {
    let mut command = Command::new("nice");
    command.args(["-n", "-20", "taskset", "-c", "1", "python3", "-c", "while True: pass"]);
    Server(command.stdin(Stdio::null()).spawn().expect("nice and taskset run"))
}

#[test]
fn full_rings_change_no_role() {
    let Some(pair) = Pair::new("full_rings_change_no_role") else { return };
    let lab = &pair.lab;
    pair.node("n1");
    pair.node("n2");
    let start = |name: &str, number: u8| {
        Gateway::start_on(lab, name, |socket| {
            let other = 3 - number;
            let tracks = format!("accept = true\ntrack = [{{ bfd = \"10.8.2.{other}\", weight = 60 }}]\n");
            // Whoever had to be asked again would be lost soon.
            format!(
                "{}[neighbours]\nreachable_s = 2\n[[bfd]]\npeer = \"10.8.2.{other}\"\ninterface = \"wan\"\ninterval = \"50ms\"\n",
                config(socket, number, 200 - 50 * number).replacen("accept = true\n", &tracks, 1)
            )
        })
    };
    let (first, second) = (start("n1", 1), start("n2", 2));
    wait_for("the sessions are up", || {
        [&first, &second].iter().all(|node| node.show("ha")["bfd"]["sessions"][0]["state"] == "up")
    });
    becomes(&first, "active");
    becomes(&second, "backup");
    lab.ping("h1", "10.8.2.10", "");
    lab.ping("h1", "10.8.1.2", "");
    // The host knows where to send, whatever it hears.
    for address in ["10.8.1.254", "10.8.1.2"] {
        let known = lab.must("h1", &format!("ip neigh show {address}"));
        let mac = known.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).expect("it is known");
        lab.must("h1", &format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"));
    }
    let before = [&first, &second].map(roles);
    let hog = hog();
    let flood = python(lab, "h1", "flood.py", FLOOD);
    std::thread::sleep(Duration::from_millis(500));
    let seconds = std::env::var("FLOOD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let mut counted = [&first, &second].map(frames);
    for second_of in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        for (node, gateway) in [&first, &second].into_iter().enumerate() {
            let now = frames(gateway);
            let [given, taken] = [0, 1].map(|at| now[at] - counted[node][at]);
            counted[node] = now;
            assert!(
                given > 2 * taken,
                "node {}, second {second_of}: {given} came, {taken} were taken",
                node + 1
            );
            assert_eq!(roles(gateway), before[node], "node {}, second {second_of}", node + 1);
        }
    }
    drop(flood);
    drop(hog);
    wait_for("the worker is back", || lab.answers("h1", "10.8.2.10", 1) == 1);
    assert_eq!([&first, &second].map(roles), before);
    first.stop();
    second.stop();
}
