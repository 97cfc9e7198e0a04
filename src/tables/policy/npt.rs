//! NPTv6 (RFC 6296): an inside and an outside IPv6 prefix, each address of one is an address of the other. The
//! checksum over both is the same, so that no upper-layer header changes, whatever the protocol.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::Asked;
use super::groups::Groups;
use super::nat::Side;
use crate::packet::checksum;

/// Bits 48 to 63, which mend the checksum behind a prefix of 48 bits or less (RFC 6296 section 3.4).
const SUBNET_WORD: u32 = 3;
/// The words of the interface identifier, in the order in which they are asked behind a longer one (section 3.5).
const IDENTIFIER_WORDS: std::ops::RangeInclusive<u32> = 4..=7;
const NO_MAPPING: u16 = 0xffff;

/// The address is in a prefix and has no other in the other one (RFC 6296 sections 3.2 and 3.7): its subnet is 0xffff, its
/// interface identifier is all ones or all zeros, or it is in the part of the shorter prefix that the longer one has
/// no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untranslatable;

/// Two prefixes that stand for each other.
#[derive(Clone, Copy, Debug)]
struct Pair {
    inside: Ipv6Net,
    outside: Ipv6Net,
    /// The longer of the two lengths: the shorter prefix is extended with zeros (section 3.1).
    len: u8,
    /// What a sum gains that has `inside` in place of `outside`, one's complement.
    adjustment: u16,
}

fn network(addr: u128, len: u8) -> u128 {
    addr & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

fn sum_of(prefix: u128) -> u16 {
    checksum::fold(checksum::add(0, &prefix.to_be_bytes()))
}

fn word(addr: u128, at: u32) -> u16 {
    (addr >> (112 - 16 * at)) as u16
}

impl Pair {
    fn new(inside: Ipv6Net, outside: Ipv6Net) -> Pair {
        let [to, from] = [inside, outside].map(|net| sum_of(net.network().into()));
        let adjustment = checksum::fold(u64::from(to) + u64::from(!from));
        Pair { inside, outside, len: inside.prefix_len().max(outside.prefix_len()), adjustment }
    }

    fn outward(&self, addr: u128) -> Result<u128, Untranslatable> {
        self.moved(addr, self.inside, self.outside, self.adjustment)
    }

    fn inward(&self, addr: u128) -> Result<u128, Untranslatable> {
        self.moved(addr, self.outside, self.inside, !self.adjustment)
    }

    fn moved(&self, addr: u128, from: Ipv6Net, to: Ipv6Net, gain: u16) -> Result<u128, Untranslatable> {
        let (old, new): (u128, u128) = (from.network().into(), to.network().into());
        if network(addr, self.len) != old {
            return Err(Untranslatable);
        }
        let at = if self.len <= 48 {
            Some(SUBNET_WORD).filter(|at| word(addr, *at) != NO_MAPPING)
        } else if addr as u64 == 0 {
            None
        } else {
            IDENTIFIER_WORDS.into_iter().find(|at| word(addr, *at) != NO_MAPPING)
        };
        let at = at.ok_or(Untranslatable)?;
        let mended = match checksum::fold(u64::from(word(addr, at)) + u64::from(gain)) {
            0xffff => 0,
            mended => mended,
        };
        let shift = 112 - 16 * at;
        let rest = addr & !network(u128::MAX, self.len) & !(0xffff << shift);
        // The prefix may reach into the word in front of the one that is mended, never into that one itself.
        Ok(new | rest | u128::from(mended) << shift)
    }
}

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pair: Pair,
    /// VRF slot of the outside.
    vrf: u16,
    /// VRF slot of the inside.
    inside_vrf: u16,
    /// Which sessions from inside; `None`: all that leave their zone.
    to: Option<Side>,
    /// NAT rule slot.
    slot: u16,
}

impl Rule {
    /// `vrfs`: slots of the outside and the inside.
    pub fn new(inside: Ipv6Net, outside: Ipv6Net, vrfs: (u16, u16), to: Option<Side>, slot: u16) -> Rule {
        Rule { pair: Pair::new(inside.trunc(), outside.trunc()), vrf: vrfs.0, inside_vrf: vrfs.1, to, slot }
    }

    fn has_inside(&self, vrf: u16, addr: u128) -> bool {
        self.inside_vrf == vrf && self.pair.inside.contains(&Ipv6Addr::from(addr))
    }

    fn has_outside(&self, vrf: u16, addr: u128) -> bool {
        self.vrf == vrf && self.pair.outside.contains(&Ipv6Addr::from(addr))
    }
}

/// The other address and its VRF and NAT rule slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Other {
    pub addr: u128,
    pub vrf: u16,
    pub rule: u16,
}

/// All rules: a few ([`crate::config::Nat::MAX_NPTV6`]), asked in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes(Vec<Rule>);

impl Prefixes {
    pub fn push(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    /// True if the address is in an outside prefix.
    pub fn has(&self, vrf: u16, addr: u128) -> bool {
        self.0.iter().any(|rule| rule.has_outside(vrf, addr))
    }

    /// Where an outside address leads.
    pub fn destination(&self, vrf: u16, addr: u128) -> Result<Option<Other>, Untranslatable> {
        let Some(rule) = self.0.iter().find(|rule| rule.has_outside(vrf, addr)) else { return Ok(None) };
        let addr = rule.pair.inward(addr)?;
        Ok(Some(Other { addr, vrf: rule.inside_vrf, rule: rule.slot }))
    }

    /// The outside address of the session's source.
    pub fn source(&self, asked: &Asked<'_>, groups: &Groups) -> Result<Option<Other>, Untranslatable> {
        let question = asked.question;
        let is_meant = |rule: &&Rule| {
            rule.has_inside(question.vrf, asked.src)
                && asked.to_vrf == rule.vrf
                && match &rule.to {
                    None => asked.from_zone != asked.to_zone,
                    Some(to) => to.is(groups, question.dst, asked.to_zone, asked.egress, asked.to_vrf),
                }
        };
        outside(self.0.iter().find(is_meant), asked.src)
    }

    /// The outside address of a host, whatever the session.
    pub fn outside_of(&self, vrf: u16, addr: u128) -> Result<Option<Other>, Untranslatable> {
        outside(self.0.iter().find(|rule| rule.has_inside(vrf, addr)), addr)
    }

    /// The outside address of a router inside, to those who know another host of its prefix as `peer`.
    pub fn router_outside(&self, vrf: u16, router: u128, peer: u128) -> Option<u128> {
        let is_meant = |rule: &&Rule| rule.has_inside(vrf, router) && rule.has_outside(rule.vrf, peer);
        self.0.iter().find(is_meant)?.pair.outward(router).ok()
    }
}

fn outside(rule: Option<&Rule>, addr: u128) -> Result<Option<Other>, Untranslatable> {
    let Some(rule) = rule else { return Ok(None) };
    Ok(Some(Other { addr: rule.pair.outward(addr)?, vrf: rule.vrf, rule: rule.slot }))
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    fn pair(inside: &str, outside: &str) -> Pair {
        Pair::new(inside.parse().unwrap(), outside.parse().unwrap())
    }

    fn addr(text: &str) -> u128 {
        text.parse::<Ipv6Addr>().unwrap().into()
    }

    fn there_and_back(pair: &Pair, inside: &str, outside: &str) {
        assert_eq!(pair.outward(addr(inside)).map(Ipv6Addr::from), Ok(outside.parse().unwrap()));
        assert_eq!(pair.inward(addr(outside)).map(Ipv6Addr::from), Ok(inside.parse().unwrap()));
    }

    #[test]
    fn the_example_of_rfc_6296_section_3_6() {
        let pair = pair("fd01:203:405::/48", "2001:db8:1::/48");
        there_and_back(&pair, "fd01:203:405:1::1234", "2001:db8:1:d550::1234");
        assert_eq!(pair.outward(addr("fd01:203:405:ffff::1")), Err(Untranslatable));
        assert_eq!(pair.inward(addr("2001:db8:1:ffff::1")), Err(Untranslatable));
    }

    #[test]
    fn a_longer_prefix_is_mended_in_the_first_word_of_the_identifier_that_is_not_all_ones() {
        // fd00:: sums to fd00, 2001:db8:0:100:: to 2eb9: the adjustment is fd00 - 2eb9 = ce47.
        let pair = pair("fd00::/56", "2001:db8:0:100::/56");
        there_and_back(&pair, "fd00:0:0:7::1", "2001:db8:0:107:ce47::1");
        there_and_back(&pair, "fd00:0:0:7:ffff::1", "2001:db8:0:107:ffff:ce47:0:1");
        there_and_back(&pair, "fd00:0:0:7:ffff:ffff:ffff:1", "2001:db8:0:107:ffff:ffff:ffff:ce48");
        for none in ["fd00:0:0:7:ffff:ffff:ffff:ffff", "fd00:0:0:7::"] {
            assert_eq!(pair.outward(addr(none)), Err(Untranslatable), "section 3.7");
        }
    }

    #[test]
    fn of_the_shorter_prefix_only_what_the_longer_has_room_for() {
        let pair = pair("fd00::/48", "2001:db8:0:100::/56");
        there_and_back(&pair, "fd00:0:0:7::1", "2001:db8:0:107:ce47::1");
        assert_eq!(pair.outward(addr("fd00:0:0:107::1")), Err(Untranslatable));
    }

    proptest! {
        #[test]
        fn what_goes_out_comes_back_and_the_sum_stays(
            inside: u128, outside: u128, host: u128, lens in (1u8..=64, 1u8..=64), ones in 0u8..8,
        ) {
            let net = |addr: u128, len| Ipv6Net::new(addr.into(), len).unwrap().trunc();
            let pair = Pair::new(net(inside, lens.0), net(outside, lens.1));
            let host = host | (0..8).filter(|at| ones >> at & 1 == 1).fold(0, |all, at| all | 0xffff << (16 * at));
            let base: u128 = pair.inside.network().into();
            let src = base | host & !network(u128::MAX, pair.len);
            if let Ok(seen) = pair.outward(src) {
                prop_assert!(pair.outside.contains(&Ipv6Addr::from(seen)));
                prop_assert_eq!(sum_of(seen) % 0xffff, sum_of(src) % 0xffff, "section 2.6");
                prop_assert_eq!(pair.inward(seen), Ok(src));
            }
        }
    }
}
