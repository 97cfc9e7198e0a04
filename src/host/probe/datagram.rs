//! Probes of one packet: UDP (RFC 768) and echo (RFC 792, RFC 4443 section 4). And what answers to probes say by
//! their headers alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Flow, MAX_PROBE_BYTES, PORTS, Reason};
use crate::host::OwnBytes;
use crate::host::icmp::{ipv4_header, ipv6_header};
use crate::packet::checksum;
use crate::packet::view::{array, be16, be32, be128, protocol};

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const ICMP_BYTES: usize = 8;

const V4_ECHO_REPLY: u8 = 0;
const V4_ECHO: u8 = 8;
const V4_UNREACHABLE: u8 = 3;
const V6_UNREACHABLE: u8 = 1;
const V6_ECHO: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// What an echo request carries: as much as ping does, since some answer nothing shorter.
const ECHO_DATA: [u8; 56] = {
    let mut data = [0; 56];
    let mut at = 0;
    while at < 56 {
        data[at] = b"softgate health check "[at % 22];
        at += 1;
    }
    data
};

const _: () = assert!(IPV6_BYTES + UDP_BYTES + crate::config::Bytes::MOST <= MAX_PROBE_BYTES);

/// A packet to a probe's peer: header and upper layer with its checksum at `sum_at`.
fn packet(flow: &Flow, upper: &[&[u8]], sum_at: usize) -> OwnBytes {
    let mut bytes = OwnBytes::new();
    let len = upper.iter().map(|part| part.len()).sum();
    let (l4, pseudo) = match (flow.own, flow.peer) {
        (IpAddr::V4(own), IpAddr::V4(peer)) => {
            ipv4_header(&mut bytes, flow.protocol, 0, own.octets(), peer.octets(), len);
            let pseudo = checksum::pseudo_v4(own.octets(), peer.octets(), flow.protocol, len);
            // ICMP of IPv4 has no pseudo-header.
            (IPV4_BYTES, if flow.protocol == protocol::ICMP { 0 } else { pseudo })
        }
        (IpAddr::V6(own), IpAddr::V6(peer)) => {
            ipv6_header(&mut bytes, flow.protocol, 0, own.octets(), peer.octets(), len);
            (IPV6_BYTES, checksum::pseudo_v6(&own.octets(), &peer.octets(), flow.protocol, len))
        }
        _ => unreachable!("a probe has one family"),
    };
    upper.iter().for_each(|part| bytes.extend(part.iter().copied()));
    let sum = match !checksum::fold(checksum::add(pseudo, &bytes[l4..])) {
        // RFC 768: zero would mean that there is none.
        0 if flow.protocol == protocol::UDP => 0xffff,
        sum => sum,
    };
    bytes[l4 + sum_at..l4 + sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A datagram with `payload`, at most [`Bytes::MOST`](crate::config::Bytes::MOST).
pub(super) fn udp(flow: &Flow, payload: &[u8]) -> OwnBytes {
    let mut header = [0; UDP_BYTES];
    header[..2].copy_from_slice(&flow.own_port.to_be_bytes());
    header[2..4].copy_from_slice(&flow.peer_port.to_be_bytes());
    header[4..6].copy_from_slice(&((UDP_BYTES + payload.len()) as u16).to_be_bytes());
    packet(flow, &[&header, payload], 6)
}

/// An echo request.
pub(super) fn echo(flow: &Flow, sequence: u16) -> OwnBytes {
    let kind = if flow.protocol == protocol::ICMP { V4_ECHO } else { V6_ECHO };
    let mut header = [kind, 0, 0, 0, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&flow.own_port.to_be_bytes());
    header[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet(flow, &[&header, &ECHO_DATA], 2)
}

/// True if an echo reply brings back what its request had.
pub(super) fn is_echo_of(reply: &[u8], sequence: u16) -> bool {
    reply.get(6..ICMP_BYTES) == Some(&sequence.to_be_bytes()) && reply.get(ICMP_BYTES..) == Some(&ECHO_DATA)
}

/// The flow that a packet to the gateway may answer, and where its upper layer is. `l3` is a whole packet whose
/// headers have been checked, and `l4` the offset of its upper layer in it.
pub(super) fn flow_of(l3: &[u8], l4: usize, upper: u8, vrf: u16) -> Option<Flow> {
    let ports = l3.get(l4..l4 + UDP_BYTES)?;
    if is_unreachable(upper, ports[0]) {
        return quoted_flow(l3, l4, vrf);
    }
    let (peer, own): (IpAddr, IpAddr) = match l3[0] >> 4 {
        4 => (Ipv4Addr::from(be32(l3, 12)).into(), Ipv4Addr::from(be32(l3, 16)).into()),
        _ => (Ipv6Addr::from(be128(l3, 8)).into(), Ipv6Addr::from(be128(l3, 24)).into()),
    };
    let (own_port, peer_port) = match upper {
        protocol::TCP | protocol::UDP => (be16(ports, 2), be16(ports, 0)),
        protocol::ICMP if ports[..2] == [V4_ECHO_REPLY, 0] => (be16(ports, 4), 0),
        protocol::ICMPV6 if ports[..2] == [V6_ECHO_REPLY, 0] => (be16(ports, 4), 0),
        _ => return None,
    };
    PORTS.contains(&own_port).then_some(Flow { vrf, protocol: upper, own, own_port, peer, peer_port })
}

/// Destination unreachable (RFC 792, RFC 4443 section 3.1).
fn is_unreachable(upper: u8, icmp_type: u8) -> bool {
    matches!((upper, icmp_type), (protocol::ICMP, V4_UNREACHABLE) | (protocol::ICMPV6, V6_UNREACHABLE))
}

/// The flow that an error quotes a datagram or an echo request of. Not of TCP: who is nowhere on the way could end
/// its probes by guessing ports (RFC 5927 section 2), and there a RST says as much.
fn quoted_flow(l3: &[u8], l4: usize, vrf: u16) -> Option<Flow> {
    let quoted = l3.get(l4 + ICMP_BYTES..)?;
    // As we have sent it: without options.
    let (upper, own, peer, told, at): (u8, IpAddr, IpAddr, IpAddr, usize) = match l3[0] >> 4 {
        4 if quoted.len() >= IPV4_BYTES + UDP_BYTES && quoted[0] == 0x45 => (
            quoted[9],
            Ipv4Addr::from(be32(quoted, 12)).into(),
            Ipv4Addr::from(be32(quoted, 16)).into(),
            Ipv4Addr::from(be32(l3, 16)).into(),
            IPV4_BYTES,
        ),
        6 if quoted.len() >= IPV6_BYTES + UDP_BYTES && quoted[0] >> 4 == 6 => (
            quoted[6],
            Ipv6Addr::from(be128(quoted, 8)).into(),
            Ipv6Addr::from(be128(quoted, 24)).into(),
            Ipv6Addr::from(be128(l3, 24)).into(),
            IPV6_BYTES,
        ),
        _ => return None,
    };
    let (own_port, peer_port) = match (upper, quoted[at]) {
        (protocol::UDP, _) => (be16(quoted, at), be16(quoted, at + 2)),
        (protocol::ICMP, V4_ECHO) | (protocol::ICMPV6, V6_ECHO) => (be16(quoted, at + 4), 0),
        _ => return None,
    };
    let is_ours = own == told && PORTS.contains(&own_port);
    is_ours.then_some(Flow { vrf, protocol: upper, own, own_port, peer, peer_port })
}

/// True for an ICMP error about what a probe has sent.
pub(super) fn is_error(l3: &[u8], l4: usize, upper: u8) -> bool {
    l3.get(l4).is_some_and(|icmp_type| is_unreachable(upper, *icmp_type))
}

/// What such an error says; `None`: it is broken.
pub(super) fn error(l3: &[u8], l4: usize, upper: u8) -> Option<Reason> {
    let message =
        l3.get(l4..).filter(|message| message.len() >= ICMP_BYTES && is_whole(l3, message, upper))?;
    // Port unreachable: RFC 792; RFC 4443 section 3.1.
    let is_port = message[1] == if upper == protocol::ICMP { 3 } else { 4 };
    Some(if is_port { Reason::Refused } else { Reason::Unreachable })
}

/// True if the checksum is right.
fn is_whole(l3: &[u8], message: &[u8], upper: u8) -> bool {
    let pseudo = match l3[0] >> 4 {
        4 if upper == protocol::ICMP => 0,
        4 => checksum::pseudo_v4(*array(l3, 12), *array(l3, 16), upper, message.len()),
        _ => checksum::pseudo_v6(array(l3, 8), array(l3, 24), upper, message.len()),
    };
    checksum::fold(checksum::add(pseudo, message)) == 0xffff
}

/// The upper layer of a UDP or ICMP packet if its length and checksum are right; of UDP what it carries.
pub(super) fn payload<'p>(l3: &'p [u8], l4: usize, flow: &Flow) -> Option<&'p [u8]> {
    let message = l3.get(l4..)?;
    let (message, skip) = match flow.protocol {
        protocol::UDP => {
            // The datagram may be shorter than the packet (RFC 768).
            let message = message.get(..usize::from(be16(message, 4))).filter(|m| m.len() >= UDP_BYTES)?;
            if flow.own.is_ipv4() && be16(message, 6) == 0 {
                return Some(&message[UDP_BYTES..]);
            }
            (message, UDP_BYTES)
        }
        _ => (message, 0),
    };
    is_whole(l3, message, flow.protocol).then(|| &message[skip..])
}
