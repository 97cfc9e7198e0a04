//! SYNs to a NAT address that nobody has asked for (RFC 5382 REQ-4). They are lost like any packet that no session is
//! for; where `nat.answer_unsolicited_syn` says so, what an error would quote of them is kept here for six seconds. If
//! the inside opens that very connection meanwhile, both ends open it at once and nothing is said. Otherwise their
//! sender hears that the port is unreachable.
//!
//! A fixed table of each worker. A SYN has its place in one set of four by a keyed hash: where all four are taken, it is
//! given up and counted, and its sender hears nothing, as without the setting. One that is sent again while the first
//! is kept asks for nothing new.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::flow::{Address, Flows, Tuple};
use crate::packet::hash::Key;
use crate::packet::view::protocol;
use crate::packet::{Meta, Packet};
use crate::time::Nanos;

/// RFC 5382 REQ-4: not under 6 seconds after the SYN was received. The clock is read once for many packets, some of
/// which came after that: a little more.
const WAIT: Duration = Duration::from_millis(6010);
/// SYNs kept by a worker: over six seconds some 40 answers each second. ICMP errors have a limit of their own
/// (`icmp.rate`), of which scans of NAT addresses are not to take all.
const PLACES: usize = 256;
/// Places that one SYN may have.
const WAYS: usize = 4;
/// What is kept of a SYN: what RFC 1812 section 4.3.2.3 quotes, 576 bytes without the headers of the error.
const KEPT_BYTES: usize = 576 - 20 - 8;

/// A SYN that waits for its answer.
#[derive(Clone, Copy)]
struct Place {
    meta: Meta,
    tuple: Tuple<u32>,
    due: Nanos,
    /// Bytes that are kept, 0 = free.
    len: u16,
}

/// The SYNs of one worker that wait for their answers.
pub(super) struct Unsolicited {
    /// None as long as nobody asks for it.
    places: Vec<Place>,
    bytes: Vec<u8>,
    /// Not after the first that is due.
    next_due: Nanos,
    key: Key,
}

impl Default for Unsolicited {
    fn default() -> Unsolicited {
        Unsolicited { places: Vec::new(), bytes: Vec::new(), next_due: NEVER, key: Key::default() }
    }
}

impl Unsolicited {
    /// Takes its memory, if tables ask for answers: not when the first SYN comes.
    pub fn prepare(&mut self, is_wanted: bool, key: Key) {
        if is_wanted && self.places.is_empty() {
            self.places = vec![FREE; PLACES];
            self.bytes = vec![0; PLACES * KEPT_BYTES];
            self.key = key;
        }
    }

    /// Keeps what is to be quoted of a SYN. False: there is no room.
    pub fn hold(&mut self, packet: &Packet, now: Nanos) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let meta = &packet.meta;
        let l3 = &packet.frame.bytes()[usize::from(meta.l3)..];
        let tuple = Tuple {
            src: u32::src_of(l3),
            dst: u32::dst_of(l3),
            src_port: meta.src_port,
            dst_port: meta.dst_port,
            vrf: meta.vrf,
            protocol: protocol::TCP,
            zero: 0,
        };
        let set = u32::hash(self.key, &tuple) as usize % (PLACES / WAYS) * WAYS;
        let mut ways = set..set + WAYS;
        if ways.clone().any(|at| self.places[at].len != 0 && self.places[at].tuple == tuple) {
            return true;
        }
        let Some(at) = ways.find(|at| self.places[*at].len == 0) else { return false };
        let kept = &l3[..l3.len().min(usize::from(meta.ip_len)).min(KEPT_BYTES)];
        self.bytes[at * KEPT_BYTES..][..kept.len()].copy_from_slice(kept);
        let due = now.plus(WAIT);
        self.places[at] = Place { meta: *meta, tuple, due, len: kept.len() as u16 };
        self.next_due = self.next_due.min(due);
        true
    }

    /// When [`Unsolicited::answer_due`] has something to do.
    pub fn next_due(&self) -> Nanos {
        self.next_due
    }

    /// Gives up all that are due: `answer` gets those whose connection the inside has not opened.
    pub fn answer_due(&mut self, flows: &Flows, now: Nanos, mut answer: impl FnMut(&Meta, &[u8])) {
        if self.next_due > now {
            return;
        }
        self.next_due = NEVER;
        for (at, place) in self.places.iter_mut().enumerate().filter(|(_, place)| place.len != 0) {
            if place.due > now {
                self.next_due = self.next_due.min(place.due);
                continue;
            }
            let len = usize::from(std::mem::take(&mut place.len));
            if !is_opened(&place.tuple, flows) {
                answer(&place.meta, &self.bytes[at * KEPT_BYTES..][..len]);
            }
        }
    }
}

const NEVER: Nanos = Nanos(u64::MAX);
const FREE: Place = Place {
    meta: Meta::FRESH,
    tuple: Tuple { src: 0, dst: 0, src_port: 0, dst_port: 0, vrf: 0, protocol: 0, zero: 0 },
    due: NEVER,
    len: 0,
};

/// True if the SYN would now belong to a session: the outbound one came, here or at another worker. It is there for
/// minutes (RFC 5382 REQ-5), also if it came to nothing.
fn is_opened(tuple: &Tuple<u32>, flows: &Flows) -> bool {
    let crossing = Tuple {
        src: neutral(tuple.src),
        dst: neutral(tuple.dst),
        src_port: tuple.src_port,
        dst_port: tuple.dst_port,
        vrf: tuple.vrf,
        protocol: tuple.protocol,
        zero: 0,
    };
    let elsewhere = |steering: &crate::flow::steering::Steering| {
        steering.find(tuple).is_some() || steering.find(&crossing).is_some()
    };
    flows.v4.find(tuple).is_some()
        || flows.v6.find(&crossing).is_some()
        || flows.nat.steering.as_ref().is_some_and(elsewhere)
}

/// As the table of IPv6 has an address of IPv4: the outside of NAT64.
fn neutral(addr: u32) -> u128 {
    u128::neutral(Ipv4Addr::from(addr).into())
        .unwrap_or_else(|| unreachable!("IPv6's table has all addresses"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mem::{ChunkSize, FramePool, PacketMemory};
    use crate::packet::Family;

    const MS: u64 = 1_000_000;

    fn pool() -> (Arc<PacketMemory>, FramePool) {
        let (memory, mut pools) = PacketMemory::new(1, 64, ChunkSize::Bytes2048).expect("memory");
        (memory, pools.remove(0))
    }

    fn syn(pool: &mut FramePool, src: u32, src_port: u16) -> Packet {
        let mut bytes = [0u8; 40];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&40u16.to_be_bytes());
        bytes[12..16].copy_from_slice(&src.to_be_bytes());
        let frame = pool.take_filled(&bytes).expect("a frame");
        let mut meta = Meta::FRESH;
        (meta.ip_len, meta.src_port, meta.dst_port, meta.protocol) = (40, src_port, 80, protocol::TCP);
        meta.family = Family::Ipv4;
        Packet { frame, meta }
    }

    fn flows() -> Flows {
        let claims = Arc::new(crate::flow::nat::BlockClaims::new(1, Key::default()));
        Flows::new(0, crate::flow::Capacity::NONE, claims, None, Key::default()).expect("memory")
    }

    fn prepared() -> Unsolicited {
        let mut held = Unsolicited::default();
        held.prepare(true, Key::default());
        held
    }

    #[test]
    fn each_is_answered_once_and_not_before_its_time() {
        let ((_memory, mut pool), flows) = (pool(), flows());
        let mut held = prepared();
        assert_eq!(held.next_due(), NEVER);
        for (at_ms, port) in [(0, 1), (1000, 2), (3000, 1)] {
            let packet = syn(&mut pool, 0xc000_0201, port);
            assert!(held.hold(&packet, Nanos(at_ms * MS)));
            pool.put(packet.frame);
        }
        let mut said = Vec::new();
        for ms in (0..20_000).step_by(10) {
            held.answer_due(&flows, Nanos(ms * MS), |meta, l3| said.push((ms, meta.src_port, l3.len())));
        }
        assert_eq!(said, [(6010, 1, 40), (7010, 2, 40)], "the second SYN from port 1 is the first again");
        assert_eq!(held.next_due(), NEVER);
    }

    #[test]
    fn a_flood_fills_a_fixed_table_and_its_time_empties_it() {
        let ((_memory, mut pool), flows) = (pool(), flows());
        let mut held = prepared();
        let mut kept = 0;
        for n in 0..10_000 {
            let packet = syn(&mut pool, n, 7);
            kept += usize::from(held.hold(&packet, Nanos(u64::from(n))));
            pool.put(packet.frame);
        }
        assert_eq!(kept, PLACES, "all places are in use, and no more");
        let mut said = 0;
        held.answer_due(&flows, Nanos::from_secs(7), |_, _| said += 1);
        assert_eq!((said, held.next_due()), (PLACES, NEVER));
        let packet = syn(&mut pool, 1, 7);
        assert!(held.hold(&packet, Nanos::from_secs(8)), "there is room again");
        pool.put(packet.frame);
    }
}
