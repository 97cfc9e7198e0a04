//! What this node has learned of those around it, for the other one. Neighbours: on links where it is the Active of a virtual
//! router it tells their MAC addresses, so that a take-over asks for none of them while packets wait. Stations: on bridges of
//! a group where it is the Active, so that who takes over knows them, and tells switches where they are now
//! ([`crate::pipeline::slow`]).
//!
//! The two are on these links both, and name them alike. A neighbour that is told is a hint: it counts as stale, is asked
//! about when it is used (RFC 4861 section 7.3.3), and gives way to what this node has heard itself. A station counts as
//! heard: who does not pass frames on learns none by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use serde::{Deserialize, Serialize};

use super::Gateway;
use super::known::Station;
use crate::macs::{Entry, Location};
use crate::neighbours::{FORGET_AFTER, NeighbourTable, State, addr_key, mac_from_u64, mac_to_u64};
use crate::tables::bridge::Bridge;
use crate::tables::router_group::NO_GROUP;
use crate::time::Nanos;
use crate::worker::Spoken;

/// Time between two looks at what was learned. A drain does not wait for it, nor does another node that comes.
const LOOK: Duration = Duration::from_secs(1);

/// All of it is told again so often: before the other node, which uses none of it, forgets it.
const AGAIN: Duration = FORGET_AFTER.checked_div(2).expect("two is not zero");

/// Neighbours and stations of a letter, of some 100 bytes each.
const PIECE: usize = 10_000;

/// A letter: neighbours by the names of their interfaces, and stations.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Around {
    neighbours: BTreeMap<String, Vec<(IpAddr, [u8; 6])>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stations: Vec<Station>,
}

/// Of whom there is something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// A neighbour, by interface slot and address: its MAC address is told.
    Neighbour(u16, IpAddr),
    /// A station, by segment and MAC address: its location is told.
    Station(u16, u64),
}

/// What the other node has been told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Which run of it.
    run: Option<u64>,
    told: AHashMap<Who, u64>,
    /// When the next look is due, and when all is told again.
    look: Nanos,
    again: Nanos,
}

impl Telling {
    /// To be looked at now, whatever was told a moment ago.
    pub fn hurry(&mut self) {
        self.look = Nanos(0);
    }

    /// When there is something to do, while `run` of the other node reads letters.
    fn due(&self, run: Option<u64>) -> Option<Nanos> {
        run.map(|run| if self.run == Some(run) { self.look } else { Nanos(0) })
    }

    /// Of what is known now: what `run` has not been told. All of it is told once more after `again`.
    fn news(
        &mut self,
        run: u64,
        known: AHashMap<Who, u64>,
        (again, now): (Duration, Nanos),
    ) -> Vec<(Who, u64)> {
        if self.run != Some(run) || self.again <= now {
            self.told.clear();
            (self.run, self.again) = (Some(run), now.plus(again));
        }
        self.look = now.plus(LOOK);
        let before = std::mem::replace(&mut self.told, known);
        let is_new = |(who, what): &(&Who, &u64)| before.get(*who) != Some(*what);
        self.told.iter().filter(is_new).map(|(who, what)| (*who, *what)).collect()
    }
}

/// Takes the word of the other node for one neighbour.
fn believe(table: &NeighbourTable, link: u16, address: IpAddr, mac: [u8; 6], most: u32, now: Nanos) {
    let is_group = mac[0] & 1 != 0;
    if is_group || mac == [0; 6] {
        return;
    }
    let Ok(slot) = table.find_or_insert(link, addr_key(address), most) else { return };
    match table.word(slot).state() {
        // Heard by ourselves, or about to be.
        State::Reachable | State::Probe | State::Permanent => {}
        _ => _ = table.learn(slot, mac, false, now),
    }
}

impl Gateway {
    /// Tells the other node what it has not been told yet.
    pub(super) fn tend_around(&mut self) {
        let (run, now) = (self.pair.correspondent(), self.now());
        let Some(run) = run.filter(|_| self.around.due(run).is_some_and(|due| due <= now)) else { return };
        let (known, again) = self.known_around();
        // What was learned at the last moment, by who leaves or comes too late to be told before.
        let left_behind =
            std::mem::take(&mut *self.node.left_behind.lock().unwrap_or_else(PoisonError::into_inner));
        let names = self.compiler.interfaces.names();
        let tables = Arc::clone(self.compiler.tables());
        let mut news = self.around.news(run, known, (again, now));
        news.extend(
            left_behind
                .iter()
                .map(|entry| (Who::Station(entry.segment, entry.mac), u64::from(entry.location.to_bits()))),
        );
        for piece in news.chunks(PIECE) {
            let mut around = Around::default();
            for (who, what) in piece {
                match *who {
                    Who::Neighbour(link, address) => {
                        if let Some(name) = names.get(usize::from(link)) {
                            let told = (address, mac_from_u64(*what));
                            around.neighbours.entry(name.clone()).or_default().push(told);
                        }
                    }
                    Who::Station(segment, mac) => {
                        let location = Location::from_bits(*what as u32);
                        let entry = location.map(|location| Entry {
                            segment,
                            mac,
                            location,
                            seen_s: 0,
                            is_static: false,
                        });
                        around.stations.extend(entry.and_then(|entry| self.station(&tables, &entry)));
                    }
                }
            }
            match serde_json::to_vec(&around) {
                Ok(letter) => self.pair.post(letter),
                Err(error) => tracing::error!(%error, "what is known of neighbours cannot be written"),
            }
        }
    }

    /// What the other node is to know, and after which time all of it once more.
    fn known_around(&self) -> (AHashMap<Who, u64>, Duration) {
        let shared = &self.node.neighbours;
        let routers = self.ha.routers().iter().filter(|router| shared.roles.is_active(router.role));
        let links: AHashSet<u16> = routers.map(|router| router.link).collect();
        let entries = if links.is_empty() { Vec::new() } else { shared.entries() };
        let neighbours = entries.into_iter().filter(|entry| {
            entry.word.is_usable()
                && entry.word.state() != State::Permanent
                && links.contains(&entry.interface)
        });
        let mut known: AHashMap<Who, u64> = neighbours
            .map(|entry| (Who::Neighbour(entry.interface, entry.address), entry.word.mac()))
            .collect();
        let mut again = AGAIN;
        let bridges = &self.compiler.tables().bridges;
        let is_told = |bridge: &&Bridge| bridge.group != NO_GROUP && shared.roles.is_active(bridge.group);
        for bridge in bridges.iter().filter(is_told) {
            again = again.min(Duration::from_secs(bridge.ageing_s) / 2);
        }
        if bridges.iter().any(|bridge| is_told(&bridge)) {
            let stations = shared
                .macs
                .entries()
                .filter(|entry| bridges.of_segment(entry.segment).as_ref().is_some_and(is_told));
            known.extend(
                stations
                    .map(|entry| (Who::Station(entry.segment, entry.mac), entry.location.to_bits().into())),
            );
        }
        (known, again)
    }

    /// When [`Gateway::tend_around`] has something to do.
    pub(super) fn next_around(&self) -> Option<Nanos> {
        self.around.due(self.pair.correspondent())
    }

    /// Takes what the other node has learned: neighbours on links where both have a virtual router, and stations of bridges of
    /// a group.
    pub(super) fn hear_around(&self, around: &Around) {
        let (shared, now) = (&self.node.neighbours, self.now());
        let tables = self.node.tables.load();
        let most = tables.settings.neighbours_per_interface;
        let mut late = BTreeSet::new();
        for station in &around.stations {
            let mac = mac_to_u64(station.mac);
            let of_group = |bridge: &Bridge| bridge.group != NO_GROUP;
            let Some((bridge, location)) = self.whereabouts(&tables, station, of_group) else { continue };
            if !bridge.passes_on(&shared.roles) {
                shared.macs.tell(bridge.segment, mac, location, now);
                if !bridge.passes_on(&shared.roles) {
                    continue;
                }
                // It takes over at this moment.
                shared.macs.take_over(bridge.segment);
            } else if !shared.macs.adopt(bridge.segment, mac, location, now) {
                continue;
            }
            late.insert(bridge.number());
        }
        for bridge in late {
            self.node.speak(Spoken::Stations { bridge });
        }
        let names = self.compiler.interfaces.names();
        for (name, neighbours) in &around.neighbours {
            let link = names.iter().position(|known| known == name).map(|link| link as u16);
            let Some(link) = link.filter(|link| self.ha.routers().iter().any(|router| router.link == *link))
            else {
                continue;
            };
            for (address, mac) in neighbours {
                believe(shared, link, *address, *mac, most, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::hash::Key;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 10];
    const MOST: u32 = 4;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn host(last: u8) -> Who {
        Who::Neighbour(3, address(last))
    }

    fn known(hosts: &[(u8, u64)]) -> AHashMap<Who, u64> {
        hosts.iter().map(|(last, mac)| (host(*last), *mac)).collect()
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    #[test]
    fn what_is_new_is_told_and_all_of_it_to_who_knows_nothing() {
        let mut telling = Telling::default();
        let after = |seconds: u64| (AGAIN, at(seconds));
        assert_eq!((telling.due(None), telling.due(Some(7))), (None, Some(Nanos(0))));
        assert_eq!(telling.news(7, known(&[(1, 11)]), after(1)), [(host(1), 11)]);
        assert_eq!(telling.due(Some(7)), Some(at(2)));
        assert_eq!(telling.news(7, known(&[(1, 11)]), after(2)), []);
        assert_eq!(telling.news(7, known(&[(1, 11), (2, 22)]), after(3)), [(host(2), 22)]);
        assert_eq!(telling.news(7, known(&[(1, 12), (2, 22)]), after(4)), [(host(1), 12)]);
        // Forgotten and heard again.
        assert_eq!(telling.news(7, known(&[(2, 22)]), after(5)), []);
        assert_eq!(telling.news(7, known(&[(1, 12), (2, 22)]), after(6)), [(host(1), 12)]);
        telling.hurry();
        assert_eq!(telling.due(Some(7)), Some(Nanos(0)));
        // It has started again.
        assert_eq!(telling.due(Some(8)), Some(Nanos(0)));
        assert_eq!(telling.news(8, known(&[(1, 12), (2, 22)]), after(7)).len(), 2);
        // Before it forgets.
        assert_eq!(telling.news(8, known(&[(1, 12), (2, 22)]), after(306)), []);
        assert_eq!(telling.news(8, known(&[(1, 12), (2, 22)]), after(307)).len(), 2);
    }

    #[test]
    fn a_word_of_the_other_is_worth_less_than_what_was_heard() {
        let table = NeighbourTable::new(16, 4, Key::default());
        let found = |last: u8| {
            let slot = table.find(3, addr_key(address(last)))?;
            Some((table.word(slot).state(), table.word(slot).mac()))
        };
        let tell = |last: u8, mac| believe(&table, 3, address(last), mac, MOST, at(1));
        tell(1, MAC);
        assert_eq!(found(1), Some((State::Stale, mac_to_u64(MAC))));
        tell(1, OTHER);
        assert_eq!(found(1), Some((State::Stale, mac_to_u64(OTHER))));
        let slot = table.find(3, addr_key(address(1))).expect("it is there");
        table.learn(slot, MAC, true, at(2));
        tell(1, OTHER);
        assert_eq!(found(1), Some((State::Reachable, mac_to_u64(MAC))));
        // One that is asked for is asked for no more.
        let asked = table.find_or_insert(3, addr_key(address(2)), MOST).expect("room");
        assert!(table.begin(asked, at(1)));
        tell(2, MAC);
        assert_eq!(found(2), Some((State::Stale, mac_to_u64(MAC))));
        // No neighbour has these.
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            tell(3, mac);
            assert_eq!(found(3), None, "{mac:?}");
        }
        // The bound on learned ones is theirs as well.
        (10..20).for_each(|last| tell(last, MAC));
        assert_eq!(table.entries().len(), MOST as usize);
    }

    #[test]
    fn a_letter_is_none_about_a_commit() {
        let neighbours = BTreeMap::from([(String::from("lan"), vec![(address(1), MAC)])]);
        let stations = vec![Station {
            bridge: String::from("seg"),
            member: String::from("lan"),
            mac: MAC,
            remote: None,
            is_placed: false,
        }];
        let around = Around { neighbours, stations };
        let letter = serde_json::to_vec(&around).expect("it can be written");
        assert_eq!(serde_json::from_slice::<Around>(&letter).expect("it can be read"), around);
        assert!(serde_json::from_slice::<crate::ha::two_phase::Message>(&letter).is_err());
        assert!(serde_json::from_slice::<Around>(br#"{"commit":1}"#).is_err());
        assert!(serde_json::from_slice::<Around>(br#"{"neighbours":{},"more":1}"#).is_err());
    }
}
