//! The binary as an operator meets it: what it prints, and its exit codes.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use softgate::config::{Config, Role};
use softgate::control::{
    Backend, Changed, DropsExport, Fault, HostQuery, Limits, NatHost, Patch, PortQuery, Reply, Request,
    RoutePage, Server, Version,
};

fn softgate(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_softgate")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_annotated_example_is_good() {
    let (code, out, err) = softgate(&["check", "config/softgate.toml"]);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (
            0,
            "config/softgate.toml: good: 2 ports, 6 interfaces, 2 VRFs, 4 routes, 1 neighbour, 3 assertions\n",
            ""
        )
    );
}

#[test]
fn what_the_annotated_example_has_in_comments_is_good_too() {
    let text = std::fs::read_to_string("config/softgate.toml").unwrap();
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.contains(" = ") && !rest.starts_with("path") && !rest.starts_with("vrf") => rest,
        Some(table @ ("[pair]" | "[log]")) => table,
        _ => line,
    });
    let uncommented = lines.collect::<Vec<_>>().join("\n");
    let config = Config::parse(&uncommented, "softgate.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let pair = config.pair.expect("it is in the example");
    assert_eq!((pair.peer.port(), pair.link.map(|link| link.udp_port.get())), (5405, Some(5406)));
    assert_eq!(config.control.group.as_deref(), Some("adm"));
    assert!(config.log.events.is_some() && config.rules.iter().any(|rule| rule.log));
    assert!(config.vrfs[0].stateless);
}

#[test]
fn a_wrong_config_is_1_and_a_missing_one_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "gw.toml", "schema = 1\n[system]\nwrokers = 1\n");
    let (code, out, err) = softgate(&["check", &file]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(
        err,
        format!("{file}:3: system.wrokers: unknown key; known here: name, workers, frames, key\n")
    );
    // A directory is opened, and cannot be read.
    let (code, _, err) = softgate(&["check", "/"]);
    assert!(code == 2 && err.starts_with("/: cannot be read: "), "{code}, {err}");
    let missing = "/nonexistent/gw.toml";
    let commands: [&[&str]; 5] = [
        &["check", missing],
        &["run", "--config", missing],
        &["bench", "--config", missing, "--in", "up=up.pcap"],
        &["replay", "--config", missing, "--in", "up=up.pcap", "--out", "out"],
        &["nat", "map", "192.0.2.1", "--config", missing],
    ];
    for command in commands {
        let (code, _, err) = softgate(command);
        let says = err.starts_with("/nonexistent/gw.toml: cannot be read: No such file");
        assert!(code == 2 && says, "{command:?}: {code}, {err}");
    }
}

/// Once a panic, or the end of the process by the kernel's hand.
#[test]
fn a_config_of_the_schema_before_is_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let old = "# Kept.\nschema = 0\n[pair]\nport = 5405\n[[port]]\nname = \"p\"\ndevice = \"eth1\" # kept\n";
    let new = "# Kept.\nschema = 1\n[[port]]\nname = \"p\"\ndevice = \"eth1\" # kept\n";
    let file = write(folder.path(), "gw.toml", old);
    let at = |path: &str| std::fs::read_to_string(path).unwrap();

    let (code, _, err) = softgate(&["check", &file]);
    assert!(code == 0 && err.contains("gw.toml:2: warning: schema: of the schema before"), "{err}");
    assert_eq!(softgate(&["check", "--strict", &file]).0, 1);
    let (code, out, err) = softgate(&["migrate", "--check", &file]);
    assert!(code == 1 && out.is_empty() && err.contains("pair: taken out"), "{err}");
    let (code, out, _) = softgate(&["migrate", &file, "--output", "-"]);
    assert_eq!((code, out.as_str()), (0, new));
    let other = format!("{file}.new");
    assert_eq!(softgate(&["migrate", &file, "--output", &other]).0, 0);
    assert_eq!((at(&other).as_str(), at(&file).as_str()), (new, old));
    let (code, out, err) = softgate(&["migrate", &file]);
    assert!(code == 0 && out.contains("gw.toml: from schema 0 to 1; as it was: "), "{out}{err}");
    assert_eq!((at(&file).as_str(), at(&format!("{file}.schema-0")).as_str()), (new, old));

    let (code, out, _) = softgate(&["migrate", "--check", &file]);
    assert_eq!((code, out), (0, format!("{file}: schema 1, nothing to rewrite\n")));
    for (text, said) in [
        ("[[port]]\nname = \"p\"\n", "the key schema is missing"),
        ("schema = 9\n", "for a newer softgate"),
        ("schema = 0\n[[port]]\nname = \"p\"\nmode = 1\n", "as `softgate migrate` writes it:4: port[0].mode"),
    ] {
        let file = write(folder.path(), "wrong.toml", text);
        let (code, _, err) = softgate(&["migrate", &file]);
        assert!(code == 1 && err.contains(said), "{err}");
        assert_eq!(at(&file), text, "nothing was written");
    }
}

#[test]
fn sessions_that_memory_cannot_hold_are_said_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let text = format!(
        "schema = 1\n[control]\nsocket = {socket:?}\n[flows]\ncapacity = 16_000_000\n[[port]]\nname = \"up\"\n\
         device = \"sg-none\"\n[[interface]]\nname = \"up\"\nport = \"up\"\nzone = \"outside\"\n\
         addresses = [\"198.51.100.254/24\"]\n"
    );
    let file = write(folder.path(), "gw.toml", &text);
    let out = folder.path().join("out");
    let replay =
        ["replay", "--in", "up=tests/pcap/echo-ipv4/in.lan.pcap", "--out", out.to_str().unwrap(), "--config"];
    for command in [&["run", "--config"][..], &replay[..]] {
        // 2 GB of address space stand in for a small machine.
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 2097152; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_softgate")])
            .args(command)
            .arg(&file)
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {err}");
        assert!(
            err.contains("flows.capacity: 16000000: its sessions need ") && err.contains("lower it"),
            "{err}"
        );
        assert!(!err.contains("panicked"), "{err}");
    }
}

#[test]
fn wrong_usage_and_nobody_there_are_2() {
    for arguments in [
        &["fly"][..],
        &["add", "route", "10.0.0.0/8", "over", "there"],
        &["add", "route", "10.0.0.1/8", "blackhole"],
        &["add", "neighbour", "lan", "10.0.0.1", "x"],
        &["add", "group", "blocked", "10.0.0.1", "--ttl", "0s"],
        &["add", "group", "blocked", "10.0.0.1", "--ttl", "32days"],
        &["add", "rule", "name = \"x\""],
        &["add", "rule", "name = \"x\", action = \"deny\", colour = \"red\""],
        &["show", "routes", "10.0.0.1/8"],
    ] {
        let (code, out, err) = softgate(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(!err.is_empty());
    }
    let (code, _, err) = softgate(&["--socket", "/nonexistent/s", "show", "version"]);
    assert_eq!(code, 2);
    assert!(err.contains("no gateway runs there; start `softgate run`, or give --socket PATH"), "{err}");
}

/// A capture of Ethernet frames, each at a second.
fn capture(seconds: &[u32]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1]);
    for second in seconds {
        file.extend(words(&[*second, 0, 60, 60]));
        file.extend([0; 60]);
    }
    file
}

/// An ordinary port, and captures by name in the same folder.
fn replay_in(folder: &Path, more: &[&str], captures: &[(&str, &[u8])]) -> (i32, String) {
    let config = write(folder, "gw.toml", "schema = 1\n[[port]]\nname = \"lan\"\ndevice = \"eth1\"\n");
    captures.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
    let input = format!("lan={}", folder.join(captures[0].0).display());
    let (code, _, err) = softgate(&[&[more[0], "--config", &config, "--in", &input], &more[1..]].concat());
    (code, err.replace(&format!("{}/", folder.display()), ""))
}

/// A gateway of which one thread has panicked must not go on with the others.
#[test]
fn a_panic_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), "gw.toml", "schema = 1\n[[port]]\nname = \"lan\"\ndevice = \"eth1\"\n");
    std::fs::write(folder.path().join("in.pcap"), capture(&[1])).unwrap();
    let said = Command::new(env!("CARGO_BIN_EXE_softgate"))
        .args(["bench", "--config", &config, "--in"])
        .arg(format!("lan={}", folder.path().join("in.pcap").display()))
        // No thread has so large a stack: the library panics.
        .envs([("RUST_MIN_STACK", "100000000000000"), ("RUST_BACKTRACE", "0")])
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(err.contains("failed to spawn thread"), "{err}");
    assert_eq!(said.status.signal(), Some(6), "SIGABRT: {err}");
}

#[test]
fn a_capture_that_cannot_be_replayed_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let replay = |bytes: &[u8]| replay_in(folder.path(), &["replay", "--out", &out], &[("in.pcap", bytes)]);
    assert_eq!(replay(&capture(&[1, 2])), (0, String::new()));
    let said = "softgate replay: between two packets of the captures there are 49710 days, at most 31 can be replayed: \
                is one of their times wrong?\n";
    assert_eq!(replay(&capture(&[1, u32::MAX])), (2, said.to_owned()));
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let header = words(&[0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28, 1, 20, 1, 0, 20]);
    let simple = words(&[3, 20, 4, 0, 20]);
    let (code, said) = replay(&[header, simple].concat());
    assert_eq!(code, 2);
    assert!(said.contains("in.pcap: packet 1: a packet without a time"), "{said}");
}

#[test]
fn a_replay_leaves_no_capture_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let old = &capture(&[7])[..];
    let captures = [("in.pcap", old), ("lan.pcap", old)];
    assert_eq!(replay_in(folder.path(), &["replay", "--out", &out], &captures).0, 0);
    assert!(!folder.path().join("lan.pcap").exists(), "nothing was sent");
    // What is read stays, wherever it lies.
    assert_eq!(replay_in(folder.path(), &["replay", "--out", &out], &captures[1..]).0, 0);
    assert!(folder.path().join("lan.pcap").exists());
}

#[test]
fn a_benchmark_that_cannot_begin_is_2() {
    let folder = tempfile::tempdir().unwrap();
    for seconds in ["nan", "inf", "1e30", "-1", "x"] {
        let seconds = format!("--seconds={seconds}");
        let (code, err) = replay_in(folder.path(), &["bench", &seconds], &[("in.pcap", &capture(&[1]))]);
        assert!(code == 2 && err.contains("a number of seconds, at most 3600"), "{seconds}: {code} {err}");
    }
    let (code, err) =
        replay_in(folder.path(), &["bench", "--in", "lan=/nowhere.pcap"], &[("in.pcap", &capture(&[1]))]);
    assert_eq!(
        (code, err.as_str()),
        (2, "softgate bench: /nowhere.pcap: No such file or directory (os error 2)\n")
    );
}

#[test]
fn completions_and_manual() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = softgate(&["completions", shell]);
        assert_eq!(code, 0);
        assert!(out.contains("neighbours"), "{shell}");
    }
    let (code, out, _) = softgate(&["man"]);
    assert!(code == 0 && out.contains(".TH softgate 1"), "{out}");
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(softgate(&["man", folder.path().to_str().unwrap()]).0, 0);
    assert!(folder.path().join("softgate-show-routes.1").exists());
}

#[derive(Default)]
struct Fake {
    patches: Vec<Patch>,
    applied: Option<Config>,
    roles: Vec<Role>,
}

struct Gateway(Arc<Mutex<Fake>>);

impl Backend for Gateway {
    fn roles(&self) -> Vec<Role> {
        self.0.lock().unwrap().roles.clone()
    }

    fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
        let mut fake = self.0.lock().unwrap();
        let changed = |changed| {
            let warnings = Vec::new();
            Ok(Reply::Changed(Changed {
                generation: 7,
                applied_us: 912,
                changed,
                late: false,
                warnings,
                ..Changed::default()
            }))
        };
        match request {
            Request::Commit { patches, .. } => {
                let changes = patches.iter().map(Patch::changes).sum();
                fake.patches.extend(patches);
                changed(changes)
            }
            Request::Apply { file_name, text, files, .. } => {
                let mut read = |path: &str| {
                    let file = files.iter().find(|(name, _)| name == path);
                    file.map(|(_, text)| text.clone()).ok_or_else(|| std::io::ErrorKind::NotFound.into())
                };
                fake.applied =
                    Some(Config::parse_with(&text, &file_name, &mut read).map_err(Fault::refused)?);
                changed(1)
            }
            Request::ShowRoutes(_) => Ok(Reply::Routes(RoutePage::default())),
            Request::NatMap(HostQuery { inside, .. }) => Ok(Reply::NatHosts(vec![NatHost {
                rules: vec!["cgn".into()],
                inside,
                inside_vrf: "default".into(),
                outside: [192, 0, 2, 1].into(),
                outside_vrf: "default".into(),
                first_port: 1024,
                last_port: 5055,
            }])),
            Request::NatFind(PortQuery { outside, port, vrf }) => {
                Err(Fault::not_found(format!("{outside}:{port}@{}", vrf.unwrap())))
            }
            Request::DropsExport {} => {
                Ok(Reply::DropsExport(DropsExport { packets: 2, pcapng: vec![1, 2, 3] }))
            }
            _ => Ok(Reply::Version(Version { version: "0.1.0".into(), generation: 7, ..Version::default() })),
        }
    }
}

type Ask<'a> = &'a dyn Fn(&[&str]) -> (i32, String, String);

/// Runs `test` with a gateway; the test asks through the binary.
fn with_gateway(test: impl FnOnce(Ask<'_>, &Mutex<Fake>, &PathBuf)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let mut server = Server::bind(&path, None, Limits::default()).unwrap();
    let (fake, stop) = (Arc::new(Mutex::new(Fake::default())), AtomicBool::new(false));
    let socket = path.to_str().unwrap().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut backend = Gateway(fake.clone());
            while !stop.load(Ordering::Acquire) {
                server.poll(&mut backend, Some(Duration::from_millis(10))).unwrap();
            }
        });
        let ask = |arguments: &[&str]| softgate(&[&["--socket", &socket], arguments].concat());
        let folder = folder.path().to_owned();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&ask, &fake, &folder)));
        stop.store(true, Ordering::Release);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_gateway_is_changed_and_shown() {
    with_gateway(|ask, fake, folder| {
        let (code, out, err) =
            ask(&["add", "route", "192.0.2.0/24", "via", "198.51.100.1,198.51.100.2@blue"]);
        assert_eq!(
            (code, out.as_str(), err.as_str()),
            (0, "1 added: generation 7, in use by every worker after 912 us\n", "")
        );
        let Some(Patch::RouteAdd(routes)) = fake.lock().unwrap().patches.pop() else { panic!() };
        assert_eq!(routes[0].target.next_hops().len(), 2);

        let file = write(folder, "routes.txt", "10.0.0.0/8 blackhole\n# x\n192.0.2.0/24 via 198.51.100.1\n");
        let (code, out, _) = ask(&["add", "route", "--file", &file, "--vrf", "blue", "--json"]);
        assert_eq!(code, 0);
        let changed: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&changed["generation"], &changed["changed"]), (&7.into(), &2.into()));
        let Some(Patch::RouteAdd(routes)) = fake.lock().unwrap().patches.pop() else { panic!() };
        assert!(routes.iter().all(|route| route.vrf.as_str() == "blue"));

        assert_eq!(ask(&["del", "route", "--file", &file]).0, 0);
        let Some(Patch::RouteDel(routes)) = fake.lock().unwrap().patches.pop() else { panic!() };
        assert_eq!(routes.len(), 2);
        assert_eq!(ask(&["del", "route", "10.0.0.0/8", "10.1.0.0/16", "--vrf", "blue"]).0, 0);
        assert_eq!(ask(&["add", "neighbour", "lan", "10.0.0.1", "02:00:00:00:00:01"]).0, 0);
        assert_eq!(ask(&["del", "neighbour", "lan", "10.0.0.1"]).0, 0);
        assert_eq!(fake.lock().unwrap().patches.len(), 3);

        let bad = write(folder, "bad.txt", "10.0.0.1/8 blackhole\n");
        let (code, _, err) = ask(&["add", "route", "--file", &bad]);
        assert_eq!(code, 1);
        assert_eq!(
            err,
            format!("{bad}:1: prefix: 10.0.0.1/8: host bits are set; the network is 10.0.0.0/8\n")
        );

        let (code, out, _) = ask(&["show", "version", "--json"]);
        assert!(code == 0 && out.contains("\"generation\": 7"), "{out}");
        assert_eq!(ask(&["show", "routes"]), (0, String::new(), String::new()));
        assert_eq!(ask(&["show", "routes", "--json"]), (0, "[\n]\n".into(), String::new()));
        assert_eq!(ask(&["show", "routes", "10.0.0.0/8"]), (1, String::new(), "no such route\n".into()));

        let capture = folder.join("drops.pcapng");
        assert_eq!(ask(&["drops", "export", capture.to_str().unwrap()]).0, 0);
        assert_eq!(std::fs::read(capture).unwrap(), [1, 2, 3]);
    });
}

#[test]
fn a_config_is_applied_with_its_route_files() {
    with_gateway(|ask, fake, folder| {
        write(folder, "full.txt", "203.0.113.0/24 blackhole\n");
        let file = write(folder, "gw.toml", "schema = 1\n[[route_file]]\npath = \"full.txt\"\n");
        let (code, out, err) = ask(&["apply", &file]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(out, "applied: generation 7, in use by every worker after 912 us\n");
        assert_eq!(fake.lock().unwrap().applied.as_ref().unwrap().all_routes().count(), 1);
        let file = write(folder, "bad.toml", "schema = 1\nx = 1\n");
        let (code, _, err) = ask(&["apply", &file]);
        assert_eq!(code, 1);
        assert!(err.starts_with(&format!("{file}:2: x: unknown key")), "{err}");
        let file = write(folder, "lost.toml", "schema = 1\n[[route_file]]\npath = \"lost.txt\"\n");
        let (code, _, err) = ask(&["apply", &file]);
        assert!(code == 2 && err.contains("lost.txt: cannot be read: No such file"), "{err}");
    });
}

/// The table of RFC 7422 section 2.3, by commands.
#[test]
fn a_deterministic_nat_says_whose_a_port_is_without_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"schema = 1
[[port]]
name = "a"
device = "a"
[[interface]]
name = "in"
port = "a"
vlan = 1
zone = "inside"
addresses = ["198.51.100.254/24"]
[[interface]]
name = "out"
port = "a"
zone = "outside"
addresses = ["192.0.2.254/24"]
[[nat.source]]
name = "cgn"
from = { zone = "inside", prefix = "198.51.100.1-198.51.100.14" }
to = { zone = "outside" }
pool = ["192.0.2.1"]
deterministic = true
hosts_per_address = 14
ports_per_host = 4032
overflow = true
"#;
    let file = write(folder.path(), "gw.toml", text);
    let nat = |words: &[&str]| softgate(&[&["nat", "--config", &file], words].concat());
    for (host, ports) in
        [("198.51.100.1", "1024-5055"), ("198.51.100.2", "5056-9087"), ("198.51.100.14", "53440-57471")]
    {
        let (code, out, err) = nat(&["map", host]);
        assert_eq!((code, err.as_str()), (0, ""));
        let row: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, [host, "default", "192.0.2.1", "default", ports, "cgn"]);
        let first = format!("192.0.2.1:{}", ports.split_once('-').unwrap().0);
        assert_eq!(nat(&["find", &first]), (0, out, err));
    }
    let (code, out, _) = nat(&["find", "192.0.2.1:2001", "--json", "--vrf", "default"]);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &found[0]["inside"], &found[0]["last_port"]),
        (0, &"198.51.100.1".into(), &5055.into())
    );
    for (words, complaint) in [
        (["map", "198.51.100.15"], "198.51.100.15 is no host of a deterministic NAT"),
        (["find", "192.0.2.1:1023"], "192.0.2.1:1023: the port is no host's: reserved, or left over"),
        (
            ["find", "192.0.2.1:58204"],
            "192.0.2.1:58204: of the overflow: the event log says whose it was at which time (block-claimed)",
        ),
        (["find", "192.0.2.2:2001"], "192.0.2.2:2001: no deterministic NAT has this address"),
    ] {
        assert_eq!(nat(&words), (1, String::new(), format!("{complaint}\n")));
    }
    assert_eq!(nat(&["map", "198.51.100.1", "--vrf", "red"]), (1, String::new(), "no VRF red\n".into()));
    assert_eq!(nat(&["find", "192.0.2.1"]).0, 2, "a port is needed");
    let wrong = write(folder.path(), "wrong.toml", &text.replace("= 4032", "= 8064"));
    let (code, _, err) = softgate(&["nat", "map", "198.51.100.1", "--config", &wrong]);
    assert_eq!(code, 1);
    let complaint = "nat.source[0].deterministic: 14 with 8064 ports each to an address need 112896, and it has 64512 \
                     (whole 64s of its range)";
    assert!(err.contains(complaint), "{err}");
    assert_eq!(softgate(&["nat", "map", "198.51.100.1", "--config", "/nonexistent.toml"]).0, 2);
    assert_eq!(softgate(&["--socket", "/nonexistent.sock", "nat", "map", "198.51.100.1"]).0, 2);
}

#[test]
fn a_running_gateway_says_whose_a_port_is() {
    with_gateway(|ask, _, _| {
        let (code, out, err) = ask(&["nat", "map", "100.64.0.1", "--json"]);
        assert_eq!((code, err.as_str()), (0, ""));
        let found: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(found[0]["outside"], "192.0.2.1");
        let (code, _, err) = ask(&["nat", "find", "192.0.2.1:80", "--vrf", "red"]);
        assert_eq!((code, err.as_str()), (1, "192.0.2.1:80@red\n"));
    });
}

#[test]
fn the_selftest_says_what_is_met_and_what_is_not() {
    let (code, out, err) = softgate(&["selftest", "nat", "--clause", "RFC 4787"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.starts_with(
            "CLAUSE            LEVEL   VERDICT         WHAT IT ASKS\nRFC 4787 REQ-1    MUST    PASS"
        ),
        "{out}"
    );
    // One clause comes with its packets.
    let (code, out, _) = softgate(&["selftest", "nat", "--clause", "rfc4787 req-12a"]);
    assert_eq!(code, 0);
    assert!(out.contains("wan > IP 198.51.100.30 > 203.0.113."), "{out}");
    assert!(out.contains("PASS\n\nClauses: 1; 1 PASS, 0 FAIL (0 of them MUST), 0 not applicable"), "{out}");
    // A MUST that is not met.
    let pcp = ["selftest", "nat", "--json", "--clause", "RFC 6888 REQ-9"];
    let (code, out, err) = softgate(&pcp);
    assert_eq!((code, err.as_str()), (1, "not met, and a MUST: RFC 6888 REQ-9\n"));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["clauses"][0]["verdict"], "FAIL");
    assert_eq!(json["must_failed"][0], "RFC 6888 REQ-9");
    let (code, ..) = softgate(&[&pcp[..], &["--accept", "RFC 6888 REQ-9"]].concat());
    assert_eq!(code, 0);
    let (code, _, err) = softgate(&["selftest", "nat", "--clause", "RFC 2663"]);
    assert_eq!((code, err.as_str()), (2, "no clause `RFC 2663`; without --clause all are shown\n"));
}

/// The kernel says who asks: a user with a role that only shows.
#[test]
fn another_user_may_do_what_a_role_of_its_says() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    if uids.split_whitespace().nth(1) != Some("0") {
        // As `scripts/test` counts them.
        let _ = writeln!(
            std::io::stderr(),
            "\nSKIPPED: another_user_may_do_what_a_role_of_its_says: it needs root"
        );
        return;
    }
    with_gateway(|_, fake, folder| {
        // Where that user gets to.
        let copy = folder.join("softgate");
        std::fs::copy(env!("CARGO_BIN_EXE_softgate"), &copy).unwrap();
        let open = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(folder, 0o755);
        open(&folder.join("control.sock"), 0o666);
        let ask = |uid: u32, gid: u32, arguments: &[&str]| {
            let mut command = Command::new(&copy);
            command.arg("--socket").arg(folder.join("control.sock")).args(arguments).uid(uid).gid(gid);
            let Output { status, stderr, .. } = command.current_dir("/").output().unwrap();
            (status.code().unwrap(), String::from_utf8(stderr).unwrap())
        };
        let add = ["add", "route", "192.0.2.0/24", "via", "198.51.100.1"];
        assert_eq!(ask(4001, 4001, &add), (0, String::new()), "no role, no limits");
        let text = "schema = 1\n[[role]]\nname = \"eyes\"\nuids = [4001]\nmay = [\"show\"]\n\
                    [[role]]\nname = \"hands\"\ngids = [4002]\nmay = [\"route add\"]\n";
        fake.lock().unwrap().roles = Config::parse(text, "roles.toml").unwrap().roles;
        assert_eq!(ask(4001, 4001, &["show", "version"]), (0, String::new()));
        let (code, err) = ask(4001, 4001, &add);
        assert!(code != 0 && err.contains("role eyes does not include \"route add\""), "{code} {err}");
        assert_eq!(ask(4001, 4002, &add), (0, String::new()), "by its group");
        let (code, err) = ask(4003, 4003, &["show", "version"]);
        assert!(code != 0 && err.contains("user 4003 has no role"), "{code} {err}");
        assert_eq!(ask(0, 0, &add), (0, String::new()));
        assert_eq!(fake.lock().unwrap().patches.len(), 3);
    });
}

#[cfg(feature = "remote")]
#[test]
fn agent_and_http_say_what_they_lack() {
    for (arguments, says) in [
        (&["agent"][..], "endpoints: where is etcd?"),
        (&["agent", "--endpoint", "https://etcd.example:2379"], "ca: whose word counts"),
        (&["agent", "--config", "/nonexistent/agent.toml"], "/nonexistent/agent.toml: cannot be read"),
        (&["http", "--tcp", "127.0.0.1:0"], "--client-ca"),
        (
            &["http", "--unix", "/nonexistent/http.sock", "--may-change", "a.example"],
            "--may-change goes with",
        ),
    ] {
        let (code, out, err) = softgate(arguments);
        assert!(code == 2 && out.is_empty() && err.contains(says), "{arguments:?}: {code}: {out}{err}");
    }
    let (code, out, _) = softgate(&["http", "--openapi"]);
    assert!(code == 0 && out.contains("\"openapi\": \"3.1.0\"") && out.contains("/v1/show/routes"));
}

const TWO_ZONES: &str = "schema = 1\n[[port]]\nname = \"lan\"\ndevice = \"sg-lan\"\n[[port]]\nname = \"wan\"\n\
    device = \"sg-wan\"\n[[interface]]\nname = \"lan\"\nport = \"lan\"\nzone = \"inside\"\n\
    addresses = [\"192.0.2.1/24\"]\n[[interface]]\nname = \"wan\"\nport = \"wan\"\nzone = \"outside\"\n\
    addresses = [\"198.51.100.1/24\"]\n[[rule]]\nname = \"web\"\naction = \"allow\"\nfrom = { zone = \"inside\" }\n\
    to = { zone = \"outside\" }\nservice = \"tcp/443\"\n";

#[test]
fn packets_are_explained_without_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "gw.toml", TWO_ZONES);
    let explain =
        |packet: &[&str]| softgate(&[&["explain", "--config", &file, "--why-not"], packet].concat());
    let (code, out, err) = explain(&["tcp", "192.0.2.9", "to", "198.51.100.9:443"]);
    assert!(code == 0 && err.is_empty(), "{err}");
    assert!(out.contains("rule            web") && out.contains("\nforwarded\n"), "{out}");
    let (code, out, _) = explain(&["udp 192.0.2.9 > 198.51.100.9:53 from lan"]);
    assert_eq!(code, 0, "it was asked, and answered");
    assert!(
        out.contains("dropped: firewall-deny") && out.contains("to let it pass: no rule allows"),
        "{out}"
    );
    let (code, out, _) = explain(&["--json", "udp 192.0.2.9 > 198.51.100.9:53 from lan"]);
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, told["packets"][0]["reason"].as_str()), (0, Some("firewall-deny")));
    for (packet, wanted) in [
        (&["udp", "192.0.2.9", "to", "198.51.100.9"][..], "write 198.51.100.9:PORT"),
        (&["udp 192.0.2.9 > 198.51.100.9:53 from dmz"], "no interface dmz; there is lan, wan"),
        (&["--frame", "0g", "--port", "lan"], "is no hex digit"),
        (&["--frame", "00", "--port", "dmz"], "no port dmz"),
    ] {
        let (code, out, err) = explain(packet);
        assert!(code == 2 && out.is_empty() && err.contains(wanted), "{packet:?}: {code} {err}");
    }
}

#[test]
fn who_reaches_what_is_said_without_a_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "gw.toml", TWO_ZONES);
    let reach = |from: &str, to: &str| softgate(&["reach", "--config", &file, from, to]);
    let (code, out, err) = reach("zone inside", "198.51.100.9 tcp/443");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("by lan (VRF default, zone inside):\n  all of it: "), "{out}");
    assert!(out.contains("for example: tcp 192.0.2."), "{out}");
    let (code, out, _) = reach("zone outside", "192.0.2.128/25");
    assert_eq!((code, out.as_str()), (0, "nobody of zone outside reaches 192.0.2.128/25\n"));
    let (code, _, err) = reach("zone dmz", "192.0.2.9");
    assert!(code == 2 && err.contains("no zone dmz"), "{err}");
}

#[test]
fn assertions_refuse_and_oddities_warn_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let assertion = "[[assert]]\nname = \"mail\"\npacket = \"tcp 192.0.2.9 > 198.51.100.9:25 from lan\"\n";
    let file = write(folder.path(), "gw.toml", &format!("{TWO_ZONES}{assertion}"));
    let (code, out, err) = softgate(&["check", &file]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with(&format!("{file}:24: assert \"mail\" does not hold: expected allow")), "{err}");
    assert!(err.contains("rule            default: no rule allows it from inside to outside"), "{err}");
    let odd = "[[group]]\nname = \"nobody\"\nmembers = []\n";
    let file = write(folder.path(), "gw.toml", &format!("{TWO_ZONES}{odd}"));
    let (code, out, err) = softgate(&["check", &file]);
    assert!(code == 0 && out.contains("good"), "{out}");
    assert!(err.starts_with(&format!("{file}:24: warning: group[0]: nobody names group nobody")), "{err}");
    assert_eq!(softgate(&["check", "--strict", &file]).0, 1);
}

#[test]
fn a_capture_is_previewed_under_two_configs() {
    let folder = tempfile::tempdir().unwrap();
    let capture = "tests/pcap/fw-allow-and-reply/in.lan.pcap";
    let now = "tests/pcap/fw-allow-and-reply/config.toml";
    let same = softgate(&["preview", now, "--running", now, "--capture", capture, "--port", "lan"]);
    assert!(same.0 == 0 && same.1.starts_with("0 of "), "{same:?}");
    let closed = std::fs::read_to_string(now).unwrap().replace("action = \"allow\"", "action = \"deny\"");
    let then = write(folder.path(), "then.toml", &closed);
    let (code, out, err) =
        softgate(&["preview", &then, "--running", now, "--capture", capture, "--port", "lan"]);
    assert!(code == 0 && err.is_empty(), "{err}");
    assert!(out.contains("  now  forwarded\n") && out.contains("  then dropped: firewall-deny\n"), "{out}");
}
