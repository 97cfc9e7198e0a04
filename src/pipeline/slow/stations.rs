//! Stations of a bridge, announced by the node that begins to pass its frames on: what leads to them still leads to the node
//! before, until switches behind the members hear of each from here. A station that listens and says nothing would wait for
//! that for as long as they remember.
//!
//! In the name of each station that the node before has told of, and that has not been heard since, goes a reverse ARP
//! request (RFC 903) by all members that it is not behind: who gets it knows the sender's place, answers nothing, and learns
//! no address.

use std::time::Duration;

use super::SlowPath;
use crate::host::arp;
use crate::macs::Entry;
use crate::mem::FramePool;
use crate::pipeline::{Context, bridge};
use crate::tables::bridge::Bridge;
use crate::time::Nanos;

/// Stations announced at once, and the time between two batches: 6,400 a second.
const BATCH: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);
/// Places of the MAC table looked at per turn.
const PLACES: usize = 2048;
/// How often each station is announced, and the time between: as our own addresses are ([`super::announce`]).
const ROUNDS: u8 = 2;
const INTERVAL: Duration = Duration::from_secs(2);

/// One round over the stations of a bridge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Number of the bridge.
    bridge: u16,
    pub(super) due: Nanos,
    /// The next place of the MAC table.
    next: usize,
    /// This round and those after it.
    left: u8,
}

impl SlowPath {
    /// Has the stations of the bridge with this number announced.
    pub fn announce_stations(&mut self, bridge: u16, now: Nanos) {
        let rounds = &mut self.rounds.stations;
        rounds.retain(|round| round.bridge != bridge);
        rounds.push(Round { bridge, due: now, next: 0, left: ROUNDS });
    }

    pub(super) fn go_on_announcing(&mut self, cx: &Context<'_>, pool: &mut FramePool) {
        let mut rounds = std::mem::take(&mut self.rounds.stations);
        rounds.retain_mut(|round| round.due > cx.now || self.announce_some(round, cx, pool));
        self.rounds.stations = rounds;
    }

    /// False: that was the last round, or the bridge is another node's.
    fn announce_some(&mut self, round: &mut Round, cx: &Context<'_>, pool: &mut FramePool) -> bool {
        let Some(bridge) = cx.tables.bridges.get(round.bridge) else { return false };
        if !bridge.passes_on(&cx.neighbours.roles) {
            return false;
        }
        let macs = &cx.neighbours.macs;
        let mut left = BATCH;
        for _ in 0..PLACES {
            if round.next == macs.capacity() {
                *round = Round { due: cx.now.plus(INTERVAL), next: 0, left: round.left - 1, ..*round };
                return round.left > 0;
            }
            if left == 0 || !self.has_budget() {
                round.due = cx.now.plus(PAUSE);
                return true;
            }
            if let Some(station) =
                macs.adopted(round.next).filter(|station| station.segment == bridge.segment)
            {
                self.announce_station(&station, bridge, cx, pool);
                left -= 1;
            }
            round.next += 1;
        }
        true
    }

    fn announce_station(&mut self, station: &Entry, on: &Bridge, cx: &Context<'_>, pool: &mut FramePool) {
        let behind = on.member_at(station.location).map(|member| member.interface);
        let is_remote = station.location.as_remote().is_some();
        for member in on.members.iter().filter(|member| bridge::is_open(member, cx)) {
            // Who is behind a tunnel is known at the ends of the others.
            if Some(member.interface) != behind && !(is_remote && member.vni.is_some()) {
                let (link, bytes) = arp::reverse_request(member.interface, station.mac);
                self.emit_as(station.mac, link, &bytes, cx, pool);
            }
        }
    }
}
