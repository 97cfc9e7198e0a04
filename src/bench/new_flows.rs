//! Packets each of which begins a session: how many a second, and what memory a session takes.
//!
//! *Create-only*: round by round, all frames once into a table that is empty. *Churn*: the clock goes on by a step
//! in each turn, so that as many sessions end as begin; the captures have to hold more flows than live at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{MAX_SAMPLES, Measured, Options};
use crate::io::memory::{MemoryPort, Sink, Template};
use crate::mem::tsc;
use crate::time::Nanos;
use crate::worker::{Node, Worker};

/// What begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFlows {
    /// All sessions end between two rounds.
    CreateOnly,
    /// Each turn is so much later than the one before.
    Churn {
        /// Time between two turns.
        step: Duration,
    },
}

/// Longer than any timer and any hold-down.
const ALL_IS_OVER: Duration = Duration::from_secs(86_400);

/// Turns of the null pipeline, the cost of which is so small that it need not be known well.
const NULL_TURNS: usize = 2000;

/// The virtual clock and what it drives.
struct Bench<'a> {
    worker: &'a mut Worker,
    node: &'a Node,
    templates: &'a [Arc<Template>],
    id: usize,
    now: Nanos,
    measured: Measured,
}

/// Runs one worker. `templates` stand for the ports, in their order; none is attached.
pub(super) fn measure(
    worker: &mut Worker,
    node: &Node,
    templates: &[Arc<Template>],
    id: usize,
    kind: NewFlows,
    options: &Options,
) -> Measured {
    let (now, measured) = (Nanos::from_secs(1), Measured::default());
    let mut bench = Bench { worker, node, templates, id, now, measured };
    bench.attach(true);
    bench.worker.set_null_pipeline(true);
    let null = bench.timed(Duration::ZERO, |turns, _| turns < NULL_TURNS);
    bench.measured.null.push(null);
    bench.measured.bursts.clear();
    bench.worker.set_null_pipeline(false);
    bench.detach();
    let budget = Duration::from_secs_f64(options.seconds);
    match kind {
        NewFlows::CreateOnly => bench.create(budget),
        NewFlows::Churn { step } => bench.churn(step, budget),
    }
    bench.measured
}

impl Bench<'_> {
    fn attach(&mut self, for_ever: bool) {
        for (port, template) in self.templates.iter().enumerate() {
            let io = MemoryPort::new(Arc::clone(template), for_ever, Sink::Discard);
            self.worker.attach(port as u16, 0, Box::new(io));
        }
    }

    fn detach(&mut self) {
        (0..self.templates.len()).for_each(|port| self.worker.detach(port as u16, 0));
    }

    fn received(&self) -> u64 {
        self.node.counters[self.id].received.load(Ordering::Relaxed)
    }

    fn opened(&self) -> u64 {
        self.node.counters[self.id].sessions_opened.load(Ordering::Relaxed)
    }

    /// Turns while `goes_on` says so, given the number of turns and whether the last one found work: cycles and packets.
    fn timed(&mut self, step: Duration, mut goes_on: impl FnMut(usize, bool) -> bool) -> (u64, u64) {
        let before = self.received();
        let (mut turns, mut worked) = (0, true);
        let first = tsc::cycles();
        let mut last = first;
        while goes_on(turns, worked) {
            worked = self.worker.turn(self.now);
            self.now = self.now.plus(step);
            turns += 1;
            let now = tsc::cycles();
            if self.measured.bursts.len() < MAX_SAMPLES {
                self.measured.bursts.push((now - last) as u32);
            }
            last = now;
        }
        (last - first, self.received() - before)
    }

    /// Times one stretch and notes it.
    fn stretch(&mut self, step: Duration, goes_on: impl FnMut(usize, bool) -> bool) {
        let (begun, opened) = (Instant::now(), self.opened());
        let sample = self.timed(step, goes_on);
        self.measured.elapsed += begun.elapsed();
        self.measured.packets += sample.1;
        self.measured.opened += self.opened() - opened;
        self.measured.full.push(sample);
    }

    fn create(&mut self, budget: Duration) {
        let begun = Instant::now();
        let resident = resident_bytes();
        loop {
            self.attach(false);
            self.stretch(Duration::ZERO, |_, worked| worked);
            self.detach();
            if self.measured.full.len() == 1 {
                // Of the first round: later ones find the memory there.
                let grown = resident_bytes().saturating_sub(resident);
                self.measured.bytes_per_session = grown as f64 / self.measured.opened.max(1) as f64;
            } else if begun.elapsed() > budget {
                return;
            }
            self.now = self.now.plus(ALL_IS_OVER);
            while self.worker.turn(self.now) {}
            // The hold-down of their ports, and what sweeps over all of them take, a part each time.
            for _ in 0..2000 {
                self.now = self.now.plus(Duration::from_millis(100));
                while self.worker.turn(self.now) {}
            }
        }
    }

    fn churn(&mut self, step: Duration, budget: Duration) {
        self.attach(true);
        // Once through all frames: from then on as many end as begin.
        let all: usize = self.templates.iter().map(|template| template.len()).sum();
        let until = self.received() + all as u64;
        while self.received() < until {
            self.worker.turn(self.now);
            self.now = self.now.plus(step);
        }
        let begun = Instant::now();
        while begun.elapsed() < budget {
            let window = Instant::now();
            self.stretch(step, |turns, _| turns % 16 != 0 || window.elapsed() < budget / 20);
        }
        self.detach();
    }
}

/// Resident memory of the process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
