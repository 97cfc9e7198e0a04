//! Link: Ethernet II, 802.1Q and QinQ; port and tags give the interface, the destination MAC says
//! whether the frame is for us.

use crate::packet::view::{array, be16, ethertype};
use crate::packet::{DropReason, Family, Ingress, Packet, Pass, Tags, Verdict, flags};
use crate::pipeline::{Context, bridge};
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::policy::NO_ZONE;
use crate::tables::virtual_router::may_be_virtual;
use crate::tables::{NO_INTERFACE, PortTable, SourceCheck};
use crate::telemetry::add;

/// Ethernet header without tags.
const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
/// The VLAN ID's bits of a tag; priority tags have 0 there and belong to the untagged interface.
const VID_MASK: u16 = 0xfff;

/// Packets and bytes of one interface in a row, counted together.
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
    pub(super) fn add(&mut self, interface: u16, bytes: usize, cx: &Context<'_>) {
        if interface != self.interface {
            self.count(cx);
            *self = Tally { interface, packets: 0, bytes: 0 };
        }
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    fn count(&self, cx: &Context<'_>) {
        if self.interface != NO_INTERFACE && cx.pass == Pass::First {
            let counters = &cx.counters.interfaces[usize::from(self.interface)];
            add(&counters.rx_packets, self.packets);
            add(&counters.rx_bytes, self.bytes);
        }
    }

    pub(super) fn finish(self, cx: &Context<'_>) {
        self.count(cx);
    }
}

#[inline(always)]
pub(super) fn step(packet: &mut Packet, cx: &Context<'_>, tally: &mut Tally) {
    match cx.ingress {
        Ingress::Port(port) => {
            let bytes = packet.frame.total_len();
            let is_bridged = receive(packet, &cx.tables.ports[usize::from(port)], cx);
            tally.add(packet.meta.interface, bytes, cx);
            if is_bridged {
                bridge::arrive(packet, None, cx);
            }
        }
        Ingress::Own { vrf } => own(packet, vrf),
    }
}

/// True if it came in by a member of a bridge.
#[inline(always)]
fn receive(packet: &mut Packet, port: &PortTable, cx: &Context<'_>) -> bool {
    let meta = &mut packet.meta;
    meta.interface = NO_INTERFACE;
    let bytes = packet.frame.bytes();
    let Some(head) = bytes.first_chunk::<ETHERNET_BYTES>() else {
        meta.verdict = Verdict::Drop(DropReason::Truncated);
        return false;
    };
    let mut kind = u16::from_be_bytes([head[12], head[13]]);
    let mut l3 = ETHERNET_BYTES;
    let slot = if kind == ethertype::VLAN || kind == ethertype::QINQ {
        let mut vids = [0u16; 2];
        let mut tags = 0;
        while (kind == ethertype::VLAN || kind == ethertype::QINQ) && tags < 2 {
            if bytes.len() < l3 + TAG_BYTES {
                meta.verdict = Verdict::Drop(DropReason::Truncated);
                return false;
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
        return false;
    }
    let interface = cx.tables.interface(slot);
    meta.interface = slot;
    meta.vrf = interface.vrf;
    meta.l3 = l3 as u16;
    if interface.bridge != NO_BRIDGE {
        return true;
    }
    if interface.zone != NO_ZONE {
        meta.flags |= flags::STATEFUL;
    }
    if interface.source_check != SourceCheck::Off {
        meta.flags |= flags::CHECK_SOURCE;
    }
    // One load of eight bytes; the destination MAC is the upper six.
    let mac = u64::from_be_bytes(*array(head, 0)) >> 16;
    if mac != interface.mac {
        // The group bit is the lowest of the first byte (IEEE 802).
        if head[0] & 1 != 0 {
            meta.flags |= flags::LINK_GROUP;
        } else if !may_be_virtual(mac) || !interface.has_virtual_mac(mac, &cx.neighbours.roles) {
            meta.verdict = Verdict::Drop(DropReason::NotForUs);
            return false;
        }
    }
    match kind {
        ethertype::IPV4 => meta.family = Family::Ipv4,
        ethertype::IPV6 => meta.family = Family::Ipv6,
        ethertype::ARP => meta.verdict = Verdict::Punt,
        _ => meta.verdict = Verdict::Drop(DropReason::UnknownEthertype),
    }
    false
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
