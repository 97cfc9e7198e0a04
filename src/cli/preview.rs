//! `softgate preview FILE`: what another config would do to the live sessions; with `--capture` which flows of a capture it
//! would treat otherwise.

mod live;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::explain::{self as asking, Asked};
use super::revisions::FateArg;
use super::{Trouble, print, print_json};
use crate::control::{ExplainQuery, Explanation, Outcome, PreviewQuery};
use crate::explain;
use crate::io::pcap;

/// Most flows.
const MOST: usize = 10_000;

/// Arguments of `preview`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config that would take over
    file: PathBuf,
    /// Sessions shown of each fate
    #[arg(long, value_name = "N", default_value_t = PreviewQuery::EXAMPLES, conflicts_with = "capture",
        value_parser = clap::value_parser!(u32).range(..=i64::from(PreviewQuery::MOST_EXAMPLES)))]
    examples: u32,
    /// What the commit would say of sessions that it ends
    #[arg(long, value_enum, default_value = "re-decide", conflicts_with = "capture")]
    fate: FateArg,
    /// Instead of live sessions captured packets (pcap or pcapng): the first of each flow counts
    #[arg(long, value_name = "FILE", requires = "port")]
    capture: Option<PathBuf>,
    /// The port that they came in by
    #[arg(long, requires = "capture")]
    port: Option<String>,
    /// Instead of the running gateway's tables those of this config
    #[arg(long, value_name = "FILE", requires = "capture")]
    running: Option<PathBuf>,
    /// At most so many flows
    #[arg(long, default_value_t = 1000, value_parser = parse_count, requires = "capture")]
    count: usize,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=MOST).contains(count)).ok_or_else(|| format!("1 to {MOST}"))
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Fate {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// `STEP NAME: WORDS` of what decides; chance (an outside port) left aside.
    decisions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Difference {
    packet: String,
    running: Fate,
    then: Fate,
}

#[derive(Debug, Serialize)]
struct Preview {
    flows: usize,
    differences: Vec<Difference>,
}

pub(super) fn run(args: &Args, socket: &Path) -> Result<(), Trouble> {
    match (&args.capture, &args.port) {
        (Some(capture), Some(port)) => of_capture(args, capture, port, socket),
        _ => live::run(&args.file, (args.examples, args.fate.into()), args.json, socket),
    }
}

fn of_capture(args: &Args, capture: &Path, port: &str, socket: &Path) -> Result<(), Trouble> {
    let captured = pcap::read(capture).map_err(|error| Trouble::Unable(error.to_string()))?;
    let mut seen = BTreeSet::new();
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for one in captured {
        if frames.len() < args.count && explain::flow_of(&one.bytes).is_some_and(|flow| seen.insert(flow)) {
            frames.push(one.bytes);
        }
    }
    let (mut running, mut then) = (Vec::new(), Vec::new());
    for part in frames.chunks(ExplainQuery::MOST) {
        let asked = Asked::Frames(port.to_owned(), part.to_vec());
        let now = match &args.running {
            Some(file) => asking::by_config(file, &asked, None)?,
            None => asking::by_gateway(&asked, socket)?,
        };
        running.extend(now.packets);
        let known = args.running.is_none().then_some(socket);
        then.extend(asking::by_config(&args.file, &asked, known)?.packets);
    }
    let both = running.iter().zip(&then);
    let differences = both.filter_map(|(now, then)| {
        let (running, fate) = (fate(now), fate(then));
        (running != fate).then(|| Difference { packet: now.packet.clone(), running, then: fate })
    });
    let preview = Preview { flows: frames.len(), differences: differences.collect() };
    if args.json {
        return print_json(&preview);
    }
    print(&text(&preview))
}

fn fate(told: &Explanation) -> Fate {
    // Who is asked for its address first is not another way.
    let outcome = if told.outcome == Outcome::Waits { Outcome::Forwarded } else { told.outcome };
    let decides = ["service", "destination-nat", "route", "rule", "source-nat", "bridge"];
    let decisions = told.steps.iter().filter(|step| decides.contains(&step.step.as_str()));
    let decisions = decisions
        .map(|step| format!("{} {}: {}", step.step, step.name.as_deref().unwrap_or("-"), step.says))
        .collect();
    Fate { outcome, reason: told.reason.clone(), decisions }
}

fn text(preview: &Preview) -> String {
    let mut text = String::new();
    for Difference { packet, running, then } in &preview.differences {
        let _ = writeln!(text, "{packet}");
        for (when, fate, other) in [("now", running, then), ("then", then, running)] {
            let outcome = format!("{:?}", fate.outcome).to_lowercase();
            let reason = fate.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            let _ = writeln!(text, "  {when:<5}{outcome}{reason}");
            for decision in fate.decisions.iter().filter(|decision| !other.decisions.contains(decision)) {
                let _ = writeln!(text, "       {decision}");
            }
        }
    }
    let _ =
        writeln!(text, "{} of {} flows would be treated otherwise", preview.differences.len(), preview.flows);
    text
}
