//! Commits that do harm, under traffic.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::gateway::{Config, Gateway, binary};
use crate::lab::Lab;
use crate::{CLIENT_A, NET};

#[test]
fn a_commit_that_drops_traffic_is_taken_back_before_its_time() {
    let Some(lab) = Lab::alone("a_commit_that_drops_traffic_is_taken_back_before_its_time", &[]) else {
        return;
    };
    let config = Config::default().with("[commit]\nmore_drops_pps = 20\n");
    let state = lab.path("state");
    let gateway = Gateway::start_binary(&lab, &config, &binary(), &format!("--state {}", state.display()));
    lab.ping("a", NET[0], "");
    let mut pings = lab
        .command("a", &format!("ping -n -q -i 0.01 -I {} {}", CLIENT_A[0], NET[0]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ping starts");
    // What is dropped anyway is no harm: it waits for its hour.
    gateway.ask("add route 203.0.113.0/24 blackhole --confirm 1h");
    gateway.ask("confirm");
    // Longer than its network's, so that it comes first.
    let said = gateway.ask(&format!("add route {}/32 blackhole --confirm 1h -m wrong", NET[0]));
    assert!(said.contains("revision 3") && said.contains("unless you say: softgate confirm"), "{said}");
    let begun = Instant::now();
    let last = loop {
        let revisions = gateway.show("revisions");
        if revisions["current"] == 4 {
            break revisions["revisions"][0].clone();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not taken back: {revisions:#}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let why = last["message"].as_str().unwrap_or_default();
    assert!(
        why.starts_with("revision 3 is taken back: ") && why.contains(" drops a second, against "),
        "{why}"
    );
    lab.ping("a", NET[0], "");
    pings.kill().expect("our own child");
    pings.wait().expect("our own child");
    assert!(gateway.ask("show routes 203.0.113.0/24").contains("blackhole"), "what was before it stays");
}
