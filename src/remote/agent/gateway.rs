//! The gateway, over its control socket: asked how it is, and offered documents. Each time a new connection: a gateway that
//! was started anew is found by itself, and nothing of ours lies idle in the old one.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::machine::{Document, Tried};
use crate::config::{Fate, Seconds};
use crate::control::{
    Asked, Changed, Client, ClientError, FaultKind, Previewed, Request, RevisionList, SessionEntry,
    SessionFate, Terms, Version,
};

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

/// On which conditions a document is offered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// It is to be taken back after so long unless it is confirmed.
    pub confirm: Option<Seconds>,
    /// It is refused if it would end more live sessions.
    pub max_dropped: Option<u64>,
}

/// Sessions shown of each fate where a document is refused for them.
const EXAMPLES: u32 = 3;

/// Offers a document, which the gateway then calls by its source.
pub fn apply(socket: &Path, document: &Document, conditions: Conditions) -> (Tried, Option<Changed>) {
    let content = match &*document.content {
        Ok(content) => content,
        Err(why) => return (Tried::Refused(why.clone()), None),
    };
    let name = document.source.to_string();
    let Conditions { confirm, max_dropped } = conditions;
    let applied = || -> Result<Result<Changed, String>, ClientError> {
        let mut client = Client::connect(socket)?;
        client.limit_waits(APPLY_PATIENCE)?;
        let mut terms = Terms { confirm_s: confirm, ..Terms::default() };
        if let Some(most) = max_dropped {
            let previewed =
                client.preview(&name, &content.text, &content.files, (EXAMPLES, Fate::ReDecide), |_| {})?;
            if let Some(why) = ends_more(&previewed, most) {
                return Ok(Err(why));
            }
            // What was counted is what is applied to.
            terms.if_revision = previewed.revision;
        }
        client.apply_with(&name, &content.text, &content.files, None, terms).map(Ok)
    };
    match applied() {
        Ok(Err(why)) => (Tried::Refused(why), None),
        Ok(Ok(changed)) => {
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

/// Why a document is refused that would end more live sessions than `most`.
fn ends_more(previewed: &Previewed, most: u64) -> Option<String> {
    let ends = |fate: SessionFate| matches!(fate, SessionFate::Dropped | SessionFate::MappingLost);
    let count: u64 = previewed.fates.iter().filter(|one| ends(one.fate)).map(|one| one.sessions).sum();
    if count <= most {
        return None;
    }
    let mut why = format!("it would end {count} live sessions, and --max-dropped is {most}; among them");
    for example in previewed.examples.iter().filter(|example| ends(example.fate)) {
        let SessionEntry { protocol, source, source_port, destination, destination_port, .. } =
            &example.session;
        let (from, to) =
            (SocketAddr::new(*source, *source_port), SocketAddr::new(*destination, *destination_port));
        why.push_str(&format!("\n  {protocol} {from} > {to}: {}", example.why));
    }
    Some(why)
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
