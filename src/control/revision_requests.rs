//! What is asked about revisions, and what is answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::revisions::{Author, Revision};

/// Which revision to show. While the answer has `next`, ask again with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RevisionQuery {
    /// Its number; absent: the one in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// `next` of the answer before, of the same revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// A piece of the config of a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentPiece {
    /// The revision.
    pub revision: u64,
    /// `after` of the next piece; `None`: this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// It is still being read: ask again in a moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reading: bool,
    /// What the config is called.
    pub file_name: String,
    /// Of which file this is a piece: `""` is the config itself, others are route files by their path in it.
    pub name: String,
    /// What comes next of it.
    pub text: String,
}

/// The revisions that are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionList {
    /// The one in force.
    pub current: u64,
    /// Where they are kept; `None`: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    /// Some are in force that the disk has not taken yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unwritten: bool,
    /// The newest first.
    pub revisions: Vec<RevisionEntry>,
}

/// A revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RevisionEntry {
    /// What was kept of it.
    #[serde(flatten)]
    pub revision: Revision,
    /// By whom it was confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<Author>,
    /// In how many seconds it is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_back_in_s: Option<u64>,
}
