//! Packets: a frame with its metadata, verdicts, drop reasons, checksums and the keyed hash.

pub mod checksum;
mod drop_reason;
mod embedding;
pub mod hash;
mod meta;
pub mod siphash;
pub mod view;

pub use drop_reason::{DropReason, IcmpError};
pub use embedding::Embedding;
pub use meta::{Burst, Family, Handle, Ingress, Meta, Packet, Pass, Tags, Verdict, Why, flags, positions};
