//! Firewall and NAT with real programs on either side: what they see of each other is the judge.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::pair::{CONNECTIONS, ECHO, Talk};
use crate::vrrp::wait_for;
use crate::{CLIENT_A, CLIENT_B, NET};

/// `a` is in zone inside, `b` in servers, `net` in outside. The pool and all outside addresses are in the uplink's
/// own network: nothing on `net` knows of them, so the gateway has to answer for them.
const POLICY: &str = r#"
[[rule]]
name = "inside-out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[rule]]
name = "servers-out"
action = "allow"
from = { zone = "servers" }
to = { zone = "outside" }
[[rule]]
name = "published"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside", prefix = "10.0.1.10" }
service = "tcp/8080"
[[rule]]
name = "ping-servers"
action = "allow"
from = { zone = "outside" }
to = { zone = "servers" }
service = "icmp/echo-request"
[[rule]]
name = "no-telnet"
action = "reject"
from = { zone = "inside" }
to = { zone = "servers" }
service = ["tcp/23", "udp/23"]
[[nat.source]]
name = "internet"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["198.51.100.64/30"]
[[nat.destination]]
name = "web"
address = "198.51.100.80"
service = "tcp/80"
target = "10.0.1.10:8080"
[[nat.static]]
outside = "198.51.100.90"
inside = "10.0.2.10"
"#;

pub fn zoned() -> Config {
    Config { zones: ["inside", "servers", "outside"], ..Config::default() }.with(POLICY)
}

/// So many bytes of TCP (as `iperf3 --bytes` has them) from one host to another.
pub fn transfer(lab: &Lab, from: &str, to: &str, address: &str, bytes: &str) {
    let server = lab.command(to, "iperf3 --server --one-off --port 5401").stdout(Stdio::null()).spawn();
    let _server = Server(server.expect("iperf3 starts"));
    let deadline = Instant::now() + Duration::from_secs(5);
    while lab.must(to, "ss -Htln sport = :5401").is_empty() {
        assert!(Instant::now() < deadline, "iperf3 does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    lab.must(from, &format!("iperf3 --client {address} --port 5401 --bytes {bytes}"));
}

/// A program that runs beside the test.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Python program on a host, once it has said its first line.
pub fn python(lab: &Lab, host: &str, name: &str, program: &str) -> Server {
    let file = lab.path(name);
    std::fs::write(&file, program).expect("the program can be written");
    let mut command = lab.command(host, &format!("python3 -u {}", file.display()));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("python3 starts");
    let mut line = String::new();
    let out = child.stdout.take().expect("it is piped");
    BufReader::new(out).read_line(&mut line).expect("it says something");
    assert_eq!(line.trim(), "ready", "{host}: {name}");
    Server(child)
}

/// A Python program that ends by itself: what it printed.
pub fn python_says(lab: &Lab, host: &str, program: &str) -> String {
    let file = lab.path(&format!("{host}.py"));
    std::fs::write(&file, program).expect("the program can be written");
    lab.must(host, &format!("python3 {}", file.display()))
}

/// Tells every UDP and TCP client its address and port.
const MIRROR: &str = r"
import socket, threading
def udp(addr):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((addr, 7000))
    while True:
        data, peer = s.recvfrom(65535)
        s.sendto(('%s %d' % peer).encode(), peer)
def tcp():
    s = socket.create_server(('0.0.0.0', 7000))
    while True:
        c, peer = s.accept()
        threading.Thread(target=serve, args=(c, peer), daemon=True).start()
def serve(c, peer):
    while c.recv(1000):
        c.sendall(('%s %d\n' % peer).encode())
for addr in ('198.51.100.1', '198.51.100.3'):
    threading.Thread(target=udp, args=(addr,), daemon=True).start()
threading.Thread(target=tcp, daemon=True).start()
import time
time.sleep(0.2)
print('ready')
time.sleep(600)
";

#[test]
fn nat_for_real_programs() {
    let Some(lab) = Lab::up("nat_for_real_programs", &[]) else { return };
    real_programs(&lab, &zoned());
}

/// The kernel spreads what comes in over four queues of each port, and two workers have two of them each: most packets
/// reach the worker that has not got their flow.
#[test]
fn nat_with_two_workers_on_four_queues() {
    let Some(lab) = Lab::up("nat_with_two_workers_on_four_queues", &["--queues", "4"]) else { return };
    real_programs(&lab, &Config { workers: "[0, 1]", ..zoned() });
}

fn real_programs(lab: &Lab, config: &Config) {
    let gateway = Gateway::start(lab, config);
    lab.must("net", "ip address add 198.51.100.3/24 dev eth0");
    let _mirror = python(lab, "net", "mirror.py", MIRROR);

    // One mapping for two destinations (RFC 4787 REQ-1), from the pool, the class of the port kept (REQ-3).
    let said = python_says(
        lab,
        "a",
        r"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.bind(('', 40000))
seen = []
for server in ('198.51.100.1', '198.51.100.3', '198.51.100.1'):
    s.sendto(b'hello', (server, 7000))
    seen.append(s.recv(100).decode())
print('\n'.join(seen))
",
    );
    let seen: Vec<&str> = said.lines().collect();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|line| line == &seen[0]), "one mapping: {said}");
    let (addr, port) = seen[0].split_once(' ').expect("address and port");
    let last: u8 = addr.strip_prefix("198.51.100.").and_then(|last| last.parse().ok()).expect("of the pool");
    assert!((64..68).contains(&last), "{addr}");
    assert!(port.parse::<u16>().expect("a port") >= 1024);

    // TCP, with a pause longer than a mapping takes to be forgotten by mistake.
    let said = python_says(
        lab,
        "a",
        r"
import socket, time
c = socket.create_connection(('198.51.100.1', 7000), 3)
for pause in (0, 6):
    time.sleep(pause)
    c.sendall(b'x')
    print(c.recv(100).decode().strip())
",
    );
    let seen: Vec<&str> = said.lines().collect();
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].starts_with(&format!("{addr} ")), "paired pooling (RFC 4787 REQ-2): {said}");

    lab.ping("a", NET[0], "");
    // Fragments there and back.
    lab.ping("a", NET[0], "-s 4000");
    let tcp = lab.iperf("a", NET[0], "--time 1");
    assert!(tcp.mbits() > 50.0, "{} Mbit/s", tcp.mbits());
    let tcp = lab.iperf("a", NET[0], "--time 1 --reverse");
    assert!(tcp.mbits() > 50.0, "{} Mbit/s", tcp.mbits());
    let traced = lab.must("a", "traceroute -n -q 1 -w 2 -m 4 198.51.100.1");
    assert!(traced.contains("10.0.1.1") && traced.contains("198.51.100.1"), "{traced}");
    // Without NAT, IPv6 has the same firewall.
    lab.ping("a", NET[1], "");
    lab.no_answer("net", CLIENT_A[0]);
    lab.no_answer("net", CLIENT_A[1]);
    let workers = gateway.show("workers");
    let workers = workers.as_array().expect("a list of workers");
    let handed_over: u64 = workers.iter().filter_map(|worker| worker["handed_over"].as_u64()).sum();
    assert_eq!(handed_over > 0, workers.len() > 1, "{workers:#?}");
    gateway.stop();
}

#[test]
fn what_is_published_and_what_is_not() {
    let Some(lab) = Lab::up("what_is_published_and_what_is_not", &[]) else { return };
    let gateway = Gateway::start(&lab, &zoned());
    let web = r"
import http.server, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ('you are %s\n' % self.client_address[0]).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('0.0.0.0', 8080), Page)
print('ready')
server.serve_forever()
";
    let _web = python(&lab, "a", "web.py", web);
    // Destination NAT shows the client as it is.
    let page = lab.must("net", "curl -sS --max-time 5 http://198.51.100.80/");
    assert_eq!(page.trim(), "you are 198.51.100.1");
    // Another port of the same address, and the server behind it, are nobody's.
    let refused = lab.run("net", "curl -sS --max-time 1 http://198.51.100.80:81/");
    assert!(!refused.ok, "{}", refused.text);
    // Static NAT, both ways.
    lab.ping("net", "198.51.100.90", "");
    lab.must("net", "ip address add 198.51.100.3/24 dev eth0");
    let _mirror = python(&lab, "net", "mirror.py", MIRROR);
    let said = python_says(
        &lab,
        "b",
        r"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.bind(('', 40001))
s.sendto(b'hello', ('198.51.100.1', 7000))
print(s.recv(100).decode())
",
    );
    assert_eq!(said.trim(), "198.51.100.90 40001");
    // Between zones nothing goes unless a rule says so, and a refusal is told at once.
    lab.no_answer("a", CLIENT_B[0]);
    let told = lab.run("a", "curl -sS --max-time 3 telnet://10.0.2.10:23");
    assert!(told.text.contains("curl: (7)"), "not connected, and no time-out (28): {}", told.text);
    let drops = gateway.drops();
    assert!(drops.contains_key("firewall-reject") && drops.contains_key("firewall-deny"), "{drops:?}");
    assert!(drops.contains_key("nat-no-mapping"), "{drops:?}");
    gateway.stop();
}

/// RFC 3489's own judge.
#[test]
fn stun_finds_an_independent_mapping() {
    let Some(lab) = Lab::up("stun_finds_an_independent_mapping", &["--queues", "4"]) else { return };
    let _gateway = Gateway::start(&lab, &Config { workers: "[0, 1]", ..zoned() });
    lab.must("net", "ip address add 198.51.100.3/24 dev eth0");
    let mut server = lab.command("net", "stund -h 198.51.100.1 -a 198.51.100.3");
    let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("stund starts");
    let _server = Server(server);
    std::thread::sleep(Duration::from_millis(500));
    let said = lab.run("a", "stun 198.51.100.1").text;
    assert!(said.contains("Independent Mapping, Independent Filter"), "{said}");
}

/// The route to `net` has a smaller MTU than the hosts think: path MTU discovery goes through the NAT.
#[test]
fn path_mtu_discovery_through_nat() {
    let Some(lab) = Lab::up("path_mtu_discovery_through_nat", &[]) else { return };
    let _gateway = Gateway::start(&lab, &Config { uplink_mtu: 1400, ..zoned() });
    let said = lab.run("a", "tracepath -n 198.51.100.1").text;
    assert!(said.contains("pmtu 1400"), "{said}");
    let tcp = lab.iperf("a", NET[0], "--time 1");
    assert!(tcp.mbits() > 20.0, "{} Mbit/s", tcp.mbits());
}

/// A change of the rules ends what they now deny, and nothing else.
#[test]
fn a_commit_ends_only_what_it_denies() {
    let Some(lab) = Lab::up("a_commit_ends_only_what_it_denies", &[]) else { return };
    let config = zoned();
    let gateway = Gateway::start(&lab, &config);
    lab.must("net", "ip address add 198.51.100.3/24 dev eth0");
    let _mirror = python(&lab, "net", "mirror.py", MIRROR);
    let program = |file: &std::path::Path| {
        format!(
            r"
import socket, time, os
c = [socket.create_connection((addr, 7000), 3) for addr in ('198.51.100.1', '198.51.100.3')]
def ask(c):
    c.settimeout(2)
    try:
        c.sendall(b'x')
        return c.recv(100).decode().strip() or 'closed'
    except OSError as error:
        return type(error).__name__
first = [ask(c) for c in c]
open('{path}', 'w').close()
while not os.path.exists('{path}.applied'):
    time.sleep(0.05)
second = [ask(c) for c in c]
print(first == second, first[0] == second[0], second[1])
",
            path = file.display()
        )
    };
    let signal = lab.path("connected");
    let file = lab.path("client.py");
    std::fs::write(&file, program(&signal)).expect("the program can be written");
    let client = lab
        .command("a", &format!("python3 {}", file.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !signal.exists() {
        assert!(std::time::Instant::now() < deadline, "the client does not connect");
        std::thread::sleep(Duration::from_millis(20));
    }
    let denied =
        "[[admin_rule]]\nname = \"not-there\"\naction = \"deny\"\nto = { prefix = \"198.51.100.3\" }\n";
    let denied = config.with(denied).text(gateway.socket());
    let (status, said) = gateway.apply_with(&lab, &denied, "--wait converged");
    assert!(status.success() && said.contains("converged: every session is of generation"), "{said}");
    // Both connections are silent: the review has found the one, and left the other as it was.
    let counters = gateway.show("counters");
    let count = |name: &str| {
        let all = counters.as_array().expect("a list of counters").iter();
        all.filter(|counter| counter["name"] == name).find_map(|counter| counter["value"].as_u64())
    };
    assert_eq!(count("sessions.condemned"), Some(1), "{counters:#}");
    assert!(count("sessions.kept").is_some_and(|kept| kept >= 1), "{counters:#}");
    std::fs::write(lab.path("connected.applied"), "").expect("the signal can be given");
    let output = client.wait_with_output().expect("our own child");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(said.starts_with("False True "), "the first connection lives, the second does not: {said}");
    let drops = gateway.drops();
    assert!(drops.contains_key("policy-changed"), "{drops:?}");
    gateway.stop();
}

/// A member with a time to live blocks what it names until the time is over, through another config as well, and goes
/// without anybody's doing.
/// The far side sends into the outage all the time, and what it sends finds no way to where it went, or one that no rule
/// permits.
#[test]
fn an_outage_of_a_link_ends_no_session() {
    let Some(lab) = Lab::up("an_outage_of_a_link_ends_no_session", &[]) else { return };
    let default = "[[route]]\nprefix = \"0.0.0.0/0\"\nvia = [\"198.51.100.1\"]\n";
    for routes in ["", default] {
        let gateway = Gateway::start(&lab, &zoned().with(routes));
        let echo = |host: &str, port: u16| {
            python(&lab, host, &format!("echo-{port}.py"), &ECHO.replace("PORTS", &format!("[{port}]")))
        };
        let _echo = [echo("net", 7000), echo("a", 8080)];
        let talks =
            [Talk::new(&lab, "a", ("198.51.100.1", 7000)), Talk::new(&lab, "net", ("198.51.100.80", 80))];
        talks.iter().for_each(Talk::goes_on);
        let sessions = gateway.show("sessions")["sessions"].as_array().map(Vec::len);

        lab.must("sw", "ip link set trunk down");
        wait_for("packets have been lost", || {
            let drops = gateway.drops();
            drops.get("port-down").is_some_and(|lost| *lost > CONNECTIONS as u64)
        });
        lab.must("sw", "ip link set trunk up");
        talks.iter().for_each(Talk::goes_on);
        assert_eq!(gateway.show("sessions")["sessions"].as_array().map(Vec::len), sessions);
        drop(talks);
        gateway.stop();
    }
}

#[test]
fn a_temporary_member_goes_by_itself() {
    let Some(lab) = Lab::up("a_temporary_member_goes_by_itself", &[]) else { return };
    let group = "[[group]]\nname = \"blocked\"\nmembers = []\n[[admin_rule]]\nname = \"blocked\"\n\
                 action = \"deny\"\nto = { group = \"blocked\" }\n";
    let config = zoned().with(group);
    let gateway = Gateway::start(&lab, &config);
    lab.ping("a", NET[0], "-c 1");
    gateway.ask(&format!("add group blocked {} --ttl 8s", NET[0]));
    let begun = std::time::Instant::now();
    lab.no_answer("a", NET[0]);
    let members = || gateway.show("groups")[0].clone();
    let shown = members();
    assert_eq!(shown["members"][0], NET[0], "{shown}");
    assert!(shown["temporary"][0]["left_s"].as_u64().is_some_and(|left| left <= 8), "{shown}");
    // Added for good by the way; a config takes that back, and leaves the other.
    gateway.ask("add group blocked 198.51.100.99");
    let (status, said) = gateway.apply(&lab, &config.text(gateway.socket()));
    assert!(status.success(), "{said}");
    let shown = members();
    assert_eq!(shown["members"].as_array().map(Vec::len), Some(1), "{shown}");
    assert_eq!(shown["temporary"][0]["member"], NET[0], "{shown}");
    while members()["members"].as_array().is_some_and(|members| !members.is_empty()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not go: {}", members());
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(7) && took < Duration::from_secs(12), "it went after {took:?}");
    lab.ping("a", NET[0], "-c 1");
    gateway.stop();
}

/// One rule comes before others, becomes another and goes, without a config.
#[test]
fn a_rule_comes_and_goes() {
    let Some(lab) = Lab::up("a_rule_comes_and_goes", &[]) else { return };
    let gateway = Gateway::start(&lab, &zoned());
    let names = || -> Vec<String> {
        let said = gateway.ask("show rules --json");
        let rules: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let list = rules["rules"].as_array().expect("a list").iter();
        let own = list.filter(|rule| rule["place"] != "default").filter_map(|rule| rule["name"].as_str());
        own.map(str::to_owned).collect()
    };
    let before = names();
    lab.ping("a", NET[0], "-c 1");
    let stop = r#"name="stop",action="deny",to={prefix="198.51.100.1"}"#;
    gateway.ask(&format!("add rule {stop} --before inside-out"));
    assert_eq!(names()[..2], ["stop", "inside-out"]);
    lab.no_answer("a", NET[0]);
    gateway.ask(&format!("add rule {}", stop.replace("100.1", "100.77")));
    lab.ping("a", NET[0], "-c 1");
    gateway.ask(&format!("add rule {} --admin", stop.replace("stop", "first")));
    assert_eq!(names()[..2], ["first", "stop"]);
    lab.no_answer("a", NET[0]);
    let (status, said) = gateway.client("del rule first nobody");
    assert!(!status.success() && said.contains("no rule nobody"), "{said}");
    lab.no_answer("a", NET[0]);
    gateway.ask("del rule first stop");
    lab.ping("a", NET[0], "-c 1");
    assert_eq!(names(), before);
    let (status, said) = gateway.client(r#"add rule name="x",action="deny",to={zone="moon"}"#);
    assert!(!status.success() && said.contains("no such zone"), "{said}");
    gateway.stop();
}

/// Rules with `log` and port blocks leave lines that a program can read, also after the file was moved away.
#[test]
fn events_are_written() {
    let Some(lab) = Lab::up("events_are_written", &[]) else { return };
    let file = lab.path("events.jsonl");
    let watched = format!(
        r#"
[log]
events = "{}"
[[admin_rule]]
name = "watched"
action = "allow"
from = {{ zone = "inside" }}
to = {{ zone = "outside" }}
service = "icmp/echo-request"
log = true
[[admin_rule]]
name = "unwanted"
action = "deny"
from = {{ zone = "outside" }}
to = {{ prefix = "10.0.2.10" }}
log = true
[flows]
icmp_s = 1
"#,
        file.display()
    );
    let gateway = Gateway::start(&lab, &zoned().with(&watched));
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object per line")).collect()
    };
    let wait_for = |event: &str| -> serde_json::Value {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(line) = lines().into_iter().find(|line| line["event"] == event) {
                return line;
            }
            assert!(std::time::Instant::now() < deadline, "no {event}: {:#?}", lines());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    lab.ping("a", NET[0], "-c 1");
    let block = wait_for("block-claimed");
    assert_eq!(
        (block["host"].as_str(), block["vrf"].as_str()),
        (Some(CLIENT_A[0]), Some("default")),
        "{block}"
    );
    let opened = wait_for("session-opened");
    assert_eq!(opened["rule"], "watched", "{opened}");
    assert_eq!(
        (opened["source"].as_str(), opened["destination"].as_str()),
        (Some(CLIENT_A[0]), Some(NET[0]))
    );
    assert_eq!(opened["new_source"], block["outside"], "{opened}");
    assert_eq!(opened["protocol"], "icmp", "{opened}");
    let ended = wait_for("session-ended");
    // An echo request and its reply of 84 bytes.
    assert_eq!((ended["packets"].as_u64(), ended["bytes"].as_u64()), (Some(2), Some(168)), "{ended}");

    // As logrotate does it.
    std::fs::rename(&file, lab.path("events.jsonl.1")).expect("it can be moved");
    std::thread::sleep(Duration::from_millis(1500));
    lab.run("net", "ping -c 1 -W 1 198.51.100.90");
    let refused = wait_for("refused");
    assert_eq!(
        (refused["rule"].as_str(), refused["destination"].as_str()),
        (Some("unwanted"), Some("198.51.100.90"))
    );
    gateway.stop();
}
