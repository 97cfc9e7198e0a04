//! Two nodes with a pair link: a host that sends to the node that is not the Active is served all the same, by the one that
//! is; its connections go on, and new ones begin, while the nodes change places.

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::pair::{Talk, is_ready, pair_of, paired, talks, two_nodes};
use crate::vrrp::becomes;

/// The node with this number, with a port on the pair link.
fn start(lab: &Lab, number: u8) -> Gateway {
    let (key, other) = (lab.path("pair.key"), 3 - number);
    let priority = [150, 100][usize::from(number) - 1];
    Gateway::start_on(lab, &format!("n{number}"), |socket| {
        let text = paired(socket, number, priority, &key);
        // Behind `[pair]`, which is the last table.
        format!(
            "{text}link = {{ local = \"203.0.113.{number}\", peer = \"203.0.113.{other}\" }}\n\
             [[port]]\nname = \"sync\"\ndevice = \"sync\"\n\
             [[interface]]\nname = \"sync\"\nport = \"sync\"\nzone = \"pair\"\nmtu = 1600\naddresses = [\"203.0.113.{number}/30\"]\n"
        )
    })
}

fn received(gateway: &Gateway) -> u64 {
    pair_of(gateway)["link_received"].as_u64().expect("a number")
}

#[test]
fn packets_may_come_to_the_node_that_is_not_the_active() {
    let Some(pair) = two_nodes("packets_may_come_to_the_node_that_is_not_the_active") else { return };
    let lab = &pair.lab;
    lab.must("n1", "ip link add sync mtu 1600 type veth peer name sync2 mtu 1600");
    lab.hand("sync2", "n1", "n2");
    lab.must("n2", "ip link set sync2 name sync");
    for node in ["n1", "n2"] {
        lab.must(node, "ethtool -K sync tx off txvlan off");
        lab.must(node, "ip link set sync up");
    }
    let (first, second) = (start(lab, 1), start(lab, 2));
    becomes(&first, "active");
    becomes(&second, "backup");
    is_ready(&first);

    // To the Backup's own address: new connections are the Active's, which answers for the pool and what is published. Of
    // the service's clients packets come to the Backup as well.
    lab.must("h1", "ip route replace default via 10.8.1.2");
    let wan = lab.must("n2", "cat /sys/class/net/wan/address");
    lab.must("h2", &format!("ip neigh replace 10.8.2.102 lladdr {} dev eth0", wan.trim()));
    let (talks, _servers) = talks(lab);
    let knocks = [("h1", "10.8.2.10", 7000), ("h2", "10.8.2.101", 7001), ("h2", "10.8.2.102", 80)]
        .map(|(host, addr, port)| Talk::anew(lab, host, (addr, port)));
    let all_go_on = || talks.iter().chain(&knocks).for_each(Talk::goes_on);
    all_go_on();
    lab.ping("h1", "10.8.2.10", "-s 1400");
    let came = received(&first);
    assert!(came > 100 && received(&second) == 0, "{came} came over the pair link");
    let there = pair_of(&second);
    assert!(there["link_sent"][0]["kind"] == "group", "{there:#}");

    // It leaves, and comes back: nobody who begins in between is turned away. With some that always begin it is never quite
    // ready for long: `drain` waits for a moment of it.
    first.ask("drain");
    becomes(&second, "active");
    all_go_on();
    first.ask("drain --cancel");
    becomes(&first, "active");
    all_go_on();

    // It dies, when whoever is just beginning has nobody: what lasts goes on, by either node.
    drop(knocks);
    is_ready(&first);
    first.kill();
    becomes(&second, "active");
    talks.iter().for_each(Talk::goes_on);
    let first = start(lab, 1);
    becomes(&first, "active");
    talks.iter().for_each(Talk::goes_on);
    assert!(received(&first) > 0, "again by way of the other node");
    second.stop();
}
