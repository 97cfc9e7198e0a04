//! A worker's counters. Only the owner writes, with plain loads and stores; readers add up the workers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::fates::Fates;
use crate::by_slot::BySlot;
use crate::packet::DropReason;
use crate::publication::Seen;
use crate::time::Nanos;

/// Adds to a counter of which the caller is the only writer.
#[inline]
pub fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// Counters of one interface, as one worker saw it.
#[derive(Debug, Default)]
pub struct InterfaceCounters {
    /// Packets received.
    pub rx_packets: AtomicU64,
    /// Bytes received, Ethernet header included.
    pub rx_bytes: AtomicU64,
    /// Packets sent.
    pub tx_packets: AtomicU64,
    /// Bytes sent, Ethernet header included.
    pub tx_bytes: AtomicU64,
    /// Packets lost that had come in here.
    pub drops: AtomicU64,
}

/// Kinds of refusal of a NAT pool.
pub const REFUSALS: usize = crate::flow::nat::Refused::ALL.len();

/// What one worker knows of one NAT pool.
#[derive(Debug, Default)]
pub struct PoolCounters {
    /// Sessions that got no mapping, by the number of the reason.
    pub refused: [AtomicU64; REFUSALS],
    /// Inside hosts, as of the last count.
    pub hosts: AtomicU64,
    /// Mappings that sessions use, as of the last count.
    pub live: AtomicU64,
    /// Mappings in hold-down, as of the last count.
    pub held: AtomicU64,
}

impl PoolCounters {
    /// Counts a refusal.
    pub fn refuse(&self, reason: usize) {
        add(&self.refused[reason], 1);
    }
}

/// Counters of one rule, as one worker saw it. What live sessions carry is in them as of the last time that they
/// were settled ([`crate::flow::settle`]).
#[derive(Debug, Default)]
pub struct RuleCounters {
    /// Sessions it let begin, or packets it refused.
    pub hits: AtomicU64,
    /// Packets of its sessions, in both directions, and those it refused.
    pub packets: AtomicU64,
    /// Bytes of them, IP header included.
    pub bytes: AtomicU64,
    /// When it decided something last, in nanoseconds of the node's clock; 0 = never.
    pub last_hit: AtomicU64,
}

impl RuleCounters {
    /// Counts a decision.
    pub fn hit(&self, now: Nanos) {
        add(&self.hits, 1);
        self.last_hit.store(now.0, Ordering::Relaxed);
    }

    /// Counts packets.
    pub fn carried(&self, packets: u64, bytes: u64) {
        add(&self.packets, packets);
        add(&self.bytes, bytes);
    }
}

/// Counters of one backend of a service, as one worker saw it.
#[derive(Debug, Default)]
pub struct BackendCounters {
    /// Its flows, and what they carried.
    pub flows: RuleCounters,
    /// Those of them that have ended.
    pub ended: AtomicU64,
    /// Those of them that it refused, or did not answer to.
    pub failed: AtomicU64,
    /// Whose those were that failed since this was looked at, a bit for each 64th of all client networks.
    pub failed_clients: AtomicU64,
    /// Flows that it lost because it failed or was disabled.
    pub lost: AtomicU64,
}

/// Reasons that only DHCP messages are lost for.
pub const RELAY_REASONS: [DropReason; 9] = {
    use DropReason::*;
    [
        DhcpInvalid,
        DhcpHops,
        DhcpLoop,
        DhcpOtherRelay,
        DhcpOption82,
        DhcpUnknownServer,
        DhcpNoClient,
        DhcpRateLimit,
        DhcpTooLong,
    ]
};

/// Packets over the pair link, as one worker saw them.
#[derive(Debug, Default)]
pub struct PairLinkCounters {
    /// To the other node, by [`Why`](crate::packet::Why).
    pub sent: [AtomicU64; crate::packet::Why::COUNT],
    /// From it.
    pub received: AtomicU64,
}

/// Counters of the DHCP relay of one interface and family, as one worker saw it.
#[derive(Debug, Default)]
pub struct RelayCounters {
    /// Messages of clients that went to the servers, each counted once.
    pub requests: AtomicU64,
    /// Messages of servers that went to clients.
    pub replies: AtomicU64,
    /// Those that were lost, in the order of [`RELAY_REASONS`].
    pub drops: [AtomicU64; RELAY_REASONS.len()],
    /// For other reasons.
    pub other_drops: AtomicU64,
}

impl RelayCounters {
    /// Counts a message that is lost.
    pub fn lose(&self, reason: DropReason) {
        let place = RELAY_REASONS.iter().position(|known| *known == reason);
        add(place.map_or(&self.other_drops, |place| &self.drops[place]), 1);
    }
}

/// What has become of sessions that the peer has told of, or has ended.
#[derive(Debug, Default)]
pub struct ReplicaCounters {
    /// They are there now.
    pub installed: AtomicU64,
    /// They were, and stand where the peer says.
    pub renewed: AtomicU64,
    /// They had packets here that the peer did not know of.
    pub kept: AtomicU64,
    /// Ended with the peer's.
    pub ended: AtomicU64,
    /// Ended because a resync did not have them.
    pub swept: AtomicU64,
    /// They cannot be had here, by cause.
    pub refused: [AtomicU64; 6],
}

/// Counters of one worker.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Frames received from ports.
    pub received: AtomicU64,
    /// Frames given to ports.
    pub sent: AtomicU64,
    /// Packets consumed by the gateway itself (ARP, ND, ICMP to us).
    pub punted: AtomicU64,
    /// Packets the gateway made: answers, errors, requests.
    pub originated: AtomicU64,
    /// Fragments made beyond a packet's first.
    pub fragments: AtomicU64,
    /// Copies made by bridges beyond a frame's first.
    pub replicated: AtomicU64,
    /// Questions of ARP and ND that bridges answered in the name of a station.
    pub suppressed: AtomicU64,
    /// Frames of stations that are in two places of a bridge.
    pub flaps: AtomicU64,
    /// Loops found by bridges.
    pub loops: AtomicU64,
    /// Bursts that held at least one frame.
    pub bursts: AtomicU64,
    /// Turns of the loop.
    pub turns: AtomicU64,
    /// ICMP errors not sent because of a rate limit.
    pub errors_limited: AtomicU64,
    /// SYNs that nobody has asked for and that there was no room to keep for an answer.
    pub syns_given_up: AtomicU64,
    /// Packets given to the worker that has their flow.
    pub handed_over: AtomicU64,
    /// Sessions opened.
    pub sessions_opened: AtomicU64,
    /// Sessions that ended.
    pub sessions_ended: AtomicU64,
    /// Those of them that nobody had answered to and that made room for others.
    pub sessions_recycled: AtomicU64,
    /// SYNs answered with a cookie.
    pub cookies_sent: AtomicU64,
    /// Cookies that came back, and began a session.
    pub cookies_taken: AtomicU64,
    /// Sessions that the review after a change has decided again, as before.
    pub sessions_kept: AtomicU64,
    /// To another rule, egress or next hop.
    pub sessions_moved: AtomicU64,
    /// To be ended.
    pub sessions_condemned: AtomicU64,
    /// Sessions that a packet of theirs has had decided again after a change, as before.
    pub sessions_asked_kept: AtomicU64,
    /// To another rule, egress or next hop.
    pub sessions_asked_moved: AtomicU64,
    /// And ended.
    pub sessions_asked_ended: AtomicU64,
    /// Sessions that the peer has told of.
    pub replicas: ReplicaCounters,
    /// Packets that the other node of a pair was given to decide, and has given.
    pub pair_link: PairLinkCounters,
    /// Packets lost, by reason.
    pub drops: [AtomicU64; DropReason::COUNT],
    /// By interface slot.
    pub interfaces: Box<[InterfaceCounters]>,
    /// By rule slot.
    pub rules: BySlot<RuleCounters>,
    /// By NAT rule slot.
    pub nat_rules: BySlot<RuleCounters>,
    /// By backend slot.
    pub backends: BySlot<BackendCounters>,
    /// By pool slot.
    pub pools: BySlot<PoolCounters>,
    /// Of DHCP and of DHCPv6, by interface slot.
    pub relays: [BySlot<RelayCounters>; 2],
    /// What became of the sessions that changes were about.
    pub fates: Fates,
    /// Generation that no session of the worker is older than.
    pub converged: Seen,
    /// Generation of the tables the worker used last.
    pub generation: Seen,
    /// Free frames in the pool, as of the last turn.
    pub frames_free: AtomicU64,
    /// Longest time between two turns under load since it was last asked for, in nanoseconds.
    pub longest_gap_ns: AtomicU64,
    /// The same without what the worker stood on the run queue.
    pub longest_gap_own_ns: AtomicU64,
    /// Gaps of its own of 50 microseconds and more.
    pub long_gaps: AtomicU64,
    /// Share of the last second spent in turns that did work, in thousandths.
    pub busy_permille: AtomicU64,
}

impl WorkerCounters {
    /// Counters for interface slots below `interfaces`.
    pub fn new(interfaces: usize) -> WorkerCounters {
        WorkerCounters {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            punted: AtomicU64::new(0),
            originated: AtomicU64::new(0),
            fragments: AtomicU64::new(0),
            replicated: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            flaps: AtomicU64::new(0),
            loops: AtomicU64::new(0),
            bursts: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            errors_limited: AtomicU64::new(0),
            syns_given_up: AtomicU64::new(0),
            handed_over: AtomicU64::new(0),
            sessions_opened: AtomicU64::new(0),
            sessions_ended: AtomicU64::new(0),
            sessions_recycled: AtomicU64::new(0),
            cookies_sent: AtomicU64::new(0),
            cookies_taken: AtomicU64::new(0),
            sessions_kept: AtomicU64::new(0),
            sessions_moved: AtomicU64::new(0),
            sessions_condemned: AtomicU64::new(0),
            sessions_asked_kept: AtomicU64::new(0),
            sessions_asked_moved: AtomicU64::new(0),
            sessions_asked_ended: AtomicU64::new(0),
            replicas: ReplicaCounters::default(),
            pair_link: PairLinkCounters::default(),
            drops: [const { AtomicU64::new(0) }; DropReason::COUNT],
            interfaces: (0..interfaces).map(|_| InterfaceCounters::default()).collect(),
            rules: BySlot::default(),
            nat_rules: BySlot::default(),
            backends: BySlot::default(),
            pools: BySlot::default(),
            relays: Default::default(),
            generation: Seen::default(),
            fates: Fates::default(),
            converged: Seen::default(),
            frames_free: AtomicU64::new(0),
            longest_gap_ns: AtomicU64::new(0),
            longest_gap_own_ns: AtomicU64::new(0),
            long_gaps: AtomicU64::new(0),
            busy_permille: AtomicU64::new(0),
        }
    }
}

/// Sums over workers, as commands print them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Packets for the gateway itself.
    pub punted: u64,
    /// Packets made by the gateway.
    pub originated: u64,
    /// Fragments made beyond each packet's first.
    pub fragments: u64,
    /// Copies made by bridges beyond each frame's first.
    pub replicated: u64,
    /// ICMP errors withheld by a rate limit.
    pub errors_limited: u64,
    /// Reasons that lost something, with their counts.
    pub drops: Vec<(DropReason, u64)>,
}

impl Totals {
    /// Adds up the workers.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerCounters> + Clone) -> Totals {
        let sum = |field: fn(&WorkerCounters) -> &AtomicU64| {
            workers.clone().into_iter().map(|worker| field(worker).load(Ordering::Relaxed)).sum()
        };
        let drops = DropReason::all().map(|reason| {
            let count = |worker: &WorkerCounters| worker.drops[reason.index()].load(Ordering::Relaxed);
            (reason, workers.clone().into_iter().map(count).sum::<u64>())
        });
        Totals {
            received: sum(|w| &w.received),
            sent: sum(|w| &w.sent),
            punted: sum(|w| &w.punted),
            originated: sum(|w| &w.originated),
            fragments: sum(|w| &w.fragments),
            replicated: sum(|w| &w.replicated),
            errors_limited: sum(|w| &w.errors_limited),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
        }
    }
}
