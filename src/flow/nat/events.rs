//! What goes to the log: one record when a host gets a block and one when it gives it back (RFC 6888 REQ-14).
//! Destinations are never in it (REQ-12).

use std::collections::VecDeque;

use crate::time::Nanos;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A host got a block.
    BlockClaimed,
    /// All its ports are free and past their hold-down.
    BlockReleased,
}

/// One log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub time: Nanos,
    /// The pool's slot.
    pub pool: u16,
    /// VRF of the host.
    pub inside_vrf: u16,
    /// The host: IPv4 mapped, or an IPv6 /64.
    pub host: u128,
    /// VRF of the external address.
    pub outside_vrf: u16,
    /// External address.
    pub addr: u32,
    /// First port of the block.
    pub first_port: u16,
    /// Last port of the block.
    pub last_port: u16,
}

/// Events waiting for the log. What does not fit is counted, never waited for.
#[derive(Debug)]
pub(super) struct EventRing {
    waiting: VecDeque<Event>,
    capacity: usize,
    lost: u64,
}

impl EventRing {
    pub fn new(capacity: usize) -> EventRing {
        EventRing { waiting: VecDeque::with_capacity(capacity), capacity, lost: 0 }
    }

    pub fn push(&mut self, event: Event) {
        if self.waiting.len() < self.capacity {
            self.waiting.push_back(event);
        } else {
            self.lost += 1;
        }
    }

    pub fn pop(&mut self) -> Option<Event> {
        self.waiting.pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many were lost since it was asked last.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
