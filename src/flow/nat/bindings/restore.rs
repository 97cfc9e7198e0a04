//! Restoring a mapping that the peer has made: the same external port, in a block of the same host.
//!
//! What the peer says counts: it has the sessions. A host that has another address here than there (this node had chosen
//! one while both were on their own) is filed anew at the peer's; what it has here drains, as after a change of the pool.

use super::{Bindings, Claimed, Inside, Kind, NONE, Outside, PAGE, Pairing, Slot, State, Unit, list_of};
use crate::flow::nat::Pool;
use crate::time::Nanos;

/// Why a mapping cannot be had that the peer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRestored {
    /// The port is none of the pool's, by this node's config.
    NotInPool,
    /// Somebody else has it here.
    Taken,
    /// The worker has no room: mappings, hosts, blocks or pages.
    TableFull,
}

impl Bindings {
    /// The mapping of an inside endpoint at an external address and port, for one more session. Ends with
    /// [`Bindings::release`]. Limits of hosts do not hold it up: the peer has kept them.
    pub fn restore(
        &mut self,
        outside: Outside<'_>,
        inside: Inside,
        (addr, port): (u32, u16),
        now: Nanos,
    ) -> Result<u32, NotRestored> {
        let pool = outside.pool;
        let unit = Unit::of(port);
        if unit.is_low() && !inside.protocol.has_low_ports() {
            return Err(NotRestored::NotInPool);
        }
        let bit = 1 << (port - unit.first_port());
        let kind = kind_of(pool, &inside, addr, unit).ok_or(NotRestored::NotInPool)?;
        if pool.mask(unit) & bit == 0 {
            return Err(NotRestored::NotInPool);
        }
        let list = list_of(inside.protocol, unit.is_low());
        let page = match self.find_page(pool.vrf(), addr, unit, list) {
            Some(page) => {
                let is_its = self.hosts[self.pages[page].host].is(pool.id(), inside.vrf, inside.host());
                if !is_its {
                    return Err(NotRestored::Taken);
                }
                let id = page * PAGE + bit.trailing_zeros();
                match Slot(self.slots[id as usize]).state() {
                    State::Free => {}
                    State::Live(_) | State::Held(_) if self.inside(id) == inside => {
                        self.acquire(id);
                        return Ok(id);
                    }
                    State::Live(_) | State::Held(_) => return Err(NotRestored::Taken),
                }
                page
            }
            None => self.page_at(outside, &inside, (addr, unit, list, kind), now)?,
        };
        if !self.mapping_index.has_room() {
            // An empty page goes with the next sweep.
            return Err(NotRestored::TableFull);
        }
        let hash = self.hash_inside(&inside);
        if let Some(other) = self.find_inside(hash, pool.id(), &inside) {
            // It stays reachable as long as sessions use it; new flows follow the peer's.
            self.mapping_index.remove(hash, other);
        }
        Ok(self.place(page, bit.trailing_zeros(), &inside, hash))
    }

    /// A page for a unit that has none of this list yet.
    fn page_at(
        &mut self,
        Outside { pool, claims, owner, .. }: Outside<'_>,
        inside: &Inside,
        (addr, unit, list, kind): (u32, Unit, u8, Kind),
        now: Nanos,
    ) -> Result<u32, NotRestored> {
        if !self.pages.has_room() {
            return Err(NotRestored::TableFull);
        }
        let mut host = self.find_host(pool.id(), inside.vrf, inside.host());
        if let Some(block) = host.and_then(|host| self.block_with(host, pool.vrf(), addr, unit)) {
            return Ok(self.add_page(block, unit, list, pool.mask(unit)));
        }
        if !self.blocks.has_room() || !self.hosts.has_room() {
            return Err(NotRestored::TableFull);
        }
        let slot = pool.index_of(addr).map(|index| pool.slot(index)).ok_or(NotRestored::NotInPool)?;
        // As blocks lie when they are claimed: aligned to their size.
        let whole = if kind == Kind::Deterministic { 1 } else { pool.units_of_block(unit.is_low()) };
        let aligned = Unit(unit.0 - unit.0 % whole);
        let (first, units) = if claims.claim(slot, aligned, whole, owner) {
            (aligned, whole)
        } else if whole > 1 && claims.claim(slot, unit, 1, owner) {
            // The peer's blocks are smaller, or lie otherwise.
            (unit, 1)
        } else {
            return Err(NotRestored::Taken);
        };
        if let Some(known) = host
            && pool.pairing() == Pairing::Paired
            && self.hosts[known].addr != addr
        {
            self.drain(known);
            host = None;
        }
        let host = host.unwrap_or_else(|| self.add_host(pool, inside, addr));
        let block = self.add_block(host, pool, Claimed { addr, slot, first, units, kind }, now);
        Ok(self.add_page(block, unit, list, pool.mask(unit)))
    }

    /// The host's block that a unit is in.
    fn block_with(&self, host: u32, vrf: u16, addr: u32, unit: Unit) -> Option<u32> {
        let mut at = self.hosts[host].blocks;
        while at != NONE {
            let block = &self.blocks[at];
            let units = block.first.0..block.first.0 + block.units;
            if (block.vrf, block.addr) == (vrf, addr) && units.contains(&unit.0) {
                return Some(at);
            }
            at = block.next;
        }
        None
    }
}

/// How a host has come to a unit; `None`: it cannot have, by this pool.
fn kind_of(pool: &Pool, inside: &Inside, addr: u32, unit: Unit) -> Option<Kind> {
    let whose = (inside.vrf, inside.host());
    [Kind::Deterministic, Kind::Dynamic].into_iter().find(|kind| pool.admits(whose, addr, unit, *kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::nat::{AddressRange, BlockClaims, Capacity, Limits, Mapping, Owner, PoolSpec, Protocol};
    use crate::neighbours::v4_key;
    use crate::packet::hash::Key;
    use proptest::prelude::*;

    const NOW: Nanos = Nanos::from_secs(1000);
    const CAPACITY: Capacity = Capacity { mappings: 4_000, hosts: 200, blocks: 400, pages: 800 };

    struct Side {
        claims: BlockClaims,
        pool: Pool,
        bindings: Bindings,
    }

    fn spec(block_size: u16) -> PoolSpec {
        let [first, last] = [1, 2].map(|last| std::net::Ipv4Addr::new(203, 0, 113, last));
        PoolSpec { block_size, ..PoolSpec::new(0, vec![AddressRange { first, last }]) }
    }

    fn side(block_size: u16) -> Side {
        let claims = BlockClaims::new(8, Key::default());
        let pool = Pool::compile(&spec(block_size), &claims).expect("a legal pool");
        let bindings = Bindings::new(CAPACITY, Limits::default(), Key::default()).expect("memory");
        Side { claims, pool, bindings }
    }

    impl Side {
        fn outside(&mut self) -> (Outside<'_>, &mut Bindings) {
            let Side { claims, pool, bindings } = self;
            (Outside { pool, claims, owner: Owner::new(0).expect("small"), is_alone: false }, bindings)
        }

        fn map(&mut self, inside: Inside, random: u64) -> Mapping {
            let (outside, bindings) = self.outside();
            bindings.map(outside, inside, NOW, random).expect("a mapping")
        }

        fn restore(&mut self, inside: Inside, addr: u32, port: u16) -> Result<u32, NotRestored> {
            let (outside, bindings) = self.outside();
            bindings.restore(outside, inside, (addr, port), NOW)
        }
    }

    fn inside(host: u8, port: u16, protocol: Protocol) -> Inside {
        Inside { vrf: 0, addr: v4_key(0x0a00_0100 | u32::from(host)), port, protocol }
    }

    proptest! {
        /// What one side maps the other restores, port for port, whatever its own blocks are; both give all back.
        #[test]
        fn a_mapping_is_the_same_on_the_other_side(
            made in prop::collection::vec((0_u8..20, 500_u16..1600, 0_usize..4, any::<u64>()), 1..120),
            sizes in prop::sample::select(vec![(64_u16, 64_u16), (256, 256), (64, 256), (256, 64)]),
        ) {
            let (mut one, mut other) = (side(sizes.0), side(sizes.1));
            let mut ids = Vec::new();
            for (host, port, protocol, random) in made {
                let inside = inside(host, port, Protocol::ALL[protocol]);
                let mapping = one.map(inside, random);
                let id = match other.restore(inside, mapping.addr, mapping.port) {
                    Ok(id) => id,
                    // A block of another size may lie over a neighbour's.
                    Err(NotRestored::Taken) if sizes.0 < sizes.1 => continue,
                    Err(refused) => return Err(TestCaseError::fail(format!("{refused:?}"))),
                };
                let view = other.bindings.mapping_at(id).expect("there");
                prop_assert_eq!((view.inside, view.addr, view.port), (inside, mapping.addr, mapping.port));
                let found = other.bindings.find_external(0, inside.protocol, mapping.addr, mapping.port);
                prop_assert_eq!(found.map(|view| view.inside), Some(inside));
                // The host's next flow finds it, as on the first side.
                let (outside, bindings) = other.outside();
                prop_assert_eq!(bindings.find(outside.pool, &inside).map(|found| found.id), Some(id));
                ids.push(id);
            }
            prop_assert_eq!(other.bindings.usage().live > 0, !ids.is_empty());
            ids.iter().for_each(|id| other.bindings.release(*id, NOW));
            let later = Nanos::from_secs(2000);
            let Side { claims, bindings, .. } = &mut other;
            bindings.sweep(claims, later, u32::MAX, u32::MAX);
            prop_assert_eq!((bindings.usage().pages, bindings.usage().blocks, bindings.filed()), (0, 0, 0));
            prop_assert_eq!(claims.addresses().map(|(.., ports)| ports).sum::<u32>(), 0);
        }
    }

    #[test]
    fn what_another_has_is_not_given() {
        let mut side = side(64);
        let mine = inside(1, 2000, Protocol::Udp);
        let mapping = side.map(mine, 77);
        for other in [inside(2, 2000, Protocol::Udp), inside(1, 2001, Protocol::Udp)] {
            assert_eq!(side.restore(other, mapping.addr, mapping.port), Err(NotRestored::Taken), "{other:?}");
        }
        // Another protocol has ports of its own in the host's block; another host has none there.
        assert!(side.restore(inside(1, 9, Protocol::Icmp), mapping.addr, mapping.port).is_ok());
        let tcp = inside(2, 9, Protocol::Tcp);
        assert_eq!(side.restore(tcp, mapping.addr, mapping.port), Err(NotRestored::Taken));
    }

    #[test]
    fn a_port_outside_of_the_pool_is_refused() {
        let mut side = side(64);
        let mine = inside(1, 2000, Protocol::Udp);
        for (addr, port) in [(0x0808_0808, 2000), (0xcb00_7101, 0)] {
            assert_eq!(side.restore(mine, addr, port), Err(NotRestored::NotInPool), "{port}");
        }
        let ping = inside(1, 7, Protocol::Icmp);
        assert_eq!(side.restore(ping, 0xcb00_7101, 700), Err(NotRestored::NotInPool));
    }

    #[test]
    fn the_peers_address_of_a_host_is_the_one_for_new_flows() {
        let mut side = side(64);
        let mapping = side.map(inside(1, 2000, Protocol::Udp), 77);
        let other = if mapping.addr == 0xcb00_7101 { 0xcb00_7102 } else { 0xcb00_7101 };
        side.restore(inside(1, 3000, Protocol::Udp), other, 5000).expect("free");
        assert_eq!(side.map(inside(1, 4000, Protocol::Udp), 78).addr, other);
        let old = side.bindings.find_external(0, Protocol::Udp, mapping.addr, mapping.port);
        assert!(old.is_some_and(|view| view.is_draining), "it is answered for as long as it is used");
    }
}
