//! Links: what the kernel says about the devices ports sit on, and what has to be set on them.
//!
//! [`watch`] follows carrier, MTU, queues, loss and return of devices; [`ethtool`] reads and sets what a

pub mod channels;
pub mod ethtool;
// findings
mod netlink;
// probe
mod timer;
pub mod watch;

pub use ethtool::{Ethtool, OffloadGuard};
// pub use
pub use watch::{LinkChange, LinkEvent, LinkKind, LinkState, LinkWatcher, XdpMode};
