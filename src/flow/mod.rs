//! Flows: what the gateway remembers of the packets it has let through.

pub mod tcp;
