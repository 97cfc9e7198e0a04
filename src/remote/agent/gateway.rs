//! The gateway, over its control socket: asked how it is, and offered documents. Each time a new connection: a gateway that
//! was started anew is found by itself, and nothing of ours lies idle in the old one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::machine::{Document, Tried};
use crate::control::{Changed, Client, ClientError, FaultKind, Request, Version};

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

/// Offers a document, which the gateway then calls by its source.
pub fn apply(socket: &Path, document: &Document) -> (Tried, Option<Changed>) {
    let content = match &*document.content {
        Ok(content) => content,
        Err(why) => return (Tried::Refused(why.clone()), None),
    };
    let applied = || -> Result<Changed, ClientError> {
        let mut client = Client::connect(socket)?;
        client.limit_waits(APPLY_PATIENCE)?;
        client.apply(&document.source.to_string(), &content.text, &content.files)
    };
    match applied() {
        Ok(changed) => (Tried::Applied, Some(changed)),
        // It says nothing of the document.
        Err(ClientError::Fault(fault)) if passes(fault.kind) => (Tried::Unanswered(fault.message), None),
        Err(error) if error.is_refusal() => (Tried::Refused(error.to_string()), None),
        Err(error) => (Tried::Unanswered(error.to_string()), None),
    }
}
