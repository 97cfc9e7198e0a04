//! Which masks the tuple tables of a rule set get.
//!
//! Greedy: of a grid of masks, the one that holds most of the rules in groups that are short enough
//! becomes the next table, until no rule is left. TupleMerge (Daly et al., ToN 2019) decides rule by
//! rule; with the whole set at hand fewer tables do.

use ahash::AHashMap;

use super::record::{Hasher, Mask, Record, Word};
use crate::packet::hash;

/// Rules per group, at most, as long as another table could take the others. A rule costs about 1.5 ns
/// to compare, a table 10 ns to probe.
pub(super) const GROUP_RULES: usize = 16;

/// Masks tried per table.
const TRIALS: usize = 48;

/// Prefix lengths that tables hash.
const LENS_V4: [u8; 7] = [0, 8, 16, 20, 24, 28, 32];
const LENS_V6: [u8; 7] = [0, 16, 32, 48, 56, 64, 128];

fn lens<W: Word>() -> &'static [u8] {
    if W::BITS == 32 { &LENS_V4 } else { &LENS_V6 }
}

fn round_down<W: Word>(len: u8) -> u8 {
    lens::<W>().iter().copied().filter(|l| *l <= len).max().unwrap_or(0)
}

/// The most specific mask of the grid that holds a rule.
pub(super) fn rounded<W: Word>(mask: &Mask) -> Mask {
    Mask {
        src_len: round_down::<W>(mask.src_len),
        dst_len: round_down::<W>(mask.dst_len),
        src_port_len: mask.src_port_len & 16,
        dst_port_len: mask.dst_port_len & 16,
        ..*mask
    }
}

/// Cuts records, which are in order of position, into tables; each part stays in order.
pub(super) fn plan<W: Word>(records: Vec<Record<W>>, key: hash::Key) -> Vec<(Mask, Vec<Record<W>>)> {
    let mut parts = Vec::new();
    let mut left: Vec<(Mask, Record<W>)> =
        records.into_iter().map(|record| (rounded::<W>(&record.mask()), record)).collect();
    let mut limit = GROUP_RULES;
    let mut counters = Vec::new();
    while !left.is_empty() {
        let mask = next_mask(&left, key, limit, &mut counters);
        let hasher = Hasher::new(&mask, key);
        let slots = reset(&mut counters, left.len());
        let (mut part, mut rest) = (Vec::new(), Vec::new());
        for (finest, record) in left {
            let fits = mask.holds(&finest) && count(&mut counters, slots, hasher.record(&record), limit);
            if fits { part.push(record) } else { rest.push((finest, record)) }
        }
        left = rest;
        // A table for few of many rules: longer groups cost less than so many tables.
        if part.len() < left.len() / 16 {
            limit *= 2;
        }
        parts.push((mask, part));
    }
    parts
}

fn reset(counters: &mut Vec<u8>, rules: usize) -> usize {
    let slots = (2 * rules).next_power_of_two().clamp(64, 1 << 17);
    counters.clear();
    counters.resize(slots, 0);
    slots
}

/// True if the group of this hash takes one more.
fn count(counters: &mut [u8], slots: usize, hash: u64, limit: usize) -> bool {
    let counter = &mut counters[hash as usize & (slots - 1)];
    let fits = usize::from(*counter) < limit;
    *counter += u8::from(fits && *counter < 254);
    fits
}

/// The mask that places most.
fn next_mask<W: Word>(
    left: &[(Mask, Record<W>)],
    key: hash::Key,
    limit: usize,
    counters: &mut Vec<u8>,
) -> Mask {
    let mut tuples = AHashMap::<Mask, usize>::new();
    left.iter().for_each(|(mask, _)| *tuples.entry(*mask).or_default() += 1);
    let mut masks: Vec<(usize, Mask)> = grid::<W>(&tuples)
        .map(|mask| (tuples.iter().filter(|(finer, _)| mask.holds(finer)).map(|(_, n)| n).sum(), mask))
        .collect();
    // Of masks that hold the same rules, the most specific makes the shortest groups.
    masks.sort_unstable_by(|a, b| b.cmp(a));
    let mut best = (0, masks[0].1);
    for (held, mask) in masks.into_iter().take(TRIALS) {
        if held <= best.0 {
            break;
        }
        let hasher = Hasher::new(&mask, key);
        let slots = reset(counters, left.len());
        let placed = left
            .iter()
            .filter(|(finer, record)| {
                mask.holds(finer) && count(counters, slots, hasher.record(record), limit)
            })
            .count();
        if placed > best.0 {
            best = (placed, mask);
        }
    }
    best.1
}

/// All masks that could be of use to some of the tuples.
fn grid<W: Word>(tuples: &AHashMap<Mask, usize>) -> impl Iterator<Item = Mask> {
    let uses = |some: fn(&Mask) -> bool| if tuples.keys().any(some) { &[false, true][..] } else { &[false] };
    let (src_ports, dst_ports) = (uses(|m| m.src_port_len == 16), uses(|m| m.dst_port_len == 16));
    let (protocols, src_sets, dst_sets) = (uses(|m| m.protocol), uses(|m| m.src_set), uses(|m| m.dst_set));
    let mut masks = Vec::new();
    for &src_len in lens::<W>() {
        for &dst_len in lens::<W>() {
            for src_port in src_ports {
                for dst_port in dst_ports {
                    for protocol in protocols {
                        for src_set in src_sets {
                            for dst_set in dst_sets {
                                masks.push(Mask {
                                    src_len,
                                    dst_len,
                                    src_port_len: 16 * u8::from(*src_port),
                                    dst_port_len: 16 * u8::from(*dst_port),
                                    protocol: *protocol,
                                    src_set: *src_set,
                                    dst_set: *dst_set,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    masks.into_iter()
}
