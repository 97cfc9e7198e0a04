//! TCP segments that the gateway sends in others' names: the RST that refuses a segment, as if from where it was sent to
//! (RFC 9293 section 3.10.7.1), and what the SYN proxy says to both sides.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::flow::proxy::Said;
use crate::flow::tcp::{Segment, SynOptions, flags};
use crate::host::OwnBytes;
use crate::host::icmp::{ipv4_header, ipv6_header};
use crate::packet::view::{array, be16, protocol};
use crate::packet::{Family, Meta, checksum, flags as packet_flags};

const TCP_BYTES: usize = 20;

/// A header whose window, checksum and options are still to be written.
fn header(ports: (u16, u16), seq: u32, ack: u32, kind: u8, len: usize) -> [u8; TCP_BYTES] {
    let mut tcp = [0; TCP_BYTES];
    tcp[..2].copy_from_slice(&ports.0.to_be_bytes());
    tcp[2..4].copy_from_slice(&ports.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&ack.to_be_bytes());
    tcp[12] = (len as u8 / 4) << 4;
    tcp[13] = kind;
    tcp
}

/// A segment of the SYN proxy; `None`: its addresses are of two families.
pub fn segment(said: &Said) -> Option<OwnBytes> {
    let options = said.options.map(options).unwrap_or_default();
    let len = TCP_BYTES + options.len();
    let mut tcp = header((said.from.1, said.to.1), said.seq, said.ack, said.flags, len);
    tcp[14..16].copy_from_slice(&said.window.to_be_bytes());
    let mut bytes = OwnBytes::new();
    let pseudo = match (said.from.0, said.to.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            ipv4_header(&mut bytes, protocol::TCP, 0, src, dst, len);
            checksum::pseudo_v4(src, dst, protocol::TCP, len)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (src, dst) = (src.octets(), dst.octets());
            ipv6_header(&mut bytes, protocol::TCP, 0, src, dst, len);
            checksum::pseudo_v6(&src, &dst, protocol::TCP, len)
        }
        _ => return None,
    };
    let sum = !checksum::fold(checksum::add(checksum::add(pseudo, &tcp), &options));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(tcp);
    bytes.extend(options);
    Some(bytes)
}

/// Options of a SYN, each padded to a whole word.
fn options(said: SynOptions) -> ArrayVec<u8, 12> {
    let mut options = ArrayVec::new();
    if let Some(mss) = said.mss {
        let [high, low] = mss.to_be_bytes();
        options.extend([2, 4, high, low]);
    }
    if said.sack_permitted {
        options.extend([1, 1, 4, 2]);
    }
    if let Some(scale) = said.window_scale {
        options.extend([1, 3, 3, scale]);
    }
    options
}

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
    let mut tcp = header((be16(l4, 2), be16(l4, 0)), seq, ack, kind, TCP_BYTES);
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
