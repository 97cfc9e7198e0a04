//! Copies of tables that threads share, for dry runs: what a copy learns, gives away or forgets nobody else sees.
//!
//! A word is copied whole; entries of several words that change meanwhile may be torn, and are then found by nobody.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A word that threads share.
pub(crate) trait Word {
    /// One that says the same now.
    fn copied(&self) -> Self;
}

impl Word for AtomicU32 {
    fn copied(&self) -> AtomicU32 {
        AtomicU32::new(self.load(Ordering::Acquire))
    }
}

impl Word for AtomicU64 {
    fn copied(&self) -> AtomicU64 {
        AtomicU64::new(self.load(Ordering::Acquire))
    }
}

impl<W: Word, const N: usize> Word for [W; N] {
    fn copied(&self) -> [W; N] {
        std::array::from_fn(|at| self[at].copied())
    }
}

/// A table of such words.
pub(crate) fn all<W: Word>(words: &[W]) -> Box<[W]> {
    words.iter().map(Word::copied).collect()
}
