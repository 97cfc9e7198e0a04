//! State of flows: what a worker remembers between two packets.

pub mod nat;
