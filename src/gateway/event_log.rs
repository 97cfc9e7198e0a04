//! The event log: a thread that writes what workers leave in their queues, one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use serde::Serialize;

use crate::flow::nat::EventKind;
use crate::neighbours::is_v4_key;
use crate::tables::compile::Compiler;
use crate::telemetry::events::{Event, EventQueues, SessionEvent};
use crate::time::Nanos;

/// How often the queues are looked at.
const PAUSE: Duration = Duration::from_millis(10);

/// How often it is checked whether somebody has moved the file away (logrotate).
const LOOK: Duration = Duration::from_secs(1);

/// Events written before the file is flushed.
const BATCH: usize = 4096;

/// What slots are called.
#[derive(Debug, Default)]
pub(super) struct Names {
    rules: Vec<String>,
    pools: Vec<String>,
    vrfs: Vec<String>,
}

impl Names {
    pub(super) fn of(compiler: &Compiler) -> Names {
        let slots = &compiler.policy_slots;
        Names {
            rules: slots.rules.names().to_vec(),
            pools: slots.pools.names().to_vec(),
            vrfs: compiler.vrfs.names().to_vec(),
        }
    }

    fn get(names: &[String], slot: usize) -> &str {
        names.get(slot).map_or("?", String::as_str)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'a str,
    vrf: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outside: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
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

fn line<'a>(event: &Event, began: SystemTime, names: &'a Names) -> Line<'a> {
    let time =
        |time: Nanos| humantime::format_rfc3339_millis(began + Duration::from_nanos(time.0)).to_string();
    let none = Line {
        time: String::new(),
        event: "",
        vrf: "",
        protocol: None,
        source: None,
        destination: None,
        new_source: None,
        new_destination: None,
        rule: None,
        packets: None,
        bytes: None,
        host: None,
        outside: None,
        ports: None,
        pool: None,
    };
    match event {
        Event::Session(record) => {
            let changed = |new, old| (new != old).then(|| endpoint(new, record.protocol));
            let counted = (record.event == SessionEvent::Ended).then_some((record.packets, record.bytes));
            Line {
                time: time(record.time),
                event: record.event.name(),
                vrf: Names::get(&names.vrfs, record.vrf.into()),
                protocol: Some(crate::config::Service::of_protocol(record.protocol).to_string()),
                source: Some(endpoint(record.source, record.protocol)),
                destination: Some(endpoint(record.destination, record.protocol)),
                new_source: changed(record.new_source, record.source),
                new_destination: changed(record.new_destination, record.destination),
                rule: Some(Names::get(&names.rules, record.rule as usize)),
                packets: counted.map(|(packets, _)| packets),
                bytes: counted.map(|(_, bytes)| bytes),
                ..none
            }
        }
        Event::Block(block) => Line {
            time: time(block.time),
            event: match block.kind {
                EventKind::BlockClaimed => "block-claimed",
                EventKind::BlockReleased => "block-released",
            },
            vrf: Names::get(&names.vrfs, block.inside_vrf.into()),
            host: Some(match address(block.host) {
                IpAddr::V4(host) => host.to_string(),
                IpAddr::V6(host) => format!("{host}/64"),
            }),
            outside: Some(Ipv4Addr::from(block.addr).into()),
            ports: Some(format!("{}-{}", block.first_port, block.last_port)),
            pool: Some(Names::get(&names.pools, block.pool.into())),
            ..none
        },
    }
}

/// The file, opened again when it was moved away.
struct Out {
    path: PathBuf,
    file: BufWriter<File>,
    inode: u64,
    looked: Instant,
}

impl Out {
    fn open(path: &Path) -> io::Result<Out> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Out { path: path.to_owned(), file: BufWriter::new(file), inode, looked: Instant::now() })
    }

    fn is_moved(&mut self) -> bool {
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        std::fs::metadata(&self.path).map_or(true, |metadata| metadata.ino() != self.inode)
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
        let began = SystemTime::now() - started.elapsed();
        let thread = std::thread::Builder::new().name("events".into()).spawn({
            let (setup, queues, stop) = (Arc::clone(&setup), Arc::clone(&queues), Arc::clone(&stop));
            move || {
                let mut out = None;
                while !stop.load(Ordering::Acquire) {
                    if !round(&setup.load(), &queues, &mut out, began) {
                        std::thread::sleep(if queues.is_wanted() { PAUSE } else { LOOK / 4 });
                    }
                }
                while round(&setup.load(), &queues, &mut out, began) {}
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

/// Writes what waits, up to a batch per worker. True if there was something.
fn round(setup: &Setup, queues: &EventQueues, out: &mut Option<Out>, began: SystemTime) -> bool {
    let Some(path) = &setup.path else {
        *out = None;
        return false;
    };
    if out.as_mut().is_none_or(|out| out.path != *path || out.is_moved()) {
        *out = match Out::open(path) {
            Ok(out) => Some(out),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the event log cannot be opened; events wait");
                std::thread::sleep(LOOK);
                return false;
            }
        };
    }
    let Some(open) = out else { return false };
    let mut any = false;
    for worker in 0..queues.workers() {
        for _ in 0..BATCH {
            let Some(event) = queues.pop(worker) else { break };
            any = true;
            let written = serde_json::to_writer(&mut open.file, &line(&event, began, &setup.names))
                .map_err(io::Error::from)
                .and_then(|()| open.file.write_all(b"\n"));
            if let Err(error) = written {
                tracing::error!(path = %path.display(), %error, "an event cannot be written; is the disk full?");
                queues.lose(1);
            }
        }
    }
    if any && let Err(error) = open.file.flush() {
        tracing::error!(path = %path.display(), %error, "events cannot be written; is the disk full?");
    }
    any
}
