//! Ordered rules, first match: of the firewall, and of source NAT.
//!
//! A rule becomes one or more [`Match`]es: one for each combination of its prefixes, services and source
//! ports. They lie in one classifier per pair of zones that rules name, "any" being a zone of its own. So a
//! packet asks four classifiers at most, and no rule of another tenant's zones can be in its way. What the
//! classifier does not hash (interface, VRF, DSCP, flags, ICMP type) is a [`Condition`].

use std::sync::Arc;

use ahash::AHashMap;

use super::Asked;
use super::groups::Groups;
use crate::packet::hash;
use crate::packet::view::protocol;
use crate::tables::classify::{Change, Classifier, Key, Match};

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
    classifier: Arc<Classifier>,
    /// By position in the classifier: rule, and index of its condition.
    entries: Vec<(u32, u32)>,
}

/// Conditions that no rule has any more, at most, before all are compiled anew.
const FORGOTTEN: usize = 4096;

impl Bucket {
    /// The first rule that has something in it.
    #[inline]
    fn first_rule(&self) -> u32 {
        self.entries.first().map_or(u32::MAX, |(rule, _)| *rule)
    }

    /// The bucket after a change of the rule at a position, `new` lines of which are in it; `None`: it is empty.
    fn with(
        self: &Arc<Bucket>,
        at: u32,
        goes: bool,
        comes: bool,
        new: &[(Match, (u32, u32))],
    ) -> Option<Arc<Bucket>> {
        let first = self.entries.partition_point(|(rule, _)| *rule < at);
        let end = if goes { self.entries.partition_point(|(rule, _)| *rule <= at) } else { first };
        let moves = goes != comes && end < self.entries.len();
        if first == end && new.is_empty() && !moves {
            return Some(Arc::clone(self));
        }
        let mut entries = Vec::with_capacity(self.entries.len() + new.len());
        entries.extend_from_slice(&self.entries[..first]);
        entries.extend(new.iter().map(|(_, entry)| *entry));
        let rest = &self.entries[end..];
        match (goes, comes) {
            (true, false) => entries.extend(rest.iter().map(|(rule, condition)| (rule - 1, *condition))),
            (false, true) => entries.extend(rest.iter().map(|(rule, condition)| (rule + 1, *condition))),
            _ => entries.extend_from_slice(rest),
        }
        if entries.is_empty() {
            return None;
        }
        let classifier = if first == end && new.is_empty() {
            Arc::clone(&self.classifier)
        } else {
            // Each takes the place of the one before.
            let goes = (first..end).map(|_| Change::Remove(first as u32));
            let comes = new.iter().zip(first as u32..).map(|((matched, _), at)| Change::Insert(at, *matched));
            Arc::new(self.classifier.with(&goes.chain(comes).collect::<Vec<_>>()))
        };
        Some(Arc::new(Bucket { classifier, entries }))
    }
}

/// Which lists a packet asks, by its zones: that of the two, those of either and any other, that of any. Found without a
/// hash, as each new session asks for them several times.
struct Asks {
    /// By zone: its row, 0 if no rule names it.
    rows: Box<[u16; 256]>,
    /// How many rows there are.
    width: usize,
    /// By row of the ingress and row of the egress: places in `buckets`, [`NO_LIST`] behind the last.
    lists: Vec<[u32; 4]>,
    buckets: Vec<Arc<Bucket>>,
}

/// No list.
const NO_LIST: u32 = u32::MAX;

impl Asks {
    fn of(by_zones: &AHashMap<(u16, u16), Arc<Bucket>>) -> Asks {
        let (mut rows, mut width) = (Box::new([0; 256]), 1);
        for zone in by_zones.keys().flat_map(|(from, to)| [*from, *to]).filter(|zone| *zone != ANY) {
            let row: &mut u16 = &mut rows[usize::from(zone)];
            if *row == 0 {
                (*row, width) = (width as u16, width + 1);
            }
        }
        let mut asks = Asks { rows, width, lists: vec![[NO_LIST; 4]; width * width], buckets: Vec::new() };
        // Those with the first rules ahead: what has been found rules the others out.
        let mut all: Vec<_> = by_zones.iter().collect();
        all.sort_unstable_by_key(|(_, bucket)| bucket.first_rule());
        for ((from, to), bucket) in all {
            let at = asks.buckets.len() as u32;
            asks.buckets.push(Arc::clone(bucket));
            let of = |zone: u16| match zone {
                ANY => 0..width,
                zone => {
                    usize::from(asks.rows[usize::from(zone)])..usize::from(asks.rows[usize::from(zone)]) + 1
                }
            };
            for (from, to) in of(*from).flat_map(|from| of(*to).map(move |to| (from, to))) {
                let lists = &mut asks.lists[from * width + to];
                let free = lists.iter_mut().find(|list| **list == NO_LIST);
                *free.unwrap_or_else(|| unreachable!("a pair of zones asks four lists")) = at;
            }
        }
        asks
    }

    #[inline]
    fn by(&self, from: u8, to: u8) -> impl Iterator<Item = &Bucket> {
        let [from, to] = [from, to].map(|zone| usize::from(self.rows[usize::from(zone)]));
        let lists = &self.lists[from * self.width + to];
        lists.iter().take_while(|list| **list != NO_LIST).map(|list| &*self.buckets[*list as usize])
    }
}

/// An ordered list of rules.
pub(super) struct Rules {
    buckets: AHashMap<(u16, u16), Arc<Bucket>>,
    asks: Asks,
    conditions: Vec<Condition>,
    /// As many conditions as the last full build found.
    built: usize,
    key: hash::Key,
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
        let bucket = |(matches, entries)| {
            Arc::new(Bucket { classifier: Arc::new(Classifier::compile(matches, key)), entries })
        };
        let buckets = lists.into_iter().map(|(zones, list)| (zones, bucket(list))).collect();
        Rules { asks: Asks::of(&buckets), buckets, built: conditions.len(), conditions, key }
    }

    /// Lines of all rules.
    pub fn lines(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.entries.len()).sum()
    }

    /// The rules after the one at a position has gone, another has come there, or both. `comes`: its lines, which all
    /// have the same zones. `None`: better compiled anew.
    pub fn with(&self, at: u32, goes: bool, comes: Option<&[Line]>) -> Option<Rules> {
        let mut conditions = self.conditions.clone();
        let mut new: Vec<(Match, (u32, u32))> = Vec::new();
        for line in comes.unwrap_or(&[]) {
            let known = conditions.iter().position(|known| *known == line.condition);
            let condition = known.unwrap_or_else(|| {
                conditions.push(line.condition);
                conditions.len() - 1
            });
            new.push((line.matched, (at, condition as u32)));
        }
        if conditions.len() > self.built + FORGOTTEN {
            return None;
        }
        let zones = comes.and_then(<[Line]>::first).map(|line| (line.from_zone, line.to_zone));
        let mut buckets = AHashMap::with_capacity(self.buckets.len() + 1);
        for (pair, bucket) in &self.buckets {
            let own = if zones == Some(*pair) { new.as_slice() } else { &[] };
            if let Some(bucket) = bucket.with(at, goes, comes.is_some(), own) {
                buckets.insert(*pair, bucket);
            }
        }
        if let Some(pair) = zones.filter(|pair| !self.buckets.contains_key(pair)) {
            let (matches, entries): (Vec<Match>, Vec<(u32, u32)>) = new.into_iter().unzip();
            let classifier = Arc::new(Classifier::compile(matches, self.key));
            buckets.insert(pair, Arc::new(Bucket { classifier, entries }));
        }
        Some(Rules { asks: Asks::of(&buckets), buckets, conditions, built: self.built, key: self.key })
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
        let (src_sets, dst_sets) = (groups.of(asked.members.0), groups.of(asked.members.1));
        let key = Key { src, dst, src_port, dst_port, protocol: question.protocol, src_sets, dst_sets };
        let mut best = None;
        for bucket in self.asks.by(asked.from_zone, asked.to_zone) {
            if best.is_some_and(|best| bucket.first_rule() >= best) {
                break;
            }
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
