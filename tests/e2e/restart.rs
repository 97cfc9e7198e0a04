//! A lone node that is killed, ended or upgraded: connections through NAT, to a published server and to a service go on by
//! the next process, and a UDP socket keeps its outside port.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::NET;
use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::pair::{CONNECTIONS, ECHO, Talk};
use crate::sessions::{Server, python, zoned};
use crate::vrrp::wait_for;

const MORE: &str = r#"
[[rule]]
name = "to-the-shop"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside" }
service = "tcp/8081"
[[service]]
name = "shop"
address = "198.51.100.85"
service = "tcp/81"
backends = [{ address = "10.0.1.10:8081" }]
"#;

/// Tells whoever sends it a datagram from where that came.
const MIRROR: &str = r#"
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
sock.bind(("0.0.0.0", 7001))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(100)
    sock.sendto(b"%s %d" % (data, peer[1]), peer)
"#;

/// Asks it again and again by one socket; writes how often it was told, and which ports.
const ASK: &str = r#"
import os, socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(0.2)
sock.connect(("HOST", 7001))
ports, heard, number = set(), 0, 0
print("ready", flush=True)
while True:
    number += 1
    try:
        sock.send(b"%d" % number)
        ports.add(int(sock.recv(100).split()[1]))
        heard += 1
    except OSError:
        pass
    with open("FILE.new", "w") as file:
        file.write(f"{heard} {len(ports)}")
    os.rename("FILE.new", "FILE")
    time.sleep(0.02)
"#;

/// A folder in memory of this test; gone with it.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(test: &str) -> Folder {
        Folder(PathBuf::from(format!("/dev/shm/softgate-{test}-{}", std::process::id())))
    }

    /// The file of sessions.
    fn sessions(&self) -> PathBuf {
        let files = std::fs::read_dir(&self.0).expect("the folder").flatten().map(|entry| entry.path());
        let is = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sessions."))
        };
        let found: Vec<PathBuf> = files.filter(is).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What has to go on.
struct Traffic {
    talks: [Talk; 3],
    ports: PathBuf,
    _programs: [Server; 4],
}

impl Traffic {
    fn new(lab: &Lab) -> Traffic {
        let ports = lab.path("ports");
        let ask = ASK.replace("HOST", NET[0]).replace("FILE", &ports.display().to_string());
        let programs = [
            python(lab, "net", "far.py", &ECHO.replace("PORTS", "[7000]")),
            python(lab, "a", "near.py", &ECHO.replace("PORTS", "[8080, 8081]")),
            python(lab, "net", "mirror.py", MIRROR),
            python(lab, "a", "ask.py", &ask),
        ];
        let talks = [
            Talk::new(lab, "a", (NET[0], 7000)),
            Talk::new(lab, "net", ("198.51.100.80", 80)),
            Talk::new(lab, "net", ("198.51.100.85", 81)),
        ];
        let traffic = Traffic { talks, ports, _programs: programs };
        traffic.goes_on();
        traffic
    }

    /// How often the mirror was heard, and of how many ports it has told.
    fn heard(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(&self.ports).unwrap_or_default();
        let mut words = text.split(' ').filter_map(|word| word.parse().ok());
        (words.next().unwrap_or(0), words.next().unwrap_or(0))
    }

    fn goes_on(&self) {
        self.talks.iter().for_each(Talk::goes_on);
        let (before, _) = self.heard();
        wait_for("the mirror answers", || self.heard().0 > before + 5);
        assert_eq!(self.heard().1, 1, "the socket has kept its port");
    }
}

fn keeping(folder: &Path) -> Config {
    zoned().with(MORE).with(&format!("[flows]\ncapacity = 20000\nkeep = \"{}\"\n", folder.display()))
}

fn kept(gateway: &Gateway) -> Value {
    gateway.show("ha")["kept"].clone()
}

/// Sessions of the traffic.
const SESSIONS: usize = 3 * CONNECTIONS + 1;

#[test]
fn sessions_of_a_lone_node_outlive_it() {
    let Some(lab) = Lab::up("sessions_of_a_lone_node_outlive_it", &[]) else { return };
    let folder = Folder::new("outlive");
    let config = keeping(&folder.0);
    let gateway = Gateway::start(&lab, &config);
    assert_eq!(kept(&gateway)["restored"], 0);
    let traffic = Traffic::new(&lab);
    wait_for("all are kept", || kept(&gateway)["sessions"] == SESSIONS);

    // Killed, twice: the second time before anything has been said.
    gateway.kill();
    let gateway = Gateway::start(&lab, &config);
    let entry = kept(&gateway);
    assert_eq!((&entry["restored"], &entry["not_restored"]), (&json!(SESSIONS), &json!([])), "{entry:#}");
    gateway.kill();
    let gateway = Gateway::start(&lab, &config);
    let entry = kept(&gateway);
    assert_eq!((&entry["restored"], &entry["not_restored"]), (&json!(SESSIONS), &json!([])), "{entry:#}");
    traffic.goes_on();
    let said = gateway.ask("show ha");
    assert!(said.contains("KEPT FOR A RESTART") && said.contains("not restored: none"), "{said}");

    // Ended as it should be.
    wait_for("what was left before is gone", || std::fs::read_dir(&folder.0).expect("it").count() == 3);
    gateway.stop();
    let path = folder.sessions();

    // Spoiled here and there: what is whole goes on.
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("the file");
    let mut spoiled = 0;
    for session in 1..SESSIONS as u64 + 1 {
        let mut place = [0; 128];
        let at = 8192 + session * 128;
        file.read_exact_at(&mut place, at).expect("it is that long");
        // UDP's: the mirror has to answer.
        if spoiled < 3 && place[4] != 0 && place[24 + 1] == 6 {
            file.write_all_at(&[place[40] ^ 1], at + 40).expect("it is written");
            spoiled += 1;
        }
    }
    let gateway = Gateway::start(&lab, &config);
    let entry = kept(&gateway);
    let torn = json!([{ "kind": "torn", "count": 3 }]);
    assert_eq!((&entry["restored"], &entry["not_restored"]), (&json!(SESSIONS - 3), &torn), "{entry:#}");
    gateway.stop();

    // Garbage from the first byte on: it starts, and says so.
    let path = folder.sessions();
    let garbage: Vec<u8> = (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&path, garbage).expect("it is written");
    let gateway = Gateway::start(&lab, &config);
    let entry = kept(&gateway);
    assert!(
        entry["restored"] == 0
            && entry["trouble"].as_str().is_some_and(|why| why.contains("no file of sessions"))
    );
    gateway.stop();
}

#[test]
fn a_folder_that_will_not_do_is_said_and_the_gateway_serves() {
    let Some(lab) = Lab::up("a_folder_that_will_not_do_is_said_and_the_gateway_serves", &[]) else { return };
    let gateway = Gateway::start(&lab, &keeping(Path::new("/var/tmp")));
    let entry = kept(&gateway);
    let trouble = entry["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("not ours alone") || trouble.contains("not in memory"), "{entry:#}");
    lab.ping("a", NET[0], "");
    gateway.stop();
}

/// Numbered datagrams through source NAT, ten thousand a second until FILE.end is there: how many came back, the longest time
/// without one, and at last the word `done`.
const STREAM: &str = r#"
import os, socket, threading, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
sock.connect(("HOST", 7001))
sent, heard, longest, last = 0, 0, 0.0, None
def hear():
    global heard, longest, last
    while True:
        try:
            sock.recv(100)
        except OSError:
            continue
        now = time.monotonic()
        longest = max(longest, now - (last or now))
        heard, last = heard + 1, now
threading.Thread(target=hear, daemon=True).start()
print("ready", flush=True)
began = time.monotonic()
def tell(done):
    with open("FILE.new", "w") as file:
        file.write(f"{sent} {heard} {longest * 1000:.1f}{done}")
    os.rename("FILE.new", "FILE")
while not os.path.exists("FILE.end"):
    due = int((time.monotonic() - began) * 10000)
    while sent < due:
        sent += 1
        try:
            sock.send(b"%d" % sent)
        except OSError:
            pass
    tell("")
    time.sleep(0.001)
for _ in range(100):
    time.sleep(0.02)
    if heard == sent:
        break
tell(" done")
"#;

/// Processes that the gateway has started: gone with the test, whatever becomes of it.
struct Others<'a>(&'a Lab);

impl Drop for Others<'_> {
    fn drop(&mut self) {
        let log = std::fs::read_to_string(self.0.path("softgate.log")).unwrap_or_default();
        for started in log.split("the new process starts").skip(1) {
            let pid = started.split("pid=").nth(1).unwrap_or_default();
            let pid: String = pid.chars().take_while(char::is_ascii_digit).collect();
            let _ = std::process::Command::new("kill")
                .args(["-KILL", &pid])
                .stderr(std::process::Stdio::null())
                .status();
        }
    }
}

#[test]
fn an_upgrade_keeps_every_session_and_loses_no_packet() {
    let Some(lab) = Lab::alone("an_upgrade_keeps_every_session_and_loses_no_packet", &[]) else { return };
    let folder = Folder::new("upgrade");
    let state = lab.path("revisions");
    let config = with_room(&folder.0);
    let options = format!("--state {}", state.display());
    let gateway = Gateway::start_binary(&lab, &config, &crate::gateway::binary(), &options);
    let traffic = Traffic::new(&lab);
    let figures = lab.path("figures");
    let program = STREAM.replace("HOST", NET[0]).replace("FILE", &figures.display().to_string());
    let _stream = python(&lab, "a", "stream.py", &program);
    wait_for("all are kept", || kept(&gateway)["sessions"] == SESSIONS + 1);
    let _others = Others(&lab);
    let process = |gateway: &Gateway| gateway.show("version")["pid"].clone();
    let first = process(&gateway);

    // What cannot take over leaves the process serving, and nothing behind.
    let (status, said) = gateway.client("upgrade --binary /bin/false");
    assert!(status.code() == Some(1) && said.contains("the old one serves on"), "{status}: {said}");
    let (status, said) = gateway.client("upgrade --binary /nowhere/softgate");
    assert!(!status.success() && said.contains("/nowhere/softgate"), "{status}: {said}");
    assert_eq!(process(&gateway), first);
    traffic.goes_on();

    for round in 0..3 {
        let before = process(&gateway);
        let text = std::fs::read_to_string(&figures).expect("figures");
        let said = gateway.ask("upgrade");
        assert!(said.contains("devices as they were") && process(&gateway) != before, "{said}");
        println!("upgrade {round}: {said}");
        traffic.goes_on();
        let entry = kept(&gateway);
        assert_eq!(entry["restored"], SESSIONS + 1, "{entry:#}");
        assert_eq!(entry["not_restored"], json!([]), "{entry:#}");
        let after = std::fs::read_to_string(&figures).expect("figures");
        println!("upgrade {round}: sent, heard, longest ms: {text} -> {after}");
        // What is committed is known to the next.
        gateway.ask(&format!("add route 203.0.113.{round}/32 blackhole"));
    }
    std::fs::write(figures.with_extension("end"), "").expect("it is written");
    let text = || std::fs::read_to_string(&figures).unwrap_or_default();
    wait_for("the stream has ended", || text().ends_with("done"));
    let counts: Vec<u64> = text().split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(
        counts[0] > 10_000 && counts[0] == counts[1],
        "sent, heard: {}; {}",
        text(),
        gateway.show("drops")
    );
    let routes = gateway.ask("show routes");
    assert!(routes.contains("203.0.113.0/32") && routes.contains("203.0.113.1/32"), "{routes}");
    let drops = gateway.show("drops");
    println!("drops of the last process: {drops}");
    let log = std::fs::read_to_string(lab.path("softgate.log")).expect("a log");
    log.lines().filter(|line| line.contains("upgrade: ")).for_each(|line| println!("{line}"));
    end(gateway);
}

/// Ends a process that is not our child, as any does, and finds that no frame of it is missing.
fn end(gateway: Gateway) {
    let pid = gateway.show("version")["pid"].clone();
    let log = gateway.log_path().to_owned();
    drop(gateway);
    let killed = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    assert!(killed.expect("kill runs").success());
    wait_for("it has ended", || !Path::new(&format!("/proc/{pid}")).exists());
    let log = std::fs::read_to_string(log).expect("a log");
    let last = log.lines().rfind(|line| line.contains("leaked_frames")).unwrap_or_default();
    assert!(last.contains("leaked_frames=0"), "{log}");
}

/// Rings in which what comes in the pause finds room.
fn with_room(folder: &Path) -> Config {
    Config { workers: "[1]\nframes = 32768", ..keeping(folder) }
}

/// One of its backends is not there; a new process would need 6 s to find that out.
const HALF: &str = r#"
[[service]]
name = "half"
address = "198.51.100.86"
service = "tcp/81"
backends = [{ address = "10.0.1.10:8081" }, { address = "10.0.1.10:8099" }]
health = { type = "tcp", interval = "2s", rise = 1, fall = 3 }
"#;

/// How many of twelve connections to it are answered.
const KNOCKS: &str = r#"
import socket
answered = 0
for _ in range(12):
    try:
        socket.create_connection(("198.51.100.86", 81), 1).close()
        answered += 1
    except OSError:
        pass
print(answered)
"#;

/// Says what a new process would, and ends after it has said the words of SAID.
const IMPOSTOR: &str = r#"#!/usr/bin/env python3
import socket
sock = socket.socket(fileno=0)
def line():
    text = b""
    while not text.endswith(b"\n"):
        text += sock.recv(1)
    return text
sock.sendall(b"offer?\n")
assert line().startswith(b"offer ")
sock.recv(1)
sock.sendall(b'ready {"version":"impostor"}\n')
assert line().startswith(b"know ")
sock.sendall(b"known\n")
assert line().startswith(b"go ")
sock.sendall(b"SAID")
"#;

#[test]
fn who_cannot_take_the_devices_over_leaves_them() {
    let Some(lab) = Lab::alone("who_cannot_take_the_devices_over_leaves_them", &[]) else { return };
    let folder = Folder::new("leaves");
    let config = with_room(&folder.0).with(HALF);
    let gateway = Gateway::start(&lab, &config);
    let traffic = Traffic::new(&lab);
    let knocks = lab.path("knocks.py");
    std::fs::write(&knocks, KNOCKS).expect("it is written");
    let answered = || lab.must("net", &format!("python3 {}", knocks.display())).trim().to_owned();
    // The log has the verdict as the checks' thread has it; the tables follow.
    wait_for("one backend is down, and nobody is sent to it", || answered() == "12");
    let _others = Others(&lab);
    let process = |gateway: &Gateway| gateway.show("version")["pid"].clone();
    let first = process(&gateway);

    // Gone before it has touched them, in the midst of it, and with a word.
    for (number, said) in ["", "taken\\n", "taken\\nfailed it is tired\\n"].into_iter().enumerate() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = lab.path(&format!("impostor{number}"));
        std::fs::write(&path, IMPOSTOR.replace("SAID", said)).expect("it is written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        let (status, answer) = gateway.client(&format!("upgrade --binary {}", path.display()));
        assert!(status.code() == Some(1) && answer.contains("the old one serves on"), "{status}: {answer}");
        assert_eq!(answer.contains("it is tired"), number == 2, "{answer}");
        assert_eq!(process(&gateway), first);
        traffic.goes_on();
    }

    // What it would make itself is not what there is: it says so, and sessions go on.
    let file = lab.path("softgate.toml");
    let text = std::fs::read_to_string(&file).expect("the config");
    std::fs::write(&file, text.replace("frames = 32768", "frames = 16384")).expect("it is written");
    let said = gateway.ask("upgrade");
    assert!(said.contains("bound anew") && said.contains("1 workers of 32768 frames"), "{said}");
    assert_ne!(process(&gateway), first);
    traffic.goes_on();
    let said = gateway.ask("upgrade");
    assert!(said.contains("devices as they were"), "{said}");
    assert_eq!(answered(), "12", "what was known of the backends is known");
    traffic.goes_on();
    let entry = &gateway.show("ha")["upgrade"];
    assert!(entry["phase"] == "done" && entry["paused_us"].as_u64().is_some_and(|us| us > 0), "{entry:#}");
    end(gateway);
}
