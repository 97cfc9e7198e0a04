//! The control protocol: every line is answered with JSON, limits hold, what was staged is given
//! back, and it makes no difference how the bytes were cut into reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| softgate::control::fuzzing::control(data));
