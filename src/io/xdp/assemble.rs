//! Descriptors into packets: a jumbo frame arrives as several descriptors, perhaps over several polls.

use crate::mem::{Frame, FramePool};

/// Segments of the longest chain: the kernel's MAX_SKB_FRAGS, which bounds a packet in copy mode.
pub(super) const MAX_SEGMENTS: usize = 17;

/// The packet whose end has not arrived yet.
#[derive(Debug)]
enum Partial {
    /// The next descriptor begins a packet.
    None,
    /// The head of a chain and its number of segments.
    Chain(Frame, usize),
    /// The rest of this packet is thrown away: its beginning was broken.
    Skipping,
}

/// Puts the segments of one queue together.
#[derive(Debug)]
pub(super) struct Assembler {
    partial: Partial,
    broken: u64,
}

impl Assembler {
    pub fn new() -> Assembler {
        Assembler { partial: Partial::None, broken: 0 }
    }

    /// Packets lost because a segment was missing or too many followed.
    pub fn broken(&self) -> u64 {
        self.broken
    }

    /// Frames of the packet that is not complete yet.
    pub fn held(&self) -> usize {
        match &self.partial {
            Partial::Chain(_, segments) => *segments,
            Partial::None | Partial::Skipping => 0,
        }
    }

    /// Adds a segment; `continues`: the packet goes on after it. Returns the packet if it is complete.
    #[inline]
    pub fn add(&mut self, segment: Frame, continues: bool, pool: &mut FramePool) -> Option<Frame> {
        match std::mem::replace(&mut self.partial, Partial::None) {
            Partial::None if !continues => Some(segment),
            Partial::None => {
                self.partial = Partial::Chain(segment, 1);
                None
            }
            Partial::Chain(mut head, segments) if segments < MAX_SEGMENTS => {
                head.append(segment);
                if !continues {
                    return Some(head);
                }
                self.partial = Partial::Chain(head, segments + 1);
                None
            }
            Partial::Chain(head, _) => {
                self.broken += 1;
                pool.put(head);
                self.skip(segment, continues, pool)
            }
            Partial::Skipping => self.skip(segment, continues, pool),
        }
    }

    #[cold]
    fn skip(&mut self, segment: Frame, continues: bool, pool: &mut FramePool) -> Option<Frame> {
        pool.put(segment);
        if continues {
            self.partial = Partial::Skipping;
        }
        None
    }

    /// A descriptor came without a usable frame: whatever packet it belonged to is lost.
    #[cold]
    pub fn add_missing(&mut self, continues: bool, pool: &mut FramePool) {
        match std::mem::replace(&mut self.partial, Partial::None) {
            Partial::Chain(head, _) => {
                self.broken += 1;
                pool.put(head);
            }
            Partial::None if continues => self.broken += 1,
            Partial::None | Partial::Skipping => {}
        }
        if continues {
            self.partial = Partial::Skipping;
        }
    }

    /// Gives up the packet that is not complete, if there is one: what comes of it is thrown away. True if something will.
    pub fn give_up(&mut self, pool: &mut FramePool) -> bool {
        match std::mem::replace(&mut self.partial, Partial::Skipping) {
            Partial::Chain(head, _) => {
                self.broken += 1;
                pool.put(head);
            }
            Partial::None => self.partial = Partial::None,
            Partial::Skipping => {}
        }
        matches!(self.partial, Partial::Skipping)
    }

    /// The next descriptor belongs to a packet that somebody else has begun and given up.
    pub fn skip_first(&mut self) {
        self.partial = Partial::Skipping;
    }

    /// Gives up the packet that is not complete.
    pub fn close(self, pool: &mut FramePool) {
        if let Partial::Chain(head, _) = self.partial {
            pool.put(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{ChunkSize, PacketMemory};
    use std::sync::Arc;

    /// Plays descriptors, each a letter: a segment that continues (`c`), one that ends a packet (`e`), a
    /// descriptor without a frame that continues (`C`) or ends (`E`), a hand-over to another process (`|`). Returns the segments of each packet that
    /// came out, the number of broken ones and of frames still held; afterwards nothing may be leaked.
    fn play(descriptors: &str) -> (Vec<usize>, u64, usize) {
        let (memory, mut pools): (Arc<PacketMemory>, _) =
            PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        let pool = &mut pools[0];
        let mut assembler = Assembler::new();
        let (mut packets, mut given_up) = (Vec::new(), 0);
        for descriptor in descriptors.chars() {
            let continues = descriptor.eq_ignore_ascii_case(&'c');
            if descriptor.is_uppercase() {
                assembler.add_missing(continues, pool);
                continue;
            }
            if descriptor == '|' {
                // Another goes on behind this.
                let skips = assembler.give_up(pool);
                given_up += assembler.broken();
                assembler = Assembler::new();
                if skips {
                    assembler.skip_first();
                }
                continue;
            }
            let segment = pool.take_filled(b"segment").expect("a frame");
            if let Some(packet) = assembler.add(segment, continues, pool) {
                packets.push(packet.total_len() / b"segment".len());
                pool.put(packet);
            }
        }
        let (broken, held) = (given_up + assembler.broken(), assembler.held());
        assembler.close(pool);
        drop(pools);
        assert_eq!(memory.leaked(), 0, "{descriptors}");
        (packets, broken, held)
    }

    #[test]
    fn packets_of_one_and_many_segments() {
        assert_eq!(play("eecceece"), (vec![1, 1, 3, 1, 2], 0, 0));
    }

    #[test]
    fn who_takes_over_begins_with_a_whole_packet() {
        assert_eq!(play("e|ece"), (vec![1, 1, 2], 0, 0));
        assert_eq!(play("ecc|ceece"), (vec![1, 1, 2], 1, 0));
        assert_eq!(play("ec|c|cee"), (vec![1, 1], 1, 0), "twice, within one packet");
    }

    #[test]
    fn half_a_chain_is_kept() {
        assert_eq!(play("ecc"), (vec![1], 0, 2));
    }

    #[test]
    fn seventeen_segments_are_the_limit() {
        let chain = |segments: usize| "c".repeat(segments - 1) + "e";
        assert_eq!(play(&chain(17)), (vec![17], 0, 0));
        assert_eq!(play(&(chain(18) + "e")), (vec![1], 1, 0));
        assert_eq!(play(&(chain(30) + "e")), (vec![1], 1, 0));
    }

    #[test]
    fn a_missing_segment_breaks_its_packet_only() {
        assert_eq!(play("ccCcee"), (vec![1], 1, 0));
        assert_eq!(play("ccEe"), (vec![1], 1, 0));
        assert_eq!(play("Cccee"), (vec![1], 1, 0));
        assert_eq!(play("Ee"), (vec![1], 0, 0), "a single frame that is lost is no chain");
    }
}
