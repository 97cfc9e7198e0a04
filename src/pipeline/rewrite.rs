//! Rewrite: the translation of a session's packet, TTL and its checksum, then the egress interface's L2 header in
//! front of the IP packet.

use crate::flow::identification::Identifications;
use crate::flow::proxy::Proxy;
use crate::flow::{Address, Flow, FlowTable, Flows, flow_flags, tcp};
use crate::mem::Frame;
use crate::packet::view::{array_mut, be16, ethertype, protocol};
use crate::packet::{Family, Meta, Packet, Verdict, checksum, flags};
use crate::pipeline::icmp_error::{self, add_delta};
use crate::pipeline::{Context, bridge, crossing, deliver, proxy, vxlan};
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::{Interface, NO_INTERFACE};
use crate::telemetry::add;

/// Packets and bytes of one egress interface in a row, counted together.
pub(super) struct Tally {
    interface: u16,
    packets: u64,
    bytes: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { interface: NO_INTERFACE, packets: 0, bytes: 0 }
    }
}

impl Tally {
    #[inline(always)]
    fn add(&mut self, interface: u16, bytes: usize, cx: &Context<'_>) {
        if interface != self.interface {
            std::mem::take(self).finish(cx);
            self.interface = interface;
        }
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    pub(super) fn finish(self, cx: &Context<'_>) {
        if self.interface != NO_INTERFACE {
            let counters = &cx.counters.interfaces[usize::from(self.interface)];
            add(&counters.tx_packets, self.packets);
            add(&counters.tx_bytes, self.bytes);
        }
    }
}

#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, flows: &mut Flows, tally: &mut Tally) {
    if packet.meta.flow.is_some() && matches!(packet.meta.verdict, Verdict::Forward | Verdict::Fragment) {
        match packet.meta.family {
            Family::Ipv4 => along(packet, &mut flows.v4, &mut flows.identifications, cx),
            _ => along(packet, &mut flows.v6, &mut flows.identifications, cx),
        }
    }
    if packet.meta.verdict != Verdict::Forward {
        match packet.meta.verdict {
            Verdict::Fragment => number_before_cutting(packet, flows),
            Verdict::Encapsulate => return deliver::encapsulate(packet, cx, flows),
            Verdict::Cross => {
                packet.meta.verdict = crossing::step(packet, cx, flows).unwrap_or_else(Verdict::Drop);
            }
            _ => {}
        }
        if packet.meta.verdict != Verdict::Forward {
            return;
        }
    }
    let egress = packet.meta.egress;
    let interface = cx.tables.interface(egress);
    rewrite(packet, interface);
    tally.add(egress, usize::from(interface.header_len) + usize::from(packet.meta.ip_len), cx);
    if interface.overlay != NO_OVERLAY {
        vxlan::encapsulate(packet, cx);
    } else if interface.bridge != NO_BRIDGE {
        bridge::deliver(packet, cx);
    }
}

#[inline(always)]
fn rewrite(packet: &mut Packet, egress: &Interface) {
    let meta = &packet.meta;
    let l3 = usize::from(meta.l3);
    // Ethernet padding does not travel on (the worker cuts it off chains).
    if !packet.frame.is_chained() {
        packet.frame.truncate(l3 + usize::from(meta.ip_len));
    }
    if !meta.has(flags::OWN) {
        decrement_ttl(&mut packet.frame.bytes_mut()[l3..], meta.family);
    }
    let kind = if meta.family == Family::Ipv4 { ethertype::IPV4 } else { ethertype::IPV6 };
    write_link_header(&mut packet.frame, l3, egress, meta.dst_mac, kind);
}

/// Counts a session's packet and translates it.
#[inline(always)]
pub(super) fn along<A: Address>(
    packet: &mut Packet,
    table: &mut FlowTable<A>,
    identifications: &mut Identifications,
    cx: &Context<'_>,
) {
    if packet.meta.flags & (flags::ICMP_ERROR | flags::FRAGMENT) != 0 {
        unusual(packet, table, identifications, cx);
        return;
    }
    let flow = table.flow_mut(packet.meta.flow);
    flow.count(packet.meta.ip_len);
    if flow.has(flow_flags::TCP) && is_syn(packet) {
        clamp_mss(packet, cx, if packet.meta.family == Family::Ipv4 { 40 } else { 60 });
    }
    if flow.has(flow_flags::TRANSLATED) {
        let meta = &packet.meta;
        let (from, l4) = (usize::from(meta.l3), usize::from(meta.l4 - meta.l3));
        let family = meta.family;
        let is_proxied = flow.has(flow_flags::PROXIED);
        let renumbered = !A::CROSSES && !meta.has(flags::DONT_FRAGMENT);
        let l3 = &mut packet.frame.bytes_mut()[from..];
        let ip_delta = if renumbered { renumber(l3, flow, identifications) } else { flow.ip_delta };
        translate(l3, l4, family, flow, ip_delta);
        if is_proxied {
            proxy::rewrite(packet, table);
        }
    }
}

#[inline(always)]
pub(super) fn is_syn(packet: &Packet) -> bool {
    let flags = packet.frame.bytes().get(usize::from(packet.meta.l4) + 13);
    flags.is_some_and(|flags| flags & tcp::flags::SYN != 0)
}

/// Where an interface on the way asks for it, neither side is to send longer segments than its MTU carries: the MSS is
/// that without the fixed `headers` (RFC 9293 section 3.7.1).
#[cold]
pub(super) fn clamp_mss(packet: &mut Packet, cx: &Context<'_>, headers: u16) {
    let meta = &packet.meta;
    let mtu_of = |slot: u16| {
        let interface = (slot != NO_INTERFACE).then(|| cx.tables.interface(slot))?;
        interface.clamp_mss.then_some(interface.mtu_bytes)
    };
    let Some(mtu) = [meta.interface, meta.egress].into_iter().filter_map(mtu_of).min() else { return };
    let (from, end) = (usize::from(meta.l4), usize::from(meta.l3) + usize::from(meta.ip_len));
    let end = end.min(packet.frame.len());
    if let Some(segment) = packet.frame.bytes_mut().get_mut(from..end) {
        tcp::mss_clamp(segment, mtu.saturating_sub(headers));
    }
}

/// Gives a whole IPv4 datagram that somebody behind us may still cut (DF clear: RFC 6864 section 4.1 calls it
/// non-atomic) the identification that it leaves with. Returns what the header's checksum gains by that and by the
/// addresses.
///
/// The receiver tells datagrams apart by source, destination, protocol and identification. A sender numbers what it
/// sends; where its address gives way to one that others use as well, their numbers meet, so the datagram gets one of
/// ours (RFC 7857 section 10, RFC 6864 section 5.3.1). That is so in both directions: hosts share an address of a pool,
/// and the servers behind one published address share that in what they answer. Static NAT is no exception: a rule for
/// single ports may publish others at the same address. Where only the destination is rewritten (requests to a published
/// address, answers to a host behind a pool), the source stays its sender's and nobody else numbers what comes from it:
/// the datagram keeps its identification, unless it comes in fragments or we cut it, for then a number that comes twice
/// does harm at once. With DF set it says nothing, and stays as it is.
#[inline]
fn renumber<A: Address>(l3: &mut [u8], flow: &Flow<A>, identifications: &mut Identifications) -> u16 {
    if flow.new_src == flow.tuple.src {
        return flow.ip_delta;
    }
    let (old, new) = (be16(l3, 4), identifications.draw());
    l3[4..6].copy_from_slice(&new.to_be_bytes());
    let sum = u32::from(flow.ip_delta) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
fn translate<A: Address>(l3: &mut [u8], l4: usize, family: Family, flow: &Flow<A>, ip_delta: u16) {
    A::write_addresses(l3, flow.new_src, flow.new_dst);
    if family == Family::Ipv4 {
        add_delta(l3, 10, ip_delta);
    }
    // A message cut short has nothing to translate, and the receiver drops it.
    let Some(message) = l3.get_mut(l4..) else { return };
    let at = match flow.tuple.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return portless(message, flow),
    };
    if message.len() < (at + 2).max(8) {
        return;
    }
    if at == 2 {
        message[4..6].copy_from_slice(&flow.new_src_port.to_be_bytes());
    } else {
        let ports = u32::from(flow.new_src_port) << 16 | u32::from(flow.new_dst_port);
        message[..4].copy_from_slice(&ports.to_be_bytes());
    }
    if at == 6 {
        // RFC 768: 0 means that there is no checksum; a computed 0 is sent as all ones.
        if be16(message, 6) == 0 {
            return;
        }
        add_delta(message, 6, flow.l4_delta);
        if be16(message, 6) == 0 {
            message[6..8].fill(0xff);
        }
    } else {
        add_delta(message, at, flow.l4_delta);
    }
}

/// Protocols of which sessions know no ports: what changes is in the checksum of those that sum the addresses.
#[cold]
fn portless<A: Address>(message: &mut [u8], flow: &Flow<A>) {
    // RFC 3828 section 3.1, RFC 4340 section 9.1: a pseudo header in front, however much of the data is covered. SCTP
    // sums no addresses (RFC 9260 section 6.8).
    if !matches!(flow.tuple.protocol, protocol::UDP_LITE | protocol::DCCP) || message.len() < 8 {
        return;
    }
    add_delta(message, 6, flow.l4_delta);
    // UDP-Lite always has a checksum: 0 is sent as all ones.
    if flow.tuple.protocol == protocol::UDP_LITE && be16(message, 6) == 0 {
        message[6..8].fill(0xff);
    }
}

#[cold]
fn unusual<A: Address>(
    packet: &mut Packet,
    table: &mut FlowTable<A>,
    identifications: &mut Identifications,
    cx: &Context<'_>,
) {
    let handle = packet.meta.flow;
    let is_proxied = table.flow(handle).has(flow_flags::PROXIED);
    if packet.meta.has(flags::ICMP_ERROR) {
        // What the server was sent has its own numbers, and it is that which errors to the client quote.
        let shifted = is_proxied && handle.direction() == 0;
        let proxy = shifted.then(|| table.proxy(handle.session()));
        error(packet, table.flow(handle), proxy, identifications, cx);
        return;
    }
    fragment(packet, table.flow_mut(handle));
    if is_proxied && !packet.meta.has(flags::LATER_FRAGMENT) {
        proxy::rewrite(packet, table);
    }
}

/// Counts a fragment and translates it: of a later one there are only the addresses.
fn fragment<A: Address>(packet: &mut Packet, flow: &mut Flow<A>) {
    flow.count(packet.meta.ip_len);
    let meta = packet.meta;
    let (from, l4) = (usize::from(meta.l3), usize::from(meta.l4 - meta.l3));
    let l3 = &mut packet.frame.bytes_mut()[from..];
    if flow.has(flow_flags::TRANSLATED) {
        if !meta.has(flags::LATER_FRAGMENT) {
            translate(l3, l4, meta.family, flow, flow.ip_delta);
        } else {
            A::write_addresses(l3, flow.new_src, flow.new_dst);
            if meta.family == Family::Ipv4 {
                add_delta(l3, 10, flow.ip_delta);
            }
        }
    }
    if meta.identification & Meta::NEW_IDENTIFICATION != 0 {
        write_identification(l3, meta.identification as u16);
    }
}

fn write_identification(l3: &mut [u8], identification: u16) {
    let sum = checksum::update(be16(l3, 10), be16(l3, 4), identification);
    l3[4..6].copy_from_slice(&identification.to_be_bytes());
    l3[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A packet that we are about to cut, and whose destination alone we have changed: to cut it makes us the source of its
/// fragments (RFC 6864 section 5.3.1). One with another source has its identification of us already.
#[cold]
fn number_before_cutting(packet: &mut Packet, flows: &mut Flows) {
    let meta = &packet.meta;
    if !meta.flow.is_some() || meta.family != Family::Ipv4 || meta.has(flags::FRAGMENT) {
        return;
    }
    let flow = flows.v4.flow(meta.flow);
    if flow.has(flow_flags::TRANSLATED) && flow.new_src == flow.tuple.src {
        let from = usize::from(meta.l3);
        let identification = flows.identifications.draw();
        write_identification(&mut packet.frame.bytes_mut()[from..], identification);
    }
}

fn error<A: Address>(
    packet: &mut Packet,
    flow: &Flow<A>,
    proxy: Option<&Proxy>,
    identifications: &mut Identifications,
    cx: &Context<'_>,
) {
    let meta = packet.meta;
    let (from, l4) = (usize::from(meta.l3), usize::from(meta.l4 - meta.l3));
    if !packet.frame.is_chained() {
        packet.frame.truncate(from + usize::from(meta.ip_len));
    }
    // What lies behind the first buffer does not change; its place in the sum depends on where it begins.
    let first = packet.frame.len() - usize::from(meta.l4);
    let all = usize::from(meta.ip_len) - l4;
    let mut rest = 0;
    if all > first {
        let whole = checksum::fold(checksum::add_chain(&packet.frame, usize::from(meta.l4), all));
        let head = checksum::fold(checksum::add_chain(&packet.frame, usize::from(meta.l4), first));
        rest = u64::from(whole) + u64::from(!head);
    }
    if meta.family == Family::Ipv6 {
        rest += u64::from(protocol::ICMPV6) + all as u64;
    }
    let l3 = &mut packet.frame.bytes_mut()[from..];
    let from = icmp_error::seen_source(l3, flow, &cx.tables.policy);
    if meta.family == Family::Ipv4 && !meta.has(flags::DONT_FRAGMENT) && from != A::src_of(l3) {
        write_identification(l3, identifications.draw());
    }
    icmp_error::translate(l3, l4, meta.family, flow, proxy, (from, rest));
}

/// Takes one off TTL or hop limit, and mends the IPv4 checksum (RFC 1624).
#[inline(always)]
pub(super) fn decrement_ttl(l3: &mut [u8], family: Family) {
    if family == Family::Ipv4 {
        let header: &mut [u8; 20] = array_mut(l3, 0);
        header[8] -= 1;
        // The TTL is the upper byte of its word, which fell by 0x0100: so much more is the checksum, with the carry
        // from 0xfeff on, for 0xffff stands where RFC 1624 (eqn. 3) has 0x0000.
        let sum = be16(header, 10);
        let sum = sum.wrapping_add(0x0100 + u16::from(sum >= 0xfeff));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        l3[7] -= 1;
    }
}

/// Puts the L2 header of `egress` in front of the packet whose L3 header begins at `l3`.
#[inline(always)]
pub fn write_link_header(frame: &mut Frame, l3: usize, egress: &Interface, dst_mac: u64, kind: u16) {
    let len = usize::from(egress.header_len);
    if l3 > len {
        frame.trim_front(l3 - len);
    } else if l3 < len {
        frame.prepend(len - l3);
    }
    // Fixed sizes, so that the copies are a few moves and not a call.
    match len {
        14 => write::<14>(frame, egress, dst_mac, kind),
        18 => write::<18>(frame, egress, dst_mac, kind),
        _ => write::<22>(frame, egress, dst_mac, kind),
    }
}

#[inline(always)]
fn write<const LEN: usize>(frame: &mut Frame, egress: &Interface, dst_mac: u64, kind: u16) {
    let header: &mut [u8; LEN] = array_mut(frame.bytes_mut(), 0);
    header.copy_from_slice(&egress.header[..LEN]);
    header[..6].copy_from_slice(&dst_mac.to_be_bytes()[2..]);
    header[LEN - 2..].copy_from_slice(&kind.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum;

    #[test]
    fn the_checksum_stays_right_for_every_ttl_and_sum() {
        for ttl in 2..=255u8 {
            for id in 0..=0xffffu16 {
                let mut header = [0u8; 20];
                header[0] = 0x45;
                header[8] = ttl;
                header[4..6].copy_from_slice(&id.to_be_bytes());
                let sum = checksum::of(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                decrement_ttl(&mut header, Family::Ipv4);
                let mut anew = header;
                anew[10..12].fill(0);
                assert_eq!(be16(&header, 10), checksum::of(&anew), "ttl {ttl} id {id:#06x}");
            }
        }
    }
}
