//! The IPv6 forwarding table: a search tree over the address's upper half, and one per /64 with longer
//! routes over the lower half.
//!
//! In the real table all but 105 of 160,147 prefixes are no longer than /64; the upper tree answers for
//! them. A /64 that contains longer routes has the leaf [`DEEP`] there, and a tree of its own.

use std::sync::Arc;

use ipnet::Ipv6Net;
use prefix_trie::PrefixMap;

use super::Leaf;
use super::fib_intervals::{Interval, Span, push, sweep};
use super::fib_tree::{IntervalTree, Patch};
use crate::mem::BURST;
use crate::mem::simd::Avx512;

/// The control side of a v6 table.
pub type Rib6 = PrefixMap<Ipv6Net, Leaf>;

/// Says in the upper tree: look whether this /64 has a tree of its own. A route's leaf may have this value
/// too; then there is just no such tree.
const DEEP: Leaf = Leaf::MAX;

/// A change of more than one in so many routes is a full build.
const PATCH_RATIO: usize = 16;

/// An IPv6 forwarding table; immutable once built.
pub struct Fib6 {
    upper: IntervalTree,
    /// The trees of single /64s, sorted by the upper half of their addresses.
    lower: Arc<Vec<(u64, Arc<IntervalTree>)>>,
    routes: usize,
    avx512: Option<Avx512>,
}

fn span_of(net: &Ipv6Net, leaf: Leaf) -> Span<u128> {
    Span { first: net.network().into(), last: net.broadcast().into(), leaf }
}

fn upper(addr: u128) -> u64 {
    (addr >> 64) as u64
}

/// What a range of whole /64s becomes: intervals of the upper half, and trees for single /64s.
type Halves = (Vec<Interval<u64>>, Vec<(u64, Arc<IntervalTree>)>);

/// Splits the intervals of a range of whole /64s. `spans` as for [`sweep`].
fn split(whole: Span<u128>, spans: impl IntoIterator<Item = Span<u128>>) -> Halves {
    let intervals = sweep(whole, spans);
    let (mut uppers, mut lowers) = (Vec::with_capacity(intervals.len()), Vec::new());
    let mut rest = intervals.as_slice();
    let mut held = whole.leaf;
    while let [first, ..] = rest {
        let key = upper(first.first);
        let within = 1 + rest[1..].iter().take_while(|next| upper(next.first) == key).count();
        let (here, next) = rest.split_at(within);
        let aligned = first.first as u64 == 0;
        if aligned && within == 1 {
            push(&mut uppers, key, first.leaf);
        } else {
            let mut lower = vec![Interval { first: 0, leaf: held }];
            here.iter().for_each(|interval| push(&mut lower, interval.first as u64, interval.leaf));
            lowers.push((key, Arc::new(IntervalTree::compile(&lower))));
            push(&mut uppers, key, DEEP);
            if key < upper(whole.last) {
                push(&mut uppers, key + 1, here[within - 1].leaf);
            }
        }
        held = here[within - 1].leaf;
        rest = next;
    }
    (uppers, lowers)
}

impl Default for Fib6 {
    fn default() -> Fib6 {
        Fib6::compile([])
    }
}

impl Fib6 {
    /// Builds the table of `routes`, in any order; of two with the same prefix the later holds.
    pub fn compile(routes: impl IntoIterator<Item = (Ipv6Net, Leaf)>) -> Fib6 {
        let mut spans: Vec<_> = routes.into_iter().map(|(net, leaf)| span_of(&net, leaf)).collect();
        // Stable, and linear if sorted already, as from a RIB.
        spans.sort_by_key(|span| (span.first, !span.last));
        let unique =
            1 + spans.windows(2).filter(|w| (w[0].first, w[0].last) != (w[1].first, w[1].last)).count();
        let routes = unique.min(spans.len());
        let (uppers, lowers) = split(Span { first: 0, last: u128::MAX, leaf: 0 }, spans);
        let upper = IntervalTree::compile(&uppers);
        Fib6 { upper, lower: Arc::new(lowers), routes, avx512: Avx512::detect() }
    }

    /// The table after a change: everything under the `changed` prefixes is taken anew from `rib`, which
    /// already holds the new state; the rest is copied or shared.
    pub fn with_changes(&self, rib: &Rib6, changed: &[Ipv6Net]) -> Fib6 {
        if changed.len().saturating_mul(PATCH_RATIO) > rib.len() {
            return Fib6::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
        }
        self.patched(rib, changed)
    }

    fn patched(&self, rib: &Rib6, changed: &[Ipv6Net]) -> Fib6 {
        let mut regions: Vec<Ipv6Net> = changed
            .iter()
            .map(|net| {
                Ipv6Net::new(net.network(), net.prefix_len().min(64))
                    .unwrap_or_else(|_| unreachable!("not longer than the prefix it is made from"))
                    .trunc()
            })
            .collect();
        regions.sort();
        regions.dedup_by(|next, kept| kept.contains(&*next));

        let mut patches = Vec::with_capacity(regions.len());
        let mut lower = Vec::new();
        let mut kept = self.lower.as_slice();
        let mut lower_changed = false;
        for region in regions {
            let around = rib.get_lpm(&region).map_or(0, |(_, leaf)| *leaf);
            let whole = span_of(&region, around);
            let (first, last) = (upper(whole.first), upper(whole.last));
            let inside = rib.children(&region).map(|(net, leaf)| span_of(&net, *leaf));
            let (intervals, lowers) = split(whole, inside);
            let start = kept.partition_point(|(key, _)| *key < first);
            let end = kept.partition_point(|(key, _)| *key <= last);
            lower_changed |= start < end || !lowers.is_empty();
            lower.push((&kept[..start], lowers));
            kept = &kept[end..];
            patches.push(Patch { first, last, intervals });
        }
        let lower = if lower_changed {
            let mut all = Vec::with_capacity(self.lower.len() + 1);
            for (before, new) in lower {
                all.extend_from_slice(before);
                all.extend(new);
            }
            all.extend_from_slice(kept);
            Arc::new(all)
        } else {
            Arc::clone(&self.lower)
        };
        Fib6 { upper: self.upper.with_patches(&patches), lower, routes: rib.len(), avx512: self.avx512 }
    }

    /// The leaf of the longest prefix around an address (in host order); 0 if there is none.
    #[inline]
    pub fn find(&self, addr: u128) -> Leaf {
        let leaf = self.upper.find(upper(addr));
        if leaf == DEEP { self.find_deep(addr) } else { leaf }
    }

    /// The leaves of a burst of addresses, into the same places of `out`, which has the same length.
    #[inline]
    pub fn find_batch(&self, addrs: &[u128], out: &mut [Leaf]) {
        self.find_batch_with(self.avx512, addrs, out);
    }

    /// [`Fib6::find_batch`] as on a CPU without AVX-512, for tests and benchmarks.
    pub fn find_batch_portable(&self, addrs: &[u128], out: &mut [Leaf]) {
        self.find_batch_with(None, addrs, out);
    }

    #[inline]
    fn find_batch_with(&self, avx512: Option<Avx512>, addrs: &[u128], out: &mut [Leaf]) {
        assert_eq!(addrs.len(), out.len(), "one place per address");
        for (addrs, out) in addrs.chunks(BURST).zip(out.chunks_mut(BURST)) {
            let mut keys = [0; BURST];
            let keys = &mut keys[..addrs.len()];
            keys.iter_mut().zip(addrs).for_each(|(key, addr)| *key = upper(*addr));
            self.upper.find_batch(avx512, keys, out);
            if out.contains(&DEEP) {
                let deep = out.iter_mut().zip(addrs).filter(|(leaf, _)| **leaf == DEEP);
                deep.for_each(|(leaf, addr)| *leaf = self.find_deep(*addr));
            }
        }
    }

    #[cold]
    fn find_deep(&self, addr: u128) -> Leaf {
        match self.lower.binary_search_by_key(&upper(addr), |(key, _)| *key) {
            Ok(at) => self.lower[at].1.find(addr as u64),
            Err(_) => DEEP,
        }
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let lower: usize =
            self.lower.iter().map(|(_, tree)| tree.memory_bytes() + 2 * size_of::<usize>()).sum();
        size_of::<Fib6>()
            + self.upper.memory_bytes()
            + lower
            + self.lower.capacity() * size_of::<(u64, Arc<IntervalTree>)>()
    }

    /// Routes in the table.
    pub fn routes(&self) -> usize {
        self.routes
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::tables::fib_twin::{Random, Twin, real_table};

    fn net(text: &str) -> Ipv6Net {
        text.parse().expect("a prefix")
    }

    fn addr(text: &str) -> u128 {
        text.parse::<Ipv6Addr>().expect("an address").into()
    }

    /// Every way to ask gives what the twin gives: at all boundaries, and at some more addresses.
    fn check(table: &Fib6, routes: &[(Ipv6Net, Leaf)], more: impl IntoIterator<Item = u128>) {
        let twin = Twin::of_v6(routes.iter().copied());
        let mut addrs: Vec<u128> = vec![0, 1, u128::MAX - 1, u128::MAX];
        for (net, _) in routes {
            let Span { first, last, .. } = span_of(net, 0);
            addrs.extend([first.wrapping_sub(1), first, first / 2 + last / 2, last, last.wrapping_add(1)]);
            addrs.extend([first.wrapping_add(1 << 64), first ^ 1, first | u128::from(u64::MAX)]);
        }
        addrs.extend(more);
        let expected: Vec<Leaf> = addrs.iter().map(|addr| twin.find_v6(*addr)).collect();
        for (addr, expected) in addrs.iter().zip(&expected) {
            assert_eq!(table.find(*addr), *expected, "find {}", Ipv6Addr::from(*addr));
        }
        let mut found = vec![0; addrs.len()];
        table.find_batch(&addrs, &mut found);
        assert_eq!(found, expected, "find_batch");
        found.fill(0);
        table.find_batch_portable(&addrs, &mut found);
        assert_eq!(found, expected, "find_batch_portable");
    }

    #[test]
    fn an_empty_table_finds_nothing_and_is_tiny() {
        let table = Fib6::default();
        assert_eq!(table.find(addr("2001:db8::1")), 0);
        assert_eq!(table.routes(), 0);
        assert!(table.memory_bytes() <= 512, "{} bytes", table.memory_bytes());
        check(&table, &[], []);
    }

    #[test]
    fn the_longest_prefix_holds() {
        let routes = [
            (net("::/0"), 1),
            (net("2001:db8::/32"), 2),
            (net("2001:db8:1::/48"), 3),
            (net("2001:db8:1:1::/64"), 4),
            (net("2001:db8:1:1::/65"), 5),
            (net("2001:db8:1:1::1/128"), Leaf::MAX),
            (net("2001:db8:1:2::/64"), Leaf::MAX),
            (net("2001:db8:1:3::8/125"), 6),
        ];
        let table = Fib6::compile(routes);
        assert_eq!(table.find(addr("2001:db9::")), 1);
        assert_eq!(table.find(addr("2001:db8::")), 2);
        assert_eq!(table.find(addr("2001:db8:1::")), 3);
        assert_eq!(table.find(addr("2001:db8:1:1:8000::")), 4);
        assert_eq!(table.find(addr("2001:db8:1:1::2")), 5);
        assert_eq!(table.find(addr("2001:db8:1:1::1")), Leaf::MAX);
        assert_eq!(table.find(addr("2001:db8:1:2::1")), Leaf::MAX);
        assert_eq!(table.find(addr("2001:db8:1:3::8")), 6);
        assert_eq!(table.find(addr("2001:db8:1:3::10")), 3);
        assert_eq!(table.routes(), 8);
        check(&table, &routes, []);
    }

    #[test]
    fn a_small_table_costs_little() {
        let routes = (0..20u128).map(|i| {
            let addr = addr("2001:db8::") + (i << 80);
            (Ipv6Net::new(addr.into(), 48).expect("/48"), 1 + i as Leaf)
        });
        let table = Fib6::compile(routes);
        assert!(table.memory_bytes() < 2048, "{} bytes", table.memory_bytes());
    }

    #[test]
    fn a_shorter_route_changes_the_deep_ones_below_it_too() {
        let mut rib: Rib6 = [(net("2001:db8::/32"), 1), (net("2001:db8::1/128"), 2)].into_iter().collect();
        let table = Fib6::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
        rib.insert(net("2001:db8::/48"), 3);
        let table = table.patched(&rib, &[net("2001:db8::/48")]);
        assert_eq!(table.find(addr("2001:db8::2")), 3);
        assert_eq!(table.find(addr("2001:db8::1")), 2);
        assert_eq!(table.find(addr("2001:db8:1::")), 1);
    }

    /// Prefixes that nest: cut from few addresses, with now and then a bit flipped.
    fn nested_prefix() -> impl Strategy<Value = Ipv6Net> {
        let base = prop_oneof![
            Just(0u128),
            Just(u128::MAX),
            Just(0x2001_0db8_u128 << 96),
            Just(0x2001_0db8_0000_0001_u128 << 64),
            Just((0x2001_0db8_0000_0002_u128 << 64) - 1),
            any::<u128>()
        ];
        let len =
            prop_oneof![Just(0u8), Just(32), Just(48), Just(63), Just(64), Just(65), Just(128), 0..=128u8];
        (base, len, proptest::option::of(0..128u32)).prop_map(|(base, len, flip)| {
            let addr = flip.map_or(base, |bit| base ^ 1 << bit);
            Ipv6Net::new(addr.into(), len).expect("0 to 128").trunc()
        })
    }

    fn leaf() -> impl Strategy<Value = Leaf> {
        prop_oneof![4 => 0..4u16, 1 => any::<Leaf>(), 1 => Just(DEEP)]
    }

    proptest! {
        #[test]
        fn compiled_tables_equal_the_twin(
            routes in proptest::collection::vec((nested_prefix(), leaf()), 0..200),
            addrs in proptest::collection::vec(any::<u128>(), 0..100),
        ) {
            check(&Fib6::compile(routes.clone()), &routes, addrs);
        }

        #[test]
        fn changed_tables_equal_the_twin(
            routes in proptest::collection::vec((nested_prefix(), leaf()), 0..200),
            batches in proptest::collection::vec(
                proptest::collection::vec((nested_prefix(), proptest::option::of(leaf())), 1..6), 1..20),
            addrs in proptest::collection::vec(any::<u128>(), 0..20),
        ) {
            let mut rib: Rib6 = routes.into_iter().collect();
            let mut table = Fib6::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
            for batch in batches {
                for (net, leaf) in &batch {
                    match leaf {
                        Some(leaf) => rib.insert(*net, *leaf),
                        None => rib.remove(net),
                    };
                }
                let changed: Vec<_> = batch.iter().map(|(net, _)| *net).collect();
                let routes: Vec<_> = rib.iter().map(|(net, leaf)| (net, *leaf)).collect();
                table = table.patched(&rib, &changed);
                check(&table, &routes, addrs.iter().copied());
                prop_assert_eq!(table.routes(), routes.len());
            }
        }
    }

    #[test]
    fn a_full_table_equals_the_twin_through_a_thousand_changes() {
        let Some((_, nets)) = real_table() else {
            eprintln!("no real table here: set SOFTGATE_BGP_TABLE");
            return;
        };
        let mut random = Random(6);
        let mut rib: Rib6 = nets.iter().map(|net| (*net, 1 + (random.next() % 500) as Leaf)).collect();
        let mut table = Fib6::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
        let addrs: Vec<u128> = (0..1_000_000)
            .map(|_| {
                let net = nets[random.next() as usize % nets.len()];
                let host = u128::from(random.next()) << 64 | u128::from(random.next());
                u128::from(net.network()) | host & !u128::from(net.netmask())
            })
            .collect();
        let compare = |table: &Fib6, rib: &Rib6| {
            let twin = Twin::of_v6(rib.iter().map(|(net, leaf)| (net, *leaf)));
            let mut found = vec![0; addrs.len()];
            table.find_batch(&addrs, &mut found);
            let mut portable = vec![0; addrs.len()];
            table.find_batch_portable(&addrs, &mut portable);
            for ((addr, found), portable) in addrs.iter().zip(&found).zip(&portable) {
                let expected = twin.find_v6(*addr);
                assert_eq!((table.find(*addr), *found, *portable), (expected, expected, expected));
            }
        };
        compare(&table, &rib);
        for _ in 0..1000 {
            let net = nets[random.next() as usize % nets.len()];
            match rib.remove(&net) {
                Some(_) => {}
                None => drop(rib.insert(net, 1 + (random.next() % 500) as Leaf)),
            }
            table = table.with_changes(&rib, &[net]);
        }
        compare(&table, &rib);
    }
}
