//! Two nodes that are known to have the same sessions, and a third who says which of them serves when they do not hear each
//! other.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::gateway::Gateway;
use crate::pair::{Talk, active_and_backup, is_ready, pair_of, paired, start, start_with, talks, two_nodes};
use crate::vrrp::{becomes, wait_for};

/// Some audits: each takes ten seconds and more.
const AUDITS: Duration = Duration::from_secs(120);

fn sessions(gateway: &Gateway) -> u64 {
    let said = gateway.ask("show sessions --protocol tcp --count");
    said.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("a number: {said}"))
}

fn audits_find(gateway: &Gateway, mut is_so: impl FnMut(&Value) -> bool) {
    let deadline = Instant::now() + AUDITS;
    let mut last = Value::Null;
    while Instant::now() < deadline {
        last = pair_of(gateway);
        if is_so(&last["drift"]) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("never found: {last:#}");
}

/// Each node has the sections named to it in which the other's config is another.
#[test]
fn both_nodes_say_where_their_configs_differ() {
    let Some(pair) = two_nodes("both_nodes_say_where_their_configs_differ") else { return };
    let lab = &pair.lab;
    let (first, second) = (start(lab, 1), start(lab, 2));
    let both_say = |differs: &[&str]| {
        for node in [&first, &second] {
            wait_for(&format!("{differs:?}"), || pair_of(node)["differs"] == serde_json::json!(differs));
        }
    };
    both_say(&[]);
    let text = paired(second.socket(), 2, 100, &lab.path("pair.key"));
    let (status, said) =
        second.apply(lab, &format!("{text}[[group]]\nname = \"more\"\nmembers = [\"192.0.2.9\"]\n"));
    assert!(status.success(), "{said}");
    both_say(&["group"]);
    assert!(first.ask("show ha").contains("DIFFERS in group"));
    let (status, said) = second.apply(lab, &text);
    assert!(status.success(), "{said}");
    both_say(&[]);
    first.stop();
    second.stop();
}

/// An operator ends sessions on the node that does not carry them: nobody tells of that, and the audits find it.
#[test]
fn what_one_node_has_lost_the_audits_bring_back() {
    let Some(pair) = two_nodes("what_one_node_has_lost_the_audits_bring_back") else { return };
    let lab = &pair.lab;
    let (first, second) = active_and_backup(lab);
    let (talks, _servers) = talks(lab);
    is_ready(&first);
    // Both nodes compare, and find nothing.
    for node in [&first, &second] {
        audits_find(node, |drift| drift["looks"].as_u64() > Some(1));
        assert_eq!(pair_of(node)["drift"]["found"], 0);
    }
    let before = sessions(&second);
    second.ask("clear sessions --protocol tcp");
    assert_eq!((before, sessions(&second)), (60, 0));
    audits_find(&first, |drift| drift["found"].as_u64() > Some(0) && drift["left"] == 0);
    assert_eq!(sessions(&second), before, "told again");
    let drift = &pair_of(&first)["drift"];
    assert_eq!(drift["found"], drift["repaired"]);
    // They are as good as they were.
    first.kill();
    becomes(&second, "active");
    talks.iter().for_each(Talk::goes_on);
    second.stop();
}

fn witness_of(gateway: &Gateway) -> Value {
    pair_of(gateway)["witness"].clone()
}

/// Everything is cut: the one that reaches the witness is Active, the other is not.
#[test]
fn who_reaches_nobody_takes_no_part() {
    let Some(pair) = two_nodes("who_reaches_nobody_takes_no_part") else { return };
    let lab = &pair.lab;
    let witness = "witness = \"10.8.2.10\"\n";
    let (first, second) = (start_with(lab, 1, witness), start_with(lab, 2, witness));
    becomes(&first, "active");
    becomes(&second, "backup");
    for node in [&first, &second] {
        wait_for("the witness answers", || witness_of(node)["answers"] == true);
    }
    let (talks, _servers) = talks(lab);
    is_ready(&first);

    // The first is on switches that nothing else is on; its links have carrier.
    lab.must("n1", "ip link set pair down");
    for side in 1..=2 {
        lab.must("sw", &format!("ip link set n1{side} nomaster"));
    }
    becomes(&second, "active");
    becomes(&first, "initialize");
    assert_eq!(
        (&witness_of(&first)["is_cut_off"], &witness_of(&first)["answers"]),
        (&true.into(), &false.into())
    );
    assert_eq!(witness_of(&second)["is_cut_off"], false);
    talks.iter().for_each(Talk::goes_on);
    // It heals: the one with the higher priority, once it has been told what it has missed.
    lab.must("n1", "ip link set pair up");
    for side in 1..=2 {
        lab.must("sw", &format!("ip link set n1{side} master vr{side}"));
    }
    becomes(&first, "active");
    becomes(&second, "backup");
    talks.iter().for_each(Talk::goes_on);
    assert_eq!(witness_of(&first)["is_cut_off"], false);

    // The witness falls silent while the nodes hear each other: it does not count, whatever becomes of the other node.
    is_ready(&first);
    lab.must("h2", "sysctl -qw net.ipv4.icmp_echo_ignore_all=1");
    for node in [&first, &second] {
        wait_for("it is silent", || witness_of(node)["answers"] == false);
    }
    std::thread::sleep(softgate::ha::contact::TOGETHER + Duration::from_secs(1));
    first.kill();
    becomes(&second, "active");
    wait_for("the other is missed", || pair_of(&second)["is_there"] == false);
    becomes(&second, "active");
    assert_eq!(witness_of(&second)["is_cut_off"], false);
    talks.iter().for_each(Talk::goes_on);
    second.stop();
}
