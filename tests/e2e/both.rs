//! One commit on both nodes of a pair, or on neither; and who stands back while it lacks the other's sessions.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::gateway::{Gateway, binary};
use crate::lab::{Lab, text};
use crate::pair::{pair_of, paired, two_nodes};
use crate::vrrp::{Pair, becomes, wait_for};

/// The same document for both: the second node has its own addresses, and the first a network more.
fn document(socket: &Path, key: &Path) -> String {
    let all = paired(socket, 1, 150, key);
    format!(
        r#"{all}
[node.n1]
addresses = {{ wan = ["10.8.2.1/24", "2001:db8:82::1/64", "10.9.9.1/24"] }}
[node.n2]
priority = 100
addresses = {{ lan = ["10.8.1.2/24", "2001:db8:81::2/64"], wan = ["10.8.2.2/24", "2001:db8:82::2/64"] }}
pair = {{ local = "192.0.2.2:5405", peer = "192.0.2.1:5405" }}
"#
    )
}

struct Both<'l> {
    lab: &'l Lab,
    text: String,
}

impl Both<'_> {
    fn of(pair: &Pair) -> Both<'_> {
        let lab = &pair.lab;
        Both { lab, text: document(&lab.path("n1.sock"), &lab.path("pair.key")) }
    }

    fn start(&self, number: u8) -> Gateway {
        let (lab, node) = (self.lab, format!("n{number}"));
        let path = |kind: &str| lab.path(&format!("{node}.{kind}")).display().to_string();
        let options = format!("--node {node} --state {} --socket {}", path("state"), path("sock"));
        Gateway::start_on_with(lab, &node, |_| self.text.clone(), &options)
    }

    fn with_group(&self, name: &str) -> String {
        format!("{}[[group]]\nname = \"{name}\"\nmembers = [\"192.0.2.9\"]\n", self.text)
    }
}

fn meet(nodes: [&Gateway; 2]) {
    for node in nodes {
        wait_for("the other node is there", || pair_of(node)["is_there"] == true);
    }
}

fn current(gateway: &Gateway) -> u64 {
    gateway.show("revisions")["current"].as_u64().expect("a number")
}

fn has_group(gateway: &Gateway, name: &str) -> bool {
    let groups = gateway.show("groups");
    groups.as_array().expect("a list").iter().any(|group| group["name"] == name)
}

fn refused(answer: (std::process::ExitStatus, String)) -> String {
    let (status, said) = answer;
    assert!(!status.success(), "{said}");
    said
}

#[test]
fn a_commit_is_on_both_nodes_or_on_neither() {
    let Some(pair) = two_nodes("a_commit_is_on_both_nodes_or_on_neither") else { return };
    let both = Both::of(&pair);
    let lab = both.lab;
    let (first, second) = (both.start(1), both.start(2));
    meet([&first, &second]);
    let nodes = [&first, &second];

    let (status, said) = first.apply_with(lab, &both.with_group("more"), "--pair -m together");
    assert!(status.success() && said.contains("and on the other node, as its revision 2"), "{said}");
    for node in nodes {
        assert!(has_group(node, "more"));
        let told = node.show("revisions")["revisions"][0].clone();
        assert_eq!((&told["number"], &told["message"]), (&2.into(), &"together".into()), "{told:#}");
        assert!(told["taken_back_in_s"].is_null(), "{told:#}");
    }
    assert!(first.ask("show revisions").contains("on both nodes"));
    assert!(second.ask("show revisions").contains("by pair from n1"));
    // Each with what is its own.
    assert!(first.ask("show interfaces").contains("10.9.9.1/24"));
    assert!(!second.ask("show interfaces").contains("10.9.9.1/24"));

    // What does not hold on the other node is on neither.
    let only_here = format!(
        "{}[[assert]]\nname = \"beyond\"\npacket = \"tcp 10.8.1.10:4000 > 10.9.9.7:443\"\n\
         expect = {{ verdict = \"allow\" }}\n",
        both.with_group("other")
    );
    let said = refused(first.apply_with(lab, &only_here, "--pair"));
    assert!(said.contains("the other node refuses it") && said.contains("beyond"), "{said}");
    for node in nodes {
        assert_eq!((current(node), has_group(node, "other")), (2, false));
    }
    let (status, said) = first.apply_with(lab, &only_here, "--if-revision 2");
    assert!(status.success(), "alone it holds: {said}");
    let said = refused(first.client("add route 203.0.113.0/24 blackhole --pair"));
    assert!(said.contains("another one than here already, in assert, group"), "{said}");
    first.ask("rollback 2");

    // The other node is asked, with a single change.
    let said = second.ask("add route 203.0.113.0/24 blackhole --pair");
    assert!(said.contains("and on the other node"), "{said}");
    for node in nodes {
        assert!(node.ask("show routes 203.0.113.0/24").contains("blackhole"));
    }
    // Back again, and over what has come apart.
    let (status, said) = second.apply(lab, &both.with_group("alone"));
    assert!(status.success(), "{said}");
    assert!(refused(first.client("rollback 2 --pair")).contains("another one than here already"));
    let said = first.ask("rollback 2 --pair-force");
    assert!(said.contains("and on the other node"), "{said}");
    for node in nodes {
        assert_eq!((has_group(node, "alone"), has_group(node, "more")), (false, true));
        assert!(!node.client("show routes 203.0.113.0/24").1.contains("blackhole"));
        wait_for("the same on both", || pair_of(node)["differs"] == Value::Array(Vec::new()));
    }

    // Refused before anything is sent.
    let elsewhere = both.with_group("x").replacen("192.0.2.2:5405\"\nkey", "192.0.2.6:5405\"\nkey", 1);
    assert!(refused(first.apply_with(lab, &elsewhere, "--pair")).contains("both nodes speak by it"));
    let waits = first.ask("add route 203.0.113.0/24 blackhole --confirm 1h");
    assert!(waits.contains("unless you say: softgate confirm"), "{waits}");
    for node in nodes {
        let said = refused(node.client("add route 198.18.0.0/24 blackhole --pair"));
        assert!(said.contains("waits to be confirmed"), "{said}");
    }
    first.ask("confirm");
    second.stop();
    wait_for("the other is gone", || pair_of(&first)["is_there"] == false);
    let said = refused(first.apply_with(lab, &both.with_group("x"), "--pair"));
    assert!(said.contains("the other node is not there"), "{said}");
    first.stop();
}

/// Whoever dies, and whenever: both have the old config or both have the new one, and who was told of a success has it.
#[test]
fn a_node_that_dies_in_the_middle_leaves_both_alike() {
    let Some(pair) = two_nodes("a_node_that_dies_in_the_middle_leaves_both_alike") else { return };
    let both = Both::of(&pair);
    let lab = both.lab;
    let (mut first, mut second) = (both.start(1), both.start(2));
    meet([&first, &second]);
    const PUBLISHED: &str = "published, and kept if it is on both nodes";
    // Who dies, and whose publishing that follows; 0: nobody's.
    for (dies, follows) in [(2, 0), (2, 1), (2, 2), (1, 1), (1, 2)] {
        let group = format!("group-{dies}-{follows}");
        let count = |gateway: &Gateway| gateway.log().matches(PUBLISHED).count();
        let published = [0, count(&first), count(&second)][follows];
        let file = lab.path("next.toml");
        std::fs::write(&file, both.with_group(&group)).expect("a file");
        let command = format!(
            "{} apply --pair {} --socket {}",
            binary().display(),
            file.display(),
            first.socket().display()
        );
        let asks = lab.command("n1", &command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut asks = asks.expect("the client runs");
        // Or it has been refused at once, which is as good.
        let is_over = |asks: &mut std::process::Child| asks.try_wait().is_ok_and(|status| status.is_some());
        wait_for("it is published", || {
            follows == 0 || count([&first, &second][follows - 1]) > published || is_over(&mut asks)
        });
        match dies {
            1 => {
                first.kill();
                first = both.start(1);
            }
            _ => {
                second.kill();
                second = both.start(2);
            }
        }
        let answer = asks.wait_with_output().expect("it ends");
        let nodes = [&first, &second];
        wait_for("nothing waits, and both are alike", || {
            let waits =
                |node: &&Gateway| !node.show("revisions")["revisions"][0]["taken_back_in_s"].is_null();
            let [one, other] = nodes.map(|node| has_group(node, &group));
            one == other && !nodes.iter().any(waits)
        });
        if answer.status.success() {
            assert!(nodes.into_iter().all(|node| has_group(node, &group)), "{}", text(&answer));
        }
        meet(nodes);
    }
    let mut said = String::new();
    wait_for("all is over", || {
        let (status, answer) = second.apply_with(lab, &both.with_group("last"), "--pair");
        said = answer;
        status.success()
    });
    assert!([&first, &second].into_iter().all(|node| has_group(node, "last")), "{said}");
    first.stop();
    second.stop();
}

/// The one with the higher priority comes back, and the cable is cut: it lacks the other's sessions, and stands back.
#[test]
fn who_lacks_the_others_sessions_stands_back() {
    let Some(pair) = two_nodes("who_lacks_the_others_sessions_stands_back") else { return };
    let lab = &pair.lab;
    let key = lab.path("pair.key");
    let start = |number: u8| {
        let priority = [150, 100][usize::from(number) - 1];
        Gateway::start_on(lab, &format!("n{number}"), |socket| {
            let text = paired(socket, number, priority, &key);
            let tracks = "group = \"main\"\ntrack = [{ sync = true, weight = 60 }]\n";
            // Waiting for the sessions is left to the priority.
            text.replacen("group = \"main\"\n", tracks, 1) + "preempt_wait = \"10ms\"\n"
        })
    };
    let (first, second) = (start(1), start(2));
    becomes(&first, "active");
    becomes(&second, "backup");
    let priority = |gateway: &Gateway| gateway.show("ha")["routers"][0]["priority"].clone();
    wait_for("the second has all sessions", || priority(&second) == 100);
    // Cut: the Active stays as it was, the Backup goes down, and takes over all the same when it is alone.
    lab.must("n1", "ip link set pair down");
    wait_for("the second lacks them", || priority(&second) == 40);
    assert_eq!(priority(&first), 150);
    first.kill();
    becomes(&second, "active");
    wait_for("it is itself again", || priority(&second) == 100);
    let first = start(1);
    becomes(&first, "backup");
    assert_eq!(priority(&first), 90);
    becomes(&second, "active");
    lab.must("n1", "ip link set pair up");
    becomes(&first, "active");
    wait_for("it is itself again", || priority(&first) == 150);
    first.stop();
    second.stop();
}
