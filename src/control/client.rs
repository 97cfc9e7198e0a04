//! The other end of the socket: what the command line and tests talk through.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::preview::{PreviewQuery, PreviewStage, Previewed};
use super::reply::{Changed, RouteEntry, RoutePage, Staged};
use super::request::{Request, RouteKey, RoutesQuery};
use super::revision_requests::{DocumentPiece, RevisionQuery};
use super::revisions::Document;
use super::rpc::{self, Fault, FaultKind};
use super::terms::Terms;
use crate::config::{Fate, Route};

/// Why a request got no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("{0}")]
    Unreachable(String),
    /// The gateway refused or could not.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// What came back is no answer to what was asked.
    #[error("the answer is not understood ({0}); is the gateway of another version?")]
    Strange(String),
}

/// Longest answer: a drop export of everything the recorder holds is far below.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// Size of the pieces that large changes are sent in.
const CHUNK_BYTES: usize = 1 << 20;

/// Pieces on the way: the gateway reads one while the next is written.
const WINDOW: usize = 2;

/// When a gateway that still reads a revision is asked again.
const AGAIN: Duration = Duration::from_millis(20);

/// How long a gateway may be busy with reading before the next piece of a revision comes.
const READING: Duration = Duration::from_secs(60);

/// A connection to a running gateway.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    next_id: u64,
    line: Vec<u8>,
    out: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn connect(path: impl AsRef<Path>) -> Result<Client, ClientError> {
        let path = path.as_ref();
        let unreachable = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "no gateway runs there; start `softgate run`, or give --socket PATH"
                }
                io::ErrorKind::ConnectionRefused => {
                    "the gateway that made the socket is gone; start `softgate run`"
                }
                io::ErrorKind::PermissionDenied => {
                    "only its owner, and the [control] group, may use it; try with sudo"
                }
                _ => "is a gateway running there?",
            };
            ClientError::Unreachable(format!("cannot reach {}: {error}; {hint}", path.display()))
        };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        let reader = BufReader::with_capacity(256 * 1024, stream.try_clone().map_err(unreachable)?);
        Ok(Client { stream, reader, next_id: 1, line: Vec::new(), out: Vec::new() })
    }

    /// Gives up on a gateway that is silent for so long. Without it one that is busy is waited for however long it takes.
    pub fn limit_waits(&mut self, most: Duration) -> Result<(), ClientError> {
        let limited =
            self.stream.set_read_timeout(Some(most)).and_then(|()| self.stream.set_write_timeout(Some(most)));
        limited.map_err(|error| lost(&error))
    }

    /// Asks and waits for the result.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let id = self.send(request)?;
        self.receive(id)
    }

    /// All routes that match, page by page; each goes to `page`, which says whether it wants more.
    pub fn routes(
        &mut self,
        mut query: RoutesQuery,
        mut page: impl FnMut(Vec<RouteEntry>) -> bool,
    ) -> Result<(), ClientError> {
        loop {
            let answer: RoutePage = self.call(&Request::ShowRoutes(query.clone()))?;
            let more = page(answer.routes);
            match answer.next {
                // A gateway that says where we are already would have us ask for ever.
                next @ Some(_) if more && next != query.after => query.after = next,
                _ => return Ok(()),
            }
        }
    }

    /// Replaces the whole config; `files` are its route files by the path in the config.
    pub fn apply(
        &mut self,
        file_name: &str,
        text: &str,
        files: &[(String, String)],
    ) -> Result<Changed, ClientError> {
        self.apply_with(file_name, text, files, None, Terms::default())
    }

    /// The same, saying more: the file it was read from, absolute, and why and how it is done.
    pub fn apply_with(
        &mut self,
        file_name: &str,
        text: &str,
        files: &[(String, String)],
        path: Option<String>,
        terms: Terms,
    ) -> Result<Changed, ClientError> {
        self.upload(text, files)?;
        let (file_name, text) = (file_name.to_owned(), String::new());
        let changed = self.call(&Request::Apply { file_name, text, files: Vec::new(), path, terms })?;
        self.ended(changed)
    }

    /// Waits until a change is done that both nodes make; others are when they are answered.
    pub fn ended(&mut self, mut changed: Changed) -> Result<Changed, ClientError> {
        while let Some(commit) = changed.under_way() {
            std::thread::sleep(AGAIN);
            changed = self.call(&Request::ShowPairCommit { commit: Some(commit) })?;
        }
        Ok(changed)
    }

    /// What a config would do to the sessions there are; each answer on the way goes to `told`.
    pub fn preview(
        &mut self,
        file_name: &str,
        text: &str,
        files: &[(String, String)],
        (examples, fate): (u32, Fate),
        mut told: impl FnMut(&Previewed),
    ) -> Result<Previewed, ClientError> {
        self.upload(text, files)?;
        let mut query = PreviewQuery {
            file_name: file_name.to_owned(),
            examples: Some(examples),
            fate,
            ..PreviewQuery::default()
        };
        loop {
            let answer: Previewed = self.call(&Request::Preview(query))?;
            told(&answer);
            if answer.next.is_none() {
                return Ok(answer);
            }
            query = PreviewQuery { after: answer.next, ..PreviewQuery::default() };
            if answer.stage != PreviewStage::Judging {
                std::thread::sleep(AGAIN);
            }
        }
    }

    /// Brings a config and its route files near.
    fn upload(&mut self, text: &str, files: &[(String, String)]) -> Result<(), ClientError> {
        let mut waiting = VecDeque::new();
        let config = std::iter::once(("", text));
        for (name, text) in config.chain(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))) {
            let mut rest = text;
            loop {
                let (piece, after) = rest.split_at(rest.floor_char_boundary(CHUNK_BYTES));
                rest = after;
                let upload = Request::Upload { name: name.to_owned(), text: piece.to_owned() };
                waiting.push_back(self.send(&upload)?);
                self.receive_beyond(&mut waiting, WINDOW)?;
                if rest.is_empty() {
                    break;
                }
            }
        }
        self.receive_beyond(&mut waiting, 0)
    }

    /// Makes one change; what is said with it takes a transaction.
    pub fn change(&mut self, change: &Request, terms: Terms) -> Result<Changed, ClientError> {
        if terms.are_none() {
            return self.call(change);
        }
        let _: Staged = self.call(&Request::Begin {})?;
        let _: Staged = self.call(change)?;
        let changed = self.call(&Request::Commit { patches: Vec::new(), terms })?;
        self.ended(changed)
    }

    /// The config of a revision, or of the one in force, and its number.
    pub fn document(&mut self, revision: Option<u64>) -> Result<(u64, Document), ClientError> {
        let mut document = Document::default();
        let mut query = RevisionQuery { revision, after: None };
        let mut since = Instant::now();
        loop {
            let piece: DocumentPiece = self.call(&Request::ShowRevision(query.clone()))?;
            query.revision = Some(piece.revision);
            if piece.reading {
                if since.elapsed() >= READING {
                    let message = "the gateway is busy with reading revisions: try again later";
                    return Err(Fault::new(FaultKind::Limit, message).into());
                }
                std::thread::sleep(AGAIN);
                continue;
            }
            since = Instant::now();
            document.file_name = piece.file_name;
            match (piece.name.as_str(), document.files.last_mut()) {
                ("", _) => document.text.push_str(&piece.text),
                (name, Some((last, text))) if name == last => text.push_str(&piece.text),
                _ => document.files.push((piece.name, piece.text)),
            }
            match piece.next {
                Some(next) if Some(next) > query.after => query.after = Some(next),
                _ => return Ok((piece.revision, document)),
            }
        }
    }

    /// Opens a transaction for any number of routes.
    pub fn change_routes(&mut self) -> Result<RouteStream<'_>, ClientError> {
        let _: Staged = self.call(&Request::Begin {})?;
        Ok(RouteStream { client: self, add: Vec::new(), del: Vec::new(), waiting: VecDeque::new() })
    }

    fn send(&mut self, request: &Request) -> Result<u64, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        self.out.clear();
        rpc::encode_request(id, request, &mut self.out);
        match self.stream.write_all(&self.out) {
            Ok(()) => Ok(id),
            // The gateway closed on us; it may have said why.
            Err(error) => match self.read_line() {
                Ok(()) => match rpc::decode_answer(&self.line) {
                    Some((_, Err(fault))) => Err(fault.into()),
                    _ => Err(lost(&error)),
                },
                Err(_) => Err(lost(&error)),
            },
        }
    }

    fn read_line(&mut self) -> Result<(), ClientError> {
        self.line.clear();
        let read = (&mut self.reader).take(MAX_ANSWER_BYTES).read_until(b'\n', &mut self.line);
        read.map_err(|error| lost(&error))?;
        if self.line.pop() == Some(b'\n') {
            return Ok(());
        }
        Err(lost(&io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ends half way")))
    }

    fn receive<T: DeserializeOwned>(&mut self, id: u64) -> Result<T, ClientError> {
        self.read_line()?;
        let strange = |why: &str| ClientError::Strange(why.to_owned());
        match rpc::decode_answer(&self.line) {
            Some((_, Err(fault))) => Err(fault.into()),
            Some((answered, Ok(result))) if answered == Some(id) => {
                serde_json::from_str(result.get()).map_err(|error| strange(&error.to_string()))
            }
            Some(_) => Err(strange("it belongs to another request")),
            None => Err(strange("not JSON-RPC")),
        }
    }

    fn receive_beyond(&mut self, waiting: &mut VecDeque<u64>, most: usize) -> Result<(), ClientError> {
        while waiting.len() > most {
            let id = waiting.pop_front().unwrap_or_else(|| unreachable!("it has more than none"));
            let _: Staged = self.receive(id)?;
        }
        Ok(())
    }
}

fn lost(error: &io::Error) -> ClientError {
    if error.kind() == io::ErrorKind::WouldBlock {
        return ClientError::Unreachable("the gateway does not answer in time; see its log".into());
    }
    ClientError::Unreachable(format!("the connection to the gateway broke: {error}; see the gateway's log"))
}

/// Routes on their way into one transaction, in pieces. Dropped without `commit`: nothing happens
/// once the connection closes.
#[derive(Debug)]
pub struct RouteStream<'a> {
    client: &'a mut Client,
    add: Vec<Route>,
    del: Vec<RouteKey>,
    waiting: VecDeque<u64>,
}

impl RouteStream<'_> {
    /// Routes in one piece: below [`CHUNK_BYTES`] with one next hop, below the limit of a line with
    /// a few.
    const PIECE: usize = CHUNK_BYTES / 48;

    /// Adds or replaces a route.
    pub fn add(&mut self, route: Route) -> Result<(), ClientError> {
        self.add.push(route);
        if self.add.len() >= Self::PIECE { self.flush() } else { Ok(()) }
    }

    /// Removes a route.
    pub fn del(&mut self, route: RouteKey) -> Result<(), ClientError> {
        self.del.push(route);
        if self.del.len() >= Self::PIECE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        // Removals first: within one piece a route is either removed or added.
        if !self.del.is_empty() {
            let request = Request::RouteDel { routes: std::mem::take(&mut self.del) };
            self.waiting.push_back(self.client.send(&request)?);
        }
        if !self.add.is_empty() {
            let request = Request::RouteAdd { routes: std::mem::take(&mut self.add) };
            self.waiting.push_back(self.client.send(&request)?);
        }
        self.client.receive_beyond(&mut self.waiting, WINDOW)
    }

    /// Applies all of them, or none.
    pub fn commit(self) -> Result<Changed, ClientError> {
        self.commit_with(Terms::default())
    }

    /// The same, saying why and how.
    pub fn commit_with(mut self, terms: Terms) -> Result<Changed, ClientError> {
        self.flush()?;
        self.client.receive_beyond(&mut self.waiting, 0)?;
        let changed = self.client.call(&Request::Commit { patches: Vec::new(), terms })?;
        self.client.ended(changed)
    }
}

impl ClientError {
    /// Whether the gateway was reached and said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self, ClientError::Fault(fault) if !matches!(fault.kind, FaultKind::Limit))
    }
}
