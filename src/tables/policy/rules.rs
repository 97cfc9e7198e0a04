//! Ordered rules, first match: of the firewall, and of source NAT.
//!
//! A rule becomes one or more [`Match`]es: one for each combination of its prefixes, services and source
//! ports. They lie in one classifier per pair of zones that rules name, "any" being a zone of its own. So a
//! packet asks four classifiers at most, and no rule of another tenant's zones can be in its way. What the
//! classifier does not hash (interface, VRF, DSCP, flags, ICMP type) is a [`Condition`].

use ahash::AHashMap;

use super::Asked;
use super::groups::Groups;
use crate::packet::hash;
use crate::packet::view::protocol;
use crate::tables::classify::{Classifier, Key, Match};

/// A side whose zone, interface or VRF does not matter.
pub(super) const ANY: u16 = u16::MAX - 1;

/// What has to hold besides addresses, ports, protocol and zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    /// Ingress interface slot, or [`ANY`].
    pub from_interface: u16,
    /// Egress interface slot, or [`ANY`].
    pub to_interface: u16,
    /// VRF slot of the ingress, or [`ANY`].
    pub from_vrf: u16,
    /// VRF slot of the egress, or [`ANY`].
    pub to_vrf: u16,
    /// DSCPs, one bit each.
    pub dscp: u64,
    /// TCP flags that matter.
    pub flags_mask: u8,
    /// What they are.
    pub flags: u8,
    /// ICMP type.
    pub icmp_type: Option<u8>,
}

impl Condition {
    /// Always holds.
    pub const NONE: Condition = Condition {
        from_interface: ANY,
        to_interface: ANY,
        from_vrf: ANY,
        to_vrf: ANY,
        dscp: u64::MAX,
        flags_mask: 0,
        flags: 0,
        icmp_type: None,
    };

    fn holds(&self, asked: &Asked<'_>) -> bool {
        let question = asked.question;
        let is = |wanted: u16, is: u16| wanted == ANY || wanted == is;
        is(self.from_interface, question.ingress)
            && is(self.to_interface, asked.egress)
            && is(self.from_vrf, question.vrf)
            && is(self.to_vrf, asked.to_vrf)
            && self.dscp >> (question.dscp & 63) & 1 != 0
            && question.tcp_flags & self.flags_mask == self.flags
            && self.icmp_type.is_none_or(|icmp_type| icmp_type == question.icmp_type)
    }
}

/// One match of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Position of its rule.
    pub rule: u32,
    /// Zone it comes from, or [`ANY`].
    pub from_zone: u16,
    /// Zone it goes to, or [`ANY`].
    pub to_zone: u16,
    /// Addresses, ports, protocol, groups.
    pub matched: Match,
    /// Everything else.
    pub condition: Condition,
}

struct Bucket {
    classifier: Classifier,
    /// By position in the classifier: rule, and index of its condition.
    entries: Vec<(u32, u32)>,
}

/// An ordered list of rules.
pub(super) struct Rules {
    buckets: AHashMap<(u16, u16), Bucket>,
    conditions: Vec<Condition>,
}

impl Rules {
    /// Compiles lines in the order of their rules.
    pub fn compile(lines: impl IntoIterator<Item = Line>, key: hash::Key) -> Rules {
        let mut conditions = vec![Condition::NONE];
        let mut known = AHashMap::from([(Condition::NONE, 0)]);
        type Listed = (Vec<Match>, Vec<(u32, u32)>);
        let mut lists: AHashMap<(u16, u16), Listed> = AHashMap::new();
        for line in lines {
            let condition = *known.entry(line.condition).or_insert_with(|| {
                conditions.push(line.condition);
                conditions.len() as u32 - 1
            });
            let (matches, entries) = lists.entry((line.from_zone, line.to_zone)).or_default();
            matches.push(line.matched);
            entries.push((line.rule, condition));
        }
        let bucket = |(matches, entries)| Bucket { classifier: Classifier::compile(matches, key), entries };
        Rules { buckets: lists.into_iter().map(|(zones, list)| (zones, bucket(list))).collect(), conditions }
    }

    /// The position of the first rule that matches.
    pub fn find(&self, asked: &Asked<'_>, groups: &Groups) -> Option<u32> {
        if self.buckets.is_empty() {
            return None;
        }
        let question = asked.question;
        let (src, dst) = (asked.src, asked.dst);
        let is_icmp = matches!(question.protocol, protocol::ICMP | protocol::ICMPV6);
        let (src_port, dst_port) = if is_icmp { (0, 0) } else { (question.src_port, question.dst_port) };
        let (src_sets, dst_sets) = (groups.of(src), groups.of(dst));
        let key = Key { src, dst, src_port, dst_port, protocol: question.protocol, src_sets, dst_sets };
        let (from, to) = (u16::from(asked.from_zone), u16::from(asked.to_zone));
        let mut best = None;
        for zones in [(from, to), (from, ANY), (ANY, to), (ANY, ANY)] {
            let Some(bucket) = self.buckets.get(&zones) else { continue };
            let found = bucket.classifier.find(&key, |at| {
                let (rule, condition) = bucket.entries[at as usize];
                best.is_none_or(|best| rule < best)
                    && (condition == 0 || self.conditions[condition as usize].holds(asked))
            });
            if let Some(at) = found {
                best = Some(bucket.entries[at as usize].0);
            }
        }
        best
    }
}
