//! One tuple table: rules hashed by what the table's mask keeps of them.
//!
//! Rules of equal hash are a group: records one behind the other, in order of position. A line of tags
//! tells which groups there are. The table is cut into segments by the hash's top bits; a change
//! rebuilds the segments it touches, and shares all others with the table it came from.

use std::sync::Arc;

use super::record::{Hasher, Mask, Packet, Record, Word};
use crate::mem::prefetch::prefetch;
use crate::mem::simd::TagLine;
use crate::packet::hash;

/// Rules per segment, about: rebuilding one takes some 20 us, and their directory stays in L1.
const SEGMENT_RULES: usize = 512;

/// Groups per line of [`TagLine::SLOTS`] tags, on average: one line in 20 overflows.
const LINE_FILL: usize = 6;

/// Rules whose hashes share their top bits.
#[derive(Clone)]
struct Segment<W> {
    lines: Arc<[TagLine]>,
    records: Arc<[Record<W>]>,
}

/// A tuple table.
#[derive(Clone)]
pub(super) struct Table<W> {
    pub hasher: Hasher<W>,
    /// The first position of any rule in it.
    pub first: u32,
    segment_bits: u32,
    segments: Vec<Segment<W>>,
    /// Per segment, the number of the rule that comes first; of no use if the segment is empty.
    first_ids: Vec<u32>,
    pub mask: Mask,
    pub rules: usize,
}

/// Where a packet's rules may be in a table.
pub(super) struct Hit<'a, W> {
    records: &'a [Record<W>],
    at: usize,
    /// The table's first position.
    pub first: u32,
}

impl<W: Word> Hit<'_, W> {
    /// The lowest position below `best` that matches and that `accept` takes, else `best`.
    #[inline(always)]
    pub fn walk(
        &self,
        packet: &Packet<'_, W>,
        place: &[u32],
        best: u32,
        accept: &impl Fn(u32) -> bool,
    ) -> u32 {
        for record in &self.records[self.at..] {
            if record.matches(packet) {
                let position = place[record.id as usize];
                if position >= best {
                    return best;
                }
                if accept(position) {
                    return position;
                }
            }
            if record.is_last() {
                break;
            }
        }
        best
    }
}

#[inline(always)]
fn tag(hash: u64) -> u16 {
    // 0 is an empty slot.
    ((hash >> 32) as u16).max(1)
}

#[inline(always)]
fn line_of(hash: u64, lines: usize) -> usize {
    ((u64::from(hash as u32) * lines as u64) >> 32) as usize
}

impl<W: Word> Table<W> {
    /// A table of `records`, which are in order of position.
    pub fn new(mask: Mask, key: hash::Key, records: Vec<Record<W>>, place: &[u32]) -> Table<W> {
        let segment_bits = (records.len() / SEGMENT_RULES).max(1).next_power_of_two().trailing_zeros();
        let mut table = Table {
            hasher: Hasher::new(&mask, key),
            first: u32::MAX,
            segment_bits,
            segments: Vec::with_capacity(1 << segment_bits),
            first_ids: vec![0; 1 << segment_bits],
            mask,
            rules: records.len(),
        };
        let mut hashed: Vec<(u64, u32)> =
            records.iter().zip(0..).map(|(record, i)| (table.hasher.record(record), i)).collect();
        // Equal hashes stay in order of position.
        hashed.sort_unstable();
        let mut rest = hashed.as_slice();
        for segment in 0..1 << segment_bits {
            let (these, others) =
                rest.split_at(rest.partition_point(|(hash, _)| table.segment_of(*hash) == segment));
            rest = others;
            table.first_ids[segment] =
                these.iter().map(|(_, i)| *i).min().map_or(0, |i| records[i as usize].id);
            table.segments.push(segment_from(these, &records));
        }
        table.find_first(place);
        table
    }

    #[inline(always)]
    fn segment_of(&self, hash: u64) -> usize {
        // In two shifts, because no segment bits at all would shift by 64.
        (hash >> 1 >> (63 - self.segment_bits)) as usize
    }

    /// Asks for the cache line that [`Table::hits`] will read.
    #[inline(always)]
    pub fn fetch(&self, hash: u64) {
        let lines = &self.segments[self.segment_of(hash)].lines;
        prefetch(lines, line_of(hash, lines.len()));
    }

    /// Calls `found` for each group that may be of this hash, having asked for its first record.
    #[inline(always)]
    pub fn hits<'a>(&'a self, hash: u64, mut found: impl FnMut(Hit<'a, W>)) {
        let Segment { lines, records } = &self.segments[self.segment_of(hash)];
        let mut line = line_of(hash, lines.len());
        // An overflowing line leads to the next; a segment always has a line that does not overflow.
        loop {
            let mut hits = lines[line].hits(tag(hash));
            while hits != 0 {
                let at = lines[line].values[hits.trailing_zeros() as usize] as usize;
                prefetch(records, at);
                found(Hit { records, at, first: self.first });
                hits &= hits - 1;
            }
            if !lines[line].overflows() {
                return;
            }
            line = if line + 1 == lines.len() { 0 } else { line + 1 };
        }
    }

    /// Rules that already have this record's hash.
    pub fn group_len(&self, record: &Record<W>) -> usize {
        let hash = self.hasher.record(record);
        let mut len = 0;
        self.hits(hash, |hit| {
            let group = &hit.records[hit.at..];
            if self.hasher.record(&group[0]) == hash {
                len = 1 + group.iter().position(Record::is_last).expect("a group has a last record");
            }
        });
        len
    }

    /// All rules, in no order.
    pub fn records(&self) -> impl Iterator<Item = &Record<W>> {
        self.segments.iter().flat_map(|segment| segment.records.iter())
    }

    /// Takes out the rules that `gone` names. Their positions do not count any more.
    pub fn remove(&mut self, gone: impl Fn(u32) -> bool, place: &[u32]) {
        for segment in 0..self.segments.len() {
            if self.segments[segment].records.iter().any(|record| gone(record.id)) {
                let records = self.segments[segment].records.iter().filter(|record| !gone(record.id));
                self.rebuild(segment, records.copied().collect(), place);
            }
        }
    }

    /// Takes in a rule, which the mask holds.
    pub fn insert(&mut self, record: Record<W>, place: &[u32]) {
        let segment = self.segment_of(self.hasher.record(&record));
        let mut records = self.segments[segment].records.to_vec();
        records.push(record);
        self.rebuild(segment, records, place);
        if self.rules > (2 * SEGMENT_RULES) << self.segment_bits {
            let mut records: Vec<Record<W>> = self.records().copied().collect();
            records.sort_unstable_by_key(|record| place[record.id as usize]);
            *self = Table::new(self.mask, self.hasher.key(), records, place);
        }
    }

    fn rebuild(&mut self, segment: usize, mut records: Vec<Record<W>>, place: &[u32]) {
        self.rules = self.rules + records.len() - self.segments[segment].records.len();
        records.sort_unstable_by_key(|record| place[record.id as usize]);
        self.first_ids[segment] = records.first().map_or(0, |record| record.id);
        let mut hashed: Vec<(u64, u32)> =
            records.iter().zip(0..).map(|(record, i)| (self.hasher.record(record), i)).collect();
        hashed.sort_unstable();
        self.segments[segment] = segment_from(&hashed, &records);
    }

    /// Finds the first position anew, after rules have moved.
    pub fn find_first(&mut self, place: &[u32]) {
        let full =
            self.segments.iter().zip(&self.first_ids).filter(|(segment, _)| !segment.records.is_empty());
        self.first = full.map(|(_, id)| place[*id as usize]).min().unwrap_or(u32::MAX);
    }

    /// Memory held, shared or not.
    pub fn memory_bytes(&self) -> usize {
        let segment = |segment: &Segment<W>| {
            size_of_val(&*segment.lines) + size_of_val(&*segment.records) + size_of::<Segment<W>>() + 4
        };
        self.segments.iter().map(segment).sum()
    }
}

/// Builds a segment from hashes and places in `records`, in order.
fn segment_from<W: Word>(hashed: &[(u64, u32)], records: &[Record<W>]) -> Segment<W> {
    let groups = hashed.chunk_by(|a, b| a.0 == b.0);
    let mut lines = vec![TagLine::default(); (groups.clone().count() / LINE_FILL) + 1];
    let mut placed: Vec<Record<W>> = Vec::with_capacity(hashed.len());
    for group in groups {
        let hash = group[0].0;
        let mut line = line_of(hash, lines.len());
        while !lines[line].push(tag(hash), placed.len() as u32) {
            line = if line + 1 == lines.len() { 0 } else { line + 1 };
        }
        placed.extend(group.iter().map(|(_, i)| records[*i as usize]));
        let len = placed.len();
        for (i, record) in placed[len - group.len()..].iter_mut().enumerate() {
            record.set_last(i + 1 == group.len());
        }
    }
    Segment { lines: lines.into(), records: placed.into() }
}
