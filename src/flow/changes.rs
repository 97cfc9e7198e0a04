//! What changed in a turn and the peer may have to know: numbers of sessions, and those that ended.
//!
//! A note costs a comparison while nobody wants it. There is room for what a turn can do; beyond that it says that
//! something was lost, and all has to be told again.

use super::flow_record::Name;

/// Notes of a turn: two for each packet of bursts from 32 queues.
const MOST: usize = 4096;

/// A session that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Which.
    pub name: Name,
    /// How long ago its last packet had come, in ticks.
    pub idle: u32,
}

/// Notes, in no order that matters.
#[derive(Debug)]
pub struct Changes<T> {
    notes: Vec<T>,
    is_wanted: bool,
    is_overrun: bool,
}

impl<T> Default for Changes<T> {
    fn default() -> Changes<T> {
        Changes { notes: Vec::new(), is_wanted: false, is_overrun: false }
    }
}

impl<T> Changes<T> {
    /// Has changes noted from now on, or not.
    #[cold]
    pub fn set_wanted(&mut self, is_wanted: bool) {
        self.notes.clear();
        self.notes.reserve(if is_wanted { MOST } else { 0 });
        (self.is_wanted, self.is_overrun) = (is_wanted, false);
    }

    /// True if somebody wants to know.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Notes one, if somebody wants to know.
    #[inline]
    pub fn note(&mut self, change: T) {
        if self.is_wanted {
            if self.notes.len() < MOST {
                self.notes.push(change);
            } else {
                self.is_overrun = true;
            }
        }
    }

    /// The latest of them.
    pub fn pop(&mut self) -> Option<T> {
        self.notes.pop()
    }

    /// True if there was no room for one since this was asked last.
    pub fn take_overrun(&mut self) -> bool {
        std::mem::take(&mut self.is_overrun)
    }
}
