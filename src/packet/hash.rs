//! The written-down keyed hash: for everything nodes, versions or runs must agree on (flows, shards,
//! ECMP, Maglev, tunnel ports). Process-local maps use `ahash`.
//!
//! Definition. `fold(a, b)` is the 128-bit product of `a` and `b`, its upper half XORed with its lower.
//! A 5-tuple is hashed as, with all words big-endian integers and the key (k0, k1) of the config:
//!
//! ```text
//! IPv4: h = fold(src << 32 | dst        ^ k0, tail ^ k1)
//! IPv6: h = fold(src_hi ^ k0, src_lo ^ k1); h = fold(dst_hi ^ h, dst_lo ^ k0); h = fold(h ^ k1, tail ^ k0)
//! result = fold(h ^ k0, 0x9e3779b97f4a7c15)     tail = protocol << 32 | src_port << 16 | dst_port
//! ```
//!
//! Flow keys add the VRF: tail = vrf << 40 | protocol << 32 | ...
//!
//! A fragment hashes with both ports 0, so that all fragments of a datagram agree.

use super::Family;

/// Key of the hash, from `system.key` of the config; attackers must not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub u64, pub u64);

impl Default for Key {
    /// The documented default, for replay and for configs without a key: digits of pi.
    fn default() -> Key {
        Key(0x2436_a885_308d_3132, 0x1319_8a2e_0370_7344)
    }
}

const FINISH: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

#[inline]
fn tail(protocol: u8, src_port: u16, dst_port: u16) -> u64 {
    u64::from(protocol) << 32 | u64::from(src_port) << 16 | u64::from(dst_port)
}

/// Hash of an IPv4 5-tuple.
#[inline]
pub fn tuple_v4(key: Key, src: u32, dst: u32, protocol: u8, ports: (u16, u16)) -> u64 {
    words_v4(key, u64::from(src) << 32 | u64::from(dst), tail(protocol, ports.0, ports.1))
}

/// [`tuple_v4`] over `src << 32 | dst` and a tail that may hold more above bit 40 (flow keys: the VRF).
#[inline(always)]
pub fn words_v4(key: Key, addrs: u64, tail: u64) -> u64 {
    let h = fold(addrs ^ key.0, tail ^ key.1);
    fold(h ^ key.0, FINISH)
}

/// Hash of an IPv6 5-tuple.
#[inline]
pub fn tuple_v6(key: Key, src: u128, dst: u128, protocol: u8, ports: (u16, u16)) -> u64 {
    words_v6(key, src, dst, tail(protocol, ports.0, ports.1))
}

/// [`tuple_v6`] with a tail that may hold more above bit 40 (flow keys: the VRF).
#[inline(always)]
pub fn words_v6(key: Key, src: u128, dst: u128, tail: u64) -> u64 {
    let h = fold((src >> 64) as u64 ^ key.0, src as u64 ^ key.1);
    let h = fold((dst >> 64) as u64 ^ h, dst as u64 ^ key.0);
    let h = fold(h ^ key.1, tail ^ key.0);
    fold(h ^ key.0, FINISH)
}

/// Hash of one address and a small number (an interface, a bucket): neighbours, next hops, rate buckets.
#[inline]
pub fn address(key: Key, addr: u128, salt: u32) -> u64 {
    let h = fold((addr >> 64) as u64 ^ key.0, addr as u64 ^ key.1);
    fold(h ^ key.0, u64::from(salt) ^ FINISH)
}

/// Hash of an IP packet's 5-tuple, read from its L3 header; `ports` are (0, 0) for fragments.
#[inline]
pub fn of_packet(key: Key, family: Family, l3: &[u8], protocol: u8, ports: (u16, u16)) -> u64 {
    match family {
        Family::Ipv4 => tuple_v4(key, super::view::be32(l3, 12), super::view::be32(l3, 16), protocol, ports),
        Family::Ipv6 => tuple_v6(key, super::view::be128(l3, 8), super::view::be128(l3, 24), protocol, ports),
        Family::Other => 0,
    }
}

/// What stands for a name between nodes: FNV-1a of 32 bits (draft-eastlake-fnv). It has no key: nobody chooses names but
/// the operator, and the config check sees to it that no two are the same.
pub fn name(name: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    name.bytes().fold(0x811c_9dc5, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// draft-eastlake-fnv, appendix C.
    #[test]
    fn names_are_hashed_as_written_down() {
        for (text, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(name(text), hash, "{text}");
        }
    }

    /// Computed by hand-written Python from the definition above (`tests/hash_vectors.py`).
    #[test]
    fn vectors() {
        let key = Key::default();
        assert_eq!(tuple_v4(key, 0xc000_0201, 0xc633_6401, 17, (4000, 53)), VECTORS[0]);
        assert_eq!(tuple_v4(Key(1, 2), 0x0a00_0001, 0x1400_0001, 6, (1024, 1234)), VECTORS[1]);
        assert_eq!(tuple_v6(key, 0x2001_0db8 << 96 | 1, 0x2001_0db8 << 96 | 2, 6, (443, 50000)), VECTORS[2]);
        assert_eq!(address(key, 0xffff_c000_0201, 7), VECTORS[3]);
    }

    const VECTORS: [u64; 4] =
        [0xde38_0bc2_4b85_2704, 0xa119_893f_c844_9c69, 0xbf81_aca4_ff43_aff6, 0xf76e_dd92_55de_88a3];

    #[test]
    fn one_bit_of_input_moves_about_half_of_the_output() {
        let key = Key::default();
        let base = tuple_v4(key, 0x0a00_0001, 0x1400_0001, 17, (1024, 1234));
        let mut moved = 0;
        for bit in 0..32 {
            moved +=
                (base ^ tuple_v4(key, 0x0a00_0001 ^ 1 << bit, 0x1400_0001, 17, (1024, 1234))).count_ones();
        }
        assert!((24 * 32..40 * 32).contains(&moved), "{moved} of 2048 bits moved");
    }
}
