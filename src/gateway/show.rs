//! What the gateway says of itself: the answers to `show` and the export of lost packets.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};

use super::Gateway;
use crate::config::{InterfaceName, Mac, PortMode, SCHEMA};
use crate::control::{
    Convergence, ConvergenceQuery, Counter, DhcpRelayEntry, DropEntry, DropsExport, Fault, InterfaceStatus,
    LinkState, LostMessages, NeighbourEntry, NeighbourState, PortStatus, Version, WorkerStatus,
};
use crate::io::xdp::Mode;
use crate::neighbours::{self, State, Word, mac_from_u64};
use crate::packet::DropReason;
use crate::tables::NO_INTERFACE;
use crate::telemetry::fates;
use crate::telemetry::{DropRecord, RELAY_REASONS, RelayCounters, Totals, WorkerCounters};

impl Gateway {
    /// The generation that no session's decision is older than.
    fn converged(&self) -> u64 {
        self.node().counters.iter().map(|worker| worker.converged.generation()).min().unwrap_or(0)
    }

    pub(super) fn show_convergence(&self, query: ConvergenceQuery) -> Convergence {
        let newest = self.node().tables.load().generation;
        let ConvergenceQuery { after, generation } = query;
        let generation = generation.unwrap_or(newest);
        // Before the numbers: what it says is done has been counted.
        let converged = self.converged();
        let of_workers = self.node().counters.iter().map(|worker| worker.fates.sum(after, generation));
        let [kept, moved, ended] =
            of_workers.fold([0; 3], |sum, of| std::array::from_fn(|at| sum[at] + of[at]));
        Convergence {
            converged: converged >= generation,
            generation: converged,
            kept,
            moved,
            ended,
            forgotten: newest >= after.saturating_add(fates::REMEMBERED),
        }
    }

    pub(super) fn show_version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.config().system.name.to_string(),
            node: self.node_name().cloned(),
            schema: SCHEMA,
            generation: self.node().tables.load().generation,
            converged: self.converged(),
            config: self.file_name.clone(),
            uptime_s: self.started().elapsed().as_secs(),
            pid: std::process::id(),
        }
    }

    pub(super) fn show_ports(&self) -> Vec<PortStatus> {
        let queues = self.queue_status();
        let interfaces = self.interface_sums();
        self.config()
            .ports
            .iter()
            .zip(self.ports())
            .map(|(config, live)| {
                let bound = live.members.iter().find_map(|member| member.xdp.as_ref()).map(|xdp| xdp.bound());
                let link = live.members.iter().find_map(|member| member.link);
                let down = live.why_down();
                let broken: Vec<String> = live
                    .members
                    .iter()
                    .filter_map(|m| {
                        let problem = m.problem.clone().or_else(|| match m.link {
                            Some(link) if !link.carrier => Some(String::from("no carrier")),
                            _ => None,
                        });
                        problem.map(|problem| format!("{}: {problem}", m.device))
                    })
                    .collect();
                let mine = || queues.iter().filter(|queue| queue.port == live.slot);
                let sum = |field: fn(&crate::worker::QueueStatus) -> u64| mine().map(field).sum::<u64>();
                let tables = self.node().tables.load();
                let on_port = || {
                    tables
                        .interfaces
                        .iter()
                        .zip(&interfaces)
                        .filter(|(i, _)| i.port == live.slot && i.header[6..12] != [0; 6])
                };
                PortStatus {
                    name: config.name.clone(),
                    devices: config.all_devices().cloned().collect(),
                    lag: config.lag,
                    active: config
                        .all_devices()
                        .enumerate()
                        .filter(|(member, _)| live.members_up() & 1 << member != 0)
                        .map(|(_, device)| device.clone())
                        .collect(),
                    state: match (&down, broken.is_empty()) {
                        (Some(_), _) => LinkState::Down,
                        (None, true) => LinkState::Up,
                        (None, false) => LinkState::Degraded,
                    },
                    why: down.or_else(|| (!broken.is_empty()).then(|| broken.join("; "))),
                    mode: bound.and_then(|bound| match bound.mode {
                        Mode::Auto => None,
                        Mode::ZeroCopy => Some(PortMode::ZeroCopy),
                        Mode::Copy => Some(PortMode::Copy),
                        Mode::Generic => Some(PortMode::Generic),
                    }),
                    zero_copy: bound.is_some_and(|bound| bound.zero_copy),
                    multi_buffer: bound.is_some_and(|bound| bound.multi_buffer),
                    queues: mine().filter(|queue| queue.is_open).count() as u32,
                    mtu_bytes: link.map_or(0, |link| link.mtu_bytes),
                    mac: link.and_then(|link| Mac::new(link.mac).ok()),
                    rx_packets: sum(|queue| queue.rx_frames),
                    rx_bytes: on_port().map(|(_, sums)| sums.rx_bytes).sum(),
                    tx_packets: sum(|queue| queue.tx_frames),
                    tx_bytes: on_port().map(|(_, sums)| sums.tx_bytes).sum(),
                    rx_ring_full: sum(|queue| queue.stats.rx_ring_full),
                    rx_fill_empty: sum(|queue| queue.stats.rx_fill_empty),
                    rx_dropped: sum(|queue| queue.stats.rx_dropped),
                    tx_ring_full: sum(|queue| queue.tx_ring_full),
                }
            })
            .collect()
    }

    pub(super) fn show_interfaces(&self) -> Vec<InterfaceStatus> {
        let tables = self.node().tables.load();
        let sums = self.interface_sums();
        self.config()
            .interfaces
            .iter()
            .map(|config| {
                let slot =
                    usize::from(self.compiler.interfaces.get(config.name.as_str()).unwrap_or(NO_INTERFACE));
                let live = tables.interfaces.get(slot);
                let up = live.is_some_and(|interface| interface.up);
                let around = config.port_around(&self.config().interfaces);
                let port = self
                    .ports()
                    .iter()
                    .find(|port| Some(port.name.as_str()) == around.map(|name| name.as_str()));
                let sums = sums.get(slot).copied().unwrap_or_default();
                InterfaceStatus {
                    name: config.name.clone(),
                    port: config.port.clone(),
                    vlan: config.vlan,
                    vrf: config.vrf.clone(),
                    zone: config.zone.clone(),
                    addresses: config.addresses.clone(),
                    mac: live.and_then(|interface| Mac::new(mac_from_u64(interface.mac)).ok()),
                    mtu_bytes: u32::from(config.mtu(&self.config().interfaces).bytes()),
                    vni: config.vni,
                    vtep: config.vtep,
                    remotes: config.remotes.clone(),
                    state: if up { LinkState::Up } else { LinkState::Down },
                    why: if up { None } else { port.and_then(super::LivePort::why_down) },
                    rx_packets: sums.rx_packets,
                    rx_bytes: sums.rx_bytes,
                    tx_packets: sums.tx_packets,
                    tx_bytes: sums.tx_bytes,
                    drops: sums.drops,
                }
            })
            .collect()
    }

    pub(super) fn interface_sums(&self) -> Vec<Sums> {
        let slots = self.node().tables.load().interfaces.len();
        let sum = |slot: usize| {
            let mut sums = Sums::default();
            for worker in &self.node().counters {
                let counters = &worker.interfaces[slot];
                sums.rx_packets += counters.rx_packets.load(Ordering::Relaxed);
                sums.rx_bytes += counters.rx_bytes.load(Ordering::Relaxed);
                sums.tx_packets += counters.tx_packets.load(Ordering::Relaxed);
                sums.tx_bytes += counters.tx_bytes.load(Ordering::Relaxed);
                sums.drops += counters.drops.load(Ordering::Relaxed);
            }
            sums
        };
        (0..slots).map(sum).collect()
    }

    // ---- neighbours

    pub(super) fn show_neighbours(&self, wanted: Option<&InterfaceName>) -> Vec<NeighbourEntry> {
        let now = crate::time::Nanos(self.started().elapsed().as_nanos() as u64);
        let mut entries: Vec<NeighbourEntry> = self
            .node()
            .neighbours
            .entries()
            .into_iter()
            .filter_map(|entry| {
                let state = match entry.word.state() {
                    State::Incomplete => NeighbourState::Incomplete,
                    State::Reachable => NeighbourState::Reachable,
                    State::Stale => NeighbourState::Stale,
                    State::Probe => NeighbourState::Probe,
                    State::Failed => NeighbourState::Failed,
                    State::Permanent => NeighbourState::Permanent,
                    State::Empty | State::Deleted | State::Claimed | State::Idle => return None,
                };
                let interface = self.interface_name(entry.interface)?;
                if wanted.is_some_and(|wanted| *wanted != interface) {
                    return None;
                }
                let fixed = state == NeighbourState::Permanent;
                let remote = self.remote_of(entry.interface, entry.word);
                Some(NeighbourEntry {
                    interface,
                    address: entry.address,
                    mac: entry
                        .word
                        .is_usable()
                        .then(|| Mac::new(mac_from_u64(entry.word.mac())).ok())
                        .flatten(),
                    state,
                    remote,
                    age_s: (!fixed).then(|| now.since(entry.since).as_secs()),
                    is_static: fixed,
                })
            })
            .collect();
        entries.sort_by(|a, b| (a.interface.as_str(), a.address).cmp(&(b.interface.as_str(), b.address)));
        entries
    }

    /// The tunnel end point that a neighbour on an overlay is behind.
    fn remote_of(&self, interface: u16, word: Word) -> Option<IpAddr> {
        let tables = self.node().tables.load();
        let overlay = tables.overlays.get(tables.interfaces.get(usize::from(interface))?.overlay)?;
        let shared = &self.node().neighbours;
        let known = shared.macs.find(interface, word.mac()).and_then(|at| at.as_remote());
        let known = known.and_then(|(remote, _)| shared.vteps.address(remote));
        let key = known.filter(|_| word.is_usable()).or_else(|| overlay.only_remote())?;
        Some(neighbours::addr_of(key))
    }

    // ---- counters

    fn totals(&self) -> Totals {
        Totals::of(self.node().counters.iter().map(|counters| &**counters))
    }

    pub(super) fn show_counters(&self) -> Vec<Counter> {
        let totals = self.totals();
        let workers = &self.node().counters;
        let sum = |of: fn(&WorkerCounters) -> &std::sync::atomic::AtomicU64| -> u64 {
            workers.iter().map(|worker| of(worker).load(Ordering::Relaxed)).sum()
        };
        // Ended ones first: the difference is never below what there is.
        let ended = sum(|worker| &worker.sessions_ended);
        let opened = sum(|worker| &worker.sessions_opened);
        let capacity = workers.len() as u64 * u64::from(self.node().capacity.sessions);
        let plain = [
            ("received", totals.received, "Frames received from all ports."),
            ("sent", totals.sent, "Frames given to all ports."),
            ("punted", totals.punted, "Packets the gateway consumed itself: ARP, ND, ICMP to it."),
            ("originated", totals.originated, "Packets the gateway made: answers, errors, requests."),
            ("fragments", totals.fragments, "Fragments made beyond each packet's first."),
            ("replicated", totals.replicated, "Copies made by bridges beyond each frame's first."),
            (
                "bridges.suppressed",
                sum(|worker| &worker.suppressed),
                "Questions of ARP and ND that bridges answered in the name of a station.",
            ),
            (
                "bridges.moves",
                self.node().neighbours.macs.moves.load(Ordering::Relaxed),
                "Stations that came up behind another member of their bridge.",
            ),
            (
                "bridges.flaps",
                sum(|worker| &worker.flaps),
                "Frames of stations that are in two places of a bridge, which stay where they are.",
            ),
            (
                "bridges.unlearned",
                self.node().neighbours.macs.refused.load(Ordering::Relaxed),
                "Frames of stations beyond `max_macs`, or for which the MAC table has no room.",
            ),
            ("bridges.loops", sum(|worker| &worker.loops), "Frames by which bridges found a loop."),
            ("errors-limited", totals.errors_limited, "ICMP errors withheld by a rate limit."),
            (
                "unsolicited-syns.given-up",
                sum(|worker| &worker.syns_given_up),
                "SYNs to NAT addresses that `nat.answer_unsolicited_syn` had no room for: not answered.",
            ),
            ("sessions.now", opened.saturating_sub(ended), "Sessions there are."),
            ("sessions.opened", opened, "Sessions that began."),
            ("sessions.ended", ended, "Sessions that ended."),
            (
                "sessions.recycled",
                sum(|worker| &worker.sessions_recycled),
                "Sessions that nobody had answered to and that made room for new ones, who had waited longest first.",
            ),
            (
                "syn-cookies.sent",
                sum(|worker| &worker.cookies_sent),
                "SYNs answered with a cookie, by `syn_proxy_above`.",
            ),
            (
                "syn-cookies.taken",
                sum(|worker| &worker.cookies_taken),
                "Clients that came back with their cookie: their sessions began.",
            ),
            (
                "events.lost",
                self.node().events.lost(),
                "Events for the log that had no room, or could not be written.",
            ),
            (
                "sessions.kept",
                sum(|worker| &worker.sessions_kept),
                "Idle sessions decided again after a change, and as before.",
            ),
            (
                "sessions.moved",
                sum(|worker| &worker.sessions_moved),
                "Idle sessions that a change gave to another rule, egress or next hop.",
            ),
            (
                "sessions.condemned",
                sum(|worker| &worker.sessions_condemned),
                "Idle sessions that a change denies: their next packet is dropped, or 10 seconds end them.",
            ),
            (
                "sessions.asked-kept",
                sum(|worker| &worker.sessions_asked_kept),
                "Sessions that a packet of theirs had decided again after a change, and as before.",
            ),
            (
                "sessions.asked-moved",
                sum(|worker| &worker.sessions_asked_moved),
                "Sessions with packets that a change gave to another rule, egress or next hop.",
            ),
            (
                "sessions.asked-ended",
                sum(|worker| &worker.sessions_asked_ended),
                "Sessions with packets that a change denies: the packet was dropped, and they ended.",
            ),
            (
                "sessions.capacity",
                capacity,
                "Sessions of each family (IPv4, IPv6) there is room for, on all workers together.",
            ),
        ];
        let mut counters: Vec<Counter> = plain
            .into_iter()
            .map(|(name, value, explanation)| Counter {
                name: name.to_owned(),
                value,
                explanation: explanation.to_owned(),
            })
            .collect();
        counters.extend(DropReason::all().map(|reason| Counter {
            name: format!("drop.{}", reason.name()),
            value: totals.drops.iter().find(|(other, _)| *other == reason).map_or(0, |(_, count)| *count),
            explanation: reason.explanation().to_owned(),
        }));
        counters.extend(self.bfd_counters());
        let xdp = self.ports().iter().flat_map(|port| &port.members).filter_map(|member| {
            let counters = member.xdp.as_ref()?.counters().ok()?;
            Some((member.device.clone(), counters))
        });
        for (device, kernel) in xdp {
            for (what, value, explanation) in [
                ("redirected", kernel.redirected, "Frames the XDP program gave to a socket of ours."),
                (
                    "passed",
                    kernel.passed,
                    "Frames the XDP program gave to the kernel: VRRP, BFD, LACP, pair traffic.",
                ),
                ("no-socket", kernel.no_socket, "Frames dropped because no socket sits on their queue."),
            ] {
                counters.push(Counter {
                    name: format!("xdp.{device}.{what}"),
                    value,
                    explanation: explanation.to_owned(),
                });
            }
        }
        counters
    }

    pub(super) fn show_drops(&self) -> Vec<DropEntry> {
        let records = self.drop_records();
        let now = crate::time::Nanos(self.started().elapsed().as_nanos() as u64);
        self.totals()
            .drops
            .into_iter()
            .map(|(reason, count)| DropEntry {
                reason: reason.name().to_owned(),
                count,
                explanation: reason.explanation().to_owned(),
                last_s: records
                    .iter()
                    .filter(|r| r.reason == reason)
                    .map(|r| now.since(r.time).as_secs())
                    .min(),
            })
            .collect()
    }

    fn drop_records(&self) -> Vec<DropRecord> {
        let mut records: Vec<DropRecord> =
            self.node().recorders.iter().flat_map(|recorder| recorder.read()).collect();
        records.sort_by_key(|record| record.time);
        records
    }

    /// The recorder's packets as pcapng, each with reason, interface and generation in its comment.
    pub(super) fn export_drops(&self) -> Result<DropsExport, Fault> {
        let records = self.drop_records();
        let failed = |error| Fault::refused(format!("cannot write pcapng: {error}"));
        let mut writer = PcapNgWriter::new(Vec::new()).map_err(failed)?;
        let tables = self.node().tables.load();
        // Interface 0 stands for packets that had none yet; the others follow by slot.
        let mut names = vec![Cow::Borrowed("none")];
        names.extend(tables.interfaces.iter().map(|interface| Cow::Owned(interface.info.name.clone())));
        for name in &names {
            let mut block = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
            block.options.push(InterfaceDescriptionOption::IfName(name.clone()));
            block.options.push(InterfaceDescriptionOption::IfTsResol(9));
            writer.write_pcapng_block(block).map_err(failed)?;
        }
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let start = wall.saturating_sub(self.started().elapsed());
        for record in &records {
            let interface =
                if record.interface == NO_INTERFACE { 0 } else { usize::from(record.interface) + 1 };
            let name = names.get(interface).cloned().unwrap_or(Cow::Borrowed("deleted"));
            let comment = format!(
                "reason={} interface={name} generation={}: {}",
                record.reason.name(),
                record.generation,
                record.reason.explanation()
            );
            let block = EnhancedPacketBlock {
                interface_id: interface.min(names.len() - 1) as u32,
                timestamp: start + Duration::from_nanos(record.time.0),
                original_len: record.len,
                data: Cow::Borrowed(&record.bytes),
                options: vec![EnhancedPacketOption::Comment(Cow::Owned(comment))],
            };
            writer.write_pcapng_block(block).map_err(failed)?;
        }
        Ok(DropsExport { packets: records.len() as u64, pcapng: writer.into_inner() })
    }

    pub(super) fn show_dhcp_relays(&self) -> Vec<DhcpRelayEntry> {
        let tables = self.node().tables.load();
        let relays = tables.relays.v4.all().iter().chain(tables.relays.v6.all());
        let mut entries: Vec<DhcpRelayEntry> = relays
            .filter_map(|relay| {
                let family = usize::from(relay.spec.source.is_ipv6());
                let sum = |of: &dyn Fn(&RelayCounters) -> u64| -> u64 {
                    let counters = self.node().counters.iter().map(|worker| &worker.relays[family]);
                    counters.filter_map(|by| by.get(relay.interface.into())).map(of).sum()
                };
                let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
                let known = RELAY_REASONS.iter().enumerate();
                let known = known.map(|(place, reason)| (reason.name(), sum(&|by| load(&by.drops[place]))));
                let drops = known.chain([("other", sum(&|by| load(&by.other_drops)))]);
                let drops = drops.filter(|(_, count)| *count > 0);
                Some(DhcpRelayEntry {
                    interface: self.interface_name(relay.interface)?,
                    source: relay.spec.source,
                    servers: relay.spec.servers.clone(),
                    vrf: relay.spec.vrf.parse().ok()?,
                    requests: sum(&|by| load(&by.requests)),
                    replies: sum(&|by| load(&by.replies)),
                    drops: drops
                        .map(|(reason, count)| LostMessages { reason: reason.to_owned(), count })
                        .collect(),
                })
            })
            .collect();
        entries.sort_by(|a, b| (&a.interface, a.source).cmp(&(&b.interface, b.source)));
        entries
    }

    pub(super) fn show_workers(&self) -> Vec<WorkerStatus> {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        self.node()
            .counters
            .iter()
            .zip(self.worker_cpus())
            .enumerate()
            .map(|(id, (counters, cpu))| {
                let counters: &WorkerCounters = counters;
                WorkerStatus {
                    id: id as u32,
                    cpu: Some(cpu as u32),
                    generation: counters.generation.generation(),
                    converged: counters.converged.generation(),
                    packets: load(&counters.received),
                    bursts: load(&counters.bursts),
                    loops: load(&counters.turns),
                    busy_percent: load(&counters.busy_permille) as f32 / 10.0,
                    // Asked for, the measurement starts anew.
                    longest_gap_us: counters.longest_gap_ns.swap(0, Ordering::Relaxed) / 1000,
                    longest_gap_own_us: counters.longest_gap_own_ns.swap(0, Ordering::Relaxed) / 1000,
                    long_gaps: load(&counters.long_gaps),
                    frames_free: load(&counters.frames_free),
                    handed_over: load(&counters.handed_over),
                    sessions: load(&counters.sessions_opened).saturating_sub(load(&counters.sessions_ended)),
                    sessions_opened: load(&counters.sessions_opened),
                    sessions_ended: load(&counters.sessions_ended),
                    session_capacity: self.node().capacity.sessions.into(),
                }
            })
            .collect()
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) rx_packets: u64,
    pub(super) rx_bytes: u64,
    pub(super) tx_packets: u64,
    pub(super) tx_bytes: u64,
    pub(super) drops: u64,
}
