//! Framing: one message per line, with a longest line.

/// Bytes of a connection, given out line by line. Holds at most one longest line and what was read
/// with it.
#[derive(Debug, Default)]
pub(crate) struct LineBuffer {
    bytes: Vec<u8>,
    /// Start of the next line.
    start: usize,
    /// Up to here no newline was found: each byte is looked at once, however it arrives.
    scanned: usize,
}

/// What the buffer has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A whole line, without its newline. It has left the buffer.
    Whole(&'a [u8]),
    /// Part of a line, or nothing.
    Partial,
    /// A line longer than allowed; the connection cannot be used any more.
    TooLong,
}

impl LineBuffer {
    /// Takes in what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            // Moves at most what was read together with the last whole line.
            self.bytes.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        if self.bytes.is_empty() && self.bytes.capacity() > Self::KEEP {
            self.bytes = Vec::new(); // a big line is over: its memory goes back
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Memory kept for the next line.
    const KEEP: usize = 64 * 1024;

    /// The next line; `most` is the longest allowed.
    pub(crate) fn next(&mut self, most: usize) -> Line<'_> {
        let found = self.bytes[self.scanned..].iter().position(|byte| *byte == b'\n');
        let Some(found) = found else {
            self.scanned = self.bytes.len();
            return if self.scanned - self.start > most { Line::TooLong } else { Line::Partial };
        };
        let (start, end) = (self.start, self.scanned + found);
        if end - start > most {
            return Line::TooLong;
        }
        self.start = end + 1;
        self.scanned = end + 1;
        Line::Whole(&self.bytes[start..end])
    }

    /// Whether part of a line waits for its end.
    pub(crate) fn is_partial(&self) -> bool {
        self.start < self.bytes.len()
    }

    /// Gives up what is there and its memory.
    pub(crate) fn clear(&mut self) {
        *self = LineBuffer::default();
    }

    /// Bytes of memory in use.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow twin: all bytes first, then split.
    fn split(all: &[u8], most: usize) -> (Vec<Vec<u8>>, bool) {
        let mut lines: Vec<Vec<u8>> = all.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let rest = lines.pop().unwrap_or_default();
        match lines.iter().position(|line| line.len() > most) {
            Some(long) => (lines[..long].to_vec(), true),
            None => (lines, rest.len() > most),
        }
    }

    proptest! {
        #[test]
        fn however_bytes_arrive_the_lines_are_the_same(
            chunks in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..40), 0..20),
            most in 0usize..50,
        ) {
            let mut buffer = LineBuffer::default();
            let (mut lines, mut too_long) = (Vec::new(), false);
            'all: for chunk in &chunks {
                buffer.push(chunk);
                loop {
                    match buffer.next(most) {
                        Line::Whole(line) => lines.push(line.to_vec()),
                        Line::Partial => break,
                        Line::TooLong => { too_long = true; break 'all }
                    }
                }
            }
            let (twin_lines, twin_too_long) = split(&chunks.concat(), most);
            prop_assert_eq!(lines, twin_lines);
            prop_assert_eq!(too_long, twin_too_long);
        }
    }

    #[test]
    fn memory_of_a_big_line_goes_back() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![b'x'; 1 << 20]);
        assert_eq!(buffer.next(1 << 22), Line::Partial);
        buffer.push(b"\n");
        assert!(matches!(buffer.next(1 << 22), Line::Whole(line) if line.len() == 1 << 20));
        buffer.push(b"{}\n");
        assert!(buffer.memory_bytes() <= LineBuffer::KEEP);
        assert_eq!(buffer.next(1 << 22), Line::Whole(b"{}"));
        assert!(!buffer.is_partial());
    }
}
