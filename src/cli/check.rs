//! `softgate check FILE`: is this config good?

use std::path::PathBuf;

use super::{Trouble, load_config, print, read};
use crate::config::{OLD_SCHEMA, Places, migrate};
use crate::explain::{View, assert, lint};
use crate::replay::{self, NEIGHBOUR_CAPACITY};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config
    file: PathBuf,
    /// What is odd refuses it as well
    #[arg(long)]
    strict: bool,
}

pub(super) fn run(args: Args) -> Result<(), Trouble> {
    let file = args.file.display();
    let config = load_config(&args.file)?;
    for node in config.nodes.keys() {
        config.clone().on_node(node, &file.to_string())?;
    }
    let compiler = replay::compile_tables(&config, NEIGHBOUR_CAPACITY)
        .map_err(|error| Trouble::Wrong(format!("{file}: {error}")))?;
    let view = View::new(&compiler, &config);
    let (failed, findings) = (assert::check(view), lint::lint(view, false));
    let text = read(&args.file)?;
    let is_old = matches!(migrate(&text), Ok(Some(_)));
    let places = Places::of(&text);
    let at = |key: &str| places.line(key).map_or_else(|| file.to_string(), |line| format!("{file}:{line}"));
    if !failed.is_empty() {
        let told =
            failed.iter().map(|one| format!("{}: {}", at(&format!("assert[{}]", one.index)), one.text()));
        return Err(Trouble::Wrong(told.collect::<Vec<_>>().join("\n")));
    }
    if is_old {
        eprintln!("{}: warning: {OLD_SCHEMA}", at("schema"));
    }
    for finding in &findings {
        eprintln!("{}: warning: {finding}", at(&finding.key));
    }
    let warnings = findings.len() + usize::from(is_old);
    if args.strict && warnings > 0 {
        return Err(Trouble::Wrong(format!("{file}: {warnings} warnings")));
    }
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let asserts = match config.asserts.len() {
        0 => String::new(),
        asserts => format!(", {}", count(asserts, "assertion")),
    };
    print(&format!(
        "{file}: good: {}, {}, {}, {}, {}{asserts}\n",
        count(config.ports.len(), "port"),
        count(config.interfaces.len(), "interface"),
        count(config.vrf_names().len(), "VRF"),
        count(config.all_routes().count(), "route"),
        count(config.neighbours.len(), "neighbour"),
    ))
}
