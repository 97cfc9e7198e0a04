//! Embryonic sessions: those that nobody has answered to yet, in the order in which they began. When there is no room,
//! the oldest of them are given up (RFC 4987 section 3.4); nothing else ever is.
//!
//! Two doubly linked lists through one array, each a ring that begins and ends with a number no session has. TCP
//! leaves its list when it is established, anything else with the first answer.

use zerocopy::FromZeros;

use crate::mem::{HugeSlice, MemoryError};
use crate::packet::view::protocol;

/// Which list a session is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// TCP that opens, or was refused while it did.
    Opening = 0,
    /// Anything else without a reply.
    Unanswered = 1,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Opening, Kind::Unanswered];

    /// Of a session's protocol.
    pub fn of(upper: u8) -> Kind {
        if upper == protocol::TCP { Kind::Opening } else { Kind::Unanswered }
    }
}

/// All zero: in no list, since no session and no ring has the number 0.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
struct Link {
    next: u32,
    prev: u32,
}

/// The embryonic sessions of a table.
#[derive(Debug)]
pub struct Embryos {
    /// By session; the two rings' own behind them.
    links: HugeSlice<Link>,
    /// Number of the first ring.
    rings: u32,
    counts: [u32; 2],
}

impl Embryos {
    /// For sessions 1 to `highest`.
    pub fn new(highest: u32, populate: bool) -> Result<Embryos, MemoryError> {
        let rings = highest + 1;
        let mut links: HugeSlice<Link> = HugeSlice::zeroed(highest as usize + 3, populate)?;
        for ring in [rings, rings + 1] {
            links[ring as usize] = Link { next: ring, prev: ring };
        }
        Ok(Embryos { links, rings, counts: [0; 2] })
    }

    /// Bytes that they take.
    pub fn bytes_for(highest: u32) -> usize {
        (highest as usize + 3) * size_of::<Link>()
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.links)
    }

    /// How many there are.
    pub fn len(&self, kind: Kind) -> u32 {
        self.counts[kind as usize]
    }

    /// True if the session is in a list.
    pub fn has(&self, session: u32) -> bool {
        self.links[session as usize].next != 0
    }

    /// Adds a session that is in no list, as the youngest.
    pub fn push(&mut self, session: u32, kind: Kind) {
        let ring = self.rings + kind as u32;
        let last = std::mem::replace(&mut self.links[ring as usize].prev, session);
        self.links[last as usize].next = session;
        self.links[session as usize] = Link { next: ring, prev: last };
        self.counts[kind as usize] += 1;
    }

    /// Takes a session out of the list that it is in.
    pub fn remove(&mut self, session: u32, kind: Kind) {
        let Link { next, prev } = self.links[session as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[session as usize] = Link { next: 0, prev: 0 };
        self.counts[kind as usize] -= 1;
    }

    /// The one that began first.
    pub fn oldest(&self, kind: Kind) -> Option<u32> {
        let ring = self.rings + kind as u32;
        Some(self.links[ring as usize].next).filter(|first| *first != ring)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_two_queues(steps in proptest::collection::vec((1u32..20, any::<bool>(), any::<bool>()), 1..300)) {
            let mut embryos = Embryos::new(19, false).expect("memory");
            let mut twins: [VecDeque<u32>; 2] = Default::default();
            for (session, opening, add) in steps {
                let kind = if opening { Kind::Opening } else { Kind::Unanswered };
                let there = twins.iter().position(|twin| twin.contains(&session));
                prop_assert_eq!(embryos.has(session), there.is_some());
                match (there, add) {
                    (None, true) => {
                        embryos.push(session, kind);
                        twins[kind as usize].push_back(session);
                    }
                    (Some(at), false) => {
                        embryos.remove(session, Kind::ALL[at]);
                        twins[at].retain(|other| *other != session);
                    }
                    (None, false) | (Some(_), true) => {}
                }
                for kind in Kind::ALL {
                    let twin = &twins[kind as usize];
                    prop_assert_eq!(embryos.oldest(kind), twin.front().copied());
                    prop_assert_eq!(embryos.len(kind) as usize, twin.len());
                }
            }
        }
    }
}
