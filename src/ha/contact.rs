//! Who may have the addresses when the nodes do not hear each other: a third, the witness, breaks the tie.
//!
//! A node is *cut off* when it hears neither the other node, by advertisement or by the pair's cable, nor the witness. Then it
//! takes no part in any virtual router: whoever hears the witness has the addresses, and if both do, both. A witness that had
//! fallen silent while the nodes still heard each other says nothing about what lies between them: it does not count until it
//! is heard again. So the witness may fail, and then either node, and the other serves on.

use std::time::Duration;

use crate::time::Nanos;

/// What falls silent within this time of each other has fallen silent together: longer than either takes to be noticed.
pub const TOGETHER: Duration = Duration::from_secs(5);

/// What is heard now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The other node.
    pub peer: bool,
    /// The witness.
    pub witness: bool,
}

/// What was heard when.
#[derive(Clone, Copy, Debug)]
pub struct Contact {
    peer: Option<Nanos>,
    witness: Nanos,
}

impl Contact {
    /// Nothing was heard yet; the witness is given the time from now on.
    pub fn new(now: Nanos) -> Contact {
        Contact { peer: None, witness: now }
    }

    /// True if this node is to take no part.
    pub fn is_cut_off(&mut self, heard: Heard, now: Nanos) -> bool {
        if heard.witness {
            self.witness = now;
        }
        if heard.peer {
            self.peer = Some(now);
        }
        // Both were there without the witness: it is the witness that is gone.
        let counts = self.peer.is_none_or(|peer| peer <= self.witness.plus(TOGETHER));
        !heard.peer && !heard.witness && counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Heard = Heard { peer: true, witness: true };
    const PEER: Heard = Heard { peer: true, witness: false };
    const WITNESS: Heard = Heard { peer: false, witness: true };
    const NOTHING: Heard = Heard { peer: false, witness: false };

    /// Seconds for which something is heard, and whether it is cut off at their end.
    fn goes(steps: &[(u64, Heard, bool)]) {
        let mut now = Nanos::from_secs(100);
        let mut contact = Contact::new(now);
        for (step, (seconds, heard, expected)) in steps.iter().enumerate() {
            let mut is_cut_off = false;
            for _ in 0..seconds * 10 {
                now = now.plus(Duration::from_millis(100));
                is_cut_off = contact.is_cut_off(*heard, now);
            }
            assert_eq!(is_cut_off, *expected, "step {step}: {heard:?}");
        }
    }

    #[test]
    fn who_hears_nobody_takes_no_part() {
        // It starts and hears nobody.
        goes(&[
            (1, NOTHING, true),
            (60, NOTHING, true),
            (1, WITNESS, false),
            (1, NOTHING, true),
            (1, PEER, false),
        ]);
        // Everything is cut: the one that hears the witness serves, the other does not.
        goes(&[(60, BOTH, false), (60, WITNESS, false), (60, BOTH, false)]);
        goes(&[(60, BOTH, false), (2, PEER, false), (60, NOTHING, true), (1, PEER, false)]);
        goes(&[(60, BOTH, false), (2, WITNESS, false), (60, NOTHING, true), (1, BOTH, false)]);
    }

    #[test]
    fn a_witness_that_was_gone_before_does_not_count() {
        // It is gone, then the other node: this one serves on.
        goes(&[(60, BOTH, false), (60, PEER, false), (3600, NOTHING, false)]);
        // Once it is heard again it counts again.
        goes(&[
            (60, BOTH, false),
            (60, PEER, false),
            (60, NOTHING, false),
            (1, WITNESS, false),
            (9, NOTHING, true),
        ]);
        // Of a witness that has never answered too.
        goes(&[(60, PEER, false), (60, NOTHING, false)]);
    }
}
