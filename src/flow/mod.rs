//! Sessions: what a worker remembers of the flows it has decided.
//!
//! ```text
//! key      what a flow is found by
//! index    from a hash to the flow
//! table    sessions and their two flows
//! session  what a session is made of
//! wheel    when a session's time is over
//! pressure who makes room for whom, and what counts as half open
//! half_open   how many connections open to each destination
//! tcp      the connection tracker
//! backend  which flows show that a backend does not answer
//! changes  what the peer may have to know of a turn
//! digest   what both nodes must have alike, as sums
//! cookie, proxy   connections whose client has to prove itself first
//! nat      mappings of inside endpoints to external ports
//! fragments   datagrams of which fragments are under way
//! identification   new ones for datagrams that get another source
//! flow_record what survives a node: a session as its peer gets it
//! directory   which of several workers has a flow
//! steering    whose a flow is that nobody has
//! scan     what commands ask for and see of a session
//! standing what policy is asked about again after a change
//! ```
//!
//! Everything here belongs to one worker. What workers share (the claims of port blocks, the directory) are tables of
//! atomic words.

pub mod backend;
pub mod changes;
pub mod cookie;
pub mod counted;
pub mod digest;
pub mod directory;
pub mod flow_record;
pub mod fragments;
pub mod half_open;
pub mod identification;
pub mod index;
pub mod key;
mod memory;
pub mod nat;
pub mod pressure;
pub mod proxy;
pub mod scan;
pub mod session;
pub mod standing;
pub mod steering;
pub mod table;
pub mod tcp;
mod wheel;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;

pub use crate::packet::Handle;
pub use key::{Address, Tuple};
pub use memory::TooLarge;
pub use session::{Class, Flow, NextHop, Record, Settled, Tick, flow_flags, record_flags};
pub use table::{FlowTable, Full};

use crate::mem::{BURST, Frame, MemoryError};
use crate::neighbours::addr_key;
use crate::packet::Ingress;
use crate::packet::hash::{self, Key};
use crate::packet::view::protocol;
use crate::telemetry::events::{SessionEvent, SessionRecord};
use crate::telemetry::{WorkerCounters, add};
use crate::time::Nanos;
use changes::{Changes, Gone};
use counted::Counted;
use fragments::Fragments;
use half_open::HalfOpen;
use identification::Identifications;
use nat::{Bindings, BlockClaims, Inside, Limits, Mapping, Outside, Owner, Pool, Refused};
use pressure::Strangers;
use steering::{Loan, Loans, Request, Steering};

/// Sessions looked at per turn because their time may be over: 64 cost less than a burst.
const EXPIRY_BUDGET: usize = 64;
/// Time between two looks at mappings for ports past their hold-down.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// Sweeps that look at every page of mappings once: within a minute.
const SWEEPS: u32 = 600;

/// Of a sweep, pages looked at in a turn at most, and ports beyond which no other page is looked at: what is left has
/// time until the next turn. As many ports as a burst can take.
const PAGES_A_TURN: u32 = 64;
const PORTS_A_TURN: u32 = BURST as u32;
/// Sessions that end at a time: as many cache misses under way as a core has room for.
const EXPIRY_STEP: usize = 8;

/// Idle times of sessions, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// TCP's.
    pub tcp: tcp::TcpTimers,
    /// UDP with packets in both directions. RFC 4787 REQ-5: 5 minutes or more.
    pub udp_s: u32,
    /// UDP without a reply yet.
    pub udp_unreplied_s: u32,
    /// ICMP queries. RFC 5508 REQ-2: 60 seconds or more.
    pub icmp_s: u32,
    /// Everything else.
    pub other_s: u32,
}

/// Sessions of one worker.
#[derive(Debug)]
pub struct Flows {
    /// IPv4.
    pub v4: FlowTable<u32>,
    /// IPv6.
    pub v6: FlowTable<u128>,
    /// Source NAT.
    pub nat: Holdings,
    /// Datagrams in fragments.
    pub fragments: Fragments<Held>,
    /// For datagrams that leave with another source.
    pub identifications: Identifications,
    /// What it does in a turn for those who may not exist.
    pub strangers: Strangers,
    /// When mappings are looked at next.
    sweep_due: Nanos,
    /// Pages that the sweep under way has not come to.
    sweep_left: u32,
    claims: Arc<BlockClaims>,
    owner: Owner,
    /// Where random ports come from: a counter under the written-down hash, so that a replay repeats itself.
    random: u64,
    key: Key,
}

/// A fragment that waits for the first of its datagram: as any packet that waits, it starts again at the first stage.
#[derive(Debug)]
pub struct Held {
    /// The packet.
    pub frame: Frame,
    /// Where it had come from.
    pub ingress: Ingress,
}

/// What sessions hold besides their place in a table.
#[derive(Debug)]
pub struct Holdings {
    /// Source NAT.
    bindings: Bindings,
    /// Sessions by VRF slot and host (IPv6: /64) that began them, as far as there is a limit.
    hosts: Counted,
    /// Sessions by mapping and remote address, as far as only these may answer to it.
    peers: Counted,
    /// With other workers: whose flows are whose.
    pub steering: Option<Steering>,
    /// Mappings of other workers.
    pub loans: Loans,
    /// Connections that open, by destination: the node's. `None`: nobody asks.
    pub half_open: Option<Arc<HalfOpen>>,
    /// Sessions that ended and that the peer was told of: a turn's.
    pub gone: Changes<Gone>,
    /// For the log. The worker takes them in every turn, which opens and ends a few hundred sessions at most.
    pub session_events: Vec<SessionRecord>,
}

impl Deref for Holdings {
    type Target = Bindings;
    fn deref(&self) -> &Bindings {
        &self.bindings
    }
}

impl DerefMut for Holdings {
    fn deref_mut(&mut self) -> &mut Bindings {
        &mut self.bindings
    }
}

impl Holdings {
    fn new(sessions: u32, key: Key, steering: Option<Steering>) -> Result<Holdings, MemoryError> {
        let capacity = nat::Capacity::for_mappings(sessions as usize);
        Ok(Holdings {
            bindings: Bindings::new(capacity, Limits::default(), key)?,
            hosts: Counted::new(sessions, key)?,
            peers: Counted::new(sessions, key)?,
            steering,
            loans: Loans::default(),
            half_open: None,
            gone: Changes::default(),
            session_events: Vec::new(),
        })
    }

    /// Sessions that a host has begun, as far as they were counted.
    pub fn sessions_of(&self, vrf: u16, src: IpAddr) -> u32 {
        self.hosts.count(nat::host_of(addr_key(src)), vrf.into())
    }

    /// Counts one more session of a host. False: no room.
    #[must_use]
    pub fn count_host(&mut self, vrf: u16, src: IpAddr) -> bool {
        self.hosts.add(nat::host_of(addr_key(src)), vrf.into())
    }

    /// True if something was sent from the mapping to the address.
    pub fn knows_peer(&self, mapping: u32, remote: IpAddr) -> bool {
        self.peers.count(addr_key(remote), mapping) > 0
    }

    /// Notes that something was sent from the mapping to the address. False: no room.
    #[must_use]
    pub fn count_peer(&mut self, mapping: u32, remote: IpAddr) -> bool {
        self.peers.add(addr_key(remote), mapping)
    }

    /// Gives back what a session holds. `flow` is its first packet's direction.
    fn give_back<A: Address>(&mut self, record: &Record, flow: &Flow<A>, reply_vrf: u16, now: Nanos) {
        record.mappings().for_each(|mapping| self.bindings.release(mapping, now));
        if record.flags & record_flags::BORROWED != 0 {
            self.loans.end(record.mapping - 1);
        }
        let Flow { tuple, new_dst, .. } = flow;
        if record.flags & record_flags::HALF_OPEN_COUNTED != 0
            && let Some(half_open) = &self.half_open
        {
            half_open.remove(new_dst.ip(), reply_vrf);
        }
        if record.flags & record_flags::HOST_COUNTED != 0 {
            let (vrf, host) = if record.bound == 0 { (tuple.vrf, tuple.src) } else { (reply_vrf, *new_dst) };
            self.hosts.remove(nat::host_of(addr_key(host.ip())), vrf.into());
        }
        if record.flags & record_flags::PEER_COUNTED != 0
            && let Some(mapping) = record.mapping.checked_sub(1)
        {
            self.peers.remove(addr_key(new_dst.ip()), mapping);
        }
    }

    /// A session with these tuples is in `table` no more: nor do other workers find it here.
    fn leave<A: Address>(&self, tuples: [Tuple<A>; 2], table: &FlowTable<A>) {
        if let Some(steering) = &self.steering {
            steering.release(tuples.each_ref(), table);
        }
    }
}

/// How many sessions a worker has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Sessions of each family.
    pub sessions: u32,
    /// Takes all memory at once, so that no packet waits for a page.
    pub populate: bool,
}

impl Capacity {
    /// For a worker that keeps no sessions: tables that take little.
    pub const NONE: Capacity = Capacity { sessions: 1024, populate: false };

    /// What each of `workers` gets of a node's `sessions`. Flows are spread by hash: a quarter more keeps the
    /// fullest worker from being full before the node is.
    pub fn of(sessions: u32, workers: usize, populate: bool) -> Capacity {
        let share = sessions.div_ceil(workers.max(1) as u32);
        let sessions = if workers > 1 { share + share / 4 } else { share };
        Capacity { sessions: sessions.max(64), populate }
    }
}

impl Flows {
    /// The sessions of worker `id`.
    pub fn new(
        id: usize,
        capacity: Capacity,
        claims: Arc<BlockClaims>,
        steering: Option<Steering>,
        key: Key,
    ) -> Result<Flows, MemoryError> {
        let Capacity { sessions, populate } = capacity;
        let (me, all) =
            steering.as_ref().map_or((0, 1), |steering| (steering.me(), steering.workers().into()));
        Ok(Flows {
            v4: FlowTable::new(sessions, key, populate)?,
            v6: FlowTable::new(sessions, key, populate)?,
            nat: Holdings::new(sessions, key, steering)?,
            fragments: Fragments::new(key)?,
            identifications: Identifications::new(key, me, all),
            strangers: Strangers::default(),
            sweep_due: Nanos(0),
            sweep_left: 0,
            claims,
            owner: Owner::new(id as u16).unwrap_or_else(|| unreachable!("a node has at most 256 workers")),
            random: 0,
            key,
        })
    }

    /// Fetches what [`Flows::map`] will read for endpoints: in three steps, each of which reads what the one before has
    /// fetched, so that they wait together.
    pub fn look_ahead(&self, insides: &[Inside]) {
        let hashes: ArrayVec<u64, BURST> =
            insides.iter().take(BURST).map(|inside| self.nat.prefetch_inside(inside)).collect();
        let hosts: ArrayVec<Option<u32>, BURST> =
            hashes.iter().map(|hash| self.nat.prefetch_host(*hash)).collect();
        for (inside, host) in insides.iter().zip(hosts) {
            host.inspect(|host| self.nat.prefetch_page(*host, inside));
        }
    }

    /// The mapping of an inside endpoint in `pool`, for one more session. `is_alone`: no other node of a pair is heard.
    pub fn map(
        &mut self,
        (pool, is_alone): (&Pool, bool),
        inside: Inside,
        now: Nanos,
    ) -> Result<Mapping, Refused> {
        self.random = self.random.wrapping_add(1);
        let random = hash::address(self.key, u128::from(self.random), self.owner.number().into());
        let outside = Outside { pool, claims: &self.claims, owner: self.owner, is_alone };
        self.nat.map(outside, inside, now, random)
    }

    /// The mapping that the peer has given an inside endpoint, for one more session.
    pub fn restore(
        &mut self,
        pool: &Pool,
        inside: Inside,
        at: (u32, u16),
        now: Nanos,
    ) -> Result<u32, nat::NotRestored> {
        let outside = Outside { pool, claims: &self.claims, owner: self.owner, is_alone: false };
        self.nat.restore(outside, inside, at, now)
    }

    /// A mapping that a session of another worker has, which `peer` may answer to.
    pub fn loan_of(&mut self, id: u32, port: &flow_record::Port, peer: Option<IpAddr>) -> Loan {
        let peer = peer.filter(|peer| self.nat.count_peer(id, *peer));
        let mapping = Mapping { id, addr: port.addr, port: port.port };
        let inside = (port.inside_vrf, port.inside_port);
        Loan { lender: self.owner.number() as u8, pool: port.pool, inside, mapping, peer }
    }

    /// The inside endpoint that has the external port, and the number of its mapping.
    pub fn mapped(&self, vrf: u16, addr: Ipv4Addr, upper: u8, port: u16) -> Option<(Inside, u32)> {
        let view = self.nat.find_external(vrf, nat::Protocol::of(upper), addr.into(), port)?;
        Some((view.inside, view.id))
    }

    /// The worker that answers for a port of a NAT address, if any does.
    pub fn owner_of(&self, vrf: u16, addr: Ipv4Addr, port: u16) -> Option<u8> {
        self.claims.owner_of(vrf, addr.into(), port).map(|owner| owner.number() as u8)
    }

    /// Maps an endpoint for a session of another worker.
    pub fn lend(
        &mut self,
        (pool, is_alone): (&Pool, bool),
        request: &Request,
        now: Nanos,
    ) -> Result<Loan, Refused> {
        let Request { vrf, src, upper, port, .. } = *request;
        let mapping = self.map((pool, is_alone), Inside::of(vrf, src, upper, port), now)?;
        let peer = request.peer.filter(|peer| self.nat.count_peer(mapping.id, *peer));
        let lender = self.owner.number() as u8;
        Ok(Loan { lender, pool: pool.id(), inside: (vrf, port), mapping, peer })
    }

    /// Another worker's session has ended.
    pub fn take_back(&mut self, loan: &Loan, now: Nanos) {
        self.nat.release(loan.mapping.id, now);
        if let Some(peer) = loan.peer {
            self.nat.peers.remove(addr_key(peer), loan.mapping.id);
        }
    }

    /// One more session uses the mapping.
    pub fn acquire(&mut self, mapping: u32) {
        self.nat.acquire(mapping);
    }

    /// A session that used the mapping has ended.
    pub fn release(&mut self, mapping: u32, now: Nanos) {
        self.nat.release(mapping, now);
    }

    /// Gives the numbers of ended sessions free: no packet under way has one any more.
    #[inline]
    pub fn recycle(&mut self) {
        self.v4.recycle();
        self.v6.recycle();
    }

    /// Sessions in both tables.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// True without sessions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When [`Flows::expire`] may have something to do.
    pub fn next_deadline(&self) -> Nanos {
        if self.sweep_left > 0 {
            return Nanos(0);
        }
        let due = [self.v4.next_due(), self.v6.next_due()].into_iter().flatten().min();
        let due = due.map_or(Nanos(u64::MAX), Tick::start).min(self.fragments.next_deadline());
        let sweeps = self.nat.has_pages() || self.nat.steering.is_some();
        if sweeps { due.min(self.sweep_due) } else { due }
    }

    /// Ends sessions whose time is over, and datagrams: a bounded number. True if more are waiting.
    pub fn expire(&mut self, timers: &Timers, now: Nanos, counters: &WorkerCounters) -> bool {
        let mut budget = EXPIRY_BUDGET;
        let tick = Tick::of(now);
        expire_in(&mut self.v4, &mut self.nat, timers, now, tick, &mut budget, counters);
        expire_in(&mut self.v6, &mut self.nat, timers, now, tick, &mut budget, counters);
        if self.sweep_due <= now {
            self.sweep_left = self.nat.pages().min(self.sweep_left + self.nat.pages() / SWEEPS + 1);
            if let Some(steering) = &mut self.nat.steering
                && steering.me() == 0
            {
                steering.sweep(SWEEPS as usize, now);
            }
            self.sweep_due = now.plus(SWEEP_INTERVAL);
        }
        if self.sweep_left > 0 {
            self.sweep_left -=
                self.nat.sweep(&self.claims, now, self.sweep_left.min(PAGES_A_TURN), PORTS_A_TURN);
        }
        let datagrams_wait = self.fragments.expire(now);
        budget == 0 || self.sweep_left > 0 || datagrams_wait
    }
}

fn expire_in<A: Address>(
    table: &mut FlowTable<A>,
    nat: &mut Holdings,
    timers: &Timers,
    now: Nanos,
    tick: Tick,
    budget: &mut usize,
    counters: &WorkerCounters,
) {
    // Several at a time, so that what they lie in is fetched together.
    let mut fired: ArrayVec<u32, EXPIRY_STEP> = ArrayVec::new();
    while *budget > 0 {
        while fired.len() < EXPIRY_STEP.min(*budget)
            && let Some(session) = table.fire(tick)
        {
            table.prefetch_session(session);
            fired.push(session);
        }
        if fired.is_empty() {
            return;
        }
        *budget -= fired.len();
        fired.retain(|session| {
            let due = due(table, *session, timers);
            if due > tick {
                let again = proxy::ask_again(table, *session, tick);
                if again.is_some() {
                    backend::is_asked_again(table, *session, tick, counters);
                }
                table.arm(*session, again.map_or(due, |again| again.min(due)));
                return false;
            }
            table.prefetch_places(*session);
            table.record(*session).mappings().for_each(|mapping| nat.prefetch(mapping));
            true
        });
        for session in fired.drain(..) {
            let tuples = retire(table, nat, session, SessionEvent::Ended, now, counters);
            table.remove_disarmed(session);
            nat.leave(tuples, table);
        }
    }
}

/// Ends a session before its time.
pub fn end<A: Address>(
    table: &mut FlowTable<A>,
    nat: &mut Holdings,
    session: u32,
    now: Nanos,
    counters: &WorkerCounters,
) {
    end_as(table, nat, session, SessionEvent::Ended, now, counters);
}

/// Ends a session before its time, for the log in so many words.
fn end_as<A: Address>(
    table: &mut FlowTable<A>,
    nat: &mut Holdings,
    session: u32,
    event: SessionEvent,
    now: Nanos,
    counters: &WorkerCounters,
) {
    let tuples = retire(table, nat, session, event, now, counters);
    table.remove(session);
    nat.leave(tuples, table);
}

/// Counts a session that ends and gives back what it holds: its tuples.
fn retire<A: Address>(
    table: &mut FlowTable<A>,
    nat: &mut Holdings,
    session: u32,
    event: SessionEvent,
    now: Nanos,
    counters: &WorkerCounters,
) -> [Tuple<A>; 2] {
    let tuples = [0, 1].map(|direction| table.flow(Handle::new(session, direction)).tuple);
    let record = table.record(session);
    nat.give_back(&record, table.flow(Handle::new(session, 0)), tuples[1].vrf, now);
    add(&counters.sessions_ended, 1);
    if let Some(backend) = record.backend().and_then(|slot| counters.backends.get(slot as usize)) {
        add(&backend.ended, 1);
    }
    carry(table, session, counters);
    if nat.gone.is_wanted() && table.flow(Handle::new(session, 0)).has(flow_flags::TOLD) {
        let [last, other] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)).last_seen);
        let idle = Tick::of(now).0.saturating_sub(last.max(other).0);
        nat.gone.note(Gone { name: flow_record::Name::of(&tuples[0]), idle });
    }
    if table.is_kept(session) {
        table.changes.note(session);
    }
    // The peer logs what no packet came of here.
    if table.flags(session) & record_flags::LOGGED != 0 && !is_untouched(table, session) {
        nat.session_events.push(record_of(table, session, event, now));
    }
    tuples
}

/// True if the peer has told of a session, and no packet of it has come here since.
pub fn is_untouched<A: Address>(table: &FlowTable<A>, session: u32) -> bool {
    let [forward, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
    forward.has(flow_flags::FROM_PEER) && forward.packets() == 0 && reply.packets() == 0
}

/// What the log has of a session.
pub fn record_of<A: Address>(
    table: &FlowTable<A>,
    session: u32,
    event: SessionEvent,
    time: Nanos,
) -> SessionRecord {
    let [flow, reply] = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
    let end = |addr: A, port: u16| (addr_key(addr.ip()), port);
    SessionRecord {
        event,
        time,
        vrf: flow.tuple.vrf,
        protocol: flow.tuple.protocol,
        source: end(flow.tuple.src, flow.tuple.src_port),
        destination: end(flow.tuple.dst, flow.tuple.dst_port),
        new_source: end(flow.new_src, flow.new_src_port),
        new_destination: end(flow.new_dst, flow.new_dst_port),
        rule: table.record(session).rule,
        packets: of_40_bits(flow.packets() + reply.packets()),
        bytes: flow.bytes.wrapping_add(reply.bytes),
    }
}

/// Counts for the session's rules what it carried since this was done last. So what the rules' counters say is
/// exact at any time, once every live session is settled: nothing is counted twice and none runs backwards.
pub fn settle<A: Address>(table: &mut FlowTable<A>, session: u32, counters: &WorkerCounters) {
    if let Some(settled) = carry(table, session, counters) {
        table.set_settled(session, settled);
    }
}

/// The same without a note that it was done: of a session that ends. What there would be to note, if it is something new.
fn carry<A: Address>(table: &FlowTable<A>, session: u32, counters: &WorkerCounters) -> Option<Settled> {
    let flows = [0, 1].map(|direction| table.flow(Handle::new(session, direction)));
    let packets = of_40_bits(flows[0].packets() + flows[1].packets());
    let bytes = flows[0].bytes.wrapping_add(flows[1].bytes);
    let before = table.settled(session);
    if (packets, bytes) == (before.packets, before.bytes) {
        return None;
    }
    let new_packets = of_40_bits(packets.wrapping_sub(before.packets));
    let new_bytes = bytes.wrapping_sub(before.bytes);
    let record = table.record(session);
    let rule = counters.rules.get(record.rule as usize);
    let nat_rule = counters.nat_rules.get(usize::from(record.nat_rule));
    let backend = record.backend().and_then(|slot| counters.backends.get(slot as usize));
    let backend = backend.map(|backend| &backend.flows);
    let all = rule.into_iter().chain(nat_rule).chain(backend);
    all.for_each(|counted| counted.carried(new_packets, new_bytes));
    Some(Settled { packets, bytes })
}

/// A flow counts 40 bits of packets: so much may have come since.
fn of_40_bits(packets: u64) -> u64 {
    packets & ((1 << 40) - 1)
}

/// When the session has been idle for its time.
pub fn due<A: Address>(table: &FlowTable<A>, session: u32, timers: &Timers) -> Tick {
    let (forward, reply) = (table.flow(Handle::new(session, 0)), table.flow(Handle::new(session, 1)));
    let record = table.record(session);
    let replied = reply.has(flow_flags::SEEN);
    // Of a backend that answers past us no answer is missed.
    let is_answered = replied || forward.next_hop.is_delivery();
    let last = if replied { forward.last_seen.max(reply.last_seen) } else { forward.last_seen };
    last.after(timeout(&record, forward.tuple.protocol, is_answered, timers))
}

/// How long a session that policy does not allow any more waits for a packet whose sender could be told, in seconds.
const CONDEMNED_S: u32 = 10;

/// How long a session may be idle, in seconds.
pub fn timeout(record: &Record, upper: u8, replied: bool, timers: &Timers) -> u32 {
    match upper {
        _ if record.flags & record_flags::CONDEMNED != 0 => CONDEMNED_S,
        protocol::TCP => record.tcp.timeout(&timers.tcp).as_secs() as u32,
        // A mapping stays for its own time (RFC 4787 REQ-5), replied or not.
        protocol::UDP if replied || record.mapping != 0 => timers.udp_s,
        protocol::UDP => timers.udp_unreplied_s,
        protocol::ICMP | protocol::ICMPV6 => timers.icmp_s,
        _ => timers.other_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nat::{AddressRange, PoolSpec};

    #[test]
    fn ports_that_have_rested_are_free_within_a_minute_and_no_turn_frees_many() {
        const HOSTS: u32 = 1800;
        const PORTS: u16 = 60;
        let claims = Arc::new(BlockClaims::new(64, Key::default()));
        let capacity = Capacity { sessions: 200_000, populate: false };
        let mut flows = Flows::new(0, capacity, Arc::clone(&claims), None, Key::default()).expect("memory");
        let [first, last] = [8, 9].map(|last| Ipv4Addr::new(203, 0, 113, last));
        let pool = Pool::compile(&PoolSpec::new(0, vec![AddressRange { first, last }]), &claims);
        let (pool, counters) = (pool.expect("a pool"), WorkerCounters::new(0));
        let timers = crate::tables::policy::Policy::none().timers;
        let mut now = Nanos::from_secs(1);
        for host in 0..HOSTS {
            for port in 0..PORTS {
                let src = Ipv4Addr::from(0x0a00_0000 + host).into();
                let given = flows
                    .map((&pool, false), Inside::of(0, src, protocol::UDP, 2000 + port), now)
                    .expect("a port");
                flows.release(given.id, now);
            }
        }
        let most = usize::try_from(PORTS_A_TURN).expect("a small number") + PORTS as usize;
        let end = now.plus(Duration::from_secs(120 + 61));
        while now < end {
            now = now.plus(SWEEP_INTERVAL);
            while flows.next_deadline() <= now {
                let before = flows.nat.usage().held;
                flows.expire(&timers, now, &counters);
                assert!(before - flows.nat.usage().held <= most, "in one turn");
            }
        }
        assert_eq!((flows.nat.usage().held, flows.nat.usage().pages), (0, 0));
    }
}
