//! The bindings of one worker: inside hosts, their port blocks and the mappings in them.
//!
//! ```text
//! inside endpoint --index--> mapping (a word) = page * 64 + position
//! external port   --index--> page: 64 ports of one protocol; the port's word is in it
//! host --> blocks it has claimed, and per protocol a ring of pages, those with a free port first
//! ```
//!
//! A page is made when a protocol first needs ports of a unit, so that a block serves all protocols and takes
//! memory only for those in use. Nothing is searched on the path that grows with the table: full pages stand
//! behind those with room, and at most [`REAP_PAGES`] of them are looked at for ports past their hold-down.
//!
//! A pool that changes takes no mapping away. What a host has at an address or a port the pool no longer has
//! *drains*: it stays reachable from outside while sessions use it, but the host's next flow makes a new host
//! entry at an address of the pool; the old entry is out of the index and goes with its last port.

mod restore;

use std::time::Duration;

use zerocopy::FromZeros;

use super::blocks::{BlockClaims, Owner, Unit, pick};
use super::events::{Event, EventKind, EventRing};
use super::index::Index;
use super::page::{LISTS, NONE, PAGE, Page, Slab, Slot, State, is_over, ms_up};
use super::pool::{Giver, Kind, Pairing, Pool};
use super::{Inside, Protocol, host_of};
use crate::mem::{HugeSlice, MemoryError, prefetch};
use crate::packet::hash::{self, Key};
use crate::packet::positions;
use crate::ratelimit::Rate;
use crate::time::Nanos;

pub use restore::NotRestored;

/// How long a freed port is given to nobody else. RFC 6888 REQ-8: at least 120 seconds, the maximum segment
/// lifetime, so that no old packet reaches a new owner.
pub const DEFAULT_HOLD_DOWN: Duration = Duration::from_secs(120);

/// Full pages of a host looked at for a port past its hold-down before a block is claimed.
const REAP_PAGES: u32 = 16;

/// External addresses tried for a new host; beyond them the sweep and the next packet help. 256 addresses of
/// 16 words each are a few microseconds, in the worst case of a pool that is full.
const ADDRESSES_TRIED: u32 = 256;

/// Events that wait for the log at most.
const EVENTS: usize = 1024;

/// What a worker has room for. Refused beyond; never grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Mappings, live or in hold-down.
    pub mappings: usize,
    /// Inside hosts.
    pub hosts: usize,
    /// Blocks of all hosts.
    pub blocks: usize,
    /// Pages of 64 ports of one protocol: at least one for each block and protocol in use.
    pub pages: usize,
}

impl Capacity {
    /// Room for `mappings`, if a host has 32 and a page is a quarter full on average.
    pub fn for_mappings(mappings: usize) -> Capacity {
        let small = mappings.min(64);
        Capacity {
            mappings,
            hosts: mappings / 32 + small,
            blocks: mappings / 32 + small,
            pages: mappings / 16 + small,
        }
    }

    /// Bytes that [`Bindings`] of it take when all are used.
    pub fn bytes(self) -> usize {
        self.filled_bytes() + 2 * self.pages * PAGE as usize * size_of::<u64>()
    }

    /// Bytes that they take at once: the rest is zeros, which cost nothing until something is written there.
    pub fn filled_bytes(self) -> usize {
        Slab::<Host>::bytes_for(self.hosts)
            + Slab::<Block>::bytes_for(self.blocks)
            + Slab::<Page>::bytes_for(self.pages)
            + [self.hosts, self.pages, self.mappings].map(Index::bytes_for).iter().sum::<usize>()
    }
}

/// Limits that may change while mappings live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Hold-down of freed ports, by [`Protocol`]. RFC 6888 REQ-8a: none is needed for TCP if sessions are
    /// tracked; it stays the default, because an attacker can end a session that the peer holds open.
    pub hold_down: [Duration; 4],
    /// Ports in hold-down at most; more are free at once (REQ-8: must be configurable).
    pub max_held: u32,
    /// New mappings of one host (RFC 6888 REQ-4c).
    pub new_mappings: Option<Rate>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { hold_down: [DEFAULT_HOLD_DOWN; 4], max_held: u32::MAX, new_mappings: None }
    }
}

/// Where a mapping is made.
#[derive(Clone, Copy, Debug)]
pub struct Outside<'a> {
    /// Pool of the rule that matched.
    pub pool: &'a Pool,
    /// The node's claims.
    pub claims: &'a BlockClaims,
    /// In whose name blocks are claimed.
    pub owner: Owner,
    /// The other node of a pair is not heard: what it would give of a pool that both share may be given here.
    pub is_alone: bool,
}

/// A mapping: what an inside endpoint looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its number, as long as a session uses it.
    pub id: u32,
    /// External address.
    pub addr: u32,
    /// External port or query identifier.
    pub port: u16,
}

/// A mapping with all that is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingView {
    /// Its number.
    pub id: u32,
    /// Slot of its pool.
    pub pool: u16,
    /// Inside endpoint.
    pub inside: Inside,
    /// VRF of the outside.
    pub outside_vrf: u16,
    /// External address.
    pub addr: u32,
    /// External port.
    pub port: u16,
    /// Sessions that use it; 0: in hold-down.
    pub sessions: u32,
    /// Given to no new flow: its place is not the pool's any more.
    pub is_draining: bool,
}

/// Why there is no mapping. The packet is dropped, and no live mapping makes room (RFC 6888 REQ-11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// The host has as many blocks as it may, or all that are its own by a deterministic NAT, and all its ports are in
    /// use (RFC 6888 REQ-4).
    HostQuota,
    /// No address of the pool has a free block.
    PoolExhausted,
    /// The address that the host is paired with has no free block (RFC 7857 section 4).
    AddressExhausted,
    /// The pool is deterministic, and the host is not one of its inside addresses.
    NotSubscriber,
    /// The worker has no room: mappings, hosts, blocks or pages.
    TableFull,
    /// The host asks for new ones too fast (RFC 6888 REQ-4c).
    HostRate,
}

impl Refused {
    /// All, in the order of their numbers.
    pub const ALL: [Refused; 6] = [
        Refused::HostQuota,
        Refused::PoolExhausted,
        Refused::AddressExhausted,
        Refused::NotSubscriber,
        Refused::TableFull,
        Refused::HostRate,
    ];

    /// As commands print it.
    pub const fn name(self) -> &'static str {
        match self {
            Refused::HostQuota => "host-quota",
            Refused::PoolExhausted => "pool-exhausted",
            Refused::AddressExhausted => "address-exhausted",
            Refused::NotSubscriber => "not-subscriber",
            Refused::TableFull => "table-full",
            Refused::HostRate => "host-rate",
        }
    }
}

/// How much is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Hosts, draining ones included.
    pub hosts: usize,
    /// Blocks.
    pub blocks: usize,
    /// Pages.
    pub pages: usize,
    /// Mappings that sessions use.
    pub live: usize,
    /// Mappings in hold-down.
    pub held: usize,
}

#[derive(Clone, Debug, FromZeros)]
struct Host {
    /// Upper and lower half: an u128 would cost 8 bytes of padding.
    key: [u64; 2],
    vrf: u16,
    pool: u16,
    /// Address of the first block; of all of them if paired.
    addr: u32,
    /// Up to when its tokens for new mappings are spent.
    spent_to: u64,
    /// First of a ring of pages, by list: those with a free port, then the full ones.
    pages: [u32; LISTS],
    /// Pages per list; with `units` it says whether a unit without such a page exists.
    page_counts: [u16; LISTS],
    /// First of a chain of blocks, the newest.
    blocks: u32,
    block_count: u16,
    /// Units of all blocks, high and low.
    units: [u16; 2],
    /// Blocks that are the host's by arithmetic, a unit each.
    own_units: u16,
    is_draining: bool,
    is_deterministic: bool,
}

impl Host {
    fn unused() -> Host {
        Host {
            key: [0; 2],
            vrf: 0,
            pool: 0,
            addr: 0,
            spent_to: 0,
            pages: [NONE; LISTS],
            page_counts: [0; LISTS],
            blocks: NONE,
            block_count: 0,
            units: [0; 2],
            own_units: 0,
            is_draining: false,
            is_deterministic: false,
        }
    }

    fn key(&self) -> u128 {
        u128::from(self.key[0]) << 64 | u128::from(self.key[1])
    }

    #[inline]
    fn is(&self, pool: u16, vrf: u16, key: u128) -> bool {
        self.pool == pool && self.vrf == vrf && self.key() == key
    }
}

#[derive(Clone, Debug, FromZeros)]
struct Block {
    host: u32,
    next: u32,
    prev: u32,
    addr: u32,
    vrf: u16,
    slot: u16,
    first: Unit,
    units: u16,
    pages: u16,
    is_deterministic: bool,
}

impl Block {
    const UNUSED: Block = Block {
        host: NONE,
        next: NONE,
        prev: NONE,
        addr: 0,
        vrf: 0,
        slot: 0,
        first: Unit(0),
        units: 0,
        pages: 0,
        is_deterministic: false,
    };
}

/// A block just claimed.
struct Claimed {
    addr: u32,
    slot: u16,
    first: Unit,
    units: u16,
    kind: Kind,
}

/// The bindings of a worker.
#[derive(Debug)]
pub struct Bindings {
    key: Key,
    limits: Limits,
    hosts: Slab<Host>,
    blocks: Slab<Block>,
    pages: Slab<Page>,
    slots: HugeSlice<u64>,
    /// Lower halves of inside IPv6 addresses. Untouched pages of zeros cost nothing: IPv4 does not pay.
    interface_ids: HugeSlice<u64>,
    host_index: Index,
    page_index: Index,
    mapping_index: Index,
    live: usize,
    held: usize,
    sweep_at: u32,
    events: EventRing,
}

impl Bindings {
    /// Takes all its memory now but for the mappings' own. `key` seeds the hashes.
    pub fn new(capacity: Capacity, limits: Limits, key: Key) -> Result<Bindings, MemoryError> {
        let ids = capacity.pages * PAGE as usize;
        Ok(Bindings {
            key,
            limits,
            hosts: Slab::new(capacity.hosts, Host::unused())?,
            blocks: Slab::new(capacity.blocks, Block::UNUSED)?,
            pages: Slab::new(capacity.pages, Page::unused())?,
            slots: HugeSlice::zeroed(ids, false)?,
            interface_ids: HugeSlice::zeroed(ids, false)?,
            host_index: Index::new(capacity.hosts, capacity.hosts)?,
            page_index: Index::new(capacity.pages, capacity.pages)?,
            mapping_index: Index::new(capacity.mappings, ids)?,
            live: 0,
            held: 0,
            sweep_at: 0,
            events: EventRing::new(EVENTS),
        })
    }

    /// Other limits, from now on; also for ports already in hold-down.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The mapping of an inside endpoint, for one more session: the one it has (RFC 4787 REQ-1), or a new one.
    /// Ends with [`Bindings::release`].
    pub fn map(
        &mut self,
        outside: Outside<'_>,
        inside: Inside,
        now: Nanos,
        random: u64,
    ) -> Result<Mapping, Refused> {
        let pool = outside.pool;
        let hash = self.hash_inside(&inside);
        let known = self.find_inside(hash, pool.id(), &inside);
        if let Some(id) = known {
            if self.is_current(pool, id) {
                self.acquire(id);
                return Ok(self.mapping(id));
            }
            self.drain(self.pages[id / PAGE].host);
        } else if !self.mapping_index.has_room() {
            return Err(Refused::TableFull);
        }
        let host = self.take_token(pool, &inside, now)?;
        let page = self.page_with_room(outside, &inside, now, random)?;
        if host.is_none() {
            // Now the host is known, and this was its first.
            let _ = self.take_token(pool, &inside, now);
        }
        if let Some(id) = known {
            self.mapping_index.remove(hash, id);
        }
        // RFC 6056 section 3.3.1, algorithm 1, within the block; never one in use (RFC 4787 REQ-3).
        let position = pick(self.pages[page].free(), (random >> 32) as u32);
        let id = self.place(page, position, &inside, hash);
        Ok(self.mapping(id))
    }

    /// Gives the free port at `position` of a page to an endpoint, for one session.
    #[inline]
    fn place(&mut self, page: u32, position: u32, inside: &Inside, hash: u64) -> u32 {
        let id = page * PAGE + position;
        self.slots[id as usize] = Slot::new(inside.port, State::Live(1)).0;
        if !is_v4(inside.addr) {
            self.interface_ids[id as usize] = inside.addr as u64;
        }
        self.mapping_index.insert(hash, id);
        self.live += 1;
        self.pages[page].used |= 1 << position;
        if self.pages[page].free() == 0 {
            self.unlink_page(page);
            self.link_page(page, false);
        }
        id
    }

    /// Takes what a new mapping costs its host, where that is limited: that host, if it has mappings already.
    fn take_token(&mut self, pool: &Pool, inside: &Inside, now: Nanos) -> Result<Option<u32>, Refused> {
        let Some(rate) = self.limits.new_mappings else { return Ok(Some(NONE)) };
        let Some(host) = self.find_host(pool.id(), inside.vrf, inside.host()) else { return Ok(None) };
        let entry = &mut self.hosts[host];
        entry.spent_to = rate.spend(entry.spent_to, now).ok_or(Refused::HostRate)?;
        Ok(Some(host))
    }

    /// The mapping that [`Bindings::map`] would find, if there is one; changes nothing.
    pub fn find(&self, pool: &Pool, inside: &Inside) -> Option<Mapping> {
        let id = self.find_inside(self.hash_inside(inside), pool.id(), inside)?;
        self.is_current(pool, id).then(|| self.mapping(id))
    }

    /// One more session uses the mapping.
    pub fn acquire(&mut self, id: u32) {
        let slot = Slot(self.slots[id as usize]);
        let sessions = match slot.state() {
            State::Live(sessions) => sessions + 1,
            State::Held(_) => {
                // RFC 6888 REQ-8 is about others: its own endpoint may have it back.
                self.pages[id / PAGE].held &= !(1 << (id % PAGE));
                self.held -= 1;
                self.live += 1;
                1
            }
            State::Free => unreachable!("a free mapping has no id"),
        };
        self.slots[id as usize] = Slot::new(slot.inside_port(), State::Live(sessions)).0;
    }

    /// A session has ended. With the last one the port goes into hold-down.
    pub fn release(&mut self, id: u32, now: Nanos) {
        let slot = Slot(self.slots[id as usize]);
        let State::Live(sessions) = slot.state() else { unreachable!("released more often than acquired") };
        if sessions > 1 {
            self.slots[id as usize] = Slot::new(slot.inside_port(), State::Live(sessions - 1)).0;
            return;
        }
        self.live -= 1;
        let page = &mut self.pages[id / PAGE];
        // RFC 6888 REQ-8b: the ports of a deterministic block never were another host's.
        let hold = !page.is_deterministic
            && !self.limits.hold_down[usize::from(page.list / 2)].is_zero()
            && self.held < self.limits.max_held as usize;
        if !hold {
            self.free_port(id);
            return;
        }
        let since_ms = ms_up(now);
        page.oldest_ms = if page.held == 0 { since_ms } else { page.oldest_ms.min(since_ms) };
        page.held |= 1 << (id % PAGE);
        self.held += 1;
        self.slots[id as usize] = Slot::new(slot.inside_port(), State::Held(since_ms)).0;
    }

    /// The live mapping at an external port. Draining ones are answered for, those in hold-down not.
    #[inline]
    pub fn find_external(&self, vrf: u16, protocol: Protocol, addr: u32, port: u16) -> Option<MappingView> {
        let unit = Unit::of(port);
        let list = list_of(protocol, unit.is_low() && protocol.has_low_ports());
        let page = self.find_page(vrf, addr, unit, list)?;
        let id = page * PAGE + u32::from(port - unit.first_port());
        self.view(id).filter(|view| view.sessions > 0)
    }

    /// The external address a host is paired with, for what has no ports (ESP, GRE).
    pub fn address_of_host(&self, pool: &Pool, vrf: u16, addr: u128) -> Option<u32> {
        let host = self.find_host(pool.id(), vrf, host_of(addr))?;
        pool.contains(self.hosts[host].addr).then(|| self.hosts[host].addr)
    }

    /// Frees ports past their hold-down and gives empty blocks back, in the next `budget` pages or in fewer, if they free
    /// as many as `ports`: in how many.
    pub fn sweep(&mut self, claims: &BlockClaims, now: Nanos, budget: u32, ports: u32) -> u32 {
        let mut freed = 0;
        for done in 0..budget.min(self.pages.len()) {
            if freed >= ports {
                return done;
            }
            let page = self.sweep_at;
            self.sweep_at = if page + 1 == self.pages.len() { 0 } else { page + 1 };
            if self.pages[page].host == NONE {
                continue;
            }
            freed += self.reap(page, now);
            if self.pages[page].used == 0 {
                self.remove_page(page, claims, now);
            }
        }
        budget
    }

    // ---- what a burst of first packets, or of sessions that end, will need

    /// Fetches where a mapping stands.
    pub fn prefetch(&self, id: u32) {
        prefetch::prefetch(&self.slots, id as usize);
        self.pages.prefetch(id / PAGE);
    }

    /// Fetches where an endpoint would be found, and where its host. The host's hash.
    pub fn prefetch_inside(&self, inside: &Inside) -> u64 {
        let hash = self.hash_host(inside.vrf, inside.host());
        self.mapping_index.prefetch(self.hash_inside(inside));
        self.host_index.prefetch(hash);
        hash
    }

    /// Fetches what is probably the host with this hash. Its number.
    pub fn prefetch_host(&self, hash: u64) -> Option<u32> {
        let host = self.host_index.candidate(hash)?;
        self.hosts.prefetch(host);
        Some(host)
    }

    /// Fetches the page that probably has a port for an endpoint of the host.
    pub fn prefetch_page(&self, host: u32, inside: &Inside) {
        let list = list_of(inside.protocol, inside.protocol.has_low_ports() && inside.port < 1024);
        self.pages.prefetch(self.hosts[host].pages[usize::from(list)]);
    }

    /// The oldest event that waits for the log.
    pub fn pop_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// True if events wait for the log.
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Events that found no room since this was asked last.
    pub fn take_events_lost(&mut self) -> u64 {
        self.events.take_lost()
    }

    /// How much is in use.
    pub fn usage(&self) -> Use {
        Use {
            hosts: self.hosts.used(),
            blocks: self.blocks.used(),
            pages: self.pages.used(),
            live: self.live,
            held: self.held,
        }
    }

    /// True if there is something for [`Bindings::sweep`].
    #[inline]
    pub fn has_pages(&self) -> bool {
        self.pages.used() > 0
    }

    /// Host entries; [`Bindings::pool_of_host`] reads one.
    pub fn host_entries(&self) -> u32 {
        self.hosts.len()
    }

    /// The pool of a host entry in use.
    pub fn pool_of_host(&self, host: u32) -> Option<u16> {
        let entry = &self.hosts[host];
        (entry.block_count > 0).then_some(entry.pool)
    }

    /// Pool, live and held mappings of a page in use.
    pub fn page_use(&self, page: u32) -> Option<(u16, u32, u32)> {
        let entry = &self.pages[page];
        let held = entry.held.count_ones();
        (entry.host != NONE).then(|| (self.hosts[entry.host].pool, entry.used.count_ones() - held, held))
    }

    /// Number of pages: [`Bindings::mappings_in`] reads them in portions.
    pub fn pages(&self) -> u32 {
        self.pages.len()
    }

    /// The mappings of some pages, live and in hold-down, for people.
    pub fn mappings_in(&self, pages: std::ops::Range<u32>) -> impl Iterator<Item = MappingView> {
        let used = pages.filter(|page| self.pages[*page].host != NONE);
        used.flat_map(move |page| (0..PAGE).filter_map(move |position| self.view(page * PAGE + position)))
    }

    /// Number of mapping numbers.
    pub fn mapping_numbers(&self) -> u32 {
        self.pages.len() * PAGE
    }

    /// A mapping by number, live or in hold-down.
    pub fn mapping_at(&self, id: u32) -> Option<MappingView> {
        if self.pages[id / PAGE].host == NONE { None } else { self.view(id) }
    }

    /// Bytes when all is in use; IPv4 only.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.hosts.bytes()
            + self.blocks.bytes()
            + self.pages.bytes()
            + size_of_val(&*self.slots)
            + [&self.host_index, &self.page_index, &self.mapping_index]
                .map(Index::bytes)
                .iter()
                .sum::<usize>()
    }

    /// Bytes of memory, interface identifiers too.
    #[cfg(test)]
    pub(in crate::flow) fn memory_bytes(&self) -> usize {
        self.bytes() + size_of_val(&*self.interface_ids)
    }

    /// Entries of all indexes.
    #[cfg(test)]
    pub(super) fn filed(&self) -> usize {
        self.host_index.len() + self.page_index.len() + self.mapping_index.len()
    }

    pub(super) fn mapping(&self, id: u32) -> Mapping {
        let page = &self.pages[id / PAGE];
        Mapping { id, addr: page.addr, port: page.unit.first_port() + (id % PAGE) as u16 }
    }

    fn view(&self, id: u32) -> Option<MappingView> {
        let sessions = match Slot(self.slots[id as usize]).state() {
            State::Free => return None,
            State::Live(sessions) => sessions,
            State::Held(_) => 0,
        };
        let page = &self.pages[id / PAGE];
        let host = &self.hosts[page.host];
        let Mapping { id, addr, port } = self.mapping(id);
        Some(MappingView {
            id,
            pool: host.pool,
            inside: self.inside(id),
            outside_vrf: page.vrf,
            addr,
            port,
            sessions,
            is_draining: host.is_draining,
        })
    }

    fn inside(&self, id: u32) -> Inside {
        let page = &self.pages[id / PAGE];
        let host = &self.hosts[page.host];
        let key = host.key();
        Inside {
            vrf: host.vrf,
            addr: if is_v4(key) { key } else { key | u128::from(self.interface_ids[id as usize]) },
            port: Slot(self.slots[id as usize]).inside_port(),
            protocol: page.protocol(),
        }
    }

    #[inline]
    fn hash_inside(&self, inside: &Inside) -> u64 {
        let side = u128::from(inside.vrf);
        hash::tuple_v6(self.key, inside.addr, side, inside.protocol as u8, (inside.port, 0))
    }

    // Of all pools the same: which it is, a packet says only once it is decided.
    fn hash_host(&self, vrf: u16, host: u128) -> u64 {
        hash::address(self.key, host, vrf.into())
    }

    #[inline]
    fn hash_page(&self, vrf: u16, addr: u32, unit: Unit, list: u8) -> u64 {
        let place = u128::from(vrf) << 32 | u128::from(addr);
        hash::address(self.key, place, u32::from(list) << 16 | u32::from(unit.0))
    }

    #[inline]
    fn find_inside(&self, hash: u64, pool: u16, inside: &Inside) -> Option<u32> {
        let key = inside.host();
        self.mapping_index.find(hash, |id| {
            let page = &self.pages[id / PAGE];
            Slot(self.slots[id as usize]).inside_port() == inside.port
                && page.protocol() == inside.protocol
                && self.hosts[page.host].is(pool, inside.vrf, key)
                && (is_v4(key) || self.interface_ids[id as usize] == inside.addr as u64)
        })
    }

    fn find_host(&self, pool: u16, vrf: u16, key: u128) -> Option<u32> {
        let hash = self.hash_host(vrf, key);
        self.host_index.find(hash, |host| self.hosts[host].is(pool, vrf, key))
    }

    #[inline]
    fn find_page(&self, vrf: u16, addr: u32, unit: Unit, list: u8) -> Option<u32> {
        self.page_index.find(self.hash_page(vrf, addr, unit, list), |page| {
            let page = &self.pages[page];
            (page.vrf, page.addr, page.unit, page.list) == (vrf, addr, unit, list)
        })
    }

    /// True if new flows may use the mapping.
    #[inline]
    fn is_current(&self, pool: &Pool, id: u32) -> bool {
        let page = &self.pages[id / PAGE];
        !self.hosts[page.host].is_draining && self.is_in_pool(pool, page)
    }

    #[inline]
    fn is_in_pool(&self, pool: &Pool, page: &Page) -> bool {
        let host = &self.hosts[page.host];
        let kind = Kind::of(page.is_deterministic);
        page.vrf == pool.vrf() && pool.admits((host.vrf, host.key()), page.addr, page.unit, kind)
    }

    /// The host's next flow makes a new entry for it.
    fn drain(&mut self, host: u32) {
        let entry = &mut self.hosts[host];
        if !std::mem::replace(&mut entry.is_draining, true) {
            let (vrf, key) = (entry.vrf, entry.key());
            self.host_index.remove(self.hash_host(vrf, key), host);
        }
    }

    /// A page of the endpoint's host with a free port. Of a pool that two nodes share in this node's half; when that has
    /// none left and nobody else gives ports of the other half, there.
    fn page_with_room(
        &mut self,
        outside: Outside<'_>,
        inside: &Inside,
        now: Nanos,
        random: u64,
    ) -> Result<u32, Refused> {
        match self.page_of_giver(outside, inside, Giver::Here, now, random) {
            Err(Refused::PoolExhausted | Refused::AddressExhausted)
                if outside.is_alone && outside.pool.is_shared() =>
            {
                self.page_of_giver(outside, inside, Giver::Peer, now, random)
            }
            result => result,
        }
    }

    /// The same, of what one node gives: a page the host has, a new one in a block it has, a new block.
    fn page_of_giver(
        &mut self,
        outside: Outside<'_>,
        inside: &Inside,
        giver: Giver,
        now: Nanos,
        random: u64,
    ) -> Result<u32, Refused> {
        let pool = outside.pool;
        let low = pool.is_low(inside);
        let list = list_of(inside.protocol, low);
        let mut host = self.find_host(pool.id(), inside.vrf, inside.host());
        if let Some(known) = host {
            let moved = self.has_moved(known, pool);
            match self.page_of_host(known, pool, (list, giver), now) {
                Some(page) if !moved && self.is_in_pool(pool, &self.pages[page]) => return Ok(page),
                None if !moved && self.keeps_its_blocks(known, pool) => {}
                _ => {
                    self.drain(known);
                    host = None;
                }
            }
        }
        if !self.pages.has_room() {
            return Err(Refused::TableFull);
        }
        if let Some(known) = host
            && let Some((block, unit)) = self.unit_without_page(known, pool, (list, giver), random)
        {
            return Ok(self.add_page(block, unit, list, pool.mask(unit)));
        }
        if !self.blocks.has_room() || (host.is_none() && !self.hosts.has_room()) {
            return Err(Refused::TableFull);
        }
        let claimed = self.claim(outside, host, inside, (low, giver), random)?;
        let host = host.unwrap_or_else(|| self.add_host(pool, inside, claimed.addr));
        let unit = Unit(claimed.first.0 + (random as u16) % claimed.units);
        let block = self.add_block(host, pool, claimed, now);
        Ok(self.add_page(block, unit, list, pool.mask(unit)))
    }

    /// True if what the host has is not where the pool has it now.
    fn has_moved(&self, host: u32, pool: &Pool) -> bool {
        let entry = &self.hosts[host];
        let Some(computed) = pool.deterministic() else {
            return entry.is_deterministic || pool.pairing() == Pairing::Paired && !pool.contains(entry.addr);
        };
        let home = computed.place(entry.vrf, entry.key()).map(|place| pool.address(place.address));
        !entry.is_deterministic || pool.pairing() == Pairing::Paired && home != Some(entry.addr)
    }

    /// True if all blocks that were computed for the host are its own still. Ports of others that it has left to give do
    /// not show while all of them are in use.
    fn keeps_its_blocks(&self, host: u32, pool: &Pool) -> bool {
        let entry = &self.hosts[host];
        let mut at = entry.blocks;
        while at != NONE {
            let block = &self.blocks[at];
            let whose = (entry.vrf, entry.key());
            if block.is_deterministic && !pool.admits(whose, block.addr, block.first, Kind::Deterministic) {
                return false;
            }
            at = block.next;
        }
        true
    }

    /// A page of the list with a free port. Pages with one stand at the front.
    fn page_of_host(
        &mut self,
        host: u32,
        pool: &Pool,
        (list, giver): (u8, Giver),
        now: Nanos,
    ) -> Option<u32> {
        let first = self.hosts[host].pages[usize::from(list)];
        let mut page = first;
        // Pages of the other half may stand before those with room.
        let looked_at = if pool.is_shared() { 4 * REAP_PAGES } else { REAP_PAGES };
        for _ in 0..looked_at {
            if page == NONE {
                return None;
            }
            let next = self.pages[page].next;
            if pool.is_of(self.pages[page].unit, giver) {
                if self.pages[page].free() != 0 {
                    return Some(page);
                }
                self.reap(page, now);
                if self.pages[page].free() != 0 {
                    return Some(page);
                }
            }
            page = if next == first { NONE } else { next };
        }
        None
    }

    /// A unit of the host's blocks that has no page of this list yet.
    fn unit_without_page(
        &self,
        host: u32,
        pool: &Pool,
        (list, giver): (u8, Giver),
        random: u64,
    ) -> Option<(u32, Unit)> {
        let entry = &self.hosts[host];
        let low = list & 1 == 1;
        if entry.page_counts[usize::from(list)] >= entry.units[usize::from(low)] {
            return None;
        }
        let mut at = entry.blocks;
        while at != NONE {
            let block = &self.blocks[at];
            let start = random as u16 % block.units;
            let units = (0..block.units).map(|step| Unit(block.first.0 + (start + step) % block.units));
            let mut fresh = units.filter(|unit| {
                unit.is_low() == low
                    && block.vrf == pool.vrf()
                    && pool.is_of(*unit, giver)
                    && pool.admits(
                        (entry.vrf, entry.key()),
                        block.addr,
                        *unit,
                        Kind::of(block.is_deterministic),
                    )
                    && self.find_page(block.vrf, block.addr, *unit, list).is_none()
            });
            if let Some(unit) = fresh.next() {
                return Some((at, unit));
            }
            at = block.next;
        }
        None
    }

    /// Claims a block for the host, at its address if it has one.
    fn claim(
        &self,
        outside: Outside<'_>,
        host: Option<u32>,
        inside: &Inside,
        (low, giver): (bool, Giver),
        random: u64,
    ) -> Result<Claimed, Refused> {
        let Outside { pool, claims, owner, .. } = outside;
        let (mut blocks, own) =
            host.map_or((0, 0), |host| (self.hosts[host].block_count, self.hosts[host].own_units));
        let mut paired = host.and_then(|host| pool.index_of(self.hosts[host].addr));
        if let Some(computed) = pool.deterministic() {
            let place = computed.place(inside.vrf, inside.host()).ok_or(Refused::NotSubscriber)?;
            let slot = pool.slot(place.address);
            let addr = pool.address(place.address);
            // RFC 7422 section 2, step 3: its own ports first. A unit at a time: after a change of the config another
            // host may not have left all of them yet.
            if own < place.units {
                let start = random as u16 % place.units;
                let mut units =
                    (0..place.units).map(|step| Unit(place.first.0 + (start + step) % place.units));
                if let Some(first) = units.find(|unit| claims.claim(slot, *unit, 1, owner)) {
                    return Ok(Claimed { addr, slot, first, units: 1, kind: Kind::Deterministic });
                }
            }
            if !computed.overflows() {
                return Err(Refused::HostQuota);
            }
            paired = Some(place.address);
        }
        if blocks - own >= pool.max_blocks_per_host() && pool.is_shared() {
            // What the other node has given it is no reason to give it nothing here.
            blocks = host.map_or(0, |host| self.blocks_of_giver(host, pool, giver));
        }
        if blocks - own >= pool.max_blocks_per_host() {
            return Err(Refused::HostQuota);
        }
        let (search, units) = pool.search(low, giver);
        let at = |index: u32| {
            let slot = pool.slot(index);
            let first = claims.claim_any(slot, search.clone(), units, owner, random as u32)?;
            Some(Claimed { addr: pool.address(index), slot, first, units, kind: Kind::Dynamic })
        };
        if let Some(claimed) = paired.and_then(at) {
            return Ok(claimed);
        }
        if paired.is_some() && pool.pairing() == Pairing::Paired {
            return Err(Refused::AddressExhausted);
        }
        // By the host's hash, so that a host that comes back finds the address it had.
        let side = u32::from(pool.id()) << 16 | u32::from(inside.vrf);
        let home = hash::address(self.key, inside.host(), side);
        let count = u64::from(pool.addresses());
        let first = ((u128::from(home) * u128::from(count)) >> 64) as u64;
        let skip = if count > u64::from(ADDRESSES_TRIED) { random >> 16 } else { 0 };
        let others =
            (1..count.min(u64::from(ADDRESSES_TRIED))).map(|step| (first + skip % count + step) % count);
        std::iter::once(first).chain(others).find_map(|index| at(index as u32)).ok_or(Refused::PoolExhausted)
    }

    /// The host's blocks in what a node gives of a pool that two share.
    fn blocks_of_giver(&self, host: u32, pool: &Pool, giver: Giver) -> u16 {
        let (mut at, mut count) = (self.hosts[host].blocks, 0);
        while at != NONE {
            let block = &self.blocks[at];
            count += u16::from(pool.is_of(block.first, giver));
            at = block.next;
        }
        count
    }

    fn add_host(&mut self, pool: &Pool, inside: &Inside, addr: u32) -> u32 {
        let key = inside.host();
        let host = self.hosts.put(Host {
            key: [(key >> 64) as u64, key as u64],
            vrf: inside.vrf,
            pool: pool.id(),
            addr,
            is_deterministic: pool.deterministic().is_some(),
            ..Host::unused()
        });
        self.host_index.insert(self.hash_host(inside.vrf, key), host);
        host
    }

    fn add_block(&mut self, host: u32, pool: &Pool, claimed: Claimed, now: Nanos) -> u32 {
        let Claimed { addr, slot, first, units, kind } = claimed;
        let entry = &mut self.hosts[host];
        let next = entry.blocks;
        let block = self.blocks.put(Block {
            host,
            next,
            prev: NONE,
            addr,
            vrf: pool.vrf(),
            slot,
            first,
            units,
            pages: 0,
            is_deterministic: kind == Kind::Deterministic,
        });
        entry.blocks = block;
        entry.block_count += 1;
        entry.own_units += u16::from(kind == Kind::Deterministic);
        entry.units[usize::from(first.is_low())] += units;
        if next != NONE {
            self.blocks[next].prev = block;
        }
        self.log(EventKind::BlockClaimed, block, now);
        block
    }

    fn log(&mut self, kind: EventKind, block: u32, time: Nanos) {
        let block = &self.blocks[block];
        // RFC 7422 section 2, step 3: no record for what can be computed.
        if block.is_deterministic {
            return;
        }
        let host = &self.hosts[block.host];
        self.events.push(Event {
            kind,
            time,
            pool: host.pool,
            inside_vrf: host.vrf,
            host: host.key(),
            outside_vrf: block.vrf,
            addr: block.addr,
            first_port: block.first.first_port(),
            last_port: Unit(block.first.0 + block.units - 1).last_port(),
        });
    }

    fn add_page(&mut self, block: u32, unit: Unit, list: u8, mask: u64) -> u32 {
        let entry = &mut self.blocks[block];
        entry.pages += 1;
        let (host, addr, vrf) = (entry.host, entry.addr, entry.vrf);
        let is_deterministic = entry.is_deterministic;
        let page = Page { mask, host, block, addr, vrf, unit, list, is_deterministic, ..Page::unused() };
        let page = self.pages.put(page);
        self.page_index.insert(self.hash_page(vrf, addr, unit, list), page);
        self.hosts[host].page_counts[usize::from(list)] += 1;
        self.link_page(page, true);
        page
    }

    fn remove_page(&mut self, page: u32, claims: &BlockClaims, now: Nanos) {
        self.unlink_page(page);
        let Page { host, block, addr, vrf, unit, list, .. } = self.pages[page];
        self.page_index.remove(self.hash_page(vrf, addr, unit, list), page);
        self.hosts[host].page_counts[usize::from(list)] -= 1;
        self.pages[page] = Page::unused();
        self.pages.give_back(page);
        self.blocks[block].pages -= 1;
        if self.blocks[block].pages == 0 {
            self.remove_block(block, claims, now);
        }
    }

    fn remove_block(&mut self, block: u32, claims: &BlockClaims, now: Nanos) {
        self.log(EventKind::BlockReleased, block, now);
        let Block { host, next, prev, slot, first, units, is_deterministic, .. } = self.blocks[block];
        claims.release(slot, first, units);
        self.blocks.give_back(block);
        if next != NONE {
            self.blocks[next].prev = prev;
        }
        let entry = &mut self.hosts[host];
        match prev {
            NONE => entry.blocks = next,
            _ => self.blocks[prev].next = next,
        }
        entry.block_count -= 1;
        entry.own_units -= u16::from(is_deterministic);
        entry.units[usize::from(first.is_low())] -= units;
        if entry.block_count == 0 {
            self.drain(host);
            self.hosts.give_back(host);
        }
    }

    /// Puts the page into its host's ring, at the front or at the back.
    fn link_page(&mut self, page: u32, front: bool) {
        let list = usize::from(self.pages[page].list);
        let host = self.pages[page].host;
        let first = self.hosts[host].pages[list];
        if first == NONE {
            (self.pages[page].next, self.pages[page].prev) = (page, page);
        } else {
            let last = self.pages[first].prev;
            (self.pages[page].next, self.pages[page].prev) = (first, last);
            self.pages[last].next = page;
            self.pages[first].prev = page;
        }
        if front || first == NONE {
            self.hosts[host].pages[list] = page;
        }
    }

    fn unlink_page(&mut self, page: u32) {
        let Page { next, prev, host, list, .. } = self.pages[page];
        self.pages[prev].next = next;
        self.pages[next].prev = prev;
        let first = &mut self.hosts[host].pages[usize::from(list)];
        if *first == page {
            *first = if next == page { NONE } else { next };
        }
    }

    /// Frees the page's ports that are past their hold-down: how many.
    fn reap(&mut self, page: u32, now: Nanos) -> u32 {
        if !self.pages[page].may_reap(now, &self.limits.hold_down) {
            return 0;
        }
        let hold_down = self.limits.hold_down[usize::from(self.pages[page].list / 2)];
        let mut over = 0_u64;
        let mut oldest_ms = u64::MAX;
        for position in positions(self.pages[page].held) {
            let id = page * PAGE + position as u32;
            let State::Held(since_ms) = Slot(self.slots[id as usize]).state() else {
                unreachable!("the bit says it is held")
            };
            if is_over(since_ms, now, hold_down) {
                over |= 1 << position;
                self.mapping_index.prefetch(self.hash_inside(&self.inside(id)));
            } else {
                oldest_ms = oldest_ms.min(since_ms);
            }
        }
        self.pages[page].held &= !over;
        self.pages[page].oldest_ms = oldest_ms;
        self.held -= over.count_ones() as usize;
        for position in positions(over) {
            self.free_port(page * PAGE + position as u32);
        }
        over.count_ones()
    }

    /// Nobody has the port any more.
    fn free_port(&mut self, id: u32) {
        let inside = self.inside(id);
        let page = id / PAGE;
        // A mapping that drained may have been replaced: then it is not filed any more.
        self.mapping_index.remove(self.hash_inside(&inside), id);
        self.slots[id as usize] = Slot::FREE.0;
        let was_full = self.pages[page].free() == 0;
        self.pages[page].used &= !(1 << (id % PAGE));
        if was_full {
            self.unlink_page(page);
            self.link_page(page, true);
        }
    }
}

#[inline]
fn is_v4(addr: u128) -> bool {
    addr >> 32 == 0xffff
}

#[inline]
fn list_of(protocol: Protocol, low: bool) -> u8 {
    protocol as u8 * 2 + u8::from(low)
}
