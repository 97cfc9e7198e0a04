//! The MAC table of overlays: behind which remote tunnel end point a station is.
//!
//! A shared atomic table of fixed capacity. Segment and MAC address are one word, where they lead another, so that any
//! worker follows a station that moves with its first frame, and none waits. Stations are let in only by what the
//! gateway asks for or answers to (ARP, ND), where `neighbours.per_interface` is the limit; other frames move those
//! that are known. So no flood of made-up source addresses displaces anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::hash::{self, Key};
use crate::time::Nanos;
use crate::vteps::Remote;

/// Places that a station may have.
const WINDOW: usize = 16;

/// Being filled: no segment is all ones.
const CLAIMED: u64 = u64::MAX;

/// Set by the operator: never learned over, never displaced.
const PERMANENT: u64 = 1 << 31;

#[derive(Debug, Default)]
struct Place {
    /// Segment in the upper 16 bits, MAC address below; 0: free.
    station: AtomicU64,
    /// The remote in the upper half, the second in which a frame came from there in the lower.
    whereabouts: AtomicU64,
}

/// The table. Shared by all threads of a node.
#[derive(Debug)]
pub struct MacTable {
    places: Box<[Place]>,
    key: Key,
}

#[inline]
fn station(segment: u16, mac: u64) -> u64 {
    u64::from(segment) << 48 | mac & 0xffff_ffff_ffff
}

fn whereabouts(remote: Remote, now: Nanos) -> u64 {
    u64::from(remote.to_bits()) << 32 | now.as_secs() & (PERMANENT - 1)
}

impl MacTable {
    /// A table with `places`, a power of two.
    pub fn new(places: usize, key: Key) -> MacTable {
        assert!(places.is_power_of_two(), "places are found by a mask");
        MacTable { places: (0..places).map(|_| Place::default()).collect(), key }
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

    /// The remote that a station is behind. Segments are named by interface slots.
    #[inline]
    pub fn find(&self, segment: u16, mac: u64) -> Option<Remote> {
        let station = station(segment, mac);
        let place = self.place(station)?;
        let word = place.whereabouts.load(Ordering::Acquire);
        // Given to another meanwhile.
        let same = place.station.load(Ordering::Acquire) == station;
        Remote::from_bits((word >> 32) as u32).filter(|_| same)
    }

    /// A frame of a station came from `remote`: if it is known, it is there now.
    #[inline]
    pub fn follow(&self, segment: u16, mac: u64, remote: Remote, now: Nanos) {
        if let Some(place) = self.place(station(segment, mac)) {
            settle(place, whereabouts(remote, now));
        }
    }

    /// A station that the gateway has to do with is behind `remote`. Who was silent for longest makes room.
    pub fn learn(&self, segment: u16, mac: u64, remote: Remote, now: Nanos) {
        let (station, new) = (station(segment, mac), whereabouts(remote, now));
        if let Some(place) = self.place(station) {
            settle(place, new);
            return;
        }
        self.insert(station, new);
    }

    fn insert(&self, station: u64, new: u64) {
        let age = |place: &&Place| match place.station.load(Ordering::Relaxed) {
            0 => 0,
            _ => 1 + (place.whereabouts.load(Ordering::Relaxed) & (PERMANENT - 1)),
        };
        let open = |place: &&Place| place.whereabouts.load(Ordering::Relaxed) & PERMANENT == 0;
        let Some(place) = self.window(station).filter(open).min_by_key(age) else { return };
        let old = place.station.load(Ordering::Acquire);
        // Two may let one station in at the same time, in two places: the first that is found counts, the other ages.
        if old == CLAIMED
            || place.station.compare_exchange(old, CLAIMED, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return;
        }
        place.whereabouts.store(new, Ordering::Release);
        place.station.store(station, Ordering::Release);
    }

    /// The operator's word.
    pub fn set_permanent(&self, segment: u16, mac: u64, remote: Remote) {
        let (station, new) = (station(segment, mac), u64::from(remote.to_bits()) << 32 | PERMANENT);
        match self.place(station) {
            Some(place) => place.whereabouts.store(new, Ordering::Release),
            None => self.insert(station, new),
        }
    }

    /// Takes the operator's word back.
    pub fn forget(&self, segment: u16, mac: u64) {
        if let Some(place) = self.place(station(segment, mac)) {
            place.whereabouts.store(0, Ordering::Release);
        }
    }
}

#[inline]
fn settle(place: &Place, new: u64) {
    let old = place.whereabouts.load(Ordering::Relaxed);
    if old != new && old & PERMANENT == 0 {
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

    fn remote(number: u32) -> Remote {
        Remote::from_bits(1 << 16 | number).expect("not 0")
    }

    #[test]
    fn a_station_is_followed_and_segments_are_apart() {
        let table = MacTable::new(1024, Key::default());
        table.follow(1, 7, remote(1), at(1));
        assert_eq!(table.find(1, 7), None, "nobody has let it in");
        table.learn(1, 7, remote(1), at(1));
        assert_eq!((table.find(1, 7), table.find(2, 7)), (Some(remote(1)), None));
        table.follow(1, 7, remote(2), at(2));
        assert_eq!(table.find(1, 7), Some(remote(2)));
    }

    #[test]
    fn the_operators_word_stands() {
        let table = MacTable::new(1024, Key::default());
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
        let table = MacTable::new(256, Key::default());
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
}
