//! What a lookup compares: a rule's match packed for one address family, and the masks that cut rules
//! and packets down to the bits a table hashes.

use super::{Key, Match, Prefix};
use crate::packet::hash;

/// An address of one family as a number.
pub(super) trait Word: Copy + Default + Eq {
    /// Bits of an address.
    const BITS: u8;
    /// From the neutral 128 bits.
    fn of(addr: u128) -> Self;
    /// The first `len` bits set.
    fn mask(len: u8) -> Self;
    /// The bits that both have.
    fn and(self, mask: Self) -> Self;
    /// True if both share the first `len` bits.
    fn same(self, other: Self, len: u8) -> bool;
    /// Keyed hash of two addresses and the rest of a packet.
    fn hash(src: Self, dst: Self, tail: u64, key: hash::Key) -> u64;
}

impl Word for u32 {
    const BITS: u8 = 32;

    #[inline(always)]
    fn of(addr: u128) -> u32 {
        addr as u32
    }

    fn mask(len: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
    }

    #[inline(always)]
    fn and(self, mask: u32) -> u32 {
        self & mask
    }

    #[inline(always)]
    fn same(self, other: u32, len: u8) -> bool {
        // In 64 bits, because a length of 0 shifts by 32.
        u64::from(self ^ other) >> ((32 - len) & 63) == 0
    }

    #[inline(always)]
    fn hash(src: u32, dst: u32, tail: u64, key: hash::Key) -> u64 {
        hash::fold((u64::from(src) << 32 | u64::from(dst)) ^ key.0, tail ^ key.1)
    }
}

impl Word for u128 {
    const BITS: u8 = 128;

    #[inline(always)]
    fn of(addr: u128) -> u128 {
        addr
    }

    fn mask(len: u8) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
    }

    #[inline(always)]
    fn and(self, mask: u128) -> u128 {
        self & mask
    }

    #[inline(always)]
    fn same(self, other: u128, len: u8) -> bool {
        (self ^ other).checked_shr(128 - u32::from(len)).unwrap_or(0) == 0
    }

    #[inline(always)]
    fn hash(src: u128, dst: u128, tail: u64, key: hash::Key) -> u64 {
        let h = hash::fold((src >> 64) as u64 ^ key.0, src as u64 ^ key.1);
        let h = hash::fold((dst >> 64) as u64 ^ h, dst as u64 ^ key.0);
        hash::fold(h ^ key.1, tail ^ key.0)
    }
}

/// What is looked up, in one family.
#[derive(Clone, Copy)]
pub(super) struct Packet<'a, W> {
    pub src: W,
    pub dst: W,
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    pub src_sets: &'a [u16],
    pub dst_sets: &'a [u16],
}

impl<'a, W: Word> Packet<'a, W> {
    #[inline(always)]
    pub fn of(key: &Key<'a>) -> Packet<'a, W> {
        Packet {
            src: W::of(key.src),
            dst: W::of(key.dst),
            src_port: key.src_port,
            dst_port: key.dst_port,
            protocol: key.protocol,
            src_sets: key.src_sets,
            dst_sets: key.dst_sets,
        }
    }

    /// Ports and protocol as one number.
    #[inline(always)]
    pub fn tail(&self) -> u64 {
        tail(self.protocol, self.src_port, self.dst_port)
    }
}

#[inline(always)]
fn tail(protocol: u8, src_port: u16, dst_port: u16) -> u64 {
    u64::from(protocol) << 32 | u64::from(src_port) << 16 | u64::from(dst_port)
}

/// The record's rule does not ask for a protocol.
const ANY_PROTOCOL: u8 = 1;
/// The source has to be in a named group.
const SRC_SET: u8 = 2;
/// The destination has to be in a named group.
const DST_SET: u8 = 4;
/// No further record of the same group follows.
const LAST: u8 = 8;

/// A rule of one family. Aligned so that an IPv4 record never straddles two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Record<W> {
    src: W,
    dst: W,
    src_port: u16,
    src_width: u16,
    dst_port: u16,
    dst_width: u16,
    /// The rule's number, for ever; its position is looked up.
    pub id: u32,
    src_set: u16,
    dst_set: u16,
    src_len: u8,
    dst_len: u8,
    protocol: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Record<u32>>() == 32 && size_of::<Record<u128>>() == 64);

impl<W: Word> Record<W> {
    pub fn new(id: u32, rule: &Match) -> Record<W> {
        // A prefix of this family counts its bits from 0; "any" has none.
        let len = |prefix: &Prefix| prefix.len().saturating_sub(128 - W::BITS);
        let mut flags = 0;
        for (flag, set) in [
            (ANY_PROTOCOL, rule.protocol.is_none()),
            (SRC_SET, rule.src_set.is_some()),
            (DST_SET, rule.dst_set.is_some()),
        ] {
            flags |= if set { flag } else { 0 };
        }
        Record {
            src: W::of(rule.src.addr()),
            dst: W::of(rule.dst.addr()),
            src_port: rule.src_ports.first(),
            src_width: rule.src_ports.last() - rule.src_ports.first(),
            dst_port: rule.dst_ports.first(),
            dst_width: rule.dst_ports.last() - rule.dst_ports.first(),
            id,
            src_set: rule.src_set.unwrap_or(0),
            dst_set: rule.dst_set.unwrap_or(0),
            src_len: len(&rule.src),
            dst_len: len(&rule.dst),
            protocol: rule.protocol.unwrap_or(0),
            flags,
        }
    }

    #[inline(always)]
    pub fn matches(&self, packet: &Packet<'_, W>) -> bool {
        // One branch for all: which field differs is not predictable.
        let same = self.src.same(packet.src, self.src_len)
            & self.dst.same(packet.dst, self.dst_len)
            & (packet.src_port.wrapping_sub(self.src_port) <= self.src_width)
            & (packet.dst_port.wrapping_sub(self.dst_port) <= self.dst_width)
            & ((packet.protocol == self.protocol) | (self.flags & ANY_PROTOCOL != 0));
        same && (self.flags & (SRC_SET | DST_SET) == 0 || self.in_sets(packet))
    }

    fn in_sets(&self, packet: &Packet<'_, W>) -> bool {
        (self.flags & SRC_SET == 0 || packet.src_sets.contains(&self.src_set))
            && (self.flags & DST_SET == 0 || packet.dst_sets.contains(&self.dst_set))
    }

    #[inline(always)]
    pub fn is_last(&self) -> bool {
        self.flags & LAST != 0
    }

    pub fn set_last(&mut self, last: bool) {
        self.flags = self.flags & !LAST | if last { LAST } else { 0 };
    }

    /// The most specific mask that keeps all the rule says.
    pub fn mask(&self) -> Mask {
        // A range's common leading bits; all 16 for a single port.
        let port_len = |first: u16, width: u16| (first ^ (first + width)).leading_zeros() as u8;
        Mask {
            src_len: self.src_len,
            dst_len: self.dst_len,
            src_port_len: port_len(self.src_port, self.src_width),
            dst_port_len: port_len(self.dst_port, self.dst_width),
            protocol: self.flags & ANY_PROTOCOL == 0,
            src_set: self.flags & SRC_SET != 0,
            dst_set: self.flags & DST_SET != 0,
        }
    }
}

/// How much of each dimension a table hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Mask {
    pub src_len: u8,
    pub dst_len: u8,
    pub src_port_len: u8,
    pub dst_port_len: u8,
    pub protocol: bool,
    pub src_set: bool,
    pub dst_set: bool,
}

impl Mask {
    /// True if a rule that keeps `finer` can be found by hashing only what `self` keeps.
    pub fn holds(&self, finer: &Mask) -> bool {
        (self.src_len <= finer.src_len)
            & (self.dst_len <= finer.dst_len)
            & (self.src_port_len <= finer.src_port_len)
            & (self.dst_port_len <= finer.dst_port_len)
            & (self.protocol <= finer.protocol)
            & (self.src_set <= finer.src_set)
            & (self.dst_set <= finer.dst_set)
    }
}

/// A mask made ready for hashing.
#[derive(Clone, Copy)]
pub(super) struct Hasher<W> {
    src: W,
    dst: W,
    tail: u64,
    key: hash::Key,
    pub src_set: bool,
    pub dst_set: bool,
}

impl<W: Word> Hasher<W> {
    pub fn new(mask: &Mask, key: hash::Key) -> Hasher<W> {
        let port = |len: u8| u16::MAX.checked_shl(16 - u32::from(len)).unwrap_or(0);
        Hasher {
            src: W::mask(mask.src_len),
            dst: W::mask(mask.dst_len),
            tail: tail(
                if mask.protocol { u8::MAX } else { 0 },
                port(mask.src_port_len),
                port(mask.dst_port_len),
            ),
            key,
            src_set: mask.src_set,
            dst_set: mask.dst_set,
        }
    }

    /// The key that packets must not know.
    pub fn key(&self) -> hash::Key {
        self.key
    }

    /// Hash of a packet, without groups.
    #[inline(always)]
    pub fn packet(&self, src: W, dst: W, tail: u64) -> u64 {
        W::hash(src.and(self.src), dst.and(self.dst), tail & self.tail, self.key)
    }

    /// True if the hash is of named groups, too.
    #[inline(always)]
    pub fn of_sets(&self) -> bool {
        self.src_set | self.dst_set
    }

    /// Adds a pair of groups to the hash; 0 for the one that is not hashed.
    #[inline]
    pub fn with_sets(&self, hash: u64, src_set: u16, dst_set: u16) -> u64 {
        hash::fold(hash ^ self.key.0, (u64::from(src_set) << 16 | u64::from(dst_set)) ^ self.key.1)
    }

    /// Hash of a rule: that of every packet it matches, if the table's mask holds it.
    pub fn record(&self, record: &Record<W>) -> u64 {
        let hash =
            self.packet(record.src, record.dst, tail(record.protocol, record.src_port, record.dst_port));
        if !self.of_sets() {
            return hash;
        }
        let set = |hashed: bool, set: u16| if hashed { set } else { 0 };
        self.with_sets(hash, set(self.src_set, record.src_set), set(self.dst_set, record.dst_set))
    }
}
