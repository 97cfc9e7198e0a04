//! What the agent does about what it sees: a function of the keys in etcd, of what the gateway runs, and of what came of
//! earlier tries. No I/O, no clock; the runner looks, acts, and tells what became of it.
//!
//! The rule: of the keys that are there, that of the node wins over the shared one, and it is applied if it was written
//! after the document that the gateway runs. So a gateway only ever moves forward. A document that is gone or empty is no
//! document: what was applied stays. A document that the gateway refused is not offered again until it is written anew or
//! the gateway is started anew. What somebody applied by hand stays until the next document, or until the gateway or
//! the agent is started anew.
//!
//! With a time to confirm a document is on trial first: the gateway takes it back by itself, at the end of that time or as
//! soon as it does harm, unless the agent confirms it. The agent does at half of it, if by then no session is decided by what
//! was before. A document that was taken back, or under which the gateway ended, is not offered again until it is written
//! anew.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Names one version of a document, also to the gateway: `etcd:/softgate/config@42` is what it says its config is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The key in etcd.
    pub key: String,
    /// etcd's revision of the write that made it so.
    pub mod_revision: i64,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd:{}@{}", self.key, self.mod_revision)
    }
}

impl FromStr for Source {
    type Err = ();
    fn from_str(text: &str) -> Result<Source, ()> {
        let (key, revision) = text.strip_prefix("etcd:").and_then(|rest| rest.rsplit_once('@')).ok_or(())?;
        let mod_revision = revision.parse().map_err(|_| ())?;
        Ok(Source { key: key.to_owned(), mod_revision })
    }
}

/// What a document says.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    /// The config.
    pub text: String,
    /// The route files it names, by their path in it.
    pub files: Vec<(String, String)>,
}

/// One version of a config document, as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Which.
    pub source: Source,
    /// What it says; or why that cannot even be offered to a gateway.
    pub content: Arc<Result<Content, String>>,
}

impl Document {
    fn is_empty(&self) -> bool {
        matches!(&*self.content, Ok(content) if content.text.trim_ascii().is_empty())
    }
}

/// Both keys at one revision of etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Everybody's.
    pub shared: Option<Document>,
    /// That of this node.
    pub node: Option<Document>,
}

/// A gateway that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process: another one was started since.
    pub pid: u32,
    /// When it was started, as far as that can be told: in a container the next one has the same number.
    pub started_s: i64,
    /// What it calls the config it runs.
    pub config: String,
    /// The generation that no session's decision is older than.
    pub converged: u64,
}

/// Its number, and when it was started.
type Process = (u32, i64);

impl Running {
    /// Its start comes out a second earlier or later each time.
    const ABOUT_S: u64 = 2;

    fn is_same(&self, (pid, started_s): Process) -> bool {
        self.pid == pid && self.started_s.abs_diff(started_s) <= Running::ABOUT_S
    }
}

/// What came of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The gateway runs it.
    Applied,
    /// The gateway runs it until it takes it back, unless it is confirmed.
    OnTrial {
        /// The revision to confirm.
        revision: u64,
        /// The generation with it.
        generation: u64,
    },
    /// Not now, says the gateway, and why: another commit waits to be confirmed, or it has too much to do.
    NotNow(String),
    /// The gateway, or the agent for it, says no, and why.
    Refused(String),
    /// Nobody knows: the gateway did not answer, or not to the end.
    Unanswered(String),
}

/// What the agent is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Offer this to the gateway.
    Apply(Document),
    /// Confirm this revision to the gateway.
    Confirm(u64),
    /// Wait for something to happen.
    Wait,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Neither key has a document.
    NoDocument,
    /// The gateway does not answer, and why.
    GatewayUnreachable(String),
    /// The document is about to be offered.
    Pending,
    /// The gateway says not now, and why; it is asked again.
    Waiting(String),
    /// The gateway runs the document until it takes it back, unless the agent confirms it.
    OnTrial,
    /// The gateway has taken the document back, and why, as far as anybody knows.
    TakenBack(String),
    /// The gateway runs the document.
    InForce,
    /// The gateway refused the document, and why. It runs what it ran before.
    Refused(String),
    /// The gateway runs a document that was written later.
    Older,
    /// Somebody has applied another config since.
    Overridden,
}

/// A document that is to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trial {
    source: Source,
    revision: u64,
    generation: u64,
    since: Duration,
}

/// What the agent knows.
#[derive(Clone, Debug)]
pub struct Machine {
    /// How long a document is on trial before it is confirmed; `None`: it is in force at once.
    trial_for: Option<Duration>,
    /// Time, since any moment.
    now: Duration,
    trial: Option<Trial>,
    taken_back: Option<(Source, String)>,
    not_now: Option<(Source, String)>,
    wanted: Option<Document>,
    /// Whether that is the node's own. Two keys may have been written at once: then its own is the later one.
    wanted_is_own: bool,
    gateway: Result<Running, String>,
    /// The last answer: to which document, by which process.
    tried: Option<(Source, Process, Result<(), String>)>,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            trial_for: None,
            now: Duration::ZERO,
            trial: None,
            taken_back: None,
            not_now: None,
            wanted: None,
            wanted_is_own: false,
            gateway: Err("not asked yet".into()),
            tried: None,
        }
    }
}

impl Machine {
    /// One whose documents are taken back after this time, if it is some, unless they are confirmed.
    pub fn new(confirm: Option<Duration>) -> Machine {
        // Early enough that a gateway which is busy for a while still hears of it.
        Machine { trial_for: confirm.map(|confirm| confirm / 2), ..Machine::default() }
    }

    /// It is this late, since any moment.
    pub fn at(&mut self, now: Duration) {
        self.now = now;
    }

    /// What is in etcd now. A look that is older than one before, from a member that lags behind, changes nothing.
    pub fn seen(&mut self, seen: Seen) {
        let there = |document: Option<Document>| document.filter(|document| !document.is_empty());
        let (candidate, is_own) = match (there(seen.node), there(seen.shared)) {
            (Some(own), _) => (own, true),
            (None, Some(shared)) => (shared, false),
            (None, None) => return,
        };
        let known = self.wanted.as_ref().map(|wanted| (wanted.source.mod_revision, self.wanted_is_own));
        if known.is_none_or(|known| (candidate.source.mod_revision, is_own) > known) {
            (self.wanted, self.wanted_is_own) = (Some(candidate), is_own);
        }
    }

    /// What the gateway says of itself, or why it says nothing.
    pub fn gateway(&mut self, answer: Result<Running, String>) {
        self.gateway = answer;
        let (Ok(running), Some(trial)) = (&self.gateway, &self.trial) else { return };
        if running.config != trial.source.to_string() {
            let why = format!("the gateway runs {:?} again", running.config);
            self.taken_back = Some((trial.source.clone(), why));
            self.trial = None;
        }
    }

    /// The document that was taken back just now, for want of knowing why.
    pub fn was_taken_back(&self) -> Option<&Source> {
        self.taken_back.as_ref().map(|(source, _)| source)
    }

    /// Why it was taken back, in the gateway's words.
    pub fn taken_back_for(&mut self, message: &str) {
        if let Some((_, why)) = &mut self.taken_back {
            *why = message.to_owned();
        }
    }

    /// The revision on trial was confirmed, or none waits for that any more though the gateway still runs it.
    pub fn confirmed(&mut self) {
        self.trial = None;
    }

    /// What came of an [`Action::Apply`].
    pub fn tried(&mut self, source: &Source, outcome: Tried) {
        let Ok(running) = &mut self.gateway else { return };
        self.not_now = None;
        if let Tried::OnTrial { revision, generation } = outcome {
            let since = self.now;
            self.trial = Some(Trial { source: source.clone(), revision, generation, since });
        }
        let result = match outcome {
            Tried::NotNow(why) => {
                self.not_now = Some((source.clone(), why));
                return;
            }
            Tried::Applied | Tried::OnTrial { .. } => {
                running.config = source.to_string();
                Ok(())
            }
            Tried::Refused(why) => Err(why),
            Tried::Unanswered(why) => {
                self.gateway = Err(why);
                return;
            }
        };
        self.tried = Some((source.clone(), (running.pid, running.started_s), result));
    }

    /// What to do now.
    pub fn action(&self) -> Action {
        if let Some(revision) = self.to_confirm() {
            return Action::Confirm(revision);
        }
        match (self.standing(), &self.wanted) {
            // While one is on trial the gateway takes no other.
            (Standing::Pending | Standing::Waiting(_), Some(wanted)) if self.trial.is_none() => {
                Action::Apply(wanted.clone())
            }
            _ => Action::Wait,
        }
    }

    /// The revision that has been on trial for long enough.
    fn to_confirm(&self) -> Option<u64> {
        let (Ok(running), Some(trial), Some(trial_for)) = (&self.gateway, &self.trial, self.trial_for) else {
            return None;
        };
        let is_ripe = self.now.saturating_sub(trial.since) >= trial_for;
        (is_ripe && running.converged >= trial.generation).then_some(trial.revision)
    }

    /// The document that is to run.
    pub fn wanted(&self) -> Option<&Source> {
        self.wanted.as_ref().map(|document| &document.source)
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        let running = match &self.gateway {
            Ok(running) => running,
            Err(why) => return Standing::GatewayUnreachable(why.clone()),
        };
        let Some(Document { source: wanted, .. }) = &self.wanted else { return Standing::NoDocument };
        if let Ok(runs) = running.config.parse::<Source>() {
            if runs == *wanted {
                return if self.trial.is_some() { Standing::OnTrial } else { Standing::InForce };
            }
            if (runs.mod_revision, !self.wanted_is_own) > (wanted.mod_revision, false) {
                return Standing::Older;
            }
        }
        if let Some(trial) = &self.trial {
            return Standing::Waiting(format!(
                "{} is on trial until it is confirmed or taken back",
                trial.source
            ));
        }
        if let Some((_, why)) = self.taken_back.as_ref().filter(|(source, _)| source == wanted) {
            return Standing::TakenBack(why.clone());
        }
        match &self.tried {
            Some((source, process, result)) if source == wanted && running.is_same(*process) => {
                match result {
                    Ok(()) => Standing::Overridden,
                    Err(why) => Standing::Refused(why.clone()),
                }
            }
            _ => match &self.not_now {
                Some((source, why)) if source == wanted => Standing::Waiting(why.clone()),
                _ => Standing::Pending,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: &str = "/softgate/config";
    const NODE: &str = "/softgate/nodes/gw1/config";

    fn document(key: &str, mod_revision: i64, text: &str) -> Option<Document> {
        let source = Source { key: key.into(), mod_revision };
        let content = Ok(Content { text: text.into(), files: Vec::new() });
        Some(Document { source, content: Arc::new(content) })
    }

    fn shared(mod_revision: i64) -> Seen {
        Seen { shared: document(SHARED, mod_revision, "schema = 1"), node: None }
    }

    fn running(pid: u32, config: &str) -> Result<Running, String> {
        Ok(Running { pid, started_s: 0, config: config.into(), converged: 0 })
    }

    /// What it is about to offer, as `KEY@REVISION`.
    fn offers(machine: &Machine) -> Option<String> {
        match machine.action() {
            Action::Apply(document) => {
                Some(document.source.to_string().trim_start_matches("etcd:/softgate/").to_owned())
            }
            Action::Wait | Action::Confirm(_) => None,
        }
    }

    fn started(seen: Seen, config: &str) -> Machine {
        let mut machine = Machine::default();
        machine.seen(seen);
        machine.gateway(running(1, config));
        machine
    }

    /// Offers what it wants, with this outcome.
    fn offer(machine: &mut Machine, outcome: Tried) {
        let Action::Apply(document) = machine.action() else { panic!("nothing to offer: {machine:?}") };
        machine.tried(&document.source, outcome);
    }

    #[test]
    fn a_document_is_offered_once() {
        let mut machine = started(shared(7), "gw.toml");
        assert_eq!(offers(&machine).as_deref(), Some("config@7"));
        offer(&mut machine, Tried::Applied);
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::InForce));
        machine.seen(shared(7));
        machine.gateway(running(1, "etcd:/softgate/config@7"));
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::InForce));
        machine.seen(shared(9));
        assert_eq!(offers(&machine).as_deref(), Some("config@9"));
    }

    #[test]
    fn nothing_is_offered_without_a_document_or_a_gateway() {
        let mut machine = Machine::default();
        machine.gateway(running(1, "gw.toml"));
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::NoDocument));
        machine.seen(Seen { shared: document(SHARED, 3, " \n"), node: None });
        assert_eq!(machine.standing(), Standing::NoDocument);
        machine.seen(shared(4));
        machine.gateway(Err("nobody there".into()));
        assert_eq!(machine.standing(), Standing::GatewayUnreachable("nobody there".into()));
        assert_eq!(offers(&machine), None);
        machine.gateway(running(1, "gw.toml"));
        assert_eq!(offers(&machine).as_deref(), Some("config@4"));
    }

    #[test]
    fn a_refused_document_is_not_offered_again() {
        let mut machine = started(shared(7), "gw.toml");
        offer(&mut machine, Tried::Refused("line 3".into()));
        for _ in 0..3 {
            machine.seen(shared(7));
            machine.gateway(running(1, "gw.toml"));
            assert_eq!((offers(&machine), machine.standing()), (None, Standing::Refused("line 3".into())));
        }
        // Written anew, though it may be the same text; or another gateway, which may know better.
        machine.seen(shared(8));
        assert_eq!(offers(&machine).as_deref(), Some("config@8"));
        offer(&mut machine, Tried::Refused("line 3".into()));
        machine.gateway(running(2, "gw.toml"));
        assert_eq!(offers(&machine).as_deref(), Some("config@8"));
    }

    #[test]
    fn a_gateway_of_the_same_number_that_was_started_later_is_another_one() {
        let mut machine = started(shared(7), "gw.toml");
        offer(&mut machine, Tried::Refused("line 3".into()));
        let since = |started_s| Ok(Running { pid: 1, started_s, config: "gw.toml".into(), converged: 0 });
        machine.gateway(since(1));
        assert_eq!(offers(&machine), None);
        machine.gateway(since(5));
        assert_eq!(offers(&machine).as_deref(), Some("config@7"));
    }

    #[test]
    fn the_node_s_own_key_wins_whichever_is_newer() {
        for own in [5, 9] {
            let seen = Seen { node: document(NODE, own, "schema = 1"), ..shared(7) };
            assert_eq!(offers(&started(seen, "gw.toml")), Some(format!("nodes/gw1/config@{own}")));
        }
        let seen = Seen { node: document(NODE, 9, ""), ..shared(7) };
        assert_eq!(offers(&started(seen, "gw.toml")).as_deref(), Some("config@7"));
    }

    #[test]
    fn deleting_a_key_takes_nothing_back() {
        let own = Seen { node: document(NODE, 9, "schema = 1"), ..shared(7) };
        let mut machine = started(own, "gw.toml");
        offer(&mut machine, Tried::Applied);
        machine.seen(shared(7));
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::InForce));
        machine.seen(Seen::default());
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::InForce));
        // The next write of the shared one counts.
        machine.seen(shared(12));
        assert_eq!(offers(&machine).as_deref(), Some("config@12"));
        // An agent that is started anew comes to the same.
        let mut again = started(shared(7), "etcd:/softgate/nodes/gw1/config@9");
        assert_eq!((offers(&again), again.standing()), (None, Standing::Older));
        again.seen(shared(12));
        assert_eq!(offers(&again).as_deref(), Some("config@12"));
    }

    #[test]
    fn of_two_written_at_once_the_node_s_own_is_the_later() {
        let both = Seen { node: document(NODE, 7, "schema = 1"), ..shared(7) };
        let mut machine = started(both.clone(), "etcd:/softgate/config@7");
        assert_eq!(offers(&machine).as_deref(), Some("nodes/gw1/config@7"));
        offer(&mut machine, Tried::Applied);
        machine.seen(shared(7));
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::InForce));
        let again = started(shared(7), "etcd:/softgate/nodes/gw1/config@7");
        assert_eq!((offers(&again), again.standing()), (None, Standing::Older));
    }

    #[test]
    fn an_old_document_is_not_applied_after_a_newer_one() {
        let mut machine = started(shared(9), "gw.toml");
        machine.seen(shared(7)); // a member that lags behind
        assert_eq!(offers(&machine).as_deref(), Some("config@9"));
        offer(&mut machine, Tried::Applied);
        machine.seen(shared(7));
        assert_eq!(machine.standing(), Standing::InForce);
    }

    #[test]
    fn a_gateway_that_runs_the_document_is_left_alone() {
        let machine = started(shared(7), "etcd:/softgate/config@7");
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::InForce));
    }

    #[test]
    fn what_was_applied_by_hand_stays_until_the_next_document_or_start() {
        let mut machine = started(shared(7), "gw.toml");
        offer(&mut machine, Tried::Applied);
        machine.gateway(running(1, "by-hand.toml"));
        assert_eq!((offers(&machine), machine.standing()), (None, Standing::Overridden));
        machine.gateway(Err("nobody there".into()));
        machine.gateway(running(1, "by-hand.toml"));
        assert_eq!(offers(&machine), None);
        machine.gateway(running(2, "gw.toml"));
        assert_eq!(offers(&machine).as_deref(), Some("config@7"));
        offer(&mut machine, Tried::Applied);
        machine.gateway(running(2, "by-hand.toml"));
        machine.seen(shared(8));
        assert_eq!(offers(&machine).as_deref(), Some("config@8"));
    }

    #[test]
    fn a_try_without_an_answer_is_made_again_unless_it_had_come_through() {
        let mut machine = started(shared(7), "gw.toml");
        offer(&mut machine, Tried::Unanswered("broken pipe".into()));
        assert_eq!(machine.standing(), Standing::GatewayUnreachable("broken pipe".into()));
        let mut came_through = machine.clone();
        machine.gateway(running(1, "gw.toml"));
        assert_eq!(offers(&machine).as_deref(), Some("config@7"));
        came_through.gateway(running(1, "etcd:/softgate/config@7"));
        assert_eq!(came_through.standing(), Standing::InForce);
    }

    const TRIAL: Tried = Tried::OnTrial { revision: 4, generation: 9 };

    fn on_trial() -> Machine {
        let mut machine =
            Machine { trial_for: Some(Duration::from_secs(30)), ..started(shared(7), "gw.toml") };
        machine.at(Duration::from_secs(100));
        offer(&mut machine, TRIAL);
        machine
    }

    fn runs_it(converged: u64) -> Result<Running, String> {
        running(1, "etcd:/softgate/config@7").map(|running| Running { converged, ..running })
    }

    #[test]
    fn a_document_on_trial_is_confirmed_when_it_has_converged_and_is_well_for_a_while() {
        let mut machine = on_trial();
        machine.gateway(runs_it(9));
        assert_eq!((machine.action(), machine.standing()), (Action::Wait, Standing::OnTrial));
        machine.at(Duration::from_secs(130));
        machine.gateway(runs_it(8)); // sessions still go by what was before
        assert_eq!(machine.action(), Action::Wait);
        machine.gateway(Err("busy".into()));
        assert_eq!(machine.action(), Action::Wait);
        machine.gateway(runs_it(9));
        assert_eq!(machine.action(), Action::Confirm(4));
        machine.confirmed();
        assert_eq!((machine.action(), machine.standing()), (Action::Wait, Standing::InForce));
    }

    #[test]
    fn a_document_waits_for_the_one_before_that_is_on_trial() {
        let mut machine = on_trial();
        machine.seen(shared(8));
        machine.gateway(runs_it(9));
        let waits = "etcd:/softgate/config@7 is on trial until it is confirmed or taken back";
        assert_eq!((machine.action(), machine.standing()), (Action::Wait, Standing::Waiting(waits.into())));
        machine.at(Duration::from_secs(130));
        assert_eq!(machine.action(), Action::Confirm(4));
        machine.confirmed();
        assert_eq!(offers(&machine).as_deref(), Some("config@8"));
        // Or it was taken back: the later one is offered all the same.
        let mut machine = on_trial();
        machine.seen(shared(8));
        machine.gateway(running(1, "gw.toml"));
        assert_eq!(offers(&machine).as_deref(), Some("config@8"));
    }

    #[test]
    fn a_document_that_was_taken_back_is_not_offered_again() {
        for (pid, by_hand) in [(1, "gw.toml"), (2, "gw.toml"), (1, "etcd:/softgate/config@5")] {
            let mut machine = on_trial();
            machine.gateway(running(pid, by_hand));
            assert_eq!(
                machine.was_taken_back().map(ToString::to_string).as_deref(),
                Some("etcd:/softgate/config@7")
            );
            machine.taken_back_for("more packets are dropped");
            for _ in 0..2 {
                let standing = Standing::TakenBack("more packets are dropped".into());
                assert_eq!((machine.action(), machine.standing()), (Action::Wait, standing));
                machine.seen(shared(7));
                machine.gateway(running(3, by_hand)); // started anew: it would do the same again
            }
            machine.seen(shared(8));
            assert_eq!(offers(&machine).as_deref(), Some("config@8"));
            offer(&mut machine, TRIAL);
            assert_eq!(machine.standing(), Standing::OnTrial);
        }
    }

    #[test]
    fn what_is_not_now_is_offered_again() {
        let mut machine = started(shared(7), "gw.toml");
        offer(&mut machine, Tried::NotNow("revision 3 waits to be confirmed".into()));
        assert_eq!(machine.standing(), Standing::Waiting("revision 3 waits to be confirmed".into()));
        machine.gateway(running(1, "gw.toml"));
        assert_eq!(offers(&machine).as_deref(), Some("config@7"));
        offer(&mut machine, Tried::Applied);
        assert_eq!(machine.standing(), Standing::InForce);
    }

    #[test]
    fn sources_are_read_as_they_are_written() {
        let source = Source { key: "/a@b/config".into(), mod_revision: 42 };
        assert_eq!(source.to_string().parse(), Ok(source));
        for other in ["gw.toml", "etcd:/a", "etcd:/a@x", ""] {
            assert_eq!(other.parse::<Source>(), Err(()));
        }
    }
}
