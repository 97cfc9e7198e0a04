//! `softgate migrate FILE`: a config of the schema before in the words of this one. Comments and order survive.

use std::path::{Path, PathBuf};

use super::revisions::write_whole;
use super::{Trouble, print, read};
use crate::config::{self, Config, Migrated, SCHEMA, migrate};

/// Arguments of `migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config
    file: PathBuf,
    /// Write it there; `-`: print it. Default: FILE itself, which is kept as FILE.schema-N
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    output: Option<PathBuf>,
    /// Write nothing; exit with 1 if there is something to rewrite
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Trouble> {
    let file = args.file.display();
    let text = read(&args.file)?;
    let done = migrate(&text).map_err(|why| Trouble::Wrong(format!("{file}: {why}")))?;
    // What the rest of this binary refuses would be of no use in any schema.
    let route_file = &mut |path: &str| config::read_file(&config::beside(&args.file, path));
    Config::parse_with(&text, &file.to_string(), route_file)?;
    let Some(migrated) = done else {
        let says = format!("{file}: schema {SCHEMA}, nothing to rewrite\n");
        return match args.output.as_deref() {
            Some(output) => write_to(output, &text, &says),
            None => print(&says),
        };
    };
    let Migrated { text: new, from, changes } = migrated;
    let says: String = changes.iter().map(|change| format!("{file}: {change}\n")).collect();
    if args.check {
        return Err(Trouble::Wrong(format!(
            "{says}{file}: schema {from}: softgate migrate {file} rewrites it"
        )));
    }
    let says = |kept: &str| format!("{says}{file}: from schema {from} to {SCHEMA}{kept}\n");
    match args.output.as_deref() {
        Some(output) => write_to(output, &new, &says("")),
        None => {
            let unable = |what: &Path, error: std::io::Error| {
                Trouble::Unable(format!("{}: cannot be written: {error}", what.display()))
            };
            // Not the link to it, where it is one.
            let target = args.file.canonicalize().map_err(|error| unable(&args.file, error))?;
            let kept = PathBuf::from(format!("{}.schema-{from}", target.display()));
            write_whole(&kept, &text).map_err(|error| unable(&kept, error))?;
            write_whole(&target, &new).map_err(|error| unable(&target, error))?;
            print(&says(&format!("; as it was: {}", kept.display())))
        }
    }
}

/// Into a file, or to where results go; then what is said of it goes to the standard error.
fn write_to(output: &Path, text: &str, says: &str) -> Result<(), Trouble> {
    if output == Path::new("-") {
        eprint!("{says}");
        return print(text);
    }
    write_whole(output, text)
        .map_err(|error| Trouble::Unable(format!("{}: cannot be written: {error}", output.display())))?;
    print(says)
}
