//! Groups: which named sets an address is in, by one longest-prefix match.
//!
//! The prefixes of all groups lie in one table per family. A leaf stands for a *class*: the list of groups
//! that cover the prefix, those of the shorter prefixes around it included. So an address costs one lookup,
//! however many groups there are and however large they are.

use std::collections::BTreeMap;

use ahash::AHashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::neighbours::is_v4_key;
use crate::tables::Leaf;
use crate::tables::fib4::Fib4;
use crate::tables::fib6::Fib6;

/// Number of a group within one generation.
pub(super) type Set = u16;

/// More than 65,535 different combinations of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyClasses;

/// The members of all groups, compiled.
pub(super) struct Groups {
    v4: Fib4,
    v6: Fib6,
    /// By leaf, each sorted; the first is that of addresses in no group.
    classes: Vec<Box<[Set]>>,
}

impl Groups {
    /// The groups that an address is in, in ascending order; IPv4 as [`crate::neighbours::v4_key`].
    pub fn of(&self, addr: u128) -> &[Set] {
        if self.classes.len() == 1 {
            return &[];
        }
        let leaf = if is_v4_key(addr) { self.v4.find(addr as u32) } else { self.v6.find(addr) };
        &self.classes[usize::from(leaf)]
    }

    /// Compiles prefixes, each with its group; the same may come several times.
    pub fn compile(members: impl IntoIterator<Item = (IpNet, Set)>) -> Result<Groups, TooManyClasses> {
        // Sorted, a prefix comes right behind all that contain it.
        let mut v4: BTreeMap<Ipv4Net, Vec<Set>> = BTreeMap::new();
        let mut v6: BTreeMap<Ipv6Net, Vec<Set>> = BTreeMap::new();
        for (net, set) in members {
            match net {
                IpNet::V4(net) => v4.entry(net.trunc()).or_default().push(set),
                IpNet::V6(net) => v6.entry(net.trunc()).or_default().push(set),
            }
        }
        let mut classes = Classes::new();
        let v4 = leaves(v4, &mut classes, |outer, inner| outer.contains(inner))?;
        let v6 = leaves(v6, &mut classes, |outer, inner| outer.contains(inner))?;
        Ok(Groups { v4: Fib4::compile(v4), v6: Fib6::compile(v6), classes: classes.list })
    }
}

/// Lists of groups, each once.
struct Classes {
    list: Vec<Box<[Set]>>,
    known: AHashMap<Box<[Set]>, Leaf>,
}

impl Classes {
    fn new() -> Classes {
        let none: Box<[Set]> = Box::default();
        Classes { list: vec![none.clone()], known: AHashMap::from([(none, 0)]) }
    }

    fn leaf(&mut self, sets: &[Set]) -> Result<Leaf, TooManyClasses> {
        if let Some(leaf) = self.known.get(sets) {
            return Ok(*leaf);
        }
        let leaf = Leaf::try_from(self.list.len()).map_err(|_| TooManyClasses)?;
        self.list.push(sets.into());
        self.known.insert(sets.into(), leaf);
        Ok(leaf)
    }
}

/// Each prefix with its class. `prefixes` in the order in which those that contain others come first.
fn leaves<N: Copy>(
    prefixes: BTreeMap<N, Vec<Set>>,
    classes: &mut Classes,
    contains: impl Fn(&N, &N) -> bool,
) -> Result<Vec<(N, Leaf)>, TooManyClasses> {
    let mut around: Vec<(N, Vec<Set>)> = Vec::new();
    let mut leaves = Vec::with_capacity(prefixes.len());
    for (net, mut sets) in prefixes {
        while around.last().is_some_and(|(outer, _)| !contains(outer, &net)) {
            around.pop();
        }
        if let Some((_, outer)) = around.last() {
            sets.extend_from_slice(outer);
        }
        sets.sort_unstable();
        sets.dedup();
        leaves.push((net, classes.leaf(&sets)?));
        around.push((net, sets));
    }
    Ok(leaves)
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

    proptest! {
        #[test]
        fn an_address_is_in_every_group_with_a_member_around_it(
            members in proptest::collection::vec((net(), 0u16..6), 0..40),
            addrs in proptest::collection::vec(net(), 1..40),
        ) {
            let groups = Groups::compile(members.iter().copied()).expect("few");
            for addr in addrs.iter().map(IpNet::addr) {
                let mut expected: Vec<Set> =
                    members.iter().filter(|(net, _)| net.contains(&addr)).map(|(_, set)| *set).collect();
                expected.sort_unstable();
                expected.dedup();
                prop_assert_eq!(groups.of(addr_key(addr)), &expected[..], "{}", addr);
            }
        }
    }
}
