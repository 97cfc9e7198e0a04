//! What the control socket's requests mean: changes of the running gateway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashSet;

use super::gate::RouteChange;
use super::{Gateway, deterministic, groups, rules, services, temporary, tenants};
use crate::config::{self, Config, Fate, Neighbour, Role};
use crate::control::revisions::Document;
use crate::control::{
    Backend, Belongs, Changed, Fault, GroupEntry, NeighbourKey, Object, Patch, Reply, Request, RouteKey,
    TemporaryMember,
};
use crate::neighbours::addr_key;
use crate::tables::compile::Retired;
use crate::tables::meaning;
use crate::tables::policy::{self, Policy, Touched};
use crate::time::Nanos;

impl Backend for Gateway {
    fn roles(&self) -> Vec<Role> {
        self.config.roles.clone()
    }

    fn revision(&self) -> u64 {
        self.current_revision()
    }

    fn waiting_for(&self) -> Option<u32> {
        self.waiting_author()
    }

    fn belongs(&self, object: Object<'_>) -> Belongs {
        tenants::belongs(&self.config, object)
    }

    fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
        if self.upgrade.is_under_way() && changes_config(&request) {
            return Err(Fault::refused("an upgrade is under way: what changes now might be lost"));
        }
        let before = self.node().tables.load().generation;
        self.compiler.fate = match &request {
            Request::Apply { terms, .. }
            | Request::Commit { terms, .. }
            | Request::Rollback { terms, .. } => terms.fate,
            _ => Fate::default(),
        };
        let performed = self.perform(request);
        // What comes by itself (links, verdicts, members whose time is over) is nobody's commit.
        self.compiler.fate = Fate::default();
        let mut reply = performed?;
        if let Reply::Changed(changed) = &mut reply {
            changed.generation_before = before;
        }
        Ok(reply)
    }
}

/// True if it changes what the next process begins with.
fn changes_config(request: &Request) -> bool {
    matches!(
        request,
        Request::Apply { .. } | Request::Commit { .. } | Request::Rollback { .. } | Request::Confirm { .. }
    )
}

impl Gateway {
    fn perform(&mut self, request: Request) -> Result<Reply, Fault> {
        let begun = Instant::now();
        match request {
            Request::Ping {} => Ok(Reply::Pong {}),
            Request::ShowVersion {} => Ok(Reply::Version(self.show_version())),
            Request::ShowPorts {} => Ok(Reply::Ports(self.show_ports())),
            Request::ShowInterfaces {} => Ok(Reply::Interfaces(self.show_interfaces())),
            Request::ShowRoutes(query) => Ok(Reply::Routes(self.show_routes(&query)?)),
            Request::ShowNeighbours { interface } => {
                Ok(Reply::Neighbours(self.show_neighbours(interface.as_ref())))
            }
            Request::ShowCounters {} => Ok(Reply::Counters(self.show_counters())),
            Request::ShowDrops {} => Ok(Reply::Drops(self.show_drops())),
            Request::ShowWorkers {} => Ok(Reply::Workers(self.show_workers())),
            Request::ShowDhcpRelays {} => Ok(Reply::DhcpRelays(self.show_dhcp_relays())),
            Request::ShowHa {} => Ok(Reply::Ha(self.show_ha())),
            Request::Drain(query) => Ok(Reply::Drain(self.drain(&query)?)),
            Request::DrainCancel {} => Ok(Reply::Drain(self.cancel_drain()?)),
            Request::Upgrade(query) => Ok(Reply::Upgrade(self.begin_upgrade(&query)?)),
            Request::ShowSessions(query) => Ok(Reply::Sessions(self.inspector().sessions(&query)?)),
            Request::ClearSessions(query) => Ok(Reply::Cleared(self.inspector().clear(&query)?)),
            Request::ShowNat {} => Ok(Reply::Nat(self.inspector().nat()?)),
            Request::ShowMappings(query) => Ok(Reply::Mappings(self.inspector().mappings(&query)?)),
            Request::NatMap(query) => {
                let tables = self.node().tables.load();
                Ok(Reply::NatHosts(deterministic::map(&tables.policy, &self.compiler, &query)?))
            }
            Request::NatFind(query) => {
                let tables = self.node().tables.load();
                Ok(Reply::NatHosts(deterministic::find(&tables.policy, &self.compiler, &query)?))
            }
            Request::ShowRules { after } => Ok(Reply::Rules(self.inspector().rules(after)?)),
            Request::ShowServices(query) => {
                let mut list = self.inspector().services(&query)?;
                self.note_health(&mut list);
                self.note_lease_times(&mut list);
                Ok(Reply::Services(list))
            }
            Request::ShowBridges {} => Ok(Reply::Bridges(self.show_bridges())),
            Request::ShowMacs(query) => Ok(Reply::Macs(self.show_macs(&query)?)),
            Request::BridgeAddMacs(added) => Ok(Reply::BridgeChanged(self.add_macs(&added)?)),
            Request::BridgeDelMacs(removed) => Ok(Reply::BridgeChanged(self.remove_macs(&removed)?)),
            Request::BridgeOpen(opened) => Ok(Reply::BridgeChanged(self.open_member(&opened)?)),
            Request::ShowGroups { group } => {
                let mut groups = self.inspector().groups(group.as_ref())?;
                groups.iter_mut().for_each(|group| self.note_temporary(group));
                Ok(Reply::Groups(groups))
            }
            Request::DropsExport {} => Ok(Reply::DropsExport(self.export_drops()?)),
            Request::Explain(query) => Ok(Reply::Explained(self.explain(&query)?)),
            Request::Reach(query) => Ok(Reply::Reached(self.reach(&query)?)),
            Request::Preview(query) => Ok(Reply::Previewed(self.preview(query)?)),
            Request::Apply { file_name, text, files, path, terms } if terms.pair => {
                self.begin_on_both(Document { file_name, text, files }, path, terms, begun)
            }
            Request::Commit { patches, terms } if terms.pair => {
                let document = self.document(self.current_revision())?;
                let document = document.with(&patches).map_err(Fault::refused)?;
                self.begin_on_both(document, None, terms, begun)
            }
            Request::Rollback { revision, terms } if terms.pair => {
                let document = self.document(revision)?;
                self.begin_on_both(document, None, terms, begun)
            }
            Request::ShowPairCommit { commit } => self.show_pair_commit(commit),
            Request::Apply { file_name, text, files, path, terms } => {
                self.take_document(Document { file_name, text, files }, path.as_deref(), &terms, begun)
            }
            Request::Commit { patches, terms } => self.commit(patches, &terms, begun),
            Request::Rollback { revision, terms } => self.rollback(revision, &terms, begun),
            Request::Confirm { revision, asked } => {
                self.waits_for_other_node()?;
                self.confirm(revision, asked.by, begun)
            }
            Request::ShowConvergence(query) => Ok(Reply::Convergence(self.show_convergence(query))),
            Request::ShowRevisions {} => Ok(Reply::Revisions(self.show_revisions())),
            Request::ShowRevision(query) => Ok(Reply::Document(self.show_revision(&query)?)),
            Request::Upload { .. }
            | Request::RouteAdd { .. }
            | Request::RouteDel { .. }
            | Request::NeighbourAdd { .. }
            | Request::NeighbourDel { .. }
            | Request::GroupAdd(_)
            | Request::GroupDel(_)
            | Request::RuleAdd(_)
            | Request::RuleDel { .. }
            | Request::ServiceSetBackends(_)
            | Request::ServiceDelBackends(_)
            | Request::ServiceSetBackend(_)
            | Request::Begin {}
            | Request::Abort {} => unreachable!("the session answers these"),
        }
    }
}

impl Gateway {
    /// What only a restart changes.
    pub(super) fn not_changed_live(&self, new: &Config) -> Vec<String> {
        let old = self.config();
        let differs = [
            (old.system.workers != new.system.workers, "system.workers"),
            (old.system.frames != new.system.frames, "system.frames"),
            (old.control != new.control, "control"),
            (old.flows.capacity != new.flows.capacity, "flows.capacity"),
            (old.flows.keep != new.flows.keep, "flows.keep"),
        ];
        let told = differs.iter().filter(|(differs, _)| *differs);
        told.map(|(_, what)| format!("{what} changes at the next start")).collect()
    }

    /// All of these changes, or none. What undoes those of rules; for the others see [`Gateway::change_noting`].
    pub(super) fn change(&mut self, patches: &[Patch]) -> Result<Vec<Patch>, Fault> {
        let (of_rules, of_services) = (rules::is_of_rules, services::is_of_services);
        match patches {
            [] => {}
            patches if patches.iter().all(of_rules) => return self.change_rules(patches),
            patches if patches.iter().all(of_services) => {
                return self.change_services(patches).map(|()| Vec::new());
            }
            patches if patches.iter().any(|patch| of_rules(patch) || of_services(patch)) => {
                return self.change_mixed(patches);
            }
            _ => {}
        }
        // Checked whole before anything is touched.
        self.check_patches(patches)?;
        let after = groups::changed(&self.config.groups, &self.temporary, patches)?;
        let routes = self.routes_of(patches)?;
        let neighbours = self.neighbours_after(patches);
        let now = self.now();
        let temporary = after.as_ref().map(|after| after.temporary.clone()).unwrap_or_default();
        let mut before = self.before(patches, &routes);
        let policy = after.as_ref().map(|after| self.policy_after(after)).transpose()?.flatten();
        if let (Some(before), Some(after)) = (&mut before, &after) {
            before.note_members(&after.changes);
        }
        // On an error nothing has changed; what follows cannot fail.
        let mut retired = self.compile_neighbours_and_routes(neighbours.as_deref(), routes)?;
        retired.extend(policy.map(|(policy, touched)| self.compiler.put_policy(policy, &touched)));
        if let Some(after) = after {
            self.config.groups = after.groups;
        }
        self.config.neighbours = neighbours.unwrap_or_else(|| std::mem::take(&mut self.config.neighbours));
        // Once for all of it: no packet meets the new routes with the old groups.
        if !retired.is_empty() {
            let retired = self.admitted(retired, before, None)?;
            self.forget_deleted(patches);
            self.publish(retired);
        }
        for (key, ttl) in temporary {
            self.temporary.set(key, ttl.map(|ttl| now.plus(ttl)));
        }
        Ok(Vec::new())
    }

    /// The changes of routes among these, in their order.
    pub(super) fn routes_of(&mut self, patches: &[Patch]) -> Result<Vec<RouteChange>, Fault> {
        let mut routes: Vec<RouteChange> = Vec::new();
        for patch in patches {
            match patch {
                Patch::RouteAdd(added) => {
                    routes.reserve(added.len());
                    for route in added {
                        let vrf = self.compiler.vrf_slot(route.vrf.as_str()).map_err(Fault::refused)?;
                        let target = meaning::target(&route.target, vrf, &mut self.compiler);
                        routes.push((vrf, route.prefix.net(), Some(target.map_err(Fault::refused)?)));
                    }
                }
                Patch::RouteDel(deleted) => {
                    for key in deleted {
                        let vrf = self.compiler.vrf_slot(key.vrf.as_str()).map_err(Fault::refused)?;
                        routes.push((vrf, key.prefix.net(), None));
                    }
                }
                Patch::NeighbourAdd(_)
                | Patch::NeighbourDel(_)
                | Patch::GroupAdd(_)
                | Patch::GroupDel(_)
                | Patch::RuleAdd(_)
                | Patch::RuleDel(_)
                | Patch::ServiceSetBackends(_)
                | Patch::ServiceDelBackends(_)
                | Patch::ServiceSetBackend(_) => {}
            }
        }
        Ok(routes)
    }

    /// The policy after a change of groups, and whose sessions it matters to; `None`: it is the same.
    fn policy_after(&mut self, after: &groups::After) -> Result<Option<(Arc<Policy>, Touched)>, Fault> {
        if !after.is_nested_otherwise {
            if after.changes.is_empty() {
                return Ok(None);
            }
            if let Some(changed) = self.compiler.with_members(&after.groups, &after.changes) {
                return Ok(Some(changed));
            }
        }
        let policy = self.policy_with(&after.groups)?;
        let touched = self.compiler.tables().policy.touched(&policy, &self.compiler.policy_slots);
        Ok(Some((policy, touched)))
    }

    /// Takes out members of groups and backends of services whose time is over.
    pub fn expire_members(&mut self) {
        let now = self.now();
        self.expire_backends(now);
        let due = self.temporary.due(now);
        if due.is_empty() {
            return;
        }
        match self.change(&temporary::removal(&due)) {
            Ok(_) => {
                tracing::info!(target: "softgate::audit", members = due.len(), "temporary members are gone")
            }
            Err(fault) => {
                tracing::error!(%fault, "temporary members stay for now");
                self.temporary.put_off(due, now);
            }
        }
    }

    fn note_temporary(&self, group: &mut GroupEntry) {
        let of = self.temporary.of(&group.name, self.now());
        let entry = |(member, left): (&config::Member, Duration)| TemporaryMember {
            member: member.to_string(),
            left_s: left.as_secs(),
        };
        group.temporary = of.into_iter().map(entry).collect();
    }

    /// The operator's neighbours after these changes; `None`: none of them is of neighbours.
    pub(super) fn neighbours_after(&self, patches: &[Patch]) -> Option<Vec<Neighbour>> {
        let mut after: Option<Vec<Neighbour>> = None;
        for patch in patches {
            let (added, deleted): (&[Neighbour], &[NeighbourKey]) = match patch {
                Patch::NeighbourAdd(added) => (added, &[]),
                Patch::NeighbourDel(deleted) => (&[], deleted),
                _ => continue,
            };
            let neighbours = after.get_or_insert_with(|| self.config.neighbours.clone());
            change_neighbours(neighbours, added, deleted);
        }
        after
    }

    /// Compiles the operator's neighbours, if they are to be others than the config in force has, and changes of routes.
    /// On an error nothing has changed.
    pub(super) fn compile_neighbours_and_routes(
        &mut self,
        neighbours: Option<&[Neighbour]>,
        routes: Vec<RouteChange>,
    ) -> Result<Vec<Retired>, Fault> {
        let mut retired = Vec::new();
        if let Some(neighbours) = neighbours {
            let specs = meaning::neighbours(&self.config, neighbours);
            retired.push(self.compiler.change_neighbours(specs).map_err(Fault::refused)?);
        }
        if !routes.is_empty() {
            match self.compiler.change_routes(routes) {
                Ok(new) => retired.push(new),
                Err(error) => {
                    self.take_neighbours_back(retired);
                    return Err(Fault::refused(error));
                }
            }
        }
        Ok(retired)
    }

    /// Neighbours of a commit that something else refuses: those of the config in force hold again.
    fn take_neighbours_back(&mut self, mut retired: Vec<Retired>) {
        if retired.is_empty() {
            return;
        }
        let specs = meaning::neighbours(&self.config, &self.config.neighbours);
        match self.compiler.change_neighbours(specs) {
            Ok(back) => retired.push(back),
            Err(error) => tracing::error!(%error, "cannot take back neighbours of a refused commit"),
        }
        // What the tables in use say, made anew: frees what the attempt held.
        self.publish(retired);
    }

    /// Deleted neighbours are asked for again, also those that were learned.
    pub(super) fn forget_deleted(&mut self, patches: &[Patch]) {
        let now = Nanos(self.started().elapsed().as_nanos() as u64);
        let deleted = patches.iter().filter_map(|patch| match patch {
            Patch::NeighbourDel(deleted) => Some(deleted),
            _ => None,
        });
        for key in deleted.flatten() {
            let mut known = self.config.neighbours.iter();
            if known.all(|kept| !is_key(kept, key))
                && let Some(slot) = self.neighbour_slot(key)
            {
                self.node().neighbours.forget(slot, now);
            }
        }
    }

    pub(super) fn check_patches(&self, patches: &[Patch]) -> Result<(), Fault> {
        let mut links = config::Links::new(self.config());
        // Routes that a later patch of the same commit deletes again.
        let mut added = AHashSet::new();
        for patch in patches {
            match patch {
                Patch::RouteAdd(routes) => {
                    for route in routes {
                        links.check_route(route).map_err(|(key, value, allowed)| {
                            Fault::refused(format!("route {}: {key}: {value}: {allowed}", route.prefix))
                        })?;
                    }
                    if patches.len() > 1 {
                        added.extend(routes.iter().map(|route| (route.vrf.clone(), route.prefix)));
                    }
                }
                Patch::RouteDel(keys) => {
                    for key in keys {
                        if !self.has_route(key) && !added.contains(&(key.vrf.clone(), key.prefix)) {
                            return Err(Fault::not_found(format!(
                                "no route {} in VRF {}",
                                key.prefix, key.vrf
                            )));
                        }
                    }
                }
                Patch::NeighbourAdd(neighbours) => {
                    for neighbour in neighbours {
                        let mut interfaces = self.config().interfaces.iter();
                        let interface =
                            interfaces.find(|interface| interface.name == neighbour.interface).ok_or_else(
                                || Fault::not_found(format!("no interface {}", neighbour.interface)),
                            )?;
                        config::check_neighbour(interface, neighbour.address).map_err(Fault::refused)?;
                        config::check_remote(interface, neighbour.remote).map_err(Fault::refused)?;
                    }
                }
                Patch::NeighbourDel(keys) => {
                    for key in keys {
                        if self.neighbour_slot(key).is_none() {
                            let text = format!("no neighbour {} on {}", key.address, key.interface);
                            return Err(Fault::not_found(text));
                        }
                    }
                }
                // Checked by making them.
                Patch::GroupAdd(_)
                | Patch::GroupDel(_)
                | Patch::RuleAdd(_)
                | Patch::RuleDel(_)
                | Patch::ServiceSetBackends(_)
                | Patch::ServiceDelBackends(_)
                | Patch::ServiceSetBackend(_) => {}
            }
        }
        Ok(())
    }

    /// The policy as it is with other groups.
    fn policy_with(&mut self, groups: &[Arc<config::Group>]) -> Result<Arc<Policy>, Fault> {
        let old = std::mem::replace(&mut self.config.groups, groups.to_vec());
        let compiled = policy::policy(&self.config, &mut self.compiler);
        self.config.groups = old;
        compiled.map(Arc::new).map_err(Fault::refused)
    }

    fn has_route(&self, key: &RouteKey) -> bool {
        let vrf = self.compiler.vrfs.get(key.vrf.as_str());
        vrf.is_some_and(|vrf| self.compiler.rib().get(vrf, key.prefix.net()).is_some())
    }

    fn neighbour_slot(&self, key: &NeighbourKey) -> Option<u32> {
        let interface = self.compiler.interfaces.get(key.interface.as_str())?;
        self.node().neighbours.find(interface, addr_key(key.address))
    }
}

pub(super) fn is_key(neighbour: &Neighbour, key: &NeighbourKey) -> bool {
    neighbour.interface == key.interface && neighbour.address == key.address
}

/// One pass over what is there, however many change.
fn change_neighbours(neighbours: &mut Vec<Neighbour>, added: &[Neighbour], deleted: &[NeighbourKey]) {
    let added_keys = added.iter().map(|new| (&new.interface, new.address));
    let gone: AHashSet<_> =
        deleted.iter().map(|key| (&key.interface, key.address)).chain(added_keys).collect();
    neighbours.retain(|old| !gone.contains(&(&old.interface, old.address)));
    // Of two for one address the later holds.
    let mut seen = AHashSet::new();
    let last = added.iter().rev().filter(|new| seen.insert((&new.interface, new.address)));
    let mut last: Vec<Neighbour> = last.cloned().collect();
    last.reverse();
    neighbours.append(&mut last);
}

/// `late`: what to say if not every worker uses it yet.
pub(super) fn changed(
    generation: u64,
    changed: u64,
    applied_in: Duration,
    mut warnings: Vec<String>,
    late: Option<String>,
) -> Changed {
    let applied_us = applied_in.as_micros() as u64;
    let is_late = late.is_some();
    warnings.extend(late);
    Changed { generation, applied_us, changed, late: is_late, warnings, ..Changed::default() }
}
