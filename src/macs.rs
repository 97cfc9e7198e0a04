//! The MAC table: where the stations of bridges and overlays are.
//!
//! A shared atomic table of fixed capacity. Segment and MAC address are one word, where they lead another, so that any
//! worker follows a station that moves with its first frame, and none waits.
//!
//! In overlays stations are let in only by what the gateway asks for or answers to (ARP, ND), where
//! `neighbours.per_interface` is the limit; other frames move those that are known. In bridges every frame teaches, with
//! a limit for each member ([`MacTable::note`]), and who is silent is forgotten ([`MacTable::sweep`]). So no flood of
//! made-up source addresses displaces anybody.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::copied::{self, Word as _};
use crate::packet::hash::{self, Key};
use crate::time::Nanos;
use crate::vteps::Remote;

/// Places that a station may have.
const WINDOW: usize = 16;

/// Being filled: no segment is all ones.
const CLAIMED: u64 = u64::MAX;

/// Set by the operator: never learned over, never displaced.
const PERMANENT: u64 = 1 << 31;
/// Told by the node that passes frames on: not learned over, for what others hear may have come round by that node.
const TOLD: u64 = 1 << 30;
/// Was told before this node took over, and has not been heard since.
const ADOPTED: u64 = 1 << 29;
/// The second in which a frame came.
const SECOND: u64 = ADOPTED - 1;

/// RFC 7432 section 15.1: a station that moves so often within [`MOVES_WITHIN_S`] is in two places.
const MOST_MOVES: u64 = 5;
/// RFC 7432 section 15.1: M, and for as long it then stays where it is.
const MOVES_WITHIN_S: u64 = 180;

/// Members of a bridge that are VNIs: three bits of a [`Location`].
pub const MAX_VNIS: usize = 8;

/// Where a station is: behind a member on a port, or behind a remote of a VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location(u32);

impl Location {
    /// A remote's number takes the upper half and 12 bits.
    const LOCAL: u32 = 1 << 15;
    const VNI_SHIFT: u32 = 12;

    /// On the port of the member with this interface slot.
    #[inline]
    pub fn local(member: u16) -> Location {
        Location(u32::from(member) << 16 | Location::LOCAL)
    }

    /// Behind a remote of the bridge's VNI with this number; 0 where there is only one.
    #[inline]
    pub fn remote(remote: Remote, vni: u8) -> Location {
        Location(remote.to_bits() | u32::from(vni) << Location::VNI_SHIFT)
    }

    /// Interface slot of the member it is on the port of.
    #[inline]
    pub fn as_local(self) -> Option<u16> {
        (self.0 & Location::LOCAL != 0).then_some((self.0 >> 16) as u16)
    }

    /// Remote and number of the VNI.
    #[inline]
    pub fn as_remote(self) -> Option<(Remote, u8)> {
        let vni = self.0 >> Location::VNI_SHIFT & (MAX_VNIS as u32 - 1);
        let remote = Remote::from_bits(self.0 & !(vni << Location::VNI_SHIFT))?;
        (self.0 & Location::LOCAL == 0).then_some((remote, vni as u8))
    }

    /// As a word: never 0.
    #[inline]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// From a word; 0 is nowhere.
    #[inline]
    pub fn from_bits(bits: u32) -> Option<Location> {
        (bits != 0).then_some(Location(bits))
    }
}

/// What a frame of a station taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It is where it was.
    Known,
    /// It had not been heard of.
    New,
    /// It was elsewhere before.
    Moved,
    /// It moves to and fro, and stays where it is for a while.
    Flapping,
    /// Its member has as many as it may have, or the table has no room.
    Refused,
}

#[derive(Debug, Default)]
struct Place {
    /// Segment in the upper 16 bits, MAC address below; 0: free.
    station: AtomicU64,
    /// The location in the upper half, 0 if that was forgotten; the second in which a frame came from there in the lower.
    whereabouts: AtomicU64,
    /// Second of the first of some moves in the upper half, their number in the lower.
    moves: AtomicU64,
}

/// An entry, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The segment.
    pub segment: u16,
    /// MAC address in the lower 48 bits.
    pub mac: u64,
    /// Where it is.
    pub location: Location,
    /// Second in which it was heard from last.
    pub seen_s: u64,
    /// Set by the operator.
    pub is_static: bool,
}

/// The table. Shared by all threads of a node.
#[derive(Debug)]
pub struct MacTable {
    places: Box<[Place]>,
    key: Key,
    /// By interface slot of a member: stations there, as the last sweep counted them and [`MacTable::note`] since.
    counts: Box<[AtomicU32]>,
    /// Stations that have moved.
    pub moves: AtomicU64,
    /// Moves that were not followed.
    pub flaps: AtomicU64,
    /// Stations that found no room.
    pub refused: AtomicU64,
}

#[inline]
fn station(segment: u16, mac: u64) -> u64 {
    u64::from(segment) << 48 | mac & 0xffff_ffff_ffff
}

fn whereabouts(location: Location, now: Nanos) -> u64 {
    u64::from(location.to_bits()) << 32 | now.as_secs() & SECOND
}

#[inline]
fn location_of(whereabouts: u64) -> Option<Location> {
    Location::from_bits((whereabouts >> 32) as u32)
}

impl MacTable {
    /// A table with `places`, a power of two, for members with interface slots below `members`.
    pub fn new(places: usize, members: usize, key: Key) -> MacTable {
        assert!(places.is_power_of_two(), "places are found by a mask");
        MacTable {
            places: (0..places).map(|_| Place::default()).collect(),
            key,
            counts: (0..members).map(|_| AtomicU32::new(0)).collect(),
            moves: AtomicU64::new(0),
            flaps: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// A copy that nobody shares.
    pub(crate) fn copied(&self) -> MacTable {
        let place = |place: &Place| Place {
            station: place.station.copied(),
            whereabouts: place.whereabouts.copied(),
            moves: place.moves.copied(),
        };
        MacTable {
            places: self.places.iter().map(place).collect(),
            key: self.key,
            counts: copied::all(&self.counts),
            moves: self.moves.copied(),
            flaps: self.flaps.copied(),
            refused: self.refused.copied(),
        }
    }

    /// Places there are.
    pub fn capacity(&self) -> usize {
        self.places.len()
    }

    #[inline]
    fn window(&self, station: u64) -> impl Iterator<Item = &Place> {
        let home = hash::fold(station ^ self.key.0, self.key.1 | 1) as usize;
        let mask = self.places.len() - 1;
        (0..WINDOW).map(move |step| &self.places[(home + step) & mask])
    }

    #[inline]
    fn place(&self, station: u64) -> Option<&Place> {
        self.window(station).find(|place| place.station.load(Ordering::Acquire) == station)
    }

    /// Where a station is. Segments are named by the interface slot of an overlay, or by a number above all of them.
    #[inline]
    pub fn find(&self, segment: u16, mac: u64) -> Option<Location> {
        let station = station(segment, mac);
        let place = self.place(station)?;
        let word = place.whereabouts.load(Ordering::Acquire);
        // Given to another meanwhile.
        let same = place.station.load(Ordering::Acquire) == station;
        location_of(word).filter(|_| same)
    }

    /// A frame of a station came from `location`: if it is known, it is there now.
    #[inline]
    pub fn follow(&self, segment: u16, mac: u64, location: Location, now: Nanos) {
        if let Some(place) = self.place(station(segment, mac)) {
            settle(place, whereabouts(location, now));
        }
    }

    /// A station that the gateway has to do with is at `location`. Who was silent for longest makes room.
    pub fn learn(&self, segment: u16, mac: u64, location: Location, now: Nanos) {
        let (station, new) = (station(segment, mac), whereabouts(location, now));
        if let Some(place) = self.place(station) {
            settle(place, new);
            return;
        }
        self.insert(station, new);
    }

    /// A frame of a station of a bridge came from `location`, by the member with this interface slot, which may have
    /// `most` stations. `is_gone` says of a location that nobody can be there any more: to leave it is no move.
    #[inline]
    pub fn note(
        &self,
        segment: u16,
        mac: u64,
        location: Location,
        (member, most): (u16, u32),
        now: Nanos,
        is_gone: impl Fn(Location) -> bool,
    ) -> Noted {
        let (station, new) = (station(segment, mac), whereabouts(location, now));
        let Some(place) = self.place(station) else {
            return self.note_new(None, station, new, (member, most));
        };
        let old = place.whereabouts.load(Ordering::Relaxed);
        if old >> 32 == new >> 32 || old & (PERMANENT | TOLD) != 0 {
            settle(place, new);
            return Noted::Known;
        }
        if location_of(old).is_none_or(is_gone) {
            place.moves.store(0, Ordering::Relaxed);
            return self.note_new(Some(place), station, new, (member, most));
        }
        self.note_moved(place, new, (member, most), now)
    }

    #[cold]
    fn note_new(&self, place: Option<&Place>, station: u64, new: u64, (member, most): (u16, u32)) -> Noted {
        let count = &self.counts[usize::from(member)];
        let has_room = count.load(Ordering::Relaxed) < most;
        let found = has_room
            && match place {
                Some(place) => {
                    settle(place, new);
                    true
                }
                None => self.insert(station, new),
            };
        if !found {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Noted::Refused;
        }
        count.fetch_add(1, Ordering::Relaxed);
        Noted::New
    }

    #[cold]
    fn note_moved(&self, place: &Place, new: u64, (member, most): (u16, u32), now: Nanos) -> Noted {
        let count_there = &self.counts[usize::from(member)];
        if count_there.load(Ordering::Relaxed) >= most {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Noted::Refused;
        }
        let second = now.as_secs();
        let old = place.moves.load(Ordering::Relaxed);
        let (first, count) = (old >> 32, old & 0xffff_ffff);
        let is_first = count == 0 || second >= first + MOVES_WITHIN_S;
        if !is_first && count >= MOST_MOVES {
            self.flaps.fetch_add(1, Ordering::Relaxed);
            return Noted::Flapping;
        }
        let moves = match (is_first, count + 1) {
            (true, _) => second << 32 | 1,
            // It stays for the whole time from now.
            (false, MOST_MOVES) => second << 32 | MOST_MOVES,
            (false, count) => first << 32 | count,
        };
        // Whoever is faster has counted it.
        let _ = place.moves.compare_exchange(old, moves, Ordering::Relaxed, Ordering::Relaxed);
        settle(place, new);
        count_there.fetch_add(1, Ordering::Relaxed);
        self.moves.fetch_add(1, Ordering::Relaxed);
        Noted::Moved
    }

    /// False: all places in reach are the operator's, or another thread fills this one.
    fn insert(&self, station: u64, new: u64) -> bool {
        let age = |place: &&Place| {
            let word = place.whereabouts.load(Ordering::Relaxed);
            match place.station.load(Ordering::Relaxed) {
                0 => 0,
                _ if location_of(word).is_none() => 0,
                _ => 1 + (word & SECOND),
            }
        };
        let open = |place: &&Place| place.whereabouts.load(Ordering::Relaxed) & PERMANENT == 0;
        let Some(place) = self.window(station).filter(open).min_by_key(age) else { return false };
        let old = place.station.load(Ordering::Acquire);
        // Two may let one station in at the same time, in two places: the first that is found counts, the other ages.
        if old == CLAIMED
            || place.station.compare_exchange(old, CLAIMED, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return false;
        }
        place.whereabouts.store(new, Ordering::Release);
        place.moves.store(0, Ordering::Relaxed);
        place.station.store(station, Ordering::Release);
        true
    }

    /// The operator's word. False: there is no room for it.
    pub fn set_permanent(&self, segment: u16, mac: u64, location: Location) -> bool {
        let (station, new) = (station(segment, mac), u64::from(location.to_bits()) << 32 | PERMANENT);
        match self.place(station) {
            Some(place) => {
                place.whereabouts.store(new, Ordering::Release);
                true
            }
            None => self.insert(station, new),
        }
    }

    /// All learned stations of a segment are nowhere, and have not moved.
    #[cold]
    pub fn flush(&self, segment: u16) {
        for place in &self.places {
            let (station, word) =
                (place.station.load(Ordering::Acquire), place.whereabouts.load(Ordering::Acquire));
            if entry_of(station, word).is_some_and(|entry| entry.segment == segment && !entry.is_static) {
                place.moves.store(0, Ordering::Relaxed);
                let _ = place.whereabouts.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Where a station is, says the node that passes frames on.
    pub fn tell(&self, segment: u16, mac: u64, location: Location, now: Nanos) {
        let (station, new) = (station(segment, mac), whereabouts(location, now) | TOLD);
        let Some(place) = self.place(station) else {
            self.insert(station, new);
            return;
        };
        let old = place.whereabouts.load(Ordering::Relaxed);
        if old & PERMANENT == 0 {
            // Not to undo what the operator says at this moment.
            let _ = place.whereabouts.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The same, if this node has taken over meanwhile: others it may have heard elsewhere. False: this one it has.
    pub fn adopt(&self, segment: u16, mac: u64, location: Location, now: Nanos) -> bool {
        let (key, new) = (station(segment, mac), whereabouts(location, now) | ADOPTED);
        if self.find(segment, mac).is_some() {
            return false;
        }
        match self.place(key) {
            Some(place) => settle(place, new),
            None => _ = self.insert(key, new),
        }
        true
    }

    /// This node passes the frames of a segment on from now on: stations are where it was told, others nowhere.
    #[cold]
    pub fn take_over(&self, segment: u16) {
        for place in &self.places {
            let (station, word) =
                (place.station.load(Ordering::Acquire), place.whereabouts.load(Ordering::Acquire));
            if entry_of(station, word).is_some_and(|entry| entry.segment == segment && !entry.is_static) {
                let new = if word & TOLD != 0 { word & !TOLD | ADOPTED } else { 0 };
                place.moves.store(0, Ordering::Relaxed);
                let _ = place.whereabouts.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Forgets all stations behind tunnels of a segment, also what the operator said of them: the numbers of its VNIs mean
    /// others now.
    pub fn forget_remotes(&self, segment: u16) {
        for place in &self.places {
            let word = place.whereabouts.load(Ordering::Acquire);
            let entry = entry_of(place.station.load(Ordering::Acquire), word);
            if entry.is_some_and(|entry| entry.segment == segment && entry.location.as_remote().is_some()) {
                let _ = place.whereabouts.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Forgets a station, also what the operator said of it. False: nobody knows it.
    pub fn forget(&self, segment: u16, mac: u64) -> bool {
        let place = self.place(station(segment, mac));
        place.is_some_and(|place| location_of(place.whereabouts.swap(0, Ordering::AcqRel)).is_some())
    }

    /// Looks at the stations in some places. `keep` says whether one may stay.
    pub fn sweep(&self, places: std::ops::Range<usize>, mut keep: impl FnMut(&Entry) -> bool) {
        for place in &self.places[places] {
            let word = place.whereabouts.load(Ordering::Acquire);
            let Some(entry) = entry_of(place.station.load(Ordering::Acquire), word) else { continue };
            if !keep(&entry) {
                // Heard from at this moment: it stays.
                let _ = place.whereabouts.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// All stations, for people.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        (0..self.places.len()).filter_map(|place| self.at(place))
    }

    fn at(&self, place: usize) -> Option<Entry> {
        let place = &self.places[place];
        let word = place.whereabouts.load(Ordering::Acquire);
        entry_of(place.station.load(Ordering::Acquire), word)
    }

    /// The station in a place, below [`MacTable::capacity`], if this node has taken it over and not heard of it since.
    pub fn adopted(&self, place: usize) -> Option<Entry> {
        let is_adopted = self.places[place].whereabouts.load(Ordering::Acquire) & ADOPTED != 0;
        self.at(place).filter(|_| is_adopted)
    }

    /// Stations of a member.
    pub fn count(&self, member: u16) -> u32 {
        self.counts.get(usize::from(member)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// What a sweep over all places has counted.
    pub fn set_count(&self, member: u16, count: u32) {
        self.counts[usize::from(member)].store(count, Ordering::Relaxed);
    }
}

fn entry_of(station: u64, whereabouts: u64) -> Option<Entry> {
    let location = location_of(whereabouts)?;
    (station != 0 && station != CLAIMED).then_some(Entry {
        segment: (station >> 48) as u16,
        mac: station & 0xffff_ffff_ffff,
        location,
        seen_s: whereabouts & SECOND,
        is_static: whereabouts & PERMANENT != 0,
    })
}

#[inline]
fn settle(place: &Place, new: u64) {
    let old = place.whereabouts.load(Ordering::Relaxed);
    if old != new && old & (PERMANENT | TOLD) == 0 {
        // Not to undo what the operator says at this moment.
        let _ = place.whereabouts.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Nanos {
        Nanos::from_secs(secs)
    }

    fn remote(number: u32) -> Location {
        Location::remote(Remote::from_bits(1 << 16 | number).expect("not 0"), 0)
    }

    #[test]
    fn what_was_told_is_kept_by_who_takes_over() {
        let table = MacTable::new(1024, 16, Key::default());
        let (here, there) = (Location::local(3), Location::local(4));
        table.learn(1, 7, there, at(1));
        table.learn(1, 8, there, at(1));
        assert!(table.set_permanent(1, 9, there));
        for mac in [7, 9, 10] {
            table.tell(1, mac, here, at(2));
        }
        table.tell(2, 7, here, at(2));
        // It has come round.
        table.follow(1, 7, there, at(3));
        table.learn(1, 10, there, at(3));
        assert_eq!(table.note(1, 7, there, (4, 8), at(3), |_| false), Noted::Known);
        let find = |mac| table.find(1, mac);
        assert_eq!([7, 8, 9, 10].map(find), [here, there, there, here].map(Some));
        table.take_over(1);
        assert_eq!([7, 8, 9, 10].map(find), [Some(here), None, Some(there), Some(here)]);
        let adopted = || {
            let mut macs: Vec<u64> =
                (0..table.capacity()).filter_map(|place| Some(table.adopted(place)?.mac)).collect();
            macs.sort_unstable();
            macs
        };
        assert_eq!(adopted(), [7, 10]);
        // Late.
        assert!(!table.adopt(1, 10, there, at(2)) && table.adopt(1, 8, there, at(2)));
        assert_eq!((table.find(1, 8), adopted()), (Some(there), vec![7, 8, 10]));
        // Now it is heard itself.
        table.follow(1, 7, there, at(4));
        assert_eq!((table.find(1, 7), adopted()), (Some(there), vec![8, 10]));
        assert_eq!(table.entries().find(|entry| entry.mac == 7).map(|entry| entry.seen_s), Some(4));
        // Another segment's is not taken over.
        table.follow(2, 7, there, at(4));
        assert_eq!(table.find(2, 7), Some(here));
    }

    #[test]
    fn a_station_is_followed_and_segments_are_apart() {
        let table = MacTable::new(1024, 16, Key::default());
        table.follow(1, 7, remote(1), at(1));
        assert_eq!(table.find(1, 7), None, "nobody has let it in");
        table.learn(1, 7, remote(1), at(1));
        assert_eq!((table.find(1, 7), table.find(2, 7)), (Some(remote(1)), None));
        table.follow(1, 7, remote(2), at(2));
        assert_eq!(table.find(1, 7), Some(remote(2)));
    }

    #[test]
    fn the_operators_word_stands() {
        let table = MacTable::new(1024, 16, Key::default());
        table.set_permanent(1, 7, remote(1));
        table.follow(1, 7, remote(2), at(2));
        table.learn(1, 7, remote(2), at(2));
        for mac in 100..100_000 {
            table.learn(1, mac, remote(3), at(3));
        }
        assert_eq!(table.find(1, 7), Some(remote(1)));
        table.forget(1, 7);
        assert_eq!(table.find(1, 7), None);
        table.learn(1, 7, remote(2), at(4));
        assert_eq!(table.find(1, 7), Some(remote(2)));
    }

    #[test]
    fn what_is_found_is_what_was_last_said_of_that_station() {
        // The slow twin: a map.
        let table = MacTable::new(256, 16, Key::default());
        let mut twin = std::collections::HashMap::new();
        let mut state = 1u64;
        for turn in 0..50_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (mac, to) = (state >> 40 & 0x3ff, remote((state >> 20 & 7) as u32 + 1));
            table.learn(3, mac + 1, to, at(turn));
            twin.insert(mac + 1, to);
            assert_eq!(table.find(3, mac + 1), Some(to));
        }
        let known = twin.iter().filter(|(mac, _)| table.find(3, **mac).is_some()).count();
        assert!((200..=256).contains(&known), "{known}");
        for (mac, to) in twin {
            assert!(table.find(3, mac).is_none_or(|found| found == to));
        }
    }

    #[test]
    fn locations_are_what_was_put_in() {
        for vni in 0..MAX_VNIS as u8 {
            for bits in [1 << 16, 0xffff_0fff, 7 << 16 | 4095] {
                let remote = Remote::from_bits(bits).expect("not 0");
                let location = Location::remote(remote, vni);
                assert_eq!((location.as_remote(), location.as_local()), (Some((remote, vni)), None));
                assert_eq!(Location::from_bits(location.to_bits()), Some(location));
            }
        }
        for member in [0, 1, 16_383] {
            let location = Location::local(member);
            assert_eq!((location.as_local(), location.as_remote()), (Some(member), None));
        }
    }

    #[test]
    fn every_frame_teaches_up_to_a_limit_that_others_do_not_use_up() {
        let table = MacTable::new(1024, 16, Key::default());
        let note = |mac, member| table.note(9, mac, Location::local(member), (member, 2), at(1), |_| false);
        assert_eq!([note(1, 1), note(2, 1), note(3, 1)], [Noted::New, Noted::New, Noted::Refused]);
        assert_eq!([note(1, 1), note(3, 2)], [Noted::Known, Noted::New]);
        assert_eq!(
            (table.find(9, 2), table.find(9, 3)),
            (Some(Location::local(1)), Some(Location::local(2)))
        );
        assert_eq!([table.count(1), table.count(2)], [2, 1]);
        // Who is forgotten makes room once that has been counted.
        table.sweep(0..table.capacity(), |entry| entry.mac != 2);
        table.set_count(1, 1);
        assert_eq!(table.find(9, 2), None);
        assert_eq!([note(4, 1), note(2, 1)], [Noted::New, Noted::Refused]);
        assert_eq!(table.refused.load(Ordering::Relaxed), 2);
    }

    /// RFC 7432 section 15.1.
    #[test]
    fn a_station_in_two_places_stays_in_one() {
        let table = MacTable::new(1024, 16, Key::default());
        let note = |member, secs| table.note(9, 1, Location::local(member), (member, 9), at(secs), |_| false);
        assert_eq!(note(1, 10), Noted::New);
        let moves: Vec<Noted> = (0..7).map(|turn| note(2 - turn % 2, 11 + u64::from(turn))).collect();
        assert_eq!(moves[..5], [Noted::Moved; 5]);
        // The sixth frame finds it where it is.
        assert_eq!(moves[5..], [Noted::Flapping, Noted::Known]);
        assert_eq!(table.find(9, 1), Some(Location::local(2)));
        assert_eq!(note(1, 15 + MOVES_WITHIN_S - 1), Noted::Flapping);
        assert_eq!(note(1, 15 + MOVES_WITHIN_S), Noted::Moved);
    }

    #[test]
    fn a_station_that_a_loop_moved_is_where_it_speaks_next() {
        let table = MacTable::new(1024, 16, Key::default());
        let note = |member, secs| table.note(9, 1, Location::local(member), (member, 9), at(secs), |_| false);
        note(1, 10);
        let moves = (0..6).filter(|turn| note(2 - turn % 2, 11) == Noted::Moved).count();
        assert_eq!(moves, 5);
        assert_eq!(note(1, 12), Noted::Flapping);
        // Its member is shut: it is where it speaks, and has not moved.
        let is_gone = |at| at == Location::local(2);
        assert_eq!(table.note(9, 1, Location::local(1), (1, 9), at(12), is_gone), Noted::New);
        assert_eq!((table.find(9, 1), note(2, 13)), (Some(Location::local(1)), Noted::Moved));
        assert!(table.set_permanent(9, 2, Location::local(1)));
        table.note(8, 1, Location::local(1), (1, 9), at(13), |_| false);
        table.flush(9);
        let known: Vec<(u16, u64)> = table.entries().map(|entry| (entry.segment, entry.mac)).collect();
        assert_eq!(known.len(), 2, "another segment's, and the operator's: {known:?}");
        assert_eq!((table.find(9, 1), table.find(9, 2)), (None, Some(Location::local(1))));
    }

    #[test]
    fn a_sweep_forgets_the_silent_and_never_the_operators_word() {
        let table = MacTable::new(1024, 16, Key::default());
        assert!(table.set_permanent(9, 1, Location::local(1)));
        table.note(9, 2, Location::local(1), (1, 9), at(10), |_| false);
        table.note(9, 3, Location::local(1), (1, 9), at(20), |_| false);
        table.sweep(0..table.capacity(), |entry| entry.is_static || entry.seen_s >= 20);
        let mut known: Vec<u64> = table.entries().map(|entry| entry.mac).collect();
        known.sort_unstable();
        assert_eq!(known, [1, 3]);
        assert!(table.forget(9, 1));
        assert!(!table.forget(9, 1), "nobody knows it any more");
        assert!(table.set_permanent(9, 4, remote(1)) && table.set_permanent(8, 4, remote(1)));
        table.forget_remotes(9);
        let mut known: Vec<(u16, u64)> = table.entries().map(|entry| (entry.segment, entry.mac)).collect();
        known.sort_unstable();
        assert_eq!(known, [(8, 4), (9, 3)]);
    }
}
