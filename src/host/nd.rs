//! Neighbour discovery and router advertisements (RFC 4861), duplicate address detection's answers (RFC 4862).

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscRepr,
    NdiscRouterFlags, RawHardwareAddress,
};
use smoltcp::wire::{NdiscOption, NdiscOptionRepr, NdiscPrefixInformation};

use crate::host::{LinkTarget, OwnBytes};
use crate::listeners::Group;
use crate::neighbours::{NeighbourTable, mac_from_u64, mac_to_u64};
use crate::packet::view::{be16, be128, ethertype, protocol};
use crate::packet::{DropReason, checksum};
use crate::roles::Roles;
use crate::tables::policy::Policy;
use crate::tables::{Advertisements, Interface};
use crate::time::Nanos;

/// RFC 4861 section 7.1: packets of neighbour discovery have never crossed a router.
const HOP_LIMIT: u8 = 255;

const IPV6_BYTES: usize = 40;

/// All nodes on the link (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers on the link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// RFC 2464 section 2.
const ETHERNET_MTU: u16 = 1500;

/// RFC 4861 section 6.2.1: AdvValidLifetime, 30 days.
const PREFIX_VALID: Duration = Duration::from_secs(2_592_000);
/// RFC 4861 section 6.2.1: AdvPreferredLifetime, 7 days.
const PREFIX_PREFERRED: Duration = Duration::from_secs(604_800);

/// An ND message's way in: what the slow path knows of the packet.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// From the IPv6 header to the end of the IP packet.
    pub l3: &'a [u8],
    /// Offset of the ICMPv6 header in `l3`.
    pub l4: usize,
    /// Ingress interface slot.
    pub slot: u16,
    /// Ingress interface.
    pub interface: &'a Interface,
    /// Whose outside addresses are answered for as the interface's own are.
    pub policy: &'a Policy,
}

/// ICMPv6 type (RFC 4861 section 4.3).
const NEIGHBOUR_SOLICITATION: u8 = 135;

/// True if the packet asks for an outside address of NAT (RFC 4861 section 7.2.8).
pub fn asks_for_nat(arrival: &Arrival<'_>) -> bool {
    let Some(message) = arrival.l3.get(arrival.l4..arrival.l4 + 24) else { return false };
    let target = Ipv6Addr::from(be128(message, 8));
    message[0] == NEIGHBOUR_SOLICITATION && arrival.policy.answers_on_v6(arrival.interface, target)
}

/// What follows from an ND message.
#[expect(
    clippy::large_enum_variant,
    reason = "lives for a moment on the stack; no allocation on the packet path"
)]
pub enum Answer {
    /// Nothing is to be said.
    Nothing,
    /// This, at once.
    Send(LinkTarget, OwnBytes),
    /// A router advertisement on this interface, soon (RFC 4861 section 6.2.6).
    Advertise,
}

/// True if the ICMPv6 type belongs to neighbour discovery (RFC 4861 section 4).
pub fn is_nd(icmp_type: u8) -> bool {
    (133..=137).contains(&icmp_type)
}

/// True if the interface listens to this multicast or link-local destination.
pub fn listens(interface: &Interface, dst: Ipv6Addr, roles: &Roles) -> bool {
    let active = interface.info.routers.iter().filter(|router| roles.is_active(router.role));
    let mut held = active.flat_map(|router| &router.addresses);
    dst == ALL_NODES
        || dst == ALL_ROUTERS
        || interface.owns_v6(dst)
        || held.any(|addr| matches!(addr, IpAddr::V6(addr) if *addr == dst || solicited_node(*addr) == dst))
        || interface
            .info
            .v6
            .iter()
            .map(|(own, _)| own)
            .chain(&interface.info.link_local)
            .any(|own| solicited_node(*own) == dst)
}

/// Handles an ND message; the answer, if one is due.
pub fn receive(
    arrival: Arrival<'_>,
    neighbours: &NeighbourTable,
    cap: u32,
    now: Nanos,
) -> Result<Answer, DropReason> {
    const BAD: DropReason = DropReason::NdInvalid;
    let for_nat = asks_for_nat(&arrival);
    let Arrival { l3, l4, slot, interface, policy } = arrival;
    let src = Ipv6Addr::from(be128(l3, 8));
    let dst = Ipv6Addr::from(be128(l3, 24));
    // RFC 4861 sections 6.1 and 7.1.
    if l3[7] != HOP_LIMIT || !options_are_sound(&l3[l4..]) {
        return Err(BAD);
    }
    let packet = Icmpv6Packet::new_checked(&l3[l4..]).map_err(|_| BAD)?;
    if packet.msg_code() != 0 || !packet.verify_checksum(&src, &dst) {
        return Err(BAD);
    }
    match NdiscRepr::parse(&packet).map_err(|_| BAD)? {
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            let mac = lladdr.map(mac_of).transpose()?;
            // RFC 4861 section 7.1.1.
            if target_addr.is_multicast()
                || (src.is_unspecified() && (mac.is_some() || dst != solicited_node(target_addr)))
            {
                return Err(BAD);
            }
            let roles = &neighbours.roles;
            let own = match interface.mac_of_own(target_addr.into(), roles) {
                None if for_nat => interface.mac_of_public(target_addr.into(), policy, roles),
                own => own,
            };
            let Some(own) = own else { return Ok(Answer::Nothing) };
            if let Some(mac) = mac {
                learn_sender(neighbours, slot, src, mac, cap, now);
            }
            let solicited = !src.is_unspecified();
            let to = if solicited { src } else { ALL_NODES };
            let link = if solicited {
                sender_mac(neighbours, slot, src, mac)
            } else {
                Some(multicast_mac(ALL_NODES))
            };
            let flags = if solicited { NdiscNeighborFlags::SOLICITED } else { NdiscNeighborFlags::empty() };
            let repr = NdiscRepr::NeighborAdvert {
                flags: flags | NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE,
                target_addr,
                lladdr: Some(lladdr_of(own)),
            };
            Ok(link
                .map_or(Answer::Nothing, |mac| Answer::Send(target(slot, mac), emit(&repr, target_addr, to))))
        }
        NdiscRepr::NeighborAdvert { flags, target_addr, lladdr } => {
            let solicited = flags.contains(NdiscNeighborFlags::SOLICITED);
            let roles = &neighbours.roles;
            let router = interface.router_of(target_addr.into());
            let claimed = router.filter(|router| roles.is_active(router.role));
            if let (Some(router), Some(Ok(mac))) = (claimed, lladdr.map(mac_of))
                && mac_to_u64(mac) != router.mac
            {
                roles.note_conflict(router.role);
            }
            // RFC 4861 section 7.1.2.
            if target_addr.is_multicast()
                || (dst.is_multicast() && solicited)
                || claimed.is_some()
                || interface.owns_v6(target_addr)
            {
                return Err(BAD);
            }
            advert(neighbours, slot, target_addr, flags, lladdr.map(mac_of).transpose()?, now);
            Ok(Answer::Nothing)
        }
        NdiscRepr::RouterSolicit { lladdr } => {
            let mac = lladdr.map(mac_of).transpose()?;
            if src.is_unspecified() && mac.is_some() {
                return Err(BAD);
            }
            if let Some(mac) = mac {
                learn_sender(neighbours, slot, src, mac, cap, now);
            }
            // RFC 4861 section 6.2.6: the usual answer goes to all nodes, so that others are spared asking.
            Ok(if interface.info.advertisements.is_some() { Answer::Advertise } else { Answer::Nothing })
        }
        // Other routers' advertisements and redirects are for hosts.
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Ok(Answer::Nothing),
    }
}

/// Who asks for whom, if a whole packet is a valid solicitation of a neighbour. Whoever has no address yet wants to hear
/// the owner itself (RFC 4862 section 5.4.3).
pub fn question(l3: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    const IPV6_BYTES: usize = 40;
    let header = l3.first_chunk::<IPV6_BYTES>()?;
    let (src, dst) = (Ipv6Addr::from(be128(header, 8)), Ipv6Addr::from(be128(header, 24)));
    let len = usize::from(be16(header, 4));
    let message = l3.get(IPV6_BYTES..IPV6_BYTES + len)?;
    if header[6] != protocol::ICMPV6 || header[7] != HOP_LIMIT || !options_are_sound(message) {
        return None;
    }
    let packet = Icmpv6Packet::new_checked(message).ok()?;
    if packet.msg_code() != 0 || !packet.verify_checksum(&src, &dst) || src.is_unspecified() {
        return None;
    }
    match NdiscRepr::parse(&packet).ok()? {
        NdiscRepr::NeighborSolicit { target_addr, .. } if target_addr != src => Some((src, target_addr)),
        _ => None,
    }
}

/// What the station with `mac` and the address `target_addr` would answer to the one that asks.
pub fn answer_as(mac: u64, target_addr: Ipv6Addr, to: Ipv6Addr) -> OwnBytes {
    let repr = NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
        target_addr,
        lladdr: Some(RawHardwareAddress::from_bytes(&mac_from_u64(mac))),
    };
    emit(&repr, target_addr, to)
}

/// RFC 4861 section 7.2.5, the table in appendix C.
fn advert(
    neighbours: &NeighbourTable,
    slot: u16,
    target_addr: Ipv6Addr,
    flags: NdiscNeighborFlags,
    mac: Option<[u8; 6]>,
    now: Nanos,
) {
    let Some(neighbour) = neighbours.find(slot, target_addr.into()) else { return };
    let word = neighbours.word(neighbour);
    let solicited = flags.contains(NdiscNeighborFlags::SOLICITED);
    let differs = mac.is_some_and(|mac| mac_to_u64(mac) != word.mac());
    if !word.is_usable() {
        if let Some(mac) = mac {
            neighbours.learn(neighbour, mac, solicited, now);
        }
    } else if differs && !flags.contains(NdiscNeighborFlags::OVERRIDE) {
        neighbours.doubt(neighbour, now);
    } else if differs || solicited {
        let mac = mac.unwrap_or_else(|| mac_from_u64(word.mac()));
        neighbours.learn(neighbour, mac, solicited, now);
    }
}

/// RFC 4861 section 7.2.3: who asks for us becomes known, as stale.
fn learn_sender(neighbours: &NeighbourTable, slot: u16, src: Ipv6Addr, mac: [u8; 6], cap: u32, now: Nanos) {
    if src.is_unspecified() || src.is_multicast() {
        return;
    }
    if let Ok(neighbour) = neighbours.find_or_insert(slot, src.into(), cap) {
        neighbours.learn(neighbour, mac, false, now);
    }
}

fn sender_mac(neighbours: &NeighbourTable, slot: u16, src: Ipv6Addr, said: Option<[u8; 6]>) -> Option<u64> {
    said.map(mac_to_u64).or_else(|| {
        let word = neighbours.word(neighbours.find(slot, src.into())?);
        word.is_usable().then(|| word.mac())
    })
}

/// A solicitation for `target`: to its solicited-node group, or to the MAC it had (RFC 4861 section 7.2.2).
pub fn solicit(
    slot: u16,
    interface: &Interface,
    target_addr: Ipv6Addr,
    unicast: Option<u64>,
) -> Option<(LinkTarget, OwnBytes)> {
    let src = interface.source_v6(target_addr)?;
    let (dst, mac) = match unicast {
        Some(mac) => (target_addr, mac),
        None => (solicited_node(target_addr), multicast_mac(solicited_node(target_addr))),
    };
    let repr = NdiscRepr::NeighborSolicit { target_addr, lladdr: Some(own_lladdr(interface)) };
    Some((target(slot, mac), emit(&repr, src, dst)))
}

/// Tells all nodes that `addr` is ours and where: RFC 4861 section 7.2.6, after a change of the way to us.
pub fn announce(slot: u16, interface: &Interface, addr: Ipv6Addr) -> (LinkTarget, OwnBytes) {
    (target(slot, multicast_mac(ALL_NODES)), announce_as(interface.mac, addr))
}

/// The same of an address that is at `mac`.
pub fn announce_as(mac: u64, addr: Ipv6Addr) -> OwnBytes {
    let repr = NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE,
        target_addr: addr,
        lladdr: Some(lladdr_of(mac)),
    };
    emit(&repr, addr, ALL_NODES)
}

/// A router advertisement to all nodes. Where there is a virtual router of IPv6, it is the router that hosts are to use:
/// its Active speaks as it, and a Backup says nothing (RFC 9568 sections 6.4.2 and 8.2.3).
pub fn router_advert(
    slot: u16,
    interface: &Interface,
    advertisements: Advertisements,
    roles: &Roles,
) -> Option<(LinkTarget, OwnBytes)> {
    let dst = ALL_NODES;
    let (src, mac) = match interface.first_router(true) {
        None => (interface.info.link_local?, interface.mac),
        Some(router) if !roles.is_active(router.role) => return None,
        Some(router) => match router.addresses.first()? {
            IpAddr::V6(addr) => (*addr, router.mac),
            IpAddr::V4(_) => return None,
        },
    };
    // RFC 4861 section 6.2.1: AdvLinkMTU is sent where it says something.
    let mtu = (interface.mtu_bytes != ETHERNET_MTU).then_some(u32::from(interface.mtu_bytes));
    let fixed = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: Duration::from_secs(u64::from(advertisements.lifetime_s)),
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(lladdr_of(mac)),
        mtu,
        prefix_info: None,
    };
    let mut bytes = emit(&fixed, src, dst);
    // smoltcp's advertisement holds one prefix; ours names each of the interface's.
    let mut prefixes: Vec<(Ipv6Addr, u8)> = Vec::new();
    for (address, prefix_len) in &interface.info.v6 {
        let mask = u128::MAX.checked_shl(128 - u32::from(*prefix_len)).unwrap_or(0);
        let prefix = (Ipv6Addr::from(u128::from(*address) & mask), *prefix_len);
        if !prefixes.contains(&prefix) {
            prefixes.push(prefix);
        }
    }
    for (prefix, prefix_len) in prefixes {
        // RFC 4862 section 5.5.3d: hosts make addresses in /64 prefixes only.
        let autonomous =
            if prefix_len == 64 { NdiscPrefixInfoFlags::ADDRCONF } else { NdiscPrefixInfoFlags::empty() };
        let option = NdiscOptionRepr::PrefixInformation(NdiscPrefixInformation {
            prefix_len,
            flags: NdiscPrefixInfoFlags::ON_LINK | autonomous,
            valid_lifetime: PREFIX_VALID,
            preferred_lifetime: PREFIX_PREFERRED,
            prefix,
        });
        let at = bytes.len();
        if bytes.try_extend_from_slice(&[0; 32]).is_err() {
            break;
        }
        option.emit(&mut NdiscOption::new_unchecked(&mut bytes[at..]));
    }
    finish(&mut bytes, src, dst);
    Some((target(slot, multicast_mac(dst)), bytes))
}

fn target(slot: u16, mac: u64) -> LinkTarget {
    LinkTarget { interface: slot, mac, ethertype: ethertype::IPV6 }
}

fn own_lladdr(interface: &Interface) -> RawHardwareAddress {
    lladdr_of(interface.mac)
}

fn lladdr_of(mac: u64) -> RawHardwareAddress {
    EthernetAddress(mac_from_u64(mac)).into()
}

fn mac_of(lladdr: RawHardwareAddress) -> Result<[u8; 6], DropReason> {
    let mac: [u8; 6] = lladdr.as_bytes().try_into().map_err(|_| DropReason::NdInvalid)?;
    if mac[0] & 1 == 1 { Err(DropReason::NdInvalid) } else { Ok(mac) }
}

/// The IPv6 header and the message, checksum included.
fn emit(repr: &NdiscRepr<'_>, src: Ipv6Addr, dst: Ipv6Addr) -> OwnBytes {
    let mut bytes = OwnBytes::new();
    let len = IPV6_BYTES + repr.buffer_len();
    bytes.extend(std::iter::repeat_n(0, len));
    let mut packet = Icmpv6Packet::new_unchecked(&mut bytes[IPV6_BYTES..]);
    Icmpv6Repr::Ndisc(*repr).emit(&src, &dst, &mut packet, &ChecksumCapabilities::default());
    finish(&mut bytes, src, dst);
    bytes
}

/// Fills in the IPv6 header and the checksum over everything behind it.
fn finish(bytes: &mut OwnBytes, src: Ipv6Addr, dst: Ipv6Addr) {
    let payload = (bytes.len() - IPV6_BYTES) as u16;
    bytes[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    bytes[6] = protocol::ICMPV6;
    bytes[7] = HOP_LIMIT;
    bytes[8..24].copy_from_slice(&src.octets());
    bytes[24..40].copy_from_slice(&dst.octets());
    bytes[IPV6_BYTES + 2..IPV6_BYTES + 4].fill(0);
    let sum = checksum::pseudo_v6(&src.octets(), &dst.octets(), protocol::ICMPV6, usize::from(payload));
    let sum = !checksum::fold(checksum::add(sum, &bytes[IPV6_BYTES..]));
    bytes[IPV6_BYTES + 2..IPV6_BYTES + 4].copy_from_slice(&sum.to_be_bytes());
}

/// The solicited-node group of an address (RFC 4291 section 2.7.1).
pub fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

fn multicast_mac(group: Ipv6Addr) -> u64 {
    Group::V6(group.into()).mac()
}

/// RFC 4861 section 6.1: an option of length 0, or one that leaves the message, spoils the message.
fn options_are_sound(message: &[u8]) -> bool {
    let fixed = match message.first() {
        Some(133) => 8,  // router solicitation
        Some(134) => 16, // router advertisement
        Some(137) => 40, // redirect
        _ => 24,
    };
    let Some(mut options) = message.get(fixed..) else { return false };
    while !options.is_empty() {
        let len = options.get(1).map_or(0, |units| usize::from(*units) * 8);
        if len == 0 || len > options.len() {
            return false;
        }
        options = &options[len..];
    }
    true
}
