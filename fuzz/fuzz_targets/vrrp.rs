//! Advertisements of any bytes and any times into the virtual routers of a node.
//!
//! Input: one byte chooses priorities, preemption and whether the routers are a group; then records:
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bits 0-1: interface; bits 2-3: 0 bytes as they are, 1 and 2 as an IPv4 and an IPv6 advertisement that is whole ([`mend`]), 3 an interface goes or comes; bits 4-7: time that passes before it ([`STEPS_MS`]) |
//! | 1 | length of the bytes that follow (what is there, if the input ends) |
//! | 2.. | the IP packet from its first byte, or the fields of the advertisement |
//!
//! Whatever comes, after each record:
//! - routers of a group are all Active or none is;
//! - the roles told are the states;
//! - every advertisement sent can be read, and is ours.
//!
//! At the end, when nobody has spoken for the longest time there is, all whose interfaces are there are Active.
#![no_main]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use softgate::ha::vrrp::machine::Heard;
use softgate::ha::vrrp::{Advert, Centiseconds, Engine, Leave, Output, Plan, RouterPlan, Settings, State};
use softgate::packet::view::ethertype;
use softgate::roles::Part;
use softgate::time::Nanos;

/// Times that pass, in milliseconds.
const STEPS_MS: [u64; 16] = [0, 0, 0, 1, 2, 5, 9, 10, 11, 50, 100, 300, 1000, 3600, 10_000, 200_000];

/// Three intervals of 4095 cs and a skew of less than one; of members of a group one after the other.
const LONGEST_SILENCE: Duration = Duration::from_secs(4 * 42);

fn plan(choice: u8) -> Plan {
    let router = |link: u16, is_ipv6: bool| {
        let primary: IpAddr =
            if is_ipv6 { "fe80::2".parse() } else { "192.0.2.2".parse() }.expect("an address");
        let priority = [1, 100, 128, 254][usize::from(choice & 3)];
        RouterPlan {
            name: format!("{link}/10"),
            role: link * 2 + u16::from(is_ipv6),
            link,
            vrid: 10,
            group: if choice & 4 == 0 { "all".into() } else { format!("{link} {is_ipv6}") },
            priority,
            settings: Settings {
                priority,
                interval: Centiseconds::new(if choice & 8 == 0 { 10 } else { 100 }).expect("1 to 4095"),
                preempt: choice & 16 == 0,
                preempt_delay: Duration::from_secs(if choice & 32 == 0 { 0 } else { 3 }),
                primary,
            },
            pseudo_header: choice & 64 == 0,
            addresses: vec![if is_ipv6 { "fe80::1" } else { "192.0.2.1" }.parse().expect("an address")],
            also: Arc::from([]),
            up: true,
        }
    };
    Plan { routers: vec![router(0, false), router(0, true), router(1, false)] }
}

/// The advertisement that `fields` choose: VRID, priority, interval, last byte of the sender.
fn mend(fields: &[u8], is_ipv6: bool) -> Vec<u8> {
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    let interval = u64::from(field(2)) << 4 | 1;
    let source = match is_ipv6 {
        true => IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, field(3)]),
        false => IpAddr::from([192, 0, 2, field(3)]),
    };
    let heard = Heard { priority: field(1), interval: Centiseconds::new(interval).expect("12 bits"), source };
    let vrid = if field(0) & 1 == 0 { 10 } else { field(0) };
    Advert { vrid, heard, addresses: vec![source] }.emit(field(0) & 2 == 0)
}

#[derive(Default)]
struct Told {
    active: BTreeMap<u16, bool>,
}

impl Told {
    fn take(&mut self, out: &mut Vec<Output>) {
        for output in out.drain(..) {
            match output {
                Output::Role { role, part, .. } => {
                    self.active.insert(role, part == Part::Active);
                }
                Output::Send(frame) if frame.ethertype == ethertype::ARP => {}
                Output::Send(frame) => {
                    // The other IPv6 packets are neighbour advertisements.
                    let is_vrrp = frame.packet[0] >> 4 == 4 || frame.packet[6] == 112;
                    if is_vrrp {
                        let advert = Advert::parse(&frame.packet).expect("what is sent can be read");
                        assert_eq!(advert.vrid, 10);
                        assert_eq!(frame.src_mac[..4], [0, 0, 0x5e, 0]);
                    }
                }
                Output::Changed { .. } => {}
            }
        }
    }

    fn compare(&self, engine: &Engine) {
        let status = engine.status();
        // Who is about to leave serves until another does, each of a group for itself.
        let serves = |state: State| matches!(state, State::Active | State::Leaving);
        for router in &status {
            let told = self.active.get(&router.plan.role).copied().unwrap_or(false);
            assert_eq!(told, serves(router.state), "{}", router.plan.name);
            let together = status.iter().filter(|other| other.plan.group == router.plan.group);
            for other in together.filter(|_| engine.leaving() == Leave::Stays) {
                assert_eq!(serves(other.state), serves(router.state), "a group moves together");
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut rest)) = input.split_first() else { return };
    let mut plan = plan(*choice);
    let (mut engine, mut told, mut out, mut now) =
        (Engine::default(), Told::default(), Vec::new(), Nanos::from_secs(1));
    engine.set_plan(plan.clone(), now, &mut out);
    let (mut leaves, mut holds_back) = (false, false);
    while let Some((head, behind)) = rest.split_first() {
        let Some((len, behind)) = behind.split_first() else { break };
        let (bytes, behind) = behind.split_at(usize::from(*len).min(behind.len()));
        rest = behind;
        now = now.plus(Duration::from_millis(STEPS_MS[usize::from(head >> 4)]));
        let link = u16::from(head & 3);
        match head >> 2 & 3 {
            0 if bytes.is_empty() => {
                leaves = !leaves;
                engine.leave(leaves, now, &mut out);
            }
            1 if bytes.is_empty() => {
                holds_back = !holds_back;
                engine.hold_back(holds_back);
            }
            0 => engine.receive(link, bytes, now, &mut out),
            3 => {
                let routers = plan.routers.iter_mut().filter(|router| router.link == link);
                routers.for_each(|router| router.up = !router.up);
                engine.set_plan(plan.clone(), now, &mut out);
            }
            kind => engine.receive(link, &mend(bytes, kind == 2), now, &mut out),
        }
        engine.poll(now, &[], &mut out);
        told.take(&mut out);
        told.compare(&engine);
    }
    engine.leave(false, now, &mut out);
    engine.hold_back(false);
    told.take(&mut out);
    // As long as something is due, in its time.
    let end = now.plus(LONGEST_SILENCE);
    while let Some(due) = engine.next_deadline().filter(|due| *due <= end) {
        let all_active = engine.status().iter().all(|router| router.state == State::Active);
        if all_active {
            break;
        }
        engine.poll(due, &[], &mut out);
        told.take(&mut out);
        told.compare(&engine);
    }
    for router in engine.status() {
        let group = plan.routers.iter().filter(|other| other.group == router.plan.group);
        let is_up = group.clone().all(|other| other.up);
        assert_eq!(router.state == State::Active, is_up, "{}", router.plan.name);
    }
});
