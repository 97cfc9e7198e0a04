//! The classifier against its slow twin: the first rule of the list that matches.

use proptest::prelude::*;

use super::*;

#[path = "classbench.rs"]
mod classbench;

const KEY: hash::Key = hash::Key(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);

fn compile(rules: &[Match]) -> Classifier {
    Classifier::compile(rules.iter().copied(), KEY)
}

fn first_match(rules: &[Match], key: &Key<'_>, accept: impl Fn(u32) -> bool) -> Option<u32> {
    (0..).zip(rules).find(|(at, rule)| rule.matches(key) && accept(*at)).map(|(at, _)| at)
}

fn prefix(text: &str) -> Prefix {
    text.parse::<IpNet>().expect("a prefix").into()
}

fn addr(text: &str) -> u128 {
    match text.parse().expect("an address") {
        std::net::IpAddr::V4(addr) => addr.to_ipv6_mapped().into(),
        std::net::IpAddr::V6(addr) => addr.into(),
    }
}

/// TCP from `src` port 4000 to `dst`.
fn tcp(src: &str, dst: &str, dst_port: u16) -> Key<'static> {
    Key {
        src: addr(src),
        dst: addr(dst),
        src_port: 4000,
        dst_port,
        protocol: 6,
        src_sets: &[],
        dst_sets: &[],
    }
}

#[test]
fn without_rules_nothing_matches() {
    let empty = compile(&[]);
    assert_eq!(empty.find(&tcp("192.0.2.1", "198.51.100.1", 22), |_| true), None);
    assert_eq!(empty.find(&tcp("2001:db8::1", "2001:db8::2", 22), |_| true), None);
    assert_eq!((empty.rules(), empty.tables(), empty.memory_bytes()), (0, (0, 0), 0));
}

#[test]
fn the_first_match_holds_and_any_is_of_both_families() {
    let rules = [
        Match { src: prefix("192.0.2.0/24"), dst_ports: Ports::one(22), ..Match::ANY },
        Match { src: prefix("2001:db8::/32"), protocol: Some(17), ..Match::ANY },
        Match { dst: prefix("0.0.0.0/0"), dst_ports: Ports::new(80, 443).expect("a range"), ..Match::ANY },
        Match { dst: prefix("::/0"), dst_ports: Ports::one(80), ..Match::ANY },
        Match::ANY,
    ];
    let classifier = compile(&rules);
    let find = |key| classifier.find(&key, |_| true);
    assert_eq!(find(tcp("192.0.2.9", "198.51.100.1", 22)), Some(0));
    assert_eq!(find(tcp("192.0.3.9", "198.51.100.1", 22)), Some(4));
    assert_eq!(find(tcp("192.0.2.9", "198.51.100.1", 80)), Some(2));
    assert_eq!(find(tcp("192.0.2.9", "198.51.100.1", 444)), Some(4));
    assert_eq!(find(tcp("2001:db8::9", "2001:db8::1", 80)), Some(3));
    assert_eq!(find(tcp("2001:db8::9", "2001:db8::1", 443)), Some(4));
    assert_eq!(find(Key { protocol: 17, ..tcp("2001:db8::9", "2001:db8::1", 80) }), Some(1));
}

#[test]
fn what_accept_refuses_does_not_match() {
    let classifier = compile(&[Match::ANY; 40]);
    let key = tcp("192.0.2.1", "198.51.100.1", 22);
    assert_eq!(classifier.find(&key, |at| at >= 33), Some(33));
    assert_eq!(classifier.find(&key, |_| false), None);
}

#[test]
fn named_groups_are_found_by_any_of_the_groups_an_address_is_in() {
    let rules = [
        Match { src_set: Some(7), dst_set: Some(0), ..Match::ANY },
        Match { src_set: Some(3), src: prefix("192.0.2.0/24"), ..Match::ANY },
        Match { dst_set: Some(7), ..Match::ANY },
    ];
    let classifier = compile(&rules);
    let key = tcp("192.0.2.1", "198.51.100.1", 22);
    let find = |src_sets, dst_sets| classifier.find(&Key { src_sets, dst_sets, ..key }, |_| true);
    assert_eq!(find(&[], &[]), None);
    assert_eq!(find(&[1, 7], &[]), None);
    assert_eq!(find(&[1, 7], &[0, 5]), Some(0));
    assert_eq!(find(&[1, 3, 7], &[1, 7]), Some(1));
    assert_eq!(find(&[1], &[1, 7]), Some(2));
}

#[test]
fn one_rule_changes_and_the_old_classifier_stays_as_it_was() {
    let to = |port| Match { dst_ports: Ports::one(port), ..Match::ANY };
    let old = compile(&[to(22), to(80), Match::ANY]);
    let new = old.with(&[Change::Insert(1, to(443)), Change::Remove(0), Change::Replace(1, to(8080))]);
    let find =
        |classifier: &Classifier, port| classifier.find(&tcp("192.0.2.1", "198.51.100.1", port), |_| true);
    assert_eq!([22, 80, 443, 8080].map(|port| find(&old, port)), [Some(0), Some(1), Some(2), Some(2)]);
    assert_eq!([22, 80, 443, 8080].map(|port| find(&new, port)), [Some(2), Some(2), Some(0), Some(1)]);
    assert_eq!((old.rules(), new.rules()), (3, 3));
}

#[test]
fn a_table_grows_by_few_rules_at_a_time_and_shrinks_to_nothing() {
    let host = |i: u32| Match {
        dst: Prefix::new(MAPPED << 32 | u128::from(0xcb00_0000 + i * 77), 128).expect("legal"),
        ..Match::ANY
    };
    let mut rules: Vec<Match> = Vec::new();
    let mut classifier = compile(&rules);
    for i in 0..200 {
        let changes: Vec<Change> = (0..16).map(|j| Change::Insert(i * 8, host(i * 16 + j))).collect();
        changes.iter().for_each(|change| match change {
            Change::Insert(at, rule) => rules.insert(*at as usize, *rule),
            _ => unreachable!("only inserts"),
        });
        classifier = classifier.with(&changes);
    }
    for (rule, at) in rules.iter().zip(0u32..) {
        let key = Key { dst: rule.dst.addr, ..tcp("192.0.2.1", "203.0.113.1", 22) };
        assert_eq!(classifier.find(&key, |_| true), Some(at));
    }
    assert_eq!(classifier.tables(), (1, 0));
    let none = classifier.with(&vec![Change::Remove(0); rules.len()]);
    assert_eq!((none.rules(), none.tables()), (0, (0, 0)));
    assert_eq!(classifier.rules(), rules.len());
}

#[test]
fn thousands_of_rules_that_no_mask_tells_apart_stay_few_tables() {
    let classifier = compile(&[Match::ANY; 5000]);
    assert_eq!(classifier.find(&tcp("192.0.2.1", "198.51.100.1", 22), |at| at > 4321), Some(4322));
    assert!(classifier.tables().0 <= 64, "{:?} tables", classifier.tables());
}

#[test]
fn a_rule_behind_a_wider_one_is_shadowed() {
    let rules = [
        Match { dst: prefix("192.0.2.0/24"), ..Match::ANY },
        Match { dst: prefix("192.0.2.0/24"), protocol: Some(6), ..Match::ANY },
        Match { dst: prefix("192.0.0.0/16"), ..Match::ANY },
        Match { dst: prefix("2001:db8::/32"), src_set: Some(1), ..Match::ANY },
        Match { dst: prefix("2001:db8::1/128"), src_set: Some(1), dst_set: Some(1), ..Match::ANY },
        Match { dst: prefix("2001:db8::1/128"), src_set: Some(2), dst_set: Some(1), ..Match::ANY },
        Match { src: prefix("0.0.0.0/0"), ..Match::ANY },
        Match { src: prefix("::/0"), ..Match::ANY },
        Match::ANY,
        Match::ANY,
    ];
    assert_eq!(shadowed(&rules), [(1, 0), (4, 3), (9, 8)]);
}

/// Few values each, so that rules overlap, nest and repeat.
fn any_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = prop_oneof![Just(0xc000_0200u32), Just(0xc000_02ff), Just(u32::MAX), any::<u32>()];
    let v4 = (v4, prop_oneof![Just(96u8), Just(120), Just(127), Just(128), 96..=128u8])
        .prop_map(|(addr, len)| Prefix::new(MAPPED << 32 | u128::from(addr), len).expect("legal"));
    let v6 = prop_oneof![
        Just(0u128),
        Just(MAPPED << 32),
        Just(0x2001_0db8 << 96),
        Just(0x2001_0db8 << 96 | 7),
        Just(u128::MAX),
        any::<u128>()
    ];
    let v6 = (v6, prop_oneof![Just(0u8), Just(32), Just(64), Just(128), 0..=128u8])
        .prop_map(|(addr, len)| Prefix::new(addr, len).expect("legal"));
    prop_oneof![2 => Just(Prefix::ANY), 4 => v4, 2 => v6]
}

fn any_ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        3 => Just(Ports::ANY),
        3 => prop_oneof![Just(22u16), Just(80), Just(0), Just(u16::MAX)].prop_map(Ports::one),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Ports::new(a.min(b), a.max(b)).expect("legal")),
        1 => (0..100u16, 0..100u16).prop_map(|(a, b)| Ports::new(a.min(b), a.max(b)).expect("legal")),
    ]
}

fn any_rule() -> impl Strategy<Value = Match> {
    let protocol = proptest::option::of(prop_oneof![Just(0u8), Just(6), Just(17), Just(255)]);
    let set = || proptest::option::weighted(0.2, 0..4u16);
    ((any_prefix(), any_prefix()), (any_ports(), any_ports()), protocol, (set(), set())).prop_map(
        |((src, dst), (src_ports, dst_ports), protocol, (src_set, dst_set))| Match {
            src,
            dst,
            src_ports,
            dst_ports,
            protocol,
            src_set,
            dst_set,
        },
    )
}

/// Keys in and around rules: first or last of each range, sometimes one beyond.
fn check(classifier: &Classifier, rules: &[Match], seeds: &[u64]) {
    assert_eq!(classifier.rules(), rules.len());
    let sets: [&[u16]; 4] = [&[], &[1], &[0, 2, 3], &[0, 1, 2, 3]];
    for (seed, rule) in seeds.iter().zip(rules.iter().cycle()) {
        let other = &rules[(seed >> 32) as usize % rules.len()];
        let mut bits = *seed;
        let mut bit = || {
            bits = bits.rotate_right(1);
            bits & 1 == 1
        };
        let mut end = |prefix: &Prefix| {
            let last = u128::MAX.checked_shr(u32::from(prefix.len)).unwrap_or(0);
            let beyond = u128::from(bit() && bit());
            let in_v4 = bit() && prefix.any;
            let addr = if bit() {
                prefix.addr.wrapping_sub(beyond)
            } else {
                (prefix.addr | last).wrapping_add(beyond)
            };
            if in_v4 { MAPPED << 32 | addr & 0xffff_ffff } else { addr }
        };
        let (src, dst) = (end(&rule.src), end(&other.dst));
        let mut port = |ports: &Ports| match (bit(), bit()) {
            (true, _) => ports.first,
            (false, true) => ports.last,
            (false, false) => ports.last.wrapping_add(1),
        };
        let key = Key {
            src,
            dst,
            src_port: port(&rule.src_ports),
            dst_port: port(&other.dst_ports),
            protocol: rule.protocol.unwrap_or(6),
            src_sets: sets[(seed >> 10) as usize % 4],
            dst_sets: sets[(seed >> 12) as usize % 4],
        };
        // One family, and the other address as it came.
        let same = Key { dst: if is_v4(src) == is_v4(dst) { dst } else { src }, ..key };
        for key in [key, same] {
            assert_eq!(classifier.find(&key, |_| true), first_match(rules, &key, |_| true), "{key:x?}");
            let odd = |at: u32| (u64::from(at) ^ seed) & 1 == 1;
            assert_eq!(classifier.find(&key, odd), first_match(rules, &key, odd), "{key:x?}, every other");
        }
    }
}

proptest! {
    #[test]
    fn compiled_rules_equal_the_twin(
        rules in proptest::collection::vec(any_rule(), 1..150),
        seeds in proptest::collection::vec(any::<u64>(), 200),
    ) {
        check(&compile(&rules), &rules, &seeds);
    }

    #[test]
    fn changed_rules_equal_the_twin(
        mut rules in proptest::collection::vec(any_rule(), 1..60),
        batches in proptest::collection::vec(
            proptest::collection::vec((0..3u8, any::<u32>(), any_rule()), 1..6), 1..12),
        seeds in proptest::collection::vec(any::<u64>(), 50),
    ) {
        let mut classifier = compile(&rules);
        for batch in batches {
            let mut changes = Vec::new();
            for (kind, at, rule) in batch {
                let (len, old) = (rules.len() as u32, at as usize % rules.len());
                changes.push(match kind {
                    0 if len > 1 => { rules.remove(old); Change::Remove(old as u32) }
                    1 => { rules[old] = rule; Change::Replace(old as u32, rule) }
                    _ => { rules.insert((at % (len + 1)) as usize, rule); Change::Insert(at % (len + 1), rule) }
                });
            }
            classifier = classifier.with(&changes);
            check(&classifier, &rules, &seeds);
        }
    }

    #[test]
    fn shadowed_rules_equal_the_twin(rules in proptest::collection::vec(any_rule(), 1..150)) {
        let mut expected = Vec::new();
        for (rule, at) in rules.iter().zip(0u32..).filter(|(rule, _)| rule.is_of(true) || rule.is_of(false)) {
            let by = rules[..at as usize].iter().position(|by| by.covers(rule));
            expected.extend(by.map(|by| (at, by as u32)));
        }
        prop_assert_eq!(shadowed(&rules), expected);
    }
}

fn rule(filter: &classbench::Filter) -> Match {
    let prefix =
        |(addr, len): (u32, u8)| Prefix::new(MAPPED << 32 | u128::from(addr), len + 96).expect("legal");
    let ports = |(first, last)| Ports::new(first, last).expect("legal");
    Match {
        src: prefix(filter.src),
        dst: prefix(filter.dst),
        src_ports: ports(filter.src_ports),
        dst_ports: ports(filter.dst_ports),
        protocol: filter.protocol,
        ..Match::ANY
    }
}

fn key(header: &classbench::Header) -> Key<'static> {
    Key {
        src: MAPPED << 32 | u128::from(header.src),
        dst: MAPPED << 32 | u128::from(header.dst),
        src_port: header.src_port,
        dst_port: header.dst_port,
        protocol: header.protocol,
        src_sets: &[],
        dst_sets: &[],
    }
}

#[test]
fn classbench_sets_equal_the_twin_before_and_after_changes() {
    for name in ["acl1_1000", "fw1_1000", "ipc1_1000", "acl1_10000", "fw1_10000", "ipc1_10000"] {
        let Some((filters, headers)) = classbench::read(name) else {
            eprintln!("no ClassBench sets here: set SOFTGATE_CLASSBENCH");
            return;
        };
        let mut rules: Vec<Match> = filters.iter().map(rule).collect();
        let compare = |classifier: &Classifier, rules: &[Match]| {
            for header in headers.iter().step_by(headers.len() * rules.len() / 5_000_000 + 1) {
                let key = key(header);
                assert_eq!(
                    classifier.find(&key, |_| true),
                    first_match(rules, &key, |_| true),
                    "{name}: {header:?}"
                );
            }
        };
        let mut classifier = compile(&rules);
        compare(&classifier, &rules);
        for i in 0..300 {
            let from = i * 7919 % rules.len();
            let to = i * 6151 % rules.len();
            let rule = rules.remove(from);
            rules.insert(to, rule);
            classifier = classifier.with(&[Change::Remove(from as u32), Change::Insert(to as u32, rule)]);
        }
        compare(&classifier, &rules);
    }
}
