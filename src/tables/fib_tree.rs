//! Intervals of the 64-bit key space in a search tree: half of the IPv6 forwarding table each.
//!
//! After PlanB (arXiv 2604.14650): elementary intervals under an implicit 9-way tree, one cache line per
//! node and one vector comparison per level. Ours packs the lowest level: up to nine intervals *with
//! their leaves* in one line, as 32-bit steps from its first key, so a full table fits a core's L2.
//!
//! An update copies the lines, with those under the change packed anew, and rebuilds the inner nodes
//! (an eighth of the size); nothing ever becomes garbage, but lines may be left partly filled, and when
//! a quarter more of them is in use than need be, all are packed anew.

use super::Leaf;
use super::fib_intervals::{Interval, push};
use crate::mem::simd::{Avx512, FANOUT, Line, SearchTree};

/// A map of all 64-bit keys to leaves; immutable once built.
pub(super) struct IntervalTree {
    tree: SearchTree,
    /// Intervals and lines at the last full packing.
    packed: (usize, usize),
    intervals: usize,
}

/// New intervals for the keys `first..=last`; the first interval starts at `first`.
pub(super) struct Patch {
    pub first: u64,
    pub last: u64,
    pub intervals: Vec<Interval<u64>>,
}

impl IntervalTree {
    /// Builds the tree of all `intervals`, in order, of which there is at least one.
    pub fn compile(intervals: &[Interval<u64>]) -> IntervalTree {
        let mut lines = Vec::with_capacity(intervals.len() / (FANOUT - 1) + 1);
        pack(&mut lines, intervals);
        let packed = (intervals.len(), lines.len());
        IntervalTree { tree: SearchTree::new(lines), packed, intervals: intervals.len() }
    }

    /// The tree after a change. The patches ascend and do not overlap.
    pub fn with_patches(&self, patches: &[Patch]) -> IntervalTree {
        let old = self.tree.lines();
        let new: usize = patches.iter().map(|patch| patch.intervals.len()).sum();
        let mut lines = Vec::with_capacity(old.len() + new / 4 + 2 * patches.len());
        let mut intervals = self.intervals;
        let (mut copied, mut patches) = (0, patches);
        while let Some(patch) = patches.first() {
            // The lines under this patch, with a neighbour on each side to even out their filling, and
            // the patches that touch the same lines.
            let start = self.tree.line_of(patch.first).saturating_sub(1).max(copied);
            let (mut end, mut count) = (start, 0);
            while let Some(patch) = patches.get(count)
                && (count == 0 || self.tree.line_of(patch.first) < end)
            {
                end = (self.tree.line_of(patch.last) + 2).min(old.len()).max(end);
                count += 1;
            }
            let mut before = Vec::with_capacity((end - start) * FANOUT);
            old[start..end].iter().for_each(|line| unpack(line, &mut before));
            let after = patch_intervals(&before, &patches[..count], old.get(end).map(|line| line.base));
            intervals = intervals - before.len() + after.len();
            lines.extend_from_slice(&old[copied..start]);
            pack(&mut lines, &after);
            copied = end;
            patches = &patches[count..];
        }
        lines.extend_from_slice(&old[copied..]);
        if lines.len() > 16 && 4 * lines.len() * self.packed.0 > 5 * intervals * self.packed.1 {
            let mut all = Vec::with_capacity(intervals);
            for line in &lines {
                unpack(line, &mut all);
            }
            return IntervalTree::compile(&all);
        }
        IntervalTree { tree: SearchTree::new(lines), packed: self.packed, intervals }
    }

    #[inline(always)]
    pub fn find(&self, key: u64) -> Leaf {
        self.tree.find(key)
    }

    #[inline(always)]
    pub fn find_batch(&self, avx512: Option<Avx512>, keys: &[u64], out: &mut [Leaf]) {
        self.tree.find_batch(avx512, keys, out);
    }

    pub fn memory_bytes(&self) -> usize {
        size_of::<IntervalTree>() + self.tree.memory_bytes()
    }
}

/// Appends as few lines as hold the intervals.
fn pack(lines: &mut Vec<Line>, mut intervals: &[Interval<u64>]) {
    while let [first, rest @ ..] = intervals {
        let (mut shift, mut used) = (63, 1);
        for next in rest.iter().take(FANOUT - 1) {
            let difference = next.first - first.first;
            let common = shift.min(difference.trailing_zeros());
            if difference >> common > u64::from(Line::UNUSED) {
                break;
            }
            (shift, used) = (common, used + 1);
        }
        let at = |i: usize| intervals[i.min(used - 1)];
        lines.push(Line {
            base: first.first,
            steps: std::array::from_fn(|i| match i + 1 < used {
                true => ((at(i + 1).first - first.first) >> shift) as u32 - 1,
                false => Line::UNUSED,
            }),
            shift,
            values: std::array::from_fn(|i| at(i).leaf),
        });
        intervals = &intervals[used..];
    }
}

/// Appends the intervals of a line.
fn unpack(line: &Line, intervals: &mut Vec<Interval<u64>>) {
    let steps = line.steps.iter().take_while(|step| **step != Line::UNUSED);
    let firsts = steps.map(|step| line.base + ((u64::from(*step) + 1) << line.shift));
    let firsts = std::iter::once(line.base).chain(firsts);
    push_all(intervals, firsts.zip(line.values));
}

fn push_all(intervals: &mut Vec<Interval<u64>>, more: impl Iterator<Item = (u64, Leaf)>) {
    more.for_each(|(first, leaf)| push(intervals, first, leaf));
}

/// The intervals `before` with the patches applied; what holds after them ends before `end`.
fn patch_intervals(before: &[Interval<u64>], patches: &[Patch], end: Option<u64>) -> Vec<Interval<u64>> {
    let mut after = Vec::with_capacity(before.len() + 2 * patches.len());
    let mut at = 0;
    for patch in patches {
        while let Some(old) = before.get(at)
            && old.first < patch.first
        {
            push(&mut after, old.first, old.leaf);
            at += 1;
        }
        patch.intervals.iter().for_each(|new| push(&mut after, new.first, new.leaf));
        while before.get(at).is_some_and(|old| old.first <= patch.last) {
            at += 1;
        }
        if let Some(resume) = patch.last.checked_add(1)
            && Some(resume) != end
        {
            push(&mut after, resume, before[at - 1].leaf);
        }
    }
    before[at..].iter().for_each(|old| push(&mut after, old.first, old.leaf));
    after
}
