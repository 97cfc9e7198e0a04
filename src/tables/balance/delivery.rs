//! Delivery: how packets get to a backend that is to see them as they came, addressed to the service.
//!
//! Backends answer to the client past the gateway (direct server return). A delivery never changes and keeps its
//! number as long as the process lives: a flow carries the number in the place of its next hop, and what the services
//! say by now matters to it only when it is decided anew.

use std::net::IpAddr;
use std::sync::Arc;

use ahash::AHashMap;

/// Most deliveries: their numbers, and the slots of neighbours, share the 16 bits that a flow has for its next hop.
pub const MAX_DELIVERIES: usize = 32_000;

/// The number that stands for no neighbour; deliveries are numbered downwards from below it.
const NO_NEIGHBOUR: u32 = u32::MAX;

/// The way to one backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Delivery {
    /// The backend's own address.
    pub addr: IpAddr,
    /// VRF slot of that.
    pub vrf: u16,
    /// Through a tunnel; `None`: to its MAC address.
    pub tunnel: Option<TunnelSpec>,
}

/// A tunnel to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelSpec {
    /// Outer source address; `None`: the egress interface's.
    pub source: Option<IpAddr>,
    /// Over UDP; `None`: IP in IP.
    pub gue: Option<Gue>,
    /// Outer TTL or hop limit.
    pub ttl: u8,
    /// Outer DSCP; `None`: the inner one.
    pub dscp: Option<u8>,
}

/// Generic UDP Encapsulation (draft-ietf-intarea-gue).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gue {
    /// UDP destination port.
    pub port: u16,
    /// Variant 0, with a header of its own; else variant 1, without.
    pub has_header: bool,
    /// The UDP header carries a checksum.
    pub udp_checksum: bool,
}

impl TunnelSpec {
    /// RFC 1340's default TTL, as Linux gives its own packets.
    pub const DEFAULT_TTL: u8 = 64;
}

/// All deliveries there ever were.
#[derive(Clone, Debug, Default)]
pub struct Deliveries {
    list: Arc<Vec<Delivery>>,
    numbers: AHashMap<Delivery, u16>,
}

impl Deliveries {
    /// The number of a delivery, new if it has none. `None`: there are too many.
    pub fn number(&mut self, delivery: Delivery) -> Option<u16> {
        if let Some(number) = self.numbers.get(&delivery) {
            return Some(*number);
        }
        let number =
            u16::try_from(self.list.len()).ok().filter(|number| usize::from(*number) < MAX_DELIVERIES)?;
        Arc::make_mut(&mut self.list).push(delivery.clone());
        self.numbers.insert(delivery, number);
        Some(number)
    }

    /// All of them, by number.
    pub fn list(&self) -> Arc<Vec<Delivery>> {
        Arc::clone(&self.list)
    }
}

/// What stands in the place of a neighbour's slot for the delivery.
pub const fn hop_of(number: u16) -> u32 {
    NO_NEIGHBOUR - 1 - number as u32
}

/// The delivery that stands in the place of a neighbour's slot.
#[inline(always)]
pub const fn number_of(hop: u32) -> Option<u16> {
    match (NO_NEIGHBOUR - 1).wrapping_sub(hop) {
        number if number < MAX_DELIVERIES as u32 => Some(number as u16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::NextHop;
    use crate::neighbours::MAX_SLOTS;

    #[test]
    fn a_next_hop_is_a_neighbour_a_delivery_or_neither() {
        for number in [0, 1, MAX_DELIVERIES as u16 - 1] {
            let hop = hop_of(number);
            assert_eq!(number_of(hop), Some(number));
            let kept = NextHop::of(Some(hop));
            assert!(kept.is_delivery() && kept.slot() == hop, "{number}");
        }
        for slot in [0, 1, MAX_SLOTS as u32 - 1, NO_NEIGHBOUR] {
            assert_eq!(number_of(slot), None, "{slot}");
        }
        assert!(!NextHop::of(None).is_delivery() && !NextHop::of(Some(MAX_SLOTS as u32 - 1)).is_delivery());
    }

    #[test]
    fn a_delivery_keeps_its_number() {
        let mut all = Deliveries::default();
        let to = |last: u8| Delivery { addr: IpAddr::from([192, 0, 2, last]), vrf: 0, tunnel: None };
        assert_eq!([1, 2, 1, 2].map(|last| all.number(to(last))), [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(all.list()[1], to(2));
    }
}
