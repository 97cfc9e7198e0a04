//! Ports that are capture files: frames come in at their capture time, what is sent is written.
//!
//! Reads pcap and pcapng, writes pcap with nanoseconds.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, TsResolution};

use crate::io::Port;
use crate::mem::{FramePool, Frames};
use crate::time::Nanos;

/// The clock of a replay, which its ports look at.
#[derive(Clone, Debug, Default)]
pub struct ReplayClock(Arc<AtomicU64>);

impl ReplayClock {
    /// The time now.
    pub fn now(&self) -> Nanos {
        Nanos(self.0.load(Ordering::Relaxed))
    }

    /// Moves on.
    pub fn set(&self, now: Nanos) {
        self.0.store(now.0, Ordering::Relaxed);
    }
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Capture time since the epoch.
    pub time: Nanos,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Why a capture could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file.
    #[error("{path}: {source}")]
    File {
        /// Its path.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Its content.
    #[error("{path}: packet {packet}: {problem}; expected a pcap or pcapng file of Ethernet frames")]
    Content {
        /// Its path.
        path: PathBuf,
        /// Number of the packet, from 1; 0 = the header.
        packet: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Magic number of a pcapng file's first block.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Reads a whole capture.
pub fn read(path: &Path) -> Result<Vec<Captured>, CaptureError> {
    let bytes = std::fs::read(path).map_err(|source| CaptureError::File { path: path.to_owned(), source })?;
    if bytes.starts_with(&PCAPNG_MAGIC) { read_pcapng(path, &bytes) } else { read_pcap(path, &bytes) }
}

fn content(path: &Path, packet: usize, problem: impl ToString) -> CaptureError {
    CaptureError::Content { path: path.to_owned(), packet, problem: problem.to_string() }
}

fn read_pcap(path: &Path, bytes: &[u8]) -> Result<Vec<Captured>, CaptureError> {
    let mut reader = PcapReader::new(bytes).map_err(|error| content(path, 0, error))?;
    if reader.header().datalink != DataLink::ETHERNET {
        return Err(content(path, 0, format!("link type {:?}", reader.header().datalink)));
    }
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.map_err(|error| content(path, frames.len() + 1, error))?;
        frames.push(captured(packet.timestamp, &packet.data));
    }
    Ok(frames)
}

fn read_pcapng(path: &Path, bytes: &[u8]) -> Result<Vec<Captured>, CaptureError> {
    let mut reader = PcapNgReader::new(bytes).map_err(|error| content(path, 0, error))?;
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.map_err(|error| content(path, frames.len() + 1, error))? {
            Block::InterfaceDescription(interface) if interface.linktype != DataLink::ETHERNET => {
                return Err(content(path, 0, format!("link type {:?}", interface.linktype)));
            }
            Block::EnhancedPacket(packet) => frames.push(captured(packet.timestamp, &packet.data)),
            Block::SimplePacket(_) | Block::Packet(_) => {
                let problem = "a packet without a time (a Simple Packet Block, or an obsolete one)";
                return Err(content(path, frames.len() + 1, problem));
            }
            _ => {}
        }
    }
    Ok(frames)
}

fn captured(timestamp: Duration, data: &[u8]) -> Captured {
    Captured { time: Nanos(timestamp.as_nanos() as u64), bytes: data.to_vec() }
}

/// A file that is made when the first frame is written to it.
pub struct CaptureWriter {
    path: PathBuf,
    start: Nanos,
    writer: Option<PcapWriter<BufWriter<File>>>,
    /// The first failure; later frames are not written.
    failed: Option<CaptureError>,
    frames: u64,
}

impl CaptureWriter {
    /// Will write to `path`; workers' time is `start` behind the file's.
    pub fn new(path: PathBuf, start: Nanos) -> CaptureWriter {
        CaptureWriter { path, start, writer: None, failed: None, frames: 0 }
    }

    fn write(&mut self, time: Nanos, bytes: &[u8]) {
        if self.failed.is_none()
            && let Err(error) = self.try_write(time, bytes)
        {
            self.failed = Some(error);
        }
    }

    fn try_write(&mut self, time: Nanos, bytes: &[u8]) -> Result<(), CaptureError> {
        if self.writer.is_none() {
            let file = |source| CaptureError::File { path: self.path.clone(), source };
            let out = BufWriter::new(File::create(&self.path).map_err(file)?);
            let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
            let writer =
                PcapWriter::with_header(out, header).map_err(|error| content(&self.path, 0, error))?;
            self.writer = Some(writer);
        }
        let Some(writer) = &mut self.writer else { unreachable!("just made") };
        let packet = PcapPacket::new(Duration::from_nanos(self.start.0 + time.0), bytes.len() as u32, bytes);
        writer.write_packet(&packet).map_err(|error| content(&self.path, self.frames as usize + 1, error))?;
        self.frames += 1;
        Ok(())
    }

    /// Frames written, or the first failure.
    pub fn finish(&mut self) -> Result<u64, CaptureError> {
        // Dropping the writer flushes its buffer.
        if let Some(writer) = self.writer.take() {
            let mut out = writer.into_writer();
            std::io::Write::flush(&mut out)
                .map_err(|source| CaptureError::File { path: self.path.clone(), source })?;
        }
        self.failed.take().map_or(Ok(self.frames), Err)
    }
}

/// One queue of a port that is a file.
pub struct PcapPort {
    input: VecDeque<Captured>,
    clock: ReplayClock,
    output: Arc<Mutex<CaptureWriter>>,
}

impl PcapPort {
    /// Receives `input` (in order of time) when the clock reaches it, writes what is sent to `output`.
    pub fn new(input: VecDeque<Captured>, clock: ReplayClock, output: Arc<Mutex<CaptureWriter>>) -> PcapPort {
        PcapPort { input, clock, output }
    }
}

impl Port for PcapPort {
    fn receive(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let now = self.clock.now();
        let before = frames.len();
        while !frames.is_full() && self.input.front().is_some_and(|captured| captured.time <= now) {
            let Some(frame) = self.input.front().and_then(|captured| pool.take_filled(&captured.bytes))
            else {
                break;
            };
            frames.push(frame);
            self.input.pop_front();
        }
        frames.len() - before
    }

    fn send(&mut self, pool: &mut FramePool, frames: &mut Frames) -> usize {
        let mut output = self.output.lock().expect("no holder panics");
        let count = frames.len();
        for frame in frames.drain(..) {
            if frame.is_chained() {
                output.write(self.clock.now(), &frame.chain_bytes());
            } else {
                output.write(self.clock.now(), frame.bytes());
            }
            pool.put(frame);
        }
        count
    }
}
