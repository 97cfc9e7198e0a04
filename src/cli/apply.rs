//! `softgate apply FILE`: replaces the whole config, all or nothing.

use std::path::{Path, PathBuf};

use super::{Trouble, connect, print, print_json};
use crate::config;
use crate::control::Changed;

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config; its route files are read here and sent along
    file: PathBuf,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, socket: &Path) -> Result<(), Trouble> {
    let read = |path: &Path| {
        config::read_file(path)
            .map_err(|error| Trouble::Unable(format!("{}: cannot be read: {error}", path.display())))
    };
    let text = read(&args.file)?;
    let mut files = Vec::new();
    for path in config::route_file_paths(&text) {
        let content = read(&config::beside(&args.file, &path))?;
        files.push((path, content));
    }
    let changed = connect(socket)?.apply(&args.file.display().to_string(), &text, &files)?;
    print_changed(&changed, "applied", args.json)
}

/// What a change came to.
pub(super) fn print_changed(changed: &Changed, what: &str, json: bool) -> Result<(), Trouble> {
    if json {
        return print_json(changed);
    }
    for warning in &changed.warnings {
        eprintln!("warning: {warning}");
    }
    let Changed { generation, applied_us, late, .. } = changed;
    if *late {
        return print(&format!("{what}: generation {generation}\n"));
    }
    print(&format!(
        "{what}: generation {generation}, in use by every worker after {}\n",
        duration(*applied_us)
    ))
}

fn duration(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} us"),
        10_000..10_000_000 => format!("{} ms", us / 1000),
        _ => format!("{} s", us / 1_000_000),
    }
}
