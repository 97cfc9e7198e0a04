//! The time stamp counter: what benchmarks count in.
#![allow(unsafe_code, reason = "an intrinsic without a safe name")]

/// TSC cycles since some start. Constant rate on every CPU with `constant_tsc`, whatever the core's clock.
#[inline]
pub fn cycles() -> u64 {
    // SAFETY: RDTSC reads a register and has no other effect; every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
