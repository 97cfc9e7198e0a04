//! The BFD sessions of a live gateway: what they are to be, what they are, and the routes that go by them.

use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};

use ahash::AHashSet;

use super::errors_of;
use super::paths::PathPlan;
use super::runner::HaStatus;
use crate::control::{BfdEntry, BfdList, Counter};
use crate::gateway::Gateway;
use crate::ha::bfd::{BadControl, Micros, Path, Plan, SessionPlan, Settings, State, Status};
use crate::ha::neighbour::Key;

impl Gateway {
    /// The sessions and the neighbours that are tracked.
    pub(super) fn plan_paths(&self) -> PathPlan {
        let tables = self.compiler.tables();
        let session = |bfd: &crate::config::Bfd| {
            let link = self.compiler.interfaces.get(bfd.interface.as_str())?;
            let interface = tables.interfaces.get(usize::from(link))?;
            let local = match bfd.peer {
                IpAddr::V4(peer) => interface.source_v4(peer).map(IpAddr::V4),
                IpAddr::V6(peer) => interface.source_v6(peer).map(IpAddr::V6),
            };
            let interval = Micros(bfd.interval.micros());
            let settings = Settings { interval, multiplier: bfd.multiplier.get() as u8 };
            Some(SessionPlan { link, local: local?, peer: bfd.peer, settings, up: interface.up })
        };
        let sessions: Vec<SessionPlan> = self.config.bfd.iter().filter_map(session).collect();
        let neighbours = self.tracked_neighbours();
        let links = sessions.iter().map(|session| session.link);
        let links = links.chain(neighbours.iter().map(|(link, _)| *link)).collect();
        PathPlan { bfd: Plan { sessions }, neighbours, devices: self.devices_of(links) }
    }

    /// The descriptor that is readable when a path has become good or bad.
    pub fn paths_descriptor(&self) -> RawFd {
        self.ha.news.as_raw_fd()
    }

    /// Has routes follow the sessions, if one has come or gone since the last call.
    pub fn handle_paths(&mut self) {
        let mut has_news = false;
        while matches!((&self.ha.news).read(&mut [0; 256]), Ok(1..)) {
            has_news = true;
        }
        if !has_news {
            return;
        }
        // Too busy to say: it says so again.
        let Some(status) = self.ha.ask_status() else {
            self.ha.remind();
            return;
        };
        let failed = status.paths.sessions.iter().filter(|session| session.path == Path::Failed);
        let failed: AHashSet<Key> = failed.map(|session| (session.plan.link, session.plan.peer)).collect();
        if failed == *self.compiler.failed_hops() {
            return;
        }
        // As with links: first what routes mean, at once, then the FIBs, so that less specific routes take over.
        match self.compiler.change_failed_hops(failed) {
            Ok(retired) => _ = self.publish([retired]),
            Err(error) => tracing::error!(%error, "cannot withdraw routes"),
        }
        match self.compiler.recompile_routes_anew() {
            Ok(retired) => _ = self.publish([retired]),
            Err(error) => tracing::error!(%error, "cannot compile for the new paths"),
        }
    }

    pub(super) fn show_bfd(&self, status: &HaStatus) -> Option<Box<BfdList>> {
        if self.config.bfd.is_empty() {
            return None;
        }
        let entry = |session: &Status| {
            let Status { plan, state, remote, counters, .. } = session;
            Some(BfdEntry {
                interface: self.interface_name(plan.link)?,
                local: plan.local,
                peer: plan.peer,
                state: *state,
                since_s: status.now.since(session.since).as_secs(),
                diagnostic: session.diagnostic.name().to_owned(),
                remote_state: remote.state,
                remote_diagnostic: remote.diagnostic.name().to_owned(),
                discriminator: session.discriminator.get(),
                remote_discriminator: remote.discriminator,
                interval_us: plan.settings.interval.0,
                multiplier: plan.settings.multiplier,
                transmit_interval_us: session.transmit_interval.as_micros() as u64,
                detection_time_us: session.detection_time.as_micros() as u64,
                withdraws_routes: self.compiler.failed_hops().contains(&(plan.link, plan.peer)),
                came_up: counters.came_up,
                went_down: counters.went_down,
                sent: counters.sent,
                received: counters.received,
                errors: errors_of(&BadControl::ALL.map(BadControl::name), &counters.errors),
            })
        };
        Some(Box::new(BfdList {
            sessions: status.paths.sessions.iter().filter_map(entry).collect(),
            strays: errors_of(&BadControl::ALL.map(BadControl::name), &status.paths.strays),
            unresolved: status.paths.unresolved,
        }))
    }

    /// What sessions have counted; nothing without any.
    pub(in crate::gateway) fn bfd_counters(&self) -> Vec<Counter> {
        if self.config.bfd.is_empty() {
            return Vec::new();
        }
        let paths = self.ha.status().paths;
        let sum = |of: fn(&Status) -> u64| paths.sessions.iter().map(of).sum::<u64>();
        let errors = (0..BadControl::ALL.len()).map(|kind| {
            paths.strays[kind]
                + paths.sessions.iter().map(|session| session.counters.errors[kind]).sum::<u64>()
        });
        let plain = [
            ("bfd.sessions", paths.sessions.len() as u64, "BFD sessions."),
            (
                "bfd.sessions-up",
                sum(|session| u64::from(session.state == State::Up)),
                "BFD sessions that are up.",
            ),
            (
                "bfd.went-down",
                sum(|session| session.counters.went_down),
                "How often BFD sessions have left Up.",
            ),
            ("bfd.sent", sum(|session| session.counters.sent), "BFD control packets sent."),
            ("bfd.received", sum(|session| session.counters.received), "Valid BFD control packets received."),
            (
                "bfd.unresolved",
                paths.unresolved,
                "BFD control packets not sent: the peer's MAC address was not known.",
            ),
            ("bfd.not-sent", paths.not_sent, "BFD control packets, ARP and ND that no device took."),
        ];
        let counter = |name: String, value, explanation: &str| Counter {
            name,
            value,
            explanation: explanation.to_owned(),
        };
        let mut counters: Vec<Counter> =
            plain.map(|(name, value, says)| counter(name.to_owned(), value, says)).into();
        counters.extend(BadControl::ALL.iter().zip(errors).map(|(bad, count)| {
            counter(
                format!("bfd.error.{}", bad.name()),
                count,
                "BFD control packets refused: see the manual on BFD.",
            )
        }));
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::neighbours::addr_key;
    use crate::pipeline::route;
    use crate::tables::Tables;

    const CONFIG: &str = r#"schema = 1
[[port]]
name = "p"
device = "eth1"
[[interface]]
name = "up"
port = "p"
addresses = ["192.0.2.1/24"]
[[route]]
prefix = "10.0.0.0/8"
via = ["192.0.2.8"]
[[route]]
prefix = "10.1.0.0/16"
via = ["192.0.2.9"]
[[route]]
prefix = "10.2.0.0/16"
via = ["192.0.2.8", "192.0.2.9"]
"#;

    #[test]
    fn routes_by_a_next_hop_that_has_failed_are_not_used() {
        let config = Config::parse(CONFIG, "gw.toml").expect("a config");
        let (node, mut compiler) = crate::replay::compile(&config, 1, false).expect("tables");
        let up = compiler.interfaces.get("up").expect("it is there");
        let [a, b] = [8, 9].map(|host| IpAddr::from([192, 0, 2, host]));
        let hop = |tables: &Tables, dst: [u8; 4]| {
            let slot = route::of_own(tables, 0, dst.into())?.1?;
            [a, b].into_iter().find(|hop| node.neighbours.find(up, addr_key(*hop)) == Some(slot))
        };
        let of_each = |tables: &Tables, net: u8| {
            let mut hops: Vec<_> = (0..64).map(|host| hop(tables, [10, net, host, 1])).collect();
            hops.sort_unstable();
            hops.dedup();
            hops
        };
        let (by_a, by_b) = (vec![Some(a)], vec![Some(b)]);
        let both = |tables: &Tables| [0, 1, 2].map(|net| of_each(tables, net));
        let before = both(compiler.tables());
        assert_eq!(before[..2], [by_a.clone(), by_b]);
        let (routes, generation) = (compiler.tables().epochs.routes, compiler.tables().generation);
        let quick = compiler.change_failed_hops([(up, b)].into_iter().collect()).expect("tables");
        assert_eq!(both(compiler.tables()), [by_a.clone(), vec![None], by_a.clone()], "no packet goes there");
        let then = compiler.recompile_routes_anew().expect("tables");
        assert_eq!(
            both(compiler.tables()),
            [by_a.clone(), by_a.clone(), by_a],
            "the less specific one is used"
        );
        assert!(compiler.tables().epochs.routes > routes && compiler.tables().generation == generation + 2);
        let quick_back = compiler.change_failed_hops(AHashSet::new()).expect("tables");
        let back = compiler.recompile_routes_anew().expect("tables");
        assert_eq!(both(compiler.tables()), before);
        [quick, then, quick_back, back].into_iter().for_each(|retired| retired.release(&node.neighbours));
        assert!(node.neighbours.find(up, addr_key(b)).is_some(), "what routes go by is pinned again");
    }
}
