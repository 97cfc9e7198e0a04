//! `softgate check FILE`: is this config good?

use std::path::PathBuf;

use super::{Trouble, load_config, print};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The config
    file: PathBuf,
}

pub(super) fn run(args: Args) -> Result<(), Trouble> {
    let file = args.file.display();
    let config = load_config(&args.file)?;
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    print(&format!(
        "{file}: good: {}, {}, {}, {}, {}\n",
        count(config.ports.len(), "port"),
        count(config.interfaces.len(), "interface"),
        count(config.vrf_names().len(), "VRF"),
        count(config.all_routes().count(), "route"),
        count(config.neighbours.len(), "neighbour"),
    ))
}
