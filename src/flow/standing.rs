//! What a session stands on: all of it that policy is asked about again after a change, as plain data of fixed size, so
//! that a worker can hand it to another thread without allocating. Workers judge their own sessions by it, and a preview
//! of a commit everybody's.

use std::net::IpAddr;

use super::flow_record::Name;
use super::{
    Address, FlowTable, Handle, Holdings, NextHop, Record, Tuple, flow_flags, is_untouched, record_flags,
};
use crate::neighbours::{addr_key, ip_of};
use crate::tables::news::Bearing;

/// A session as policy is asked about it again. Addresses are neutral ([`addr_key`]), so that one judge does for both tables.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The first packet, as it came in.
    pub tuple: Tuple<u128>,
    /// Source address it left with.
    pub new_src: u128,
    /// Destination address it left with.
    pub new_dst: u128,
    /// Destination port it left with.
    pub new_dst_port: u16,
    /// VRF slot in which replies come in.
    pub reply_vrf: u16,
    /// Interface slot its packets come in by.
    pub ingress: u16,
    /// Interface slot they leave by.
    pub egress: u16,
    /// Their next hop.
    pub next_hop: NextHop,
    /// Interface slot and next hop by which replies leave.
    pub back: (u16, NextHop),
    /// Generation it was decided by, its lower 32 bits.
    pub epoch: u32,
    /// What is known of both directions.
    pub record: Record,
    /// Something was sent from the mapping that it came in by to who sends now.
    pub knows_peer: bool,
    /// It goes on in spite of the rule that it is of.
    pub is_kept: bool,
    /// The peer has told of it, and no packet of it has come here since.
    pub is_untouched: bool,
}

/// Addresses of the packets of a session in use, as [`Bearing::addresses`].
#[inline]
pub fn addresses<A: Address>(table: &FlowTable<A>, session: u32) -> Option<[IpAddr; 4]> {
    let forward = table.flow(Handle::new(session, 0));
    let all = || [forward.tuple.src, forward.tuple.dst, forward.new_src, forward.new_dst].map(Address::ip);
    // The backend's own address stands outside the packet.
    (!forward.next_hop.is_delivery()).then(all)
}

/// What of a session in use changes may bear on.
pub fn bearing<A: Address>(table: &FlowTable<A>, session: u32) -> Bearing {
    let record = table.record(session);
    Bearing {
        from_zone: record.from_zone,
        to_zone: record.to_zone,
        backend: record.backend(),
        addresses: addresses(table, session),
    }
}

impl Standing {
    /// Of a session in use.
    pub fn of<A: Address>(table: &FlowTable<A>, nat: &Holdings, session: u32) -> Standing {
        let (forward, reply) = (table.flow(Handle::new(session, 0)), table.flow(Handle::new(session, 1)));
        let record = table.record(session);
        let tuple = Name::of(&forward.tuple).tuple;
        let knows_peer =
            record.bound.checked_sub(1).is_some_and(|mapping| nat.knows_peer(mapping, ip_of(tuple.src)));
        Standing {
            tuple,
            new_src: addr_key(forward.new_src.ip()),
            new_dst: addr_key(forward.new_dst.ip()),
            new_dst_port: forward.new_dst_port,
            reply_vrf: reply.tuple.vrf,
            ingress: forward.ingress,
            egress: forward.egress,
            next_hop: forward.next_hop,
            back: (reply.egress, reply.next_hop),
            epoch: forward.epoch,
            record,
            knows_peer,
            is_kept: forward.has(flow_flags::KEPT),
            is_untouched: is_untouched(table, session),
        }
    }

    /// What of it changes may bear on.
    pub fn bearing(&self) -> Bearing {
        let all = || [self.tuple.src, self.tuple.dst, self.new_src, self.new_dst].map(ip_of);
        Bearing {
            from_zone: self.record.from_zone,
            to_zone: self.record.to_zone,
            backend: self.record.backend(),
            addresses: (!self.next_hop.is_delivery()).then(all),
        }
    }

    /// True if policy does not allow it any more: its next packet ends it, or a timer that is short.
    pub fn is_condemned(&self) -> bool {
        self.record.flags & record_flags::CONDEMNED != 0
    }
}
