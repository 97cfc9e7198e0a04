//! The socket server: one thread, one event loop, many clients that cannot stall or bloat it.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net as std_net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::Backend;
use super::audit::Audit;
use super::rights::Peer;
use super::rpc::{self, Fault, FaultKind};
use super::session::{Session, Shared, Turn};
use crate::io::peer;

/// What clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest request line.
    pub line_bytes: usize,
    /// Connections at once.
    pub clients: usize,
    /// Answers a client has not read before it is not listened to any more. One answer may go beyond.
    pub output_bytes: usize,
    /// Staged changes and uploaded files of all clients together.
    pub staged_bytes: usize,
    /// From the first byte of a request to its newline.
    pub half_request: Duration,
    /// How long answers may wait for a client that reads nothing.
    pub unread: Duration,
    /// How long a transaction may lie idle.
    pub idle_transaction: Duration,
    /// Where all places are taken, a client idle for longer makes room for a new one.
    pub idle_evicted: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            line_bytes: 4 << 20, // about 100,000 routes; parsing it is the longest stall of the others
            clients: 64,
            output_bytes: 1 << 20,
            staged_bytes: 512 << 20, // 4 M routes
            half_request: Duration::from_secs(30),
            unread: Duration::from_secs(60),
            idle_transaction: Duration::from_secs(300),
            idle_evicted: Duration::from_secs(10),
        }
    }
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Tokens of other file descriptors start here; clients count up from 0.
const OTHERS: usize = usize::MAX / 2;

/// Clients accepted before those that are there get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Bytes read from a client and requests served in one turn, however fast it sends more.
const READ_PER_TURN: usize = 1 << 20;
const REQUESTS_PER_TURN: u64 = 64;
const READ_CHUNK: usize = 64 * 1024;

/// The control socket and all its clients.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// # let mut backend: Box<dyn softgate::control::Backend> = unimplemented!();
/// use softgate::control::{Limits, Server};
/// let mut server = Server::bind("/run/softgate/control.sock", None, Limits::default())?;
/// server.register(7, 0)?; // a netlink socket, reported as 0
/// loop {
///     for key in server.poll(&mut *backend, None)? {
///         // drain the descriptor registered under `key`
///     }
/// }
/// # }
/// ```
pub struct Server {
    poll: Poll,
    events: Events,
    listener: UnixListener,
    /// More connections may wait (mio reports edges).
    accepting: bool,
    /// No descriptors were left; try again then.
    accept_again: Option<Instant>,
    clients: BTreeMap<usize, Client>,
    next_client: usize,
    shared: Shared,
    limits: Limits,
    path: PathBuf,
    /// Held locked as long as the socket is ours.
    _lock: File,
    clock: Box<dyn Fn() -> Instant + Send>,
    scratch: Vec<u8>,
}

struct Client {
    stream: UnixStream,
    session: Session,
    readable: bool,
    writable: bool,
    end_of_input: bool,
    /// Whether its session may have whole lines.
    has_lines: bool,
    last_request: Instant,
    /// Whether it is not listened to because it does not read.
    output_full: bool,
    half_since: Option<Instant>,
    unread_since: Option<Instant>,
}

/// What became of a client in its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// It has more to do right now.
    Busy,
    /// It waits for the socket.
    Waiting,
    /// It is gone.
    Gone,
}

impl Server {
    /// Writes down every request that changes something, in this file; others may append to it, or move it away.
    pub fn audit(&mut self, file: PathBuf) -> io::Result<()> {
        self.shared.audit = Some(Audit::open(file)?);
        Ok(())
    }

    /// Listens at `path`. A socket file that a dead process left is replaced, a live one refused.
    /// Only the owner may connect; with `group` (name or number) its members too.
    pub fn bind(path: impl AsRef<Path>, group: Option<&str>, limits: Limits) -> io::Result<Server> {
        let path = path.as_ref().to_owned();
        let (listener, lock) = listen_alone(&path, group)?;
        let mut listener = UnixListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Server {
            poll,
            events: Events::with_capacity(256),
            listener,
            accepting: true,
            accept_again: None,
            clients: BTreeMap::new(),
            next_client: 0,
            shared: Shared::default(),
            limits,
            path,
            _lock: lock,
            clock: Box::new(Instant::now),
            scratch: vec![0; READ_CHUNK],
        })
    }

    /// Watches another descriptor in the same loop; `poll` reports it as `key` when it can be read.
    /// Only the change is reported: read it until it would block. The caller keeps it open.
    pub fn register(&mut self, fd: RawFd, key: usize) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd), Token(OTHERS + key), Interest::READABLE)
    }

    /// Stops watching a descriptor.
    pub fn deregister(&mut self, fd: RawFd) -> io::Result<()> {
        self.poll.registry().deregister(&mut SourceFd(&fd))
    }

    /// Lets another thread end a wait in `poll`. At most one: call it once.
    pub fn waker(&self) -> io::Result<Arc<Waker>> {
        Waker::new(self.poll.registry(), WAKER).map(Arc::new)
    }

    /// Connections at the moment.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Bytes staged by all clients at the moment.
    pub fn staged_bytes(&self) -> usize {
        self.shared.staged_bytes
    }

    #[cfg(test)]
    pub(crate) fn set_clock(&mut self, clock: impl Fn() -> Instant + Send + 'static) {
        self.clock = Box::new(clock);
    }

    /// Waits for something to happen, at most `timeout`, and serves it: each client at most its share.
    /// Returns the keys of the registered descriptors that became readable.
    pub fn poll(&mut self, backend: &mut dyn Backend, timeout: Option<Duration>) -> io::Result<Vec<usize>> {
        let wait = self.wait(timeout);
        match self.poll.poll(&mut self.events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => self.events.clear(),
            other => other?,
        }
        let now = (self.clock)();
        let mut ready = Vec::new();
        for event in &self.events {
            match event.token() {
                LISTENER => self.accepting = true,
                WAKER => {}
                Token(other) if other >= OTHERS => ready.push(other - OTHERS),
                Token(number) => {
                    if let Some(client) = self.clients.get_mut(&number) {
                        client.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                        client.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
                    }
                }
            }
        }
        if self.accept_again.is_some_and(|again| now >= again) {
            self.accept_again = None;
            self.accepting = true;
        }
        if self.accepting {
            self.accept(now);
        }
        self.serve(backend, now);
        Ok(ready)
    }

    /// How long the loop may sleep.
    fn wait(&self, timeout: Option<Duration>) -> Option<Duration> {
        if self.accepting || self.clients.values().any(Client::is_busy) {
            return Some(Duration::ZERO);
        }
        // Deadlines are looked at once a second: none of them is shorter than ten.
        let watch = self.accept_again.is_some() || self.clients.values().any(Client::has_deadline);
        let tick = watch.then_some(Duration::from_secs(1));
        match (timeout, tick) {
            (Some(timeout), Some(tick)) => Some(timeout.min(tick)),
            (timeout, tick) => timeout.or(tick),
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.accepting = false;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors or memory: those who wait keep waiting, nobody spins.
                    tracing::warn!("control socket cannot accept: {error}");
                    self.accepting = false;
                    self.accept_again = Some(now + Duration::from_secs(1));
                    return;
                }
            }
        }
    }

    fn admit(&mut self, mut stream: UnixStream, now: Instant) {
        if self.clients.len() >= self.limits.clients {
            let idle = |client: &&Client| {
                !client.has_deadline() && now.duration_since(client.last_request) >= self.limits.idle_evicted
            };
            let oldest = self.clients.iter().filter(|(_, client)| idle(client));
            match oldest.min_by_key(|(_, client)| client.last_request).map(|(number, _)| *number) {
                Some(number) => self.close(number),
                None => {
                    let message =
                        format!("all {} connections of the control socket are taken", self.limits.clients);
                    let mut line = Vec::new();
                    rpc::encode("null", &Err(Fault::new(FaultKind::Limit, message)), &mut line);
                    // Best effort: the socket is new, its buffer empty; whoever left already is not missed.
                    let _ = stream.write(&line);
                    return;
                }
            }
        }
        let nobody = Peer { uid: u32::MAX, gids: Vec::new(), pid: 0 };
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_or(nobody, |peer| {
            let mut gids = vec![peer.gid.as_raw()];
            gids.extend(peer::groups(stream.as_fd()));
            Peer { uid: peer.uid.as_raw(), gids, pid: peer.pid.as_raw_pid() }
        });
        let number = self.next_client;
        self.next_client += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(number), interest) {
            tracing::warn!("control socket cannot watch a client: {error}");
            return;
        }
        let client = Client {
            stream,
            session: Session::new(peer),
            readable: true,
            writable: true,
            end_of_input: false,
            has_lines: false,
            last_request: now,
            output_full: false,
            half_since: None,
            unread_since: None,
        };
        self.clients.insert(number, client);
    }

    /// One turn for every client that has something to do.
    fn serve(&mut self, backend: &mut dyn Backend, now: Instant) {
        let mut gone = Vec::new();
        for (number, client) in &mut self.clients {
            let after = client.turn(backend, &mut self.shared, &self.limits, &mut self.scratch, now);
            if after == After::Gone || client.is_overdue(&self.limits, now) {
                gone.push(*number);
            }
        }
        for number in gone {
            self.close(number);
        }
    }

    fn close(&mut self, number: usize) {
        if let Some(mut client) = self.clients.remove(&number) {
            // Fails only for a descriptor that is not registered; dropping it unregisters it anyway.
            let _ = self.poll.registry().deregister(&mut client.stream);
            client.session.end(&mut self.shared);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been removed by hand; there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

impl Client {
    fn is_busy(&self) -> bool {
        (self.has_lines || (self.readable && !self.end_of_input)) && !self.output_full
    }

    fn has_deadline(&self) -> bool {
        self.half_since.is_some() || self.unread_since.is_some() || self.session.holds_staged()
    }

    fn is_overdue(&self, limits: &Limits, now: Instant) -> bool {
        let past =
            |since: Option<Instant>, most| since.is_some_and(|since| now.duration_since(since) >= most);
        let idle = self.session.holds_staged() && past(Some(self.last_request), limits.idle_transaction);
        past(self.half_since, limits.half_request) || past(self.unread_since, limits.unread) || idle
    }

    /// Sends, serves, reads: at most its share of each.
    fn turn(
        &mut self,
        backend: &mut dyn Backend,
        shared: &mut Shared,
        limits: &Limits,
        scratch: &mut [u8],
        now: Instant,
    ) -> After {
        if !self.send(now) {
            return After::Gone;
        }
        self.output_full = false;
        let mut read = 0;
        let (before, begun) = (self.session.served(), Instant::now());
        loop {
            let served = self.session.served();
            let turn = self.session.run(backend, shared, limits);
            if self.session.served() != served {
                self.half_since = None; // what waits now is another request
                self.last_request = now;
            }
            match turn {
                Turn::Closing => {
                    if !self.send(now) || self.session.unsent().is_empty() {
                        return After::Gone;
                    }
                    self.has_lines = false;
                    self.readable = false;
                    return After::Waiting;
                }
                Turn::More => {
                    self.has_lines = true;
                    return if self.send(now) { After::Busy } else { After::Gone };
                }
                Turn::OutputFull => {
                    self.has_lines = true;
                    self.half_since = None; // it is we who do not read
                    if !self.send(now) {
                        return After::Gone;
                    }
                    self.output_full = self.session.unsent().len() >= limits.output_bytes;
                    return if self.output_full { After::Waiting } else { After::Busy };
                }
                Turn::NeedsInput => self.has_lines = false,
            }
            if !self.send(now) {
                return After::Gone;
            }
            if !self.readable || self.end_of_input {
                break;
            }
            if read >= READ_PER_TURN
                || self.session.served() - before >= REQUESTS_PER_TURN
                || begun.elapsed() >= Session::TURN_TIME
            {
                return After::Busy;
            }
            match self.stream.read(scratch) {
                Ok(0) => self.end_of_input = true,
                Ok(bytes) => {
                    read += bytes;
                    self.session.push(&scratch[..bytes]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return After::Gone,
            }
        }
        if self.end_of_input && self.session.unsent().is_empty() {
            return After::Gone; // half a request at the end of input will never be whole
        }
        match self.session.is_half_way() {
            true => _ = self.half_since.get_or_insert(now),
            false => self.half_since = None,
        }
        After::Waiting
    }

    /// Sends what waits, as far as the socket takes it. `false`: the client is gone.
    fn send(&mut self, now: Instant) -> bool {
        while self.writable && !self.session.unsent().is_empty() {
            match self.stream.write(self.session.unsent()) {
                Ok(bytes) => {
                    self.session.sent(bytes);
                    self.unread_since = None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        match self.session.unsent().is_empty() {
            true => self.unread_since = None,
            false => _ = self.unread_since.get_or_insert(now),
        }
        true
    }
}

/// Listens at `path` for as long as the lock is held: a socket file that a dead process left is replaced, a live one
/// refused. Only the owner may connect; with `group` (name or number) its members too. Accepting does not block.
pub(crate) fn listen_alone(path: &Path, group: Option<&str>) -> io::Result<(std_net::UnixListener, File)> {
    let explain =
        |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)
            .map_err(explain(format!("cannot make the folder {}", folder.display())))?;
    }
    let lock = lock(path)?;
    remove_stale(path)?;
    let listener =
        listen(path, group).map_err(explain(format!("cannot make the socket {}", path.display())))?;
    Ok((listener, lock))
}

/// Two gateways that start at once must not both find the socket stale: whoever holds the lock file
/// is the one. The kernel lets go of it with the process, however that ended.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot lock {}: {error}", name.display()));
    let file = File::options().write(true).create(true).truncate(false).open(&name).map_err(explain)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(explain)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        Err(TryLockError::Error(error)) => Err(explain(error)),
    }
}

fn in_use(path: &Path) -> io::Error {
    let message = format!(
        "another softgate serves {}: stop it first, or give this one another [control] socket",
        path.display()
    );
    io::Error::new(ErrorKind::AddrInUse, message)
}

/// Removes the socket file of a dead process; refuses a live one and what is no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !kind.is_socket() {
        let message = format!("{} exists and is no socket: remove it or choose another path", path.display());
        return Err(io::Error::new(ErrorKind::AlreadyExists, message));
    }
    match std_net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _ => Err(in_use(path)),
    }
}

/// Binds, sets owner and mode, then listens: before `listen` nobody can connect, so there is no
/// moment at which the wrong user could.
fn listen(path: &Path, group: Option<&str>) -> io::Result<std_net::UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
    let address = SocketAddrUnix::new(path).map_err(|_| {
        io::Error::new(ErrorKind::InvalidInput, "the path of a Unix socket has at most 107 bytes")
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group_id(group)?))?;
    }
    fs::set_permissions(path, Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
    listen(&socket, 128)?;
    Ok(std_net::UnixListener::from(socket))
}

/// The number of a group: itself, or from /etc/group (groups of a directory service: by number).
fn group_id(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let known = fs::read_to_string("/etc/group")?;
    let number = known.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    });
    number.ok_or_else(|| {
        io::Error::new(ErrorKind::NotFound, format!("[control] group: no group {group:?} in /etc/group"))
    })
}
