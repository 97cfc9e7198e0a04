//! What makes frames of random bytes worth receiving: right lengths and checksums, and many that differ in little.

use softgate::packet::checksum;

pub fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1])
}

/// Where the IP header begins, behind up to two tags.
fn l3(frame: &[u8]) -> usize {
    let mut l3 = 14;
    while matches!(be16(frame, l3 - 2), 0x8100 | 0x88a8) && l3 < 22 {
        l3 += 4;
    }
    l3
}

/// What [`mend`] does.
mod flag {
    /// The gateway's MAC address as destination.
    pub const MAC: u8 = 0x10;
    /// IPv4 and IPv6 lengths as long as the frame.
    pub const LENGTH: u8 = 0x20;
    /// IPv4 header checksum.
    pub const CHECKSUM: u8 = 0x40;
    /// ICMP and ICMPv6 checksum, where it directly follows the IP header.
    pub const ICMP: u8 = 0x80;
}

/// A record is too short for the options of a DHCP message: those in its field `sname` stand behind the cookie as well.
fn mend_dhcp(udp: &mut [u8]) {
    const MESSAGE: usize = 8;
    if udp.len() >= MESSAGE + 304 && be16(udp, 2) == 67 {
        udp.copy_within(MESSAGE + 44..MESSAGE + 108, MESSAGE + 240);
        udp[MESSAGE + 236..MESSAGE + 240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        udp[6..8].fill(0);
    }
}

/// Lets bytes that are nearly right through the first checks, which random ones hardly ever pass.
pub fn mend(frame: &mut [u8], flags: u8) {
    if frame.len() < 14 + 20 {
        return;
    }
    if flags & flag::MAC != 0 {
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    }
    let l3 = l3(frame);
    let kind = be16(frame, l3 - 2);
    let ip = &mut frame[l3..];
    if kind == 0x0800 && ip.len() >= 20 {
        if flags & flag::LENGTH != 0 {
            let len = ip.len() as u16;
            ip[2..4].copy_from_slice(&len.to_be_bytes());
        }
        let header_len = usize::from(ip[0] & 15) * 4;
        if !(20..=ip.len()).contains(&header_len) {
            return;
        }
        if flags & flag::CHECKSUM != 0 {
            ip[10..12].fill(0);
            let sum = checksum::of(&ip[..header_len]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let end = be16(ip, 2).min(ip.len());
        if flags & flag::ICMP != 0 && ip[9] == 17 && end >= header_len {
            mend_dhcp(&mut ip[header_len..end]);
        }
        if ip[9] == 17 && end >= header_len {
            mend_tunnelled(&mut ip[header_len..end], flags);
        }
        if flags & flag::ICMP != 0 && ip[9] == 1 && end >= header_len + 8 {
            let message = &mut ip[header_len..end];
            message[2..4].fill(0);
            let sum = checksum::of(message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    } else if kind == 0x86dd && ip.len() >= 48 {
        if flags & flag::LENGTH != 0 {
            let len = (ip.len() - 40) as u16;
            ip[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let end = (40 + be16(ip, 4)).min(ip.len());
        if ip[6] == 17 {
            mend_tunnelled(&mut ip[40..end], flags);
        }
        if flags & flag::ICMP != 0 && ip[6] == 58 && end >= 48 {
            ip[42..44].fill(0);
            let address = |at: usize| *ip[at..].first_chunk::<16>().expect("40 bytes are there");
            let pseudo = checksum::pseudo_v6(&address(8), &address(24), 58, end - 40);
            let sum = !checksum::fold(checksum::add(pseudo, &ip[40..end]));
            ip[42..44].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// The same for the frame in a VXLAN packet, and the length of the datagram it is in.
fn mend_tunnelled(udp: &mut [u8], flags: u8) {
    const HEADERS: usize = 16;
    if udp.len() < HEADERS || be16(udp, 2) != 4789 {
        return;
    }
    if flags & flag::LENGTH != 0 {
        let len = udp.len() as u16;
        udp[4..6].copy_from_slice(&len.to_be_bytes());
    }
    mend(&mut udp[HEADERS..], flags & !flag::MAC);
}

/// What the `n`-th of many frames has of its own.
mod own {
    /// IPv4 identification, or that of the fragment header.
    pub const IDENTIFICATION: u8 = 0;
    /// The source port, or whatever else the payload begins with.
    pub const SOURCE_PORT: u8 = 1;
    /// The fragment offset: each behind the one before.
    pub const OFFSET: u8 = 2;
    /// The destination port.
    pub const DESTINATION_PORT: u8 = 3;
    /// The last word of the source address. All others as well.
    pub const SOURCE: u8 = 4;
}

/// Makes the frame the `n`-th of those that differ in `what`.
pub fn vary(frame: &mut [u8], what: u8, n: u16) {
    if frame.len() < 14 + 20 {
        return;
    }
    let l3 = l3(frame);
    let is_v6 = be16(frame, l3 - 2) == 0x86dd;
    let ip = &mut frame[l3..];
    if ip.len() < 20 {
        return;
    }
    let header_len = if is_v6 { 40 } else { usize::from(ip[0] & 15) * 4 };
    if ip.len() < header_len + 8 {
        return;
    }
    let (at, step) = match (what, is_v6) {
        (own::IDENTIFICATION, false) => (4, 1),
        (own::IDENTIFICATION, true) => (header_len + 6, 1),
        (own::OFFSET, false) => (6, (ip.len() - header_len) as u16 / 8),
        (own::OFFSET, true) => (header_len + 2, (ip.len() - header_len - 8) as u16 & !7),
        (own::SOURCE_PORT, _) => (header_len, 1),
        (own::DESTINATION_PORT, _) => (header_len + 2, 1),
        (own::SOURCE | _, false) => (14, 1),
        (own::SOURCE | _, true) => (22, 1),
    };
    let value = (be16(ip, at) as u16).wrapping_add(n.wrapping_mul(step));
    ip[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
