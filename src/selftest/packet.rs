//! Packets as the selftest makes, reads and prints them: an IPv4 header (etherparse) and the bytes behind it.
//!
//! Nothing of the packet path is used here: checksums are computed anew, by another hand.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, TcpHeader, UdpHeader};

/// Ethernet header: addresses and 0x0800.
const LINK_BYTES: usize = 14;
/// Header of UDP (RFC 768), and what an ICMP message has at least (RFC 792).
const SHORT_HEADER: usize = 8;

/// ICMP (RFC 792).
pub(super) const ICMP: IpNumber = IpNumber::ICMP;
/// TCP (RFC 9293).
pub(super) const TCP: IpNumber = IpNumber::TCP;
/// UDP (RFC 768).
pub(super) const UDP: IpNumber = IpNumber::UDP;
/// DCCP (RFC 4340).
pub(super) const DCCP: IpNumber = IpNumber::DCCP;

/// TCP flags, as [`Packet::tcp`] takes them.
pub(super) mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
}

/// An address and a port; of an ICMP query the identifier stands for the port.
pub(super) fn at(addr: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(addr, port)
}

/// An IPv4 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    /// Its header; the checksum is as on the wire.
    pub ip: Ipv4Header,
    /// All behind the header.
    pub body: Vec<u8>,
}

fn header(src: Ipv4Addr, dst: Ipv4Addr, protocol: IpNumber, len: usize) -> Ipv4Header {
    let len = u16::try_from(len).unwrap_or_else(|_| unreachable!("a test packet is short"));
    let mut ip = Ipv4Header::new(len, 64, protocol, src.octets(), dst.octets())
        .unwrap_or_else(|_| unreachable!("a test packet is short"));
    ip.dont_fragment = true;
    ip
}

/// RFC 1071, with what was summed before. Eight bytes at a time: floods of packets are sealed by this.
fn sum(before: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mut total = u128::from(before) + u128::from(u64::from_be_bytes(last));
    for word in words {
        total += u128::from(u64::from_be_bytes(*word));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u32
}

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |pair| u16::from_be_bytes([pair[0], pair[1]]))
}

impl Packet {
    fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: IpNumber, body: Vec<u8>) -> Packet {
        let mut packet = Packet { ip: header(src, dst, protocol, body.len()), body };
        packet.seal();
        packet
    }

    /// A UDP datagram.
    pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Packet {
        let udp = UdpHeader {
            source_port: from.port(),
            destination_port: to.port(),
            length: (SHORT_HEADER + payload.len()) as u16,
            checksum: 0,
        };
        let body = [&udp.to_bytes(), payload].concat();
        Packet::new(*from.ip(), *to.ip(), UDP, body)
    }

    /// A TCP segment.
    pub fn tcp(
        from: SocketAddrV4,
        to: SocketAddrV4,
        flags: u8,
        seq: u32,
        ack: u32,
        payload: &[u8],
    ) -> Packet {
        let mut header = TcpHeader::new(from.port(), to.port(), seq, 65_000);
        header.acknowledgment_number = ack;
        (header.fin, header.syn) = (flags & tcp::FIN != 0, flags & tcp::SYN != 0);
        (header.rst, header.psh) = (flags & tcp::RST != 0, flags & tcp::PSH != 0);
        header.ack = flags & tcp::ACK != 0;
        Packet::new(*from.ip(), *to.ip(), TCP, [&header.to_bytes(), payload].concat())
    }

    /// An ICMP message: `rest` are the bytes 4 to 7.
    pub fn icmp(src: Ipv4Addr, dst: Ipv4Addr, icmp_type: u8, code: u8, rest: [u8; 4], body: &[u8]) -> Packet {
        let head = [icmp_type, code, 0, 0];
        Packet::new(src, dst, ICMP, [&head, &rest, body].concat())
    }

    /// An echo request; the port of `from` is its identifier.
    pub fn echo(from: SocketAddrV4, to: Ipv4Addr) -> Packet {
        let id = from.port().to_be_bytes();
        Packet::icmp(*from.ip(), to, 8, 0, [id[0], id[1], 0, 1], b"abcdefgh")
    }

    /// An echo reply.
    pub fn echo_reply(from: Ipv4Addr, to: SocketAddrV4) -> Packet {
        let id = to.port().to_be_bytes();
        Packet::icmp(from, *to.ip(), 0, 0, [id[0], id[1], 0, 1], b"abcdefgh")
    }

    /// An ICMP error about `about`, as it was seen where the error comes from: to its source, with its header and
    /// the 8 bytes behind (RFC 792).
    pub fn error(from: Ipv4Addr, icmp_type: u8, code: u8, about: &Packet) -> Packet {
        Packet::error_quoting(from, icmp_type, code, about, SHORT_HEADER)
    }

    /// The same, quoting `bytes` behind the header.
    pub fn error_quoting(from: Ipv4Addr, icmp_type: u8, code: u8, about: &Packet, bytes: usize) -> Packet {
        let mut quoted = about.ip.to_bytes().to_vec();
        quoted.extend_from_slice(&about.body[..bytes.min(about.body.len())]);
        Packet::icmp(from, about.src_addr(), icmp_type, code, [0; 4], &quoted)
    }

    /// Any other protocol.
    pub fn other(src: Ipv4Addr, dst: Ipv4Addr, protocol: IpNumber, body: Vec<u8>) -> Packet {
        Packet::new(src, dst, protocol, body)
    }

    /// Reads a frame; `None` if it is no IPv4 packet.
    pub fn from_frame(frame: &[u8]) -> Option<Packet> {
        Packet::from_bytes(frame.get(LINK_BYTES..).filter(|_| word(frame, 12) == 0x0800)?)
    }

    /// Reads an IPv4 packet, or as much of it as a message quotes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Packet> {
        let (ip, rest) = Ipv4Header::from_slice(bytes).ok()?;
        let len = usize::from(ip.total_len).checked_sub(ip.header_len())?.min(rest.len());
        Some(Packet { body: rest[..len].to_vec(), ip })
    }

    /// The frame that goes to `mac`.
    pub fn frame(&self, mac: [u8; 6]) -> Vec<u8> {
        let link = [&mac[..], &[2, 0, 0, 0, 9, 9], &[8, 0]].concat();
        [&link[..], &self.ip.to_bytes(), &self.body].concat()
    }

    /// Makes length and checksums right, after a change.
    pub fn seal(&mut self) {
        self.ip.total_len = (self.ip.header_len() + self.body.len()) as u16;
        self.ip.header_checksum = self.ip.calc_header_checksum();
        let Some(place) = self.checksum_at().filter(|_| !self.is_fragment()) else { return };
        self.body[place..place + 2].fill(0);
        let value = match !(sum(self.pseudo(), &self.body) as u16) {
            // RFC 768: 0 says that there is none.
            0 if self.ip.protocol == UDP => 0xffff,
            value => value,
        };
        self.body[place..place + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn pseudo(&self) -> u32 {
        if self.ip.protocol == ICMP {
            return 0;
        }
        let addresses = sum(sum(0, &self.ip.source), &self.ip.destination);
        addresses + u32::from(self.ip.protocol.0) + self.body.len() as u32
    }

    /// Where the checksum of the upper layer is.
    fn checksum_at(&self) -> Option<usize> {
        let (place, least) = match self.ip.protocol {
            ICMP => (2, SHORT_HEADER),
            UDP | DCCP => (6, SHORT_HEADER),
            TCP => (16, 20),
            _ => return None,
        };
        (self.body.len() >= least).then_some(place)
    }

    /// What is wrong with its checksums.
    pub fn fault(&self) -> Option<&'static str> {
        if self.ip.header_checksum != self.ip.calc_header_checksum() {
            return Some("bad IP checksum");
        }
        let place = self.checksum_at().filter(|_| !self.is_fragment())?;
        let none = self.ip.protocol == UDP && word(&self.body, place) == 0;
        (!none && sum(self.pseudo(), &self.body) != 0xffff).then_some("bad checksum of the upper layer")
    }

    /// True for all fragments of a datagram.
    pub fn is_fragment(&self) -> bool {
        self.ip.more_fragments || self.ip.fragment_offset.value() != 0
    }

    /// Sender.
    pub fn src_addr(&self) -> Ipv4Addr {
        self.ip.source.into()
    }

    /// Receiver.
    pub fn dst_addr(&self) -> Ipv4Addr {
        self.ip.destination.into()
    }

    /// Sender with its port or identifier.
    pub fn src(&self) -> SocketAddrV4 {
        at(self.src_addr(), self.ports().0)
    }

    /// Receiver with its port or identifier.
    pub fn dst(&self) -> SocketAddrV4 {
        at(self.dst_addr(), self.ports().1)
    }

    fn ports(&self) -> (u16, u16) {
        match self.ip.protocol {
            ICMP => (word(&self.body, 4), word(&self.body, 4)),
            _ => (word(&self.body, 0), word(&self.body, 2)),
        }
    }

    /// Another sender.
    pub fn set_src(&mut self, src: SocketAddrV4) {
        self.ip.source = src.ip().octets();
        let place = if self.ip.protocol == ICMP { 4 } else { 0 };
        if let Some(port) = self.body.get_mut(place..place + 2) {
            port.copy_from_slice(&src.port().to_be_bytes());
        }
        self.seal();
    }

    /// Another receiver.
    pub fn set_dst(&mut self, dst: SocketAddrV4) {
        self.ip.destination = dst.ip().octets();
        let place = if self.ip.protocol == ICMP { 4 } else { 2 };
        if let Some(port) = self.body.get_mut(place..place + 2) {
            port.copy_from_slice(&dst.port().to_be_bytes());
        }
        self.seal();
    }

    /// What is in a UDP datagram or a TCP segment without options.
    pub fn payload(&self) -> &[u8] {
        let skip = if self.ip.protocol == TCP { 20 } else { SHORT_HEADER };
        self.body.get(skip..).unwrap_or(&[])
    }

    /// TCP flags.
    pub fn flags(&self) -> u8 {
        self.body.get(13).copied().unwrap_or(0)
    }

    /// Sequence and acknowledgment number.
    pub fn numbers(&self) -> (u32, u32) {
        let long = |at| u32::from(word(&self.body, at)) << 16 | u32::from(word(&self.body, at + 2));
        (long(4), long(8))
    }

    /// ICMP type and code.
    pub fn icmp_kind(&self) -> Option<(u8, u8)> {
        (self.ip.protocol == ICMP && self.body.len() >= SHORT_HEADER).then(|| (self.body[0], self.body[1]))
    }

    /// True for ICMP errors (RFC 1122 section 3.2.2).
    pub fn is_error(&self) -> bool {
        matches!(self.icmp_kind(), Some((3 | 4 | 5 | 11 | 12, _)))
    }

    /// The packet that an ICMP error quotes.
    pub fn quoted(&self) -> Option<Packet> {
        let bytes = self.body.get(SHORT_HEADER..).filter(|_| self.is_error())?;
        let (ip, rest) = Ipv4Header::from_slice(bytes).ok()?;
        Some(Packet { ip, body: rest.to_vec() })
    }

    /// Replaces the packet that an ICMP error quotes.
    #[cfg(any(test, feature = "sabotage"))]
    pub fn set_quoted(&mut self, quoted: &Packet) {
        self.body.truncate(SHORT_HEADER);
        self.body.extend_from_slice(&quoted.ip.to_bytes());
        self.body.extend_from_slice(&quoted.body);
        self.seal();
    }

    /// Cuts a datagram: fragments of `bytes` (a multiple of 8) and the rest.
    pub fn cut(&self, identification: u16, bytes: usize) -> Vec<Packet> {
        let mut fragments = Vec::new();
        for (index, part) in self.body.chunks(bytes).enumerate() {
            let mut fragment = Packet { ip: self.ip.clone(), body: part.to_vec() };
            fragment.ip.identification = identification;
            fragment.ip.dont_fragment = false;
            fragment.ip.more_fragments = (index + 1) * bytes < self.body.len();
            fragment.ip.fragment_offset = IpFragOffset::try_new((index * bytes / 8) as u16)
                .unwrap_or_else(|_| unreachable!("a test packet is short"));
            fragment.seal();
            fragments.push(fragment);
        }
        fragments
    }

    /// Puts fragments together again, as a receiver does; `None` if one is missing.
    pub fn join(fragments: &[Packet]) -> Option<Packet> {
        let mut sorted: Vec<&Packet> = fragments.iter().collect();
        sorted.sort_by_key(|fragment| fragment.ip.fragment_offset.value());
        let mut whole = Packet { ip: sorted.first()?.ip.clone(), body: Vec::new() };
        for fragment in &sorted {
            let same = fragment.ip.identification == whole.ip.identification
                && (fragment.ip.source, fragment.ip.destination) == (whole.ip.source, whole.ip.destination);
            if !same || usize::from(fragment.ip.fragment_offset.value()) * 8 != whole.body.len() {
                return None;
            }
            whole.body.extend_from_slice(&fragment.body);
        }
        if sorted.last()?.ip.more_fragments {
            return None;
        }
        whole.ip.more_fragments = false;
        whole.ip.total_len = (whole.ip.header_len() + whole.body.len()) as u16;
        whole.ip.header_checksum = whole.ip.calc_header_checksum();
        Some(whole)
    }

    /// One line, as tcpdump shows it.
    pub fn describe(&self) -> String {
        let mut text = format!("IP {}", self.summary(true));
        if let Some(fault) = self.fault() {
            text += &format!(" [{fault}]");
        }
        text
    }

    fn summary(&self, whole: bool) -> String {
        let ends = |ports: bool| match ports {
            true => format!(
                "{}.{} > {}.{}",
                self.src_addr(),
                self.src().port(),
                self.dst_addr(),
                self.dst().port()
            ),
            false => format!("{} > {}", self.src_addr(), self.dst_addr()),
        };
        let offset = usize::from(self.ip.fragment_offset.value()) * 8;
        let mut text = match self.ip.protocol {
            _ if offset > 0 => format!("{}: ip-proto-{}", ends(false), self.ip.protocol.0),
            UDP => {
                let len = usize::from(word(&self.body, 4)).saturating_sub(SHORT_HEADER);
                format!("{}: UDP, length {len}", ends(true))
            }
            TCP if self.body.len() >= 20 => {
                let (seq, ack) = self.numbers();
                let flags: String =
                    [(tcp::SYN, 'S'), (tcp::FIN, 'F'), (tcp::RST, 'R'), (tcp::PSH, 'P'), (tcp::ACK, '.')]
                        .iter()
                        .filter(|(flag, _)| self.flags() & flag != 0)
                        .map(|(_, letter)| letter)
                        .collect();
                let ack = if self.flags() & tcp::ACK != 0 { format!(", ack {ack}") } else { String::new() };
                format!("{}: Flags [{flags}], seq {seq}{ack}, length {}", ends(true), self.body.len() - 20)
            }
            TCP => format!("{}: tcp", ends(true)),
            ICMP if self.is_error() => {
                let (icmp_type, code) = self.icmp_kind().unwrap_or_default();
                let about =
                    self.quoted().filter(|_| whole).map(|quoted| format!(" about {}", quoted.summary(false)));
                format!("{}: ICMP {}{}", ends(false), error_name(icmp_type, code), about.unwrap_or_default())
            }
            ICMP => {
                let (icmp_type, code) = self.icmp_kind().unwrap_or_default();
                let name = match icmp_type {
                    0 => "echo reply".to_owned(),
                    8 => "echo request".to_owned(),
                    _ => format!("type {icmp_type} code {code}"),
                };
                format!("{}: ICMP {name}, id {}, length {}", ends(false), self.src().port(), self.body.len())
            }
            other => format!("{}: ip-proto-{}, length {}", ends(false), other.0, self.body.len()),
        };
        if self.is_fragment() {
            let more = if self.ip.more_fragments { "+" } else { "" };
            text += &format!(" (frag {}:{}@{offset}{more})", self.ip.identification, self.body.len());
        }
        text
    }
}

fn error_name(icmp_type: u8, code: u8) -> String {
    let name = match (icmp_type, code) {
        (3, 0) => "net unreachable",
        (3, 1) => "host unreachable",
        (3, 2) => "protocol unreachable",
        (3, 3) => "port unreachable",
        (3, 4) => "unreachable - need to frag",
        (3, 13) => "unreachable - admin prohibited filter",
        (4, _) => "source quench",
        (5, _) => "redirect",
        (11, _) => "time exceeded in-transit",
        (12, _) => "parameter problem",
        _ => "unreachable",
    };
    format!("{icmp_type}/{code} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 4000);
    const THERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 53);

    #[test]
    fn lines_read_like_tcpdump() {
        let udp = Packet::udp(HERE, THERE, b"abcd");
        assert_eq!(udp.describe(), "IP 192.0.2.1.4000 > 198.51.100.1.53: UDP, length 4");
        let syn = Packet::tcp(HERE, THERE, tcp::SYN | tcp::ACK, 7, 9, b"");
        assert_eq!(syn.describe(), "IP 192.0.2.1.4000 > 198.51.100.1.53: Flags [S.], seq 7, ack 9, length 0");
        assert_eq!(
            Packet::error(*THERE.ip(), 3, 3, &udp).describe(),
            "IP 198.51.100.1 > 192.0.2.1: ICMP 3/3 port unreachable about 192.0.2.1.4000 > 198.51.100.1.53: UDP, length 4"
        );
        let mut broken = udp;
        broken.body[9] ^= 1;
        assert_eq!(broken.fault(), Some("bad checksum of the upper layer"));
    }

    #[test]
    fn fragments_become_the_datagram_again() {
        let udp = Packet::udp(HERE, THERE, &[7; 100]);
        let mut fragments = udp.cut(5, 48);
        assert_eq!(fragments.len(), 3);
        assert_eq!(fragments[1].describe(), "IP 192.0.2.1 > 198.51.100.1: ip-proto-17 (frag 5:48@48+)");
        fragments.reverse();
        let whole = Packet::join(&fragments).expect("all are there");
        assert_eq!((whole.body.clone(), whole.fault()), (udp.body, None));
        assert_eq!(Packet::join(&fragments[1..]), None);
    }
}
