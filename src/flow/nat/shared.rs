//! One pool of two nodes: what either gives is in its half, and what the other tells of is taken in both.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{CAPACITY, Random, range};
use super::*;
use crate::neighbours::v4_key;
use crate::packet::hash::Key;
use crate::time::Nanos;

const NOW: Nanos = Nanos::from_secs(1000);
const OWNER: Owner = Owner::new(0).unwrap();

struct Node {
    claims: BlockClaims,
    pool: Pool,
    bindings: Bindings,
    random: Random,
}

/// Two addresses with 12 blocks each, and low ports.
fn spec() -> PoolSpec {
    PoolSpec {
        ports: Ports { first: 1024, last: 1024 + 12 * 64 - 1, low: true },
        max_blocks_per_host: 4,
        ..PoolSpec::new(0, vec![range("203.0.113.1", "203.0.113.2")])
    }
}

impl Node {
    fn new(half: Half, spec: PoolSpec) -> Node {
        let claims = BlockClaims::new(8, Key::default());
        let pool = Pool::compile(&PoolSpec { half: Some(half), ..spec }, &claims).expect("a legal pool");
        let bindings = Bindings::new(CAPACITY, Limits::default(), Key::default()).expect("memory");
        Node { claims, pool, bindings, random: Random(half as u64) }
    }

    fn pair(spec: &PoolSpec) -> [Node; 2] {
        [Half::Lower, Half::Upper].map(|half| Node::new(half, spec.clone()))
    }

    fn map(&mut self, inside: Inside, is_alone: bool) -> Result<Mapping, Refused> {
        let outside = Outside { pool: &self.pool, claims: &self.claims, owner: OWNER, is_alone };
        self.bindings.map(outside, inside, NOW, self.random.word())
    }

    /// Takes what the other node tells of.
    fn take(&mut self, inside: Inside, given: &Mapping) -> Result<u32, NotRestored> {
        let outside = Outside { pool: &self.pool, claims: &self.claims, owner: OWNER, is_alone: false };
        self.bindings.restore(outside, inside, (given.addr, given.port), NOW)
    }
}

fn inside(host: u8, port: u16) -> Inside {
    Inside { vrf: 0, addr: v4_key(0x0a00_0100 + u32::from(host)), port, protocol: Protocol::Udp }
}

#[test]
fn every_port_is_given_by_one_of_both() {
    for (first, last) in [(1024, 65535), (1024, 1151), (1100, 2000), (10_000, 20_000), (40_000, 40_999)] {
        for low in [true, false] {
            let spec = PoolSpec { ports: Ports { first, last, low }, ..spec() };
            let nodes = Node::pair(&spec);
            let mut counts = [0_u32; 2];
            for port in 0..=u16::MAX {
                let givers = [&nodes[0], &nodes[1]].map(|node| node.pool.giver(port));
                let expected = match (nodes[0].pool.ports().contains(port), givers[0]) {
                    (false, _) => [None; 2],
                    (true, Some(Giver::Here)) => [Some(Giver::Here), Some(Giver::Peer)],
                    (true, _) => [Some(Giver::Peer), Some(Giver::Here)],
                };
                assert_eq!(givers, expected, "{port} of {first}-{last}");
                counts[0] += u32::from(givers[0] == Some(Giver::Here));
                counts[1] += u32::from(givers[1] == Some(Giver::Here));
            }
            let (less, more) = (counts[0].min(counts[1]), counts[0].max(counts[1]));
            assert!(less * 2 >= more, "{counts:?} of {first}-{last}");
        }
    }
    let whole = Node::pair(&PoolSpec::new(0, vec![range("203.0.113.1", "203.0.113.1")]));
    let shared = whole.map(|node| node.pool.shared_blocks(&node.claims).expect("shared"));
    assert_eq!(shared[0].ports, (1024, 32767));
    assert_eq!(shared[1].ports, (32768, 65535));
    assert_eq!((shared[0].own.all, shared[0].peers.all), (496, 512));
    assert_eq!((shared[1].own.all, shared[1].peers.all), (512, 496));
}

#[test]
fn blocks_of_other_sizes_leave_the_halves_as_they_are() {
    let ports = |block_size| {
        let spec = PoolSpec { block_size, ..PoolSpec::new(0, vec![range("203.0.113.1", "203.0.113.1")]) };
        let [lower, _] = Node::pair(&spec);
        (0..=u16::MAX).filter(|port| lower.pool.giver(*port) == Some(Giver::Here)).count()
    };
    assert_eq!(ports(64), ports(4096));
}

#[test]
fn a_half_without_a_block_is_refused() {
    let ports = Ports { first: 1024, last: 2047, low: true };
    let compile = |block_size| {
        let spec = PoolSpec { half: Some(Half::Upper), ports, block_size, ..spec() };
        Pool::compile(&spec, &BlockClaims::new(8, Key::default())).map(drop)
    };
    assert_eq!(compile(512), Ok(()));
    assert_eq!(compile(1024), Err(BadPool::NoHalf(1024, 2047, 1024)));
}

#[test]
fn the_other_half_is_given_when_nobody_else_is_there_and_the_own_is_gone() {
    let spec = PoolSpec { max_blocks_per_host: 12, ..spec() };
    let mut node = Node::new(Half::Upper, spec);
    let mut given = Vec::new();
    let refused = loop {
        match node.map(inside(1, 2000 + given.len() as u16), false) {
            Ok(mapping) => given.push(mapping),
            Err(refused) => break refused,
        }
    };
    assert_eq!((given.len(), refused), (6 * 64, Refused::AddressExhausted), "a host has one address");
    assert!(given.iter().all(|mapping| node.pool.giver(mapping.port) == Some(Giver::Here)));
    let shared = node.pool.shared_blocks(&node.claims).expect("shared");
    assert_eq!((shared.own.given, shared.peers.given), (6, 0));

    for port in 0..6 * 64 {
        let mapping = node.map(inside(1, 3000 + port), true).expect("the other half");
        assert_eq!((node.pool.giver(mapping.port), mapping.addr), (Some(Giver::Peer), given[0].addr));
    }
    assert_eq!(node.map(inside(1, 9000), true), Err(Refused::AddressExhausted));
    // What is free of the own half comes first, and is all there is once the other node is heard again.
    node.bindings.set_limits(Limits { hold_down: [std::time::Duration::ZERO; 4], ..Limits::default() });
    node.bindings.release(given[0].id, NOW);
    assert_eq!(node.map(inside(1, 9000), true).map(|mapping| mapping.port), Ok(given[0].port));
    assert_eq!(node.map(inside(1, 9001), false), Err(Refused::AddressExhausted));
}

#[test]
fn a_host_that_comes_over_goes_on_at_its_address_in_the_other_half() {
    let [mut first, mut second] = Node::pair(&spec());
    // All four blocks that it may have, told to the other node.
    let given: Vec<(Inside, Mapping)> = (0..4 * 64)
        .map(|port| inside(1, 2000 + port))
        .map(|inside| (inside, first.map(inside, false).expect("a port")))
        .collect();
    assert_eq!(first.map(inside(1, 9000), false), Err(Refused::HostQuota));
    for (inside, mapping) in &given {
        second.take(*inside, mapping).expect("taken in either half");
    }
    let known = second.map(given[7].0, false).expect("it has it");
    assert_eq!((known.addr, known.port), (given[7].1.addr, given[7].1.port), "an endpoint keeps its port");
    for port in 0..4 * 64 {
        let mapping = second.map(inside(1, 3000 + port), false).expect("as much in this half");
        assert_eq!((second.pool.giver(mapping.port), mapping.addr), (Some(Giver::Here), given[0].1.addr));
    }
    assert_eq!(second.map(inside(1, 9000), false), Err(Refused::HostQuota));
}

/// Whose an address and port is, and its sessions by their mappings on both nodes.
type Holder = (Inside, Vec<[u32; 2]>);

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A host's endpoint opens a session at a node.
    Map { node: usize, host: u8, port: u16 },
    /// A session ends on both nodes.
    End(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_usize..2, 0_u8..6, prop_oneof![0_u16..100, 2000_u16..2100])
            .prop_map(|(node, host, port)| Op::Map { node, host, port: port.max(1) }),
        1 => any::<usize>().prop_map(Op::End),
    ]
}

proptest! {
    /// Whatever host asks whichever node, also both at once: no port has two endpoints, and what one gives the other takes.
    #[test]
    fn no_port_is_given_by_both(ops in prop::collection::vec(op(), 1..400)) {
        let mut nodes = Node::pair(&spec());
        let mut whose: BTreeMap<(u32, u16), Holder> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Map { node, host, port } => {
                    let inside = inside(host, port);
                    let Ok(mapping) = nodes[node].map(inside, false) else { continue };
                    let endpoint = (mapping.addr, mapping.port);
                    // Its own endpoint may have one back that rests, whichever half it is in.
                    let is_new = !whose.contains_key(&endpoint);
                    let (owner, sessions) = whose.entry(endpoint).or_insert_with(|| (inside, Vec::new()));
                    prop_assert_eq!(*owner, inside, "{:?}", endpoint);
                    if is_new {
                        prop_assert_eq!(nodes[node].pool.giver(mapping.port), Some(Giver::Here));
                    }
                    let told = nodes[1 - node].take(inside, &mapping);
                    prop_assert!(told.is_ok(), "{:?}", told);
                    let mut ids = [mapping.id; 2];
                    ids[1 - node] = told.unwrap_or_default();
                    sessions.push(ids);
                }
                Op::End(which) => {
                    let Some(at) = which.checked_rem(whose.len()) else { continue };
                    let Some((_, sessions)) = whose.values_mut().nth(at) else { continue };
                    if let Some(ids) = sessions.pop() {
                        for (node, id) in nodes.iter_mut().zip(ids) {
                            node.bindings.release(id, NOW);
                        }
                    }
                }
            }
        }
    }
}
