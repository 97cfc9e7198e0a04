//! One connection without its socket: bytes in, bytes out, and the transaction in between.

use std::time::{Duration, Instant};

use super::Backend;
use super::audit::{Audit, Record};
use super::inspect::Cleared;
use super::line::{Line, LineBuffer};
use super::preview::PreviewQuery;
use super::reply::{Changed, Reply, Staged};
use super::request::{Patch, Request};
use super::revisions::Author;
use super::rights::{self, Object, Peer};
use super::rpc::{self, Fault, FaultKind};
use super::server::Limits;
use super::terms::{Asked, Terms};
use super::upgrade::UpgradeQuery;
use crate::config::{CONFIRM_OWN, Name, only_reads};

/// What all sessions share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Memory staged by all of them.
    pub staged_bytes: usize,
    /// Where changes are written down.
    pub audit: Option<Audit>,
}

/// Whether a session can go on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has used its share; whole lines may wait.
    More,
    /// It needs input.
    NeedsInput,
    /// Too many answers wait to be read by the client.
    OutputFull,
    /// Nothing more is to be read; once the output is sent, close.
    Closing,
}

#[derive(Debug, Default)]
struct Transaction {
    /// What was in force when it began.
    revision: u64,
    patches: Vec<Patch>,
    changes: u64,
    bytes: usize,
    /// A change that was refused: what follows it was meant together with it.
    spoiled: Option<String>,
}

/// The state of one connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    input: LineBuffer,
    output: Vec<u8>,
    /// How much of `output` was sent.
    sent: usize,
    transaction: Option<Transaction>,
    uploads: Vec<(String, String)>,
    uploaded_bytes: usize,
    closing: bool,
    /// Requests answered.
    served: u64,
    /// A commit on both nodes that was begun here, and how it has ended was not told yet.
    begun_on_both: Option<u64>,
    peer: Peer,
}

/// Memory of one uploaded file besides its text.
const FILE_OVERHEAD_BYTES: usize = 128;

/// Files one connection may upload for one `apply`.
const MAX_FILES: usize = 1024;

impl Session {
    /// Requests and bytes served before the next client gets its turn. The bytes are those of lines
    /// already done: one more line, of the longest kind, is the longest stall.
    const TURN_LINES: usize = 64;
    const TURN_BYTES: usize = 1 << 20;
    /// A question may take long: no other one of the same client follows in the same turn.
    pub(crate) const TURN_TIME: Duration = Duration::from_millis(10);

    pub(crate) fn new(peer: Peer) -> Session {
        Session { peer, ..Session::default() }
    }

    /// Takes in what was read from the socket.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if !self.closing {
            self.input.push(bytes);
        }
    }

    /// Serves whole lines until one of [`Turn`] holds.
    pub(crate) fn run(&mut self, backend: &mut dyn Backend, shared: &mut Shared, limits: &Limits) -> Turn {
        let mut bytes = 0;
        let begun = Instant::now();
        for lines in 0..Self::TURN_LINES {
            if self.closing {
                return Turn::Closing;
            }
            if self.unsent().len() >= limits.output_bytes {
                return Turn::OutputFull;
            }
            if bytes >= Self::TURN_BYTES || lines > 0 && begun.elapsed() >= Self::TURN_TIME {
                return Turn::More;
            }
            // The line is lent by the buffer; the buffer stands aside while the rest of `self` works.
            let mut input = std::mem::take(&mut self.input);
            let turn = match input.next(limits.line_bytes) {
                Line::Partial => Some(Turn::NeedsInput),
                Line::TooLong => {
                    let message = format!(
                        "a line has at most {} bytes; send large changes in pieces",
                        limits.line_bytes
                    );
                    rpc::encode("null", &Err(Fault::new(FaultKind::Limit, message)), &mut self.output);
                    self.closing = true;
                    None
                }
                Line::Whole(line) => {
                    bytes += line.len();
                    if !line.iter().all(u8::is_ascii_whitespace) {
                        self.serve_line(line, backend, shared, limits);
                    }
                    None
                }
            };
            self.input = input;
            if self.closing {
                self.input.clear();
            }
            if let Some(turn) = turn {
                return turn;
            }
        }
        Turn::More
    }

    /// Requests answered so far.
    pub(crate) fn served(&self) -> u64 {
        self.served
    }

    /// What waits to be sent.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Notes that the first `bytes` of [`Session::unsent`] were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.output.len() {
            self.sent = 0;
            self.output.clear();
            self.output.shrink_to(64 * 1024);
        }
    }

    /// Whether part of a request waits for its end.
    pub(crate) fn is_half_way(&self) -> bool {
        self.input.is_partial()
    }

    /// Whether it holds staged changes or uploaded files.
    pub(crate) fn holds_staged(&self) -> bool {
        self.transaction.is_some() || !self.uploads.is_empty()
    }

    /// Gives back what it holds of the shared cap. The transaction is aborted.
    pub(crate) fn end(mut self, shared: &mut Shared) {
        if let Some(transaction) = self.drop_transaction(shared) {
            let (uid, pid, changes) = (self.peer.uid, self.peer.pid, transaction.changes);
            tracing::info!(target: "softgate::audit", uid, pid, changes, "connection closed: transaction aborted");
        }
        self.drop_uploads(shared);
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.input.memory_bytes() + self.output.capacity()
    }

    fn serve_line(&mut self, line: &[u8], backend: &mut dyn Backend, shared: &mut Shared, limits: &Limits) {
        self.served += 1;
        let (id, request) = rpc::decode(line);
        let answer = match request {
            Ok(request) => self.serve(request, backend, shared, limits),
            Err(fault) => {
                self.spoil(&fault); // it may have been a change
                Err(fault)
            }
        };
        if let Ok(Reply::Changed(changed)) = &answer {
            self.begun_on_both = changed.under_way().or(self.begun_on_both);
        }
        rpc::encode(id, &answer, &mut self.output);
    }

    fn serve(
        &mut self,
        request: Request,
        backend: &mut dyn Backend,
        shared: &mut Shared,
        limits: &Limits,
    ) -> Result<Reply, Fault> {
        let is_own = || backend.waiting_for() == Some(self.peer.uid);
        let asked = match &request {
            Request::Confirm { .. } if is_own() => Some(CONFIRM_OWN),
            request => rights::asked_for(request),
        };
        let by = match asked {
            // What is brought near is for one or the other.
            Some(_) if matches!(request, Request::Upload { .. }) && self.may(backend, "preview") => {
                By::default()
            }
            // Whoever may begin one may see how it goes on.
            Some(_)
                if matches!(request, Request::ShowPairCommit { .. })
                    && ["apply", "rollback"].iter().any(|asked| self.may(backend, asked)) =>
            {
                By::default()
            }
            Some(asked) => self.permit(asked, &rights::objects_of(&request), backend, shared)?,
            None => By::default(),
        };
        match request {
            Request::Ping {} => Ok(Reply::Pong {}),
            Request::ShowVersion {}
            | Request::ShowPorts {}
            | Request::ShowInterfaces {}
            | Request::ShowRoutes(_)
            | Request::ShowNeighbours { .. }
            | Request::ShowCounters {}
            | Request::ShowDrops {}
            | Request::ShowWorkers {}
            | Request::ShowDhcpRelays {}
            | Request::ShowHa {}
            | Request::ShowSessions(_)
            | Request::ShowNat {}
            | Request::ShowMappings(_)
            | Request::NatMap(_)
            | Request::NatFind(_)
            | Request::ShowRules { .. }
            | Request::ShowServices(_)
            | Request::ShowBridges {}
            | Request::ShowMacs(_)
            | Request::ShowGroups { .. }
            | Request::ShowConvergence(_)
            | Request::ShowRevisions {}
            | Request::ShowRevision(_)
            | Request::DropsExport {}
            | Request::Explain(_)
            | Request::Reach(_) => backend.execute(request),
            Request::ShowPairCommit { .. } => self.show_pair_commit(by, request, backend, shared),
            Request::Preview(query) => self.preview(query, backend, shared),
            Request::ClearSessions(_) => self.audited("clear.sessions", 0, by, request, backend, shared),
            Request::BridgeAddMacs(ref added) => {
                let count = added.macs.len() as u64;
                self.audited("bridge.add-macs", count, by, request, backend, shared)
            }
            Request::BridgeDelMacs(ref removed) => {
                let count = removed.macs.len() as u64;
                self.audited("bridge.del-macs", count, by, request, backend, shared)
            }
            Request::Drain(_) => self.audited("drain", 1, by, request, backend, shared),
            Request::DrainCancel {} => self.audited("drain.cancel", 1, by, request, backend, shared),
            // It would be run with all that we may do.
            Request::Upgrade(UpgradeQuery { binary: Some(_), .. })
                if ![0, rustix::process::geteuid().as_raw()].contains(&self.peer.uid) =>
            {
                Err(Fault::refused("only root, and the user that the gateway runs as, may name a program"))
            }
            Request::Upgrade(ref query) => {
                let binary = query.binary.as_ref().map(|binary| binary.display().to_string());
                let by = By { about: binary.into_iter().collect(), ..by };
                self.audited("upgrade", 1, by, request, backend, shared)
            }
            Request::BridgeOpen(_) => self.audited("bridge.open", 1, by, request, backend, shared),
            Request::Upload { name, text } => self.upload(name, &text, shared, limits),
            Request::Apply { file_name, text, path, terms, .. } => {
                self.apply((file_name, text, path), terms, by, backend, shared)
            }
            Request::Rollback { revision, terms } => {
                self.without_transaction("rollback")?;
                terms.check()?;
                self.permit_waiting(&terms, backend, shared)?;
                self.permit_pair(&terms, backend, shared)?;
                let by = By { about: vec![format!("revision {revision}")], ..by };
                let terms = self.asked(terms, "rollback", &by);
                let request = Request::Rollback { revision, terms };
                self.audited("rollback", 1, by, request, backend, shared)
            }
            Request::Confirm { revision, .. } => {
                self.without_transaction("confirm")?;
                let asked = self.asked(Terms::default(), "confirm", &by).asked;
                self.audited("confirm", 0, by, Request::Confirm { revision, asked }, backend, shared)
            }
            Request::RouteAdd { routes } => {
                self.change("route.add", Patch::RouteAdd(routes), backend, shared, limits)
            }
            Request::RouteDel { routes } => {
                self.change("route.del", Patch::RouteDel(routes), backend, shared, limits)
            }
            Request::NeighbourAdd { neighbours } => {
                self.change("neighbour.add", Patch::NeighbourAdd(neighbours), backend, shared, limits)
            }
            Request::NeighbourDel { neighbours } => {
                self.change("neighbour.del", Patch::NeighbourDel(neighbours), backend, shared, limits)
            }
            Request::GroupAdd(change) => {
                self.change("group.add", Patch::GroupAdd(change), backend, shared, limits)
            }
            Request::GroupDel(change) => {
                self.change("group.del", Patch::GroupDel(change), backend, shared, limits)
            }
            Request::RuleAdd(addition) => {
                self.change("rule.add", Patch::RuleAdd(addition), backend, shared, limits)
            }
            Request::RuleDel { rules } => {
                self.change("rule.del", Patch::RuleDel(rules), backend, shared, limits)
            }
            Request::ServiceSetBackends(all) => {
                let patch = Patch::ServiceSetBackends(all);
                self.change("service.set-backends", patch, backend, shared, limits)
            }
            Request::ServiceDelBackends(removed) => {
                let patch = Patch::ServiceDelBackends(removed);
                self.change("service.del-backends", patch, backend, shared, limits)
            }
            Request::ServiceSetBackend(change) => {
                let patch = Patch::ServiceSetBackend(change);
                self.change("service.set-backend", patch, backend, shared, limits)
            }
            Request::Begin {} => match self.transaction {
                Some(_) => {
                    Err(Fault::new(FaultKind::Order, "a transaction is open already: commit or abort it"))
                }
                None => {
                    let revision = backend.revision();
                    self.transaction = Some(Transaction { revision, ..Transaction::default() });
                    Ok(self.staged())
                }
            },
            Request::Commit { terms, .. } => self.commit(terms, backend, shared),
            Request::Abort {} => match self.drop_transaction(shared) {
                Some(_) => Ok(self.staged()),
                None => Err(no_transaction()),
            },
        }
    }

    fn staged(&self) -> Reply {
        let (changes, bytes) = self.transaction.as_ref().map_or((0, 0), |open| (open.changes, open.bytes));
        // Of a gateway that numbers what it commits.
        let revision = self.transaction.as_ref().map(|open| open.revision).filter(|revision| *revision > 0);
        Reply::Staged(Staged {
            staged: changes,
            staged_bytes: (bytes + self.uploaded_bytes) as u64,
            revision,
        })
    }

    fn reserve(bytes: usize, shared: &mut Shared, limits: &Limits) -> Result<(), Fault> {
        if shared.staged_bytes + bytes > limits.staged_bytes {
            let most = limits.staged_bytes >> 20;
            let message = format!(
                "more than {most} MiB would be staged by all clients; commit in several transactions"
            );
            return Err(Fault::new(FaultKind::Limit, message));
        }
        shared.staged_bytes += bytes;
        Ok(())
    }

    fn upload(
        &mut self,
        name: String,
        text: &str,
        shared: &mut Shared,
        limits: &Limits,
    ) -> Result<Reply, Fault> {
        let known = self.uploads.iter().position(|(known, _)| *known == name);
        if known.is_none() && self.uploads.len() >= MAX_FILES {
            return Err(Fault::new(FaultKind::Limit, format!("a config has at most {MAX_FILES} files")));
        }
        let new_bytes = if known.is_none() { name.len() + FILE_OVERHEAD_BYTES } else { 0 };
        let bytes = new_bytes + text.len();
        Self::reserve(bytes, shared, limits)?;
        self.uploaded_bytes += bytes;
        let index = known.unwrap_or_else(|| {
            self.uploads.push((name, String::new()));
            self.uploads.len() - 1
        });
        self.uploads[index].1.push_str(text);
        Ok(self.staged())
    }

    fn apply(
        &mut self,
        (file_name, text, path): (String, String, Option<String>),
        terms: Terms,
        by: By,
        backend: &mut dyn Backend,
        shared: &mut Shared,
    ) -> Result<Reply, Fault> {
        self.without_transaction("apply")?;
        terms.check()?;
        self.permit_waiting(&terms, backend, shared)?;
        let answer = match self.brought(text, "apply") {
            Ok((text, files)) => {
                let by = By { about: vec![format!("config {file_name}")], ..by };
                let terms = self.asked(terms, "apply", &by);
                let request = Request::Apply { file_name, text, files, path, terms };
                self.audited("apply", 1, by, request, backend, shared)
            }
            Err(fault) => Err(fault),
        };
        self.drop_uploads(shared);
        answer
    }

    /// The config and its route files: as it came with the request, or as uploaded.
    fn brought(&mut self, text: String, what: &str) -> Result<(String, Vec<(String, String)>), Fault> {
        let mut files = std::mem::take(&mut self.uploads);
        let uploaded =
            files.iter().position(|(name, _)| name.is_empty()).map(|index| files.swap_remove(index).1);
        match (text.is_empty(), uploaded) {
            (false, None) => Ok((text, files)),
            (true, Some(uploaded)) => Ok((uploaded, files)),
            _ => {
                let message =
                    format!("{what} takes the config either as text or uploaded under the name \"\"");
                Err(Fault::new(FaultKind::InvalidParams, message))
            }
        }
    }

    fn preview(
        &mut self,
        query: PreviewQuery,
        backend: &mut dyn Backend,
        shared: &mut Shared,
    ) -> Result<Reply, Fault> {
        if query.after.is_some() {
            return backend.execute(Request::Preview(query));
        }
        let brought = self.brought(query.text, "preview");
        self.drop_uploads(shared);
        let (text, files) = brought?;
        backend.execute(Request::Preview(PreviewQuery { text, files, ..query }))
    }

    /// Stages a change, or makes it at once where no transaction is open.
    fn change(
        &mut self,
        method: &'static str,
        patch: Patch,
        backend: &mut dyn Backend,
        shared: &mut Shared,
        limits: &Limits,
    ) -> Result<Reply, Fault> {
        let changes = patch.changes();
        let by = match self.permit_change(&patch, backend, shared) {
            Ok(by) => by,
            Err(fault) => {
                self.spoil(&fault);
                return Err(fault);
            }
        };
        let Some(transaction) = &mut self.transaction else {
            let terms = self.asked(Terms::default(), method, &by);
            let request = Request::Commit { patches: vec![patch], terms };
            return self.audited(method, changes, by, request, backend, shared);
        };
        if let Some(fault) = &transaction.spoiled {
            return Err(spoiled(fault));
        }
        let bytes = patch.memory_bytes() + size_of::<Patch>();
        if let Err(fault) = Self::reserve(bytes, shared, limits) {
            self.spoil(&fault);
            return Err(fault);
        }
        transaction.bytes += bytes;
        transaction.changes += changes;
        transaction.patches.push(patch);
        Ok(self.staged())
    }

    /// A transaction of which a part was refused is never committed.
    fn spoil(&mut self, fault: &Fault) {
        if let Some(transaction) = &mut self.transaction {
            transaction.spoiled.get_or_insert_with(|| fault.message.clone());
        }
    }

    fn commit(
        &mut self,
        mut terms: Terms,
        backend: &mut dyn Backend,
        shared: &mut Shared,
    ) -> Result<Reply, Fault> {
        let transaction = self.transaction.take().ok_or_else(no_transaction)?;
        if !terms.rebase && terms.if_revision.is_none() && transaction.revision > 0 {
            terms.if_revision = Some(transaction.revision);
        }
        let answer = match &transaction.spoiled {
            Some(fault) => Err(spoiled(fault)),
            None => terms.check().and_then(|()| {
                self.commit_all(transaction.changes, transaction.patches, terms, backend, shared)
            }),
        };
        shared.staged_bytes -= transaction.bytes;
        answer
    }

    fn commit_all(
        &self,
        changes: u64,
        patches: Vec<Patch>,
        terms: Terms,
        backend: &mut dyn Backend,
        shared: &mut Shared,
    ) -> Result<Reply, Fault> {
        self.permit_waiting(&terms, backend, shared)?;
        self.permit_pair(&terms, backend, shared)?;
        let mut by = By::default();
        // The roles may be others than when it was staged.
        for patch in &patches {
            let of_patch = self.permit_change(patch, backend, shared)?;
            by.role = of_patch.role;
            by.note(of_patch.about);
        }
        let terms = self.asked(terms, "commit", &by);
        self.audited("commit", changes, by, Request::Commit { patches, terms }, backend, shared)
    }

    /// What a client says, with who it is.
    fn asked(&self, terms: Terms, request: &str, by: &By) -> Terms {
        let role = by.role.as_ref().map(ToString::to_string);
        let author = Author { uid: Some(self.peer.uid), pid: Some(self.peer.pid), role };
        Terms { asked: Asked { by: author, request: request.to_owned(), about: by.about.clone() }, ..terms }
    }

    fn without_transaction(&self, what: &str) -> Result<(), Fault> {
        if self.transaction.is_none() {
            return Ok(());
        }
        let message = format!(
            "{what} replaces the whole config and is a transaction of its own: commit or abort first"
        );
        Err(Fault::new(FaultKind::Order, message))
    }

    /// Whether whoever is at the other end may do that. What is refused is written down if it would change something.
    fn permit(
        &self,
        asked: &'static str,
        objects: &[Object<'_>],
        backend: &dyn Backend,
        shared: &Shared,
    ) -> Result<By, Fault> {
        let mut by = By::default();
        by.note(objects.iter().take(By::MOST).map(ToString::to_string));
        match rights::check(backend, &self.peer, asked, objects) {
            Ok(role) => Ok(By { role, ..by }),
            Err(fault) => {
                if !only_reads(asked) {
                    self.record(
                        &asked.replace(' ', "."),
                        0,
                        &by,
                        ("refused", None, Some(&fault)),
                        (0, None),
                        shared,
                    );
                }
                Err(fault)
            }
        }
    }

    /// The same without a word.
    fn may(&self, backend: &dyn Backend, asked: &'static str) -> bool {
        rights::check(backend, &self.peer, asked, &[]).is_ok()
    }

    /// A commit that waits keeps others from theirs: that takes the right to say that it need wait no longer.
    fn permit_waiting(&self, terms: &Terms, backend: &dyn Backend, shared: &Shared) -> Result<(), Fault> {
        match terms.confirm_s {
            Some(_) => self.permit(CONFIRM_OWN, &[], backend, shared).map(|_| ()),
            None => Ok(()),
        }
    }

    /// On both nodes the whole config is replaced.
    fn permit_pair(&self, terms: &Terms, backend: &dyn Backend, shared: &Shared) -> Result<(), Fault> {
        match terms.pair {
            true => self.permit("apply", &[], backend, shared).map(|_| ()),
            false => Ok(()),
        }
    }

    /// How a commit on both nodes has ended is written down when whoever has begun it is told.
    fn show_pair_commit(
        &mut self,
        by: By,
        request: Request,
        backend: &mut dyn Backend,
        shared: &Shared,
    ) -> Result<Reply, Fault> {
        let asked = if let Request::ShowPairCommit { commit } = &request { *commit } else { None };
        let answer = backend.execute(request);
        let is_own = asked.is_some() && asked == self.begun_on_both;
        match &answer {
            Ok(Reply::Changed(changed)) if changed.under_way().is_some() => {}
            Ok(Reply::Changed(Changed { generation, revision, .. })) if is_own => {
                self.begun_on_both = None;
                let result = ("changed", Some(*generation), None);
                self.record("pair-commit", 1, &by, result, (0, *revision), shared);
            }
            Err(fault) if is_own => {
                self.begun_on_both = None;
                self.record("pair-commit", 1, &by, ("refused", None, Some(fault)), (0, None), shared);
            }
            Ok(_) | Err(_) => {}
        }
        answer
    }

    fn permit_change(&self, patch: &Patch, backend: &dyn Backend, shared: &Shared) -> Result<By, Fault> {
        self.permit(rights::asked_by(patch), &rights::objects_of_patch(patch), backend, shared)
    }

    fn drop_transaction(&mut self, shared: &mut Shared) -> Option<Transaction> {
        let transaction = self.transaction.take()?;
        shared.staged_bytes -= transaction.bytes;
        Some(transaction)
    }

    fn drop_uploads(&mut self, shared: &mut Shared) {
        self.uploads = Vec::new();
        shared.staged_bytes -= std::mem::take(&mut self.uploaded_bytes);
    }

    /// A change leaves a line in the log, and one in the audit: who, what, how it ended.
    fn audited(
        &self,
        method: &'static str,
        changes: u64,
        by: By,
        request: Request,
        backend: &mut dyn Backend,
        shared: &Shared,
    ) -> Result<Reply, Fault> {
        let start = Instant::now();
        let answer = backend.execute(request);
        let took_us = start.elapsed().as_micros() as u64;
        let result = match &answer {
            Ok(Reply::Changed(changed)) if changed.under_way().is_some() => ("begun", None, None),
            Ok(Reply::Changed(Changed { generation, .. })) => ("changed", Some(*generation), None),
            Ok(Reply::Cleared(_)) => ("cleared", None, None),
            Ok(_) => ("done", None, None),
            Err(fault) => ("refused", None, Some(fault)),
        };
        let changes = if let Ok(Reply::Cleared(Cleared { ended, .. })) = &answer { *ended } else { changes };
        let revision =
            if let Ok(Reply::Changed(Changed { revision, .. })) = &answer { *revision } else { None };
        self.record(method, changes, &by, result, (took_us, revision), shared);
        answer
    }

    fn record(
        &self,
        method: &str,
        changes: u64,
        by: &By,
        (result, generation, fault): (&'static str, Option<u64>, Option<&Fault>),
        (took_us, revision): (u64, Option<u64>),
        shared: &Shared,
    ) {
        let (uid, pid) = (self.peer.uid, self.peer.pid);
        let role = by.role.as_ref().map(Name::as_str);
        // One line, whatever the client wrote: names from requests stand in these messages.
        let why: Option<String> =
            fault.map(|fault| fault.message.chars().take(200).flat_map(char::escape_debug).collect());
        match &why {
            None => {
                tracing::info!(target: "softgate::audit", uid, pid, role, method, changes, generation, revision, took_us, "{result}");
            }
            Some(why) => {
                tracing::warn!(target: "softgate::audit", uid, pid, role, method, changes, took_us, why, "{result}");
            }
        }
        if let Some(audit) = &shared.audit {
            audit.write(&Record {
                time: Record::now(),
                uid,
                pid,
                role,
                request: method,
                about: &by.about,
                changes,
                result,
                generation,
                revision,
                why: why.as_deref(),
                took_us,
            });
        }
    }
}

/// By what right something is done, and about what it is.
#[derive(Debug, Default)]
struct By {
    role: Option<Name>,
    /// The first few things.
    about: Vec<String>,
}

impl By {
    /// Things that the audit names.
    const MOST: usize = 16;

    fn note(&mut self, about: impl IntoIterator<Item = String>) {
        for thing in about {
            if self.about.len() < By::MOST && !self.about.contains(&thing) {
                self.about.push(thing);
            }
        }
    }
}

fn no_transaction() -> Fault {
    Fault::new(FaultKind::Order, "no transaction is open on this connection: begin one")
}

fn spoiled(fault: &str) -> Fault {
    let message = format!(
        "a request of this transaction failed ({fault}); nothing of it is applied: abort and begin again"
    );
    Fault::new(FaultKind::Order, message)
}
