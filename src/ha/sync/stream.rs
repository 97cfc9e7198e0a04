//! One direction of one stream: blocks in order, each once. The sender keeps what is not acknowledged, in a ring of bounded
//! size, and sends it again; the receiver keeps what has come too early.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::wire::{Block, DATA_BYTES, Item};
use crate::time::Nanos;

/// Blocks under way, of up to 1,400 bytes. On a link of 1 ms that is 350 MB/s.
pub const RING: usize = 256;
/// Blocks kept that have come too early.
const EARLY: usize = 64;
/// How long an acknowledgment may take before a block is sent again; then twice as long, up to 32 times.
const PATIENCE: Duration = Duration::from_millis(50);
/// A block that was asked for is not sent again sooner: the answer may be under way.
const ASKED: Duration = Duration::from_millis(5);
/// Blocks sent again at a time for want of any answer.
const AGAIN: usize = 8;

#[derive(Debug)]
struct Sent {
    records: Vec<u8>,
    names: u32,
    count: u32,
    last: Nanos,
    /// When it was sent first.
    first: Nanos,
    times: u32,
}

/// The sender's side.
#[derive(Debug)]
pub struct Outgoing {
    /// Sequence number of the first block of the ring.
    first: u64,
    ring: VecDeque<Sent>,
    /// The block that is being filled.
    open: Vec<u8>,
    open_count: u32,
    /// Blocks at the ring's end that were not sent yet.
    fresh: usize,
    /// Blocks at its front that the receiver asks for.
    pub wanted: usize,
    /// Blocks sent again.
    pub resent: u64,
}

impl Default for Outgoing {
    fn default() -> Outgoing {
        Outgoing {
            first: 1,
            ring: VecDeque::new(),
            open: Vec::new(),
            open_count: 0,
            fresh: 0,
            wanted: 0,
            resent: 0,
        }
    }
}

impl Outgoing {
    /// True if there is room for another record.
    pub fn has_room(&self) -> bool {
        self.ring.len() < RING - 1
    }

    /// Appends a record; the caller has asked [`Outgoing::has_room`]. `names`: how many the receiver needs for it.
    pub fn offer(&mut self, item: &Item<'_>, names: u32) {
        let before = self.open.len();
        item.emit(&mut self.open);
        if self.open.len() > DATA_BYTES {
            let item = self.open.split_off(before);
            self.close(names);
            self.open = item;
        }
        self.open_count += 1;
    }

    /// Closes the block that is being filled.
    pub fn close(&mut self, names: u32) {
        if !self.open.is_empty() {
            let records = std::mem::take(&mut self.open);
            let count = std::mem::take(&mut self.open_count);
            self.ring.push_back(Sent { records, names, count, last: Nanos(0), first: Nanos(0), times: 0 });
            self.fresh += 1;
        }
    }

    /// Records that nobody has acknowledged.
    pub fn pending(&self) -> u64 {
        self.ring.iter().map(|sent| u64::from(sent.count)).sum::<u64>() + u64::from(self.open_count)
    }

    /// Sequence number of the next block.
    pub fn next(&self) -> u64 {
        self.first + (self.ring.len() - self.fresh) as u64
    }

    /// How long the oldest block has waited to be acknowledged.
    pub fn age(&self, now: Nanos) -> Duration {
        match self.ring.front() {
            Some(sent) if sent.times > 0 => now.since(sent.first),
            _ => Duration::ZERO,
        }
    }

    /// The receiver has all before `next`, and lacks what is before `until`.
    pub fn acked(&mut self, next: u64, until: u64, now: Nanos) {
        let sent = self.ring.len() - self.fresh;
        // What acknowledges more than was sent says nothing.
        let done = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if done > sent {
            return;
        }
        self.ring.drain(..done);
        self.first += done as u64;
        let missing = usize::try_from(until.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let missing = missing.min(sent - done).min(EARLY);
        let is_due = |sent: &Sent| now.since(sent.last) >= ASKED;
        self.wanted = self.ring.iter().take(missing).take_while(|sent| is_due(sent)).count();
    }

    /// Blocks at the front that are sent again, since the first has waited for too long.
    pub fn overdue(&self, now: Nanos) -> usize {
        let sent = self.ring.len() - self.fresh;
        match self.ring.front() {
            Some(first) if sent > 0 && first.due() <= now => sent.min(AGAIN),
            _ => 0,
        }
    }

    /// The next block that was never sent.
    pub fn fresh(&self) -> Option<usize> {
        (self.fresh > 0).then(|| self.ring.len() - self.fresh)
    }

    /// Bytes of a block.
    pub fn len_of(&self, at: usize) -> usize {
        self.ring[at].records.len()
    }

    /// A block, which is sent now.
    pub fn send(&mut self, at: usize, stream: u16, now: Nanos) -> Block<'_> {
        let seq = self.first + at as u64;
        if at == self.ring.len() - self.fresh {
            self.fresh -= 1;
        } else {
            self.resent += 1;
        }
        let sent = &mut self.ring[at];
        if sent.times == 0 {
            sent.first = now;
        }
        sent.last = now;
        sent.times += 1;
        Block::Data { stream, seq, names: sent.names, records: &sent.records }
    }
}

impl Sent {
    fn due(&self) -> Nanos {
        self.last.plus(PATIENCE * (1 << self.times.saturating_sub(1).min(5)))
    }
}

/// The receiver's side.
#[derive(Debug)]
pub struct Incoming {
    /// All before this were taken.
    next: u64,
    /// What has come too early, with the names that it needs.
    early: BTreeMap<u64, (u32, Vec<u8>)>,
    /// The sender has sent all before this.
    told: u64,
    /// An acknowledgment is due.
    pub owes: bool,
}

impl Default for Incoming {
    fn default() -> Incoming {
        Incoming { next: 1, early: BTreeMap::new(), told: 1, owes: false }
    }
}

impl Incoming {
    /// A block has come. False: it was here before, or there is no room for it.
    pub fn receive(&mut self, seq: u64, names: u32, records: &[u8]) -> bool {
        self.owes = true;
        self.told = self.told.max(seq.saturating_add(1));
        let is_new = seq >= self.next && seq - self.next < EARLY as u64 && !self.early.contains_key(&seq);
        if is_new {
            self.early.insert(seq, (names, records.to_vec()));
        }
        is_new
    }

    /// The next block in order, if so many names are enough for it.
    pub fn take(&mut self, names: u32) -> Option<Vec<u8>> {
        let first = self.early.first_entry()?;
        if *first.key() != self.next || first.get().0 > names {
            return None;
        }
        self.next += 1;
        Some(first.remove().1)
    }

    /// The sender will number its next block so.
    pub fn note_state(&mut self, next: u64) {
        self.owes |= next > self.next;
        self.told = self.told.max(next);
    }

    /// What there is to say.
    pub fn ack(&mut self, stream: u16) -> Block<'static> {
        self.owes = false;
        let first_early = self.early.first_key_value().map(|(seq, _)| *seq).filter(|seq| *seq > self.next);
        let until = match first_early {
            Some(early) => early,
            None if self.early.is_empty() && self.told > self.next => self.told,
            None => 0,
        };
        Block::Ack { stream, next: self.next, until }
    }
}
