//! The `softgate` binary: parses its arguments and does what they say.
//!
//! The commands are listed in [`softgate::cli::Command`].

use std::process::ExitCode;

use softgate::cli::Cli;

fn main() -> ExitCode {
    Cli::from_arguments().run()
}
