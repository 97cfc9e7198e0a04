//! What can be proven of a running gateway, beside what really happens on it.

use serde_json::Value;

use crate::gateway::Gateway;
use crate::lab::Lab;
use crate::sessions::{python_says, zoned};
use crate::{CLIENT_A, NET};

fn explained(gateway: &Gateway, packet: &str) -> Value {
    let said = gateway.ask(&format!("explain --json {packet}"));
    let told: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    told["packets"][0].clone()
}

fn steps(told: &Value) -> Vec<String> {
    let steps = told["steps"].as_array().expect("a list");
    let of =
        |step: &Value| format!("{} {}", step["step"].as_str().unwrap(), step["name"].as_str().unwrap_or("-"));
    steps.iter().map(of).collect()
}

/// One datagram from a port that the test knows.
const ONE: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('10.0.1.10', 5555))
s.sendto(b'one', ('198.51.100.1', 7000))
print('sent')
";

#[test]
fn explain_says_what_the_gateway_does_and_changes_nothing() {
    let Some(lab) = Lab::up("explain_says_what_the_gateway_does", &[]) else { return };
    let gateway = Gateway::start(&lab, &zoned());
    let packet = "udp 10.0.1.10:5555 to 198.51.100.1:7000 from tenant-a";
    // What a host sends of its own accord, like multicast, may be lost at any time.
    let drops = || {
        gateway.drops().into_iter().filter(|(reason, _)| reason != "multicast-not-routed").collect::<Vec<_>>()
    };
    let (before, lost) = (gateway.show("nat"), drops());
    let told = explained(&gateway, packet);
    assert!(steps(&told).contains(&"source-nat source/internet".to_owned()), "{told:#}");
    assert!(told["session"].is_null(), "{told:#}");
    assert_eq!(gateway.show("nat"), before, "no port was taken");
    assert_eq!(drops(), lost);
    lab.ping("a", NET[0], "");
    // Now there is one, the neighbour is known, and its mapping answers to whoever sends.
    assert_eq!(python_says(&lab, "a", ONE).trim_end(), "sent");
    let told = explained(&gateway, packet);
    assert_eq!(told["outcome"], "forwarded", "{told:#}");
    let session = &told["session"];
    assert_eq!(
        (session["rule"].as_str(), session["source"].as_str()),
        (Some("inside-out"), Some(CLIENT_A[0]))
    );
    let (address, port) =
        (session["new_source"].as_str().unwrap(), session["new_source_port"].as_u64().unwrap());
    let answer = explained(&gateway, &format!("udp 198.51.100.1:7000 to {address}:{port} from outside"));
    assert!(steps(&answer).contains(&"mapping -".to_owned()), "{answer:#}");
    assert_eq!(
        (answer["outcome"].as_str(), answer["session"]["rule"].as_str()),
        (Some("forwarded"), Some("inside-out"))
    );
    let telnet = explained(&gateway, "tcp 10.0.1.10 to 10.0.2.10:23 from tenant-a");
    assert_eq!(telnet["reason"], "firewall-reject");
    assert!(telnet["suggestions"][0].as_str().unwrap().contains("rule no-telnet refuses it"), "{telnet:#}");
    let (status, said) = gateway.client("explain udp 10.0.1.10 to 198.51.100.1:9 from nowhere");
    assert!(!status.success() && said.contains("no interface nowhere"), "{said}");
}

#[test]
fn assertions_refuse_commits_before_a_packet_meets_them() {
    let Some(lab) = Lab::up("assertions_refuse_commits", &[]) else { return };
    let assertions = "[[assert]]\nname = \"no telnet\"\npacket = \"tcp 10.0.1.10 > 10.0.2.10:23 from tenant-a\"\n\
                      expect = { verdict = \"reject\", rule = \"no-telnet\" }\n\
                      [[assert]]\nname = \"the internet\"\npacket = \"tcp 10.0.1.10 > 198.51.100.1:443 from tenant-a\"\n\
                      expect = { snat = \"198.51.100.64/30\", egress = \"outside\" }\n";
    let config = zoned().with(assertions);
    let gateway = Gateway::start(&lab, &config);
    lab.ping("a", NET[0], "");
    let before = gateway.show("rules");
    let (status, said) = gateway.client("del rule no-telnet");
    assert!(!status.success() && said.contains("assert \"no telnet\" does not hold"), "{said}");
    assert!(said.contains("no rule allows it from inside to servers"), "{said}");
    let (status, said) = gateway.client("add route 198.51.100.1/32 blackhole");
    assert!(!status.success() && said.contains("assert \"the internet\" does not hold"), "{said}");
    let names = |rules: &Value| -> Vec<Value> {
        rules["rules"].as_array().unwrap().iter().map(|rule| rule["name"].clone()).collect()
    };
    assert_eq!(names(&gateway.show("rules")), names(&before));
    lab.ping("a", NET[0], "");
    assert_eq!(
        explained(&gateway, "tcp 10.0.1.10 to 10.0.2.10:23 from tenant-a")["reason"],
        "firewall-reject"
    );
    // The whole config is refused as well, and what is good is taken.
    let text = config.text(gateway.socket());
    // The pool, and not what is asserted of it.
    let (status, said) =
        gateway.apply(&lab, &text.replace("pool = [\"198.51.100.64/30\"]", "pool = [\"198.51.100.68/30\"]"));
    assert!(!status.success() && said.contains("does not hold"), "{said}");
    lab.ping("a", NET[0], "");
    gateway.ask("add route 192.0.2.0/24 blackhole");
    gateway.ask("del route 192.0.2.0/24");
    lab.ping("a", NET[0], "");
}
