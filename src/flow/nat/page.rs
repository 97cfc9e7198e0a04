//! A page: the mappings of one protocol in one unit of external ports. And the word of one mapping.

use std::time::Duration;

use zerocopy::FromZeros;

use super::Protocol;
use super::blocks::Unit;
use crate::mem::{HugeSlice, MemoryError, prefetch};
use crate::time::Nanos;

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// Mappings of a page; a mapping's id is page * 64 + position.
pub(super) const PAGE: u32 = 64;

/// Lists of a host's pages: a protocol's high and low ones. Low pages of ICMP do not exist.
pub(super) const LISTS: usize = 8;

/// A time in milliseconds, rounded up: a hold-down ends late rather than early.
#[inline]
pub(super) fn ms_up(time: Nanos) -> u64 {
    time.0.div_ceil(1_000_000)
}

/// The state of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Lent to nobody.
    Free,
    /// Sessions use it: how many.
    Live(u32),
    /// No session uses it; in hold-down since then (milliseconds).
    Held(u64),
}

/// A mapping in one word: inside port, state, and how many sessions or since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub u64);

const STATE_SHIFT: u32 = 16;
const VALUE_SHIFT: u32 = 18;

impl Slot {
    pub const FREE: Slot = Slot(0);

    #[inline]
    pub fn new(inside_port: u16, state: State) -> Slot {
        let (state, value) = match state {
            State::Free => return Slot::FREE,
            State::Live(sessions) => (1, u64::from(sessions)),
            State::Held(since_ms) => (2, since_ms),
        };
        Slot(u64::from(inside_port) | state << STATE_SHIFT | value << VALUE_SHIFT)
    }

    #[inline]
    pub fn inside_port(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    pub fn state(self) -> State {
        match self.0 >> STATE_SHIFT & 3 {
            0 => State::Free,
            1 => State::Live((self.0 >> VALUE_SHIFT) as u32),
            2 => State::Held(self.0 >> VALUE_SHIFT),
            other => unreachable!("no writer stores state {other}"),
        }
    }
}

/// A page. One cache line.
#[repr(C, align(64))]
#[derive(Clone, Debug, FromZeros)]
pub(super) struct Page {
    /// Ports that may be given away.
    pub mask: u64,
    /// Live or held.
    pub used: u64,
    /// Held.
    pub held: u64,
    /// No held port was released before this (milliseconds).
    pub oldest_ms: u64,
    pub host: u32,
    pub block: u32,
    /// Neighbours in the host's ring of pages of this list.
    pub next: u32,
    pub prev: u32,
    /// External address.
    pub addr: u32,
    /// VRF of the external address.
    pub vrf: u16,
    pub unit: Unit,
    /// Index of the list: protocol * 2 + low.
    pub list: u8,
    pub is_deterministic: bool,
}

impl Page {
    /// A page nobody has.
    pub fn unused() -> Page {
        Page {
            mask: 0,
            used: 0,
            held: 0,
            oldest_ms: u64::MAX,
            host: NONE,
            block: NONE,
            next: NONE,
            prev: NONE,
            addr: 0,
            vrf: 0,
            unit: Unit(0),
            list: 0,
            is_deterministic: false,
        }
    }

    #[inline]
    pub fn free(&self) -> u64 {
        self.mask & !self.used
    }

    pub fn protocol(&self) -> Protocol {
        Protocol::ALL[usize::from(self.list / 2)]
    }

    /// True if a port may be past its hold-down.
    #[inline]
    pub fn may_reap(&self, now: Nanos, hold_down: &[Duration; 4]) -> bool {
        self.held != 0 && is_over(self.oldest_ms, now, hold_down[usize::from(self.list / 2)])
    }
}

/// True once a hold-down that began at `since_ms` is over.
#[inline]
pub(super) fn is_over(since_ms: u64, now: Nanos, hold_down: Duration) -> bool {
    (now.0 / 1_000_000).saturating_sub(since_ms) >= hold_down.as_millis() as u64
}

/// Entries of fixed number, and which of them are free.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: HugeSlice<T>,
    free: Vec<u32>,
}

impl<T: Clone + FromZeros> Slab<T> {
    pub fn new(count: usize, unused: T) -> Result<Slab<T>, MemoryError> {
        let mut items = HugeSlice::zeroed(count, true)?;
        items.fill(unused);
        Ok(Slab { items, free: (0..count as u32).rev().collect() })
    }

    /// Bytes that so many entries take.
    pub fn bytes_for(count: usize) -> usize {
        count * (size_of::<T>() + size_of::<u32>())
    }

    /// Fetches the first line and the last one of an entry.
    #[inline]
    pub fn prefetch(&self, at: u32) {
        prefetch::prefetch_ends(&self.items, at as usize);
    }

    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub fn used(&self) -> usize {
        self.items.len() - self.free.len()
    }

    pub fn len(&self) -> u32 {
        self.items.len() as u32
    }

    /// Puts `item` into a free entry. The caller has asked [`Slab::has_room`].
    pub fn put(&mut self, item: T) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| unreachable!("has_room() was asked"));
        self.items[at as usize] = item;
        at
    }

    pub fn give_back(&mut self, at: u32) {
        self.free.push(at);
    }

    /// Resident bytes when all are used.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.items) + self.free.capacity() * 4
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: u32) -> &T {
        &self.items[at as usize]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.items[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_one_line_and_a_mapping_one_word() {
        assert_eq!((size_of::<Page>(), size_of::<Slot>()), (64, 8));
    }

    #[test]
    fn slots_keep_what_was_put_in() {
        for state in
            [State::Free, State::Live(u32::MAX), State::Live(1), State::Held(0), State::Held(1 << 45)]
        {
            let slot = Slot::new(443, state);
            assert_eq!(slot.state(), state);
            assert!(state == State::Free || slot.inside_port() == 443);
        }
    }

    #[test]
    fn a_hold_down_never_ends_early() {
        let hold = Duration::from_secs(120);
        let released = Nanos(1_500_001);
        let since = ms_up(released);
        assert!(!is_over(since, released.plus(hold), hold), "rounded up to the next millisecond");
        assert!(is_over(since, released.plus(hold + Duration::from_millis(1)), hold));
        assert!(is_over(0, Nanos::from_secs(120), hold));
    }
}
