//! Two honest endpoints on a network that loses, delays, reorders and repeats: the tracker drops nothing of what
//! they send, and ends where they end.

use std::collections::VecDeque;

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::*;

/// How many bytes may pass a segment that is waiting: less than [`WINDOW_FLOOR`] less the largest window below.
const LAG: u64 = 16_000;
const MSS: i64 = 1_400;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Listening,
    SynSent,
    SynReceived,
    Open,
    /// Aborted, or reset by the other.
    Dead,
}

/// An endpoint as RFC 9293 wants it, reduced to numbers. Positions count from the SYN of their side (0) and do
/// not wrap; data begins at 1.
struct Host {
    isn: u32,
    peer_isn: u32,
    phase: Phase,
    scale: Option<u8>,
    peer_scale: Option<u8>,
    /// SND.UNA, SND.NXT, and how far the peer lets us send.
    unacknowledged: i64,
    next: i64,
    limit: i64,
    fin: Option<i64>,
    /// RCV.NXT, the receive buffer and what nobody has read of it.
    received: i64,
    buffer: i64,
    unread: i64,
}

impl Host {
    fn new(isn: u32, scale: Option<u8>, buffer: i64) -> Host {
        Host {
            isn,
            peer_isn: 0,
            phase: Phase::Listening,
            scale,
            peer_scale: Option::None,
            unacknowledged: 0,
            next: 0,
            limit: 0,
            fin: Option::None,
            received: 0,
            buffer,
            unread: 0,
        }
    }

    fn shift(scale: Option<u8>, other: Option<u8>) -> u8 {
        scale.and_then(|scale| other.map(|_| scale)).unwrap_or(0)
    }

    fn segment(&self, flags: u8, position: i64, len: i64) -> Segment {
        let shift = if flags & SYN != 0 { 0 } else { Host::shift(self.scale, self.peer_scale) };
        let has_ack = flags & ACK != 0;
        Segment {
            seq: self.isn.wrapping_add(position as u32),
            ack: if has_ack { self.peer_isn.wrapping_add(self.received as u32) } else { 0 },
            payload_len: len as u32,
            window: ((self.buffer - self.unread) >> shift).min(65_535) as u16,
            flags,
            options: SynOptions {
                window_scale: self.scale.filter(|_| flags & SYN != 0),
                ..SynOptions::default()
            },
        }
    }

    fn syn(&mut self) -> Segment {
        self.phase = Phase::SynSent;
        self.next = 1;
        self.segment(SYN, 0, 0)
    }

    fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    fn send(&mut self, len: i64) -> Option<Segment> {
        let len = len.min(MSS).min(self.limit - self.next);
        if !self.is_open() || self.fin.is_some() || len <= 0 {
            return Option::None;
        }
        self.next += len;
        Some(self.segment(ACK, self.next - len, len))
    }

    /// The retransmission timer.
    fn resend(&mut self) -> Option<Segment> {
        match self.phase {
            Phase::SynSent => Some(self.segment(SYN, 0, 0)),
            Phase::SynReceived => Some(self.segment(SYN | ACK, 0, 0)),
            Phase::Open if self.unacknowledged < self.next => {
                let end = self.fin.unwrap_or(self.next);
                let len = (end - self.unacknowledged).clamp(0, MSS);
                let is_last = self.fin == Some(self.unacknowledged + len);
                Some(self.segment(if is_last { FIN | ACK } else { ACK }, self.unacknowledged, len))
            }
            Phase::Open | Phase::Listening | Phase::Dead => Option::None,
        }
    }

    /// One byte into a closed window (RFC 9293 section 3.8.6.1).
    fn probe(&mut self) -> Option<Segment> {
        let is_stuck = self.unacknowledged == self.next && self.next == self.limit;
        if !self.is_open() || self.fin.is_some() || !is_stuck {
            return Option::None;
        }
        self.next += 1;
        Some(self.segment(ACK, self.next - 1, 1))
    }

    fn keep_alive(&self, len: i64) -> Option<Segment> {
        let is_idle = self.is_open() && self.unacknowledged == self.next;
        is_idle.then(|| self.segment(ACK, self.next - 1, len))
    }

    fn close(&mut self) -> Option<Segment> {
        if !self.is_open() || self.fin.is_some() {
            return Option::None;
        }
        self.fin = Some(self.next);
        self.next += 1;
        Some(self.segment(FIN | ACK, self.next - 1, 0))
    }

    fn read(&mut self, len: i64) -> Option<Segment> {
        self.unread -= len.min(self.unread);
        self.is_open().then(|| self.segment(ACK, self.next, 0))
    }

    fn abort(&mut self) -> Option<Segment> {
        if !self.is_open() {
            return Option::None;
        }
        self.phase = Phase::Dead;
        Some(self.segment(RST, self.next, 0))
    }

    /// Where `seq` of the peer lies.
    fn position(&self, seq: u32) -> i64 {
        self.received + i64::from(seq.wrapping_sub(self.peer_isn.wrapping_add(self.received as u32)) as i32)
    }

    /// Whether a RST could mean anything to it, now or when it arrives.
    fn heeds(&self, rst: &Segment) -> bool {
        self.phase != Phase::Dead && (0..=self.buffer).contains(&(self.position(rst.seq) - self.received))
    }

    fn receive(&mut self, segment: &Segment) -> Option<Segment> {
        let has = |flag| segment.flags & flag != 0;
        match self.phase {
            Phase::Dead if has(RST) => return Option::None,
            Phase::Dead if has(ACK) => {
                return Some(Segment { seq: segment.ack, ack: 0, flags: RST, ..self.segment(RST, 0, 0) });
            }
            Phase::Dead => {
                let rst = self.segment(RST, 0, 0);
                return Some(Segment { seq: 0, ack: segment.end(), flags: RST | ACK, ..rst });
            }
            Phase::Listening if !has(SYN) => return Option::None,
            Phase::Listening | Phase::SynSent if has(RST) => return Option::None,
            Phase::Listening | Phase::SynSent => {
                assert!(has(SYN), "only a SYN can come in {:?}", self.phase);
                self.peer_isn = segment.seq;
                self.peer_scale = segment.options.window_scale;
                self.received = 1;
                self.limit = 1 + i64::from(segment.window);
                self.next = 1;
                if has(ACK) {
                    self.phase = Phase::Open;
                    self.unacknowledged = 1;
                    return Some(self.segment(ACK, 1, 0));
                }
                self.phase = Phase::SynReceived;
                return Some(self.segment(SYN | ACK, 0, 0));
            }
            Phase::SynReceived if has(SYN) && !has(ACK) => return Some(self.segment(SYN | ACK, 0, 0)),
            Phase::SynReceived | Phase::Open => {}
        }
        let position = self.position(segment.seq);
        if has(RST) {
            if position == self.received {
                self.phase = Phase::Dead;
                return Option::None;
            }
            return self.heeds(segment).then(|| self.segment(ACK, self.next, 0)); // RFC 5961 section 3.2
        }
        if has(SYN) && !has(ACK) {
            return Some(self.segment(ACK, self.next, 0)); // RFC 5961 section 4.2
        }
        let expected = self.isn.wrapping_add(self.unacknowledged as u32);
        let acknowledged = self.unacknowledged + i64::from(segment.ack.wrapping_sub(expected) as i32);
        assert!(acknowledged <= self.next, "acknowledges what was not sent");
        if self.phase == Phase::SynReceived && acknowledged >= 1 {
            self.phase = Phase::Open;
        }
        self.unacknowledged = self.unacknowledged.max(acknowledged);
        let shift = if has(SYN) { 0 } else { Host::shift(self.peer_scale, self.scale) };
        self.limit = self.limit.max(acknowledged + (i64::from(segment.window) << shift));
        if has(SYN) {
            return Some(self.segment(ACK, self.next, 0)); // RFC 5961 section 4.2
        }
        let end = position + i64::from(segment.payload_len);
        if position <= self.received && end > self.received {
            let taken = (end - self.received).min(self.buffer - self.unread);
            self.received += taken;
            self.unread += taken;
        }
        if has(FIN) && end == self.received {
            self.received += 1;
        }
        let wants_answer = segment.end() != segment.seq || position < self.received;
        wants_answer.then(|| self.segment(ACK, self.next, 0))
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(i64),
    Resend,
    Probe,
    KeepAlive(i64),
    Read(i64),
    Close,
    Abort,
    /// The segment at this place of the queue before (0) or behind (1) the tracker.
    Carry(usize, usize),
    Lose(usize, usize),
    Repeat(usize),
}

/// Two hosts with the tracker between them. `queues[side][0]` is on its way to the tracker with the count of
/// bytes at which it was sent, `queues[side][1]` has passed it.
struct Net {
    hosts: [Host; 2],
    queues: [[VecDeque<(u64, Segment)>; 2]; 2],
    tcp: Option<Tcp>,
    original: usize,
    passed_bytes: u64,
    was_closing: bool,
}

impl Net {
    fn emit(&mut self, side: usize, segment: Option<Segment>) {
        self.queues[side][0].extend(segment.map(|segment| (self.passed_bytes, segment)));
    }

    fn carry(&mut self, side: usize, hop: usize, place: usize) {
        let queue = &mut self.queues[side][hop];
        let place = place.min(queue.len().saturating_sub(1));
        let Some((_, segment)) = queue.remove(place) else { return };
        if hop == 1 {
            let answer = self.hosts[side ^ 1].receive(&segment);
            return self.emit(side ^ 1, answer);
        }
        self.passed_bytes += u64::from(segment.payload_len) + 1;
        let verdict = match &mut self.tcp {
            Option::None => {
                self.tcp = Some(Tcp::open(&segment, false).unwrap());
                self.original = side;
                Forward
            }
            Some(tcp) => {
                let direction = if side == self.original { ORIGINAL } else { REPLY };
                let verdict = tcp.advance(direction, &segment);
                self.was_closing |= tcp.state() == Closing;
                verdict
            }
        };
        match verdict {
            Forward | ForwardOnly => self.queues[side][1].push_back((0, segment)),
            // An old SYN that comes after everything; nothing of the connection is lost by it.
            Reopen => assert!(self.tcp.unwrap().is_closing() && segment.flags & SYN != 0),
            Drop(fault) => {
                // RFC 5961 section 3.2: one nobody takes is nobody's loss.
                let is_idle = fault == TcpFault::RstOutOfWindow && !self.hosts[side ^ 1].heeds(&segment);
                assert!(is_idle, "{fault:?}: {segment:?} of {side} at {:?}", self.tcp);
            }
        }
    }

    fn step(&mut self, side: usize, step: Step) {
        for side in 0..2 {
            while self.queues[side][0].front().is_some_and(|(sent, _)| sent + LAG < self.passed_bytes) {
                self.carry(side, 0, 0);
            }
        }
        let host = &mut self.hosts[side];
        let sent = match step {
            Step::Send(len) => host.send(len),
            Step::Resend => host.resend(),
            Step::Probe => host.probe(),
            Step::KeepAlive(len) => host.keep_alive(len),
            Step::Read(len) => host.read(len),
            Step::Close => host.close(),
            Step::Abort => host.abort(),
            Step::Carry(hop, place) => return self.carry(side, hop, place),
            Step::Lose(hop, place) => {
                self.queues[side][hop].remove(place);
                return;
            }
            Step::Repeat(place) => self.queues[side][0].get(place).map(|(_, segment)| *segment),
        };
        self.emit(side, sent);
    }

    /// The network behaves until nothing is left to say.
    fn settle(&mut self) {
        for round in 0..10_000 {
            for side in 0..2 {
                for hop in 0..2 {
                    for _ in 0..self.queues[side][hop].len() {
                        self.carry(side, hop, 0);
                    }
                }
            }
            let is_quiet = self.queues.iter().flatten().all(VecDeque::is_empty);
            let is_done = self.hosts.iter().all(|host| match host.phase {
                Phase::Open => host.unacknowledged == host.next && host.unread == 0,
                Phase::Dead => true,
                Phase::Listening | Phase::SynSent | Phase::SynReceived => false,
            });
            if is_quiet && is_done && round > 2 {
                return;
            }
            for side in 0..2 {
                if is_quiet {
                    self.step(side, Step::Resend);
                }
                if round < 2 || self.hosts[side].unread > 0 {
                    self.step(side, Step::Read(i64::MAX));
                    self.step(side, Step::KeepAlive(0));
                }
            }
        }
        panic!("they do not come to an end: {:?}", self.tcp);
    }
}

fn step() -> impl Strategy<Value = Step> {
    let place = || prop_oneof![3 => Just(0usize), 1 => 0..6usize];
    prop_oneof![
        8 => (1..=MSS).prop_map(Step::Send),
        3 => Just(Step::Resend),
        2 => Just(Step::Probe),
        1 => (0..2i64).prop_map(Step::KeepAlive),
        3 => (1..40_000i64).prop_map(Step::Read),
        24 => (0..2usize, place()).prop_map(|(hop, place)| Step::Carry(hop, place)),
        2 => (0..2usize, place()).prop_map(|(hop, place)| Step::Lose(hop, place)),
        1 => place().prop_map(Step::Repeat),
    ]
}

/// Scales of both SYNs and buffer sizes that fit them.
fn windows() -> impl Strategy<Value = ([Option<u8>; 2], [i64; 2])> {
    let small = || prop_oneof![Just(1_000i64), Just(36_000)];
    let scaled =
        prop_oneof![Just((0u8, 36_000i64)), Just((1, 100_000)), Just((7, 1_000_000)), Just((14, 40_000))];
    prop_oneof![
        1 => (small(), small()).prop_map(|(a, b)| ([Option::None; 2], [a, b])),
        1 => (small(), small()).prop_map(|(a, b)| ([Some(9), Option::None], [a, b])),
        1 => (small(), small()).prop_map(|(a, b)| ([Option::None, Some(9)], [a, b])),
        3 => (scaled.clone(), scaled).prop_map(|(a, b)| ([Some(a.0), Some(b.0)], [a.1, b.1])),
    ]
}

proptest! {
    #[test]
    fn nothing_an_honest_endpoint_sends_is_dropped(
        // Close to where they wrap, or anywhere.
        isns in [prop_oneof![any::<u32>(), u32::MAX - 20_000..], prop_oneof![any::<u32>(), u32::MAX - 20_000..]],
        (scales, buffers) in windows(),
        opens_both: bool,
        steps in proptest::collection::vec((0..2usize, step()), 1..500),
        endings in proptest::collection::vec((0..2usize, prop_oneof![4 => Just(Step::Close), 1 => Just(Step::Abort)]), 0..3),
        steps_after in proptest::collection::vec((0..2usize, step()), 1..100),
    ) {
        let hosts = [0, 1].map(|side| Host::new(isns[side], scales[side], buffers[side]));
        let mut net = Net {
            hosts,
            queues: Default::default(),
            tcp: Option::None,
            original: 0,
            passed_bytes: 0,
            was_closing: false,
        };
        for side in 0..=usize::from(opens_both) {
            let syn = net.hosts[side].syn();
            net.emit(side, Some(syn));
        }
        for (side, step) in steps {
            net.step(side, step);
        }
        for (side, ending) in endings {
            net.step(side, ending);
            for (side, step) in &steps_after {
                net.step(*side, *step);
            }
        }
        net.settle();

        let tcp = net.tcp.unwrap();
        let [a, b] = &net.hosts;
        if net.hosts.iter().any(|host| host.phase == Phase::Dead) {
            assert!(net.was_closing || net.hosts.iter().all(|host| host.phase == Phase::Dead));
            return Ok(());
        }
        assert_eq!((a.received, b.received), (b.next, a.next));
        let original = net.original;
        let fins = [original, original ^ 1].map(|side| net.hosts[side].fin.is_some());
        let expected = match fins {
            [false, false] => Established,
            [true, false] => FinOriginal,
            [false, true] => FinReply,
            [true, true] => BothFin,
        };
        assert_eq!(tcp.state(), expected);
        for (position, side) in [original, original ^ 1].into_iter().enumerate() {
            let (host, end) = (&net.hosts[side], tcp.ends[position]);
            assert_eq!(end.max_end, host.isn.wrapping_add(host.next as u32));
            assert_eq!(end.max_ack, host.peer_isn.wrapping_add(host.received as u32));
            assert_eq!(end.limit, host.isn.wrapping_add(host.limit as u32));
        }
    }
}
