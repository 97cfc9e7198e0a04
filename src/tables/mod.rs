//! Immutable lookup tables, compiled from the config; no lock, no clock.
pub mod fib4;
pub mod fib6;
mod fib_intervals;
mod fib_tree;
#[cfg(test)]
mod fib_twin;

/// A route's result: index into the VRF's actions; 0 = no route.
pub type Leaf = u16;
