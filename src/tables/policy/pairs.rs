//! Which ordered pairs of zones a change of policy can matter to, and when each last changed.
//!
//! A session was decided for the pair of its zones. A change that says nothing of the pair cannot change the
//! decision, so the session is not decided again (DESIGN.md section 3: policy epochs are per ordered zone pair).
//! What was said before and what is said now are compared rule by rule: the longest run of rules that stand in the
//! same order in both is as it was, every other rule is a change of the pairs it is for.

use std::net::IpAddr;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::super::news;
use super::compile::PolicySlots;
use super::rules::ANY;
use crate::config::{Config, Group, GroupName, Member, Nat, NatSource, Rule, Side};

/// Rules in a part of the list.
const PART: usize = 256;

/// What a policy was compiled from, as far as decisions about sessions follow from it.
#[derive(Clone, Default)]
pub(super) struct Said {
    /// In order, admin rules first, in parts: a change of one copies one of them.
    rules: Arc<[Arc<[Arc<Rule>]>]>,
    groups: Arc<[Arc<Group>]>,
    nat: Arc<Nat>,
    /// By group: the pairs that a change of it touches.
    users: Arc<AHashMap<GroupName, Touched>>,
}

impl Said {
    pub fn new(config: &Config, slots: &PolicySlots) -> Said {
        let rules: Vec<Arc<Rule>> = config.admin_rules.iter().chain(&config.rules).cloned().collect();
        let mut users: AHashMap<GroupName, Touched> = AHashMap::new();
        let mut note = |side: &Side, pairs: &[(u16, u16)]| {
            if let Some(name) = &side.group {
                users.entry(name.clone()).or_default().pairs.extend(pairs);
            }
        };
        for rule in rules.iter() {
            let pair = pair_of(rule, slots);
            note(&rule.from, &[pair]);
            note(&rule.to, &[pair]);
        }
        for rule in &config.nat.sources {
            let pairs = pairs_of(rule, slots);
            note(&rule.from, &pairs);
            note(&rule.to, &pairs);
        }
        for rule in &config.nat.statics {
            note(&rule.to, &[(ANY, ANY)]);
        }
        for rule in &config.nat.nptv6 {
            note(&rule.to, &[(ANY, ANY)]);
        }
        for rule in &config.nat.nat64 {
            note(&rule.from, &[(ANY, ANY)]);
        }
        let (groups, nat) = (config.groups.as_slice().into(), Arc::new(config.nat.clone()));
        let rules = rules.chunks(PART).map(Arc::from).collect();
        Said { rules, groups, nat, users: Arc::new(users) }
    }

    /// The rule at a position.
    pub fn rule(&self, at: u32) -> &Arc<Rule> {
        let (part, at) = self.place(at);
        &self.rules[part][at]
    }

    /// Part and place in it of a position.
    fn place(&self, at: u32) -> (usize, usize) {
        let mut at = at as usize;
        for (part, rules) in self.rules.iter().enumerate() {
            if at < rules.len() {
                return (part, at);
            }
            at -= rules.len();
        }
        // Behind all of them: at the end of the last.
        self.rules.len().checked_sub(1).map_or((0, 0), |last| (last, self.rules[last].len()))
    }

    /// After the rule at a position has gone, another has come there, or both; and the pairs that this touches.
    pub fn with_rule(
        &self,
        at: u32,
        goes: bool,
        comes: Option<&Arc<Rule>>,
        slots: &PolicySlots,
    ) -> (Said, Touched) {
        let (part, place) = self.place(at);
        let mut parts = self.rules.to_vec();
        let mut rules = parts.get(part).map_or_else(Vec::new, |part| part.to_vec());
        let mut touched = Touched::default();
        touched.pairs.extend(goes.then(|| pair_of(&rules[place], slots)));
        touched.pairs.extend(comes.map(|rule| pair_of(rule, slots)));
        let changed = [goes.then(|| &rules[place]), comes].into_iter().flatten();
        if let Some(ranges) = changed.map(|rule| ranges_of(rule)).collect::<Option<Vec<_>>>() {
            touched = touched.about(ranges.into_iter().flatten());
        }
        rules.splice(place..place + usize::from(goes), comes.cloned());
        // One that has grown becomes two, one that is empty none.
        let halves = if rules.len() > 2 * PART { rules.len().div_ceil(2) } else { rules.len().max(1) };
        let new = rules.chunks(halves).map(Arc::from);
        parts.splice(part..(part + 1).min(self.rules.len()), new.collect::<Vec<_>>());
        let mut users = Arc::clone(&self.users);
        if let Some(rule) = comes {
            for name in [&rule.from, &rule.to].into_iter().filter_map(|side| side.group.as_ref()) {
                // A rule that goes leaves its pair here: too many sessions are asked then, not too few.
                Arc::make_mut(&mut users).entry(name.clone()).or_default().pairs.insert(pair_of(rule, slots));
            }
        }
        (Said { rules: parts.into(), users, ..self.clone() }, touched)
    }

    /// With other members in the groups.
    pub fn with_groups(&self, groups: &[Arc<Group>]) -> Said {
        Said { groups: groups.into(), ..self.clone() }
    }

    /// Pairs whose sessions may be decided otherwise when these groups change.
    pub fn touched_by<'a>(&self, groups: impl IntoIterator<Item = &'a GroupName>) -> Touched {
        let mut touched = Touched::default();
        for users in groups.into_iter().filter_map(|name| self.users.get(name)) {
            touched.pairs.extend(&users.pairs);
        }
        touched
    }

    /// Pairs whose sessions may be decided otherwise by `new` than by `self`.
    pub fn touched(&self, new: &Said, slots: &PolicySlots) -> Touched {
        let (old_nat, new_nat) = (&*self.nat, &*new.nat);
        // Static NAT, NPTv6 and NAT64 have no zone that all their sessions come from. Destination NAT decides first
        // packets only: a session stays with its server.
        if (old_nat.filtering, old_nat.hairpin, &old_nat.statics, &old_nat.nptv6, &old_nat.nat64)
            != (new_nat.filtering, new_nat.hairpin, &new_nat.statics, &new_nat.nptv6, &new_nat.nat64)
        {
            return Touched::everything();
        }
        let mut touched = new.touched_by(&changed_groups(&self.groups, &new.groups));
        let is_same = |old: &Arc<Rule>, new: &Arc<Rule>| Arc::ptr_eq(old, new) || old == new;
        let list = |said: &Said| -> Vec<Arc<Rule>> {
            said.rules.iter().flat_map(|part| part.iter()).cloned().collect()
        };
        for rule in changed(&list(self), &list(new), |rule| rule.name.as_str(), is_same) {
            touched.pairs.insert(pair_of(rule, slots));
        }
        for rule in changed(&old_nat.sources, &new_nat.sources, |rule| rule.name.as_str(), PartialEq::eq) {
            touched.pairs.extend(pairs_of(rule, slots));
        }
        touched
    }
}

/// Addresses one of which a session has to have for a rule to match it, if they are few: those of one of its sides.
fn ranges_of(rule: &Rule) -> Option<Vec<(IpAddr, IpAddr)>> {
    let sides = [&rule.from, &rule.to].into_iter().filter_map(|side| side.prefix.as_ref());
    let ranges = sides.map(|prefixes| prefixes.iter().map(|range| range.ends()).collect::<Vec<_>>());
    let few = ranges.filter_map(|ranges| Some((news::networks_of(&ranges)?, ranges)));
    few.min_by_key(|(networks, _)| *networks).map(|(_, ranges)| ranges)
}

/// The pair that a rule is for.
fn pair_of(rule: &Rule, slots: &PolicySlots) -> (u16, u16) {
    (zone(&rule.from, slots), zone(&rule.to, slots))
}

/// The pairs whose sessions a source NAT rule matters to.
fn pairs_of(rule: &NatSource, slots: &PolicySlots) -> [(u16, u16); 3] {
    let (from, to) = (zone(&rule.from, slots), zone(&rule.to, slots));
    // Whoever answers to a mapping may do so where its host would use it, and hairpinning goes by the inside alone.
    [(from, to), (to, from), (from, from)]
}

/// Number of a side's zone, or [`ANY`]: a zone that a compiled policy names has one.
fn zone(side: &Side, slots: &PolicySlots) -> u16 {
    let zone = side.zone.as_ref().and_then(|zone| slots.known_zone(zone.as_str()));
    zone.map_or(ANY, u16::from)
}

/// Groups that do not hold what they held, or that there were not.
fn changed_groups(old: &[Arc<Group>], new: &[Arc<Group>]) -> AHashSet<GroupName> {
    let before: AHashMap<&GroupName, &Arc<Group>> = old.iter().map(|group| (&group.name, group)).collect();
    let is_same = |group: &Arc<Group>| {
        before.get(&group.name).is_some_and(|old| Arc::ptr_eq(old, group) || *old == group)
    };
    let mut changed: AHashSet<GroupName> =
        new.iter().filter(|group| !is_same(group)).map(|group| group.name.clone()).collect();
    // A change of an inner group is one of all around it.
    let mut count = 0;
    while count < changed.len() {
        count = changed.len();
        for group in new.iter().filter(|group| !changed.contains(&group.name)).collect::<Vec<_>>() {
            let holds = |member: &Member| matches!(member, Member::Group(inner) if changed.contains(inner));
            if group.members.iter().any(holds) {
                changed.insert(group.name.clone());
            }
        }
    }
    changed
}

/// What of two ordered lists is not the same, and in the same order, in both.
fn changed<'a, T>(
    old: &'a [T],
    new: &'a [T],
    name: impl Fn(&T) -> &str,
    is_same: impl Fn(&T, &T) -> bool,
) -> Vec<&'a T> {
    let ahead = old.iter().zip(new).take_while(|(old, new)| is_same(old, new)).count();
    let (old, new) = (&old[ahead..], &new[ahead..]);
    let behind = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| is_same(old, new)).count();
    let (old, new) = (&old[..old.len() - behind], &new[..new.len() - behind]);
    let at: AHashMap<&str, usize> = old.iter().enumerate().map(|(at, of)| (name(of), at)).collect();
    // By new position: the old one of what is as it was.
    let places: Vec<Option<usize>> =
        new.iter().map(|of| at.get(name(of)).copied().filter(|at| is_same(&old[*at], of))).collect();
    let kept = longest_run(&places);
    let stays: AHashSet<usize> = kept.iter().filter_map(|at| places[*at]).collect();
    let mut changed: Vec<&T> =
        old.iter().enumerate().filter(|(at, _)| !stays.contains(at)).map(|(_, of)| of).collect();
    let kept: AHashSet<usize> = kept.into_iter().collect();
    changed.extend(new.iter().enumerate().filter(|(at, _)| !kept.contains(at)).map(|(_, of)| of));
    changed
}

/// Indexes of the longest strictly ascending subsequence, by patience sorting.
fn longest_run(places: &[Option<usize>]) -> Vec<usize> {
    // By length less one: the index that ends the run of this length with the lowest place.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; places.len()];
    for (at, place) in places.iter().enumerate().filter(|(_, place)| place.is_some()) {
        let len = ends.partition_point(|end| places[*end] < *place);
        before[at] = len.checked_sub(1).map(|len| ends[len]);
        match ends.get_mut(len) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut at = ends.last().copied();
    while let Some(index) = at {
        run.push(index);
        at = before[index];
    }
    run
}

/// Pairs of zones that a change may matter to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    all: bool,
    /// [`ANY`] stands for every zone.
    pairs: AHashSet<(u16, u16)>,
    /// Ranges of addresses, one of which a session has to have; none: any will do.
    about: Vec<(IpAddr, IpAddr)>,
}

impl Touched {
    /// Every pair.
    pub fn everything() -> Touched {
        Touched { all: true, ..Touched::default() }
    }

    /// Of these, the sessions with an address in one of these ranges.
    pub fn about(self, ranges: impl Iterator<Item = (IpAddr, IpAddr)>) -> Touched {
        Touched { about: ranges.collect(), ..self }
    }

    /// The ranges of addresses, if it is about some.
    pub fn ranges(&self) -> Option<&[(IpAddr, IpAddr)]> {
        Some(self.about.as_slice()).filter(|ranges| !ranges.is_empty() && !self.is_nothing())
    }

    /// These pairs.
    #[cfg(test)]
    pub fn pairs(pairs: &[(u8, u8)]) -> Touched {
        Touched {
            pairs: pairs.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect(),
            ..Touched::default()
        }
    }

    /// True if no session is decided otherwise.
    pub fn is_nothing(&self) -> bool {
        !self.all && self.pairs.is_empty()
    }
}

/// The generation in which decisions for each pair of zones last changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairEpochs {
    /// Of all of them.
    all: u64,
    /// By zone that sessions come from.
    from: AHashMap<u8, u64>,
    /// By zone that they go to.
    to: AHashMap<u8, u64>,
    pairs: AHashMap<(u8, u8), u64>,
}

impl PairEpochs {
    /// When sessions between these zones may last have come to be decided otherwise.
    pub fn of(&self, from: u8, to: u8) -> u64 {
        let named = [self.from.get(&from), self.to.get(&to), self.pairs.get(&(from, to))];
        named.into_iter().flatten().fold(self.all, |newest, epoch| newest.max(*epoch))
    }

    /// The epochs after a change.
    pub fn after(&self, touched: &Touched, generation: u64) -> PairEpochs {
        let everything = touched.all || touched.pairs.contains(&(ANY, ANY));
        if everything {
            return PairEpochs { all: generation, ..PairEpochs::default() };
        }
        let mut new = self.clone();
        for (from, to) in &touched.pairs {
            // Numbers of zones are bytes.
            match (*from == ANY, *to == ANY) {
                (false, false) => _ = new.pairs.insert((*from as u8, *to as u8), generation),
                (false, true) => _ = new.from.insert(*from as u8, generation),
                (true, false) => _ = new.to.insert(*to as u8, generation),
                (true, true) => unreachable!("that is everything"),
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_run_in_order_stays() {
        let run = |places: &[i32]| {
            let places: Vec<Option<usize>> =
                places.iter().map(|place| usize::try_from(*place).ok()).collect();
            let mut run: Vec<usize> = longest_run(&places).iter().filter_map(|at| places[*at]).collect();
            run.reverse();
            run
        };
        assert_eq!(run(&[]), Vec::<usize>::new());
        assert_eq!(run(&[-1, -1]), Vec::<usize>::new());
        assert_eq!(run(&[0, 1, 2]), [0, 1, 2]);
        assert_eq!(run(&[2, 0, 1, -1, 3]), [0, 1, 3]);
        assert_eq!(run(&[3, 1, 4, 1, 5, 9, 2, 6]), [1, 4, 5, 6]);
        assert_eq!(run(&[2, 1, 0]).len(), 1);
    }

    proptest! {
        /// What is not in the list of changes is the same in both, in the same order.
        #[test]
        fn what_is_left_of_both_lists_is_the_same(
            old in proptest::sample::subsequence((0..12u8).collect::<Vec<_>>(), 0..12).prop_shuffle(),
            new in proptest::sample::subsequence((0..12u8).collect::<Vec<_>>(), 0..12).prop_shuffle(),
            other in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let named = |list: &[u8], of: &[bool]| -> Vec<(String, bool)> {
                list.iter().map(|n| (n.to_string(), of[usize::from(*n)])).collect()
            };
            let (old, new) = (named(&old, &[false; 12]), named(&new, &other));
            let changes = changed(&old, &new, |of| of.0.as_str(), |a, b| a == b);
            let rest = |list: &[(String, bool)]| -> Vec<(String, bool)> {
                let is_changed = |of: &&(String, bool)| !changes.iter().any(|change| std::ptr::eq(*change, *of));
                list.iter().filter(is_changed).cloned().collect()
            };
            prop_assert_eq!(rest(&old), rest(&new));
        }
    }

    #[test]
    fn an_epoch_is_that_of_the_pair_a_side_or_everything() {
        let touched =
            |pairs: &[(u16, u16)]| Touched { pairs: pairs.iter().copied().collect(), ..Touched::default() };
        let none = PairEpochs::default();
        let epochs = none.after(&touched(&[(1, 2), (3, ANY)]), 5).after(&touched(&[(ANY, 4)]), 6);
        let of = |from, to| epochs.of(from, to);
        assert_eq!((of(1, 2), of(2, 1), of(3, 9), of(3, 4), of(1, 4), of(9, 3)), (5, 0, 5, 6, 6, 0));
        assert_eq!(epochs.after(&Touched::default(), 7), epochs);
        for all in [touched(&[(1, 1), (ANY, ANY)]), Touched::everything()] {
            assert_eq!(epochs.after(&all, 7), PairEpochs { all: 7, ..PairEpochs::default() });
        }
    }
}
