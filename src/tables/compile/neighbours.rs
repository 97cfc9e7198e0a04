//! The operator's neighbours: which slots they hold, and what of them changes.
//!
//! No table names them: what the neighbour table knows is what packets are sent by. So one more or less costs what one
//! costs, however many routes and rules there are.

use ahash::{AHashMap, AHashSet};

use super::*;

/// Interface slot and address in key form, and the slot in the neighbour table that they hold.
type Pinned = ((u16, u128), u32);

/// Of two for one address the later holds.
fn by_key(neighbours: &[NeighbourSpec]) -> AHashMap<(&str, IpAddr), &NeighbourSpec> {
    neighbours.iter().map(|spec| ((spec.interface.as_str(), spec.address), spec)).collect()
}

impl Compiler {
    /// Other neighbours of the operator's, everything else as it is. On an error nothing has changed.
    pub fn change_neighbours(&mut self, neighbours: Vec<NeighbourSpec>) -> Result<Retired, CompileError> {
        let (old, new) = (by_key(&self.input.neighbours), by_key(&neighbours));
        let came: Vec<&NeighbourSpec> =
            new.iter().filter(|(key, _)| !old.contains_key(*key)).map(|(_, spec)| *spec).collect();
        let went: Vec<&NeighbourSpec> =
            old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, spec)| *spec).collect();
        let pinned = self.pin_all(&came)?;
        self.pins.extend(pinned);
        // Next hops of routes go on holding theirs.
        let next_hops = if went.is_empty() { AHashSet::new() } else { self.next_hops() };
        let keys = went
            .iter()
            .filter_map(|spec| Some((self.interfaces.get(&spec.interface)?, addr_key(spec.address))));
        let mut retired = Vec::new();
        for key in keys.collect::<Vec<_>>() {
            if self.pins.get(&key).is_some_and(|slot| !next_hops.contains(slot)) {
                retired.extend(self.pins.remove(&key));
            }
        }
        self.input.neighbours = neighbours;
        self.is_due = true;
        if !self.defers {
            self.take_over();
        }
        let generation = self.tables.generation + 1;
        self.tables = Arc::new(Tables { generation, ..(*self.tables).clone() });
        Ok(Retired(retired))
    }

    /// Slots for those that have none yet.
    fn pin_all(&self, neighbours: &[&NeighbourSpec]) -> Result<Vec<Pinned>, CompileError> {
        let mut pinned = Vec::new();
        let pin = |spec: &NeighbourSpec| {
            let interface = self
                .interfaces
                .get(&spec.interface)
                .ok_or_else(|| CompileError::Unknown { what: "interface", name: spec.interface.clone() })?;
            let (address, key) = (spec.address, addr_key(spec.address));
            if self.pins.contains_key(&(interface, key)) {
                return Ok(None);
            }
            let slot = self.neighbours.pin(interface, key);
            slot.map(|slot| Some(((interface, key), slot)))
                .map_err(|_| CompileError::NeighboursFull { address })
        };
        for spec in neighbours {
            match pin(spec) {
                Ok(new) => pinned.extend(new),
                Err(error) => {
                    pinned.iter().for_each(|(_, slot)| self.neighbours.unpin(*slot));
                    return Err(error);
                }
            }
        }
        Ok(pinned)
    }

    fn slot_of(&self, spec: &NeighbourSpec) -> Option<u32> {
        let interface = self.interfaces.get(&spec.interface)?;
        self.neighbours.find(interface, addr_key(spec.address))
    }

    /// Slots that routes of the tables lead to.
    fn next_hops(&self) -> AHashSet<u32> {
        let tables = &self.tables;
        let of_routes = tables.vrfs.iter().flat_map(|vrf| &*vrf.actions).filter_map(|action| match action {
            Action::Via(hop) => Some(hop.neighbour),
            _ => None,
        });
        let of_groups = tables.groups.iter().flat_map(|group| group.hops()).map(|hop| hop.neighbour);
        of_routes.chain(of_groups).collect()
    }

    /// Tells the neighbour table which neighbours of the operator's have gone, which there are, and what of them is
    /// otherwise than before.
    pub(super) fn apply_static_neighbours(&self) {
        let (before, now) = (by_key(&self.taken.0), by_key(&self.input.neighbours));
        for (_, old) in before.iter().filter(|(key, _)| !now.contains_key(*key)) {
            if let Some(slot) = self.slot_of(old) {
                self.neighbours.forget(slot, Nanos(0));
            }
        }
        for (_, new) in now.iter().filter(|(key, new)| before.get(*key) != Some(new)) {
            if let Some(slot) = self.slot_of(new) {
                self.neighbours.set_permanent(slot, new.mac, Nanos(0));
            }
        }
        self.place_stations();
    }

    /// Tunnel end points, and the stations behind them.
    fn place_stations(&self) {
        let neighbours = &self.input.neighbours;
        let remotes = self.tables.overlays.all().iter().flat_map(|overlay| overlay.remotes().iter().copied());
        let mut remotes: Vec<u128> = remotes.collect();
        remotes.extend(neighbours.iter().filter_map(|neighbour| neighbour.remote.map(addr_key)));
        remotes.sort_unstable();
        remotes.dedup();
        // The config check has bounded them to what the table has room for.
        self.neighbours.vteps.pin(&remotes, Nanos(0));
        let station = |neighbour: &NeighbourSpec| {
            Some((self.interfaces.get(&neighbour.interface)?, mac_to_u64(neighbour.mac)))
        };
        for (segment, mac) in self.taken.0.iter().filter(|old| old.remote.is_some()).filter_map(station) {
            self.neighbours.macs.forget(segment, mac);
        }
        for new in neighbours {
            let remote = new.remote.and_then(|remote| self.neighbours.vteps.find(addr_key(remote)));
            if let (Some(remote), Some((segment, mac))) = (remote, station(new)) {
                self.neighbours.macs.set_permanent(segment, mac, Location::remote(remote, 0));
            }
        }
    }
}
