//! When whom is asked, and what follows from the results.
//!
//! Every target has one timer: the begin of its next probe, or what the probe under way waits for. A packet finds its
//! probe by its flow. So neither time nor packets make anything look at more targets than it is about.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use rustls::ClientConfig;

use super::connection::{Connection, Stack};
use super::{Event, Flow, Outside, PORTS, Reason, Target, Verdict, datagram, tls};
use crate::config::HealthKind;
use crate::packet::hash::{self, Key};
use crate::packet::view::protocol;
use crate::time::Nanos;

/// Probes under way at most: a socket with its buffers takes some 8 KiB.
const MAX_RUNNING: usize = 16_384;

/// How long a probe is put off for which there is no room.
const PUT_OFF: Duration = Duration::from_millis(10);

/// How long a connection waits before it tries again to send something for which there was no room.
const RETRY: Duration = Duration::from_millis(1);

/// Within what time a new target is asked for the first time, or within its interval if that is shorter: those of a
/// new config not all at once, and nobody has to wait for an interval of an hour.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// The part of an interval by which it may be shorter, so that targets do not fall into step.
const JITTER_PART: u32 = 10;

/// Source ports that are tried for a probe.
const PORT_TRIES: usize = 64;

/// The health checks of a node.
pub struct Engine {
    key: Key,
    stack: Stack,
    /// By slot.
    targets: Vec<Option<Checked>>,
    free: Vec<u32>,
    by_id: AHashMap<u32, u32>,
    /// Each slot once.
    timers: BTreeSet<(Nanos, u32)>,
    /// Slots of probes under way.
    running: AHashMap<Flow, u32>,
    /// By the file of the authorities; `None`: that is not there, or none.
    tls: AHashMap<Option<PathBuf>, Option<Arc<ClientConfig>>>,
    next_port: u16,
    put_off: u64,
}

/// A target and what is known of it.
struct Checked {
    target: Target,
    verdict: Option<Verdict>,
    /// Probes in a row that ended like the last.
    in_a_row: u32,
    last: Option<Last>,
    probes: u64,
    failures: u64,
    /// When the verdict changed.
    since: Nanos,
    /// When its next probe begins.
    begins: Nanos,
    /// Its timer.
    due: Nanos,
    probe: Option<Probe>,
}

/// The last probe that ended.
#[derive(Clone, Copy)]
struct Last {
    reason: Reason,
    latency: Duration,
    at: Nanos,
}

/// A probe under way.
struct Probe {
    flow: Flow,
    begun: Nanos,
    ends: Nanos,
    /// `None`: it is one packet, and so is its answer.
    connection: Option<Box<Connection>>,
}

/// What is known of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The target.
    pub id: u32,
    /// `None`: not yet known.
    pub verdict: Option<Verdict>,
    /// When the verdict changed.
    pub since: Nanos,
    /// How the last probe ended, how long it took, and when it ended; `None`: there was none yet.
    pub last: Option<(Reason, Duration, Nanos)>,
    /// Probes that ended.
    pub probes: u64,
    /// Those that failed.
    pub failures: u64,
}

impl Checked {
    fn new(target: Target, begins: Nanos) -> Checked {
        Checked {
            target,
            verdict: None,
            in_a_row: 0,
            last: None,
            probes: 0,
            failures: 0,
            since: begins,
            begins,
            due: begins,
            probe: None,
        }
    }

    /// True if what is known of it holds for `other` as well.
    fn is_as(&self, other: &Target) -> bool {
        let place = |target: &Target| (target.vrf, target.addr, port_of(target), target.check.kind);
        place(&self.target) == place(other)
    }

    /// Takes the result of a probe.
    fn conclude(&mut self, reason: Reason, begun: Nanos, now: Nanos) -> Option<Event> {
        let was_ok = self.last.map(|last| last.reason == Reason::Ok);
        let is_ok = reason == Reason::Ok;
        self.in_a_row = if was_ok == Some(is_ok) { self.in_a_row.saturating_add(1) } else { 1 };
        let last = Last { reason, latency: now.since(begun), at: now };
        self.last = Some(last);
        self.probes += 1;
        self.failures += u64::from(!is_ok);
        let check = &self.target.check;
        // Of a target that was never asked the first good answer is enough: nothing speaks against it.
        let verdict = match (self.verdict, is_ok) {
            (None, true) => Verdict::Up,
            (Some(Verdict::Down), true) if self.in_a_row >= check.rise.get() => Verdict::Up,
            (None | Some(Verdict::Up), false) if self.in_a_row >= check.fall.get() => Verdict::Down,
            _ => return None,
        };
        self.verdict = Some(verdict);
        self.since = now;
        Some(Event { id: self.target.id, verdict, reason, latency: last.latency, at: now })
    }
}

/// The port that is asked; 0 where there are none.
fn port_of(target: &Target) -> u16 {
    match target.check.port {
        _ if !target.check.kind.has_port() => 0,
        Some(port) => port.get() as u16,
        None => target.port,
    }
}

impl Engine {
    /// Without targets. `key` spreads the probes over time, `seed` is where the numbers of connections begin, which
    /// nobody should be able to guess.
    pub fn new(key: Key, seed: u64) -> Engine {
        let ports = u64::from(PORTS.end() - PORTS.start()) + 1;
        Engine {
            key,
            stack: Stack::new(seed),
            targets: Vec::new(),
            free: Vec::new(),
            by_id: AHashMap::new(),
            timers: BTreeSet::new(),
            running: AHashMap::new(),
            tls: AHashMap::new(),
            next_port: PORTS.start() + (hash::fold(seed ^ key.0, key.1) % ports) as u16,
            put_off: 0,
        }
    }

    /// Checks these from now on, and no others. Targets that are the same as before, by id, place and kind of check,
    /// go on with what is known of them; of others nothing is known.
    pub fn set_targets(&mut self, targets: Vec<Target>, now: Nanos, outside: &mut dyn Outside) {
        // What a file of authorities has in it may be another than before.
        self.tls.clear();
        for target in targets.iter().filter(|target| target.check.kind == HealthKind::Https) {
            let ca = &target.check.ca;
            if !self.tls.contains_key(ca) {
                let config = match ca {
                    Some(file) => outside.read(file).ok().and_then(|pem| tls::config(Some(&pem))),
                    None => tls::config(None),
                };
                self.tls.insert(ca.clone(), config);
            }
        }
        let mut old = std::mem::take(&mut self.by_id);
        for target in targets {
            match old.remove(&target.id) {
                Some(slot) => {
                    self.by_id.insert(target.id, slot);
                    self.replace(slot, target, now, outside);
                }
                None => self.add(target, now),
            }
        }
        for (_, slot) in old {
            self.give_up(slot, now, outside);
            if let Some(checked) = self.targets[slot as usize].take() {
                self.timers.remove(&(checked.due, slot));
                self.free.push(slot);
            }
        }
    }

    fn add(&mut self, target: Target, now: Nanos) {
        let first = target.check.interval.duration().min(FIRST_WITHIN);
        let begins = now.plus(self.random(target.id, 0, first));
        let id = target.id;
        // A double one is not checked twice.
        if self.by_id.contains_key(&id) {
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.targets.push(None);
            self.targets.len() as u32 - 1
        });
        self.targets[slot as usize] = Some(Checked::new(target, begins));
        self.by_id.insert(id, slot);
        self.timers.insert((begins, slot));
    }

    fn replace(&mut self, slot: u32, target: Target, now: Nanos, outside: &mut dyn Outside) {
        let Some(checked) = &mut self.targets[slot as usize] else { return };
        if checked.target == target {
            return;
        }
        let begins = checked.begins.min(now.plus(target.check.interval.duration()));
        let goes_on = checked.is_as(&target);
        // The probe under way asks as it was said before.
        self.give_up(slot, now, outside);
        let Some(checked) = &mut self.targets[slot as usize] else { return };
        if goes_on {
            checked.target = target;
            checked.begins = begins;
        } else {
            let due = checked.due;
            *checked = Checked { due, ..Checked::new(target, begins) };
        }
        self.set_timer(slot, begins.max(now));
    }

    /// Ends a probe without a result.
    fn give_up(&mut self, slot: u32, now: Nanos, outside: &mut dyn Outside) {
        let Some(checked) = &mut self.targets[slot as usize] else { return };
        let Some(mut probe) = checked.probe.take() else { return };
        if let Some(connection) = &mut probe.connection {
            connection.abort(&probe.flow, checked.target.vrf, (&mut self.stack, now), outside);
        }
        self.running.remove(&probe.flow);
        outside.forget(&probe.flow);
    }

    /// When [`Engine::advance`] has something to do.
    pub fn next_deadline(&self) -> Nanos {
        self.timers.first().map_or(Nanos(u64::MAX), |(due, _)| *due)
    }

    /// Targets.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Probes under way.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Probes that were put off because there was no room for them.
    pub fn put_off(&self) -> u64 {
        self.put_off
    }

    /// What is known of a target.
    pub fn status_of(&self, id: u32) -> Option<Status> {
        let slot = *self.by_id.get(&id)?;
        let checked = self.targets[slot as usize].as_ref()?;
        Some(Status {
            id,
            verdict: checked.verdict,
            since: checked.since,
            last: checked.last.map(|last| (last.reason, last.latency, last.at)),
            probes: checked.probes,
            failures: checked.failures,
        })
    }

    /// What is known of all targets, in no order.
    pub fn status(&self) -> impl Iterator<Item = Status> {
        self.by_id.keys().filter_map(|id| self.status_of(*id))
    }

    /// Does what is due.
    pub fn advance(&mut self, now: Nanos, outside: &mut dyn Outside) {
        while let Some((_, slot)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            let Some(checked) = &self.targets[slot as usize] else {
                unreachable!("a target takes its timer with it")
            };
            match &checked.probe {
                None => self.begin(slot, now, outside),
                Some(probe) if probe.ends <= now => {
                    let is_reachable = outside.is_reachable(checked.target.vrf, checked.target.addr);
                    let reason = if is_reachable { Reason::Timeout } else { Reason::Unreachable };
                    self.end(slot, reason, now, outside);
                }
                Some(_) => self.step(slot, None, now, outside),
            }
        }
    }

    /// Takes a packet to the gateway that came in by `vrf`: `l3` is all of it, its headers are right, `l4` is the
    /// offset of its upper layer `upper`. False: it is not about a probe.
    pub fn receive(
        &mut self,
        (l3, l4, upper): (&[u8], usize, u8),
        vrf: u16,
        now: Nanos,
        outside: &mut dyn Outside,
    ) -> bool {
        let Some(flow) = datagram::flow_of(l3, l4, upper, vrf) else { return false };
        let Some(slot) = self.running.get(&flow).copied() else { return false };
        let Some(Checked { target, probe: Some(probe), probes, .. }) = &self.targets[slot as usize] else {
            unreachable!("what runs has a probe")
        };
        if probe.connection.is_some() {
            self.step(slot, Some(l3), now, outside);
            return true;
        }
        if datagram::is_error(l3, l4, upper) {
            if let Some(reason) = datagram::error(l3, l4, upper) {
                self.end(slot, reason, now, outside);
            }
            return true;
        }
        // With a wrong checksum it did not come.
        let Some(payload) = datagram::payload(l3, l4, &flow) else { return true };
        let reason = match &target.check.expect {
            // Not the one we wait for.
            _ if upper != protocol::UDP && !datagram::is_echo_of(payload, *probes as u16) => return true,
            Some(expected) if !payload.starts_with(expected) => Reason::Answer,
            _ => Reason::Ok,
        };
        self.end(slot, reason, now, outside);
        true
    }

    /// Begins a probe, unless there is no room for it.
    fn begin(&mut self, slot: u32, now: Nanos, outside: &mut dyn Outside) {
        let Some(Checked { target, probes, .. }) = &self.targets[slot as usize] else { return };
        let (vrf, id, check) = (target.vrf, target.id, Arc::clone(&target.check));
        let (peer, peer_port, round) = (target.addr, port_of(target), *probes);
        let from = outside.source(vrf, peer, check.source_for(peer));
        let upper = match check.kind {
            HealthKind::Tcp | HealthKind::Http | HealthKind::Https => protocol::TCP,
            HealthKind::Udp => protocol::UDP,
            HealthKind::Icmp => Flow::icmp_of(peer),
        };
        let flow = from.map(|from| {
            let flow = Flow { vrf: from.vrf, protocol: upper, own: from.addr, own_port: 0, peer, peer_port };
            self.free_flow(flow, outside)
        });
        // What cannot even be asked fails; what only has to wait does not.
        if flow == Some(None) {
            self.put_off += 1;
            self.set_timer(slot, now.plus(PUT_OFF));
            return;
        }
        let interval = check.interval.duration();
        let period = interval - self.random(id, round as u32 ^ 1 << 31, interval / JITTER_PART);
        let Some(checked) = &mut self.targets[slot as usize] else { return };
        // Not one after the other what could not be done in time.
        let next = checked.begins.plus(period);
        checked.begins = if next <= now { now.plus(period) } else { next };
        let Some(flow) = flow.flatten() else {
            self.conclude(slot, Reason::NoRoute, now, now, outside);
            return;
        };
        let connection = match upper {
            protocol::TCP => {
                let tls = self.tls.get(&check.ca).and_then(Option::as_ref);
                let opened = Connection::open(&flow, vrf, &check, tls, (&mut self.stack, now), outside);
                match opened {
                    Ok(opened) => Some(Box::new(opened)),
                    Err(reason) => {
                        outside.forget(&flow);
                        self.conclude(slot, reason, now, now, outside);
                        return;
                    }
                }
            }
            protocol::UDP => {
                outside.send(vrf, &datagram::udp(&flow, check.send.as_deref().unwrap_or_default()));
                None
            }
            _ => {
                outside.send(vrf, &datagram::echo(&flow, round as u16));
                None
            }
        };
        self.running.insert(flow, slot);
        checked.probe = Some(Probe { flow, begun: now, ends: now.plus(check.timeout()), connection });
        self.wait(slot, now);
    }

    /// The flow with a port that is free; `None`: there is no room for it.
    fn free_flow(&mut self, flow: Flow, outside: &mut dyn Outside) -> Option<Flow> {
        if self.running.len() >= MAX_RUNNING || !outside.has_room() {
            return None;
        }
        for _ in 0..PORT_TRIES {
            let own_port = self.next_port;
            self.next_port = if own_port == *PORTS.end() { *PORTS.start() } else { own_port + 1 };
            let flow = Flow { own_port, ..flow };
            if !self.running.contains_key(&flow) && outside.expect(&flow) {
                return Some(flow);
            }
        }
        None
    }

    /// Goes on with a connection.
    fn step(&mut self, slot: u32, packet: Option<&[u8]>, now: Nanos, outside: &mut dyn Outside) {
        let Some(Checked { target, probe: Some(probe), .. }) = &mut self.targets[slot as usize] else {
            return;
        };
        let Some(connection) = &mut probe.connection else { return };
        let at = (&mut self.stack, now);
        match connection.step(packet, &probe.flow, target.vrf, &target.check, at, outside) {
            Some(reason) => self.end(slot, reason, now, outside),
            None => self.wait(slot, now),
        }
    }

    /// Sets the timer to what the probe under way waits for.
    fn wait(&mut self, slot: u32, now: Nanos) {
        let Some(Checked { probe: Some(probe), .. }) = &mut self.targets[slot as usize] else { return };
        let connection = probe.connection.as_mut();
        let due = connection.and_then(|connection| connection.due(&probe.flow, &mut self.stack, now));
        // What is due at once has just been done, as far as there was room.
        let due = due.map(|due| if due <= now { now.plus(RETRY) } else { due });
        let due = due.map_or(probe.ends, |due| due.min(probe.ends));
        self.set_timer(slot, due);
    }

    fn end(&mut self, slot: u32, reason: Reason, now: Nanos, outside: &mut dyn Outside) {
        let begun = self.targets[slot as usize].as_ref().and_then(|checked| checked.probe.as_ref());
        let begun = begun.map_or(now, |probe| probe.begun);
        self.give_up(slot, now, outside);
        self.conclude(slot, reason, begun, now, outside);
    }

    fn conclude(&mut self, slot: u32, reason: Reason, begun: Nanos, now: Nanos, outside: &mut dyn Outside) {
        let Some(checked) = &mut self.targets[slot as usize] else { return };
        let event = checked.conclude(reason, begun, now);
        let begins = checked.begins.max(now.plus(RETRY));
        self.set_timer(slot, begins);
        if let Some(event) = event {
            outside.report(event);
        }
    }

    fn set_timer(&mut self, slot: u32, due: Nanos) {
        let Some(checked) = &mut self.targets[slot as usize] else { return };
        self.timers.remove(&(checked.due, slot));
        checked.due = due;
        self.timers.insert((due, slot));
    }

    /// A time below `limit`, another for each target and round, and in each run the same.
    fn random(&self, id: u32, round: u32, limit: Duration) -> Duration {
        let random = hash::address(self.key, id.into(), round);
        Duration::from_nanos(random % (limit.as_nanos() as u64).max(1))
    }
}
