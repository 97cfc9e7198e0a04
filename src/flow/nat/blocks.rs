//! Port-block claims: which worker answers for an external address and port. Shared by all workers.
//!
//! One atomic word per unit of 64 ports (8 below port 1024), claimed by compare-exchange and given back by
//! its owner alone. A block is one or more units; a claim that gets only some of them puts those back. A bit
//! per unit is a hint beside the word: it makes the search for a free unit 16 loads instead of 1,008, and may
//! lag behind; the word decides.
//!
//! An address keeps its slot while any of its units is claimed, also when it is in no pool any more: what
//! still arrives there finds its owner until the last mapping has gone.

use zerocopy::FromZeros;

use std::alloc::{Layout, handle_alloc_error};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::copied;
use crate::packet::hash::{self, Key};

/// Ports in one unit. 64, because a unit's ports are then the bits of one word; and because 64 ports for a
/// host with few flows waste little (RFC 6888 REQ-13).
pub const UNIT_PORTS: u16 = 64;

/// Ports in one unit below 1024. Few hosts use such source ports, and each uses few (NTP 123, IKE 500): with 8
/// to a unit 128 hosts of an address can have some; with 64 it would be 16.
pub const LOW_UNIT_PORTS: u16 = 8;

/// First port that is not well-known. RFC 4787 section 4.2.2: the two classes are 0-1023 and 1024-65535.
pub const FIRST_HIGH_PORT: u16 = 1024;

const LOW_UNITS: u16 = FIRST_HIGH_PORT / LOW_UNIT_PORTS;

/// Units of an address. The high ones are numbered as if they began at port 0; their first 16 are never used.
pub(super) const UNITS: usize = LOW_UNITS as usize + 1024;

/// Words of a set of units.
pub(super) const UNIT_WORDS: usize = UNITS / 64;

/// Words of the low and of the high units.
pub(super) const LOW_WORDS: std::ops::Range<usize> = 0..LOW_UNITS as usize / 64;
pub(super) const HIGH_WORDS: std::ops::Range<usize> = LOW_UNITS as usize / 64..UNIT_WORDS;

/// Most addresses: a slot is 16 bits of the word that finds it.
pub const MAX_ADDRESSES: usize = 1 << 16;

/// A set of units.
pub(super) type UnitSet = [u64; UNIT_WORDS];

/// A unit of an external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromZeros)]
#[repr(transparent)]
pub(super) struct Unit(pub u16);

impl Unit {
    #[inline]
    pub fn of(port: u16) -> Unit {
        if port < FIRST_HIGH_PORT { Unit(port / LOW_UNIT_PORTS) } else { Unit(LOW_UNITS + port / UNIT_PORTS) }
    }

    #[inline]
    pub fn is_low(self) -> bool {
        self.0 < LOW_UNITS
    }

    #[inline]
    pub fn first_port(self) -> u16 {
        if self.is_low() { self.0 * LOW_UNIT_PORTS } else { (self.0 - LOW_UNITS) * UNIT_PORTS }
    }

    pub fn ports(self) -> u16 {
        if self.is_low() { LOW_UNIT_PORTS } else { UNIT_PORTS }
    }

    pub fn last_port(self) -> u16 {
        self.first_port() + (self.ports() - 1)
    }

    pub fn is_in(self, set: &UnitSet) -> bool {
        set[usize::from(self.0 / 64)] >> (self.0 % 64) & 1 == 1
    }

    pub fn add_to(self, set: &mut UnitSet) {
        set[usize::from(self.0 / 64)] |= 1 << (self.0 % 64);
    }
}

/// The bit of `bits` that `random` chooses, each as likely as the other. `bits` is not 0.
#[inline]
pub(super) fn pick(bits: u64, random: u32) -> u32 {
    let nth = (u64::from(random) * u64::from(bits.count_ones())) >> 32;
    let mut rest = bits;
    for _ in 0..nth {
        rest &= rest - 1;
    }
    rest.trailing_zeros()
}

/// The bits of `free` at which `units` (a power of two up to 64) free ones begin, aligned.
pub(super) fn aligned_runs(free: u64, units: u16) -> u64 {
    let mut runs = free;
    let mut width = 1;
    while width < units {
        runs &= runs >> width;
        width *= 2;
    }
    let every = if units >= 64 { 1 } else { u64::MAX / ((1 << units) - 1) };
    runs & every
}

/// Who answers for a block: a worker, or a shard that a node-local table gives to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(u16);

impl Owner {
    /// None for 65,535: its successor is not 16 bits.
    pub const fn new(number: u16) -> Option<Owner> {
        if number == u16::MAX { None } else { Some(Owner(number)) }
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// The word of a unit: lower half 0 if free, else the owner's number + 1; upper half how often it was freed.
#[derive(Clone, Copy)]
struct Word(u32);

impl Word {
    fn owner(self) -> Option<Owner> {
        (self.0 as u16).checked_sub(1).map(Owner)
    }

    fn claimed_by(self, owner: Owner) -> Word {
        Word(self.0 & 0xffff_0000 | (u32::from(owner.0) + 1))
    }

    fn freed(self) -> Word {
        Word((self.0 & 0xffff_0000).wrapping_add(0x1_0000))
    }
}

/// No slot is left for another external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressesFull;

/// Marks a place whose address was forgotten; ends no search. As an address it would be broadcast.
const FORGOTTEN: u64 = u64::MAX;

/// The claims of a node.
#[derive(Debug)]
pub struct BlockClaims {
    /// Open addressing: address << 32 | VRF << 16 | slot. 0: never used. Written by the control thread alone.
    places: Box<[AtomicU64]>,
    /// By slot: address << 32 | VRF << 16 | 1; 0: free.
    slots: Box<[AtomicU64]>,
    /// [`UNITS`] words per slot.
    words: Box<[AtomicU32]>,
    /// [`UNIT_WORDS`] words per slot: the hint.
    used: Box<[AtomicU64]>,
    key: Key,
}

/// Memory that is there when it is first written to.
fn atomics<T: FromZeros>(count: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(count).unwrap_or_else(|_| handle_alloc_error(Layout::new::<T>()))
}

impl BlockClaims {
    /// Room for `addresses` external addresses (at most [`MAX_ADDRESSES`]): 4.8 kB each.
    pub fn new(addresses: usize, key: Key) -> BlockClaims {
        let addresses = addresses.min(MAX_ADDRESSES);
        BlockClaims {
            places: atomics((addresses * 2).next_power_of_two().max(2)),
            slots: atomics(addresses),
            words: atomics(addresses * UNITS),
            used: atomics(addresses * UNIT_WORDS),
            key,
        }
    }

    /// A copy that nobody shares: what is given is given there too.
    pub(crate) fn copied(&self) -> BlockClaims {
        BlockClaims {
            places: copied::all(&self.places),
            slots: copied::all(&self.slots),
            words: copied::all(&self.words),
            used: copied::all(&self.used),
            key: self.key,
        }
    }

    /// Most external addresses.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn name(vrf: u16, addr: u32) -> u64 {
        u64::from(addr) << 32 | u64::from(vrf) << 16
    }

    /// The places at which an address may stand, in order.
    fn probe(&self, vrf: u16, addr: u32) -> impl Iterator<Item = &AtomicU64> {
        let mask = self.places.len() - 1;
        let first = hash::address(self.key, u128::from(addr), u32::from(vrf)) as usize;
        (0..self.places.len()).map(move |step| &self.places[(first + step) & mask])
    }

    /// The slot of an external address, if it has one.
    #[inline]
    pub(super) fn slot(&self, vrf: u16, addr: u32) -> Option<u16> {
        for place in self.probe(vrf, addr) {
            let word = place.load(Ordering::Acquire);
            if word == 0 {
                return None;
            }
            if word != FORGOTTEN && word & !0xffff == Self::name(vrf, addr) {
                return Some(word as u16);
            }
        }
        None
    }

    /// Gives the address a slot, or finds the one it has. Only the control thread calls it.
    pub fn register(&self, vrf: u16, addr: u32) -> Result<u16, AddressesFull> {
        if let Some(slot) = self.slot(vrf, addr) {
            return Ok(slot);
        }
        let name = Self::name(vrf, addr);
        let free = self.slots.iter().position(|slot| slot.load(Ordering::Acquire) == 0);
        let slot = free.ok_or(AddressesFull)? as u16;
        // Twice as many places as slots: one is free.
        for place in self.probe(vrf, addr) {
            let word = place.load(Ordering::Acquire);
            if word == 0 || word == FORGOTTEN {
                self.slots[usize::from(slot)].store(name | 1, Ordering::Release);
                place.store(name | u64::from(slot), Ordering::Release);
                return Ok(slot);
            }
        }
        Err(AddressesFull)
    }

    /// Takes the slot of an address back; false while any of its ports is claimed. Only the control thread
    /// calls it, when no published pool has the address.
    pub fn forget(&self, vrf: u16, addr: u32) -> bool {
        let Some(slot) = self.slot(vrf, addr) else { return true };
        if self.claimed_units(slot) > 0 {
            return false;
        }
        let word = Self::name(vrf, addr) | u64::from(slot);
        if let Some(place) = self.probe(vrf, addr).find(|place| place.load(Ordering::Acquire) == word) {
            place.store(FORGOTTEN, Ordering::Release);
        }
        self.slots[usize::from(slot)].store(0, Ordering::Release);
        true
    }

    /// Who answers for what arrives at `addr` and `port`. None: no mapping can exist there.
    #[inline]
    pub fn owner_of(&self, vrf: u16, addr: u32, port: u16) -> Option<Owner> {
        let slot = self.slot(vrf, addr)?;
        Word(self.word(slot, Unit::of(port)).load(Ordering::Acquire)).owner()
    }

    /// Addresses with a slot: VRF, address and how many of its ports are claimed.
    pub fn addresses(&self) -> impl Iterator<Item = (u16, u32, u32)> {
        self.slots.iter().enumerate().filter_map(|(slot, name)| {
            let name = name.load(Ordering::Acquire);
            (name != 0).then(|| ((name >> 16) as u16, (name >> 32) as u32, self.claimed_ports(slot as u16)))
        })
    }

    fn word(&self, slot: u16, unit: Unit) -> &AtomicU32 {
        &self.words[usize::from(slot) * UNITS + usize::from(unit.0)]
    }

    fn used_words(&self, slot: u16) -> &[AtomicU64] {
        &self.used[usize::from(slot) * UNIT_WORDS..][..UNIT_WORDS]
    }

    fn claimed_units(&self, slot: u16) -> u32 {
        self.words[usize::from(slot) * UNITS..][..UNITS]
            .iter()
            .filter(|word| Word(word.load(Ordering::Acquire)).owner().is_some())
            .count() as u32
    }

    /// How many of these high units are claimed.
    pub(super) fn claimed_among(&self, slot: u16, units: &UnitSet) -> u32 {
        let words = self.used_words(slot)[HIGH_WORDS].iter().zip(&units[HIGH_WORDS]);
        words.map(|(used, units)| (used.load(Ordering::Relaxed) & units).count_ones()).sum()
    }

    fn claimed_ports(&self, slot: u16) -> u32 {
        let used = self.used_words(slot);
        let units = |words: std::ops::Range<usize>| -> u32 {
            used[words].iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
        };
        units(LOW_WORDS) * u32::from(LOW_UNIT_PORTS) + units(HIGH_WORDS) * u32::from(UNIT_PORTS)
    }

    /// Claims the `units` units from `first` on, all or none.
    pub(super) fn claim(&self, slot: u16, first: Unit, units: u16, owner: Owner) -> bool {
        for unit in first.0..first.0 + units {
            let word = self.word(slot, Unit(unit));
            let seen = Word(word.load(Ordering::Relaxed));
            let free = seen.owner().is_none();
            // AcqRel: pairs with the release of whoever had it, and with `owner_of`.
            let claimed = free
                && word
                    .compare_exchange(seen.0, seen.claimed_by(owner).0, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            if !claimed {
                self.release(slot, first, unit - first.0);
                return false;
            }
            let hint = &self.used_words(slot)[usize::from(unit / 64)];
            hint.fetch_or(1 << (unit % 64), Ordering::Relaxed);
        }
        true
    }

    /// Claims any `units` (a power of two up to 64) aligned units of `eligible` within `words`.
    pub(super) fn claim_any(
        &self,
        slot: u16,
        (eligible, words): (&UnitSet, std::ops::Range<usize>),
        units: u16,
        owner: Owner,
        random: u32,
    ) -> Option<Unit> {
        let count = words.len();
        let start = random as usize % count;
        for step in 0..count {
            let word = words.start + (start + step) % count;
            let used = self.used_words(slot)[word].load(Ordering::Relaxed);
            let mut runs = aligned_runs(eligible[word] & !used, units);
            while runs != 0 {
                let bit = pick(runs, random.rotate_left(16));
                let first = Unit(word as u16 * 64 + bit as u16);
                if self.claim(slot, first, units, owner) {
                    return Some(first);
                }
                // Another worker was faster, or the hint lags.
                runs &= !(1 << bit);
            }
        }
        None
    }

    /// Gives `units` units from `first` on back. Only their owner calls it.
    pub(super) fn release(&self, slot: u16, first: Unit, units: u16) {
        for unit in first.0..first.0 + units {
            // The hint first: once the word is free another may claim it and set the hint again.
            let hint = &self.used_words(slot)[usize::from(unit / 64)];
            hint.fetch_and(!(1 << (unit % 64)), Ordering::Relaxed);
            let word = self.word(slot, Unit(unit));
            let freed = Word(word.load(Ordering::Relaxed)).freed();
            word.store(freed.0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const ALL: UnitSet = [u64::MAX; UNIT_WORDS];

    fn owner(number: u16) -> Owner {
        Owner::new(number).expect("small")
    }

    #[test]
    fn every_port_is_in_one_unit() {
        for port in 0..=u16::MAX {
            let unit = Unit::of(port);
            assert!((unit.first_port()..=unit.last_port()).contains(&port), "{port} {unit:?}");
            assert_eq!(unit.is_low(), port < 1024);
            assert!(usize::from(unit.0) < UNITS);
        }
    }

    proptest! {
        #[test]
        fn aligned_runs_are_all_free_and_all_found(free in any::<u64>(), spread in any::<u64>(), shift in 0_u32..7) {
            let (free, units) = (free | spread, 1_u16 << shift);
            let runs = aligned_runs(free, units);
            for first in 0..64 {
                let whole = first % u32::from(units) == 0
                    && (first..first + u32::from(units)).all(|bit| free >> bit & 1 == 1);
                prop_assert_eq!(runs >> first & 1 == 1, whole, "{}", first);
            }
        }

        #[test]
        fn the_picked_bit_is_set(bits in 1_u64.., random in any::<u32>()) {
            prop_assert_eq!(bits >> pick(bits, random) & 1, 1);
        }
    }

    #[test]
    fn every_bit_is_picked_as_often() {
        let bits = 0x8000_0000_0001_0801_u64;
        let picked = |bit: u32| {
            (0..4000_u32).filter(|step| pick(bits, step.wrapping_mul(u32::MAX / 4000)) == bit).count()
        };
        for bit in [0, 11, 16, 63] {
            assert!(picked(bit).abs_diff(1000) < 2, "{bit}: {}", picked(bit));
        }
    }

    #[test]
    fn an_address_keeps_its_slot_until_it_is_forgotten() {
        let claims = BlockClaims::new(2, Key::default());
        let slot = claims.register(0, 0xcb00_7101).expect("room");
        let other = claims.register(7, 0xcb00_7101).expect("of another VRF");
        assert_ne!(slot, other);
        assert_eq!(claims.register(0, 0xcb00_7101), Ok(slot));
        assert_eq!(claims.register(0, 0xcb00_7102), Err(AddressesFull));
        assert!(claims.claim(slot, Unit::of(5000), 1, owner(3)));
        assert_eq!(claims.owner_of(0, 0xcb00_7101, 5000), Some(owner(3)));
        assert_eq!(claims.owner_of(7, 0xcb00_7101, 5000), None);
        assert!(!claims.forget(0, 0xcb00_7101));
        claims.release(slot, Unit::of(5000), 1);
        for _ in 0..100 {
            assert!(claims.forget(0, 0xcb00_7101));
            assert_eq!(claims.register(0, 0xcb00_7102), Ok(slot));
            assert!(claims.forget(0, 0xcb00_7102));
            assert_eq!(claims.register(0, 0xcb00_7101), Ok(slot));
        }
        assert_eq!(claims.addresses().count(), 2);
    }

    #[test]
    fn a_claim_gets_all_its_units_or_none() {
        let claims = BlockClaims::new(1, Key::default());
        let slot = claims.register(0, 1 << 24).expect("room");
        assert!(claims.claim(slot, Unit(203), 1, owner(1)));
        assert!(!claims.claim(slot, Unit(200), 4, owner(2)));
        assert_eq!((claims.claimed_units(slot), claims.claimed_ports(slot)), (1, 64));
        assert!(claims.claim(slot, Unit(200), 3, owner(2)));
        let found: BTreeSet<u16> =
            std::iter::from_fn(|| claims.claim_any(slot, (&ALL, 3..4), 8, owner(2), 0))
                .map(|unit| unit.0)
                .collect();
        assert_eq!(found, [192, 208, 216, 224, 232, 240, 248].into());
    }

    #[test]
    fn threads_never_share_a_unit_and_find_all_of_them() {
        let claims = BlockClaims::new(1, Key::default());
        let slot = claims.register(0, 1 << 24).expect("room");
        let rounds = 20;
        for round in 0..rounds {
            let claimed: Vec<Vec<Unit>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4_u16)
                    .map(|thread| {
                        let claims = &claims;
                        scope.spawn(move || {
                            let mut mine = Vec::new();
                            let mut random = u32::from(thread) * 77 + round;
                            loop {
                                random = random.wrapping_mul(0x9e37_79b9).wrapping_add(12345);
                                let units = if random & 4 == 0 { 1 } else { 2 };
                                match claims.claim_any(
                                    slot,
                                    (&ALL, 0..UNIT_WORDS),
                                    units,
                                    owner(thread),
                                    random,
                                ) {
                                    Some(unit) => {
                                        mine.extend((unit.0..unit.0 + units).map(Unit));
                                        // Gives some back at once, so that words change hands.
                                        if random & 3 == 0 {
                                            let back = mine.pop().expect("just put in");
                                            claims.release(slot, back, 1);
                                        }
                                    }
                                    None if units == 2 => {}
                                    None => break mine,
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let all: Vec<Unit> = claimed.iter().flatten().copied().collect();
            let distinct: BTreeSet<Unit> = all.iter().copied().collect();
            assert_eq!(distinct.len(), all.len(), "a unit has one owner");
            for (thread, units) in claimed.iter().enumerate() {
                for unit in units {
                    let word = Word(claims.word(slot, *unit).load(Ordering::Acquire));
                    assert_eq!(word.owner(), Some(owner(thread as u16)));
                }
            }
            assert_eq!(claims.claimed_units(slot) as usize, all.len());
            all.into_iter().for_each(|unit| claims.release(slot, unit, 1));
            assert_eq!((claims.claimed_units(slot), claims.claimed_ports(slot)), (0, 0));
        }
    }
}
