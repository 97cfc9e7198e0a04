//! Which chunks the kernel holds for one socket.
//!
//! The kernel hands chunks back by address. A `Frame` may only be made of an address that we gave away and
//! that has not come back yet: this table is what makes that true, whatever the kernel writes into the
//! rings. It is also the list of what to take back when the socket is closed, since fill entries that a
//! driver has taken appear in no ring.
//!
//! One byte per chunk, not one bit: neighbouring chunks are given and taken back to back, and a byte is
//! stored without reading its neighbours first. 64 K chunks cost 64 KiB per socket.

/// What the kernel holds a chunk for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldFor {
    /// Given on the fill ring.
    Receiving = 1,
    /// Given on the TX ring.
    Sending = 2,
}

const OURS: u8 = 0;

/// The table and its sums.
#[derive(Debug)]
pub(super) struct Custody {
    chunks: Box<[u8]>,
    chunk_shift: u32,
    receiving: usize,
    sending: usize,
}

impl Custody {
    /// For a memory of `chunks` chunks of `chunk_bytes` (a power of two).
    pub fn new(chunks: usize, chunk_bytes: usize) -> Custody {
        Custody {
            chunks: vec![OURS; chunks].into_boxed_slice(),
            chunk_shift: chunk_bytes.trailing_zeros(),
            receiving: 0,
            sending: 0,
        }
    }

    #[inline(always)]
    fn index(&self, addr: u64) -> usize {
        (addr >> self.chunk_shift) as usize
    }

    /// The chunk of `addr` goes to the kernel.
    ///
    /// # Panics
    /// If `addr` is outside the memory or the kernel has the chunk already: a frame of another memory, or
    /// two handles of one chunk.
    #[inline]
    pub fn give(&mut self, addr: u64, reason: HeldFor) {
        let index = self.index(addr);
        let state = &mut self.chunks[index];
        assert!(*state == OURS, "the kernel already holds this chunk");
        *state = reason as u8;
        match reason {
            HeldFor::Receiving => self.receiving += 1,
            HeldFor::Sending => self.sending += 1,
        }
    }

    /// The kernel says the chunk of `addr` is ours again. False if it did not hold it for that reason:
    /// then nobody may touch the chunk on this address' account.
    #[inline]
    #[must_use]
    pub fn take_back(&mut self, addr: u64, reason: HeldFor) -> bool {
        let index = self.index(addr);
        match self.chunks.get_mut(index) {
            Some(state) if *state == reason as u8 => *state = OURS,
            _ => return false,
        }
        match reason {
            HeldFor::Receiving => self.receiving -= 1,
            HeldFor::Sending => self.sending -= 1,
        }
        true
    }

    /// Chunks the kernel holds.
    pub fn held(&self) -> usize {
        self.receiving + self.sending
    }

    /// The chunks that the kernel holds: twice the number, and 1 if it is for sending.
    pub fn list(&self) -> Vec<u32> {
        let held = self.chunks.iter().enumerate().filter(|(_, state)| **state != OURS);
        held.map(|(index, state)| (index as u32) << 1 | u32::from(*state == HeldFor::Sending as u8)).collect()
    }

    /// The kernel holds what [`Custody::list`] says, given to it by another process. False: there is no such chunk, or it
    /// is named twice.
    #[must_use]
    pub fn restore(&mut self, held: &[u32]) -> bool {
        held.iter().all(|entry| {
            let is_sent = entry & 1 != 0;
            let reason = if is_sent { HeldFor::Sending } else { HeldFor::Receiving };
            let addr = u64::from(entry >> 1) << self.chunk_shift;
            let is_free = self.chunks.get(self.index(addr)) == Some(&OURS);
            if is_free {
                self.give(addr, reason);
            }
            is_free
        })
    }

    /// Takes back all chunks, calling `each` with the address of each one's first byte. Only after the
    /// socket is closed.
    pub fn take_all(&mut self, mut each: impl FnMut(u64)) {
        for (index, state) in self.chunks.iter_mut().enumerate() {
            if std::mem::replace(state, OURS) != OURS {
                each((index as u64) << self.chunk_shift);
            }
        }
        (self.receiving, self.sending) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::HeldFor::{Receiving, Sending};
    use super::*;

    #[test]
    fn a_chunk_comes_back_once_and_for_its_reason() {
        let mut custody = Custody::new(4, 2048);
        custody.give(2048 + 256, Receiving);
        assert!(!custody.take_back(2048, Sending), "it was not given for sending");
        assert!(custody.take_back(2048 + 300, Receiving), "any address in the chunk counts");
        assert!(!custody.take_back(2048, Receiving), "not twice");
        assert!(!custody.take_back(0, Receiving), "never given");
        assert!(!custody.take_back(4 * 2048, Receiving), "outside");
        assert!(!custody.take_back(u64::MAX, Sending), "far outside");
        assert_eq!(custody.held(), 0);
    }

    #[test]
    fn closing_takes_back_exactly_what_is_out() {
        let mut custody = Custody::new(8, 4096);
        for chunk in [1, 3, 6] {
            custody.give(chunk * 4096, Receiving);
        }
        custody.give(2 * 4096 + 77, Sending);
        assert!(custody.take_back(3 * 4096, Receiving));
        assert_eq!(custody.held(), 3);
        let mut back = Vec::new();
        custody.take_all(|addr| back.push(addr / 4096));
        assert_eq!(back, [1, 2, 6]);
        assert_eq!(custody.held(), 0);
    }

    #[test]
    fn another_process_goes_on_with_the_list() {
        let mut custody = Custody::new(8, 2048);
        custody.give(2048, Receiving);
        custody.give(7 * 2048 + 256, Sending);
        let list = custody.list();
        assert_eq!(list, [2, 15]);
        let mut other = Custody::new(8, 2048);
        assert!(other.restore(&list));
        assert_eq!((other.held(), other.list()), (2, list));
        assert!(!other.take_back(2048, Sending) && other.take_back(2048, Receiving));
        assert!(other.take_back(7 * 2048, Sending));
        assert!(!Custody::new(8, 2048).restore(&[3, 2]), "one chunk twice");
        assert!(!Custody::new(8, 2048).restore(&[16]), "no such chunk");
        assert!(!Custody::new(8, 2048).restore(&[u32::MAX]));
    }

    #[test]
    #[should_panic(expected = "already holds")]
    fn two_handles_of_one_chunk_are_found_out() {
        let mut custody = Custody::new(4, 2048);
        custody.give(0, Receiving);
        custody.give(100, Sending);
    }
}
