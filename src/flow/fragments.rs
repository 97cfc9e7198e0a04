//! Datagrams under way in fragments (RFC 791, RFC 8200 section 4.5): what a later fragment follows, and what waits
//! for its first. "Virtual reassembly": nothing is put together, fragments leave as they came.
//!
//! The first fragment has the ports: it goes on at once, and the datagram remembers its session for the rest.
//! Fragments that come before it are held, and follow it in the order they came in. Where fragments overlap, the
//! receiver and we could read different datagrams (RFC 1858, RFC 3128, RFC 5722): the datagram is *refused*, what
//! is held of it is lost, and what still comes as well until it ages. A fragment of exactly the same place as one
//! before is a duplicate and goes the same way as that (RFC 8200 section 4.5 allows either): a packet that waited
//! for its neighbour comes by here twice.
//!
//! When all of a datagram has gone on it is forgotten. What stays incomplete is forgotten after [`TIMEOUT`], and
//! what is held of it is lost. No ICMP error is sent: RFC 8200 section 4.5 wants one only when the first fragment
//! has come, and then nothing is held here; the receiver, who has it, sends the error.
//!
//! All memory is taken at the start. Places for datagrams and for held fragments are limited for the worker and
//! for each source; sources that share a bucket of the keyed hash share its limits. What is full refuses the new,
//! and the old lives on. Datagrams that began with another fragment than their first have half of the places only:
//! whoever floods us with such fragments leaves room for those in order (RFC 4787 REQ-14a).
//!
//! A table belongs to one worker and sees the fragments that reach it. Devices spread fragments by addresses
//! alone, so those of one datagram come to one worker, but it may be another than the one that has the session
//! (its packets that are no fragments are spread by ports). Where a session's owner can be asked, the place to
//! hand over is [`Fragments::first`]: the owner has to see the first fragment, and the others follow it there.

#[cfg(test)]
mod tests;

use std::time::Duration;

use arrayvec::ArrayVec;

use super::index::Index;
use super::nat::host_of;
use super::tcp;
use super::{Handle, Tick};
use crate::mem::MemoryError;
use crate::packet::hash::{self, Key};
use crate::packet::{DropReason, Family};
use crate::time::Nanos;

/// How long a datagram may take from the fragment that came first. RFC 791 section 3.2 recommends 15 seconds for
/// reassembly; RFC 8200 section 4.5 ends it after 60.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// Datagrams under way of one worker.
pub const MAX_DATAGRAMS: usize = 4096;

/// Fragments of a datagram. 65,535 bytes make 45 at an MTU of 1,500 and 54 at 1,280.
pub const MAX_FRAGMENTS: usize = 64;

/// Frames held for one worker; a jumbo frame counts for each of its segments.
pub const MAX_HELD: usize = 1024;

/// Buckets of sources. With a secret key nobody chooses whom to share with.
const SOURCES: usize = 1024;

/// Datagrams under way of one source: it takes sixteen to fill the table.
pub const MAX_DATAGRAMS_PER_SOURCE: usize = 256;

/// Of the datagrams under way, those whose first fragment has not come: half, of the worker's and of each source's.
pub const MAX_WAITING: usize = MAX_DATAGRAMS / 2;

/// See [`MAX_WAITING`].
pub const MAX_WAITING_PER_SOURCE: usize = MAX_DATAGRAMS_PER_SOURCE / 2;

/// Of the frames held, one source has this part at most.
const HELD_SHARE: usize = 4;

/// Datagrams that age at once per turn.
const EXPIRY_BUDGET: usize = 64;

/// Longest datagram, header included (RFC 791 section 3.1); IPv6: payload (RFC 8200 section 3).
const MAX_BYTES: usize = 65_535;

/// What the fragments of a datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5), in the VRF they
/// come in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Datagram {
    /// Source; IPv4 mapped ([`crate::neighbours::v4_key`]).
    pub src: u128,
    /// Destination, likewise.
    pub dst: u128,
    /// Identification.
    pub identification: u32,
    /// VRF slot.
    pub vrf: u16,
    /// Upper-layer protocol. For IPv6 always 0: there fragments may name different ones, and the first counts.
    pub protocol: u8,
    /// IPv4 or IPv6.
    pub family: Family,
}

impl Datagram {
    fn hash(&self, key: Key) -> u64 {
        let tail = u64::from(self.vrf) << 48
            | u64::from(self.family as u8) << 40
            | u64::from(self.protocol) << 32
            | u64::from(self.identification);
        hash::words_v6(key, self.src, self.dst, tail)
    }
}

/// Which bytes of the datagram a fragment carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    start: u16,
    end: u16,
    is_last: bool,
}

impl Piece {
    /// `len` bytes from `start` on, behind `header_len` bytes that count for the datagram's length as well.
    pub fn new(start: usize, len: usize, more: bool, header_len: usize) -> Result<Piece, DropReason> {
        let end = start + len;
        // RFC 8200 section 4.5: all but the last are whole words of 8 bytes. Nobody sends empty ones.
        if len == 0 || more && !len.is_multiple_of(8) || header_len + end > MAX_BYTES {
            return Err(DropReason::FragmentInvalid);
        }
        Ok(Piece { start: start as u16, end: end as u16, is_last: !more })
    }
}

/// What the first fragment has told: where the others go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// The flow it belongs to.
    pub flow: Handle,
    /// When the flow's session began: numbers are used again.
    pub created: Tick,
    /// Source port, or identifier.
    pub src_port: u16,
    /// Destination port, or identifier.
    pub dst_port: u16,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// The identification all its fragments leave with, if it is not theirs.
    pub identification: Option<u16>,
    /// Of TCP.
    pub segment: Option<CutSegment>,
}

/// A TCP segment as far as a first fragment carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutSegment {
    /// What its header says, and how much payload came with it.
    pub segment: tcp::Segment,
    /// Where the payload begins in the datagram.
    pub payload_at: u16,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// For the first fragment.
    Waiting,
    Open(First),
    /// Whose session another worker has.
    Elsewhere(u8),
    Refused(DropReason),
}

/// No place.
const NONE: u16 = u16::MAX;

/// A datagram under way.
#[derive(Debug)]
struct Entry {
    datagram: Datagram,
    state: State,
    since: Nanos,
    /// Bytes seen: ranges that do not overlap, in the order they came in.
    seen: ArrayVec<(u16, u16), MAX_FRAGMENTS>,
    /// How many they are.
    bytes: u32,
    /// Where they end.
    highest: u16,
    /// Where the datagram ends, 0 = not known.
    end: u16,
    /// Held fragments, in the order they came in.
    held: List,
    /// Fragments that were held and have not come by again.
    returning: u16,
    /// Began with another fragment than its first, which has not gone on.
    is_headless: bool,
    /// Bucket of its source.
    source: u16,
    /// The next older and the next newer datagram; of a free place the next free one in `newer`.
    older: u16,
    newer: u16,
}

impl Entry {
    /// Notes the place of a fragment, unless it contradicts those before.
    fn place(&mut self, piece: Piece) -> Result<(), DropReason> {
        let Piece { start, end, is_last } = piece;
        if self.seen.contains(&(start, end)) {
            let was_last = self.end == end;
            return if was_last == is_last { Ok(()) } else { Err(DropReason::FragmentOverlap) };
        }
        let overlaps = self.seen.iter().any(|(from, to)| start < *to && *from < end);
        // Nothing lies behind the end, and there is only one.
        let ends_elsewhere = self.end != 0 && (is_last || end > self.end) || is_last && self.highest > end;
        if overlaps || ends_elsewhere {
            return Err(DropReason::FragmentOverlap);
        }
        self.seen.try_push((start, end)).map_err(|_| DropReason::FragmentTooMany)?;
        self.bytes += u32::from(end - start);
        self.highest = self.highest.max(end);
        if is_last {
            self.end = end;
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.end != 0 && self.bytes == u32::from(self.end)
    }
}

/// A list through places.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u16,
    tail: u16,
    len: u16,
}

impl List {
    const EMPTY: List = List { head: NONE, tail: NONE, len: 0 };
}

/// Place of a held fragment.
#[derive(Debug)]
struct Place<T> {
    item: Option<T>,
    frames: u16,
    source: u16,
    /// Why it is lost, once that is settled.
    lost: Option<DropReason>,
    next: u16,
}

/// What a bucket of sources has in use.
#[derive(Clone, Copy, Debug, Default)]
struct Source {
    datagrams: u16,
    headless: u16,
    frames: u16,
}

/// The datagrams under way of one worker; `T` is what is held of a fragment.
#[derive(Debug)]
pub struct Fragments<T> {
    index: Index,
    /// Never more than [`MAX_DATAGRAMS`], for which there is room from the start.
    entries: Vec<Entry>,
    free_entry: u16,
    oldest: u16,
    newest: u16,
    /// Never more than [`MAX_HELD`], likewise.
    places: Vec<Place<T>>,
    free_place: u16,
    /// What is no longer held, in order: it goes on, or is lost.
    settled: List,
    /// Frames in `places`.
    frames: usize,
    /// How many they may be.
    limit: usize,
    sources: Box<[Source]>,
    /// Datagrams that are headless.
    headless: usize,
    key: Key,
}

impl<T> Fragments<T> {
    /// An empty table.
    pub fn new(key: Key) -> Result<Fragments<T>, MemoryError> {
        Ok(Fragments {
            // Half empty, so that a bucket never is what there is no room in.
            index: Index::new(MAX_DATAGRAMS * 2, false)?,
            entries: Vec::with_capacity(MAX_DATAGRAMS),
            free_entry: NONE,
            oldest: NONE,
            newest: NONE,
            places: Vec::with_capacity(MAX_HELD),
            free_place: NONE,
            settled: List::EMPTY,
            frames: 0,
            limit: MAX_HELD,
            sources: vec![Source::default(); SOURCES].into(),
            headless: 0,
            key,
        })
    }

    /// Holds at most so many frames, where [`MAX_HELD`] is more than a worker can spare.
    pub fn hold_at_most(&mut self, frames: usize) {
        self.limit = frames.min(MAX_HELD);
    }

    /// A fragment has come: the place of its datagram. A `piece` that cannot be refuses the datagram.
    pub fn arrive(
        &mut self,
        datagram: &Datagram,
        piece: Result<Piece, DropReason>,
        now: Nanos,
    ) -> Result<u16, DropReason> {
        let hash = datagram.hash(self.key);
        let at = match self.find(hash, datagram) {
            NONE => self.begin(hash, datagram, !piece.is_ok_and(|piece| piece.start == 0), now)?,
            at => at,
        };
        let entry = &mut self.entries[usize::from(at)];
        if let State::Refused(reason) = entry.state {
            return Err(reason);
        }
        if let Err(reason) = piece.and_then(|piece| entry.place(piece)) {
            self.refuse(at, reason);
            return Err(reason);
        }
        Ok(at)
    }

    /// What the first fragment of the datagram has told, if it has come.
    pub fn first(&self, at: u16) -> Option<First> {
        match self.entries[usize::from(at)].state {
            State::Open(first) => Some(first),
            State::Waiting | State::Elsewhere(_) | State::Refused(_) => None,
        }
    }

    /// The worker that has the session of the datagram, if that is another.
    pub fn elsewhere(&self, at: u16) -> Option<u8> {
        match self.entries[usize::from(at)].state {
            State::Elsewhere(worker) => Some(worker),
            _ => None,
        }
    }

    /// Where the fragments seen so far end.
    pub fn highest(&self, at: u16) -> usize {
        usize::from(self.entries[usize::from(at)].highest)
    }

    /// Holds a fragment until the first of its datagram comes: it takes `frames` frames. What there is no room for
    /// comes back; a datagram of which a fragment is lost is refused.
    pub fn hold(&mut self, at: u16, item: T, frames: usize) -> Result<(), (T, DropReason)> {
        let Entry { held, source, .. } = self.entries[usize::from(at)];
        let of_source = usize::from(self.sources[usize::from(source)].frames) + frames;
        let reason = if usize::from(held.len) == MAX_FRAGMENTS {
            Some(DropReason::FragmentTooMany)
        } else if self.frames + frames > self.limit || of_source > self.limit / HELD_SHARE {
            Some(DropReason::FragmentQueueFull)
        } else {
            None
        };
        if let Some(reason) = reason {
            self.refuse(at, reason);
            return Err((item, reason));
        }
        self.frames += frames;
        self.sources[usize::from(source)].frames += frames as u16;
        let place = Place { item: Some(item), frames: frames as u16, source, lost: None, next: NONE };
        let index = if self.free_place == NONE {
            self.places.push(place);
            (self.places.len() - 1) as u16
        } else {
            let index = self.free_place;
            let free = &mut self.places[usize::from(index)];
            self.free_place = free.next;
            *free = place;
            index
        };
        let list = List { head: index, tail: index, len: 1 };
        join(&mut self.places, &mut self.entries[usize::from(at)].held, list);
        Ok(())
    }

    /// The first fragment goes on; what was held follows it, by way of [`Fragments::next_settled`].
    pub fn open(&mut self, at: u16, first: First) {
        self.go_on(at, State::Open(first));
    }

    /// The first fragment goes to another worker, and what was held follows it there.
    pub fn open_elsewhere(&mut self, at: u16, worker: u8) {
        self.go_on(at, State::Elsewhere(worker));
    }

    fn go_on(&mut self, at: u16, state: State) {
        self.note_headless(at, false);
        let entry = &mut self.entries[usize::from(at)];
        entry.state = state;
        entry.returning += entry.held.len;
        let held = std::mem::replace(&mut entry.held, List::EMPTY);
        join(&mut self.places, &mut self.settled, held);
    }

    /// A fragment goes on, the first or one that follows it; `returns`: it may have been held before. The datagram
    /// is forgotten with its last one.
    pub fn passed(&mut self, at: u16, returns: bool) {
        let entry = &mut self.entries[usize::from(at)];
        if returns {
            entry.returning = entry.returning.saturating_sub(1);
        }
        if entry.is_complete() && entry.returning == 0 {
            self.end(at);
        }
    }

    /// The datagram is lost, with all that is held of it and all that is still to come.
    pub fn refuse(&mut self, at: u16, reason: DropReason) {
        let entry = &mut self.entries[usize::from(at)];
        entry.state = State::Refused(reason);
        let held = std::mem::replace(&mut entry.held, List::EMPTY);
        self.lose(held, reason);
    }

    /// The next fragment that is no longer held: it starts again, or is lost for a reason.
    pub fn next_settled(&mut self) -> Option<(T, Option<DropReason>)> {
        let index = self.settled.head;
        if index == NONE {
            return None;
        }
        let place = &mut self.places[usize::from(index)];
        let item = place.item.take().unwrap_or_else(|| unreachable!("places in a list are in use"));
        self.settled.head = place.next;
        self.settled.len -= 1;
        if self.settled.head == NONE {
            self.settled.tail = NONE;
        }
        self.frames -= usize::from(place.frames);
        self.sources[usize::from(place.source)].frames -= place.frames;
        place.next = self.free_place;
        self.free_place = index;
        Some((item, place.lost))
    }

    /// True if [`Fragments::next_settled`] has something.
    #[inline]
    pub fn has_settled(&self) -> bool {
        self.settled.head != NONE
    }

    /// Forgets datagrams whose time is over: a bounded number. True if more are waiting.
    pub fn expire(&mut self, now: Nanos) -> bool {
        for _ in 0..EXPIRY_BUDGET {
            if self.next_deadline() > now {
                return false;
            }
            let at = self.oldest;
            self.lose(self.entries[usize::from(at)].held, DropReason::FragmentTimeout);
            self.end(at);
        }
        self.next_deadline() <= now
    }

    /// When [`Fragments::expire`] has something to do.
    pub fn next_deadline(&self) -> Nanos {
        self.entries.get(usize::from(self.oldest)).map_or(Nanos(u64::MAX), |entry| entry.since.plus(TIMEOUT))
    }

    /// Everything that is held, when the worker stops.
    pub fn take_held(&mut self) -> impl Iterator<Item = T> {
        self.settled = List::EMPTY;
        self.frames = 0;
        std::mem::take(&mut self.places).into_iter().filter_map(|place| place.item)
    }

    /// Frames that are held.
    pub fn frames(&self) -> usize {
        self.frames
    }

    fn find(&self, hash: u64, datagram: &Datagram) -> u16 {
        let place = |handle: Handle| (handle.0 - 1) as u16;
        let found = self.index.find(hash, |handle| {
            self.entries.get(usize::from(place(handle))).is_some_and(|entry| entry.datagram == *datagram)
        });
        if found.is_some() { place(found) } else { NONE }
    }

    /// Notes that a datagram is headless, or is not any more.
    fn note_headless(&mut self, at: u16, is_headless: bool) {
        let entry = &mut self.entries[usize::from(at)];
        let source = &mut self.sources[usize::from(entry.source)];
        match (std::mem::replace(&mut entry.is_headless, is_headless), is_headless) {
            (false, true) => (self.headless, source.headless) = (self.headless + 1, source.headless + 1),
            (true, false) => (self.headless, source.headless) = (self.headless - 1, source.headless - 1),
            (false, false) | (true, true) => {}
        }
    }

    fn begin(
        &mut self,
        hash: u64,
        datagram: &Datagram,
        is_headless: bool,
        now: Nanos,
    ) -> Result<u16, DropReason> {
        let host = hash::address(self.key, host_of(datagram.src), datagram.vrf.into());
        let source = (host % SOURCES as u64) as u16;
        let at = if self.free_entry != NONE { self.free_entry } else { self.entries.len() as u16 };
        let of_source = &self.sources[usize::from(source)];
        let waits_in_vain =
            self.headless >= MAX_WAITING || usize::from(of_source.headless) >= MAX_WAITING_PER_SOURCE;
        let is_full = usize::from(at) == MAX_DATAGRAMS
            || usize::from(of_source.datagrams) == MAX_DATAGRAMS_PER_SOURCE
            || is_headless && waits_in_vain;
        if is_full || !self.index.insert(hash, Handle(u32::from(at) + 1)) {
            return Err(DropReason::FragmentTableFull);
        }
        self.sources[usize::from(source)].datagrams += 1;
        let entry = Entry {
            datagram: *datagram,
            state: State::Waiting,
            since: now,
            seen: ArrayVec::new(),
            bytes: 0,
            highest: 0,
            end: 0,
            held: List::EMPTY,
            returning: 0,
            is_headless: false,
            source,
            older: self.newest,
            newer: NONE,
        };
        if usize::from(at) == self.entries.len() {
            self.entries.push(entry);
        } else {
            let free = &mut self.entries[usize::from(at)];
            self.free_entry = free.newer;
            *free = entry;
        }
        match self.newest {
            NONE => self.oldest = at,
            newest => self.entries[usize::from(newest)].newer = at,
        }
        self.newest = at;
        self.note_headless(at, is_headless);
        Ok(at)
    }

    fn end(&mut self, at: u16) {
        self.note_headless(at, false);
        let Entry { datagram, source, older, newer, .. } = self.entries[usize::from(at)];
        self.index.remove(datagram.hash(self.key), Handle(u32::from(at) + 1));
        self.sources[usize::from(source)].datagrams -= 1;
        match older {
            NONE => self.oldest = newer,
            older => self.entries[usize::from(older)].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.entries[usize::from(newer)].older = older,
        }
        self.entries[usize::from(at)].newer = self.free_entry;
        self.free_entry = at;
    }

    fn lose(&mut self, held: List, reason: DropReason) {
        let mut index = held.head;
        while index != NONE {
            let place = &mut self.places[usize::from(index)];
            place.lost = Some(reason);
            index = place.next;
        }
        join(&mut self.places, &mut self.settled, held);
    }
}

/// Appends one list to another.
fn join<T>(places: &mut [Place<T>], list: &mut List, more: List) {
    if more.head == NONE {
        return;
    }
    match list.tail {
        NONE => list.head = more.head,
        tail => places[usize::from(tail)].next = more.head,
    }
    list.tail = more.tail;
    list.len += more.len;
}
