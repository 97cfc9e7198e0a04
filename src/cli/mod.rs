//! The command line: one file per command, listed in [`Command`].
//!
//! Exit codes: 0 good, 1 the thing asked about is wrong, 2 wrong usage, or something cannot be read or reached.

#[cfg(all(feature = "remote", not(fuzzing)))]
mod agent;
mod apply;
mod beginning;
pub mod bench;
mod bridges;
mod change;
mod check;
pub mod doctor;
mod drain;
mod drops;
mod explain;
#[cfg(all(feature = "remote", not(fuzzing)))]
mod http;
mod kept;
mod migrate;
mod nat;
mod preview;
mod reach;
pub mod replay;
mod revisions;
pub mod run;
mod selftest;
mod services;
mod sessions;
mod shell;
mod show;
mod table;
mod upgrade;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config, ConfigErrors, Control};
use crate::control::{Client, ClientError};

/// A software gateway for bare-metal networks.
#[derive(Debug, Parser)]
#[command(name = "softgate", version, about, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 good, 1 the thing asked about is wrong, 2 wrong usage, or something cannot be read or reached."
)]
pub struct Cli {
    /// The control socket of the gateway to talk to
    ///
    /// Default: /run/softgate/control.sock; for `run` what the config says
    #[arg(long, global = true, value_name = "PATH", env = "SOFTGATE_SOCKET")]
    pub socket: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway in the foreground until SIGTERM or SIGINT
    Run(run::Args),
    /// Check a config without applying it
    Check(check::Args),
    /// Rewrite a config of the schema before in the words of this one; comments and order survive
    Migrate(migrate::Args),
    /// Show what a running gateway does
    Show(show::Args),
    /// Replace the config of a running gateway, all or nothing
    Apply(apply::Args),
    /// What lies between two revisions, or the config in force and a file
    Diff(revisions::DiffArgs),
    /// Go back to a revision
    Rollback(revisions::RollbackArgs),
    /// Keep the last commit, which would be taken back otherwise
    Confirm(revisions::ConfirmArgs),
    /// Write the config in force into a file; comments and order survive
    Save(revisions::SaveArgs),
    /// Add routes, neighbours, rules or members of groups
    Add(change::AddArgs),
    /// Remove routes, neighbours, rules or members of groups
    Del(change::DelArgs),
    /// Stations and members of bridges
    Bridge(bridges::BridgeArgs),
    /// Change backends of a service
    Service(services::ServiceArgs),
    /// End sessions
    Clear(Box<sessions::ClearArgs>),
    /// Take the node out of service: the other takes over, and no connection is lost
    Drain(drain::DrainArgs),
    /// Put a new process in the gateway's place, with its sessions
    Upgrade(upgrade::UpgradeArgs),
    /// Whose outside ports are whose by a deterministic NAT (RFC 7422)
    Nat(nat::Args),
    /// The latest dropped packets
    Drops(drops::Args),
    /// What becomes of a packet, with every decision and what took it
    Explain(explain::Args),
    /// What another config would do to the live sessions, or to the flows of a capture
    Preview(preview::Args),
    /// Who can begin a session to what, and a packet that shows it
    Reach(reach::Args),
    /// Run captures through the gateway: neither root nor devices are needed
    Replay(replay::Args),
    /// Measure the packet path over frames in memory
    Bench(bench::Args),
    /// Probe devices: what works, what is lost, what to type to mend it
    Doctor(doctor::DoctorArgs),
    /// Test what this binary does against what standards ask for
    Selftest(selftest::Args),
    /// Follow a config document in etcd, and write back what became of it
    #[cfg(all(feature = "remote", not(fuzzing)))]
    Agent(Box<agent::AgentArgs>),
    /// Serve the requests of the control socket over HTTP, read-only by default
    #[cfg(all(feature = "remote", not(fuzzing)))]
    Http(Box<http::HttpArgs>),
    /// Print shell completions
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write all of them into a folder
    Man(shell::ManArgs),
}

impl Cli {
    /// Reads the arguments of the process; on wrong usage says so and exits with 2.
    pub fn from_arguments() -> Cli {
        Cli::parse()
    }

    /// Does what was asked.
    pub fn run(self) -> ExitCode {
        let given = self.socket;
        let socket = given.clone().unwrap_or_else(|| Control::DEFAULT_SOCKET.into());
        let done = match self.command {
            Command::Run(args) => return run::run(&args, given),
            Command::Replay(args) => replay::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Doctor(args) => return doctor::run(args),
            Command::Check(args) => check::run(args),
            Command::Migrate(args) => migrate::run(&args),
            Command::Show(args) => show::run(args, &socket),
            Command::Apply(args) => apply::run(args, &socket),
            Command::Diff(args) => revisions::diff(args, &socket),
            Command::Rollback(args) => revisions::rollback(args, &socket),
            Command::Confirm(args) => revisions::confirm(args, &socket),
            Command::Save(args) => revisions::save(args, &socket),
            Command::Add(args) => change::add(args, &socket),
            Command::Del(args) => change::del(args, &socket),
            Command::Bridge(args) => bridges::run(args, &socket),
            Command::Service(args) => services::run(args, &socket),
            Command::Clear(args) => sessions::clear(*args, &socket),
            Command::Drain(args) => drain::run(&args, &socket),
            Command::Upgrade(args) => upgrade::run(&args, &socket),
            Command::Nat(args) => nat::run(args, &socket),
            Command::Drops(args) => drops::run(args, &socket),
            Command::Explain(args) => explain::run(&args, &socket),
            Command::Preview(args) => preview::run(&args, &socket),
            Command::Reach(args) => reach::run(&args, &socket),
            Command::Selftest(args) => selftest::run(&args),
            #[cfg(all(feature = "remote", not(fuzzing)))]
            Command::Agent(args) => agent::run(*args, given),
            #[cfg(all(feature = "remote", not(fuzzing)))]
            Command::Http(args) => http::run(*args, &socket),
            Command::Completions(args) => shell::completions(args),
            Command::Man(args) => shell::man(args),
        };
        report(done)
    }
}

/// Why a command did not do what was asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The thing asked about is wrong: exit code 1.
    Wrong(String),
    /// Wrong usage, or something cannot be read or reached: exit code 2.
    Unable(String),
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        match error.is_refusal() {
            true => Trouble::Wrong(error.to_string()),
            false => Trouble::Unable(error.to_string()),
        }
    }
}

impl From<ConfigErrors> for Trouble {
    fn from(errors: ConfigErrors) -> Trouble {
        Trouble::Wrong(errors.to_string())
    }
}

/// Reads a text file. One that cannot be read is no wrong one: nobody has looked at it.
fn read(file: &Path) -> Result<String, Trouble> {
    config::read_file(file)
        .map_err(|error| Trouble::Unable(format!("{}: cannot be read: {error}", file.display())))
}

/// Reads and checks a config and the route files it names.
fn load_config(file: &Path) -> Result<Config, Trouble> {
    let route_file = &mut |path: &str| config::read_file(&config::beside(file, path));
    Ok(Config::parse_with(&read(file)?, &file.display().to_string(), route_file)?)
}

/// Says what went wrong, if anything did, and turns it into the exit code.
pub fn report(done: Result<(), Trouble>) -> ExitCode {
    let (message, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Trouble::Wrong(message)) => (message, 1),
        Err(Trouble::Unable(message)) => (message, 2),
    };
    eprintln!("{message}");
    ExitCode::from(code)
}

/// Prints to the standard output. A reader that has seen enough (`| head`) is no trouble.
pub(crate) fn print(text: &str) -> Result<(), Trouble> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Trouble::Unable(format!("cannot write the output: {error}"))),
    }
}

/// Prints for programs.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Trouble> {
    let mut text = serde_json::to_string_pretty(value)
        .unwrap_or_else(|error| unreachable!("replies are plain data: {error}"));
    text.push('\n');
    print(&text)
}

fn connect(socket: &std::path::Path) -> Result<Client, Trouble> {
    Ok(Client::connect(socket)?)
}

/// Parses `PORT=FILE`.
fn parse_input(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((port, file)) if !port.is_empty() && !file.is_empty() => Ok((port.to_owned(), file.into())),
        _ => Err(String::from("expected PORT=FILE.pcap")),
    }
}
