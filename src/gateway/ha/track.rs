//! What is tracked: what takes off the priority of virtual routers while it is not well.

use ahash::AHashMap;

use super::super::Gateway;
use super::group_of;
use super::paths::{PathKey, PathStatus};
use crate::config::Track;
use crate::control::TrackEntry;
use crate::ha::neighbour::Key;

/// Something that is tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tracker {
    /// In the words of the config.
    pub what: String,
    /// What it takes off at most.
    pub weight: u8,
    pub off: Off,
}

/// What it takes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Off {
    /// So much, for now: the control thread knows.
    Now(u8),
    /// All while this path carries nothing: the HA thread knows first.
    Path(PathKey),
    /// All while this node lacks sessions of the other's, and its group is not Active here: whoever is has those that
    /// live. So of two nodes that have lost each other one at most goes down, the one whose replica grows old.
    Sync,
}

impl Tracker {
    fn taken(&self, is_good: impl Fn(PathKey) -> bool, is_behind: bool) -> u8 {
        match self.off {
            Off::Sync if !is_behind => 0,
            Off::Sync => self.weight,
            Off::Now(off) => off,
            Off::Path(path) if is_good(path) => 0,
            Off::Path(_) => self.weight,
        }
    }
}

/// What all of them take off together. `is_behind`: the group is not Active, and sessions of the other node are missing.
pub(super) fn taken(trackers: &[Tracker], is_good: impl Fn(PathKey) -> bool, is_behind: bool) -> u8 {
    trackers.iter().fold(0, |sum: u8, tracker| sum.saturating_add(tracker.taken(&is_good, is_behind)))
}

/// What each of them takes off, for people.
pub(super) fn entries(trackers: &[Tracker], status: &PathStatus, is_behind: bool) -> Vec<TrackEntry> {
    let entry = |tracker: &Tracker| TrackEntry {
        what: tracker.what.clone(),
        weight: tracker.weight,
        taken: tracker.taken(|path| status.is_good(path), is_behind),
    };
    trackers.iter().map(entry).collect()
}

impl Gateway {
    /// What is tracked for each group; who names no group is one by himself.
    pub(super) fn trackers(&self) -> Vec<(String, Vec<Tracker>)> {
        let mut groups: Vec<(String, Vec<Tracker>)> = Vec::new();
        let mut places: AHashMap<String, usize> = AHashMap::new();
        for vrrp in self.config.vrrp.iter().filter(|vrrp| !vrrp.track.is_empty()) {
            let place = *places.entry(group_of(vrrp)).or_insert_with_key(|group| {
                groups.push((group.clone(), Vec::new()));
                groups.len() - 1
            });
            groups[place].1.extend(vrrp.track.iter().filter_map(|track| self.tracker(track)));
        }
        groups
    }

    fn tracker(&self, track: &Track) -> Option<Tracker> {
        let weight = track.weight.get() as u8;
        let (what, off) = if let Some(port) = &track.port {
            let live = self.ports.iter().find(|live| live.name == port.as_str());
            let is_well = live.is_some_and(|port| port.members_up() != 0);
            (format!("port {port}"), Off::Now(if is_well { 0 } else { weight }))
        } else if let Some(service) = &track.service {
            let off = self.service_takes(service.as_str(), track);
            (format!("service {service}"), Off::Now(off))
        } else if let Some(peer) = &track.bfd {
            let bfd = self.config.session_with(peer).ok()?;
            let link = self.compiler.interfaces.get(bfd.interface.as_str())?;
            (format!("bfd {peer}"), Off::Path(PathKey::Bfd((link, bfd.peer))))
        } else if track.sync == Some(true) {
            (String::from("sync"), Off::Sync)
        } else {
            let neighbour = track.neighbour.as_ref()?;
            (format!("neighbour {neighbour}"), Off::Path(PathKey::Neighbour(self.tracked_neighbour(track)?)))
        };
        Some(Tracker { what, weight, off })
    }

    fn tracked_neighbour(&self, track: &Track) -> Option<Key> {
        let neighbour = track.neighbour.as_ref()?;
        let interface = self.config.link_of(neighbour).ok()?;
        Some((self.compiler.interfaces.get(interface.name.as_str())?, neighbour.address))
    }

    /// Neighbours that are tracked, each once.
    pub(super) fn tracked_neighbours(&self) -> Vec<Key> {
        let tracked = self.config.vrrp.iter().flat_map(|vrrp| &vrrp.track);
        let mut keys: Vec<Key> = tracked.filter_map(|track| self.tracked_neighbour(track)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// In proportion to the backends that are down, rounded up; or all, while less than `healthy` are up.
    fn service_takes(&self, service: &str, track: &Track) -> u8 {
        let Some(service) = self.config.services.iter().find(|known| known.name.as_str() == service) else {
            return 0;
        };
        let (down, all) = (self.backends_down(service) as u32, service.backends.len() as u32);
        share(down, all, track.healthy.map(|healthy| healthy.get()), track.weight.get())
    }
}

/// What a service takes off with so many of its backends down: at most the weight, which is below 256.
fn share(down: u32, all: u32, healthy_percent: Option<u32>, weight: u32) -> u8 {
    let off = match healthy_percent {
        None => (weight * down).div_ceil(all.max(1)),
        Some(healthy) if (all - down) * 100 < all * healthy => weight,
        Some(_) => 0,
    };
    off as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_takes_off_in_proportion_or_all_at_once() {
        assert_eq!([0, 1, 2, 3].map(|down| share(down, 3, None, 20)), [0, 7, 14, 20]);
        assert_eq!([0, 1, 2, 3, 4].map(|down| share(down, 4, Some(50), 20)), [0, 0, 0, 20, 20]);
        assert_eq!([0, 1].map(|down| share(down, 100, Some(100), 20)), [0, 20]);
        assert_eq!([99, 100].map(|down| share(down, 100, Some(1), 20)), [0, 20]);
        assert_eq!((share(0, 0, None, 20), share(0, 0, Some(50), 20)), (0, 0), "a service without backends");
    }

    #[test]
    fn what_is_not_well_adds_up() {
        let bfd = PathKey::Bfd((1, [192, 0, 2, 1].into()));
        let tracker = |weight, off| Tracker { what: String::new(), weight, off };
        let trackers = [tracker(60, Off::Now(7)), tracker(200, Off::Path(bfd)), tracker(100, Off::Now(100))];
        assert_eq!(taken(&trackers, |path| path == bfd, true), 107);
        assert_eq!(taken(&trackers, |path| path != bfd, false), 255);
        let trackers = [tracker(60, Off::Sync), tracker(9, Off::Now(9))];
        assert_eq!([true, false].map(|is_behind| taken(&trackers, |_| true, is_behind)), [69, 9]);
    }
}
