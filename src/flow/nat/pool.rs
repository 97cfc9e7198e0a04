//! A pool: the external addresses and ports of a NAT rule, compiled. Immutable; lives in the published tables.

use std::net::Ipv4Addr;

use super::blocks::{
    AddressesFull, BlockClaims, FIRST_HIGH_PORT, HIGH_WORDS, LOW_WORDS, UNIT_PORTS, UNIT_WORDS, UNITS, Unit,
    UnitSet,
};
use super::deterministic::{BadSubscribers, Deterministic, Shared, Subscribers};

/// Ports a host takes at once.
pub const DEFAULT_BLOCK_SIZE: u16 = 64;

/// Largest block: as many units as one word of the search has.
pub const MAX_BLOCK_SIZE: u16 = 64 * UNIT_PORTS;

/// Blocks a host may have at once. With blocks of 64 that is 1,024 ports. RFC 6888 REQ-4: there must be a limit.
pub const DEFAULT_MAX_BLOCKS_PER_HOST: u16 = 16;

/// External addresses from `first` to `last`; a prefix is the range of all its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address.
    pub last: Ipv4Addr,
}

/// Ports of every address of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First port, 1024 or above.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// Inside ports under 1024 get external ports 1-1023 (RFC 4787 REQ-3a). If not, they get one from `first`
    /// to `last`, as on an address whose well-known ports are the gateway's own.
    pub low: bool,
}

impl Ports {
    /// True for a port that an inside host may get.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port) || self.low && (1..FIRST_HIGH_PORT).contains(&port)
    }
}

impl Default for Ports {
    /// All ports but 0.
    fn default() -> Ports {
        Ports { first: FIRST_HIGH_PORT, last: u16::MAX, low: true }
    }
}

/// RFC 4787 section 4.1: IP address pooling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairing {
    /// All of a host is at one external address. RFC 6888 REQ-2: the default.
    #[default]
    Paired,
    /// A host whose address is exhausted gets blocks at another.
    Arbitrary,
}

/// A half of the ports of each address of a pool that both nodes of a pair give ports of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// From the first port on, and of well-known ports those under 512.
    Lower,
    /// The others.
    Upper,
}

/// Which node gives a port out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giver {
    /// This one.
    Here,
    /// The other one of the pair.
    Peer,
}

/// A pool as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Stable slot of the pool's name. One inside endpoint has one mapping in each pool.
    pub id: u16,
    /// VRF of the outside.
    pub vrf: u16,
    /// RFC 6888 REQ-3: any ranges, contiguous or not.
    pub addresses: Vec<AddressRange>,
    /// Ports of each address.
    pub ports: Ports,
    /// Ports a host takes at once: a power of two, 64 to 4096.
    pub block_size: u16,
    /// Blocks a host may have at once.
    pub max_blocks_per_host: u16,
    /// Pooling.
    pub pairing: Pairing,
    /// RFC 7422: whose blocks are computed, not chosen.
    pub deterministic: Option<Subscribers>,
    /// The other node of a pair gives ports of it as well, and this half is this node's.
    pub half: Option<Half>,
}

impl PoolSpec {
    /// A pool of `addresses` in the default VRF; everything else is the default.
    pub fn new(id: u16, addresses: Vec<AddressRange>) -> PoolSpec {
        PoolSpec {
            id,
            vrf: 0,
            addresses,
            ports: Ports::default(),
            block_size: DEFAULT_BLOCK_SIZE,
            max_blocks_per_host: DEFAULT_MAX_BLOCKS_PER_HOST,
            pairing: Pairing::Paired,
            deterministic: None,
            half: None,
        }
    }
}

/// Why a pool is not legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPool {
    /// Nothing to map to.
    #[error("a pool needs an address")]
    Empty,
    /// Ends before it begins.
    #[error("range {0}-{1} ends before it begins")]
    Reversed(Ipv4Addr, Ipv4Addr),
    /// Not an address a host can have.
    #[error("{0} is not a unicast address")]
    NotUnicast(Ipv4Addr),
    /// An address stands in two ranges.
    #[error("{0} is in two ranges of the pool")]
    Overlap(Ipv4Addr),
    /// Not a range of high ports.
    #[error("ports {0}-{1}: first is 1024 to 65535, last not below first")]
    BadPorts(u16, u16),
    /// Not a legal block size.
    #[error("block size {0}: a power of two, 64 to 4096")]
    BadBlockSize(u16),
    /// No block fits in.
    #[error("ports {0}-{1} have no whole aligned block of {2}")]
    NoBlock(u16, u16, u16),
    /// One of the nodes would have nothing to give.
    #[error("ports {0}-{1} have no whole aligned block of {2} in each half: two nodes share them")]
    NoHalf(u16, u16, u16),
    /// Nobody could get a port.
    #[error("blocks per host: 1 to 65535")]
    NoBlocksPerHost,
    /// The node's claims have no room.
    #[error("the node has room for {0} external addresses at most")]
    TooManyAddresses(usize),
    /// The deterministic parameters do not work out.
    #[error(transparent)]
    Deterministic(#[from] BadSubscribers),
}

#[derive(Clone, Copy, Debug)]
struct Range {
    first: u32,
    last: u32,
    /// Index of `first` in the pool.
    index: u32,
}

/// How a host came to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By claim; each is logged.
    Dynamic,
    /// By arithmetic (RFC 7422); never logged, and never another host's.
    Deterministic,
}

impl Kind {
    pub fn of(is_deterministic: bool) -> Kind {
        if is_deterministic { Kind::Deterministic } else { Kind::Dynamic }
    }
}

/// Blocks of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// All.
    pub all: u32,
    /// Those that hosts have.
    pub given: u32,
}

/// Blocks of a pool that two nodes share, as far as this node knows of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedBlocks {
    /// This node's half.
    pub half: Half,
    /// First and last port of it.
    pub ports: (u16, u16),
    /// Of this node's half.
    pub own: Blocks,
    /// Of the other's: what it has told of, and what was given while it was not heard.
    pub peers: Blocks,
}

/// The units of a pool that two nodes share. Which is in which half follows from its ports alone: nodes whose blocks are
/// of different sizes, in the middle of a change, still have the same halves.
#[derive(Debug)]
struct Halves {
    half: Half,
    own: UnitSet,
    peers: UnitSet,
}

impl Halves {
    fn of(eligible: &UnitSet, half: Half, (first, last): (u16, u16)) -> Halves {
        let (first, count) = (Unit::of(first).0, Unit::of(last).0 - Unit::of(first).0 + 1);
        // As coarse as an eighth of the ports allows: no block lies across it.
        let grain = 1 << (count / 8).max(1).ilog2().min(6);
        let middle = (first + count / 2 + grain / 2) / grain * grain;
        let low_middle = Unit::of(FIRST_HIGH_PORT / 2).0;
        let is_lower = |unit: u16| unit < if Unit(unit).is_low() { low_middle } else { middle };
        let (mut own, mut peers) = ([0; UNIT_WORDS], [0; UNIT_WORDS]);
        for unit in (0..UNITS as u16).filter(|unit| Unit(*unit).is_in(eligible)) {
            let is_own = is_lower(unit) == (half == Half::Lower);
            Unit(unit).add_to(if is_own { &mut own } else { &mut peers });
        }
        Halves { half, own, peers }
    }

    fn of_giver(&self, giver: Giver) -> &UnitSet {
        match giver {
            Giver::Here => &self.own,
            Giver::Peer => &self.peers,
        }
    }
}

/// A compiled pool.
#[derive(Debug)]
pub struct Pool {
    id: u16,
    vrf: u16,
    ranges: Box<[Range]>,
    /// By index: slot of the address in the claims.
    slots: Box<[u16]>,
    ports: Ports,
    block_units: u16,
    max_blocks_per_host: u16,
    pairing: Pairing,
    /// Units that are claimed dynamically.
    eligible: UnitSet,
    deterministic: Option<Deterministic>,
    halves: Option<Box<Halves>>,
}

impl Pool {
    /// Checks the spec and gives its addresses slots in `claims`.
    pub fn compile(spec: &PoolSpec, claims: &BlockClaims) -> Result<Pool, BadPool> {
        let ranges = compile_ranges(&spec.addresses)?;
        let Ports { first, last, low } = spec.ports;
        if first < FIRST_HIGH_PORT || last < first {
            return Err(BadPool::BadPorts(first, last));
        }
        let size = spec.block_size;
        if !size.is_power_of_two() || !(UNIT_PORTS..=MAX_BLOCK_SIZE).contains(&size) {
            return Err(BadPool::BadBlockSize(size));
        }
        if spec.max_blocks_per_host == 0 {
            return Err(BadPool::NoBlocksPerHost);
        }
        let mut eligible = [0; UNIT_WORDS];
        (Unit::of(first).0..=Unit::of(last).0).for_each(|unit| Unit(unit).add_to(&mut eligible));
        let deterministic = match &spec.deterministic {
            None => None,
            Some(subscribers) => {
                let addresses = ranges.iter().map(|range| range.last - range.first + 1).sum();
                let computed = Deterministic::compile(subscribers, addresses, (first, last))?;
                // RFC 7422 section 2: what the subscribers leave is the dynamic pool, if one is wanted.
                computed.units().for_each(|unit| {
                    eligible[usize::from(unit / 64)] &= !(1 << (unit % 64));
                });
                if subscribers.overflow.is_none() {
                    eligible = [0; UNIT_WORDS];
                }
                Some(computed)
            }
        };
        // RFC 7422 section 2, step 1: system ports are not for deterministic assignment.
        let low = low && deterministic.is_none();
        if low {
            (0..Unit::of(FIRST_HIGH_PORT - 1).0 + 1).for_each(|unit| Unit(unit).add_to(&mut eligible));
        }
        let block_units = size / UNIT_PORTS;
        let blocks = |word: &u64| super::blocks::aligned_runs(*word, block_units) != 0;
        if deterministic.is_none() && !eligible[HIGH_WORDS].iter().any(blocks) {
            return Err(BadPool::NoBlock(first, last, size));
        }
        let halves = spec.half.map(|half| Box::new(Halves::of(&eligible, half, (first, last))));
        if let Some(halves) = &halves
            && ![&halves.own, &halves.peers].iter().all(|units| units[HIGH_WORDS].iter().any(blocks))
        {
            return Err(BadPool::NoHalf(first, last, size));
        }
        let slots = ranges.iter().flat_map(|range| range.first..=range.last);
        let slots: Result<_, AddressesFull> = slots.map(|addr| claims.register(spec.vrf, addr)).collect();
        Ok(Pool {
            id: spec.id,
            vrf: spec.vrf,
            slots: slots.map_err(|AddressesFull| BadPool::TooManyAddresses(claims.capacity()))?,
            ranges,
            ports: Ports { first, last, low },
            block_units,
            max_blocks_per_host: spec.max_blocks_per_host,
            pairing: spec.pairing,
            eligible,
            deterministic,
            halves,
        })
    }

    /// Stable slot of the pool's name.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// VRF of the outside.
    pub fn vrf(&self) -> u16 {
        self.vrf
    }

    /// Number of external addresses.
    pub fn addresses(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Ports of each address that are given away.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// True if `addr` is one of the pool's.
    #[inline]
    pub fn contains(&self, addr: u32) -> bool {
        self.index_of(addr).is_some()
    }

    /// Ports a host takes at once.
    pub fn block_size(&self) -> u16 {
        self.block_units * UNIT_PORTS
    }

    /// Its addresses, as ranges.
    pub fn ranges(&self) -> impl Iterator<Item = AddressRange> {
        self.ranges.iter().map(|range| AddressRange { first: range.first.into(), last: range.last.into() })
    }

    /// True if the other node of a pair gives ports of it as well.
    #[inline]
    pub fn is_shared(&self) -> bool {
        self.halves.is_some()
    }

    /// Which node gives a port of a shared pool. `None`: none of its ports, or of a pool that is not shared.
    pub fn giver(&self, port: u16) -> Option<Giver> {
        let halves = self.halves.as_ref().filter(|_| self.ports.contains(port))?;
        let unit = Unit::of(port);
        [Giver::Here, Giver::Peer].into_iter().find(|giver| unit.is_in(halves.of_giver(*giver)))
    }

    /// How many blocks of either half of a shared pool hosts have, low ports left out.
    pub fn shared_blocks(&self, claims: &BlockClaims) -> Option<SharedBlocks> {
        let halves = self.halves.as_ref()?;
        let blocks = |units: &UnitSet| self.blocks_among(units, claims);
        let all = (0..UNITS as u16).map(Unit);
        let mut units = all.filter(|unit| !unit.is_low() && unit.is_in(&halves.own));
        // Both halves have a block: the check has seen to that.
        let first = units.next()?;
        let last = units.next_back().unwrap_or(first);
        Some(SharedBlocks {
            half: halves.half,
            ports: (first.first_port().max(self.ports.first), last.last_port().min(self.ports.last)),
            own: blocks(&halves.own),
            peers: blocks(&halves.peers),
        })
    }

    /// How many of its blocks hosts have, low ports left out. Pools with ports of one address each see their own.
    pub fn blocks(&self, claims: &BlockClaims) -> Blocks {
        // All ports between the first and the last, computed blocks included.
        let mut units = [0; UNIT_WORDS];
        (Unit::of(self.ports.first).0..=Unit::of(self.ports.last).0)
            .for_each(|unit| Unit(unit).add_to(&mut units));
        self.blocks_among(&units, claims)
    }

    fn blocks_among(&self, units: &UnitSet, claims: &BlockClaims) -> Blocks {
        let whole = |word: &u64| super::blocks::aligned_runs(*word, self.block_units).count_ones();
        let each: u32 = units[HIGH_WORDS].iter().map(whole).sum();
        let given: u32 = self.slots.iter().map(|slot| claims.claimed_among(*slot, units)).sum();
        Blocks { all: each * self.addresses(), given: given.div_ceil(u32::from(self.block_units)) }
    }

    /// How the hosts of a deterministic pool share its addresses.
    pub fn shared(&self) -> Option<Shared> {
        self.deterministic.as_ref().map(Deterministic::shared)
    }

    /// True if a port is lent for a time, not computed.
    pub fn is_lent(&self, port: u16) -> bool {
        let unit = Unit::of(port);
        unit.is_in(&self.eligible) && self.mask(unit) >> (port - unit.first_port()) & 1 == 1
    }

    /// RFC 7422 section 2, function 1: external address and ports of an inside address. None: the pool is not
    /// deterministic, or not for this address.
    pub fn outside_of(&self, inside_vrf: u16, inside: u128) -> Option<(u32, std::ops::RangeInclusive<u16>)> {
        let place = self.deterministic.as_ref()?.place(inside_vrf, super::host_of(inside))?;
        let last = Unit(place.first.0 + place.units - 1);
        Some((self.address(place.address), place.first.first_port()..=last.last_port()))
    }

    /// RFC 7422 section 2, function 2: inside VRF and address (IPv6: the /64) of an external address and port.
    /// None: the port is reserved or of the dynamic pool, whose blocks are in the log.
    pub fn inside_of(&self, addr: u32, port: u16) -> Option<(u16, u128)> {
        self.deterministic.as_ref()?.subscriber(self.index_of(addr)?, port)
    }

    pub(super) fn address(&self, index: u32) -> u32 {
        let range = self.ranges[self.ranges.partition_point(|range| range.index <= index) - 1];
        range.first + (index - range.index)
    }

    #[inline]
    pub(super) fn index_of(&self, addr: u32) -> Option<u32> {
        let after = self.ranges.partition_point(|range| range.first <= addr);
        let range = self.ranges.get(after.wrapping_sub(1))?;
        (addr <= range.last).then(|| range.index + (addr - range.first))
    }

    pub(super) fn slot(&self, index: u32) -> u16 {
        self.slots[index as usize]
    }

    pub(super) fn deterministic(&self) -> Option<&Deterministic> {
        self.deterministic.as_ref()
    }

    pub(super) fn pairing(&self) -> Pairing {
        self.pairing
    }

    pub(super) fn max_blocks_per_host(&self) -> u16 {
        self.max_blocks_per_host
    }

    /// True if an inside port of this kind gets an external port under 1024.
    #[inline]
    pub(super) fn is_low(&self, inside: &super::Inside) -> bool {
        self.ports.low && inside.port < FIRST_HIGH_PORT && inside.protocol.has_low_ports()
    }

    /// Units to search for a block of what a node gives out, and how many of them make one.
    pub(super) fn search(&self, low: bool, giver: Giver) -> ((&UnitSet, std::ops::Range<usize>), u16) {
        let units = self.halves.as_ref().map_or(&self.eligible, |halves| halves.of_giver(giver));
        if low { ((units, LOW_WORDS), 1) } else { ((units, HIGH_WORDS), self.block_units) }
    }

    /// Units that make a block.
    pub(super) fn units_of_block(&self, low: bool) -> u16 {
        if low { 1 } else { self.block_units }
    }

    /// True if this node gives out the ports of a unit.
    #[inline]
    pub(super) fn is_of(&self, unit: Unit, giver: Giver) -> bool {
        self.halves.as_ref().is_none_or(|halves| unit.is_in(halves.of_giver(giver)))
    }

    /// The ports of `unit` that may be given away, as bits.
    pub(super) fn mask(&self, unit: Unit) -> u64 {
        let allowed = |port: &u16| {
            if unit.is_low() {
                self.ports.low && *port != 0
            } else {
                (self.ports.first..=self.ports.last).contains(port)
            }
        };
        let first = unit.first_port();
        let ports = (first..=unit.last_port()).filter(allowed);
        ports.fold(0, |mask, port| mask | 1 << (port - first))
    }

    /// True if a host that has `unit` of `addr` as `kind` may still be given ports there. What else it has
    /// there drains.
    #[inline]
    pub(super) fn admits(&self, (vrf, host): (u16, u128), addr: u32, unit: Unit, kind: Kind) -> bool {
        let Some(index) = self.index_of(addr) else { return false };
        match kind {
            Kind::Dynamic => unit.is_in(&self.eligible),
            Kind::Deterministic => {
                let place = self.deterministic.as_ref().and_then(|computed| computed.place(vrf, host));
                place.is_some_and(|place| place.address == index && place.contains(unit))
            }
        }
    }
}

fn compile_ranges(spec: &[AddressRange]) -> Result<Box<[Range]>, BadPool> {
    let mut sorted = spec.to_vec();
    sorted.sort();
    let mut ranges: Vec<Range> = Vec::with_capacity(sorted.len());
    let mut index = 0;
    for AddressRange { first, last } in sorted {
        if last < first {
            return Err(BadPool::Reversed(first, last));
        }
        for end in [first, last] {
            if end.octets()[0] == 0 || end.octets()[0] >= 224 {
                return Err(BadPool::NotUnicast(end));
            }
        }
        let (first_addr, last_addr) = (u32::from(first), u32::from(last));
        if ranges.last().is_some_and(|before| before.last >= first_addr) {
            return Err(BadPool::Overlap(first));
        }
        if (last_addr - first_addr) as usize >= super::blocks::MAX_ADDRESSES - index as usize {
            return Err(BadPool::TooManyAddresses(super::blocks::MAX_ADDRESSES));
        }
        ranges.push(Range { first: first_addr, last: last_addr, index });
        index += last_addr - first_addr + 1;
    }
    if ranges.is_empty() { Err(BadPool::Empty) } else { Ok(ranges.into()) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::range;
    use super::*;
    use crate::packet::hash::Key;

    fn compile(spec: &PoolSpec) -> Result<Pool, BadPool> {
        Pool::compile(spec, &BlockClaims::new(8, Key::default()))
    }

    #[test]
    fn rfc6888_req3_ranges_need_not_be_contiguous() {
        let ranges = vec![range("203.0.113.8", "203.0.113.11"), range("192.0.2.1", "192.0.2.1")];
        let pool = compile(&PoolSpec::new(0, ranges)).expect("legal");
        let all: Vec<Ipv4Addr> =
            (0..pool.addresses()).map(|index| Ipv4Addr::from(pool.address(index))).collect();
        let expected: Vec<Ipv4Addr> =
            ["192.0.2.1", "203.0.113.8", "203.0.113.9", "203.0.113.10", "203.0.113.11"]
                .map(|text| text.parse().expect("an address"))
                .into();
        assert_eq!(all, expected);
        for (index, addr) in (0..).zip(all) {
            assert_eq!(pool.index_of(addr.into()), Some(index));
        }
        for outside in ["192.0.2.0", "192.0.2.2", "203.0.113.7", "203.0.113.12", "255.255.255.255", "0.0.0.0"]
        {
            assert!(!pool.contains(outside.parse::<Ipv4Addr>().expect("an address").into()), "{outside}");
        }
    }

    #[test]
    fn an_address_has_the_same_slot_in_every_generation() {
        let claims = BlockClaims::new(8, Key::default());
        let slots = |ranges| {
            let pool = Pool::compile(&PoolSpec::new(0, ranges), &claims).expect("legal");
            pool.index_of(0xcb00_7102).map(|index| pool.slot(index))
        };
        let before = slots(vec![range("203.0.113.2", "203.0.113.4")]);
        assert_eq!(slots(vec![range("203.0.113.0", "203.0.113.3")]), before);
    }

    #[test]
    fn what_is_not_legal_is_named() {
        let good = PoolSpec::new(0, vec![range("192.0.2.1", "192.0.2.1")]);
        let refused = |change: &dyn Fn(&mut PoolSpec)| {
            let mut spec = good.clone();
            change(&mut spec);
            compile(&spec).map(|_| ()).map_err(|error| error.to_string())
        };
        let ports = |first, last| Ports { first, last, low: false };
        type Change<'a> = &'a dyn Fn(&mut PoolSpec);
        let cases: [(Change<'_>, &str); 10] = [
            (&|s| s.addresses.clear(), "a pool needs an address"),
            (
                &|s| s.addresses = vec![range("192.0.2.2", "192.0.2.1")],
                "range 192.0.2.2-192.0.2.1 ends before it begins",
            ),
            (&|s| s.addresses = vec![range("224.0.0.1", "224.0.0.1")], "224.0.0.1 is not a unicast address"),
            (
                &|s| s.addresses.push(range("192.0.2.1", "192.0.2.3")),
                "192.0.2.1 is in two ranges of the pool",
            ),
            (
                &|s| s.addresses = vec![range("192.0.2.0", "192.0.2.255")],
                "the node has room for 8 external addresses at most",
            ),
            (
                &|s| s.addresses = vec![range("10.0.0.0", "10.255.255.255")],
                "the node has room for 65536 external addresses at most",
            ),
            (
                &|s| s.ports = ports(1023, 65535),
                "ports 1023-65535: first is 1024 to 65535, last not below first",
            ),
            (&|s| s.block_size = 96, "block size 96: a power of two, 64 to 4096"),
            (
                &|s| (s.ports, s.block_size) = (ports(1100, 1500), 512),
                "ports 1100-1500 have no whole aligned block of 512",
            ),
            (&|s| s.max_blocks_per_host = 0, "blocks per host: 1 to 65535"),
        ];
        for (change, message) in cases {
            assert_eq!(refused(change), Err(message.to_owned()));
        }
        assert_eq!(refused(&|_| ()), Ok(()));
    }
}
