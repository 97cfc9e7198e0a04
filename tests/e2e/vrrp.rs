//! Virtual routers: two nodes, or a node and keepalived, between two switches; a host on either side whose gateway is
//! the virtual one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::gateway::Gateway;
use crate::lab::{Lab, text};
use crate::sessions::Server;

/// The virtual addresses on both sides.
pub const VIRTUAL: [[&str; 2]; 2] = [["10.8.1.254", "2001:db8:81::fe"], ["10.8.2.254", "2001:db8:82::fe"]];
/// The host beyond.
const FAR: [&str; 2] = ["10.8.2.10", "2001:db8:82::10"];
/// Virtual routers' identifiers on both sides.
pub const IDS: [u8; 2] = [10, 20];
/// How long anything may take; what it does take is in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two switches with a host each.
pub struct Pair {
    pub lab: Lab,
}

impl Pair {
    pub fn new(test: &str) -> Option<Pair> {
        let lab = Lab::alone(test, &["--no-services"])?;
        let pair = Pair { lab };
        for side in 1..=2 {
            pair.lab.must(
                "sw",
                &format!("ip link add vr{side} type bridge stp_state 0 mcast_snooping 0 forward_delay 0"),
            );
            pair.lab.must("sw", &format!("ip link set vr{side} up"));
            let host = format!("h{side}");
            pair.lab.add_host(&host);
            pair.plug(&host, "eth0", side);
            pair.lab.must(&host, &format!("ip addr add 10.8.{side}.10/24 dev eth0"));
            pair.lab.must(&host, &format!("ip addr add 2001:db8:8{side}::10/64 dev eth0 nodad"));
            pair.lab.must(&host, &format!("ip route add default via {}", VIRTUAL[side - 1][0]));
            pair.lab.must(&host, "ip -6 route add default via fe80::1 dev eth0");
        }
        Some(pair)
    }

    /// A cable from a host to the switch of a side.
    pub fn plug(&self, host: &str, device: &str, side: usize) {
        let lab = &self.lab;
        let far = format!("{host}{side}");
        // As in scripts/lab: an index of its own at either end.
        let index = 300 + (host.bytes().map(usize::from).sum::<usize>() % 50) * 4 + side;
        lab.must("sw", &format!("ip link add {far} type veth peer name {device} index {index}"));
        lab.hand(device, "sw", host);
        lab.must("sw", &format!("ip link set {far} master vr{side} up"));
        for (host, device) in [("sw", far.as_str()), (host, device)] {
            lab.must(host, &format!("ethtool -K {device} tx off txvlan off"));
        }
        lab.must(host, &format!("ip link set {device} up"));
    }

    pub fn node(&self, name: &str) {
        self.lab.add_host(name);
        self.lab
            .must(name, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        for side in 1..=2 {
            self.plug(name, ["lan", "wan"][side - 1], side);
        }
    }

    pub fn start(&self, name: &str, number: u8, priority: u8) -> Gateway {
        Gateway::start_on(&self.lab, name, |socket| config(socket, number, priority))
    }

    /// The host beyond is reached, by either family.
    fn reaches(&self) {
        for address in FAR {
            self.lab.ping("h1", address, "");
        }
    }

    /// What the host on the first side takes for the MAC address of the virtual router.
    fn neighbours(&self) -> String {
        self.lab.must("h1", "ip neigh")
    }
}

pub fn config(socket: &Path, number: u8, priority: u8) -> String {
    let mut config = format!(
        "schema = 1\n[system]\nworkers = [1]\nframes = 4096\n[control]\nsocket = \"{}\"\n",
        socket.display()
    );
    for side in 0..2 {
        let (name, id, at) = (["lan", "wan"][side], IDS[side], side + 1);
        let [four, six] = VIRTUAL[side];
        config.push_str(&format!(
            r#"
[[port]]
name = "{name}"
device = "{name}"
[[interface]]
name = "{name}"
port = "{name}"
addresses = ["10.8.{at}.{number}/24", "2001:db8:8{at}::{number}/64"]
[[vrrp]]
interface = "{name}"
id = {id}
priority = {priority}
interval = "10cs"
addresses = ["{four}", "fe80::1", "{six}"]
group = "main"
accept = true
"#
        ));
    }
    config
}

/// The states of the virtual routers of a node.
pub fn states(gateway: &Gateway) -> Vec<String> {
    let shown = gateway.show("ha");
    let routers = shown["routers"].as_array().unwrap_or_else(|| panic!("show ha: {shown:#}"));
    routers.iter().map(|router| router["state"].as_str().unwrap_or("?").to_owned()).collect()
}

pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn becomes(gateway: &Gateway, state: &str) {
    wait_for(state, || {
        let states = states(gateway);
        states.len() == 4 && states.iter().all(|known| known == state)
    });
}

pub fn sum(gateway: &Gateway, field: &str) -> u64 {
    let shown = gateway.show("ha");
    let routers = shown["routers"].as_array().expect("a list").iter();
    routers.map(|router| router[field].as_u64().unwrap_or_else(|| panic!("{field}: {router:#}"))).sum()
}

pub fn no_errors(gateway: &Gateway) {
    let shown = gateway.show("ha");
    let routers = shown["routers"].as_array().expect("a list").iter();
    let with_errors: Vec<&Value> =
        routers.filter(|router| router["errors"] != Value::Array(Vec::new())).collect();
    assert!(with_errors.is_empty() && shown["strays"] == Value::Array(Vec::new()), "{shown:#}");
}

#[test]
fn two_nodes_are_one_gateway() {
    let Some(pair) = Pair::new("two_nodes_are_one_gateway") else { return };
    pair.node("n1");
    pair.node("n2");
    let (first, second) = (pair.start("n1", 1, 150), pair.start("n2", 2, 100));
    becomes(&first, "active");
    becomes(&second, "backup");
    for address in VIRTUAL[0] {
        pair.lab.ping("h1", address, "");
    }
    pair.reaches();
    let known = pair.neighbours();
    assert!(known.contains("00:00:5e:00:01:0a") && known.contains("00:00:5e:00:02:0a"), "{known}");
    let said = captured(&pair);
    for (family, mac, ttl) in
        [("IPv4", "00:00:5e:00:01:0a", "ttl 255"), ("IPv6", "00:00:5e:00:02:0a", "hlim 255")]
    {
        let line = said.lines().position(|line| line.contains(&format!("ethertype {family}")));
        let line = line.unwrap_or_else(|| panic!("no advertisement of {family}: {said}"));
        // tcpdump breaks the line of IPv4.
        let of: String = said.lines().skip(line).take(2).collect();
        assert!(of.contains(&format!("{mac} >")) && of.contains(ttl), "{family}: {said}");
    }
    assert!(said.contains("VRRPv3, Advertisement, vrid 10, prio 150, intvl 10cs"), "{said}");
    assert!(!said.contains("bad vrrp cksum"), "{said}");

    // It dies without a word.
    first.kill();
    becomes(&second, "active");
    pair.reaches();
    assert_eq!(pair.neighbours().matches("00:00:5e:00:01:0a").count(), 1, "the address is where it was");

    // It comes back and preempts.
    let first = pair.start("n1", 1, 150);
    becomes(&first, "active");
    becomes(&second, "backup");
    pair.reaches();
    // Who had to go back heard a better one, and never left by itself.
    assert_eq!(sum(&second, "leaving_sent"), 0);

    // It leaves with a word.
    let before = sum(&second, "leaving_received");
    first.stop();
    becomes(&second, "active");
    assert_eq!(sum(&second, "leaving_received") - before, 4);
    pair.reaches();
    no_errors(&second);
    second.stop();
}

#[test]
fn a_dead_link_takes_the_group_with_it() {
    let Some(pair) = Pair::new("a_dead_link_takes_the_group_with_it") else { return };
    pair.node("n1");
    pair.node("n2");
    let (first, second) = (pair.start("n1", 1, 150), pair.start("n2", 2, 100));
    becomes(&first, "active");
    becomes(&second, "backup");
    pair.reaches();
    pair.lab.must("sw", "ip link set n12 down");
    becomes(&first, "initialize");
    becomes(&second, "active");
    pair.reaches();
    pair.lab.must("sw", "ip link set n12 up");
    becomes(&first, "active");
    becomes(&second, "backup");
    pair.reaches();
}

/// keepalived on a host, by its device `lan`, with the virtual router of the first side.
pub fn keepalived(lab: &Lab, host: &str, priority: u8) -> Server {
    keepalived_with(lab, host, priority, IDS[0], VIRTUAL[0])
}

/// The same with a virtual router of these addresses.
pub fn keepalived_with(lab: &Lab, host: &str, priority: u8, id: u8, [four, six]: [&str; 2]) -> Server {
    let path = |kind: &str| lab.path(&format!("{host}.{kind}"));
    let file = path("conf");
    let instance = |name: &str, addresses: &str| {
        format!(
            "vrrp_instance {name} {{\n state BACKUP\n interface lan\n use_vmac\n virtual_router_id {id}\n \
             priority {priority}\n advert_int 0.1\n accept\n virtual_ipaddress {{\n{addresses}\n }}\n}}\n"
        )
    };
    let text = format!(
        "global_defs {{\n vrrp_version 3\n}}\n{}{}",
        instance("v4", &format!("{four}/24")),
        instance("v6", &format!("fe80::1/64\n{six}/64"))
    );
    std::fs::write(&file, text).expect("a file");
    let log = std::fs::File::create(path("log")).expect("a file");
    let (pid, vrrp_pid) = (path("pid"), path("vrrp.pid"));
    let options = format!("-n -l -D -P -f {} -p {} -r {}", file.display(), pid.display(), vrrp_pid.display());
    let mut command = lab.command(host, &format!("keepalived {options}"));
    let child = command.stdout(Stdio::from(log.try_clone().expect("a file"))).stderr(log).spawn();
    Server(child.expect("keepalived starts"))
}

#[test]
fn keepalived_is_the_other() {
    let Some(pair) = Pair::new("keepalived_is_the_other") else { return };
    let lab = &pair.lab;
    pair.node("n1");
    lab.add_host("k");
    pair.plug("k", "lan", 1);
    lab.must("k", "ip addr add 10.8.1.3/24 dev lan");
    lab.must("k", "ip addr add 2001:db8:81::3/64 dev lan nodad");
    // On one side only: it does not route.
    let alone = |priority: u8| {
        move |socket: &Path| {
            let text = config(socket, 1, priority).replace("group = \"main\"\n", "");
            let second = text.rfind("[[vrrp]]").expect("two of them");
            text[..second].to_owned()
        }
    };
    let both = |gateway: &Gateway, state: &str| {
        wait_for(state, || states(gateway) == [state, state]);
    };
    let log = || std::fs::read_to_string(lab.path("k.log")).unwrap_or_default();
    let said = |what: &str| wait_for(what, || log().matches(what).count() >= 2);
    // keepalived says that it is the master before it has the addresses.
    let answers = || {
        for address in VIRTUAL[0] {
            wait_for(address, || lab.answers("h1", address, 1) == 1);
            lab.ping("h1", address, "");
        }
    };

    // As SoftGate's backup.
    let gateway = Gateway::start_on(lab, "n1", alone(100));
    both(&gateway, "active");
    let other = keepalived(lab, "k", 50);
    said("Entering BACKUP STATE");
    answers();
    no_errors(&gateway);
    gateway.kill();
    said("Entering MASTER STATE");
    answers();
    // It hears a better one and goes back.
    let gateway = Gateway::start_on(lab, "n1", alone(100));
    both(&gateway, "active");
    wait_for("backup again", || log().matches("Entering BACKUP STATE").count() >= 4);
    answers();
    // It is told that SoftGate leaves.
    gateway.stop();
    wait_for("master again", || log().matches("Entering MASTER STATE").count() >= 4);
    answers();

    // As the active of SoftGate, which hears it and takes over when it leaves.
    let gateway = Gateway::start_on(lab, "n1", alone(20));
    both(&gateway, "backup");
    wait_for("hears it", || sum(&gateway, "received") > 10);
    answers();
    no_errors(&gateway);
    let status = Command::new("kill").arg(other.0.id().to_string()).status().expect("kill runs");
    assert!(status.success());
    both(&gateway, "active");
    answers();
}

/// What tcpdump sees of some advertisements on the first side.
fn captured(pair: &Pair) -> String {
    let output = pair
        .lab
        .command("h1", "timeout 20 tcpdump -nvve -i eth0 -c 6")
        .arg("ip proto 112 or ip6 proto 112")
        .output()
        .expect("tcpdump runs");
    text(&output)
}
