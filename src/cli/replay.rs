//! `softgate replay`: captures in, captures and counters out.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::{Trouble, load_config};
use crate::config::Name;
use crate::replay::{Options, Report, RoleChange, run as replay};
use crate::roles::Part;

/// Runs captures through the gateway and writes what it sends
///
/// The clock is the capture's; the same config, captures and number of workers give the same bytes and
/// counters on any machine. Neither root nor a network device is needed.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The config; devices are not looked at
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// A capture (pcap or pcapng) that comes in on a port; once per port
    #[arg(long = "in", value_name = "PORT=FILE", value_parser = super::parse_input, required = true)]
    pub inputs: Vec<(String, PathBuf)>,
    /// Folder for PORT.pcap of every port that sent something
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Workers, run in lock-step on one thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// How long the clock runs on behind the last packet, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=31 * 24 * 3_600_000))]
    pub linger: u64,
    /// Another config that takes over so many milliseconds after the first packet; any number of them
    #[arg(long, value_name = "MS=FILE", value_parser = parse_reload)]
    pub reload: Vec<(u64, PathBuf)>,
    /// What the node is for all its virtual routers, or those of a group, so many milliseconds after the first packet:
    /// `backup` while nobody is known to be the Active, `other` while another node is, `lingers` while it has just become it;
    /// any number of them
    #[arg(long, value_name = "MS=active|backup|other|lingers[@GROUP]", value_parser = parse_role)]
    pub role: Vec<RoleChange>,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Json {
    received: u64,
    sent: u64,
    punted: u64,
    originated: u64,
    fragments: u64,
    replicated: u64,
    errors_limited: u64,
    leaked_frames: usize,
    drops: std::collections::BTreeMap<&'static str, u64>,
    written: std::collections::BTreeMap<String, u64>,
}

fn parse_reload(text: &str) -> Result<(u64, PathBuf), String> {
    let parts = text.split_once('=').filter(|(_, file)| !file.is_empty());
    let (ms, file) = parts.ok_or("expected MS=FILE.toml")?;
    Ok((ms.parse().map_err(|_| format!("{ms}: not a number of milliseconds"))?, file.into()))
}

fn parse_role(text: &str) -> Result<RoleChange, String> {
    const EXPECTED: &str =
        "expected MS=active, MS=backup, MS=other or MS=lingers, with @GROUP behind it if not for all";
    let (ms, role) = text.split_once('=').ok_or(EXPECTED)?;
    let (role, group) = role.split_once('@').map_or((role, None), |(role, group)| (role, Some(group)));
    let part = match role {
        "active" => Part::Active,
        "backup" => Part::Away,
        "other" => Part::Backup,
        "lingers" => Part::Forwards,
        _ => return Err(EXPECTED.into()),
    };
    let ms = ms.parse().map_err(|_| format!("{ms}: not a number of milliseconds"))?;
    let group = group.map(|group| Name::new(group).map_err(|why| why.to_string())).transpose()?;
    Ok(RoleChange { after: Duration::from_millis(ms), part, group })
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), Trouble> {
    let config = load_config(&args.config)?;
    let options = Options {
        inputs: args.inputs.clone(),
        out: args.out.clone(),
        workers: usize::from(args.workers),
        linger: Duration::from_millis(args.linger),
        reloads: args
            .reload
            .iter()
            .map(|(ms, file)| Ok((Duration::from_millis(*ms), load_config(file)?)))
            .collect::<Result<_, Trouble>>()?,
        roles: args.role.clone(),
        targets: Vec::new(),
    };
    let report =
        replay(&config, &options).map_err(|error| Trouble::Unable(format!("softgate replay: {error}")))?;
    print(&report, args)?;
    match report.leaked_frames {
        0 => Ok(()),
        leaked => Err(Trouble::Wrong(format!("{leaked} frames leaked: this is a bug"))),
    }
}

fn print(report: &Report, args: &Args) -> Result<(), Trouble> {
    let totals = &report.totals;
    if args.json {
        let json = Json {
            received: totals.received,
            sent: totals.sent,
            punted: totals.punted,
            originated: totals.originated,
            fragments: totals.fragments,
            replicated: totals.replicated,
            errors_limited: totals.errors_limited,
            leaked_frames: report.leaked_frames,
            drops: totals.drops.iter().map(|(reason, count)| (reason.name(), *count)).collect(),
            written: report.written.iter().cloned().collect(),
        };
        let line = serde_json::to_string(&json).unwrap_or_else(|error| unreachable!("plain data: {error}"));
        return super::print(&format!("{line}\n"));
    }
    let mut text = String::new();
    let dropped = totals.drops.iter().map(|(_, count)| count).sum::<u64>();
    for (name, count, says) in [
        ("received", totals.received, ""),
        ("sent", totals.sent, ""),
        ("punted", totals.punted, "consumed by the gateway itself: ARP, ND, ICMP to it"),
        ("originated", totals.originated, "made by the gateway: answers, errors, requests"),
        ("fragments", totals.fragments, "made beyond each packet's first"),
        ("replicated", totals.replicated, "made by bridges beyond each frame's first"),
        ("dropped", dropped, ""),
    ] {
        let _ = writeln!(text, "{}", format!("{name:<12}{count:>12}   {says}").trim_end());
    }
    for (reason, count) in &totals.drops {
        let _ = writeln!(text, "  {:<28}{count:>8}   {}", reason.name(), reason.explanation());
    }
    for (port, frames) in &report.written {
        let _ = writeln!(text, "wrote {} ({frames} frames)", args.out.join(format!("{port}.pcap")).display());
    }
    super::print(&text)
}
