//! Events for the log: fixed-size records that workers leave in a queue, for a thread that has time to write them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::flow::nat;
use crate::time::Nanos;

/// Events of one worker that wait for the thread at most; it looks every 10 ms.
const WAITING: usize = 1 << 14;

/// What happened to a session, or to a packet that was to begin one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEvent {
    /// A rule with `log` let it begin.
    Opened,
    /// It has ended.
    Ended,
    /// It was given up to make room: nobody had answered to it.
    Recycled,
    /// A rule with `log` refused the packet.
    Refused,
    /// A rule with `log` let the packet through to the gateway itself.
    Local,
}

impl SessionEvent {
    /// As the log has it.
    pub const fn name(self) -> &'static str {
        match self {
            SessionEvent::Opened => "session-opened",
            SessionEvent::Ended => "session-ended",
            SessionEvent::Recycled => "session-recycled",
            SessionEvent::Refused => "refused",
            SessionEvent::Local => "allowed-to-gateway",
        }
    }
}

/// A session event. Addresses are IPv6, or IPv4 mapped ([`crate::neighbours::v4_key`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// What happened.
    pub event: SessionEvent,
    /// When.
    pub time: Nanos,
    /// VRF slot of the first packet.
    pub vrf: u16,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source and port of the first packet.
    pub source: (u128, u16),
    /// Destination and port of the first packet.
    pub destination: (u128, u16),
    /// What the source is behind source NAT.
    pub new_source: (u128, u16),
    /// What the destination is behind destination NAT.
    pub new_destination: (u128, u16),
    /// Slot of the rule.
    pub rule: u32,
    /// Packets of both directions.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of a session.
    Session(SessionRecord),
    /// Of a NAT port block.
    Block(nat::Event),
}

/// The events of a node on their way from its workers to the log.
#[derive(Debug)]
pub struct EventQueues {
    workers: usize,
    /// By worker. Made when somebody first wants events: 2.6 MB each.
    queues: OnceLock<Box<[ArrayQueue<Event>]>>,
    lost: AtomicU64,
    is_wanted: AtomicBool,
}

impl EventQueues {
    /// Of so many workers.
    pub fn new(workers: usize) -> EventQueues {
        EventQueues {
            workers,
            queues: OnceLock::new(),
            lost: AtomicU64::new(0),
            is_wanted: AtomicBool::new(false),
        }
    }

    /// Whether somebody takes the events: otherwise there are none.
    pub fn want(&self, wanted: bool) {
        if wanted {
            // Before anybody pushes: a worker makes no memory.
            self.queues.get_or_init(|| (0..self.workers).map(|_| ArrayQueue::new(WAITING)).collect());
        }
        self.is_wanted.store(wanted, Ordering::Relaxed);
    }

    /// Whether somebody takes them.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Leaves an event; without room it is lost, and counted.
    pub fn push(&self, worker: usize, event: Event) {
        if !self.is_wanted() {
            return;
        }
        // Whoever reads just now that events are wanted may not see the queues yet.
        if self.queues.get().is_none_or(|queues| queues[worker].push(event).is_err()) {
            self.lose(1);
        }
    }

    /// Counts events that had no room elsewhere.
    pub fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// The next event of a worker.
    pub fn pop(&self, worker: usize) -> Option<Event> {
        self.queues.get()?[worker].pop()
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Events that were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(port: u16) -> Event {
        Event::Block(nat::Event {
            kind: nat::EventKind::BlockClaimed,
            time: Nanos(0),
            pool: 0,
            inside_vrf: 0,
            host: 0,
            outside_vrf: 0,
            addr: 0,
            first_port: port,
            last_port: port,
        })
    }

    #[test]
    fn what_has_no_room_is_counted_and_nothing_is_kept_that_nobody_wants() {
        let queues = EventQueues::new(4);
        queues.push(1, block(1));
        assert_eq!((queues.pop(1), queues.lost()), (None, 0));
        assert!(queues.queues.get().is_none(), "no memory for what nobody wants");
        queues.want(true);
        for port in 0..WAITING as u16 {
            queues.push(1, block(port));
        }
        queues.push(1, block(7));
        assert_eq!(queues.lost(), 1);
        assert_eq!((queues.pop(0), queues.pop(1)), (None, Some(block(0))));
    }
}
