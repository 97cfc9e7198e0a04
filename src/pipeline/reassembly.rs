//! Fragments between zones: each datagram has the session of its first fragment ([`crate::flow::fragments`]).
//!
//! The first fragment is decided as any packet, by the ports it carries; a later one follows it: the same flow, the
//! same addresses. The checksum of TCP, UDP and ICMP queries is in the first fragment, and what it gains by the
//! translation does not depend on the bytes it covers: mended there, it is right for the whole datagram.

use crate::flow::fragments::{CutSegment, Datagram, First, Piece};
use crate::flow::{Address, FlowTable, Flows, Held, Tick, Tuple, flow_flags, tcp};
use crate::mem::Frame;
use crate::neighbours::addr_key;
use crate::packet::view::{be16, be32, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Pass, Verdict};
use crate::pipeline::session::{self, Table};
use crate::pipeline::{Context, flow, icmp_error};

const IPV6_BYTES: usize = 40;
const FRAGMENT_HEADER_BYTES: usize = 8;

/// UDP header (RFC 768), and what ICMP messages have at least (RFC 792).
const SHORT_HEADER_BYTES: usize = 8;
/// RFC 9293 section 3.1. RFC 1858 section 3.2.1 wants 16 at least.
const TCP_BYTES: usize = 20;
/// RFC 9260 section 3.1.
const SCTP_BYTES: usize = 12;

/// What an IP packet says of itself as a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    identification: u32,
    /// Where its bytes begin in the datagram.
    start: usize,
    /// It is not the last.
    more: bool,
    /// Its headers: all that is in each fragment.
    header_len: usize,
    /// What the next header is; of a first fragment of IPv6 it may be an extension header.
    protocol: u8,
}

impl Header {
    /// Reads a packet that the network stage has found to be a fragment.
    fn of(meta: &Meta, l3: &[u8]) -> Result<Header, DropReason> {
        if meta.family == Family::Ipv4 {
            let word = be16(l3, 6);
            return Ok(Header {
                identification: be16(l3, 4).into(),
                start: usize::from(word & 0x1fff) * 8,
                more: word & 0x2000 != 0,
                header_len: usize::from(meta.l4 - meta.l3),
                protocol: meta.protocol,
            });
        }
        let mut found = None;
        let (mut next, mut at) = (l3[6], IPV6_BYTES);
        let l4 = usize::from(meta.l4 - meta.l3);
        while at < l4 {
            let len = match next {
                protocol::FRAGMENT => {
                    let word = be16(l3, at + 2);
                    let header = Header {
                        identification: be32(l3, at + 4),
                        start: usize::from(word & 0xfff8),
                        more: word & 1 != 0,
                        header_len: at + FRAGMENT_HEADER_BYTES,
                        protocol: l3[at],
                    };
                    // Fragments of fragments could hide the ports.
                    if found.replace(header).is_some() {
                        return Err(DropReason::FragmentInvalid);
                    }
                    FRAGMENT_HEADER_BYTES
                }
                // RFC 4302 section 2.2.
                protocol::AH => (usize::from(l3[at + 1]) + 2) * 4,
                _ => (usize::from(l3[at + 1]) + 1) * 8,
            };
            next = l3[at];
            at += len;
        }
        found.ok_or(DropReason::FragmentInvalid)
    }

    /// All of the datagram in one fragment (RFC 6946).
    fn is_atomic(&self) -> bool {
        self.start == 0 && !self.more
    }

    fn piece(&self, meta: &Meta) -> Result<Piece, DropReason> {
        // RFC 1858 section 3.2.2, RFC 3128: behind 8 bytes of TCP only an attack goes on.
        if self.protocol == protocol::TCP && self.start == 8 {
            return Err(DropReason::FragmentTiny);
        }
        // The IPv6 header and the fragment header do not count for the datagram's length.
        let counted = match meta.family {
            Family::Ipv4 => self.header_len,
            _ => self.header_len - IPV6_BYTES - FRAGMENT_HEADER_BYTES,
        };
        Piece::new(self.start, usize::from(meta.ip_len) - self.header_len, self.more, counted)
    }
}

/// Decides a fragment: it goes on with its datagram's flow, it is held until the first one comes, or it is lost.
pub(super) fn step<A: Table>(
    packet: &mut Packet,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let header = Header::of(&packet.meta, l3)?;
    if header.is_atomic() {
        read_ports(packet)?;
        return session::whole::<A>(packet, cx, flows, now);
    }
    let datagram = Datagram {
        src: addr_key(A::src_in(packet.meta.family, l3).ip()),
        dst: addr_key(A::dst_in(packet.meta.family, l3).ip()),
        identification: header.identification,
        vrf: packet.meta.vrf,
        protocol: if packet.meta.family == Family::Ipv4 { header.protocol } else { 0 },
        family: packet.meta.family,
    };
    if cx.pass == Pass::First
        && let Some(steering) = &flows.nat.steering
    {
        let worker = steering.of_datagram(&datagram);
        if worker != steering.me() {
            return Ok(Verdict::Gather(worker));
        }
    }
    let at = flows.fragments.arrive(&datagram, header.piece(&packet.meta), cx.now)?;
    if header.start == 0 {
        return first::<A>(packet, at, &header, cx, flows, now);
    }
    if let Some(worker) = flows.fragments.elsewhere(at) {
        flows.fragments.passed(at, cx.pass == Pass::Again);
        return Ok(Verdict::Elsewhere(worker));
    }
    let Some(first) = flows.fragments.first(at) else {
        return hold(packet, at, cx, flows);
    };
    let verdict = follow::<A>(packet, at, &first, cx, flows, now)?;
    flows.fragments.passed(at, cx.pass == Pass::Again);
    Ok(verdict)
}

/// The first fragment: with its ports it is decided as a whole packet is.
fn first<A: Table>(
    packet: &mut Packet,
    at: u16,
    header: &Header,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    if let Err(reason) = read_ports(packet).and_then(|()| is_no_error(packet)) {
        flows.fragments.refuse(at, reason);
        return Err(reason);
    }
    let meta = &packet.meta;
    let told = (meta.src_port, meta.dst_port, meta.protocol);
    let known = flows.fragments.first(at);
    // Another beginning in the same place.
    if known.is_some_and(|known| told != (known.src_port, known.dst_port, known.protocol)) {
        flows.fragments.refuse(at, DropReason::FragmentOverlap);
        return Err(DropReason::FragmentOverlap);
    }
    let verdict = match session::whole::<A>(packet, cx, flows, now) {
        Ok(verdict) => verdict,
        Err(reason) => {
            flows.fragments.refuse(at, DropReason::FragmentUntracked);
            return Err(reason);
        }
    };
    if let Verdict::Elsewhere(worker) = verdict {
        flows.fragments.open_elsewhere(at, worker);
        flows.fragments.passed(at, cx.pass == Pass::Again);
        return Ok(verdict);
    }
    // It comes again when its session has what it needs; those behind it are held until then.
    if verdict == Verdict::Borrow {
        return Ok(verdict);
    }
    if !matches!(verdict, Verdict::Continue | Verdict::Cross) {
        // To the gateway itself, which puts nothing together; or to a station that nobody knows, without a session.
        let is_flooded = verdict == Verdict::Flood;
        let reason = if is_flooded { DropReason::FragmentUntracked } else { DropReason::NoHostPath };
        flows.fragments.refuse(at, reason);
        return Ok(verdict);
    }
    let handle = packet.meta.flow;
    let table = A::table(flows);
    let created = table.created(handle.session());
    let flow = table.flow(handle);
    let readdressed = flow.new_src != flow.tuple.src || flow.new_dst != flow.tuple.dst;
    let identification = match known.filter(|known| (known.flow, known.created) == (handle, created)) {
        Some(known) => known.identification,
        None => (readdressed && packet.meta.family == Family::Ipv4).then(|| flows.identifications.draw()),
    };
    let mut segment = segment_of(packet, header);
    if let Some(cut) = segment.as_mut().filter(|_| A::shared(flows).flow(handle).has(flow_flags::PROXIED)) {
        // The tracker counts in the numbers that the client knows.
        let proxy = A::shared(flows).proxy(handle.session());
        cut.segment = proxy.shown(flow::direction(handle), &cut.segment);
    }
    let (src_port, dst_port, protocol) = told;
    let first = First { flow: handle, created, src_port, dst_port, protocol, identification, segment };
    flows.fragments.open(at, first);
    flows.fragments.passed(at, cx.pass == Pass::Again);
    leave_as(&mut packet.meta, &first);
    Ok(verdict)
}

/// A later fragment of a datagram whose first one has gone on.
fn follow<A: Table>(
    packet: &mut Packet,
    at: u16,
    first: &First,
    cx: &Context<'_>,
    flows: &mut Flows,
    now: Tick,
) -> Result<Verdict, DropReason> {
    let l3 = &packet.frame.bytes()[usize::from(packet.meta.l3)..];
    let tuple: Tuple<A> = Tuple {
        src_port: first.src_port,
        dst_port: first.dst_port,
        protocol: first.protocol,
        ..flow::tuple_in(&packet.meta, l3)
    };
    let handle = first.flow;
    if !is_still(A::table(flows), &tuple, first) {
        return Err(DropReason::FragmentUntracked);
    }
    session::refresh::<A>(handle, packet.meta.interface, cx, flows)?;
    if let Some(cut) = &first.segment {
        let end = flows.fragments.highest(at);
        let tracker = A::table(flows).tcp_mut(handle.session());
        lengthen(cut, end, flow::direction(handle), tracker)?;
    }
    let flow = A::table(flows).flow_mut(handle);
    flow.last_seen = now;
    flow.flags |= flow_flags::SEEN;
    flow::note(&mut packet.meta, handle, flow);
    leave_as(&mut packet.meta, first);
    Ok(flow::onward(flow))
}

/// True if the session of the first fragment lives.
fn is_still<A: Address>(table: &FlowTable<A>, tuple: &Tuple<A>, first: &First) -> bool {
    let session = first.flow.session();
    table.is_live(session)
        && table.created(session) == first.created
        && A::same(&table.flow(first.flow).tuple, tuple)
}

/// The identification the datagram leaves with.
fn leave_as(meta: &mut Meta, first: &First) {
    meta.identification = first.identification.map_or(0, |id| Meta::NEW_IDENTIFICATION | u32::from(id));
}

/// A later fragment that came before the first.
fn hold(packet: &mut Packet, at: u16, cx: &Context<'_>, flows: &mut Flows) -> Result<Verdict, DropReason> {
    let frames = frames_of(&packet.frame);
    let held = Held { frame: packet.frame.take(), ingress: cx.ingress };
    match flows.fragments.hold(at, held, frames) {
        Ok(()) => Ok(Verdict::Held),
        Err((held, reason)) => {
            packet.frame = held.frame;
            Err(reason)
        }
    }
}

fn frames_of(frame: &Frame) -> usize {
    std::iter::successors(Some(frame), |frame| frame.peek_next()).count()
}

/// Notes the ports of a first fragment, or the identifier of its query. It has to hold its whole upper-layer
/// header (RFC 1858, RFC 7112).
fn read_ports(packet: &mut Packet) -> Result<(), DropReason> {
    let meta = &mut packet.meta;
    let end = (usize::from(meta.l3) + usize::from(meta.ip_len)).min(packet.frame.len());
    let l4 = packet.frame.bytes().get(usize::from(meta.l4)..end).unwrap_or(&[]);
    let needed = match meta.protocol {
        protocol::TCP => TCP_BYTES.max(l4.get(12).map_or(0, |word| usize::from(word >> 4) * 4)),
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => SHORT_HEADER_BYTES,
        protocol::SCTP => SCTP_BYTES,
        _ => 0,
    };
    if l4.len() < needed {
        return Err(DropReason::FragmentTiny);
    }
    match meta.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            (meta.src_port, meta.dst_port) = (be16(l4, 0), be16(l4, 2));
        }
        protocol::ICMP | protocol::ICMPV6 if flow::is_query(meta.family, l4[0]) => {
            (meta.src_port, meta.dst_port) = (be16(l4, 4), be16(l4, 4));
        }
        _ => {}
    }
    Ok(())
}

/// No ICMP error is so long that it has to be cut (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4), and its checksum
/// could not be verified.
fn is_no_error(packet: &Packet) -> Result<(), DropReason> {
    let meta = &packet.meta;
    let is_icmp = matches!(meta.protocol, protocol::ICMP | protocol::ICMPV6);
    if is_icmp && icmp_error::is_error(meta.family, packet.frame.bytes()[usize::from(meta.l4)]) {
        return Err(DropReason::IcmpInvalid);
    }
    Ok(())
}

/// The TCP segment of a first fragment, as far as that carries it.
fn segment_of(packet: &Packet, header: &Header) -> Option<CutSegment> {
    let meta = &packet.meta;
    if meta.protocol != protocol::TCP {
        return None;
    }
    let payload = usize::from(meta.ip_len) - usize::from(meta.l4 - meta.l3);
    let segment = tcp::Segment::parse(&packet.frame.bytes()[usize::from(meta.l4)..], payload)?;
    let len = usize::from(meta.ip_len) - header.header_len;
    Some(CutSegment { segment, payload_at: (len - segment.payload_len as usize) as u16 })
}

/// Tells TCP that the segment goes on to where the fragments of its datagram `end`: its peer will acknowledge that.
fn lengthen(
    cut: &CutSegment,
    end: usize,
    direction: tcp::Direction,
    tracker: &mut tcp::Tcp,
) -> Result<(), DropReason> {
    // Data behind a SYN or a RST moves nothing.
    if cut.segment.flags & (tcp::flags::SYN | tcp::flags::RST) != 0 {
        return Ok(());
    }
    let payload_len = end.saturating_sub(usize::from(cut.payload_at)) as u32;
    match tracker.advance(direction, &tcp::Segment { payload_len, ..cut.segment }) {
        tcp::Verdict::Forward | tcp::Verdict::ForwardOnly => Ok(()),
        tcp::Verdict::Reopen => Err(DropReason::TcpNoSession),
        tcp::Verdict::Drop(fault) => Err(flow::tcp_reason(fault)),
    }
}
