//! Letters: messages of any length, in order and each once, as long as both runs last. They go in pieces between what the
//! streams have to say, and are few: one is under way at a time, and what is missing is sent again from there on.

use std::collections::VecDeque;
use std::time::Duration;

use super::wire::{Block, LETTER_PIECE_BYTES};
use crate::time::Nanos;

/// Longest letter: the config of a node with some millions of routes.
pub const LETTER_BYTES: usize = 64 << 20;
/// Letters that may wait, and their bytes: one while another of any length is under way.
const WAITING: usize = 64;
const WAITING_BYTES: usize = 2 * LETTER_BYTES;
/// Bytes under way: less than a socket holds whose reader is a moment late.
const WINDOW_BYTES: usize = 48 * 1024;
/// How long an acknowledgment may take before all that is under way is sent again.
const PATIENCE: Duration = Duration::from_millis(100);

/// The sender's side.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Vec<u8>>,
    /// Letters that have arrived: the first that waits has the next number.
    done: u32,
    /// Bytes of the first that have arrived, and that were sent.
    acked: usize,
    sent: usize,
    /// When something was sent first that is not acknowledged yet.
    since: Nanos,
}

impl Outbox {
    /// False: it is too long, or too many wait.
    pub fn post(&mut self, letter: Vec<u8>) -> bool {
        let bytes: usize = self.waiting.iter().map(Vec::len).sum();
        let fits = !letter.is_empty()
            && letter.len() <= LETTER_BYTES
            && self.waiting.len() < WAITING
            && bytes + letter.len() <= WAITING_BYTES;
        if fits {
            self.waiting.push_back(letter);
        }
        fits
    }

    /// The next piece to send, if one may be.
    pub fn next(&mut self, now: Nanos) -> Option<Block<'_>> {
        let letter = self.waiting.front()?;
        if self.sent > self.acked && now.since(self.since) > PATIENCE {
            self.sent = self.acked;
        }
        let end = letter.len().min(self.acked + WINDOW_BYTES);
        let at = self.sent;
        if at >= end {
            return None;
        }
        if at == self.acked {
            self.since = now;
        }
        let piece = &letter[at..end.min(at + LETTER_PIECE_BYTES)];
        self.sent += piece.len();
        Some(Block::Letter { number: self.done + 1, len: letter.len() as u32, at: at as u32, piece })
    }

    /// The other has so many bytes of the letter of this number, and all before it.
    pub fn acked(&mut self, number: u32, bytes: u32, now: Nanos) {
        let Some(letter) = self.waiting.front() else { return };
        if number == self.done.wrapping_add(2) {
            self.waiting.pop_front();
            (self.done, self.acked, self.sent) = (self.done + 1, 0, 0);
        } else if number == self.done + 1 && bytes as usize > self.acked && bytes as usize <= letter.len() {
            self.acked = bytes as usize;
            self.sent = self.sent.max(self.acked);
            self.since = now;
        }
    }
}

/// The receiver's side.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Letters that were whole.
    done: u32,
    /// What is there of the next, and how long it will be.
    part: Vec<u8>,
    len: usize,
    /// One that was not taken yet: no other is received before.
    whole: Option<Vec<u8>>,
    owes: bool,
}

impl Inbox {
    /// A piece has come. `None`: it makes no sense.
    pub fn receive(&mut self, number: u32, len: u32, at: u32, piece: &[u8]) -> Option<()> {
        let (len, at) = (len as usize, at as usize);
        if piece.is_empty() || len > LETTER_BYTES || at.checked_add(piece.len())? > len {
            return None;
        }
        self.owes = true;
        if number != self.done + 1 || at != self.part.len() || self.whole.is_some() {
            return Some(()); // known, or too early: it will be sent again
        }
        if at == 0 {
            self.len = len;
        } else if self.len != len {
            return None;
        }
        self.part.extend_from_slice(piece);
        if self.part.len() == self.len {
            self.done += 1;
            self.whole = Some(std::mem::take(&mut self.part));
        }
        Some(())
    }

    /// What to acknowledge.
    pub fn ack(&mut self) -> Option<Block<'static>> {
        let bytes = self.part.len() as u32;
        std::mem::take(&mut self.owes).then_some(Block::LetterAck { number: self.done + 1, bytes })
    }

    /// The next whole letter.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.whole.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What goes over the link, once it has left the outbox.
    enum Piece {
        Letter(u32, u32, u32, Vec<u8>),
        Ack(u32, u32),
    }

    fn own(block: &Block<'_>) -> Piece {
        match *block {
            Block::Letter { number, len, at, piece } => Piece::Letter(number, len, at, piece.to_vec()),
            Block::LetterAck { number, bytes } => Piece::Ack(number, bytes),
            _ => unreachable!("no other block is of letters"),
        }
    }

    proptest! {
        /// Over a link that loses and reorders, every letter arrives once and in order.
        #[test]
        fn letters_arrive(
            lengths in prop::collection::vec(1_usize..200_000, 1..5),
            luck in prop::collection::vec(0_u8..10, 1..200),
        ) {
            let letters: Vec<Vec<u8>> =
                (0..).zip(&lengths).map(|(at, len)| (0..*len).map(|byte| (byte * 7 + at) as u8).collect()).collect();
            let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
            letters.iter().for_each(|letter| assert!(outbox.post(letter.clone())));
            // Then the link is well: a loss that comes round might always meet the same piece.
            let mut luck = luck.into_iter().cycle().take(5000);
            let (mut now, mut late, mut arrived) = (Nanos::from_secs(1), Vec::new(), Vec::new());
            for _ in 0..20_000 {
                now = now.plus(Duration::from_millis(5));
                let mut link = std::mem::take(&mut late);
                while let Some(piece) = outbox.next(now) {
                    link.push(own(&piece));
                }
                link.extend(inbox.ack().map(|ack| own(&ack)));
                for piece in link {
                    match luck.next().unwrap_or(9) {
                        0 => {}
                        1 => late.insert(0, piece),
                        _ => match piece {
                            Piece::Letter(number, len, at, piece) => {
                                prop_assert!(inbox.receive(number, len, at, &piece).is_some());
                                arrived.extend(inbox.take());
                            }
                            Piece::Ack(number, bytes) => outbox.acked(number, bytes, now),
                        },
                    }
                }
                if outbox.waiting.is_empty() {
                    break;
                }
            }
            prop_assert!(arrived == letters, "{} of {} letters", arrived.len(), letters.len());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_nobody_fills_the_memory() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.receive(1, u32::MAX, 0, &[1]), None);
        assert_eq!(inbox.receive(1, 2, 1, &[1, 2]), None);
        assert_eq!(inbox.receive(1, 2, u32::MAX, &[1, 2]), None);
        assert_eq!(inbox.receive(1, 2, 0, &[]), None);
        assert_eq!(inbox.receive(1, 2, 0, &[1]), Some(()));
        assert_eq!(inbox.receive(1, 3, 1, &[1]), None, "another length");
        assert_eq!(inbox.receive(1, 2, 1, &[2]), Some(()));
        assert_eq!(inbox.receive(2, 1, 0, &[3]), Some(()), "the one before was not taken: it is sent again");
        assert_eq!(inbox.take(), Some(vec![1, 2]));
        assert_eq!(inbox.take(), None);
        let mut outbox = Outbox::default();
        assert!(!outbox.post(Vec::new()));
        (0..WAITING).for_each(|_| assert!(outbox.post(vec![1])));
        assert!(!outbox.post(vec![1]));
        let mut outbox = Outbox::default();
        (0..2).for_each(|_| assert!(outbox.post(vec![1; LETTER_BYTES])));
        assert!(!outbox.post(vec![1]));
    }
}
