//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// Sums `data` as big-endian 16-bit words onto `sum`, unfolded. An odd last byte counts as the high byte.
#[inline]
pub fn add(mut sum: u64, data: &[u8]) -> u64 {
    // 32-bit words first: the carries collect in the upper half of the 64-bit sum. 2^32 words would
    // be needed to overflow it.
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    if rest.len() >= 2 {
        sum += u64::from(u16::from_be_bytes([rest[0], rest[1]]));
    }
    if rest.len() % 2 == 1 {
        sum += u64::from(rest[rest.len() - 1]) << 8;
    }
    sum
}

/// Folds a sum to 16 bits, without complementing it.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum to store for `data` whose checksum field is zero.
#[inline]
pub fn of(data: &[u8]) -> u16 {
    !fold(add(0, data))
}

/// True if `data`, checksum field included, sums to "all ones".
#[inline]
pub fn is_valid(data: &[u8]) -> bool {
    fold(add(0, data)) == 0xffff
}

/// Sum of an IPv4 pseudo header (RFC 9293 section 3.1).
#[inline]
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], protocol: u8, l4_len: usize) -> u64 {
    add(add(u64::from(protocol) + l4_len as u64, &src), &dst)
}

/// Sum of an IPv6 pseudo header (RFC 8200 section 8.1).
#[inline]
pub fn pseudo_v6(src: &[u8; 16], dst: &[u8; 16], next_header: u8, l4_len: usize) -> u64 {
    add(add(u64::from(next_header) + l4_len as u64, src), dst)
}

/// The checksum after a 16-bit word changed from `old` to `new` (RFC 1624 eqn. 3: ~(~C + ~m + m')).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Unfolded sum over a chain of segments, from `skip` bytes into the first one on, at most `len` bytes.
pub fn add_chain(head: &crate::mem::Frame, skip: usize, mut len: usize) -> u64 {
    let mut sum = 0;
    let mut odd = false;
    let mut data = &head.bytes()[skip..];
    let mut at = head;
    loop {
        let part = &data[..data.len().min(len)];
        let part_sum = fold(add(0, part));
        // A segment that begins at an odd offset has its bytes in the other half of each word.
        sum += u64::from(if odd { part_sum.swap_bytes() } else { part_sum });
        odd ^= part.len() % 2 == 1;
        len -= part.len();
        match at.peek_next() {
            Some(next) if len > 0 => {
                at = next;
                data = at.bytes();
            }
            _ => return sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The slow twin: RFC 1071's definition, word by word.
    fn twin(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        assert_eq!(fold(add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }

    #[test]
    fn the_corner_case_of_rfc_1624_section_4() {
        // C = 0xDD2F, m = 0x5555, m' = 0x3285 -> 0x0000, which RFC 1141 got wrong.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn equals_the_twin(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(of(&data), twin(&data));
        }

        #[test]
        fn an_update_equals_a_new_sum(mut data in proptest::collection::vec(any::<u8>(), 20..60), new: u16) {
            // A sum of all zeros has two representations; no IP header is all zeros.
            data[0] = 0x45;
            let before = twin(&data);
            let old = u16::from_be_bytes([data[8], data[9]]);
            data[8..10].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), twin(&data));
        }
    }
}
