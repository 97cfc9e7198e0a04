//! The IPv4 forwarding table: a popcount trie (after Poptrie, SIGCOMM 2015) in one arena.
//!
//! The address's top bits index a direct table, as many as suit the number of routes, up to 18. Each
//! further six bits are decided by a block: a bitmap of where the leaf changes among its 64 sub-ranges,
//! and *right behind it* one 16-bit leaf per change. So nearly every lookup in a full table is two cache
//! misses: a direct entry, and one line with bitmap and leaf. Only blocks with blocks below them (routes
//! longer than /24) have 32-bit entries.
//!
//! An update copies the arena (3 MB for a full table), builds the blocks of the direct slots that the
//! changed prefix touches, and appends them; so lookups right after a change are as fast as ever. What
//! was replaced is garbage until it exceeds a quarter of the arena; then the copy leaves it out.

use arrayvec::ArrayVec;
use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;

use super::Leaf;
use super::fib_intervals::{Interval, Span, sweep};
use crate::mem::simd::{Avx512, BLOCK, LINE_WORDS, PLACE, STRIDE, Trie, WIDE, Words};

/// The control side of a v4 table.
pub type Rib4 = PrefixMap<Ipv4Net, Leaf>;

/// Direct table for a full BGP table: 2^18 entries are 1 MB, half of a server core's L2; 16 and 20 were
/// slower (FIELD-NOTES.md section 1.2).
const MAX_TOP_BITS: u32 = 18;

/// Bits the wanted direct table may differ from the present one before an update becomes a full build.
const TOP_BITS_SLACK: u32 = 2;

/// A change of more than one in so many routes is a full build: patching a slot costs about 3 us, a route
/// in a full build 0.05 us.
const PATCH_RATIO: usize = 64;

/// Words of a block's bitmap.
const BITMAP_WORDS: usize = 2;

/// An IPv4 forwarding table; immutable once built.
pub struct Fib4 {
    direct: Vec<u32>,
    top_bits: u32,
    arena: Words,
    /// Words of the arena that no entry leads to any more.
    garbage: usize,
    routes: usize,
    avx512: Option<Avx512>,
}

fn first_of(net: &Ipv4Net) -> u32 {
    u32::from(net.network())
}

fn last_of(net: &Ipv4Net) -> u32 {
    u32::from(net.broadcast())
}

fn span_of(net: &Ipv4Net, leaf: Leaf) -> Span<u32> {
    Span { first: first_of(net), last: last_of(net), leaf }
}

/// The direct table's index bits for a number of routes: about four entries per route.
fn top_bits_for(routes: usize) -> u32 {
    routes.checked_ilog2().map_or(0, |log| (log + 2).min(MAX_TOP_BITS))
}

impl Default for Fib4 {
    fn default() -> Fib4 {
        Fib4::compile([])
    }
}

impl Fib4 {
    /// Builds the table of `routes`, in any order; of two with the same prefix the later holds.
    pub fn compile(routes: impl IntoIterator<Item = (Ipv4Net, Leaf)>) -> Fib4 {
        let mut spans: Vec<_> = routes.into_iter().map(|(net, leaf)| span_of(&net, leaf)).collect();
        // Stable, and linear if sorted already, as from a RIB.
        spans.sort_by_key(|span| (span.first, !span.last));
        let unique =
            1 + spans.windows(2).filter(|w| (w[0].first, w[0].last) != (w[1].first, w[1].last)).count();
        let routes = unique.min(spans.len());
        let intervals = sweep(Span { first: 0, last: u32::MAX, leaf: 0 }, spans);

        let top_bits = top_bits_for(routes);
        let mut direct = Vec::with_capacity(1 << top_bits);
        let mut arena = Words::default();
        let mut rest = intervals.as_slice();
        for slot in 0..1u64 << top_bits {
            let (first, last) = slot_range(slot as u32, top_bits);
            direct.push(encode(&mut arena, take(&mut rest, last), first, top_bits));
        }
        arena.shrink();
        Fib4 { direct, top_bits, arena, garbage: 0, routes, avx512: Avx512::detect() }
    }

    /// The table after a change: everything under the `changed` prefixes is taken anew from `rib`, which
    /// already holds the new state; the rest is copied.
    pub fn with_changes(&self, rib: &Rib4, changed: &[Ipv4Net]) -> Fib4 {
        let suits = top_bits_for(rib.len()).abs_diff(self.top_bits) <= TOP_BITS_SLACK;
        if !suits || changed.len().saturating_mul(PATCH_RATIO) > rib.len() {
            return Fib4::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
        }
        self.patched(rib, changed)
    }

    fn patched(&self, rib: &Rib4, changed: &[Ipv4Net]) -> Fib4 {
        let mut table = if self.garbage * 4 > self.arena.len() { self.compacted() } else { self.copied() };
        table.routes = rib.len();
        let mut changed = changed.to_vec();
        changed.sort_by_key(|net| (first_of(net), net.prefix_len()));
        let mut done: Option<u32> = None;
        for net in changed {
            if done.is_none_or(|done| done < last_of(&net)) {
                done = Some(table.patch(rib, net));
            }
        }
        table.arena.shrink();
        table
    }

    /// Rebuilds the direct slots that `net` touches; returns the last address of them.
    fn patch(&mut self, rib: &Rib4, net: Ipv4Net) -> u32 {
        let top_bits = self.top_bits;
        let region = Ipv4Net::new(net.network(), net.prefix_len().min(top_bits as u8))
            .unwrap_or_else(|_| unreachable!("not longer than the prefix it is made from"))
            .trunc();
        let around = rib.get_lpm(&region).map_or(0, |(_, leaf)| *leaf);
        let inside = rib.children(&region).map(|(net, leaf)| span_of(&net, *leaf));
        let intervals = sweep(span_of(&region, around), inside);
        let mut rest = intervals.as_slice();
        for slot in slot_of(first_of(&region), top_bits)..=slot_of(last_of(&region), top_bits) {
            let (first, last) = slot_range(slot as u32, top_bits);
            let old = self.direct[slot];
            let before = self.arena.len();
            let new = encode(&mut self.arena, take(&mut rest, last), first, top_bits);
            if new != old && same(&self.arena, old, new) {
                self.arena.resize(before);
                continue;
            }
            self.garbage += words_below(&self.arena, old);
            self.direct[slot] = new;
        }
        last_of(&region)
    }

    fn copied(&self) -> Fib4 {
        let spare = self.arena.len() / 64;
        Fib4 { direct: self.direct.clone(), arena: self.arena.clone_with_spare(spare), ..*self }
    }

    /// A copy without garbage.
    fn compacted(&self) -> Fib4 {
        let mut arena = Words::with_capacity(self.arena.len() - self.garbage / 2);
        let direct = self.direct.iter().map(|entry| copy(&self.arena, *entry, &mut arena)).collect();
        Fib4 { direct, arena, garbage: 0, ..*self }
    }

    fn trie(&self) -> Trie<'_> {
        Trie { direct: &self.direct, top_bits: self.top_bits, arena: &self.arena }
    }

    /// The leaf of the longest prefix around an address (in host order); 0 if there is none.
    #[inline]
    pub fn find(&self, addr: u32) -> Leaf {
        self.trie().find(addr)
    }

    /// True if its direct table is too large for a core's own cache: [`Fib4::prefetch`] helps.
    pub fn is_large(&self) -> bool {
        size_of_val(&*self.direct) >= 1 << 19
    }

    /// Fetches what a search for `addr` reads first.
    #[inline(always)]
    pub fn prefetch(&self, addr: u32) {
        self.trie().prefetch(addr);
    }

    /// The leaves of a burst of addresses, into the same places of `out`, which has the same length.
    #[inline]
    pub fn find_batch(&self, addrs: &[u32], out: &mut [Leaf]) {
        self.trie().find_batch(self.avx512, addrs, out);
    }

    /// [`Fib4::find_batch`] as on a CPU without AVX-512, for tests and benchmarks.
    pub fn find_batch_portable(&self, addrs: &[u32], out: &mut [Leaf]) {
        self.trie().find_batch(None, addrs, out);
    }

    /// Memory held, in bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Fib4>() + self.direct.capacity() * size_of::<u32>() + self.arena.capacity_bytes()
    }

    /// Routes in the table.
    pub fn routes(&self) -> usize {
        self.routes
    }
}

fn slot_of(addr: u32, top_bits: u32) -> usize {
    (u64::from(addr) >> (32 - top_bits)) as usize
}

/// The first and last address of a direct slot.
fn slot_range(slot: u32, top_bits: u32) -> (u32, u32) {
    let first = (u64::from(slot) << (32 - top_bits)) as u32;
    (first, first | (u64::from(u32::MAX) >> top_bits) as u32)
}

/// Of intervals that start at or before a range, those up to the range's `last` address; `rest` then
/// starts with the one that holds at `last`.
fn take<'a>(rest: &mut &'a [Interval<u32>], last: u32) -> &'a [Interval<u32>] {
    let mut end = 1;
    while rest.get(end).is_some_and(|interval| interval.first <= last) {
        end += 1;
    }
    let taken = &rest[..end];
    *rest = &rest[end - 1..];
    // One that starts right behind the range is the next range's first.
    if rest.len() > 1 && last.checked_add(1) == Some(rest[1].first) {
        *rest = &rest[1..];
    }
    taken
}

/// The entry for the range that begins at `first` and has `depth` fixed bits, its blocks appended to the
/// arena. The first interval holds at `first`, the others start within the range.
fn encode(arena: &mut Words, intervals: &[Interval<u32>], first: u32, depth: u32) -> u32 {
    if let [only] = intervals {
        return u32::from(only.leaf);
    }
    // The last block of a path may have fewer than six bits left; it then uses every 2^n-th of its 64 bits.
    let bits = STRIDE.min(32 - depth);
    let sub_bits = 32 - depth - bits;
    let mut entries = ArrayVec::<u32, 64>::new();
    let (mut bitmap, mut kind, mut sub, mut at) = (0u64, BLOCK, 0u32, 0);
    while sub < 1 << bits {
        let start = first + (sub << sub_bits);
        let last = start + ((1 << sub_bits) - 1);
        if intervals.get(at + 1).is_some_and(|next| next.first == start) {
            at += 1;
        }
        let mut end = at + 1;
        while intervals.get(end).is_some_and(|interval| interval.first <= last) {
            end += 1;
        }
        let entry = encode(arena, &intervals[at..end], start, depth + STRIDE);
        if entry & BLOCK != 0 {
            kind |= WIDE;
        }
        if entry & BLOCK != 0 || entries.last() != Some(&entry) {
            bitmap |= 1 << (sub << (STRIDE - bits));
            entries.push(entry);
        }
        if end > at + 1 {
            at = end - 1;
            sub += 1;
        } else {
            // Nothing changes until the next interval starts.
            let Some(next) = intervals.get(end) else { break };
            sub = (next.first - first) >> sub_bits;
        }
    }
    append(arena, kind, bitmap, &entries)
}

/// Appends a block; within one cache line if it can be.
fn append(arena: &mut Words, kind: u32, bitmap: u64, entries: &[u32]) -> u32 {
    let words = BITMAP_WORDS + entry_words(kind, entries.len());
    let mut place = arena.len();
    let left = LINE_WORDS - place % LINE_WORDS;
    if left < words.min(LINE_WORDS) {
        place += left;
    }
    arena.resize(place + words);
    assert!(arena.len() <= PLACE as usize, "a trie of 4 GB");
    let block = &mut arena[place..];
    block[0] = bitmap as u32;
    block[1] = (bitmap >> 32) as u32;
    if kind & WIDE != 0 {
        block[BITMAP_WORDS..].copy_from_slice(entries);
    } else {
        for (i, entry) in entries.iter().enumerate() {
            block[BITMAP_WORDS + i / 2] |= entry << (16 * (i & 1));
        }
    }
    kind | place as u32
}

/// Words of a block's entries.
fn entry_words(kind: u32, entries: usize) -> usize {
    if kind & WIDE != 0 { entries } else { entries.div_ceil(2) }
}

/// The words of the block that an entry leads to.
fn block_of(arena: &Words, entry: u32) -> &[u32] {
    let block = &arena[(entry & PLACE) as usize..];
    let entries = (block[0].count_ones() + block[1].count_ones()) as usize;
    &block[..BITMAP_WORDS + entry_words(entry, entries)]
}

/// The entries of a block that lead to further blocks.
fn blocks_below(arena: &Words, entry: u32) -> impl Iterator<Item = u32> {
    let entries = if entry & WIDE != 0 { &block_of(arena, entry)[BITMAP_WORDS..] } else { &[] };
    entries.iter().copied().filter(|entry| entry & BLOCK != 0)
}

/// Words of all blocks that an entry leads to.
fn words_below(arena: &Words, entry: u32) -> usize {
    if entry & BLOCK == 0 {
        return 0;
    }
    block_of(arena, entry).len()
        + blocks_below(arena, entry).map(|entry| words_below(arena, entry)).sum::<usize>()
}

/// Whether two blocks without blocks below them say the same.
fn same(arena: &Words, a: u32, b: u32) -> bool {
    let narrow = |entry: u32| entry & BLOCK != 0 && entry & WIDE == 0;
    narrow(a) && narrow(b) && block_of(arena, a) == block_of(arena, b)
}

/// Copies the blocks that an entry leads to; returns the entry in the new arena.
fn copy(from: &Words, entry: u32, to: &mut Words) -> u32 {
    if entry & BLOCK == 0 {
        return entry;
    }
    let block = block_of(from, entry);
    let bitmap = u64::from(block[0]) | u64::from(block[1]) << 32;
    if entry & WIDE != 0 {
        let entries: ArrayVec<u32, 64> =
            block[BITMAP_WORDS..].iter().map(|entry| copy(from, *entry, to)).collect();
        return append(to, BLOCK | WIDE, bitmap, &entries);
    }
    let entries: ArrayVec<u32, 64> = (0..bitmap.count_ones() as usize)
        .map(|i| block[BITMAP_WORDS + i / 2] >> (16 * (i & 1)) & 0xffff)
        .collect();
    append(to, BLOCK, bitmap, &entries)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::tables::fib_twin::{Random, Twin, real_table};

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a prefix")
    }

    fn addr(text: &str) -> u32 {
        text.parse::<Ipv4Addr>().expect("an address").into()
    }

    /// Every way to ask gives what the twin gives: at all boundaries, and at some more addresses.
    fn check(table: &Fib4, routes: &[(Ipv4Net, Leaf)], more: impl IntoIterator<Item = u32>) {
        let twin = Twin::of_v4(routes.iter().copied());
        let mut addrs: Vec<u32> = vec![0, 1, u32::MAX - 1, u32::MAX];
        for (net, _) in routes {
            let (first, last) = (first_of(net), last_of(net));
            addrs.extend([first.wrapping_sub(1), first, first / 2 + last / 2, last, last.wrapping_add(1)]);
        }
        addrs.extend(more);
        let expected: Vec<Leaf> = addrs.iter().map(|addr| twin.find_v4(*addr)).collect();
        for (addr, expected) in addrs.iter().zip(&expected) {
            assert_eq!(table.find(*addr), *expected, "find {}", Ipv4Addr::from(*addr));
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
        let table = Fib4::default();
        assert_eq!(table.find(addr("192.0.2.1")), 0);
        assert_eq!(table.routes(), 0);
        assert!(table.memory_bytes() <= 256, "{} bytes", table.memory_bytes());
        check(&table, &[], []);
    }

    #[test]
    fn the_longest_prefix_holds() {
        let routes = [
            (net("0.0.0.0/0"), 1),
            (net("192.0.2.0/24"), 2),
            (net("192.0.2.128/25"), 3),
            (net("192.0.2.129/32"), 4),
            (net("255.255.255.255/32"), Leaf::MAX),
        ];
        let table = Fib4::compile(routes);
        assert_eq!(table.find(addr("198.51.100.1")), 1);
        assert_eq!(table.find(addr("192.0.2.127")), 2);
        assert_eq!(table.find(addr("192.0.2.128")), 3);
        assert_eq!(table.find(addr("192.0.2.129")), 4);
        assert_eq!(table.routes(), 5);
        check(&table, &routes, []);
    }

    #[test]
    fn of_two_equal_prefixes_the_later_holds_and_host_bits_do_not_count() {
        let table = Fib4::compile([(net("192.0.2.0/24"), 1), (net("192.0.2.7/24"), 2)]);
        assert_eq!(table.find(addr("192.0.2.1")), 2);
        assert_eq!(table.routes(), 1);
    }

    #[test]
    fn a_small_table_costs_little() {
        let routes = (0..20u32)
            .map(|i| (Ipv4Net::new((0x0a00_0000 + (i << 8)).into(), 24).expect("/24"), 1 + i as Leaf));
        let table = Fib4::compile(routes);
        assert!(table.memory_bytes() < 2048, "{} bytes", table.memory_bytes());
    }

    /// Prefixes that nest: cut from few addresses, with now and then a bit flipped.
    fn nested_prefix() -> impl Strategy<Value = Ipv4Net> {
        let base =
            prop_oneof![Just(0u32), Just(u32::MAX), Just(0xc000_0200), Just(0xc000_02ff), any::<u32>()];
        (base, prop_oneof![Just(0u8), Just(32), Just(18), Just(24), 0..=32u8], proptest::option::of(0..32u32))
            .prop_map(|(base, len, flip)| {
                let addr = flip.map_or(base, |bit| base ^ 1 << bit);
                Ipv4Net::new(addr.into(), len).expect("0 to 32").trunc()
            })
    }

    fn leaf() -> impl Strategy<Value = Leaf> {
        prop_oneof![4 => 0..4u16, 1 => any::<Leaf>()]
    }

    proptest! {
        #[test]
        fn compiled_tables_equal_the_twin(
            routes in proptest::collection::vec((nested_prefix(), leaf()), 0..200),
            addrs in proptest::collection::vec(any::<u32>(), 0..100),
        ) {
            check(&Fib4::compile(routes.clone()), &routes, addrs);
        }

        #[test]
        fn changed_tables_equal_the_twin(
            routes in proptest::collection::vec((nested_prefix(), leaf()), 0..100),
            batches in proptest::collection::vec(
                proptest::collection::vec((nested_prefix(), proptest::option::of(leaf())), 1..6), 1..20),
            addrs in proptest::collection::vec(any::<u32>(), 0..20),
        ) {
            let mut rib: Rib4 = routes.into_iter().collect();
            let (mut patched, mut table) = (Fib4::compile(rib.iter().map(|(net, leaf)| (net, *leaf))), Fib4::default());
            for batch in batches {
                for (net, leaf) in &batch {
                    match leaf {
                        Some(leaf) => rib.insert(*net, *leaf),
                        None => rib.remove(net),
                    };
                }
                let changed: Vec<_> = batch.iter().map(|(net, _)| *net).collect();
                let routes: Vec<_> = rib.iter().map(|(net, leaf)| (net, *leaf)).collect();
                patched = patched.patched(&rib, &changed);
                check(&patched, &routes, addrs.iter().copied());
                table = if table.routes() == 0 { Fib4::compile(routes.iter().copied()) } else { table.with_changes(&rib, &changed) };
                check(&table, &routes, addrs.iter().copied());
                prop_assert_eq!(patched.routes(), routes.len());
                let reachable: usize = patched.direct.iter().map(|entry| words_below(&patched.arena, *entry)).sum();
                prop_assert!(reachable + patched.garbage <= patched.arena.len());
            }
        }
    }

    #[test]
    fn a_full_table_equals_the_twin_through_a_thousand_changes() {
        let Some((nets, _)) = real_table() else {
            eprintln!("no real table here: set SOFTGATE_BGP_TABLE");
            return;
        };
        let mut random = Random(4);
        let mut rib: Rib4 = nets.iter().map(|net| (*net, 1 + (random.next() % 500) as Leaf)).collect();
        let mut table = Fib4::compile(rib.iter().map(|(net, leaf)| (net, *leaf)));
        let addrs: Vec<u32> = (0..1_000_000).map(|_| random.next() as u32).collect();
        let compare = |table: &Fib4, rib: &Rib4| {
            let twin = Twin::of_v4(rib.iter().map(|(net, leaf)| (net, *leaf)));
            let mut found = vec![0; addrs.len()];
            table.find_batch(&addrs, &mut found);
            let mut portable = vec![0; addrs.len()];
            table.find_batch_portable(&addrs, &mut portable);
            for ((addr, found), portable) in addrs.iter().zip(&found).zip(&portable) {
                let expected = twin.find_v4(*addr);
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
