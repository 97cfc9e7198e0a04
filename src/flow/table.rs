//! The flow table of one worker and one family: sessions, each with a flow per direction.
//!
//! Fixed capacity, one writer, no rehash. A session's two flows lie side by side, one cache line each for IPv4:
//! what an established packet needs is in its own line, TCP's windows in half another. What only the first packet,
//! the clock and the commands need is elsewhere, and gathered as a [`Record`].

use super::changes::Changes;
use super::index::{Handle, Index};
use super::key::{Address, Tuple};
use super::proxy::{Proxy, Said};
use super::session::{
    BACKEND, Class, Connection, Flow, Record, Rest, Settled, Tick, flow_flags, record_flags,
};
use super::tcp::{State, Tcp};
use super::wheel::Wheel;
use crate::mem::{BURST, HugeSlice, MemoryError, prefetch};
use crate::packet::hash::Key;
use crate::packet::view::protocol;

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
    connections: HugeSlice<Connection>,
    /// By session.
    rests: HugeSlice<Rest>,
    /// Timers; whose turn it is to go, if any has to.
    wheel: Wheel<{ Class::COUNT }>,
    /// By session; takes no memory until rules are looked at.
    settled: HugeSlice<Settled>,
    /// By session; takes no memory until there are any.
    proxies: HugeSlice<Proxy>,
    /// What is to be sent in the name of one side to the other: a burst's.
    said: Vec<Said>,
    /// Sessions that stand elsewhere than before: a turn's.
    pub changes: Changes<u32>,
    /// Sessions that both this node and its peer know of.
    told: u32,
    /// Sessions that the next process would find, a bit for each; empty: none is kept.
    kept: Vec<u64>,
    key: Key,
    /// Sessions that ended, in a list through `Connection::mapping`.
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
            connections: HugeSlice::zeroed(sessions, populate)?,
            rests: HugeSlice::zeroed(sessions, populate)?,
            wheel: Wheel::new(numbers as usize, populate)?,
            settled: HugeSlice::zeroed(sessions, false)?,
            proxies: HugeSlice::zeroed(sessions, false)?,
            said: Vec::with_capacity(MOST_SAID),
            changes: Changes::default(),
            told: 0,
            kept: Vec::new(),
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
            + sessions * (2 * size_of::<Flow<A>>() + size_of::<Connection>() + size_of::<Rest>())
            + Wheel::<{ Class::COUNT }>::bytes_for(numbers as usize)
            + Self::lazy_bytes_for(capacity)
    }

    /// Of these, bytes that are not taken at once even with `populate`: few connections are proxied, and few live while
    /// rules are looked at.
    pub fn lazy_bytes_for(capacity: u32) -> usize {
        (Self::numbers_for(capacity) as usize + 1) * (size_of::<Proxy>() + size_of::<Settled>())
    }

    fn numbers_for(capacity: u32) -> u32 {
        capacity.min(Handle::MAX_SESSION - SPARE) + SPARE
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
            + size_of_val(&*self.flows)
            + size_of_val(&*self.connections)
            + size_of_val(&*self.rests)
            + self.wheel.memory_bytes()
            + size_of_val(&*self.settled)
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

    /// The flow of `tuple`, which has this hash.
    #[inline(never)]
    pub fn find_hashed(&self, hash: u64, tuple: &Tuple<A>) -> Handle {
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

    /// What is known of a session.
    pub fn record(&self, session: u32) -> Record {
        let notes = [0, 1].map(|direction| self.flow(Handle::new(session, direction)).note);
        Record::of(self.connections[session as usize], self.rests[session as usize], notes)
    }

    /// How a session's connection stands.
    #[inline(always)]
    pub fn tcp(&self, session: u32) -> &Tcp {
        &self.connections[session as usize].tcp
    }

    /// How a session's connection stands, to change it.
    #[inline(always)]
    pub fn tcp_mut(&mut self, session: u32) -> &mut Tcp {
        &mut self.connections[session as usize].tcp
    }

    /// Fetches how a session's connection stands.
    #[inline(always)]
    pub fn prefetch_tcp(&self, session: u32) {
        prefetch::prefetch(&self.connections, session as usize);
    }

    /// When a session began.
    pub fn created(&self, session: u32) -> Tick {
        Tick(self.flow(Handle::new(session, 0)).note)
    }

    /// Bits of [`record_flags`].
    pub fn flags(&self, session: u32) -> u8 {
        self.rests[session as usize].flags
    }

    /// Bits of [`record_flags`], to change them.
    pub fn flags_mut(&mut self, session: u32) -> &mut u8 {
        &mut self.rests[session as usize].flags
    }

    /// Names the mapping of a session's source ([`Record::mapping`]).
    pub fn set_mapping(&mut self, session: u32, name: u32) {
        self.connections[session as usize].mapping = name;
    }

    /// Gives a session other rules.
    pub fn set_rules(&mut self, session: u32, rule: u32, nat_rule: u16) {
        self.rests[session as usize].rule = rule;
        let [_, second] = Record { rule, nat_rule, ..self.record(session) }.notes();
        self.flow_mut(Handle::new(session, 1)).note = second;
    }

    /// What of a session is in its rules' counters.
    pub fn settled(&self, session: u32) -> Settled {
        match self.flags(session) & record_flags::SETTLED {
            0 => Settled::default(),
            _ => self.settled[session as usize],
        }
    }

    /// Notes what of a session is in its rules' counters.
    pub fn set_settled(&mut self, session: u32, settled: Settled) {
        self.settled[session as usize] = settled;
        *self.flags_mut(session) |= record_flags::SETTLED;
    }

    /// Fetches what lies at a session's number.
    pub fn prefetch_session(&self, session: u32) {
        for direction in 0..2 {
            prefetch::prefetch_ends(&self.flows, Handle::new(session, direction).0 as usize);
        }
        prefetch::prefetch(&self.connections, session as usize);
        prefetch::prefetch(&self.rests, session as usize);
    }

    /// Fetches the flow of a session's first packets; harmless if there is no such session.
    #[inline]
    pub fn prefetch_flow(&self, session: u32) {
        prefetch::prefetch_ends(&self.flows, Handle::new(session, 0).0 as usize);
    }

    /// Fetches the index's lines of a session.
    pub fn prefetch_places(&self, session: u32) {
        for direction in 0..2 {
            self.prefetch(self.hash(&self.flow(Handle::new(session, direction)).tuple));
        }
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
            self.free = self.connections[session as usize].mapping;
        } else {
            self.used = session;
        }
        for (direction, (flow, note)) in flows.into_iter().zip(record.notes()).enumerate() {
            self.flows[Handle::new(session, direction as u32).0 as usize] = Flow { note, ..flow };
        }
        let Record { tcp, mapping, bound, backend, rule, from_zone, to_zone, flags, .. } = record;
        debug_assert!(bound == 0 || backend == 0, "mappings come before services");
        let bound = if backend == 0 { bound } else { backend | BACKEND };
        let flags = flags | record_flags::LIVE;
        self.connections[session as usize] = Connection { tcp, mapping };
        self.rests[session as usize] =
            Rest { bound, rule, from_zone, to_zone, flags, class: Class::Answered };
        self.arm(session, due);
        self.live += 1;
        Ok(session)
    }

    /// Ends a session that is armed.
    pub fn remove(&mut self, session: u32) {
        self.disarm(session);
        self.remove_disarmed(session);
    }

    /// Ends a session that [`FlowTable::fire`] has just given.
    pub fn remove_disarmed(&mut self, session: u32) {
        for direction in 0..2 {
            let handle = Handle::new(session, direction);
            let hash = self.hash(&self.flows[handle.0 as usize].tuple);
            self.index.remove(hash, handle);
        }
        if self.is_told(session) {
            self.told -= 1;
        }
        *self.flags_mut(session) = 0;
        self.set_mapping(session, self.ended);
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
            self.set_mapping(self.ended_last, self.free);
            self.free = self.ended;
            self.ended = 0;
        }
    }

    // ---- timers, and whose turn it is to go

    /// Takes the next session whose time may have come. It is disarmed: arm it again or end it.
    pub fn fire(&mut self, now: Tick) -> Option<u32> {
        self.wheel.fire(now.0)
    }

    /// Arms a session that was taken by [`FlowTable::fire`], as what it is now.
    pub fn arm(&mut self, session: u32, due: Tick) {
        self.arm_as(session, self.class_of(session), due);
    }

    /// Moves the time of an armed session, which may be another than it was.
    pub fn rearm(&mut self, session: u32, due: Tick) {
        self.disarm(session);
        self.arm(session, due);
    }

    /// Another session goes first, until this one's timer fires.
    pub fn pass_over(&mut self, session: u32, due: Tick) {
        let class = match self.class_of(session) {
            Class::Refused | Class::Opening | Class::Proxied | Class::PassedOver => Class::PassedOver,
            Class::Answered | Class::Mapped | Class::Udp | Class::Icmp | Class::Other => Class::Answered,
        };
        self.disarm(session);
        self.arm_as(session, class, due);
    }

    fn arm_as(&mut self, session: u32, class: Class, due: Tick) {
        self.rests[session as usize].class = class;
        self.wheel.arm(session, class as usize, due.0);
    }

    fn disarm(&mut self, session: u32) {
        self.wheel.disarm(session, self.rests[session as usize].class as usize);
    }

    /// When [`FlowTable::fire`] may have something.
    pub fn next_due(&self) -> Option<Tick> {
        self.wheel.next_due().map(Tick)
    }

    /// What a session is to those who need room.
    pub fn class_of(&self, session: u32) -> Class {
        let [forward, reply] = [0, 1].map(|direction| self.flow(Handle::new(session, direction)));
        match forward.tuple.protocol {
            protocol::TCP if !self.tcp(session).is_embryonic() => Class::Answered,
            protocol::TCP if self.tcp(session).state() == State::Refused => Class::Refused,
            protocol::TCP if forward.has(flow_flags::PROXIED) => Class::Proxied,
            protocol::TCP => Class::Opening,
            _ if reply.has(flow_flags::SEEN) => Class::Answered,
            protocol::UDP if self.connections[session as usize].mapping != 0 => Class::Mapped,
            // It has the same time: nobody waits for an answer that goes past us.
            protocol::UDP if forward.next_hop.is_delivery() => Class::Mapped,
            protocol::UDP => Class::Udp,
            protocol::ICMP | protocol::ICMPV6 => Class::Icmp,
            _ => Class::Other,
        }
    }

    /// Of these classes the session that has waited longest, as far as can be told from its timer.
    pub fn oldest(&self, classes: &[Class]) -> Option<u32> {
        let firsts = classes.iter().filter_map(|class| self.wheel.first(*class as usize));
        firsts.min_by_key(|session| self.turn_of(*session))
    }

    /// Of two sessions the one with the lesser goes first.
    pub fn turn_of(&self, session: u32) -> (bool, Tick) {
        (self.rests[session as usize].class != Class::Refused, self.created(session))
    }

    /// TCP connections that open.
    pub fn opening(&self) -> u32 {
        let classes = Class::OPENING.iter().chain([&Class::PassedOver]);
        classes.map(|class| self.wheel.armed(*class as usize)).sum()
    }

    /// Sessions that somebody has answered to.
    pub fn answered(&self) -> u32 {
        self.wheel.armed(Class::Answered as usize)
    }

    /// Those that the peer was told of or has told of.
    pub fn told(&self) -> u32 {
        self.told
    }

    /// Places in a table for `capacity` sessions: their numbers lie below.
    pub fn places_for(capacity: u32) -> u32 {
        Self::numbers_for(capacity) + 1
    }

    /// Notes from now on which sessions the next process would find: none yet.
    #[cold]
    pub fn begin_keeping(&mut self) {
        self.kept = vec![0; (self.numbers as usize + 1).div_ceil(64)];
    }

    /// True if the next process would find the session.
    pub fn is_kept(&self, session: u32) -> bool {
        self.kept.get(session as usize / 64).is_some_and(|bits| bits >> (session % 64) & 1 != 0)
    }

    /// Notes whether the next process would find the session.
    pub fn set_kept(&mut self, session: u32, is_kept: bool) {
        if let Some(bits) = self.kept.get_mut(session as usize / 64) {
            *bits = *bits & !(1 << (session % 64)) | u64::from(is_kept) << (session % 64);
        }
    }

    fn is_told(&self, session: u32) -> bool {
        self.flow(Handle::new(session, 0)).flags & (flow_flags::TOLD | flow_flags::FROM_PEER) != 0
    }

    /// Notes that the peer knows of a session, and how (a bit of [`flow_flags`]).
    pub fn note_told(&mut self, session: u32, how: u8) {
        self.told += u32::from(!self.is_told(session));
        self.flow_mut(Handle::new(session, 0)).flags |= how;
    }

    /// Notes that a session is this node's, whoever has told of it.
    pub fn disown(&mut self, session: u32) {
        let was_told = self.is_told(session);
        self.flow_mut(Handle::new(session, 0)).flags &= !flow_flags::FROM_PEER;
        self.told -= u32::from(was_told && !self.is_told(session));
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

    /// The numbers of sessions in use lie at or below this.
    pub fn highest(&self) -> u32 {
        self.used
    }

    /// True if `session` is in use.
    pub fn is_live(&self, session: u32) -> bool {
        self.flags(session) & record_flags::LIVE != 0
    }
}
