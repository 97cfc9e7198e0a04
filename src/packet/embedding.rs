//! IPv4 addresses inside an IPv6 prefix (RFC 6052).

use std::net::Ipv4Addr;

use ipnet::Ipv6Net;

/// Bits 64 to 71 of an address with an IPv4 address in it are zero (RFC 6052 section 2.2).
const RESERVED_AT: u8 = 64;

/// The prefix that everybody knows (RFC 6052 section 2.1).
const WELL_KNOWN: u128 = 0x0064_ff9b << 96;

/// A prefix that stands for all of IPv4: of 32, 40, 48, 56, 64 or 96 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedding {
    base: u128,
    len: u8,
}

impl Embedding {
    /// Lengths there are (RFC 6052 section 2.2).
    pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

    /// `None`: no such length, or the reserved bits of the prefix are not zero.
    pub fn new(prefix: Ipv6Net) -> Option<Embedding> {
        let base: u128 = prefix.network().into();
        let is_right = Embedding::LENGTHS.contains(&prefix.prefix_len()) && base >> 56 & 0xff == 0;
        is_right.then_some(Embedding { base, len: prefix.prefix_len() })
    }

    /// Bits of the IPv4 address in front of the reserved ones.
    fn in_front(self) -> u32 {
        u32::from(RESERVED_AT.saturating_sub(self.len)).min(32)
    }

    /// The IPv6 address of an IPv4 one.
    pub fn embed(self, addr: u32) -> u128 {
        if self.len == 96 {
            return self.base | u128::from(addr);
        }
        let front = self.in_front();
        let high = u64::from(addr) >> (32 - front);
        let low = u64::from(addr) & ((1 << (32 - front)) - 1);
        // Behind the prefix, and behind the reserved byte.
        let high = u128::from(high) << (128 - u32::from(self.len) - front);
        self.base | high | u128::from(low) << (56 - (32 - front))
    }

    /// The address behind the first `bits` of an IPv4 address, and how many bits those are here.
    pub fn embed_prefix(self, addr: u32, bits: u8) -> (u128, u8) {
        let reserved = if self.len < 96 && u32::from(bits) > self.in_front() { 8 } else { 0 };
        (self.embed(addr), self.len + bits + reserved)
    }

    /// True if the address has the prefix.
    pub fn contains(self, addr: u128) -> bool {
        (addr ^ self.base) >> (128 - self.len) == 0
    }

    /// The IPv4 address in an IPv6 one, whatever lies behind it (RFC 6052 section 2.3).
    pub fn extract(self, addr: u128) -> Option<u32> {
        if !self.contains(addr) {
            return None;
        }
        if self.len == 96 {
            return Some(addr as u32);
        }
        let front = self.in_front();
        let high = (addr >> (128 - u32::from(self.len) - front)) as u64 & ((1 << front) - 1);
        let low = (addr >> (56 - (32 - front))) as u64 & ((1 << (32 - front)) - 1);
        Some((high << (32 - front) | low) as u32)
    }

    /// RFC 6052 section 3.1: what only its own network knows has no place in the well-known prefix.
    pub fn may_hold(self, addr: Ipv4Addr) -> bool {
        let octets = addr.octets();
        let is_local = addr.is_private()
            || addr.is_loopback()
            || addr.is_link_local()
            || addr.is_documentation()
            || octets[0] == 100 && octets[1] & 0xc0 == 64
            || octets[0] == 198 && octets[1] & 0xfe == 18
            || octets[0] == 192 && octets[1] == 0 && octets[2] == 0;
        self.base != WELL_KNOWN || !is_local
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn embedding(prefix: &str) -> Embedding {
        Embedding::new(prefix.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_examples_of_rfc_6052_section_2_4() {
        let addr = u32::from(Ipv4Addr::new(192, 0, 2, 33));
        for (prefix, seen) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
        ] {
            let embedding = embedding(prefix);
            assert_eq!(Ipv6Addr::from(embedding.embed(addr)), seen.parse::<Ipv6Addr>().unwrap(), "{prefix}");
            assert_eq!(embedding.extract(embedding.embed(addr)), Some(addr));
            let (base, len) = embedding.embed_prefix(addr & !0xff, 24);
            let same = |addr: u32| (embedding.embed(addr) ^ base) >> (128 - len) == 0;
            assert!(same(addr) && same(addr ^ 0xff) && !same(addr ^ 0x100), "{prefix}: /{len}");
        }
    }

    #[test]
    fn the_well_known_prefix_is_not_for_addresses_of_one_network_only() {
        let private = Ipv4Addr::new(10, 1, 2, 3);
        assert!(!embedding("64:ff9b::/96").may_hold(private));
        assert!(embedding("64:ff9b::/96").may_hold(Ipv4Addr::new(1, 1, 1, 1)));
        assert!(embedding("2001:db8:64::/96").may_hold(private));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_and_the_reserved_bits_stay_zero(base: u128, at in 0usize..6, addr: u32) {
            let base = Ipv6Addr::from(base & !(0xff << 56));
            let net = Ipv6Net::new(base, Embedding::LENGTHS[at]).unwrap().trunc();
            let embedding = Embedding::new(net).unwrap();
            let seen = embedding.embed(addr);
            prop_assert!(net.contains(&Ipv6Addr::from(seen)));
            prop_assert_eq!(seen >> 56 & 0xff, 0);
            prop_assert_eq!(embedding.extract(seen), Some(addr));
        }
    }
}
