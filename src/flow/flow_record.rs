//! What survives a node: a session as its peer gets it (DESIGN.md section 2).
//!
//! A [`FlowRecord`] says what cannot be found out again: the first packet, what was bound to it (mappings, a backend) and
//! where it stands. What follows from the config (egress, next hop, the rule) the receiver decides by its own tables. It is
//! plain data of fixed size, so that a worker can hand it to another thread without allocating.
//!
//! Slots in it are the sender's. The receiver puts its own in their place, by name ([`FlowRecord::translate`]).

use super::nat::{Inside, MappingView, Protocol};
use super::proxy::Proxy;
use super::tcp::Tcp;
use super::{Address, FlowTable, Handle, Holdings, Record, Tick, Tuple, flow_flags, record_flags};
use crate::neighbours::addr_key;
use crate::packet::view::protocol;
use crate::tables::NO_INTERFACE;
use crate::tables::bridge::{is_scope, number_of_scope, scope_of_number};

/// Which of both tables of a worker a session is in: NAT64's sessions are in that of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InTable {
    /// IPv4's.
    V4,
    /// IPv6's.
    V6,
}

/// What a session is known by on both nodes: its first packet. Addresses are neutral ([`addr_key`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The table.
    pub table: InTable,
    /// The first packet.
    pub tuple: Tuple<u128>,
}

/// A port of a pool that a session uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Slot of the pool.
    pub pool: u16,
    /// External address.
    pub addr: u32,
    /// External port or query identifier.
    pub port: u16,
    /// VRF slot of the endpoint inside.
    pub inside_vrf: u16,
    /// Its port or query identifier. Its address is in the session.
    pub inside_port: u16,
}

impl Port {
    fn of(view: &MappingView) -> Port {
        let MappingView { pool, addr, port, inside, .. } = *view;
        Port { pool, addr, port, inside_vrf: inside.vrf, inside_port: inside.port }
    }
}

/// Where a session stands with its upper-layer protocol.
#[derive(Clone, Copy, Debug)]
pub enum Upper {
    /// Not TCP; packets of both directions were seen.
    Answered,
    /// A connection.
    Tcp(Tcp),
    /// A connection whose numbers are shifted.
    Proxied(Tcp, Proxy),
}

/// A session as the peer gets it.
#[derive(Clone, Copy, Debug)]
pub struct FlowRecord {
    /// The first packet, as it came in.
    pub name: Name,
    /// Addresses that it left with, source and destination.
    pub new: [u128; 2],
    /// Ports that it left with.
    pub new_ports: [u16; 2],
    /// VRF slot in which replies come in.
    pub reply_vrf: u16,
    /// Interface slot it came in by.
    pub ingress: u16,
    /// DSCP of the first packet.
    pub dscp: u8,
    /// TCP flags or ICMP type of the first packet.
    pub opened_with: u8,
    /// Slot of the rule that allowed it.
    pub rule: u32,
    /// Slot of the NAT rule, 0 = none.
    pub nat_rule: u16,
    /// Zones of both sides.
    pub zones: [u8; 2],
    /// Slot of its backend.
    pub backend: Option<u32>,
    /// Its packets go to the backend as they come, which answers past us.
    pub is_delivery: bool,
    /// The mapping of its source.
    pub mapping: Option<Port>,
    /// The mapping that it came in by.
    pub bound: Option<Port>,
    /// Where it stands.
    pub upper: Upper,
    /// How long ago its last packet came, in ticks ([`Tick`]). A length of time, so that clocks need not agree.
    pub idle: u32,
    /// How long ago it began, in ticks.
    pub age: u32,
}

/// Kinds of slots in a record: each has names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Interfaces.
    Interface = 0,
    /// VRFs.
    Vrf,
    /// Zones: their numbers.
    Zone,
    /// Firewall rules.
    Rule,
    /// NAT rules.
    NatRule,
    /// Pools of outside addresses.
    Pool,
    /// Backends of services.
    Backend,
    /// Bridges: their numbers.
    Bridge,
}

impl Kind {
    /// All, in the order of their numbers.
    pub const ALL: [Kind; 8] = [
        Kind::Interface,
        Kind::Vrf,
        Kind::Zone,
        Kind::Rule,
        Kind::NatRule,
        Kind::Pool,
        Kind::Backend,
        Kind::Bridge,
    ];
}

/// True if a session would be missed: whoever began it and whoever answers have both shown that they want it, and policy
/// still allows it. Left out is what the gateway says itself. Of a session between members of a bridge it is not told where
/// stations are: only by which member it began, and their zones.
pub fn is_replicated<A: Address>(table: &FlowTable<A>, session: u32) -> bool {
    let [flow, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
    let is_own = flow.ingress == NO_INTERFACE;
    if table.flags(session) & record_flags::CONDEMNED != 0 || is_own {
        return false;
    }
    match flow.tuple.protocol {
        protocol::TCP if flow.has(flow_flags::PROXIED) => {
            table.proxy(session).is_open() && table.tcp(session).is_replicated()
        }
        protocol::TCP => table.tcp(session).is_replicated(),
        // A backend that answers past us is found by the hash again.
        _ => reply.has(flow_flags::SEEN),
    }
}

/// What has the place of a VRF's slot, in the slots of `own`: a VRF, or a bridge.
pub fn translate_vrf(vrf: u16, own: impl Fn(Kind, u32) -> Option<u32>) -> Option<u16> {
    match number_of_scope(vrf) {
        Some(number) => scope_of_number(u16::try_from(own(Kind::Bridge, number.into())?).ok()?),
        None => u16::try_from(own(Kind::Vrf, vrf.into())?).ok(),
    }
}

impl Name {
    /// True if it is between members of a bridge.
    pub fn is_bridged(&self) -> bool {
        is_scope(self.tuple.vrf)
    }

    /// Of a session.
    pub fn of<A: Address>(tuple: &Tuple<A>) -> Name {
        let Tuple { src, dst, src_port, dst_port, vrf, protocol, zero: _ } = *tuple;
        let [src, dst] = [src, dst].map(|addr| addr_key(addr.ip()));
        let tuple = Tuple { src, dst, src_port, dst_port, vrf, protocol, zero: 0 };
        Name { table: if A::CROSSES { InTable::V6 } else { InTable::V4 }, tuple }
    }
}

impl FlowRecord {
    /// Of a session in use; `None`: it is none that is replicated.
    pub fn of<A: Address>(
        table: &FlowTable<A>,
        nat: &Holdings,
        session: u32,
        now: Tick,
    ) -> Option<FlowRecord> {
        if !table.is_live(session) || !is_replicated(table, session) {
            return None;
        }
        let [forward, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
        let record = table.record(session);
        let (mapping, bound) = ports_of(&record, nat)?;
        let tcp = record.tcp;
        let upper = match forward.tuple.protocol {
            protocol::TCP if forward.has(flow_flags::PROXIED) => Upper::Proxied(tcp, *table.proxy(session)),
            protocol::TCP => Upper::Tcp(tcp),
            _ => Upper::Answered,
        };
        let since = |then: Tick| now.0.saturating_sub(then.0);
        Some(FlowRecord {
            name: Name::of(&forward.tuple),
            new: [forward.new_src, forward.new_dst].map(|addr| addr_key(addr.ip())),
            new_ports: [forward.new_src_port, forward.new_dst_port],
            reply_vrf: reply.tuple.vrf,
            ingress: forward.ingress,
            dscp: record.dscp,
            opened_with: record.opened_with,
            rule: record.rule,
            nat_rule: record.nat_rule,
            zones: [record.from_zone, record.to_zone],
            backend: record.backend(),
            is_delivery: forward.next_hop.is_delivery(),
            mapping,
            bound,
            upper,
            idle: since(forward.last_seen.max(reply.last_seen)),
            age: since(record.created),
        })
    }

    /// The inside endpoint of the mapping of its source.
    pub fn inside_of_source(&self, port: &Port) -> Inside {
        self.inside(self.name.tuple.src, port)
    }

    /// The inside endpoint of the mapping that it came in by.
    pub fn inside_of_bound(&self, port: &Port) -> Inside {
        self.inside(self.new[1], port)
    }

    fn inside(&self, addr: u128, port: &Port) -> Inside {
        let protocol = Protocol::of(self.name.tuple.protocol);
        Inside { vrf: port.inside_vrf, addr, port: port.inside_port, protocol }
    }

    /// Gives every slot in it to `own`, which says what it is on this node. False: one that it cannot do without is
    /// nothing here. Rule, NAT rule and backend it can: policy is asked again anyway.
    pub fn translate(&mut self, own: impl Fn(Kind, u32) -> Option<u32>) -> bool {
        let small = |kind, slot: &mut u16| {
            let found = own(kind, u32::from(*slot)).and_then(|found| u16::try_from(found).ok());
            found.inspect(|found| *slot = *found).is_some()
        };
        let zone = |slot: &mut u8| {
            let found = own(Kind::Zone, u32::from(*slot)).and_then(|found| u8::try_from(found).ok());
            found.inspect(|found| *slot = *found).is_some()
        };
        let vrf = |slot: &mut u16| translate_vrf(*slot, &own).inspect(|found| *slot = *found).is_some();
        let port = |port: &mut Option<Port>| {
            port.as_mut().is_none_or(|port| {
                small(Kind::Pool, &mut port.pool) && small(Kind::Vrf, &mut port.inside_vrf)
            })
        };
        self.rule = own(Kind::Rule, self.rule).unwrap_or(0);
        let nat_rule = own(Kind::NatRule, self.nat_rule.into());
        self.nat_rule = nat_rule.and_then(|slot| u16::try_from(slot).ok()).unwrap_or(0);
        self.backend = self.backend.and_then(|slot| own(Kind::Backend, slot));
        let [from, to] = &mut self.zones;
        small(Kind::Interface, &mut self.ingress)
            && vrf(&mut self.name.tuple.vrf)
            && vrf(&mut self.reply_vrf)
            && zone(from)
            && zone(to)
            && port(&mut self.mapping)
            && port(&mut self.bound)
    }
}

/// The ports of pools that a session uses: of its source, and the one it came in by. `None`: it has one that cannot be told.
fn ports_of(record: &Record, nat: &Holdings) -> Option<(Option<Port>, Option<Port>)> {
    let own = |name: u32| match name.checked_sub(1) {
        None => Some(None),
        Some(id) => nat.mapping_at(id).map(|view| Some(Port::of(&view))),
    };
    let bound = own(record.bound)?;
    if record.flags & record_flags::BORROWED == 0 {
        return Some((own(record.mapping)?, bound));
    }
    let loan = nat.loans.get(record.mapping.checked_sub(1)?)?;
    let mapping = Port {
        pool: loan.pool,
        addr: loan.mapping.addr,
        port: loan.mapping.port,
        inside_vrf: loan.inside.0,
        inside_port: loan.inside.1,
    };
    Some((Some(mapping), bound))
}
