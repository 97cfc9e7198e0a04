//! Announcements of our own addresses when the way to a port has changed: gratuitous ARP (RFC 5227 section 3) and
//! unsolicited neighbour advertisements (RFC 4861 section 7.2.6).
//!
//! A port that came up, or that another device of its LAG carries now, is one that switches do not know to lead to
//! us any more: what they have for us would go where nobody listens, until we send something by ourselves.

use std::net::IpAddr;
use std::time::Duration;

use crate::host::{LinkTarget, OwnBytes, arp, nd};
use crate::tables::{Interface, Lag, PortTable, Tables};
use crate::time::Nanos;

/// Announcements sent at once, of all ports together: few beside any device's ring.
const BATCH: usize = 64;
/// Time between two batches. A LAG with two addresses on each of 4,000 VLANs is announced within 1.3 s.
const PAUSE: Duration = Duration::from_millis(10);
/// How often each address is announced. RFC 5227 section 1.1: ANNOUNCE_NUM; RFC 4861 section 10 allows 3.
const ROUNDS: u8 = 2;
/// Time between two rounds. RFC 5227 section 1.1: ANNOUNCE_INTERVAL.
const INTERVAL: Duration = Duration::from_secs(2);

/// One round over the addresses of a port.
struct Round {
    port: u16,
    due: Nanos,
    /// Rounds after this one.
    left: u8,
    /// The next to be announced: interface slot, and position among its addresses.
    next: (usize, usize),
}

/// Knows which device carries each port, and announces what changes.
#[derive(Default)]
pub struct Announcer {
    /// Tables that were looked at.
    generation: u64,
    /// By port slot: the device in use, one bit; 0 for none.
    carrying: Vec<u8>,
    rounds: Vec<Round>,
}

impl Announcer {
    /// Takes the ports as they are for known: they were up before there was anybody to tell.
    pub fn new(tables: &Tables) -> Announcer {
        let carrying = tables.ports.iter().map(device_of).collect();
        Announcer { generation: tables.generation, carrying, rounds: Vec::new() }
    }

    /// True if there are tables that [`Announcer::look`] has not seen.
    #[inline]
    pub fn is_behind(&self, tables: &Tables) -> bool {
        self.generation != tables.generation
    }

    /// Finds the ports whose device has changed. One that is not `ready` to send is looked at again.
    pub fn look(&mut self, tables: &Tables, now: Nanos, ready: impl Fn(u16, u8) -> bool) {
        let mut all = true;
        for (port, table) in tables.ports.iter().enumerate() {
            let (port, device) = (port as u16, device_of(table));
            let known = &mut self.carrying[usize::from(port)];
            if *known == device {
                continue;
            }
            if device != 0 && !ready(port, device.trailing_zeros() as u8) {
                all = false;
                continue;
            }
            *known = device;
            self.rounds.retain(|round| round.port != port);
            if device != 0 {
                self.rounds.push(Round { port, due: now, left: ROUNDS - 1, next: (0, 0) });
            }
        }
        if all {
            self.generation = tables.generation;
        }
    }

    /// When something is to be announced next.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.rounds.iter().map(|round| round.due).min()
    }

    /// What is due now, one after the other; bounded per call and in time.
    pub fn announce(&mut self, tables: &Tables, now: Nanos, mut emit: impl FnMut(LinkTarget, &OwnBytes)) {
        let mut budget = BATCH;
        for round in &mut self.rounds {
            if round.due > now {
                continue;
            }
            while budget > 0 && round.next.0 < tables.interfaces.len() {
                let (slot, index) = round.next;
                let interface = &tables.interfaces[slot];
                let ours = interface.up && is_behind(interface, round.port, tables);
                match own_address(interface, index).filter(|_| ours) {
                    Some(addr) => {
                        budget -= 1;
                        round.next = (slot, index + 1);
                        let slot = slot as u16;
                        let (link, bytes) = match addr {
                            IpAddr::V4(addr) => arp::announce(slot, interface, addr),
                            IpAddr::V6(addr) => nd::announce(slot, interface, addr),
                        };
                        emit(link, &bytes);
                    }
                    None => round.next = (slot + 1, 0),
                }
            }
            if round.next.0 < tables.interfaces.len() {
                round.due = now.plus(PAUSE);
            } else {
                *round = Round {
                    due: now.plus(INTERVAL),
                    left: round.left.wrapping_sub(1),
                    next: (0, 0),
                    ..*round
                };
            }
        }
        self.rounds.retain(|round| round.left != u8::MAX);
    }
}

/// The device that carries what leaves by a port, one bit. The switch takes the devices of a static LAG for one.
fn device_of(port: &PortTable) -> u8 {
    match port.lag {
        Lag::ActiveBackup => port.members_up & port.members_up.wrapping_neg(),
        Lag::None | Lag::Static => u8::from(port.members_up != 0),
    }
}

/// True if frames of the interface leave by the port, or by a member of its bridge that is there.
fn is_behind(interface: &Interface, port: u16, tables: &Tables) -> bool {
    let on_port = |interface: &Interface| interface.port == port;
    let members = tables.bridges.get(interface.bridge).filter(|_| interface.is_segment());
    on_port(interface)
        || members.is_some_and(|bridge| {
            bridge.members.iter().any(|member| on_port(tables.interface(member.interface)))
        })
}

/// Our addresses on an interface, the link-local one last.
fn own_address(interface: &Interface, index: usize) -> Option<IpAddr> {
    let info = &interface.info;
    let v4 = info.v4.iter().map(|(addr, _)| IpAddr::V4(*addr));
    let v6 = info.v6.iter().map(|(addr, _)| addr).chain(&info.link_local).map(|addr| IpAddr::V6(*addr));
    v4.chain(v6).nth(index)
}
