//! `[commit]`: when a commit that waits to be confirmed is taken back before its time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::value::Ranged;

/// What becomes of live sessions that a commit would end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// What the rules and all else say of them now: they end in silence, as if their packets were lost.
    #[default]
    ReDecide,
    /// What only the rules refuse goes on until it ends by itself.
    Keep,
    /// They end, and both ends are told.
    Reset,
}

impl Fate {
    /// True unless somebody has said otherwise.
    pub fn is_usual(&self) -> bool {
        *self == Fate::ReDecide
    }
}

/// `[commit]`: how much worse than in the minute before it may get while a commit waits to be confirmed (`--confirm`).
/// Beyond any of these it is taken back at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Commit {
    /// Packets dropped in a second, for any reason.
    pub more_drops_pps: Ranged<0, 100_000_000>,
    /// New flows that came to nothing in a second: refused by policy or a limit, or by their backend.
    pub more_failed_flows_pps: Ranged<0, 100_000_000>,
    /// Backends that are down or ejected.
    pub more_unhealthy_backends: Ranged<0, 1_000_000>,
    /// Neighbours that do not answer any more.
    pub more_lost_neighbours: Ranged<0, 1_000_000>,
}

impl Default for Commit {
    /// What a network that is well does by itself in a minute stays below these.
    fn default() -> Commit {
        Commit {
            more_drops_pps: Ranged::constant(1000),
            more_failed_flows_pps: Ranged::constant(200),
            more_unhealthy_backends: Ranged::constant(2),
            more_lost_neighbours: Ranged::constant(8),
        }
    }
}
