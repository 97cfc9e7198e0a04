//! `softgate agent`: follows a config document in etcd and writes back what became of it.
//!
//! Each new value of `PREFIX/nodes/NODE/config`, or of `PREFIX/config` where that is not there, is applied over the control
//! socket like any other client's, so it goes through the same checks, or none of it happens. `PREFIX/status/NODE` says
//! what became of it, as long as the agent lives: the key has a lease. What to do about what is seen is decided in
//! [`machine`]; [`store`] is etcd, [`gateway`] the control socket, and this the loop between them.

mod gateway;
pub mod machine;
mod settings;
pub mod status;
mod store;

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

pub use settings::{Given, Keys, Settings, Tls};

use gateway::Conditions;
use machine::{Action, Document, Machine, Running, Standing};
use status::{Applied, Health, Status};
use store::Store;

/// How often the gateway is asked how it is.
const LOOK_AFTER: Duration = Duration::from_secs(5);

/// First and longest wait before etcd is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Follows until SIGTERM or SIGINT.
pub fn run(settings: Settings) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let done = runtime.block_on(async {
        let hear = |kind| signal(kind).map_err(|error| format!("signals: {error}"));
        let mut end = End { term: hear(SignalKind::terminate())?, int: hear(SignalKind::interrupt())? };
        Agent::new(settings).follow(&mut end).await;
        Ok(())
    });
    // A gateway that is in the middle of an answer is not waited for.
    runtime.shutdown_background();
    done
}

/// The wish that the agent ends.
struct End {
    term: Signal,
    int: Signal,
}

impl End {
    async fn wished(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

struct Agent {
    begun: Instant,
    settings: Settings,
    machine: Machine,
    applied: Option<Applied>,
    health: Option<Health>,
    /// The last status that was written, with the lease that it lives by.
    written: Option<Status>,
    /// The last standing that was logged.
    logged: Option<Standing>,
}

impl Agent {
    fn new(settings: Settings) -> Agent {
        Agent {
            begun: Instant::now(),
            machine: Machine::new(settings.confirm.map(|confirm| Duration::from_secs(confirm.get().into()))),
            settings,
            applied: None,
            health: None,
            written: None,
            logged: None,
        }
    }

    async fn follow(&mut self, end: &mut End) {
        let keys = &self.settings.keys;
        tracing::info!(
            node = keys.node,
            shared = keys.shared,
            own = keys.own,
            status = keys.status,
            "agent follows"
        );
        let random = ahash::RandomState::new();
        let mut failures = 0;
        loop {
            let session = self.session(&mut failures, end).await;
            let Err(why) = session else { return };
            let wait = wait_before(failures, random.hash_one(failures));
            failures += 1;
            tracing::warn!(%why, retry_in_ms = wait.as_millis(), "etcd");
            tokio::select! {
                () = sleep(wait) => {}
                () = end.wished() => return,
            }
            // A gateway that was started anew meanwhile gets the document, whether etcd is there or not.
            self.round().await;
        }
    }

    /// Follows over one connection. `Ok`: the agent is to end.
    async fn session(&mut self, failures: &mut u32, end: &mut End) -> Result<(), String> {
        let connected = tokio::select! {
            connected = Store::connect(&self.settings) => connected?,
            () = end.wished() => return Ok(()),
        };
        let mut store = connected;
        self.written = None; // another lease
        let (seen, revision) = store.look().await?;
        self.machine.seen(seen);
        let mut watch = store.watch(revision).await?;
        *failures = 0;
        let mut look_after = interval(LOOK_AFTER);
        look_after.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = watch.changed() => {
                    changed?;
                    let (seen, _) = store.look().await?;
                    self.machine.seen(seen);
                }
                _ = look_after.tick() => {}
                why = store.lease_lost() => return Err(why),
                () = end.wished() => {
                    store.leave().await.unwrap_or_else(|why| tracing::warn!(%why, "the status stays until its lease ends"));
                    return Ok(());
                }
            }
            self.round().await;
            self.report(&mut store).await?;
        }
    }

    /// Asks the gateway how it is, and offers it what it is to run.
    async fn round(&mut self) {
        self.ask().await;
        match self.machine.action() {
            Action::Apply(document) => self.offer(document).await,
            Action::Confirm(revision) => self.confirm(revision).await,
            Action::Wait => {}
        }
        self.log();
    }

    async fn offer(&mut self, document: Document) {
        let source = document.source.clone();
        tracing::info!(document = %source, "offers");
        let Settings { confirm, max_dropped, .. } = self.settings;
        let (socket, conditions) = (self.settings.socket.clone(), Conditions { confirm, max_dropped });
        let offered = spawn_blocking(move || gateway::apply(&socket, &document, conditions)).await;
        let (outcome, changed) =
            offered.unwrap_or_else(|error| (machine::Tried::Unanswered(error.to_string()), None));
        self.machine.tried(&source, outcome);
        if let Some(changed) = changed {
            self.applied = Some(Applied::new(&source, changed));
            self.ask().await;
        }
    }

    async fn confirm(&mut self, revision: u64) {
        let socket = self.settings.socket.clone();
        let confirmed = spawn_blocking(move || gateway::confirm(&socket, revision)).await;
        match confirmed.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(true) => {
                tracing::info!(revision, "confirmed");
                self.machine.confirmed();
            }
            // Somebody has confirmed it, or it was taken back just now.
            Ok(false) => {
                self.ask().await;
                self.machine.confirmed();
            }
            // As long as there is time it is tried again; then the gateway takes it back.
            Err(why) => tracing::warn!(revision, %why, "cannot be confirmed"),
        }
    }

    async fn ask(&mut self) {
        let (socket, begun) = (self.settings.socket.clone(), self.begun);
        let asked = spawn_blocking(move || gateway::ask(&socket, begun)).await;
        let answer = asked.unwrap_or_else(|error| Err(error.to_string()));
        let running = answer.as_ref().map(|(version, started_s)| Running {
            pid: version.pid,
            started_s: *started_s,
            config: version.config.clone(),
            converged: version.converged,
        });
        self.machine.at(begun.elapsed());
        let known = self.machine.was_taken_back().cloned();
        self.machine.gateway(running.map_err(Clone::clone));
        if self.machine.was_taken_back() != known.as_ref() {
            let socket = self.settings.socket.clone();
            if let Ok(Some(why)) = spawn_blocking(move || gateway::last_message(&socket)).await {
                self.machine.taken_back_for(&why);
            }
        }
        self.health = answer.ok().map(|(version, _)| Health::from(version));
    }

    async fn report(&mut self, store: &mut Store) -> Result<(), String> {
        let node = &self.settings.keys.node;
        let status = Status::new(node, &self.machine, self.applied.as_ref(), self.health.as_ref());
        if self.written.as_ref().is_none_or(|written| !written.says_what(&status)) {
            store.report(&status.json()).await?;
            self.written = Some(status);
        }
        Ok(())
    }

    fn log(&mut self) {
        let standing = self.machine.standing();
        if self.logged.as_ref() == Some(&standing) {
            return;
        }
        let document = self.machine.wanted().map(ToString::to_string).unwrap_or_default();
        match &standing {
            Standing::GatewayUnreachable(why) => tracing::warn!(%why, "gateway"),
            Standing::Refused(why) => tracing::warn!(document, %why, "refused"),
            Standing::Older => tracing::warn!(document, "the gateway runs a later document"),
            Standing::Overridden => tracing::warn!(document, "another config was applied"),
            Standing::NoDocument => tracing::info!("no document yet"),
            Standing::InForce => tracing::info!(document, "applied"),
            Standing::OnTrial => tracing::info!(document, "applied; to be confirmed"),
            Standing::TakenBack(why) => tracing::warn!(document, %why, "taken back"),
            Standing::Waiting(why) => tracing::info!(document, %why, "not now"),
            Standing::Pending => {}
        }
        self.logged = Some(standing);
    }
}

/// How long to wait after so many failures in a row: twice as long each time, and up to a half of it by chance, that a
/// fleet does not come back all at once.
fn wait_before(failures: u32, random: u64) -> Duration {
    let longest = FIRST_WAIT.saturating_mul(1 << failures.min(16)).min(LONGEST_WAIT);
    let half = longest / 2;
    half + Duration::from_millis(random % (half.as_millis() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_bounded() {
        for random in [0, 1, u64::MAX] {
            assert!(wait_before(0, random) <= FIRST_WAIT && wait_before(0, random) >= FIRST_WAIT / 2);
            for failures in [6, 30, u32::MAX] {
                assert!((LONGEST_WAIT / 2..=LONGEST_WAIT).contains(&wait_before(failures, random)));
            }
        }
        assert!(wait_before(3, 0) > wait_before(0, u64::MAX));
    }
}
