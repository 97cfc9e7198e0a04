//! `softgate reach FROM TO`: who can begin a session to what.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Trouble, connect, load_config, print, print_json};
use crate::config::{ReachFrom, ReachTo};
use crate::control::{ReachQuery, Reached, Request};
use crate::explain::{View, reach};
use crate::replay::{self, NEIGHBOUR_CAPACITY};

/// Prefixes shown in a line.
const SHOWN: usize = 8;

/// Arguments of `reach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "softgate reach 'zone blue' '10.0.9.9 tcp/5432'\nsoftgate reach any 'zone self tcp/22' --config gw.toml"
)]
pub struct Args {
    /// Hosts: any, or some of zone NAME, interface NAME, vrf NAME, and a prefix
    from: ReachFrom,
    /// What they reach: addresses or zone NAME, and a service if not any is meant
    to: ReachTo,
    /// Also senders whose addresses do not belong where they come in
    #[arg(long)]
    spoofed: bool,
    /// By this config, without a gateway
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, socket: &Path) -> Result<(), Trouble> {
    let query = ReachQuery { from: args.from.clone(), to: args.to.clone(), spoofed: args.spoofed };
    let reached = match &args.config {
        Some(file) => {
            let config = load_config(file)?;
            let compiler = replay::compile_tables(&config, NEIGHBOUR_CAPACITY)
                .map_err(|error| Trouble::Wrong(error.to_string()))?;
            reach::reach(View::new(&compiler, &config), &query, reach::MOST)
                .map_err(|error| Trouble::Unable(error.to_string()))?
        }
        None => connect(socket)?.call(&Request::Reach(query.clone()))?,
    };
    if args.json {
        return print_json(&reached);
    }
    print(&text(&query, &reached))
}

/// For people.
fn text(query: &ReachQuery, reached: &Reached) -> String {
    let mut text = String::new();
    if reached.from.is_empty() {
        let _ = writeln!(text, "nobody of {} reaches {}", query.from, query.to);
    }
    for one in &reached.from {
        let zone = one.zone.as_ref().map_or_else(String::new, |zone| format!(", zone {zone}"));
        let _ = writeln!(text, "by {} (VRF {}{zone}):", one.interface, one.vrf);
        for (what, prefixes) in [("all of it", &one.all), ("some of it", &one.some)] {
            if !prefixes.is_empty() {
                let more = prefixes.len().saturating_sub(SHOWN);
                let shown = prefixes[..prefixes.len().min(SHOWN)].join(", ");
                let more = if more > 0 { format!(" and {more} more (see --json)") } else { String::new() };
                let _ = writeln!(text, "  {what}: {shown}{more}");
            }
        }
        let _ = writeln!(text, "  for example: {}", one.witness);
    }
    for remark in &reached.remarks {
        let _ = writeln!(text, "note: {remark}");
    }
    text
}
