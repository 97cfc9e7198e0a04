//! NAT64 (RFC 6146): who may reach IPv4 by which prefix, and what rules say of that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::groups::Groups;
use super::nat::Side;
use super::rules::Line;
use super::{Asked, SourceNat};
use crate::packet::Embedding;
use crate::packet::view::protocol;
use crate::tables::classify::{Match, Prefix};

/// Why NAT64 does not take a packet to its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// From its own prefix: it would go round (RFC 6146 section 5.2).
    Loop,
    /// A protocol other than TCP, UDP and ICMP echo (RFC 6146 section 3.4).
    Protocol,
    /// The IPv4 address is none to send to.
    Address,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where IPv4 addresses stand.
    pub prefix: Embedding,
    /// Who may use it.
    pub(super) from: Side,
    /// VRF slot of IPv4.
    pub vrf: u16,
    /// Index of the pool.
    pub pool: u16,
    /// NAT rule slot.
    pub slot: u16,
}

impl Rule {
    /// True if the host behind this zone, interface and VRF may use it.
    pub(super) fn is_for(&self, groups: &Groups, addr: IpAddr, zone: u8, interface: u16, vrf: u16) -> bool {
        self.from.is(groups, addr, zone, interface, vrf)
    }

    /// The IPv4 destination of a packet from inside.
    pub(super) fn destination(&self, asked: &Asked<'_>, rules: &[Rule]) -> Result<Ipv4Addr, NotTaken> {
        if rules.iter().any(|rule| rule.prefix.contains(asked.src)) {
            return Err(NotTaken::Loop);
        }
        if !matches!(asked.question.protocol, protocol::TCP | protocol::UDP | protocol::ICMPV6) {
            return Err(NotTaken::Protocol);
        }
        let addr = Ipv4Addr::from(self.prefix.extract(asked.dst).ok_or(NotTaken::Address)?);
        let first = addr.octets()[0];
        let is_unicast = (1..224).contains(&first) && first != 127 && !addr.is_link_local();
        if is_unicast && self.prefix.may_hold(addr) { Ok(addr) } else { Err(NotTaken::Address) }
    }

    /// The source that a session leaves with in the other family.
    pub fn source(&self, src: IpAddr) -> SourceNat {
        match src {
            IpAddr::V6(_) => SourceNat::Pool { pool: self.pool, rule: self.slot },
            IpAddr::V4(src) if self.prefix.may_hold(src) => {
                SourceNat::Static { addr: self.embed(src), rule: self.slot }
            }
            IpAddr::V4(_) => SourceNat::Untranslatable,
        }
    }

    /// As IPv6 knows an IPv4 host.
    pub fn embed(&self, addr: Ipv4Addr) -> IpAddr {
        Ipv6Addr::from(self.prefix.embed(addr.into())).into()
    }
}

/// The lines of rules with what they say of NAT64 sessions, each beside the line that it follows from: the first rule
/// that matches decides, whichever of its lines does.
pub(super) fn with_seen(lines: Vec<Line>, rules: &[Rule]) -> Vec<Line> {
    if rules.is_empty() {
        return lines;
    }
    let mut all = Vec::with_capacity(lines.len());
    for line in lines {
        all.push(line);
        let seen = rules.iter().filter_map(|rule| seen_through(&line.matched, rule));
        all.extend(seen.map(|matched| Line { matched, ..line }));
    }
    all
}

/// What a match of an IPv4 prefix on one side is in the prefix of `rule`, where the other side is of IPv6. So rules say
/// of NAT64 sessions what they say of IPv4's.
fn seen_through(matched: &Match, rule: &Rule) -> Option<Match> {
    let is_v4 =
        |net: Prefix| net != Prefix::ANY && net.len() >= 96 && crate::neighbours::is_v4_key(net.addr());
    let (src, dst) = (is_v4(matched.src), is_v4(matched.dst));
    let seen = |net: Prefix| {
        let (base, len) = rule.prefix.embed_prefix(net.addr() as u32, net.len() - 96);
        Prefix::new(base, len).ok()
    };
    match (src, dst) {
        (false, true) => Some(Match { dst: seen(matched.dst)?, ..*matched }),
        (true, false) => Some(Match { src: seen(matched.src)?, ..*matched }),
        _ => None,
    }
}
