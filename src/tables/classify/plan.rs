//! Which masks the tuple tables of a rule set get.
//!
//! Weighted set cover, greedily: of a grid of masks, the one that takes most rules for what it will cost
//! each lookup becomes the next table, until no rule is left. TupleMerge (Daly et al., ToN 2019) decides
//! rule by rule, as they come; here the whole set is at hand.

use ahash::AHashMap;

use super::record::{Hasher, Mask, Record, Word};
use crate::packet::hash;

/// Rules per group, at most, as long as another table could take the others. Of 4 to 64, the fastest on
/// the 100k ClassBench sets: acl1, fw1 and ipc1 together (`benches/classify.rs`).
pub(super) const GROUP_RULES: usize = 32;

/// A table for less than one in so many of the rules left is worth less than longer groups.
const WORTH_A_TABLE: usize = 8;

/// What a lookup pays for a table, in nanoseconds: its hash and its line of tags.
const PROBE_NS: f64 = 10.0;
/// What a lookup pays for each rule it compares, in nanoseconds.
const COMPARE_NS: f64 = 1.5;

/// Masks tried per table: those that could take most.
const TRIALS: usize = 48;

/// Prefix lengths that tables hash.
const LENS_V4: [u8; 7] = [0, 8, 16, 20, 24, 28, 32];
const LENS_V6: [u8; 9] = [0, 20, 32, 40, 48, 56, 60, 64, 128];

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
    let mut parts: Vec<(Mask, Vec<u32>)> = Vec::new();
    let mut left: Vec<(Mask, u32)> =
        records.iter().zip(0..).map(|(record, at)| (rounded::<W>(&record.mask()), at)).collect();
    let mut limit = GROUP_RULES;
    let mut groups = Groups::default();
    while !left.is_empty() {
        let mask = next_mask(&records, &left, key, limit, &mut groups);
        let hasher = Hasher::new(&mask, key);
        groups.reset(left.len(), limit);
        let mut part = Vec::new();
        left.retain(|(finest, at)| {
            let fits = mask.holds(finest) && groups.take(hasher.record(&records[*at as usize])) > 0;
            if fits {
                part.push(*at);
            }
            !fits
        });
        if part.len() < left.len() / WORTH_A_TABLE {
            limit *= 2;
        }
        match parts.iter_mut().find(|(old, _)| *old == mask) {
            Some((_, old)) => old.extend(part),
            None => parts.push((mask, part)),
        }
    }
    let part = |(mask, mut part): (Mask, Vec<u32>)| {
        part.sort_unstable();
        (mask, part.into_iter().map(|at| records[at as usize]).collect())
    };
    parts.into_iter().map(part).collect()
}

/// How long groups are, by the lower bits of their hash: near enough to plan by.
#[derive(Default)]
struct Groups {
    lens: Vec<u8>,
    limit: usize,
}

impl Groups {
    fn reset(&mut self, rules: usize, limit: usize) {
        self.lens.clear();
        self.lens.resize((2 * rules).next_power_of_two().clamp(64, 1 << 17), 0);
        self.limit = limit;
    }

    /// Takes a rule into the group of this hash; returns the length then, 0 if it is full.
    fn take(&mut self, hash: u64) -> usize {
        let slot = hash as usize & (self.lens.len() - 1);
        let len = usize::from(self.lens[slot]);
        if len >= self.limit {
            return 0;
        }
        // Beyond what a byte counts the limit is none.
        self.lens[slot] = (len + 1).min(254) as u8;
        len + 1
    }
}

/// The mask that takes most rules for what it costs.
fn next_mask<W: Word>(
    records: &[Record<W>],
    left: &[(Mask, u32)],
    key: hash::Key,
    limit: usize,
    groups: &mut Groups,
) -> Mask {
    let mut tuples = AHashMap::<Mask, usize>::new();
    left.iter().for_each(|(mask, _)| *tuples.entry(*mask).or_default() += 1);
    let mut masks: Vec<(usize, Mask)> = grid::<W>(&tuples)
        .map(|mask| (tuples.iter().filter(|(finer, _)| mask.holds(finer)).map(|(_, n)| n).sum(), mask))
        .collect();
    // Of masks that hold the same rules, the most specific makes the shortest groups.
    masks.sort_unstable_by(|a, b| b.cmp(a));
    let mut best = (0.0, masks[0].1);
    for (held, mask) in masks.into_iter().take(TRIALS) {
        if held as f64 / (PROBE_NS + COMPARE_NS) <= best.0 {
            break;
        }
        let hasher = Hasher::new(&mask, key);
        groups.reset(left.len(), limit);
        let (mut taken, mut compared) = (0, 0);
        for (_, at) in left.iter().filter(|(finer, _)| mask.holds(finer)) {
            let len = groups.take(hasher.record(&records[*at as usize]));
            taken += usize::from(len > 0);
            // The squares of the groups' lengths in the end: 1 + 3 + 5 ...
            compared += (2 * len).saturating_sub(1);
        }
        let per_lookup = PROBE_NS + COMPARE_NS * compared as f64 / taken.max(1) as f64;
        if taken as f64 / per_lookup > best.0 {
            best = (taken as f64 / per_lookup, mask);
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
