//! The flow table of one worker and one family: sessions, each with a flow per direction.
//!
//! Fixed capacity, one writer, no rehash. A session's two flows lie side by side, one cache line each for IPv4:
//! what an established packet needs is in its own line. What only the first packet, the clock and the commands
//! need is in the session's [`Record`].

use zerocopy::FromZeros;

use super::embryos::{Embryos, Kind};
use super::index::{Handle, Index};
use super::key::{Address, Tuple};
use super::proxy::{Proxy, Said};
use super::tcp::Tcp;
use super::wheel::Wheel;
use crate::mem::{BURST, HugeSlice, MemoryError, prefetch};
use crate::packet::hash::Key;
use crate::time::Nanos;

/// The flow table's clock: tenths of a second since the machine started, good for 13 years. A timer is late by less
/// than one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromZeros)]
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
    /// Packets of this direction were seen.
    pub const SEEN: u8 = 4;
    /// TCP whose numbers change: in the place of [`TCP`], and with [`TRANSLATED`].
    pub const PROXIED: u8 = 8;
    /// They leave in the other family.
    pub const CROSSES: u8 = 16;
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
    /// Slot of the next hop in the neighbour table, or `NO_NEIGHBOUR`: the destination itself.
    pub neighbour: u32,
    /// Egress interface slot, or `NO_INTERFACE`: ask the routes.
    pub egress: u16,
    /// Ingress interface slot expected.
    pub ingress: u16,
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
    /// Bits of [`flow_flags`].
    pub flags: u8,
    /// Its packets, the bits above.
    pub packets_high: u8,
    /// Always 0.
    pub zero: [u8; 2],
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

/// What a session is besides its two flows: one cache line.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C, align(64))]
pub struct Record {
    /// TCP's state, if it is TCP.
    pub tcp: Tcp,
    /// The NAT mapping of its source, as [`Record::name`]; in a free record the next free one.
    pub mapping: u32,
    /// The NAT mapping it came in by, as [`Record::name`].
    pub bound: u32,
    /// Packets of both directions that are in its rules' counters, the lower 32 bits.
    pub settled_packets_low: u32,
    /// Bytes of them.
    pub settled_bytes: u64,
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
    /// Packets that are in its rules' counters, the bits above.
    pub settled_packets_high: u8,
}

const _: () = assert!(size_of::<Record>() == 64);

impl Record {
    /// Packets of both directions that are in its rules' counters: 40 bits, as a flow counts.
    pub fn settled_packets(&self) -> u64 {
        u64::from(self.settled_packets_high) << 32 | u64::from(self.settled_packets_low)
    }

    /// Notes how many packets are in its rules' counters.
    pub fn set_settled_packets(&mut self, packets: u64) {
        (self.settled_packets_low, self.settled_packets_high) = (packets as u32, (packets >> 32) as u8);
    }

    /// How a mapping is noted: its number and one, 0 = none.
    pub fn name(mapping: Option<u32>) -> u32 {
        mapping.map_or(0, |id| id + 1)
    }

    /// The mappings it holds of the worker's own.
    pub fn mappings(&self) -> impl Iterator<Item = u32> + use<> {
        let own = if self.flags & record_flags::BORROWED == 0 { self.mapping } else { 0 };
        [own, self.bound].into_iter().filter_map(|name| name.checked_sub(1))
    }
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
}

/// The table is full, or too many flows share a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Sessions of one family.
#[derive(Debug)]
pub struct FlowTable<A> {
    index: Index,
    /// By handle.
    flows: HugeSlice<Flow<A>>,
    /// By session.
    records: HugeSlice<Record>,
    wheel: Wheel,
    embryos: Embryos,
    /// By session; takes no memory until there are any.
    proxies: HugeSlice<Proxy>,
    /// What is to be sent in the name of one side to the other: a burst's.
    said: Vec<Said>,
    key: Key,
    /// Sessions that ended, in a list through `Record::mapping`.
    free: u32,
    /// Sessions that ended since the last [`FlowTable::recycle`], linked like the free ones.
    ended: u32,
    /// The first of them to end.
    ended_last: u32,
    /// Sessions numbered above this were never used.
    used: u32,
    live: u32,
    /// Sessions there may be.
    capacity: u32,
    /// The highest number of a session.
    numbers: u32,
}

/// Segments that a packet of a proxied connection causes, twice: to both sides.
const MOST_SAID: usize = 2 * BURST;

/// Numbers beyond the capacity: those that ended in a burst to make room for others are free only behind it.
const SPARE: u32 = BURST as u32;

impl<A: Address> FlowTable<A> {
    /// A table for `capacity` sessions. With `populate` all memory is taken at once.
    pub fn new(capacity: u32, key: Key, populate: bool) -> Result<FlowTable<A>, MemoryError> {
        let capacity = capacity.min(Handle::MAX_SESSION - SPARE);
        let numbers = Self::numbers_for(capacity);
        let sessions = numbers as usize + 1;
        Ok(FlowTable {
            index: Index::new(sessions * 2, populate)?,
            flows: HugeSlice::zeroed(sessions * 2, populate)?,
            records: HugeSlice::zeroed(sessions, populate)?,
            wheel: Wheel::new(numbers as usize, populate)?,
            embryos: Embryos::new(numbers, populate)?,
            proxies: HugeSlice::zeroed(sessions, false)?,
            said: Vec::with_capacity(MOST_SAID),
            key,
            free: 0,
            ended: 0,
            ended_last: 0,
            used: 0,
            live: 0,
            capacity,
            numbers,
        })
    }

    /// Bytes that a table for `capacity` sessions takes.
    pub fn bytes_for(capacity: u32) -> usize {
        let numbers = Self::numbers_for(capacity);
        let sessions = numbers as usize + 1;
        Index::bytes_for(sessions * 2)
            + sessions * (2 * size_of::<Flow<A>>() + size_of::<Record>())
            + Wheel::bytes_for(numbers as usize)
            + Embryos::bytes_for(numbers)
            + Self::lazy_bytes_for(capacity)
    }

    /// Of these, bytes that are not taken at once even with `populate`: few connections are proxied.
    pub fn lazy_bytes_for(capacity: u32) -> usize {
        (Self::numbers_for(capacity) as usize + 1) * size_of::<Proxy>()
    }

    fn numbers_for(capacity: u32) -> u32 {
        capacity.min(Handle::MAX_SESSION - SPARE) + SPARE
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
            + size_of_val(&*self.flows)
            + size_of_val(&*self.records)
            + self.wheel.memory_bytes()
            + self.embryos.memory_bytes()
            + size_of_val(&*self.proxies)
    }

    /// Sessions in the table.
    pub fn len(&self) -> usize {
        self.live as usize
    }

    /// True without sessions.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Sessions it is made for.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// True if there is no room for another session.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.live >= self.capacity
    }

    // ---- for the burst: hash, fetch, fetch, compare

    /// Hash of a tuple.
    #[inline(always)]
    pub fn hash(&self, tuple: &Tuple<A>) -> u64 {
        A::hash(self.key, tuple)
    }

    /// Fetches the index's line for `hash`.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// The flow that may have `hash`, and fetches it.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Handle {
        let handle = self.index.candidate(hash);
        prefetch::prefetch(&self.flows, handle.0 as usize);
        handle
    }

    /// The flow of `tuple`; `candidate` is what [`FlowTable::candidate`] said.
    #[inline(always)]
    pub fn confirm(&self, candidate: Handle, hash: u64, tuple: &Tuple<A>) -> Handle {
        if candidate.is_some() && A::same(&self.flows[candidate.0 as usize].tuple, tuple) {
            return candidate;
        }
        self.find_hashed(hash, tuple)
    }

    #[inline(never)]
    fn find_hashed(&self, hash: u64, tuple: &Tuple<A>) -> Handle {
        self.index.find(hash, |handle| A::same(&self.flows[handle.0 as usize].tuple, tuple))
    }

    /// The flow of `tuple`.
    pub fn find(&self, tuple: &Tuple<A>) -> Handle {
        self.find_hashed(self.hash(tuple), tuple)
    }

    /// A flow.
    #[inline(always)]
    pub fn flow(&self, handle: Handle) -> &Flow<A> {
        &self.flows[handle.0 as usize]
    }

    /// A flow, to write when it was seen.
    #[inline(always)]
    pub fn flow_mut(&mut self, handle: Handle) -> &mut Flow<A> {
        &mut self.flows[handle.0 as usize]
    }

    /// A session's record.
    #[inline(always)]
    pub fn record(&self, session: u32) -> &Record {
        &self.records[session as usize]
    }

    /// A session's record, to change it.
    #[inline(always)]
    pub fn record_mut(&mut self, session: u32) -> &mut Record {
        &mut self.records[session as usize]
    }

    /// Fetches a session's record.
    #[inline(always)]
    pub fn prefetch_record(&self, session: u32) {
        prefetch::prefetch(&self.records, session as usize);
    }

    // ---- sessions come and go

    /// Adds a session whose flows are not in the table, to be looked at again at `due`.
    pub fn insert(&mut self, flows: [Flow<A>; 2], record: Record, due: Tick) -> Result<u32, Full> {
        let session = if self.is_full() {
            return Err(Full);
        } else if self.free != 0 {
            self.free
        } else if self.used < self.numbers {
            self.used + 1
        } else {
            return Err(Full);
        };
        let hashes = flows.map(|flow| self.hash(&flow.tuple));
        if !self.index.insert(hashes[0], Handle::new(session, 0)) {
            return Err(Full);
        }
        if !self.index.insert(hashes[1], Handle::new(session, 1)) {
            self.index.remove(hashes[0], Handle::new(session, 0));
            return Err(Full);
        }
        if self.free == session {
            self.free = self.records[session as usize].mapping;
        } else {
            self.used = session;
        }
        self.embryos.push(session, Kind::of(flows[0].tuple.protocol));
        for (direction, flow) in flows.into_iter().enumerate() {
            self.flows[Handle::new(session, direction as u32).0 as usize] = flow;
        }
        self.records[session as usize] = Record { flags: record.flags | record_flags::LIVE, ..record };
        self.wheel.arm(session, due.0);
        self.live += 1;
        Ok(session)
    }

    /// Ends a session that is armed.
    pub fn remove(&mut self, session: u32) {
        self.wheel.disarm(session);
        self.remove_disarmed(session);
    }

    /// Ends a session that [`FlowTable::fire`] has just given.
    pub fn remove_disarmed(&mut self, session: u32) {
        for direction in 0..2 {
            let handle = Handle::new(session, direction);
            let hash = self.hash(&self.flows[handle.0 as usize].tuple);
            self.index.remove(hash, handle);
        }
        self.grow_up(session);
        let record = &mut self.records[session as usize];
        record.flags = 0;
        record.mapping = self.ended;
        if self.ended == 0 {
            self.ended_last = session;
        }
        self.ended = session;
        self.live -= 1;
    }

    /// Gives the numbers of ended sessions free. Until then a packet that was found to belong to one is still
    /// treated as the session's, and not as a new one's.
    #[inline]
    pub fn recycle(&mut self) {
        if self.ended != 0 {
            self.records[self.ended_last as usize].mapping = self.free;
            self.free = self.ended;
            self.ended = 0;
        }
    }

    // ---- sessions that nobody has answered to

    /// The embryonic session of a kind that began first, or that was passed over longest ago. TCP that was picked up
    /// in the middle may not be embryonic any more.
    pub fn oldest_embryo(&self, kind: Kind) -> Option<u32> {
        self.embryos.oldest(kind)
    }

    /// Embryonic sessions of a kind.
    pub fn embryos(&self, kind: Kind) -> u32 {
        self.embryos.len(kind)
    }

    /// A session is not embryonic any more, if it was.
    pub fn grow_up(&mut self, session: u32) {
        if self.embryos.has(session) {
            self.embryos.remove(session, self.kind_of(session));
        }
    }

    /// An embryonic session is the youngest now: its turn comes again behind all others.
    pub fn pass_over(&mut self, session: u32) {
        self.embryos.remove(session, self.kind_of(session));
        self.embryos.push(session, self.kind_of(session));
    }

    fn kind_of(&self, session: u32) -> Kind {
        Kind::of(self.flow(Handle::new(session, 0)).tuple.protocol)
    }

    // ---- proxied connections

    /// A proxied connection.
    pub fn proxy(&self, session: u32) -> &Proxy {
        &self.proxies[session as usize]
    }

    /// How it stands with a proxied connection.
    pub fn set_proxy(&mut self, session: u32, proxy: Proxy) {
        self.proxies[session as usize] = proxy;
    }

    /// Has a segment sent behind the burst.
    pub fn say(&mut self, said: Said) {
        if self.said.len() < MOST_SAID {
            self.said.push(said);
        }
    }

    /// True if there is something to send.
    #[inline]
    pub fn has_said(&self) -> bool {
        !self.said.is_empty()
    }

    /// The segments to send.
    pub fn take_said(&mut self) -> impl Iterator<Item = Said> + '_ {
        self.said.drain(..)
    }

    /// Takes the next session whose time may have come. It is disarmed: arm it again or end it.
    pub fn fire(&mut self, now: Tick) -> Option<u32> {
        self.wheel.fire(now.0)
    }

    /// Arms a session that was taken by [`FlowTable::fire`].
    pub fn arm(&mut self, session: u32, due: Tick) {
        self.wheel.arm(session, due.0);
    }

    /// Moves the time of an armed session.
    pub fn rearm(&mut self, session: u32, due: Tick) {
        self.wheel.disarm(session);
        self.wheel.arm(session, due.0);
    }

    /// When [`FlowTable::fire`] may have something.
    pub fn next_due(&self) -> Option<Tick> {
        self.wheel.next_due().map(Tick)
    }

    /// The numbers of sessions in use lie at or below this.
    pub fn highest(&self) -> u32 {
        self.used
    }

    /// True if `session` is in use.
    pub fn is_live(&self, session: u32) -> bool {
        self.records[session as usize].flags & record_flags::LIVE != 0
    }
}
