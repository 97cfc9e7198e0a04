//! Another process in the place of this one, on the same devices and with the same sessions.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Of `upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpgradeQuery {
    /// The program, by its absolute path; absent: the one that runs, as it is on the disk now. Only the user that the
    /// gateway runs as, and root, may name one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// Also if that costs sessions.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpgradePhase {
    /// The new process reads the config, makes its tables and takes the sessions on; this one serves.
    #[default]
    Starting,
    /// It is ready: this one leaves the devices to it and ends.
    SwitchingOver,
    /// It was given up: this process serves on.
    Failed,
    /// This process has taken another's place.
    Done,
}

/// To `upgrade`, and in `show.ha` until there is another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpgradeEntry {
    /// How far it is.
    pub phase: UpgradePhase,
    /// Version of this process.
    pub from: String,
    /// Version of the new one, once it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The new process.
    pub pid: u32,
    /// Why it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Of the new process: why it has bound the devices anew, which loses packets; absent: it has taken them as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anew: Option<String>,
    /// Of the new process: for how long, in microseconds, nothing was forwarded. What came then waited in the rings, unless
    /// the devices were bound anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
}
