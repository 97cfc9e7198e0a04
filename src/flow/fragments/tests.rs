//! Tests of the datagrams under way, and the twin: a reassembler that writes down every byte.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::neighbours::v4_key;

const FIRST: First = First {
    flow: Handle(2),
    created: Tick(0),
    src_port: 4000,
    dst_port: 53,
    protocol: 17,
    identification: None,
    segment: None,
};

/// A fragment of datagram number `id`, whose source is one of three.
#[derive(Clone, Copy, Debug)]
struct Fragment {
    id: u32,
    start: usize,
    len: usize,
    more: bool,
}

/// Of every seventh datagram the rules do not let the first fragment through.
fn is_denied(id: u32) -> bool {
    id % 7 == 6
}

fn source_of(id: u32) -> u32 {
    id % 3
}

fn datagram(id: u32) -> Datagram {
    let (src, dst) = (v4_key(0x0a00_0001 + source_of(id)), v4_key(0xc633_6409));
    Datagram { src, dst, identification: id, vrf: 1, protocol: 17, family: Family::Ipv4 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Sent,
    Lost(DropReason),
}

type Log = Vec<(u32, Fate)>;

/// What is held: the number it came as.
type Table = Fragments<(u32, Fragment)>;

fn table() -> Table {
    Fragments::new(Key::default()).expect("memory")
}

/// Does with a fragment what the packet path does with it.
fn offer(table: &mut Table, fragment: Fragment, number: u32, returns: bool, now: Nanos) -> Option<Fate> {
    let Fragment { id, start, len, more } = fragment;
    let at = match table.arrive(&datagram(id), Piece::new(start, len, more, 20), now) {
        Ok(at) => at,
        Err(reason) => return Some(Fate::Lost(reason)),
    };
    if start == 0 && is_denied(id) {
        table.refuse(at, DropReason::FragmentUntracked);
        return Some(Fate::Lost(DropReason::FirewallDeny));
    }
    if start == 0 {
        table.open(at, FIRST);
    } else if table.first(at).is_none() {
        return match table.hold(at, (number, fragment), 1) {
            Ok(()) => None,
            Err((_, reason)) => Some(Fate::Lost(reason)),
        };
    }
    table.passed(at, returns);
    Some(Fate::Sent)
}

fn settle(table: &mut Table, now: Nanos, log: &mut Log) {
    while let Some(((number, fragment), lost)) = table.next_settled() {
        let fate = match lost {
            Some(reason) => Fate::Lost(reason),
            None => offer(table, fragment, number, true, now).expect("its first fragment has come"),
        };
        log.push((number, fate));
    }
}

fn receive(table: &mut Table, fragment: Fragment, number: u32, now: Nanos, log: &mut Log) {
    log.extend(offer(table, fragment, number, false, now).map(|fate| (number, fate)));
    settle(table, now, log);
}

#[derive(Default)]
struct Known {
    since: Nanos,
    bytes: BTreeSet<usize>,
    pieces: HashSet<(usize, usize, bool)>,
    held: Vec<u32>,
    is_open: bool,
    refused: Option<DropReason>,
}

impl Known {
    fn add(&mut self, Fragment { start, len, more, .. }: Fragment) -> Result<(), DropReason> {
        if len == 0 || more && !len.is_multiple_of(8) {
            return Err(DropReason::FragmentInvalid);
        }
        if self.pieces.contains(&(start, len, more)) {
            return Ok(());
        }
        let end = self.pieces.iter().find(|(_, _, more)| !more).map(|(start, len, _)| start + len);
        let beyond_the_end = end.is_some_and(|end| start + len > end);
        let before_the_end = !more && self.bytes.last().is_some_and(|last| *last >= start + len);
        if beyond_the_end || before_the_end || !self.bytes.is_disjoint(&(start..start + len).collect()) {
            return Err(DropReason::FragmentOverlap);
        }
        self.bytes.extend(start..start + len);
        self.pieces.insert((start, len, more));
        Ok(())
    }

    fn is_complete(&self) -> bool {
        let last = self.pieces.iter().find(|(_, _, more)| !more);
        last.is_some_and(|(start, len, _)| self.bytes.len() == start + len)
    }
}

#[derive(Default)]
struct Twin {
    datagrams: HashMap<u32, Known>,
    limit: usize,
}

impl Twin {
    fn held(&self, source: Option<u32>) -> usize {
        let of = |id: u32| source.is_none_or(|source| source_of(id) == source);
        self.datagrams.iter().filter(|(id, _)| of(**id)).map(|(_, known)| known.held.len()).sum()
    }

    fn receive(&mut self, fragment: Fragment, number: u32, now: Nanos, log: &mut Log) {
        let id = fragment.id;
        let is_full =
            self.held(None) == self.limit || self.held(Some(source_of(id))) == self.limit / HELD_SHARE;
        let known = self.datagrams.entry(id).or_insert_with(|| Known { since: now, ..Known::default() });
        if let Some(reason) = known.refused {
            log.push((number, Fate::Lost(reason)));
            return;
        }
        let waits = fragment.start != 0 && !known.is_open;
        let refused = match known.add(fragment) {
            Err(reason) => Some((reason, reason)),
            Ok(()) if waits && is_full => {
                Some((DropReason::FragmentQueueFull, DropReason::FragmentQueueFull))
            }
            Ok(()) if fragment.start == 0 && is_denied(id) => {
                Some((DropReason::FirewallDeny, DropReason::FragmentUntracked))
            }
            Ok(()) => None,
        };
        if let Some((this, others)) = refused {
            known.refused = Some(others);
            log.push((number, Fate::Lost(this)));
            log.extend(known.held.drain(..).map(|held| (held, Fate::Lost(others))));
        } else if waits {
            known.held.push(number);
        } else {
            known.is_open = true;
            log.push((number, Fate::Sent));
            log.extend(known.held.drain(..).map(|held| (held, Fate::Sent)));
            if known.is_complete() {
                self.datagrams.remove(&id);
            }
        }
    }

    fn expire(&mut self, now: Nanos, log: &mut Log) {
        let over = |known: &Known| known.since.plus(TIMEOUT) <= now;
        let mut aged: Vec<_> = self.datagrams.extract_if(|_, known| over(known)).collect();
        // Held fragments came after the one that the datagram counts from: the order is that of the first numbers.
        aged.sort_by_key(|(_, known)| (known.since, known.held.first().copied()));
        let lost = aged.into_iter().flat_map(|(_, known)| known.held);
        log.extend(lost.map(|number| (number, Fate::Lost(DropReason::FragmentTimeout))));
    }
}

fn run_both(limit: usize, steps: &[(Fragment, u64)]) {
    let (mut table, mut twin) = (table(), Twin { limit, ..Twin::default() });
    table.hold_at_most(limit);
    let mut now = Nanos::from_secs(1);
    let mut fates: BTreeMap<u32, Fate> = BTreeMap::new();
    for (number, (fragment, millis)) in steps.iter().enumerate() {
        let (mut log, mut expected) = (Log::new(), Log::new());
        now = now.plus(Duration::from_millis(*millis));
        while table.expire(now) {}
        settle(&mut table, now, &mut log);
        twin.expire(now, &mut expected);
        receive(&mut table, *fragment, number as u32, now, &mut log);
        twin.receive(*fragment, number as u32, now, &mut expected);
        assert_eq!(log, expected, "{number}: {fragment:?}");
        assert_eq!(table.frames(), twin.held(None));
        for (number, fate) in log {
            assert!(fates.insert(number, fate).is_none(), "{number} has two fates");
        }
    }
    now = now.plus(TIMEOUT);
    let mut log = Log::new();
    while table.expire(now) {}
    settle(&mut table, now, &mut log);
    for (number, fate) in log {
        assert_eq!(fate, Fate::Lost(DropReason::FragmentTimeout));
        assert!(fates.insert(number, fate).is_none(), "{number} has two fates");
    }
    assert_eq!(fates.len(), steps.len(), "every fragment has gone somewhere");
    assert_is_empty(&table);
}

fn assert_is_empty(table: &Table) {
    assert_eq!((table.frames(), table.next_deadline()), (0, Nanos(u64::MAX)));
    assert!(table.sources.iter().all(|source| (source.datagrams, source.frames) == (0, 0)));
    assert!(!table.has_settled());
}

/// Fragments as they come: mostly whole words, sometimes not.
fn any_fragment() -> impl Strategy<Value = Fragment> {
    let len = prop_oneof![8 => (1..4usize).prop_map(|words| words * 8), 1 => 0..30usize];
    (0..9u32, 0..6usize, len, prop::bool::weighted(0.8)).prop_map(|(id, word, len, more)| Fragment {
        id,
        start: word * 8,
        len,
        more,
    })
}

/// `pieces` fragments of a datagram.
fn cut(id: u32, pieces: usize) -> impl Iterator<Item = Fragment> {
    (0..pieces).map(move |index| Fragment { id, start: index * 16, len: 16, more: index + 1 < pieces })
}

/// Datagrams in fragments, in any order, some lost and some twice.
fn any_traffic() -> impl Strategy<Value = Vec<(Fragment, u64)>> {
    let sizes = prop::collection::vec(2..6usize, 1..30);
    let whole = sizes.prop_map(|sizes| {
        let cuts = sizes.iter().enumerate().flat_map(|(id, pieces)| cut(id as u32, *pieces));
        cuts.collect::<Vec<Fragment>>()
    });
    let with_faults = whole.prop_flat_map(|whole| {
        let times =
            prop::collection::vec(prop_oneof![1 => Just(0), 8 => Just(1), 1 => Just(2usize)], whole.len());
        (Just(whole), times)
    });
    let repeated = with_faults.prop_map(|(whole, times)| {
        let copies =
            whole.into_iter().zip(times).flat_map(|(fragment, times)| std::iter::repeat_n(fragment, times));
        copies.map(|fragment| (fragment, 10)).collect::<Vec<_>>()
    });
    repeated.prop_shuffle()
}

proptest! {
    #[test]
    fn equals_the_twin_whatever_comes(
        steps in prop::collection::vec((any_fragment(), prop_oneof![20 => 0..100u64, 1 => 5_000..20_000u64]), 0..300),
        limit in prop_oneof![Just(8usize), Just(16), Just(1024)],
    ) {
        run_both(limit, &steps);
    }

    #[test]
    fn equals_the_twin_in_any_order_with_losses(steps in any_traffic(), limit in prop_oneof![Just(16usize), Just(1024)]) {
        run_both(limit, &steps);
    }

    #[test]
    fn in_any_order_all_of_a_datagram_goes_on(
        order in Just((0..45).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let mut table = table();
        let fragments: Vec<Fragment> = cut(0, 45).collect();
        let mut log = Log::new();
        for index in &order {
            receive(&mut table, fragments[*index], *index as u32, Nanos(0), &mut log);
        }
        prop_assert!(log.iter().all(|(_, fate)| *fate == Fate::Sent));
        // What waited has kept its order.
        let first = order.iter().position(|index| *index == 0).expect("it is among them");
        let numbers: Vec<usize> = log.iter().map(|(number, _)| *number as usize).collect();
        let mut expected = vec![0];
        expected.extend(&order[..first]);
        expected.extend(&order[first + 1..]);
        prop_assert_eq!(numbers, expected);
        assert_is_empty(&table);
    }
}

#[test]
fn a_full_table_refuses_the_new_and_keeps_the_old() {
    let mut table = table();
    let piece = Piece::new(16, 16, true, 20);
    // Sources enough that none has more than its share.
    let of = |id: u32| Datagram { src: v4_key((id / 8) << 8), ..datagram(id) };
    let mut taken = Vec::new();
    for id in 0.. {
        match table.arrive(&of(id), piece, Nanos(id.into())) {
            Ok(at) => taken.push((id, at)),
            Err(reason) => {
                assert_eq!(reason, DropReason::FragmentTableFull);
                break;
            }
        }
    }
    assert_eq!(taken.len(), MAX_WAITING);
    for (id, at) in &taken {
        assert_eq!(table.arrive(&of(*id), piece, Nanos(0)), Ok(*at));
    }
    // Those in order have the other half for themselves (RFC 4787 REQ-14a).
    let first = Piece::new(0, 16, true, 20);
    let in_order = (1 << 22..).map(of).take_while(|other| table.arrive(other, first, Nanos(9999)).is_ok());
    assert_eq!(in_order.count(), MAX_DATAGRAMS - MAX_WAITING);
    // The oldest make room.
    assert_eq!(table.next_deadline(), Nanos(0).plus(TIMEOUT));
    table.expire(Nanos(0).plus(TIMEOUT));
    assert_eq!(table.arrive(&of(1 << 20), piece, Nanos(9999)), Ok(taken[0].1));
    assert_eq!(table.arrive(&of(1 << 21), piece, Nanos(9999)), Err(DropReason::FragmentTableFull));
    while table.expire(Nanos::from_secs(100)) {}
    assert_is_empty(&table);
}

#[test]
fn a_source_has_its_share_of_the_table() {
    let mut table = table();
    let piece = Piece::new(16, 16, true, 20);
    for id in 0..MAX_WAITING_PER_SOURCE as u32 {
        assert!(table.arrive(&datagram(id * 3), piece, Nanos(0)).is_ok());
    }
    assert_eq!(table.arrive(&datagram(1 << 20), piece, Nanos(0)).is_ok(), source_of(1 << 20) != 0);
    assert_eq!(table.arrive(&datagram(3 << 20), piece, Nanos(0)), Err(DropReason::FragmentTableFull));
    // In order it may have as many again.
    let first = Piece::new(0, 16, true, 20);
    for id in 0..(MAX_DATAGRAMS_PER_SOURCE - MAX_WAITING_PER_SOURCE) as u32 {
        assert!(table.arrive(&datagram((4 << 20) * 3 + id * 3), first, Nanos(0)).is_ok());
    }
    assert_eq!(table.arrive(&datagram(15 << 20), first, Nanos(0)), Err(DropReason::FragmentTableFull));
    // IPv6 sources are hosts by their /64.
    let v6 = |id: u32, host: u128| Datagram {
        src: 0x2001_0db8 << 96 | host,
        family: Family::Ipv6,
        ..datagram(id)
    };
    for id in 0..MAX_WAITING_PER_SOURCE as u32 {
        assert!(table.arrive(&v6(id, id.into()), piece, Nanos(0)).is_ok());
    }
    assert_eq!(table.arrive(&v6(9999, 9999), piece, Nanos(0)), Err(DropReason::FragmentTableFull));
    assert!(table.arrive(&v6(9999, 1 << 64), piece, Nanos(0)).is_ok());
}

#[test]
fn what_differs_makes_another_datagram() {
    let mut table = table();
    let base = datagram(1);
    let others = [
        base,
        Datagram { src: base.src + 1, ..base },
        Datagram { dst: base.dst + 1, ..base },
        Datagram { identification: 2, ..base },
        Datagram { vrf: 2, ..base },
        Datagram { protocol: 6, ..base },
        Datagram { family: Family::Ipv6, ..base },
    ];
    let places: HashSet<u16> = others
        .iter()
        .map(|other| table.arrive(other, Piece::new(0, 8, true, 20), Nanos(0)).expect("room"))
        .collect();
    assert_eq!(places.len(), others.len());
}

#[test]
fn the_end_of_a_datagram() {
    assert!(Piece::new(65_512, 3, false, 20).is_ok());
    assert_eq!(Piece::new(65_512, 4, false, 20), Err(DropReason::FragmentInvalid));
    assert!(Piece::new(65_528, 7, false, 0).is_ok());
    assert_eq!(Piece::new(65_528, 8, true, 0), Err(DropReason::FragmentInvalid));
    assert_eq!(Piece::new(0, 12, true, 20), Err(DropReason::FragmentInvalid));
    assert_eq!(Piece::new(8, 0, false, 20), Err(DropReason::FragmentInvalid));
}

#[test]
fn jumbo_frames_count_for_each_of_their_segments() {
    let mut table = table();
    table.hold_at_most(40);
    let fragment = Fragment { id: 0, start: 16, len: 16, more: true };
    let at = table.arrive(&datagram(0), Piece::new(16, 16, true, 20), Nanos(0)).expect("room");
    assert!(table.hold(at, (0, fragment), 5).is_ok());
    assert!(table.hold(at, (1, fragment), 5).is_ok());
    assert_eq!(table.frames(), 10);
    assert_eq!(table.hold(at, (2, fragment), 1).map_err(|lost| lost.1), Err(DropReason::FragmentQueueFull));
    let mut log = Log::new();
    settle(&mut table, Nanos(0), &mut log);
    assert_eq!(log, [0, 1].map(|number| (number, Fate::Lost(DropReason::FragmentQueueFull))));
    assert_eq!(table.frames(), 0);
}

#[test]
fn all_that_is_held_is_given_back_at_the_end() {
    let mut table = table();
    for id in 0..9 {
        for fragment in cut(id, 4).skip(1) {
            assert_eq!(offer(&mut table, fragment, id, false, Nanos(0)), None);
        }
    }
    // Settled, but not taken yet.
    offer(&mut table, cut(0, 4).next().expect("the first"), 0, false, Nanos(0));
    assert_eq!(table.take_held().count(), 27);
    assert!(!table.has_settled());
}
