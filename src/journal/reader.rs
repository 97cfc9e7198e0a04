//! What an earlier process has left: its sessions, and what it called the slots that are in them.

use std::fs::File;
use std::io;

use super::layout::{ALIVE, Header, Lies, MOST_BYTES, NotOurs};
use crate::flow::Tick;
use crate::flow::flow_record::{FlowRecord, Kind};
use crate::ha::sync::Names;
use crate::ha::sync::wire::{self, Item};
use crate::mem::SharedWords;
use std::sync::atomic::Ordering::Relaxed;

/// Most names of a kind that are read: as from a peer.
const NAMES: usize = 1 << 20;
/// Bytes before a batch of names: its length and its check.
const BATCH_BYTES: usize = 8;

/// Sessions that were left.
#[derive(Debug)]
pub struct Left {
    words: SharedWords,
    /// Whose they are.
    pub header: Header,
}

/// What is left in a place.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once; a box would cost more")]
pub enum Slot {
    /// Nothing.
    Empty,
    /// Something unfinished or spoiled.
    Torn,
    /// Whole, but of no session that this release knows.
    Unreadable,
    /// A session with slots as they were there. `idle` and `age` are lengths of time as of the `now` that was asked with.
    Is(FlowRecord),
}

impl Left {
    /// Of a file.
    pub fn open(file: &File) -> io::Result<Result<Left, NotOurs>> {
        let words = match SharedWords::open(file) {
            Ok(words) => words,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Err(NotOurs::Unknown)),
            Err(error) => return Err(error),
        };
        Ok(Header::load(&words).map(|header| Left { words, header }))
    }

    /// Numbers of the places in which there may be something.
    pub fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.header.used(&self.words)
    }

    /// Changes whenever something else is in a place.
    pub fn head(&self, at: usize) -> u64 {
        self.header.place_at(&self.words, at).head()
    }

    /// When the process was known to be alive last, by its clock.
    pub fn alive(&self) -> Tick {
        Tick(self.words[ALIVE].load(Relaxed) as u32)
    }

    /// What its clock says at a time after the machine's boot.
    pub fn clock(&self, since_boot_ms: u64) -> Tick {
        Tick((since_boot_ms.saturating_sub(self.header.epoch_ms) / 100) as u32)
    }

    /// What is in a place at `now` of its clock.
    pub fn read(&self, at: usize, now: Tick) -> Slot {
        let mut bytes = [0; MOST_BYTES];
        match self.header.place_at(&self.words, at).load(&mut bytes) {
            Lies::Nothing => Slot::Empty,
            Lies::Torn => Slot::Torn,
            Lies::Bytes(len, _, last_seen) => match wire::parse_record(&bytes[..len]) {
                None => Slot::Unreadable,
                Some(record) => {
                    let since = |then: u32| now.0.saturating_sub(then);
                    Slot::Is(FlowRecord { idle: since(last_seen.0), age: since(record.age), ..record })
                }
            },
        }
    }
}

/// The names that `known` has not, per kind the first `known` of them, as they are appended to the file: length, check,
/// items as on the wire. Empty: there are no more.
pub fn batch_of_names(names: &Names, known: &[usize; Kind::ALL.len()]) -> Vec<u8> {
    let mut batch = vec![0; BATCH_BYTES];
    for kind in Kind::ALL {
        for slot in known[kind as usize]..names.count(kind) {
            let slot = slot as u32;
            if let Some(name) = names.name(kind, slot) {
                Item::Name { kind, slot, name }.emit(&mut batch);
            }
        }
    }
    let (head, items) = batch.split_at_mut(BATCH_BYTES);
    if items.is_empty() {
        return Vec::new();
    }
    head[..4].copy_from_slice(&(items.len() as u32).to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(items).to_le_bytes());
    batch
}

/// The names that were written, up to the first batch that is not whole.
pub fn names_of(mut bytes: &[u8]) -> Names {
    let mut names = Names::default();
    while let Some((head, rest)) = bytes.split_first_chunk::<BATCH_BYTES>() {
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
        let (len, check) = (u32::from_le_bytes([l0, l1, l2, l3]), u32::from_le_bytes([c0, c1, c2, c3]));
        let Some((items, rest)) = rest.split_at_checked(len as usize) else { break };
        if crc32fast::hash(items) != check {
            break;
        }
        for item in wire::items(items) {
            if let Some(Item::Name { kind, slot, name }) = item {
                names.learn(kind, slot, name, NAMES);
            }
        }
        bytes = rest;
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> Names {
        let mut names = Names::default();
        names.extend(Kind::Zone, ["inside", "outside"].into_iter());
        names.extend(Kind::Rule, ["out"].into_iter());
        names
    }

    #[test]
    fn names_are_read_as_they_were_appended() {
        let mut names = some();
        let mut file = batch_of_names(&names, &[0; Kind::ALL.len()]);
        let known = Kind::ALL.map(|kind| names.count(kind));
        assert!(batch_of_names(&names, &known).is_empty());
        names.extend(Kind::Rule, ["out", "in"].into_iter());
        let first = file.len();
        file.extend(batch_of_names(&names, &known));
        assert_eq!(names_of(&file), names);
        for cut in 0..file.len() {
            let expected = if cut < first { Names::default() } else { some() };
            assert_eq!(names_of(&file[..cut]), expected, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn garbage_gives_no_names(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(names_of(&bytes).is_empty());
        }
    }
}
