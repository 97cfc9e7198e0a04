//! Services: backends that come and go while the gateway runs, what the checks say of them, and what is shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};

use super::Gateway;
use super::inspect::Inspector;
use super::temporary::LeaseKey;
use crate::config::{self, Backend, BackendKey, Config, RuleName, VirtualService};
use crate::control::{
    BackendChange, BackendEntry, BackendsRemoved, Fault, Patch, ServiceEntry, ServiceList, ServicesQuery,
};
use crate::host::probe::{Reason, Status, Verdict};
use crate::tables::policy::{self, Touched};
use crate::time::Nanos;

/// The services after these changes; `None` where none of the changes is of services.
fn changed(
    services: &[Arc<VirtualService>],
    patches: &[Patch],
) -> Result<Option<Vec<Arc<VirtualService>>>, Fault> {
    let mut after: Option<Vec<Arc<VirtualService>>> = None;
    for patch in patches {
        let name = match patch {
            Patch::ServiceSetBackends(all) => &all.service,
            Patch::ServiceDelBackends(removed) => &removed.service,
            Patch::ServiceSetBackend(change) => &change.service,
            _ => continue,
        };
        let after = after.get_or_insert_with(|| services.to_vec());
        let service = after.iter_mut().find(|service| service.name == *name);
        let service = service
            .ok_or_else(|| Fault::not_found(format!("no service {name}: services are made by the config")))?;
        let service = Arc::make_mut(service);
        match patch {
            Patch::ServiceSetBackends(all) if all.others_stay => add(service, &all.backends),
            Patch::ServiceSetBackends(all) => service.backends.clone_from(&all.backends),
            Patch::ServiceDelBackends(removed) => remove(service, &removed.backends)?,
            Patch::ServiceSetBackend(change) => set(service, change)?,
            _ => {}
        }
    }
    Ok(after)
}

/// Those that are there already become as they are named.
fn add(service: &mut VirtualService, backends: &[Backend]) {
    for backend in backends {
        match find(&mut service.backends, &backend.key()) {
            Some(known) => known.clone_from(backend),
            None => service.backends.push(backend.clone()),
        }
    }
}

fn remove(service: &mut VirtualService, keys: &[BackendKey]) -> Result<(), Fault> {
    for key in keys {
        let at = service.backends.iter().position(|backend| backend.key() == *key);
        let at = at.ok_or_else(|| no_backend(service, key))?;
        service.backends.remove(at);
    }
    Ok(())
}

fn no_backend(service: &VirtualService, key: &BackendKey) -> Fault {
    Fault::not_found(format!("service {} has no backend {key}; see show services", service.name))
}

/// True if it changes services.
pub(super) fn is_of_services(patch: &Patch) -> bool {
    matches!(patch, Patch::ServiceSetBackends(_) | Patch::ServiceDelBackends(_) | Patch::ServiceSetBackend(_))
}

fn set(service: &mut VirtualService, change: &BackendChange) -> Result<(), Fault> {
    for key in &change.backends {
        let Some(backend) = find(&mut service.backends, key) else { return Err(no_backend(service, key)) };
        backend.state = change.state.unwrap_or(backend.state);
        backend.weight = change.weight.unwrap_or(backend.weight);
    }
    Ok(())
}

fn find<'a>(backends: &'a mut [Backend], key: &BackendKey) -> Option<&'a mut Backend> {
    backends.iter_mut().find(|backend| backend.address == key.address && backend.vrf == key.vrf)
}

/// What changes of services come to.
pub(super) struct After {
    /// All services; those that nothing names are as they were.
    pub services: Vec<Arc<VirtualService>>,
    /// Backends that are checked have come, gone or changed.
    pub concerns_checks: bool,
}

impl Gateway {
    /// Makes all of these changes, or none: all backends of all services change in one moment.
    pub(super) fn change_services(&mut self, patches: &[Patch]) -> Result<(), Fault> {
        let Some(after) = self.services_after(patches)? else { return Ok(()) };
        let gate = self.before(patches, &[]);
        let before = std::mem::replace(&mut self.config.services, after.services);
        let compiled = policy::services(&self.config, &mut self.compiler);
        match compiled {
            Ok(made) => {
                let policy = self.compiler.tables().policy.with_services(made);
                let retired = self.compiler.put_policy(Arc::new(policy), &Touched::default());
                let retired = self.admitted(vec![retired], gate, None)?;
                self.publish(retired);
                self.services_changed(patches, after.concerns_checks);
                Ok(())
            }
            Err(error) => {
                self.config.services = before;
                Err(Fault::refused(error))
            }
        }
    }

    /// The services after those of these changes that are of services, checked; `None`: none is.
    pub(super) fn services_after(&self, patches: &[Patch]) -> Result<Option<After>, Fault> {
        let Some(services) = changed(&self.config.services, patches)? else { return Ok(None) };
        config::check_services(&services).map_err(Fault::refused)?;
        let is_checked = |of: &Arc<VirtualService>| of.health.is_some() || of.passive_checks.is_some();
        let mut concerns_checks = false;
        for (old, new) in self.config.services.iter().zip(&services) {
            if !Arc::ptr_eq(old, new) {
                config::check_service(&self.config, new).map_err(Fault::refused)?;
                concerns_checks |= is_checked(old) || is_checked(new);
            }
        }
        Ok(Some(After { services, concerns_checks }))
    }

    /// To be called when these changes are in force.
    pub(super) fn services_changed(&mut self, patches: &[Patch], concerns_checks: bool) {
        self.note_leases(patches);
        if concerns_checks {
            self.check_backends();
        }
    }

    /// Puts the backends that leave by themselves into the services of a new config. Returns those that are none any
    /// more; what the new service cannot have is given up.
    pub(super) fn join_leases(&self, config: &mut Config) -> Vec<LeaseKey> {
        let as_written = config.services.clone();
        let mut given_up = self.leases.join_services(&self.config.services, &mut config.services);
        for (at, written) in as_written.iter().enumerate() {
            let service = Arc::clone(&config.services[at]);
            if Arc::ptr_eq(&service, written) {
                continue;
            }
            if let Err(why) = config::check_service(config, &service) {
                tracing::warn!(service = %service.name, %why, "its temporary backends are given up");
                let of_it = self.leases.keys().filter(|(name, _)| *name == service.name);
                given_up.extend(of_it.cloned());
                config.services[at] = Arc::clone(written);
            }
        }
        given_up
    }

    /// When the backends that were named leave by themselves.
    fn note_leases(&mut self, patches: &[Patch]) {
        let now = self.now();
        for patch in patches {
            match patch {
                Patch::ServiceSetBackends(all) => {
                    if !all.others_stay {
                        let of_service: Vec<LeaseKey> = self
                            .leases
                            .keys()
                            .filter(|(service, _)| *service == all.service)
                            .cloned()
                            .collect();
                        of_service.into_iter().for_each(|key| self.leases.set(key, None));
                    }
                    let deadline = all.ttl_s.map(|ttl| now.plus(Duration::from_secs(ttl.get().into())));
                    for backend in &all.backends {
                        self.leases.set((all.service.clone(), backend.key()), deadline);
                    }
                }
                Patch::ServiceDelBackends(removed) => {
                    for key in &removed.backends {
                        self.leases.set((removed.service.clone(), key.clone()), None);
                    }
                }
                _ => {}
            }
        }
    }

    /// Takes out backends whose time is over: they keep the flows they have.
    pub(super) fn expire_backends(&mut self, now: Nanos) {
        let due = self.leases.due(now);
        if due.is_empty() {
            return;
        }
        let mut by_service: BTreeMap<RuleName, Vec<BackendKey>> = BTreeMap::new();
        due.iter()
            .for_each(|(service, key)| by_service.entry(service.clone()).or_default().push(key.clone()));
        for (service, backends) in by_service {
            let keys: Vec<LeaseKey> = backends.iter().map(|key| (service.clone(), key.clone())).collect();
            let removed = BackendsRemoved { service: service.clone(), backends };
            match self.change_services(&[Patch::ServiceDelBackends(removed)]) {
                Ok(()) => {
                    tracing::info!(target: "softgate::audit", %service, backends = keys.len(), "temporary backends are gone");
                }
                Err(fault) => {
                    tracing::error!(%service, %fault, "temporary backends stay for now");
                    self.leases.put_off(keys, now);
                }
            }
        }
    }

    /// Notes when backends leave by themselves.
    pub(super) fn note_lease_times(&self, list: &mut ServiceList) {
        if self.leases.is_empty() {
            return;
        }
        let now = self.now();
        for service in &self.config.services {
            let Some(entry) = list.services.iter_mut().find(|entry| entry.name == service.name.as_str())
            else {
                continue;
            };
            for (backend, entry) in service.backends.iter().zip(&mut entry.backends) {
                let left = self.leases.left(&(service.name.clone(), backend.key()), now);
                entry.leaves_s = left.map(|left| left.as_secs());
            }
        }
    }

    /// Notes what the checks say of the backends shown.
    pub(super) fn note_health(&self, list: &mut ServiceList) {
        if list.next.is_some() {
            return;
        }
        let statuses: AHashMap<u32, Status> =
            self.checks.status().into_iter().map(|status| (status.id, status)).collect();
        let services: AHashMap<&str, &Arc<VirtualService>> =
            self.config.services.iter().map(|service| (service.name.as_str(), service)).collect();
        for entry in &mut list.services {
            let is_checked =
                |said: &&&Arc<VirtualService>| said.health.is_some() || said.passive_checks.is_some();
            let Some(said) = services.get(entry.name.as_str()).filter(is_checked) else { continue };
            for (backend, entry) in said.backends.iter().zip(&mut entry.backends) {
                let name = policy::backend_name(said, &backend.key());
                let Some(slot) = self.compiler.policy_slots.backends.wide(&name) else { continue };
                let ago = |since| self.now().since(since).as_secs();
                if self.checks.has_ejected(slot) {
                    entry.health = Some(String::from("ejected"));
                    entry.changed_s = self.checks.since(slot).map(ago);
                    continue;
                }
                if said.health.is_none() {
                    entry.health = Some(String::from("up"));
                    entry.changed_s = self.checks.since(slot).map(ago);
                }
                let Some(status) = statuses.get(&slot) else { continue };
                let health = status.verdict.map_or("unknown", |verdict| match verdict {
                    Verdict::Up => "up",
                    Verdict::Down => "down",
                });
                entry.health = Some(health.to_owned());
                entry.changed_s = status.verdict.map(|_| self.now().since(status.since).as_secs());
                entry.probes = status.probes;
                entry.failures = status.failures;
                entry.note = status.last.map(|(reason, latency, _)| match reason {
                    Reason::Ok => format!("{:.1} ms", latency.as_secs_f64() * 1000.0),
                    reason => reason.to_string(),
                });
            }
        }
    }
}

impl Inspector<'_> {
    /// Services and their backends, with counters that are exact: what live flows have carried is asked of the workers
    /// first.
    pub fn services(&self, query: &ServicesQuery) -> Result<ServiceList, Fault> {
        let next = self.settle(query.after)?;
        if next.is_some() {
            return Ok(ServiceList { next, ..ServiceList::default() });
        }
        let wanted =
            |service: &&Arc<VirtualService>| query.service.as_ref().is_none_or(|name| service.name == *name);
        // All that there ever were, by service.
        let mut ever: AHashMap<&str, Vec<(u32, &str)>> = AHashMap::new();
        for (slot, name) in (0..).zip(self.compiler.policy_slots.backends.names()) {
            if let Some((service, backend)) = name.split_once('/') {
                ever.entry(service).or_default().push((slot, backend));
            }
        }
        let held = self.clients();
        let one = |service: &Arc<VirtualService>| {
            self.service(service, ever.get(service.name.as_str()).map_or(&[], Vec::as_slice), &held)
        };
        let shown: Vec<ServiceEntry> = self.config.services.iter().filter(wanted).map(one).collect();
        match &query.service {
            Some(name) if shown.is_empty() => Err(Fault::not_found(format!("no service {name}"))),
            _ => Ok(ServiceList { next: None, services: shown }),
        }
    }

    /// Backends that clients are held to: how long ago the latest flow of each client began, in seconds. Empty
    /// if no service does that.
    fn clients(&self) -> AHashMap<u32, Vec<u64>> {
        let mut held: AHashMap<u32, Vec<u64>> = AHashMap::new();
        if self.config.services.iter().any(|service| service.affinity.is_some()) {
            let all = self.node.limits.clients.all(self.now());
            all.for_each(|of| held.entry(of.backend).or_default().push(of.age_s));
        }
        held
    }

    fn service(
        &self,
        said: &VirtualService,
        ever: &[(u32, &str)],
        held: &AHashMap<u32, Vec<u64>>,
    ) -> ServiceEntry {
        let tables = self.node.tables.load();
        let slots = &self.compiler.policy_slots.backends;
        let compiled = tables.policy.services().list();
        let slot = self.compiler.policy_slots.services.get(said.name.as_str());
        let compiled = compiled.iter().find(|service| Some(service.slot) == slot);
        let places: AHashMap<u32, u32> = compiled.map_or_else(AHashMap::new, |service| {
            service.backends.iter().map(|backend| backend.slot).zip(service.shares()).collect()
        });
        let listed = said.backends.iter().map(|backend| {
            let slot = slots.wide(&policy::backend_name(said, &backend.key()));
            let places = slot.and_then(|slot| places.get(&slot).copied()).unwrap_or(0);
            self.backend(backend.key().to_string(), backend, slot, places)
        });
        let mut backends: Vec<BackendEntry> = listed.collect();
        // Who has left, and is not done yet.
        let known: AHashSet<u32> = said
            .backends
            .iter()
            .filter_map(|backend| slots.wide(&policy::backend_name(said, &backend.key())))
            .collect();
        let others = ever.iter().filter(|(slot, _)| !known.contains(slot));
        backends.extend(others.filter_map(|(slot, name)| {
            let name = name.strip_suffix(&format!("@{}", said.vrf)).unwrap_or(name).to_owned();
            let entry = self.counted(BackendEntry { name, left: true, ..BackendEntry::default() }, *slot);
            (entry.flows > 0).then_some(entry)
        }));
        let clients = said.affinity.as_ref().map(|affinity| {
            let of_backend = |slot| held.get(slot).map_or(&[][..], Vec::as_slice);
            let ages = known.iter().flat_map(of_backend);
            ages.filter(|age| **age <= u64::from(affinity.timeout_s.get())).count() as u64
        });
        ServiceEntry {
            name: said.name.to_string(),
            vrf: said.vrf.to_string(),
            address: said.address.to_string(),
            services: said.service.as_deref().unwrap_or(&[]).iter().map(ToString::to_string).collect(),
            mode: said.mode.name().to_owned(),
            on_failure: match said.on_failure {
                config::OnFailure::Reset => "reset",
                config::OnFailure::Rehash => "rehash",
                config::OnFailure::Finish => "finish",
            }
            .to_owned(),
            places: places.values().sum(),
            clients,
            flows: backends.iter().map(|backend| backend.flows).sum(),
            backends,
        }
    }

    fn backend(&self, name: String, said: &Backend, slot: Option<u32>, places: u32) -> BackendEntry {
        let level = slot.map_or(0, |slot| self.node.tables.load().backends.level(slot));
        let entry = BackendEntry {
            name,
            weight: said.weight.get(),
            state: said.state.name().to_owned(),
            places,
            takes_percent: (u32::from(level) * 100).div_ceil(255),
            ..BackendEntry::default()
        };
        slot.map_or(entry.clone(), |slot| self.counted(entry, slot))
    }

    /// With what the workers have counted.
    fn counted(&self, entry: BackendEntry, slot: u32) -> BackendEntry {
        let (mut opened, mut ended, mut packets, mut bytes) = (0, 0, 0, 0);
        let (mut lost, mut failed, mut last) = (0, 0, 0);
        for counted in self.node.counters.iter().filter_map(|worker| worker.backends.get(slot as usize)) {
            // First the ends: a flow that ends meanwhile counts as one that is.
            ended += counted.ended.load(Ordering::Relaxed);
            opened += counted.flows.hits.load(Ordering::Relaxed);
            packets += counted.flows.packets.load(Ordering::Relaxed);
            bytes += counted.flows.bytes.load(Ordering::Relaxed);
            lost += counted.lost.load(Ordering::Relaxed);
            failed += counted.failed.load(Ordering::Relaxed);
            last = last.max(counted.flows.last_hit.load(Ordering::Relaxed));
        }
        BackendEntry {
            flows: opened.saturating_sub(ended),
            opened,
            packets,
            bytes,
            lost,
            failed,
            opened_per_s: self.backend_history.rate(slot, self.now(), opened),
            last_flow_s: (last != 0).then(|| self.now().since(Nanos(last)).as_secs()),
            ..entry
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BackendAdmin;
    use crate::control::ServiceBackends;

    fn services() -> Vec<Arc<VirtualService>> {
        let service = |name: &str| -> Arc<VirtualService> {
            let text = format!(
                "name = '{name}'\naddress = '203.0.113.10'\n\
                 backends = [{{ address = '10.0.0.1:80' }}, {{ address = '10.0.0.1:80', vrf = 'blue' }}]"
            );
            Arc::new(toml::from_str(&text).expect("a service"))
        };
        vec![service("one"), service("other")]
    }

    fn told(patches: &[Patch]) -> String {
        let backend = |of: &Backend| format!("{}={} {}", of.key(), of.weight.get(), of.state.name());
        match changed(&services(), patches) {
            Ok(None) => String::from("nothing"),
            Ok(Some(after)) => after[0].backends.iter().map(backend).collect::<Vec<_>>().join(", "),
            Err(fault) => fault.to_string(),
        }
    }

    fn change(service: &str, backend: &str, state: Option<BackendAdmin>, weight: Option<u32>) -> Patch {
        Patch::ServiceSetBackend(BackendChange {
            service: service.parse().expect("a name"),
            backends: vec![backend.parse().expect("a backend")],
            state,
            weight: weight.map(|weight| config::Ranged::new(weight).expect("in range")),
        })
    }

    #[test]
    fn backends_change_one_by_one_and_all_at_once() {
        let drain = change("one", "10.0.0.1:80@blue", Some(BackendAdmin::Drain), None);
        let heavy = change("one", "10.0.0.1:80", None, Some(7));
        assert_eq!(told(&[]), "nothing");
        let both = "10.0.0.1:80=7 active, 10.0.0.1:80@blue=1 drain";
        assert_eq!(told(&[drain.clone(), heavy.clone()]), both);
        let all = |backends: &[&str]| {
            let backend = |text: &&str| toml::from_str(&format!("address = '{text}'")).expect("a backend");
            Patch::ServiceSetBackends(ServiceBackends {
                service: "one".parse().expect("a name"),
                backends: backends.iter().map(backend).collect(),
                others_stay: false,
                ttl_s: None,
            })
        };
        assert_eq!(
            told(&[all(&["10.0.0.2"]), heavy.clone()]),
            "service one has no backend 10.0.0.1:80; see show services"
        );
        assert_eq!(
            told(&[heavy, all(&["10.0.0.1:80", "10.0.0.2"])]),
            "10.0.0.1:80=1 active, 10.0.0.2=1 active"
        );
        assert_eq!(told(&[all(&[])]), "");
        let unknown = change("third", "10.0.0.1:80", None, None);
        assert_eq!(told(&[unknown]), "no service third: services are made by the config");
    }
}
