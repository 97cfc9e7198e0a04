//! VRRP version 3 (RFC 9568): several routers, one address.
//!
//! [`advert`] reads and writes advertisements, [`machine`] is the state machine of one virtual router, [`engine`] runs
//! all of a node: groups that move together, announcements, counters.

pub mod advert;
pub mod announce;
pub mod engine;
pub mod machine;
#[cfg(test)]
mod tests;

pub use crate::config::{BadInterval, Centiseconds, virtual_mac};
pub use advert::{Advert, BadAdvert};
pub use engine::{Also, Engine, LINGER, Leave, Output, Plan, RouterPlan, Status};
pub use machine::{Action, Event, Machine, Settings, State};

/// Priority of whoever leaves (RFC 9568 section 5.2.4).
pub const LEAVING: u8 = 0;

/// Priority of the address owner (RFC 9568 section 5.2.4).
pub const OWNER: u8 = 255;
