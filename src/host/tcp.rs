//! TCP resets in the name of a host that a rule keeps out of reach (`action = "reject"`).

use crate::host::OwnBytes;
use crate::host::icmp::{ipv4_header, ipv6_header};
use crate::packet::view::{array, protocol};
use crate::packet::{Family, Meta, checksum, flags};

const TCP_BYTES: usize = 20;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// The reset that a closed port answers with (RFC 9293 section 3.10.7.1), from the packet's destination to its
/// source. `l3` are the packet's first bytes, untouched. None: it is a reset itself, or no whole TCP header.
pub fn reset(meta: &Meta, l3: &[u8]) -> Option<OwnBytes> {
    if meta.protocol != protocol::TCP || meta.has(flags::FRAGMENT) {
        return None;
    }
    let l4 = usize::from(meta.l4 - meta.l3);
    let segment: &[u8; TCP_BYTES] = l3.get(l4..)?.first_chunk()?;
    let (seq, ack, bits) = (*array::<4>(segment, 4), *array::<4>(segment, 8), segment[13]);
    let header_len = usize::from(segment[12] >> 4) * 4;
    let payload = (usize::from(meta.ip_len) - l4).checked_sub(header_len).filter(|_| header_len >= TCP_BYTES)?;
    if bits & RST != 0 {
        return None;
    }
    let (seq, ack, bits) = if bits & ACK != 0 {
        (ack, [0; 4], RST)
    } else {
        let counted = u32::from(bits & SYN != 0) + u32::from(bits & FIN != 0);
        let end = u32::from_be_bytes(seq).wrapping_add(payload as u32).wrapping_add(counted);
        ([0; 4], end.to_be_bytes(), RST | ACK)
    };
    let mut answer = [0; TCP_BYTES];
    answer[0..2].copy_from_slice(&segment[2..4]);
    answer[2..4].copy_from_slice(&segment[0..2]);
    answer[4..8].copy_from_slice(&seq);
    answer[8..12].copy_from_slice(&ack);
    answer[12] = (TCP_BYTES / 4 << 4) as u8;
    answer[13] = bits;
    let mut bytes = OwnBytes::new();
    let pseudo = match meta.family {
        Family::Ipv4 => {
            let (src, dst) = (*array::<4>(l3, 16), *array::<4>(l3, 12));
            ipv4_header(&mut bytes, protocol::TCP, 0, src, dst, TCP_BYTES);
            checksum::pseudo_v4(src, dst, protocol::TCP, TCP_BYTES)
        }
        Family::Ipv6 => {
            let (src, dst) = (*array::<16>(l3, 24), *array::<16>(l3, 8));
            ipv6_header(&mut bytes, protocol::TCP, 0, src, dst, TCP_BYTES);
            checksum::pseudo_v6(&src, &dst, protocol::TCP, TCP_BYTES)
        }
        Family::Other => return None,
    };
    let sum = !checksum::fold(checksum::add(pseudo, &answer));
    answer[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes.try_extend_from_slice(&answer).ok()?;
    Some(bytes)
}
