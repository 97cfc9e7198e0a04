//! The state machine against its table, two and three routers on a link that loses, the codec against scapy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::engine::Frame;
use super::machine::Heard;
use super::*;
use crate::packet::view::ethertype;
use crate::roles::Part;
use crate::time::Nanos;

const START: Nanos = Nanos::from_secs(100);

fn cs(centiseconds: u64) -> Centiseconds {
    Centiseconds::new(centiseconds).expect("1 to 4095")
}

fn millis(millis: u64) -> Nanos {
    START.plus(Duration::from_millis(millis))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn settings(priority: u8) -> Settings {
    Settings {
        priority,
        interval: cs(100),
        preempt: true,
        preempt_delay: Duration::ZERO,
        primary: address("192.0.2.2"),
    }
}

fn heard(priority: u8, source: &str) -> Event {
    Event::Advert(Heard { priority, interval: cs(20), source: address(source) })
}

/// A machine in each state, all at [`START`].
fn machine(state: State, settings: Settings) -> Machine {
    let mut machine = Machine::new(settings);
    if state != State::Initialize {
        machine.step(Event::Startup, START);
    }
    if matches!(state, State::Active | State::Leaving) && machine.state() != State::Active {
        machine.step(Event::TakeOver, START);
    }
    if state == State::Leaving {
        machine.step(Event::Leave, START);
    }
    assert_eq!(machine.state(), state);
    machine
}

/// One line of the transition table: what happens later than [`START`] by some milliseconds, in which state, what the
/// state is then, what is to be done, and in how many milliseconds of it the timer fires.
type Line<'a> = (State, Event, u64, State, &'a [Action], Option<u64>);

fn check(lines: &[Line<'_>], settings: Settings) {
    for (before, event, at, after, actions, timer) in lines {
        let mut machine = machine(*before, settings);
        let done = machine.step(*event, millis(*at));
        let line = format!("{before:?} {event:?}, {at} ms later");
        assert_eq!(machine.state(), *after, "{line}");
        assert_eq!(&done[..], *actions, "{line}");
        let due = machine.deadline().map(|due| due.since(millis(*at)).as_millis() as u64);
        assert_eq!(due, *timer, "{line}");
        assert_eq!(
            machine.deadline().is_none(),
            *after == State::Initialize || machine.wants_active(),
            "{line}"
        );
    }
}

#[test]
fn the_transition_table_of_rfc_9568_section_6_4() {
    use Action::{Advertise, Announce, BecomeActive, BecomeInactive};
    use State::{Active, Backup, Initialize, Leaving};
    // Priority 128, interval 1 s: Skew_Time 500 ms, Active_Down_Interval 3.5 s. Others say 200 ms: 100 ms, 700 ms.
    let (lower, higher) = ("192.0.2.1", "192.0.2.3");
    let take_over: &[Action] = &[BecomeActive, Advertise(128), Announce];
    check(
        &[
            (Initialize, Event::Startup, 0, Backup, &[], Some(3500)),
            (Initialize, Event::Shutdown, 0, Initialize, &[], None),
            (Initialize, Event::Timer, 0, Initialize, &[], None),
            (Initialize, Event::TakeOver, 0, Initialize, &[], None),
            (Initialize, Event::StandBack, 0, Initialize, &[], None),
            (Initialize, heard(0, lower), 0, Initialize, &[], None),
            (Initialize, heard(200, higher), 0, Initialize, &[], None),
            (Backup, Event::Startup, 1000, Backup, &[], Some(2500)),
            (Backup, Event::Shutdown, 1000, Initialize, &[], None),
            (Backup, Event::Timer, 1000, Backup, &[], Some(2500)),
            (Backup, Event::Timer, 3500, Backup, &[], None),
            (Backup, Event::TakeOver, 3500, Active, take_over, Some(1000)),
            (Backup, Event::StandBack, 1000, Backup, &[], Some(2500)),
            (Backup, heard(0, higher), 1000, Backup, &[], Some(500)),
            (Backup, heard(0, higher), 3400, Backup, &[], Some(100)),
            (Backup, heard(200, lower), 1000, Backup, &[], Some(700)),
            (Backup, heard(128, lower), 1000, Backup, &[], Some(700)),
            (Backup, heard(127, higher), 1000, Backup, &[], Some(2500)),
            (Backup, heard(255, lower), 1000, Backup, &[], Some(700)),
            (Active, Event::Startup, 300, Active, &[], Some(700)),
            (Active, Event::Shutdown, 300, Initialize, &[BecomeInactive, Advertise(0)], None),
            (Active, Event::Timer, 300, Active, &[], Some(700)),
            (Active, Event::Timer, 1000, Active, &[Advertise(128)], Some(1000)),
            (Active, Event::TakeOver, 300, Active, &[], Some(700)),
            (Active, Event::StandBack, 300, Backup, &[BecomeInactive], Some(3500)),
            (Active, heard(0, higher), 300, Active, &[Advertise(128)], Some(1000)),
            (Active, heard(129, lower), 300, Backup, &[BecomeInactive], Some(700)),
            (Active, heard(128, higher), 300, Backup, &[BecomeInactive], Some(700)),
            (Active, heard(128, lower), 300, Active, &[Advertise(128), Announce], Some(1000)),
            (Active, heard(127, higher), 300, Active, &[Advertise(128), Announce], Some(1000)),
            // Answers are no more frequent than the shortest interval.
            (Active, heard(127, higher), 9, Active, &[], Some(991)),
            (Active, heard(0, higher), 9, Active, &[], Some(991)),
            // Who has said nothing for three intervals was taken over from.
            (Active, heard(127, higher), 3000, Active, &[Advertise(128), Announce], Some(1000)),
            (Active, heard(127, higher), 3001, Backup, &[BecomeInactive], Some(700)),
            (Active, heard(128, lower), 3001, Backup, &[BecomeInactive], Some(700)),
            (Active, heard(0, higher), 3001, Active, &[Advertise(128)], Some(1000)),
            // Going away: it stays until another is heard.
            (Initialize, Event::Leave, 0, Initialize, &[], None),
            (Backup, Event::Leave, 1000, Initialize, &[], None),
            (Active, Event::Leave, 300, Leaving, &[Advertise(0)], Some(1000)),
            (Leaving, Event::Startup, 300, Active, &[Advertise(128)], Some(1000)),
            (Leaving, Event::Shutdown, 300, Initialize, &[BecomeInactive, Advertise(0)], None),
            (Leaving, Event::Leave, 300, Leaving, &[], Some(700)),
            (Leaving, Event::Timer, 300, Leaving, &[], Some(700)),
            (Leaving, Event::Timer, 1000, Leaving, &[Advertise(0)], Some(1000)),
            (Leaving, Event::TakeOver, 300, Leaving, &[], Some(700)),
            (Leaving, Event::StandBack, 300, Leaving, &[], Some(700)),
            (Leaving, heard(0, higher), 300, Leaving, &[], Some(700)),
            (Leaving, heard(1, lower), 300, Initialize, &[BecomeInactive], None),
        ],
        settings(128),
    );
    check(
        &[
            (Initialize, Event::Startup, 0, Active, &[BecomeActive, Advertise(255), Announce], Some(1000)),
            (Active, heard(254, higher), 300, Active, &[Advertise(255), Announce], Some(1000)),
        ],
        settings(255),
    );
    let patient = Settings { preempt: false, ..settings(128) };
    check(
        &[
            (Backup, heard(1, lower), 1000, Backup, &[], Some(700)),
            (Backup, heard(0, lower), 1000, Backup, &[], Some(500)),
            (Active, heard(127, higher), 300, Active, &[Advertise(128), Announce], Some(1000)),
        ],
        patient,
    );
}

#[test]
fn a_router_that_wants_to_be_active_hears_one_again() {
    let mut machine = machine(State::Backup, settings(128));
    machine.step(Event::Timer, millis(3500));
    assert!(machine.wants_active() && machine.deadline().is_none());
    machine.step(heard(0, "192.0.2.3"), millis(3600));
    assert!(machine.wants_active(), "nobody is there still");
    machine.step(heard(128, "192.0.2.3"), millis(3700));
    assert!(!machine.wants_active());
    assert_eq!(machine.deadline(), Some(millis(4400)));
}

#[test]
fn preemption_waits_for_its_delay_and_a_silent_active_does_not() {
    let delayed = Settings { preempt_delay: Duration::from_secs(5), ..settings(128) };
    let mut machine = machine(State::Backup, delayed);
    for at in (0..5000).step_by(200) {
        machine.step(heard(100, "192.0.2.3"), millis(at));
        assert_eq!(machine.deadline(), Some(millis(at + 700)), "is heard since {at} ms");
    }
    let last = machine.deadline();
    machine.step(heard(100, "192.0.2.3"), millis(5000));
    assert_eq!(machine.deadline(), last, "is heard no more");

    let mut machine = super::tests::machine(State::Backup, delayed);
    machine.step(heard(100, "192.0.2.3"), millis(0));
    machine.step(Event::Timer, millis(700));
    assert!(machine.wants_active(), "there is no Active to be taken over from");
}

#[test]
fn who_has_waited_to_preempt_does_not_begin_again_while_its_group_waits() {
    let delayed = Settings { preempt_delay: Duration::from_secs(1), ..settings(128) };
    let mut machine = machine(State::Backup, delayed);
    for at in (0..2000).step_by(200) {
        machine.step(Event::Timer, millis(at));
        machine.step(heard(100, "192.0.2.3"), millis(at));
    }
    assert!(machine.wants_active());
    machine.step(heard(100, "192.0.2.3"), millis(2000));
    assert!(machine.wants_active(), "nobody better is there");
    machine.step(heard(200, "192.0.2.3"), millis(2100));
    assert!(!machine.wants_active());
}

#[test]
fn a_shorter_interval_is_in_force_at_once() {
    let long = Settings { interval: cs(4095), ..settings(128) };
    let mut active = machine(State::Active, long);
    active.set(settings(128));
    assert_eq!(active.deadline(), Some(millis(1000)));
    active.set(long);
    assert_eq!(active.deadline(), Some(millis(1000)));

    let mut backup = machine(State::Backup, long);
    backup.set(settings(128));
    assert_eq!(backup.deadline(), Some(millis(3500)));
    // Of an Active that advertises every 200 ms.
    backup.step(heard(200, "192.0.2.3"), START);
    backup.set(Settings { interval: cs(10), ..settings(128) });
    assert_eq!(backup.deadline(), Some(millis(700)));
}

#[test]
fn the_times_of_rfc_9568_section_6_1() {
    // adv 10 cs, priority 254: 30 cs and 2 of 256 parts of 10 cs.
    let machine = Machine::new(Settings { interval: cs(10), ..settings(254) });
    assert_eq!(machine.skew_time(), Duration::from_nanos(781_250));
    assert_eq!(machine.active_down_interval(), Duration::from_nanos(300_781_250));
    let machine = Machine::new(Settings { interval: cs(4095), ..settings(1) });
    assert_eq!(machine.active_down_interval(), Duration::from_nanos(163_640_039_062));
    for bad in [0, 4096, u64::MAX] {
        assert_eq!(Centiseconds::new(bad), Err(BadInterval(bad)));
    }
}

// ---- the codec

/// scapy 2.5: IP(ttl=255, tos=0xc0, flags="DF") / VRRPv3(vrid=10, priority=150, adv=10, addrlist=[...]).
const SCAPY_V4: &str = "45c0002400004000ff708f950a000102e0000012310a9602000a36550a0001010a0001fe";
/// scapy 2.5: IPv6(hlim=255, tc=0xc0), and in6_chksum over the message.
const SCAPY_V6: &str = "6c000000002870fffe800000000000000000000000000002ff020000000000000000000000000012\
                        310a960200640e23fe80000000000000000000000000000120010db8000000000000000000000001";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect()
}

fn advert(source: &str, interval: u64, addresses: &[&str]) -> Advert {
    Advert {
        vrid: 10,
        heard: Heard { priority: 150, interval: cs(interval), source: address(source) },
        addresses: addresses.iter().map(|text| address(text)).collect(),
    }
}

#[test]
fn advertisements_are_those_of_scapy() {
    let v4 = advert("10.0.1.2", 10, &["10.0.1.1", "10.0.1.254"]);
    assert_eq!(v4.emit(true), bytes(SCAPY_V4));
    assert_eq!(Advert::parse(&bytes(SCAPY_V4)), Ok(v4.clone()));
    // RFC 9568 section 5.2.8: scapy's `checksum` over the message alone.
    let plain = v4.emit(false);
    assert_eq!(plain[26..28], [0x21, 0xea]);
    assert_eq!(Advert::parse(&plain), Ok(v4));
    let v6 = advert("fe80::2", 100, &["fe80::1", "2001:db8::1"]);
    assert_eq!(v6.emit(true), bytes(SCAPY_V6));
    assert_eq!(v6.emit(false), bytes(SCAPY_V6));
    assert_eq!(Advert::parse(&bytes(SCAPY_V6)), Ok(v6));
}

#[test]
fn what_is_wrong_with_an_advertisement() {
    let spoilt = |packet: &str, at: usize, value: u8| {
        let mut packet = bytes(packet);
        packet[at] = value;
        Advert::parse(&packet)
    };
    for (at, value, wrong) in [
        (0, 0x46, BadAdvert::Version),
        (0, 0x44, BadAdvert::Truncated),
        (3, 0x25, BadAdvert::Truncated),
        (3, 0x1b, BadAdvert::Truncated),
        (6, 0x20, BadAdvert::Truncated),
        (8, 254, BadAdvert::Ttl),
        (9, 17, BadAdvert::Truncated),
        (12, 224, BadAdvert::Sender),
        (13, 1, BadAdvert::Checksum),
        (20, 0x21, BadAdvert::Version),
        (20, 0x32, BadAdvert::Type),
        (21, 11, BadAdvert::Checksum),
        (23, 3, BadAdvert::Truncated),
        (35, 0xff, BadAdvert::Checksum),
    ] {
        assert_eq!(spoilt(SCAPY_V4, at, value), Err(wrong), "IPv4, {value:#x} at {at}");
    }
    for (at, value, wrong) in [
        (5, 0x29, BadAdvert::Truncated),
        (6, 58, BadAdvert::Truncated),
        (7, 254, BadAdvert::Ttl),
        (8, 0x20, BadAdvert::Sender),
        (23, 3, BadAdvert::Checksum),
        (40, 0x41, BadAdvert::Version),
        (79, 2, BadAdvert::Checksum),
    ] {
        assert_eq!(spoilt(SCAPY_V6, at, value), Err(wrong), "IPv6, {value:#x} at {at}");
    }
    let mut silent = advert("10.0.1.2", 10, &["10.0.1.1"]).emit(false);
    let sum = u16::from_be_bytes([silent[26], silent[27]]) + 10;
    silent[25] = 0;
    silent[26..28].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(Advert::parse(&silent), Err(BadAdvert::Interval));
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(mut packet in proptest::collection::vec(any::<u8>(), 0..96), as_ours in 0..3u8) {
        let frame = match as_ours {
            0 => &[0x45, 0, 0, 36, 0, 0, 0, 0, 255, 112][..],
            1 => &[0x60, 0, 0, 0, 0, 40, 112, 255][..],
            _ => &[],
        };
        for (byte, ours) in packet.iter_mut().zip(frame) {
            *byte = *ours;
        }
        let _ = advert::vrid_of(&packet);
        if let Ok(advert) = Advert::parse(&packet) {
            prop_assert_eq!(Advert::parse(&advert.emit(true)), Ok(advert));
        }
    }

    #[test]
    fn what_is_written_is_read(
        vrid in 1..=255u8, priority: u8, interval in 1..=4095u64, v4: [u8; 4],
        list in proptest::collection::vec(any::<[u8; 4]>(), 0..20), pseudo: bool,
    ) {
        prop_assume!(v4[0] != 0 && v4[0] < 224 && v4[0] != 127);
        let heard = Heard { priority, interval: cs(interval), source: v4.into() };
        let advert = Advert { vrid, heard, addresses: list.into_iter().map(IpAddr::from).collect() };
        prop_assert_eq!(Advert::parse(&advert.emit(pseudo)), Ok(advert));
    }
}

// ---- nodes on a link

const LINK: u16 = 3;

fn router(node: u8, vrid: u8, priority: u8, group: &str) -> RouterPlan {
    RouterPlan {
        name: format!("net/{vrid}"),
        role: u16::from(vrid),
        link: LINK + u16::from(vrid),
        vrid,
        group: group.to_owned(),
        priority,
        settings: Settings {
            priority,
            interval: cs(10),
            preempt: true,
            preempt_delay: Duration::ZERO,
            primary: IpAddr::from([192, 0, 2, node]),
        },
        pseudo_header: true,
        addresses: vec![address("192.0.2.254")],
        also: Arc::from([]),
        up: true,
    }
}

struct Node {
    engine: Engine,
    plan: Plan,
    /// Stopped without a word.
    dead: bool,
    active: Vec<u16>,
    /// What it does no more, and forwards.
    forwards: Vec<u16>,
    /// What it does nothing for, and hears another who does.
    hears: Vec<u16>,
    /// Frames that are no advertisements.
    said: Vec<Frame>,
}

/// Nodes whose links lose what `loses` says.
struct Network {
    nodes: Vec<Node>,
    now: Nanos,
}

impl Network {
    fn new(plans: Vec<Plan>) -> Network {
        let node = |plan: Plan| Node {
            engine: Engine::default(),
            plan,
            dead: false,
            active: Vec::new(),
            forwards: Vec::new(),
            hears: Vec::new(),
            said: Vec::new(),
        };
        let mut network = Network { nodes: plans.into_iter().map(node).collect(), now: START };
        for node in 0..network.nodes.len() {
            let plan = network.nodes[node].plan.clone();
            network.plan(node, plan);
        }
        network
    }

    fn plan(&mut self, node: usize, plan: Plan) {
        let mut out = Vec::new();
        self.nodes[node].engine.set_plan(plan, self.now, &mut out);
        self.deliver(node, out, &mut |_, _, _| false);
    }

    fn deliver(&mut self, from: usize, out: Vec<Output>, loses: &mut dyn FnMut(usize, usize, u16) -> bool) {
        let mut queue = vec![(from, out)];
        while let Some((from, out)) = queue.pop() {
            for output in out {
                match output {
                    Output::Role { role, part, .. } => {
                        let Node { active, forwards, hears, .. } = &mut self.nodes[from];
                        hears.retain(|hears| *hears != role);
                        active.retain(|active| *active != role);
                        forwards.retain(|forwards| *forwards != role);
                        match part {
                            Part::Active => active.push(role),
                            Part::Forwards => forwards.push(role),
                            Part::Backup => hears.push(role),
                            Part::Away => {}
                        }
                    }
                    Output::Changed { .. } => {}
                    Output::Send(frame) if frame.ethertype == ethertype::ARP => {
                        self.nodes[from].said.push(frame);
                    }
                    Output::Send(frame) => {
                        for to in 0..self.nodes.len() {
                            if to == from || self.nodes[to].dead || loses(from, to, frame.link) {
                                continue;
                            }
                            let mut out = Vec::new();
                            self.nodes[to].engine.receive(frame.link, &frame.packet, self.now, &mut out);
                            queue.push((to, out));
                        }
                    }
                }
            }
        }
    }

    /// In steps of a millisecond.
    fn run(&mut self, time: Duration, loses: &mut dyn FnMut(usize, usize, u16) -> bool) {
        for _ in 0..time.as_millis() {
            self.now = self.now.plus(Duration::from_millis(1));
            for node in 0..self.nodes.len() {
                if !self.nodes[node].dead {
                    let mut out = Vec::new();
                    self.nodes[node].engine.poll(self.now, &[], &mut out);
                    self.deliver(node, out, loses);
                }
            }
        }
    }

    fn calm(&mut self, millis: u64) {
        self.run(Duration::from_millis(millis), &mut |_, _, _| false);
    }

    fn active(&self) -> Vec<&[u16]> {
        self.nodes.iter().map(|node| if node.dead { &[] } else { &node.active[..] }).collect()
    }
}

fn alone(node: u8, priority: u8) -> Plan {
    Plan { routers: vec![router(node, 1, priority, "main")] }
}

#[test]
fn the_backup_takes_over_from_a_dead_active_and_gives_back() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.calm(500);
    assert_eq!(network.active(), [&[1][..], &[]]);
    assert_eq!(network.nodes[1].hears, [1]);
    network.nodes[0].dead = true;
    // The last advertisement is up to 100 ms old; Active_Down_Interval is 300 ms and 61 ms of skew.
    network.calm(255);
    assert_eq!(network.active(), [&[] as &[u16], &[]]);
    network.calm(110);
    assert_eq!((network.active(), &network.nodes[1].hears[..]), (vec![&[][..], &[1]], &[][..]));
    network.nodes[0].dead = false;
    network.nodes[0].engine = Engine::default();
    network.nodes[0].active.clear();
    network.plan(0, alone(1, 150));
    network.calm(600);
    assert_eq!(network.active(), [&[1][..], &[]]);
}

#[test]
fn who_leaves_says_so() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.calm(500);
    let mut out = Vec::new();
    network.nodes[0].engine.stop(network.now, &mut out);
    network.deliver(0, out, &mut |_, _, _| false);
    // Skew_Time is 61 ms.
    network.calm(62);
    assert_eq!(network.active(), [&[][..], &[1]]);
    assert_eq!(network.nodes[1].engine.status()[0].counters.leaving_received, 1);
}

#[test]
fn who_hands_over_forwards_until_another_is_heard_and_a_second_more() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.calm(500);
    let leave = |network: &mut Network, leaves: bool| {
        let mut out = Vec::new();
        network.nodes[0].engine.leave(leaves, network.now, &mut out);
        network.deliver(0, out, &mut |_, _, _| false);
    };
    assert_eq!(network.nodes[0].engine.leaving(), Leave::Stays);
    leave(&mut network, true);
    // Skew_Time is 61 ms: there is always one that is Active.
    for _ in 0..62 {
        assert!(!network.nodes[0].active.is_empty() || !network.nodes[1].active.is_empty());
        network.calm(1);
    }
    assert_eq!(network.active(), [&[][..], &[1]]);
    assert_eq!(
        (&network.nodes[0].forwards[..], network.nodes[0].engine.leaving()),
        (&[1][..], Leave::Lingers)
    );
    network.calm(990);
    assert_eq!(network.nodes[0].forwards, [1]);
    network.calm(10);
    assert_eq!((&network.nodes[0].forwards[..], network.nodes[0].engine.leaving()), (&[][..], Leave::Gone));
    // It is out of service for good, also when the other is gone.
    network.nodes[1].dead = true;
    network.calm(1000);
    assert_eq!(network.active(), [&[] as &[u16], &[]]);
    leave(&mut network, false);
    network.calm(400);
    assert_eq!(network.active(), [&[1][..], &[]]);
    // Nobody takes over: it goes on as the Active, and says again and again that it wants to leave.
    let before = network.nodes[0].engine.status()[0].counters.leaving_sent;
    leave(&mut network, true);
    network.calm(350);
    assert_eq!((network.active(), network.nodes[0].engine.leaving()), (vec![&[1][..], &[]], Leave::Asks));
    let counters = network.nodes[0].engine.status()[0].counters;
    assert_eq!((counters.leaving_sent - before, counters.became_active), (4, 2));
    leave(&mut network, false);
    assert_eq!((network.active(), network.nodes[0].engine.leaving()), (vec![&[1][..], &[]], Leave::Stays));
}

#[test]
fn who_is_preempted_forwards_for_a_second() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.nodes[0].dead = true;
    network.calm(500);
    network.nodes[0].dead = false;
    network.nodes[0].engine = Engine::default();
    network.plan(0, alone(1, 150));
    network.calm(400);
    assert_eq!((network.active(), &network.nodes[1].forwards[..]), (vec![&[1][..], &[]], &[1][..]));
    network.calm(1100);
    assert_eq!(network.nodes[1].forwards, [] as [u16; 0]);
    // A dead link ends it at once.
    let mut down = alone(1, 150);
    down.routers[0].up = false;
    network.plan(0, down);
    assert_eq!((network.active(), &network.nodes[0].forwards[..]), (vec![&[] as &[u16], &[]], &[] as &[u16]));
}

#[test]
fn who_holds_back_takes_over_from_the_silent_alone() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.nodes[0].dead = true;
    network.calm(500);
    network.nodes[0].dead = false;
    network.nodes[0].engine = Engine::default();
    network.nodes[0].engine.hold_back(true);
    network.plan(0, alone(1, 150));
    network.calm(2000);
    assert_eq!(network.active(), [&[][..], &[1]]);
    // Its plan anew does not change that.
    network.plan(0, alone(1, 150));
    network.calm(500);
    assert_eq!(network.active(), [&[][..], &[1]]);
    network.nodes[0].engine.hold_back(false);
    network.calm(400);
    assert_eq!(network.active(), [&[1][..], &[]]);
    network.nodes[0].dead = true;
    network.nodes[1].engine.hold_back(true);
    network.calm(500);
    assert_eq!(network.active(), [&[][..], &[1]]);
}

/// A process that was stopped believes to be the Active when it goes on.
#[test]
fn who_was_stopped_leaves_the_addresses_to_who_has_them() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.calm(500);
    network.nodes[0].dead = true;
    network.calm(5000);
    assert_eq!(network.active(), [&[][..], &[1]]);
    network.nodes[0].dead = false;
    network.nodes[0].engine.hold_back(true);
    // What has come in is taken before anything is said: here, the last advertisement of the other.
    let advert = Advert {
        vrid: 1,
        heard: Heard { priority: 100, interval: cs(10), source: address("192.0.2.2") },
        addresses: vec![address("192.0.2.254")],
    };
    let mut out = Vec::new();
    network.nodes[0].engine.receive(LINK + 1, &advert.emit(true), network.now, &mut out);
    network.deliver(0, out, &mut |_, _, _| false);
    network.calm(1000);
    assert_eq!(network.active(), [&[][..], &[1]]);
    assert_eq!(network.nodes[1].engine.status()[0].counters.became_active, 1);
    network.nodes[0].engine.hold_back(false);
    network.calm(400);
    assert_eq!(network.active(), [&[1][..], &[]]);
}

#[test]
fn a_lowered_priority_hands_over() {
    let mut network = Network::new(vec![alone(1, 150), alone(2, 100)]);
    network.calm(500);
    let mut lowered = alone(1, 150);
    lowered.routers[0].settings.priority = 90;
    network.plan(0, lowered);
    network.calm(500);
    assert_eq!(network.active(), [&[][..], &[1]]);
    network.plan(0, alone(1, 150));
    network.calm(500);
    assert_eq!(network.active(), [&[1][..], &[]]);
}

#[test]
fn what_becomes_active_is_announced_five_times() {
    let mut plan = alone(1, 150);
    let mac = virtual_mac(1, false);
    let link = plan.routers[0].link;
    let also = |host: u8| Also { link, mac, address: IpAddr::from([192, 0, 2, host]) };
    plan.routers[0].also = (0..100).map(also).collect();
    let mut network = Network::new(vec![plan]);
    network.calm(380);
    // At once the 64 that go at once; the others 10 ms later.
    let first = network.nodes[0].said.len();
    assert!([64, 101].contains(&first), "{first}");
    network.calm(5100);
    assert_eq!(network.nodes[0].said.len(), 5 * 101);
    network.calm(10_000);
    assert_eq!(network.nodes[0].said.len(), 5 * 101);
    assert!(network.nodes[0].said.iter().all(|frame| frame.src_mac == mac && frame.packet[8..14] == mac));
    network.nodes[0].engine.note_conflict(1, network.now);
    network.calm(6000);
    assert_eq!(network.nodes[0].said.len(), 10 * 101);
}

#[test]
fn routers_of_a_group_move_together() {
    let plan = |node, priority| Plan {
        routers: vec![router(node, 1, priority, "main"), router(node, 2, priority, "main")],
    };
    let mut network = Network::new(vec![plan(1, 150), plan(2, 100)]);
    network.calm(500);
    assert_eq!(network.active(), [&[1, 2][..], &[]]);
    // One network is cut between the nodes: nobody moves, and nobody is Active twice.
    network.run(Duration::from_secs(5), &mut |_, _, link| link == LINK + 1);
    assert_eq!(network.active(), [&[1, 2][..], &[]]);
    // One interface is down: all of them go.
    let mut down = plan(1, 150);
    down.routers[0].up = false;
    network.plan(0, down);
    network.calm(500);
    assert_eq!(network.active(), [&[][..], &[1, 2]]);
    network.plan(0, plan(1, 150));
    network.calm(800);
    let mut sorted = network.nodes[0].active.clone();
    sorted.sort_unstable();
    assert_eq!((&sorted[..], network.active()[1]), (&[1, 2][..], &[][..]));
}

#[test]
fn one_router_of_a_group_decides_between_equal_priorities() {
    // Node 1 has the higher address with the first VRID, node 2 with the second.
    let plan = |node| Plan { routers: vec![router(5 - node, 1, 100, "main"), router(node, 2, 100, "main")] };
    let mut network = Network::new(vec![plan(1), plan(2)]);
    // Both become Active while they hear nothing of each other.
    network.run(Duration::from_millis(500), &mut |_, _, _| true);
    assert_eq!(network.active().iter().map(|active| active.len()).collect::<Vec<_>>(), [2, 2]);
    network.calm(150);
    assert_eq!(network.active(), [&[1, 2][..], &[]]);
    let became_active = network.nodes[0].engine.status()[0].counters.became_active;
    assert_eq!(became_active, 1, "it never stood back");
}

#[test]
fn a_backup_with_unread_advertisements_waits() {
    let mut engine = Engine::default();
    let mut out = Vec::new();
    engine.set_plan(alone(1, 150), START, &mut out);
    engine.poll(millis(5000), &[LINK + 1], &mut out);
    assert_eq!(engine.status()[0].state, State::Backup);
    engine.poll(millis(5000), &[LINK], &mut out);
    assert_eq!(engine.status()[0].state, State::Active);
    // An Active speaks all the same.
    out.clear();
    engine.poll(millis(6000), &[LINK + 1], &mut out);
    assert!(
        out.iter().any(|output| matches!(output, Output::Send(frame) if frame.ethertype == ethertype::IPV4))
    );
}

#[test]
fn who_is_in_a_plan_no_more_leaves_before_it_is_followed() {
    let mut engine = Engine::default();
    let mut out = Vec::new();
    engine.set_plan(alone(1, 255), START, &mut out);
    out.clear();
    engine.leave_others(&Plan::default(), START, &mut out);
    let leaves = |out: &[Output]| {
        let advert = |output: &Output| match output {
            Output::Send(frame) => Advert::parse(&frame.packet).ok(),
            Output::Role { .. } | Output::Changed { .. } => None,
        };
        out.iter().filter_map(advert).map(|advert| advert.heard.priority).collect::<Vec<_>>()
    };
    assert_eq!(leaves(&out), [LEAVING]);
    out.clear();
    engine.set_plan(Plan::default(), START, &mut out);
    assert_eq!(out, [], "it has been said");
}

#[test]
fn errors_are_counted_where_they_belong() {
    let mut engine = Engine::default();
    let mut out = Vec::new();
    engine.set_plan(alone(1, 150), START, &mut out);
    let counted = |engine: &Engine, bad: BadAdvert| {
        let place = BadAdvert::ALL.iter().position(|known| *known == bad).expect("in the list");
        (engine.status()[0].counters.errors[place], engine.strays()[place])
    };
    let mut say = |vrid: u8, source: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
        let heard = Heard { priority: 1, interval: cs(10), source: address(source) };
        let mut packet = Advert { vrid, heard, addresses: vec![address("192.0.2.254")] }.emit(true);
        spoil(&mut packet);
        engine.receive(LINK + 1, &packet, START, &mut out);
    };
    say(1, "192.0.2.7", &|packet| packet[8] = 64);
    say(2, "192.0.2.7", &|packet| packet[8] = 64);
    say(2, "192.0.2.7", &|_| {});
    say(1, "192.0.2.1", &|_| {});
    say(1, "192.0.2.7", &|_| {});
    say(1, "192.0.2.7", &|packet| packet.truncate(3));
    assert_eq!(counted(&engine, BadAdvert::Ttl), (1, 1));
    assert_eq!(counted(&engine, BadAdvert::UnknownRouter), (0, 1));
    assert_eq!(counted(&engine, BadAdvert::OwnAddress), (1, 0));
    assert_eq!(counted(&engine, BadAdvert::Truncated), (0, 1));
    assert_eq!(engine.status()[0].counters.received, 1);
}

/// What a chaotic link does to one advertisement.
fn is_lost(chaos: u64, step: &mut u64, from: usize, to: usize) -> bool {
    *step += 1;
    let word = (chaos ^ (*step << 8) ^ (from as u64 * 31 + to as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word >> 61 < 5
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a link has lost, and whoever has come and gone: once it loses nothing more, one is Active, the one with
    /// the highest priority or, among equals, whoever has got there.
    #[test]
    fn exactly_one_is_active_after_the_link_heals(
        chaos: u64,
        priorities in proptest::collection::vec(1..=254u8, 2..=3),
        preempt: bool,
        deaths in proptest::collection::vec((0..3usize, any::<bool>()), 0..6),
    ) {
        let plan = |node: usize| {
            let mut plan = alone(node as u8 + 1, priorities[node]);
            plan.routers[0].settings.preempt = preempt;
            plan
        };
        let mut network = Network::new((0..priorities.len()).map(plan).collect());
        let mut step = 0;
        for (node, with_word) in &deaths {
            network.run(Duration::from_millis(700), &mut |from, to, _| is_lost(chaos, &mut step, from, to));
            let node = node % priorities.len();
            let mut out = Vec::new();
            if *with_word {
                network.nodes[node].engine.stop(network.now, &mut out);
                network.deliver(node, out, &mut |from, to, _| is_lost(chaos, &mut step, from, to));
            }
            network.nodes[node].engine = Engine::default();
            network.nodes[node].active.clear();
            let plan = network.nodes[node].plan.clone();
            network.plan(node, plan);
        }
        network.run(Duration::from_millis(1500), &mut |from, to, _| is_lost(chaos, &mut step, from, to));
        // Three intervals and a skew of less than one, for whoever is to take over, and one more to be heard.
        network.calm(600);
        let active: Vec<usize> =
            (0..priorities.len()).filter(|node| !network.nodes[*node].active.is_empty()).collect();
        prop_assert_eq!(active.len(), 1, "{:?}", active);
        let highest = *priorities.iter().max().expect("two at least");
        if preempt {
            prop_assert_eq!(priorities[active[0]], highest);
        }
        // And stays it.
        network.calm(1000);
        prop_assert!(!network.nodes[active[0]].active.is_empty());
        prop_assert_eq!(network.active().iter().filter(|active| !active.is_empty()).count(), 1);
    }
}
