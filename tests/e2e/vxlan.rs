//! VXLAN with the Linux kernel's own tunnel end point on the other side: what it sends is taken, and what it gets is
//! what it takes.

use crate::gateway::{Config, Gateway};
use crate::lab::Lab;
use crate::pair::{ECHO, Talk};
use crate::sessions::{python, transfer};
use crate::vrrp::{Pair, becomes, config};
use crate::{CLIENT_A, lost_since};

/// `net` is the other tunnel end point: over IPv4 of one segment, over IPv6 of two, of which one wants checksums.
const OVERLAYS: &str = r#"
[[interface]]
name = "blue"
vni = 5001
vtep = "198.51.100.2"
remotes = ["198.51.100.1"]
addresses = ["10.9.1.1/24", "2001:db8:91::1/64"]
[[interface]]
name = "red"
vni = 5002
vtep = "2001:db8:ff::2"
remotes = ["2001:db8:ff::1"]
addresses = ["10.9.2.1/24", "2001:db8:92::1/64"]
[[interface]]
name = "green"
vni = 5003
vtep = "2001:db8:ff::2"
remotes = ["2001:db8:ff::1"]
udp_checksum = true
udp_port = 8472
addresses = ["10.9.3.1/24", "2001:db8:93::1/64"]
"#;

/// A station of a segment: a namespace whose only device is a vxlan device, the tunnels of which `net` carries.
fn station(lab: &Lab, number: u32, mtu: u32, tunnel: &str) -> String {
    let (host, device) = (format!("s{number}"), format!("vx{number}"));
    lab.add_host(&host);
    lab.must("net", &format!("ip link add {device} type vxlan id {} {tunnel}", 5000 + number));
    lab.hand(&device, "net", &host);
    lab.must(&host, &format!("ip addr add 10.9.{number}.10/24 dev {device}"));
    lab.must(&host, &format!("ip addr add 2001:db8:9{number}::10/64 dev {device} nodad"));
    // Without a device below the kernel takes 1500, and sends what does not fit in fragments, which end at the gateway.
    lab.must(&host, &format!("ip link set {device} mtu {mtu} up"));
    lab.must(&host, &format!("ip route add default via 10.9.{number}.1"));
    lab.must(&host, &format!("ip -6 route add default via 2001:db8:9{number}::1"));
    host
}

#[test]
fn a_segment_of_the_kernels_vxlan() {
    let Some(lab) = Lab::up("a_segment_of_the_kernels_vxlan", &[]) else { return };
    let gateway = Gateway::start(&lab, &Config::default().with(OVERLAYS));
    // Whether zero checksums are taken is a matter of the kernel's socket, so of the UDP port.
    let over_v6 = "local 2001:db8:ff::1 remote 2001:db8:ff::2 dstport";
    let stations = [
        (1, 1450, station(&lab, 1, 1450, "local 198.51.100.1 remote 198.51.100.2 dstport 4789")),
        (2, 1430, station(&lab, 2, 1430, &format!("{over_v6} 4789 udp6zerocsumrx"))),
        // As the kernel is by itself: over IPv6 it sends checksums, and takes nothing without.
        (3, 1430, station(&lab, 3, 1430, &format!("{over_v6} 8472"))),
    ];
    for (number, mtu, host) in &stations {
        let (v4, v6) = (format!("10.9.{number}.10"), format!("2001:db8:9{number}::10"));
        // The gateway asks for the station first, then the station for the gateway.
        lab.ping("a", &v4, "");
        lab.ping("a", &v6, "");
        lab.ping(host, &format!("10.9.{number}.1"), "");
        lab.ping(host, &format!("2001:db8:9{number}::1"), "");
        lab.ping(host, CLIENT_A[0], "");
        lab.ping(host, CLIENT_A[1], "");
        // As long as the tunnel takes; what is longer and may not be cut is told how long that is.
        lab.ping("a", &v4, &format!("-M do -s {}", mtu - 28));
        let said = lab.run("a", &format!("ping -n -c 2 -i 0.3 -W 1 -M do -s {} {v4}", mtu - 27)).text;
        assert!(said.contains(&format!("mtu = {mtu}")) || said.contains(&format!("mtu={mtu}")), "{said}");
        lab.ping("a", &v4, "-M dont -s 3000");
        transfer(&lab, "a", host, &v4, "20M");
        transfer(&lab, "a", host, &v6, "20M");
        transfer(&lab, host, "a", CLIENT_A[0], "20M");
        transfer(&lab, host, "a", CLIENT_A[1], "20M");
    }
    // From one segment to another, through both tunnels.
    lab.ping("s1", "10.9.2.10", "");
    lab.ping("s2", "2001:db8:93::10", "");
    let neighbours = gateway.show("neighbours");
    let remotes: Vec<&str> = neighbours
        .as_array()
        .expect("a list")
        .iter()
        .filter(|entry| entry["interface"] == "blue")
        .filter_map(|entry| entry["remote"].as_str())
        .collect();
    assert!(!remotes.is_empty() && remotes.iter().all(|remote| *remote == "198.51.100.1"), "{neighbours}");
    let mut lost = lost_since(&gateway, &Default::default());
    lost.retain(|(reason, _)| !["fragmentation-needed", "packet-too-big"].contains(&reason.as_str()));
    assert_eq!(lost, []);
    gateway.stop();
}

/// Behind an address of the virtual router on the far side.
const COMMON: &str = r#"
[[interface]]
name = "overlay"
vni = 5001
vtep = "10.8.2.254"
remotes = ["10.8.2.10"]
mac = "02:00:5e:00:00:01"
addresses = ["10.9.0.1/24"]
"#;

/// A segment of which both nodes are the gateway: one dies, and connections into it go on by the other.
#[test]
fn a_tunnel_end_point_of_two_nodes() {
    let Some(pair) = Pair::new("a_tunnel_end_point_of_two_nodes") else { return };
    let lab = &pair.lab;
    for node in ["n1", "n2"] {
        pair.node(node);
    }
    // The station speaks through tunnels of its own.
    lab.must("h2", "ip link add vx type vxlan id 5001 local 10.8.2.10 remote 10.8.2.254 dstport 4789");
    lab.must("h2", "ethtool -K vx tx off");
    lab.must("h2", "ip addr add 10.9.0.10/24 dev vx");
    lab.must("h2", "ip link set vx mtu 1450 up");
    lab.must("h2", "ip route add 10.8.1.0/24 via 10.9.0.1");
    let start = |number: u8, priority| {
        let text = |socket: &std::path::Path| config(socket, number, priority) + COMMON;
        Gateway::start_on(lab, &format!("n{number}"), text)
    };
    let (first, second) = (start(1, 150), start(2, 100));
    becomes(&first, "active");
    becomes(&second, "backup");

    let _echo = python(lab, "h2", "far.py", &ECHO.replace("PORTS", "[7000]"));
    lab.ping("h1", "10.9.0.10", "-M do -s 1422");
    let talk = Talk::new(lab, "h1", ("10.9.0.10", 7000));
    talk.goes_on();
    first.kill();
    becomes(&second, "active");
    talk.goes_on();
    let first = start(1, 150);
    becomes(&first, "active");
    talk.goes_on();
    lab.ping("h2", "10.9.0.1", "");
    second.stop();
}
