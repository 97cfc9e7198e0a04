//! BFD: with FRR's bfdd, and between two nodes; what virtual routers and routes make of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use serde_json::Value;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::sessions::Server;
use crate::vrrp::{Pair, becomes, config, wait_for};

/// The addresses of bfdd's host on the second side.
const FRR: [&str; 2] = ["10.8.2.3", "2001:db8:82::3"];
/// On a loopback beyond that side.
const BEYOND: &str = "10.9.0.1";

fn session(peer: &str, interface: &str) -> String {
    format!("[[bfd]]\npeer = \"{peer}\"\ninterface = \"{interface}\"\ninterval = \"50ms\"\n")
}

/// What the sessions of a node are, by peer: state, why they were down last, whether routes by them are not used.
fn sessions(gateway: &Gateway) -> Vec<(String, String, String, bool)> {
    let shown = gateway.show("ha");
    let list = shown["bfd"]["sessions"].as_array().unwrap_or_else(|| panic!("show ha: {shown:#}"));
    let text = |session: &Value, key: &str| session[key].as_str().unwrap_or("?").to_owned();
    let of = |session: &Value| {
        let withdraws = session["withdraws_routes"].as_bool().expect("a flag");
        (text(session, "peer"), text(session, "state"), text(session, "diagnostic"), withdraws)
    };
    list.iter().map(of).collect()
}

fn all_are(gateway: &Gateway, state: &str) {
    wait_for(&format!("all sessions are {state}"), || {
        sessions(gateway).iter().all(|(_, is, _, withdraws)| is == state && *withdraws == (state == "down"))
    });
}

/// What is tracked for the first virtual router, and what it takes off.
fn tracked(gateway: &Gateway) -> Vec<(String, u64)> {
    let shown = gateway.show("ha");
    let list = shown["routers"][0]["tracked"].as_array().unwrap_or_else(|| panic!("show ha: {shown:#}"));
    let of = |track: &Value| {
        (track["what"].as_str().unwrap_or("?").to_owned(), track["taken"].as_u64().unwrap_or(0))
    };
    list.iter().map(of).collect()
}

/// zebra, which tells of interfaces, and bfdd, on the host `f`.
struct Frr {
    _zebra: Server,
    bfdd: Option<Server>,
}

impl Frr {
    fn new(lab: &Lab) -> Frr {
        let sessions: String = FRR
            .iter()
            .zip(["10.8.2.1", "2001:db8:82::1"])
            .map(|(own, peer)| {
                format!(
                    " peer {peer} local-address {own} interface wan\n  detect-multiplier 5\n  receive-interval 100\n  \
                     transmit-interval 100\n  no shutdown\n !\n"
                )
            })
            .collect();
        // FRR gives up root, and keeps its sockets here.
        let open = |name: &str, mode: u32| {
            fs::set_permissions(lab.path(name), fs::Permissions::from_mode(mode)).expect("our own folder");
        };
        fs::create_dir(lab.path("frr")).expect("a folder");
        open("", 0o755);
        open("frr", 0o777);
        fs::write(lab.path("frr/bfdd.conf"), format!("bfd\n{sessions}!\n")).expect("a file");
        fs::write(lab.path("frr/zebra.conf"), "").expect("a file");
        let zebra = daemon(lab, "zebra", "");
        wait_for("zebra", || lab.path("frr/zserv.api").exists());
        let mut frr = Frr { _zebra: zebra, bfdd: None };
        frr.start(lab);
        frr
    }

    fn start(&mut self, lab: &Lab) {
        self.bfdd = Some(daemon(lab, "bfdd", &format!("--bfdctl {}", lab.path("frr/bfdd.sock").display())));
    }

    fn kill(&mut self) {
        self.bfdd = None;
    }
}

fn daemon(lab: &Lab, name: &str, options: &str) -> Server {
    let file = |name: &str| lab.path(&format!("frr/{name}")).display().to_string();
    let log = fs::File::create(lab.path(&format!("{name}.log"))).expect("a file");
    let command = format!(
        "/usr/lib/frr/{name} -u frr -g frr -P 0 --log stdout -f {} -i {} -z {} --vty_socket {} {options}",
        file(&format!("{name}.conf")),
        file(&format!("{name}.pid")),
        file("zserv.api"),
        file("")
    );
    let mut command = lab.command("f", &command);
    let child = command.stdout(Stdio::from(log.try_clone().expect("a file"))).stderr(log).spawn();
    Server(child.expect("FRR starts"))
}

#[test]
fn frr_is_the_other_end() {
    let Some(pair) = Pair::new("frr_is_the_other_end") else { return };
    let lab = &pair.lab;
    pair.node("n1");
    pair.node("n2");
    lab.add_host("f");
    pair.plug("f", "wan", 2);
    lab.must("f", "ip addr add 10.8.2.3/24 dev wan");
    lab.must("f", "ip addr add 2001:db8:82::3/64 dev wan nodad");
    let first = Gateway::start_on(lab, "n1", |socket| {
        let tracks = format!(
            "track = [{{ bfd = \"{}\", weight = 40 }}, {{ bfd = \"{}\", weight = 40 }}, {{ neighbour = \"10.8.2.10\", weight = 9 }}]\n",
            FRR[0], FRR[1]
        );
        let routers =
            config(socket, 1, 150).replacen("accept = true\n", &format!("accept = true\n{tracks}"), 1);
        format!("{routers}{}{}", session(FRR[0], "wan"), session(FRR[1], "wan"))
    });
    let second = pair.start("n2", 2, 100);
    // Nobody is there yet: who has heard nothing leads nobody.
    becomes(&second, "active");
    let none = [("bfd 10.8.2.3".to_owned(), 40), ("bfd 2001:db8:82::3".to_owned(), 40)];
    wait_for("the host answers", || tracked(&first)[2].1 == 0);
    assert_eq!(tracked(&first)[..2], none);
    assert!(sessions(&first).iter().all(|(_, state, _, withdraws)| state == "down" && !withdraws));

    let mut frr = Frr::new(lab);
    wait_for("both are up", || sessions(&first).iter().all(|(_, state, ..)| state == "up"));
    becomes(&first, "active");
    becomes(&second, "backup");
    assert!(tracked(&first).iter().all(|(_, taken)| *taken == 0));
    let shown = first.show("ha");
    for session in shown["bfd"]["sessions"].as_array().expect("a list") {
        // 5 x 100 ms of his, who is no real-time process; ours are as slow, since he takes no more.
        wait_for("negotiated", || {
            first.show("ha")["bfd"]["sessions"].as_array().expect("a list").iter().all(|session| {
                session["detection_time_us"] == 500_000 && session["transmit_interval_us"] == 100_000
            })
        });
        assert_eq!(session["errors"], Value::Array(Vec::new()), "{shown:#}");
    }

    frr.kill();
    all_are(&first, "down");
    for (peer, _, why, _) in sessions(&first) {
        assert_eq!(why, "detection-time-expired", "{peer}");
    }
    becomes(&second, "active");
    becomes(&first, "backup");
    assert_eq!(tracked(&first)[..2], none);
    frr.start(lab);
    all_are(&first, "up");
    becomes(&first, "active");

    // A host that answers no more: its weight is gone after three questions.
    lab.must("h2", "ip link set eth0 down");
    wait_for("the host is missed", || tracked(&first)[2] == ("neighbour 10.8.2.10".to_owned(), 9));
    lab.must("h2", "ip link set eth0 up");
    wait_for("the host is back", || tracked(&first)[2].1 == 0);
    assert_eq!(first.show("ha")["bfd"]["unresolved"].as_u64().map(|count| count < 100), Some(true));
    first.stop();
    second.stop();
}

#[test]
fn two_nodes_are_each_others_peers_and_routes_follow() {
    let Some(pair) = Pair::new("two_nodes_are_each_others_peers_and_routes_follow") else { return };
    let lab = &pair.lab;
    pair.node("n1");
    pair.node("n2");
    lab.must("h2", &format!("ip addr add {BEYOND}/32 dev lo"));
    // It asks for the gateway in the name of an address on the link.
    lab.must("h2", "sysctl -qw net.ipv4.conf.all.arp_announce=2");
    let start = |name: &str, number: u8| {
        Gateway::start_on(lab, name, |socket| {
            let other = 3 - number;
            let peers = [format!("10.8.2.{other}"), format!("2001:db8:82::{other}")];
            let sessions = peers.map(|peer| session(&peer, "wan")).concat();
            // The first goes by the second, and without it straight on.
            let by = if number == 1 { "10.8.2.2" } else { "10.8.2.10" };
            let routes = format!(
                "[[route]]\nprefix = \"10.9.0.0/16\"\nvia = [\"10.8.2.10\"]\n[[route]]\nprefix = \"{BEYOND}/32\"\nvia = [\"{by}\"]\n"
            );
            format!("{}{routes}{sessions}", config(socket, number, 200 - 50 * number))
        })
    };
    let (first, second) = (start("n1", 1), start("n2", 2));
    becomes(&first, "active");
    all_are(&first, "up");
    all_are(&second, "up");
    let route = || {
        let shown = first.show("routes");
        let routes = shown["routes"].as_array().unwrap_or_else(|| panic!("{shown:#}"));
        let found = routes.iter().find(|route| route["prefix"] == format!("{BEYOND}/32"));
        found.expect("it is configured")["active"].as_bool().expect("a flag")
    };
    // The time to live says who has forwarded: one, or both.
    let ttl = || {
        let said = lab.run("h1", &format!("ping -n -c 1 -W 1 -t 2 {BEYOND}")).text;
        (said.contains("bytes from"), said.contains("exceeded"))
    };
    lab.ping("h1", BEYOND, "");
    assert_eq!((route(), ttl()), (true, (false, true)), "by the second");

    second.kill();
    wait_for("the route is not used", || !route());
    all_are(&first, "down");
    lab.ping("h1", BEYOND, "");
    assert_eq!(ttl(), (true, false), "straight on");

    let second = start("n2", 2);
    all_are(&first, "up");
    wait_for("the route is used", route);
    wait_for("by the second again", || ttl() == (false, true));

    // Who stops says so: that is no failure, and nothing is withdrawn.
    second.stop();
    wait_for("it has said so", || {
        sessions(&first).iter().all(|(_, state, why, withdraws)| {
            state == "down" && why == "neighbour-signalled-down" && !withdraws
        })
    });
    assert!(route());
    let log = first.stop();
    assert!(log.contains("BFD session"), "{log}");
}
