//! Two nodes over a link that loses, repeats and reorders; and somebody on it who has no key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use softgate::flow::Tuple;
use softgate::flow::changes::Gone;
use softgate::flow::digest::SLICES;
use softgate::flow::flow_record::{FlowRecord, InTable, Kind, Name, Port, Upper};
use softgate::flow::tcp::{Segment, SynOptions, Tcp, flags};
use softgate::ha::sync::audit::PAUSE;
use softgate::ha::sync::machine::{BLOCK_RECORDS, HEARTBEAT, SILENCE};
use softgate::ha::sync::wire::{Item, items};
use softgate::ha::sync::{BadDatagram, Link, Machine, Names, PairKey, Told};
use softgate::neighbours::v4_key;
use softgate::tables::bridge::scope_of_number;
use softgate::time::Nanos;

/// Streams of the sender's workers: one may be behind another.
const WORKERS: u16 = 3;

fn key() -> PairKey {
    PairKey::new(b"a secret of enough bytes").expect("long enough")
}

/// Slots of both nodes differ: the same names in another order.
fn names(is_reversed: bool) -> Arc<Names> {
    let mut names = Names::default();
    for kind in Kind::ALL {
        let mut of_kind = vec!["one", "two", "three"];
        if is_reversed {
            of_kind.reverse();
        }
        names.extend(kind, of_kind.into_iter());
    }
    Arc::new(names)
}

/// Some sessions are between members of a bridge, which has the place of the VRF.
fn scope(number: u16, slot: u16) -> u16 {
    if number.is_multiple_of(2) { slot } else { scope_of_number(slot).expect("a bridge") }
}

fn name(number: u16) -> Name {
    let tuple = Tuple {
        src: v4_key(0x0a00_0101),
        dst: v4_key(0xcb00_7101),
        src_port: number,
        dst_port: 80,
        vrf: scope(number, 0),
        protocol: 17,
        zero: 0,
    };
    Name { table: InTable::V4, tuple }
}

fn record(number: u16, version: u32) -> FlowRecord {
    FlowRecord {
        name: name(number),
        new: [v4_key(0xc633_6401), v4_key(0xcb00_7101)],
        new_ports: [number ^ 0x55, 80],
        reply_vrf: 1,
        ingress: 2,
        dscp: 10,
        opened_with: 2,
        rule: 1,
        nat_rule: 2,
        zones: [1, 3],
        backend: None,
        is_delivery: false,
        mapping: Some(Port {
            pool: 1,
            addr: 0xc633_6401,
            port: number ^ 0x55,
            inside_vrf: 0,
            inside_port: number,
        }),
        bound: None,
        upper: Upper::Answered,
        idle: 0,
        age: version,
    }
}

/// What a node has been told: by session, the version and whether it was told in the resync under way.
#[derive(Default)]
struct Heard {
    sessions: BTreeMap<u16, (u32, u32)>,
    round: u32,
    /// How often it was told everything.
    wholes: u32,
    room: usize,
    /// How often the other had begun with nothing.
    births: u32,
}

impl Link for Heard {
    fn room(&self) -> usize {
        self.room
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Is { record, counts } => {
                // In this node's slots.
                assert_eq!((record.ingress, record.zones, record.reply_vrf), (0, [3, 1], 1));
                assert_eq!(record.name.tuple.vrf, scope(record.name.tuple.src_port, 2));
                let (session, before) = (record.name.tuple.src_port, self.round.wrapping_sub(1));
                let known = self.sessions.get(&session).map_or(before, |(_, round)| *round);
                self.sessions.insert(session, (record.age, if counts { self.round } else { known }));
            }
            Told::Gone(gone) => {
                let session = gone.name.tuple.src_port;
                assert_eq!(gone.name.tuple.vrf, scope(session, 2));
                self.sessions.remove(&session);
            }
            Told::Begin => {
                self.round += 1;
                self.wholes += 1;
            }
            Told::End => self.sessions.retain(|_, (_, round)| *round == self.round),
            Told::EndOfFirst => self.births += 1,
            Told::BeginPart => self.round += 1,
            Told::EndPart(slices) => {
                let round = self.round;
                self.sessions.retain(|session, (_, told)| !slices.has(slice_of(*session)) || *told == round);
            }
        }
    }
}

/// Some sessions share a slice.
fn slice_of(session: u16) -> u16 {
    (session / 3).wrapping_mul(1021)
}

fn sums<'a>(sessions: impl Iterator<Item = (&'a u16, u32)>) -> Vec<u64> {
    let mut sums = vec![0_u64; SLICES];
    for (session, version) in sessions {
        let sum = (u64::from(*session) << 32 | u64::from(version)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let slice = &mut sums[usize::from(slice_of(*session))];
        *slice = slice.wrapping_add(sum);
    }
    sums
}

/// What the link does to a datagram.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    Late,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Is(u16, u32),
    Gone(u16),
    /// Something found no room and was lost: the session is there, and nobody said so.
    Overrun(u16, u32),
    Pass(u8),
    /// The time between some looks.
    Wait,
    /// The receiver starts again, with nothing.
    Restart,
}

struct Pair {
    now: Nanos,
    sender: Machine,
    receiver: Machine,
    /// What the sender has.
    has: BTreeMap<u16, u32>,
    heard: Heard,
    back: Heard,
    wire: [Vec<Vec<u8>>; 2],
    fates: Vec<Fate>,
    at: usize,
    runs: u64,
    recorded: Vec<Vec<u8>>,
}

impl Pair {
    fn new(fates: Vec<Fate>) -> Pair {
        let now = Nanos::from_secs(10);
        let machine = |run, is_reversed| {
            let mut machine = Machine::new(key(), run, WORKERS, 10_000_000, now);
            machine.set_names(names(is_reversed));
            machine
        };
        Pair {
            now,
            sender: machine(1, false),
            receiver: machine(2, true),
            has: BTreeMap::new(),
            heard: Heard { room: 2 * BLOCK_RECORDS, ..Heard::default() },
            back: Heard { room: 2 * BLOCK_RECORDS, ..Heard::default() },
            wire: Default::default(),
            fates,
            at: 0,
            runs: 2,
            recorded: Vec::new(),
        }
    }

    fn turn(&mut self, is_honest: bool) {
        self.now = self.now.plus(Duration::from_millis(5));
        let mut sent = [Vec::new(), Vec::new()];
        self.sender.poll(self.now, &mut self.back, &mut |datagram| sent[0].push(datagram.to_vec()));
        self.receiver.poll(self.now, &mut self.heard, &mut |datagram| sent[1].push(datagram.to_vec()));
        if self.sender.take_resync() {
            self.resync();
        }
        let _ = self.receiver.take_resync().then(|| {
            self.receiver.begin_resync().map(|number| {
                (0..WORKERS).for_each(|worker| self.receiver.begin_stream(worker, number));
                (0..WORKERS).for_each(|worker| self.receiver.end_resync(worker, number));
            })
        });
        self.audit();
        for (way, sent) in sent.into_iter().enumerate() {
            let late = std::mem::take(&mut self.wire[way]);
            for datagram in sent {
                self.recorded.push(datagram.clone());
                self.at += 1;
                let fate = if is_honest { Fate::Arrives } else { self.fates[self.at % self.fates.len()] };
                match fate {
                    Fate::Arrives => self.arrive(way, &datagram),
                    Fate::Lost => {}
                    Fate::Twice => (0..2).for_each(|_| self.arrive(way, &datagram)),
                    Fate::Late => self.wire[way].push(datagram),
                }
            }
            late.iter().for_each(|datagram| self.arrive(way, datagram));
        }
    }

    /// Both look at what they have, and tell again what has drifted.
    fn audit(&mut self) {
        if let Some(number) = self.sender.take_look(self.now) {
            let all = sums(self.has.iter().map(|(session, version)| (session, *version)));
            self.sender.audited(number, all, self.now);
        }
        if let Some(number) = self.receiver.take_look(self.now) {
            let all = sums(self.heard.sessions.iter().map(|(session, (version, _))| (session, *version)));
            self.receiver.audited(number, all, self.now);
        }
        let has: Vec<(u16, u32)> = self.has.iter().map(|(session, version)| (*session, *version)).collect();
        let heard = self.heard.sessions.iter().map(|(session, (version, _))| (*session, *version)).collect();
        let tell = |machine: &mut Machine, all: Vec<(u16, u32)>, now: Nanos| {
            let Some((number, slices)) = machine.take_repair(now) else { return };
            (0..WORKERS).for_each(|worker| machine.begin_stream(worker, number));
            for (session, version) in all.into_iter().filter(|(session, _)| slices.has(slice_of(*session))) {
                machine.tell(session % WORKERS, &record(session, version));
            }
            (0..WORKERS).for_each(|worker| machine.end_resync(worker, number));
        };
        tell(&mut self.sender, has, self.now);
        tell(&mut self.receiver, heard, self.now);
    }

    fn arrive(&mut self, way: usize, datagram: &[u8]) {
        let _ = match way {
            0 => self.receiver.receive(datagram, self.now, &mut self.heard),
            _ => self.sender.receive(datagram, self.now, &mut self.back),
        };
    }

    fn resync(&mut self) {
        let Some(number) = self.sender.begin_resync() else { return };
        (0..WORKERS).for_each(|worker| self.sender.begin_stream(worker, number));
        for (session, version) in self.has.clone() {
            self.say(session, Some(version));
        }
        (0..WORKERS).for_each(|worker| self.sender.end_resync(worker, number));
    }

    /// Tells of a session by its worker's stream, as soon as there is room.
    fn say(&mut self, session: u16, version: Option<u32>) {
        let worker = session % WORKERS;
        for _ in 0..2000 {
            if !self.sender.is_there() {
                // Whoever comes is told everything.
                return;
            }
            if self.sender.has_room(worker) {
                break;
            }
            self.turn(false);
        }
        match version {
            Some(version) => self.sender.tell(worker, &record(session, version)),
            None => self.sender.tell_gone(worker, &Gone { name: name(session), idle: 0 }),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Is(session, version) => {
                self.has.insert(session, version);
                self.say(session, Some(version));
            }
            Step::Gone(session) => {
                if self.has.remove(&session).is_some() {
                    self.say(session, None);
                }
            }
            Step::Overrun(session, version) => {
                if self.has.remove(&session).is_none() {
                    self.has.insert(session, version);
                }
                self.resync();
            }
            Step::Pass(turns) => (0..turns).for_each(|_| self.turn(false)),
            Step::Wait => (0..turns_in(3 * PAUSE)).for_each(|_| self.turn(false)),
            Step::Restart => {
                self.runs += 1;
                self.receiver = Machine::new(key(), self.runs, WORKERS, 10_000_000, self.now);
                self.receiver.set_names(names(true));
                self.heard.sessions.clear();
            }
        }
    }

    /// The link is well again: until nothing is under way.
    fn settle(&mut self) {
        let turns = (3 * SILENCE + 10 * HEARTBEAT).as_millis() / 5;
        (0..turns).for_each(|_| self.turn(true));
    }

    fn compare(&self) {
        let heard: BTreeMap<u16, u32> =
            self.heard.sessions.iter().map(|(session, (version, _))| (*session, *version)).collect();
        assert_eq!(heard, self.has);
        assert!(self.sender.status(self.now).is_synced, "{:?}", self.sender.status(self.now));
        assert!(self.receiver.status(self.now).has_all);
    }
}

fn turns_in(time: Duration) -> u128 {
    time.as_millis() / 5
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (0_u16..300, any::<u32>()).prop_map(|(session, version)| Step::Is(session, version)),
        8 => (0_u16..300).prop_map(Step::Gone),
        1 => (0_u16..300, any::<u32>()).prop_map(|(session, version)| Step::Overrun(session, version)),
        6 => (0_u8..30).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 1..200)
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        6 => Just(Fate::Arrives),
        2 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Late),
    ];
    prop::collection::vec(fate, 7..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_link_does_both_end_up_with_the_same(steps in steps(), fates in fates()) {
        let mut pair = Pair::new(fates);
        for step in steps {
            pair.step(step);
        }
        pair.settle();
        pair.compare();
        // Whatever was under way: nothing of it was drift.
        for machine in [&pair.sender, &pair.receiver] {
            prop_assert_eq!(machine.status(pair.now).drift.found, 0);
        }
    }

    /// Sessions that one node has lost, or has not heard the end of, and nobody said so: the audits find them.
    #[test]
    fn what_has_drifted_is_found_and_told_again(
        steps in steps(), fates in fates(), lost in prop::collection::vec(0_u16..300, 1..20),
        stays in prop::collection::vec((0_u16..300, any::<u32>()), 1..20),
    ) {
        let mut pair = Pair::new(fates);
        steps.into_iter().for_each(|step| pair.step(step));
        pair.settle();
        let round = pair.heard.round.wrapping_sub(1);
        pair.heard.sessions.retain(|session, _| !lost.contains(session));
        for (session, version) in stays {
            pair.heard.sessions.insert(session, (version, round));
        }
        let heard: Vec<(u16, u32)> = pair.heard.sessions.iter().map(|(at, (version, _))| (*at, *version)).collect();
        let apart = heard != pair.has.iter().map(|(at, version)| (*at, *version)).collect::<Vec<_>>();
        let wholes = pair.heard.wholes;
        // While datagrams are lost as before: so many may be that few looks are heard of.
        for _ in 0..turns_in(8 * PAUSE) {
            pair.turn(false);
        }
        for _ in 0..turns_in(8 * PAUSE) {
            pair.turn(true);
        }
        pair.settle();
        pair.compare();
        for machine in [&pair.sender, &pair.receiver] {
            let drift = machine.status(pair.now).drift;
            prop_assert_eq!(drift.left, 0, "{:?}", drift);
            prop_assert!(drift.found == drift.repaired);
        }
        let found = pair.sender.status(pair.now).drift.found > 0;
        prop_assert!(!found || apart);
        // Nodes that had not heard each other for long tell each other everything.
        prop_assert!(found || !apart || pair.heard.wholes > wholes);
    }

    /// A record is on the other side what it was, or is none.
    #[test]
    fn records_survive_the_wire(
        numbers in any::<[u16; 6]>(), wide in any::<[bool; 4]>(), words in any::<[u32; 6]>(),
        has in any::<[bool; 4]>(), bytes in any::<[u8; 6]>(),
    ) {
        let addr = |at: usize| match wide[at] {
            true => 0x2001_0db8 << 96 | u128::from(words[at]),
            false => v4_key(words[at]),
        };
        let table = if wide[0] || wide[1] || bytes[0] & 1 == 1 { InTable::V6 } else { InTable::V4 };
        let port = |at: usize| Port {
            pool: numbers[at], addr: words[at], port: numbers[0], inside_vrf: numbers[1], inside_port: numbers[2],
        };
        let tuple = Tuple { src: addr(0), dst: addr(1), src_port: numbers[0], dst_port: numbers[1], vrf: numbers[2],
            protocol: bytes[1], zero: 0 };
        let told = FlowRecord {
            name: Name { table, tuple },
            new: [addr(2), addr(3)],
            new_ports: [numbers[3], numbers[4]],
            reply_vrf: numbers[5],
            ingress: numbers[0],
            dscp: bytes[2] & 63,
            opened_with: bytes[3],
            rule: words[4],
            nat_rule: numbers[1],
            zones: [bytes[4], bytes[5]],
            backend: has[0].then_some(words[5]),
            is_delivery: has[1],
            mapping: has[2].then(|| port(0)),
            bound: (has[3] && !has[0]).then(|| port(1)),
            upper: if has[1] { Upper::Tcp(Tcp::resumed()) } else { Upper::Answered },
            idle: words[0],
            age: words[1],
        };
        let mut bytes = Vec::new();
        Item::Is(told).emit(&mut bytes);
        prop_assert!(bytes.len() >= 24, "as many records as that are in a block at most");
        let came: Vec<_> = items(&bytes).collect();
        let [Some(Item::Is(came))] = came[..] else { panic!("one record: {came:?}") };
        prop_assert_eq!(format!("{came:?}"), format!("{told:?}"));
        for len in 0..bytes.len() {
            prop_assert!(items(&bytes[..len]).all(|item| item.is_none()), "cut at {}", len);
        }
    }
}

fn connected() -> Pair {
    let mut pair = Pair::new(vec![Fate::Arrives]);
    (0..10).for_each(|_| pair.turn(true));
    (0..50).for_each(|number| pair.step(Step::Is(number, 7)));
    (0..400).for_each(|_| pair.turn(true));
    pair.compare();
    pair
}

#[test]
fn who_has_no_key_changes_nothing() {
    let mut pair = connected();
    let recorded = pair.recorded.clone();
    assert!(recorded.len() > 10);
    let before = pair.receiver.status(pair.now).refused;
    for datagram in &recorded {
        // Again, cut, changed, turned back.
        pair.arrive(0, datagram);
        pair.arrive(1, datagram);
        pair.arrive(0, &datagram[..datagram.len() - 1]);
        let mut forged = datagram.clone();
        forged[40 % datagram.len()] ^= 4;
        pair.arrive(0, &forged);
    }
    let refused = pair.receiver.status(pair.now).refused;
    let count = |bad: BadDatagram| refused[bad as usize] - before[bad as usize];
    assert_eq!(count(BadDatagram::Tag), 2 * recorded.len() as u64);
    assert!(count(BadDatagram::Replayed) > 0 && count(BadDatagram::Own) > 0);
    pair.compare();
    pair.step(Step::Is(1000, 1));
    pair.settle();
    pair.compare();
}

#[test]
fn what_was_recorded_in_another_run_changes_nothing() {
    let mut pair = connected();
    let recorded = std::mem::take(&mut pair.recorded);
    pair.step(Step::Restart);
    pair.settle();
    pair.compare();
    pair.step(Step::Gone(3));
    pair.settle();
    for datagram in &recorded {
        pair.arrive(0, datagram);
        pair.arrive(1, datagram);
    }
    pair.compare();
    pair.step(Step::Is(1001, 1));
    pair.settle();
    pair.compare();
}

#[test]
fn who_was_silent_goes_on_and_who_begins_anew_is_told_from_that() {
    let mut pair = connected();
    pair.back.births = 0;
    // The cable is cut: both know that the other has what it had.
    pair.fates = vec![Fate::Lost];
    (0..turns_in(2 * SILENCE)).for_each(|_| pair.turn(false));
    assert!(!pair.sender.is_there());
    pair.step(Step::Is(400, 1));
    pair.settle();
    pair.compare();
    assert_eq!(pair.back.births, 0);
    pair.step(Step::Restart);
    pair.settle();
    pair.compare();
    assert_eq!(pair.back.births, 1);
    // What it tells later is all that it has.
    pair.receiver.ask_again();
    let number = pair.receiver.begin_resync().expect("the other is there");
    (0..WORKERS).for_each(|worker| pair.receiver.begin_stream(worker, number));
    (0..WORKERS).for_each(|worker| pair.receiver.end_resync(worker, number));
    pair.settle();
    assert_eq!(pair.back.births, 1);
}

#[test]
fn both_say_in_which_sections_their_configs_differ() {
    let mut pair = connected();
    let sections = |rule: u64, more: &[(&str, u64)]| -> Vec<(String, u64)> {
        let all = [("rule", rule), ("zone", 7)].into_iter().chain(more.iter().copied());
        all.map(|(name, hash)| (name.to_owned(), hash)).collect()
    };
    let differs = |pair: &Pair| {
        [&pair.sender, &pair.receiver]
            .map(|machine| machine.status(pair.now).differs.map(|names| names.to_vec()))
    };
    pair.sender.set_config(sections(1, &[]));
    pair.settle();
    assert_eq!(differs(&pair), [None, None], "one of them has not said");
    pair.receiver.set_config(sections(1, &[]));
    (0..4).for_each(|_| pair.turn(true));
    assert_eq!(differs(&pair), [(); 2].map(|()| Some(Vec::new())));
    pair.sender.set_config(sections(2, &[("vrrp", 1)]));
    (0..4).for_each(|_| pair.turn(true));
    let expected = || Some(vec![String::from("rule"), String::from("vrrp")]);
    assert_eq!(differs(&pair), [expected(), expected()]);
    // Another life of the one: it has to say again.
    pair.step(Step::Restart);
    pair.settle();
    assert_eq!(differs(&pair), [None, None]);
    pair.receiver.set_config(sections(2, &[("vrrp", 1)]));
    (0..4).for_each(|_| pair.turn(true));
    assert_eq!(differs(&pair), [(); 2].map(|()| Some(Vec::new())));
}

#[test]
fn nothing_is_taken_that_there_is_no_room_for_and_nothing_is_lost() {
    let mut pair = connected();
    pair.heard.room = 0;
    (100..200).for_each(|number| pair.step(Step::Is(number, 9)));
    (0..100).for_each(|_| pair.turn(true));
    assert_eq!(pair.heard.sessions.len(), 50);
    assert!(pair.sender.status(pair.now).pending > 0 && !pair.sender.status(pair.now).is_synced);
    pair.heard.room = BLOCK_RECORDS;
    pair.settle();
    pair.compare();
}

#[test]
fn an_unknown_name_is_waited_for() {
    let mut pair = connected();
    let mut more = (*names(false)).clone();
    let all = ["one", "two", "three", "four"];
    more.extend(Kind::Pool, all.into_iter());
    pair.sender.set_names(Arc::new(more.clone()));
    let mut told = record(77, 5);
    told.mapping.as_mut().expect("it has one").pool = 3;
    pair.has.insert(77, 5);
    let tell = |pair: &mut Pair| {
        (0..20).for_each(|_| pair.turn(true));
        pair.sender.tell(0, &told);
        (0..100).for_each(|_| pair.turn(true));
    };
    tell(&mut pair);
    assert_eq!(pair.receiver.status(pair.now).unknown_names, 1);
    assert!(!pair.heard.sessions.contains_key(&77));
    // Once this node knows it too, it asks.
    let mut own = (*names(true)).clone();
    own.extend(Kind::Pool, ["three", "two", "one", "four"].into_iter());
    pair.receiver.set_names(Arc::new(own));
    let before = pair.sender.status(pair.now).resyncs[0];
    (0..200).for_each(|_| pair.turn(true));
    assert_eq!(pair.sender.status(pair.now).resyncs[0], before + 1);
}

#[test]
fn the_rate_is_kept() {
    let mut pair = connected();
    pair.sender = Machine::new(key(), 99, WORKERS, 100_000, pair.now);
    pair.sender.set_names(names(false));
    pair.has.extend((0..5000).map(|number| (number, 1)));
    let bytes = |pair: &Pair| pair.sender.status(pair.now).bytes[0];
    (0..200).for_each(|_| pair.turn(true));
    let before = bytes(&pair);
    (0..600).for_each(|_| pair.turn(true));
    // 3 seconds; acknowledgments and greetings come on top.
    assert!(bytes(&pair) - before < 3 * 100_000 + 20_000, "{}", bytes(&pair) - before);
}

#[test]
fn a_connection_is_told_as_it_stands() {
    let syn = Segment {
        seq: 1,
        ack: 0,
        payload_len: 0,
        window: 100,
        flags: flags::SYN,
        options: SynOptions { window_scale: Some(7), ..SynOptions::default() },
    };
    let opening = Tcp::open(&syn, false).expect("a SYN");
    assert!(!opening.is_replicated());
    assert!(Tcp::from_replica(opening.to_replica()).is_none(), "nobody tells of what opens");
    let going = Tcp::resumed();
    let told = Tcp::from_replica(going.to_replica()).expect("it goes on");
    assert_eq!((told.state(), told.is_established()), (going.state(), true));
}
