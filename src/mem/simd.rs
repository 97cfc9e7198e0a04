//! Cache-line shaped memory and the searches over it: what the FIBs need of `unsafe`, behind safe types.
//!
//! [`Words`] holds a popcount trie (`tables::fib4`); [`SearchTree`] is a 9-way search tree over 64-bit
//! keys (`tables::fib6`). Both can be searched one key at a time, or in batches: by AVX-512 where
//! [`Avx512::detect`] finds it, else by portable code that the compiler turns into AVX2. [`TagLine`] is
//! a bucket of a hash table (`tables::classify`).

#![allow(unsafe_code, reason = "SIMD intrinsics, and loads whose bounds the types prove once")]

use std::ops::{Deref, DerefMut};

use super::prefetch::prefetch;

/// Words of 32 bits per cache line of 64 bytes.
pub const LINE_WORDS: usize = 16;

/// Keys searched side by side, so that their cache misses overlap.
const LANES: usize = 16;

/// Proof that this CPU has the AVX-512 instructions used here.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// Asks the CPU: foundation, byte/word, double/quadword, vector lengths and vector popcount. Every
    /// server CPU with AVX-512 since Ice Lake and Zen 4 has them all.
    pub fn detect() -> Option<Avx512> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vpopcntdq")
        {
            return Some(Avx512(()));
        }
        None
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u32; LINE_WORDS]);

/// A growing array of 32-bit words that starts on a cache line.
#[derive(Default)]
pub struct Words {
    lines: Vec<CacheLine>,
    len: usize,
}

impl Words {
    /// An empty array with room for `words`.
    pub fn with_capacity(words: usize) -> Words {
        Words { lines: Vec::with_capacity(words.div_ceil(LINE_WORDS)), len: 0 }
    }

    /// A copy with room for `spare` more words.
    pub fn clone_with_spare(&self, spare: usize) -> Words {
        let mut copy = Words::with_capacity(self.len + spare);
        copy.lines.extend_from_slice(&self.lines);
        copy.len = self.len;
        copy
    }

    /// Cuts or lengthens the array; new words are zero.
    pub fn resize(&mut self, len: usize) {
        let old = self.len;
        self.lines.resize(len.div_ceil(LINE_WORDS), CacheLine([0; LINE_WORDS]));
        self.len = len;
        if len > old {
            let end = len.min(old.next_multiple_of(LINE_WORDS));
            self[old..end].fill(0);
        }
    }

    /// Gives back spare room if it is more than an eighth.
    pub fn shrink(&mut self) {
        if self.lines.capacity() - self.lines.len() > self.lines.len() / 8 {
            self.lines.shrink_to_fit();
        }
    }

    /// Memory held, used or not.
    pub fn capacity_bytes(&self) -> usize {
        self.lines.capacity() * size_of::<CacheLine>()
    }
}

impl Deref for Words {
    type Target = [u32];
    #[inline(always)]
    fn deref(&self) -> &[u32] {
        // SAFETY: `lines` is contiguous, a CacheLine is exactly LINE_WORDS words without padding, and
        // `len` never exceeds the words of `lines` (`resize` and `clone_with_spare` keep them together).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Words {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` covers all of `lines`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Marks a trie entry that is a block; without it the entry is a value.
pub const BLOCK: u32 = 1 << 31;
/// Marks a block whose entries are words, because some are blocks; without it they are 16-bit values.
pub const WIDE: u32 = 1 << 30;
/// A block's place: its first word in the arena.
pub const PLACE: u32 = WIDE - 1;
/// Address bits that one block decides: its bitmap has 64 bits.
pub const STRIDE: u32 = 6;

/// A popcount trie over 32-bit keys, borrowed for a search.
///
/// `direct` has `2^top_bits` entries, by the key's top bits. A block in `arena` is a bitmap of two words,
/// low word first: bit i is set where the value of the 64 sub-ranges changes; then one entry per set bit.
#[derive(Clone, Copy)]
pub struct Trie<'a> {
    /// Entries by the key's top bits.
    pub direct: &'a [u32],
    /// Top bits that index `direct`.
    pub top_bits: u32,
    /// The blocks.
    pub arena: &'a [u32],
}

impl Trie<'_> {
    /// The value at a key. Panics on a trie whose places or bitmaps are wrong.
    #[inline(always)]
    pub fn find(&self, key: u32) -> u16 {
        self.follow(key, self.direct[self.top(key)])
    }

    #[inline(always)]
    fn top(&self, key: u32) -> usize {
        (u64::from(key) >> (32 - self.top_bits)) as usize
    }

    /// The value at a key, given its direct entry.
    #[inline(always)]
    fn follow(&self, key: u32, mut entry: u32) -> u16 {
        let mut rest = key << self.top_bits;
        while entry & BLOCK != 0 {
            let block = &self.arena[(entry & PLACE) as usize..];
            let bitmap = u64::from(block[0]) | u64::from(block[1]) << 32;
            let rank = (bitmap & (u64::MAX >> (63 - (rest >> (32 - STRIDE))))).count_ones() as usize - 1;
            if entry & WIDE == 0 {
                return (block[2 + rank / 2] >> (16 * (rank & 1))) as u16;
            }
            entry = block[2 + rank];
            rest <<= STRIDE;
        }
        entry as u16
    }

    /// Fetches the direct entry of a key that is looked for soon.
    #[inline(always)]
    pub fn prefetch(&self, key: u32) {
        prefetch(self.direct, self.top(key));
    }

    /// The values at `keys`, into the same places of `values`. The two have the same length.
    pub fn find_batch(&self, avx512: Option<Avx512>, keys: &[u32], values: &mut [u16]) {
        assert_eq!(keys.len(), values.len(), "one place per key");
        assert!(self.top_bits <= 32 && self.direct.len() as u64 == 1 << self.top_bits, "one entry per top");
        #[cfg(target_arch = "x86_64")]
        if avx512.is_some() {
            // SAFETY: an Avx512 exists only where the CPU has the features that the function enables.
            return unsafe { x86::trie_find_batch(self, keys, values) };
        }
        let _ = avx512;
        for (keys, values) in keys.chunks(LANES).zip(values.chunks_mut(LANES)) {
            let mut entries = [0; LANES];
            for (entry, key) in entries.iter_mut().zip(keys) {
                *entry = self.direct[self.top(*key)];
                prefetch(self.arena, (*entry & PLACE) as usize);
            }
            for ((value, key), entry) in values.iter_mut().zip(keys).zip(entries) {
                *value = self.follow(*key, entry);
            }
        }
    }
}

/// Children of an inner node: one more than the 64-bit separators of a cache line.
pub const FANOUT: usize = 9;

/// A leaf line: up to nine intervals of the 64-bit key space, in one cache line with their values.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line {
    /// The first key of the first interval.
    pub base: u64,
    /// For each further interval i: `((first key - base) >> shift) - 1`; [`Line::UNUSED`] at the end.
    pub steps: [u32; FANOUT - 1],
    /// Trailing zero bits that all differences share.
    pub shift: u32,
    /// The intervals' values; unused ones repeat the last.
    pub values: [u16; FANOUT],
}

impl Line {
    /// A step that no key exceeds.
    pub const UNUSED: u32 = u32::MAX;

    #[inline(always)]
    fn find(&self, key: u64) -> u16 {
        self.values[self.smaller(self.distance(key))]
    }

    /// How far a key is from `base`, in steps.
    #[inline(always)]
    fn distance(&self, key: u64) -> u32 {
        (key.wrapping_sub(self.base) >> (self.shift & 63)).min(u64::from(u32::MAX)) as u32
    }

    /// Steps that are smaller than a distance.
    #[inline(always)]
    fn smaller(&self, distance: u32) -> usize {
        #[cfg(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "popcnt"))]
        // SAFETY: the whole program is compiled for CPUs with these features.
        unsafe {
            x86::smaller_steps(self, distance)
        }
        #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "popcnt")))]
        self.steps.iter().map(|step| usize::from(*step < distance)).sum()
    }
}

/// Separators of an inner node, [`ordered`]; `i64::MAX` where there is no further child.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Node([i64; FANOUT - 1]);

/// A key as a signed number of the same order: AVX2 compares signed numbers only.
#[inline(always)]
fn ordered(key: u64) -> i64 {
    (key ^ 1 << 63) as i64
}

impl Node {
    /// Separators that are smaller than a key.
    #[inline(always)]
    fn smaller(&self, key: i64) -> usize {
        #[cfg(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "popcnt"))]
        // SAFETY: the whole program is compiled for CPUs with these features.
        unsafe {
            x86::smaller(self, key)
        }
        #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "popcnt")))]
        self.0.iter().map(|separator| usize::from(*separator < key)).sum()
    }
}

/// Levels of inner nodes, at most: 9^10 lines would be 200 GB.
const MAX_LEVELS: usize = 10;

/// An implicit 9-way tree over [`Line`]s that are sorted by `base`.
///
/// Invariant (memory safety of the batch search rests on it): on each level, node j has separators other
/// than `i64::MAX` only for children that exist on the level below. A separator counts when it is smaller
/// than the key, so `i64::MAX` never counts, and whatever the key, the search stays in bounds. The fields
/// are private and nothing changes them after `new`.
pub struct SearchTree {
    /// All levels, the root's first.
    nodes: Vec<Node>,
    /// Where each level starts in `nodes`.
    levels: arrayvec::ArrayVec<usize, MAX_LEVELS>,
    lines: Vec<Line>,
}

impl SearchTree {
    /// Builds the inner nodes over `lines`, of which there is at least one. A search is only right if
    /// their bases ascend; the first line also stands for all keys before its base.
    pub fn new(lines: Vec<Line>) -> SearchTree {
        assert!(!lines.is_empty(), "a search tree has at least one line");
        assert!(u32::try_from(lines.len()).is_ok(), "a search tree of 256 GB");
        // Lines below one child, and nodes, of each level; bottom up.
        let mut shape = arrayvec::ArrayVec::<(usize, usize), MAX_LEVELS>::new();
        let (mut below, mut count) = (1, lines.len());
        while count > 1 {
            count = count.div_ceil(FANOUT);
            shape.push((below, count));
            below *= FANOUT;
        }
        let mut nodes = Vec::with_capacity(shape.iter().map(|(_, count)| count).sum());
        let mut levels = arrayvec::ArrayVec::new();
        for &(below, count) in shape.iter().rev() {
            levels.push(nodes.len());
            nodes.extend((0..count).map(|node| {
                Node(std::array::from_fn(|separator| {
                    let child_line = (node * FANOUT + separator + 1) * below;
                    lines.get(child_line).map_or(i64::MAX, |line| ordered(line.base.wrapping_sub(1)))
                }))
            }));
        }
        SearchTree { nodes, levels, lines }
    }

    /// The lines, in order of their bases.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The index of the line that decides about `key`.
    #[inline(always)]
    pub fn line_of(&self, key: u64) -> usize {
        let key = ordered(key);
        self.levels.iter().fold(0, |at, start| at * FANOUT + self.nodes[start + at].smaller(key))
    }

    /// The value at a key.
    #[inline(always)]
    pub fn find(&self, key: u64) -> u16 {
        self.lines[self.line_of(key)].find(key)
    }

    /// The values at `keys`, into the same places of `values`. The two have the same length.
    pub fn find_batch(&self, avx512: Option<Avx512>, keys: &[u64], values: &mut [u16]) {
        assert_eq!(keys.len(), values.len(), "one place per key");
        #[cfg(target_arch = "x86_64")]
        if avx512.is_some() {
            // SAFETY: an Avx512 exists only where the CPU has the features that the function enables.
            return unsafe { x86::tree_find_batch(self, keys, values) };
        }
        let _ = avx512;
        for (keys, values) in keys.chunks(LANES).zip(values.chunks_mut(LANES)) {
            let mut at = [0; LANES];
            for start in &self.levels {
                for (at, key) in at.iter_mut().zip(keys) {
                    *at = *at * FANOUT + self.nodes[start + *at].smaller(ordered(*key));
                }
            }
            for ((value, key), at) in values.iter_mut().zip(keys).zip(at) {
                *value = self.lines[at].find(*key);
            }
        }
    }

    /// Memory held, used or not.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.lines.capacity() * size_of::<Line>()
    }
}

/// One cache line of a hash table: up to ten 16-bit tags, each with a 32-bit value.
#[derive(Clone, Default)]
#[repr(C, align(64))]
pub struct TagLine {
    /// In order of arrival; 0 = empty.
    tags: [u16; TagLine::SLOTS],
    /// By slot.
    pub values: [u32; TagLine::SLOTS],
    overflows: bool,
}

impl TagLine {
    /// Tags per line.
    pub const SLOTS: usize = 10;

    /// Adds a tag, which is not 0. False if there is no room: then the line overflows from now on.
    pub fn push(&mut self, tag: u16, value: u32) -> bool {
        assert!(tag != 0, "0 is an empty slot");
        let Some(slot) = self.tags.iter().position(|tag| *tag == 0) else {
            self.overflows = true;
            return false;
        };
        self.tags[slot] = tag;
        self.values[slot] = value;
        true
    }

    /// True if a tag found no room here.
    #[inline(always)]
    pub fn overflows(&self) -> bool {
        self.overflows
    }

    /// The slots of this tag, as bits.
    #[inline(always)]
    pub fn hits(&self, tag: u16) -> u32 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 CPU has SSE2.
        unsafe {
            x86::hits(self, tag)
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.tags.iter().enumerate().map(|(slot, found)| u32::from(*found == tag) << slot).sum()
    }
}

/// The words of a line whose upper bits, from bit `SHIFT` on, are `tag`: one bit per word.
#[inline(always)]
pub fn tagged<const SHIFT: i32>(words: &[u32; LINE_WORDS], tag: u32) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    // SAFETY: the whole program is compiled for CPUs with AVX2.
    unsafe {
        x86::tagged::<SHIFT>(words, tag)
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "avx2")))]
    words.iter().enumerate().map(|(index, word)| u32::from(word >> SHIFT == tag) << index).sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{
        BLOCK, FANOUT, LANES, LINE_WORDS, Line, Node, PLACE, STRIDE, SearchTree, TagLine, Trie, WIDE,
        ordered, prefetch,
    };

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn hits(line: &TagLine, tag: u16) -> u32 {
        let line: *const __m128i = std::ptr::from_ref(line).cast();
        // SAFETY: a TagLine is 64 bytes, aligned to 64; this is the first quarter.
        let low = unsafe { _mm_load_si128(line) };
        // SAFETY: the second quarter: the last two tags and the first three values, initialised as they are.
        let high = unsafe { _mm_load_si128(line.wrapping_add(1)) };
        let tag = _mm_set1_epi16(tag as i16);
        let same = _mm_packs_epi16(_mm_cmpeq_epi16(low, tag), _mm_cmpeq_epi16(high, tag));
        _mm_movemask_epi8(same) as u32 & ((1 << TagLine::SLOTS) - 1)
    }

    #[cfg_attr(not(target_feature = "avx2"), expect(dead_code, reason = "only where AVX2 is given"))]
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn tagged<const SHIFT: i32>(words: &[u32; LINE_WORDS], tag: u32) -> u32 {
        let tag = _mm256_set1_epi32(tag as i32);
        let [low, high] = [0, 8].map(|half| {
            // SAFETY: eight of the sixteen words, from the first or the ninth on.
            let words = unsafe { _mm256_loadu_si256(words[half..].as_ptr().cast()) };
            let same = _mm256_cmpeq_epi32(_mm256_srli_epi32::<SHIFT>(words), tag);
            _mm256_movemask_ps(_mm256_castsi256_ps(same)) as u32
        });
        low | high << 8
    }

    #[cfg_attr(not(target_feature = "avx2"), expect(dead_code, reason = "only where AVX2 is given"))]
    #[inline]
    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn smaller(node: &Node, key: i64) -> usize {
        let key = _mm256_set1_epi64x(key);
        let [low, high] = [0, 4].map(|half| {
            // SAFETY: a Node is 64 bytes, aligned to 64; each half is 32, aligned to 32.
            let separators = unsafe { _mm256_load_si256(node.0[half..].as_ptr().cast()) };
            _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(key, separators))) as u32
        });
        (low | high << 4).count_ones() as usize
    }

    #[cfg_attr(not(target_feature = "avx2"), expect(dead_code, reason = "only where AVX2 is given"))]
    #[inline]
    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn smaller_steps(line: &Line, distance: u32) -> usize {
        let sign = _mm256_set1_epi32(i32::MIN);
        let distance = _mm256_xor_si256(sign, _mm256_set1_epi32(distance as i32));
        // SAFETY: `steps` is 32 bytes; the load is unaligned.
        let steps = unsafe { _mm256_loadu_si256(line.steps.as_ptr().cast()) };
        let greater = _mm256_cmpgt_epi32(distance, _mm256_xor_si256(sign, steps));
        (_mm256_movemask_ps(_mm256_castsi256_ps(greater)) as u32).count_ones() as usize
    }

    /// Words of `table` at `index`, in the lanes of `wanted`; 0 elsewhere and beyond the end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn gather(table: &[u32], index: __m512i, wanted: __mmask16) -> __m512i {
        let len = table.len().min(i32::MAX as usize) as i32;
        let inside = _mm512_mask_cmplt_epu32_mask(wanted, index, _mm512_set1_epi32(len));
        let zero = _mm512_setzero_si512();
        // SAFETY: lanes outside of `table` are masked off, and an index below i32::MAX is not negative.
        unsafe { _mm512_mask_i32gather_epi32::<4>(zero, inside, index, table.as_ptr().cast()) }
    }

    /// Pairs of words of `table` at `index` and after it, in the lanes of `wanted`; 0 elsewhere and where
    /// the pair reaches beyond the end.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn gather_pairs(table: &[u32], index: __m256i, wanted: __mmask8) -> __m512i {
        let len = table.len().min(i32::MAX as usize) as i32;
        let inside = _mm256_mask_cmplt_epu32_mask(wanted, index, _mm256_set1_epi32((len - 1).max(0)));
        let zero = _mm512_setzero_si512();
        // SAFETY: lanes whose second word is outside of `table` are masked off; no index is negative.
        unsafe { _mm512_mask_i32gather_epi64::<4>(zero, inside, index, table.as_ptr().cast()) }
    }

    /// Set bits of eight bitmaps from bit 0 to the given bit, as 32-bit numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn ranks(bitmaps: __m512i, bits: __m256i) -> __m256i {
        let above = _mm512_sub_epi64(_mm512_set1_epi64(63), _mm512_cvtepu32_epi64(bits));
        let below = _mm512_srlv_epi64(_mm512_set1_epi64(-1), above);
        _mm512_cvtepi64_epi32(_mm512_popcnt_epi64(_mm512_and_si512(bitmaps, below)))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    pub(super) fn trie_find_batch(trie: &Trie<'_>, keys: &[u32], values: &mut [u16]) {
        for (keys, values) in keys.chunks(AHEAD).zip(values.chunks_mut(AHEAD)) {
            let mut entries = [0; AHEAD];
            trie_begin(trie, keys, &mut entries);
            let entries = entries.chunks(LANES);
            for ((keys, values), entries) in keys.chunks(LANES).zip(values.chunks_mut(LANES)).zip(entries) {
                trie_finish(trie, keys, values, entries);
            }
        }
    }

    /// The direct entries of some keys; the blocks they lead to are on their way into the cache.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn trie_begin(trie: &Trie<'_>, keys: &[u32], entries: &mut [u32; AHEAD]) {
        for (keys, entries) in keys.chunks(LANES).zip(entries.chunks_mut(LANES)) {
            let lanes: __mmask16 = u16::MAX >> (LANES - keys.len());
            // SAFETY: the lanes beyond `keys` are masked off.
            let key = unsafe { _mm512_maskz_loadu_epi32(lanes, keys.as_ptr().cast()) };
            // A shift by 32 (no top bits) gives 0, as it should.
            let top = _mm512_srl_epi32(key, _mm_cvtsi32_si128(32 - trie.top_bits as i32));
            let entry = gather(trie.direct, top, lanes);
            // SAFETY: `entries` are LANES words: AHEAD is a multiple of it.
            unsafe { _mm512_storeu_epi32(entries.as_mut_ptr().cast(), entry) }
            if _mm512_test_epi32_mask(entry, _mm512_set1_epi32(BLOCK as i32)) != 0 {
                entries.iter().for_each(|entry| prefetch(trie.arena, (entry & PLACE) as usize));
            }
        }
    }

    /// Ends the search of up to LANES keys.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn trie_finish(trie: &Trie<'_>, keys: &[u32], values: &mut [u16], entries: &[u32]) {
        let one = _mm512_set1_epi32(1);
        let two = _mm512_set1_epi32(2);
        let lanes: __mmask16 = u16::MAX >> (LANES - keys.len());
        // SAFETY: the lanes beyond `keys` are masked off.
        let key = unsafe { _mm512_maskz_loadu_epi32(lanes, keys.as_ptr().cast()) };
        // SAFETY: as many entries as keys.
        let mut entry = unsafe { _mm512_maskz_loadu_epi32(lanes, entries.as_ptr().cast()) };
        let mut rest = _mm512_sll_epi32(key, _mm_cvtsi32_si128(trie.top_bits as i32));
        loop {
            let blocks = _mm512_test_epi32_mask(entry, _mm512_set1_epi32(BLOCK as i32));
            if blocks == 0 {
                break;
            }
            let place = _mm512_and_si512(entry, _mm512_set1_epi32(PLACE as i32));
            let wide = _mm512_mask_test_epi32_mask(blocks, entry, _mm512_set1_epi32(WIDE as i32));
            let bits = _mm512_srli_epi32::<{ 32 - STRIDE }>(rest);
            let low = ranks(
                gather_pairs(trie.arena, _mm512_castsi512_si256(place), blocks as __mmask8),
                _mm512_castsi512_si256(bits),
            );
            let high = ranks(
                gather_pairs(trie.arena, _mm512_extracti64x4_epi64::<1>(place), (blocks >> 8) as __mmask8),
                _mm512_extracti64x4_epi64::<1>(bits),
            );
            let rank = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            let rank = _mm512_sub_epi32(rank, one);
            // Narrow entries are two to a word.
            let half = _mm512_mask_mov_epi32(_mm512_srli_epi32::<1>(rank), wide, rank);
            let found = gather(trie.arena, _mm512_add_epi32(_mm512_add_epi32(place, two), half), blocks);
            let odd = _mm512_slli_epi32::<4>(_mm512_and_si512(rank, one));
            let narrow = _mm512_and_si512(_mm512_srlv_epi32(found, odd), _mm512_set1_epi32(0xffff));
            entry = _mm512_mask_mov_epi32(entry, blocks, narrow);
            entry = _mm512_mask_mov_epi32(entry, wide, found);
            if wide == 0 {
                break;
            }
            rest = _mm512_slli_epi32::<STRIDE>(rest);
        }
        // SAFETY: the lanes beyond `values`, which is as long as `keys`, are masked off.
        unsafe { _mm512_mask_cvtepi32_storeu_epi16(values.as_mut_ptr().cast(), lanes, entry) }
    }

    /// Keys whose lines are fetched ahead of their use: enough to keep all of a core's line-fill buffers
    /// busy when the lines are not in its L2.
    const AHEAD: usize = 64;
    /// Searches that go down the tree side by side: their positions fit the general registers.
    const ABREAST: usize = 8;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    pub(super) fn tree_find_batch(tree: &SearchTree, keys: &[u64], values: &mut [u16]) {
        for (keys, values) in keys.chunks(AHEAD).zip(values.chunks_mut(AHEAD)) {
            let mut at = [0; AHEAD];
            let (groups, few) = keys.as_chunks::<ABREAST>();
            let mut places = at.as_chunks_mut::<ABREAST>().0.iter_mut();
            for (keys, at) in groups.iter().zip(&mut places) {
                *at = tree_lines_of(tree, keys);
            }
            if let (false, Some(at)) = (few.is_empty(), places.next()) {
                let mut keys = [0; ABREAST];
                keys[..few.len()].copy_from_slice(few);
                *at = tree_lines_of(tree, &keys);
            }
            for ((key, value), at) in keys.iter().zip(values).zip(at) {
                debug_assert!((at as usize) < tree.lines.len());
                // SAFETY: `at` came from `tree_lines_of`, whose results are lines by SearchTree's invariant.
                let line = unsafe { tree.lines.get_unchecked(at as usize) };
                *value = line_find(line, *key);
            }
        }
    }

    /// The lines that decide about some keys, on their way into the cache.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn tree_lines_of(tree: &SearchTree, keys: &[u64; ABREAST]) -> [u32; ABREAST] {
        let keys: [__m512i; ABREAST] = std::array::from_fn(|lane| _mm512_set1_epi64(ordered(keys[lane])));
        let mut at = [0; ABREAST];
        for start in &tree.levels {
            for lane in 0..ABREAST {
                debug_assert!(start + at[lane] < tree.nodes.len());
                // SAFETY: `at` is a child that exists on this level: the root for the first, else by
                // SearchTree's invariant.
                let node = unsafe { tree.nodes.get_unchecked(start + at[lane]) };
                // SAFETY: a Node is 64 bytes, aligned to 64.
                let separators = unsafe { _mm512_load_si512(std::ptr::from_ref(node).cast()) };
                let smaller = _mm512_cmplt_epi64_mask(separators, keys[lane]);
                at[lane] = at[lane] * FANOUT + in_register(smaller.count_ones() as usize);
            }
        }
        at.iter().for_each(|at| prefetch(&tree.lines, *at));
        at.map(|at| at as u32)
    }

    /// The same number, in a general register. Without this the compiler sees that the lanes do the same
    /// and moves their counts through vectors and memory, which halves the speed.
    #[inline(always)]
    fn in_register(mut number: usize) -> usize {
        // SAFETY: no instruction at all; the operand stays as it is.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags))
        };
        number
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
    fn line_find(line: &Line, key: u64) -> u16 {
        // SAFETY: `steps` is 32 bytes; the load is unaligned.
        let steps = unsafe { _mm256_loadu_si256(line.steps.as_ptr().cast()) };
        let smaller = _mm256_cmplt_epu32_mask(steps, _mm256_set1_epi32(line.distance(key) as i32));
        line.values[smaller.count_ones() as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_words_are_zero_also_where_old_ones_were() {
        let mut words = Words::with_capacity(0);
        words.resize(20);
        words.fill(7);
        words.resize(3);
        words.resize(40);
        assert_eq!(words[..3], [7; 3]);
        assert!(words[3..].iter().all(|word| *word == 0));
        assert_eq!(words.as_ptr() as usize % 64, 0);
        assert_eq!(words.clone_with_spare(100)[..], words[..]);
    }

    #[test]
    fn tagged_words_are_found() {
        let words: [u32; LINE_WORDS] = std::array::from_fn(|index| (index as u32 % 5) << 25 | 0x1ff_ffff);
        for tag in 0..6 {
            let at = (0..LINE_WORDS as u32).filter(|index| index % 5 == tag);
            let twin: u32 = at.map(|index| 1 << index).sum();
            assert_eq!(tagged::<25>(&words, tag), twin);
        }
        assert_eq!(tagged::<25>(&[u32::MAX; LINE_WORDS], 127), 0xffff);
    }

    #[test]
    fn a_tag_line_finds_its_tags_and_no_others() {
        let mut line = TagLine::default();
        for slot in 0..TagLine::SLOTS as u32 {
            // Values that would be hits if they were taken for tags.
            assert!(line.push([7, 8][slot as usize % 2], 0x0007_0008));
            assert!(!line.overflows());
            assert_eq!(line.hits(7), 0x155 & ((2 << slot) - 1));
            assert_eq!(line.hits(8), 0x2aa & ((2 << slot) - 1));
            assert_eq!(line.hits(9), 0);
        }
        assert!(!line.push(9, 1) && line.overflows());
        assert_eq!((line.hits(9), line.hits(7)), (0, 0x155));
    }

    /// Lines with one interval each, of which line i has the value i.
    fn tree(lines: u64) -> SearchTree {
        let step = u64::MAX / lines;
        let line = |i: u64| Line {
            base: i * step,
            steps: [Line::UNUSED; FANOUT - 1],
            shift: 63,
            values: [i as u16; FANOUT],
        };
        SearchTree::new((0..lines).map(line).collect())
    }

    #[test]
    fn trees_of_all_heights_and_batches_of_all_lengths_agree() {
        for lines in [1, 2, 8, 9, 10, 80, 81, 82, 729, 730, 7000] {
            let (tree, step) = (tree(lines), u64::MAX / lines);
            let edges = (0..lines).flat_map(|i| [i * step, i * step + step - 1]);
            let keys: Vec<u64> = edges.chain([u64::MAX]).collect();
            let expected: Vec<u16> = keys.iter().map(|key| (key / step).min(lines - 1) as u16).collect();
            let found: Vec<u16> = keys.iter().map(|key| tree.find(*key)).collect();
            assert_eq!(found, expected, "{lines} lines, find");
            for avx512 in [Avx512::detect(), None] {
                for len in [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, keys.len()] {
                    let keys = &keys[keys.len().saturating_sub(len)..];
                    let mut found = vec![0; keys.len()];
                    tree.find_batch(avx512, keys, &mut found);
                    assert_eq!(
                        found,
                        expected[expected.len() - keys.len()..],
                        "{lines} lines, batch of {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_search_stays_inside_whatever_the_lines_say() {
        let line = |base| Line { base, steps: [0; FANOUT - 1], shift: 99, values: [1; FANOUT] };
        let tree = SearchTree::new([5, 0, u64::MAX, 3, 0, 0, 9, 9, 9, 1, 0].map(line).to_vec());
        let keys = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 1 << 63, u64::MAX];
        for avx512 in [Avx512::detect(), None] {
            let mut found = [0; 12];
            tree.find_batch(avx512, &keys, &mut found);
            assert_eq!(found, [1; 12]);
        }
    }

    #[test]
    fn a_batch_over_a_broken_trie_reads_nothing_outside() {
        let arena = [u32::MAX; 2];
        let direct = [BLOCK | WIDE | PLACE, BLOCK | 1, BLOCK, 7];
        let trie = Trie { direct: &direct, top_bits: 2, arena: &arena };
        let mut found = [0; 3];
        trie.find_batch(Avx512::detect(), &[3 << 30; 3], &mut found);
        assert_eq!(found, [7; 3]);
        if Avx512::detect().is_some() {
            trie.find_batch(Avx512::detect(), &[0, 1 << 30, 2 << 30], &mut found);
        }
    }
}
