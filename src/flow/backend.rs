//! Which flows show that the backend of a service does not answer: a connection that it resets when it is asked for, one
//! that the client asks for once more and gets no word, and what a router says cannot be reached. Each flow counts once.
//!
//! As long as nothing is known of a flow to a backend its first direction lacks [`flow_flags::SEEN`], and its packets come
//! by here; from then on they are as any.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::{Address, FlowTable, Handle, Tick, flow_flags, tcp};
use crate::packet::hash::fold;
use crate::packet::view::protocol;
use crate::telemetry::{WorkerCounters, add};

/// SYNs that a client has sent before one that shows that nobody answers, and how long the first of them is ago at
/// least, in ticks: after one second it is sent again, after two more once more (RFC 6298 sections 2.1 and 5.5).
const SYNS: u64 = 2;
const PATIENCE: u32 = 20;

/// A packet of the client's, while nothing is known yet.
#[cold]
pub fn speaks_again<A: Address>(
    table: &mut FlowTable<A>,
    session: u32,
    now: Tick,
    counters: &WorkerCounters,
) {
    let forward = table.flow(Handle::new(session, 0));
    let opens = forward.tuple.protocol == protocol::TCP && is_unanswered(table, session);
    if !opens {
        table.flow_mut(Handle::new(session, 0)).flags |= flow_flags::SEEN;
    } else if forward.packets() >= SYNS && now.0.saturating_sub(table.created(session).0) >= PATIENCE {
        fails(table, session, counters);
    }
}

/// The connection was refused, or somebody on the way says that the backend cannot be reached; nothing if it has answered
/// before.
#[cold]
pub fn is_refused<A: Address>(table: &mut FlowTable<A>, session: u32, counters: &WorkerCounters) {
    if is_unanswered(table, session) {
        fails(table, session, counters);
    }
}

/// The gateway has asked the backend in a client's name, and does so once more.
#[cold]
pub(super) fn is_asked_again<A: Address>(
    table: &mut FlowTable<A>,
    session: u32,
    now: Tick,
    counters: &WorkerCounters,
) {
    if now.0.saturating_sub(table.created(session).0) >= PATIENCE && is_unanswered(table, session) {
        fails(table, session, counters);
    }
}

fn is_unanswered<A: Address>(table: &FlowTable<A>, session: u32) -> bool {
    match table.flow(Handle::new(session, 0)).tuple.protocol {
        protocol::TCP => matches!(table.tcp(session).state(), tcp::State::SynSent | tcp::State::Refused),
        _ => !table.flow(Handle::new(session, 1)).has(flow_flags::SEEN),
    }
}

/// Which 64th of all networks of clients (IPv4 /24, IPv6 /48) one is in.
fn network_of(client: IpAddr) -> u32 {
    let network = match client.to_canonical() {
        IpAddr::V4(addr) => u64::from(addr.to_bits() >> 8),
        IpAddr::V6(addr) => (addr.to_bits() >> 80) as u64,
    };
    (fold(network ^ 0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345) >> 58) as u32
}

/// Counts a flow that has failed, once.
fn fails<A: Address>(table: &mut FlowTable<A>, session: u32, counters: &WorkerCounters) {
    let flow = table.flow_mut(Handle::new(session, 0));
    if !flow.has(flow_flags::SEEN) {
        flow.flags |= flow_flags::SEEN;
        let client = flow.tuple.src.ip();
        let backend = table.record(session).backend();
        let counted = backend.and_then(|slot| counters.backends.get(slot as usize));
        if let Some(counted) = counted {
            add(&counted.failed, 1);
            counted.failed_clients.fetch_or(1 << network_of(client), Ordering::Relaxed);
        }
    }
}
