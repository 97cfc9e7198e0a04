//! Golden captures: every directory under `tests/pcap/` through `softgate replay`, to the byte.
//!
//! A case is `config.toml`, `case.toml`, `in.PORT.pcap` and `out.PORT.pcap`. What comes out must equal
//! `out.*`, frame for frame and port for port, and every counter that `case.toml` does not name must be 0.
//! The expectations are written by `tests/pcap/generate.py` from the RFCs; SoftGate has no say in them.
//!
//! What a NAT may choose (an outside port, a query identifier, an address of a pool) is a *variable* of the case:
//! a 16-bit word with the values that it may have and the words it may not be equal to. The first frame that
//! carries it binds it, if all else of the frame is right and no input before it lacks a word; then the case is
//! run anew with inputs that carry it (a replay repeats itself, and what comes later changes nothing before). The
//! run that is judged has all variables bound, and is compared to the byte like any other.
//!
//! `SOFTGATE_CASE=name[,name]` runs only these. `SOFTGATE_REGENERATE="reason"` with it takes SoftGate's output
//! as the new expectation of those that fail and writes the reason into `case.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etherparse::{LinkSlice, NetSlice, SlicedPacket, TransportSlice, VlanSlice};
use pcap_file::TsResolution;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use serde::Deserialize;

/// A replay of a few frames takes milliseconds; one that takes this long hangs.
const REPLAY_LIMIT: Duration = Duration::from_secs(60);
/// Differing frames shown for each port; the first is the one that matters.
const SHOWN_FRAMES: usize = 3;
/// Shorter than this is no reason.
const SHORTEST_REASON: usize = 15;

/// `case.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectation {
    /// What the case proves, or what once went wrong.
    sentence: String,
    /// Where the expected output comes from; never from SoftGate.
    source: String,
    /// Numbers of lock-step workers to run it with.
    workers: Vec<usize>,
    #[serde(default)]
    linger_ms: u64,
    /// Whether the time of each output frame counts too.
    #[serde(default)]
    timestamps: bool,
    /// Each output frame goes to one of these MACs, each flow always to the same, and none is left out.
    #[serde(default)]
    ecmp_macs: Vec<String>,
    /// Why SoftGate's own output was taken over, if it ever was.
    #[serde(default)]
    regenerated: Vec<String>,
    /// Configs that take over later: milliseconds after the first packet, and the file.
    #[serde(default)]
    reloads: Vec<(u64, String)>,
    /// When the node becomes the Active of all its virtual routers, or is it no more: milliseconds after the first
    /// packet, and `active` or `backup`.
    #[serde(default)]
    roles: Vec<(u64, String)>,
    #[serde(default)]
    drops: BTreeMap<String, u64>,
    #[serde(default)]
    counts: Counts,
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
}

/// A 16-bit word that the gateway may choose.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    /// Lowest and highest value.
    range: (u16, u16),
    /// Variables it may not be equal to.
    #[serde(default)]
    unlike: Vec<String>,
    /// What stands in its place in the captures on disk.
    stands_in: u16,
    /// Where it is.
    fields: Vec<Field>,
}

/// A place of a variable.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    /// `in.PORT` or `out.PORT`.
    file: String,
    /// From 1.
    frame: usize,
    /// Offset in the frame.
    at: usize,
    /// Offsets of the checksums that cover it.
    sums: Vec<usize>,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
struct Counts {
    punted: u64,
    originated: u64,
}

/// What `replay --json` prints.
#[derive(Deserialize)]
struct Printed {
    received: u64,
    sent: u64,
    punted: u64,
    originated: u64,
    leaked_frames: u64,
    drops: BTreeMap<String, u64>,
}

/// A captured frame.
#[derive(Clone, PartialEq, Eq)]
struct Captured {
    time: Duration,
    data: Vec<u8>,
}

/// One directory.
struct Case {
    name: String,
    folder: PathBuf,
    expectation: Expectation,
    inputs: BTreeMap<String, PathBuf>,
    outputs: BTreeMap<String, Vec<Captured>>,
    /// Frames in the inputs.
    received: u64,
    input_times: BTreeMap<String, Vec<Duration>>,
}

/// Frames by port.
type Frames = BTreeMap<String, Vec<Captured>>;

/// Values of variables.
type Bound = BTreeMap<String, u16>;

impl Case {
    fn read(folder: &Path) -> Result<Case, String> {
        let text = fs::read_to_string(folder.join("case.toml")).map_err(|e| format!("case.toml: {e}"))?;
        let expectation: Expectation = toml::from_str(&text).map_err(|e| format!("case.toml: {e}"))?;
        if expectation.sentence.is_empty() || expectation.source.is_empty() || expectation.workers.is_empty()
        {
            return Err("case.toml: sentence, source and workers may not be empty".into());
        }
        let (mut inputs, mut outputs, mut received) = (BTreeMap::new(), BTreeMap::new(), 0);
        let mut input_times = BTreeMap::new();
        for file in fs::read_dir(folder).map_err(|e| e.to_string())? {
            let path = file.map_err(|e| e.to_string())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((kind, port)) = name.strip_suffix(".pcap").and_then(|stem| stem.split_once('.')) else {
                continue;
            };
            let frames = read_capture(&path)?;
            match kind {
                "in" => {
                    received += frames.len() as u64;
                    input_times.insert(port.to_owned(), frames.iter().map(|frame| frame.time).collect());
                    inputs.insert(port.to_owned(), path);
                }
                "out" => {
                    outputs.insert(port.to_owned(), frames);
                }
                _ => return Err(format!("{name}: neither in.PORT.pcap nor out.PORT.pcap")),
            }
        }
        if inputs.is_empty() {
            return Err("no in.PORT.pcap".into());
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Case { name, folder: folder.to_owned(), expectation, inputs, outputs, received, input_times })
    }

    /// Runs the case with so many workers; what is wrong, or nothing.
    fn run(&self, workers: usize, out: &Path) -> Vec<String> {
        let mut bound = Bound::new();
        loop {
            let (printed, produced) = match self.replay(workers, out, &bound) {
                Ok(result) => result,
                Err(message) => return vec![message],
            };
            let before = bound.len();
            let outputs = match self.bind(&produced, &mut bound) {
                Ok(outputs) => outputs,
                Err(message) => return vec![message],
            };
            if bound.len() == before {
                return self.judge(&printed, &produced, &outputs, &bound);
            }
        }
    }

    /// Compares a run whose variables are as bound as they can be.
    fn judge(&self, printed: &Printed, produced: &Frames, outputs: &Frames, bound: &Bound) -> Vec<String> {
        let mut wrong = self.compare_counters(printed);
        wrong.extend(self.unlawful(bound));
        for port in outputs.keys().chain(produced.keys()).collect::<BTreeSet<_>>() {
            match (outputs.get(port), produced.get(port)) {
                (Some(expected), got) => {
                    wrong.extend(self.compare_port(port, expected, got.map_or(&[], Vec::as_slice)));
                }
                (None, Some(got)) if got.is_empty() => {
                    wrong.push(format!("{port}: a capture was written, though nothing was sent"));
                }
                (None, got) => wrong.extend(self.compare_port(port, &[], got.map_or(&[], Vec::as_slice))),
            }
        }
        wrong
    }

    /// Binds variables by the first frames that carry them, as far as each port's frames are what is expected;
    /// returns the expectation with everything bound in it.
    fn bind(&self, produced: &Frames, bound: &mut Bound) -> Result<Frames, String> {
        let horizon = self.horizon(bound);
        for (port, expected) in &self.outputs {
            let got = produced.get(port).map_or(&[][..], Vec::as_slice);
            for (index, (want, have)) in expected.iter().zip(got).enumerate() {
                let mut found = bound.clone();
                for (name, variable) in &self.expectation.variables {
                    let here = |field: &&Field| field.frame == index + 1 && is_output(&field.file, port);
                    if let Some(field) = variable.fields.iter().find(here)
                        && let Some(word) = word(&have.data, field.at)
                        && horizon.is_none_or(|horizon| have.time < horizon)
                    {
                        found.entry(name.clone()).or_insert(word);
                    }
                }
                let mut frame = want.clone();
                self.fill(&format!("out.{port}"), index + 1, &mut frame, &found)?;
                if frame.data != have.data {
                    break;
                }
                *bound = found;
            }
        }
        let mut outputs = self.outputs.clone();
        for (port, frames) in &mut outputs {
            for (index, frame) in frames.iter_mut().enumerate() {
                self.fill(&format!("out.{port}"), index + 1, frame, bound)?;
            }
        }
        Ok(outputs)
    }

    /// When the first input arrives that lacks the word it should carry: what is chosen from then on may be chosen
    /// otherwise once it has it.
    fn horizon(&self, bound: &Bound) -> Option<Duration> {
        let unbound = self.expectation.variables.iter().filter(|(name, _)| !bound.contains_key(*name));
        let fields = unbound.flat_map(|(_, variable)| &variable.fields);
        let times = fields.filter_map(|field| {
            let times = self.input_times.get(field.file.strip_prefix("in.")?)?;
            times.get(field.frame.checked_sub(1)?).copied()
        });
        times.min()
    }

    /// Writes what is bound into a frame, and mends its checksums (RFC 1624).
    fn fill(&self, file: &str, number: usize, frame: &mut Captured, bound: &Bound) -> Result<(), String> {
        for (name, variable) in &self.expectation.variables {
            let Some(&value) = bound.get(name) else { continue };
            for field in variable.fields.iter().filter(|f| f.file == file && f.frame == number) {
                let what = || format!("case.toml: variable {name} is not at {} of {file} {number}", field.at);
                let old =
                    word(&frame.data, field.at).filter(|w| *w == variable.stands_in).ok_or_else(what)?;
                set_word(&mut frame.data, field.at, value);
                for &at in &field.sums {
                    let sum = word(&frame.data, at).ok_or_else(what)?;
                    set_word(&mut frame.data, at, mended(sum, old, value));
                }
            }
        }
        Ok(())
    }

    /// What the case does not allow of the values.
    fn unlawful(&self, bound: &Bound) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, variable) in &self.expectation.variables {
            let Some(value) = bound.get(name) else {
                wrong.push(format!("variable {name}: no frame that it is in was as expected"));
                continue;
            };
            let (first, last) = variable.range;
            if !(first..=last).contains(value) {
                wrong.push(format!("variable {name}: {value} is not {first} to {last}"));
            }
            for other in variable.unlike.iter().filter(|other| bound.get(*other) == Some(value)) {
                wrong.push(format!("variable {name}: {value}, as {other}"));
            }
        }
        wrong
    }

    /// The captures to replay: as they are on disk, or with what is bound written into copies.
    fn inputs_with(&self, bound: &Bound, scratch: &Path) -> Result<BTreeMap<String, PathBuf>, String> {
        if bound.is_empty() {
            return Ok(self.inputs.clone());
        }
        let mut inputs = BTreeMap::new();
        for (port, path) in &self.inputs {
            let mut frames = read_capture(path)?;
            for (index, frame) in frames.iter_mut().enumerate() {
                self.fill(&format!("in.{port}"), index + 1, frame, bound)?;
            }
            let copy = scratch.with_extension(format!("in.{port}.pcap"));
            write_capture(&copy, &frames)?;
            inputs.insert(port.clone(), copy);
        }
        Ok(inputs)
    }

    fn replay(&self, workers: usize, out: &Path, bound: &Bound) -> Result<(Printed, Frames), String> {
        let (stdout, stderr) = (out.with_extension("stdout"), out.with_extension("stderr"));
        let create = |path: &Path| File::create(path).map_err(|e| format!("{}: {e}", path.display()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_softgate"));
        command.arg("replay").arg("--config").arg(self.folder.join("config.toml"));
        // In reverse: the order of the ports is the config's, not that of the arguments.
        for (port, path) in self.inputs_with(bound, out)?.iter().rev() {
            let mut pair = OsString::from(format!("{port}="));
            pair.push(path);
            command.arg("--in").arg(pair);
        }
        command.arg("--out").arg(out).args(["--json", "--workers", &workers.to_string()]);
        if self.expectation.linger_ms > 0 {
            command.args(["--linger", &self.expectation.linger_ms.to_string()]);
        }
        for (ms, file) in &self.expectation.reloads {
            let mut pair = OsString::from(format!("{ms}="));
            pair.push(self.folder.join(file));
            command.arg("--reload").arg(pair);
        }
        for (ms, role) in &self.expectation.roles {
            command.arg("--role").arg(format!("{ms}={role}"));
        }
        command.stdin(Stdio::null()).stdout(create(&stdout)?).stderr(create(&stderr)?);
        let mut child = command.spawn().map_err(|e| format!("softgate: {e}"))?;
        let started = Instant::now();
        let status = loop {
            match child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if started.elapsed() > REPLAY_LIMIT => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("replay did not end within {REPLAY_LIMIT:?}"));
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let text = fs::read_to_string(&stdout).unwrap_or_default();
        if !status.success() {
            let complaint = fs::read_to_string(&stderr).unwrap_or_default();
            return Err(format!("replay ended with {status}: {}{}", complaint.trim(), text.trim()));
        }
        let printed =
            serde_json::from_str(&text).map_err(|e| format!("replay --json: {e}: {}", text.trim()))?;
        Ok((printed, read_outputs(out)?))
    }

    fn compare_counters(&self, printed: &Printed) -> Vec<String> {
        let sent: u64 = self.outputs.values().map(|frames| frames.len() as u64).sum();
        let totals = [
            ("received", self.received, printed.received),
            ("sent", sent, printed.sent),
            ("punted", self.expectation.counts.punted, printed.punted),
            ("originated", self.expectation.counts.originated, printed.originated),
            ("leaked_frames", 0, printed.leaked_frames),
        ];
        let mut wrong: Vec<String> = totals
            .iter()
            .filter(|(_, expected, got)| expected != got)
            .map(|(name, expected, got)| format!("counter {name}: expected {expected}, got {got}"))
            .collect();
        let reasons = self.expectation.drops.keys().chain(printed.drops.keys()).collect::<BTreeSet<_>>();
        for reason in reasons {
            let expected = self.expectation.drops.get(reason).copied().unwrap_or(0);
            let got = printed.drops.get(reason).copied().unwrap_or(0);
            if expected != got {
                wrong.push(format!("drops {reason}: expected {expected}, got {got}"));
            }
        }
        wrong
    }

    fn compare_port(&self, port: &str, expected: &[Captured], got: &[Captured]) -> Vec<String> {
        let mut wrong = Vec::new();
        if expected.len() != got.len() {
            wrong.push(format!("{port}: expected {} frames, got {}", expected.len(), got.len()));
        }
        let mut differing = 0;
        for index in 0..expected.len().max(got.len()) {
            let (want, have) = (expected.get(index), got.get(index));
            let Some(difference) = self.frame_difference(want, have) else { continue };
            differing += 1;
            if differing <= SHOWN_FRAMES {
                wrong.push(format!("{port}, frame {}: {difference}", index + 1));
            }
        }
        if differing > SHOWN_FRAMES {
            wrong.push(format!("{port}: {} more frames differ", differing - SHOWN_FRAMES));
        }
        if !self.expectation.ecmp_macs.is_empty() {
            wrong.extend(ecmp_complaints(&self.expectation.ecmp_macs, got));
        }
        wrong
    }

    fn frame_difference(&self, want: Option<&Captured>, have: Option<&Captured>) -> Option<String> {
        let any_next_hop = !self.expectation.ecmp_macs.is_empty();
        match (want, have) {
            (Some(want), Some(have)) => {
                let skip = if any_next_hop { 6 } else { 0 };
                if want.data.get(skip..) != have.data.get(skip..) {
                    Some(format!(
                        "differs\n  expected {}\n  got      {}\n{}",
                        describe(&want.data),
                        describe(&have.data),
                        hex_difference(&want.data, &have.data)
                    ))
                } else if self.expectation.timestamps && want.time != have.time {
                    Some(format!(
                        "sent at {:?}, expected at {:?}: {}",
                        have.time,
                        want.time,
                        describe(&want.data)
                    ))
                } else {
                    None
                }
            }
            (Some(want), None) => Some(format!("missing: {}", describe(&want.data))),
            (None, Some(have)) => Some(format!("not expected: {}", describe(&have.data))),
            (None, None) => None,
        }
    }

    /// Takes the output in `out` as the expectation, and says why in `case.toml`.
    fn regenerate(&self, out: &Path, reason: &str) -> Result<(), String> {
        let say = |e: std::io::Error| format!("{}: {e}", self.name);
        for port in self.outputs.keys() {
            fs::remove_file(self.folder.join(format!("out.{port}.pcap"))).map_err(say)?;
        }
        for port in read_outputs(out)?.keys() {
            let to = self.folder.join(format!("out.{port}.pcap"));
            fs::copy(out.join(format!("{port}.pcap")), to).map_err(say)?;
        }
        let path = self.folder.join("case.toml");
        let text = fs::read_to_string(&path).map_err(say)?;
        fs::write(&path, with_reason(&text, &self.expectation.regenerated, reason)).map_err(say)
    }
}

/// `case.toml` with one more reason in `regenerated`, which stands before the first table.
fn with_reason(text: &str, earlier: &[String], reason: &str) -> String {
    let reasons: Vec<_> = earlier.iter().map(String::as_str).chain([reason]).map(toml::Value::from).collect();
    let line = format!("regenerated = {}", toml::Value::Array(reasons));
    let mut lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("regenerated = ")).collect();
    let place = lines.iter().position(|l| l.is_empty() || l.starts_with('[')).unwrap_or(lines.len());
    lines.insert(place, &line);
    lines.join("\n") + "\n"
}

/// Which rule of equal-cost paths the output breaks: known next hops only, one per flow, all used.
fn ecmp_complaints(macs: &[String], got: &[Captured]) -> Vec<String> {
    let (mut of_flow, mut used, mut wrong) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for frame in got {
        let mac = mac(&frame.data);
        if !macs.contains(&mac) {
            wrong.push(format!("{mac} is none of the next hops"));
        }
        let flow = describe_flow(&frame.data);
        let first = of_flow.entry(flow.clone()).or_insert_with(|| mac.clone());
        if *first != mac {
            wrong.push(format!("flow {flow} went to {first} and to {mac}"));
        }
        used.insert(mac);
    }
    wrong.extend(macs.iter().filter(|m| !used.contains(*m)).map(|m| format!("next hop {m} got no flow")));
    wrong
}

fn is_output(file: &str, port: &str) -> bool {
    file.strip_prefix("out.") == Some(port)
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

fn set_word(data: &mut [u8], at: usize, value: u16) {
    data[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A checksum after a word that it covers has changed (RFC 1624 eqn. 3).
fn mended(sum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!sum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

fn write_capture(path: &Path, frames: &[Captured]) -> Result<(), String> {
    let say = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
    let file = File::create(path).map_err(|e| say(&e))?;
    let mut writer = PcapWriter::with_header(file, header).map_err(|e| say(&e))?;
    for frame in frames {
        let packet = PcapPacket::new(frame.time, frame.data.len() as u32, &frame.data);
        writer.write_packet(&packet).map_err(|e| say(&e))?;
    }
    Ok(())
}

fn read_outputs(out: &Path) -> Result<Frames, String> {
    let mut produced = BTreeMap::new();
    let Ok(files) = fs::read_dir(out) else { return Ok(produced) };
    for file in files {
        let path = file.map_err(|e| e.to_string())?.path();
        let port = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        produced.insert(port, read_capture(&path)?);
    }
    Ok(produced)
}

fn read_capture(path: &Path) -> Result<Vec<Captured>, String> {
    let say = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = fs::read(path).map_err(|e| say(&e))?;
    let mut frames = Vec::new();
    if bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
        let mut reader = PcapNgReader::new(&bytes[..]).map_err(|e| say(&e))?;
        while let Some(block) = reader.next_block() {
            if let Block::EnhancedPacket(packet) = block.map_err(|e| say(&e))? {
                frames.push(Captured { time: packet.timestamp, data: packet.data.into_owned() });
            }
        }
    } else {
        let mut reader = PcapReader::new(&bytes[..]).map_err(|e| say(&e))?;
        while let Some(packet) = reader.next_packet() {
            let packet = packet.map_err(|e| say(&e))?;
            frames.push(Captured { time: packet.timestamp, data: packet.data.into_owned() });
        }
    }
    Ok(frames)
}

fn mac(data: &[u8]) -> String {
    let bytes: Vec<String> = data.iter().take(6).map(|b| format!("{b:02x}")).collect();
    bytes.join(":")
}

/// A frame in a line, as far as etherparse understands it.
fn describe(data: &[u8]) -> String {
    let mut line = format!("{} bytes", data.len());
    let Ok(packet) = SlicedPacket::from_ethernet(data) else { return line + ", malformed" };
    if let Some(LinkSlice::Ethernet2(eth)) = &packet.link {
        let _ = write!(line, ", {} > {}", mac(&eth.source()), mac(&eth.destination()));
        if packet.net.is_none() {
            let _ = write!(line, ", {:?}", eth.ether_type());
        }
    }
    match packet.vlan() {
        Some(VlanSlice::SingleVlan(tag)) => _ = write!(line, ", vlan {}", tag.vlan_identifier().value()),
        Some(VlanSlice::DoubleVlan(tags)) => {
            let (outer, inner) = (&tags.outer, &tags.inner);
            _ = write!(
                line,
                ", vlan {}.{}",
                outer.vlan_identifier().value(),
                inner.vlan_identifier().value()
            );
        }
        None => {}
    }
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => _ = write!(line, ", ttl {}", ip.header().ttl()),
        Some(NetSlice::Ipv6(ip)) => _ = write!(line, ", hop limit {}", ip.header().hop_limit()),
        Some(NetSlice::Arp(arp)) => {
            _ = write!(
                line,
                ", ARP op {} {:?} at {} asks {:?}",
                arp.operation().0,
                arp.sender_protocol_addr(),
                mac(arp.sender_hw_addr()),
                arp.target_protocol_addr()
            );
        }
        None => {}
    }
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            _ = write!(line, ", ICMP {}/{}", icmp.type_u8(), icmp.code_u8())
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            _ = write!(line, ", ICMPv6 {}/{}", icmp.type_u8(), icmp.code_u8())
        }
        _ => {}
    }
    line + ", " + &describe_flow(data)
}

/// Addresses and ports.
fn describe_flow(data: &[u8]) -> String {
    let Ok(packet) = SlicedPacket::from_ethernet(data) else { return String::from("-") };
    let addresses = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            format!("{} > {}", ip.header().source_addr(), ip.header().destination_addr())
        }
        Some(NetSlice::Ipv6(ip)) => {
            format!("{} > {}", ip.header().source_addr(), ip.header().destination_addr())
        }
        _ => String::from("no IP"),
    };
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            format!("{addresses} udp {} > {}", udp.source_port(), udp.destination_port())
        }
        Some(TransportSlice::Tcp(tcp)) => {
            format!("{addresses} tcp {} > {}", tcp.source_port(), tcp.destination_port())
        }
        _ => addresses,
    }
}

/// The lines of 16 bytes that differ, expected above got, `^^` under the bytes.
fn hex_difference(want: &[u8], have: &[u8]) -> String {
    let mut text = String::new();
    let hex = |row: &[u8]| row.iter().map(|b| format!("{b:02x} ")).collect::<String>();
    for start in (0..want.len().max(have.len())).step_by(16) {
        let row =
            |data: &[u8]| data.get(start..).map_or(Vec::new(), |rest| rest[..rest.len().min(16)].to_vec());
        let (a, b) = (row(want), row(have));
        if a == b {
            continue;
        }
        if text.lines().count() >= 12 {
            text += "  ...\n";
            break;
        }
        let marks: String =
            (0..a.len().max(b.len())).map(|i| if a.get(i) == b.get(i) { "   " } else { "^^ " }).collect();
        let _ = writeln!(text, "  {start:04x} - {}", hex(&a));
        let _ = writeln!(text, "       + {}\n         {}", hex(&b), marks.trim_end());
    }
    text
}

/// All cases, or those that `SOFTGATE_CASE` names.
fn cases() -> (Vec<Case>, Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pcap");
    let wanted = std::env::var("SOFTGATE_CASE").ok();
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .expect("tests/pcap is there")
        .map(|entry| entry.expect("tests/pcap can be read").path())
        .filter(|path| path.join("case.toml").exists())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            wanted.as_ref().is_none_or(|list| list.split(',').any(|one| one == name))
        })
        .collect();
    folders.sort();
    let (mut cases, mut broken) = (Vec::new(), Vec::new());
    for folder in folders {
        match Case::read(&folder) {
            Ok(case) => cases.push(case),
            Err(message) => broken.push(format!("{}: {message}", folder.display())),
        }
    }
    (cases, broken)
}

/// The reason in `SOFTGATE_REGENERATE`, if the switch is set; it needs words, and names of cases.
fn reason_to_regenerate() -> Option<String> {
    let reason = std::env::var("SOFTGATE_REGENERATE").ok()?;
    let reason = reason.trim().to_owned();
    assert!(
        reason.len() >= SHORTEST_REASON && reason.contains(' '),
        "SOFTGATE_REGENERATE needs the reason in words: why is SoftGate right and the expectation wrong?"
    );
    assert!(
        std::env::var_os("SOFTGATE_CASE").is_some(),
        "SOFTGATE_REGENERATE needs SOFTGATE_CASE: which cases is the reason for?"
    );
    Some(reason)
}

#[test]
fn every_case_comes_out_to_the_byte() {
    let reason = reason_to_regenerate();
    let (cases, broken) = cases();
    assert!(broken.is_empty(), "cases that cannot be read:\n{}", broken.join("\n"));
    assert!(!cases.is_empty(), "no case of that name");
    let (next, failures, runs) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let scratch = tempfile::tempdir().expect("a temporary directory");
                    for &workers in &case.expectation.workers {
                        let out = scratch.path().join(format!("w{workers}"));
                        fs::create_dir(&out).expect("a directory for the output");
                        let wrong = case.run(workers, &out);
                        runs.fetch_add(1, Ordering::Relaxed);
                        if wrong.is_empty() {
                            continue;
                        }
                        // A choice of the gateway's own would become a constant.
                        let fixed = case.expectation.variables.is_empty();
                        if let Some(reason) = reason.as_ref().filter(|_| fixed) {
                            case.regenerate(&out, reason).expect("the case can be written");
                        }
                        failures
                            .lock()
                            .expect("no thread panics")
                            .insert((case.name.clone(), workers), wrong);
                        if reason.is_some() {
                            break;
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    let mut text = String::new();
    for case in &cases {
        let of_case: Vec<_> = failures.iter().filter(|((name, _), _)| *name == case.name).collect();
        let Some((_, first)) = of_case.first() else { continue };
        let _ = writeln!(text, "\n== {}: {}", case.name, case.expectation.sentence);
        let _ = writeln!(text, "   expected by {}", case.expectation.source);
        let mut shown: Option<&Vec<String>> = None;
        for ((_, workers), wrong) in &of_case {
            if shown == Some(wrong) {
                let _ = writeln!(text, "-- {workers} workers: the same");
                continue;
            }
            let _ = writeln!(text, "-- {workers} workers");
            for complaint in wrong.iter() {
                let _ = writeln!(text, "{complaint}");
            }
            shown = Some(first);
        }
    }
    let names: BTreeSet<_> = failures.keys().map(|(name, _)| name.as_str()).collect();
    let names: Vec<_> = names.into_iter().collect();
    println!("{} cases, {} runs, {} cases fail", cases.len(), runs.into_inner(), names.len());
    assert!(
        failures.is_empty(),
        "{text}\n{} of {} cases fail: {}",
        names.len(),
        cases.len(),
        names.join(" ")
    );
}

#[test]
fn there_are_enough_cases_and_none_is_softgates_own() {
    if std::env::var_os("SOFTGATE_CASE").is_some() {
        return;
    }
    let (cases, _) = cases();
    // 272 when this was written; the issues ask for 100.
    assert!(cases.len() >= 250, "only {} cases left under tests/pcap", cases.len());
    for case in &cases {
        let expectation = &case.expectation;
        assert!(
            !expectation.source.to_lowercase().contains("softgate") || !expectation.regenerated.is_empty(),
            "{}: the expected output needs another source than SoftGate",
            case.name
        );
    }
}

#[test]
fn a_difference_is_found_and_shown() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pcap/forward-ipv4");
    let mut case = Case::read(&folder).expect("a case");
    let expected = case.outputs["wan"].clone();
    assert!(case.compare_port("wan", &expected, &expected).is_empty());
    let mut other = expected.clone();
    other[1].data[22] ^= 1; // TTL
    let shown = case.compare_port("wan", &expected, &other).join("\n");
    assert!(
        shown.contains("wan, frame 2: differs") && shown.contains("ttl 63") && shown.contains("^^"),
        "{shown}"
    );
    other = expected.clone();
    other.swap(0, 1);
    assert_eq!(case.compare_port("wan", &expected, &other).len(), 2, "order counts");
    other = expected.clone();
    other.pop();
    assert!(case.compare_port("wan", &expected, &other).iter().any(|w| w.contains("missing")));
    other = expected.clone();
    other[0].time += Duration::from_nanos(1);
    assert!(case.compare_port("wan", &expected, &other).is_empty(), "time does not count unless asked");
    case.expectation.timestamps = true;
    assert_eq!(case.compare_port("wan", &expected, &other).len(), 1);
    let printed = Printed {
        received: case.received,
        sent: 8,
        punted: 1,
        originated: 0,
        leaked_frames: 1,
        drops: BTreeMap::from([("no-route".to_owned(), 1)]),
    };
    assert_eq!(case.compare_counters(&printed).len(), 3, "counters not named must be 0");
}

#[test]
fn equal_cost_paths_are_judged_by_flow() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pcap/ecmp-spreads-ipv4");
    let case = Case::read(&folder).expect("a case");
    let macs = &case.expectation.ecmp_macs;
    let mut frames = case.outputs["wan"].clone();
    assert_eq!(ecmp_complaints(macs, &frames).len(), 2, "two next hops got nothing");
    for (index, frame) in frames.iter_mut().enumerate() {
        frame.data[5] = 50 + (index % 64 % 3) as u8;
    }
    assert!(ecmp_complaints(macs, &frames).is_empty());
    frames[64].data[5] = 51; // the first flow's second packet
    assert_eq!(ecmp_complaints(macs, &frames).len(), 1);
    frames[64].data[5] = 99;
    assert_eq!(ecmp_complaints(macs, &frames).len(), 2);
}

#[test]
fn a_variable_is_bound_by_the_first_good_frame_and_checked() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pcap/forward-ipv4");
    let mut case = Case::read(&folder).expect("a case");
    // The source port of the UDP packet, in the place of a NAT's choice.
    let (at, sum) = (34, 40);
    let frames = case.outputs["wan"].clone();
    let udp = frames.iter().position(|frame| frame.data[23] == 17).expect("a UDP packet");
    let stands_in = word(&frames[udp].data, at).expect("a port");
    let field = |frame| Field { file: "out.wan".into(), frame, at, sums: vec![sum] };
    let variable = |range, unlike| Variable { range, unlike, stands_in, fields: vec![field(udp + 1)] };
    case.expectation.variables.insert("p".into(), variable((1024, 65535), vec!["q".into()]));
    let mut produced = Frames::from([("wan".to_owned(), frames)]);
    let packet = &mut produced.get_mut("wan").expect("frames")[udp].data;
    set_word(packet, at, 2000);
    let mut bound = Bound::new();
    case.bind(&produced, &mut bound).expect("the field is there");
    assert!(bound.is_empty(), "its checksum is wrong");
    let packet = &mut produced.get_mut("wan").expect("frames")[udp].data;
    let mend = mended(word(packet, sum).expect("a checksum"), stands_in, 2000);
    set_word(packet, sum, mend);
    let outputs = case.bind(&produced, &mut bound).expect("the field is there");
    assert_eq!(bound["p"], 2000);
    assert!(outputs["wan"][udp].data == produced["wan"][udp].data);
    assert!(case.unlawful(&bound).is_empty());
    bound.insert("q".into(), 2000);
    assert_eq!(case.unlawful(&bound).len(), 1, "as q");
    bound.insert("p".into(), 80);
    assert_eq!(case.unlawful(&bound).len(), 1, "out of its range");
    assert_eq!(case.unlawful(&Bound::new()).len(), 1, "never seen");
    case.expectation.variables.get_mut("p").expect("it").fields[0].at = 0;
    assert!(case.bind(&produced, &mut bound).is_err(), "something else stands there");
}

#[test]
fn a_reason_is_added_before_the_tables() {
    let text = "sentence = \"a.\"\nsource = \"b\"\nworkers = [1]\n\n[drops]\nno-route = 1\n";
    let once = with_reason(text, &[], "the RFC \"was\" misread");
    let twice = with_reason(&once, &["the RFC \"was\" misread".to_owned()], "and again");
    let read: Expectation = toml::from_str(&twice).expect("still a case");
    assert_eq!(read.regenerated, ["the RFC \"was\" misread", "and again"]);
    assert_eq!(read.drops["no-route"], 1);
}
