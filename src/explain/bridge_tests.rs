//! Between members of a bridge, as operators write it: explained, asserted and solved.

use proptest::prelude::*;

use super::tests::{compiled, reached, told};
use super::*;
use crate::control::ReachQuery;

/// A segment with a web server's side, a database's side and the gateway on it, and the network `b` beyond the gateway.
const SEGMENT: &str = "schema = 1\n[[port]]\nname = \"b\"\ndevice = \"b\"\n[[port]]\nname = \"c\"\ndevice = \"c\"\n\
    [[port]]\nname = \"d\"\ndevice = \"d\"\n\
    [[bridge]]\nname = \"seg\"\nmembers = [{ port = \"c\", vlan = 7, zone = \"web\" }, { port = \"d\", zone = \"db\" }]\n\
    [[interface]]\nname = \"gw\"\nbridge = \"seg\"\nzone = \"in\"\naddresses = [\"192.0.2.1/24\"]\n\
    [[interface]]\nname = \"b\"\nport = \"b\"\nzone = \"b\"\naddresses = [\"198.51.100.1/24\"]\n\
    [[rule]]\nname = \"sql\"\naction = \"allow\"\nfrom = { zone = \"web\" }\nto = { zone = \"db\", prefix = \"192.0.2.9\" }\n\
    service = \"tcp/5432\"\n";

/// Whether assertions hold, each with what is said if it does not.
fn asserted(text: &str, asserts: &[&str]) -> Vec<Option<String>> {
    let list: String = (0..)
        .zip(asserts)
        .map(|(n, says): (u32, _)| format!("[[assert]]\nname = \"{n}\"\n{says}\n"))
        .collect();
    let (config, compiler) = compiled(&format!("{text}{list}"));
    let failed = assert::check(View::new(&compiler, &config));
    let why = |index| failed.iter().find(|one| one.index == index).map(assert::Failed::text);
    (0..asserts.len()).map(why).collect()
}

#[test]
fn packets_between_members_of_a_bridge_are_explained() {
    let explain = |packet: &str| told(SEGMENT, packet);
    let steps = |told: &Explanation| -> Vec<String> {
        told.steps
            .iter()
            .map(|step| format!("{} {}", step.step, step.name.as_deref().unwrap_or("-")))
            .collect()
    };
    let sql = explain("tcp 192.0.2.8:40000 > 192.0.2.9:5432 from seg/c.7 to seg/d");
    assert_eq!(steps(&sql), ["ingress seg/c.7", "bridge bridge seg", "rule sql", "session -"]);
    assert_eq!((sql.outcome, sql.sent.len(), sql.sent[0].port.as_str()), (Outcome::Forwarded, 1, "d"));
    assert!(sql.remarks[0].contains("02:00:00:00:00:02, is taken to be behind seg/d"), "{:?}", sql.remarks);
    // As it came, but for the tag: no hop, no other address.
    assert!(sql.sent[0].decoded.contains("192.0.2.8 > 192.0.2.9 ttl 64"), "{}", sql.sent[0].decoded);
    for (packet, reason) in [
        ("tcp 192.0.2.8:40000 > 192.0.2.9:22 from seg/c.7 to seg/d", "firewall-deny"),
        ("tcp 192.0.2.9:40000 > 192.0.2.8:5432 from seg/d to seg/c.7", "firewall-deny"),
        // By way of the gateway there is none either.
        ("tcp 192.0.2.8:40000 > 192.0.2.9:5432 from seg/c.7 to gw", "bridge-zone-hairpin"),
    ] {
        let told = explain(packet);
        assert_eq!((told.outcome, told.reason.as_deref()), (Outcome::Dropped, Some(reason)), "{packet}");
    }
    // To elsewhere it is for the gateway, and in the zone of its interface.
    let text = format!(
        "{SEGMENT}[[rule]]\nname = \"out\"\naction = \"allow\"\nfrom = {{ zone = \"in\" }}\nto = {{ zone = \"b\" }}\n\
         [[neighbour]]\ninterface = \"gw\"\naddress = \"192.0.2.7\"\nmac = \"02:00:00:00:00:07\"\n"
    );
    let out = told(&text, "tcp 192.0.2.8:40000 > 198.51.100.9:80 from seg/c.7 src-mac 02:00:00:00:00:08");
    assert_eq!(
        (out.outcome, out.sent.last().map(|sent| sent.port.as_str())),
        (Outcome::Forwarded, Some("b"))
    );
    assert!(
        out.packet.starts_with("02:00:00:00:00:08 > ") && steps(&out).contains(&"rule out".to_owned()),
        "{out:?}"
    );
    // A neighbour's MAC address is known; that nobody knows behind which member it is makes it one for all.
    let known = told(&text, "tcp 192.0.2.8:40000 > 192.0.2.7:80 from seg/d");
    assert!(known.packet.contains("> 02:00:00:00:00:07"), "{}", known.packet);
    assert_eq!(known.reason.as_deref(), Some("bridge-zone-deny"));

    let (config, compiler) = compiled(SEGMENT);
    let mut explainer = Explainer::new(View::new(&compiler, &config), START, false).expect("memory");
    for (packet, says) in [
        ("tcp 192.0.2.8:1 > 192.0.2.9:2 from seg/c.7", "say `to BRIDGE/MEMBER`"),
        ("tcp 192.0.2.8:1 > 192.0.2.9:2 from seg/c.7 to seg/c.7", "both are behind seg/c.7"),
        ("tcp 192.0.2.8:1 > 192.0.2.9:2 from seg/c.7 to b", "there is seg/c.7, seg/d, gw"),
        ("tcp 198.51.100.8:1 > 192.0.2.9:2 from b to seg/d", "b is no member of a bridge"),
        ("tcp 192.0.2.8:1 > 192.0.2.9:2 from seg/x", "there is gw, b, seg/c.7, seg/d"),
    ] {
        let refused = explainer.text(&packet.parse().expect("a packet"), |_| Live::default());
        assert!(refused.as_ref().is_err_and(|why| why.contains(says)), "{packet}: {refused:?}");
    }
}

#[test]
fn what_passes_between_members_of_a_bridge_is_asserted() {
    let asserts = [
        "packet = \"tcp 192.0.2.8 > 192.0.2.9:5432 from seg/c.7 to seg/d\"\nexpect = { rule = \"sql\", zone = \"db\" }",
        "packet = \"tcp 192.0.2.8 > 192.0.2.9:22 from seg/c.7 to seg/d\"\nexpect = { verdict = \"deny\", rule = \"default\" }",
        // What makes a segment work passes, whatever rules say.
        "packet = \"udp 0.0.0.0:68 > 255.255.255.255:67 from seg/c.7 to seg/d\"",
        "reach = { from = \"zone web\", to = \"zone db tcp/5432\" }",
        "reach = { from = \"zone web\", to = \"192.0.2.9 tcp/5432\" }",
        "reach = { from = \"zone web\", to = \"192.0.2.10 tcp/5432\" }\nexpect = { verdict = \"deny\" }",
        "reach = { from = \"zone db\", to = \"zone web\" }\nexpect = { verdict = \"deny\" }",
        "isolated = [\"web\", \"b\"]",
        "isolated = [\"db\", \"b\"]",
    ];
    assert_eq!(asserted(SEGMENT, &asserts), vec![None; asserts.len()]);

    let wrong = asserted(
        SEGMENT,
        &[
            "packet = \"tcp 192.0.2.8 > 192.0.2.9:22 from seg/c.7 to seg/d\"",
            "isolated = [\"web\", \"db\"]",
            "packet = \"tcp 192.0.2.8 > 192.0.2.9:22 from seg/c.7\"",
        ],
    );
    let says = ["no rule allows it from web to db", "from seg/c.7 to seg/d", "nobody knows it yet"];
    for (said, says) in wrong.iter().zip(says) {
        assert!(said.as_ref().is_some_and(|said| said.contains(says)), "{wrong:?}");
    }

    // Through the gateway hosts of both members are in the zone of its interface, and whoever is routed to may be
    // behind each of them.
    let out = format!(
        "{SEGMENT}[[rule]]\nname = \"out\"\naction = \"allow\"\nfrom = {{ zone = \"in\" }}\nto = {{ zone = \"b\" }}\n"
    );
    let apart = "isolated = [\"web\", \"b\"]";
    let said = asserted(&out, &[apart, "reach = { from = \"zone b\", to = \"zone web\" }"]);
    assert!(
        said[0].as_ref().is_some_and(|said| said.contains("passes from web to b") && said.contains(" to gw")),
        "{said:?}"
    );
    assert!(said[1].is_some(), "{said:?}");
    let into = format!(
        "{SEGMENT}[[rule]]\nname = \"into\"\naction = \"allow\"\nfrom = {{ zone = \"b\" }}\nto = {{ zone = \"in\" }}\n"
    );
    let said = asserted(&into, &[apart, "reach = { from = \"zone b\", to = \"zone web\" }"]);
    assert!(
        said[0].as_ref().is_some_and(|said| said.contains("passes from b to web")) && said[1].is_none(),
        "{said:?}"
    );
    // Within a zone no rule is needed: another network in that of the segment's interface.
    let same = SEGMENT.replace("zone = \"b\"", "zone = \"in\"");
    let said = asserted(&same, &["isolated = [\"web\", \"in\"]"]);
    assert!(said[0].is_some(), "{said:?}");
}

#[test]
fn who_reaches_whom_on_a_segment_comes_with_a_packet_that_passes() {
    let found = reached(SEGMENT, "interface seg/c.7", "zone db");
    assert_eq!(found.from.len(), 1);
    let one = &found.from[0];
    assert_eq!(
        (one.interface.as_str(), one.vrf.as_str(), one.zone.as_deref()),
        ("seg/c.7", "bridge seg", Some("web"))
    );
    // But for the gateway's own, and those that are no host's.
    assert!(one.all.is_empty() && one.some[..2] == ["192.0.2.2/31", "192.0.2.4/30"], "{one:?}");
    assert_eq!((one.some.len(), one.some.last().map(String::as_str)), (13, Some("192.0.2.254/32")));
    assert_eq!(one.witness, "tcp 192.0.2.2:65535 > 192.0.2.9:5432 from seg/c.7 to seg/d");
    let sql = reached(SEGMENT, "any", "192.0.2.9 tcp/5432");
    let by: Vec<&str> = sql.from.iter().map(|one| one.interface.as_str()).collect();
    assert_eq!(by, ["seg/c.7"]);
    assert!(reached(SEGMENT, "zone b", "zone db").from.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The twin asks the pipeline itself about each pair of hosts: what a packet of one to the other comes to, between members
    /// and by way of the gateway.
    #[test]
    fn what_is_said_of_a_segment_is_what_becomes_of_packets(
        rules in proptest::collection::vec((any::<bool>(), 0..5usize, 0..5usize, 0..3u8), 0..5)
    ) {
        let zones = ["web", "db", "in", "b", ""];
        let side = |zone: usize, host: u8| {
            let zone = if zones[zone].is_empty() { String::new() } else { format!("zone = \"{}\"", zones[zone]) };
            let host = if host == 0 { String::new() } else { format!("prefix = \"192.0.2.{}\"", host + 7) };
            let comma = if zone.is_empty() || host.is_empty() { "" } else { ", " };
            format!("{{ {zone}{comma}{host} }}")
        };
        let mut text = SEGMENT.split("[[rule]]").next().expect("there is one").to_owned();
        for (number, (allows, from, to, host)) in rules.iter().enumerate() {
            let action = if *allows { "allow" } else { "deny" };
            let (from, to) = (side(*from, *host), side(*to, 0));
            text.push_str(&format!("[[rule]]\nname = \"r{number}\"\naction = \"{action}\"\nfrom = {from}\nto = {to}\n"));
        }
        let (config, compiler) = compiled(&text);
        let view = View::new(&compiler, &config);
        let passes = |packet: &str| {
            let mut explainer = Explainer::new(view, START, false).expect("memory");
            let told = explainer.text(&packet.parse().expect("a packet"), |_| Live::default());
            told.unwrap_or_else(|why| panic!("{packet}: {why}")).outcome == Outcome::Forwarded
        };
        for (from, member) in [("web", "seg/c.7"), ("db", "seg/d")] {
            for to in ["web", "db", "b", "in"] {
                let query = ReachQuery {
                    from: format!("zone {from} 192.0.2.8/30").parse().expect("hosts"),
                    to: format!("zone {to} tcp/80").parse().expect("what"),
                    spoofed: false,
                };
                let found = reach::reach(view, &query, reach::MOST).expect("an answer");
                for one in &found.from {
                    prop_assert!(passes(&one.witness), "{}", one.witness);
                }
                let reaches = !found.from.is_empty();
                let hosts = [8, 9, 10, 11].map(|host| format!("192.0.2.{host}"));
                let ways: Vec<(&str, &str)> = match to {
                    "b" => vec![("198.51.100.9", "gw")],
                    // Of the segment's own interface there is nobody but the gateway.
                    "in" => vec![],
                    to if to == from => vec![],
                    "web" => vec![("192.0.2.20", "seg/c.7"), ("192.0.2.20", "gw")],
                    _ => vec![("192.0.2.20", "seg/d"), ("192.0.2.20", "gw")],
                };
                let is_open = hosts.iter().any(|host| {
                    ways.iter().any(|(dst, by)| passes(&format!("tcp {host} > {dst}:80 from {member} to {by}")))
                });
                prop_assert_eq!(reaches, is_open, "{} > {}\n{}", from, to, text);
            }
        }
    }
}
