//! From a packet in words to a frame as it would come in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpDscp, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader, checksum};

use super::names::View;
use crate::config::{Mac, Neighbour, PacketText};
use crate::neighbours::{addr_key, addr_of, mac_from_u64, mac_to_u64};
use crate::packet::view::{ethertype, protocol};
use crate::pipeline::route;
use crate::tables::bridge::{Bridge, Member, NO_BRIDGE};
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::{NO_INTERFACE, NO_PORT};

/// Who sends it.
const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Who a frame is for of whom only the member is known.
const STATION: u64 = 0x0200_0000_0002;
/// TTL of tunnels' outer headers.
const OUTER_TTL: u8 = 64;
/// Tunnels in tunnels.
const DEPTH: usize = 3;
/// What is behind the headers of echo requests, TCP and UDP, if the packet is to be longer than they are.
const FILLER: u8 = 0x5a;

/// A frame, and where it comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Port slot.
    pub port: u16,
    /// Slot of the interface that was meant.
    pub interface: u16,
    /// The frame.
    pub bytes: Vec<u8>,
    /// Nobody said where it comes in: the route to its source did.
    pub is_guessed: bool,
    /// The station it is for is taken to be behind this member: number of the bridge, slot of the member, MAC address.
    pub station: Option<(u16, u16, u64)>,
}

/// Who takes a packet that comes in.
#[derive(Clone, Copy, Debug)]
pub enum Course<'a> {
    /// An interface, by slot: it is routed.
    Routed(u16),
    /// A station of the same bridge: not the gateway.
    Bridged {
        /// The bridge.
        bridge: &'a Bridge,
        /// The member it comes in by.
        from: &'a Member,
        /// The member that the station is behind, if anybody knows.
        to: Option<&'a Member>,
    },
}

/// Who takes it, and the MAC address that it is sent to for that.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// Who.
    pub course: Course<'a>,
    /// MAC address.
    mac: u64,
}

/// The frame by which the packet would come in.
pub fn build(view: View<'_>, packet: &PacketText) -> Result<Arrival, String> {
    let (interface, is_guessed) = ingress(view, packet)?;
    let taken = course(view, packet, interface)?;
    let l3 = ip(packet)?;
    let kind = if packet.src.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
    let macs = (mac_from_u64(taken.mac), packet.src_mac.map_or(SENDER, Mac::bytes));
    let (port, bytes) = wrap(view, interface, macs, kind, &l3, DEPTH)?;
    let station = match taken.course {
        Course::Bridged { bridge, to: Some(to), .. } if packet.to.is_some() => {
            Some((bridge.number(), to.interface, taken.mac))
        }
        _ => None,
    };
    Ok(Arrival { port, interface, bytes, is_guessed, station })
}

/// The IP packet, as far as its words say.
pub fn ip_bytes(packet: &PacketText) -> Result<Vec<u8>, String> {
    ip(packet)
}

/// Who takes what comes in by `slot`.
pub fn course<'a>(view: View<'a>, packet: &PacketText, slot: u16) -> Result<Taken<'a>, String> {
    let tables = view.tables();
    let name = view.interface(slot);
    let interface = tables.interface(slot);
    let found = tables.bridges.get(interface.bridge).filter(|_| interface.is_member());
    let Some((bridge, from)) = found.and_then(|bridge| Some((bridge, bridge.member(slot)?))) else {
        return match packet.to.is_none() && packet.dst_mac.is_none() {
            true => Ok(Taken { course: Course::Routed(slot), mac: interface.mac }),
            false => {
                Err(format!("{name} is no member of a bridge: `to` and `dst-mac` say where its frames go"))
            }
        };
    };
    let gateway = (bridge.interface != NO_INTERFACE).then_some(bridge.interface);
    let routed = |slot: u16| Taken { course: Course::Routed(slot), mac: tables.interface(slot).mac };
    let bridged = |to, mac| Taken { course: Course::Bridged { bridge, from, to }, mac };
    let macs = &view.compiler.neighbours().macs;
    let behind = |mac: u64| macs.find(bridge.segment, mac).and_then(|at| bridge.member_at(at));
    let known = gateway.and_then(|slot| station(view, slot, packet.dst));
    let said = packet.dst_mac.map(|mac| mac_to_u64(mac.bytes()));
    if let Some(to) = &packet.to {
        if let Some(slot) = gateway.filter(|slot| view.interface(*slot) == to.as_str()) {
            return Ok(routed(slot));
        }
        let mut members = bridge.members.iter();
        let Some(to) = members.find(|member| view.interface(member.interface) == to.as_str()) else {
            let known = bridge.members.iter().map(|member| member.interface).chain(gateway);
            let known: Vec<&str> = known.map(|slot| view.interface(slot)).collect();
            return Err(format!("{to} is not of bridge {}; there is {}", bridge.name, known.join(", ")));
        };
        if to.interface == slot {
            return Err(format!("both are behind {name}: such frames do not come here"));
        }
        return Ok(bridged(Some(to), said.or(known).unwrap_or(STATION)));
    }
    if let Some(mac) = said {
        let is_gateways = |slot: &u16| tables.interface(*slot).mac == mac;
        return Ok(gateway.filter(is_gateways).map_or_else(|| bridged(behind(mac), mac), routed));
    }
    if let Some(mac) = group_mac(packet.dst) {
        return Ok(bridged(None, mac));
    }
    let by_name = "say `to BRIDGE/MEMBER`, or `dst-mac MAC`";
    match (known, gateway) {
        (Some(mac), _) => Ok(bridged(behind(mac), mac)),
        (None, None) => {
            Err(format!("bridge {} has no interface, so it is for a station: {by_name}", bridge.name))
        }
        (None, Some(slot)) => match route::of_own(tables, tables.interface(slot).vrf, packet.dst) {
            Some((egress, None)) if egress == slot => Err(format!(
                "{} is on the segment, and nobody knows it yet: {by_name}; `to {}`: the gateway",
                packet.dst,
                view.interface(slot)
            )),
            _ => Ok(routed(slot)),
        },
    }
}

/// The MAC address of a neighbour: one that the config names, or that is known. What a candidate names is in no table yet.
fn station(view: View<'_>, interface: u16, addr: IpAddr) -> Option<u64> {
    let name = view.interface(interface);
    let is_named = |one: &&Neighbour| one.address == addr && one.interface.as_str() == name;
    if let Some(named) = view.config.neighbours.iter().find(is_named) {
        return Some(mac_to_u64(named.mac.bytes()));
    }
    let neighbours = view.compiler.neighbours();
    let word = neighbours.word(neighbours.find(interface, addr_key(addr))?);
    word.is_usable().then(|| word.mac())
}

/// The MAC address of a group, or of all (RFC 1112 section 6.4, RFC 2464 section 7).
fn group_mac(addr: IpAddr) -> Option<u64> {
    match addr {
        IpAddr::V4(addr) if addr.is_broadcast() => Some(0xffff_ffff_ffff),
        IpAddr::V4(addr) if addr.is_multicast() => {
            Some(0x0100_5e00_0000 | u64::from(u32::from(addr) & 0x007f_ffff))
        }
        IpAddr::V6(addr) if addr.is_multicast() => {
            Some(0x3333_0000_0000 | (u128::from(addr) & 0xffff_ffff) as u64)
        }
        _ => None,
    }
}

/// The interface it comes in by.
pub fn ingress(view: View<'_>, packet: &PacketText) -> Result<(u16, bool), String> {
    let tables = view.tables();
    if let Some(name) = &packet.interface {
        let slot = view.compiler.interfaces.get(name.as_str());
        let slot = slot.filter(|slot| {
            tables
                .interfaces
                .get(usize::from(*slot))
                .is_some_and(|i| i.info.name == name.as_str() && is_there(view, *slot))
        });
        return slot.map(|slot| (slot, false)).ok_or_else(|| {
            let interfaces = view.config.interfaces.iter().map(|interface| interface.name.as_str());
            let members = view.tables().bridges.iter().flat_map(|bridge| &bridge.members);
            let known: Vec<&str> =
                interfaces.chain(members.map(|member| view.interface(member.interface))).collect();
            format!("no interface {name}; there is {}", known.join(", "))
        });
    }
    let mut found =
        (0..view.compiler.vrfs.len() as u16).filter_map(|vrf| route::of_own(tables, vrf, packet.src));
    match (found.next(), found.next()) {
        (Some((slot, _)), None) => Ok((slot, true)),
        (Some((one, _)), Some((other, _))) if one == other => Ok((one, true)),
        (None, _) => Err(format!("no route leads to {}: say `from INTERFACE`", packet.src)),
        (Some((one, _)), Some((other, _))) => Err(format!(
            "{} may come in by {} or {}: say `from INTERFACE`",
            packet.src,
            view.interface(one),
            view.interface(other)
        )),
    }
}

fn is_there(view: View<'_>, slot: u16) -> bool {
    let tables = view.tables();
    let interface = tables.interface(slot);
    let is_member = tables.bridges.get(interface.bridge).is_some_and(|of| of.member(slot).is_some());
    is_member
        || view.config.interfaces.iter().any(|interface| interface.name.as_str() == view.interface(slot))
}

/// Puts L2 headers in front, those of tunnels and of bridges' members included.
fn wrap(
    view: View<'_>,
    slot: u16,
    (dst_mac, src_mac): ([u8; 6], [u8; 6]),
    kind: u16,
    l3: &[u8],
    depth: usize,
) -> Result<(u16, Vec<u8>), String> {
    let tables = view.tables();
    let interface = tables.interface(slot);
    let template = match interface.port {
        NO_PORT => &[0; 14][..],
        _ => &interface.header[..usize::from(interface.header_len)],
    };
    let mut frame = template.to_vec();
    frame[..6].copy_from_slice(&dst_mac);
    frame[6..12].copy_from_slice(&src_mac);
    let at = frame.len() - 2;
    frame[at..].copy_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(l3);
    if interface.port != NO_PORT {
        return Ok((interface.port, frame));
    }
    let name = view.interface(slot);
    if depth == 0 {
        return Err(format!("{name} is a tunnel in a tunnel in a tunnel: give the frame instead"));
    }
    if interface.overlay != NO_OVERLAY {
        let overlay = tables.overlays.get(interface.overlay);
        let overlay = overlay.ok_or_else(|| format!("{name} is gone"))?;
        let remote = overlay.remotes().first().map(|remote| addr_of(*remote));
        let remote = remote.ok_or_else(|| {
            format!("{name} has no remote that the frame could come from: give the frame instead")
        })?;
        let (underlay, _) = route::of_own(tables, overlay.underlay_vrf, remote)
            .ok_or_else(|| format!("no route leads to {remote}, the remote of {name}"))?;
        let mut vxlan = vec![0x08, 0, 0, 0]; // RFC 7348 section 5: the I flag
        vxlan.extend_from_slice(&(overlay.spec.vni << 8).to_be_bytes());
        vxlan.extend_from_slice(&frame);
        let outer =
            udp(remote, overlay.spec.vtep, PacketText::ANY_PORT, overlay.spec.udp_port, &vxlan, OUTER_TTL)?;
        let kind = if remote.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let mac = mac_from_u64(tables.interface(underlay).mac);
        return wrap(view, underlay, (mac, SENDER), kind, &outer, depth - 1);
    }
    let member = tables.bridges.get(interface.bridge).filter(|_| interface.bridge != NO_BRIDGE);
    let member =
        member.and_then(|bridge| bridge.members.first()).ok_or_else(|| format!("{name} has no members"))?;
    wrap(view, member.interface, (dst_mac, src_mac), kind, l3, depth - 1)
}

fn udp(src: IpAddr, dst: IpAddr, from: u16, to: u16, payload: &[u8], ttl: u8) -> Result<Vec<u8>, String> {
    let header = UdpHeader::without_ipv4_checksum(from, to, payload.len()).map_err(|e| e.to_string());
    let mut header = header?;
    if let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) {
        header.checksum =
            header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload).map_err(|e| e.to_string())?;
    }
    let mut l4 = header.to_bytes().to_vec();
    l4.extend_from_slice(payload);
    ip_header(src, dst, protocol::UDP, 0, ttl, l4)
}

/// The IP packet.
fn ip(packet: &PacketText) -> Result<Vec<u8>, String> {
    let header_bytes = if packet.src.is_ipv4() { 20 } else { 40 };
    let room = |of: usize| {
        let len = packet.len_bytes.map_or(0, usize::from);
        vec![FILLER; len.saturating_sub(header_bytes + of)]
    };
    let sum = |l4: &[u8]| {
        let pseudo = pseudo_header(packet, l4.len());
        checksum::Sum16BitWords::new().add_slice(&pseudo).add_slice(l4).ones_complement().to_be()
    };
    let l4 = match packet.protocol {
        protocol::TCP => {
            let mut header = TcpHeader::new(packet.src_port, packet.dst_port, 1, 64_240);
            let is = |bit: u8| packet.tcp_flags & bit != 0;
            (header.fin, header.syn, header.rst, header.psh) = (is(1), is(2), is(4), is(8));
            (header.ack, header.urg, header.ece, header.cwr) = (is(16), is(32), is(64), is(128));
            let mut l4 = header.to_bytes().to_vec();
            l4.extend(room(20));
            put_sum(&mut l4, 16, sum);
            l4
        }
        protocol::UDP => {
            let payload = room(8);
            let mut l4 = [packet.src_port, packet.dst_port].map(u16::to_be_bytes).concat();
            l4.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
            l4.extend_from_slice(&[0, 0]);
            l4.extend(payload);
            put_sum(&mut l4, 6, sum);
            if l4[6..8] == [0, 0] {
                l4[6..8].fill(0xff); // RFC 768: 0 would mean none
            }
            l4
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let mut l4 = vec![packet.icmp_type, 0, 0, 0];
            l4.extend_from_slice(&packet.src_port.to_be_bytes());
            l4.extend_from_slice(&[0, 1]);
            l4.extend(room(8));
            put_sum(&mut l4, 2, sum);
            l4
        }
        _ if packet.has_ports() => {
            let mut l4 = [packet.src_port, packet.dst_port].map(u16::to_be_bytes).concat();
            l4.extend_from_slice(&[0; 8]);
            l4.extend(room(12));
            l4
        }
        _ => room(0),
    };
    ip_header(packet.src, packet.dst, packet.protocol, packet.dscp, packet.ttl, l4)
}

fn put_sum(l4: &mut [u8], at: usize, sum: impl Fn(&[u8]) -> u16) {
    let sum = sum(l4);
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1); ICMP of IPv4 has none.
fn pseudo_header(packet: &PacketText, len: usize) -> Vec<u8> {
    match (packet.src, packet.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) if packet.protocol != protocol::ICMP => {
            let len = (len as u16).to_be_bytes();
            [&src.octets()[..], &dst.octets(), &[0, packet.protocol], &len].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = (len as u32).to_be_bytes();
            [&src.octets()[..], &dst.octets(), &len, &[0, 0, 0, packet.protocol]].concat()
        }
        _ => Vec::new(),
    }
}

fn ip_header(src: IpAddr, dst: IpAddr, upper: u8, dscp: u8, ttl: u8, l4: Vec<u8>) -> Result<Vec<u8>, String> {
    let too_long = || format!("a packet with {} bytes behind its IP header is too long", l4.len());
    let len = u16::try_from(l4.len()).map_err(|_| too_long())?;
    let mut bytes = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => v4(src, dst, upper, dscp, ttl, len)?,
        (IpAddr::V6(src), IpAddr::V6(dst)) => v6(src, dst, upper, dscp, ttl, len),
        _ => return Err("source and destination are of one family".to_owned()),
    };
    bytes.extend(l4);
    Ok(bytes)
}

fn v4(src: Ipv4Addr, dst: Ipv4Addr, upper: u8, dscp: u8, ttl: u8, len: u16) -> Result<Vec<u8>, String> {
    let header = Ipv4Header::new(len, ttl, IpNumber(upper), src.octets(), dst.octets());
    let mut header = header.map_err(|error| error.to_string())?;
    header.dscp = IpDscp::try_new(dscp).map_err(|error| error.to_string())?;
    header.dont_fragment = true;
    header.header_checksum = header.calc_header_checksum();
    Ok(header.to_bytes().to_vec())
}

fn v6(src: Ipv6Addr, dst: Ipv6Addr, upper: u8, dscp: u8, ttl: u8, len: u16) -> Vec<u8> {
    let header = Ipv6Header {
        traffic_class: dscp << 2,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: len,
        next_header: IpNumber(upper),
        hop_limit: ttl,
        source: src.octets(),
        destination: dst.octets(),
    };
    header.to_bytes().to_vec()
}

/// The interface of a frame that is given, for the port it comes in by.
pub fn port_of(view: View<'_>, name: &str) -> Result<u16, String> {
    let slot = view
        .compiler
        .ports
        .get(name)
        .filter(|_| view.config.ports.iter().any(|port| port.name.as_str() == name));
    slot.ok_or_else(|| {
        let known: Vec<&str> = view.config.ports.iter().map(|port| port.name.as_str()).collect();
        format!("no port {name}; there is {}", known.join(", "))
    })
}
