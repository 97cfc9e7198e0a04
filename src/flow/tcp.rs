//! TCP connection tracking (RFC 5382, RFC 6146 section 3.5.2, RFC 7857 section 2, RFC 5961): the state of one
//! connection, the bounds each side's segments must keep, and the MSS clamp (RFC 9293 section 3.7.1).
//!
//! The bounds are Guido van Rooij's ("Real Stateful TCP Packet Filtering in IP Filter", 2000), all in the
//! numbers on the wire, with wrapping arithmetic. A segment of side S, whose peer is R, is in bounds if
//!
//! ```text
//! seq <= S.limit               nothing beyond what R has offered to take; without data, 2 beyond: a probe and
//!                              a FIN go into a closed window, and ACKs come from behind them
//! end >= R.max_ack - R.window  no older than what S may still have to send again
//! ack <= R.max_end             nothing acknowledged that R has not sent
//! ack >= S.max_ack - S.window  RFC 5961 section 5.2: an older ACK the receiver would not take either
//! ```
//!
//! The last one counts from the highest ACK of the same side, not (as netfilter does) from the highest end of
//! the other: a sender that fills the window would else have every reordered ACK dropped.
//!
//! What cannot be decided here passes without changing anything ([`Verdict::ForwardOnly`]), for the endpoints
//! to decide: a SYN in the middle of a connection, a RST that is in the window but not exact. Their challenge
//! ACK (RFC 5961 sections 3.2, 4.2) and its answer pass, and tell us too.

mod replica;

use std::time::Duration;

use zerocopy::FromZeros;

use crate::packet::checksum;

/// TCP header flags (RFC 9293 section 3.1).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;
}

/// True if a segment with these flags asks for a new connection (RFC 9293 section 3.5).
pub fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (flags::SYN | flags::ACK | flags::RST | flags::FIN) == flags::SYN
}

use flags::{ACK, FIN, RST, SYN};

/// Header without options (RFC 9293 section 3.1).
const HEADER_LEN: usize = 20;
/// Largest window scale (RFC 7323 section 2.3).
const MAX_SCALE: u8 = 14;
/// In the place of a scale while the connection opens: this side's SYN carried none.
const NO_SCALE: u8 = 15;
/// How far back data and ACKs may lie at least, whatever window was offered: netfilter's and ipfilter's 66,000,
/// a whole unscaled window and some. 2^16 of it come from the exponent.
const WINDOW_FLOOR: u32 = 66_000;
/// Windows are kept as a power of two; beyond 256 MiB they count as that. So sums of a limit, a window and the
/// slack stay below 2^31, where wrapping comparisons turn over.
const MAX_WINDOW_EXPONENT: u8 = 12;
/// What that comes to: wider ones change nothing.
const WIDEST: u32 = (1 << (16 + MAX_WINDOW_EXPONENT)) + (WINDOW_FLOOR - (1 << 16));

/// How far a sender's numbers may lie beyond what it may send: the byte of a window probe and a FIN.
const OVERRUN: u32 = 2;

/// MSS option (RFC 9293 section 3.2), window scale (RFC 7323), SACK permitted (RFC 2018).
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;
const OPTION_SACK_PERMITTED: u8 = 4;

/// Bits of [`Tcp::flags`]. No segment with an ACK has been seen from this side; its `max_ack` then is the
/// peer's initial sequence number, as far as that is known.
const AWAIT: [u8; 2] = [0x01, 0x02];
/// This side has sent its FIN.
const FINISHED: [u8; 2] = [0x04, 0x08];
/// The beginning was not seen: bounds are learned until neither side is awaited, and keep slack afterwards.
const LEARNED: u8 = 0x10;
/// Known to have been established before it was learned again: keeps its long timeout meanwhile.
const KEPT: u8 = 0x20;
/// A SYN of the original side has passed without changing anything. If the other side answers with a SYN-ACK
/// of new numbers, both ends have forgotten a connection that we remember.
const SYN_PASSED: u8 = 0x40;
/// The reply side answers past us: only the original side's segments are seen, and there are no bounds to hold them
/// against.
const ONE_SIDED: u8 = 0x80;

/// Who sent it, seen from the session's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// The side that sent the first packet.
    Original = 0,
    /// The other side.
    Reply = 1,
}

impl Direction {
    /// The other one.
    pub fn reverse(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }

    /// Positions of sender and receiver.
    #[inline]
    fn sides(self) -> (usize, usize) {
        let sender = usize::from(self as u8 & 1);
        (sender, sender ^ 1)
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromZeros)]
#[repr(u8)]
pub enum State {
    /// Nothing seen.
    #[default]
    None,
    /// SYN of the original side.
    SynSent,
    /// SYNs of both sides, neither acknowledged (RFC 9293 section 3.5, figure 7; RFC 5382 REQ-2).
    SimultaneousOpen,
    /// SYNs of both sides, one acknowledged.
    SynReceived,
    /// ACKs of both sides (RFC 5382 section 5).
    Established,
    /// FIN of the original side; data may flow the other way for as long as it likes.
    FinOriginal,
    /// FIN of the reply side; data may flow the other way for as long as it likes.
    FinReply,
    /// FINs of both sides.
    BothFin,
    /// A valid RST; data returns it to where it was (RFC 7857 section 2.2, TRANS in RFC 6146).
    Closing,
    /// The original SYN was answered with a RST.
    Refused,
}

impl State {
    /// All.
    pub const ALL: [State; 10] = [
        State::None,
        State::SynSent,
        State::SimultaneousOpen,
        State::SynReceived,
        State::Established,
        State::FinOriginal,
        State::FinReply,
        State::BothFin,
        State::Closing,
        State::Refused,
    ];

    /// As commands print it.
    pub const fn name(self) -> &'static str {
        match self {
            State::None => "none",
            State::SynSent => "syn-sent",
            State::SimultaneousOpen => "simultaneous-open",
            State::SynReceived => "syn-received",
            State::Established => "established",
            State::FinOriginal => "fin-original",
            State::FinReply => "fin-reply",
            State::BothFin => "both-fin",
            State::Closing => "closing",
            State::Refused => "refused",
        }
    }
}

/// Why a segment is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpFault {
    /// No flags, SYN+FIN, SYN+RST, FIN+RST, or no ACK where there must be one.
    BadFlags,
    /// The first segment is no SYN, and loose pick-up is off.
    NoConnection,
    /// Nothing an endpoint would send in this state.
    OutOfState,
    /// Sequence or acknowledgment number outside what the other side can have asked for.
    OutOfWindow,
    /// A RST that no endpoint would take.
    RstOutOfWindow,
}

/// What is to become of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It belongs to the connection: let it through and restart the idle time with [`Tcp::timeout`].
    Forward,
    /// Let it through; it proves nothing, so the idle time goes on.
    ForwardOnly,
    /// A new connection on the old tuple: end this session and decide this segment as a first one.
    Reopen,
    /// Drop it.
    Drop(TcpFault),
}

/// Idle time after which a session may be removed. RFC 7857 section 2.1 wants opening and closing apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpTimers {
    /// Both sides have sent an ACK, and at most one a FIN.
    pub established: Duration,
    /// Until both sides have sent an ACK.
    pub opening: Duration,
    /// Both sides have sent a FIN.
    pub closing: Duration,
    /// After a valid RST.
    pub reset: Duration,
}

impl Default for TcpTimers {
    fn default() -> TcpTimers {
        TcpTimers {
            // RFC 5382 REQ-5: not under 2 hours 4 minutes.
            established: Duration::from_secs(7_440),
            // RFC 5382 REQ-5 and RFC 7857 section 2.1: 4 minutes by default; opening may be configured lower.
            opening: Duration::from_secs(240),
            closing: Duration::from_secs(240),
            // RFC 7857 section 2.2: 4 minutes.
            reset: Duration::from_secs(240),
        }
    }
}

/// What the options of a SYN say; of the others they are not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// RFC 7323 section 2.2.
    pub window_scale: Option<u8>,
    /// RFC 9293 section 3.7.1.
    pub mss: Option<u16>,
    /// RFC 2018 section 2.
    pub sack_permitted: bool,
}

/// What the tracker has to know of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; means something only with the ACK flag.
    pub ack: u32,
    /// Bytes after the header.
    pub payload_len: u32,
    /// As on the wire, unscaled.
    pub window: u16,
    /// As on the wire ([`flags`]).
    pub flags: u8,
    /// Of a SYN.
    pub options: SynOptions,
}

impl Segment {
    /// Reads the header at the start of `l4`, the TCP segment of an IP packet whose payload is `ip_payload_len`
    /// bytes long. `None` if the header is longer than either, or the options of a SYN are malformed.
    #[inline]
    pub fn parse(l4: &[u8], ip_payload_len: usize) -> Option<Segment> {
        let header: &[u8; HEADER_LEN] = l4.first_chunk()?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < HEADER_LEN || header_len > l4.len().min(ip_payload_len) {
            return None;
        }
        let options = if header[13] & SYN == 0 {
            SynOptions::default()
        } else {
            SynOptions::parse(&l4[HEADER_LEN..header_len])?
        };
        Some(Segment {
            seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
            payload_len: (ip_payload_len - header_len) as u32,
            window: u16::from_be_bytes([header[14], header[15]]),
            flags: header[13],
            options,
        })
    }

    /// The sequence number after the segment; SYN and FIN count as a byte each.
    #[inline]
    pub fn end(&self) -> u32 {
        let counted = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.seq.wrapping_add(self.payload_len).wrapping_add(counted)
    }
}

impl SynOptions {
    /// `None` if an option is shorter than its own header or runs beyond the end (RFC 9293 section 3.1).
    #[cold]
    fn parse(mut options: &[u8]) -> Option<SynOptions> {
        let mut found = SynOptions::default();
        while let Some((option, rest)) = next_option(options)? {
            match *option {
                [OPTION_MSS, 4, high, low] => found.mss = Some(u16::from_be_bytes([high, low])),
                [OPTION_WINDOW_SCALE, 3, scale] => found.window_scale = Some(scale),
                [OPTION_SACK_PERMITTED, 2] => found.sack_permitted = true,
                // Others do not concern us, and neither does a known one of a wrong length.
                [..] => {}
            }
            options = rest;
        }
        Some(found)
    }
}

/// The first option and what follows it; `Some(None)` at the end, `None` if it is malformed.
fn next_option(mut options: &[u8]) -> Option<Option<(&[u8], &[u8])>> {
    loop {
        match *options {
            [] | [0, ..] => return Some(None),
            [1, ref rest @ ..] => options = rest,
            [_, len, ..] if len >= 2 && usize::from(len) <= options.len() => {
                return Some(Some(options.split_at(usize::from(len))));
            }
            [_, ..] => return None,
        }
    }
}

/// What a legal combination of flags asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

impl Event {
    fn of(flags: u8) -> Option<Event> {
        match (flags & SYN != 0, flags & RST != 0, flags & FIN != 0, flags & ACK != 0) {
            (true, false, false, false) => Some(Event::Syn),
            (true, false, false, true) => Some(Event::SynAck),
            (false, true, false, false | true) => Some(Event::Rst),
            (false, false, true, true) => Some(Event::Fin),
            (false, false, false, true) => Some(Event::Ack),
            (true, true, false | true, false | true)
            | (true, false, true, false | true)
            | (false, true, true, false | true)
            | (false, false, false | true, false) => None,
        }
    }
}

/// One side, in wire units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(C)]
struct End {
    /// Highest sequence number + length it has sent.
    max_end: u32,
    /// Highest acknowledgment number it has sent.
    max_ack: u32,
    /// How far it may send: the other side's highest acknowledgment number + window.
    limit: u32,
}

/// A tracked connection. All zero is "nothing seen".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct Tcp {
    ends: [End; 2],
    /// Of each side: window scale in the low half; in the high half the exponent of the largest window it has
    /// offered, rounded up to a power of two and less 16.
    windows: [u8; 2],
    state: State,
    flags: u8,
}

const _: () = assert!(size_of::<Tcp>() <= 28);

#[inline]
fn at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 >= 0
}

#[inline]
fn later(a: u32, b: u32) -> u32 {
    if at_or_after(a, b) { a } else { b }
}

impl Tcp {
    /// Begins with a session's first segment. Unless `loose`, that has to be a SYN (RFC 5382 REQ-2); `loose`
    /// takes up a connection at any segment but a RST, and learns the bounds from both directions.
    pub fn open(first: &Segment, loose: bool) -> Result<Tcp, TcpFault> {
        let event = Event::of(first.flags).ok_or(TcpFault::BadFlags)?;
        match (event, loose) {
            (Event::Syn, false | true) => {
                let mut tcp = Tcp {
                    windows: [NO_SCALE; 2],
                    state: State::SynSent,
                    flags: AWAIT[0] | AWAIT[1],
                    ..Tcp::default()
                };
                tcp.number(Direction::Original, first);
                Ok(tcp)
            }
            (Event::SynAck | Event::Ack | Event::Fin, true) => {
                let mut tcp = Tcp { flags: AWAIT[0] | AWAIT[1] | LEARNED, ..Tcp::resumed() };
                tcp.learn(Direction::Original, first);
                if event == Event::Fin {
                    tcp.finish(Direction::Original);
                }
                Ok(tcp)
            }
            (Event::SynAck | Event::Ack | Event::Fin, false) | (Event::Rst, false | true) => {
                Err(TcpFault::NoConnection)
            }
        }
    }

    /// The same for a connection whose other side will not be heard (direct server return). One may be taken up at
    /// any segment but a RST: the server knows better, and who it is follows from the tuple.
    pub fn open_one_sided(first: &Segment) -> Result<Tcp, TcpFault> {
        let state = match Event::of(first.flags).ok_or(TcpFault::BadFlags)? {
            Event::Syn => State::SynSent,
            // Of one that goes on there is more.
            Event::Ack => State::SynReceived,
            Event::Fin => State::FinOriginal,
            Event::SynAck | Event::Rst => return Err(TcpFault::NoConnection),
        };
        let finished = if state == State::FinOriginal { FINISHED[0] } else { 0 };
        Ok(Tcp { state, flags: AWAIT[0] | AWAIT[1] | ONE_SIDED | finished, ..Tcp::default() })
    }

    /// A connection that was established elsewhere, of which nothing else is known. Everything passes until
    /// both directions have been seen and fit together.
    pub fn resumed() -> Tcp {
        Tcp {
            // An unknown scale counts as the largest: bounds too wide lose nothing.
            windows: [MAX_SCALE; 2],
            state: State::Established,
            flags: AWAIT[0] | AWAIT[1] | LEARNED | KEPT,
            ..Tcp::default()
        }
    }

    /// A connection as it was some time ago, after a failover: its numbers have moved on and are learned again,
    /// state and window scales hold. While it opened nothing moved, and it goes on as it was.
    pub fn resume(self) -> Tcp {
        match self.state {
            State::None | State::SynSent | State::SimultaneousOpen | State::SynReceived | State::Refused => {
                self
            }
            State::Established | State::FinOriginal | State::FinReply | State::BothFin | State::Closing => {
                let finished = self.flags & (FINISHED[0] | FINISHED[1] | ONE_SIDED);
                Tcp { flags: finished | AWAIT[0] | AWAIT[1] | LEARNED | KEPT, ..self }
            }
        }
    }

    /// What a segment to each side would have for sequence and acknowledgment number, as far as was seen: first one to the side
    /// that answers, then one to the side that began. `None`: not both have been heard.
    pub fn last_numbers(&self) -> Option<[(u32, u32); 2]> {
        if self.is_half_open() || self.is_learning() || self.flags & ONE_SIDED != 0 {
            return None;
        }
        // Who gets it takes what it has acknowledged last for the next; what it has sent last is acknowledged.
        let to = |side: usize| (self.ends[side].max_ack, self.ends[side].max_end);
        Some([to(1), to(0)])
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Both sides have acknowledged, and at most one has finished.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established | State::FinOriginal | State::FinReply)
            && !self.is_half_open()
    }

    /// Not both sides have shown that they want it, and none that it does not.
    pub fn is_half_open(&self) -> bool {
        match self.state {
            State::SynSent | State::SimultaneousOpen | State::SynReceived => true,
            State::Established | State::FinOriginal | State::FinReply => {
                self.awaits_any() && self.flags & KEPT == 0
            }
            State::None | State::BothFin | State::Closing | State::Refused => false,
        }
    }

    /// It never was established, whether it still opens or was refused: may be recycled when the table is full.
    pub fn is_embryonic(&self) -> bool {
        match self.state {
            State::None => false,
            State::SynSent | State::SimultaneousOpen | State::SynReceived | State::Refused => true,
            State::Established | State::FinOriginal | State::FinReply | State::BothFin | State::Closing => {
                self.awaits_any() && self.flags & KEPT == 0
            }
        }
    }

    /// Finished by both sides or reset.
    pub fn is_closing(&self) -> bool {
        matches!(self.state, State::BothFin | State::Closing | State::Refused)
    }

    /// How long it may be idle as it stands now.
    pub fn timeout(&self, timers: &TcpTimers) -> Duration {
        match self.state {
            State::None | State::SynSent | State::SimultaneousOpen | State::SynReceived => timers.opening,
            // The server's FIN will not be seen.
            State::FinOriginal if self.flags & ONE_SIDED != 0 => timers.closing,
            // RFC 5382 section 5: half-closed is established. One-sided pick-ups have to earn that.
            State::Established | State::FinOriginal | State::FinReply => {
                if self.is_half_open() {
                    timers.opening
                } else {
                    timers.established
                }
            }
            State::BothFin => timers.closing,
            State::Closing | State::Refused => timers.reset,
        }
    }

    /// The next segment of the connection.
    #[inline]
    pub fn advance(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        let (s, r) = direction.sides();
        let (sender, receiver) = (self.ends[s], self.ends[r]);
        let end = segment.seq.wrapping_add(segment.payload_len);
        let window = u32::from(segment.window) << (self.windows[s] & 0x0f);

        // Established, in bounds and no wider a window than before: nearly every segment. Each difference has
        // its sign bit set if its bound is broken, and one branch looks at all of them.
        let own_window = self.window(s);
        let broken = sender.limit.wrapping_sub(segment.seq)
            | end.wrapping_sub(receiver.max_ack.wrapping_sub(self.window(r)))
            | receiver.max_end.wrapping_sub(segment.ack)
            | segment.ack.wrapping_sub(sender.max_ack.wrapping_sub(own_window))
            | own_window.wrapping_sub(window.min(WIDEST));
        let special = ((segment.flags & (FIN | SYN | RST | ACK)) ^ ACK)
            | (self.state as u8 ^ State::Established as u8)
            | (self.flags & (AWAIT[0] | AWAIT[1] | SYN_PASSED));
        if (broken as i32) < 0 || special != 0 {
            return self.advance_special(direction, segment);
        }
        self.ends[s].max_end = later(end, sender.max_end);
        self.ends[s].max_ack = later(segment.ack, sender.max_ack);
        self.ends[r].limit = later(segment.ack.wrapping_add(window), receiver.limit);
        Verdict::Forward
    }

    /// Everything else. Total: each state says what becomes of each event.
    #[cold]
    #[inline(never)]
    fn advance_special(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        let Some(event) = Event::of(segment.flags) else {
            return Verdict::Drop(TcpFault::BadFlags);
        };
        if self.flags & ONE_SIDED != 0 {
            return self.advance_one_sided(direction, event, segment);
        }
        use Direction::{Original, Reply};
        match (self.state, event) {
            (State::None, Event::Syn | Event::SynAck | Event::Ack | Event::Fin | Event::Rst) => {
                Verdict::Drop(TcpFault::NoConnection)
            }

            (State::SynSent | State::SimultaneousOpen, Event::Syn) => self.opening_syn(direction, segment),
            (State::SynSent | State::SimultaneousOpen | State::SynReceived, Event::SynAck) => {
                self.opening_syn_ack(direction, segment)
            }
            (State::SynSent, Event::Ack) => match direction {
                // The challenge ACK of an older connection (RFC 5961 section 4.2), for the client to reset.
                Reply if segment.payload_len == 0 => Verdict::ForwardOnly,
                Original | Reply => Verdict::Drop(TcpFault::OutOfState),
            },
            (State::SynSent | State::Refused, Event::Fin) => Verdict::Drop(TcpFault::OutOfState),
            (State::SynSent | State::Refused, Event::Rst) => self.refuse(direction, segment),
            (State::SimultaneousOpen | State::SynReceived, Event::Ack | Event::Fin) => {
                self.opening_ack(direction, segment, event)
            }
            (State::SynReceived, Event::Syn) => Verdict::ForwardOnly,

            (
                State::Established | State::FinOriginal | State::FinReply | State::BothFin,
                Event::Ack | Event::Fin,
            ) => {
                if !self.accept(direction, segment) {
                    return Verdict::Drop(TcpFault::OutOfWindow);
                }
                if event == Event::Fin {
                    self.finish(direction);
                }
                Verdict::Forward
            }
            (State::Established | State::FinOriginal | State::FinReply, Event::Syn) => {
                self.pass_syn(direction)
            }
            (State::BothFin, Event::Syn) => {
                // RFC 9293 section 3.6.1: a larger number than any used reopens (MAY-2). Numbers wrap (RFC 6528's
                // clock in 4.5 minutes), so only what an old duplicate may carry does not count as larger.
                let (s, r) = direction.sides();
                let behind = self.ends[s].max_end.wrapping_sub(segment.seq);
                if (1..=self.window(r)).contains(&behind) {
                    self.pass_syn(direction)
                } else {
                    Verdict::Reopen
                }
            }
            (
                State::Established | State::FinOriginal | State::FinReply | State::BothFin | State::Closing,
                Event::SynAck,
            ) => self.late_syn_ack(direction, segment),

            (State::Closing, Event::Ack | Event::Fin) => {
                if !self.accept(direction, segment) {
                    return Verdict::Drop(TcpFault::OutOfWindow);
                }
                if event == Event::Fin {
                    self.flags |= FINISHED[direction.sides().0];
                }
                // RFC 7857 section 2.2. Data only: ACKs that have crossed the RST keep nothing alive.
                if segment.payload_len > 0 && !self.awaits_any() {
                    self.synchronise();
                }
                Verdict::Forward
            }
            (State::Closing | State::Refused, Event::Syn) => Verdict::Reopen,
            (State::Refused, Event::SynAck) => match direction {
                Original => Verdict::Drop(TcpFault::OutOfState),
                // The client resets it.
                Reply => Verdict::ForwardOnly,
            },
            (State::Refused, Event::Ack) => Verdict::Drop(TcpFault::OutOfState),

            (
                State::SimultaneousOpen
                | State::SynReceived
                | State::Established
                | State::FinOriginal
                | State::FinReply
                | State::BothFin
                | State::Closing,
                Event::Rst,
            ) => self.reset(direction, segment),
        }
    }

    /// Of a connection whose reply side answers past us. What comes of it all the same passes, and says what it says.
    fn advance_one_sided(&mut self, direction: Direction, event: Event, segment: &Segment) -> Verdict {
        let is_original = direction == Direction::Original;
        match (self.state, event) {
            (State::None, Event::Syn | Event::SynAck | Event::Ack | Event::Fin | Event::Rst) => {
                return Verdict::Drop(TcpFault::NoConnection);
            }
            // Sent again, or a new attempt: the server tells them apart.
            (State::SynSent, Event::Syn) => return Verdict::Forward,
            (
                State::SimultaneousOpen | State::SynReceived | State::Established | State::FinReply,
                Event::Syn,
            ) => return Verdict::ForwardOnly,
            (State::FinOriginal | State::BothFin | State::Closing | State::Refused, Event::Syn) => {
                return if is_original { Verdict::Reopen } else { Verdict::ForwardOnly };
            }
            (_, Event::SynAck) if is_original => return Verdict::Drop(TcpFault::OutOfState),
            (_, Event::SynAck) => return Verdict::ForwardOnly,
            // The client alone opens: its ACK answers a SYN that went past us.
            (State::SynSent | State::SimultaneousOpen | State::SynReceived, Event::Ack | Event::Fin)
                if !is_original =>
            {
                return Verdict::ForwardOnly;
            }
            (State::SynSent | State::SimultaneousOpen | State::SynReceived, Event::Ack) => {
                self.flags = self.flags & !AWAIT[0] | KEPT;
                self.synchronise();
            }
            (
                State::SynSent
                | State::SimultaneousOpen
                | State::SynReceived
                | State::Established
                | State::FinOriginal
                | State::FinReply
                | State::BothFin,
                Event::Fin,
            ) => {
                self.flags = self.flags & !AWAIT[0] | KEPT;
                self.finish(direction);
            }
            (State::Established | State::FinOriginal | State::FinReply | State::BothFin, Event::Ack) => {}
            // RFC 7857 section 2.2: only data brings it back, and a RST keeps nothing alive (section 7.1).
            (State::Closing, Event::Ack | Event::Fin) if segment.payload_len > 0 && is_original => {
                self.synchronise();
            }
            (State::Closing | State::Refused, Event::Ack | Event::Fin | Event::Rst) => {
                return Verdict::ForwardOnly;
            }
            (
                State::SynSent
                | State::SimultaneousOpen
                | State::SynReceived
                | State::Established
                | State::FinOriginal
                | State::FinReply
                | State::BothFin,
                Event::Rst,
            ) => self.state = State::Closing,
        }
        Verdict::Forward
    }

    /// The window of `side` that bounds how far back segments may lie.
    #[inline]
    fn window(&self, side: usize) -> u32 {
        (1 << (16 + (self.windows[side] >> 4))) + (WINDOW_FLOOR - (1 << 16))
    }

    fn awaits(&self, side: usize) -> bool {
        self.flags & AWAIT[side] != 0
    }

    fn awaits_any(&self) -> bool {
        self.flags & (AWAIT[0] | AWAIT[1]) != 0
    }

    fn is_learning(&self) -> bool {
        self.flags & LEARNED != 0 && self.awaits_any()
    }

    /// How far numbers of `receiver` may lie ahead of what is known: data that passed before we looked.
    fn slack(&self, receiver: usize) -> u32 {
        if self.flags & LEARNED != 0 { self.window(receiver) } else { 0 }
    }

    /// The window that `segment` offers. A SYN's is never scaled, and the others' only if both SYNs asked for
    /// it (RFC 7323 section 2.2).
    fn offered(&self, side: usize, segment: &Segment) -> u32 {
        let scales = self.windows.map(|window| window & 0x0f);
        let scale = if segment.flags & SYN != 0 || scales.contains(&NO_SCALE) { 0 } else { scales[side] };
        u32::from(segment.window) << scale
    }

    /// Takes the numbers of a SYN as those of its side, in place of any earlier ones. The limit moves along.
    fn number(&mut self, direction: Direction, segment: &Segment) {
        let (s, r) = direction.sides();
        let isn = segment.seq;
        self.ends[s].limit = self.ends[s].limit.wrapping_sub(self.ends[r].max_ack).wrapping_add(isn);
        self.ends[s].max_end = segment.end();
        self.ends[r].max_ack = isn;
        self.ends[r].limit = self.ends[s].max_ack.wrapping_add(1 + u32::from(segment.window));
        self.windows[s] = NO_SCALE;
        self.offer_scale(s, segment);
    }

    /// A SYN sent again may lack the option, after the sender lost hope in it; the first one counts still.
    fn offer_scale(&mut self, side: usize, segment: &Segment) {
        if let Some(scale) = segment.options.window_scale {
            self.windows[side] = (self.windows[side] & 0xf0) | scale.min(MAX_SCALE); // RFC 7323 section 2.3
        }
    }

    /// Whether an awaited ACK acknowledges the peer's SYN, and a repeated one nothing less than before.
    fn answers(&self, direction: Direction, segment: &Segment) -> bool {
        let (s, r) = direction.sides();
        let before = self.ends[s].max_ack;
        let new = segment.ack.wrapping_sub(before);
        new <= self.ends[r].max_end.wrapping_sub(before) && (new > 0 || !self.awaits(s))
    }

    /// The four bounds at the top of this file.
    fn in_bounds(&self, direction: Direction, segment: &Segment) -> bool {
        let (s, r) = direction.sides();
        let (sender, receiver) = (&self.ends[s], &self.ends[r]);
        let slack = self.slack(r);
        if self.awaits(s) && !self.answers(direction, segment) {
            return false;
        }
        let overrun = if segment.payload_len == 0 { OVERRUN } else { 0 };
        at_or_after(sender.limit.wrapping_add(slack + overrun), segment.seq)
            && at_or_after(segment.end(), receiver.max_ack.wrapping_sub(self.window(r)))
            && at_or_after(receiver.max_end.wrapping_add(self.slack(s)), segment.ack)
            && at_or_after(segment.ack, sender.max_ack.wrapping_sub(self.window(s)))
    }

    /// Moves the bounds by a segment that keeps them.
    fn note(&mut self, direction: Direction, segment: &Segment) {
        let (s, r) = direction.sides();
        let window = self.offered(s, segment);
        self.widen(s, window);
        self.ends[s].max_end = later(segment.end(), self.ends[s].max_end);
        self.ends[s].max_ack = later(segment.ack, self.ends[s].max_ack);
        self.ends[r].max_end = later(segment.ack, self.ends[r].max_end);
        self.ends[r].limit = later(segment.ack.wrapping_add(window), self.ends[r].limit);
        self.flags &= !AWAIT[s];
    }

    fn widen(&mut self, side: usize, window: u32) {
        while self.window(side) < window && self.windows[side] >> 4 < MAX_WINDOW_EXPONENT {
            self.windows[side] += 1 << 4;
        }
    }

    /// Takes a segment of a synchronised connection, if it keeps the bounds or those are still to be learned.
    fn accept(&mut self, direction: Direction, segment: &Segment) -> bool {
        if self.is_learning() {
            self.learn(direction, segment);
            return true;
        }
        if !self.in_bounds(direction, segment) {
            return false;
        }
        self.note(direction, segment);
        self.flags &= !SYN_PASSED; // It lives, and the SYN was none of its.
        true
    }

    /// Learns the bounds. The last segment of the one side counts until a segment of the other fits it; one that
    /// does not fit begins anew, so a stray cannot lock the connection out.
    fn learn(&mut self, direction: Direction, segment: &Segment) {
        let (s, r) = direction.sides();
        let window = self.offered(s, segment);
        self.widen(s, window);
        let fits = !self.awaits(r) && {
            let (sender, receiver) = (&self.ends[s], &self.ends[r]);
            let (ahead, back) = (self.window(s), self.window(s).wrapping_mul(2));
            at_or_after(sender.limit.wrapping_add(self.window(r)), segment.seq)
                && at_or_after(segment.end(), receiver.max_ack.wrapping_sub(self.window(r)))
                && at_or_after(receiver.max_end.wrapping_add(ahead), segment.ack)
                && at_or_after(segment.ack, receiver.max_end.wrapping_sub(back))
        };
        self.flags = (self.flags & !AWAIT[s]) | if fits { 0 } else { AWAIT[r] };
        self.ends[s].max_ack = segment.ack;
        self.ends[r].limit = segment.ack.wrapping_add(window);
        if fits {
            self.ends[s].max_end = later(segment.end(), self.ends[r].max_ack);
            self.ends[r].max_end = later(segment.ack, self.ends[r].max_end);
        } else {
            self.ends[s].max_end = segment.end();
            self.ends[r].max_end = segment.ack;
        }
    }

    /// Both sides are heard: where that leads, by the FINs seen. Scales are settled (RFC 7323 section 2.2).
    fn synchronise(&mut self) {
        if self.windows.iter().any(|window| window & 0x0f == NO_SCALE) {
            self.windows = self.windows.map(|window| window & 0xf0);
        }
        self.state = match (self.flags & FINISHED[0] != 0, self.flags & FINISHED[1] != 0) {
            (false, false) => State::Established,
            (true, false) => State::FinOriginal,
            (false, true) => State::FinReply,
            (true, true) => State::BothFin,
        };
    }

    fn finish(&mut self, direction: Direction) {
        self.flags |= FINISHED[direction.sides().0];
        self.synchronise();
    }

    /// A SYN before any ACK: the first, the same again, one with other numbers, or the other side's.
    fn opening_syn(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        let (s, r) = direction.sides();
        let is_first = direction == Direction::Reply && self.state == State::SynSent;
        if !is_first && segment.seq == self.ends[r].max_ack {
            self.ends[s].max_end = later(segment.end(), self.ends[s].max_end);
            self.offer_scale(s, segment);
        } else {
            self.number(direction, segment);
        }
        if is_first {
            self.state = State::SimultaneousOpen;
        }
        Verdict::Forward
    }

    fn opening_syn_ack(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        let (s, r) = direction.sides();
        if self.state == State::SynSent && direction == Direction::Original {
            return Verdict::Drop(TcpFault::OutOfState);
        }
        if !self.answers(direction, segment) {
            // It answers an old duplicate SYN, and the other side resets it (RFC 9293 section 3.5, figure 8).
            return Verdict::ForwardOnly;
        }
        if !self.awaits(r) {
            // The second SYN-ACK of a simultaneous open.
            return self.opening_ack(direction, segment, Event::SynAck);
        }
        if self.state == State::SynSent || segment.seq != self.ends[r].max_ack {
            self.number(direction, segment);
        }
        self.offer_scale(s, segment);
        self.note(direction, segment);
        self.state = State::SynReceived;
        Verdict::Forward
    }

    fn opening_ack(&mut self, direction: Direction, segment: &Segment, event: Event) -> Verdict {
        if !self.in_bounds(direction, segment) {
            return Verdict::Drop(TcpFault::OutOfWindow);
        }
        self.note(direction, segment);
        if event == Event::Fin {
            self.flags |= FINISHED[direction.sides().0];
        }
        if self.awaits_any() {
            self.state = State::SynReceived;
        } else {
            self.synchronise();
        }
        Verdict::Forward
    }

    /// A RST while only the original SYN has been seen.
    fn refuse(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        match direction {
            // The answer to an old connection's challenge ACK; it does not end the new one.
            Direction::Original => Verdict::ForwardOnly,
            // RFC 5961 section 3.2: in SYN-SENT a RST has to acknowledge the SYN.
            Direction::Reply if segment.flags & ACK != 0 && self.answers(direction, segment) => {
                if self.state == State::Refused {
                    return Verdict::ForwardOnly; // RFC 7857 section 7.1: RSTs keep nothing alive.
                }
                self.state = State::Refused;
                Verdict::Forward
            }
            Direction::Reply => Verdict::Drop(TcpFault::RstOutOfWindow),
        }
    }

    /// A SYN on a live connection is for the endpoint to challenge (RFC 5961 section 4.2).
    fn pass_syn(&mut self, direction: Direction) -> Verdict {
        if direction == Direction::Original {
            self.flags |= SYN_PASSED;
        }
        Verdict::ForwardOnly
    }

    /// A SYN-ACK on a synchronised connection: sent again because an ACK was lost; or the proof that both sides
    /// have forgotten a connection, agreed on new numbers, and only we are out of step.
    fn late_syn_ack(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        if self.is_learning() || self.in_bounds(direction, segment) {
            return Verdict::ForwardOnly;
        }
        if direction == Direction::Original || self.flags & SYN_PASSED == 0 {
            return Verdict::Drop(TcpFault::OutOfWindow);
        }
        // Learned, not taken from the SYN-ACK: if both were forged, the real segments set it right again.
        *self = Tcp::resumed();
        Verdict::Forward
    }

    /// RFC 5961 section 3.2, and RFC 7857 section 2.2 for what follows.
    fn reset(&mut self, direction: Direction, segment: &Segment) -> Verdict {
        let (s, r) = direction.sides();
        if self.is_learning() {
            return Verdict::ForwardOnly;
        }
        // The receiver expects one number between the highest it has acknowledged here and the highest sent
        // here; at either end the RST is certainly meant.
        let expected = self.ends[r].max_ack.wrapping_add(u32::from(self.awaits(r)));
        let is_exact = segment.seq == expected || segment.seq == self.ends[s].max_end;
        let answers_syn = self.awaits(s) && segment.flags & ACK != 0 && self.answers(direction, segment);
        if is_exact || answers_syn {
            if self.state == State::Closing {
                return Verdict::ForwardOnly; // RFC 7857 section 7.1: RSTs keep nothing alive.
            }
            self.state = State::Closing;
            self.flags &= !SYN_PASSED;
            return Verdict::Forward;
        }
        let width = self.ends[s].limit.wrapping_add(self.slack(r) + OVERRUN).wrapping_sub(expected);
        if segment.seq.wrapping_sub(expected) <= width {
            Verdict::ForwardOnly
        } else {
            Verdict::Drop(TcpFault::RstOutOfWindow)
        }
    }
}

/// Lowers the MSS option of the SYN at the start of `l4` to `max` and mends the checksum. True if it changed.
/// What is lower stays, and a SYN without the option does not get one: its sender takes 536 or 1,220 (RFC 9293
/// section 3.7.1).
pub fn mss_clamp(l4: &mut [u8], max: u16) -> bool {
    if l4.len() < HEADER_LEN || l4[13] & SYN == 0 {
        return false;
    }
    let header_len = usize::from(l4[12] >> 4) * 4;
    if header_len < HEADER_LEN || header_len > l4.len() {
        return false;
    }
    let mut changed = false;
    let mut rest_len = header_len - HEADER_LEN;
    while let Some(Some((option, rest))) = next_option(&l4[header_len - rest_len..header_len]) {
        let at = header_len - rest.len() - option.len();
        rest_len = rest.len();
        let &[OPTION_MSS, 4, high, low] = option else { continue };
        let mss = u16::from_be_bytes([high, low]);
        if mss <= max {
            continue;
        }
        l4[at + 2..at + 4].copy_from_slice(&max.to_be_bytes());
        // At an odd offset the bytes lie in the other halves of two words, which sums up to the same as
        // one word with its bytes swapped (RFC 1071 section 2 (B)).
        let (old, new) = if at % 2 == 0 { (mss, max) } else { (mss.swap_bytes(), max.swap_bytes()) };
        let sum = checksum::update(u16::from_be_bytes([l4[16], l4[17]]), old, new);
        l4[16..18].copy_from_slice(&sum.to_be_bytes());
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests;
