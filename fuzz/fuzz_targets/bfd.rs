//! Control packets of any bytes and any times into the BFD sessions of a node.
//!
//! Input: one byte chooses multiplier and interval; then records:
//!
//! | byte | meaning |
//! |---|---|
//! | 0 | bits 0-1: 0 bytes as they are, 1 and 2 as a whole IPv4 and IPv6 packet of the peer's ([`mend`]), 3 another plan; bits 2-3: interface; bits 4-7: time that passes before it ([`STEPS_MS`]) |
//! | 1 | length of the bytes that follow (what is there, if the input ends) |
//! | 2.. | the IP packet from its first byte, or the fields of the control packet, or the plan |
//!
//! Whatever comes, after each record:
//! - every packet sent can be read, is ours, and asks and answers not both;
//! - no session sends more than a packet a millisecond beside its periodic ones;
//! - the states told are those of the sessions.
//!
//! At the end, when nobody has spoken for the longest time that this peer may ask for, no session is up.
#![no_main]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use softgate::ha::bfd::packet::Datagram;
use softgate::ha::bfd::{Control, Diagnostic, Engine, Micros, Output, Plan, SessionPlan, Settings, State};
use softgate::time::Nanos;

/// Times that pass, in milliseconds.
const STEPS_MS: [u64; 16] = [0, 0, 0, 1, 2, 5, 9, 17, 38, 50, 100, 150, 750, 1000, 3000, 10_000];

/// 255 packets, each at most 255 times 4 ms apart.
const LONGEST_SILENCE: Duration = Duration::from_secs(255 * 2);

fn address(is_ipv6: bool, host: u8) -> IpAddr {
    match is_ipv6 {
        true => [0xfe80, 0, 0, 0, 0, 0, 0, u16::from(host)].into(),
        false => [192, 0, 2, host].into(),
    }
}

/// Sessions with one peer by both families, on two links; bits say which are there, and whose links.
fn plan(choice: u8, settings: Settings) -> Plan {
    let session = |at: u8| SessionPlan {
        link: u16::from(at / 2),
        local: address(at % 2 == 1, 1),
        peer: address(at % 2 == 1, 2),
        settings,
        up: choice & 0x10 << (at / 2) == 0,
    };
    Plan { sessions: (0..4).filter(|at| choice & 1 << at == 0).map(session).collect() }
}

/// The packet that `fields` choose: state and flags, multiplier, discriminators, intervals.
fn mend(fields: &[u8], is_ipv6: bool, link: u16, engine: &Engine) -> Vec<u8> {
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    let sessions = engine.status();
    let ours =
        sessions.iter().find(|session| session.plan.link == link && session.plan.peer.is_ipv6() == is_ipv6);
    let flags = field(0);
    let control = Control {
        diagnostic: Diagnostic::NONE,
        state: State::ALL[usize::from(flags >> 6)],
        poll: flags & 0x20 != 0,
        is_final: flags & 0x10 != 0,
        is_authenticated: false,
        demand: flags & 8 != 0,
        detect_mult: field(1).max(1),
        my_discriminator: NonZeroU32::new(u32::from(field(2)) + 1).expect("1 at least"),
        your_discriminator: match flags & 3 {
            0 | 1 => ours.map_or(0, |ours| ours.discriminator.get()),
            2 => 0,
            _ => field(3).into(),
        },
        desired_min_tx: Micros(u32::from(field(4)) << 12),
        required_min_rx: Micros(u32::from(field(5)) << 12),
    };
    let [src_addr, dst_addr] = [2, 1].map(|host| address(is_ipv6, host));
    Datagram { src_addr, dst_addr, src_port: 50_000, control }.emit()
}

#[derive(Default)]
struct Told {
    states: BTreeMap<(u16, IpAddr), State>,
    /// Packets of each session in the millisecond that began then.
    sent: BTreeMap<(u16, IpAddr), (Nanos, u32)>,
}

impl Told {
    fn take(&mut self, out: &mut Vec<Output>, now: Nanos) {
        for output in out.drain(..) {
            match output {
                Output::Changed { link, peer, state, .. } => _ = self.states.insert((link, peer), state),
                Output::Send { link, peer, packet } => {
                    let read = Datagram::parse(&packet).expect("what is sent can be read");
                    assert_eq!((read.dst_addr, read.src_addr), (peer, address(peer.is_ipv6(), 1)));
                    assert!(read.src_port >= 49_152 && !(read.control.poll && read.control.is_final));
                    assert!(!read.control.demand && !read.control.is_authenticated);
                    // A last word, and the first of another session with the same peer, come beside them.
                    let is_last = read.control.state == State::AdminDown;
                    let is_first = read.control.your_discriminator == 0;
                    let (began, sent) = self.sent.entry((link, peer)).or_insert((now, 0));
                    if now.since(*began) >= Duration::from_millis(1) {
                        (*began, *sent) = (now, 0);
                    }
                    *sent += u32::from(!is_last && !is_first);
                    assert!(*sent <= 2, "{sent} packets at once");
                }
            }
        }
    }

    fn compare(&self, engine: &Engine) {
        for session in engine.status() {
            let told = self.states.get(&(session.plan.link, session.plan.peer)).copied();
            // A session that is new after one that has ended is Down, which nobody is told.
            let is_new = session.counters.came_up == 0 && session.state == State::Down;
            assert!(is_new || told == Some(session.state), "{told:?}, {:?}", session.state);
            assert!(session.state == State::Down || session.plan.up, "without a link");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, mut rest)) = input.split_first() else { return };
    let micros = [10_000, 16_700, 50_000, 300_000][usize::from(choice & 3)];
    let mut settings = Settings { interval: Micros(micros), multiplier: (choice >> 2).max(1) };
    let (mut engine, mut told, mut out, mut now) =
        (Engine::new(u64::from(*choice)), Told::default(), Vec::new(), Nanos::from_secs(1));
    engine.set_plan(plan(0, settings), now, &mut out);
    while let Some((head, behind)) = rest.split_first() {
        let Some((len, behind)) = behind.split_first() else { break };
        let (bytes, behind) = behind.split_at(usize::from(*len).min(behind.len()));
        rest = behind;
        now = now.plus(Duration::from_millis(STEPS_MS[usize::from(head >> 4)]));
        let link = u16::from(head >> 2 & 3);
        match head & 3 {
            0 => engine.receive(link, bytes, now, &mut out),
            3 => {
                if let Some(interval) = bytes.get(1) {
                    settings.interval = Micros(10_000 + 1000 * u32::from(*interval));
                }
                engine.set_plan(plan(bytes.first().copied().unwrap_or(0), settings), now, &mut out);
            }
            kind => {
                let packet = mend(bytes, kind == 2, link, &engine);
                engine.receive(link, &packet, now, &mut out);
            }
        }
        told.take(&mut out, now);
        engine.poll(now, &[], &mut out);
        told.take(&mut out, now);
        told.compare(&engine);
    }
    now = now.plus(LONGEST_SILENCE);
    engine.poll(now, &[], &mut out);
    assert!(engine.status().iter().all(|session| session.state == State::Down), "nobody has spoken");
});
