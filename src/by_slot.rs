//! What there is one of per slot, for slots whose number is not known at the start: rule counters, buckets.

use std::sync::OnceLock;

/// Values per chunk.
const CHUNK: usize = 1024;
/// Most slots.
pub const MAX_SLOTS: usize = 1 << 20;
const CHUNKS: usize = MAX_SLOTS / CHUNK;

/// A dense array that the control thread makes longer while others read: it grows by chunks, which never move.
pub struct BySlot<T>(Box<[OnceLock<Box<[T]>>]>);

impl<T: Default> Default for BySlot<T> {
    fn default() -> BySlot<T> {
        BySlot((0..CHUNKS).map(|_| OnceLock::new()).collect())
    }
}

impl<T: Default> BySlot<T> {
    /// Makes room for slots below `count`, before anything that names them is published.
    pub fn reserve(&self, count: usize) {
        for chunk in &self.0[..count.div_ceil(CHUNK).min(CHUNKS)] {
            chunk.get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        }
    }

    /// The value in `slot`; `None`: there never was room for it.
    #[inline]
    pub fn get(&self, slot: usize) -> Option<&T> {
        self.0.get(slot / CHUNK)?.get().map(|chunk| &chunk[slot % CHUNK])
    }
}

impl<T> std::fmt::Debug for BySlot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let chunks = self.0.iter().filter(|chunk| chunk.get().is_some()).count();
        write!(f, "BySlot({} slots)", chunks * CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn values_stay_when_it_grows() {
        let values: BySlot<AtomicU64> = BySlot::default();
        assert!(values.get(0).is_none() && values.get(usize::MAX).is_none());
        values.reserve(1);
        let first = values.get(CHUNK - 1).expect("room");
        first.store(7, Ordering::Relaxed);
        assert!(values.get(CHUNK).is_none());
        values.reserve(CHUNK + 1);
        assert!(std::ptr::eq(first, values.get(CHUNK - 1).expect("room")));
        assert_eq!(values.get(CHUNK - 1).expect("room").load(Ordering::Relaxed), 7);
        assert!(values.get(CHUNK).is_some());
    }
}
