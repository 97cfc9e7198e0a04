//! `softgate drops export FILE`: the drop recorder as a capture.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Trouble, connect, print};
use crate::control::{DropsExport, Request};

/// Arguments of `drops`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write the latest dropped packets as pcapng, each with its reason, interface and generation
    Export {
        /// The capture to write
        file: PathBuf,
    },
}

pub(super) fn run(args: Args, socket: &Path) -> Result<(), Trouble> {
    let What::Export { file } = args.what;
    let export: DropsExport = connect(socket)?.call(&Request::DropsExport {})?;
    std::fs::write(&file, &export.pcapng)
        .map_err(|error| Trouble::Unable(format!("{}: cannot be written: {error}", file.display())))?;
    print(&format!("{}: {} packets\n", file.display(), export.packets))
}
