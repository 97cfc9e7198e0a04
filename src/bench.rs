//! The benchmark: the shipped worker loop over frames in memory.
//!
//! What a packet costs is the loop's TSC cycles less those of the *null pipeline*: the same port, the same
//! copy-in and burst loop, every frame put back at once. Both run in alternating windows; the result is
//! the median of the differences, so that a noisy neighbour hits both.

mod new_flows;
mod reading;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::Config;
use crate::io::memory::{MemoryPort, Sink, Template};
use crate::mem::{ChunkSize, FramePool, PacketMemory, tsc};
use crate::packet::view::{be16, ethertype, protocol};
use crate::replay::{self, ReplayError};
use crate::telemetry::Totals;
use crate::time::Nanos;
use crate::worker::{Node, Worker};
pub use new_flows::NewFlows;

/// Pairs of windows.
const WINDOWS: usize = 20;

/// Frames of packet memory per worker: small, so that packets stay in the cache as after a NIC's copy.
const FRAMES: usize = 4096;

/// With frames that are handed over and come home in batches: a turn's two bursts, for sixteen turns and their way.
const FRAMES_IF_HANDED_OVER: usize = 8192;

/// Burst times kept per worker for the percentiles.
const MAX_SAMPLES: usize = 1 << 20;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Captures by port name.
    pub inputs: Vec<(String, std::path::PathBuf)>,
    /// Threads.
    pub workers: usize,
    /// First CPU to pin to; worker n takes the n-th behind it.
    pub first_cpu: usize,
    /// Time measured, after the warm-up.
    pub seconds: f64,
    /// Report although packets were dropped: for scenarios that drop on purpose.
    pub allow_drops: bool,
    /// Ports `(out, in)`: what leaves by `out` in a first round comes in again by `in` as replies, mixed one to one
    /// with the captures.
    pub reflect: Vec<(String, String)>,
    /// With several workers, how many percent of the frames come in at a worker that has not got their flow; otherwise
    /// every worker receives all of them.
    pub foreign_percent: Option<u8>,
    /// Every packet begins a session, instead of going on in one.
    pub new_flows: Option<NewFlows>,
    /// In every other window somebody reads all sessions, again and again.
    pub read: bool,
}

/// The result of a benchmark; `--json` prints it as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Million packets a second, all workers, the copy-in included.
    pub mpps: f64,
    /// Gigabits a second, counting the frames' bytes as captured.
    pub gbps: f64,
    /// TSC cycles a packet costs above the null pipeline: median over the windows and workers.
    pub cycles_per_packet: f64,
    /// TSC cycles of the null pipeline per packet.
    pub null_cycles_per_packet: f64,
    /// TSC cycles of the whole loop per packet.
    pub loop_cycles_per_packet: f64,
    /// Lowest and highest difference of a window.
    pub cycles_range: (f64, f64),
    /// Time of a burst in nanoseconds: p50, p99, p99.9, longest.
    pub burst_ns: [u64; 4],
    /// Packets measured.
    pub packets: u64,
    /// Sessions begun a second, all workers.
    pub sessions_per_s: f64,
    /// With new flows only: what resident memory has grown by in the first round, by session.
    pub bytes_per_session: f64,
    /// Percent of the packets that were given to the worker that has their flow.
    pub handed_over_percent: f64,
    /// What a reader of all sessions costs: percent of the loop's time per packet, median of the pairs of windows.
    pub reading_percent: Option<f64>,
    /// Sessions that were read in a second of the windows with a reader.
    pub read_per_s: Option<f64>,
    /// Packets dropped, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Threads.
    pub workers: usize,
    /// Mean frame size in bytes.
    pub frame_bytes: f64,
    /// Different frames in the captures.
    pub frames: usize,
    /// Routes in all VRFs.
    pub routes: usize,
    /// Bytes of the forwarding tables of all VRFs.
    pub fib_bytes: usize,
    /// Pages below the packet memory.
    pub pages: String,
    /// CPU model.
    pub cpu: String,
    /// Kernel release.
    pub kernel: String,
    /// TSC cycles per nanosecond.
    pub tsc_ghz: f64,
}

/// Why a benchmark has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// As for a replay.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// `--reflect` names a port the config does not have.
    #[error("--reflect: the config has no port `{0}`")]
    UnknownPort(String),
    /// Nothing to send.
    #[error("no frames: name at least one capture with --in PORT=FILE")]
    NoFrames,
    /// Packets were lost.
    #[error(
        "{dropped} of {packets} packets were dropped ({reasons}): the scenario does not measure forwarding. \
             Mend the config (static neighbours, routes), or use --allow-drops"
    )]
    Dropped {
        /// How many.
        dropped: u64,
        /// Of how many.
        packets: u64,
        /// By reason.
        reasons: String,
    },
    /// Frames that did not come home.
    #[error("{0} frames leaked: this is a bug")]
    Leaked(usize),
}

#[derive(Default)]
struct Measured {
    full: Vec<(u64, u64)>,
    null: Vec<(u64, u64)>,
    /// With a reader.
    read: Vec<(u64, u64)>,
    read_for: Duration,
    bursts: Vec<u32>,
    elapsed: Duration,
    packets: u64,
    handed_over: u64,
    opened: u64,
    /// By the reader, of all workers.
    sessions_read: u64,
    bytes_per_session: f64,
}

/// Runs the benchmark.
pub fn run(config: &Config, options: &Options) -> Result<Report, BenchError> {
    let ports: Vec<String> = config.ports.iter().map(|port| port.name.to_string()).collect();
    let mut templates: Vec<Template> = vec![Template::default(); ports.len()];
    for (name, path) in &options.inputs {
        let index = ports
            .iter()
            .position(|port| port == name)
            .ok_or_else(|| ReplayError::UnknownPort { name: name.clone(), known: ports.join(", ") })?;
        for captured in crate::io::pcap::read(path).map_err(ReplayError::from)? {
            templates[index].push(&captured.bytes);
        }
    }
    let templates: Vec<Arc<Template>> = templates.into_iter().map(Arc::new).collect();
    let frames: usize = templates.iter().map(|template| template.len()).sum();
    if frames == 0 {
        return Err(BenchError::NoFrames);
    }
    let frame_bytes = templates.iter().map(|t| t.total_bytes()).sum::<usize>() as f64 / frames as f64;
    // What a session takes shows as its memory is taken.
    let populate = config.has_zones() && options.new_flows.is_none();
    let (node, compiler) = replay::compile(config, options.workers, populate)?;
    // What is handed over comes home every few turns only.
    let frames_of_worker = if options.foreign_percent.is_some() { FRAMES_IF_HANDED_OVER } else { FRAMES };
    let (memory, pools) = PacketMemory::new(options.workers, frames_of_worker, ChunkSize::Bytes2048)
        .map_err(ReplayError::from)?;
    let index = |name: &String| ports.iter().position(|port| port == name);
    let port = |name: &String| index(name).ok_or_else(|| BenchError::UnknownPort(name.clone()));
    let pairs = options.reflect.iter().map(|(out, back)| Ok((port(out)?, port(back)?)));
    let reflect = pairs.collect::<Result<Vec<_>, BenchError>>()?;
    let measured = measure(&node, pools, &templates, &reflect, options);
    let totals = Totals::of(node.counters.iter().map(|counters| &**counters));
    if memory.leaked() != 0 {
        return Err(BenchError::Leaked(memory.leaked()));
    }
    let dropped: u64 = totals.drops.iter().map(|(_, count)| count).sum();
    if dropped > 0 && !options.allow_drops {
        let reasons = totals.drops.iter().map(|(reason, count)| format!("{} {count}", reason.name()));
        let reasons = reasons.collect::<Vec<_>>().join(", ");
        return Err(BenchError::Dropped { dropped, packets: totals.received, reasons });
    }
    Ok(report(measured, &totals, &node, &compiler, &memory, options, frames, frame_bytes))
}

fn measure(
    node: &Arc<Node>,
    pools: Vec<FramePool>,
    templates: &[Arc<Template>],
    reflect: &[(usize, usize)],
    options: &Options,
) -> Vec<Measured> {
    let barrier = Barrier::new(options.workers);
    let reader = options.read.then(reading::Reader::default);
    let start = Instant::now();
    let clock = move || Nanos(start.elapsed().as_nanos() as u64);
    let mut workers: Vec<Worker> =
        pools.into_iter().enumerate().map(|(id, pool)| Worker::new(id, node, pool)).collect();
    let mut templates = templates.to_vec();
    learn(&mut workers, &mut templates, reflect);
    let templates: Vec<Vec<Arc<Template>>> = match options.foreign_percent {
        Some(percent) => share(&mut workers, node, &templates, percent),
        None => vec![templates; options.workers],
    };
    std::thread::scope(|scope| {
        if let Some(reader) = &reader {
            scope.spawn(move || reader.run(&node.desks, clock));
        }
        let threads: Vec<_> = workers
            .into_iter()
            .zip(&templates)
            .enumerate()
            .map(|(id, (mut worker, templates))| {
                let (barrier, reader) = (&barrier, reader.as_ref());
                scope.spawn(move || {
                    core_affinity::set_for_current(core_affinity::CoreId { id: options.first_cpu + id });
                    if let Some(kind) = options.new_flows {
                        let measured = new_flows::measure(&mut worker, node, templates, id, kind, options);
                        worker.stop();
                        return measured;
                    }
                    for (port, template) in templates.iter().enumerate() {
                        // Workers start at different frames, so that they do not walk in step.
                        let first = template.len() / options.workers * id;
                        let io =
                            MemoryPort::new(Arc::clone(template), true, Sink::Discard).starting_at(first);
                        worker.attach(port as u16, 0, Box::new(io));
                    }
                    let mut measured = measure_worker(&mut worker, node, id, barrier, reader, clock, options);
                    if let Some(reader) = reader {
                        reader.end();
                        measured.sessions_read = reader.sessions();
                    }
                    // Nothing comes in any more; what has been handed over goes out.
                    for port in 0..templates.len() {
                        worker.detach(port as u16, 0);
                        worker.attach(port as u16, 0, Box::new(MemoryPort::default()));
                    }
                    for _ in 0..2 {
                        barrier.wait();
                        while worker.turn(Nanos::from_secs(options.seconds as u64 + 10)) {}
                    }
                    barrier.wait();
                    worker.stop();
                    measured
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker panicked")).collect()
    })
}

/// Turns all workers until none has anything left to do.
fn settle(workers: &mut [Worker]) {
    while workers.iter_mut().fold(false, |worked, worker| worker.turn(Nanos::default()) | worked) {}
}

/// Gives the first worker these frames to receive and all workers these ports to send by.
fn attach(workers: &mut [Worker], templates: &[Arc<Template>], sink: impl Fn(usize) -> Sink) {
    for (id, worker) in workers.iter_mut().enumerate() {
        for (port, template) in templates.iter().enumerate() {
            let template = if id == 0 { Arc::clone(template) } else { Arc::default() };
            worker.attach(port as u16, 0, Box::new(MemoryPort::new(template, false, sink(port))));
        }
    }
}

fn detach(workers: &mut [Worker], ports: usize) {
    for worker in workers {
        (0..ports).for_each(|port| worker.detach(port as u16, 0));
    }
}

/// The frames that each worker receives, so that `percent` of them are of another worker's flows.
fn share(
    workers: &mut [Worker],
    node: &Node,
    templates: &[Arc<Template>],
    percent: u8,
) -> Vec<Vec<Arc<Template>>> {
    let mut shares: Vec<Vec<Template>> = vec![vec![Template::default(); templates.len()]; workers.len()];
    let sent = || node.counters.iter().map(|worker| worker.sent.load(Ordering::Relaxed)).collect::<Vec<_>>();
    for (port, template) in templates.iter().enumerate() {
        for index in 0..template.len() {
            let mut one = vec![Template::default(); templates.len()];
            one[port].push(template.frame(index));
            let one: Vec<_> = one.into_iter().map(Arc::new).collect();
            attach(workers, &one, |_| Sink::Discard);
            let before = sent();
            settle(workers);
            detach(workers, templates.len());
            let owner = sent().iter().zip(&before).position(|(now, before)| now > before).unwrap_or(0);
            // Which of them are foreign is as good as random, and the same each time.
            let dice = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let is_foreign = (dice * 100) >> 32 < u64::from(percent);
            let by = if is_foreign { (owner + 1) % workers.len() } else { owner };
            shares[by][port].push(template.frame(index));
        }
    }
    shares.into_iter().map(|templates| templates.into_iter().map(Arc::new).collect()).collect()
}

/// One round through all frames, in which sessions begin and whose results become the replies.
fn learn(workers: &mut [Worker], templates: &mut [Arc<Template>], reflect: &[(usize, usize)]) {
    if reflect.is_empty() {
        return;
    }
    let kept: Vec<_> = templates.iter().map(|_| Arc::new(Mutex::new(Vec::new()))).collect();
    attach(workers, templates, |port| {
        let is_reflected = reflect.iter().any(|(out, _)| *out == port);
        if is_reflected { Sink::Keep(Arc::clone(&kept[port])) } else { Sink::Discard }
    });
    settle(workers);
    detach(workers, templates.len());
    for (out, back) in reflect {
        let mut replies = Template::clone(&templates[*back]);
        for mut frame in std::mem::take(&mut *kept[*out].lock().expect("no holder panics")) {
            if turn_around(&mut frame) {
                replies.push(&frame);
            }
        }
        templates[*back] = Arc::new(replies);
    }
}

/// Makes a frame its own reply: addresses and ports change places, and so do TCP's sequence numbers. Checksums stay
/// right, as they are sums. False: it is no TCP or UDP.
fn turn_around(frame: &mut [u8]) -> bool {
    let mut l3 = 14;
    while frame.len() >= l3 + 20 && matches!(be16(frame, l3 - 2), ethertype::VLAN | ethertype::QINQ) {
        l3 += 4;
    }
    if frame.len() < l3 + 20 {
        return false;
    }
    let (addrs, len, upper, l4) = match be16(frame, l3 - 2) {
        ethertype::IPV4 => (l3 + 12, 4, frame[l3 + 9], l3 + usize::from(frame[l3] & 15) * 4),
        ethertype::IPV6 => (l3 + 8, 16, frame[l3 + 6], l3 + 40),
        _ => return false,
    };
    let is_tcp = upper == protocol::TCP;
    if !is_tcp && upper != protocol::UDP || frame.len() < l4 + if is_tcp { 20 } else { 8 } {
        return false;
    }
    let mut swap = |at: usize, len: usize| {
        let (a, b) = frame[at..at + 2 * len].split_at_mut(len);
        a.swap_with_slice(b);
    };
    swap(0, 6);
    swap(addrs, len);
    swap(l4, 2);
    if is_tcp {
        swap(l4 + 4, 4);
    }
    true
}

/// What happens in a window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Window {
    /// Every frame is put back at once.
    Null,
    /// The shipped loop.
    Full,
    /// And somebody reads.
    Read,
}

fn measure_worker(
    worker: &mut Worker,
    node: &Node,
    id: usize,
    barrier: &Barrier,
    reader: Option<&reading::Reader>,
    clock: impl Fn() -> Nanos,
    options: &Options,
) -> Measured {
    let received = || node.counters[id].received.load(Ordering::Relaxed);
    let handed_over = || node.counters[id].handed_over.load(Ordering::Relaxed);
    let window = Duration::from_secs_f64(options.seconds / (2 * WINDOWS) as f64);
    let mut bursts = Vec::with_capacity(MAX_SAMPLES);
    // Warm-up: at least once through all frames, caches and branch predictors settled.
    let until = Instant::now() + Duration::from_secs_f64((options.seconds / 5.0).clamp(0.2, 2.0));
    while Instant::now() < until {
        for _ in 0..64 {
            worker.turn(clock());
        }
    }
    let mut measured = Measured::default();
    let opened = || node.counters[id].sessions_opened.load(Ordering::Relaxed);
    for _ in 0..WINDOWS {
        for window_kind in [Window::Null, Window::Full, Window::Read] {
            if window_kind == Window::Read && reader.is_none() {
                continue;
            }
            let null = window_kind == Window::Null;
            worker.set_null_pipeline(null);
            barrier.wait();
            if let Some(reader) = reader.filter(|_| window_kind == Window::Read) {
                reader.want(true);
            }
            let (before, handed_before, opened_before) = (received(), handed_over(), opened());
            let begun = Instant::now();
            let first = tsc::cycles();
            let mut last = first;
            while begun.elapsed() < window {
                for _ in 0..16 {
                    worker.turn(clock());
                    let now = tsc::cycles();
                    if !null && bursts.len() < MAX_SAMPLES {
                        bursts.push((now - last) as u32);
                    }
                    last = now;
                }
            }
            let sample = (last - first, received() - before);
            if null {
                measured.null.push(sample);
            } else if let Some(reader) = reader.filter(|_| window_kind == Window::Read) {
                measured.read.push(sample);
                measured.read_for += begun.elapsed();
                reader.want(false);
                while !reader.is_idle() {
                    worker.turn(clock());
                }
            } else {
                measured.full.push(sample);
                measured.elapsed += begun.elapsed();
                measured.packets += sample.1;
                measured.handed_over += handed_over() - handed_before;
                measured.opened += opened() - opened_before;
            }
        }
    }
    worker.set_null_pipeline(false);
    measured.bursts = bursts;
    measured
}

fn per_packet((cycles, packets): (u64, u64)) -> f64 {
    cycles as f64 / packets.max(1) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::too_many_arguments, reason = "the report gathers everything there is to tell")]
fn report(
    measured: Vec<Measured>,
    totals: &Totals,
    node: &Node,
    compiler: &crate::tables::compile::Compiler,
    memory: &PacketMemory,
    options: &Options,
    frames: usize,
    frame_bytes: f64,
) -> Report {
    let differences: Vec<f64> = measured
        .iter()
        .flat_map(|m| {
            m.full.iter().zip(m.null.iter().cycle()).map(|(full, null)| per_packet(*full) - per_packet(*null))
        })
        .collect();
    let all = |pick: fn(&Measured) -> &Vec<(u64, u64)>| {
        median(measured.iter().flat_map(|m| pick(m).iter().map(|sample| per_packet(*sample))).collect())
    };
    let mpps: f64 = measured.iter().map(|m| m.packets as f64 / m.elapsed.as_secs_f64() / 1e6).sum();
    let tsc_ghz = measured
        .iter()
        .map(|m| m.full.iter().map(|(cycles, _)| *cycles as f64).sum::<f64>() / m.elapsed.as_nanos() as f64)
        .fold(0.0, f64::max);
    let mut bursts: Vec<u32> = measured.iter().flat_map(|m| m.bursts.iter().copied()).collect();
    bursts.sort_unstable();
    let percentile = |p: f64| {
        let index = ((bursts.len() as f64 * p) as usize).min(bursts.len().saturating_sub(1));
        bursts.get(index).map_or(0, |cycles| (f64::from(*cycles) / tsc_ghz) as u64)
    };
    let tables = node.tables.load();
    Report {
        mpps,
        gbps: mpps * frame_bytes * 8.0 / 1000.0,
        cycles_per_packet: median(differences.clone()),
        null_cycles_per_packet: all(|m| &m.null),
        loop_cycles_per_packet: all(|m| &m.full),
        cycles_range: (
            differences.iter().copied().fold(f64::INFINITY, f64::min),
            differences.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ),
        burst_ns: [0.5, 0.99, 0.999, 1.0].map(percentile),
        packets: measured.iter().map(|m| m.packets).sum(),
        sessions_per_s: measured.iter().map(|m| m.opened as f64 / m.elapsed.as_secs_f64()).sum(),
        bytes_per_session: measured.iter().map(|m| m.bytes_per_session).sum::<f64>() / measured.len() as f64,
        handed_over_percent: measured.iter().map(|m| m.handed_over).sum::<u64>() as f64 * 100.0
            / measured.iter().map(|m| m.packets).sum::<u64>().max(1) as f64,
        reading_percent: options.read.then(|| {
            let of_pair = |(read, full): (&(u64, u64), &(u64, u64))| {
                (per_packet(*read) / per_packet(*full) - 1.0) * 100.0
            };
            median(measured.iter().flat_map(|m| m.read.iter().zip(&m.full).map(of_pair)).collect())
        }),
        read_per_s: options
            .read
            .then(|| measured[0].sessions_read as f64 / measured[0].read_for.as_secs_f64().max(1e-9)),
        drops: totals.drops.iter().map(|(reason, count)| (reason.name(), *count)).collect(),
        workers: options.workers,
        frame_bytes,
        frames,
        routes: compiler.rib().len(),
        fib_bytes: tables.vrfs.iter().map(|vrf| vrf.fib4.memory_bytes() + vrf.fib6.memory_bytes()).sum(),
        pages: format!("{:?}", memory.pages()),
        cpu: cpu_model(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        tsc_ghz,
    }
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown").trim().to_owned()
}
