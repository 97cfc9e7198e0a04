//! RFC 5382: how a NAT treats TCP.

use std::collections::BTreeSet;

use super::packet::{Packet, at, tcp};
use super::rfc4787::all_icmp;
use super::rig::{A, B, C, Connection, Proof, Rig, Settings, Wire, X, X2, Y, a, ensure};
use super::{Clause, Level};

const MUST: Level = Level::Must;
const SHOULD: Level = Level::Should;
const MAY: Level = Level::May;

const DATA: u8 = tcp::ACK | tcp::PSH;

pub(super) const CLAUSES: &[Clause] = &[
    Clause::check(
        "RFC 5382 REQ-1",
        MUST,
        "An inside address and port has one mapping for TCP, whoever it connects to.",
        endpoint_independent_mapping,
    ),
    Clause::check(
        "RFC 5382 REQ-2",
        MUST,
        "All legal sequences of segments pass: opening from both sides, half close, reset, close.",
        legal_sequences,
    ),
    Clause::check(
        "RFC 5382 REQ-2a",
        MUST,
        "Both ends may open at once: their SYNs cross (simultaneous open).",
        simultaneous_open,
    ),
    Clause::check(
        "RFC 5382 REQ-3",
        SHOULD,
        "Whoever connects to a mapping gets through (endpoint-independent filtering), the default here.",
        endpoint_independent_filtering,
    ),
    Clause::check(
        "RFC 5382 REQ-3a",
        MAY,
        "It is configurable: only whom the host has talked to gets through.",
        address_dependent_filtering,
    ),
    Clause::not_applicable(
        "RFC 5382 REQ-3b",
        MAY,
        "TCP's filtering can be another than UDP's.",
        "an option that is not taken: `nat.filtering` is one setting for all protocols; rules can deny more of either",
    ),
    Clause::check(
        "RFC 5382 REQ-4",
        MUST,
        "A SYN that nobody asked for is not answered for 6 s; a SYN from inside meanwhile makes the connection.",
        no_answer_for_six_seconds,
    ),
    Clause::check(
        "RFC 5382 REQ-4 answer",
        SHOULD,
        "If no SYN from inside came, it is answered with ICMP 3/3 then, unless policy forbids it.",
        answered_after_six_seconds,
    ),
    Clause::check(
        "RFC 5382 REQ-4a",
        MUST,
        "If policy forbids an answer, such a SYN is dropped in silence: `deny` and the default.",
        silent_by_policy,
    ),
    Clause::check(
        "RFC 5382 REQ-5",
        MUST,
        "An idle connection lives for 2 h 4 min, one that opens or closes for 4 min.",
        idle_times,
    ),
    Clause::check("RFC 5382 REQ-5a", MAY, "These times are configurable.", idle_times_are_configurable),
    Clause::check(
        "RFC 5382 REQ-6",
        SHOULD,
        "What is inside TCP is left alone: no application gateways (SIP, H.323, RTSP ...).",
        no_application_gateways,
    ),
    Clause::check(
        "RFC 5382 REQ-7",
        MUST,
        "No two inside endpoints share an outside address and port for TCP.",
        no_overloading,
    ),
    Clause::check(
        "RFC 5382 REQ-8",
        MUST,
        "Inside hosts connect to each other by their outside addresses (hairpinning).",
        hairpin,
    ),
    Clause::check(
        "RFC 5382 REQ-8a",
        MUST,
        "Who is connected to so sees the outside address and port of who connects.",
        hairpin_source,
    ),
    Clause::check(
        "RFC 5382 REQ-9",
        SHOULD,
        "ICMP destination unreachable about a connection is translated.",
        unreachable_is_translated,
    ),
    Clause::check(
        "RFC 5382 REQ-10",
        MUST,
        "No ICMP message ends a mapping or a connection.",
        icmp_ends_no_connection,
    ),
];

fn endpoint_independent_mapping(rig: &mut Rig) -> Proof {
    let mapped = Connection::begin(rig, a(), at(X, 80))?.mapped;
    for to in [at(X, 81), at(X2, 80), at(Y, 443)] {
        let also = Connection::begin(rig, a(), to)?.mapped;
        ensure!(also == mapped, "mapped to {mapped} for {X}:80, but to {also} for {to}");
    }
    Ok(())
}

/// A SYN of `from` to a mapping, the SYN-ACK of who has it, and data both ways.
fn open_from_outside(rig: &mut Rig, from: std::net::SocketAddrV4, mapped: std::net::SocketAddrV4) -> Proof {
    let seen = rig.through(Wire::Wan, &Packet::tcp(from, mapped, tcp::SYN, 500, 0, b""))?;
    ensure!(seen.dst() == a() && seen.src() == from, "not for {}: {}", a(), seen.describe());
    let mut connection = Connection { inside: a(), outside: from, mapped, next: [7000, 501] };
    connection.outbound(rig, tcp::SYN | tcp::ACK, b"")?;
    connection.inbound(rig, tcp::ACK, b"")?;
    connection.inbound(rig, DATA, b"question")?;
    connection.outbound(rig, DATA, b"answer")
}

fn legal_sequences(rig: &mut Rig) -> Proof {
    rig.note("opened and closed from inside; data after the outside's FIN");
    let mut connection = Connection::open(rig, a(), at(X, 80))?;
    connection.outbound(rig, DATA, b"question")?;
    connection.inbound(rig, DATA, b"answer")?;
    connection.inbound(rig, tcp::FIN | tcp::ACK, b"")?;
    connection.outbound(rig, DATA, b"more")?;
    connection.inbound(rig, tcp::ACK, b"")?;
    connection.outbound(rig, tcp::FIN | tcp::ACK, b"")?;
    connection.inbound(rig, tcp::ACK, b"")?;
    rig.note("the same ports at once again (TIME-WAIT, RFC 9293 section 3.6.1)");
    let syn = Packet::tcp(a(), at(X, 80), tcp::SYN, 400_000, 0, b"");
    let mapped = rig.through(Wire::Lan, &syn)?.src();
    ensure!(mapped == connection.mapped, "{} became {mapped}", connection.mapped);
    rig.note("a SYN again, its answer again, both crossing");
    let mut connection = Connection::begin(rig, at(A, 5001), at(X, 80))?;
    rig.through(Wire::Lan, &Packet::tcp(at(A, 5001), at(X, 80), tcp::SYN, Connection::FIRST[0], 0, b""))?;
    rig.through(Wire::Wan, &connection.segment_in(tcp::SYN | tcp::ACK, b""))?;
    connection.inbound(rig, tcp::SYN | tcp::ACK, b"")?;
    connection.outbound(rig, tcp::ACK, b"")?;
    rig.note("data again that was lost behind us");
    let lost = connection.segment_out(DATA, b"question");
    connection.outbound(rig, DATA, b"question")?;
    rig.through(Wire::Lan, &lost)?;
    connection.inbound(rig, tcp::ACK, b"")?;
    rig.note("both close at once");
    let (ours, theirs) =
        (connection.segment_out(tcp::FIN | tcp::ACK, b""), connection.segment_in(tcp::FIN | tcp::ACK, b""));
    rig.through(Wire::Lan, &ours)?;
    rig.through(Wire::Wan, &theirs)?;
    connection.next = connection.next.map(|next| next + 1);
    connection.outbound(rig, tcp::ACK, b"")?;
    connection.inbound(rig, tcp::ACK, b"")?;
    rig.note("refused");
    let connection = Connection::begin(rig, at(A, 5002), at(X, 81))?;
    let rst = connection.segment_in(tcp::RST | tcp::ACK, b"");
    rig.through(Wire::Wan, &rst)?;
    rig.note("opened from outside, to a mapping there is");
    let mapped = Connection::open(rig, a(), at(X2, 80))?.mapped;
    open_from_outside(rig, at(Y, 3000), mapped)
}

fn simultaneous_open(rig: &mut Rig) -> Proof {
    let mut connection = Connection::begin(rig, a(), at(X, 80))?;
    connection.inbound(rig, tcp::SYN, b"")?;
    // Each acknowledges the other's SYN, with its own again (RFC 9293 section 3.5, figure 7).
    let [ours, theirs] = connection.next;
    let answer = Packet::tcp(a(), at(X, 80), tcp::SYN | tcp::ACK, ours - 1, theirs, b"");
    rig.through(Wire::Lan, &answer)?;
    let answer = Packet::tcp(at(X, 80), connection.mapped, tcp::SYN | tcp::ACK, theirs - 1, ours, b"");
    rig.through(Wire::Wan, &answer)?;
    connection.outbound(rig, DATA, b"question")?;
    connection.inbound(rig, DATA, b"answer")?;
    rig.note("it is established: it lives");
    rig.wait_in_silence(3600)?;
    connection.inbound(rig, DATA, b"later")
}

fn endpoint_independent_filtering(rig: &mut Rig) -> Proof {
    let mapped = Connection::begin(rig, a(), at(X, 80))?.mapped;
    for from in [at(X, 81), at(X2, 80), at(Y, 3000)] {
        open_from_outside(rig, from, mapped)?;
    }
    Ok(())
}

fn address_dependent_filtering(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: r#"filtering = "address-dependent""#, ..Settings::default() })?;
    let mapped = Connection::open(rig, a(), at(X, 80))?.mapped;
    rig.lost(Wire::Wan, &Packet::tcp(at(Y, 3000), mapped, tcp::SYN, 500, 0, b""))?;
    rig.lost(Wire::Wan, &Packet::tcp(at(X2, 80), mapped, tcp::SYN, 500, 0, b""))?;
    open_from_outside(rig, at(X, 81), mapped)
}

/// Where somebody may be refused, and is told.
const ANSWERING: &str = "filtering = \"address-dependent\"\nanswer_unsolicited_syn = true";

fn no_answer_for_six_seconds(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: ANSWERING, ..Settings::default() })?;
    // A mapping, so that the other end can know where to send its SYN.
    let mapped = Connection::open(rig, a(), at(X, 80))?.mapped;
    let syn = |from| Packet::tcp(from, mapped, tcp::SYN, Connection::FIRST[1], 0, b"");
    rig.note("a SYN from inside comes after 3 s: the first one stays unanswered, and the connection is made");
    rig.lost(Wire::Wan, &syn(at(X2, 3000)))?;
    rig.wait_in_silence(3)?;
    let mut connection = Connection::begin(rig, a(), at(X2, 3000))?;
    ensure!(connection.mapped == mapped, "{mapped} became {}", connection.mapped);
    rig.wait_in_silence(10)?;
    connection.inbound(rig, tcp::SYN, b"")?;
    let [ours, theirs] = connection.next;
    rig.through(Wire::Lan, &Packet::tcp(a(), at(X2, 3000), tcp::SYN | tcp::ACK, ours - 1, theirs, b""))?;
    connection.inbound(rig, tcp::ACK, b"")?;
    connection.outbound(rig, DATA, b"question")?;
    rig.note("nobody asks for it");
    rig.lost(Wire::Wan, &syn(at(Y, 3000)))?;
    rig.wait_in_silence(6)
}

fn answered_after_six_seconds(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: ANSWERING, ..Settings::default() })?;
    rig.note("to a mapping that does not let it in, and to where there is no mapping");
    let mapped = Connection::open(rig, a(), at(X, 80))?.mapped;
    for to in [mapped, at(*mapped.ip(), mapped.port() ^ 1)] {
        let syn = Packet::tcp(at(Y, 3000), to, tcp::SYN, 500, 0, b"");
        rig.lost(Wire::Wan, &syn)?;
        let left = rig.wait(30)?;
        let [(Wire::Wan, answer)] = &left[..] else {
            return Err(format!("{} packets left within 30 s, not one answer", left.len()));
        };
        ensure!(answer.fault().is_none(), "faulty: {}", answer.describe());
        let is_error = answer.icmp_kind() == Some((3, 3)) && answer.dst_addr() == Y;
        ensure!(is_error, "not a port unreachable to {Y}: {}", answer.describe());
        let quoted = answer.quoted().ok_or("quotes nothing")?;
        ensure!(quoted.body == syn.body && quoted.dst() == to, "not about the SYN: {}", answer.describe());
    }
    Ok(())
}

fn silent_by_policy(rig: &mut Rig) -> Proof {
    rig.note("to a NAT address without mapping, to the gateway, and to an inside host");
    let mapped = Connection::open(rig, a(), at(X, 80))?.mapped;
    let nobody = at(*mapped.ip(), mapped.port() ^ 1);
    for to in [nobody, at(super::rig::WAN_ADDR, 80), at(B, 80)] {
        rig.lost(Wire::Wan, &Packet::tcp(at(Y, 3000), to, tcp::SYN, 500, 0, b""))?;
        rig.wait_in_silence(10)?;
    }
    rig.start(Settings {
        nat: "answer_unsolicited_syn = true",
        more: "[[rule]]\nname = \"no-one\"\naction = \"deny\"\nfrom = { zone = \"outside\" }\n",
        ..Settings::default()
    })?;
    rig.note("a rule says no: silence, also where others are answered");
    let mapped = Connection::open(rig, at(A, 5001), at(X, 80))?.mapped;
    rig.lost(Wire::Wan, &Packet::tcp(at(Y, 3000), mapped, tcp::SYN, 500, 0, b""))?;
    rig.wait_in_silence(10)
}

fn idle_times(rig: &mut Rig) -> Proof {
    rig.note("half open");
    let mut connection = Connection::begin(rig, a(), at(X, 80))?;
    rig.wait_in_silence(239)?;
    connection.inbound(rig, tcp::SYN | tcp::ACK, b"")?;
    rig.wait_in_silence(239)?;
    connection.outbound(rig, tcp::ACK, b"")?;
    rig.note("established");
    rig.wait_in_silence(7439)?;
    connection.inbound(rig, DATA, b"later")?;
    connection.outbound(rig, tcp::ACK, b"")?;
    rig.note("one side has closed");
    connection.inbound(rig, tcp::FIN | tcp::ACK, b"")?;
    rig.wait_in_silence(7439)?;
    connection.outbound(rig, tcp::FIN | tcp::ACK, b"later")?;
    rig.note("both sides have closed");
    rig.wait_in_silence(239)?;
    connection.inbound(rig, tcp::ACK, b"")
}

fn idle_times_are_configurable(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "tcp_established_s = 8000\ntcp_transitory_s = 300", ..Settings::default() })?;
    rig.note("half open");
    let half_open = Connection::begin(rig, a(), at(X, 80))?;
    rig.wait_in_silence(298)?;
    rig.through(Wire::Wan, &half_open.segment_in(tcp::SYN | tcp::ACK, b""))?;
    rig.wait_in_silence(302)?;
    rig.lost(Wire::Wan, &half_open.segment_in(tcp::SYN | tcp::ACK, b""))?;
    rig.note("established");
    let mut connection = Connection::open(rig, at(A, 5001), at(X, 80))?;
    rig.wait_in_silence(7998)?;
    connection.inbound(rig, DATA, b"later")?;
    rig.wait_in_silence(8002)?;
    rig.lost(Wire::Wan, &connection.segment_in(DATA, b"too late"))
}

fn no_application_gateways(rig: &mut Rig) -> Proof {
    let text = format!("PORT {},200,10\r\nVia: SIP/2.0/TCP {A}:5060\r\n", A.to_string().replace('.', ","));
    for (index, port) in [5060, 554, 1720, 1723, 21, 6667].into_iter().enumerate() {
        let mut connection = Connection::open(rig, at(A, 5000 + index as u16), at(X, port))?;
        connection.outbound(rig, DATA, text.as_bytes())?;
        connection.inbound(rig, DATA, text.as_bytes())?;
    }
    Ok(())
}

fn no_overloading(rig: &mut Rig) -> Proof {
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ..Settings::default() })?;
    let mut connections = Vec::new();
    for inside in [A, B, C] {
        for port in [5000, 5001, 5002, 5003] {
            connections.push(Connection::open(rig, at(inside, port), at(X, 80))?);
        }
    }
    let outside: BTreeSet<_> = connections.iter().map(|connection| connection.mapped).collect();
    ensure!(
        outside.len() == connections.len(),
        "{} endpoints share {} outside ports",
        connections.len(),
        outside.len()
    );
    for connection in &mut connections {
        connection.inbound(rig, DATA, b"answer")?;
    }
    Ok(())
}

/// A connects to B's outside address; what B sees as the sender.
fn connect_inside(
    rig: &mut Rig,
    outside_b: std::net::SocketAddrV4,
) -> Result<std::net::SocketAddrV4, String> {
    let b = at(B, 6000);
    let syn = rig.back(Wire::Lan, &Packet::tcp(a(), outside_b, tcp::SYN, 100, 0, b""))?;
    ensure!(syn.dst() == b && syn.flags() == tcp::SYN, "not the SYN for {b}: {}", syn.describe());
    let seen = syn.src();
    let both = tcp::SYN | tcp::ACK;
    let answer = rig.back(Wire::Lan, &Packet::tcp(b, seen, both, 700, 101, b""))?;
    let is_answer = answer.dst() == a() && answer.src() == outside_b && answer.flags() == both;
    ensure!(is_answer, "not the answer for {}: {}", a(), answer.describe());
    rig.back(Wire::Lan, &Packet::tcp(a(), outside_b, tcp::ACK, 101, 701, b""))?;
    let data = rig.back(Wire::Lan, &Packet::tcp(a(), outside_b, DATA, 101, 701, b"question"))?;
    ensure!(data.payload() == b"question" && data.dst() == b, "not the data: {}", data.describe());
    let data = rig.back(Wire::Lan, &Packet::tcp(b, seen, DATA, 701, 109, b"answer"))?;
    ensure!(data.payload() == b"answer" && data.dst() == a(), "not the data: {}", data.describe());
    Ok(seen)
}

fn hairpin(rig: &mut Rig) -> Proof {
    let outside_b = Connection::open(rig, at(B, 6000), at(X, 80))?.mapped;
    connect_inside(rig, outside_b).map(|_| ())
}

fn hairpin_source(rig: &mut Rig) -> Proof {
    let outside_b = Connection::open(rig, at(B, 6000), at(X, 80))?.mapped;
    let outside_a = Connection::open(rig, a(), at(X, 80))?.mapped;
    let seen = connect_inside(rig, outside_b)?;
    ensure!(seen == outside_a, "{B} sees {seen}, not {outside_a}");
    Ok(())
}

fn unreachable_is_translated(rig: &mut Rig) -> Proof {
    let syn = Packet::tcp(a(), at(X, 80), tcp::SYN, 1000, 0, b"");
    let left = rig.through(Wire::Lan, &syn)?;
    for code in [0, 1, 3, 4, 9, 10, 13] {
        let error = rig.through(Wire::Wan, &Packet::error_quoting(Y, 3, code, &left, 20))?;
        ensure!(error.icmp_kind() == Some((3, code)), "not the same: {}", error.describe());
        let quoted = error.quoted().ok_or("quotes nothing")?;
        let same = error.dst_addr() == A && (quoted.src(), quoted.dst()) == (a(), at(X, 80));
        ensure!(same, "not about what {A} sent: {}", error.describe());
        // All of TCP's header is quoted: with its checksum it is the segment that was sent.
        ensure!(
            quoted.body == syn.body,
            "the quoted segment is not the one that was sent: {}",
            error.describe()
        );
        let sum = quoted.ip.calc_header_checksum() == quoted.ip.header_checksum;
        ensure!(sum, "the quoted IP header has a bad checksum: {}", error.describe());
    }
    Ok(())
}

fn icmp_ends_no_connection(rig: &mut Rig) -> Proof {
    let mut connection = Connection::open(rig, a(), at(X, 80))?;
    let left = rig.through(Wire::Lan, &connection.segment_out(DATA, b"question"))?;
    connection.next[0] += 8;
    all_icmp(rig, Wire::Wan, &left)?;
    connection.inbound(rig, DATA, b"answer")?;
    connection.outbound(rig, DATA, b"more")?;
    rig.note("nor does it shorten its life");
    rig.wait_in_silence(7000)?;
    connection.inbound(rig, DATA, b"later")?;
    let also = Connection::begin(rig, a(), at(Y, 80))?.mapped;
    ensure!(also == connection.mapped, "{} became {also}", connection.mapped);
    Ok(())
}
