//! The neighbour table: next hops and hosts on connected networks, by slot.
//!
//! A shared atomic table of fixed capacity. A slot's MAC address and state fit one atomic word, so a
//! neighbour that moves is followed by every worker at its next packet and touches one line and no
//! route or flow. Any worker learns; none waits. Slots are found by open addressing from the interface
//! and the address, and keep their number as long as they live: next hops in the tables refer to them
//! by number (those are *pinned* and never deleted).
//!
//! States follow RFC 4861 section 7.3.2, for ARP as for ND. There is no DELAY state: a router has no
//! upper-layer hints to wait for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::copied::{self, Word as _};
use crate::listeners::ListenerTable;
use crate::macs::MacTable;
use crate::packet::hash::{self, Key};
use crate::roles::Roles;
use crate::time::Nanos;
use crate::vteps::VtepTable;

/// How long a failed neighbour is not asked for again.
pub const NEGATIVE: Duration = Duration::from_secs(3);

/// Time between two solicitations. RFC 4861 section 10: RETRANS_TIMER.
pub const RETRANSMIT: Duration = Duration::from_secs(1);

/// Solicitations before giving up. RFC 4861 section 10: MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT.
pub const SOLICITATIONS: u32 = 3;

/// A neighbour is probed this long at most.
const PROBE_TIME: Duration = RETRANSMIT.saturating_mul(SOLICITATIONS + 1);

/// A stale neighbour nobody sent to for this long is forgotten; as Linux's `gc_stale_time` order of size.
pub const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Longest run of slots a lookup walks. At a load of at most 1/2 chains this long do not occur; an
/// insert that would need more is refused as "full".
const PROBE_LIMIT: usize = 128;

/// How often a writer looks again while another fills a slot; then the packet counts as "table full".
const CLAIM_RETRIES: usize = 10_000;

const MAC_MASK: u64 = (1 << 48) - 1;
const STATE_SHIFT: u32 = 48;
const GENERATION_SHIFT: u32 = 56;

/// State of a slot. From `Reachable` on the MAC address may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Never used.
    Empty = 0,
    /// Deleted; ends no search.
    Deleted = 1,
    /// A writer is just filling it.
    Claimed = 2,
    /// Key known, nothing asked yet.
    Idle = 3,
    /// Asked, no answer yet.
    Incomplete = 4,
    /// Gave no answer.
    Failed = 5,
    /// Answered lately.
    Reachable = 8,
    /// Known, but not confirmed lately.
    Stale = 9,
    /// Known, and being asked again.
    Probe = 10,
    /// Configured by the operator.
    Permanent = 11,
}

impl State {
    fn of(word: u64) -> State {
        match (word >> STATE_SHIFT) as u8 {
            0 => State::Empty,
            1 => State::Deleted,
            2 => State::Claimed,
            3 => State::Idle,
            4 => State::Incomplete,
            5 => State::Failed,
            8 => State::Reachable,
            9 => State::Stale,
            10 => State::Probe,
            11 => State::Permanent,
            other => unreachable!("no writer stores state {other}"),
        }
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            State::Empty | State::Deleted | State::Claimed => "none",
            State::Idle => "idle",
            State::Incomplete => "incomplete",
            State::Failed => "failed",
            State::Reachable => "reachable",
            State::Stale => "stale",
            State::Probe => "probe",
            State::Permanent => "permanent",
        }
    }
}

/// The atomic word of a slot: MAC, state and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    fn new(mac: u64, state: State, generation: u8) -> Word {
        Word(mac & MAC_MASK | (state as u64) << STATE_SHIFT | u64::from(generation) << GENERATION_SHIFT)
    }

    /// True if packets may be sent to [`Word::mac`].
    #[inline]
    pub fn is_usable(self) -> bool {
        (self.0 << 8) >> (STATE_SHIFT + 8) >= State::Reachable as u64
    }

    /// The MAC address, first byte highest, in the lower 48 bits.
    #[inline]
    pub fn mac(self) -> u64 {
        self.0 & MAC_MASK
    }

    /// The state.
    pub fn state(self) -> State {
        State::of(self.0 << 8 >> 8)
    }

    fn generation(self) -> u8 {
        (self.0 >> GENERATION_SHIFT) as u8
    }

    fn with(self, mac: u64, state: State) -> Word {
        Word::new(mac, state, self.generation())
    }
}

/// MAC bytes as the word holds them.
pub fn mac_to_u64(mac: [u8; 6]) -> u64 {
    mac.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// The bytes of a MAC word.
pub fn mac_from_u64(mac: u64) -> [u8; 6] {
    let b = mac.to_be_bytes();
    [b[2], b[3], b[4], b[5], b[6], b[7]]
}

/// The key form of an address: IPv4 is mapped (::ffff:a.b.c.d), which never appears on a wire as IPv6.
pub fn addr_key(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4_key(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address of a key form.
pub fn ip_of(key: u128) -> IpAddr {
    if is_v4_key(key) { Ipv4Addr::from(key as u32).into() } else { Ipv6Addr::from(key).into() }
}

/// True if it is the key form of an IPv4 address.
#[inline]
pub fn is_v4_key(key: u128) -> bool {
    key >> 32 == 0xffff
}

/// The key form of an IPv4 address in host order.
#[inline]
pub fn v4_key(addr: u32) -> u128 {
    0xffff_u128 << 32 | u128::from(addr)
}

/// The address of a key form.
pub fn addr_of(key: u128) -> IpAddr {
    let v6 = Ipv6Addr::from(key);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

#[repr(align(64))]
#[derive(Debug, Default)]
struct Slot {
    word: AtomicU64,
    addr_hi: AtomicU64,
    addr_lo: AtomicU64,
    /// When the state was entered or confirmed.
    since: AtomicU64,
    interface: AtomicU32,
    /// Second of the clock in which a packet last used the slot.
    used_s: AtomicU32,
    /// Next hops of the published tables that refer to the slot; never deleted while not 0.
    pinned: AtomicU32,
}

/// A neighbour, as `show neighbours` sees it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Slot number.
    pub slot: u32,
    /// Interface slot.
    pub interface: u16,
    /// Its address.
    pub address: IpAddr,
    /// MAC and state.
    pub word: Word,
    /// When the state was entered or confirmed.
    pub since: Nanos,
}

/// No free slot, or the interface's cap is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// What the periodic sweep wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reprobe {
    /// Slot to ask, by unicast to its old address.
    pub slot: u32,
}

/// The table. Shared by all threads of a node.
#[derive(Debug)]
pub struct NeighbourTable {
    slots: Box<[Slot]>,
    /// Learned (not pinned) entries per interface slot.
    learned: Box<[AtomicU32]>,
    key: Key,
    /// Remote tunnel end points.
    pub vteps: VtepTable,
    /// Where the stations of bridges and overlays are.
    pub macs: MacTable,
    /// Which virtual routers we are the Active of.
    pub roles: Roles,
    /// Behind which members of bridges somebody listens to multicast groups.
    pub listeners: ListenerTable,
}

/// Bridges that listeners are known of: those that a node can have.
const BRIDGES: usize = 4096;

/// Slots a table may have: flows name them in 15 bits.
pub const MAX_SLOTS: usize = 1 << 15;

impl NeighbourTable {
    /// A table for `capacity` neighbours, at most [`MAX_SLOTS`] / 2, on up to `interfaces` interfaces.
    pub fn new(capacity: usize, interfaces: usize, key: Key) -> NeighbourTable {
        // Twice the room keeps the load at or below one half.
        let slots = (capacity * 2).next_power_of_two();
        assert!(slots <= MAX_SLOTS, "at most {} neighbours", MAX_SLOTS / 2);
        NeighbourTable {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            learned: (0..interfaces).map(|_| AtomicU32::new(0)).collect(),
            key,
            vteps: VtepTable::new(key),
            macs: MacTable::new(slots * 2, interfaces, key),
            roles: Roles::default(),
            listeners: ListenerTable::new(slots.max(64), interfaces, BRIDGES, key),
        }
    }

    /// A copy that nobody shares, with all that is learned: the same slots for the same neighbours. Some megabytes.
    pub(crate) fn copied(&self) -> NeighbourTable {
        let slot = |slot: &Slot| Slot {
            word: slot.word.copied(),
            addr_hi: slot.addr_hi.copied(),
            addr_lo: slot.addr_lo.copied(),
            since: slot.since.copied(),
            interface: slot.interface.copied(),
            used_s: slot.used_s.copied(),
            pinned: slot.pinned.copied(),
        };
        NeighbourTable {
            slots: self.slots.iter().map(slot).collect(),
            learned: copied::all(&self.learned),
            key: self.key,
            vteps: self.vteps.copied(),
            macs: self.macs.copied(),
            roles: self.roles.copied(),
            listeners: self.listeners.copied(),
        }
    }

    /// MAC and state of `slot`.
    #[inline]
    pub fn word(&self, slot: u32) -> Word {
        Word(self.slots[slot as usize].word.load(Ordering::Acquire))
    }

    /// When the neighbour in `slot` was heard last, if that was lately.
    pub fn confirmed(&self, slot: u32) -> Option<Nanos> {
        let since = Nanos(self.slots[slot as usize].since.load(Ordering::Relaxed));
        (self.word(slot).state() == State::Reachable).then_some(since)
    }

    /// Notes that a packet was sent to `slot`.
    #[inline]
    pub fn mark_used(&self, slot: u32, now: Nanos) {
        let used = &self.slots[slot as usize].used_s;
        let second = now.as_secs() as u32;
        if used.load(Ordering::Relaxed) != second {
            used.store(second, Ordering::Relaxed);
        }
    }

    fn home(&self, interface: u16, addr: u128) -> usize {
        hash::address(self.key, addr, u32::from(interface)) as usize & (self.slots.len() - 1)
    }

    fn holds(&self, slot: &Slot, interface: u16, addr: u128) -> bool {
        slot.addr_lo.load(Ordering::Relaxed) == addr as u64
            && slot.addr_hi.load(Ordering::Relaxed) == (addr >> 64) as u64
            && slot.interface.load(Ordering::Relaxed) == u32::from(interface)
    }

    /// The slot of `addr` on `interface`.
    #[inline]
    pub fn find(&self, interface: u16, addr: u128) -> Option<u32> {
        let home = self.home(interface, addr);
        for step in 0..PROBE_LIMIT {
            let index = (home + step) & (self.slots.len() - 1);
            let slot = &self.slots[index];
            match Word(slot.word.load(Ordering::Acquire)).state() {
                State::Empty => return None,
                State::Deleted | State::Claimed => {}
                _ if self.holds(slot, interface, addr) => return Some(index as u32),
                _ => {}
            }
        }
        None
    }

    /// The slot of `addr`, made (Idle) if there is none. `cap` bounds the entries of the interface that
    /// are not pinned.
    pub fn find_or_insert(&self, interface: u16, addr: u128, cap: u32) -> Result<u32, TableFull> {
        // A slot that another writer is just filling may be the one we want: look again, a bounded
        // number of times (a writer needs some ten nanoseconds unless it is preempted).
        for _ in 0..CLAIM_RETRIES {
            if let Some(slot) = self.find(interface, addr) {
                return Ok(slot);
            }
            let learned = &self.learned[usize::from(interface)];
            if learned.fetch_add(1, Ordering::AcqRel) >= cap {
                learned.fetch_sub(1, Ordering::AcqRel);
                return Err(TableFull);
            }
            match self.claim(interface, addr) {
                Claim::Made(slot) => return Ok(slot),
                Claim::Lost => {
                    learned.fetch_sub(1, Ordering::AcqRel);
                    std::hint::spin_loop();
                }
                Claim::Full => {
                    learned.fetch_sub(1, Ordering::AcqRel);
                    return Err(TableFull);
                }
            }
        }
        Err(TableFull)
    }

    /// Takes the first free slot of the search order. Two writers with one key meet at the same slot,
    /// one wins and the other searches anew. (If a slot before it is freed between their searches both
    /// may win; the second copy is never found, ages and goes: harmless in a cache.)
    fn claim(&self, interface: u16, addr: u128) -> Claim {
        let home = self.home(interface, addr);
        for step in 0..PROBE_LIMIT {
            let index = (home + step) & (self.slots.len() - 1);
            let slot = &self.slots[index];
            let old = Word(slot.word.load(Ordering::Acquire));
            match old.state() {
                State::Empty | State::Deleted => {}
                State::Claimed => return Claim::Lost,
                // Another writer was faster.
                _ if self.holds(slot, interface, addr) => return Claim::Lost,
                _ => continue,
            }
            let claimed = Word::new(0, State::Claimed, old.generation().wrapping_add(1));
            if slot.word.compare_exchange(old.0, claimed.0, Ordering::AcqRel, Ordering::Acquire).is_err() {
                return Claim::Lost;
            }
            slot.addr_hi.store((addr >> 64) as u64, Ordering::Relaxed);
            slot.addr_lo.store(addr as u64, Ordering::Relaxed);
            slot.interface.store(u32::from(interface), Ordering::Relaxed);
            slot.since.store(0, Ordering::Relaxed);
            slot.used_s.store(0, Ordering::Relaxed);
            slot.pinned.store(0, Ordering::Relaxed);
            slot.word.store(claimed.with(0, State::Idle).0, Ordering::Release);
            return Claim::Made(index as u32);
        }
        Claim::Full
    }

    /// Pins the slot of a next hop: it is not deleted until [`NeighbourTable::unpin`]. Control thread only.
    pub fn pin(&self, interface: u16, addr: u128) -> Result<u32, TableFull> {
        let slot = self.find_or_insert(interface, addr, u32::MAX)?;
        if self.slots[slot as usize].pinned.fetch_add(1, Ordering::AcqRel) == 0 {
            // Pinned entries do not count against the cap for learned ones.
            self.learned[usize::from(interface)].fetch_sub(1, Ordering::AcqRel);
        }
        Ok(slot)
    }

    /// Takes one pin back. Control thread only, and only when no worker uses the tables that held it.
    pub fn unpin(&self, slot: u32) {
        let line = &self.slots[slot as usize];
        if line.pinned.fetch_sub(1, Ordering::AcqRel) == 1 {
            let interface = line.interface.load(Ordering::Relaxed) as usize;
            self.learned[interface].fetch_add(1, Ordering::AcqRel);
        }
    }

    fn change(&self, slot: u32, now: Nanos, mut new: impl FnMut(Word) -> Option<Word>) -> bool {
        let line = &self.slots[slot as usize];
        let mut old = line.word.load(Ordering::Acquire);
        loop {
            let Some(word) = new(Word(old)) else { return false };
            match line.word.compare_exchange_weak(old, word.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    line.since.store(now.0, Ordering::Relaxed);
                    return true;
                }
                Err(seen) => old = seen,
            }
        }
    }

    /// Begins to resolve `slot`. True for exactly one caller, who then sends the solicitations.
    pub fn begin(&self, slot: u32, now: Nanos) -> bool {
        let since = Nanos(self.slots[slot as usize].since.load(Ordering::Relaxed));
        self.change(slot, now, |word| match word.state() {
            State::Idle => Some(word.with(0, State::Incomplete)),
            State::Failed if now.since(since) >= NEGATIVE => Some(word.with(0, State::Incomplete)),
            _ => None,
        })
    }

    /// The neighbour said its address. `confirmed`: it answered us, so the way there works both ways.
    /// False if the operator's entry stands against it.
    pub fn learn(&self, slot: u32, mac: [u8; 6], confirmed: bool, now: Nanos) -> bool {
        let mac = mac_to_u64(mac);
        self.change(slot, now, |word| match word.state() {
            State::Permanent | State::Empty | State::Deleted | State::Claimed => None,
            _ if confirmed => Some(word.with(mac, State::Reachable)),
            state if word.is_usable() && word.mac() == mac => Some(word.with(mac, state)),
            _ => Some(word.with(mac, State::Stale)),
        })
    }

    /// The neighbour is there but something contradicts its address (NA without override).
    pub fn doubt(&self, slot: u32, now: Nanos) {
        self.change(slot, now, |word| {
            (word.state() == State::Reachable).then(|| word.with(word.mac(), State::Stale))
        });
    }

    /// What was sent to the neighbour has reached it, as somebody knows who has heard so from it: a hint of upper layers
    /// (RFC 4861 section 7.3.1), by which it need not be asked.
    pub fn confirm(&self, slot: u32, now: Nanos) {
        self.change(slot, now, |word| match word.state() {
            State::Reachable | State::Stale | State::Probe => Some(word.with(word.mac(), State::Reachable)),
            State::Empty | State::Deleted | State::Claimed | State::Idle => None,
            State::Incomplete | State::Failed | State::Permanent => None,
        });
    }

    /// All solicitations went unanswered.
    pub fn fail(&self, slot: u32, now: Nanos) -> bool {
        self.change(slot, now, |word| match word.state() {
            State::Incomplete | State::Probe => Some(word.with(0, State::Failed)),
            _ => None,
        })
    }

    /// The operator's entry.
    pub fn set_permanent(&self, slot: u32, mac: [u8; 6], now: Nanos) {
        self.change(slot, now, |word| Some(word.with(mac_to_u64(mac), State::Permanent)));
    }

    /// Forgets what is known of a slot: asked anew at the next packet.
    pub fn forget(&self, slot: u32, now: Nanos) {
        self.change(slot, now, |word| Some(word.with(0, State::Idle)));
    }

    /// Ages `count` slots from `from` on; the owner worker calls it until it has been round.
    pub fn sweep(
        &self,
        from: u32,
        count: u32,
        reachable: Duration,
        now: Nanos,
        mut reprobe: impl FnMut(Reprobe),
    ) {
        let end = (from + count).min(self.slots.len() as u32);
        for (index, line) in (from..end).zip(&self.slots[from.min(end) as usize..end as usize]) {
            let word = Word(line.word.load(Ordering::Acquire));
            if word.0 == 0 {
                continue; // Never used, as most are.
            }
            let since = Nanos(line.since.load(Ordering::Relaxed));
            let age = now.since(since);
            let used = Nanos::from_secs(u64::from(line.used_s.load(Ordering::Relaxed)));
            let pinned = line.pinned.load(Ordering::Acquire) > 0;
            match word.state() {
                State::Reachable if age >= reachable => {
                    self.change(index, since, |w| (w == word).then(|| w.with(w.mac(), State::Stale)));
                }
                State::Stale
                    if used > since
                        && now.since(used) < reachable
                        && self
                            .change(index, now, |w| (w == word).then(|| w.with(w.mac(), State::Probe))) =>
                {
                    reprobe(Reprobe { slot: index });
                }
                // Whoever was to ask had no room for the question: asked again in a later round.
                State::Probe if age > PROBE_TIME => {
                    self.change(index, since, |w| (w == word).then(|| w.with(w.mac(), State::Stale)));
                }
                State::Stale if age >= FORGET_AFTER && now.since(used) >= FORGET_AFTER => {
                    self.release(index, word, pinned, now)
                }
                State::Failed if age >= NEGATIVE => self.release(index, word, pinned, now),
                // Made for a packet that then needed no neighbour, or unpinned since.
                State::Idle if !pinned && age >= FORGET_AFTER => self.release(index, word, pinned, now),
                _ => {}
            }
        }
    }

    fn release(&self, index: u32, word: Word, pinned: bool, now: Nanos) {
        let state = if pinned { State::Idle } else { State::Deleted };
        if self.change(index, now, |w| (w == word).then(|| w.with(0, state))) && !pinned {
            let interface = self.slots[index as usize].interface.load(Ordering::Relaxed) as usize;
            self.learned[interface].fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Number of slots.
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Interface and address of `slot`.
    pub fn key_of(&self, slot: u32) -> (u16, IpAddr) {
        let line = &self.slots[slot as usize];
        let hi = line.addr_hi.load(Ordering::Relaxed);
        let lo = line.addr_lo.load(Ordering::Relaxed);
        (line.interface.load(Ordering::Relaxed) as u16, addr_of(u128::from(hi) << 64 | u128::from(lo)))
    }

    /// All neighbours, for people. A slot that changes while it is read is read again.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for slot in 0..self.capacity() {
            loop {
                let word = self.word(slot);
                if word.state() <= State::Claimed {
                    break;
                }
                let (interface, address) = self.key_of(slot);
                let since = Nanos(self.slots[slot as usize].since.load(Ordering::Relaxed));
                if self.word(slot).generation() == word.generation() {
                    entries.push(Entry { slot, interface, address, word, since });
                    break;
                }
            }
        }
        entries
    }
}

enum Claim {
    Made(u32),
    Lost,
    Full,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn table() -> NeighbourTable {
        NeighbourTable::new(64, 4, Key::default())
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    #[test]
    fn one_caller_resolves_and_the_answer_is_used() {
        let table = table();
        let slot = table.find_or_insert(1, v4_key(7), 10).expect("room");
        assert!(table.begin(slot, at(1)));
        assert!(!table.begin(slot, at(1)));
        assert!(!table.word(slot).is_usable());
        assert!(table.learn(slot, MAC, true, at(2)));
        assert!(table.word(slot).is_usable());
        assert_eq!(mac_from_u64(table.word(slot).mac()), MAC);
        assert_eq!(table.find(1, v4_key(7)), Some(slot));
        assert_eq!(table.find(2, v4_key(7)), None);
    }

    #[test]
    fn a_failed_neighbour_stays_negative_for_three_seconds() {
        let table = table();
        let slot = table.find_or_insert(0, v4_key(1), 10).expect("room");
        table.begin(slot, at(1));
        assert!(table.fail(slot, at(4)));
        assert!(!table.begin(slot, at(6)));
        assert!(table.begin(slot, at(7)));
    }

    #[test]
    fn the_cap_of_an_interface_holds_and_pins_do_not_count() {
        let table = table();
        table.pin(0, v4_key(100)).expect("pinned");
        for host in 0..8 {
            table.find_or_insert(0, v4_key(host), 8).expect("room");
        }
        assert_eq!(table.find_or_insert(0, v4_key(8), 8), Err(TableFull));
        table.find_or_insert(1, v4_key(8), 8).expect("another interface has its own cap");
    }

    /// More than can be asked at once stayed in `Probe` for ever, unconfirmed and never forgotten.
    #[test]
    fn a_probe_that_nobody_sends_ends() {
        let table = table();
        let slot = table.find_or_insert(0, v4_key(1), 8).expect("room");
        let sweep = |now| {
            let mut found = 0;
            table.sweep(0, table.capacity(), Duration::from_secs(30), at(now), |_| found += 1);
            found
        };
        table.learn(slot, MAC, true, at(10));
        sweep(40);
        table.mark_used(slot, at(41));
        assert_eq!((sweep(42), table.word(slot).state()), (1, State::Probe));
        sweep(45);
        assert_eq!(table.word(slot).state(), State::Probe, "there is still time for an answer");
        sweep(47);
        assert_eq!((table.word(slot).state(), table.word(slot).mac()), (State::Stale, mac_to_u64(MAC)));
        table.mark_used(slot, at(48));
        assert_eq!(sweep(49), 1, "asked again");
    }

    #[test]
    fn who_is_heard_of_otherwise_is_not_asked() {
        let table = table();
        let slot = table.find_or_insert(0, v4_key(1), 8).expect("room");
        table.confirm(slot, at(1));
        assert_eq!(table.word(slot).state(), State::Idle, "its MAC address is not known by that");
        table.learn(slot, MAC, true, at(10));
        for second in 10..100 {
            table.mark_used(slot, at(second));
            table.confirm(slot, at(second));
            let reprobe = |_| panic!("it is asked");
            table.sweep(0, table.capacity(), Duration::from_secs(30), at(second), reprobe);
        }
        assert_eq!((table.word(slot).state(), table.word(slot).mac()), (State::Reachable, mac_to_u64(MAC)));
        table.set_permanent(slot, MAC, at(100));
        table.confirm(slot, at(101));
        assert_eq!(table.word(slot).state(), State::Permanent);
    }

    #[test]
    fn ageing_reachable_stale_probe_failed_gone() {
        let table = table();
        let slot = table.find_or_insert(0, v4_key(1), 8).expect("room");
        let reachable = Duration::from_secs(30);
        table.learn(slot, MAC, true, at(10));
        let sweep = |now| {
            let mut found = vec![];
            table.sweep(0, table.capacity(), reachable, at(now), |r| found.push(r.slot));
            found
        };
        assert!(sweep(39).is_empty());
        assert_eq!(table.word(slot).state(), State::Reachable);
        assert!(sweep(40).is_empty());
        assert_eq!(table.word(slot).state(), State::Stale);
        table.mark_used(slot, at(41));
        assert_eq!(sweep(42), [slot]);
        assert!(table.word(slot).is_usable(), "a probed neighbour is still used");
        table.fail(slot, at(45));
        sweep(48);
        assert_eq!(table.find(0, v4_key(1)), None);
        table.find_or_insert(0, v4_key(1), 1).expect("its place in the cap is free again");
    }

    #[test]
    fn the_operators_entry_is_not_overwritten() {
        let table = table();
        let slot = table.find_or_insert(0, v4_key(1), 8).expect("room");
        table.set_permanent(slot, MAC, at(0));
        assert!(!table.learn(slot, [2, 0, 0, 0, 0, 66], true, at(1)));
        assert_eq!(mac_from_u64(table.word(slot).mac()), MAC);
    }

    #[test]
    fn many_threads_make_each_neighbour_once() {
        let table = NeighbourTable::new(4096, 1, Key::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for host in 0..2000 {
                        table.find_or_insert(0, v4_key(host), u32::MAX).expect("room");
                    }
                });
            }
        });
        assert_eq!(table.entries().len(), 2000);
    }
}
