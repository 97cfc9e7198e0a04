//! `softgate explain`: what becomes of a packet, and why.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Trouble, connect, load_config, print, print_json};
use crate::config::{Config, PacketText};
use crate::control::{
    ExplainQuery, Explained, Explanation, NeighbourEntry, NeighbourState, Outcome, PortStatus, Request,
    Version,
};
use crate::explain::{self, Explainer, Live, View};
use crate::io::pcap;
use crate::neighbours::addr_key;
use crate::replay::{self, NEIGHBOUR_CAPACITY};

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A packet: PROTOCOL SOURCE > DESTINATION [from INTERFACE] [flags syn,ack] [dscp ef] [ttl 64] [length 1400]\n\
                  \n  softgate explain 'tcp 10.0.1.5:40000 > 198.51.100.7:443 from lan'\n  softgate explain icmp/echo-request \
                  10.0.1.5 to 198.51.100.7\n  softgate explain --config gw.toml --why-not 'udp 10.0.1.5 > 192.0.2.1:53'"
)]
pub struct Args {
    /// The packet in words; `to` does for `>`, which a shell takes for itself
    #[arg(value_name = "PACKET", required_unless_present_any = ["pcap", "frame"], num_args = 1..)]
    packet: Vec<String>,
    /// A frame instead, as hex digits
    #[arg(long, value_name = "HEX", conflicts_with = "packet", requires = "port")]
    frame: Option<String>,
    /// The packets of a capture instead (pcap or pcapng), one after the other
    #[arg(long, value_name = "FILE", conflicts_with_all = ["packet", "frame"], requires = "port")]
    pcap: Option<PathBuf>,
    /// The port that frames come in by
    #[arg(long)]
    port: Option<String>,
    /// At most so many packets of the capture; a running gateway takes 64
    #[arg(long, default_value_t = ExplainQuery::MOST, value_parser = parse_count)]
    count: usize,
    /// By this config, without a gateway
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// By this config, with the neighbours that the running gateway knows
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    candidate: Option<PathBuf>,
    /// By the config of this revision, with the neighbours that the running gateway knows
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["config", "candidate"])]
    revision: Option<u64>,
    /// Of a packet that is lost: what would have to change
    #[arg(long)]
    why_not: bool,
    /// Output for programs
    #[arg(long)]
    json: bool,
}

/// Most packets of a capture.
const MOST: usize = 10_000;

fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=MOST).contains(count)).ok_or_else(|| format!("1 to {MOST}"))
}

/// What is asked about.
pub(super) enum Asked {
    Text(PacketText),
    Frames(String, Vec<Vec<u8>>),
}

pub(super) fn run(args: &Args, socket: &Path) -> Result<(), Trouble> {
    let asked = asked(args)?;
    let explained = match (&args.config, &args.candidate, args.revision) {
        (Some(file), ..) => by_config(file, &asked, None)?,
        (None, Some(file), _) => by_config(file, &asked, Some(socket))?,
        (None, None, Some(revision)) => by_revision(revision, &asked, socket)?,
        (None, None, None) => by_gateway(&asked, socket)?,
    };
    if args.json {
        return print_json(&explained);
    }
    let text: String = explained
        .packets
        .iter()
        .map(|explanation| text(explanation, args.why_not))
        .collect::<Vec<_>>()
        .join("\n");
    print(&text)
}

fn asked(args: &Args) -> Result<Asked, Trouble> {
    let port = || args.port.clone().unwrap_or_default();
    if let Some(digits) = &args.frame {
        let bytes =
            explain::from_hex(digits).map_err(|error| Trouble::Unable(format!("--frame: {error}")))?;
        return Ok(Asked::Frames(port(), vec![bytes]));
    }
    if let Some(file) = &args.pcap {
        let captured = pcap::read(file).map_err(|error| Trouble::Unable(error.to_string()))?;
        let frames: Vec<Vec<u8>> = captured.into_iter().take(args.count).map(|one| one.bytes).collect();
        return Ok(Asked::Frames(port(), frames));
    }
    let text = args.packet.join(" ");
    let packet = text.parse().map_err(|error| Trouble::Unable(format!("{text}: {error}")))?;
    Ok(Asked::Text(packet))
}

pub(super) fn by_gateway(asked: &Asked, socket: &Path) -> Result<Explained, Trouble> {
    let query = match asked {
        Asked::Text(packet) => ExplainQuery { packet: Some(packet.clone()), ..ExplainQuery::default() },
        Asked::Frames(port, frames) => {
            let frames = frames.iter().map(|bytes| explain::to_hex(bytes)).collect();
            ExplainQuery { packet: None, frames, port: Some(port.clone()) }
        }
    };
    Ok(connect(socket)?.call(&Request::Explain(query))?)
}

/// Interfaces without an address of their own have those of the devices that the gateway has: captured packets are to
/// those.
fn take_macs(config: &mut Config, ports: &[PortStatus]) {
    let macs: Vec<_> = config
        .interfaces
        .iter()
        .map(|interface| {
            let port = match &interface.bridge {
                Some(bridge) => config.port_of_bridge(bridge),
                None => interface.port_around(&config.interfaces),
            };
            interface.mac.or_else(|| ports.iter().find(|known| Some(&known.name) == port)?.mac)
        })
        .collect();
    for (interface, mac) in config.interfaces.iter_mut().zip(macs) {
        interface.mac = mac;
    }
}

pub(super) fn by_config(file: &Path, asked: &Asked, socket: Option<&Path>) -> Result<Explained, Trouble> {
    by(load_config(file)?, asked, socket)
}

/// By what was in force then, as this node had it.
fn by_revision(revision: u64, asked: &Asked, socket: &Path) -> Result<Explained, Trouble> {
    let mut client = connect(socket)?;
    let (_, document) = client.document(Some(revision))?;
    let config = document.config()?;
    let version: Version = client.call(&Request::ShowVersion {})?;
    let config = match &version.node {
        Some(node) => config.on_node(node, &document.file_name)?,
        None => config,
    };
    by(config, asked, Some(socket))
}

fn by(mut config: Config, asked: &Asked, socket: Option<&Path>) -> Result<Explained, Trouble> {
    if let Some(socket) = socket {
        take_macs(&mut config, &connect(socket)?.call::<Vec<PortStatus>>(&Request::ShowPorts {})?);
    }
    let unable = |error: String| Trouble::Unable(format!("softgate explain: {error}"));
    let compiler = replay::compile_tables(&config, NEIGHBOUR_CAPACITY)
        .map_err(|error| Trouble::Wrong(error.to_string()))?;
    if let Some(socket) = socket {
        let known: Vec<NeighbourEntry> =
            connect(socket)?.call(&Request::ShowNeighbours { interface: None })?;
        for neighbour in &known {
            let usable = !matches!(neighbour.state, NeighbourState::Incomplete | NeighbourState::Failed);
            let slot = compiler.interfaces.get(neighbour.interface.as_str());
            let (Some(mac), Some(slot), true) = (neighbour.mac, slot, usable) else { continue };
            let table = compiler.neighbours();
            if let Ok(place) = table.find_or_insert(slot, addr_key(neighbour.address), u32::MAX) {
                table.learn(place, mac.bytes(), true, explain::START);
            }
        }
    }
    let view = View::new(&compiler, &config);
    let mut explainer =
        Explainer::new(view, explain::START, false).map_err(|error| unable(error.to_string()))?;
    let packets = match asked {
        Asked::Text(packet) => vec![explainer.text(packet, |_| Live::default()).map_err(unable)?],
        Asked::Frames(port, frames) => {
            let one = |bytes: &Vec<u8>| explainer.frame_on(port, bytes, |_| Live::default());
            frames.iter().map(one).collect::<Result<_, _>>().map_err(unable)?
        }
    };
    Ok(Explained { packets })
}

/// For people.
pub(super) fn text(told: &Explanation, why_not: bool) -> String {
    let mut text = format!("{}\n", told.packet);
    let width = told.steps.iter().filter_map(|step| step.name.as_ref()).map(String::len).max().unwrap_or(0);
    for step in &told.steps {
        let name = step.name.as_deref().unwrap_or("-");
        let _ = writeln!(text, "  {:<16}{name:<width$}  {}", step.step, step.says);
    }
    if let Some(session) = &told.session {
        let _ = writeln!(
            text,
            "  a live session has these addresses: of rule {}, {} s old, {} packets; the packet follows it",
            session.rule, session.age_s, session.packets
        );
    }
    let outcome = match told.outcome {
        Outcome::Forwarded => "forwarded",
        Outcome::Local => "for the gateway itself",
        Outcome::Waits => "waits for its next hop's address",
        Outcome::Held => "kept or answered by the gateway",
        Outcome::Dropped => "dropped",
    };
    match (&told.reason, &told.meaning) {
        (Some(reason), Some(meaning)) => _ = writeln!(text, "{outcome}: {reason}: {meaning}"),
        _ => _ = writeln!(text, "{outcome}"),
    }
    for frame in &told.sent {
        let _ = writeln!(text, "  leaves by {}: {}\n    {}", frame.port, frame.decoded, frame.hex);
    }
    for remark in &told.remarks {
        let _ = writeln!(text, "  note: {remark}");
    }
    for suggestion in told.suggestions.iter().filter(|_| why_not) {
        let _ = writeln!(text, "  to let it pass: {suggestion}");
    }
    text
}
