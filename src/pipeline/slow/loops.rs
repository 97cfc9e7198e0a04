//! Loops: every member of a bridge sends a frame now and then that only this node can have made. Where it comes in again
//! there is a way around, and of the two members the later one of the config is shut for a while.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | `SGLP` |
//! | 4 | second of the node's clock |
//! | 8 | segment |
//! | 10 | interface slot of the member |
//! | 12 | keyed hash of these, of the node's name and of the member's MAC address |
//!
//! Who is on the segment can send such a frame back, within [`BELIEVED_S`], and so shut the member that he is behind.

use std::time::Duration;

use crate::host::{LinkTarget, OwnBytes};
use crate::packet::hash;
use crate::packet::view::{array, be16, be32};
use crate::pipeline::Context;
use crate::tables::bridge::{Bridge, Member};
use crate::telemetry::add;
use crate::time::Nanos;

/// IEEE 802 OUI extended: local experimental EtherType 1.
pub const ETHERTYPE: u16 = 0x88b5;
/// A group address, locally administered: bridges pass it on.
const DESTINATION: u64 = 0x0353_474c_5000;
const MAGIC: [u8; 4] = *b"SGLP";
/// What Ethernet wants as the least payload (IEEE 802.3 section 4.2.3.3).
const BYTES: usize = 46;
const CHECKED_BYTES: usize = 20;
/// A frame that has been under way for longer is no proof any more.
const BELIEVED_S: u64 = 10;

fn digest(second: u32, segment: u16, member: u16, cx: &Context<'_>) -> u64 {
    // The nodes of a pair have one key, perhaps one name, and are no loop.
    let own = cx.tables.interfaces.get(usize::from(member)).map_or(0, |interface| interface.mac);
    let name = cx.tables.settings.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let what =
        u128::from(name) << 64 | u128::from(second) << 32 | u128::from(segment) << 16 | u128::from(member);
    hash::address(cx.tables.settings.key, what ^ u128::from(own) << 80, u32::from_be_bytes(MAGIC))
}

/// What the member with this interface slot sends.
pub(super) fn frame(bridge: &Bridge, member: &Member, cx: &Context<'_>) -> (LinkTarget, OwnBytes) {
    let (second, slot) = (cx.now.as_secs() as u32, member.interface);
    let mut bytes = OwnBytes::new();
    bytes.extend(MAGIC);
    bytes.extend(second.to_be_bytes());
    bytes.extend(bridge.segment.to_be_bytes());
    bytes.extend(slot.to_be_bytes());
    bytes.extend(digest(second, bridge.segment, slot, cx).to_be_bytes());
    bytes.extend([0; BYTES - CHECKED_BYTES]);
    (LinkTarget { interface: slot, mac: DESTINATION, ethertype: ETHERTYPE }, bytes)
}

/// True if the payload is of a frame that this node has sent into the segment: then one of two members is shut.
pub(in crate::pipeline) fn came_back(payload: &[u8], bridge: &Bridge, slot: u16, cx: &Context<'_>) -> bool {
    let Some(bytes) = payload.first_chunk::<CHECKED_BYTES>() else { return false };
    let (second, segment, sender) = (be32(bytes, 4), be16(bytes, 8), be16(bytes, 10));
    if bytes[..4] != MAGIC
        || segment != bridge.segment
        || u64::from_be_bytes(*array(bytes, 12)) != digest(second, segment, sender, cx)
    {
        return false;
    }
    // Who passes nothing on closes no loop: what comes round has been sent before, and the node that does now passes it on.
    let is_new =
        bridge.passes_on(&cx.neighbours.roles) && cx.now.as_secs().wrapping_sub(second.into()) <= BELIEVED_S;
    let place = |slot: u16| bridge.members.iter().position(|member| member.interface == slot);
    if let Some(from) = place(sender).filter(|_| is_new) {
        let later = place(slot).map_or(from, |at| at.max(from));
        let member = bridge.members[later].interface;
        // Once for each time that it is shut: the whole table is looked at.
        if !cx.limits.segments.is_shut(member, cx.now) {
            cx.limits.segments.shut(member, cx.now.plus(bridge.loop_hold));
            // Stations are where they are, and not where their frames came round.
            cx.neighbours.macs.flush(bridge.segment);
            add(&cx.counters.loops, 1);
        }
    }
    true
}

/// Looks of one bridge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Number of the bridge.
    pub(super) bridge: u16,
    /// When it is due next.
    pub(super) due: Nanos,
}

/// When a bridge that has just come is looked at first: hosts have come up until then.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(1);
