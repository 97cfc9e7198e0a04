//! What a session is made of: a flow for each direction, and what is known of both.
//!
//! 128 + 32 + 12 bytes for IPv4; with the timer's 8 and the index's 10.5 less than three cache lines.

use zerocopy::FromZeros;

use super::key::Tuple;
use super::tcp::Tcp;
use crate::neighbours::MAX_SLOTS;
use crate::tables::balance::delivery::number_of;
use crate::time::Nanos;

/// The flow table's clock: tenths of a second since the machine started, good for 13 years. A timer is late by less
/// than one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, FromZeros)]
#[repr(transparent)]
pub struct Tick(pub u32);

impl Tick {
    const NANOS: u64 = 100_000_000;

    /// The tick that `now` lies in.
    #[inline]
    pub fn of(now: Nanos) -> Tick {
        Tick((now.0 / Tick::NANOS) as u32)
    }

    /// When the tick begins.
    pub fn start(self) -> Nanos {
        Nanos(u64::from(self.0) * Tick::NANOS)
    }

    /// `seconds` later.
    pub fn after(self, seconds: u32) -> Tick {
        Tick(self.0.saturating_add(seconds.saturating_mul(10)))
    }
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// Addresses or ports change.
    pub const TRANSLATED: u8 = 1;
    /// TCP whose windows are tracked.
    pub const TCP: u8 = 2;
    /// Packets of this direction were seen. Of the first direction of a flow to a backend: and it is known whether that
    /// answers ([`crate::flow::backend`]).
    pub const SEEN: u8 = 4;
    /// TCP whose numbers change: in the place of [`TCP`], and with [`TRANSLATED`].
    pub const PROXIED: u8 = 8;
    /// They leave in the other family.
    pub const CROSSES: u8 = 16;
    /// Of the first direction: the peer has told of the session.
    pub const FROM_PEER: u8 = 32;
    /// Of the first direction: the session goes on in spite of the rule that it is of, because a commit has said so.
    pub const KEPT: u8 = 64;
    /// Of the first direction: the peer was told of the session.
    pub const TOLD: u8 = 128;
    /// Of the other direction, three bits: the peer's resync in which it was told of last.
    pub const ROUND: u8 = 0xe0;
    /// Where these bits begin.
    pub const ROUND_SHIFT: u32 = 5;
}

/// A slot of the neighbour table, or a delivery to a backend, in two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(transparent)]
pub struct NextHop(i16);

impl NextHop {
    /// Of a neighbour's slot or what stands for a delivery there; `None`: the destination itself.
    pub fn of(neighbour: Option<u32>) -> NextHop {
        debug_assert!(
            neighbour.is_none_or(|slot| (slot as usize) < MAX_SLOTS || number_of(slot).is_some()),
            "{neighbour:?}"
        );
        NextHop(neighbour.map_or(-1, |slot| slot as i16))
    }

    /// True if its packets go to a backend as they came.
    pub fn is_delivery(self) -> bool {
        self.0 < -1
    }

    /// The slot, or `NO_NEIGHBOUR`, or what stands for a delivery there.
    #[inline(always)]
    pub fn slot(self) -> u32 {
        i32::from(self.0) as u32
    }
}

/// What is done with the packets of one direction: the compiled decision. It can always be made anew.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C, align(64))]
pub struct Flow<A> {
    /// What its packets look like when they come in.
    pub tuple: Tuple<A>,
    /// Source address they leave with.
    pub new_src: A,
    /// Destination address they leave with.
    pub new_dst: A,
    /// Source port they leave with.
    pub new_src_port: u16,
    /// Destination port they leave with.
    pub new_dst_port: u16,
    /// Generation of the policy and routes it was decided by, its lower 32 bits.
    pub epoch: u32,
    /// Bytes of its packets, IP header included.
    pub bytes: u64,
    /// When its last packet came.
    pub last_seen: Tick,
    /// Its packets, the lower 32 bits.
    pub packets_low: u32,
    /// What a TCP or UDP checksum gains by the translation, one's complement.
    pub l4_delta: u16,
    /// What the IPv4 header checksum gains by it.
    pub ip_delta: u16,
    /// Egress interface slot, or `NO_INTERFACE`: ask the routes.
    pub egress: u16,
    /// Ingress interface slot expected.
    pub ingress: u16,
    /// The next hop.
    pub next_hop: NextHop,
    /// Bits of [`flow_flags`].
    pub flags: u8,
    /// Its packets, the bits above.
    pub packets_high: u8,
    /// Of the session, for which there is room here: [`FlowTable::insert`] writes it.
    pub note: u32,
}

const _: () = assert!(size_of::<Flow<u32>>() == 64 && size_of::<Flow<u128>>() == 128);

impl<A> Flow<A> {
    /// True if the bit is set.
    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Its packets.
    pub fn packets(&self) -> u64 {
        u64::from(self.packets_high) << 32 | u64::from(self.packets_low)
    }

    /// Counts a packet of so many bytes.
    #[inline(always)]
    pub fn count(&mut self, bytes: u16) {
        self.bytes += u64::from(bytes);
        self.packets_low = self.packets_low.wrapping_add(1);
        if self.packets_low == 0 {
            self.packets_high = self.packets_high.wrapping_add(1);
        }
    }
}

/// What a session is besides its two flows, gathered from where it lies ([`FlowTable::record`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// TCP's state, if it is TCP.
    pub tcp: Tcp,
    /// The NAT mapping of its source, as [`Record::name`].
    pub mapping: u32,
    /// The NAT mapping it came in by, as [`Record::name`].
    pub bound: u32,
    /// The backend of a service that it goes to, as [`Record::name`]: such a session came in by no mapping.
    pub backend: u32,
    /// When it began.
    pub created: Tick,
    /// Slot of the rule that allowed it.
    pub rule: u32,
    /// Slot of the NAT rule, 0 = none.
    pub nat_rule: u16,
    /// Zone of the first packet's ingress.
    pub from_zone: u8,
    /// Zone of its egress.
    pub to_zone: u8,
    /// DSCP of the first packet, for when policy is asked again.
    pub dscp: u8,
    /// TCP flags or ICMP type of the first packet.
    pub opened_with: u8,
    /// Bits of [`record_flags`].
    pub flags: u8,
}

impl Record {
    /// How a mapping is noted: its number and one, 0 = none.
    pub fn name(mapping: Option<u32>) -> u32 {
        mapping.map_or(0, |id| id + 1)
    }

    /// Slot of its backend.
    pub fn backend(&self) -> Option<u32> {
        self.backend.checked_sub(1)
    }

    /// The mappings it holds of the worker's own.
    pub fn mappings(&self) -> impl Iterator<Item = u32> + use<> {
        let own = if self.flags & record_flags::BORROWED == 0 { self.mapping } else { 0 };
        [own, self.bound].into_iter().filter_map(|name| name.checked_sub(1))
    }

    /// From where it lies.
    pub(super) fn of(connection: Connection, rest: Rest, notes: [u32; 2]) -> Record {
        let Connection { tcp, mapping } = connection;
        let Rest { bound, rule, from_zone, to_zone, flags, class: _ } = rest;
        let (bound, backend) = if bound & BACKEND == 0 { (bound, 0) } else { (0, bound & !BACKEND) };
        let [low, high, dscp, opened_with] = notes[1].to_le_bytes();
        let (created, nat_rule) = (Tick(notes[0]), u16::from_le_bytes([low, high]));
        Record {
            tcp,
            mapping,
            bound,
            backend,
            created,
            rule,
            nat_rule,
            from_zone,
            to_zone,
            dscp,
            opened_with,
            flags,
        }
    }

    /// What lies in the two flows' places for it.
    pub(super) fn notes(&self) -> [u32; 2] {
        let [low, high] = self.nat_rule.to_le_bytes();
        [self.created.0, u32::from_le_bytes([low, high, self.dscp, self.opened_with])]
    }
}

/// Of a session, what TCP's packets need: half a cache line.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C, align(32))]
pub(super) struct Connection {
    pub tcp: Tcp,
    /// [`Record::mapping`]; in a free record the next free one.
    pub mapping: u32,
}

/// Of a session, what no packet needs but its first and its last.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Rest {
    /// [`Record::bound`], or [`Record::backend`] and the bit that says so.
    pub bound: u32,
    pub rule: u32,
    pub from_zone: u8,
    pub to_zone: u8,
    pub flags: u8,
    /// The [`Class`] it is armed in.
    pub class: Class,
}

/// In [`Rest::bound`]: it is a backend. There are fewer mappings than that, and fewer backends.
pub(super) const BACKEND: u32 = 1 << 31;

const _: () = assert!(size_of::<Connection>() == 32 && size_of::<Rest>() == 12);

/// What of a session is in its rules' counters, once it lives while they are read.
#[derive(Clone, Copy, Debug, Default, FromZeros)]
#[repr(C)]
pub struct Settled {
    /// Packets of both directions: 40 bits, as a flow counts.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// How a session stands with those who need room: one that nobody has answered to may have to go for another,
/// who has waited longest first (RFC 4987 section 3.4); nothing else ever does. Of each class all have the same idle time,
/// but for those that will go soon anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(u8)]
pub enum Class {
    /// It stays.
    Answered = 0,
    /// TCP that was refused: it goes before all others.
    Refused,
    /// TCP that opens.
    Opening,
    /// TCP that the gateway opens in a client's name, and whose server is asked again by the clock: in the order of when.
    Proxied,
    /// TCP that opens, passed over.
    PassedOver,
    /// UDP of a NAT mapping, without a reply; UDP to a backend that answers past us.
    Mapped,
    /// UDP without a reply.
    Udp,
    /// ICMP without a reply.
    Icmp,
    /// Anything else without a reply.
    Other,
}

impl Class {
    pub(super) const COUNT: usize = 9;
    /// Of TCP that was never established.
    pub const OPENING: [Class; 3] = [Class::Refused, Class::Opening, Class::Proxied];
    /// All that may go.
    pub const ALL: [Class; 7] = [
        Class::Refused,
        Class::Opening,
        Class::Proxied,
        Class::Mapped,
        Class::Udp,
        Class::Icmp,
        Class::Other,
    ];
}

/// Bits of [`Record::flags`].
pub mod record_flags {
    /// In use.
    pub const LIVE: u8 = 1;
    /// Counts against its host's limit.
    pub const HOST_COUNTED: u8 = 2;
    /// Counts as a peer of its mapping.
    pub const PEER_COUNTED: u8 = 4;
    /// `mapping` is the number of a loan ([`crate::flow::steering::Loans`]).
    pub const BORROWED: u8 = 8;
    /// Policy does not allow it any more; its next packet will end it.
    pub const CONDEMNED: u8 = 16;
    /// Its end goes to the log.
    pub const LOGGED: u8 = 32;
    /// Counts as half open at its destination ([`crate::flow::half_open`]).
    pub const HALF_OPEN_COUNTED: u8 = 64;
    /// Some of it is in its rules' counters ([`super::Settled`]).
    pub const SETTLED: u8 = 128;
}
