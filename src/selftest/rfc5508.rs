//! RFC 5508: how a NAT treats ICMP.

use std::net::Ipv4Addr;

use super::packet::{Packet, at, tcp};
use super::rig::{
    A, B, C, D, D_OUTSIDE, LAN_ADDR, OnWire, Proof, Rig, Settings, WAN_ADDR, Wire, X, X2, Y, a, ensure,
};
use super::{Clause, Level};

const MUST: Level = Level::Must;
const SHOULD: Level = Level::Should;
const MAY: Level = Level::May;

pub(super) const CLAUSES: &[Clause] = &[
    Clause::check("RFC 5508 REQ-1", MUST, "Pings from inside, and their answers, pass.", queries_pass),
    Clause::check(
        "RFC 5508 REQ-1a",
        SHOULD,
        "A query identifier has one mapping, whoever is pinged.",
        identifier_mapping,
    ),
    Clause::check("RFC 5508 REQ-2", MUST, "A ping may be answered for 60 s.", query_time),
    Clause::check("RFC 5508 REQ-2a", SHOULD, "That time is configurable.", query_time_is_configurable),
    Clause::check(
        "RFC 5508 REQ-3",
        SHOULD,
        "An ICMP error with a wrong checksum is dropped in silence.",
        error_with_wrong_checksum,
    ),
    Clause::check(
        "RFC 5508 REQ-3a",
        SHOULD,
        "So is one that quotes an IP header with a wrong checksum.",
        quoted_header_with_wrong_checksum,
    ),
    Clause::check(
        "RFC 5508 REQ-3b",
        MUST,
        "IP options in the quoted header are skipped to find the ports.",
        quoted_options,
    ),
    Clause::check(
        "RFC 5508 REQ-3c",
        SHOULD,
        "The quoted upper-layer checksum is not validated.",
        quoted_upper_checksum,
    ),
    Clause::check(
        "RFC 5508 REQ-3d",
        MUST,
        "ICMP extensions (RFC 4884) do not count for the quoted packet, and survive.",
        extensions,
    ),
    Clause::check(
        "RFC 5508 REQ-4",
        SHOULD,
        "An error from outside that is about no mapping is dropped in silence.",
        error_about_nothing,
    ),
    Clause::check(
        "RFC 5508 REQ-4a",
        MUST,
        "In one that is about a mapping, the quoted packet becomes what the inside host had sent.",
        quoted_packet_is_reverted,
    ),
    Clause::check("RFC 5508 REQ-4b", MUST, "Its type and code stay.", type_and_code_stay),
    Clause::check(
        "RFC 5508 REQ-4c",
        MUST,
        "It goes to the inside host that the quoted packet came from.",
        error_goes_to_the_host,
    ),
    Clause::check(
        "RFC 5508 REQ-5",
        SHOULD,
        "An error from inside that is about no mapping is dropped in silence.",
        outbound_error_about_nothing,
    ),
    Clause::check(
        "RFC 5508 REQ-5a",
        MUST,
        "In one that is about a mapping, the quoted packet becomes what the outside host had sent.",
        outbound_quoted_packet,
    ),
    Clause::check("RFC 5508 REQ-5b", MUST, "Its type and code stay.", outbound_type_and_code),
    Clause::check(
        "RFC 5508 REQ-5c",
        MUST,
        "It comes from an outside address: no inside router shows.",
        outbound_error_source,
    ),
    Clause::check(
        "RFC 5508 REQ-6",
        MUST,
        "An error about a ping neither ends nor prolongs its session.",
        error_about_a_query,
    ),
    Clause::check(
        "RFC 5508 REQ-7",
        MUST,
        "Errors about hairpinned packets pass, and with static NAT pings are hairpinned.",
        hairpin,
    ),
    Clause::check(
        "RFC 5508 REQ-7a",
        MUST,
        "A hairpinned error goes to the inside host that the quoted packet came from.",
        hairpinned_error_destination,
    ),
    Clause::check(
        "RFC 5508 REQ-8",
        SHOULD,
        "A new flow that is refused by an administrative limit is answered with ICMP 3/13, and dropped.",
        refused_by_a_limit,
    ),
    Clause::check(
        "RFC 5508 REQ-8 resources",
        SHOULD,
        "One that is refused for want of resources is answered with ICMP 3/13 too.",
        refused_for_want_of_ports,
    ),
    Clause::not_applicable(
        "RFC 5508 REQ-9",
        MAY,
        "Policy can keep the gateway from sending ICMP messages by an interface.",
        "an option that is not taken: `[icmp] rate = 0` switches errors off for all interfaces",
    ),
    Clause::check(
        "RFC 5508 REQ-10a",
        MUST,
        "Destination unreachable, time exceeded and echo are supported: also by the gateway itself.",
        supported_messages,
    ),
    Clause::check(
        "RFC 5508 REQ-10b",
        MAY,
        "Of the rest, timestamps and parameter problem are translated; others are dropped.",
        optional_messages,
    ),
    Clause::check(
        "RFC 5508 REQ-10c",
        SHOULD,
        "Source quench and information requests are not supported.",
        unsupported_messages,
    ),
    Clause::check(
        "RFC 5508 REQ-10d",
        SHOULD,
        "No error about errors, later fragments, broadcasts or impossible sources; errors are rate limited.",
        when_not_to_send,
    ),
    Clause::check(
        "RFC 5508 REQ-11",
        MAY,
        "ICMP messages that are neither queries nor errors are dropped or handled sensibly.",
        other_messages,
    ),
];

fn queries_pass(rig: &mut Rig) -> Proof {
    for (inside, id) in [(at(A, 77), X), (at(B, 77), X), (at(A, 78), Y)] {
        let mapped = rig.echo_out(inside, id)?;
        rig.echo_in(id, mapped, inside)?;
    }
    Ok(())
}

fn identifier_mapping(rig: &mut Rig) -> Proof {
    let mapped = rig.echo_out(at(A, 77), X)?;
    for to in [X2, Y] {
        let also = rig.echo_out(at(A, 77), to)?;
        ensure!(also == mapped, "identifier 77 is {mapped} for {X}, but {also} for {to}");
        rig.echo_in(to, mapped, at(A, 77))?;
    }
    let other = rig.echo_out(at(B, 77), X)?;
    ensure!(other != mapped, "{A} and {B} share {mapped}");
    Ok(())
}

fn query_time(rig: &mut Rig) -> Proof {
    let mapped = rig.echo_out(at(A, 77), X)?;
    rig.wait_in_silence(59)?;
    rig.echo_in(X, mapped, at(A, 77))
}

fn query_time_is_configurable(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "icmp_s = 90", ..Settings::default() })?;
    let mapped = rig.echo_out(at(A, 77), X)?;
    rig.wait_in_silence(88)?;
    rig.echo_in(X, mapped, at(A, 77))?;
    rig.wait_in_silence(92)?;
    rig.lost(Wire::Wan, &Packet::echo_reply(X, mapped))
}

/// What A has sent, and how it looks outside.
fn sent(rig: &mut Rig) -> Result<(Packet, Packet), String> {
    let ping = Packet::udp(a(), at(X, 7000), b"ping");
    let left = rig.through(Wire::Lan, &ping)?;
    Ok((ping, left))
}

fn error_with_wrong_checksum(rig: &mut Rig) -> Proof {
    let (_, left) = sent(rig)?;
    let good = Packet::error(X, 3, 3, &left);
    for place in [2, 5, 20] {
        let mut bad = good.clone();
        bad.body[place] ^= 0x10;
        rig.lost(Wire::Wan, &bad)?;
    }
    rig.through(Wire::Wan, &good).map(|_| ())
}

fn quoted_header_with_wrong_checksum(rig: &mut Rig) -> Proof {
    let (_, left) = sent(rig)?;
    let mut quoted = left.clone();
    quoted.ip.header_checksum ^= 0x0100;
    rig.lost(Wire::Wan, &Packet::error(X, 3, 3, &quoted))?;
    rig.through(Wire::Wan, &Packet::error(X, 3, 3, &left)).map(|_| ())
}

fn quoted_options(rig: &mut Rig) -> Proof {
    let (ping, mut left) = sent(rig)?;
    // A router on the way may have added them (RFC 791 section 3.1): here no-operations and a router alert (RFC 2113).
    let options = [1, 1, 1, 1, 0x94, 4, 0, 0];
    left.ip.options = options.into();
    left.seal();
    let error = rig.through(Wire::Wan, &Packet::error(X, 11, 0, &left))?;
    let quoted = error.quoted().ok_or("quotes nothing")?;
    ensure!((quoted.src(), quoted.dst()) == (ping.src(), ping.dst()), "quotes another: {}", error.describe());
    ensure!(quoted.ip.options.as_slice() == options, "the options have changed: {}", error.describe());
    Ok(())
}

fn quoted_upper_checksum(rig: &mut Rig) -> Proof {
    let (ping, mut left) = sent(rig)?;
    left.body[6] ^= 0x55;
    let error = rig.through(Wire::Wan, &Packet::error_quoting(X, 3, 3, &left, 64))?;
    let quoted = error.quoted().ok_or("quotes nothing")?;
    ensure!((quoted.src(), quoted.dst()) == (ping.src(), ping.dst()), "quotes another: {}", error.describe());
    Ok(())
}

fn extensions(rig: &mut Rig) -> Proof {
    let (ping, left) = sent(rig)?;
    // RFC 4884 section 5: the quoted packet padded with zeros to 128 bytes, its length in words in byte 5; then
    // version 2 and an MPLS label (RFC 4950).
    let mut body = [&left.ip.to_bytes()[..], &left.body].concat();
    let quoted_len = body.len();
    body.resize(128, 0);
    let mut extension = vec![0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0x3e, 0x81, 1];
    let sum = extension.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    extension[2..4].copy_from_slice(&sum.to_be_bytes());
    body.extend_from_slice(&extension);
    let error = Packet::icmp(X, left.src_addr(), 11, 0, [0, 32, 0, 0], &body);
    let seen = rig.through(Wire::Wan, &error)?;
    let quoted = seen.body.get(8..8 + quoted_len).and_then(Packet::from_bytes).ok_or("quotes nothing")?;
    ensure!(
        quoted.body == ping.body,
        "the quoted datagram is not the one that was sent: {}",
        seen.describe()
    );
    ensure!(quoted.fault().is_none(), "the quoted datagram has a {}", quoted.fault().unwrap_or_default());
    ensure!(seen.body[8 + quoted_len..] == body[quoted_len..], "padding or extension have changed");
    ensure!(seen.body[4..8] == [0, 32, 0, 0], "the length of the quoted packet has changed");
    Ok(())
}

fn error_about_nothing(rig: &mut Rig) -> Proof {
    let (_, left) = sent(rig)?;
    let mut other_port = left.clone();
    other_port.set_src(at(left.src_addr(), left.src().port() ^ 1));
    rig.lost(Wire::Wan, &Packet::error(X, 3, 3, &other_port))?;
    let mut other_remote = left.clone();
    other_remote.set_dst(at(Y, 9));
    rig.lost(Wire::Wan, &Packet::error(X, 3, 3, &other_remote))?;
    let other_protocol = Packet::tcp(left.src(), left.dst(), tcp::SYN, 1, 0, b"");
    rig.lost(Wire::Wan, &Packet::error(X, 3, 3, &other_protocol))
}

/// Errors of all kinds about UDP, TCP and a ping, each with what A had sent and what came to it.
fn errors_in(rig: &mut Rig, mut look: impl FnMut(&Packet, &Packet, &Packet) -> Proof) -> Proof {
    let pings = [
        Packet::udp(a(), at(X, 7000), b"ping"),
        Packet::tcp(a(), at(X, 80), tcp::SYN, 1000, 0, b""),
        Packet::echo(at(A, 77), X),
    ];
    for ping in pings {
        let left = rig.through(Wire::Lan, &ping)?;
        for (icmp_type, code) in [(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)] {
            let error = Packet::error(X, icmp_type, code, &left);
            let seen = rig.through(Wire::Wan, &error)?;
            look(&ping, &error, &seen)?;
        }
    }
    Ok(())
}

fn quoted_packet_is_reverted(rig: &mut Rig) -> Proof {
    errors_in(rig, |ping, _, seen| {
        let quoted = seen.quoted().ok_or("quotes nothing")?;
        let same = (quoted.src(), quoted.dst()) == (ping.src(), ping.dst()) && quoted.body == ping.body[..8];
        ensure!(same, "the quoted packet is not the one that was sent: {}", seen.describe());
        let sum = quoted.ip.header_checksum == quoted.ip.calc_header_checksum();
        ensure!(sum, "the quoted IP header has a bad checksum: {}", seen.describe());
        Ok(())
    })
}

fn type_and_code_stay(rig: &mut Rig) -> Proof {
    errors_in(rig, |_, error, seen| {
        let same = error.icmp_kind() == seen.icmp_kind() && error.body[4..8] == seen.body[4..8];
        ensure!(same, "{} became {}", error.describe(), seen.describe());
        Ok(())
    })
}

fn error_goes_to_the_host(rig: &mut Rig) -> Proof {
    errors_in(rig, |_, _, seen| {
        ensure!(seen.dst_addr() == A, "not for {A}: {}", seen.describe());
        Ok(())
    })
}

/// A datagram from X that has reached A, as A sees it and as X has sent it.
fn received(rig: &mut Rig) -> Result<(Packet, Packet), String> {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    let pong = Packet::udp(at(X, 7000), mapped, b"pong");
    Ok((rig.through(Wire::Wan, &pong)?, pong))
}

fn outbound_error_about_nothing(rig: &mut Rig) -> Proof {
    let (seen, _) = received(rig)?;
    let mut other = seen.clone();
    other.set_src(at(Y, 9));
    rig.lost(Wire::Lan, &Packet::error(A, 3, 3, &other))?;
    let mut other = seen.clone();
    other.set_dst(at(A, 5001));
    rig.lost(Wire::Lan, &Packet::error(A, 3, 3, &other))
}

fn outbound_quoted_packet(rig: &mut Rig) -> Proof {
    let (seen, pong) = received(rig)?;
    let error = rig.through(Wire::Lan, &Packet::error(A, 3, 3, &seen))?;
    let quoted = error.quoted().ok_or("quotes nothing")?;
    let same = (quoted.src(), quoted.dst()) == (pong.src(), pong.dst()) && quoted.body == pong.body[..8];
    ensure!(same, "the quoted packet is not the one {X} sent: {}", error.describe());
    let sum = quoted.ip.header_checksum == quoted.ip.calc_header_checksum();
    ensure!(sum, "the quoted IP header has a bad checksum: {}", error.describe());
    ensure!(error.dst_addr() == X, "not for {X}: {}", error.describe());
    Ok(())
}

fn outbound_type_and_code(rig: &mut Rig) -> Proof {
    let (seen, _) = received(rig)?;
    for (icmp_type, code) in [(3, 1), (3, 3), (3, 13), (11, 1), (12, 0)] {
        let error = rig.through(Wire::Lan, &Packet::error(A, icmp_type, code, &seen))?;
        ensure!(error.icmp_kind() == Some((icmp_type, code)), "not the same: {}", error.describe());
    }
    Ok(())
}

fn outbound_error_source(rig: &mut Rig) -> Proof {
    let (seen, pong) = received(rig)?;
    let outside = pong.dst_addr();
    for from in [A, C] {
        rig.note(if from == A { "from the host itself" } else { "from a router inside" });
        let mut error = Packet::error(A, 3, 1, &seen);
        error.ip.source = from.octets();
        error.seal();
        let error = rig.through(Wire::Lan, &error)?;
        let is_ours = error.src_addr() == outside || error.src_addr() == WAN_ADDR;
        ensure!(is_ours, "{from} shows as {}", error.src_addr());
    }
    rig.note("from a host with static NAT");
    let ping = Packet::udp(at(Y, 9), at(D_OUTSIDE, 9), b"ping");
    rig.start(Settings {
        more: "[[rule]]\nname = \"d\"\naction = \"allow\"\nto = { prefix = \"10.0.1.20\" }\n",
        ..Settings::default()
    })?;
    let seen = rig.through(Wire::Wan, &ping)?;
    let error = rig.through(Wire::Lan, &Packet::error(D, 3, 3, &seen))?;
    ensure!(error.src_addr() == D_OUTSIDE, "{D} shows as {}, not {D_OUTSIDE}", error.src_addr());
    Ok(())
}

fn error_about_a_query(rig: &mut Rig) -> Proof {
    let ping = Packet::echo(at(A, 77), X);
    let left = rig.through(Wire::Lan, &ping)?;
    let error = Packet::error(X, 11, 0, &left);
    rig.through(Wire::Wan, &error)?;
    rig.echo_in(X, left.src(), at(A, 77))?;
    rig.note("it has not been ended; nor do errors keep it alive");
    for _ in 0..2 {
        rig.wait_in_silence(25)?;
        rig.through(Wire::Wan, &error)?;
    }
    rig.wait_in_silence(25)?;
    rig.lost(Wire::Wan, &Packet::echo_reply(X, left.src()))
}

/// An error of B about what A has sent to B's outside address: what reaches A, and what A had sent.
fn hairpinned_error(rig: &mut Rig) -> Result<(Packet, Packet), String> {
    let outside_b = rig.udp_out(at(B, 6000), at(X, 7000))?;
    let ping = Packet::udp(a(), outside_b, b"ping");
    let seen = rig.back(Wire::Lan, &ping)?;
    Ok((rig.back(Wire::Lan, &Packet::error(B, 3, 3, &seen))?, ping))
}

fn hairpin(rig: &mut Rig) -> Proof {
    let (error, ping) = hairpinned_error(rig)?;
    let quoted = error.quoted().ok_or("quotes nothing")?;
    let same = error.icmp_kind() == Some((3, 3)) && (quoted.src(), quoted.dst()) == (ping.src(), ping.dst());
    ensure!(same, "not about what {A} sent: {}", error.describe());
    ensure!(error.src_addr() != B, "{B} shows itself: {}", error.describe());
    rig.note("a ping to a host with static NAT");
    let outside = rig.echo_out(at(A, 77), X)?;
    let seen = rig.back(Wire::Lan, &Packet::echo(at(A, 77), D_OUTSIDE))?;
    ensure!(seen.dst_addr() == D && seen.src() == outside, "not from {outside} for {D}: {}", seen.describe());
    let answer = rig.back(Wire::Lan, &Packet::echo_reply(D, seen.src()))?;
    let same = answer.dst() == at(A, 77) && answer.src_addr() == D_OUTSIDE;
    ensure!(same, "not the answer of {D_OUTSIDE}: {}", answer.describe());
    Ok(())
}

fn hairpinned_error_destination(rig: &mut Rig) -> Proof {
    let (error, _) = hairpinned_error(rig)?;
    let quoted = error.quoted().ok_or("quotes nothing")?;
    ensure!(
        error.dst_addr() == A && quoted.src_addr() == A,
        "goes to {}, quotes a packet from {}",
        error.dst_addr(),
        quoted.src_addr()
    );
    Ok(())
}

/// What is answered to one more flow of `from` when the host or the pool has 64 ports and A has taken them.
fn one_too_many(rig: &mut Rig, from: Ipv4Addr) -> Result<Packet, String> {
    rig.quietly("A takes 64 ports", |rig| -> Proof {
        for port in 0..64 {
            rig.udp_out(at(A, 5000 + port), at(X, 7000))?;
        }
        Ok(())
    })?;
    let ping = Packet::udp(at(from, 6000), at(X, 7000), b"ping");
    let answer = rig.back(Wire::Lan, &ping)?;
    let quoted = answer.quoted().ok_or(format!("not an ICMP error: {}", answer.describe()))?;
    let same = answer.dst_addr() == from && (quoted.src(), quoted.dst()) == (ping.src(), ping.dst());
    ensure!(same, "not about what {from} sent: {}", answer.describe());
    Ok(answer)
}

pub(super) fn over_quota(rig: &mut Rig) -> Result<Packet, String> {
    rig.start(Settings { nat: "max_blocks_per_host = 1", ..Settings::default() })?;
    one_too_many(rig, A)
}

pub(super) fn no_port_left(rig: &mut Rig) -> Result<Packet, String> {
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ports: Some("20032-20095"), ..Settings::default() })?;
    one_too_many(rig, B)
}

/// Destination unreachable of this code; `why` it may be of another.
pub(super) fn told(answer: &Packet, code: u8, why: &str) -> Proof {
    let is_so = answer.icmp_kind() == Some((3, code));
    ensure!(is_so, "it is not answered with ICMP 3/{code}{why}: {}", answer.describe());
    Ok(())
}

fn refused_by_a_limit(rig: &mut Rig) -> Proof {
    let answer = over_quota(rig)?;
    told(&answer, 13, "")?;
    rig.start(Settings { flows: "per_host_sessions = 1", ..Settings::default() })?;
    rig.udp_out(a(), at(X, 7000))?;
    let answer = rig.back(Wire::Lan, &Packet::udp(a(), at(X, 7001), b"ping"))?;
    told(&answer, 13, "")
}

fn refused_for_want_of_ports(rig: &mut Rig) -> Proof {
    told(&no_port_left(rig)?, 13, ", as RFC 6888 REQ-11B, the younger, wants")
}

fn supported_messages(rig: &mut Rig) -> Proof {
    rig.note("traceroute: the gateway is a hop, and one behind it shows as itself");
    let mut probe = Packet::udp(a(), at(X, 33_434), b"probe");
    probe.ip.time_to_live = 1;
    probe.seal();
    let hop = rig.back(Wire::Lan, &probe)?;
    ensure!(hop.icmp_kind() == Some((11, 0)) && hop.src_addr() == LAN_ADDR, "not a hop: {}", hop.describe());
    probe.ip.time_to_live = 2;
    probe.seal();
    let left = rig.through(Wire::Lan, &probe)?;

    rig.note("traceroute from outside");
    let mut late = Packet::udp(at(X, 33_434), left.src(), b"probe");
    late.ip.time_to_live = 1;
    late.seal();
    let hop = rig.back(Wire::Wan, &late)?;
    ensure!(hop.icmp_kind() == Some((11, 0)) && hop.src_addr() == WAN_ADDR, "not a hop: {}", hop.describe());
    rig.note("the next hop of A's traceroute");
    let hop = rig.through(Wire::Wan, &Packet::error(Y, 11, 0, &left))?;
    let same = hop.icmp_kind() == Some((11, 0)) && (hop.src_addr(), hop.dst_addr()) == (Y, A);
    ensure!(same, "not the next hop: {}", hop.describe());
    rig.note("destination unreachable, from the gateway and through it");
    let lost = Packet::udp(a(), at(Ipv4Addr::new(192, 0, 2, 1), 9), b"ping");
    let error = rig.back(Wire::Lan, &lost)?;
    ensure!(error.icmp_kind() == Some((3, 0)), "not net unreachable: {}", error.describe());
    let error = rig.through(Wire::Wan, &Packet::error(X, 3, 3, &left))?;
    ensure!(error.icmp_kind() == Some((3, 3)), "not port unreachable: {}", error.describe());
    rig.note("echo to the gateway");
    for (wire, from, to) in [(Wire::Lan, A, LAN_ADDR), (Wire::Wan, X, WAN_ADDR)] {
        let answer = rig.back(wire, &Packet::echo(at(from, 5), to))?;
        let same =
            answer.icmp_kind() == Some((0, 0)) && (answer.src_addr(), answer.dst()) == (to, at(from, 5));
        ensure!(same, "not an echo reply: {}", answer.describe());
    }
    Ok(())
}

fn optional_messages(rig: &mut Rig) -> Proof {
    rig.note("timestamps");
    let request = Packet::icmp(A, X, 13, 0, [0, 77, 0, 1], &[0; 12]);
    let left = rig.through(Wire::Lan, &request)?;
    ensure!(left.icmp_kind() == Some((13, 0)) && left.src_addr() != A, "not translated: {}", left.describe());
    let id = left.src().port().to_be_bytes();
    let reply = Packet::icmp(X, left.src_addr(), 14, 0, [id[0], id[1], 0, 1], &[0; 12]);
    let seen = rig.through(Wire::Wan, &reply)?;
    ensure!(seen.dst() == at(A, 77), "not for {A}: {}", seen.describe());
    rig.note("parameter problem");
    let (_, left) = sent(rig)?;
    let seen = rig.through(Wire::Wan, &Packet::error(X, 12, 0, &left))?;
    ensure!(seen.dst_addr() == A, "not for {A}: {}", seen.describe());
    rig.note("redirect, router advertisement and solicitation: not across");
    rig.lost(Wire::Wan, &Packet::error(X, 5, 0, &left))?;
    rig.lost(
        Wire::Wan,
        &Packet::icmp(Y, left.src_addr(), 9, 0, [1, 2, 0, 60], &[198, 51, 100, 1, 0, 0, 0, 0]),
    )?;
    rig.lost(Wire::Lan, &Packet::icmp(A, X, 10, 0, [0; 4], &[]))
}

fn unsupported_messages(rig: &mut Rig) -> Proof {
    let (seen, _) = received(rig)?;
    rig.lost(Wire::Lan, &Packet::error(A, 4, 0, &seen))?;
    let (_, left) = sent(rig)?;
    rig.lost(Wire::Wan, &Packet::error(X, 4, 0, &left))?;
    rig.lost(Wire::Lan, &Packet::icmp(A, X, 15, 0, [0, 77, 0, 1], &[]))?;
    rig.lost(Wire::Wan, &Packet::icmp(X, left.src_addr(), 16, 0, [0, 77, 0, 1], &[]))
}

fn when_not_to_send(rig: &mut Rig) -> Proof {
    let late = |mut packet: Packet| {
        packet.ip.time_to_live = 1;
        packet.seal();
        packet
    };
    rig.note("about an error");
    let (_, left) = sent(rig)?;
    rig.lost(Wire::Wan, &late(Packet::error(X, 3, 3, &left)))?;
    rig.note("about a later fragment");
    let fragments = Packet::udp(a(), at(X, 7000), &[7; 400]).cut(9, 160);
    rig.lost(Wire::Lan, &late(fragments[1].clone()))?;
    rig.note("about what was sent to all, or comes from nobody");
    rig.lost(Wire::Lan, &late(Packet::udp(a(), at(Ipv4Addr::BROADCAST, 9), b"ping")))?;
    rig.lost(Wire::Lan, &late(Packet::udp(a(), at(Ipv4Addr::new(224, 0, 0, 9), 9), b"ping")))?;
    for nobody in
        [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::BROADCAST]
    {
        rig.lost(Wire::Lan, &late(Packet::udp(at(nobody, 9), at(X, 9), b"ping")))?;
    }
    rig.note("more than the limit of one source (100 a second, 50 at once)");
    let answers =
        rig.quietly("200 packets whose TTL ends here, at once", |rig| -> Result<usize, String> {
            let probes: Vec<Packet> =
                (0..200).map(|port| late(Packet::udp(a(), at(X, 33_434 + port), b""))).collect();
            let left: Vec<OnWire> = rig.send_all(Wire::Lan, &probes)?;
            Ok(left.len())
        })?;
    ensure!((1..=50).contains(&answers), "200 packets were answered {answers} times");
    rig.note(&format!("answered {answers} times"));
    rig.note("precedence of what the gateway sends (RFC 1812 section 4.3.2.5: 6 or 7 for errors)");
    rig.wait(10)?;
    let error = rig.back(Wire::Lan, &late(Packet::udp(a(), at(X, 9), b"ping")))?;
    let dscp = error.ip.dscp.value();
    ensure!(dscp >> 3 >= 6 || dscp == 0, "sent with DSCP {dscp}");
    Ok(())
}

fn other_messages(rig: &mut Rig) -> Proof {
    let (_, left) = sent(rig)?;
    for icmp_type in [1, 2, 6, 7, 19, 30, 37, 40, 42, 43, 100, 253, 255] {
        let inside = Packet::icmp(A, X, icmp_type, 0, [0, 77, 0, 1], b"abcdefgh");
        for (wire, packet) in [
            (Wire::Lan, inside),
            (Wire::Wan, Packet::icmp(X, left.src_addr(), icmp_type, 0, [0; 4], b"abcdefgh")),
        ] {
            rig.lost(wire, &packet)?;
        }
    }
    rig.note("and all is as before");
    rig.udp_in(at(X, 7000), left.src(), a())
}
