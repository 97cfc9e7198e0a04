//! `softgate apply FILE`: replaces the whole config, all or nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::revisions::Saying;
use super::{Trouble, connect, print, print_json, read};
use crate::config;
use crate::control::{Changed, Client, Counter, Request, Version};

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
    let before = if waits { Fates::ask(&mut client)? } else { Fates::default() };
    let changed = client.apply_with(&file_name, &text, &files, path, args.saying.terms())?;
    if waits && args.json {
        let took_us = converge(&mut client, changed.generation)?.as_micros() as u64;
        let fates = Fates::ask(&mut client)?.since(&before);
        return print_json(&Converged { changed, took_us, fates });
    }
    print_changed(&changed, "applied", args.json)?;
    if waits {
        let took = converge(&mut client, changed.generation)?;
        let Fates { kept, moved, ended } = Fates::ask(&mut client)?.since(&before);
        print(&format!(
            "converged: every session is of generation {} after {}\nof those that were decided again {kept} are as \
             before, {moved} have another rule, egress or next hop, {ended} end\n",
            changed.generation,
            duration(took.as_micros() as u64)
        ))?;
    }
    Ok(())
}

/// What became of sessions that were decided again, since the start or since a change.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct Fates {
    /// Decided as before.
    kept: u64,
    /// Another rule, egress or next hop.
    moved: u64,
    /// Not allowed any more.
    ended: u64,
}

impl Fates {
    fn ask(client: &mut Client) -> Result<Fates, Trouble> {
        let counters: Vec<Counter> = client.call(&Request::ShowCounters {})?;
        let sum = |names: [&str; 2]| {
            counters.iter().filter(|of| names.contains(&of.name.as_str())).map(|of| of.value).sum()
        };
        Ok(Fates {
            kept: sum(["sessions.kept", "sessions.asked-kept"]),
            moved: sum(["sessions.moved", "sessions.asked-moved"]),
            ended: sum(["sessions.condemned", "sessions.asked-ended"]),
        })
    }

    fn since(self, before: &Fates) -> Fates {
        Fates {
            kept: self.kept - before.kept,
            moved: self.moved - before.moved,
            ended: self.ended - before.ended,
        }
    }
}

/// A change that no session is older than, for programs.
#[derive(serde::Serialize)]
struct Converged {
    #[serde(flatten)]
    changed: Changed,
    took_us: u64,
    fates: Fates,
}

/// Waits until no session is older than `generation`.
fn converge(client: &mut Client, generation: u64) -> Result<Duration, Trouble> {
    let begun = Instant::now();
    loop {
        let version: Version = client.call(&Request::ShowVersion {})?;
        if version.converged >= generation {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Trouble::Unable(format!(
                "applied, but some sessions are still of generation {} after {} s: see `softgate show workers`",
                version.converged,
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
    let Changed { generation, applied_us, late, revision, confirm_s, .. } = changed;
    let revision = revision.map_or_else(String::new, |revision| format!(", revision {revision}"));
    let use_by_all = match late {
        true => String::new(),
        false => format!(", in use by every worker after {}", duration(*applied_us)),
    };
    print(&format!("{what}: generation {generation}{revision}{use_by_all}\n"))?;
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
