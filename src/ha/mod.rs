//! High availability: what decides whether this node or its peer is the gateway, and what they tell each other.
//!
//! All of it is sans-I/O: frames and the time come in, frames and changed roles go out. The gateway's HA thread
//! (`gateway::ha`) has the sockets and the clock.

pub mod bfd;
pub mod contact;
pub mod drain;
pub mod neighbour;
pub mod one_hop;
pub mod sync;
pub mod two_phase;
pub mod vrrp;
