//! The health of services' backends: whom to check, and what follows from what the checks say.

use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ahash::AHashSet;

use super::Gateway;
use super::health::Health;
use super::readiness::Witness;
use crate::config::{Config, HealthCheck, HealthKind, Period, VirtualService};
use crate::host::probe::{Status, Target, Verdict};
use crate::tables::balance::passive::{Counted, Limit, Turn, Watch};
use crate::tables::balance::{Book, Checked, Health as BackendHealth};
use crate::tables::compile::{Compiler, DEFAULT_VRF};
use crate::tables::policy;
use crate::time::Nanos;
use crate::worker::Node;

/// The checks of a running gateway, and what they have said.
pub(super) struct Checks {
    thread: Health,
    /// Readable when verdicts are there.
    wake: UnixStream,
    book: Book,
    watch: Watch,
    /// When it is looked at next.
    look_at: Nanos,
    /// The witness that is asked.
    witness: Option<IpAddr>,
}

/// What the checks call the pair's witness: no slot of a backend.
const WITNESS: u32 = u32::MAX;

/// Time between two looks at what workers count of backends. A look takes nanoseconds for each backend and worker.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Checks {
    pub fn new(node: &Arc<Node>, started: Instant, seed: u64) -> io::Result<Checks> {
        let (wake, tell) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        tell.set_nonblocking(true)?;
        // A full pipe wakes as well as one byte does.
        let notify = move || _ = (&tell).write(&[1]);
        let thread = Health::new(node, started, seed, notify);
        let (book, watch) = (Book::default(), Watch::default());
        Ok(Checks { thread, wake, book, watch, look_at: Nanos(0), witness: None })
    }

    /// What is known of all backends that are checked; nothing if the thread is too busy to say.
    pub fn status(&self) -> Vec<Status> {
        self.thread.status(Duration::from_millis(500))
    }

    /// Ends the thread.
    pub fn stop(&mut self) {
        self.thread.stop();
    }

    /// When something changes without a verdict.
    pub fn next_step(&self) -> Option<Nanos> {
        let look_at = (!self.watch.is_empty()).then_some(self.look_at);
        self.book.next_step().into_iter().chain(look_at).min()
    }

    /// True if clients' flows have put the backend out.
    pub fn has_ejected(&self, slot: u32) -> bool {
        self.watch.is_out(slot)
    }

    /// When a backend went out or came back last, for the checks or for clients' flows.
    pub fn since(&self, slot: u32) -> Option<Nanos> {
        self.book.since(slot)
    }
}

/// Whom to check of a config, and how the results are taken.
pub(crate) fn wanted(config: &Config, compiler: &Compiler) -> (Vec<Target>, Vec<Checked>) {
    let slots = &compiler.policy_slots.backends;
    let slot_of = |service: &VirtualService, backend: &crate::config::Backend| {
        slots.wide(&policy::backend_name(service, &backend.key()))
    };
    let mut targets = Vec::new();
    let mut checked = Vec::new();
    for service in &config.services {
        if service.health.is_none() && service.passive_checks.is_none() {
            continue;
        }
        let mut backends = Vec::new();
        for backend in &service.backends {
            let Some(id) = slot_of(service, backend) else { continue };
            let vrf = compiler.vrfs.get(service.vrf_of(backend).as_str());
            let served = service.served().find_map(|(_, ports)| ports.map(|ports| ports.first()));
            let port = backend.address.port.or(served).unwrap_or(0);
            let Some(vrf) = vrf else { continue };
            let addr = backend.address.address;
            let check = service.health.iter().map(Arc::clone);
            targets.extend(check.map(|check| Target { id, vrf, addr, port, check }));
            backends.push(id);
        }
        checked.push(Checked {
            backends,
            max_ejected_percent: service.max_ejected.get(),
            slow_start: Duration::from_secs(service.slow_start_s.map_or(0, |s| u64::from(s.get()))),
        });
    }
    (targets, checked)
}

/// Whose flows are watched, and what is too much.
fn watched(config: &Config, compiler: &Compiler) -> Vec<(u32, Limit)> {
    let slots = &compiler.policy_slots.backends;
    let mut watched = Vec::new();
    for service in &config.services {
        let Some(said) = &service.passive_checks else { continue };
        let seconds = |s: u32| Duration::from_secs(s.into());
        let limit = Limit {
            failures: said.failures.get().into(),
            percent: said.percent.get().into(),
            clients: said.clients.get(),
            window: seconds(said.window_s.get()),
            eject: seconds(said.eject_s.get()),
        };
        let slot_of =
            |backend: &crate::config::Backend| slots.wide(&policy::backend_name(service, &backend.key()));
        watched.extend(service.backends.iter().filter_map(slot_of).map(|slot| (slot, limit)));
    }
    watched
}

/// The pair's witness: silent when it has not answered three times in a row, within 0.75 s.
fn witness_of(config: &Config, compiler: &Compiler) -> Option<Target> {
    let addr = config.pair.as_ref()?.witness?;
    let vrf = compiler.vrfs.get(DEFAULT_VRF)?;
    let interval = Period::from_millis(200).ok()?;
    let timeout = Period::from_millis(150).ok();
    let check = Arc::new(HealthCheck { interval, timeout, ..HealthCheck::of(HealthKind::Icmp) });
    Some(Target { id: WITNESS, vrf, addr, port: 0, check })
}

impl Gateway {
    /// Has the backends checked that the config in force names.
    pub(super) fn check_backends(&mut self) {
        let (mut targets, checked) = wanted(&self.config, &self.compiler);
        let witness = witness_of(&self.config, &self.compiler);
        let addr = witness.as_ref().map(|witness| witness.addr);
        if addr != self.checks.witness {
            let known = if addr.is_some() { Witness::Unknown } else { Witness::None };
            self.checks.witness = addr;
            self.pair.readiness().set_witness(known);
        }
        targets.extend(witness);
        self.checks.watch.set(watched(&self.config, &self.compiler).into_iter());
        let gone = self.checks.book.set_services(checked);
        // Another limit begins anew.
        let ejected: Vec<u32> = self.checks.book.ejected().collect();
        for slot in ejected.into_iter().filter(|slot| !self.checks.watch.is_out(*slot)) {
            self.checks.book.eject(slot, false, self.now());
        }
        for slot in &gone {
            self.compiler.note_health(*slot, BackendHealth::WELL);
        }
        if let Err(error) = self.checks.thread.set_targets(targets) {
            tracing::error!(%error, "the health checks do not run");
        }
        // What was said of those that are checked no more, or may be out otherwise now, is in the tables still.
        let now = self.now();
        let was_taken_back = gone.iter().any(|slot| !self.compiler.tables().backends.is_well(*slot));
        let counts_otherwise = self.note_verdicts(0..self.checks.book.services(), now);
        if was_taken_back || counts_otherwise {
            let retired = self.compiler.change_health();
            self.publish([retired]);
        }
    }

    /// What the checks of a backend have come to, if they have.
    pub(super) fn is_up(&self, slot: u32) -> Option<bool> {
        self.checks.book.verdict(slot).map(|(up, _)| up)
    }

    /// What another process has found out of backends holds until our own checks say otherwise.
    pub(super) fn believe(&mut self, backends: &[(String, bool)]) {
        let now = self.now();
        for (name, up) in backends {
            if let Some(slot) = self.compiler.policy_slots.backends.wide(name) {
                self.checks.book.note(slot, *up, now);
            }
        }
        if self.note_verdicts(0..self.checks.book.services(), now) {
            let retired = self.compiler.change_health();
            self.publish([retired]);
        }
    }

    /// Tells the compiler what the verdicts on these services come to; true if that is something new.
    fn note_verdicts(&mut self, services: impl IntoIterator<Item = usize>, now: Nanos) -> bool {
        let mut is_news = false;
        for service in services {
            for (backend, health) in self.checks.book.health(service, now) {
                if self.compiler.health(backend) != health {
                    self.compiler.note_health(backend, health);
                    is_news = true;
                }
            }
        }
        is_news
    }

    /// How many backends of a service its checks hold for down.
    pub(super) fn backends_down(&self, service: &VirtualService) -> usize {
        let slots = &self.compiler.policy_slots.backends;
        let is_down = |backend: &&crate::config::Backend| {
            let slot = slots.wide(&policy::backend_name(service, &backend.key()));
            slot.and_then(|slot| self.checks.book.verdict(slot)).is_some_and(|(up, _)| !up)
        };
        service.backends.iter().filter(is_down).count()
    }

    /// The descriptor that is readable when the checks have something to say.
    pub fn checks_descriptor(&self) -> RawFd {
        self.checks.wake.as_raw_fd()
    }

    /// Looks at what workers have counted of clients' flows, if it is time: backends that go out or come back for it.
    fn look_at_flows(&mut self, now: Nanos) -> Vec<u32> {
        if self.checks.watch.is_empty() || now < self.checks.look_at {
            return Vec::new();
        }
        self.checks.look_at = now.plus(LOOK_EVERY);
        let counters = &self.node.counters;
        let counted = |slot: u32| {
            let of_worker = counters.iter().filter_map(|worker| worker.backends.get(slot as usize));
            of_worker.fold((Counted::default(), 0), |(sum, clients), worker| {
                let opened = sum.opened + worker.flows.hits.load(Ordering::Relaxed);
                let failed = sum.failed + worker.failed.load(Ordering::Relaxed);
                // Hardly ever is there one: a swap takes the line from its worker, a look does not.
                let who = match worker.failed_clients.load(Ordering::Relaxed) {
                    0 => 0,
                    _ => worker.failed_clients.swap(0, Ordering::Relaxed),
                };
                (Counted { opened, failed }, clients | who)
            })
        };
        let turns = self.checks.watch.look(now, counted);
        let mut touched = Vec::with_capacity(turns.len());
        for (slot, turn) in turns {
            self.checks.book.eject(slot, matches!(turn, Turn::Ejected { .. }), now);
            touched.push(slot);
            let name = self.compiler.policy_slots.backends.names().get(slot as usize);
            let backend = name.map_or("?", String::as_str);
            match turn {
                Turn::Ejected { time, counted: Counted { opened, failed } } => {
                    let seconds = time.as_secs();
                    tracing::warn!(backend, failed, opened, seconds, "gets no new flows for a while");
                }
                Turn::Returned => tracing::info!(backend, "gets new flows again"),
            }
        }
        touched
    }

    fn note_witness(&self, answers: bool) {
        let known = if answers { Witness::Answers } else { Witness::Silent };
        if self.pair.readiness().witness() == known || self.checks.witness.is_none() {
            return;
        }
        self.pair.readiness().set_witness(known);
        match answers {
            true => tracing::info!("the witness answers"),
            false => tracing::warn!("the witness does not answer"),
        }
    }

    /// Acts on what the checks have said since the last call, and on what has become of slow starts.
    pub fn handle_health(&mut self) {
        while matches!((&self.checks.wake).read(&mut [0; 256]), Ok(1..)) {}
        let now = self.now();
        let mut touched: Vec<u32> = Vec::new();
        for event in self.checks.thread.verdicts().try_iter() {
            let up = event.verdict == Verdict::Up;
            if event.id == WITNESS {
                self.note_witness(up);
                continue;
            }
            let is_first = self.checks.book.verdict(event.id).is_none();
            if !self.checks.book.note(event.id, up, event.at) {
                continue;
            }
            let name = self.compiler.policy_slots.backends.names().get(event.id as usize);
            let (backend, why) = (name.map_or("?", String::as_str), event.reason);
            match (up, is_first) {
                (true, true) => tracing::info!(backend, "is up"),
                (true, false) => tracing::info!(backend, "is up again"),
                (false, _) => tracing::warn!(backend, %why, "is down"),
            }
            touched.push(event.id);
        }
        if self.checks.thread.take_lost() > 0 {
            // Too many at once: the status has what counts.
            for status in self.checks.status() {
                let Some(verdict) = status.verdict else { continue };
                if status.id == WITNESS {
                    self.note_witness(verdict == Verdict::Up);
                    continue;
                }
                if self.checks.book.note(status.id, verdict == Verdict::Up, status.since) {
                    touched.push(status.id);
                }
            }
        }
        touched.extend(self.look_at_flows(now));
        touched.extend(self.checks.book.step(now));
        if !touched.is_empty() {
            self.follow_virtual_routers();
        }
        let services: AHashSet<usize> =
            touched.into_iter().filter_map(|slot| self.checks.book.service_of(slot)).collect();
        if self.note_verdicts(services, now) {
            let retired = self.compiler.change_health();
            self.publish([retired]);
        }
    }
}
