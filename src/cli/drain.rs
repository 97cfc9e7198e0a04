//! `softgate drain`: out of service without loss, and back.

use std::path::Path;
use std::time::Duration;

use super::change::ttl;
use super::{Trouble, connect, print, print_json};
use crate::config::Seconds;
use crate::control::{Client, DrainEntry, DrainQuery, HaList, Request};
use crate::ha::drain::Phase;

/// How often it is looked how far it is.
const STEP: Duration = Duration::from_millis(100);

/// Take the node out of service: the other takes over, and no connection is lost
///
/// Waits until the other node has all sessions, has it take over, and forwards on until it is heard and a second more.
/// The node then takes part in no virtual router until --cancel or the next start. Exit code 1: it serves on.
#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// Also if that costs sessions: the other node is not heard, or does not have all of them in time
    #[arg(long)]
    force: bool,
    /// How long the other node may take to have all sessions: 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    timeout: Option<Seconds>,
    /// End the process then
    #[arg(long)]
    stop: bool,
    /// Back into service
    #[arg(long, conflicts_with_all = ["force", "timeout", "stop", "no_wait"])]
    cancel: bool,
    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DrainArgs, socket: &Path) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    let request = match args.cancel {
        true => Request::DrainCancel {},
        false => Request::Drain(DrainQuery { force: args.force, timeout_s: args.timeout, stop: args.stop }),
    };
    let begun: DrainEntry = client.call(&request)?;
    let done = match args.cancel || args.no_wait {
        true => Some(begun),
        false => wait(&mut client, begun, args.stop)?,
    };
    let Some(done) = done else { return print("drained, and the process has ended\n") };
    if args.json {
        print_json(&done)?;
    } else {
        print(&format!("{}\n", says(&done)))?;
    }
    let is_given_up = !args.cancel && !args.no_wait && done.phase == Phase::InService;
    if is_given_up { Err(Trouble::Wrong("the node serves on".into())) } else { Ok(()) }
}

/// Until it is drained or given up; `None`: the process has ended, as it was to.
fn wait(client: &mut Client, mut entry: DrainEntry, stop: bool) -> Result<Option<DrainEntry>, Trouble> {
    loop {
        match entry.phase {
            Phase::InService => return Ok(Some(entry)),
            Phase::Drained if !stop => return Ok(Some(entry)),
            Phase::Drained | Phase::Waiting | Phase::HandingOver => {}
        }
        std::thread::sleep(STEP);
        match client.call::<HaList>(&Request::ShowHa {}) {
            Ok(list) => entry = list.drain.unwrap_or_default(),
            Err(error) if !error.is_refusal() && stop => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// In a line.
pub(super) fn says(entry: &DrainEntry) -> String {
    let phase = match (entry.phase, entry.unready) {
        (Phase::InService, _) => String::from("in service"),
        (Phase::Waiting, None) => String::from("waiting for the other node"),
        (Phase::Waiting, Some(unready)) => format!("waiting for the other node: {unready} sessions to go"),
        (Phase::HandingOver, _) => String::from("handing over: what comes is forwarded"),
        (Phase::Drained, _) => String::from("drained"),
    };
    let since = humantime::format_duration(Duration::from_secs(entry.since_s));
    let stops = if entry.stops { "; the process ends then" } else { "" };
    let trouble = entry.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
    match entry.since_s {
        0 => format!("{phase}{stops}{trouble}"),
        _ => format!("{phase}, for {since}{stops}{trouble}"),
    }
}
