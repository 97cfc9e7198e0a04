//! One test network of its own for each test: `scripts/lab` in namespaces with unique names.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Labs share the cores. Most wait for something most of the time, and may do so some at a time.
static CORES: RwLock<()> = RwLock::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running test network; gone when dropped, also by a panic.
pub struct Lab {
    prefix: String,
    dir: tempfile::TempDir,
    servers: AtomicU32,
    /// Hosts of this test beside those of `scripts/lab`.
    more: Mutex<Vec<String>>,
    _cores: Cores,
}

/// A lab's share of the cores. A test that panicked poisons the lock, but its lab is gone all the same.
enum Cores {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Cores {
    fn shared() -> Cores {
        Cores::Shared { _guard: CORES.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn alone() -> Cores {
        Cores::Alone { _guard: CORES.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// What a command in the lab said.
pub struct Said {
    pub ok: bool,
    pub text: String,
}

impl Lab {
    /// Builds it with these options of `scripts/lab up`; `None`, after saying so, where that needs rights
    /// we do not have.
    pub fn up(test: &str, options: &[&str]) -> Option<Lab> {
        Lab::with(test, options, Cores::shared)
    }

    /// The same, with no other lab beside it: for what floods, measures, or counts on messages coming in time.
    pub fn alone(test: &str, options: &[&str]) -> Option<Lab> {
        Lab::with(test, options, Cores::alone)
    }

    fn with(test: &str, options: &[&str], cores: fn() -> Cores) -> Option<Lab> {
        if !is_root() {
            skipped(test, "network namespaces need root");
            return None;
        }
        let cores = cores();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Lab {
            prefix: format!("sgt{}x{number}-", std::process::id()),
            dir: tempfile::tempdir().expect("a directory for the test's files"),
            servers: AtomicU32::new(0),
            more: Mutex::new(Vec::new()),
            _cores: cores,
        };
        let output = lab.script("up").args(options).output().expect("scripts/lab runs");
        assert!(output.status.success(), "scripts/lab up {options:?}: {}", text(&output));
        Some(lab)
    }

    fn script(&self, command: &str) -> Command {
        let mut script = Command::new(repository().join("scripts/lab"));
        script.args([command, "--prefix", &self.prefix]).stdin(Stdio::null());
        script
    }

    /// A file of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the web server on `net` serves.
    pub fn documents(&self) -> PathBuf {
        Path::new("/run/softgate-lab").join(self.prefix.trim_end_matches('-')).join("www")
    }

    /// A command on a host: `gw`, `sw`, `a`, `b` or `net`; words are split at spaces.
    pub fn command(&self, host: &str, command: &str) -> Command {
        let mut in_namespace = Command::new("ip");
        in_namespace.args(["netns", "exec", &format!("{}{host}", self.prefix)]);
        in_namespace.args(command.split_whitespace()).stdin(Stdio::null());
        in_namespace
    }

    /// Runs it and returns what it said, whether it failed or not.
    pub fn run(&self, host: &str, command: &str) -> Said {
        let output = self.command(host, command).output().expect("ip netns exec runs");
        Said { ok: output.status.success(), text: text(&output) }
    }

    /// Runs it; a failure is the test's failure.
    pub fn must(&self, host: &str, command: &str) -> String {
        let said = self.run(host, command);
        assert!(said.ok, "{host}: {command}\n{}", said.text);
        said.text
    }

    /// Three pings that must all be answered.
    pub fn ping(&self, host: &str, to: &str, options: &str) {
        let said = self.run(host, &format!("ping -n -c 3 -i 0.1 -W 2 {options} {to}"));
        assert!(said.text.contains(" 0% packet loss"), "{host} pings {to} {options}:\n{}", said.text);
    }

    /// How many of `count` pings are answered.
    pub fn answers(&self, host: &str, to: &str, count: usize) -> usize {
        let said = self.run(host, &format!("ping -n -c {count} -i 0.1 -W 2 {to}")).text;
        let received =
            said.split_once(" received").and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok());
        received.unwrap_or_else(|| panic!("{host} pings {to}:\n{said}"))
    }

    /// A ping that nobody may answer.
    pub fn no_answer(&self, host: &str, to: &str) {
        let said = self.run(host, &format!("ping -n -c 3 -i 0.2 -W 0.5 {to}"));
        assert!(
            said.text.contains("100% packet loss"),
            "{host} pings {to} and should get no answer:\n{}",
            said.text
        );
    }

    /// One more host, with nothing but a loopback.
    pub fn add_host(&self, host: &str) {
        let namespace = format!("{}{host}", self.prefix);
        let made = Command::new("ip").args(["netns", "add", &namespace]).status();
        assert!(made.expect("ip runs").success(), "ip netns add {namespace}");
        self.more.lock().expect("nobody panics with it").push(namespace);
        self.must(host, "ip link set lo up");
    }

    /// Gives a device of one host to another.
    pub fn hand(&self, device: &str, from: &str, to: &str) {
        self.must(from, &format!("ip link set {device} netns {}{to}", self.prefix));
    }

    /// Plugs a new device of `gw` into the switch of the uplink.
    pub fn plug_in(&self, device: &str) {
        self.must("gw", &format!("ip link set {device} netns {}sw", self.prefix));
        self.must("sw", &format!("ip link set {device} master br1 up"));
        self.must("sw", &format!("ethtool -K {device} tx off txvlan off tx-vlan-stag-hw-insert off"));
    }

    /// `iperf3 --json` from a host to one of `net`'s addresses.
    pub fn iperf(&self, host: &str, to: &str, options: &str) -> Iperf {
        self.start_iperf(host, to, options).finish()
    }

    /// The same, to run beside the test. Each has a server of its own: one that has just served another
    /// client is not always ready for the next.
    pub fn start_iperf(&self, host: &str, to: &str, options: &str) -> Load {
        let port = 5300 + self.servers.fetch_add(1, Ordering::Relaxed);
        let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = quiet(&mut self.command("net", &format!("iperf3 --server --one-off --port {port}")));
        let server = server.expect("iperf3 starts");
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.must("net", &format!("ss -Htln sport = :{port}")).is_empty() {
            assert!(Instant::now() < deadline, "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let command = format!("iperf3 --client {to} --port {port} --json {options}");
        let client = self.command(host, &command).stdout(Stdio::piped()).spawn().expect("iperf3 starts");
        Load { command, client, server }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let more = self.more.get_mut().unwrap_or_else(PoisonError::into_inner);
        for namespace in more {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
        match self.script("down").output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("scripts/lab down: {}", text(&output)),
            Err(error) => eprintln!("scripts/lab down: {error}"),
        }
    }
}

/// A running `iperf3`.
pub struct Load {
    command: String,
    client: Child,
    server: Child,
}

impl Load {
    /// Waits for its end.
    pub fn finish(mut self) -> Iperf {
        let output = self.client.wait_with_output().expect("our own child");
        // The server ends by itself, unless no client ever reached it.
        if !output.status.success() {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
        Iperf::read(&self.command, &text(&output))
    }
}

/// A finished `iperf3 --json`.
pub struct Iperf {
    report: Value,
}

impl Iperf {
    fn read(command: &str, text: &str) -> Iperf {
        let report: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}"));
        assert!(report["error"].is_null(), "{command}: {}", report["error"]);
        Iperf { report }
    }

    /// What arrived, in Mbit/s.
    pub fn mbits(&self) -> f64 {
        let end = &self.report["end"];
        let received = if end["sum_received"].is_null() { &end["sum"] } else { &end["sum_received"] };
        received["bits_per_second"].as_f64().expect("iperf3 reports a rate") / 1e6
    }

    /// UDP: datagrams sent, and those that did not arrive.
    pub fn datagrams(&self) -> (u64, u64) {
        let sum = &self.report["end"]["sum"];
        let number = |key: &str| sum[key].as_f64().unwrap_or_else(|| panic!("iperf3 reports {key}: {sum}"));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of datagrams")]
        let whole = |value: f64| value as u64;
        (whole(number("packets")), whole(number("lost_packets").max(0.0)))
    }
}

/// Says, past the capture of the test harness, that a test did not run; `scripts/test` counts these lines.
pub fn skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {test}: {reason}");
}

/// Where the repository is.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Both outputs of a command.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .any(|line| line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")))
}
