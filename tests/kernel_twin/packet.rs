//! Frames of the twins: made byte by byte, checked by the plain definition of the checksums, and with what a NAT
//! chose put back to what it stands for. Nothing here is SoftGate's own code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ethernet header without tags.
pub const L2: usize = 14;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;

/// An address and a port, or the identifier of an ICMP query; other protocols have port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    pub addr: IpAddr,
    pub port: u16,
}

/// What stands in the IP header, besides addresses and protocol.
#[derive(Clone, Debug)]
pub struct Header {
    pub ttl: u8,
    pub tos: u8,
    pub df: bool,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
}

pub fn be16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([data[at], data[at + 1]])
}

fn put16(data: &mut [u8], at: usize, value: u16) {
    data[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The one's complement sum of RFC 1071, folded, of several pieces; each but the last has an even length.
fn sum(pieces: &[&[u8]]) -> u16 {
    let mut total = 0u64;
    for piece in pieces {
        for pair in piece.chunks(2) {
            total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// What goes before an upper header into its checksum.
fn pseudo(ip: &[u8], protocol: u8, len: usize) -> Vec<u8> {
    match (ip[0] >> 4, protocol) {
        (4, ICMP) => Vec::new(),
        (4, _) => [&ip[12..20], &[0, protocol], &(len as u16).to_be_bytes()].concat(),
        _ => [&ip[8..40], &(len as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat(),
    }
}

/// Where the checksum of a protocol stands in its header.
fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// Fills in the upper checksum of an IP packet; a computed 0 is sent as all ones by UDP (RFC 768).
pub fn fill_checksum(ip: &mut [u8]) {
    let (protocol, l4) = upper(ip);
    let Some(at) = checksum_at(protocol) else { return };
    if ip.len() < l4 + at + 2 {
        return;
    }
    put16(ip, l4 + at, 0);
    let total = !sum(&[&pseudo(ip, protocol, ip.len() - l4), &ip[l4..]]);
    put16(ip, l4 + at, if protocol == UDP && total == 0 { 0xffff } else { total });
}

/// Makes the upper checksum wrong, by the same amount whatever it is.
pub fn spoil_checksum(ip: &mut [u8]) {
    let (protocol, l4) = upper(ip);
    let Some(at) = checksum_at(protocol) else { return };
    let wrong = sum(&[&be16(ip, l4 + at).to_be_bytes(), &[0x11, 0x11]]);
    put16(ip, l4 + at, wrong);
}

/// Protocol and offset of the upper header. Of IPv6's extension headers there is only the fragment's, which counts
/// as one: nothing behind it is translated.
pub fn upper(ip: &[u8]) -> (u8, usize) {
    if ip[0] >> 4 == 4 { (ip[9], usize::from(ip[0] & 15) * 4) } else { (ip[6], 40) }
}

/// An IP packet without upper checksum, that `number` can be read from again ([`number_of`]).
pub fn ip_packet(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    header: &Header,
    number: u16,
    upper: &[u8],
) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = 20 + header.options.len();
            let mut ip = vec![0; 20];
            ip[0] = 0x40 | (len / 4) as u8;
            ip[1] = header.tos;
            put16(&mut ip, 2, (len + upper.len()) as u16);
            put16(&mut ip, 4, number);
            put16(&mut ip, 6, u16::from(header.df) << 14);
            ip[8] = header.ttl;
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&src.octets());
            ip[16..20].copy_from_slice(&dst.octets());
            ip.extend(&header.options);
            let total = !sum(&[&ip]);
            put16(&mut ip, 10, total);
            ip.extend(upper);
            ip
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut ip = vec![0; 40];
            let first = 6 << 28 | u32::from(header.tos) << 20 | u32::from(number);
            ip[..4].copy_from_slice(&first.to_be_bytes());
            put16(&mut ip, 4, upper.len() as u16);
            ip[6] = protocol;
            ip[7] = header.ttl;
            ip[8..24].copy_from_slice(&src.octets());
            ip[24..40].copy_from_slice(&dst.octets());
            ip.extend(upper);
            ip
        }
        _ => unreachable!("both addresses are of one family"),
    }
}

/// What [`ip_packet`] was given: the IPv4 identification or the lower half of the IPv6 flow label, both of which
/// a router leaves alone.
pub fn number_of(ip: &[u8]) -> u16 {
    if ip[0] >> 4 == 4 { be16(ip, 4) } else { be16(ip, 2) }
}

/// Cuts an IP packet into fragments of at most `most` bytes behind the IP header.
pub fn fragments(ip: &[u8], most: usize) -> Vec<Vec<u8>> {
    let (protocol, head) = upper(ip);
    let most = most / 8 * 8;
    let pieces: Vec<&[u8]> = ip[head..].chunks(most).collect();
    let count = pieces.len();
    if count == 1 {
        return vec![ip.to_vec()];
    }
    let cut = pieces.into_iter().enumerate().map(|(index, piece)| {
        let (more, at) = (index + 1 < count, (index * most / 8) as u16);
        if ip[0] >> 4 == 4 {
            let mut fragment = [&ip[..head], piece].concat();
            put16(&mut fragment, 2, (head + piece.len()) as u16);
            put16(&mut fragment, 6, u16::from(more) << 13 | at);
            fill_header_checksum(&mut fragment);
            fragment
        } else {
            // RFC 8200 section 4.5; the identification is the flow label.
            let place = (at << 3 | u16::from(more)).to_be_bytes();
            let mut fragment = [&ip[..head], &[protocol, 0], &place, &ip[..4], piece].concat();
            put16(&mut fragment, 4, (8 + piece.len()) as u16);
            fragment[6] = FRAGMENT;
            fragment
        }
    });
    cut.collect()
}

pub fn is_fragment(ip: &[u8]) -> bool {
    ip[0] >> 4 == 4 && be16(ip, 6) & 0x3fff != 0
}

/// Not atomic (RFC 6864 section 4.1): a fragment, or a datagram without DF.
pub fn may_be_cut(ip: &[u8]) -> bool {
    is_fragment(ip) || ip[0] >> 4 == 4 && be16(ip, 6) & 0x4000 == 0
}

pub fn fill_header_checksum(ip: &mut [u8]) {
    let head = usize::from(ip[0] & 15) * 4;
    put16(ip, 10, 0);
    let total = !sum(&[&ip[..head]]);
    put16(ip, 10, total);
}

/// Another identification of an IPv4 packet.
pub fn set_identification(ip: &mut [u8], identification: u16) {
    put16(ip, 4, identification);
    fill_header_checksum(ip);
}

/// Puts the identification that [`fragments`] gives into an IPv6 fragment.
pub fn restore_identification(ip: &mut [u8]) {
    if ip[0] >> 4 == 6 && ip[6] == FRAGMENT {
        ip.copy_within(..4, 44);
    }
}

/// Another TTL of an IPv4 packet.
pub fn set_ttl(ip: &mut [u8], ttl: u8) {
    ip[8] = ttl;
    fill_header_checksum(ip);
}

/// The Ethernet frame around an IP packet, with so many bytes of padding.
pub fn frame(src: [u8; 6], dst: [u8; 6], ip: &[u8], padding: usize) -> Vec<u8> {
    let kind: [u8; 2] = if ip[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&dst[..], &src, &kind, ip, &vec![0xee; padding]].concat()
}

/// Source or destination of an IP packet.
pub fn addr(ip: &[u8], which: Which) -> IpAddr {
    let (at, len) = addr_at(ip, which);
    match len {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("4 bytes")).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 bytes")).into(),
    }
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Src,
    Dst,
}

fn addr_at(ip: &[u8], which: Which) -> (usize, usize) {
    match (ip[0] >> 4, which) {
        (4, Which::Src) => (12, 4),
        (4, Which::Dst) => (16, 4),
        (_, Which::Src) => (8, 16),
        (_, Which::Dst) => (24, 16),
    }
}

/// Where the port of an end stands, if the packet has one there. The identifier of a query is the port of both.
fn port_at(ip: &[u8], which: Which) -> Option<usize> {
    let (protocol, l4) = upper(ip);
    if is_fragment(ip) && be16(ip, 6) & 0x1fff != 0 {
        return None;
    }
    let at = match (protocol, which) {
        (TCP | UDP, Which::Src) => l4,
        (TCP | UDP, Which::Dst) => l4 + 2,
        (ICMP | ICMPV6, Which::Src | Which::Dst) if !is_error(ip) => l4 + 4,
        _ => return None,
    };
    (ip.len() >= at + 2).then_some(at)
}

/// Source or destination with the port.
pub fn end(ip: &[u8], which: Which) -> End {
    End { addr: addr(ip, which), port: port_at(ip, which).map_or(0, |at| be16(ip, at)) }
}

/// True for ICMP errors, which quote a packet.
pub fn is_error(ip: &[u8]) -> bool {
    let (protocol, l4) = upper(ip);
    let kind = ip.get(l4).copied();
    match protocol {
        _ if is_fragment(ip) => false,
        ICMP => matches!(kind, Some(3 | 4 | 5 | 11 | 12)),
        ICMPV6 => matches!(kind, Some(1..=127)),
        _ => false,
    }
}

/// The packet that an ICMP error quotes.
pub fn quoted(ip: &[u8]) -> &[u8] {
    &ip[upper(ip).1 + 8..]
}

/// How long the packet is, as its header says: Ethernet padding may follow.
pub fn len(ip: &[u8]) -> usize {
    if ip[0] >> 4 == 4 { usize::from(be16(ip, 2)) } else { 40 + usize::from(be16(ip, 4)) }
}

/// What is wrong with lengths and checksums of a packet, quoted ones included.
pub fn faults(ip: &[u8]) -> Vec<String> {
    let mut wrong = Vec::new();
    let len = len(ip);
    if len != ip.len() {
        wrong.push(format!("{len} bytes in the header, {} in the frame", ip.len()));
    }
    check(ip, "", &mut wrong);
    if is_error(ip) {
        check(quoted(ip), "quoted ", &mut wrong);
    }
    wrong
}

fn check(ip: &[u8], what: &str, wrong: &mut Vec<String>) {
    let (protocol, l4) = upper(ip);
    if ip[0] >> 4 == 4 && (sum(&[&ip[..l4]]) != 0xffff || be16(ip, 10) == 0xffff) {
        wrong.push(format!("{what}IPv4 header checksum"));
    }
    let Some(at) = checksum_at(protocol).filter(|_| !is_fragment(ip) && len(ip) == ip.len()) else { return };
    if ip.len() < l4 + at + 2 {
        return;
    }
    let is = be16(ip, l4 + at);
    if protocol == UDP && is == 0 && ip[0] >> 4 == 4 {
        return;
    }
    // RFC 1624 section 3: all ones is no value that summing up gives, but UDP's word for 0 (RFC 768).
    let minus_zero = is == 0xffff && protocol != UDP;
    if sum(&[&pseudo(ip, protocol, ip.len() - l4), &ip[l4..]]) != 0xffff || minus_zero {
        wrong.push(format!("{what}checksum of protocol {protocol}"));
    }
}

/// Puts an end with its port in the place of another wherever it stands in a packet of this protocol, or in one
/// that an ICMP error quotes; mends the checksums by what changed, so that a wrong one stays wrong.
pub fn replace(ip: &mut [u8], protocol: u8, old: End, new: End) {
    if !is_error(ip) {
        if upper(ip).0 == protocol {
            [Which::Src, Which::Dst].into_iter().for_each(|which| replace_in(ip, which, old, new));
        }
        return;
    }
    let l4 = upper(ip).1;
    // An error has the address only.
    for which in [Which::Src, Which::Dst] {
        if addr(ip, which) == old.addr {
            replace_addr(ip, which, new.addr, None);
        }
    }
    if upper(&ip[l4 + 8..]).0 == protocol {
        [Which::Src, Which::Dst].into_iter().for_each(|which| replace_in(&mut ip[l4 + 8..], which, old, new));
    }
    // The error's own checksum covers the quoted packet: it was right, or `faults` has said so, and is again.
    fill_checksum(ip);
}

fn replace_in(ip: &mut [u8], which: Which, old: End, new: End) {
    let port = port_at(ip, which);
    if addr(ip, which) != old.addr || port.is_some_and(|at| be16(ip, at) != old.port) {
        // The identifier of a query belongs to one end, but stands for both.
        return;
    }
    let (protocol, l4) = upper(ip);
    let total = checksum_at(protocol).map(|at| l4 + at).filter(|at| {
        let first = port.is_some();
        first && ip.len() >= at + 2 && !(protocol == UDP && be16(ip, *at) == 0)
    });
    replace_addr(ip, which, new.addr, total.filter(|_| protocol != ICMP));
    if let Some(at) = port {
        put16(ip, at, new.port);
        if let Some(total) = total {
            let value = mended(be16(ip, total), old.port, new.port);
            put16(ip, total, value);
        }
    }
    if let Some(total) = total.filter(|at| protocol == UDP && be16(ip, *at) == 0) {
        put16(ip, total, 0xffff);
    }
}

fn replace_addr(ip: &mut [u8], which: Which, new: IpAddr, also: Option<usize>) {
    let (at, len) = addr_at(ip, which);
    let octets = match new {
        IpAddr::V4(new) => new.octets().to_vec(),
        IpAddr::V6(new) => new.octets().to_vec(),
    };
    for word in (0..len).step_by(2) {
        let (old, new) = (be16(ip, at + word), be16(&octets, word));
        put16(ip, at + word, new);
        let header = (len == 4).then_some(10);
        for total in [header, also].into_iter().flatten() {
            let value = mended(be16(ip, total), old, new);
            put16(ip, total, value);
        }
    }
}

/// RFC 1624 eqn. 3.
fn mended(total: u16, old: u16, new: u16) -> u16 {
    !sum(&[&(!total).to_be_bytes(), &(!old).to_be_bytes(), &new.to_be_bytes()])
}

/// True if there are whole IP headers where the functions here look for them.
pub fn is_readable(frame: &[u8]) -> bool {
    let whole = |ip: &[u8]| match ip.first().map(|first| first >> 4) {
        Some(4) => ip.len() >= 20 && ip[0] & 15 >= 5 && ip.len() >= upper(ip).1,
        Some(6) => ip.len() >= 40,
        _ => false,
    };
    let Some(ip) = frame.get(L2..).filter(|ip| whole(ip)) else { return false };
    !is_error(ip) || ip.get(upper(ip).1 + 8..).is_some_and(whole)
}

/// A packet in a line.
pub fn describe(frame: &[u8]) -> String {
    if !is_readable(frame) {
        return format!("unreadable: {frame:02x?}");
    }
    let mac = |at: usize| frame[at..at + 6].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let ip = &frame[L2..];
    let line = format!("{} > {} {} bytes: {}", mac(6), mac(0), frame.len(), describe_ip(ip));
    if is_error(ip) { format!("{line} quotes [{}]", describe_ip(quoted(ip))) } else { line }
}

/// Its IP packet.
pub fn describe_ip(ip: &[u8]) -> String {
    let (protocol, l4) = upper(ip);
    let (src, dst) = (end(ip, Which::Src), end(ip, Which::Dst));
    let (ttl, tos) = if ip[0] >> 4 == 4 { (ip[8], ip[1]) } else { (ip[7], ip[0] << 4 | ip[1] >> 4) };
    let more = match protocol {
        ICMP | ICMPV6 if ip.len() > l4 + 1 => format!("type {} code {}", ip[l4], ip[l4 + 1]),
        TCP if ip.len() >= l4 + 14 && !is_fragment(ip) => {
            let word = |at: usize| u32::from(be16(ip, at)) << 16 | u32::from(be16(ip, at + 2));
            format!("flags {:#04x} seq {} ack {}", ip[l4 + 13], word(l4 + 4), word(l4 + 8))
        }
        _ => String::new(),
    };
    let cut = if is_fragment(ip) { format!(" fragment {:#06x}", be16(ip, 6)) } else { String::new() };
    format!(
        "{}:{} > {}:{} protocol {protocol} ttl {ttl} tos {tos:#04x} id {}{cut} {more}",
        src.addr,
        src.port,
        dst.addr,
        dst.port,
        number_of(ip)
    )
}
