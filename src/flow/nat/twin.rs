//! The slow twin of the bindings: maps of what was lent to whom, checked after every step of random histories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::tests::{CAPACITY, Random, range};
use super::*;
use crate::neighbours::v4_key;
use crate::packet::hash::Key;
use crate::time::Nanos;

#[derive(Clone, Copy, Debug)]
enum Op {
    Map { host: u8, port: u8, protocol: u8 },
    Acquire(usize),
    Release(usize),
    Sweep { worker: usize, budget: u32 },
    Pass { seconds: u64 },
    Pool(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0_u8..8, any::<u8>(), 0_u8..8).prop_map(|(host, port, protocol)| Op::Map { host, port, protocol }),
        2 => any::<usize>().prop_map(Op::Acquire),
        9 => any::<usize>().prop_map(Op::Release),
        2 => (0_usize..2, prop_oneof![Just(u32::MAX), 1_u32..100])
            .prop_map(|(worker, budget)| Op::Sweep { worker, budget }),
        2 => prop_oneof![1_u64..30, Just(120)].prop_map(|seconds| Op::Pass { seconds }),
        1 => (0_usize..3).prop_map(Op::Pool),
    ]
}

const HOLD_DOWN_S: u64 = 120;
const BLOCKS_PER_HOST: usize = 4;

/// Tight pools: 12 blocks to an address.
fn spec(which: usize) -> PoolSpec {
    let ranges = match which {
        0 => vec![range("203.0.113.1", "203.0.113.2")],
        1 => vec![range("203.0.113.2", "203.0.113.2"), range("198.51.100.7", "198.51.100.7")],
        _ => vec![range("203.0.113.1", "203.0.113.1")],
    };
    PoolSpec {
        ports: Ports { first: 1024, last: 1024 + 12 * 64 - 1, low: true },
        max_blocks_per_host: BLOCKS_PER_HOST as u16,
        ..PoolSpec::new(0, ranges)
    }
}

type Place = (Protocol, u32, u16);

#[derive(Clone, Debug)]
struct Lent {
    inside: Inside,
    worker: usize,
    id: u32,
    sessions: u32,
    released: Option<Nanos>,
    /// How often its host had moved when it was made.
    era: u32,
}

#[derive(Clone, Debug, Default)]
struct Host {
    era: u32,
    addr: Option<u32>,
}

/// A block as the log knows it: host and era.
type Blocks = BTreeMap<(u32, u16, u16), (u128, u32)>;

struct Twin {
    claims: BlockClaims,
    pools: Vec<Pool>,
    pool: usize,
    workers: Vec<Bindings>,
    now: Nanos,
    lent: BTreeMap<Place, Lent>,
    hosts: BTreeMap<u128, Host>,
    blocks: Blocks,
    random: Random,
}

impl Twin {
    fn new(seed: u64) -> Twin {
        let claims = BlockClaims::new(8, Key::default());
        let pools = (0..3).map(|which| Pool::compile(&spec(which), &claims).expect("legal")).collect();
        let workers = (0..2)
            .map(|_| Bindings::new(CAPACITY, Limits::default(), Key::default()).expect("memory"))
            .collect();
        Twin {
            claims,
            pools,
            pool: 0,
            workers,
            now: Nanos::from_secs(10),
            lent: BTreeMap::new(),
            hosts: BTreeMap::new(),
            blocks: BTreeMap::new(),
            random: Random(seed),
        }
    }

    fn owner(worker: usize) -> Owner {
        Owner::new(worker as u16).expect("small")
    }

    /// Reads a worker's log; a claimed block belongs to the host's present era.
    fn read_log(&mut self, worker: usize) {
        while let Some(event) = self.workers[worker].pop_event() {
            let block = (event.addr, event.first_port, event.last_port);
            match event.kind {
                EventKind::BlockClaimed => {
                    let era = self.hosts[&event.host].era;
                    let before = self.blocks.insert(block, (event.host, era));
                    assert_eq!(before, None, "{block:?} was claimed twice");
                }
                EventKind::BlockReleased => {
                    let (host, era) = self.blocks.remove(&block).expect("it was claimed");
                    assert_eq!(host, event.host);
                    let lent = self.lent.iter().filter(|((_, addr, port), _)| {
                        *addr == block.0 && (block.1..=block.2).contains(port)
                    });
                    let places: Vec<Place> = lent.map(|(place, _)| *place).collect();
                    for place in places {
                        let lent = self.lent.remove(&place).expect("just seen");
                        assert!(self.is_past_hold_down(&lent), "{block:?} was given back too early");
                    }
                    let host = self.hosts.get_mut(&host).expect("known");
                    if host.era == era && !self.blocks.values().any(|b| *b == (event.host, era)) {
                        // All gone: a new start, perhaps elsewhere.
                        *host = Host { era: era + 1, addr: None };
                    }
                }
            }
        }
    }

    fn is_past_hold_down(&self, lent: &Lent) -> bool {
        lent.released.is_some_and(|at| self.now.since(at) >= Duration::from_secs(HOLD_DOWN_S))
    }

    fn map(&mut self, inside: Inside) {
        let worker = (inside.addr % 2) as usize;
        let host = self.hosts.entry(inside.addr).or_default();
        if host.addr.is_some_and(|addr| !self.pools[self.pool].contains(addr)) {
            *host = Host { era: host.era + 1, addr: None };
        }
        let (era, paired) = (host.era, host.addr);
        let known = self.lent.iter().find(|(_, lent)| lent.inside == inside && lent.era == era);
        let known = known.map(|(place, lent)| (*place, lent.clone()));
        let pool = &self.pools[self.pool];
        let outside = Outside { pool, claims: &self.claims, owner: Twin::owner(worker), is_alone: false };
        let predicted = self.workers[worker].find(pool, &inside);
        let result = self.workers[worker].map(outside, inside, self.now, self.random.word());
        match result {
            Ok(mapping) => {
                if let Some(predicted) = predicted {
                    assert_eq!(predicted, mapping, "find() and map() agree");
                }
                assert!(pool.contains(mapping.addr));
                let place = (inside.protocol, mapping.addr, mapping.port);
                if let Some((place_known, lent)) = &known
                    && (*place_known != place || lent.id != mapping.id)
                {
                    assert!(self.is_past_hold_down(lent), "RFC 4787 REQ-1: {inside:?} had {place_known:?}");
                }
                self.check_new(inside, place, era, paired);
                if let Some((place_known, lent)) = known
                    && place_known != place
                {
                    assert!(self.is_past_hold_down(&lent));
                    self.lent.remove(&place_known);
                }
                let sessions = match self.lent.get(&place) {
                    Some(lent) if lent.inside == inside => lent.sessions + 1,
                    _ => 1,
                };
                let lent = Lent { inside, worker, id: mapping.id, sessions, released: None, era };
                self.lent.insert(place, lent);
                self.hosts.get_mut(&inside.addr).expect("there").addr = Some(mapping.addr);
                self.read_log(worker);
                let block = self.blocks.iter().find(|((addr, first, last), _)| {
                    *addr == mapping.addr && (*first..=*last).contains(&mapping.port)
                });
                assert_eq!(block.map(|(_, owner)| *owner), Some((inside.addr, era)), "its own block");
                let owner = self.claims.owner_of(0, mapping.addr, mapping.port);
                assert_eq!(owner, Some(Twin::owner(worker)));
            }
            Err(refused) => {
                assert!(known.is_none(), "REQ-11: {inside:?} had a mapping and got {refused:?}");
                self.read_log(worker);
                self.check_refused(inside, era, paired, refused);
            }
        }
    }

    fn check_new(&self, inside: Inside, place: Place, era: u32, paired: Option<u32>) {
        let (_, addr, port) = place;
        if let Some(lent) = self.lent.get(&place) {
            let its_own = lent.inside == inside && lent.era == era;
            assert!(its_own || self.is_past_hold_down(lent), "REQ-3, REQ-8: {place:?} is lent: {lent:?}");
        }
        assert!(paired.is_none_or(|paired| paired == addr), "REQ-2: the host is at {paired:?}");
        let low = inside.port < 1024 && inside.protocol != Protocol::Icmp;
        assert_eq!(low, port < 1024, "REQ-3a");
        assert!(port != 0);
    }

    /// A refusal is right only if nothing was left.
    fn check_refused(&self, inside: Inside, era: u32, paired: Option<u32>, refused: Refused) {
        let low = inside.port < 1024 && inside.protocol != Protocol::Icmp;
        let class = |first: u16| (first < 1024) == low;
        let own: Vec<_> = self
            .blocks
            .iter()
            .filter(|(_, owner)| **owner == (inside.addr, era))
            .map(|(block, _)| *block)
            .collect();
        for (addr, first, last) in own.iter().filter(|(_, first, _)| class(*first)) {
            for port in (*first).max(1)..=*last {
                let lent = self.lent.get(&(inside.protocol, *addr, port));
                let busy = lent.is_some_and(|lent| !self.is_past_hold_down(lent));
                assert!(busy, "{refused:?}, but {port} of its own block is free");
            }
        }
        let blocks_at =
            |addr: u32| self.blocks.keys().filter(|(at, first, _)| *at == addr && class(*first)).count();
        let per_address = if low { 128 } else { 12 };
        let pool = &self.pools[self.pool];
        match refused {
            Refused::HostQuota => assert_eq!(own.len(), BLOCKS_PER_HOST),
            Refused::AddressExhausted => assert_eq!(blocks_at(paired.expect("paired")), per_address),
            Refused::PoolExhausted => {
                assert_eq!(paired, None);
                assert!((0..pool.addresses()).all(|index| blocks_at(pool.address(index)) == per_address));
            }
            Refused::NotSubscriber | Refused::TableFull | Refused::HostRate => {
                panic!("{refused:?} cannot be here")
            }
        }
    }

    fn pick_live(&self, random: usize) -> Option<Place> {
        let live: Vec<Place> =
            self.lent.iter().filter(|(_, lent)| lent.sessions > 0).map(|(place, _)| *place).collect();
        (!live.is_empty()).then(|| live[random % live.len()])
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Map { host, port, protocol } => {
                let protocol =
                    [Protocol::Udp, Protocol::Tcp, Protocol::Icmp, Protocol::Udp][usize::from(protocol % 4)];
                let port = if port < 20 { u16::from(port) } else { 2000 + u16::from(port) };
                // The first hosts have most of the endpoints.
                let host = u32::from(host.saturating_sub(3));
                self.map(Inside { vrf: 0, addr: v4_key(0x0a00_0000 + host), port, protocol });
            }
            Op::Acquire(random) => {
                if let Some(place) = self.pick_live(random) {
                    let lent = self.lent.get_mut(&place).expect("there");
                    lent.sessions += 1;
                    self.workers[lent.worker].acquire(lent.id);
                }
            }
            Op::Release(random) => {
                if let Some(place) = self.pick_live(random) {
                    self.release(place);
                }
            }
            Op::Sweep { worker, budget } => {
                self.workers[worker].sweep(&self.claims, self.now, budget, u32::MAX);
                self.read_log(worker);
            }
            Op::Pass { seconds } => self.now = self.now.plus(Duration::from_secs(seconds)),
            Op::Pool(pool) => self.pool = pool,
        }
    }

    fn release(&mut self, place: Place) {
        let lent = self.lent.get_mut(&place).expect("there");
        lent.sessions -= 1;
        if lent.sessions == 0 {
            lent.released = Some(self.now);
        }
        self.workers[lent.worker].release(lent.id, self.now);
    }

    /// What the workers say is what the twin knows: from outside, from the list and from the counters.
    fn check_all(&self) {
        for ((protocol, addr, port), lent) in &self.lent {
            let view = self.workers[lent.worker].find_external(0, *protocol, *addr, *port);
            let seen = view.map(|view| (view.inside, view.id, view.sessions));
            let expected = (lent.sessions > 0).then_some((lent.inside, lent.id, lent.sessions));
            assert_eq!(seen, expected, "{protocol:?} {addr:x} {port}");
            let other = self.workers[1 - lent.worker].find_external(0, *protocol, *addr, *port);
            assert_eq!(other, None, "one worker answers");
        }
        let live = self.lent.values().filter(|lent| lent.sessions > 0).count();
        assert_eq!(self.workers.iter().map(|worker| worker.usage().live).sum::<usize>(), live);
        let listed: Vec<MappingView> =
            self.workers.iter().flat_map(|worker| worker.mappings_in(0..worker.pages())).collect();
        let places: BTreeSet<Place> =
            listed.iter().map(|view| (view.inside.protocol, view.addr, view.port)).collect();
        assert_eq!(places.len(), listed.len(), "each place once");
        assert_eq!(listed.iter().filter(|view| view.sessions > 0).count(), live);
    }

    /// Everything released and held down: nothing is left, and nobody owns a port.
    fn end(mut self) {
        while let Some(place) = self.pick_live(0) {
            self.release(place);
        }
        self.check_all();
        self.now = self.now.plus(Duration::from_secs(HOLD_DOWN_S));
        for worker in 0..2 {
            self.workers[worker].sweep(&self.claims, self.now, u32::MAX, u32::MAX);
            self.read_log(worker);
            assert_eq!(self.workers[worker].usage(), Use::default());
            assert_eq!(self.workers[worker].filed(), 0, "the indexes are empty");
        }
        assert_eq!(self.blocks, BTreeMap::new());
        assert!(self.claims.addresses().all(|(_, _, claimed)| claimed == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn bindings_keep_their_promises(seed in any::<u64>(), ops in prop::collection::vec(op(), 1..1200)) {
        let mut twin = Twin::new(seed);
        for (step, op) in ops.into_iter().enumerate() {
            twin.apply(op);
            if step % 50 == 0 {
                twin.check_all();
            }
        }
        twin.check_all();
        twin.end();
    }
}
