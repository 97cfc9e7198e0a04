//! Frames in one line each, decoded by `etherparse`.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{LinkExtSlice, LinkSlice, NetSlice, SlicedPacket, TransportSlice};

/// IANA's port of VXLAN (RFC 7348 section 5), whose inner frame is decoded too.
const VXLAN_PORT: u16 = 4789;
const VXLAN_BYTES: usize = 8;
/// Frames in frames that are decoded.
const DEPTH: usize = 3;

/// A frame as far as it can be read.
pub fn frame(bytes: &[u8]) -> String {
    nested(bytes, DEPTH)
}

fn nested(bytes: &[u8], depth: usize) -> String {
    let mut text = String::new();
    let packet = match SlicedPacket::from_ethernet(bytes) {
        Ok(packet) => packet,
        Err(error) => return format!("{} bytes, {error}", bytes.len()),
    };
    if let Some(LinkSlice::Ethernet2(link)) = &packet.link {
        let _ = write!(text, "{} > {}", mac(&link.source()), mac(&link.destination()));
    }
    for ext in &packet.link_exts {
        if let LinkExtSlice::Vlan(vlan) = ext {
            let _ = write!(text, " vlan {}", vlan.vlan_identifier().value());
        }
    }
    let payload = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let (src, dst) = (header.source_addr(), header.destination_addr());
            let _ = write!(text, ", {src} > {dst} ttl {}", header.ttl());
            if header.dcp().value() != 0 {
                let _ = write!(text, " dscp {}", header.dcp().value());
            }
            if header.is_fragmenting_payload() {
                let more = if header.more_fragments() { " and more" } else { "" };
                let _ = write!(text, " fragment at {}{more}", header.fragments_offset().byte_offset());
            }
            Some((header.protocol().0, ip.payload().payload))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let (src, dst) = (header.source_addr(), header.destination_addr());
            let _ = write!(text, ", {src} > {dst} hop limit {}", header.hop_limit());
            let dscp = header.traffic_class() >> 2;
            if dscp != 0 {
                let _ = write!(text, " dscp {dscp}");
            }
            Some((ip.payload().ip_number.0, ip.payload().payload))
        }
        Some(NetSlice::Arp(arp)) => {
            let addr = |bytes: &[u8]| {
                <[u8; 4]>::try_from(bytes).map_or_else(|_| "?".to_owned(), |b| Ipv4Addr::from(b).to_string())
            };
            let arp = arp.to_packet();
            let (sender, target) = (addr(arp.sender_protocol_addr()), addr(arp.target_protocol_addr()));
            let _ = match arp.operation.0 {
                1 => write!(text, ", arp who has {target}, tell {sender}"),
                _ => write!(text, ", arp {sender} is at {}", mac(arp.sender_hw_addr())),
            };
            None
        }
        None => {
            let _ = write!(text, ", not IP");
            None
        }
    };
    let Some((protocol, behind)) = payload else { return text };
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let set = [
                (tcp.syn(), "syn"),
                (tcp.fin(), "fin"),
                (tcp.rst(), "rst"),
                (tcp.psh(), "psh"),
                (tcp.ack(), "ack"),
            ];
            let set: Vec<&str> = set.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
            let (from, to) = (tcp.source_port(), tcp.destination_port());
            let _ = write!(text, ", tcp {from} > {to} [{}], {} bytes", set.join(","), tcp.payload().len());
        }
        Some(TransportSlice::Udp(udp)) => {
            let (from, to) = (udp.source_port(), udp.destination_port());
            let _ = write!(text, ", udp {from} > {to}, {} bytes", udp.payload().len());
            if to == VXLAN_PORT && depth > 0 && udp.payload().len() > VXLAN_BYTES {
                let vni = u32::from_be_bytes([0, udp.payload()[4], udp.payload()[5], udp.payload()[6]]);
                let inner = nested(&udp.payload()[VXLAN_BYTES..], depth - 1);
                let _ = write!(text, ", vxlan {vni} ({inner})");
            }
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let _ = write!(text, ", icmp type {} code {}", icmp.type_u8(), icmp.code_u8());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let _ = write!(text, ", icmpv6 type {} code {}", icmp.type_u8(), icmp.code_u8());
            if let Some(target) = solicited(icmp.type_u8(), behind) {
                let _ = write!(text, ", who has {target}");
            }
        }
        _ => {
            let _ = write!(text, ", protocol {protocol}, {} bytes", behind.len());
        }
    }
    text
}

/// Whom a neighbour solicitation (RFC 4861 section 4.3) asks for.
fn solicited(icmp_type: u8, message: &[u8]) -> Option<Ipv6Addr> {
    let target = message.get(8..24).filter(|_| icmp_type == 135)?;
    <[u8; 16]>::try_from(target).ok().map(Ipv6Addr::from)
}

fn mac(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// As hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hex digits as bytes; blanks, colons and line ends between them are passed over.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return Err("a frame is an even number of hex digits".to_owned());
    }
    let value = |c: char| c.to_digit(16).ok_or_else(|| format!("{c:?} is no hex digit"));
    digits.chunks(2).map(|two| Ok((value(two[0])? << 4 | value(two[1])?) as u8)).collect()
}

/// What tells the flow of a frame from others, whichever way it goes; `None`: it is not IP.
pub fn flow_of(bytes: &[u8]) -> Option<(u8, [(IpAddr, u16); 2])> {
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let (src, dst, protocol): (IpAddr, IpAddr, u8) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.protocol().0)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number.0)
        }
        NetSlice::Arp(_) => return None,
    };
    let (from, to) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    let mut ends = [(src, from), (dst, to)];
    ends.sort_unstable();
    Some((protocol, ends))
}
