//! A bridged segment of a VLAN, a QinQ pair and the Linux kernel's VXLAN, with the gateway on it.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::restart::Folder;
use crate::sessions::{Server, transfer};
use crate::vrrp::wait_for;
use crate::{CLIENT_A, NET, lost_since};

const MEMBERS: &str = r#"{ vni = 5001, vtep = "198.51.100.2", remotes = ["198.51.100.1"] }"#;
const TWO_VNIS: &str = r#"{ vni = 5001, vtep = "198.51.100.2", remotes = ["198.51.100.1"] }, { vni = 5002, vtep = "198.51.100.2", remotes = ["198.51.100.1"] }"#;
/// `b` on the segment, and the station behind the tunnel.
const B: [&str; 2] = ["10.0.1.20", "2001:db8:1::20"];
const FAR: [&str; 2] = ["10.0.1.30", "2001:db8:1::30"];
/// What a tunnel leaves of the MTU: hosts of the segment have to know.
const MTU: u32 = 1450;

/// Puts `b` into the segment of `a`.
fn readdress(lab: &Lab) {
    lab.must("b", "ip addr flush dev eth0 scope global");
    lab.must("b", &format!("ip addr add {}/24 dev eth0", B[0]));
    lab.must("b", &format!("ip addr add {}/64 dev eth0 nodad", B[1]));
    lab.must("b", "ip route replace default via 10.0.1.1");
    lab.must("b", "ip -6 route replace default via 2001:db8:1::1");
    for host in ["a", "b"] {
        lab.must(host, &format!("ip link set eth0 mtu {MTU}"));
    }
    // The switch knows no VLANs: what the gateway passes on would teach it that the hosts are behind the gateway.
    for port in ["a0", "b0", "trunk"] {
        lab.must("sw", &format!("ip link set {port} type bridge_slave learning off"));
    }
    lab.must("sw", "ip link set br0 type bridge fdb_flush");
}

/// A station behind the kernel's own tunnel end point in `net`.
fn station(lab: &Lab) {
    lab.add_host("far");
    lab.must("net", "ip link add vx1 type vxlan id 5001 local 198.51.100.1 remote 198.51.100.2 dstport 4789");
    lab.hand("vx1", "net", "far");
    lab.must("far", &format!("ip addr add {}/24 dev vx1", FAR[0]));
    lab.must("far", &format!("ip addr add {}/64 dev vx1 nodad", FAR[1]));
    lab.must("far", &format!("ip link set vx1 mtu {MTU} up"));
    lab.must("far", "ip route add default via 10.0.1.1");
    lab.must("far", "ip -6 route add default via 2001:db8:1::1");
}

fn mac(lab: &Lab, host: &str, device: &str) -> String {
    lab.must(host, &format!("cat /sys/class/net/{device}/address")).trim().to_owned()
}

/// The station's entry of `show macs`.
fn entry(gateway: &Gateway, mac: &str) -> Option<Value> {
    let macs = gateway.show("macs");
    macs["macs"].as_array().expect("a list").iter().find(|entry| entry["mac"] == mac).cloned()
}

/// States of the members, by name.
fn states(gateway: &Gateway) -> Vec<(String, String)> {
    let bridges = gateway.show("bridges");
    let members = bridges[0]["members"].as_array().expect("a list").clone();
    let word = |member: &Value, key: &str| member[key].as_str().expect("a word").to_owned();
    members.iter().map(|member| (word(member, "name"), word(member, "state"))).collect()
}

#[test]
fn a_segment_of_two_vlans_and_a_vni() {
    let Some(lab) = Lab::up("a_segment_of_two_vlans_and_a_vni", &[]) else { return };
    readdress(&lab);
    station(&lab);
    let gateway = Gateway::start(&lab, &Config { bridge: MEMBERS, ..Config::default() });
    for family in 0..2 {
        for (from, to) in [("a", B), ("a", FAR), ("b", CLIENT_A), ("b", FAR), ("far", CLIENT_A), ("far", B)] {
            lab.ping(from, to[family], "");
        }
        for host in ["a", "b", "far"] {
            lab.ping(host, ["10.0.1.1", "2001:db8:1::1"][family], "");
            lab.ping(host, NET[family], "");
        }
        for station in [CLIENT_A, B, FAR] {
            lab.ping("net", station[family], "");
        }
        transfer(&lab, "a", "far", FAR[family], "10M");
        transfer(&lab, "far", "b", B[family], "10M");
        transfer(&lab, "net", "far", FAR[family], "10M");
    }
    // As long as the tunnel takes.
    lab.ping("a", FAR[0], &format!("-M do -s {}", MTU - 28));

    let (mac_a, mac_b, mac_far) = (mac(&lab, "a", "eth0"), mac(&lab, "b", "eth0"), mac(&lab, "far", "vx1"));
    for (mac, member, remote) in [
        (&mac_a, "trunk.100", Value::Null),
        (&mac_b, "trunk.200.10", Value::Null),
        (&mac_far, "vni5001", "198.51.100.1".into()),
    ] {
        let entry = entry(&gateway, mac).unwrap_or_else(|| panic!("{mac} is not known"));
        assert_eq!((&entry["member"], &entry["remote"]), (&member.into(), &remote), "{entry}");
    }
    assert!(gateway.ask("show macs seg").contains(&mac_far));
    assert!(gateway.ask("show bridges").contains("trunk.200.10"));

    // The station behind the tunnel moves to b: whoever talks to it does not have to ask again.
    let known_to_a = lab.must("a", &format!("ip neigh show {}", FAR[0]));
    assert!(known_to_a.contains(&mac_far), "{known_to_a}");
    lab.must("far", "ip link set vx1 down");
    lab.must("b", &format!("ip link set eth0 address {mac_far}"));
    lab.must("b", &format!("ip addr add {}/24 dev eth0", FAR[0]));
    // Any frame of it tells.
    lab.ping("b", "10.0.1.1", &format!("-I {}", FAR[0]));
    lab.ping("a", FAR[0], "");
    lab.ping("net", FAR[0], "");
    assert_eq!(entry(&gateway, &mac_far).expect("known")["member"], "trunk.200.10");

    // What a control plane says is not learned over, and is forgotten when it says so.
    gateway.ask(&format!("bridge add-mac seg vni5001 {mac_far}"));
    lab.no_answer("a", FAR[0]);
    assert!(gateway.ask("show macs seg --member vni5001").contains("static"));
    gateway.ask(&format!("bridge del-mac seg {mac_far}"));
    lab.ping("a", FAR[0], "");
    for (command, says) in [
        ("bridge add-mac sag vni5001 02:00:00:00:00:01", "no bridge sag"),
        (
            "bridge add-mac seg vni1 02:00:00:00:00:01",
            "no member vni1; it has trunk.100, trunk.200.10, vni5001",
        ),
        ("bridge add-mac seg vni5001 02:00:00:00:00:01 --remote 192.0.2.9", "192.0.2.9 is not a remote"),
        ("bridge add-mac seg trunk.100 02:00:00:00:00:01 --remote 192.0.2.9", "leave the remote"),
        ("bridge del-mac seg 02:00:00:00:00:01", "knows none of these stations"),
    ] {
        let (status, said) = gateway.client(command);
        assert!(!status.success() && said.contains(says), "{command}: {said}");
    }
    let mut lost = lost_since(&gateway, &Default::default());
    // What hosts said to all before the first tunnel had a next hop, what b sent by its old address, and what a asked
    // for the station that was said to be elsewhere.
    lost.retain(|(reason, _)| {
        !["bridge-no-member", "neighbour-failed", "neighbour-queue-full", "arp-invalid"]
            .contains(&reason.as_str())
    });
    assert_eq!(lost, []);
    gateway.stop();
}

#[test]
fn a_loop_is_found_and_shut() {
    let Some(lab) = Lab::up("a_loop_is_found_and_shut", &["--no-services"]) else { return };
    readdress(&lab);
    let gateway = Gateway::start(&lab, &Config { bridge: TWO_VNIS, ..Config::default() });
    lab.ping("a", B[0], "");
    assert!(states(&gateway).iter().all(|(_, state)| state == "up"), "{:?}", states(&gateway));
    // A bridge of the kernel joins the two VNIs: what leaves by one comes back by the other.
    lab.add_host("far");
    lab.must("far", "ip link add br0 type bridge");
    for vni in [1, 2] {
        let vx = format!("vx{vni}");
        lab.must(
            "net",
            &format!(
                "ip link add {vx} type vxlan id 500{vni} local 198.51.100.1 remote 198.51.100.2 dstport 4789"
            ),
        );
        lab.hand(&vx, "net", "far");
        lab.must("far", &format!("ip link set {vx} master br0 up"));
    }
    lab.must("far", "ip link set br0 up");
    let deadline = Instant::now() + Duration::from_secs(20);
    let shut = ("vni5002".to_owned(), "loop".to_owned());
    while !states(&gateway).contains(&shut) {
        assert!(Instant::now() < deadline, "the loop is not found: {:?}", states(&gateway));
        std::thread::sleep(Duration::from_millis(50));
    }
    // The later one alone; the others go on.
    assert_eq!(states(&gateway).iter().filter(|(_, state)| state == "up").count(), 3);
    lab.ping("a", B[0], "");
    lab.must("far", "ip addr add 10.0.1.30/24 dev br0");
    lab.ping("a", FAR[0], "");
    // Once the way around is gone, the operator need not wait.
    lab.must("far", "ip link set vx2 down");
    assert!(gateway.ask("bridge open seg vni5002").contains("1 changed"));
    assert!(states(&gateway).iter().all(|(_, state)| state == "up"), "{:?}", states(&gateway));
    gateway.stop();
}

/// Rules between the members: `a` is in zone web, `b` in db.
const RULES: &str = r#"
[[rule]]
name = "lines"
action = "allow"
from = { zone = "web" }
to = { zone = "db" }
service = "tcp/5401-5402"
[[rule]]
name = "no-telnet"
action = "reject"
from = { zone = "web" }
to = { zone = "db" }
service = "tcp/23"
"#;

/// Answers every line with itself.
const ECHO: &str = r"
import socket
server = socket.create_server(('', 5402))
connection = server.accept()[0].makefile('rw')
for line in connection:
    print(line, end='', file=connection, flush=True)
";

/// Says each line of its input to the server, and what comes back; `lost` if nothing does for two seconds.
const TALK: &str = r"
import socket, sys
talk = socket.create_connection((sys.argv[1], 5402), 5)
talk.settimeout(2)
for line in sys.stdin:
    talk.sendall(line.encode())
    try:
        print(talk.recv(100).decode(), end='', flush=True)
    except TimeoutError:
        print('lost', flush=True)
";

/// How connecting ends.
const CONNECT: &str = r"
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    print('open')
except TimeoutError:
    print('silence')
except ConnectionRefusedError:
    print('refused')
";

/// Counts datagrams to a group: of who has joined it, or, by `any`, frames that come at all. Ends after the first second
/// in which none comes once one has, or after its time.
const LISTEN: &str = r"
import socket, struct, sys
group, how, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
if how == 'any':
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    is_it = lambda frame: frame[0] & 1 and frame[30:34] == socket.inet_aton(group)
else:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((group, 5004))
    listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(how))
    is_it = lambda frame: True
print('ready', flush=True)
import time
count, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    listener.settimeout(max(end - time.monotonic(), 0.01))
    try:
        count += bool(is_it(listener.recv(2000)))
    except TimeoutError:
        break
    if count == 20:
        break
print(count, flush=True)
";

const STREAM: &str = r"
import socket, sys, time
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[2]))
for _ in range(20):
    out.sendto(b'picture', (sys.argv[1], 5004))
    time.sleep(0.01)
";

/// A script of the test, for `python3`.
fn script(lab: &Lab, name: &str, text: &str) -> String {
    let file = lab.path(name);
    std::fs::write(&file, text).expect("the script can be written");
    format!("python3 {}", file.display())
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("the program speaks");
    line.trim().to_owned()
}

/// With a zone at each member, and what else the bridge is to say.
fn with_zones(text: &str, more: &str) -> String {
    text.replace("vlan = 100 }", "vlan = 100, zone = \"web\" }")
        .replace("vlan = [200, 10] }", "vlan = [200, 10], zone = \"db\" }")
        .replace("remotes = [\"198.51.100.1\"] }", "remotes = [\"198.51.100.1\"], zone = \"db\" }")
        .replace("loop_probe_s = 1", &format!("loop_probe_s = 1\n{more}"))
}

/// A connection from `a` to `b`, in the zones of two members.
struct Line {
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
    _programs: [Server; 2],
}

impl Line {
    fn new(lab: &Lab) -> Line {
        let (echo, talk) = (script(lab, "echo.py", ECHO), script(lab, "talk.py", TALK));
        let server = Server(lab.command("b", &echo).spawn().expect("the server starts"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while lab.must("b", "ss -Htln sport = :5402").is_empty() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut command = lab.command("a", &format!("{talk} {}", B[0]));
        let mut client =
            Server(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts"));
        let says = client.0.stdin.take().expect("piped");
        let hears = BufReader::new(client.0.stdout.take().expect("piped"));
        Line { says, hears, _programs: [server, client] }
    }

    fn exchange(&mut self, word: &str) -> String {
        writeln!(self.says, "{word}").expect("the client reads");
        line(&mut self.hears)
    }
}

#[test]
fn a_connection_between_members_outlives_the_gateway() {
    let test = "a_connection_between_members_outlives_the_gateway";
    let Some(lab) = Lab::up(test, &["--no-services"]) else { return };
    readdress(&lab);
    let folder = Folder::new("members");
    let config = Config { bridge: MEMBERS, zones: ["segment", "", "outside"], ..Config::default() };
    let config = config.with(&format!("[flows]\nkeep = \"{}\"\n", folder.0.display()));
    let start = || Gateway::start_on(&lab, "gw", |socket| with_zones(&config.text(socket), "") + RULES);
    let gateway = start();
    let mut line = Line::new(&lab);
    assert_eq!(line.exchange("one"), "one");
    let kept = |gateway: &Gateway| gateway.show("ha")["kept"].clone();
    wait_for("it is kept", || kept(&gateway)["sessions"] == 1);
    gateway.kill();
    let gateway = start();
    let entry = kept(&gateway);
    assert_eq!((&entry["restored"], &entry["not_restored"]), (&json!(1), &json!([])), "{entry:#}");
    assert_eq!(line.exchange("two"), "two");
    gateway.stop();
}

#[test]
fn members_with_zones_have_a_firewall_between_them() {
    let Some(lab) = Lab::up("members_with_zones_have_a_firewall_between_them", &["--no-services"]) else {
        return;
    };
    readdress(&lab);
    let config = Config { bridge: MEMBERS, zones: ["segment", "", "outside"], ..Config::default() };
    let gateway = Gateway::start(&lab, &config);
    lab.ping("a", B[0], "");
    let plain = config.text(gateway.socket());
    let zoned = with_zones(&plain, "") + RULES;
    let apply = |text: &str| {
        let (status, said) = gateway.apply(&lab, text);
        assert!(status.success(), "{said}");
    };
    apply(&zoned);
    // Members have zones now, and nobody asked.
    lab.no_answer("a", B[0]);
    lab.ping("a", "10.0.1.1", "");
    for to in B {
        transfer(&lab, "a", "b", to, "10M");
    }
    let connect = script(&lab, "connect.py", CONNECT);
    let tries = |from: &str, to: &str, port: u16| lab.must(from, &format!("{connect} {to} {port}"));
    for to in B {
        assert_eq!(tries("a", to, 23).trim(), "refused");
        assert_eq!(tries("a", to, 24).trim(), "silence");
    }
    assert_eq!(tries("b", CLIENT_A[0], 5402).trim(), "silence");

    let mut line = Line::new(&lab);
    let mut exchange = |word: &str| line.exchange(word);
    assert_eq!(exchange("one"), "one");
    let sessions = gateway.ask("show sessions --port 5402");
    assert!(sessions.contains("bridge:seg") && sessions.contains("web>db"), "{sessions}");
    // It lives through a change that still allows it, and ends with one that does not.
    apply(&zoned.replace("tcp/5401-5402", "tcp/5402"));
    assert_eq!(exchange("two"), "two");
    apply(&(with_zones(&plain, "") + &RULES.replace("tcp/5401-5402", "tcp/5401")));
    assert_eq!(exchange("three"), "lost");
    assert!(gateway.drops().contains_key("policy-changed"), "{:?}", gateway.drops());
    gateway.stop();
}

#[test]
fn a_stream_goes_to_who_listens() {
    const GROUP: &str = "239.1.2.3";
    let Some(lab) = Lab::up("a_stream_goes_to_who_listens", &["--no-services"]) else { return };
    readdress(&lab);
    station(&lab);
    // The switch of the test shall not choose.
    lab.must("sw", "ip link set br0 type bridge mcast_snooping 0");
    let config = Config { bridge: MEMBERS, ..Config::default() };
    let gateway = Gateway::start(&lab, &config);
    lab.ping("a", FAR[0], "");
    lab.ping("a", B[0], "");
    let snooping = "snooping = true\nquerier = true\nunknown_multicast = \"routers\"";
    let text =
        config.text(gateway.socket()).replace("loop_probe_s = 1", &format!("loop_probe_s = 1\n{snooping}"));
    let (status, said) = gateway.apply(&lab, &text);
    assert!(status.success(), "{said}");
    let (listen, stream) = (script(&lab, "listen.py", LISTEN), script(&lab, "stream.py", STREAM));
    let start = |host: &str, how: &str| {
        let mut command = lab.command(host, &format!("{listen} {GROUP} {how} 15"));
        let mut program = Server(command.stdout(Stdio::piped()).spawn().expect("it starts"));
        let mut says = BufReader::new(program.0.stdout.take().expect("piped"));
        assert_eq!(line(&mut says), "ready");
        (program, says)
    };
    let (_listener, mut heard) = start("b", B[0]);
    let (mut idle, mut not_heard) = start("far", "any");
    let deadline = Instant::now() + Duration::from_secs(10);
    let listens = || {
        let bridges = gateway.show("bridges");
        let listeners = bridges[0]["listeners"].as_array().cloned().unwrap_or_default();
        let is_heard = |entry: &Value| entry["group"] == GROUP && entry["member"] == "trunk.200.10";
        // Where nobody asks all goes to all.
        let asks =
            bridges[0]["queriers"].as_array().is_some_and(|families| families.contains(&"ipv4".into()));
        asks && listeners.iter().any(is_heard)
    };
    while !listens() {
        assert!(Instant::now() < deadline, "{}", gateway.show("bridges"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(gateway.ask("show bridges").contains(GROUP));
    lab.must("a", &format!("{stream} {GROUP} {}", CLIENT_A[0]));
    assert_eq!(line(&mut heard), "20");
    // What came to the other came before this.
    lab.ping("a", FAR[0], "");
    idle.0.wait().expect("it ends");
    assert_eq!(line(&mut not_heard), "0");
    gateway.stop();
}
