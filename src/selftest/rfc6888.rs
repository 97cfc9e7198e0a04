//! RFC 6888: what a NAT for many subscribers (CGN) has to do. A subscriber here is an inside host.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::packet::{DCCP, Packet, at, tcp};
use super::rfc4787::paired_pooling;
use super::rfc5508::{no_port_left, over_quota, told};
use super::rfc7857::ports_are_random;
use super::rig::{A, B, C, Connection, Proof, Rig, Settings, Wire, X, X2, Y, a, ensure, host};
use super::{Clause, Level, Test};

const MUST: Level = Level::Must;
const SHOULD: Level = Level::Should;
const MAY: Level = Level::May;

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        id: "RFC 6888 REQ-1",
        level: MUST,
        text: "What holds for a NAT of UDP, TCP and ICMP holds: every MUST of RFC 4787, 5382 and 5508.",
        test: Test::All(&["RFC 4787", "RFC 5382", "RFC 5508"]),
    },
    Clause::check(
        "RFC 6888 REQ-1 DCCP",
        MUST,
        "If DCCP is forwarded, then as RFC 5597 has it: translated like UDP.",
        dccp,
    ),
    Clause::check(
        "RFC 6888 REQ-2",
        MUST,
        "By default all mappings of a host are at one outside address (paired).",
        paired_pooling,
    ),
    Clause::check(
        "RFC 6888 REQ-3",
        SHOULD,
        "The pool may be any number of addresses, not contiguous.",
        any_pool,
    ),
    Clause::check("RFC 6888 REQ-4", MUST, "The number of a host's ports is limited.", port_limit),
    Clause::check("RFC 6888 REQ-4a", MUST, "That limit is configurable.", port_limit_is_configurable),
    Clause::not_applicable(
        "RFC 6888 REQ-4b",
        MAY,
        "There is one limit for each protocol.",
        "an option that is not taken: a block of ports serves all protocols, each with all its ports; `max_blocks_per_host` counts blocks",
    ),
    Clause::check(
        "RFC 6888 REQ-4c",
        SHOULD,
        "How fast a host makes mappings can be limited (`new_mappings_per_host`).",
        mapping_rate,
    ),
    Clause::check(
        "RFC 6888 REQ-5",
        SHOULD,
        "The state that a host takes is limited (`per_host_sessions`).",
        session_limit,
    ),
    Clause::check(
        "RFC 6888 REQ-6",
        MUST,
        "Translation can be switched off for destinations, by address and by port.",
        exempt,
    ),
    Clause::check(
        "RFC 6888 REQ-7",
        SHOULD,
        "Filtering is endpoint-independent.",
        endpoint_independent_filtering,
    ),
    Clause::check(
        "RFC 6888 REQ-8",
        SHOULD,
        "A port that was given back is given to nobody else for 120 s.",
        hold_down,
    ),
    Clause::check(
        "RFC 6888 REQ-8 time",
        MUST,
        "That time is configurable (`hold_down_s`).",
        hold_down_is_configurable,
    ),
    Clause::check(
        "RFC 6888 REQ-8 number",
        MUST,
        "So is the number of ports that rest (`max_held_ports`).",
        held_ports_are_configurable,
    ),
    Clause::missing(
        "RFC 6888 REQ-9",
        MUST,
        "A host can control its mappings itself, SHOULD by PCP.",
        "no PCP: mappings from outside are the operator's (`[[nat.destination]]`, `[[nat.static]]`)",
    ),
    Clause::not_applicable(
        "RFC 6888 REQ-10",
        SHOULD,
        "It is manageable.",
        "no packet can show it: `softgate show nat`, `show sessions`, `clear sessions`, JSON-RPC",
    ),
    Clause::missing(
        "RFC 6888 REQ-10 MIB",
        SHOULD,
        "Management follows a standard (RFC 4008).",
        "no SNMP: JSON-RPC on a local socket",
    ),
    Clause::check(
        "RFC 6888 REQ-11A",
        MUST,
        "A packet for which no mapping can be made is dropped.",
        dropped_when_full,
    ),
    Clause::check(
        "RFC 6888 REQ-11B",
        SHOULD,
        "If the pool is exhausted, the sender gets ICMP 3/1.",
        told_when_exhausted,
    ),
    Clause::check(
        "RFC 6888 REQ-11B quota",
        SHOULD,
        "If the host has all ports it may have, it gets ICMP 3/1 too.",
        told_when_over_quota,
    ),
    Clause::missing(
        "RFC 6888 REQ-11C",
        SHOULD,
        "A management system is notified of that.",
        "nothing is sent or logged: refusals are counted, `show nat` and `show drops` tell",
    ),
    Clause::check(
        "RFC 6888 REQ-11D",
        MUST,
        "No mapping is ended to make room for another.",
        nobody_makes_room,
    ),
    Clause::not_applicable(
        "RFC 6888 REQ-12",
        SHOULD,
        "Destinations are not logged.",
        "no packet can show it: in the event log, records of port blocks have none; sessions are logged only where a rule says `log`",
    ),
    Clause::check("RFC 6888 REQ-13", SHOULD, "All ports of the pool can be used.", all_ports_are_used),
    Clause::check(
        "RFC 6888 REQ-14",
        SHOULD,
        "Ports are given in blocks, so that a log has one record for many mappings.",
        ports_come_in_blocks,
    ),
    Clause::check("RFC 6888 REQ-15", SHOULD, "Ports are hard to guess.", ports_are_random),
];

fn dccp(rig: &mut Rig) -> Proof {
    rig.start(Settings { pool: r#"["203.0.113.1"]"#, ..Settings::default() })?;
    // A DCCP-Request (RFC 4340 section 5.1): ports, offset 5 words, checksum, type 0 with long sequence numbers.
    let mut body = vec![0x13, 0x88, 0x1b, 0x58, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    body[8] = 1;
    let request = Packet::other(A, X, DCCP, body);
    let left = rig.send(Wire::Lan, &request)?;
    let Some((_, left)) = left.first() else {
        rig.note("not forwarded: then nothing is asked");
        return Ok(());
    };
    let fault = left.fault();
    ensure!(
        fault.is_none(),
        "it leaves with the pool's address and a {}: no receiver takes it",
        fault.unwrap_or("")
    );
    let others = rig.send(Wire::Lan, &Packet::other(B, X, DCCP, request.body.clone()))?;
    let is_out = others.first().is_some_and(|(wire, _)| *wire == Wire::Wan);
    ensure!(
        is_out,
        "one host at a time: its ports are not translated, so that another one's have no room beside them"
    );
    let reply = Packet::other(X, left.src_addr(), DCCP, left.body.clone());
    rig.through(Wire::Wan, &reply).map(|_| ())
}

fn any_pool(rig: &mut Rig) -> Proof {
    let pool = r#"["203.0.113.1", "203.0.113.6-203.0.113.7", "192.0.2.129", "192.0.2.192/30"]"#;
    rig.start(Settings { pool, ports: Some("20032-20095"), ..Settings::default() })?;
    let mut seen = BTreeSet::new();
    for number in 0..8 {
        let mapped = rig.udp_out(at(host(number), 5000), at(X, 7000))?;
        seen.insert(*mapped.ip());
    }
    let wanted: BTreeSet<Ipv4Addr> = [
        [203, 0, 113, 1],
        [203, 0, 113, 6],
        [203, 0, 113, 7],
        [192, 0, 2, 129],
        [192, 0, 2, 192],
        [192, 0, 2, 193],
        [192, 0, 2, 194],
        [192, 0, 2, 195],
    ]
    .into_iter()
    .map(Ipv4Addr::from)
    .collect();
    ensure!(seen == wanted, "used are {seen:?}");
    Ok(())
}

/// How many ports a host gets before it is refused.
fn ports_of(rig: &mut Rig, inside: Ipv4Addr, most: u16) -> Result<BTreeSet<SocketAddrV4>, String> {
    rig.quietly(&format!("{inside} takes ports until it is refused"), |rig| {
        let mut ports = BTreeSet::new();
        for port in 0..=most {
            let left = rig.send(Wire::Lan, &Packet::udp(at(inside, 2000 + port), at(X, 7000), b"ping"))?;
            match left.first() {
                Some((Wire::Wan, packet)) => {
                    ensure!(ports.insert(packet.src()), "{} was given twice", packet.src())
                }
                _ => return Ok(ports),
            }
        }
        Ok(ports)
    })
}

fn port_limit(rig: &mut Rig) -> Proof {
    let ports = ports_of(rig, A, 2000)?;
    rig.note(&format!("{A} got {} ports", ports.len()));
    ensure!(ports.len() == 1024, "{A} got {} ports, not 16 blocks of 64", ports.len());
    rig.note("other hosts and A's own mappings do not notice");
    rig.udp_out(at(B, 5000), at(X, 7000))?;
    rig.udp_out(at(A, 2000), at(X, 7000)).map(|_| ())
}

fn port_limit_is_configurable(rig: &mut Rig) -> Proof {
    for (nat, wanted) in
        [("max_blocks_per_host = 2", 128), ("max_blocks_per_host = 1\nblock_size = 256", 256)]
    {
        rig.start(Settings { nat, ..Settings::default() })?;
        let ports = ports_of(rig, A, 600)?;
        rig.note(&format!("{A} got {} ports", ports.len()));
        ensure!(ports.len() == wanted, "{A} got {} ports, not {wanted}", ports.len());
    }
    Ok(())
}

fn mapping_rate(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: "new_mappings_per_host = { per_s = 1, burst = 8 }", ..Settings::default() })?;
    for port in 5000..5008 {
        rig.udp_out(at(A, port), at(X, 7000))?;
    }
    let refused = rig.back(Wire::Lan, &Packet::udp(at(A, 5008), at(X, 7000), b"ping"))?;
    ensure!(refused.is_error(), "not refused: {}", refused.describe());
    rig.note("what A has goes on, and B does not notice");
    rig.udp_out(at(A, 5000), at(X, 7000))?;
    rig.udp_out(at(B, 5000), at(X, 7000))?;
    rig.wait_in_silence(2)?;
    rig.udp_out(at(A, 5008), at(X, 7000)).map(|_| ())
}

fn session_limit(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "per_host_sessions = 8", ..Settings::default() })?;
    for port in 0..8 {
        rig.udp_out(a(), at(X, 7000 + port))?;
    }
    let answer = rig.back(Wire::Lan, &Packet::udp(a(), at(X, 7008), b"ping"))?;
    ensure!(answer.is_error(), "not refused: {}", answer.describe());
    rig.note("other hosts and A's own sessions do not notice");
    rig.udp_out(at(B, 5000), at(X, 7008))?;
    rig.udp_out(a(), at(X, 7000)).map(|_| ())
}

fn exempt(rig: &mut Rig) -> Proof {
    let more = "[[nat.source]]\nname = \"not-to-y\"\nto = { prefix = \"198.51.100.30\" }\nexempt = true\n\
                [[nat.source]]\nname = \"not-dns\"\nservice = [\"udp/53\", \"tcp/53\"]\nexempt = true\n";
    rig.start(Settings { more, ..Settings::default() })?;
    for to in [at(Y, 7000), at(X, 53)] {
        let left = rig.through(Wire::Lan, &Packet::udp(a(), to, b"ping"))?;
        ensure!((left.src(), left.dst()) == (a(), to), "changed: {}", left.describe());
        let seen = rig.through(Wire::Wan, &Packet::udp(to, a(), b"pong"))?;
        ensure!((seen.src(), seen.dst()) == (to, a()), "changed: {}", seen.describe());
    }
    rig.note("the rest is translated");
    rig.udp_out(a(), at(X, 7000)).map(|_| ())
}

fn endpoint_independent_filtering(rig: &mut Rig) -> Proof {
    let mapped = rig.udp_out(a(), at(X, 7000))?;
    rig.udp_in(at(X2, 9), mapped, a())?;
    rig.udp_in(at(Y, 9), mapped, a())?;
    let mapped = Connection::open(rig, a(), at(X, 80))?.mapped;
    for from in [at(X2, 9), at(Y, 9)] {
        let seen = rig.through(Wire::Wan, &Packet::tcp(from, mapped, tcp::SYN, 5, 0, b""))?;
        ensure!((seen.src(), seen.dst()) == (from, a()), "not for {A}: {}", seen.describe());
    }
    Ok(())
}

/// One address with one block of 64 ports; mappings live for 2 minutes.
const SMALL: Settings = Settings {
    flows: "udp_s = 120",
    nat: "",
    pool: r#"["203.0.113.1"]"#,
    ports: Some("20032-20095"),
    wan_mtu: 1500,
    more: "",
};

/// A takes all ports, and lets their mappings end.
fn take_and_leave(rig: &mut Rig) -> Proof {
    let ports = ports_of(rig, A, 64 - 1)?;
    ensure!(ports.len() == 64, "{A} got {} ports, not 64", ports.len());
    rig.wait_in_silence(121)?;
    rig.note("they have ended");
    let ended = ports.first().copied().ok_or("no port")?;
    rig.udp_in_lost(at(X, 7000), ended)
}

/// Whether another host gets a port.
fn gets_one(rig: &mut Rig, from: SocketAddrV4) -> Result<bool, String> {
    let left = rig.send(Wire::Lan, &Packet::udp(from, at(X, 7000), b"ping"))?;
    Ok(matches!(left.first(), Some((Wire::Wan, _))))
}

/// A block that is empty goes back within a minute after its last port has rested.
const SWEPT_S: u64 = 62;

fn hold_down(rig: &mut Rig) -> Proof {
    rig.tick_finely();
    rig.start(SMALL)?;
    take_and_leave(rig)?;
    for seconds in [0, 60, 57] {
        rig.wait_in_silence(seconds)?;
        ensure!(!gets_one(rig, at(B, 5000))?, "{B} got a port that had not rested for 120 s");
    }
    rig.note("A's own endpoints may have theirs back");
    ensure!(gets_one(rig, at(A, 2000))?, "{A}:2000 did not get its own port back");
    rig.wait_in_silence(121 + 120 + SWEPT_S)?;
    ensure!(gets_one(rig, at(B, 5000))?, "{B} gets no port though all have rested");
    Ok(())
}

fn hold_down_is_configurable(rig: &mut Rig) -> Proof {
    rig.tick_finely();
    rig.start(Settings { nat: "hold_down_s = 240", ..SMALL })?;
    take_and_leave(rig)?;
    rig.wait_in_silence(236)?;
    ensure!(!gets_one(rig, at(B, 5000))?, "{B} got a port that had not rested for 240 s");
    rig.wait_in_silence(SWEPT_S)?;
    ensure!(gets_one(rig, at(B, 5000))?, "{B} gets no port though all have rested");
    rig.start(Settings { nat: "hold_down_s = 0", ..SMALL })?;
    take_and_leave(rig)?;
    rig.wait_in_silence(SWEPT_S)?;
    ensure!(gets_one(rig, at(B, 5000))?, "{B} gets no port though none has to rest");
    Ok(())
}

fn held_ports_are_configurable(rig: &mut Rig) -> Proof {
    rig.start(Settings { nat: "max_held_ports = 10", ..SMALL })?;
    take_and_leave(rig)?;
    let mut free = 0;
    rig.quietly("A's other endpoints take what does not rest", |rig| -> Proof {
        while free < 64 && gets_one(rig, at(A, 3000 + free))? {
            free += 1;
        }
        Ok(())
    })?;
    rig.note(&format!("{free} of 64 ports could be had at once"));
    ensure!(free == 54, "{free} of 64 ports could be had at once, not all but 10");
    Ok(())
}

fn dropped_when_full(rig: &mut Rig) -> Proof {
    let answer = no_port_left(rig)?;
    ensure!(answer.is_error(), "not refused: {}", answer.describe());
    for packet in
        [Packet::udp(at(B, 6001), at(Y, 7000), b"ping"), Packet::udp(at(C, 6001), at(X, 7000), b"ping")]
    {
        let left = rig.send(Wire::Lan, &packet)?;
        let passed = left.iter().find(|(wire, _)| *wire == Wire::Wan);
        ensure!(passed.is_none(), "let through: {}", packet.describe());
    }
    rig.note("TCP and ICMP have ports of their own: A takes them as well");
    let answer = rig.back(Wire::Lan, &Packet::tcp(at(B, 6000), at(X, 80), tcp::SYN, 5, 0, b""))?;
    ensure!(answer.is_error(), "not refused: {}", answer.describe());
    Ok(())
}

fn told_when_exhausted(rig: &mut Rig) -> Proof {
    told(&no_port_left(rig)?, 1, "")
}

fn told_when_over_quota(rig: &mut Rig) -> Proof {
    told(&over_quota(rig)?, 1, ", as RFC 5508 REQ-8 wants another code for administrative limits")
}

fn nobody_makes_room(rig: &mut Rig) -> Proof {
    rig.start(Settings { flows: "udp_s = 300", ..SMALL })?;
    let mut owners = Vec::new();
    for port in 0..64 {
        owners.push((
            at(A, 5000 + port),
            rig.quietly("A takes a port", |rig| rig.udp_out(at(A, 5000 + port), at(X, 7000)))?,
        ));
    }
    rig.note("pool exhausted: 64 flows of other hosts are refused");
    for number in 0..64u16 {
        let from = at(host((number % 8) as u8), 6000 + number);
        let passed = rig.quietly("a flow of another host", |rig| gets_one(rig, from))?;
        ensure!(!passed, "{from} got a port");
    }
    for (inside, mapped) in owners {
        rig.udp_in(at(X, 7000), mapped, inside)?;
    }
    rig.note("the session table is full: 64 sessions");
    rig.start(Settings { flows: "capacity = 64", ..Settings::default() })?;
    let mut owners = Vec::new();
    for port in 0..64 {
        owners.push((at(A, 5000 + port), rig.udp_out(at(A, 5000 + port), at(X, 7000))?));
    }
    let answer = rig.back(Wire::Lan, &Packet::udp(at(B, 5000), at(X, 7000), b"ping"))?;
    ensure!(answer.is_error(), "not refused: {}", answer.describe());
    for (inside, mapped) in owners {
        rig.udp_in(at(X, 7000), mapped, inside)?;
    }
    Ok(())
}

fn all_ports_are_used(rig: &mut Rig) -> Proof {
    // Two addresses with four blocks of 64 each.
    rig.start(Settings { pool: r#"["203.0.113.0/31"]"#, ports: Some("20032-20287"), ..Settings::default() })?;
    let mut all = BTreeSet::new();
    for number in 0..12 {
        let ports = ports_of(rig, host(number), 64 - 1)?;
        rig.note(&format!("{} got {}", host(number), ports.len()));
        for port in ports {
            ensure!(all.insert(port), "{port} was given twice");
        }
    }
    ensure!(all.len() == 512, "{} of 512 ports were used", all.len());
    Ok(())
}

fn ports_come_in_blocks(rig: &mut Rig) -> Proof {
    let mut blocks = BTreeSet::new();
    for port in 0..64 {
        blocks.insert(rig.udp_out(at(A, 5000 + port), at(X, 7000))?.port() / 64);
    }
    ensure!(blocks.len() == 1, "64 mappings of {A} are in {} blocks", blocks.len());
    let mapped = rig.udp_out(at(A, 6000), at(X, 7000))?;
    ensure!(blocks.insert(mapped.port() / 64), "a 65th mapping in a block of 64");
    let mapped = Connection::begin(rig, a(), at(X, 80))?.mapped;
    ensure!(!blocks.insert(mapped.port() / 64), "TCP took a block of its own");
    Ok(())
}
