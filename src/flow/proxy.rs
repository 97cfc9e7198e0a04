//! The SYN proxy's connections: opened by a client who has acknowledged a cookie ([`super::cookie`]), and then by us to
//! the server. The client knows the server by the cookie, we by the number that it chose itself: from then on what the
//! server sends is shifted, and what the client acknowledges.
//!
//! ```text
//! client                gateway                 server
//!   SYN isn        ->
//!                  <-  SYN-ACK cookie, window 0         nothing is remembered
//!   ACK cookie + 1 ->
//!                      SYN isn              ->          the session begins
//!                      <-  SYN-ACK number
//!                      ACK number + 1       ->
//!                  <-  ACK, window                      everything else passes, shifted
//! ```
//!
//! Our SYN is sent again after one second, two, four ... ([`ask_again`]), and whenever the client probes the closed window
//! (RFC 9293 section 3.8.6.1); anything else that is lost one of the two sends again by himself. What was promised to the client and what the server
//! can do may differ in the window scale: windows are scaled anew. SACK that the server does not know it ignores.

use std::net::IpAddr;

use zerocopy::FromZeros;

use super::cookie::Offer;
use super::tcp::{Direction, Segment, State, SynOptions, flags};
use super::{Address, FlowTable, Handle, Tick, Tuple, flow_flags};
use crate::packet::checksum;

/// What the client is promised if it can scale windows: 8 MiB, in steps of 128 bytes.
pub const SCALE: u8 = 7;
const NO_SCALE: u8 = 15;
/// RFC 2018 section 3.
const OPTION_SACK: u8 = 5;
const HEADER_LEN: usize = 20;

/// A proxied connection.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub struct Proxy {
    /// Initial sequence number of the client: the same on both sides.
    isn: u32,
    /// Initial sequence number of the server, as the client knows it.
    cookie: u32,
    /// What is added to the server's sequence numbers.
    shift: u32,
    /// The client's window, as in its last segment.
    window: u16,
    mss: u16,
    /// Scales of what client and server send; [`NO_SCALE`]: none.
    scales: [u8; 2],
    sack: u8,
    /// The server has answered.
    is_open: u8,
    /// How often the server was asked again by the clock.
    asked_again: u32,
}

/// How long the server may take to answer our SYN before it is asked again; then twice as long (RFC 6298 section 2.1).
pub const PATIENCE_S: u32 = 1;

/// A session's timer has fired early. If it is one whose server has not answered, that is asked again when it is time:
/// when next.
pub(super) fn ask_again<A: Address>(table: &mut FlowTable<A>, session: u32, now: Tick) -> Option<Tick> {
    let next = next_asked(table, session)?;
    if now < next {
        return Some(next);
    }
    let mut proxy = *table.proxy(session);
    let reply = table.flow(Handle::new(session, 1)).tuple;
    let said = proxy.syn_to_server(&reply.reversed(reply.vrf));
    proxy.asked_again += 1;
    table.set_proxy(session, proxy);
    table.say(said);
    Some(proxy.next_time(table.created(session)))
}

/// When a session's server will be asked again, if it is one whose server has not answered.
pub(super) fn next_asked<A: Address>(table: &FlowTable<A>, session: u32) -> Option<Tick> {
    let is_proxied = table.flow(Handle::new(session, 0)).has(flow_flags::PROXIED);
    let proxy = is_proxied.then(|| table.proxy(session)).filter(|proxy| !proxy.is_open())?;
    (table.tcp(session).state() == State::SynSent).then(|| proxy.next_time(table.created(session)))
}

/// A segment that the gateway sends in the name of one side to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// VRF slot that it is routed in.
    pub vrf: u16,
    /// Source.
    pub from: (IpAddr, u16),
    /// Destination.
    pub to: (IpAddr, u16),
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags ([`flags`]).
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Of a SYN.
    pub options: Option<SynOptions>,
}

impl Said {
    /// Along `tuple`.
    pub fn along<A: Address>(tuple: &Tuple<A>, seq: u32, ack: u32, flags: u8, window: u16) -> Said {
        Said {
            vrf: tuple.vrf,
            from: (tuple.src.ip(), tuple.src_port),
            to: (tuple.dst.ip(), tuple.dst_port),
            seq,
            ack,
            flags,
            window,
            options: None,
        }
    }
}

impl Proxy {
    /// Of a client that has acknowledged `cookie` with `segment`.
    pub fn new(isn: u32, cookie: u32, offer: Offer, segment: &Segment) -> Proxy {
        Proxy {
            isn,
            cookie,
            shift: 0,
            window: segment.window,
            mss: offer.mss,
            scales: [offer.scale.unwrap_or(NO_SCALE), NO_SCALE],
            sack: offer.sack.into(),
            is_open: 0,
            asked_again: 0,
        }
    }

    /// Bytes of [`Proxy::to_replica`].
    pub const REPLICA_BYTES: usize = 20;

    /// As a node tells its peer of a connection whose server has answered: from then on its numbers are always shifted
    /// by the same.
    pub fn to_replica(self) -> [u8; Proxy::REPLICA_BYTES] {
        let Proxy { isn, cookie, shift, window, mss, scales, sack, is_open, asked_again: _ } = self;
        let mut told = [0; Proxy::REPLICA_BYTES];
        told[..4].copy_from_slice(&isn.to_be_bytes());
        told[4..8].copy_from_slice(&cookie.to_be_bytes());
        told[8..12].copy_from_slice(&shift.to_be_bytes());
        told[12..14].copy_from_slice(&window.to_be_bytes());
        told[14..16].copy_from_slice(&mss.to_be_bytes());
        told[16..].copy_from_slice(&[scales[0], scales[1], sack, is_open]);
        told
    }

    /// What the peer has told. `None`: nobody would tell that.
    pub fn from_replica(told: [u8; Proxy::REPLICA_BYTES]) -> Option<Proxy> {
        let word = |at: usize| u32::from_be_bytes([told[at], told[at + 1], told[at + 2], told[at + 3]]);
        let [scales @ .., sack, is_open] = [told[16], told[17], told[18], told[19]];
        // RFC 7323 section 2.3: 14 at most.
        let is_scale = |scale: u8| scale <= 14 || scale == NO_SCALE;
        let is_told = is_open == 1 && sack <= 1 && scales.into_iter().all(is_scale);
        is_told.then(|| Proxy {
            isn: word(0),
            cookie: word(4),
            shift: word(8),
            window: (word(12) >> 16) as u16,
            mss: word(12) as u16,
            scales,
            sack,
            is_open,
            asked_again: 0,
        })
    }

    /// When the server is to be asked again that was asked at `began`.
    fn next_time(&self, began: Tick) -> Tick {
        began.after(PATIENCE_S << self.asked_again.min(16))
    }

    /// The server has answered.
    pub fn is_open(&self) -> bool {
        self.is_open != 0
    }

    /// Initial sequence number of the client.
    pub fn isn(&self) -> u32 {
        self.isn
    }

    /// The server's initial sequence number, as the client knows it.
    pub fn cookie(&self) -> u32 {
        self.cookie
    }

    /// The client's SYN, as it would have come.
    pub fn syn(&self) -> Segment {
        Segment {
            seq: self.isn,
            ack: 0,
            payload_len: 0,
            window: self.unscaled(Direction::Original, self.window),
            flags: flags::SYN,
            options: self.options(),
        }
    }

    /// What the client had said of itself.
    fn options(&self) -> SynOptions {
        SynOptions {
            window_scale: scale_of(self.scales[0]),
            mss: Some(self.mss),
            sack_permitted: self.sack != 0,
        }
    }

    /// Another segment of the client while the server has not answered.
    pub fn heard(&mut self, segment: &Segment) {
        self.window = segment.window;
    }

    /// True if the server's segment acknowledges our SYN.
    pub fn is_answer(&self, segment: &Segment) -> bool {
        segment.flags & flags::ACK != 0 && segment.ack == self.isn.wrapping_add(1)
    }

    /// The server's SYN-ACK has come.
    pub fn open(&mut self, syn_ack: &Segment) {
        self.shift = self.cookie.wrapping_sub(syn_ack.seq);
        self.scales[1] = match scale_of(self.scales[0]) {
            None => NO_SCALE,
            Some(_) => syn_ack.options.window_scale.map_or(NO_SCALE, |scale| scale.min(14)),
        };
        self.is_open = 1;
    }

    /// The server's initial sequence number, as it chose it.
    fn server_isn(&self) -> u32 {
        self.cookie.wrapping_sub(self.shift)
    }

    /// The SYN for the server, along `tuple`.
    pub fn syn_to_server<A: Address>(&self, tuple: &Tuple<A>) -> Said {
        let syn = self.syn();
        Said { options: Some(syn.options), ..Said::along(tuple, syn.seq, 0, flags::SYN, syn.window) }
    }

    /// No interface on the way carries larger segments.
    pub fn limit_mss(&mut self, mss: u16) {
        self.mss = self.mss.min(mss);
    }

    /// The last segment of the handshake, along `tuple`.
    pub fn ack_to_server<A: Address>(&self, tuple: &Tuple<A>) -> Said {
        let (seq, ack) = (self.isn.wrapping_add(1), self.server_isn().wrapping_add(1));
        Said::along(tuple, seq, ack, flags::ACK, self.window_of(Direction::Original, self.window))
    }

    /// The client's acknowledgment of the server's SYN, as it would have come.
    pub fn last_of_handshake(&self) -> Segment {
        let (seq, ack) = (self.isn.wrapping_add(1), self.cookie.wrapping_add(1));
        Segment {
            seq,
            ack,
            window: self.window,
            flags: flags::ACK,
            options: SynOptions::default(),
            payload_len: 0,
        }
    }

    /// What opens the client's window once the server has answered, along `tuple`.
    pub fn ack_to_client<A: Address>(&self, tuple: &Tuple<A>, syn_ack: &Segment) -> Said {
        let (seq, ack) = (self.cookie.wrapping_add(1), self.isn.wrapping_add(1));
        let window = syn_ack.window >> self.promised();
        Said::along(tuple, seq, ack, flags::ACK, window)
    }

    /// What tells the client that the server does not want it, along `tuple`.
    pub fn reset_to_client<A: Address>(&self, tuple: &Tuple<A>) -> Said {
        let (seq, ack) = (self.cookie.wrapping_add(1), self.isn.wrapping_add(1));
        Said::along(tuple, seq, ack, flags::RST | flags::ACK, 0)
    }

    /// The server's segment as the client knows it, window and all; the client's as it is.
    pub fn shown(&self, direction: Direction, segment: &Segment) -> Segment {
        match direction {
            Direction::Original => *segment,
            Direction::Reply => {
                let is_syn = segment.flags & flags::SYN != 0;
                let options =
                    SynOptions { window_scale: scale_of(self.scales[0]).map(|_| SCALE), ..segment.options };
                Segment {
                    seq: segment.seq.wrapping_add(self.shift),
                    window: if is_syn { segment.window } else { self.window_of(direction, segment.window) },
                    options: if is_syn { options } else { segment.options },
                    ..*segment
                }
            }
        }
    }

    /// Scale of what the client gets.
    fn promised(&self) -> u8 {
        scale_of(self.scales[0]).map_or(0, |_| SCALE)
    }

    fn unscaled(&self, direction: Direction, window: u16) -> u16 {
        let scale = scale_of(self.scales[direction as usize]).unwrap_or(0);
        (u32::from(window) << scale).min(u16::MAX.into()) as u16
    }

    /// A window on the other side's terms. The server knows the client's scale if it has one itself (RFC 7323 section
    /// 2.2).
    fn window_of(&self, direction: Direction, window: u16) -> u16 {
        match (direction, scale_of(self.scales[1])) {
            (Direction::Original, Some(_)) => window,
            (Direction::Original, None) => self.unscaled(direction, window),
            (Direction::Reply, scale) => {
                let bytes = u32::from(window) << scale.unwrap_or(0);
                (bytes >> self.promised()).min(u16::MAX.into()) as u16
            }
        }
    }

    /// Makes of one side's segment the other side's. `l4` is its header with its options, and may go on.
    pub fn rewrite(&self, direction: Direction, l4: &mut [u8]) {
        let Some(header) = l4.first_chunk::<HEADER_LEN>() else { return };
        let (kind, window) = (header[13], u16::from_be_bytes([header[14], header[15]]));
        let len = (usize::from(header[12] >> 4) * 4).clamp(HEADER_LEN, l4.len());
        match direction {
            Direction::Reply => add(l4, 4, self.shift),
            Direction::Original => {
                if kind & flags::ACK != 0 {
                    add(l4, 8, self.shift.wrapping_neg());
                }
                for at in sack_edges(&l4[..len]) {
                    add(l4, at, self.shift.wrapping_neg());
                }
            }
        }
        if kind & flags::SYN == 0 {
            let new = self.window_of(direction, window);
            l4[14..16].copy_from_slice(&new.to_be_bytes());
            mend(l4, window, new);
        }
    }

    /// The same for the header in an ICMP error that is on its way to the server: it quotes what the client was sent.
    pub fn unwrite_quoted(&self, l4: &mut [u8]) {
        if l4.len() >= 18 {
            add(l4, 4, self.shift.wrapping_neg());
        } else if let Some(seq) = l4.get_mut(4..8) {
            let old = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]);
            seq.copy_from_slice(&old.wrapping_sub(self.shift).to_be_bytes());
        }
    }
}

fn scale_of(scale: u8) -> Option<u8> {
    (scale != NO_SCALE).then_some(scale)
}

/// Mends the TCP checksum after a word has changed.
fn mend(l4: &mut [u8], old: u16, new: u16) {
    let sum = checksum::update(u16::from_be_bytes([l4[16], l4[17]]), old, new);
    l4[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// Adds to the number at `at`, and mends the checksum.
fn add(l4: &mut [u8], at: usize, shift: u32) {
    let old = u32::from_be_bytes([l4[at], l4[at + 1], l4[at + 2], l4[at + 3]]);
    let new = old.wrapping_add(shift);
    l4[at..at + 4].copy_from_slice(&new.to_be_bytes());
    for half in [16, 0] {
        let [old, new] = [old, new].map(|number| (number >> half) as u16);
        // At an odd offset the bytes lie in the other halves of the words (RFC 1071 section 2 (B)).
        let swap = |word: u16| if at.is_multiple_of(2) { word } else { word.swap_bytes() };
        mend(l4, swap(old), swap(new));
    }
}

/// Where the edges of the SACK blocks lie in a header: four blocks at most.
fn sack_edges(header: &[u8]) -> arrayvec::ArrayVec<usize, 8> {
    let (mut edges, mut at) = (arrayvec::ArrayVec::new(), HEADER_LEN);
    while let Some(&kind) = header.get(at) {
        match kind {
            0 => break,
            1 => at += 1,
            _ => {
                let len = header.get(at + 1).map_or(0, |len| usize::from(*len));
                if len < 2 || at + len > header.len() {
                    break;
                }
                if kind == OPTION_SACK {
                    edges.extend((at + 2..at + len - 3).step_by(4).take(8));
                    break;
                }
                at += len;
            }
        }
    }
    edges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(seq: u32, ack: u32, kind: u8, window: u16) -> Segment {
        Segment { seq, ack, payload_len: 0, window, flags: kind, options: SynOptions::default() }
    }

    fn opened(client: Option<u8>, server: Option<u8>, cookie: u32, number: u32) -> Proxy {
        let offer = Offer { mss: 1460, scale: client, sack: true };
        let mut proxy =
            Proxy::new(99, cookie, offer, &segment(100, cookie.wrapping_add(1), flags::ACK, 1000));
        let mut syn_ack = segment(number, 100, flags::SYN | flags::ACK, 5000);
        syn_ack.options.window_scale = server;
        proxy.open(&syn_ack);
        proxy
    }

    /// A header with these options in front of some data, its checksum right.
    fn wire(seq: u32, ack: u32, window: u16, options: &[u8]) -> Vec<u8> {
        let mut l4 = vec![0x12, 0x34, 0, 80];
        l4.extend(seq.to_be_bytes());
        l4.extend(ack.to_be_bytes());
        l4.extend([(((20 + options.len()) / 4) << 4) as u8, flags::ACK]);
        l4.extend(window.to_be_bytes());
        l4.extend([0; 4]);
        l4.extend(options);
        l4.extend([7; 13]);
        let sum = checksum::of(&l4);
        l4[16..18].copy_from_slice(&sum.to_be_bytes());
        l4
    }

    fn number(l4: &[u8], at: usize) -> u32 {
        u32::from_be_bytes([l4[at], l4[at + 1], l4[at + 2], l4[at + 3]])
    }

    proptest! {
        #[test]
        fn both_directions_are_shifted_and_checksums_stay_right(
            cookie: u32, server: u32, seq: u32, ack: u32, edges: [u32; 4], nops in 0usize..3, blocks in 0usize..3,
        ) {
            let proxy = opened(Some(3), Some(7), cookie, server);
            let mut options = vec![1; nops];
            options.extend([5, 2 + 8 * blocks as u8]);
            edges[..2 * blocks].iter().for_each(|edge| options.extend(edge.to_be_bytes()));
            options.resize(options.len().next_multiple_of(4), 0);
            let mut up = wire(seq, ack, 500, &options);
            proxy.rewrite(Direction::Original, &mut up);
            prop_assert!(checksum::is_valid(&up));
            prop_assert_eq!((number(&up, 4), number(&up, 8)), (seq, ack.wrapping_sub(cookie).wrapping_add(server)));
            for (index, edge) in edges[..2 * blocks].iter().enumerate() {
                let at = 20 + nops + 2 + 4 * index;
                prop_assert_eq!(number(&up, at), edge.wrapping_sub(cookie).wrapping_add(server));
            }
            let mut down = wire(seq, ack, 500, &options);
            proxy.rewrite(Direction::Reply, &mut down);
            prop_assert!(checksum::is_valid(&down));
            prop_assert_eq!((number(&down, 4), number(&down, 8)), (seq.wrapping_sub(server).wrapping_add(cookie), ack));
            prop_assert_eq!(&down[20..], &wire(seq, ack, 500, &options)[20..], "its SACKs are of the client's numbers");
            proxy.unwrite_quoted(&mut down);
            prop_assert!(checksum::is_valid(&down));
            prop_assert_eq!(number(&down, 4), seq);
        }

        #[test]
        fn whatever_the_header_says_nothing_beyond_it_is_touched(bytes: Vec<u8>, cookie: u32, server: u32) {
            let proxy = opened(Some(3), None, cookie, server);
            for direction in [Direction::Original, Direction::Reply] {
                let mut l4 = bytes.clone();
                proxy.rewrite(direction, &mut l4);
                prop_assert_eq!(l4.get(60..), bytes.get(60..));
            }
            proxy.unwrite_quoted(&mut bytes.clone());
        }
    }

    #[test]
    fn windows_are_scaled_anew_where_the_promise_was_another() {
        let windows =
            |client, server, direction, window| opened(client, server, 1, 2).window_of(direction, window);
        use Direction::{Original, Reply};
        assert_eq!(windows(Some(3), Some(7), Reply, 500), 500, "as promised");
        assert_eq!(windows(Some(3), Some(9), Reply, 500), 2000);
        assert_eq!(windows(Some(3), Some(2), Reply, 640), 20);
        assert_eq!(windows(Some(3), None, Reply, 65_535), 511);
        assert_eq!(windows(Some(3), Some(14), Reply, 65_535), 65_535, "no more than fits");
        assert_eq!(
            windows(Some(3), Some(7), Original, 500),
            500,
            "the server has heard of the client's scale"
        );
        assert_eq!(
            windows(Some(3), None, Original, 500),
            4000,
            "and one that cannot scale takes it as it is"
        );
        assert_eq!(windows(Some(14), None, Original, 500), 65_535);
        assert_eq!(windows(None, Some(7), Original, 500), 500);
        assert_eq!(windows(None, Some(7), Reply, 500), 500, "who offers no scale gets none");
    }
}
