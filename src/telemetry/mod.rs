//! Counters and the drop recorder: written by one worker, read by anyone.

mod counters;
pub mod events;
pub mod fates;
mod recorder;

pub use counters::{
    InterfaceCounters, PoolCounters, RELAY_REASONS, RelayCounters, ReplicaCounters, RuleCounters, Totals,
    WorkerCounters, add,
};
pub use recorder::{DropRecord, DropRecorder, RECORD_BYTES};
