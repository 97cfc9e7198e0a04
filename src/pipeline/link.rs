//! Link: Ethernet II, 802.1Q and QinQ; port and tags give the interface, the destination MAC says
//! whether the frame is for us.

use crate::packet::view::{be16, ethertype};
use crate::packet::{Burst, DropReason, Family, Ingress, Packet, Tags, Verdict, flags};
use crate::pipeline::Context;
use crate::tables::{NO_INTERFACE, PortTable, Tables};
use crate::telemetry::add;

/// Ethernet header without tags.
const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
/// The VLAN ID's bits of a tag; priority tags have 0 there and belong to the untagged interface.
const VID_MASK: u16 = 0xfff;

pub(super) fn run(burst: &mut Burst, cx: &Context<'_>) {
    match cx.ingress {
        Ingress::Port(port) => {
            let port = &cx.tables.ports[usize::from(port)];
            let mut last = NO_INTERFACE;
            let (mut packets, mut bytes) = (0u64, 0u64);
            for packet in burst.iter_mut() {
                let len = packet.frame.len() as u64;
                receive(packet, port, cx.tables);
                // Runs of one interface are counted together.
                if packet.meta.interface != last {
                    count(cx, last, packets, bytes);
                    (last, packets, bytes) = (packet.meta.interface, 0, 0);
                }
                packets += 1;
                bytes += len;
            }
            count(cx, last, packets, bytes);
        }
        Ingress::Own { vrf } => burst.iter_mut().for_each(|packet| own(packet, vrf)),
    }
}

fn count(cx: &Context<'_>, interface: u16, packets: u64, bytes: u64) {
    if interface != NO_INTERFACE && packets > 0 && !cx.restarted {
        let counters = &cx.counters.interfaces[usize::from(interface)];
        add(&counters.rx_packets, packets);
        add(&counters.rx_bytes, bytes);
    }
}

#[inline]
fn receive(packet: &mut Packet, port: &PortTable, tables: &Tables) {
    let meta = &mut packet.meta;
    meta.interface = NO_INTERFACE;
    let bytes = packet.frame.bytes();
    let Some(head) = bytes.first_chunk::<ETHERNET_BYTES>() else {
        meta.verdict = Verdict::Drop(DropReason::Truncated);
        return;
    };
    let mut kind = u16::from_be_bytes([head[12], head[13]]);
    let mut l3 = ETHERNET_BYTES;
    let slot = if kind == ethertype::VLAN || kind == ethertype::QINQ {
        let mut vids = [0u16; 2];
        let mut tags = 0;
        while (kind == ethertype::VLAN || kind == ethertype::QINQ) && tags < 2 {
            if bytes.len() < l3 + TAG_BYTES {
                meta.verdict = Verdict::Drop(DropReason::Truncated);
                return;
            }
            vids[tags] = be16(bytes, l3) & VID_MASK;
            kind = be16(bytes, l3 + 2);
            l3 += TAG_BYTES;
            tags += 1;
        }
        port.find(Tags { outer: vids[0], inner: vids[1] })
    } else {
        port.untagged
    };
    if slot == NO_INTERFACE {
        meta.verdict = Verdict::Drop(DropReason::UnknownVlan);
        return;
    }
    let interface = tables.interface(slot);
    meta.interface = slot;
    meta.vrf = interface.vrf;
    meta.l3 = l3 as u16;
    let mac = u64::from_be_bytes([0, 0, head[0], head[1], head[2], head[3], head[4], head[5]]);
    if mac != interface.mac {
        // The group bit is the lowest of the first byte (IEEE 802).
        if head[0] & 1 == 0 {
            meta.verdict = Verdict::Drop(DropReason::NotForUs);
            return;
        }
        meta.flags |= flags::LINK_GROUP;
    }
    match kind {
        ethertype::IPV4 => meta.family = Family::Ipv4,
        ethertype::IPV6 => meta.family = Family::Ipv6,
        ethertype::ARP => meta.verdict = Verdict::Punt,
        _ => meta.verdict = Verdict::Drop(DropReason::UnknownEthertype),
    }
}

fn own(packet: &mut Packet, vrf: u16) {
    let meta = &mut packet.meta;
    meta.interface = NO_INTERFACE;
    meta.vrf = vrf;
    meta.l3 = ETHERNET_BYTES as u16;
    meta.flags = flags::OWN;
    meta.family = match be16(packet.frame.bytes(), 12) {
        ethertype::IPV4 => Family::Ipv4,
        ethertype::IPV6 => Family::Ipv6,
        other => unreachable!("the gateway makes IP packets only, not {other:#06x}"),
    };
}
