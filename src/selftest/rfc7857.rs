//! RFC 7857: what became of the requirements on UDP, TCP and ICMP since.

use std::collections::BTreeSet;

use super::packet::{Packet, at, tcp};
use super::rig::{A, B, Connection, D, D_OUTSIDE, Proof, Rig, Settings, Wire, X, X2, Y, a, ensure, host};
use super::{Clause, Level};

const MUST: Level = Level::Must;
const SHOULD: Level = Level::Should;
const MAY: Level = Level::May;

const DATA: u8 = tcp::ACK | tcp::PSH;
const FIN: u8 = tcp::FIN | tcp::ACK;

pub(super) const CLAUSES: &[Clause] = &[
    Clause::check(
        "RFC 7857 2",
        SHOULD,
        "Connections are tracked from SYN to both FINs; only established ones live long.",
        connections_are_tracked,
    ),
    Clause::check(
        "RFC 7857 2.1",
        SHOULD,
        "Opening and closing connections have idle times of their own (`tcp_opening_s`).",
        opening_and_closing,
    ),
    Clause::check(
        "RFC 7857 2.1 default",
        SHOULD,
        "By default a connection that opens lives for 4 minutes.",
        opening_by_default,
    ),
    Clause::check(
        "RFC 7857 2.1 lower",
        MAY,
        "Less than 4 minutes can be configured, against half-open connections.",
        opening_can_be_shorter,
    ),
    Clause::check("RFC 7857 2.2", MUST, "A RST of a connection is translated and let through.", rst_passes),
    Clause::check(
        "RFC 7857 2.2 wait",
        SHOULD,
        "After it the connection stays for 4 minutes; data bring it back, silence ends it.",
        rst_does_not_end_at_once,
    ),
    Clause::check(
        "RFC 7857 2.2 forged",
        SHOULD,
        "A RST that cannot be the peer's (RFC 5961) changes nothing.",
        forged_rst,
    ),
    Clause::not_applicable(
        "RFC 7857 3",
        MAY,
        "Inside hosts may share an outside port if they talk to different destinations.",
        "it is not done: a port has one owner, so that everybody can reach it (RFC 4787 REQ-3)",
    ),
    Clause::check(
        "RFC 7857 4",
        SHOULD,
        "When a host's outside address has no port left, new flows are dropped and not moved to another address.",
        paired_address_is_exhausted,
    ),
    Clause::check(
        "RFC 7857 4 TCP",
        SHOULD,
        "TCP is paired as well: at the same address as UDP.",
        paired_for_all,
    ),
    Clause::check(
        "RFC 7857 5",
        SHOULD,
        "Mappings are per protocol: one for TCP is none for UDP.",
        mappings_per_protocol,
    ),
    Clause::check(
        "RFC 7857 6",
        SHOULD,
        "Filtering is per protocol: who may answer by UDP may not by TCP.",
        filtering_per_protocol,
    ),
    Clause::check(
        "RFC 7857 7",
        SHOULD,
        "Packets from outside that are filtered do not keep a mapping alive.",
        filtered_packets_do_not_refresh,
    ),
    Clause::check(
        "RFC 7857 7.1",
        SHOULD,
        "ICMP errors and RSTs from inside do not keep a mapping alive.",
        errors_and_rsts_do_not_refresh,
    ),
    Clause::check("RFC 7857 8", SHOULD, "Port parity is not kept.", parity_is_not_kept),
    Clause::missing(
        "RFC 7857 8 request",
        SHOULD,
        "An inside host can ask for it (PCP, RFC 7753).",
        "no protocol by which hosts ask for mappings",
    ),
    Clause::check("RFC 7857 9", SHOULD, "Outside ports are chosen at random (RFC 6056).", ports_are_random),
    Clause::check(
        "RFC 7857 10",
        SHOULD,
        "Fragments of two inside hosts with one IP identification leave with two (RFC 6864 section 5.3.1).",
        identifications_of_fragments,
    ),
    Clause::check(
        "RFC 7857 10 whole",
        SHOULD,
        "So do whole datagrams that somebody behind may still cut (DF clear).",
        identifications_of_whole_datagrams,
    ),
    Clause::check("RFC 7857 11", MAY, "A ping's mapping ends with its last session.", query_mapping_ends),
    Clause::check(
        "RFC 7857 12",
        MUST,
        "Pings and errors are hairpinned by address: also where no identifier was mapped before.",
        hairpin_by_address,
    ),
];

fn connections_are_tracked(rig: &mut Rig) -> Proof {
    rig.note("a SYN alone");
    let half = Connection::begin(rig, a(), at(X, 80))?;
    rig.wait_in_silence(242)?;
    rig.lost(Wire::Wan, &half.segment_in(tcp::SYN | tcp::ACK, b""))?;
    rig.note("SYN and SYN-ACK, no ACK");
    let mut half = Connection::begin(rig, at(A, 5001), at(X, 80))?;
    half.inbound(rig, tcp::SYN | tcp::ACK, b"")?;
    rig.wait_in_silence(242)?;
    rig.lost(Wire::Wan, &half.segment_in(tcp::SYN | tcp::ACK, b""))?;
    rig.note("established, then the FIN of the client, then that of the server");
    let mut connection = Connection::open(rig, at(A, 5002), at(X, 80))?;
    rig.wait_in_silence(3600)?;
    connection.outbound(rig, FIN, b"")?;
    rig.wait_in_silence(3600)?;
    connection.inbound(rig, DATA, b"answer")?;
    connection.inbound(rig, FIN, b"")?;
    connection.outbound(rig, tcp::ACK, b"")?;
    rig.wait_in_silence(242)?;
    rig.lost(Wire::Wan, &connection.segment_in(tcp::ACK, b""))?;
    rig.note("the FIN of the server first");
    let mut connection = Connection::open(rig, at(A, 5003), at(X, 80))?;
    connection.inbound(rig, FIN, b"")?;
    rig.wait_in_silence(3600)?;
    connection.outbound(rig, DATA, b"question")?;
    rig.note("what belongs to no connection");
    let stray = Packet::tcp(at(A, 5004), at(X, 80), DATA, 9, 9, b"data");
    rig.lost(Wire::Lan, &stray)
}

fn opening_and_closing(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "tcp_transitory_s = 240\ntcp_opening_s = 300", ..Settings::default() })?;
    rig.note("one that opens");
    let mut half = Connection::begin(rig, a(), at(X, 80))?;
    rig.wait_in_silence(298)?;
    half.inbound(rig, tcp::SYN | tcp::ACK, b"")?;
    rig.note("one that closes");
    let mut connection = Connection::open(rig, at(A, 5001), at(X, 80))?;
    connection.outbound(rig, FIN, b"")?;
    connection.inbound(rig, FIN, b"")?;
    rig.wait_in_silence(242)?;
    rig.lost(Wire::Lan, &connection.segment_out(tcp::ACK, b""))
}

fn opening_by_default(rig: &mut Rig) -> Proof {
    let mut half = Connection::begin(rig, a(), at(X, 80))?;
    rig.wait_in_silence(239)?;
    half.inbound(rig, tcp::SYN | tcp::ACK, b"")
}

fn opening_can_be_shorter(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "tcp_transitory_s = 60", ..Settings::default() })?;
    let half = Connection::begin(rig, a(), at(X, 80))?;
    rig.wait_in_silence(62)?;
    rig.lost(Wire::Wan, &half.segment_in(tcp::SYN | tcp::ACK, b""))
}

fn rst_passes(rig: &mut Rig) -> Proof {
    let mut connection = Connection::open(rig, a(), at(X, 80))?;
    connection.inbound(rig, tcp::RST, b"")?;
    let mut connection = Connection::open(rig, at(A, 5001), at(X, 80))?;
    connection.outbound(rig, tcp::RST | tcp::ACK, b"")
}

fn rst_does_not_end_at_once(rig: &mut Rig) -> Proof {
    let mut connection = Connection::open(rig, a(), at(X, 80))?;
    connection.inbound(rig, tcp::RST, b"")?;
    rig.wait_in_silence(239)?;
    rig.note("A has not got it, and goes on");
    connection.outbound(rig, DATA, b"question")?;
    rig.wait_in_silence(3600)?;
    connection.inbound(rig, DATA, b"answer")?;
    rig.note("a RST that was meant");
    connection.inbound(rig, tcp::RST, b"")?;
    rig.wait_in_silence(242)?;
    rig.lost(Wire::Wan, &connection.segment_in(DATA, b"more"))
}

fn forged_rst(rig: &mut Rig) -> Proof {
    let mut connection = Connection::open(rig, a(), at(X, 80))?;
    let [ours, theirs] = connection.next;
    rig.note("far outside the window: dropped");
    for seq in [theirs.wrapping_add(200_000), theirs.wrapping_sub(200_000)] {
        let rst = Packet::tcp(at(X, 80), connection.mapped, tcp::RST, seq, 0, b"");
        rig.lost(Wire::Wan, &rst)?;
    }
    rig.note("in the window, but not exact: for A to decide (RFC 5961 section 3.2); the connection stays");
    rig.send(Wire::Wan, &Packet::tcp(at(X, 80), connection.mapped, tcp::RST, theirs + 1000, 0, b""))?;
    rig.send(Wire::Lan, &Packet::tcp(a(), at(X, 80), tcp::ACK, ours, theirs, b""))?;
    rig.wait_in_silence(3600)?;
    connection.inbound(rig, DATA, b"answer")
}

/// A pool of two addresses, a block of 64 ports each.
fn two_small_addresses() -> Settings {
    Settings { pool: r#"["203.0.113.0/31"]"#, ports: Some("20032-20095"), ..Settings::default() }
}

fn paired_address_is_exhausted(rig: &mut Rig) -> Proof {
    rig.start(two_small_addresses())?;
    let first = rig.udp_out(a(), at(X, 7000))?;
    rig.quietly("A takes the other 63 ports of its address", |rig| -> Proof {
        for port in 1..64 {
            rig.udp_out(at(A, 5000 + port), at(X, 7000))?;
        }
        Ok(())
    })?;
    let answer = rig.back(Wire::Lan, &Packet::udp(at(A, 6000), at(X, 7000), b"ping"))?;
    ensure!(answer.is_error(), "not refused: {}", answer.describe());
    rig.note("the other address had room");
    for number in 0..8 {
        if let Ok(other) = rig.udp_out(at(host(number), 5000), at(X, 7000)) {
            ensure!(other.ip() != first.ip(), "{} had a port left", first.ip());
            return Ok(());
        }
    }
    Err("no other host got a port of the other address".to_owned())
}

fn paired_for_all(rig: &mut Rig) -> Proof {
    for inside in [A, B] {
        let mut addresses = BTreeSet::new();
        for port in 5000..5012 {
            addresses.insert(*rig.udp_out(at(inside, port), at(X, 7000))?.ip());
            addresses.insert(*Connection::begin(rig, at(inside, port), at(X, 80))?.mapped.ip());
        }
        ensure!(addresses.len() == 1, "{inside} is seen at {addresses:?}");
    }
    Ok(())
}

fn mappings_per_protocol(rig: &mut Rig) -> Proof {
    let mapped = Connection::open(rig, a(), at(X, 80))?.mapped;
    rig.udp_in_lost(at(X, 80), mapped)?;
    rig.lost(Wire::Wan, &Packet::echo(at(X, mapped.port()), *mapped.ip()))?;
    let mapped = rig.udp_out(at(A, 5001), at(X, 7000))?;
    rig.lost(Wire::Wan, &Packet::tcp(at(X, 7000), mapped, tcp::SYN, 5, 0, b""))
}

fn filtering_per_protocol(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: r#"filtering = "address-dependent""#, ..Settings::default() })?;
    let connection = Connection::open(rig, a(), at(X, 80))?;
    rig.udp_out(a(), at(Y, 7000))?;
    rig.note("A has talked to Y by UDP, by TCP only to X");
    rig.lost(Wire::Wan, &Packet::tcp(at(Y, 7000), connection.mapped, tcp::SYN, 5, 0, b""))?;
    let seen = rig.through(Wire::Wan, &Packet::tcp(at(X, 81), connection.mapped, tcp::SYN, 5, 0, b""))?;
    ensure!(seen.dst() == a(), "not for {A}: {}", seen.describe());
    Ok(())
}

fn filtered_packets_do_not_refresh(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: r#"filtering = "address-dependent""#, ..Settings::default() })?;
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    for _ in 0..5 {
        rig.wait_in_silence(60)?;
        rig.udp_in_lost(at(Y, 9), mapped)?;
    }
    rig.wait_in_silence(2)?;
    rig.udp_in_lost(at(X, 7000), mapped)
}

fn errors_and_rsts_do_not_refresh(rig: &mut Rig) -> Proof {
    rig.note("ICMP errors");
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    let seen = rig.through(Wire::Wan, &Packet::udp(at(X, 7000), mapped, b"pong"))?;
    for _ in 0..4 {
        rig.wait_in_silence(60)?;
        rig.through(Wire::Lan, &Packet::error(A, 3, 3, &seen))?;
    }
    rig.wait_in_silence(62)?;
    rig.udp_in_lost(at(X, 7000), mapped)?;
    rig.note("RSTs");
    let mut connection = Connection::open(rig, a(), at(X, 80))?;
    connection.outbound(rig, tcp::RST, b"")?;
    for _ in 0..3 {
        rig.wait_in_silence(60)?;
        rig.send(Wire::Lan, &connection.segment_out(tcp::RST, b""))?;
    }
    rig.wait_in_silence(62)?;
    rig.lost(Wire::Wan, &connection.segment_in(DATA, b"more"))
}

fn parity_is_not_kept(rig: &mut Rig) -> Proof {
    let mut odd = 0;
    for port in 0..16 {
        odd += rig.udp_out(at(A, 5000 + 2 * port), at(X, 7000))?.port() % 2;
    }
    ensure!((3..=13).contains(&odd), "of 16 even ports {odd} became odd");
    Ok(())
}

/// Outside ports of 32 endpoints of one host, in the order they were given, under a key.
fn given_ports(rig: &mut Rig, key: &'static str) -> Result<Vec<u16>, String> {
    rig.start(Settings { more: key, ..Settings::default() })?;
    (0..32).map(|port| Ok(rig.udp_out(at(A, 5000 + port), at(X, 7000))?.port())).collect()
}

pub(super) fn ports_are_random(rig: &mut Rig) -> Proof {
    let ports = given_ports(rig, "[system]\nkey = \"000102030405060708090a0b0c0d0e0f\"\n")?;
    let steps: Vec<i32> = ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
    let distinct: BTreeSet<i32> = steps.iter().copied().collect();
    ensure!(distinct.len() >= 20, "31 steps from port to port, but only {} different", distinct.len());
    let small = steps.iter().filter(|step| step.abs() == 1).count();
    ensure!(small <= 6, "{small} of 31 ports stand beside the one given before");
    let up = steps.iter().filter(|step| **step > 0).count();
    ensure!((6..=25).contains(&up), "{up} of 31 steps go up");
    let kept = ports.iter().enumerate().filter(|(index, port)| usize::from(**port) == 5000 + index).count();
    ensure!(kept <= 2, "{kept} of 32 source ports were kept");
    rig.note("another key, other ports");
    let others = given_ports(rig, "[system]\nkey = \"ffeeddccbbaa99887766554433221100\"\n")?;
    ensure!(ports != others, "the same ports under two keys");
    rig.note("first ports of other hosts");
    let mut firsts = Vec::new();
    for number in 0..16 {
        firsts.push(rig.udp_out(at(host(number), 5000), at(X, 7000))?.port());
    }
    ensure!(!firsts.is_sorted(), "hosts get ports in order: {firsts:?}");
    let blocks: BTreeSet<u16> = firsts.iter().map(|port| port / 64).collect();
    ensure!(blocks.len() >= 12, "16 hosts have blocks at {} places only", blocks.len());
    Ok(())
}

fn identifications_of_fragments(rig: &mut Rig) -> Proof {
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ..Settings::default() })?;
    let mut seen = Vec::new();
    for inside in [A, B] {
        let whole = Packet::udp(at(inside, 5000), at(X, 7000), &[7; 300]);
        let left = rig.send_all(Wire::Lan, &whole.cut(777, 160))?;
        let ids: BTreeSet<u16> = left.iter().map(|(_, packet)| packet.ip.identification).collect();
        ensure!(left.len() == 2 && ids.len() == 1, "{} fragments with identifications {ids:?}", left.len());
        seen.extend(ids);
    }
    ensure!(seen[0] != seen[1], "both datagrams left with identification {}", seen[0]);
    Ok(())
}

fn identifications_of_whole_datagrams(rig: &mut Rig) -> Proof {
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ..Settings::default() })?;
    let mut seen = BTreeSet::new();
    for again in 0..4 {
        for inside in [A, B] {
            let mut whole = Packet::udp(at(inside, 5000), at(X, 7000), &[7; 300]);
            (whole.ip.identification, whole.ip.dont_fragment) = (777, false);
            whole.seal();
            let id = rig.through(Wire::Lan, &whole)?.ip.identification;
            ensure!(
                seen.insert(id),
                "a datagram left with the identification of one before, {id}, in round {again}"
            );
        }
    }
    rig.note("DF set: nobody cuts it, and its identification stays (RFC 6864 section 4.1)");
    let mut atomic = Packet::udp(at(A, 5000), at(X, 7000), &[7; 300]);
    (atomic.ip.identification, atomic.ip.dont_fragment) = (777, true);
    atomic.seal();
    let id = rig.through(Wire::Lan, &atomic)?.ip.identification;
    ensure!(id == 777, "777 became {id}");
    Ok(())
}

fn query_mapping_ends(rig: &mut Rig) -> Proof {
    let mapped = rig.echo_out(at(A, 77), X)?;
    rig.wait_in_silence(40)?;
    rig.echo_out(at(A, 77), Y)?;
    rig.wait_in_silence(40)?;
    rig.note("the session with X has ended, the one with Y not: the mapping lives");
    rig.echo_in(Y, mapped, at(A, 77))?;
    rig.wait_in_silence(62)?;
    rig.lost(Wire::Wan, &Packet::echo_reply(Y, mapped))
}

fn hairpin_by_address(rig: &mut Rig) -> Proof {
    let outside = rig.echo_out(at(A, 77), X)?;
    rig.note("a ping from A to the outside address of D, which has never sent anything");
    let seen = rig.back(Wire::Lan, &Packet::echo(at(A, 77), D_OUTSIDE))?;
    ensure!(seen.dst_addr() == D && seen.src() == outside, "not from {outside} for {D}: {}", seen.describe());
    let answer = rig.back(Wire::Lan, &Packet::echo_reply(D, seen.src()))?;
    let same = answer.dst() == at(A, 77) && answer.src_addr() == D_OUTSIDE;
    ensure!(same, "not the answer of {D_OUTSIDE}: {}", answer.describe());
    rig.note("an error of D about it");
    let error = rig.back(Wire::Lan, &Packet::error(D, 3, 10, &seen))?;
    let quoted = error.quoted().ok_or("quotes nothing")?;
    let same = (error.src_addr(), error.dst_addr()) == (D_OUTSIDE, A)
        && (quoted.src_addr(), quoted.dst_addr()) == (A, D_OUTSIDE)
        && quoted.src().port() == 77;
    ensure!(same, "not an error of {D_OUTSIDE} about {A}'s ping: {}", error.describe());
    rig.note("and back: from D to A's mapping");
    let mapped = rig.udp_out(a(), at(X2, 7000))?;
    let seen = rig.back(Wire::Lan, &Packet::udp(at(D, 9), mapped, b"ping"))?;
    ensure!(seen.src() == at(D_OUTSIDE, 9), "D shows as {}", seen.src());
    let error = rig.back(Wire::Lan, &Packet::error(A, 3, 3, &seen))?;
    ensure!(error.dst_addr() == D, "not for {D}: {}", error.describe());
    Ok(())
}
