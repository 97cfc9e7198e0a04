//! `softgate apply FILE`: replaces the whole config, all or nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::revisions::Saying;
use super::{Trouble, connect, print, print_json, read};
use crate::config;
use crate::control::{Changed, Client, Convergence, ConvergenceQuery, Request};

/// How often the gateway is asked whether all sessions are decided again.
const POLL: Duration = Duration::from_millis(20);

/// How long they may take: 4 million under full load take half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// What `apply` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Wait {
    /// No packet uses the old config
    Applied,
    /// No session carries a decision of the old config, idle ones included
    Converged,
}

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config; its route files are read here and sent along
    file: PathBuf,
    /// Return when
    #[arg(long, value_enum, default_value = "applied")]
    wait: Wait,
    #[command(flatten)]
    saying: Saying,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, socket: &Path) -> Result<(), Trouble> {
    let text = read(&args.file)?;
    let mut files = Vec::new();
    for path in config::route_file_paths(&text) {
        let content = read(&config::beside(&args.file, &path))?;
        files.push((path, content));
    }
    let mut client = connect(socket)?;
    let path = std::path::absolute(&args.file).ok().map(|path| path.display().to_string());
    let file_name = args.file.display().to_string();
    let waits = args.wait == Wait::Converged;
    let changed = client.apply_with(&file_name, &text, &files, path, args.saying.terms())?;
    if waits && args.json {
        let (took, fates) = converge(&mut client, &changed)?;
        return print_json(&Converged { changed, took_us: took.as_micros() as u64, fates });
    }
    print_changed(&changed, "applied", args.json)?;
    if waits {
        let (took, Fates { kept, moved, ended, forgotten }) = converge(&mut client, &changed)?;
        let more =
            if forgotten { " (so many changes have come since that some are not counted)" } else { "" };
        print(&format!(
            "converged: every session is of generation {} after {}\nof those that were decided again {kept} are as \
             before, {moved} have another rule, egress or next hop, {ended} end{more}\n",
            changed.generation,
            duration(took.as_micros() as u64)
        ))?;
    }
    Ok(())
}

/// A change that no session is older than, for programs.
#[derive(serde::Serialize)]
struct Converged {
    #[serde(flatten)]
    changed: Changed,
    took_us: u64,
    fates: Fates,
}

/// What became of the sessions that were decided again because of it.
#[derive(Clone, Copy, serde::Serialize)]
struct Fates {
    /// Decided as before.
    kept: u64,
    /// Another rule, egress or next hop.
    moved: u64,
    /// Not allowed any more.
    ended: u64,
    /// Not all numbers are known any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    forgotten: bool,
}

/// Waits until no session is older than a change.
fn converge(client: &mut Client, changed: &Changed) -> Result<(Duration, Fates), Trouble> {
    let begun = Instant::now();
    let query = ConvergenceQuery { after: changed.generation_before, generation: Some(changed.generation) };
    loop {
        let so_far: Convergence = client.call(&Request::ShowConvergence(query))?;
        if so_far.converged {
            let Convergence { kept, moved, ended, forgotten, .. } = so_far;
            return Ok((begun.elapsed(), Fates { kept, moved, ended, forgotten }));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Trouble::Unable(format!(
                "applied, but some sessions are still of generation {} after {} s: see `softgate show workers`",
                so_far.generation,
                PATIENCE.as_secs()
            )));
        }
        std::thread::sleep(POLL);
    }
}

/// What a change came to.
pub(super) fn print_changed(changed: &Changed, what: &str, json: bool) -> Result<(), Trouble> {
    if json {
        return print_json(changed);
    }
    for warning in &changed.warnings {
        eprintln!("warning: {warning}");
    }
    let Changed { generation, applied_us, late, revision, confirm_s, pair, .. } = changed;
    let revision = revision.map_or_else(String::new, |revision| format!(", revision {revision}"));
    let use_by_all = match late {
        true => String::new(),
        false => format!(", in use by every worker after {}", duration(*applied_us)),
    };
    print(&format!("{what}: generation {generation}{revision}{use_by_all}\n"))?;
    if let Some(theirs) = pair.and_then(|pair| pair.revision) {
        print(&format!("and on the other node, as its revision {theirs}\n"))?;
    }
    match confirm_s {
        Some(seconds) => print(&format!("taken back in {seconds} s unless you say: softgate confirm\n")),
        None => Ok(()),
    }
}

fn duration(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}
