//! What is said with a commit: why, on which condition, and whether it stays.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::revisions::{Author, Paired};
use super::rpc::{Fault, FaultKind};
use crate::config::{Fate, Seconds};

/// What a client says with `apply`, `commit` and `rollback`, and what the session adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Terms {
    /// Why it is done; at most [`Terms::MOST_BYTES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It is taken back after so long unless `confirm` comes before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_s: Option<Seconds>,
    /// Only if this revision is in force; absent in a transaction: the one that was when it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// A transaction is committed whatever others have committed since it began.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rebase: bool,
    /// What becomes of live sessions that it would end.
    #[serde(skip_serializing_if = "Fate::is_usual")]
    pub fate: Fate,
    /// On both nodes of the pair, or on neither: answered when it has begun, see `show.pair-commit`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pair: bool,
    /// With `pair`: also if both have not the same config now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pair_force: bool,
    /// The commit on both nodes of which this is one node's part.
    #[serde(skip)]
    pub paired: Option<Paired>,
    /// Who asks for what.
    #[serde(skip)]
    pub asked: Asked,
}

/// Who asks for a change, as the session knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Who.
    pub by: Author,
    /// By which request.
    pub request: String,
    /// About what, the first few things.
    pub about: Vec<String>,
}

impl Terms {
    /// Longest reason that is kept.
    pub const MOST_BYTES: usize = 512;

    /// Nothing but who.
    pub fn by(asked: Asked) -> Terms {
        Terms { asked, ..Terms::default() }
    }

    /// True if a client says nothing.
    pub fn are_none(&self) -> bool {
        self.message.is_none()
            && self.confirm_s.is_none()
            && self.if_revision.is_none()
            && !self.rebase
            && !self.pair
            && !self.pair_force
            && self.fate.is_usual()
    }

    /// What can be kept.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let wrong = |message: String| Err(Fault::new(FaultKind::InvalidParams, message));
        match &self.message {
            Some(message) if message.len() > Terms::MOST_BYTES => {
                wrong(format!("message: at most {} bytes", Terms::MOST_BYTES))
            }
            Some(message) if message.chars().any(char::is_control) => {
                wrong(String::from("message: one line of text without control characters"))
            }
            _ if self.pair && self.confirm_s.is_some() => {
                wrong(String::from("pair: it is confirmed by the other node, and by nobody else"))
            }
            _ if self.pair_force && !self.pair => wrong(String::from("pair_force: of pair")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_both_nodes_nobody_else_confirms() {
        let said = |text: &str| serde_json::from_str::<Terms>(text).expect("terms").check();
        assert_eq!(said(r#"{ "pair": true, "pair_force": true, "message": "why" }"#), Ok(()));
        let wrong = said(r#"{ "pair": true, "confirm_s": 60 }"#).expect_err("two who confirm").message;
        assert!(wrong.starts_with("pair: "), "{wrong}");
        let wrong = said(r#"{ "pair_force": true }"#).expect_err("nothing to force").message;
        assert!(wrong.starts_with("pair_force: "), "{wrong}");
        assert!(!Terms { pair: true, ..Terms::default() }.are_none());
    }
}
