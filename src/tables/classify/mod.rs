//! The classifier: which rule of an ordered list matches a packet first.
//!
//! Tuple space search with merged tuples (after TupleMerge, ToN 2019). Rules are spread over a few
//! tables. A table's mask says how much it hashes of the addresses, ports, protocol and named groups, and
//! all rules in it say at least that much. A lookup asks for one cache line of tags per table, then
//! compares the few rules of equal hash in full. Tables are in order of their first rule, so that a match
//! ends the lookup where no later table can better it. IPv4 and IPv6 have tables of their own, from one code.
//!
//! Rules are numbered for ever, and one array tells where each number stands in the list. So a rule put
//! into the middle moves nothing but entries of that array, and rebuilds one segment of one table; all
//! other segments are shared with the classifier before the change.

mod plan;
mod record;
mod space;
mod table;
#[cfg(test)]
mod tests;

use ipnet::IpNet;

use crate::packet::hash;
use record::{Packet, Record};
use space::Space;

/// An address prefix. IPv4 addresses are mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so that an
/// IPv4 prefix has 96 bits or more; [`Prefix::ANY`] is every address of both families, and any other
/// prefix below 96 bits, `::/0` among them, is IPv6's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    addr: u128,
    len: u8,
    /// Only of [`Prefix::ANY`].
    any: bool,
}

/// A prefix length beyond 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prefix length is 0 to 128, not {0}")]
pub struct BadPrefix(pub u8);

/// The first port is above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ports {0}-{1}: the first is above the last")]
pub struct BadPorts(pub u16, pub u16);

/// The upper 96 bits of a mapped IPv4 address.
const MAPPED: u128 = 0xffff;

fn is_v4(addr: u128) -> bool {
    addr >> 32 == MAPPED
}

impl Prefix {
    /// Every address of both families.
    pub const ANY: Prefix = Prefix { addr: 0, len: 0, any: true };

    /// A prefix of a neutral address, IPv6 if it is shorter than 96 bits; bits beyond the length do not count.
    pub fn new(addr: u128, len: u8) -> Result<Prefix, BadPrefix> {
        if len > 128 {
            return Err(BadPrefix(len));
        }
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Ok(Prefix { addr: addr & mask, len, any: false })
    }

    /// First address.
    pub fn addr(&self) -> u128 {
        self.addr
    }

    /// Length in bits of the neutral address.
    #[expect(clippy::len_without_is_empty, reason = "a length, not a count")]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// True if it has addresses of this family.
    fn is_of(&self, v4: bool) -> bool {
        self.any || v4 == (self.len >= 96 && is_v4(self.addr))
    }

    /// True if all of `other`'s bits agree with it.
    fn covers(&self, other: &Prefix) -> bool {
        let differing = (self.addr ^ other.addr).checked_shr(128 - u32::from(self.len)).unwrap_or(0);
        self.len <= other.len && differing == 0
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Prefix {
        let (addr, len) = match net.trunc() {
            IpNet::V4(net) => (net.addr().to_ipv6_mapped(), net.prefix_len() + 96),
            IpNet::V6(net) => (net.addr(), net.prefix_len()),
        };
        Prefix { addr: addr.into(), len, any: false }
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Every port.
    pub const ANY: Ports = Ports { first: 0, last: u16::MAX };

    /// From the first to the last port.
    pub fn new(first: u16, last: u16) -> Result<Ports, BadPorts> {
        if first > last { Err(BadPorts(first, last)) } else { Ok(Ports { first, last }) }
    }

    /// One port.
    pub fn one(port: u16) -> Ports {
        Ports { first: port, last: port }
    }

    /// The first port.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The last port.
    pub fn last(&self) -> u16 {
        self.last
    }

    fn covers(&self, other: &Ports) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

/// What a rule matches on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Match {
    /// Source addresses.
    pub src: Prefix,
    /// Destination addresses.
    pub dst: Prefix,
    /// Source ports.
    pub src_ports: Ports,
    /// Destination ports.
    pub dst_ports: Ports,
    /// IP protocol; `None` = any.
    pub protocol: Option<u8>,
    /// Named group that the source has to be in.
    pub src_set: Option<u16>,
    /// Named group that the destination has to be in.
    pub dst_set: Option<u16>,
}

impl Match {
    /// Matches every packet.
    pub const ANY: Match = Match {
        src: Prefix::ANY,
        dst: Prefix::ANY,
        src_ports: Ports::ANY,
        dst_ports: Ports::ANY,
        protocol: None,
        src_set: None,
        dst_set: None,
    };

    /// True if it matches packets of this family at all.
    fn is_of(&self, v4: bool) -> bool {
        self.src.is_of(v4) && self.dst.is_of(v4)
    }

    /// The definition of a match, which the classifier has to agree with.
    pub fn matches(&self, key: &Key<'_>) -> bool {
        let host = |addr| Prefix { addr, len: 128, any: false };
        self.is_of(key.is_v4())
            && self.src.covers(&host(key.src))
            && self.dst.covers(&host(key.dst))
            && self.src_ports.covers(&Ports::one(key.src_port))
            && self.dst_ports.covers(&Ports::one(key.dst_port))
            && self.protocol.is_none_or(|protocol| protocol == key.protocol)
            && self.src_set.is_none_or(|set| key.src_sets.contains(&set))
            && self.dst_set.is_none_or(|set| key.dst_sets.contains(&set))
    }

    /// True if it matches every packet that `other` matches, as far as that can be told without looking
    /// into the named groups.
    pub fn covers(&self, other: &Match) -> bool {
        [true, false].iter().all(|v4| self.is_of(*v4) || !other.is_of(*v4))
            && self.src.covers(&other.src)
            && self.dst.covers(&other.dst)
            && self.src_ports.covers(&other.src_ports)
            && self.dst_ports.covers(&other.dst_ports)
            && (self.protocol.is_none() || self.protocol == other.protocol)
            && (self.src_set.is_none() || self.src_set == other.src_set)
            && (self.dst_set.is_none() || self.dst_set == other.dst_set)
    }
}

/// What is looked up: a packet's headers, and the named groups its addresses are in.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// Source address, mapped if IPv4.
    pub src: u128,
    /// Destination address, mapped if IPv4.
    pub dst: u128,
    /// Source port; 0 if there is none.
    pub src_port: u16,
    /// Destination port; 0 if there is none.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Named groups that the source is in.
    pub src_sets: &'a [u16],
    /// Named groups that the destination is in.
    pub dst_sets: &'a [u16],
}

impl Key<'_> {
    #[inline(always)]
    fn is_v4(&self) -> bool {
        is_v4(self.src) && is_v4(self.dst)
    }
}

/// A change of the list of rules. Positions are those after all earlier changes of the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A rule comes in before the one at this position, or at the end.
    Insert(u32, Match),
    /// The rule at this position goes.
    Remove(u32),
    /// The rule at this position becomes another.
    Replace(u32, Match),
}

/// The position of a number that no rule has.
const NOWHERE: u32 = u32::MAX;

/// A share of the rules, one in so many, beyond which changing them is a full build.
const PATCH_RATIO: usize = 64;

/// An ordered list of rules; immutable once built.
#[derive(Clone)]
pub struct Classifier {
    v4: Space<u32>,
    v6: Space<u128>,
    /// Position by number of the rule.
    place: Vec<u32>,
    /// Numbers that no rule has.
    free: Vec<u32>,
    rules: usize,
    key: hash::Key,
}

impl Classifier {
    /// Compiles rules, the first first. Senders of packets must not know the key.
    pub fn compile(rules: impl IntoIterator<Item = Match>, key: hash::Key) -> Classifier {
        let (mut v4, mut v6, mut count) = (Vec::new(), Vec::new(), 0);
        for rule in rules {
            if rule.is_of(true) {
                v4.push(Record::new(count, &rule));
            }
            if rule.is_of(false) {
                v6.push(Record::new(count, &rule));
            }
            count += 1;
        }
        let place: Vec<u32> = (0..count).collect();
        Classifier {
            v4: Space::new(key, v4, &place),
            v6: Space::new(key, v6, &place),
            rules: place.len(),
            place,
            free: Vec::new(),
            key,
        }
    }

    /// The position of the first rule that matches and that `accept` takes. `accept` is asked about
    /// positions of matching rules, in no order, and not about all of them; it looks at what is not
    /// hashed (DSCP, TCP flags, interface), or starts a second look behind the first.
    #[inline]
    pub fn find(&self, key: &Key<'_>, accept: impl Fn(u32) -> bool) -> Option<u32> {
        let found = if key.is_v4() {
            self.v4.find(&Packet::of(key), &self.place, &accept)
        } else {
            self.v6.find(&Packet::of(key), &self.place, &accept)
        };
        (found != NOWHERE).then_some(found)
    }

    /// The classifier after `changes`, in their order. Panics at a position that does not exist.
    pub fn with(&self, changes: &[Change]) -> Classifier {
        let mut new = self.clone();
        let (mut gone, mut come) = (Vec::new(), Vec::<(u32, Match)>::new());
        for change in changes {
            match *change {
                Change::Insert(at, rule) => come.push((new.number_at(at), rule)),
                Change::Remove(at) => gone.push(new.take(at)),
                Change::Replace(at, rule) => {
                    gone.push(new.take(at));
                    come.push((new.number_at(at), rule));
                }
            }
        }
        come.retain(|(id, _)| new.place[*id as usize] != NOWHERE);
        gone.sort_unstable();
        let is_gone = |id: u32| gone.binary_search(&id).is_ok();
        if !gone.is_empty() {
            new.v4.remove(is_gone, &new.place);
            new.v6.remove(is_gone, &new.place);
        }
        let bulk = come.len() > 16 + new.rules / PATCH_RATIO;
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (id, rule) in &come {
            if rule.is_of(true) {
                v4.push(Record::new(*id, rule));
            }
            if rule.is_of(false) {
                v6.push(Record::new(*id, rule));
            }
        }
        new.v4.extend(new.key, v4, &new.place, bulk);
        new.v6.extend(new.key, v6, &new.place, bulk);
        // Only now: a number that was given again above would have been taken out again.
        new.free.extend(gone);
        new
    }

    /// Makes room at a position; returns the number of the rule that will stand there.
    fn number_at(&mut self, at: u32) -> u32 {
        assert!(at as usize <= self.rules, "position {at} of {} rules", self.rules);
        for place in &mut self.place {
            *place += u32::from(*place >= at && *place != NOWHERE);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.place.push(NOWHERE);
            (self.place.len() - 1) as u32
        });
        self.place[id as usize] = at;
        self.rules += 1;
        id
    }

    /// Takes the rule at a position out of the order; returns its number.
    fn take(&mut self, at: u32) -> u32 {
        let id = self.place.iter().position(|place| *place == at).expect("a rule at this position");
        self.place[id] = NOWHERE;
        for place in &mut self.place {
            *place -= u32::from(*place > at && *place != NOWHERE);
        }
        self.rules -= 1;
        id as u32
    }

    /// How many rules there are.
    pub fn rules(&self) -> usize {
        self.rules
    }

    /// How many tuple tables IPv4 and IPv6 have: what a lookup costs.
    pub fn tables(&self) -> (usize, usize) {
        (self.v4.tables(), self.v6.tables())
    }

    /// Memory held, shared with other classifiers or not.
    pub fn memory_bytes(&self) -> usize {
        self.v4.memory_bytes()
            + self.v6.memory_bytes()
            + (self.place.capacity() + self.free.capacity()) * size_of::<u32>()
    }
}

/// Rules that can never match because one earlier rule covers them, each with the first that does.
pub fn shadowed(rules: &[Match]) -> Vec<(u32, u32)> {
    let classifier = Classifier::compile(rules.iter().copied(), hash::Key::default());
    let mut shadowed = Vec::new();
    for (rule, position) in rules.iter().zip(0..) {
        if !rule.is_of(true) && !rule.is_of(false) {
            continue; // From one family to the other: never matches, and no rule is to blame.
        }
        // Whoever covers a rule matches, of all the packets that the rule matches, the lowest.
        let corner = Key {
            src: if rule.is_of(false) { rule.src.addr } else { rule.src.addr | MAPPED << 32 },
            dst: if rule.is_of(false) { rule.dst.addr } else { rule.dst.addr | MAPPED << 32 },
            src_port: rule.src_ports.first,
            dst_port: rule.dst_ports.first,
            protocol: rule.protocol.unwrap_or(0),
            src_sets: rule.src_set.as_slice(),
            dst_sets: rule.dst_set.as_slice(),
        };
        let earlier = |by: u32| by < position && rules[by as usize].covers(rule);
        shadowed.extend(classifier.find(&corner, earlier).map(|by| (position, by)));
    }
    shadowed
}
