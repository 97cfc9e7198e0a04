//! Roles of virtual routers: whether this node is the Active, by slot.
//!
//! A shared table of fixed capacity, one atomic word for each: the HA thread writes, workers read. Whoever takes over
//! writes one word, and no flow, route or adjacency changes.

use std::sync::atomic::{AtomicBool, Ordering};

/// Virtual routers a node can have had since its start, each family for itself.
pub const MAX_ROLES: usize = 4096;

#[derive(Debug, Default)]
struct Role {
    is_active: AtomicBool,
    /// Somebody else has claimed one of its addresses.
    conflict: AtomicBool,
}

/// The table. Nobody is Active at first.
#[derive(Debug)]
pub struct Roles(Box<[Role]>);

impl Default for Roles {
    fn default() -> Roles {
        Roles((0..MAX_ROLES).map(|_| Role::default()).collect())
    }
}

impl Roles {
    /// A copy that nobody shares.
    pub(crate) fn copied(&self) -> Roles {
        let role = |role: &Role| Role {
            is_active: AtomicBool::new(role.is_active.load(Ordering::Acquire)),
            conflict: AtomicBool::new(false),
        };
        Roles(self.0.iter().map(role).collect())
    }

    /// True if this node is the Active of the virtual router in `slot`.
    #[inline]
    pub fn is_active(&self, slot: u16) -> bool {
        self.0.get(usize::from(slot)).is_some_and(|role| role.is_active.load(Ordering::Acquire))
    }

    /// Says whether it is.
    pub fn set(&self, slot: u16, is_active: bool) {
        if let Some(role) = self.0.get(usize::from(slot)) {
            role.is_active.store(is_active, Ordering::Release);
        }
    }

    /// Somebody else claims an address of the virtual router.
    pub fn note_conflict(&self, slot: u16) {
        if let Some(role) = self.0.get(usize::from(slot)) {
            role.conflict.store(true, Ordering::Relaxed);
        }
    }

    /// True if somebody has claimed an address since the last call.
    pub fn take_conflict(&self, slot: u16) -> bool {
        self.0.get(usize::from(slot)).is_some_and(|role| role.conflict.swap(false, Ordering::Relaxed))
    }
}
