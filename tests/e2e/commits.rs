//! Commits that do harm, under traffic.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;

use crate::gateway::{Config, Gateway, binary};
use crate::lab::{Lab, repository, text};
use crate::proving::ANSWERS;
use crate::sessions::{Server, python, python_says, zoned};
use crate::vrrp::wait_for;
use crate::{CLIENT_A, CLIENT_B, NET};

#[test]
fn a_commit_that_drops_traffic_is_taken_back_before_its_time() {
    let Some(lab) = Lab::alone("a_commit_that_drops_traffic_is_taken_back_before_its_time", &[]) else {
        return;
    };
    let config = Config::default().with("[commit]\nmore_drops_pps = 20\n");
    let state = lab.path("state");
    let gateway = Gateway::start_binary(&lab, &config, &binary(), &format!("--state {}", state.display()));
    lab.ping("a", NET[0], "");
    let mut pings = lab
        .command("a", &format!("ping -n -q -i 0.01 -I {} {}", CLIENT_A[0], NET[0]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ping starts");
    // What is dropped anyway is no harm: it waits for its hour.
    gateway.ask("add route 203.0.113.0/24 blackhole --confirm 1h");
    gateway.ask("confirm");
    // Longer than its network's, so that it comes first.
    let said = gateway.ask(&format!("add route {}/32 blackhole --confirm 1h -m wrong", NET[0]));
    assert!(said.contains("revision 3") && said.contains("unless you say: softgate confirm"), "{said}");
    let begun = Instant::now();
    let last = loop {
        let revisions = gateway.show("revisions");
        if revisions["current"] == 4 {
            break revisions["revisions"][0].clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not taken back: {revisions:#}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let why = last["message"].as_str().unwrap_or_default();
    assert!(
        why.starts_with("revision 3 is taken back: ") && why.contains(" drops a second, against "),
        "{why}"
    );
    lab.ping("a", NET[0], "");
    pings.kill().expect("our own child");
    pings.wait().expect("our own child");
    assert!(gateway.ask("show routes 203.0.113.0/24").contains("blackhole"), "what was before it stays");
}

/// Two destination NATs that a commit changes together: to the same port on two hosts.
fn published(port: u16) -> String {
    let all = [("one", 1001, CLIENT_A[0]), ("two", 1002, CLIENT_B[0])];
    let nat = all.map(|(name, outside, inside)| {
        format!(
            "[[nat.destination]]\nname = \"{name}\"\naddress = \"198.51.100.80\"\nservice = \"udp/{outside}\"\n\
             target = \"{inside}:{port}\"\n"
        )
    });
    format!("[[rule]]\nname = \"in\"\naction = \"allow\"\nfrom = {{ zone = \"outside\" }}\n{}", nat.concat())
}

/// Says by which port it was reached.
const PORTS: &str = r"
import socket, selectors
chosen = selectors.DefaultSelector()
for port in range(7000, 7016):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(('0.0.0.0', port))
    chosen.register(s, selectors.EVENT_READ, port)
print('ready')
while True:
    for key, _ in chosen.select():
        data, peer = key.fileobj.recvfrom(100)
        key.fileobj.sendto(b'%d' % key.data, peer)
";

/// New flows in threes, to the one, the other and the one again, each begun when the one before was answered: which ports
/// they came to, a line for each three that were answered and begun without delay, for whoever was stopped in between may
/// have met another gateway. No port comes twice: what is known of a flow stays.
const THREES: &str = r"
import itertools, socket, time
source = itertools.count(2000)
while True:
    ports, idle, last = [], 0, None
    for port in (1001, 1002, 1001):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind(('', next(source)))
        s.connect(('198.51.100.80', port))
        s.settimeout(0.5)
        s.send(b'?')
        idle = max(idle, time.monotonic() - (last or time.monotonic()))
        try:
            ports.append(int(s.recv(100)) - 7000)
        except OSError:
            break
        finally:
            s.close()
        last = time.monotonic()
    if len(ports) == 3 and idle < 0.05:
        print(*ports, flush=True)
    time.sleep(0.004)
";

/// The gateway is killed in the middle of commits, again and again: it is back with one that was committed, and of two
/// things that a commit changes no packet ever meets the one without the other.
#[test]
fn traffic_never_meets_half_a_commit_whenever_the_gateway_is_killed() {
    let test = "traffic_never_meets_half_a_commit_whenever_the_gateway_is_killed";
    let Some(lab) = Lab::up(test, &[]) else { return };
    let zoned = Config { zones: ["inside", "servers", "outside"], ..Config::default() };
    let config = |n: u16| zoned.clone().with(&published(7000 + n % 16));
    let state = format!("--state {}", lab.path("state").display());
    let start = || Gateway::start_binary(&lab, &config(0), &binary(), &state);
    let _servers = [python(&lab, "a", "ports-a.py", PORTS), python(&lab, "b", "ports-b.py", PORTS)];
    let mut gateway = start();
    let answers = lab.path("threes");
    let out = std::fs::File::create(&answers).expect("a file");
    let program = lab.path("threes.py");
    std::fs::write(&program, THREES).expect("a file");
    let sender = lab.command("net", &format!("python3 -u {}", program.display())).stdout(out).spawn();
    let _sender = Server(sender.expect("python3 starts"));
    let threes = || std::fs::read_to_string(&answers).unwrap_or_default().lines().count();
    let wait_for = |more: usize| {
        let (begun, before) = (Instant::now(), threes());
        while threes() < before + more {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing passes");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(5);

    // Each commit is one revision, and the first one was the start's.
    let mut committed = 0;
    for round in 0..5u16 {
        for n in committed + 1..=committed + 6 {
            let (status, said) = gateway.apply(&lab, &config(n).text(gateway.socket()));
            assert!(status.success(), "{said}");
        }
        committed += 6;
        wait_for(2);
        // In the middle of one more, at another moment each time.
        let next = lab.path("killed.toml");
        std::fs::write(&next, config(committed + 1).text(gateway.socket())).expect("a file");
        let mut client = std::process::Command::new(binary());
        client.arg("apply").arg(&next).arg("--socket").arg(gateway.socket());
        let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(u64::from(round) * 15));
        gateway.kill();
        let answered = client.wait().expect("our own child").success();
        gateway = start();
        let current = gateway.show("revisions")["current"].as_u64().expect("a number");
        let is_there = current == u64::from(committed) + 2;
        assert!(is_there || current == u64::from(committed) + 1 && !answered, "{current} after {committed}");
        committed += u16::from(is_there);
        wait_for(5);
    }
    gateway.stop();

    let said = std::fs::read_to_string(&answers).expect("it was written");
    let mut seen: std::collections::BTreeSet<u16> = std::collections::BTreeSet::new();
    for line in said.lines() {
        let ports: Vec<u16> = line.split_whitespace().map(|port| port.parse().expect("a number")).collect();
        seen.extend(ports.iter().copied());
        // Commits may come in between, and then the later packet meets the later one: never the other way round.
        for two in ports.windows(2) {
            assert!((two[1] + 16 - two[0]) % 16 < 8, "after commit {} one met {}: {line}", two[0], two[1]);
        }
    }
    assert!(seen.len() > 5, "commits were seen by packets: {seen:?}");
}

/// A connection that says a word when it is asked to, and in the end what became of it.
const TALKS: &str = "import socket, sys, time, os
c = socket.create_connection(('198.51.100.1', 7000), 3)
def ask():
    c.settimeout(3)
    try:
        c.sendall(b'x')
        return c.recv(100).decode() or 'closed'
    except OSError as error:
        return type(error).__name__
def wait(path):
    while not os.path.exists(path):
        time.sleep(0.02)
folder = sys.argv[0].rsplit('/', 1)[0]
ask()
open(folder + '/connected', 'w').close()
wait(folder + '/kept')
first = ask()
open(folder + '/asked', 'w').close()
c.settimeout(10)
try:
    second = c.recv(100).decode() or 'closed'
except OSError as error:
    second = type(error).__name__
print(first, second)
";

/// `--fate keep` leaves a connection to its end though no new one gets through; `--fate reset` ends it, and its silent client
/// hears of it at once.
#[test]
fn a_commit_says_what_becomes_of_live_sessions() {
    let Some(lab) = Lab::up("a_commit_says_what_becomes", &[]) else { return };
    let config = zoned();
    let gateway = Gateway::start(&lab, &config);
    let _server = python(&lab, "net", "answers.py", ANSWERS);
    let file = lab.path("talks.py");
    std::fs::write(&file, TALKS).expect("the program can be written");
    let client = lab
        .command("a", &format!("python3 {}", file.display()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let wait = |name: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !lab.path(name).exists() {
            assert!(Instant::now() < deadline, "the client is not {name}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait("connected");
    let without = config.text(gateway.socket()).replacen("action = \"allow\"", "action = \"deny\"", 1);
    let (status, said) = gateway.apply_with(&lab, &without, "--fate keep --wait converged");
    assert!(status.success() && said.contains(" 0 end"), "{said}");
    let sessions = gateway.show("sessions")["sessions"].take();
    assert_eq!(
        (&sessions[0]["kept"], &sessions[0]["rule"]),
        (&true.into(), &"inside-out".into()),
        "{sessions:#}"
    );
    lab.no_answer("a", NET[0]);
    std::fs::write(lab.path("kept"), "").expect("the signal can be given");
    wait("asked");
    // Of all that is there: from another rule's word on.
    let reset = format!(
        "{without}\n[[admin_rule]]\nname = \"out\"\naction = \"deny\"\nto = {{ zone = \"outside\" }}\n"
    );
    let (status, said) = gateway.apply_with(&lab, &reset, "--fate reset --wait converged");
    assert!(status.success() && said.contains(" 1 end"), "{said}");
    let output = client.wait_with_output().expect("our own child");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(said, "y ConnectionResetError");
}

/// A section of the manual, up to the next one.
fn section(title: &str) -> String {
    let manual = fs::read_to_string(repository().join("README.md")).expect("the manual");
    let (_, behind) = manual.split_once(&format!("### {title}\n")).expect("the section is there");
    behind.split("\n## ").next().unwrap_or_default().to_owned()
}

/// What stands in the fences of one kind.
fn fenced(section: &str, kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    let blocks = section.split(&fence).skip(1);
    blocks.map(|block| block.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// Whether a line is as the manual has it; `...` stands for anything.
fn is_as(line: &str, written: &str) -> bool {
    let mut parts = written.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut is_open = false;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        is_open = part.is_empty();
    }
    is_open || rest.is_empty()
}

/// Frames as client `a` sends them, recorded where they come in.
fn monday(mac: [u8; 6]) -> Vec<u8> {
    let mut file = pcap_file::pcap::PcapWriter::new(Vec::new()).expect("a capture");
    let head = || {
        let vlan = etherparse::VlanId::try_new(100).expect("an id");
        PacketBuilder::ethernet2([2, 0, 0, 0, 1, 0x10], mac).single_vlan(vlan).ipv4(
            [10, 0, 1, 10],
            [198, 51, 100, 1],
            64,
        )
    };
    let (mut query, mut web) = (Vec::new(), Vec::new());
    head().udp(40000, 53).write(&mut query, &[0; 20]).expect("memory");
    head().tcp(40001, 443, 1, 64000).syn().write(&mut web, &[]).expect("memory");
    for (n, frame) in [query, web].into_iter().enumerate() {
        let packet =
            pcap_file::pcap::PcapPacket::new(Duration::from_millis(n as u64), frame.len() as u32, &frame);
        file.write_packet(&packet).expect("memory");
    }
    file.into_writer()
}

/// The manual's story: its config, its commands, and what they say.
#[test]
fn the_story_in_the_manual_is_true() {
    let Some(lab) = Lab::up("the_story_in_the_manual_is_true", &[]) else { return };
    let story = section("Three mistakes, and what catches each");
    let zones = ["inside", "servers", "outside"];
    let config = Config { zones, ..Config::default() }.with(&fenced(&story, "toml").concat());
    let state = lab.path("state");
    let gateway = Gateway::start_binary(&lab, &config, &binary(), &format!("--state {}", state.display()));
    let folder = lab.path("story");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("gw.toml"), config.text(gateway.socket())).expect("a file");
    let mac = lab.must("gw", "cat /sys/class/net/eth1/address");
    let bytes: Vec<u8> =
        mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC")).collect();
    fs::write(folder.join("monday.pcap"), monday(bytes.try_into().expect("six bytes"))).expect("a file");
    // As an operator types it.
    let socket = gateway.socket().display();
    let head = format!("softgate() {{ {} \"$@\" --socket {socket}; }}\n", binary().display());
    for block in fenced(&story, "console") {
        for command in block.split("$ ").skip(1) {
            let (command, written) = command.split_once('\n').expect("a line");
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("{head}{command}")).current_dir(&folder).stdin(Stdio::null());
            let said = text(&shell.output().expect("a shell"));
            let mut lines = said.lines();
            for wanted in written.lines().filter(|line| !line.is_empty()) {
                assert!(lines.any(|line| is_as(line, wanted)), "$ {command}\nnot there: {wanted}\n{said}");
            }
        }
    }
    // What was refused, and what was taken back, has left nothing behind.
    assert!(gateway.ask("show revisions").contains("revision 2 is taken back"));
    assert!(!gateway.ask("show rules").contains("anything"));
}

/// Numbered datagrams to an echo server, as fast as they come back, and a TCP connection beside them; until a file is
/// there. Prints how many came back, and whether all of the stream did.
const STREAMS: &str = r"
import os, socket, sys, threading, time
def echo_udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(('0.0.0.0', 7001))
    while True:
        data, peer = s.recvfrom(2048)
        s.sendto(data, peer)
def echo_tcp():
    s = socket.create_server(('0.0.0.0', 7001))
    peer, _ = s.accept()
    while data := peer.recv(65536):
        peer.sendall(data)
role, flag = sys.argv[1:3]
if role == 'server':
    threading.Thread(target=echo_udp, daemon=True).start()
    print('ready', flush=True)
    echo_tcp()
    time.sleep(60)
";

/// The other end of [`STREAMS`]; says in a file that the first datagram has come back.
const CLIENT: &str = r"
import os, socket, time
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.connect(('198.51.100.1', 7001))
u.settimeout(2)
t = socket.create_connection(('198.51.100.1', 7001))
t.settimeout(10)
sent = back = streamed = 0
while not os.path.exists('FLAG'):
    if sent == 1:
        open('FLAG.begun', 'w').close()
    data = sent.to_bytes(8, 'big')
    u.send(data)
    sent += 1
    try:
        back += u.recv(64) == data
    except TimeoutError:
        pass
    t.sendall(data)
    got = b''
    while len(got) < 8:
        got += t.recv(8 - len(got))
    assert got == data, (got, data)
    streamed += 1
t.close()
print(sent, back, streamed)
";

/// Commits of every kind, a few hundred of them, while flows are on their way: none of their packets is lost.
#[test]
fn commits_of_all_kinds_cost_established_flows_nothing() {
    let Some(lab) = Lab::up("commits_of_all_kinds", &[]) else { return };
    let extra = "[[rule]]\nname = \"all\"\naction = \"allow\"\nfrom = { zone = \"inside\" }\n\
                 to = { zone = \"outside\" }\n[[group]]\nname = \"blocked\"\nmembers = []\n\
                 [[rule]]\nname = \"blocked\"\naction = \"deny\"\nfrom = { zone = \"inside\", group = \"blocked\" }\n\
                 [[service]]\nname = \"shop\"\naddress = \"203.0.113.10\"\nservice = \"tcp/443\"\n\
                 backends = [{ address = \"10.0.2.10:443\" }]\n";
    let config = Config { zones: ["inside", "servers", "outside"], ..Config::default() }.with(extra);
    let state = lab.path("state");
    let gateway = Gateway::start_binary(&lab, &config, &binary(), &format!("--state {}", state.display()));
    lab.ping("a", NET[0], "");
    let (flag, server) = (lab.path("flag"), lab.path("server.py"));
    fs::write(&server, STREAMS).expect("a file");
    let command = format!("python3 -u {} server {}", server.display(), flag.display());
    let mut child = lab.command("net", &command).stdout(Stdio::piped()).spawn().expect("python3 starts");
    let mut ready = String::new();
    let out = child.stdout.take().expect("it is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut ready).expect("it says something");
    let _server = crate::sessions::Server(child);
    let drops = || {
        gateway.drops().into_iter().filter(|(reason, _)| reason != "multicast-not-routed").collect::<Vec<_>>()
    };
    let before = drops();
    let said = std::thread::scope(|scope| {
        let client =
            scope.spawn(|| python_says(&lab, "a", &CLIENT.replace("FLAG", &flag.display().to_string())));
        let mut wire = softgate::control::Client::connect(gateway.socket()).expect("it listens");
        let begun = lab.path("flag.begun");
        wait_for("the client's first datagram comes back", || begun.exists());
        for n in 0..40 {
            // A commit takes less than half a millisecond here: the flows are to meet all of them.
            std::thread::sleep(Duration::from_millis(25));
            for line in [
                format!(
                    r#"{{"method":"rule.add","params":{{"rule":{{"name":"r{n}","action":"deny","from":{{"zone":"inside"}},"to":{{"zone":"outside"}},"service":"tcp/{}"}},"before":"all"}}}}"#,
                    9000 + n
                ),
                format!(
                    r#"{{"method":"route.add","params":{{"routes":[["100.64.{n}.0/24","198.51.100.1"]]}}}}"#
                ),
                format!(
                    r#"{{"method":"group.add","params":{{"group":"blocked","members":["172.16.0.{n}"]}}}}"#
                ),
                format!(
                    r#"{{"method":"neighbour.add","params":{{"neighbours":[{{"interface":"outside","address":"198.51.100.{}","mac":"02:00:00:00:09:09"}}]}}}}"#,
                    100 + n
                ),
                format!(
                    r#"{{"method":"service.set-backends","params":{{"service":"shop","backends":[{{"address":"10.0.2.{}:443"}}]}}}}"#,
                    10 + n
                ),
                format!(r#"{{"method":"rule.del","params":{{"rules":["r{n}"]}}}}"#),
                format!(
                    r#"{{"method":"neighbour.del","params":{{"neighbours":[{{"interface":"outside","address":"198.51.100.{}"}}]}}}}"#,
                    100 + n
                ),
            ] {
                let request: softgate::control::Request = serde_json::from_str(&line).expect("a request");
                let _: softgate::control::Changed =
                    wire.call(&request).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
            if n % 8 == 7 {
                let revisions = gateway.show("revisions");
                let back = revisions["current"].as_u64().expect("a number") - 1;
                let request =
                    softgate::control::Request::Rollback { revision: back, terms: Default::default() };
                let _: softgate::control::Changed = wire.call(&request).expect("it goes back");
            }
        }
        fs::write(&flag, "").expect("a file");
        client.join().expect("the client is well")
    });
    let counts: Vec<u64> = said.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let full: u64 = gateway
        .show("ports")
        .as_array()
        .map_or(0, |ports| ports.iter().filter_map(|port| port["rx_ring_full"].as_u64()).sum());
    assert_eq!(drops(), before, "no packet was dropped for a commit");
    let &[sent, back, streamed] = counts.as_slice() else { panic!("{said}") };
    assert!(sent > 50 && streamed == sent, "{said}");
    assert!(sent - back <= full, "{} of {sent} did not come back, {full} met a full ring", sent - back);
}
