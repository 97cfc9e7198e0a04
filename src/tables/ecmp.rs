//! ECMP groups: resilient hashing over equal next hops.
//!
//! A flow's hash picks a bucket, the bucket names a next hop. Each bucket belongs to the hop with the
//! highest rendezvous weight hash(hop, bucket): when a hop leaves, only its buckets move, when one
//! comes, it takes its share evenly from the others, and nobody else's flows move. The weight depends
//! on the hop's identity alone, so two nodes with one config choose alike.

use super::NextHop;
use crate::packet::hash::{self, Key};

/// Buckets of a group. With 16 hops of 256 buckets each a hop's share is within about 15 %.
const BUCKETS: usize = 4096;

/// Next hops that share the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    hops: Box<[NextHop]>,
    buckets: Box<[u8]>,
}

/// Most next hops of one route.
pub const MAX_HOPS: usize = 64;

impl Group {
    /// A group of `hops`, each with its identity (its address).
    ///
    /// # Panics
    /// If there are none or more than [`MAX_HOPS`]; the config check refuses that.
    pub fn compile(hops: &[(NextHop, u128)]) -> Group {
        assert!((1..=MAX_HOPS).contains(&hops.len()), "checked by config");
        let weight = |identity: u128, bucket: usize| hash::address(Key::default(), identity, bucket as u32);
        let buckets = (0..BUCKETS)
            .map(|bucket| {
                let best = (0..hops.len()).max_by_key(|hop| (weight(hops[*hop].1, bucket), hops[*hop].1));
                best.expect("not empty") as u8
            })
            .collect();
        Group { hops: hops.iter().map(|(hop, _)| *hop).collect(), buckets }
    }

    /// The next hop for a flow.
    #[inline]
    pub fn select(&self, flow_hash: u64) -> NextHop {
        // The upper bits: the lower ones may pick the worker.
        let bucket = (flow_hash >> 52) as usize % BUCKETS;
        self.hops[usize::from(self.buckets[bucket])]
    }

    /// The members.
    pub fn hops(&self) -> &[NextHop] {
        &self.hops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hops(ids: &[u32]) -> Vec<(NextHop, u128)> {
        ids.iter()
            .map(|id| (NextHop { interface: 0, neighbour: *id }, u128::from(*id) + 0xffff_0a00_0000))
            .collect()
    }

    fn flows() -> impl Iterator<Item = u64> {
        (0..20_000u32).map(|i| hash::tuple_v4(Key::default(), i, 7, 17, (1, 2)))
    }

    #[test]
    fn a_hop_that_leaves_moves_only_its_own_flows() {
        let before = Group::compile(&hops(&[1, 2, 3, 4, 5]));
        let after = Group::compile(&hops(&[1, 2, 4, 5]));
        for flow in flows() {
            let old = before.select(flow);
            if old.neighbour != 3 {
                assert_eq!(after.select(flow), old);
            } else {
                assert_ne!(after.select(flow).neighbour, 3);
            }
        }
    }

    #[test]
    fn the_load_is_even() {
        let group = Group::compile(&hops(&(1..=16).collect::<Vec<_>>()));
        let mut counts = [0usize; 17];
        for flow in flows() {
            counts[group.select(flow).neighbour as usize] += 1;
        }
        for count in &counts[1..] {
            assert!((20_000 / 16 * 3 / 4..20_000 / 16 * 5 / 4).contains(count), "{counts:?}");
        }
    }

    #[test]
    fn order_of_configuration_does_not_matter() {
        let one = Group::compile(&hops(&[1, 2, 3]));
        let two = Group::compile(&hops(&[3, 1, 2]));
        assert!(flows().all(|flow| one.select(flow) == two.select(flow)));
    }
}
