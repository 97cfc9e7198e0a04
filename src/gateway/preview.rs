//! `preview` on the running gateway: what a commit would do to the sessions there are.
//!
//! A config is read and compiled on a thread of its own, by a branch of the compiler ([`Compiler::branch`]): what it makes
//! no worker sees, and nothing is taken. Then every session is read through the one rate-limited reader, some of them with
//! each request, and judged by the function that workers judge it by after a commit ([`judge`]). One preview at a time.

use std::thread::JoinHandle;
use std::time::Duration;

use super::inspect::Inspector;
use super::{Gateway, LivePort, Planned, planned_facts};
use crate::config::Config;
use crate::control::revisions::Document;
use crate::control::{
    FateCount, Fault, FaultKind, PreviewExample, PreviewQuery, PreviewStage, Previewed, SessionFate,
};
use crate::flow::Tick;
use crate::flow::scan::SessionView;
use crate::flow::standing::Standing;
use crate::neighbours::{MAX_SLOTS, ip_of, is_v4_key};
use crate::packet::DropReason;
use crate::pipeline::judge::{self, Ends, Judged};
use crate::pipeline::{self, Decision};
use crate::reader::Found;
use crate::tables::Tables;
use crate::tables::balance::BackendFate;
use crate::tables::compile::Compiler;
use crate::tables::meaning::{self, PortFacts};
use crate::tables::policy::DEFAULT_RULE;
use crate::time::Nanos;

/// How long a preview is kept from those who want another: since it was last asked for.
const IDLE: Duration = Duration::from_secs(2);

/// How long it is kept for who has begun it.
const KEPT: Duration = Duration::from_secs(30);

/// What a thread makes, or what was wrong.
type Making<T> = JoinHandle<Result<T, String>>;

enum Stage {
    Reading(Making<Box<Config>>),
    Compiling(Making<Box<Compiler>>, Base),
    Judging(Box<Judging>),
}

/// What was in force when the branch was made.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Base {
    epoch: u32,
    names: [usize; 8],
}

impl Base {
    fn of(compiler: &Compiler) -> Base {
        Base { epoch: compiler.tables().flow_epoch(), names: compiler.names_known() }
    }
}

struct Judging {
    branch: Box<Compiler>,
    base: Base,
    /// Where the reader goes on.
    after: Option<u64>,
    sessions: u64,
    /// By the place in [`SessionFate::ALL`].
    counts: [u64; SessionFate::ALL.len()],
    examples: Vec<PreviewExample>,
}

struct Running {
    number: u64,
    stage: Stage,
    /// Of each fate.
    most_examples: usize,
    asked: Nanos,
}

/// The preview that is under way, if one is.
#[derive(Default)]
pub(super) struct Preview {
    running: Option<Running>,
    /// The number of the last one.
    last: u64,
}

impl Preview {
    /// Forgets one that nobody asks for any more.
    pub(super) fn tidy(&mut self, now: Nanos) {
        // A thread that works is waited for: there is one at a time.
        if self.running.as_ref().is_some_and(|running| now.since(running.asked) >= KEPT && !running.works()) {
            free(self.running.take());
        }
    }
}

impl Running {
    fn works(&self) -> bool {
        match &self.stage {
            Stage::Reading(thread) => !thread.is_finished(),
            Stage::Compiling(thread, _) => !thread.is_finished(),
            Stage::Judging(_) => false,
        }
    }
}

/// Tables of a million routes take a while to free.
fn free(running: Option<Running>) {
    let Some(running) = running else { return };
    // Where there is no thread to be had, they are freed here.
    let _ = std::thread::Builder::new().name(String::from("preview")).spawn(move || drop(running));
}

fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<Making<T>, Fault> {
    std::thread::Builder::new().name(String::from("preview")).spawn(work).map_err(Fault::refused)
}

/// What a thread has made.
fn made<T>(thread: Making<T>) -> Result<T, Fault> {
    let ended = |_| Fault::new(FaultKind::Internal, "the thread of the preview has ended");
    thread.join().map_err(ended)?.map_err(Fault::refused)
}

impl Gateway {
    /// Begins a preview, or goes on with one.
    pub(super) fn preview(&mut self, query: PreviewQuery) -> Result<Previewed, Fault> {
        let Some(number) = query.after else { return self.begin_preview(query) };
        let now = self.now();
        let running = self.preview.running.take().filter(|running| running.number == number);
        let Some(mut running) = running else {
            return Err(Fault::not_found(format!("preview {number} is over, begin another")));
        };
        running.asked = now;
        // What fails is over.
        let most_examples = running.most_examples;
        let (stage, done) = match running.stage {
            stage @ (Stage::Reading(_) | Stage::Compiling(..)) if !is_made(&stage) => (stage, None),
            Stage::Reading(thread) => (self.begin_compiling(*made(thread)?)?, None),
            Stage::Compiling(thread, base) => {
                (Stage::Judging(Box::new(Judging::new(made(thread)?, base))), None)
            }
            Stage::Judging(mut judging) => {
                if let Err(fault) = self.judge_some(&mut judging, most_examples) {
                    free(Some(Running { stage: Stage::Judging(judging), ..running }));
                    return Err(fault);
                }
                let is_done = judging.after.is_none();
                (Stage::Judging(judging), Some(is_done))
            }
        };
        let mut answer = self.previewed(number, &stage);
        let running = Running { stage, ..running };
        if done == Some(true) {
            (answer.stage, answer.next) = (PreviewStage::Done, None);
            if let Stage::Judging(judging) = &running.stage {
                answer.examples = judging.examples.clone();
            }
            free(Some(running));
        } else {
            self.preview.running = Some(running);
        }
        Ok(answer)
    }

    fn begin_preview(&mut self, query: PreviewQuery) -> Result<Previewed, Fault> {
        let now = self.now();
        if let Some(running) = &self.preview.running
            && (now.since(running.asked) < IDLE || running.works())
        {
            let message = "another preview is under way: try again in a few seconds";
            return Err(Fault::new(FaultKind::Limit, message));
        }
        let examples = query.examples.unwrap_or(PreviewQuery::EXAMPLES);
        if examples > PreviewQuery::MOST_EXAMPLES {
            let message = format!("examples: at most {}", PreviewQuery::MOST_EXAMPLES);
            return Err(Fault::new(FaultKind::InvalidParams, message));
        }
        free(self.preview.running.take());
        let PreviewQuery { file_name, text, files, .. } = query;
        let node = self.node_name().cloned();
        let read = move || {
            let document = Document { file_name, text, files };
            let config = document.config().map_err(|errors| errors.to_string())?;
            let config = match node {
                Some(node) => {
                    config.on_node(&node, &document.file_name).map_err(|errors| errors.to_string())?
                }
                None => config,
            };
            Ok(Box::new(config))
        };
        let stage = Stage::Reading(spawn(read)?);
        self.preview.last += 1;
        let number = self.preview.last;
        let answer = self.previewed(number, &stage);
        self.preview.running = Some(Running { number, stage, most_examples: examples as usize, asked: now });
        Ok(answer)
    }

    /// The config as a commit would take it on: with what goes by itself, and ports as they are or will be.
    fn begin_compiling(&self, mut config: Config) -> Result<Stage, Fault> {
        let _ = self.temporary.join(&mut config.groups);
        let _ = self.join_leases(&mut config);
        let mut branch = Box::new(self.compiler.branch());
        let base = Base::of(&self.compiler);
        let planned =
            config.ports.iter().map(|port| match self.ports.iter().position(|old| old.is_as(port)) {
                Some(old) => Planned::Kept { old, lag: port.lag },
                None => Planned::New(LivePort::new(0, port, &self.watcher)),
            });
        let planned: Vec<Planned> = planned.collect();
        let mut facts = planned_facts(&planned, &self.ports);
        for (facts, planned) in facts.iter_mut().zip(&planned) {
            if let Planned::New(port) = planned {
                *facts = PortFacts { members_up: will_be_up(port), ..*facts };
            }
        }
        let compile = move || {
            let rib = meaning::rib(&config, &mut branch).map_err(|error| error.to_string())?;
            let input = meaning::input(&config, &facts, &mut branch).map_err(|error| error.to_string())?;
            // Pinned in the branch's neighbours, which go with it.
            let _ = branch.compile(input, rib).map_err(|error| error.to_string())?;
            Ok(branch)
        };
        Ok(Stage::Compiling(spawn(compile)?, base))
    }

    fn previewed(&self, number: u64, stage: &Stage) -> Previewed {
        let revision = Some(self.current_revision()).filter(|revision| *revision > 0);
        let mut answer = Previewed { next: Some(number), revision, ..Previewed::default() };
        match stage {
            Stage::Reading(_) => answer.stage = PreviewStage::Reading,
            Stage::Compiling(..) => answer.stage = PreviewStage::Compiling,
            Stage::Judging(judging) => {
                answer.stage = PreviewStage::Judging;
                answer.sessions = judging.sessions;
                let counts = SessionFate::ALL.into_iter().zip(judging.counts);
                answer.fates = counts.map(|(fate, sessions)| FateCount { fate, sessions }).collect();
            }
        }
        answer
    }

    /// Looks at as many sessions as one request may.
    fn judge_some(&self, judging: &mut Judging, most_examples: usize) -> Result<(), Fault> {
        // Slots and epochs of sessions mean what they meant when the branch was made, or nothing can be said.
        if judging.base != Base::of(&self.compiler) {
            let message = "the gateway's tables have changed since the preview began: begin again";
            return Err(Fault::new(FaultKind::Conflict, message));
        }
        let inspector = self.inspector();
        let now = Tick::of(self.now());
        let after = judging.after;
        let next = inspector.standings(after, |worker, found| {
            let Found::Standing(view, standing) = found else { return };
            judging.note(&inspector, (&view, &standing), (worker, now), most_examples);
        })?;
        judging.after = next;
        Ok(())
    }
}

fn is_made(stage: &Stage) -> bool {
    match stage {
        Stage::Reading(thread) => thread.is_finished(),
        Stage::Compiling(thread, _) => thread.is_finished(),
        Stage::Judging(_) => true,
    }
}

/// The members of a port that will carry traffic once it is bound.
fn will_be_up(port: &LivePort) -> u8 {
    let can = |member: &super::Member| member.link.is_some_and(|link| link.carrier);
    port.members.iter().enumerate().filter(|(_, member)| can(member)).fold(0, |mask, (at, _)| mask | 1 << at)
}

impl Judging {
    fn new(branch: Box<Compiler>, base: Base) -> Judging {
        Judging { branch, base, after: None, sessions: 0, counts: Default::default(), examples: Vec::new() }
    }

    fn note(
        &mut self,
        inspector: &Inspector<'_>,
        (view, standing): (&SessionView, &Standing),
        (worker, now): (usize, Tick),
        most_examples: usize,
    ) {
        let foreseen = Foreseen::of(self.branch.tables(), inspector.compiler.tables(), standing);
        let fate = foreseen.fate();
        self.sessions += 1;
        let at = SessionFate::ALL.iter().position(|known| *known == fate).unwrap_or(0);
        self.counts[at] += 1;
        if !matches!(fate, SessionFate::Stays) && self.counts[at] <= most_examples as u64 {
            let why = Words { then: &self.branch, now: inspector.compiler }.why(&foreseen, standing);
            let session = inspector.session(view, worker, now);
            self.examples.push(PreviewExample { fate, why, session });
        }
    }
}

/// What becomes of a session.
#[derive(Clone, Copy)]
enum Foreseen {
    Ending,
    Stays,
    Drains,
    Ends(Ends),
    /// Its next packet is decided as a first one.
    Again(Decision),
    Moves(Judged),
    OtherRule(Judged),
}

impl Foreseen {
    /// By the tables that a commit would make; `now`: those in force.
    fn of(then: &Tables, now: &Tables, standing: &Standing) -> Foreseen {
        let kept =
            if drains(then, standing) && !drains(now, standing) { Foreseen::Drains } else { Foreseen::Stays };
        if judge::still_holds(then, standing) {
            return if standing.is_condemned() { Foreseen::Ending } else { kept };
        }
        let (record, upper) = (&standing.record, standing.tuple.protocol);
        match judge::judge(then, standing) {
            Ok(judged) if judged.leads_elsewhere(standing) || judged.leads_back_elsewhere(standing) => {
                Foreseen::Moves(judged)
            }
            Ok(_) if matches!(kept, Foreseen::Drains) => kept,
            Ok(judged) if judged.has_other_rule(standing) => Foreseen::OtherRule(judged),
            Ok(_) => kept,
            Err(_) if standing.is_untouched => Foreseen::Stays,
            Err(_) if standing.is_condemned() => Foreseen::Ending,
            Err(_)
                if judge::backend_fate(then, record.backend(), standing.epoch, upper)
                    == BackendFate::Rehash =>
            {
                Foreseen::Again(pipeline::decide(then, &judge::question_of(standing), None, None))
            }
            Err(ends) => Foreseen::Ends(ends),
        }
    }

    fn fate(&self) -> SessionFate {
        match self {
            Foreseen::Ending => SessionFate::Ending,
            Foreseen::Stays => SessionFate::Stays,
            Foreseen::Drains => SessionFate::Drains,
            Foreseen::Ends(Ends { reason: DropReason::NatPathChanged, .. }) => SessionFate::MappingLost,
            Foreseen::Again(Decision::Session(_)) => SessionFate::BackendChanged,
            Foreseen::Ends(_) | Foreseen::Again(_) => SessionFate::Dropped,
            Foreseen::Moves(_) => SessionFate::EgressChanged,
            Foreseen::OtherRule(_) => SessionFate::RuleChanged,
        }
    }
}

/// True if a session uses something that takes nothing new: an outside address that is in no pool, a backend that is out of
/// service.
fn drains(tables: &Tables, standing: &Standing) -> bool {
    let Standing { record, new_src, reply_vrf, .. } = standing;
    let has_left =
        || is_v4_key(*new_src) && tables.policy.pool_of(*reply_vrf, (*new_src as u32).into()).is_none();
    record.mapping != 0 && has_left()
        || record.backend().is_some_and(|backend| !tables.backends.is_in_service(backend))
}

/// What is foreseen, in words of the config that would be in force.
struct Words<'a> {
    then: &'a Compiler,
    now: &'a Compiler,
}

impl Words<'_> {
    fn why(&self, foreseen: &Foreseen, standing: &Standing) -> String {
        let slots = &self.then.policy_slots;
        let backend = |slot: Option<u32>| {
            let name = slot.and_then(|slot| slots.backends.names().get(slot as usize));
            name.map_or("?", |name| name.strip_suffix("@default").unwrap_or(name)).to_owned()
        };
        match foreseen {
            Foreseen::Ending => String::from("it is not allowed by the config in force"),
            Foreseen::Stays => String::new(),
            Foreseen::Drains if standing.record.backend().is_some() => {
                format!("{} takes no new ones", backend(standing.record.backend()))
            }
            Foreseen::Drains => format!("{} is in no pool any more", ip_of(standing.new_src)),
            Foreseen::Ends(ends) => self.why_it_ends(ends, standing),
            Foreseen::Again(Decision::Session(allowed)) => match allowed.backend {
                Some(_) => {
                    format!("from {} to {}", backend(standing.record.backend()), backend(allowed.backend))
                }
                None => format!(
                    "its service is gone: from {} to {}",
                    backend(standing.record.backend()),
                    allowed.dst
                ),
            },
            Foreseen::Again(Decision::Drop(reason) | Decision::Refused(_, reason)) => {
                format!(
                    "{} fails, and no other takes it: {}",
                    backend(standing.record.backend()),
                    reason.name()
                )
            }
            Foreseen::Again(_) => {
                format!("{} fails, and no other takes it", backend(standing.record.backend()))
            }
            Foreseen::Moves(judged) => self.where_it_moves(judged, standing),
            Foreseen::OtherRule(judged) => {
                let rule = |slot: u32| slots.rules.names().get(slot as usize).map_or("?", String::as_str);
                let (record, allowed) = (&standing.record, &judged.allowed);
                if record.rule != allowed.ruling.rule {
                    return format!("rule {} instead of {}", rule(allowed.ruling.rule), rule(record.rule));
                }
                let nat =
                    |slot: u16| slots.nat_rules.names().get(usize::from(slot)).map_or("?", String::as_str);
                format!("NAT rule {} instead of {}", nat(allowed.nat_rule), nat(record.nat_rule))
            }
        }
    }

    fn why_it_ends(&self, ends: &Ends, standing: &Standing) -> String {
        let name = |interface: u16| {
            self.then.interfaces.names().get(usize::from(interface)).map_or("?", String::as_str)
        };
        match (ends.ruling, ends.lost_to, ends.reason) {
            (Some(ruling), ..) if ruling.rule == DEFAULT_RULE => String::from("no rule allows it"),
            (Some(ruling), ..) => {
                let names = self.then.policy_slots.rules.names();
                format!("rule {} refuses it", names.get(ruling.rule as usize).map_or("?", String::as_str))
            }
            (_, Some(reason), _) => format!("{}: {}", reason.name(), reason.explanation()),
            (_, _, DropReason::BackendFailed) => {
                String::from("its backend or service is gone or disabled, and says reset")
            }
            (_, _, DropReason::NatPathChanged) => {
                format!("it leaves by {} no more, and its source is another there", name(standing.egress))
            }
            _ => String::from("it would come from or go to another zone, or to the gateway itself"),
        }
    }

    fn where_it_moves(&self, judged: &Judged, standing: &Standing) -> String {
        let way = |compiler: &Compiler, egress: u16, via: Option<u32>| {
            let name = compiler.interfaces.names().get(usize::from(egress)).map_or("nowhere", String::as_str);
            let via = via.filter(|slot| (*slot as usize) < MAX_SLOTS);
            match via {
                Some(slot) => format!("{name} via {}", compiler.neighbours().key_of(slot).1),
                None => name.to_owned(),
            }
        };
        let Standing { egress, next_hop, back, .. } = standing;
        if judged.leads_elsewhere(standing) {
            let (old, new) = (
                way(self.now, *egress, Some(next_hop.slot())),
                way(self.then, judged.allowed.egress, judged.allowed.via),
            );
            return format!("leaves by {new} instead of {old}");
        }
        let old = way(self.now, back.0, Some(back.1.slot()));
        format!("replies leave by {} instead of {old}", way(self.then, judged.back.0, judged.back.1))
    }
}
