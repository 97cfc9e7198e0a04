//! Deliver: what a backend is to see as it came, addressed to the service, goes to the backend's MAC address (direct
//! server return). A session says so by a [`Delivery`] in the place of its next hop.

use crate::neighbours::addr_key;
use crate::packet::DropReason;
use crate::pipeline::Context;
use crate::tables::balance::Delivery;
use crate::tables::balance::delivery::number_of;

/// The delivery with this number. Numbers outlive the services they were made for.
fn delivery<'a>(number: u16, cx: &Context<'a>) -> Option<&'a Delivery> {
    cx.tables.policy.services().delivery(number)
}

/// The slot of the neighbour that a next hop stands for. `None`: it is a backend that nobody has asked for yet.
#[inline(always)]
pub(super) fn neighbour(hop: u32, egress: u16, cx: &Context<'_>) -> Option<u32> {
    match number_of(hop) {
        None => Some(hop),
        Some(number) => cx.neighbours.find(egress, addr_key(delivery(number, cx)?.addr)),
    }
}

/// The slot of the neighbour that a backend is, new if need be.
#[cold]
pub(super) fn resolve(number: u16, egress: u16, cx: &Context<'_>) -> Result<u32, DropReason> {
    let to = delivery(number, cx).ok_or(DropReason::BackendNotOnLink)?;
    let cap = cx.tables.settings.neighbours_per_interface;
    let slot = cx.neighbours.find_or_insert(egress, addr_key(to.addr), cap);
    slot.map_err(|_| DropReason::NeighbourTableFull)
}
