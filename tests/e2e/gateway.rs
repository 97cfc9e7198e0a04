//! The gateway under test: `softgate run` in the lab's namespace `gw`, and what one can ask of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Lab, repository, text};

/// How long the gateway may take to say it is ready: binding is retried for some seconds after a crash.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long it may take to end when asked to.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);

/// The lab's config with what a test changes.
#[derive(Clone)]
pub struct Config {
    pub workers: &'static str,
    pub mode: &'static str,
    pub mtu: u32,
    pub uplink_mtu: u32,
    /// Devices of the uplink; several make an active-backup LAG.
    pub uplink: &'static [&'static str],
    /// Zones of `tenant-a`, `tenant-b` and `outside`; empty: none.
    pub zones: [&'static str; 3],
    /// `tenant-a` and `tenant-b` are one bridged segment, with a gateway of its own, beside these members.
    pub bridge: &'static str,
    /// Further tables.
    pub extra: String,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            workers: "[1]",
            mode: "auto",
            mtu: 1500,
            uplink_mtu: 1500,
            uplink: &["eth2"],
            zones: [""; 3],
            bridge: "",
            extra: String::new(),
        }
    }
}

impl Config {
    /// As the operator would have typed it.
    pub fn text(&self, socket: &Path) -> String {
        let Config { workers, mode, mtu, uplink_mtu, uplink, zones, bridge, extra } = self;
        let zone = |zone: &str| if zone.is_empty() { String::new() } else { format!("zone = \"{zone}\"") };
        let [zone_a, zone_b, zone_outside] = zones.map(zone);
        let devices = match uplink {
            [one] => format!("device = \"{one}\""),
            several => format!("devices = {several:?}\nlag = \"active-backup\""),
        };
        let segment = match bridge {
            &"" => format!(
                r#"
[[interface]]
name = "tenant-a"
port = "trunk"
vlan = 100
addresses = ["10.0.1.1/24", "2001:db8:1::1/64"]
mtu = {mtu}
{zone_a}
[[interface]]
name = "tenant-b"
port = "trunk"
vlan = [200, 10]
addresses = ["10.0.2.1/24", "2001:db8:2::1/64"]
mtu = {mtu}
{zone_b}"#
            ),
            members => format!(
                r#"
[[bridge]]
name = "seg"
members = [{{ port = "trunk", vlan = 100 }}, {{ port = "trunk", vlan = [200, 10] }}, {members}]
loop_probe_s = 1
[[interface]]
name = "segment"
bridge = "seg"
addresses = ["10.0.1.1/24", "2001:db8:1::1/64"]
{zone_a}"#
            ),
        };
        let socket = socket.display();
        format!(
            r#"
schema = 1
[system]
name = "e2e"
workers = {workers}
[control]
socket = "{socket}"
[[port]]
name = "trunk"
device = "eth1"
mode = "{mode}"
[[port]]
name = "uplink"
{devices}
mode = "{mode}"
{segment}
[[interface]]
name = "outside"
port = "uplink"
addresses = ["198.51.100.2/24", "2001:db8:ff::2/64"]
mtu = {uplink_mtu}
{zone_outside}
{extra}"#
        )
    }

    /// With these tables at the end.
    pub fn with(mut self, extra: &str) -> Config {
        self.extra.push_str(extra);
        self
    }
}

/// A running gateway; asked to stop when dropped.
pub struct Gateway {
    child: Child,
    binary: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Gateway {
    /// Starts the shipped binary and waits until it is ready.
    pub fn start(lab: &Lab, config: &Config) -> Gateway {
        Gateway::start_binary(lab, config, &binary(), "")
    }

    /// Starts this binary, with further options of `run`, and waits until it is ready.
    pub fn start_binary(lab: &Lab, config: &Config, binary: &Path, options: &str) -> Gateway {
        Gateway::start_files(lab, ("gw", "softgate"), |socket| config.text(socket), binary, options)
    }

    /// One on another host, with the config that `text` makes of the path of its socket.
    pub fn start_on(lab: &Lab, host: &str, text: impl Fn(&Path) -> String) -> Gateway {
        Gateway::start_files(lab, (host, host), text, &binary(), "")
    }

    /// The same, with further options of `run`.
    pub fn start_on_with(lab: &Lab, host: &str, text: impl Fn(&Path) -> String, options: &str) -> Gateway {
        Gateway::start_files(lab, (host, host), text, &binary(), options)
    }

    fn start_files(
        lab: &Lab,
        (host, name): (&str, &str),
        text: impl Fn(&Path) -> String,
        binary: &Path,
        options: &str,
    ) -> Gateway {
        let path = |kind: &str| lab.path(&format!("{name}.{kind}"));
        let (socket, log, file) = (path("sock"), path("log"), path("toml"));
        fs::write(&file, text(&socket)).expect("the config can be written");
        let out = File::create(&log).expect("the log can be written");
        let child = lab
            .command(host, &format!("{} run --config {} {options}", binary.display(), file.display()))
            .stdout(Stdio::from(out.try_clone().expect("one file, two handles")))
            .stderr(Stdio::from(out))
            .spawn()
            .expect("ip netns exec runs");
        let mut gateway = Gateway { child, binary: binary.to_owned(), socket, log };
        let deadline = Instant::now() + READY_WITHIN;
        while !gateway.log().contains("softgate ready") {
            if let Some(status) = gateway.child.try_wait().expect("our own child") {
                panic!("the gateway ended at once, {status}:\n{}", gateway.log());
            }
            assert!(Instant::now() < deadline, "the gateway does not get ready:\n{}", gateway.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        gateway
    }

    /// Its process id: `ip netns exec` becomes the gateway.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it logs to, and those that take its place.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Where its control socket is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A client command, such as `show ports`: whether it succeeded, and what it said.
    pub fn client(&self, command: &str) -> (ExitStatus, String) {
        let output = Command::new(&self.binary)
            .args(command.split_whitespace())
            .arg("--socket")
            .arg(&self.socket)
            .stdin(Stdio::null())
            .output()
            .expect("the client runs");
        (output.status, text(&output))
    }

    /// A client command that must succeed.
    pub fn ask(&self, command: &str) -> String {
        let (status, said) = self.client(command);
        assert!(status.success(), "softgate {command}: {status}\n{said}\n{}", self.log());
        said
    }

    /// The answer to `show.WHAT` on the control socket, past our own client.
    pub fn show(&self, what: &str) -> Value {
        let mut socket = UnixStream::connect(&self.socket).expect("the gateway's socket");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": format!("show.{what}"), "params": {} });
        writeln!(socket, "{request}").expect("the gateway reads");
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).expect("the gateway answers");
        let mut reply: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("show.{what}: {error}: {line}"));
        assert!(reply["error"].is_null(), "show.{what}: {reply:#}");
        reply["result"].take()
    }

    /// One port of `show ports`.
    pub fn port(&self, name: &str) -> Value {
        let ports = self.show("ports");
        let found = ports.as_array().and_then(|ports| ports.iter().find(|port| port["name"] == name));
        found.unwrap_or_else(|| panic!("no port {name}: {ports:#}")).clone()
    }

    /// Packets lost so far, by reason; reasons that never struck are left out.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let shown = self.show("drops");
        let entries = shown.as_array().unwrap_or_else(|| panic!("show drops is a list: {shown:#}"));
        let count = |entry: &Value| (entry["reason"].as_str().map(str::to_owned), entry["count"].as_u64());
        let drops = entries.iter().map(|entry| match count(entry) {
            (Some(reason), Some(packets)) => (reason, packets),
            _ => panic!("no reason or no count: {entry:#}"),
        });
        drops.filter(|(_, packets)| *packets > 0).collect()
    }

    /// Applies a config file with these contents.
    pub fn apply(&self, lab: &Lab, config: &str) -> (ExitStatus, String) {
        self.apply_with(lab, config, "")
    }

    /// The same, with options.
    pub fn apply_with(&self, lab: &Lab, config: &str, options: &str) -> (ExitStatus, String) {
        let file = lab.path("next.toml");
        fs::write(&file, config).expect("the config can be written");
        self.client(&format!("apply {options} {}", file.display()))
    }

    /// The signal, by name, as `kill` knows it.
    pub fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success(), "kill {signal}");
    }

    /// Dies without a chance to tidy up.
    pub fn kill(mut self) {
        self.signal("-KILL");
        self.child.wait().expect("our own child");
    }

    /// Ends as an operator ends it, and proves that no frame leaked.
    pub fn stop(mut self) -> String {
        self.signal("-TERM");
        let status = self.wait().unwrap_or_else(|| panic!("the gateway does not stop:\n{}", self.log()));
        let log = self.log();
        assert!(status.success(), "the gateway stopped with {status}:\n{log}");
        assert!(log.contains("leaked_frames=0"), "frames leaked, or nobody counted:\n{log}");
        log
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + STOPPED_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the gateway\n{}----", self.log());
        }
        if self.child.try_wait().ok().flatten().is_some() {
            return;
        }
        self.signal("-TERM");
        if self.wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The binary under test: `SOFTGATE`, else the one Cargo built for these tests.
pub fn binary() -> PathBuf {
    std::env::var_os("SOFTGATE").map_or_else(|| env!("CARGO_BIN_EXE_softgate").into(), PathBuf::from)
}

/// The binary with the feature `afxdp`: `SOFTGATE_AFXDP`, else where `scripts/test` builds it.
pub fn afxdp_binary() -> Option<PathBuf> {
    let path = std::env::var_os("SOFTGATE_AFXDP")
        .map_or_else(|| repository().join("target/softgate-afxdp"), PathBuf::from);
    path.exists().then_some(path)
}
