//! How revisions lie on disk: records one behind the other, each with its length and checksum, so that whatever a power
//! cut leaves of the last one is told from a record. Pure: bytes in, bytes out.
//!
//! ```text
//! file    MAGIC, records
//! record  length of the rest: u32, CRC-32 of length and rest: u32, length of the head: u32, head, form: u8, body
//! head    JSON
//! body    form 0: as it is; 1: LZ4 with its size before it
//! ```
//!
//! Numbers are little-endian. The first record of a file is a whole document; each of the others changes it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::document::Document;
use super::{Author, Revision, Source};
use crate::control::request::{Patch, Request};

/// What each file begins with. The number is that of the format.
pub(super) const MAGIC: &[u8] = b"softgate revisions 1\n";

/// Length, checksum, length of the head.
const FRAME_BYTES: usize = 12;

/// Bodies beyond are worth to be compressed.
const COMPRESSED_BYTES: usize = 4096;

const PLAIN: u8 = 0;
const LZ4: u8 = 1;

/// What a record says; what it says it about is its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub(super) enum Head {
    /// A revision, whole. Body: [`Document`].
    Whole { revision: Revision, sources: Vec<Source> },
    /// A revision that has a record of its own before, written out whole. Body: [`Document`].
    Checkpoint { revision: Revision, sources: Vec<Source> },
    /// A revision, as changes of the one before it. Body: [`Patch`]es as requests, one a line.
    Patches { revision: Revision },
    /// A revision that is what an earlier one of the same file was. No body.
    Back { revision: Revision, to: u64 },
    /// A revision that waited for that was confirmed. No body.
    Confirmed { revision: u64, by: Author, time: String },
}

/// A record that was found whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub head: Head,
    /// All of it in the file.
    pub at: Range<usize>,
    body: Range<usize>,
}

/// What stands in a file: its whole records, and where the last of them ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    pub records: Vec<Found>,
    pub good_bytes: usize,
}

/// Why a record cannot be read though its checksum is right: another version wrote it, or we are wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record cannot be read: {0}; was it written by a newer softgate?")]
pub(super) struct Unreadable(String);

/// A record with this head; `body` is compressed if that is worth it.
pub(super) fn encode(head: &Head, body: &[u8]) -> Vec<u8> {
    let head = serde_json::to_vec(head).unwrap_or_else(|error| unreachable!("plain data: {error}"));
    let (form, body) = match body.len() > COMPRESSED_BYTES {
        true => (LZ4, lz4_flex::block::compress_prepend_size(body)),
        false => (PLAIN, body.to_vec()),
    };
    let rest = 4 + head.len() + 1 + body.len();
    let mut record = Vec::with_capacity(8 + rest);
    record.extend_from_slice(&(rest as u32).to_le_bytes());
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(&(head.len() as u32).to_le_bytes());
    record.extend_from_slice(&head);
    record.push(form);
    record.extend_from_slice(&body);
    let sum = checksum(&record);
    record[4..8].copy_from_slice(&sum.to_le_bytes());
    record
}

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

/// Whole records up to the first that is none. `None`: the file does not begin as one of ours.
pub(super) fn scan(file: &[u8]) -> Option<Result<Scan, Unreadable>> {
    file.starts_with(MAGIC).then(|| records(file, MAGIC.len()))
}

/// The same of a file's records from a place on where one begins.
pub(super) fn records(file: &[u8], from: usize) -> Result<Scan, Unreadable> {
    let mut scan = Scan { records: Vec::new(), good_bytes: from };
    while let Some(found) = next(file, scan.good_bytes) {
        let found = found?;
        scan.good_bytes = found.at.end;
        scan.records.push(found);
    }
    Ok(scan)
}

fn next(file: &[u8], start: usize) -> Option<Result<Found, Unreadable>> {
    let word = |at: usize| {
        let bytes = file.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let rest = word(start)?;
    let end = start.checked_add(8)?.checked_add(rest)?;
    let record = file.get(start..end)?;
    if rest < 5 || word(start + 4)? as u32 != checksum(record) {
        return None;
    }
    // What has the right checksum was written by a softgate: what is wrong with it from here on is no torn write.
    let head_end = (start + FRAME_BYTES).checked_add(word(start + 8)?)?;
    if head_end >= end {
        return Some(Err(Unreadable(String::from("its head is longer than it"))));
    }
    let head = serde_json::from_slice(&file[start + FRAME_BYTES..head_end]);
    Some(match head {
        Ok(head) => Ok(Found { head, at: start..end, body: head_end..end }),
        Err(error) => Err(Unreadable(error.to_string())),
    })
}

impl Found {
    fn body(&self, file: &[u8]) -> Result<Vec<u8>, Unreadable> {
        let body = file.get(self.body.clone()).unwrap_or_default();
        match body.split_first() {
            Some((&PLAIN, body)) => Ok(body.to_vec()),
            Some((&LZ4, body)) => lz4_flex::block::decompress_size_prepended(body)
                .map_err(|error| Unreadable(error.to_string())),
            _ => Err(Unreadable(String::from("its body is in no known form"))),
        }
    }

    /// Of a whole revision.
    pub(super) fn document(&self, file: &[u8]) -> Result<Document, Unreadable> {
        serde_json::from_slice(&self.body(file)?).map_err(|error| Unreadable(error.to_string()))
    }

    /// Of a revision that changes the one before.
    pub(super) fn patches(&self, file: &[u8]) -> Result<Vec<Patch>, Unreadable> {
        let body = self.body(file)?;
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let request: Request =
                    serde_json::from_slice(line).map_err(|error| Unreadable(error.to_string()))?;
                request.into_patch().ok_or_else(|| Unreadable(String::from("a request that changes nothing")))
            })
            .collect()
    }
}

/// The body of a whole revision.
pub(super) fn document_body(document: &Document) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_else(|error| unreachable!("plain data: {error}"))
}

/// The body of a revision that changes the one before.
pub(super) fn patches_body(patches: Vec<Patch>) -> Vec<u8> {
    let mut body = Vec::new();
    for patch in patches {
        serde_json::to_writer(&mut body, &Request::from(patch))
            .unwrap_or_else(|error| unreachable!("plain data: {error}"));
        body.push(b'\n');
    }
    body
}
