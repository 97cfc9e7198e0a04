//! The `softgate` binary: parses arguments and dispatches.

use std::process::ExitCode;

use clap::Parser;
use softgate::cli;

/// A software gateway for bare-metal networks
#[derive(Parser)]
#[command(version)]
enum Softgate {
    Replay(cli::replay::ReplayArgs),
    Bench(cli::bench::BenchArgs),
}

fn main() -> ExitCode {
    match Softgate::parse() {
        Softgate::Replay(args) => cli::replay::run(&args),
        Softgate::Bench(args) => cli::bench::run(&args),
    }
}
