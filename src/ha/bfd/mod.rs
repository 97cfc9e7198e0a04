//! BFD on one hop (RFC 5880, RFC 5881): whether packets get to a neighbour and back, known within some ten milliseconds.
//!
//! [`packet`] reads and writes control packets, [`machine`] is one session, [`engine`] runs all of a node. Asynchronous
//! mode alone: no echo, no authentication, Demand mode only as far as the other end asks for it.

pub mod engine;
pub mod machine;
pub mod packet;
#[cfg(test)]
mod tests;

pub use engine::{Engine, Output, Path, Plan, SessionPlan, Status};
pub use machine::{Action, Event, Machine, Settings};
pub use packet::{BadControl, Control, Diagnostic, Micros, State};
