//! The files that revisions are kept in: a folder with one file for each whole document and the changes behind it.
//!
//! What is answered is on disk: a change is one record, written and synced; a whole document is a file beside, synced,
//! which then gets its name. A crash at any moment leaves the records that were whole; what a torn write leaves behind
//! them is cut off at the next start. A disk that is full stops no change of the gateway: what could not be written is
//! kept, said, and tried again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::codec::{self, Head, MAGIC};
use super::document::Document;
use super::{Author, Revision, Source};
use crate::control::request::Patch;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Revisions; a few more may be, since they go file by file.
    pub revisions: usize,
    /// Bytes of all files, but for the newest one.
    pub bytes: u64,
    /// Changes behind a whole document before it is written anew.
    pub changes: usize,
    /// Bytes of them.
    pub change_bytes: u64,
    /// Bytes that wait for a disk that does not take them.
    pub unwritten_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            revisions: 1000,
            bytes: 256 << 20,
            changes: 256,
            change_bytes: 8 << 20,
            unwritten_bytes: 64 << 20,
        }
    }
}

/// Why there is no such revision to be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// Another gateway uses the folder.
    #[error("{0}: another gateway keeps its revisions there")]
    InUse(String),
    /// A file of another version.
    #[error("{path}: {why}")]
    Foreign {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// It was never made, or is kept no more.
    #[error("there is no revision {0}; see show revisions")]
    Unknown(u64),
    /// Its changes do not fit the document they change.
    #[error("revision {number} cannot be made: {why}")]
    Unfit {
        /// The revision.
        number: u64,
        /// What is wrong.
        why: String,
    },
}

/// A file: a whole document and the changes behind it.
#[derive(Clone, Debug)]
struct Segment {
    path: PathBuf,
    /// The revision of the whole document.
    base: u64,
    bytes: u64,
    /// Where the changes begin.
    changes_from: u64,
    changes: usize,
}

/// What the disk has not taken yet.
#[derive(Debug)]
struct Unwritten {
    /// The file it begins; `None`: it belongs behind the newest one.
    begins: Option<u64>,
    bytes: Vec<u8>,
}

/// A whole document on its way to the disk, on a thread of its own.
#[derive(Debug)]
pub struct Staged {
    base: u64,
    path: PathBuf,
    thread: JoinHandle<(Vec<u8>, io::Result<()>)>,
}

/// A revision that is written out whole, on a thread of its own.
#[derive(Debug)]
struct Checkpoint {
    number: u64,
    /// Up to here the newest file had been written when it began: what is behind came later.
    from: u64,
    path: PathBuf,
    /// Writes and syncs it: its bytes.
    thread: JoinHandle<Result<u64, String>>,
}

/// The revisions.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    limits: Limits,
    lock: File,
    segments: Vec<Segment>,
    /// By number.
    revisions: BTreeMap<u64, Revision>,
    /// Those that waited for it.
    confirmed: BTreeMap<u64, (Author, String)>,
    sources: Vec<Source>,
    /// The newest segment.
    log: Option<File>,
    unwritten: Option<Unwritten>,
    /// More than can wait was not written: nothing is until the next whole document.
    is_broken: bool,
    /// What a torn write left behind the newest file is still there: the disk did not take it that it was cut off.
    is_torn: bool,
    checkpoint: Option<Checkpoint>,
    /// The last revision that can be read again.
    on_disk: u64,
    /// When a whole document that the disk did not take is tried again, and how long after the try before.
    again: Option<(Instant, Duration)>,
}

const SUFFIX: &str = "revisions";

/// First and longest wait before a whole document is written once more.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

fn io_error(path: &Path) -> impl Fn(io::Error) -> StoreError + '_ {
    |source| StoreError::Io { path: path.display().to_string(), source }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

impl Store {
    /// Opens the folder, makes it if it is not there. The second is what whoever starts the gateway should know.
    pub fn open(folder: &Path, limits: Limits) -> Result<(Store, Vec<String>), StoreError> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(io_error(folder))?;
        let lock_path = folder.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&lock_path);
        let (lock, is_read_only) = match lock {
            Ok(lock) => (lock, false),
            // What is there is still good to begin with. Every gateway that comes sees the same of the disk.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                (File::open(&lock_path).or_else(|_| File::open(folder)).map_err(io_error(folder))?, true)
            }
            Err(error) => return Err(io_error(&lock_path)(error)),
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(folder.display().to_string())),
            Err(TryLockError::Error(error)) => return Err(io_error(&lock_path)(error)),
        }
        let mut store = Store {
            folder: folder.to_owned(),
            limits,
            lock,
            segments: Vec::new(),
            revisions: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            sources: Vec::new(),
            log: None,
            unwritten: None,
            is_broken: false,
            is_torn: false,
            checkpoint: None,
            on_disk: 0,
            again: None,
        };
        let mut notices = store.read()?;
        if is_read_only {
            notices.push(format!(
                "{}: the disk is read-only: what is there is read, and what is committed is in force but not kept until it \
                 can be written",
                folder.display()
            ));
        }
        Ok((store, notices))
    }

    /// Lets a process have the folder that is to take over, or takes it back. Nothing may be written meanwhile.
    pub fn lend(&self, is_lent: bool) -> io::Result<()> {
        if is_lent { self.lock.unlock() } else { self.lock.try_lock().map_err(io::Error::from) }
    }

    fn read(&mut self) -> Result<Vec<String>, StoreError> {
        let mut files: Vec<(u64, PathBuf)> = Vec::new();
        let mut notices = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io_error(&self.folder))? {
            let path = entry.map_err(io_error(&self.folder))?.path();
            match (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|s| s.to_str())) {
                // Never got its name: nothing was answered that is only in it.
                (Some("tmp"), _) => {
                    let gone = fs::remove_file(&path).map_err(io_error(&path));
                    notices.extend(gone.err().map(|error| format!("a half-written revision stays: {error}")));
                }
                (Some(SUFFIX), Some(stem)) => files.extend(stem.parse().ok().map(|base| (base, path))),
                _ => {}
            }
        }
        files.sort();
        let last = files.last().map(|(base, _)| *base);
        for (base, path) in files {
            notices.extend(self.read_segment(base, path, last == Some(base))?);
        }
        if let Some(segment) = self.segments.last() {
            match OpenOptions::new().write(true).open(&segment.path) {
                Ok(file) => self.log = Some(file),
                Err(error) => notices.push(io_error(&segment.path)(error).to_string()),
            }
        }
        self.on_disk = self.last().map_or(0, |last| last.number);
        Ok(notices)
    }

    fn read_segment(&mut self, base: u64, path: PathBuf, is_last: bool) -> Result<Vec<String>, StoreError> {
        let file = fs::read(&path).map_err(io_error(&path))?;
        let foreign = |why: String| StoreError::Foreign { path: path.display().to_string(), why };
        let mut notices = Vec::new();
        let scan = match codec::scan(&file) {
            Some(scan) => scan.map_err(|error| foreign(error.to_string()))?,
            None if file.starts_with(b"softgate revisions ")
                && file[..file.len().min(40)].contains(&b'\n') =>
            {
                return Err(foreign(String::from("it is of another version of softgate")));
            }
            None => codec::Scan::default(),
        };
        let Some(first) = scan.records.first() else {
            let aside = path.with_extension("damaged");
            let place = match fs::rename(&path, &aside) {
                Ok(()) => aside.display(),
                Err(_) => path.display(),
            };
            return Ok(vec![format!(
                "revision {base} is damaged and passed over; what is left of it is in {place}"
            )]);
        };
        if scan.good_bytes < file.len() {
            let lost = file.len() - scan.good_bytes;
            notices.push(format!(
                "{}: the last {lost} bytes are no whole revision: passed over",
                path.display()
            ));
            if is_last {
                // Whoever wants to look at it still can.
                let aside = path.with_extension("damaged");
                if let Err(error) = fs::write(&aside, &file[scan.good_bytes..]) {
                    let _ = fs::remove_file(&aside);
                    notices.push(format!("{}: they cannot be put aside: {error}", aside.display()));
                }
                let cut = OpenOptions::new().write(true).open(&path).and_then(|file| {
                    file.set_len(scan.good_bytes as u64)?;
                    file.sync_all()
                });
                // Behind it nothing is read, and before anything is written there it is cut off.
                if let Err(error) = cut {
                    notices.push(format!("{}: they cannot be cut off: {error}", path.display()));
                    self.is_torn = true;
                }
            }
        }
        let changes_from = first.at.end as u64;
        for record in &scan.records {
            self.note(record.head.clone());
        }
        let bytes = scan.good_bytes as u64;
        let changes = scan.records.len() - 1;
        self.segments.push(Segment { path, base, bytes, changes_from, changes });
        Ok(notices)
    }

    fn note(&mut self, head: Head) {
        match head {
            Head::Whole { revision, sources } | Head::Checkpoint { revision, sources } => {
                self.sources = sources;
                self.revisions.entry(revision.number).or_insert(revision);
            }
            Head::Patches { revision } | Head::Back { revision, .. } => {
                self.revisions.entry(revision.number).or_insert(revision);
            }
            Head::Confirmed { revision, by, time } => _ = self.confirmed.insert(revision, (by, time)),
        }
    }

    // ---- what there is

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest one.
    pub fn last(&self) -> Option<&Revision> {
        self.revisions.values().next_back()
    }

    /// All that can be gone back to, the oldest first.
    pub fn revisions(&self) -> impl DoubleEndedIterator<Item = &Revision> {
        self.revisions.values()
    }

    /// One of them.
    pub fn find(&self, number: u64) -> Option<&Revision> {
        self.revisions.get(&number)
    }

    /// By whom and when it was confirmed.
    pub fn confirmed(&self, number: u64) -> Option<&(Author, String)> {
        self.confirmed.get(&number)
    }

    /// The last revision, if it waits to be confirmed.
    pub fn unconfirmed(&self) -> Option<&Revision> {
        self.last().filter(|last| last.confirm.is_some() && !self.confirmed.contains_key(&last.number))
    }

    /// What is known of a config file.
    pub fn source(&self, path: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.path == path)
    }

    /// The number of the next revision.
    pub fn next(&self) -> u64 {
        self.last().map_or(1, |last| last.number + 1)
    }

    /// What has not been written though it is in force.
    pub fn is_behind(&self) -> bool {
        self.is_broken || self.unwritten.is_some()
    }

    /// Finds a revision's document on another thread: of a large one that takes seconds.
    pub fn reader(
        &self,
        number: u64,
    ) -> Result<impl FnOnce() -> Result<Document, StoreError> + Send + use<>, StoreError> {
        let segment = self.segments.iter().rev().find(|segment| segment.base <= number);
        let segment = segment.filter(|_| self.revisions.contains_key(&number));
        let segment = segment.ok_or(StoreError::Unknown(number))?;
        let (path, written) = (segment.path.clone(), segment.bytes as usize);
        Ok(move || read_document(&path, written, number))
    }

    /// The document of a revision.
    pub fn document(&self, number: u64) -> Result<Document, StoreError> {
        self.reader(number)?()
    }

    // ---- what comes

    /// Begins to write a whole document down, beside what else is done. It is no revision until [`Store::commit_whole`].
    pub fn stage(&self, revision: &Revision, document: Document, sources: Vec<Source>) -> io::Result<Staged> {
        let head = Head::Whole { revision: revision.clone(), sources };
        let (base, path) = (revision.number, self.folder.join(format!("{:020}.tmp", revision.number)));
        let to = path.clone();
        let write = move || {
            let bytes = whole_file(&head, &document);
            let written = write_synced(&to, &bytes);
            (bytes, written)
        };
        let thread = std::thread::Builder::new().name(String::from("revision")).spawn(write)?;
        Ok(Staged { base, path, thread })
    }

    /// The files that the next whole revision remembers, `path` first, which it is made from.
    pub fn sources_with(&self, path: Option<&str>, document: &Document) -> Vec<Source> {
        let new = path.map(|path| Source {
            path: path.to_owned(),
            revision: self.next(),
            digest: Source::digest(document),
        });
        let others = self.sources.iter().filter(|source| Some(source.path.as_str()) != path).cloned();
        new.into_iter().chain(others).take(Source::MOST).collect()
    }

    /// Makes a document that was staged the newest revision. On an error it will be, once the disk takes it.
    pub fn commit_whole(
        &mut self,
        staged: Staged,
        revision: Revision,
        sources: Vec<Source>,
    ) -> io::Result<()> {
        let (bytes, written) = join(staged.thread);
        if self.is_behind() {
            // They are written no more.
            self.revisions.split_off(&(self.on_disk + 1));
            self.confirmed.split_off(&(self.on_disk + 1));
        }
        self.again = None;
        self.is_broken = false;
        self.unwritten = None;
        self.sources = sources;
        self.revisions.insert(revision.number, revision);
        let renamed =
            written.and_then(|()| self.begin_segment(staged.base, &staged.path, bytes.len() as u64));
        if let Err(error) = renamed {
            let _ = fs::remove_file(&staged.path);
            self.keep(Some(staged.base), bytes);
            return Err(error);
        }
        self.on_disk = staged.base;
        self.prune();
        Ok(())
    }

    /// Forgets a document that was staged.
    pub fn abandon(staged: Staged) {
        let _ = join(staged.thread);
        let _ = fs::remove_file(&staged.path);
    }

    /// The newest revision is the one before with these changes. On an error it will be, once the disk takes it.
    pub fn commit_patches(&mut self, revision: Revision, patches: Vec<Patch>) -> io::Result<()> {
        let body = codec::patches_body(patches);
        self.revisions.insert(revision.number, revision.clone());
        self.append(codec::encode(&Head::Patches { revision }, &body))
    }

    /// Whether [`Store::commit_back`] can be: the revision is behind the same whole document as the newest one, and on
    /// disk.
    pub fn can_go_back(&self, to: u64) -> bool {
        let base = self.segments.last().map(|segment| segment.base);
        !self.is_behind() && base.is_some_and(|base| base <= to) && self.revisions.contains_key(&to)
    }

    /// The newest revision is what an earlier one was, to the letter. On an error it will be, once the disk takes it.
    pub fn commit_back(&mut self, revision: Revision, to: u64) -> io::Result<()> {
        self.revisions.insert(revision.number, revision.clone());
        self.append(codec::encode(&Head::Back { revision, to }, &[]))
    }

    /// A revision that waits to be confirmed is.
    pub fn confirm(&mut self, number: u64, by: Author) -> io::Result<()> {
        let time = Revision::now();
        self.confirmed.insert(number, (by.clone(), time.clone()));
        self.append(codec::encode(&Head::Confirmed { revision: number, by, time }, &[]))
    }

    fn append(&mut self, record: Vec<u8>) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other("what came before could not be written down: apply a whole config"));
        }
        let written = self.retry_if_due().and_then(|()| self.write_behind(&record));
        match written {
            Ok(()) => self.is_written(),
            Err(_) => self.keep(None, record),
        }
        written
    }

    /// Behind the newest file; what half a write left there is written over.
    fn write_behind(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(segment) = self.segments.last_mut() else {
            return Err(io::Error::other("there is no whole revision to begin with"));
        };
        let file = match &mut self.log {
            Some(file) => file,
            // It could not be opened when the gateway was started.
            log => log.insert(OpenOptions::new().write(true).open(&segment.path)?),
        };
        if self.is_torn {
            file.set_len(segment.bytes)?;
            self.is_torn = false;
        }
        file.write_all_at(bytes, segment.bytes)?;
        file.sync_data()?;
        segment.bytes += bytes.len() as u64;
        segment.changes += 1;
        Ok(())
    }

    fn keep(&mut self, begins: Option<u64>, mut bytes: Vec<u8>) {
        let kept = self.unwritten.take();
        let mut all = kept.unwrap_or(Unwritten { begins, bytes: Vec::new() });
        all.bytes.append(&mut bytes);
        if all.bytes.len() > self.limits.unwritten_bytes {
            self.is_broken = true;
        } else {
            self.unwritten = Some(all);
        }
    }

    /// All of it.
    fn is_written(&mut self) {
        self.again = None;
        self.on_disk = self.last().map_or(0, |last| last.number);
    }

    /// A whole document may be large: it is tried again less and less often.
    fn retry_if_due(&mut self) -> io::Result<()> {
        if let (Some((at, _)), Some(Unwritten { begins: Some(_), .. })) = (self.again, &self.unwritten)
            && Instant::now() < at
        {
            return Err(io::Error::other(
                "the disk did not take the revision before, and is tried again soon",
            ));
        }
        self.retry()
    }

    /// Tries again what could not be written.
    pub fn retry(&mut self) -> io::Result<()> {
        let Some(unwritten) = self.unwritten.take() else { return Ok(()) };
        let written = match unwritten.begins {
            None => self.write_behind(&unwritten.bytes),
            Some(base) => {
                let path = self.folder.join(format!("{base:020}.tmp"));
                let written = write_synced(&path, &unwritten.bytes)
                    .and_then(|()| self.begin_segment(base, &path, unwritten.bytes.len() as u64));
                if written.is_err() {
                    // What is in it helps nobody, and others may need the place.
                    let _ = fs::remove_file(&path);
                    let wait = self.again.map_or(FIRST_WAIT, |(_, wait)| (wait * 2).min(LONGEST_WAIT));
                    self.again = Some((Instant::now() + wait, wait));
                }
                written
            }
        };
        if written.is_err() {
            self.unwritten = Some(unwritten);
        } else if !self.is_broken {
            self.is_written();
        }
        written
    }

    fn begin_segment(&mut self, base: u64, written: &Path, bytes: u64) -> io::Result<()> {
        let path = self.folder.join(format!("{base:020}.{SUFFIX}"));
        let file = OpenOptions::new().write(true).open(written)?;
        fs::rename(written, &path)?;
        sync_folder(&self.folder)?;
        self.is_torn = false;
        self.segments.retain(|segment| segment.path != path);
        self.segments.push(Segment { path, base, bytes, changes_from: bytes, changes: 0 });
        self.log = Some(file);
        Ok(())
    }

    // ---- what goes

    /// Files whose revisions are too many, or too large: the oldest ones, never the newest. The one that a revision which
    /// waits to be confirmed goes back to stays.
    fn prune(&mut self) {
        let back_to = self.unconfirmed().and_then(|last| Some(last.confirm.as_ref()?.back_to));
        while self.segments.len() > 1 {
            let bytes: u64 = self.segments.iter().skip(1).map(|segment| segment.bytes).sum();
            let next = self.segments[1].base;
            let without = self.revisions.range(next..).count();
            let is_needed = back_to.is_some_and(|back_to| back_to < next);
            if is_needed
                || without < self.limits.revisions && bytes + self.segments[0].bytes <= self.limits.bytes
            {
                return;
            }
            let segment = self.segments.remove(0);
            if let Err(error) = fs::remove_file(&segment.path) {
                tracing::warn!(file = %segment.path.display(), %error, "an old revision stays");
            }
            self.revisions = self.revisions.split_off(&next);
            self.confirmed = self.confirmed.split_off(&next);
        }
    }

    /// Where many changes stand behind a document, begins to write it out whole, and ends it once it is; to be called
    /// every now and then.
    pub fn tidy(&mut self) {
        if let Err(error) = self.retry_if_due() {
            tracing::debug!(%error, "revisions still cannot be written");
            return;
        }
        match self.checkpoint.take() {
            Some(checkpoint) if !checkpoint.thread.is_finished() => self.checkpoint = Some(checkpoint),
            Some(checkpoint) => self.end_checkpoint(checkpoint),
            None => {
                if let Err(error) = self.begin_checkpoint() {
                    tracing::warn!(%error, "the revision is not written out whole");
                }
            }
        }
    }

    /// The thread reads, puts together, writes and syncs: of a large document that takes seconds. The file has no name
    /// of ours yet; if nobody gives it one, the next start takes it away.
    fn begin_checkpoint(&mut self) -> io::Result<()> {
        let Some(segment) = self.segments.last() else { return Ok(()) };
        let bytes = segment.bytes - segment.changes_from;
        let is_due = segment.changes >= self.limits.changes || bytes >= self.limits.change_bytes;
        let Some(last) = self.last().filter(|_| is_due).cloned() else { return Ok(()) };
        let read = self.reader(last.number).map_err(io::Error::other)?;
        let (number, from, sources) = (last.number, segment.bytes, self.sources.clone());
        let path = self.folder.join(format!("{number:020}.checkpoint.tmp"));
        let to = path.clone();
        let write = move || {
            let document = read().map_err(|error| error.to_string())?;
            let bytes = whole_file(&Head::Checkpoint { revision: last, sources }, &document);
            write_synced(&to, &bytes).map_err(|error| error.to_string())?;
            Ok(bytes.len() as u64)
        };
        let thread = std::thread::Builder::new().name(String::from("revision")).spawn(write)?;
        self.checkpoint = Some(Checkpoint { number, from, path, thread });
        Ok(())
    }

    fn end_checkpoint(&mut self, checkpoint: Checkpoint) {
        let Checkpoint { number, from, path, thread } = checkpoint;
        let written = thread.join().unwrap_or_else(|_| Err(String::from("the thread has ended")));
        let ended = written.and_then(|whole| self.follow_checkpoint(number, from, &path, whole));
        match ended {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(revision = number, error, "the revision is not written out whole"),
        }
        let _ = fs::remove_file(&path);
    }

    /// What has come since the checkpoint began goes behind it, which then is the newest file. False: there is no place
    /// for it, and nothing has changed.
    fn follow_checkpoint(&mut self, number: u64, from: u64, path: &Path, whole: u64) -> Result<bool, String> {
        let segment = self.segments.last().filter(|segment| number > segment.base && from <= segment.bytes);
        // A whole document has come meanwhile.
        let Some(segment) = segment else { return Ok(false) };
        let mut behind = vec![0; (segment.bytes - from) as usize];
        let file = File::open(&segment.path).map_err(|error| error.to_string())?;
        file.read_exact_at(&mut behind, from).map_err(|error| error.to_string())?;
        let scan = codec::records(&behind, 0).map_err(|error| error.to_string())?;
        let leads_before =
            |record: &codec::Found| matches!(record.head, Head::Back { to, .. } if to < number);
        if scan.records.iter().any(leads_before) {
            // The next one will have it.
            return Ok(false);
        }
        let mut bytes = Vec::new();
        let mut changes = scan.records.len();
        if let Some((by, time)) = self.confirmed.get(&number) {
            let (by, time) = (by.clone(), time.clone());
            bytes = codec::encode(&Head::Confirmed { revision: number, by, time }, &[]);
            changes += 1;
        }
        bytes.append(&mut behind);
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| {
                file.write_all_at(&bytes, whole)?;
                file.sync_all()
            })
            .and_then(|()| self.begin_segment(number, path, whole + bytes.len() as u64))
            .map_err(|error| error.to_string())?;
        if let Some(segment) = self.segments.last_mut() {
            (segment.changes, segment.changes_from) = (changes, whole);
        }
        self.prune();
        Ok(true)
    }
}

impl Drop for Store {
    /// Whatever is still written in the background ends before the folder is somebody else's.
    fn drop(&mut self) {
        if let Some(checkpoint) = self.checkpoint.take() {
            let _ = checkpoint.thread.join();
            let _ = fs::remove_file(&checkpoint.path);
        }
    }
}

fn join(thread: JoinHandle<(Vec<u8>, io::Result<()>)>) -> (Vec<u8>, io::Result<()>) {
    thread.join().unwrap_or_else(|_| (Vec::new(), Err(io::Error::other("the thread that writes has ended"))))
}

fn whole_file(head: &Head, document: &Document) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(codec::encode(head, &codec::document_body(document)));
    bytes
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn read_document(path: &Path, written: usize, number: u64) -> Result<Document, StoreError> {
    let file = fs::read(path).map_err(io_error(path))?;
    let file = &file[..written.min(file.len())];
    let unfit = |why: String| StoreError::Unfit { number, why };
    let scan = codec::scan(file).ok_or_else(|| unfit(String::from("its file is no file of ours")))?;
    let scan = scan.map_err(|error| unfit(error.to_string()))?;
    let (first, others) = scan.records.split_first().ok_or(StoreError::Unknown(number))?;
    let (Head::Whole { revision, .. } | Head::Checkpoint { revision, .. }) = &first.head else {
        return Err(unfit(String::from("its file begins with no whole document")));
    };
    let base = revision.number;
    let numbered = others.iter().filter_map(|record| match &record.head {
        Head::Patches { revision } | Head::Back { revision, .. } => Some((revision.number, record)),
        Head::Whole { .. } | Head::Checkpoint { .. } | Head::Confirmed { .. } => None,
    });
    let numbered: BTreeMap<u64, &codec::Found> = numbered.collect();
    // From the revision back to the whole document: which changes lie between them.
    let mut way: Vec<&codec::Found> = Vec::new();
    let mut at = number;
    while at > base {
        let record =
            *numbered.get(&at).ok_or_else(|| unfit(String::from("the disk has not taken it yet")))?;
        let before = match &record.head {
            Head::Back { to, .. } => *to,
            _ => {
                way.push(record);
                numbered.range(..at).next_back().map_or(base, |(number, _)| *number)
            }
        };
        if before >= at {
            return Err(unfit(format!("revision {at} goes back to {before}")));
        }
        at = before;
    }
    if at < base {
        return Err(unfit(format!("it goes back to revision {at}, which is not in its file")));
    }
    let document = first.document(file).map_err(|error| unfit(error.to_string()))?;
    let mut patches = Vec::new();
    for record in way.into_iter().rev() {
        patches.extend(record.patches(file).map_err(|error| unfit(error.to_string()))?);
    }
    if patches.is_empty() {
        return Ok(document);
    }
    document.with(&patches).map_err(|error| unfit(error.to_string()))
}
