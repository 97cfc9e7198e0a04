//! The gateway, over its control socket: asked how it is, and offered documents. Each time a new connection: a gateway that
//! was started anew is found by itself, and nothing of ours lies idle in the old one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::machine::{Document, Tried};
use crate::config::Seconds;
use crate::control::{Asked, Changed, Client, ClientError, FaultKind, Request, RevisionList, Terms, Version};

/// Longest wait for a word on how it is: it answers between two changes, and the longest takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest wait for a document to be applied.
const APPLY_PATIENCE: Duration = Duration::from_secs(300);

/// How it is and when it was started, in seconds since `begun`; or why it does not say.
pub fn ask(socket: &Path, begun: Instant) -> Result<(Version, i64), String> {
    let asked = || -> Result<(Version, i64), ClientError> {
        let mut client = Client::connect(socket)?;
        client.limit_waits(PATIENCE)?;
        let version: Version = client.call(&Request::ShowVersion {})?;
        let started_s = (begun.elapsed().as_secs() as i64).saturating_sub_unsigned(version.uptime_s);
        Ok((version, started_s))
    };
    asked().map_err(|error| error.to_string())
}

/// Whether the same may be accepted a little later: somebody else's commit waits to be confirmed, too much is staged.
fn passes(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::Conflict | FaultKind::Internal | FaultKind::Limit)
}

/// Offers a document, which the gateway then calls by its source; it is to be taken back after `confirm`, if that is some,
/// unless it is confirmed.
pub fn apply(socket: &Path, document: &Document, confirm: Option<Seconds>) -> (Tried, Option<Changed>) {
    let content = match &*document.content {
        Ok(content) => content,
        Err(why) => return (Tried::Refused(why.clone()), None),
    };
    let applied = || -> Result<Changed, ClientError> {
        let mut client = Client::connect(socket)?;
        client.limit_waits(APPLY_PATIENCE)?;
        let terms = Terms { confirm_s: confirm, ..Terms::default() };
        client.apply_with(&document.source.to_string(), &content.text, &content.files, None, terms)
    };
    match applied() {
        Ok(changed) => {
            let (revision, generation) = (changed.revision, changed.generation);
            let on_trial = revision.filter(|_| changed.confirm_s.is_some());
            let tried = on_trial.map(|revision| Tried::OnTrial { revision, generation });
            (tried.unwrap_or(Tried::Applied), Some(changed))
        }
        // It says nothing of the document.
        Err(ClientError::Fault(fault)) if passes(fault.kind) => (Tried::NotNow(fault.message), None),
        Err(error) if error.is_refusal() => (Tried::Refused(error.to_string()), None),
        Err(error) => (Tried::Unanswered(error.to_string()), None),
    }
}

/// Confirms a revision. `Ok(false)`: it does not wait for that any more.
pub fn confirm(socket: &Path, revision: u64) -> Result<bool, String> {
    let confirmed = || -> Result<Changed, ClientError> {
        let mut client = Client::connect(socket)?;
        client.limit_waits(PATIENCE)?;
        client.call(&Request::Confirm { revision: Some(revision), asked: Asked::default() })
    };
    match confirmed() {
        Ok(_) => Ok(true),
        Err(ClientError::Fault(fault)) if matches!(fault.kind, FaultKind::Order | FaultKind::Conflict) => {
            Ok(false)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What the gateway wrote down of its last revision: why it took one back.
pub fn last_message(socket: &Path) -> Option<String> {
    let asked = || -> Result<RevisionList, ClientError> {
        let mut client = Client::connect(socket)?;
        client.limit_waits(PATIENCE)?;
        client.call(&Request::ShowRevisions {})
    };
    asked().ok()?.revisions.into_iter().next()?.revision.message
}
