//! What the agent writes back: JSON under `PREFIX/status/NODE`.

use std::time::SystemTime;

use serde::Serialize;

use super::machine::{Machine, Source, Standing};
use crate::control::{Changed, Version};

/// Longest reason, in bytes: a document can be wrong in thousands of lines, and etcd keeps each status.
const MAX_REASON_BYTES: usize = 8 << 10;

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The node.
    pub node: String,
    /// The version of the agent.
    pub agent: &'static str,
    /// Where the document stands.
    pub state: State,
    /// Why it stands there, where somebody should do something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The document that is to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<Wanted>,
    /// What the gateway answered when the agent last changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
    /// The gateway, as it says itself; absent: it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Health>,
    /// Since when all this is so (RFC 3339).
    pub since: String,
}

/// Where a document stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There is none.
    NoDocument,
    /// The gateway does not answer; it is asked again and again.
    GatewayUnreachable,
    /// It is about to be offered.
    Pending,
    /// The gateway says not now: another commit waits to be confirmed, or it has too much to do. It is asked again.
    Waiting,
    /// The gateway runs it, and takes it back unless the agent confirms it.
    OnTrial,
    /// The gateway has taken it back, and runs what it ran before.
    TakenBack,
    /// The gateway runs it.
    Applied,
    /// The gateway refused it, and runs what it ran before.
    Refused,
    /// The gateway runs one that was written later.
    Older,
    /// Somebody has applied another config since.
    Overridden,
}

/// A version of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Its key.
    pub key: String,
    /// etcd's revision of its last write.
    pub mod_revision: i64,
}

/// A change that the gateway made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// The document.
    #[serde(flatten)]
    pub document: Wanted,
    /// The gateway's generation with it.
    pub generation: u64,
    /// The revision that the gateway keeps it as, if it keeps any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// From the request to the moment the last worker used it.
    pub applied_us: u64,
    /// What the operator should know though nothing is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A gateway that answers. What moves by itself with time is left out: a status is written when something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Its version.
    pub version: String,
    /// Its name, `system.name`.
    pub name: String,
    /// What it calls the config it runs.
    pub config: String,
    /// The generation in use.
    pub generation: u64,
    /// The generation that no session's decision is older than.
    pub converged: u64,
    /// Its process.
    pub pid: u32,
}

impl From<&Source> for Wanted {
    fn from(source: &Source) -> Wanted {
        Wanted { key: source.key.clone(), mod_revision: source.mod_revision }
    }
}

impl From<Version> for Health {
    fn from(version: Version) -> Health {
        let Version { version, name, config, generation, converged, pid, .. } = version;
        Health { version, name, config, generation, converged, pid }
    }
}

impl Applied {
    /// What came of applying this document.
    pub fn new(source: &Source, changed: Changed) -> Applied {
        let Changed { generation, revision, applied_us, mut warnings, .. } = changed;
        let mut bytes = 0;
        warnings.retain(|warning| {
            bytes += warning.len();
            bytes <= MAX_REASON_BYTES
        });
        Applied { document: source.into(), generation, revision, applied_us, warnings }
    }
}

impl Status {
    /// How things stand now.
    pub fn new(node: &str, machine: &Machine, applied: Option<&Applied>, gateway: Option<&Health>) -> Status {
        let (state, reason) = match machine.standing() {
            Standing::NoDocument => (State::NoDocument, None),
            Standing::GatewayUnreachable(why) => (State::GatewayUnreachable, Some(why)),
            Standing::Pending => (State::Pending, None),
            Standing::Waiting(why) => (State::Waiting, Some(why)),
            Standing::OnTrial => (State::OnTrial, None),
            Standing::TakenBack(why) => (State::TakenBack, Some(why)),
            Standing::InForce => (State::Applied, None),
            Standing::Refused(why) => (State::Refused, Some(why)),
            Standing::Older => {
                let why = "the gateway runs a document that was written later: write this one anew if it is to \
                           run (an etcd that was restored counts revisions anew unless by --bump-revision)";
                (State::Older, Some(why.to_owned()))
            }
            Standing::Overridden => {
                let why = "somebody has applied another config; it stays until a document is written or the \
                           gateway or the agent is started anew";
                (State::Overridden, Some(why.to_owned()))
            }
        };
        Status {
            node: node.to_owned(),
            agent: env!("CARGO_PKG_VERSION"),
            state,
            reason: reason.map(short),
            document: machine.wanted().map(Wanted::from),
            applied: applied.cloned(),
            gateway: gateway.filter(|_| state != State::GatewayUnreachable).cloned(),
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        }
    }

    /// True if the other says the same, whenever it was written.
    pub fn says_what(&self, other: &Status) -> bool {
        *self == Status { since: self.since.clone(), ..other.clone() }
    }

    /// As it stands in etcd.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| unreachable!("it is plain data: {error}"))
    }
}

/// The beginning of a reason that is too long.
fn short(mut reason: String) -> String {
    let more = reason.len().saturating_sub(MAX_REASON_BYTES);
    if more > 0 {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        reason.push_str(&format!("\n... and {more} bytes more: `softgate check` says all of it"));
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::agent::machine::{Content, Document, Running, Seen, Tried};

    #[test]
    fn a_refusal_says_what_and_why() {
        let source = Source { key: "/softgate/config".into(), mod_revision: 7 };
        let content = Ok(Content { text: "schema = 2".into(), files: Vec::new() });
        let mut machine = Machine::default();
        machine.seen(Seen {
            shared: Some(Document { source: source.clone(), content: content.into() }),
            node: None,
        });
        machine.gateway(Ok(Running { pid: 1, started_s: 0, config: "gw.toml".into(), converged: 0 }));
        machine.tried(&source, Tried::Refused("ä".repeat(MAX_REASON_BYTES)));
        let health = Health::from(Version { pid: 1, config: "gw.toml".into(), ..Version::default() });
        let status = Status::new("gw1", &machine, None, Some(&health));
        assert_eq!(status.state, State::Refused);
        assert!(status.reason.as_ref().is_some_and(|reason| reason.len() < MAX_REASON_BYTES + 100));
        let json: serde_json::Value = serde_json::from_str(&status.json()).unwrap();
        assert_eq!((&json["state"], &json["document"]["mod_revision"]), (&"refused".into(), &7.into()));
        assert_eq!(json["gateway"]["config"], "gw.toml");
        assert!(status.says_what(&Status { since: "later".into(), ..status.clone() }));
        machine.gateway(Err("gone".into()));
        let gone = Status::new("gw1", &machine, None, Some(&health));
        assert!(!gone.says_what(&status) && gone.gateway.is_none());
    }
}
