//! What the sessions of a node take of its memory, and whether there is so much: asked before a table is made, because
//! afterwards the kernel answers, and its answer is to end the process.

use super::directory::Directory;
use super::{Capacity, Counted, FlowTable, nat};
use crate::mem::{self, HugeSlice};

/// Beside what is counted: ends of mappings that are trimmed, and what else is as large whatever the capacity is.
const REST_BYTES: usize = 64 << 20;

/// `flows.capacity` asks for more memory than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "flows.capacity: {sessions}: its sessions need {} MB of memory at the start, {} MB are there: at most about {} fit; \
     lower it, or lower `system.frames`, use fewer `system.workers`, or free memory",
    .need >> 20, .there >> 20, .fits
)]
pub struct TooLarge {
    /// As configured.
    pub sessions: u32,
    /// Bytes.
    pub need: usize,
    /// Bytes.
    pub there: usize,
    /// Sessions there is memory for, roughly.
    pub fits: u32,
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    /// Of the address space.
    mapped: usize,
    /// Of memory, before the first packet.
    at_once: usize,
}

impl Capacity {
    /// What each of `workers` gets of a node's `sessions`, if there is memory for all of them.
    pub fn checked(sessions: u32, workers: usize, populate: bool) -> Result<Capacity, TooLarge> {
        let capacity = Capacity::of(sessions, workers, populate);
        let need = capacity.need(workers);
        match mem::available_bytes() {
            Some(there) if need.at_once > there => Err(too_large(sessions, need.at_once, there)),
            _ if HugeSlice::<u8>::can_be(need.mapped) => Ok(capacity),
            _ => {
                let mut there = 0;
                while need.mapped - there > need.mapped / 64
                    && let more = (need.mapped - there) / 2
                {
                    if !HugeSlice::<u8>::can_be(there + more) {
                        return Err(too_large(sessions, need.mapped, there));
                    }
                    there += more;
                }
                Err(too_large(sessions, need.mapped, there))
            }
        }
    }

    /// Keys of the directory: two of a translated session, one of another; both families are seldom full.
    pub fn directory_keys(self, workers: usize) -> usize {
        workers * self.sessions as usize * 3
    }

    fn need(self, workers: usize) -> Need {
        let tables = FlowTable::<u32>::bytes_for(self.sessions) + FlowTable::<u128>::bytes_for(self.sessions);
        let nat = nat::Capacity::for_mappings(self.sessions as usize);
        let counted = 2 * Counted::bytes_for(self.sessions);
        let directory = if workers > 1 { Directory::bytes_for(self.directory_keys(workers)) } else { 0 };
        let lazy = FlowTable::<u32>::lazy_bytes_for(self.sessions)
            + FlowTable::<u128>::lazy_bytes_for(self.sessions);
        let taken = if self.populate { tables - lazy } else { 0 } + nat.filled_bytes();
        Need {
            mapped: workers * (tables + nat.bytes() + counted + REST_BYTES) + directory,
            at_once: workers * taken,
        }
    }
}

fn too_large(sessions: u32, need: usize, there: usize) -> TooLarge {
    let fits = u128::from(sessions) * there as u128 / need as u128;
    TooLarge { sessions, need, there, fits: fits as u32 / 1000 * 1000 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::hash::Key;

    #[test]
    fn a_session_takes_three_cache_lines_or_less_of_ipv4_and_six_of_ipv6() {
        const SESSIONS: u32 = 4_000_000;
        let v4 = FlowTable::<u32>::bytes_for(SESSIONS) - FlowTable::<u32>::lazy_bytes_for(SESSIONS);
        let v6 = FlowTable::<u128>::bytes_for(SESSIONS) - FlowTable::<u128>::lazy_bytes_for(SESSIONS);
        assert!(v4 <= 192 * SESSIONS as usize && v6 <= 384 * SESSIONS as usize, "{v4} and {v6}");
    }

    #[test]
    fn what_is_said_to_be_needed_is_what_the_tables_take() {
        let capacity = Capacity { sessions: 100_000, populate: false };
        let (v4, v6) = (
            FlowTable::<u32>::new(100_000, Key::default(), false),
            FlowTable::<u128>::new(100_000, Key::default(), false),
        );
        let tables = v4.expect("memory").memory_bytes() + v6.expect("memory").memory_bytes();
        let nat = nat::Capacity::for_mappings(100_000);
        let bindings = nat::Bindings::new(nat, nat::Limits::default(), Key::default()).expect("memory");
        assert_eq!(nat.bytes(), bindings.memory_bytes());
        let counted = 2 * Counted::new(100_000, Key::default()).expect("memory").memory_bytes();
        assert_eq!(
            capacity.need(1),
            Need { mapped: tables + nat.bytes() + counted + REST_BYTES, at_once: nat.filled_bytes() }
        );
        let populated = Capacity { populate: true, ..capacity };
        let lazy = FlowTable::<u32>::lazy_bytes_for(100_000) + FlowTable::<u128>::lazy_bytes_for(100_000);
        assert_eq!(populated.need(3).at_once, 3 * (tables - lazy + nat.filled_bytes()));
    }

    #[test]
    fn what_no_machine_has_is_refused_and_what_would_fit_is_said() {
        let error = Capacity::checked(1 << 30, 64, true).expect_err("terabytes");
        assert!(error.need > error.there && error.fits < error.sessions, "{error}");
        assert!(error.to_string().starts_with("flows.capacity: 1073741824: its sessions need "), "{error}");
        assert!(Capacity::checked(1000, 2, true).is_ok());
        assert_eq!(too_large(1_000_000, 4 << 30, 1 << 30).fits, 250_000);
    }
}
