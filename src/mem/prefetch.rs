//! Asks the CPU to fetch a cache line ahead of its use.

#![allow(unsafe_code, reason = "the prefetch instruction is an intrinsic over a raw pointer")]

/// [`prefetch`] for the first and the last line of a value that is two lines, or lies across two.
#[inline(always)]
pub fn prefetch_ends<T>(slice: &[T], index: usize) {
    prefetch(slice, index);
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: as in `prefetch`.
        unsafe {
            let last = slice.as_ptr().wrapping_add(index + 1).cast::<i8>().wrapping_sub(1);
            _mm_prefetch::<_MM_HINT_T0>(last);
        }
    }
}

/// Brings the cache line of `slice[index]` into the L1 cache; harmless if there is no such element.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint, it neither reads nor writes nor faults, whatever the address; and
        // the address is computed with wrapping_add, which asks for no bounds.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(slice.as_ptr().wrapping_add(index).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, index);
}
