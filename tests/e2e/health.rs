//! Health checks of the live gateway: real servers behind it, on AF_XDP, with verdicts as its own threads give them.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use softgate::config::{Config, HealthCheck};
use softgate::gateway::{BackEnd, Gateway};
use softgate::host::probe::Target;

use crate::gateway::Config as Text;
use crate::lab::Lab;

/// How long a verdict may take on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
const CONFIG: &str = "SOFTGATE_HEALTH_CONFIG";
const TARGETS: &str = "SOFTGATE_HEALTH_TARGETS";

/// A gateway with these targets, by the Rust API, in the namespace it needs: a process of its own that says what it
/// hears of them.
struct Checked {
    child: Child,
    said: Receiver<String>,
}

impl Checked {
    /// `targets`: an address, a port and the keys of the check for each, which is called by its number.
    fn start(lab: &Lab, config: &Text, targets: &[(&str, u16, &str)]) -> Checked {
        let file = lab.path("softgate.toml");
        std::fs::write(&file, config.text(&lab.path("softgate.sock"))).expect("the config can be written");
        let targets: Vec<String> =
            targets.iter().map(|(addr, port, check)| format!("{addr} {port} {check}")).collect();
        let binary = std::env::current_exe().expect("this test");
        let run = format!("{} --exact health::live_gateway --ignored --nocapture", binary.display());
        let mut child = lab
            .command("gw", &run)
            .env(CONFIG, &file)
            .env(TARGETS, targets.join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec runs");
        let (sender, said) = channel();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(said) = line.strip_prefix("said ") {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        let checked = Checked { child, said };
        checked.hears("ready");
        checked
    }

    /// Waits until this has been said, and says how long that took.
    fn hears(&self, what: &str) {
        let begun = std::time::Instant::now();
        loop {
            let said = self.said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("nobody says {what:?}"));
            if said.starts_with(what) {
                eprintln!("{said} after {:.0?}", begun.elapsed());
                return;
            }
        }
    }

    /// Nothing has been said that was not waited for.
    fn is_silent(&self) {
        assert_eq!(self.said.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
    }

    /// Ends it, which leaks no frame.
    fn stop(mut self) {
        drop(self.child.stdin.take());
        self.hears("leaked 0");
        assert!(self.child.wait().expect("our own child").success());
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: the gateway of those below.
#[test]
#[ignore = "runs in the namespace of the tests here"]
fn live_gateway() {
    let file = std::env::var(CONFIG).expect("a config");
    let text = std::fs::read_to_string(&file).expect("the config can be read");
    let config = Config::parse(&text, &file).expect("a good config");
    let gateway = Gateway::start(config, &file, BackEnd::Own).expect("the gateway starts");
    let (sender, notified) = channel();
    let mut health = gateway.health(move || _ = sender.send(()));
    let targets = std::env::var(TARGETS).expect("targets");
    let targets = targets.lines().enumerate().map(|(id, line)| {
        let [addr, port, keys] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let check: HealthCheck = toml::from_str(&keys.replace(';', "\n")).expect("a check");
        let addr = addr.parse().expect("an address");
        Target { id: id as u32, vrf: 0, addr, port: port.parse().expect("a port"), check: Arc::new(check) }
    });
    health.set_targets(targets.collect()).expect("the thread starts");
    println!("said ready");
    let verdicts = health.verdicts().clone();
    std::thread::spawn(move || {
        while notified.recv().is_ok() {
            for event in verdicts.try_iter() {
                println!("said {} {:?} {}", event.id, event.verdict, event.reason);
            }
        }
    });
    // Until the test hangs up.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(health);
    println!("said leaked {}", gateway.stop());
}

/// A server of Python on `net`; it ends when dropped.
struct Server(Child);

impl Server {
    fn start(lab: &Lab, arguments: &[&str]) -> Server {
        let mut command = lab.command("net", "python3");
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        Server(command.spawn().expect("ip netns exec runs"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends datagrams back.
const ECHO: &str = "import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(('::', 7007))
while True:
    data, peer = s.recvfrom(2048)
    s.sendto(data, peer)
";

/// Serves documents over TLS, with the certificate of `tests/tls`.
const TLS: &str = "import http.server, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + '/server.pem', sys.argv[1] + '/server.key')
server = http.server.HTTPServer(('198.51.100.1', 8443), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
";

/// Servers come and go, and the verdicts follow: over IPv4 and IPv6, with a firewall that lets nobody at the gateway.
#[test]
fn verdicts_follow_the_servers() {
    let Some(lab) = Lab::up("verdicts_follow_the_servers", &["--no-services"]) else { return };
    std::fs::write(lab.path("up.txt"), "all is well\n").expect("a file for the server");
    let documents = lab.path("").display().to_string();
    let web = ["-m", "http.server", "--bind", "::", "--directory", &documents, "8081"];
    let often = "interval = \"500ms\";rise = 2;fall = 3";
    let zones = Text { zones: ["a", "b", "outside"], ..Text::default() };
    let http = format!("type = \"http\";path = \"/up.txt\";status = 200;body = \"is well\";{often}");
    let tcp = format!("type = \"tcp\";{often}");
    let udp = format!("type = \"udp\";send = \"ping\";expect = \"ping\";{often}");
    let icmp = format!("type = \"icmp\";{often}");
    let tls = format!("{}/tests/tls", env!("CARGO_MANIFEST_DIR"));
    let https = format!(
        "type = \"https\";host = \"shop.example\";verify = true;ca = \"{tls}/ca.pem\";body = \"html\";{often}"
    );
    let targets = [
        ("198.51.100.1", 8081, &*http),
        ("2001:db8:ff::1", 8081, &*http),
        ("198.51.100.1", 8081, &*tcp),
        ("2001:db8:ff::1", 7007, &*udp),
        ("198.51.100.1", 0, &*icmp),
        ("2001:db8:ff::1", 0, &*icmp),
        ("198.51.100.77", 0, &*icmp),
        ("198.51.100.1", 8443, &*https),
    ];
    let secret = Server::start(&lab, &["-c", TLS, &tls]);
    let server = Server::start(&lab, &web);
    let echo = Server::start(&lab, &["-c", ECHO]);
    let checked = Checked::start(&lab, &zones, &targets);
    let mut first: Vec<String> =
        (0..8).map(|_| checked.said.recv_timeout(PATIENCE).expect("a verdict")).collect();
    first.sort_unstable();
    assert_eq!(
        first,
        ["0 Up ok", "1 Up ok", "2 Up ok", "3 Up ok", "4 Up ok", "5 Up ok", "6 Down unreachable", "7 Up ok"]
    );
    drop(server);
    let mut down: Vec<String> =
        (0..3).map(|_| checked.said.recv_timeout(PATIENCE).expect("a verdict")).collect();
    down.sort_unstable();
    assert_eq!(down, ["0 Down refused", "1 Down refused", "2 Down refused"]);
    drop(echo);
    checked.hears("3 Down refused");
    drop(secret);
    checked.hears("7 Down refused");
    let server = Server::start(&lab, &web);
    let mut up: Vec<String> =
        (0..3).map(|_| checked.said.recv_timeout(PATIENCE).expect("a verdict")).collect();
    up.sort_unstable();
    assert_eq!(up, ["0 Up ok", "1 Up ok", "2 Up ok"]);
    // The host goes away as a whole.
    checked.is_silent();
    lab.must("net", "ip link set eth0 down");
    for id in [0, 1, 2, 4, 5] {
        let said = checked.said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{id} of them are down"));
        assert!(said.contains("Down"), "{said}");
    }
    drop(server);
    checked.stop();
}
