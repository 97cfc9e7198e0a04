//! Remote tunnel end points (VTEPs) of overlays: who sends us frames, by number.
//!
//! A shared atomic table of fixed capacity, so that which tunnel leads to a station fits a word of the MAC table. A
//! number comes with a generation: what refers to one that has been given to another address since finds nothing, and
//! is asked for anew. Configured ones keep their place; of the others, who has sent nothing for longest makes room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::copied::Word as _;
use crate::packet::hash::{self, Key};
use crate::time::Nanos;

/// Places of the table: four times as many as a config may name.
const PLACES: usize = 4096;

/// Places that an address may have.
const WINDOW: usize = 16;

/// Salt of the hash, which no interface slot has.
const SALT: u32 = 0x7654_0000;

const USED: u64 = 1 << 63;
const CLAIMED: u64 = 1 << 62;
const GENERATION_SHIFT: u32 = 32;

/// How long a path MTU that a router reported is believed. RFC 8201 section 4: not under 5 minutes; 10 recommended.
const PATH_MTU_SECONDS: u64 = 600;

/// The number of a remote VTEP, and which of those that have had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote(u32);

impl Remote {
    /// As a word: never 0.
    #[inline]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// From a word; 0 is none.
    #[inline]
    pub fn from_bits(bits: u32) -> Option<Remote> {
        (bits != 0).then_some(Remote(bits))
    }

    #[inline]
    fn index(self) -> usize {
        self.0 as usize % PLACES
    }

    fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

#[repr(align(64))]
#[derive(Debug, Default)]
struct Place {
    /// State, generation and the second in which a frame came from there.
    word: AtomicU64,
    addr_hi: AtomicU64,
    addr_lo: AtomicU64,
    /// Named by the config.
    pinned: AtomicBool,
    /// The longest IP packet on the way there, and the second until which that holds; 0: nothing is known.
    path_mtu: AtomicU64,
}

fn generation_of(word: u64) -> u16 {
    (word >> GENERATION_SHIFT) as u16
}

/// The table. Shared by all threads of a node.
#[derive(Debug)]
pub struct VtepTable {
    places: Box<[Place]>,
    key: Key,
}

impl VtepTable {
    /// An empty table.
    pub fn new(key: Key) -> VtepTable {
        VtepTable { places: (0..PLACES).map(|_| Place::default()).collect(), key }
    }

    /// A copy that nobody shares.
    pub(crate) fn copied(&self) -> VtepTable {
        let place = |place: &Place| Place {
            word: place.word.copied(),
            addr_hi: place.addr_hi.copied(),
            addr_lo: place.addr_lo.copied(),
            pinned: AtomicBool::new(place.pinned.load(Ordering::Acquire)),
            path_mtu: place.path_mtu.copied(),
        };
        VtepTable { places: self.places.iter().map(place).collect(), key: self.key }
    }

    fn window(&self, addr: u128) -> impl Iterator<Item = usize> {
        let home = hash::address(self.key, addr, SALT) as usize;
        (0..WINDOW).map(move |step| (home + step) % PLACES)
    }

    /// The number of `addr`, an address in its key form ([`crate::neighbours::addr_key`]).
    pub fn find(&self, addr: u128) -> Option<Remote> {
        self.window(addr).find_map(|index| self.holds(index, addr))
    }

    fn holds(&self, index: usize, addr: u128) -> Option<Remote> {
        let place = &self.places[index];
        let word = place.word.load(Ordering::Acquire);
        let same = word & USED != 0
            && place.addr_lo.load(Ordering::Relaxed) == addr as u64
            && place.addr_hi.load(Ordering::Relaxed) == (addr >> 64) as u64;
        // Filled for another meanwhile: its generation differs.
        std::sync::atomic::fence(Ordering::Acquire);
        let after = place.word.load(Ordering::Relaxed);
        (same && after & USED != 0 && generation_of(after) == generation_of(word))
            .then(|| Remote(u32::from(generation_of(word)) << 16 | index as u32))
    }

    /// The number of `addr`, which gets one if it has none. `None`: its places belong to configured ones, or another
    /// thread takes one just now.
    pub fn find_or_insert(&self, addr: u128, now: Nanos) -> Option<Remote> {
        if let Some(found) = self.find(addr) {
            self.note_seen(found, now);
            return Some(found);
        }
        let open = |index: &usize| !self.places[*index].pinned.load(Ordering::Relaxed);
        let age = |index: &usize| {
            let word = self.places[*index].word.load(Ordering::Relaxed);
            if word & USED == 0 { 0 } else { 1 + (word & u64::from(u32::MAX)) }
        };
        let index = self.window(addr).filter(open).min_by_key(age)?;
        let place = &self.places[index];
        let old = place.word.load(Ordering::Acquire);
        let generation = generation_of(old).checked_add(1).unwrap_or(1);
        let claimed = CLAIMED | u64::from(generation) << GENERATION_SHIFT;
        if old & CLAIMED != 0
            || place.word.compare_exchange(old, claimed, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return None;
        }
        std::sync::atomic::fence(Ordering::Release);
        place.addr_hi.store((addr >> 64) as u64, Ordering::Relaxed);
        place.addr_lo.store(addr as u64, Ordering::Relaxed);
        place.path_mtu.store(0, Ordering::Relaxed);
        let word = USED | u64::from(generation) << GENERATION_SHIFT | u64::from(now.as_secs() as u32);
        place.word.store(word, Ordering::Release);
        Some(Remote(u32::from(generation) << 16 | index as u32))
    }

    /// Notes that a frame came from there.
    #[inline]
    pub fn note_seen(&self, remote: Remote, now: Nanos) {
        let place = &self.places[remote.index()];
        let old = place.word.load(Ordering::Relaxed);
        let second = u64::from(now.as_secs() as u32);
        if old & u64::from(u32::MAX) != second && generation_of(old) == remote.generation() && old & USED != 0
        {
            let word = old & !u64::from(u32::MAX) | second;
            // Whoever is faster knows as much.
            let _ = place.word.compare_exchange(old, word, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The address of `remote`, if it still has its number.
    #[inline]
    pub fn address(&self, remote: Remote) -> Option<u128> {
        let place = &self.places[remote.index()];
        let is_it = |word: u64| word & USED != 0 && generation_of(word) == remote.generation();
        let word = place.word.load(Ordering::Acquire);
        let addr = u128::from(place.addr_hi.load(Ordering::Relaxed)) << 64
            | u128::from(place.addr_lo.load(Ordering::Relaxed));
        std::sync::atomic::fence(Ordering::Acquire);
        (is_it(word) && is_it(place.word.load(Ordering::Relaxed))).then_some(addr)
    }

    /// Keeps the places of these and of no others. Control thread only. False: one has no place.
    pub fn pin(&self, addrs: &[u128], now: Nanos) -> bool {
        let mut wanted = vec![false; PLACES];
        let mut all = true;
        for addr in addrs {
            // Another thread may be filling the place this one wants: a moment later it wants another.
            let found = (0..1000).find_map(|_| self.find_or_insert(*addr, now));
            match found {
                Some(remote) => {
                    wanted[remote.index()] = true;
                    self.places[remote.index()].pinned.store(true, Ordering::Relaxed);
                }
                None => all = false,
            }
        }
        for (place, wanted) in self.places.iter().zip(wanted) {
            place.pinned.store(wanted, Ordering::Relaxed);
        }
        all
    }

    /// A router on the way to `addr` takes no IP packets longer than `mtu_bytes`. Of several the least counts.
    pub fn note_path_mtu(&self, addr: u128, mtu_bytes: u16, now: Nanos) {
        let Some(remote) = self.find(addr) else { return };
        let mtu_bytes = mtu_bytes.min(self.path_mtu(addr, now));
        let until = now.as_secs() + PATH_MTU_SECONDS;
        let word = u64::from(mtu_bytes) << 48 | until & 0xffff_ffff;
        self.places[remote.index()].path_mtu.store(word, Ordering::Relaxed);
    }

    /// The longest IP packet on the way to `addr`, as far as routers have said.
    pub fn path_mtu(&self, addr: u128, now: Nanos) -> u16 {
        let Some(remote) = self.find(addr) else { return u16::MAX };
        let word = self.places[remote.index()].path_mtu.load(Ordering::Relaxed);
        let is_known = word != 0 && now.as_secs() < word & 0xffff_ffff;
        if is_known { (word >> 48) as u16 } else { u16::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::v4_key;

    fn at(secs: u64) -> Nanos {
        Nanos::from_secs(secs)
    }

    #[test]
    fn an_address_keeps_its_number() {
        let table = VtepTable::new(Key::default());
        let first = table.find_or_insert(v4_key(1), at(1)).expect("room");
        let second = table.find_or_insert(0x2001_0db8 << 96 | 2, at(1)).expect("room");
        assert_ne!(first, second);
        assert_eq!(table.find_or_insert(v4_key(1), at(2)), Some(first));
        assert_eq!(table.address(first), Some(v4_key(1)));
        assert_eq!(table.address(second), Some(0x2001_0db8 << 96 | 2));
        assert_eq!(table.find(v4_key(3)), None);
        assert_eq!(Remote::from_bits(first.to_bits()), Some(first));
    }

    #[test]
    fn who_was_silent_for_longest_makes_room_and_what_referred_to_it_finds_nothing() {
        let table = VtepTable::new(Key::default());
        let all: Vec<(u128, Remote)> = (0..4 * PLACES as u32)
            .map(|host| (v4_key(host), table.find_or_insert(v4_key(host), at(host.into())).expect("room")))
            .collect();
        let left = all.iter().filter(|(_, remote)| table.address(*remote).is_some()).count();
        assert!(left <= PLACES, "{left}");
        for (addr, remote) in all {
            if let Some(found) = table.address(remote) {
                assert_eq!(found, addr);
            }
        }
        assert!(table.find(v4_key(4 * PLACES as u32 - 1)).is_some(), "the newest is there");
    }

    #[test]
    fn configured_ones_keep_their_places() {
        let table = VtepTable::new(Key::default());
        let pinned: Vec<u128> = (0..1024).map(v4_key).collect();
        assert!(table.pin(&pinned, at(1)));
        for host in 2000..40_000 {
            table.find_or_insert(v4_key(host), at(u64::from(host)));
        }
        assert!(pinned.iter().all(|addr| table.find(*addr).is_some()));
        assert!(table.pin(&pinned[..1], at(50_000)));
        for host in 50_000..100_000 {
            table.find_or_insert(v4_key(host), at(u64::from(host)));
        }
        assert!(table.find(pinned[0]).is_some());
        assert!(pinned[1..].iter().all(|addr| table.find(*addr).is_none()), "the others made room");
    }

    #[test]
    fn a_path_mtu_is_believed_for_ten_minutes() {
        let table = VtepTable::new(Key::default());
        table.find_or_insert(v4_key(1), at(1));
        table.note_path_mtu(v4_key(1), 1400, at(1));
        table.note_path_mtu(v4_key(1), 1450, at(1));
        assert_eq!(table.path_mtu(v4_key(1), at(600)), 1400);
        assert_eq!(table.path_mtu(v4_key(1), at(601)), u16::MAX);
        assert_eq!(table.path_mtu(v4_key(2), at(1)), u16::MAX);
    }
}
