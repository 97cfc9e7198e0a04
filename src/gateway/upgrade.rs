//! `softgate upgrade`: another process takes this one's place while traffic flows.
//!
//! ```text
//! this process                                     the new one (`run --take-over`, its stdin the other end of a pair)
//!   gives the locks of revisions and sessions up
//!   starts it                                        reads the config, makes tables, workers and packet memory
//!   serves                                           takes on the sessions that are kept, holds the XDP links as well
//!                                          <-- ready VERSION
//!   closes the control socket and the queues
//!   go NEIGHBOURS -->                                takes on what has changed of the sessions since
//!   tidies up and ends                               binds the queues, puts its program in the links, serves
//! ```
//!
//! Until `ready` nothing of this process has changed but that it makes no commits; whatever goes wrong with the new one
//! leaves it serving. From then on until the new one has bound its queues nobody forwards: this is the gap. The kernel binds
//! a queue to one packet memory only (xsk_bind answers EBUSY), so the new process cannot bind before this one has let go.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::Gateway;
use crate::control::{Fault, UpgradeEntry, UpgradePhase, UpgradeQuery};
use crate::io::supervisor;
use crate::neighbours::{addr_key, mac_from_u64};
use crate::time::Nanos;

/// How long the new process may take until it is ready: with 100,000 rules and a million routes it needs a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long the old one may take to leave once we are ready: it detaches from its devices.
const GO_WITHIN: Duration = Duration::from_secs(30);
/// How long the control thread rests meanwhile.
const STEP: Duration = Duration::from_millis(2);
/// Longest line that is read of the new process.
const LINE_BYTES: usize = 4096;
/// The option of `softgate run`.
const TAKE_OVER: &str = "--take-over";
/// Learned neighbours of an interface: as many as it may learn.
const NEIGHBOURS: u32 = u32::MAX;

/// What the old process tells the new one last.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// Interface, address, MAC.
    neighbours: Vec<(String, IpAddr, [u8; 6])>,
}

/// The old process' part.
#[derive(Default)]
pub(super) struct Upgrade {
    /// The CPUs that the process was given: the control thread has left those of the workers.
    affinity: Option<CpuSet>,
    successor: Option<Successor>,
    /// What became of the last one.
    last: Option<UpgradeEntry>,
}

#[derive(Debug)]
struct Successor {
    child: Child,
    channel: UnixStream,
    heard: Vec<u8>,
    begun: Instant,
    entry: UpgradeEntry,
}

impl Successor {
    /// The line that it has said, if it has; an error: it will say none.
    fn hear(&mut self) -> Result<Option<String>, String> {
        let mut bytes = [0; 256];
        loop {
            match self.channel.read(&mut bytes) {
                Ok(0) => return Err(String::from("it has ended before it was ready; its log says why")),
                Ok(count) => self.heard.extend(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
            if self.heard.len() > LINE_BYTES {
                return Err(String::from("it says what no softgate would"));
            }
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(String::from_utf8_lossy(&self.heard[..end]).into_owned()));
            }
        }
        match self.begun.elapsed() > READY_WITHIN {
            true => Err(format!("it was not ready within {} s", READY_WITHIN.as_secs())),
            false => Ok(None),
        }
    }
}

impl Upgrade {
    /// `affinity`: the CPUs that the process was given.
    pub fn new(affinity: Option<CpuSet>) -> Upgrade {
        Upgrade { affinity, ..Upgrade::default() }
    }

    /// Starts the process, on the CPUs that this one was given.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let own = self.affinity.and_then(|all| {
            let own = sched_getaffinity(None).ok()?;
            sched_setaffinity(None, &all).ok().map(|()| own)
        });
        let spawned = command.spawn();
        if let Some(own) = own {
            let _ = sched_setaffinity(None, &own);
        }
        spawned
    }

    /// Nothing may be committed: the new process has read what there is.
    pub fn is_under_way(&self) -> bool {
        self.successor.is_some()
    }

    /// For `show ha`.
    pub fn show(&self) -> Option<UpgradeEntry> {
        self.successor.as_ref().map(|successor| successor.entry.clone()).or_else(|| self.last.clone())
    }
}

/// The program that runs, as it is on the disk now: a package manager has put another in its place.
fn own_binary() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let replaced = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.unwrap_or(path))
}

/// An error says why nobody should run it as us.
fn may_run(binary: &Path) -> Result<(), String> {
    if !binary.is_absolute() {
        return Err(format!("{}: name it by its absolute path", binary.display()));
    }
    let found = std::fs::metadata(binary).map_err(|error| format!("{}: {error}", binary.display()))?;
    let is_safe =
        [0, rustix::process::geteuid().as_raw()].contains(&found.uid()) && found.mode() & 0o022 == 0;
    match (found.is_file(), is_safe) {
        (false, _) => Err(format!("{}: no file", binary.display())),
        (_, false) => Err(format!("{}: others may write to it", binary.display())),
        _ => Ok(()),
    }
}

impl Gateway {
    pub(super) fn begin_upgrade(&mut self, query: &UpgradeQuery) -> Result<UpgradeEntry, Fault> {
        if self.upgrade.is_under_way() || self.has_left() {
            return Err(Fault::refused("one is under way"));
        }
        if self.waiting_author().is_some() {
            return Err(Fault::refused(
                "a commit waits to be confirmed: confirm it, or let it be taken back, first",
            ));
        }
        if self.config().pair.is_some() && !query.force {
            return Err(Fault::refused(
                "there is another node: `softgate drain --stop` hands over to it without loss; then start this one anew",
            ));
        }
        if !self.keeping.can_be_inherited() && !query.force {
            return Err(Fault::refused(
                "sessions would be lost: set flows.keep to a folder in memory (show ha says what is wrong with it); \
                 `--force` goes all the same",
            ));
        }
        let refused = |error: io::Error| Fault::refused(format!("cannot start it: {error}"));
        let binary = query.binary.clone().map_or_else(own_binary, Ok).map_err(refused)?;
        may_run(&binary).map_err(Fault::refused)?;
        let (ours, theirs) = UnixStream::pair().map_err(refused)?;
        ours.set_nonblocking(true).map_err(refused)?;
        self.lend_locks(true);
        let args = std::env::args_os().skip(1).filter(|arg| arg.as_os_str() != TAKE_OVER);
        let mut command = Command::new(&binary);
        command.args(args).arg(TAKE_OVER).stdin(Stdio::from(OwnedFd::from(theirs)));
        let started = self.upgrade.spawn(&mut command);
        let child = started.map_err(|error| {
            self.lend_locks(false);
            Fault::refused(format!("{}: {error}", binary.display()))
        })?;
        let entry = UpgradeEntry {
            from: env!("CARGO_PKG_VERSION").to_owned(),
            pid: child.id(),
            ..UpgradeEntry::default()
        };
        tracing::info!(binary = %binary.display(), pid = entry.pid, "upgrade: the new process starts");
        let (channel, begun) = (ours, Instant::now());
        self.upgrade.successor =
            Some(Successor { child, channel, heard: Vec::new(), begun, entry: entry.clone() });
        Ok(entry)
    }

    /// The new process opens the folders of revisions and sessions as any start does; or we have them back.
    fn lend_locks(&mut self, is_lent: bool) {
        for taken in [self.lend_revisions(is_lent), self.keeping.lend(is_lent)] {
            if let Err(error) = taken {
                tracing::error!(%error, "a lock cannot be had back: another process keeps its own there");
            }
        }
    }

    /// Goes on with an upgrade that is under way.
    pub fn tend_upgrade(&mut self) {
        let Some(successor) = &mut self.upgrade.successor else { return };
        if successor.entry.phase != UpgradePhase::Starting {
            return;
        }
        let failed = match successor.hear() {
            Ok(None) => return,
            Ok(Some(line)) => match (line.strip_prefix("ready "), line.strip_prefix("failed ")) {
                (Some(version), _) => {
                    tracing::info!(version, "upgrade: the new process is ready");
                    successor.entry.to = Some(version.to_owned());
                    successor.entry.phase = UpgradePhase::SwitchingOver;
                    self.end_for_successor();
                    return;
                }
                (None, Some(why)) => why.to_owned(),
                (None, None) => format!("it says {line:?}: is it a softgate?"),
            },
            Err(why) => why,
        };
        let _ = successor.child.kill();
        let status = successor.child.wait().map(|status| format!(" ({status})")).unwrap_or_default();
        let trouble = format!("{failed}{status}");
        tracing::error!(%trouble, "upgrade: given up, this process serves on");
        let entry =
            UpgradeEntry { phase: UpgradePhase::Failed, trouble: Some(trouble), ..successor.entry.clone() };
        (self.upgrade.successor, self.upgrade.last) = (None, Some(entry));
        self.lend_locks(false);
        self.keeping.forget_successors();
    }

    /// When [`Gateway::tend_upgrade`] has something to do, if it has.
    pub(super) fn next_upgrade_step(&self) -> Option<Nanos> {
        self.upgrade.is_under_way().then(|| self.now().plus(STEP))
    }

    /// Leaves the devices to the process that takes over, if there is one: the first that a gateway does that stops.
    pub(super) fn hand_over(&mut self) {
        let Some(mut successor) = self.upgrade.successor.take() else { return };
        let begun = Instant::now();
        let known = serde_json::to_string(&self.known()).unwrap_or_default();
        // While the ports still carry: who else has its addresses is to hear of it.
        self.ha.stop();
        for mut port in std::mem::take(&mut self.ports) {
            self.unbind_port(&mut port);
        }
        // A worker that answers has done what it was told before.
        self.queue_status();
        supervisor::notify(&format!("MAINPID={}", successor.entry.pid));
        let told = successor.channel.set_nonblocking(false);
        if let Err(error) =
            told.and_then(|()| successor.channel.write_all(format!("go {known}\n").as_bytes()))
        {
            tracing::error!(%error, "upgrade: the new process does not hear us");
        }
        tracing::info!(
            detached_us = begun.elapsed().as_micros() as u64,
            "upgrade: the devices are the new process'"
        );
    }

    fn known(&self) -> Known {
        let names = self.compiler.interfaces.names();
        let entries = self.node.neighbours.entries().into_iter().filter(|entry| entry.word.is_usable());
        let neighbours = entries.filter_map(|entry| {
            let name = names.get(usize::from(entry.interface))?;
            Some((name.clone(), entry.address, mac_from_u64(entry.word.mac())))
        });
        Known { neighbours: neighbours.collect() }
    }

    /// The new process' part: everything but the devices, then `ready`, then what has changed since.
    pub(super) fn take_over(&mut self, mut predecessor: Predecessor) -> io::Result<()> {
        self.program.adopt();
        self.keep_sessions(true);
        predecessor.say(&format!("ready {}", env!("CARGO_PKG_VERSION")))?;
        let known = predecessor.wait()?;
        let begun = Instant::now();
        self.catch_up_sessions();
        for (interface, address, mac) in known.neighbours {
            let at = self.compiler.interfaces.names().iter().position(|name| *name == interface);
            let table = &self.node.neighbours;
            // What finds no room is asked for again.
            if let Some(slot) =
                at.and_then(|at| table.find_or_insert(at as u16, addr_key(address), NEIGHBOURS).ok())
            {
                table.learn(slot, mac, false, self.now());
            }
        }
        tracing::info!(caught_up_us = begun.elapsed().as_micros() as u64, "upgrade: this process takes over");
        Ok(())
    }
}

/// The process that we take over from.
#[derive(Debug)]
pub struct Predecessor {
    channel: BufReader<UnixStream>,
}

impl Predecessor {
    /// It has made our stdin the way to it.
    pub fn of_stdin() -> io::Result<Predecessor> {
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // It is a socket, or somebody has typed `--take-over`.
        channel.peer_addr()?;
        channel.set_read_timeout(Some(GO_WITHIN))?;
        Ok(Predecessor { channel: BufReader::new(channel) })
    }

    /// Another way to it, for whoever has to say that we failed.
    pub fn try_clone(&self) -> io::Result<Predecessor> {
        Ok(Predecessor { channel: BufReader::new(self.channel.get_ref().try_clone()?) })
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.channel.get_mut().write_all(format!("{}\n", line.replace('\n', " ")).as_bytes())
    }

    /// Waits until the devices are ours. If it ends without a word they are as well.
    fn wait(&mut self) -> io::Result<Known> {
        let mut line = String::new();
        self.channel.read_line(&mut line)?;
        let known = line.trim_end().strip_prefix("go ").and_then(|known| serde_json::from_str(known).ok());
        if known.is_none() {
            tracing::warn!("upgrade: the process before has ended without a word");
        }
        Ok(known.unwrap_or_default())
    }
}
