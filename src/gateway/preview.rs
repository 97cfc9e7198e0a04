//! `preview` on the running gateway: what a commit would do to the sessions there are.
//!
//! A config is read and compiled on a thread of its own, by a branch of the compiler ([`Compiler::branch`]): what it makes
//! no worker sees, and nothing is taken. Then every session is read through the one rate-limited reader, some of them with
//! each request, and judged by the function that workers judge it by after a commit ([`foresee`]). One preview at a time.

use std::thread::JoinHandle;
use std::time::Duration;

use super::inspect::Inspector;
use super::{Gateway, LivePort, Planned, planned_facts};
use crate::config::{Config, Fate};
use crate::control::revisions::Document;
use crate::control::{
    FateCount, Fault, FaultKind, PreviewExample, PreviewQuery, PreviewStage, Previewed, SessionFate,
};
use crate::explain::foresee::{self, Foreseen};
use crate::flow::Tick;
use crate::flow::scan::SessionView;
use crate::flow::standing::Standing;
use crate::reader::Found;
use crate::tables::compile::Compiler;
use crate::tables::meaning::{self, PortFacts};
use crate::time::Nanos;

/// How long a preview is kept from those who want another: since it was last asked for.
const IDLE: Duration = Duration::from_secs(2);

/// How long it is kept for who has begun it.
const KEPT: Duration = Duration::from_secs(30);

/// What a thread makes, or what was wrong.
type Making<T> = JoinHandle<Result<T, String>>;

/// A config and what was compiled of it, or what was wrong.
pub(super) type Compiled = Result<(Config, Box<Compiler>), String>;

enum Stage {
    Reading(Making<Box<Config>>, Fate),
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
            Stage::Reading(thread, _) => !thread.is_finished(),
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
            stage @ (Stage::Reading(..) | Stage::Compiling(..)) if !is_made(&stage) => (stage, None),
            Stage::Reading(thread, fate) => (self.begin_compiling(*made(thread)?, fate)?, None),
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
        let PreviewQuery { file_name, text, files, fate, .. } = query;
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
        let stage = Stage::Reading(spawn(read)?, fate);
        self.preview.last += 1;
        let number = self.preview.last;
        let answer = self.previewed(number, &stage);
        self.preview.running = Some(Running { number, stage, most_examples: examples as usize, asked: now });
        Ok(answer)
    }

    /// The config as a commit would take it on: with what goes by itself, and ports as they are or will be.
    fn begin_compiling(&self, config: Config, fate: Fate) -> Result<Stage, Fault> {
        let base = Base::of(&self.compiler);
        let (compile, _) = self.to_compile(config, fate);
        Ok(Stage::Compiling(spawn(move || compile().map(|(_, branch)| branch))?, base))
    }

    /// The same as work for another thread, and the ports as they will be.
    pub(super) fn to_compile(
        &self,
        mut config: Config,
        fate: Fate,
    ) -> (impl FnOnce() -> Compiled + Send + 'static, Vec<Planned>) {
        let _ = self.temporary.join(&mut config.groups);
        let _ = self.join_leases(&mut config);
        let mut branch = Box::new(self.compiler.branch());
        branch.fate = fate;
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
            Ok((config, branch))
        };
        (compile, planned)
    }

    fn previewed(&self, number: u64, stage: &Stage) -> Previewed {
        let revision = Some(self.current_revision()).filter(|revision| *revision > 0);
        let mut answer = Previewed { next: Some(number), revision, ..Previewed::default() };
        match stage {
            Stage::Reading(..) => answer.stage = PreviewStage::Reading,
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
        Stage::Reading(thread, _) => thread.is_finished(),
        Stage::Compiling(thread, _) => thread.is_finished(),
        Stage::Judging(_) => true,
    }
}

/// The members of a port that will carry traffic once it is bound.
pub(super) fn will_be_up(port: &LivePort) -> u8 {
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
            let why = foresee::why(&foreseen, standing, &self.branch, inspector.compiler);
            let session = inspector.session(view, worker, now);
            self.examples.push(PreviewExample { fate, why, session });
        }
    }
}
