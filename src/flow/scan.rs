//! What commands ask for and see of sessions and mappings: plain data of fixed size, so that a worker can hand it
//! to another thread without allocating.

use super::nat::MappingView;
use super::{Address, FlowTable, Flows, Handle, Tick, Timers, Tuple, due, flow_flags, tcp};
use crate::neighbours::{addr_key, is_v4_key};
use crate::packet::view::protocol;
use crate::tables::balance;

/// First and last of something; addresses are neutral ([`addr_key`]).
pub type Span<T> = (T, T);

fn within<T: PartialOrd>(span: Option<Span<T>>, values: &[T]) -> bool {
    span.is_none_or(|(first, last)| values.iter().any(|value| first <= *value && *value <= last))
}

/// The same of addresses. A range is of one family: IPv4's neutral addresses lie in ::/0 and are not meant by it.
pub(crate) fn among(span: Option<Span<u128>>, addrs: &[u128]) -> bool {
    span.is_none_or(|(first, last)| {
        let is_v4 = is_v4_key(first) && is_v4_key(last);
        addrs.iter().any(|addr| is_v4_key(*addr) == is_v4 && within(span, &[*addr]))
    })
}

fn is<T: PartialEq>(wanted: Option<T>, values: &[T]) -> bool {
    wanted.is_none_or(|wanted| values.contains(&wanted))
}

/// What is asked of the state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP's.
    Tcp(tcp::State),
    /// Not TCP, packets in both directions.
    Replied,
    /// Not TCP, no reply yet.
    Unreplied,
}

impl State {
    /// As commands print it.
    pub fn name(self) -> &'static str {
        match self {
            State::Tcp(state) => state.name(),
            State::Replied => "replied",
            State::Unreplied => "unreplied",
        }
    }

    /// All.
    pub fn all() -> impl Iterator<Item = State> {
        tcp::State::ALL.into_iter().map(State::Tcp).chain([State::Replied, State::Unreplied])
    }
}

/// Which sessions. What is absent is any; what is there must all be true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Source or destination, before or after translation.
    pub address: Option<Span<u128>>,
    /// Source of the first packet.
    pub src: Option<Span<u128>>,
    /// Destination of the first packet, before or after translation.
    pub dst: Option<Span<u128>>,
    /// An address that translation put in: for source NAT the outside one, for destination NAT the inside one;
    /// or the outside address that destination NAT took away.
    pub nat: Option<Span<u128>>,
    /// Source or destination port, before or after translation.
    pub port: Option<Span<u16>>,
    /// Destination port, before or after translation.
    pub dst_port: Option<Span<u16>>,
    /// Upper-layer protocol.
    pub protocol: Option<u8>,
    /// Zone on either side.
    pub zone: Option<u8>,
    /// Zone it comes from.
    pub from_zone: Option<u8>,
    /// Zone it goes to.
    pub to_zone: Option<u8>,
    /// VRF slot on either side.
    pub vrf: Option<u16>,
    /// Slot of the rule that allowed it.
    pub rule: Option<u32>,
    /// Slot of its NAT rule.
    pub nat_rule: Option<u16>,
    /// Slot of the service that it is balanced by.
    pub service: Option<u16>,
    /// Slots of backends, one of which it goes to.
    pub backends: Option<Backends>,
    /// Its state.
    pub state: Option<State>,
    /// It began at this time or before.
    pub created_until: Option<Tick>,
    /// It began at this time or later.
    pub created_from: Option<Tick>,
    /// Its last packet came at this time or before.
    pub idle_since: Option<Tick>,
}

/// Slots of a few backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backends([u32; Backends::MOST]);

impl Backends {
    /// Most that may be asked for at once: an address that is a backend in so many services.
    pub const MOST: usize = 16;

    /// These; `None`: there are none, or too many.
    pub fn new(slots: &[u32]) -> Option<Backends> {
        let (first, is_few) = (slots.first()?, slots.len() <= Backends::MOST);
        let at = |place: usize| *slots.get(place).unwrap_or(first);
        is_few.then(|| Backends(std::array::from_fn(at)))
    }
}

/// A session, as commands see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Its state.
    pub state: State,
    /// Source of the first packet, IPv4 mapped like all addresses here.
    pub src: u128,
    /// Its destination.
    pub dst: u128,
    /// Source it left with.
    pub new_src: u128,
    /// Destination it left with.
    pub new_dst: u128,
    /// Ports, in the same order: source, destination, and those it left with.
    pub ports: [u16; 4],
    /// VRF slots of both sides.
    pub vrfs: [u16; 2],
    /// Zones of both sides.
    pub zones: [u8; 2],
    /// Slot of the rule.
    pub rule: u32,
    /// It goes on in spite of that rule, because a commit has said so.
    pub kept: bool,
    /// Slot of the NAT rule, 0 = none.
    pub nat_rule: u16,
    /// Slots of its backend, and of the service that has or had that.
    pub backend: Option<(u32, Option<u16>)>,
    /// When it began.
    pub created: Tick,
    /// When its last packet came.
    pub last_seen: Tick,
    /// When its time is over.
    pub due: Tick,
    /// Packets there and back.
    pub packets: [u64; 2],
    /// Bytes there and back.
    pub bytes: [u64; 2],
}

impl SessionView {
    /// A session in use.
    pub fn of<A: Address>(
        table: &FlowTable<A>,
        session: u32,
        timers: &Timers,
        backends: &balance::Backends,
    ) -> SessionView {
        let (forward, reply) = (table.flow(Handle::new(session, 0)), table.flow(Handle::new(session, 1)));
        let record = table.record(session);
        debug_assert!(table.is_live(session), "only sessions in use are shown");
        let tuple = &forward.tuple;
        let key = |addr: A| addr_key(addr.ip());
        SessionView {
            protocol: tuple.protocol,
            state: match (tuple.protocol, reply.has(flow_flags::SEEN)) {
                (protocol::TCP, _) => State::Tcp(record.tcp.state()),
                (_, true) => State::Replied,
                (_, false) => State::Unreplied,
            },
            src: key(tuple.src),
            dst: key(tuple.dst),
            new_src: key(forward.new_src),
            new_dst: key(forward.new_dst),
            ports: [tuple.src_port, tuple.dst_port, forward.new_src_port, forward.new_dst_port],
            vrfs: [tuple.vrf, reply.tuple.vrf],
            zones: [record.from_zone, record.to_zone],
            rule: record.rule,
            kept: forward.has(flow_flags::KEPT),
            nat_rule: record.nat_rule,
            backend: record.backend().map(|slot| (slot, backends.state(slot).service)),
            created: record.created,
            last_seen: forward.last_seen.max(reply.last_seen),
            due: due(table, session, timers),
            packets: [forward.packets(), reply.packets()],
            bytes: [forward.bytes, reply.bytes],
        }
    }
}

impl Filter {
    /// True if it asks for nothing in particular.
    pub fn is_any(&self) -> bool {
        *self == Filter::default()
    }

    /// True if the session is meant.
    pub fn is(&self, view: &SessionView) -> bool {
        let [src_port, dst_port, new_src_port, new_dst_port] = view.ports;
        let translated = |old: u128, new: u128| (old != new).then_some(new);
        let nat = [
            translated(view.src, view.new_src),
            translated(view.dst, view.new_dst),
            translated(view.new_dst, view.dst),
        ];
        is(self.protocol, &[view.protocol])
            && is(self.rule, &[view.rule])
            && is(self.nat_rule, &[view.nat_rule])
            && self.service.is_none_or(|wanted| view.backend.is_some_and(|(_, of)| of == Some(wanted)))
            && self
                .backends
                .is_none_or(|Backends(wanted)| view.backend.is_some_and(|(at, _)| wanted.contains(&at)))
            && is(self.from_zone, &[view.zones[0]])
            && is(self.to_zone, &[view.zones[1]])
            && is(self.zone, &view.zones)
            && is(self.vrf, &view.vrfs)
            && is(self.state, &[view.state])
            && among(self.address, &[view.src, view.dst, view.new_src, view.new_dst])
            && among(self.src, &[view.src])
            && among(self.dst, &[view.dst, view.new_dst])
            && self.nat.is_none_or(|span| nat.into_iter().flatten().any(|addr| among(Some(span), &[addr])))
            && within(self.port, &[src_port, dst_port, new_src_port, new_dst_port])
            && within(self.dst_port, &[dst_port, new_dst_port])
            && self.created_until.is_none_or(|until| view.created <= until)
            && self.created_from.is_none_or(|from| view.created >= from)
            && self.idle_since.is_none_or(|since| view.last_seen <= since)
    }
}

/// A packet whose session and mapping are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// VRF slot of its ingress.
    pub vrf: u16,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// Source, in key form.
    pub src: u128,
    /// Destination, in key form.
    pub dst: u128,
    /// Its ports; of an ICMP query its identifier, twice.
    pub ports: (u16, u16),
    /// The outside VRF slot, address and port that it may have a mapping by.
    pub mapped: Option<(u16, u32, u16)>,
}

impl Sought {
    /// The session that it is of.
    pub fn session(
        &self,
        flows: &Flows,
        timers: &Timers,
        backends: &balance::Backends,
    ) -> Option<SessionView> {
        let Sought { vrf, protocol, src, dst, ports: (src_port, dst_port), mapped: _ } = *self;
        let zero = 0;
        if is_v4_key(src) && is_v4_key(dst) {
            let (src, dst) = (src as u32, dst as u32);
            let handle = flows.v4.find(&Tuple { src, dst, src_port, dst_port, vrf, protocol, zero });
            if handle.is_some() {
                return Some(SessionView::of(&flows.v4, handle.session(), timers, backends));
            }
        }
        let handle = flows.v6.find(&Tuple { src, dst, src_port, dst_port, vrf, protocol, zero });
        handle.is_some().then(|| SessionView::of(&flows.v6, handle.session(), timers, backends))
    }

    /// The mapping that it answers to.
    pub fn mapping(&self, flows: &Flows) -> Option<MappingView> {
        let (vrf, addr, port) = self.mapped?;
        flows.nat.find_external(vrf, super::nat::Protocol::of(self.protocol), addr, port)
    }
}

/// Which mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingFilter {
    /// Inside address.
    pub inside: Option<Span<u128>>,
    /// Outside address.
    pub outside: Option<Span<u128>>,
    /// Inside or outside port.
    pub port: Option<Span<u16>>,
    /// Upper-layer protocol of its sessions, as NAT tells them apart.
    pub protocol: Option<super::nat::Protocol>,
    /// VRF slot on either side.
    pub vrf: Option<u16>,
    /// Those in hold-down, or those in use.
    pub held: Option<bool>,
}

impl MappingFilter {
    /// True if the mapping is meant.
    pub fn is(&self, view: &MappingView) -> bool {
        among(self.inside, &[view.inside.addr])
            && among(self.outside, &[crate::neighbours::v4_key(view.addr)])
            && within(self.port, &[view.inside.port, view.port])
            && is(self.protocol, &[view.inside.protocol])
            && is(self.vrf, &[view.inside.vrf, view.outside_vrf])
            && is(self.held, &[view.sessions == 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_one_family_has_no_address_of_the_other() {
        let (v4, v6) = (v4_key(0x0a00_0105), 0x2001_0db8_u128 << 96 | 5);
        let all_v4 = Some((v4_key(0), v4_key(u32::MAX)));
        assert!(among(Some((0, u128::MAX)), &[v6]) && !among(Some((0, u128::MAX)), &[v4]));
        assert!(among(all_v4, &[v4]) && !among(all_v4, &[v6]));
        assert!(among(Some((0, u128::MAX)), &[v4, v6]) && among(None, &[v4]));
        assert!(!among(Some((0, v4_key(5))), &[v4_key(3)]));
    }

    use crate::neighbours::v4_key;

    fn view() -> SessionView {
        SessionView {
            protocol: protocol::TCP,
            state: State::Tcp(tcp::State::Established),
            src: v4_key(0x0a00_0105),
            dst: v4_key(0xcb00_7101),
            new_src: v4_key(0xc633_6401),
            new_dst: v4_key(0xcb00_7101),
            ports: [40_000, 443, 5000, 443],
            vrfs: [1, 0],
            zones: [3, 4],
            rule: 7,
            kept: false,
            nat_rule: 2,
            backend: Some((9, Some(4))),
            created: Tick(100),
            last_seen: Tick(200),
            due: Tick(300),
            packets: [1, 2],
            bytes: [3, 4],
        }
    }

    #[test]
    fn each_part_of_a_filter_counts() {
        let some = Filter::default();
        let addr = |first: u32, last: u32| Some((v4_key(first), v4_key(last)));
        let (inside, outside, server) =
            (addr(0x0a00_0100, 0x0a00_01ff), addr(0xc633_6401, 0xc633_6401), addr(0xcb00_7101, 0xcb00_7101));
        let yes = [
            some,
            Filter { address: inside, ..some },
            Filter { address: outside, ..some },
            Filter { address: server, ..some },
            Filter { src: inside, dst: server, nat: outside, ..some },
            Filter { port: Some((5000, 5000)), dst_port: Some((400, 500)), ..some },
            Filter { port: Some((40_000, 40_000)), protocol: Some(protocol::TCP), ..some },
            Filter { zone: Some(3), ..some },
            Filter { zone: Some(4), from_zone: Some(3), to_zone: Some(4), ..some },
            Filter { vrf: Some(0), rule: Some(7), nat_rule: Some(2), ..some },
            Filter { vrf: Some(1), state: Some(State::Tcp(tcp::State::Established)), ..some },
            Filter { service: Some(4), backends: Backends::new(&[8, 9]), ..some },
            Filter { created_until: Some(Tick(100)), created_from: Some(Tick(100)), ..some },
            Filter { idle_since: Some(Tick(200)), ..some },
        ];
        for filter in yes {
            assert!(filter.is(&view()), "{filter:?}");
        }
        let no = [
            Filter { address: addr(0x0a00_0200, 0x0a00_02ff), ..some },
            Filter { address: Some((0x0a00_0105, 0x0a00_0105)), ..some }, // IPv6 ::a00:105
            Filter { src: outside, ..some },
            Filter { dst: inside, ..some },
            Filter { nat: inside, ..some },
            Filter { nat: server, ..some },
            Filter { port: Some((1, 442)), ..some },
            Filter { dst_port: Some((5000, 5000)), ..some },
            Filter { protocol: Some(protocol::UDP), ..some },
            Filter { zone: Some(5), ..some },
            Filter { from_zone: Some(4), ..some },
            Filter { to_zone: Some(3), ..some },
            Filter { vrf: Some(2), ..some },
            Filter { rule: Some(6), ..some },
            Filter { nat_rule: Some(0), ..some },
            Filter { service: Some(9), ..some },
            Filter { backends: Backends::new(&[4, 8]), ..some },
            Filter { state: Some(State::Replied), ..some },
            Filter { created_until: Some(Tick(99)), ..some },
            Filter { created_from: Some(Tick(101)), ..some },
            Filter { idle_since: Some(Tick(199)), ..some },
        ];
        for filter in no {
            assert!(!filter.is(&view()), "{filter:?}");
        }
        // One that is balanced by none.
        let plain = SessionView { backend: None, ..view() };
        assert!(some.is(&plain) && !Filter { service: Some(4), ..some }.is(&plain));
        assert_eq!((Backends::new(&[]), Backends::new(&[1; Backends::MOST + 1])), (None, None));
    }
}
