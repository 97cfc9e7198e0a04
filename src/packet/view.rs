//! Reading and writing header fields at an offset. Lengths are checked once, by the parse stages.

/// The big-endian 16-bit word at `at`.
#[inline]
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian 32-bit word at `at`.
#[inline]
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*array(bytes, at))
}

/// The big-endian 128-bit word at `at`.
#[inline]
pub fn be128(bytes: &[u8], at: usize) -> u128 {
    u128::from_be_bytes(*array(bytes, at))
}

/// `N` bytes at `at`.
///
/// # Panics
/// If they are not there: callers have checked the length at the boundary.
#[inline]
pub fn array<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().expect("length was checked at the boundary")
}

/// `N` bytes at `at`, for writing.
///
/// # Panics
/// As [`array`].
#[inline]
pub fn array_mut<const N: usize>(bytes: &mut [u8], at: usize) -> &mut [u8; N] {
    bytes[at..].first_chunk_mut().expect("length was checked at the boundary")
}

/// EtherTypes.
pub mod ethertype {
    /// IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// Reverse ARP (RFC 903).
    pub const RARP: u16 = 0x8035;
    /// IPv6 (RFC 2464).
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad service tag, the outer one of a QinQ pair.
    pub const QINQ: u16 = 0x88a8;
}

/// IP protocol numbers.
pub mod protocol {
    /// Hop-by-hop options (IPv6 extension header).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP (RFC 3376).
    pub const IGMP: u8 = 2;
    /// IPv4 in IP (RFC 2003).
    pub const IPV4: u8 = 4;
    /// PIM (RFC 7761).
    pub const PIM: u8 = 103;
    /// TCP.
    pub const TCP: u8 = 6;
    /// DCCP (RFC 4340).
    pub const DCCP: u8 = 33;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473, RFC 4213).
    pub const IPV6: u8 = 41;
    /// Routing header (IPv6 extension header).
    pub const ROUTING: u8 = 43;
    /// Fragment header (IPv6 extension header).
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// Encapsulating security payload.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Destination options (IPv6 extension header).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// VRRP (RFC 9568).
    pub const VRRP: u8 = 112;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// Mobility header (IPv6 extension header).
    pub const MOBILITY: u8 = 135;
}
