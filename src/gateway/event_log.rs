//! The event log: a thread that writes what workers leave in their queues, one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use serde::Serialize;

use crate::flow::nat::{self, EventKind};
use crate::neighbours::is_v4_key;
use crate::tables::bridge::number_of_scope;
use crate::tables::compile::Compiler;
use crate::telemetry::events::{Event, EventQueues, SessionEvent, SessionRecord};
use crate::time::Nanos;

/// How often the queues are looked at.
const PAUSE: Duration = Duration::from_millis(10);

/// How often it is checked whether somebody has moved the file away (logrotate).
const LOOK: Duration = Duration::from_secs(1);

/// Events of a worker that are written at once at most.
const BATCH: usize = 4096;

/// What slots are called.
#[derive(Debug, Default)]
pub(super) struct Names {
    rules: Vec<String>,
    pools: Vec<String>,
    vrfs: Vec<String>,
    bridges: Vec<String>,
}

impl Names {
    pub(super) fn of(compiler: &Compiler) -> Names {
        let slots = &compiler.policy_slots;
        Names {
            rules: slots.rules.names().to_vec(),
            pools: slots.pools.names().to_vec(),
            vrfs: compiler.vrfs.names().to_vec(),
            bridges: compiler.bridges.names().iter().map(|name| format!("bridge:{name}")).collect(),
        }
    }

    fn get(names: &[String], slot: usize) -> &str {
        names.get(slot).map_or("?", String::as_str)
    }
}

/// What became of a session, as the log has it.
#[derive(Serialize)]
struct SessionLine<'a> {
    time: String,
    event: &'static str,
    vrf: &'a str,
    protocol: String,
    source: String,
    destination: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_destination: Option<String>,
    rule: &'a str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    counted: Option<Counted>,
}

/// Packets and bytes of both directions: known when a session has ended.
#[derive(Serialize)]
struct Counted {
    packets: u64,
    bytes: u64,
}

/// What became of a NAT port block, as the log has it.
#[derive(Serialize)]
struct BlockLine<'a> {
    time: String,
    event: &'static str,
    vrf: &'a str,
    host: String,
    outside: Ipv4Addr,
    ports: String,
    pool: &'a str,
}

/// An IPv4 address as such.
fn address(key: u128) -> IpAddr {
    if is_v4_key(key) { Ipv4Addr::from(key as u32).into() } else { Ipv6Addr::from(key).into() }
}

/// An endpoint as commands print it; without ports the address alone.
fn endpoint((key, port): (u128, u16), protocol: u8) -> String {
    use crate::packet::view::protocol::{SCTP, TCP, UDP};
    match protocol {
        TCP | UDP | SCTP => SocketAddr::new(address(key), port).to_string(),
        _ => address(key).to_string(),
    }
}

impl<'a> SessionLine<'a> {
    fn of(record: &SessionRecord, time: String, names: &'a Names) -> SessionLine<'a> {
        let changed = |new, old| (new != old).then(|| endpoint(new, record.protocol));
        let counted = Counted { packets: record.packets, bytes: record.bytes };
        SessionLine {
            time,
            event: record.event.name(),
            vrf: match number_of_scope(record.vrf) {
                Some(bridge) => Names::get(&names.bridges, bridge.into()),
                None => Names::get(&names.vrfs, record.vrf.into()),
            },
            protocol: crate::config::Service::of_protocol(record.protocol).to_string(),
            source: endpoint(record.source, record.protocol),
            destination: endpoint(record.destination, record.protocol),
            new_source: changed(record.new_source, record.source),
            new_destination: changed(record.new_destination, record.destination),
            rule: Names::get(&names.rules, record.rule as usize),
            counted: matches!(record.event, SessionEvent::Ended | SessionEvent::Recycled).then_some(counted),
        }
    }
}

impl<'a> BlockLine<'a> {
    fn of(block: &nat::Event, time: String, names: &'a Names) -> BlockLine<'a> {
        BlockLine {
            time,
            event: match block.kind {
                EventKind::BlockClaimed => "block-claimed",
                EventKind::BlockReleased => "block-released",
            },
            vrf: Names::get(&names.vrfs, block.inside_vrf.into()),
            host: match address(block.host) {
                IpAddr::V4(host) => host.to_string(),
                IpAddr::V6(host) => format!("{host}/64"),
            },
            outside: Ipv4Addr::from(block.addr),
            ports: format!("{}-{}", block.first_port, block.last_port),
            pool: Names::get(&names.pools, block.pool.into()),
        }
    }
}

/// Appends the event as a line. `began` is the wall clock's time when the workers' was 0.
fn append(lines: &mut Vec<u8>, event: &Event, began: SystemTime, names: &Names) {
    let wall =
        |time: Nanos| humantime::format_rfc3339_millis(began + Duration::from_nanos(time.0)).to_string();
    let written = match event {
        Event::Session(record) => {
            serde_json::to_writer(&mut *lines, &SessionLine::of(record, wall(record.time), names))
        }
        Event::Block(block) => {
            serde_json::to_writer(&mut *lines, &BlockLine::of(block, wall(block.time), names))
        }
    };
    written.expect("strings and numbers into memory");
    lines.push(b'\n');
}

/// The file, opened again when it was moved away or could not be written.
struct Out {
    path: PathBuf,
    file: File,
    inode: u64,
    looked: Instant,
}

impl Out {
    fn open(path: &Path) -> io::Result<Out> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Out { path: path.to_owned(), file, inode, looked: Instant::now() })
    }

    fn is_moved(&mut self) -> bool {
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        std::fs::metadata(&self.path).map_or(true, |metadata| metadata.ino() != self.inode)
    }

    /// Writes all of it, or says how many bytes went in before the error.
    fn write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut done = 0;
        while done < lines.len() {
            match self.file.write(&lines[done..]) {
                Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
    }
}

/// What did not go well, until it does again.
struct Trouble {
    /// The file is left alone until then.
    retry: Instant,
    /// Inode of a file that ends within a line.
    torn: Option<u64>,
}

/// Takes events from the queues into the file.
#[derive(Default)]
struct Writer {
    out: Option<Out>,
    trouble: Option<Trouble>,
    /// Reused from round to round.
    lines: Vec<u8>,
}

impl Writer {
    /// Writes what waits, up to a batch per worker. True if there was something.
    fn round(&mut self, setup: &Setup, queues: &EventQueues, began: SystemTime) -> bool {
        let Some(path) = &setup.path else {
            *self = Writer::default();
            return false;
        };
        if self.trouble.as_ref().is_some_and(|trouble| Instant::now() < trouble.retry) {
            return false;
        }
        if self.out.as_mut().is_none_or(|out| out.path != *path || out.is_moved()) {
            self.out = match Out::open(path) {
                Ok(out) => Some(out),
                Err(error) => {
                    self.failed(path, &error, None);
                    return false;
                }
            };
        }
        let Some(out) = &mut self.out else { return false };
        self.lines.clear();
        let mut any = false;
        for worker in 0..queues.workers() {
            for event in std::iter::from_fn(|| queues.pop(worker)).take(BATCH) {
                append(&mut self.lines, &event, began, &setup.names);
                any = true;
            }
        }
        if !any {
            return false;
        }
        let is_torn = self.trouble.as_ref().is_some_and(|trouble| trouble.torn == Some(out.inode));
        let end_torn = if is_torn { out.write(b"\n") } else { Ok(()) };
        match end_torn.and_then(|()| out.write(&self.lines)) {
            Ok(()) if self.trouble.take().is_some() => {
                tracing::warn!(path = %path.display(), lost = queues.lost(), "events are written again");
            }
            Ok(()) => {}
            Err((done, error)) => {
                queues.lose(self.lines[done..].iter().filter(|byte| **byte == b'\n').count() as u64);
                let torn = self.lines[..done].last().is_some_and(|last| *last != b'\n').then_some(out.inode);
                self.failed(path, &error, torn);
            }
        }
        any
    }

    /// Says so once, however long it lasts: a full disk must not be filled further by another log.
    fn failed(&mut self, path: &Path, error: &io::Error, torn: Option<u64>) {
        if self.trouble.is_none() {
            tracing::error!(path = %path.display(), %error, "events cannot be written; they wait as long as there is room");
        }
        let was_torn = self.trouble.as_ref().and_then(|trouble| trouble.torn);
        self.trouble = Some(Trouble { retry: Instant::now() + LOOK, torn: torn.or(was_torn) });
        self.out = None;
    }
}

/// The thread.
pub(super) struct EventLog {
    setup: Arc<ArcSwap<Setup>>,
    queues: Arc<EventQueues>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Where to and with what names.
#[derive(Debug, Default)]
struct Setup {
    path: Option<PathBuf>,
    names: Names,
}

impl EventLog {
    /// `started` is when the workers' clock was 0.
    pub(super) fn start(queues: Arc<EventQueues>, started: Instant) -> io::Result<EventLog> {
        let setup: Arc<ArcSwap<Setup>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("events".into()).spawn({
            let (setup, queues, stop) = (Arc::clone(&setup), Arc::clone(&queues), Arc::clone(&stop));
            move || {
                let mut writer = Writer::default();
                // Anew each time: whoever sets the clock means these lines too.
                let began = || SystemTime::now() - started.elapsed();
                while !stop.load(Ordering::Acquire) {
                    if !writer.round(&setup.load(), &queues, began()) {
                        std::thread::sleep(if queues.is_wanted() { PAUSE } else { LOOK / 4 });
                    }
                }
                while writer.round(&setup.load(), &queues, began()) {}
            }
        })?;
        Ok(EventLog { setup, queues, stop, thread: Some(thread) })
    }

    /// Another config: where to, and what things are called from now on.
    pub(super) fn set(&self, path: Option<&Path>, compiler: &Compiler) {
        let names = if path.is_some() { Names::of(compiler) } else { Names::default() };
        self.setup.store(Arc::new(Setup { path: path.map(Path::to_owned), names }));
        self.queues.want(path.is_some());
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the event log panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbours::v4_key;

    fn refused(port: u16) -> Event {
        let source = (v4_key(0xc000_0207), port);
        let destination = (v4_key(0xcb00_7109), 22);
        Event::Session(SessionRecord {
            event: SessionEvent::Refused,
            time: Nanos::from_secs(1),
            vrf: 0,
            protocol: crate::packet::view::protocol::TCP,
            source,
            destination,
            new_source: source,
            new_destination: destination,
            rule: 0,
            packets: 0,
            bytes: 0,
        })
    }

    fn setup(path: &Path) -> Setup {
        let names = Names { rules: vec!["no-ssh".into()], vrfs: vec!["default".into()], ..Names::default() };
        Setup { path: Some(path.to_owned()), names }
    }

    fn push(queues: &EventQueues, ports: std::ops::Range<u16>) {
        queues.want(true);
        ports.for_each(|port| queues.push(0, refused(port)));
    }

    /// What the lines of a file say of their source ports; what is no JSON object is `None`.
    fn sources(path: &Path) -> Vec<Option<String>> {
        let text = std::fs::read_to_string(path).expect("the log");
        let source = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line["source"].as_str()?.to_owned())
        };
        text.lines().map(source).collect()
    }

    #[test]
    fn a_line_has_what_happened_and_nothing_that_is_not_known() {
        let mut lines = Vec::new();
        append(&mut lines, &refused(1000), SystemTime::UNIX_EPOCH, &setup(Path::new("-")).names);
        assert_eq!(
            String::from_utf8(lines).expect("text"),
            concat!(
                r#"{"time":"1970-01-01T00:00:01.000Z","event":"refused","vrf":"default","protocol":"tcp","#,
                r#""source":"192.0.2.7:1000","destination":"203.0.113.9:22","rule":"no-ssh"}"#,
                "\n"
            )
        );
    }

    /// Once an error came for every event, and what waited in a buffer was lost without being counted.
    #[test]
    fn a_full_disk_loses_one_batch_a_second_and_counts_it() {
        let (queues, mut writer) = (EventQueues::new(1), Writer::default());
        let full = setup(Path::new("/dev/full"));
        push(&queues, 0..100);
        assert!(writer.round(&full, &queues, SystemTime::UNIX_EPOCH));
        assert_eq!(queues.lost(), 100);
        push(&queues, 0..100);
        assert!(!writer.round(&full, &queues, SystemTime::UNIX_EPOCH), "it is left alone for a while");
        assert_eq!(queues.lost(), 100, "what comes meanwhile waits");

        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("events.jsonl");
        writer.trouble.as_mut().expect("there is trouble").retry = Instant::now();
        assert!(writer.round(&setup(&path), &queues, SystemTime::UNIX_EPOCH));
        assert!(writer.trouble.is_none());
        assert_eq!((sources(&path).len(), queues.lost()), (100, 100));
    }

    #[test]
    fn what_was_cut_off_in_mid_line_costs_that_line_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("events.jsonl");
        let (queues, mut writer) = (EventQueues::new(1), Writer::default());
        push(&queues, 0..2);
        assert!(writer.round(&setup(&path), &queues, SystemTime::UNIX_EPOCH));
        // As a write leaves it that found room for half a line.
        let mut file = OpenOptions::new().append(true).open(&path).expect("the log");
        file.write_all(br#"{"time":"1970"#).expect("it is written");
        let inode = file.metadata().expect("it is there").ino();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        writer.failed(&path, &full(), Some(inode));
        writer.failed(&path, &full(), None);
        writer.trouble.as_mut().expect("there is trouble").retry = Instant::now();
        push(&queues, 2..3);
        assert!(writer.round(&setup(&path), &queues, SystemTime::UNIX_EPOCH));
        let port = |port| Some(format!("192.0.2.7:{port}"));
        assert_eq!(sources(&path), [port(0), port(1), None, port(2)]);
    }
}
