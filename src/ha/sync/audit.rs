//! The auditor: whether the other node has the same sessions, by sums over slices of them ([`crate::flow::digest`]).
//!
//! Each node looks at all of its sessions now and then, and tells the sums. Whoever gets them compares. What is under way is
//! no drift: sums are of different moments, and records travel. A slice is *different* when sums are; it has *drifted* when
//! a later look of both nodes finds the very same two sums. Then nothing began and nothing ended in it on either side in
//! between, and what one has and the other has not nobody will tell of any more. A slice in which something always changes
//! is never compared in this way, until it is left alone for the time between two looks.
//!
//! Each node makes a drifted slice good by telling all that it has in it; the other ends what was not told, unless it has
//! seen packets of it. So what only one has goes to the other, and what one should have ended is ended. A slice that does not
//! get well (a session that the other cannot install) is told again more and more rarely.
//!
//! Lost sums are not sent again: the next look is near.

use std::collections::BTreeSet;
use std::time::Duration;

use ahash::AHashMap;

use super::wire::{Block, SUMS, emit_sum};
use crate::flow::digest::{MOST, SLICES, Slices};
use crate::time::Nanos;

/// Time between the end of a look and the beginning of the next.
pub const PAUSE: Duration = Duration::from_secs(10);
/// A look that takes longer than that is given up: a worker does not answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// What was told before it began and has not arrived by then was lost.
const SETTLE: Duration = Duration::from_secs(1);
/// Slices that wait to be repaired: if there are more, everything is told.
const DRIFTED: usize = 1024;
/// The time until a slice is told once more doubles so often.
const DOUBLINGS: u32 = 10;

/// A slice whose sums differ.
#[derive(Clone, Copy, Debug)]
struct Different {
    own: u64,
    theirs: u64,
    /// Since when they are these two.
    since: Nanos,
    has_drifted: bool,
    /// How often it was told, and when it may be again.
    tries: u32,
    not_before: Nanos,
}

/// What has been found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Looks at all sessions of this node.
    pub looks: u64,
    /// Slices found to have drifted.
    pub found: u64,
    /// Of these, those that were the same again later.
    pub repaired: u64,
    /// Of these, those that are not yet.
    pub left: u64,
}

/// Where a look is.
#[derive(Clone, Copy, Debug, Default)]
enum Look {
    /// None is under way.
    #[default]
    No,
    /// It has this number, and began then.
    Since(u32, Nanos),
}

/// A node's side of the audits.
#[derive(Debug, Default)]
pub struct Audit {
    /// Number of the last look that began.
    number: u32,
    look: Look,
    next: Nanos,
    /// The sums of the last look that came to its end, and when it began. Empty: none has.
    own: Vec<u64>,
    begun: Nanos,
    round: u32,
    /// The next slice to tell of.
    told: usize,
    /// The peer's last look that was heard of.
    theirs: u32,
    different: AHashMap<u16, Different>,
    drifted: BTreeSet<u16>,
    drift: Drift,
    wants_all: bool,
}

impl Audit {
    /// Another run of the peer, or everything is told: what was found before says nothing.
    pub fn begin_anew(&mut self) {
        self.different.clear();
        self.drifted.clear();
        self.drift.left = 0;
        self.wants_all = false;
    }

    /// Another run of the peer: its looks are counted from the beginning.
    pub fn meet(&mut self) {
        self.begin_anew();
        self.theirs = 0;
        self.told = SLICES;
        self.look = Look::No;
    }

    /// The number of a look that is due, to be given back when it is done.
    pub fn take_look(&mut self, now: Nanos) -> Option<u32> {
        match self.look {
            Look::Since(_, begun) if now.since(begun) < PATIENCE => return None,
            Look::No if now < self.next => return None,
            Look::Since(..) | Look::No => {}
        }
        self.number = self.number.wrapping_add(1).max(1);
        self.look = Look::Since(self.number, now);
        Some(self.number)
    }

    /// A look is done: sums by slice.
    pub fn looked(&mut self, number: u32, sums: Vec<u64>, now: Nanos) {
        let Look::Since(under_way, begun) = self.look else { return };
        if under_way != number || sums.len() != SLICES {
            return;
        }
        (self.own, self.begun, self.round) = (sums, begun, number);
        self.look = Look::No;
        (self.told, self.next) = (0, now.plus(PAUSE));
        self.drift.looks += 1;
    }

    /// What is to be told next of the last look: the block, as it is sent.
    pub fn next_block(&mut self) -> Option<Vec<u8>> {
        let first = self.told;
        let rest = self.own.get(first..).filter(|rest| !rest.is_empty())?;
        let mut body = Vec::new();
        let (mut count, mut end) = (0, SLICES);
        for (slice, sum) in (first..).zip(rest).filter(|(_, sum)| **sum != 0) {
            if count == SUMS {
                end = slice;
                break;
            }
            emit_sum(slice as u16, *sum, &mut body);
            count += 1;
        }
        self.told = end;
        let slices = (first as u16, (end - 1) as u16);
        let mut block = Vec::new();
        Block::Sums { round: self.round, slices, sums: &body }.emit(&mut block);
        Some(block)
    }

    /// Sums that the peer has told of. `is_quiet`: what was told some time ago has arrived, in both directions.
    pub fn hear(
        &mut self,
        round: u32,
        (first, last): (u16, u16),
        sums: &[(u16, u64)],
        now: Nanos,
        is_quiet: bool,
    ) {
        if round.wrapping_sub(self.theirs) as i32 >= 0 || self.theirs == 0 {
            self.theirs = round;
        } else {
            // One that was overtaken.
            return;
        }
        if self.own.is_empty() || !is_quiet {
            return;
        }
        let mut told = sums.iter().copied().peekable();
        for slice in first..=last {
            let theirs = told.next_if(|(at, _)| *at == slice).map_or(0, |(_, sum)| sum);
            self.compare(slice, theirs, now);
        }
    }

    fn compare(&mut self, slice: u16, theirs: u64, now: Nanos) {
        let own = self.own[usize::from(slice)];
        if own == theirs {
            if let Some(was) = self.different.remove(&slice)
                && was.has_drifted
            {
                self.drift.repaired += 1;
                self.drift.left -= 1;
                self.drifted.remove(&slice);
            }
            return;
        }
        let new = Different { own, theirs, since: now, has_drifted: false, tries: 0, not_before: now };
        let different = self.different.entry(slice).or_insert(new);
        if (different.own, different.theirs) != (own, theirs) {
            (different.own, different.theirs, different.since) = (own, theirs, now);
            return;
        }
        // This look of ours must have begun after the first time: else it is the same one, or saw the same moment.
        if self.begun < different.since.plus(SETTLE) {
            return;
        }
        if !different.has_drifted {
            different.has_drifted = true;
            self.drift.found += 1;
            self.drift.left += 1;
        }
        if now >= different.not_before {
            different.not_before = now.plus(PAUSE * (1 << different.tries.min(DOUBLINGS)));
            different.tries += 1;
            self.drifted.insert(slice);
            self.wants_all |= self.drifted.len() > DRIFTED;
        }
    }

    /// True, once, if so much has drifted that everything is to be told.
    pub fn take_wants_all(&mut self) -> bool {
        std::mem::take(&mut self.wants_all)
    }

    /// Slices to tell now.
    pub fn take_repair(&mut self) -> Option<Slices> {
        let some: Vec<u16> = self.drifted.iter().copied().take(MOST).collect();
        self.drifted.retain(|slice| !some.contains(slice));
        (!some.is_empty()).then(|| Slices::of(some.into_iter()))
    }

    /// What has been found so far.
    pub fn drift(&self) -> Drift {
        self.drift
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::sync::wire::{blocks, sums};

    /// Tells one node's sums to the other.
    fn tell(from: &mut Audit, to: &mut Audit, now: Nanos) {
        while let Some(block) = from.next_block() {
            for block in blocks(&block) {
                let Ok(Block::Sums { round, slices, sums: bytes }) = block else { panic!("{block:?}") };
                to.hear(round, slices, &sums(bytes, slices).expect("in order"), now, true);
            }
        }
    }

    fn sums_of(sessions: &[(u16, u64)]) -> Vec<u64> {
        let mut sums = vec![0; SLICES];
        sessions.iter().for_each(|(slice, sum)| sums[usize::from(*slice)] = *sum);
        sums
    }

    fn both(nodes: &mut [Audit; 2], now: &mut Nanos, sums: [&[(u16, u64)]; 2]) {
        *now = now.plus(PAUSE);
        for (node, sums) in nodes.iter_mut().zip(sums) {
            let number = node.take_look(*now).expect("it is due");
            assert_eq!(node.take_look(*now), None, "one at a time");
            node.looked(number, sums_of(sums), *now);
        }
        let [one, other] = nodes;
        tell(one, other, *now);
        tell(other, one, *now);
    }

    #[test]
    fn what_stays_different_has_drifted_and_what_changes_has_not() {
        let (mut nodes, mut now) = ([Audit::default(), Audit::default()], Nanos::from_secs(100));
        let many: Vec<(u16, u64)> = (0..u16::MAX).map(|slice| (slice, u64::from(slice) + 1)).collect();
        both(&mut nodes, &mut now, [&many, &many]);
        assert!(nodes.iter().all(|node| node.different.is_empty() && node.drift.looks == 1));
        // In one slice something changes all the time, and never arrives in time.
        for turn in 0..20 {
            let mut later = many.clone();
            later[500].1 = 1000 + turn;
            both(&mut nodes, &mut now, [&many, &later]);
        }
        assert!(nodes.iter().all(|node| node.drift.found == 0 && node.different.len() == 1));
        // One slice that only one has, the first and the last.
        let fewer = [(7, 8), (u16::MAX, 3)];
        let more = [(0, 9), (7, 8)];
        both(&mut nodes, &mut now, [&fewer, &more]);
        assert!(nodes.iter_mut().all(|node| node.take_repair().is_none()));
        both(&mut nodes, &mut now, [&fewer, &more]);
        for node in &mut nodes {
            assert_eq!((node.drift.found, node.drift.left), (2, 2));
            assert_eq!(node.take_repair().expect("both").all(), [0, u16::MAX]);
        }
        // It does not get well: told again, more and more rarely.
        let mut told = 0;
        for _ in 0..60 {
            both(&mut nodes, &mut now, [&fewer, &more]);
            told += u32::from(nodes[0].take_repair().is_some());
        }
        assert!((4..8).contains(&told), "{told}");
        both(&mut nodes, &mut now, [&more, &more]);
        assert!(nodes.iter().all(|node| {
            let Drift { found, repaired, left, .. } = node.drift;
            (found, repaired, left) == (2, 2, 0)
        }));
    }

    #[test]
    fn an_older_look_says_nothing_and_many_slices_are_a_resync() {
        let (mut nodes, mut now) = ([Audit::default(), Audit::default()], Nanos::from_secs(100));
        let many: Vec<(u16, u64)> = (0..2000).map(|slice| (slice, 1)).collect();
        both(&mut nodes, &mut now, [&many, &[]]);
        // The same sums once more, but no other look of this node's.
        let last = nodes[0].theirs;
        nodes[0].hear(last, (0, 9), &[], now.plus(PAUSE * 3), true);
        nodes[0].hear(last.wrapping_sub(1), (0, 9), &[], now.plus(PAUSE * 3), true);
        assert_eq!(nodes[0].drift.found, 0);
        both(&mut nodes, &mut now, [&many, &[]]);
        assert_eq!(nodes[0].drift.found, 2000);
        assert!(nodes[0].take_wants_all() && !nodes[0].take_wants_all());
        nodes[0].begin_anew();
        assert_eq!((nodes[0].drift.left, nodes[0].take_repair()), (0, None));
    }
}
