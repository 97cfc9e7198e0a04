//! Sessions that the peer has, installed here: whatever packet of one comes first is treated as the peer would have.
//!
//! What is bound stays bound, down to the port; everything else follows from this node's tables, by the same decision as
//! for a session of ours after a change ([`session::judge`]). What they do not allow now, because a link is down or the
//! configs differ for a moment, is kept as it is and asked again by its next packet: stale, not wrong.
//!
//! Nobody has to say which node a session belongs to. The one that has seen its packets last knows best:
//!
//! | here | the peer tells of it | the peer has ended it |
//! |---|---|---|
//! | nothing, or nothing but what the peer said | taken | ended |
//! | packets since then, later than the peer's | kept | kept |
//! | packets, the peer has seen later ones | taken | ended |

use crate::flow::flow_record::{FlowRecord, Name, Port, Upper};
use crate::flow::nat::NotRestored;
use crate::flow::steering::Loan;
use crate::flow::{Flows, Handle, Record, Tick, Tuple, due, flow_flags, record_flags, settle};
use crate::neighbours::ip_of;
use crate::packet::view::protocol;
use crate::pipeline::session::{self, Table};
use crate::pipeline::{Context, Question, crossing, proxy};
use crate::tables::NO_INTERFACE;
use crate::tables::balance::delivery;
use crate::tables::bridge::is_scope;
use crate::telemetry::{WorkerCounters, add};

/// What two nodes say of when a packet came differs by how long it takes to say it: by so many ticks, if nothing is lost
/// more than once.
const DOUBT: u32 = 5;

/// What has become of a session that the peer has told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// It is there now.
    New,
    /// It was, and stands where the peer says.
    Renewed,
    /// It has had packets here that the peer does not know of.
    Kept,
}

/// Why a session cannot be had here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInstalled {
    /// Another session of this node has one of its tuples.
    Conflict,
    /// The worker has no room.
    Full,
    /// Its port is another's here, or none of a pool's.
    Port(NotRestored),
    /// It is none that a node like this one would tell.
    Senseless,
    /// Its interface or VRF has a slot, and tables have it only from the next commit on.
    Early,
}

impl NotInstalled {
    /// Number of causes.
    pub const COUNT: usize = 6;
    /// As commands print them, by [`NotInstalled::index`].
    pub const NAMES: [&'static str; NotInstalled::COUNT] =
        ["conflict", "table-full", "port-taken", "port-not-in-pool", "senseless", "early"];

    /// Its place among them.
    pub fn index(self) -> usize {
        match self {
            NotInstalled::Conflict => 0,
            NotInstalled::Full | NotInstalled::Port(NotRestored::TableFull) => 1,
            NotInstalled::Port(NotRestored::Taken) => 2,
            NotInstalled::Port(NotRestored::NotInPool) => 3,
            NotInstalled::Senseless => 4,
            NotInstalled::Early => 5,
        }
    }
}

/// Both tuples of a session: as its first packet came in, and as replies to it do.
fn tuples_of<A: Table>(record: &FlowRecord) -> Option<(Tuple<A>, Tuple<A>)> {
    let Tuple { src_port, dst_port, vrf, protocol, .. } = record.name.tuple;
    let addr = |key: u128| A::neutral(ip_of(key));
    let [src, dst] = [record.name.tuple.src, record.name.tuple.dst].map(addr);
    let tuple = Tuple { src: src?, dst: dst?, src_port, dst_port, vrf, protocol, zero: 0 };
    let crosses = crosses(record);
    if crosses && !A::CROSSES {
        return None;
    }
    let leaves = Tuple {
        src: addr(record.new[0])?,
        dst: addr(record.new[1])?,
        src_port: record.new_ports[0],
        dst_port: record.new_ports[1],
        vrf: record.reply_vrf,
        protocol: if crosses { crossing::crossed(protocol) } else { protocol },
        zero: 0,
    };
    Some((tuple, leaves))
}

/// It leaves in the other family.
fn crosses(record: &FlowRecord) -> bool {
    let [src, dst] = [record.name.tuple.src, record.new[1]].map(ip_of);
    src.is_ipv4() != dst.is_ipv4()
}

/// The resync of the peer that is under way, or was last.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Its number, modulo 8 ([`sweep`]).
    pub number: u8,
    /// What is told is told in it.
    pub counts: bool,
}

/// Installs a session that the peer has told of, or brings it up to date. `loan`: the mapping of its source, where
/// another worker keeps that.
pub fn install<A: Table>(
    record: &FlowRecord,
    loan: Option<Loan>,
    round: Round,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<Installed, NotInstalled> {
    let result = install_with::<A>(record, loan, round, cx, flows);
    if result != Ok(Installed::New) {
        flows.nat.loans.returns.extend(loan);
    }
    result
}

fn install_with<A: Table>(
    record: &FlowRecord,
    loan: Option<Loan>,
    round: Round,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<Installed, NotInstalled> {
    // Slots may be given before tables have them: another worker's word of them is early.
    let has_vrf = |vrf: u16| match is_scope(vrf) {
        true => cx.tables.bridges.of_scope(vrf).is_some(),
        false => usize::from(vrf) < cx.tables.vrfs.len(),
    };
    if usize::from(record.ingress) >= cx.tables.interfaces.len()
        || !has_vrf(record.name.tuple.vrf)
        || !has_vrf(record.reply_vrf)
    {
        return Err(NotInstalled::Early);
    }
    let (tuple, leaves) = tuples_of::<A>(record).ok_or(NotInstalled::Senseless)?;
    if (tuple.protocol == protocol::TCP) == matches!(record.upper, Upper::Answered) {
        return Err(NotInstalled::Senseless);
    }
    // A segment's frames stay in it as they are.
    if record.name.is_bridged() && !A::same(&leaves, &tuple) {
        return Err(NotInstalled::Senseless);
    }
    let back = leaves.reversed(record.reply_vrf);
    let known = A::shared(flows).find(&tuple);
    if known.is_some() {
        let session = known.session();
        let is_same = known.direction() == 0 && is::<A>(flows, session, &back);
        let is_ours = !is_untouched::<A>(flows, session);
        if is_ours && idle::<A>(flows, session, cx) < record.idle.saturating_add(DOUBT) {
            return Ok(Installed::Kept);
        }
        if is_same {
            renew::<A>(session, record, cx, flows);
            if round.counts {
                set_round::<A>(session, round.number, flows);
            }
            return Ok(Installed::Renewed);
        }
        session::end::<A>(session, cx, flows);
    }
    let taken = A::shared(flows).find(&back);
    if taken.is_some() {
        if !is_untouched::<A>(flows, taken.session()) {
            return Err(NotInstalled::Conflict);
        }
        session::end::<A>(taken.session(), cx, flows);
    }
    let session = insert::<A>(record, loan, (&tuple, &leaves, &back), cx, flows)?;
    renew::<A>(session, record, cx, flows);
    // One that does not count is swept unless it is told of once more.
    let number = if round.counts { round.number } else { (round.number + 7) % 8 };
    set_round::<A>(session, number, flows);
    add(&cx.counters.sessions_opened, 1);
    let backend = record.backend.and_then(|slot| cx.counters.backends.get(slot as usize));
    backend.inspect(|backend| backend.flows.hit(cx.now));
    // What is not allowed now is asked again by its next packet.
    if let Ok(judged) = session::judge::<A>(session, cx, flows) {
        if judged.allowed.ruling.log {
            *A::table(flows).flags_mut(session) |= record_flags::LOGGED;
        }
        session::adopt::<A>(session, &judged, cx, flows);
    }
    Ok(Installed::New)
}

/// True if a session's reply tuple is this.
fn is<A: Table>(flows: &Flows, session: u32, back: &Tuple<A>) -> bool {
    A::same(&A::shared(flows).flow(Handle::new(session, 1)).tuple, back)
}

/// True if the peer has told of a session, and no packet of it has come here since.
fn is_untouched<A: Table>(flows: &Flows, session: u32) -> bool {
    crate::flow::is_untouched(A::shared(flows), session)
}

/// How long ago the last packet of a session came, in ticks.
fn idle<A: Table>(flows: &Flows, session: u32, cx: &Context<'_>) -> u32 {
    let [forward, reply] = [0, 1].map(|direction| A::shared(flows).flow(Handle::new(session, direction)));
    Tick::of(cx.now).0.saturating_sub(forward.last_seen.max(reply.last_seen).0)
}

/// Notes in which resync the peer told of a session.
fn set_round<A: Table>(session: u32, number: u8, flows: &mut Flows) {
    let reply = A::table(flows).flow_mut(Handle::new(session, 1));
    reply.flags = reply.flags & !flow_flags::ROUND | number << flow_flags::ROUND_SHIFT;
}

/// Puts a session where the peer says that it stands.
fn renew<A: Table>(session: u32, record: &FlowRecord, cx: &Context<'_>, flows: &mut Flows) {
    let table = A::table(flows);
    let is_used = [0, 1].map(|direction| table.flow(Handle::new(session, direction)).packets()) != [0, 0];
    if is_used {
        // What it carried here is in the rules' counters; from now on it is the peer's.
        settle(table, session, cx.counters);
        for direction in [0, 1] {
            let flow = table.flow_mut(Handle::new(session, direction));
            (flow.packets_low, flow.packets_high, flow.bytes) = (0, 0, 0);
        }
        table.set_settled(session, crate::flow::Settled::default());
    }
    table.note_told(session, flow_flags::FROM_PEER);
    let last_seen = Tick(Tick::of(cx.now).0.saturating_sub(record.idle));
    for direction in [0, 1] {
        let flow = table.flow_mut(Handle::new(session, direction));
        flow.last_seen = last_seen;
        flow.flags |= flow_flags::SEEN;
    }
    let reply = table.flow_mut(Handle::new(session, 1));
    if record.is_delivery && tuple_is_tcp(&record.name) {
        // Nothing of it will come back.
        reply.flags &= !flow_flags::SEEN;
    }
    match record.upper {
        Upper::Answered => {}
        Upper::Tcp(tcp) => *table.tcp_mut(session) = tcp.resume(),
        Upper::Proxied(tcp, numbers) => {
            *table.tcp_mut(session) = tcp.resume();
            table.set_proxy(session, numbers);
            proxy::mark(table, session);
        }
    }
    let due = due(table, session, &cx.tables.policy.timers);
    table.rearm(session, due);
}

fn tuple_is_tcp(name: &Name) -> bool {
    name.tuple.protocol == protocol::TCP
}

/// Makes a session with all that it holds. Nothing of it is decided yet.
fn insert<A: Table>(
    record: &FlowRecord,
    loan: Option<Loan>,
    (tuple, leaves, back): (&Tuple<A>, &Tuple<A>, &Tuple<A>),
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<u32, NotInstalled> {
    let source = record.mapping.filter(|_| loan.is_none());
    let mapping = source.map(|port| restore(&port, record.inside_of_source(&port), cx, flows)).transpose()?;
    let release = |id: Option<u32>, flows: &mut Flows| {
        id.inspect(|id| flows.release(*id, cx.now));
    };
    let bound = record.bound.map(|port| restore(&port, record.inside_of_bound(&port), cx, flows));
    let bound = bound.transpose().inspect_err(|_| release(mapping, flows))?;
    if let Some(steering) = &flows.nat.steering
        && steering.hold([tuple, back], cx.now).is_err()
    {
        [mapping, bound].into_iter().for_each(|id| release(id, flows));
        return Err(NotInstalled::Conflict);
    }
    let policy = &*cx.tables.policy;
    // Older than anything: whoever meets it before it is decided decides it.
    let stale = cx.tables.flow_epoch().wrapping_sub(1 << 30);
    let now = Tick::of(cx.now);
    let delivery = record.backend.filter(|_| record.is_delivery);
    let via = delivery.and_then(|slot| policy.services().delivery_of(slot)).map(delivery::hop_of);
    let egress = member_in(record, cx).unwrap_or(NO_INTERFACE);
    let mut forward = session::compiled(tuple, leaves, egress, via, record.ingress, stale, now);
    let returns = tuple.reversed(tuple.vrf);
    let mut reply = session::compiled(back, &returns, record.ingress, None, NO_INTERFACE, stale, now);
    if crosses(record) {
        forward.flags |= flow_flags::CROSSES;
        reply.flags |= flow_flags::CROSSES;
    }
    let entry = Record {
        mapping: Record::name(mapping),
        bound: Record::name(bound),
        backend: if bound.is_some() { 0 } else { Record::name(record.backend) },
        created: Tick(now.0.saturating_sub(record.age)),
        rule: record.rule,
        nat_rule: record.nat_rule,
        from_zone: record.zones[0],
        to_zone: record.zones[1],
        dscp: record.dscp,
        opened_with: record.opened_with,
        ..Record::default()
    };
    let has_room = session::has_room::<A>(cx, flows);
    let inserted = has_room.then(|| A::table(flows).insert([forward, reply], entry, now));
    let Some(Ok(session)) = inserted else {
        if let Some(steering) = &flows.nat.steering {
            steering.release([tuple, back], A::shared(flows));
        }
        [mapping, bound].into_iter().for_each(|id| release(id, flows));
        return Err(NotInstalled::Full);
    };
    count::<A>(session, record, loan, (mapping, cx), flows);
    Ok(session)
}

/// Of a session between members of a bridge: one of those that it may leave by, in the zone of its other end. Behind which
/// of them that is shows its next frame.
fn member_in(record: &FlowRecord, cx: &Context<'_>) -> Option<u16> {
    let bridge = cx.tables.bridges.of_scope(record.name.tuple.vrf)?;
    let mut members = bridge.members.iter().map(|member| member.interface);
    members.find(|member| cx.tables.interface(*member).zone == record.zones[1])
}

/// Counts a new session where limits and filters count.
fn count<A: Table>(
    session: u32,
    record: &FlowRecord,
    loan: Option<Loan>,
    (mapping, cx): (Option<u32>, &Context<'_>),
    flows: &mut Flows,
) {
    let policy = &*cx.tables.policy;
    let [src, dst] = [record.name.tuple.src, record.new[1]].map(ip_of);
    let mut held = 0;
    if let Some(loan) = loan {
        let number = flows.nat.loans.keep(loan);
        A::table(flows).set_mapping(session, Record::name(Some(number)));
        held |= record_flags::BORROWED;
    }
    // As when it began: a published server's clients are not hosts.
    let is_published =
        record.is_delivery || record.new[1] != record.name.tuple.dst && (src.is_ipv4() || dst.is_ipv6());
    let host = match (record.bound, is_published) {
        (Some(_), _) => Some((record.reply_vrf, dst)),
        (None, true) => None,
        (None, false) => Some((record.name.tuple.vrf, src)),
    };
    let host = host.filter(|_| policy.limits.per_host != u32::MAX);
    if host.is_some_and(|(vrf, addr)| flows.nat.count_host(vrf, addr)) {
        held |= record_flags::HOST_COUNTED;
    }
    if let Some(id) = mapping
        && policy.filtering == crate::config::Filtering::AddressDependent
        && flows.nat.count_peer(id, dst)
    {
        held |= record_flags::PEER_COUNTED;
    }
    *A::table(flows).flags_mut(session) |= held;
    if let Some(backend) = record.backend {
        // Who comes back finds the backend that it had.
        let question = question_of(record);
        let client = policy.services().find(&question).and_then(|service| service.client(&question));
        client.inspect(|client| cx.limits.clients.note(*client, backend, cx.now));
    }
}

/// The first packet, as policy saw it.
fn question_of(record: &FlowRecord) -> Question {
    let Tuple { src, dst, src_port, dst_port, vrf, protocol: upper, .. } = record.name.tuple;
    let is_tcp = upper == protocol::TCP;
    Question {
        vrf,
        ingress: record.ingress,
        src: ip_of(src),
        dst: ip_of(dst),
        protocol: upper,
        src_port,
        dst_port,
        dscp: record.dscp,
        tcp_flags: if is_tcp { record.opened_with } else { 0 },
        icmp_type: if is_tcp { 0 } else { record.opened_with },
    }
}

/// The very mapping that the peer has.
fn restore(
    port: &Port,
    inside: crate::flow::nat::Inside,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<u32, NotInstalled> {
    let pool = cx.tables.policy.pools.iter().find(|pool| pool.id() == port.pool);
    let pool = pool.ok_or(NotInstalled::Port(NotRestored::NotInPool))?;
    flows.restore(pool, inside, (port.addr, port.port), cx.now).map_err(NotInstalled::Port)
}

/// Restores the mapping of a session's source for another worker, which has the session.
pub fn lend(record: &FlowRecord, cx: &Context<'_>, flows: &mut Flows) -> Result<Loan, NotInstalled> {
    let port = record.mapping.ok_or(NotInstalled::Senseless)?;
    let id = restore(&port, record.inside_of_source(&port), cx, flows)?;
    let only_peers = cx.tables.policy.filtering == crate::config::Filtering::AddressDependent;
    let peer = only_peers.then(|| ip_of(record.new[1]));
    Ok(flows.loan_of(id, &port, peer))
}

/// Ends a session that the peer has ended. `idle`: how long ago its last packet had come there, in ticks.
pub fn end<A: Table>(name: &Name, idle_there: u32, cx: &Context<'_>, flows: &mut Flows) -> bool {
    let Tuple { src_port, dst_port, vrf, protocol, .. } = name.tuple;
    let addr = |key: u128| A::neutral(ip_of(key));
    let (Some(src), Some(dst)) = (addr(name.tuple.src), addr(name.tuple.dst)) else { return false };
    let found = A::shared(flows).find(&Tuple { src, dst, src_port, dst_port, vrf, protocol, zero: 0 });
    if !found.is_some() || found.direction() != 0 {
        return false;
    }
    let session = found.session();
    let is_meant = is_untouched::<A>(flows, session) || idle::<A>(flows, session, cx) >= idle_there;
    if is_meant {
        session::end::<A>(session, cx, flows);
    }
    is_meant
}

/// True if the peer has told of a session before its resync, but not in it, and no packet of it has come here since.
fn is_missed<A: Table>(session: u32, round: u8, flows: &Flows) -> bool {
    let table = A::shared(flows);
    let was_told = table.flow(Handle::new(session, 1)).flags >> flow_flags::ROUND_SHIFT == round;
    table.is_live(session) && crate::flow::is_untouched(table, session) && !was_told
}

/// Takes a session of which the peer does not know any more for this node's own.
pub fn disown<A: Table>(session: u32, round: u8, flows: &mut Flows) {
    if is_missed::<A>(session, round, flows) {
        A::table(flows).disown(session);
    }
}

/// Ends a session that the peer has told of before its resync, but not in it. False: it stays.
pub fn sweep<A: Table>(session: u32, round: u8, cx: &Context<'_>, flows: &mut Flows) -> bool {
    let goes = is_missed::<A>(session, round, flows);
    if goes {
        session::end::<A>(session, cx, flows);
    }
    goes
}

/// Counts what has become of a record.
pub fn note(result: &Result<Installed, NotInstalled>, counters: &WorkerCounters) {
    let replicas = &counters.replicas;
    add(
        match result {
            Ok(Installed::New) => &replicas.installed,
            Ok(Installed::Renewed) => &replicas.renewed,
            Ok(Installed::Kept) => &replicas.kept,
            Err(refused) => &replicas.refused[refused.index()],
        },
        1,
    );
}
