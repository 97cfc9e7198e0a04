//! The RST that refuses a TCP segment, as if from where the segment was sent to (RFC 9293 section 3.10.7.1).

use crate::flow::tcp::{Segment, flags};
use crate::host::OwnBytes;
use crate::host::icmp::{ipv4_header, ipv6_header};
use crate::packet::view::{array, be16, protocol};
use crate::packet::{Family, Meta, checksum, flags as packet_flags};

const TCP_BYTES: usize = 20;

/// The answer to the segment in `l3`; `None`: it is a RST itself, malformed, or part of a datagram.
pub fn reset(meta: &Meta, l3: &[u8]) -> Option<OwnBytes> {
    let at = usize::from(meta.l4 - meta.l3);
    let l4 = l3.get(at..)?;
    let segment = Segment::parse(l4, usize::from(meta.ip_len).checked_sub(at)?)?;
    if segment.flags & flags::RST != 0 || meta.has(packet_flags::FRAGMENT) {
        return None;
    }
    let (seq, ack, kind) = match segment.flags & flags::ACK {
        0 => (0, segment.end(), flags::RST | flags::ACK),
        _ => (segment.ack, 0, flags::RST),
    };
    let mut tcp = [0; TCP_BYTES];
    tcp[..2].copy_from_slice(&be16(l4, 2).to_be_bytes());
    tcp[2..4].copy_from_slice(&be16(l4, 0).to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (TCP_BYTES as u8 / 4) << 4;
    tcp[13] = kind;
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
    let sum = !checksum::fold(checksum::add(pseudo, &tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(tcp);
    Some(bytes)
}
