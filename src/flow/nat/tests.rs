//! Bindings by clause of the RFCs, and their figures.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::neighbours::v4_key;
use crate::packet::hash::Key;
use crate::ratelimit::Rate;
use crate::time::Nanos;

/// Random words for tests: splitmix64.
pub(super) struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

pub(super) fn range(first: &str, last: &str) -> AddressRange {
    let addr = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
    AddressRange { first: addr(first), last: addr(last) }
}

pub(super) const CAPACITY: Capacity = Capacity { mappings: 40_000, hosts: 500, blocks: 2_000, pages: 2_000 };

/// One worker, its pool, and the clock in the test's hand.
struct Gate {
    claims: BlockClaims,
    pool: Pool,
    bindings: Bindings,
    now: Nanos,
    random: Random,
}

const OWNER: Owner = Owner::new(0).unwrap();

/// 203.0.113.1 with 64 blocks, less with `ports` in the spec.
fn spec(last: &str) -> PoolSpec {
    PoolSpec::new(0, vec![range("203.0.113.1", last)])
}

impl Gate {
    fn new(spec: PoolSpec) -> Gate {
        let claims = BlockClaims::new(64, Key::default());
        let pool = Pool::compile(&spec, &claims).expect("a legal pool");
        let bindings = Bindings::new(CAPACITY, Limits::default(), Key::default()).expect("memory");
        Gate { claims, pool, bindings, now: Nanos::from_secs(1000), random: Random(7) }
    }

    fn map(&mut self, inside: Inside) -> Result<Mapping, Refused> {
        let outside = Outside { pool: &self.pool, claims: &self.claims, owner: OWNER, is_alone: false };
        self.bindings.map(outside, inside, self.now, self.random.word())
    }

    fn some(&mut self, inside: Inside) -> Mapping {
        self.map(inside).expect("a mapping")
    }

    fn release(&mut self, mapping: Mapping) {
        self.bindings.release(mapping.id, self.now);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
    }

    fn sweep_all(&mut self) {
        self.bindings.sweep(&self.claims, self.now, u32::MAX, u32::MAX);
    }

    fn becomes(&mut self, spec: PoolSpec) {
        self.pool = Pool::compile(&spec, &self.claims).expect("a legal pool");
    }

    fn found(&self, protocol: Protocol, mapping: Mapping) -> Option<Inside> {
        Some(self.bindings.find_external(0, protocol, mapping.addr, mapping.port)?.inside)
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.bindings.pop_event()).collect()
    }
}

fn endpoint(protocol: Protocol, host: u32, port: u16) -> Inside {
    Inside { vrf: 0, addr: v4_key(0x0a00_0000 + host), port, protocol }
}

fn udp(host: u32, port: u16) -> Inside {
    endpoint(Protocol::Udp, host, port)
}

fn tcp(host: u32, port: u16) -> Inside {
    endpoint(Protocol::Tcp, host, port)
}

#[test]
fn rfc4787_req1_rfc5382_req1_rfc5508_req1a_one_endpoint_has_one_mapping() {
    let mut gate = Gate::new(spec("203.0.113.4"));
    for protocol in Protocol::ALL {
        let first = gate.some(endpoint(protocol, 1, 4000));
        assert_eq!(gate.some(endpoint(protocol, 1, 4000)), first);
        assert_eq!(gate.bindings.find(&gate.pool, &endpoint(protocol, 1, 4000)), Some(first));
        assert_eq!(gate.found(protocol, first), Some(endpoint(protocol, 1, 4000)));
    }
    assert_eq!(gate.bindings.usage().live, 4);
    assert_eq!(gate.bindings.usage().blocks, 1, "a block serves all protocols");
}

#[test]
fn rfc4787_req2_rfc6888_req2_all_of_a_host_is_at_one_address() {
    let mut gate = Gate::new(spec("203.0.113.16"));
    let mut addresses = BTreeSet::new();
    for host in 0..50 {
        let of_host: BTreeSet<u32> = (0..150)
            .flat_map(|port| Protocol::ALL.map(|protocol| endpoint(protocol, host, 1024 + port)))
            .chain([udp(host, 123), tcp(host, 80)])
            .map(|inside| gate.some(inside).addr)
            .collect();
        assert_eq!(of_host.len(), 1, "host {host} is at {of_host:?}");
        addresses.extend(of_host);
    }
    assert!(addresses.len() > 8, "hosts are spread: {addresses:?}");
}

#[test]
fn rfc4787_req3_rfc5382_req7_no_port_is_lent_twice() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let mut lent = BTreeSet::new();
    for host in 0..30 {
        for port in 0..200 {
            let mapping = gate.some(udp(host, 5000 + port));
            assert!(lent.insert((mapping.addr, mapping.port)), "{mapping:?} is lent twice");
        }
    }
    let mapping = gate.some(tcp(0, 5000));
    assert!(mapping.port >= 1024, "another protocol may have the same port");
}

#[test]
fn rfc4787_req3a_the_port_class_is_kept() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    for (port, host) in [1, 123, 500, 1023].into_iter().zip(0..) {
        let mapping = gate.some(udp(host, port));
        assert!((1..1024).contains(&mapping.port), "{port} became {}", mapping.port);
        assert_eq!(gate.found(Protocol::Udp, mapping), Some(udp(host, port)));
    }
    for port in [1024, 5000, 65535] {
        assert!(gate.some(udp(1, port)).port >= 1024);
    }
    assert!(gate.some(endpoint(Protocol::Icmp, 1, 7)).port >= 1024, "query identifiers have no classes");
}

#[test]
fn well_known_ports_serve_128_hosts_of_an_address_and_never_port_0() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    for host in 0..128 {
        assert_ne!(gate.some(udp(host, 123)).port, 0);
    }
    assert_eq!(gate.map(udp(128, 123)), Err(Refused::PoolExhausted));
    gate.some(udp(128, 1024));
    assert_eq!(gate.map(udp(128, 123)), Err(Refused::AddressExhausted), "RFC 4787 REQ-11: no other class");
}

#[test]
fn the_gateways_own_address_gives_only_its_explicit_range() {
    let mut spec = spec("203.0.113.1");
    spec.ports = Ports { first: 32768, last: 60999, low: false };
    spec.max_blocks_per_host = u16::MAX;
    let mut gate = Gate::new(spec);
    let mut ports = BTreeSet::new();
    let refused = (0..u16::MAX).map(|port| gate.map(udp(1, port))).find_map(|mapped| match mapped {
        Ok(mapping) => {
            ports.insert(mapping.port);
            None
        }
        Err(refused) => Some(refused),
    });
    assert_eq!(refused, Some(Refused::AddressExhausted));
    assert_eq!(ports, (32768..=60999).collect(), "each port of the range, and no other (RFC 6888 REQ-13)");
}

#[test]
fn rfc6056_ports_are_not_sequential() {
    let mut spec = spec("203.0.113.1");
    spec.max_blocks_per_host = u16::MAX;
    let mut gate = Gate::new(spec);
    let ports: Vec<u16> =
        (0..10_000).map(|port| gate.some(udp(port / 200, 2000 + port as u16)).port).collect();
    let near = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 1).count();
    // Random within what is left of 64: about 2 / 33 on average; sequential would be 10,000.
    assert!(near < 1500, "{near} of 10,000 stand beside the one before");
    let up = ports.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((4_500..5_500).contains(&up), "{up} of 10,000 are above the one before");
    let first_in_block: BTreeSet<u16> = ports.iter().step_by(200).map(|port| port % 64).collect();
    assert!(first_in_block.len() > 25, "first ports of blocks: {first_in_block:?}");
}

#[test]
fn rfc6888_req4_a_host_at_its_quota_is_refused_and_others_are_not() {
    let mut spec = spec("203.0.113.1");
    spec.max_blocks_per_host = 3;
    let mut gate = Gate::new(spec);
    for port in 0..192 {
        gate.some(udp(1, 2000 + port));
    }
    assert_eq!(gate.map(udp(1, 3000)), Err(Refused::HostQuota));
    assert_eq!(gate.some(udp(1, 2000)), gate.some(udp(1, 2000)), "what it has stays (REQ-11)");
    gate.some(tcp(1, 3000));
    gate.some(udp(2, 3000));
}

#[test]
fn rfc6888_req8_a_freed_port_is_held_120_seconds() {
    let mut spec = spec("203.0.113.1");
    spec.max_blocks_per_host = 1;
    let mut gate = Gate::new(spec);
    let all: Vec<Mapping> = (0..64).map(|port| gate.some(udp(1, 2000 + port))).collect();
    gate.release(all[0]);
    assert_eq!(gate.found(Protocol::Udp, all[0]), None, "a mapping without a session is not answered for");
    gate.pass(119);
    gate.sweep_all();
    assert_eq!(gate.map(udp(1, 3000)), Err(Refused::HostQuota));
    gate.pass(1);
    let again = gate.some(udp(1, 3000));
    assert_eq!((again.addr, again.port), (all[0].addr, all[0].port));
    assert_eq!(gate.found(Protocol::Udp, again), Some(udp(1, 3000)));
}

#[test]
fn rfc6888_req8_its_own_endpoint_may_have_a_held_port_back_at_once() {
    let mut gate = Gate::new(spec("203.0.113.4"));
    let first = gate.some(udp(1, 2000));
    gate.release(first);
    gate.pass(60);
    assert_eq!(gate.some(udp(1, 2000)), first);
    gate.pass(600);
    gate.sweep_all();
    assert_eq!(gate.found(Protocol::Udp, first), Some(udp(1, 2000)), "it is in use again");
    assert_eq!(gate.bindings.usage().held, 0);
}

#[test]
fn rfc6888_req4c_new_mappings_of_a_host_are_limited_and_nothing_else() {
    let mut gate = Gate::new(spec("203.0.113.4"));
    let rate = Rate { per_s: 2, burst: 8 };
    gate.bindings.set_limits(Limits { new_mappings: Some(rate), ..Limits::default() });
    let has: Vec<Mapping> = (0..8).map(|port| gate.some(udp(1, 2000 + port))).collect();
    assert_eq!(gate.map(udp(1, 3000)), Err(Refused::HostRate));
    assert_eq!(gate.map(tcp(1, 3000)), Err(Refused::HostRate), "all protocols together");
    assert_eq!(gate.some(udp(1, 2000)), has[0], "one it has is no new one");
    gate.some(udp(2, 3000));
    // Nothing of what was refused is left.
    assert_eq!(gate.bindings.usage().live, 9);
    gate.now = gate.now.plus(Duration::from_millis(1499));
    assert_eq!((3000..3009).filter(|port| gate.map(udp(1, *port)).is_ok()).count(), 2);
    // A port in hold-down that its own endpoint has back is no new one either.
    gate.release(has[7]);
    assert_eq!(gate.some(udp(1, 2007)), has[7]);
    gate.pass(100);
    assert_eq!((4000..4020).filter(|port| gate.map(udp(1, *port)).is_ok()).count(), 8);
    gate.bindings.set_limits(Limits::default());
    assert_eq!((4000..4020).filter(|port| gate.map(udp(1, *port)).is_ok()).count(), 20);
}

#[test]
fn rfc6888_req8_time_and_number_of_held_ports_are_configurable() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let mut hold_down = Limits::default().hold_down;
    hold_down[Protocol::Tcp as usize] = Duration::ZERO;
    hold_down[Protocol::Udp as usize] = Duration::from_secs(10);
    gate.bindings.set_limits(Limits { hold_down, max_held: 2, ..Limits::default() });
    let mappings = [tcp(1, 1), tcp(1, 2000), udp(1, 2000), udp(1, 2001), udp(1, 2002)].map(|e| gate.some(e));
    for (mapping, held) in mappings.into_iter().zip([0, 0, 1, 2, 2]) {
        gate.release(mapping);
        assert_eq!(gate.bindings.usage().held, held);
    }
    gate.pass(10);
    gate.sweep_all();
    assert_eq!(gate.bindings.usage(), Use::default());
}

#[test]
fn rfc6888_req8_a_block_goes_when_its_last_port_is_past_its_hold_down() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let (a, b) = (gate.some(udp(1, 2000)), gate.some(tcp(1, 2000)));
    assert_eq!(gate.claims.owner_of(0, a.addr, a.port), Some(OWNER));
    gate.release(a);
    gate.pass(60);
    gate.release(b);
    gate.pass(119);
    gate.sweep_all();
    assert_eq!(gate.claims.owner_of(0, a.addr, a.port), Some(OWNER));
    gate.pass(1);
    gate.sweep_all();
    assert_eq!(gate.claims.owner_of(0, a.addr, a.port), None);
    assert_eq!(gate.bindings.usage(), Use::default());
}

#[test]
fn rfc6888_req11_rfc7857_section4_exhaustion_refuses_the_new_and_keeps_the_old() {
    let mut spec = spec("203.0.113.1");
    spec.ports = Ports { first: 1024, last: 1024 + 255, low: false };
    let mut gate = Gate::new(spec);
    let old: Vec<Mapping> = (0..4).map(|host| gate.some(udp(host, 2000))).collect();
    assert_eq!(gate.map(udp(4, 2000)), Err(Refused::PoolExhausted));
    for port in 1..64 {
        gate.some(udp(0, 2000 + port));
    }
    assert_eq!(gate.map(udp(0, 3000)), Err(Refused::AddressExhausted));
    for (host, mapping) in (0..4).zip(old) {
        assert_eq!(gate.found(Protocol::Udp, mapping), Some(udp(host, 2000)));
        assert_eq!(gate.some(udp(host, 2000)), mapping, "RFC 4787 REQ-11: as before, also when full");
    }
}

#[test]
fn arbitrary_pooling_goes_on_at_another_address() {
    let mut spec = spec("203.0.113.2");
    spec.ports = Ports { first: 1024, last: 1024 + 63, low: false };
    spec.pairing = Pairing::Arbitrary;
    let mut gate = Gate::new(spec);
    let addresses: BTreeSet<u32> = (0..128).map(|port| gate.some(udp(1, 2000 + port)).addr).collect();
    assert_eq!(addresses.len(), 2);
    assert_eq!(gate.map(udp(1, 3000)), Err(Refused::PoolExhausted));
}

#[test]
fn rfc6888_req14_one_log_record_per_block() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let mappings: Vec<Mapping> = (0..65).map(|port| gate.some(udp(1, 2000 + port))).collect();
    let events = gate.events();
    assert_eq!(events.len(), 2);
    for event in &events {
        assert_eq!((event.kind, event.host), (EventKind::BlockClaimed, v4_key(0x0a00_0001)));
        assert_eq!((event.time, event.last_port - event.first_port), (gate.now, 63));
    }
    assert!(mappings.iter().all(|m| events.iter().any(|e| (e.first_port..=e.last_port).contains(&m.port))));
    mappings.into_iter().for_each(|mapping| gate.release(mapping));
    gate.pass(120);
    gate.sweep_all();
    let released = gate.events();
    assert_eq!(released.len(), 2);
    assert!(released.iter().all(|event| event.kind == EventKind::BlockReleased && event.time == gate.now));
    assert_eq!(gate.bindings.take_events_lost(), 0);
}

#[test]
fn tenants_with_the_same_addresses_have_their_own_mappings() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let one = Inside { vrf: 1, ..udp(1, 2000) };
    let two = Inside { vrf: 2, ..udp(1, 2000) };
    let (a, b) = (gate.some(one), gate.some(two));
    assert_ne!(a.port / 64, b.port / 64, "not in one block either");
    assert_eq!((gate.found(Protocol::Udp, a), gate.found(Protocol::Udp, b)), (Some(one), Some(two)));
}

#[test]
fn two_pools_have_a_mapping_each() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let a = gate.some(udp(1, 2000));
    gate.becomes(PoolSpec::new(1, vec![range("198.51.100.1", "198.51.100.1")]));
    let b = gate.some(udp(1, 2000));
    assert_ne!(a.addr, b.addr);
    gate.becomes(spec("203.0.113.1"));
    assert_eq!(gate.some(udp(1, 2000)), a);
}

#[test]
fn the_addresses_of_a_v6_64_share_blocks_and_quota() {
    let mut spec = spec("203.0.113.4");
    spec.max_blocks_per_host = 1;
    let mut gate = Gate::new(spec);
    let base = 0x2001_0db8_u128 << 96;
    let of = |interface: u128| Inside { addr: base + interface, ..udp(0, 2000) };
    let mappings: Vec<Mapping> = (0..64).map(|interface| gate.some(of(interface << 50 | 5))).collect();
    for (interface, mapping) in (0..64).zip(&mappings) {
        assert_eq!(gate.found(Protocol::Udp, *mapping), Some(of(interface << 50 | 5)));
        assert_eq!(gate.some(of(interface << 50 | 5)), *mapping);
    }
    assert_eq!(gate.map(of(77)), Err(Refused::HostQuota));
    assert_eq!(gate.bindings.usage().hosts, 1);
}

#[test]
fn a_session_more_keeps_the_mapping() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let mapping = gate.some(udp(1, 2000));
    gate.bindings.acquire(mapping.id);
    gate.release(mapping);
    gate.pass(10_000);
    gate.sweep_all();
    assert_eq!(gate.found(Protocol::Udp, mapping), Some(udp(1, 2000)));
    let view = gate.bindings.mappings_in(0..gate.bindings.pages()).next().expect("one mapping");
    assert_eq!((view.sessions, view.port, view.is_draining), (1, mapping.port, false));
}

#[test]
fn an_address_that_left_the_pool_drains() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let old = gate.some(udp(1, 2000));
    gate.becomes(PoolSpec::new(0, vec![range("203.0.113.9", "203.0.113.9")]));
    assert_eq!(gate.bindings.find(&gate.pool, &udp(1, 2000)), None);
    assert_eq!(gate.found(Protocol::Udp, old), Some(udp(1, 2000)), "answered for");
    let new = gate.some(udp(1, 2000));
    assert_ne!(new.addr, old.addr, "not for new flows");
    assert_eq!(gate.some(udp(1, 2000)), new);
    gate.becomes(spec("203.0.113.9"));
    assert_eq!(gate.some(udp(1, 2000)), new, "back in the pool, but the host has moved");
    let usage = gate.bindings.usage();
    assert_eq!((usage.live, usage.hosts), (2, 2));
    gate.release(old);
    gate.pass(120);
    gate.sweep_all();
    assert_eq!(gate.found(Protocol::Udp, old), None);
    assert_eq!(gate.found(Protocol::Udp, new), Some(udp(1, 2000)));
    assert!(!gate.claims.forget(0, new.addr), "in use");
    assert!(gate.claims.forget(0, old.addr), "drained");
    assert_eq!(gate.claims.owner_of(0, old.addr, old.port), None);
}

#[test]
fn ports_that_left_the_pool_drain() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let old = gate.some(udp(1, 2000));
    let (first, last) = if old.port < 32768 { (32768, 65535) } else { (1024, 32767) };
    let mut other = spec("203.0.113.1");
    other.ports = Ports { first, last, low: true };
    gate.becomes(other);
    let another_endpoint = gate.some(udp(1, 2001));
    let new = gate.some(udp(1, 2000));
    for mapping in [another_endpoint, new] {
        assert!((first..=last).contains(&mapping.port), "{mapping:?}");
    }
    assert_eq!(gate.found(Protocol::Udp, old), Some(udp(1, 2000)));
}

/// Hosts from 10.0.0.0 on.
fn subscribers(count: u32, ports_per_host: Option<u16>) -> Option<Subscribers> {
    let ranges = vec![InsideRange { first: v4_key(0x0a00_0000), count }];
    Some(Subscribers { vrf: 0, ranges, hosts_per_address: None, ports_per_host, overflow: None })
}

#[test]
fn rfc7422_step3_the_hosts_own_ports_without_a_record_then_overflow_with() {
    let mut config = spec("203.0.113.1");
    config.deterministic = subscribers(400, Some(128)).map(|hosts| Subscribers {
        hosts_per_address: Some(400),
        overflow: Some(64),
        ..hosts
    });
    config.max_blocks_per_host = 2;
    let mut gate = Gate::new(config);
    let (addr, ports) = gate.pool.outside_of(0, v4_key(0x0a00_0007)).expect("a subscriber");
    assert_eq!(ports.len(), 128);
    let own: BTreeSet<u16> = (0..128).map(|port| gate.some(udp(7, 500 + port)).port).collect();
    assert_eq!(own, ports.clone().collect());
    assert_eq!(gate.events(), []);
    // Its own do not count as blocks that it took.
    for port in 0..128 {
        let over = gate.some(udp(7, 9000 + port));
        assert_eq!(gate.pool.inside_of(addr, over.port), None, "of the dynamic pool");
    }
    assert_eq!(gate.events().len(), 2);
    assert_eq!(gate.map(udp(7, 9500)), Err(Refused::HostQuota));
    assert_eq!(gate.map(udp(400, 2000)), Err(Refused::NotSubscriber));
    // RFC 6888 REQ-8b: at once.
    let one = gate.some(udp(7, 500));
    gate.release(one);
    gate.release(one);
    assert_eq!(gate.some(udp(7, 9501)).port, one.port);
}

#[test]
fn rfc7422_without_overflow_a_host_has_its_own_ports_and_no_more() {
    let mut config = spec("203.0.113.1");
    config.deterministic = subscribers(500, None);
    let mut gate = Gate::new(config);
    let (_, ports) = gate.pool.outside_of(0, v4_key(0x0a00_0000 + 499)).expect("a subscriber");
    let has: BTreeSet<u16> = (0..128).map(|port| gate.some(tcp(499, 2000 + port)).port).collect();
    assert_eq!(has, ports.clone().collect());
    assert_eq!(gate.map(tcp(499, 3000)), Err(Refused::HostQuota));
    assert!(ports.contains(&gate.some(udp(499, 3000)).port), "each protocol has all of them");
    assert!(ports.contains(&gate.some(tcp(499, 2000)).port), "and what it has goes on");
    assert_eq!(gate.bindings.usage().blocks, 2);
}

#[test]
fn rfc6056_a_hosts_ports_come_in_no_order() {
    let mut config = spec("203.0.113.1");
    config.deterministic = subscribers(16, None);
    let mut gate = Gate::new(config);
    let ports: Vec<u16> = (0..63).map(|port| gate.some(udp(3, 2000 + port)).port).collect();
    let steps: BTreeSet<i32> = ports.windows(2).map(|two| i32::from(two[1]) - i32::from(two[0])).collect();
    assert!(steps.len() > 20, "{ports:?}");
    // The next 64s are not the one behind.
    let units: Vec<u16> = (0..12 * 64).map(|port| gate.some(udp(4, 2000 + port)).port / 64).collect();
    let mut seen = units.clone();
    seen.dedup();
    assert_eq!(seen.len(), 12);
    assert!(!seen.is_sorted(), "{seen:?}");
}

#[test]
fn a_deterministic_pool_that_comes_or_goes_lets_hosts_drain() {
    let mut gate = Gate::new(spec("203.0.113.2"));
    let before = gate.some(udp(1, 2000));
    gate.becomes(PoolSpec { deterministic: subscribers(100, None), ..spec("203.0.113.2") });
    let (addr, ports) = gate.pool.outside_of(0, udp(1, 0).addr).expect("a subscriber");
    let new = gate.some(udp(1, 2000));
    assert!(new.addr == addr && ports.contains(&new.port));
    gate.becomes(spec("203.0.113.2"));
    gate.events();
    gate.some(udp(1, 2000));
    assert_eq!(gate.events().len(), 1, "a block of its own, with a record");
    assert_eq!(gate.found(Protocol::Udp, before), Some(udp(1, 2000)));
}

/// A host whose ports are all in use when the parameters change is given those of its new place.
#[test]
fn a_full_host_moves_with_its_deterministic_pool() {
    let hosts = |count| PoolSpec { deterministic: subscribers(count, Some(64)), ..spec("203.0.113.1") };
    let mut gate = Gate::new(hosts(500));
    let before: Vec<Mapping> = (0..64).map(|port| gate.some(udp(7, 2000 + port))).collect();
    assert_eq!(gate.map(udp(7, 3000)), Err(Refused::HostQuota));
    // Two hosts more before it.
    let ranges = vec![InsideRange { first: v4_key(0x09ff_fffe), count: 500 }];
    let moved = subscribers(0, Some(64)).map(|hosts| Subscribers { ranges, ..hosts });
    gate.becomes(PoolSpec { deterministic: moved, ..hosts(500) });
    let (_, ports) = gate.pool.outside_of(0, udp(7, 0).addr).expect("a subscriber");
    let after: BTreeSet<u16> = (0..64).map(|port| gate.some(udp(7, 3000 + port)).port).collect();
    assert_eq!(after, ports.collect());
    assert_eq!(gate.map(udp(7, 4000)), Err(Refused::HostQuota));
    assert_eq!(gate.found(Protocol::Udp, before[0]), Some(udp(7, 2000)));
}

/// The same where some of its ports stay its own.
#[test]
fn a_full_host_gets_what_its_new_place_has_that_its_old_one_had_not() {
    let hosts = |first: u16, units: u16| PoolSpec {
        ports: Ports { first, last: first + units * 64 - 1, low: false },
        deterministic: subscribers(1, Some(128)),
        ..spec("203.0.113.1")
    };
    let mut gate = Gate::new(hosts(2048, 2));
    let before: BTreeSet<u16> = (0..128).map(|port| gate.some(udp(0, 2000 + port)).port).collect();
    assert_eq!(before, (2048..2176).collect());
    gate.becomes(hosts(2112, 2));
    let after: BTreeSet<u16> = (0..64).map(|port| gate.some(udp(0, 3000 + port)).port).collect();
    assert_eq!(after, (2176..2240).collect());
    assert_eq!(gate.map(udp(0, 4000)), Err(Refused::HostQuota));
}

/// What another host still has of a host's ports is left out until it has gone.
#[test]
fn a_host_does_without_those_of_its_ports_that_another_has_not_left_yet() {
    let mut gate = Gate::new(PoolSpec { block_size: 512, ..spec("203.0.113.1") });
    let before = gate.some(udp(200, 2000));
    let spec = PoolSpec { deterministic: subscribers(63, Some(1024)), ..spec("203.0.113.1") };
    gate.becomes(PoolSpec { id: 1, ..spec });
    let (_, host) = gate.pool.inside_of(before.addr, before.port).expect("somebody's");
    let host = (host - v4_key(0x0a00_0000)) as u32;
    let (_, ports) = gate.pool.outside_of(0, v4_key(0x0a00_0000 + host)).expect("a subscriber");
    let is_left = |port: &u16| port / 512 != before.port / 512;
    let has: BTreeSet<u16> = (0..512).map(|port| gate.some(udp(host, 2000 + port)).port).collect();
    assert_eq!(has, ports.clone().filter(is_left).collect());
    assert_eq!(gate.map(udp(host, 3000)), Err(Refused::HostQuota));
    assert_eq!(gate.found(Protocol::Udp, before), Some(udp(200, 2000)));
    gate.release(before);
    gate.pass(121);
    gate.sweep_all();
    let rest: BTreeSet<u16> = (0..512).map(|port| gate.some(udp(host, 3000 + port)).port).collect();
    assert_eq!(rest, ports.filter(|port| !is_left(port)).collect());
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let small = [
        Capacity { mappings: 1, ..CAPACITY },
        Capacity { hosts: 1, ..CAPACITY },
        Capacity { blocks: 1, ..CAPACITY },
        Capacity { pages: 1, ..CAPACITY },
    ];
    for capacity in small {
        let mut gate = Gate::new(spec("203.0.113.1"));
        gate.bindings = Bindings::new(capacity, Limits::default(), Key::default()).expect("memory");
        let mapping = gate.some(udp(1, 2000));
        let before = gate.bindings.usage();
        assert_eq!(gate.map(udp(2, 2000)), Err(Refused::TableFull), "{capacity:?}");
        assert_eq!(gate.bindings.usage(), before);
        gate.release(mapping);
        gate.pass(120);
        gate.sweep_all();
        gate.some(udp(2, 2000));
    }
}

#[test]
fn the_sweep_keeps_to_its_budget_and_comes_round() {
    let mut gate = Gate::new(spec("203.0.113.1"));
    let mappings: Vec<Mapping> = (0..100).map(|host| gate.some(udp(host, 2000))).collect();
    mappings.into_iter().for_each(|mapping| gate.release(mapping));
    gate.pass(120);
    for _ in 0..CAPACITY.pages / 10 {
        let before = gate.bindings.usage().pages;
        gate.bindings.sweep(&gate.claims, gate.now, 10, u32::MAX);
        assert!(before - gate.bindings.usage().pages <= 10);
    }
    assert_eq!(gate.bindings.usage(), Use::default());
}

#[test]
fn a_mapping_costs_17_bytes_in_full_blocks_of_64() {
    let hosts = 1 << 12;
    let capacity = Capacity { mappings: hosts * 64, hosts, blocks: hosts, pages: hosts };
    let one = Bindings::new(capacity, Limits::default(), Key::default()).expect("memory").bytes() as f64
        / (hosts * 64) as f64;
    // A host with four full blocks, or TCP and UDP in two.
    let more = Capacity { hosts: hosts / 4, ..capacity };
    let four = Bindings::new(more, Limits::default(), Key::default()).expect("memory").bytes() as f64
        / (hosts * 64) as f64;
    println!("bytes per mapping: {one:.2} with one block of one protocol per host, {four:.2} with four");
    assert!(one < 17.0 && four < 16.0, "{one:.2} {four:.2}");
}

/// Time this thread was on a CPU: others may be busy on the machine that measures.
fn cpu_time_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    text.split(' ').next().and_then(|field| field.parse().ok()).expect("nanoseconds")
}

/// `cargo test --release --lib flow::nat::tests::cost -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn cost_of_map_and_release() {
    const MAPPINGS: u32 = 1_000_000;
    let claims = BlockClaims::new(64, Key::default());
    let pool = Pool::compile(&spec("203.0.113.32"), &claims).expect("legal");
    let pages = MAPPINGS as usize / 64 + 1;
    let capacity = Capacity { mappings: MAPPINGS as usize, hosts: pages, blocks: pages, pages };
    let mut bindings = Bindings::new(capacity, Limits::default(), Key::default()).expect("memory");
    let outside = Outside { pool: &pool, claims: &claims, owner: OWNER, is_alone: false };
    let mut random = Random(1);
    let mut order: Vec<u32> = (0..MAPPINGS).collect();
    (1..order.len()).rev().for_each(|at| order.swap(at, random.word() as usize % (at + 1)));
    let inside = |number: u32| udp(number / 64, 2000 + (number % 64) as u16);
    let mut now = Nanos::from_secs(1);
    let time = |what: &str, work: &mut dyn FnMut()| {
        let start = cpu_time_ns();
        work();
        println!("{what}: {:.1} ns", (cpu_time_ns() - start) as f64 / f64::from(MAPPINGS));
    };
    // What the machine gives: one dependent read somewhere in 16 MB, as much as the table has.
    let chain: Vec<u64> = (0..1 << 21).map(|_| random.word()).collect();
    let mut at = 0;
    time("for comparison: one random read", &mut || {
        for step in 0..u64::from(MAPPINGS) {
            at = chain[((at ^ step) % (1 << 21)) as usize];
        }
    });
    assert_ne!(at, 1);
    let mut ids = vec![0; MAPPINGS as usize];
    for round in 0..3 {
        println!("round {round}, {MAPPINGS} mappings in random order");
        time("map, new", &mut || {
            for number in &order {
                ids[*number as usize] =
                    bindings.map(outside, inside(*number), now, random.word()).expect("room").id;
            }
        });
        assert_eq!(bindings.usage().live, MAPPINGS as usize);
        time("map, existing", &mut || {
            for number in &order {
                let mapping = bindings.map(outside, inside(*number), now, 0).expect("there");
                assert_eq!(mapping.id, ids[*number as usize]);
            }
        });
        let all: Vec<Mapping> = ids.iter().map(|id| bindings.mapping(*id)).collect();
        time("find_external", &mut || {
            for number in &order {
                let Mapping { id, addr, port } = all[*number as usize];
                let view = bindings.find_external(0, Protocol::Udp, addr, port).expect("there");
                assert_eq!(view.id, id);
            }
        });
        time("release, not the last", &mut || {
            order.iter().for_each(|n| bindings.release(ids[*n as usize], now))
        });
        time("release, into hold-down", &mut || {
            order.iter().for_each(|n| bindings.release(ids[*n as usize], now))
        });
        now = now.plus(Duration::from_secs(121));
        time("sweep, ports past hold-down", &mut || {
            bindings.sweep(&claims, now, u32::MAX, u32::MAX);
        });
        assert_eq!(bindings.usage(), Use::default());
        while bindings.pop_event().is_some() {}
    }
    bindings.set_limits(Limits { hold_down: [Duration::ZERO; 4], max_held: 0, ..Limits::default() });
    time("map + release, new, no hold-down", &mut || {
        for number in &order {
            let mapping = bindings.map(outside, inside(*number), now, random.word()).expect("room");
            bindings.release(mapping.id, now);
        }
    });
}
