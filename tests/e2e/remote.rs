//! From afar: `softgate agent` with a real etcd, and `softgate http` with curl, before a live gateway.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Config, Gateway};
use crate::lab::{Lab, Said, skipped, text};
use crate::sessions::zoned;

/// How long something may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);
/// The shortest lease the agent takes.
const LEASE: &str = "--lease 5";

/// A lab, where there is what these tests need beside it.
fn up(test: &str) -> Option<Lab> {
    let needed = [
        ("/usr/bin/etcd", "etcd-server"),
        ("/usr/bin/etcdctl", "etcd-client"),
        ("/usr/bin/openssl", "openssl"),
        ("/usr/lib/python3/dist-packages/jsonschema", "python3-jsonschema"),
    ];
    if let Some((_, package)) = needed.iter().find(|(path, _)| !Path::new(path).exists()) {
        skipped(test, &format!("{package} is missing (scripts/install-deps lab)"));
        return None;
    }
    Lab::up(test, &[])
}

/// A process of the test; killed when dropped.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it on `gw`.
    fn start(lab: &Lab, name: &str, command: &str) -> Process {
        let log = lab.path(name);
        let out = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let child = lab
            .command("gw", command)
            .stdout(Stdio::from(out.try_clone().expect("one file, two handles")))
            .stderr(Stdio::from(out))
            .spawn()
            .expect("ip netns exec runs");
        Process { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has logged this.
    fn says(&self, what: &str) {
        let says = || self.log().contains(what).then_some(());
        until(what, says, || self.log());
    }

    fn terminate(mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().expect("kill runs").success());
        self.child.wait().expect("our own child").success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}\n{}----", self.log.display(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something to be there.
fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>, otherwise: impl Fn() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(there) = there() {
            return there;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}:\n{}", otherwise());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The binary with the feature `remote`: `SOFTGATE_REMOTE`, else as everywhere.
fn softgate() -> String {
    let given = std::env::var("SOFTGATE_REMOTE").or_else(|_| std::env::var("SOFTGATE"));
    given.unwrap_or_else(|_| env!("CARGO_BIN_EXE_softgate").to_owned())
}

/// etcd on `gw`, over plain HTTP or with certificates on both sides.
struct Etcd<'a> {
    lab: &'a Lab,
    process: Option<Process>,
    tls: Option<&'a Authority>,
}

impl<'a> Etcd<'a> {
    fn start(lab: &'a Lab, tls: Option<&'a Authority>) -> Etcd<'a> {
        let mut etcd = Etcd { lab, process: None, tls };
        etcd.start_again();
        etcd
    }

    fn url(&self) -> &'static str {
        if self.tls.is_some() { "https://localhost:2379" } else { "http://127.0.0.1:2379" }
    }

    fn start_again(&mut self) {
        let (url, data) = (self.url(), self.lab.path("etcd"));
        let tls = self.tls.map_or(String::new(), |authority| {
            let (cert, key) = authority.certificate("localhost");
            format!(
                "--cert-file {} --key-file {} --trusted-ca-file {} --client-cert-auth",
                cert.display(),
                key.display(),
                authority.ca().display()
            )
        });
        let listen = url.replace("localhost", "127.0.0.1");
        let command = format!(
            "etcd --data-dir {} --listen-client-urls {listen} --advertise-client-urls {url} \
             --listen-peer-urls http://127.0.0.1:2380 --logger zap {tls}",
            data.display()
        );
        self.process = Some(Process::start(self.lab, "etcd.log", &command));
        let healthy = || self.ctl("endpoint health").ok.then_some(());
        until("etcd", healthy, || self.process.as_ref().map(Process::log).unwrap_or_default());
    }

    fn stop(&mut self) {
        drop(self.process.take());
    }

    fn options(&self) -> String {
        self.tls.map_or(String::new(), |authority| {
            let (cert, key) = authority.certificate("operator");
            format!("--cacert {} --cert {} --key {}", authority.ca().display(), cert.display(), key.display())
        })
    }

    fn ctl(&self, command: &str) -> Said {
        self.lab.run("gw", &format!("etcdctl --endpoints {} {} {command}", self.url(), self.options()))
    }

    /// Writes a key, and says which revision that made.
    fn put(&self, key: &str, value: &str) -> u64 {
        let file = self.lab.path("value");
        fs::write(&file, value).expect("the value can be written");
        let command =
            format!("etcdctl --endpoints {} {} --write-out json put {key}", self.url(), self.options());
        let mut put = self.lab.command("gw", &command);
        let output = put.stdin(File::open(&file).expect("just written")).output().expect("etcdctl runs");
        let said = text(&output);
        assert!(output.status.success(), "put {key}: {said}");
        let answer: Value = serde_json::from_str(&said).expect("JSON");
        answer["header"]["revision"].as_u64().expect("a revision")
    }

    /// What the agent says of this node, if there is one.
    fn status(&self) -> Option<Value> {
        let said = self.ctl("get --print-value-only /softgate/status/gw1");
        serde_json::from_str(&said.text).ok()
    }

    /// Waits until the agent says this of the document of this revision.
    fn says(&self, state: &str, revision: u64) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        until(
            state,
            || {
                let status = self.status()?;
                let is = status["state"] == state && status["document"]["mod_revision"] == revision;
                *last.borrow_mut() = status;
                is.then(|| last.borrow().clone())
            },
            || format!("{:#}", last.borrow()),
        )
    }
}

/// An authority and what it vouches for; made by openssl.
struct Authority {
    dir: PathBuf,
}

impl Authority {
    fn new(lab: &Lab, name: &str) -> Authority {
        let authority = Authority { dir: lab.path(name) };
        fs::create_dir(&authority.dir).expect("a folder");
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout ca.key -out ca.pem"
        ));
        authority
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output();
        let output = output.expect("openssl runs");
        assert!(output.status.success(), "openssl {arguments}: {}", text(&output));
    }

    fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Certificate and key of this DNS name.
    fn certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (self.dir.join(format!("{name}.pem")), self.dir.join(format!("{name}.key")));
        if !cert.exists() {
            fs::write(self.dir.join("ext"), format!("subjectAltName=DNS:{name},IP:127.0.0.1\n"))
                .expect("written");
            self.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
            ));
            self.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
            ));
        }
        (cert, key)
    }
}

/// The lab's document with one more route, which tells it from others.
fn document(gateway: &Gateway, route: &str) -> String {
    let route = format!("[[route]]\nprefix = \"{route}\"\nvia = [\"198.51.100.1\"]\n");
    Config::default().with(&route).text(gateway.socket())
}

fn has_route(gateway: &Gateway, route: &str) -> bool {
    gateway.ask("show routes").contains(route)
}

#[test]
fn agent_follows_etcd() {
    let Some(lab) = up("agent_follows_etcd") else { return };
    let lab = &lab;
    let gateway = Gateway::start(lab, &Config::default());
    let mut etcd = Etcd::start(lab, None);
    let (url, socket) = (etcd.url(), gateway.socket().to_owned());
    let agent = || {
        let socket = socket.display();
        let command = format!("{} agent --endpoint {url} --node gw1 {LEASE} --socket {socket}", softgate());
        Process::start(lab, "agent.log", &command)
    };
    let running = agent();
    until("a status", || etcd.status().filter(|status| status["state"] == "no-document"), || running.log());

    // A document of the fleet, then one of this node's own.
    let revision = etcd.put("/softgate/config", &document(&gateway, "203.0.113.0/26"));
    let status = etcd.says("applied", revision);
    assert_eq!(status["gateway"]["config"], format!("etcd:/softgate/config@{revision}"));
    assert_eq!(status["applied"]["generation"], gateway.show("version")["generation"]);
    assert!(has_route(&gateway, "203.0.113.0/26"));
    let revision = etcd.put("/softgate/nodes/gw1/config", &document(&gateway, "203.0.113.64/26"));
    etcd.says("applied", revision);
    assert!(has_route(&gateway, "203.0.113.64/26") && !has_route(&gateway, "203.0.113.0/26"));

    // A wrong one: refused once, with the reason, and what ran goes on.
    let wrong = document(&gateway, "203.0.113.64/26").replace("[[route]]", "[[rout]]");
    let refused = etcd.put("/softgate/nodes/gw1/config", &wrong);
    let status = etcd.says("refused", refused);
    let reason = status["reason"].as_str().expect("a reason");
    assert!(
        reason.contains(&format!("etcd:/softgate/nodes/gw1/config@{refused}")) && reason.contains("rout"),
        "{reason}"
    );
    assert_eq!(status["gateway"]["config"], format!("etcd:/softgate/nodes/gw1/config@{revision}"));
    assert!(has_route(&gateway, "203.0.113.64/26"));
    let named = document(&gateway, "203.0.113.64/26") + "[[route_file]]\npath = \"full.routes\"\n";
    let missing = etcd.put("/softgate/nodes/gw1/config", &named);
    let status = etcd.says("refused", missing);
    assert!(
        status["reason"].as_str().is_some_and(|why| why.contains("/softgate/files/full.routes")),
        "{status:#}"
    );
    etcd.put("/softgate/files/full.routes", "203.0.113.128/26 via 198.51.100.1\n");
    let whole = etcd.put("/softgate/nodes/gw1/config", &named);
    etcd.says("applied", whole);
    assert!(has_route(&gateway, "203.0.113.128/26"));

    // Keys that go take nothing back; the shared one counts again when it is written.
    assert!(etcd.ctl("del /softgate/nodes/gw1/config").ok);
    let revision = etcd.put("/softgate/config", &document(&gateway, "203.0.113.192/26"));
    etcd.says("applied", revision);

    // etcd goes and comes back, compacted meanwhile.
    etcd.stop();
    running.says("retry_in_ms");
    etcd.start_again();
    let revision = etcd.put("/softgate/config", &document(&gateway, "192.0.2.0/26"));
    assert!(etcd.ctl(&format!("compaction {revision}")).ok);
    etcd.says("applied", revision);
    assert!(has_route(&gateway, "192.0.2.0/26"));

    // An agent that is started anew finds it done; its status goes with it, and has a lease for when it cannot take it along.
    let lease = |etcd: &Etcd| {
        let said = etcd.ctl("get --write-out json /softgate/status/gw1").text;
        let answer: Value = serde_json::from_str(&said).expect("JSON");
        answer["kvs"][0]["lease"].as_u64()
    };
    assert!(lease(&etcd).is_some_and(|lease| lease > 0));
    let generation = gateway.show("version")["generation"].clone();
    assert!(running.terminate());
    assert_eq!(etcd.status(), None);
    let running = agent();
    etcd.says("applied", revision);
    assert_eq!(gateway.show("version")["generation"], generation);

    // A gateway that ends is missed, and one that is started again from its file gets the document.
    gateway.stop();
    until(
        "no gateway",
        || etcd.status().filter(|status| status["state"] == "gateway-unreachable"),
        || running.log(),
    );
    let gateway = Gateway::start(lab, &Config::default());
    etcd.says("applied", revision);
    assert!(has_route(&gateway, "192.0.2.0/26"));
    gateway.stop();
}

/// What does harm while it is on trial is taken back, and is not offered again; what does none is confirmed.
#[test]
fn agent_confirms_what_does_no_harm() {
    let Some(lab) = up("agent_confirms_what_does_no_harm") else { return };
    let lab = &lab;
    let state = format!("--state {}", lab.path("state").display());
    let gateway = Gateway::start_binary(lab, &Config::default(), Path::new(&softgate()), &state);
    let etcd = Etcd::start(lab, None);
    let socket = gateway.socket().display();
    let command = format!(
        "{} agent --endpoint {} --node gw1 {LEASE} --confirm 20s --socket {socket}",
        softgate(),
        etcd.url()
    );
    let agent = Process::start(lab, "agent.log", &command);
    let watched = |route: &str| document(&gateway, route) + "[commit]\nmore_drops_pps = 20\n";
    // Somebody else's commit is waited for.
    gateway.ask("add route 203.0.113.200/32 blackhole --confirm 1h");
    let good = etcd.put("/softgate/config", &watched("203.0.113.0/26"));
    let waits = etcd.says("waiting", good);
    assert!(waits["reason"].as_str().is_some_and(|why| why.contains("waits to be confirmed")), "{waits:#}");
    gateway.ask("confirm");
    etcd.says("on-trial", good);
    etcd.says("applied", good);
    let confirmed = gateway.show("revisions");
    let last = confirmed["revisions"][0].clone();
    assert!(last["confirmed_by"].is_object(), "{confirmed:#}");

    let mut pings = lab.command("a", "ping -n -q -i 0.01 198.51.100.1");
    let mut pings = pings.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ping starts");
    let wrong = watched("203.0.113.0/26") + "[[route]]\nprefix = \"198.51.100.1/32\"\nblackhole = true\n";
    let wrong = etcd.put("/softgate/config", &wrong);
    let status = etcd.says("taken-back", wrong);
    assert!(status["reason"].as_str().is_some_and(|why| why.contains("drops a second")), "{status:#}");
    assert_eq!(status["gateway"]["config"], format!("etcd:/softgate/config@{good}"));
    let after = gateway.show("revisions")["current"].clone();
    let again = etcd.put("/softgate/config", &watched("203.0.113.64/26"));
    etcd.says("on-trial", again);
    assert_eq!(
        gateway.show("revisions")["current"].as_u64(),
        after.as_u64().map(|after| after + 1),
        "{}",
        agent.log()
    );
    pings.kill().expect("our own child");
    pings.wait().expect("our own child");
    gateway.stop();
}

#[test]
fn agent_refuses_what_would_end_live_sessions() {
    let Some(lab) = up("agent_refuses_what_would_end_live_sessions") else { return };
    let lab = &lab;
    let gateway = Gateway::start(lab, &zoned());
    let etcd = Etcd::start(lab, None);
    let (url, socket) = (etcd.url(), gateway.socket().display());
    let command =
        format!("{} agent --endpoint {url} --node gw1 {LEASE} --max-dropped 0 --socket {socket}", softgate());
    let _agent = Process::start(lab, "agent.log", &command);
    // A session that lives for a minute.
    lab.ping("a", "198.51.100.1", "");
    let text =
        zoned().with("[[route]]\nprefix = \"203.0.113.0/26\"\nblackhole = true\n").text(gateway.socket());
    let harmless = etcd.put("/softgate/config", &text);
    etcd.says("applied", harmless);
    let allows = "name = \"inside-out\"\naction = \"allow\"";
    let denied = text.replacen(allows, &allows.replace("allow", "deny"), 1);
    let refused = etcd.put("/softgate/config", &denied);
    let status = etcd.says("refused", refused);
    let reason = status["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("it would end 1 live sessions, and --max-dropped is 0")
            && reason.contains("icmp 10.0.1.10:")
            && reason.contains("rule inside-out refuses it"),
        "{status:#}"
    );
    lab.ping("a", "198.51.100.1", "");
    assert_eq!(status["gateway"]["config"], format!("etcd:/softgate/config@{harmless}"));
    gateway.stop();
}

#[test]
fn agent_follows_etcd_over_tls() {
    let Some(lab) = up("agent_follows_etcd_over_tls") else { return };
    let lab = &lab;
    let gateway = Gateway::start(lab, &Config::default());
    let authority = Authority::new(lab, "pki");
    let etcd = Etcd::start(lab, Some(&authority));
    let (cert, key) = authority.certificate("gw1");
    let file = lab.path("agent.toml");
    let settings = format!(
        "endpoints = [{:?}]\nnode = \"gw1\"\nca = {:?}\nlease_s = 5\nsocket = {:?}\n",
        etcd.url(),
        authority.ca(),
        gateway.socket()
    );
    fs::write(&file, &settings).expect("the settings can be written");
    // Without a certificate of its own etcd does not let it in; with the word of another authority it does not trust etcd.
    let command = format!("{} agent --config {}", softgate(), file.display());
    let refused = Process::start(lab, "refused.log", &command);
    refused.says("retry_in_ms");
    drop(refused);
    let other = Authority::new(lab, "other");
    let stranger =
        format!("{command} --ca {} --cert {} --key {}", other.ca().display(), cert.display(), key.display());
    let stranger = Process::start(lab, "stranger.log", &stranger);
    stranger.says("UnknownIssuer");
    drop(stranger);
    let command = format!("{command} --cert {} --key {}", cert.display(), key.display());
    let _agent = Process::start(lab, "agent.log", &command);
    let revision = etcd.put("/softgate/config", &document(&gateway, "203.0.113.0/26"));
    etcd.says("applied", revision);
    assert!(has_route(&gateway, "203.0.113.0/26"));
    gateway.stop();
}

/// curl on `gw`: the status and the body.
fn curl(lab: &Lab, options: &str, url: &str) -> (u16, String) {
    let said = lab.run("gw", &format!("curl -gsS --max-time 20 -w \\n%{{http_code}} {options} {url}"));
    let (body, status) = said.text.rsplit_once('\n').unwrap_or(("", &said.text));
    (status.trim().parse().unwrap_or(0), body.to_owned())
}

fn json_file(lab: &Lab, value: &Value) -> String {
    let file = lab.path("body.json");
    fs::write(&file, value.to_string()).expect("the body can be written");
    format!("-H content-type:application/json --data-binary @{}", file.display())
}

#[test]
fn http_over_a_unix_socket() {
    let Some(lab) = up("http_over_a_unix_socket") else { return };
    let lab = &lab;
    let extra = "[[group]]\nname = \"blocked\"\nmembers = [\"192.0.2.1\"]\n\
                 [[rule]]\nname = \"stop\"\naction = \"deny\"\nfrom = { group = \"blocked\" }\n\
                 [[rule]]\nname = \"rest\"\naction = \"allow\"\n\
                 [[nat.source]]\nname = \"out\"\nto = { zone = \"outside\" }\npool = [\"198.51.100.77\"]\n";
    let config = Config { zones: ["blue", "green", "outside"], ..Config::default() }.with(extra);
    let gateway = Gateway::start(lab, &config);
    lab.ping("a", "198.51.100.1", "");
    let serve = |options: &str| {
        let (http, socket) = (lab.path("http.sock"), gateway.socket().display());
        let command = format!("{} http --unix {} --socket {socket} {options}", softgate(), http.display());
        let _ = fs::remove_file(lab.path("http.log"));
        let process = Process::start(lab, "http.log", &command);
        process.says("softgate http ready");
        process
    };
    let http = serve("");
    let socket = format!("--unix-socket {}", lab.path("http.sock").display());
    let ask = |options: &str, path: &str| {
        curl(lab, &format!("{socket} {options}"), &format!("http://localhost{path}"))
    };

    // Everything that can be shown answers as the description says.
    let (status, description) = ask("", "/v1/openapi.json");
    assert_eq!(status, 200);
    let description: Value = serde_json::from_str(&description).expect("JSON");
    let mut answers = Vec::new();
    let queries = [
        ("/v1/explain", "?packet=tcp+10.0.1.10:40000+%3E+198.51.100.1:443+from+tenant-a"),
        ("/v1/reach", "?from=zone+blue&to=198.51.100.1+tcp/443"),
        ("/v1/nat/map", "?inside=10.0.1.10"),
        ("/v1/nat/find", "?outside=198.51.100.77&port=1024"),
    ];
    for (path, item) in description["paths"].as_object().expect("paths") {
        if item.get("get").is_none() {
            continue;
        }
        let query = queries.iter().find(|(of, _)| of == path).map_or("", |(_, query)| query);
        let (status, body) = ask("", &format!("{path}{query}"));
        let body: Value =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        // There is no deterministic NAT to be asked, and no revision is kept; that is said as the description says, too.
        let lacks = status == 404 && !query.is_empty() || status == 422 && path == "/v1/show/revision";
        assert!(status == 200 || lacks, "{path}: {status}: {body:#}");
        answers.push(json!({ "path": path, "verb": "get", "status": status, "body": body }));
    }
    assert!(answers.len() > 18, "{}", answers.len());
    conforms(lab, &description, &answers);
    let (_, sessions) = ask("", "/v1/show/sessions?filter[zone]=blue&limit=5");
    let sessions: Value = serde_json::from_str(&sessions).expect("JSON");
    assert_eq!(sessions["sessions"][0]["protocol"], "icmp", "{sessions:#}");

    // Read-only, and clear about what is wrong.
    let route = json_file(lab, &json!({ "routes": [["203.0.113.0/26", "198.51.100.1"]] }));
    for (options, path, status, says) in [
        (route.as_str(), "/v1/route/add", 403, "--allow-changes"),
        ("", "/v1/route/add", 405, "POST"),
        (route.as_str(), "/v1/show/routes", 405, "GET"),
        ("", "/v1/show/nothing", 404, "openapi.json"),
        ("", "/v1/show/routes?vfr=blue", 400, "unknown field `vfr`"),
        ("", "/v1/show/services?service=none", 404, "none"),
    ] {
        let (got, body) = ask(options, path);
        assert!(got == status && body.contains(says), "{path}: {got}: {body}");
    }
    assert!(http.terminate());
    assert!(!lab.path("http.sock").exists());

    // With leave to change.
    let http = serve("--allow-changes");
    let (status, body) = ask(&route, "/v1/route/add");
    assert!(status == 200 && has_route(&gateway, "203.0.113.0/26"), "{status}: {body}");
    let changes = json!({ "requests": [
        { "method": "route.del", "params": { "routes": [["203.0.113.0/26"]] } },
        { "method": "group.add", "params": { "group": "blocked", "members": ["192.0.2.9"] } },
        { "method": "group.add", "params": { "group": "none", "members": ["192.0.2.9"] } },
    ] });
    let (status, body) = ask(&json_file(lab, &changes), "/v1/transaction");
    assert!(
        status != 200 && has_route(&gateway, "203.0.113.0/26"),
        "half of a transaction: {status}: {body}"
    );
    let mut changes = changes;
    changes["requests"].as_array_mut().expect("a list").pop();
    let (status, body) = ask(&json_file(lab, &changes), "/v1/transaction");
    assert!(status == 200 && !has_route(&gateway, "203.0.113.0/26"), "{status}: {body}");
    assert!(gateway.ask("show groups").contains("192.0.2.9"));
    let file = lab.path("next.toml");
    fs::write(&file, document(&gateway, "203.0.113.64/26")).expect("the config can be written");
    let config = format!("-H content-type:application/toml --data-binary @{}", file.display());
    let (status, body) = ask(&config, "/v1/apply?file_name=next.toml");
    assert!(status == 200 && has_route(&gateway, "203.0.113.64/26"), "{status}: {body}");
    fs::write(&file, "schema = 1\n[sytem]\n").expect("the config can be written");
    let (status, body) = ask(&config, "/v1/apply?file_name=next.toml");
    assert!(status == 422 && body.contains("next.toml:2: sytem: unknown key"), "{status}: {body}");
    // What a browser sends for somebody else's page.
    let (status, body) = ask("-d routes=1", "/v1/route/add");
    assert_eq!(status, 415, "{body}");
    assert!(http.terminate());
    gateway.stop();
}

/// Answers against their schemas, by another's hand (python3-jsonschema).
fn conforms(lab: &Lab, description: &Value, answers: &[Value]) {
    let program = r##"
import json, sys
from jsonschema import Draft202012Validator, RefResolver
document = json.load(open(sys.argv[1]))
for answer in document["answers"]:
    operation = document["description"]["paths"][answer["path"]][answer["verb"]]
    response = operation["responses"].get(str(answer["status"]), operation["responses"]["default"])
    schema = next(iter(response["content"].values()))["schema"]
    Draft202012Validator.check_schema(schema)
    resolver = RefResolver("", document["description"])
    for error in Draft202012Validator(schema, resolver=resolver).iter_errors(answer["body"]):
        sys.exit(f'{answer["path"]}: {error.message} at {list(error.absolute_path)}')
for name, schema in document["description"]["components"]["schemas"].items():
    Draft202012Validator.check_schema(schema)
"##;
    let (script, file) = (lab.path("conforms.py"), lab.path("answers.json"));
    fs::write(&script, program).expect("written");
    fs::write(&file, json!({ "description": description, "answers": answers }).to_string()).expect("written");
    let output = Command::new("/usr/bin/python3").args([&script, &file]).output().expect("python3 runs");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn http_over_mutual_tls() {
    let Some(lab) = up("http_over_mutual_tls") else { return };
    let lab = &lab;
    let gateway = Gateway::start(lab, &Config::default());
    let (authority, other) = (Authority::new(lab, "pki"), Authority::new(lab, "other"));
    let (cert, key) = authority.certificate("localhost");
    let command = format!(
        "{} http --tcp 127.0.0.1:8443 --cert {} --key {} --client-ca {} --allow-changes --may-change deploy.example --socket {}",
        softgate(),
        cert.display(),
        key.display(),
        authority.ca().display(),
        gateway.socket().display()
    );
    let http = Process::start(lab, "http.log", &command);
    http.says("softgate http ready");
    let ask = |who: Option<(PathBuf, PathBuf)>, options: &str, path: &str| {
        let shown = who.map_or(String::new(), |(cert, key)| {
            format!("--cert {} --key {}", cert.display(), key.display())
        });
        let options = format!("--cacert {} {shown} {options}", authority.ca().display());
        curl(lab, &options, &format!("https://localhost:8443{path}"))
    };
    let deploy = || Some(authority.certificate("deploy.example"));
    let monitor = || Some(authority.certificate("monitor.example"));
    let route = json_file(lab, &json!({ "routes": [["203.0.113.0/26", "198.51.100.1"]] }));
    // Nobody without a certificate, or with another authority's, gets as far as HTTP.
    for nobody in [None, Some(other.certificate("deploy.example"))] {
        let (status, said) = ask(nobody, "", "/v1/ping");
        assert_eq!(status, 0, "{said}");
    }
    assert_eq!(ask(monitor(), "", "/v1/ping").0, 200);
    let (status, body) = ask(monitor(), &route, "/v1/route/add");
    assert!(status == 403 && body.contains("--may-change"), "{status}: {body}");
    assert!(!has_route(&gateway, "203.0.113.0/26"));
    let (status, body) = ask(deploy(), &route, "/v1/route/add");
    assert!(status == 200 && has_route(&gateway, "203.0.113.0/26"), "{status}: {body}");
    assert!(http.log().contains("deploy.example"), "{}", http.log());
    assert!(http.terminate());
    gateway.stop();
}
