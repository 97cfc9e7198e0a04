//! ICMP errors about sessions (RFC 5508 sections 4 and 5): found by the packet they quote, and translated inside
//! and out. An error never changes a session: it neither refreshes nor ends it (REQ-6, RFC 5382 REQ-10).

use crate::flow::backend;
use crate::flow::proxy::Proxy;
use crate::flow::{Address, Flow, Flows, Tuple};
use crate::packet::view::{be16, protocol};
use crate::packet::{DropReason, Family, Meta, Packet, Pass, Verdict, checksum, flags};
use crate::pipeline::session::{self, Table};
use crate::pipeline::{Context, deliver, flow};
use crate::tables::bridge::is_scope;
use crate::tables::policy::Policy;

/// Bytes of ICMP in front of the quoted packet.
const ICMP_BYTES: usize = 8;
/// What a quoted packet shows of its upper-layer header at least (RFC 792).
const QUOTED_L4_BYTES: usize = 8;

/// Destination unreachable, time exceeded, parameter problem (source quench is ignored, RFC 6633; redirects are
/// for hosts); ICMPv6 types 1 to 4.
pub(super) fn is_error(family: Family, icmp_type: u8) -> bool {
    match family {
        Family::Ipv4 => matches!(icmp_type, 3 | 11 | 12),
        _ => matches!(icmp_type, 1..=4),
    }
}

/// Destination unreachable, of any kind but that the packet is too long (RFC 792, RFC 4443 section 3.1).
fn is_unreachable(family: Family, icmp_type: u8, code: u8) -> bool {
    match family {
        Family::Ipv4 => icmp_type == 3 && code != 4,
        _ => icmp_type == 1,
    }
}

/// The packet an error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quoted<A> {
    tuple: Tuple<A>,
    /// Offset of its upper-layer header.
    l4: usize,
}

/// Reads the quoted packet; `bytes` begins at its IP header. `None`: nothing a session could be found by.
fn quoted<A: Address>(bytes: &[u8], family: Family, vrf: u16) -> Option<Quoted<A>> {
    let (upper, l4) = match family {
        Family::Ipv4 => {
            let header_len = usize::from(bytes.first()? & 15) * 4;
            let header =
                bytes.get(..header_len).filter(|header| header.len() >= 20 && header[0] >> 4 == 4)?;
            // RFC 5508 REQ-3a. A later fragment shows no ports.
            if !checksum::is_valid(header) || be16(header, 6) & 0x1fff != 0 {
                return None;
            }
            (header[9], header_len)
        }
        _ => {
            let header = bytes.get(..40).filter(|header| header[0] >> 4 == 6)?;
            match header[6] {
                // RFC 8200 section 4.5. A later fragment shows no ports.
                protocol::FRAGMENT => {
                    let fragment = bytes.get(40..48).filter(|fragment| be16(fragment, 2) & 0xfff8 == 0)?;
                    (fragment[0], 48)
                }
                upper => (upper, 40),
            }
        }
    };
    let message = bytes.get(l4..l4 + QUOTED_L4_BYTES)?;
    let (src_port, dst_port) = match upper {
        protocol::TCP | protocol::UDP | protocol::SCTP => (be16(message, 0), be16(message, 2)),
        protocol::ICMP | protocol::ICMPV6 if flow::is_query(family, message[0]) => {
            (be16(message, 4), be16(message, 4))
        }
        // Errors about errors do not exist (RFC 1122 section 3.2.2).
        protocol::ICMP | protocol::ICMPV6 => return None,
        _ => (0, 0),
    };
    let (src, dst) = (A::src_in(family, bytes), A::dst_in(family, bytes));
    Some(Quoted { tuple: Tuple { src, dst, src_port, dst_port, vrf, protocol: upper, zero: 0 }, l4 })
}

/// What the session is found by that an error of IPv4 is about: `l3` begins at the outer header.
pub(super) fn about(meta: &Meta, l3: &[u8]) -> Option<Tuple<u32>> {
    let end = usize::from(meta.ip_len).min(l3.len());
    let bytes = l3.get(usize::from(meta.l4 - meta.l3) + ICMP_BYTES..end)?;
    Some(quoted::<u32>(bytes, Family::Ipv4, meta.vrf)?.tuple.reversed(meta.vrf))
}

/// Finds the session an error is about. The flow is the one that the error travels along: against the quoted
/// packet.
pub(super) fn follow<A: Table>(
    packet: &mut Packet,
    cx: &Context<'_>,
    flows: &mut Flows,
) -> Result<Verdict, DropReason> {
    let meta = &packet.meta;
    let (l3, header_len) = (usize::from(meta.l3), usize::from(meta.l4 - meta.l3));
    let message_len = usize::from(meta.ip_len) - header_len;
    let bytes = &packet.frame.bytes()[l3..];
    let end = usize::from(meta.ip_len).min(bytes.len());
    let quoted_bytes = bytes.get(header_len + ICMP_BYTES..end).ok_or(DropReason::IcmpInvalid)?;
    // RFC 5508 REQ-3: an error with a bad checksum is dropped.
    let pseudo = match meta.family {
        Family::Ipv4 => 0,
        _ => checksum::add(0, &bytes[8..40]) + u64::from(protocol::ICMPV6) + message_len as u64,
    };
    let says_unreachable = is_unreachable(meta.family, bytes[header_len], bytes[header_len + 1]);
    let sum = pseudo + checksum::add_chain(&packet.frame, usize::from(meta.l4), message_len);
    if checksum::fold(sum) != 0xffff {
        return Err(DropReason::IcmpInvalid);
    }
    let quoted: Quoted<A> =
        quoted(quoted_bytes, meta.family, meta.vrf).ok_or(DropReason::IcmpErrorNoSession)?;
    let handle = A::table(flows).find(&quoted.tuple.reversed(meta.vrf));
    if !handle.is_some()
        && cx.pass != Pass::Handed
        && let Some(steering) = &flows.nat.steering
        && let Some(worker) = steering.find(&quoted.tuple)
        && worker != steering.me()
    {
        return Ok(Verdict::Elsewhere(worker));
    }
    if !handle.is_some() && deliver::note_too_big(&bytes[header_len..end], meta.family, &quoted.tuple, cx) {
        return Ok(Verdict::Answered);
    }
    // It is for whoever has sent the packet (RFC 792), as far as our side of the NAT knows.
    if !handle.is_some() || A::dst_in(meta.family, bytes) != quoted.tuple.src {
        return Err(DropReason::IcmpErrorNoSession);
    }
    session::bring_up_to_date::<A>(handle.session(), cx, flows)?;
    if is_scope(quoted.tuple.vrf) {
        // Between members nothing else checks where it comes from: of that side's zone, as the packets of the session.
        let record = A::table(flows).record(handle.session());
        let side = if handle.direction() == 0 { record.from_zone } else { record.to_zone };
        if cx.tables.interface(packet.meta.interface).zone != side {
            return Err(DropReason::SourceCheck);
        }
    }
    packet.meta.flags |= flags::ICMP_ERROR;
    // From where a backend's answers come: clients do not speak for it.
    let is_of_backend =
        handle.direction() == 1 && A::table(flows).flow(handle).ingress == packet.meta.interface;
    if is_of_backend && says_unreachable {
        backend::is_refused(A::table(flows), handle.session(), cx.counters);
    }
    let flow = A::table(flows).flow(handle);
    flow::note(&mut packet.meta, handle, flow);
    Ok(flow::onward(flow))
}

/// The source that an error along `flow` leaves with.
pub(super) fn seen_source<A: Address>(l3: &[u8], flow: &Flow<A>, policy: &Policy) -> A {
    let src = A::src_of(l3);
    if flow.new_src == flow.tuple.src {
        return src;
    }
    if src == flow.tuple.src {
        return flow.new_src;
    }
    // An inside router must not show itself either (RFC 5508 REQ-5): it has an outside address of its own by NPTv6, or
    // it speaks for the host.
    let own = policy.router_outside(flow.tuple.vrf, src.ip(), flow.new_src.ip());
    own.and_then(A::from_ip).unwrap_or(flow.new_src)
}

/// Translates an error that travels along `flow`: `l3` begins at the outer header, `l4` is the ICMP message's
/// offset in it. `src` is what it leaves with; what lies behind the first buffer of a chain is summed by the caller:
/// `rest`. `proxy`: the quoted segment's numbers are shifted as well.
pub(super) fn translate<A: Address>(
    l3: &mut [u8],
    l4: usize,
    family: Family,
    flow: &Flow<A>,
    proxy: Option<&Proxy>,
    (src, rest): (A, u64),
) {
    let inner_at = l4 + ICMP_BYTES;
    let Some(quoted) = l3.get(inner_at..).and_then(|bytes| quoted::<A>(bytes, family, flow.tuple.vrf)) else {
        unreachable!("it was read when the session was found");
    };
    A::write_addresses(l3, src, flow.new_dst);
    let inner = &mut l3[inner_at..];
    A::write_addresses(inner, flow.new_dst, flow.new_src);
    if family == Family::Ipv4 {
        add_delta(inner, 10, flow.ip_delta);
    }
    let message = &mut inner[quoted.l4..];
    if let Some(proxy) = proxy {
        proxy.unwrite_quoted(message);
    }
    match quoted.tuple.protocol {
        protocol::TCP | protocol::UDP => {
            message[0..2].copy_from_slice(&flow.new_dst_port.to_be_bytes());
            message[2..4].copy_from_slice(&flow.new_src_port.to_be_bytes());
            let at = if quoted.tuple.protocol == protocol::TCP { 16 } else { 6 };
            let is_udp = quoted.tuple.protocol == protocol::UDP;
            // Most senders quote 8 bytes of TCP: no checksum to mend. UDP's 0 means none (RFC 768), TCP's is a sum.
            if message.len() >= at + 2 && !(is_udp && be16(message, at) == 0) {
                add_delta(message, at, flow.l4_delta);
                if is_udp && be16(message, at) == 0 {
                    message[at..at + 2].fill(0xff);
                }
            }
        }
        protocol::ICMP | protocol::ICMPV6 => {
            message[4..6].copy_from_slice(&flow.new_src_port.to_be_bytes());
            add_delta(message, 2, flow.l4_delta);
        }
        _ => {}
    }
    let total = l3.len();
    l3[l4 + 2..l4 + 4].fill(0);
    let mut sum = checksum::add(rest, &l3[l4..total]);
    match family {
        Family::Ipv4 => {
            l3[10..12].fill(0);
            let header = checksum::of(&l3[..l4]);
            l3[10..12].copy_from_slice(&header.to_be_bytes());
        }
        _ => sum += checksum::add(0, &l3[8..40]),
    }
    let sum = !checksum::fold(sum);
    l3[l4 + 2..l4 + 4].copy_from_slice(&sum.to_be_bytes());
}

/// The checksum at `at` after what it covers gained `delta` (RFC 1624 eqn. 3).
#[inline(always)]
pub(super) fn add_delta(bytes: &mut [u8], at: usize, delta: u16) {
    let sum = u32::from(!be16(bytes, at)) + u32::from(delta);
    let sum = (sum & 0xffff) + (sum >> 16);
    bytes[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
