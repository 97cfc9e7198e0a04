//! Sessions outlive the process: `flows.keep`.
//!
//! ```text
//! FOLDER/lock          locked by the process that keeps its sessions here
//! FOLDER/sessions.N    the file of crate::journal, N higher with each process
//! FOLDER/names.N       what the slots in it are called, appended to before tables that use them are published
//! ```
//!
//! A start reads all that earlier processes have left, in their order, and installs it in its workers before a port is
//! bound. Their files go only when the workers have written into the new one all that they have: whenever the process is
//! ended, what is there is enough to go on with.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ahash::AHashMap;

use super::Gateway;
use super::pair::learn_names;
use crate::control::{AdvertErrors, KeptEntry};
use crate::flow::changes::Gone;
use crate::flow::flow_record::{FlowRecord, Kind, Name, Upper};
use crate::flow::{FlowTable, Record, Tick, Timers, timeout};
use crate::ha::sync::{Names, own_slot};
use crate::journal::{Header, Journal, Left, Slot, batch_of_names, names_of};
use crate::mem;
use crate::pipeline::replica::NotInstalled;
use crate::tables::compile::Compiler;
use crate::time::Nanos;
use crate::worker::Node;

const SESSIONS: &str = "sessions.";
const NAMES: &str = "names.";
/// Records under way to the workers: less than one has room for, so that none that it passes on to another is lost.
const UNDER_WAY: u64 = 1024;
/// How long workers may take for nothing of what they were given.
const STALLED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_micros(50);

/// Why no sessions are kept.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    #[error("{0} is not in memory: name a folder on tmpfs, as /dev/shm/softgate")]
    OnDisk(PathBuf),
    #[error("{0} is not ours alone: it belongs to user {1}, mode {2:o}; chown it, and chmod 700")]
    Others(PathBuf, u32, u32),
    #[error("another gateway keeps its sessions in {0}: each needs a folder of its own")]
    InUse(PathBuf),
    #[error(
        "{path}: no room for {mb} MB: {source}; enlarge the tmpfs (mount -o remount,size=), or lower `flows.capacity`"
    )]
    NoRoom { path: PathBuf, mb: usize, source: io::Error },
}

/// The gateway's part of it.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    open: Option<Open>,
    entry: Option<KeptEntry>,
    /// What a process that still runs had left when it was read.
    copied: Option<Copied>,
}

/// A file of sessions that is still written, and what was installed of it.
#[derive(Debug)]
struct Copied {
    left: Left,
    /// Where its names are.
    names: PathBuf,
    /// By place: what the place said of itself.
    heads: Vec<u64>,
    /// By place: what was installed.
    installed: AHashMap<usize, Name>,
    count: Count,
    began: Instant,
}

#[derive(Debug)]
struct Open {
    folder: PathBuf,
    /// Which of the processes that have kept their sessions here this is.
    number: u64,
    /// Held as long as the process, but for the time in which another takes over.
    lock: File,
    names: Names,
    /// Names that are in the file, by kind.
    written: [usize; Kind::ALL.len()],
    /// The file may end in the midst of a batch, behind which nothing would be read.
    is_cut: bool,
    file: File,
    /// What earlier processes have left, until it is in our own file.
    earlier: Vec<PathBuf>,
}

impl Open {
    fn write_names(&mut self) -> io::Result<()> {
        let batch = batch_of_names(&self.names, &self.written);
        self.file.write_all(&batch)?;
        self.written = Kind::ALL.map(|kind| self.names.count(kind));
        Ok(())
    }
}

impl Keeping {
    /// Slots may have got names: before the tables that use them are published.
    pub fn note_names(&mut self, compiler: &Compiler) {
        let Some(open) = &mut self.open else { return };
        learn_names(&mut open.names, compiler);
        if open.is_cut {
            return;
        }
        if let Err(error) = open.write_names() {
            open.is_cut = true;
            tracing::error!(%error, "names of new rules cannot be kept: sessions that use them will not outlive us");
            if let Some(entry) = &mut self.entry {
                entry.trouble = Some(format!("names cannot be written: {error}"));
            }
        }
    }

    /// The process is alive; what earlier ones have left goes when it is not needed any more.
    pub fn tend(&mut self, now: Nanos, node: &Node) {
        let (Some(open), Some(journal)) = (&mut self.open, node.journal.get()) else { return };
        journal.note_alive(Tick::of(now));
        if !open.earlier.is_empty() && journal.is_whole() {
            for path in open.earlier.drain(..) {
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove it");
                }
            }
        }
    }

    /// True if the next process would find our sessions.
    pub fn can_be_inherited(&self) -> bool {
        self.open.is_some()
    }

    /// Lets a process have the folder that is to take over, or takes it back.
    pub fn lend(&mut self, is_lent: bool) -> io::Result<()> {
        match &self.open {
            None => Ok(()),
            Some(open) if is_lent => open.lock.unlock(),
            Some(open) => open.lock.try_lock().map_err(io::Error::from),
        }
    }

    /// Removes what a process has begun to write that was to take over and did not.
    pub fn forget_successors(&mut self) {
        let Some(open) = &self.open else { return };
        let Ok((sessions, names)) = files_in(&open.folder) else { return };
        for (prefix, numbers) in [(SESSIONS, sessions), (NAMES, names)] {
            for number in numbers.into_iter().filter(|number| *number > open.number) {
                let _ = std::fs::remove_file(open.folder.join(format!("{prefix}{number}")));
            }
        }
    }

    /// For `show ha`.
    pub fn show(&self, node: &Node) -> Option<Box<KeptEntry>> {
        let mut entry = self.entry.clone()?;
        if let Some(journal) = node.journal.get() {
            (entry.sessions, entry.bytes) = (journal.kept(), journal.bytes() as u64);
        }
        Some(Box::new(entry))
    }
}

/// What becomes of what was left.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    given: u64,
    torn: u64,
    unreadable: u64,
    unknown_name: u64,
    out_of_date: u64,
}

impl Gateway {
    /// Goes on with the sessions of the process before, and keeps them for the next, if the config says so. Without it
    /// the gateway serves as well.
    ///
    /// `is_live`: the process before still runs, and what it has changed since is asked for when it does not any more
    /// ([`Gateway::catch_up_sessions`]).
    pub(super) fn keep_sessions(&mut self, is_live: bool) {
        let Some(folder) = self.config.flows.keep.clone() else { return };
        let mut entry = KeptEntry { folder: folder.clone(), ..KeptEntry::default() };
        if self.config.pair.is_some() {
            // What we had is older than what the other node has made of it since.
            entry.trouble = Some(String::from("there is a [pair]: sessions come from the other node"));
            tracing::info!("sessions are not kept in memory: the other node has them");
        } else if let Err(error) = self.begin_keeping(&folder, is_live, &mut entry) {
            tracing::error!(%error, "flows.keep: no session will outlive this process");
            entry.trouble = Some(format!("none are kept: {error}"));
        }
        self.keeping.entry = Some(entry);
    }

    fn begin_keeping(&mut self, folder: &Path, is_live: bool, entry: &mut KeptEntry) -> Result<(), NotKept> {
        let began = Instant::now();
        let lock = lock_of(folder)?;
        let listed = |error| NotKept::Io(folder.to_owned(), error);
        let (sessions, names) = files_in(folder).map_err(listed)?;
        let number = sessions.iter().chain(&names).max().map_or(1, |last| last + 1);
        let path = |prefix: &str, number: u64| folder.join(format!("{prefix}{number}"));

        let file = new_file(&path(NAMES, number))?;
        let written = [0; Kind::ALL.len()];
        let folder = folder.to_owned();
        let mut open = Open {
            folder,
            number,
            lock,
            names: Names::default(),
            written,
            is_cut: false,
            file,
            earlier: Vec::new(),
        };
        learn_names(&mut open.names, &self.compiler);
        open.write_names().map_err(|error| NotKept::Io(path(NAMES, number), error))?;
        let journal_path = path(SESSIONS, number);
        let file = new_file(&journal_path)?;
        let header = Header {
            workers: self.workers.len() as u32,
            slots: FlowTable::<u32>::places_for(self.node.capacity.sessions),
            boot: boot_id().map_err(|error| NotKept::Io(PathBuf::from(BOOT_ID), error))?,
            node: name_hash(self.config.system.name.as_str()),
            run: super::random(),
            epoch_ms: since_boot_ms()
                .map_err(|error| NotKept::Io(PathBuf::from(UPTIME), error))?
                .saturating_sub(self.started.elapsed().as_millis() as u64),
        };
        let journal = Journal::create(&file, header).map_err(|source| {
            let _ = std::fs::remove_file(&journal_path);
            let _ = std::fs::remove_file(path(NAMES, number));
            NotKept::NoRoom { path: journal_path.clone(), mb: (header.words() * 8) >> 20, source }
        })?;
        self.node.replicas();
        let journal = self.node.journal.get_or_init(|| journal);

        let (mut count, mut copied) = (Count::default(), None);
        for number in &sessions {
            let (left, names) = (path(SESSIONS, *number), path(NAMES, *number));
            match File::open(&left).and_then(|file| Left::open(&file)) {
                Ok(Ok(found)) if found.header.boot != header.boot || found.header.node != header.node => {
                    // Times cannot be compared, or it is none of our business.
                    let why = "what was left is of another node, or of before the machine's boot";
                    entry.trouble = Some(why.to_owned());
                }
                Ok(Ok(found)) => {
                    let heads = vec![0; if is_live { found.header.places() } else { 0 }];
                    let installed = AHashMap::new();
                    let mut copy = Copied { left: found, names, heads, installed, count, began };
                    self.restore(&mut copy, is_live, &open.names, entry);
                    count = copy.count;
                    copied = is_live.then_some(copy);
                }
                Ok(Err(why)) => entry.trouble = Some(format!("{}: {why}", left.display())),
                Err(error) => entry.trouble = Some(format!("{}: {error}", left.display())),
            }
            open.earlier.push(left);
        }
        open.earlier.extend(names.into_iter().map(|number| path(NAMES, number)));
        journal.note_alive(Tick::of(self.now()));
        self.keeping.open = Some(open);
        match copied {
            Some(copied) => self.keeping.copied = Some(Copied { count, ..copied }),
            None => {
                self.ask_all();
                self.tell_restored(&count, entry, began.elapsed());
            }
        }
        Ok(())
    }

    /// Has the workers write all that they have: then what was left is not needed any more.
    fn ask_all(&self) {
        if let Some(journal) = self.node.journal.get() {
            journal.ask_all();
            self.node.wake_all();
        }
    }

    /// The process before still runs: what it has changed since its sessions were read. Returns how long that took.
    pub(super) fn refresh_sessions(&mut self) -> Duration {
        let began = Instant::now();
        if let (Some(mut copied), Some(mut entry)) = (self.keeping.copied.take(), self.keeping.entry.take()) {
            if let Some(open) = &self.keeping.open {
                self.restore(&mut copied, true, &open.names, &mut entry);
            }
            (self.keeping.copied, self.keeping.entry) = (Some(copied), Some(entry));
        }
        began.elapsed()
    }

    /// The process before has ended: what it has changed since its sessions were read.
    pub(super) fn catch_up_sessions(&mut self) {
        let (Some(mut copied), Some(mut entry)) = (self.keeping.copied.take(), self.keeping.entry.take())
        else {
            return;
        };
        if let Some(open) = &self.keeping.open {
            self.restore(&mut copied, true, &open.names, &mut entry);
        }
        self.ask_all();
        self.tell_restored(&copied.count, &mut entry, copied.began.elapsed());
        self.keeping.entry = Some(entry);
    }

    /// Installs what a process has left; with `is_live`, what is there for the first time, or other than it was.
    fn restore(&self, copied: &mut Copied, is_live: bool, own: &Names, entry: &mut KeptEntry) {
        let Copied { left, names, heads, installed, count, .. } = copied;
        // Looked at again each time.
        count.torn = if is_live { 0 } else { count.torn };
        let names = names_of(&std::fs::read(names).unwrap_or_default());
        let now = left.clock(since_boot_ms().unwrap_or(0));
        entry.away_ms = Some(u64::from(now.0.saturating_sub(left.alive().0)) * 100);
        let timers = self.compiler.tables().policy.timers;
        let dispatch = self.node.dispatch();
        let desks = self.node.replicas();
        desks.iter().for_each(|desk| desk.set_restoring(true));
        self.node.wake_all();
        let mut flow =
            Flow { node: &self.node, given: count.given, seen: self.done(), since: Instant::now() };
        for place in left.places() {
            if let Some(head) = heads.get_mut(place) {
                let is_same = std::mem::replace(head, left.head(place)) == *head;
                if is_same {
                    continue;
                }
                if let Some(name) = installed.remove(&place) {
                    // What is there now may be another session: it is installed behind this.
                    let gone = Gone { name, idle: 0 };
                    while dispatch.end(gone).is_err() && flow.goes_on(|| self.done()) {
                        std::thread::sleep(PAUSE);
                    }
                    self.node.wake_all();
                }
            }
            let mut record = match left.read(place, now) {
                Slot::Empty => continue,
                Slot::Torn => {
                    count.torn += 1;
                    heads.iter_mut().skip(place).take(1).for_each(|head| *head = 0);
                    continue;
                }
                Slot::Unreadable => {
                    count.unreadable += 1;
                    continue;
                }
                Slot::Is(record) => record,
            };
            if !record.translate(|kind, slot| own_slot(kind, slot, &names, own)) {
                count.unknown_name += 1;
                continue;
            }
            if is_out_of_date(&record, &timers) {
                count.out_of_date += 1;
                continue;
            }
            let given = flow.wait_below(UNDER_WAY, || self.done()) && {
                let mut given = dispatch.install(record, false);
                while given.is_none() && flow.goes_on(|| self.done()) {
                    std::thread::sleep(PAUSE);
                    given = dispatch.install(record, false);
                }
                given.inspect(|worker| self.node.wake_if_asleep(*worker)).is_some()
            };
            if !given {
                entry.trouble = Some(String::from("the workers did not take all that was left in time"));
                tracing::error!("the workers take no sessions: is their CPU taken away?");
                break;
            }
            flow.given += 1;
            if is_live {
                installed.insert(place, record.name);
            }
        }
        flow.wait_below(1, || self.done());
        while desks.iter().any(|desk| desk.has_inbound()) && flow.goes_on(|| self.done()) {
            std::thread::sleep(PAUSE);
        }
        count.given = flow.given;
        desks.iter().for_each(|desk| desk.set_restoring(false));
        self.node.wake_all();
    }

    /// Records that workers have done with.
    fn done(&self) -> u64 {
        let of = |counters: &crate::telemetry::ReplicaCounters| {
            let refused: u64 = counters.refused.iter().map(|count| count.load(Relaxed)).sum();
            [&counters.installed, &counters.renewed, &counters.kept]
                .map(|count| count.load(Relaxed))
                .iter()
                .sum::<u64>()
                + refused
        };
        self.node.counters.iter().map(|counters| of(&counters.replicas)).sum()
    }

    fn tell_restored(&self, count: &Count, entry: &mut KeptEntry, took: Duration) {
        let workers = self.node.counters.iter();
        entry.restored = workers.map(|counters| counters.replicas.installed.load(Relaxed)).sum();
        entry.took_ms = took.as_millis() as u64;
        let refused = NotInstalled::NAMES.iter().enumerate().map(|(cause, name)| {
            let of =
                |counters: &crate::telemetry::WorkerCounters| counters.replicas.refused[cause].load(Relaxed);
            (*name, self.node.counters.iter().map(|counters| of(counters)).sum())
        });
        let Count { given: _, torn, unreadable, unknown_name, out_of_date } = *count;
        let own = [
            ("torn", torn),
            ("unreadable", unreadable),
            ("unknown-name", unknown_name),
            ("out-of-date", out_of_date),
        ];
        let all = own.into_iter().chain(refused).filter(|(_, count)| *count > 0);
        entry.not_restored = all.map(|(kind, count)| AdvertErrors { kind: kind.to_owned(), count }).collect();
        let lost: Vec<String> =
            entry.not_restored.iter().map(|lost| format!("{} {}", lost.count, lost.kind)).collect();
        let (restored, took_ms, away_ms) = (entry.restored, entry.took_ms, entry.away_ms);
        tracing::info!(
            restored,
            not_restored = lost.join(", "),
            took_ms,
            ?away_ms,
            "sessions of the process before"
        );
        if let Some(trouble) = &entry.trouble {
            tracing::warn!(%trouble, "sessions of the process before");
        }
    }
}

/// Records on their way to the workers.
struct Flow<'a> {
    node: &'a Node,
    given: u64,
    /// What they had done with when something was done last, and when that was.
    seen: u64,
    since: Instant,
}

impl Flow<'_> {
    /// Waits until fewer than so many are under way. False: nothing is done any more.
    fn wait_below(&mut self, most: u64, done: impl Fn() -> u64) -> bool {
        while self.given.saturating_sub(self.seen) >= most {
            if !self.goes_on(&done) {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }

    fn goes_on(&mut self, done: impl Fn() -> u64) -> bool {
        let done = done();
        if done != self.seen {
            (self.seen, self.since) = (done, Instant::now());
        }
        if self.since.elapsed() > STALLED / 2 {
            self.node.wake_all();
        }
        self.since.elapsed() < STALLED
    }
}

/// True if the time of a session was over while nobody was there.
fn is_out_of_date(record: &FlowRecord, timers: &Timers) -> bool {
    let tcp = match record.upper {
        Upper::Answered => crate::flow::tcp::Tcp::default(),
        Upper::Tcp(tcp) | Upper::Proxied(tcp, _) => tcp,
    };
    let mapping = u32::from(record.mapping.is_some());
    let record_of = Record { tcp, mapping, ..Record::default() };
    let limit_s = timeout(&record_of, record.name.tuple.protocol, true, timers);
    record.idle / 10 >= limit_s
}

/// The folder, made if it is not there, ours alone and in memory; locked for this process.
fn lock_of(folder: &Path) -> Result<File, NotKept> {
    let failed = |error| NotKept::Io(folder.to_owned(), error);
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(folder)
        .map_err(failed)?;
    let found = opened.metadata().map_err(failed)?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(NotKept::Others(folder.to_owned(), found.uid(), found.mode() & 0o7777));
    }
    if !mem::is_in_memory(&opened).map_err(failed)? {
        return Err(NotKept::OnDisk(folder.to_owned()));
    }
    let path = folder.join("lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(|error| NotKept::Io(path.clone(), error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(NotKept::InUse(folder.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(NotKept::Io(path, error)),
    }
}

/// Numbers of the files of sessions and of names, in order.
fn files_in(folder: &Path) -> io::Result<(Vec<u64>, Vec<u64>)> {
    let (mut sessions, mut names) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        for (prefix, numbers) in [(SESSIONS, &mut sessions), (NAMES, &mut names)] {
            numbers.extend(name.strip_prefix(prefix).and_then(|number| number.parse::<u64>().ok()));
        }
    }
    sessions.sort_unstable();
    names.sort_unstable();
    Ok((sessions, names))
}

fn new_file(path: &Path) -> Result<File, NotKept> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|error| NotKept::Io(path.to_owned(), error))
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const UPTIME: &str = "/proc/uptime";

/// Which boot of the machine this is.
fn boot_id() -> io::Result<[u64; 2]> {
    let text = std::fs::read_to_string(BOOT_ID)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok([(id >> 64) as u64, id as u64])
}

/// Milliseconds since the machine's boot, the same for all processes; in steps of ten.
fn since_boot_ms() -> io::Result<u64> {
    let text = std::fs::read_to_string(UPTIME)?;
    let parsed = (|| {
        let (seconds, hundredths) = text.split(' ').next()?.split_once('.')?;
        Some(seconds.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10)
    })();
    parsed.ok_or_else(|| io::Error::other(format!("{text:?} begins with no number of seconds")))
}

/// A node by its name.
fn name_hash(name: &str) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    digest.as_ref().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
