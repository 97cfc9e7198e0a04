//! What must hold whatever a client sends. Fuzz targets and property tests run this.

use super::Backend;
use super::reply::{Changed, Reply, Version};
use super::request::Request;
use super::rpc::Fault;
use super::server::Limits;
use super::session::{Session, Shared, Turn};

/// A gateway without one: counts what it is asked to change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Nothing {
    generation: u64,
}

impl Backend for Nothing {
    fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
        match request {
            Request::Commit { patches, .. } => {
                self.generation += 1;
                let changed = patches.iter().map(|patch| patch.changes()).sum();
                Ok(Reply::Changed(Changed { generation: self.generation, changed, ..Changed::default() }))
            }
            Request::Apply { text, .. } if text.starts_with("schema") => {
                self.generation += 1;
                Ok(Reply::Changed(Changed { generation: self.generation, ..Changed::default() }))
            }
            Request::Apply { text, .. } => Err(Fault::refused(text)),
            Request::Begin {} | Request::Abort {} | Request::Ping {} | Request::Upload { .. } => {
                panic!("the session answers {request:?} itself")
            }
            _ => Ok(Reply::Version(Version::default())),
        }
    }
}

/// Small limits, so that short inputs reach them.
fn limits() -> Limits {
    Limits { line_bytes: 512, output_bytes: 1024, staged_bytes: 2048, ..Limits::default() }
}

/// Feeds `data` in pieces of `piece` bytes. Returns everything that was answered.
fn converse(data: &[u8], piece: usize) -> Vec<u8> {
    let (limits, mut shared, mut backend) = (limits(), Shared::default(), Nothing::default());
    let mut session = Session::default();
    let mut answers = Vec::new();
    'input: for bytes in data.chunks(piece.max(1)) {
        session.push(bytes);
        // Vectors double; both buffers keep 64 KiB for the next message.
        let most =
            2 * (bytes.len() + limits.line_bytes + limits.output_bytes + 8 * limits.line_bytes + (64 << 10));
        assert!(session.memory_bytes() <= 2 * most, "{} bytes of memory", session.memory_bytes());
        loop {
            let turn = session.run(&mut backend, &mut shared, &limits);
            assert!(shared.staged_bytes <= limits.staged_bytes, "the cap on staged bytes holds");
            // One answer may go beyond the cap: at most a line quoted back, escaped to six times its size.
            assert!(session.unsent().len() <= limits.output_bytes + 8 * limits.line_bytes + 4096);
            match turn {
                Turn::More => {}
                Turn::NeedsInput => break,
                Turn::OutputFull => {
                    // A slow client reads a little.
                    let some = session.unsent().len().div_ceil(2);
                    answers.extend_from_slice(&session.unsent()[..some]);
                    session.sent(some);
                }
                Turn::Closing => break 'input,
            }
        }
    }
    answers.extend_from_slice(session.unsent());
    session.end(&mut shared);
    assert_eq!(shared.staged_bytes, 0, "everything staged was given back");
    answers
}

/// What every answer looks like.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer<'a> {
    jsonrpc: &'a str,
    #[serde(rename = "id")]
    _id: serde::de::IgnoredAny,
    result: Option<serde::de::IgnoredAny>,
    error: Option<serde::de::IgnoredAny>,
}

/// The control protocol. The first byte chooses how the rest is cut into reads.
pub fn control(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let whole = converse(data, data.len());
    for answer in whole.split_inclusive(|byte| *byte == b'\n') {
        assert_eq!(answer.last(), Some(&b'\n'), "answers are whole lines");
        let answer: Answer<'_> = serde_json::from_slice(answer).expect("every answer is JSON-RPC");
        assert_eq!(answer.jsonrpc, "2.0");
        assert!(answer.result.is_some() != answer.error.is_some(), "either a result or an error");
    }
    let pieces = converse(data, usize::from(*first) + 1);
    assert_eq!(whole, pieces, "how bytes arrive changes nothing");
}
