//! `softgate upgrade`: another process, of another release perhaps, in the place of the one that runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Trouble, connect, print, print_json};
use crate::control::{Client, HaList, Request, UpgradeEntry, UpgradePhase, UpgradeQuery, Version};

/// How often it is looked how far it is.
const STEP: Duration = Duration::from_millis(100);
/// How long the new process may take to answer once the old one has left.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Put a new process in the gateway's place, with its sessions: after a new release was installed
///
/// The new process makes everything ready while the old one serves, then takes its sessions and devices over. Needs
/// flows.keep. If the new one does not get ready the old one serves on: exit code 1.
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    /// The program; default: the one that runs, as it is on the disk now
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Also if that costs sessions
    #[arg(long)]
    force: bool,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &UpgradeArgs, socket: &Path) -> Result<(), Trouble> {
    let binary = args.binary.as_ref().map(std::path::absolute).transpose();
    let binary = binary.map_err(|error| Trouble::Unable(error.to_string()))?;
    let mut client = connect(socket)?;
    let query = UpgradeQuery { binary, force: args.force };
    let mut entry: UpgradeEntry = client.call(&Request::Upgrade(query))?;
    while entry.phase != UpgradePhase::Failed {
        std::thread::sleep(STEP);
        match client.call::<HaList>(&Request::ShowHa {}) {
            Ok(list) => entry = list.upgrade.unwrap_or_default(),
            Err(error) if error.is_refusal() => return Err(error.into()),
            // It has ended.
            Err(_) => return followed(socket, entry, args.json),
        }
    }
    if args.json {
        print_json(&entry)?;
    }
    let why = entry.trouble.unwrap_or_default();
    Err(Trouble::Wrong(format!("the new process did not get ready: {why}; the old one serves on")))
}

/// In a line.
pub(super) fn stands(entry: &UpgradeEntry) -> String {
    let pid = entry.pid;
    match entry.phase {
        UpgradePhase::Starting => format!("process {pid} makes itself ready"),
        UpgradePhase::SwitchingOver => format!("process {pid} takes over"),
        UpgradePhase::Done => came(entry),
        UpgradePhase::Failed => {
            format!("process {pid} did not get ready: {}", entry.trouble.as_deref().unwrap_or_default())
        }
    }
}

/// How the new process came to its devices.
fn came(entry: &UpgradeEntry) -> String {
    let paused = match entry.paused_us {
        Some(paused_us) => format!("{}.{} ms", paused_us / 1000, paused_us % 1000 / 100),
        None => String::from("an unknown time"),
    };
    let how = match &entry.anew {
        None => format!("devices as they were; packets waited {paused}"),
        Some(why) => format!("devices bound anew, nothing forwarded for {paused}: {why}"),
    };
    let to = entry.to.as_deref().unwrap_or("?");
    format!("from {} to {to}, process {}: {how}", entry.from, entry.pid)
}

/// Waits for the new process.
fn followed(socket: &Path, entry: UpgradeEntry, json: bool) -> Result<(), Trouble> {
    let began = Instant::now();
    let (version, list) = loop {
        let asked = Client::connect(socket).and_then(|mut client| {
            Ok((
                client.call::<Version>(&Request::ShowVersion {})?,
                client.call::<HaList>(&Request::ShowHa {})?,
            ))
        });
        match asked {
            Ok((version, list)) if version.pid == entry.pid => break (version, list),
            _ if began.elapsed() > BACK_WITHIN => {
                let why = format!("process {} does not answer within {} s", entry.pid, BACK_WITHIN.as_secs());
                return Err(Trouble::Unable(why));
            }
            _ => std::thread::sleep(STEP),
        }
    };
    let entry = list.upgrade.unwrap_or(UpgradeEntry { to: Some(version.version), ..entry });
    match json {
        true => print_json(&entry),
        false => print(&format!("{}\n", came(&entry))),
    }
}
