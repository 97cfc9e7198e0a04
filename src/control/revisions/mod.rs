//! Revisions: each commit of the config, numbered, on disk, so that it can be gone back to and a start begins where the
//! gateway was.
//!
//! A revision is a [`Document`]: the text that an operator applied, with the changes since written into it. Of dynamic
//! state nothing is in it: no learned neighbour or station, no member of a group or backend that goes by itself
//! (`--ttl`), no health. What an operator says of a backend (weight, drain, disabled) is config, and is.
//!
//! [`document`] writes changes into a text, `codec` knows how records lie on disk, both without I/O; [`store`] keeps
//! files of them, [`diff`] says what lies between two configs, [`choice`] what a start begins with.

pub mod choice;
mod codec;
pub mod diff;
pub mod document;
pub mod store;
#[cfg(test)]
mod tests;
mod written;

use std::time::SystemTime;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Fate;

pub use document::{Document, Unfit};
pub use store::{Store, StoreError};

/// Who asked for a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Author {
    /// User at the other end of the control socket; `None`: the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Their process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The role by which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// A commit that is taken back unless it is confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Confirm {
    /// Within how many seconds.
    pub within_s: u32,
    /// The revision to go back to.
    pub back_to: u64,
}

/// A commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    /// Its number; they go up by one.
    pub number: u64,
    /// When, RFC 3339.
    pub time: String,
    /// By whom.
    pub by: Author,
    /// By which request: `apply`, `commit`, `route.add`, `rollback`; `start` of a config file.
    pub request: String,
    /// About what, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub about: Vec<String>,
    /// Single changes in it.
    pub changes: u64,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What was said of live sessions that it would end.
    #[serde(default, skip_serializing_if = "Fate::is_usual")]
    pub fate: Fate,
    /// It is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Confirm>,
    /// It was committed on both nodes of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<Paired>,
}

/// A commit on both nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Paired {
    /// Its number, the same on both.
    pub commit: u64,
    /// The node that was asked for it.
    pub node: String,
    /// Which is this one.
    pub leads: bool,
}

impl Revision {
    /// The time, as revisions have it.
    pub fn now() -> String {
        humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
    }
}

/// A config file that a revision was made from: what tells a start whether the file has changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file, absolute.
    pub path: String,
    /// The revision.
    pub revision: u64,
    /// SHA-256 of the config and its route files, in hexadecimal digits.
    pub digest: String,
}

impl Source {
    /// Files that are remembered at most, the latest ones.
    pub const MOST: usize = 16;

    /// What tells this document from others.
    pub fn digest(document: &Document) -> String {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut add = |text: &str| {
            context.update(&(text.len() as u64).to_le_bytes());
            context.update(text.as_bytes());
        };
        add(&document.text);
        for (path, text) in &document.files {
            add(path);
            add(text);
        }
        context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
