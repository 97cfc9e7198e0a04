//! Who may speak: datagrams carry a tag that only who has the key can make, the run of the node that they are meant for,
//! and a number that is taken once.
//!
//! A run of a node is a random number. What was recorded while another run was on is not meant for this one; what the
//! peer sent in an earlier run of its own is known by that; what it sent in this one, by the number.

use ring::hmac;

use super::wire::{HEADER_BYTES, Header, TAG_BYTES, VERSIONS};
use crate::packet::hash::Key;

/// Numbers behind the highest that are still taken, once: as many as a link may reorder.
const WINDOW: u64 = 1024;
/// Runs of the peer that are remembered.
const RUNS: usize = 1024;
/// Shortest key: as many bits as the tag has (RFC 2104 section 3 wants no fewer than the hash; what is shorter than
/// this may be guessed).
const KEY_BYTES: usize = 16;

/// Why a datagram says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadDatagram {
    /// It is too short, or does not begin like one.
    Format,
    /// Whoever made it does not have the key.
    Tag,
    /// It speaks another version.
    Version,
    /// It is from this node itself.
    Own,
    /// It was heard before, or is from an earlier run.
    Replayed,
    /// It is meant for another run of this node.
    NotForUs,
    /// What is in it ends before it should, or is of no stream.
    Content,
}

impl BadDatagram {
    /// All.
    pub const ALL: [BadDatagram; 7] = [
        BadDatagram::Format,
        BadDatagram::Tag,
        BadDatagram::Version,
        BadDatagram::Own,
        BadDatagram::Replayed,
        BadDatagram::NotForUs,
        BadDatagram::Content,
    ];

    /// As commands print it.
    pub const fn name(self) -> &'static str {
        match self {
            BadDatagram::Format => "format",
            BadDatagram::Tag => "authentication",
            BadDatagram::Version => "version",
            BadDatagram::Own => "own",
            BadDatagram::Replayed => "replayed",
            BadDatagram::NotForUs => "other-run",
            BadDatagram::Content => "content",
        }
    }
}

/// The key of a pair.
#[derive(Clone, Debug)]
pub struct PairKey(hmac::Key);

/// A key is shorter than this many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key has {KEY_BYTES} bytes at least, this one has {0}; `head -c 32 /dev/urandom | base64` makes one"
)]
pub struct ShortKey(pub usize);

impl PairKey {
    /// Of any bytes.
    pub fn new(secret: &[u8]) -> Result<PairKey, ShortKey> {
        if secret.len() < KEY_BYTES {
            return Err(ShortKey(secret.len()));
        }
        Ok(PairKey(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// The run that follows one of this node: nobody else can tell which.
    pub(super) fn next_run(&self, run: u64) -> u64 {
        let next = hmac::sign(&self.0, &run.to_be_bytes());
        next.as_ref()[..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte)).max(1)
    }

    /// What the sums of audits are keyed with: the same on both nodes, and nobody else can tell.
    pub(super) fn audit_key(&self) -> Key {
        let sum = hmac::sign(&self.0, b"softgate audit");
        let word =
            |at: usize| sum.as_ref()[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Key(word(0), word(8))
    }

    /// Appends the tag.
    pub fn seal(&self, datagram: &mut Vec<u8>) {
        let tag = hmac::sign(&self.0, datagram);
        datagram.extend(&tag.as_ref()[..TAG_BYTES]);
    }

    /// The header and what follows it, if the tag is right. Nothing is read of what has a wrong one.
    pub fn open<'d>(&self, datagram: &'d [u8]) -> Result<(Header, &'d [u8]), BadDatagram> {
        let len = datagram.len().checked_sub(TAG_BYTES).ok_or(BadDatagram::Format)?;
        let (said, tag) = datagram.split_at(len);
        let header = Header::parse(said).ok_or(BadDatagram::Format)?;
        let expected = hmac::sign(&self.0, said);
        // Every byte is looked at: how long it takes says nothing about the tag.
        let differs = expected.as_ref().iter().zip(tag).fold(0, |differs, (a, b)| differs | (a ^ b));
        if differs != 0 {
            return Err(BadDatagram::Tag);
        }
        let (theirs, lowest) = header.versions;
        if theirs < VERSIONS.1 || lowest > VERSIONS.0 {
            return Err(BadDatagram::Version);
        }
        Ok((header, &said[HEADER_BYTES..]))
    }
}

/// Numbers that were taken.
#[derive(Clone, Debug)]
pub(super) struct Window {
    highest: u64,
    taken: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Window {
        Window { highest: 0, taken: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    /// True once for each number that is not too old. Numbers begin at 1.
    pub fn take(&mut self, number: u64) -> bool {
        if number == 0 || number.saturating_add(WINDOW) <= self.highest {
            return false;
        }
        if number > self.highest {
            let passed = (number - self.highest).min(WINDOW);
            (1..=passed).for_each(|step| self.put(self.highest.wrapping_add(step), false));
            self.highest = number;
        }
        let was_taken = self.taken[Self::word(number)] >> (number % 64) & 1 == 1;
        self.put(number, true);
        !was_taken
    }

    fn word(number: u64) -> usize {
        (number % WINDOW / 64) as usize
    }

    fn put(&mut self, number: u64, is_taken: bool) {
        let (word, bit) = (&mut self.taken[Self::word(number)], 1 << (number % 64));
        *word = if is_taken { *word | bit } else { *word & !bit };
    }
}

/// Runs of the peer that are over.
#[derive(Clone, Debug, Default)]
pub(super) struct Past(std::collections::VecDeque<u64>);

impl Past {
    /// A run is over.
    pub fn note(&mut self, run: u64) {
        if self.0.len() == RUNS {
            self.0.pop_front();
        }
        self.0.push_back(run);
    }

    /// True if it is.
    pub fn has(&self, run: u64) -> bool {
        self.0.contains(&run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the slow way: a set of all that was taken.
        #[test]
        fn each_number_is_taken_once(numbers in prop::collection::vec(0_u64..3000, 1..400), base in 0_u64..3) {
            let base = [0, 5000, u64::MAX - 3000][base as usize];
            let (mut window, mut taken) = (Window::default(), std::collections::BTreeSet::new());
            for number in numbers {
                let number = base + number;
                let highest = taken.last().copied().unwrap_or(0);
                let is_new = number > 0 && number.saturating_add(WINDOW) > highest && taken.insert(number);
                prop_assert_eq!(window.take(number), is_new, "{}", number);
            }
        }
    }

    #[test]
    fn a_changed_bit_is_seen() {
        let key = PairKey::new(&[7; 32]).expect("long enough");
        let header = Header { versions: VERSIONS, from: 1, to: 2, number: 3 };
        let mut datagram = [&header.emit()[..], &[5, 0, 0]].concat();
        key.seal(&mut datagram);
        assert_eq!(key.open(&datagram), Ok((header, &[5, 0, 0][..])));
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(&changed).is_err(), "{bit}");
        }
        for len in 0..datagram.len() {
            assert!(key.open(&datagram[..len]).is_err(), "{len}");
        }
        let other = PairKey::new(&[8; 32]).expect("long enough");
        assert_eq!(other.open(&datagram), Err(BadDatagram::Tag));
        assert!(PairKey::new(&[1; 15]).is_err());
    }

    #[test]
    fn versions_that_do_not_overlap_are_refused() {
        let key = PairKey::new(&[7; 32]).expect("long enough");
        let newer = VERSIONS.0 + 1;
        for (versions, fits) in
            [((1, 1), true), ((2, 1), true), ((newer, 2), true), ((newer, newer), false), ((0, 0), false)]
        {
            let mut datagram = Header { versions, from: 1, to: 2, number: 3 }.emit().to_vec();
            key.seal(&mut datagram);
            assert_eq!(key.open(&datagram).is_ok(), fits, "{versions:?}");
        }
    }
}
