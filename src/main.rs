//! The `softgate` binary.
fn main() {}
