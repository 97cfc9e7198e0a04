//! Commits become revisions: what is kept of them, how they are gone back to, and what a start begins with.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::requests::changed;
use super::undo::Undo;
use super::watch::{FAILED_FLOWS, Found, Ills, Sample, Watch};
use super::{Gateway, Spent, StartError};
use crate::config::{Fate, Name};
use crate::control::revisions::store::Staged;
use crate::control::revisions::{Author, Confirm, Document, Paired, Revision, Source, Store, StoreError};
use crate::control::{
    Asked, DocumentPiece, Fault, FaultKind, Patch, Reply, RevisionEntry, RevisionList, RevisionQuery, Terms,
};
use crate::ha::two_phase::Standing;
use crate::neighbours::State;
use crate::packet::DropReason;
use crate::time::Nanos;

/// Longest piece of a document in an answer.
const PIECE_BYTES: usize = 1 << 20;

/// How long a document that was asked for is held.
const HELD: Duration = Duration::from_secs(60);

/// How often what waits for the disk is looked at.
const TIDY: Duration = Duration::from_secs(1);

/// How long a document that was read is kept from those who wait for another one: since it was last asked for, and in
/// all.
const IDLE: Duration = Duration::from_secs(2);
const BUSY: Duration = Duration::from_secs(10);

/// When a commit that could not be taken back is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Number of a file and the place in it, as one number of the wire.
const PLACE_BITS: u32 = 40;

/// A whole revision on its way to the disk, with the files that it remembers.
type Kept = (Revision, Vec<Source>, Option<Staged>);

/// A commit that is taken back unless it is confirmed.
#[derive(Clone, Debug)]
struct Pending {
    number: u64,
    back_to: u64,
    deadline: Nanos,
    /// How it was before; `None`: a rollback could not be made, and is to be.
    found: Option<Found>,
}

/// A document on its way from the disk.
#[derive(Debug)]
enum Reading {
    Begun(JoinHandle<Result<Document, StoreError>>),
    Done { document: Arc<Document>, since: Nanos, asked: Nanos, is_told: bool },
}

impl Reading {
    /// Whether somebody else still needs it.
    fn is_in_use(&self, now: Nanos) -> bool {
        match self {
            Reading::Begun(_) => true,
            // Whoever has had the last piece needs no more.
            Reading::Done { since, asked, is_told, .. } => {
                !is_told && now.since(*asked) < IDLE && now.since(*since) < BUSY
            }
        }
    }
}

/// What is kept of the commits.
#[derive(Debug, Default)]
pub(super) struct History {
    store: Option<Store>,
    /// The one in force; 0: none yet.
    current: Revision,
    pending: Option<Pending>,
    /// A commit is being taken back: nothing that its config says may keep it.
    is_taking_back: bool,
    reading: Option<(u64, Reading)>,
    tidied: Nanos,
    watch: Watch,
    /// What takes the last commits back.
    pub(super) undo: Undo,
    /// Which of the config's nodes this is.
    node: Option<Name>,
}

/// What a change of the config is in its document.
#[derive(Clone)]
pub(super) enum Durable {
    /// The same.
    Same,
    /// Nothing: it is of members that go by themselves.
    Nothing,
    /// Something else.
    Other(Patch),
}

impl History {
    fn next(&self, asked: &Asked, changes: u64, message: Option<String>) -> Revision {
        Revision {
            number: self.current.number + 1,
            time: Revision::now(),
            by: asked.by.clone(),
            request: asked.request.clone(),
            about: asked.about.clone(),
            changes,
            message,
            fate: Fate::default(),
            confirm: None,
            pair: None,
        }
    }

    fn store(&self) -> Result<&Store, Fault> {
        self.store.as_ref().ok_or_else(no_history)
    }
}

fn no_history() -> Fault {
    Fault::refused("no revisions are kept: set state_dir in [control] and start again, or run --state DIR")
}

/// What to say where the disk does not take a revision that is in force.
fn unwritten(number: u64, error: &std::io::Error) -> String {
    tracing::error!(revision = number, %error, "a revision cannot be written");
    format!(
        "revision {number} is in force, but NOT on disk ({error}): a restart would not know it; it is tried again \
         until the disk takes it"
    )
}

impl Gateway {
    /// Keeps revisions from here on. The config it runs is `begun_with`, the last revision; or a new one, where it is none.
    pub fn keep_revisions(&mut self, store: Store, begun_with: Option<(Revision, Document, Option<String>)>) {
        self.history.current = store.last().cloned().unwrap_or_default();
        self.history.store = Some(store);
        let Some((revision, document, path)) = begun_with else {
            let made = humantime::parse_rfc3339(&self.history.current.time).ok();
            let made = made.and_then(|made| SystemTime::now().duration_since(made).ok());
            if let (Some(paired), Some(made)) = (self.history.current.pair.clone(), made) {
                self.resume_on_both(&paired, made);
            }
            return;
        };
        let file_name = document.file_name.clone();
        let staged = self.stage(revision, document, path.as_deref());
        if let Err(error) = staged.and_then(|staged| self.commit_staged(staged)) {
            tracing::error!(%error, "the config this start begins with is not kept as a revision");
        }
        self.file_name = file_name;
    }

    /// Lets a process have the revisions that is to take over, or takes them back.
    pub(super) fn lend_revisions(&self, is_lent: bool) -> std::io::Result<()> {
        self.history.store.as_ref().map_or(Ok(()), |store| store.lend(is_lent))
    }

    /// Says which of the nodes that configs know this is, for those that are applied from here on.
    pub fn is_node(&mut self, node: Option<Name>) {
        self.history.node = node;
    }

    /// Which of the nodes that configs know this is.
    pub(super) fn node_name(&self) -> Option<&Name> {
        self.history.node.as_ref()
    }

    /// Numbers commits without keeping them.
    pub fn number_revisions(&mut self) {
        self.history.current = Revision { number: 1, ..Revision::default() };
    }

    /// The revision in force; 0: none yet.
    pub(super) fn current_revision(&self) -> u64 {
        self.history.current.number
    }

    /// The user whose commit waits to be confirmed.
    pub(super) fn waiting_author(&self) -> Option<u32> {
        let current = &self.history.current;
        let pending = self.history.pending.as_ref().filter(|pending| pending.number == current.number);
        pending.and(current.by.uid)
    }

    /// Whether a commit may be begun: nobody else was quicker, and none waits to be confirmed.
    fn may_begin(&self, terms: &Terms) -> Result<(), Fault> {
        if let Some(pending) = &self.history.pending {
            let left = pending.deadline.since(self.now()).as_secs();
            return Err(Fault::new(
                FaultKind::Conflict,
                format!(
                    "revision {} waits to be confirmed, or to be taken back in {left} s: softgate confirm, or softgate \
                     rollback {}",
                    pending.number, pending.back_to
                ),
            ));
        }
        self.is_as_expected(terms)
    }

    /// Whether nobody else was quicker, and what is to be confirmed could be taken back.
    fn is_as_expected(&self, terms: &Terms) -> Result<(), Fault> {
        let current = &self.history.current;
        if terms.confirm_s.is_some() && self.history.store()?.is_behind() {
            let number = current.number;
            return Err(Fault::refused(format!(
                "the disk has not taken revision {number} yet: there would be nothing to go back to"
            )));
        }
        match terms.if_revision {
            Some(expected) if expected != current.number => Err(Fault::new(
                FaultKind::Conflict,
                format!(
                    "it was made for revision {expected}, and revision {} is in force, {}: look at softgate diff {expected} \
                     {}, and begin again",
                    current.number,
                    told(current),
                    current.number
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Takes a document on, whole.
    pub(super) fn take_document(
        &mut self,
        document: Document,
        path: Option<&str>,
        terms: &Terms,
        begun: Instant,
    ) -> Result<Reply, Fault> {
        self.may_begin(terms)?;
        self.put_in_force(document, path, terms, begun)
    }

    fn put_in_force(
        &mut self,
        document: Document,
        path: Option<&str>,
        terms: &Terms,
        begun: Instant,
    ) -> Result<Reply, Fault> {
        let mut config = document.config().map_err(Fault::refused)?;
        if let Some(node) = &self.history.node {
            config = config.on_node(node, &document.file_name).map_err(Fault::refused)?;
        }
        let text = document.text.clone();
        let mut warnings = self.not_changed_live(&config);
        let file_name = document.file_name.clone();
        let revision = self.with_confirm(self.history.next(&terms.asked, 1, terms.message.clone()), terms);
        let staged = self.stage(revision, document, path).map_err(|error| {
            Fault::refused(format!("the revision cannot be written: {error}; nothing has changed"))
        })?;
        let found = self.found_before(terms);
        let before = self.node().tables.load().generation;
        let applied = self.apply(config);
        // The gate has put before the workers what there was, made anew: a generation of its own.
        let is_refused = matches!(applied, Err(StartError::Refused(_)));
        if is_refused || applied.is_err() && self.node().tables.load().generation == before {
            if let Some(staged) = staged.2 {
                Store::abandon(staged);
            }
            return applied.map_err(Fault::refused).map(|_| unreachable!("it was refused"));
        }
        let applied_in = begun.elapsed();
        // Also where a port failed: its tables are in force.
        self.file_name = file_name;
        let number = staged.0.number;
        if let Err(error) = self.commit_staged(staged) {
            warnings.push(unwritten(number, &error));
        }
        // It answers for what waited before.
        self.history.pending = None;
        self.await_confirmation(terms, found);
        let generation = applied.map_err(Fault::refused)?;
        let odd = self.odd(&text);
        let down =
            |port: &super::LivePort| port.why_down().map(|why| format!("port {} is down: {why}", port.name));
        warnings.extend(self.ports().iter().filter_map(down));
        warnings.extend(odd);
        Ok(self.answer(generation, 1, applied_in, warnings, terms))
    }

    /// `applied_in`: how long it took until it was in force; that it is on disk comes on top.
    fn answer(
        &self,
        generation: u64,
        changes: u64,
        applied_in: Duration,
        warnings: Vec<String>,
        terms: &Terms,
    ) -> Reply {
        let mut answer = changed(generation, changes, applied_in, warnings, self.not_in_use(generation));
        let number = self.history.current.number;
        answer.revision = (number > 0).then_some(number);
        answer.confirm_s = terms.confirm_s.map(|seconds| seconds.get());
        Reply::Changed(answer)
    }

    fn with_confirm(&self, revision: Revision, terms: &Terms) -> Revision {
        // Not to one that waits itself: nobody has said yet that it is good.
        let waits = self.history.pending.as_ref();
        let back_to = waits.map_or(self.history.current.number, |pending| pending.back_to);
        let confirm = terms.confirm_s.map(|seconds| Confirm { within_s: seconds.get(), back_to });
        Revision { confirm, fate: terms.fate, pair: terms.paired.clone(), ..revision }
    }

    /// `found`: how it was before the commit.
    fn await_confirmation(&mut self, terms: &Terms, found: Option<Found>) {
        let Some(seconds) = terms.confirm_s else { return };
        let deadline = self.now().plus(Duration::from_secs(seconds.get().into()));
        let current = &self.history.current;
        let back_to = current.confirm.as_ref().map_or(current.number, |confirm| confirm.back_to);
        let number = current.number;
        self.history.pending = Some(Pending { number, back_to, deadline, found });
    }

    fn stage(&self, revision: Revision, document: Document, path: Option<&str>) -> std::io::Result<Kept> {
        let Some(store) = &self.history.store else { return Ok((revision, Vec::new(), None)) };
        let sources = store.sources_with(path, &document);
        let staged = store.stage(&revision, document, sources.clone())?;
        Ok((revision, sources, Some(staged)))
    }

    fn commit_staged(&mut self, (revision, sources, staged): Kept) -> std::io::Result<()> {
        self.history.undo.note(revision.number, None);
        self.history.current = revision.clone();
        match (&mut self.history.store, staged) {
            (Some(store), Some(staged)) => store.commit_whole(staged, revision, sources),
            _ => Ok(()),
        }
    }

    // ---- changes

    /// Makes these changes, and a revision of what of them is config.
    pub(super) fn commit(
        &mut self,
        patches: Vec<Patch>,
        terms: &Terms,
        begun: Instant,
    ) -> Result<Reply, Fault> {
        let durable: Vec<Durable> = patches.iter().map(|patch| self.durable(patch, patches.len())).collect();
        if !durable.iter().all(|durable| matches!(durable, Durable::Nothing)) || !terms.are_none() {
            self.may_begin(terms)?;
        }
        let changes: u64 = patches.iter().map(Patch::changes).sum();
        let found = self.found_before(terms);
        self.spent = Spent::default();
        let undo = self.change_noting(&patches, &durable)?;
        let applied_in = begun.elapsed();
        let generation = self.node().tables.load().generation;
        let kept = durable.into_iter().zip(patches).filter_map(|(durable, patch)| match durable {
            Durable::Same => Some(patch),
            Durable::Nothing => None,
            Durable::Other(other) => Some(other),
        });
        let kept: Vec<Patch> = kept.collect();
        let mut warnings = Vec::new();
        if kept.is_empty() {
            if terms.confirm_s.is_some() {
                warnings.push(String::from(
                    "nothing of it is config: it is no revision, and there is nothing to confirm",
                ));
            }
            return Ok(self.answer(generation, changes, applied_in, warnings, &Terms::default()));
        }
        let revision =
            self.with_confirm(self.history.next(&terms.asked, changes, terms.message.clone()), terms);
        self.history.current = revision.clone();
        self.history.undo.note(revision.number, undo);
        if let Some(store) = &mut self.history.store {
            let (number, writes) = (revision.number, Instant::now());
            if let Err(error) = store.commit_patches(revision, kept) {
                warnings.push(unwritten(number, &error));
            }
            Spent::add(&mut self.spent.write, writes);
        }
        self.await_confirmation(terms, found);
        Ok(self.answer(generation, changes, applied_in, warnings, terms))
    }

    /// What of a change is config. Alone in its transaction it is known what it is about; among others what it takes away may
    /// have come by one before.
    fn durable(&self, patch: &Patch, patches: usize) -> Durable {
        match patch {
            Patch::GroupAdd(change) if change.ttl_s.is_some() => Durable::Nothing,
            Patch::GroupDel(change) if patches == 1 => {
                let goes = |member| self.temporary.holds(&(change.group.clone(), member));
                match change.members.iter().cloned().all(goes) {
                    true => Durable::Nothing,
                    false => Durable::Same,
                }
            }
            Patch::NeighbourDel(keys) if patches == 1 => {
                let known =
                    |key| self.config.neighbours.iter().any(|known| super::requests::is_key(known, key));
                if keys.iter().any(known) { Durable::Same } else { Durable::Nothing }
            }
            Patch::ServiceSetBackends(all) if all.ttl_s.is_some() => {
                let keys: Vec<_> = all.backends.iter().map(crate::config::Backend::key).collect();
                if !all.others_stay {
                    let none =
                        crate::control::ServiceBackends { backends: Vec::new(), ttl_s: None, ..all.clone() };
                    return Durable::Other(Patch::ServiceSetBackends(none));
                }
                // Who was there for good goes by itself from now on.
                let service = self.config.services.iter().find(|service| service.name == all.service);
                let is_for_good = |key: &crate::config::BackendKey| {
                    let known = service.is_some_and(|of| of.backends.iter().any(|known| known.key() == *key));
                    known && !self.leases.holds(&(all.service.clone(), key.clone()))
                };
                if patches == 1 && !keys.iter().any(is_for_good) {
                    return Durable::Nothing;
                }
                let service = all.service.clone();
                let removed = crate::control::BackendsRemoved { service, backends: keys };
                Durable::Other(Patch::ServiceDelBackends(removed))
            }
            Patch::ServiceDelBackends(removed) if patches == 1 => {
                self.unless_leased(&removed.service, &removed.backends)
            }
            Patch::ServiceSetBackend(change) if patches == 1 => {
                self.unless_leased(&change.service, &change.backends)
            }
            _ => Durable::Same,
        }
    }

    fn unless_leased(
        &self,
        service: &crate::config::RuleName,
        backends: &[crate::config::BackendKey],
    ) -> Durable {
        let leased = |key: &crate::config::BackendKey| self.leases.holds(&(service.clone(), key.clone()));
        if backends.iter().all(leased) { Durable::Nothing } else { Durable::Same }
    }

    // ---- going back

    /// Goes back to a revision, as a new one.
    pub(super) fn rollback(&mut self, number: u64, terms: &Terms, begun: Instant) -> Result<Reply, Fault> {
        if number == self.history.current.number {
            return Err(Fault::refused(format!("revision {number} is in force")));
        }
        // Going back is what a commit that waits can always be answered with.
        self.is_as_expected(terms)?;
        if let Some(answer) = self.undo_to(number, terms, begun) {
            return Ok(answer);
        }
        let document = self.document(number)?;
        self.put_in_force(document, None, terms, begun)
    }

    /// Goes back by what undoes the commits since, where that is known: at the price of a commit of theirs. `None`: it
    /// cannot be, and nothing has changed.
    fn undo_to(&mut self, number: u64, terms: &Terms, begun: Instant) -> Option<Reply> {
        let store = self.history.store.as_ref()?;
        if !store.can_go_back(number) {
            return None;
        }
        let patches = self.small_way_back(number)?;
        let found = self.found_before(terms);
        self.spent = Spent::default();
        let undo = match self.change_noting(&patches, &vec![Durable::Same; patches.len()]) {
            Ok(undo) => undo,
            Err(fault) => {
                // Whoever reads the document says it better.
                tracing::debug!(%fault, revision = number, "the commits since cannot be undone one by one");
                return None;
            }
        };
        let applied_in = begun.elapsed();
        let generation = self.node().tables.load().generation;
        let revision = self.with_confirm(self.history.next(&terms.asked, 1, terms.message.clone()), terms);
        self.history.current = revision.clone();
        self.history.undo.note(revision.number, undo);
        let mut warnings = Vec::new();
        if let Some(store) = &mut self.history.store {
            let (made, writes) = (revision.number, Instant::now());
            if let Err(error) = store.commit_back(revision, number) {
                warnings.push(unwritten(made, &error));
            }
            Spent::add(&mut self.spent.write, writes);
        }
        // It answers for what waited before.
        self.history.pending = None;
        self.await_confirmation(terms, found);
        Some(self.answer(generation, 1, applied_in, warnings, terms))
    }

    pub(super) fn document(&mut self, number: u64) -> Result<Document, Fault> {
        if let Some((of, Reading::Done { document, .. })) = &self.history.reading
            && *of == number
        {
            return Ok(Document::clone(document));
        }
        self.history.store()?.document(number).map_err(not_there)
    }

    /// Keeps the last commit; of a number: if it is that one.
    pub(super) fn confirm(
        &mut self,
        number: Option<u64>,
        by: Author,
        begun: Instant,
    ) -> Result<Reply, Fault> {
        if let (Some(number), Some(pending)) = (number, &self.history.pending)
            && number != pending.number
        {
            let waits = pending.number;
            return Err(Fault::new(
                FaultKind::Conflict,
                format!(
                    "revision {waits} waits to be confirmed, not {number}: look at softgate show revisions"
                ),
            ));
        }
        let Some(pending) = self.history.pending.take() else {
            return Err(Fault::new(
                FaultKind::Order,
                "no revision waits to be confirmed; see show revisions",
            ));
        };
        let mut warnings = Vec::new();
        if let Some(store) = &mut self.history.store
            && let Err(error) = store.confirm(pending.number, by)
        {
            warnings.push(unwritten(pending.number, &error));
        }
        let generation = self.node().tables.load().generation;
        Ok(self.answer(generation, 0, begun.elapsed(), warnings, &Terms::default()))
    }

    /// Takes back what was not confirmed in time, and tends to the files; to be called at least every second.
    pub fn tend_revisions(&mut self) {
        let now = self.now();
        if let Some(pending) = self.history.pending.clone()
            && now >= pending.deadline
        {
            self.take_back(&pending, "it was not confirmed in time");
        }
        if now.since(self.history.tidied) >= TIDY {
            self.history.tidied = now;
            self.tell_config();
            if let Some(store) = &mut self.history.store {
                store.tidy();
            }
            if let Err(fault) = self.end_reading(now) {
                tracing::debug!(%fault, "a revision cannot be read");
            }
            if let Some((_, Reading::Done { asked, .. })) = &self.history.reading
                && now.since(*asked) >= HELD
            {
                self.history.reading = None;
            }
        }
    }

    /// When [`Gateway::tend_revisions`] has something to do at the latest, if that is known.
    pub(super) fn next_confirmation(&self) -> Option<Nanos> {
        self.history.pending.as_ref().map(|pending| pending.deadline)
    }

    fn take_back(&mut self, pending: &Pending, why: &str) {
        let (number, back_to) = (pending.number, pending.back_to);
        tracing::warn!(target: "softgate::audit", revision = number, back_to, why, "a commit is taken back");
        let asked = Asked {
            request: String::from("rollback"),
            about: vec![format!("revision {back_to}")],
            ..Asked::default()
        };
        let message = Some(format!("revision {number} is taken back: {why}"));
        let terms = Terms { message, ..Terms::by(asked) };
        self.history.is_taking_back = true;
        let done = self.rollback(back_to, &terms, Instant::now());
        self.history.is_taking_back = false;
        if self.history.current.number != number {
            // In force, also where a port failed.
            if let Err(fault) = done {
                tracing::error!(target: "softgate::audit", revision = number, %fault, "taken back, with trouble");
            }
            if let Err(why) = self.may_be_committed(self.compiler.tables(), &self.config) {
                tracing::warn!(target: "softgate::audit", back_to, %why, "what was gone back to does not hold");
            }
        } else if let Err(fault) = done {
            tracing::error!(target: "softgate::audit", revision = number, back_to, %fault, "it CANNOT be taken back");
            let deadline = self.now().plus(AGAIN);
            self.history.pending = Some(Pending { deadline, found: None, ..pending.clone() });
        }
    }

    // ---- commits on both nodes

    /// Whether a commit may be begun that may have to be taken back.
    pub(super) fn may_be_taken_back(&self, terms: &Terms) -> Result<(), Fault> {
        self.history.store()?;
        self.may_begin(terms)
    }

    /// The revision in force that both nodes have, or are to have.
    fn of_both(&self, commit: u64) -> Option<&Revision> {
        let is_it = |paired: &Paired| paired.commit == commit;
        Some(&self.history.current).filter(|revision| revision.pair.as_ref().is_some_and(is_it))
    }

    pub(super) fn standing_of(&self, commit: u64) -> Standing {
        match (self.of_both(commit).map(|revision| revision.number), &self.history.pending) {
            (None, _) => Standing::Gone,
            (Some(number), Some(pending)) if pending.number == number => Standing::Waits(number),
            (Some(number), _) => Standing::Kept(number),
        }
    }

    /// True if it was kept, whatever came after it.
    pub(super) fn has_kept(&self, commit: u64) -> bool {
        let store = self.history.store.as_ref();
        store.is_some_and(|store| {
            let is_it =
                |revision: &&Revision| revision.pair.as_ref().is_some_and(|pair| pair.commit == commit);
            store.revisions().rev().find(is_it).is_some_and(|it| store.confirmed(it.number).is_some())
        })
    }

    /// The revision that waits for the other node.
    pub(super) fn pair_waiting(&self) -> Option<u64> {
        let current = &self.history.current;
        let pending = self.history.pending.as_ref().filter(|pending| pending.number == current.number);
        pending.filter(|_| current.pair.is_some()).map(|pending| pending.number)
    }

    pub(super) fn take_back_of_both(&mut self, commit: u64, why: &str) {
        let Some(revision) = self.of_both(commit) else { return };
        let number = revision.number;
        let Some(back_to) = revision.confirm.as_ref().map(|confirm| confirm.back_to) else { return };
        // Also one that was kept: its reason is that it would be on both.
        self.take_back(&Pending { number, back_to, deadline: self.now(), found: None }, why);
    }

    /// True while a commit is being taken back.
    pub(super) fn is_taking_back(&self) -> bool {
        self.history.is_taking_back
    }

    /// What has been lost up to now.
    fn sample(&self) -> Sample {
        let workers = &self.node().counters;
        let lost = |reason: DropReason| -> u64 {
            workers.iter().map(|worker| worker.drops[reason.index()].load(Ordering::Relaxed)).sum()
        };
        let backends = self.compiler.policy_slots.backends.len();
        let refused_by = |slot| workers.iter().filter_map(move |worker| worker.backends.get(slot));
        let refused =
            (0..backends).flat_map(refused_by).map(|of| of.failed.load(Ordering::Relaxed)).sum::<u64>();
        Sample {
            at: self.now(),
            drops: DropReason::all().map(lost).sum(),
            failed_flows: FAILED_FLOWS.into_iter().map(lost).sum::<u64>() + refused,
        }
    }

    fn ills(&self) -> Ills {
        let neighbours = self.node().neighbours.entries();
        let lost_neighbours = neighbours.iter().filter(|entry| entry.word.state() == State::Failed).count();
        Ills { unhealthy_backends: self.compiler.unhealthy(), lost_neighbours }
    }

    /// What a commit that is to be confirmed is compared with.
    fn found_before(&self, terms: &Terms) -> Option<Found> {
        terms.confirm_s.map(|_| self.history.watch.found(self.sample(), self.ills()))
    }

    /// Notes what is lost, and whether a commit that waits to be confirmed does harm.
    pub(super) fn watch_commits(&mut self, now: Nanos) {
        if !self.history.watch.is_due(now) {
            return;
        }
        let sample = self.sample();
        self.history.watch.note(sample);
        let Some(pending) = self.history.pending.clone() else { return };
        let Some(found) = &pending.found else { return };
        if let Some(harm) = self.history.watch.harm(found, self.ills(), &self.config.commit) {
            self.take_back(&pending, &harm);
        }
    }

    // ---- what is shown

    pub(super) fn show_revisions(&self) -> RevisionList {
        let Some(store) = &self.history.store else {
            return RevisionList { current: self.history.current.number, ..RevisionList::default() };
        };
        let now = self.now();
        let entry = |revision: &Revision| {
            let pending = self.history.pending.as_ref().filter(|pending| pending.number == revision.number);
            RevisionEntry {
                confirmed_by: store.confirmed(revision.number).map(|(by, _)| by.clone()),
                taken_back_in_s: pending.map(|pending| pending.deadline.since(now).as_secs()),
                revision: revision.clone(),
            }
        };
        RevisionList {
            current: self.history.current.number,
            state_dir: Some(store.folder().display().to_string()),
            unwritten: store.is_behind(),
            revisions: store.revisions().rev().map(entry).collect(),
        }
    }

    /// A piece of a document; it is read on another thread.
    pub(super) fn show_revision(&mut self, query: &RevisionQuery) -> Result<DocumentPiece, Fault> {
        let number = query.revision.unwrap_or(self.history.current.number);
        let after = query.after.unwrap_or(0);
        let now = self.now();
        let of = self.history.reading.as_ref().map(|(of, _)| *of);
        let ended = self.end_reading(now);
        if of == Some(number) {
            ended?;
        }
        let waits = || DocumentPiece {
            revision: number,
            next: Some(after),
            reading: true,
            ..DocumentPiece::default()
        };
        match &mut self.history.reading {
            Some((of, Reading::Begun(_))) if *of == number => Ok(waits()),
            Some((of, Reading::Done { document, asked, is_told, .. })) if *of == number => {
                *asked = now;
                let piece = piece(document, number, after)?;
                *is_told = piece.next.is_none();
                Ok(piece)
            }
            other => {
                let store = self.history.store.as_ref().ok_or_else(no_history)?;
                let read = store.reader(number).map_err(not_there)?;
                // One thread, and one document, at a time.
                if other.as_ref().is_none_or(|(_, reading)| !reading.is_in_use(now)) {
                    let thread = std::thread::Builder::new().name(String::from("revision")).spawn(read);
                    *other = Some((number, Reading::Begun(thread.map_err(Fault::refused)?)));
                }
                Ok(waits())
            }
        }
    }

    /// What another thread has read is at hand from now on.
    fn end_reading(&mut self, now: Nanos) -> Result<(), Fault> {
        match self.history.reading.take() {
            Some((of, Reading::Begun(thread))) if thread.is_finished() => {
                let read = thread.join().map_err(|_| Fault::new(FaultKind::Internal, "reading has ended"))?;
                let document = Arc::new(read.map_err(not_there)?);
                self.history.reading =
                    Some((of, Reading::Done { document, since: now, asked: now, is_told: false }));
            }
            other => self.history.reading = other,
        }
        Ok(())
    }
}

fn told(revision: &Revision) -> String {
    let by = revision.by.uid.map_or_else(|| String::from("the gateway"), |uid| format!("user {uid}"));
    let role = revision.by.role.as_ref().map_or_else(String::new, |role| format!(" (role {role})"));
    let why = revision.message.as_ref().map_or_else(String::new, |why| format!(", {why:?}"));
    format!("by {} of {by}{role} at {}{why}", revision.request, revision.time)
}

fn not_there(error: StoreError) -> Fault {
    match error {
        StoreError::Unknown(_) => Fault::not_found(error),
        error => Fault::refused(error),
    }
}

fn piece(document: &Document, number: u64, after: u64) -> Result<DocumentPiece, Fault> {
    let wrong = || Fault::new(FaultKind::InvalidParams, "after: not `next` of an answer before");
    let (file, from) = ((after >> PLACE_BITS) as usize, (after & ((1 << PLACE_BITS) - 1)) as usize);
    let (name, text) = match file {
        0 => ("", &document.text),
        _ => document.files.get(file - 1).map(|(name, text)| (name.as_str(), text)).ok_or_else(wrong)?,
    };
    let rest = text.get(from..).ok_or_else(wrong)?;
    let cut = rest.floor_char_boundary(PIECE_BYTES);
    let next = match cut < rest.len() {
        true => Some(after + cut as u64),
        false => (file < document.files.len()).then(|| (file as u64 + 1) << PLACE_BITS),
    };
    Ok(DocumentPiece {
        revision: number,
        next,
        reading: false,
        file_name: document.file_name.clone(),
        name: name.to_owned(),
        text: rest[..cut].to_owned(),
    })
}
