//! Links: what the kernel says about the devices ports sit on, and what has to be set on them.
//!
//! [`watch`] follows carrier, MTU, queues, loss and return of devices; [`ethtool`] reads and sets what a

pub mod channels;
pub mod ethtool;
mod netlink;
pub mod watch;

pub use ethtool::{Ethtool, OffloadGuard};
pub use watch::{LinkChange, LinkEvent, LinkKind, LinkState, LinkWatcher, XdpMode};
