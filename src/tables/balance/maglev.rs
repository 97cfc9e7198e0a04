//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
//! 3.4): a table of which every backend has its share, and nearly the same places whoever else is in it.
//!
//! A backend's places come in an order of its own, which follows from what it is and from nothing else: two nodes with
//! the same backends have the same table. The backends take turns, each as many in a round as its weight says.

use std::net::IpAddr;

use crate::neighbours::addr_key;
use crate::packet::hash::{self, Key, fold};

/// Places of a table of few backends: a prime, so that every step visits every place.
const SMALL: u32 = 4_099;
/// Places of a table of many.
const LARGE: u32 = 65_537;
/// Backends beyond which a table is large: a hundred places of each make one the hundredth part of a share.
const FEW: usize = 40;

/// What offsets and steps are hashed with: digits of e. It is the same on every node and in every version.
const SEED: Key = Key(0xb7e1_5162_8aed_2a6a, 0xbf71_5880_9cf4_f3c7);

/// Who a backend is, on whatever node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Its address.
    pub addr: IpAddr,
    /// Its port; 0: that of the service.
    pub port: u16,
    /// Name of its VRF.
    pub vrf: String,
}

impl Identity {
    /// Where its order begins, and the step.
    fn permutation(&self, places: u32) -> (u32, u32) {
        let addr = hash::address(SEED, addr_key(self.addr), self.port.into());
        let vrf = self.vrf.bytes().fold(addr, |h, byte| fold(h ^ u64::from(byte), SEED.0));
        let (first, second) = (fold(vrf ^ SEED.0, SEED.1), fold(vrf ^ SEED.1, SEED.0));
        (below(first, places), 1 + below(second, places - 1))
    }
}

/// A number below `limit` from the upper half of a hash.
fn below(hash: u64, limit: u32) -> u32 {
    (((hash >> 32) * u64::from(limit)) >> 32) as u32
}

/// Which backend has which place.
#[derive(Clone, PartialEq, Eq)]
pub struct Maglev(Box<[u16]>);

impl std::fmt::Debug for Maglev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Maglev({} places)", self.0.len())
    }
}

impl Maglev {
    /// The table of these backends, in ascending order of their identity, each with its weight. Whoever has weight 0
    /// has no place. Fewer than 65,535 of them.
    pub fn build(backends: &[(&Identity, u16)]) -> Maglev {
        debug_assert!(backends.is_sorted_by_key(|(identity, _)| *identity), "the same order on every node");
        let places = if backends.len() > FEW { LARGE } else { SMALL };
        let heaviest = backends.iter().map(|(_, weight)| u32::from(*weight)).max().unwrap_or(0);
        if heaviest == 0 {
            return Maglev(Box::default());
        }
        struct Turn {
            place: u32,
            step: u32,
            weight: u32,
            saved: u32,
            backend: u16,
        }
        let mut turns: Vec<Turn> = (0..)
            .zip(backends)
            .filter(|(_, (_, weight))| *weight > 0)
            .map(|(backend, (identity, weight))| {
                let (place, step) = identity.permutation(places);
                Turn { place, step, weight: (*weight).into(), saved: 0, backend }
            })
            .collect();
        let mut table = vec![NOBODY; places as usize];
        let mut left = places;
        // The heaviest has a turn in each pass, the others when they have saved up for it: after as many passes as the
        // heaviest weighs each has had its weight in turns, and at no time is anybody more than one behind.
        loop {
            for turn in &mut turns {
                turn.saved += turn.weight;
                if turn.saved < heaviest {
                    continue;
                }
                turn.saved -= heaviest;
                while table[turn.place as usize] != NOBODY {
                    turn.advance(places);
                }
                table[turn.place as usize] = turn.backend;
                turn.advance(places);
                left -= 1;
                if left == 0 {
                    return Maglev(table.into());
                }
            }
        }

        impl Turn {
            fn advance(&mut self, places: u32) {
                self.place += self.step;
                if self.place >= places {
                    self.place -= places;
                }
            }
        }
    }

    /// The backend, as an index into those it was built of; `None`: there is none.
    pub fn find(&self, hash: u64) -> Option<u16> {
        let places = u32::try_from(self.0.len()).ok().filter(|places| *places > 0)?;
        Some(self.0[below(hash, places) as usize])
    }

    /// How many places each of so many backends has.
    pub fn shares(&self, backends: usize) -> Vec<u32> {
        let mut shares = vec![0; backends];
        self.0.iter().for_each(|backend| shares[usize::from(*backend)] += 1);
        shares
    }
}

/// A place that is free still.
const NOBODY: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn backend(n: u16) -> Identity {
        Identity { addr: IpAddr::from([10, 0, (n >> 8) as u8, n as u8]), port: 8443, vrf: "default".into() }
    }

    fn build(backends: &BTreeMap<Identity, u16>) -> Maglev {
        let listed: Vec<(&Identity, u16)> = backends.iter().map(|(who, weight)| (who, *weight)).collect();
        Maglev::build(&listed)
    }

    fn owners<'a>(backends: &'a BTreeMap<Identity, u16>, table: &Maglev) -> Vec<&'a Identity> {
        let names: Vec<&Identity> = backends.keys().collect();
        table.0.iter().map(|backend| names[usize::from(*backend)]).collect()
    }

    /// The paper's algorithm, word for word, with one turn each.
    fn as_in_the_paper(backends: &BTreeMap<Identity, u16>) -> Vec<u16> {
        let m = if backends.len() > FEW { LARGE } else { SMALL };
        let permutation: Vec<Vec<u32>> = backends
            .keys()
            .map(|who| {
                let (offset, skip) = who.permutation(m);
                (0..u64::from(m))
                    .map(|j| ((u64::from(offset) + j * u64::from(skip)) % u64::from(m)) as u32)
                    .collect()
            })
            .collect();
        let (mut next, mut entry) = (vec![0; backends.len()], vec![-1; m as usize]);
        let mut n = 0;
        loop {
            for i in 0..backends.len() {
                let mut c = permutation[i][next[i]] as usize;
                while entry[c] >= 0 {
                    next[i] += 1;
                    c = permutation[i][next[i]] as usize;
                }
                entry[c] = i as i32;
                next[i] += 1;
                n += 1;
                if n == m {
                    return entry.into_iter().map(|i| i as u16).collect();
                }
            }
        }
    }

    #[test]
    fn equal_weights_are_the_papers_tables() {
        for count in [1, 2, 3, 7, 40, 41] {
            let backends: BTreeMap<Identity, u16> = (0..count).map(|n| (backend(n), 5)).collect();
            assert_eq!(*build(&backends).0, *as_in_the_paper(&backends), "{count} backends");
        }
    }

    /// The bound: at most 0.7 % of a large table moves between those who stay when one of 100 leaves.
    #[test]
    fn when_one_of_a_hundred_leaves_few_places_of_the_others_move() {
        let all: BTreeMap<Identity, u16> = (0..100).map(|n| (backend(n), 1)).collect();
        let before = build(&all);
        let mut worst = 0;
        for gone in [0, 17, 50, 99] {
            let mut rest = all.clone();
            rest.remove(&backend(gone));
            let after = build(&rest);
            let pairs = owners(&all, &before).into_iter().zip(owners(&rest, &after));
            worst = worst.max(pairs.filter(|(was, is)| **was != backend(gone) && was != is).count());
        }
        assert!(worst * 1000 <= 7 * LARGE as usize, "{worst} of {LARGE} places moved");
        assert!(worst > 0, "it was another table");
    }

    #[test]
    fn the_empty_and_the_weightless_have_no_backend() {
        assert_eq!(Maglev::build(&[]).find(7), None);
        assert_eq!(Maglev::build(&[(&backend(1), 0)]).find(u64::MAX), None);
        let one = Maglev::build(&[(&backend(1), 0), (&backend(2), 3)]);
        assert!([0, 1, u64::MAX].map(|hash| one.find(hash)).iter().all(|found| *found == Some(1)));
    }

    /// What a node of another version must compute as well: from the definition in `tests/hash_vectors.py`.
    #[test]
    fn offsets_and_steps_are_the_written_down_ones() {
        let v6 = Identity { addr: "2001:db8::5".parse().expect("an address"), port: 0, vrf: "blue".into() };
        let found = [backend(0).permutation(SMALL), backend(258).permutation(LARGE), v6.permutation(LARGE)];
        assert_eq!(found, VECTORS);
    }

    const VECTORS: [(u32, u32); 3] = [(1752, 2401), (39_871, 62_830), (37_545, 15_904)];

    proptest! {
        /// Shares are as the weights, but for a turn that a backend has saved up for when the table is full, and for its
        /// part of the places that all others have saved up for.
        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(0u16..=100, 1..60)) {
            let backends: BTreeMap<Identity, u16> = (0..).map(backend).zip(weights).collect();
            let table = build(&backends);
            let sum: u32 = backends.values().map(|weight| u32::from(*weight)).sum();
            let places = table.0.len() as f64;
            let listed: Vec<u16> = backends.values().copied().collect();
            for (share, weight) in table.shares(listed.len()).into_iter().zip(listed) {
                let fair = if sum == 0 { 0.0 } else { places * f64::from(weight) / f64::from(sum) };
                // If all weigh nothing, there are no places.
                let slack = 2.0 + fair * backends.len() as f64 / places.max(1.0);
                prop_assert!((f64::from(share) - fair).abs() <= slack, "{share} places, {fair} would be fair");
            }
        }

        /// Nothing but who there is, and how much each weighs against the others, makes the table.
        #[test]
        fn weights_are_relative(weights in proptest::collection::vec(1u16..=50, 1..30), times in 1u16..=10) {
            let of = |times: u16| -> BTreeMap<Identity, u16> {
                (0..).map(backend).zip(weights.iter().map(|weight| weight * times)).collect()
            };
            prop_assert_eq!(build(&of(1)), build(&of(times)));
        }
    }
}
