//! Huge-page packet memory, prefetch and SIMD helpers: safe types over raw memory.
//! With `io` the only home of `unsafe`.
