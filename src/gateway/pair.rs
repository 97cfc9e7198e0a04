//! The thread `pair`: it gives the other node what the workers tell, and the workers what the other node tells.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::Gateway;
use super::readiness::{Fresh, Readiness, Witness};
use crate::config::{self, Config};
use crate::control::{AdvertErrors, DriftEntry, PairEntry, WitnessEntry};
use crate::flow::digest::SLICES;
use crate::flow::flow_record::Kind;
use crate::ha::sync::{BadDatagram, Link, Machine, Names, PairKey, Status, Told};
use crate::io::waker::{Waker, wait};
use crate::packet::Why;
use crate::packet::hash::Key;
use crate::pipeline::replica::NotInstalled;
use crate::replica::{Change, Dispatch};
use crate::tables::compile::Compiler;
use crate::time::Nanos;
use crate::worker::Node;

/// How often what workers tell is taken, while the peer is there: the longest that a record waits for company.
const TURN: Duration = Duration::from_millis(4);
/// While it is not.
const IDLE_TURN: Duration = Duration::from_millis(50);
/// Datagrams taken in a turn: what comes from elsewhere must not keep us from speaking.
const DATAGRAMS: usize = 256;
/// Records taken of a worker in a turn.
const RECORDS: usize = 4096;
/// Longest datagram that is read: what is longer is cut, and has no tag then.
const BUFFER_BYTES: usize = 2048;
/// Largest key file.
const KEY_FILE_BYTES: u64 = 64 * 1024;
/// How long the thread may take to say what it knows.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Letters that wait for the control thread: it is woken for each.
const LETTERS: usize = 16;
/// How often a socket that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two looks at the whole config at least, and so many times as long as one takes.
const CONFIG_PAUSE: Duration = Duration::from_secs(2);
const CONFIG_REST: u32 = 100;

/// The key of the pair cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BadKeyFile {
    /// No file, or not for us.
    #[error("pair.key_file: {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// What is in it.
    #[error("pair.key_file: {path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What the thread is to do.
#[derive(Clone)]
pub(super) struct Plan {
    config: config::Pair,
    secret: Vec<u8>,
    key: PairKey,
}

impl Plan {
    /// Of the config; the key is read now.
    pub fn of(pair: Option<&config::Pair>) -> Result<Option<Plan>, BadKeyFile> {
        let Some(config) = pair else { return Ok(None) };
        let secret = read_key(&config.key_file)?;
        let key = PairKey::new(&secret)
            .map_err(|short| BadKeyFile::Content { path: config.key_file.clone(), why: short.to_string() })?;
        Ok(Some(Plan { config: config.clone(), secret, key }))
    }

    fn is(&self, other: &Plan) -> bool {
        self.config == other.config && self.secret == other.secret
    }
}

fn read_key(path: &Path) -> Result<Vec<u8>, BadKeyFile> {
    let read = || {
        let file = std::fs::File::open(path)?;
        let mut secret = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, KEY_FILE_BYTES), &mut secret)?;
        Ok(secret.trim_ascii().to_vec())
    };
    read().map_err(|source| BadKeyFile::Read { path: path.to_owned(), source })
}

enum Request {
    Names(Arc<Names>),
    /// The sections of the config in force.
    Config(Vec<(String, u64)>),
    /// All workers use other tables than before.
    Published,
    /// To be written to the other node.
    Letter(Vec<u8>),
    Status(Sender<Answer>),
    Stop,
}

/// What the thread knows.
#[derive(Clone, Debug, Default)]
struct Answer {
    status: Status,
    /// Sessions that would be missed if the peer took over now.
    unready: u64,
    /// Datagrams from elsewhere, and those that the kernel did not take.
    strangers: u64,
    not_sent: u64,
    socket_error: Option<String>,
}

struct Running {
    plan: Plan,
    requests: Sender<Request>,
    waker: Arc<Waker>,
    audit_key: Key,
    thread: JoinHandle<()>,
}

/// The other node, as the gateway has it. The thread is there while the config has a peer.
pub(super) struct PairThread {
    node: Arc<Node>,
    started: Instant,
    names: Names,
    running: Option<Running>,
    readiness: Arc<Readiness>,
    /// Which life of the process this is.
    life: u64,
    /// Tables were published since the peer was told of the config, and when that may be next.
    tells_config: bool,
    next_config: Nanos,
    /// Works out what is told, and says how long that took.
    hashing: Option<JoinHandle<Duration>>,
    /// What the other node has written, and what is readable when it has.
    letters: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    news: UnixStream,
    tell_news: Arc<UnixStream>,
}

impl PairThread {
    pub fn new(node: &Arc<Node>, started: Instant) -> io::Result<PairThread> {
        let (news, tell_news) = UnixStream::pair()?;
        news.set_nonblocking(true)?;
        tell_news.set_nonblocking(true)?;
        Ok(PairThread {
            node: Arc::clone(node),
            started,
            names: Names::default(),
            running: None,
            readiness: Arc::default(),
            life: super::random().max(1),
            tells_config: false,
            next_config: Nanos(0),
            hashing: None,
            letters: bounded(LETTERS),
            news,
            tell_news: Arc::new(tell_news),
        })
    }

    /// What is known of sessions on the other node, at any time.
    pub fn readiness(&self) -> &Arc<Readiness> {
        &self.readiness
    }

    /// Has the thread do as the config says.
    pub fn follow(&mut self, plan: Option<Plan>, compiler: &Compiler) -> io::Result<()> {
        let is_same = match (&self.running, &plan) {
            (Some(running), Some(plan)) => running.plan.is(plan),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_same {
            return Ok(());
        }
        self.stop();
        self.readiness.reset(plan.as_ref().map(|plan| plan.config.preempt_wait.duration()));
        let Some(plan) = plan else { return Ok(()) };
        let (requests, asked) = unbounded();
        let waker = Arc::new(Waker::new()?);
        let rate = u64::from(plan.config.bandwidth_mbps.get()) * 1_000_000 / 8;
        let now = Nanos(self.started.elapsed().as_nanos() as u64);
        let machine = Machine::new(plan.key.clone(), super::random(), self.workers(), rate, now);
        let machine = machine.in_life(self.life);
        let mut runner = Runner {
            node: Arc::clone(&self.node),
            waker: Arc::clone(&waker),
            started: self.started,
            machine,
            config: plan.config.clone(),
            socket: None,
            retry: Nanos(0),
            is_there: false,
            next_turn: Nanos(0),
            answer: Answer::default(),
            asks_again: false,
            tells_again: false,
            readiness: Arc::clone(&self.readiness),
            fresh: Fresh::default(),
            audit: Summed::default(),
            differs: None,
            letters: self.letters.0.clone(),
            tell_news: Arc::clone(&self.tell_news),
        };
        let audit_key = runner.machine.audit_key();
        self.node.replicas().iter().for_each(|desk| desk.set_audit_key(audit_key));
        let thread = std::thread::Builder::new().name("pair".into()).spawn(move || runner.run(&asked))?;
        self.running = Some(Running { plan, requests, waker, audit_key, thread });
        (self.tells_config, self.next_config) = (true, Nanos(0));
        self.names = Names::default();
        self.note_names(compiler);
        Ok(())
    }

    /// The run of the other node that reads letters, if it is there.
    pub fn correspondent(&self) -> Option<u64> {
        self.readiness.correspondent()
    }

    /// Writes it a letter, which is lost if it goes.
    pub fn post(&self, letter: Vec<u8>) {
        self.ask(Request::Letter(letter));
    }

    /// What it has written.
    pub fn take_letter(&self) -> Option<Vec<u8>> {
        self.letters.1.try_recv().ok()
    }

    /// What sections of configs are told apart with, on both nodes.
    pub fn section_key(&self) -> Option<Key> {
        self.running.as_ref().map(|running| running.audit_key)
    }

    pub fn drain_news(&self) {
        while matches!((&self.news).read(&mut [0; 256]), Ok(1..)) {}
    }

    fn workers(&self) -> u16 {
        self.node.counters.len() as u16
    }

    /// Slots may have got names: before the tables that use them are published.
    pub fn note_names(&mut self, compiler: &Compiler) {
        if self.running.is_none() {
            return;
        }
        let before = self.names.len();
        learn_names(&mut self.names, compiler);
        if self.names.len() > before {
            self.ask(Request::Names(Arc::new(self.names.clone())));
        }
    }

    /// Workers use the tables that were published last: what was too early for those before is asked for again.
    pub fn note_published(&mut self) {
        self.ask(Request::Published);
        self.tells_config = true;
    }

    /// Has the other node told of the config, some time after it has changed: a thread works out what is said of a large one.
    fn tell_config(&mut self, config: &Config, now: Nanos) {
        if let Some(hashing) = self.hashing.take_if(|hashing| hashing.is_finished()) {
            let took = hashing.join().unwrap_or_default();
            self.next_config = now.plus(CONFIG_PAUSE.max(took * CONFIG_REST));
        }
        let Some(running) = self.running.as_ref().filter(|_| self.tells_config && self.hashing.is_none())
        else {
            return;
        };
        if now < self.next_config {
            return;
        }
        self.tells_config = false;
        let (config, key) = (config.clone(), running.audit_key);
        let (requests, waker) = (running.requests.clone(), Arc::clone(&running.waker));
        let hash = move || {
            let begun = Instant::now();
            let _ = requests.send(Request::Config(config.sections(key)));
            waker.wake();
            begun.elapsed()
        };
        match std::thread::Builder::new().name("pair-config".into()).spawn(hash) {
            Ok(thread) => self.hashing = Some(thread),
            Err(error) => tracing::warn!(%error, "the other node is not told of the config"),
        }
    }

    fn ask(&self, request: Request) {
        if let Some(running) = &self.running {
            let _ = running.requests.send(request);
            running.waker.wake();
        }
    }

    fn answer(&self) -> Answer {
        let (sender, answer) = bounded(1);
        self.ask(Request::Status(sender));
        answer.recv_timeout(ANSWER_LIMIT).unwrap_or_default()
    }

    /// Ends the thread: nothing is told any more.
    pub fn stop(&mut self) {
        self.ask(Request::Stop);
        if let Some(running) = self.running.take() {
            let _ = running.thread.join();
        }
    }
}

impl Drop for PairThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's own.
struct Runner {
    node: Arc<Node>,
    waker: Arc<Waker>,
    started: Instant,
    machine: Machine,
    config: config::Pair,
    socket: Option<UdpSocket>,
    retry: Nanos,
    is_there: bool,
    next_turn: Nanos,
    answer: Answer,
    /// Something that the peer told found no room.
    asks_again: bool,
    /// Something of ours was lost: everything is to be told again.
    tells_again: bool,
    readiness: Arc<Readiness>,
    fresh: Fresh,
    audit: Summed,
    /// As was said last of the other node's config.
    differs: Option<Arc<[String]>>,
    letters: Sender<Vec<u8>>,
    tell_news: Arc<UnixStream>,
}

/// Which workers have summed up their sessions, for the audit of this number.
#[derive(Debug, Default)]
struct Summed {
    number: u32,
    workers: Vec<bool>,
}

impl Summed {
    fn note(&mut self, worker: u16, number: u32) {
        if let Some(done) = self.workers.get_mut(usize::from(worker))
            && number == self.number
        {
            *done = true;
        }
    }

    /// The number, once, if all have.
    fn take_done(&mut self, workers: usize) -> Option<u32> {
        let is_done = workers > 0 && self.workers.len() == workers && self.workers.iter().all(|done| *done);
        is_done.then(|| std::mem::take(self).number)
    }
}

/// What is told goes to the workers.
struct Workers<'a> {
    node: &'a Node,
    dispatch: Dispatch<'a>,
    is_overrun: bool,
}

impl Link for Workers<'_> {
    fn room(&self) -> usize {
        self.node.replicas().iter().map(|desk| desk.room()).min().unwrap_or(0)
    }

    fn take(&mut self, told: Told) {
        let all = |given: Result<(), usize>| {
            (0..self.node.counters.len()).for_each(|worker| self.node.wake_if_asleep(worker));
            given.is_ok()
        };
        let given = match told {
            Told::Is { record, counts } => {
                let worker = self.dispatch.install(record, counts);
                worker.inspect(|worker| self.node.wake_if_asleep(*worker));
                worker.is_some()
            }
            Told::Gone(gone) => all(self.dispatch.end(gone)),
            Told::Begin => all(self.dispatch.begin()),
            Told::End => all(self.dispatch.sweep()),
            Told::EndOfFirst => all(self.dispatch.disown()),
            Told::BeginPart => all(self.dispatch.begin_part()),
            Told::EndPart(slices) => all(self.dispatch.sweep_part(slices)),
        };
        self.is_overrun |= !given;
    }
}

impl Runner {
    fn now(&self) -> Nanos {
        Nanos(self.started.elapsed().as_nanos() as u64)
    }

    fn run(&mut self, asked: &Receiver<Request>) {
        let node = Arc::clone(&self.node);
        loop {
            self.waker.drain();
            for request in asked.try_iter() {
                match request {
                    Request::Names(names) => self.machine.set_names(names),
                    Request::Config(sections) => self.machine.set_config(sections),
                    // Who has refused something for what tables lack has said so before it took these.
                    Request::Published => {
                        self.asks_again |=
                            node.replicas().iter().filter(|desk| desk.take_early()).count() > 0;
                    }
                    // Nobody there: whoever has written it says it again.
                    Request::Letter(letter) => drop(self.machine.post(letter)),
                    Request::Status(answer) => drop(answer.send(self.status())),
                    Request::Stop => {
                        self.set_on(false);
                        return;
                    }
                }
            }
            let dispatch = node.dispatch();
            let mut workers = Workers { node: &node, dispatch, is_overrun: false };
            self.open();
            self.receive(&mut workers);
            self.give_letters();
            self.asks_again |= std::mem::take(&mut workers.is_overrun);
            // What is told waits for company; what comes in does not.
            let wait = self.next_turn.since(self.now());
            if !wait.is_zero() {
                self.sleep(wait);
                continue;
            }
            self.next_turn = self.now().plus(if self.is_there { TURN } else { IDLE_TURN });
            if self.machine.is_there() != self.is_there {
                self.set_on(self.machine.is_there());
            }
            self.tell();
            if std::mem::take(&mut self.asks_again) {
                self.machine.ask_again();
            }
            self.audit();
            self.speak(&mut workers);
            self.note_readiness();
        }
    }

    /// What the other node has written goes to the control thread, as far as that keeps up.
    fn give_letters(&mut self) {
        let correspondent = self.machine.correspondent();
        // Also that the other node is there, or not any more.
        let mut is_news = correspondent != self.readiness.correspondent();
        self.readiness.set_correspondent(correspondent);
        while !self.letters.is_full()
            && let Some(letter) = self.machine.take_letter()
        {
            is_news |= self.letters.try_send(letter).is_ok();
        }
        if is_news {
            // A full pipe wakes as well as one byte does.
            let _ = (&*self.tell_news).write(&[1]);
        }
    }

    /// For those who may not wait for an answer.
    fn note_readiness(&mut self) {
        let now = self.now();
        let status = self.machine.status(now);
        self.note_config(status.differs.as_ref());
        let unready = self.unready() + status.pending;
        let has_told = (0..self.node.replicas().len()).all(|worker| self.machine.has_told_all(worker as u16));
        let is_fresh = self.fresh.is_all(status.records[0], unready, now);
        self.readiness.note(status.is_there, status.has_all, has_told && is_fresh, unready);
    }

    /// Says that the nodes' configs differ, or do not any more.
    fn note_config(&mut self, differs: Option<&Arc<[String]>>) {
        if self.differs.as_ref() == differs {
            return;
        }
        let was_same = self.differs.as_ref().is_none_or(|before| before.is_empty());
        match differs {
            Some(sections) if !sections.is_empty() => {
                tracing::warn!(sections = sections.join(", "), "the config of the other node differs");
            }
            Some(_) if !was_same => tracing::info!("the config of the other node is the same again"),
            Some(_) | None => {}
        }
        self.differs = differs.cloned();
    }

    fn open(&mut self) {
        if self.socket.is_some() || self.now() < self.retry {
            return;
        }
        let open = || {
            let socket = UdpSocket::bind(self.config.local)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => (self.socket, self.answer.socket_error) = (Some(socket), None),
            Err(error) => {
                let error: io::Error = error;
                if self.answer.socket_error.is_none() {
                    tracing::warn!(local = %self.config.local, %error, "cannot speak with the other node yet");
                }
                self.answer.socket_error = Some(error.to_string());
                self.retry = self.now().plus(RETRY);
            }
        }
    }

    fn receive(&mut self, workers: &mut Workers<'_>) {
        let mut buffer = [0; BUFFER_BYTES];
        let now = self.now();
        for _ in 0..DATAGRAMS {
            let Some(socket) = &self.socket else { return };
            match socket.recv_from(&mut buffer) {
                Ok((len, from)) if is_same(from, self.config.peer) => {
                    // Counted there.
                    let _ = self.machine.receive(&buffer[..len], now, workers);
                }
                Ok(_) => self.answer.strangers += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What an earlier datagram has met with: the peer is not there.
                Err(_) => {}
            }
        }
    }

    /// The peer has come, or gone.
    fn set_on(&mut self, is_on: bool) {
        self.is_there = is_on;
        self.node.neighbours.roles.set_peer(is_on);
        match is_on {
            true => tracing::info!(peer = %self.config.peer, "the other node is there"),
            false => tracing::warn!(peer = %self.config.peer, "the other node is not heard any more"),
        }
        for desk in self.node.replicas() {
            desk.set_on(is_on);
            while desk.next().is_some() {}
            desk.take_overrun();
            desk.take_lost();
        }
        self.tells_again = false;
        self.audit = Summed::default();
        self.node.wake_all();
    }

    /// Takes what the workers tell.
    fn tell(&mut self) {
        self.tells_again |= self.node.replicas().iter().filter(|desk| desk.take_overrun()).count() > 0;
        self.asks_again |= self.node.replicas().iter().filter(|desk| desk.take_lost()).count() > 0;
        // One that is under way comes to its end first: else none might.
        if self.is_there
            && !self.machine.is_resyncing()
            && (self.machine.take_resync() | std::mem::take(&mut self.tells_again))
            && let Some(number) = self.machine.begin_resync()
        {
            self.node.replicas().iter().for_each(|desk| desk.resync(number));
            self.node.wake_all();
        }
        for (worker, desk) in (0..).zip(self.node.replicas()) {
            for _ in 0..RECORDS {
                if !self.machine.has_room(worker) {
                    break;
                }
                match desk.next() {
                    None => break,
                    Some(Change::Is(record)) => self.machine.tell(worker, &record),
                    Some(Change::Gone(gone)) => self.machine.tell_gone(worker, &gone),
                    Some(Change::Begins(number)) => self.machine.begin_stream(worker, number),
                    Some(Change::Resynced(number)) => self.machine.end_resync(worker, number),
                    Some(Change::Summed(number)) => self.audit.note(worker, number),
                }
            }
        }
    }

    /// Has the workers look at all sessions when it is time, and tell again what has drifted.
    fn audit(&mut self) {
        let now = self.now();
        let desks = self.node.replicas();
        if let Some(number) = self.audit.take_done(desks.len()) {
            let mut sums = vec![0; SLICES];
            desks.iter().for_each(|desk| desk.add_sums(&mut sums));
            self.machine.audited(number, sums, now);
        }
        if let Some(number) = self.machine.take_look(now) {
            self.audit = Summed { number, workers: vec![false; desks.len()] };
            desks.iter().for_each(|desk| desk.audit(number));
            self.node.wake_all();
        }
        if let Some((number, slices)) = self.machine.take_repair(now) {
            // Who is still at others, though all have ended them, is another gateway's worker.
            let given = desks.iter().filter(|desk| desk.repair(number, slices)).count();
            tracing::warn!(
                slices = slices.all().len(),
                "sessions of both nodes had drifted apart: told again"
            );
            self.tells_again |= given != desks.len();
            self.node.wake_all();
        }
    }

    fn speak(&mut self, workers: &mut Workers<'_>) {
        let now = self.now();
        let (socket, peer) = (&self.socket, self.config.peer);
        let not_sent = &mut self.answer.not_sent;
        self.machine.poll(now, workers, &mut |datagram| {
            // What is lost is sent again.
            let sent = socket.as_ref().is_some_and(|socket| socket.send_to(datagram, peer).is_ok());
            *not_sent += u64::from(!sent);
        });
        self.asks_again |= std::mem::take(&mut workers.is_overrun);
    }

    fn sleep(&self, limit: Duration) {
        let fds: Vec<_> =
            self.socket.iter().map(|socket| socket.as_raw_fd()).chain([self.waker.fd()]).collect();
        wait(&fds, limit);
    }

    fn status(&self) -> Answer {
        let status = self.machine.status(self.now());
        Answer { unready: self.unready() + status.pending, status, ..self.answer.clone() }
    }

    /// Sessions that the peer has not been told of.
    fn unready(&self) -> u64 {
        let desks = self.node.replicas().iter();
        (0..)
            .zip(desks)
            .map(|(worker, desk)| {
                let (answered, told) = desk.known();
                let known = if self.machine.has_told_all(worker) { told } else { 0 };
                answered.saturating_sub(known) + desk.waiting() as u64
            })
            .sum()
    }
}

/// Adds the names of slots that are not there yet.
pub(super) fn learn_names(names: &mut Names, compiler: &Compiler) {
    let policy = &compiler.policy_slots;
    for (kind, slots) in [
        (Kind::Interface, &compiler.interfaces),
        (Kind::Vrf, &compiler.vrfs),
        (Kind::Zone, &policy.zones),
        (Kind::Rule, &policy.rules),
        (Kind::NatRule, &policy.nat_rules),
        (Kind::Pool, &policy.pools),
        (Kind::Backend, &policy.backends),
        (Kind::Bridge, &compiler.bridges),
    ] {
        names.extend(kind, slots.names().iter().map(String::as_str));
    }
}

fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip().to_canonical(), a.port()) == (b.ip().to_canonical(), b.port())
}

impl Gateway {
    /// Has the other node told of the config once it has changed; to be called every second or so.
    pub(super) fn tell_config(&mut self) {
        let now = self.now();
        self.pair.tell_config(&self.config, now);
    }

    /// The descriptor that is readable when the other node has written something.
    pub fn pair_descriptor(&self) -> RawFd {
        self.pair.news.as_raw_fd()
    }

    pub(super) fn show_pair(&self) -> Option<PairEntry> {
        let config = &self.pair.running.as_ref()?.plan.config;
        let Answer { status, unready, strangers, not_sent, socket_error } = self.pair.answer();
        let named = |names: &[&str], counts: &[u64]| {
            let all = names.iter().zip(counts).filter(|(_, count)| **count > 0);
            all.map(|(name, count)| AdvertErrors { kind: (*name).to_owned(), count: *count }).collect()
        };
        let sum = |field: fn(&crate::telemetry::ReplicaCounters) -> u64| {
            self.node.counters.iter().map(|counters| field(&counters.replicas)).sum()
        };
        let links = || self.node.counters.iter().map(|counters| &counters.pair_link);
        let link_sent: [u64; Why::COUNT] =
            std::array::from_fn(|why| links().map(|link| link.sent[why].load(Relaxed)).sum());
        let link_received = links().map(|link| link.received.load(Relaxed)).sum();
        let mut refused = BadDatagram::ALL.map(BadDatagram::name).to_vec();
        let mut refused_counts = status.refused.to_vec();
        refused.push("other-address");
        refused_counts.push(strangers);
        let mut lost = NotInstalled::NAMES.to_vec();
        let mut lost_counts: Vec<u64> = (0..NotInstalled::COUNT)
            .map(|cause| {
                let count = |counters: &crate::telemetry::WorkerCounters| {
                    counters.replicas.refused[cause].load(Relaxed)
                };
                self.node.counters.iter().map(|counters| count(counters)).sum()
            })
            .collect();
        lost.extend(["unknown-name", "unreadable"]);
        lost_counts.extend([status.unknown_names, status.senseless]);
        Some(PairEntry {
            local: config.local,
            peer: config.peer,
            is_there: status.is_there,
            heard_ms: status.silent.map(|silent| silent.as_millis() as u64),
            is_synced: status.is_synced,
            has_all: status.has_all,
            unready,
            lag_ms: status.lag.as_millis() as u64,
            lag_records: status.pending,
            resyncs: status.resyncs,
            differs: status.differs.as_ref().map(|sections| sections.to_vec()),
            drift: DriftEntry {
                looks: status.drift.looks,
                found: status.drift.found,
                repaired: status.drift.repaired,
                left: status.drift.left,
            },
            datagrams: status.datagrams,
            bytes: status.bytes,
            records: status.records,
            resent: status.resent,
            not_sent,
            installed: sum(|replicas| replicas.installed.load(Relaxed)),
            renewed: sum(|replicas| replicas.renewed.load(Relaxed)),
            kept: sum(|replicas| replicas.kept.load(Relaxed)),
            ended: sum(|replicas| replicas.ended.load(Relaxed)),
            swept: sum(|replicas| replicas.swept.load(Relaxed)),
            not_installed: named(&lost, &lost_counts),
            refused: named(&refused, &refused_counts),
            witness: config.witness.map(|address| WitnessEntry {
                address,
                answers: match self.pair.readiness.witness() {
                    Witness::None | Witness::Unknown => None,
                    Witness::Silent => Some(false),
                    Witness::Answers => Some(true),
                },
                is_cut_off: self.pair.readiness.is_cut_off(),
            }),
            link_sent: named(&Why::NAMES, &link_sent),
            link_received,
            error: socket_error,
        })
    }
}
