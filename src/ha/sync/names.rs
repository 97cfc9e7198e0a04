//! The dictionary: what slots are called. Slots are a node's own; by their names each finds the other's among its own.

use ahash::AHashMap;

use super::wire::NAME_BYTES;
use crate::flow::flow_record::Kind;

/// Names of all kinds of slots, by slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    by_slot: [Vec<Box<str>>; Kind::ALL.len()],
    slots: [AHashMap<Box<str>, u32>; Kind::ALL.len()],
}

/// A name as it goes over the wire: what is too long by its hash.
fn short(name: &str) -> Box<str> {
    if name.len() <= NAME_BYTES {
        return name.into();
    }
    let hash = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    hash.as_ref().iter().fold(String::from("#"), |text, byte| format!("{text}{byte:02x}")).into()
}

impl Names {
    /// Adds the names of a kind from the first that is not there yet; slots are never given to others.
    pub fn extend<'a>(&mut self, kind: Kind, names: impl Iterator<Item = &'a str>) {
        let known = self.by_slot[kind as usize].len();
        names.skip(known).for_each(|name| self.push(kind, short(name)));
    }

    fn push(&mut self, kind: Kind, name: Box<str>) {
        let slot = self.by_slot[kind as usize].len() as u32;
        self.slots[kind as usize].insert(name.clone(), slot);
        self.by_slot[kind as usize].push(name);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_slot.iter().map(Vec::len).sum()
    }

    /// True without names.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.by_slot[kind as usize].len()
    }

    /// The name of a slot.
    pub fn name(&self, kind: Kind, slot: u32) -> Option<&str> {
        self.by_slot[kind as usize].get(slot as usize).map(|name| &**name)
    }

    /// The slot of a name.
    pub fn slot(&self, kind: Kind, name: &str) -> Option<u32> {
        self.slots[kind as usize].get(name).copied()
    }

    /// Takes the next name of a kind that another has; false: it is not the next.
    pub fn learn(&mut self, kind: Kind, slot: u32, name: &str, most: usize) -> bool {
        let is_next = slot as usize == self.count(kind) && self.count(kind) < most;
        if is_next {
            self.push(kind, name.into());
        }
        is_next
    }
}
