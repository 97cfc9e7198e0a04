//! Tests of the TCP tracker.

mod honest;

use proptest::prelude::{
    Just, Strategy, any, prop_assert, prop_assert_eq, prop_assert_ne, prop_oneof, proptest,
};

use super::State::*;
use super::Verdict::*;
use super::*;

const ORIGINAL: Direction = Direction::Original;
const REPLY: Direction = Direction::Reply;
const BOTH: [Direction; 2] = [ORIGINAL, REPLY];

/// Initial sequence numbers of the connections below, and the window both sides offer.
const CLIENT: u32 = 1_000;
const SERVER: u32 = 5_000;
const WINDOW: u16 = 10_000;

const ALL_STATES: [State; 10] = [
    None,
    SynSent,
    SimultaneousOpen,
    SynReceived,
    Established,
    FinOriginal,
    FinReply,
    BothFin,
    Closing,
    Refused,
];
const SYNCHRONISED: [State; 5] = [Established, FinOriginal, FinReply, BothFin, Closing];

fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
    Segment { seq, ack, payload_len: 0, window: WINDOW, flags, options: SynOptions::default() }
}

impl Segment {
    fn with_data(self, payload_len: u32) -> Segment {
        Segment { payload_len, ..self }
    }

    fn with_window(self, window: u16) -> Segment {
        Segment { window, ..self }
    }

    fn with_scale(self, scale: u8) -> Segment {
        Segment { options: SynOptions { window_scale: Some(scale), ..self.options }, ..self }
    }
}

/// Runs segments that all must be forwarded.
fn run(mut tcp: Tcp, segments: &[(Direction, Segment)]) -> Tcp {
    for (direction, segment) in segments {
        assert_eq!(tcp.advance(*direction, segment), Forward, "{direction:?} {segment:?}");
    }
    tcp
}

fn syn_sent() -> Tcp {
    Tcp::open(&segment(SYN, CLIENT, 0), false).unwrap()
}

/// A connection that came to `state` in the usual way.
fn at(state: State) -> Tcp {
    let fin_original = (ORIGINAL, segment(FIN | ACK, CLIENT + 1, SERVER + 1));
    let tcp = match state {
        None => Tcp::default(),
        SynSent => syn_sent(),
        SimultaneousOpen => run(syn_sent(), &[(REPLY, segment(SYN, SERVER, 0))]),
        SynReceived => run(syn_sent(), &[(REPLY, segment(SYN | ACK, SERVER, CLIENT + 1))]),
        Established => run(at(SynReceived), &[(ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1))]),
        FinOriginal => run(at(Established), &[fin_original]),
        FinReply => run(at(Established), &[(REPLY, segment(FIN | ACK, SERVER + 1, CLIENT + 1))]),
        BothFin => run(at(FinOriginal), &[(REPLY, segment(FIN | ACK, SERVER + 1, CLIENT + 2))]),
        Closing => run(at(Established), &[(ORIGINAL, segment(RST, CLIENT + 1, 0))]),
        Refused => run(syn_sent(), &[(REPLY, segment(RST | ACK, 0, CLIENT + 1))]),
    };
    assert_eq!(tcp.state(), state);
    tcp
}

/// What `direction` may well send next, each event in bounds.
fn next(tcp: &Tcp, direction: Direction, event: Event) -> Segment {
    let (s, r) = direction.sides();
    let (seq, ack) = (tcp.ends[s].max_end, tcp.ends[r].max_end);
    let (isn, peer_isn) = if s == 0 { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
    match event {
        Event::Syn => segment(SYN, seq.wrapping_add(1_000_000), 0),
        Event::SynAck => segment(SYN | ACK, isn, peer_isn + 1),
        Event::Ack => segment(ACK, seq, ack).with_data(10),
        Event::Fin => segment(FIN | ACK, seq, ack),
        Event::Rst => segment(RST | ACK, seq, ack),
    }
}

const EVENTS: [Event; 5] = [Event::Syn, Event::SynAck, Event::Ack, Event::Fin, Event::Rst];

#[derive(Clone, Copy)]
enum Expect {
    To(State),
    Pass,
    New,
    OutOfState,
    NoConnection,
}

#[test]
fn every_state_meets_every_event() {
    use Expect::{New, NoConnection, OutOfState, Pass, To};
    const NONE: [Expect; 5] = [NoConnection; 5];
    // syn, syn-ack, data, fin, rst: from the original side, then from the other.
    #[rustfmt::skip]
    let table = [
        (None, NONE, NONE),
        (SynSent,
            [To(SynSent), OutOfState, OutOfState, OutOfState, Pass],
            [To(SimultaneousOpen), To(SynReceived), OutOfState, OutOfState, To(Refused)]),
        (SimultaneousOpen,
            [To(SimultaneousOpen), To(SynReceived), To(SynReceived), To(SynReceived), To(Closing)],
            [To(SimultaneousOpen), To(SynReceived), To(SynReceived), To(SynReceived), To(Closing)]),
        (SynReceived,
            [Pass, To(Established), To(Established), To(FinOriginal), To(Closing)],
            [Pass, To(SynReceived), To(SynReceived), To(SynReceived), To(Closing)]),
        (Established,
            [Pass, Pass, To(Established), To(FinOriginal), To(Closing)],
            [Pass, Pass, To(Established), To(FinReply), To(Closing)]),
        (FinOriginal,
            [Pass, Pass, To(FinOriginal), To(FinOriginal), To(Closing)],
            [Pass, Pass, To(FinOriginal), To(BothFin), To(Closing)]),
        (FinReply,
            [Pass, Pass, To(FinReply), To(BothFin), To(Closing)],
            [Pass, Pass, To(FinReply), To(FinReply), To(Closing)]),
        (BothFin,
            [New, Pass, To(BothFin), To(BothFin), To(Closing)],
            [New, Pass, To(BothFin), To(BothFin), To(Closing)]),
        (Closing,
            [New, Pass, To(Established), To(Closing), Pass],
            [New, Pass, To(Established), To(Closing), Pass]),
        (Refused,
            [New, OutOfState, OutOfState, OutOfState, Pass],
            [New, Pass, OutOfState, OutOfState, Pass]),
    ];
    assert_eq!(table.map(|(state, ..)| state), ALL_STATES);
    for (state, original, reply) in table {
        for (direction, row) in [(ORIGINAL, original), (REPLY, reply)] {
            for (event, expect) in EVENTS.into_iter().zip(row) {
                let mut tcp = at(state);
                let verdict = tcp.advance(direction, &next(&at(state), direction, event));
                let expected = match expect {
                    To(next) => (Forward, next),
                    Pass => (ForwardOnly, state),
                    New => (Reopen, state),
                    OutOfState => (Drop(TcpFault::OutOfState), state),
                    NoConnection => (Drop(TcpFault::NoConnection), state),
                };
                assert_eq!((verdict, tcp.state()), expected, "{state:?} {direction:?} {event:?}");
                if verdict != Forward {
                    tcp.flags &= !SYN_PASSED;
                    assert_eq!(tcp, at(state), "{state:?} {direction:?} {event:?} left a trace");
                }
            }
        }
    }
}

#[test]
fn only_flags_an_endpoint_would_send_are_legal() {
    // PSH and URG go with all of them, ECN bits with everything.
    let legal = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK];
    for bits in 0..=u8::MAX {
        let is_legal = legal.contains(&(bits & (SYN | ACK | FIN | RST)));
        assert_eq!(Event::of(bits).is_some(), is_legal, "{bits:#04x}");
        if !is_legal {
            assert_eq!(Tcp::open(&segment(bits, 1, 1), true), Err(TcpFault::BadFlags));
            for state in ALL_STATES {
                let mut tcp = at(state);
                let bad = segment(bits, tcp.ends[0].max_end, tcp.ends[1].max_end);
                assert_eq!(tcp.advance(ORIGINAL, &bad), Drop(TcpFault::BadFlags), "{bits:#04x} in {state:?}");
                assert_eq!(tcp, at(state));
            }
        }
    }
}

#[test]
fn what_is_far_out_of_window_is_dropped_in_every_synchronised_state() {
    for state in SYNCHRONISED {
        for direction in BOTH {
            for event in [Event::Ack, Event::Fin, Event::Rst] {
                let good = next(&at(state), direction, event);
                for (seq, ack) in [(1 << 31, 0), (1 << 28, 0), (0, 1 << 28), (0, 1 << 31)] {
                    if event == Event::Rst && seq == 0 {
                        continue; // RFC 5961 section 3.2 looks at the sequence number only.
                    }
                    let bad =
                        Segment { seq: good.seq.wrapping_add(seq), ack: good.ack.wrapping_add(ack), ..good };
                    let fault =
                        if event == Event::Rst { TcpFault::RstOutOfWindow } else { TcpFault::OutOfWindow };
                    let mut tcp = at(state);
                    assert_eq!(
                        tcp.advance(direction, &bad),
                        Drop(fault),
                        "{state:?} {direction:?} {event:?}"
                    );
                    assert_eq!(tcp, at(state));
                }
            }
        }
    }
}

#[test]
fn each_state_has_its_timeout() {
    let timers = TcpTimers {
        established: Duration::from_secs(1),
        opening: Duration::from_secs(2),
        closing: Duration::from_secs(3),
        reset: Duration::from_secs(4),
    };
    let timeouts = ALL_STATES.map(|state| at(state).timeout(&timers).as_secs());
    assert_eq!(timeouts, [2, 2, 2, 2, 1, 1, 1, 3, 4, 4]);
}

#[test]
fn timers_default_to_the_rfcs() {
    let timers = TcpTimers::default();
    assert_eq!(timers.established, Duration::from_secs(2 * 3_600 + 4 * 60)); // RFC 5382 REQ-5
    for transitory in [timers.opening, timers.closing, timers.reset] {
        assert_eq!(transitory, Duration::from_secs(4 * 60)); // RFC 7857 sections 2.1 and 2.2
    }
}

#[test]
fn a_state_is_half_open_established_or_closing() {
    for state in ALL_STATES {
        let tcp = at(state);
        let expected = match state {
            None => (false, false, false),
            SynSent | SimultaneousOpen | SynReceived => (true, false, false),
            Established | FinOriginal | FinReply => (false, true, false),
            BothFin | Closing | Refused => (false, false, true),
        };
        assert_eq!((tcp.is_half_open(), tcp.is_established(), tcp.is_closing()), expected, "{state:?}");
    }
}

// Bounds.

/// One side as [`End`] keeps it, in positions that do not wrap, and the window.
#[derive(Clone, Copy, Debug)]
struct Side {
    max_end: i64,
    max_ack: i64,
    limit: i64,
    window: i64,
}

impl Side {
    fn reach(&self) -> i64 {
        let power = (0..=MAX_WINDOW_EXPONENT).map(|e| 1 << (16 + e)).find(|power| power + 464 >= self.window);
        power.unwrap_or(1 << 28) + 464
    }
}

/// The four bounds as they stand at the top of tcp.rs. Positions count from the initial sequence numbers.
fn twin(sides: &mut [Side; 2], direction: Direction, seq: i64, len: i64, ack: i64, window: i64) -> bool {
    let (s, r) = direction.sides();
    let ok = seq <= sides[s].limit + if len == 0 { 2 } else { 0 }
        && seq + len >= sides[r].max_ack - sides[r].reach()
        && ack <= sides[r].max_end
        && ack >= sides[s].max_ack - sides[s].reach();
    if ok {
        sides[s].window = sides[s].window.max(window);
        sides[s].max_end = sides[s].max_end.max(seq + len);
        sides[s].max_ack = sides[s].max_ack.max(ack);
        sides[r].limit = sides[r].limit.max(ack + window);
    }
    ok
}

/// A segment relative to bounds: which one, and how far from it.
#[derive(Clone, Copy, Debug)]
struct Aim {
    direction: Direction,
    seq: (u8, i64),
    ack: (u8, i64),
    len: i64,
    window: u16,
}

fn aim() -> impl Strategy<Value = Aim> {
    let offset = || prop_oneof![4 => -3..=3i64, 1 => -100_000..=100_000i64];
    (any::<bool>(), (0..4u8, offset()), (0..4u8, offset()), prop_oneof![Just(0), 0..1_461i64], any::<u16>())
        .prop_map(|(reply, seq, ack, len, window)| Aim {
            direction: if reply { REPLY } else { ORIGINAL },
            seq,
            ack,
            len,
            window,
        })
}

proptest! {
    #[test]
    fn bounds_equal_the_twin_and_both_paths_agree(
        isns: [u32; 2],
        scales: [u8; 2],
        aims in proptest::collection::vec(aim(), 1..60),
    ) {
        let scales = scales.map(|scale| scale % 15);
        let mut tcp = run(
            Tcp::open(&segment(SYN, isns[0], 0).with_scale(scales[0]), false).unwrap(),
            &[
                (REPLY, segment(SYN | ACK, isns[1], isns[0].wrapping_add(1)).with_scale(scales[1])),
                (ORIGINAL, segment(ACK, isns[0].wrapping_add(1), isns[1].wrapping_add(1)).with_window(0)),
            ],
        );
        let side = Side { max_end: 1, max_ack: 1, limit: 1 + i64::from(WINDOW), window: 0 };
        let mut sides = [side; 2];
        for aim in aims {
            let (s, r) = aim.direction.sides();
            let anchors = [sides[s].limit, sides[s].max_end, sides[r].max_ack,
                sides[r].max_ack - sides[r].reach() - aim.len];
            let seq = anchors[usize::from(aim.seq.0)] + aim.seq.1;
            let anchors = [sides[r].max_end, sides[r].max_end, sides[s].max_ack,
                sides[s].max_ack - sides[s].reach()];
            let ack = anchors[usize::from(aim.ack.0)] + aim.ack.1;
            let sent = segment(ACK, isns[s].wrapping_add(seq as u32), isns[r].wrapping_add(ack as u32))
                .with_data(aim.len as u32)
                .with_window(aim.window);
            let window = i64::from(aim.window) << scales[s];

            let expected = twin(&mut sides, aim.direction, seq, aim.len, ack, window);
            let mut other = tcp;
            let verdict = tcp.advance(aim.direction, &sent);
            prop_assert_eq!(verdict, if expected { Forward } else { Drop(TcpFault::OutOfWindow) });
            prop_assert_eq!(other.advance_special(aim.direction, &sent), verdict);
            prop_assert_eq!(other, tcp);
            for side in 0..2 {
                prop_assert_eq!(tcp.ends[side].max_end, isns[side].wrapping_add(sides[side].max_end as u32));
                prop_assert_eq!(tcp.ends[side].limit, isns[side].wrapping_add(sides[side].limit as u32));
                prop_assert_eq!(i64::from(tcp.window(side)), sides[side].reach());
            }
        }
    }

    #[test]
    fn nothing_panics_and_what_is_not_forwarded_leaves_no_trace(
        loose: bool,
        segments in proptest::collection::vec((any::<bool>(), any::<u8>(), 0..8u32, 0..8u32, 0..3u32), 1..60),
    ) {
        let mut tcp: Option<Tcp> = Option::None;
        for (reply, flags, seq, ack, payload_len) in segments {
            let segment = segment(flags, seq, ack).with_data(payload_len);
            let direction = if reply { REPLY } else { ORIGINAL };
            match &mut tcp {
                Option::None => tcp = Tcp::open(&segment, loose).ok(),
                Some(tcp) => {
                    let before = *tcp;
                    let verdict = tcp.advance(direction, &segment);
                    if verdict != Forward {
                        tcp.flags = tcp.flags & !SYN_PASSED | before.flags & SYN_PASSED;
                        prop_assert_eq!(*tcp, before, "{:?}", verdict);
                    }
                }
            }
        }
    }
}

/// A connection on which the client has 3,000 bytes in flight of which the server has acknowledged 1,000.
fn in_flight() -> Tcp {
    run(
        at(Established),
        &[
            (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_data(3_000)),
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 1_001)),
        ],
    )
}

#[test]
fn keep_alives_pass() {
    // RFC 9293 section 3.8.4: one before the next number, with or without a byte.
    for direction in BOTH {
        for len in [0, 1] {
            let tcp = run(in_flight(), &[(REPLY, segment(ACK, SERVER + 1, CLIENT + 3_001))]);
            let (s, r) = direction.sides();
            let probe = segment(ACK, tcp.ends[s].max_end - 1, tcp.ends[r].max_end).with_data(len);
            assert_eq!(run(tcp, &[(direction, probe)]), tcp);
        }
    }
}

#[test]
fn zero_window_probes_pass_and_what_follows_too() {
    let closed = segment(ACK, SERVER + 1, CLIENT + 10_001).with_window(0);
    let tcp = run(
        at(Established),
        &[
            (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_data(10_000)),
            (REPLY, closed),
            // RFC 9293 section 3.8.6.1: one byte into the closed window, again and again.
            (ORIGINAL, segment(ACK, CLIENT + 10_001, SERVER + 1).with_data(1)),
            (REPLY, closed),
            (ORIGINAL, segment(ACK, CLIENT + 10_001, SERVER + 1).with_data(1)),
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 10_002).with_window(0)),
            (ORIGINAL, segment(ACK, CLIENT + 10_002, SERVER + 1).with_data(1)),
        ],
    );
    let beyond = segment(ACK, CLIENT + 10_003, SERVER + 1).with_data(1);
    assert_eq!({ tcp }.advance(ORIGINAL, &beyond), Drop(TcpFault::OutOfWindow));
    run(tcp, &[(REPLY, segment(ACK, SERVER + 1, CLIENT + 10_002)), (ORIGINAL, beyond)]);
}

#[test]
fn a_fin_into_a_closed_window_and_the_acks_after_it_pass_in_any_order() {
    let (fin, ack) =
        (segment(FIN | ACK, CLIENT + 10_002, SERVER + 1), segment(ACK, CLIENT + 10_003, SERVER + 1));
    let probe = segment(ACK, CLIENT + 10_001, SERVER + 1).with_data(1);
    for order in [[probe, fin, ack], [ack, fin, probe], [fin, ack, probe]] {
        let tcp = run(at(Established), &order.map(|segment| (ORIGINAL, segment)));
        for beyond in
            [segment(ACK, CLIENT + 10_002, SERVER + 1).with_data(1), Segment { seq: ack.seq + 1, ..ack }]
        {
            assert_eq!({ tcp }.advance(ORIGINAL, &beyond), Drop(TcpFault::OutOfWindow));
        }
    }
}

#[test]
fn a_window_that_shrank_still_binds_nothing_that_was_offered() {
    let tcp = run(at(Established), &[(REPLY, segment(ACK, SERVER + 1, CLIENT + 1).with_window(0))]);
    run(tcp, &[(ORIGINAL, segment(ACK, CLIENT + 1 + 10_000, SERVER + 1).with_data(1))]);
}

#[test]
fn an_old_ack_of_a_full_window_passes() {
    // The server's first ACK is overtaken by its second, after which the client has filled the window again.
    let full = u16::MAX;
    let tcp = run(
        at(Established),
        &[
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 1).with_window(full)),
            (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_data(65_535)),
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 40_001).with_window(full)),
            (ORIGINAL, segment(ACK, CLIENT + 65_536, SERVER + 1).with_data(40_000)),
        ],
    );
    run(tcp, &[(REPLY, segment(ACK, SERVER + 1, CLIENT + 1).with_data(10).with_window(full))]);
}

/// An established connection whose SYNs had these options, then each side has offered `window`.
fn with_scales(original: Option<u8>, reply: Option<u8>, window: u16) -> Tcp {
    let option =
        |segment: Segment, scale: Option<u8>| scale.map_or(segment, |scale| segment.with_scale(scale));
    run(
        Tcp::open(&option(segment(SYN, CLIENT, 0), original), false).unwrap(),
        &[
            (REPLY, option(segment(SYN | ACK, SERVER, CLIENT + 1), reply)),
            (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_window(window)),
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 1).with_window(window)),
        ],
    )
}

#[test]
fn windows_are_scaled_only_if_both_syns_say_so() {
    // RFC 7323 section 2.2. Limits of client and server, from the first byte on.
    let limits = |tcp: Tcp| [tcp.ends[0].limit - CLIENT - 1, tcp.ends[1].limit - SERVER - 1];
    assert_eq!(limits(with_scales(Some(3), Some(5), 20_000)), [20_000 << 5, 20_000 << 3]);
    assert_eq!(limits(with_scales(Some(0), Some(5), 20_000)), [20_000 << 5, 20_000]);
    assert_eq!(limits(with_scales(Some(3), Option::None, 20_000)), [20_000, 20_000]);
    assert_eq!(limits(with_scales(Option::None, Some(5), 20_000)), [20_000, 20_000]);
    assert_eq!(limits(with_scales(Option::None, Option::None, 20_000)), [20_000, 20_000]);
    // Section 2.3: above 14 counts as 14.
    assert_eq!(limits(with_scales(Some(15), Some(200), 3)), [3 << 14, 3 << 14].map(|l| l.max(10_000)));
}

#[test]
fn the_window_of_a_syn_is_never_scaled() {
    let tcp = run(
        Tcp::open(&segment(SYN, CLIENT, 0).with_scale(7), false).unwrap(),
        &[(REPLY, segment(SYN | ACK, SERVER, CLIENT + 1).with_scale(7))],
    );
    assert_eq!(tcp.ends[0].limit, CLIENT + 1 + u32::from(WINDOW));
    assert_eq!(tcp.ends[1].limit, SERVER + 1 + u32::from(WINDOW));
    // Data may follow the SYN-ACK at once.
    let data = segment(ACK, SERVER + 1, CLIENT + 1).with_data(1);
    let tcp = run(tcp, &[(REPLY, data.with_data(9_000))]);
    let beyond = Segment { seq: SERVER + 2 + u32::from(WINDOW), ..data };
    assert_eq!({ tcp }.advance(REPLY, &beyond), Drop(TcpFault::OutOfWindow));
}

#[test]
fn windows_offered_before_the_last_ack_are_scaled_too() {
    let tcp = run(
        Tcp::open(&segment(SYN, CLIENT, 0).with_scale(7), false).unwrap(),
        &[
            (REPLY, segment(SYN | ACK, SERVER, CLIENT + 1).with_scale(7)),
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 1).with_window(500)),
        ],
    );
    assert_eq!(tcp.ends[0].limit, CLIENT + 1 + (500 << 7));
}

#[test]
fn a_syn_sent_again_without_options_keeps_the_scale() {
    let tcp = run(
        Tcp::open(&segment(SYN, CLIENT, 0).with_scale(7), false).unwrap(),
        &[
            (ORIGINAL, segment(SYN, CLIENT, 0)),
            (REPLY, segment(SYN | ACK, SERVER, CLIENT + 1).with_scale(2)),
            (REPLY, segment(SYN | ACK, SERVER, CLIENT + 1)),
            (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_window(1_000)),
        ],
    );
    assert_eq!(tcp.ends[1].limit, SERVER + 1 + (1_000 << 7));
    assert_eq!(tcp.windows.map(|window| window & 0x0f), [7, 2]);
}

#[test]
fn a_syn_with_other_numbers_brings_its_own_scale() {
    let tcp = run(
        Tcp::open(&segment(SYN, CLIENT, 0).with_scale(7), false).unwrap(),
        &[
            (ORIGINAL, segment(SYN, 77_000, 0)),
            (REPLY, segment(SYN | ACK, SERVER, 77_001).with_scale(7)),
            (ORIGINAL, segment(ACK, 77_001, SERVER + 1)),
        ],
    );
    assert_eq!(tcp.windows, [0, 0]);
}

// Opening.

#[test]
fn a_connection_opens_by_three_segments() {
    let mut tcp = syn_sent();
    assert_eq!(tcp.advance(REPLY, &segment(SYN | ACK, SERVER, CLIENT + 1)), Forward);
    // Not the last ACK of a flood: it does not know what it has to acknowledge.
    for ack in [SERVER, SERVER + 2, SERVER.wrapping_sub(60_000), 0] {
        let mut flooded = tcp;
        let guess = segment(ACK, CLIENT + 1, ack);
        assert_eq!(flooded.advance(ORIGINAL, &guess), Drop(TcpFault::OutOfWindow));
        assert_eq!(flooded, tcp);
    }
    assert_eq!(tcp.advance(ORIGINAL, &segment(ACK, CLIENT + 1, SERVER + 1)), Forward);
    assert_eq!(tcp.state(), Established);
}

#[test]
fn syns_are_sent_again() {
    let syn_ack = segment(SYN | ACK, SERVER, CLIENT + 1);
    let tcp = run(
        syn_sent(),
        &[
            (ORIGINAL, segment(SYN, CLIENT, 0)),
            (REPLY, syn_ack),
            (REPLY, syn_ack),
            (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1)),
        ],
    );
    assert_eq!(tcp, at(Established));
}

#[test]
fn a_syn_with_other_numbers_begins_again() {
    let tcp = run(
        syn_sent(),
        &[
            (ORIGINAL, segment(SYN, 77_000, 0)),
            (REPLY, segment(SYN | ACK, SERVER, 77_001)),
            // A server with SYN cookies may choose anew, too.
            (REPLY, segment(SYN | ACK, 99_000, 77_001)),
            (ORIGINAL, segment(ACK, 77_001, 99_001).with_data(9_000)),
            (REPLY, segment(ACK, 99_001, 86_001).with_data(9_000)),
        ],
    );
    assert_eq!(tcp.state(), Established);
}

#[test]
fn the_answer_to_an_old_duplicate_syn_reaches_the_client() {
    // RFC 9293 section 3.5, figure 8: the client resets it, and goes on with its own SYN.
    let mut tcp = syn_sent();
    let before = tcp;
    assert_eq!(tcp.advance(REPLY, &segment(SYN | ACK, SERVER, 91)), ForwardOnly);
    assert_eq!(tcp.advance(ORIGINAL, &segment(RST, 91, 0)), ForwardOnly);
    assert_eq!(tcp, before);
    run(
        tcp,
        &[(REPLY, segment(SYN | ACK, SERVER, CLIENT + 1)), (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1))],
    );
}

#[test]
fn a_challenge_ack_of_an_older_connection_reaches_the_client() {
    // RFC 5961 sections 4.2 and 9.3: client restarted, our session gone, the server's still there.
    let mut tcp = syn_sent();
    assert_eq!(tcp.advance(REPLY, &segment(ACK, 123_456, 654_321)), ForwardOnly);
    assert_eq!(tcp.advance(ORIGINAL, &segment(RST, 654_321, 0)), ForwardOnly);
    assert_eq!(tcp, syn_sent());
}

#[test]
fn data_in_the_syn_may_be_acknowledged_or_not() {
    // RFC 7413 section 4.2.
    for (ack, verdict) in [(1, Forward), (60, Forward), (101, Forward), (0, ForwardOnly), (102, ForwardOnly)]
    {
        let mut tcp = Tcp::open(&segment(SYN, CLIENT, 0).with_data(100), false).unwrap();
        assert_eq!(tcp.advance(REPLY, &segment(SYN | ACK, SERVER, CLIENT + ack)), verdict, "{ack}");
    }
    // Sent again without the data, the first may still be the one that is answered.
    run(
        Tcp::open(&segment(SYN, CLIENT, 0).with_data(100), false).unwrap(),
        &[
            (ORIGINAL, segment(SYN, CLIENT, 0)),
            (REPLY, segment(SYN | ACK, SERVER, CLIENT + 101)),
            (ORIGINAL, segment(ACK, CLIENT + 101, SERVER + 1)),
        ],
    );
}

#[test]
fn both_sides_may_open_at_once() {
    // RFC 5382 REQ-2; RFC 9293 section 3.5, figure 7. The second SYN-ACK comes first, last or as a plain ACK.
    let syns =
        [(REPLY, segment(SYN, SERVER, 0).with_scale(1)), (ORIGINAL, segment(SYN, CLIENT, 0).with_scale(2))];
    let tcp = run(Tcp::open(&segment(SYN, CLIENT, 0).with_scale(2), false).unwrap(), &syns);
    assert_eq!(tcp.state(), SimultaneousOpen);
    let from_original = (ORIGINAL, segment(SYN | ACK, CLIENT, SERVER + 1));
    let from_reply = (REPLY, segment(SYN | ACK, SERVER, CLIENT + 1));
    for last in [
        [from_original, from_reply],
        [from_reply, from_original],
        [from_original, (REPLY, segment(ACK, SERVER + 1, CLIENT + 1))],
        [from_reply, (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1))],
    ] {
        let half = run(tcp, &last[..1]);
        assert_eq!(half.state(), SynReceived);
        let open = run(half, &last[1..]);
        assert_eq!(open.state(), Established);
        let open = run(
            open,
            &[
                (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_data(9_000)),
                (REPLY, segment(ACK, SERVER + 1, CLIENT + 9_001).with_data(9_000)),
            ],
        );
        assert_eq!(open.ends[0].limit, CLIENT + 9_001 + (u32::from(WINDOW) << 1));
    }
    // One that acknowledges something else is for its receiver to reset.
    let mut stale = tcp;
    assert_eq!(stale.advance(REPLY, &segment(SYN | ACK, SERVER, 91)), ForwardOnly);
    assert_eq!(stale, tcp);
}

#[test]
fn a_closed_port_refuses_a_simultaneous_open() {
    // The peer's SYN was an old duplicate; the port is closed and answers ours.
    let mut tcp = at(SimultaneousOpen);
    assert_eq!(tcp.advance(REPLY, &segment(RST | ACK, 0, CLIENT + 2)), Drop(TcpFault::RstOutOfWindow));
    assert_eq!(tcp.advance(REPLY, &segment(RST | ACK, 0, CLIENT + 1)), Forward);
    assert_eq!(tcp.state(), Closing);
}

// RST and SYN on a connection.

#[test]
fn a_rst_in_syn_sent_has_to_acknowledge_the_syn() {
    // RFC 5961 section 3.2, last but one paragraph of the modified processing.
    let out = Drop(TcpFault::RstOutOfWindow);
    for (rst, verdict) in [
        (segment(RST | ACK, 0, CLIENT + 1), Forward),
        (segment(RST | ACK, 0, CLIENT), out),
        (segment(RST | ACK, 0, CLIENT + 2), out),
        (segment(RST, 0, CLIENT + 1), out),
    ] {
        let mut tcp = syn_sent();
        assert_eq!(tcp.advance(REPLY, &rst), verdict, "{rst:?}");
        assert_eq!(tcp.state(), if verdict == Forward { Refused } else { SynSent });
    }
}

#[test]
fn a_rst_before_the_last_ack_comes_after_the_syn() {
    for (state, directions) in [(SimultaneousOpen, BOTH.as_slice()), (SynReceived, &[REPLY])] {
        for direction in directions {
            let expected = at(state).ends[direction.sides().0].max_end;
            let rst = |seq| at(state).advance(*direction, &segment(RST, seq, 0));
            assert_eq!(rst(expected - 1), Drop(TcpFault::RstOutOfWindow), "{state:?}");
            assert_eq!(rst(expected), Forward);
            assert_eq!(rst(expected + 1), ForwardOnly);
        }
    }
}

#[test]
fn only_an_exact_rst_closes() {
    // RFC 5961 section 3.2. Acknowledged to 1,001, sent to 3,001, allowed to 11,001.
    let pass = (ForwardOnly, Established);
    let out = (Drop(TcpFault::RstOutOfWindow), Established);
    for (offset, expected) in [
        (1_001, (Forward, Closing)),
        (3_001, (Forward, Closing)),
        (1_002, pass),
        (2_000, pass),
        (3_000, pass),
        (3_002, pass),
        (11_003, pass),
        (1_000, out),
        (0, out),
        (11_004, out),
        (1 << 31, out),
    ] {
        for flags in [RST, RST | ACK] {
            let mut tcp = in_flight();
            let verdict = tcp.advance(ORIGINAL, &segment(flags, CLIENT + offset, 0));
            assert_eq!((verdict, tcp.state()), expected, "{offset}");
            if verdict != Forward {
                assert_eq!(tcp, in_flight());
            }
        }
    }
}

#[test]
fn of_all_rsts_two_close_and_a_window_passes() {
    let tcp = in_flight();
    let (mut closed, mut passed) = (0, 0);
    for offset in 0..200_000u32 {
        let mut tcp = tcp;
        match tcp.advance(ORIGINAL, &segment(RST, CLIENT.wrapping_sub(100_000).wrapping_add(offset), 0)) {
            Forward => closed += 1,
            ForwardOnly => passed += 1,
            Reopen | Drop(_) => {}
        }
    }
    assert_eq!((closed, passed), (2, 10_001 + 2 - 2));
}

#[test]
fn an_attacker_who_knows_the_ack_has_to_hit_the_window() {
    let tcp = in_flight();
    const STEP: u32 = 1_009;
    let mut hits = 0;
    for guess in (0..u32::MAX - STEP).step_by(STEP as usize) {
        let mut tcp = tcp;
        hits +=
            u32::from(tcp.advance(ORIGINAL, &segment(ACK, guess, SERVER + 1)) != Drop(TcpFault::OutOfWindow));
    }
    // From 66,000 below the server's ACK to the end of its offer.
    assert!((76_000 / STEP..=76_000 / STEP + 1).contains(&hits), "{hits}");
}

#[test]
fn an_attacker_who_guesses_both_numbers_gets_nowhere() {
    let tcp = in_flight();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..300_000 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        for flags in [ACK, FIN | ACK, RST | ACK, SYN | ACK] {
            let mut tcp = tcp;
            let forged = segment(flags, random as u32, (random >> 32) as u32).with_data(100);
            let verdict = tcp.advance(REPLY, &forged);
            // A RST is looked at by its sequence number alone: one in 2^32 / 10,000 passes, changing nothing.
            assert!(matches!(verdict, Drop(_)) || flags & RST != 0 && verdict == ForwardOnly, "{forged:?}");
            assert_eq!(tcp, in_flight());
        }
    }
}

#[test]
fn a_syn_on_a_connection_is_challenged_by_the_endpoint() {
    // RFC 5961 section 4.2: an attacker's SYN changes nothing, whatever its number.
    for direction in BOTH {
        for seq in [CLIENT, CLIENT + 2_000, SERVER, 1 << 31] {
            let mut tcp = in_flight();
            assert_eq!(tcp.advance(direction, &segment(SYN, seq, 0)), ForwardOnly);
            let challenge = match direction {
                Direction::Original => segment(ACK, SERVER + 1, CLIENT + 1_001),
                Direction::Reply => segment(ACK, CLIENT + 3_001, SERVER + 1),
            };
            assert_eq!(tcp.advance(direction.reverse(), &challenge), Forward);
            assert_eq!(tcp, in_flight());
        }
    }
}

#[test]
fn a_client_that_restarted_gets_its_new_connection() {
    // RFC 9293 section 3.5.1, figure 9: SYN, challenge ACK, RST from its number, SYN again.
    let mut tcp = in_flight();
    let syn = segment(SYN, 400, 0);
    assert_eq!(tcp.advance(ORIGINAL, &syn), ForwardOnly);
    assert_eq!(tcp.advance(REPLY, &segment(ACK, SERVER + 1, CLIENT + 1_001)), Forward);
    assert_eq!(tcp.advance(ORIGINAL, &segment(RST, CLIENT + 1_001, 0)), Forward);
    assert_eq!(tcp.advance(ORIGINAL, &syn), Reopen);
}

/// SYN, SYN-ACK, ACK and data of a connection with other numbers, and what becomes of them.
fn another_connection(tcp: &mut Tcp) -> [Verdict; 5] {
    [
        (ORIGINAL, segment(SYN, 0x8000_0000, 0)),
        (REPLY, segment(SYN | ACK, 0xc000_0000, 0x8000_0001)),
        (ORIGINAL, segment(ACK, 0x8000_0001, 0xc000_0001)),
        (ORIGINAL, segment(ACK, 0x8000_0001, 0xc000_0001).with_data(100)),
        (REPLY, segment(ACK, 0xc000_0001, 0x8000_0065).with_data(100)),
    ]
    .map(|(direction, segment)| tcp.advance(direction, &segment))
}

#[test]
fn what_both_sides_have_forgotten_is_learned_anew() {
    for state in [Established, FinOriginal, FinReply] {
        let mut tcp = at(state);
        assert_eq!(another_connection(&mut tcp), [ForwardOnly, Forward, Forward, Forward, Forward]);
        assert_eq!((tcp.state(), tcp.is_established()), (Established, true));
        // And the new bounds hold.
        let old = segment(ACK, CLIENT + 1, SERVER + 1);
        assert_eq!(tcp.advance(ORIGINAL, &old), Drop(TcpFault::OutOfWindow));
    }
}

#[test]
fn a_forged_syn_and_syn_ack_do_not_lock_the_connection_out() {
    let mut tcp = in_flight();
    tcp.advance(ORIGINAL, &segment(SYN, 0x8000_0000, 0));
    assert_eq!(tcp.advance(REPLY, &segment(SYN | ACK, 0xc000_0000, 0x8000_0001)), Forward);
    let tcp = run(
        tcp,
        &[
            (ORIGINAL, segment(ACK, CLIENT + 3_001, SERVER + 1).with_data(1_000)),
            (REPLY, segment(ACK, SERVER + 1, CLIENT + 3_001).with_data(1_000)),
            (ORIGINAL, segment(ACK, CLIENT + 4_001, SERVER + 1_001).with_data(1_000)),
        ],
    );
    assert!(tcp.is_established());
    assert_eq!(tcp.timeout(&TcpTimers::default()), TcpTimers::default().established);
}

#[test]
fn a_syn_ack_out_of_nowhere_is_dropped() {
    let forged = segment(SYN | ACK, 0xc000_0000, 0x8000_0001);
    let syn = segment(SYN, 0x8000_0000, 0);
    let out = Drop(TcpFault::OutOfWindow);
    for state in SYNCHRONISED {
        assert_eq!(at(state).advance(REPLY, &forged), out);
        assert_eq!(at(state).advance(ORIGINAL, &forged), out);
    }
    // Not after the other side has shown that it lives ...
    let mut tcp = in_flight();
    tcp.advance(ORIGINAL, &syn);
    tcp.advance(REPLY, &segment(ACK, SERVER + 1, CLIENT + 1_001));
    assert_eq!(tcp.advance(REPLY, &forged), out);
    // ... nor to a SYN from there, nor from the side that sent the SYN, nor after a RST.
    let mut tcp = in_flight();
    tcp.advance(REPLY, &syn);
    assert_eq!(tcp.advance(ORIGINAL, &forged), out);
    let mut tcp = in_flight();
    tcp.advance(ORIGINAL, &syn);
    assert_eq!(tcp.advance(ORIGINAL, &forged), out);
    let mut tcp = in_flight();
    tcp.advance(ORIGINAL, &syn);
    tcp.advance(REPLY, &segment(RST, SERVER + 1, 0));
    assert_eq!(tcp.advance(REPLY, &forged), out);
}

// Closing.

#[test]
fn data_after_a_rst_returns_the_connection_to_where_it_was() {
    // RFC 7857 section 2.2: the receiver did not take the RST.
    let timers = TcpTimers::default();
    for state in [Established, FinOriginal, FinReply, BothFin] {
        for direction in BOTH {
            let rst = next(&at(state), direction, Event::Rst);
            let mut tcp = run(at(state), &[(direction, rst)]);
            assert_eq!((tcp.state(), tcp.timeout(&timers)), (Closing, timers.reset));
            // An ACK that crossed the RST passes, and keeps nothing alive.
            let ack = next(&tcp, REPLY, Event::Ack).with_data(0);
            assert_eq!((tcp.advance(REPLY, &ack), tcp.state()), (Forward, Closing));
            assert_eq!((tcp.advance(REPLY, &ack.with_data(5)), tcp.state()), (Forward, state));
        }
    }
}

#[test]
fn a_fin_after_a_rst_counts_when_the_connection_returns() {
    let tcp = at(Closing);
    let tcp = run(tcp, &[(REPLY, next(&tcp, REPLY, Event::Fin))]);
    assert_eq!(tcp.state(), Closing);
    assert_eq!(run(tcp, &[(ORIGINAL, next(&tcp, ORIGINAL, Event::Ack))]).state(), FinReply);
}

#[test]
fn data_after_a_rst_does_not_establish_what_never_was() {
    let tcp = run(at(SynReceived), &[(REPLY, segment(RST, SERVER + 1, 0))]);
    let tcp = run(tcp, &[(REPLY, segment(ACK, SERVER + 1, CLIENT + 1).with_data(5))]);
    assert_eq!(tcp.state(), Closing);
    // The client's does: it proves that the client has the SYN-ACK, and did not take the RST.
    let tcp = run(tcp, &[(ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1).with_data(5))]);
    assert_eq!(tcp.state(), Established);
}

#[test]
fn a_half_closed_connection_lives_as_long_as_an_open_one() {
    // RFC 5382 section 5 counts FIN_WAIT and CLOSE_WAIT among the established.
    let timers = TcpTimers::default();
    let mut tcp = at(FinOriginal);
    let mut seq = SERVER + 1;
    for _ in 0..1_000 {
        tcp = run(
            tcp,
            &[
                (REPLY, segment(ACK, seq, CLIENT + 2).with_data(1_400)),
                (ORIGINAL, segment(ACK, CLIENT + 2, seq + 1_400)),
            ],
        );
        seq += 1_400;
        assert_eq!((tcp.state(), tcp.timeout(&timers)), (FinOriginal, timers.established));
    }
    // The first FIN again, then the other side's.
    let tcp = run(
        tcp,
        &[
            (ORIGINAL, segment(FIN | ACK, CLIENT + 1, seq)),
            (REPLY, segment(FIN | ACK, seq, CLIENT + 2)),
            (ORIGINAL, segment(ACK, CLIENT + 2, seq + 1)),
        ],
    );
    assert_eq!((tcp.state(), tcp.timeout(&timers)), (BothFin, timers.closing));
}

#[test]
fn a_fin_counts_as_a_byte() {
    let mut tcp = at(FinOriginal);
    let beyond = segment(ACK, SERVER + 1, CLIENT + 3);
    assert_eq!(tcp.advance(REPLY, &beyond), Drop(TcpFault::OutOfWindow));
    run(tcp, &[(REPLY, segment(ACK, SERVER + 1, CLIENT + 2))]);
}

#[test]
fn after_both_fins_a_new_syn_reopens_and_an_old_duplicate_does_not() {
    for (direction, top) in [(ORIGINAL, CLIENT + 2), (REPLY, SERVER + 2)] {
        // Larger, and so far below that 66,000 bytes cannot explain it: ISN clocks wrap (RFC 6528).
        for seq in [top, top + 1, top + (1 << 30), top + (1 << 31), top.wrapping_sub(66_001)] {
            let mut tcp = at(BothFin);
            assert_eq!(tcp.advance(direction, &segment(SYN, seq, 0)), Reopen, "{seq}");
            assert_eq!(tcp, at(BothFin));
        }
        for seq in [top - 1, top - 2, top.wrapping_sub(66_000)] {
            assert_eq!(at(BothFin).advance(direction, &segment(SYN, seq, 0)), ForwardOnly, "{seq}");
        }
    }
    // If it was none and the server takes it, it is learned.
    let mut tcp = at(BothFin);
    assert_eq!(tcp.advance(ORIGINAL, &segment(SYN, CLIENT - 500, 0)), ForwardOnly);
    assert_eq!(tcp.advance(REPLY, &segment(SYN | ACK, 0xc000_0000, CLIENT - 499)), Forward);
    assert_eq!(tcp.state(), Established);
}

#[test]
fn after_a_rst_any_syn_reopens() {
    for state in [Closing, Refused] {
        for seq in [CLIENT, CLIENT + 1, CLIENT - 1, 1 << 31] {
            assert_eq!(at(state).advance(ORIGINAL, &segment(SYN, seq, 0)), Reopen);
        }
    }
}

// Taken up in the middle.

#[test]
fn the_first_segment_is_a_syn_unless_loose() {
    for flags in [ACK, SYN | ACK, FIN | ACK, ACK | flags::PSH] {
        assert_eq!(Tcp::open(&segment(flags, 1, 1), false), Err(TcpFault::NoConnection));
        assert!(Tcp::open(&segment(flags, 1, 1), true).is_ok());
    }
    for loose in [false, true] {
        assert_eq!(Tcp::open(&segment(RST, 1, 1), loose), Err(TcpFault::NoConnection));
        assert_eq!(Tcp::open(&segment(SYN, CLIENT, 0), loose), Ok(syn_sent()));
    }
    assert_eq!(Tcp::open(&segment(FIN | ACK, 1, 1), true).unwrap().state(), FinOriginal);
}

#[test]
fn a_pick_up_is_half_open_until_both_directions_are_seen() {
    let timers = TcpTimers::default();
    let data = segment(ACK, CLIENT, SERVER).with_data(100);
    let tcp = run(Tcp::open(&data, true).unwrap(), &[(ORIGINAL, data), (ORIGINAL, data)]);
    assert_eq!(
        (tcp.is_half_open(), tcp.is_established(), tcp.timeout(&timers)),
        (true, false, timers.opening)
    );
    let tcp = run(tcp, &[(REPLY, segment(ACK, SERVER, CLIENT + 100))]);
    assert_eq!(
        (tcp.is_half_open(), tcp.is_established(), tcp.timeout(&timers)),
        (false, true, timers.established)
    );
}

#[test]
fn a_resumed_connection_is_established_at_once() {
    let timers = TcpTimers::default();
    for state in [Established, FinOriginal, FinReply] {
        let tcp = at(state).resume();
        assert_eq!((tcp.is_half_open(), tcp.is_established(), tcp.state()), (false, true, state));
        assert_eq!(tcp.timeout(&timers), timers.established);
    }
    assert!(Tcp::resumed().is_established());
    for state in [None, SynSent, SimultaneousOpen, SynReceived, Refused] {
        assert_eq!(at(state).resume(), at(state));
    }
}

#[test]
fn bounds_hold_once_both_directions_were_seen() {
    let wild = segment(ACK, 0x7000_0000, 0x9000_0000);
    for tcp in
        [Tcp::open(&segment(ACK, CLIENT, SERVER), true).unwrap(), Tcp::resumed(), at(Established).resume()]
    {
        let tcp = run(tcp, &[(ORIGINAL, segment(ACK, CLIENT, SERVER))]);
        run(tcp, &[(ORIGINAL, wild)]); // not yet
        let tcp = run(tcp, &[(REPLY, segment(ACK, SERVER, CLIENT))]);
        for direction in BOTH {
            assert_eq!({ tcp }.advance(direction, &wild), Drop(TcpFault::OutOfWindow));
        }
    }
}

#[test]
fn a_stray_segment_cannot_lock_a_resumed_connection_out() {
    let stray = segment(ACK, 0x7000_0000, 0x9000_0000).with_data(10);
    let from_original = segment(ACK, CLIENT, SERVER).with_data(10);
    let from_reply = segment(ACK, SERVER, CLIENT).with_data(10);
    for strays in [BOTH.as_slice(), &[ORIGINAL], &[REPLY], &[REPLY, ORIGINAL]] {
        let strays: Vec<_> = strays.iter().map(|direction| (*direction, stray)).collect();
        for first in [
            [(ORIGINAL, from_original), (REPLY, from_reply)],
            [(REPLY, from_reply), (ORIGINAL, from_original)],
        ] {
            let tcp = run(run(Tcp::resumed(), &strays), &first);
            let tcp = run(tcp, &first);
            assert!(!tcp.is_learning());
            assert_eq!({ tcp }.advance(ORIGINAL, &stray), Drop(TcpFault::OutOfWindow));
        }
    }
}

#[test]
fn what_passed_before_the_failover_may_still_be_acknowledged() {
    // The server has sent 50,000 bytes through the other gateway; here it first sends the lost ones again.
    let mut tcp = run(
        at(Established).resume(),
        &[
            (ORIGINAL, segment(ACK, CLIENT, SERVER).with_window(60_000)),
            (REPLY, segment(ACK, SERVER, CLIENT).with_data(1_400)),
        ],
    );
    assert!(!tcp.is_learning());
    // Step by step: each ACK moves what is known of the server.
    for acknowledged in [50_000, 75_000, 25_000] {
        assert_eq!(tcp.advance(ORIGINAL, &segment(ACK, CLIENT, SERVER + acknowledged)), Forward);
    }
    assert_eq!(tcp.advance(ORIGINAL, &segment(ACK, CLIENT, SERVER + 150_000)), Drop(TcpFault::OutOfWindow));
    // A RST of the server from there is exact.
    assert_eq!(tcp.advance(REPLY, &segment(RST, SERVER + 75_000, 0)), Forward);
    assert_eq!(tcp.state(), Closing);
}

#[test]
fn what_was_allowed_before_the_failover_may_still_be_sent() {
    // An old ACK of the server is the first that is seen; its newer ones allow 20,000 bytes more.
    let tcp = run(
        at(Established).resume(),
        &[
            (REPLY, segment(ACK, SERVER, CLIENT).with_window(1_000)),
            (ORIGINAL, segment(ACK, CLIENT, SERVER)),
            (ORIGINAL, segment(ACK, CLIENT + 21_000, SERVER).with_data(1_400)),
        ],
    );
    assert_eq!(
        { tcp }.advance(ORIGINAL, &segment(ACK, CLIENT + 70_000, SERVER)),
        Drop(TcpFault::OutOfWindow)
    );
}

#[test]
fn a_resumed_connection_keeps_its_scales_and_an_unknown_scale_is_the_largest() {
    let exchange = [
        (ORIGINAL, segment(ACK, CLIENT, SERVER).with_window(500)),
        (REPLY, segment(ACK, SERVER, CLIENT).with_window(500)),
    ];
    let known = run(with_scales(Some(7), Some(2), 10).resume(), &exchange);
    assert_eq!(known.ends.map(|end| end.limit), [CLIENT + (500 << 2), SERVER + (500 << 7)]);
    let unknown = run(Tcp::resumed(), &exchange);
    assert_eq!(unknown.ends.map(|end| end.limit), [CLIENT + (500 << 14), SERVER + (500 << 14)]);
}

#[test]
fn a_rst_decides_nothing_while_bounds_are_learned() {
    for direction in BOTH {
        let mut tcp = run(Tcp::resumed(), &[(ORIGINAL, segment(ACK, CLIENT, SERVER))]);
        for seq in [0, CLIENT, SERVER] {
            assert_eq!(tcp.advance(direction, &segment(RST, seq, 0)), ForwardOnly);
        }
        assert_eq!(tcp.state(), Established);
    }
}

#[test]
fn the_window_a_segment_offers_counts_when_it_is_learned() {
    // 256,000 bytes were offered, and 200,000 of them are acknowledged at once.
    let tcp = run(
        with_scales(Some(7), Some(7), 10).resume(),
        &[
            (REPLY, segment(ACK, SERVER, CLIENT)),
            (ORIGINAL, segment(ACK, CLIENT, SERVER + 200_000).with_window(2_000)),
        ],
    );
    assert!(!tcp.is_learning());
}

#[test]
fn a_syn_ack_passes_while_bounds_are_learned() {
    let tcp = run(Tcp::resumed(), &[(ORIGINAL, segment(ACK, CLIENT, SERVER))]);
    let mut late = tcp;
    assert_eq!(late.advance(REPLY, &segment(SYN | ACK, 0x7000_0000, 0x9000_0000)), ForwardOnly);
    assert_eq!(late, tcp);
}

#[test]
fn a_resumed_connection_closes() {
    let tcp = run(Tcp::resumed(), &[(ORIGINAL, segment(FIN | ACK, CLIENT, SERVER))]);
    assert_eq!(tcp.state(), FinOriginal);
    assert_eq!(run(tcp, &[(REPLY, segment(FIN | ACK, SERVER, CLIENT + 1))]).state(), BothFin);
    let closing = run(at(Closing).resume(), &[(ORIGINAL, segment(ACK, CLIENT, SERVER).with_data(1))]);
    assert_eq!(closing.state(), Closing);
    let back = run(closing, &[(REPLY, segment(ACK, SERVER, CLIENT + 1).with_data(1))]);
    assert_eq!(back.state(), Established);
}

// Bytes.

/// A TCP header with these options, and data; the checksum is right over header and data alone.
fn bytes(flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let mut bytes = vec![0x12, 0x34, 0x00, 0x50, 0x01, 0x02, 0x03, 0x04, 0x0a, 0x0b, 0x0c, 0x0d];
    bytes.extend([((5 + options.len() / 4) << 4) as u8, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    bytes.extend(options);
    bytes.extend(data);
    let sum = checksum::of(&bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// What Linux sends: MSS 1460, SACK permitted, timestamps, NOP, window scale 7.
const LINUX: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

#[test]
fn a_segment_is_read() {
    let syn = bytes(SYN, &LINUX, b"");
    assert_eq!(
        Segment::parse(&syn, syn.len()),
        Some(Segment {
            seq: 0x0102_0304,
            ack: 0x0a0b_0c0d,
            payload_len: 0,
            window: 0xfaf0,
            flags: SYN,
            options: SynOptions { window_scale: Some(7), mss: Some(1_460), sack_permitted: true },
        })
    );
    // Of other segments the options are not looked at, not even broken ones.
    let data = bytes(ACK, &[3, 3, 7, 99], b"hello");
    let read = Segment::parse(&data, data.len()).unwrap();
    assert_eq!((read.payload_len, read.options), (5, SynOptions::default()));
    // Trailing Ethernet padding is not payload, and payload may lie in another segment of the frame.
    assert_eq!(Segment::parse(&data, 24).unwrap().payload_len, 0);
    assert_eq!(Segment::parse(&data, 9_000).unwrap().payload_len, 9_000 - 24);
}

#[test]
fn a_header_that_is_cut_off_is_no_segment() {
    let syn = bytes(SYN, &LINUX, b"");
    for len in 0..syn.len() {
        assert_eq!(Segment::parse(&syn[..len], syn.len()), Option::None);
        assert_eq!(Segment::parse(&syn, len), Option::None);
    }
    for data_offset in 0..5 {
        let mut syn = syn.clone();
        syn[12] = data_offset << 4;
        assert_eq!(Segment::parse(&syn, syn.len()), Option::None);
    }
}

#[test]
fn options_of_a_syn_are_read_as_far_as_they_are_known() {
    let options =
        |options: &[u8]| Segment::parse(&bytes(SYN, options, b""), 20 + options.len()).map(|s| s.options);
    let none = SynOptions::default();
    assert_eq!(options(&[]), Some(none));
    assert_eq!(options(&[1, 3, 3, 9]), Some(SynOptions { window_scale: Some(9), ..none }));
    assert_eq!(options(&[0, 3, 3, 9]), Some(none)); // after the end
    assert_eq!(options(&[254, 4, 3, 3]), Some(none)); // inside an unknown one
    assert_eq!(options(&[3, 4, 9, 9]), Some(none)); // a length it cannot have
    for broken in [[3, 0, 1, 1], [3, 1, 1, 1], [2, 5, 1, 1], [1, 1, 1, 3]] {
        assert_eq!(options(&broken), Option::None, "{broken:?}");
    }
}

#[test]
fn a_segment_ends_after_its_syn_and_fin() {
    let end = |flags| segment(flags, u32::MAX, 0).with_data(3).end();
    assert_eq!([ACK, SYN, FIN | ACK, SYN | FIN].map(end), [2, 3, 3, 4]);
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(mut l4 in proptest::collection::vec(any::<u8>(), 0..80), len in 0..200usize) {
        let _ = Segment::parse(&l4, len);
        let before = l4.clone();
        if mss_clamp(&mut l4, 1_000) {
            prop_assert_ne!(l4, before);
        } else {
            prop_assert_eq!(l4, before);
        }
    }

    #[test]
    fn the_clamp_lowers_the_mss_and_nothing_else(
        nops in 0..8usize,
        mss: u16,
        max: u16,
        is_ack: bool,
        data in proptest::collection::vec(any::<u8>(), 0..9),
    ) {
        // At even and odd offsets.
        let mut options = vec![1; nops];
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
        options.resize(options.len().next_multiple_of(4), 0);
        let flags = if is_ack { SYN | ACK } else { SYN };
        let mut l4 = bytes(flags, &options, &data);
        let changed = mss_clamp(&mut l4, max);

        prop_assert_eq!(changed, max < mss);
        options[nops + 2..nops + 4].copy_from_slice(&mss.min(max).to_be_bytes());
        prop_assert!(checksum::is_valid(&l4));
        prop_assert_eq!(&l4, &bytes(flags, &options, &data));
        prop_assert!(!mss_clamp(&mut l4, max));
    }
}

#[test]
fn only_a_syn_with_an_mss_is_clamped() {
    for (flags, options) in
        [(ACK, &LINUX[..]), (SYN, &LINUX[4..]), (SYN, &[]), (SYN, &[1, 2, 4, 5]), (SYN, &[2, 3, 5, 180])]
    {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 1);
        let mut l4 = bytes(flags, &options, b"");
        let before = l4.clone();
        assert!(!mss_clamp(&mut l4, 536), "{options:?}");
        assert_eq!(l4, before);
    }
    let mut l4 = bytes(SYN, &LINUX, b"");
    let len = l4.len();
    assert!(!mss_clamp(&mut l4[..len - 1], 536), "cut off");
    assert!(mss_clamp(&mut l4, 536));
    assert_eq!(Segment::parse(&l4, l4.len()).unwrap().options.mss, Some(536));
}

/// Only the client is heard: its ACK establishes, its FIN and RST shorten the time, and no number is ever out of bounds.
#[test]
fn a_connection_of_which_one_side_is_seen() {
    let timers = TcpTimers {
        opening: Duration::from_secs(1),
        closing: Duration::from_secs(2),
        ..TcpTimers::default()
    };
    let open = |flags: u8| Tcp::open_one_sided(&segment(flags, CLIENT, SERVER));
    let tcp = open(SYN).expect("a SYN");
    assert!((tcp.state(), tcp.is_half_open(), tcp.timeout(&timers)) == (SynSent, true, timers.opening));
    let syn = segment(SYN, CLIENT, 0);
    let tcp = run(tcp, &[(ORIGINAL, syn), (ORIGINAL, segment(ACK, CLIENT + 1, SERVER + 1))]);
    assert!((tcp.state(), tcp.is_half_open(), tcp.is_embryonic()) == (Established, false, false));
    assert_eq!(tcp.timeout(&timers), timers.established);
    let far = [segment(ACK, 3_000_000_000, 9).with_data(100).with_window(0), segment(ACK, 7, 4_000_000_000)];
    let tcp = run(tcp, &far.map(|segment| (ORIGINAL, segment)));
    assert_eq!(
        tcp.resume(),
        Tcp { flags: tcp.flags | AWAIT[0] | LEARNED, ..tcp },
        "still one-sided after a failover"
    );
    let mut in_the_midst = tcp;
    assert_eq!((in_the_midst.advance(ORIGINAL, &syn), in_the_midst), (ForwardOnly, tcp));
    let finished = run(tcp, &[(ORIGINAL, segment(ACK | FIN, 7, 9)), (ORIGINAL, segment(ACK, 8, 10))]);
    assert_eq!((finished.state(), finished.timeout(&timers)), (FinOriginal, timers.closing));
    assert_eq!(finished.clone().advance(ORIGINAL, &syn), Reopen);
    let gone = run(tcp, &[(ORIGINAL, segment(RST, 7, 9))]);
    assert_eq!((gone.state(), gone.timeout(&timers)), (Closing, timers.reset));
    for (said, expected) in [
        (segment(ACK, 8, 10), (ForwardOnly, Closing)),
        (segment(RST, 8, 10), (ForwardOnly, Closing)),
        (segment(ACK, 8, 10).with_data(1), (Forward, Established)),
        (syn, (Reopen, Closing)),
    ] {
        let mut tcp = gone;
        assert_eq!((tcp.advance(ORIGINAL, &said), tcp.state()), expected, "{said:?}");
    }
    // Taken up in the midst: it has to go on to count.
    let taken = open(ACK).expect("it goes on");
    assert!(
        (taken.is_half_open(), taken.is_embryonic(), taken.timeout(&timers)) == (true, true, timers.opening)
    );
    assert_eq!(run(taken, &[(ORIGINAL, segment(ACK, 5, 5))]).state(), Established);
    assert_eq!(open(ACK | FIN).map(|tcp| tcp.state()), Ok(FinOriginal));
    assert_eq!([RST, SYN | ACK].map(open), [Err(TcpFault::NoConnection); 2]);
    assert_eq!(open(SYN | FIN), Err(TcpFault::BadFlags));
    // What comes from the server all the same opens nothing, and its FIN and RST are what they are.
    let answer =
        [(REPLY, segment(SYN | ACK, SERVER, CLIENT + 1)), (REPLY, segment(ACK, SERVER + 1, CLIENT + 1))];
    let mut half = open(SYN).expect("a SYN");
    assert!(
        answer.iter().all(|(side, said)| half.advance(*side, said) == ForwardOnly) && half.state() == SynSent
    );
    let both = run(finished, &[(REPLY, segment(ACK | FIN, SERVER, 8))]);
    assert_eq!((both.state(), both.timeout(&timers)), (BothFin, timers.closing));
}

proptest! {
    /// Whatever comes, nothing panics, and what is in order is never refused.
    #[test]
    fn one_sided_connections_pass_all_that_is_in_order(
        said in proptest::collection::vec((any::<bool>(), any::<u32>(), any::<u32>(), 0..6_usize, 0..3_u32), 1..40)
    ) {
        let mut tcp = Tcp::open_one_sided(&segment(SYN, 1, 0)).expect("a SYN");
        for (is_reply, seq, ack, kind, payload) in said {
            let flags = [SYN, ACK, ACK | FIN, RST, RST | ACK, SYN | ACK][kind];
            let direction = if is_reply { REPLY } else { ORIGINAL };
            let verdict = tcp.advance(direction, &segment(flags, seq, ack).with_data(payload));
            let is_refused = matches!(verdict, Drop(_));
            prop_assert_eq!(is_refused, flags == SYN | ACK && !is_reply, "{:?} {:?}", verdict, tcp);
        }
    }
}
