//! Stable slots: small numbers by name that outlive generations, so that dense arrays (counters
//! included) keep their meaning across changes.

use ahash::AHashMap;

/// Gives each name a slot for ever. A deleted name keeps its slot as a tombstone: when it comes back
/// it finds its counters again, and no flow that still carries the number is mistaken for another's.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    by_name: AHashMap<String, u32>,
    names: Vec<String>,
}

/// More names than slots were used since the process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {limit} names were used since the start; restart to reuse slots of deleted ones")]
pub struct NoSlot {
    /// How many there are.
    pub limit: usize,
}

impl Slots {
    /// The slot of `name`, new if it has none; below `limit`, which is at most 65,535.
    pub fn slot(&mut self, name: &str, limit: usize) -> Result<u16, NoSlot> {
        self.wide_slot(name, limit.min(usize::from(u16::MAX))).map(|slot| slot as u16)
    }

    /// As [`Slots::slot`], for what there may be more of.
    pub fn wide_slot(&mut self, name: &str, limit: usize) -> Result<u32, NoSlot> {
        if let Some(slot) = self.by_name.get(name) {
            return Ok(*slot);
        }
        if self.names.len() >= limit {
            return Err(NoSlot { limit });
        }
        let slot = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.by_name.insert(name.to_owned(), slot);
        Ok(slot)
    }

    /// The slot of `name`, if it ever had one.
    pub fn get(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).and_then(|slot| u16::try_from(*slot).ok())
    }

    /// As [`Slots::get`], for what there may be more of.
    pub fn wide(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// All names, by slot.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Name of `slot`.
    pub fn name(&self, slot: u16) -> &str {
        &self.names[usize::from(slot)]
    }

    /// Slots in use, tombstones included.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// True if no name was ever used.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
