//! `softgate bench`: what a packet costs in the shipped loop, measured in memory.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::{Trouble, load_config};
use crate::bench::{BenchError, NewFlows, Options, Report, run as bench};

/// Measures the packet path over frames in memory
///
/// cycles_per_packet is what the gateway adds to the null pipeline (the same port, copy-in and burst loop,
/// every frame put back at once): the median over 20 pairs of windows.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The config; devices are not looked at
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// A capture whose frames come in on a port again and again; once per port
    #[arg(long = "in", value_name = "PORT=FILE", value_parser = super::parse_input, required = true)]
    pub inputs: Vec<(String, PathBuf)>,
    /// Threads, each pinned to a CPU of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// CPU of the first worker
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
    /// Seconds to measure, after a warm-up
    #[arg(long, default_value_t = 4.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// What leaves by OUT in a first round comes in again by IN as replies, one to one with the captures
    #[arg(long, value_name = "OUT=IN", value_parser = parse_ports)]
    pub reflect: Vec<(String, String)>,
    /// Of the frames so many percent come in at a worker that has not got their flow (zones, several workers);
    /// without it each worker receives all frames
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub foreign: Option<u8>,
    /// Every packet begins a session (zones, one worker, captures of as many flows as frames): round by round all
    /// frames once, into an empty table
    #[arg(long, conflicts_with_all = ["reflect", "foreign"])]
    pub new_flows: bool,
    /// With --new-flows: the clock goes on by so many microseconds in each turn of 64 packets, so that sessions end
    /// as others begin
    #[arg(long, value_name = "US", requires = "new_flows", value_parser = clap::value_parser!(u64).range(1..))]
    pub step_us: Option<u64>,
    /// In every other window somebody reads all sessions, again and again: tells what that costs
    #[arg(long, conflicts_with = "new_flows")]
    pub read: bool,
    /// Reports although packets are dropped
    #[arg(long)]
    pub allow_drops: bool,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), Trouble> {
    if args.new_flows && args.workers > 1 {
        return Err(Trouble::Unable("softgate bench: --new-flows measures one worker".to_owned()));
    }
    let config = load_config(&args.config)?;
    let options = Options {
        inputs: args.inputs.clone(),
        workers: usize::from(args.workers),
        first_cpu: args.cpu,
        seconds: args.seconds.max(0.1),
        allow_drops: args.allow_drops,
        reflect: args.reflect.clone(),
        foreign_percent: args.foreign,
        read: args.read,
        new_flows: args.new_flows.then_some(match args.step_us {
            None => NewFlows::CreateOnly,
            Some(us) => NewFlows::Churn { step: Duration::from_micros(us) },
        }),
    };
    let report = bench(&config, &options).map_err(|error| {
        let said = format!("softgate bench: {error}");
        match error {
            BenchError::Dropped { .. } | BenchError::Leaked(_) => Trouble::Wrong(said),
            BenchError::Replay(_) | BenchError::UnknownPort(_) | BenchError::NoFrames => {
                Trouble::Unable(said)
            }
        }
    })?;
    if args.json {
        let line = serde_json::to_string(&report).unwrap_or_else(|error| unreachable!("plain data: {error}"));
        return super::print(&format!("{line}\n"));
    }
    super::print(&text(&report))
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "a number of seconds, at most 3600".to_owned())
}

fn parse_ports(text: &str) -> Result<(String, String), String> {
    let (out, back) = text.split_once('=').ok_or("write two names of ports: OUT=IN")?;
    Ok((out.to_owned(), back.to_owned()))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:.1} TSC cycles per packet above the null pipeline ({:.1}), windows {:.1} to {:.1}",
        report.cycles_per_packet, report.null_cycles_per_packet, report.cycles_range.0, report.cycles_range.1
    );
    let _ = writeln!(
        text,
        "{:.2} Mpps, {:.2} Gbit/s on {} worker(s), copy-in included; {} packets",
        report.mpps, report.gbps, report.workers, report.packets
    );
    if report.sessions_per_s > 0.0 {
        let _ = write!(text, "{:.3} M sessions begun a second", report.sessions_per_s / 1e6);
        if report.bytes_per_session > 0.0 {
            let _ = write!(text, "; {:.1} bytes of resident memory each", report.bytes_per_session);
        }
        text.push('\n');
    }
    let [p50, p99, p999, longest] = report.burst_ns;
    let _ = writeln!(
        text,
        "burst of up to 64 packets: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns, longest {longest} ns"
    );
    let _ = writeln!(
        text,
        "{} frames of {:.0} bytes, {} routes in {:.2} MB of tables, packet memory on {} pages",
        report.frames,
        report.frame_bytes,
        report.routes,
        report.fib_bytes as f64 / 1e6,
        report.pages
    );
    let _ = writeln!(text, "{}, TSC {:.2} GHz, Linux {}", report.cpu, report.tsc_ghz, report.kernel);
    if report.workers > 1 {
        let _ = writeln!(text, "{:.1} % given to the worker that has their flow", report.handed_over_percent);
    }
    if let (Some(percent), Some(read)) = (report.reading_percent, report.read_per_s) {
        let _ =
            writeln!(text, "a reader of {:.2} M sessions a second costs {percent:.1} % of it", read / 1e6);
    }
    for (reason, count) in &report.drops {
        let _ = writeln!(text, "dropped {count}: {reason}");
    }
    text
}
