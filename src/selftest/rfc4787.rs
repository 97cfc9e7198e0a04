//! RFC 4787: how a NAT treats UDP.

use std::collections::BTreeSet;

use super::packet::{Packet, at};
use super::rig::{A, B, C, Connection, D, D_OUTSIDE, Proof, Rig, Settings, Wire, X, X2, Y, a, ensure, host};
use super::{Clause, Level};

const MUST: Level = Level::Must;
const SHOULD: Level = Level::Should;
const MAY: Level = Level::May;

pub(super) const CLAUSES: &[Clause] = &[
    Clause::check(
        "RFC 4787 REQ-1",
        MUST,
        "An inside address and port has one mapping, whoever it talks to (endpoint-independent mapping).",
        endpoint_independent_mapping,
    ),
    Clause::check(
        "RFC 4787 REQ-2",
        SHOULD,
        "All mappings of an inside host are at one outside address (paired pooling).",
        paired_pooling,
    ),
    Clause::check(
        "RFC 4787 REQ-3",
        MUST,
        "No two inside endpoints share an outside address and port (no port overloading).",
        no_overloading,
    ),
    Clause::check(
        "RFC 4787 REQ-3a",
        SHOULD,
        "Well-known ports (0 to 1023) stay well-known outside, others stay others.",
        port_class,
    ),
    Clause::not_applicable(
        "RFC 4787 REQ-4",
        SHOULD,
        "Even ports stay even, odd ones odd.",
        "RFC 7857 section 8 has turned it round: parity is not to be kept. See there",
    ),
    Clause::check(
        "RFC 4787 REQ-5",
        MUST,
        "An idle UDP mapping lives for 2 minutes at least.",
        mapping_lives_two_minutes,
    ),
    Clause::not_applicable(
        "RFC 4787 REQ-5a",
        MAY,
        "Mappings to some well-known destination ports may live shorter.",
        "no use is made of it: all UDP mappings live as long as `flows.udp_s` says",
    ),
    Clause::check(
        "RFC 4787 REQ-5b",
        MAY,
        "The life of idle UDP mappings is configurable.",
        mapping_time_is_configurable,
    ),
    Clause::check(
        "RFC 4787 REQ-5c",
        SHOULD,
        "By default an idle UDP mapping lives for 5 minutes or more.",
        mapping_lives_five_minutes,
    ),
    Clause::check(
        "RFC 4787 REQ-6",
        MUST,
        "A packet from inside restarts the life of its mapping.",
        outbound_refreshes,
    ),
    Clause::check("RFC 4787 REQ-6a", MAY, "A packet from outside may do so too.", inbound_refreshes),
    Clause::not_applicable(
        "RFC 4787 REQ-7",
        MUST,
        "A NAT whose outside address is given dynamically copes with one from inside's own network.",
        "all addresses are in the config, none comes from DHCP or PPP; `check` refuses one network on two interfaces",
    ),
    Clause::check(
        "RFC 4787 REQ-8",
        SHOULD,
        "Whoever sends to a mapping gets through (endpoint-independent filtering), the default here.",
        endpoint_independent_filtering,
    ),
    Clause::check(
        "RFC 4787 REQ-8a",
        MAY,
        "It is configurable: only whom the host has talked to gets through (address-dependent filtering).",
        address_dependent_filtering,
    ),
    Clause::check(
        "RFC 4787 REQ-9",
        MUST,
        "Inside hosts reach each other by their outside addresses (hairpinning).",
        hairpin,
    ),
    Clause::check(
        "RFC 4787 REQ-9a",
        MUST,
        "Who is reached so sees the outside address and port of who sends.",
        hairpin_source,
    ),
    Clause::check(
        "RFC 4787 REQ-10",
        SHOULD,
        "What is inside UDP datagrams is left alone: no application gateways (SIP, TFTP, DNS ...).",
        no_application_gateways,
    ),
    Clause::not_applicable(
        "RFC 4787 REQ-10a",
        SHOULD,
        "Each application gateway can be switched off by itself.",
        "there is none",
    ),
    Clause::check(
        "RFC 4787 REQ-11",
        MUST,
        "Mapping and filtering are always the same: also when ports conflict and when none is left.",
        deterministic,
    ),
    Clause::check("RFC 4787 REQ-12", MUST, "No ICMP message ends a mapping.", icmp_ends_no_mapping),
    Clause::check(
        "RFC 4787 REQ-12a",
        SHOULD,
        "By default ICMP errors are let in wherever they come from.",
        icmp_from_anywhere,
    ),
    Clause::check(
        "RFC 4787 REQ-12b",
        SHOULD,
        "ICMP destination unreachable reaches the inside host.",
        unreachable_comes_in,
    ),
    Clause::check(
        "RFC 4787 REQ-13",
        MUST,
        "A packet from inside that is too long and must not be cut (DF) is answered with ICMP 3/4.",
        too_long_with_df,
    ),
    Clause::check(
        "RFC 4787 REQ-13a",
        MUST,
        "One that may be cut is cut, and the fragments leave in order.",
        too_long_without_df,
    ),
    Clause::check(
        "RFC 4787 REQ-14",
        MUST,
        "Fragments are translated in whatever order they come, in both directions.",
        fragments_in_any_order,
    ),
    Clause::check(
        "RFC 4787 REQ-14a",
        MUST,
        "A flood of fragments does not stop whole packets, nor fragments in order.",
        fragment_flood,
    ),
];

fn endpoint_independent_mapping(rig: &mut Rig) -> Proof {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    for to in [at(X, 7001), at(X2, 7000), at(Y, 53)] {
        let also = rig.udp_out(a(), to)?;
        ensure!(also == mapped, "mapped to {mapped} for {X}:7000, but to {also} for {to}");
    }
    Ok(())
}

pub(super) fn paired_pooling(rig: &mut Rig) -> Proof {
    for inside in [A, B, C] {
        let mut addresses = BTreeSet::new();
        for port in 0..24 {
            addresses.insert(*rig.udp_out(at(inside, 5000 + port), at(X, 7000))?.ip());
        }
        ensure!(addresses.len() == 1, "{inside} is seen at {addresses:?}");
    }
    Ok(())
}

fn no_overloading(rig: &mut Rig) -> Proof {
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ..Settings::default() })?;
    let mut owners = Vec::new();
    for inside in [A, B, C] {
        for port in [5000, 5001, 5002, 5003] {
            owners.push((at(inside, port), rig.udp_out(at(inside, port), at(X, 7003))?));
        }
    }
    let outside: BTreeSet<_> = owners.iter().map(|(_, mapped)| *mapped).collect();
    ensure!(
        outside.len() == owners.len(),
        "{} endpoints share {} outside ports",
        owners.len(),
        outside.len()
    );
    for (inside, mapped) in owners {
        rig.udp_in(at(X, 7003), mapped, inside)?;
    }
    Ok(())
}

fn port_class(rig: &mut Rig) -> Proof {
    for port in [1, 53, 500, 1023, 1024, 5000, 49_152, 65_535] {
        let mapped = rig.udp_out(at(A, port), at(X, 7000))?;
        let is_same = (mapped.port() < 1024) == (port < 1024);
        ensure!(is_same, "port {port} became {}", mapped.port());
        ensure!(mapped.port() != 0, "port {port} became 0");
    }
    Ok(())
}

fn mapping_lives(rig: &mut Rig, seconds: u64) -> Proof {
    // Without a reply, and with one: another host answers, as the filtering allows.
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    rig.wait_in_silence(seconds)?;
    rig.udp_in(at(X, 7000), mapped, a())?;
    let other = at(B, 5000);
    let mapped = rig.udp_out(other, at(X, 7000))?;
    rig.udp_in(at(X, 7000), mapped, other)?;
    rig.wait_in_silence(seconds)?;
    rig.udp_in(at(X, 7000), mapped, other)
}

fn mapping_lives_two_minutes(rig: &mut Rig) -> Proof {
    mapping_lives(rig, 119)
}

fn mapping_lives_five_minutes(rig: &mut Rig) -> Proof {
    mapping_lives(rig, 299)
}

fn mapping_time_is_configurable(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "udp_s = 150", ..Settings::default() })?;
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    rig.wait_in_silence(148)?;
    rig.udp_in(at(X, 7000), mapped, a())?;
    rig.wait_in_silence(152)?;
    rig.udp_in_lost(at(X, 7000), mapped)
}

fn outbound_refreshes(rig: &mut Rig) -> Proof {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    for _ in 0..6 {
        rig.wait_in_silence(110)?;
        let now = rig.udp_out(a(), at(X, 7000))?;
        ensure!(now == mapped, "{mapped} became {now}");
    }
    rig.wait_in_silence(110)?;
    rig.udp_in(at(X, 7000), mapped, a())
}

fn inbound_refreshes(rig: &mut Rig) -> Proof {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    for _ in 0..6 {
        rig.wait_in_silence(110)?;
        rig.udp_in(at(X, 7000), mapped, a())?;
    }
    Ok(())
}

fn endpoint_independent_filtering(rig: &mut Rig) -> Proof {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    for from in [at(X, 7000), at(X, 7001), at(X2, 7000), at(Y, 9)] {
        rig.udp_in(from, mapped, a())?;
    }
    let nobody = at(*mapped.ip(), mapped.port() ^ 1);
    rig.note("a port without mapping");
    rig.udp_in_lost(at(Y, 9), nobody)
}

fn address_dependent_filtering(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: r#"filtering = "address-dependent""#, ..Settings::default() })?;
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    rig.udp_in(at(X, 7000), mapped, a())?;
    rig.udp_in(at(X, 7001), mapped, a())?;
    rig.udp_in_lost(at(X2, 7000), mapped)?;
    rig.udp_in_lost(at(Y, 7000), mapped)?;
    let now = rig.udp_out(a(), at(Y, 7000))?;
    ensure!(now == mapped, "{mapped} became {now}");
    rig.udp_in(at(Y, 9), mapped, a())
}

fn hairpin(rig: &mut Rig) -> Proof {
    let outside_b = rig.udp_out(at(B, 6000), at(X, 7000))?;
    let seen = rig.back(Wire::Lan, &Packet::udp(a(), outside_b, b"ping"))?;
    ensure!(seen.dst() == at(B, 6000), "not for {B}: {}", seen.describe());
    let answer = rig.back(Wire::Lan, &Packet::udp(at(B, 6000), seen.src(), b"pong"))?;
    ensure!(answer.dst() == a(), "the answer is not for {A}: {}", answer.describe());
    rig.note("to a host with static NAT");
    let seen = rig.back(Wire::Lan, &Packet::udp(a(), at(D_OUTSIDE, 6000), b"ping"))?;
    ensure!(seen.dst() == at(D, 6000), "not for {D}: {}", seen.describe());
    Ok(())
}

fn hairpin_source(rig: &mut Rig) -> Proof {
    let outside_a = rig.udp_out(a(), at(X, 7000))?;
    let outside_b = rig.udp_out(at(B, 6000), at(X, 7000))?;
    let seen = rig.back(Wire::Lan, &Packet::udp(a(), outside_b, b"ping"))?;
    ensure!(seen.src() == outside_a, "{B} sees {}, not {outside_a}", seen.src());
    let answer = rig.back(Wire::Lan, &Packet::udp(at(B, 6000), outside_a, b"pong"))?;
    ensure!(answer.src() == outside_b, "{A} sees {}, not {outside_b}", answer.src());
    Ok(())
}

fn no_application_gateways(rig: &mut Rig) -> Proof {
    let sip =
        format!("REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP {A}:5060\r\nContact: <sip:a@{A}:5060>\r\n\r\n");
    let dns = [
        &b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x09\0\x04"[..],
        &A.octets(),
    ]
    .concat();
    for (port, payload) in [
        (5060, sip.as_bytes()),
        (69, b"\0\x01boot.img\0octet\0"),
        (53, &dns),
        (137, &A.octets()),
        (1719, &[A.octets(), A.octets()].concat()),
    ] {
        let sent = Packet::udp(at(A, 2000 + port), at(X, port), payload);
        let left = rig.through(Wire::Lan, &sent)?;
        ensure!(left.payload() == payload, "changed on the way out: {}", left.describe());
        let left = rig.through(Wire::Wan, &Packet::udp(at(X, port), left.src(), payload))?;
        ensure!(left.payload() == payload, "changed on the way in: {}", left.describe());
    }
    rig.note(
        "TFTP's answer comes from another port, to the mapping: nothing was opened but by the filtering",
    );
    rig.start(Settings { nat: r#"filtering = "address-dependent""#, ..Settings::default() })?;
    let mapped = rig.udp_out(at(A, 5069), at(X, 69))?;
    rig.udp_in_lost(at(Y, 3000), mapped)
}

fn deterministic(rig: &mut Rig) -> Proof {
    // One address, one block of 64 ports: A takes them all.
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ports: Some("20032-20095"), ..Settings::default() })?;
    let first = rig.udp_out(a(), at(X, 7000))?;
    rig.quietly("A takes the other 63 ports", |rig| -> Proof {
        for port in 1..64 {
            rig.udp_out(at(A, 5000 + port), at(X, 7000))?;
        }
        Ok(())
    })?;
    rig.note("none is left: others get none, and nothing changes for A");
    let answer = rig.back(Wire::Lan, &Packet::udp(at(B, 5000), at(X, 7000), b"ping"))?;
    ensure!(answer.is_error(), "not refused: {}", answer.describe());
    for to in [at(X, 7001), at(X2, 7000), at(Y, 53)] {
        let now = rig.udp_out(a(), to)?;
        ensure!(now == first, "mapped to {first}, but to {now} for {to}");
    }
    rig.udp_in(at(host_outside(), 99), first, a())?;
    rig.note("ports conflict: three hosts with the same source port");
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ..Settings::default() })?;
    for inside in [A, B, C] {
        let mapped = rig.udp_out(at(inside, 5000), at(X, 7000))?;
        let now = rig.udp_out(at(inside, 5000), at(Y, 53))?;
        ensure!(now == mapped, "{inside} is mapped to {mapped}, but to {now} for {Y}");
        rig.udp_in(at(X2, 99), mapped, at(inside, 5000))?;
    }
    Ok(())
}

/// A host outside that nobody inside has talked to.
fn host_outside() -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(198, 51, 100, 77)
}

/// Errors of all types about `about`, and some that are no errors; what becomes of them does not matter here.
pub(super) fn all_icmp(rig: &mut Rig, wire: Wire, about: &Packet) -> Proof {
    for (icmp_type, code) in
        [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 10), (3, 13), (4, 0), (5, 0), (11, 0), (11, 1), (12, 0)]
    {
        rig.send(wire, &Packet::error(about.dst_addr(), icmp_type, code, about))?;
    }
    Ok(())
}

fn icmp_ends_no_mapping(rig: &mut Rig) -> Proof {
    let ping = Packet::udp(a(), at(X, 7000), b"ping");
    let left = rig.through(Wire::Lan, &ping)?;
    all_icmp(rig, Wire::Wan, &left)?;
    rig.udp_in(at(X, 7000), left.src(), a())?;
    let now = rig.udp_out(a(), at(X, 7000))?;
    ensure!(now == left.src(), "{} became {now}", left.src());
    rig.udp_in(at(X, 9), left.src(), a())
}

fn icmp_from_anywhere(rig: &mut Rig) -> Proof {
    let left = rig.through(Wire::Lan, &Packet::udp(a(), at(X, 7000), b"ping"))?;
    for router in [Y, X2, host_outside()] {
        let error = rig.through(Wire::Wan, &Packet::error(router, 11, 0, &left))?;
        ensure!(error.dst_addr() == A && error.src_addr() == router, "not for {A}: {}", error.describe());
    }
    Ok(())
}

fn unreachable_comes_in(rig: &mut Rig) -> Proof {
    let ping = Packet::udp(a(), at(X, 7000), b"ping");
    let left = rig.through(Wire::Lan, &ping)?;
    for code in [0, 1, 2, 3, 4, 9, 10, 13] {
        let error = rig.through(Wire::Wan, &Packet::error(X, 3, code, &left))?;
        ensure!(error.icmp_kind() == Some((3, code)), "not the same: {}", error.describe());
        ensure!(error.dst_addr() == A, "not for {A}: {}", error.describe());
        let quoted = error.quoted().ok_or("quotes nothing")?;
        ensure!((quoted.src(), quoted.dst()) == (a(), at(X, 7000)), "quotes another: {}", error.describe());
    }
    Ok(())
}

fn too_long_with_df(rig: &mut Rig) -> Proof {
    rig.start(Settings { wan_mtu: 1400, ..Settings::default() })?;
    let long = Packet::udp(a(), at(X, 7000), &[7; 1373]);
    let error = rig.back(Wire::Lan, &long)?;
    ensure!(error.icmp_kind() == Some((3, 4)) && error.dst_addr() == A, "not ICMP 3/4: {}", error.describe());
    let mtu = u16::from_be_bytes([error.body[6], error.body[7]]);
    ensure!(mtu == 1400, "says that {mtu} bytes would do, not 1400 (RFC 1191)");
    let quoted = error.quoted().ok_or("quotes nothing")?;
    ensure!(
        (quoted.src(), quoted.dst()) == (a(), at(X, 7000)),
        "quotes what A did not send: {}",
        error.describe()
    );
    rig.through(Wire::Lan, &Packet::udp(a(), at(X, 7000), &[7; 1372])).map(|_| ())
}

fn too_long_without_df(rig: &mut Rig) -> Proof {
    rig.start(Settings { wan_mtu: 1400, ..Settings::default() })?;
    let mut long = Packet::udp(a(), at(X, 7000), &[7; 1450]);
    long.ip.dont_fragment = false;
    long.seal();
    let left = rig.send(Wire::Lan, &long)?;
    let fragments: Vec<Packet> = left.into_iter().map(|(_, packet)| packet).collect();
    ensure!(fragments.len() == 2, "{} packets left, not 2", fragments.len());
    let offsets: Vec<u16> = fragments.iter().map(|fragment| fragment.ip.fragment_offset.value()).collect();
    ensure!(offsets.is_sorted(), "not in order: {offsets:?}");
    let whole = Packet::join(&fragments).ok_or("the fragments do not make a datagram")?;
    ensure!(whole.fault().is_none(), "{}", whole.describe());
    ensure!(
        whole.payload() == long.payload() && whole.src_addr() != A,
        "not what was sent: {}",
        whole.describe()
    );
    Ok(())
}

/// The orders in which three fragments can come.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn send_fragments(
    rig: &mut Rig,
    wire: Wire,
    whole: &Packet,
    id: u16,
    order: [usize; 3],
) -> Result<Packet, String> {
    let fragments = whole.cut(id, 160);
    let mut left = Vec::new();
    for index in order {
        left.extend(rig.send(wire, &fragments[index])?);
    }
    ensure!(left.len() == 3, "{} of 3 fragments left", left.len());
    let is_other = left.iter().all(|(to, _)| *to == wire.other());
    ensure!(is_other, "a fragment went back where it came from");
    let left: Vec<Packet> = left.into_iter().map(|(_, packet)| packet).collect();
    let joined = Packet::join(&left).ok_or("the fragments do not make a datagram")?;
    match joined.fault() {
        Some(fault) => Err(format!("{fault} in what the fragments make")),
        None if joined.payload() != whole.payload() => Err("the fragments make another datagram".to_owned()),
        None => Ok(joined),
    }
}

fn fragments_in_any_order(rig: &mut Rig) -> Proof {
    let payload: Vec<u8> = (0..400u16).map(|byte| byte as u8).collect();
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    for (index, order) in ORDERS.into_iter().enumerate() {
        let id = 100 + index as u16;
        let seen = send_fragments(rig, Wire::Lan, &Packet::udp(a(), at(X, 7000), &payload), id, order)?;
        ensure!(seen.src() == mapped, "came from {}, not {mapped}", seen.src());
        let seen = send_fragments(rig, Wire::Wan, &Packet::udp(at(X, 7000), mapped, &payload), id, order)?;
        ensure!(seen.dst() == a(), "went to {}, not {}", seen.dst(), a());
    }
    Ok(())
}

fn fragment_flood(rig: &mut Rig) -> Proof {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    let mut connection = Connection::open(rig, at(B, 5001), at(X, 80))?;
    let payload = [7; 400];
    let mut lost = Vec::new();
    rig.quietly(
        "100,000 fragments without a first, from 20,000 senders, with clean traffic in between",
        |rig| {
            for round in 0..100u32 {
                for burst in 0..20u32 {
                    let mut flood = Vec::new();
                    for number in 0..50u32 {
                        let sender = (round * 1000 + burst * 50 + number) / 5;
                        let from = std::net::Ipv4Addr::from(u32::from_be_bytes([192, 88, 0, 0]) + sender);
                        let whole = Packet::udp(at(from, 9), mapped, &payload);
                        flood.push(whole.cut(number as u16, 160).remove(1));
                    }
                    rig.send_all(Wire::Wan, &flood)?;
                }
                // What has to go on meanwhile.
                let order = [0, 1, 2];
                let good = rig.udp_in(at(X, 7000), mapped, a()).and_then(|()| {
                    connection.inbound(rig, super::packet::tcp::ACK | super::packet::tcp::PSH, b"data")?;
                    let whole = Packet::udp(at(X, 7000), mapped, &payload);
                    send_fragments(rig, Wire::Wan, &whole, 7000 + round as u16, order).map(|_| ())
                });
                lost.extend(good.err());
            }
            Ok::<(), String>(())
        },
    )?;
    ensure!(lost.is_empty(), "{} of 100 rounds of clean traffic suffered: {}", lost.len(), lost[0]);
    rig.note("after the flood");
    rig.udp_in(at(X, 7000), mapped, a())?;
    rig.udp_out(at(host(0), 5000), at(X, 7000)).map(|_| ())
}
