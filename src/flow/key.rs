//! What a flow is found by: the 5-tuple of one direction, in the VRF of the side its packets come in on.
//!
//! One code for both families: everything above is generic over [`Address`], so that IPv4 keys stay 16 bytes.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::FromZeros;

use crate::neighbours::{addr_key, v4_key};
use crate::packet::Family;
use crate::packet::hash::{self, Key};
use crate::packet::view::{array_mut, be32, be128};

/// An IP address as the flow table keeps it: a number in host order.
pub trait Address: Copy + Ord + FromZeros + Debug + Send + 'static {
    /// Its flows may lead to the other family: IPv6's table has IPv4 addresses too, mapped.
    const CROSSES: bool;
    /// The source address of an L3 header.
    fn src_of(l3: &[u8]) -> Self;
    /// The destination address of an L3 header.
    fn dst_of(l3: &[u8]) -> Self;
    /// The written-down hash of a tuple.
    fn hash(key: Key, tuple: &Tuple<Self>) -> u64;
    /// The source address of a header of this family, or of IPv4 if that has a place in this table.
    fn src_in(family: Family, l3: &[u8]) -> Self;
    /// The destination address, likewise.
    fn dst_in(family: Family, l3: &[u8]) -> Self;
    /// Any address that has a place in this table.
    fn neutral(addr: IpAddr) -> Option<Self>;
    /// As the standard library has it.
    fn ip(self) -> IpAddr;
    /// From the standard library's, if it is of this family.
    fn from_ip(addr: IpAddr) -> Option<Self>;
    /// Writes both addresses into an L3 header; its checksum is the caller's.
    fn write_addresses(l3: &mut [u8], src: Self, dst: Self);
    /// What a one's complement sum gains when `old` becomes `new`, unfolded (RFC 1624: ~m + m').
    fn difference(old: Self, new: Self) -> u64;
    /// The lower 32 bits: all of an IPv4 address.
    fn low(self) -> u32;
    /// True if both tuples are the same.
    fn same(a: &Tuple<Self>, b: &Tuple<Self>) -> bool;
}

/// The 5-tuple and VRF of one direction. For ICMP queries both ports are the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Slot of the VRF the packets come in on.
    pub vrf: u16,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
}

impl<A: Address> Tuple<A> {
    /// The tuple of packets that go back, in the VRF of the other side.
    pub fn reversed(&self, vrf: u16) -> Tuple<A> {
        Tuple { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, vrf, ..*self }
    }

    /// All of it but the addresses, as one word.
    #[inline(always)]
    fn tail(&self) -> u64 {
        u64::from(self.vrf) << 40
            | u64::from(self.protocol) << 32
            | u64::from(self.src_port) << 16
            | u64::from(self.dst_port)
    }

    /// The same in the order in which it lies in memory: one load, to compare.
    #[inline(always)]
    fn rest(&self) -> u64 {
        u64::from(self.src_port)
            | u64::from(self.dst_port) << 16
            | u64::from(self.vrf) << 32
            | u64::from(self.protocol) << 48
            | u64::from(self.zero) << 56
    }
}

impl Address for u32 {
    const CROSSES: bool = false;

    fn src_in(_: Family, l3: &[u8]) -> u32 {
        u32::src_of(l3)
    }

    fn dst_in(_: Family, l3: &[u8]) -> u32 {
        u32::dst_of(l3)
    }

    fn neutral(addr: IpAddr) -> Option<u32> {
        u32::from_ip(addr)
    }

    #[inline(always)]
    fn src_of(l3: &[u8]) -> u32 {
        be32(l3, 12)
    }

    #[inline(always)]
    fn dst_of(l3: &[u8]) -> u32 {
        be32(l3, 16)
    }

    #[inline(always)]
    fn hash(key: Key, tuple: &Tuple<u32>) -> u64 {
        hash::words_v4(key, u64::from(tuple.src) << 32 | u64::from(tuple.dst), tuple.tail())
    }

    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }

    fn from_ip(addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(addr) => Some(addr.into()),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn write_addresses(l3: &mut [u8], src: u32, dst: u32) {
        let both = u64::from(src) << 32 | u64::from(dst);
        array_mut::<8>(l3, 12).copy_from_slice(&both.to_be_bytes());
    }

    fn difference(old: u32, new: u32) -> u64 {
        u64::from(!old) + u64::from(new)
    }

    #[inline(always)]
    fn low(self) -> u32 {
        self
    }

    #[inline(always)]
    fn same(a: &Tuple<u32>, b: &Tuple<u32>) -> bool {
        let addrs = |tuple: &Tuple<u32>| u64::from(tuple.src) | u64::from(tuple.dst) << 32;
        addrs(a) == addrs(b) && a.rest() == b.rest()
    }
}

impl Address for u128 {
    const CROSSES: bool = true;

    fn src_in(family: Family, l3: &[u8]) -> u128 {
        if family == Family::Ipv4 { v4_key(be32(l3, 12)) } else { u128::src_of(l3) }
    }

    fn dst_in(family: Family, l3: &[u8]) -> u128 {
        if family == Family::Ipv4 { v4_key(be32(l3, 16)) } else { u128::dst_of(l3) }
    }

    fn neutral(addr: IpAddr) -> Option<u128> {
        Some(addr_key(addr))
    }

    #[inline(always)]
    fn src_of(l3: &[u8]) -> u128 {
        be128(l3, 8)
    }

    #[inline(always)]
    fn dst_of(l3: &[u8]) -> u128 {
        be128(l3, 24)
    }

    #[inline(always)]
    fn hash(key: Key, tuple: &Tuple<u128>) -> u64 {
        hash::words_v6(key, tuple.src, tuple.dst, tuple.tail())
    }

    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }

    fn from_ip(addr: IpAddr) -> Option<u128> {
        match addr {
            IpAddr::V4(_) => None,
            IpAddr::V6(addr) => Some(addr.into()),
        }
    }

    #[inline(always)]
    fn write_addresses(l3: &mut [u8], src: u128, dst: u128) {
        array_mut::<16>(l3, 8).copy_from_slice(&src.to_be_bytes());
        array_mut::<16>(l3, 24).copy_from_slice(&dst.to_be_bytes());
    }

    fn difference(old: u128, new: u128) -> u64 {
        // Words of 32 bits: eight of them cannot overflow the sum.
        let words = |addr: u128| (0..4).map(move |word| u64::from((addr >> (32 * word)) as u32));
        words(!old).sum::<u64>() + words(new).sum::<u64>()
    }

    #[inline(always)]
    fn low(self) -> u32 {
        self as u32
    }

    #[inline(always)]
    fn same(a: &Tuple<u128>, b: &Tuple<u128>) -> bool {
        (a.src ^ b.src) | (a.dst ^ b.dst) == 0 && a.tail() == b.tail()
    }
}
