//! What the control socket's requests mean: changes of the running gateway.

use std::sync::Arc;
use std::time::Instant;

use ahash::AHashSet;
use ipnet::IpNet;

use super::{Gateway, groups};
use crate::config::{self, Config, Neighbour};
use crate::control::{Backend, Changed, Fault, NeighbourKey, Patch, Reply, Request, RouteKey};
use crate::neighbours::addr_key;
use crate::tables::meaning;
use crate::tables::policy::{self, Policy};
use crate::tables::rib::Target;
use crate::time::Nanos;

impl Backend for Gateway {
    fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
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
            Request::ShowSessions(query) => Ok(Reply::Sessions(self.inspector().sessions(&query)?)),
            Request::ClearSessions(query) => Ok(Reply::Cleared(self.inspector().clear(&query)?)),
            Request::ShowNat {} => Ok(Reply::Nat(self.inspector().nat()?)),
            Request::ShowMappings(query) => Ok(Reply::Mappings(self.inspector().mappings(&query)?)),
            Request::ShowRules { after } => Ok(Reply::Rules(self.inspector().rules(after)?)),
            Request::ShowGroups { group } => Ok(Reply::Groups(self.inspector().groups(group.as_ref())?)),
            Request::DropsExport {} => Ok(Reply::DropsExport(self.export_drops()?)),
            Request::Apply { file_name, text, files } => self.apply_text(&file_name, &text, &files, begun),
            Request::Commit { patches } => self.commit(patches, begun),
            Request::Upload { .. }
            | Request::RouteAdd { .. }
            | Request::RouteDel { .. }
            | Request::NeighbourAdd { .. }
            | Request::NeighbourDel { .. }
            | Request::GroupAdd(_)
            | Request::GroupDel(_)
            | Request::Begin {}
            | Request::Abort {} => unreachable!("the session answers these"),
        }
    }
}

impl Gateway {
    fn apply_text(
        &mut self,
        file_name: &str,
        text: &str,
        files: &[(String, String)],
        begun: Instant,
    ) -> Result<Reply, Fault> {
        let mut read = |path: &str| {
            let found = files.iter().find(|(name, _)| name == path).map(|(_, text)| text.clone());
            found.ok_or_else(|| {
                std::io::Error::new(std::io::ErrorKind::NotFound, "the client did not send it")
            })
        };
        let config = Config::parse_with(text, file_name, &mut read).map_err(Fault::refused)?;
        let mut warnings = self.not_changed_live(&config);
        let generation = self.apply(config).map_err(Fault::refused)?;
        self.file_name = file_name.to_owned();
        let down =
            |port: &super::LivePort| port.why_down().map(|why| format!("port {} is down: {why}", port.name));
        warnings.extend(self.ports().iter().filter_map(down));
        Ok(changed(generation, 1, begun, warnings))
    }

    /// What only a restart changes.
    fn not_changed_live(&self, new: &Config) -> Vec<String> {
        let old = self.config();
        let differs = [
            (old.system.workers != new.system.workers, "system.workers"),
            (old.system.frames != new.system.frames, "system.frames"),
            (old.control != new.control, "control"),
            (old.flows.capacity != new.flows.capacity, "flows.capacity"),
        ];
        let told = differs.iter().filter(|(differs, _)| *differs);
        told.map(|(_, what)| format!("{what} changes at the next start")).collect()
    }

    fn commit(&mut self, patches: Vec<Patch>, begun: Instant) -> Result<Reply, Fault> {
        let changes: u64 = patches.iter().map(Patch::changes).sum();
        // Checked whole before anything is touched.
        self.check_patches(&patches)?;
        let groups = groups::changed(&self.config.groups, &patches)?;
        let policy = groups.as_ref().map(|groups| self.policy_with(groups)).transpose()?;
        let mut routes: Vec<(u16, IpNet, Option<Target>)> = Vec::new();
        for patch in &patches {
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
                Patch::NeighbourAdd(_) | Patch::NeighbourDel(_) | Patch::GroupAdd(_) | Patch::GroupDel(_) => {
                }
            }
        }
        if !routes.is_empty() {
            let retired = self.compiler.change_routes(routes).map_err(Fault::refused)?;
            self.publish(retired);
        }
        if let Some((groups, policy)) = groups.zip(policy) {
            let retired = self.compiler.change_policy(policy);
            self.publish(retired);
            self.config.groups = groups;
        }
        let mut neighbours_changed = false;
        for patch in patches {
            match patch {
                Patch::RouteAdd(_) | Patch::RouteDel(_) => {}
                Patch::NeighbourAdd(added) => {
                    neighbours_changed = true;
                    self.add_neighbours(added);
                }
                Patch::NeighbourDel(deleted) => {
                    neighbours_changed = true;
                    self.delete_neighbours(&deleted);
                }
                Patch::GroupAdd(_) | Patch::GroupDel(_) => {}
            }
        }
        if neighbours_changed {
            self.recompile().map_err(Fault::refused)?;
        }
        let generation = self.node().tables.load().generation;
        Ok(changed(generation, changes, begun, Vec::new()))
    }

    fn check_patches(&self, patches: &[Patch]) -> Result<(), Fault> {
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
                Patch::GroupAdd(_) | Patch::GroupDel(_) => {}
            }
        }
        Ok(())
    }

    /// The policy as it is with other groups.
    fn policy_with(&mut self, groups: &[config::Group]) -> Result<Arc<Policy>, Fault> {
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

    fn add_neighbours(&mut self, added: Vec<Neighbour>) {
        for new in added {
            self.config.neighbours.retain(|old| old.interface != new.interface || old.address != new.address);
            self.config.neighbours.push(new);
        }
    }

    fn delete_neighbours(&mut self, deleted: &[NeighbourKey]) {
        let now = Nanos(self.started().elapsed().as_nanos() as u64);
        for key in deleted {
            self.config.neighbours.retain(|old| old.interface != key.interface || old.address != key.address);
            if let Some(slot) = self.neighbour_slot(key) {
                self.node().neighbours.forget(slot, now);
            }
        }
    }
}

fn changed(generation: u64, changed: u64, begun: Instant, warnings: Vec<String>) -> Reply {
    Reply::Changed(Changed { generation, applied_us: begun.elapsed().as_micros() as u64, changed, warnings })
}
