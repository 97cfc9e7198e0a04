//! The drop recorder: the first 256 bytes of the latest lost packets, always on.
//!
//! A preallocated ring per worker, at most one copy per reason and burst. The owner writes; readers
//! copy a record and look at its version again: a torn copy is read anew.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::DropReason;
use crate::time::Nanos;

/// Bytes kept of a packet.
pub const RECORD_BYTES: usize = 256;

const WORDS: usize = RECORD_BYTES / 8;

/// Records per worker.
const RECORDS: usize = 256;

/// A lost packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// When, by the worker's clock.
    pub time: Nanos,
    /// Why.
    pub reason: DropReason,
    /// Ingress interface slot, or [`crate::tables::NO_INTERFACE`].
    pub interface: u16,
    /// Generation of the tables that decided.
    pub generation: u64,
    /// Length of the whole packet.
    pub len: u32,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
struct Slot {
    /// Odd while the owner writes.
    version: AtomicU64,
    time: AtomicU64,
    generation: AtomicU64,
    /// len << 32 | interface << 16 | kept bytes... see `pack`.
    info: AtomicU64,
    data: [AtomicU64; WORDS],
}

/// One worker's ring.
#[derive(Debug)]
pub struct DropRecorder {
    slots: Box<[Slot]>,
    next: AtomicU64,
}

fn pack(reason: DropReason, interface: u16, len: u32) -> u64 {
    u64::from(len) << 32 | u64::from(interface) << 16 | reason.index() as u64
}

impl Default for DropRecorder {
    fn default() -> DropRecorder {
        let slot = || Slot {
            version: AtomicU64::new(0),
            time: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            info: AtomicU64::new(0),
            data: [const { AtomicU64::new(0) }; WORDS],
        };
        DropRecorder { slots: (0..RECORDS).map(|_| slot()).collect(), next: AtomicU64::new(0) }
    }
}

impl DropRecorder {
    /// Keeps a copy. Owner only.
    pub fn record(
        &self,
        time: Nanos,
        reason: DropReason,
        interface: u16,
        generation: u64,
        len: usize,
        bytes: &[u8],
    ) {
        let next = self.next.load(Ordering::Relaxed);
        let slot = &self.slots[next as usize % RECORDS];
        let version = slot.version.load(Ordering::Relaxed);
        slot.version.store(version + 1, Ordering::Relaxed);
        // The odd version is visible before any word of the record changes.
        std::sync::atomic::fence(Ordering::Release);
        slot.time.store(time.0, Ordering::Relaxed);
        slot.generation.store(generation, Ordering::Relaxed);
        slot.info.store(pack(reason, interface, len as u32), Ordering::Relaxed);
        for (word, chunk) in slot.data.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(padded), Ordering::Relaxed);
        }
        slot.version.store(version + 2, Ordering::Release);
        self.next.store(next + 1, Ordering::Relaxed);
    }

    /// The records, oldest first. A record the owner is just overwriting is left out.
    pub fn read(&self) -> Vec<DropRecord> {
        let mut records: Vec<DropRecord> = self.slots.iter().filter_map(Slot::read).collect();
        records.sort_by_key(|record| record.time);
        records
    }
}

impl Slot {
    fn read(&self) -> Option<DropRecord> {
        for _ in 0..8 {
            let version = self.version.load(Ordering::Acquire);
            if version == 0 || version % 2 == 1 {
                return None;
            }
            let info = self.info.load(Ordering::Relaxed);
            let time = Nanos(self.time.load(Ordering::Relaxed));
            let generation = self.generation.load(Ordering::Relaxed);
            let words: Vec<u64> = self.data.iter().map(|word| word.load(Ordering::Relaxed)).collect();
            std::sync::atomic::fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) != version {
                continue;
            }
            let len = (info >> 32) as u32;
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.truncate(len as usize);
            let reason = DropReason::all().nth(info as usize & 0xff)?;
            return Some(DropRecord { time, reason, interface: (info >> 16) as u16, generation, len, bytes });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept() {
        let recorder = DropRecorder::default();
        for i in 0..RECORDS as u64 + 10 {
            recorder.record(Nanos(i), DropReason::NoRoute, 3, 7, 1500, &[i as u8; RECORD_BYTES]);
        }
        let records = recorder.read();
        assert_eq!(records.len(), RECORDS);
        assert_eq!(records[0].time, Nanos(10));
        let last = records.last().expect("not empty");
        assert_eq!(
            (last.reason, last.interface, last.generation, last.len),
            (DropReason::NoRoute, 3, 7, 1500)
        );
        assert_eq!(last.bytes, vec![(RECORDS + 9) as u8; RECORD_BYTES]);
    }

    #[test]
    fn a_reader_never_sees_half_a_record() {
        let recorder = DropRecorder::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..200_000u64 {
                    recorder.record(
                        Nanos(i),
                        DropReason::NoRoute,
                        i as u16,
                        i,
                        256,
                        &[i as u8; RECORD_BYTES],
                    );
                }
            });
            for _ in 0..50 {
                for record in recorder.read() {
                    assert!(record.bytes.iter().all(|byte| *byte == record.time.0 as u8));
                    assert_eq!(record.generation, record.time.0);
                }
            }
        });
    }
}
