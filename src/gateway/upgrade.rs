//! `softgate upgrade`: another process takes this one's place while traffic flows.
//!
//! ```text
//! this process                                     the new one (`run --take-over`, its stdin the other end of a pair)
//!   gives the locks of revisions and sessions up
//!   starts it                                        reads the config
//!                                          <-- offer?
//!   offer LAYOUT, packet memory -->                  maps it, or says why not and makes its own; makes tables, workers
//!   serves                                           takes on the sessions that are kept, holds the XDP links as well
//!                                          <-- ready VERSION, and whether it takes the devices as they are
//!
//!   if so:
//!   know NEIGHBOURS, STATIONS, BACKENDS -->          takes them on
//!                                          <-- known
//!   workers rest between two bursts
//!   go frames, sockets -->                           takes on what has changed of the sessions since
//!                                          <-- taken
//!                                                    workers go on with the rings, its program goes into the links
//!                                          <-- serving
//!   closes the control socket, ends                  opens the control socket
//!
//!   if not:
//!   closes the control socket and the queues
//!   go NEIGHBOURS, STATIONS, BACKENDS -->            takes on what has changed of the sessions since
//!   tidies up and ends                               binds the queues, puts its program in the links, serves
//! ```
//!
//! Until `ready` nothing of this process has changed but that it makes no commits; whatever goes wrong with the new one
//! leaves it serving, and where it takes the devices as they are ([`super::inherit`]) until `serving`. What comes meanwhile
//! waits in the rings. Else nobody forwards until the new one has bound its queues: the kernel binds a queue to one packet
//! memory only (xsk_bind answers EBUSY), so it cannot bind before this one has let go.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::inherit::{Handed, Inherited, Offer, Parcel, Wanted};
use super::known::Known;
use super::{Gateway, Member};
use crate::control::{Fault, UpgradeEntry, UpgradePhase, UpgradeQuery};
use crate::io::passing::Channel;
use crate::io::supervisor;
use crate::io::xdp::XdpProgram;
use crate::mem::{FramePool, PacketMemory};
use crate::time::Nanos;

/// How long the new process may take until it is ready: with 100,000 rules and a million routes it needs a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long the old one may take to leave once we are ready: it detaches from its devices.
const GO_WITHIN: Duration = Duration::from_secs(30);
/// How long the new one may take with the devices: they stand still, so that long nobody forwards.
const SERVING_WITHIN: Duration = Duration::from_secs(5);
/// How long the control thread rests meanwhile.
const STEP: Duration = Duration::from_millis(2);
/// Sessions that change while the old process serves are taken on again and again, until that takes no longer than this, or
/// so often: what is left for the time when nobody forwards is what has changed in the last round.
const SHORT: Duration = Duration::from_millis(5);
const MOST_ROUNDS: usize = 4;
/// The option of `softgate run`.
const TAKE_OVER: &str = "--take-over";

/// What the old process tells the new one last.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Go {
    /// Its version.
    from: String,
    /// How long it has forwarded nothing.
    paused_us: u64,
    /// What it knows, unless it has said so before.
    known: Option<Known>,
    /// The devices, where the new one takes them as they are.
    devices: Vec<Handed>,
}

impl Go {
    /// `begun`: when it forwarded last.
    fn since(begun: Instant) -> Go {
        let (from, paused_us) = (env!("CARGO_PKG_VERSION").to_owned(), begun.elapsed().as_micros() as u64);
        Go { from, paused_us, ..Go::default() }
    }
}

/// What the new process says when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    version: String,
    /// Why it binds the devices anew; absent: it takes them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    anew: Option<String>,
}

/// The old process' part.
#[derive(Default)]
pub(super) struct Upgrade {
    /// The CPUs that the process was given: the control thread has left those of the workers.
    affinity: Option<CpuSet>,
    successor: Option<Successor>,
    /// What became of the last one.
    last: Option<UpgradeEntry>,
    /// The devices are another process', which waits for the end of this channel.
    passed: Option<Channel>,
}

#[derive(Debug)]
struct Successor {
    child: Child,
    channel: Channel,
    /// What it was offered, if anything.
    offer: Option<Offer>,
    begun: Instant,
    entry: UpgradeEntry,
}

impl Successor {
    /// The line that it has said, if it has; an error: it will say none.
    fn hear(&mut self) -> Result<Option<String>, String> {
        match self.channel.line() {
            Ok(Some(line)) => return Ok(Some(line)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(String::from("it has ended before it was ready; its log says why"));
            }
            Err(error) => return Err(error.to_string()),
        }
        match self.begun.elapsed() > READY_WITHIN {
            true => Err(format!("it was not ready within {} s", READY_WITHIN.as_secs())),
            false => Ok(None),
        }
    }

    /// Tells it what this process knows, and waits until it has taken that on. From then on the channel blocks.
    fn tell(&mut self, known: &str) -> Result<(), String> {
        let told = (|| {
            let stream = self.channel.stream();
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(SERVING_WITHIN))?;
            stream.set_write_timeout(Some(SERVING_WITHIN))?;
            self.channel.say(&format!("know {known}"))
        })();
        told.map_err(|error: io::Error| error.to_string())?;
        self.expect("known")
    }

    /// Waits until it says the word; an error is what it said instead.
    fn expect(&mut self, word: &str) -> Result<(), String> {
        match self.channel.line() {
            Ok(Some(line)) if line == word => Ok(()),
            Ok(Some(line)) => Err(line.strip_prefix("failed ").unwrap_or(&line).to_owned()),
            Ok(None) => Err(format!("it is not {word} within {} s", SERVING_WITHIN.as_secs())),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(String::from("it has ended; its log says why"))
            }
            Err(error) => Err(error.to_string()),
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
        let (channel, begun) = (Channel::new(ours), Instant::now());
        self.upgrade.successor = Some(Successor { child, channel, offer: None, begun, entry: entry.clone() });
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
        loop {
            let Some(successor) = &mut self.upgrade.successor else { return };
            if successor.entry.phase != UpgradePhase::Starting {
                return;
            }
            let line = match successor.hear() {
                Ok(None) => return,
                Ok(Some(line)) => line,
                Err(why) => return self.give_up(why),
            };
            let done = match line.split_once(' ').unwrap_or((&line, "")) {
                ("offer?", _) => self.make_offer(),
                ("ready", said) => match serde_json::from_str(said) {
                    Ok(ready) => self.switch_over(ready),
                    Err(error) => Err(format!("it says {line:?}: {error}")),
                },
                ("failed", why) => Err(why.to_owned()),
                _ => Err(format!("it says {line:?}: is it a softgate?")),
            };
            if let Err(why) = done {
                return self.give_up(why);
            }
        }
    }

    /// Ends the new process; this one serves on.
    fn give_up(&mut self, why: String) {
        let Some(mut successor) = self.upgrade.successor.take() else { return };
        let _ = successor.child.kill();
        let status = successor.child.wait().map(|status| format!(" ({status})")).unwrap_or_default();
        let trouble = format!("{why}{status}");
        tracing::error!(%trouble, "upgrade: given up, this process serves on");
        let entry = UpgradeEntry { phase: UpgradePhase::Failed, trouble: Some(trouble), ..successor.entry };
        self.upgrade.last = Some(entry);
        self.lend_locks(false);
        self.keeping.forget_successors();
    }

    fn make_offer(&mut self) -> Result<(), String> {
        let offer = self.offer();
        let Some(successor) = &mut self.upgrade.successor else { return Ok(()) };
        let channel = &mut successor.channel;
        let said = match (offer, self.memory.file()) {
            (Ok(offer), Some(file)) => {
                let text = serde_json::to_string(&offer).unwrap_or_default();
                successor.offer = Some(offer);
                channel.say(&format!("offer {text}")).and_then(|()| channel.pass(&[file.as_fd()]))
            }
            (Ok(_), None) => channel.say("nothing"),
            (Err(why), _) => channel.say(&format!("nothing {why}")),
        };
        said.map_err(|error| error.to_string())
    }

    fn switch_over(&mut self, ready: Ready) -> Result<(), String> {
        let Some(successor) = &mut self.upgrade.successor else { return Ok(()) };
        let Ready { version, anew } = ready;
        tracing::info!(version, anew, "upgrade: the new process is ready");
        successor.entry.to = Some(version);
        if anew.is_none() {
            let offered = successor.offer.take();
            if offered.is_none() || offered != self.offer().ok() {
                return Err(String::from("a device has changed since it was offered: try again"));
            }
            self.pass_devices()?;
        }
        if let Some(successor) = &mut self.upgrade.successor {
            successor.entry.phase = UpgradePhase::SwitchingOver;
        }
        self.end_for_successor();
        Ok(())
    }

    /// Has the new process go on with the devices. An error: this one has them, and serves.
    fn pass_devices(&mut self) -> Result<(), String> {
        let known = serde_json::to_string(&self.known()).unwrap_or_default();
        let Some(successor) = &mut self.upgrade.successor else { return Ok(()) };
        successor.tell(&known)?;
        let routers = !self.ha.routers().is_empty();
        if routers {
            // While the ports still carry: who else has its addresses is to hear of it.
            self.ha.leave(true);
        }
        let begun = Instant::now();
        let passed = self.pack().and_then(|parcel| {
            let waiting = parcel.waiting;
            let passed = self.pass(parcel, begun);
            passed.inspect(|()| {
                let paused_us = begun.elapsed().as_micros() as u64;
                tracing::info!(paused_us, lost = waiting, "upgrade: the devices are the new process'");
            })
        });
        if passed.is_err() && routers {
            self.ha.leave(false);
        }
        passed
    }

    fn pass(&mut self, parcel: Parcel, begun: Instant) -> Result<(), String> {
        let Some(mut successor) = self.upgrade.successor.take() else { return Ok(()) };
        let Parcel { handed, held, sockets, .. } = parcel;
        let sent = (|| {
            let go = Go { devices: handed, ..Go::since(begun) };
            let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
            successor.channel.say(&format!("go {}", serde_json::to_string(&go)?))?;
            successor.channel.send(&held)?;
            successor.channel.pass(&sockets)
        })();
        drop(sockets);
        let taken =
            sent.map_err(|error: io::Error| error.to_string()).and_then(|()| successor.expect("taken"));
        let mut is_taken = taken.is_ok();
        let served = taken.and_then(|()| successor.expect("serving"));
        if let Err(why) = served {
            // Before we look at a ring again nobody else may have it.
            let _ = successor.child.kill();
            let _ = successor.child.wait();
            // It may have said so when nobody waited any more.
            is_taken |= successor.expect("taken").is_ok();
            if is_taken {
                self.bind_anew();
            } else {
                self.go_on();
            }
            self.upgrade.successor = Some(successor);
            return Err(why);
        }
        supervisor::notify(&format!("MAINPID={}", successor.entry.pid));
        self.forget_devices();
        self.upgrade.passed = Some(successor.channel);
        Ok(())
    }

    /// True if another process has the devices.
    pub(super) fn has_passed_devices(&self) -> bool {
        self.upgrade.passed.is_some()
    }

    /// When [`Gateway::tend_upgrade`] has something to do, if it has.
    pub(super) fn next_upgrade_step(&self) -> Option<Nanos> {
        self.upgrade.is_under_way().then(|| self.now().plus(STEP))
    }

    /// Leaves the devices to the process that takes over, if there is one: the first that a gateway does that stops.
    pub(super) fn hand_over(&mut self) {
        let Some(mut successor) = self.upgrade.successor.take() else { return };
        let begun = Instant::now();
        let known = self.known();
        // While the ports still carry: who else has its addresses is to hear of it.
        self.ha.stop();
        for mut port in std::mem::take(&mut self.ports) {
            self.unbind_port(&mut port);
        }
        // A worker that answers has done what it was told before.
        self.queue_status();
        supervisor::notify(&format!("MAINPID={}", successor.entry.pid));
        let go = Go { known: Some(known), ..Go::since(begun) };
        let go = serde_json::to_string(&go).unwrap_or_default();
        let told = successor.channel.stream().set_nonblocking(false);
        if let Err(error) = told.and_then(|()| successor.channel.say(&format!("go {go}"))) {
            tracing::error!(%error, "upgrade: the new process does not hear us");
        }
        tracing::info!(
            detached_us = begun.elapsed().as_micros() as u64,
            "upgrade: the devices are the new process'"
        );
    }

    /// The new process' part: everything but the devices, then `ready`, then what has changed since.
    pub(super) fn take_over(&mut self, mut predecessor: Predecessor) -> io::Result<()> {
        self.keep_sessions(true);
        for _ in 0..MOST_ROUNDS {
            if self.refresh_sessions() < SHORT {
                break;
            }
        }
        // What can be done with the devices while the old process serves.
        let members = self.ports.iter_mut().flat_map(|port| &mut port.members);
        members.filter(|member| member.is_expected).for_each(Member::open_up);
        let (version, anew) = (env!("CARGO_PKG_VERSION").to_owned(), predecessor.anew.clone());
        let ready = serde_json::to_string(&Ready { version, anew })?;
        predecessor.channel.say(&format!("ready {ready}"))?;
        let mut anew = predecessor.anew.clone();
        let (go, inherited) = loop {
            let line = predecessor.next_line()?;
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("know", said) => {
                    self.take_on(serde_json::from_str(said).unwrap_or_default());
                    predecessor.channel.say("known")?;
                }
                ("go", said) => break predecessor.go(serde_json::from_str(said).unwrap_or_default())?,
                _ => {
                    let why = "the process before has ended without a word";
                    tracing::warn!("upgrade: {why}");
                    anew.get_or_insert_with(|| why.to_owned());
                    break Default::default();
                }
            }
        };
        let begun = Instant::now();
        self.catch_up_sessions();
        if let Some(known) = go.known {
            self.take_on(known);
        }
        if predecessor.anew.is_none() {
            let held = inherited.iter().flat_map(Inherited::held);
            self.memory.take_frames(held).map_err(io::Error::other)?;
            if predecessor.takes {
                predecessor.channel.say("taken")?;
            }
            self.inherited = inherited;
        }
        tracing::info!(caught_up_us = begun.elapsed().as_micros() as u64, "upgrade: this process takes over");
        predecessor.since = begun;
        self.upgrade.last = Some(UpgradeEntry {
            phase: UpgradePhase::Done,
            from: go.from,
            to: Some(env!("CARGO_PKG_VERSION").to_owned()),
            pid: std::process::id(),
            anew,
            paused_us: Some(go.paused_us),
            ..UpgradeEntry::default()
        });
        self.predecessor = Some(predecessor);
        Ok(())
    }

    fn take_on(&mut self, known: Known) {
        self.learn(&known);
        self.believed = known.backends;
    }

    /// The queues are ours and the workers have them. Returns when the process before has ended, or may not be waited for
    /// any longer: its control socket is ours then.
    pub(super) fn has_taken_over(&mut self) {
        let Some(mut predecessor) = self.predecessor.take() else { return };
        let own_us = predecessor.since.elapsed().as_micros() as u64;
        if let Some(last) = &mut self.upgrade.last {
            last.paused_us = last.paused_us.map(|paused_us| paused_us + own_us);
            tracing::info!(paused_us = last.paused_us, anew = last.anew, "upgrade: this process serves");
        }
        if predecessor.takes {
            let ended = predecessor.channel.say("serving").and_then(|()| predecessor.channel.wait_for_end());
            if let Err(error) = ended {
                tracing::warn!(%error, "upgrade: the process before does not end");
            }
        }
    }
}

/// The process that we take over from.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    /// Why its devices are bound anew; `None`: they are taken as they are.
    anew: Option<String>,
    /// It waits until we serve.
    takes: bool,
    /// When it had let go.
    since: Instant,
}

impl Predecessor {
    /// It has made our stdin the way to it.
    pub fn of_stdin() -> io::Result<Predecessor> {
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // It is a socket, or somebody has typed `--take-over`.
        channel.peer_addr()?;
        channel.set_read_timeout(Some(GO_WITHIN))?;
        Ok(Predecessor::on(channel))
    }

    fn on(stream: UnixStream) -> Predecessor {
        let channel = Channel::new(stream);
        Predecessor { channel, anew: None, takes: false, since: Instant::now() }
    }

    /// Another way to it, for whoever has to say that we failed.
    pub fn try_clone(&self) -> io::Result<Predecessor> {
        Ok(Predecessor::on(self.channel.stream().try_clone()?))
    }

    /// True if its devices are to be taken as they are.
    pub(super) fn leaves_devices(&self) -> bool {
        self.anew.is_none()
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.channel.say(line)
    }

    /// Maps its packet memory, if that and its devices are what we would make: then they are taken as they are.
    pub(super) fn adopt(
        &mut self,
        wanted: &Wanted<'_>,
        program: &XdpProgram,
    ) -> Option<(Arc<PacketMemory>, Vec<FramePool>)> {
        program.adopt();
        let adopted = self.offered().and_then(|(offer, file)| {
            wanted.matches(&offer, program)?;
            PacketMemory::adopt(file, offer.pages, offer.layout).map_err(|error| error.to_string())
        });
        match adopted {
            Ok(adopted) => Some(adopted),
            Err(why) => {
                tracing::warn!(%why, "upgrade: devices are bound anew, with a gap");
                self.anew = Some(why);
                None
            }
        }
    }

    fn offered(&mut self) -> Result<(Offer, std::fs::File), String> {
        let failed = |error: io::Error| error.to_string();
        self.channel.say("offer?").map_err(failed)?;
        let line = self.channel.line().map_err(failed)?.ok_or("it offers nothing in time")?;
        let Some(text) = line.strip_prefix("offer ") else {
            let why = line.strip_prefix("nothing").unwrap_or(&line).trim();
            return Err(why.to_owned());
        };
        let file = self.channel.descriptors(1).map_err(failed)?.remove(0);
        let offer = serde_json::from_str(text)
            .map_err(|_| String::from("the two speak of devices and frames in different ways"))?;
        Ok((offer, file.into()))
    }

    /// What it says next; nothing: it has ended without a word, and its devices are ours, to be bound anew.
    fn next_line(&mut self) -> io::Result<String> {
        match self.channel.line() {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(String::new()),
            Err(error) => Err(error),
        }
    }

    /// It has let go: takes what of its devices comes with the word.
    fn go(&mut self, mut go: Go) -> io::Result<(Go, Vec<Inherited>)> {
        self.takes = self.anew.is_none();
        let devices = std::mem::take(&mut go.devices);
        let (frames, sockets) = Handed::counts(&devices);
        let held = self.channel.exactly(frames.saturating_mul(4))?;
        let sockets = self.channel.descriptors(sockets)?;
        Ok((go, Inherited::of(devices, &held, sockets)))
    }
}
