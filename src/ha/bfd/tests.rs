//! The state machine against its table, two nodes on a link that loses, the codec against scapy.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use super::engine::Counters;
use super::machine::{ANSWER_GAP, Settings};
use super::packet::Datagram;
use super::*;
use crate::ha::one_hop::source_of;
use crate::packet::checksum;
use crate::time::Nanos;

const START: Nanos = Nanos::from_secs(100);
const FAST: Settings = Settings { interval: Micros(50_000), multiplier: 3 };

fn millis(millis: u64) -> Nanos {
    START.plus(Duration::from_millis(millis))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not 0")
}

/// What a slow other end says.
fn says(state: State) -> Control {
    Control {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        is_final: false,
        is_authenticated: false,
        demand: false,
        detect_mult: 3,
        my_discriminator: number(7),
        your_discriminator: 9,
        desired_min_tx: Micros(1_000_000),
        required_min_rx: Micros(1_000_000),
    }
}

/// A machine in each state, with nothing left to send, and not heard of since [`START`].
fn machine(state: State, settings: Settings) -> Machine {
    let before = Nanos(START.0 - 10_000_000);
    let mut machine = Machine::new(settings, number(9), 1);
    let mut step = |event, now| {
        machine.step(event, now);
    };
    step(Event::PathUp, before);
    match state {
        State::Down => {}
        State::AdminDown => step(Event::Disable, START),
        State::Init => step(Event::Heard(says(State::Down)), START),
        State::Up => {
            step(Event::Heard(says(State::Down)), START);
            step(Event::Heard(says(State::Init)), START);
        }
    }
    machine.step(Event::Transmit, START.plus(ANSWER_GAP));
    assert_eq!(machine.state(), state);
    machine
}

/// Flags of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    Plain,
    Poll,
    Final,
}

/// One line of the transition table: in which state, what happens, so many milliseconds later than [`START`]; the state
/// then, what is sent, and why it is down.
type Line = (State, Event, u64, State, Option<Flag>, Diagnostic);

#[test]
fn the_transition_table_of_rfc_5880_section_6_8() {
    use Flag::{Final, Plain, Poll};
    use State::{AdminDown, Down, Init, Up};
    let heard = |state| Event::Heard(says(state));
    let polled = |state| Event::Heard(Control { poll: true, ..says(state) });
    let (none, expired, neighbour) = (Diagnostic::NONE, Diagnostic::EXPIRED, Diagnostic::NEIGHBOUR_DOWN);
    let (path, admin) = (Diagnostic::PATH_DOWN, Diagnostic::ADMIN_DOWN);
    let lines: &[Line] = &[
        (AdminDown, Event::PathUp, 100, AdminDown, None, admin),
        (AdminDown, Event::PathDown, 100, AdminDown, None, admin),
        (AdminDown, Event::Disable, 100, AdminDown, None, admin),
        (AdminDown, Event::Transmit, 9000, AdminDown, None, admin),
        (AdminDown, Event::Detect, 9000, AdminDown, None, admin),
        (AdminDown, heard(AdminDown), 100, AdminDown, None, admin),
        (AdminDown, heard(Down), 100, AdminDown, None, admin),
        (AdminDown, heard(Init), 100, AdminDown, None, admin),
        (AdminDown, heard(Up), 100, AdminDown, None, admin),
        (AdminDown, polled(Up), 100, AdminDown, None, admin),
        (Down, Event::PathUp, 100, Down, None, none),
        (Down, Event::PathDown, 100, Down, None, none),
        (Down, Event::Disable, 100, AdminDown, Some(Plain), admin),
        (Down, Event::Transmit, 100, Down, None, none),
        (Down, Event::Transmit, 1000, Down, Some(Plain), none),
        (Down, Event::Detect, 100, Down, None, none),
        (Down, heard(AdminDown), 100, Down, None, none),
        (Down, heard(Down), 100, Init, Some(Plain), none),
        (Down, heard(Init), 100, Up, Some(Poll), none),
        (Down, heard(Up), 100, Down, None, none),
        (Down, polled(Up), 100, Down, Some(Final), none),
        (Down, polled(AdminDown), 100, Down, Some(Final), none),
        (Init, Event::PathUp, 100, Init, None, none),
        (Init, Event::PathDown, 100, Down, None, path),
        (Init, Event::Disable, 100, AdminDown, Some(Plain), admin),
        (Init, Event::Transmit, 100, Init, None, none),
        (Init, Event::Transmit, 1001, Init, Some(Plain), none),
        (Init, Event::Detect, 700, Init, None, none),
        (Init, Event::Detect, 3000, Down, Some(Plain), expired),
        (Init, heard(AdminDown), 100, Down, Some(Plain), neighbour),
        (Init, heard(Down), 100, Init, None, none),
        (Init, heard(Init), 100, Up, Some(Poll), none),
        (Init, heard(Up), 100, Up, Some(Poll), none),
        (Init, polled(Down), 100, Init, Some(Final), none),
        (Up, Event::PathUp, 100, Up, None, none),
        (Up, Event::PathDown, 100, Down, None, path),
        (Up, Event::Disable, 100, AdminDown, Some(Plain), admin),
        (Up, Event::Transmit, 100, Up, None, none),
        (Up, Event::Transmit, 1001, Up, Some(Poll), none),
        (Up, Event::Detect, 700, Up, None, none),
        (Up, Event::Detect, 3000, Down, Some(Plain), expired),
        (Up, heard(AdminDown), 100, Down, Some(Plain), neighbour),
        (Up, heard(Down), 100, Down, Some(Plain), neighbour),
        (Up, heard(Init), 100, Up, None, none),
        (Up, heard(Up), 100, Up, None, none),
        (Up, polled(Up), 100, Up, Some(Final), none),
        // The answer first; that it is down as well is in it.
        (Up, polled(Down), 100, Down, Some(Final), neighbour),
    ];
    for (before, event, at, after, sent, why) in lines {
        let line = format!("{before:?} {event:?}, {at} ms later");
        let mut machine = machine(*before, FAST);
        let actions = machine.step(*event, millis(*at));
        assert_eq!((machine.state(), machine.diagnostic()), (*after, *why), "{line}");
        assert_eq!(actions.contains(&Action::Changed), before != after, "{line}");
        let packets: Vec<Control> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Send(control) => Some(*control),
                Action::Changed => None,
            })
            .collect();
        let flags = packets.iter().map(|packet| match (packet.poll, packet.is_final) {
            (false, false) => Plain,
            (true, false) => Poll,
            (false, true) => Final,
            (true, true) => panic!("RFC 5880 section 6.5: not both; {line}"),
        });
        assert_eq!(flags.collect::<Vec<_>>(), sent.iter().copied().collect::<Vec<_>>(), "{line}");
        for packet in packets {
            assert_eq!((packet.state, packet.diagnostic), (*after, *why), "{line}");
            assert_eq!((packet.detect_mult, packet.my_discriminator, packet.demand), (3, number(9), false));
            assert_eq!(packet.desired_min_tx.0, if *after == Up { 50_000 } else { 1_000_000 }, "{line}");
            assert_eq!(packet.required_min_rx.0, 50_000, "{line}");
            let is_heard = matches!(event, Event::Heard(_)) || *before != Down;
            let knows = is_heard && *why != expired;
            assert_eq!(packet.your_discriminator, if knows { 7 } else { 0 }, "{line}");
        }
    }
}

/// Times between packets of a machine that hears one packet a while.
fn gaps(state: State, settings: Settings, heard: Control) -> Vec<Duration> {
    let mut machine = machine(state, settings);
    let (mut gaps, mut last) = (Vec::new(), None);
    while gaps.len() < 2000 {
        let now = machine.transmit_due().expect("it sends");
        for action in machine.step(Event::Transmit, now) {
            if let Action::Send(_) = action {
                gaps.extend(last.replace(now).map(|last| now.since(last)));
            }
        }
        machine.step(Event::Heard(heard), now);
    }
    gaps
}

#[test]
fn packets_come_at_three_quarters_to_all_of_the_interval() {
    let fast = Control { required_min_rx: Micros(20_000), is_final: true, ..says(State::Up) };
    let bounds = |gaps: Vec<Duration>| {
        let micros = |gap: Option<&Duration>| gap.expect("some").as_micros();
        // The first may be one that was slower.
        (micros(gaps[1..].iter().min()), micros(gaps[1..].iter().max()))
    };
    let (least, most) = bounds(gaps(State::Up, FAST, fast));
    assert!((37_500..38_500).contains(&least) && (49_000..=50_000).contains(&most), "{least} to {most}");
    // RFC 5880 section 6.8.7: none may be missing.
    let (least, most) = bounds(gaps(State::Up, Settings { multiplier: 1, ..FAST }, fast));
    assert!((37_500..38_500).contains(&least) && (44_000..=45_000).contains(&most), "{least} to {most}");
    // The other end can take less.
    let (least, most) = bounds(gaps(State::Up, FAST, Control { required_min_rx: Micros(100_000), ..fast }));
    assert!((75_000..77_000).contains(&least) && (98_000..=100_000).contains(&most), "{least} to {most}");
    // Not before it is Up.
    let (least, most) =
        bounds(gaps(State::Init, FAST, Control { required_min_rx: Micros(1), ..says(State::Down) }));
    assert!(
        (750_000..770_000).contains(&least) && (980_000..=1_000_000).contains(&most),
        "{least} to {most}"
    );
}

#[test]
fn intervals_change_when_the_other_end_knows() {
    let fast =
        |control| Control { desired_min_tx: Micros(10_000), required_min_rx: Micros(10_000), ..control };
    let heard = |is_final| Event::Heard(fast(Control { is_final, ..says(State::Up) }));
    let times = |machine: &Machine| {
        let millis = |time: Duration| time.as_millis();
        (millis(machine.transmit_interval()), millis(machine.detection_time()))
    };
    let mut machine = machine(State::Up, FAST);
    machine.step(heard(true), START);
    assert_eq!(times(&machine), (50, 150));
    // Less often: it is told at once, and done when that was heard. Meanwhile the other end may have given us up.
    let every = |micros| Settings { interval: Micros(micros), ..FAST };
    machine.set(every(200_000));
    assert_eq!(times(&machine), (50, 600));
    machine.step(heard(false), START);
    assert_eq!(times(&machine), (50, 600), "that was no answer");
    machine.step(heard(true), START);
    assert_eq!(times(&machine), (200, 600));
    // More often: at once; what is expected of the other end, when it has heard it.
    machine.set(every(20_000));
    assert_eq!(times(&machine), (20, 600));
    // And otherwise again, before it has answered: that may be the answer to the first question.
    machine.set(every(40_000));
    machine.step(heard(true), START);
    assert_eq!(times(&machine), (20, 600));
    machine.step(heard(true), START);
    assert_eq!(times(&machine), (40, 120));
    // The same once more asks nothing.
    machine.set(every(40_000));
    let sent = machine.step(Event::Transmit, millis(900));
    assert!(matches!(sent[..], [Action::Send(Control { poll: false, .. })]), "{sent:?}");
    // Another multiplier is for the other end to count with, in every packet.
    machine.set(Settings { multiplier: 9, ..every(40_000) });
    assert_eq!(times(&machine), (40, 120));
}

#[test]
fn who_wants_to_hear_nothing_hears_nothing_but_answers() {
    let up = Control { is_final: true, ..says(State::Up) };
    let demand = Control { demand: true, ..up };
    let deaf = Control { required_min_rx: Micros(0), ..up };
    for quiet in [demand, deaf] {
        let mut machine = machine(State::Up, FAST);
        machine.step(Event::Heard(quiet), millis(100));
        assert_eq!(machine.transmit_due(), None, "{quiet:?}");
        let sent = machine.step(Event::Heard(Control { poll: true, ..quiet }), millis(200));
        assert!(matches!(sent[..], [Action::Send(Control { is_final: true, .. })]), "{sent:?}");
        assert_eq!(machine.transmit_due(), None, "{quiet:?}");
        // Its own silence is one all the same.
        assert_eq!(machine.detection_due(), Some(millis(3200)));
        let told = machine.step(Event::Heard(up), millis(1400));
        assert!(matches!(told[..], [Action::Send(_)]), "an interval is over since the last: {told:?}");
    }
    // In Demand mode polls are sent all the same.
    let mut machine = machine(State::Up, FAST);
    machine.step(Event::Heard(demand), millis(100));
    machine.set(Settings { interval: Micros(60_000), ..FAST });
    let sent = machine.step(Event::Transmit, millis(1200));
    assert!(matches!(sent[..], [Action::Send(Control { poll: true, .. })]), "{sent:?}");
    // Whoever was deaf and is gone may be another by now.
    let mut machine = self::machine(State::Down, FAST);
    machine.step(Event::Heard(Control { required_min_rx: Micros(0), ..says(State::Up) }), millis(100));
    assert_eq!(machine.transmit_due(), None);
    machine.step(Event::Detect, millis(3100));
    assert!(machine.transmit_due().is_some());
}

#[test]
fn nobody_can_have_it_send_more_than_a_packet_a_millisecond_out_of_turn() {
    let mut machine = machine(State::Up, FAST);
    let mut sent = 0;
    for micros in 0..100_000 {
        let now = millis(100).plus(Duration::from_micros(micros));
        let polled = Control { poll: true, ..says(State::Up) };
        sent += machine.step(Event::Heard(polled), now).len();
    }
    assert_eq!(sent, 100);
}

#[test]
fn without_a_link_nothing_is_sent_or_heard() {
    let mut machine = machine(State::Up, FAST);
    machine.step(Event::PathDown, millis(100));
    assert_eq!((machine.transmit_due(), machine.detection_due()), (None, None));
    assert!(machine.step(Event::Heard(says(State::Down)), millis(200)).is_empty());
    assert_eq!((machine.state(), machine.detection_due()), (State::Down, None));
    let sent = machine.step(Event::PathUp, millis(300));
    assert!(matches!(sent[..], [Action::Send(Control { state: State::Down, .. })]), "{sent:?}");
}

#[test]
fn to_be_asked_down_is_no_failure() {
    let mut machine = machine(State::Up, FAST);
    machine.step(Event::Heard(says(State::AdminDown)), millis(100));
    assert!(machine.was_asked_down());
    machine.step(Event::Detect, millis(3100));
    assert!(machine.was_asked_down(), "it says nothing any more");
    machine.step(Event::Heard(says(State::Init)), millis(4000));
    assert_eq!((machine.state(), machine.was_asked_down()), (State::Up, false));
    machine.step(Event::Heard(says(State::Down)), millis(4100));
    assert_eq!((machine.state(), machine.was_asked_down()), (State::Down, false));
}

// ---- the codec

/// scapy 2.5: IP(ttl=255, tos=0xc0, flags="DF", id=0) / UDP(sport=49152, dport=3784) / BFD(diag=3, sta=3, flags="P", ...).
const SCAPY_V4: &str = "45c0003400004000ff11f6f4c0000202c0000201c0000ec80020700723e00318\
                        11223344556677880000c3500000413c00000000";
/// scapy 2.5: IPv6(hlim=255, tc=0xc0) / UDP(sport=65535, dport=3784) / BFD(sta=2, flags="F", ...).
const SCAPY_V6: &str = "6c000000002011ff20010db800000000000000000000000220010db8000000000000000000000001\
                        ffff0ec800205be720900318\
                        11223344556677880000c3500000413c00000000";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

/// What scapy was told to say.
fn scapy(is_ipv6: bool) -> Datagram {
    let (src, dst) = if is_ipv6 { ("2001:db8::2", "2001:db8::1") } else { ("192.0.2.2", "192.0.2.1") };
    Datagram {
        src_addr: address(src),
        dst_addr: address(dst),
        src_port: if is_ipv6 { 65_535 } else { 49_152 },
        control: Control {
            diagnostic: if is_ipv6 { Diagnostic::NONE } else { Diagnostic::NEIGHBOUR_DOWN },
            state: if is_ipv6 { State::Init } else { State::Up },
            poll: !is_ipv6,
            is_final: is_ipv6,
            is_authenticated: false,
            demand: false,
            detect_mult: 3,
            my_discriminator: number(0x1122_3344),
            your_discriminator: 0x5566_7788,
            desired_min_tx: Micros(50_000),
            required_min_rx: Micros(16_700),
        },
    }
}

#[test]
fn packets_are_those_of_scapy() {
    for (text, is_ipv6) in [(SCAPY_V4, false), (SCAPY_V6, true)] {
        assert_eq!(scapy(is_ipv6).emit(), bytes(text));
        assert_eq!(Datagram::parse(&bytes(text)), Ok(scapy(is_ipv6)));
        assert_eq!(source_of(&bytes(text)), Some(scapy(is_ipv6).src_addr));
    }
}

/// With a right checksum again.
fn mend(packet: &mut [u8]) {
    let is_v4 = packet[0] >> 4 == 4;
    let l4 = if is_v4 { 20 } else { 40 };
    packet[l4 + 6..l4 + 8].fill(0);
    let len = packet.len() - l4;
    let pseudo = if is_v4 {
        checksum::pseudo_v4(packet[12..16].try_into().unwrap(), packet[16..20].try_into().unwrap(), 17, len)
    } else {
        checksum::pseudo_v6(packet[8..24].try_into().unwrap(), packet[24..40].try_into().unwrap(), 17, len)
    };
    let sum = !checksum::fold(checksum::add(pseudo, &packet[l4..]));
    packet[l4 + 6..l4 + 8].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn what_is_wrong_with_a_packet() {
    // Places in the control packet are from its first byte on.
    for (text, udp) in [(SCAPY_V4, 20), (SCAPY_V6, 40)] {
        let bfd = udp + 8;
        for (at, value, wrong) in [
            (udp + 2, 0x0f, BadControl::Truncated),
            (udp + 5, 0x21, BadControl::Truncated),
            (udp + 5, 7, BadControl::Truncated),
            (udp + 5, 0x1f, BadControl::Truncated),
            (bfd, 0x40, BadControl::Version),
            (bfd + 3, 23, BadControl::Length),
            (bfd + 3, 25, BadControl::Length),
            // Authenticated, without room for it.
            (bfd + 1, 0xc4, BadControl::Length),
            (bfd + 2, 0, BadControl::DetectMult),
            (bfd + 1, 0xc1, BadControl::Multipoint),
        ] {
            let mut packet = bytes(text);
            packet[at] = value;
            if at != udp + 5 {
                mend(&mut packet);
            } else if udp == 20 {
                // None at all.
                packet[udp + 6..udp + 8].fill(0);
            }
            let read = Datagram::parse(&packet);
            let is_cut = udp == 40 && at == udp + 5 && value == 0x1f;
            let wrong = if is_cut { BadControl::Checksum } else { wrong };
            assert_eq!(read, Err(wrong), "{value:#x} at {at}");
        }
        let mut nobody = bytes(text);
        nobody[bfd + 4..bfd + 8].fill(0);
        mend(&mut nobody);
        assert_eq!(Datagram::parse(&nobody), Err(BadControl::MyDiscriminator));
        let mut other = bytes(text);
        other[bfd + 9] ^= 1;
        assert_eq!(Datagram::parse(&other), Err(BadControl::Checksum));
        for len in 0..bytes(text).len() {
            assert_eq!(Datagram::parse(&bytes(text)[..len]), Err(BadControl::Truncated), "{len}");
        }
        // Padding of the link is not part of it.
        let padded = [bytes(text), vec![0; 9]].concat();
        assert!(Datagram::parse(&padded).is_ok());
        let mut unsummed = bytes(text);
        unsummed[udp + 6..udp + 8].fill(0);
        assert_eq!(Datagram::parse(&unsummed).is_ok(), udp == 20, "only over IPv4");
    }
    for (text, at, value, wrong) in [
        (SCAPY_V4, 8, 254, BadControl::Ttl),
        (SCAPY_V4, 9, 6, BadControl::Truncated),
        (SCAPY_V4, 6, 0x20, BadControl::Truncated),
        (SCAPY_V4, 7, 1, BadControl::Truncated),
        (SCAPY_V4, 0, 0x44, BadControl::Truncated),
        (SCAPY_V4, 0, 0x55, BadControl::Truncated),
        (SCAPY_V6, 7, 254, BadControl::Ttl),
        (SCAPY_V6, 6, 0, BadControl::Truncated),
    ] {
        let mut packet = bytes(text);
        packet[at] = value;
        assert_eq!(Datagram::parse(&packet), Err(wrong), "{value:#x} at {at}");
    }
    // What is authenticated can be read as far as anybody needs it.
    let mut packet = [bytes(SCAPY_V4), vec![1, 4, 1, b'k']].concat();
    (packet[3], packet[25], packet[29], packet[31]) = (56, 36, 0xc4, 28);
    mend(&mut packet);
    assert!(Datagram::parse(&packet).expect("whole").control.is_authenticated);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut packet in proptest::collection::vec(any::<u8>(), 0..120), family in 0..3u8) {
        let frame = match family {
            0 => &[0x45, 0, 0, 52, 0, 0, 0, 0, 255, 17][..],
            1 => &[0x60, 0, 0, 0, 0, 32, 17, 255][..],
            _ => &[],
        };
        for (byte, ours) in packet.iter_mut().zip(frame) {
            *byte = *ours;
        }
        let _ = source_of(&packet);
        if let Ok(datagram) = Datagram::parse(&packet) {
            prop_assert!(datagram.control.detect_mult > 0);
        }
    }

    #[test]
    fn what_is_written_is_read(
        state in 0..4usize, flags: [bool; 3], detect_mult in 1..=255u8, numbers: [u32; 4], src_port: u16, hosts: [u8; 2],
    ) {
        let [mine, yours, tx, rx] = numbers;
        let control = Control {
            diagnostic: Diagnostic::EXPIRED,
            state: State::ALL[state],
            poll: flags[0],
            is_final: flags[1],
            is_authenticated: false,
            demand: flags[2],
            detect_mult,
            my_discriminator: number(mine | 1),
            your_discriminator: yours,
            desired_min_tx: Micros(tx),
            required_min_rx: Micros(rx),
        };
        let [src, dst] = hosts.map(|host| IpAddr::from([192, 0, 2, host]));
        let datagram = Datagram { src_addr: src, dst_addr: dst, src_port, control };
        prop_assert_eq!(Datagram::parse(&datagram.emit()), Ok(datagram));
    }
}

// ---- nodes on links

const LINK: u16 = 3;

fn session(node: u8, is_ipv6: bool, settings: Settings) -> SessionPlan {
    let of = |node: u8| match is_ipv6 {
        true => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(node)]),
        false => IpAddr::from([192, 0, 2, node]),
    };
    SessionPlan { link: LINK, local: of(node), peer: of(3 - node), settings, up: true }
}

/// Two nodes, 1 and 2, and what they have sent: sender, whom to, packet.
struct Network {
    engines: [Engine; 2],
    plans: [Plan; 2],
    dead: [bool; 2],
    now: Nanos,
    sent: Vec<(usize, IpAddr, Vec<u8>)>,
    changes: Vec<(usize, State)>,
}

impl Network {
    fn new(settings: [Settings; 2]) -> Network {
        let plan = |node: u8| Plan {
            sessions: [false, true]
                .map(|is_ipv6| session(node, is_ipv6, settings[usize::from(node) - 1]))
                .to_vec(),
        };
        let mut network = Network {
            engines: [Engine::new(1), Engine::new(2)],
            plans: [plan(1), plan(2)],
            dead: [false; 2],
            now: START,
            sent: Vec::new(),
            changes: Vec::new(),
        };
        (0..2).for_each(|node| network.plan(node));
        network
    }

    fn plan(&mut self, node: usize) {
        let mut out = Vec::new();
        self.engines[node].set_plan(self.plans[node].clone(), self.now, &mut out);
        self.deliver(node, out, &mut |_| false);
    }

    fn deliver(&mut self, from: usize, out: Vec<Output>, loses: &mut dyn FnMut(usize) -> bool) {
        let mut queue = vec![(from, out)];
        while let Some((from, out)) = queue.pop() {
            for output in out {
                match output {
                    Output::Changed { state, .. } => self.changes.push((from, state)),
                    Output::Send { link, peer, packet } => {
                        self.sent.push((from, peer, packet.clone()));
                        let to = 1 - from;
                        if self.dead[to] || loses(from) {
                            continue;
                        }
                        let mut out = Vec::new();
                        self.engines[to].receive(link, &packet, self.now, &mut out);
                        queue.push((to, out));
                    }
                }
            }
        }
    }

    /// In steps of a millisecond.
    fn run(&mut self, millis: u64, loses: &mut dyn FnMut(usize) -> bool) {
        for _ in 0..millis {
            self.now = self.now.plus(Duration::from_millis(1));
            for node in 0..2 {
                if !self.dead[node] {
                    let mut out = Vec::new();
                    self.engines[node].poll(self.now, &[], &mut out);
                    self.deliver(node, out, loses);
                }
            }
        }
    }

    fn calm(&mut self, millis: u64) {
        self.run(millis, &mut |_| false);
    }

    fn states(&self, node: usize) -> Vec<State> {
        self.engines[node].status().iter().map(|status| status.state).collect()
    }

    fn paths(&self, node: usize) -> Vec<Path> {
        self.engines[node].status().iter().map(|status| status.path).collect()
    }

    fn counters(&self, node: usize) -> Counters {
        self.engines[node].status()[0].counters
    }
}

#[test]
fn two_nodes_come_up_and_notice_death_within_the_detection_time() {
    let slower = Settings { interval: Micros(100_000), multiplier: 5 };
    let mut network = Network::new([FAST, slower]);
    assert_eq!(network.paths(0), [Path::Unproven; 2]);
    network.calm(1100);
    assert_eq!((network.states(0), network.states(1)), (vec![State::Up; 2], vec![State::Up; 2]));
    network.calm(200);
    // Each waits for the other's multiplier, at the slower of what one sends and the other takes.
    let times = |node: usize| {
        let status = network.engines[node].status();
        (status[0].transmit_interval.as_millis(), status[0].detection_time.as_millis())
    };
    assert_eq!((times(0), times(1)), ((100, 500), (100, 300)));
    // Both have asked, and were answered.
    let polls = |network: &Network, from: usize| {
        let read =
            |(_, _, packet): &&(usize, IpAddr, Vec<u8>)| Datagram::parse(packet).expect("ours").control.poll;
        let sent = network.sent.iter().filter(|(sender, ..)| *sender == from);
        sent.rev().take(3).filter(read).count()
    };
    assert_eq!((polls(&network, 0), polls(&network, 1)), (0, 0));

    network.dead[1] = true;
    let silent = network.now;
    while network.states(0)[0] == State::Up {
        network.calm(1);
    }
    let took = network.now.since(silent).as_millis();
    assert!((400..=501).contains(&took), "{took}");
    network.calm(100);
    assert_eq!(network.paths(0), [Path::Failed; 2]);
    assert_eq!(network.engines[0].status()[0].diagnostic, Diagnostic::EXPIRED);

    // It starts again, and knows nothing of before.
    network.engines[1] = Engine::new(77);
    network.dead[1] = false;
    network.plan(1);
    network.calm(2000);
    assert_eq!((network.paths(0), network.paths(1)), (vec![Path::Good; 2], vec![Path::Good; 2]));
    // At once again: the other hears of it before it misses it.
    network.engines[1] = Engine::new(99);
    let before = network.counters(0).went_down;
    network.plan(1);
    network.calm(10);
    assert_eq!(network.counters(0).went_down, before + 1);
    assert_eq!(network.engines[0].status()[0].diagnostic, Diagnostic::NEIGHBOUR_DOWN);
    network.calm(2000);
    assert_eq!(network.paths(0), [Path::Good; 2]);

    // Its link goes: it knows at once, and is silent.
    for session in &mut network.plans[0].sessions {
        session.up = false;
    }
    network.plan(0);
    assert_eq!(network.states(0), [State::Down; 2]);
    network.calm(2000);
    assert_eq!(network.states(1), [State::Down; 2]);
    for session in &mut network.plans[0].sessions {
        session.up = true;
    }
    network.plan(0);
    network.calm(2000);
    assert_eq!((network.states(0), network.states(1)), (vec![State::Up; 2], vec![State::Up; 2]));
    let errors: u64 = (0..2).map(|node| network.counters(node).errors.iter().sum::<u64>()).sum();
    // What was about a session of before, when one knew nothing of it any more.
    assert!(errors <= 12, "{errors}");
}

#[test]
fn who_ends_a_session_says_so() {
    let mut network = Network::new([FAST, FAST]);
    network.calm(1500);
    assert_eq!(network.paths(0), [Path::Good; 2]);
    let kept = network.engines[1].status()[1].discriminator;
    network.plans[1].sessions.remove(0);
    network.plan(1);
    assert_eq!(network.paths(0), [Path::Ended, Path::Good]);
    network.calm(2000);
    assert_eq!(network.paths(0), [Path::Ended, Path::Good]);
    assert_eq!(network.engines[1].status()[0].discriminator, kept, "what stays goes on as it was");
    // What is sent there now is a stranger's.
    let unknown = BadControl::ALL.iter().position(|bad| *bad == BadControl::UnknownPeer).expect("listed");
    assert!(network.engines[1].strays()[unknown] > 0);
    let mut out = Vec::new();
    network.engines[1].stop(network.now, &mut out);
    network.deliver(1, out, &mut |_| false);
    assert_eq!(network.paths(0), [Path::Ended; 2]);
    assert_eq!(network.engines[1].next_deadline(), None);
}

#[test]
fn intervals_change_while_it_is_up() {
    let mut network = Network::new([FAST, FAST]);
    network.calm(1500);
    for micros in [400_000, 10_000, 90_000] {
        for session in &mut network.plans[0].sessions {
            session.settings.interval = Micros(micros);
        }
        network.plan(0);
        network.calm(1500);
        let status = &network.engines[1].status()[0];
        assert_eq!(status.detection_time, Duration::from_micros(3 * u64::from(micros.max(50_000))));
        assert_eq!(status.transmit_interval, Duration::from_micros(micros.max(50_000).into()));
    }
    assert_eq!((network.counters(0).went_down, network.counters(1).went_down), (0, 0));
}

#[test]
fn packets_are_taken_from_the_peer_on_its_link_alone() {
    let mut network = Network::new([FAST, FAST]);
    network.calm(1500);
    let status = network.engines[0].status();
    let (ours, theirs) = (status[0].discriminator.get(), number(status[0].remote.discriminator));
    let of_other_family = status[1].discriminator.get();
    let from = |node: u8, to: u8, control| {
        let [src, dst] = [node, to].map(|node| IpAddr::from([192, 0, 2, node]));
        Datagram { src_addr: src, dst_addr: dst, src_port: 49_999, control }.emit()
    };
    let down =
        |your_discriminator| Control { my_discriminator: theirs, your_discriminator, ..says(State::Down) };
    let authenticated = |mut packet: Vec<u8>| {
        packet.extend([1, 4, 1, b'k']);
        (packet[3], packet[25], packet[31]) = (56, 36, 28);
        packet[29] |= 4;
        mend(&mut packet);
        packet
    };
    let cases = [
        (LINK, from(2, 1, down(ours ^ 1)), BadControl::YourDiscriminator, true),
        (LINK, from(2, 1, down(of_other_family)), BadControl::YourDiscriminator, true),
        (LINK, from(9, 1, down(ours)), BadControl::YourDiscriminator, false),
        (LINK + 1, from(2, 1, down(ours)), BadControl::YourDiscriminator, false),
        (LINK, from(9, 1, down(0)), BadControl::UnknownPeer, false),
        (LINK + 1, from(2, 1, down(0)), BadControl::UnknownPeer, false),
        (LINK, from(2, 8, down(0)), BadControl::UnknownPeer, true),
        (LINK, from(2, 1, Control { state: State::Up, ..down(0) }), BadControl::NotDown, true),
        (LINK, from(2, 1, Control { state: State::Init, ..down(0) }), BadControl::NotDown, true),
        (LINK, authenticated(from(2, 1, down(ours))), BadControl::Authenticated, true),
        (LINK, from(2, 1, down(ours))[..40].to_vec(), BadControl::Truncated, true),
    ];
    for (link, packet, wrong, is_known) in cases {
        let at = BadControl::ALL.iter().position(|bad| *bad == wrong).expect("listed");
        let counted = |engine: &Engine| (engine.status()[0].counters.errors[at], engine.strays()[at]);
        let before = counted(&network.engines[0]);
        let mut out = Vec::new();
        network.engines[0].receive(link, &packet, network.now, &mut out);
        let after = counted(&network.engines[0]);
        let more = if is_known { (before.0 + 1, before.1) } else { (before.0, before.1 + 1) };
        assert_eq!(after, more, "{wrong:?} on {link}");
        assert_eq!((out, network.states(0)[0]), (vec![], State::Up), "{wrong:?} on {link}");
    }
    // The right one is heard.
    let mut out = Vec::new();
    network.engines[0].receive(LINK, &from(2, 1, down(ours)), network.now, &mut out);
    assert_eq!(network.states(0)[0], State::Down);
}

#[test]
fn what_is_unread_is_no_silence() {
    let mut network = Network::new([FAST, FAST]);
    network.calm(1500);
    let (mut out, later) = (Vec::new(), network.now.plus(Duration::from_secs(5)));
    network.engines[0].poll(later, &[LINK], &mut out);
    assert_eq!(network.states(0), [State::Up; 2]);
    network.engines[0].poll(later, &[LINK + 1], &mut out);
    assert_eq!(network.states(0), [State::Down; 2]);
}

#[test]
fn sessions_have_numbers_and_ports_of_their_own() {
    let plan = |count: u8| Plan {
        sessions: (0..count)
            .map(|host| SessionPlan { peer: [198, 51, 100, host].into(), ..session(1, false, FAST) })
            .collect(),
    };
    let (mut engine, mut out) = (Engine::new(3), Vec::new());
    engine.set_plan(plan(100), START, &mut out);
    engine.set_plan(plan(250), START, &mut out);
    let read = |output: &Output| match output {
        Output::Send { packet, .. } => Datagram::parse(packet).expect("ours"),
        Output::Changed { .. } => panic!("nothing has changed"),
    };
    let sent: Vec<Datagram> = out.iter().map(read).collect();
    assert_eq!(sent.len(), 250);
    let mut ports: Vec<u16> = sent.iter().map(|packet| packet.src_port).collect();
    let mut numbers: Vec<u32> = sent.iter().map(|packet| packet.control.my_discriminator.get()).collect();
    ports.sort_unstable();
    ports.dedup();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!((ports.len(), numbers.len()), (250, 250));
    assert!(ports[0] >= 49_152);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever a link has lost, and whoever has started anew: once it loses nothing more, both are up.
    #[test]
    fn both_are_up_after_the_link_heals(chaos: u64, restarts in proptest::collection::vec(0..2usize, 0..4), multiplier in 1..5u8) {
        let settings = Settings { multiplier, ..FAST };
        let mut network = Network::new([settings, settings]);
        let mut word = chaos | 1;
        let mut loses = |_: usize| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word >> 61 < 5
        };
        for (number, node) in restarts.iter().enumerate() {
            network.run(1300, &mut loses);
            network.engines[*node] = Engine::new(chaos ^ number as u64);
            let plan = network.plans[*node].clone();
            let mut out = Vec::new();
            network.engines[*node].set_plan(plan, network.now, &mut out);
            network.deliver(*node, out, &mut loses);
        }
        network.run(2000, &mut loses);
        network.calm(4500);
        prop_assert_eq!((network.states(0), network.states(1)), (vec![State::Up; 2], vec![State::Up; 2]));
        let went_down = [0, 1].map(|node| network.counters(node).went_down);
        network.calm(5000);
        prop_assert_eq!(went_down, [0, 1].map(|node| network.counters(node).went_down), "and stay so");
    }
}
