//! Commits of the shipped binary, and what a start makes of them: after an end, a kill, a torn write, without devices.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use softgate::config::Config;
use softgate::control::revisions::Document;
use softgate::control::{Changed, Client, Patch, Request, RevisionList, Terms};

/// How long a start, or what was announced, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary in a folder of its own.
struct Gateway {
    folder: tempfile::TempDir,
    child: Option<Child>,
    starts: u32,
}

impl Gateway {
    /// `None`, after saying so, where it cannot run.
    fn new(test: &str) -> Option<Gateway> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("{test}: skipped: loading the XDP program needs root");
            return None;
        }
        let gateway = Gateway { folder: tempfile::tempdir().expect("a folder"), child: None, starts: 0 };
        fs::write(gateway.file(), gateway.text("")).expect("a file");
        Some(gateway)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("gw.toml")
    }

    fn text(&self, extra: &str) -> String {
        let folder = self.folder.path().display();
        format!(
            r#"# Kept.
schema = 1
[system]
workers = [0]
frames = 1024
[control]
socket = "{folder}/sock"
state_dir = "{folder}/state"
[flows]
capacity = 1024
[[port]]
name = "p"
device = "sgt-none"  # it never comes
[[interface]]
name = "in"
port = "p"
zone = "inside"
addresses = ["10.0.0.1/24"]
[[group]]
name = "blocked"
members = []
[[rule]]
name = "rest"
action = "deny"
{extra}"#
        )
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path(&format!("log{}", self.starts))).unwrap_or_default()
    }

    fn start(&mut self, options: &[&str]) {
        self.starts += 1;
        let log = File::create(self.path(&format!("log{}", self.starts))).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_softgate"))
            .arg("run")
            .arg("--config")
            .arg(self.file())
            .args(options)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("it runs"));
        self.wait("it gets ready", |gateway| gateway.log().contains("softgate ready"));
    }

    fn wait(&mut self, what: &str, mut holds: impl FnMut(&mut Gateway) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("our own child"));
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "{what}: {ended:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it with no chance to tidy up.
    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }

    fn client(&self) -> Client {
        Client::connect(self.path("sock")).expect("it listens")
    }

    /// What a command said; it has to go well.
    fn ask(&self, command: &[&str]) -> String {
        let (code, said) = self.say(command);
        assert_eq!(code, Some(0), "{command:?}: {said}\n{}", self.log());
        said
    }

    fn say(&self, command: &[&str]) -> (Option<i32>, String) {
        let mut client = Command::new(env!("CARGO_BIN_EXE_softgate"));
        client.args(command).arg("--socket").arg(self.path("sock"));
        let output = client.output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    }

    fn revisions(&self) -> RevisionList {
        self.client().call(&Request::ShowRevisions {}).expect("they are shown")
    }

    /// The config in force.
    fn config(&self) -> Config {
        let (_, document) = self.client().document(None).expect("it is there");
        document.config().unwrap_or_else(|errors| panic!("{errors}\n{}", document.text))
    }

    fn rules(&self) -> Vec<String> {
        self.config().rules.iter().map(|rule| rule.name.to_string()).collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

const DENY: &str = r#"action = "deny", to = { prefix = "192.0.2.1" }"#;

#[test]
fn commits_are_numbered_kept_and_gone_back_to() {
    let Some(mut gateway) = Gateway::new("commits_are_numbered_kept_and_gone_back_to") else { return };
    gateway.start(&[]);
    let said = gateway.ask(&["add", "rule", &format!("name = \"stop\", {DENY}"), "-m", "a scanner"]);
    assert!(said.contains(", revision 2, "), "{said}");
    gateway.ask(&["add", "route", "198.51.100.0/24", "blackhole"]);
    // What goes by itself is no config.
    let said = gateway.ask(&["add", "group", "blocked", "203.0.113.9", "--ttl", "1h"]);
    assert!(said.contains(", revision 3, "), "{said}");
    let list = gateway.revisions();
    let told: Vec<(u64, &str, Option<&str>)> = list
        .revisions
        .iter()
        .map(|entry| &entry.revision)
        .map(|revision| (revision.number, revision.request.as_str(), revision.message.as_deref()))
        .collect();
    assert_eq!(told[..2], [(3, "route.add", None), (2, "commit", Some("a scanner"))]);
    assert_eq!((told.len(), list.revisions[1].revision.by.uid), (3, Some(0)));
    assert_eq!(gateway.ask(&["diff", "1", "3"]), "+ rule stop\n+ route 198.51.100.0/24\n");

    // Two writers: the one that was slower is told what the other has done.
    let mut slow = gateway.client();
    let _: softgate::control::Staged = slow.call(&Request::Begin {}).expect("it begins");
    gateway.ask(&["del", "rule", "stop", "-m", "gone"]);
    let patch = Request::RuleDel { rules: vec!["rest".parse().expect("a name")] };
    let _: softgate::control::Staged = slow.call(&patch).expect("it is staged");
    let refused = slow.call::<Changed>(&Request::Commit { patches: Vec::new(), terms: Terms::default() });
    let refused = refused.expect_err("it was too slow").to_string();
    assert!(
        refused.contains("revision 3") && refused.contains("revision 4") && refused.contains("\"gone\""),
        "{refused}"
    );
    let (code, said) = gateway.say(&["add", "route", "192.0.2.0/24", "blackhole", "--if-revision", "3"]);
    assert!(code == Some(1) && said.contains("revision 4 is in force"), "{said}");

    gateway.ask(&["rollback", "2", "-m", "as before"]);
    assert_eq!(gateway.rules(), ["rest", "stop"]);
    let saved = gateway.path("saved.toml");
    gateway.ask(&["save", &saved.display().to_string()]);
    let text = fs::read_to_string(&saved).expect("it was saved");
    assert!(text.starts_with("# Kept.\n") && text.contains("# it never comes"), "{text}");
    let (code, said) = gateway.say(&["rollback", "77"]);
    assert!(code == Some(1) && said.contains("no revision 77"), "{said}");

    // What was committed last is what a start begins with, until the file is edited.
    gateway.kill();
    gateway.start(&[]);
    assert_eq!((gateway.revisions().current, gateway.rules()), (5, vec!["rest".into(), "stop".into()]));
    gateway.kill();
    fs::write(gateway.file(), gateway.text("# edited\n")).expect("a file");
    gateway.start(&["--from-revision"]);
    assert_eq!(gateway.revisions().current, 5);
    gateway.kill();
    gateway.start(&[]);
    assert_eq!((gateway.revisions().current, gateway.rules()), (6, vec!["rest".into()]));
    assert!(gateway.log().contains("it has changed since revision 1"), "{}", gateway.log());
}

/// A start writes a revision in the words of the schema before down anew: the next release will not read those any more.
#[test]
fn a_start_keeps_what_was_in_the_schema_before_in_its_own() {
    let test = "a_start_keeps_what_was_in_the_schema_before_in_its_own";
    let Some(mut gateway) = Gateway::new(test) else { return };
    fs::write(gateway.file(), gateway.text("").replace("schema = 1", "schema = 0 # old")).expect("a file");
    gateway.start(&[]);
    // Changes are written into it in the words of today.
    gateway.ask(&["add", "rule", &format!("name = \"stop\", {DENY}")]);
    let text = |gateway: &Gateway| gateway.client().document(None).expect("it is there").1.text;
    assert!(text(&gateway).starts_with("# Kept.\nschema = 1 # old\n"), "{}", text(&gateway));
    gateway.ask(&["rollback", "1"]);
    assert!(text(&gateway).starts_with("# Kept.\nschema = 0 # old\n"), "{}", text(&gateway));
    gateway.kill();
    gateway.start(&[]);
    assert_eq!((gateway.revisions().current, gateway.rules()), (4, vec!["rest".into()]));
    assert!(text(&gateway).starts_with("# Kept.\nschema = 1 # old\n"), "{}", text(&gateway));
    gateway.kill();
    gateway.start(&[]);
    assert_eq!(gateway.revisions().current, 4, "once");
}

/// On a disk that takes nothing any more a start still begins with what is kept, a torn write behind it included, and says
/// so; what is committed then is in force, and is said not to be kept. Once the disk takes it, it is.
#[test]
fn a_disk_that_takes_nothing_keeps_no_gateway_from_starting() {
    let test = "a_disk_that_takes_nothing_keeps_no_gateway_from_starting";
    let Some(mut gateway) = Gateway::new(test) else { return };
    let state = gateway.path("state");
    fs::create_dir(&state).expect("a folder");
    let mount = |options: &[&str]| {
        let done = Command::new("mount").args(options).arg(&state).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"]) {
        eprintln!("{test}: skipped: a file system cannot be mounted");
        return;
    }
    let _mounted = Mounted(state.clone());
    gateway.start(&[]);
    gateway.ask(&["add", "rule", &format!("name = \"stop\", {DENY}")]);
    gateway.kill();
    tear(gateway.folder.path(), 3);
    assert!(mount(&["-o", "remount,ro"]));
    gateway.start(&[]);
    for says in ["the disk is read-only", "are no whole revision", "cannot be cut off"] {
        assert!(gateway.log().contains(says), "{says}: {}", gateway.log());
    }
    assert_eq!((gateway.rules(), gateway.revisions().current), (vec!["rest".into(), "stop".into()], 2));
    let said = gateway.ask(&["del", "rule", "rest"]);
    assert!(said.contains("revision 3 is in force, but NOT on disk"), "{said}");
    let (code, said) = gateway.say(&["add", "route", "192.0.2.0/24", "blackhole", "--confirm", "1h"]);
    assert!(code == Some(1) && said.contains("the disk has not taken revision 3 yet"), "{said}");

    assert!(mount(&["-o", "remount,rw"]));
    gateway.wait("it is written", |gateway| {
        gateway.say(&["add", "route", "192.0.2.0/24", "blackhole", "--confirm", "1h"]).0 == Some(0)
    });
    gateway.ask(&["confirm"]);
    gateway.kill();
    gateway.start(&[]);
    assert_eq!((gateway.rules(), gateway.revisions().current), (vec!["stop".into()], 4));
    gateway.kill();
}

/// Unmounted at the end.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_is_not_confirmed_is_taken_back() {
    let Some(mut gateway) = Gateway::new("what_is_not_confirmed_is_taken_back") else { return };
    gateway.start(&[]);
    let rule = format!("name = \"stop\", {DENY}");
    let said = gateway.ask(&["add", "rule", &rule, "--confirm", "1h"]);
    assert!(said.contains("taken back in 3600 s unless you say: softgate confirm"), "{said}");
    // Until then nobody else may change anything.
    let (code, said) = gateway.say(&["del", "rule", "rest"]);
    assert!(code == Some(1) && said.contains("revision 2 waits to be confirmed"), "{said}");
    let (code, said) = gateway.say(&["confirm", "1"]);
    assert!(code == Some(1) && said.contains("revision 2 waits to be confirmed, not 1"), "{said}");
    gateway.ask(&["confirm", "2"]);
    assert_eq!(gateway.say(&["confirm"]).0, Some(1));
    gateway.ask(&["del", "rule", "rest", "--confirm", "1s"]);
    gateway.wait("it is taken back", |gateway| gateway.revisions().current == 4);
    assert_eq!(gateway.rules(), ["rest", "stop"]);
    let last = gateway.revisions().revisions.remove(0).revision;
    assert_eq!(last.message.as_deref(), Some("revision 3 is taken back: it was not confirmed in time"));
    assert_eq!((last.by.uid, last.request.as_str()), (None, "rollback"));

    // Also where the gateway ends before.
    let edited = gateway.path("edited.toml");
    fs::write(
        &edited,
        gateway.text(&format!("[[rule]]\nname = \"other\"\n{}\n", DENY.replace(", to", "\nto"))),
    )
    .expect("a file");
    gateway.ask(&["apply", &edited.display().to_string(), "--confirm", "1h"]);
    assert_eq!(gateway.rules(), ["rest", "other"]);
    gateway.kill();
    gateway.start(&[]);
    assert_eq!((gateway.revisions().current, gateway.rules()), (6, vec!["rest".into(), "stop".into()]));
    assert!(
        gateway.log().contains("revision 5 was not confirmed when the gateway ended"),
        "{}",
        gateway.log()
    );
}

#[test]
fn what_nobody_has_confirmed_is_not_gone_back_to() {
    let Some(mut gateway) = Gateway::new("what_nobody_has_confirmed_is_not_gone_back_to") else { return };
    gateway.start(&[]);
    gateway.ask(&["add", "rule", &format!("name = \"stop\", {DENY}")]);
    gateway.ask(&["del", "rule", "rest", "--confirm", "1h"]);
    gateway.ask(&["rollback", "1", "--confirm", "1s"]);
    gateway.wait("it is taken back", |gateway| gateway.revisions().current == 5);
    assert_eq!(gateway.rules(), ["rest", "stop"]);
}

/// Rules, backends, groups, routes and neighbours at once: one revision and one generation, or nothing at all.
#[test]
fn changes_of_several_kinds_are_one_commit() {
    let Some(mut gateway) = Gateway::new("changes_of_several_kinds_are_one_commit") else { return };
    let service = "[[service]]\nname = \"web\"\naddress = \"192.0.2.80\"\nservice = \"tcp/80\"\n\
                   backends = [{ address = \"10.0.0.80\" }]\n";
    fs::write(gateway.file(), gateway.text(service)).expect("a file");
    gateway.start(&[]);
    let request = |text: &str| -> Request {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let rule = r#"{"method":"rule.add","params":{"rule":{"name":"in","action":"allow","to":{"group":"blocked"}},"before":"rest"}}"#;
    let backends = r#"{"method":"service.set-backends","params":{"service":"web","backends":[{"address":"10.0.0.81"}]}}"#;
    let group = r#"{"method":"group.add","params":{"group":"blocked","members":["203.0.113.9"]}}"#;
    let timed =
        r#"{"method":"group.add","params":{"group":"blocked","members":["203.0.113.10"],"ttl_s":3600}}"#;
    let route = r#"{"method":"route.add","params":{"routes":[["198.51.100.0/24","10.0.0.2"]]}}"#;
    let neighbour = r#"{"method":"neighbour.add","params":{"neighbours":[{"interface":"in","address":"10.0.0.2","mac":"02:00:00:00:00:02"}]}}"#;
    let commit = |gateway: &Gateway, requests: &[&str]| {
        let mut client = gateway.client();
        let _: softgate::control::Staged = client.call(&Request::Begin {}).expect("it begins");
        for text in requests {
            let _: softgate::control::Staged = client.call(&request(text)).expect("it is staged");
        }
        client.call::<Changed>(&Request::Commit { patches: Vec::new(), terms: Terms::default() })
    };
    let of = |gateway: &Gateway| {
        let (config, version) = (gateway.config(), gateway.ask(&["show", "version", "--json"]));
        let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
        (config, version["generation"].as_u64().expect("a number"))
    };

    // Without neighbours, and with one: the two ways in which it is compiled.
    for (requests, last) in [
        (vec![rule, backends, group, timed, route], 2),
        (
            vec![
                r#"{"method":"rule.del","params":{"rules":["in"]}}"#,
                r#"{"method":"service.set-backend","params":{"service":"web","backends":["10.0.0.81"],"weight":7}}"#,
                r#"{"method":"group.del","params":{"group":"blocked","members":["203.0.113.9","203.0.113.10"]}}"#,
                neighbour,
            ],
            3,
        ),
    ] {
        let before = of(&gateway).1;
        // One that cannot be, last: nothing of the others is.
        let wrong = r#"{"method":"route.del","params":{"routes":[["192.0.2.0/24"]]}}"#;
        let unknown = r#"{"method":"rule.del","params":{"rules":["none"]}}"#;
        for one in [wrong, unknown] {
            let was = of(&gateway);
            let all: Vec<&str> = requests.iter().copied().chain([one]).collect();
            let refused = commit(&gateway, &all).expect_err("part of it cannot be");
            assert!(refused.is_refusal(), "{refused}");
            assert_eq!(of(&gateway), was, "{one}");
        }
        let done = commit(&gateway, &requests).expect("it is good");
        // Tables that were made on the way have numbers too, and nobody has seen them.
        assert!(done.revision == Some(last) && done.generation > before, "{done:?}");
    }

    let at = |revision: u64| {
        let (_, document) = gateway.client().document(Some(revision)).expect("it is there");
        document.config().unwrap_or_else(|errors| panic!("{errors}\n{}", document.text))
    };
    let told = |config: &Config| {
        let names = config.rules.iter().map(|rule| rule.name.to_string()).collect::<Vec<_>>().join(" ");
        let backend = &config.services[0].backends[0];
        let routes = config.all_routes().count();
        (names, backend.key().to_string(), backend.weight.get(), config.groups[0].members.len(), routes)
    };
    assert_eq!(told(&at(1)), ("rest".into(), "10.0.0.80".into(), 1, 0, 0));
    // Of the group's members the one that goes by itself is no config.
    assert_eq!(told(&at(2)), ("in rest".into(), "10.0.0.81".into(), 1, 1, 1));
    assert_eq!(told(&at(3)), ("rest".into(), "10.0.0.81".into(), 7, 0, 1));
    assert_eq!((at(2).neighbours.len(), at(3).neighbours.len()), (0, 1));
}

/// A change that can be told from all others by what it leaves.
fn numbered(n: u32) -> Request {
    let [_, b, c, d] = n.to_be_bytes();
    let text = match n % 4 {
        0 => format!(
            r#"{{"method":"group.add","params":{{"group":"blocked","members":["203.{b}.{c}.{d}"]}}}}"#
        ),
        1 => {
            format!(r#"{{"method":"route.add","params":{{"routes":[["198.{b}.{c}.{d}/32","blackhole"]]}}}}"#)
        }
        2 => format!(
            r#"{{"method":"rule.add","params":{{"rule":{{"name":"r{n}","action":"deny"}},"before":"rest"}}}}"#
        ),
        _ => format!(r#"{{"method":"route.del","params":{{"routes":[["198.{b}.{c}.{}/32"]]}}}}"#, d - 2),
    };
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What the first `count` of them leave: members, routes and rules.
fn left_by(count: u32) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let all = |rest: u32| (0..count).filter(move |n| n % 4 == rest);
    let deleted = |n: &u32| n + 2 < count;
    (all(0).collect(), all(1).filter(|n| !deleted(n)).collect(), all(2).collect())
}

fn found(config: &Config) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let low = |text: String| {
        let addr = text.split('/').next().and_then(|addr| addr.parse::<std::net::Ipv4Addr>().ok());
        u32::from(addr.unwrap_or_else(|| panic!("{text}"))) & 0x00ff_ffff
    };
    let members = config.groups[0].members.iter().map(|member| low(member.to_string()));
    let routes = config.all_routes().map(|route| low(route.prefix.to_string()));
    let rules = config.rules.iter().filter_map(|rule| rule.name.as_str().strip_prefix('r')?.parse().ok());
    let mut all = (members.collect::<Vec<_>>(), routes.collect::<Vec<_>>(), rules.collect::<Vec<_>>());
    all.0.sort_unstable();
    all.1.sort_unstable();
    all.2.sort_unstable();
    all
}

/// What a write that a power cut tore may leave behind the newest file.
fn tear(folder: &Path, seed: u32) {
    let files = fs::read_dir(folder.join("state")).expect("a folder");
    let newest = files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "revisions"));
    let newest = newest.max().expect("there is one");
    let whole = fs::read(&newest).expect("a file");
    let mut file = OpenOptions::new().append(true).open(&newest).expect("a file");
    // The beginning of a record, or zeros.
    let part = whole.get(21..21 + (seed as usize * 7) % 64).unwrap_or_default().to_vec();
    let torn = if seed.is_multiple_of(2) { part } else { vec![0; seed as usize % 64] };
    file.write_all(&torn).expect("it is written");
    fs::write(folder.join(format!("state/{:020}.tmp", 999)), &whole[..whole.len() / 2]).expect("a file");
}

/// What was committed: changes, and commits of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    changes: u32,
    commits: u64,
}

impl Made {
    /// After one more: of one change, or of one of each kind in a transaction.
    fn next(self) -> Made {
        let changes = if self.commits % 3 == 2 { 4 } else { 1 };
        Made { changes: self.changes + changes, commits: self.commits + 1 }
    }

    fn commit(self, client: &mut Client) -> Result<(), softgate::control::ClientError> {
        let changes = self.changes..self.next().changes;
        if changes.len() == 1 {
            return client.call::<Changed>(&numbered(changes.start)).map(|_| ());
        }
        let _: softgate::control::Staged = client.call(&Request::Begin {})?;
        for n in changes {
            let _: softgate::control::Staged = client.call(&numbered(n))?;
        }
        let all = Request::Commit { patches: Vec::new(), terms: Terms::default() };
        client.call::<Changed>(&all).map(|_| ())
    }
}

/// Whatever moment it is killed at, and whatever of the last write is there: it comes back with a revision that was
/// committed, with all that was answered, and of a transaction with all or nothing.
#[test]
fn killed_at_any_moment_it_is_back_with_what_was_committed() {
    let Some(mut gateway) = Gateway::new("killed_at_any_moment_it_is_back_with_what_was_committed") else {
        return;
    };
    gateway.start(&[]);
    let mut made = Made { changes: 0, commits: 0 };
    for round in 0..12u32 {
        let answered = std::sync::Mutex::new(made);
        let mut client = gateway.client();
        let begun_with = made.commits;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut made = made;
                loop {
                    match made.commit(&mut client) {
                        Ok(()) => made = made.next(),
                        Err(error) if error.is_refusal() => panic!("{made:?}: {error}"),
                        Err(_) => return,
                    }
                    *answered.lock().expect("nobody panics with it") = made;
                }
            });
            // Not after some time: after some commits, in the middle of one.
            let enough = begun_with + 1 + u64::from(round * 37) % 90;
            while answered.lock().expect("nobody panics with it").commits < enough {
                std::hint::spin_loop();
            }
            gateway.kill();
        });
        let answered = answered.into_inner().expect("nobody panics with it");
        tear(gateway.folder.path(), round * 5);
        gateway.start(&[]);
        let is = found(&gateway.config());
        // The one that was under way may be there too.
        made = match is {
            is if is == left_by(answered.changes) => answered,
            is if is == left_by(answered.next().changes) => answered.next(),
            is => panic!("{answered:?} were answered, and there is {is:?}\n{}", gateway.log()),
        };
        assert_eq!(gateway.revisions().current, made.commits + 1, "one for each, and the start");
    }
}

#[test]
fn numbers_leave_what_they_say() {
    // The test's own arithmetic, on documents.
    let text = "schema = 1\n[[group]]\nname = \"blocked\"\nmembers = []\n[[rule]]\nname = \"rest\"\naction = \"deny\"\n";
    let mut document = Document { file_name: "gw.toml".into(), text: text.into(), files: Vec::new() };
    for n in 0..40 {
        let patch: Patch = numbered(n).into_patch().expect("a change");
        document = document.with([&patch]).expect("it fits");
        assert_eq!(found(&document.config().expect("good")), left_by(n + 1), "{n}");
    }
}

/// The configs in a folder.
fn configs(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    let configs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|is| is == "toml")).collect();
    assert!(!configs.is_empty(), "{}", folder.display());
    configs
}

/// What was written before the first release called itself schema 1 too; as schema 0, which README says to call it, it is
/// read and rewritten, and what is read of either is the same. A change over the socket is written into it in today's words.
#[test]
fn what_was_written_before_the_first_release_is_read_and_rewritten() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for path in configs(&corpus.join("0")) {
        let text = fs::read_to_string(&path).expect("a config");
        Config::parse(&text, "gw.toml").expect_err("it is not in today's words");
        let text = text.replacen("schema = 1", "schema = 0", 1);
        let read =
            |text: &str| Config::parse(text, "gw.toml").unwrap_or_else(|errors| panic!("{path:?}: {errors}"));
        let migrated = softgate::config::migrate(&text).expect("it is read").expect("it is an old one");
        assert!(!migrated.changes.is_empty(), "{path:?}");
        assert_eq!(read(&text), read(&migrated.text), "{path:?}");
        // Lines went, and the number is another: everything else is as it was.
        let kept: Vec<&str> = migrated.text.lines().collect();
        let mut old = text.lines().filter(|line| !line.starts_with("schema = "));
        assert!(
            kept.iter().filter(|line| !line.starts_with("schema = ")).all(|line| old.any(|was| was == *line))
        );

        let document = Document { file_name: String::from("gw.toml"), text: text.clone(), files: Vec::new() };
        let patch = Request::RuleDel { rules: vec!["web-in".parse().expect("a name")] };
        let patch: Patch = patch.into_patch().expect("a change");
        let changed = document.with([&patch]).expect("it fits");
        let mut expected = read(&text);
        expected.rules.retain(|rule| rule.name.as_str() != "web-in");
        assert_eq!(changed.config().expect("good"), expected);
        assert_eq!(softgate::config::migrate(&changed.text), Ok(None), "it was written anew");
    }
}

/// What releases have written is read by this one: their annotated configs, and folders of revisions, which
/// tests/corpus/generate.py writes from the description of their format.
#[test]
fn what_releases_have_written_is_read() {
    use softgate::control::revisions::Store;
    use softgate::control::revisions::store::Limits;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    for path in configs(&corpus.join("1")) {
        let text = fs::read_to_string(&path).expect("a config");
        Config::parse(&text, &path.display().to_string()).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(softgate::config::migrate(&text), Ok(None));
    }

    let folder = tempfile::tempdir().expect("a folder");
    let name = format!("{:020}.revisions", 1);
    fs::copy(corpus.join("1").join(&name), folder.path().join(&name)).expect("a file");
    let (store, notices) = Store::open(folder.path(), Limits::default()).expect("it is read");
    assert_eq!(notices, Vec::<String>::new());
    let numbers: Vec<u64> = store.revisions().map(|revision| revision.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let second = store.find(2).expect("it is kept");
    assert_eq!((second.message.as_deref(), second.by.uid), (Some("why"), Some(0)));
    assert!(store.unconfirmed().is_none() && store.confirmed(3).is_some());
    assert_eq!(store.source("/etc/softgate/gw.toml").map(|source| source.revision), Some(1));
    let config = store.document(3).expect("it is kept").config().expect("good");
    let rules: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(rules, ["first", "rest"]);
    assert_eq!(
        (config.groups[0].members.len(), config.neighbours.len(), config.all_routes().count()),
        (1, 1, 2)
    );
    let text = store.document(3).expect("it is kept").text;
    assert!(text.starts_with("# Of the first release.\n"), "{text}");
}

/// What the binary wrote that had this format first: a start, changes of each kind, a commit that was confirmed, a config that
/// was applied, and the end by a kill. Every one of its revisions is made of it.
#[test]
fn what_the_first_binary_with_revisions_has_written_is_read() {
    use softgate::control::revisions::Store;
    use softgate::control::revisions::store::Limits;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/1/written");
    let folder = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(&corpus).expect("a folder") {
        let file = file.expect("a file");
        fs::copy(file.path(), folder.path().join(file.file_name())).expect("a file");
    }
    let (store, notices) = Store::open(folder.path(), Limits::default()).expect("it is read");
    assert_eq!(notices, Vec::<String>::new());
    let told = |number: u64| {
        let document = store.document(number).unwrap_or_else(|error| panic!("{number}: {error}"));
        let config = document.config().unwrap_or_else(|errors| panic!("{number}: {errors}"));
        let rules = config.rules.iter().map(|rule| rule.name.to_string()).collect::<Vec<_>>().join(" ");
        let backend = config.services[0].backends[0].state.name();
        (rules, config.groups[0].members.len(), config.all_routes().count(), backend)
    };
    let expected = [
        ("rest", 0, 0, "active"),
        ("stop rest", 0, 0, "active"),
        ("stop rest", 1, 0, "active"),
        ("stop rest", 1, 1, "active"),
        ("stop rest", 1, 1, "drain"),
        ("rest", 1, 1, "drain"),
        ("rest", 0, 0, "active"),
        ("rest", 1, 0, "active"),
    ];
    for (number, (rules, members, routes, backend)) in (1..).zip(expected) {
        assert_eq!(told(number), (rules.to_owned(), members, routes, backend), "revision {number}");
    }
    assert_eq!(store.next(), 9);
    assert!(store.confirmed(6).is_some() && store.unconfirmed().is_none());
    assert_eq!(store.find(2).and_then(|second| second.message.as_deref()), Some("a scanner"));
    let text = store.document(5).expect("it is kept").text;
    assert!(
        text.starts_with("# Written by the release itself.") && text.contains("# it never comes"),
        "{text}"
    );
}
