//! The file of sessions: a header, then for each worker a place for every session of IPv4 and one for every session of IPv6.
//!
//! ```text
//! header   1,024 words: what `Header` says and its check, the latest sign of life, and from word 512 on the highest number
//!          of a session that each worker has kept, of both tables; then for each worker `slots` places of 16 words and
//!          `slots` of 24
//! place    sequence (32 bits, odd while it is written) and bytes (16, above it) · check · tick of the last packet · bytes
//! ```
//!
//! Words are of 64 bits in the machine's order: the file never leaves the machine. A place is written by one worker and read
//! by anybody. What an end in the middle leaves torn is found out by the sequence, or by the check, in which are the place,
//! the process and everything but the tick: that alone is stored on its own, as one word.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use crate::flow::Tick;
use crate::flow::flow_record::InTable;
use crate::ha::sync::wire;
use crate::packet::hash::fold;

/// "SGKEPT" and the number of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"SGKEPT\0\x01");
const HEADER_WORDS: usize = 1024;
/// Words of the header that its check is of.
const CHECKED: usize = 9;
/// Word of the latest sign of life.
pub(super) const ALIVE: usize = 16;
/// First of the words with the highest numbers.
const HIGHEST: usize = 512;
/// Words of a place before the bytes.
const HEAD_WORDS: usize = 3;
/// Words of a place: two cache lines for IPv4, three for IPv6. The longest record of each takes 101 and 149 bytes.
const PLACE_WORDS: [usize; 2] = [16, 24];
/// Most bytes in a place.
pub(super) const MOST_BYTES: usize = (PLACE_WORDS[1] - HEAD_WORDS) * 8;
/// An odd number without a pattern: 2^64 over the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// How often a place is read that changes meanwhile.
const TRIES: usize = 64;
/// Most workers of a node, and most sessions of one: beyond that a header is nonsense.
const MOST: (u64, u64) = (256, 1 << 25);

/// What is in the file, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Workers of the process.
    pub workers: u32,
    /// Places that each has in each of both tables.
    pub slots: u32,
    /// The machine's boot: what is older than that is of another time.
    pub boot: [u64; 2],
    /// The node.
    pub node: u64,
    /// The process: a random number.
    pub run: u64,
    /// When its clock began, in milliseconds since the boot.
    pub epoch_ms: u64,
}

/// Why there is nothing to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// Too short, or something else.
    #[error("it is no file of sessions, or was never finished")]
    Unknown,
    /// Of another version.
    #[error("its records are of version {0}, of which this release knows nothing")]
    Version(u64),
}

fn mixed(hash: u64, word: u64) -> u64 {
    fold(hash ^ word, MIX)
}

impl Header {
    /// Words of the file.
    pub fn words(&self) -> usize {
        HEADER_WORDS + self.workers as usize * self.slots as usize * (PLACE_WORDS[0] + PLACE_WORDS[1])
    }

    /// Places of all workers.
    pub fn places(&self) -> usize {
        self.workers as usize * self.slots as usize * 2
    }

    fn to_words(self) -> [u64; CHECKED] {
        let Header { workers, slots, boot, node, run, epoch_ms } = self;
        let version = u64::from(wire::VERSIONS.0);
        [MAGIC, version, workers.into(), slots.into(), boot[0], boot[1], node, run, epoch_ms]
    }

    fn check(words: &[u64; CHECKED]) -> u64 {
        words.iter().fold(MIX, |hash, word| mixed(hash, *word))
    }

    pub(super) fn store(&self, file: &[AtomicU64]) {
        let words = self.to_words();
        for (at, word) in file.iter().zip(words) {
            at.store(word, Relaxed);
        }
        file[CHECKED].store(Header::check(&words), Release);
    }

    pub(super) fn load(file: &[AtomicU64]) -> Result<Header, NotOurs> {
        if file.len() < HEADER_WORDS {
            return Err(NotOurs::Unknown);
        }
        let check = file[CHECKED].load(Acquire);
        let words: [u64; CHECKED] = std::array::from_fn(|at| file[at].load(Relaxed));
        let [magic, version, workers, slots, boot @ .., node, run, epoch_ms] = words;
        let is_sane = (1..=MOST.0).contains(&workers) && (1..=MOST.1).contains(&slots);
        if magic != MAGIC || check != Header::check(&words) || !is_sane {
            return Err(NotOurs::Unknown);
        }
        if !(u64::from(wire::VERSIONS.1)..=u64::from(wire::VERSIONS.0)).contains(&version) {
            return Err(NotOurs::Version(version));
        }
        let header = Header { workers: workers as u32, slots: slots as u32, boot, node, run, epoch_ms };
        if file.len() < header.words() { Err(NotOurs::Unknown) } else { Ok(header) }
    }

    /// The word with the highest number of a session that a worker has kept.
    pub(super) fn highest<'a>(&self, file: &'a [AtomicU64], worker: usize, table: InTable) -> &'a AtomicU64 {
        &file[HIGHEST + 2 * worker + usize::from(table == InTable::V6)]
    }

    pub(super) fn place<'a>(
        &self,
        file: &'a [AtomicU64],
        worker: usize,
        table: InTable,
        session: u32,
    ) -> Place<'a> {
        let slots = self.slots as usize;
        let base = HEADER_WORDS + worker * slots * (PLACE_WORDS[0] + PLACE_WORDS[1]);
        let (base, words) = match table {
            InTable::V4 => (base, PLACE_WORDS[0]),
            InTable::V6 => (base + slots * PLACE_WORDS[0], PLACE_WORDS[1]),
        };
        let at = base + session as usize * words;
        Place { words: &file[at..at + words], salt: mixed(self.run, at as u64) }
    }

    /// Numbers of the places that anything was ever kept in, among [`Header::places`].
    pub(super) fn used<'a>(&'a self, file: &'a [AtomicU64]) -> impl Iterator<Item = usize> + 'a {
        (0..2 * self.workers as usize).flat_map(|at| {
            let table = if at % 2 == 0 { InTable::V4 } else { InTable::V6 };
            let highest = self.highest(file, at / 2, table).load(Acquire).min(u64::from(self.slots) - 1);
            let first = at * self.slots as usize;
            first..=first + highest as usize
        })
    }

    /// One of [`Header::places`].
    pub(super) fn place_at<'a>(&self, file: &'a [AtomicU64], at: usize) -> Place<'a> {
        let slots = self.slots as usize;
        let (worker, rest) = (at / (2 * slots), at % (2 * slots));
        let table = if rest < slots { InTable::V4 } else { InTable::V6 };
        self.place(file, worker, table, (rest % slots) as u32)
    }
}

/// A session's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    words: &'a [AtomicU64],
    salt: u64,
}

/// What lies in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// Nothing.
    Nothing,
    /// Something that was never finished, or that is not what was written.
    Torn,
    /// So many bytes, of this sequence, with the tick of the last packet.
    Bytes(usize, u32, Tick),
}

impl Place<'_> {
    fn body(&self) -> &[AtomicU64] {
        &self.words[HEAD_WORDS..]
    }

    /// Writes what is there from now on. False: there is no room for so much.
    #[must_use]
    pub fn store(&self, bytes: &[u8], last_seen: Tick) -> bool {
        if bytes.len() > self.body().len() * 8 {
            return false;
        }
        let head = self.begin(bytes.len());
        let mut check = mixed(self.salt, head);
        for (at, chunk) in self.body().iter().zip(bytes.chunks(8)) {
            let word = match chunk.first_chunk() {
                Some(whole) => u64::from_le_bytes(*whole),
                None => (0..).zip(chunk).fold(0, |word, (at, byte)| word | u64::from(*byte) << (8 * at)),
            };
            check = mixed(check, word);
            at.store(word, Relaxed);
        }
        self.words[1].store(check, Relaxed);
        self.touch(last_seen);
        self.words[0].store(head, Release);
        true
    }

    /// Nothing is there any more.
    pub fn clear(&self) {
        let head = self.begin(0);
        self.words[0].store(head, Release);
    }

    /// Another packet has come.
    pub fn touch(&self, last_seen: Tick) {
        self.words[2].store(last_seen.0.into(), Relaxed);
    }

    /// Marks it as being written; the first word for when it is.
    fn begin(&self, bytes: usize) -> u64 {
        let sequence = self.words[0].load(Relaxed) as u32;
        self.words[0].store(u64::from(sequence | 1), Relaxed);
        fence(Release);
        u64::from((sequence | 1).wrapping_add(1)) | (bytes as u64) << 32
    }

    /// Changes whenever something else is there.
    pub fn head(&self) -> u64 {
        self.words[0].load(Acquire)
    }

    /// Reads what is there.
    pub fn load(&self, bytes: &mut [u8; MOST_BYTES]) -> Lies {
        for _ in 0..TRIES {
            let head = self.words[0].load(Acquire);
            if head & 1 != 0 {
                // Written just now, or never finished.
                std::hint::spin_loop();
                continue;
            }
            let len = (head >> 32) as usize;
            if len == 0 {
                return Lies::Nothing;
            }
            if len > self.body().len() * 8 {
                return Lies::Torn;
            }
            let mut check = mixed(self.salt, head);
            for (chunk, at) in bytes.chunks_exact_mut(8).zip(&self.body()[..len.div_ceil(8)]) {
                let word = at.load(Relaxed);
                check = mixed(check, word);
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            let (expected, last_seen) = (self.words[1].load(Relaxed), self.words[2].load(Relaxed));
            fence(Acquire);
            if self.words[0].load(Relaxed) != head {
                continue;
            }
            return match check == expected {
                true => Lies::Bytes(len, head as u32, Tick(last_seen as u32)),
                false => Lies::Torn,
            };
        }
        Lies::Torn
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: Header = Header { workers: 2, slots: 5, boot: [1, 2], node: 3, run: 4, epoch_ms: 5_000 };

    fn file(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    fn whole() -> Vec<AtomicU64> {
        let file = file(HEADER.words());
        HEADER.store(&file);
        file
    }

    fn bytes_of(place: &Place<'_>) -> Option<Vec<u8>> {
        let mut bytes = [0; MOST_BYTES];
        match place.load(&mut bytes) {
            Lies::Bytes(len, ..) => Some(bytes[..len].to_vec()),
            Lies::Nothing | Lies::Torn => None,
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_no_other_is() {
        assert_eq!(Header::load(&whole()), Ok(HEADER));
        assert_eq!(Header::load(&file(HEADER.words())), Err(NotOurs::Unknown));
        assert_eq!(Header::load(&whole()[..HEADER.words() - 1]), Err(NotOurs::Unknown), "cut");
        assert_eq!(Header::load(&[]), Err(NotOurs::Unknown));
        for at in 0..=CHECKED {
            for bit in 0..64 {
                let file = whole();
                file[at].fetch_xor(1 << bit, Relaxed);
                assert_eq!(Header::load(&file), Err(NotOurs::Unknown), "word {at}, bit {bit}");
            }
        }
        let (file, mut words) = (whole(), HEADER.to_words());
        words[1] = 99;
        file[1].store(99, Relaxed);
        file[CHECKED].store(Header::check(&words), Relaxed);
        assert_eq!(Header::load(&file), Err(NotOurs::Version(99)));
    }

    #[test]
    fn no_two_sessions_share_a_place() {
        let file = whole();
        for at in 0..HEADER.places() {
            assert!(HEADER.place_at(&file, at).store(&[at as u8; 100], Tick(at as u32)));
        }
        for at in 0..HEADER.places() {
            let mut bytes = [0; MOST_BYTES];
            let lies = HEADER.place_at(&file, at).load(&mut bytes);
            assert!(matches!(lies, Lies::Bytes(100, 2, Tick(tick)) if tick == at as u32), "{lies:?}");
            assert_eq!(bytes[..100], [at as u8; 100]);
        }
        assert_eq!(Header::load(&file), Ok(HEADER));
    }

    #[test]
    fn what_is_too_long_is_refused_and_what_was_there_stays() {
        let file = whole();
        let place = HEADER.place(&file, 1, InTable::V4, 4);
        assert!(place.store(&[7; 104], Tick(1)) && !place.store(&[8; 105], Tick(2)));
        assert_eq!(bytes_of(&place), Some(vec![7; 104]));
        place.clear();
        assert_eq!(place.load(&mut [0; MOST_BYTES]), Lies::Nothing);
        let long = HEADER.place(&file, 1, InTable::V6, 4);
        assert!(long.store(&[7; MOST_BYTES], Tick(1)) && !long.store(&[8; MOST_BYTES + 1], Tick(2)));
    }

    /// The stores that replace `before` by `after`, in the order of the program.
    fn stores(before: &[u8], after: &[u8]) -> (Vec<u64>, Vec<(usize, u64)>) {
        let words = |file: &[AtomicU64]| -> Vec<u64> { file.iter().map(|word| word.load(Relaxed)).collect() };
        let file = whole();
        let place = HEADER.place(&file, 0, InTable::V4, 1);
        assert!(place.store(before, Tick(1)));
        let old = words(place.words);
        assert!(place.store(after, Tick(2)));
        let new = words(place.words);
        let body = (HEAD_WORDS..old.len()).map(|at| (at, new[at]));
        let middle = body.chain([(1, new[1]), (2, new[2])]);
        let all = [(0, old[0] & 0xffff_ffff | 1)].into_iter().chain(middle).chain([(0, new[0])]);
        (old.clone(), all.collect())
    }

    #[test]
    fn an_end_after_any_store_leaves_the_old_the_new_or_what_is_known_to_be_torn() {
        let (before, after) = ([1; 100], [2; 90]);
        let (old, stores) = stores(&before, &after);
        for done in 0..=stores.len() {
            let file = whole();
            let place = HEADER.place(&file, 0, InTable::V4, 1);
            let all = old.iter().copied().enumerate().chain(stores[..done].iter().copied());
            all.for_each(|(at, word)| place.words[at].store(word, Relaxed));
            let expected = match done {
                0 => Some(before.to_vec()),
                done if done == stores.len() => Some(after.to_vec()),
                _ => None,
            };
            assert_eq!(bytes_of(&place), expected, "after {done} stores");
            // The next to have the place is not held up by it.
            assert!(place.store(&before, Tick(3)) && bytes_of(&place) == Some(before.to_vec()));
        }
    }

    #[test]
    fn a_place_in_which_any_byte_is_another_is_torn() {
        for at in 0..PLACE_WORDS[0] * 8 {
            let file = whole();
            let place = HEADER.place(&file, 0, InTable::V4, 1);
            assert!(place.store(&[9; 100], Tick(1)));
            place.words[at / 8].fetch_xor(0x10 << (at % 8 * 8), Relaxed);
            // The tick is on its own, and so is what lies behind the end.
            let is_harmless = (16..24).contains(&at) || at >= HEAD_WORDS * 8 + 104;
            assert_eq!(bytes_of(&place).is_some(), is_harmless, "byte {at}");
        }
    }

    #[test]
    fn a_place_of_another_process_or_session_is_torn() {
        let file = whole();
        assert!(HEADER.place(&file, 0, InTable::V4, 1).store(&[9; 100], Tick(1)));
        let other = Header { run: 5, ..HEADER };
        assert_eq!(bytes_of(&other.place(&file, 0, InTable::V4, 1)), None);
        let (from, to) = (HEADER.place(&file, 0, InTable::V4, 1), HEADER.place(&file, 0, InTable::V4, 2));
        from.words.iter().zip(to.words).for_each(|(from, to)| to.store(from.load(Relaxed), Relaxed));
        assert_eq!(bytes_of(&to), None);
    }

    #[test]
    fn who_reads_while_it_is_written_sees_one_or_the_other() {
        let file = whole();
        let place = HEADER.place(&file, 0, InTable::V4, 1);
        assert!(place.store(&[0; 100], Tick(1)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..200_000u32 {
                    assert!(HEADER.place(&file, 0, InTable::V4, 1).store(&[round as u8; 100], Tick(round)));
                }
            });
            for _ in 0..20_000 {
                if let Some(bytes) = bytes_of(&place) {
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{bytes:?}");
                }
            }
        });
    }

    proptest! {
        #[test]
        fn garbage_is_read_as_nothing_or_torn(words in prop::collection::vec(any::<u64>(), HEADER.words())) {
            let file: Vec<AtomicU64> = words.into_iter().map(AtomicU64::new).collect();
            prop_assert_eq!(Header::load(&file), Err(NotOurs::Unknown));
            HEADER.store(&file);
            for at in 0..HEADER.places() {
                prop_assert_eq!(bytes_of(&HEADER.place_at(&file, at)), None);
            }
        }
    }
}
