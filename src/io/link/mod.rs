//! Links: what the kernel says about the devices ports sit on, and what has to be set on them.
//!
//! [`watch`] follows carrier, MTU, queues, loss and return of devices; [`ethtool`] reads and sets what a
//! driver can do; [`channels`] holds the rules by which a native attach is refused; [`probe`] tries what
//! a device really does, and [`findings`] puts it in an operator's words. [`accept`] makes a device let in what is
//! for us.

pub mod accept;
pub mod channels;
pub mod ethtool;
pub mod findings;
pub(in crate::io) mod netlink;
pub mod probe;
mod timer;
pub mod watch;

pub use accept::Accepted;
pub use ethtool::{Ethtool, OffloadGuard};
pub use findings::explain_bind_failure;
pub use watch::{LinkChange, LinkEvent, LinkKind, LinkState, LinkWatcher, XdpMode};
