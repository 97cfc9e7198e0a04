//! A bridged segment of a VLAN, a QinQ pair and the Linux kernel's VXLAN, with the gateway on it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::sessions::transfer;
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
