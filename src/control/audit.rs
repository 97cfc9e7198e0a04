//! The audit: who changed what, and how it ended, as lines of JSON in a file.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Record<'a> {
    /// When it was answered, RFC 3339.
    pub time: String,
    pub uid: u32,
    pub pid: i32,
    /// The role by which; absent: whoever may do everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'a str>,
    /// What was asked for.
    pub request: &'a str,
    /// About what, the first few.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub about: &'a [String],
    /// Changes that were asked for.
    pub changes: u64,
    /// `changed`, `cleared`, `done`, `refused`, or `begun` on both nodes of a pair.
    pub result: &'a str,
    /// The tables since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The config's revision since then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'a str>,
    pub took_us: u64,
}

impl Record<'_> {
    pub(crate) fn now() -> String {
        humantime::format_rfc3339_micros(SystemTime::now()).to_string()
    }
}

/// The file. It is opened for each line, so that it may be moved away at any time.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
}

impl Audit {
    /// Makes the file, if it is not there: whoever cannot is told at the start.
    pub(crate) fn open(path: PathBuf) -> io::Result<Audit> {
        let audit = Audit { path };
        audit.append(b"").map_err(|error| {
            let message = format!("[control] audit: {}: {error}", audit.path.display());
            io::Error::new(error.kind(), message)
        })?;
        Ok(audit)
    }

    pub(crate) fn write(&self, record: &Record<'_>) {
        let line = serde_json::to_vec(record).map(|mut line| {
            line.push(b'\n');
            line
        });
        if let Err(error) = line.map_err(io::Error::from).and_then(|line| self.append(&line)) {
            tracing::error!(file = %self.path.display(), %error, "the audit cannot be written");
        }
    }

    /// One write of a whole line: others may append too.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        // Whoever made it a pipe that nobody reads is told so: the control thread waits for none.
        options.append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
        options.open(&self.path)?.write_all(line)
    }
}
