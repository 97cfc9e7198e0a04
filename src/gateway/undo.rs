//! What takes the last commits back: with each small one the changes that undo it are kept, so that going back costs what
//! going forth did, however large the config is. Whole documents, and commits that had to do with members or backends
//! that go by themselves, are not undone so: a rollback across them reads the document.

use std::collections::VecDeque;

use ahash::AHashMap;

use super::Gateway;
use super::requests::is_key;
use super::revisions::Durable;
use crate::config::{self, Member, Name, NextHop, Route, RouteTarget, RuleName};
use crate::control::{Fault, GroupMembers, NeighbourKey, Patch, RouteKey, ServiceBackends};
use crate::tables::rib::Target;

/// Commits that can be undone, one after the other.
const MOST: usize = 256;
/// Memory of what undoes them.
const MOST_BYTES: usize = 8 << 20;
/// Single changes that are made in one go: more are compiled sooner together.
const MOST_CHANGES: u64 = 256;

/// What undoes the last commits, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct Undo {
    /// Revision, and what leads from it to the one before.
    commits: VecDeque<(u64, Vec<Patch>)>,
    bytes: usize,
}

impl Undo {
    /// A commit was made; `None`: it cannot be undone, and with it nothing before.
    pub fn note(&mut self, revision: u64, undo: Option<Vec<Patch>>) {
        let Some(patches) = undo else {
            *self = Undo::default();
            return;
        };
        self.bytes += bytes_of(&patches);
        self.commits.push_back((revision, patches));
        while self.commits.len() > MOST || self.bytes > MOST_BYTES {
            let Some((_, oldest)) = self.commits.pop_front() else { return };
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// What leads from the newest revision back to this one.
    pub fn back_to(&self, revision: u64) -> Option<Vec<Patch>> {
        let first = self.commits.iter().position(|(number, _)| *number == revision + 1)?;
        let newest_first = self.commits.iter().skip(first).rev();
        let patches: Vec<Patch> = newest_first.flat_map(|(_, patches)| patches.iter().cloned()).collect();
        (patches.iter().map(Patch::changes).sum::<u64>() <= MOST_CHANGES).then_some(patches)
    }
}

fn bytes_of(patches: &[Patch]) -> usize {
    patches.iter().map(|patch| size_of::<Patch>() + patch.memory_bytes()).sum()
}

impl Gateway {
    /// Makes all of these changes, or none: what undoes them; `None`: only the document does. `durable`: what of them is
    /// config.
    pub(super) fn change_noting(
        &mut self,
        patches: &[Patch],
        durable: &[Durable],
    ) -> Result<Option<Vec<Patch>>, Fault> {
        let undo = self.undo_of(patches, durable);
        let of_rules = self.change(patches)?;
        Ok(undo.map(|mut undo| {
            undo.extend(of_rules);
            undo
        }))
    }

    /// What undoes these changes, which are about to be made, but for those of rules, which say it as they are made.
    fn undo_of(&self, patches: &[Patch], durable: &[Durable]) -> Option<Vec<Patch>> {
        let changes = patches.iter().map(Patch::changes).sum::<u64>();
        if changes > MOST_CHANGES || !durable.iter().all(|durable| matches!(durable, Durable::Same)) {
            return None;
        }
        let mut undo = Vec::new();
        self.undo_routes(patches, &mut undo)?;
        self.undo_neighbours(patches, &mut undo);
        self.undo_members(patches, &mut undo)?;
        self.undo_services(patches, &mut undo)?;
        Some(undo)
    }

    fn undo_routes(&self, patches: &[Patch], undo: &mut Vec<Patch>) -> Option<()> {
        // Of a prefix that comes up several times it counts what it was at first.
        let mut keys: Vec<RouteKey> = Vec::new();
        for patch in patches {
            match patch {
                Patch::RouteAdd(routes) => keys.extend(
                    routes.iter().map(|route| RouteKey { vrf: route.vrf.clone(), prefix: route.prefix }),
                ),
                Patch::RouteDel(deleted) => keys.extend(deleted.iter().cloned()),
                _ => {}
            }
        }
        let mut came: Vec<RouteKey> = Vec::new();
        let mut went: Vec<Route> = Vec::new();
        let mut seen = ahash::AHashSet::new();
        keys.retain(|key| seen.insert((key.vrf.clone(), key.prefix)));
        for key in keys {
            match self.route_in_force(&key) {
                Ok(Some(route)) => went.push(route),
                // What came and went in one commit is not there to be deleted.
                Ok(None) if self.comes_to_stay(patches, &key) => came.push(key),
                Ok(None) => {}
                Err(NoWords) => return None,
            }
        }
        undo.extend((!came.is_empty()).then_some(Patch::RouteDel(came)));
        undo.extend((!went.is_empty()).then_some(Patch::RouteAdd(went)));
        Some(())
    }

    /// Whether the last word on a prefix is that it is there.
    fn comes_to_stay(&self, patches: &[Patch], key: &RouteKey) -> bool {
        let word = |patch: &Patch| match patch {
            Patch::RouteAdd(routes) => {
                routes.iter().any(|route| route.vrf == key.vrf && route.prefix == key.prefix).then_some(true)
            }
            Patch::RouteDel(keys) => keys.contains(key).then_some(false),
            _ => None,
        };
        patches.iter().rev().find_map(word).unwrap_or(false)
    }

    fn route_in_force(&self, key: &RouteKey) -> Result<Option<Route>, NoWords> {
        let Some(vrf) = self.compiler.vrfs.get(key.vrf.as_str()) else { return Ok(None) };
        let rib = self.compiler.rib();
        let Some(id) = rib.get(vrf, key.prefix.net()) else { return Ok(None) };
        let target = match rib.target(id) {
            Target::Blackhole => RouteTarget::Blackhole,
            Target::Unreachable => RouteTarget::Unreachable,
            // Nobody writes those.
            Target::Vrf(_) => return Err(NoWords),
            Target::Via(hops) => {
                let name = |name: &str| Name::new(name).map_err(|_| NoWords);
                let hop = |hop: &crate::tables::rib::Hop| {
                    let other = (hop.vrf != vrf).then(|| name(self.compiler.vrfs.name(hop.vrf)));
                    let interface = hop.interface.map(|slot| name(self.compiler.interfaces.name(slot)));
                    let (vrf, interface) = (other.transpose()?, interface.transpose()?);
                    Ok(NextHop { address: hop.address, vrf, interface })
                };
                let hops = hops.iter().map(hop).collect::<Result<Vec<_>, NoWords>>()?;
                RouteTarget::via(hops).map_err(|_| NoWords)?
            }
        };
        Ok(Some(Route { prefix: key.prefix, vrf: key.vrf.clone(), target }))
    }

    fn undo_neighbours(&self, patches: &[Patch], undo: &mut Vec<Patch>) {
        let mut keys: Vec<NeighbourKey> = Vec::new();
        let mut note = |key: NeighbourKey| {
            if !keys.contains(&key) {
                keys.push(key);
            }
        };
        for patch in patches {
            match patch {
                Patch::NeighbourAdd(added) => added.iter().for_each(|new| {
                    note(NeighbourKey { interface: new.interface.clone(), address: new.address });
                }),
                Patch::NeighbourDel(deleted) => deleted.iter().cloned().for_each(&mut note),
                _ => {}
            }
        }
        let (mut came, mut went) = (Vec::new(), Vec::new());
        let after = self.neighbours_after(patches).unwrap_or_default();
        for key in keys {
            match self.config.neighbours.iter().find(|known| is_key(known, &key)) {
                Some(known) => went.push(known.clone()),
                None if after.iter().any(|now| is_key(now, &key)) => came.push(key),
                // It was learned.
                None => {}
            }
        }
        undo.extend((!came.is_empty()).then_some(Patch::NeighbourDel(came)));
        undo.extend((!went.is_empty()).then_some(Patch::NeighbourAdd(went)));
    }

    fn undo_members(&self, patches: &[Patch], undo: &mut Vec<Patch>) -> Option<()> {
        for (name, words) in last_words(patches) {
            let group = self.config.groups.iter().find(|group| group.name == *name)?;
            let (mut came, mut went) = (Vec::new(), Vec::new());
            for (member, is_in) in words {
                if self.temporary.holds(&(name.clone(), member.clone())) {
                    return None;
                }
                match (group.members.contains(member), is_in) {
                    (false, true) => came.push(member.clone()),
                    (true, false) => went.push(member.clone()),
                    _ => {}
                }
            }
            let change = |members: Vec<Member>| GroupMembers { group: name.clone(), members, ttl_s: None };
            undo.extend((!came.is_empty()).then(|| Patch::GroupDel(change(came))));
            undo.extend((!went.is_empty()).then(|| Patch::GroupAdd(change(went))));
        }
        Some(())
    }

    fn undo_services(&self, patches: &[Patch], undo: &mut Vec<Patch>) -> Option<()> {
        let mut names: Vec<&RuleName> = patches.iter().filter_map(service_of).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let service = self.config.services.iter().find(|service| service.name == *name)?;
            if self.leases.keys().any(|(of, _)| of == name) {
                return None;
            }
            undo.push(Patch::ServiceSetBackends(ServiceBackends {
                service: name.clone(),
                backends: service.backends.clone(),
                others_stay: false,
                ttl_s: None,
            }));
        }
        Some(())
    }

    /// What leads back to a revision as small changes do; `None`: its document has to be read.
    pub(super) fn small_way_back(&self, revision: u64) -> Option<Vec<Patch>> {
        let patches = self.history.undo.back_to(revision)?;
        // What goes by itself has come between.
        let is_free = |patch: &Patch| match patch {
            Patch::GroupAdd(change) | Patch::GroupDel(change) => {
                let of = |member: &Member| self.temporary.holds(&(change.group.clone(), member.clone()));
                !change.members.iter().any(of)
            }
            patch => {
                service_of(patch).is_none_or(|name| !self.leases.keys().any(|(service, _)| service == name))
            }
        };
        patches.iter().all(is_free).then_some(patches)
    }
}

/// A route that has no words of the config's.
struct NoWords;

fn service_of(patch: &Patch) -> Option<&RuleName> {
    match patch {
        Patch::ServiceSetBackends(all) => Some(&all.service),
        Patch::ServiceDelBackends(removed) => Some(&removed.service),
        Patch::ServiceSetBackend(change) => Some(&change.service),
        _ => None,
    }
}

/// By group: whether each member that is named is in it at the end.
fn last_words(patches: &[Patch]) -> AHashMap<&config::GroupName, AHashMap<&Member, bool>> {
    let mut words: AHashMap<&config::GroupName, AHashMap<&Member, bool>> = AHashMap::new();
    for patch in patches {
        if let Patch::GroupAdd(change) | Patch::GroupDel(change) = patch {
            let is_in = matches!(patch, Patch::GroupAdd(_));
            let of_group = words.entry(&change.group).or_default();
            of_group.extend(change.members.iter().map(|member| (member, is_in)));
        }
    }
    words
}
