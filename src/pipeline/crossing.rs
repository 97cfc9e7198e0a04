//! Crossing: packets of NAT64 sessions leave in the other family (RFC 6146, translated as RFC 7915 says).
//!
//! A session's flows both lie in IPv6's table; the IPv4 side has its addresses mapped there (`::ffff:a.b.c.d`). What
//! has such a flow takes this way instead of the last two stages: the same checks, on the packet as it came, then
//! headers of the other family in front of what stays where it is.

use crate::flow::{Address, Flow, Flows};
use crate::packet::view::{array_mut, be16, be32, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Verdict, checksum, flags};
use crate::pipeline::route::NO_NEIGHBOUR;
use crate::pipeline::{Context, adjacency, rewrite};
use crate::pipeline::{icmp_crossing, icmp_error};
use crate::tables::NO_INTERFACE;

pub(super) const IPV4_BYTES: usize = 20;
pub(super) const IPV6_BYTES: usize = 40;
pub(super) const FRAGMENT_BYTES: usize = 8;
/// What every IPv6 link carries (RFC 8200 section 5).
pub(super) const MIN_IPV6_MTU: u16 = 1280;
/// The longest IPv4 packet that may be cut on the way (RFC 7915 section 5.1): it came over a link of IPv6.
const MAX_WITHOUT_DF: usize = 1260;

const DF: u16 = 0x4000;
const MORE_V4: u16 = 0x2000;
const OFFSET_V4: u16 = 0x1fff;

/// What both kinds of header say, and what a fragment says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// TOS or traffic class.
    pub class: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Upper-layer protocol of the new header.
    pub upper: u8,
    /// Bytes behind the headers.
    pub payload: usize,
    /// Offset in units of 8 bytes, whether more come, identification.
    pub fragment: Option<(u16, bool, u32)>,
}

/// Writes an IPv4 header (RFC 7915 sections 5.1 and 5.1.1). `identification` is for what is no fragment.
pub(super) fn write_v4(
    header: &mut [u8; IPV4_BYTES],
    facts: &Facts,
    src: u128,
    dst: u128,
    identification: u16,
) {
    let len = IPV4_BYTES + facts.payload;
    let (word, identification) = match facts.fragment {
        Some((offset, more, id)) => (offset | if more { MORE_V4 } else { 0 }, id as u16),
        None if len <= MAX_WITHOUT_DF => (0, identification),
        None => (DF, 0),
    };
    header[0] = 0x45;
    header[1] = facts.class;
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].copy_from_slice(&word.to_be_bytes());
    header[8..12].copy_from_slice(&[facts.ttl, facts.upper, 0, 0]);
    header[12..16].copy_from_slice(&src.low().to_be_bytes());
    header[16..20].copy_from_slice(&dst.low().to_be_bytes());
    let sum = checksum::of(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Bytes of the IPv6 headers.
pub(super) fn v6_len(facts: &Facts) -> usize {
    IPV6_BYTES + if facts.fragment.is_some() { FRAGMENT_BYTES } else { 0 }
}

/// Writes an IPv6 header, with a fragment header behind it if it is one (RFC 7915 section 4.1).
pub(super) fn write_v6(header: &mut [u8], facts: &Facts, src: u128, dst: u128) {
    let behind = v6_len(facts) - IPV6_BYTES + facts.payload;
    header[..4].copy_from_slice(&(6 << 28 | u32::from(facts.class) << 20).to_be_bytes());
    header[4..6].copy_from_slice(&(behind as u16).to_be_bytes());
    header[6] = if facts.fragment.is_some() { protocol::FRAGMENT } else { facts.upper };
    header[7] = facts.ttl;
    u128::write_addresses(header, src, dst);
    if let Some((offset, more, id)) = facts.fragment {
        let word = offset << 3 | u16::from(more);
        header[40..42].copy_from_slice(&[facts.upper, 0]);
        header[42..44].copy_from_slice(&word.to_be_bytes());
        header[44..48].copy_from_slice(&id.to_be_bytes());
    }
}

/// The upper-layer protocol in the other family.
pub(super) fn crossed(upper: u8) -> u8 {
    match upper {
        protocol::ICMP => protocol::ICMPV6,
        protocol::ICMPV6 => protocol::ICMP,
        upper => upper,
    }
}

/// Reads the headers in front of the upper layer, which begins at `l4`. `None`: they cannot be translated.
pub(super) fn facts(l3: &[u8], l4: usize, ip_len: usize, family: Family, upper: u8) -> Option<Facts> {
    let payload = ip_len.checked_sub(l4)?;
    if family == Family::Ipv4 {
        let word = be16(l3, 6);
        let is_fragment = word & (MORE_V4 | OFFSET_V4) != 0;
        let fragment = (word & OFFSET_V4, word & MORE_V4 != 0, be16(l3, 4).into());
        let fragment = is_fragment.then_some(fragment);
        return Some(Facts { class: l3[1], ttl: l3[8], upper: crossed(upper), payload, fragment });
    }
    let mut fragment = None;
    let (mut next, mut at) = (l3[6], IPV6_BYTES);
    while at < l4 {
        let header = l3.get(at..at + 8)?;
        at += match next {
            protocol::FRAGMENT => {
                let word = be16(header, 2);
                fragment = Some((word >> 3, word & 1 != 0, be32(header, 4)));
                // What comes behind it is part of the datagram, and would have to be cut out of it.
                if at + FRAGMENT_BYTES != l4 {
                    return None;
                }
                FRAGMENT_BYTES
            }
            // RFC 7915 section 5.1: with segments left it is not where it goes.
            protocol::ROUTING if header[3] != 0 => return None,
            protocol::HOP_BY_HOP | protocol::DESTINATION_OPTIONS | protocol::ROUTING => {
                (usize::from(header[1]) + 1) * 8
            }
            _ => return None,
        };
        next = header[0];
    }
    let class = (be16(l3, 0) >> 4) as u8;
    (next == upper).then_some(Facts { class, ttl: l3[7], upper: crossed(upper), payload, fragment })
}

/// Takes a packet across: it is ready for its link header, or has to be cut, or to wait, and then is as it came.
#[cold]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, flows: &mut Flows) -> Result<Verdict, DropReason> {
    let meta = packet.meta;
    let from_v4 = meta.family == Family::Ipv4;
    let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
    if !meta.has(flags::OWN) {
        adjacency::may_leave(&meta, l3, from_v4)?;
    }
    if meta.egress == NO_INTERFACE {
        return Err(DropReason::NoRoute);
    }
    let egress = cx.tables.interface(meta.egress);
    if !egress.up {
        return Err(DropReason::PortDown);
    }
    let flow = *flows.v6.flow(meta.flow);
    if meta.has(flags::ICMP_ERROR) {
        let resolved = resolve(packet, &flow, cx)?;
        if resolved == Verdict::Forward {
            let identification = if from_v4 { 0 } else { flows.identifications.draw() };
            icmp_crossing::error(packet, &flow, identification, cx)?;
        }
        return Ok(resolved);
    }
    let l4 = usize::from(meta.l4 - meta.l3);
    let mut facts = facts(l3, l4, meta.ip_len.into(), meta.family, flow.tuple.protocol)
        .ok_or(DropReason::Nat64Unsupported)?;
    let is_cut = facts.fragment.is_some_and(|(offset, more, _)| offset != 0 || more);
    // Their checksum is over the length of the datagram, which no fragment knows (RFC 7915 sections 4.2 and 5.2).
    if is_cut && flow.tuple.protocol == flow_icmp(from_v4) {
        return Err(DropReason::Nat64Unsupported);
    }
    if v6_len(&facts) + FRAGMENT_BYTES + facts.payload > usize::from(u16::MAX) {
        return Err(DropReason::Nat64Unsupported);
    }
    let verdict = match fits(packet, &mut facts, egress.mtu_bytes, l3_word(&packet.frame, &meta)) {
        Ok(verdict) => verdict,
        Err((reason, mtu)) => {
            packet.meta.identification = Meta::TOLD_MTU | u32::from(mtu);
            return Err(reason);
        }
    };
    let resolved = resolve(packet, &flow, cx)?;
    if resolved != Verdict::Forward {
        return Ok(resolved);
    }
    let is_later = meta.has(flags::LATER_FRAGMENT);
    if !is_later {
        if flow.tuple.protocol == protocol::TCP && rewrite::is_syn(packet) {
            // On the side of IPv6 its segments have the longer headers.
            rewrite::clamp_mss(packet, cx, 60);
        }
        upper_layer(packet, &flow, &facts, is_cut)?;
    }
    flows.v6.flow_mut(meta.flow).count(meta.ip_len);
    let identification = if from_v4 { 0 } else { flows.identifications.draw() };
    headers(packet, &flow, &facts, identification)?;
    Ok(verdict)
}

fn flow_icmp(from_v4: bool) -> u8 {
    if from_v4 { protocol::ICMP } else { protocol::ICMPV6 }
}

/// Flags and offset of an IPv4 packet and its identification.
fn l3_word(frame: &crate::mem::Frame, meta: &Meta) -> (bool, u16) {
    let l3 = &frame.bytes()[usize::from(meta.l3)..];
    (meta.has(flags::DONT_FRAGMENT), be16(l3, 4))
}

/// Whether the packet fits the link it leaves by, in its new headers; if not, what its sender is to be told.
fn fits(
    packet: &Packet,
    facts: &mut Facts,
    mtu: u16,
    (keeps_whole, identification): (bool, u16),
) -> Result<Verdict, (DropReason, u16)> {
    if packet.meta.family == Family::Ipv4 {
        let len = v6_len(facts) + facts.payload;
        if keeps_whole && len > usize::from(mtu) {
            // The fragments of its sender get a fragment header each.
            let longer = v6_len(facts) - IPV4_BYTES;
            return Err((DropReason::FragmentationNeeded, mtu.saturating_sub(longer as u16)));
        }
        if keeps_whole || len <= usize::from(mtu.min(MIN_IPV6_MTU)) {
            return Ok(Verdict::Forward);
        }
        // RFC 7915 section 4: who does not look for the path's MTU gets packets that every IPv6 link carries.
        facts.fragment.get_or_insert((0, false, identification.into()));
        return Ok(Verdict::Fragment);
    }
    let len = IPV4_BYTES + facts.payload;
    if len <= usize::from(mtu) {
        return Ok(Verdict::Forward);
    }
    if facts.fragment.is_none() && len > MAX_WITHOUT_DF {
        return Err((DropReason::PacketTooBig, (mtu + IPV4_BYTES as u16).max(MIN_IPV6_MTU)));
    }
    Ok(Verdict::Fragment)
}

/// The next hop's MAC address, if it is known.
fn resolve(packet: &mut Packet, flow: &Flow<u128>, cx: &Context<'_>) -> Result<Verdict, DropReason> {
    let meta = &mut packet.meta;
    if meta.neighbour == NO_NEIGHBOUR {
        let cap = cx.tables.settings.neighbours_per_interface;
        let slot = cx.neighbours.find_or_insert(meta.egress, flow.new_dst, cap);
        meta.neighbour = slot.map_err(|_| DropReason::NeighbourTableFull)?;
    }
    let word = cx.neighbours.word(meta.neighbour);
    if !word.is_usable() {
        return Ok(Verdict::Resolve);
    }
    cx.neighbours.mark_used(meta.neighbour, cx.now);
    meta.dst_mac = word.mac();
    Ok(Verdict::Forward)
}

/// Ports or identifier, and the checksum over the new pseudo header.
fn upper_layer(
    packet: &mut Packet,
    flow: &Flow<u128>,
    facts: &Facts,
    is_cut: bool,
) -> Result<(), DropReason> {
    let (at, from_v4) = (usize::from(packet.meta.l4), packet.meta.family == Family::Ipv4);
    let is_udp = flow.tuple.protocol == protocol::UDP;
    // Without a checksum IPv6 does not take it (RFC 8200 section 8.1): it is summed up, if all of it is here
    // (RFC 6146 section 3.4).
    let is_bare = is_udp && packet.frame.bytes().get(at + 6..at + 8) == Some(&[0, 0]);
    if is_bare && from_v4 && is_cut {
        return Err(DropReason::Nat64Unsupported);
    }
    let end = packet.frame.len().min(at + facts.payload);
    let message = packet.frame.bytes_mut().get_mut(at..end).unwrap_or(&mut []);
    write_upper(message, flow.tuple.protocol, ends(flow), &Gain::of(flow, from_v4), facts.payload)?;
    if is_bare && from_v4 {
        // What lies behind the datagram in the packet is not in its checksum (RFC 768).
        let said = usize::from(be16(packet.frame.bytes(), at + 4));
        let len = if (8..=facts.payload).contains(&said) { said } else { facts.payload };
        let sum = checksum::add_chain(&packet.frame, at, len);
        let sum = sum + pseudo_v6(flow.new_src, flow.new_dst, protocol::UDP, len);
        let sum = match !checksum::fold(sum) {
            0 => 0xffff,
            sum => sum,
        };
        array_mut::<2>(packet.frame.bytes_mut(), at + 6).copy_from_slice(&sum.to_be_bytes());
    }
    Ok(())
}

/// Ports, or twice the identifier, of a packet that leaves along the flow.
fn ends(flow: &Flow<u128>) -> (u16, u16) {
    (flow.new_src_port, flow.new_dst_port)
}

/// What a checksum gains by the translation of the packet's addresses.
pub(super) struct Gain {
    /// TCP and UDP: ports included.
    ports: u16,
    /// The sum of the IPv6 addresses of either side.
    v6: u16,
    from_v4: bool,
}

impl Gain {
    pub(super) fn of(flow: &Flow<u128>, from_v4: bool) -> Gain {
        let pair = if from_v4 { (flow.new_src, flow.new_dst) } else { (flow.tuple.src, flow.tuple.dst) };
        Gain { ports: flow.l4_delta, v6: checksum::fold(pseudo_v6(pair.0, pair.1, 0, 0)), from_v4 }
    }
}

/// Unfolded sum of an IPv6 pseudo header.
pub(super) fn pseudo_v6(src: u128, dst: u128, upper: u8, len: usize) -> u64 {
    checksum::pseudo_v6(&src.to_be_bytes(), &dst.to_be_bytes(), upper, len)
}

/// Writes ports or identifier and type into the beginning of a TCP, UDP or ICMP echo message of `len` bytes, as far as it
/// is there, and mends its checksum. Other ICMP queries than echo have no word in the other family.
pub(super) fn write_upper(
    message: &mut [u8],
    upper: u8,
    ends: (u16, u16),
    gain: &Gain,
    len: usize,
) -> Result<(), DropReason> {
    if message.len() < 8 {
        return Ok(());
    }
    if matches!(upper, protocol::ICMP | protocol::ICMPV6) {
        let old = [be16(message, 0), be16(message, 4)];
        message[0] = match message[0] {
            8 => 128,
            0 => 129,
            128 => 8,
            129 => 0,
            _ => return Err(DropReason::Nat64Unsupported),
        };
        message[4..6].copy_from_slice(&ends.0.to_be_bytes());
        let new = [be16(message, 0), be16(message, 4)];
        // ICMPv6 sums a pseudo header too (RFC 4443 section 2.3), ICMP does not.
        let pseudo = checksum::fold(u64::from(gain.v6) + u64::from(protocol::ICMPV6) + len as u64);
        let pseudo = if gain.from_v4 { pseudo } else { !pseudo };
        let words = old.iter().map(|word| u64::from(!word)).chain(new.iter().map(|word| u64::from(*word)));
        let gained = checksum::fold(words.sum::<u64>() + u64::from(pseudo));
        icmp_error::add_delta(message, 2, gained);
        return Ok(());
    }
    message[..2].copy_from_slice(&ends.0.to_be_bytes());
    message[2..4].copy_from_slice(&ends.1.to_be_bytes());
    let is_udp = upper == protocol::UDP;
    let at = if is_udp { 6 } else { 16 };
    // UDP's 0 means none (RFC 768), TCP's is a sum.
    if message.len() < at + 2 || is_udp && be16(message, at) == 0 {
        return Ok(());
    }
    icmp_error::add_delta(message, at, gain.ports);
    if is_udp && be16(message, at) == 0 {
        message[at..at + 2].fill(0xff);
    }
    Ok(())
}

/// Puts the headers of the other family in front of the upper layer, which stays where it is.
fn headers(
    packet: &mut Packet,
    flow: &Flow<u128>,
    facts: &Facts,
    identification: u16,
) -> Result<(), DropReason> {
    if packet.meta.family == Family::Ipv4 {
        let len = v6_len(facts);
        let header = make_room(packet, len)?;
        write_v6(header, facts, flow.new_src, flow.new_dst);
        become_family(&mut packet.meta, Family::Ipv6, len, facts);
    } else {
        let header = make_room(packet, IPV4_BYTES)?;
        write_v4(array_mut(header, 0), facts, flow.new_src, flow.new_dst, identification);
        become_family(&mut packet.meta, Family::Ipv4, IPV4_BYTES, facts);
    }
    Ok(())
}

/// The `len` bytes in front of the upper layer.
pub(super) fn make_room(packet: &mut Packet, len: usize) -> Result<&mut [u8], DropReason> {
    let l4 = usize::from(packet.meta.l4);
    if l4 < len {
        let missing = len - l4;
        if packet.frame.headroom() < missing {
            return Err(DropReason::NoBuffer);
        }
        packet.frame.prepend(missing);
        packet.meta.l3 += missing as u16;
        packet.meta.l4 += missing as u16;
    }
    let l4 = usize::from(packet.meta.l4);
    Ok(&mut packet.frame.bytes_mut()[l4 - len..l4])
}

/// What the metadata says of the packet from now on. It has no flow any more: that is of the other family.
pub(super) fn become_family(meta: &mut Meta, family: Family, header_len: usize, facts: &Facts) {
    meta.family = family;
    meta.l3 = meta.l4 - header_len as u16;
    meta.ip_len = (header_len + facts.payload) as u16;
    meta.flow = crate::packet::Handle::NONE;
    meta.protocol = facts.upper;
    meta.identification = 0;
}

#[cfg(test)]
mod tests;
