//! Announcements of a router that has become Active: gratuitous ARP and unsolicited neighbour advertisements, several
//! times over, since each of them may be lost (RFC 9568 section 6.4.2; RFC 5227 section 3, RFC 4861 section 7.2.6).

use std::net::IpAddr;
use std::time::Duration;

use super::engine::{Also, Frame};
use crate::host::{arp, nd};
use crate::neighbours::mac_to_u64;
use crate::packet::view::ethertype;
use crate::time::Nanos;

/// When everything is announced, from the change on.
const ROUNDS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Announcements sent at once: few beside any device's queue.
const BATCH: usize = 64;
/// Time between two batches of a round.
const PAUSE: Duration = Duration::from_millis(10);

const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes, ff02::1 (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Announcements under way.
#[derive(Clone, Debug)]
pub struct Burst {
    began: Nanos,
    round: usize,
    /// The next address of the round.
    next: usize,
    due: Nanos,
}

impl Burst {
    /// Begins now.
    pub fn new(now: Nanos) -> Burst {
        Burst { began: now, round: 0, next: 0, due: now }
    }

    /// When it has something to say.
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// When it began.
    pub fn began(&self) -> Nanos {
        self.began
    }

    /// What is due: at most 64 frames. False: that was all of it.
    pub fn step(
        &mut self,
        addresses: impl Iterator<Item = Also>,
        now: Nanos,
        mut send: impl FnMut(Frame),
    ) -> bool {
        if self.due > now {
            return true;
        }
        let mut sent = 0;
        for also in addresses.skip(self.next).take(BATCH) {
            send(frame(also));
            sent += 1;
        }
        self.next += sent;
        if sent == BATCH {
            self.due = now.plus(PAUSE);
            return true;
        }
        (self.round, self.next) = (self.round + 1, 0);
        let Some(offset) = ROUNDS.get(self.round) else { return false };
        self.due = self.began.plus(*offset);
        true
    }
}

fn frame(Also { link, mac, address }: Also) -> Frame {
    let (dst_mac, ethertype, packet) = match address {
        IpAddr::V4(address) => (BROADCAST, ethertype::ARP, arp::announce_as(mac_to_u64(mac), address)),
        IpAddr::V6(address) => (ALL_NODES_MAC, ethertype::IPV6, nd::announce_as(mac_to_u64(mac), address)),
    };
    Frame { link, dst_mac, src_mac: mac, ethertype, packet: packet.to_vec() }
}
