//! Explained, asserted and solved as operators write it.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::control::ReachQuery;
use crate::replay;
use crate::tables::compile::Compiler;

const GATEWAY: &str = r#"
schema = 1
[[port]]
name = "lan"
device = "lan"
[[port]]
name = "wan"
device = "wan"
[[interface]]
name = "lan"
port = "lan"
zone = "inside"
addresses = ["192.0.2.1/24", "2001:db8:1::1/64"]
source_check = "strict"
[[interface]]
name = "wan"
port = "wan"
vlan = 100
zone = "outside"
mtu = 1400
addresses = ["198.51.100.1/24"]
[[neighbour]]
interface = "wan"
address = "198.51.100.254"
mac = "02:00:00:00:02:fe"
[[neighbour]]
interface = "lan"
address = "192.0.2.9"
mac = "02:00:00:00:01:09"
[[route]]
prefix = "0.0.0.0/0"
via = ["198.51.100.254"]
[[rule]]
name = "no-mail"
action = "reject"
from = { zone = "inside" }
service = "tcp/25"
[[rule]]
name = "out"
action = "allow"
from = { zone = "inside" }
to = { zone = "outside" }
[[rule]]
name = "web"
action = "allow"
from = { zone = "outside" }
to = { zone = "inside", prefix = "192.0.2.9" }
service = "tcp/8443"
[[nat.source]]
name = "internet"
from = { zone = "inside" }
to = { zone = "outside" }
pool = ["203.0.113.0/30"]
[[nat.destination]]
name = "www"
address = "203.0.113.9"
service = "tcp/443"
target = "192.0.2.9:8443"
"#;

pub(super) fn compiled(text: &str) -> (Config, Compiler) {
    let config = Config::parse(text, "gw.toml").unwrap_or_else(|errors| panic!("{errors}"));
    let compiler = replay::compile_tables(&config, 64).expect("tables");
    (config, compiler)
}

pub(super) fn told(text: &str, packet: &str) -> Explanation {
    let (config, compiler) = compiled(text);
    let mut explainer = Explainer::new(View::new(&compiler, &config), START, false).expect("memory");
    explainer.text(&packet.parse().expect("a packet"), |_| Live::default()).expect("explained")
}

/// Steps as `step name`.
fn steps(told: &Explanation) -> Vec<String> {
    told.steps.iter().map(|step| format!("{} {}", step.step, step.name.as_deref().unwrap_or("-"))).collect()
}

#[test]
fn a_packet_out_names_what_took_it() {
    let told = told(GATEWAY, "tcp 192.0.2.5:40000 > 8.8.8.8:443 from lan");
    assert_eq!(told.outcome, Outcome::Forwarded);
    let wanted = [
        "ingress lan",
        "source lan",
        "route 0.0.0.0/0",
        "rule out",
        "source-nat source/internet",
        "session -",
    ];
    assert_eq!(steps(&told), wanted);
    let [sent] = &told.sent[..] else { panic!("{:?}", told.sent) };
    assert_eq!(sent.port, "wan");
    // The neighbour's MAC address, ours, the tag; the rest is the pipeline's, which golden cases hold to the byte.
    assert!(sent.hex.starts_with("0200000002fe0253470000018100006408004500"), "{}", sent.hex);
    assert!(
        sent.decoded.contains("vlan 100, 203.0.113.") && sent.decoded.contains("ttl 63"),
        "{}",
        sent.decoded
    );
    assert!(told.suggestions.is_empty() && told.remarks.is_empty(), "{told:?}");
}

#[test]
fn destination_nat_is_named_with_what_it_leads_to() {
    let told = told(GATEWAY, "tcp 8.8.8.8 > 203.0.113.9:443 from wan");
    assert_eq!(told.outcome, Outcome::Forwarded);
    let wanted =
        ["ingress wan", "destination-nat destination/www", "route 192.0.2.0/24", "rule web", "session -"];
    assert_eq!(steps(&told), wanted);
    assert!(told.sent[0].decoded.contains("8.8.8.8 > 192.0.2.9 ttl 63, tcp 49152 > 8443 [syn]"), "{told:?}");
}

#[test]
fn a_drop_says_what_would_let_it_pass() {
    for (packet, reason, wanted) in [
        (
            "tcp 8.8.8.8 > 192.0.2.9:22 from wan",
            "firewall-deny",
            "no rule allows outside > inside: softgate add rule",
        ),
        ("tcp 192.0.2.5 > 8.8.8.8:25 from lan", "firewall-reject", "rule no-mail refuses it"),
        ("udp 192.0.3.5 > 8.8.8.8:53 from lan", "source-check", "was expected from wan"),
        (
            "udp 2001:db8:1::5 > [2001:db8:9::1]:53 from lan",
            "no-route",
            "softgate add route 2001:db8:9::1/128",
        ),
        ("udp 8.8.8.8 > 203.0.113.1:53 from wan", "nat-no-mapping", "[[nat.destination]]"),
        ("udp 192.0.2.5 > 8.8.8.8:53 from lan ttl 1", "ttl-expired", "loop"),
        ("udp 192.0.2.5 > 8.8.8.8:53 from lan length 1450", "fragmentation-needed", "mtu = 1400 of wan"),
        ("tcp 192.0.2.5 > 8.8.8.8:80 from lan flags ack", "tcp-no-session", "loose_tcp"),
    ] {
        let told = told(GATEWAY, packet);
        assert_eq!((told.outcome, told.reason.as_deref()), (Outcome::Dropped, Some(reason)), "{packet}");
        assert!(told.suggestions.iter().any(|one| one.contains(wanted)), "{packet}: {:?}", told.suggestions);
    }
}

/// What is suggested for a denied packet is what lets it pass.
#[test]
fn the_suggested_rule_lets_it_pass() {
    let packet = "tcp 8.8.8.8:40000 > 192.0.2.9:22 from wan";
    let suggestion = told(GATEWAY, packet).suggestions.remove(0);
    let rule = suggestion.split('\'').nth(1).expect("a rule in quotes").replace("NAME", "suggested");
    let lines: String =
        rule.split("\", ").map(|part| part.trim_end_matches('"').to_owned() + "\"\n").collect();
    let lines =
        lines.replace(" }\"", " }").replace("from = { zone = \"outside\"\n", "from = { zone = \"outside\", ");
    let lines = lines.replace("to = { zone = \"inside\"\n", "to = { zone = \"inside\", ");
    let lines = lines.replace("prefix = \"8.8.8.8\" }, to", "prefix = \"8.8.8.8\" }\nto");
    let lines = lines.replace("}, service", "}\nservice");
    let told = told(&format!("{GATEWAY}\n[[rule]]\n{lines}"), packet);
    assert_eq!(told.outcome, Outcome::Forwarded, "{lines}");
    assert!(steps(&told).contains(&"rule suggested".to_owned()));
}

#[test]
fn packets_to_the_gateway_are_its_own() {
    let ping = told(GATEWAY, "icmp/echo-request 192.0.2.9 > 192.0.2.1");
    assert_eq!(ping.outcome, Outcome::Local);
    assert!(ping.sent[0].decoded.contains("icmp type 0"), "{:?}", ping.sent);
    assert!(ping.remarks[0].contains("nobody said where it comes in"), "{:?}", ping.remarks);
    let ssh = told(GATEWAY, "tcp 192.0.2.9 > 192.0.2.1:22 from lan");
    assert_eq!((ssh.outcome, ssh.reason.as_deref()), (Outcome::Dropped, Some("firewall-deny")));
}

#[test]
fn replies_pass_behind_the_packet_that_they_answer() {
    let (config, compiler) = compiled(GATEWAY);
    let view = View::new(&compiler, &config);
    let mut explainer = Explainer::new(view, START, false).expect("memory");
    let mut ask = |packet: &str| {
        let packet = packet.parse().expect("a packet");
        explainer.text(&packet, |_| Live::default()).expect("explained")
    };
    let first = ask("udp 192.0.2.9:5000 > 8.8.8.8:53 from lan");
    let outside = first.sent[0].decoded.split("udp ").nth(1).and_then(|rest| rest.split(' ').next());
    let address = first.sent[0].decoded.split("vlan 100, ").nth(1).and_then(|rest| rest.split(' ').next());
    let (address, port) = (address.expect("an address"), outside.expect("a port"));
    let reply = ask(&format!("udp 8.8.8.8:53 > {address}:{port} from wan"));
    assert_eq!(reply.outcome, Outcome::Forwarded, "{reply:?}");
    assert!(reply.sent[0].decoded.contains("> 192.0.2.9 ttl 63, udp 53 > 5000"), "{:?}", reply.sent);
}

/// A dry run leaves no trace in what it was made from.
#[test]
fn nothing_is_taken_from_the_tables_it_asks() {
    let (config, compiler) = compiled(GATEWAY);
    let neighbours = compiler.neighbours().entries().len();
    let pool = &compiler.tables().policy.pools[0];
    let given = pool.blocks(&compiler.claims).given;
    let view = View::new(&compiler, &config);
    let mut explainer = Explainer::new(view, START, true).expect("memory");
    let told = explainer
        .text(&"udp 192.0.2.77 > 198.51.100.77:53 from lan".parse().expect("a packet"), |_| Live::default());
    let told = told.expect("explained");
    assert_eq!(told.outcome, Outcome::Waits);
    assert!(told.sent.iter().any(|frame| frame.decoded.contains("who has 198.51.100.77")), "{:?}", told.sent);
    assert!(told.sent.iter().any(|frame| frame.decoded.contains("udp ")), "{:?}", told.sent);
    assert_eq!(compiler.neighbours().entries().len(), neighbours);
    assert_eq!(pool.blocks(&compiler.claims).given, given);
}

#[test]
fn frames_that_are_nothing_are_explained_too() {
    let (config, compiler) = compiled(GATEWAY);
    let mut explainer = Explainer::new(View::new(&compiler, &config), START, false).expect("memory");
    for (hex, wanted) in [
        ("00", "14 to 9216"),
        ("0253470000000200000000010800", "truncated"),
        ("02534700000002000000000181000fff0800", "unknown-vlan"),
        ("0211111111110200000000010800", "not-for-us"),
    ] {
        let bytes = from_hex(hex).expect("hex digits");
        let told = explainer.frame_on("lan", &bytes, |_| Live::default());
        let says = told.map_or_else(|error| error, |told| told.reason.unwrap_or_default());
        assert!(says.contains(wanted), "{hex}: {says}");
    }
    assert!(explainer.frame_on("dmz", &[0; 60], |_| Live::default()).is_err_and(|e| e.contains("lan, wan")));
    assert!(from_hex("0").is_err() && from_hex("0g").is_err() && from_hex("").is_err());
}

fn failures(more: &str) -> Vec<String> {
    let (config, compiler) = compiled(&format!("{GATEWAY}{more}"));
    assert::check(View::new(&compiler, &config)).iter().map(assert::Failed::text).collect()
}

#[test]
fn assertions_that_hold_say_nothing() {
    let none = failures(
        r#"
[[assert]]
name = "out through the pool"
packet = "tcp 192.0.2.5 > 8.8.8.8:443"
interface = "lan"
expect = { snat = "203.0.113.0/30", egress = "wan", rule = "out", zone = "outside" }
[[assert]]
name = "no mail"
packet = "tcp 192.0.2.5 > 8.8.8.8:25 from lan"
expect = { verdict = "reject", rule = "no-mail" }
[[assert]]
name = "no ssh from outside"
packet = "tcp 8.8.8.8 > 192.0.2.9:22 from wan"
expect = { verdict = "deny" }
[[assert]]
name = "the web server is published"
packet = "tcp 8.8.8.8 > 203.0.113.9:443 from wan"
expect = { dnat = "192.0.2.9:8443", snat = "none", egress = "lan" }
[[assert]]
name = "ping"
packet = "icmp/echo-request 192.0.2.5 > 192.0.2.1 from lan"
expect = { zone = "self" }
[[assert]]
name = "clients reach names"
reach = { from = "zone inside 192.0.2.0/24", to = "8.8.8.8 udp/53" }
[[assert]]
name = "nobody outside reaches ssh"
reach = { from = "zone outside", to = "192.0.2.0/24 tcp/22" }
expect = { verdict = "deny" }
"#,
    );
    assert_eq!(none, Vec::<String>::new());
}

#[test]
fn assertions_that_do_not_hold_say_why() {
    for (assertion, wanted) in [
        (
            r#"packet = "tcp 192.0.2.5 > 8.8.8.8:25 from lan""#,
            "expected allow, it is reject (firewall-reject)",
        ),
        (
            "packet = \"tcp 8.8.8.8 > 203.0.113.9:443 from wan\"\nexpect = { verdict = \"deny\" }",
            "expected deny, it is allow",
        ),
        (
            "packet = \"udp 192.0.2.5 > 8.8.8.8:53 from lan\"\nexpect = { snat = \"203.0.113.0/31\" }",
            "expected snat 203.0.113.0/31, it is 203.0.113.0-203.0.113.3",
        ),
        (
            "packet = \"udp 192.0.2.5 > 8.8.8.8:53 from lan\"\nexpect = { egress = \"lan\" }",
            "expected egress lan, it is wan",
        ),
        (
            "packet = \"tcp 8.8.8.8 > 203.0.113.9:443 from wan\"\nexpect = { dnat = \"192.0.2.9:443\" }",
            "expected dnat 192.0.2.9:443, it is 192.0.2.9:8443",
        ),
        ("isolated = [\"inside\", \"outside\"]", "a packet passes from inside to outside"),
        (
            "reach = { from = \"zone outside\", to = \"203.0.113.9 tcp/443\" }\nexpect = { verdict = \"deny\" }",
            "reaches 203.0.113.9 tcp/443: tcp ",
        ),
        (
            "reach = { from = \"zone outside\", to = \"192.0.2.7\" }",
            "nobody of zone outside reaches 192.0.2.7",
        ),
    ] {
        let failed = failures(&format!("\n[[assert]]\nname = \"it\"\n{assertion}\n"));
        assert!(failed.len() == 1 && failed[0].contains(wanted), "{assertion}: {failed:?}");
    }
}

#[test]
fn zones_without_a_rule_between_them_are_isolated() {
    let apart = GATEWAY.replace("name = \"out\"\naction = \"allow\"", "name = \"out\"\naction = \"deny\"");
    let assertion = "\n[[assert]]\nname = \"apart\"\nisolated = [\"inside\", \"outside\"]\n";
    let failed = |text: &str| {
        let (config, compiler) = compiled(&format!("{text}{assertion}"));
        assert::check(View::new(&compiler, &config))
    };
    // By the published server alone, and only in one direction.
    let one = failed(&apart);
    assert_eq!(one[0].why.len(), 1, "{one:?}");
    assert!(one[0].why[0].contains("from outside to inside"), "{one:?}");
    let closed = apart.replace("name = \"web\"\naction = \"allow\"", "name = \"web\"\naction = \"deny\"");
    assert_eq!(failed(&closed), []);
    // An allowing rule that another before it takes everything from lets nothing through.
    let shadowed = GATEWAY.replace(
        "[[rule]]\nname = \"no-mail\"",
        "[[rule]]\nname = \"first\"\naction = \"deny\"\n[[rule]]\nname = \"no-mail\"",
    );
    assert_eq!(failed(&shadowed), []);
}

#[test]
fn a_thousand_assertions_are_asked_of_one_compilation() {
    let mut text = String::new();
    for n in 0..1000 {
        text.push_str(&format!(
            "\n[[assert]]\nname = \"{n}\"\npacket = \"tcp 192.0.2.5 > 8.8.{}.{}:443 from lan\"\n\
             expect = {{ snat = \"203.0.113.0/30\", egress = \"wan\" }}\n",
            n / 256,
            n % 256
        ));
    }
    assert_eq!(failures(&text), Vec::<String>::new());
}

#[test]
fn what_is_odd_is_found_with_its_key() {
    let odd = r#"
[[group]]
name = "nobody"
members = ["192.0.2.77"]
[[rule]]
name = "late"
action = "allow"
from = { zone = "inside", prefix = "192.0.2.5" }
to = { zone = "outside" }
[[vrf]]
name = "empty"
[[service]]
name = "idle"
address = "203.0.113.20"
service = "tcp/80"
backends = [{ address = "192.0.2.30", weight = 0 }]
"#;
    let (config, compiler) = compiled(&format!("{GATEWAY}{odd}"));
    let found = lint::lint(View::new(&compiler, &config), false);
    for (key, wanted) in [
        ("group[0]", "nobody names group nobody"),
        ("rule[3]", "rule late never decides: out, before it"),
        ("vrf[0]", "no interface is in VRF empty"),
        ("service[0]", "no backend of service idle takes flows"),
    ] {
        assert!(found.iter().any(|one| one.key == key && one.says.contains(wanted)), "{key}: {found:?}");
    }
    assert_eq!(found.len(), 4, "{found:?}");
    let (config, compiler) = compiled(GATEWAY);
    assert_eq!(lint::lint(View::new(&compiler, &config), false), []);
}

pub(super) fn reached(text: &str, from: &str, to: &str) -> crate::control::Reached {
    let (config, compiler) = compiled(text);
    let query =
        ReachQuery { from: from.parse().expect("hosts"), to: to.parse().expect("what"), spoofed: false };
    reach::reach(View::new(&compiler, &config), &query, reach::MOST).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn who_reaches_what_comes_with_a_packet_that_passes() {
    let found = reached(GATEWAY, "any", "203.0.113.9 tcp/443");
    let of = |interface: &str| found.from.iter().find(|one| one.interface == interface);
    let outside = of("wan").expect("the internet reaches the web server");
    assert!(outside.some.is_empty() && outside.all.contains(&"8.0.0.0/5".to_owned()), "{outside:?}");
    // Within a zone it needs no rule: by way of the outside address as well.
    let inside = of("lan").expect("so do its neighbours");
    assert!(inside.all.contains(&"192.0.2.128/26".to_owned()), "{inside:?}");
    assert_eq!(told(GATEWAY, &outside.witness).outcome, Outcome::Forwarded);
    let found = reached(GATEWAY, "zone inside", "zone outside");
    assert_eq!(found.from[0].all, Vec::<String>::new(), "mail is rejected");
    assert!(!found.from[0].some.is_empty());
    assert!(reached(GATEWAY, "zone outside", "zone inside tcp/22").from.is_empty());
    let (config, compiler) = compiled(GATEWAY);
    let ask = |from: &str, most| {
        let query = ReachQuery {
            from: from.parse().expect("hosts"),
            to: "zone outside".parse().expect("what"),
            spoofed: true,
        };
        reach::reach(View::new(&compiler, &config), &query, most).map(|_| ())
    };
    assert!(matches!(ask("any", 10), Err(reach::NoAnswer::TooMany { .. })));
    assert!(matches!(ask("zone self", 10), Err(reach::NoAnswer::FromSelf)));
    assert!(matches!(ask("zone dmz", 10), Err(reach::NoAnswer::Unknown { .. })));
}

#[test]
fn hosts_behind_several_gateways_come_in_by_each() {
    let text = format!(
        "{SMALL}[[port]]\nname = \"c\"\ndevice = \"c\"\n\
         [[interface]]\nname = \"c\"\nport = \"c\"\nzone = \"a\"\naddresses = [\"203.0.113.1/24\"]\n\
         [[route]]\nprefix = \"10.0.0.0/8\"\nvia = [\"192.0.2.9\", \"203.0.113.9\"]\n\
         [[rule]]\nname = \"r\"\naction = \"allow\"\nfrom = {{ zone = \"a\" }}\nto = {{ zone = \"b\" }}\n"
    );
    let found = reached(&text, "zone a 10.0.0.0/8", "198.51.100.9 tcp/80");
    let by: Vec<&str> = found.from.iter().map(|one| one.interface.as_str()).collect();
    assert_eq!(by, ["a", "c"]);
}

/// Rules over sixteen hosts and a few ports.
fn rules() -> impl Strategy<Value = String> {
    let net = (0..16u8, 28..=32u8).prop_map(|(host, len)| {
        let base = u32::from(Ipv4Addr::new(192, 0, 2, 16 + host)) & (u32::MAX << (32 - len));
        format!("{}/{len}", Ipv4Addr::from(base))
    });
    let port = prop_oneof![
        Just(String::new()),
        (1..6u8, 0..3u8)
            .prop_map(|(first, more)| { format!("service = \"tcp/{first}-{}\"\n", first + more) })
    ];
    let rule = (any::<bool>(), net, port, any::<bool>());
    proptest::collection::vec(rule, 0..6).prop_map(|rules| {
        let mut text = String::new();
        for (number, (allows, net, port, dscp)) in rules.into_iter().enumerate() {
            let action = if allows { "allow" } else { "deny" };
            let dscp = if dscp { "dscp = \"ef\"\n" } else { "" };
            text.push_str(&format!(
                "[[rule]]\nname = \"r{number}\"\naction = \"{action}\"\nfrom = {{ zone = \"a\", prefix = \"{net}\" }}\n\
                 to = {{ zone = \"b\" }}\n{port}{dscp}"
            ));
        }
        text
    })
}

const SMALL: &str = "schema = 1\n[[port]]\nname = \"a\"\ndevice = \"a\"\n[[port]]\nname = \"b\"\ndevice = \"b\"\n\
    [[interface]]\nname = \"a\"\nport = \"a\"\nzone = \"a\"\naddresses = [\"192.0.2.1/24\"]\n\
    [[interface]]\nname = \"b\"\nport = \"b\"\nzone = \"b\"\naddresses = [\"198.51.100.1/24\"]\n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The twin asks about every host, every port that rules tell apart and every DSCP.
    #[test]
    fn who_reaches_something_is_who_a_packet_of_passes(rules in rules()) {
        let (config, compiler) = compiled(&format!("{SMALL}{rules}"));
        let view = View::new(&compiler, &config);
        let query = ReachQuery {
            from: "zone a 192.0.2.16/28".parse().expect("hosts"),
            to: "198.51.100.9 tcp".parse().expect("what"),
            spoofed: false,
        };
        let found = reach::reach(view, &query, reach::MOST).expect("an answer");
        let holds = |prefixes: &[String], addr: Ipv4Addr| {
            prefixes.iter().any(|net| net.parse::<ipnet::IpNet>().expect("a prefix").contains(&IpAddr::V4(addr)))
        };
        for host in 16..32 {
            let src = Ipv4Addr::new(192, 0, 2, host);
            let mut passes = Vec::new();
            for (dst_port, dscp) in (0..10u16).flat_map(|port| (0..64u8).map(move |dscp| (port, dscp))) {
                let question = Question {
                    vrf: 0,
                    ingress: compiler.interfaces.get("a").expect("a slot"),
                    src: src.into(),
                    dst: Ipv4Addr::new(198, 51, 100, 9).into(),
                    protocol: protocol::TCP,
                    src_port: 50_000,
                    dst_port,
                    dscp,
                    tcp_flags: 2,
                    icmp_type: 0,
                };
                let decision = pipeline::decide(compiler.tables(), &question, None, None);
                passes.push(matches!(decision, Decision::Session(_)));
            }
            let all = found.from.iter().any(|one| holds(&one.all, src));
            let some = found.from.iter().any(|one| holds(&one.some, src));
            prop_assert_eq!(all, passes.iter().all(|passes| *passes), "{}", src);
            let is_some = passes.iter().any(|passes| *passes) && !passes.iter().all(|passes| *passes);
            prop_assert_eq!(some, is_some, "{}", src);
        }
        for one in &found.from {
            let packet = one.witness.parse().expect("a packet");
            let mut explainer = Explainer::new(view, START, false).expect("memory");
            let told = explainer.text(&packet, |_| Live::default()).expect("explained");
            prop_assert_eq!(told.outcome, Outcome::Forwarded, "{}", one.witness);
        }
    }

    /// Whatever comes over the socket: an answer or an error, and no frame is lost track of.
    #[test]
    fn any_frame_is_explained(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..20),
        kinds in proptest::collection::vec(0..4usize, 20),
    ) {
        let (config, compiler) = compiled(GATEWAY);
        let mut explainer = Explainer::new(View::new(&compiler, &config), START, true).expect("memory");
        let (mac, tag) = (&[2, 0x53, 0x47, 0, 0, 0, 2, 0, 0, 0, 0, 1][..], &[0x81, 0, 0, 100][..]);
        for (bytes, kind) in frames.iter().zip(kinds) {
            let (port, head) = match kind {
                0 => ("lan", [mac, &[8, 0, 0x45, 0]].concat()),
                1 => ("lan", [mac, &[0x86, 0xdd, 0x60, 0]].concat()),
                2 => ("wan", [&mac[..5], &[1], &mac[6..], tag, &[8, 0, 0x45, 0]].concat()),
                _ => ("wan", Vec::new()),
            };
            let frame = [&head, &bytes[..]].concat();
            let told = explainer.frame_on(port, &frame, |_| Live::default());
            prop_assert!(told.is_ok() || frame.len() < 14, "{told:?}");
        }
    }
}
