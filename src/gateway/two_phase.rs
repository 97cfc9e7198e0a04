//! `--pair`: a commit on both nodes, or on neither, as the gateway does it. What is said when is `ha::two_phase`'s.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::around::Around;
use super::{Gateway, Planned};
use crate::config::{Config, Fate, Pair, Seconds};
use crate::control::revisions::{Author, Document, Paired};
use crate::control::{Asked, Changed, Fault, FaultKind, PairCommit, PairStage, Reply, Terms};
use crate::explain::{View, assert};
use crate::ha::sync::LETTER_BYTES;
use crate::ha::two_phase::{Message, Node, Offer, REMEMBERED, Stage, Standing, TwoPhase, WITHIN_S};
use crate::packet::hash::Key;
use crate::time::Nanos;

/// Longest document: as a letter it has escapes and more.
const DOCUMENT_BYTES: usize = LETTER_BYTES / 4 * 3;
/// How often it is looked whether a thread has read or compiled.
const LOOK: Duration = Duration::from_millis(10);
/// JSON has no exact integers beyond.
const COMMIT_BITS: u32 = 53;

/// Names and hashes of a config's sections.
type Sections = Vec<(String, u64)>;

/// A document on its way to what could be published.
enum Making {
    Reading(JoinHandle<Result<Read, String>>),
    Compiling(JoinHandle<Result<(), String>>),
    /// It could not even begin.
    Refused(String),
}

/// A config that is in order by itself, as it is on this node.
struct Read {
    config: Box<Config>,
    /// What is in force here.
    sections: Sections,
}

/// What this node prepares, for itself or the other.
struct Preparing {
    commit: u64,
    fate: Fate,
    sections: Sections,
    making: Making,
}

/// A commit that this node was asked for.
struct Ours {
    commit: u64,
    path: Option<String>,
    terms: Terms,
    begun: Instant,
    /// Once it is in force here.
    changed: Changed,
}

/// Commits on both nodes.
#[derive(Default)]
pub(super) struct Both {
    machine: TwoPhase,
    preparing: Option<Preparing>,
    /// The commit that was prepared last, and the revision in force then: nobody may be quicker.
    base: (u64, u64),
    ours: Option<Ours>,
    /// How the last one has ended that this node was asked for.
    ended: Option<(u64, Result<Changed, String>)>,
}

impl Gateway {
    /// Begins a commit on both nodes: answered at once, `show.pair-commit` has how far it is.
    pub(super) fn begin_on_both(
        &mut self,
        document: Document,
        path: Option<String>,
        terms: Terms,
        begun: Instant,
    ) -> Result<Reply, Fault> {
        if self.config.pair.is_none() {
            return Err(Fault::refused(
                "there is no [pair] in the config: without --pair this node is changed",
            ));
        }
        if document.bytes() > DOCUMENT_BYTES {
            let most = DOCUMENT_BYTES >> 20;
            let message = format!("a config for both nodes has at most {most} MiB: apply it on each of them");
            return Err(Fault::new(FaultKind::Limit, message));
        }
        self.may_be_taken_back(&terms)?;
        let commit = super::random() >> (u64::BITS - COMMIT_BITS);
        let Document { file_name, text, files } = document;
        let offer = Offer {
            node: self.own_name(),
            file_name,
            text,
            files,
            message: terms.message.clone(),
            fate: terms.fate,
            by: (terms.asked.by.uid, terms.asked.by.role.clone()),
            request: terms.asked.request.clone(),
            about: terms.asked.about.clone(),
            sections: Vec::new(),
            force: terms.pair_force,
        };
        let peer = self.pair.correspondent();
        let mut machine = std::mem::take(&mut self.both.machine);
        let result = machine.begin(commit, offer, peer, self);
        self.both.machine = machine;
        result.map_err(|why| Fault::new(FaultKind::Conflict, why))?;
        self.both.ended = None;
        self.both.ours = Some(Ours { commit, path, terms, begun, changed: Changed::default() });
        self.show_pair_commit(Some(commit))
    }

    /// How far it is with a commit on both nodes, or how it has ended.
    pub(super) fn show_pair_commit(&self, commit: Option<u64>) -> Result<Reply, Fault> {
        let generation = self.node().tables.load().generation;
        let last = self.both.ours.as_ref().map(|ours| ours.commit);
        let Some(commit) = commit.or(last) else {
            return Ok(Reply::Changed(Changed { generation, ..Changed::default() }));
        };
        match (&self.both.ended, self.both.machine.stage()) {
            (Some((of, ended)), _) if *of == commit => match ended {
                Ok(changed) => Ok(Reply::Changed(changed.clone())),
                Err(why) => Err(Fault::refused(format!("not committed on both nodes: {why}"))),
            },
            (_, Some(stage)) if last == Some(commit) => {
                let stage = match stage {
                    Stage::PreparingHere => PairStage::PreparingHere,
                    Stage::PreparingThere => PairStage::PreparingThere,
                    Stage::Publishing => PairStage::Publishing,
                    Stage::Keeping => PairStage::Keeping,
                };
                let pair = Some(PairCommit { commit, stage, revision: None });
                Ok(Reply::Changed(Changed { generation, pair, ..Changed::default() }))
            }
            _ => Err(Fault::not_found("this node knows of no such commit on both; see show revisions")),
        }
    }

    fn own_name(&self) -> String {
        self.node_name().map_or_else(|| self.config.system.name.to_string(), ToString::to_string)
    }

    /// Has commits on both nodes go on, and the other node know what is around; to be called when something has come
    /// from the other, and at [`Gateway::next_pair_step`].
    pub fn tend_pair(&mut self) {
        self.pair.drain_news();
        let mut machine = std::mem::take(&mut self.both.machine);
        while let Some(letter) = self.pair.take_letter() {
            let (now, peer) = (self.now(), self.pair.correspondent());
            match serde_json::from_slice::<Message>(&letter) {
                Ok(message) => machine.receive(message, peer, now, self),
                Err(error) => match serde_json::from_slice::<Around>(&letter) {
                    Ok(around) => self.hear_around(&around),
                    // Of a version that has more to say.
                    Err(_) => {
                        tracing::warn!(%error, "the other node says something about a commit that is not known")
                    }
                },
            }
        }
        if let Some((commit, result)) = self.go_on_preparing() {
            machine.prepared(commit, result, self.pair.correspondent(), self.now());
        }
        let (now, peer) = (self.now(), self.pair.correspondent());
        machine.poll(peer, now, self);
        for message in machine.take_messages() {
            match serde_json::to_vec(&message) {
                Ok(letter) => self.pair.post(letter),
                Err(error) => tracing::error!(%error, "a message about a commit cannot be written"),
            }
        }
        if let Some((commit, ending)) = machine.take_ending() {
            self.end_on_both(commit, ending);
        }
        self.both.machine = machine;
        self.tend_around();
    }

    fn end_on_both(&mut self, commit: u64, ending: Result<(u64, u64), String>) {
        let Some(ours) = self.both.ours.as_mut().filter(|ours| ours.commit == commit) else { return };
        let took_ms = ours.begun.elapsed().as_millis() as u64;
        let ended = match ending {
            Ok((revision, theirs)) => {
                tracing::info!(target: "softgate::audit", revision, theirs, took_ms, "committed on both nodes");
                let pair = Some(PairCommit { commit, stage: PairStage::Done, revision: Some(theirs) });
                Ok(Changed { pair, confirm_s: None, ..std::mem::take(&mut ours.changed) })
            }
            Err(why) => {
                tracing::warn!(target: "softgate::audit", why, took_ms, "not committed on either node");
                Err(why)
            }
        };
        self.both.ended = Some((commit, ended));
    }

    /// When [`Gateway::tend_pair`] has something to do at the latest.
    pub(super) fn next_pair_step(&self) -> Option<Nanos> {
        let look = self.both.preparing.as_ref().map(|_| self.now().plus(LOOK));
        self.both.machine.next_deadline().into_iter().chain(look).chain(self.next_around()).min()
    }

    /// A start goes on with what the other node may not know yet to be in force here.
    pub(super) fn resume_on_both(&mut self, paired: &Paired, made: Duration) {
        if !paired.leads && made < REMEMBERED {
            self.both.machine.resume(paired.commit, self.now());
        }
    }

    /// Whether a commit waits that both nodes have a word in: nobody else confirms it.
    pub(super) fn waits_for_other_node(&self) -> Result<(), Fault> {
        match self.pair_waiting() {
            None => Ok(()),
            Some(revision) => Err(Fault::new(
                FaultKind::Conflict,
                format!(
                    "revision {revision} is being committed on both nodes: it is kept when both have it, and taken back else"
                ),
            )),
        }
    }

    // ---- preparing

    fn begin_reading(&self, offer: &Offer, key: Key) -> Result<Making, String> {
        let document = Document {
            file_name: offer.file_name.clone(),
            text: offer.text.clone(),
            files: offer.files.clone(),
        };
        let (node, own) = (self.node_name().cloned(), self.config.clone());
        let read = move || {
            let config = document.config().map_err(|errors| errors.to_string())?;
            let config = match node {
                Some(node) => {
                    config.on_node(&node, &document.file_name).map_err(|errors| errors.to_string())?
                }
                None => config,
            };
            if config.pair != own.pair {
                return Err(why_not_this_pair(config.pair.as_ref()));
            }
            Ok(Read { config: Box::new(config), sections: own.sections(key) })
        };
        let thread = std::thread::Builder::new().name(String::from("pair-read")).spawn(read);
        thread.map(Making::Reading).map_err(|error| error.to_string())
    }

    /// Compiles on a thread of its own, by a branch that nobody sees, and asks the gate.
    fn begin_judging(&self, config: Config, fate: Fate) -> Result<Making, String> {
        let (compile, ports) = self.to_compile(config, fate);
        // The same of a next hop that BFD has given up.
        let is_down = |planned: &Planned| match planned {
            Planned::Kept { old, .. } => self.ports()[*old].members_up() == 0,
            Planned::New(port) => super::preview::will_be_up(port) == 0,
        };
        let is_port_down = ports.iter().any(is_down) || !self.compiler.failed_hops().is_empty();
        let judge = move || {
            let (config, branch) = compile()?;
            let view =
                View { compiler: &branch, config: &config, tables: branch.tables(), rib: branch.rib() };
            assert::uphold(view, is_port_down)
        };
        let thread = std::thread::Builder::new().name(String::from("pair-judge")).spawn(judge);
        thread.map(Making::Compiling).map_err(|error| error.to_string())
    }

    /// What preparing has come to, once it has: what is in force here, or why not.
    fn go_on_preparing(&mut self) -> Option<(u64, Result<Sections, String>)> {
        let Preparing { commit, fate, sections, making } = self.both.preparing.take()?;
        let fell = || String::from("the thread that prepares it has ended");
        let result = match making {
            Making::Reading(thread) if thread.is_finished() => {
                thread.join().map_err(|_| fell()).and_then(|read| read).and_then(|read| {
                    self.begin_judging(*read.config, fate).map(|making| (read.sections, making))
                })
            }
            Making::Compiling(thread) if thread.is_finished() => {
                let judged = thread.join().map_err(|_| fell()).and_then(|judged| judged);
                return Some((commit, judged.map(|()| sections)));
            }
            Making::Refused(why) => return Some((commit, Err(why))),
            making => {
                self.both.preparing = Some(Preparing { commit, fate, sections, making });
                return None;
            }
        };
        match result {
            Err(why) => Some((commit, Err(why))),
            // Of the other node: what is in force there is to be in force here too.
            Ok((own, making)) => {
                let differs = if sections.is_empty() { Vec::new() } else { differing(&own, &sections) };
                if !differs.is_empty() {
                    let why = format!(
                        "the config in force there is another one than here already, in {}: --pair-force puts the same on \
                         both all the same",
                        differs.join(", ")
                    );
                    return Some((commit, Err(why)));
                }
                self.both.preparing = Some(Preparing { commit, fate, sections: own, making });
                None
            }
        }
    }

    fn begin_preparing(&mut self, commit: u64, offer: &Offer, leads: bool) -> Result<(), String> {
        if self.upgrade.is_under_way() {
            return Err(String::from("an upgrade is under way"));
        }
        let key = self.pair.section_key().ok_or("there is no [pair] in the config")?;
        let terms = match (&self.both.ours, leads) {
            (Some(ours), true) if ours.commit == commit => ours.terms.clone(),
            _ => Terms { confirm_s: within(), ..Terms::default() },
        };
        self.may_be_taken_back(&terms).map_err(|fault| fault.message)?;
        let making = self.begin_reading(offer, key)?;
        let is_compared = !leads && !offer.force;
        let sections = if is_compared { offer.sections.clone() } else { Vec::new() };
        self.both.base = (commit, self.current_revision());
        self.both.preparing = Some(Preparing { commit, fate: offer.fate, sections, making });
        Ok(())
    }
}

impl Node for Gateway {
    fn prepare(&mut self, commit: u64, offer: &Offer, leads: bool) {
        if let Err(why) = self.begin_preparing(commit, offer, leads) {
            // Comes back as what any other preparation does.
            let (fate, sections, making) = (offer.fate, Vec::new(), Making::Refused(why));
            self.both.preparing = Some(Preparing { commit, fate, sections, making });
        }
    }

    fn publish(&mut self, commit: u64, offer: &Offer, leads: bool) -> Result<u64, String> {
        if self.upgrade.is_under_way() {
            return Err(String::from("an upgrade is under way"));
        }
        let (of, base) = self.both.base;
        if of != commit {
            return Err(String::from("it is not prepared"));
        }
        let begun = Instant::now();
        let ours = self.both.ours.as_ref().filter(|ours| leads && ours.commit == commit);
        let path = ours.and_then(|ours| ours.path.clone());
        let asked = ours.map_or_else(
            || Asked {
                by: Author { uid: offer.by.0, pid: None, role: offer.by.1.clone() },
                request: offer.request.clone(),
                about: offer.about.clone(),
            },
            |ours| ours.terms.asked.clone(),
        );
        let terms = Terms {
            message: offer.message.clone(),
            confirm_s: within(),
            if_revision: Some(base),
            fate: offer.fate,
            asked,
            paired: Some(Paired { commit, node: offer.node.clone(), leads }),
            ..Terms::default()
        };
        let document = Document {
            file_name: offer.file_name.clone(),
            text: offer.text.clone(),
            files: offer.files.clone(),
        };
        let before = self.node().tables.load().generation;
        self.compiler.fate = offer.fate;
        let taken = self.take_document(document, path.as_deref(), &terms, begun);
        self.compiler.fate = Fate::default();
        match taken {
            Ok(Reply::Changed(mut changed)) => {
                let revision = self.current_revision();
                tracing::info!(
                    target: "softgate::audit", revision, node = offer.node, "published, and kept if it is on both nodes"
                );
                changed.generation_before = before;
                if let Some(ours) = self.both.ours.as_mut().filter(|ours| ours.commit == commit) {
                    ours.changed = changed;
                }
                Ok(revision)
            }
            Ok(_) => unreachable!("a document that is taken on is answered with what has changed"),
            Err(fault) => Err(fault.message),
        }
    }

    fn standing(&self, commit: u64) -> Standing {
        self.standing_of(commit)
    }

    fn was_kept(&self, commit: u64) -> bool {
        self.has_kept(commit)
    }

    fn keep(&mut self, commit: u64) {
        let Standing::Waits(revision) = self.standing_of(commit) else { return };
        if let Err(fault) = self.confirm(Some(revision), Author::default(), Instant::now()) {
            tracing::error!(%fault, revision, "a commit on both nodes is not kept here");
        }
    }

    fn take_back(&mut self, commit: u64, why: &str) {
        self.take_back_of_both(commit, why);
    }
}

fn within() -> Option<Seconds> {
    Seconds::new(WITHIN_S).ok()
}

fn why_not_this_pair(pair: Option<&Pair>) -> String {
    match pair {
        None => String::from("[pair] would be gone, by which both nodes speak: change that on each of them"),
        Some(pair) => format!(
            "[pair] would be another one on this node ({} to {}), and both nodes speak by it: change that on each of them; \
             [node.NAME] has what is each node's own",
            pair.local, pair.peer
        ),
    }
}

/// Names of sections in which two configs differ.
fn differing(own: &[(String, u64)], theirs: &[(String, u64)]) -> Vec<String> {
    let is_in = |all: &[(String, u64)], section: &(String, u64)| all.contains(section);
    let only = own.iter().filter(|section| !is_in(theirs, section));
    let mut names: Vec<String> = only
        .chain(theirs.iter().filter(|section| !is_in(own, section)))
        .map(|(name, _)| name.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_that_differ_are_named_once() {
        let sections = |all: &[(&str, u64)]| -> Vec<(String, u64)> {
            all.iter().map(|(name, hash)| ((*name).to_owned(), *hash)).collect()
        };
        let one = sections(&[("nat", 1), ("rule", 2), ("zone", 3)]);
        assert_eq!(differing(&one, &one), Vec::<String>::new());
        let other = sections(&[("rule", 9), ("vrrp", 1), ("zone", 3)]);
        assert_eq!(differing(&one, &other), ["nat", "rule", "vrrp"]);
    }
}
