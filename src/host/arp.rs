//! ARP (RFC 826, RFC 5227): answers for our addresses, learns from answers and from those who ask for us.

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use crate::host::{LinkTarget, OwnBytes};
use crate::neighbours::{NeighbourTable, mac_from_u64, mac_to_u64, v4_key};
use crate::packet::DropReason;
use crate::packet::view::ethertype;
use crate::tables::policy::Policy;
use crate::tables::{Interface, same_prefix_v4};
use crate::time::Nanos;

/// Ethernet broadcast.
const BROADCAST: u64 = 0xffff_ffff_ffff;

/// Handles an ARP packet that came in on the interface in `slot`; the answer, if one is due. Outside addresses of
/// NAT in a network of the interface are answered for as its own are (RFC 1027), addresses of virtual routers by the
/// Active with the virtual MAC address (RFC 9568 section 8.1.2).
pub fn receive(
    l3: &[u8],
    slot: u16,
    interface: &Interface,
    policy: &Policy,
    neighbours: &NeighbourTable,
    cap: u32,
    now: Nanos,
) -> Result<Option<(LinkTarget, OwnBytes)>, DropReason> {
    let packet = ArpPacket::new_checked(l3).map_err(|_| DropReason::ArpInvalid)?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr: sender,
        target_hardware_addr: _,
        target_protocol_addr: target,
    } = ArpRepr::parse(&packet).map_err(|_| DropReason::ArpInvalid)?
    else {
        return Err(DropReason::ArpInvalid);
    };
    if !matches!(operation, ArpOperation::Request | ArpOperation::Reply) {
        return Err(DropReason::ArpInvalid);
    }
    let roles = &neighbours.roles;
    let claimed = interface.router_of(sender.into()).filter(|router| roles.is_active(router.role));
    if let Some(router) = claimed.filter(|router| router.mac != mac_to_u64(source_hardware_addr.0)) {
        roles.note_conflict(router.role);
    }
    if !source_hardware_addr.is_unicast() || claimed.is_some() || interface.owns_v4(sender) {
        // Somebody claims one of our addresses, or a group address as his own.
        return Err(DropReason::ArpInvalid);
    }
    let answered = match interface.mac_of_own(target.into(), roles) {
        None if policy.answers_on_v4(interface, target) => {
            interface.mac_of_public(target.into(), policy, roles)
        }
        own => own,
    };
    let for_us = answered.is_some();
    // RFC 5227 section 2.1.1: a probe has no sender address; it is answered and not learned.
    if !sender.is_unspecified() {
        let on_link = interface.info.v4.iter().any(|(own, len)| same_prefix_v4(*own, sender, *len));
        if !on_link {
            return Err(DropReason::ArpInvalid);
        }
        let mac = source_hardware_addr.0;
        let confirmed = operation == ArpOperation::Reply && for_us;
        if let Some(neighbour) = neighbours.find(slot, v4_key(sender.into())) {
            neighbours.learn(neighbour, mac, confirmed, now);
        } else if for_us && operation == ArpOperation::Request {
            // RFC 826: who asks for us is about to talk to us. Others, gratuitous ones too, only update.
            if let Ok(neighbour) = neighbours.find_or_insert(slot, v4_key(sender.into()), cap) {
                neighbours.learn(neighbour, mac, false, now);
            }
        }
    }
    let Some(mac) = answered.filter(|_| operation == ArpOperation::Request) else { return Ok(None) };
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac_from_u64(mac)),
        source_protocol_addr: target,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: sender,
    };
    let link =
        LinkTarget { interface: slot, mac: mac_to_u64(source_hardware_addr.0), ethertype: ethertype::ARP };
    Ok(Some((link, emit(&reply))))
}

/// Who asks for whom, if that is what the packet does: not for himself (RFC 5227 section 3), and not whether somebody has
/// the address, which its owner alone may say (section 2.1.1).
pub fn question(l3: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let packet = ArpPacket::new_checked(l3).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_protocol_addr: sender,
            target_protocol_addr: target,
            ..
        } if sender != target && !sender.is_unspecified() => Some((sender, target)),
        _ => None,
    }
}

/// What the station with `mac` and the address `target` would answer to the one that asks.
pub fn answer_as(mac: u64, target: Ipv4Addr, (asker, sender): (u64, Ipv4Addr)) -> OwnBytes {
    emit(&ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac_from_u64(mac)),
        source_protocol_addr: target,
        target_hardware_addr: EthernetAddress(mac_from_u64(asker)),
        target_protocol_addr: sender,
    })
}

/// Asks, by one member of a bridge, for the address of a station, in its name (RFC 903): nobody learns an address of it.
pub fn reverse_request(slot: u16, mac: u64) -> (LinkTarget, OwnBytes) {
    let station = EthernetAddress(mac_from_u64(mac));
    let repr = ArpRepr::EthernetIpv4 {
        // RFC 903: request reverse.
        operation: ArpOperation::Unknown(3),
        source_hardware_addr: station,
        source_protocol_addr: Ipv4Addr::UNSPECIFIED,
        target_hardware_addr: station,
        target_protocol_addr: Ipv4Addr::UNSPECIFIED,
    };
    (LinkTarget { interface: slot, mac: BROADCAST, ethertype: ethertype::RARP }, emit(&repr))
}

/// A request for `target`: broadcast, or to the MAC it had when it was last heard of (RFC 1122 section 2.3.2.1).
pub fn request(
    slot: u16,
    interface: &Interface,
    target: Ipv4Addr,
    unicast: Option<u64>,
) -> Option<(LinkTarget, OwnBytes)> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac_from_u64(interface.mac)),
        source_protocol_addr: interface.source_v4(target)?,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mac = unicast.unwrap_or(BROADCAST);
    Some((LinkTarget { interface: slot, mac, ethertype: ethertype::ARP }, emit(&repr)))
}

/// Tells the link that `addr` is ours and where (RFC 5227 section 3): a request for it from itself.
pub fn announce(slot: u16, interface: &Interface, addr: Ipv4Addr) -> (LinkTarget, OwnBytes) {
    (
        LinkTarget { interface: slot, mac: BROADCAST, ethertype: ethertype::ARP },
        announce_as(interface.mac, addr),
    )
}

/// The same of an address that is at `mac`.
pub fn announce_as(mac: u64, addr: Ipv4Addr) -> OwnBytes {
    emit(&ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac_from_u64(mac)),
        source_protocol_addr: addr,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: addr,
    })
}

fn emit(repr: &ArpRepr) -> OwnBytes {
    let mut bytes = OwnBytes::new();
    let _ = bytes.try_extend_from_slice(&[0; MAX_ARP_BYTES][..repr.buffer_len()]);
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
    bytes
}

/// An Ethernet/IPv4 ARP packet has 28 bytes.
const MAX_ARP_BYTES: usize = 28;
