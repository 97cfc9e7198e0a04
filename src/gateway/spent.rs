//! Where the time of a change goes, for who measures it (`cargo bench --bench commits`).

use std::time::{Duration, Instant};

/// Parts of the time that the last commit took. What is left of the whole is compiling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// What the assertions of the config asked of the candidate.
    pub gates: Duration,
    /// Until every worker used the new tables, and the old ones were freed.
    pub publish: Duration,
    /// Until the revision was on disk.
    pub write: Duration,
}

impl Spent {
    /// Notes the time since `begun` in one of the parts.
    pub(super) fn add(part: &mut Duration, begun: Instant) {
        *part += begun.elapsed();
    }
}
