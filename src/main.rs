//! The `softgate` binary: parses arguments and dispatches.

use std::process::ExitCode;

use clap::Parser;
use softgate::cli;

/// A software gateway for bare-metal networks
#[derive(Parser)]
#[command(version)]
enum Softgate {
    Run(cli::run::RunArgs),
    Replay(cli::replay::ReplayArgs),
    Bench(cli::bench::BenchArgs),
    Doctor(cli::doctor::DoctorArgs),
}

fn main() -> ExitCode {
    match Softgate::parse() {
        Softgate::Run(args) => cli::run::run(&args),
        Softgate::Replay(args) => cli::replay::run(&args),
        Softgate::Bench(args) => cli::bench::run(&args),
        Softgate::Doctor(args) => cli::doctor::run(args),
    }
}
