//! etcd, as far as the agent needs it (crate `etcd-client`, API v3).
//!
//! A look reads both keys in one transaction, so both are of one revision, and reads what they name at that revision. A
//! watch only says that it is worth looking again: nothing is lost if it breaks off, or if etcd has compacted what it
//! would have told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, KeyValue, KvClient, PutOptions,
    TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::machine::{Content, Document, Seen, Source};
use super::settings::{Keys, Settings, Tls};
use crate::config;

/// Longest wait for an answer; a leader is elected anew in a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection over which nothing comes is asked for a sign of life so often, and given up after.
const SIGN_OF_LIFE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Largest value taken. etcd itself takes 1.5 MiB unless it was told otherwise (`--max-request-bytes`).
const MAX_VALUE_BYTES: usize = 32 << 20;

/// Route files one document may name.
const MAX_FILES: usize = 1024;

/// Largest document with its route files.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// A connection to etcd, with a lease that is kept alive.
pub struct Store {
    client: Client,
    kv: KvClient,
    keys: Keys,
    lease: i64,
    renewal: JoinHandle<String>,
    /// What the looks before found: a large document is not fetched again because a small key moved.
    known: Vec<Document>,
}

/// Says when it is worth looking again.
pub struct Watch {
    shared: WatchStream,
    own: WatchStream,
}

impl Store {
    /// Connects, and takes out a lease for the status.
    pub async fn connect(settings: &Settings) -> Result<Store, String> {
        let (interval, wait) = SIGN_OF_LIFE;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(interval, wait)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(Tls { ca, identity }) = &settings.tls {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((cert, key)) = identity {
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(tls);
        }
        if let Some((user, password)) = &settings.user {
            options = options.with_user(user, password);
        }
        let mut client = in_time("connect", Client::connect(&settings.endpoints, Some(options))).await?;
        let seconds = i64::try_from(settings.lease.as_secs()).unwrap_or(i64::MAX);
        let lease = in_time("take out a lease", client.lease_grant(seconds, None)).await?.id();
        let renewal = tokio::spawn(renew(client.clone(), lease, settings.lease / 3));
        let kv = client.kv_client().max_decoding_message_size(2 * MAX_VALUE_BYTES);
        Ok(Store { client, kv, keys: settings.keys.clone(), lease, renewal, known: Vec::new() })
    }

    /// What both keys say, and the revision they say it at.
    pub async fn look(&mut self) -> Result<(Seen, i64), String> {
        let read = |key: &str| TxnOp::get(key, None);
        let both = Txn::new().and_then([read(&self.keys.shared), read(&self.keys.own)]);
        let answer = in_time("read the documents", self.kv.txn(both)).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut found = Vec::new();
        for response in answer.op_responses() {
            let TxnOpResponse::Get(mut got) = response else { continue };
            found.push(got.take_kvs().into_iter().next());
        }
        let own = found.pop().flatten();
        let shared = found.pop().flatten();
        let seen = Seen {
            shared: self.document(shared, revision).await?,
            node: self.document(own, revision).await?,
        };
        self.known = [&seen.shared, &seen.node].into_iter().flatten().cloned().collect();
        Ok((seen, revision))
    }

    /// The document of a key, with the route files it names, all as of this revision.
    async fn document(&mut self, found: Option<KeyValue>, revision: i64) -> Result<Option<Document>, String> {
        let Some(found) = found else { return Ok(None) };
        let source = Source {
            key: String::from_utf8_lossy(found.key()).into_owned(),
            mod_revision: found.mod_revision(),
        };
        if let Some(known) = self.known.iter().find(|known| known.source == source) {
            return Ok(Some(known.clone()));
        }
        let content = match text(&source.key, found.value()) {
            Ok(text) => self.with_files(text, revision).await?,
            Err(why) => Err(why),
        };
        Ok(Some(Document { source, content: Arc::new(content) }))
    }

    /// The outer failure is etcd's, the inner one the document's.
    async fn with_files(
        &mut self,
        text_of: String,
        revision: i64,
    ) -> Result<Result<Content, String>, String> {
        let mut seen = HashSet::new();
        let paths: Vec<String> =
            config::route_file_paths(&text_of).into_iter().filter(|path| seen.insert(path.clone())).collect();
        if paths.len() > MAX_FILES {
            return Ok(Err(format!("a document names at most {MAX_FILES} route files")));
        }
        let mut bytes = text_of.len();
        let mut files = Vec::new();
        for path in paths {
            let key = format!("{}{path}", self.keys.files);
            let at = GetOptions::new().with_revision(revision);
            let mut answer = in_time("read a route file", self.kv.get(key.as_str(), Some(at))).await?;
            let Some(found) = answer.take_kvs().into_iter().next() else {
                return Ok(Err(format!(
                    "route_file {path:?}: etcd has no key {key}; write it before the document"
                )));
            };
            bytes += found.value().len();
            if bytes > MAX_DOCUMENT_BYTES {
                let most = MAX_DOCUMENT_BYTES >> 20;
                return Ok(Err(format!("the document and its route files are larger than {most} MiB")));
            }
            match text(&key, found.value()) {
                Ok(text) => files.push((path, text)),
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(Ok(Content { text: text_of, files }))
    }

    /// Waits for writes behind this revision.
    pub async fn watch(&mut self, revision: i64) -> Result<Watch, String> {
        let mut one = async |key: &str| {
            let from = WatchOptions::new().with_start_revision(revision + 1);
            in_time("watch a key", self.client.watch(key, Some(from))).await
        };
        Ok(Watch { shared: one(&self.keys.shared).await?, own: one(&self.keys.own).await? })
    }

    /// Writes the status; it lives as long as the lease does.
    pub async fn report(&mut self, status: &str) -> Result<(), String> {
        let leased = PutOptions::new().with_lease(self.lease);
        let put = self.kv.put(self.keys.status.as_str(), status, Some(leased));
        in_time("write the status", put).await.map(drop)
    }

    /// Returns when the lease cannot be kept, and says why.
    pub async fn lease_lost(&mut self) -> String {
        (&mut self.renewal).await.unwrap_or_else(|error| error.to_string())
    }

    /// Gives the lease back: the status goes away at once.
    pub async fn leave(&mut self) -> Result<(), String> {
        in_time("give the lease back", self.client.lease_revoke(self.lease)).await.map(drop)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Watch {
    /// Returns when something was written, or fails when that cannot be known any more: then look again, and watch anew.
    pub async fn changed(&mut self) -> Result<(), String> {
        loop {
            let message = tokio::select! {
                message = self.shared.message() => message,
                message = self.own.message() => message,
            };
            let message = message.map_err(|error| format!("watch: {}", explain(&error)))?;
            let Some(message) = message else { return Err("watch: etcd has ended it".into()) };
            if message.compact_revision() > 0 {
                return Err("watch: etcd has compacted what it was to tell".into());
            }
            if message.canceled() {
                return Err(format!("watch: etcd has ended it: {}", message.cancel_reason()));
            }
            if !message.events().is_empty() {
                return Ok(());
            }
        }
    }
}

/// Keeps a lease alive; returns why that failed.
async fn renew(mut client: Client, lease: i64, every: Duration) -> String {
    let renewed = async {
        let (mut keeper, mut answers) = in_time("renew the lease", client.lease_keep_alive(lease)).await?;
        loop {
            tokio::time::sleep(every).await;
            in_time("renew the lease", keeper.keep_alive()).await?;
            match in_time("renew the lease", answers.message()).await? {
                Some(answer) if answer.ttl() > 0 => {}
                Some(_) => return Err("the lease has run out".to_owned()),
                None => return Err("etcd has ended the renewal of the lease".to_owned()),
            }
        }
    };
    let ended: Result<(), String> = renewed.await;
    ended.err().unwrap_or_default()
}

/// The text of a value, or why it is none.
fn text(key: &str, value: &[u8]) -> Result<String, String> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(format!("{key}: larger than {} MiB", MAX_VALUE_BYTES >> 20));
    }
    let text = std::str::from_utf8(value)
        .map_err(|error| format!("{key}: not UTF-8 from byte {} on", error.valid_up_to()))?;
    Ok(text.to_owned())
}

async fn in_time<T>(what: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match timeout(PATIENCE, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("cannot {what}: {}", explain(&error))),
        Err(_) => Err(format!("cannot {what}: no answer within {} s", PATIENCE.as_secs())),
    }
}

/// An error with what caused it, each once: what tonic says of itself is "transport error".
fn explain(error: &Error) -> String {
    let (mut said, mut cause) = match error {
        Error::TransportError(error) => (error.to_string(), std::error::Error::source(error)),
        Error::GRpcStatus(status) => {
            (format!("{:?}: {}", status.code(), status.message()), std::error::Error::source(status))
        }
        other => (other.to_string(), None),
    };
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_said_so() {
        assert_eq!(text("/k", b"schema = 1"), Ok("schema = 1".into()));
        assert_eq!(text("/k", b"ab\xff"), Err("/k: not UTF-8 from byte 2 on".into()));
        assert_eq!(text("/k", &vec![b' '; MAX_VALUE_BYTES + 1]), Err("/k: larger than 32 MiB".into()));
    }
}
