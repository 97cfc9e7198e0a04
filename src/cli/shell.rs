//! `softgate completions SHELL` and `softgate man [DIR]`.

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Trouble, print};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to print them for
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// A folder for the pages of all commands; without it the main page is printed
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: CompletionsArgs) -> Result<(), Trouble> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "softgate", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: ManArgs) -> Result<(), Trouble> {
    let Some(dir) = args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .unwrap_or_else(|error| unreachable!("memory takes everything: {error}"));
        return print(&String::from_utf8_lossy(&page));
    };
    std::fs::create_dir_all(&dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
        .map_err(|error| Trouble::Unable(format!("{}: cannot be written: {error}", dir.display())))
}
