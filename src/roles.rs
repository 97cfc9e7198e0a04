//! Roles of virtual routers: what this node does for each, by slot.
//!
//! A shared table of fixed capacity, one atomic word for each: the HA thread writes, workers read. Whoever takes over
//! writes one word, and no flow, route or adjacency changes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::time::Nanos;

/// Virtual routers a node can have had since its start, each family for itself.
pub const MAX_ROLES: usize = 4096;

/// What a node does for a virtual router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// Nothing: nobody is known to do more.
    #[default]
    Away = 0,
    /// Nothing: another is heard to be the Active.
    Backup = 1,
    /// It forwards what still comes to the MAC address, and answers for nothing: another has just become the Active, and
    /// what was under way to this node then is not to be lost.
    Forwards = 2,
    /// It is the Active: forwards, and answers for the addresses.
    Active = 3,
}

impl From<bool> for Part {
    /// Active, or nothing.
    fn from(is_active: bool) -> Part {
        if is_active { Part::Active } else { Part::Away }
    }
}

#[derive(Debug, Default)]
struct Role {
    /// A [`Part`].
    part: AtomicU8,
    /// Somebody else has claimed one of its addresses.
    conflict: AtomicBool,
}

/// The table. Nobody is Active at first.
#[derive(Debug)]
pub struct Roles {
    all: Box<[Role]>,
    /// When the node began or ceased to forward for some virtual router; 0: never.
    changed: AtomicU64,
    /// Virtual routers whose Active another node is, as far as is known.
    elsewhere: AtomicU32,
    /// The other node of a pair is heard.
    has_peer: AtomicBool,
}

impl Default for Roles {
    fn default() -> Roles {
        Roles {
            all: (0..MAX_ROLES).map(|_| Role::default()).collect(),
            changed: AtomicU64::new(0),
            elsewhere: AtomicU32::new(0),
            has_peer: AtomicBool::new(false),
        }
    }
}

impl Roles {
    /// A copy that nobody shares.
    pub(crate) fn copied(&self) -> Roles {
        let role = |role: &Role| Role {
            part: AtomicU8::new(role.part.load(Ordering::Acquire)),
            conflict: AtomicBool::new(false),
        };
        let changed = AtomicU64::new(self.changed.load(Ordering::Relaxed));
        Roles {
            all: self.all.iter().map(role).collect(),
            changed,
            elsewhere: AtomicU32::new(self.elsewhere.load(Ordering::Relaxed)),
            has_peer: AtomicBool::new(self.has_peer()),
        }
    }

    /// True if this node is the Active of the virtual router in `slot`.
    #[inline]
    pub fn is_active(&self, slot: u16) -> bool {
        self.all
            .get(usize::from(slot))
            .is_some_and(|role| role.part.load(Ordering::Acquire) == Part::Active as u8)
    }

    /// True if this node forwards what comes to the MAC address of the virtual router in `slot`.
    #[inline]
    pub fn forwards(&self, slot: u16) -> bool {
        self.all
            .get(usize::from(slot))
            .is_some_and(|role| role.part.load(Ordering::Acquire) >= Part::Forwards as u8)
    }

    /// What this node does for the virtual router in `slot`.
    pub fn part(&self, slot: u16) -> Part {
        let part = self.all.get(usize::from(slot)).map_or(0, |role| role.part.load(Ordering::Acquire));
        [Part::Away, Part::Backup, Part::Forwards, Part::Active][usize::from(part & 3)]
    }

    /// True if another node is the Active of some virtual router, or has just become it.
    #[inline]
    pub fn is_any_elsewhere(&self) -> bool {
        self.elsewhere.load(Ordering::Relaxed) != 0
    }

    /// The other node of a pair is heard, or not.
    pub fn set_peer(&self, is_there: bool) {
        self.has_peer.store(is_there, Ordering::Release);
    }

    /// True if the other node of a pair is heard.
    pub fn has_peer(&self) -> bool {
        self.has_peer.load(Ordering::Acquire)
    }

    /// Says what it does from `now` on. One thread does that.
    pub fn set(&self, slot: u16, part: Part, now: Nanos) {
        let Some(role) = self.all.get(usize::from(slot)) else { return };
        let before = role.part.swap(part as u8, Ordering::AcqRel);
        let is_elsewhere = |part: u8| part == Part::Backup as u8 || part == Part::Forwards as u8;
        match (is_elsewhere(before), is_elsewhere(part as u8)) {
            (false, true) => drop(self.elsewhere.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.elsewhere.fetch_sub(1, Ordering::Relaxed)),
            (true, true) | (false, false) => {}
        }
        // Who is heard, while it does nothing itself, is no change of that.
        if before != part as u8 && before.max(part as u8) >= Part::Forwards as u8 {
            self.changed.store(now.0.max(1), Ordering::Release);
        }
    }

    /// When a part changed last. Sessions that have not been seen since may have gone on elsewhere.
    pub fn changed(&self) -> Option<Nanos> {
        Some(Nanos(self.changed.load(Ordering::Acquire))).filter(|changed| changed.0 != 0)
    }

    /// Somebody else claims an address of the virtual router.
    pub fn note_conflict(&self, slot: u16) {
        if let Some(role) = self.all.get(usize::from(slot)) {
            role.conflict.store(true, Ordering::Relaxed);
        }
    }

    /// True if somebody has claimed an address since the last call.
    pub fn take_conflict(&self, slot: u16) -> bool {
        self.all.get(usize::from(slot)).is_some_and(|role| role.conflict.swap(false, Ordering::Relaxed))
    }
}
