use std::net::Ipv4Addr;

use super::*;
use crate::config::BackendAdmin;
#[cfg(not(foundations))]
use crate::config::Config;
use crate::packet::view::protocol::{TCP, UDP};
use crate::tables::NO_INTERFACE;
#[cfg(not(foundations))]
use crate::tables::policy::{self, Touched};

const KEY: Key = Key(1, 2);

fn service(backends: &[(u8, u16)]) -> VirtualService {
    let backend = |(n, weight): &(u8, u16)| {
        let addr = Ipv4Addr::new(10, 0, 0, *n).into();
        let (port, vrf, admin) = (Some(8443), 0, BackendAdmin::Active);
        let made = Backend { slot: u32::from(*n), addr, port, vrf, weight: *weight, admin, delivery: None };
        (Identity { addr, port: 8443, vrf: "default".into() }, made)
    };
    let served = Box::new([(Some(TCP), PortRange::new(443, 443))]);
    let address = "203.0.113.10/32".parse().expect("a prefix");
    VirtualService::new((0, 0), address, served, Behaviour::default(), backends.iter().map(backend).collect())
}

fn asked(client: u32) -> Question {
    Question {
        vrf: 0,
        ingress: NO_INTERFACE,
        src: Ipv4Addr::from(0xc000_0200 + (client >> 16)).into(),
        dst: Ipv4Addr::new(203, 0, 113, 10).into(),
        protocol: TCP,
        src_port: client as u16,
        dst_port: 443,
        dscp: 0,
        tcp_flags: 2,
        icmp_type: 0,
    }
}

/// The states of backends 0 to 9; named are those that are not well.
fn states(service: &VirtualService, ill: &[(u8, Health)]) -> Backends {
    let health = |slot: u32| {
        let known = ill.iter().find(|(n, _)| u32::from(*n) == slot);
        known.map_or(Health::WELL, |(_, health)| *health)
    };
    Backends::default().after(of_all(service, health), 1).0
}

fn of_all(service: &VirtualService, health: impl Fn(u32) -> Health) -> Vec<(u32, BackendState)> {
    let state = |backend: &Backend| BackendState::of(service, backend, health(backend.slot));
    service.backends.iter().map(|backend| (backend.slot, state(backend))).collect()
}

const DOWN: Health = Health { up: false, level: 0 };

/// How many of many flows each backend gets.
fn shares(service: &VirtualService, states: &Backends) -> [u32; 10] {
    let mut shares = [0; 10];
    for client in 0..100_000 {
        let backend = service.choose(states, KEY, &asked(client), None).expect("a backend");
        shares[backend.slot as usize] += 1;
    }
    shares
}

#[test]
fn flows_are_spread_by_weight() {
    let service = service(&[(1, 1), (2, 2), (3, 0), (4, 5)]);
    let found = shares(&service, &states(&service, &[]));
    assert_eq!((found[0], found[3]), (0, 0));
    for (n, fair) in [(1, 12_500), (2, 25_000), (4, 62_500)] {
        assert!(found[n].abs_diff(fair) < 800, "{found:?}");
    }
}

/// Who fails loses its flows to the others, as they weigh; the others keep all of theirs.
#[test]
fn only_the_flows_of_a_failed_backend_move() {
    let service = service(&[(1, 1), (2, 1), (3, 2), (4, 4)]);
    let (well, ill) = (states(&service, &[]), states(&service, &[(4, DOWN)]));
    for client in 0..20_000 {
        let before = service.choose(&well, KEY, &asked(client), None).expect("a backend").slot;
        let after = service.choose(&ill, KEY, &asked(client), None).expect("a backend").slot;
        assert!(before == 4 && after != 4 || before == after);
    }
    let found = shares(&service, &ill);
    assert!(found[1].abs_diff(25_000) < 800 && found[3].abs_diff(50_000) < 1000, "{found:?}");
}

#[test]
fn one_that_starts_slowly_gets_its_part_of_its_share() {
    let service = service(&[(1, 1), (2, 1)]);
    let found = shares(&service, &states(&service, &[(2, Health { up: true, level: 64 })]));
    // A quarter of its half at first look, and a quarter of what looks again and finds it: 0.125 + 0.375 * 0.125 + ...
    assert!(found[2].abs_diff(20_000) < 800, "{found:?}");
}

#[test]
fn the_last_one_gets_all_and_if_all_have_failed_they_serve_by_weight() {
    let service = service(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 3)]);
    let but_one: Vec<(u8, Health)> = (1..9).map(|n| (n, DOWN)).collect();
    assert_eq!(shares(&service, &states(&service, &but_one))[9], 100_000);
    let all: Vec<(u8, Health)> = (1..10).map(|n| (n, DOWN)).collect();
    let found = shares(&service, &states(&service, &all));
    assert!(found[1].abs_diff(9_091) < 500 && found[9].abs_diff(27_273) < 800, "{found:?}");
}

#[test]
fn nobody_is_pressed_into_service() {
    let mut service = service(&[(1, 1), (2, 1)]);
    service.backends[0].admin = BackendAdmin::Drain;
    service.backends[1].admin = BackendAdmin::Disabled;
    assert_eq!(service.choose(&states(&service, &[]), KEY, &asked(1), None), Err(NoBackend));
    service.backends[0].admin = BackendAdmin::Active;
    let ill = states(&service, &[(1, DOWN)]);
    assert!((0..1000).all(|client| service.choose(&ill, KEY, &asked(client), None).expect("one").slot == 1));
}

#[test]
fn flows_of_one_client_go_together_if_asked_for() {
    let mut service = service(&[(1, 1), (2, 1), (3, 1)]);
    let states = states(&service, &[]);
    let chosen = |service: &VirtualService, port: u32| {
        service.choose(&states, KEY, &asked(port), None).expect("a backend").slot
    };
    assert!((1..100).any(|port| chosen(&service, port) != chosen(&service, 0)));
    service.behaviour.by_client = true;
    assert!((1..100).all(|port| chosen(&service, port) == chosen(&service, 0)));
}

/// A client stays as long as that is not too long ago and its backend takes flows; nobody else's backend is taken.
#[test]
fn a_client_stays_with_the_backend_of_its_latest_flow() {
    let affinity = Some(Affinity { timeout_s: 60, ipv4_len: 24, ipv6_len: 64 });
    let made = service(&[(7, 1), (2, 1), (5, 1), (3, 0)]);
    let mut service = made.clone();
    service.behaviour.affinity = affinity;
    let mut by_slot: Vec<(u32, u16)> = (0..).zip(&service.backends).map(|(at, b)| (b.slot, at)).collect();
    by_slot.sort_unstable();
    service.by_slot = by_slot.into();
    let well = states(&service, &[]);
    let chosen = |states: &Backends, backend: u32, age_s: u64| {
        service.choose(states, KEY, &asked(1), Some(Held { backend, age_s })).expect("a backend").slot
    };
    let home = service.choose(&well, KEY, &asked(1), None).expect("a backend").slot;
    let others: Vec<u32> = [7, 2, 5].into_iter().filter(|slot| *slot != home).collect();
    for other in &others {
        assert_eq!([chosen(&well, *other, 0), chosen(&well, *other, 60)], [*other; 2]);
        assert_eq!(chosen(&well, *other, 61), home, "too long ago");
        assert_eq!(chosen(&states(&service, &[(*other as u8, DOWN)]), *other, 0), home);
        let slow = Health { up: true, level: 16 };
        assert_eq!(chosen(&states(&service, &[(*other as u8, slow)]), *other, 0), *other);
    }
    // One that weighs nothing, one of another service, one that never was.
    assert_eq!([3, 4, u32::MAX].map(|slot| chosen(&well, slot, 0)), [home; 3]);
    // A client is a /24, whatever it asks for.
    let client = |n: u32| service.client(&asked(n)).expect("it is remembered");
    assert_eq!((client(1), client(9).addr), (client(2), addr_key(Ipv4Addr::new(192, 0, 2, 0).into())));
    let at = |src: [u8; 4], port: u16| {
        let question = Question { src: src.into(), src_port: port, ..asked(1) };
        service.choose(&well, KEY, &question, None).expect("a backend").slot
    };
    assert!((1..100).all(|n| at([192, 0, 9, n], n.into()) == at([192, 0, 9, 0], 0)));
    assert!((1..100).any(|n| at([192, 0, n, 0], 0) != at([192, 0, 0, 0], 0)));
    // A service that remembers nobody has no clients.
    assert_eq!(made.client(&asked(1)), None);
}

/// The longest prefix first; in it one port, a range, a protocol, everything.
#[test]
fn the_most_special_service_is_found() {
    type Served = (Option<u8>, Option<(u16, u16)>);
    let made = |n: u16, vrf: u16, address: &str, served: &[Served]| {
        let ports = |ports: &(u16, u16)| PortRange::new(ports.0, ports.1).expect("a range");
        let served = served.iter().map(|(protocol, range)| (*protocol, range.as_ref().map(ports))).collect();
        let address = address.parse().expect("a prefix");
        Arc::new(VirtualService::new((n, vrf), address, served, Behaviour::default(), Vec::new()))
    };
    let list = vec![
        made(0, 0, "203.0.113.0/24", &[(None, None)]),
        made(1, 0, "203.0.113.10/32", &[(Some(TCP), Some((443, 443)))]),
        made(2, 0, "203.0.113.10/32", &[(Some(TCP), Some((400, 500))), (Some(UDP), Some((53, 53)))]),
        made(3, 0, "203.0.113.10/32", &[(Some(TCP), None)]),
        made(4, 1, "203.0.113.10/32", &[(None, None)]),
        made(5, 0, "2001:db8::/64", &[(Some(TCP), Some((443, 443)))]),
    ];
    let services = Services::compile(list, Arc::default());
    let find = |vrf: u16, dst: &str, protocol: u8, dst_port: u16| {
        let src: IpAddr = if dst.contains(':') { "2001:db8:1::1" } else { "192.0.2.1" }.parse().expect("one");
        let dst = dst.parse().expect("an address");
        services.find(&Question { vrf, src, dst, protocol, dst_port, ..asked(1) }).map(|service| service.slot)
    };
    let cases = [
        ((0, "203.0.113.10", TCP, 443), Some(1)),
        ((0, "203.0.113.10", TCP, 444), Some(2)),
        ((0, "203.0.113.10", TCP, 80), Some(3)),
        ((0, "203.0.113.10", UDP, 53), Some(2)),
        ((0, "203.0.113.10", UDP, 54), Some(0)),
        ((0, "203.0.113.11", TCP, 443), Some(0)),
        ((0, "203.0.112.1", TCP, 443), None),
        ((1, "203.0.113.10", UDP, 1), Some(4)),
        ((1, "203.0.113.11", UDP, 1), None),
        ((0, "2001:db8::7", TCP, 443), Some(5)),
        ((0, "2001:db8::7", TCP, 80), None),
    ];
    for ((vrf, dst, protocol, port), wanted) in cases {
        assert_eq!(find(vrf, dst, protocol, port), wanted, "{dst} {protocol}/{port} in {vrf}");
    }
    let has = |vrf, dst: &str| services.has(vrf, addr_key(dst.parse().expect("an address")));
    assert_eq!(
        [has(0, "203.0.113.99"), has(1, "203.0.113.99"), has(0, "2001:db8::ffff")],
        [true, false, true]
    );
}

/// Which flows have to be looked at again, and what comes of them.
#[test]
fn flows_follow_what_happens_to_their_backend() {
    let mut service = service(&[(1, 1), (2, 1)]);
    let after = |service: &VirtualService, before: &Backends, ill: &[u8], generation: u64| {
        let health = |slot: u32| if ill.contains(&(slot as u8)) { DOWN } else { Health::WELL };
        before.after(of_all(service, health), generation)
    };
    let (well, touched) = after(&service, &Backends::default(), &[], 5);
    assert!(!touched && well.still_holds(1, 0));
    let (ill, touched) = after(&service, &well, &[1], 7);
    assert!(touched && !ill.still_holds(1, 6) && ill.still_holds(1, 7) && ill.still_holds(2, 0));
    assert_eq!((ill.fate(1, TCP), ill.fate(1, UDP)), (BackendFate::Reset, BackendFate::Rehash));
    // Nothing new, then well again, then ill again: flows of before are looked at again.
    let (same, touched) = after(&service, &ill, &[1], 8);
    assert!(!touched && same.still_holds(1, 7));
    let (well, touched) = after(&service, &same, &[], 9);
    assert_eq!((touched, well.fate(1, TCP)), (false, BackendFate::Keep));
    assert!(after(&service, &well, &[1], 10).1);
    // Drained: all stay, as long as it is well. Disabled: as if it had failed, but that UDP may stay where connections may.
    service.backends[0].admin = BackendAdmin::Drain;
    let (drained, touched) = after(&service, &well, &[], 11);
    assert_eq!((touched, drained.fate(1, TCP), drained.level(1)), (false, BackendFate::Keep, 0));
    let (dead, touched) = after(&service, &drained, &[1], 11);
    assert_eq!((touched, dead.fate(1, TCP), dead.level(1)), (true, BackendFate::Reset, 0));
    service.backends[0].admin = BackendAdmin::Disabled;
    for (on_failure, tcp, udp) in [
        (OnFailure::Reset, BackendFate::Reset, BackendFate::Rehash),
        (OnFailure::Rehash, BackendFate::Rehash, BackendFate::Rehash),
        (OnFailure::Finish, BackendFate::Keep, BackendFate::Keep),
    ] {
        service.behaviour.on_failure = on_failure;
        let (disabled, touched) = after(&service, &drained, &[], 12);
        assert_eq!((disabled.fate(1, TCP), disabled.fate(1, UDP)), (tcp, udp), "{on_failure:?}");
        assert_eq!(touched, tcp != BackendFate::Keep);
    }
    // Flows with nothing to hold on to do not stay with the dead, whatever the service says.
    service.backends[0].admin = BackendAdmin::Active;
    let (dead, touched) = after(&service, &drained, &[1], 13);
    assert_eq!(
        (touched, dead.fate(1, TCP), dead.fate(1, UDP)),
        (true, BackendFate::Keep, BackendFate::Rehash)
    );
}

/// Services change one by one, together, in number and order, and the checks say this and that: what is compiled from the
/// changes is what all of it says.
#[cfg(not(foundations))]
#[test]
fn changes_come_to_the_same_as_the_whole() {
    const TEXT: &str = "schema = 1\n[[port]]\nname = \"p\"\ndevice = \"eth1\"\n[[interface]]\nname = \"in\"\nport = \"p\"\n\
        zone = \"inside\"\naddresses = [\"10.255.0.1/24\"]\n";
    let mut config = Config::parse(TEXT, "test.toml").expect("a config");
    let (node, mut compiler) = crate::replay::compile(&config, 1, false).expect("tables");
    let mut random = 1u64;
    let mut draw = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut orphans: AHashMap<u32, OnFailure> = AHashMap::new();
    for round in 0..400 {
        let before = config.services.clone();
        for _ in 0..=draw(3) {
            let at = draw(config.services.len() as u64 + 1) as usize;
            match draw(6) {
                0 if at < config.services.len() => drop(config.services.remove(at)),
                1 if at < config.services.len() => config.services.swap(at, 0),
                _ => {
                    let is_free = |n: &u64| {
                        config.services.iter().all(|service| service.name.as_str() != format!("s{n}"))
                    };
                    let free = (0..6).find(is_free);
                    let old = config.services.get(at).map(|service| service.name.to_string());
                    let Some(name) = old.or(free.map(|n| format!("s{n}"))) else { continue };
                    let backends: Vec<String> = (0..draw(5))
                        .map(|n| {
                            let state = ["active", "drain", "disabled"][draw(3) as usize];
                            let weight = draw(3);
                            format!(
                                "{{ address = \"10.0.0.{n}:80\", weight = {weight}, state = \"{state}\" }}"
                            )
                        })
                        .collect();
                    let said = format!(
                        "name = \"{name}\"\naddress = \"203.0.113.{}\"\nservice = \"tcp/{}\"\non_failure = \"{}\"\n\
                         backends = [{}]",
                        draw(4),
                        80 + draw(2),
                        ["reset", "rehash", "finish"][draw(3) as usize],
                        backends.join(", ")
                    );
                    let said = Arc::new(toml::from_str(&said).expect("a service"));
                    match config.services.get_mut(at) {
                        Some(service) => *service = said,
                        None => config.services.push(said),
                    }
                }
            }
        }
        for _ in 0..draw(3) {
            let backend = draw(compiler.policy_slots.backends.len() as u64 + 1) as u32;
            compiler.note_health(backend, if draw(2) == 0 { DOWN } else { Health::WELL });
        }
        let made = policy::services(&config, &mut compiler).expect("few");
        let policy = compiler.tables().policy.with_services(made);
        compiler.put_policy(Arc::new(policy), &Touched::default()).release(&node.neighbours);

        // By definition, of everything.
        let (tables, backends) = (compiler.tables(), &compiler.tables().backends);
        let list = tables.policy.services().list();
        let of_list: AHashMap<u32, (&VirtualService, &Backend)> = list
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| (backend.slot, (&**service, backend))))
            .collect();
        let named = |name: &str| config.services.iter().any(|service| service.name.as_str() == name);
        for (slot, name) in (0..).zip(compiler.policy_slots.backends.names()) {
            let service = policy::service_of(name);
            if let Some(gone) = before.iter().find(|old| old.name.as_str() == service && !named(service)) {
                orphans.insert(slot, gone.on_failure);
            }
            let found = backends.state(slot);
            let expected = match of_list.get(&slot) {
                Some((service, backend)) => {
                    orphans.remove(&slot);
                    BackendState::of(service, backend, compiler.health(slot))
                }
                None => {
                    BackendState { service: found.service, ..BackendState::left(orphans.get(&slot).copied()) }
                }
            };
            assert_eq!(BackendState { since: 0, ..found }, expected, "round {round}, {name}");
        }
        let whole = Services::compile(list.to_vec(), Arc::default());
        for (address, port) in (0..4).flat_map(|address| [80, 81].map(|port| (address, port))) {
            let question =
                Question { dst: Ipv4Addr::new(203, 0, 113, address).into(), dst_port: port, ..asked(1) };
            let slot = |services: &Services| services.find(&question).map(|service| service.slot);
            assert_eq!(slot(tables.policy.services()), slot(&whole), "round {round}");
        }
    }
}
