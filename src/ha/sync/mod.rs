//! Replication of sessions between two nodes: what is said, and how it arrives although datagrams get lost.
//!
//! ```text
//! wire     datagrams, blocks, records
//! names    the dictionary of slots
//! stream   blocks in order, each once
//! seal     who may speak: authentication, and nothing is heard twice
//! audit    whether the other node has the same
//! letters  messages of any length, for those who have something else to say to each other
//! machine  the node's side of it all
//! ```
//!
//! Each node tells what it sees; nobody is asked to be the first. A node has a stream for names and one for each of its
//! workers. Blocks of records are numbered, acknowledged up to a number, and sent again if they are missed. Records are
//! idempotent: a session *is* so, or has gone. What a sender has no room to keep is lost, and made good by a *resync*: it
//! tells of all its sessions, while what changes goes on being told, and the receiver ends what it was not told of.
//!
//! Without I/O and clock: datagrams and the time come in, datagrams and what was told come out. The thread `pair`
//! (`gateway::pair`) has the socket.

pub mod audit;
mod letters;
pub mod machine;
mod names;
mod seal;
mod stream;
pub mod wire;

pub use letters::LETTER_BYTES;
pub use machine::{Link, Machine, Status, Told, own_slot};
pub use names::Names;
pub use seal::{BadDatagram, PairKey};
