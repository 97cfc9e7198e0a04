//! What can be proven of a running gateway, beside what really happens on it.

use serde_json::Value;

use crate::gateway::{Gateway, binary};
use crate::lab::Lab;
use crate::sessions::{python, python_says, zoned};
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

/// Two connections that stay open until they are told otherwise.
const TWO: &str = "import socket, time
c = [socket.create_connection((address, 7000), 3) for address in ('198.51.100.1', '198.51.100.3')]
for each in c:
    each.sendall(b'x')
    each.recv(100)
print('ready')
time.sleep(600)
";

/// A server that answers to all there is.
pub const ANSWERS: &str = "import socket, threading
def serve(c):
    while c.recv(1000):
        c.sendall(b'y')
s = socket.create_server(('0.0.0.0', 7000))
print('ready')
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
";

/// What a preview says of live sessions is what a commit then does to them; to look takes and changes nothing.
#[test]
fn a_preview_says_what_a_commit_does_to_live_sessions() {
    let Some(lab) = Lab::up("a_preview_of_live_sessions", &[]) else { return };
    let config = zoned();
    let gateway = Gateway::start(&lab, &config);
    lab.must("net", "ip address add 198.51.100.3/24 dev eth0");
    let _server = python(&lab, "net", "answers.py", ANSWERS);
    let _client = python(&lab, "a", "two.py", TWO);
    let preview = |text: &str| -> Value {
        let file = lab.path("next.toml");
        std::fs::write(&file, text).expect("the config can be written");
        let said = gateway.ask(&format!("preview --json {}", file.display()));
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let fates = |previewed: &Value| -> Vec<(String, u64)> {
        let all = previewed["fates"].as_array().expect("a list").iter();
        let all = all.map(|of| (of["fate"].as_str().unwrap().to_owned(), of["sessions"].as_u64().unwrap()));
        all.filter(|(_, sessions)| *sessions > 0).collect()
    };
    let fate = |name: &str, sessions: u64| (name.to_owned(), sessions);
    let text = config.text(gateway.socket());
    let before = gateway.show("version")["generation"].clone();
    assert_eq!(fates(&preview(&text)), [fate("stays", 2)]);
    // A rule against one of them, before all others.
    let denied = format!(
        "{text}\n[[admin_rule]]\nname = \"not-there\"\naction = \"deny\"\nto = {{ prefix = \"198.51.100.3\" }}\n"
    );
    let previewed = preview(&denied);
    assert_eq!(fates(&previewed), [fate("dropped", 1), fate("stays", 1)]);
    let example = &previewed["examples"][0];
    assert_eq!(example["why"], "rule not-there refuses it");
    assert_eq!(example["session"]["destination"], "198.51.100.3");
    assert_eq!((&previewed["stage"], &previewed["next"]), (&"done".into(), &Value::Null));
    // Another pool: both keep what they have.
    let pool = preview(&text.replace("pool = [\"198.51.100.64/30\"]", "pool = [\"198.51.100.68/30\"]"));
    assert_eq!(fates(&pool), [fate("drains", 2)]);
    // No way there any more.
    let route = "\n[[route]]\nprefix = \"198.51.100.3/32\"\nblackhole = true\n";
    assert_eq!(fates(&preview(&format!("{text}{route}"))), [fate("dropped", 1), fate("stays", 1)]);
    // What is wrong says so, with exit code 1, and leaves no preview behind that others would wait for.
    std::fs::write(lab.path("wrong.toml"), "schema = 9\n").expect("the config can be written");
    let (status, said) = gateway.client(&format!("preview {}", lab.path("wrong.toml").display()));
    assert_eq!((status.code(), said.contains("schema")), (Some(1), true), "{said}");
    assert_eq!(gateway.show("version")["generation"], before);
    // And it comes.
    let (status, said) = gateway.apply_with(&lab, &denied, "--wait converged");
    assert!(status.success() && said.contains(" 1 end"), "{said}");
    assert_eq!(fates(&preview(&denied)), [fate("stays", 1), fate("ending", 1)]);
}

/// What was in force then decides what `explain --revision` says, whatever is in force now.
#[test]
fn a_packet_is_explained_by_an_old_revision() {
    let Some(lab) = Lab::up("explained_by_an_old_revision", &[]) else { return };
    let state = lab.path("state");
    let options = format!("--state {}", state.display());
    let gateway = Gateway::start_binary(&lab, &zoned(), &binary(), &options);
    let current = gateway.show("version")["generation"].clone();
    let first = gateway.show("revisions")["current"].as_u64().expect("a number");
    gateway.ask("del rule inside-out");
    assert_ne!(gateway.show("version")["generation"], current);
    let packet = "tcp 10.0.1.10 to 198.51.100.1:443 from tenant-a";
    assert_eq!(explained(&gateway, packet)["reason"], "firewall-deny");
    let then = explained(&gateway, &format!("--revision {first} {packet}"));
    assert!(steps(&then).contains(&String::from("rule inside-out")), "{then:#}");
    assert!(then["reason"].is_null(), "{then:#}");
    let (status, said) = gateway.client(&format!("explain --revision 99 {packet}"));
    assert!(!status.success() && said.contains("99"), "{said}");
}
