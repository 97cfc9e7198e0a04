//! The members of all groups, as the control thread keeps them: one more or less rebuilds what its prefix covers in
//! one table, and nothing else of the policy.

use std::sync::Arc;

use ahash::AHashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::{Prefix, PrefixMap};

use super::groups::{Groups, Set, TooManyClasses};
use super::{Policy, Touched};
use crate::config::{AddressRange, Group, GroupName};
use crate::tables::Leaf;
use crate::tables::compile::Compiler;
use crate::tables::fib4::Fib4;
use crate::tables::fib6::Fib6;

/// A member that came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// The group it is a member of.
    pub group: GroupName,
    /// Its addresses.
    pub range: AddressRange,
    /// How many of it there are more; negative: less.
    pub more: i32,
}

/// Named groups: numbers, and what they are in.
#[derive(Default)]
pub(super) struct Nesting {
    pub sets: AHashMap<GroupName, Set>,
    /// By number: the groups around it at any depth, itself included.
    pub around: Vec<Vec<Set>>,
}

/// Members by prefix, and what they were compiled to.
pub(in crate::tables) struct Members {
    nesting: Nesting,
    v4: Family<Ipv4Net>,
    v6: Family<Ipv6Net>,
    classes: Classes,
    groups: Arc<Groups>,
}

impl Members {
    /// Compiles prefixes, each with its group; the same may come several times.
    pub(super) fn compile(
        members: impl IntoIterator<Item = (IpNet, Set)>,
        nesting: Nesting,
    ) -> Result<Members, TooManyClasses> {
        let (mut v4, mut v6) = (Family::<Ipv4Net>::default(), Family::<Ipv6Net>::default());
        for (net, set) in members {
            match net {
                IpNet::V4(net) => v4.count(net.trunc(), set, 1),
                IpNet::V6(net) => v6.count(net.trunc(), set, 1),
            }
        }
        let mut classes = Classes::new();
        v4.settle(&Ipv4Net::default(), &mut classes)?;
        v6.settle(&Ipv6Net::default(), &mut classes)?;
        let groups = Arc::new(Groups {
            v4: Arc::new(Fib4::compile(v4.leaves.iter().map(|(net, leaf)| (net, *leaf)))),
            v6: Arc::new(Fib6::compile(v6.leaves.iter().map(|(net, leaf)| (net, *leaf)))),
            classes: classes.list(),
        });
        Ok(Members { nesting, v4, v6, classes, groups })
    }

    /// Numbers of the groups.
    pub(super) fn sets(&self) -> impl Iterator<Item = (&GroupName, &Set)> {
        self.nesting.sets.iter()
    }

    /// What they are compiled to.
    pub(super) fn groups(&self) -> &Arc<Groups> {
        &self.groups
    }

    /// The groups that hold what `group` holds.
    pub(super) fn around(&self, group: &GroupName) -> impl Iterator<Item = &GroupName> {
        let around =
            self.nesting.sets.get(group).map_or(&[][..], |set| &self.nesting.around[usize::from(*set)]);
        self.nesting.sets.iter().filter(|(_, set)| around.contains(set)).map(|(name, _)| name)
    }

    /// Compiles what `changes` make of it. After an error it is of no use any more.
    pub(super) fn change(&mut self, changes: &[MemberChange]) -> Result<Arc<Groups>, TooManyClasses> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for MemberChange { group, range, more } in changes {
            let Some(set) = self.nesting.sets.get(group) else { continue };
            for net in range.nets() {
                for set in &self.nesting.around[usize::from(*set)] {
                    match net {
                        IpNet::V4(net) => self.v4.count(net.trunc(), *set, *more),
                        IpNet::V6(net) => self.v6.count(net.trunc(), *set, *more),
                    }
                }
                match net {
                    IpNet::V4(net) => v4.push(net.trunc()),
                    IpNet::V6(net) => v6.push(net.trunc()),
                }
            }
        }
        let known = self.classes.len();
        let v4 = self.v4.settle_all(v4, &mut self.classes)?;
        let v6 = self.v6.settle_all(v6, &mut self.classes)?;
        let old = &self.groups;
        self.groups = Arc::new(Groups {
            v4: match v4.is_empty() {
                true => Arc::clone(&old.v4),
                false => Arc::new(old.v4.with_changes(&self.v4.leaves, &v4)),
            },
            v6: match v6.is_empty() {
                true => Arc::clone(&old.v6),
                false => Arc::new(old.v6.with_changes(&self.v6.leaves, &v6)),
            },
            classes: if self.classes.len() == known { Arc::clone(&old.classes) } else { self.classes.list() },
        });
        Ok(Arc::clone(&self.groups))
    }
}

impl Compiler {
    /// The policy after members of groups have come and gone, everything else as it is: only they are compiled. Also
    /// whose sessions it matters to. `groups`: all groups as they are now. `None`: it has to be compiled anew.
    pub fn with_members(
        &mut self,
        groups: &[Arc<Group>],
        changes: &[MemberChange],
    ) -> Option<(Arc<Policy>, Touched)> {
        let policy = Arc::clone(&self.tables().policy);
        // What a config or a change leaves here that was refused is of no use, nor what an error does.
        let mut members =
            self.members.take().filter(|members| Arc::ptr_eq(members.groups(), &policy.groups))?;
        let compiled = members.change(changes).ok()?;
        let mut names: Vec<&GroupName> = changes.iter().map(|change| &change.group).collect();
        names.sort_unstable();
        names.dedup();
        let touched = policy.said.touched_by(names.into_iter().flat_map(|name| members.around(name)));
        let touched = touched.about(changes.iter().map(|change| change.range.ends()));
        self.members = Some(members);
        let said = policy.said.with_groups(groups);
        let new = Policy { groups: compiled, said: Arc::new(said), ..(*policy).clone() };
        Some((Arc::new(new), touched))
    }
}

/// The members of one family.
struct Family<N: Prefix> {
    /// How often each group has a prefix of its own: several members may come to the same.
    sets: PrefixMap<N, Vec<(Set, u32)>>,
    /// The class of each of them, with what lies around it.
    leaves: PrefixMap<N, Leaf>,
}

impl<N: Prefix> Default for Family<N> {
    fn default() -> Family<N> {
        Family { sets: PrefixMap::new(), leaves: PrefixMap::new() }
    }
}

impl<N: Prefix + Clone + PartialEq> Family<N> {
    fn count(&mut self, net: N, set: Set, more: i32) {
        let sets = self.sets.entry(net.clone()).or_default();
        match sets.iter().position(|(known, _)| *known == set) {
            Some(at) => {
                sets[at].1 = sets[at].1.saturating_add_signed(more);
                if sets[at].1 == 0 {
                    sets.swap_remove(at);
                }
            }
            None if more > 0 => {
                sets.reserve_exact(1);
                sets.push((set, more.unsigned_abs()));
            }
            None => {}
        }
        if sets.is_empty() {
            self.sets.remove(&net);
        }
    }

    /// Settles several prefixes; returns those where something came of it.
    fn settle_all(&mut self, nets: Vec<N>, classes: &mut Classes) -> Result<Vec<N>, TooManyClasses> {
        let mut changed = Vec::with_capacity(nets.len());
        for net in nets {
            if self.settle(&net, classes)? {
                changed.push(net);
            }
        }
        Ok(changed)
    }

    /// Brings the leaves at and below a prefix up to date. False: they were.
    fn settle(&mut self, at: &N, classes: &mut Classes) -> Result<bool, TooManyClasses> {
        let Family { sets, leaves } = self;
        let mut changed = false;
        if !sets.contains_key(at) {
            changed |= leaves.remove(at).is_some();
        }
        let outside = sets.cover(at).filter(|(net, _)| net != at);
        let outside: Vec<Set> = outside.flat_map(|(_, sets)| sets.iter().map(|(set, _)| *set)).collect();
        let mut around: Vec<(N, Vec<Set>)> = Vec::new();
        // In order, a prefix comes right behind all that contain it.
        for (net, own) in sets.children(at) {
            while around.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
                around.pop();
            }
            let mut class: Vec<Set> = own.iter().map(|(set, _)| *set).collect();
            class.extend_from_slice(around.last().map_or(&outside, |(_, outer)| outer));
            class.sort_unstable();
            class.dedup();
            let leaf = classes.leaf(&class)?;
            changed |= leaves.insert(net.clone(), leaf) != Some(leaf);
            around.push((net, class));
        }
        Ok(changed)
    }
}

/// Lists of groups, each once.
struct Classes {
    list: Vec<Arc<[Set]>>,
    known: AHashMap<Arc<[Set]>, Leaf>,
}

impl Classes {
    fn new() -> Classes {
        let none: Arc<[Set]> = Arc::default();
        Classes { list: vec![Arc::clone(&none)], known: AHashMap::from([(none, 0)]) }
    }

    fn len(&self) -> usize {
        self.list.len()
    }

    fn list(&self) -> Arc<[Arc<[Set]>]> {
        self.list.as_slice().into()
    }

    fn leaf(&mut self, sets: &[Set]) -> Result<Leaf, TooManyClasses> {
        if let Some(leaf) = self.known.get(sets) {
            return Ok(*leaf);
        }
        let leaf = Leaf::try_from(self.list.len()).map_err(|_| TooManyClasses)?;
        let sets: Arc<[Set]> = sets.into();
        self.list.push(Arc::clone(&sets));
        self.known.insert(sets, leaf);
        Ok(leaf)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::neighbours::addr_key;

    fn net() -> impl Strategy<Value = IpNet> {
        // Few bits, so that prefixes nest.
        prop_oneof![
            (0u32..16, 0u8..=32).prop_map(|(a, len)| IpNet::from(
                Ipv4Net::new((a << 28 | a).into(), len).expect("a length").trunc()
            )),
            (0u128..16, 0u8..=128).prop_map(|(a, len)| IpNet::from(
                Ipv6Net::new((a << 124 | a).into(), len).expect("a length").trunc()
            )),
        ]
    }

    fn expected(members: &[(IpNet, Set)], addr: std::net::IpAddr) -> Vec<Set> {
        let mut expected: Vec<Set> =
            members.iter().filter(|(net, _)| net.contains(&addr)).map(|(_, set)| *set).collect();
        expected.sort_unstable();
        expected.dedup();
        expected
    }

    /// Six groups; the third is in the first two, the fourth in the third.
    fn nesting() -> Nesting {
        let name = |set: Set| format!("g{set}").parse().expect("a name");
        let around = vec![vec![0], vec![1], vec![2, 0, 1], vec![3, 2, 0, 1], vec![4], vec![5]];
        Nesting { sets: (0..6).map(|set| (name(set), set)).collect(), around }
    }

    proptest! {
        #[test]
        fn an_address_is_in_every_group_with_a_member_around_it(
            members in proptest::collection::vec((net(), 0u16..6), 0..40),
            addrs in proptest::collection::vec(net(), 1..40),
        ) {
            let compiled = Members::compile(members.iter().copied(), Nesting::default()).expect("few");
            for addr in addrs.iter().map(IpNet::addr) {
                prop_assert_eq!(compiled.groups().of(addr_key(addr)), &expected(&members, addr)[..], "{}", addr);
            }
        }

        /// Members come and go one by one or several at a time: at each moment it is as if compiled from what is there.
        #[test]
        fn members_that_come_and_go_leave_what_a_compilation_would(
            first in proptest::collection::vec((net(), 0u16..6), 0..20),
            changes in proptest::collection::vec(
                proptest::collection::vec((net(), 0u16..6, any::<bool>(), any::<proptest::sample::Index>()), 1..4), 1..30),
            addrs in proptest::collection::vec(net(), 1..10),
        ) {
            let nesting = nesting();
            let around = nesting.around.clone();
            let spread = |own: &[(IpNet, Set)]| -> Vec<(IpNet, Set)> {
                own.iter().flat_map(|(net, set)| around[usize::from(*set)].iter().map(|set| (*net, *set))).collect()
            };
            let mut own = first;
            let mut members = Members::compile(spread(&own), nesting).expect("few");
            for step in changes {
                let mut edits = Vec::new();
                for (net, set, comes, which) in step {
                    let (net, set, more) = if comes || own.is_empty() {
                        own.push((net, set));
                        (net, set, 1)
                    } else {
                        let (net, set) = own.swap_remove(which.index(own.len()));
                        (net, set, -1)
                    };
                    let range: AddressRange = net.to_string().parse().expect("a range");
                    edits.push(MemberChange { group: format!("g{set}").parse().expect("a name"), range, more });
                }
                let groups = members.change(&edits).expect("few");
                let all = spread(&own);
                for addr in addrs.iter().chain(own.iter().map(|(net, _)| net)).map(IpNet::addr) {
                    prop_assert_eq!(groups.of(addr_key(addr)), &expected(&all, addr)[..], "{} after {:?}", addr, edits);
                }
            }
        }
    }
}
