//! `softgate show revisions`, `diff`, `rollback`, `confirm`, `save`: commits of the config, and going back.

use std::path::{Path, PathBuf};

use super::apply::print_changed;
use super::change::ttl;
use super::table::{or_dash, table, text};
use super::{Trouble, connect, print, print_json, read};
use crate::config::{self, Config, Fate, Seconds};
use crate::control::revisions::diff::{self, Change, Difference};
use crate::control::revisions::{Author, Document};
use crate::control::{Asked, Changed, Client, Request, RevisionEntry, RevisionList, Terms};

/// What may be said with every change.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Saying {
    /// Why: kept with the revision
    #[arg(long, short, global = true, value_name = "TEXT")]
    message: Option<String>,
    /// Taken back after so long, unless `softgate confirm` comes before: 60s, 5m
    #[arg(long, global = true, value_name = "TIME", value_parser = ttl)]
    confirm: Option<Seconds>,
    /// Only if this revision is in force
    #[arg(long, global = true, value_name = "NUMBER")]
    if_revision: Option<u64>,
    /// On both nodes of the pair, or on neither
    #[arg(long, global = true, conflicts_with = "confirm")]
    pair: bool,
    /// The same, also if the other node's config is another one now
    #[arg(long, global = true, conflicts_with = "confirm")]
    pair_force: bool,
    /// What becomes of live sessions that it would end [default: re-decide]
    #[arg(long, global = true, value_enum)]
    fate: Option<FateArg>,
}

/// What becomes of live sessions that a commit would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FateArg {
    /// Those that only the rules refuse go on until they end
    Keep,
    /// They end in silence
    ReDecide,
    /// They end, and both ends are told
    Reset,
}

impl From<FateArg> for Fate {
    fn from(fate: FateArg) -> Fate {
        match fate {
            FateArg::Keep => Fate::Keep,
            FateArg::ReDecide => Fate::ReDecide,
            FateArg::Reset => Fate::Reset,
        }
    }
}

impl Saying {
    pub(super) fn terms(&self) -> Terms {
        let Saying { message, confirm, if_revision, pair, pair_force, fate } = self.clone();
        let fate = fate.map_or(Fate::ReDecide, Fate::from);
        let pair = pair || pair_force;
        Terms { message, confirm_s: confirm, if_revision, fate, pair, pair_force, ..Terms::default() }
    }
}

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// A revision, or a config file
    old: String,
    /// Another; absent: from the config in force to a file, or from a revision to the config in force
    new: Option<String>,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

/// Arguments of `rollback`.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// The revision; see `softgate show revisions`
    revision: u64,
    #[command(flatten)]
    saying: Saying,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

/// Arguments of `confirm`.
#[derive(Debug, clap::Args)]
pub struct ConfirmArgs {
    /// Only if it is this revision that waits
    revision: Option<u64>,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

/// Arguments of `save`.
#[derive(Debug, clap::Args)]
pub struct SaveArgs {
    /// The file; route files go beside it
    file: PathBuf,
    /// Another revision than the one in force
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u64>,
    /// Replace files that are there and say something else
    #[arg(long)]
    force: bool,
}

pub(super) fn diff(args: DiffArgs, socket: &Path) -> Result<(), Trouble> {
    let is_file = |word: &str| word.parse::<u64>().is_err();
    let mut client = None;
    let mut one = |word: Option<&str>| -> Result<Config, Trouble> {
        match word {
            Some(word) if is_file(word) => super::load_config(Path::new(word)),
            word => {
                if client.is_none() {
                    client = Some(connect(socket)?);
                }
                let client = client.as_mut().unwrap_or_else(|| unreachable!("it was just put in"));
                let (_, document) = client.document(word.and_then(|word| word.parse().ok()))?;
                Ok(document.config()?)
            }
        }
    };
    let (old, new) = match &args.new {
        Some(new) => (one(Some(&args.old))?, one(Some(new))?),
        None if is_file(&args.old) => (one(None)?, one(Some(&args.old))?),
        None => (one(Some(&args.old))?, one(None)?),
    };
    let found = diff::between(&old, &new);
    if args.json {
        return print_json(&found);
    }
    print(&match found.is_empty() {
        true => String::from("no difference\n"),
        false => found.iter().map(line).collect(),
    })
}

fn line(difference: &Difference) -> String {
    let Difference { what, change } = difference;
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| String::from("nothing"));
    match change {
        Change::Added => format!("+ {what}\n"),
        Change::Removed => format!("- {what}\n"),
        Change::Moved { behind: Some(behind) } => format!("> {what}: moved, now behind {behind}\n"),
        Change::Moved { behind: None } => format!("> {what}: moved, now the first\n"),
        Change::Changed { key, was, now } => format!("~ {what}: {key}: {} -> {}\n", word(was), word(now)),
        Change::Listed { key, added, removed, first } => {
            let dots = if first.len() < added + removed { " ..." } else { "" };
            format!("~ {what}: {key}: {added} more, {removed} less: {}{dots}\n", first.join(" "))
        }
    }
}

pub(super) fn rollback(args: RollbackArgs, socket: &Path) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    // Read on another thread of the gateway first: of a large config that takes seconds. It goes without as well.
    let _ = client.document(Some(args.revision));
    let request = Request::Rollback { revision: args.revision, terms: args.saying.terms() };
    let changed = client.call(&request)?;
    let changed: Changed = client.ended(changed)?;
    print_changed(&changed, &format!("back at revision {}", args.revision), args.json)
}

pub(super) fn confirm(args: ConfirmArgs, socket: &Path) -> Result<(), Trouble> {
    let request = Request::Confirm { revision: args.revision, asked: Asked::default() };
    let changed: Changed = connect(socket)?.call(&request)?;
    print_changed(&changed, "confirmed", args.json)
}

/// Writes a config as it was applied, with the changes since in it, beside its route files.
pub(super) fn save(args: SaveArgs, socket: &Path) -> Result<(), Trouble> {
    let (number, document) = connect(socket)?.document(args.revision)?;
    let mut files: Vec<(PathBuf, &str)> = vec![(args.file.clone(), &document.text)];
    files.extend(document.files.iter().map(|(path, text)| (config::beside(&args.file, path), text.as_str())));
    if !args.force {
        for (path, text) in &files {
            if path.exists() && read(path)? != *text {
                let path = path.display();
                return Err(Trouble::Unable(format!(
                    "{path} is there and says something else: --force replaces it"
                )));
            }
        }
    }
    for (path, text) in &files {
        write_whole(path, text)
            .map_err(|error| Trouble::Unable(format!("{}: cannot be written: {error}", path.display())))?;
    }
    let count = match files.len() - 1 {
        0 => String::new(),
        1 => String::from(", with a route file"),
        more => format!(", with {more} route files"),
    };
    print(&format!("{}: revision {number}{count}\n", args.file.display()))
}

/// Whole, or as it was.
pub(super) fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("softgate-new");
    std::fs::write(&beside, text)?;
    if let Ok(known) = std::fs::metadata(path) {
        std::fs::set_permissions(&beside, known.permissions())?;
    }
    std::fs::File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, path)
}

/// The config in force, or that of a revision.
pub(super) fn show_config(revision: Option<u64>, socket: &Path, json: bool) -> Result<(), Trouble> {
    let (_, document): (u64, Document) = connect(socket)?.document(revision)?;
    if json {
        return print_json(&document.config()?);
    }
    print(&document.text)
}

pub(super) fn show(list: &RevisionList) -> String {
    let mut shown = table([">revision", "time", "by", "request", ">changes", "what", "why"]);
    for RevisionEntry { revision, confirmed_by, taken_back_in_s } in &list.revisions {
        let mut why = revision.message.clone().unwrap_or_default();
        let mut note = |text: String| why = if why.is_empty() { text } else { format!("{why} ({text})") };
        match revision.fate {
            Fate::ReDecide => {}
            Fate::Keep => note(String::from("sessions kept")),
            Fate::Reset => note(String::from("sessions reset")),
        }
        if let Some(pair) = &revision.pair {
            note(if pair.leads {
                String::from("on both nodes")
            } else {
                format!("by pair from {}", pair.node)
            });
        }
        match (taken_back_in_s, confirmed_by) {
            (None, Some(_)) if revision.pair.is_some() => {}
            (Some(seconds), _) => note(format!("taken back in {seconds} s unless confirmed")),
            (None, Some(by)) => note(format!("confirmed by {}", author(by))),
            (None, None) if revision.confirm.is_some() => note(String::from("not confirmed")),
            _ => {}
        }
        shown.add_row([
            revision.number.to_string(),
            revision.time.clone(),
            author(&revision.by),
            revision.request.clone(),
            revision.changes.to_string(),
            super::table::list(&revision.about),
            or_dash((!why.is_empty()).then_some(why)),
        ]);
    }
    let mut said = text(&shown);
    match &list.state_dir {
        None => {
            said =
                format!("revision {} is in force; none are kept: set state_dir in [control]\n", list.current)
        }
        Some(_) if list.unwritten => said.push_str("the newest are NOT on disk yet: see the log\n"),
        Some(_) => {}
    }
    said
}

fn author(by: &Author) -> String {
    match (by.uid, &by.role) {
        (None, _) => String::from("softgate"),
        (Some(uid), None) => format!("user {uid}"),
        (Some(uid), Some(role)) => format!("user {uid}, {role}"),
    }
}

/// Makes one change, with what is said with it.
pub(super) fn change(client: &mut Client, request: &Request, saying: &Saying) -> Result<Changed, Trouble> {
    Ok(client.change(request, saying.terms())?)
}
