//! All rules of one address family: a list of tuple tables, those with the first rules ahead.

use arrayvec::ArrayVec;

use super::plan::{GROUP_RULES, plan, rounded};
use super::record::{Packet, Record, Word};
use super::table::{Hit, Table};
use crate::packet::hash;

/// Probes whose cache misses overlap: what a core keeps in flight.
const AHEAD: usize = 16;

/// Tables that changes may add to a few planned ones before the rules are planned anew.
const SPARE_TABLES: usize = 8;

/// The rules of one family.
#[derive(Clone)]
pub(super) struct Space<W> {
    /// By first position.
    tables: Vec<Table<W>>,
    /// Tables that the last full build made.
    planned: usize,
    /// The rules if they are few: to look at them one by one costs less than to hash.
    few: Vec<Record<W>>,
}

/// So many rules are few.
const FEW: usize = 4;

/// The groups that a list does not hash: one probe all the same.
const NO_SETS: &[u16] = &[0];

impl<W: Word> Space<W> {
    /// Compiles `records`, which are in order of position.
    pub fn new(key: hash::Key, records: Vec<Record<W>>, place: &[u32]) -> Space<W> {
        let parts = plan(records, key);
        let tables = parts.into_iter().map(|(mask, records)| Table::new(mask, key, records, place));
        let tables: Vec<_> = tables.collect();
        let mut space = Space { planned: tables.len(), tables, few: Vec::new() };
        space.moved(place);
        space
    }

    /// The first position that matches and that `accept` takes; `u32::MAX` if there is none.
    #[inline]
    pub fn find(&self, packet: &Packet<'_, W>, place: &[u32], accept: &impl Fn(u32) -> bool) -> u32 {
        if !self.few.is_empty() {
            return self.first_of_few(packet, place, accept);
        }
        let tail = packet.tail();
        let mut best = u32::MAX;
        let mut probes = ArrayVec::<(&Table<W>, u64), AHEAD>::new();
        for table in &self.tables {
            if table.first >= best {
                break;
            }
            let hash = table.hasher.packet(packet.src, packet.dst, tail);
            if !table.hasher.of_sets() {
                table.fetch(hash);
                probes.push((table, hash));
                if probes.is_full() {
                    best = probe(&mut probes, packet, place, best, accept);
                }
                continue;
            }
            let sets = |hashed: bool, sets| if hashed { sets } else { NO_SETS };
            for src_set in sets(table.hasher.src_set, packet.src_sets) {
                for dst_set in sets(table.hasher.dst_set, packet.dst_sets) {
                    let hash = table.hasher.with_sets(hash, *src_set, *dst_set);
                    table.fetch(hash);
                    probes.push((table, hash));
                    if probes.is_full() {
                        best = probe(&mut probes, packet, place, best, accept);
                    }
                }
            }
        }
        probe(&mut probes, packet, place, best, accept)
    }

    fn first_of_few(&self, packet: &Packet<'_, W>, place: &[u32], accept: &impl Fn(u32) -> bool) -> u32 {
        let mut best = u32::MAX;
        for record in &self.few {
            let at = place[record.id as usize];
            if at < best && record.matches(packet) && accept(at) {
                best = at;
            }
        }
        best
    }

    /// Takes out the rules that `gone` names. Then [`Space::extend`] is due.
    pub fn remove(&mut self, gone: impl Fn(u32) -> bool, place: &[u32]) {
        self.tables.iter_mut().for_each(|table| table.remove(&gone, place));
        self.tables.retain(|table| table.rules > 0);
    }

    /// Takes in rules, by a full build if it is `bulk`, and puts the tables in order.
    pub fn extend(&mut self, key: hash::Key, records: Vec<Record<W>>, place: &[u32], bulk: bool) {
        if bulk || self.tables.len() > 2 * self.planned + SPARE_TABLES {
            let mut all: Vec<Record<W>> = self.records().copied().chain(records).collect();
            all.sort_unstable_by_key(|record| place[record.id as usize]);
            *self = Space::new(key, all, place);
            return;
        }
        records.into_iter().for_each(|record| self.insert(key, record, place));
        self.moved(place);
    }

    fn insert(&mut self, key: hash::Key, record: Record<W>, place: &[u32]) {
        let mask = record.mask();
        // Where it makes the smallest group; of those, the most specific.
        let holding = self.tables.iter_mut().filter(|table| table.mask.holds(&mask));
        let best = holding
            .map(|table| (table.group_len(&record), table))
            .min_by_key(|(len, table)| (*len, std::cmp::Reverse(table.mask)));
        let own = rounded::<W>(&mask);
        match best {
            Some((len, table)) if len < GROUP_RULES || table.mask == own => table.insert(record, place),
            _ => self.tables.push(Table::new(own, key, vec![record], place)),
        }
    }

    /// Puts the tables in order after rules came, went or moved.
    fn moved(&mut self, place: &[u32]) {
        self.tables.iter_mut().for_each(|table| table.find_first(place));
        self.tables.sort_by_key(|table| table.first);
        let are_few = self.tables.iter().map(|table| table.rules).sum::<usize>() <= FEW;
        self.few = if are_few { self.records().copied().collect() } else { Vec::new() };
    }

    /// All rules, in no order.
    pub fn records(&self) -> impl Iterator<Item = &Record<W>> {
        self.tables.iter().flat_map(|table| table.records())
    }

    /// How many tuple tables there are.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Memory held, shared or not.
    pub fn memory_bytes(&self) -> usize {
        self.tables.iter().map(|table| size_of::<Table<W>>() + table.memory_bytes()).sum()
    }
}

/// Probes what was asked for, in order of the tables, and forgets it; returns the best position so far.
#[inline(always)]
fn probe<W: Word>(
    probes: &mut ArrayVec<(&Table<W>, u64), AHEAD>,
    packet: &Packet<'_, W>,
    place: &[u32],
    mut best: u32,
    accept: &impl Fn(u32) -> bool,
) -> u32 {
    let mut hits = ArrayVec::<Hit<'_, W>, AHEAD>::new();
    let mut walk = |hits: &mut ArrayVec<Hit<'_, W>, AHEAD>| {
        for hit in hits.drain(..) {
            if hit.first >= best {
                break;
            }
            best = hit.walk(packet, place, best, accept);
        }
    };
    for (table, hash) in probes.drain(..) {
        table.hits(hash, |hit| {
            if hits.is_full() {
                walk(&mut hits);
            }
            hits.push(hit);
        });
    }
    walk(&mut hits);
    best
}
