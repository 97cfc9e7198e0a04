//! Groups: which named sets an address is in, by one longest-prefix match.
//!
//! The prefixes of all groups lie in one table per family. A leaf stands for a *class*: the list of groups
//! that cover the prefix, those of the shorter prefixes around it included. So an address costs one lookup,
//! however many groups there are and however large they are. [`super::members`] makes and changes them.

use std::sync::Arc;

use crate::neighbours::is_v4_key;
use crate::tables::fib4::Fib4;
use crate::tables::fib6::Fib6;

/// Number of a group within one generation.
pub(super) type Set = u16;

/// More than 65,535 different combinations of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyClasses;

/// The members of all groups, compiled.
#[derive(Default)]
pub(super) struct Groups {
    pub v4: Arc<Fib4>,
    pub v6: Arc<Fib6>,
    /// By leaf, each sorted; the first is that of addresses in no group.
    pub classes: Arc<[Arc<[Set]>]>,
}

impl Groups {
    /// The groups that an address is in, in ascending order; IPv4 as [`crate::neighbours::v4_key`].
    pub fn of(&self, addr: u128) -> &[Set] {
        if self.classes.len() <= 1 {
            return &[];
        }
        let leaf = if is_v4_key(addr) { self.v4.find(addr as u32) } else { self.v6.find(addr) };
        &self.classes[usize::from(leaf)]
    }
}
