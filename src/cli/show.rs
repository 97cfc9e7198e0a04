//! `softgate show ...`: aligned for people, `--json` for programs, the same data.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ahash::AHashMap;
use clap::Subcommand;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::drain::says;
use super::kept::kept;
use super::table::{list, or_dash, page_text, table, text};
use super::upgrade::stands;
use super::{Trouble, bridges, connect, print, print_json, revisions, services, sessions};
use crate::config::{GroupName, InterfaceName, Lag, Name, PortMode, Prefix, RuleName, VrfName};
use crate::control::{
    AdvertErrors, BfdList, BridgeEntry, Counter, DhcpRelayEntry, DropEntry, GroupEntry, HaList,
    InterfaceStatus, LinkState, NeighbourEntry, NeighbourState, PairEntry, PortStatus, Request, RouteEntry,
    RouteKind, RouteSource, RoutesQuery, Version, ViaEntry, WorkerStatus,
};
use crate::ha::vrrp::State;

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    /// Output for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Ports: devices, mode, state, traffic, losses
    Ports,
    /// Interfaces: addresses, state, traffic
    Interfaces,
    /// Routes in use and not in use
    Routes {
        /// Only the route to this very prefix
        prefix: Option<Prefix>,
        /// Only this VRF
        #[arg(long)]
        vrf: Option<VrfName>,
        /// Only the route a packet to this address takes
        #[arg(long, value_name = "ADDRESS", conflicts_with = "prefix")]
        lookup: Option<IpAddr>,
        /// At most this many
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Neighbours, learned and static
    Neighbours {
        /// Only those of this interface
        #[arg(long)]
        interface: Option<InterfaceName>,
    },
    /// Sessions that match a filter
    Sessions(Box<sessions::SessionsArgs>),
    /// NAT pools and how much of them is in use; with --mappings who has which outside port
    Nat(sessions::NatArgs),
    /// Services, their backends, and what those have to do
    Services {
        /// Only this one
        service: Option<RuleName>,
    },
    /// Bridges and their members
    Bridges,
    /// Stations of bridges: behind which member each is
    Macs {
        /// Only those of this bridge
        bridge: Option<Name>,
        /// Only behind this member, as show bridges calls it
        #[arg(long)]
        member: Option<String>,
    },
    /// Rules: what they decided, and which can never decide
    Rules,
    /// Groups of addresses, and who uses them
    Groups {
        /// Only this one
        group: Option<GroupName>,
    },
    /// All counters
    Counters {
        /// Also those that are 0
        #[arg(long)]
        all: bool,
    },
    /// What was dropped, and why
    Drops,
    /// Workers: load and health
    Workers,
    /// DHCP relays: servers, messages relayed and lost
    DhcpRelays,
    /// Virtual routers (VRRP): who has their addresses
    #[command(alias = "vrrp")]
    Ha,
    /// BFD sessions: which neighbours are reached
    Bfd,
    /// Commits of the config that are kept
    Revisions,
    /// The config in force, with the changes since it was applied in it
    Config {
        /// Another revision
        #[arg(long, value_name = "NUMBER")]
        revision: Option<u64>,
    },
    /// Version, generation, uptime
    Version,
}

pub(super) fn run(args: Args, socket: &Path) -> Result<(), Trouble> {
    let json = args.json;
    match args.what {
        What::Ports => ask(socket, Request::ShowPorts {}, json, ports),
        What::Interfaces => ask(socket, Request::ShowInterfaces {}, json, interfaces),
        What::Routes { prefix, vrf, lookup, limit } => {
            show_routes(socket, RoutesQuery { vrf, prefix, lookup, ..RoutesQuery::default() }, limit, json)
        }
        What::Neighbours { interface } => {
            ask(socket, Request::ShowNeighbours { interface }, json, neighbours)
        }
        What::Sessions(args) => sessions::show(*args, socket, json),
        What::Nat(args) => sessions::nat(args, socket, json),
        What::Rules => sessions::rules(socket, json),
        What::Services { service } => services::show(service, socket, json),
        What::Bridges => {
            ask(socket, Request::ShowBridges {}, json, |list: &Vec<BridgeEntry>| bridges::show(list))
        }
        What::Macs { bridge, member } => bridges::show_macs(bridge, member, socket, json),
        What::Groups { group } => ask(socket, Request::ShowGroups { group }, json, groups),
        What::Counters { all } => {
            ask(socket, Request::ShowCounters {}, json, |list: &Vec<Counter>| counters(list, all))
        }
        What::Drops => ask(socket, Request::ShowDrops {}, json, drops),
        What::Workers => ask(socket, Request::ShowWorkers {}, json, workers),
        What::DhcpRelays => ask(socket, Request::ShowDhcpRelays {}, json, dhcp_relays),
        What::Ha => ask(socket, Request::ShowHa {}, json, ha),
        What::Bfd => show_bfd(socket, json),
        What::Revisions => ask(socket, Request::ShowRevisions {}, json, revisions::show),
        What::Config { revision } => revisions::show_config(revision, socket, json),
        What::Version => ask(socket, Request::ShowVersion {}, json, version),
    }
}

pub(super) fn ask<T: DeserializeOwned + Serialize>(
    socket: &Path,
    request: Request,
    json: bool,
    for_people: impl FnOnce(&T) -> String,
) -> Result<(), Trouble> {
    let answer: T = connect(socket)?.call(&request)?;
    if json { print_json(&answer) } else { print(&for_people(&answer)) }
}

/// Page by page: a full table is a million of them.
fn show_routes(socket: &Path, query: RoutesQuery, limit: Option<u64>, json: bool) -> Result<(), Trouble> {
    let mut client = connect(socket)?;
    let asked_for_one = query.prefix.is_some() || query.lookup.is_some();
    let mut left = limit.unwrap_or(u64::MAX);
    let mut shown = 0;
    if json {
        print("[")?;
    }
    let mut printed = Ok(());
    let page_limit = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
    client.routes(RoutesQuery { limit: page_limit, ..query }, |mut page| {
        page.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= page.len() as u64;
        if printed.is_ok() && !page.is_empty() {
            printed = match json {
                true => print(&json_items(&page, shown == 0)),
                false => print(&routes(&page, shown == 0)),
            };
        }
        shown += page.len();
        left > 0 && printed.is_ok()
    })?;
    printed?;
    if json {
        print("\n]\n")?;
    }
    if asked_for_one && shown == 0 {
        return Err(Trouble::Wrong("no such route".into()));
    }
    Ok(())
}

pub(super) fn json_items<T: Serialize>(page: &[T], first: bool) -> String {
    let mut text = String::new();
    for (index, route) in page.iter().enumerate() {
        text.push_str(if first && index == 0 { "\n  " } else { ",\n  " });
        text.push_str(
            &serde_json::to_string(route)
                .unwrap_or_else(|error| unreachable!("replies are plain data: {error}")),
        );
    }
    text
}

fn state(state: LinkState, why: Option<&String>) -> String {
    let word = match state {
        LinkState::Up => "up",
        LinkState::Degraded => "degraded",
        LinkState::Down => "down",
    };
    match why {
        None => word.to_owned(),
        Some(why) => format!("{word}: {why}"),
    }
}

fn ports(list_of: &Vec<PortStatus>) -> String {
    let mut table = table([
        "PORT",
        "DEVICES",
        "MODE",
        ">QUEUES",
        ">MTU",
        "MAC",
        ">RX-PACKETS",
        ">RX-BYTES",
        ">TX-PACKETS",
        ">TX-BYTES",
        ">LOST",
        "STATE",
    ]);
    for port in list_of {
        let devices = match port.lag {
            None => list(&port.devices),
            Some(lag) => {
                let lag = match lag {
                    Lag::ActiveBackup => "active-backup",
                    Lag::Static => "static",
                };
                format!("{} ({lag}, active {})", list(&port.devices), list(&port.active))
            }
        };
        let mode = port.mode.map(|mode| match mode {
            PortMode::Auto => "auto",
            PortMode::ZeroCopy => "zero-copy",
            PortMode::Copy => "copy",
            PortMode::Generic => "generic",
        });
        let lost = port.rx_ring_full + port.rx_fill_empty + port.rx_dropped + port.tx_ring_full;
        table.add_row([
            port.name.to_string(),
            devices,
            or_dash(mode),
            port.queues.to_string(),
            port.mtu_bytes.to_string(),
            or_dash(port.mac),
            port.rx_packets.to_string(),
            port.rx_bytes.to_string(),
            port.tx_packets.to_string(),
            port.tx_bytes.to_string(),
            lost.to_string(),
            state(port.state, port.why.as_ref()),
        ]);
    }
    text(&table)
}

fn interfaces(list_of: &Vec<InterfaceStatus>) -> String {
    let mut table = table([
        "INTERFACE",
        "PORT",
        "VLAN",
        "VRF",
        "ZONE",
        "ADDRESSES",
        "MAC",
        ">MTU",
        ">RX-PACKETS",
        ">RX-BYTES",
        ">TX-PACKETS",
        ">TX-BYTES",
        ">DROPS",
        "STATE",
    ]);
    for interface in list_of {
        table.add_row([
            interface.name.to_string(),
            or_dash(interface.port.as_ref()),
            match interface.vni {
                Some(vni) => format!("vni {vni}"),
                None => or_dash(interface.vlan),
            },
            interface.vrf.to_string(),
            or_dash(interface.zone.as_ref()),
            list(&interface.addresses),
            or_dash(interface.mac),
            interface.mtu_bytes.to_string(),
            interface.rx_packets.to_string(),
            interface.rx_bytes.to_string(),
            interface.tx_packets.to_string(),
            interface.tx_bytes.to_string(),
            interface.drops.to_string(),
            state(interface.state, interface.why.as_ref()),
        ]);
    }
    text(&table)
}

fn routes(page: &[RouteEntry], with_header: bool) -> String {
    let mut table = table(["VRF", "PREFIX", "TARGET", "SOURCE", "STATE"]);
    for route in page {
        let target = match route.kind {
            RouteKind::Via => format!("via {}", list(&route.via.iter().map(via).collect::<Vec<_>>())),
            RouteKind::Connected => format!("on {}", or_dash(route.interface.as_ref())),
            RouteKind::Local => format!("ours on {}", or_dash(route.interface.as_ref())),
            RouteKind::Blackhole => "blackhole".to_owned(),
            RouteKind::Unreachable => "unreachable".to_owned(),
        };
        let source = match route.source {
            RouteSource::Static => "static",
            RouteSource::Connected => "connected",
            RouteSource::Local => "local",
        };
        let state = match (route.active, &route.why) {
            (true, _) => "active".to_owned(),
            (false, None) => "inactive".to_owned(),
            (false, Some(why)) => format!("inactive: {why}"),
        };
        table.add_row([route.vrf.to_string(), route.prefix.to_string(), target, source.to_owned(), state]);
    }
    page_text(&table, with_header)
}

fn via(via: &ViaEntry) -> String {
    let vrf = via.vrf.as_ref().map_or(String::new(), |vrf| format!("@{vrf}"));
    let inactive = if via.active { "" } else { ", down" };
    format!("{}{vrf} ({}{inactive})", via.address, or_dash(via.interface.as_ref()))
}

fn neighbours(list_of: &Vec<NeighbourEntry>) -> String {
    let mut table = table(["INTERFACE", "ADDRESS", "MAC", "REMOTE", "STATE", ">AGE-S"]);
    for neighbour in list_of {
        let state = match neighbour.state {
            NeighbourState::Incomplete => "incomplete",
            NeighbourState::Reachable => "reachable",
            NeighbourState::Stale => "stale",
            NeighbourState::Delay => "delay",
            NeighbourState::Probe => "probe",
            NeighbourState::Failed => "failed",
            NeighbourState::Permanent => "permanent",
        };
        table.add_row([
            neighbour.interface.to_string(),
            neighbour.address.to_string(),
            or_dash(neighbour.mac),
            or_dash(neighbour.remote),
            state.to_owned(),
            or_dash(neighbour.age_s),
        ]);
    }
    text(&table)
}

fn groups(list_of: &Vec<GroupEntry>) -> String {
    let mut table = table(["GROUP", "MEMBERS", "USED-BY"]);
    for group in list_of {
        let mut left: AHashMap<&str, u64> = AHashMap::new();
        left.extend(group.temporary.iter().map(|of| (of.member.as_str(), of.left_s)));
        let member = |member: &String| match left.get(member.as_str()) {
            Some(left_s) => {
                format!("{member} ({} left)", humantime::format_duration(Duration::from_secs(*left_s)))
            }
            None => member.clone(),
        };
        let members: Vec<String> = group.members.iter().map(member).collect();
        table.add_row([group.name.to_string(), list(&members), list(&group.used_by)]);
    }
    text(&table)
}

fn counters(list_of: &[Counter], all: bool) -> String {
    let mut table = table(["COUNTER", ">VALUE", "EXPLANATION"]);
    for counter in list_of.iter().filter(|counter| all || counter.value > 0) {
        table.add_row([counter.name.clone(), counter.value.to_string(), counter.explanation.clone()]);
    }
    text(&table)
}

fn drops(list_of: &Vec<DropEntry>) -> String {
    let mut table = table(["REASON", ">PACKETS", ">LAST-S", "EXPLANATION"]);
    for drop in list_of {
        table.add_row([
            drop.reason.clone(),
            drop.count.to_string(),
            or_dash(drop.last_s),
            drop.explanation.clone(),
        ]);
    }
    text(&table)
}

fn dhcp_relays(list_of: &Vec<DhcpRelayEntry>) -> String {
    let mut table = table(["INTERFACE", "SOURCE", "SERVERS", "VRF", ">REQUESTS", ">REPLIES", "LOST"]);
    for relay in list_of {
        let lost: Vec<String> =
            relay.drops.iter().map(|lost| format!("{} {}", lost.reason, lost.count)).collect();
        table.add_row([
            relay.interface.to_string(),
            relay.source.to_string(),
            list(&relay.servers),
            relay.vrf.to_string(),
            relay.requests.to_string(),
            relay.replies.to_string(),
            if lost.is_empty() { String::from("-") } else { lost.join(", ") },
        ]);
    }
    text(&table)
}

fn ha(list_of: &HaList) -> String {
    let mut table = table([
        "ROUTER",
        "ADDRESSES",
        "GROUP",
        "STATE",
        ">FOR",
        ">PRIORITY",
        ">INTERVAL-CS",
        "TRACKED",
        "ACTIVE",
        ">BECAME-ACTIVE",
        ">SENT",
        ">RECEIVED",
        "ERRORS",
    ]);
    for router in &list_of.routers {
        let state = router.state.name();
        let active = if router.state == State::Active { Some(router.source) } else { router.active };
        let priority = match router.priority == router.configured_priority {
            true => router.priority.to_string(),
            false => format!("{} of {}", router.priority, router.configured_priority),
        };
        // What takes something off; the rest is well.
        let takes = router.tracked.iter().filter(|track| track.taken > 0);
        let takes: Vec<String> = takes.map(|track| format!("{} -{}", track.what, track.taken)).collect();
        let tracked = match (router.tracked.is_empty(), takes.is_empty()) {
            (true, _) => String::from("-"),
            (false, true) => String::from("well"),
            (false, false) => takes.join(", "),
        };
        table.add_row([
            format!("{}/{}", router.interface, router.id),
            list(&router.addresses),
            or_dash(router.group.as_ref()),
            state.to_owned(),
            humantime::format_duration(Duration::from_secs(router.since_s)).to_string(),
            priority,
            router.interval_cs.to_string(),
            tracked,
            or_dash(active.as_ref()),
            router.became_active.to_string(),
            router.sent.to_string(),
            router.received.to_string(),
            fault_counts(&router.errors),
        ]);
    }
    let strays = match list_of.strays.is_empty() {
        true => String::new(),
        false => format!("\nadvertisements about none of them: {}\n", fault_counts(&list_of.strays)),
    };
    let not_sent = match list_of.not_sent {
        0 => String::new(),
        count => format!("\nframes that no device took: {count}\n"),
    };
    let sessions =
        list_of.bfd.as_deref().map(|list_of| format!("\nBFD\n{}", bfd(list_of))).unwrap_or_default();
    let pair = list_of.pair.as_deref().map(pair).unwrap_or_default();
    let kept = list_of.kept.as_deref().map(kept).unwrap_or_default();
    let upgrade = list_of.upgrade.as_ref().map(|entry| format!("\nupgrade: {}\n", stands(entry)));
    let drain = list_of.drain.as_ref().map(|entry| format!("\ndrain: {}\n", says(entry)));
    format!(
        "{}{strays}{not_sent}{sessions}{pair}{kept}{}{}",
        text(&table),
        drain.unwrap_or_default(),
        upgrade.unwrap_or_default()
    )
}

fn show_bfd(socket: &Path, json: bool) -> Result<(), Trouble> {
    let list_of: HaList = connect(socket)?.call(&Request::ShowHa {})?;
    let list_of = list_of.bfd.map(|list_of| *list_of).unwrap_or_default();
    if json { print_json(&list_of) } else { print(&bfd(&list_of)) }
}

fn bfd(list_of: &BfdList) -> String {
    let mut table = table([
        "PEER",
        "INTERFACE",
        "STATE",
        ">FOR",
        "WHY",
        "REMOTE",
        ">SENDS-EVERY",
        ">DETECTS-IN",
        "ROUTES",
        ">WENT-DOWN",
        ">SENT",
        ">RECEIVED",
        "ERRORS",
    ]);
    let millis = |micros: u64| format!("{}ms", micros as f64 / 1000.0);
    for session in &list_of.sessions {
        table.add_row([
            session.peer.to_string(),
            session.interface.to_string(),
            session.state.name().to_owned(),
            humantime::format_duration(Duration::from_secs(session.since_s)).to_string(),
            session.diagnostic.clone(),
            session.remote_state.name().to_owned(),
            millis(session.transmit_interval_us),
            millis(session.detection_time_us),
            if session.withdraws_routes { "not used" } else { "used" }.to_owned(),
            session.went_down.to_string(),
            session.sent.to_string(),
            session.received.to_string(),
            fault_counts(&session.errors),
        ]);
    }
    let strays = match list_of.strays.is_empty() {
        true => String::new(),
        false => format!("\nBFD packets of none of them: {}\n", fault_counts(&list_of.strays)),
    };
    let unresolved = match list_of.unresolved {
        0 => String::new(),
        count => format!("\nBFD packets not sent, the peer's MAC address was not known: {count}\n"),
    };
    format!("{}{strays}{unresolved}", text(&table))
}

/// Faults and how often each was, or a dash.
fn fault_counts(list: &[AdvertErrors]) -> String {
    let words: Vec<String> = list.iter().map(|error| format!("{} {}", error.kind, error.count)).collect();
    if words.is_empty() { String::from("-") } else { words.join(", ") }
}

fn pair(entry: &PairEntry) -> String {
    let counts = |list: &[AdvertErrors]| {
        let words: Vec<String> = list.iter().map(|error| format!("{} {}", error.kind, error.count)).collect();
        if words.is_empty() { String::from("none") } else { words.join(", ") }
    };
    let heard = match (entry.is_there, entry.heard_ms, &entry.error) {
        (_, _, Some(error)) => format!("no socket: {error}"),
        (true, Some(ms), None) => format!("there, heard {ms} ms ago"),
        _ => String::from("not heard"),
    };
    let done = |is_done: bool| if is_done { "all" } else { "not all" };
    let [sent, received] = entry.bytes;
    let config = match &entry.differs {
        None => String::from("not known whether it is the same on both"),
        Some(sections) if sections.is_empty() => String::from("the same on both"),
        Some(sections) => format!("DIFFERS in {}", sections.join(", ")),
    };
    let lines = [
        ("peer", format!("{} ({heard})", entry.peer)),
        ("readiness", format!("{} sessions would be lost if it took over now", entry.unready)),
        (
            "told",
            format!(
                "{} sessions of this node's, {} of the other's",
                done(entry.is_synced),
                done(entry.has_all)
            ),
        ),
        ("config", config),
        ("lag", format!("{} ms, {} records", entry.lag_ms, entry.lag_records)),
        ("resyncs", format!("{} begun here, {} there", entry.resyncs[0], entry.resyncs[1])),
        (
            "audits",
            format!(
                "{} looks, drift: {} slices found, {} repaired, {} left",
                entry.drift.looks, entry.drift.found, entry.drift.repaired, entry.drift.left
            ),
        ),
        (
            "records",
            format!(
                "{} sent, {} received, {} blocks sent again",
                entry.records[0], entry.records[1], entry.resent
            ),
        ),
        (
            "bytes",
            format!(
                "{sent} in {} datagrams sent, {received} in {} received, {} not sent",
                entry.datagrams[0], entry.datagrams[1], entry.not_sent
            ),
        ),
        (
            "sessions",
            format!(
                "{} installed, {} renewed, {} kept, {} ended, {} swept",
                entry.installed, entry.renewed, entry.kept, entry.ended, entry.swept
            ),
        ),
        ("not installed", counts(&entry.not_installed)),
        ("refused", counts(&entry.refused)),
        ("pair link", format!("{} received; sent: {}", entry.link_received, counts(&entry.link_sent))),
    ];
    let lines = lines.map(|(what, says)| format!("{what:<14} {says}\n"));
    let witness = entry.witness.as_ref().map(|witness| {
        let answers = match witness.answers {
            None => "not known yet",
            Some(true) => "answers",
            Some(false) => "does not answer",
        };
        let cut_off = if witness.is_cut_off { ": this node hears nobody, and takes no part" } else { "" };
        format!("{:<14} {} ({answers}){cut_off}\n", "witness", witness.address)
    });
    format!("\nPAIR\n{}{}", lines.concat(), witness.unwrap_or_default())
}

fn workers(list_of: &Vec<WorkerStatus>) -> String {
    let mut table = table([
        ">WORKER",
        ">CPU",
        ">GENERATION",
        ">CONVERGED",
        ">PACKETS",
        ">BURSTS",
        ">LOOPS",
        ">BUSY-%",
        ">LONGEST-GAP-US",
        ">OWN-GAP-US",
        ">LONG-GAPS",
        ">FRAMES-FREE",
        ">HANDED-OVER",
        ">SESSIONS",
        ">OPENED",
        ">ENDED",
        ">CAPACITY",
    ]);
    for worker in list_of {
        table.add_row([
            worker.id.to_string(),
            or_dash(worker.cpu),
            worker.generation.to_string(),
            worker.converged.to_string(),
            worker.packets.to_string(),
            worker.bursts.to_string(),
            worker.loops.to_string(),
            format!("{:.1}", worker.busy_percent),
            worker.longest_gap_us.to_string(),
            worker.longest_gap_own_us.to_string(),
            worker.long_gaps.to_string(),
            worker.frames_free.to_string(),
            worker.handed_over.to_string(),
            worker.sessions.to_string(),
            worker.sessions_opened.to_string(),
            worker.sessions_ended.to_string(),
            worker.session_capacity.to_string(),
        ]);
    }
    text(&table)
}

fn version(version: &Version) -> String {
    let Version { version, name, node, schema, generation, converged, config, uptime_s, pid } = version;
    let node = node.as_ref().map_or_else(String::new, |node| format!(" ([node.{node}])"));
    let (days, hours, minutes, seconds) =
        (uptime_s / 86400, uptime_s / 3600 % 24, uptime_s / 60 % 60, uptime_s % 60);
    format!(
        "softgate {version}, config schema {schema}\nnode        {name}{node}\ngeneration  {generation}\nconverged   {converged}\nconfig      {config}\n\
         uptime      {days} d {hours:02}:{minutes:02}:{seconds:02}\nprocess     {pid}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_json<T: DeserializeOwned>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_numbers_to_the_right() {
        let list = from_json(
            r#"[{"reason":"no-route","count":7,"explanation":"no route to it","last_s":3},
                {"reason":"ttl-expired","count":123456,"explanation":"a loop?","last_s":null}]"#,
        );
        let expected = "\
REASON       PACKETS  LAST-S  EXPLANATION
no-route           7       3  no route to it
ttl-expired   123456       -  a loop?
";
        assert_eq!(drops(&list), expected);
    }

    #[test]
    fn routes_say_where_they_lead() {
        let page: Vec<RouteEntry> = from_json(
            r#"[{"vrf":"blue","prefix":"0.0.0.0/0","kind":"via","source":"static","active":true,"via":[
                    {"address":"198.51.100.1","vrf":"default","interface":"uplink","active":true},
                    {"address":"198.51.100.3","interface":"uplink","active":false}]},
                {"vrf":"blue","prefix":"10.0.1.0/24","kind":"connected","source":"connected","interface":"tenant-a",
                 "active":false,"why":"port lan is down"},
                {"vrf":"default","prefix":"10.0.0.0/8","kind":"blackhole","source":"static","active":true}]"#,
        );
        let expected = "\
VRF      PREFIX       TARGET                                                       SOURCE     STATE
blue     0.0.0.0/0    via 198.51.100.1@default (uplink), 198.51.100.3 (uplink, down)  static     active
";
        let shown = routes(&page, true);
        assert_eq!(shown.lines().count(), 4);
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(shown.lines().nth(1).unwrap()), words(expected.lines().nth(1).unwrap()));
        assert!(shown.contains("on tenant-a") && shown.contains("inactive: port lan is down"), "{shown}");
        assert_eq!(routes(&page, false).lines().count(), 3);
    }

    #[test]
    fn uptime_is_readable() {
        let text = version(&Version { uptime_s: 90_061, ..Version::default() });
        assert!(text.contains("1 d 01:01:01"), "{text}");
    }
}
