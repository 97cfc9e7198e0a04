//! Tunnels: the headers that are put in front of packets, from a template that is made for a next hop and a burst.
//! What they are is a matter of who makes the template: VXLAN ([`super::vxlan`]), or the way to a backend
//! ([`super::deliver`]).

use crate::mem::Frame;
use crate::neighbours::{addr_of, is_v4_key};
use crate::packet::view::{array, be16, be32, ethertype, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Verdict, checksum, hash};
use crate::pipeline::route::{self, Route};
use crate::pipeline::{Context, rewrite};
use crate::tables::bridge::NO_BRIDGE;
use crate::tables::overlay::NO_OVERLAY;
use crate::tables::{Interface, MAX_LINK_HEADER};
use crate::telemetry::add;

/// Ethernet header of a frame in a tunnel, without tags (RFC 7348 section 6.1).
pub(super) const INNER_LINK_BYTES: usize = 14;
/// UDP header.
pub(super) const UDP_BYTES: usize = 8;
/// UDP and VXLAN headers.
const VXLAN_TAIL: usize = UDP_BYTES + 8;
/// Longest that stands behind an outer IP header.
const MAX_TAIL: usize = UDP_BYTES + 8;
/// Longest that stands in front of what is inside.
const MAX_HEADER: usize = MAX_LINK_HEADER + 40 + MAX_TAIL;
/// RFC 7348 section 5: source ports come from the dynamic range, RFC 6335 section 6.
pub(super) const FIRST_SOURCE_PORT: u16 = 49152;
/// The two lower bits of TOS and traffic class (RFC 3168 section 5).
pub(super) const ECN_MASK: u8 = 3;

/// What the headers of a tunnel say.
pub(super) struct Outer<'a> {
    /// This end, in key form.
    pub(super) src: u128,
    /// The other end, likewise.
    pub(super) dst: u128,
    /// Upper-layer protocol.
    pub(super) upper: u8,
    /// What stands behind the IP header: if it is UDP, its header first, without source port and length.
    pub(super) tail: &'a [u8],
    pub(super) ttl: u8,
    /// `None`: that of the packet inside.
    pub(super) dscp: Option<u8>,
    pub(super) udp_checksum: bool,
}

/// Where the packets of a tunnel leave.
pub(super) struct NextHop<'a> {
    /// Egress interface slot.
    pub(super) egress: u16,
    pub(super) out: &'a Interface,
    pub(super) mac: u64,
    /// The longest outer packet that goes there.
    pub(super) mtu_bytes: u16,
}

impl<'a> NextHop<'a> {
    /// The way to `remote`, in key form; of several equal ones `spread` chooses. `none`: what is said if there is no
    /// way.
    pub(super) fn find(
        vrf: u16,
        remote: u128,
        spread: u64,
        none: DropReason,
        cx: &Context<'a>,
    ) -> Result<NextHop<'a>, NoTunnel> {
        let way = route::towards(cx.tables, vrf, addr_of(remote), spread);
        let Ok(Route::Forward { egress, via }) = way else { return Err(NoTunnel::Lost(none)) };
        let out = cx.tables.interface(egress);
        // No tunnel in a tunnel, or behind a bridge.
        if out.overlay != NO_OVERLAY || out.bridge != NO_BRIDGE {
            return Err(NoTunnel::Lost(none));
        }
        if !out.up {
            return Err(NoTunnel::Lost(DropReason::PortDown));
        }
        let neighbour = match via.or_else(|| cx.neighbours.find(egress, remote)) {
            Some(neighbour) => neighbour,
            None => {
                let cap = cx.tables.settings.neighbours_per_interface;
                let slot = cx.neighbours.find_or_insert(egress, remote, cap);
                slot.map_err(|_| NoTunnel::Lost(DropReason::NeighbourTableFull))?
            }
        };
        let word = cx.neighbours.word(neighbour);
        if !word.is_usable() {
            return Err(NoTunnel::Unresolved { egress, neighbour });
        }
        cx.neighbours.mark_used(neighbour, cx.now);
        let mtu_bytes = cx.neighbours.vteps.path_mtu(remote, cx.now).min(out.mtu_bytes);
        Ok(NextHop { egress, out, mac: word.mac(), mtu_bytes })
    }
}

/// The way to a remote tunnel end point: what stands in front of the frames that go there.
#[derive(Clone)]
pub(super) struct Tunnel {
    /// Whose it is: the number of an overlay, or what stands for a delivery in the place of a neighbour.
    pub(super) owner: u32,
    /// The other end, in key form.
    pub(super) remote: u128,
    /// The interface outer packets leave by.
    pub(super) egress: u16,
    /// The longest IP packet that goes through.
    pub(super) mtu_bytes: u16,
    /// Outer link header and all headers up to the inner frame.
    header: [u8; MAX_HEADER + INNER_LINK_BYTES],
    /// Bytes of `header` in use, without the link header of what is inside, which is behind them in the tunnel of a hop
    /// ([`Tunnel::of_hop`]).
    len: u8,
    /// Bytes of the outer link header.
    link_len: u8,
    /// Bytes behind the outer IP header.
    tail_len: u8,
    /// What is inside has a link header.
    takes_frames: bool,
    /// Upper-layer protocol of the outer header.
    upper: u8,
    /// The outer header is one of IPv4.
    is_v4: bool,
    udp_checksum: bool,
    /// UDP port of the other end, if it is UDP.
    dst_port: u16,
    /// Fixed DSCP, in the place it has in TOS and traffic class.
    dscp: Option<u8>,
    /// Unfolded sum of the outer IPv4 header without TOS and length.
    sum: u32,
    packets: u32,
    bytes: u32,
}

/// Why there is no way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTunnel {
    /// Nobody knows which remote a station is behind.
    Unknown,
    /// The next hop in the underlay has to be asked for: the neighbour in this slot of this interface.
    Unresolved {
        /// Egress interface slot.
        egress: u16,
        /// Neighbour slot.
        neighbour: u32,
    },
    /// There is none.
    Lost(DropReason),
}

impl Tunnel {
    /// `inner_link`: bytes of a link header that the packets inside have.
    pub(super) fn new(owner: u32, outer: &Outer<'_>, next: &NextHop<'_>, inner_link: usize) -> Tunnel {
        let is_v4 = is_v4_key(outer.dst);
        let link_len = usize::from(next.out.header_len);
        let ip_len = if is_v4 { 20 } else { 40 };
        let mut header = [0; MAX_HEADER + INNER_LINK_BYTES];
        header[..link_len].copy_from_slice(&next.out.header[..link_len]);
        header[..6].copy_from_slice(&next.mac.to_be_bytes()[2..]);
        let kind = if is_v4 { ethertype::IPV4 } else { ethertype::IPV6 };
        header[link_len - 2..link_len].copy_from_slice(&kind.to_be_bytes());
        let ip = &mut header[link_len..];
        if is_v4 {
            ip[0] = 0x45;
            // DF: RFC 7348 section 4.3 forbids tunnel end points to fragment, RFC 2003 section 3.1 allows not to.
            // Atomic, so 0 will do for the identification (RFC 6864 section 4.1).
            ip[6] = 0x40;
            ip[8] = outer.ttl;
            ip[9] = outer.upper;
            ip[12..16].copy_from_slice(&(outer.src as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(outer.dst as u32).to_be_bytes());
        } else {
            ip[0] = 0x60;
            ip[6] = outer.upper;
            ip[7] = outer.ttl;
            ip[8..24].copy_from_slice(&outer.src.to_be_bytes());
            ip[24..40].copy_from_slice(&outer.dst.to_be_bytes());
        }
        let sum = if is_v4 { u32::from(checksum::fold(checksum::add(0, &ip[..20]))) } else { 0 };
        ip[ip_len..ip_len + outer.tail.len()].copy_from_slice(outer.tail);
        let overhead = (ip_len + outer.tail.len() + inner_link) as u16;
        Tunnel {
            owner,
            remote: outer.dst,
            egress: next.egress,
            mtu_bytes: next.mtu_bytes.saturating_sub(overhead),
            header,
            len: (link_len + ip_len + outer.tail.len()) as u8,
            link_len: link_len as u8,
            tail_len: outer.tail.len() as u8,
            takes_frames: inner_link != 0,
            upper: outer.upper,
            is_v4,
            udp_checksum: outer.udp_checksum,
            dst_port: outer.tail.get(2..4).map_or(0, |port| be16(port, 0)),
            dscp: outer.dscp.map(|dscp| dscp << 2),
            sum,
            packets: 0,
            bytes: 0,
        }
    }

    /// The same for packets to one station, with the link header that they have inside.
    pub(super) fn of_hop(&self, link: &[u8; INNER_LINK_BYTES]) -> Tunnel {
        let mut tunnel = self.clone();
        tunnel.header[self.len()..][..INNER_LINK_BYTES].copy_from_slice(link);
        (tunnel.packets, tunnel.bytes) = (0, 0);
        tunnel
    }

    /// True if packets have this link header inside.
    pub(super) fn leads(&self, link: &[u8; INNER_LINK_BYTES]) -> bool {
        self.header[self.len()..][..INNER_LINK_BYTES] == *link
    }

    /// Finishes a plain packet: takes one off the TTL, and puts the link header inside and all of the tunnel in front. It
    /// is the tunnel of a hop.
    #[inline(always)]
    pub(super) fn finish(&mut self, packet: &mut Packet, key: hash::Key) {
        // Sizes that are known, so that all of it is a few moves: VXLAN over IPv4 and IPv6, without and with a tag.
        match self.len {
            50 => self.finish_sized::<50, 14, 92>(packet, key),
            54 => self.finish_sized::<54, 18, 96>(packet, key),
            70 => self.finish_sized::<70, 14, 112>(packet, key),
            74 => self.finish_sized::<74, 18, 116>(packet, key),
            _ => self.finish_any(packet, key),
        }
    }

    /// `ALL`: headers and what a plain packet has at least.
    #[inline(always)]
    fn finish_sized<const LEN: usize, const LINK: usize, const ALL: usize>(
        &mut self,
        packet: &mut Packet,
        key: hash::Key,
    ) {
        const { assert!(ALL == LEN + INNER_LINK_BYTES + 28 && LEN - LINK - VXLAN_TAIL >= 20) };
        let inner = LEN + INNER_LINK_BYTES;
        let meta = &mut packet.meta;
        let len = meta.ip_len;
        let bytes = packet.frame.reframe(meta.l3.into(), inner, len.into());
        let bytes: &mut [u8; ALL] = bytes.first_chunk_mut().expect("a plain packet has these bytes");
        rewrite::decrement_ttl(&mut bytes[inner..], Family::Ipv4);
        let (tos, source_port) = (bytes[inner + 1], plain_source_port(array(bytes, inner), key));
        bytes[..inner].copy_from_slice(&self.header[..inner]);
        let ip_len = self.fill_in(
            &mut bytes[..LEN],
            LINK,
            VXLAN_TAIL,
            INNER_LINK_BYTES + usize::from(len),
            tos,
            source_port,
        );
        self.seal(&mut packet.frame, ip_len);
        self.add(ip_len);
        self.note(&mut packet.meta, ip_len, source_port);
    }

    #[cold]
    fn finish_any(&mut self, packet: &mut Packet, key: hash::Key) {
        let meta = packet.meta;
        let (len, frame_len) = (self.len(), INNER_LINK_BYTES + usize::from(meta.ip_len));
        let inner = len + INNER_LINK_BYTES;
        let bytes = packet.frame.reframe(meta.l3.into(), inner, meta.ip_len.into());
        rewrite::decrement_ttl(&mut bytes[inner..], Family::Ipv4);
        let (tos, source_port) = (bytes[inner + 1], plain_source_port(array(bytes, inner), key));
        bytes[len..inner].copy_from_slice(&self.header[len..inner]);
        let ip_len = self.write(bytes, frame_len, tos, source_port);
        self.seal(&mut packet.frame, ip_len);
        self.add(ip_len);
        self.note(&mut packet.meta, ip_len, source_port);
    }

    /// Bytes in front of what is inside.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Writes the headers into the first bytes of `head`, behind which a frame of `frame_len` bytes begins with an
    /// inner packet of this `tos`. Returns the length of the outer IP packet.
    #[inline(always)]
    pub(super) fn write(&self, head: &mut [u8], frame_len: usize, tos: u8, source_port: u16) -> u16 {
        // The usual ones, of a size that is known: VXLAN over IPv4 and IPv6, without and with a tag.
        match (self.len, self.tail_len) {
            (50, 16) => self.write_sized::<50, 16>(head, frame_len, tos, source_port),
            (54, 16) => self.write_sized::<54, 16>(head, frame_len, tos, source_port),
            (70, 16) => self.write_sized::<70, 16>(head, frame_len, tos, source_port),
            (74, 16) => self.write_sized::<74, 16>(head, frame_len, tos, source_port),
            (len, tail_len) => {
                head[..usize::from(len)].copy_from_slice(&self.header[..usize::from(len)]);
                let head = &mut head[..usize::from(len)];
                self.fill_in(head, self.link_len.into(), tail_len.into(), frame_len, tos, source_port)
            }
        }
    }

    #[inline(always)]
    fn write_sized<const LEN: usize, const TAIL: usize>(
        &self,
        head: &mut [u8],
        frame_len: usize,
        tos: u8,
        source_port: u16,
    ) -> u16 {
        let head: &mut [u8; LEN] = head.first_chunk_mut().expect("room was made for it");
        head.copy_from_slice(&self.header[..LEN]);
        self.fill_in(head, self.link_len.into(), TAIL, frame_len, tos, source_port)
    }

    /// What differs from packet to packet.
    #[inline(always)]
    fn fill_in(
        &self,
        head: &mut [u8],
        ip: usize,
        tail_len: usize,
        frame_len: usize,
        tos: u8,
        source_port: u16,
    ) -> u16 {
        // RFC 6040 section 4.1: normal mode, the ECN field is copied.
        let tos = self.dscp.map_or(tos, |dscp| dscp | tos & ECN_MASK);
        let payload_len = (tail_len + frame_len) as u16;
        let tail = head.len() - tail_len;
        if tail_len >= UDP_BYTES {
            head[tail..tail + 2].copy_from_slice(&source_port.to_be_bytes());
            head[tail + 4..tail + 6].copy_from_slice(&payload_len.to_be_bytes());
        }
        if tail - ip == 20 {
            let ip_len = payload_len + 20;
            let sum = self.sum + u32::from(ip_len) + u32::from(tos);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            let header = &mut head[ip..ip + 20];
            header[1] = tos;
            header[2..4].copy_from_slice(&ip_len.to_be_bytes());
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            ip_len
        } else {
            let header = &mut head[ip..ip + 40];
            header[0] = 0x60 | tos >> 4;
            header[1] = tos << 4;
            header[4..6].copy_from_slice(&payload_len.to_be_bytes());
            payload_len + 40
        }
    }

    /// Computes the outer UDP checksum, if the config wants it. `frame` begins with the outer link header.
    #[inline(always)]
    pub(super) fn seal(&self, frame: &mut Frame, ip_len: u16) {
        if self.udp_checksum {
            self.sum_up(frame, ip_len);
        }
    }

    #[cold]
    fn sum_up(&self, frame: &mut Frame, ip_len: u16) {
        let udp = self.len() - usize::from(self.tail_len);
        let udp_len = usize::from(ip_len) - (udp - usize::from(self.link_len));
        let bytes = frame.bytes();
        let ip = &bytes[usize::from(self.link_len)..];
        let pseudo = match self.is_v4 {
            true => checksum::pseudo_v4(*array(ip, 12), *array(ip, 16), protocol::UDP, udp_len),
            false => checksum::pseudo_v6(array(ip, 8), array(ip, 24), protocol::UDP, udp_len),
        };
        let sum = !checksum::fold(pseudo + checksum::add_chain(frame, udp, udp_len));
        // RFC 768: a computed 0 is sent as all ones.
        let sum = if sum == 0 { 0xffff } else { sum };
        frame.bytes_mut()[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    }

    /// What is known of a packet once it is in the tunnel.
    #[inline(always)]
    pub(super) fn note(&self, meta: &mut Meta, ip_len: u16, source_port: u16) {
        meta.family = if self.is_v4 { Family::Ipv4 } else { Family::Ipv6 };
        meta.protocol = self.upper;
        (meta.src_port, meta.dst_port) = match self.upper {
            protocol::UDP => (source_port, self.dst_port),
            _ => (0, 0),
        };
        meta.ip_len = ip_len;
        meta.egress = self.egress;
        meta.verdict = Verdict::Forward;
    }

    /// Counts an outer packet.
    #[inline(always)]
    pub(super) fn add(&mut self, ip_len: u16) {
        self.packets += 1;
        self.bytes += u32::from(self.link_len) + u32::from(ip_len);
    }

    /// Counts what has gone through for the interface it left by.
    pub(super) fn count(&self, cx: &Context<'_>) {
        if self.packets != 0 {
            let counters = &cx.counters.interfaces[usize::from(self.egress)];
            add(&counters.tx_packets, self.packets.into());
            add(&counters.tx_bytes, self.bytes.into());
        }
    }

    /// Puts a whole frame into the tunnel, which begins with its inner link header, or if there is none in this
    /// tunnel with the packet.
    pub(super) fn put(&mut self, frame: &mut Frame, cx: &Context<'_>) -> (u16, u16) {
        let frame_len = frame.total_len();
        self.put_cut(frame, frame_len, cx)
    }

    /// The same, of which the last bytes may be no part of.
    pub(super) fn put_cut(&mut self, frame: &mut Frame, frame_len: usize, cx: &Context<'_>) -> (u16, u16) {
        let key = cx.tables.settings.key;
        let (tos, source_port) = match self.takes_frames {
            true => looks_of(frame.bytes(), key),
            false => looks_of_packet(frame.bytes(), key),
        };
        let len = self.len();
        let ip_len = self.write(frame.prepend(len), frame_len, tos, source_port);
        self.seal(frame, ip_len);
        self.add(ip_len);
        (ip_len, source_port)
    }
}

/// TOS of the packet in a frame, and the outer source port that its flow has: paths in the underlay are chosen by it
/// (RFC 7348 section 5).
fn looks_of(frame: &[u8], key: hash::Key) -> (u8, u16) {
    match frame.get(12..14) {
        Some(kind) if matches!(be16(kind, 0), ethertype::IPV4 | ethertype::IPV6) => {
            looks_of_packet(&frame[INNER_LINK_BYTES..], key)
        }
        _ => (0, FIRST_SOURCE_PORT),
    }
}

/// The same of a packet.
fn looks_of_packet(l3: &[u8], key: hash::Key) -> (u8, u16) {
    match l3.first().map_or(0, |first| first >> 4) {
        4 if l3.len() >= 20 => {
            let is_fragment = be16(l3, 6) & 0x3fff != 0;
            let ports = if is_fragment { None } else { l3.get(usize::from(l3[0] & 15) * 4..) };
            let hash = hash::of_packet(key, Family::Ipv4, l3, l3[9], ports_of(l3[9], ports));
            (l3[1], source_port(hash))
        }
        6 if l3.len() >= 40 => {
            let hash = hash::of_packet(key, Family::Ipv6, l3, l3[6], ports_of(l3[6], l3.get(40..)));
            (l3[0] << 4 | l3[1] >> 4, source_port(hash))
        }
        _ => (0, FIRST_SOURCE_PORT),
    }
}

#[inline(always)]
fn ports_of(upper: u8, l4: Option<&[u8]>) -> (u16, u16) {
    match l4.and_then(|l4| l4.first_chunk::<4>()) {
        Some(ports) if matches!(upper, protocol::TCP | protocol::UDP | protocol::SCTP) => {
            (be16(ports, 0), be16(ports, 2))
        }
        _ => (0, 0),
    }
}

/// The outer source port of the plain IPv4 packet with this header and eight bytes behind it.
#[inline(always)]
pub(super) fn plain_source_port(ip: &[u8; 28], key: hash::Key) -> u16 {
    let ports = ports_of(ip[9], Some(&ip[20..]));
    source_port(hash::tuple_v4(key, be32(ip, 12), be32(ip, 16), ip[9], ports))
}

#[inline(always)]
fn source_port(hash: u64) -> u16 {
    FIRST_SOURCE_PORT | (hash >> 32) as u16 & !FIRST_SOURCE_PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_are_dynamic_ones() {
        for hash in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            assert!(source_port(hash) >= FIRST_SOURCE_PORT);
        }
        assert_eq!(source_port(0x3fff << 32), 65535);
    }
}
