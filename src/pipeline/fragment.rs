//! IPv4 fragmentation on the way out (RFC 791 section 3.2, RFC 1812 section 5.2.6): for packets longer than
//! the egress MTU whose DF bit is clear.

use arrayvec::ArrayVec;

use crate::mem::{Frame, FramePool};
use crate::packet::view::{array, be16, ethertype};
use crate::packet::{DropReason, Family, Packet, checksum, flags};
use crate::pipeline::write_link_header;
use crate::pipeline::{crossing, rewrite};
use crate::tables::Interface;

/// Most fragments of one packet: the emit budget. 9,216 bytes over an MTU of 576 make 17.
pub const MAX_FRAGMENTS: usize = 32;

const IPV4_BYTES: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;

/// The fragments of a packet.
pub type Fragments = ArrayVec<Frame, MAX_FRAGMENTS>;

/// Cuts `packet` (kept as it is) into fragments of at most `mtu_bytes` with the L2 header of `egress`. On an error nothing is left
/// behind in `pool`'s debt.
pub fn cut(
    packet: &Packet,
    egress: &Interface,
    mtu_bytes: u16,
    pool: &mut FramePool,
) -> Result<Fragments, DropReason> {
    let mut fragments = Fragments::new();
    let result = cut_into(&mut fragments, packet, (egress, mtu_bytes), pool);
    if result.is_err() {
        fragments.drain(..).for_each(|frame| pool.put(frame));
    }
    result.map(|()| fragments)
}

fn cut_into(
    out: &mut Fragments,
    packet: &Packet,
    (egress, mtu_bytes): (&Interface, u16),
    pool: &mut FramePool,
) -> Result<(), DropReason> {
    let meta = &packet.meta;
    if meta.family == Family::Ipv6 {
        return cut_v6(out, packet, (egress, mtu_bytes), pool);
    }
    let l3 = usize::from(meta.l3);
    let header_len = usize::from(meta.l4) - l3;
    let mut first_header = [0u8; 60];
    first_header[..header_len].copy_from_slice(&packet.frame.bytes()[l3..l3 + header_len]);
    if !meta.has(flags::OWN) {
        rewrite::decrement_ttl(&mut first_header[..header_len], Family::Ipv4);
    }
    let (later_header, later_len) = header_of_later_fragments(&first_header[..header_len]);
    let old_word = be16(&first_header, 6);
    let mut reader = Reader { at: Some(&packet.frame), offset: l3 + header_len };
    let payload = usize::from(meta.ip_len) - header_len;
    // A datagram ends at 65,535 bytes. Beyond it the 13 bits of the offset would run over, and what comes
    // behind would pass for the datagram's beginning.
    if usize::from(old_word & 0x1fff) * 8 + payload > usize::from(u16::MAX) {
        return Err(DropReason::Ipv4HeaderInvalid);
    }
    let mut done = 0;
    while done < payload {
        let header = if done == 0 { &first_header[..header_len] } else { &later_header[..later_len] };
        let room = (usize::from(mtu_bytes) - header.len()) & !7;
        let len = room.min(payload - done);
        let mut ip = [0u8; 60];
        ip[..header.len()].copy_from_slice(header);
        ip[2..4].copy_from_slice(&((header.len() + len) as u16).to_be_bytes());
        let more = done + len < payload;
        // A fragment of a fragment keeps its offset, and "more" unless it was the last (RFC 791 section 3.2).
        let word = (old_word + (done / 8) as u16) | if more { MORE_FRAGMENTS } else { 0 };
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum::of(&ip[..header.len()]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = pool.take_filled(&ip[..header.len()]).ok_or(DropReason::NoBuffer)?;
        let copied = reader.copy(&mut frame, len, pool);
        write_link_header(&mut frame, 0, egress, meta.dst_mac, ethertype::IPV4);
        if let Err(error) = out.try_push(frame) {
            pool.put(error.element());
            return Err(DropReason::NoBuffer);
        }
        if !copied {
            return Err(DropReason::NoBuffer);
        }
        done += len;
    }
    Ok(())
}

/// An IPv6 packet that was IPv4 (RFC 7915 section 4.1): it has a fragment header, and is cut to what every link carries.
fn cut_v6(
    out: &mut Fragments,
    packet: &Packet,
    (egress, mtu_bytes): (&Interface, u16),
    pool: &mut FramePool,
) -> Result<(), DropReason> {
    const HEADERS: usize = crossing::IPV6_BYTES + crossing::FRAGMENT_BYTES;
    let meta = &packet.meta;
    let l3 = usize::from(meta.l3);
    let mut headers: [u8; HEADERS] = *array(packet.frame.bytes(), l3);
    if !meta.has(flags::OWN) {
        rewrite::decrement_ttl(&mut headers, Family::Ipv6);
    }
    let old_word = be16(&headers, 42);
    let mut reader = Reader { at: Some(&packet.frame), offset: l3 + HEADERS };
    let payload = usize::from(meta.ip_len) - HEADERS;
    let room = (usize::from(mtu_bytes.min(crossing::MIN_IPV6_MTU)) - HEADERS) & !7;
    if usize::from(old_word & 0xfff8) + payload > usize::from(u16::MAX) {
        return Err(DropReason::Ipv4HeaderInvalid);
    }
    let mut done = 0;
    while done < payload {
        let len = room.min(payload - done);
        let more = u16::from(done + len < payload) | old_word & 1;
        let word = ((old_word & 0xfff8) + done as u16) | more;
        headers[4..6].copy_from_slice(&((crossing::FRAGMENT_BYTES + len) as u16).to_be_bytes());
        headers[42..44].copy_from_slice(&word.to_be_bytes());
        let mut frame = pool.take_filled(&headers).ok_or(DropReason::NoBuffer)?;
        let copied = reader.copy(&mut frame, len, pool);
        write_link_header(&mut frame, 0, egress, meta.dst_mac, ethertype::IPV6);
        if let Err(error) = out.try_push(frame) {
            pool.put(error.element());
            return Err(DropReason::NoBuffer);
        }
        if !copied {
            return Err(DropReason::NoBuffer);
        }
        done += len;
    }
    Ok(())
}

/// Only options with the copied flag go into later fragments (RFC 791 section 3.1).
fn header_of_later_fragments(header: &[u8]) -> ([u8; 60], usize) {
    let mut later = [0u8; 60];
    later[..IPV4_BYTES].copy_from_slice(&header[..IPV4_BYTES]);
    let mut len = IPV4_BYTES;
    let mut options = &header[IPV4_BYTES..];
    while let [kind, rest @ ..] = options {
        let option_len = match kind {
            0 => break,
            1 => {
                options = rest;
                continue;
            }
            // The network stage has checked the lengths.
            _ => usize::from(options[1]),
        };
        if kind & 0x80 != 0 {
            later[len..len + option_len].copy_from_slice(&options[..option_len]);
            len += option_len;
        }
        options = &options[option_len..];
    }
    let padded = len.next_multiple_of(4);
    later[0] = 0x40 | (padded / 4) as u8;
    (later, padded)
}

/// Reads on through the segments of a chain.
struct Reader<'a> {
    at: Option<&'a Frame>,
    offset: usize,
}

impl Reader<'_> {
    /// Copies the next `len` bytes behind `frame`, chaining further frames; false if there are none.
    fn copy(&mut self, frame: &mut Frame, mut len: usize, pool: &mut FramePool) -> bool {
        let mut room = pool.tailroom(frame);
        let mut tail: Option<Frame> = None;
        while len > 0 {
            let Some(segment) = self.at else { return false };
            let data = &segment.bytes()[self.offset..];
            let part = &data[..data.len().min(len).min(room)];
            let target = tail.as_mut().unwrap_or(frame);
            if !pool.extend(target, part) {
                unreachable!("room was measured");
            }
            len -= part.len();
            room -= part.len();
            self.offset += part.len();
            if self.offset == segment.len() {
                self.at = segment.peek_next();
                self.offset = 0;
            }
            if room == 0 && len > 0 {
                if let Some(full) = tail.take() {
                    frame.append(full);
                }
                let Some(next) = pool.take() else { return false };
                room = pool.tailroom(&next);
                tail = Some(next);
            }
        }
        if let Some(last) = tail {
            frame.append(last);
        }
        true
    }
}
